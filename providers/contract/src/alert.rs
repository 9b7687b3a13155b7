//! Alerts: a problem is reported when it begins and when it is over.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One message. It contains no secret and no text of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// A unique id; the same for each receiver and each attempt.
    pub id: String,
    /// The environment.
    pub environment: String,
    /// The site, or the location of the witness.
    pub site: String,
    /// When the problem was detected.
    pub at: Timestamp,
    /// Whether the problem begins or ends.
    pub state: AlertState,
    /// The kind of alert: `process`, `certificate`, `backup`, `disk`, `memory`, `replication`, `gate`.
    pub name: String,
    /// The affected object.
    pub about: String,
    /// The message, in one line or a few.
    pub says: String,
}

/// Whether a problem begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// The problem began.
    Raised,
    /// The problem is over.
    Cleared,
    /// No problem: a test of the delivery.
    Test,
}

impl AlertState {
    /// Its name in messages.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Cleared => "cleared",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Alert {
    /// One line, for a subject or a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { environment, site, state, name, about, .. } = self;
        write!(f, "[{environment}/{site}] {}: {name} {about}", state.as_str())
    }
}
