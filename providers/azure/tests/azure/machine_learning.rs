//! An online endpoint of Azure Machine Learning: from a subscription without it, through releases and failures, and back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_azure::{Access, CAPABILITIES, ENDPOINT as VARIABLE, InvocationOperations, endpoint as endpoint_of};
use textnlp_provider::cluster::ResourceAmounts;
use textnlp_provider::component::{
    Autoscaling, ComponentSpec, InferenceEndpoint, Model, ModelStore, Registry, ServiceLimits,
};
use textnlp_provider::conformance::TestBed;
use textnlp_provider::operations::{EndpointAccess, Operations, SiteOutputs};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{
    Handle, Lineage, Operation, Problem, Progress, Provider, Spec, Verb, Wanted, error_chain, resource::Object,
};
use textnlp_sim::azure::Options;
use textnlp_sim::gcp::run::Container;

use crate::policy::{limit, printed};
use crate::{
    Bench, KEPT, LINEAGE, Made, REGION, STEPS, changed, create, id_of, ordered, record, refusal, remove, run, secrets,
    unchanged, update,
};

const WORKSPACE: &str = "main/server/workspace";
const ENDPOINT: &str = "main/server/endpoint";
const DEPLOYMENT: &str = "main/server/deployment";
const TRAFFIC: &str = "main/server/traffic";
const AUTOSCALE: &str = "main/server/autoscale";
const RESULTS: &str = "Microsoft.MachineLearningServices/locations/mfeOperationResults/read";
const SCORE: &str = "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/score/action";
/// The quota of the machines.
const QUOTA: &str = "Standard DSv2 Family Cluster Dedicated vCPUs";
/// The quota of all machines.
const TOTAL: &str = "Total Cluster Dedicated Regional vCPUs";

fn bench(options: Options, protect_data: bool) -> Bench {
    let mut bench = Bench { gpu: None, ..Bench::new(options, protect_data) };
    (bench.site.runtime, bench.site.cluster) = (Runtime::AzureMl, None);
    bench
}

/// The resources of a site, each after those that it needs.
fn wanted(bench: &Bench) -> Vec<Wanted> {
    let models = vec![Model { digest: Some(format!("sha256:{:064x}", 1)), ..Model::of("mine", "az://models/mine/") }];
    let url = "textnlpstaging.azurecr.io/text/nlp".to_owned();
    let image = Some(format!("{url}:1@sha256:{}", "0".repeat(64)));
    let mut all = bench.lower("models", ComponentSpec::ModelStore(ModelStore::of(models.clone())));
    all.extend(bench.lower("registry", ComponentSpec::Registry(Registry { url, image: image.clone() })));
    let endpoint = InferenceEndpoint {
        replicas: 1,
        autoscaling: Some(Autoscaling { max: 4, cpu: None, memory: None, requests_per_second: Some(5) }),
        gpu: None,
        resources: ResourceAmounts::default(),
        instance_type: None,
        image,
        registry: Some("registry".parse().unwrap()),
        image_in: Some("registry".parse().unwrap()),
        config: json!({ "textnlp": { "api": { "timeout": 60 }, "models": { "serve": [{ "name": "mine" }] } } }),
        models,
        max_cache_bytes: 1,
        permission_boundary: None,
        limits: ServiceLimits::default(),
        shift: None,
        monitoring: None,
    };
    all.extend(bench.lower("server", ComponentSpec::InferenceEndpoint(endpoint)));
    ordered(all)
}

fn place(records: &[Made], id: &str) -> usize {
    records.iter().position(|(one, _)| one.id.as_str() == id).unwrap()
}

/// The endpoint as the service shows it.
fn endpoint(bench: &Bench, records: &[Made]) -> Value {
    bench.cloud.world().get(&id_of(records, ENDPOINT)).unwrap()
}

/// The deployments of the endpoint.
fn deployments(bench: &Bench, records: &[Made]) -> Vec<String> {
    let start = format!("{}/deployments/", id_of(records, ENDPOINT)).to_lowercase();
    bench.cloud.world().ids().into_iter().filter(|id| id.to_lowercase().starts_with(&start)).collect()
}

/// All traffic at the deployment of a resource.
fn all_to((_, recorded): &Made) -> Value {
    json!({ (recorded.cloud_id.as_str().rsplit('/').next().unwrap()): 100 })
}

/// The spec of the deployment of another release.
fn next(records: &[Made], release: &str) -> Spec {
    let mut spec = records[place(records, DEPLOYMENT)].0.spec.as_value().clone();
    spec["variables"]["TEXTNLP_AZURE_ML_SERVER_0"] = json!(release);
    Spec::of(&spec)
}

fn made(one: &Wanted, spec: &Spec, object: &Object) -> Made {
    (Wanted { spec: spec.clone(), ..one.clone() }, record(one, spec, object))
}

/// Changes a member of a spec in place.
async fn set(bench: &Bench, number: u64, (one, recorded): &mut Made, member: &str, value: Value) {
    let mut spec = one.spec.as_value().clone();
    spec[member] = value;
    let spec = Spec::of(&spec);
    let object = bench.finish(&bench.operation(number, Verb::Update, one, &spec, Some(recorded))).await;
    (one.spec, recorded.spec) = (spec.clone(), spec);
    let changes = bench.provider.diff(one, recorded, &object);
    assert!(changes.is_empty(), "{}: {changes:?}", one.id);
}

async fn delete(bench: &Bench, number: u64, (one, recorded): &Made) {
    bench.finish(&bench.operation(number, Verb::Delete, one, &one.spec, Some(recorded))).await;
}

/// The error of an operation that fails, and what it leaves.
async fn failure(bench: &Bench, op: &Operation) -> (Option<Object>, String) {
    let mut handle: Option<Handle> = None;
    for _ in 0..STEPS {
        let progress = match &handle {
            None => bench.provider.begin(op).await,
            Some(handle) => bench.provider.advance(op, handle).await,
        };
        match progress {
            Ok(Progress::Pending { handle: next, .. }) => handle = Some(next),
            Ok(Progress::Failed { left, error }) => return (left, error_chain(&error)),
            Ok(Progress::Done(_)) => panic!("{} {} succeeds", op.verb, op.resource),
            Err(error) if error.kind.may_pass() => {}
            Err(error) => return (None, error_chain(&error)),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("{} {} does not end", op.verb, op.resource)
}

#[test]
fn an_endpoint_is_made_changes_and_is_removed() {
    run(async {
        let bench = bench(Options::zero_latency(), true);
        let before = bench.cloud.world().ids();
        let mut records = create(&bench, &wanted(&bench)).await;
        unchanged(&bench, &records).await;
        let traffic = all_to(&records[place(&records, DEPLOYMENT)]);
        assert_eq!(endpoint(&bench, &records)["properties"]["traffic"], traffic);
        update(&bench, &mut records).await;
        unchanged(&bench, &records).await;
        let deployment = id_of(&records, DEPLOYMENT);
        assert_eq!(bench.cloud.world().get(&deployment).unwrap()["sku"]["capacity"], 2);
        bench.cloud.world().change(&deployment, "/sku/capacity", json!(3));
        unchanged(&bench, &records).await;
        // Another client takes the traffic away, and the next `up` gives it back.
        bench.cloud.world().change(&id_of(&records, ENDPOINT), "/properties/traffic", json!({}));
        let (one, _) = &records[place(&records, TRAFFIC)];
        bench.finish(&bench.operation(600, Verb::Create, one, &one.spec, None)).await;
        assert_eq!(endpoint(&bench, &records)["properties"]["traffic"], traffic);
        remove(&bench, &records).await;
        assert_eq!(bench.cloud.world().ids(), before);
        assert!(bench.cloud.world().deleted_workspaces.is_empty(), "its workspace is purged");
    });
}

/// Operations take their time, and what was just written is not seen everywhere.
#[test]
fn an_endpoint_is_made_and_removed_with_the_delays_of_azure() {
    run(async {
        let bench = bench(Options::default(), false);
        let before = bench.cloud.world().ids();
        let records = create(&bench, &wanted(&bench)).await;
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
        assert_eq!(bench.cloud.world().ids(), before);
    });
}

#[test]
fn a_release_moves_the_requests_to_the_new_deployment_and_deletes_the_old_one() {
    run(async {
        let bench = bench(Options::zero_latency().registered(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        let spec = next(&records, "two");
        bench.cloud.world().change(&id_of(&records, DEPLOYMENT), "/sku/capacity", json!(3));
        let old = records.remove(place(&records, DEPLOYMENT));
        let object = bench.finish(&bench.operation(500, Verb::Create, &old.0, &spec, None)).await;
        let new = made(&old.0, &spec, &object);
        let count = bench.cloud.world().get(object.cloud_id.as_str()).unwrap()["sku"]["capacity"].clone();
        assert_eq!(count, 3, "it begins with the machines of the old one");
        assert_eq!(endpoint(&bench, &records)["properties"]["traffic"], all_to(&old));
        let at = place(&records, AUTOSCALE);
        set(&bench, 501, &mut records[at], "target", json!(object.cloud_id.as_str())).await;
        let at = place(&records, TRAFFIC);
        set(&bench, 502, &mut records[at], "deployment", json!(object.cloud_id.as_str())).await;
        assert_eq!(endpoint(&bench, &records)["properties"]["traffic"], all_to(&new));
        delete(&bench, 503, &old).await;
        assert_eq!(deployments(&bench, &records), [object.cloud_id.as_str()]);
        records.insert(place(&records, ENDPOINT) + 1, new);
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}

#[test]
fn a_failed_release_leaves_the_requests_where_they_are() {
    run(async {
        let bench = bench(Options::zero_latency().registered(), false);
        let records = create(&bench, &wanted(&bench)).await;
        let before = endpoint(&bench, &records)["properties"]["traffic"].clone();
        let (one, _) = &records[place(&records, DEPLOYMENT)];
        let spec = next(&records, "two");
        bench.cloud.world().mute = true;
        let (left, why) = failure(&bench, &bench.operation(500, Verb::Create, one, &spec, None)).await;
        assert!(why.contains("its probes are not answered"), "{why}");
        bench.cloud.world().mute = false;
        assert_eq!(endpoint(&bench, &records)["properties"]["traffic"], before);
        assert_eq!(deployments(&bench, &records).len(), 2);
        delete(&bench, 501, &made(one, &spec, &left.unwrap())).await;
        assert_eq!(deployments(&bench, &records).len(), 1);
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}

#[test]
fn an_endpoint_and_a_workspace_with_objects_of_others_are_kept() {
    run(async {
        let bench = bench(Options::zero_latency().registered(), false);
        let records = create(&bench, &wanted(&bench)).await;
        for (number, id, inside, what) in [
            (500, ENDPOINT, "deployments/theirs", "deployment"),
            (501, WORKSPACE, "models/theirs", "registered model"),
            (502, WORKSPACE, "computes/theirs", "compute"),
            (503, WORKSPACE, "onlineEndpoints/theirs", "online endpoint"),
            (504, WORKSPACE, "batchEndpoints/theirs", "batch endpoint"),
            (505, WORKSPACE, "data/theirs", "data asset"),
        ] {
            let theirs = format!("{}/{inside}", id_of(&records, id));
            bench.cloud.world().put(&theirs, json!({ "id": theirs, "name": "theirs" }));
            let (one, recorded) = &records[place(&records, id)];
            let why = refusal(&bench, number, one, recorded).await;
            assert!(why.contains(what) && why.contains(&theirs), "{why}");
            bench.cloud.world().objects.remove(&theirs.to_lowercase());
        }
        remove(&bench, &records).await;
    });
}

#[test]
fn preflight_compares_the_machines_of_two_releases_with_their_quota() {
    run(async {
        let bench = bench(Options::zero_latency().registered(), false);
        let of = async |wanted: Vec<Wanted>| -> Vec<(bool, String)> {
            let problems: Vec<Problem> = bench.provider.preflight(&wanted).await.unwrap();
            let own = problems.into_iter().filter(|problem| problem.place == DEPLOYMENT);
            own.map(|problem| (problem.warning, problem.cause)).collect()
        };
        let found = async |limit: i64| -> Vec<(bool, String)> {
            bench.cloud.world().quotas.insert((REGION.to_owned(), QUOTA.to_owned()), limit);
            of(wanted(&bench)).await
        };
        // Four machines, and a fifth more, of four cores each.
        let refused = found(19).await;
        assert!(!refused[0].0 && refused[0].1.ends_with("may have 20"), "{refused:?}");
        let warned = found(20).await;
        assert!(warned[0].0 && warned[0].1.contains("a release may need 20 beside"), "{warned:?}");
        assert_eq!(found(40).await, Vec::<(bool, String)>::new(), "quotas of workspaces are others");
        bench.cloud.world().quotas.insert((REGION.to_owned(), TOTAL.to_owned()), 19);
        let refused = found(40).await;
        assert!(!refused[0].0 && refused[0].1.contains(TOTAL), "{refused:?}");
        bench.cloud.world().quotas.clear();
        let mut unlisted = wanted(&bench);
        let deployment = unlisted.iter_mut().find(|one| one.id.as_str() == DEPLOYMENT).unwrap();
        let mut spec = deployment.spec.as_value().clone();
        spec["machine"] = json!("Standard_ND96isr_H100_v5");
        deployment.spec = Spec::of(&spec);
        let warned = of(unlisted).await;
        assert!(warned[0].0 && warned[0].1.contains("lists no quota"), "{warned:?}");
        let records = create(&bench, &wanted(&bench)).await;
        bench.cloud.world().change(&id_of(&records, DEPLOYMENT), "/sku/capacity", json!(30));
        let warned = found(40).await;
        assert!(warned[0].0 && warned[0].1.contains("144 are used"), "{warned:?}");
        remove(&bench, &records).await;
    });
}

#[test]
fn the_role_of_a_plan_suffices_and_holds_nothing_of_the_service_unused() {
    run(async {
        let bench = bench(Options::zero_latency(), true);
        let wanted = wanted(&bench);
        let up = printed(&bench, &wanted, Some(Verb::Create));
        limit(&bench, &up);
        let mut records = create(&bench, &wanted).await;
        let to_change: Vec<Wanted> =
            records.iter().map(|(one, _)| one.clone()).filter(|one| changed(one) != one.spec).collect();
        let none = printed(&bench, &wanted, None);
        let change: BTreeSet<String> = &none | &printed(&bench, &to_change, Some(Verb::Update));
        limit(&bench, &change);
        update(&bench, &mut records).await;
        limit(&bench, &none);
        unchanged(&bench, &records).await;
        let down = printed(&bench, &wanted, Some(Verb::Delete));
        limit(&bench, &down);
        remove(&bench, &records).await;
        let needed = bench.cloud.world().needed.clone();
        let refused: Vec<&String> = needed.iter().filter(|(_, has)| !**has).map(|(action, _)| action).collect();
        assert!(refused.is_empty(), "the roles do not suffice: {refused:#?}");
        let all = &(&up | &change) | &down;
        let is_own = |action: &&String| action.contains("MachineLearning") || action.contains("utoscaleSettings");
        let unused: Vec<&String> =
            all.iter().filter(is_own).filter(|action| !needed.contains_key(&action.to_lowercase())).collect();
        // Deletions that take time need the first one, and requests of the gate the other.
        assert_eq!(unused, [RESULTS, SCORE]);
    });
}

#[test]
fn kinds_of_azure_machine_learning_keep_the_contract() {
    run(async {
        let bench = bench(Options::zero_latency(), true);
        let lineage = Lineage(uuid::Uuid::from_u128(LINEAGE));
        let bed = TestBed::new(&bench.provider, bench.site.environment.clone(), bench.site.name.clone(), lineage);
        let in_place = |one: &Wanted| Some(changed(one)).filter(|spec| *spec != one.spec);
        if let Err(violation) = bed.site(&wanted(&bench), secrets(), KEPT, in_place).await {
            panic!("{violation}");
        }
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

#[test]
fn requests_reach_the_endpoint_with_traffic_with_the_token_of_the_operator() {
    run(async {
        let bench = bench(Options::zero_latency().registered(), false);
        let records = create(&bench, &wanted(&bench)).await;
        // One that is being replaced, and that lists show first.
        let mut old = endpoint(&bench, &records);
        let old_id = format!("{}/onlineEndpoints/a-old", id_of(&records, WORKSPACE));
        (old["id"], old["name"], old["properties"]["traffic"]) = (json!(old_id), json!("a-old"), json!({}));
        bench.cloud.world().put(&old_id, old);
        bench.cloud.world().containers =
            Some(Arc::new(|container: &Container, method: &str, path: &str, body: &[u8]| {
                assert!(container.environment.contains_key("TEXTNLP_AZURE_ML_SERVER_0"));
                (200, format!("{method} {path} {}", String::from_utf8_lossy(body)).into_bytes())
            }));
        let outputs: SiteOutputs = records
            .iter()
            .map(|(one, recorded)| (one.id.as_str().trim_start_matches("main/").to_owned(), recorded.outputs.clone()))
            .collect();
        let address = endpoint_of(&outputs).unwrap();
        assert_eq!(address.access, EndpointAccess::Invocations);
        assert!(address.url.ends_with("/invocations"), "{}", address.url);
        let mut variables: std::collections::BTreeMap<String, String> = bench.cloud.variables().into_iter().collect();
        variables.insert(VARIABLE.to_owned(), bench.cloud.url());
        let subscription = bench.cloud.subscription().to_owned();
        let access = Access { subscription, region: REGION.to_owned(), variables: Some(variables) };
        let operations = Arc::new(InvocationOperations::new(access, &bench.site));
        assert!(operations.log_command().unwrap().contains("--resource-group textnlp-staging-main"));
        let invocations = operations.invocations().unwrap();
        let client = textnlp_net::client::ClientOptions::default().client().unwrap();
        let send = async |with_token: bool| {
            let signed = invocations.sign(b"{}").await.unwrap();
            assert_eq!(signed.url, address.url);
            let mut request = client.post(&signed.url).body("{}");
            for (name, value) in signed.headers.iter().filter(|(name, _)| with_token || name != "authorization") {
                request = request.header(name, value.expose());
            }
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(send(true).await, (200, "POST /invocations {}".to_owned()));
        assert_eq!(send(false).await.0, 401);
        bench.cloud.world().denied.insert(SCORE.to_owned());
        assert_eq!(send(true).await.0, 401, "it may not score");
        bench.cloud.world().denied.clear();
        bench.cloud.world().objects.remove(&old_id.to_lowercase());
        remove(&bench, &records).await;
    });
}

#[test]
fn what_an_endpoint_refuses_has_a_reason() {
    let support = CAPABILITIES.of(Runtime::AzureMl).unwrap();
    assert!(support.reason("gpu.max").is_some_and(|reason| reason.contains("scaling.max")));
    assert!(support.reason("cache.kind").is_some());
}
