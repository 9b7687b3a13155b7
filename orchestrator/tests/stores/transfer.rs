//! A state from one store into another and back, and what can be mended of a damaged one.

use std::sync::Arc;

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::backup::Key;
use textnlp_orchestrator::state::{
    Folder, PointInTime, Remedy, State, StateError, Store, apply_remedies, check, differences, moved_away, transfer,
};
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Lineage, Wanted};
use uuid::Uuid;

use crate::bucket::Bucket;
use crate::conformance::{holder, objects, on};
use crate::world::*;

struct Places {
    world: World,
    folder: tempfile::TempDir,
    bucket: Bucket,
}

impl Places {
    fn new() -> Self {
        Self { world: World::new(), folder: tempfile::tempdir().unwrap(), bucket: Bucket::new() }
    }

    fn path(&self) -> Utf8PathBuf {
        Utf8PathBuf::from_path_buf(self.folder.path().join("state")).unwrap()
    }

    fn local(&self) -> Arc<dyn Store> {
        Arc::new(Folder::at(self.path()))
    }

    fn remote(&self) -> Arc<dyn Store> {
        Arc::new(objects(&self.bucket, &self.world.clock))
    }

    fn up(&self, store: Arc<dyn Store>, wanted: &[Wanted]) -> usize {
        let arrival = self.world.go_with(store, UP, wanted, &Fuse::default()).unwrap().unwrap();
        assert!(arrival.is_complete());
        arrival.plan.unwrap().steps.len()
    }

    fn load(&self, store: Arc<dyn Store>) -> Result<State, StateError> {
        on(&self.world.clock, State::load(store, &environment(), Lineage(Uuid::nil())))
    }

    fn transfer(&self, from: &dyn Store, to: &dyn Store) -> Result<(), StateError> {
        on(&self.world.clock, transfer(from, to, &holder("ada")))
    }
}

#[test]
fn state_moves_to_a_bucket_and_back_without_loss() {
    let places = Places::new();
    places.up(places.local(), &service());
    let changed = with(service(), "store", "limit", json!(9));
    places.up(places.local(), &changed);
    let audited = "audit/2026-11";
    assert!(on(&places.world.clock, places.local().swap(audited, None, b"a record\n")).unwrap());
    places.transfer(&*places.local(), &*places.remote()).unwrap();
    assert_eq!(on(&places.world.clock, places.remote().document(audited)).unwrap().unwrap(), b"a record\n");
    on(&places.world.clock, async {
        moved_away(&*places.local(), &environment(), "s3://there", &holder("ada")).await.unwrap();
    });
    let (here, there) = (places.load(places.local()), places.load(places.remote()).unwrap());
    assert!(matches!(here, Err(StateError::Moved { to, .. }) if to == "s3://there"));
    assert_eq!(there.holdings(&crate::world::here()).unwrap().len(), service().len());
    // The run after it plans nothing, and the next change is written there.
    assert_eq!(places.up(places.remote(), &changed), 0);
    let again = with(service(), "store", "limit", json!(11));
    assert!(places.up(places.remote(), &again) > 0);
    places.transfer(&*places.remote(), &*places.local()).unwrap();
    assert_eq!(places.up(places.local(), &again), 0);
    let (one, other) = (places.load(places.local()).unwrap(), places.load(places.remote()).unwrap());
    let site = crate::world::here();
    let heads = (&one.heads()[&site], &other.heads()[&site]);
    assert_eq!(heads.0, heads.1);
    let history = |state: &State| on(&places.world.clock, state.history(&site)).unwrap();
    assert_eq!(history(&one), history(&other));
    assert!(on(&places.world.clock, check(&*places.local(), &environment())).unwrap().is_empty());
}

#[test]
fn state_with_many_locks_continues_in_its_new_store() {
    // Once the second run there found its journal damaged: the locks of a new store begin at one.
    let places = Places::new();
    let sized = |size: u64| with(service(), "store", "limit", json!(size));
    (10..16).for_each(|size| assert!(places.up(places.local(), &sized(size)) > 0));
    places.transfer(&*places.local(), &*places.remote()).unwrap();
    (20..24).for_each(|size| assert!(places.up(places.remote(), &sized(size)) > 0));
    assert!(on(&places.world.clock, check(&*places.remote(), &environment())).unwrap().is_empty());
}

#[test]
fn state_moves_to_an_encrypted_bucket_and_back() {
    let places = Places::new();
    places.up(places.local(), &service());
    let secret = Key::generate().secret();
    let sealed = || {
        let key = Key::parse(&secret).unwrap().remove(0);
        Arc::new(objects(&places.bucket, &places.world.clock).sealed(key)) as Arc<dyn Store>
    };
    places.transfer(&*places.local(), &*sealed()).unwrap();
    assert_eq!(places.up(sealed(), &service()), 0);
    let other = Key::generate();
    let wrong = Arc::new(objects(&places.bucket, &places.world.clock).sealed(other)) as Arc<dyn Store>;
    let error = places.load(wrong).err().unwrap().to_string();
    assert!(error.contains("encrypted for another key"), "{error}");
}

#[test]
fn states_of_two_deployments_are_never_merged() {
    let (places, other) = (Places::new(), Places::new());
    places.up(places.local(), &service());
    other.up(other.remote(), &service());
    let before = other.bucket.content();
    assert!(places.transfer(&*places.local(), &*other.remote()).is_err());
    let lineage =
        |content: &[(String, Vec<u8>)]| content.iter().find(|(name, _)| name.ends_with("lineage.json")).cloned();
    assert_eq!(lineage(&other.bucket.content()), lineage(&before));
}

#[test]
fn earlier_recorded_state_is_shown_and_compared() {
    let places = Places::new();
    places.up(places.local(), &service());
    let state = places.load(places.local()).unwrap();
    let site = here();
    let then = state.heads()[&site].n;
    let later = with(without(service(), &["cache"]), "store", "limit", json!(9));
    places.up(places.local(), &later);
    let state = places.load(places.local()).unwrap();
    let at = |moment| on(&places.world.clock, state.holdings_at(&site, moment)).unwrap();
    assert_eq!(at(PointInTime::Now), state.holdings(&site).unwrap());
    assert_eq!(at(PointInTime::Record(then)).len(), service().len());
    assert!(at(PointInTime::Record(1)).is_empty());
    let told = differences(&at(PointInTime::Record(then)), &at(PointInTime::Now));
    let told: Vec<_> = told.iter().map(|one| (one.what, one.resource.to_string())).collect();
    assert_eq!(told, [("removed", "here/cache".to_owned()), ("changed", "here/store".to_owned())]);
    let back = differences(&at(PointInTime::Now), &at(PointInTime::Record(then)));
    assert_eq!(back[0].what, "added");
    let field = back[1].fields.iter().find(|field| field.field == "spec.limit").unwrap();
    assert_eq!((field.before.clone(), field.after.clone()), (Some(json!(9)), Some(json!(5))));
}

#[test]
fn state_damage_is_detected_and_repaired_where_unambiguous() {
    let damaged = |damage: &dyn Fn(&Utf8PathBuf)| {
        let places = Places::new();
        places.up(places.local(), &service());
        damage(&places.path());
        let found = on(&places.world.clock, check(&*places.local(), &environment())).unwrap();
        (places, found)
    };
    let (places, found) = damaged(&|_| {});
    assert!(found.is_empty(), "{found:?}");
    let broken = places.load(places.local()).is_err();
    assert!(!broken);

    let mended = |damage: &dyn Fn(&Utf8PathBuf)| {
        let (places, found) = damaged(damage);
        assert!(!found.is_empty());
        assert!(found.iter().all(|finding| finding.remedy.is_some()), "{found:?}");
        on(&places.world.clock, apply_remedies(&*places.local(), &environment(), &found, &holder("ada"))).unwrap();
        assert!(on(&places.world.clock, check(&*places.local(), &environment())).unwrap().is_empty());
        let mutations = places.world.cloud.mutations();
        let steps = places.up(places.local(), &service());
        (found, steps, places.world.cloud.mutations() - mutations, places.world.cloud.things().len())
    };
    let (_, steps, calls, _) = mended(&|path| std::fs::remove_file(path.join("lineage.json")).unwrap());
    assert_eq!((steps, calls), (0, 0));
    let (_, steps, _, _) = mended(&|path| std::fs::write(path.join("lineage.json"), "{").unwrap());
    assert_eq!(steps, 0);
    let (_, steps, _, _) = mended(&|path| std::fs::write(path.join("journal/here/head.json"), "{").unwrap());
    assert_eq!(steps, 0);
    // The number of the lock goes on after the highest one in the journal.
    for damage in ["", "{\"fence\":", "[]"] {
        let (found, steps, _, _) = mended(&|path| std::fs::write(path.join("lease.json"), damage).unwrap());
        assert!(matches!(&found[..], [one] if one.what == "lease.json"), "{found:?}");
        assert_eq!(steps, 0);
    }
    // A damaged freeze may have been one.
    let (places, found) = damaged(&|path| std::fs::write(path.join("hold.json"), "{").unwrap());
    on(&places.world.clock, apply_remedies(&*places.local(), &environment(), &found, &holder("ada"))).unwrap();
    let state = places.load(places.local()).unwrap();
    assert_eq!(on(&places.world.clock, state.held()).unwrap().unwrap().by, "ada");
    // The last records are gone: what they told of is found by its operation, not made a second time.
    let shorten = |path: &Utf8PathBuf, by: usize| {
        let log = path.join("journal/here/log");
        let text = std::fs::read_to_string(&log).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        std::fs::write(&log, lines[..lines.len() - by].join("\n") + "\n").unwrap();
    };
    let (found, steps, _, things) = mended(&|path| shorten(path, 2));
    assert!(matches!(&found[0].remedy, Some(Remedy::WriteHead { lost: 2, .. })), "{found:?}");
    assert!(found[0].remedy.as_ref().unwrap().gives_up());
    println!("{steps} steps");
    assert_eq!(things, service().len());
    // Without the start of its operation an object is foreign until it is imported.
    let (places, found) = damaged(&|path| shorten(path, 3));
    on(&places.world.clock, apply_remedies(&*places.local(), &environment(), &found, &holder("ada"))).unwrap();
    let before = places.world.cloud.things();
    let sites = places.world.site(&service(), &Fuse::default());
    let environment = environment();
    let road = places.world.road(places.local(), &sites, &environment, &textnlp_orchestrator::event::DiscardEvents);
    let looked = on(&places.world.clock, textnlp_orchestrator::run::plan_with_refresh(&road, UP));
    let (plan, _) = looked.unwrap();
    let refusals = &plan.plan().refusals;
    assert!(matches!(&refusals[..], [one] if one.fix.contains("state import here/gateway=")), "{refusals:?}");
    assert_eq!(places.world.cloud.things(), before);

    // What nobody can know is left as it is.
    for (file, at) in [("journal/here/log", 700), ("journal/here/bodies", 700)] {
        let (_, found) = damaged(&|path| {
            let path = path.join(file);
            let mut bytes = std::fs::read(&path).unwrap();
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
        });
        assert!(found.iter().any(|finding| finding.remedy.is_none()), "{file}: {found:?}");
    }
}

#[test]
fn lost_state_is_rebuilt_from_the_providers() {
    use textnlp_orchestrator::import::{named, propose, take};
    use textnlp_orchestrator::run::{plan_with_refresh, read};
    let places = Places::new();
    places.up(places.local(), &service());
    let lineage = places.load(places.local()).unwrap().lineage();
    std::fs::remove_dir_all(places.path()).unwrap();
    let foreign = textnlp_provider::CloudId::new("somebody-else-s").unwrap();
    let kind = textnlp_provider::KindName::new("memory.cache").unwrap();
    places.world.cloud.place_foreign(&kind, &foreign, None, textnlp_provider::Spec::of(&json!({})));
    let (sites, environment) = (places.world.site(&service(), &Fuse::default()), environment());
    let mut road = places.world.road(places.local(), &sites, &environment, &textnlp_orchestrator::event::DiscardEvents);
    road.fresh = lineage;
    let clock = Arc::new(places.world.clock.clone());
    on(&places.world.clock, async {
        let state = State::load(places.local(), &environment, lineage).await.unwrap();
        assert!(state.is_new());
        let facts = read(&road, &state, UP).await.unwrap();
        let refused = named(&facts, &id("here/cache"), &foreign, &[]).await.unwrap_err();
        assert!(refused.to_string().contains("has no lineage label"), "{refused}");
        let proposals = propose(&facts).proposals;
        assert_eq!(proposals.len(), service().len());
        assert!(proposals.iter().all(|proposal| proposal.wanted));
        let places = sites.iter().map(|(name, site)| (name.clone(), site.place.clone())).collect();
        let mut locked = state.lock(&road.operator, &places, clock).await.unwrap();
        take(&mut locked, &proposals).await.unwrap();
        locked.close().await.unwrap();
        let (plan, facts) = plan_with_refresh(&road, UP).await.unwrap();
        assert!(propose(&facts).proposals.is_empty());
        assert!(!plan.plan().has_changes(), "{:#?}", lines(plan.plan()));
    });
    let mutations = places.world.cloud.mutations();
    places.up(places.local(), &service());
    assert_eq!(places.world.cloud.mutations(), mutations);
}

#[test]
fn frozen_environment_is_not_changed_until_released() {
    use textnlp_orchestrator::run::RunError;
    let places = Places::new();
    places.up(places.remote(), &service());
    let operator = places
        .world
        .road(
            places.remote(),
            &places.world.site(&[], &Fuse::default()),
            &environment(),
            &textnlp_orchestrator::event::DiscardEvents,
        )
        .operator;
    let clock = Arc::new(places.world.clock.clone());
    let locked = || {
        let state = places.load(places.remote()).unwrap();
        on(&places.world.clock, state.lock(&operator, &Default::default(), clock.clone())).unwrap()
    };
    let first = locked();
    let hold = on(&places.world.clock, first.hold()).unwrap();
    assert_eq!((hold.by.as_str(), hold.why.as_str()), ("ada", "test"));
    on(&places.world.clock, first.close()).unwrap();
    let calls = places.world.cloud.calls().len();
    for ask in [UP, DOWN, DOWN_WITH_DATA] {
        let error = places.world.go_with(places.remote(), ask, &service(), &Fuse::default()).unwrap().unwrap_err();
        let RunError::Frozen(there) = &error else { panic!("{error:?}") };
        assert_eq!(**there, hold);
        assert!(error.to_string().contains("ada froze this environment"), "{error}");
    }
    assert_eq!(places.world.cloud.calls().len(), calls);
    let second = locked();
    on(&places.world.clock, second.release()).unwrap();
    on(&places.world.clock, second.close()).unwrap();
    assert_eq!(places.up(places.remote(), &service()), 0);
}
