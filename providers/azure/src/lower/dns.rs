//! The DNS records of the service, in an existing zone of Azure DNS.

use serde_json::json;
use textnlp_cloud::document::capture;
use textnlp_cloud::endpoint::{ADDRESS, NamedRecord, inside, single_records};
use textnlp_provider::component::Endpoint;

use super::{Lowering, output};

/// The id of a zone in lower case: the case of ids says nothing (Azure/azure-rest-api-specs#24337).
const ZONE: &str = "/subscriptions/{subscription}/resourcegroups/{group}/providers/microsoft.network/dnszones/{name}";
/// The name of the record that has the name of its zone.
const OWN: &str = "@";
/// Seconds that resolvers may keep an answer.
const TTL: u32 = 60;

impl Lowering<'_> {
    /// The records of the name that clients use and of those of tenants.
    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        let found = match single_records(endpoint, self.site, "Azure DNS") {
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
        for NamedRecord { part, name, .. } in &found.records {
            let Some(relative) = inside(name, &domain) else {
                let cause = format!("`{name}` is not in the zone `{domain}`");
                self.problem("zone", cause, "write the id of the zone that has the name");
                continue;
            };
            let relative = if relative.is_empty() { OWN } else { relative };
            let spec = json!({ "zone": zone, "name": relative, "ttl": TTL, "values": [address] });
            self.part(part, "azure.dns-record", spec);
        }
    }
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
