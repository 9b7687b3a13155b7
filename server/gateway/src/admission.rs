//! Admission of client connections: a share per address, and a total. For one connection more than the total, the one
//! that has been idle longest is closed, as nginx does, so that silent connections do not keep clients out. A connection
//! is idle unless one of its requests waits for a backend, which none does before its body has ended. The requests of an address have the same bound as its connections: one
//! HTTP/2 connection may have many, each with a connection to a backend. The networks that an IPv6 client may have are
//! bounded too, because it can use all of their addresses.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use textnlp_net::network::{Network, limited_networks};
use tokio_util::sync::CancellationToken;

/// Places above the total for our own proxies and their health checks.
const RESERVED_PLACES: usize = 64;
/// Connections that must close and are still open.
const CLOSING_MAX: usize = 1024;

/// The bounds at this moment; a reload changes them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) total: usize,
    pub(super) per_address: usize,
}

/// Why a connection is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// Its address has its share.
    AddressLimit,
    /// Every connection has a request.
    Full,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Admission(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    /// The number of the next connection, and of the next idle time: both only grow.
    next: u64,
    /// Including those that are closing.
    open: usize,
    connections: HashMap<u64, Connection>,
    /// Connections that are open, also those that are closing.
    shares: HashMap<Network, usize>,
    /// Requests that are open, also those of evicted connections.
    requests: HashMap<Network, usize>,
    /// Idle connections, the longest idle first.
    idle: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Connection {
    idle_since: Option<u64>,
    close: CancellationToken,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    number: u64,
    /// The networks whose shares it uses, and the multiples of one address's share that they have. None for those that
    /// are not limited as one client.
    shares: Vec<(Network, u32)>,
    close: CancellationToken,
}

/// Counts one more of each share.
fn take(counts: &mut HashMap<Network, usize>, shares: &[(Network, u32)]) {
    for (network, _) in shares {
        *counts.entry(*network).or_default() += 1;
    }
}

fn give_back(counts: &mut HashMap<Network, usize>, shares: &[(Network, u32)]) {
    for (network, _) in shares {
        if let Some(count) = counts.get_mut(network) {
            *count -= 1;
            if *count == 0 {
                counts.remove(network);
            }
        }
    }
}

/// How much of one address's share is in use, in the network that has used the largest part of its own.
fn in_use(counts: &HashMap<Network, usize>, shares: &[(Network, u32)]) -> usize {
    let part = |(network, times): &(Network, u32)| counts.get(network).map(|count| count.div_ceil(*times as usize));
    shares.iter().filter_map(part).max().unwrap_or_default()
}

impl Admission {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection. `address` is none for those that are not limited as one client.
    pub(super) fn admit(self: &Arc<Self>, address: Option<IpAddr>, bounds: Bounds) -> Result<Place, Refused> {
        let shares = address.map(limited_networks).unwrap_or_default();
        let mut table = self.table();
        let is_full = |(network, times): &(Network, u32)| {
            let most = bounds.per_address.saturating_mul(*times as usize);
            table.shares.get(network).is_some_and(|count| *count >= most)
        };
        if shares.iter().any(is_full) {
            return Err(Refused::AddressLimit);
        }
        // Connections of clients that are closing must not use the reserved places.
        let total = bounds.total + if address.is_none() { RESERVED_PLACES } else { 0 };
        if table.open >= total + CLOSING_MAX {
            return Err(Refused::Full);
        }
        let evicted = match table.connections.len() >= total {
            true => Some(table.evict().ok_or(Refused::Full)?),
            false => None,
        };
        let close = CancellationToken::new();
        let number = table.number();
        let since = table.number();
        table.idle.insert(since, number);
        table.connections.insert(number, Connection { idle_since: Some(since), close: close.clone() });
        table.open += 1;
        take(&mut table.shares, &shares);
        drop(table);
        if let Some(evicted) = evicted {
            evicted.cancel();
        }
        Ok(Place { admission: self.clone(), number, shares, close })
    }
}

impl Table {
    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Takes the place of the connection that has been idle longest.
    fn evict(&mut self) -> Option<CancellationToken> {
        let (_, number) = self.idle.pop_first()?;
        self.remove(number)
    }

    fn remove(&mut self, number: u64) -> Option<CancellationToken> {
        let connection = self.connections.remove(&number)?;
        if let Some(since) = connection.idle_since {
            self.idle.remove(&since);
        }
        Some(connection.close)
    }
}

impl Place {
    /// Waits until another connection takes the place.
    pub(super) async fn evicted(&self) {
        self.close.cancelled().await;
    }

    /// Counts a request. The open requests of the address, with this one, or the part of one address's requests that its
    /// networks use, if that is more. None are counted where it is not limited as one client.
    pub(super) fn begin_request(&self) -> usize {
        let requests = &mut self.admission.table().requests;
        take(requests, &self.shares);
        in_use(requests, &self.shares)
    }

    pub(super) fn end_request(&self) {
        give_back(&mut self.admission.table().requests, &self.shares);
    }

    /// The connection has a request that waits for a backend, or has none any more.
    pub(super) fn set_idle(&self, is_idle: bool) {
        let table = &mut *self.admission.table();
        let since = table.number();
        // An evicted connection has no entry.
        let Some(connection) = table.connections.get_mut(&self.number) else { return };
        let before = std::mem::replace(&mut connection.idle_since, is_idle.then_some(since));
        if let Some(before) = before {
            table.idle.remove(&before);
        }
        if is_idle {
            table.idle.insert(since, self.number);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut table = self.admission.table();
        table.remove(self.number);
        table.open -= 1;
        give_back(&mut table.shares, &self.shares);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { total: 3, per_address: 2 };

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    #[test]
    fn an_address_has_its_share_and_an_ipv6_network_is_one_address() {
        let admission = Arc::new(Admission::default());
        let bounds = Bounds { total: 100, per_address: 2 };
        let admit = |text: &str| admission.admit(address(text), bounds);
        let first = admit("192.0.2.1").unwrap();
        let _second = admit("::ffff:192.0.2.1").unwrap();
        assert_eq!(admit("192.0.2.1").unwrap_err(), Refused::AddressLimit);
        let _other = admit("192.0.2.2").unwrap();
        let _net = (admit("2001:db8::1").unwrap(), admit("2001:db8::ffff").unwrap());
        assert_eq!(admit("2001:db8:0:0:1::").unwrap_err(), Refused::AddressLimit);
        // A subscriber may have many of them: a /56 has the share of two addresses, a /48 that of four.
        let _next = (admit("2001:db8:0:1::1").unwrap(), admit("2001:db8:0:2::1").unwrap());
        assert_eq!(admit("2001:db8:0:3::1").unwrap_err(), Refused::AddressLimit);
        let _far: Vec<_> = (1..5).map(|n| admit(&format!("2001:db8:0:{n}00::1")).unwrap()).collect();
        assert_eq!(admit("2001:db8:0:500::1").unwrap_err(), Refused::AddressLimit);
        let _others = admit("2001:db8:1::1").unwrap();
        drop(first);
        let _again = admit("192.0.2.1").unwrap();
        // Proxies have many clients.
        let _proxies: Vec<_> = (0..50).map(|_| admission.admit(None, bounds).unwrap()).collect();
    }

    #[test]
    fn the_connection_that_is_idle_longest_makes_room_and_busy_ones_stay() {
        let admission = Arc::new(Admission::default());
        let admit = |last: u8| admission.admit(Some([192, 0, 2, last].into()), BOUNDS);
        let [first, second, third] = [1, 2, 3].map(|last| admit(last).unwrap());
        first.set_idle(false);
        second.set_idle(false);
        second.set_idle(true);
        // The first is busy, the second was idle after the third.
        let fourth = admit(4).unwrap();
        let closed = |place: &Place| place.close.is_cancelled();
        assert_eq!([&first, &second, &third, &fourth].map(closed), [false, false, true, false]);
        // What an evicted connection does changes nothing.
        third.set_idle(true);
        drop(third);
        second.set_idle(false);
        fourth.set_idle(false);
        assert_eq!(admit(5).unwrap_err(), Refused::Full);
        // A health check of a proxy has a place all the same.
        let reserved: Vec<_> = (0..RESERVED_PLACES).map(|_| admission.admit(None, BOUNDS).unwrap()).collect();
        assert!(!closed(&first) && reserved.iter().all(|place| !closed(place)));
        drop((first, second, fourth, reserved));
        let table = admission.table();
        assert!(table.connections.is_empty() && table.shares.is_empty() && table.idle.is_empty() && table.open == 0);
        assert!(table.requests.is_empty());
    }

    #[test]
    fn requests_of_an_address_are_counted_over_its_connections() {
        let admission = Arc::new(Admission::default());
        let admit = |text: &str| admission.admit(address(text), BOUNDS).unwrap();
        let (first, second, other) = (admit("2001:db8::1"), admit("2001:db8::2"), admit("192.0.2.1"));
        assert_eq!([&first, &second, &first, &other].map(Place::begin_request), [1, 2, 3, 1]);
        first.end_request();
        second.end_request();
        assert_eq!(second.begin_request(), 2);
        // Half of the five of the /56.
        let beside = admit("2001:db8:0:1::1");
        assert_eq!([&beside, &beside, &beside].map(Place::begin_request), [2, 2, 3]);
        (0..3).for_each(|_| beside.end_request());
        let proxy = admission.admit(None, BOUNDS).unwrap();
        assert_eq!([proxy.begin_request(), proxy.begin_request()], [0, 0]);
        for place in [&first, &second, &other, &proxy] {
            place.end_request();
        }
        assert!(admission.table().requests.is_empty());
    }

    #[test]
    fn connections_that_do_not_close_count_for_their_address_and_leave_the_reserved_places() {
        let admission = Arc::new(Admission::default());
        let bounds = Bounds { total: 3, per_address: 300 };
        let address = |n: usize| Some(IpAddr::from([192, 0, 2, (n / 300) as u8]));
        let most = 3 + CLOSING_MAX;
        let places: Vec<_> = (0..most).map(|n| admission.admit(address(n), bounds).unwrap()).collect();
        assert_eq!(admission.admit(address(0), bounds).unwrap_err(), Refused::AddressLimit);
        assert_eq!(admission.admit(address(most), bounds).unwrap_err(), Refused::Full);
        let reserved: Vec<_> = (0..RESERVED_PLACES).map(|_| admission.admit(None, bounds).unwrap()).collect();
        assert_eq!(admission.admit(None, bounds).unwrap_err(), Refused::Full);
        drop((places, reserved));
        admission.admit(address(0), bounds).unwrap();
    }
}
