//! The observed state of the local server and, where it is the primary, of its replicas at other sites.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use textnlp_control::Site;

use super::super::Error;
use super::super::config::Sites;
use super::super::setup::{Follower, ServerObservation};
use crate::control::{CopyAt, ServerRole};

/// An older observation is ignored.
const MAX_OBSERVATION_AGE: Duration = Duration::from_secs(3);

pub(super) struct ServerFacts {
    /// The replication slot of each other site.
    slots: BTreeMap<String, Site>,
    facts: Mutex<Facts>,
}

struct Facts {
    now: ServerRole,
    fit: bool,
    trouble: Option<String>,
    /// Waiting does not help: the dump is unreadable, or the data may not lead.
    hopeless: bool,
    seen: Option<(Instant, ServerObservation)>,
    /// The primary that the replica was observed to follow.
    following: Option<Arc<AtomicUsize>>,
    progress: BTreeMap<String, Progress>,
    rewound: u64,
    copied: u64,
}

/// When a replica last made progress, or first lacked data after it had everything.
struct Progress {
    at: Instant,
    replayed: String,
    lacks: bool,
}

impl Progress {
    /// Handles an observation of a connected replica.
    fn look(&mut self, at: Instant, copy: &Follower) {
        let moved = copy.behind_bytes == 0 || copy.replayed != self.replayed;
        // The missing data may have been written just now, even if the last poll was long ago.
        if moved || !self.lacks {
            *self = Self { at, replayed: copy.replayed.clone(), lacks: copy.behind_bytes > 0 };
        }
    }
}

impl ServerFacts {
    pub(super) fn new(sites: &Sites) -> Self {
        let slots = sites.peers.keys().map(|site| (Sites::slot(site), Site::new(site))).collect();
        let facts = Facts {
            now: ServerRole::NotRunning,
            fit: false,
            trouble: None,
            hopeless: false,
            seen: None,
            following: None,
            progress: BTreeMap::new(),
            rewound: 0,
            copied: 0,
        };
        Self { slots, facts: Mutex::new(facts) }
    }

    pub(super) fn is(&self, now: ServerRole, fit: bool, trouble: Option<&Error>) {
        let mut facts = self.facts();
        if facts.now != now {
            // Observations of another server do not apply to this one.
            (facts.seen, facts.following) = (None, None);
            facts.progress.clear();
        }
        (facts.now, facts.fit) = (now, fit);
        facts.trouble = trouble.map(|error| textnlp_net::error_chain(error));
        facts.hopeless = matches!(trouble, Some(Error::Restore(_) | Error::Unfit(_)));
    }

    pub(super) fn runs(&self) -> bool {
        self.facts().now != ServerRole::NotRunning
    }

    pub(super) fn saw(&self, seen: Result<ServerObservation, Error>, following: Option<Arc<AtomicUsize>>) {
        let mut facts = self.facts();
        let seen = match seen {
            Ok(seen) => seen,
            Err(error) => {
                tracing::debug!(error = %textnlp_net::error_chain(&error), "the server does not answer");
                return;
            }
        };
        let at = Instant::now();
        for copy in &seen.copies {
            let fresh = || Progress { at, replayed: String::new(), lacks: false };
            let progress = facts.progress.entry(copy.name.clone()).or_insert_with(fresh);
            if copy.connected {
                progress.look(at, copy);
            }
        }
        facts.following = following;
        facts.seen = Some((at, seen));
    }

    /// The last observation, unless it is too old.
    pub(super) fn seen(&self) -> Option<ServerObservation> {
        let facts = self.facts();
        facts.seen.as_ref().filter(|(at, _)| at.elapsed() < MAX_OBSERVATION_AGE).map(|(_, seen)| seen.clone())
    }

    /// Whether the local replica is connected to the current primary.
    pub(super) fn is_connected(&self, primary: &Arc<AtomicUsize>) -> bool {
        let is_same = self.facts().following.as_ref().is_some_and(|of| Arc::ptr_eq(of, primary));
        is_same && self.seen().is_some_and(|seen| seen.role == ServerRole::Copy && seen.follows)
    }

    /// The same, and it lacks less than `within` bytes.
    pub(super) fn follows(&self, primary: &Arc<AtomicUsize>, within: i64) -> bool {
        self.is_connected(primary) && self.seen().is_some_and(|seen| seen.missing_bytes < within)
    }

    /// The replicas at other sites, where the local server is the primary.
    pub(super) fn copies(&self) -> BTreeMap<Site, CopyAt> {
        let Some(seen) = self.seen() else { return BTreeMap::new() };
        let facts = self.facts();
        let copy = |copy: &Follower| {
            let site = self.slots.get(&copy.name)?;
            let still = facts.progress.get(&copy.name).map_or(0, |progress| progress.at.elapsed().as_millis() as u64);
            // The lag of a disconnected replica is unknown to the primary.
            let behind_ms = match copy.connected && copy.behind_bytes == 0 {
                true => 0,
                false if copy.connected => still.max(copy.behind_ms.max(0) as u64),
                false => still,
            };
            let behind_bytes = copy.behind_bytes.max(0) as u64;
            Some((site.clone(), CopyAt { connected: copy.connected, behind_bytes, behind_ms }))
        };
        seen.copies.iter().filter_map(copy).collect()
    }

    pub(super) fn rewound(&self) {
        self.facts().rewound += 1;
    }

    pub(super) fn copied(&self) {
        self.facts().copied += 1;
    }

    /// How often each was done.
    pub(super) fn taken_back(&self) -> (u64, u64) {
        let facts = self.facts();
        (facts.rewound, facts.copied)
    }

    pub(super) fn standing(&self) -> (ServerRole, bool) {
        let facts = self.facts();
        (facts.now, facts.fit)
    }

    /// The current problem, and whether waiting does not help.
    pub(super) fn trouble(&self) -> (Option<String>, bool) {
        let facts = self.facts();
        (facts.trouble.clone(), facts.hopeless)
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replication_lag_starts_when_a_replica_first_lacks_data() {
        let copy = |behind_bytes, replayed: &str| Follower {
            name: "at_b".to_owned(),
            connected: true,
            behind_bytes,
            behind_ms: 0,
            replayed: replayed.to_owned(),
        };
        let began = Instant::now();
        let after = |seconds| began + Duration::from_secs(seconds);
        let mut progress = Progress { at: began, replayed: String::new(), lacks: false };
        progress.look(after(1), &copy(0, "0/1"));
        // Nobody looked for a while; what it lacks was written a moment ago, for all that is known.
        progress.look(after(9), &copy(664, "0/1"));
        assert_eq!(progress.at, after(9));
        progress.look(after(12), &copy(700, "0/1"));
        assert_eq!(progress.at, after(9), "it does not get on");
        progress.look(after(13), &copy(600, "0/2"));
        assert_eq!(progress.at, after(13), "it gets on");
        progress.look(after(20), &copy(600, "0/2"));
        assert_eq!(progress.at, after(13));
    }
}
