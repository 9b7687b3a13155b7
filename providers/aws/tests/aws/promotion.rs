//! Promotions of a replica in another region, and failovers to a standby.

use serde_json::{Value, json};
use textnlp_orchestrator::replica::ReplicaError;
use textnlp_provider::memory::Fuse;
use textnlp_sim::aws::rds::Rds;
use textnlp_sim::{Disruption, Fault, Options, Outcome, Rule, Scope, Stages};

use crate::engine::{Account, Stack, UP};
use crate::programs::failover;
use crate::shape::Shape;
use crate::{ACCOUNT, REGION};

const THERE: &str = "eu-central-1";
const REPLICA: &str = "textnlp-staging-here-database-remote";
/// The most times that a promotion is killed: one makes fewer calls and writes.
const MAX_KILLS: u64 = 200;

fn shape(has_replica: bool) -> Shape {
    Shape { network: true, models: true, database: true, copies: (false, has_replica), ..Shape::BARE }
}

/// How many failovers RDS accepted.
fn failovers(account: &Account) -> usize {
    let requests = account.simulator.requests();
    requests.iter().filter(|one| one.operation == "RebootDBInstance" && one.outcome == Outcome::Succeeded).count()
}

#[test]
fn an_rds_database_needs_a_standby_to_fail_over() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0011);
    let wanted = [1, 0].map(|replicas| Shape { replicas, ..shape(false) }.wanted(&account, "staging"));
    failover::needs_a_standby(&stack, wanted.each_ref().map(Vec::as_slice), || failovers(&account));
}

#[test]
fn an_rds_failover_that_is_killed_anywhere_is_not_repeated() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0012);
    let wanted = Shape { replicas: 1, ..shape(false) }.wanted(&account, "staging");
    failover::is_not_repeated(&stack, &wanted, || failovers(&account));
}

/// The region of the source answers no request any more.
fn lose_region(account: &Account) {
    account.simulator.faults().add(Rule::always("", "", Disruption::Unavailable).in_region(REGION));
}

/// How many promotions RDS accepted.
fn promotions(account: &Account) -> usize {
    let requests = account.simulator.requests();
    requests.iter().filter(|one| one.operation == "PromoteReadReplica" && one.outcome == Outcome::Succeeded).count()
}

/// The server that the replica follows.
fn source(account: &Account) -> Option<String> {
    let world = account.simulator.world();
    let replica = &world.find::<Rds>(&Scope::new(ACCOUNT, THERE)).unwrap().instances[REPLICA];
    replica.shown.get("ReadReplicaSourceDBInstanceIdentifier").and_then(Value::as_str).map(str::to_owned)
}

#[test]
fn an_rds_replica_is_promoted_once_the_region_of_its_source_is_lost() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0004);
    stack.reach(UP, &shape(true).wanted(&account, "staging"));
    let promote = || stack.promote(THERE, false, &Fuse::default()).unwrap();

    let refused = promote().unwrap_err();
    assert!(matches!(&refused, ReplicaError::SourceRuns { why, .. } if why.contains("available")), "{refused:?}");
    assert_eq!(promotions(&account), 0);

    lose_region(&account);
    let promoted = promote().unwrap();
    assert_eq!(source(&account), None);
    let fields =
        ["source", "backup_days", "deletion_protection", "region"].map(|field| promoted.spec.get(field).cloned());
    assert_eq!(fields, [Value::Null, json!(7), json!(true), json!(THERE)].map(Some));
    assert!(promoted.outputs["host"].is_string() && promoted.outputs["port"].is_number(), "{:?}", promoted.outputs);
    let before = promotions(&account);
    assert_eq!((promote().unwrap(), promotions(&account)), (promoted, before), "a finished promotion changes nothing");

    // An `up` that wants the replica again is refused as a whole: another change may cut clients off from the promoted server.
    account.simulator.faults().clear();
    let (plan, _) = stack.look(UP, &shape(true).wanted(&account, "staging"));
    let refused: Vec<&str> = plan.refusals.iter().map(|one| one.place.as_str()).collect();
    assert_eq!(refused, ["here/database/remote"], "{:?}", plan.refusals);

    // The data of this environment is not protected, and the promoted server stays with what it needs.
    let (plan, _) = stack.look(UP, &shape(false).wanted(&account, "staging"));
    assert!(plan.blocked.is_empty() && plan.refusals.is_empty(), "{plan:#?}");
    let retained: Vec<&str> = plan.retained.iter().map(|one| one.resource.as_str()).collect();
    for part in ["remote", "remote-key", "remote-vpc", "remote-subnets", "remote-access", "remote-parameters"] {
        assert!(retained.contains(&format!("here/database/{part}").as_str()), "{part}: {retained:?}");
    }
    assert!(!retained.contains(&"here/database/instance"), "{retained:?}");
}

#[test]
fn an_rds_promotion_that_is_killed_anywhere_is_finished_by_the_next_one() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0005);
    stack.reach(UP, &shape(true).wanted(&account, "staging"));
    lose_region(&account);
    let mut kills = 0;
    let promoted = loop {
        if let Some(promoted) = stack.promote(THERE, false, &Fuse::blows_at(kills)) {
            break promoted.unwrap();
        }
        kills += 1;
        assert!(kills < MAX_KILLS, "it is never finished");
    };
    assert!(kills > 0 && promotions(&account) > 0);
    assert_eq!((source(&account), promoted.spec.get("source"), promoted.protected), (None, Some(&Value::Null), true));
    assert!(stack.recorded().contains(&promoted));
    // The next promotion has nothing to do.
    assert_eq!(stack.open(), 0);
    let before = promotions(&account);
    assert_eq!(stack.promote(THERE, false, &Fuse::default()).unwrap().unwrap(), promoted);
    assert_eq!(promotions(&account), before);
}

#[test]
fn an_rds_promotion_is_refused_once_the_source_answers_again() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0007);
    stack.reach(UP, &shape(true).wanted(&account, "staging"));
    let refused = |fuse: &Fuse| stack.promote(THERE, false, fuse).unwrap().unwrap_err();
    let runs = |refused: &ReplicaError| matches!(refused, ReplicaError::SourceRuns { .. });

    // It answers while the operator is asked.
    let lost = Rule::always("rds", "DescribeDBInstances", Disruption::Unavailable).in_region(REGION);
    account.simulator.faults().add(Rule { times: 3, ..lost });
    let error = refused(&Fuse::default());
    assert!(runs(&error), "{error:?}");

    // It answers after a crash between the record of the promotion and its call.
    lose_region(&account);
    let mut kills = 0;
    while stack.open() == 0 {
        let promoted = stack.promote(THERE, false, &Fuse::blows_at(kills));
        assert!(promoted.is_none(), "{promoted:?}");
        kills += 1;
    }
    account.simulator.faults().clear();
    for status in ["modifying", "available"] {
        let there = Scope::new(ACCOUNT, THERE);
        let mut world = account.simulator.world();
        world.state::<Rds>(&there).instances.get_mut(REPLICA).unwrap().status = Stages::settled(status);
        drop(world);
        let error = refused(&Fuse::default());
        assert!(runs(&error), "{status}: {error:?}");
    }
    assert_eq!(promotions(&account), 0);
    stack.promote(THERE, true, &Fuse::default()).unwrap().unwrap();
    assert_eq!((source(&account), promotions(&account)), (None, 1));
}

#[test]
fn an_rds_replica_that_is_not_ours_or_may_not_be_promoted_is_refused() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0006);
    stack.reach(UP, &shape(true).wanted(&account, "staging"));
    let promote = |region: &str| stack.promote(region, true, &Fuse::default()).unwrap();

    let refused = promote("eu-north-1").unwrap_err();
    let is_told = |regions: &std::collections::BTreeSet<String>| regions.iter().eq([THERE]);
    assert!(matches!(&refused, ReplicaError::NotRecorded { elsewhere, .. } if is_told(elsewhere)), "{refused:?}");

    let belongs_to = |lineage: String| {
        let mut world = account.simulator.world();
        let (now, arn) = (world.now(), format!("arn:aws:rds:{THERE}:{ACCOUNT}:db:{REPLICA}"));
        world.tags.set(&arn, [("textnlp-lineage".to_owned(), lineage)], now);
    };
    belongs_to("00000000-0000-4000-8000-000000000bad".to_owned());
    let refused = promote(THERE).unwrap_err();
    assert!(matches!(&refused, ReplicaError::Unfit { .. }), "{refused:?}");
    belongs_to(stack.lineage().to_string());

    let denied =
        Fault::new("AccessDenied", "no identity-based policy allows the rds:PromoteReadReplica action").status(403);
    account.simulator.faults().add(Rule::nth("rds", "PromoteReadReplica", 1, Disruption::Refused(denied)));
    let refused = promote(THERE).unwrap_err();
    let ReplicaError::Incomplete { outcome, .. } = &refused else { panic!("{refused:?}") };
    assert_eq!(outcome.failed[0].code.as_deref(), Some("AccessDenied"), "{outcome:?}");
    assert!(outcome.open.is_empty() && source(&account).is_some(), "{outcome:?}");
    // The cause is gone, and the operator accepts that the source runs.
    promote(THERE).unwrap();
    assert_eq!(source(&account), None);
}
