//! The DNS records of the service, in an existing zone of Azure DNS.

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_cloud::document::capture;
use textnlp_cloud::endpoint::{ADDRESS, NamedRecord, inside, records};
use textnlp_cloud::names::{PREFIX, bounded, hash};
use textnlp_provider::ResourceId;
use textnlp_provider::component::{Endpoint, TrafficShare};
use textnlp_provider::settings::Role;

use super::{Lowering, output};

/// The id of a zone in lower case: the case of ids says nothing (Azure/azure-rest-api-specs#24337).
const ZONE: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.network/dnszones/{name}";
/// The name of the record that has the name of its zone.
const OWN: &str = "@";
/// Seconds that resolvers may keep an answer.
const TTL: u32 = 60;

/// How Traffic Manager probes each site from several places, and how many failures in a row it tolerates: with the shortest interval a
/// site is lost after half a minute (<https://learn.microsoft.com/azure/traffic-manager/traffic-manager-monitoring>). A site without a
/// ready pod accepts no connection. Certificates are not verified.
const HEALTH_PATH: &str = "/health";
const PROBE_SECONDS: u32 = 10;
const PROBE_TIMEOUT_SECONDS: u32 = 5;
const TOLERATED: u32 = 2;
/// How long a lost site is in answers, before resolvers ask again.
pub(crate) const NOTICES_AFTER: Duration =
    Duration::from_secs((PROBE_SECONDS * (TOLERATED + 1) + PROBE_TIMEOUT_SECONDS) as u64);
/// The largest weight of an endpoint, and the priorities: the primary is the one site with clients where the others have none.
const MAX_WEIGHT: u32 = 1000;
const FIRST: u32 = 1;
const MOST_PRIORITIES: u32 = 1000;
/// The longest name of a profile, which is also a label of a name of Traffic Manager.
const MOST_OF_PROFILE: usize = 63;

impl Lowering<'_> {
    /// The records of the name that clients use and of those of tenants. With several sites one profile answers for them: each site has
    /// its endpoint in it, and the primary the records.
    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        let share = endpoint.share.as_ref();
        // A zone at another provider has its own records, and those of a site elsewhere are expanded with the zone's subscription only.
        if share.is_some_and(|share| share.is_at_other_provider) != self.is_elsewhere {
            return;
        }
        let found = match records(endpoint, self.site) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err((cause, fix)) => return self.problem("zone", cause, fix),
        };
        let Some((zone, domain)) = zone(found.zone.as_str()) else {
            let cause = format!("`{}` is not the id of a public DNS zone", found.zone);
            let fix = "write the id that `az network dns zone show --resource-group GROUP --name ZONE --query id --output tsv` prints";
            return self.problem("zone", cause, fix);
        };
        let address = output(&found.service, ADDRESS);
        let traffic = share.map(|share| self.traffic(endpoint, share, &zone, &found.domain, &address));
        for NamedRecord { part, name, is_shared } in &found.records {
            let Some(relative) = inside(name, &domain) else {
                let cause = format!("`{name}` is not in the zone `{domain}`");
                self.problem("zone", cause, "write the id of the zone that has the name");
                continue;
            };
            let relative = if relative.is_empty() { OWN } else { relative };
            let traffic = traffic.as_ref().filter(|_| *is_shared);
            if traffic.is_some() && self.site.role != Some(Role::Primary) {
                continue;
            }
            let values = traffic.map_or_else(|| json!([address]), |(profile, _)| json!({ "target": profile }));
            self.part(
                part,
                "azure.dns-record",
                json!({ "zone": zone, "name": relative, "ttl": TTL, "values": values }),
            );
            if let Some((_, site)) = traffic {
                self.after(site.clone());
            }
        }
    }

    /// The endpoint of this site in the profile of the name. Returns the profile's id, and the resource.
    fn traffic(
        &mut self,
        endpoint: &Endpoint,
        share: &TrafficShare,
        zone: &str,
        domain: &str,
        address: &Value,
    ) -> (String, Option<ResourceId>) {
        let clients = share.sites.values().filter(|weight| **weight > 0).count();
        if share.sites.values().any(|weight| *weight > MAX_WEIGHT) {
            let cause = format!("a weight is above {MAX_WEIGHT}, the largest of Traffic Manager");
            self.problem("weight", cause, "write smaller `traffic.weights`: only their proportion counts");
        }
        let is_weighted = clients == share.sites.len();
        if !is_weighted && clients != 1 {
            let cause = format!(
                "{clients} of {} sites have clients, and Traffic Manager has no weight 0 beside several weights",
                share.sites.len()
            );
            self.problem(
                "weight",
                cause,
                "write `traffic.weights` above 0 for one site only, or of at least 1 for all sites, where each standby becomes a secondary",
            );
        }
        let ranks: BTreeSet<u32> = share.sites.keys().map(|site| rank(site.as_str())).collect();
        if ranks.len() < share.sites.len() {
            let cause = "two sites would have the same priority, which follows from their names";
            self.problem("name", cause, "rename one of the sites");
        }
        let group = zone.split("/providers/").next().unwrap_or_default();
        let environment = &self.site.environment;
        // Names are unique in all of Azure.
        let name = bounded(format!("{PREFIX}{environment}-{}", hash(&format!("{zone} {domain}"))), MOST_OF_PROFILE);
        let profile = format!("{group}/providers/Microsoft.Network/trafficManagerProfiles/{name}");
        let spec = json!({
            "profile": profile,
            "name": self.site.name,
            "value": address,
            "weight": share.weight.clamp(1, MAX_WEIGHT),
            "priority": if self.site.role == Some(Role::Primary) { FIRST } else { rank(self.site.name.as_str()) },
            "status": "Enabled",
            "method": if is_weighted { "Weighted" } else { "Priority" },
            "dns": name,
            "ttl": TTL,
            "probe": {
                "protocol": if endpoint.tls { "HTTPS" } else { "HTTP" },
                "port": endpoint.port,
                "path": HEALTH_PATH,
                "interval": PROBE_SECONDS,
                "timeout": PROBE_TIMEOUT_SECONDS,
                "tolerated": TOLERATED,
                "host": domain,
            },
        });
        let site = self.part("traffic", "azure.traffic-site", spec);
        (profile, site)
    }
}

/// The priority of a site after the primary. No two endpoints of a profile have the same one, and none changes with weights or with other
/// sites: each site is changed for itself.
fn rank(site: &str) -> u32 {
    let digits = u32::from_str_radix(hash(site).get(..6).unwrap_or_default(), 16);
    FIRST + 1 + digits.unwrap_or_default() % (MOST_PRIORITIES - FIRST)
}

/// A zone's id as specs have it, and its domain; `None` for another id.
fn zone(id: &str) -> Option<(String, String)> {
    let mut found = capture(ZONE, &id.to_ascii_lowercase())?;
    let (subscription, group) = (found.remove("subscription")?, found.remove("group")?);
    let name = found.remove("name")?;
    let group = format!("/subscriptions/{subscription}/resourceGroups/{group}");
    Some((format!("{group}/providers/Microsoft.Network/dnsZones/{name}"), name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_ids() {
        let id = "/subscriptions/s/resourceGroups/dns/providers/Microsoft.Network/dnsZones/example.com";
        let known = Some((id.to_owned(), "example.com".to_owned()));
        assert_eq!(zone(id), known);
        let other_case = "/subscriptions/s/resourcegroups/DNS/providers/Microsoft.Network/dnszones/Example.com";
        assert_eq!(zone(other_case), known);
        for wrong in [
            "example.com",
            "Z0123456789ABCDEFGHIJ",
            &format!("{id}/A/text"),
            "/subscriptions/s/resourceGroups/dns/providers/Microsoft.Network/privateDnsZones/example.com",
        ] {
            assert_eq!(zone(wrong), None, "{wrong}");
        }
    }
}
