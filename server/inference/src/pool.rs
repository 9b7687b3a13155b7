//! The compute pool: a few threads that share short pieces of work, hundreds of times for each token.
//!
//! The caller is a member. Pieces are claimed one by one from a counter, so that a member without a core (another
//! process uses it) costs nothing: the others do its share, and a member without a claim is not waited for. Members
//! spin for a bounded time between regions, then sleep; an idle pool uses no CPU.
//!
//! One case remains slow: a helper loses its core in the middle of a piece, and the caller must wait for milliseconds.
//! When that happens the caller works alone for a while, so that a machine with a busy neighbour keeps the speed of one
//! thread.

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a helper looks for the next region before it sleeps. Regions of one step follow within microseconds; between
/// two steps the engine samples and sends, which takes some tens.
const SPIN: Duration = Duration::from_micros(60);
/// How long the caller looks for the last pieces before it sleeps, too: then a helper has lost its core.
const CALLER_SPIN: Duration = Duration::from_micros(200);

/// A wait for the last pieces that is longer than this means that a helper lost its core; shorter ones are the usual ends.
const LOST: Duration = Duration::from_micros(250);
/// Waits that add up to less than this are not worth a decision.
const WORTH_DECIDING: Duration = Duration::from_millis(1);
/// The share of the time in company that may be lost so. A second thread makes a step a third to a half shorter.
const BEARABLE: f64 = 0.35;
/// How much of the past counts.
const MEMORY: Duration = Duration::from_millis(60);
/// How long the caller then works alone: at first, and at most when it happens again and again.
const ALONE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

/// The word that members claim from: a number for the region, how many pieces it has, the next piece.
const INDEX_BITS: u32 = 20;
const INDEX: u64 = (1 << INDEX_BITS) - 1;
/// The most pieces of one region.
pub(crate) const MOST_PIECES: usize = INDEX as usize / 2;

type Work<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// A pool of threads.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
    company: Company,
}

/// Whether calling the helpers has paid of late.
struct Company {
    /// Time spent in shared regions, and how much of it in waiting for helpers that had lost their cores.
    shared: Duration,
    lost: Duration,
    /// Until when the caller works alone, and for how long it did the last time.
    alone_until: Instant,
    alone: Duration,
}

struct Shared {
    word: AtomicU64,
    done: AtomicUsize,
    /// The work of the current region. Written by the caller while no region runs, read by members that hold a claim.
    work: UnsafeCell<Option<Work<'static>>>,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
    /// Helpers asleep; they look at the word again after they have counted themselves.
    sleepers: AtomicUsize,
    caller_sleeps: AtomicBool,
    gate: Mutex<()>,
    wake: Condvar,
    finished: Condvar,
}

// SAFETY: `work` is written only while no region runs and read only with a claim on the running region; the word orders
// the two (release by the caller, acquire by the claim).
unsafe impl Sync for Shared {}
// SAFETY: as above.
unsafe impl Send for Shared {}

impl Pool {
    /// The members of a pool of `threads`.
    pub(crate) fn size(threads: usize) -> usize {
        match threads {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()),
            threads => threads.min(256),
        }
    }

    /// A pool of `threads` members, the caller included; 0 means as many as this process may use.
    pub(crate) fn new(threads: usize) -> Pool {
        let threads = Pool::size(threads);
        let shared = Arc::new(Shared {
            word: AtomicU64::new(0),
            done: AtomicUsize::new(0),
            work: UnsafeCell::new(None),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            caller_sleeps: AtomicBool::new(false),
            gate: Mutex::new(()),
            wake: Condvar::new(),
            finished: Condvar::new(),
        });
        let helpers = (1..threads)
            .map_while(|worker| {
                let shared = Arc::clone(&shared);
                // A helper that cannot be started is a smaller pool, not a failure.
                std::thread::Builder::new().name(format!("compute-{worker}")).spawn(move || shared.help(worker)).ok()
            })
            .collect();
        Pool { shared, helpers, company: Company::new(Instant::now()) }
    }

    /// How many members there are.
    pub(crate) fn threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `work(member, piece)` once for each piece and returns when all are done. A panic in a piece comes out here,
    /// after the others have ended.
    pub(crate) fn run(&mut self, pieces: usize, work: Work<'_>) {
        assert!(pieces <= MOST_PIECES, "a region has at most {MOST_PIECES} pieces");
        let started = Instant::now();
        if pieces <= 1 || self.helpers.is_empty() || started < self.company.alone_until {
            (0..pieces).for_each(|piece| work(0, piece));
            return;
        }
        let shared = &*self.shared;
        // SAFETY: the work is only called by members with a claim, and this function returns only when every claimed
        // piece is done and no piece is left to claim; no region runs now, for this function needs `&mut self`.
        unsafe { *shared.work.get() = Some(std::mem::transmute::<Work<'_>, Work<'static>>(work)) };
        shared.done.store(0, Ordering::Relaxed);
        let region = (shared.word.load(Ordering::Relaxed) >> (2 * INDEX_BITS)).wrapping_add(1);
        let word = region << (2 * INDEX_BITS) | (pieces as u64) << INDEX_BITS;
        shared.word.store(word, Ordering::SeqCst);
        // A helper counts itself before it looks at the word for the last time: one of the two sees the other.
        fence(Ordering::SeqCst);
        if shared.sleepers.load(Ordering::SeqCst) > 0 {
            let _gate = shared.gate();
            shared.wake.notify_all();
        }
        shared.take(0);
        let worked = started.elapsed();
        shared.wait_for(pieces);
        let waited = started.elapsed().saturating_sub(worked);
        self.company.judge(started + worked + waited, worked, waited);
        let panic = self.shared.panic.lock().unwrap_or_else(|e| e.into_inner()).take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Company {
    fn new(now: Instant) -> Company {
        Company { shared: Duration::ZERO, lost: Duration::ZERO, alone_until: now, alone: ALONE.0 }
    }

    /// Records the times of a region, and decides whether the next ones run on the caller alone.
    fn judge(&mut self, now: Instant, worked: Duration, waited: Duration) {
        self.shared += worked + waited;
        if waited > LOST {
            self.lost += waited;
            if self.lost > WORTH_DECIDING && self.lost > self.shared.mul_f64(BEARABLE) {
                // Again soon after the last time: longer. After a long time in company: as at first.
                let again = now.saturating_duration_since(self.alone_until) < 4 * self.alone;
                self.alone = if again { (2 * self.alone).min(ALONE.1) } else { ALONE.0 };
                self.alone_until = now + self.alone;
                (self.shared, self.lost) = (Duration::ZERO, Duration::ZERO);
            }
        }
        if self.shared > MEMORY {
            (self.shared, self.lost) = (self.shared / 2, self.lost / 2);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        {
            let _gate = self.shared.gate();
            self.shared.wake.notify_all();
        }
        for helper in self.helpers.drain(..) {
            // Panics of pieces were passed to the caller already.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Whether there is a piece to claim.
    fn open(&self) -> bool {
        let word = self.word.load(Ordering::SeqCst);
        word & INDEX < (word >> INDEX_BITS) & INDEX
    }

    /// Does pieces until none is left to claim.
    fn take(&self, worker: usize) {
        while self.open() {
            // The region may have changed since the check: only the result of the claim counts.
            let word = self.word.fetch_add(1, Ordering::AcqRel);
            let (piece, pieces) = (word & INDEX, (word >> INDEX_BITS) & INDEX);
            if piece >= pieces {
                return;
            }
            // SAFETY: with a claim the region runs and its work is there.
            let work = unsafe { *self.work.get() };
            if let Some(work) = work
                && let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(worker, piece as usize)))
            {
                self.panic.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(panic);
            }
            let done = self.done.fetch_add(1, Ordering::SeqCst) + 1;
            if done as u64 == pieces && self.caller_sleeps.load(Ordering::SeqCst) {
                let _gate = self.gate();
                self.finished.notify_all();
            }
        }
    }

    fn wait_for(&self, pieces: usize) {
        let all = || self.done.load(Ordering::SeqCst) == pieces;
        if spin_until(CALLER_SPIN, all) {
            return;
        }
        let mut gate = self.gate();
        self.caller_sleeps.store(true, Ordering::SeqCst);
        while !all() {
            gate = self.finished.wait(gate).unwrap_or_else(|e| e.into_inner());
        }
        self.caller_sleeps.store(false, Ordering::SeqCst);
    }

    fn help(&self, worker: usize) {
        let called = || self.open() || self.stop.load(Ordering::SeqCst);
        while !self.stop.load(Ordering::SeqCst) {
            self.take(worker);
            if spin_until(SPIN, called) {
                continue;
            }
            let mut gate = self.gate();
            self.sleepers.fetch_add(1, Ordering::SeqCst);
            fence(Ordering::SeqCst);
            while !called() {
                gate = self.wake.wait(gate).unwrap_or_else(|e| e.into_inner());
            }
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Looks again and again for a bounded time.
fn spin_until(limit: Duration, met: impl Fn() -> bool) -> bool {
    // Most waits end within a microsecond: the clock is read only afterwards.
    for _ in 0..64 {
        if met() {
            return true;
        }
        std::hint::spin_loop();
    }
    let until = Instant::now() + limit;
    while Instant::now() < until {
        for _ in 0..16 {
            if met() {
                return true;
            }
            std::hint::spin_loop();
        }
    }
    met()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pool_runs_every_piece_once() {
        for threads in 1..5 {
            let mut pool = Pool::new(threads);
            // Miri is a thousand times slower.
            let (most, rounds) = if cfg!(miri) { (40, 2) } else { (1000, 50) };
            for pieces in [0, 1, 2, 3, 17, most] {
                for _ in 0..rounds {
                    let seen: Vec<AtomicUsize> = (0..pieces).map(|_| AtomicUsize::new(0)).collect();
                    pool.run(pieces, &|_, piece| {
                        seen[piece].fetch_add(1, Ordering::Relaxed);
                    });
                    assert!(seen.iter().all(|n| n.load(Ordering::Relaxed) == 1));
                }
            }
        }
    }

    #[test]
    fn pool_wakes_sleeping_helpers() {
        let mut pool = Pool::new(3);
        let deadline = Instant::now() + Duration::from_secs(20);
        while pool.shared.sleepers.load(Ordering::SeqCst) < 2 {
            assert!(Instant::now() < deadline, "idle helpers go to sleep");
            std::thread::yield_now();
        }
        // Each piece waits for the other two: they end only if every member comes.
        let here = AtomicUsize::new(0);
        pool.run(3, &|_, _| {
            here.fetch_add(1, Ordering::SeqCst);
            while here.load(Ordering::SeqCst) < 3 {
                assert!(Instant::now() < deadline, "all members take part");
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn pool_runs_alone_while_helpers_are_repeatedly_descheduled() {
        let ms = Duration::from_millis;
        let mut now = Instant::now();
        let mut company = Company::new(now);
        // Short ends, and a long wait now and then, are borne.
        for i in 0..1000 {
            company.judge(now, ms(1), if i % 20 == 19 { ms(2) } else { LOST });
            now += ms(2);
        }
        assert!(company.alone_until < now);
        // Waits that take more than they give are not, longer and longer, but not for ever.
        let mut times = Vec::new();
        for _ in 0..8 {
            while company.alone_until <= now {
                company.judge(now, ms(2), ms(4));
                now += ms(6);
            }
            times.push(company.alone);
            now = company.alone_until;
        }
        assert_eq!(times, [20, 40, 80, 160, 320, 640, 1000, 1000].map(ms));
        // After a good time the next one is short again.
        now += ms(10_000);
        company.judge(now, ms(2), ms(4));
        assert_eq!(company.alone, ALONE.0);
    }

    #[test]
    fn pool_without_helpers_runs_on_the_caller_alone() {
        let mut pool = Pool::new(2);
        pool.company.alone_until = Instant::now() + Duration::from_secs(3600);
        let count = AtomicUsize::new(0);
        pool.run(8, &|worker, _| {
            assert_eq!(worker, 0);
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }

    #[test]
    fn pool_passes_a_panic_to_the_caller_and_stays_usable() {
        let mut pool = Pool::new(2);
        let caught = catch_unwind(AssertUnwindSafe(|| {
            pool.run(8, &|_, piece| assert!(piece != 5, "piece five"));
        }));
        assert!(caught.is_err());
        let count = AtomicUsize::new(0);
        pool.run(8, &|_, _| {
            count.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(count.into_inner(), 8);
    }
}
