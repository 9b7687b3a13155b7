//! The DNS records of the service, in an existing zone of Cloud DNS.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_cloud::document::capture;
use textnlp_cloud::endpoint::{ADDRESS, NamedRecord, records};
use textnlp_provider::component::Endpoint;

use super::{Lowering, output};
use crate::declare::segment;
use crate::names;

/// The id of a zone.
const ZONE: &str = "projects/{project}/managedZones/{name}";
/// The longest name of a zone: <https://cloud.google.com/dns/docs/reference/rest/v1/managedZones>.
const MOST: usize = 63;
/// Seconds that resolvers may keep an answer.
const TTL: u32 = 60;
/// How Cloud DNS probes each site, and how many failures in a row count: a minute. From regions, that is the shortest interval
/// (<https://cloud.google.com/compute/docs/reference/rest/v1/healthChecks>). A site without a ready pod accepts no connection.
pub(super) const HEALTH_PATH: &str = "/health";
const PROBE_SECONDS: u32 = 30;
const PROBE_TIMEOUT_SECONDS: u32 = 5;
const PROBES: u32 = 2;
/// How long a lost site is in answers, before resolvers ask again.
pub(crate) const NOTICES_AFTER: Duration = Duration::from_secs((PROBE_SECONDS * PROBES) as u64);
/// The regions that probes come from: three, wherever the sites are, so that all sites have equal health checks.
const PROBE_REGIONS: [&str; 3] = ["us-central1", "us-east1", "us-west1"];
/// The longest name of a health check.
const MOST_OF_CHECK: usize = 63;

impl Lowering<'_> {
    /// The records of the name that clients use and of those of tenants.
    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        // A zone at another provider has its own records, and those of a site elsewhere are expanded with the zone's project only.
        if endpoint.share.as_ref().is_some_and(|share| share.is_at_other_provider) != self.is_elsewhere {
            return;
        }
        let found = match records(endpoint, self.site) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err((cause, fix)) => return self.problem("zone", cause, fix),
        };
        let project = if self.is_elsewhere { "" } else { self.site.account.as_str() };
        let Some(zone) = zone(found.zone.as_str(), project) else {
            let cause = format!("`{}` is not the name of a zone of Cloud DNS", found.zone);
            let fix = "write a name that `gcloud dns managed-zones list` prints, or `projects/PROJECT/managedZones/NAME` for a zone of another project";
            return self.problem("zone", cause, fix);
        };
        if self.is_elsewhere && segment(&zone, "projects").is_empty() {
            let cause = format!("`{}` names no project, and this site is not on Google Cloud", found.zone);
            return self.problem("zone", cause, "write `traffic.existing: projects/PROJECT/managedZones/NAME`");
        }
        let address = output(&found.service, ADDRESS);
        let check = endpoint.share.as_ref().map(|_| {
            json!({
                "project": segment(&zone, "projects"),
                "name": names::of(self.site, "health", MOST_OF_CHECK),
                "host": found.domain,
                "port": endpoint.port,
                "path": HEALTH_PATH,
                "interval": PROBE_SECONDS,
                "timeout": PROBE_TIMEOUT_SECONDS,
                "failures": PROBES,
                "successes": PROBES,
                "regions": PROBE_REGIONS,
            })
        });
        let check = check.and_then(|check| self.part("health", "gcp.health-check", check));
        for NamedRecord { part, name, is_shared } in &found.records {
            let share = endpoint.share.as_ref().filter(|_| *is_shared);
            let check = check.as_ref().filter(|_| *is_shared).map_or(Value::Null, |check| output(check, "id"));
            let spec = json!({
                "zone": zone,
                "name": name,
                "type": "A",
                "ttl": TTL,
                "values": [address],
                "site": share.map(|_| self.site.name.as_str()),
                "weight": share.map(|share| share.weight),
                "health_check": check,
            });
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
