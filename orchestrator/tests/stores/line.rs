//! What lies between one operator's process and everything that it calls: pauses, kills, partitions, slow and lost requests, each at a
//! numbered boundary; and a referee who sees every request arrive.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use serde::Deserialize;
use textnlp_orchestrator::clock::{BackgroundTask, Clock, VirtualClock};

use crate::bucket::Wrong;

/// What happens to a process at a boundary.
#[derive(Debug, Clone, Copy)]
pub enum Happening {
    /// Its machine stands still for this many seconds.
    Pause(u64),
    /// It is killed.
    Kill,
    /// For this many seconds nothing of it reaches the store.
    StoreAway(u64),
    /// For this many seconds nothing of it reaches the provider.
    CloudAway(u64),
    /// Its next request to the store goes wrong.
    Store(Wrong),
    /// Its next request to anybody takes this many seconds.
    Slow(u64),
}

/// How long after its lease is over a holder's call may still be sent: the grace that its successor waits, by a clock that runs too fast.
const GRACE: Duration = Duration::from_millis(9500);

/// One process's line.
#[derive(Clone)]
pub struct Line {
    clock: VirtualClock,
    referee: Referee,
    end: Arc<Mutex<End>>,
    pub paused: Arc<AtomicBool>,
    pub dead: Arc<AtomicBool>,
}

/// Where a line begins.
struct End {
    crossed: u64,
    script: BTreeMap<u64, Vec<Happening>>,
    store_away: Duration,
    cloud_away: Duration,
    wrong: Option<Wrong>,
    slow: Duration,
    /// The lock that this process has or had last.
    fence: u64,
    pauses: Vec<BackgroundTask>,
}

impl Line {
    pub fn new(clock: &VirtualClock, referee: &Referee, script: BTreeMap<u64, Vec<Happening>>) -> Self {
        let (zero, pauses) = (Duration::ZERO, Vec::new());
        let end =
            End { crossed: 0, script, store_away: zero, cloud_away: zero, wrong: None, slow: zero, fence: 0, pauses };
        let (clock, referee, end) = (clock.clone(), referee.clone(), Arc::new(Mutex::new(end)));
        Self { clock, referee, end, paused: Arc::default(), dead: Arc::default() }
    }

    /// A request to the store sets out; says what goes wrong with it.
    pub async fn asks(&self) -> Option<Wrong> {
        self.cross().await;
        self.takes(20).await;
        let (away, wrong) = {
            let mut end = self.end();
            (end.store_away, end.wrong.take())
        };
        if self.clock.steady() < away { Some(Wrong::Silence) } else { wrong }
    }

    /// The store has written this for us.
    pub fn wrote(&self, name: &str, bytes: &[u8]) {
        if let Some(fence) = self.referee.wrote(name, bytes, self.clock.steady()) {
            self.end().fence = fence;
        }
    }

    /// An answer comes back.
    pub async fn answers(&self) {
        self.takes(10).await;
        self.cross().await;
    }

    /// Makes a call of the provider. Once it is sent it arrives, whatever becomes of its caller.
    pub async fn calls<T: Send + 'static>(&self, call: BoxFuture<'static, T>) -> T {
        self.cross().await;
        self.takes(50).await;
        if self.clock.steady() < self.end().cloud_away {
            std::future::pending::<()>().await;
        }
        let fence = self.end().fence;
        self.referee.sent(fence, self.clock.steady());
        let (sender, answer) = futures::channel::oneshot::channel();
        let (referee, way) = (self.referee.clone(), self.takes(200));
        self.referee.on_its_way(self.clock.spawn(Box::pin(async move {
            way.await;
            referee.arrived(fence);
            // Whoever asked may be gone.
            let _ = sender.send(call.await);
        })));
        let answer = answer.await.expect("what is on its way arrives");
        self.answers().await;
        answer
    }

    /// A list of the provider sets out; says whether it gets there.
    pub async fn looks(&self) -> bool {
        self.cross().await;
        self.takes(50).await;
        let away = self.end().cloud_away;
        if self.clock.steady() < away {
            self.clock.sleep(Duration::from_secs(10)).await;
        }
        self.clock.steady() >= away
    }

    /// Some of these milliseconds, and what makes it slower.
    fn takes(&self, most: u64) -> BoxFuture<'static, ()> {
        let mut end = self.end();
        let some = Duration::from_millis(1 + (end.crossed * 7919) % most);
        self.clock.sleep(some + std::mem::take(&mut end.slow))
    }

    /// Crosses a boundary: whatever is to happen there happens.
    async fn cross(&self) {
        let happens = {
            let mut end = self.end();
            end.crossed += 1;
            let at = end.crossed;
            end.script.remove(&at).unwrap_or_default()
        };
        for happening in happens {
            let until = |seconds| self.clock.steady() + Duration::from_secs(seconds);
            match happening {
                Happening::Pause(seconds) => self.pause(Duration::from_secs(seconds)).await,
                Happening::Kill => {
                    self.dead.store(true, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                Happening::StoreAway(seconds) => self.end().store_away = until(seconds),
                Happening::CloudAway(seconds) => self.end().cloud_away = until(seconds),
                Happening::Store(wrong) => self.end().wrong = Some(wrong),
                Happening::Slow(seconds) => self.end().slow = Duration::from_secs(seconds),
            }
        }
    }

    async fn pause(&self, time: Duration) {
        self.paused.store(true, Ordering::SeqCst);
        let (clock, paused) = (self.clock.clone(), self.paused.clone());
        let wakes = self.clock.spawn(Box::pin(async move {
            clock.sleep(time).await;
            paused.store(false, Ordering::SeqCst);
            // So that whoever stood still is looked at again.
            clock.sleep(Duration::from_micros(1)).await;
        }));
        self.end().pauses.push(wakes);
        self.clock.sleep(time).await;
    }

    fn end(&self) -> MutexGuard<'_, End> {
        self.end.lock().unwrap()
    }
}

/// Sees what every process writes and calls, in the order in which it arrives.
#[derive(Clone, Default)]
pub struct Referee(Arc<Mutex<Seen>>);

#[derive(Default)]
struct Seen {
    /// When each lock was given out, by its number.
    given: BTreeMap<u64, Duration>,
    /// The highest lock under which the provider was called.
    called: u64,
    /// Under which lock each journal and document was written last.
    written: BTreeMap<String, u64>,
    on_their_way: Vec<BackgroundTask>,
}

#[derive(Deserialize)]
struct Fenced {
    fence: u64,
}

impl Referee {
    /// The number of the lock, if one was given out with this.
    fn wrote(&self, name: &str, bytes: &[u8], now: Duration) -> Option<u64> {
        let fence = |json: &[u8]| serde_json::from_slice::<Fenced>(json).expect("it says under which lock").fence;
        let mut seen = self.seen();
        let (what, fence) = if name.ends_with("lease.json") {
            let fence = fence(bytes);
            assert!(
                seen.given.keys().next_back().is_none_or(|last| *last <= fence),
                "lock {fence} was given out again"
            );
            seen.given.entry(fence).or_insert(now);
            return Some(fence);
        } else if let Some((journal, _)) = name.split_once("/batches/") {
            (journal, fence(bytes.split(|byte| *byte == b'\n').next().unwrap_or_default()))
        } else if name.contains("/segments/") {
            return None;
        } else {
            let stamp = bytes.strip_prefix(b"fence ").and_then(|rest| rest.split(|byte| *byte == b'\n').next());
            let stamp = stamp.and_then(|stamp| std::str::from_utf8(stamp).ok()?.parse().ok());
            (name, stamp.expect("a document says under which lock it was written"))
        };
        let last = seen.written.insert(what.to_owned(), fence).unwrap_or_default();
        assert!(last <= fence, "{what} was written under lock {fence} after it had been under lock {last}");
        None
    }

    fn sent(&self, fence: u64, now: Duration) {
        let mut seen = self.seen();
        let over = seen.given.range(fence + 1..).next().map(|(next, since)| (*next, *since));
        if let Some((next, since)) = over {
            let late = now.saturating_sub(since);
            assert!(late < GRACE, "a call was sent under lock {fence}, {late:?} after lock {next} had been given out");
        }
        seen.called = seen.called.max(fence);
    }

    fn arrived(&self, fence: u64) {
        let called = self.seen().called;
        assert!(called <= fence, "a call under lock {fence} arrived after one had been sent under lock {called}");
    }

    fn on_its_way(&self, call: BackgroundTask) {
        self.seen().on_their_way.push(call);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap()
    }
}

/// Does this until it ends or its process is killed.
pub async fn until_dead<T>(dead: Arc<AtomicBool>, work: impl Future<Output = T>) -> Option<T> {
    let mut work = Box::pin(work);
    std::future::poll_fn(|cx| {
        if dead.load(Ordering::SeqCst) {
            return std::task::Poll::Ready(None);
        }
        let done = work.poll_unpin(cx).map(Some);
        // It may have been killed just now; then nobody wakes whoever waits for it.
        if dead.load(Ordering::SeqCst) { std::task::Poll::Ready(None) } else { done }
    })
    .await
}
