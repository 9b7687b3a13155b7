//! Additions to the servers of a site: the analytics job, the configuration of spot nodes, and the SAML
//! settings of an authentication proxy.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::ResourceId;
use textnlp_provider::cluster::Analytics;
use textnlp_provider::component::FileText;
use textnlp_provider::settings::Spot;

use super::database::{DatabaseConnection, disk};
use super::template::Template;
use super::{Lowering, PROGRAM, SECRETS_NAME};

/// The name of the analytics job.
const ANALYTICS: &str = "analytics-processor";
/// The name of the map with the labels and tolerations of spot nodes.
const SPOT: &str = "spot-config";
/// The name of the map with the SAML settings.
const SAML: &str = "saml-config";
const SAML_FILE: &str = "saml2_settings.json";
/// The label and the taint of spot nodes.
const LIFECYCLE: (&str, &str) = ("node.kubernetes.io/lifecycle", "spot");
/// The label of pods on spot nodes.
const BATCH: (&str, &str) = ("textnlp/workload-type", "batch");

impl Lowering<'_> {
    /// Adds the analytics job and the SAML settings; `way` is the connection to the database. `is_analyzed`: the servers
    /// analyze usage, and the job does it in their place.
    pub(super) fn beside(
        &mut self,
        secrets: &ResourceId,
        way: &DatabaseConnection,
        saml: Option<&FileText>,
        is_analyzed: bool,
    ) {
        let analytics = self.settings().analytics.clone().or_else(|| is_analyzed.then(Analytics::default));
        if let Some(analytics) = analytics {
            self.analytics(&analytics, secrets, way);
        }
        match saml {
            Some(Ok(settings)) => self.map_of("saml-config", SAML, [(SAML_FILE.to_owned(), settings.clone())]),
            Some(Err(why)) => {
                let fix = "correct the file that `sites[].cluster.saml` references, or remove it";
                self.problem("saml", why.as_str(), fix);
            }
            None => {}
        }
    }

    fn analytics(&mut self, analytics: &Analytics, secrets: &ResourceId, way: &DatabaseConnection) {
        let component = self.component.name.as_str();
        let is_own = analytics.image.is_some();
        // Without an image of the servers, the workload has a problem already.
        let image = analytics.image.clone().or_else(|| self.settings().image.clone());
        let (Some(id), Some(image)) = (self.id(component, "analytics"), image) else { return };
        let before: Vec<ResourceId> = match is_own {
            true => Vec::new(),
            false => ["config", "migrate"].into_iter().filter_map(|part| self.id(component, part)).collect(),
        };
        if is_own {
            self.pinned("analytics.image", &image);
        }
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
            // The only writable directory of a run.
            json!({ "name": "HOME", "value": "/tmp" }),
        ];
        let address = way.address_for_others(SECRETS_NAME);
        // The servers' program has the rest in its configuration.
        env.extend(
            address.into_iter().filter(|one| is_own || (one["name"] == "DATABASE_URL" && one["value"].is_null())),
        );
        let arguments = ["admin", "analytics", "--config", "/etc/textnlp/server.yaml", "--do", r#"{"do":"run"}"#];
        let (command, arguments) = match is_own {
            true => (json!(analytics.command), Value::Null),
            false => (json!([PROGRAM]), json!(arguments)),
        };
        // On spot nodes, these are the nodes.
        let nodes = if is_own || !chosen.is_null() { Value::Null } else { self.nodes() };
        let inputs = json!({
            "namespace": self.cluster.namespace, "user": self.user(), "image": image,
            "schedule": analytics.schedule, "command": command, "arguments": arguments, "labels": pods, "spot": chosen,
            "nodes": nodes, "configured": !is_own,
            "deadline_seconds": analytics.deadline.as_seconds(), "memory": disk(analytics.memory.0), "env": env,
            "database_authority": way.authority,
        });
        let needs = way.needs.iter().cloned().chain([secrets.clone()]).chain(before);
        self.object(id, Template::Analytics, &inputs, needs);
    }

    /// A config map of plain texts.
    pub(super) fn map_of(&mut self, part: &str, name: &str, files: impl IntoIterator<Item = (String, String)>) {
        let files: BTreeMap<String, String> = files.into_iter().collect();
        let inputs = json!({ "namespace": self.cluster.namespace, "name": name, "files": files, "carried": false });
        self.part_of_kind(part, Template::ConfigMap, &inputs, []);
    }
}

/// The labels and tolerations of pods on spot nodes; the map and the pods share them.
fn spot() -> (BTreeMap<&'static str, &'static str>, Value) {
    let (key, value) = LIFECYCLE;
    let tolerated = json!([{ "key": key, "operator": "Equal", "value": value, "effect": "NoSchedule" }]);
    (BTreeMap::from([LIFECYCLE, BATCH]), tolerated)
}
