//! Ports for programs that are told theirs before they start.
//!
//! A port that was asked for by binding port 0 is anybody's again as soon as it is let go, and the kernel gives the same range to outgoing
//! connections: with dozens of programs starting at once, one of them took another's every few hundred runs. These lie below that range,
//! and a name in the abstract namespace keeps other tests from them, other processes' too, for as long as the value lives.

use std::net::{Ipv4Addr, TcpListener};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener};

/// Below 32768, where Linux begins to give out ports by itself (`net.ipv4.ip_local_port_range`), and below what clones of drills ask for.
const FIRST: u16 = 20_000;
const COUNT: u16 = 6_000;

/// Ports that nobody listens on, and that no other test is given while this lives.
pub struct Ports {
    held: Vec<(u16, UnixListener)>,
}

impl Ports {
    /// So many of them, all different.
    pub fn ask(count: usize) -> Self {
        let start = (std::process::id() % u32::from(COUNT)) as u16;
        let candidates = (0..COUNT).map(|n| FIRST + (start + n) % COUNT);
        let held: Vec<_> = candidates.filter_map(|port| Some((port, take(port)?))).take(count).collect();
        assert_eq!(held.len(), count, "no {count} ports are free from {FIRST} on");
        Self { held }
    }

    /// In the order in which they were found.
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
