//! Cluster Autoscaler, where the cloud of the cluster adds no nodes itself.

use serde_json::json;
use textnlp_provider::cluster::NodeAutoscaler;

use super::template::Template;
use super::{CLUSTER, Lowering};

impl Lowering<'_> {
    pub(super) fn node_autoscaler(&mut self, autoscaler: &NodeAutoscaler) {
        let parts = ["node-autoscaler-account", "node-autoscaler-role", "node-autoscaler-binding", "node-autoscaler"];
        let [account, role, binding, deployment] = parts.map(|part| self.id(CLUSTER, part));
        let (Some(account), Some(role), Some(binding), Some(deployment)) = (account, role, binding, deployment) else {
            return;
        };
        let inputs = json!({
            "namespace": NodeAutoscaler::NAMESPACE,
            "name": NodeAutoscaler::name(&self.cluster.namespace),
            "instance": self.cluster.namespace,
            "image": autoscaler.image,
            "provider": autoscaler.provider,
            "discovery": autoscaler.discovery,
            "variables": autoscaler.variables,
            // Its image is public, and its namespace has no Secret for another one.
            "pull_secret": null,
        });
        self.object(account.clone(), Template::ServiceAccount, &inputs, []);
        self.object(role.clone(), Template::NodeAutoscalerRole, &inputs, []);
        self.object(binding.clone(), Template::NodeAutoscalerBinding, &inputs, [account, role]);
        let identity = self.id(CLUSTER, &autoscaler.part);
        self.object(deployment, Template::NodeAutoscaler, &inputs, identity.into_iter().chain([binding]));
    }
}
