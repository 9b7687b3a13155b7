//! Names of metrics, in queries of rules and dashboards and in scrapes.

use std::collections::BTreeSet;

/// The metrics in a text with queries: names that a selector follows.
pub fn queried(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let text = text.replace("\\\"", "\"");
    let selectors = ["{namespace=", "{job="].into_iter().flat_map(|label| text.match_indices(label));
    let before = selectors.map(|(place, _)| &text[..place]);
    before.map(|before| before[before.trim_end_matches(is_part).len()..].to_owned()).collect()
}

/// The metrics of a scrape that have a series.
pub fn scraped(text: &str) -> BTreeSet<String> {
    let series = text.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| line.split(['{', ' ']).next()).map(str::to_owned).collect()
}
