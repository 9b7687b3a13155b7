//! Values with units: sizes, durations, rates, addresses.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use camino::Utf8PathBuf;

/// A number of bytes: `10MB` (1,000,000 each), `4GiB` (1,073,741,824 each), `512` (bytes).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let factor: u64 = match unit.to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "kb" => 1_000,
            "mb" => 1_000_000,
            "gb" => 1_000_000_000,
            "tb" => 1_000_000_000_000,
            "kib" => 1 << 10,
            "mib" => 1 << 20,
            "gib" => 1 << 30,
            "tib" => 1 << 40,
            _ => return Err(format!("is no size: `{text}`; write it like `10MB` or `4GiB`")),
        };
        let bytes = number
            .parse::<f64>()
            .ok()
            .map(|n| n * factor as f64)
            .filter(|n| n.is_finite() && (0.0..=9e18).contains(n))
            .ok_or_else(|| format!("is no size: `{text}`; write it like `10MB` or `4GiB`"))?;
        Ok(Self(bytes as u64))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, size) in [("GB", 1_000_000_000), ("MB", 1_000_000), ("kB", 1_000)] {
            if self.0 >= size {
                return write!(f, "{} {unit}", (self.0 as f64 / size as f64 * 10.0).round() / 10.0);
            }
        }
        write!(f, "{} bytes", self.0)
    }
}

/// A span of time: `300` (seconds), `500ms`, `30s`, `5m`, `1h`, `2d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (number, unit) = split(text);
        let seconds = match unit.to_ascii_lowercase().as_str() {
            "ms" => 0.001,
            "" | "s" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            "d" => 86_400.0,
            _ => return Err(format!("is no duration: `{text}`; write it like `300`, `30s`, `5m` or `1h`")),
        };
        let span = number
            .parse::<f64>()
            .ok()
            .map(|n| n * seconds)
            .filter(|n| (0.001..=315_360_000.0).contains(n))
            .ok_or_else(|| format!("is no duration: `{text}`; write it like `300`, `30s`, `5m` or `1h`"))?;
        Ok(Self(Duration::from_secs_f64(span)))
    }
}

/// So many in so long: `1000/hour`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many.
    pub count: u64,
    /// In how long.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("is no rate: `{text}`; write it like `1000/hour` (per second, minute, hour or day)");
        let (count, per) = text.split_once('/').ok_or_else(wrong)?;
        let per = match per.trim().to_ascii_lowercase().as_str() {
            "s" | "sec" | "second" => 1,
            "m" | "min" | "minute" => 60,
            "h" | "hour" => 3600,
            "d" | "day" => 86_400,
            _ => return Err(wrong()),
        };
        let count: u64 = count.trim().replace('_', "").parse().map_err(|_| wrong())?;
        if !(1..=1_000_000_000_000).contains(&count) {
            return Err(wrong());
        }
        Ok(Self { count, per: Duration::from_secs(per) })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let per = match self.per.as_secs() {
            1 => "second",
            60 => "minute",
            3600 => "hour",
            _ => "day",
        };
        write!(f, "{}/{per}", self.count)
    }
}

/// Where a listener listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A TCP address, `host:port`; port 0 takes a free one.
    Tcp(String),
    /// A Unix socket, `unix:/path`.
    Unix(Utf8PathBuf),
}

impl FromStr for Address {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            // The kernel's sockaddr_un holds 108 bytes with the closing zero.
            if path.is_empty() || path.len() > 107 {
                return Err(format!("names a socket path of {} bytes; a path has 1 to 107 bytes", path.len()));
            }
            return Ok(Self::Unix(path.into()));
        }
        match text.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(Self::Tcp(text.to_owned())),
            _ => Err(format!("is no address: `{text}`; write `unix:/path/to.sock` or `127.0.0.1:8080`")),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => f.write_str(address),
            Self::Unix(path) => write!(f, "unix:{path}"),
        }
    }
}

fn split(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    (&text[..end], text[end..].trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_durations_and_rates_are_read_with_their_units() {
        for (text, want) in
            [("10MB", Some(10_000_000)), ("4 GiB", Some(4 << 30)), ("512", Some(512)), ("1.5kB", Some(1500))]
        {
            assert_eq!(text.parse::<ByteSize>().ok().map(|s| s.0), want, "{text}");
        }
        for text in ["10 parsecs", "-1MB", "MB", "", "1e400MB"] {
            assert!(text.parse::<ByteSize>().is_err(), "{text}");
        }
        for (text, want) in [("300", 300_000), ("500ms", 500), ("5m", 300_000), ("1h", 3_600_000)] {
            assert_eq!(text.parse::<Span>().unwrap().0.as_millis(), want, "{text}");
        }
        for text in ["0", "5 fortnights", "-3s", "nan"] {
            assert!(text.parse::<Span>().is_err(), "{text}");
        }
        for text in ["1000/hour", "5/second", "60/minute", "7/day"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["1000", "0/hour", "-1/hour", "10/fortnight", "/hour", "1.5/hour"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn addresses_are_unix_paths_or_host_and_port() {
        assert_eq!("unix:/a b/c.sock".parse(), Ok(Address::Unix("/a b/c.sock".into())));
        assert_eq!("127.0.0.1:0".parse(), Ok(Address::Tcp("127.0.0.1:0".into())));
        assert_eq!("[::1]:80".parse(), Ok(Address::Tcp("[::1]:80".into())));
        for text in ["unix:", "localhost", "localhost:99999", ":80", &format!("unix:/{}", "x".repeat(200))] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
