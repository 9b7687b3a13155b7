//! Values with units: sizes and durations.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

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
            _ => return Err(format!("is not a size: `{text}`; write it like `10MB` or `4GiB`")),
        };
        let bytes = number
            .parse::<f64>()
            .ok()
            .map(|n| n * factor as f64)
            .filter(|n| n.is_finite() && (0.0..=9e18).contains(n))
            .ok_or_else(|| format!("is not a size: `{text}`; write it like `10MB` or `4GiB`"))?;
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
            _ => return Err(format!("is not a duration: `{text}`; write it like `300`, `30s`, `5m` or `1h`")),
        };
        let span = number
            .parse::<f64>()
            .ok()
            .map(|n| n * seconds)
            .filter(|n| (0.001..=315_360_000.0).contains(n))
            .ok_or_else(|| format!("is not a duration: `{text}`; write it like `300`, `30s`, `5m` or `1h`"))?;
        Ok(Self(Duration::from_secs_f64(span)))
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
    fn config_sizes_and_durations_are_parsed_with_their_units() {
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
    }
}
