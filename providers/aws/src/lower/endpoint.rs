//! Traffic of clients: the load balancer of the service, which the controllers of the cluster create, and its DNS record.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_cloud::endpoint::{ADDRESS, NamedRecord, is_balanced, plain, records, service};
use textnlp_provider::cluster::Balancer;
use textnlp_provider::component::{ComponentSpec, Endpoint, TrafficShare};
use textnlp_provider::{CloudId, Component, ResourceId, Site};

use super::{Lowering, RECORD, output};
use crate::tables::zones;
use crate::tags;

/// How the annotations start that both controllers read: that of EKS
/// (<https://cloud-provider-aws.sigs.k8s.io/service_controller/>) and the AWS Load Balancer Controller
/// (<https://kubernetes-sigs.github.io/aws-load-balancer-controller/latest/guide/service/annotations/>).
const ANNOTATION: &str = "service.beta.kubernetes.io/aws-load-balancer";
/// Seconds between two health checks of a node, and how many decide. The controller of EKS needs the same number for both decisions.
const CHECK_SECONDS: u32 = 10;
const CHECKS: u32 = 2;
/// Seconds that a load balancer needs besides.
const DELAY_SECONDS: u32 = 5;
/// Seconds that resolvers may keep an answer that is no alias. Weighted records of a name have one TTL, and the alias of a load balancer has
/// this one (<https://docs.aws.amazon.com/Route53/latest/APIReference/API_ResourceRecordSet.html>).
const TTL: u32 = 60;
/// The weight of a site that is the only one.
const SINGLE_WEIGHT: u32 = 100;
/// The largest weight of a record:
/// <https://docs.aws.amazon.com/Route53/latest/APIReference/API_ResourceRecordSet.html>.
const MAX_WEIGHT: u32 = 255;
/// How Route 53 probes each site from several regions, and how many failures in a row count: half a minute
/// (<https://docs.aws.amazon.com/Route53/latest/DeveloperGuide/dns-failover-determining-health-of-endpoints.html>). A site without a ready
/// pod accepts no connection.
const HEALTH_PATH: &str = "/health";
const PROBE_SECONDS: u32 = 10;
const PROBES: u32 = 3;
/// How long a lost site is in answers, before resolvers ask again.
pub(crate) const NOTICES_AFTER: Duration = Duration::from_secs((PROBE_SECONDS * PROBES) as u64);
/// The part with the certificate that the load balancer shows.
const CERTIFICATE: &str = "certificate";
/// TLS 1.2 and 1.3 with forward secrecy
/// (<https://docs.aws.amazon.com/elasticloadbalancing/latest/network/describe-ssl-policies.html>).
const TLS_POLICY: &str = "ELBSecurityPolicy-TLS13-1-2-2021-06";
/// The longest first name of a certificate:
/// <https://docs.aws.amazon.com/acm/latest/APIReference/API_RequestCertificate.html>.
const LONGEST_NAME: usize = 64;

/// A Network Load Balancer for the service of a site, if it has one: it passes TLS through to the pods, or shows clients a
/// managed certificate and encrypts again to the pods.
pub(crate) fn balancer(component: &Component, site: &Site) -> Option<Balancer> {
    site.cluster.as_ref().filter(|cluster| is_balanced(&cluster.settings))?;
    let mut all = site.tags.clone();
    all.insert(tags::ENVIRONMENT.to_owned(), site.environment.to_string());
    all.insert(tags::RESOURCE.to_owned(), service(site)?.to_string());
    // Tags of a cluster's objects are labels too, which have neither commas nor equals signs.
    let tags: Vec<String> = all.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
    let annotations = [
        ("type", "nlb".to_owned()),
        // Without it the AWS Load Balancer Controller creates an internal one.
        ("scheme", "internet-facing".to_owned()),
        // Nodes are targets in every cluster; so the addresses of clients are kept without a setting.
        ("nlb-target-type", "instance".to_owned()),
        // Few nodes are in few zones.
        ("cross-zone-load-balancing-enabled", "true".to_owned()),
        ("healthcheck-interval", CHECK_SECONDS.to_string()),
        ("healthcheck-healthy-threshold", CHECKS.to_string()),
        ("healthcheck-unhealthy-threshold", CHECKS.to_string()),
        ("additional-resource-tags", tags.join(",")),
    ];
    let named = |(name, value): (&str, Value)| (format!("{ANNOTATION}-{name}"), value);
    let mut annotations: BTreeMap<String, Value> =
        annotations.into_iter().map(|(name, value)| named((name, value.into()))).collect();
    if let ComponentSpec::Endpoint(Endpoint { managed_certificate: true, .. }) = &component.part {
        let certificate = ResourceId::part(&site.name, &component.name, CERTIFICATE).ok()?;
        annotations.extend(
            [
                ("ssl-cert", output(&certificate, "arn")),
                ("ssl-negotiation-policy", TLS_POLICY.into()),
                ("backend-protocol", "ssl".into()),
            ]
            .map(named),
        );
    }
    Some(Balancer { annotations, keeps_addresses: true, notices_after_seconds: CHECK_SECONDS * CHECKS + DELAY_SECONDS })
}

/// A zone's id as specs have it.
fn bare(zone: &CloudId) -> &str {
    zone.as_str().trim_start_matches("/hostedzone/")
}

impl Lowering<'_> {
    /// The records of the name that clients use and of those of tenants, in an existing zone.
    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        let found = match records(endpoint, self.site) {
            Ok(Some(found)) => found,
            Ok(None) => return,
            Err((cause, fix)) => return self.problem("zone", cause, fix),
        };
        let (zone, domain) = (found.zone, found.domain.as_str());
        if endpoint.managed_certificate {
            self.certificate(endpoint, zone, domain);
        }
        let single = TrafficShare {
            weight: SINGLE_WEIGHT,
            is_at_other_provider: false,
            host: String::new(),
            sites: BTreeMap::new(),
        };
        let share = endpoint.share.as_ref().unwrap_or(&single);
        if share.weight > MAX_WEIGHT {
            let cause = format!("the weight {} is above {MAX_WEIGHT}, the largest of Route 53", share.weight);
            self.problem("weight", cause, "write smaller `traffic.weights`: only their proportion counts");
        }
        let (region, site) = (&self.site.region, &self.site.name);
        let balancers = zones::of_network_balancers(region).filter(|_| !share.is_at_other_provider);
        if balancers.is_none() && !share.is_at_other_provider && endpoint.share.is_some() {
            let cause =
                format!("no alias is known for load balancers in `{region}`, and records of several sites need one");
            return self.problem("zone", cause, "remove `traffic.existing`, and use the global endpoint or `dns`");
        }
        let address = output(&found.service, ADDRESS);
        let alias = balancers.map(|balancers| json!({ "name": address, "zone": balancers, "health": true }));
        let (ttl, values): (_, Vec<&Value>) = match alias {
            Some(_) => (None, Vec::new()),
            None => (Some(TTL), vec![&address]),
        };
        // A single site has a weight too, so that another one can be added: Route 53 accepts no weighted record beside one without.
        let record = |name: &str, is_shared: bool, check: Option<&ResourceId>| {
            json!({
                "zone": bare(zone),
                "name": name,
                "type": if alias.is_some() || share.is_at_other_provider { "A" } else { "CNAME" },
                "set": is_shared.then_some(site),
                "weight": is_shared.then_some(share.weight),
                "failover": null,
                "ttl": ttl,
                "values": values,
                "alias": alias,
                "health_check": check.map(|check| output(check, "id")),
            })
        };
        let check = endpoint.share.as_ref().map(|_| {
            json!({
                "host": address,
                // A load balancer with a DNS name is probed by that name.
                "name": share.is_at_other_provider.then_some(domain),
                "port": endpoint.port,
                "path": HEALTH_PATH,
                "interval": PROBE_SECONDS,
                "failures": PROBES,
            })
        });
        let check = check.and_then(|check| self.part("health", "aws.health-check", &check));
        for NamedRecord { part, name, is_shared } in &found.records {
            self.part(part, RECORD, &record(name, *is_shared, check.as_ref().filter(|_| *is_shared)));
        }
    }

    /// The certificate of the names of the service, which records of the zone validate.
    fn certificate(&mut self, endpoint: &Endpoint, zone: &CloudId, domain: &str) {
        let name = domain.to_owned();
        if name.len() > LONGEST_NAME {
            let cause = format!("the first name of a certificate has {LONGEST_NAME} characters at most");
            return self.problem("certificate", cause, "write a shorter `traffic.domain`");
        }
        let tenants = endpoint.base_domain.as_ref().map(|base| format!("*.{}", plain(base)));
        let mut names: Vec<String> = std::iter::once(name).chain(tenants).collect();
        names.dedup();
        let spec = json!({ "names": names, "zone": bare(zone), "records": true });
        self.part(CERTIFICATE, "aws.certificate", &spec);
    }
}
