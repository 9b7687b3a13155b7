//! How many pods there are, how many there should be, and whether whoever decides that sees what it decides by.

use serde_json::Value;
use textnlp_provider::{Lineage, Result};

use crate::api::Api;
use crate::errand::of_ours;
use crate::error::Call;
use crate::provider::Kubernetes;
use crate::table;

/// How a deployment stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// Pods that there should be now, as the autoscaler says, or the deployment where none decides.
    pub wanted: u32,
    /// Pods that are ready.
    pub ready: u32,
    /// What an autoscaler of ours decides by; `None` where none does.
    pub autoscaler: Option<Autoscaler>,
}

/// An autoscaler that decides how many pods there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoscaler {
    /// The metrics that it reads, by their names: `cpu`, `memory`, `http_requests_per_second`.
    pub reads: Vec<String>,
    /// How many it was told to read.
    pub told: usize,
    /// Why it does not decide, in the words of its controller.
    pub blind: Option<String>,
}

impl Kubernetes {
    /// How a deployment of ours stands, and its autoscaler.
    pub async fn scale(
        &self,
        (namespace, lineage): (&str, Lineage),
        deployment: &str,
        autoscaler: Option<&str>,
    ) -> Result<Scale> {
        let api = self.api().await?;
        let read = async |kind: &str, name: &str| ours(&api, kind, (namespace, lineage), name).await;
        let pods = read("kubernetes.deployment", deployment).await?;
        let number = |value: &Value| value.as_u64().unwrap_or_default().min(u32::MAX.into()) as u32;
        let mut scale = Scale {
            wanted: number(&pods["spec"]["replicas"]),
            ready: number(&pods["status"]["readyReplicas"]),
            autoscaler: None,
        };
        if let Some(name) = autoscaler {
            let found = read("kubernetes.horizontal-pod-autoscaler", name).await?;
            scale.wanted = scale.wanted.max(number(&found["status"]["desiredReplicas"]));
            scale.autoscaler = Some(sees(&found));
        }
        Ok(scale)
    }
}

async fn ours(api: &Api, kind: &str, (namespace, lineage): (&str, Lineage), name: &str) -> Result<Value> {
    let row = table::named(kind);
    let call = Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(name) };
    of_ours(api, &call, lineage).await
}

/// Shapes: <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/horizontal-pod-autoscaler-v2/>. What could not be read
/// has no `current`, or does not come at all.
fn sees(autoscaler: &Value) -> Autoscaler {
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let status = &autoscaler["status"];
    let current = all(&status["currentMetrics"]);
    let reads = current.iter().filter_map(|metric| {
        let (name, current) = match metric["type"].as_str()? {
            "Resource" => (&metric["resource"]["name"], &metric["resource"]["current"]),
            "Pods" => (&metric["pods"]["metric"]["name"], &metric["pods"]["current"]),
            _ => return None,
        };
        let is_read = ["averageValue", "averageUtilization", "value"].iter().any(|field| !current[field].is_null());
        is_read.then(|| name.as_str().map(str::to_owned)).flatten()
    });
    let conditions = all(&status["conditions"]);
    let active = conditions.iter().find(|condition| condition["type"] == "ScalingActive");
    let blind = match active {
        Some(active) if active["status"] == "True" => None,
        Some(active) => Some(active["message"].as_str().unwrap_or("its controller does not say why").to_owned()),
        None => Some("its controller has not looked at it yet".to_owned()),
    };
    Autoscaler { reads: reads.collect(), told: all(&autoscaler["spec"]["metrics"]).len(), blind }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_an_autoscaler_cannot_read_is_not_said_to_be_read() {
        let mut autoscaler = json!({
            "spec": { "metrics": [{}, {}, {}] },
            "status": {
                "currentMetrics": [
                    { "type": "Resource", "resource": { "name": "cpu", "current": { "averageUtilization": 12, "averageValue": "240m" } } },
                    { "type": "Pods", "pods": { "metric": { "name": "http_requests_per_second" }, "current": { "averageValue": "0" } } },
                    { "type": "Resource", "resource": { "name": "memory", "current": {} } },
                    { "type": "" },
                ],
                "conditions": [{ "type": "ScalingActive", "status": "True" }],
            },
        });
        let seen = sees(&autoscaler);
        assert_eq!(
            (seen.reads, seen.told, seen.blind),
            (vec!["cpu".into(), "http_requests_per_second".into()], 3, None)
        );
        let why = "the HPA was unable to compute the replica count";
        autoscaler["status"]["conditions"][0] = json!({ "type": "ScalingActive", "status": "False", "message": why });
        assert_eq!(sees(&autoscaler).blind.as_deref(), Some(why));
        assert_eq!(sees(&json!({})).blind.as_deref(), Some("its controller has not looked at it yet"));
    }
}
