//! What somebody is told of: a thing that is wrong, and the same thing when it is over.

use std::fmt;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// One message. It holds no secret and no text of a user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Alert {
    /// Tells it from every other one; the same for each receiver and each attempt.
    pub id: String,
    /// Which environment.
    pub environment: String,
    /// Which site, or which place.
    pub site: String,
    /// When it was seen.
    pub at: Timestamp,
    /// Whether it begins or ends.
    pub state: AlertState,
    /// What kind of thing: `process`, `certificate`, `backup`, `disk`, `memory`, `replication`, `gate`.
    pub name: String,
    /// Which one of that kind.
    pub about: String,
    /// What there is to say, in one line or a few.
    pub says: String,
}

/// Whether a message says that something begins or ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AlertState {
    /// It is so.
    Raised,
    /// It was so, and is over.
    Cleared,
    /// Nothing is wrong: somebody wants to see that messages arrive.
    Test,
}

impl AlertState {
    /// Its word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Raised => "raised",
            Self::Cleared => "cleared",
            Self::Test => "test",
        }
    }
}

impl fmt::Display for Alert {
    /// One line without a break, for a subject or a log.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { environment, site, state, name, about, .. } = self;
        write!(f, "[{environment}/{site}] {}: {name} {about}", state.as_str())
    }
}
