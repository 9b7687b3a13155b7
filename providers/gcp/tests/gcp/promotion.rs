//! Promotions of a replica of Cloud SQL in another region, and failovers to a standby.

use textnlp_provider::component::ComponentSpec;
use textnlp_provider::{Component, Provider};
use textnlp_sim::gcp::Options;
use textnlp_sim::{Disruption, Exchange, Fault, Outcome, Rule};

use crate::programs::engine::Stack;
use crate::programs::shape::Shape;
use crate::programs::{World, failover};
use crate::random::Played;
use crate::replicated::{self, Replicated};
use crate::story::Simulated;
use crate::{Bench, REGION, REMOTE};

impl Replicated for Played {
    const THERE: &'static str = REMOTE;
    const READ: (&'static str, &'static str) = ("sql", "sql.instances.get");
    const SOURCE: &'static str = "main/database/server";
    const PROTECTION: Option<&'static str> = Some("deletion_protection");

    fn lose_source(&self) {
        let mut world = self.cloud.world();
        let is_source = |key: &String| {
            let is_primary = |body: &serde_json::Value| body["masterInstanceName"].is_null();
            key.contains("/instances/") && key.split('/').count() == 5 && world.get(key).is_some_and(is_primary)
        };
        let key = world.keys().into_iter().find(is_source).unwrap();
        world.objects.remove(&key);
    }

    fn is_promotion(one: &Exchange) -> bool {
        one.operation == "sql.instances.promoteReplica"
    }
}

/// The operation that fails over.
const FAILOVER: &str = "sql.instances.failover";

/// How many failovers the cloud accepted.
fn failovers(cloud: &Played) -> usize {
    let is_one = |one: &&Exchange| one.operation == FAILOVER && one.outcome == Outcome::Succeeded;
    cloud.requests().iter().filter(is_one).count()
}

#[test]
fn a_database_of_cloud_sql_needs_a_standby_to_fail_over() {
    let cloud = cloud();
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0011);
    let wanted = [1, 0].map(|count| cloud.wanted(&process, &Shape::with_standbys(count), "staging"));
    failover::needs_a_standby(&stack, wanted.each_ref().map(Vec::as_slice), || failovers(&cloud));
}

#[test]
fn a_failover_of_cloud_sql_that_is_killed_anywhere_is_not_repeated() {
    let cloud = cloud();
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0012);
    let wanted = cloud.wanted(&process, &Shape::with_standbys(1), "staging");
    failover::is_not_repeated(&stack, &wanted, || failovers(&cloud));
}

#[test]
fn a_failover_of_cloud_sql_counts_from_its_call() {
    let cloud = cloud();
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0013);
    let wanted = cloud.wanted(&process, &Shape::with_standbys(1), "staging");
    let denied = Disruption::Refused(Fault::new("PERMISSION_DENIED", "not authorized").status(403));
    let denied = Rule::always(Played::READ.0, FAILOVER, denied);
    let disrupt = |rule: Option<Rule>| match rule {
        Some(rule) => cloud.faults().add(rule),
        None => cloud.faults().clear(),
    };
    failover::counts_from_its_call(&stack, &wanted, Played::READ, denied, disrupt, || failovers(&cloud));
}

fn cloud() -> Played {
    Played::with(Options::zero_latency(), None)
}

#[test]
fn a_promoted_replica_of_cloud_sql_stays() {
    replicated::stays_promoted(&cloud());
}

#[test]
fn a_promotion_of_cloud_sql_that_is_killed_anywhere_is_finished_by_the_next_one() {
    replicated::is_finished_after_a_kill(&cloud());
}

#[test]
fn a_promotion_of_cloud_sql_is_refused_once_the_source_answers_again() {
    replicated::is_refused_once_the_source_answers(&cloud());
}

#[test]
fn a_replica_of_cloud_sql_needs_another_region_and_backups() {
    for (region, backup_seconds, says) in [
        (REGION, 86_400, "not another region"),
        ("mars-north1", 86_400, "not another region"),
        (REMOTE, 0, "without backups"),
    ] {
        let bench = Bench { remote: Some(region), ..Bench::new(Options::zero_latency(), false) };
        let mut database = bench.database();
        let postgres = database.postgres.as_mut().unwrap();
        postgres.replicas = 0;
        postgres.managed.as_mut().unwrap().backup_seconds = backup_seconds;
        let part = ComponentSpec::Database(database);
        let component = Component { name: "database".parse().unwrap(), existing: None, part };
        let refused = bench.provider.lower(&component, &bench.site).unwrap_err().to_string();
        assert!(refused.contains("replica_region") && refused.contains(says), "{refused}");
    }
}
