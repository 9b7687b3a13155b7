//! Promotions of a database's replica in another region, on clouds with one API for all regions.

use serde_json::{Value, json};
use textnlp_orchestrator::plan::{DeleteData, Purpose};
use textnlp_orchestrator::replica::ReplicaError;
use textnlp_orchestrator::run::RunOptions;
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Spec, Wanted};
use textnlp_sim::{Disruption, Exchange, Outcome, Rule};

use crate::programs::engine::{DOWN, Process, Stack, UP};
use crate::programs::shape::Shape;
use crate::story::Simulated;

/// The record of the replica.
const REMOTE: &str = "main/database/remote";
const LINEAGE: u128 = 0x1234_5678_9abc_4def_8000_0000_0000_0004;
/// The most times that a promotion is killed: one makes fewer calls and writes.
const MAX_KILLS: u64 = 300;
/// A removal without the consent to remove data.
const KEEPING: RunOptions = RunOptions { delete_data: DeleteData::Nothing, ..DOWN };

/// A cloud with such replicas.
pub(crate) trait Replicated: Simulated {
    /// The region of the replica.
    const THERE: &'static str;
    /// The service, and its operation that reads a server.
    const READ: (&'static str, &'static str);
    /// The record of the server that it replicates.
    const SOURCE: &'static str;
    /// The field that keeps the cloud from deleting a server, where there is one.
    const PROTECTION: Option<&'static str>;

    /// The source is gone.
    fn lose_source(&self);

    /// Whether a request promotes a server.
    fn is_promotion(one: &Exchange) -> bool;
}

fn wanted<C: Replicated>(cloud: &C, process: &Process, has_replica: bool) -> Vec<Wanted> {
    cloud.wanted(process, &Shape::replicated(has_replica.then_some(C::THERE)), "staging")
}

/// How many promotions the cloud accepted.
fn promotions<C: Replicated>(cloud: &C) -> usize {
    let is_one = |one: &&Exchange| C::is_promotion(one) && one.outcome == Outcome::Succeeded;
    cloud.requests().iter().filter(is_one).count()
}

/// While the source runs only an operator who accepts that promotes its replica, and what is promoted stays.
pub(crate) fn stays_promoted<C: Replicated>(cloud: &C) {
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", LINEAGE);
    let [with, without] = [true, false].map(|has_replica| wanted(cloud, &process, has_replica));
    stack.reach(UP, &with);
    let (plan, _) = stack.look(UP, &with);
    assert!(plan.steps.is_empty() && plan.blocked.is_empty(), "{plan:#?}");

    let mut of_another = with.clone();
    let replica = of_another.iter_mut().find(|one| one.id.as_str() == REMOTE).unwrap();
    let mut spec = replica.spec.as_value().clone();
    spec["source"] = json!("another");
    replica.spec = Spec::of(&spec);
    let (plan, _) = stack.look(UP, &of_another);
    let refused = plan.refusals.iter().map(ToString::to_string).collect::<String>();
    assert!(refused.contains(REMOTE) && refused.contains("a replica stays one of its server"), "{refused}");

    let promote = |while_source_runs| stack.promote(C::THERE, while_source_runs, &Fuse::default()).unwrap();
    let refused = promote(false).unwrap_err();
    assert!(matches!(&refused, ReplicaError::SourceRuns { .. }), "{refused:?}");
    assert_eq!(promotions(cloud), 0);
    let promoted = promote(true).unwrap();
    let fields = ["source", "backup_days", "location"].map(|field| promoted.spec.get(field).cloned());
    assert_eq!(fields, [Value::Null, json!(7), json!(C::THERE)].map(Some));
    if let Some(field) = C::PROTECTION {
        assert_eq!(promoted.spec.get(field), Some(&json!(true)));
    }
    for output in ["host", "port", "database", "user"] {
        assert!(promoted.outputs.get(output).is_some_and(|value| !value.is_null()), "{output}: {promoted:?}");
    }
    assert_eq!((promote(false).unwrap(), promotions(cloud)), (promoted, 1), "a finished promotion changes nothing");

    let (plan, _) = stack.look(UP, &with);
    let refused: Vec<&str> = plan.refusals.iter().map(|one| one.place.as_str()).collect();
    assert_eq!(refused, [REMOTE], "{:?}", plan.refusals);
    // The data of this environment is not protected, and the promoted server stays.
    for (ask, wanted) in [(UP, without.as_slice()), (KEEPING, &[][..])] {
        let (plan, _) = stack.look(ask, wanted);
        assert!(plan.blocked.is_empty() && plan.refusals.is_empty(), "{plan:#?}");
        let retained: Vec<&str> = plan.retained.iter().map(|one| one.resource.as_str()).collect();
        assert!(retained.contains(&REMOTE) && !retained.contains(&C::SOURCE), "{retained:?}");
        let is_source = plan.steps.iter().any(|step| step.resource.as_str() == C::SOURCE);
        assert_eq!(is_source, ask.purpose == Purpose::Down, "{plan:#?}");
    }
    stack.reach(DOWN, &[]);
    assert!(!stack.recorded().iter().any(|one| one.id.as_str() == REMOTE), "it is removed with the consent");
    assert_eq!(cloud.violations(), Vec::<String>::new());
}

/// The next promotion finishes one that is killed anywhere.
pub(crate) fn is_finished_after_a_kill<C: Replicated>(cloud: &C) {
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", LINEAGE);
    stack.reach(UP, &wanted(cloud, &process, true));
    cloud.lose_source();
    let mut kills = 0;
    let promoted = loop {
        if let Some(promoted) = stack.promote(C::THERE, false, &Fuse::blows_at(kills)) {
            break promoted.unwrap();
        }
        kills += 1;
        assert!(kills < MAX_KILLS, "it is never finished");
    };
    assert!(kills > 0 && promotions(cloud) > 0);
    assert_eq!((promoted.spec.get("source"), promoted.protected), (Some(&Value::Null), true));
    assert!(stack.recorded().contains(&promoted) && stack.open() == 0);
}

/// A source counts as lost after three reads without an answer, and is read again before the call.
pub(crate) fn is_refused_once_the_source_answers<C: Replicated>(cloud: &C) {
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", LINEAGE);
    stack.reach(UP, &wanted(cloud, &process, true));
    let (service, read) = C::READ;
    let promote = |lost_reads| {
        // The first read is that of the replica.
        let lost = Rule { after: 1, times: lost_reads, ..Rule::always(service, read, Disruption::Unavailable) };
        cloud.faults().add(lost);
        let promoted = stack.promote(C::THERE, false, &Fuse::default()).unwrap();
        cloud.faults().clear();
        promoted
    };
    let refused = promote(3).unwrap_err();
    assert!(matches!(&refused, ReplicaError::SourceRuns { .. }), "{refused:?}");
    assert_eq!(promotions(cloud), 0);
    assert_eq!(promote(4).unwrap().spec.get("source"), Some(&Value::Null));
    assert_eq!(promotions(cloud), 1);
}
