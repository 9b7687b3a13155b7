//! The job's side: looks at the new pods and the old ones every two seconds, and ends the rollout one way or the other.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_provider::{Error, Result, Sort};
use tokio::time::Instant;

use super::figures::{self, Group, Totals};
use super::judge::{Judge, Judgement, Look};
use super::{Orders, Stage, TELLER, TOLD, Told, Wish, call, is_held, note, told, wish};
use crate::api::Api;
use crate::error::Call;
use crate::identity;
use crate::provider::Kubernetes;
use crate::table;
use crate::trouble::POD;

/// How often it looks.
const LOOK: Duration = Duration::from_secs(2);
/// How often it looks for what is to begin.
const BEGIN: Duration = Duration::from_millis(250);
/// An operator who asked for it begins within this time.
const WITHIN: Duration = Duration::from_secs(180);
/// How often it says how it goes, where nothing else changes.
const TELL: Duration = Duration::from_secs(5);
/// Between what is to be done and why it cannot be done yet.
const STUCK: &str = "; it cannot be done yet: ";
/// Where a deployment says which of its sets of pods is the newest.
const REVISION: &str = "deployment.kubernetes.io/revision";
/// The label of pods that says of which set they are.
const HASH: &str = "pod-template-hash";

/// How a pod's figures are fetched.
#[async_trait]
pub trait Scrape: Sync {
    /// The text at `http://ADDRESS:PORT/metrics`; an error is a pod that does not answer.
    async fn scrape(&self, address: IpAddr, port: u16) -> std::result::Result<String, String>;
}

impl Kubernetes {
    /// Sees a rollout to its end. What the API server refuses for a moment is asked for again: nobody else would put the old release
    /// back.
    ///
    /// # Errors
    /// Orders that cannot be read, and a deployment that is another one or gone: there is nothing to end then.
    pub async fn see_to(&self, orders: &str, figures: &dyn Scrape, tell: &(dyn Fn(&str) + Sync)) -> Result<Told> {
        let invalid = |source| Error::new(Sort::Invalid, "read", "the orders of the rollout").because(source);
        let orders: Orders = serde_json::from_str(orders).map_err(|error| invalid(error.to_string()))?;
        let mut watching = Watching {
            judge: Judge::new(orders.canary),
            new: Group::default(),
            old: Group::default(),
            hash: None,
            told: None,
            told_at: Instant::now(),
        };
        let began = Instant::now();
        loop {
            let step = match self.api().await {
                Ok(api) => watching.step(&api, &orders, figures, began.elapsed() > WITHIN).await,
                Err(error) => Err(error),
            };
            let pause = match step {
                Ok(Step::Over(told)) => {
                    tell(&told.says);
                    return Ok(told);
                }
                Ok(Step::Waits) => BEGIN,
                Ok(Step::Looked(says)) => {
                    tell(&says);
                    LOOK
                }
                Err(error) if error.sort == Sort::NotFound => return Err(error),
                Err(error) => {
                    tell(&in_one_line(&error));
                    LOOK
                }
            };
            tokio::time::sleep(pause).await;
        }
    }
}

/// What is known from earlier looks. A job that begins anew counts anew, but for when the rollout began.
struct Watching {
    judge: Judge,
    new: Group,
    old: Group,
    /// The label of the new pods.
    hash: Option<String>,
    told: Option<Told>,
    told_at: Instant,
}

enum Step {
    Waits,
    Looked(String),
    Over(Told),
}

impl Watching {
    async fn step(&mut self, api: &Api, orders: &Orders, figures: &dyn Scrape, is_late: bool) -> Result<Step> {
        let call = call("read", "get", &orders.namespace, Some(&orders.name));
        let gone = || call.error(Sort::NotFound).because("it is gone, or another one of its name");
        let deployment = api.get(&call).await?.filter(|found| identity::uid(found) == orders.uid).ok_or_else(gone)?;
        let last = told(&deployment);
        let known = last.clone().filter(|told| told.id == orders.id);
        if self.told.is_some() && known.is_none() {
            return Ok(Step::Over(orders.told(Stage::Waiting, "another rollout has begun", 0)));
        }
        let held = is_held(&deployment, &orders.id);
        // What was begun is finished first: whoever said it may have been lost before it was done, or before he said that.
        if let Some(told) = &known {
            match (told.stage, held) {
                (Stage::Promoting | Stage::Reverting, true) => return self.end(api, orders, told.clone()).await,
                (Stage::Promoting | Stage::Reverting, false) => return self.ended(api, orders, told.clone()).await,
                (Stage::Promoted | Stage::Reverted, _) => return Ok(Step::Over(told.clone())),
                (Stage::Waiting | Stage::Baking, _) => {}
            }
        }
        if !held {
            return match known.map(|told| told.stage) {
                Some(Stage::Baking) => {
                    Ok(Step::Over(orders.told(Stage::Baking, "somebody applied something else meanwhile", 0)))
                }
                _ if is_late => Ok(Step::Over(orders.told(Stage::Waiting, "nobody began within three minutes", 0))),
                Some(_) => Ok(Step::Waits),
                None => {
                    self.say(api, orders, orders.told(Stage::Waiting, "the job is there", 0)).await?;
                    Ok(Step::Waits)
                }
            };
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let began = known.map(|told| told.began).filter(|began| *began > 0).unwrap_or(now);
        let at = now.saturating_sub(began);
        let wish = wish(&deployment, &orders.id).filter(|wish| *wish != Wish::Resume);
        let judgement = match self.look(api, orders, &deployment, figures, at).await {
            Ok(look) => self.judge.judge(look, wish),
            // What cannot be looked at is taken back in its time all the same.
            Err(error) if at >= orders.canary.deadline_seconds || wish == Some(Wish::Abort) => {
                Judgement::Revert(format!("nothing is known of the new pods: {}", in_one_line(&error)))
            }
            Err(error) => return Err(error),
        };
        let (stage, says) = match judgement {
            Judgement::Wait(says) => (Stage::Baking, says),
            Judgement::Promote(says) => (Stage::Promoting, says),
            Judgement::Revert(says) => (Stage::Reverting, says),
        };
        let told = orders.told(stage, &says, began);
        if stage == Stage::Baking {
            let is_new = self.told.as_ref().is_none_or(|told| told.stage != Stage::Baking);
            if is_new || self.told_at.elapsed() >= TELL {
                self.say(api, orders, told.clone()).await?;
            }
            return Ok(Step::Looked(told.says));
        }
        self.say(api, orders, told.clone()).await?;
        self.end(api, orders, told).await
    }

    /// Does what was said, and says that it is done.
    async fn end(&mut self, api: &Api, orders: &Orders, told: Told) -> Result<Step> {
        let manifest = if told.stage == Stage::Promoting { &orders.promote } else { &orders.revert };
        if let Err(error) = orders.apply(api, manifest).await {
            let (why, _) = told.says.split_once(STUCK).unwrap_or((&told.says, ""));
            let says = format!("{why}{STUCK}{}", in_one_line(&error));
            // It is tried again as long as it takes; whoever looks should see why.
            let _ = self.say(api, orders, Told { says, ..told.clone() }).await;
            return Err(error);
        }
        self.ended(api, orders, told).await
    }

    async fn ended(&mut self, api: &Api, orders: &Orders, told: Told) -> Result<Step> {
        let stage = if told.stage == Stage::Promoting { Stage::Promoted } else { Stage::Reverted };
        let told = Told { stage, ..told };
        self.say(api, orders, told.clone()).await?;
        Ok(Step::Over(told))
    }

    async fn say(&mut self, api: &Api, orders: &Orders, told: Told) -> Result<()> {
        let call = call("annotate", "patch", &orders.namespace, Some(&orders.name));
        note(api, &call, TELLER, &orders.uid, (TOLD, json!(told))).await?;
        (self.told, self.told_at) = (Some(told), Instant::now());
        Ok(())
    }

    async fn look(
        &mut self,
        api: &Api,
        orders: &Orders,
        deployment: &Value,
        figures: &dyn Scrape,
        at: u64,
    ) -> Result<Look> {
        // Before its controller has looked at the new template, nobody knows which pods are new.
        self.hash = newest(api, orders, deployment).await?.or(self.hash.take());
        let Some(hash) = self.hash.clone() else { return Ok(Look { at, ..Look::default() }) };
        let labels = deployment["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
        let selector: Vec<String> =
            labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
        let list = Call { action: "list", verb: "list", row: &POD, namespace: Some(&orders.namespace), name: None };
        let pods = api.list(&list, &selector.join(",")).await?;
        let of = |pod: &Value| pod["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
        let staying = |pod: &&Value| !pod["metadata"]["deletionTimestamp"].is_string();
        let is_new = |pod: &Value| pod["metadata"]["labels"][HASH] == hash.as_str();
        let asked = pods.iter().filter(staying).filter_map(|pod| {
            let address: IpAddr = pod["status"]["podIP"].as_str()?.parse().ok()?;
            Some(async move { (pod, figures.scrape(address, orders.metrics_port).await) })
        });
        let slow_ms = orders.canary.slow_ms;
        for (pod, text) in futures::future::join_all(asked).await {
            // A pod that does not answer now is counted when it does; whether it is ready is the cluster's word.
            let Ok(text) = text else { continue };
            let totals: Totals = figures::read(&text, slow_ms);
            match is_new(pod) {
                true => self.new.look(&of(pod), totals, true),
                // What old pods counted before, they counted without the new ones beside them.
                false => self.old.look(&of(pod), totals, false),
            }
        }
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
            conditions.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let new: Vec<&Value> = pods.iter().filter(staying).filter(|pod| is_new(pod)).collect();
        let restarts = new
            .iter()
            .flat_map(|pod| ["initContainerStatuses", "containerStatuses"].map(|field| &pod["status"][field]));
        let restarts = restarts.flat_map(|all| all.as_array().into_iter().flatten());
        let restarts = restarts.filter_map(|one| one["restartCount"].as_u64()).max().unwrap_or_default();
        // Those that the deployment means to have, of which some may not be made yet.
        let meant = deployment["status"]["updatedReplicas"].as_u64().unwrap_or_default();
        let there: BTreeSet<String> = new.iter().map(|pod| of(pod)).collect();
        Ok(Look {
            at,
            pods: meant.max(there.len() as u64),
            ready: new.into_iter().filter(ready).count() as u64,
            restarts,
            new: self.new.totals,
            old: self.old.totals,
        })
    }
}

/// An error with its reason and what to do about it.
pub(crate) fn in_one_line(error: &Error) -> String {
    let hint = error.hint.iter().map(|hint| format!(" ({})", hint.split_whitespace().collect::<Vec<_>>().join(" ")));
    textnlp_provider::told(error) + &hint.collect::<String>()
}

/// The label of the pods of the newest template; `None` as long as its controller has not looked at it.
async fn newest(api: &Api, orders: &Orders, deployment: &Value) -> Result<Option<String>> {
    let metadata = &deployment["metadata"];
    if deployment["status"]["observedGeneration"].as_u64() < metadata["generation"].as_u64() {
        return Ok(None);
    }
    let row = &REPLICA_SETS;
    let call = Call { action: "list", verb: "list", row, namespace: Some(&orders.namespace), name: None };
    let labels = deployment["spec"]["selector"]["matchLabels"].as_object().into_iter().flatten();
    let selector: Vec<String> =
        labels.map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default())).collect();
    let sets = api.list(&call, &selector.join(",")).await?;
    let revision = &metadata["annotations"][REVISION];
    let newest = sets.iter().find(|set| {
        let owned = set["metadata"]["ownerReferences"].as_array().into_iter().flatten();
        owned.into_iter().any(|owner| owner["uid"] == orders.uid.as_str())
            && set["metadata"]["annotations"][REVISION] == *revision
            // The revision may be of the old template still, where only the number of pods was looked at.
            && is_of(&set["spec"]["template"], &orders.promote["spec"]["template"])
    });
    Ok(newest.and_then(|set| set["metadata"]["labels"][HASH].as_str()).map(str::to_owned))
}

/// Whether a set's template is the one that was applied, by what tells releases apart: what the pods read, and their images.
fn is_of(template: &Value, applied: &Value) -> bool {
    let read = applied["metadata"]["annotations"].as_object().into_iter().flatten();
    let same_read = read.into_iter().all(|(name, text)| template["metadata"]["annotations"][name] == *text);
    let images = |of: &Value| -> Vec<Value> {
        let all =
            ["initContainers", "containers"].map(|field| of["spec"][field].as_array().cloned().unwrap_or_default());
        all.into_iter().flatten().map(|one| one["image"].clone()).collect()
    };
    same_read && images(template) == images(applied)
}

impl Orders {
    fn told(&self, stage: Stage, says: &str, began: u64) -> Told {
        Told { id: self.id.clone(), stage, says: says.to_owned(), release: self.release.clone(), began }
    }
}

/// Sets of pods, as far as they are asked for here; they are the deployment controller's.
static REPLICA_SETS: table::Row = table::replica_sets();
