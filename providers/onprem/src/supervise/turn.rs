//! Turns: the sites on this machine restart one at a time the programs that other sites depend on.

use std::fs::File;
use std::time::{Duration, Instant};

use textnlp_keys::SiteFolder;

use crate::lock;

/// A program that is not ready after this is no longer waited for. Until then a failing release is not rolled to the
/// next site, so the operator has time to fix it.
const MAX_HOLD: Duration = Duration::from_secs(600);

/// The turns of the sites, seen from this one.
#[derive(Debug, Default)]
pub(super) struct Turns {
    held: Option<HeldTurn>,
}

#[derive(Debug)]
struct HeldTurn {
    unit: String,
    since: Instant,
    /// Released with this process, however it ends.
    _lock: Option<File>,
}

impl Turns {
    /// Whether a unit may restart now. The permission holds until [`Turns::release`].
    pub(super) fn may(&mut self, folder: &SiteFolder, unit: &str, now: Instant) -> bool {
        if let Some(held) = &self.held {
            return held.unit == unit;
        }
        let lock = match lock::take(&folder.state().join("turn.lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return false;
            }
            // Without a folder for the lock there are no turns.
            Err(_) => None,
        };
        self.held = Some(HeldTurn { unit: unit.to_owned(), since: now, _lock: lock });
        true
    }

    /// Passes the turn on once `is_done` returns true for its unit.
    pub(super) fn release(&mut self, now: Instant, is_done: impl FnOnce(&str) -> bool) {
        let over = |held: &HeldTurn| now.duration_since(held.since) >= MAX_HOLD || is_done(&held.unit);
        if self.held.as_ref().is_some_and(over) {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn site_holds_its_restart_turn_until_its_program_is_ready() {
        let dir = tempfile::tempdir().unwrap();
        let state = camino::Utf8Path::from_path(dir.path()).unwrap();
        let site = SiteFolder::of(state, &textnlp_provider::SiteName::new("a").unwrap());
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert!(turns.may(&site, "border", now) && turns.may(&site, "border", now));
        assert!(!turns.may(&site, "watch", now), "one after the other, also within a site");
        turns.release(now, |_| false);
        assert!(!turns.may(&site, "watch", now));
        turns.release(now, |unit| unit == "border");
        assert!(turns.may(&site, "watch", now));
        turns.release(now + MAX_HOLD, |_| false);
        assert!(turns.may(&site, "border", now), "nobody waits for a program for ever");
    }
}
