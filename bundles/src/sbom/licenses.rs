//! Licenses of crates, as their own manifests state them: `licenses.txt`, made by `licenses.sh` from `cargo metadata`.

/// `name version expression`, sorted. What is not in it has no license here.
const TABLE: &str = include_str!("licenses.txt");

/// The license of one version of a crate, as an SPDX expression, if it is known.
pub fn license_of_crate(name: &str, version: &str) -> Option<String> {
    let key = format!("{name} {version} ");
    TABLE.lines().find_map(|line| line.strip_prefix(&key)).map(str::to_owned)
}
