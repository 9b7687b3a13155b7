//! An endpoint of Vertex AI: from a project without it, through releases and failures, and back.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_gcp::{CAPABILITIES, InvocationOperations, endpoint as endpoint_of};
use textnlp_provider::conformance::TestBed;
use textnlp_provider::operations::{EndpointAccess, Operations, SiteOutputs};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Lineage, Problem, Progress, Provider, Spec, Verb, Wanted, error_chain};
use textnlp_sim::gcp::Options;
use textnlp_sim::gcp::run::Container;
use textnlp_sim::{Disruption, Fault, Rule};

use crate::policy::{changed, limit, printed, refused};
use crate::run::{alerted, condition, containers, error_of, wanted};
use crate::{
    Access, Bench, KEPT, LINEAGE, Made, REGION, create, provider, record, remove, run, secrets, unchanged, update,
};

const MODEL: &str = "main/server/model";
const DEPLOYMENT: &str = "main/server/deployment";
const UNDEPLOY: &str = "aiplatform.projects.locations.endpoints.undeployModel";
const UPLOAD: &str = "aiplatform.projects.locations.models.upload";
const DEPLOY: &str = "aiplatform.projects.locations.endpoints.deployModel";

fn bench(options: Options, protect_data: bool) -> Bench {
    containers(Runtime::Vertex, options, protect_data)
}

fn place(records: &[Made], id: &str) -> usize {
    records.iter().position(|(one, _)| one.id.as_str() == id).unwrap()
}

/// The key of the endpoint.
fn key(bench: &Bench) -> String {
    format!("aiplatform/projects/{}/locations/{REGION}/endpoints/textnlp-staging-main", bench.cloud.project())
}

/// The endpoint as the service shows it.
fn endpoint(bench: &Bench) -> Value {
    bench.cloud.world().get(&key(bench)).cloned().unwrap()
}

/// The ids of the deployed models.
fn deployed(bench: &Bench) -> Vec<String> {
    let endpoint = endpoint(bench);
    let all = endpoint["deployedModels"].as_array().into_iter().flatten();
    all.map(|one| one["id"].as_str().unwrap().to_owned()).collect()
}

/// The id in the cloud id of a deployed model.
fn id_of(made: &Made) -> String {
    made.1.cloud_id.as_str().rsplit('/').next().unwrap().to_owned()
}

/// How often a method was called.
fn calls(bench: &Bench, method: &str) -> usize {
    bench.cloud.requests().iter().filter(|one| one.operation == method).count()
}

/// Uploads another model, and the spec of its deployment.
async fn release(bench: &Bench, number: u64, records: &[Made]) -> (Made, Spec) {
    let (model, _) = &records[place(records, MODEL)];
    let mut spec = model.spec.as_value().clone();
    spec["variables"]["TEXTNLP_VERTEX_SERVER_0"] = json!(format!("release {number}"));
    let spec = Spec::of(&spec);
    let object = bench.finish(&bench.operation(number, Verb::Create, model, &spec, None)).await;
    let mut deployment = records[place(records, DEPLOYMENT)].0.spec.as_value().clone();
    deployment["model"] = object.outputs["id"].clone();
    let made = (Wanted { spec: spec.clone(), ..model.clone() }, record(model, &spec, &object));
    (made, Spec::of(&deployment))
}

/// Deploys it beside the model that is deployed.
async fn deploy(bench: &Bench, number: u64, records: &[Made], spec: &Spec) -> Made {
    let (wanted, _) = &records[place(records, DEPLOYMENT)];
    let object = bench.finish(&bench.operation(number, Verb::Create, wanted, spec, None)).await;
    (Wanted { spec: spec.clone(), ..wanted.clone() }, record(wanted, spec, &object))
}

async fn delete(bench: &Bench, number: u64, (one, recorded): &Made) {
    bench.finish(&bench.operation(number, Verb::Delete, one, &one.spec, Some(recorded))).await;
}

#[test]
fn an_endpoint_is_made_changes_and_is_removed() {
    run(async {
        let bench = bench(Options::zero_latency(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        unchanged(&bench, &records).await;
        let before = endpoint(&bench);
        assert_eq!(before["trafficSplit"], json!({ (deployed(&bench)[0].as_str()): 100 }));
        assert_eq!(before["clientConnectionConfig"]["inferenceTimeout"], "300s");
        for (number, made) in (500..).zip(records.iter_mut()) {
            let spec = changed(&made.0);
            if spec != made.0.spec && made.0.kind.as_str().starts_with("gcp.vertex-") {
                update(&bench, number, made, spec).await;
            }
        }
        unchanged(&bench, &records).await;
        let after = endpoint(&bench);
        assert_eq!(after["clientConnectionConfig"]["inferenceTimeout"], "60s");
        assert_eq!(after["deployedModels"][0]["dedicatedResources"]["autoscalingMetricSpecs"][0]["target"], 60);
        // Another client moves the traffic away, and the next `up` moves it back.
        bench.cloud.world().change(&key(&bench), "/trafficSplit", json!({}));
        let at = place(&records, DEPLOYMENT);
        let spec = records[at].0.spec.clone();
        update(&bench, 600, &mut records[at], spec).await;
        assert_eq!(endpoint(&bench)["trafficSplit"], before["trafficSplit"]);
        remove(&bench, &records).await;
    });
}

#[test]
fn a_release_moves_the_requests_to_the_new_model_and_undeploys_the_old_one() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        // Its agent is not there yet, and then has no role yet.
        for (nth, message) in (1..).zip([
            "Service agents are being provisioned. Please try again in a few minutes.",
            "Vertex AI Service Agent a@b does not have permission to access Artifact Registry repository r.",
        ]) {
            let fault = Fault::new("FAILED_PRECONDITION", message);
            bench.cloud.faults().add(Rule::nth("aiplatform", UPLOAD, nth, Disruption::Refused(fault)));
        }
        bench.cloud.faults().add(Rule::nth("aiplatform", UPLOAD, 3, Disruption::LostReply));
        let (model, spec) = release(&bench, 500, &records).await;
        let new = deploy(&bench, 501, &records, &spec).await;
        let (old_id, new_id) = (id_of(&records[place(&records, DEPLOYMENT)]), id_of(&new));
        assert_eq!(deployed(&bench), [old_id, new_id.clone()]);
        assert_eq!(endpoint(&bench)["trafficSplit"], json!({ (new_id.as_str()): 100 }));
        let old = records.remove(place(&records, DEPLOYMENT));
        bench.cloud.faults().add(Rule::nth("aiplatform", UNDEPLOY, 1, Disruption::LostReply));
        delete(&bench, 502, &old).await;
        let old_model = records.remove(place(&records, MODEL));
        delete(&bench, 503, &old_model).await;
        records.extend([model, new]);
        assert_eq!(deployed(&bench), [new_id]);
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}

#[test]
fn a_failed_release_leaves_the_requests_where_they_are() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        let before = endpoint(&bench);
        let (model, spec) = release(&bench, 500, &records).await;
        bench.cloud.world().mute = true;
        let (one, _) = &records[place(&records, DEPLOYMENT)];
        let why = error_of(&bench, &bench.operation(501, Verb::Create, one, &spec, None)).await;
        assert!(why.contains("Model server never became ready"), "{why}");
        let after = endpoint(&bench);
        assert_eq!(
            (&after["deployedModels"], &after["trafficSplit"]),
            (&before["deployedModels"], &before["trafficSplit"])
        );
        bench.cloud.world().mute = false;
        // The next plan makes it with another operation.
        let new = deploy(&bench, 502, &records, &spec).await;
        delete(&bench, 503, &new).await;
        assert_eq!(endpoint(&bench)["trafficSplit"], before["trafficSplit"], "the one that is left answers");
        records.push(model);
        remove(&bench, &records).await;
    });
}

#[test]
fn a_failed_first_deployment_leaves_nothing_and_the_next_one_is_made() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let all = wanted(&bench);
        let (last, others) = all.split_last().unwrap();
        assert_eq!(last.id.as_str(), DEPLOYMENT);
        let mut records = create(&bench, others).await;
        let outputs: std::collections::BTreeMap<_, _> =
            records.iter().map(|(one, recorded)| (one.id.clone(), recorded.outputs.clone())).collect();
        let spec = last.spec.resolve(|id| outputs.get(id)).unwrap();
        bench.cloud.world().mute = true;
        let op = bench.operation(500, Verb::Create, last, &spec, None);
        let mut progress = bench.provider.begin(&op).await.unwrap();
        let mut left = None;
        for _ in 0..100 {
            match progress {
                Progress::Pending { handle, .. } => progress = bench.provider.advance(&op, &handle).await.unwrap(),
                Progress::Failed { left: object, error } => {
                    left = Some((object, error_chain(&error)));
                    break;
                }
                Progress::Done(_) => panic!("it succeeds"),
            }
        }
        let (object, why) = left.unwrap();
        assert!(object.is_none() && why.contains("never became ready"), "{object:?} {why}");
        assert_eq!(deployed(&bench), Vec::<String>::new());
        bench.cloud.world().mute = false;
        let made = bench.finish(&bench.operation(501, Verb::Create, last, &spec, None)).await;
        records.push((Wanted { spec: spec.clone(), ..last.clone() }, record(last, &spec, &made)));
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}

#[test]
fn a_deployment_is_continued_by_its_operation_and_never_made_twice() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let records = create(&bench, &wanted(&bench)).await;
        let (model, spec) = release(&bench, 500, &records).await;
        let before = calls(&bench, DEPLOY);
        let (one, _) = &records[place(&records, DEPLOYMENT)];
        let op = bench.operation(501, Verb::Create, one, &spec, None);
        let Progress::Pending { handle, .. } = bench.provider.begin(&op).await.unwrap() else {
            panic!("it takes time")
        };
        assert!(handle.0["update"].as_str().unwrap().contains("/operations/"), "{handle:?}");
        // Another process continues.
        let other = provider(&bench.cloud);
        let mut progress = other.advance(&op, &handle).await.unwrap();
        while let Progress::Pending { handle, .. } = progress {
            progress = other.advance(&op, &handle).await.unwrap();
        }
        let object = match progress {
            Progress::Done(object) => object,
            other => panic!("{other:?}"),
        };
        let new = (Wanted { spec: spec.clone(), ..one.clone() }, record(one, &spec, &object));
        delete(&bench, 502, &new).await;
        // The answer is lost.
        bench.cloud.faults().add(Rule::nth("aiplatform", DEPLOY, 1, Disruption::LostReply));
        let new = deploy(&bench, 503, &records, &spec).await;
        assert_eq!(calls(&bench, DEPLOY), before + 2);
        assert_eq!(deployed(&bench).len(), 2);
        let all: Vec<Made> = records.into_iter().chain([model, new]).collect();
        remove(&bench, &all).await;
    });
}

#[test]
fn a_deployment_whose_answer_is_lost_is_waited_for_as_long_as_it_runs() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let records = create(&bench, &wanted(&bench)).await;
        let (model, spec) = release(&bench, 500, &records).await;
        let before = calls(&bench, DEPLOY);
        let (one, _) = &records[place(&records, DEPLOYMENT)];
        let op = bench.operation(501, Verb::Create, one, &spec, None);
        bench.cloud.world().set_zero_latency(false);
        bench.cloud.faults().add(Rule::nth("aiplatform", DEPLOY, 1, Disruption::LostReply));
        let mut progress = bench.provider.begin(&op).await.unwrap();
        let mut last = String::new();
        for _ in 0..20 {
            let (handle, says) = match progress {
                Progress::Pending { handle, says, .. } => (handle, says),
                other => panic!("{other:?}"),
            };
            last = if says.contains("is not over") { says } else { last };
            progress = bench.provider.advance(&op, &handle).await.unwrap();
        }
        assert!(!last.is_empty(), "it waits for the operation");
        bench.cloud.advance(Duration::from_secs(900));
        while let Progress::Pending { handle, .. } = progress {
            progress = bench.provider.advance(&op, &handle).await.unwrap();
        }
        let object = match progress {
            Progress::Done(object) => object,
            other => panic!("{other:?}"),
        };
        assert_eq!(calls(&bench, DEPLOY), before + 1, "it is deployed once");
        bench.cloud.world().set_zero_latency(true);
        let new = (Wanted { spec: spec.clone(), ..one.clone() }, record(one, &spec, &object));
        let all: Vec<Made> = records.into_iter().chain([model, new]).collect();
        remove(&bench, &all).await;
    });
}

#[test]
fn an_endpoint_is_not_deleted_while_a_model_is_deployed_at_it() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let all = wanted(&bench);
        let (last, others) = all.split_last().unwrap();
        let records = create(&bench, others).await;
        let outputs: std::collections::BTreeMap<_, _> =
            records.iter().map(|(one, recorded)| (one.id.clone(), recorded.outputs.clone())).collect();
        let spec = last.spec.resolve(|id| outputs.get(id)).unwrap();
        bench.cloud.world().set_zero_latency(false);
        // It fails, so that nothing is left at the endpoint.
        bench.cloud.world().mute = true;
        let op = bench.operation(500, Verb::Create, last, &spec, None);
        let begun = bench.provider.begin(&op).await.unwrap();
        assert!(matches!(begun, Progress::Pending { .. }), "{begun:?}");
        let (one, recorded) = &records[place(&records, "main/server/endpoint")];
        let op = bench.operation(501, Verb::Delete, one, &one.spec, Some(recorded));
        let begun = bench.provider.begin(&op).await.unwrap();
        assert!(
            matches!(&begun, Progress::Pending { says, .. } if says.contains("being-deployed")),
            "it waits: {begun:?}"
        );
        bench.cloud.advance(Duration::from_secs(900));
        bench.cloud.world().set_zero_latency(true);
        remove(&bench, &records).await;
    });
}

#[test]
fn models_that_others_deployed_keep_the_endpoint() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let mut records = create(&bench, &wanted(&bench)).await;
        let ours = records.remove(place(&records, DEPLOYMENT));
        delete(&bench, 500, &ours).await;
        bench.cloud.world().change(
            &key(&bench),
            "/deployedModels",
            json!([{ "id": "7", "displayName": "theirs", "model": "m" }]),
        );
        let (one, recorded) = &records[place(&records, "main/server/endpoint")];
        let op = bench.operation(501, Verb::Delete, one, &one.spec, Some(recorded));
        let why = error_of(&bench, &op).await;
        assert!(why.contains("deployed model") && why.contains("/deployedModels/7"), "{why}");
        bench.cloud.world().change(&key(&bench), "/deployedModels", json!([]));
        remove(&bench, &records).await;
    });
}

#[test]
fn preflight_compares_the_gpus_of_two_releases_with_their_quota() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let with = |most: u64| {
            let mut all = wanted(&bench);
            let one = all.iter_mut().find(|one| one.id.as_str() == DEPLOYMENT).unwrap();
            let mut spec = one.spec.as_value().clone();
            spec["accelerator"] = json!({ "type": "NVIDIA_L4", "count": 1 });
            spec["scaling"]["max"] = json!(most);
            one.spec = Spec::of(&spec);
            all
        };
        let found = |problems: Vec<Problem>| -> Vec<(bool, String)> {
            let all = problems.into_iter().filter(|problem| problem.place == DEPLOYMENT);
            all.map(|problem| (problem.warning, problem.cause)).collect()
        };
        assert_eq!(found(bench.provider.preflight(&with(4)).await.unwrap()), Vec::<(bool, String)>::new());
        let limit = (REGION.to_owned(), "custom_model_serving_nvidia_l4_gpus".to_owned());
        bench.cloud.world().quotas.insert(limit, 2.0);
        let refused = found(bench.provider.preflight(&with(3)).await.unwrap());
        assert!(!refused[0].0 && refused[0].1.ends_with("the replicas may have 3"), "{refused:?}");
        let warned = found(bench.provider.preflight(&with(2)).await.unwrap());
        assert!(warned[0].0 && warned[0].1.contains("a release needs 2 beside"), "{warned:?}");
    });
}

#[test]
fn the_role_of_a_plan_suffices() {
    run(async {
        let bench = bench(Options::zero_latency(), true);
        let wanted = wanted(&bench);
        limit(&bench, &printed(&bench, &wanted, Some(Verb::Create)));
        let mut records = create(&bench, &wanted).await;
        let none = printed(&bench, &wanted, None);
        let to_change: Vec<Wanted> = records
            .iter()
            .filter(|(one, _)| one.kind.as_str().starts_with("gcp.vertex-"))
            .map(|made| made.0.clone())
            .collect();
        let change: BTreeSet<String> = &none | &printed(&bench, &to_change, Some(Verb::Update));
        limit(&bench, &change);
        for (number, made) in (500..).zip(records.iter_mut().filter(|(one, _)| to_change.contains(one))) {
            let spec = changed(&made.0);
            if spec != made.0.spec {
                update(&bench, number, made, spec).await;
            }
        }
        limit(&bench, &none);
        unchanged(&bench, &records).await;
        limit(&bench, &printed(&bench, &wanted, Some(Verb::Delete)));
        remove(&bench, &records).await;
        assert_eq!(refused(&bench), Vec::<String>::new(), "the roles do not suffice");
    });
}

#[test]
fn kinds_of_vertex_ai_keep_the_contract() {
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
fn requests_reach_an_endpoint_with_the_token_of_who_is_signed_in() {
    run(async {
        let bench = bench(Options::zero_latency().enabled(), false);
        let records = create(&bench, &wanted(&bench)).await;
        bench.cloud.world().containers =
            Some(Arc::new(|container: &Container, method: &str, path: &str, body: &[u8]| {
                assert!(container.environment.contains_key("TEXTNLP_VERTEX_SERVER_0"));
                (200, format!("{method} {path} {}", String::from_utf8_lossy(body)).into_bytes())
            }));
        let endpoint_now = endpoint(&bench);
        let outputs: SiteOutputs = records
            .iter()
            .map(|(one, recorded)| (one.id.as_str().trim_start_matches("main/").to_owned(), recorded.outputs.clone()))
            .collect();
        let endpoint = endpoint_of(&outputs).unwrap();
        assert_eq!(endpoint.access, EndpointAccess::Invocations);
        assert!(endpoint.url.ends_with("/endpoints/textnlp-staging-main:rawPredict"), "{}", endpoint.url);
        let access = Access {
            project: bench.cloud.project().to_owned(),
            region: REGION.to_owned(),
            impersonate: None,
            variables: Some(bench.cloud.variables().into_iter().collect()),
        };
        let operations = Arc::new(InvocationOperations::new(access, &bench.site));
        assert!(operations.log_command().unwrap().contains("resource.labels.endpoint_id=\"textnlp-staging-main\""));
        let invocations = operations.invocations().unwrap();
        let dns = endpoint_now["dedicatedEndpointDns"].clone();
        bench.cloud.world().change(&key(&bench), "/dedicatedEndpointDns", json!(""));
        let why = error_chain(&invocations.sign(b"{}").await.err().unwrap());
        assert!(why.contains("no name in DNS yet"), "{why}");
        bench.cloud.world().change(&key(&bench), "/dedicatedEndpointDns", dns);
        let client = textnlp_net::client::ClientOptions::default().client().unwrap();
        let send = async |with_token: bool| {
            let signed = invocations.sign(b"{}").await.unwrap();
            assert_eq!(signed.url, endpoint.url);
            let mut request = client.post(&signed.url).body("{}");
            for (name, value) in signed.headers.iter().filter(|(name, _)| with_token || name != "authorization") {
                request = request.header(name, value.expose());
            }
            let answer = request.send().await.unwrap();
            (answer.status().as_u16(), answer.text().await.unwrap())
        };
        assert_eq!(send(true).await, (200, "POST /invocations {}".to_owned()));
        assert_eq!(send(false).await.0, 401);
        bench.cloud.world().denied.insert("aiplatform.endpoints.predict".to_owned());
        assert_eq!(send(true).await.0, 403);
        bench.cloud.world().denied.clear();
        remove(&bench, &records).await;
    });
}

#[test]
fn alerts_of_an_endpoint_are_about_its_requests() {
    run(async {
        let bench = bench(Options::zero_latency(), false);
        let all = alerted(&bench);
        let filter = |metric: &str, also: &str| {
            let start = format!(
                "metric.type=\"aiplatform.googleapis.com/prediction/online/{metric}\" AND \
                 resource.type=\"aiplatform.googleapis.com/Endpoint\"{also} AND resource.labels.endpoint_id=\""
            );
            json!([start, { "$output": "main/server/endpoint#name" }, "\""])
        };
        let total = " AND metric.labels.latency_type=\"total\"";
        assert_eq!(condition(&all, "service-latency")["filter"], filter("prediction_latencies", total));
        let errors = condition(&all, "service-errors");
        assert_eq!(errors["filter"], filter("response_count", " AND metric.labels.response_code=\"5xx\""));
        assert_eq!(errors["share_of"], filter("response_count", ""));
        let records = create(&bench, &all).await;
        unchanged(&bench, &records).await;
        remove(&bench, &records).await;
    });
}

#[test]
fn what_an_endpoint_refuses_has_a_reason() {
    let support = CAPABILITIES.of(Runtime::Vertex).unwrap();
    assert!(support.reason("gpu.max").is_some_and(|reason| reason.contains("scaling.max")));
    assert!(support.reason("cache.kind").is_some());
}
