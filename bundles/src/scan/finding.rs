//! The result of a scan: findings, what was scanned, what could not be, and whether the gate is open.

use std::collections::BTreeSet;
use std::fmt;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use textnlp_models::Digest;

/// The format of a scan's document.
pub const FORMAT: &str = "textnlp-scan/1";

/// The severity of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// Informational.
    Info,
    /// Fix at leisure.
    Low,
    /// Fix soon.
    Medium,
    /// Fix before the service goes live.
    High,
    /// An attacker who finds it controls the service.
    Critical,
}

impl Severity {
    /// All, worst first.
    pub const WORST_FIRST: [Severity; 5] =
        [Severity::Critical, Severity::High, Severity::Medium, Severity::Low, Severity::Info];

    /// The name in documents: `critical`.
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Low => "low",
            Severity::Medium => "medium",
            Severity::High => "high",
            Severity::Critical => "critical",
        }
    }
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// An unknown severity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a severity: use critical, high, medium, low or info")]
pub struct UnknownSeverity(String);

impl std::str::FromStr for Severity {
    type Err = UnknownSeverity;

    fn from_str(text: &str) -> Result<Severity, UnknownSeverity> {
        let found = Severity::WORST_FIRST.into_iter().find(|s| s.as_str() == text);
        found.ok_or_else(|| UnknownSeverity(text.to_owned()))
    }
}

/// The kind of a finding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A package with a known vulnerability.
    Vulnerability,
    /// A package that is unmaintained, unsound, or has a notice: a warning, as `cargo audit` calls it.
    Warning,
    /// A setting.
    Configuration,
    /// A key or a password in a file.
    Secret,
    /// The build of an image.
    Image,
    /// The scan itself: outdated advisories, expired allowances.
    Scan,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Finding {
    /// `RUSTSEC-2021-0080`, `tls-off`, `private-key`: what an allowance names.
    pub id: String,
    /// The kind of the finding.
    pub kind: Kind,
    /// The severity.
    pub severity: Severity,
    /// One line for people.
    pub title: String,
    /// The file, and the line or the path within it.
    #[serde(rename = "where")]
    pub place: String,
    /// The affected package.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub package: Option<String>,
    /// Its version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub installed: Option<String>,
    /// The versions with the fix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fixed_in: Option<String>,
    /// The CVSS base score, where the advisory has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f64>,
    /// Other names of the same advisory.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// Why it matters.
    pub reason: String,
    /// What to do.
    pub fix: String,
    /// Further reading.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// A finding that the operator has accepted.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    /// What was found.
    pub finding: Finding,
    /// Why it is accepted.
    pub reason: String,
    /// The last day of the acceptance.
    pub until: Date,
}

/// What was scanned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScannedItem {
    /// `crates of sbom/program.cdx.json`, `configurations`.
    pub what: String,
    /// The count.
    pub count: u64,
    /// The check: `matched against 1225 advisories`.
    pub how: String,
}

/// What was not scanned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NotScanned {
    /// The file, or the group of packages.
    pub what: String,
    /// The reason.
    pub why: String,
    /// Whether it closes a gate.
    pub required: bool,
}

/// The advisories that packages were matched against.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DatabaseFacts {
    /// `RustSec`, or the name of a user-provided folder.
    pub name: String,
    /// The day of its newest advisory.
    pub date: Date,
    /// Digest of the content, independent of the source format.
    pub digest: Digest,
    /// Days from that date to the scan.
    pub age_days: i64,
    /// The count of advisories.
    pub advisories: u64,
}

/// Counts by severity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs)] // each field is the severity or the list of its name
pub struct Summary {
    pub critical: u64,
    pub high: u64,
    pub medium: u64,
    pub low: u64,
    pub info: u64,
    pub allowed: u64,
    pub not_looked_at: u64,
}

impl Summary {
    /// The count of findings of one severity.
    pub fn of(&self, severity: Severity) -> u64 {
        match severity {
            Severity::Info => self.info,
            Severity::Low => self.low,
            Severity::Medium => self.medium,
            Severity::High => self.high,
            Severity::Critical => self.critical,
        }
    }

    /// The count of all findings, without the accepted ones.
    pub fn findings(&self) -> u64 {
        Severity::WORST_FIRST.into_iter().map(|s| self.of(s)).sum()
    }
}

/// The result of one scan. Its JSON keys are a contract: only added to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// [`FORMAT`].
    pub format: String,
    /// What was scanned.
    pub target: String,
    /// The time of the scan.
    pub made_at: Timestamp,
    /// The advisories that packages were matched against; empty without advisories.
    pub databases: Vec<DatabaseFacts>,
    /// Worst first; then by kind, id and place.
    pub findings: Vec<Finding>,
    /// The accepted findings.
    pub allowed: Vec<Allowed>,
    /// What was scanned.
    pub listed: Vec<ScannedItem>,
    /// What was not scanned.
    pub not_looked_at: Vec<NotScanned>,
    /// Counts by severity.
    pub summary: Summary,
}

impl Report {
    /// An empty report.
    pub(crate) fn new(target: &str, made_at: Timestamp) -> Report {
        Report {
            format: FORMAT.to_owned(),
            target: target.to_owned(),
            made_at,
            databases: Vec::new(),
            findings: Vec::new(),
            allowed: Vec::new(),
            listed: Vec::new(),
            not_looked_at: Vec::new(),
            summary: Summary::default(),
        }
    }

    pub(crate) fn listed(&mut self, what: impl Into<String>, count: u64, how: impl Into<String>) {
        self.listed.push(ScannedItem { what: what.into(), count, how: how.into() });
    }

    pub(crate) fn not_looked_at(&mut self, what: impl Into<String>, why: impl Into<String>, required: bool) {
        self.not_looked_at.push(NotScanned { what: what.into(), why: why.into(), required });
    }

    /// Sorts, removes duplicates, and counts.
    pub(crate) fn finish(mut self) -> Report {
        self.findings.sort_by(|a, b| {
            let key = |f: &Finding| {
                (
                    std::cmp::Reverse(f.severity),
                    f.kind,
                    f.id.clone(),
                    f.place.clone(),
                    f.package.clone(),
                    f.installed.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
        self.findings.dedup();
        self.allowed.sort_by(|a, b| (&a.finding.id, &a.finding.place).cmp(&(&b.finding.id, &b.finding.place)));
        self.not_looked_at.sort_by(|a, b| (b.required, &a.what, &a.why).cmp(&(a.required, &b.what, &b.why)));
        self.not_looked_at.dedup();
        let mut summary = Summary {
            allowed: self.allowed.len() as u64,
            not_looked_at: self.not_looked_at.len() as u64,
            ..Summary::default()
        };
        for finding in &self.findings {
            match finding.severity {
                Severity::Info => summary.info += 1,
                Severity::Low => summary.low += 1,
                Severity::Medium => summary.medium += 1,
                Severity::High => summary.high += 1,
                Severity::Critical => summary.critical += 1,
            }
        }
        self.summary = summary;
        self
    }

    /// The worst severity.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|f| f.severity).max()
    }

    /// The packages that have findings, each once.
    pub fn packages(&self) -> BTreeSet<&str> {
        self.findings.iter().filter_map(|f| f.package.as_deref()).collect()
    }
}

/// The result of a gate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "state")]
pub enum Gate {
    /// No problem was found.
    Open,
    /// The problems.
    Shut {
        /// One line each.
        blockers: Vec<String>,
    },
}

impl Gate {
    /// Whether no problem was found.
    pub fn is_open(&self) -> bool {
        matches!(self, Gate::Open)
    }
}

/// Open when no finding reaches `fail_on` and all required parts were scanned.
pub fn gate(report: &Report, fail_on: Severity) -> Gate {
    let bad = report.findings.iter().filter(|f| f.severity >= fail_on).map(|f| {
        let package = match (&f.package, &f.installed) {
            (Some(name), Some(version)) => format!(" in {name} {version}"),
            _ => String::new(),
        };
        format!("{}: {}{package}: {} ({})", f.severity, f.id, f.title, f.place)
    });
    let unseen = report.not_looked_at.iter().filter(|n| n.required);
    let blockers: Vec<String> = bad.chain(unseen.map(|n| format!("not scanned: {}: {}", n.what, n.why))).collect();
    if blockers.is_empty() { Gate::Open } else { Gate::Shut { blockers } }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity) -> Finding {
        Finding {
            id: "tls-off".to_owned(),
            kind: Kind::Configuration,
            severity,
            title: "TLS is off".to_owned(),
            place: "configs/a.yaml: tls.mode".to_owned(),
            package: None,
            installed: None,
            fixed_in: None,
            score: None,
            aliases: Vec::new(),
            reason: String::new(),
            fix: String::new(),
            url: None,
        }
    }

    fn report(findings: Vec<Finding>) -> Report {
        let mut report = Report::new("a", Timestamp::UNIX_EPOCH);
        report.findings = findings;
        report.finish()
    }

    #[test]
    fn gate_closes_at_its_severity_threshold() {
        let report = report(vec![finding(Severity::Medium)]);
        assert_eq!(gate(&report, Severity::High), Gate::Open);
        let Gate::Shut { blockers } = gate(&report, Severity::Medium) else { panic!("medium is as bad as medium") };
        assert_eq!(blockers, ["medium: tls-off: TLS is off (configs/a.yaml: tls.mode)"]);
    }

    #[test]
    fn gate_closes_when_a_required_scan_was_skipped() {
        let mut report = report(Vec::new());
        report.not_looked_at("images", "there are none", false);
        assert!(gate(&report, Severity::Info).is_open());
        report.not_looked_at("crates", "no advisories", true);
        assert_eq!(
            gate(&report, Severity::Critical),
            Gate::Shut { blockers: vec!["not scanned: crates: no advisories".to_owned()] }
        );
    }

    #[test]
    fn findings_are_sorted_by_severity_and_deduplicated() {
        let report = report(vec![
            finding(Severity::Low),
            finding(Severity::Critical),
            finding(Severity::Low),
            finding(Severity::Info),
        ]);
        let order: Vec<Severity> = report.findings.iter().map(|f| f.severity).collect();
        assert_eq!(order, [Severity::Critical, Severity::Low, Severity::Info]);
        assert_eq!((report.summary.findings(), report.summary.low, report.worst()), (3, 1, Some(Severity::Critical)));
    }
}
