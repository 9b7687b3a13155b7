//! Reads metrics in the text formats of Prometheus and OpenMetrics, and quantiles of their histograms.

use std::collections::BTreeMap;

/// One sample of a scrape.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sample<'a> {
    /// The metric: `http_requests_total`.
    pub name: &'a str,
    /// The text between the braces; empty without labels.
    pub labels: &'a str,
    /// The value.
    pub value: f64,
}

impl<'a> Sample<'a> {
    /// The value of a label as it is written, with its escapes.
    pub fn label(&self, name: &str) -> Option<&'a str> {
        let mut rest = self.labels;
        while let Some((key, after)) = rest.split_once("=\"") {
            let (value, more) = after.split_at_checked(position_outside_quotes(after, '"', true)?)?;
            if key.trim_matches([',', ' ']) == name {
                return Some(value);
            }
            rest = more.strip_prefix('"')?;
        }
        None
    }
}

/// The samples of a scrape. Comments, exemplars and lines that are no samples are skipped.
pub fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter_map(sample)
}

fn sample(line: &str) -> Option<Sample<'_>> {
    let (name, rest) = line.split_at_checked(line.find(['{', ' '])?)?;
    if name.is_empty() || name.starts_with('#') {
        return None;
    }
    let (labels, rest) = match rest.strip_prefix('{') {
        Some(inside) => {
            let (labels, rest) = inside.split_at_checked(position_outside_quotes(inside, '}', false)?)?;
            (labels, rest.strip_prefix('}')?)
        }
        None => ("", rest),
    };
    Some(Sample { name, labels, value: rest.split_whitespace().next()?.parse().ok()? })
}

/// The index of the first such character outside of quotes. `quoted`: the text begins inside of quotes. A closing quote
/// counts as outside.
fn position_outside_quotes(text: &str, wanted: char, mut quoted: bool) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices() {
        if c == '"' && !escaped {
            quoted = !quoted;
        }
        if c == wanted && !quoted {
            return Some(at);
        }
        escaped = quoted && c == '\\' && !escaped;
    }
    None
}

/// A quantile (0 to 1) of a histogram with cumulative counts by upper bound (`le`), interpolated as `histogram_quantile`
/// of Prometheus does: <https://prometheus.io/docs/prometheus/latest/querying/functions/#histogram_quantile>. `None`
/// without observations.
pub fn quantile(buckets: &BTreeMap<String, f64>, quantile: f64) -> Option<f64> {
    let mut buckets: Vec<(f64, f64)> =
        buckets.iter().filter_map(|(bound, count)| Some((bound.parse().ok()?, *count))).collect();
    buckets.sort_by(|a, b| a.0.total_cmp(&b.0));
    let all = buckets.last()?.1;
    if all <= 0.0 {
        return None;
    }
    let rank = all * quantile;
    let at = buckets.iter().position(|(_, count)| *count >= rank)?;
    let (lower, below) = at.checked_sub(1).map_or((0.0, 0.0), |before| buckets[before]);
    let (upper, count) = buckets[at];
    // The last bucket has no upper bound, so the last finite bound is the result, as in Prometheus.
    if upper.is_infinite() {
        return Some(lower);
    }
    Some(lower + (upper - lower) * ((rank - below) / (count - below)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_keep_quoted_braces_and_drop_exemplars() {
        let text = "# TYPE requests counter\nrequests_total{path=\"/a}\\\"b,c=\",status=\"500\"} 3 # {trace=\"1\"} 9\n\
                    up 1 1700000000\nnonsense\nbroken{a=\"b 1\n{} x\n} \n# EOF\n";
        let found: Vec<Sample<'_>> = samples(text).collect();
        assert_eq!(
            found.iter().map(|one| (one.name, one.value)).collect::<Vec<_>>(),
            [("requests_total", 3.0), ("up", 1.0)]
        );
        assert_eq!(found[0].label("path"), Some("/a}\\\"b,c="));
        assert_eq!((found[0].label("status"), found[0].label("c")), (Some("500"), None));
        assert_eq!(found[1].label("status"), None);
    }

    #[test]
    fn quantile_is_interpolated_within_its_bucket() {
        let of = |buckets: &[(&str, f64)], q| {
            let buckets = buckets.iter().map(|(bound, count)| ((*bound).to_owned(), *count)).collect();
            quantile(&buckets, q)
        };
        assert_eq!(of(&[("1.0", 100.0), ("2.5", 100.0), ("+Inf", 100.0)], 0.95), Some(0.95));
        assert_eq!(of(&[("1.0", 0.0), ("2.0", 100.0), ("+Inf", 100.0)], 0.5), Some(1.5));
        assert_eq!(of(&[("1.0", 0.0), ("+Inf", 5.0)], 0.99), Some(1.0));
        assert_eq!((of(&[], 0.5), of(&[("+Inf", 0.0)], 0.5)), (None, None));
    }
}
