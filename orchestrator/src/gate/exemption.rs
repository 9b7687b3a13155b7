//! Exemptions: an operator's decisions against the table of phases. The journal keeps them permanently.

use std::fmt;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{Span, Timestamp};
use serde::{Deserialize, Serialize};
use textnlp_provider::EnvironmentName;

use super::phases::PhaseDefinition;
use crate::environment::model::Phase;
use crate::release::short;

/// The longest waiver, in days.
pub const MAX_WAIVER_DAYS: i32 = 90;

/// What an operator decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "exemption", rename_all = "snake_case")]
pub enum Exemption {
    /// A check that cannot be measured does not keep the gate shut.
    Waiver {
        /// Its name.
        check: String,
        /// The last day (UTC).
        until: Date,
    },
    /// A release enters the phase without the evidence that it passed the phase before.
    FromScratch {
        /// The digest of what it runs.
        release: String,
    },
}

/// Why a release entered its phase without an exemption.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum EntryBasis {
    /// `promote`, with the evidence of an open gate.
    Promoted {
        /// The environment that it was promoted from.
        from: EnvironmentName,
        /// When the gate of that environment was measured.
        measured: Timestamp,
    },
    /// A trusted key had signed the installed bundle.
    Bundle {
        /// The version of the bundle.
        version: String,
        /// The ID of the key.
        key: String,
    },
    /// It ran in the phase before entries were recorded.
    Earlier,
}

impl fmt::Display for EntryBasis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            EntryBasis::Promoted { from, measured } => {
                write!(f, "promoted from {from}, whose gate was measured on {}", measured.strftime("%Y-%m-%d"))
            }
            EntryBasis::Bundle { version, key } => write!(f, "bundle {version} signed by key {key}"),
            EntryBasis::Earlier => f.write_str("it ran in the phase before"),
        }
    }
}

/// A release that entered a phase.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnteredPhase {
    /// The phase.
    pub phase: Phase,
    /// The digest of what the release runs.
    pub release: String,
}

/// An exemption with its origin, as the journal has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordedExemption {
    /// When it was recorded.
    pub at: Timestamp,
    /// The operator.
    pub by: String,
    /// The reason that the operator gave.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The phase.
    pub phase: Phase,
    /// The decision.
    #[serde(flatten)]
    pub exemption: Exemption,
}

impl RecordedExemption {
    /// The decision, the operator and the reason as one line.
    pub fn text(&self, now: Timestamp) -> String {
        let Self { at, by, reason, phase, exemption } = self;
        let what = match exemption {
            Exemption::Waiver { check, until } => {
                let ended = if today(now) > *until { " (ended)" } else { "" };
                format!("check `{check}` of phase {phase} waived until {until}{ended}")
            }
            Exemption::FromScratch { release } => {
                format!("phase {phase} entered from scratch with release {}", short(release))
            }
        };
        let reason = reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        format!("{what}, by {by} on {}{reason}", at.strftime("%Y-%m-%d"))
    }
}

/// Why a check cannot be waived.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WaiverError {
    /// The phase has no check of this name, or none that can be waived.
    #[error("phase {phase} has no check `{name}` that can be waived")]
    Unknown {
        /// The phase.
        phase: Phase,
        /// The name.
        name: String,
        /// The names of the checks that can be waived.
        names: Vec<&'static str>,
    },
    /// The waiver needs a reason.
    #[error("a waiver needs a reason")]
    NoReason,
    /// The last day is over.
    #[error("{until} is in the past")]
    Past {
        /// The last day.
        until: Date,
    },
    /// The last day is too far away.
    #[error("{until} is more than {MAX_WAIVER_DAYS} days away")]
    TooLong {
        /// The last day.
        until: Date,
    },
}

/// The waiver of a check, if the phase permits it.
pub fn waiver(
    phase: Phase,
    check: &str,
    until: Date,
    reason: Option<&str>,
    now: Timestamp,
) -> Result<Exemption, WaiverError> {
    let definition = PhaseDefinition::of(phase);
    if !definition.check(check).is_some_and(|check| check.waivable) {
        let names = definition.checks().filter(|check| check.waivable).map(|check| check.name).collect();
        return Err(WaiverError::Unknown { phase, name: check.to_owned(), names });
    }
    if reason.is_none_or(|reason| reason.trim().is_empty()) {
        return Err(WaiverError::NoReason);
    }
    let today = today(now);
    if until < today {
        return Err(WaiverError::Past { until });
    }
    // A date at the end of the calendar has no day after it.
    let last = today.checked_add(Span::new().days(MAX_WAIVER_DAYS)).unwrap_or(Date::MAX);
    if until > last {
        return Err(WaiverError::TooLong { until });
    }
    Ok(Exemption::Waiver { check: check.to_owned(), until })
}

/// Whether a waiver with this last day counts.
pub(super) fn is_in_force(until: Date, now: Timestamp) -> bool {
    today(now) <= until
}

fn today(now: Timestamp) -> Date {
    now.to_zoned(TimeZone::UTC).date()
}
