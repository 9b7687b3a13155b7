//! Rate limit of log lines, in total and for each client.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use textnlp_net::network::{Network, limited_networks};

const WINDOW: Duration = Duration::from_secs(10);

/// Log lines of one kind of event within ten seconds: of all clients, and of one client, so that a flood leaves out
/// few lines of others.
#[derive(Debug)]
pub struct LineLimit {
    total: usize,
    per_client: usize,
    lines: Mutex<Lines>,
}

#[derive(Debug, Default)]
struct Lines {
    since: Option<Instant>,
    total: usize,
    /// The lines of each network in this window; `None` is that of clients without an address. At most three networks
    /// for each line.
    by_network: HashMap<Option<Network>, usize>,
    suppressed: u64,
}

impl LineLimit {
    /// At most `total` lines in ten seconds, and `per_client` about one client.
    pub fn new(total: usize, per_client: usize) -> Self {
        Self { total, per_client, lines: Mutex::default() }
    }

    /// Whether a line about a client may be written, and how many were not since the last one. The networks that an IPv6
    /// client may have are limited too.
    pub fn next(&self, client: Option<IpAddr>) -> Option<u64> {
        let networks: Vec<(Option<Network>, u32)> = match client {
            Some(address) => limited_networks(address).into_iter().map(|(net, times)| (Some(net), times)).collect(),
            None => vec![(None, 1)],
        };
        let mut lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.since.is_none_or(|since| since.elapsed() >= WINDOW) {
            let suppressed = lines.suppressed;
            *lines = Lines { since: Some(Instant::now()), suppressed, ..Lines::default() };
        }
        let is_full = |(network, times): &(Option<Network>, u32)| {
            let most = self.per_client.saturating_mul(*times as usize);
            lines.by_network.get(network).is_some_and(|count| *count >= most)
        };
        if lines.total >= self.total || networks.iter().any(is_full) {
            lines.suppressed += 1;
            return None;
        }
        lines.total += 1;
        for (network, _) in networks {
            *lines.by_network.entry(network).or_default() += 1;
        }
        Some(std::mem::take(&mut lines.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_client_are_limited_and_the_next_line_counts_what_was_left_out() {
        let limit = LineLimit::new(5, 2);
        let next = |client: &str| limit.next(Some(client.parse().unwrap()));
        assert_eq!([next("192.0.2.1"), next("192.0.2.1"), next("::ffff:192.0.2.1")], [Some(0), Some(0), None]);
        assert_eq!([next("2001:db8::1"), next("2001:db8::2"), next("2001:db8::3")], [Some(1), Some(0), None]);
        assert_eq!([next("2001:db8:0:1::1"), next("192.0.2.2")], [Some(1), None], "of all clients");
        limit.lines.lock().unwrap().since = None;
        assert_eq!([next("192.0.2.1"), limit.next(None)], [Some(1), Some(0)]);
    }

    #[test]
    fn the_networks_of_an_ipv6_subscriber_are_limited_too() {
        let limit = LineLimit::new(100, 1);
        let next = |client: &str| limit.next(Some(client.parse().unwrap())).is_some();
        // A /56 may use twice the lines of one client, a /48 four times.
        assert_eq!(["2001:db8::1", "2001:db8:0:1::1", "2001:db8:0:2::1"].map(next), [true, true, false]);
        assert_eq!(["2001:db8:0:100::1", "2001:db8:0:200::1", "2001:db8:0:300::1"].map(next), [true, true, false]);
        assert_eq!(["2001:db8:1::1", "192.0.2.1"].map(next), [true, true], "of other clients");
    }
}
