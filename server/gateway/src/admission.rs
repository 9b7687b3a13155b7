//! Admission of client connections: a share per address, and a total. For one connection more than the total, the one
//! that has been idle longest is closed, as nginx does, so that silent connections do not keep clients out. A connection
//! is idle unless one of its requests waits for a backend. The requests of an address have the same bound as its connections: one
//! HTTP/2 connection may have many, each with a connection to a backend.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use textnlp_net::network::subscriber;
use tokio_util::sync::CancellationToken;

/// Places above the total for our own proxies and their health checks.
const RESERVED_PLACES: usize = 64;
/// Connections that were told to close and are still open.
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
    shares: HashMap<IpAddr, usize>,
    /// Requests that are open, also those of evicted connections.
    requests: HashMap<IpAddr, usize>,
    /// Idle connections, the longest idle first.
    idle: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Connection {
    share: Option<IpAddr>,
    idle_since: Option<u64>,
    close: CancellationToken,
}

/// The place of one connection.
#[derive(Debug)]
pub(super) struct Place {
    admission: Arc<Admission>,
    number: u64,
    share: Option<IpAddr>,
    close: CancellationToken,
}

impl Admission {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a connection. `address` is none for those that are not limited as one client.
    pub(super) fn admit(self: &Arc<Self>, address: Option<IpAddr>, bounds: Bounds) -> Result<Place, Refused> {
        let share = address.map(subscriber);
        let mut table = self.table();
        if share.is_some_and(|share| table.shares.get(&share).is_some_and(|count| *count >= bounds.per_address)) {
            return Err(Refused::AddressLimit);
        }
        let total = bounds.total + if share.is_none() { RESERVED_PLACES } else { 0 };
        if table.open >= bounds.total + RESERVED_PLACES + CLOSING_MAX {
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
        table.connections.insert(number, Connection { share, idle_since: Some(since), close: close.clone() });
        table.open += 1;
        if let Some(share) = share {
            *table.shares.entry(share).or_default() += 1;
        }
        drop(table);
        if let Some(evicted) = evicted {
            evicted.cancel();
        }
        Ok(Place { admission: self.clone(), number, share, close })
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
        if let Some(share) = connection.share
            && let Some(count) = self.shares.get_mut(&share)
        {
            *count -= 1;
            if *count == 0 {
                self.shares.remove(&share);
            }
        }
        Some(connection.close)
    }
}

impl Place {
    /// Waits until another connection takes the place.
    pub(super) async fn evicted(&self) {
        self.close.cancelled().await;
    }

    /// Counts a request. The open requests of the address, with this one; none are counted where it is not limited as
    /// one client.
    pub(super) fn begin_request(&self) -> usize {
        let Some(share) = self.share else { return 0 };
        let mut table = self.admission.table();
        let count = table.requests.entry(share).or_default();
        *count += 1;
        *count
    }

    pub(super) fn end_request(&self) {
        let Some(share) = self.share else { return };
        let requests = &mut self.admission.table().requests;
        if let Some(count) = requests.get_mut(&share) {
            *count -= 1;
            if *count == 0 {
                requests.remove(&share);
            }
        }
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
        let _next = admit("2001:db8:0:1::1").unwrap();
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
        let proxy = admission.admit(None, BOUNDS).unwrap();
        assert_eq!([proxy.begin_request(), proxy.begin_request()], [0, 0]);
        for place in [&first, &second, &other, &proxy] {
            place.end_request();
        }
        assert!(admission.table().requests.is_empty());
    }

    #[test]
    fn connections_that_do_not_close_are_bounded_too() {
        let admission = Arc::new(Admission::default());
        let bounds = Bounds { total: 3, per_address: usize::MAX };
        let most = 3 + RESERVED_PLACES + CLOSING_MAX;
        let places: Vec<_> = (0..most).map(|_| admission.admit(address("192.0.2.1"), bounds).unwrap()).collect();
        assert_eq!(admission.admit(address("192.0.2.1"), bounds).unwrap_err(), Refused::Full);
        drop(places);
        admission.admit(address("192.0.2.1"), bounds).unwrap();
    }
}
