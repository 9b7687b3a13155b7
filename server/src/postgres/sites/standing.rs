//! What the folder of a site's database is a copy of: on disk before that is true, so that a keeper that died never leads with what is old.

use std::io;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use super::super::Config;
use super::gate::Lead;

const FILE: &str = "standing.json";
const MOST: u64 = 4096;

/// What is in the folder.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub(super) enum Standing {
    /// It was the primary's, and the last that we know of was in this epoch.
    Primary {
        /// The last epoch in which it was.
        epoch: u64,
    },
    /// It follows the one of a site, and had everything of it in this epoch.
    Copy {
        /// Whose.
        of: String,
        /// The last epoch in which it had; 0 before the first time.
        epoch: u64,
    },
    /// It was being changed into a copy: it is neither one nor the other.
    Half,
}

impl Standing {
    /// Reads it; `None` where nobody ever led or followed.
    pub(super) fn read(config: &Config) -> io::Result<Option<Self>> {
        let path = path(config);
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = Vec::new();
        io::Read::read_to_end(&mut io::Read::take(file, MOST), &mut text)?;
        serde_json::from_slice(&text).map(Some).map_err(io::Error::other)
    }

    /// Writes it down. It is on disk when this returns.
    pub(super) fn write(&self, config: &Config) -> Result<(), super::super::Error> {
        let text = serde_json::to_string(self).unwrap_or_default();
        config.put(FILE, &text)?;
        let flush = |path: &Utf8Path| std::fs::File::open(path)?.sync_all();
        let fails = |source| super::super::Error::Folder { path: path(config), source };
        flush(&path(config)).and_then(|()| flush(&config.folder)).map_err(fails)
    }

    /// Whether it has everything that the primary's had, so that its site may lead.
    pub(super) fn is_fit(&self, here: &str, lead: &Lead) -> bool {
        let Some(primary) = lead.primary.as_deref() else { return false };
        // A copy is one of whoever leads now, or, when that is this site already, of whoever led until then.
        let led = match &lead.before {
            _ if primary != here => Some((primary, lead.since)),
            Some((before, since)) => Some((before.as_str(), *since)),
            None => None,
        };
        match self {
            // Nobody else has led since.
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
    fn a_site_leads_with_what_the_primary_had_and_with_nothing_older() {
        let primary = |epoch| Standing::Primary { epoch };
        let copy = |of: &str, epoch| Standing::Copy { of: of.into(), epoch };
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
            (Standing::Half, lead(1, 1, "a", None), false),
        ] {
            assert_eq!(standing.is_fit("a", &lead), expect, "{standing:?} {lead:?}");
        }
    }
}
