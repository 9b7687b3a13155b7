//! Limits of processes that work on what clients and models bring.

use std::io;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Standard streams, the runtime's, and the time zone.
const MAX_FILES: u64 = 16;

/// Takes from this process what it does not need. `memory` is in bytes, with the stacks of threads. Without a limit of
/// processor time, the program that started it has a deadline.
pub(crate) fn restrict(memory: u64, time: Option<Duration>) -> io::Result<()> {
    // A container that runs out of memory should lose this process rather than the server.
    if let Err(error) = std::fs::write("/proc/self/oom_score_adj", "1000") {
        tracing::debug!(%error, "the score for running out of memory could not be set");
    }
    std::env::set_current_dir("/")?;
    rustix::thread::set_no_new_privs(true)?;
    let limits = [
        (Resource::Data, Some(memory)),
        // Addresses are more than memory: the allocator reserves 64 MiB for each thread.
        (Resource::As, Some(4 * memory)),
        (Resource::Nofile, Some(MAX_FILES)),
        (Resource::Fsize, Some(0)),
        (Resource::Cpu, time.map(|time| time.as_secs())),
    ];
    for (resource, most) in limits.into_iter().filter_map(|(resource, most)| Some((resource, most?))) {
        let most = Some(getrlimit(resource).maximum.map_or(most, |known| known.min(most)));
        setrlimit(resource, Rlimit { current: most, maximum: most })?;
    }
    Ok(())
}
