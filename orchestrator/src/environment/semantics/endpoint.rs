//! Checks of a site whose servers a cloud runs as an inference endpoint. What has no effect there is refused: an operator
//! would rely on it.

use super::super::model::*;
use super::Checker;

/// Settings of what such a site does not have: API keys and tenants, a listener, a cluster, a network.
const WITHOUT_EFFECT: &[&str] = &[
    "cluster",
    "network",
    "prerequisites.git",
    "scaling.cpu",
    "scaling.memory",
    "server.api.base_domain",
    "server.api.cors_origins",
    "server.api.trusted_proxies",
    "server.monitoring.log_file",
    "server.security.rate_limit",
    "server.security.token_rate_limit",
    "traffic",
];

/// What only a service of Cloud Run does not have: it adds instances by the requests that they answer at the same time, and
/// each has one GPU.
const WITHOUT_EFFECT_ON_CLOUD_RUN: &[&str] =
    &["gpu.count", "gpu.per_machine", "gpu.spot", "scaling.requests_per_second"];

/// What other endpoints do not have: each replica has the GPUs of its machine.
const WITHOUT_EFFECT_ON_ENDPOINTS: &[&str] = &["gpu.count", "gpu.per_machine", "gpu.spot"];

impl Checker<'_> {
    /// The instance type belongs to an endpoint or to nodes; a site with an endpoint is alone, and has no settings without effect.
    pub(super) fn inference_endpoint(&mut self, i: usize, site: &SiteSettings) {
        let at = format!("sites[{i}]");
        if site.instance_type.is_some() {
            let path = format!("{at}.instance_type");
            match site.runtime {
                Runtime::Sagemaker | Runtime::Vertex | Runtime::AzureMl => {}
                Runtime::Kubernetes if self.environment.cluster.node_size.is_some() => {
                    let cause = "`cluster.node_size` chooses the machines of the same nodes";
                    self.error(&path, cause, "remove one of the two");
                }
                Runtime::Kubernetes => {}
                runtime => {
                    let cause = format!("with `runtime: {runtime}` it has no effect");
                    self.error(
                        &path,
                        cause,
                        "remove it, or write `runtime: sagemaker`, `vertex`, `azure-ml` or `kubernetes`",
                    );
                }
            }
        }
        if !site.is_endpoint() {
            return;
        }
        let runtime = format!("it has no effect with `runtime: {}`", site.runtime);
        if self.environment.sites.len() > 1 {
            let cause = "an inference endpoint is the only site of its environment";
            self.error(&format!("{at}.runtime"), cause, "write an environment of its own for it");
        }
        let existing = &site.existing;
        let own = [
            ("services", !site.services.is_empty()),
            ("host", site.host.is_some()),
            ("port", site.port.is_some()),
            ("metrics_port", site.metrics_port.is_some()),
            ("existing.network", existing.network.is_some()),
            ("existing.subnets", !existing.subnets.is_empty()),
            ("existing.cluster", existing.cluster.is_some()),
            ("existing.database", existing.database.is_some()),
            ("existing.cache", existing.cache.is_some()),
            ("existing.certificate", existing.certificate.is_some()),
        ];
        for (field, _) in own.into_iter().filter(|(_, is_set)| *is_set) {
            self.error(&format!("{at}.{field}"), runtime.clone(), "remove it");
        }
        let more: &[&str] = match site.runtime {
            Runtime::CloudRun => WITHOUT_EFFECT_ON_CLOUD_RUN,
            Runtime::Sagemaker | Runtime::Vertex | Runtime::AzureMl => WITHOUT_EFFECT_ON_ENDPOINTS,
            _ => &[],
        };
        for path in WITHOUT_EFFECT.iter().chain(more).filter(|path| !self.is_shipped(path)).collect::<Vec<_>>() {
            self.error(path, runtime.clone(), "remove it");
        }
        for (number, model) in self.environment.models.iter().enumerate() {
            if model.quality.is_some() {
                self.error(&format!("models[{number}].quality"), runtime.clone(), "remove it");
            }
        }
    }
}
