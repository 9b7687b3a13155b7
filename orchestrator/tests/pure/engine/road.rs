//! The road in one piece: up, again, changed, stopped, two at once, down.

use std::sync::Arc;
use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::event::EventKind;
use textnlp_orchestrator::gate::{EnteredPhase, EntryBasis, Exemption, RecordedExemption};
use textnlp_orchestrator::plan::{self, DeleteData, Facts, Node, Note, Plan, Purpose, Summary};
use textnlp_orchestrator::run::{Run, RunError, RunOptions, run_phases};
use textnlp_orchestrator::state::{Entry, Holder, Operator, SCHEDULE, StateError, Store};
use textnlp_orchestrator::status::{self, ResourceHealth};
use textnlp_provider::memory::{Fault, FaultEffect, Fuse, Stage};
use textnlp_provider::{CloudId, ErrorKind, KindName, Lineage, Ownership, Problem, Spec, Verb, Wanted};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::world::*;

#[test]
fn second_up_plans_no_changes() {
    let world = World::new();
    let arrival = world.up(&service());
    assert_eq!(arrival.plan.unwrap().summary, Summary { create: 12, ..Summary::default() });
    world.check(&service());
}

#[test]
fn changed_value_updates_in_place_and_only_dependents_are_revisited() {
    let world = World::new();
    world.up(&service());
    let before = world.ours();
    let changed = with(service(), "cert", "names", json!(["localhost", "example.org"]));
    let arrival = world.up(&changed);
    let summary = arrival.plan.unwrap().summary;
    assert_eq!(summary, Summary { update: 1, possible: 1, unchanged: 10, ..Summary::default() });
    // The certificate's fingerprint is another one now, so the gateway was changed too; both are the objects they were.
    let did: Vec<String> = arrival.outcome.done.iter().map(|did| format!("{} {}", did.verb, did.resource)).collect();
    assert_eq!(did, ["update here/cert", "update here/gateway"]);
    let ids = |things: &[textnlp_provider::memory::StoredObject]| {
        things.iter().map(|thing| thing.cloud_id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(ids(&before), ids(&world.ours()));
    world.check(&changed);
}

#[test]
fn conditional_step_without_a_change_makes_no_call() {
    let world = World::new();
    world.up(&service());
    // The bucket's address does not follow from its limit.
    let changed = with(service(), "store", "limit", json!(6));
    let arrival = world.up(&changed);
    let did: Vec<String> = arrival.outcome.done.iter().map(|did| format!("{} {}", did.verb, did.resource)).collect();
    assert_eq!(did, ["update here/store"]);
    assert!(world.said(|what| matches!(what, EventKind::Chose { branch, .. } if branch == "nothing")));
    world.check(&changed);
}

#[test]
fn replaced_network_replaces_its_dependents() {
    let world = World::new();
    world.up(&service());
    let changed = with(service(), "net", "cidr", json!("10.1.0.0/16"));
    let arrival = world.up(&changed);
    assert_eq!(arrival.plan.unwrap().summary.replace, 4, "the network, the cluster and two servers");
    world.check(&changed);
}

#[test]
fn replicas_are_updated_one_after_the_other() {
    let world = World::new();
    world.up(&service());
    let changed = with(with(service(), "server/replica-0", "config", json!(2)), "server/replica-1", "config", json!(2));
    let (planned, _) = world.plan(UP, &changed).unwrap();
    let text = lines(planned.plan());
    assert_eq!(text[0], "0 update here/server/replica-0 (config)");
    assert_eq!(text[1], "1 update here/server/replica-1 (config) <- 0");
    world.up(&changed);
    world.check(&changed);
}

#[test]
fn unwanted_resources_are_deleted_after_their_users_are_updated() {
    let world = World::new();
    world.up(&service());
    let mut less = without(service(), &["cache", "server/replica-1"]);
    less = with(less, "gateway", "backends", json!([output("server/replica-0", "address")]));
    less.last_mut().unwrap().needs.retain(|need| need.on != id("here/server/replica-1"));
    let (planned, _) = world.plan(UP, &less).unwrap();
    let text = lines(planned.plan());
    assert_eq!(
        text,
        ["0 delete here/cache", "1 update here/gateway (backends)", "2 delete here/server/replica-1 <- 1"],
        "the gateway releases it first"
    );
    world.up(&less);
    world.check(&less);
}

#[test]
fn down_retains_data_and_the_resources_it_needs() {
    let mut world = World::new();
    world.protect_data = true;
    let mut all = service();
    all[6] = needs(all[6].clone(), &["vault/key"]);
    world.up(&all);
    let arrival = world.down(DOWN);
    assert!(arrival.is_complete());
    let kept: Vec<String> =
        arrival.plan.unwrap().retained.iter().map(|kept| format!("{}: {}", kept.resource, kept.because)).collect();
    assert_eq!(
        kept,
        ["here/db: it holds data", "here/vault: `here/vault/key` needs it", "here/vault/key: `here/db` needs it"]
    );
    assert_eq!(world.ours().len(), 3);
    assert!(!world.down(DOWN).plan.unwrap().has_changes(), "a second `down` has nothing to do");
    // The data is still there for the next `up`.
    let again = world.up(&all);
    assert_eq!(again.plan.unwrap().summary.unchanged, 3);
    world.check(&all);
    world.down(DOWN_WITH_DATA);
    assert!(world.ours().is_empty());
}

const DOWN_WITH_DUMPS: RunOptions = RunOptions { delete_data: DeleteData::Dumps, ..DOWN };

/// The service, with dumps of its database on a volume of its cluster.
fn dumped() -> Vec<Wanted> {
    let mut all = service();
    all.push(via(want("backup/volume", "database", json!({"dumps": true})), "cluster"));
    all
}

/// What a plan keeps, and why.
fn kept(plan: &Plan) -> Vec<String> {
    plan.retained.iter().map(|kept| format!("{}: {}", kept.resource, kept.because)).collect()
}

/// What a `down` that deletes the dumps is refused for.
fn refusal_of_dumps(world: &World) -> String {
    let calls = world.cloud.mutations();
    let refused = world.go(DOWN_WITH_DUMPS, &[], &Fuse::default()).expect("the run ends").unwrap_err();
    assert_eq!(world.cloud.mutations(), calls, "nothing was done");
    assert!(matches!(refused, RunError::Refused(_)), "{refused:?}");
    textnlp_provider::error_chain(&refused)
}

#[test]
fn cluster_is_removed_with_its_dumps_and_the_database_is_kept() {
    let mut world = World::new();
    world.protect_data = true;
    world.up(&dumped());
    let (planned, _) = world.plan(DOWN, &[]).unwrap();
    assert_eq!(
        kept(planned.plan()),
        [
            "here/backup/volume: it holds dumps; `down --delete-dumps ENV` deletes them, and keeps the database",
            "here/cluster: `here/backup/volume` needs it; `down --delete-dumps ENV` deletes both, and keeps the database",
            "here/db: it holds data",
            "here/net: `here/cluster` needs it",
        ]
    );
    let arrival = world.down(DOWN_WITH_DUMPS);
    assert!(arrival.is_complete());
    let plan = arrival.plan.unwrap();
    assert_eq!(kept(&plan), ["here/db: it holds data"]);
    let dumps = plan.steps.iter().find(|step| step.resource == id("here/backup/volume")).unwrap();
    assert!(dumps.because.contains("copies in a bucket stay"), "{}", dumps.because);
    let left: Vec<_> = world.ours().into_iter().filter_map(|thing| thing.resource).collect();
    assert_eq!(left, [id("here/db")]);
    // The flag never does nothing in silence.
    let refused = refusal_of_dumps(&world);
    assert!(refused.contains("no volume with dumps in a cluster"), "{refused}");
    world.down(DOWN_WITH_DATA);
    assert!(world.ours().is_empty());
}

#[test]
fn other_data_in_the_cluster_stays_when_only_dumps_are_deleted() {
    let mut world = World::new();
    world.protect_data = true;
    let mut all = dumped();
    all.push(via(protected(want("files", "bucket", json!({}))), "cluster"));
    world.up(&all);
    let (planned, _) = world.plan(DOWN, &[]).unwrap();
    let kept_before = kept(planned.plan());
    let hints: Vec<&String> = kept_before.iter().filter(|line| line.contains("--delete-dumps")).collect();
    assert!(hints.len() == 1 && hints[0].starts_with("here/backup/volume"), "the cluster stays: {kept_before:?}");
    let arrival = world.down(DOWN_WITH_DUMPS);
    assert!(arrival.is_complete());
    let plan = arrival.plan.unwrap();
    let (kept, warnings) = (kept(&plan), &plan.warnings);
    let names: Vec<&str> = kept.iter().filter_map(|line| line.split_once(':')).map(|(name, _)| name).collect();
    assert_eq!(names, ["here/cluster", "here/db", "here/files", "here/net"]);
    let warning = warnings.iter().find(|problem| problem.place == "here/cluster").expect("the cluster costs on");
    assert!(warning.cause.contains("`here/files` needs it"), "{warning:?}");
}

#[test]
fn existing_cluster_of_dumps_is_not_said_to_be_deleted() {
    let mut world = World::new();
    world.protect_data = true;
    world.up(&dumped());
    let (_, mut facts) = world.plan(DOWN, &[]).unwrap();
    let holdings = &mut facts.sites.get_mut(&here()).unwrap().holdings;
    let cluster = holdings.get_mut(&id("here/cluster")).unwrap().current.as_mut().unwrap();
    cluster.ownership = Ownership::External(cluster.cloud_id.clone());
    let before = kept(&plan::plan(&facts).unwrap());
    assert!(before.contains(&"here/cluster: `here/backup/volume` needs it".to_owned()), "{before:?}");
    facts.delete_data = DeleteData::Dumps;
    let plan = plan::plan(&facts).unwrap();
    assert_eq!(kept(&plan), ["here/db: it holds data"]);
    let of_cluster = plan.steps.iter().find(|step| step.resource == id("here/cluster")).unwrap();
    assert!(matches!(of_cluster.node, Node::Note(Note::Forget)), "it is its owner's: {of_cluster:?}");
    assert!(plan.warnings.iter().all(|problem| problem.place != "here/cluster"), "{:?}", plan.warnings);
}

#[test]
fn dumps_that_may_be_the_only_copy_are_not_deleted_alone() {
    let mut world = World::new();
    world.protect_data = true;
    let beside = |mut all: Vec<Wanted>| {
        all[6] = via(all[6].clone(), "cluster");
        all
    };
    world.up(&beside(dumped()));
    let refused = refusal_of_dumps(&world);
    assert!(refused.contains("`here/db` runs in the same cluster"), "{refused}");
    assert!(refused.contains("`--delete-data ENV` deletes the database"), "{refused}");
    let (planned, _) = world.plan(DOWN, &[]).unwrap();
    assert!(kept(planned.plan()).contains(&"here/backup/volume: it holds data".to_owned()), "no way out is named");

    let mut world = World::new();
    world.protect_data = true;
    world.up(&dumped());
    assert!(world.cloud.remove_behind_our_back(&id("here/db")));
    let refused = refusal_of_dumps(&world);
    assert!(refused.contains("`here/db` of the database outside of the cluster was not found"), "{refused}");
}

#[test]
fn missing_replica_in_another_region_keeps_no_dumps() {
    let mut world = World::new();
    world.protect_data = true;
    let mut all = dumped();
    all.push(want("copy", "replica", json!({"region": "far", "source": output("db", "address")})));
    world.up(&all);
    assert!(world.cloud.remove_behind_our_back(&id("here/copy")));
    let arrival = world.down(DOWN_WITH_DUMPS);
    assert!(arrival.is_complete());
    assert_eq!(kept(&arrival.plan.unwrap()), ["here/db: it holds data"]);

    // One without a source is the database itself.
    let mut world = World::new();
    world.protect_data = true;
    let last = all.len() - 1;
    all[last] = want("copy", "replica", json!({"region": "far"}));
    world.up(&all);
    assert!(world.cloud.remove_behind_our_back(&id("here/copy")));
    let refused = refusal_of_dumps(&world);
    assert!(refused.contains("`here/copy` of the database outside of the cluster was not found"), "{refused}");
}

#[test]
fn server_whose_database_is_gone_is_no_copy_of_the_dumps() {
    let mut world = World::new();
    world.protect_data = true;
    let mut all = dumped();
    all.push(want("db/schema", "database", json!({"server": output("db", "address")})));
    world.up(&all);
    assert!(world.cloud.remove_behind_our_back(&id("here/db/schema")));
    let refused = refusal_of_dumps(&world);
    assert!(refused.contains("`here/db/schema` of the database outside of the cluster was not found"), "{refused}");
    let (planned, _) = world.plan(DOWN, &[]).unwrap();
    assert!(kept(planned.plan()).contains(&"here/backup/volume: it holds data".to_owned()), "no way out is named");
}

#[test]
fn recorded_protection_holds_when_the_configuration_drops_it() {
    let world = World::new();
    let mut all = service();
    all[6] = protected(all[6].clone());
    world.up(&all);
    let less = without(all, &["db", "server/replica-0", "server/replica-1", "gateway"]);
    let arrival = world.try_up(&less).unwrap();
    assert_eq!(arrival.plan.unwrap().retained.len(), 1);
    assert!(world.ours().iter().any(|thing| thing.resource == Some(id("here/db"))));
}

#[test]
fn replacing_a_resource_with_data_needs_consent() {
    let mut world = World::new();
    world.protect_data = true;
    world.up(&service());
    let changed = with(service(), "db", "engine", json!("postgres"));
    let calls = world.cloud.mutations();
    let refused = world.try_up(&changed).unwrap_err();
    assert!(matches!(refused, RunError::Refused(_)), "{refused:?}");
    assert_eq!(world.cloud.mutations(), calls, "nothing was done");
    let done = world.go(RunOptions { delete_data: DeleteData::All, ..UP }, &changed, &Fuse::default());
    assert!(done.unwrap().unwrap().is_complete());
    world.check(&changed);
}

#[test]
fn unobserved_resource_is_neither_created_nor_deleted() {
    let world = World::new();
    world.up(&service());
    world.cloud.hide(&id("here/db"));
    let calls = world.cloud.mutations();
    let arrival = world.try_up(&with(service(), "server/replica-0", "config", json!(2))).unwrap();
    let plan = arrival.plan.unwrap();
    assert!(
        plan.blocked.iter().any(|blocked| blocked.resource == id("here/db") && blocked.because.contains("cut short"))
    );
    assert!(
        plan.blocked.iter().any(|blocked| blocked.resource == id("here/server/replica-0")),
        "it needs the unseen one"
    );
    assert_eq!(world.cloud.mutations(), calls);
    let arrival = world.down(DOWN_WITH_DATA);
    assert!(!arrival.is_complete());
    assert!(world.cloud.things().iter().any(|thing| thing.resource == Some(id("here/db"))), "not removed unseen");
    world.cloud.heal();
    world.up(&service());
    world.check(&service());
}

#[test]
fn externally_removed_resource_is_reported_and_recreated() {
    let world = World::new();
    world.up(&service());
    world.cloud.remove_behind_our_back(&id("here/cert"));
    world.cloud.change_behind_our_back(&id("here/gateway"), "backends", json!([]));
    world.cloud.degrade(&id("here/vault"), "it lost its disk");
    let (_, facts) = world.plan(UP, &service()).unwrap();
    let drift: Vec<String> =
        status::drift(&facts).iter().map(|drift| format!("{} {}", drift.resource, drift.what)).collect();
    assert_eq!(drift, ["here/cert gone", "here/gateway changed", "here/vault degraded"]);
    let status = status::status(&facts, world.state().places(), world.unfinished());
    assert!(!status.ready);
    let cert = status.resources.iter().find(|one| one.resource == id("here/cert")).unwrap();
    assert_eq!(cert.standing, ResourceHealth::Gone);
    world.up(&service());
    world.check(&service());
    let (_, facts) = world.plan(UP, &service()).unwrap();
    assert!(status::status(&facts, world.state().places(), world.unfinished()).ready);
}

/// The plan of `up` once a resource of these is gone.
fn plan_without(all: &[Wanted], gone: &str, protect_data: bool, delete_data: DeleteData) -> (Plan, Facts) {
    let mut world = World::new();
    world.protect_data = protect_data;
    world.up(all);
    assert!(world.cloud.remove_behind_our_back(&id(gone)));
    let (planned, facts) = world.plan(RunOptions { delete_data, ..UP }, all).unwrap();
    (planned.plan().clone(), facts)
}

fn causes(problems: &[Problem]) -> Vec<String> {
    problems.iter().map(|problem| format!("{} {}: {}", problem.word(), problem.place, problem.cause)).collect()
}

#[test]
fn database_that_is_gone_is_not_replaced_by_an_empty_one_until_its_loss_is_typed() {
    let of = |all: &[Wanted], gone: &str, protect_data: bool, consent: DeleteData| {
        let (plan, _) = plan_without(all, gone, protect_data, consent);
        let creates = plan.steps.iter().any(|step| step.resource == id(gone));
        (creates, [causes(&plan.refusals), causes(&plan.warnings)].concat())
    };
    let lost = "here/db: it is gone, with the data in it: what `up` creates in its place is empty";
    let (refused, accepted) = (format!("refused {lost}"), format!("warning {lost}"));
    assert_eq!(of(&service(), "here/db", true, DeleteData::Nothing), (false, vec![refused.clone()]));
    assert_eq!(of(&service(), "here/db", true, DeleteData::Lost), (true, vec![accepted.clone()]));
    assert_eq!(of(&service(), "here/db", false, DeleteData::Nothing), (true, vec![]));
    assert_eq!(of(&service(), "here/cert", true, DeleteData::Nothing), (true, vec![]));
    // A restore leaves a dump beside it, which is loaded once it is created.
    let loaded = with(service(), "db", "loaded", json!(true));
    assert_eq!(of(&loaded, "here/db", true, DeleteData::Nothing), (true, vec![accepted]));
    let unfilled = with(service(), "db", "loaded", json!(false));
    assert_eq!(of(&unfilled, "here/db", true, DeleteData::Nothing), (false, vec![refused.clone()]));
    let (plan, _) = plan_without(&service(), "here/db", true, DeleteData::Nothing);
    let fix = &plan.refusals[0].fix;
    let order = ["is mounted", "restore a backup", "--accept-data-loss"].map(|word| fix.find(word).expect(word));
    assert!(order.is_sorted(), "{fix}");
    let mut inside = service();
    inside[6] = via(inside[6].clone(), "cluster");
    let (plan, _) = plan_without(&inside, "here/db", true, DeleteData::Nothing);
    let fix = &plan.refusals[0].fix;
    assert!(fix.ends_with("then restore a dump into it") && !fix.contains("mounted"), "{fix}");
    let mut world = World::new();
    world.protect_data = true;
    world.up(&service());
    assert!(world.cloud.remove_behind_our_back(&id("here/db")));
    assert!(matches!(world.try_up(&service()), Err(RunError::Refused(_))));

    // Sites of a deployment fill each other: a restore would take all of them back.
    let mut shared = service();
    shared.push(want("watch", "database", json!({"shared": true})));
    let filled = "warning here/db: it is gone: if another site has the data, it fills in keys and feature flags; usage \
                  and the audit log of this site are lost";
    let restored = "note here/watch: it is gone: it is filled from the databases of the sites";
    assert_eq!(of(&shared, "here/db", true, DeleteData::Nothing), (true, vec![filled.to_owned()]));
    assert_eq!(of(&shared, "here/watch", true, DeleteData::Nothing), (true, vec![restored.to_owned()]));
    // No other site has it.
    let (_, mut facts) = plan_without(&shared, "here/db", true, DeleteData::Nothing);
    let mut other = facts.sites[&here()].clone();
    (other.wanted, other.holdings, other.observed) = Default::default();
    facts.sites.insert("there".parse().unwrap(), other.clone());
    assert_eq!(causes(&plan::plan(&facts).unwrap().refusals), [refused]);
    // After a restore, the logs of control data are filled from what was restored.
    let (_, mut facts) = plan_without(&shared, "here/watch", true, DeleteData::Nothing);
    facts.sites.insert("there".parse().unwrap(), other);
    assert_eq!(causes(&plan::plan(&facts).unwrap().warnings), [restored]);
}

#[test]
fn replacing_a_missing_host_recreates_its_children() {
    let world = World::new();
    world.up(&service());
    assert!(world.cloud.remove_behind_our_back(&id("here/cluster")));
    world.up(&service());
    world.check(&service());
}

#[test]
fn eventually_consistent_objects_are_not_recreated() {
    let world = World::new();
    world.cloud.show_after(3);
    let cache = [want("cache", "cache", json!({"engine": "redis"}))];
    world.up(&cache);
    let calls = world.cloud.mutations();
    world.up(&cache);
    assert_eq!(world.cloud.mutations(), calls, "it was waited for, not made twice");
    world.check(&cache);
}

#[test]
fn lost_reply_creates_no_duplicate_object() {
    for go in [
        FaultEffect::LostReply,
        FaultEffect::LostRequest,
        FaultEffect::Throttle(Some(Duration::from_secs(1))),
        FaultEffect::Refuse(ErrorKind::Conflict),
    ] {
        let world = World::new();
        for wanted in service() {
            world.cloud.inject(Fault::once(go.clone()).on(&wanted.id).times(2));
            world.cloud.inject(Fault::once(go.clone()).on(&wanted.id).stage(Stage::Advance));
        }
        world.up(&service());
        assert!(world.said(|what| matches!(what, EventKind::Retrying { .. })));
        world.check(&service());
    }
}

#[test]
fn unanswered_create_stays_open_and_the_next_run_completes_it() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::LostReply).on(&id("here/net")).times(100));
    let arrival = world.try_up(&service()).unwrap();
    assert!(!arrival.is_complete());
    assert_eq!(arrival.outcome.open.len(), 1);
    assert_eq!(world.state().open(&here()).unwrap().len(), 1);
    assert!(arrival.outcome.done.iter().any(|did| did.resource == id("here/db")), "independent work went on");
    let skipped = arrival.outcome.skipped.iter().find(|skipped| skipped.resource == id("here/gateway")).unwrap();
    assert_eq!(skipped.because, "`here/net` is not ready");
    world.cloud.heal();
    let arrival = world.up(&service());
    assert_eq!(arrival.recovered, 1);
    world.check(&service());
}

#[test]
fn partially_created_object_is_recorded_and_replaced() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::FailLeaving).on(&id("here/store")));
    let arrival = world.try_up(&service()).unwrap();
    assert_eq!(arrival.outcome.failed.len(), 1);
    let (planned, _) = world.plan(UP, &service()).unwrap();
    assert_eq!(planned.plan().summary.replace, 1);
    world.up(&service());
    world.check(&service());
}

#[test]
fn refused_call_fails_with_the_provider_code_and_leaves_nothing_open() {
    let world = World::new();
    world.cloud.inject(Fault::once(FaultEffect::Refuse(ErrorKind::Quota)).on(&id("here/db")));
    let arrival = world.try_up(&service()).unwrap();
    assert_eq!(arrival.outcome.failed[0].code.as_deref(), Some("Refused"));
    assert!(arrival.outcome.open.is_empty());
    world.up(&service());
    world.check(&service());
}

#[test]
fn preflight_problems_stop_the_run_before_any_call() {
    let world = World::new();
    world.cloud.quota(&KindName::new("memory.server").unwrap(), 1);
    let error = world.try_up(&service()).unwrap_err();
    assert!(matches!(error, RunError::Preflight(_)), "{error:?}");
    assert_eq!(world.cloud.mutations(), 0);
}

#[test]
fn foreign_object_with_the_same_name_is_left_alone() {
    let world = World::new();
    let (kind, name) =
        (KindName::new("memory.certificate").unwrap(), CloudId::new("memory://staging/here/cert").unwrap());
    let spec = Spec::of(&json!({"theirs": true}));
    world.cloud.place_foreign(&kind, &name, Some(Lineage(Uuid::from_u128(99))), spec.clone());
    let arrival = world.try_up(&service()).unwrap();
    let plan = arrival.plan.unwrap();
    assert!(plan.blocked.iter().any(|blocked| blocked.because.contains("another owner")), "{:?}", plan.blocked);
    world.down(DOWN_WITH_DATA);
    let left = world.cloud.things();
    assert_eq!(left.len(), 1);
    assert_eq!((&left[0].cloud_id, &left[0].spec), (&name, &spec));
}

#[test]
fn existing_external_object_is_read_and_never_modified() {
    let world = World::new();
    let kind = KindName::new("memory.network").unwrap();
    let theirs = CloudId::new("network-of-the-house").unwrap();
    world.cloud.place_foreign(&kind, &theirs, None, Spec::of(&json!({"cidr": "192.168.0.0/16"})));
    let mut all = service();
    all[0] = external(all[0].clone(), theirs.as_str());
    world.up(&all);
    let cluster = world.ours().into_iter().find(|thing| thing.resource == Some(id("here/cluster"))).unwrap();
    assert_eq!(cluster.spec.get("network"), Some(&json!(theirs)), "its outputs are used");
    let again = world.up(&all);
    assert!(again.plan.unwrap().steps.is_empty());
    world.down(DOWN_WITH_DATA);
    assert_eq!(world.cloud.things().len(), 1, "it is still there");
    assert!(world.state().holdings(&here()).unwrap().is_empty(), "and forgotten");
    let mut missing = service();
    missing[0] = external(missing[0].clone(), "no-such-network");
    assert!(matches!(world.try_up(&missing), Err(RunError::Refused(_))));
}

#[test]
fn own_object_is_never_left_behind_for_an_existing_one() {
    let world = World::new();
    world.up(&service());
    let kind = KindName::new("memory.network").unwrap();
    let theirs = ["first-network", "second-network"].map(|name| CloudId::new(name).unwrap());
    for name in &theirs {
        world.cloud.place_foreign(&kind, name, None, Spec::of(&json!({"cidr": "192.168.0.0/16"})));
    }
    let existing = |number: usize| {
        let mut all = service();
        all[0] = external(all[0].clone(), theirs[number].as_str());
        all
    };
    let network = || world.ours().into_iter().find(|thing| thing.resource == Some(id("here/net")));
    let own = network().unwrap();
    let refused = world.try_up(&existing(0)).unwrap_err();
    assert!(format!("{refused:?}").contains("would be left without a record"), "{refused:?}");
    assert_eq!(network().map(|thing| thing.cloud_id), Some(own.cloud_id));

    // From one existing object to another.
    world.down(DOWN_WITH_DATA);
    for number in [0, 1] {
        world.up(&existing(number));
        let cluster = world.ours().into_iter().find(|thing| thing.resource == Some(id("here/cluster"))).unwrap();
        assert_eq!(cluster.spec.get("network"), Some(&json!(theirs[number])), "the outputs of this one are used");
        let again = world.up(&existing(number));
        assert!(again.plan.unwrap().steps.is_empty());
    }
}

#[test]
fn cancelled_run_starts_nothing_new_and_the_next_run_resumes() {
    let world = World::new();
    world.cloud.slow(1_000_000);
    let stop = world.stop.lock().unwrap().clone();
    let clock = world.clock.clone();
    let alarm = async {
        textnlp_orchestrator::clock::Clock::sleep(&clock, Duration::from_secs(2)).await;
        stop.cancel();
    };
    let sites = world.site(&service(), &Fuse::default());
    let environment = environment();
    let road =
        world.road(Arc::new(world.disk.clone()), &sites, &environment, &textnlp_orchestrator::event::DiscardEvents);
    let mut agree = |_: &_, _: &_| true;
    let both = async { tokio::join!(textnlp_orchestrator::run::run_phases(&road, UP, &mut agree, &stop), alarm) };
    let (arrival, ()) = world.clock.run(both).expect("it ends");
    let outcome = arrival.unwrap().outcome;
    assert!(outcome.stopped && !outcome.open.is_empty() && !outcome.skipped.is_empty());
    *world.stop.lock().unwrap() = tokio_util::sync::CancellationToken::new();
    world.cloud.slow(0);
    let db = world.ours().into_iter().find(|thing| thing.resource == Some(id("here/db"))).unwrap();
    assert!(db.looks_left > 0, "it was still being made");
    assert!(world.cloud.finish_slowly_made());
    world.up(&service());
    world.check(&service());
}

#[test]
fn operation_past_its_time_limit_stays_open() {
    let world = World::new();
    world.cloud.slow(1_000_000);
    let arrival = world.try_up(&service()).unwrap();
    assert!(arrival.outcome.open.iter().any(|open| open.because.contains("exceeded its time limit")));
    world.cloud.finish_slowly_made();
    world.cloud.slow(0);
    world.up(&service());
    world.check(&service());
}

#[test]
fn concurrent_run_is_refused_naming_the_lock_holder() {
    let world = World::new();
    let holder = Holder {
        by: "grace".to_owned(),
        pid: 4711,
        host: "elsewhere".to_owned(),
        since: "2026-01-01T00:00:00Z".parse().unwrap(),
        tool: "textnlp-deploy 0.1.0".to_owned(),
    };
    let lock = world.clock.run(world.disk.lock(&holder)).unwrap().unwrap();
    let error = world.try_up(&service()).unwrap_err();
    let RunError::State(error @ StateError::Held { .. }) = &error else { panic!("{error:?}") };
    let text = error.to_string();
    assert!(text.contains("grace") && text.contains("4711") && text.contains("elsewhere"), "{text}");
    assert_eq!(world.cloud.mutations(), 0);
    assert!(world.plan(UP, &service()).unwrap().0.plan().has_changes(), "planning takes no lock");
    drop(lock);
    world.up(&service());
    world.check(&service());
}

#[test]
fn run_waits_for_a_scheduled_backup_but_not_for_a_stuck_one() {
    for (seconds, waits) in [(30, true), (600, false)] {
        let world = World::new();
        let holder = Holder {
            by: SCHEDULE.to_owned(),
            pid: 4711,
            host: "here".to_owned(),
            since: "2026-01-01T00:00:00Z".parse().unwrap(),
            tool: "textnlp-deploy 0.1.0".to_owned(),
        };
        let lock = world.clock.run(world.disk.lock(&holder)).unwrap().unwrap();
        let clock = world.clock.clone();
        let _backup = world.clock.spawn(Box::pin(async move {
            clock.sleep(Duration::from_secs(seconds)).await;
            drop(lock);
        }));
        match world.try_up(&service()) {
            Ok(_) => assert!(waits, "{seconds} s"),
            Err(RunError::State(StateError::Held { .. })) => assert!(!waits, "{seconds} s"),
            Err(error) => panic!("{error:?}"),
        }
        assert_eq!(world.cloud.mutations() > 0, waits);
    }
}

#[test]
fn wall_clock_jumps_do_not_affect_a_run() {
    for hours in [-1000, -24, 1000, 24 * 365] {
        let world = World::new();
        let calls = std::sync::atomic::AtomicU32::new(0);
        let sites = world.site(&service(), &Fuse::default());
        let environment = environment();
        let jump = |_event| {
            if calls.fetch_add(1, std::sync::atomic::Ordering::SeqCst).is_multiple_of(3) {
                world.clock.jump(SignedDuration::from_hours(hours));
            }
        };
        let road = world.road(Arc::new(world.disk.clone()), &sites, &environment, &jump);
        let stop = tokio_util::sync::CancellationToken::new();
        let arrival =
            world.clock.run(textnlp_orchestrator::run::run_phases(&road, UP, &mut |_, _| true, &stop)).unwrap();
        assert!(arrival.unwrap().is_complete());
        world.check(&service());
    }
}

#[test]
fn changing_the_location_of_a_site_with_resources_is_refused() {
    let mut world = World::new();
    world.up(&service());
    world.region = "elsewhere".to_owned();
    let error = world.try_up(&service()).unwrap_err();
    let RunError::State(error @ StateError::OtherPlace { .. }) = &error else { panic!("{error:?}") };
    assert!(error.hint().unwrap().contains("rename site"), "{error}");
    world.region = "local".to_owned();
    world.down(DOWN_WITH_DATA);
    world.region = "elsewhere".to_owned();
    world.up(&service());
    world.check(&service());
}

#[test]
fn interrupted_up_is_unfinished_until_another_completes() {
    let mut killed = 0;
    for boundary in 0..200 {
        let world = World::new();
        if world.go(UP, &service(), &Fuse::blows_at(boundary)).is_some() {
            break;
        }
        let recorded = world.state().holdings(&here()).unwrap();
        let (_, facts) = world.plan(UP, &service()).unwrap();
        let status = status::status(&facts, world.state().places(), world.unfinished());
        // Only the release of the lock is left to do once the run is completed.
        assert!(!status.ready || recorded.len() == service().len(), "ready with {} resources", recorded.len());
        for run in &status.unfinished {
            assert_eq!((run.purpose, run.by.as_str()), (Purpose::Up, "ada"));
            assert_eq!(run.missing.len(), service().len() - recorded.len(), "{run}");
            killed += 1;
        }
        world.up(&service());
        assert_eq!(world.unfinished(), []);
        let (_, facts) = world.plan(UP, &service()).unwrap();
        assert!(status::status(&facts, world.state().places(), world.unfinished()).ready);
    }
    assert!(killed > 20, "{killed}");
    // The same for a run that ends by itself, and for `down`.
    let world = World::new();
    world.up(&service());
    assert!(world.go(DOWN_WITH_DATA, &[], &Fuse::blows_at(20)).is_none());
    let left = world.unfinished();
    assert_eq!((left.len(), left[0].purpose, left[0].missing.len()), (1, Purpose::Down, 0), "{left:?}");
    world.down(DOWN_WITH_DATA);
    assert_eq!(world.unfinished(), []);
}

#[test]
fn gate_evidence_ends_with_every_change_of_the_resources() {
    let world = World::new();
    world.up(&service());
    let evidence = || world.state().evidence().map(str::to_owned);
    let write = |entry: Entry| {
        let reason = Some("INC-7".to_owned());
        let operator = Operator { by: "ada".into(), reason, tool: "test".into(), host: "here".into(), pid: 1 };
        let run = async {
            let state = world.state();
            let places = state.places().clone();
            let mut locked = state.lock(&operator, &places, Arc::new(world.clock.clone())).await.unwrap();
            locked.commit(&here(), |writer| writer.entry(entry)).await.unwrap();
            locked.close().await.unwrap();
        };
        world.clock.run(run).unwrap();
    };
    let measure = || {
        let (gate, evidence_digest) = ("open".to_owned(), "ab".repeat(32));
        write(Entry::Measured { phase: Phase::Staging, gate, evidence: evidence_digest });
        assert_eq!(evidence(), Some("ab".repeat(32)));
    };
    assert_eq!(evidence(), None);
    measure();
    world.up(&service());
    assert_eq!(evidence(), Some("ab".repeat(32)), "a run without changes keeps it");
    let waiver = |until| Exemption::Waiver { check: "metrics".to_owned(), until };
    let decided = [waiver(jiff::civil::date(2026, 2, 1)), waiver(jiff::civil::date(2026, 3, 1))];
    for exemption in decided.clone() {
        write(Entry::Exempted { phase: Phase::Staging, exemption });
    }
    assert_eq!(evidence(), Some("ab".repeat(32)), "a decision changes no resource");
    let changed = with(service(), "cert", "names", json!(["localhost", "example.org"]));
    world.up(&changed);
    assert_eq!(evidence(), None, "the certificate is another one");
    measure();
    world.cloud.remove_behind_our_back(&id("here/cert"));
    world.up(&changed);
    assert_eq!(evidence(), None, "what was lost was made again");
    measure();
    assert_eq!(world.state().removal(), None);
    assert!(!world.state().is_down());
    world.down(DOWN_WITH_DATA);
    assert_eq!(evidence(), None);
    assert!(world.state().removal().is_some());
    assert!(world.state().is_down());
    world.up(&service());
    assert!(!world.state().is_down());
    assert_eq!(evidence(), None);
    let kept = world.state().exemptions();
    let of = |kept: &RecordedExemption| (kept.by.clone(), kept.reason.clone(), kept.exemption.clone());
    let expected = decided.map(|exemption| ("ada".to_owned(), Some("INC-7".to_owned()), exemption));
    assert_eq!(kept.iter().map(of).collect::<Vec<_>>(), expected, "decisions are permanent");
}

#[test]
fn entry_into_a_phase_is_recorded_once_even_without_changes() {
    let world = World::new();
    world.up(&service());
    let exemption = Exemption::FromScratch { release: "sha256:one".to_owned() };
    let exempted = Entry::Exempted { phase: Phase::Pilot, exemption };
    let (release, basis) = ("sha256:two".to_owned(), EntryBasis::Bundle { version: "2".into(), key: "ab".into() });
    let entered = Entry::Entered { phase: Phase::Pilot, release: release.clone(), basis };
    for entry in [exempted, entered] {
        let (sites, environment) = (world.site(&service(), &Fuse::default()), environment());
        let store = Arc::new(world.disk.with_fuse(Fuse::default()));
        let events = &textnlp_orchestrator::event::DiscardEvents;
        let run = Run { entry: Some(entry), ..world.road(store, &sites, &environment, events) };
        let stop = CancellationToken::new();
        let outcome = world.clock.run(run_phases(&run, UP, &mut |_, _| true, &stop)).unwrap().unwrap();
        assert!(!outcome.plan.unwrap().has_changes());
    }
    let state = world.state();
    assert_eq!(state.exemptions().len(), 1);
    assert_eq!(state.entered().cloned().collect::<Vec<_>>(), [EnteredPhase { phase: Phase::Pilot, release }]);
    assert_eq!(state.unfinished().count(), 0);
}

#[test]
fn history_reports_author_action_and_reason() {
    let world = World::new();
    world.up(&service());
    let state = world.state();
    let lines = world.clock.run(status::history(&state, &here())).unwrap().unwrap();
    assert!(
        lines.iter().all(|line| line.by == "ada"
            && line.reason.as_deref() == Some("test")
            && line.tool == "textnlp-deploy 0.1.0")
    );
    assert!(lines.iter().any(|line| line.text.contains("create here/db started")));
    let (_, facts) = world.plan(UP, &service()).unwrap();
    let explained = world.clock.run(status::explain(&state, &facts, &id("here/db"))).unwrap().unwrap();
    assert_eq!(explained.standing, Some(ResourceHealth::Ready));
    assert!(explained.history.iter().all(|line| line.resource == Some(id("here/db"))) && explained.history.len() >= 3);
}

#[test]
fn each_operation_makes_one_change_per_call() {
    let world = World::new();
    world.up(&service());
    let calls = world.cloud.calls();
    let creates = calls.iter().filter(|call| call.verb == Verb::Create && call.stage == "begin").count();
    assert_eq!(creates, 12, "one call for each");
}

#[test]
fn dependencies_of_an_unobserved_resource_are_kept() {
    let world = World::new();
    let before = [want("a", "vault", json!({})), want("b", "gateway", json!({"uses": output("a", "id")}))];
    world.up(&before);
    let after = [want("b", "gateway", json!({}))];
    world.cloud.hide(&id("here/b"));
    let arrival = world.try_up(&after).unwrap();
    assert!(!arrival.is_complete());
    assert_eq!(world.ours().len(), 2, "`a` is still in use by what could not be seen");
    world.cloud.heal();
    world.up(&after);
    world.check(&after);
}
