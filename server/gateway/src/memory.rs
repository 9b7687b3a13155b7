//! The memory for what clients have sent and no backend has taken: header fields and bodies. It has one limit for all
//! clients, and each address may hold at most as much as it leaves free. So one address holds half of it at most, two
//! hold a third each, and what is left over always serves the next address. Switches share packet buffers by the same
//! rule: Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet switches" (1998).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use http::HeaderMap;
use textnlp_net::network::{Network, limited_networks};

/// All of it: a quarter of the memory of a gateway's container, whose connections need up to half.
const TOTAL_BYTES: usize = 256 << 20;
/// What a header field takes besides its name and value (RFC 9113, 6.5.2 counts it the same way).
const FIELD_BYTES: usize = 32;

/// See the module.
#[derive(Debug)]
pub(super) struct Memory {
    total: usize,
    used: Mutex<Usage>,
}

#[derive(Debug, Default)]
struct Usage {
    total: usize,
    by_network: HashMap<Network, usize>,
}

/// Bytes that are in use until it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    memory: Arc<Memory>,
    bytes: usize,
    networks: Vec<(Network, u32)>,
}

/// Why there is no memory for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// The address holds its share.
    Share,
    /// The other clients hold too much.
    Total,
}

impl Default for Memory {
    fn default() -> Self {
        Self { total: TOTAL_BYTES, used: Mutex::default() }
    }
}

impl Memory {
    fn used(&self) -> MutexGuard<'_, Usage> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds `bytes` for a client. `client` is none for those that are not limited as one client.
    pub(super) fn hold(self: &Arc<Self>, client: Option<IpAddr>, bytes: usize) -> Result<Reservation, Exceeded> {
        let networks = client.map(limited_networks).unwrap_or_default();
        let mut used = self.used();
        let free = self.total.saturating_sub(used.total).checked_sub(bytes).ok_or(Exceeded::Total)?;
        for (network, times) in &networks {
            let held = used.by_network.get(network).copied().unwrap_or_default();
            if held.saturating_add(bytes) > free.saturating_mul(*times as usize) {
                return Err(if held == 0 { Exceeded::Total } else { Exceeded::Share });
            }
        }
        used.total += bytes;
        for (network, _) in &networks {
            *used.by_network.entry(*network).or_default() += bytes;
        }
        drop(used);
        Ok(Reservation { memory: self.clone(), bytes, networks })
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut used = self.memory.used();
        used.total -= self.bytes;
        for (network, _) in &self.networks {
            if let Some(held) = used.by_network.get_mut(network) {
                *held -= self.bytes;
                if *held == 0 {
                    used.by_network.remove(network);
                }
            }
        }
    }
}

/// The memory of header fields.
pub(super) fn bytes_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + FIELD_BYTES).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Option<IpAddr> {
        Some(text.parse().unwrap())
    }

    fn memory(total: usize) -> Arc<Memory> {
        Arc::new(Memory { total, used: Mutex::default() })
    }

    /// Holds one byte after the other until it is refused.
    fn fill(memory: &Arc<Memory>, client: &str) -> (Vec<Reservation>, Exceeded) {
        let mut held = Vec::new();
        loop {
            match memory.hold(address(client), 1) {
                Ok(one) => held.push(one),
                Err(exceeded) => return (held, exceeded),
            }
        }
    }

    #[test]
    fn greedy_addresses_leave_as_much_as_each_of_them_holds() {
        let memory = memory(1200);
        let (first, exceeded) = fill(&memory, "192.0.2.1");
        assert_eq!((first.len(), exceeded), (600, Exceeded::Share));
        let (second, exceeded) = fill(&memory, "192.0.2.2");
        assert_eq!((second.len(), exceeded), (300, Exceeded::Share));
        // The first holds more than its share now, and gets no more.
        assert_eq!(memory.hold(address("::ffff:192.0.2.1"), 1).unwrap_err(), Exceeded::Share);
        let other = memory.hold(address("192.0.2.3"), 100).unwrap();
        drop((first, second, other));
        let used = memory.used();
        assert!(used.total == 0 && used.by_network.is_empty());
    }

    #[test]
    fn networks_of_an_ipv6_subscriber_have_their_multiples() {
        let memory = memory(1200);
        let (held, _) = fill(&memory, "2001:db8::1");
        assert_eq!(held.len(), 600);
        // A /56 may hold twice what is free: 800 of 1200.
        let (beside, exceeded) = fill(&memory, "2001:db8:0:1::1");
        assert_eq!((beside.len(), exceeded), (200, Exceeded::Share));
        assert!(memory.hold(address("2001:db8:1::1"), 100).is_ok());
    }

    #[test]
    fn what_does_not_fit_is_not_held() {
        let memory = memory(100);
        assert_eq!(memory.hold(None, 101).unwrap_err(), Exceeded::Total);
        assert_eq!(memory.hold(address("192.0.2.1"), 51).unwrap_err(), Exceeded::Total);
        let held = memory.hold(None, 90).unwrap();
        assert_eq!(memory.hold(address("192.0.2.1"), 6).unwrap_err(), Exceeded::Total);
        assert!(memory.hold(address("192.0.2.1"), 5).is_ok());
        drop(held);
        assert!(memory.hold(None, usize::MAX).is_err() && memory.hold(None, 100).is_ok());
        assert_eq!(memory.used().total, 0);
    }

    #[test]
    fn header_fields_count_with_their_overhead() {
        let mut headers = HeaderMap::new();
        headers.insert("host", http::HeaderValue::from_static("x"));
        headers.append("cookie", http::HeaderValue::from_static("a=b"));
        headers.append("cookie", http::HeaderValue::from_static("c=d"));
        assert_eq!(bytes_of(&headers), 5 + 9 + 9 + 3 * FIELD_BYTES);
    }
}
