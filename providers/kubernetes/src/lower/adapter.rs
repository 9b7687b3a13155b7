//! The custom metrics adapter for the autoscaler, and its registration with the API server.

use serde_json::json;
use textnlp_provider::{OutputRef, ResourceId};

use super::template::Template;
use super::{HTTPS_PORT, Lowering, PROGRAM};

/// The component that the adapter's objects belong to. Its certificate is created elsewhere, as that of a component of
/// this name: `SITE/adapter/authority` signs `SITE/adapter/leaf` for `textnlp-adapter.NAMESPACE.svc`.
pub(super) const ADAPTER_COMPONENT: &str = "adapter";
/// The name of its objects.
pub(crate) const ADAPTER: &str = "textnlp-adapter";
const TLS_SECRET: &str = "textnlp-adapter-tls";

impl Lowering<'_> {
    /// The resource that an autoscaler depends on; `None` without an adapter.
    pub(super) fn adapter(&mut self, image: &str) -> Option<ResourceId> {
        if !self.cluster.adapter {
            return None;
        }
        let parts = ["account", "role", "binding", "trust", "tls", "deployment", "service", "registration"];
        let [account, role, binding, trust, tls, deployment, service, registration] =
            parts.map(|part| self.id(ADAPTER_COMPONENT, part));
        let (authority, leaf) = (self.id(ADAPTER_COMPONENT, "authority")?, self.id(ADAPTER_COMPONENT, "leaf")?);
        let (account, role, binding, trust) = (account?, role?, binding?, trust?);
        let (tls, deployment, service, registration) = (tls?, deployment?, service?, registration?);
        let inputs = json!({
            "namespace": self.cluster.namespace,
            "name": ADAPTER,
            "image": image,
            "program": PROGRAM,
            "user": self.user(),
            "nodes": self.nodes(),
            "port": HTTPS_PORT,
            "tls_secret": TLS_SECRET,
            "authority": OutputRef::new(authority, "ca_pem"),
            "registry": self.registry(),
        });
        self.service_account(Some(account.clone()), ADAPTER);
        self.object(role.clone(), Template::AdapterRole, &inputs, []);
        self.object(binding.clone(), Template::RoleBinding, &inputs, [account.clone(), role]);
        self.object(trust.clone(), Template::AdapterTrust, &inputs, [account]);
        let data = json!({
            "tls.crt": OutputRef::new(leaf.clone(), "certificate"),
            "tls.key": OutputRef::new(leaf, "key"),
        });
        self.secret(tls.clone(), TLS_SECRET, "kubernetes.io/tls", &data, Vec::new());
        self.object(deployment.clone(), Template::Adapter, &inputs, [binding, trust, tls]);
        self.object(service.clone(), Template::AdapterService, &inputs, []);
        self.object(registration.clone(), Template::AdapterRegistration, &inputs, [deployment, service]);
        Some(registration)
    }
}
