//! The network of a site: a subnet of the nodes whose calls outside go through a NAT gateway, and one for the database server.

use serde_json::json;
use textnlp_cloud::Range;
use textnlp_provider::component::Network;

use super::{Lowering, output};
use crate::kinds::network::{DATABASE, NODES};
use crate::names;

/// The range of a site where the environment states none.
const CIDR: &str = "10.42.0.0/16";
/// The longest prefix: pods have a quarter of the range, and each node takes 256 addresses of it.
const LONGEST_PREFIX: u32 = 18;
/// The most characters of a name in a network.
const MOST: usize = 63;
/// The service that the subnet of the database is delegated to.
const DATABASES: &str = "Microsoft.DBforPostgreSQL/flexibleServers";

/// The resource providers that a site needs.
pub(crate) const NEEDED: [&str; 8] = [
    "Microsoft.Compute",
    "Microsoft.ContainerRegistry",
    "Microsoft.ContainerService",
    "Microsoft.DBforPostgreSQL",
    "Microsoft.KeyVault",
    "Microsoft.ManagedIdentity",
    "Microsoft.Network",
    "Microsoft.Storage",
];

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
        if self.component.existing.is_some() || !self.site.subnets.is_empty() {
            let fix = "remove `network.existing`, `sites[].existing.network` and `subnets`";
            return self.problem("existing", "existing networks of Azure are not supported yet", fix);
        }
        let range = match range(network.cidr.as_deref().unwrap_or(CIDR)) {
            Ok(range) => range,
            Err((cause, fix)) => return self.problem("cidr", cause, fix),
        };
        let subscription = json!(self.site.account);
        let mut providers = Vec::new();
        for (place, name) in NEEDED.iter().enumerate() {
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
}
