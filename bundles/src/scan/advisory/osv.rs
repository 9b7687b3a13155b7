//! Documents of the OSV schema, which distributions and registries publish: one per vulnerability, or a list of them.

use std::cmp::Ordering;

use camino::Utf8Path;
use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::Deserialize;

use super::{Advisory, Event, MOST_BYTES};
use crate::scan::contents::{Contents as _, Folder, whole};
use crate::scan::error::Error;
use crate::scan::finding::Severity;
use crate::scan::package::{PYTHON, Package};
use crate::scan::version::Scheme;

type Read = (Vec<Advisory>, Vec<(String, String)>);

/// All advisories about packages whose versions we can compare, and the files that could not be read.
pub(super) fn read(folder: &Utf8Path) -> Result<Read, Error> {
    let files = Folder::open(folder).map_err(|source| Error::Read { path: folder.to_string(), source })?;
    let (mut advisories, mut unread) = (Vec::new(), files.unreadable());
    for entry in files.entries().into_iter().filter(|e| e.path.ends_with(".json")) {
        let bytes = whole(&files, &entry.path, MOST_BYTES)
            .map_err(|source| Error::Read { path: folder.join(&entry.path).into_string(), source })?;
        match bytes.ok_or_else(|| format!("it is longer than {MOST_BYTES} bytes")).and_then(|bytes| documents(&bytes)) {
            Ok(documents) => advisories.extend(documents.into_iter().flat_map(Document::advisories)),
            Err(why) => unread.push((entry.path, why)),
        }
    }
    Ok((advisories, unread))
}

fn documents(bytes: &[u8]) -> Result<Vec<Document>, String> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        Many(Vec<Document>),
        One(Box<Document>),
    }
    match serde_json::from_slice(bytes) {
        Ok(OneOrMany::Many(documents)) => Ok(documents),
        Ok(OneOrMany::One(document)) => Ok(vec![*document]),
        // The untagged error says nothing; the one of a single document does.
        Err(_) => serde_json::from_slice::<Document>(bytes)
            .map(|d| vec![d])
            .map_err(|e| format!("it is not an OSV document: {e}")),
    }
}

#[derive(Deserialize)]
struct Document {
    id: String,
    #[serde(default)]
    summary: String,
    #[serde(default)]
    details: String,
    #[serde(default)]
    aliases: Vec<String>,
    published: Option<Timestamp>,
    modified: Timestamp,
    withdrawn: Option<Timestamp>,
    #[serde(default)]
    severity: Vec<Score>,
    #[serde(default)]
    affected: Vec<Affected>,
    #[serde(default)]
    references: Vec<Reference>,
    #[serde(default)]
    database_specific: Option<Specific>,
}

#[derive(Clone, Deserialize)]
struct Score {
    score: String,
}

#[derive(Deserialize)]
struct Reference {
    url: String,
}

#[derive(Clone, Deserialize)]
struct Specific {
    severity: Option<serde_json::Value>,
    informational: Option<serde_json::Value>,
}

#[derive(Deserialize)]
struct Affected {
    package: Option<OsvPackage>,
    #[serde(default)]
    ranges: Vec<Range>,
    #[serde(default)]
    versions: Vec<String>,
    #[serde(default)]
    severity: Vec<Score>,
    database_specific: Option<Specific>,
}

#[derive(Deserialize)]
struct OsvPackage {
    ecosystem: String,
    name: String,
}

#[derive(Deserialize)]
struct Range {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    events: Vec<serde_json::Map<String, serde_json::Value>>,
}

impl Range {
    fn events(self) -> Vec<Event> {
        let mut events = Vec::new();
        for (key, value) in self.events.into_iter().flatten() {
            let Some(version) = value.as_str().map(str::to_owned) else { continue };
            match key.as_str() {
                "introduced" => events.push(Event::Introduced(version)),
                "fixed" => events.push(Event::Fixed(version)),
                "last_affected" => events.push(Event::LastAffected(version)),
                // `limit` bounds lines of commits, which are left out.
                _ => {}
            }
        }
        events
    }
}

impl Document {
    /// One per package. Ranges of commits are left out, as are ecosystems of which no package is ever listed.
    fn advisories(self) -> Vec<Advisory> {
        let date = |t: Timestamp| -> Date { t.to_zoned(TimeZone::UTC).date() };
        let url = self.references.first().map(|r| r.url.clone());
        let title =
            [&self.summary, &self.details].into_iter().find_map(|text| text.lines().find(|l| !l.trim().is_empty()));
        let title: String = title.unwrap_or("without a title").trim_start_matches("# ").chars().take(300).collect();
        let mut advisories = Vec::new();
        for affected in self.affected {
            let Some(mut package) = affected.package.filter(|p| Scheme::of(&p.ecosystem).is_some()) else { continue };
            if package.ecosystem == PYTHON {
                // Not every database has normalized names (report ossf/osv-schema#42).
                package.name = Package::of_python(&package.name, "").name;
            }
            let scores = if affected.severity.is_empty() { &self.severity } else { &affected.severity };
            let cvss = scores.iter().map(|s| s.score.clone()).find(|s| super::score(s).is_some());
            let specific = [affected.database_specific.as_ref(), self.database_specific.as_ref()];
            let severity = specific.iter().flatten().find_map(|s| word(s.severity.as_ref()?.as_str()?));
            let informational =
                specific.iter().flatten().find_map(|s| s.informational.as_ref()?.as_str().map(str::to_owned));
            let ranges: Vec<Vec<Event>> = affected
                .ranges
                .into_iter()
                .filter(|r| r.kind != "GIT")
                .map(Range::events)
                .filter(|e| !e.is_empty())
                .collect();
            if ranges.is_empty() && affected.versions.is_empty() {
                continue;
            }
            let mut aliases = self.aliases.clone();
            aliases.sort();
            advisories.push(Advisory {
                id: self.id.clone(),
                ecosystem: package.ecosystem,
                package: package.name,
                title: title.clone(),
                date: date(self.published.unwrap_or(self.modified)),
                cvss,
                severity,
                aliases,
                url: url.clone(),
                informational,
                withdrawn: self.withdrawn.map(date),
                patched: Vec::new(),
                unaffected: Vec::new(),
                ranges,
                versions: affected.versions,
            });
        }
        advisories
    }
}

fn word(text: &str) -> Option<Severity> {
    match text.to_ascii_lowercase().as_str() {
        "critical" => Some(Severity::Critical),
        "high" | "important" => Some(Severity::High),
        "medium" | "moderate" => Some(Severity::Medium),
        "low" | "negligible" | "unimportant" => Some(Severity::Low),
        _ => None,
    }
}

/// The evaluation that the OSV schema gives: walk the events in the order of their versions.
pub(super) fn affects(scheme: Scheme, events: &[Event], version: &str) -> bool {
    let text = |event: &Event| match event {
        Event::Introduced(v) | Event::Fixed(v) | Event::LastAffected(v) => v.clone(),
    };
    let mut sorted: Vec<(&Event, String)> = events.iter().map(|e| (e, text(e))).collect();
    sorted.sort_by(|(_, a), (_, b)| match (a.as_str(), b.as_str()) {
        ("0", "0") => Ordering::Equal,
        ("0", _) => Ordering::Less,
        (_, "0") => Ordering::Greater,
        (a, b) => scheme.compare(a, b).unwrap_or(Ordering::Equal),
    });
    let mut affected = false;
    for (event, at) in sorted {
        let order = if at == "0" { Some(Ordering::Greater) } else { scheme.compare(version, &at) };
        // A version that cannot be compared cannot be shown to be safe.
        let Some(order) = order else { return true };
        match event {
            Event::Introduced(_) if order != Ordering::Less => affected = true,
            Event::Fixed(_) if order != Ordering::Less => affected = false,
            Event::LastAffected(_) if order == Ordering::Greater => affected = false,
            _ => {}
        }
    }
    affected
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ecosystem: &str, events: &[(&str, &str)], hit: &[&str], missed: &[&str]) {
        let event = |(kind, v): &(&str, &str)| match *kind {
            "introduced" => Event::Introduced((*v).to_owned()),
            "fixed" => Event::Fixed((*v).to_owned()),
            _ => Event::LastAffected((*v).to_owned()),
        };
        let events: Vec<Event> = events.iter().map(event).collect();
        let scheme = Scheme::of(ecosystem).unwrap();
        for (list, wanted) in [(hit, true), (missed, false)] {
            for version in list {
                assert_eq!(affects(scheme, &events, version), wanted, "{version} and {events:?}");
            }
        }
    }

    #[test]
    fn osv_events_are_evaluated_in_version_order() {
        let twice = [("fixed", "3.0.11-1~deb12u2"), ("introduced", "0"), ("introduced", "3.1.0"), ("fixed", "3.1.4-1")];
        check("Debian:12", &twice, &["1.0", "3.0.11-1~deb12u1", "3.1.0"], &["3.0.11-1~deb12u2", "3.0.11-1", "3.1.4-1"]);
        check(
            "crates.io",
            &[("introduced", "0.0.0-0"), ("fixed", "1.2.3")],
            &["0.1.0", "1.2.3-rc.1"],
            &["1.2.3", "1.3.0"],
        );
        check(
            "Alpine:v3.19",
            &[("introduced", "0"), ("last_affected", "1.36.1-r14")],
            &["1.36.1-r14", "1.36.1-r2"],
            &["1.36.1-r15"],
        );
        check("PyPI", &[("introduced", "2.0"), ("fixed", "2.0.1")], &["2.0", "2.0.1rc1"], &["1.9", "2.0.1"]);
    }
}
