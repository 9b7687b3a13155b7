//! A bucket on a bad day: whatever it answers, nothing is lost, nothing is written twice, and a run ends.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use textnlp_orchestrator::clock::{Clock, VirtualClock};
use textnlp_orchestrator::run::{RunError, RunOutcome};
use textnlp_orchestrator::state::{StateError, Store};
use textnlp_provider::memory::Fuse;

use crate::bucket::{Bucket, Wrong};
use crate::conformance::{holder, next, objects, on};
use crate::world::*;

const WRONGS: [Wrong; 5] = [Wrong::Error, Wrong::Precondition, Wrong::Silence, Wrong::LostReply, Wrong::LiedTag];

fn up(world: &World, bucket: &Bucket) -> Result<RunOutcome, RunError> {
    let store: Arc<dyn Store> = Arc::new(objects(bucket, &world.clock));
    world.go_with(store, UP, &service(), &Fuse::default()).expect("the run ends")
}

#[test]
fn transient_store_errors_are_retried_transparently() {
    for wrong in WRONGS {
        for name in ["lease.json", "lineage.json", "batches/0000000001", "batches/0000000004", "head.json"] {
            for times in 1..4 {
                let (world, bucket) = (World::new(), Bucket::new());
                bucket.goes_wrong(wrong, name, times);
                let arrival = up(&world, &bucket).unwrap_or_else(|error| panic!("{wrong:?} {name} {times}: {error:?}"));
                assert!(arrival.is_complete(), "{wrong:?} {name} {times}: {:#?}", arrival.outcome);
                let mutations = world.cloud.mutations();
                assert!(up(&world, &bucket).unwrap().plan.unwrap().steps.is_empty());
                assert_eq!(world.cloud.mutations(), mutations);
                assert_eq!(world.cloud.things().len(), service().len());
            }
        }
    }
}

#[test]
fn persistent_store_errors_end_the_run_and_the_next_one_recovers() {
    for wrong in [Wrong::Error, Wrong::Precondition, Wrong::Silence] {
        for name in ["lease.json", "lineage.json", "batches/0000000001", "batches/0000000003", "batches/0000000005"] {
            let (world, bucket) = (World::new(), Bucket::new());
            bucket.goes_wrong(wrong, name, 1000);
            let began = world.clock.steady();
            let error = up(&world, &bucket).expect_err("it cannot be written down");
            assert!(matches!(error, RunError::State(_) | RunError::Apply(_)), "{wrong:?} {name}: {error:?}");
            assert!(
                world.clock.steady() - began < Duration::from_secs(600),
                "{wrong:?} {name}: it took too long to see"
            );
            bucket.heal();
            let arrival = up(&world, &bucket).unwrap_or_else(|error| panic!("{wrong:?} {name}: {error:?}"));
            assert!(arrival.is_complete(), "{wrong:?} {name}: {:#?}", arrival.outcome);
            assert_eq!(world.cloud.things().len(), service().len(), "{wrong:?} {name}");
            assert!(up(&world, &bucket).unwrap().plan.unwrap().steps.is_empty(), "{wrong:?} {name}");
        }
    }
}

#[test]
fn store_without_conditional_writes_is_refused_before_any_change() {
    let (world, bucket) = (World::new(), Bucket::new());
    bucket.goes_wrong(Wrong::Unconditional, "", 1000);
    let error = up(&world, &bucket).unwrap_err();
    let RunError::State(StateError::Unconditional { .. }) = error else { panic!("{error:?}") };
    assert_eq!(world.cloud.mutations(), 0);
}

#[test]
fn unchanged_run_succeeds_with_a_store_that_returns_wrong_versions() {
    let (world, bucket) = (World::new(), Bucket::new());
    up(&world, &bucket).unwrap();
    bucket.goes_wrong(Wrong::LiedTag, "", 100_000);
    // Batches need no version, and whoever asks again learns the right one.
    let arrival = up(&world, &bucket).unwrap();
    assert!(arrival.plan.unwrap().steps.is_empty());
}

#[test]
fn lease_survives_transient_renewal_failures_only() {
    let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
    let bucket = Bucket::new();
    let store = objects(&bucket, &clock);
    let lock = on(&clock, store.lock(&holder("ada"))).unwrap();
    let lease = lock.lease.clone().unwrap();
    let holds = |seconds| on(&clock, lease.outlives(Duration::from_secs(seconds)));
    bucket.goes_wrong(Wrong::Error, "lease.json", 3);
    on(&clock, clock.sleep(Duration::from_secs(30)));
    assert!(holds(10));
    bucket.goes_wrong(Wrong::Silence, "lease.json", 1000);
    on(&clock, clock.sleep(Duration::from_secs(16)));
    // No call is made on the strength of a lease that nobody could renew.
    assert!(!holds(10) && !holds(1));
    bucket.heal();
    // Nobody took it meanwhile: then it is renewed, and holds again.
    assert!(holds(10));
}

#[test]
fn manual_changes_in_the_bucket_are_reported() {
    let clock = VirtualClock::at(Timestamp::UNIX_EPOCH);
    let say = |change: &dyn Fn(&Bucket)| {
        let bucket = Bucket::new();
        let store = objects(&bucket, &clock);
        let lock = on(&clock, store.lock(&holder("ada"))).unwrap();
        for text in ["one", "two", "three"] {
            let batch = on(&clock, next(&store, text));
            on(&clock, store.append(&lock, &here(), &batch)).unwrap();
        }
        on(&clock, store.replace(&lock, "lineage.json", b"{}")).unwrap();
        on(&clock, store.unlock(lock)).unwrap();
        change(&bucket);
        let store = objects(&bucket, &clock);
        let read = on(&clock, async {
            store.document("lineage.json").await?;
            store.log(&here()).await?;
            store.lock(&holder("grace")).await.map(|_| ())
        });
        read.unwrap_err().to_string()
    };
    let set = |name: &'static str, bytes: &'static [u8]| move |bucket: &Bucket| bucket.set(name, bytes);
    assert!(say(&set("states/staging/lineage.json", b"{}")).contains("lineage.json"));
    assert!(say(&set("states/staging/lease.json", b"{}")).contains("lease.json"));
    let batch = "states/staging/journal/here/batches/0000000002";
    assert!(say(&set(batch, b"")).contains("does not follow batch 1"));
    assert!(say(&set(batch, b"nothing")).contains("no header"));
    assert!(say(&set(batch, b"{}\n")).contains("its header cannot be read"));
    let future = b"{\"batch\":2,\"n\":2,\"fence\":1,\"log_at\":4,\"lines\":0,\"bodies_at\":11,\"bodies\":0}\n";
    assert!(say(&set(batch, future)).contains("format is 2"));
    let short = b"{\"batch\":1,\"n\":2,\"fence\":1,\"log_at\":4,\"lines\":99,\"bodies_at\":11,\"bodies\":0}\n";
    assert!(say(&set(batch, short)).contains("shorter than its header says"));
    let huge = b"{\"batch\":1,\"n\":2,\"fence\":1,\"log_at\":4,\"lines\":18446744073709551615,\"bodies_at\":11,\"bodies\":9}\n";
    assert!(say(&set(batch, huge)).contains("shorter than its header says"));
    let torn = b"{\"batch\":1,\"n\":2,\"fence\":1,\"log_at\":4,\"lines\":3,\"bodies_at\":11,\"bodies\":0}\ntwo";
    assert!(say(&set(batch, torn)).contains("ends within a line"));
    assert!(
        say(&set("states/staging/journal/here/segments/what", b"")).contains("its name is not one of this program")
    );
}
