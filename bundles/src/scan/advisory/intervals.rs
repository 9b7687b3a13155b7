//! The affected versions of a crate: those that are neither patched nor unaffected.
//!
//! RustSec lists the versions that are *not* affected, as requirements. Requirements treat pre-releases separately: `>=
//! 1.2.0` does not match 1.3.0-rc.1, so a fixed pre-release would count as vulnerable. They are read as intervals of
//! the semver order instead, and the gaps between them are affected, as in `cargo audit`.

use semver::{BuildMetadata, Comparator, Op, Prerelease, Version, VersionReq};

/// Affected versions: from (included) to (not included).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Interval {
    from: Option<Version>,
    until: Option<Version>,
}

impl Interval {
    pub(crate) fn holds(&self, version: &Version) -> bool {
        self.from.as_ref().is_none_or(|from| version >= from) && self.until.as_ref().is_none_or(|until| version < until)
    }
}

/// A safe stretch, both ends as the first version that belongs, and the first that no longer does.
#[derive(Clone, Debug)]
struct Safe {
    from: Option<Version>,
    until: Option<Version>,
}

/// The affected versions, or why the requirements make no sense.
pub(crate) fn affected(patched: &[String], unaffected: &[String]) -> Result<Vec<Interval>, String> {
    let mut safe = unaffected.iter().chain(patched).map(|text| read(text)).collect::<Result<Vec<Safe>, String>>()?;
    safe.sort_by(|a, b| a.from.cmp(&b.from));
    for pair in safe.windows(2) {
        let apart = match (&pair[0].until, &pair[1].from) {
            (Some(until), Some(from)) => until <= from,
            _ => false,
        };
        if !apart {
            return Err("its version requirements overlap".to_owned());
        }
    }
    let mut affected = Vec::new();
    let mut from = None;
    let mut open = true;
    for stretch in safe {
        if stretch.from.is_some() && open {
            affected.push(Interval { from: from.take(), until: stretch.from });
        }
        open = stretch.until.is_some();
        from = stretch.until;
    }
    if open {
        affected.push(Interval { from, until: None });
    }
    Ok(affected)
}

fn read(text: &str) -> Result<Safe, String> {
    let request = VersionReq::parse(text).map_err(|e| format!("`{text}` is not a version requirement: {e}"))?;
    let alone = request.comparators.len() == 1;
    let mut safe = Safe { from: None, until: None };
    for comparator in &request.comparators {
        let version = version(comparator);
        match comparator.op {
            Op::Greater if safe.from.is_none() => safe.from = Some(next(&version)),
            Op::GreaterEq if safe.from.is_none() => safe.from = Some(version),
            Op::Less if safe.until.is_none() => safe.until = Some(version),
            Op::LessEq if safe.until.is_none() => safe.until = Some(next(&version)),
            Op::Exact if alone => safe = Safe { until: Some(next(&version)), from: Some(version) },
            Op::Caret if alone => {
                let (major, minor, patch) = (comparator.major, comparator.minor, comparator.patch);
                let until = match (major, minor, patch) {
                    (0, Some(0), Some(patch)) => before(0, 0, patch.checked_add(1)),
                    (0, Some(minor), _) => before(0, minor.saturating_add(1), Some(0)),
                    _ => before(major.saturating_add(1), 0, Some(0)),
                };
                safe = Safe { from: Some(version), until: Some(until) };
            }
            Op::Tilde if alone => {
                let until = match comparator.minor {
                    Some(minor) => before(comparator.major, minor.saturating_add(1), Some(0)),
                    None => before(comparator.major.saturating_add(1), 0, Some(0)),
                };
                safe = Safe { from: Some(version), until: Some(until) };
            }
            _ => return Err(format!("`{text}` cannot be read as one range of versions")),
        }
    }
    match (&safe.from, &safe.until) {
        (Some(from), Some(until)) if from >= until => Err(format!("no version matches `{text}`")),
        _ => Ok(safe),
    }
}

fn version(c: &Comparator) -> Version {
    let pre = c.pre.clone();
    Version {
        major: c.major,
        minor: c.minor.unwrap_or(0),
        patch: c.patch.unwrap_or(0),
        pre,
        build: BuildMetadata::EMPTY,
    }
}

/// The first pre-release of a version: everything earlier comes before it.
fn before(major: u64, minor: u64, patch: Option<u64>) -> Version {
    let mut version = Version::new(major, minor, patch.unwrap_or(u64::MAX));
    version.pre = first();
    version
}

fn first() -> Prerelease {
    Prerelease::new("0").expect("0 is a pre-release")
}

/// The lowest version above another: 1.2.4-0 for 1.2.3, 1.2.3-rc.1.0 for 1.2.3-rc.1.
fn next(version: &Version) -> Version {
    let mut next = version.clone();
    next.build = BuildMetadata::EMPTY;
    if next.pre.is_empty() {
        next.patch = next.patch.saturating_add(1);
        next.pre = first();
    } else {
        next.pre = Prerelease::new(&format!("{}.0", version.pre)).expect("one more part is still a pre-release");
    }
    next
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(patched: &[&str], unaffected: &[&str], hit: &[&str], missed: &[&str]) {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let affected = affected(&own(patched), &own(unaffected)).unwrap();
        let holds = |v: &&&str| affected.iter().any(|i| i.holds(&Version::parse(v).unwrap()));
        assert_eq!(hit.iter().filter(holds).count(), hit.len(), "{affected:?} hits {hit:?}");
        assert_eq!(missed.iter().filter(holds).count(), 0, "{affected:?} misses {missed:?}");
    }

    #[test]
    fn versions_between_patched_and_unaffected_ranges_are_affected() {
        check(&[">= 1.2.3"], &[], &["0.1.0", "1.2.2", "1.2.3-rc.1"], &["1.2.3", "1.3.0-alpha", "2.0.0"]);
        check(&[">= 1.2.3"], &["< 1.1.0"], &["1.1.0", "1.2.2"], &["1.0.9", "1.1.0-beta", "1.2.3"]);
        check(&["^1.2.3", ">= 2.0.1"], &[], &["1.2.2", "2.0.0", "2.0.0-rc.1"], &["1.2.3", "1.9.9", "2.0.1"]);
        check(
            &["~0.3.5", ">= 0.4.2"],
            &["<= 0.2.9"],
            &["0.3.4", "0.2.10", "0.4.1"],
            &["0.2.9", "0.3.5", "0.3.99", "0.4.2"],
        );
        check(&["=1.0.5"], &["> 1.0.7"], &["1.0.4", "1.0.6", "1.0.7"], &["1.0.5", "1.0.8-0", "1.0.8"]);
        check(&["> 0.2.0, < 0.3.0", ">= 0.3.2"], &[], &["0.2.0", "0.3.0", "0.3.1"], &["0.2.1", "0.3.0-rc", "0.3.2"]);
        check(&[], &[], &["0.0.0", "9.9.9-x"], &[]);
        check(&[], &["< 1.0.0"], &["1.0.0"], &["0.9.0"]);
        check(&["^0.0.3", "^0.1"], &[], &["0.0.2", "0.0.4", "0.2.0"], &["0.0.3", "0.1.7"]);
    }

    #[test]
    fn contradictory_version_requirements_are_refused() {
        for (patched, unaffected) in
            [(">= 1.0.0", "< 1.1.0"), ("*", "< 1.0.0"), ("< 1.0.0, < 2.0.0", "=3.0.0"), ("one", "=1.0.0")]
        {
            assert!(affected(&[patched.to_owned()], &[unaffected.to_owned()]).is_err(), "{patched} and {unaffected}");
        }
    }
}
