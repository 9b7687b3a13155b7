//! The DNS records of the names that clients use, in an existing zone, and what they point at. Pure.

use textnlp_provider::cluster::ClusterAccess;
use textnlp_provider::component::Endpoint;
use textnlp_provider::{CloudId, ResourceId, Site};

/// The output of a Service with the name or the address of its load balancer.
pub const ADDRESS: &str = "address";

/// What a zone has of a site.
pub struct SiteRecords<'e> {
    /// The zone, by the id in the environment.
    pub zone: &'e CloudId,
    /// The name of the service.
    pub domain: String,
    /// The Service whose load balancer the records point at: the provider of the objects in the cluster creates it.
    pub service: ResourceId,
    /// The records: the names of the service and of its tenants, and the site's own.
    pub records: Vec<NamedRecord>,
}

/// One record.
pub struct NamedRecord {
    /// The part of the component that it is.
    pub part: &'static str,
    /// Its name.
    pub name: String,
    /// Whether other sites have records of the same name.
    pub is_shared: bool,
}

/// Why a zone cannot have the records of a site, and what to do.
pub type Refusal = (String, &'static str);

/// The records of a site in the zone that its environment names; `None` if it names none.
pub fn records<'e>(endpoint: &'e Endpoint, site: &Site) -> Result<Option<SiteRecords<'e>>, Refusal> {
    let Some(zone) = &endpoint.zone else { return Ok(None) };
    let Some(domain) = &endpoint.domain else {
        return Err(("the name of the record is not set".to_owned(), "write `traffic: { domain: NAME }`"));
    };
    let Some(cluster) = site.cluster.as_deref() else { return Ok(None) };
    if !is_balanced(&cluster.settings) {
        let cause = "the cluster creates no load balancer for the service, so the target of the record is not known";
        let fix = "remove `traffic.existing`, or `sites[].cluster.ingress` and `sites[].cluster.address`";
        return Err((cause.to_owned(), fix));
    }
    let Some(service) = service(site) else { return Ok(None) };
    let named = |part, name: &str, is_shared| NamedRecord { part, name: plain(name), is_shared };
    let mut records = vec![named("record", domain, true)];
    records.extend(endpoint.base_domain.iter().map(|base| named("tenants-record", &format!("*.{base}"), true)));
    let own = endpoint.share.iter().map(|share| share.host.as_str());
    let own = own.filter(|host| !host.is_empty() && host.parse::<std::net::IpAddr>().is_err());
    records.extend(own.map(|host| named("name", host, false)));
    Ok(Some(SiteRecords { zone, domain: plain(domain), service, records }))
}

/// Whether clients reach the service by a load balancer that the cluster creates.
pub fn is_balanced(settings: &ClusterAccess) -> bool {
    settings.ingress.is_none() && (settings.address.is_none() || settings.load_balancer)
}

/// The Service for clients.
pub fn service(site: &Site) -> Option<ResourceId> {
    ResourceId::new(format!("{}/gateway/service", site.name)).ok()
}

/// A name as specs have it: in lower case, without a dot at its end.
pub fn plain(name: &str) -> String {
    name.trim_end_matches('.').to_ascii_lowercase()
}

/// The name without that of its zone: empty for the zone's own, `None` for one that is not in the zone. Both are as specs have them.
pub fn inside<'n>(name: &'n str, zone: &str) -> Option<&'n str> {
    if name == zone {
        return Some("");
    }
    name.strip_suffix(zone)?.strip_suffix('.').filter(|rest| !rest.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_in_their_zone() {
        for (name, expected) in [
            ("text.example.com", Some("text")),
            ("*.a.example.com", Some("*.a")),
            ("example.com", Some("")),
            ("notexample.com", None),
            (".example.com", None),
            ("text.example.org", None),
        ] {
            assert_eq!(inside(name, "example.com"), expected, "{name}");
        }
        assert_eq!(plain("Text.Example.com."), "text.example.com");
    }
}
