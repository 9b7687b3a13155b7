//! Semantic checks: whether the values of an environment are consistent with each other.

mod alerts;
mod cluster;
mod detect;
mod endpoint;
mod features;
mod names;
mod providers;
mod recovery;
mod rollout;
mod serving;
mod stores;

use std::collections::BTreeMap;
use std::net::IpAddr;

use textnlp_provider::Capabilities;

use super::library::BUILT_IN_MARK;
use super::model::*;
use super::problem::{Origin, Problem, Severity, nearest};
use super::tree::Node;
use super::units::cut;

pub(crate) use detect::detect_providers;
pub use detect::{Detected, DetectionError, DetectionInputs, ProviderEvidence};
pub use stores::{check_endpoint, is_region};

/// The lengths of a session of a role, in seconds: <https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html>.
const SESSION_SECONDS: std::ops::RangeInclusive<u64> = 900..=43_200;

/// The providers of this program and their offers; the caller passes it.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// Offers by provider. Empty: nothing is known, so providers are not checked.
    pub providers: BTreeMap<String, Offer>,
    /// The evidence for `provider: auto`; `None` if none was collected.
    pub surroundings: Option<DetectionInputs>,
}

/// What one provider offers.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Why this program does not include the provider, and how to get it; `None` if it does.
    pub missing: Option<String>,
    /// What the provider supports; everything else is rejected.
    pub capabilities: Capabilities,
    /// The region that this machine's settings name; it replaces `local` where `--provider` selects this provider.
    pub region: Option<String>,
}

/// An environment under check, and the problems found.
struct Checker<'a> {
    environment: &'a Environment,
    tree: &'a Node,
    problems: &'a mut Vec<Problem>,
}

/// Appends every inconsistency.
pub(crate) fn check(environment: &Environment, tree: &Node, catalogue: &Catalogue, problems: &mut Vec<Problem>) {
    let mut meaning = Checker { environment, tree, problems };
    meaning.sites();
    meaning.proxy_of_pods();
    meaning.registry();
    meaning.ports();
    meaning.models();
    meaning.server();
    meaning.features();
    meaning.receivers();
    meaning.stores();
    meaning.tls();
    meaning.scaling();
    meaning.traffic();
    meaning.dns();
    meaning.zone(catalogue);
    meaning.recovery(catalogue);
    meaning.rollout();
    meaning.gates();
    meaning.account();
    meaning.phase();
    meaning.providers(catalogue);
}

impl Checker<'_> {
    fn say(&mut self, severity: Severity, path: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let origin = match self.tree.find(path) {
            Some(node) => node.origin.clone(),
            // The value is not written anywhere: the origin is its nearest ancestor that is.
            None => self.tree.nearest(path).origin.clone(),
        };
        self.problems.push(Problem::error(origin, path, cause, fix).at(severity));
    }

    fn error(&mut self, path: &str, cause: impl Into<String>, fix: impl Into<String>) {
        self.say(Severity::Error, path, cause, fix);
    }

    fn warn(&mut self, path: &str, cause: impl Into<String>, fix: impl Into<String>) {
        self.say(Severity::Warning, path, cause, fix);
    }

    /// Whether any layer sets a value there.
    fn written(&self, path: &str) -> bool {
        self.tree.find(path).is_some_and(|n| !matches!(n.origin, Origin::Default { .. }))
    }

    /// Whether a value is a default or comes from a built-in environment.
    fn is_shipped(&self, path: &str) -> bool {
        self.tree.find(path).is_none_or(|node| match &node.origin {
            Origin::Default { .. } => true,
            Origin::File { file, .. } => file.starts_with(BUILT_IN_MARK),
            _ => false,
        })
    }

    fn sites(&mut self) {
        let e = self.environment;
        let mut seen = BTreeMap::new();
        for (i, site) in e.sites.iter().enumerate() {
            if let Some(first) = seen.insert(site.name.clone(), i) {
                let cause = format!("`sites[{first}]` has the name `{}` too", site.name);
                self.error(&format!("sites[{i}].name"), cause, "give each site a name of its own");
            }
            if site.name.as_str() == WITNESS {
                let cause = "the name is reserved for the location of the witness and the global endpoint";
                self.error(&format!("sites[{i}].name"), cause, "give the site another name");
            }
            if let Some(host) = site.host.as_deref() {
                self.host(&format!("sites[{i}].host"), host);
            }
            self.cluster_access(i, site);
            self.inference_endpoint(i, site);
            self.region(&format!("sites[{i}].region"), Some(&site.region));
            if site.role != Role::Primary && site.services.contains(&Service::DatabasePrimary) {
                let cause = format!("the site is {}, but has the writable database", site.role);
                self.error(
                    &format!("sites[{i}].services"),
                    cause,
                    "write `database-replica`, or make the site primary",
                );
            }
        }
        let primaries = e.sites.iter().filter(|s| s.role == Role::Primary).count();
        if primaries != 1 {
            let fix = "give exactly one site `role: primary` and the others `secondary` or `standby`";
            self.error("sites", format!("{primaries} sites are primary"), fix);
        }
    }

    fn host(&mut self, path: &str, host: &str) {
        if host.parse::<IpAddr>().is_err() && host != "localhost" {
            let cause = format!("`{}` is not an address of this machine", cut(host));
            self.error(
                path,
                cause,
                "write an IP address, such as `0.0.0.0` for all or `127.0.0.1` for this machine only",
            );
        }
    }

    /// Checks that sites on one machine use different ports.
    fn ports(&mut self) {
        let e = self.environment;
        let mut taken: BTreeMap<(String, u16), String> = BTreeMap::new();
        let mut wanted = Vec::new();
        for (i, site) in e.sites.iter().enumerate().filter(|(_, s)| s.serves()) {
            let machine = format!("{}/{}/{}", site.provider, site.account.as_deref().unwrap_or_default(), site.region);
            // Only local processes share the machine's ports; elsewhere each site has its own addresses.
            let machine = if site.region == "local" && site.is_on_machine() {
                machine
            } else {
                format!("{machine}/{}", site.name)
            };
            let own = |field: &str, general: &str, is_own: bool| {
                if is_own { format!("sites[{i}].{field}") } else { general.to_owned() }
            };
            let api = own("port", "server.api.port", site.port.is_some());
            // The port of a cluster is that of its Service.
            let is_host = !site.is_in_cluster();
            wanted.push((machine.clone(), site.port.unwrap_or(e.server.api.port), api, is_host));
            let metrics = own("metrics_port", "server.monitoring.metrics_port", site.metrics_port.is_some());
            wanted.push((machine, site.metrics_port.unwrap_or(e.server.monitoring.metrics_port), metrics, is_host));
        }
        if let Some(place) = e.witness_place() {
            let machine = format!("{}/{}/{}", place.provider, place.account.unwrap_or_default(), place.region);
            wanted.push((machine.clone(), e.traffic.port, "traffic.port".to_owned(), true));
            wanted.push((machine, e.traffic.metrics_port, "traffic.metrics_port".to_owned(), true));
        } else {
            let gateway = (e.traffic.mode == TrafficMode::Gateway).then_some("traffic.mode");
            for path in ["traffic.port", "traffic.metrics_port"].into_iter().chain(gateway) {
                if !self.written(path) {
                    continue;
                }
                let cause = "only sites that fail over to one another have a global endpoint";
                self.warn(path, cause, "remove it, or set `dr.mode` and `traffic.mode: gateway` for two or more sites");
            }
        }
        for (machine, port, path, is_host) in wanted {
            if let Some(first) = taken.insert((machine, port), path.clone()) {
                // If only one of the two was written for this environment, the problem is reported there.
                let (path, first) =
                    if self.is_shipped(&path) && !self.is_shipped(&first) { (first, path) } else { (path, first) };
                let cause = if first == path {
                    format!("two sites of one machine use port {port}")
                } else {
                    format!("port {port} is also used by `{first}`")
                };
                self.error(&path, cause, "give each its own port; in a site: `port` and `metrics_port`");
            } else if is_host && port < 1024 && self.written(&path) {
                self.warn(
                    &path,
                    format!("port {port} needs root or CAP_NET_BIND_SERVICE on most machines"),
                    "use a port from 1024 up unless that is granted",
                );
            }
        }
    }

    /// A region is a part of the addresses that the credentials of a cloud are sent to.
    fn region(&mut self, field: &str, region: Option<&String>) {
        if region.is_some_and(|region| !is_region(region)) {
            // Elsewhere only a provider has regions.
            let fix = match field.starts_with("sites[") || field.starts_with("dr.witness") {
                true => "write the provider's own name; your own machines have `local`",
                false => "write the provider's own name",
            };
            self.error(field, "this is not the name of a region", fix);
        }
    }

    fn account(&mut self) {
        let e = self.environment;
        for tag in &e.account.mandatory_tags {
            if !e.tags.contains_key(tag) && !e.sites.iter().all(|s| s.tags.contains_key(tag)) {
                self.error(
                    "tags",
                    format!("the account requires the tag `{}`", cut(tag)),
                    format!("add `{}: …`", cut(tag)),
                );
            }
        }
        let account = &e.account;
        if account.existing_role.is_none() && e.sites.iter().all(|site| site.existing.role.is_none()) {
            let details = [
                ("external_id", account.external_id.is_some()),
                ("mfa_serial", account.mfa_serial.is_some()),
                ("session_duration", account.session_duration.is_some()),
            ];
            for (field, _) in details.into_iter().filter(|(_, is_set)| *is_set) {
                let cause = "it has no effect without a role to assume";
                self.error(&format!("account.{field}"), cause, "write `account.existing_role: ARN`, or remove it");
            }
        }
        if account.session_duration.is_some_and(|span| !SESSION_SECONDS.contains(&span.as_seconds())) {
            let fix = "write 15m to 12h, and at most the maximum session duration of the role";
            self.error("account.session_duration", "no role has a session of this length", fix);
        }
        let of_sites =
            e.sites.iter().enumerate().flat_map(|(i, s)| s.tags.iter().map(move |t| (format!("sites[{i}].tags"), t)));
        let all: Vec<_> = e.tags.iter().map(|t| ("tags".to_owned(), t)).chain(of_sites).collect();
        for (path, (key, value)) in all {
            if key.starts_with("textnlp-") {
                self.error(&path, format!("`{}` is a built-in tag", cut(key)), "choose another name");
            } else if key.is_empty()
                || key.len() > 63
                || value.len() > 255
                || key.chars().chain(value.chars()).any(char::is_control)
            {
                // The limits that every cloud accepts: 63 characters for a key and 255 for a value.
                self.error(
                    &path,
                    format!("the tag `{}` is not accepted everywhere", cut(key)),
                    "use keys up to 63 and values up to 255 characters",
                );
            } else if e.sites.iter().any(SiteSettings::is_in_cluster)
                && !(cluster::is_label_value(key) && cluster::is_label_value(value))
            {
                self.error(
                    &path,
                    format!("`{}: {}` cannot be a label of objects in a cluster", cut(key), cut(value)),
                    "use letters, digits, `-`, `_` and `.`, at most 63, with a letter or digit at both ends",
                );
            }
        }
        // The names that `useradd` accepts everywhere.
        let is_name = |name: &String| {
            name.len() <= 32
                && name.starts_with(|c: char| c.is_ascii_lowercase() || c == '_')
                && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
        };
        if let Some(user) = e.prerequisites.user.as_ref().filter(|user| !is_name(user)) {
            let cause = format!("`{}` is not the name of a service user", cut(user));
            self.error("prerequisites.user", cause, "write a name such as `textnlp`");
        }
        const ROLES: [&str; 4] = ["devops", "security", "database", "network"];
        for role in e.prerequisites.people.keys().filter(|r| !ROLES.contains(&r.as_str())) {
            let fix = nearest(role, ROLES)
                .map_or_else(|| format!("the roles are `{}`", ROLES.join("`, `")), |n| format!("did you mean `{n}`?"));
            self.error(&format!("prerequisites.people.{role}"), format!("`{}` is not an on-call role", cut(role)), fix);
        }
    }

    fn phase(&mut self) {
        let e = self.environment;
        if !e.phase.is_production() {
            return;
        }
        if e.data == DataProtection::Disposable {
            self.warn("data", format!("in phase {} stored data must be protected", e.phase), "write `data: protected`");
        }
        if !e.backup.enabled && !e.has_cluster_with_external_database() {
            self.warn("backup.enabled", format!("phase {} needs backups", e.phase), "write `enabled: true`");
        }
        let replicated = [Phase::Pilot, Phase::ScaleUp, Phase::Enterprise];
        if replicated.contains(&e.phase) && e.scaling.min < 3 {
            self.error("scaling.min", format!("phase {} has at least 3 replicas", e.phase), "write `min: 3`");
        }
        if e.phase == Phase::MultiRegion && e.sites.len() < 2 {
            self.error("sites", "phase multi-region has at least 2 sites", "add a second site");
        }
        let missing: Vec<_> = ["devops", "security", "database", "network"]
            .into_iter()
            .filter(|r| !e.prerequisites.people.contains_key(*r))
            .collect();
        if !missing.is_empty() {
            let cause = format!("no on-call contact for {}", missing.join(", "));
            self.say(Severity::Note, "prerequisites.people", cause, "add an on-call contact");
        }
    }
}
