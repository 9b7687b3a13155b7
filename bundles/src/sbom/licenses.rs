//! Licenses of crates, as their own manifests state them, and crates that are not linked into every program: tables that
//! `licenses.sh` generates from cargo's dependency graph.

/// `name version expression`, sorted. Crates that are not listed have no known license.
const LICENSES: &str = include_str!("licenses.txt");
/// `name version condition…`, sorted; a condition may be one of several, as `candle|clouds`.
const ELSEWHERE: &str = include_str!("elsewhere.txt");

/// The license of one version of a crate, as an SPDX expression, if it is known.
pub fn license_of_crate(name: &str, version: &str) -> Option<String> {
    line_of(LICENSES, name, version).map(str::to_owned)
}

/// Whether a crate is linked into a program with these conditions. Crates that are not in the table always are.
pub(super) fn is_linked(name: &str, version: &str, conditions: &[&str]) -> bool {
    let needed = line_of(ELSEWHERE, name, version).unwrap_or_default();
    needed.split_whitespace().all(|needed| needed.split('|').any(|condition| conditions.contains(&condition)))
}

fn line_of(table: &'static str, name: &str, version: &str) -> Option<&'static str> {
    let key = format!("{name} {version} ");
    table.lines().find_map(|line| line.strip_prefix(&key))
}
