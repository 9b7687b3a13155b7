//! A limit of refused credentials for each client address, and for the networks of IPv6 that a client may have. It slows guessing and keeps logs readable; a valid
//! credential is never refused, because it is checked before.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use textnlp_net::network::{Network, limited_networks};
use textnlp_store::Rate;
use textnlp_store::rate::{Taken, take};

/// Refused credentials of one address.
const RATE: Rate = Rate { count: 60, per: Duration::from_secs(60) };

/// Addresses and networks that are counted; further ones, and clients without an address, are counted together.
const MAX_ADDRESSES: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<Option<Network>, f64>>);

impl Refusals {
    /// Counts a refused credential. Beyond the limit, the time until the next one is counted.
    pub(crate) fn count(&self, client: Option<IpAddr>, now_ms: i64) -> Option<Duration> {
        let now = now_ms as f64;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let limited = |address| limited_networks(address).into_iter().map(|(network, times)| (Some(network), times));
        let together = vec![(None, 1)];
        let mut counted: Vec<(Option<Network>, u32)> =
            client.map_or_else(|| together.clone(), |address| limited(address).collect());
        let is_new = |known: &HashMap<_, _>| counted.iter().filter(|(network, _)| !known.contains_key(network)).count();
        if is_new(&known) > 0 && known.len() + is_new(&known) > MAX_ADDRESSES {
            known.retain(|_, arrival_ms| *arrival_ms > now);
            if known.len() + is_new(&known) > MAX_ADDRESSES {
                counted = together;
            }
        }
        let mut arrivals = Vec::with_capacity(counted.len());
        for (network, times) in counted {
            let rate = Rate { count: RATE.count * u64::from(times), ..RATE };
            match take(rate, known.get(&network).copied().unwrap_or_default(), 1, now) {
                Taken::Yes { arrival_ms, .. } => arrivals.push((network, arrival_ms)),
                Taken::NotYet { retry_ms, .. } => return Some(Duration::from_secs_f64(retry_ms.max(0.0) / 1000.0)),
                Taken::Never => return Some(RATE.per),
            }
        }
        known.extend(arrivals);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000_000;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn each_address_has_sixty_refusals_a_minute_and_an_ipv6_network_is_one_address() {
        let refusals = Refusals::default();
        let many = |text: &str, now| (0..100).filter(|_| refusals.count(address(text), now).is_none()).count();
        assert_eq!(many("192.0.2.1", NOW), 60);
        assert_eq!(refusals.count(address("::ffff:192.0.2.1"), NOW), Some(Duration::from_secs(1)));
        assert_eq!(many("192.0.2.2", NOW), 60);
        assert_eq!(many("2001:db8::1", NOW), 60);
        assert_eq!((many("2001:db8::2", NOW), many("2001:db8:0:1::2", NOW)), (0, 60));
        // A subscriber may have many networks: a /56 has the limit of two addresses, a /48 that of four.
        assert_eq!((many("2001:db8:0:2::1", NOW), many("2001:db8:0:100::1", NOW)), (0, 60));
        assert_eq!((many("2001:db8:0:200::1", NOW), many("2001:db8:0:300::1", NOW)), (60, 0));
        assert_eq!(many("2001:db8:1::1", NOW), 60);
        assert_eq!(many("192.0.2.1", NOW + 10_000), 10);
    }

    #[test]
    fn table_of_addresses_is_bounded_and_the_rest_share_one_limit() {
        let refusals = Refusals::default();
        let count = |n: u32, now| refusals.count(Some(IpAddr::from(n.to_be_bytes())), now);
        let refused = (0..20_000).filter(|n| count(*n, NOW).is_some()).count();
        assert_eq!(refused, 20_000 - MAX_ADDRESSES - 60);
        assert!(refusals.0.lock().unwrap().len() <= MAX_ADDRESSES + 1);
        assert_eq!(count(30_000, NOW + 120_000), None);
        assert_eq!(refusals.0.lock().unwrap().len(), 1, "those that did nothing for a minute are forgotten");
    }
}
