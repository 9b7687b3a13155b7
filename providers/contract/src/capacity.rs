//! The order in which the alternatives of a resource are tried, such as the zones and markets of a pool: what lacked capacity comes last.

use serde::{Deserialize, Serialize};

/// An alternative for which a provider had no capacity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lacking {
    /// Its name, or that of its [`market`] where no part of the market had any.
    pub name: String,
    /// Whether this is so recent that another market may be tried first.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_recent: bool,
}

/// The name of the whole market of an alternative: its first word, and its last one, the machines. `spot n1-standard-4` is that of
/// `spot us-central1-a n1-standard-4`.
pub fn market(name: &str) -> String {
    match (name.split_once(' '), name.rsplit_once(' ')) {
        (Some((market, _)), Some((_, machines))) => format!("{market} {machines}"),
        _ => name.to_owned(),
    }
}

/// The indexes of all these alternatives, in the order in which they are tried. `lacking` has the oldest failure first.
///
/// Within a market, those that lacked capacity are last, the newest failure at the end. A market is tried after the others only if it
/// was recorded as a whole, or each alternative in it, and the newest of these failures is recent: another market may cost more.
pub fn order(all: &[String], lacking: &[Lacking]) -> Vec<usize> {
    let exact = |name: &str| lacking.iter().rposition(|one| one.name == name);
    // The record of the market says nothing of the order in it.
    let failure = |name: &str| exact(name).or_else(|| exact(&market(name)));
    let is_recent = |place: usize| lacking[place].is_recent;
    let is_out = |of: &str| {
        let failures: Option<Vec<usize>> =
            all.iter().filter(|name| market(name) == of).map(|name| failure(name)).collect();
        exact(of).is_some_and(is_recent) || failures.is_some_and(|places| places.into_iter().any(is_recent))
    };
    let preference = |of: &str| all.iter().position(|name| market(name) == of);
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by_cached_key(|place| {
        let (name, market) = (&all[*place], market(&all[*place]));
        (is_out(&market), preference(&market), failure(name), *place)
    });
    order
}

#[cfg(test)]
mod tests {
    use super::{Lacking, market, order};

    /// The order of four alternatives after these failures, oldest first.
    fn ordered(lacking: &[(&str, bool)]) -> Vec<usize> {
        let all = ["spot a t4", "spot b t4", "on-demand a t4", "on-demand b t4"].map(str::to_owned);
        let lacking =
            lacking.iter().map(|(name, is_recent)| Lacking { name: (*name).to_owned(), is_recent: *is_recent });
        order(&all, &lacking.collect::<Vec<_>>())
    }

    #[test]
    fn only_the_order_changes() {
        for (lacking, expected) in [
            (vec![], [0, 1, 2, 3]),
            (vec![("spot a t4", true)], [1, 0, 2, 3]),
            (vec![("spot a t4", false)], [1, 0, 2, 3]),
            (vec![("on-demand a t4", true)], [0, 1, 3, 2]),
            // The older failure first: it is the likelier one to be over.
            (vec![("spot b t4", false), ("spot a t4", false)], [1, 0, 2, 3]),
            (vec![("spot a t4", false), ("spot b t4", false)], [0, 1, 2, 3]),
            // A whole market, by the newest of its failures.
            (vec![("spot b t4", false), ("spot a t4", true)], [2, 3, 1, 0]),
            (vec![("spot t4", true)], [2, 3, 0, 1]),
            (vec![("spot t4", false)], [0, 1, 2, 3]),
            (vec![("spot a t4", false), ("spot t4", true), ("on-demand b t4", true)], [2, 3, 0, 1]),
            // Its record keeps the order in it.
            (vec![("spot b t4", true), ("spot t4", true)], [2, 3, 1, 0]),
            (vec![("spot b t4", false), ("spot t4", false)], [1, 0, 2, 3]),
            // The older failures of its zones do not hide it.
            (vec![("spot a t4", false), ("spot b t4", false), ("spot t4", true)], [2, 3, 0, 1]),
            // Nothing else is left to try first.
            (vec![("spot t4", true), ("on-demand t4", true)], [0, 1, 2, 3]),
            (vec![("spot c t4", true)], [0, 1, 2, 3]),
            // Other machines.
            (vec![("spot a l4", true), ("spot l4", true)], [0, 1, 2, 3]),
        ] {
            assert_eq!(ordered(&lacking), expected, "{lacking:?}");
        }
    }

    #[test]
    fn a_market_without_zones_is_its_own_name() {
        assert_eq!(market("spot us-central1-a n1-standard-4"), "spot n1-standard-4");
        assert_eq!(
            (market("SPOT g5.xlarge,g6.xlarge").as_str(), market("SPOT").as_str()),
            ("SPOT g5.xlarge,g6.xlarge", "SPOT")
        );
        let all = ["SPOT g5.xlarge", "ON_DEMAND g5.xlarge"].map(str::to_owned);
        let lacking = |is_recent| [Lacking { name: "SPOT g5.xlarge".to_owned(), is_recent }];
        assert_eq!((order(&all, &lacking(true)), order(&all, &lacking(false))), (vec![1, 0], vec![0, 1]));
        assert_eq!(order(&[], &lacking(true)), Vec::<usize>::new());
    }
}
