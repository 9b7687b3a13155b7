//! A pod: its containers in order, and its status in the API.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::container::{Container, Stage};
use super::volumes::{self, Places};
use super::{Shared, network};

/// A pod on this node.
pub(super) struct Pod {
    address: Ipv4Addr,
    places: Option<Places>,
    first: Vec<Container>,
    main: Vec<Container>,
    /// Since when it is terminating.
    ending: Option<Instant>,
    told: Value,
}

impl Pod {
    pub(super) fn new(address: Ipv4Addr) -> Self {
        Self { address, places: None, first: Vec::new(), main: Vec::new(), ending: None, told: Value::Null }
    }

    /// One poll: starts containers and reports changes.
    pub(super) async fn turn(&mut self, shared: &Shared, pod: &Value) {
        if pod["metadata"]["deletionTimestamp"].is_string() {
            return self.end(shared, pod).await;
        }
        let phase = pod["status"]["phase"].as_str().unwrap_or_default();
        if matches!(phase, "Succeeded" | "Failed") {
            return;
        }
        if self.main.is_empty() {
            let names = |field: &str| pod["spec"][field].as_array().cloned().unwrap_or_default();
            self.first = names("initContainers").into_iter().map(|spec| Container::new(spec, true)).collect();
            self.main = names("containers").into_iter().map(|spec| Container::new(spec, false)).collect();
        }
        if self.places.is_none() {
            match volumes::prepare(shared, pod, self.address).await {
                Ok(places) => self.places = Some(places),
                Err(why) => {
                    for container in self.first.iter_mut().chain(&mut self.main) {
                        container.waits("CreateContainerConfigError", &why);
                    }
                }
            }
        }
        if let Some(places) = &self.places {
            let mut before = true;
            for container in &mut self.first {
                if before {
                    container.turn(shared, pod, places).await;
                    before = matches!(container.stage, Stage::Done(0));
                }
            }
            if before {
                for container in &mut self.main {
                    container.turn(shared, pod, places).await;
                }
            }
        }
        self.tell(shared, pod).await;
    }

    pub(super) async fn end_at_once(&mut self, shared: &Shared) {
        for container in self.first.iter_mut().chain(&mut self.main) {
            container.kill(shared).await;
        }
    }

    async fn end(&mut self, shared: &Shared, pod: &Value) {
        let grace = Duration::from_secs(pod["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(30));
        let began = *self.ending.get_or_insert_with(Instant::now);
        let mut all_gone = true;
        for container in self.first.iter_mut().chain(&mut self.main) {
            if began.elapsed() >= grace {
                container.kill(shared).await;
            } else if began.elapsed() >= container.stays() {
                container.ask_to_end(shared);
            }
            all_gone &= container.is_gone();
        }
        if !all_gone {
            return;
        }
        let (namespace, name) = names(pod);
        let body = json!({ "gracePeriodSeconds": 0, "preconditions": { "uid": pod["metadata"]["uid"] } });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}");
        let _ = shared.api.call("DELETE", &path, Some(&body)).await;
    }

    async fn tell(&mut self, shared: &Shared, pod: &Value) {
        let ready = !self.main.is_empty() && self.main.iter().all(Container::is_ready);
        let initialized = self.first.iter().all(|one| matches!(one.stage, Stage::Done(0)));
        let over = self.main.iter().all(|one| matches!(one.stage, Stage::Done(_)));
        let failed = self.first.iter().chain(&self.main).any(|one| matches!(one.stage, Stage::Done(code) if code != 0));
        let started = self.main.iter().any(|one| one.was_started());
        let phase = if failed && (over || !initialized) {
            "Failed"
        } else if over && !self.main.is_empty() {
            "Succeeded"
        } else if started {
            "Running"
        } else {
            "Pending"
        };
        let shown = network::shown(self.address).to_string();
        let condition =
            |name: &str, holds: bool| json!({ "type": name, "status": if holds { "True" } else { "False" } });
        let statuses = |all: &[Container]| -> Vec<Value> { all.iter().map(Container::status).collect() };
        let status = json!({
            "phase": phase,
            "podIP": shown,
            "podIPs": [{ "ip": shown }],
            "hostIP": "127.0.0.1",
            "startTime": pod["metadata"]["creationTimestamp"],
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", initialized),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "initContainerStatuses": statuses(&self.first),
            "containerStatuses": statuses(&self.main),
        });
        if status == self.told {
            return;
        }
        let (namespace, name) = names(pod);
        // The transition time, from which availability is counted.
        let now = k8s_openapi::jiff::Timestamp::now().to_string();
        let mut told = status.clone();
        for (place, condition) in told["conditions"].as_array_mut().into_iter().flatten().enumerate() {
            let before = &self.told["conditions"][place]["status"];
            let kept = pod["status"]["conditions"].as_array().into_iter().flatten();
            let kept = kept.into_iter().find(|one| one["type"] == condition["type"] && *before == condition["status"]);
            let since = kept.map_or(Value::from(now.clone()), |one| one["lastTransitionTime"].clone());
            condition["lastTransitionTime"] = since;
        }
        let body = json!({ "metadata": { "uid": pod["metadata"]["uid"] }, "status": told });
        let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
        if shared.api.call("PATCH", &path, Some(&body)).await.is_ok_and(|answer| answer.status < 300) {
            self.told = status;
        }
    }
}

pub(crate) fn names(pod: &Value) -> (&str, &str) {
    let metadata = &pod["metadata"];
    (metadata["namespace"].as_str().unwrap_or_default(), metadata["name"].as_str().unwrap_or_default())
}
