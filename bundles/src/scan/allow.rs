//! Findings that the operator accepts until a date, for a reason.

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use super::error::Error;
use super::finding::{Allowed, Finding, Kind, Report, Severity};

/// One allowance.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Allow {
    /// The finding's id.
    pub id: String,
    /// The start of the accepted place, with `*` as a wildcard. `*` alone: anywhere.
    pub path: String,
    /// Why it is accepted.
    pub reason: String,
    /// The last day of the acceptance.
    pub until: Date,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    allow: Vec<Allow>,
}

/// Reads `scan-allow.yaml`. `path` is for errors.
pub fn read(text: &str, path: &str) -> Result<Vec<Allow>, Error> {
    let wrong = |why: String| Error::Allow { path: path.to_owned(), why };
    let List { allow } = serde_yaml::from_str(text).map_err(|e| wrong(e.to_string()))?;
    match allow.iter().find(|a| a.id.trim().is_empty() || a.path.trim().is_empty() || a.reason.trim().len() < 8) {
        Some(bad) => {
            Err(wrong(format!("`{}` at `{}` needs an id, a path and a reason that says why", bad.id, bad.path)))
        }
        None => Ok(allow),
    }
}

impl Allow {
    fn covers(&self, finding: &Finding) -> bool {
        self.id == finding.id && fits(&self.path, &finding.place)
    }
}

/// `*` matches any text; the pattern must match to the end of the path, or to the `:` (line or key) after it.
fn fits(pattern: &str, place: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| place.strip_prefix(first)) else { return false };
    let mut open = false;
    for part in parts {
        open = part.is_empty();
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    open || rest.is_empty() || rest.starts_with(':')
}

/// Moves accepted findings aside, and reports allowances that have expired or match nothing.
pub(crate) fn apply(report: &mut Report, list: &[Allow], now: Timestamp) {
    let today = now.to_zoned(TimeZone::UTC).date();
    let mut used = vec![false; list.len()];
    let found = std::mem::take(&mut report.findings);
    for finding in found {
        let fitting: Vec<usize> = (0..list.len()).filter(|at| list[*at].covers(&finding)).collect();
        fitting.iter().for_each(|at| used[*at] = true);
        match fitting.iter().map(|at| &list[*at]).find(|allow| allow.until >= today) {
            Some(allow) => {
                let (reason, until) = (allow.reason.clone(), allow.until);
                report.allowed.push(Allowed { finding, reason, until });
            }
            None => report.findings.push(finding),
        }
    }
    for (allow, used) in list.iter().zip(used) {
        let note = |id: &str, severity, title: String, reason: &str, fix: &str| Finding {
            id: id.to_owned(),
            kind: Kind::Scan,
            severity,
            title,
            place: allow.path.clone(),
            package: None,
            installed: None,
            fixed_in: None,
            score: None,
            aliases: Vec::new(),
            reason: reason.to_owned(),
            fix: fix.to_owned(),
            url: None,
        };
        if allow.until < today {
            report.findings.push(note(
                "allowance-expired",
                Severity::Low,
                format!("The allowance for {} expired on {}", allow.id, allow.until),
                "The finding counts again until the allowance is reviewed.",
                "fix the finding, or set a new date with a reason that still holds",
            ));
        } else if !used {
            report.findings.push(note(
                "allowance-unused",
                Severity::Info,
                format!("The allowance for {} is unused", allow.id),
                "An allowance that matches no finding can hide a new one.",
                "remove it from the list",
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allowance_pattern_matches_to_the_end_of_the_path() {
        for (pattern, place, wanted) in [
            ("*", "anything:4", true),
            ("sbom/*", "sbom/program.cdx.json", true),
            ("configs/a.yaml", "configs/a.yaml: tls.mode", true),
            ("configs/a.yaml", "configs/a.yaml:12", true),
            ("configs/a.yaml", "configs/a.yaml.old", false),
            ("configs/a", "configs/a.yaml", false),
            ("configs/*.yaml", "configs/deep/a.yaml: x", true),
            ("configs/*.yaml", "configs/a.json", false),
            ("images/*/etc/key", "images/a layer/etc/key:1", true),
        ] {
            assert_eq!(fits(pattern, place), wanted, "{pattern} and {place}");
        }
    }

    #[test]
    fn allowances_without_reason_or_with_unknown_keys_are_refused() {
        let good = "allow: [ { id: a, path: '*', reason: because it is so, until: 2027-01-31 } ]";
        assert_eq!(read(good, "f").unwrap().len(), 1);
        for bad in [
            "allow: [ { id: a, path: '*', reason: '', until: 2027-01-31 } ]",
            "allow: [ { id: a, path: '*', reason: because it is so } ]",
            "allow: [ { id: a, path: '*', reason: because it is so, until: soon } ]",
            "allow: []\nmore: 1",
        ] {
            assert!(read(bad, "f").is_err(), "{bad}");
        }
    }
}
