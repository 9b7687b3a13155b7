//! Merges the metrics of several processes: every family once, with a label for the source.
//!
//! Reads OpenMetrics and Prometheus' older text, writes OpenMetrics.

use std::collections::BTreeMap;
use std::fmt;

/// The families so far.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    families: BTreeMap<String, FamilyText>,
}

#[derive(Debug, Default)]
struct FamilyText {
    kind: String,
    help: Option<String>,
    unit: Option<String>,
    samples: Vec<String>,
}

/// Ends of sample names, by the type of their family.
fn endings(kind: &str) -> &'static [&'static str] {
    match kind {
        "counter" => &["_total", "_created"],
        "histogram" => &["_bucket", "_count", "_sum", "_created"],
        "gaugehistogram" => &["_bucket", "_gcount", "_gsum"],
        "summary" => &["", "_count", "_sum", "_created"],
        "info" => &["_info"],
        _ => &[""],
    }
}

impl Exposition {
    /// Adds an exposition. With `replica`, every sample gets that label. Unparsable lines are skipped: one replica's
    /// error must not affect the metrics of others.
    pub(super) fn add(&mut self, text: &str, replica: Option<&str>) {
        // The older text names a counter's family with its `_total`; OpenMetrics does not.
        let mut names: BTreeMap<String, String> = BTreeMap::new();
        for line in text.lines().filter(|line| line.starts_with("# TYPE ")) {
            let mut words = line.splitn(4, ' ').skip(2);
            let (Some(name), Some(kind)) = (words.next(), words.next()) else { continue };
            let kind = if kind.trim() == "untyped" { "unknown" } else { kind.trim() };
            let family = if kind == "counter" { name.strip_suffix("_total").unwrap_or(name) } else { name };
            if !is_name(family) {
                continue;
            }
            let known = self.families.entry(family.to_owned()).or_default();
            if known.kind.is_empty() {
                known.kind = kind.to_owned();
            }
            // On conflicting types the first one wins, and the other's samples are dropped.
            if known.kind == kind {
                names.insert(name.to_owned(), family.to_owned());
            }
        }
        let lookup: BTreeMap<String, String> = names
            .values()
            .flat_map(|family| {
                endings(&self.families[family].kind).iter().map(move |end| (format!("{family}{end}"), family.clone()))
            })
            .collect();

        for line in text.lines() {
            if let Some(rest) = line.strip_prefix("# ") {
                let mut words = rest.splitn(3, ' ');
                let (Some(what), Some(name), Some(rest)) = (words.next(), words.next(), words.next()) else { continue };
                let Some(family) = names.get(name).and_then(|family| self.families.get_mut(family)) else { continue };
                match what {
                    "HELP" => drop(family.help.get_or_insert_with(|| rest.to_owned())),
                    "UNIT" => drop(family.unit.get_or_insert_with(|| rest.to_owned())),
                    _ => {}
                }
                continue;
            }
            let Some((name, labels, value)) = sample(line) else { continue };
            let Some(family) = lookup.get(name).and_then(|family| self.families.get_mut(family)) else { continue };
            family.samples.push(match replica {
                None if labels.is_empty() => format!("{name} {value}"),
                None => format!("{name}{{{labels}}} {value}"),
                Some(replica) if labels.is_empty() => format!("{name}{{replica=\"{replica}\"}} {value}"),
                // An existing `replica` label is kept.
                Some(_) if has_replica(labels) => format!("{name}{{{labels}}} {value}"),
                Some(replica) => format!("{name}{{replica=\"{replica}\",{labels}}} {value}"),
            });
        }
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ':')
}

fn has_replica(labels: &str) -> bool {
    labels.starts_with("replica=") || labels.contains(",replica=")
}

/// Name, labels without their braces, and the rest, of a line that is a sample.
fn sample(line: &str) -> Option<(&str, &str, &str)> {
    let end = line.find(['{', ' '])?;
    let (name, rest) = line.split_at(end);
    if !is_name(name) {
        return None;
    }
    let (labels, value) = match rest.strip_prefix('{') {
        None => ("", rest),
        Some(rest) => {
            // A brace may be inside a quoted value.
            let mut quoted = false;
            let mut escaped = false;
            let close = rest.char_indices().find_map(|(at, c)| {
                match c {
                    _ if escaped => escaped = false,
                    '\\' if quoted => escaped = true,
                    '"' => quoted = !quoted,
                    '}' if !quoted => return Some(at),
                    _ => {}
                }
                None
            })?;
            (rest[..close].trim_end_matches(','), &rest[close + 1..])
        }
    };
    let value = value.trim();
    let number = value.split(' ').next()?;
    let readable = number.parse::<f64>().is_ok() || matches!(number, "+Inf" | "-Inf" | "NaN");
    readable.then_some((name, labels, value))
}

impl fmt::Display for Exposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, family) in self.families.iter().filter(|(_, family)| !family.samples.is_empty()) {
            writeln!(f, "# TYPE {name} {}", family.kind)?;
            if let Some(unit) = &family.unit {
                writeln!(f, "# UNIT {name} {unit}")?;
            }
            if let Some(help) = &family.help {
                writeln!(f, "# HELP {name} {help}")?;
            }
            for sample in &family.samples {
                writeln!(f, "{sample}")?;
            }
        }
        writeln!(f, "# EOF")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_families_of_replicas_are_merged_with_a_label() {
        let server = "# HELP requests Requests.\n# TYPE requests counter\nrequests_total{route=\"/a}b\",x=\"q\\\"{\"} 3\n\
            # TYPE up gauge\nup 1\n# TYPE t histogram\nt_bucket{le=\"+Inf\"} 2 # {trace=\"1\"} 0.5\nt_count 2\nt_sum 0.5\n# EOF\n";
        let mut merged = Exposition::default();
        merged.add("# TYPE gateway_up gauge\ngateway_up{replica=\"own\"} 1\n# EOF\n", None);
        merged.add(server, Some("server-0"));
        merged.add(server, Some("server-1"));
        let expect = "# TYPE gateway_up gauge\ngateway_up{replica=\"own\"} 1\n\
            # TYPE requests counter\n# HELP requests Requests.\n\
            requests_total{replica=\"server-0\",route=\"/a}b\",x=\"q\\\"{\"} 3\nrequests_total{replica=\"server-1\",route=\"/a}b\",x=\"q\\\"{\"} 3\n\
            # TYPE t histogram\nt_bucket{replica=\"server-0\",le=\"+Inf\"} 2 # {trace=\"1\"} 0.5\nt_count{replica=\"server-0\"} 2\nt_sum{replica=\"server-0\"} 0.5\n\
            t_bucket{replica=\"server-1\",le=\"+Inf\"} 2 # {trace=\"1\"} 0.5\nt_count{replica=\"server-1\"} 2\nt_sum{replica=\"server-1\"} 0.5\n\
            # TYPE up gauge\nup{replica=\"server-0\"} 1\nup{replica=\"server-1\"} 1\n# EOF\n";
        assert_eq!(merged.to_string(), expect);
    }

    #[test]
    fn prometheus_text_format_is_parsed_and_invalid_lines_are_skipped() {
        let mut merged = Exposition::default();
        merged.add("# TYPE jobs_total counter\njobs_total 5 1700000000\nno type 1\nbroken{a=\"b 1\n# TYPE x gauge\nx one\nx 1\n", Some("a"));
        merged.add("# TYPE x counter\nx_total 9\n", Some("b"));
        let expect =
            "# TYPE jobs counter\njobs_total{replica=\"a\"} 5 1700000000\n# TYPE x gauge\nx{replica=\"a\"} 1\n# EOF\n";
        assert_eq!(merged.to_string(), expect);
    }
}
