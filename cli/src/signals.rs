//! Signals: the first one stops new steps and records those in progress. A second one exits immediately. Both are safe.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError, mpsc};
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::report::{Console, Exit, Failure};

/// The token of this command, once a part of it wants one.
static STOP: OnceLock<CancellationToken> = OnceLock::new();

/// Whether this command runs steps that are recorded.
static HAS_STEPS: AtomicBool = AtomicBool::new(false);
/// Whether it waits for an answer, and thus runs none.
static IS_ASKING: AtomicBool = AtomicBool::new(false);

/// The time that a command without steps has to end before it is said how it ends at once.
const GRACE_PERIOD: Duration = Duration::from_secs(1);

/// SIGINT, SIGTERM and SIGHUP.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> io::Result<Self> {
        // `nohup` makes a run ignore the end of its terminal, and a handler would undo that.
        let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?;
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hangup })
    }

    async fn next(&mut self) {
        let Self { interrupt, terminate, hangup } = self;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            Some(_) = async { hangup.as_mut()?.recv().await } => {}
        }
    }
}

/// A token that the first SIGINT, SIGTERM or SIGHUP cancels. All parts of a command share it, so the message is printed once.
pub fn stop(console: Console) -> CancellationToken {
    STOP.get_or_init(|| listen(console)).clone()
}

/// The same for a command that runs steps and records them.
pub fn stop_steps(console: Console) -> CancellationToken {
    HAS_STEPS.store(true, Ordering::Relaxed);
    stop(console)
}

/// Says whether the command waits for an answer.
pub fn set_asking(is_asking: bool) {
    IS_ASKING.store(is_asking, Ordering::Relaxed);
}

/// What the first signal says at once.
fn notice(has_steps: bool, is_asking: bool) -> Option<&'static str> {
    const STEPS: &str =
        "stopping: no new step starts, and steps in progress are recorded; press Ctrl-C again to exit immediately";
    (has_steps && !is_asking).then_some(STEPS)
}

/// Whether a signal has asked this command to stop.
pub fn is_stopped() -> bool {
    STOP.get().is_some_and(CancellationToken::is_cancelled)
}

/// The failure of a command that a signal ended while it asked for approval.
pub fn stopped_at_question(again: String) -> Failure {
    Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped before the approval, so nothing was changed"))
        .hint(again)
}

fn listen(console: Console) -> CancellationToken {
    let token = CancellationToken::new();
    let Ok(mut signals) = Signals::new() else {
        console.warn("cannot handle signals: Ctrl-C exits immediately, which is also safe");
        return token;
    };
    let handler_token = token.clone();
    // The task lives as long as the runtime, and thus as the command.
    tokio::spawn(async move {
        signals.next().await;
        let notice = notice(HAS_STEPS.load(Ordering::Relaxed), IS_ASKING.load(Ordering::Relaxed));
        notice.iter().for_each(|notice| console.warn(notice));
        handler_token.cancel();
        if notice.is_none() {
            tokio::select! {
                () = tokio::time::sleep(GRACE_PERIOD) => console.warn("stopping; press Ctrl-C again to exit immediately"),
                () = signals.next() => std::process::exit(Exit::Stopped as i32),
            }
        }
        signals.next().await;
        // Started operations are in the journal, and the next run finishes them.
        std::process::exit(Exit::Stopped as i32);
    });
    token
}

/// Calls `handle` at each signal from now on, on a thread of its own: the caller may block the runtime. `true` if nothing waits
/// for [`stop`], so that `handle` has to end the process. Returns when signals no longer end the process directly.
pub fn watch(handle: fn(bool)) -> io::Result<()> {
    static IS_WATCHED: Mutex<bool> = Mutex::new(false);
    let mut is_watched = IS_WATCHED.lock().unwrap_or_else(PoisonError::into_inner);
    if *is_watched {
        return Ok(());
    }
    let (sender, ready) = mpsc::channel();
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        let watch = async {
            let (mut signals, result) = match Signals::new() {
                Ok(signals) => (Some(signals), Ok(())),
                Err(error) => (None, Err(error)),
            };
            // The caller waits for it.
            let _ = sender.send(result);
            while let Some(signals) = &mut signals {
                signals.next().await;
                handle(STOP.get().is_none());
            }
        };
        // Without a runtime, the sender is dropped.
        if let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() {
            runtime.block_on(watch);
        }
    })?;
    ready.recv().map_err(|_| io::Error::other("signals cannot be handled"))??;
    *is_watched = true;
    Ok(())
}

/// Whether SIGHUP was ignored when this process started.
pub fn ignores_hangup() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    // The lowest bit is signal 1.
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_mentioned_only_while_they_run() {
        assert!(notice(true, false).is_some_and(|notice| notice.contains("steps in progress are recorded")));
        assert_eq!([notice(true, true), notice(false, false), notice(false, true)], [None; 3]);
    }
}
