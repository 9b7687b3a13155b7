//! What is beside the servers of a site: a job of the operator's on what they stored, what is said of machines that can be taken back, and
//! the settings of SAML for whoever signs people in before them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::ResourceId;

use super::database::{Way, disk};
use super::template::Template;
use super::{Lowering, SECRETS_NAME};

/// A job of the operator's on what the servers stored, again and again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Analytics {
    /// Its image, the operator's own.
    pub image: String,
    /// When, as a line of cron in UTC.
    pub schedule: String,
    /// What is run in it.
    pub command: Vec<String>,
    /// When a run is given up.
    pub deadline_seconds: u64,
    /// The memory of a run.
    pub memory_bytes: u64,
    /// Whether it runs on machines that can be taken back.
    pub spot: Spot,
}

/// Whether machines that can be taken back are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spot {
    /// Never.
    Never,
    /// When there are some.
    Prefer,
    /// No others.
    Only,
}

/// The job of the operator's.
const ANALYTICS: &str = "analytics-processor";
/// What is said of machines that can be taken back.
const SPOT: &str = "spot-config";
/// The settings of SAML.
const SAML: &str = "saml-config";
const SAML_FILE: &str = "saml2_settings.json";
/// The label and the taint of nodes that can be taken back.
const LIFECYCLE: (&str, &str) = ("node.kubernetes.io/lifecycle", "spot");
/// What pods on them are.
const BATCH: (&str, &str) = ("textnlp/workload-type", "batch");

impl Lowering<'_> {
    /// `way` is how pods reach the database.
    pub(super) fn beside(&mut self, secrets: &ResourceId, way: &Way) {
        if let Some(analytics) = self.place.analytics.clone() {
            self.analytics(&analytics, secrets, way);
        }
        match self.place.saml.clone() {
            Some(Ok(settings)) => self.map_of("saml-config", SAML, [(SAML_FILE.to_owned(), settings)]),
            Some(Err(why)) => {
                let fix = "mend the file that `sites[].cluster.saml` names, or leave it out";
                self.problem("saml", why, fix);
            }
            None => {}
        }
    }

    fn analytics(&mut self, analytics: &Analytics, secrets: &ResourceId, way: &Way) {
        let Some(id) = self.id(self.component.name.as_str(), "analytics") else { return };
        let (labels, tolerations) = spot();
        let mut pods =
            BTreeMap::from([("app.kubernetes.io/part-of", "textnlp"), ("app.kubernetes.io/name", ANALYTICS)]);
        let chosen = match analytics.spot {
            Spot::Never => Value::Null,
            Spot::Prefer | Spot::Only => {
                let files = [("labels.yaml", json!(labels)), ("tolerations.yaml", tolerations.clone())];
                let files = files.map(|(file, tree)| (file.to_owned(), tree.to_string()));
                self.map_of("spot-config", SPOT, files);
                pods.extend(labels);
                let nodes = BTreeMap::from([LIFECYCLE]);
                json!({ "tolerations": tolerations, "nodes": nodes, "only": analytics.spot == Spot::Only })
            }
        };
        let mut env = vec![
            json!({ "name": "ENVIRONMENT", "value": self.site.environment }),
            json!({ "name": "PROCESSING_MODE", "value": "batch" }),
            // The only place that a run may write to.
            json!({ "name": "HOME", "value": "/tmp" }),
        ];
        env.extend(way.address_for_others(SECRETS_NAME));
        let inputs = json!({
            "namespace": self.place.namespace, "user": self.user(), "image": analytics.image,
            "schedule": analytics.schedule, "command": analytics.command, "labels": pods, "spot": chosen,
            "deadline_seconds": analytics.deadline_seconds, "memory": disk(analytics.memory_bytes), "env": env,
            "database_authority": way.authority,
        });
        let needs = way.needs.iter().cloned().chain([secrets.clone()]);
        self.object(id, Template::Analytics, &inputs, needs);
    }

    /// A map of texts as they are.
    pub(super) fn map_of(&mut self, part: &str, name: &str, files: impl IntoIterator<Item = (String, String)>) {
        let files: BTreeMap<String, String> = files.into_iter().collect();
        let inputs = json!({ "namespace": self.place.namespace, "name": name, "files": files, "carried": false });
        self.part_of_kind(part, Template::ConfigMap, &inputs, []);
    }
}

/// The labels of pods on machines that can be taken back, and what those pods bear: one list for the map and for the pods.
fn spot() -> (BTreeMap<&'static str, &'static str>, Value) {
    let (key, value) = LIFECYCLE;
    let borne = json!([{ "key": key, "operator": "Equal", "value": value, "effect": "NoSchedule" }]);
    (BTreeMap::from([LIFECYCLE, BATCH]), borne)
}
