//! Canary and blue-green rollouts: a new release first runs on a few pods, and the cluster itself rolls it back if the
//! analysis fails.
//!
//! The deployment gets the new template with `minReadySeconds` of a month and a surge of a few pods. Kubernetes creates
//! those beside the old ones, routes clients to them, and stops there. A job beside the deployment measures them. It
//! then applies the wanted manifest or the previous one; it carries both. No operator is needed: a rollout ends on its
//! own when the operator's machine is off. The pods' configuration is part of their template, so an old template
//! restores the complete old release.
//!
//! Without a share, the new pods are a complete second set, and the service routes clients to one set or the other
//! ([`traffic`]): blue-green. With a Gateway API route, the share is a traffic weight ([`shares`]), and the new pods
//! are a small second set.
//!
//! The code in `start` runs in the operator's command, the code in `monitor` in the job. They communicate by
//! annotations of the deployment.

mod analysis;
pub(crate) mod counters;
mod monitor;
mod queries;
mod shares;
mod start;
mod traffic;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::{ErrorKind, Lineage, Operation, Result};

use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::table;

use counters::Totals;
pub use monitor::Scrape;
pub(crate) use monitor::in_one_line;
pub use queries::QueryApi;
pub(crate) use queries::{QueryConfig, SECRET};
pub(crate) use shares::without_shares;
pub(crate) use start::{RolloutState, leave_shares, route_of, route_to_all};

/// The annotation of a deployment with its rollout settings: a [`Canary`].
pub(crate) const CANARY: &str = "textnlp-canary";
/// The service account of the job.
pub(crate) const ACCOUNT: &str = "textnlp-rollout";
/// The label by which network policies let the job's pod read the pods' metrics.
pub(crate) const CONTROLLER: &str = "textnlp-rollout";
/// The variable with the job's orders.
pub const ORDERS: &str = "TEXTNLP_ROLLOUT";

/// The annotation with the id of the rollout that holds a deployment; removed when the rollout ends.
const HOLD_ANNOTATION: &str = "textnlp-rollout";
/// The annotation with the job's report: a [`RolloutReport`].
const REPORT_ANNOTATION: &str = "textnlp-rollout-told";
/// The annotation with the operator's rollout command: a [`CommandAnnotation`].
const COMMAND_ANNOTATION: &str = "textnlp-rollout-wish";
/// The label by which Kubernetes distinguishes the pods of each template.
const HASH: &str = "pod-template-hash";
/// The field managers of the job's and the operator's annotation, which no spec contains. `JOB_FIELD_MANAGER` also owns the
/// service's selector during a rollout.
const JOB_FIELD_MANAGER: &str = "textnlp-rollout";
const OPERATOR_FIELD_MANAGER: &str = "textnlp-rollout-wish";

/// The rollout settings of a deployment.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Canary {
    /// The new pods in percent of the existing ones. `None` is a complete second set that gets all clients at once: an
    /// older job cannot parse that, so it starts no rollout.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<u32>,
    /// Whether the share is a traffic weight of a route. Otherwise the clients' share follows the pods' share.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) weighted: bool,
    pub(crate) bake_seconds: u64,
    pub(crate) deadline_seconds: u64,
    pub(crate) slow_ms: u32,
    pub(crate) error_rate: f64,
}

/// The stage of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The job has started, and nothing has changed yet.
    Waiting,
    /// The second set of pods is being created, and has no clients.
    Preparing,
    /// All clients are to be routed to the second set. Recorded before it is done.
    Switching,
    /// New pods are being measured.
    Baking,
    /// All pods are to be replaced. Recorded before it is done.
    Promoting,
    /// All pods are being replaced.
    Promoted,
    /// The old pods are to stay. Recorded before it is done.
    Reverting,
    /// The old release is running.
    Reverted,
}

/// The job's report of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutReport {
    /// The id of the rollout.
    pub id: String,
    /// Its stage.
    pub stage: Stage,
    /// The reason, with the measurements.
    pub says: String,
    /// The new release, as a digest of its template.
    #[serde(default)]
    pub release: String,
    /// When new pods were first seen, in seconds since 1970 by the cluster's clock.
    #[serde(default)]
    pub began: u64,
    /// The current traffic weight of the new pods in percent, where a route has weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// The two sets of pods, where clients are routed from one to the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sets: Option<PodSets>,
}

/// What a restarted job needs to know about the two sets of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PodSets {
    /// The label value of the old set.
    old: String,
    /// The label value of the set that clients are routed to, or are about to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new: Option<String>,
    /// The requests that the old set answered while it had the clients: the baseline of the analysis.
    #[serde(default)]
    before: Totals,
}

/// A rollout command of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperatorCommand {
    /// Promote at once, if the new pods are ready.
    Promote,
    /// Roll back at once.
    Abort,
    /// Pause; the deadline keeps running.
    Pause,
    /// Resume after a pause.
    Resume,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct CommandAnnotation {
    id: String,
    #[serde(rename = "wish")]
    command: OperatorCommand,
}

/// The orders of the job.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RolloutOrders {
    id: String,
    namespace: String,
    name: String,
    uid: String,
    /// The field manager of the deployment, used for promotion and rollback.
    manager: String,
    canary: Canary,
    /// The metrics port of the pods.
    metrics_port: u16,
    /// The manifest to apply on promotion.
    promote: Value,
    /// The manifest to apply on rollback: the previous one.
    revert: Value,
    /// The route whose traffic weights split the clients, as it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route: Option<Value>,
    /// See [`RolloutReport::release`].
    release: String,
    /// The labels of the deployment, which the job gets too.
    labels: Value,
}

impl Canary {
    /// Whether there are two complete sets of pods, with all clients on one of them.
    fn is_blue_green(self) -> bool {
        self.share.is_none()
    }

    /// The rollout settings of an update; `None` if its pods do not change or their previous state could not be
    /// restored.
    pub(crate) fn of(op: &Operation) -> Option<Self> {
        let wanted = |spec: &textnlp_provider::Spec| -> Option<Self> {
            serde_json::from_str(spec.get("metadata")?["annotations"][CANARY].as_str()?).ok()
        };
        let rolls = op.changes.iter().any(|change| change.field.starts_with("spec.template"));
        // A template from before canary rollouts reads configuration that is not part of it.
        op.recorded.as_ref().and_then(|recorded| wanted(&recorded.spec))?;
        wanted(&op.spec).filter(|_| rolls)
    }
}

impl RolloutReport {
    /// The final stage that follows this one.
    fn ended(self) -> Self {
        let stage = if self.stage == Stage::Promoting { Stage::Promoted } else { Stage::Reverted };
        Self { stage, share: None, ..self }
    }
}

/// The last report of the job.
fn read_report(deployment: &Value) -> Option<RolloutReport> {
    serde_json::from_str(deployment["metadata"]["annotations"][REPORT_ANNOTATION].as_str()?).ok()
}

fn is_held(deployment: &Value, id: &str) -> bool {
    holder(deployment) == Some(id)
}

fn read_command(deployment: &Value, id: &str) -> Option<OperatorCommand> {
    let annotation = deployment["metadata"]["annotations"][COMMAND_ANNOTATION].as_str()?;
    serde_json::from_str::<CommandAnnotation>(annotation)
        .ok()
        .filter(|annotation| annotation.id == id)
        .map(|annotation| annotation.command)
}

/// Writes one annotation of a deployment and no other field.
async fn note(api: &Api, call: &Call<'_>, manager: &str, uid: &str, (name, value): (&str, Value)) -> Result<()> {
    let manifest = json!({
        "apiVersion": call.row.api_version(),
        "kind": call.row.kind,
        "metadata": {
            "name": call.name, "namespace": call.namespace, "uid": uid,
            "annotations": { name: value.to_string() },
        },
    });
    api.own(call, manager, &manifest).await.map(drop)
}

/// The rollout that holds a deployment.
fn holder(deployment: &Value) -> Option<&str> {
    deployment["metadata"]["annotations"][HOLD_ANNOTATION].as_str()
}

fn call<'a>(action: &'static str, verb: &'static str, namespace: &'a str, name: Option<&'a str>) -> Call<'a> {
    Call { action, verb, row: table::named("kubernetes.deployment"), namespace: Some(namespace), name }
}

impl Kubernetes {
    /// The last rollout of a deployment of this lineage, and whether it is still in progress; `None` if there was none.
    pub async fn rollout(
        &self,
        (namespace, lineage): (&str, Lineage),
        name: &str,
    ) -> Result<Option<(RolloutReport, bool)>> {
        let found = self.rolled((namespace, lineage), name).await?;
        Ok(read_report(&found).map(|report| {
            let is_active = is_held(&found, &report.id);
            (report, is_active)
        }))
    }

    /// Records a command for the rollout in progress; an error if there is none.
    pub async fn record_command(
        &self,
        (namespace, lineage): (&str, Lineage),
        name: &str,
        command: OperatorCommand,
    ) -> Result<RolloutReport> {
        let found = self.rolled((namespace, lineage), name).await?;
        let call = call("decide", "patch", namespace, Some(name));
        let Some(report) = read_report(&found).filter(|report| is_held(&found, &report.id)) else {
            return Err(call
                .error(ErrorKind::NotFound)
                .because("no rollout is in progress")
                .hint("`rollout status` shows the last one"));
        };
        let annotation = CommandAnnotation { id: report.id.clone(), command };
        note(
            &self.api().await?,
            &call,
            OPERATOR_FIELD_MANAGER,
            identity::uid(&found),
            (COMMAND_ANNOTATION, json!(annotation)),
        )
        .await?;
        Ok(report)
    }

    /// Allows another attempt with a release that was rolled back.
    pub async fn retry(&self, (namespace, lineage): (&str, Lineage), name: &str) -> Result<RolloutReport> {
        let found = self.rolled((namespace, lineage), name).await?;
        let call = call("decide", "patch", namespace, Some(name));
        let Some(report) = read_report(&found).filter(|report| report.stage == Stage::Reverted) else {
            return Err(call.error(ErrorKind::NotFound).because("the last release was not rolled back"));
        };
        let forgotten = RolloutReport { release: String::new(), ..report.clone() };
        note(
            &self.api().await?,
            &call,
            JOB_FIELD_MANAGER,
            identity::uid(&found),
            (REPORT_ANNOTATION, json!(forgotten)),
        )
        .await?;
        Ok(report)
    }

    async fn rolled(&self, (namespace, lineage): (&str, Lineage), name: &str) -> Result<Value> {
        let call = call("read", "get", namespace, Some(name));
        crate::one_off_job::read_own(&self.api().await?, &call, lineage).await
    }
}
