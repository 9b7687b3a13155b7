//! The route from an external Gateway to the service, and the policy by which the Gateway verifies the pods'
//! certificate.

use serde_json::json;
use textnlp_provider::OutputRef;
use textnlp_provider::component::Endpoint;

use super::ingress::Ingress;
use super::template::Template;
use super::{CERTIFICATE, Lowering};

/// The config map with the authority that signs the pods' certificate.
pub(crate) const AUTHORITY: &str = "textnlp-authority";
/// Durations of the Gateway API have at most five digits.
const LONGEST_TIMEOUT: u32 = 99_999;
/// The time added to the service's own timeout, in seconds, so that the service reports a timeout before the Gateway
/// does.
const GRACE: u32 = 10;

impl Lowering<'_> {
    pub(super) fn gateway(&mut self, endpoint: &Endpoint, ingress: &Ingress<'_>) {
        let Ingress::Gateway { namespace, name, section, host, .. } = ingress else { return };
        if let Some(secret) = &self.cluster.certificate {
            let cause = format!(
                "the certificate of the pods is in the Secret `{secret}`, and its certificate authority for the Gateway is not configured"
            );
            let fix = "write `tls: { mode: local-ca }`; clients see the certificate of the Gateway";
            return self.problem("tls", cause, fix);
        }
        let authority =
            self.id(endpoint.certificate.as_str(), "authority").or_else(|| self.id(CERTIFICATE, "authority"));
        let ids = ["authority", "http-route", "backend-tls", "service"].map(|part| self.id(super::ENDPOINT, part));
        let (Some(signer), [Some(map), Some(route), Some(policy), Some(service)]) = (authority, ids) else { return };
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "name": AUTHORITY,
            "authority": OutputRef::new(signer, "ca_pem"),
        });
        self.object(map.clone(), Template::Authority, &inputs, []);
        let weighted = self.is_weighted();
        let mut needs = vec![service];
        if weighted {
            let inputs = json!({ "namespace": self.cluster.namespace, "port": endpoint.port });
            self.part_of_kind("service-new", Template::ServiceNew, &inputs, []);
            needs.extend(self.id(super::ENDPOINT, "service-new"));
        }
        // The route depends on the policy: no client traffic before the Gateway can verify the pods.
        let inputs =
            json!({ "namespace": self.cluster.namespace, "authority": AUTHORITY, "host": host, "weighted": weighted });
        self.object(policy.clone(), Template::BackendTls, &inputs, [map]);
        needs.push(policy);
        let inputs = json!({
            "weighted": weighted,
            "namespace": self.cluster.namespace,
            "gateway": { "namespace": namespace, "name": name, "section": section },
            "host": host,
            "port": endpoint.port,
            "timeout_seconds": endpoint.timeout_seconds.saturating_add(GRACE).min(LONGEST_TIMEOUT),
        });
        self.object(route, Template::HttpRoute, &inputs, needs);
    }
}
