//! Simulated failure of a cluster for drills: its nodes are cordoned, and the pods of a deployment are killed.
//!
//! Nodes are cordoned by server-side apply under a field manager of the outage, so the end of the outage releases
//! exactly those nodes. A node that was cordoned before stays so. Other pods on the nodes keep running. (`kubectl
//! cordon` of a cordoned node sends no request to the API server, so it cannot be detected.)

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_provider::{Error, ErrorKind, Lineage, Result};

use crate::api::Api;
use crate::diagnosis::{self, POD};
use crate::error::{Call, Rule, missing_rules};
use crate::one_off_job::read_own;
use crate::preflight::may;
use crate::provider::Kubernetes;
use crate::table::{self, Row};
use crate::{identity, ready};

static NODE: Row = table::nodes();
/// The polls of the nodes until none is left that the outage cordoned.
const MAX_POLLS: u32 = 5;
/// The annotation of a node with the outage that cordoned it.
const OUTAGE: &str = "textnlp-outage";

impl Kubernetes {
    /// Preflight of an outage. An error names missing permissions, missing objects or a previous outage that was not
    /// ended.
    pub async fn check_outage(&self, (namespace, lineage): (&str, Lineage), deployment: &str) -> Result<()> {
        let api = self.api().await?;
        pods(&api, namespace, lineage, deployment).await?;
        let mut refused: BTreeMap<Option<&str>, Vec<Rule<'_>>> = BTreeMap::new();
        for (scope, row, verbs) in [(None, &NODE, ["list", "patch"]), (Some(namespace), &POD, ["list", "delete"])] {
            for verb in verbs {
                if !may(&api, scope, row, verb).await? {
                    refused.entry(scope).or_default().push(Rule::of(row, vec![verb]));
                }
            }
        }
        let nodes = match api.list(&listing(), "").await {
            // The missing permission is reported below.
            Err(error) if error.kind == ErrorKind::Denied => Vec::new(),
            listed => listed?,
        };
        if let Some((name, other)) = nodes.iter().find_map(|node| Some((name_of(node), outage_of(node)?))) {
            let why = format!("outage {other} has not been reverted");
            let hint = "the witness of its drill reverts it; if the witness is gone: `kubectl uncordon` the nodes that it cordoned, and `kubectl annotate node --all textnlp-outage-`";
            return Err(cordon(name).error(ErrorKind::Conflict).because(why).hint(hint));
        }
        match refused.is_empty() {
            true => Ok(()),
            false => {
                let roles = refused.into_iter().map(|(scope, rules)| missing_rules(scope, &rules));
                let hint = format!("ask a cluster administrator to add this:\n{}", roles.collect::<String>());
                let why = "an outage cordons nodes and removes pods, and you are not allowed to";
                Err(Error::new(ErrorKind::Denied, "simulate a failure of", "the cluster").because(why).hint(hint))
            }
        }
    }

    /// Cordons every schedulable node, then deletes the pods of a deployment without a grace period. Idempotent. After
    /// the end of the outage it starts nothing more and returns an error; the outage must then be ended.
    pub async fn start_outage(
        &self,
        (namespace, lineage): (&str, Lineage),
        deployment: &str,
        (outage, until): (&str, Timestamp),
    ) -> Result<()> {
        let api = self.api().await?;
        let in_time = || match Timestamp::now() < until {
            true => Ok(()),
            false => Err(listing().error(ErrorKind::Conflict).because("it expired before all nodes were cordoned")),
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
            match api.kill(&call, identity::uid(&pod), 0).await {
                // The node is gone, or was recreated with the same name.
                Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    /// Uncordons every node that the outage cordoned, so that pods are scheduled again. Returns the number of nodes.
    /// Idempotent.
    ///
    /// # Errors
    /// If a node could not be uncordoned; all others were tried.
    pub async fn end_outage(&self, outage: &str) -> Result<usize> {
        let api = self.api().await?;
        let mut uncordoned = 0;
        // A cordon that was in flight when its client gave up may arrive after the first poll.
        for _ in 0..MAX_POLLS {
            let nodes = api.list(&listing(), "").await?;
            let taken: Vec<&Value> = nodes.iter().filter(|node| outage_of(node) == Some(outage)).collect();
            if taken.is_empty() {
                return Ok(uncordoned);
            }
            let mut stays = None;
            for node in taken {
                match api.apply(&cordon(name_of(node)), &manager(outage), &known(node), false).await {
                    // The node was removed.
                    Err(error) if !matches!(error.kind, ErrorKind::NotFound | ErrorKind::Conflict) => {
                        stays = Some(error)
                    }
                    _ => uncordoned += 1,
                }
            }
            if let Some(error) = stays {
                return Err(error);
            }
        }
        Ok(uncordoned)
    }

    /// The number of nodes; an error if nodes cannot be listed or uncordoned.
    pub async fn count_nodes(&self) -> Result<usize> {
        let api = self.api().await?;
        let nodes = api.list(&listing(), "").await?.len();
        if !may(&api, None, &NODE, "patch").await? {
            let hint = format!(
                "ask a cluster administrator to add this:\n{}",
                missing_rules(None, &[Rule::of(&NODE, vec!["patch"])])
            );
            let why = "you are not allowed to change nodes";
            return Err(Error::new(ErrorKind::Denied, "uncordon", "nodes").because(why).hint(hint));
        }
        Ok(nodes)
    }

    /// The number of ready pods of a deployment.
    pub async fn ready_pods(&self, scope: (&str, Lineage), deployment: &str) -> Result<usize> {
        let pods = pods(&self.api().await?, scope.0, scope.1, deployment).await?;
        Ok(pods.iter().filter(|pod| ready::pod(pod)).count())
    }
}

/// The pods of a deployment of this lineage.
pub(crate) async fn pods(api: &Api, namespace: &str, lineage: Lineage, deployment: &str) -> Result<Vec<Value>> {
    let row = table::named("kubernetes.deployment");
    let call = Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(deployment) };
    let found = read_own(api, &call, lineage).await?;
    let list = Call { action: "list", verb: "list", row: &POD, namespace: Some(namespace), name: None };
    api.list(&list, &diagnosis::selector(&found)).await
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

/// The identity of the node that was read, with its uid.
fn known(node: &Value) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name_of(node), "uid": identity::uid(node) } })
}

fn outage_of(node: &Value) -> Option<&str> {
    node["metadata"]["annotations"][OUTAGE].as_str()
}

fn name_of(object: &Value) -> &str {
    object["metadata"]["name"].as_str().unwrap_or_default()
}
