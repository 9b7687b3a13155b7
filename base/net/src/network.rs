//! Networks of addresses, in CIDR notation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// An address, or a network such as `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Whether a host, as addresses and URLs write it, is this machine. An IPv4 address may be written as IPv6 has it.
pub fn is_loopback(host: &str) -> bool {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl Network {
    /// Whether the network has this address. An IPv4 address may be written as IPv6 has it (`::ffff:192.0.2.1`).
    pub fn contains(&self, address: IpAddr) -> bool {
        self.address == masked(address.to_canonical(), self.prefix)
    }

    /// Whether the network has every address of another one.
    pub fn includes(&self, other: &Network) -> bool {
        self.prefix <= other.prefix && self.address == masked(other.address, self.prefix)
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// The address with only the first bits.
fn masked(address: IpAddr, prefix: u8) -> IpAddr {
    match address {
        IpAddr::V4(address) => {
            let kept = u32::MAX.checked_shl(32_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv4Addr::from_bits(address.to_bits() & kept).into()
        }
        IpAddr::V6(address) => {
            let kept = u128::MAX.checked_shl(128_u32.saturating_sub(prefix.into())).unwrap_or(0);
            Ipv6Addr::from_bits(address.to_bits() & kept).into()
        }
    }
}

/// The IPv6 networks that one subscriber may have (RFC 6177, RIPE-690), as prefix lengths, and how much more than a /64
/// each may use. Where every subscriber has a /64 only, those beside it share the rest.
const SUBSCRIBER_NETWORKS: [(u8, u32); 3] = [(64, 1), (56, 2), (48, 4)];

/// The network that counts as one client: an IPv4 address, or the smallest network of an IPv6 subscriber.
pub fn subscriber(address: IpAddr) -> Network {
    network(address.to_canonical(), SUBSCRIBER_NETWORKS[0].0)
}

/// The networks that are limited together with an address, and the multiple of one client's limit that each may use:
/// an IPv4 address, or the networks that an IPv6 subscriber may have, the smallest first.
pub fn limited_networks(address: IpAddr) -> Vec<(Network, u32)> {
    let address = address.to_canonical();
    match address {
        IpAddr::V4(_) => vec![(subscriber(address), 1)],
        IpAddr::V6(_) => SUBSCRIBER_NETWORKS.map(|(prefix, times)| (network(address, prefix), times)).into(),
    }
}

/// The network of an address; an IPv4 address itself.
fn network(address: IpAddr, prefix: u8) -> Network {
    let prefix = if address.is_ipv4() { 32 } else { prefix };
    Network { address: masked(address, prefix), prefix }
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is neither an address nor a network such as `10.0.0.0/8`");
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix.parse::<u8>().map_err(|_| wrong())?)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        let longest = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(longest);
        if prefix > longest || masked(address, prefix) != address {
            return Err(wrong());
        }
        Ok(Network { address, prefix })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_hosts_are_those_of_this_machine_however_they_are_written() {
        for host in [
            "localhost",
            "LocalHost",
            "127.0.0.1",
            "127.1.2.3",
            "::1",
            "[::1]",
            "::ffff:127.0.0.1",
            "[::ffff:127.0.0.1]",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in ["", "localhost.example.com", "10.0.0.1", "::2", "[::1", "127.0.0.1.example.com"] {
            assert!(!is_loopback(host), "{host}");
        }
    }

    #[test]
    fn networks_have_their_addresses_in_either_notation() {
        for (text, address, contains) in [
            ("10.0.0.0/8", "10.255.0.1", true),
            ("10.0.0.0/8", "::ffff:10.1.2.3", true),
            ("10.0.0.0/8", "11.0.0.0", false),
            ("10.0.0.0/8", "::a00:1", false),
            ("0.0.0.0/0", "1.2.3.4", true),
            ("192.0.2.7", "192.0.2.7", true),
            ("192.0.2.7", "192.0.2.6", false),
            ("2001:db8::/32", "2001:db8:1::1", true),
            ("::/0", "2001:db8::", true),
            ("::1", "::2", false),
        ] {
            let network: Network = text.parse().unwrap();
            assert_eq!(network.contains(address.parse().unwrap()), contains, "{text} {address}");
        }
        for (outer, inner, includes) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("0.0.0.0/0", "fd00::/8", false),
            ("::/0", "10.0.0.0/8", false),
            ("::/0", "fd00:ec2::254", true),
        ] {
            let [outer, inner] = [outer, inner].map(|text| text.parse::<Network>().unwrap());
            assert_eq!(outer.includes(&inner), includes, "{outer} {inner}");
            assert_eq!(inner.to_string().parse::<Network>(), Ok(inner));
        }
        for wrong in ["", "10.0.0.0/33", "10.0.0.1/8", "::/129", "10.0.0.0/", "host/8", "10.0.0.0/-1"] {
            assert!(wrong.parse::<Network>().unwrap_err().contains(wrong));
        }
    }
}
