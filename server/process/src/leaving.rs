//! Graceful shutdown of a replica: it reports that it is draining and keeps serving until clients have noticed.
//!
//! Closing an idle connection races with the client's next request on it. So the client is made to close it: every
//! answer carries `connection: close`, `/ready` says `draining`, and a gateway then drops its connections. Only
//! connections of other clients are closed at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// A client that requested `/ready` within this time monitors this replica and will see that it drains.
const READY_WATCH_WINDOW: Duration = Duration::from_secs(15);

/// After this time without requests, all informed clients have stopped.
const QUIET: Duration = Duration::from_millis(250);

/// Maximum duration of the lame-duck phase, as a multiple of the configured one: clients that do not react must not
/// delay it forever.
const AT_MOST: u32 = 4;

/// How often the end is looked for.
const POLL_INTERVAL: Duration = Duration::from_millis(10);

/// Counters of connections and requests, for the shutdown.
pub struct Leaving {
    began: Instant,
    going: AtomicBool,
    told: AtomicBool,
    open: AtomicUsize,
    /// Milliseconds since `began`, plus one; 0: never.
    request_at: AtomicU64,
    ready_polled_at: AtomicU64,
}

impl Default for Leaving {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            going: AtomicBool::new(false),
            told: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            request_at: AtomicU64::new(0),
            ready_polled_at: AtomicU64::new(0),
        }
    }
}

/// A snapshot of the counters.
struct CounterSnapshot {
    /// Connections of clients.
    open: usize,
    /// A client monitors `/ready`.
    watched: bool,
    /// A client has seen that the replica drains.
    told: bool,
    since_request: Option<Duration>,
    since_begin: Duration,
}

impl Leaving {
    /// Whether the process drains.
    pub fn is_going(&self) -> bool {
        self.going.load(SeqCst)
    }

    /// Records a client's request.
    pub fn requested(&self) {
        self.request_at.store(self.now(), SeqCst);
    }

    /// Records a readiness check; `told`: its answer said that the replica drains.
    pub fn asked(&self, told: bool) {
        self.ready_polled_at.store(self.now(), SeqCst);
        if told {
            self.told.store(true, SeqCst);
        }
    }

    /// Counts a connection until the returned guard is dropped.
    pub fn connected(self: &Arc<Self>) -> Connected {
        self.open.fetch_add(1, SeqCst);
        Connected(self.clone())
    }

    /// Reports draining, and waits until informed clients stop sending: at least `lame_duck` with a monitoring client
    /// and open connections, hardly at all without connections.
    pub async fn go(&self, lame_duck: Duration, most: Duration) {
        let watched = self.since(&self.ready_polled_at).is_some_and(|since| since < READY_WATCH_WINDOW);
        self.going.store(true, SeqCst);
        let started = Instant::now();
        let most = most.min(lame_duck * AT_MOST);
        loop {
            let seen = CounterSnapshot {
                open: self.open.load(SeqCst),
                watched,
                told: self.told.load(SeqCst),
                since_request: self.since(&self.request_at),
                since_begin: started.elapsed(),
            };
            if seen.since_begin >= most || is_over(&seen, lame_duck) {
                return;
            }
            tokio::time::sleep(POLL_INTERVAL).await;
        }
    }

    fn now(&self) -> u64 {
        self.began.elapsed().as_millis() as u64 + 1
    }

    fn since(&self, at: &AtomicU64) -> Option<Duration> {
        let at = at.load(SeqCst);
        (at > 0).then(|| Duration::from_millis(self.now().saturating_sub(at)))
    }
}

/// Without connections nothing is lost: new ones are refused before a request is sent. But while requests still come,
/// their clients may not know another replica yet.
fn is_over(seen: &CounterSnapshot, lame_duck: Duration) -> bool {
    let quiet = seen.since_request.is_none_or(|since| since >= QUIET);
    !seen.watched || (quiet && (seen.open == 0 || (seen.told && seen.since_begin >= lame_duck)))
}

/// One open connection.
pub struct Connected(Arc<Leaving>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_ends_when_no_client_can_send_or_all_were_notified() {
        let ms = Duration::from_millis;
        let duck = ms(1000);
        let usual = || CounterSnapshot {
            open: 2,
            watched: true,
            told: true,
            since_request: Some(ms(900)),
            since_begin: ms(1000),
        };
        for (seen, over) in [
            (usual(), true),
            (CounterSnapshot { since_begin: ms(999), ..usual() }, false),
            (CounterSnapshot { told: false, ..usual() }, false),
            (CounterSnapshot { since_request: Some(ms(100)), ..usual() }, false),
            (CounterSnapshot { since_request: None, ..usual() }, true),
            (CounterSnapshot { open: 0, told: false, since_begin: ms(0), ..usual() }, true),
            (CounterSnapshot { open: 0, since_request: Some(ms(100)), ..usual() }, false),
            (CounterSnapshot { watched: false, told: false, since_begin: ms(0), ..usual() }, true),
        ] {
            assert_eq!(is_over(&seen, duck), over);
        }
    }

    #[tokio::test]
    async fn client_that_ignores_draining_does_not_block_shutdown() {
        let leaving = Arc::new(Leaving::default());
        let _open = leaving.connected();
        leaving.asked(false);
        leaving.go(Duration::from_millis(20), Duration::from_secs(60)).await;
        assert!(leaving.is_going() && !leaving.told.load(SeqCst));
    }
}
