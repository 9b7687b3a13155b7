//! Turns: of the sites on this machine one after the other restarts what the others need of it.

use std::fs::File;
use std::time::{Duration, Instant};

use crate::layout::SiteFolder;
use crate::lock;

/// A program that is not back after this is not waited for any longer. Until then a release that does not come up at one site is not
/// rolled to the next one: whoever deploys it hears of it, and mends it, long before.
const HELD_AT_MOST: Duration = Duration::from_secs(600);

/// Whose turn it is, as far as this site is concerned.
#[derive(Debug, Default)]
pub(super) struct Turns {
    held: Option<Held>,
}

#[derive(Debug)]
struct Held {
    unit: String,
    since: Instant,
    /// Gone with this process, however it ends.
    _lock: Option<File>,
}

impl Turns {
    /// Whether a unit may restart now. Once it may, it goes on so until [`Turns::let_go`].
    pub(super) fn may(&mut self, folder: &SiteFolder, unit: &str, now: Instant) -> bool {
        if let Some(held) = &self.held {
            return held.unit == unit;
        }
        let lock = match lock::take(&folder.state().join("turn.lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                return false;
            }
            // Without a place for the lock there are no turns.
            Err(_) => None,
        };
        self.held = Some(Held { unit: unit.to_owned(), since: now, _lock: lock });
        true
    }

    /// Gives the turn on once `is_done` says so of the unit that has it.
    pub(super) fn let_go(&mut self, now: Instant, is_done: impl FnOnce(&str) -> bool) {
        let over = |held: &Held| now.duration_since(held.since) >= HELD_AT_MOST || is_done(&held.unit);
        if self.held.as_ref().is_some_and(over) {
            self.held = None;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_site_has_one_turn_and_keeps_it_until_its_program_is_back() {
        let dir = tempfile::tempdir().unwrap();
        let state = camino::Utf8Path::from_path(dir.path()).unwrap();
        let site = SiteFolder::of(state, &textnlp_provider::SiteName::new("a").unwrap());
        let (mut turns, now) = (Turns::default(), Instant::now());
        assert!(turns.may(&site, "border", now) && turns.may(&site, "border", now));
        assert!(!turns.may(&site, "watch", now), "one after the other, also within a site");
        turns.let_go(now, |_| false);
        assert!(!turns.may(&site, "watch", now));
        turns.let_go(now, |unit| unit == "border");
        assert!(turns.may(&site, "watch", now));
        turns.let_go(now + HELD_AT_MOST, |_| false);
        assert!(turns.may(&site, "border", now), "nobody waits for a program for ever");
    }
}
