//! An environment that is an endpoint of SageMaker: from an account without it, through changes and failures, and back.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_aws::{CAPABILITIES, EndpointOperations, endpoint as endpoint_of};
use textnlp_orchestrator::run::RunError;
use textnlp_provider::capabilities::Setting;
use textnlp_provider::cluster::ResourceAmounts;
use textnlp_provider::component::{
    Autoscaling, Component, ComponentSpec, InferenceEndpoint, Model, ModelStore, Registry, ServiceLimits, Site,
    TrafficShift,
};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::memory::Fuse;
use textnlp_provider::operations::{EndpointAccess, Operations, SignedRequest};
use textnlp_provider::settings::{GpuSize, Runtime};
use textnlp_provider::{Capability, Provider, Wanted};
use textnlp_sim::Options;
use textnlp_sim::aws::autoscaling::ScalableTargets;
use textnlp_sim::aws::ecr::Ecr;
use textnlp_sim::aws::sagemaker::{Container, SageMaker};

use crate::engine::{Account, DOWN, Stack, UP, component};
use crate::programs::of_lineage;
use crate::{ACCOUNT, Bench, REGION, access, site};

const IMAGE: &str = "sha256:00000000000000000000000000000000000000000000000000000000000000a1";
const NAME: &str = "textnlp-staging-here";

fn digest(last: u8) -> String {
    format!("sha256:{last:064x}")
}

pub(crate) fn place() -> Site {
    Site { runtime: Runtime::Sagemaker, protect_data: false, ..site() }
}

fn repository() -> String {
    format!("{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com/textnlp")
}

fn model(source: &str, digest: Option<String>) -> Model {
    Model {
        name: "tiny".to_owned(),
        source: source.to_owned(),
        digest,
        role: None,
        quantize: None,
        context: None,
        preload: true,
    }
}

fn served() -> InferenceEndpoint {
    InferenceEndpoint {
        replicas: 2,
        autoscaling: Some(Autoscaling { max: 4, cpu: None, memory: None, requests_per_second: Some(5) }),
        gpu: None,
        resources: ResourceAmounts::default(),
        instance_type: None,
        image: Some(format!("{}:1.0-a@{IMAGE}", repository())),
        registry: Some("registry".parse().unwrap()),
        image_in: Some("registry".parse().unwrap()),
        config: json!({ "textnlp": {
            "environment": "staging", "api": { "drain_seconds": 30 }, "models": { "serve": [{ "name": "tiny" }] },
            // Longer than one variable.
            "site": "x".repeat(1500),
        } }),
        models: vec![model("hf:org/tiny", Some(digest(1)))],
        max_cache_bytes: 20_000_000_000,
        permission_boundary: None,
        limits: ServiceLimits::default(),
        shift: None,
        monitoring: None,
    }
}

/// The same with another model.
pub(crate) fn with_model(last: u8) -> InferenceEndpoint {
    InferenceEndpoint { models: vec![model("hf:org/tiny", Some(digest(last)))], ..served() }
}

pub(crate) fn components(endpoint: InferenceEndpoint) -> Vec<Component> {
    let store = ModelStore {
        models: Vec::new(),
        max_cache_bytes: 1,
        key: None,
        archive_after_days: None,
        replica: None,
        permission_boundary: None,
    };
    vec![
        component("models", ComponentSpec::ModelStore(store)),
        component("registry", ComponentSpec::Registry(Registry { url: repository(), image: None })),
        component("server", ComponentSpec::InferenceEndpoint(endpoint)),
    ]
}

/// An account with the image in its registry.
pub(crate) fn account() -> (Account, Vec<Wanted>) {
    let account = Account::new(Options::zero_latency());
    let first = account.lower(&components(served())[..2], &place());
    (account, first)
}

pub(crate) fn push(account: &Account) {
    let mut world = account.simulator.world();
    let ecr = world.state::<Ecr>(&Bench::scope());
    ecr.repositories.get_mut("textnlp").unwrap().pushed.images.insert("1.0-a".to_owned(), IMAGE.to_owned());
}

fn sagemaker<T>(account: &Account, read: impl FnOnce(&mut SageMaker) -> T) -> T {
    read(account.simulator.world().state::<SageMaker>(&Bench::scope()))
}

/// The joined pieces of a document in the variables of a container.
fn document(container: &Container, name: &str) -> Value {
    let pieces = (0..).map_while(|number| container.environment.get(&format!("{name}_{number}")));
    serde_json::from_str(&pieces.map(String::as_str).collect::<String>()).unwrap()
}

/// Invokes the endpoint as the program does.
fn invoke(account: &Account, body: &Value) -> (u16, Value) {
    let body = body.to_string();
    let operations = Arc::new(EndpointOperations::new(access(&account.simulator), &place()));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let signed = runtime.block_on(operations.invocations().unwrap().sign(body.as_bytes())).unwrap();
    let SignedRequest { url, headers } = signed;
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut request =
        format!("POST /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in &headers {
        request += &format!("{name}: {}\r\n", value.expose_text().unwrap());
    }
    let mut stream = TcpStream::connect(host).unwrap();
    stream.write_all(format!("{request}\r\n{body}").as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let status = head.split(' ').nth(1).unwrap().parse().unwrap();
    (status, serde_json::from_str(body).unwrap())
}

#[test]
fn an_endpoint_is_made_answers_changes_rolls_back_and_is_removed_with_everything() {
    let (account, first) = account();
    let before = account.tags();
    let stack = Stack::new(&account, "staging", 11);
    stack.reach(UP, &first);
    push(&account);

    let wanted = account.lower(&components(served()), &place());
    stack.reach(UP, &wanted);
    let (again, _) = stack.look(UP, &wanted);
    assert!(again.steps.is_empty(), "a second up plans nothing: {:#?}", again.steps);
    let fleet = || sagemaker(&account, |known| known.endpoints[NAME].fleet.clone());
    assert_eq!((fleet().variants["main"].kind.as_str(), fleet().variants["main"].count), ("ml.m5.xlarge", 2));
    let targets: Vec<String> = {
        let world = account.simulator.world();
        world.find::<ScalableTargets>(&Bench::scope()).unwrap().targets.keys().cloned().collect()
    };
    assert_eq!(targets, [format!("endpoint/{NAME}/variant/main")]);

    // The container gets all that `serve` needs, and answers what is signed for it.
    let seen = Arc::new(Mutex::new(Vec::new()));
    let kept = seen.clone();
    let answer = move |container: &Container, body: &[u8]| {
        kept.lock().unwrap().push((
            container.image.clone(),
            document(container, "TEXTNLP_SAGEMAKER_SERVER"),
            document(container, "TEXTNLP_SAGEMAKER_MODELS"),
        ));
        match serde_json::from_slice::<Value>(body).unwrap()["prompt"].as_str() {
            Some(prompt) => (200, json!({ "echo": prompt }).to_string().into_bytes()),
            None => (400, json!({ "error": { "message": "no prompt" } }).to_string().into_bytes()),
        }
    };
    sagemaker(&account, |known| known.containers = Some(Box::new(answer)));
    assert_eq!(invoke(&account, &json!({ "prompt": "a" })), (200, json!({ "echo": "a" })));
    let (status, refused) = invoke(&account, &json!({}));
    assert_eq!((status, refused["OriginalStatusCode"].as_u64()), (424, Some(400)), "{refused}");
    assert!(refused["OriginalMessage"].as_str().unwrap().contains("no prompt"), "{refused}");
    let (image, config, models) = seen.lock().unwrap()[0].clone();
    assert_eq!(image, format!("{}@{IMAGE}", repository()));
    assert_eq!(config["textnlp"]["api"], json!({ "drain_seconds": 25, "listen": "0.0.0.0:8080" }));
    assert_eq!(config["textnlp"]["models"]["serve"][0]["path"], models["models"][0]["path"]);
    assert_eq!(models["models"][0]["digest"], digest(1));

    // Another model is deployed beside the old one, which then goes.
    let config = fleet().config;
    let other = |last: u8| account.lower(&components(with_model(last)), &place());
    let plan = stack.reach(UP, &other(2));
    let changed: Vec<&str> = plan.steps.iter().map(|step| step.resource.as_str()).collect();
    assert!(changed.contains(&"here/server/endpoint") && !changed.contains(&"here/server/role"), "{changed:?}");
    assert_ne!(fleet().config, config);
    let counts = |known: &mut SageMaker| (known.models.len(), known.configs.len(), known.deleted_in_use.clone());
    assert_eq!(sagemaker(&account, counts), (1, 1, Vec::new()));
    let config = fleet().config;

    // An alarm during an update brings the old release back, and the run says so.
    sagemaker(&account, |known| known.alarmed = true);
    let outcome = stack.go(UP, &other(3), &Fuse::default()).unwrap().unwrap();
    let failed: Vec<(&str, String)> =
        outcome.outcome.failed.iter().map(|failure| (failure.resource.as_str(), failure.line())).collect();
    assert!(failed.len() == 1 && failed[0].0 == "here/server/endpoint", "{failed:?}");
    assert!(failed[0].1.contains("returned to the old instances"), "{failed:?}");
    assert_eq!(fleet().config, config);
    assert_eq!(invoke(&account, &json!({ "prompt": "b" })).0, 200, "the old release answers");
    sagemaker(&account, |known| known.alarmed = false);
    stack.reach(UP, &other(3));
    assert_ne!(fleet().config, config);
    assert_eq!(sagemaker(&account, counts), (1, 1, Vec::new()));

    // A canary takes requests before the others, and the release has its deadline.
    let deployed = || sagemaker(&account, |known| known.endpoints[NAME].deployment.clone().unwrap());
    assert_eq!(deployed()["BlueGreenUpdatePolicy"]["TrafficRoutingConfiguration"]["Type"], "ALL_AT_ONCE");
    let shift = Some(TrafficShift { share: Some(10), bake_seconds: 900, deadline_seconds: 2 * 3600 });
    let canary = |last: u8| {
        let endpoint = InferenceEndpoint { shift: shift.clone(), ..with_model(last) };
        account.lower(&components(endpoint), &place())
    };
    let (plan, _) = stack.look(UP, &canary(3));
    assert!(!plan.has_changes(), "the next release is a canary: {:#?}", plan.steps);
    stack.reach(UP, &canary(4));
    let policy = deployed()["BlueGreenUpdatePolicy"].clone();
    let routing = &policy["TrafficRoutingConfiguration"];
    assert_eq!((routing["Type"].as_str(), routing["WaitIntervalInSeconds"].as_u64()), (Some("CANARY"), Some(900)));
    assert_eq!(routing["CanarySize"], json!({ "Type": "CAPACITY_PERCENT", "Value": 10 }));
    assert_eq!(policy["MaximumExecutionTimeoutInSeconds"], 7200);

    stack.reach(DOWN, &[]);
    assert_eq!(stack.recorded(), []);
    // KMS keeps a deleted key for thirty days.
    account.simulator.advance(Duration::from_secs(40 * 86_400));
    let left = account.tags();
    let ours: Vec<_> = left.iter().filter(|(_, tags)| of_lineage(tags, stack.lineage()).is_some()).collect();
    assert!(ours.is_empty(), "{ours:#?}");
    assert_eq!(left, before);
}

/// The image of a program with CUDA, which was pushed before.
pub(crate) fn with_gpus(instance_type: Option<&str>) -> InferenceEndpoint {
    let image = Some(format!("{}:1.0-a@{IMAGE}", repository()));
    let instance_type = instance_type.map(str::to_owned);
    InferenceEndpoint { gpu: Some(GpuSize::Small), instance_type, image, registry: None, ..served() }
}

#[test]
fn an_endpoint_with_gpus_has_their_driver_and_neither_key_nor_volume() {
    let (account, first) = account();
    let stack = Stack::new(&account, "staging", 13);
    stack.reach(UP, &first);
    push(&account);
    let wanted = account.lower(&components(with_gpus(Some("ml.g6e.xlarge"))), &place());
    sagemaker(&account, |known| known.needs_driver = 580);
    account.simulator.world().quotas.set(&Bench::scope(), "L-B0729CB4", 1.0);
    let Err(RunError::Preflight(problems)) = stack.go(UP, &wanted, &Fuse::default()).unwrap() else {
        panic!("preflight refuses it")
    };
    let said = format!("{problems:?}");
    assert!(said.contains("`ml.g6e.xlarge for endpoint usage` (L-B0729CB4) allows 1, and this plan needs 2"), "{said}");
    account.simulator.world().quotas.set(&Bench::scope(), "L-B0729CB4", 8.0);
    stack.reach(UP, &wanted);
    let (again, _) = stack.look(UP, &wanted);
    assert!(again.steps.is_empty(), "a second up plans nothing: {:#?}", again.steps);
    let fleet = sagemaker(&account, |known| known.endpoints[NAME].fleet.clone());
    assert_eq!((fleet.variants["main"].kind.as_str(), fleet.variants["main"].count), ("ml.g6e.xlarge", 2));

    let spec = |part: &str| {
        let id = format!("here/server/{part}");
        wanted.iter().find(|one| one.id.as_str() == id).unwrap().spec.as_value().clone()
    };
    let (config, model) = (spec("config"), spec("model"));
    assert_eq!((&config["key"], &config["variants"][0]["volume_gb"]), (&json!(null), &json!(null)));
    assert_eq!(config["variants"][0]["startup_seconds"], 3600);
    assert_eq!(model["environment"]["NVIDIA_VISIBLE_DEVICES"], "all");
    let pulls = format!("arn:aws:ecr:{REGION}:{ACCOUNT}:repository/textnlp");
    let statements = spec("role")["inline"]["endpoint"]["Statement"].clone();
    let image = statements.as_array().unwrap().iter().find(|one| one["Sid"] == "Image").unwrap();
    assert_eq!(image["Resource"], pulls);

    stack.reach(DOWN, &[]);
    assert_eq!(stack.recorded(), []);
}

/// Their disks have no key of the site, also where data is not protected, and a server uses one GPU.
#[test]
fn what_is_unusual_about_gpus_is_said_before_they_cost() {
    let (account, _) = account();
    let bench = Bench::new();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = |protect_data: bool, parts: &[Component]| {
        let wanted = account.lower(parts, &Site { protect_data, ..place() });
        let config = wanted.iter().find(|one| one.kind.as_str() == "aws.endpoint-config").unwrap();
        assert!(config.spec.get("key").unwrap().is_null());
        let problems = runtime.block_on(bench.provider.preflight(&wanted)).unwrap();
        let about = |words: &str| problems.iter().any(|problem| problem.warning && problem.cause.contains(words));
        (about("not with the key of the site"), about("the others are idle"))
    };
    let (one, eight) = (components(with_gpus(Some("ml.g6e.xlarge"))), components(with_gpus(Some("ml.p4d.24xlarge"))));
    assert_eq!(said(true, &one), (true, false));
    assert_eq!(said(false, &one), (true, false));
    assert_eq!(said(false, &eight), (true, true));
    // The part of the models has the key.
    assert_eq!(said(false, &eight[1..]), (false, true));
}

/// The defaults of SageMaker have older drivers than CUDA 13 needs.
#[test]
fn an_endpoint_with_an_older_driver_fails_with_the_reason() {
    let (account, first) = account();
    let stack = Stack::new(&account, "staging", 14);
    stack.reach(UP, &first);
    push(&account);
    sagemaker(&account, |known| known.needs_driver = 581);
    let wanted = account.lower(&components(with_gpus(None)), &place());
    let outcome = stack.go(UP, &wanted, &Fuse::default()).unwrap().unwrap();
    let failed: Vec<(&str, String)> =
        outcome.outcome.failed.iter().map(|failure| (failure.resource.as_str(), failure.line())).collect();
    assert!(failed.len() == 1 && failed[0].0 == "here/server/endpoint", "{failed:?}");
    assert!(failed[0].1.contains("CannotStartContainerError"), "{failed:?}");
}

#[test]
fn gpu_sizes_are_instance_types_of_sagemaker() {
    let bench = Bench::new();
    let chosen = |gpu: GpuSize, instance_type: Option<&str>| {
        let endpoint = InferenceEndpoint { gpu: Some(gpu), ..with_gpus(instance_type) };
        let part = component("server", ComponentSpec::InferenceEndpoint(endpoint));
        let wanted = bench.provider.lower(&part, &place()).map_err(|problems| problems.to_string())?;
        let config = wanted.iter().find(|one| one.id.as_str() == "here/server/config").unwrap();
        Ok::<_, String>(config.spec.get("variants").unwrap()[0]["instance_type"].clone())
    };
    for (gpu, named, expected) in [
        (GpuSize::Small, None, "ml.g4dn.xlarge"),
        (GpuSize::Medium, None, "ml.g4dn.2xlarge"),
        // AWS has withdrawn p3, and CUDA 13 has no code for a V100.
        (GpuSize::Large, None, "ml.g6e.2xlarge"),
        (GpuSize::Xlarge, None, "ml.p4d.24xlarge"),
        (GpuSize::Xlarge, Some("ml.p5.4xlarge"), "ml.p5.4xlarge"),
    ] {
        assert_eq!(chosen(gpu, named), Ok(json!(expected)), "{gpu:?} {named:?}");
    }
    for name in ["ml.p3.2xlarge", "ml.m5.xlarge", "ml.g5g.xlarge", "g5.xlarge", ""] {
        let refused = chosen(GpuSize::Small, Some(name)).unwrap_err();
        assert!(refused.contains(&format!("`{name}` is no type with GPUs")), "{refused}");
    }
}

#[test]
fn an_endpoint_beyond_its_quota_is_refused_before_anything_changes() {
    let (account, _) = account();
    account.simulator.world().quotas.set(&Bench::scope(), "L-2F737F8D", 1.0);
    let stack = Stack::new(&account, "staging", 12);
    let wanted = account.lower(&components(served()), &place());
    let Err(RunError::Preflight(problems)) = stack.go(UP, &wanted, &Fuse::default()).unwrap() else {
        panic!("preflight refuses it")
    };
    let said = format!("{problems:?}");
    assert!(said.contains("`ml.m5.xlarge for endpoint usage` (L-2F737F8D) allows 1, and this plan needs 2"), "{said}");
    assert_eq!(stack.recorded(), []);
}

#[test]
fn the_quota_of_an_endpoint_has_room_for_two_fleets_of_the_most_instances() {
    let bench = Bench::new();
    let part = |autoscaling| {
        component("server", ComponentSpec::InferenceEndpoint(InferenceEndpoint { autoscaling, ..served() }))
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let said = |autoscaling, limit: f64| {
        bench.simulator.world().quotas.set(&Bench::scope(), "L-2F737F8D", limit);
        let wanted = bench.provider.lower(&part(autoscaling), &place()).unwrap();
        let problems = runtime.block_on(bench.provider.preflight(&wanted)).unwrap();
        problems.into_iter().find(|problem| problem.cause.contains("for endpoint usage"))
    };
    let scaled = served().autoscaling;
    let found = said(scaled, 7.0).unwrap();
    assert!(found.warning && found.cause.contains("allows 7, and up to 4 run"), "{found:?}");
    assert!(found.fix.contains("--desired-value 8"), "{found:?}");
    assert!(said(scaled, 8.0).is_none());
    let found = said(None, 3.0).unwrap();
    assert!(found.warning && found.cause.contains("allows 3, and up to 2 run"), "{found:?}");
    assert!(said(None, 4.0).is_none());
    assert!(!said(scaled, 1.0).unwrap().warning);
}

/// What the execution role may do, action by action.
#[test]
fn the_role_of_an_endpoint_has_no_more_than_sagemaker_needs() {
    let (account, _) = account();
    let wanted = account.lower(&components(served()), &place());
    let role = wanted.iter().find(|one| one.id.as_str() == "here/server/role").unwrap();
    let statements = role.spec.get("inline").unwrap()["endpoint"]["Statement"].as_array().unwrap().clone();
    let mut open: Vec<String> = Vec::new();
    for statement in &statements {
        for action in statement["Action"].as_array().unwrap() {
            assert!(!action.as_str().unwrap().contains('*'), "{statement}");
            if statement["Resource"] == "*" && statement["Condition"].is_null() {
                open.push(action.as_str().unwrap().to_owned());
            }
        }
    }
    assert_eq!(open, ["ecr:GetAuthorizationToken", "cloudwatch:DescribeAlarms"], "these have no resources");
    let trust = &role.spec.get("trust").unwrap()["Statement"][0];
    assert_eq!(trust["Condition"]["StringEquals"]["aws:SourceAccount"], json!([ACCOUNT]));
    let isolated = |source: &str| {
        let endpoint = InferenceEndpoint { models: vec![model(source, Some(digest(1)))], ..served() };
        let wanted = account.lower(&components(endpoint), &place());
        let model = wanted.iter().find(|one| one.id.as_str() == "here/server/model").unwrap();
        model.spec.get("isolated").unwrap().as_bool().unwrap()
    };
    assert_eq!((isolated("bundled"), isolated("hf:org/tiny")), (true, false), "without a fetch it needs no network");
}

#[test]
fn what_sagemaker_cannot_run_is_refused_with_the_reason() {
    let bench = Bench::new();
    let check = |endpoint: InferenceEndpoint, expected: &str| {
        let part = component("server", ComponentSpec::InferenceEndpoint(endpoint));
        let problems = bench.provider.lower(&part, &place()).unwrap_err();
        assert!(format!("{problems:?}").contains(expected), "{expected}: {problems:?}");
    };
    let of_type = |name: &str| InferenceEndpoint { instance_type: Some(name.to_owned()), ..served() };
    for name in ["ml.g5.xlarge", "ml.c7g.xlarge", "ml.m5d.xlarge", "m5.xlarge", ""] {
        check(of_type(name), "they use CPUs of x86-64 only");
    }
    check(InferenceEndpoint { image: None, ..served() }, "there is no image");
    let image = |image: &str| InferenceEndpoint { image: Some(image.to_owned()), ..with_gpus(None) };
    let elsewhere = format!("SageMaker pulls images of ECR in {REGION} only");
    check(image("registry.example/textnlp@sha256:1"), &elsewhere);
    check(image(&repository().replace(REGION, "us-west-2")), &elsewhere);
    check(image(&format!("{}:1", repository())), "has no digest");
    let pushed = InferenceEndpoint { registry: served().registry, ..with_gpus(None) };
    check(pushed, "images that `up` pushes compute on the CPU");
    check(InferenceEndpoint { image: None, ..with_gpus(None) }, "images that `up` pushes compute on the CPU");
    check(InferenceEndpoint { models: vec![model("file:/m", Some(digest(1)))], ..served() }, "does not reach");
    check(InferenceEndpoint { models: vec![model("hf:a/b", None)], ..served() }, "has no digest");
    let by_cpu = Autoscaling { max: 4, cpu: Some(70), memory: None, requests_per_second: Some(1) };
    check(InferenceEndpoint { autoscaling: Some(by_cpu), ..served() }, "not the use of its processors");
    let shifted = |replicas: u32, share: Option<u32>, bake_seconds: u64, deadline_seconds: u64| {
        let shift = Some(TrafficShift { share, bake_seconds, deadline_seconds });
        InferenceEndpoint { replicas, shift, ..served() }
    };
    check(shifted(2, Some(51), 600, 3600), "at most 50 % of its instances");
    check(shifted(1, Some(10), 600, 3600), "needs two instances");
    check(shifted(2, None, 3700, 10_800), "for an hour at most");
    // Twice half an hour and two minutes.
    check(shifted(2, Some(10), 1800, 4319), "observed for 62 minutes");
    let part = component("server", ComponentSpec::InferenceEndpoint(shifted(1, None, 1800, 3720)));
    assert!(bench.provider.lower(&part, &place()).is_ok(), "all at once it waits once");
    let config = json!({ "textnlp": { "site": "x".repeat(40_000) } });
    check(InferenceEndpoint { config, ..served() }, "SageMaker passes 32768");

    let part = component("server", ComponentSpec::InferenceEndpoint(of_type("ml.c7i.2xlarge")));
    lowers_purely(&bench.provider, &part, &place()).unwrap();
}

#[test]
fn an_endpoint_supports_less_than_a_cluster_and_no_keys() {
    let (pods, endpoint) =
        (CAPABILITIES.of(Runtime::Kubernetes).unwrap(), CAPABILITIES.of(Runtime::Sagemaker).unwrap());
    assert!(CAPABILITIES.of(Runtime::Process).is_none());
    for setting in [Setting::Backup, Setting::ClusterAccess, Setting::ExistingZone, Setting::MonitoringStack] {
        let capability = Capability::Optional(setting);
        assert!(pods.supports(capability) && !endpoint.supports(capability), "{}", setting.path());
    }
    let outputs = BTreeMap::from([(
        "server/endpoint".to_owned(),
        BTreeMap::from([("arn".to_owned(), json!(format!("arn:aws:sagemaker:{REGION}:{ACCOUNT}:endpoint/{NAME}")))]),
    )]);
    assert_eq!(endpoint_of(&outputs).unwrap().access, EndpointAccess::Invocations);
    let operations = Arc::new(EndpointOperations::new(access(&Bench::new().simulator), &place()));
    assert!(operations.clone().jobs().is_none() && operations.clone().rollouts().is_none());
    assert!(operations.clone().backups().is_none() && operations.clone().outages().is_none());
    let logs = operations.log_command().unwrap();
    assert!(logs.contains(&format!("/aws/sagemaker/Endpoints/{NAME} --region {REGION}")), "{logs}");
}
