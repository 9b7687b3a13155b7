//! The search for the most users that a service sustains.

use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Key, Load, Measured, Second, Wire, run};
use crate::clock::Clock;

/// The parameters of the search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FindLimit {
    /// The load of each probe, except for its users.
    pub load: Load,
    /// The largest acceptable p95.
    pub p95: Duration,
    /// The largest acceptable share of failed requests, from 0 to 1.
    pub error_rate: f64,
    /// The fewest users to probe.
    pub from: u32,
    /// The most users to probe.
    pub to: u32,
    /// The tolerance of the result, as a share of it.
    pub tolerance: f64,
}

/// One probe.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// The count of users.
    pub users: u32,
    /// Whether the service sustained them.
    pub ok: bool,
    /// The measurements.
    pub measured: Measured,
}

/// The result of the search.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// The most sustained users; `None` if even the fewest were too many.
    pub users: Option<u32>,
    /// Whether more than `to` might be sustained.
    pub at_least: bool,
    /// Every probe, in order.
    pub probes: Vec<Probe>,
}

/// The most probes: doubling over 32 bits, then bisection.
const MOST_PROBES: usize = 40;

/// Doubles the users until the service no longer sustains them, then bisects. Each probe is a whole run.
pub async fn find_limit(
    wire: &dyn Wire,
    key: Option<&Key>,
    search: &FindLimit,
    clock: &dyn Clock,
    stop: &CancellationToken,
    each_second: &mut (dyn FnMut(u32, &Second) + Send),
) -> Limit {
    let mut probes: Vec<Probe> = Vec::new();
    let (mut good, mut bad): (Option<u32>, Option<u32>) = (None, None);
    let to = search.to.max(1);
    let mut users = search.from.clamp(1, to);
    while probes.len() < MOST_PROBES && !stop.is_cancelled() {
        let load = Load { users, ..search.load.clone() };
        let measured = run(wire, key, &load, clock, stop, &mut |second| each_second(users, second)).await;
        if measured.stopped {
            break;
        }
        let passed = measured.generate.count > 0
            && measured.generate.p95_ms <= search.p95.as_secs_f64() * 1000.0
            && measured.error_rate() <= search.error_rate;
        probes.push(Probe { users, ok: passed, measured });
        *(if passed { &mut good } else { &mut bad }) = Some(users);
        users = match (good, bad) {
            (Some(good), None) if good >= to => break,
            (Some(good), None) => good.saturating_mul(2).min(to),
            (None, Some(1)) => break,
            (None, Some(bad)) => bad / 2,
            (Some(good), Some(bad)) => {
                let near = (f64::from(good) * search.tolerance.clamp(0.0, 1.0)).floor().max(1.0) as u32;
                if bad - good <= near {
                    break;
                }
                good + (bad - good) / 2
            }
            (None, None) => break,
        };
    }
    Limit { users: good, at_least: bad.is_none() && good.is_some(), probes }
}
