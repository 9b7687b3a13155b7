//! The loss of a cluster, rehearsed: its nodes take no pods, and the pods of a deployment are gone at once.
//!
//! Nodes are cordoned by server-side apply under a field manager of the outage's own, so that taking it back gives up exactly what it took:
//! a node that was cordoned before stays so. What runs of others on those nodes goes on running. (`kubectl cordon` of a node that is cordoned
//! says nothing to the API server, so that nobody can know of it.)

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_provider::{Error, Lineage, Result, Sort};

use crate::api::Api;
use crate::errand::of_ours;
use crate::error::{Call, Rule, missing_rules};
use crate::preflight::may;
use crate::provider::Kubernetes;
use crate::table::{self, Row};
use crate::trouble::{self, POD};
use crate::{identity, ready};

static NODE: Row = table::nodes();
/// How often nodes are looked at until none is left that an outage took.
const LOOKS: u32 = 5;
/// The annotation of a node that says which outage cordoned it.
const OUTAGE: &str = "textnlp-outage";

impl Kubernetes {
    /// Why an outage could not be made now: what may not be done, what is not there, and an outage that was not taken back.
    pub async fn may_lose(&self, (namespace, lineage): (&str, Lineage), deployment: &str) -> Result<()> {
        let api = self.api().await?;
        pods(&api, namespace, lineage, deployment).await?;
        let mut refused: BTreeMap<Option<&str>, Vec<Rule<'_>>> = BTreeMap::new();
        for (place, row, verbs) in [(None, &NODE, ["list", "patch"]), (Some(namespace), &POD, ["list", "delete"])] {
            for verb in verbs {
                if !may(&api, place, row, verb).await? {
                    refused.entry(place).or_default().push(Rule::of(row, vec![verb]));
                }
            }
        }
        let nodes = match api.list(&listing(), "").await {
            // That is told below.
            Err(error) if error.sort == Sort::Denied => Vec::new(),
            listed => listed?,
        };
        if let Some((name, other)) = nodes.iter().find_map(|node| Some((name_of(node), outage_of(node)?))) {
            let why = format!("outage {other} has not been taken back");
            let hint = "what keeps the witness of its drill takes it back; where that is gone: `kubectl uncordon` the nodes that it took, and `kubectl annotate node --all textnlp-outage-`";
            return Err(cordon(name).error(Sort::Conflict).because(why).hint(hint));
        }
        match refused.is_empty() {
            true => Ok(()),
            false => {
                let roles = refused.into_iter().map(|(place, rules)| missing_rules(place, &rules));
                let hint = format!("whoever administers the cluster adds this:\n{}", roles.collect::<String>());
                let why = "an outage cordons nodes and removes pods, and you may not";
                Err(Error::new(Sort::Denied, "rehearse the loss of", "the cluster").because(why).hint(hint))
            }
        }
    }

    /// Cordons every node that takes pods, then removes the pods of a deployment without waiting for them to leave. What was done already is
    /// fine. Nothing is begun any more when the time of the outage is over: an error, after which it is to be taken back.
    pub async fn lose(
        &self,
        (namespace, lineage): (&str, Lineage),
        deployment: &str,
        (outage, until): (&str, Timestamp),
    ) -> Result<()> {
        let api = self.api().await?;
        let in_time = || match Timestamp::now() < until {
            true => Ok(()),
            false => Err(listing().error(Sort::Conflict).because("its time was over before all nodes were cordoned")),
        };
        for node in api.list(&listing(), "").await? {
            in_time()?;
            if node["spec"]["unschedulable"] != true {
                let mut taken = known(&node);
                taken["metadata"]["annotations"] = json!({ OUTAGE: outage });
                taken["spec"] = json!({ "unschedulable": true });
                api.apply(&cordon(name_of(&node)), &manager(outage), &taken, false).await?;
            }
        }
        in_time()?;
        for pod in pods(&api, namespace, lineage, deployment).await? {
            let name = name_of(&pod);
            let call =
                Call { action: "remove", verb: "delete", row: &POD, namespace: Some(namespace), name: Some(name) };
            match api.kill(&call, identity::uid(&pod)).await {
                // Another of its name, or none: it is gone.
                Err(error) if !matches!(error.sort, Sort::NotFound | Sort::Conflict) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Gives every node back that an outage took; pods come by themselves. Says how many nodes those were. What was taken back already is fine.
    ///
    /// # Errors
    /// One that keeps a node from being given back; all others were tried.
    pub async fn find_again(&self, outage: &str) -> Result<usize> {
        let api = self.api().await?;
        let mut given = 0;
        // A cordon that was on its way when somebody gave up comes after the first look.
        for _ in 0..LOOKS {
            let nodes = api.list(&listing(), "").await?;
            let taken: Vec<&Value> = nodes.iter().filter(|node| outage_of(node) == Some(outage)).collect();
            if taken.is_empty() {
                return Ok(given);
            }
            let mut stays = None;
            for node in taken {
                match api.apply(&cordon(name_of(node)), &manager(outage), &known(node), false).await {
                    // Its machine is gone.
                    Err(error) if !matches!(error.sort, Sort::NotFound | Sort::Conflict) => stays = Some(error),
                    _ => given += 1,
                }
            }
            if let Some(error) = stays {
                return Err(error);
            }
        }
        Ok(given)
    }

    /// Whether nodes can be asked for.
    pub async fn sees_nodes(&self) -> Result<usize> {
        Ok(self.api().await?.list(&listing(), "").await?.len())
    }

    /// How many pods of a deployment are ready.
    pub async fn ready_pods(&self, place: (&str, Lineage), deployment: &str) -> Result<usize> {
        let pods = pods(&self.api().await?, place.0, place.1, deployment).await?;
        Ok(pods.iter().filter(|pod| ready::pod(pod)).count())
    }
}

/// The pods of a deployment of ours.
async fn pods(api: &Api, namespace: &str, lineage: Lineage, deployment: &str) -> Result<Vec<Value>> {
    let row = table::named("kubernetes.deployment");
    let call = Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(deployment) };
    let found = of_ours(api, &call, lineage).await?;
    let list = Call { action: "list", verb: "list", row: &POD, namespace: Some(namespace), name: None };
    api.list(&list, &trouble::selector(&found)).await
}

fn listing() -> Call<'static> {
    Call { action: "list", verb: "list", row: &NODE, namespace: None, name: None }
}

fn cordon(name: &str) -> Call<'_> {
    Call { action: "cordon", verb: "patch", row: &NODE, namespace: None, name: Some(name) }
}

fn manager(outage: &str) -> String {
    format!("textnlp-outage-{outage}")
}

/// The node that was looked at, and no other of its name.
fn known(node: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name_of(node), "uid": identity::uid(node) } })
}

fn outage_of(node: &Value) -> Option<&str> {
    node["metadata"]["annotations"][OUTAGE].as_str()
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
