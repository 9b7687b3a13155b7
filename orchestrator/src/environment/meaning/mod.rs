//! What the schema cannot say: whether the values of an environment make sense together.

mod alerts;
mod cluster;
mod names;
mod providers;
mod recovery;
mod rollout;
mod serving;
mod stores;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use serde_json::Value;

use super::model::*;
use super::problem::{Origin, Problem, Severity, nearest};
use super::tree::{Node, NodeKind};
use super::units::cut;

/// What the providers of this program offer; the caller knows them.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    /// By provider. Empty means that nothing is known, and nothing is said about providers.
    pub providers: BTreeMap<String, Offer>,
    /// What `provider: auto` becomes, and what was seen.
    pub detected: Option<(String, String)>,
}

/// What one provider offers.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Whether it is part of this program.
    pub linked: bool,
    /// What to do when it is not: the command that brings it.
    pub how_to_get: String,
    /// The runtimes that it can use today.
    pub runtimes: BTreeSet<String>,
    /// The choices that it can make true today, as `field=word`: `database.kind=sqlite`, `tls.mode=local-ca`. A field that is not named
    /// here is not limited.
    pub choices: BTreeSet<String>,
}

/// Puts a provider in place of `auto`.
pub(crate) fn detect_providers(tree: &mut Node, catalogue: &Catalogue, problems: &mut Vec<Problem>) {
    let NodeKind::Map(entries) = &mut tree.kind else { return };
    let Some(NodeKind::List(sites)) = entries.iter_mut().find(|e| e.key == "sites").map(|e| &mut e.node.kind) else {
        return;
    };
    for (i, site) in sites.iter_mut().enumerate() {
        let NodeKind::Map(fields) = &mut site.kind else { continue };
        let Some(provider) = fields.iter_mut().find(|e| e.key == "provider").map(|e| &mut e.node) else { continue };
        if provider.text() != Some("auto") {
            continue;
        }
        match &catalogue.detected {
            Some((name, because)) => {
                *provider = Node::scalar(Value::String(name.clone()), Origin::Detected { because: because.clone() });
            }
            None => {
                let cause = "no provider could be told from the surroundings";
                let fix = format!("name one, such as `sites[{i}].provider: onprem`");
                problems.push(Problem::error(provider.origin.clone(), format!("sites[{i}].provider"), cause, fix));
            }
        }
    }
}

/// An environment that is looked at, and what was found.
struct Meaning<'a> {
    environment: &'a Environment,
    tree: &'a Node,
    problems: &'a mut Vec<Problem>,
}

/// Adds everything that does not make sense.
pub(crate) fn check(environment: &Environment, tree: &Node, catalogue: &Catalogue, problems: &mut Vec<Problem>) {
    let mut meaning = Meaning { environment, tree, problems };
    meaning.sites();
    meaning.proxy_of_pods();
    meaning.ports();
    meaning.models();
    meaning.server();
    meaning.receivers();
    meaning.stores();
    meaning.tls();
    meaning.scaling();
    meaning.traffic();
    meaning.dns();
    meaning.recovery();
    meaning.rollout();
    meaning.gates();
    meaning.account();
    meaning.phase();
    meaning.providers(catalogue);
}

impl Meaning<'_> {
    fn say(&mut self, severity: Severity, path: &str, cause: impl Into<String>, fix: impl Into<String>) {
        let origin = match self.tree.find(path) {
            Some(node) => node.origin.clone(),
            // Nobody wrote it: the nearest thing that somebody did write is where it would stand.
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

    /// Whether somebody wrote a value there, in whatever layer.
    fn written(&self, path: &str) -> bool {
        self.tree.find(path).is_some_and(|n| !matches!(n.origin, Origin::Default { .. }))
    }

    fn sites(&mut self) {
        let e = self.environment;
        let mut seen = BTreeMap::new();
        for (i, site) in e.sites.iter().enumerate() {
            if let Some(first) = seen.insert(site.name.clone(), i) {
                let cause = format!("`sites[{first}]` has the name `{}` too", site.name);
                self.error(&format!("sites[{i}].name"), cause, "give each site a name of its own");
            }
            if site.name.as_str() == WITNESS && e.witness_place().is_some() {
                let cause = "this is the name of the place that holds the witness and the front";
                self.error(&format!("sites[{i}].name"), cause, "give the site another name");
            }
            if let Some(host) = site.host.as_deref() {
                self.host(&format!("sites[{i}].host"), host);
            }
            self.cluster_access(i, site);
            if site.region.is_empty() || site.region.chars().any(|c| c.is_whitespace() || c.is_control()) {
                self.error(
                    &format!("sites[{i}].region"),
                    "this is not the name of a region",
                    "write the provider's own name, or `local`",
                );
            }
            if site.role != Role::Primary && site.services.contains(&Service::DatabasePrimary) {
                let cause = format!("the site is {}, but holds the database that is written", site.role);
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

    /// Sites that share a machine share its ports.
    fn ports(&mut self) {
        let e = self.environment;
        let mut taken: BTreeMap<(String, u16), String> = BTreeMap::new();
        let mut wanted = Vec::new();
        for (i, site) in e.sites.iter().enumerate().filter(|(_, s)| s.serves()) {
            let machine = format!("{}/{}/{}", site.provider, site.account.as_deref().unwrap_or_default(), site.region);
            // Only local processes listen on the machine itself; elsewhere each site has addresses of its own.
            let machine = if site.region == "local" && !site.is_in_cluster() {
                machine
            } else {
                format!("{machine}/{}", site.name)
            };
            let own = |field: &str, general: &str, is_own: bool| {
                if is_own { format!("sites[{i}].{field}") } else { general.to_owned() }
            };
            let api = own("port", "server.api.port", site.port.is_some());
            wanted.push((machine.clone(), site.port.unwrap_or(e.server.api.port), api));
            let metrics = own("metrics_port", "server.monitoring.metrics_port", site.metrics_port.is_some());
            wanted.push((machine, site.metrics_port.unwrap_or(e.server.monitoring.metrics_port), metrics));
        }
        if let Some(place) = e.witness_place() {
            let machine = format!("{}/{}/{}", place.provider, place.account.unwrap_or_default(), place.region);
            wanted.push((machine.clone(), e.traffic.port, "traffic.port".to_owned()));
            wanted.push((machine, e.traffic.metrics_port, "traffic.metrics_port".to_owned()));
        } else {
            for path in ["traffic.port", "traffic.metrics_port"] {
                if !self.written(path) {
                    continue;
                }
                let cause = "only sites that fail over to one another have a front, and nothing else listens there";
                self.warn(path, cause, "remove it, or set `dr.mode` and `traffic.mode: gateway`");
            }
        }
        for (machine, port, path) in wanted {
            if let Some(first) = taken.insert((machine, port), path.clone()) {
                let cause = if first == path {
                    format!("two sites of one machine want port {port}")
                } else {
                    format!("port {port} is wanted by `{first}` too")
                };
                self.error(&path, cause, "give each its own port; in a site: `port` and `metrics_port`");
            } else if port < 1024 && self.written(&path) {
                self.warn(
                    &path,
                    format!("port {port} needs a privilege on most machines"),
                    "use a port from 1024 up unless that is granted",
                );
            }
        }
    }

    fn account(&mut self) {
        let e = self.environment;
        for tag in &e.account.mandatory_tags {
            if !e.tags.contains_key(tag) && !e.sites.iter().all(|s| s.tags.contains_key(tag)) {
                self.error(
                    "tags",
                    format!("the account demands the tag `{}`", cut(tag)),
                    format!("add `{}: …`", cut(tag)),
                );
            }
        }
        let of_sites =
            e.sites.iter().enumerate().flat_map(|(i, s)| s.tags.iter().map(move |t| (format!("sites[{i}].tags"), t)));
        let all: Vec<_> = e.tags.iter().map(|t| ("tags".to_owned(), t)).chain(of_sites).collect();
        for (path, (key, value)) in all {
            if key.starts_with("textnlp-") {
                self.error(&path, format!("`{}` is one of our own tags", cut(key)), "choose another name");
            } else if key.is_empty()
                || key.len() > 63
                || value.len() > 255
                || key.chars().chain(value.chars()).any(char::is_control)
            {
                // What every cloud takes: 63 characters of key and 255 of value.
                self.error(
                    &path,
                    format!("the tag `{}` is not accepted everywhere", cut(key)),
                    "use keys up to 63 and values up to 255 characters",
                );
            }
        }
        const ROLES: [&str; 4] = ["devops", "security", "database", "network"];
        for role in e.prerequisites.people.keys().filter(|r| !ROLES.contains(&r.as_str())) {
            let fix = nearest(role, ROLES)
                .map_or_else(|| format!("the roles are `{}`", ROLES.join("`, `")), |n| format!("did you mean `{n}`?"));
            self.error(
                &format!("prerequisites.people.{role}"),
                format!("`{}` is not a role that we ask for", cut(role)),
                fix,
            );
        }
    }

    fn phase(&mut self) {
        let e = self.environment;
        if !e.phase.is_production() {
            return;
        }
        if e.data == DataProtection::Disposable {
            self.warn("data", format!("in phase {} people rely on what is stored", e.phase), "write `data: protected`");
        }
        if !e.backup.enabled {
            self.warn(
                "backup.enabled",
                format!("in phase {} nothing would bring lost data back", e.phase),
                "write `enabled: true`",
            );
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
            let cause = format!("nobody is named for {}", missing.join(", "));
            self.say(Severity::Note, "prerequisites.people", cause, "name who is called at night");
        }
    }
}
