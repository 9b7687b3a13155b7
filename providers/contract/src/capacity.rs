//! The order in which the alternatives of a resource are tried, such as the zones and markets of a pool: what lacked capacity comes last.

use serde::{Deserialize, Serialize};

/// An alternative for which a provider had no capacity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// Its name, or that of its market where no part of the market had any.
    pub name: String,
    /// Whether this is so recent that another market may be tried first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_recent: bool,
}

/// The market in the name of an alternative, which is its first word: `spot` in `spot us-central1-a`.
pub fn market(name: &str) -> &str {
    name.split_once(' ').map_or(name, |(market, _)| market)
}

/// The indexes of all these alternatives, in the order in which they are tried. `lacking` has the oldest failure first.
///
/// Within a market, those that lacked capacity are last, the newest failure at the end. A market is tried after the others only if all
/// of it lacked capacity, and the newest of these failures is recent: another market may cost more.
pub fn order(all: &[String], lacking: &[Lacking]) -> Vec<usize> {
    let failure = |name: &str| lacking.iter().rposition(|one| one.name == name || one.name == market(name));
    let is_out = |of: &str| {
        let here = all.iter().filter(|name| market(name) == of);
        let failures: Option<Vec<usize>> = here.map(|name| failure(name)).collect();
        failures.is_some_and(|failures| failures.into_iter().any(|place| lacking[place].is_recent))
    };
    let preference = |of: &str| all.iter().position(|name| market(name) == of);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_key(|place| {
        let (name, market) = (&all[*place], market(&all[*place]));
        (is_out(market), preference(market), failure(name), *place)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::{Lacking, order};

    /// The order of four alternatives after these failures, oldest first.
    fn ordered(lacking: &[(&str, bool)]) -> Vec<usize> {
        let all = ["spot a", "spot b", "on-demand a", "on-demand b"].map(str::to_owned);
        let lacking =
            lacking.iter().map(|(name, is_recent)| Lacking { name: (*name).to_owned(), is_recent: *is_recent });
        order(&all, &lacking.collect::<Vec<_>>())
    }

    #[test]
    fn only_the_order_changes() {
        for (lacking, expected) in [
            (vec![], [0, 1, 2, 3]),
            (vec![("spot a", true)], [1, 0, 2, 3]),
            (vec![("spot a", false)], [1, 0, 2, 3]),
            (vec![("on-demand a", true)], [0, 1, 3, 2]),
            // The older failure first: it is the likelier one to be over.
            (vec![("spot b", false), ("spot a", false)], [1, 0, 2, 3]),
            (vec![("spot a", false), ("spot b", false)], [0, 1, 2, 3]),
            // A whole market, by the newest of its failures.
            (vec![("spot b", false), ("spot a", true)], [2, 3, 1, 0]),
            (vec![("spot", true)], [2, 3, 0, 1]),
            (vec![("spot", false)], [0, 1, 2, 3]),
            (vec![("spot a", false), ("spot", true), ("on-demand b", true)], [2, 3, 0, 1]),
            // Nothing else is left to try first.
            (vec![("spot", true), ("on-demand", true)], [0, 1, 2, 3]),
            (vec![("spot c", true)], [0, 1, 2, 3]),
        ] {
            assert_eq!(ordered(&lacking), expected, "{lacking:?}");
        }
    }

    #[test]
    fn a_market_without_zones_is_its_own_name() {
        let all = ["SPOT", "ON_DEMAND"].map(str::to_owned);
        let lacking = |is_recent| [Lacking { name: "SPOT".to_owned(), is_recent }];
        assert_eq!((order(&all, &lacking(true)), order(&all, &lacking(false))), (vec![1, 0], vec![0, 1]));
        assert_eq!(order(&[], &lacking(true)), Vec::<usize>::new());
    }
}
