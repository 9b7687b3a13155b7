//! With what the job that judges a release asks a Prometheus of the operator's.

use serde_json::json;
use textnlp_provider::component::Outside;
use textnlp_provider::{OutputRef, ResourceId};

use super::Lowering;
use crate::canary::SECRET;
use crate::manifest::PLAIN;

/// The token of it, among the secrets of the site.
const TOKEN: &str = "prometheus-token";

impl Lowering<'_> {
    /// The Secret with the token and the authority, where one of the two is needed.
    pub(super) fn reached(&mut self, outside: &Outside, secrets: &str) -> Option<ResourceId> {
        let mut data = json!({});
        if outside.token {
            data["token"] = json!(OutputRef::new(self.id(secrets, TOKEN)?, "secret"));
        }
        match self.place.prometheus_ca.clone() {
            None => {}
            Some(Ok(pem)) => data["ca.crt"] = json!({ PLAIN: pem }),
            Some(Err(why)) => {
                let fix = "name a file with certificates in PEM form";
                self.problem("rollout.prometheus.ca_file", why, fix);
            }
        }
        let is_needed = data.as_object().is_some_and(|data| !data.is_empty());
        let component = self.component.name.clone();
        let id = self.id(component.as_str(), "prometheus").filter(|_| is_needed)?;
        self.secret(id.clone(), SECRET, "Opaque", &data, Vec::new());
        Some(id)
    }
}
