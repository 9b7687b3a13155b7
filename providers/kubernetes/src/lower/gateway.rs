//! What leads clients to the service from a Gateway of the operator's, and has that know the pods.

use serde_json::json;
use textnlp_provider::OutputRef;
use textnlp_provider::component::Endpoint;

use super::template::Template;
use super::{CERTIFICATE, Ingress, Lowering};

/// The map with the authority that signs the certificate of the pods.
pub(crate) const AUTHORITY: &str = "textnlp-authority";
/// Five digits are what a time of the Gateway API has.
const LONGEST_TIMEOUT: u32 = 99_999;
/// The service says that it took too long; the Gateway would say so only when that does not come.
const GRACE: u32 = 10;

impl Lowering<'_> {
    pub(super) fn gateway(&mut self, endpoint: &Endpoint, ingress: &Ingress) {
        let Ingress::Gateway { namespace, name, section, host, .. } = ingress else { return };
        if let Some(secret) = &self.place.tls_secret {
            let cause = format!(
                "the certificate of the pods is in the Secret `{secret}`, and nobody says which authority the Gateway knows it by"
            );
            let fix = "write `tls: { mode: local-ca }`; the certificate that clients see is the Gateway's";
            return self.problem("tls", cause, fix);
        }
        let authority =
            self.id(endpoint.certificate.as_str(), "authority").or_else(|| self.id(CERTIFICATE, "authority"));
        let ids = ["authority", "http-route", "backend-tls", "service"].map(|part| self.id(super::ENDPOINT, part));
        let (Some(signer), [Some(map), Some(route), Some(policy), Some(service)]) = (authority, ids) else { return };
        let inputs = json!({
            "namespace": self.place.namespace,
            "name": AUTHORITY,
            "authority": OutputRef::new(signer, "ca_pem"),
        });
        self.object(map.clone(), Template::Authority, &inputs, []);
        let weighted = self.place.is_weighted();
        let mut needs = vec![service];
        if weighted {
            let inputs = json!({ "namespace": self.place.namespace, "port": endpoint.port });
            self.part_of_kind("service-new", Template::ServiceNew, &inputs, []);
            needs.extend(self.id(super::ENDPOINT, "service-new"));
        }
        // No gateway leads clients anywhere before it is told whom to trust there.
        let inputs =
            json!({ "namespace": self.place.namespace, "authority": AUTHORITY, "host": host, "weighted": weighted });
        self.object(policy.clone(), Template::BackendTls, &inputs, [map]);
        needs.push(policy);
        let inputs = json!({
            "weighted": weighted,
            "namespace": self.place.namespace,
            "gateway": { "namespace": namespace, "name": name, "section": section },
            "host": host,
            "port": endpoint.port,
            "timeout_seconds": endpoint.timeout_seconds.saturating_add(GRACE).min(LONGEST_TIMEOUT),
        });
        self.object(route, Template::HttpRoute, &inputs, needs);
    }
}
