//! How a replica leaves without losing a request: it says that it is going and goes on serving until those who send requests know.
//!
//! To close a kept connection is to race against whoever writes the next request on it. So the other side is made to close it: every
//! answer carries `connection: close`, `/ready` says `draining`, and a gateway drops its connections when it hears that. Only who does
//! not listen is closed at in the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::{Duration, Instant};

/// Who asked `/ready` within this time looks after this replica and is told that it goes.
const WATCHED_WITHIN: Duration = Duration::from_secs(15);

/// Nothing came for so long: whoever was told has taken it to heart.
const QUIET: Duration = Duration::from_millis(250);

/// The whole lame-duck time is at most so many times the configured one: senders that do not listen hold nobody up for ever.
const AT_MOST: u32 = 4;

/// How often the end is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// What is known of connections and requests, for the end.
pub(crate) struct Leaving {
    began: Instant,
    going: AtomicBool,
    told: AtomicBool,
    open: AtomicUsize,
    /// Milliseconds since `began`, plus one; 0: never.
    request_at: AtomicU64,
    asked_at: AtomicU64,
}

impl Default for Leaving {
    fn default() -> Self {
        Self {
            began: Instant::now(),
            going: AtomicBool::new(false),
            told: AtomicBool::new(false),
            open: AtomicUsize::new(0),
            request_at: AtomicU64::new(0),
            asked_at: AtomicU64::new(0),
        }
    }
}

/// What counts at one moment.
struct Seen {
    /// Connections of clients.
    open: usize,
    /// Somebody looks at `/ready`.
    watched: bool,
    /// Somebody has heard that we go.
    told: bool,
    since_request: Option<Duration>,
    since_begin: Duration,
}

impl Leaving {
    pub(crate) fn is_going(&self) -> bool {
        self.going.load(SeqCst)
    }

    /// A request of a client came.
    pub(crate) fn requested(&self) {
        self.request_at.store(self.now(), SeqCst);
    }

    /// Somebody asked whether requests can be sent here; `told`: and heard that it goes.
    pub(crate) fn asked(&self, told: bool) {
        self.asked_at.store(self.now(), SeqCst);
        if told {
            self.told.store(true, SeqCst);
        }
    }

    /// Counts a connection while what it gives is held.
    pub(crate) fn connected(self: &Arc<Self>) -> Connected {
        self.open.fetch_add(1, SeqCst);
        Connected(self.clone())
    }

    /// Says that it goes, and waits until nobody who listens sends anything more: at least `lame_duck` where somebody listens and has
    /// connections open, hardly at all where there are none.
    pub(crate) async fn go(&self, lame_duck: Duration, most: Duration) {
        let watched = self.since(&self.asked_at).is_some_and(|since| since < WATCHED_WITHIN);
        self.going.store(true, SeqCst);
        let begun = Instant::now();
        let most = most.min(lame_duck * AT_MOST);
        loop {
            let seen = Seen {
                open: self.open.load(SeqCst),
                watched,
                told: self.told.load(SeqCst),
                since_request: self.since(&self.request_at),
                since_begin: begun.elapsed(),
            };
            if seen.since_begin >= most || is_over(&seen, lame_duck) {
                return;
            }
            tokio::time::sleep(LOOK_EVERY).await;
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

/// Without connections nothing is lost here: a new one is refused before anything is sent on it. But while requests still come, whoever
/// sends them may have nobody else yet.
fn is_over(seen: &Seen, lame_duck: Duration) -> bool {
    let quiet = seen.since_request.is_none_or(|since| since >= QUIET);
    !seen.watched || (quiet && (seen.open == 0 || (seen.told && seen.since_begin >= lame_duck)))
}

/// One open connection.
pub(crate) struct Connected(Arc<Leaving>);

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_over_when_nobody_can_send_or_everybody_knows() {
        let ms = Duration::from_millis;
        let duck = ms(1000);
        let usual = || Seen { open: 2, watched: true, told: true, since_request: Some(ms(900)), since_begin: ms(1000) };
        for (seen, over) in [
            (usual(), true),
            (Seen { since_begin: ms(999), ..usual() }, false),
            (Seen { told: false, ..usual() }, false),
            (Seen { since_request: Some(ms(100)), ..usual() }, false),
            (Seen { since_request: None, ..usual() }, true),
            (Seen { open: 0, told: false, since_begin: ms(0), ..usual() }, true),
            (Seen { open: 0, since_request: Some(ms(100)), ..usual() }, false),
            (Seen { watched: false, told: false, since_begin: ms(0), ..usual() }, true),
        ] {
            assert_eq!(is_over(&seen, duck), over);
        }
    }

    #[tokio::test]
    async fn a_sender_that_never_listens_holds_nobody_up_for_ever() {
        let leaving = Arc::new(Leaving::default());
        let _open = leaving.connected();
        leaving.asked(false);
        leaving.go(Duration::from_millis(20), Duration::from_secs(60)).await;
        assert!(leaving.is_going() && !leaving.told.load(SeqCst));
    }
}
