//! The role that a plan prints, held against the requests that its run makes: it suffices, and nothing in it is unused.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_provider::{CloudId, ErrorKind, PolicyRequest, PolicyResource, Provider, Spec, Verb, Wanted, error_chain};
use textnlp_sim::gcp::Options;
use textnlp_sim::{Disruption, Rule};

use crate::{Bench, Made, REGION, REMOTE, connection, create, leave_behind, remove, run, unchanged, update};

/// Permissions that no request of the test needs, each with what needs it.
const UNUSED: &[(&str, &str)] = &[
    ("artifactregistry.repositories.downloadArtifacts", PUSH),
    ("artifactregistry.repositories.uploadArtifacts", PUSH),
    ("artifactregistry.tags.create", PUSH),
    ("artifactregistry.tags.update", PUSH),
    ("cloudsql.instances.failover", FAILOVER),
    ("compute.networks.removePeering", INACTIVE),
    ("compute.networks.updatePeering", DOUBT),
    ("compute.subnetworks.use", DOUBT),
    ("redis.instances.getAuthString", LOGIN),
];
/// The Secret of the servers has it: `the_auth_string_is_read_when_it_is_used`.
const LOGIN: &str = "the objects in the cluster";
const FAILOVER: &str = "`db failover`, which no plan makes";
/// The registry has a protocol of its own (<https://cloud.google.com/artifact-registry/docs/access-control>):
/// `tests/sim/tests/road` pushes an image.
const PUSH: &str = "the push of an image";
/// <https://cloud.google.com/vpc/docs/configure-private-services-access#removing-connection>:
/// `an_inactive_peering_is_removed_with_the_role` below.
const INACTIVE: &str = "the removal of a peering whose producer is gone";
/// Neither roles/servicenetworking.networksAdmin nor roles/container.clusterAdmin has them
/// (<https://cloud.google.com/iam/docs/roles-permissions>), but no document says that they are not asked for.
const DOUBT: &str = "one that a real project may ask for";

/// The permissions of the role for a plan that does this to these resources, or only reads them.
pub(super) fn printed(bench: &Bench, resources: &[Wanted], verb: Option<Verb>) -> BTreeSet<String> {
    let resource = |one: &Wanted| PolicyResource {
        id: one.id.clone(),
        kind: one.kind.clone(),
        cloud_id: None,
        spec: one.spec.clone(),
        verbs: verb.into_iter().collect(),
    };
    let request = PolicyRequest {
        lineage: None,
        environment: bench.site.environment.clone(),
        site: bench.site.name.clone(),
        resources: resources.iter().map(resource).collect(),
    };
    let documents = bench.provider.policies(&request);
    let roles = documents.iter().map(|one| serde_json::from_str::<Value>(&one.text).unwrap());
    let permissions = roles.flat_map(|role| role["includedPermissions"].as_array().unwrap().clone());
    permissions.map(|one| one.as_str().unwrap().to_owned()).collect()
}

/// From now on the operator has these permissions and no others.
pub(super) fn limit(bench: &Bench, permissions: &BTreeSet<String>) {
    bench.cloud.world().allowed = Some(permissions.clone());
}

/// Permissions that requests needed and did not have.
pub(super) fn refused(bench: &Bench) -> Vec<String> {
    let world = bench.cloud.world();
    world.needed.iter().filter(|(_, has)| !**has).map(|(permission, _)| permission.clone()).collect()
}

/// A spec with what a later environment may change in place.
pub(super) fn changed(one: &Wanted) -> Spec {
    let mut spec = one.spec.as_value().clone();
    match one.kind.as_str() {
        "gcp.network" => spec["routing"] = json!("GLOBAL"),
        "gcp.subnetwork" => (spec["private_google_access"], spec["flow_logs"]) = (json!(false), json!(false)),
        "gcp.router" => spec["nat"]["log"] = json!("ALL"),
        "gcp.service-account" => spec["display_name"] = json!("others"),
        "gcp.gke-cluster" => {
            spec["allow_from"] = json!(["198.51.100.0/24"]);
            spec["maintenance"]["recurrence"] = json!("FREQ=WEEKLY;BYDAY=MO");
        }
        "gcp.bucket" => spec["soft_delete_days"] = json!(0),
        "gcp.alert-policy" => (spec["condition"]["above"], spec["enabled"]) = (json!(0.5), json!(false)),
        "gcp.dashboard" => spec["charts"][0]["above"] = json!(0.5),
        "gcp.uptime-check" => (spec["target"]["port"], spec["enabled"]) = (json!(443), json!(false)),
        "gcp.notification-channel" => spec["email"] = json!("team@example.com"),
        "gcp.budget" => spec["limit"] = json!(950.5),
        "gcp.dns-record" => spec["ttl"] = json!(30),
        "gcp.run-service" => spec["template"]["concurrency"] = json!(8),
        "gcp.vertex-endpoint" => spec["timeout_seconds"] = json!(60),
        "gcp.vertex-deployment" => {
            spec["scaling"] = json!({ "min": 2, "max": 3, "requests_per_minute": 60 });
        }
        "gcp.repository" => spec["immutable"] = json!(false),
        "gcp.key" => spec["rotation_days"] = json!(30),
        "gcp.sql-instance" => {
            if spec["source"].is_null() {
                spec["maintenance"] = json!({ "day": 3, "hour": 4 });
            }
            // A replica is promoted.
            (spec["disk_gb"], spec["source"]) = (json!(40), Value::Null);
        }
        "gcp.redis-instance" => spec["memory_gb"] = json!(2),
        "gcp.sql-user" => spec["password"] = json!({ "$secret": "main/database-password", "version": "2" }),
        _ => {}
    }
    Spec::of(&spec)
}

#[test]
fn the_role_of_a_plan_suffices_and_holds_nothing_unused() {
    run(async {
        let mut options = Options::zero_latency().enabled();
        // `up` enables it, and the service agent of clusters comes with it.
        options.services.retain(|name| name != "container.googleapis.com");
        let bench = Bench { remote: Some(REMOTE), ..Bench::new(options, true) };
        let wanted = bench.all();
        let up = printed(&bench, &wanted, Some(Verb::Create));
        limit(&bench, &up);
        let mut records = create(&bench, &wanted).await;

        let to_change: Vec<Wanted> =
            records.iter().map(|(one, _)| one.clone()).filter(|one| changed(one) != one.spec).collect();
        let none = printed(&bench, &wanted, None);
        let change = &none | &printed(&bench, &to_change, Some(Verb::Update));
        limit(&bench, &change);
        for (number, made) in (500..).zip(records.iter_mut().filter(|(one, _)| to_change.contains(one))) {
            let spec = changed(&made.0);
            update(&bench, number, made, spec).await;
        }

        limit(&bench, &none);
        unchanged(&bench, &records).await;

        fill(&bench, &records);
        let down = printed(&bench, &wanted, Some(Verb::Delete));
        limit(&bench, &down);
        remove(&bench, &records).await;

        // The names of a ring and of a key never end: the next `up` finds them.
        limit(&bench, &up);
        let keys: Vec<Wanted> =
            wanted.into_iter().filter(|one| one.id.as_str().starts_with("main/models/key")).collect();
        create(&bench, &keys).await;

        assert_eq!(refused(&bench), Vec::<String>::new(), "the roles do not suffice");
        let needed: BTreeSet<String> = bench.cloud.world().needed.keys().cloned().collect();
        let unused: BTreeSet<String> = (&(&up | &change) | &down).difference(&needed).cloned().collect();
        let known: BTreeSet<String> = UNUSED.iter().map(|(permission, _)| (*permission).to_owned()).collect();
        assert_eq!(unused, known, "permissions that nothing used, and those of the table");
    });
}

/// Puts in what `down` deletes besides the objects of the plan: a model, and what controllers of a cluster made.
fn fill(bench: &Bench, records: &[Made]) {
    let bucket = records.iter().find(|(one, _)| one.kind.as_str() == "gcp.bucket").unwrap();
    let rules = leave_behind(bench, records);
    let rule = rules.iter().find_map(|key| key.rsplit_once("/k8s-fw-")).unwrap().1.to_owned();
    let path = format!("projects/{}/regions/{REGION}/targetPools/{rule}", bench.cloud.project());
    let mut world = bench.cloud.world();
    world.put_blob(bucket.0.spec.get("name").and_then(Value::as_str).unwrap(), "mine/model", 1);
    let link = format!("https://www.googleapis.com/compute/v1/{path}");
    world.put(&format!("compute/{path}"), json!({ "name": rule, "selfLink": link }));
}

#[test]
fn an_inactive_peering_is_removed_with_the_role() {
    run(async {
        let left = connection(|bench, network| {
            bench.cloud.world().end_producer(network);
            limit(bench, &printed(bench, &bench.all(), Some(Verb::Delete)));
        });
        let left = left.await;
        assert!(left.is_none(), "{left:?}");
    });
}

#[test]
fn up_without_a_permission_names_it_and_who_is_signed_in() {
    run(async {
        let bench = Bench::new(Options::zero_latency().enabled(), false);
        let wanted = bench.all();
        let up = printed(&bench, &wanted, Some(Verb::Create));
        for (id, permission) in [
            ("main/network/vpc", "compute.networks.create"),
            ("main/cluster/nodes", "iam.serviceAccounts.create"),
            ("main/models/bucket", "storage.buckets.create"),
            ("main/registry/repository", "artifactregistry.repositories.create"),
        ] {
            limit(&bench, &up.iter().filter(|one| *one != permission).cloned().collect());
            let is_told = |text: &str| text.contains(permission) && text.contains("operator@example.com");
            let problems = bench.provider.preflight(&wanted).await.unwrap();
            assert!(problems.iter().any(|one| is_told(&one.to_string())), "{permission}: {problems:#?}");
            let one = wanted.iter().find(|one| one.id.as_str() == id).unwrap();
            let error = bench.provider.begin(&bench.operation(1, Verb::Create, one, &one.spec, None)).await.err();
            let error = error.map(|error| error_chain(&error)).unwrap_or_default();
            assert!(is_told(&error), "{permission}: {error}");
        }
    });
}

#[test]
fn preflight_names_the_organization_policy_that_refuses_the_plan() {
    run(async {
        for (constraint, place) in [
            ("iam.disableServiceAccountCreation", Some("main/cluster/nodes")),
            ("iam.disableWorkloadIdentityClusterCreation", Some("main/cluster")),
            ("compute.requireShieldedVm", Some("main/cluster/gpu-nodes")),
            ("compute.vmExternalIpAccess", None),
            ("storage.uniformBucketLevelAccess", None),
        ] {
            let bench = Bench::new(Options::zero_latency().enabled(), false);
            let project = bench.cloud.project().to_owned();
            bench.cloud.world().enforce(&project, constraint);
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let refused: Vec<_> = problems.iter().filter(|problem| !problem.warning).collect();
            assert_eq!(refused.first().map(|problem| problem.place.as_str()), place, "{constraint}: {problems:#?}");
            assert!(refused.iter().all(|problem| problem.cause.contains(constraint)), "{refused:#?}");
        }
    });
}

#[test]
fn preflight_names_the_values_that_an_organization_policy_does_not_allow() {
    run(async {
        let region = crate::REGION;
        for (constraint, list, place) in [
            ("gcp.resourceLocations", json!({ "allowedValues": ["in:us-central1-locations", region] }), None),
            ("gcp.resourceLocations", json!({ "allowedValues": ["in:eu-locations"] }), None),
            ("gcp.resourceLocations", json!({ "allowedValues": ["asia-east1"] }), Some("main/cluster")),
            (
                "gcp.resourceLocations",
                json!({ "deniedValues": [format!("in:{region}-locations")] }),
                Some("main/cluster"),
            ),
            ("gcp.restrictServiceUsage", json!({ "deniedValues": ["container.googleapis.com"] }), Some("services")),
            ("gcp.restrictServiceUsage", json!({ "allowedValues": ["container.googleapis.com"] }), None),
            (
                "gcp.restrictNonCmekServices",
                json!({ "deniedValues": ["is:container.googleapis.com"] }),
                Some("main/cluster"),
            ),
            ("compute.restrictCloudNATUsage", json!({ "allValues": "DENY" }), Some("main/network/router")),
            ("compute.restrictCloudNATUsage", json!({ "allValues": "ALLOW" }), None),
        ] {
            let bench = Bench::new(Options::zero_latency().enabled(), false);
            let project = bench.cloud.project().to_owned();
            bench.cloud.world().restrict(&project, constraint, list.clone());
            let problems = bench.provider.preflight(&bench.all()).await.unwrap();
            let refused: Vec<_> = problems.iter().filter(|problem| !problem.warning).collect();
            assert_eq!(refused.is_empty(), place.is_none(), "{constraint} {list}: {refused:#?}");
            let is_named = |place: &str| refused[0].place.contains(place) && refused[0].cause.contains(constraint);
            assert!(place.is_none_or(is_named), "{constraint} {list}: {refused:#?}");
        }
    });
}

/// A call that fails for another reason than a permission names who is signed in too.
#[test]
fn every_error_names_who_is_signed_in() {
    run(async {
        let bench = Bench::new(Options::zero_latency().enabled(), false);
        bench.cloud.faults().add(Rule::always("compute", "compute.networks.get", Disruption::Unavailable));
        let id = CloudId::new(format!("projects/{}/global/networks/n", bench.cloud.project())).unwrap();
        let error = bench.provider.read(&"gcp.network".parse().unwrap(), &id).await.unwrap_err();
        let text = error_chain(&error);
        assert!(error.kind == ErrorKind::Unavailable && text.contains("signed in as operator@example.com"), "{text}");
    });
}
