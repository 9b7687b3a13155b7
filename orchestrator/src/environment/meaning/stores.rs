//! The database, the cache, the state and the network that they are reached by.

use super::super::model::*;
use super::super::problem::{Severity, nearest};
use super::super::units::cut;
use super::Meaning;

impl Meaning<'_> {
    pub(super) fn stores(&mut self) {
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
        let made = e.database_hosting().is_some_and(|hosting| hosting != Hosting::External);
        for (field, there) in [("user", db.user.is_some()), ("password", db.password.is_some())] {
            if made && there && db.url.is_none() && db.host.is_none() {
                let fix = "remove it, or write the address of one that somebody else runs";
                self.error(
                    &format!("database.{field}"),
                    "we make this PostgreSQL, with a user and a password of its own",
                    fix,
                );
            }
        }
        if db.kind == DatabaseKind::Postgres && e.witness_place().is_some() {
            self.between_sites();
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
        } else if store.contains(['@', '?', '#', ' ']) || store.contains("/../") || store.ends_with("/..") {
            self.error(
                "state.store",
                format!("`{}` is more than a bucket and a prefix", cut(store)),
                "write `s3://BUCKET/PREFIX`; credentials come from the variables of whoever runs the command",
            );
        }
        if store == "local" {
            if e.state.encryption_key.is_some() {
                // A journal in the clear is not what was asked for.
                self.say(
                    Severity::Refusal,
                    "state.encryption_key",
                    "a state in a folder is not encrypted",
                    "remove it, and keep the state folder on an encrypted disk",
                );
            }
            for (path, given) in [("state.endpoint", &e.state.endpoint), ("state.region", &e.state.region)] {
                if given.is_some() {
                    self.error(
                        path,
                        "a state in a folder has none",
                        "remove it, or name an object store in `state.store`",
                    );
                }
            }
        }
        if let Some(endpoint) = &e.state.endpoint {
            let host = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"));
            if host.is_none_or(|host| host.is_empty() || host.contains(['@', ' '])) {
                self.error(
                    "state.endpoint",
                    format!("`{}` is not the address of a store", cut(endpoint)),
                    "write one such as `https://minio.example.com:9000`",
                );
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

impl Meaning<'_> {
    /// What a PostgreSQL of several sites asks of the rest of the file.
    fn between_sites(&mut self) {
        let db = &self.environment.database;
        if self.environment.database_hosting() == Some(Hosting::Managed) {
            let cause = "each site would have one of its own, and no cloud copies one of them to the others yet";
            let fix = "leave `hosting` out, and each site runs a server that follows the primary's; or write the address of one that all sites reach";
            self.say(Severity::Refusal, "database.hosting", cause, fix);
        }
        if self.environment.stores_outside() && self.environment.dr.drill == DrillTarget::Clone {
            let cause = "a clone would store in the database of the service itself, so that drills are on the running service alone";
            self.say(Severity::Warning, "dr.drill", cause, "write `dr: { drill: live }`");
        }
        if db.replicas > 0 {
            let cause = match self.environment.stores_outside() {
                true => "a database of somebody else's has the copies that they make",
                false => "each site has one server, and those of the others are its copies",
            };
            self.error("database.replicas", cause, "remove it");
        }
        if db.port.is_some() && db.host.is_none() {
            let cause = "the servers of several sites cannot listen on one port, and clients go where the primary is";
            self.error("database.port", cause, "remove it; a site's own socket is named in docs/guide/postgres.md");
        }
    }
}

fn is_private_range(cidr: &str) -> bool {
    cidr.split_once('/').is_some_and(|(address, bits)| {
        address.parse::<std::net::Ipv4Addr>().is_ok() && bits.parse::<u8>().is_ok_and(|bits| (8..=28).contains(&bits))
    })
}
