//! Ranges of IPv4 addresses.

use std::fmt;
use std::net::Ipv4Addr;

/// An IPv4 range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    first: u32,
    bits: u32,
}

impl Range {
    /// Reads `ADDRESS/BITS`.
    pub fn read(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (first, bits) = (u32::from(address.parse::<Ipv4Addr>().ok()?), bits.parse::<u32>().ok()?);
        (bits <= 32).then_some(Self { first, bits })
    }

    /// Reads the range of a network; an error is its cause and fix. `network` says what has to fit into it: `a VPC with six subnets`.
    pub fn private(text: &str, network: &str) -> Result<Self, (String, &'static str)> {
        let fix = "write one such as `10.42.0.0/16`, from /16 to /24";
        let shown: String = text.chars().take(40).collect();
        let Some(range) = Self::read(text) else {
            return Err((format!("`{shown}` is not an address range"), fix));
        };
        if !(16..=24).contains(&range.bits) {
            return Err((format!("`{shown}` has the wrong size for {network}"), fix));
        }
        if range.first.trailing_zeros() < 32 - range.bits {
            return Err((format!("`{shown}` has bits behind its prefix"), "write the first address of the range"));
        }
        // RFC 1918.
        let private =
            [(Ipv4Addr::new(10, 0, 0, 0), 8), (Ipv4Addr::new(172, 16, 0, 0), 12), (Ipv4Addr::new(192, 168, 0, 0), 16)];
        let is_in = |(outer, bits): (Ipv4Addr, u32)| range.first >> (32 - bits) == u32::from(outer) >> (32 - bits);
        if !private.into_iter().any(is_in) {
            let fix = "use a range in 10.0.0.0/8, 172.16.0.0/12 or 192.168.0.0/16 (RFC 1918)";
            return Err((format!("`{shown}` has public addresses"), fix));
        }
        Ok(range)
    }

    /// One of its parts, whose prefixes are `longer` bits longer.
    #[must_use]
    pub fn part(self, longer: u32, place: usize) -> Self {
        let (bits, place) = (self.bits + longer, u32::try_from(place).unwrap_or_default());
        Self { first: self.first + (place << (32 - bits)), bits }
    }

    /// Whether the two have addresses in common.
    pub fn overlaps(self, other: Self) -> bool {
        u64::from(self.first) < other.end() && u64::from(other.first) < self.end()
    }

    /// How many addresses it has.
    #[must_use]
    pub fn addresses(self) -> u64 {
        1 << (32 - self.bits)
    }

    fn end(self) -> u64 {
        u64::from(self.first) + self.addresses()
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.first), self.bits)
    }
}

#[cfg(test)]
mod tests {
    use super::Range;

    fn private(text: &str) -> Option<Range> {
        Range::private(text, "a network").ok()
    }

    /// Four eighths and four sixteenths, as a network of several zones has them.
    #[test]
    fn a_range_is_divided_without_overlaps() {
        for (text, eighths, sixteenths) in [
            ("10.42.0.0/16", ["10.42.0.0/19", "10.42.64.0/19"], ["10.42.128.0/20", "10.42.160.0/20"]),
            ("192.168.7.0/24", ["192.168.7.0/27", "192.168.7.64/27"], ["192.168.7.128/28", "192.168.7.160/28"]),
        ] {
            let range = private(text).unwrap();
            assert_eq!([0, 2].map(|zone| range.part(3, zone).to_string()), eighths);
            assert_eq!([0, 2].map(|zone| range.part(4, 8 + zone).to_string()), sixteenths);
            let mut parts: Vec<Range> =
                (0..4).flat_map(|zone| [range.part(3, zone), range.part(4, 8 + zone)]).collect();
            parts.sort_by_key(|part| part.first);
            assert!(parts.windows(2).all(|pair| !pair[0].overlaps(pair[1])), "{parts:?}");
            assert!(parts.iter().all(|part| part.overlaps(range) && part.end() <= range.end()), "{parts:?}");
        }
    }

    #[test]
    fn a_range_is_private_and_large_enough() {
        for bad in
            ["", "10.0.0.0", "10.0.0.0/8", "10.0.0.0/25", "10.0.1.0/16", "8.8.0.0/16", "172.32.0.0/16", "10.0.0.0/99"]
        {
            assert!(private(bad).is_none(), "{bad}");
        }
        for good in ["10.0.0.0/16", "172.31.0.0/20", "192.168.255.0/24"] {
            assert!(private(good).is_some(), "{good}");
        }
    }
}
