//! Known vulnerabilities: read from the RustSec database or from OSV documents, included in bundles, matched against
//! packages.

mod intervals;
mod osv;
mod rustsec;

use std::collections::{BTreeMap, BTreeSet};

use camino::Utf8Path;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};
use textnlp_models::Digest;

use self::intervals::Interval;
use super::CARRIED;
use super::contents::{Contents, whole};
use super::error::Error;
use super::finding::{DatabaseFacts, Finding, Kind, Severity};
use super::package::{CRATES, Package};
use super::version::Scheme;

/// The format of an included database.
const FORMAT: &str = "textnlp-advisories/1";

/// Far above the size of any database: RustSec has about 1,300 advisories in 1 MB.
pub(crate) const MOST_BYTES: u64 = 64 << 20;

/// An advisory of one vulnerability in one package, reduced to the needs of a scan.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advisory {
    /// `RUSTSEC-2021-0080`.
    pub id: String,
    /// The ecosystem as OSV writes it: `crates.io`, `Debian:12`.
    #[serde(default = "crates", skip_serializing_if = "is_crates")]
    pub ecosystem: String,
    /// The package; for Debian and Alpine the source package.
    pub package: String,
    /// The summary in one line.
    pub title: String,
    /// When it was published.
    pub date: Date,
    /// A CVSS vector of version 3 or 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cvss: Option<String>,
    /// The severity of the database, where it has no vector.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub severity: Option<Severity>,
    /// Aliases: CVE and GHSA ids.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The URL of the advisory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// `unmaintained`, `unsound`, `notice`: then it is a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub informational: Option<String>,
    /// When it was withdrawn: then it matches nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub withdrawn: Option<Date>,
    /// Requirements of fixed versions (RustSec).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub patched: Vec<String>,
    /// Requirements of versions that were never affected (RustSec).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unaffected: Vec<String>,
    /// Ranges of affected versions, one list per branch (OSV).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranges: Vec<Vec<Event>>,
    /// Affected versions, listed by name (OSV).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<String>,
}

/// An event of an affected range.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Event {
    /// The first affected version; `0` is the start.
    Introduced(String),
    /// The first fixed version.
    Fixed(String),
    /// The last affected version.
    LastAffected(String),
}

fn crates() -> String {
    CRATES.to_owned()
}

fn is_crates(ecosystem: &String) -> bool {
    ecosystem == CRATES
}

/// Advisories from one source.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Source {
    /// `RustSec`, or a folder's name.
    pub name: String,
    /// The date of the newest advisory, or of the copy where that is known.
    pub date: Date,
    /// Of the advisories as they stand here.
    pub digest: Digest,
    /// Sorted by id and package.
    pub advisories: Vec<Advisory>,
}

impl Source {
    fn new(name: &str, date: Option<Date>, mut advisories: Vec<Advisory>) -> Option<Source> {
        advisories.sort();
        advisories.dedup();
        let newest = advisories.iter().flat_map(|a| [Some(a.date), a.withdrawn]).flatten().max()?;
        let digest = digest_of(&advisories);
        Some(Source { name: name.to_owned(), date: date.unwrap_or(newest), digest, advisories })
    }
}

fn digest_of(advisories: &[Advisory]) -> Digest {
    Digest::of(&serde_json::to_vec(advisories).expect("advisories are plain data"))
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct AdvisoryFile {
    format: String,
    sources: Vec<Source>,
}

/// Advisories, indexed for matching.
#[derive(Clone, Debug, Default)]
pub struct Database {
    sources: Vec<Source>,
    /// By package name: the index of the advisory, and the affected versions.
    by_package: BTreeMap<String, Vec<(usize, usize, Vec<Interval>)>>,
    ecosystems: BTreeSet<String>,
    unread: Vec<(String, String)>,
}

impl Database {
    /// From a copy of the RustSec database. `date`: the day it was copied, if known; else that of its newest advisory.
    pub fn from_rustsec(folder: &Utf8Path, date: Option<Date>) -> Result<Database, Error> {
        let (advisories, unread) = rustsec::read(folder)?;
        let source = Source::new("RustSec", date, advisories).ok_or_else(|| Error::NoAdvisories(folder.to_owned()))?;
        Ok(Database::new(vec![source], unread))
    }

    /// From a folder of OSV documents (`*.json`, at any depth).
    pub fn from_osv(folder: &Utf8Path) -> Result<Database, Error> {
        let (advisories, unread) = osv::read(folder)?;
        let name = folder.file_name().unwrap_or("advisories");
        let source = Source::new(name, None, advisories).ok_or_else(|| Error::NoAdvisories(folder.to_owned()))?;
        Ok(Database::new(vec![source], unread))
    }

    /// From either kind of folder: RustSec has `crates/` with one folder per crate.
    pub fn from_folder(folder: &Utf8Path) -> Result<Database, Error> {
        if folder.join("crates").is_dir() { Database::from_rustsec(folder, None) } else { Database::from_osv(folder) }
    }

    /// From the form that [`Database::to_bytes`] gives. `path` is for errors.
    pub fn from_bytes(bytes: &[u8], path: &str) -> Result<Database, Error> {
        let wrong = |why: String| Error::Advisories { path: path.to_owned(), why };
        let carried: AdvisoryFile = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
        if carried.format != FORMAT {
            return Err(wrong(format!("the format is `{}`, not `{FORMAT}`", carried.format)));
        }
        for source in &carried.sources {
            let found = digest_of(&source.advisories);
            if found != source.digest {
                let (name, wanted) = (source.name.clone(), source.digest);
                return Err(Error::Digest { path: path.to_owned(), name, wanted, found });
            }
        }
        Ok(Database::new(carried.sources, Vec::new()))
    }

    /// The advisories in a bundle or an unpacked one; `None` without any.
    pub fn carried(contents: &dyn Contents) -> Result<Option<Database>, Error> {
        if !contents.entries().iter().any(|entry| entry.path == CARRIED) {
            return Ok(None);
        }
        let read = whole(contents, CARRIED, MOST_BYTES);
        let bytes = read.map_err(|source| Error::Read { path: CARRIED.to_owned(), source })?;
        let why = format!("longer than {MOST_BYTES} bytes");
        let bytes = bytes.ok_or(Error::Advisories { path: CARRIED.to_owned(), why })?;
        Database::from_bytes(&bytes, CARRIED).map(Some)
    }

    /// The form in a bundle: the same bytes for the same advisories.
    pub fn to_bytes(&self) -> Vec<u8> {
        let carried = AdvisoryFile { format: FORMAT.to_owned(), sources: self.sources.clone() };
        let mut bytes = serde_json::to_vec(&carried).expect("advisories are plain data");
        bytes.push(b'\n');
        bytes
    }

    /// Both together.
    #[must_use]
    pub fn and(mut self, other: Database) -> Database {
        self.sources.extend(other.sources);
        self.unread.extend(other.unread);
        Database::new(self.sources, self.unread)
    }

    fn new(sources: Vec<Source>, mut unread: Vec<(String, String)>) -> Database {
        let mut by_package: BTreeMap<String, Vec<_>> = BTreeMap::new();
        let mut ecosystems = BTreeSet::new();
        for (at, source) in sources.iter().enumerate() {
            for (nth, advisory) in source.advisories.iter().enumerate() {
                ecosystems.insert(advisory.ecosystem.clone());
                let versions = match intervals::affected(&advisory.patched, &advisory.unaffected) {
                    Ok(versions) => versions,
                    Err(why) => {
                        unread.push((advisory.id.clone(), why));
                        continue;
                    }
                };
                by_package.entry(advisory.package.clone()).or_default().push((at, nth, versions));
            }
        }
        unread.sort();
        unread.dedup();
        Database { sources, by_package, ecosystems, unread }
    }

    /// Where the advisories come from.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// Unreadable advisories, with the reason: a scan that uses them is incomplete.
    pub fn unread(&self) -> &[(String, String)] {
        &self.unread
    }

    /// The count of advisories.
    pub fn count(&self) -> u64 {
        self.sources.iter().map(|s| s.advisories.len() as u64).sum()
    }

    /// Whether it covers packages of this ecosystem (`Debian:12`).
    pub fn covers(&self, ecosystem: &str) -> bool {
        self.ecosystems.iter().any(|known| same(known, ecosystem))
    }

    /// The description of each source at this time.
    pub fn facts(&self, now: Timestamp) -> Vec<DatabaseFacts> {
        let today = now.to_zoned(TimeZone::UTC).date();
        let facts = |s: &Source| DatabaseFacts {
            name: s.name.clone(),
            date: s.date,
            digest: s.digest,
            age_days: s.date.until(today).map_or(0, |span| i64::from(span.get_days())),
            advisories: s.advisories.len() as u64,
        };
        self.sources.iter().map(facts).collect()
    }

    /// The advisories of a package, each once, without withdrawn ones.
    pub fn about(&self, package: &Package) -> Vec<&Advisory> {
        let (name, version) = package.matched_by();
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for (source, nth, intervals) in self.by_package.get(name).map(Vec::as_slice).unwrap_or_default() {
            let advisory = &self.sources[*source].advisories[*nth];
            if advisory.withdrawn.is_some() || !same(&advisory.ecosystem, &package.ecosystem) {
                continue;
            }
            if advisory.affects(version, intervals) && seen.insert(&advisory.id) {
                found.push(advisory);
            }
        }
        found.sort_by(|a, b| a.id.cmp(&b.id));
        found
    }
}

/// Whether an advisory for `known` speaks of packages of `ecosystem`. `Debian` speaks of every release; `Ubuntu:22.04:LTS` of `Ubuntu:22.04`.
fn same(known: &str, ecosystem: &str) -> bool {
    known == ecosystem
        || ecosystem.split(':').next() == Some(known)
        || known.strip_prefix(ecosystem).is_some_and(|rest| rest.starts_with(":LTS"))
}

impl Advisory {
    fn affects(&self, version: &str, intervals: &[Interval]) -> bool {
        if self.ranges.is_empty() && self.versions.is_empty() {
            // RustSec. A version that cannot be parsed counts as affected.
            return semver::Version::parse(version).map_or(true, |v| intervals.iter().any(|i| i.holds(&v)));
        }
        self.versions.iter().any(|v| v == version)
            || Scheme::of(&self.ecosystem)
                .is_some_and(|scheme| self.ranges.iter().any(|events| osv::affects(scheme, events, version)))
    }

    /// Score and severity. A vulnerability without a score counts as high.
    pub fn severity(&self) -> (Option<f64>, Severity) {
        match self.informational.as_deref() {
            Some("unsound") => return (None, Severity::Low),
            Some(_) => return (None, Severity::Info),
            None => {}
        }
        match self.cvss.as_deref().and_then(score) {
            Some(score) => (Some(score), rating(score)),
            None => (None, self.severity.unwrap_or(Severity::High)),
        }
    }

    /// The versions with the fix for this affected version, as a requirement: `>= 1.2.3`.
    pub fn fixed_in(&self, version: &str) -> Option<String> {
        if !self.patched.is_empty() {
            return Some(self.patched.join(" or "));
        }
        let scheme = Scheme::of(&self.ecosystem)?;
        let later = |v: &&String| scheme.compare(v, version) == Some(std::cmp::Ordering::Greater);
        let fixes = self.ranges.iter().flatten().filter_map(|e| match e {
            Event::Fixed(v) => Some(v),
            _ => None,
        });
        fixes
            .filter(later)
            .min_by(|a, b| scheme.compare(a, b).unwrap_or(std::cmp::Ordering::Equal))
            .map(|v| format!(">= {v}"))
    }

    /// As a finding in a package that lies at `place`.
    pub(crate) fn finding(&self, package: &Package, place: &str) -> Finding {
        let (score, severity) = self.severity();
        let (_, version) = package.matched_by();
        let fixed_in = self.fixed_in(version);
        let fix = match &fixed_in {
            Some(fixed) => format!("upgrade {} to a version that matches `{fixed}`", package.name),
            None if self.informational.is_some() => {
                format!("replace {} with a maintained package, or allow it with a reason", package.name)
            }
            None => format!("no fixed version is known: replace {}", package.name),
        };
        let reason = match (&self.informational, score, self.severity) {
            (Some(kind), ..) => format!("{} {} is {kind}", package.name, package.version),
            (None, Some(_), _) | (None, None, Some(_)) => {
                format!("{} {} has a known vulnerability", package.name, package.version)
            }
            (None, None, None) => {
                format!(
                    "{} {} has a known vulnerability without a score: treated as high",
                    package.name, package.version
                )
            }
        };
        Finding {
            id: self.id.clone(),
            kind: if self.informational.is_some() { Kind::Warning } else { Kind::Vulnerability },
            severity,
            title: self.title.clone(),
            place: place.to_owned(),
            package: Some(package.name.clone()),
            installed: Some(package.version.clone()),
            fixed_in,
            score,
            aliases: self.aliases.clone(),
            reason,
            fix,
            url: self.page(),
        }
    }

    fn page(&self) -> Option<String> {
        if self.id.starts_with("RUSTSEC-") {
            return Some(format!("https://rustsec.org/advisories/{}", self.id));
        }
        self.url.clone().or_else(|| Some(format!("https://osv.dev/vulnerability/{}", self.id)))
    }
}

/// The base score of a vector of version 3.0, 3.1 or 4.0.
pub(crate) fn score(vector: &str) -> Option<f64> {
    // A vector with a part missing would be scored as harmless; it is no vector.
    let needed: &[&str] = match vector.get(..9)? {
        "CVSS:3.0/" | "CVSS:3.1/" => &["AV", "AC", "PR", "UI", "S", "C", "I", "A"],
        "CVSS:4.0/" => &["AV", "AC", "AT", "PR", "UI", "VC", "VI", "VA", "SC", "SI", "SA"],
        _ => return None,
    };
    let has = |name: &&str| vector.split('/').any(|part| part.split_once(':').is_some_and(|(key, _)| key == *name));
    needed.iter().all(has).then(|| vector.parse::<cvss::Cvss>().ok().map(|v| v.score()))?
}

/// The scale of CVSS 3 and 4.
pub(crate) fn rating(score: f64) -> Severity {
    match score {
        s if s >= 9.0 => Severity::Critical,
        s if s >= 7.0 => Severity::High,
        s if s >= 4.0 => Severity::Medium,
        s if s > 0.0 => Severity::Low,
        _ => Severity::Info,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Vectors of the examples that FIRST publishes with the scores it gives.
    #[test]
    fn cvss_scores_match_the_specification() {
        let list = [
            ("CVSS:3.1/AV:N/AC:L/PR:L/UI:N/S:C/C:L/I:L/A:N", 6.4, Severity::Medium),
            ("CVSS:3.1/AV:N/AC:H/PR:N/UI:R/S:U/C:L/I:N/A:N", 3.1, Severity::Low),
            ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 9.8, Severity::Critical),
            ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:C/C:H/I:H/A:H", 10.0, Severity::Critical),
            ("CVSS:3.1/AV:L/AC:L/PR:L/UI:N/S:U/C:H/I:H/A:H", 7.8, Severity::High),
            ("CVSS:3.1/AV:P/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:H", 6.8, Severity::Medium),
            ("CVSS:3.0/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:N/A:N", 7.5, Severity::High),
            ("CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:N/I:N/A:N", 0.0, Severity::Info),
            ("CVSS:4.0/AV:N/AC:L/AT:N/PR:N/UI:N/VC:H/VI:H/VA:H/SC:H/SI:H/SA:H", 10.0, Severity::Critical),
            ("CVSS:4.0/AV:L/AC:L/AT:P/PR:L/UI:N/VC:H/VI:H/VA:H/SC:N/SI:N/SA:N", 7.3, Severity::High),
        ];
        for (vector, wanted, severity) in list {
            let found = score(vector).unwrap();
            assert!((found - wanted).abs() < 0.05, "{vector}: {found}, not {wanted}");
            assert_eq!(rating(found), severity, "{vector}");
        }
        for part in [
            "CVSS:3.1/AV:N",
            "CVSS:4.0/AV:N/AC:L",
            "CVSS:2.0/AV:N",
            "9.8",
            "CVSS:3.1/AV:N/AC:L/PR:N/UI:N/S:U/C:H/I:H/A:X",
        ] {
            assert_eq!(score(part), None, "{part}");
        }
    }

    #[test]
    fn distribution_releases_are_distinguished() {
        assert!(
            same("Debian:12", "Debian:12") && same("Debian", "Debian:12") && same("Ubuntu:22.04:LTS", "Ubuntu:22.04")
        );
        assert!(!same("Debian:11", "Debian:12") && !same("Debian:12", "Debian:1") && !same("Ubuntu", "Debian:12"));
    }
}
