//! The network of a site: one subnetwork with the ranges of pods and services, and a NAT for what they call outside.
//!
//! Nodes have no public addresses. They reach Google's services by private Google access, without the NAT.

use serde_json::json;
use textnlp_cloud::Range;
use textnlp_provider::component::Network;

use super::Lowering;
use crate::kinds::NAT;
use crate::names;
use crate::service::Service;

/// The range of a network where the environment states none.
const CIDR: &str = "10.42.0.0/16";
/// The longest prefix: a node has 256 addresses for its pods (elastic/cloud-on-k8s#2615).
const LONGEST_PREFIX: u32 = 18;
/// The names of the ranges, which a cluster refers to.
pub(super) const PODS: &str = "pods";
pub(super) const SERVICES: &str = "services";
/// The most characters of a name in Compute Engine.
const MOST: usize = 63;

/// The services that a site needs.
const NEEDED: [Service; 11] = [
    Service::ArtifactRegistry,
    Service::CloudBilling,
    Service::CloudKms,
    Service::Compute,
    Service::Container,
    Service::Iam,
    Service::IamCredentials,
    Service::ResourceManager,
    Service::ServiceNetworking,
    Service::Sql,
    Service::Storage,
];

impl Lowering<'_> {
    pub(super) fn network(&mut self, network: &Network) {
        if self.component.existing.is_some() || !self.site.subnets.is_empty() {
            let fix = "remove `network.existing`, `sites[].existing.network` and `subnets`";
            return self.problem("existing", "existing networks of Google Cloud are not supported yet", fix);
        }
        let cidr = network.cidr.as_deref().unwrap_or(CIDR);
        let range = match Range::private(cidr, "a network with pods and services") {
            Ok(range) => range,
            Err((cause, fix)) => return self.problem("cidr", cause, fix),
        };
        if cidr.rsplit('/').next().and_then(|bits| bits.parse::<u32>().ok()).is_none_or(|bits| bits > LONGEST_PREFIX) {
            let cause = format!("`{cidr}` is too small: a node needs 256 addresses for its pods");
            return self.problem("cidr", cause, "write one such as `10.42.0.0/16`, from /16 to /18");
        }
        let apis: Vec<&str> = NEEDED.iter().map(|service| service.api()).collect();
        self.part("services", "gcp.services", self.of_project(json!({ "services": apis })));
        let name = names::of(self.site, "network", MOST);
        let vpc = json!({ "name": name, "auto_subnets": false, "routing": "REGIONAL" });
        self.part("vpc", "gcp.network", self.of_project(vpc));
        let vpc = self.output_of(self.component.name.as_str(), "vpc", "id");
        let subnet = json!({
            "name": name,
            "network": vpc,
            "cidr": range.part(4, 0).to_string(),
            "ranges": { PODS: range.part(1, 1).to_string(), SERVICES: range.part(4, 1).to_string() },
            "private_google_access": true,
            "flow_logs": self.site.protect_data,
        });
        self.part("subnet", "gcp.subnetwork", self.of_region(subnet));
        let subnet = self.output_of(self.component.name.as_str(), "subnet", "id");
        let nat = json!({ "name": NAT, "subnetwork": subnet, "log": "ERRORS_ONLY" });
        self.part("router", "gcp.router", self.of_region(json!({ "name": name, "network": vpc, "nat": nat })));
    }
}
