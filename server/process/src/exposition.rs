//! Metrics in OpenMetrics format, and in Prometheus' older text format for clients that read only that.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use axum::http::HeaderMap;
use axum::http::header::ACCEPT;
use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

/// The content type of metrics.
pub const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of the older format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// The metrics of a registry in OpenMetrics format.
pub fn encoded(registry: &Registry) -> String {
    let mut out = String::new();
    if let Err(error) = text::encode(&mut out, registry) {
        // Writing to a String cannot fail; if a metric cannot be encoded, the reader must see it.
        let _ = write!(out, "# {error}\n# EOF\n");
    }
    out
}

/// Content type and text of metrics for a client: OpenMetrics, unless its `Accept` prefers the older format.
pub fn negotiated(headers: &HeaderMap, openmetrics: String) -> (&'static str, String) {
    match prefers_text(headers) {
        true => (TEXT, as_text(&openmetrics)),
        false => (OPENMETRICS, openmetrics),
    }
}

/// RFC 9110, 12.5.1: of the ranges that match a type, the most specific one has its quality.
fn prefers_text(headers: &HeaderMap) -> bool {
    let values = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
    let (mut open, mut text) = ((0, 0.0), (0, 0.0));
    for entry in values.flat_map(|value| value.split(',')) {
        let mut parts = entry.split(';').map(str::trim);
        let range = parts.next().unwrap_or_default().to_ascii_lowercase();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
        for (kind, all, best) in
            [("application/openmetrics-text", "application/*", &mut open), ("text/plain", "text/*", &mut text)]
        {
            let rank = [range == "*/*", range == all, range == kind].iter().rposition(|matches| *matches);
            let rank = rank.map_or(0, |rank| rank + 1);
            if rank > 0 && (rank, quality) > *best {
                *best = (rank, quality);
            }
        }
    }
    text.1 > open.1
}

/// Version 0.0.4 names counters with their ending, and has neither units, exemplars, `info` nor an end.
fn as_text(openmetrics: &str) -> String {
    let kinds: BTreeMap<&str, &str> =
        openmetrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')).collect();
    let mut out = String::with_capacity(openmetrics.len());
    for line in openmetrics.lines() {
        // Writing to a String cannot fail.
        let _ = match line.strip_prefix("# ") {
            None => writeln!(out, "{}", without_exemplar(line)),
            Some(rest) => {
                let mut words = rest.splitn(3, ' ');
                let (Some(what @ ("HELP" | "TYPE")), Some(name), Some(text)) =
                    (words.next(), words.next(), words.next())
                else {
                    continue;
                };
                let ending = match kinds.get(name) {
                    Some(&"counter") => "_total",
                    Some(&"info") => "_info",
                    _ => "",
                };
                let text = match (what, text) {
                    ("TYPE", "info" | "stateset") => "gauge",
                    ("TYPE", "unknown") => "untyped",
                    (_, text) => text,
                };
                writeln!(out, "# {what} {name}{ending} {text}")
            }
        };
    }
    out
}

/// A sample up to the `#` that begins its exemplar; labels may contain one.
fn without_exemplar(line: &str) -> &str {
    let (mut quoted, mut escaped) = (false, false);
    let exemplar = line.find(|c: char| {
        let begins = c == '#' && !quoted;
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        escaped = c == '\\' && !escaped;
        begins
    });
    exemplar.map_or(line, |at| line[..at].trim_end())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn older_text_is_for_clients_that_prefer_it() {
        let prometheus = "application/openmetrics-text;version=1.0.0;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
                          text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        for (accept, expect) in [
            (None, OPENMETRICS),
            (Some("*/*"), OPENMETRICS),
            (Some(prometheus), OPENMETRICS),
            (Some("text/html,application/xhtml+xml;q=0.9,*/*;q=0.8"), OPENMETRICS),
            (Some("application/*, text/plain;q=0.5"), OPENMETRICS),
            (Some("nonsense"), OPENMETRICS),
            (Some("text/plain;version=0.0.4"), TEXT),
            (Some("text/plain, */*;q=0.1"), TEXT),
            (Some("TEXT/*"), TEXT),
            (Some("application/openmetrics-text;q=0.2, text/plain;version=0.0.4;q=0.3"), TEXT),
        ] {
            let headers: HeaderMap = accept.map(|accept| (ACCEPT, accept.parse().unwrap())).into_iter().collect();
            assert_eq!(negotiated(&headers, String::new()).0, expect, "{accept:?}");
        }
    }

    #[test]
    fn every_family_keeps_its_help_and_type() {
        let openmetrics = "# HELP requests Requests.\n# TYPE requests counter\nrequests_total{path=\"/#\\\"\"} 3 # {trace=\"1\"} 1\n\
            # TYPE size_bytes gauge\n# UNIT size_bytes bytes\n# HELP size_bytes Size.\nsize_bytes 5\n\
            # HELP t Time.\n# TYPE t histogram\nt_bucket{le=\"+Inf\"} 2\nt_count 2\nt_sum 0.5\n\
            # TYPE build info\nbuild_info{v=\"1\"} 1\n# TYPE x unknown\nx 1\n# EOF\n";
        let expect = "# HELP requests_total Requests.\n# TYPE requests_total counter\nrequests_total{path=\"/#\\\"\"} 3\n\
            # TYPE size_bytes gauge\n# HELP size_bytes Size.\nsize_bytes 5\n\
            # HELP t Time.\n# TYPE t histogram\nt_bucket{le=\"+Inf\"} 2\nt_count 2\nt_sum 0.5\n\
            # TYPE build_info gauge\nbuild_info{v=\"1\"} 1\n# TYPE x untyped\nx 1\n";
        assert_eq!(as_text(openmetrics), expect);
    }
}
