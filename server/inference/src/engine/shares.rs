//! Virtual counters for fairness between tenants and between models.
//!
//! The least served goes next. A returning tenant starts at the level of the active ones, so that idleness earns no
//! credit (Sheng et al. 2024, "Fairness in serving large language models").

use std::collections::HashMap;
use std::hash::Hash;

/// The most absent parties whose counters are remembered.
const MOST_ABSENT: usize = 1024;

#[derive(Debug)]
pub(super) struct Shares<K> {
    parties: HashMap<K, TenantShare>,
    /// The counter of the last active one when all became idle.
    floor: f64,
}

#[derive(Debug, Default)]
struct TenantShare {
    served: f64,
    /// How many pieces of work it has here.
    work: usize,
}

impl<K: Hash + Eq + Clone> Default for Shares<K> {
    fn default() -> Self {
        Shares { parties: HashMap::new(), floor: 0.0 }
    }
}

impl<K: Hash + Eq + Clone> Shares<K> {
    /// One more piece of work of `key`.
    pub(super) fn enter(&mut self, key: &K) {
        let level = self.level();
        let party = self.parties.entry(key.clone()).or_default();
        if party.work == 0 {
            party.served = party.served.max(level);
        }
        party.work += 1;
    }

    /// One less.
    pub(super) fn leave(&mut self, key: &K) {
        let Some(party) = self.parties.get_mut(key) else { return };
        party.work = party.work.saturating_sub(1);
        if party.work == 0 {
            self.floor = self.floor.max(party.served);
        }
        if self.parties.len() > MOST_ABSENT {
            // An absent one at or below the level would be raised to it anyway, so nothing is lost. If that is not
            // enough, all absent ones are removed: at worst they restart at the level.
            let level = self.level();
            self.parties.retain(|_, party| party.work > 0 || party.served > level);
            if self.parties.len() > MOST_ABSENT {
                self.parties.retain(|_, party| party.work > 0);
            }
        }
    }

    pub(super) fn charge(&mut self, key: &K, amount: f64) {
        if let Some(party) = self.parties.get_mut(key) {
            party.served += amount;
        }
    }

    pub(super) fn served(&self, key: &K) -> f64 {
        self.parties.get(key).map_or(self.floor, |party| party.served)
    }

    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        self.parties.values().all(|party| party.work == 0)
    }

    /// The minimum of the active ones; without any, the last level.
    fn level(&self) -> f64 {
        let working = self.parties.values().filter(|party| party.work > 0).map(|party| party.served);
        working.min_by(f64::total_cmp).unwrap_or(self.floor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_tenant_earns_no_credit() {
        let mut shares = Shares::default();
        shares.enter(&"busy");
        shares.charge(&"busy", 1000.0);
        shares.enter(&"new");
        assert_eq!(shares.served(&"new"), 1000.0);
        shares.leave(&"new");
        shares.charge(&"busy", 500.0);
        shares.enter(&"new");
        assert_eq!(shares.served(&"new"), 1500.0);
    }

    #[test]
    fn leaving_and_returning_keeps_the_served_count() {
        let mut shares = Shares::default();
        shares.enter(&"a");
        shares.enter(&"b");
        shares.charge(&"a", 800.0);
        shares.leave(&"a");
        shares.enter(&"a");
        assert_eq!(shares.served(&"a"), 800.0);
        assert_eq!(shares.served(&"b"), 0.0);
    }

    #[test]
    fn next_tenant_starts_at_the_level_of_the_last_one() {
        let mut shares = Shares::default();
        shares.enter(&"a");
        shares.charge(&"a", 70.0);
        shares.leave(&"a");
        shares.enter(&"b");
        assert_eq!(shares.served(&"b"), 70.0);
        assert!(!shares.is_idle());
        shares.leave(&"b");
        assert!(shares.is_idle());
    }

    #[test]
    fn share_counters_of_many_tenants_stay_bounded() {
        let mut shares = Shares::default();
        for name in 0..10_000 {
            shares.enter(&name);
            shares.charge(&name, 1.0);
            shares.leave(&name);
        }
        assert!(shares.parties.len() <= MOST_ABSENT + 1);
    }
}
