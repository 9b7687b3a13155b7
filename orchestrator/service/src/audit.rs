//! Known vulnerabilities: the age limit of advisories, and the recorded audit of this program's dependencies.

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Timestamp, Unit};
use serde::Deserialize;
use sha2::{Digest, Sha256};
use textnlp_bundle::sbom::{CrateGraph, Lock};
use textnlp_bundle::scan::{Database, Kind, Package, Scan, Settings};
use textnlp_orchestrator::environment::Library;
use textnlp_orchestrator::environment::model::{AdvisoryPolicy, Gates, Phase};
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::VULNERABILITIES;

use crate::Deployment;
use crate::bundle::advisories::AdvisorySources;
use crate::bundle::{installed, platform};

const RECORD: &str = include_str!("../../../cli/evidence/audit.json");
/// The lock file that this program was built from.
pub const LOCK: &str = include_str!("../../../Cargo.lock");
/// The crate and the name of this program.
pub const PROGRAM: &str = "textnlp-deploy";

/// The checks of known vulnerabilities of a deployment, and of an air-gapped site those of its installed content.
/// `refresh`: the command that checks against current advisories.
pub async fn checks(
    deployment: &Deployment,
    library: &Library,
    sources: &AdvisorySources,
    given: Option<&Database>,
    refresh: &str,
) -> Vec<Check> {
    let environment = &deployment.chosen.loaded.environment;
    let features = deployment.chosen.scope.platform.build().features;
    let audit = Audit { gates: &environment.gates, now: Timestamp::now(), given, refresh, features };
    match environment.phase {
        // The content of an installed site includes the program.
        Phase::AirGapped => installed::checks(library, deployment, &audit).await,
        _ => vec![audit.check(|| Some(sources.on_this_machine()?.database))],
    }
}

/// The audit of this program's dependencies when it was built.
#[derive(Deserialize)]
pub(crate) struct Record {
    lock_sha256: String,
    advisories: u64,
    /// The date of the newest advisory.
    pub(crate) newest_advisory: Date,
    /// Each as `ID CRATE VERSION: title`.
    pub(crate) vulnerabilities: Vec<String>,
}

impl Record {
    /// The embedded one; why it is not used, if so.
    pub(crate) fn of_this_program() -> Result<Self, String> {
        let record: Self =
            serde_json::from_str(RECORD).map_err(|error| format!("the record cannot be read: {error}"))?;
        if record.lock_sha256 != hex::encode(Sha256::digest(LOCK)) {
            return Err("the record does not match Cargo.lock: run .ci/audit DATABASE --write".to_owned());
        }
        Ok(record)
    }
}

/// What the dependencies of this program are checked against.
pub(crate) struct Audit<'a> {
    /// The environment's limits.
    pub(crate) gates: &'a Gates,
    /// The reference of all ages.
    pub(crate) now: Timestamp,
    /// Advisories that the operator gave.
    pub(crate) given: Option<&'a Database>,
    /// The suggested command that checks against current advisories.
    pub(crate) refresh: &'a str,
    /// The cargo features of this program.
    pub(crate) features: &'a [(&'a str, bool)],
}

impl Audit<'_> {
    /// No known vulnerability is in the dependencies that this program was built from, by the given advisories; else by
    /// those of the build, or newer ones of this machine once those are too old.
    pub(crate) fn check(&self, here: impl FnOnce() -> Option<Database>) -> Check {
        if let Some(database) = self.given {
            return self.scan(database);
        }
        let record = match Record::of_this_program() {
            Ok(record) => record,
            Err(why) => return Check::unmeasured(VULNERABILITIES, 0, "found", why),
        };
        let age = age_days(record.newest_advisory, self.now);
        let is_newer =
            |database: &Database| database.sources().iter().all(|source| source.date > record.newest_advisory);
        if age > max_age_days(self.gates)
            && let Some(database) = here().filter(is_newer)
        {
            return self.scan(&database);
        }
        let mut note = format!(
            "{} dependencies of the program, checked when it was built; {} advisories, {}",
            linked(self.features).len(),
            record.advisories,
            aged(record.newest_advisory, age)
        );
        if !record.vulnerabilities.is_empty() {
            note = format!("{}; {note}", record.vulnerabilities.join("; "));
        }
        self.found(record.vulnerabilities.len(), note, age)
    }

    fn scan(&self, database: &Database) -> Check {
        let settings = Settings { max_age_days: max_age_days(self.gates), ..Settings::at(self.now) };
        let report = Scan::new(settings).with(database.clone()).of_packages("this program", &linked(self.features));
        let found: Vec<String> = report
            .findings
            .iter()
            .filter(|finding| finding.kind == Kind::Vulnerability)
            .map(|f| {
                let of = |name: &Option<String>| name.clone().unwrap_or_default();
                format!("{} {} {}: {}", f.id, of(&f.package), of(&f.installed), f.title)
            })
            .collect();
        let of = report.databases.iter().map(|d| format!("{} advisories, {}", d.advisories, aged(d.date, d.age_days)));
        let mut notes = found.clone();
        notes.push(format!("dependencies of the program; {}", of.collect::<Vec<_>>().join("; ")));
        if let Some(missed) = report.not_looked_at.iter().find(|missed| missed.required) {
            return Check::unmeasured(VULNERABILITIES, 0, "found", format!("{}: {}", missed.what, missed.why));
        }
        let age = report.databases.iter().map(|database| database.age_days).max().unwrap_or(i64::MAX);
        self.found(found.len(), notes.join("; "), age)
    }

    fn found(&self, count: usize, note: String, age: i64) -> Check {
        let check = Check::new(VULNERABILITIES, count, 0, "found", count == 0).note(note);
        within_age(check, age, self.gates, self.refresh)
    }
}

/// The crates of others that are linked into this program.
pub fn linked(features: &[(&str, bool)]) -> Vec<Package> {
    let platform = platform();
    let conditions = [&[platform.as_str()], &conditions(features, true)[..]].concat();
    let of = |lock: Lock| CrateGraph { lock: &lock, root: PROGRAM, conditions: &conditions }.packages();
    Lock::parse(LOCK).map(of).unwrap_or_default()
}

/// The features of this program, as conditions of a [`CrateGraph`]; all of them for one that may have been built with others.
pub(crate) fn conditions<'f>(features: &[(&'f str, bool)], same: bool) -> Vec<&'f str> {
    features.iter().filter(|(_, built)| *built || !same).map(|(name, _)| *name).collect()
}

/// `newest of 2026-08-20, 94 days old`.
pub(crate) fn aged(newest: Date, days: i64) -> String {
    format!("newest of {newest}, {days} days old")
}

/// Days from a date to now.
pub(crate) fn age_days(date: Date, now: Timestamp) -> i64 {
    let today = now.to_zoned(TimeZone::UTC).date();
    date.until((Unit::Day, today)).map_or(0, |span| i64::from(span.get_days()))
}

/// The age limit of advisories in days.
pub(crate) fn max_age_days(gates: &Gates) -> i64 {
    i64::try_from(gates.advisories_max_age.0.as_secs() / 86_400).unwrap_or(i64::MAX)
}

/// How to accept advisories that a policy does not accept.
pub(crate) fn how_to_accept(policy: AdvisoryPolicy) -> &'static str {
    match policy {
        AdvisoryPolicy::Warn => "",
        AdvisoryPolicy::Wait | AdvisoryPolicy::Block => "; to accept it: --set gates.advisories=warn --reason TEXT",
    }
}

/// The check, adjusted for the age of its advisories. `refresh`: the command that checks against newer ones.
pub(crate) fn within_age(check: Check, days: i64, gates: &Gates, refresh: &str) -> Check {
    let max = max_age_days(gates);
    if days <= max {
        return check;
    }
    let accept = how_to_accept(gates.advisories);
    let why = format!("the advisories are {days} days old, the limit is {max}; newer ones: {refresh}{accept}");
    // Of a check that found nothing, this is all there is to say.
    let note = if check.ok { None } else { check.note };
    Check { note, ..check }.falls_short(why, gates.advisories)
}

#[cfg(test)]
mod tests {
    use camino::Utf8Path;

    use super::*;

    const FEATURES: &[(&str, bool)] = &[("clouds", false), ("candle", false)];

    fn after(days: i64) -> Timestamp {
        let record: Record = serde_json::from_str(RECORD).unwrap();
        let day = record.newest_advisory.checked_add(jiff::Span::new().days(days)).unwrap();
        day.to_zoned(TimeZone::UTC).unwrap().timestamp()
    }

    fn audit<'a>(gates: &'a Gates, days: i64, given: Option<&'a Database>) -> Audit<'a> {
        let refresh = "textnlp-deploy gate --advisories URL";
        Audit { gates, now: after(days), given, refresh, features: FEATURES }
    }

    #[test]
    fn audit_record_matches_the_current_lock_file() {
        let check = audit(&Gates::default(), 0, None).check(|| None);
        assert!(check.ok, "{check}");
    }

    #[test]
    fn the_gate_and_a_scan_count_the_linked_crates_of_others() {
        let (linked, lock) = (linked(FEATURES), Lock::parse(LOCK).unwrap());
        assert!(linked.iter().any(|package| package.name == "tokio") && linked.len() < lock.registry_packages().len());
        let has_clouds = |linked: &[Package]| linked.iter().any(|package| package.name == "aws-config");
        assert!(!has_clouds(&linked) && has_clouds(&super::linked(&[("clouds", true)])));
        let note = audit(&Gates::default(), 0, None).check(|| None).note.unwrap_or_default();
        assert!(note.contains(&format!("{} dependencies of the program", linked.len())), "{note}");
    }

    #[test]
    fn gate_waits_for_current_advisories_unless_old_ones_are_accepted() {
        let of = |policy: AdvisoryPolicy, days| {
            let gates = Gates { advisories: policy, ..Gates::default() };
            let check = audit(&gates, days, None).check(|| None);
            (check.ok, check.waits, check.warning, check.note.unwrap_or_default())
        };
        for policy in [AdvisoryPolicy::Warn, AdvisoryPolicy::Wait, AdvisoryPolicy::Block] {
            let (ok, waits, warning, note) = of(policy, 30);
            assert!(ok && !waits && !warning && note.contains("30 days old"), "{note}");
        }
        let (ok, waits, warning, note) = of(Gates::default().advisories, 31);
        assert!(!ok && waits && !warning, "{note}");
        assert!(note.contains("31 days old, the limit is 30") && note.contains("gate --advisories URL"), "{note}");
        let (ok, waits, warning, note) = of(AdvisoryPolicy::Warn, 31);
        assert!(ok && !waits && warning, "{note}");
        let line = "the advisories are 31 days old, the limit is 30; newer ones: textnlp-deploy gate --advisories URL";
        assert_eq!(note, line);
        let (ok, waits, ..) = of(AdvisoryPolicy::Block, 31);
        assert!(!ok && !waits);
    }

    fn database(folder: &Utf8Path, krate: &str, day: i64) -> Database {
        let place = folder.join("crates").join(krate);
        std::fs::create_dir_all(&place).unwrap();
        let date = after(day).to_zoned(TimeZone::UTC).date();
        let text = format!(
            "```toml\n[advisory]\nid = \"RUSTSEC-2026-9999\"\npackage = \"{krate}\"\ndate = \"{date}\"\n\n\
             [versions]\npatched = []\n```\n\n# A flaw\n\nIt was made up.\n"
        );
        std::fs::write(place.join("RUSTSEC-2026-9999.md"), text).unwrap();
        Database::from_folder(folder).unwrap()
    }

    #[test]
    fn newer_advisories_take_the_place_of_the_recorded_ones() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let clean = database(Utf8Path::from_path(one.path()).unwrap(), "a-crate-that-nobody-has", 35);
        let flawed = database(Utf8Path::from_path(two.path()).unwrap(), "tokio", 35);
        let gates = Gates::default();
        // What was given decides, whatever its age.
        assert!(audit(&gates, 40, Some(&clean)).check(|| None).ok);
        assert!(audit(&gates, 66, Some(&clean)).check(|| None).waits);
        let found = audit(&gates, 40, Some(&flawed)).check(|| None);
        assert!(!found.ok && !found.waits && found.to_string().contains("RUSTSEC-2026-9999 tokio"), "{found}");
        assert!(!audit(&gates, 66, Some(&flawed)).check(|| None).waits, "a vulnerability waits for nothing");
        // This machine's are looked for once the recorded ones are too old.
        assert!(audit(&gates, 30, None).check(|| panic!("the recorded ones are young enough")).ok);
        assert!(audit(&gates, 40, None).check(|| Some(clean.clone())).ok);
        assert!(!audit(&gates, 40, None).check(|| Some(flawed.clone())).ok);
    }
}
