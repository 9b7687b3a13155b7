//! Past durations of operations at a site, from its journal.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use jiff::SignedDuration;
use serde::{Deserialize, Serialize};
use textnlp_provider::{KindName, Verb};

/// The last durations of each kind and verb.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Durations(BTreeMap<KindName, BTreeMap<Verb, VecDeque<u64>>>);

/// Durations that are remembered of each: sufficient for a median, and recent.
const REMEMBERED: usize = 63;

impl Durations {
    pub(super) fn learn(&mut self, kind: &KindName, verb: Verb, took: SignedDuration) {
        // Negative if the wall clock jumped.
        let Ok(took) = Duration::try_from(took) else { return };
        if !self.0.contains_key(kind) {
            self.0.insert(kind.clone(), BTreeMap::new());
        }
        let times = self.0.get_mut(kind).map(|verbs| verbs.entry(verb).or_default());
        if let Some(times) = times {
            times.push_back(took.as_micros().try_into().unwrap_or(u64::MAX));
            if times.len() > REMEMBERED {
                times.pop_front();
            }
        }
    }

    /// The last durations of a kind and verb, in no order.
    pub fn of(&self, kind: &KindName, verb: Verb) -> impl Iterator<Item = Duration> {
        let times = self.0.get(kind).and_then(|verbs| verbs.get(&verb));
        times.into_iter().flatten().copied().map(Duration::from_micros)
    }
}
