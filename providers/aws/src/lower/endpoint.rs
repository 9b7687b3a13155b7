//! Traffic of clients: the load balancer of the service, which the controllers of the cluster create, and its DNS record.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::cluster::{Balancer, ClusterAccess};
use textnlp_provider::component::{ComponentSpec, Endpoint};
use textnlp_provider::{Component, ResourceId, Site};

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
/// Seconds that resolvers may keep a CNAME. An alias has the time of its target.
const TTL: u32 = 60;
/// The output of a Service with the name of its load balancer.
const ADDRESS: &str = "address";

/// The part with the certificate that the load balancer shows.
const CERTIFICATE: &str = "certificate";
/// TLS 1.2 and 1.3 with forward secrecy
/// (<https://docs.aws.amazon.com/elasticloadbalancing/latest/network/describe-ssl-policies.html>).
const TLS_POLICY: &str = "ELBSecurityPolicy-TLS13-1-2-2021-06";
/// The longest first name of a certificate:
/// <https://docs.aws.amazon.com/acm/latest/APIReference/API_RequestCertificate.html>.
const LONGEST_NAME: usize = 64;

/// Whether clients reach the service by a load balancer that the cluster creates.
fn is_balanced(settings: &ClusterAccess) -> bool {
    settings.ingress.is_none() && (settings.address.is_none() || settings.load_balancer)
}

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

/// The Service for clients, which the provider of the objects in the cluster creates.
fn service(site: &Site) -> Option<ResourceId> {
    ResourceId::new(format!("{}/gateway/service", site.name)).ok()
}

impl Lowering<'_> {
    /// The records of the name that clients use and of those of tenants, in an existing zone.
    pub(super) fn endpoint(&mut self, endpoint: &Endpoint) {
        let Some(zone) = &endpoint.zone else { return };
        let Some(domain) = &endpoint.domain else {
            return self.problem("zone", "the name of the record is not set", "write `traffic: { domain: NAME }`");
        };
        let Some(cluster) = self.site.cluster.as_deref() else { return };
        if cluster.replicates {
            let cause = "a failover moves clients by the global endpoint, and does not change records of Route 53";
            return self.problem("zone", cause, "remove `traffic.existing`, and point the name at the global endpoint");
        }
        if !is_balanced(&cluster.settings) {
            let cause =
                "the cluster creates no load balancer for the service, so the target of the record is not known";
            let fix = "remove `traffic.existing`, or `sites[].cluster.ingress` and `sites[].cluster.address`";
            return self.problem("zone", cause, fix);
        }
        let Some(service) = service(self.site) else { return };
        let address = output(&service, ADDRESS);
        let alias = zones::of_network_balancers(&self.site.region)
            .map(|zone| json!({ "name": address, "zone": zone, "health": true }));
        let (kind, ttl, values): (_, _, Vec<&Value>) = match alias {
            Some(_) => ("A", None, Vec::new()),
            None => ("CNAME", Some(TTL), vec![&address]),
        };
        let tenants = endpoint.base_domain.as_ref().map(|base| ("tenants-record", format!("*.{base}")));
        if endpoint.managed_certificate {
            self.certificate(endpoint, zone.as_str(), domain);
        }
        for (part, name) in [("record", domain.clone())].into_iter().chain(tenants) {
            let record = json!({
                "zone": zone.as_str().trim_start_matches("/hostedzone/"),
                "name": name.trim_end_matches('.').to_ascii_lowercase(),
                "type": kind,
                "set": null,
                "weight": null,
                "failover": null,
                "ttl": ttl,
                "values": values,
                "alias": alias,
                "health_check": null,
            });
            self.part(part, RECORD, &record);
        }
    }

    /// The certificate of the names of the service, which records of the zone validate.
    fn certificate(&mut self, endpoint: &Endpoint, zone: &str, domain: &str) {
        let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
        let name = plain(domain);
        if name.len() > LONGEST_NAME {
            let cause = format!("the first name of a certificate has {LONGEST_NAME} characters at most");
            return self.problem("certificate", cause, "write a shorter `traffic.domain`");
        }
        let tenants = endpoint.base_domain.as_ref().map(|base| format!("*.{}", plain(base)));
        let mut names: Vec<String> = std::iter::once(name).chain(tenants).collect();
        names.dedup();
        let spec = json!({ "names": names, "zone": zone.trim_start_matches("/hostedzone/"), "records": true });
        self.part(CERTIFICATE, "aws.certificate", &spec);
    }
}
