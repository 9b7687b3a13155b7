//! The managed cache of vectors: its addresses in the network, and the instance of Memorystore for Redis.

use serde_json::json;
use textnlp_provider::component::{CACHE_PART, Cache};

use super::{Lowering, NETWORK};
use crate::kinds::redis::{NO_READ_REPLICAS, REDIS};
use crate::names;
use crate::service::Service;

/// The port of an instance with TLS (<https://cloud.google.com/memorystore/docs/redis/in-transit-encryption>).
pub(crate) const PORT: u16 = 6378;
/// The longest name of an instance: the discovery document.
const MOST_OF_INSTANCE: usize = 40;
const VERSION: &str = "REDIS_7_2";
/// The largest instance, in GiB (<https://cloud.google.com/memorystore/docs/redis/redis-tiers>, 2026-11-30).
const MOST_GIB: u64 = 300;
/// Percent of the memory of an instance with replicas that values have: the backlog of replication takes the rest
/// (<https://cloud.google.com/memorystore/docs/redis/product-constraints>, 2026-11-30).
const PERCENT_BESIDE_BACKLOG: u64 = 90;
/// The smallest instance with read replicas, in GiB
/// (<https://cloud.google.com/memorystore/docs/redis/read-replicas-overview>, 2026-11-30).
const LEAST_READ_GIB: u64 = 5;
/// The most replicas: the discovery document.
const MOST_REPLICAS: u32 = 5;

impl Lowering<'_> {
    pub(super) fn cache(&mut self, cache: &Cache) {
        if self.component.existing.is_some() {
            let cause = "an existing cache of Memorystore is not supported";
            return self.problem("existing", cause, "remove it, and write its address as `cache.url`");
        }
        // The provider of the objects in the cluster refuses another one.
        let Some(managed) = &cache.managed else { return };
        if managed.replicas > MOST_REPLICAS {
            let cause = format!("Memorystore has at most {MOST_REPLICAS} replicas, and {} are set", managed.replicas);
            return self.problem("replicas", cause, format!("write `cache.replicas: {MOST_REPLICAS}` or less"));
        }
        let is_read = managed.replicas > 1;
        let percent = if managed.replicas > 0 { PERCENT_BESIDE_BACKLOG } else { 100 };
        let bytes = managed.memory_bytes.saturating_mul(100).div_ceil(percent);
        let gib = bytes.div_ceil(1 << 30).max(if is_read { LEAST_READ_GIB } else { 1 });
        if gib > MOST_GIB {
            let cause = format!("no instance of Memorystore has {} bytes for values", managed.memory_bytes);
            let most = MOST_GIB * percent / 100;
            return self.problem("memory", cause, format!("write at most `cache.memory: {most}GiB`"));
        }
        let services = self.of_project(json!({ "services": [Service::Redis.api()] }));
        let services = self.part("services", "gcp.services", services);
        let network = self.output_of(NETWORK, "vpc", "id");
        let (range, connection) = match &managed.database {
            // A network has one connection.
            Some(database) if self.site.subnets.is_empty() => {
                let database = database.as_str();
                (self.output_of(database, "range", "name"), self.part_of(database, "connection"))
            }
            _ => self.private_services(&network),
        };
        let instance = json!({
            "name": names::of(self.site, "cache", MOST_OF_INSTANCE),
            "tier": if managed.replicas == 0 { "BASIC" } else { "STANDARD_HA" },
            "version": VERSION,
            "memory_gb": gib,
            "replicas": managed.replicas,
            "read_replicas": if is_read { "READ_REPLICAS_ENABLED" } else { NO_READ_REPLICAS },
            "network": network,
            "connection": "PRIVATE_SERVICE_ACCESS",
            "range": range,
            "auth": true,
            "tls": "SERVER_AUTHENTICATION",
        });
        self.part(CACHE_PART, REDIS, self.of_region(instance));
        self.after(connection);
        self.after(services);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use textnlp_provider::component::{ComponentSpec, ManagedCache};
    use textnlp_provider::settings::CacheKind;
    use textnlp_provider::{CloudId, Component, Site, Wanted};

    use super::*;
    use crate::lower::lower;
    use crate::lower::tests::{component, site};

    fn redis(memory_bytes: u64, replicas: u32, database: Option<&str>) -> Component {
        let database = database.map(|name| name.parse().unwrap());
        let managed = ManagedCache { memory_bytes, replicas, secrets: "secrets".parse().unwrap(), database };
        component("cache", ComponentSpec::Cache(Cache { kind: CacheKind::Redis, managed: Some(managed) }))
    }

    fn expand(component: &Component, site: &Site) -> BTreeMap<String, Wanted> {
        let wanted = lower(component, site).unwrap_or_else(|problems| panic!("{problems}"));
        wanted.into_iter().map(|one| (one.id.to_string(), one)).collect()
    }

    #[test]
    fn memory_and_replicas_choose_the_instance() {
        for (memory, replicas, expected) in [
            (1_000_000_000_u64, 0, json!(["BASIC", 1, 0, "READ_REPLICAS_DISABLED"])),
            ((2_u64 << 30) + 1, 1, json!(["STANDARD_HA", 3, 1, "READ_REPLICAS_DISABLED"])),
            (1_u64 << 30, 2, json!(["STANDARD_HA", 5, 2, "READ_REPLICAS_ENABLED"])),
            (270_u64 << 30, 5, json!(["STANDARD_HA", 300, 5, "READ_REPLICAS_ENABLED"])),
        ] {
            let all = expand(&redis(memory, replicas, None), &site(false));
            let spec = all["main/cache/group"].spec.as_value();
            let found = json!([spec["tier"], spec["memory_gb"], spec["replicas"], spec["read_replicas"]]);
            assert_eq!(found, expected);
            assert_eq!((&spec["auth"], &spec["tls"]), (&json!(true), &json!("SERVER_AUTHENTICATION")));
        }
    }

    #[test]
    fn a_network_has_one_connection_of_private_services() {
        let own = expand(&redis(1 << 30, 0, None), &site(false));
        let ids: Vec<&str> = own.keys().map(String::as_str).collect();
        assert_eq!(ids, ["main/cache/connection", "main/cache/group", "main/cache/range", "main/cache/services"]);
        let beside = expand(&redis(1 << 30, 0, Some("database")), &site(false));
        let ids: Vec<&str> = beside.keys().map(String::as_str).collect();
        assert_eq!(ids, ["main/cache/group", "main/cache/services"]);
        let group = &beside["main/cache/group"];
        assert_eq!(group.spec.as_value()["range"], json!({ "$output": "main/database/range#name" }));
        for need in ["main/database/connection", "main/cache/services", "main/network/vpc"] {
            assert!(group.needs.iter().any(|one| one.on.as_str() == need), "{need}: {:?}", group.needs);
        }
        let existing = Site { subnets: vec![CloudId::new("subnet").unwrap()], ..site(false) };
        for database in [None, Some("database")] {
            let all = expand(&redis(1 << 30, 0, database), &existing);
            assert_eq!(all.len(), 2, "{all:?}");
            assert_eq!(all["main/cache/group"].spec.as_value()["range"], json!(null));
        }
    }

    #[test]
    fn what_memorystore_does_not_have_is_refused() {
        let existing = Component { existing: Some(CloudId::new("theirs").unwrap()), ..redis(1, 0, None) };
        for (component, says) in [
            (redis(1 << 30, 6, None), "cache.replicas: 5"),
            (redis((300 << 30) + 1, 0, None), "cache.memory: 300GiB"),
            (redis((270 << 30) + 1, 1, None), "cache.memory: 270GiB"),
            (existing, "cache.url"),
        ] {
            let problems = lower(&component, &site(false)).unwrap_err().to_string();
            assert!(problems.contains(says), "{says}: {problems}");
        }
    }

    #[test]
    fn pods_get_the_auth_string_and_the_authority_of_the_instance() {
        let site =
            Site { cluster: Some(Box::new(textnlp_provider::cluster::ClusterSite::of("textnlp"))), ..site(false) };
        let inside = crate::inside(&redis(1 << 30, 0, None), &site).unwrap().1.cluster.unwrap().cache;
        assert_eq!((inside.port, inside.has_login, inside.has_authority), (Some(PORT), true, true));
    }
}
