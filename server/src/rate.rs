//! Rates, by the generic cell rate algorithm: one number per subject, the *arrival* time up to which the rate is used up.
//!
//! A whole period's worth may come at once; after that units come back evenly. Pure: the clock and the number are arguments.

use crate::config::Rate;

/// What became of a request for units.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Taken {
    /// They were there.
    Yes {
        /// What to remember.
        arrival_ms: f64,
        /// What is left.
        left: Left,
    },
    /// They are not there yet.
    NotYet {
        /// How long until they are.
        retry_ms: f64,
        /// What is left.
        left: Left,
    },
    /// More than the rate ever gives.
    Never,
}

/// What is left of a rate.
#[derive(Debug, Clone, Copy, PartialEq)]
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
    let each = period / rate.count as f64;
    // Nobody can be ahead by more than a period: a clock that was set back must not lock anyone out.
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

/// Gives units back that were taken and not used.
pub fn give_back(rate: Rate, arrival_ms: f64, units: u64) -> f64 {
    arrival_ms - rate.per.as_secs_f64() * 1000.0 / rate.count as f64 * units as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_a_whole_period_at_once_and_then_evenly() {
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
    fn what_is_given_back_can_be_taken_again_and_more_than_all_is_never_there() {
        let rate: Rate = "100/hour".parse().unwrap();
        let Taken::Yes { arrival_ms, .. } = take(rate, 0.0, 100, 0.0) else { panic!("refused") };
        assert!(matches!(take(rate, arrival_ms, 1, 0.0), Taken::NotYet { .. }));
        let arrival = give_back(rate, arrival_ms, 40);
        assert!(matches!(take(rate, arrival, 40, 0.0), Taken::Yes { .. }));
        assert_eq!(take(rate, 0.0, 101, 0.0), Taken::Never);
    }

    #[test]
    fn a_clock_set_back_locks_nobody_out_for_longer_than_a_period() {
        let rate: Rate = "1/second".parse().unwrap();
        let Taken::NotYet { retry_ms, .. } = take(rate, 1e12, 1, 1000.0) else { panic!("given") };
        assert_eq!(retry_ms, 1000.0);
    }
}
