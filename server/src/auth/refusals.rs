//! A limit of refused credentials for each client address. It slows guessing and keeps logs readable; a valid
//! credential is never refused, because it is checked before.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use textnlp_net::network::subscriber;
use textnlp_store::Rate;
use textnlp_store::rate::{Taken, take};

/// Refused credentials of one address.
const RATE: Rate = Rate { count: 60, per: Duration::from_secs(60) };

/// Addresses that are counted; further ones, and clients without an address, are counted together.
const MAX_ADDRESSES: usize = 10_000;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<HashMap<Option<IpAddr>, f64>>);

impl Refusals {
    /// Counts a refused credential. Beyond the limit, the time until the next one is counted.
    pub(crate) fn count(&self, client: Option<IpAddr>, now_ms: i64) -> Option<Duration> {
        let now = now_ms as f64;
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut client = client.map(subscriber);
        if known.len() >= MAX_ADDRESSES && !known.contains_key(&client) {
            known.retain(|_, arrival_ms| *arrival_ms > now);
            if known.len() >= MAX_ADDRESSES {
                client = None;
            }
        }
        let arrival = known.entry(client).or_default();
        match take(RATE, *arrival, 1, now) {
            Taken::Yes { arrival_ms, .. } => {
                *arrival = arrival_ms;
                None
            }
            Taken::NotYet { retry_ms, .. } => Some(Duration::from_secs_f64(retry_ms.max(0.0) / 1000.0)),
            Taken::Never => Some(RATE.per),
        }
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
