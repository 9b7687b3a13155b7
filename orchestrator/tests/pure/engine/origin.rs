//! Objects without a record: of an operation of this journal, or of another author who copied its labels.

use serde_json::json;
use textnlp_orchestrator::plan::{Node, Note, Plan};
use textnlp_orchestrator::run::{RunError, RunOptions};
use textnlp_orchestrator::state::UnresolvedCreate;
use textnlp_provider::memory::{Fault, FaultEffect, Fuse};
use textnlp_provider::{CloudId, ErrorKind, KindName, Lineage, Observed, ResourceId, Spec, Token, Wanted};
use uuid::Uuid;

use crate::world::*;

/// What cannot be without the database.
const NEEDS_DB: [&str; 4] = ["db", "gateway", "server/replica-0", "server/replica-1"];

/// An object of others, with the labels of a resource of this deployment.
fn labelled(world: &World, cloud_id: &str, resource: &str, token: Option<&Token>) -> CloudId {
    let cloud_id = CloudId::new(cloud_id).unwrap();
    let kind = KindName::new("memory.database").unwrap();
    world.cloud.place_foreign(&kind, &cloud_id, None, Spec::default());
    world.cloud.label(&cloud_id, &id(resource), world.state().lineage(), token);
    cloud_id
}

fn plan(world: &World, ask: RunOptions, wanted: &[Wanted]) -> Plan {
    world.plan(ask, wanted).unwrap().0.plan().clone()
}

/// Whether a warning names an object.
fn warns(plan: &Plan, cloud_id: &CloudId) -> bool {
    plan.warnings.iter().any(|warning| warning.cause.contains(&format!("`{cloud_id}`")))
}

fn is_there(world: &World, cloud_id: &CloudId) -> bool {
    world.cloud.things().iter().any(|thing| thing.cloud_id == *cloud_id)
}

/// The token of the operation that created the object of a resource.
fn token_of(world: &World, resource: &str) -> Token {
    let resource: ResourceId = id(resource);
    let things = world.cloud.things();
    things.iter().find(|thing| thing.resource.as_ref() == Some(&resource)).unwrap().token.clone().unwrap()
}

/// A create that made an object and was then refused, so that nothing is recorded.
fn lost(world: &World, resource: &str, wanted: &[Wanted]) -> Token {
    world.cloud.inject(Fault::once(FaultEffect::LostReply).on(&id(resource)));
    world.cloud.inject(Fault::once(FaultEffect::Refuse(ErrorKind::Denied)).on(&id(resource)));
    assert!(!world.try_up(wanted).unwrap().is_complete());
    let state = world.state();
    assert!(!state.holdings(&here()).unwrap().contains_key(&id(resource)));
    assert!(state.open(&here()).unwrap().is_empty());
    token_of(world, resource)
}

#[test]
fn labels_alone_make_no_object_ours() {
    let world = World::new();
    world.up(&service());
    let token = token_of(&world, "here/db");
    let theirs = [
        labelled(&world, "bank-1", "here/db", None),
        labelled(&world, "bank-2", "here/db", Some(&token)),
        labelled(&world, "bank-3", "here/ledger", Token::parse(&"ab".repeat(16)).as_ref()),
    ];
    let before: Vec<_> = world.cloud.things().into_iter().filter(|thing| theirs.contains(&thing.cloud_id)).collect();
    let up = plan(&world, UP, &service());
    assert!(!up.has_changes(), "{:#?}", lines(&up));
    let down = plan(&world, DOWN_WITH_DATA, &[]);
    for cloud_id in &theirs {
        assert!(warns(&up, cloud_id) && warns(&down, cloud_id), "{cloud_id}");
    }
    world.up(&service());
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert_eq!(world.cloud.things(), before);
}

#[test]
fn labelled_object_in_the_place_of_a_new_one_is_refused_by_its_id() {
    let world = World::new();
    world.up(&without(service(), &NEEDS_DB));
    let theirs = labelled(&world, "bank-1", "here/db", None);
    let before = world.cloud.things();
    let Err(RunError::Refused(report)) = world.try_up(&service()) else { panic!("it is not refused") };
    let report = format!("{report:?}");
    assert!(report.contains("`bank-1`") && report.contains("state import here/db=bank-1"), "{report}");
    assert_eq!(world.cloud.things(), before);
    // Without its labels it is of no interest.
    world.cloud.remove_foreign(&theirs);
    world.up(&service());
    world.check(&service());
}

#[test]
fn object_that_is_listed_late_is_waited_for_beside_one_with_its_labels() {
    let world = World::new();
    world.cloud.show_after(3);
    world.up(&[want("cache", "cache", json!({"engine": "redis"}))]);
    let theirs = labelled(&world, "bank-1", "here/cache", None);
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    let left: Vec<CloudId> = world.cloud.things().into_iter().map(|thing| thing.cloud_id).collect();
    assert_eq!(left, [theirs]);
}

#[test]
fn every_object_with_copied_labels_is_named_at_once() {
    let world = World::new();
    world.up(&without(service(), &NEEDS_DB));
    let theirs = ["bank-1", "bank-2"].map(|cloud_id| labelled(&world, cloud_id, "here/db", None));
    let plan = plan(&world, UP, &service());
    assert!(plan.refusals.iter().any(|refusal| refusal.cause.contains("`bank-1`")), "{:#?}", plan.refusals);
    assert!(warns(&plan, &theirs[1]), "{:#?}", plan.warnings);
}

/// Credentials that end between two calls: nothing but the open operation knows of a part, which has no labels.
#[test]
fn create_of_a_part_that_is_denied_after_a_lost_answer_stays_open() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::LostReply).on(&id("here/store/tiny")));
    world.cloud.inject(Fault::once(FaultEffect::Refuse(ErrorKind::Denied)).on(&id("here/store/tiny")));
    assert!(!world.try_up(&service()).unwrap().is_complete());
    let open = world.state().open(&here()).unwrap();
    let open: Vec<&ResourceId> = open.values().map(|open| &open.intent.operation.resource).collect();
    assert_eq!(open, [&id("here/store/tiny")]);
    world.up(&service());
    world.check(&service());
    assert!(world.state().open(&here()).unwrap().is_empty());
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert_eq!(world.cloud.things(), []);
}

#[test]
fn object_of_a_create_without_a_result_is_adopted_once() {
    let world = World::new();
    let token = lost(&world, "here/cert", &service());
    let tokens = |create: &UnresolvedCreate| create.token.clone();
    let unresolved = world.state().unresolved(&here());
    assert_eq!(unresolved[&id("here/cert")].iter().map(tokens).collect::<Vec<_>>(), std::slice::from_ref(&token));
    world.up(&service());
    world.check(&service());
    assert!(world.state().unresolved(&here()).is_empty());
    // The token is spent: an object that has it too is not of that create, even once the first is gone.
    let theirs = labelled(&world, "bank-1", "here/cert", Some(&token));
    assert!(warns(&plan(&world, UP, &service()), &theirs));
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(is_there(&world, &theirs));
}

#[test]
fn two_objects_of_one_create_are_both_left() {
    let world = World::new();
    let token = lost(&world, "here/cert", &service());
    let theirs = labelled(&world, "bank-1", "here/cert", Some(&token));
    let before = world.cloud.things();
    let Err(RunError::Refused(report)) = world.try_up(&service()) else { panic!("it is not refused") };
    assert!(format!("{report:?}").contains("has the labels of this deployment"));
    assert_eq!(world.cloud.things(), before);
    world.cloud.remove_foreign(&theirs);
    world.up(&service());
    world.check(&service());
}

#[test]
fn unrecorded_object_with_data_is_deleted_only_with_consent_and_by_its_id() {
    let mut world = World::new();
    world.protect_data = true;
    lost(&world, "here/db", &service());
    let database = world.cloud.things().into_iter().find(|thing| thing.resource == Some(id("here/db"))).unwrap();
    let kept = plan(&world, DOWN, &[]);
    let named = format!("`{}`", database.cloud_id);
    assert!(kept.retained.iter().any(|kept| kept.because.contains(&named)), "{:#?}", kept.retained);
    assert!(is_there(&world, &database.cloud_id));
    let going = plan(&world, DOWN_WITH_DATA, &[]);
    assert!(going.steps.iter().any(|step| step.because.contains(&named)), "{:#?}", lines(&going));
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().is_empty(), "{:#?}", world.cloud.things());
}

#[test]
fn tokens_are_not_guessed_from_labels() {
    let world = World::new();
    world.up(&service());
    let lineage = world.state().lineage();
    let guessed: Vec<Token> =
        (1..100).map(|op| Token::derive(lineage, &here(), textnlp_provider::OperationId(op))).collect();
    assert!(
        world.cloud.things().iter().all(|thing| thing.token.as_ref().is_some_and(|token| !guessed.contains(token)))
    );
}

/// The token of the last operation of a resource, as the provider received it.
fn last_token(world: &World, resource: &str) -> Token {
    let calls = world.cloud.calls();
    calls.into_iter().rev().find(|call| call.resource == id(resource)).unwrap().token
}

#[test]
fn token_of_a_refused_create_proves_nothing() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::Refuse(ErrorKind::Denied)).on(&id("here/cert")));
    assert!(!world.try_up(&service()).unwrap().is_complete());
    assert!(world.state().unresolved(&here()).is_empty());
    let theirs = labelled(&world, "bank-1", "here/cert", Some(&last_token(&world, "here/cert")));
    let Err(RunError::Refused(report)) = world.try_up(&service()) else { panic!("it is not refused") };
    assert!(format!("{report:?}").contains("`bank-1`"), "{report:?}");
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(is_there(&world, &theirs));
}

#[test]
fn object_that_is_older_than_a_create_is_not_of_it() {
    let world = World::new();
    let token = lost(&world, "here/cert", &service());
    let made = world.cloud.things().into_iter().find(|thing| thing.token.as_ref() == Some(&token)).unwrap().cloud_id;
    let started = world.state().unresolved(&here())[&id("here/cert")][0].started;
    let theirs = |minutes: i64| started.saturating_add(jiff::SignedDuration::from_mins(minutes)).unwrap();
    world.cloud.date(&made, theirs(-16));
    assert!(warns(&plan(&world, DOWN_WITH_DATA, &[]), &made));
    world.cloud.date(&made, theirs(-14));
    world.up(&service());
    world.check(&service());
}

#[test]
fn another_object_of_a_recorded_name_is_left_alone() {
    let world = World::new();
    world.up(&service());
    let db = world.cloud.things().into_iter().find(|thing| thing.resource == Some(id("here/db"))).unwrap();
    world.cloud.remove_foreign(&db.cloud_id);
    world.cloud.place_foreign(&db.kind, &db.cloud_id, None, db.spec.clone());
    // It may be the recorded one without its labels: its record stays too.
    let before = (world.cloud.things(), world.cloud.mutations());
    for (ask, wanted) in
        [(UP, service()), (UP, without(service(), &NEEDS_DB)), (DOWN, Vec::new()), (DOWN_WITH_DATA, Vec::new())]
    {
        let outcome = world.go(ask, &wanted, &Fuse::default()).unwrap();
        let Err(RunError::Refused(report)) = outcome else { panic!("it is not refused: {outcome:?}") };
        let report = format!("{report:?}");
        assert!(report.contains("has the name of a recorded object"), "{report}");
        assert!(report.contains("restore its labels `textnlp-lineage`"), "{report}");
        assert_eq!((world.cloud.things(), world.cloud.mutations()), before);
        assert!(world.state().holdings(&here()).unwrap()[&id("here/db")].current.is_some());
    }
    world.cloud.remove_foreign(&db.cloud_id);
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(world.cloud.things().is_empty(), "{:#?}", world.cloud.things());
}

#[test]
fn object_of_another_age_than_the_recorded_one_is_left_alone() {
    let world = World::new();
    world.up(&service());
    let db = world.cloud.things().into_iter().find(|thing| thing.resource == Some(id("here/db"))).unwrap();
    world.cloud.date(&db.cloud_id, "2026-01-01T00:00:00Z".parse().unwrap());
    world.up(&service());
    assert!(!plan(&world, UP, &service()).has_changes(), "the time is recorded");
    world.cloud.date(&db.cloud_id, "2026-01-02T00:00:00Z".parse().unwrap());
    assert!(warns(&plan(&world, DOWN_WITH_DATA, &[]), &db.cloud_id));
    assert!(world.down(DOWN_WITH_DATA).is_complete());
    assert!(is_there(&world, &db.cloud_id));
}

#[test]
fn existing_object_does_not_become_ours_once_existing_is_removed() {
    let world = World::new();
    let (kind, theirs) = (KindName::new("memory.network").unwrap(), CloudId::new("network-of-ada").unwrap());
    world.cloud.place_foreign(&kind, &theirs, None, Spec::of(&json!({"cidr": "10.0.0.0/16"})));
    let mut wanted = service();
    wanted[0] = external(wanted[0].clone(), theirs.as_str());
    world.up(&wanted);
    let plan = plan(&world, UP, &service());
    assert!(
        plan.refusals.iter().any(|refusal| refusal.cause.contains("was not created by this deployment")),
        "{plan:#?}"
    );
}

#[test]
fn object_of_another_deployment_under_a_recorded_id_is_named_as_theirs() {
    let world = World::new();
    world.up(&service());
    let db = world.cloud.things().into_iter().find(|thing| thing.resource == Some(id("here/db"))).unwrap().cloud_id;
    world.cloud.date(&db, "2026-01-01T00:00:00Z".parse().unwrap());
    world.up(&service());
    let theirs = Lineage(Uuid::from_u128(99));
    let planned = |ask: RunOptions, wanted: &[Wanted]| {
        let (_, mut facts) = world.plan(ask, wanted).unwrap();
        for (_, seen) in &mut facts.sites.get_mut(&here()).unwrap().observed {
            if let Observed::Present(object) = seen
                && object.cloud_id == db
            {
                (object.lineage, object.created) = (Some(theirs), Some("2026-01-02T00:00:00Z".parse().unwrap()));
            }
        }
        textnlp_orchestrator::plan::plan(&facts).unwrap()
    };
    let up = planned(UP, &service());
    let says = format!("belongs to deployment {theirs}");
    assert!(up.refusals.iter().any(|refusal| refusal.cause.contains(&says)), "{:#?}", up.refusals);
    let down = planned(DOWN_WITH_DATA, &[]);
    assert!(!warns(&up, &db) && !warns(&down, &db), "{:#?} {:#?}", up.warnings, down.warnings);
    let steps: Vec<_> = down.steps.iter().filter(|step| step.resource == id("here/db")).collect();
    assert!(matches!(steps.as_slice(), [step] if matches!(step.node, Node::Note(Note::Forget))), "{steps:#?}");
}
