//! Replica counts of a deployment, and the metrics that its autoscaler reads.

use serde_json::Value;
use textnlp_provider::operations::{Autoscaler, Scale};
use textnlp_provider::{Lineage, Result};

use crate::api::Api;
use crate::error::Call;
use crate::one_off_job::read_own;
use crate::provider::Kubernetes;
use crate::table;

impl Kubernetes {
    /// The replica counts of a deployment of this lineage, and the status of its autoscaler.
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
    read_own(api, &call, lineage).await
}

/// The status of an autoscaler:
/// <https://kubernetes.io/docs/reference/kubernetes-api/workload-resources/horizontal-pod-autoscaler-v2/>. A metric
/// that could not be read has no `current`, or is missing.
fn sees(autoscaler: &Value) -> Autoscaler {
    let all = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let status = &autoscaler["status"];
    let current = all(&status["currentMetrics"]);
    let metrics = current.iter().filter_map(|metric| {
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
    let problem = match active {
        Some(active) if active["status"] == "True" => None,
        Some(active) => Some(active["message"].as_str().unwrap_or("its controller gives no reason").to_owned()),
        None => Some("its controller has not processed it yet".to_owned()),
    };
    let configured = all(&autoscaler["spec"]["metrics"]).len();
    Autoscaler { metrics: metrics.collect(), configured, problem }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn unreadable_autoscaler_metrics_are_reported_as_such() {
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
            (seen.metrics, seen.configured, seen.problem),
            (vec!["cpu".into(), "http_requests_per_second".into()], 3, None)
        );
        let why = "the HPA was unable to compute the replica count";
        autoscaler["status"]["conditions"][0] = json!({ "type": "ScalingActive", "status": "False", "message": why });
        assert_eq!(sees(&autoscaler).problem.as_deref(), Some(why));
        assert_eq!(sees(&json!({})).problem.as_deref(), Some("its controller has not processed it yet"));
    }
}
