//! Milliseconds that also pass while the machine sleeps: a lease must have ended when it wakes up.

use rustix::time::{ClockId, clock_gettime};
use textnlp_control::Millis;

/// Milliseconds since boot.
pub(crate) fn now() -> Millis {
    let time = clock_gettime(ClockId::Boottime);
    time.tv_sec as u64 * 1000 + time.tv_nsec as u64 / 1_000_000
}
