//! Scans, and tables of other reports, as documents: JSON, one HTML page and one PDF, all from the same data.
//!
//! The page and the PDF are self-contained: they need no network.

mod chart;
mod files;
mod pdf;
mod text;
mod widths;

use jiff::tz::TimeZone;
use serde_json::{Value, json};

use crate::scan::{Error, FORMAT, Finding, Gate, Report, Severity, gate};
pub use chart::{Amount, Chart, Line, LineColour, Plot};
pub use files::{from_pattern, legacy_name, write_legacy};
pub use pdf::{PrintedTable, TableDocument, tables_to_pdf, to_pdf};

/// The document of one scan: pretty JSON, keys in a fixed order.
pub fn to_json(report: &Report) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(report).expect("a report is plain data");
    bytes.push(b'\n');
    bytes
}

/// Reads what [`to_json`] wrote. `path` is for errors.
pub fn from_json(bytes: &[u8], path: &str) -> Result<Report, Error> {
    let wrong = |why: String| Error::Report { path: path.to_owned(), why };
    let report: Report = serde_json::from_slice(bytes).map_err(|e| wrong(e.to_string()))?;
    if report.format == FORMAT {
        Ok(report)
    } else {
        Err(wrong(format!("its format is `{}`, not `{FORMAT}`", report.format)))
    }
}

/// One page over one or several scans. With `fail_on` it says whether a gate with that limit is open.
pub fn to_html(title: &str, reports: &[Report], fail_on: Option<Severity>) -> String {
    let mut templates = minijinja::Environment::new();
    templates.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    templates.add_template("scan.html", include_str!("scan.html")).expect("the built-in template parses");
    let parts: Vec<Value> = reports.iter().map(|r| part(r, fail_on)).collect();
    let context = json!({
        "title": title,
        "at": latest(reports),
        "state": state(reports, fail_on),
        "fail_on": fail_on,
        "tiles": tiles(reports),
        "parts": parts,
        "several": reports.len() > 1,
    });
    let page = templates.get_template("scan.html").and_then(|page| page.render(minijinja::value::Serde(context)));
    page.expect("the built-in template renders any report")
}

/// `2026-11-20 12:00:00 UTC`: of the newest scan among them.
fn latest(reports: &[Report]) -> String {
    let at = reports.iter().map(|r| r.made_at).max().unwrap_or_default();
    at.to_zoned(TimeZone::UTC).strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

/// `open` or `shut`, with `fail_on`.
fn state(reports: &[Report], fail_on: Option<Severity>) -> Option<&'static str> {
    let fail_on = fail_on?;
    Some(if reports.iter().all(|r| gate(r, fail_on).is_open()) { "open" } else { "shut" })
}

/// Counts by severity, worst first, and of accepted and unscanned items.
fn tiles(reports: &[Report]) -> Vec<(&'static str, u64)> {
    let sum = |of: &dyn Fn(&Report) -> u64| reports.iter().map(of).sum();
    let mut tiles: Vec<(&'static str, u64)> =
        Severity::WORST_FIRST.into_iter().map(|s| (s.as_str(), sum(&|r| r.summary.of(s)))).collect();
    tiles.push(("allowed", sum(&|r| r.summary.allowed)));
    tiles.push(("not scanned", sum(&|r| r.summary.not_looked_at)));
    tiles
}

fn part(report: &Report, fail_on: Option<Severity>) -> Value {
    let blockers = match fail_on.map(|s| gate(report, s)) {
        Some(Gate::Shut { blockers }) => blockers,
        _ => Vec::new(),
    };
    let unseen: Vec<&String> = blockers.iter().filter(|b| b.starts_with("not scanned")).collect();
    json!({
        "target": report.target,
        "databases": databases(report),
        "groups": groups(&report.findings).iter().map(Group::value).collect::<Vec<_>>(),
        "allowed": report.allowed,
        "listed": report.listed,
        "not_looked_at": report.not_looked_at,
        "blockers": blockers.len(),
        "unseen": unseen.len(),
    })
}

/// One line per database.
fn databases(report: &Report) -> Vec<String> {
    let line = |d: &crate::scan::DatabaseFacts| {
        let age = match d.age_days {
            ..=0 => "of today".to_owned(),
            1 => "1 day old".to_owned(),
            n => format!("{n} days old"),
        };
        format!("{}, newest of {} ({age}), {} advisories, {}", d.name, d.date, d.advisories, d.digest)
    };
    if report.databases.is_empty() { vec!["none".to_owned()] } else { report.databases.iter().map(line).collect() }
}

/// Equal findings at several places.
pub(crate) struct Group<'a> {
    first: &'a Finding,
    places: Vec<&'a str>,
}

impl Group<'_> {
    fn value(&self) -> Value {
        let mut value = serde_json::to_value(self.first).expect("a finding is plain data");
        value["places"] = json!(self.places);
        value["score"] = json!(self.first.score.map(|s| format!("{s:.1}")));
        value
    }
}

/// In the order of the findings; findings that differ only in their place are merged.
pub(crate) fn groups(findings: &[Finding]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    for finding in findings {
        let same = |g: &&mut Group<'_>| {
            let first = g.first;
            (first.severity, &first.id, &first.title, &first.reason, &first.fix, &first.package, &first.installed)
                == (
                    finding.severity,
                    &finding.id,
                    &finding.title,
                    &finding.reason,
                    &finding.fix,
                    &finding.package,
                    &finding.installed,
                )
        };
        // Findings are sorted by severity, kind and id, so equal ones are adjacent or close.
        match groups.iter_mut().rev().take(200).find(same) {
            Some(group) => group.places.push(&finding.place),
            None => groups.push(Group { first: finding, places: vec![&finding.place] }),
        }
    }
    groups
}

#[cfg(test)]
mod tests;
