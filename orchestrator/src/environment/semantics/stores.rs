//! Checks of database, cache, state and the network that connects them.

use textnlp_net::client::{Url, is_loopback};
use textnlp_net::network::Network;
use textnlp_net::redis::{is_private, redis_url};

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::Checker;

/// The unit in which buckets count the age of files.
const DAY_MILLIS: u128 = 86_400_000;

impl Checker<'_> {
    pub(super) fn stores(&mut self) {
        let e = self.environment;
        if let Some(after) = e.storage.archive_after
            && (after.0.is_zero() || !after.0.as_millis().is_multiple_of(DAY_MILLIS))
        {
            let cause = format!("{after} is not a number of whole days: buckets count the age of files in days");
            self.error("storage.archive_after", cause, "write days, such as `30d`; a number without a unit is seconds");
        }
        let db = &e.database;
        let addressed = db.url.is_some()
            || db.host.is_some()
            || db.existing.is_some()
            || e.sites.iter().any(|s| s.existing.database.is_some());
        match (db.kind, db.hosting) {
            (DatabaseKind::Sqlite, Some(hosting)) => {
                self.error(
                    "database.hosting",
                    format!("SQLite is a file and has no hosting ({hosting})"),
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
                            "SQLite is a local file and has no address",
                            "remove it, or use `kind: postgres`",
                        );
                    }
                }
                if db.replicas > 0 {
                    self.error("database.replicas", "SQLite has no replicas", "remove it, or use `kind: postgres`");
                }
                // The instances of an inference endpoint share nothing.
                let are_apart = e.sites.iter().any(|s| s.region != "local" && !s.is_endpoint());
                if e.scaling.max.unwrap_or(e.scaling.min) > 1 && are_apart {
                    self.error(
                        "database.kind",
                        "replicas on several machines cannot share a file",
                        "use `kind: postgres`",
                    );
                }
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
                    "this PostgreSQL is created by `up`, so its address is known",
                    "remove the address, or write `hosting: external`",
                );
            }
            _ => {}
        }
        let made = e.database_hosting().is_some_and(|hosting| hosting != Hosting::External);
        for (field, there) in [("user", db.user.is_some()), ("password", db.password.is_some())] {
            if made && there && db.url.is_none() && db.host.is_none() {
                let fix = "remove it, or write the address of an external PostgreSQL";
                self.error(
                    &format!("database.{field}"),
                    "this PostgreSQL is created by `up`, with its own user and password",
                    fix,
                );
            }
        }
        if db.replica_region.is_some() && e.database_hosting() != Some(Hosting::Managed) {
            let cause = "only a database that a cloud manages has a replica in another region";
            self.error("database.replica_region", cause, "write `kind: postgres`, `hosting: managed`, or remove it");
        }
        let is_created = |site: &SiteSettings| {
            site.is_in_cluster() && e.cluster.existing.as_ref().or(site.existing.cluster.as_ref()).is_none()
        };
        if e.maintenance.is_some()
            && e.database_hosting() != Some(Hosting::Managed)
            && e.sites.iter().any(SiteSettings::is_in_cluster)
            && !e.sites.iter().any(is_created)
        {
            let cause = "the database is not managed by a cloud, and the cluster is yours";
            self.error("maintenance", cause, "remove it, and set a maintenance window of the cluster itself");
        }
        if db.kind == DatabaseKind::Postgres && e.witness_place().is_some() {
            self.between_sites();
        }
        if db.url.is_some() && db.host.is_some() {
            self.error("database.host", "the address is in `database.url` already", "keep one of them");
        }
        if let Some(UrlSource::Url(url)) = &db.url
            && !url.starts_with("postgres://")
            && !url.starts_with("postgresql://")
        {
            self.error("database.url", "this is not the address of a PostgreSQL", "begin it with `postgresql://`");
        }
        self.cache();
        let store = e.state.store.as_str();
        if store != "local" && store.split_once("://").is_none_or(|(scheme, rest)| scheme.is_empty() || rest.is_empty())
        {
            let fix = nearest(store, ["local"]).map_or_else(
                || "write `local`, or the URL of an object store".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            self.error("state.store", format!("`{}` is not a location for state", cut(store)), fix);
        } else if store.contains(['@', '?', '#', ' ']) || store.contains("/../") || store.ends_with("/..") {
            self.error(
                "state.store",
                format!("`{}` is more than a bucket and a prefix", cut(store)),
                "write `s3://BUCKET/PREFIX`; credentials come from the environment variables of the command",
            );
        }
        if store == "local" {
            if e.state.encryption_key.is_some() {
                // An unencrypted journal would contradict the setting.
                self.say(
                    Severity::Refusal,
                    "state.encryption_key",
                    "encryption of a state in a folder is not supported",
                    "remove it, and keep the state folder on an encrypted disk",
                );
            }
            for (path, value) in [("state.endpoint", &e.state.endpoint), ("state.region", &e.state.region)] {
                if value.is_some() {
                    self.error(
                        path,
                        "a state in a folder has no endpoint",
                        "remove it, or name an object store in `state.store`",
                    );
                }
            }
        }
        if let Some(endpoint) = &e.state.endpoint {
            self.state_endpoint(endpoint, store);
        }
        self.region("state.region", e.state.region.as_ref());
        self.region("database.replica_region", db.replica_region.as_ref());
        self.region("storage.replicate_to", e.storage.replicate_to.as_ref());
        self.region("dr.witness.region", e.dr.witness.as_ref().map(|witness| &witness.region));
        for (i, network) in e.cluster.allow_from.iter().flatten().enumerate() {
            if network.parse::<Network>().is_err() {
                let fix = "write a network without host bits, such as `203.0.113.0/24`, or an address";
                let cause = format!("`{}` is neither an address nor a network", cut(network));
                self.error(&format!("cluster.allow_from[{i}]"), cause, fix);
            }
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
}

impl Checker<'_> {
    /// Requirements of a PostgreSQL that several sites share.
    fn between_sites(&mut self) {
        let db = &self.environment.database;
        if self.environment.database_hosting() == Some(Hosting::Managed) {
            let cause =
                "each site would have its own managed database, and replication between them is not supported yet";
            let fix = "remove `hosting`, so that each site runs a replica of the primary's database; or write the address of a database that all sites reach";
            self.say(Severity::Refusal, "database.hosting", cause, fix);
        }
        if self.environment.stores_outside() && self.environment.dr.drill == DrillTarget::Clone {
            let cause = "a clone would write to the database of the running service, so drills need `drill: live`";
            self.say(Severity::Warning, "dr.drill", cause, "write `dr: { drill: live }`");
        }
        if db.replicas > 0 {
            let cause = match self.environment.stores_outside() {
                true => "an external database is backed up by its operator",
                false => "each site has one database server, and the other sites have its replicas",
            };
            self.error("database.replicas", cause, "remove it");
        }
        if db.port.is_some() && db.host.is_none() {
            let cause =
                "the database servers of several sites cannot share a port, and clients must connect to the primary";
            self.error("database.port", cause, "remove it; docs/guide/postgres.md describes the socket of each site");
        }
    }

    fn cache(&mut self) {
        const SIZE: std::ops::RangeInclusive<u64> = (1 << 20)..=(1 << 40);
        const SECONDS: std::ops::RangeInclusive<u64> = 1..=365 * 86_400;
        let e = self.environment;
        let cache = &e.cache;
        let of_sites = e.sites.iter().enumerate().filter(|(_, site)| site.existing.cache.is_some());
        let mut existing: Vec<String> = of_sites.map(|(i, _)| format!("sites[{i}].existing.cache")).collect();
        existing.extend(cache.existing.as_ref().map(|_| "cache.existing".to_owned()));
        // Without an address, only a provider knows one.
        let is_external = cache.hosting.map_or(existing.is_empty(), |hosting| hosting == Hosting::External);
        let without = match cache.kind {
            CacheKind::None => Some("no cache is used"),
            CacheKind::Memory => Some("the cache is in the memory of the servers"),
            CacheKind::Redis => None,
        };
        let unused = without
            .or(cache.is_external().then_some("the servers connect to `cache.url`"))
            .or(cache.is_managed().then_some("`up` creates this Redis"));
        if let Some(cause) = unused {
            existing.iter().for_each(|path| self.error(path, cause, "remove it"));
        }
        match without {
            Some(cause) => {
                for (field, there) in [
                    ("hosting", cache.hosting.is_some()),
                    ("url", cache.url.is_some()),
                    ("memory", cache.memory.is_some()),
                    ("replicas", cache.replicas > 0),
                ] {
                    if there {
                        self.error(&format!("cache.{field}"), cause, "remove it, or use `kind: redis`");
                    }
                }
            }
            None if cache.url.is_none() && is_external => {
                let fix = "write `url: secret:env:REDIS_URL`, or `kind: memory`";
                self.error("cache.url", "an external Redis needs its address", fix);
            }
            None if cache.hosting == Some(Hosting::Managed) && cache.url.is_some() => {
                let fix = "remove the address, or write `hosting: external`";
                self.error("cache.url", "this Redis is created by `up`, so its address is known", fix);
            }
            None => {}
        }
        for (field, there) in [("memory", cache.memory.is_some()), ("replicas", cache.replicas > 0)] {
            if there && cache.kind == CacheKind::Redis && !cache.is_managed() {
                let cause = "it is for a Redis that a cloud runs";
                self.error(&format!("cache.{field}"), cause, "remove it, or write `hosting: managed`");
            }
        }
        if cache.memory.is_some_and(|memory| !SIZE.contains(&memory.0)) {
            self.error("cache.memory", "it must be from 1 MiB to 1 TiB", "write a size such as `1GB`");
        }
        if let Some(UrlSource::Url(url)) = &cache.url {
            match redis_url(url) {
                Err(error) => self.error("cache.url", error.cause, error.fix),
                Ok(url) if url.scheme() == "redis" && !is_private(&url) => {
                    self.warn("cache.url", "vectors are sent without TLS", "write `rediss://…`");
                }
                Ok(_) => {}
            }
        }
        // A cluster has the content of the file.
        let on_machines = e.sites.iter().any(|site| !site.is_in_cluster());
        let private_ca = e.network.private_ca.as_ref().filter(|_| cache.may_have_tls() && on_machines);
        if private_ca.is_some_and(|file| !file.starts_with('/')) {
            let cause = "the servers verify the Redis of the cache by it, and run in another folder";
            self.error("network.private_ca", cause, "write a path that begins with `/`");
        }
        if !SIZE.contains(&cache.size.0) {
            self.error("cache.size", "it must be from 1 MiB to 1 TiB", "write a size such as `64MiB`");
        }
        if !SECONDS.contains(&cache.ttl.as_seconds()) {
            self.error("cache.ttl", "it must be from one second to 365 days", "write a time such as `1d`");
        }
        if cache.kind != CacheKind::None && e.is_endpoint() {
            let cause = "an inference endpoint keeps no vectors";
            self.say(Severity::Refusal, "cache.kind", cause, "write `kind: none`, or serve on another kind of site");
        }
    }

    fn state_endpoint(&mut self, endpoint: &str, store: &str) {
        if let Err((cause, fix)) = check_endpoint(endpoint, store) {
            self.error("state.endpoint", cause, fix);
        }
    }
}

/// Checks the address of a state store; else the cause and the fix. The journal decides what is deleted: it is read over
/// TLS only, and the token for a whole cloud goes to that cloud only.
pub fn check_endpoint(endpoint: &str, store: &str) -> Result<(), (String, String)> {
    let url = endpoint.parse::<Url>().ok().filter(|url| {
        matches!(url.scheme(), "https" | "http") && url.username().is_empty() && url.password().is_none()
    });
    let Some((url, host)) = url.as_ref().and_then(|url| Some((url, url.host_str()?))) else {
        let cause = format!("`{}` is not the address of a store", cut(endpoint));
        return Err((cause, "write one such as `https://minio.example.com:9000`".to_owned()));
    };
    if is_loopback(url) {
        return Ok(());
    }
    if url.scheme() == "http" {
        let fix = "write an address with `https://`; `http://` is for this machine";
        return Err(("the state would be sent without encryption".to_owned(), fix.to_owned()));
    }
    let is_below =
        |domain: &&str| host.strip_suffix(*domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
    match token_domains(store) {
        Some(domains) if !domains.iter().any(is_below) => {
            let cause = format!("`{}` would get your token for the whole cloud", cut(host));
            let fix =
                format!("write an address in {}, or use a store with the protocol of S3 (`s3://`)", domains.join(", "));
            Err((cause, fix))
        }
        _ => Ok(()),
    }
}

/// Whether a text is one label of a host name, as regions of all clouds are.
pub fn is_region(text: &str) -> bool {
    const LENGTH_MAX: usize = 63;
    (1..=LENGTH_MAX).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
}

/// Domains of the stores that the tokens of Google Cloud and Azure are for. The receiver of such a token can use it; S3 only
/// gets signatures.
fn token_domains(store: &str) -> Option<&'static [&'static str]> {
    match store.split_once("://")?.0 {
        "gs" => Some(&["googleapis.com"]),
        "az" => Some(&["core.windows.net", "core.usgovcloudapi.net", "core.chinacloudapi.cn", "storage.azure.net"]),
        _ => None,
    }
}

fn is_private_range(cidr: &str) -> bool {
    cidr.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| (8..=28).contains(&bits))
    })
}
