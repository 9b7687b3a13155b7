//! The search for the most users that a service can bear.

use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::{Key, Load, Measured, Second, Wire, run};
use crate::clock::Clock;

/// What to search for.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct FindLimit {
    /// The load of each try, but for its users.
    pub load: Load,
    /// The longest p95 that is good enough.
    pub p95: Duration,
    /// The largest share of failed requests that is good enough.
    pub error_rate: f64,
    /// The fewest users that are tried.
    pub from: u32,
    /// The most.
    pub to: u32,
    /// How near the answer must come, as a share of it.
    pub tolerance: f64,
}

/// One try.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Probe {
    /// How many users.
    pub users: u32,
    /// Whether the service bore them.
    pub ok: bool,
    /// What was measured.
    pub measured: Measured,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Limit {
    /// The most users that were borne; `None` when even the fewest were too many.
    pub users: Option<u32>,
    /// Whether more than `to` might be borne.
    pub at_least: bool,
    /// Every try, in order.
    pub probes: Vec<Probe>,
}

/// Tries at most: doubling over 32 bits and halving again.
const MOST_PROBES: usize = 40;

/// Doubles the users until the service no longer bears them, then halves the gap. Each try is a whole run.
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
        let borne = measured.generate.count > 0
            && measured.generate.p95_ms <= search.p95.as_secs_f64() * 1000.0
            && measured.error_rate() <= search.error_rate;
        probes.push(Probe { users, ok: borne, measured });
        *(if borne { &mut good } else { &mut bad }) = Some(users);
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
