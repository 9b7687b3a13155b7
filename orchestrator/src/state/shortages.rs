//! Alternatives of resources that lacked capacity lately, such as zones and markets of a pool, from a site's journal.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use textnlp_provider::{Lacking, ResourceId};

/// The last failure of each alternative, by its name.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Shortages(BTreeMap<ResourceId, BTreeMap<String, Timestamp>>);

/// A lack of capacity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shortage {
    /// The alternative, or its market.
    pub name: String,
    /// When it was recorded.
    pub at: Timestamp,
}

/// How long an alternative is tried after the others of its market. Shortages last for minutes to hours.
const REMEMBERED: Duration = Duration::from_secs(6 * 3_600);
/// How long a market is tried after the others, which may cost more.
const RECENT: Duration = Duration::from_secs(3_600);

impl Shortages {
    pub(super) fn learn(&mut self, resource: &ResourceId, name: &str, at: Timestamp) {
        self.0.entry(resource.clone()).or_default().insert(name.to_owned(), at);
        self.0.retain(|_, all| {
            all.retain(|_, since| is_within(at, *since, REMEMBERED));
            !all.is_empty()
        });
    }

    /// Those of a resource that count at this time, oldest first.
    pub fn of(&self, resource: &ResourceId, now: Timestamp) -> Vec<Shortage> {
        let all = self.0.get(resource).into_iter().flatten().filter(|(_, at)| is_within(now, **at, REMEMBERED));
        let mut all: Vec<Shortage> = all.map(|(name, at)| Shortage { name: name.clone(), at: *at }).collect();
        all.sort_by_key(|one| one.at);
        all
    }

    /// The same for an operation.
    pub fn lacking(&self, resource: &ResourceId, now: Timestamp) -> Vec<Lacking> {
        let all = self.of(resource, now).into_iter();
        all.map(|one| Lacking { name: one.name, is_recent: is_within(now, one.at, RECENT) }).collect()
    }
}

/// In either direction: a failure in the far future is of a clock that was wrong.
fn is_within(now: Timestamp, at: Timestamp, time: Duration) -> bool {
    now.duration_since(at).unsigned_abs() < time
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: &str) -> Timestamp {
        format!("2026-01-01T{time}:00Z").parse().unwrap()
    }

    #[test]
    fn shortages_are_forgotten_after_hours() {
        let (pool, other) = (ResourceId::new("here/pool").unwrap(), ResourceId::new("here/other").unwrap());
        let mut shortages = Shortages::default();
        for (resource, name, time) in [
            (&pool, "spot b", "08:00"),
            (&other, "spot a", "08:00"),
            (&pool, "spot a", "09:00"),
            // It failed again.
            (&pool, "spot b", "10:00"),
        ] {
            shortages.learn(resource, name, at(time));
        }
        let lacking = |time: &str| -> Vec<(String, bool)> {
            shortages.lacking(&pool, at(time)).into_iter().map(|one| (one.name, one.is_recent)).collect()
        };
        let [a, b] = ["spot a", "spot b"].map(str::to_owned);
        assert_eq!(lacking("10:30"), [(a.clone(), false), (b.clone(), true)]);
        assert_eq!(lacking("11:00"), [(a, false), (b.clone(), false)]);
        assert_eq!(lacking("15:00"), [(b.clone(), false)]);
        assert!(lacking("16:00").is_empty());
        assert_eq!(shortages.of(&pool, at("15:59")), [Shortage { name: b.clone(), at: at("10:00") }]);
        // The next one drops those that are over, of all resources.
        shortages.learn(&pool, "spot c", at("15:30"));
        assert!(shortages.of(&other, at("08:30")).is_empty());
        let names: Vec<String> = shortages.of(&pool, at("15:30")).into_iter().map(|one| one.name).collect();
        assert_eq!(names, [b, "spot c".to_owned()]);
    }
}
