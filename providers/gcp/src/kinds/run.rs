//! Services of Cloud Run: <https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services>.
//!
//! A changed template is a new revision. It gets the requests once it is ready; one that does not become ready leaves them to the
//! revision before it, although the service shows the new template (hashicorp/terraform-provider-google#17245). So the attribute
//! `serving` says whether the newest revision answers, and makes another one where it does not.

use async_trait::async_trait;
use reqwest::Method;
use serde_json::{Map, Value, json};
use textnlp_cloud::State;
use textnlp_cloud::document::{get, last};
use textnlp_provider::{Declare, Identity, Kind, Pricing, Result};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::operation::Family;
use crate::row::{Create, Field, Labelling, Marks, Rest, RestKind, Table, invalid};
use crate::service::Service;
use crate::table::{MINUTE, Row, kind};

pub(crate) const SERVICE: &str = "gcp.run-service";
/// The port of containers, which is that of the image: <https://cloud.google.com/run/docs/container-contract#port>.
const PORT: u16 = 8080;
/// The path that answers once all models are loaded, and the one that answers always.
const READY: &str = "/ready";
const HEALTH: &str = "/health";
/// Probes of the start: Cloud Run waits four minutes at most (<https://cloud.google.com/run/docs/configuring/healthchecks>).
const START_EVERY_SECONDS: u32 = 10;
const STARTS: u32 = 24;
/// Probes of a container that has started, and the failed ones after which it is replaced.
const ALIVE_EVERY_SECONDS: u32 = 30;
const FAILURES: u32 = 3;
/// The longest answer to a probe.
const PROBE_SECONDS: u32 = 5;
/// Why no other tool gets a declaration of a service.
pub(super) const NOT_EXPORTED: &str = "services of Cloud Run, and roles on them, are not exported yet";
/// The code of a revision that is not ready.
const FAILED: &str = "REVISION_FAILED";

pub(crate) static ROWS: &[Row] = &[Row {
    kind: Kind {
        deadline: MINUTE.saturating_mul(30),
        typical: Some(MINUTE.saturating_mul(2)),
        pricing: Pricing::BySpec,
        permissions: &[
            create("run.services.create"),
            delete("run.services.delete"),
            read("run.services.get"),
            read("run.services.list"),
            put("run.services.update"),
            read("run.operations.get"),
            read("serviceusage.quotas.get"),
            put("iam.serviceAccounts.actAs"),
        ],
        terraform: &[("google_cloud_run_v2_service", "id")],
        ..kind(SERVICE, "a service of Cloud Run", Identity::Named)
    },
    service: "run",
    resource: &Rest::<RunService>::kind(),
    refused: &[],
}];

/// A service. Outputs: `id`, `name`, `url`.
struct RunService;

#[async_trait]
impl RestKind for RunService {
    const TABLE: &'static Table = &Table {
        service: Service::Run,
        path: "projects/{project}/locations/{location}/services/{name}",
        collection: "projects/{project}/locations/{location}/services",
        items: "services",
        create: Create::Query("serviceId"),
        fields: &[
            // What a revision is made of. It changes as a whole: a part of it would be a revision of its own.
            Field::code("template", "/template", template, seen_template).patched(),
            // Which revisions get the requests.
            Field::plain("traffic", "/traffic").patched(),
            Field::plain("ingress", "/ingress").patched(),
            Field::code("serving", "", |_| Value::Null, |document| is_serving(document).into()),
        ],
        in_place: &["template", "traffic", "ingress", "serving"],
        marks: Marks::Labels("/labels", Labelling::Patch),
        family: Family::LongRunning,
        outputs: &[("url", "/uri")],
        ..Table::USUAL
    };

    fn declared(_api: Option<&Api>, _request: &Declare<'_>, _document: &mut Value) -> Result<(), String> {
        Err(NOT_EXPORTED.to_owned())
    }

    /// Ready once the newest generation is, and its traffic has moved. Where that failed, `observedGeneration` stays that of the
    /// revision that answers.
    fn state(document: &Value) -> State {
        if get(document, "/deleteTime").is_some() {
            return State::Deleting;
        }
        let condition = &document["terminalCondition"];
        let is_settled = document["reconciling"] != true;
        let is_newest = is_settled && document["observedGeneration"] == document["generation"];
        let why = condition["message"].as_str().unwrap_or("Cloud Run gives no reason").to_owned();
        match (condition["state"].as_str(), get(document, "/latestReadyRevision")) {
            (Some("CONDITION_SUCCEEDED"), _) if is_newest => State::Ready,
            (Some("CONDITION_FAILED"), Some(answers)) if is_settled => {
                State::Degraded(format!("{why}; {} answers", last(answers.as_str().unwrap_or_default())))
            }
            (Some("CONDITION_FAILED"), None) if is_settled => State::Failed { code: FAILED.to_owned(), why },
            _ => State::Pending("being deployed".to_owned()),
        }
    }

    /// Makes another revision of the template that the service has.
    async fn put(api: &Api, id: &str, _wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "serving" {
            return Err(invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let seen = api.send(Call::get(Service::Run, id)).await?;
        if is_serving(&seen) {
            return Ok(None);
        }
        let call = Call::new(Service::Run, Method::PATCH, id).query("updateMask", "template");
        let call = call.query("forceNewRevision", "true").saying("make a revision of", last(id));
        let answer = api.send(call.body(json!({ "template": seen["template"] }))).await?;
        Ok(Family::LongRunning.started(api, id, &answer))
    }
}

/// Whether the revision that was made last answers.
fn is_serving(document: &Value) -> bool {
    let made = get(document, "/latestCreatedRevision");
    made.is_some() && made == get(document, "/latestReadyRevision")
}

/// The template of a revision.
fn template(spec: &Value) -> Value {
    let probe = |path: &str, every: u32, failures: u32| {
        json!({
            "httpGet": { "path": path, "port": PORT },
            "periodSeconds": every,
            "timeoutSeconds": PROBE_SECONDS,
            "failureThreshold": failures,
        })
    };
    let variables = spec["variables"].as_object().into_iter().flatten();
    let variables: Vec<Value> = variables.map(|(name, value)| json!({ "name": name, "value": value })).collect();
    let mut limits = json!({ "cpu": spec["cpu"], "memory": spec["memory"] });
    let mut template = json!({
        "serviceAccount": spec["account"],
        "executionEnvironment": "EXECUTION_ENVIRONMENT_GEN2",
        "scaling": { "minInstanceCount": spec["min"], "maxInstanceCount": spec["max"] },
        "maxInstanceRequestConcurrency": spec["concurrency"],
        "timeout": spec["timeout_seconds"].as_u64().map(|seconds| format!("{seconds}s")),
    });
    if !spec["gpu"].is_null() {
        limits["nvidia.com/gpu"] = json!("1");
        template["nodeSelector"] = json!({ "accelerator": spec["gpu"] });
        // The other form needs a quota of its own.
        template["gpuZonalRedundancyDisabled"] = json!(true);
    }
    if !spec["key"].is_null() {
        template["encryptionKey"] = spec["key"].clone();
    }
    template["containers"] = json!([{
        "image": spec["image"],
        "args": ["serve"],
        "ports": [{ "containerPort": PORT }],
        "env": variables,
        // An instance with a GPU always has its CPU too (<https://cloud.google.com/run/docs/configuring/services/gpu>).
        "resources": { "limits": limits, "cpuIdle": spec["gpu"].is_null(), "startupCpuBoost": true },
        "startupProbe": probe(READY, START_EVERY_SECONDS, STARTS),
        "livenessProbe": probe(HEALTH, ALIVE_EVERY_SECONDS, FAILURES),
    }]);
    template
}

fn seen_template(document: &Value) -> Value {
    let template = &document["template"];
    let container = &template["containers"][0];
    let limits = &container["resources"]["limits"];
    let listed = container["env"].as_array().into_iter().flatten();
    let variables = listed.filter_map(|one| Some((one["name"].as_str()?.to_owned(), one["value"].clone())));
    let timeout = template["timeout"].as_str().and_then(|text| text.trim_end_matches('s').parse::<u64>().ok());
    // An answer leaves out zero.
    let number = |value: &Value| value.as_u64().unwrap_or_default();
    json!({
        "image": container["image"],
        "variables": variables.collect::<Map<String, Value>>(),
        "account": template["serviceAccount"],
        "cpu": limits["cpu"],
        "memory": limits["memory"],
        "gpu": template["nodeSelector"]["accelerator"],
        "min": number(&template["scaling"]["minInstanceCount"]),
        "max": number(&template["scaling"]["maxInstanceCount"]),
        "concurrency": template["maxInstanceRequestConcurrency"],
        "timeout_seconds": timeout,
        "key": template["encryptionKey"],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_read_as_they_are_written() {
        for (gpu, key, min) in [(Value::Null, Value::Null, 1), (json!("nvidia-l4"), json!("projects/p/k"), 0)] {
            let spec = json!({
                "image": "r.example/t@sha256:1", "variables": { "A_0": "a", "A_1": "b" }, "account": "a@p", "cpu": "4",
                "memory": "16384Mi", "gpu": gpu, "min": min, "max": 3, "concurrency": 16, "timeout_seconds": 300, "key": key,
            });
            assert_eq!(seen_template(&json!({ "template": template(&spec) })), spec);
        }
    }

    #[test]
    fn a_service_is_ready_once_its_newest_revision_is() {
        let of = |state: &str, observed: &str, ready: Option<&str>, reconciling: bool| {
            RunService::state(&json!({
                "generation": "2", "observedGeneration": observed, "reconciling": reconciling,
                "terminalCondition": { "type": "Ready", "state": state, "message": "the container does not listen" },
                "latestCreatedRevision": "services/s/revisions/s-2", "latestReadyRevision": ready,
            }))
        };
        let (old, new) = (Some("services/s/revisions/s-1"), Some("services/s/revisions/s-2"));
        let pending = State::Pending("being deployed".to_owned());
        assert_eq!(of("CONDITION_SUCCEEDED", "2", new, false), State::Ready);
        assert_eq!(of("CONDITION_SUCCEEDED", "1", old, false), pending);
        assert_eq!(of("CONDITION_RECONCILING", "2", old, true), pending);
        let degraded = State::Degraded("the container does not listen; s-1 answers".to_owned());
        assert_eq!(of("CONDITION_FAILED", "1", old, false), degraded);
        assert_eq!(of("CONDITION_FAILED", "1", old, true), pending);
        assert!(matches!(of("CONDITION_FAILED", "0", None, false), State::Failed { .. }));
    }
}
