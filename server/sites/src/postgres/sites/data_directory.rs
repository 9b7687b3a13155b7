//! The recorded state of the data directory. It is stored before it takes effect, so that a supervisor that crashed
//! never leads with old data.

use std::io;

use serde::{Deserialize, Serialize};

use super::super::Config;
use super::gate::Lead;

const FILE: &str = "standing.json";
const MAX_FILE_BYTES: u64 = 4096;

/// The state of the data directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum DataDirectoryState {
    /// It was the primary's; this is the last known epoch.
    Primary {
        /// The last epoch in which it was.
        epoch: u64,
    },
    /// It is a replica of a site's primary, and had everything in this epoch.
    Copy {
        /// Whose.
        of: String,
        /// The last such epoch; 0 before the first.
        epoch: u64,
    },
    /// It was being converted to a replica: it is neither.
    Half,
}

impl DataDirectoryState {
    /// Reads the record; `None` if there is none yet.
    pub(super) fn read(config: &Config) -> io::Result<Option<Self>> {
        let path = path(config);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MAX_FILE_BYTES), &mut text)?;
        serde_json::from_slice(&text).map(Some).map_err(io::Error::other)
    }

    /// Writes it down. It is on disk when this returns.
    pub(super) fn write(&self, config: &Config) -> Result<(), super::super::Error> {
        let text = serde_json::to_string(self).unwrap_or_default();
        config.put(FILE, &text)
    }

    /// Whether it has everything that the primary had, so that its site may lead.
    pub(super) fn is_fit(&self, here: &str, lead: &Lead) -> bool {
        let Some(primary) = lead.primary.as_deref() else { return false };
        // A replica must belong to the current primary, or, if that is this site already, to the previous one.
        let led = match &lead.before {
            _ if primary != here => Some((primary, lead.since)),
            Some((before, since)) => Some((before.as_str(), *since)),
            None => None,
        };
        match self {
            // No other site has led since.
            Self::Primary { epoch } => primary == here && *epoch >= lead.since,
            Self::Copy { of, epoch } => *epoch > 0 && led.is_some_and(|(led, since)| of == led && *epoch >= since),
            Self::Half => false,
        }
    }
}

fn path(config: &Config) -> camino::Utf8PathBuf {
    config.folder.join(FILE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lead(epoch: u64, since: u64, primary: &str, before: Option<(&str, u64)>) -> Lead {
        let lead = serde_json::json!({ "epoch": epoch, "since": since, "primary": primary, "before": before,
            "lease_ms": null, "shown": false });
        serde_json::from_value(lead).unwrap()
    }

    #[test]
    fn site_becomes_primary_only_with_current_data() {
        let primary = |epoch| DataDirectoryState::Primary { epoch };
        let copy = |of: &str, epoch| DataDirectoryState::Copy { of: of.into(), epoch };
        for (standing, lead, expect) in [
            (primary(7), lead(9, 5, "a", None), true),
            (primary(4), lead(9, 5, "a", Some(("b", 4))), false),
            (primary(9), lead(9, 9, "b", Some(("a", 1))), false),
            (copy("b", 7), lead(9, 5, "b", Some(("a", 1))), true),
            (copy("b", 4), lead(9, 5, "b", Some(("a", 1))), false),
            (copy("c", 7), lead(9, 5, "b", Some(("c", 1))), false),
            (copy("b", 0), lead(1, 0, "b", None), false),
            // It takes over from whom it followed, and had all of that one's time.
            (copy("b", 9), lead(10, 10, "a", Some(("b", 5))), true),
            (copy("b", 5), lead(10, 10, "a", Some(("b", 5))), true),
            (copy("b", 4), lead(10, 10, "a", Some(("b", 5))), false),
            (copy("c", 9), lead(10, 10, "a", Some(("b", 5))), false),
            (copy("b", 9), lead(10, 10, "a", None), false),
            (DataDirectoryState::Half, lead(1, 1, "a", None), false),
        ] {
            assert_eq!(standing.is_fit("a", &lead), expect, "{standing:?} {lead:?}");
        }
    }
}
