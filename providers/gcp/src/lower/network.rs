//! The network of a site: one subnetwork with the ranges of pods and services, and a NAT for what they call outside.
//!
//! Nodes have no public addresses. They reach Google's services by private Google access, without the NAT.

use serde_json::json;
use textnlp_cloud::Range;
use textnlp_provider::component::Network;
use textnlp_provider::{CloudId, Ownership};

use super::Lowering;
use crate::kinds::NAT;
use crate::names;
use crate::service::Service;

/// The range of a network where the environment states none.
const CIDR: &str = "10.42.0.0/16";
/// The longest prefix: a node has 256 addresses for its pods (elastic/cloud-on-k8s#2615).
const LONGEST_PREFIX: u32 = 18;
/// The usual names of the ranges, which a cluster refers to.
pub(crate) const PODS: &str = "pods";
pub(crate) const SERVICES: &str = "services";
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
        match &self.component.existing {
            Some(existing) => self.existing_network(network, existing.as_str()),
            None => self.new_network(network),
        }
    }

    /// Read, and never changed: see `preflight` for what is checked.
    fn existing_network(&mut self, network: &Network, existing: &str) {
        let (site, project) = (self.site, &self.site.account);
        if network.cidr.is_some() {
            self.problem("cidr", "an existing network has its own address range", "remove `network.cidr`");
        }
        let vpc = named(&format!("projects/{project}/global/networks"), existing);
        if vpc.is_none() {
            let cause = format!(
                "`{existing}` is no network of the project `{project}`; those of other projects (Shared VPC) are not supported yet"
            );
            let fix = format!("write the name of one: `gcloud compute networks list --project {project}`");
            self.problem("existing", cause, fix);
        }
        let [subnet] = site.subnets.as_slice() else {
            let cause = format!(
                "an existing network needs one subnetwork in {}, and {} are set",
                site.region,
                site.subnets.len()
            );
            return self.problem("subnets", cause, "name it in `sites[].existing.subnets`");
        };
        let (given, ..) = with_ranges(subnet.as_str());
        let found = named(&format!("projects/{project}/regions/{}/subnetworks", site.region), given);
        if found.is_none() {
            let cause = format!("`{subnet}` is no subnetwork of the project `{project}` in {}", site.region);
            let fix = format!(
                "write the name of one: `gcloud compute networks subnets list --regions {} --project {project}`",
                site.region
            );
            self.problem("subnets", cause, fix);
        }
        let (Some((name, vpc)), Some((subnet, id))) = (vpc, found) else { return };
        self.services();
        self.owned_part("vpc", "gcp.network", self.of_project(json!({ "name": name })), Ownership::External(vpc));
        self.owned_part("subnet", "gcp.subnetwork", self.of_region(json!({ "name": subnet })), Ownership::External(id));
    }

    fn services(&mut self) {
        let apis: Vec<&str> = NEEDED.iter().map(|service| service.api()).collect();
        self.part("services", "gcp.services", self.of_project(json!({ "services": apis })));
    }

    fn new_network(&mut self, network: &Network) {
        if !self.site.subnets.is_empty() {
            let fix = "set `sites[].existing.network` to their network, or remove `subnets`";
            return self.problem("subnets", "existing subnetworks need their existing network", fix);
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
        self.services();
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

/// An existing subnetwork, and the names of its ranges of pods and services: `NAME`, or `NAME:PODS:SERVICES` if they have other names.
pub(super) fn with_ranges(given: &str) -> (&str, &str, &str) {
    match given.split(':').collect::<Vec<_>>().as_slice() {
        [name, pods, services] => (*name, *pods, *services),
        _ => (given, PODS, SERVICES),
    }
}

/// The name and the id of an object of a collection, which is given by either.
fn named(collection: &str, given: &str) -> Option<(String, CloudId)> {
    let name = given.strip_prefix(collection).and_then(|rest| rest.strip_prefix('/')).unwrap_or(given);
    let is_name = !name.is_empty()
        && name.len() <= MOST
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    let id = CloudId::new(format!("{collection}/{name}")).ok().filter(|_| is_name)?;
    Some((name.to_owned(), id))
}
