//! A holder that dies, and one that only sleeps: whoever takes over finishes its work, and waking up does no harm.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures::future::BoxFuture;
use serde_json::json;
use textnlp_orchestrator::clock::{Clock, VirtualClock};
use textnlp_orchestrator::event::{Event, EventKind};
use textnlp_orchestrator::run::{RunError, RunOptions, RunOutcome, RunSite, run_phases};
use textnlp_orchestrator::state::{State, StateError, Store};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Lineage, Operation, Progress, Result as Answered, SiteName, Wanted};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bucket::{Bucket, Gate};
use crate::conformance::{holder, next, objects, on};
use crate::far::{Far, Way};
use crate::person::Person;
use crate::world::*;

/// Callers may be stopped right before and right after a call.
#[async_trait]
impl Way for Gate {
    async fn calls(
        &self,
        op: &Operation,
        goes_on: bool,
        call: BoxFuture<'static, Answered<Progress>>,
    ) -> Answered<Progress> {
        let named = |when: &str| {
            let what = if goes_on { "going on with " } else { "" };
            format!("{when} {what}{} {}", op.verb, op.resource)
        };
        self.cross(|| named("before")).await;
        let answer = call.await;
        self.cross(|| named("after")).await;
        answer
    }
}

/// A world whose state lies in a bucket.
struct Shared {
    world: World,
    bucket: Bucket,
}

impl Shared {
    fn new() -> Self {
        Self { world: World::new(), bucket: Bucket::new() }
    }

    fn store(&self, gate: &Gate, clock: Arc<dyn Clock>) -> Arc<dyn Store> {
        let path = object_store::path::Path::from("states/staging");
        let bucket = Arc::new(self.bucket.behind(gate));
        Arc::new(textnlp_orchestrator::state::Objects::new(bucket, path, "a bucket", clock))
    }

    fn sites(&self, wanted: &[Wanted], gate: &Gate) -> BTreeMap<SiteName, RunSite> {
        let mut sites = self.world.site(wanted, &Fuse::default());
        let provider = Far { cloud: self.world.cloud.clone(), way: gate.clone() };
        sites.get_mut(&here()).unwrap().provider = Arc::new(provider);
        sites
    }

    /// Goes the road on a machine of its own.
    async fn travels(
        &self,
        by: &Person,
        gate: &Gate,
        ask: RunOptions,
        wanted: &[Wanted],
    ) -> Result<RunOutcome, RunError> {
        let (sites, environment) = (self.sites(wanted, gate), environment());
        let events = |event: Event| self.world.events.lock().unwrap().push(event);
        let mut road = self.world.road(self.store(gate, Arc::new(by.clone())), &sites, &environment, &events);
        road.clock = Arc::new(by.clone());
        by.runs(run_phases(&road, ask, &mut |_, _| true, &CancellationToken::new())).await
    }

    fn awake(&self) -> Person {
        Person::new(&self.world.clock, Arc::default())
    }

    fn up(&self, wanted: &[Wanted]) -> RunOutcome {
        let arrival = on(&self.world.clock, self.travels(&self.awake(), &Gate::open(), UP, wanted)).unwrap();
        assert!(arrival.is_complete(), "{:#?}", arrival.outcome);
        arrival
    }

    /// Every object is recorded and there once, nothing is open, and a second run plans nothing.
    fn check(&self, wanted: &[Wanted]) {
        let store = self.store(&Gate::open(), Arc::new(self.world.clock.clone()));
        let state = on(&self.world.clock, State::load(store, &environment(), Lineage(Uuid::nil()))).unwrap();
        let things: BTreeMap<_, _> =
            self.world.cloud.things().into_iter().map(|thing| (thing.cloud_id.clone(), thing)).collect();
        let holdings = state.holdings(&here()).unwrap();
        assert_eq!(things.len(), wanted.len(), "{things:#?}");
        assert_eq!(holdings.len(), wanted.len());
        for (id, holding) in holdings {
            let thing = &things[&holding.current.unwrap().cloud_id];
            assert_eq!(thing.resource.as_ref(), Some(&id));
            assert_eq!(thing.lineage, Some(state.lineage()));
        }
        assert!(state.open(&here()).unwrap().is_empty());
        assert!(self.up(wanted).plan.unwrap().steps.is_empty());
    }
}

#[test]
fn lock_of_a_killed_holder_is_free_within_twenty_seconds() {
    let clock = VirtualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    // Killed at any moment between two renewals, also while the renewal is on its way.
    for after in (0..9000).step_by(370) {
        let bucket = Bucket::new();
        let paused = Arc::new(AtomicBool::new(false));
        let dead = Person::new(&clock, paused.clone());
        let killed = on(&clock, async {
            let store = objects_of(&bucket, &dead);
            let lock = dead.runs(store.lock(&holder("ada"))).await.unwrap();
            dead.runs(clock.sleep(Duration::from_millis(after))).await;
            paused.store(true, Ordering::SeqCst);
            // It is not given back: nobody runs that could.
            std::mem::forget((store, lock));
            clock.steady()
        });
        let store = objects(&bucket, &clock);
        let lock = on(&clock, store.lock(&holder("grace"))).unwrap();
        let took = clock.steady() - killed;
        assert!(took <= Duration::from_secs(20), "{after}: {took:?}");
        assert_eq!(lock.fence, 2);
        assert_eq!(lock.grace, Duration::from_secs(10));
    }
}

fn objects_of(bucket: &Bucket, person: &Person) -> textnlp_orchestrator::state::Objects {
    let path = object_store::path::Path::from("states/staging");
    textnlp_orchestrator::state::Objects::new(Arc::new(bucket.clone()), path, "a bucket", Arc::new(person.clone()))
}

#[test]
fn lock_of_a_live_holder_is_never_taken_over() {
    let clock = VirtualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let bucket = Bucket::new();
    let held = objects(&bucket, &clock);
    let lock = on(&clock, held.lock(&holder("ada"))).unwrap();
    for hour in 1..4 {
        on(&clock, clock.sleep(Duration::from_secs(3600)));
        // Somebody sets the clock of the holder's machine.
        clock.jump(jiff::SignedDuration::from_hours(if hour % 2 == 0 { -30 } else { 50 }));
        let began = clock.steady();
        let refused = on(&clock, objects(&bucket, &clock).lock(&holder("grace")));
        assert!(matches!(refused, Err(StateError::Held { .. })), "{refused:?}");
        assert!(clock.steady() - began < Duration::from_secs(10));
        let store: &dyn Store = &held;
        let batch = on(&clock, next(store, &format!("{hour}")));
        on(&clock, held.append(&lock, &here(), &batch)).unwrap();
        assert!(on(&clock, lock.lease.as_ref().unwrap().outlives(Duration::from_secs(10))));
    }
}

#[test]
fn holder_that_reads_the_journal_after_a_takeover_cannot_write() {
    // Once it did: it stood still before it read, read what its successor had written, and found the next name free.
    let clock = VirtualClock::at("2026-01-01T00:00:00Z".parse().unwrap());
    let bucket = Bucket::new();
    // Nothing of its machine runs by itself, so nobody renews and nobody notices.
    let store = objects_of(&bucket, &Person::new(&clock, Arc::default()));
    on(&clock, async {
        let lock = store.lock(&holder("ada")).await.unwrap();
        store.append(&lock, &here(), &next(&store, "one").await).await.unwrap();
        let successor = objects(&bucket, &clock);
        assert_eq!(successor.lock(&holder("grace")).await.unwrap().fence, 2);
        let batch = next(&store, "two").await;
        let refused = store.append(&lock, &here(), &batch).await;
        assert!(matches!(refused, Err(StateError::Fenced { ours: 1, newest: 2 })), "{refused:?}");
    });
}

/// Ada is stopped at a boundary, grace takes over and finishes, ada wakes up.
fn stopped_at(boundary: u64, before: &[Wanted], ask: RunOptions, wanted: &[Wanted]) -> Option<String> {
    let shared = Shared::new();
    if !before.is_empty() {
        shared.up(before);
    }
    let gate = Gate::stops_at(boundary);
    let ada = Person::new(&shared.world.clock, gate.stopped());
    let (grace, open) = (shared.awake(), Gate::open());
    let clock = shared.world.clock.clone();
    let over = AtomicBool::new(false);
    let sleeper = async {
        let result = shared.travels(&ada, &gate, ask, wanted).await;
        over.store(true, Ordering::SeqCst);
        result
    };
    let others = async {
        while !gate.stopped().load(Ordering::SeqCst) {
            if over.load(Ordering::SeqCst) {
                return None;
            }
            clock.sleep(Duration::from_millis(100)).await;
        }
        // One that had not got so far, or had given it back, is not a holder: once awake it has every right to go on.
        let lease = shared.bucket.content().into_iter().find(|(name, _)| name.ends_with("lease.json"));
        let held = lease.is_some_and(|(_, lease)| String::from_utf8(lease).unwrap().contains("\"released\": false"));
        let arrival = shared.travels(&grace, &open, ask, wanted).await;
        let arrival = arrival.unwrap_or_else(|error| panic!("{}: {error:?}", gate.last()));
        assert!(arrival.is_complete(), "{}: {:#?}", gate.last(), arrival.outcome);
        let (content, things, calls) =
            (shared.bucket.content(), shared.world.cloud.things(), shared.world.cloud.calls());
        wake(&gate, &clock).await;
        Some((held, content, things, calls))
    };
    let (result, after) = on(&shared.world.clock, futures::future::join(sleeper, others));
    let (held, content, things, calls) = after?;
    let at = gate.last();
    println!("boundary {boundary}: {at}: {}", result.as_ref().err().map_or("finished".to_owned(), ToString::to_string));
    if held {
        // Whoever wakes up writes nothing into the store: every object is as the successor left it.
        assert_eq!(names(&shared.bucket.content()), names(&content), "{at}");
        assert!(shared.bucket.content() == content, "{at}");
    }
    // A call that was already on its way when the machine stopped arrives, and its token makes it the call that was answered
    // before; no other call is made.
    let more = shared.world.cloud.calls().len() - calls.len();
    assert!(more <= usize::from(at.starts_with("before ") && !at.contains("ing states")), "{at}: {more} more calls");
    assert_eq!(shared.world.cloud.things(), things, "{at}");
    shared.check(if ask == UP { wanted } else { &[] });
    Some(at)
}

/// Lets whoever stands at the gate go on; that one notices when time passes.
async fn wake(gate: &Gate, clock: &VirtualClock) {
    gate.stopped().store(false, Ordering::SeqCst);
    clock.sleep(Duration::from_millis(1)).await;
}

fn names(content: &[(String, Vec<u8>)]) -> Vec<&str> {
    content.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn holder_paused_anywhere_does_no_harm_after_a_takeover() {
    let wanted = service();
    everywhere(&[], &wanted);
}

#[test]
fn holder_paused_during_a_change_does_no_harm_after_a_takeover() {
    let before = service();
    let after = with(without(service(), &["cache"]), "net", "cidr", json!("10.9.0.0/16"));
    everywhere(&before, &after);
}

fn everywhere(before: &[Wanted], wanted: &[Wanted]) {
    let mut at = Vec::new();
    while let Some(name) = stopped_at(at.len() as u64, before, UP, wanted) {
        at.push(name);
    }
    // Around every request to the store and every call of the cloud.
    for part in ["before writing", "after writing", "before reading", "before create", "after create", "going on with"]
    {
        assert!(at.iter().any(|name| name.contains(part)), "nobody was stopped {part}");
    }
    println!("{} boundaries", at.len());
}

#[test]
fn open_operations_are_resumed_only_after_the_grace_period() {
    let shared = Shared::new();
    let gate = Gate::stops_at(40);
    let ada = Person::new(&shared.world.clock, gate.stopped());
    let clock = shared.world.clock.clone();
    let wanted = service();
    let others = async {
        while !gate.stopped().load(Ordering::SeqCst) {
            clock.sleep(Duration::from_millis(100)).await;
        }
        let stopped = clock.steady();
        let calls = shared.world.cloud.calls().len();
        let grace = shared.awake();
        let open = Gate::open();
        let watch = async {
            while shared.world.cloud.calls().len() == calls {
                clock.sleep(Duration::from_millis(100)).await;
            }
            clock.steady() - stopped
        };
        let (arrival, touched) = futures::future::join(shared.travels(&grace, &open, UP, &wanted), watch).await;
        assert!(arrival.unwrap().recovered > 0, "{}", gate.last());
        // Fifteen seconds of silence, and ten for a call that was sent in the last moment.
        assert!(touched >= Duration::from_secs(21), "{touched:?}");
        assert!(shared.world.said(|what| matches!(what, EventKind::Note { text } if text.contains("waiting 10 s"))));
        wake(&gate, &clock).await;
    };
    let (_, ()) = on(&shared.world.clock, futures::future::join(shared.travels(&ada, &gate, UP, &wanted), others));
    shared.check(&wanted);
}

#[test]
fn holder_resumes_after_a_sleep_without_a_takeover() {
    let shared = Shared::new();
    let gate = Gate::stops_at(40);
    let ada = Person::new(&shared.world.clock, gate.stopped());
    let clock = shared.world.clock.clone();
    let waker = async {
        while !gate.stopped().load(Ordering::SeqCst) {
            clock.sleep(Duration::from_millis(100)).await;
        }
        clock.sleep(Duration::from_secs(60)).await;
        wake(&gate, &clock).await;
    };
    let wanted = service();
    let (arrival, ()) = on(&shared.world.clock, futures::future::join(shared.travels(&ada, &gate, UP, &wanted), waker));
    assert!(arrival.unwrap().is_complete());
    shared.check(&wanted);
}
