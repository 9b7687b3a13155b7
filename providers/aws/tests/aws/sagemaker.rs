//! Endpoints of SageMaker and their autoscaling.

use serde_json::{Value, json};
use textnlp_provider::conformance::{TestBed, Violation};
use textnlp_provider::memory::Fuse;
use textnlp_provider::spec::OutputRef;
use textnlp_provider::{
    CloudId, Effect, ErrorKind, Health, Need, Observed, Operation, Progress, Provider, Recorded, ResourceId, Spec,
    Verb, Wanted, error_chain,
};
use textnlp_sim::aws::autoscaling::ScalableTargets;
use textnlp_sim::aws::s3;
use textnlp_sim::aws::sagemaker::SageMaker;
use textnlp_sim::{Disruption, Market, Options, Rule};

use crate::engine::{Account, DOWN, Stack, UP};
use crate::iam::{role, with as changed};
use crate::network::{finish, operation, seen, with};
use crate::rds::with_subnets;
use crate::{Bench, REGION, output, run, wanted};

type Outcome<T = ()> = Result<T, Violation>;

const BUCKET: &str = "textnlp-123456789012-staging-here-models";
const IMAGE: &str = "registry.example/textnlp@sha256:0000000000000000000000000000000000000000000000000000000000000001";
const TYPE: &str = "ml.c7i.xlarge";
const AMI: &str = "al2023-ami-sagemaker-inference-gpu-4-1";

/// With a bucket that holds a model, and subnets.
fn bench() -> Bench {
    let bench = Bench::new();
    with_subnets(&bench);
    bench
}

fn model(role: &Recorded) -> Wanted {
    let data = json!({ "uri": format!("s3://{BUCKET}/gpt2/"), "kind": "S3Prefix", "compression": "None" });
    let spec = json!({
        "name": "textnlp-staging-here-gpt2", "image": IMAGE, "data": data, "environment": { "TEXTNLP_MODEL": "gpt2" },
        "role": output(role, "arn"), "subnets": ["subnet-0b", "subnet-0a"], "security_groups": ["sg-0a"],
        "isolated": false, "tags": {},
    });
    wanted("here/endpoint-gpt2/model", "aws.sagemaker-model", &spec)
}

fn config(model: &str) -> Wanted {
    let variant = json!({
        "name": "main", "model": model, "instance_type": TYPE, "count": 2, "weight": 1, "volume_gb": 30,
        "download_seconds": 600, "startup_seconds": 600,
    });
    let spec = json!({ "name": "textnlp-staging-here-gpt2", "key": null, "variants": [variant], "tags": {} });
    wanted("here/endpoint-gpt2/config", "aws.endpoint-config", &spec)
}

fn endpoint(config: &str) -> Wanted {
    let spec = json!({
        "name": "textnlp-staging-here-gpt2", "config": config,
        "deployment": { "routing": "CANARY", "step_percent": 50, "wait_seconds": 600, "keep_seconds": 120, "alarms": ["errors"] },
        "variants": { "main": { "weight": 1, "count": 2 } }, "tags": {},
    });
    wanted("here/endpoint-gpt2/endpoint", "aws.endpoint", &spec)
}

fn target(policies: &Value) -> Wanted {
    let spec = json!({
        "endpoint": "textnlp-staging-here-gpt2", "variant": "main", "min": 2, "max": 6, "policies": policies, "tags": {},
    });
    wanted("here/endpoint-gpt2/scaling", "aws.scaling-target", &spec)
}

/// The role and the data of models.
async fn made_role(bench: &Bench, bed: &TestBed<'_>) -> Outcome<Recorded> {
    let bucket = json!({
        "name": BUCKET, "owner_enforced": true, "public_access_blocked": true,
        "encryption": { "key": null, "bucket_key": true }, "versioned": true, "policy": null, "lifecycle": [],
        "replication": null, "tags": {},
    });
    bed.make(&wanted("here/models/bucket", "aws.bucket", &bucket)).await?;
    s3::insert(&mut bench.simulator.world(), BUCKET, "gpt2/model.safetensors", b"weights");
    bed.make(&role("endpoint-role", "sagemaker.amazonaws.com", &[])).await
}

/// The name of the configuration of an endpoint.
async fn made_config(bench: &Bench, bed: &TestBed<'_>) -> Outcome<String> {
    let model = bed.make(&model(&made_role(bench, bed).await?)).await?;
    Ok(output(&bed.make(&config(&output(&model, "name"))).await?, "name"))
}

/// A second configuration of the same model, as the engine creates it beside the first one.
async fn other_config(bed: &TestBed<'_>, first: &str, changes: &[(&str, Value)]) -> Outcome<String> {
    let model = first_model(bed, first).await;
    let mut spec = config(&model).spec.as_value().clone();
    for (field, value) in changes {
        spec["variants"][0][*field] = value.clone();
    }
    let wanted = Wanted { spec: Spec::of(&spec), ..config(&model) };
    Ok(output(&bed.make(&wanted).await?, "name"))
}

async fn first_model(bed: &TestBed<'_>, config: &str) -> String {
    let (kind, id) = ("aws.endpoint-config".parse().unwrap(), CloudId::new(config).unwrap());
    let Observed::Present(object) = bed.provider.read(&kind, &id).await.unwrap() else { panic!("{config} is there") };
    object.spec.get("variants").unwrap()[0]["model"].as_str().unwrap().to_owned()
}

/// What the endpoint runs: its configuration, and the number of instances and the weight of its variant.
fn fleet(bench: &Bench) -> (String, u64, f64) {
    let world = bench.simulator.world();
    let fleet = &world.find::<SageMaker>(&Bench::scope()).unwrap().endpoints["textnlp-staging-here-gpt2"].fleet;
    (fleet.config.clone(), fleet.variants["main"].count, fleet.variants["main"].weight)
}

fn lacking(bench: &Bench, left: u64) {
    bench.simulator.world().capacity.set(&format!("{REGION}a"), TYPE, Market::OnDemand, left);
}

#[test]
fn a_sagemaker_model_lives() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = model(&made_role(&bench, &bed).await?);
        let tagged = changed(&wanted, json!({ "tags": { "owner": "me" } }));
        bed.whole_life(&wanted, Some(&tagged.spec)).await
    });
    assert!(bench.simulator.world().find::<SageMaker>(&Bench::scope()).unwrap().models.is_empty());
}

#[test]
fn an_endpoint_configuration_lives() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let model = bed.make(&model(&made_role(&bench, &bed).await?)).await?;
        let wanted = config(&output(&model, "name"));
        let tagged = changed(&wanted, json!({ "tags": { "owner": "me" } }));
        bed.whole_life(&wanted, Some(&tagged.spec)).await
    });
}

#[test]
fn an_endpoint_lives() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let first = made_config(&bench, &bed).await?;
        let second = other_config(&bed, &first, &[("volume_gb", json!(40))]).await?;
        let wanted = endpoint(&first);
        let other = changed(
            &wanted,
            json!({ "config": second, "variants": { "main": { "weight": 3, "count": 4 } }, "tags": { "owner": "me" } }),
        );
        bed.whole_life(&wanted, Some(&other.spec)).await
    });
    let world = bench.simulator.world();
    let state = world.find::<SageMaker>(&Bench::scope()).unwrap();
    assert!(state.endpoints.is_empty() && state.deleted_in_use.is_empty());
}

#[test]
fn the_autoscaling_of_an_endpoint_lives() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let config = made_config(&bench, &bed).await?;
        let wanted_endpoint = endpoint(&config);
        let made = bed.make(&wanted_endpoint).await?;
        let policy =
            |invocations: u32| json!({ "invocations": invocations, "scale_out_seconds": 60, "scale_in_seconds": 300 });
        let wanted = target(&json!({ "requests": policy(600), "old": policy(900) }));
        let other = changed(
            &wanted,
            json!({ "min": 1, "max": 8, "policies": { "requests": policy(300), "new": policy(100) } }),
        );
        bed.whole_life(&wanted, Some(&other.spec)).await?;
        bed.unmake(&wanted_endpoint, &made).await
    });
    let world = bench.simulator.world();
    assert!(world.find::<ScalableTargets>(&Bench::scope()).unwrap().targets.is_empty());
}

#[test]
fn an_image_without_a_digest_is_refused_before_any_call() {
    let bench = bench();
    run(async {
        let role = made_role(&bench, &bench.bed()).await?;
        let wanted = changed(&model(&role), json!({ "image": "registry.example/textnlp:v1" }));
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert_eq!(bench.calls("CreateModel"), 0);
        Ok(())
    });
}

/// A replaced model has the same spec but for one field, and the old one is still there.
#[test]
fn a_changed_model_is_created_beside_the_old_one() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = model(&made_role(&bench, &bed).await?);
        let first = bed.make(&wanted).await?;
        let other = changed(&wanted, json!({ "environment": {} }));
        let changes = bench.provider.diff(&other, &first, &seen(&bench, &wanted, &first).await);
        assert!(changes.iter().all(|change| change.effect == Effect::Replace), "{changes:?}");
        let second = bed.make(&other).await?;
        assert_ne!(first.cloud_id, second.cloud_id);
        assert_eq!(bench.simulator.world().find::<SageMaker>(&Bench::scope()).unwrap().models.len(), 2);
        Ok(())
    });
}

#[test]
fn lost_replies_leave_one_object_of_each_kind() {
    let bench = bench();
    for operation in ["CreateModel", "CreateEndpointConfig", "CreateEndpoint"] {
        bench.simulator.faults().add(Rule::nth("sagemaker", operation, 1, Disruption::LostReply));
    }
    bench.simulator.faults().add(Rule::nth(
        "application-autoscaling",
        "RegisterScalableTarget",
        1,
        Disruption::LostReply,
    ));
    run(async {
        let bed = bench.bed();
        bed.make(&endpoint(&made_config(&bench, &bed).await?)).await?;
        bed.make(&target(&json!({}))).await.map(drop)
    });
    let world = bench.simulator.world();
    let state = world.find::<SageMaker>(&Bench::scope()).unwrap();
    assert_eq!((state.models.len(), state.configs.len(), state.endpoints.len()), (1, 1, 1));
    assert_eq!(world.find::<ScalableTargets>(&Bench::scope()).unwrap().targets.len(), 1);
}

#[test]
fn throttled_calls_are_repeated() {
    let bench = bench();
    for operation in ["CreateModel", "CreateEndpoint", "DescribeEndpoint", "UpdateEndpoint"] {
        bench.simulator.faults().add(Rule::nth("sagemaker", operation, 1, Disruption::Throttled));
    }
    run(async {
        let bed = bench.bed();
        let first = made_config(&bench, &bed).await?;
        let wanted = endpoint(&first);
        let made = bed.make(&wanted).await?;
        let second = other_config(&bed, &first, &[("volume_gb", json!(40))]).await?;
        let wanted = Wanted { spec: with(&wanted, "config", json!(second)), ..wanted };
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert_eq!(fleet(&bench).0, second);
        Ok(())
    });
}

#[test]
fn an_endpoint_without_capacity_fails_with_the_reason_and_can_be_deleted() {
    let bench = bench();
    lacking(&bench, 1);
    run(async {
        let bed = bench.bed();
        let wanted = endpoint(&made_config(&bench, &bed).await?);
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Capacity);
        assert!(error_chain(&error).contains("InsufficientInstanceCapacity"), "{}", error_chain(&error));
        lacking(&bench, 4);
        // The next plan replaces it.
        let id = CloudId::new("textnlp-staging-here-gpt2").unwrap();
        let Observed::Present(left) = bench.provider.read(&wanted.kind, &id).await.unwrap() else {
            panic!("it is left")
        };
        assert!(matches!(left.health, Health::Degraded(_)));
        let recorded = Recorded { cloud_id: left.cloud_id, outputs: left.outputs, ..recorded(&wanted) };
        finish(&bench, &operation(Verb::Delete, &wanted, Some(&recorded), 101)).await.unwrap();
        bed.make(&wanted).await.map(drop)
    });
}

#[test]
fn a_container_that_answers_no_health_check_is_not_called_a_passing_problem() {
    let bench = bench();
    bench.simulator.world().state::<SageMaker>(&Bench::scope()).mute = true;
    run(async {
        let wanted = endpoint(&made_config(&bench, &bench.bed()).await?);
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.hint.as_ref().unwrap().contains("/aws/sagemaker/Endpoints/"), "{error:?}");
        Ok(())
    });
}

/// The record of a resource whose creation failed.
pub(crate) fn recorded(wanted: &Wanted) -> Recorded {
    Recorded {
        id: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        via: None,
        spec: wanted.spec.clone(),
        needs: Vec::new(),
        ownership: wanted.ownership.clone(),
        schema: 1,
        cloud_id: CloudId::new("none").unwrap(),
        outputs: std::collections::BTreeMap::new(),
        protected: false,
        tainted: true,
        created: None,
    }
}

#[test]
fn a_quota_of_zero_instances_names_the_quota() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let first = made_config(&bench, &bed).await?;
        let changes = [("instance_type", json!("ml.g6e.xlarge")), ("volume_gb", json!(null)), ("ami", json!(AMI))];
        let second = other_config(&bed, &first, &changes).await?;
        let error = finish(&bench, &operation(Verb::Create, &endpoint(&second), None, 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Quota);
        assert!(error.hint.as_ref().unwrap().contains("list-service-quotas"), "{error:?}");
        assert!(error_chain(&error).contains("ml.g6e.xlarge for endpoint usage"), "{}", error_chain(&error));
        Ok(())
    });
}

/// Creates an endpoint with a first configuration and updates it to a second one.
async fn update(bench: &Bench, before: impl FnOnce(&Bench)) -> Outcome<(String, String, textnlp_provider::Result<()>)> {
    let bed = bench.bed();
    let first = made_config(bench, &bed).await?;
    let wanted = endpoint(&first);
    let made = bed.make(&wanted).await?;
    let second = other_config(&bed, &first, &[("count", json!(5))]).await?;
    before(bench);
    let wanted = Wanted { spec: with(&wanted, "config", json!(second)), ..wanted };
    let outcome = finish_once(bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await;
    Ok((first, second, outcome))
}

/// Like `finish`, and ends at the first error.
async fn finish_once(bench: &Bench, op: &Operation) -> textnlp_provider::Result<()> {
    let mut answer = bench.provider.begin(op).await?;
    loop {
        match answer {
            Progress::Pending { handle, .. } => answer = bench.provider.advance(op, &handle).await?,
            Progress::Done(_) => return Ok(()),
            Progress::Failed { error, .. } => return Err(error),
        }
    }
}

#[test]
fn an_update_keeps_the_weights_and_the_number_of_instances() {
    let bench = bench();
    run(async {
        let (_, second, outcome) = update(&bench, |_| {}).await?;
        outcome.unwrap();
        assert_eq!(fleet(&bench), (second, 2, 1.0));
        assert_eq!(bench.calls("UpdateEndpoint"), 1);
        Ok(())
    });
}

#[test]
fn an_alarm_during_an_update_brings_the_old_configuration_back() {
    let bench = bench();
    run(async {
        let alarmed = |bench: &Bench| bench.simulator.world().state::<SageMaker>(&Bench::scope()).alarmed = true;
        let (first, _, outcome) = update(&bench, alarmed).await?;
        let error = outcome.unwrap_err();
        assert_eq!((error.kind.clone(), error.code.as_deref()), (ErrorKind::Invalid, Some("RolledBack")));
        assert!(error.hint.unwrap().contains("describe-alarm-history"));
        assert_eq!(fleet(&bench).0, first);
        assert_eq!(bench.calls("UpdateEndpoint"), 1, "it is not tried again by itself");
        Ok(())
    });
}

#[test]
fn an_update_without_capacity_is_told_from_one_that_alarms_ended() {
    let bench = bench();
    run(async {
        let (first, _, outcome) = update(&bench, |bench| lacking(bench, 1)).await?;
        assert_eq!(outcome.unwrap_err().kind, ErrorKind::Capacity);
        assert_eq!(fleet(&bench).0, first);
        Ok(())
    });
}

#[test]
fn an_endpoint_whose_configuration_was_deleted_by_hand_says_what_helps() {
    let bench = bench();
    run(async {
        let delete = |bench: &Bench| {
            let mut world = bench.simulator.world();
            let state = world.state::<SageMaker>(&Bench::scope());
            let used = state.endpoints["textnlp-staging-here-gpt2"].fleet.config.clone();
            state.configs.remove(&used);
        };
        let (first, _, outcome) = update(&bench, delete).await?;
        let error = outcome.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let hint = error.hint.unwrap();
        assert!(hint.contains(&first) && hint.contains("delete the endpoint"), "{hint}");
        Ok(())
    });
}

#[test]
fn an_endpoint_whose_rollback_failed_is_unhealthy_and_another_update_repairs_it() {
    let bench = bench();
    let set = |fails: bool| {
        let mut world = bench.simulator.world();
        let state = world.state::<SageMaker>(&Bench::scope());
        (state.alarmed, state.rollback_fails) = (fails, fails);
    };
    run(async {
        let (_, second, outcome) = update(&bench, |_| set(true)).await?;
        outcome.unwrap_err();
        let wanted = endpoint(&second);
        let recorded = Recorded { cloud_id: CloudId::new("textnlp-staging-here-gpt2").unwrap(), ..recorded(&wanted) };
        let object = seen(&bench, &wanted, &recorded).await;
        assert!(
            matches!(&object.health, Health::Degraded(why) if why.contains("rollback failed")),
            "{:?}",
            object.health
        );
        set(false);
        finish(&bench, &operation(Verb::Update, &wanted, Some(&recorded), 101)).await.unwrap();
        assert_eq!(fleet(&bench).0, second);
        Ok(())
    });
}

#[test]
fn a_number_of_instances_without_capacity_is_not_sent_again_and_again() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = endpoint(&made_config(&bench, &bed).await?);
        let made = bed.make(&wanted).await?;
        lacking(&bench, 0);
        let more = json!({ "main": { "weight": 1, "count": 4 } });
        let wanted = Wanted { spec: with(&wanted, "variants", more), ..wanted };
        let error = finish_once(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Capacity);
        assert_eq!((fleet(&bench).1, bench.calls("UpdateEndpointWeightsAndCapacities")), (2, 1));
        Ok(())
    });
}

#[test]
fn the_number_of_instances_of_an_autoscaled_variant_is_no_drift() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = changed(
            &endpoint(&made_config(&bench, &bed).await?),
            json!({ "variants": { "main": { "weight": 1, "count": null } } }),
        );
        let made = bed.make(&wanted).await?;
        let state = |count: u64, weight: f64| {
            let mut world = bench.simulator.world();
            let endpoints = &mut world.state::<SageMaker>(&Bench::scope()).endpoints;
            let variant =
                endpoints.get_mut("textnlp-staging-here-gpt2").unwrap().fleet.variants.get_mut("main").unwrap();
            (variant.count, variant.weight) = (count, weight);
        };
        state(7, 1.0);
        let object = seen(&bench, &wanted, &made).await;
        assert!(bench.provider.diff(&wanted, &made, &object).is_empty());
        // Another weight is, also one that is no whole number.
        state(7, 0.5);
        let changes = bench.provider.diff(&wanted, &made, &seen(&bench, &wanted, &made).await);
        assert_eq!(changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(), ["variants"]);
        Ok(())
    });
}

#[test]
fn an_instance_type_of_an_autoscaled_variant_does_not_change() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let first = made_config(&bench, &bed).await?;
        let wanted = endpoint(&first);
        let made = bed.make(&wanted).await?;
        bed.make(&target(&json!({}))).await?;
        let second = other_config(&bed, &first, &[("instance_type", json!("ml.c7i.2xlarge"))]).await?;
        let wanted = Wanted { spec: with(&wanted, "config", json!(second)), ..wanted };
        let error = finish_once(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        assert!(error.hint.unwrap().contains("autoscaling"));
        // Which `up` says before it creates anything.
        let needs = |one: Wanted, on: &Wanted| Wanted { needs: vec![Need::on(on.id.clone())], ..one };
        let refused = async |instance_type: &str| {
            let mut config = config(&first_model(&bed, &first).await);
            let mut spec = config.spec.as_value().clone();
            spec["variants"][0]["instance_type"] = json!(instance_type);
            config.spec = Spec::of(&spec);
            // The autoscaling does not change, so that `up` does not ask about it.
            let endpoint = needs(wanted.clone(), &config);
            let problems = bench.provider.preflight(&[config, endpoint]).await.unwrap();
            problems.into_iter().any(|one| !one.warning && one.cause.contains("does not change ml.c7i.xlarge"))
        };
        assert!(refused("ml.c7i.2xlarge").await && !refused(TYPE).await);
        Ok(())
    });
}

#[test]
fn an_endpoint_that_is_being_created_is_deleted_with_one_call() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = endpoint(&made_config(&bench, &bed).await?);
        let create = operation(Verb::Create, &wanted, None, 100);
        while bench.calls("CreateEndpoint") == 0 {
            let _ = bench.provider.begin(&create).await;
        }
        let id = CloudId::new("textnlp-staging-here-gpt2").unwrap();
        let recorded = Recorded { cloud_id: id, ..recorded(&wanted) };
        finish(&bench, &operation(Verb::Delete, &wanted, Some(&recorded), 101)).await.unwrap();
        let deletes = bench.simulator.requests().iter().filter(|one| one.operation == "DeleteEndpoint").count();
        assert_eq!(deletes, 1);
        Ok(())
    });
}

/// As the engine does it: the new model and configuration, the endpoint, and then the old ones.
#[test]
fn nothing_that_an_endpoint_uses_is_deleted_while_a_new_model_replaces_the_old_one() {
    let bench = bench();
    let deleted_in_use = || {
        let world = bench.simulator.world();
        world.find::<SageMaker>(&Bench::scope()).unwrap().deleted_in_use.clone()
    };
    run(async {
        let bed = bench.bed();
        let old_model = model(&made_role(&bench, &bed).await?);
        let old_model_record = bed.make(&old_model).await?;
        let old_config = config(&output(&old_model_record, "name"));
        let old_config_record = bed.make(&old_config).await?;
        let wanted = endpoint(&output(&old_config_record, "name"));
        let made = bed.make(&wanted).await?;

        let new_model = bed.make(&changed(&old_model, json!({ "environment": {} }))).await?;
        let new_config = bed.make(&config(&output(&new_model, "name"))).await?;
        let moved = Wanted { spec: with(&wanted, "config", json!(output(&new_config, "name"))), ..wanted };
        finish(&bench, &operation(Verb::Update, &moved, Some(&made), 100)).await.unwrap();
        bed.unmake(&old_config, &old_config_record).await?;
        bed.unmake(&old_model, &old_model_record).await?;
        assert_eq!(deleted_in_use(), Vec::<String>::new());
        // The simulator would have told.
        bed.unmake(&old_config, &new_config).await?;
        assert_eq!(deleted_in_use(), [output(&new_config, "name")]);
        Ok(())
    });
}

/// Runs an operation to its end, and returns the record of its object.
async fn done(bench: &Bench, verb: Verb, wanted: &Wanted, of: Option<&Recorded>, number: u64) -> Recorded {
    let object = finish(bench, &operation(verb, wanted, of, number)).await.unwrap();
    Recorded { cloud_id: object.cloud_id, outputs: object.outputs, tainted: false, ..recorded(wanted) }
}

#[test]
fn random_faults_leave_one_object_of_each_kind_and_in_the_end_none() {
    for seed in 0..12 {
        let bench = bench();
        run(async {
            let role = made_role(&bench, &bench.bed()).await?;
            let chances = [Disruption::Throttled, Disruption::Internal, Disruption::LostRequest, Disruption::LostReply];
            bench.simulator.faults().by_chance(seed, chances.map(|fault| (0.05, fault)).to_vec());
            let wanted_model = model(&role);
            let made_model = done(&bench, Verb::Create, &wanted_model, None, 100).await;
            let wanted_config = config(&output(&made_model, "name"));
            let made_config = done(&bench, Verb::Create, &wanted_config, None, 101).await;
            let wanted_endpoint = endpoint(&output(&made_config, "name"));
            let made_endpoint = done(&bench, Verb::Create, &wanted_endpoint, None, 102).await;
            let more = json!({ "main": { "weight": 2, "count": 3 } });
            let wanted_endpoint = Wanted { spec: with(&wanted_endpoint, "variants", more), ..wanted_endpoint };
            let made_endpoint = done(&bench, Verb::Update, &wanted_endpoint, Some(&made_endpoint), 103).await;
            let policy = json!({ "invocations": 600, "scale_out_seconds": 60, "scale_in_seconds": 300 });
            let wanted_target = target(&json!({ "requests": policy }));
            let made_target = done(&bench, Verb::Create, &wanted_target, None, 104).await;
            let counts = || {
                let world = bench.simulator.world();
                let state = world.find::<SageMaker>(&Bench::scope()).unwrap();
                let targets = world.find::<ScalableTargets>(&Bench::scope()).unwrap().targets.len();
                [state.models.len(), state.configs.len(), state.endpoints.len(), targets]
            };
            assert_eq!(counts(), [1; 4], "seed {seed}");
            assert_eq!((fleet(&bench).1, fleet(&bench).2), (3, 2.0), "seed {seed}");
            let all = [
                (wanted_target, made_target),
                (wanted_endpoint, made_endpoint),
                (wanted_config, made_config),
                (wanted_model, made_model),
            ];
            for ((wanted, made), number) in all.iter().zip(105..) {
                done(&bench, Verb::Delete, wanted, Some(made), number).await;
            }
            assert_eq!(counts(), [0; 4], "seed {seed}");
            Ok(())
        });
    }
}

/// A whole endpoint, with the references by which the engine orders its resources.
fn whole(environment: &Value) -> Vec<Wanted> {
    let output = |of: &str, field: &str| json!(OutputRef::new(ResourceId::new(of).unwrap(), field));
    let role = role("endpoint-role", "sagemaker.amazonaws.com", &[]);
    let model = json!({
        "name": "textnlp-staging-here-gpt2", "image": IMAGE, "data": null, "environment": environment,
        "role": output("here/cluster/endpoint-role", "arn"), "subnets": [], "security_groups": [], "isolated": true,
        "tags": {},
    });
    let mut variants = config("").spec.get("variants").unwrap().clone();
    variants[0]["model"] = output("here/endpoint-gpt2/model", "name");
    let policy = json!({ "invocations": 600, "scale_out_seconds": 60, "scale_in_seconds": 300 });
    let mut all = vec![
        role,
        wanted("here/endpoint-gpt2/model", "aws.sagemaker-model", &model),
        changed(&config(""), json!({ "variants": variants })),
        changed(&endpoint(""), json!({ "config": output("here/endpoint-gpt2/config", "name") })),
        changed(
            &target(&json!({ "requests": policy })),
            json!({ "endpoint": output("here/endpoint-gpt2/endpoint", "name") }),
        ),
    ];
    for one in &mut all {
        one.needs = one.spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())).collect();
    }
    all
}

#[test]
fn the_engine_replaces_a_model_without_a_gap_and_keeps_what_a_rollback_returns_to() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0006);
    // The configuration of the endpoint, the numbers of configurations and models, and what was deleted while it was used.
    let seen = || {
        let world = account.simulator.world();
        let state = world.find::<SageMaker>(&Bench::scope()).unwrap();
        let used = state.endpoints.values().next().map(|endpoint| endpoint.fleet.config.clone());
        (used, state.configs.len(), state.models.len(), state.deleted_in_use.clone())
    };
    let alarm = |is_on: bool| account.simulator.world().state::<SageMaker>(&Bench::scope()).alarmed = is_on;
    let nothing = Vec::<String>::new();

    stack.reach(UP, &whole(&json!({ "VERSION": "1" })));
    let (old, configs, models, _) = seen();
    assert_eq!((configs, models), (1, 1));
    let second = whole(&json!({ "VERSION": "2" }));
    alarm(true);
    let outcome = stack.go(UP, &second, &Fuse::default()).unwrap();
    assert!(!outcome.is_ok_and(|outcome| outcome.is_complete()), "the update was rolled back");
    assert_eq!(seen(), (old.clone(), 2, 2, nothing.clone()));
    alarm(false);
    stack.reach(UP, &second);
    let (new, configs, models, deleted) = seen();
    assert_ne!(new, old);
    assert_eq!((configs, models, deleted), (1, 1, nothing.clone()));
    assert!(stack.look(UP, &second).0.steps.is_empty());
    stack.reach(DOWN, &[]);
    assert_eq!(seen(), (None, 0, 0, nothing));
}
