//! Known vulnerabilities: the age limit of advisories, and the recorded audit of this program's dependencies.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use textnlp_bundle::sbom::{CrateGraph, Lock};
use textnlp_bundle::scan::Package;
use textnlp_orchestrator::environment::model::Gates;
use textnlp_orchestrator::gate::Check;

const RECORD: &str = include_str!("../../evidence/audit.json");
/// The lock file that this program was built from.
pub const LOCK: &str = include_str!("../../../Cargo.lock");
/// Stands in this program, so that another one can tell how it was built.
pub const BUILT: &str = if cfg!(feature = "clouds") {
    "textnlp-deploy was built with the features: clouds"
} else {
    "textnlp-deploy was built with the features: none"
};
/// The name of the check, for every source of advisories.
pub const NAME: &str = "known vulnerabilities";
/// The crate and the name of this program.
pub const PROGRAM: &str = "textnlp-deploy";

#[derive(Deserialize)]
struct Record {
    lock_sha256: String,
    advisories: u64,
    newest_advisory: Date,
    vulnerabilities: Vec<String>,
}

/// The check of this program: no known vulnerability in the dependencies that it was built from.
pub fn check(gates: &Gates, now: Timestamp) -> Check {
    let record: Record = match serde_json::from_str(RECORD) {
        Ok(record) => record,
        Err(error) => return Check::unmeasured(NAME, 0, "found", format!("the record cannot be read: {error}")),
    };
    if record.lock_sha256 != hex::encode(Sha256::digest(LOCK)) {
        return Check::unmeasured(
            NAME,
            0,
            "found",
            "the record does not match Cargo.lock: run .ci/audit DATABASE --write",
        );
    }
    let found = record.vulnerabilities.len();
    let age = age_days(record.newest_advisory, now);
    let mut note = format!(
        "{} dependencies of the program, checked when it was built; {} advisories, {}",
        linked().len(),
        record.advisories,
        aged(record.newest_advisory, age)
    );
    if found > 0 {
        note = format!("{}; {note}", record.vulnerabilities.join("; "));
    }
    within_age(Check::new(NAME, found, 0, "found", found == 0).note(note), age, gates)
}

/// The crates of others that are linked into this program.
pub fn linked() -> Vec<Package> {
    let platform = super::bundle::platform();
    let conditions = [&[platform.as_str()], &features(true)[..]].concat();
    let of = |lock: Lock| CrateGraph { lock: &lock, root: PROGRAM, conditions: &conditions }.packages();
    Lock::parse(LOCK).map(of).unwrap_or_default()
}

/// The features of this program, as conditions of a [`CrateGraph`]; all of them for one that may have been built with others.
pub fn features(same: bool) -> Vec<&'static str> {
    if cfg!(feature = "clouds") || !same { vec!["clouds"] } else { Vec::new() }
}

/// `newest of 2026-08-20, 94 days old`.
pub fn aged(newest: Date, days: i64) -> String {
    format!("newest of {newest}, {days} days old")
}

/// Days from a date to now.
fn age_days(date: Date, now: Timestamp) -> i64 {
    let today = now.to_zoned(TimeZone::UTC).date();
    date.until((Unit::Day, today)).map_or(0, |span| i64::from(span.get_days()))
}

/// The age limit of advisories in days.
pub fn max_age_days(gates: &Gates) -> i64 {
    i64::try_from(gates.advisories_max_age.0.as_secs() / 86_400).unwrap_or(i64::MAX)
}

/// The check, adjusted for the age of its advisories.
pub fn within_age(check: Check, days: i64, gates: &Gates) -> Check {
    let max = max_age_days(gates);
    if days <= max {
        return check;
    }
    check.falls_short(format!("the advisories are {days} days old, the limit is {max}"), gates.advisories)
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::model::Enforcement;

    use super::*;

    #[test]
    fn audit_record_matches_the_current_lock_file() {
        let check = check(&Gates::default(), Timestamp::now());
        assert!(check.ok, "{check}");
    }

    #[test]
    fn the_gate_and_a_scan_count_the_linked_crates_of_others() {
        let (linked, lock) = (linked(), Lock::parse(LOCK).unwrap());
        assert!(linked.iter().any(|package| package.name == "tokio") && linked.len() < lock.registry_packages().len());
        let clouds = linked.iter().any(|package| package.name == "aws-config");
        assert_eq!(clouds, cfg!(feature = "clouds"));
        let note = check(&Gates::default(), Timestamp::now()).note.unwrap_or_default();
        assert!(note.contains(&format!("{} dependencies of the program", linked.len())), "{note}");
    }

    #[test]
    fn outdated_advisories_warn_and_close_a_strict_gate() {
        let record: Record = serde_json::from_str(RECORD).unwrap();
        let after = |days: i64| {
            let day = record.newest_advisory.checked_add(jiff::Span::new().days(days)).unwrap();
            day.to_zoned(TimeZone::UTC).unwrap().timestamp()
        };
        let strict = Gates { advisories: Enforcement::Block, ..Gates::default() };
        let state = |gates: &Gates, days| {
            let check = check(gates, after(days));
            (check.ok, check.warning, check.note.unwrap_or_default())
        };
        for gates in [&Gates::default(), &strict] {
            let (ok, warning, note) = state(gates, 90);
            assert!(ok && !warning && note.contains("90 days old"), "{note}");
        }
        let (ok, warning, note) = state(&Gates::default(), 91);
        assert!(ok && warning && note.contains("91 days old, the limit is 90"), "{note}");
        assert_eq!((state(&strict, 91).0, state(&strict, 91).1), (false, false));
    }
}
