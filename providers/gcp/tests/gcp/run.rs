//! A service of Cloud Run: from a project without it, through changes and failures, and back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use textnlp_gcp::{CAPABILITIES, EndpointOperations, endpoint as endpoint_of};
use textnlp_provider::capabilities::Setting;
use textnlp_provider::cluster::ResourceAmounts;
use textnlp_provider::component::{
    ComponentSpec, InferenceEndpoint, Model, ModelStore, Monitoring, Registry, ServiceLimits,
};
use textnlp_provider::conformance::TestBed;
use textnlp_provider::operations::{EndpointAccess, Operations, SiteOutputs};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{
    Capability, Lineage, Observed, Operation, Problem, Progress, Provider, Spec, Verb, Wanted, error_chain,
};
use textnlp_sim::gcp::Options;
use textnlp_sim::gcp::run::Container;

use crate::policy::{changed, limit, printed, refused};
use crate::{
    Access, Bench, KEPT, LINEAGE, Made, REGION, STEPS, THEIRS, create, mailbox, ordered, remove, run, secrets,
    unchanged, update,
};

const SERVICE: &str = "main/server/service";
const OPERATOR: &str = "user:operator@example.com";
/// The role that makes ID tokens.
const CREATOR: &str = "roles/iam.serviceAccountOpenIdTokenCreator";

fn bench(options: Options, protect_data: bool) -> Bench {
    containers(Runtime::CloudRun, options, protect_data)
}

/// A site whose servers Google Cloud runs as containers.
pub(super) fn containers(runtime: Runtime, options: Options, protect_data: bool) -> Bench {
    let mut bench = Bench { gpu: None, ..Bench::new(options, protect_data) };
    bench.site.runtime = runtime;
    bench.site.cluster = None;
    bench
}

/// The resources of a site, each after those that it needs.
pub(super) fn wanted(bench: &Bench) -> Vec<Wanted> {
    let source = format!("gs://textnlp-{}-staging-main-models/mine/", bench.cloud.project());
    let models = vec![Model { digest: Some(format!("sha256:{:064x}", 1)), ..Model::of("mine", &source) }];
    let url = format!("{REGION}-docker.pkg.dev/{}/textnlp/server", bench.cloud.project());
    let image = Some(format!("{url}:1@sha256:{}", "0".repeat(64)));
    let mut all = bench.lower("models", ComponentSpec::ModelStore(ModelStore::of(models.clone())));
    all.extend(bench.lower("registry", ComponentSpec::Registry(Registry { url, image: image.clone() })));
    let endpoint = InferenceEndpoint {
        replicas: 1,
        autoscaling: None,
        gpu: None,
        resources: ResourceAmounts::default(),
        instance_type: None,
        image,
        registry: Some("registry".parse().unwrap()),
        image_in: Some("registry".parse().unwrap()),
        config: json!({ "textnlp": { "api": { "timeout": 300 }, "models": { "serve": [{ "name": "mine" }] } } }),
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

/// The same with a mailbox that gets alerts.
pub(super) fn alerted(bench: &Bench) -> Vec<Wanted> {
    let receivers = BTreeMap::from([("oncall".to_owned(), mailbox("oncall@example.com"))]);
    let limits = ServiceLimits { latency_for_seconds: 290, ..ServiceLimits::default() };
    let monitoring = Monitoring { receivers, service: limits, ..Monitoring::default() };
    let mut all = wanted(bench);
    all.extend(bench.lower("monitoring", ComponentSpec::Monitoring(monitoring)));
    ordered(all)
}

/// The condition of a policy.
pub(super) fn condition(all: &[Wanted], policy: &str) -> Value {
    let id = format!("main/monitoring/alert-{policy}");
    all.iter().find(|one| one.id.as_str() == id).and_then(|one| one.spec.get("condition").cloned()).unwrap()
}

/// The service among made resources.
fn service(records: &mut [Made]) -> &mut Made {
    records.iter_mut().find(|(one, _)| one.id.as_str() == SERVICE).unwrap()
}

/// The error of an operation that fails.
pub(super) async fn error_of(bench: &Bench, op: &Operation) -> String {
    let mut handle = None;
    for _ in 0..STEPS {
        let progress = match &handle {
            None => bench.provider.begin(op).await,
            Some(handle) => bench.provider.advance(op, handle).await,
        };
        match progress {
            Ok(Progress::Pending { handle: next, .. }) => handle = Some(next),
            Ok(Progress::Failed { error, .. }) => return error_chain(&error),
            Ok(Progress::Done(_)) => panic!("{} {} succeeds", op.verb, op.resource),
            Err(error) => return error_chain(&error),
        }
    }
    panic!("{} {} does not end", op.verb, op.resource)
}

async fn seen(bench: &Bench, made: &Made) -> textnlp_provider::resource::Object {
    match bench.provider.read(&made.1.kind, &made.1.cloud_id).await.unwrap() {
        Observed::Present(object) => object,
        missing => panic!("{missing:?}"),
    }
}

#[test]
fn a_service_is_made_changes_and_is_removed() {
    run(async {
        let bench = bench(Options::zero_latency(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        unchanged(&bench, &records).await;
        let made = service(&mut records);
        let spec = changed(&made.0);
        update(&bench, 500, made, spec).await;
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}

#[test]
fn a_failed_revision_leaves_the_requests_to_the_one_before_it_and_the_next_up_makes_another() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        let made = service(&mut records);
        let spec = changed(&made.0);
        bench.cloud.world().mute = true;
        let why = error_of(&bench, &bench.operation(500, Verb::Update, &made.0, &spec, Some(&made.1))).await;
        assert!(why.contains("failed to start and listen on the port"), "{why}");
        let found = seen(&bench, made).await;
        // It shows the new template, and is no longer as it is wanted.
        assert_eq!(found.spec.get("template"), spec.get("template"));
        assert_eq!(found.spec.get("serving"), Some(&json!(false)));
        bench.cloud.world().mute = false;
        update(&bench, 501, made, spec).await;
        assert_eq!(seen(&bench, made).await.spec.get("serving"), Some(&json!(true)));
        remove(&bench, &records).await;
    });
}

#[test]
fn a_service_whose_image_does_not_exist_fails_with_the_reason() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        let made = service(&mut records);
        let mut spec = made.0.spec.as_value().clone();
        let other = format!("{REGION}-docker.pkg.dev/{}/textnlp/server@sha256:1", bench.cloud.project());
        spec["template"]["image"] = json!(other);
        let op = bench.operation(500, Verb::Update, &made.0, &Spec::of(&spec), Some(&made.1));
        let why = error_of(&bench, &op).await;
        assert!(why.contains(&format!("Image '{other}' not found")), "{why}");
        remove(&bench, &records).await;
    });
}

#[test]
fn preflight_compares_the_most_instances_with_the_quota_of_gpus() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let with = |most: u64| {
            let mut all = wanted(&bench);
            let service = all.iter_mut().find(|one| one.id.as_str() == SERVICE).unwrap();
            let mut spec = service.spec.as_value().clone();
            (spec["template"]["gpu"], spec["template"]["max"]) = (json!("nvidia-l4"), json!(most));
            service.spec = Spec::of(&spec);
            all
        };
        let refused = |problems: &[Problem]| -> Vec<String> {
            problems.iter().filter(|problem| problem.place == SERVICE).map(|problem| problem.cause.clone()).collect()
        };
        let found = bench.provider.preflight(&with(3)).await.unwrap();
        assert_eq!(refused(&found), Vec::<String>::new());
        let limit = (REGION.to_owned(), "NvidiaL4GpuAllocNoZonalRedundancyPerProjectRegion".to_owned());
        bench.cloud.world().quotas.insert(limit, 1.0);
        let found = bench.provider.preflight(&with(2)).await.unwrap();
        let [cause]: [String; 1] = refused(&found).try_into().unwrap_or_else(|other: Vec<String>| panic!("{other:?}"));
        assert!(cause.contains("allows 1 instance") && cause.ends_with("the service may have 2"), "{cause}");
    });
}

#[test]
fn the_role_of_a_plan_suffices() {
    run(async {
        // The search for leftovers lists no objects of services that such a site does not enable.
        let bench = bench(Options::zero_latency(), true);
        let wanted = wanted(&bench);
        limit(&bench, &printed(&bench, &wanted, Some(Verb::Create)));
        let mut records = create(&bench, &wanted).await;
        let none = printed(&bench, &wanted, None);
        let made = service(&mut records);
        let change: BTreeSet<String> = &none | &printed(&bench, std::slice::from_ref(&made.0), Some(Verb::Update));
        limit(&bench, &change);
        let spec = changed(&made.0);
        update(&bench, 500, made, spec).await;
        limit(&bench, &none);
        unchanged(&bench, &records).await;
        limit(&bench, &printed(&bench, &wanted, Some(Verb::Delete)));
        remove(&bench, &records).await;
        assert_eq!(refused(&bench), Vec::<String>::new(), "the roles do not suffice");
    });
}

#[test]
fn kinds_of_cloud_run_keep_the_contract() {
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

/// That of pods does.
#[test]
fn the_role_of_servers_on_an_existing_bucket_needs_no_uniform_access() {
    run(async {
        let mut bench = Bench::with_existing_bucket(false);
        bench.site.runtime = Runtime::CloudRun;
        bench.site.cluster = None;
        let source = format!("gs://{THEIRS}/mine/");
        let store = ModelStore::of(vec![Model::of("mine", &source)]);
        let wanted = bench.lower("models", ComponentSpec::ModelStore(store));
        assert!(wanted.iter().any(|one| one.kind.as_str() == "gcp.bucket-binding"));
        let problems = bench.provider.preflight(&wanted).await.unwrap();
        assert!(problems.iter().all(|problem| problem.warning), "{problems:#?}");
    });
}

#[test]
fn requests_reach_a_service_with_the_id_token_of_the_account_that_may_call_it() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let records = create(&bench, &wanted(&bench)).await;
        bench.cloud.world().containers = Some(Arc::new(|container: &Container, method: &str, path: &str, _: &[u8]| {
            assert!(container.environment.contains_key("TEXTNLP_CLOUD_RUN_SERVER_0"));
            (200, format!("{method} {path}").into_bytes())
        }));
        let outputs: SiteOutputs = records
            .iter()
            .map(|(one, recorded)| (one.id.as_str().trim_start_matches("main/").to_owned(), recorded.outputs.clone()))
            .collect();
        let endpoint = endpoint_of(&outputs).unwrap();
        assert_eq!(endpoint.access, EndpointAccess::Identities);
        let access = Access {
            project: bench.cloud.project().to_owned(),
            region: REGION.to_owned(),
            impersonate: None,
            variables: Some(bench.cloud.variables().into_iter().collect()),
        };
        let operations = Arc::new(EndpointOperations::new(access, &bench.site));
        assert!(operations.log_command().unwrap().contains("gcloud run services logs read textnlp-staging-main"));
        let caller = operations.caller().unwrap();
        // An owner of a project makes no tokens of its accounts.
        let denied = caller.headers(&endpoint.url).await.unwrap_err();
        assert!(error_chain(&denied).contains("iam.serviceAccounts.getOpenIdToken"), "{}", error_chain(&denied));
        let project = bench.cloud.project().to_owned();
        bench.cloud.world().grant_in_project(&project, CREATOR, OPERATOR);
        let client = textnlp_net::client::ClientOptions::default().client().unwrap();
        for (address, status) in [(endpoint.url.clone(), 200), (format!("{}/other", endpoint.url), 401)] {
            let mut request = client.get(format!("{}/v1/models?a=b", endpoint.url));
            for (name, value) in caller.headers(&address).await.unwrap() {
                request = request.header(name, value.expose());
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status().as_u16(), status, "the audience is {address}");
            if status == 200 {
                assert_eq!(answer.text().await.unwrap(), "GET /v1/models?a=b");
            }
        }
        let anonymous = client.get(format!("{}/v1/models", endpoint.url)).send().await.unwrap();
        assert_eq!(anonymous.status().as_u16(), 403);
        remove(&bench, &records).await;
    });
}

#[test]
fn what_a_runtime_supports_says_nothing_about_the_other() {
    let (pods, service) = (CAPABILITIES.of(Runtime::Kubernetes).unwrap(), CAPABILITIES.of(Runtime::CloudRun).unwrap());
    assert!(CAPABILITIES.of(Runtime::Process).is_none());
    let proxy = Capability::Optional(Setting::Proxy);
    assert!(pods.supports(proxy) && !service.supports(proxy));
    assert!(service.reason("network.proxy").is_some_and(|reason| reason.contains("network of Google Cloud")));
}

#[test]
fn alerts_of_a_service_are_about_its_requests() {
    run(async {
        let bench = bench(Options::zero_latency(), false);
        let all = alerted(&bench);
        let filter = |metric: &str, also: &str| {
            let start = format!(
                "metric.type=\"run.googleapis.com/{metric}\" AND resource.type=\"cloud_run_revision\"{also} AND \
                 resource.labels.service_name=\""
            );
            json!([start, { "$output": "main/server/service#name" }, "\""])
        };
        let slow = condition(&all, "service-latency");
        assert_eq!(slow["filter"], filter("request_latencies", ""));
        assert_eq!((&slow["above"], &slow["lasting_seconds"]), (&json!(1000.0), &json!(300)));
        assert_eq!((&slow["percentile_by"], &slow["sum_by"]), (&json!("resource.label.service_name"), &Value::Null));
        let errors = condition(&all, "service-errors");
        let failed = " AND metric.labels.response_code_class=\"5xx\"";
        assert_eq!(errors["filter"], filter("request_count", failed));
        assert_eq!(errors["share_of"], filter("request_count", ""));
        assert_eq!((&errors["above"], &errors["lasting_seconds"]), (&json!(0.05), &json!(600)));
        limit(&bench, &printed(&bench, &all, Some(Verb::Create)));
        let records = create(&bench, &all).await;
        assert_eq!(refused(&bench), Vec::<String>::new(), "the role does not suffice");
        // The search for leftovers lists all kinds of a service that is enabled, also those of no resource here.
        bench.cloud.world().allowed = None;
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}
