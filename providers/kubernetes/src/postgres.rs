//! The instances of the PostgreSQL that CloudNativePG runs, and a rehearsal of the failure of its primary.
//!
//! CloudNativePG promotes a replica when the pod of the primary is gone
//! (<https://cloudnative-pg.io/documentation/current/failover/>).

use serde_json::Value;
use textnlp_provider::operations::DatabaseStatus;
use textnlp_provider::{Error, ErrorKind, Lineage, Result};

use crate::api::Api;
use crate::diagnosis::POD;
use crate::error::{Call, Rule, missing_rules};
use crate::identity;
use crate::lower::POSTGRES;
use crate::one_off_job::read_own;
use crate::preflight::may;
use crate::provider::Kubernetes;
use crate::table;

/// The grace period of the deleted primary. Without one its object could be gone while it still writes to its volume, and CloudNativePG warns
/// of it in tests of failovers: <https://cloudnative-pg.io/documentation/current/failover/>.
const GRACE_SECONDS: u32 = 1;
/// The label of CloudNativePG on the pods of a cluster, with its name.
const CLUSTER: &str = "cnpg.io/cluster";

impl Kubernetes {
    /// The instances, as CloudNativePG reports them. An error if pods may not be deleted.
    pub(crate) async fn database_status(&self, (namespace, lineage): (&str, Lineage)) -> Result<DatabaseStatus> {
        let api = self.api().await?;
        let mut refused = Vec::new();
        for verb in ["get", "delete"] {
            if !may(&api, Some(namespace), &POD, verb).await? {
                refused.push(Rule::of(&POD, vec![verb]));
            }
        }
        if !refused.is_empty() {
            let hint =
                format!("ask a cluster administrator to add this:\n{}", missing_rules(Some(namespace), &refused));
            let why = "its pod is deleted, and you are not allowed to";
            return Err(Error::new(ErrorKind::Denied, "stop", "the primary of the database").because(why).hint(hint));
        }
        status(&read(&api, namespace, lineage).await?)
    }

    /// Deletes the pod of the primary, if it is still this one and every instance is ready.
    pub(crate) async fn kill_primary(&self, (namespace, lineage): (&str, Lineage), primary: &str) -> Result<()> {
        let api = self.api().await?;
        let cluster = read(&api, namespace, lineage).await?;
        let call = Call { action: "stop", verb: "delete", row: &POD, namespace: Some(namespace), name: Some(primary) };
        let DatabaseStatus { primary: now, wanted, ready } = status(&cluster)?;
        if now != primary {
            return Err(call.error(ErrorKind::Conflict).because(format!("the primary is {now} now")));
        }
        if ready < wanted {
            return Err(call
                .error(ErrorKind::Conflict)
                .because(format!("{ready} of {wanted} instances are ready now")));
        }
        let pod = api.get(&Call { verb: "get", ..call }).await?.ok_or_else(|| call.error(ErrorKind::NotFound))?;
        if !is_instance(&pod, &cluster) {
            return Err(call.error(ErrorKind::Conflict).because("it is no instance of this database"));
        }
        api.kill(&call, identity::uid(&pod), GRACE_SECONDS).await
    }
}

async fn read(api: &Api, namespace: &str, lineage: Lineage) -> Result<Value> {
    let row = table::named("kubernetes.postgres-cluster");
    let call = Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(POSTGRES) };
    read_own(api, &call, lineage).await
}

fn status(cluster: &Value) -> Result<DatabaseStatus> {
    let count = |value: &Value| value.as_u64().and_then(|count| u32::try_from(count).ok()).unwrap_or_default();
    let (wanted, ready) = (count(&cluster["spec"]["instances"]), count(&cluster["status"]["readyInstances"]));
    match cluster["status"]["currentPrimary"].as_str() {
        Some(primary) => Ok(DatabaseStatus { primary: primary.to_owned(), wanted, ready }),
        None => Err(Error::new(ErrorKind::Unavailable, "read", POSTGRES).because("CloudNativePG names no primary yet")),
    }
}

/// Whether a pod belongs to this cluster, and not to another one of that name.
fn is_instance(pod: &Value, cluster: &Value) -> bool {
    let owners = pod["metadata"]["ownerReferences"].as_array();
    let is_owned = owners.is_some_and(|owners| owners.iter().any(|owner| owner["uid"] == identity::uid(cluster)));
    is_owned && pod["metadata"]["labels"][CLUSTER] == cluster["metadata"]["name"]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_needs_a_primary_and_only_its_own_pods_are_instances() {
        let cluster = json!({
            "metadata": { "name": "textnlp-database", "uid": "1" },
            "spec": { "instances": 3 },
            "status": { "readyInstances": 2, "currentPrimary": "textnlp-database-2" },
        });
        let expect = DatabaseStatus { primary: "textnlp-database-2".to_owned(), wanted: 3, ready: 2 };
        assert_eq!(status(&cluster).unwrap(), expect);
        assert!(status(&json!({ "spec": { "instances": 3 } })).unwrap_err().to_string().contains("textnlp-database"));
        let pod = |owner: &str, name: &str| json!({ "metadata": { "labels": { CLUSTER: name }, "ownerReferences": [{ "uid": owner }] } });
        assert!(is_instance(&pod("1", "textnlp-database"), &cluster));
        assert!(!is_instance(&pod("2", "textnlp-database"), &cluster));
        assert!(!is_instance(&pod("1", "another"), &cluster));
        assert!(!is_instance(&json!({}), &cluster));
    }
}
