//! Licenses of crates, as their own manifests state them, and crates that are not linked into the program: tables that `licenses.sh` makes
//! from `cargo metadata`.

/// `name version expression`, sorted. What is not in it has no license here.
const LICENSES: &str = include_str!("licenses.txt");
/// `name version`, sorted: for other systems, for builds and for tests.
const ELSEWHERE: &str = include_str!("elsewhere.txt");

/// The license of one version of a crate, as an SPDX expression, if it is known.
pub fn license_of_crate(name: &str, version: &str) -> Option<String> {
    let key = format!("{name} {version} ");
    LICENSES.lines().find_map(|line| line.strip_prefix(&key)).map(str::to_owned)
}

/// Whether a crate is known not to be linked into the program on Linux. One that is in neither table counts as linked.
pub(super) fn is_elsewhere(name: &str, version: &str) -> bool {
    let key = format!("{name} {version}");
    ELSEWHERE.lines().any(|line| line == key)
}
