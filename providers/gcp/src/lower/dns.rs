//! The DNS records of the service, in an existing zone of Cloud DNS.

use serde_json::json;
use textnlp_cloud::document::capture;
use textnlp_cloud::endpoint::{ADDRESS, NamedRecord, single_records};
use textnlp_provider::component::Endpoint;

use super::{Lowering, output};

/// The id of a zone.
const ZONE: &str = "projects/{project}/managedZones/{name}";
/// The longest name of a zone: <https://cloud.google.com/dns/docs/reference/rest/v1/managedZones>.
const MOST: usize = 63;
/// Seconds that resolvers may keep an answer.
const TTL: u32 = 60;

impl Lowering<'_> {
    /// The records of the name that clients use and of those of tenants.
    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        let found = match single_records(endpoint, self.site, "Cloud DNS") {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err((cause, fix)) => return self.problem("zone", cause, fix),
        };
        let Some(zone) = zone(found.zone.as_str(), &self.site.account) else {
            let cause = format!("`{}` is not the name of a zone of Cloud DNS", found.zone);
            let fix = "write a name that `gcloud dns managed-zones list` prints, or `projects/PROJECT/managedZones/NAME` for a zone of another project";
            return self.problem("zone", cause, fix);
        };
        let address = output(&found.service, ADDRESS);
        for NamedRecord { part, name, .. } in &found.records {
            let spec = json!({ "zone": zone, "name": name, "type": "A", "ttl": TTL, "values": [address] });
            self.part(part, "gcp.dns-record", spec);
        }
    }
}

/// The id of a zone that is named by it, or by its name in the project; `None` if it is neither.
fn zone(named: &str, project: &str) -> Option<String> {
    let (project, name) = match capture(ZONE, named) {
        Some(found) => (found.get("project")?.clone(), found.get("name")?.clone()),
        None => (project.to_owned(), named.to_owned()),
    };
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    let is_name = (1..=MOST).contains(&name.len()) && name.bytes().all(fits);
    is_name.then(|| format!("projects/{project}/managedZones/{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zones_are_known_by_their_names_and_ids() {
        for (named, expected) in [
            ("company", Some("projects/p/managedZones/company")),
            ("projects/shared/managedZones/company", Some("projects/shared/managedZones/company")),
            ("example.com", None),
            ("Z0123456789ABCDEFGHIJ", None),
            ("projects/p/zones/company", None),
        ] {
            assert_eq!(zone(named, "p").as_deref(), expected, "{named}");
        }
    }
}
