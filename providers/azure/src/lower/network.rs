//! The network of a site: a subnet of the nodes whose calls outside go through a NAT gateway, and one for the database server.

use serde_json::json;
use textnlp_cloud::Range;
use textnlp_cloud::document::{capture, last};
use textnlp_provider::component::Network;
use textnlp_provider::{CloudId, Ownership, Site};

use super::{Lowering, is_served, output};
use crate::kinds::network::{DATABASE, DATABASES, NODES};
use crate::names;

/// The range of a site where the environment states none.
const CIDR: &str = "10.42.0.0/16";
/// The longest prefix: pods have a quarter of the range, and each node takes 256 addresses of it.
const LONGEST_PREFIX: u32 = 18;
/// The most characters of a name in a network.
pub(super) const MOST: usize = 63;
/// The id of a network in lower case: the case of ids says nothing (Azure/azure-rest-api-specs#24337).
const VNET: &str =
    "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.network/virtualnetworks/{name}";
/// The most characters of the name of a subnet.
const MOST_OF_SUBNET: usize = 80;
/// The parts that are the subnets, that of the nodes first.
const SUBNETS: [&str; 2] = ["subnet", "database-subnet"];

/// The resource providers that a site with a cluster needs.
const NEEDED: [&str; 8] = [
    "Microsoft.Compute",
    "Microsoft.ContainerRegistry",
    "Microsoft.ContainerService",
    "Microsoft.DBforPostgreSQL",
    "Microsoft.KeyVault",
    "Microsoft.ManagedIdentity",
    "Microsoft.Network",
    "Microsoft.Storage",
];

/// The resource providers that a site in Azure Machine Learning needs. A deployment fails with `SubscriptionNotRegistered` without
/// Cdn and PolicyInsights (MicrosoftLearning/mslearn-azure-ml#106).
const NEEDED_TO_SERVE: [&str; 8] = [
    "Microsoft.Cdn",
    "Microsoft.ContainerRegistry",
    "Microsoft.Insights",
    "Microsoft.KeyVault",
    "Microsoft.MachineLearningServices",
    "Microsoft.ManagedIdentity",
    "Microsoft.PolicyInsights",
    "Microsoft.Storage",
];

/// The resource providers that a site needs.
pub(super) fn needed(site: &Site) -> &'static [&'static str] {
    if is_served(site) { &NEEDED_TO_SERVE } else { &NEEDED }
}

/// The range of a site: the network is its first half, and pods and services are in the other one, as an overlay needs.
fn range(cidr: &str) -> Result<Range, (String, &'static str)> {
    let range = Range::private(cidr, "a network with pods and services")?;
    if cidr.rsplit('/').next().and_then(|bits| bits.parse::<u32>().ok()).is_none_or(|bits| bits > LONGEST_PREFIX) {
        let cause = format!("`{cidr}` is too small: a node needs 256 addresses for its pods");
        return Err((cause, "write one such as `10.42.0.0/16`, from /16 to /18"));
    }
    Ok(range)
}

impl Lowering<'_> {
    pub(super) fn network(&mut self, network: &Network) {
        match &self.component.existing {
            Some(existing) => self.existing_network(network, existing),
            None => self.new_network(network),
        }
    }

    /// Read, and never changed: see `preflight` for what is checked.
    fn existing_network(&mut self, network: &Network, existing: &CloudId) {
        let site = self.site;
        if network.cidr.is_some() {
            self.problem("cidr", "an existing network has its own address range", "remove `network.cidr`");
        }
        let is_here = capture(VNET, &existing.as_str().to_ascii_lowercase())
            .is_some_and(|found| found["subscription"].eq_ignore_ascii_case(&site.account));
        if !is_here {
            let cause = format!("`{existing}` is not the id of a virtual network in the subscription of the site");
            let fix = "write the id that `az network vnet show --resource-group GROUP --name NETWORK --query id --output tsv` prints";
            return self.problem("existing", cause, fix);
        }
        if !(1..=SUBNETS.len()).contains(&site.subnets.len()) {
            let cause = format!("an existing network needs one or two subnets, and {} are set", site.subnets.len());
            let fix =
                "list the one of the nodes, and after it the one of a managed database, in `sites[].existing.subnets`";
            self.problem("subnets", cause, fix);
        }
        let mut subnets = Vec::new();
        for given in &site.subnets {
            match subnet(existing.as_str(), given.as_str()) {
                Some(id) => subnets.push(id),
                None => {
                    let cause = format!("`{given}` is no subnet of the existing network");
                    self.problem("subnets", cause, "write the name or the id of one: `az network vnet subnet list`");
                }
            }
        }
        if !self.problems.is_empty() {
            return;
        }
        self.group();
        let spec = json!({ "name": last(existing.as_str()) });
        self.owned_part("vnet", "azure.network", spec, Ownership::External(existing.clone()));
        for (part, id) in SUBNETS.into_iter().zip(subnets) {
            let spec = json!({ "network": existing, "name": last(id.as_str()) });
            self.owned_part(part, "azure.subnet", spec, Ownership::External(id));
        }
    }

    fn new_network(&mut self, network: &Network) {
        if !self.site.subnets.is_empty() {
            let fix = "set `sites[].existing.network` to their network, or remove `subnets`";
            return self.problem("subnets", "existing subnets need their existing network", fix);
        }
        let range = match range(network.cidr.as_deref().unwrap_or(CIDR)) {
            Ok(range) => range,
            Err((cause, fix)) => return self.problem("cidr", cause, fix),
        };
        self.group();
        let name = names::of(self.site, "network", MOST);
        let spec = self.of_group(json!({ "name": name, "cidr": range.part(1, 0).to_string() }));
        let Some(vnet) = self.part("vnet", "azure.network", spec) else { return };
        let spec = self.of_group(json!({ "name": names::of(self.site, "nat", MOST) }));
        let Some(address) = self.part("address", "azure.address", spec) else { return };
        let nat =
            self.of_group(json!({ "name": names::of(self.site, "nat", MOST), "address": output(&address, "id") }));
        let Some(nat) = self.part("nat", "azure.nat", nat) else { return };
        let subnet = |name: &str, cidr: Range| json!({ "name": name, "network": output(&vnet, "id"), "cidr": cidr.to_string(), "nat": null, "delegation": null });
        let mut nodes = subnet(NODES, range.part(2, 0));
        nodes["nat"] = output(&nat, "id");
        let nodes = self.part("subnet", "azure.subnet", nodes);
        let mut database = subnet(DATABASE, range.part(8, 64));
        database["delegation"] = json!(DATABASES);
        self.part("database-subnet", "azure.subnet", database);
        // A network has one writer at a time (hashicorp/terraform-provider-azurerm#3780).
        self.after(nodes);
    }

    /// The resource providers, and the group that every other resource of the site is in.
    pub(super) fn group(&mut self) {
        let subscription = json!(self.site.account);
        let mut providers = Vec::new();
        for (place, name) in needed(self.site).iter().enumerate() {
            let spec = json!({ "subscription": subscription, "name": name });
            providers.push(self.part(&format!("provider-{}", place + 1), "azure.provider", spec));
        }
        let group = names::cluster(self.site);
        let spec = json!({ "subscription": subscription, "name": group, "location": self.site.region });
        self.part("group", "azure.group", spec);
        // Every other resource is in the group.
        for provider in providers {
            self.after(provider);
        }
    }
}

/// The id of a subnet of a network, which is given by its name or its id.
fn subnet(network: &str, given: &str) -> Option<CloudId> {
    let start = format!("{network}/subnets/");
    let of_id = given.split_at_checked(start.len()).filter(|(head, _)| head.eq_ignore_ascii_case(&start));
    let name = of_id.map_or(given, |(_, name)| name);
    let is_name = !name.is_empty() && name.len() <= MOST_OF_SUBNET && !name.contains('/');
    CloudId::new(format!("{start}{name}")).ok().filter(|_| is_name)
}
