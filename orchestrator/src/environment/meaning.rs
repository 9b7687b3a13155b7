//! What the schema cannot say: whether the values of an environment make sense together.

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

struct Meaning<'a> {
    environment: &'a Environment,
    tree: &'a Node,
    problems: &'a mut Vec<Problem>,
}

/// Adds everything that does not make sense.
pub(crate) fn check(environment: &Environment, tree: &Node, catalogue: &Catalogue, problems: &mut Vec<Problem>) {
    let mut meaning = Meaning { environment, tree, problems };
    meaning.sites();
    meaning.ports();
    meaning.models();
    meaning.server();
    meaning.stores();
    meaning.tls();
    meaning.scaling();
    meaning.traffic();
    meaning.recovery();
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
            if let Some(host) = site.host.as_deref() {
                self.host(&format!("sites[{i}].host"), host);
            }
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
            let machine = if site.region == "local" { machine } else { format!("{machine}/{}", site.name) };
            let own = |field: &str, general: &str, is_own: bool| {
                if is_own { format!("sites[{i}].{field}") } else { general.to_owned() }
            };
            let api = own("port", "server.api.port", site.port.is_some());
            wanted.push((machine.clone(), site.port.unwrap_or(e.server.api.port), api));
            let metrics = own("metrics_port", "server.monitoring.metrics_port", site.metrics_port.is_some());
            wanted.push((machine, site.metrics_port.unwrap_or(e.server.monitoring.metrics_port), metrics));
        }
        if let Some(witness) = &e.dr.witness
            && let Some(port) = witness.port
        {
            wanted.push((format!("{}//{}", witness.provider, witness.region), port, "dr.witness.port".to_owned()));
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

    fn models(&mut self) {
        let e = self.environment;
        let mut seen = BTreeMap::new();
        for (i, model) in e.models.iter().enumerate() {
            let at = |field: &str| format!("models[{i}].{field}");
            if let Some(first) = seen.insert(model.name.clone(), i) {
                self.error(
                    &at("name"),
                    format!("`models[{first}]` has the name `{}` too", cut(&model.name)),
                    "give each model a name of its own",
                );
            }
            let plain = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
            let parts_fine = model.name.split('/').all(|p| !p.is_empty() && !p.starts_with('.'));
            if !model.name.chars().all(plain) || !parts_fine {
                self.error(
                    &at("name"),
                    format!("`{}` cannot be the name of a model", cut(&model.name)),
                    "use letters, digits, `.`, `_`, `-`, and `/` between parts",
                );
            }
            if let Some(source) = &model.source {
                self.source(&at("source"), source);
            }
            if let Some(digest) = &model.digest
                && !is_digest(digest)
            {
                self.error(&at("digest"), "this is not a digest", "write `sha256:` and 64 hexadecimal digits");
            }
        }
        let defaults: Vec<usize> =
            (0..e.models.len()).filter(|i| e.models[*i].role == Some(ModelRole::Default)).collect();
        match defaults.as_slice() {
            [_] => {}
            [] if e.models.len() <= 1 => {}
            [] => self.warn(
                "models",
                format!("no model has `role: default`; `{}` answers when none is named", cut(&e.models[0].name)),
                "give one model `role: default`",
            ),
            [_, second, ..] => self.error(
                &format!("models[{second}].role"),
                format!("{} models are the default", defaults.len()),
                "leave `role: default` with one",
            ),
        }
    }

    fn source(&mut self, path: &str, source: &str) {
        let known = ["bundled", "file", "https", "hf", "catalogue"];
        match source.split_once(':') {
            None if source == "bundled" => {}
            None => {
                if let Some(near) = nearest(source, ["bundled"]) {
                    self.error(path, format!("`{}` is not a source", cut(source)), format!("did you mean `{near}`?"));
                }
            }
            Some(("http", _)) => {
                self.error(path, "the model would come over a line that anybody can change", "use `https:`")
            }
            Some((scheme, rest)) => {
                if rest.is_empty() || (scheme == "hf" && rest.split('/').count() != 2) {
                    self.error(
                        path,
                        format!("`{}` names no model", cut(source)),
                        "write `hf:ORG/NAME@REVISION`, `file:PATH` or `https://…`",
                    );
                } else if let (false, Some(near)) =
                    (known.contains(&scheme) || rest.starts_with("//"), nearest(scheme, known))
                {
                    self.error(
                        path,
                        format!("`{}:` is not a kind of source", cut(scheme)),
                        format!("did you mean `{near}:`?"),
                    );
                }
            }
        }
    }

    fn server(&mut self) {
        let (e, server) = (self.environment, &self.environment.server);
        self.host("server.api.host", &server.api.host);
        if server.api.timeout.as_seconds() == 0 {
            self.error("server.api.timeout", "no answer could be that fast", "write at least `1s`");
        }
        if server.api.max_request_size.0 < 1000 {
            self.error("server.api.max_request_size", "no request is that small", "write at least `1KB`");
        }
        if server.security.jwt_expiry.as_seconds() == 0 {
            self.error("server.security.jwt_expiry", "a token would be old when it is made", "write at least `1m`");
        }
        let header = &server.security.api_key_header;
        if !header.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_') {
            self.error(
                "server.security.api_key_header",
                format!("`{}` is not a header", cut(header)),
                "use letters, digits and hyphens",
            );
        }
        if server.security.jwt_secret.is_some() {
            let cause = "tokens are signed with a key pair that `up` makes; this secret is not used";
            self.warn("server.security.jwt_secret", cause, "remove it");
        }
        if e.phase > Phase::Development {
            if !server.security.api_keys_enabled {
                self.error(
                    "server.security.api_keys_enabled",
                    "anybody could generate without a key",
                    "only development may turn keys off",
                );
            }
        }
    }

    fn stores(&mut self) {
        let e = self.environment;
        let db = &e.database;
        let addressed = db.url.is_some()
            || db.host.is_some()
            || db.existing.is_some()
            || e.sites.iter().any(|s| s.existing.database.is_some());
        match (db.kind, db.hosting) {
            (DatabaseKind::Sqlite, Some(hosting)) => {
                self.error(
                    "database.hosting",
                    format!("SQLite is a file; nobody hosts it ({hosting})"),
                    "remove it, or use `kind: postgres`",
                );
            }
            (DatabaseKind::Sqlite, None) => {
                for (field, there) in [
                    ("url", db.url.is_some()),
                    ("host", db.host.is_some()),
                    ("password", db.password.is_some()),
                    ("existing", db.existing.is_some()),
                ] {
                    if there {
                        self.error(
                            &format!("database.{field}"),
                            "SQLite is a file of ours and has no address",
                            "remove it, or use `kind: postgres`",
                        );
                    }
                }
                if db.replicas > 0 {
                    self.error("database.replicas", "SQLite has no replicas", "remove it, or use `kind: postgres`");
                }
                if e.scaling.max.unwrap_or(e.scaling.min) > 1 && e.sites.iter().any(|s| s.region != "local") {
                    self.error(
                        "database.kind",
                        "replicas on several machines cannot share a file",
                        "use `kind: postgres`",
                    );
                }
            }
            (DatabaseKind::Postgres, None) if !addressed => {
                self.error(
                    "database.hosting",
                    "nobody says who runs PostgreSQL",
                    "write `hosting: managed`, `cluster` or `external`",
                );
            }
            (DatabaseKind::Postgres, Some(Hosting::External)) if !addressed => {
                self.error(
                    "database.url",
                    "an external PostgreSQL needs its address",
                    "write `url: secret:env:DATABASE_URL`, or `host`, `user` and `password`",
                );
            }
            (DatabaseKind::Postgres, Some(Hosting::Managed | Hosting::Cluster))
                if db.url.is_some() || db.host.is_some() =>
            {
                self.error(
                    "database.url",
                    "we make this PostgreSQL, so we know its address",
                    "remove the address, or write `hosting: external`",
                );
            }
            _ => {}
        }
        if db.url.is_some() && db.host.is_some() {
            self.error("database.host", "the address is in `database.url` already", "keep one of them");
        }
        if let Some(Address::Url(url)) = &db.url
            && !url.starts_with("postgres://")
            && !url.starts_with("postgresql://")
        {
            self.error("database.url", "this is not the address of a PostgreSQL", "begin it with `postgresql://`");
        }
        let cache = &e.cache;
        let addressed = cache.url.is_some()
            || cache.host.is_some()
            || cache.existing.is_some()
            || e.sites.iter().any(|s| s.existing.cache.is_some());
        match (cache.kind, cache.hosting) {
            (CacheKind::Memory, Some(_)) => {
                self.error("cache.hosting", "the cache is the server's own memory", "remove it, or use `kind: redis`");
            }
            (CacheKind::Memory, None) if cache.url.is_some() || cache.host.is_some() => {
                self.error(
                    "cache.url",
                    "the cache is the server's own memory and has no address",
                    "remove it, or use `kind: redis`",
                );
            }
            (CacheKind::Redis, None) if !addressed => {
                self.error(
                    "cache.hosting",
                    "nobody says who runs Redis",
                    "write `hosting: managed`, `cluster` or `external`",
                );
            }
            (CacheKind::Redis, Some(Hosting::External)) if !addressed => {
                self.error(
                    "cache.url",
                    "an external Redis needs its address",
                    "write `url: secret:env:REDIS_URL`, or `host` and `port`",
                );
            }
            _ => {}
        }
        let store = e.state.store.as_str();
        if store != "local" && store.split_once("://").is_none_or(|(scheme, rest)| scheme.is_empty() || rest.is_empty())
        {
            let fix = nearest(store, ["local"]).map_or_else(
                || "write `local`, or the URL of an object store".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            self.error("state.store", format!("`{}` is not a place for state", cut(store)), fix);
        }
        if let Some(cidr) = &e.network.cidr
            && !is_private_range(cidr)
        {
            self.error(
                "network.cidr",
                format!("`{}` is not an address range", cut(cidr)),
                "write one such as `10.42.0.0/16`, from /8 to /28",
            );
        }
    }

    fn tls(&mut self) {
        let (e, tls) = (self.environment, &self.environment.tls);
        let files = tls.certificate_file.is_some() || tls.key.is_some();
        let at_provider = tls.existing.is_some() || e.sites.iter().all(|s| s.existing.certificate.is_some());
        match tls.mode {
            TlsMode::Off if e.phase > Phase::Development => {
                self.error(
                    "tls.mode",
                    "keys would travel in the open",
                    "use `local-ca`, `acme` or `existing` from staging on",
                );
            }
            TlsMode::Acme if tls.names.is_empty() && e.traffic.domain.is_none() => {
                self.error(
                    "tls.names",
                    "a public authority certifies a name, and none is given",
                    "write `names: [textnlp.example.com]`",
                );
            }
            TlsMode::Existing if !at_provider && (tls.certificate_file.is_none() || tls.key.is_none()) => {
                self.error(
                    "tls.mode",
                    "an existing certificate is named nowhere",
                    "add `certificate_file` and `key: secret:file:…`, or `existing: ID`",
                );
            }
            TlsMode::Off | TlsMode::LocalCa | TlsMode::Acme if files => {
                let field = if tls.certificate_file.is_some() { "tls.certificate_file" } else { "tls.key" };
                self.error(
                    field,
                    format!("with `mode: {}` nothing reads this", tls.mode),
                    "remove it, or use `mode: existing`",
                );
            }
            _ => {}
        }
        for (i, name) in tls.names.iter().enumerate() {
            if !is_host_name(name) {
                self.error(
                    &format!("tls.names[{i}]"),
                    format!("`{}` is neither a DNS name nor an address", cut(name)),
                    "write one such as `textnlp.example.com`",
                );
            }
        }
    }

    fn scaling(&mut self) {
        let e = self.environment;
        if let Some(max) = e.scaling.max
            && max < e.scaling.min
        {
            self.error(
                "scaling.max",
                format!("at most {max} is less than at least {}", e.scaling.min),
                format!("write {} or more", e.scaling.min),
            );
        }
        let triggers = e.scaling.cpu.or(e.scaling.memory).or(e.scaling.requests_per_second);
        let grows = e.scaling.max.is_some_and(|max| max > e.scaling.min);
        if grows && triggers.is_none() {
            self.error(
                "scaling",
                "nothing says when to add a replica",
                "add `cpu: 70`, `memory: 80` or `requests_per_second: 1000`",
            );
        }
        if triggers.is_some() && !grows {
            self.warn("scaling", "the number of replicas is fixed, so its triggers change nothing", "add `max`");
        }
        if let Some(max) = e.cluster.max_nodes
            && max < e.cluster.min_nodes
        {
            self.error(
                "cluster.max_nodes",
                format!("at most {max} is less than at least {}", e.cluster.min_nodes),
                format!("write {} or more", e.cluster.min_nodes),
            );
        }
        if e.gpu.size == GpuSize::None && (self.written("gpu.count") || self.written("gpu.spot")) {
            self.warn("gpu", "no GPU machines are asked for, so their number changes nothing", "add `size: small`");
        }
    }

    fn traffic(&mut self) {
        let e = self.environment;
        let names: Vec<&str> = e.sites.iter().map(|s| s.name.as_str()).collect();
        for (site, weight) in &e.traffic.weights {
            let path = format!("traffic.weights.{}", cut(site));
            match e.sites.iter().find(|s| s.name.as_str() == site) {
                None => {
                    let near = nearest(site, names.iter().copied());
                    let fix = near.map_or_else(
                        || format!("the sites are `{}`", names.join("`, `")),
                        |n| format!("did you mean `{n}`?"),
                    );
                    self.error(&path, format!("there is no site `{}`", cut(site)), fix);
                }
                Some(known) if known.role == Role::Standby && *weight > 0 => {
                    self.error(
                        &path,
                        "a standby has no traffic before a failover",
                        "write 0; the failover gives it its share",
                    );
                }
                Some(known) if !known.serves() && *weight > 0 => {
                    self.error(&path, "this site does not run the API", "write 0, or add `api` to its services");
                }
                Some(_) if *weight > 1000 => {
                    self.error(&path, format!("{weight} is out of range"), "write a number from 0 to 1000")
                }
                Some(_) => {}
            }
        }
        if !e.traffic.weights.is_empty() && e.traffic.weights.values().all(|w| *w == 0) {
            self.error("traffic.weights", "no site gets any traffic", "give at least the primary a weight");
        }
        if e.traffic.mode == TrafficMode::Dns && e.traffic.domain.is_none() {
            self.error("traffic.domain", "DNS needs a name", "write `domain: textnlp.example.com`");
        }
        if let Some(domain) = &e.traffic.domain
            && !is_host_name(domain)
        {
            self.error(
                "traffic.domain",
                format!("`{}` is not a DNS name", cut(domain)),
                "write one such as `textnlp.example.com`",
            );
        }
        if !e.traffic.health_path.starts_with('/') {
            self.error("traffic.health_path", "a path begins with a slash", "write `/health`");
        }
    }

    fn recovery(&mut self) {
        let (e, dr) = (self.environment, &self.environment.dr);
        if dr.mode != Failover::None && e.sites.len() < 2 {
            self.error("dr.mode", "there is no second site to fail over to", "add a site, or write `mode: none`");
        }
        if dr.mode == Failover::Automatic {
            let places: BTreeSet<(&str, &str)> =
                e.sites.iter().map(|s| (s.provider.as_str(), s.name.as_str())).collect();
            match &dr.witness {
                None if places.len() < 3 => {
                    let fix = "add `witness: { provider: …, region: … }` outside both sites, or write `mode: manual`";
                    self.error("dr.mode", "automatic failover needs a third place that grants it", fix);
                }
                Some(witness) => {
                    let primary = e.primary();
                    if primary.is_some_and(|p| {
                        p.provider == witness.provider && p.region == witness.region && p.region != "local"
                    }) {
                        self.error(
                            "dr.witness",
                            "the witness would be lost together with the primary",
                            "put it into another region",
                        );
                    }
                }
                None => {}
            }
            let detection = dr.watch_every.0 * dr.lost_after;
            if detection >= dr.rto.0 {
                let cause = format!("a lost site is noticed only after {}", Span(detection));
                self.error("dr.rto", cause, "allow more time, or look more often (`watch_every`, `lost_after`)");
            }
            if e.traffic.mode == TrafficMode::Dns && detection + e.traffic.ttl.0 >= dr.rto.0 {
                let cause = format!("resolvers keep the old answer for {} after the loss is noticed", e.traffic.ttl);
                self.error("traffic.ttl", cause, format!("make it shorter than what `dr.rto` ({}) leaves", dr.rto));
            }
        }
        // A managed cluster that must be made first takes a quarter of an hour alone.
        if dr.mode != Failover::None && !dr.warm && dr.rto.as_seconds() <= 20 * 60 {
            self.error(
                "dr.rto",
                format!("a cold site cannot answer within {}", dr.rto),
                "write `warm: true`, or allow more than 20 minutes",
            );
        }
        if dr.failback == Failover::Automatic && dr.mode == Failover::None {
            self.error(
                "dr.failback",
                "without a failover there is nothing to go back from",
                "set `dr.mode`, or remove it",
            );
        }
        let replication = &e.replication.database;
        if dr.mode != Failover::None {
            if replication.mode == DatabaseCopy::None {
                self.error(
                    "replication.database.mode",
                    "after a failover the database would be gone",
                    "write `mode: streaming`",
                );
            } else if replication.max_lag.0 >= dr.rpo.0 {
                let cause = format!("a lag of {} may be lost, and only {} may be", replication.max_lag, dr.rpo);
                self.error("replication.database.max_lag", cause, "allow less lag, or a larger `dr.rpo`");
            }
        }
        if replication.mode == DatabaseCopy::Streaming && e.sites.len() < 2 {
            self.warn("replication.database.mode", "there is no second site to copy to", "remove it, or add a site");
        }
        let backup = &e.backup;
        if backup.enabled && backup.keep.0 < backup.every.0 {
            self.error(
                "backup.keep",
                "a copy would be gone before the next one is made",
                "keep it longer than `every`",
            );
        }
        if backup.enabled && backup.every.as_seconds() < 60 {
            self.error("backup.every", "copies would follow one another without a pause", "write at least `1m`");
        }
        if e.rollout.bake.0 >= e.rollout.deadline.0 {
            self.error(
                "rollout.deadline",
                "the rollout would revert before the new release has been watched long enough",
                "make it longer than `bake`",
            );
        }
    }

    fn gates(&mut self) {
        let (e, gates) = (self.environment, &self.environment.gates);
        if gates.think_min.0 > gates.think_max.0 {
            self.error("gates.think_max", "it is shorter than `think_min`", "swap them");
        }
        if gates.tokens_min > gates.tokens_max {
            self.error("gates.tokens_max", "it is less than `tokens_min`", "swap them");
        }
        if gates.tokens_max > e.server.api.max_tokens {
            self.error(
                "gates.tokens_max",
                format!("the server refuses more than {} tokens", e.server.api.max_tokens),
                "ask for fewer, or raise `server.api.max_tokens`",
            );
        }
        if u128::from(gates.p95_ms) >= e.server.api.timeout.0.as_millis() {
            self.error("gates.p95_ms", "the server gives up before that", "make it shorter than `server.api.timeout`");
        }
        if let Some(monthly) = e.budget.monthly
            && monthly == 0.0
            && e.sites.iter().any(|s| s.region != "local")
        {
            self.warn("budget.monthly", "nothing may cost anything, so every plan with a cloud is refused", "raise it");
        }
        if !e.budget.currency.bytes().all(|b| b.is_ascii_uppercase()) {
            self.error(
                "budget.currency",
                format!("`{}` is not a currency", cut(&e.budget.currency)),
                "write its three capital letters, such as `USD`",
            );
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

    fn providers(&mut self, catalogue: &Catalogue) {
        if catalogue.providers.is_empty() {
            return;
        }
        let e = self.environment;
        let names: Vec<&str> = catalogue.providers.keys().map(String::as_str).collect();
        let mut limits: BTreeMap<String, (String, String)> = BTreeMap::new();
        let witness = e.dr.witness.iter().map(|w| ("dr.witness".to_owned(), &w.provider, None));
        let sites = e.sites.iter().enumerate().map(|(i, s)| (format!("sites[{i}]"), &s.provider, Some(&s.runtime)));
        for (path, provider, runtime) in sites.chain(witness).collect::<Vec<_>>() {
            if provider == "auto" {
                continue; // reported where the detection failed
            }
            let Some(offer) = catalogue.providers.get(provider) else {
                let near = nearest(provider, names.iter().copied());
                let fix = near.map_or_else(
                    || format!("the providers are `{}`", names.join("`, `")),
                    |n| format!("did you mean `{n}`?"),
                );
                self.error(&format!("{path}.provider"), format!("there is no provider `{}`", cut(provider)), fix);
                continue;
            };
            if !offer.linked {
                self.say(
                    Severity::Refusal,
                    &format!("{path}.provider"),
                    format!("provider `{provider}` is not part of this program"),
                    offer.how_to_get.clone(),
                );
                continue;
            }
            let Some(runtime) = runtime else { continue };
            if !offer.runtimes.contains(runtime) {
                let runtimes: Vec<&str> = offer.runtimes.iter().map(String::as_str).collect();
                let fix = nearest(runtime, runtimes.iter().copied()).map_or_else(
                    || format!("`{provider}` runs `{}` today", runtimes.join("`, `")),
                    |n| format!("did you mean `{n}`?"),
                );
                self.say(
                    Severity::Refusal,
                    &format!("{path}.runtime"),
                    format!("`{provider}` cannot run `{}` yet", cut(runtime)),
                    fix,
                );
                continue;
            }
            for (field, word) in choices(e) {
                let known: Vec<&str> = offer
                    .choices
                    .iter()
                    .filter_map(|c| c.split_once('='))
                    .filter(|(f, _)| *f == field)
                    .map(|(_, w)| w)
                    .collect();
                if !known.is_empty() && !known.contains(&word.as_str()) {
                    limits
                        .entry(field)
                        .or_insert_with(|| (word, format!("`{provider}` offers `{}` today", known.join("`, `"))));
                }
            }
        }
        for (field, (word, fix)) in limits {
            self.say(Severity::Refusal, &field, format!("`{word}` is not there yet"), fix);
        }
    }
}

/// The choices of an environment that a provider may not be able to make true.
fn choices(e: &Environment) -> Vec<(String, String)> {
    let hosted =
        |kind: &str, hosting: Option<Hosting>| hosting.map_or_else(|| kind.to_owned(), |h| format!("{kind}/{h}"));
    [
        ("database.kind", hosted(e.database.kind.as_str(), e.database.hosting)),
        ("cache.kind", hosted(e.cache.kind.as_str(), e.cache.hosting)),
        ("tls.mode", e.tls.mode.to_string()),
        ("gpu.size", e.gpu.size.to_string()),
        ("state.store", e.state.store.split("://").next().unwrap_or_default().to_owned()),
        ("monitoring.stack", e.monitoring.stack.to_string()),
        ("dr.mode", e.dr.mode.to_string()),
        ("traffic.mode", e.traffic.mode.to_string()),
        ("rollout.strategy", e.rollout.strategy.to_string()),
        ("network.waf", e.network.waf.to_string()),
    ]
    .into_iter()
    .map(|(field, word)| (field.to_owned(), word))
    .collect()
}

fn is_digest(text: &str) -> bool {
    text.strip_prefix("sha256:")
        .is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)))
}

fn is_host_name(name: &str) -> bool {
    let label = |l: &str| {
        !l.is_empty()
            && l.len() <= 63
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    name.parse::<IpAddr>().is_ok()
        || (name.len() <= 253 && name.strip_prefix("*.").unwrap_or(name).split('.').all(label))
}

fn is_private_range(cidr: &str) -> bool {
    cidr.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| (8..=28).contains(&bits))
    })
}
