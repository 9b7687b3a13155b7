//! Many open sessions, held against an entrance that lives in virtual time: what it refuses, drops and does not answer is what a test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::json;
use textnlp_orchestrator::clock::{Clock, VirtualClock};
use textnlp_orchestrator::load::{
    LoadRequest, LoadResponse, RequestFailure, Session, SessionOpener, SessionResult, Sessions, hold,
};
use tokio_util::sync::CancellationToken;

/// An entrance, and what is wrong with it.
#[derive(Clone)]
struct Door {
    clock: VirtualClock,
    /// Connections at once; who comes then is refused.
    places: u32,
    /// Connections are closed when they have done nothing for so long.
    idle: Duration,
    /// Every so many questions fail: with a status, and with the end of the connection.
    fails: u32,
    breaks: u32,
    open: Arc<AtomicU32>,
    asked: Arc<AtomicU32>,
}

struct Line {
    door: Door,
    last: Duration,
}

impl Door {
    fn new() -> Self {
        let clock = VirtualClock::at("2026-01-02T03:04:05Z".parse().unwrap());
        let idle = Duration::from_secs(75);
        let (fails, breaks) = (u32::MAX, u32::MAX);
        Self { clock, places: 20_000, idle, fails, breaks, open: Arc::default(), asked: Arc::default() }
    }

    fn hold(&self, count: u32, every: u64, stop: &CancellationToken) -> SessionResult {
        let sessions = Sessions {
            count,
            ramp: 200,
            hold: Duration::from_secs(60),
            every: Duration::from_secs(every),
            tokens: 1,
            timeout: Duration::from_secs(60),
            seed: 1,
        };
        let mut most = 0;
        let held = self.clock.run(hold(self, None, &sessions, &self.clock, stop, &mut |standing| {
            most = most.max(standing.open);
        }));
        assert!(most <= count.min(self.places), "{most} were open at once");
        assert_eq!(self.open.load(SeqCst), 0, "every connection is given back");
        held.unwrap()
    }
}

#[async_trait]
impl SessionOpener for Door {
    async fn open(&self) -> Result<Box<dyn Session>, RequestFailure> {
        self.clock.sleep(Duration::from_millis(5)).await;
        if self.open.fetch_add(1, SeqCst) >= self.places {
            self.open.fetch_sub(1, SeqCst);
            return Err(RequestFailure::Timeout);
        }
        Ok(Box::new(Line { door: self.clone(), last: self.clock.steady() }))
    }
}

#[async_trait]
impl Session for Line {
    async fn send(&mut self, ask: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        let asked = self.door.asked.fetch_add(1, SeqCst) + 1;
        self.door.clock.sleep(Duration::from_millis(40)).await;
        self.last = self.door.clock.steady();
        if asked.is_multiple_of(self.door.breaks) {
            return Err(RequestFailure::Broken("reset".to_owned()));
        }
        let status = if asked.is_multiple_of(self.door.fails) { 503 } else { 200 };
        let body = json!({ "usage": { "completion_tokens": ask.body.unwrap()["max_tokens"] } });
        Ok(LoadResponse { status, body: body.to_string().into_bytes() })
    }

    fn is_closed(&self) -> bool {
        self.door.clock.steady().saturating_sub(self.last) >= self.door.idle
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.door.open.fetch_sub(1, SeqCst);
    }
}

fn on_and_on() -> CancellationToken {
    CancellationToken::new()
}

#[test]
fn ten_thousand_sessions_are_opened_held_and_answered() {
    let held = Door::new().hold(10_000, 20, &on_and_on());
    assert!(held.kept_all(), "{held:#?}");
    assert_eq!((held.open, held.errors, held.error_rate()), (10_000, 0, 0.0));
    // Each asks when it comes, and then every 20 s or so: for 110 s the first, for 60 s the last.
    assert!((40_000..60_000).contains(&held.requests), "{}", held.requests);
    assert_eq!((held.opening.p95_ms.round(), held.answers.p95_ms.round()), (5.0, 40.0));
    // What is answered while all are there: half a thousand a second.
    assert!((450.0..550.0).contains(&held.tokens_per_second), "{}", held.tokens_per_second);
}

#[test]
fn sessions_beyond_the_capacity_are_counted_as_refused() {
    let held = Door { places: 900, ..Door::new() }.hold(1_000, 20, &on_and_on());
    assert_eq!((held.open, held.dropped, held.kept_all()), (900, 0, false));
    assert!(held.refused["timeout"] >= 300, "each of the hundred tries again: {:?}", held.refused);
}

#[test]
fn closed_connections_count_as_dropped_even_when_reopened() {
    let held = Door { idle: Duration::from_secs(10), ..Door::new() }.hold(500, 20, &on_and_on());
    assert!(held.dropped > 1_000 && !held.kept_all(), "{}", held.dropped);
    assert_eq!((held.errors, held.refused.len()), (0, 0), "and nobody was told no");
    let held = Door { breaks: 100, ..Door::new() }.hold(500, 20, &on_and_on());
    assert_eq!(held.errors_by_kind["broken off"], held.errors);
    assert_eq!((held.dropped, held.kept_all()), (held.errors, false));
}

#[test]
fn error_responses_are_counted_and_keep_the_session_open() {
    let held = Door { fails: 50, ..Door::new() }.hold(500, 20, &on_and_on());
    assert!(held.kept_all() && (0.015..0.025).contains(&held.error_rate()), "{held:#?}");
    assert_eq!(held.errors_by_kind["status 503"], held.errors);
}

#[test]
fn cancelled_session_run_reports_its_open_sessions() {
    let stop = on_and_on();
    stop.cancel();
    let held = Door::new().hold(500, 20, &stop);
    assert!(held.stopped && !held.kept_all() && held.open < 500);
}
