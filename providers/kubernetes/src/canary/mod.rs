//! A new release that first shows on a few pods that it is well, and is put back by the cluster itself when it is not.
//!
//! A deployment whose pods are to change gets the new template with `minReadySeconds` of a month and a surge of a few pods: Kubernetes
//! makes those beside the old ones, leads clients to them, and goes no further. A job of ours beside the deployment measures them, and either
//! applies what was wanted from the beginning, or what was there before, which it carries both. Nobody else need be there: a laptop that is
//! closed leaves a rollout that ends by itself. What the pods read of their configuration stands in their template, so that an old
//! template is the old release whole.
//!
//! Where no share is named, the new pods are a whole second set, and the service leads clients to one set or the other ([`traffic`]):
//! blue-green. Where clients come by a route of the Gateway API, the share is one of them, by its weights ([`shares`]), and the new pods are a
//! second set too, of few.
//!
//! `begin` and `advance` are the operator's side, [`watch`] is the job's. They talk by annotations of the deployment.

mod begin;
pub(crate) mod figures;
mod judge;
mod outside;
mod shares;
mod traffic;
mod watch;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::{Lineage, Operation, Result, Sort};

use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::table;

pub(crate) use begin::{Standing, leave_shares, make_way, route_of};
use figures::Totals;
pub use outside::Ask;
pub(crate) use outside::{Outside, SECRET};
pub(crate) use shares::without_shares;
pub use watch::Scrape;
pub(crate) use watch::in_one_line;

/// The annotation of a deployment by which it is rolled so: a [`Canary`].
pub(crate) const CANARY: &str = "textnlp-canary";
/// The service account of the job.
pub(crate) const ACCOUNT: &str = "textnlp-rollout";
/// The label by which the job's pod is let to the figures of others.
pub(crate) const CONTROLLER: &str = "textnlp-rollout";
/// The variable in which the job finds its orders.
pub const ORDERS: &str = "TEXTNLP_ROLLOUT";

/// The annotation that says which rollout holds a deployment; gone as soon as it ended.
const HELD: &str = "textnlp-rollout";
/// The annotation with the job's word on it: a [`Told`].
const TOLD: &str = "textnlp-rollout-told";
/// The annotation with a person's word on it: a [`Wished`].
const WISH: &str = "textnlp-rollout-wish";
/// The label of pods that says of which set they are.
const HASH: &str = "pod-template-hash";
/// Who wrote `TOLD` and `WISH`, which are fields of nobody's spec, and to which pods the service leads clients.
const TELLER: &str = "textnlp-rollout";
const WISHER: &str = "textnlp-rollout-wish";

/// How a deployment is rolled.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Canary {
    /// So many pods beside those that are there, in percent of them; `None` for a second set beside the first, to which all clients are
    /// led at once. A job of a program that knows no such thing does not read its orders then, and nothing begins.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) share: Option<u32>,
    /// Whether that is the share of the clients too, by the weights of a route; else it is as large as that of the pods.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) weighted: bool,
    pub(crate) bake_seconds: u64,
    pub(crate) deadline_seconds: u64,
    pub(crate) slow_ms: u32,
    pub(crate) error_rate: f64,
}

/// How far a rollout is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// The job is there, and nothing has changed yet.
    Waiting,
    /// A second set of pods is made, and no client is led to it.
    Preparing,
    /// All clients are to be led to the second set; said before it is done.
    Switching,
    /// New pods are measured.
    Baking,
    /// All pods are to become new ones; said before it is done.
    Promoting,
    /// All pods are becoming new ones.
    Promoted,
    /// The old pods are to stay; said before it is done.
    Reverting,
    /// The old release is what runs.
    Reverted,
}

/// What the job says of a rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Told {
    /// Which rollout.
    pub id: String,
    /// How far it is.
    pub stage: Stage,
    /// Why, with what was counted.
    pub says: String,
    /// The release that was to come, by the digest of its template.
    #[serde(default)]
    pub release: String,
    /// Since when new pods are there, in seconds since 1970 by the cluster's clock.
    #[serde(default)]
    pub began: u64,
    /// The share of the clients that is led to the new pods now, in percent, where a route tells shares apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<u32>,
    /// What is known of the two sets, where clients are led from one to the other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) sets: Option<Sets>,
}

/// What another pod of the job has to know of two sets of pods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sets {
    /// The label of the old one's pods.
    old: String,
    /// The label of those that clients are led to, or are about to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    new: Option<String>,
    /// What they answered while they had the clients: what new ones are measured by.
    #[serde(default)]
    before: Totals,
}

/// What a person wants of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Wish {
    /// It goes on at once, if the new pods answer.
    Promote,
    /// It is taken back at once.
    Abort,
    /// It does not go on by itself; its deadline stays.
    Pause,
    /// It goes on by itself again.
    Resume,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Wished {
    id: String,
    wish: Wish,
}

/// Everything that the job needs to know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Orders {
    id: String,
    namespace: String,
    name: String,
    uid: String,
    /// The field manager of the deployment, under which it goes on and back.
    manager: String,
    canary: Canary,
    /// Where pods tell their figures.
    metrics_port: u16,
    /// What is applied when the new pods are well.
    promote: Value,
    /// What is applied when they are not: what was there.
    revert: Value,
    /// The route by whose weights clients are shared, as it was applied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    route: Option<Value>,
    /// See [`Told::release`].
    release: String,
    /// Labels by which the job is known for ours.
    labels: Value,
}

impl Canary {
    /// Whether there are two whole sets of pods, and clients are led to one of them.
    fn is_blue_green(self) -> bool {
        self.share.is_none()
    }

    /// How the pods of an update are rolled; `None` where they do not change, or what they were before could not be put back.
    pub(crate) fn of(op: &Operation) -> Option<Self> {
        let wanted = |spec: &textnlp_provider::Spec| -> Option<Self> {
            serde_json::from_str(spec.get("metadata")?["annotations"][CANARY].as_str()?).ok()
        };
        let rolls = op.changes.iter().any(|change| change.field.starts_with("spec.template"));
        // A template of a release that was not rolled so reads what is not in it.
        op.recorded.as_ref().and_then(|recorded| wanted(&recorded.spec))?;
        wanted(&op.spec).filter(|_| rolls)
    }
}

impl Told {
    /// The same when it is done.
    fn ended(self) -> Self {
        let stage = if self.stage == Stage::Promoting { Stage::Promoted } else { Stage::Reverted };
        Self { stage, share: None, ..self }
    }
}

/// What the job said last, and whether the rollout that it spoke of holds the deployment now.
fn told(deployment: &Value) -> Option<Told> {
    serde_json::from_str(deployment["metadata"]["annotations"][TOLD].as_str()?).ok()
}

fn is_held(deployment: &Value, id: &str) -> bool {
    holder(deployment) == Some(id)
}

fn wish(deployment: &Value, id: &str) -> Option<Wish> {
    let wished = deployment["metadata"]["annotations"][WISH].as_str()?;
    serde_json::from_str::<Wished>(wished).ok().filter(|wished| wished.id == id).map(|wished| wished.wish)
}

/// Writes one annotation of a deployment, and nothing else of it.
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
    deployment["metadata"]["annotations"][HELD].as_str()
}

fn call<'a>(action: &'static str, verb: &'static str, namespace: &'a str, name: Option<&'a str>) -> Call<'a> {
    Call { action, verb, row: table::named("kubernetes.deployment"), namespace: Some(namespace), name }
}

impl Kubernetes {
    /// What the last rollout of a deployment of this lineage came to, and whether it still goes on; `None` where there was none.
    pub async fn rollout(&self, (namespace, lineage): (&str, Lineage), name: &str) -> Result<Option<(Told, bool)>> {
        let found = self.rolled((namespace, lineage), name).await?;
        Ok(told(&found).map(|told| {
            let goes_on = is_held(&found, &told.id);
            (told, goes_on)
        }))
    }

    /// Says what a person wants of the rollout that goes on; an error where there is none.
    pub async fn wish(&self, (namespace, lineage): (&str, Lineage), name: &str, wish: Wish) -> Result<Told> {
        let found = self.rolled((namespace, lineage), name).await?;
        let call = call("decide", "patch", namespace, Some(name));
        let Some(told) = told(&found).filter(|told| is_held(&found, &told.id)) else {
            return Err(call
                .error(Sort::NotFound)
                .because("no rollout of it goes on")
                .hint("`rollout status` shows the last one"));
        };
        let wished = Wished { id: told.id.clone(), wish };
        note(&self.api().await?, &call, WISHER, identity::uid(&found), (WISH, json!(wished))).await?;
        Ok(told)
    }

    /// Lets a release that was put back be tried once more.
    pub async fn retry(&self, (namespace, lineage): (&str, Lineage), name: &str) -> Result<Told> {
        let found = self.rolled((namespace, lineage), name).await?;
        let call = call("decide", "patch", namespace, Some(name));
        let Some(told) = told(&found).filter(|told| told.stage == Stage::Reverted) else {
            return Err(call.error(Sort::NotFound).because("no release of it was put back last"));
        };
        let forgotten = Told { release: String::new(), ..told.clone() };
        note(&self.api().await?, &call, TELLER, identity::uid(&found), (TOLD, json!(forgotten))).await?;
        Ok(told)
    }

    async fn rolled(&self, (namespace, lineage): (&str, Lineage), name: &str) -> Result<Value> {
        let call = call("read", "get", namespace, Some(name));
        crate::errand::of_ours(&self.api().await?, &call, lineage).await
    }
}
