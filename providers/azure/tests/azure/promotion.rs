//! Promotions of a replica of PostgreSQL in another region, and failovers to a standby.

use textnlp_provider::component::ComponentSpec;
use textnlp_provider::{CloudId, Component, Observed, Provider, Verb};
use textnlp_sim::azure::{Closed, Options};
use textnlp_sim::{Disruption, Exchange, Fault, Outcome, Rule};

use crate::programs::engine::Stack;
use crate::programs::shape::Shape;
use crate::programs::{World, failover};
use crate::random::Played;
use crate::replicated::{self, Replicated};
use crate::story::Simulated;
use crate::{Bench, REGION, REMOTE, create, run, unchanged};

impl Replicated for Played {
    const THERE: &'static str = REMOTE;
    const READ: (&'static str, &'static str) =
        ("Microsoft.DBforPostgreSQL", "Microsoft.DBforPostgreSQL/flexibleServers/read");
    const SOURCE: &'static str = "main/database/server";
    const PROTECTION: Option<&'static str> = None;

    fn lose_source(&self) {
        let mut world = self.cloud.world();
        let is_primary = |id: &String| {
            let role = world.get(id).map(|body| body["properties"]["replicationRole"].clone());
            role.is_some_and(|role| role == "Primary")
        };
        let id = world.ids().into_iter().find(is_primary).unwrap();
        world.objects.remove(&id.to_lowercase());
    }

    fn is_promotion(one: &Exchange) -> bool {
        one.operation == "Microsoft.DBforPostgreSQL/flexibleServers/write"
            && !one.input["properties"]["replica"].is_null()
    }
}

/// The operation that fails over.
const FAILOVER: &str = "Microsoft.DBforPostgreSQL/flexibleServers/restart/action";

/// How many failovers the cloud accepted.
fn failovers(cloud: &Played) -> usize {
    let is_one = |one: &&Exchange| one.operation == FAILOVER && one.outcome == Outcome::Succeeded;
    cloud.requests().iter().filter(is_one).count()
}

#[test]
fn a_database_of_azure_needs_a_standby_to_fail_over() {
    let cloud = cloud();
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0011);
    let wanted = [1, 0].map(|count| cloud.wanted(&process, &Shape::with_standbys(count), "staging"));
    failover::needs_a_standby(&stack, wanted.each_ref().map(Vec::as_slice), || failovers(&cloud));
}

#[test]
fn a_failover_of_azure_that_is_killed_anywhere_is_not_repeated() {
    let cloud = cloud();
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0012);
    let wanted = cloud.wanted(&process, &Shape::with_standbys(1), "staging");
    failover::is_not_repeated(&stack, &wanted, || failovers(&cloud));
}

#[test]
fn a_failover_of_azure_counts_from_its_call() {
    let cloud = cloud();
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0013);
    let wanted = cloud.wanted(&process, &Shape::with_standbys(1), "staging");
    let denied = Disruption::Refused(Fault::new("AuthorizationFailed", "not authorized").status(403));
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
fn a_promoted_replica_of_azure_stays() {
    replicated::stays_promoted(&cloud());
}

#[test]
fn a_promotion_on_azure_that_is_killed_anywhere_is_finished_by_the_next_one() {
    replicated::is_finished_after_a_kill(&cloud());
}

#[test]
fn a_promotion_on_azure_is_refused_once_the_source_answers_again() {
    replicated::is_refused_once_the_source_answers(&cloud());
}

#[test]
fn a_replica_on_azure_needs_another_region_and_a_network_of_its_site() {
    for (region, has_own_network, says) in [
        (REGION, true, "not another region"),
        ("North Europe", true, "not the name of a region"),
        (REMOTE, false, "an existing network is never changed"),
    ] {
        let mut bench = Bench { remote: Some(region), ..Bench::new(Options::zero_latency(), false) };
        if !has_own_network {
            bench.site.subnets = ["aks", "postgres"].map(|name| CloudId::new(name).unwrap()).to_vec();
        }
        let part = ComponentSpec::Database(bench.database());
        let component = Component { name: "database".parse().unwrap(), existing: None, part };
        let refused = bench.provider.lower(&component, &bench.site).unwrap_err().to_string();
        assert!(refused.contains("replica_region") && refused.contains(says), "{refused}");
    }
}

/// hashicorp/terraform-provider-azurerm#14051.
#[test]
fn a_peering_that_lost_the_other_one_is_repaired() {
    run(async {
        let options = Options::zero_latency().registered();
        let bench = Bench { gpu: None, remote: Some(REMOTE), ..Bench::new(options, false) };
        let mut wanted = bench.all();
        wanted.retain(|one| ["main/network/", "main/database/"].iter().any(|of| one.id.as_str().starts_with(of)));
        let records = create(&bench, &wanted).await;
        let made = |id: &str| records.iter().find(|(one, _)| one.id.as_str() == id).unwrap();
        let pair = ["main/database/peering", "main/database/remote-peering"].map(made);
        // A plan creates or changes the first one first.
        for (number, gone) in [(700, 0), (710, 1)] {
            let ((lost, recorded), (left, of_left)) = (pair[gone], pair[1 - gone]);
            bench.finish(&bench.operation(number, Verb::Delete, lost, &lost.spec, Some(recorded))).await;
            let found = bench.provider.read(&left.kind, &of_left.cloud_id).await.unwrap();
            let Observed::Present(object) = &found else { panic!("{found:?}") };
            let changes = bench.provider.diff(left, of_left, object);
            assert_eq!(changes.len(), 1, "{changes:?}");
            for (number, place) in (number + 1..).zip([0, 1]) {
                let (one, recorded) = pair[place];
                let (verb, recorded) =
                    if place == gone { (Verb::Create, None) } else { (Verb::Update, Some(recorded)) };
                bench.finish(&bench.operation(number, verb, one, &one.spec, recorded)).await;
            }
            unchanged(&bench, &records).await;
            for (_, recorded) in pair {
                let seen = bench.cloud.world().get(recorded.cloud_id.as_str()).unwrap();
                assert_eq!(seen["properties"]["peeringState"], "Connected");
            }
        }
    });
}

#[test]
fn a_replica_in_a_region_without_servers_is_refused() {
    run(async {
        let bench = Bench { gpu: None, remote: Some(REMOTE), ..Bench::new(Options::zero_latency(), false) };
        bench.cloud.world().conduct.closed = Some(Closed::OfferRestricted);
        let problems = bench.provider.preflight(&bench.all()).await.unwrap();
        let found = problems.iter().find(|one| one.fix.contains("replica_region")).unwrap();
        assert!(!found.warning && found.cause.contains(REMOTE), "{found:?}");
    });
}

#[test]
fn a_server_with_a_replica_is_of_no_cheap_size_and_the_replica_is_as_large() {
    let sizes = |remote: Option<&'static str>| -> Vec<String> {
        let bench = Bench { remote, ..Bench::new(Options::zero_latency(), false) };
        let mut database = bench.database();
        let postgres = database.postgres.as_mut().unwrap();
        (postgres.replicas, postgres.connections) = (0, 20);
        let all = bench.lower("database", ComponentSpec::Database(database));
        let servers = all.iter().filter(|one| one.kind.as_str() == "azure.database-server");
        servers.map(|one| one.spec.get("sku").unwrap().as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(sizes(None), ["Standard_B1ms"]);
    assert_eq!(sizes(Some(REMOTE)), ["Standard_D2ds_v5"; 2]);
}
