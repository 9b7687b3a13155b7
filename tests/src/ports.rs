//! Ports for programs that need a port number before they start.
//!
//! A port from a bind to port 0 is free again as soon as it is closed, and the kernel uses the same range for outgoing
//! connections. With dozens of programs starting at once, this caused a conflict every few hundred runs. These ports
//! lie below that range. An abstract socket name reserves each one against other tests and processes for as long as the
//! value lives.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below 32768, where Linux's own range begins (`net.ipv4.ip_local_port_range`), and below the range of drill clones.
const FIRST: u16 = 20_000;
const COUNT: u16 = 6_000;

/// Unused ports, reserved for as long as the value lives.
pub struct Ports {
    held: Vec<(u16, UnixListener)>,
}

impl Ports {
    /// Reserves this number of different ports.
    pub fn ask(count: usize) -> Self {
        let start = (std::process::id() % u32::from(COUNT)) as u16;
        let candidates = (0..COUNT).map(|n| FIRST + (start + n) % COUNT);
        let held: Vec<_> = candidates.filter_map(|port| Some((port, take(port)?))).take(count).collect();
        assert_eq!(held.len(), count, "no {count} ports are free from {FIRST} on");
        Self { held }
    }

    /// The ports in the order in which they were reserved.
    pub fn numbers(&self) -> Vec<u16> {
        self.held.iter().map(|(port, _)| *port).collect()
    }
}

fn take(port: u16) -> Option<UnixListener> {
    let name = SocketAddr::from_abstract_name(format!("textnlp-test-port-{port}")).ok()?;
    let held = UnixListener::bind_addr(&name).ok()?;
    TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).ok()?;
    Some(held)
}
