//! The credentials with which the rollout job queries an external Prometheus.

use serde_json::json;
use textnlp_provider::component::PrometheusQueries;
use textnlp_provider::{OutputRef, ResourceId};

use super::Lowering;
use crate::canary::SECRET;
use crate::manifest::PLAIN;

/// The key of its token among the secrets of the site.
const TOKEN: &str = "prometheus-token";

impl Lowering<'_> {
    /// The Secret with the token and the certificate authority, if either is needed.
    pub(super) fn reached(&mut self, outside: &PrometheusQueries, secrets: &str) -> Option<ResourceId> {
        let mut data = json!({});
        if outside.token {
            data["token"] = json!(OutputRef::new(self.id(secrets, TOKEN)?, "secret"));
            // The job compares it with the annotation, which others may change who cannot read Secrets.
            data["url"] = json!({ PLAIN: outside.url });
        }
        match &outside.ca {
            None => {}
            Some(Ok(pem)) => data["ca.crt"] = json!({ PLAIN: pem }),
            Some(Err(why)) => {
                let fix = "give a file with certificates in PEM format";
                self.problem("rollout.prometheus.ca_file", why.as_str(), fix);
            }
        }
        let is_needed = data.as_object().is_some_and(|data| !data.is_empty());
        let component = self.component.name.clone();
        let id = self.id(component.as_str(), "prometheus").filter(|_| is_needed)?;
        self.secret(id.clone(), SECRET, "Opaque", &data, Vec::new());
        Some(id)
    }
}
