//! Stop means: start nothing new, record what is in flight, leave. A second signal leaves at once; both are safe.

use std::sync::OnceLock;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::report::{Console, Exit};

/// A token that the first SIGINT or SIGTERM cancels; the same one for every part of a command, so that it is said once.
pub fn stop(console: Console) -> CancellationToken {
    static STOP: OnceLock<CancellationToken> = OnceLock::new();
    STOP.get_or_init(|| listen(console)).clone()
}

fn listen(console: Console) -> CancellationToken {
    let token = CancellationToken::new();
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        console.warn("signals cannot be caught here: Ctrl-C leaves at once, which is safe too");
        return token;
    };
    let told = token.clone();
    // Lives as long as the runtime, which is as long as the command.
    tokio::spawn(async move {
        for first in [true, false] {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if first {
                console
                    .warn("stopping: nothing new is started, what is in flight is recorded; once more leaves at once");
                told.cancel();
            } else {
                // What was begun is in the journal; the next run finishes it.
                std::process::exit(Exit::Stopped as i32);
            }
        }
    });
    token
}
