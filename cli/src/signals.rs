//! Signals: the first one stops new steps and records those in progress. A second one exits immediately. Both are safe.

use std::sync::OnceLock;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::report::{Console, Exit};

/// A token that the first SIGINT, SIGTERM or SIGHUP cancels. All parts of a command share it, so the message is printed once.
pub fn stop(console: Console) -> CancellationToken {
    static STOP: OnceLock<CancellationToken> = OnceLock::new();
    STOP.get_or_init(|| listen(console)).clone()
}

fn listen(console: Console) -> CancellationToken {
    let token = CancellationToken::new();
    // `nohup` makes a run ignore the end of its terminal, and a handler would undo that.
    let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose();
    let (Ok(mut interrupt), Ok(mut terminate), Ok(mut hangup)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()), hangup)
    else {
        console.warn("cannot handle signals: Ctrl-C exits immediately, which is also safe");
        return token;
    };
    let handler_token = token.clone();
    // The task lives as long as the runtime, and thus as the command.
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
                Some(_) = async { hangup.as_mut()?.recv().await } => {}
            }
            if first {
                console
                    .warn("stopping: no new step starts, and steps in progress are recorded; press Ctrl-C again to exit immediately");
                handler_token.cancel();
            } else {
                // Started operations are in the journal, and the next run finishes them.
                std::process::exit(Exit::Stopped as i32);
            }
        }
    });
    token
}

/// Whether SIGHUP was ignored when this process started.
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}
