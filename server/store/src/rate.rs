//! Rate limits by the generic cell rate algorithm: one number per subject, the *arrival* time up to which the rate is
//! used up.
//!
//! A whole period's units may be taken at once; after that they return evenly. Pure: the clock and the number are
//! arguments.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// A count per period: `1000/hour`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Rate {
    /// How many.
    pub count: u64,
    /// In how long.
    pub per: Duration,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("is not a rate: `{text}`; write it like `1000/hour` (per second, minute, hour or day)");
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

impl Rate {
    /// Milliseconds until one unit is back.
    pub(crate) fn each_ms(self) -> f64 {
        self.per.as_secs_f64() * 1000.0 / self.count as f64
    }
}

impl TryFrom<String> for Rate {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> Self {
        rate.to_string()
    }
}

/// The result of taking units.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Taken {
    /// They were there.
    Yes {
        /// The new arrival time to store.
        arrival_ms: f64,
        /// The remaining units.
        left: Left,
    },
    /// They are not there yet.
    NotYet {
        /// How long until they are.
        retry_ms: f64,
        /// The remaining units.
        left: Left,
    },
    /// More than the rate ever allows.
    Never,
}

/// The remaining units of a rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Left {
    /// Units in all.
    pub limit: u64,
    /// Units left now.
    pub remaining: u64,
    /// Milliseconds until all of them are back.
    pub reset_ms: f64,
}

/// Takes `units` at `now_ms`.
pub fn take(rate: Rate, arrival_ms: f64, units: u64, now_ms: f64) -> Taken {
    let period = rate.per.as_secs_f64() * 1000.0;
    let each = rate.each_ms();
    // At most one period ahead: a clock that was set back must not lock clients out.
    let from = arrival_ms.clamp(now_ms, now_ms + period);
    let left = |arrival: f64| Left {
        limit: rate.count,
        remaining: ((period - (arrival - now_ms)) / each + 1e-6).floor().max(0.0) as u64,
        reset_ms: arrival - now_ms,
    };
    if units > rate.count {
        return Taken::Never;
    }
    let to = from + each * units as f64;
    let over = to - now_ms - period;
    // A thousandth of a unit of slack for sums of fractions.
    if over > each * 1e-3 {
        Taken::NotYet { retry_ms: over, left: left(from) }
    } else {
        Taken::Yes { arrival_ms: to, left: left(to) }
    }
}

/// Returns units that were taken and not used.
pub fn give_back(rate: Rate, arrival_ms: f64, units: u64) -> f64 {
    arrival_ms - rate.each_ms() * units as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_limits_are_parsed_with_their_period() {
        for text in ["1000/hour", "5/second", "60/minute", "7/day"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
        for text in ["1000", "0/hour", "-1/hour", "10/fortnight", "/hour", "1.5/hour"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
    }

    #[test]
    fn rate_limit_allows_a_full_burst_and_then_even_spacing() {
        let rate: Rate = "3/minute".parse().unwrap();
        let (mut arrival, now) = (0.0, 1_000_000.0);
        for remaining in [2, 1, 0] {
            let Taken::Yes { arrival_ms, left } = take(rate, arrival, 1, now) else { panic!("refused") };
            assert_eq!(left.remaining, remaining);
            arrival = arrival_ms;
        }
        let Taken::NotYet { retry_ms, left } = take(rate, arrival, 1, now) else { panic!("given") };
        assert_eq!((retry_ms, left.remaining, left.limit), (20_000.0, 0, 3));
        assert!(matches!(take(rate, arrival, 1, now + 20_000.0), Taken::Yes { .. }));
        assert!(matches!(take(rate, arrival, 2, now + 20_000.0), Taken::NotYet { .. }));
    }

    #[test]
    fn returned_tokens_can_be_taken_again_up_to_the_limit() {
        let rate: Rate = "100/hour".parse().unwrap();
        let Taken::Yes { arrival_ms, .. } = take(rate, 0.0, 100, 0.0) else { panic!("refused") };
        assert!(matches!(take(rate, arrival_ms, 1, 0.0), Taken::NotYet { .. }));
        let arrival = give_back(rate, arrival_ms, 40);
        assert!(matches!(take(rate, arrival, 40, 0.0), Taken::Yes { .. }));
        assert_eq!(take(rate, 0.0, 101, 0.0), Taken::Never);
    }

    #[test]
    fn clock_set_back_blocks_for_at_most_one_period() {
        let rate: Rate = "1/second".parse().unwrap();
        let Taken::NotYet { retry_ms, .. } = take(rate, 1e12, 1, 1000.0) else { panic!("given") };
        assert_eq!(retry_ms, 1000.0);
    }
}
