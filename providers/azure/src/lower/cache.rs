//! The managed cache of vectors: Azure Managed Redis, and its address and name in the network of the site.

use serde_json::json;
use textnlp_provider::ResourceId;
use textnlp_provider::component::{CACHE_PART, CACHE_PASSWORD, Cache};

use super::network::MOST;
use super::{Lowering, NETWORK, output};
use crate::kinds::redis::DATABASE;
use crate::names;

/// The zone of the names of private endpoints: <https://learn.microsoft.com/azure/private-link/private-endpoint-dns>.
const ZONE: &str = "privatelink.redis.azure.net";
/// Percent of the memory that the service keeps for itself: <https://learn.microsoft.com/azure/redis/overview> (2026-11-30).
const RESERVED_PERCENT: u64 = 20;
/// Sizes and their memory in MB: <https://learn.microsoft.com/azure/redis/how-to-scale#performance-tiers> (2026-11-30). Larger ones are in
/// preview.
const SIZES: &[(&str, u64)] = &[
    ("Balanced_B0", 500),
    ("Balanced_B1", 1_000),
    ("Balanced_B3", 3_000),
    ("Balanced_B5", 6_000),
    ("Balanced_B10", 12_000),
    ("Balanced_B20", 24_000),
    ("Balanced_B50", 60_000),
    ("Balanced_B100", 120_000),
    ("Balanced_B150", 180_000),
    ("Balanced_B250", 240_000),
];

/// What a size with this memory in MB has for values, in bytes.
const fn for_values(memory_mb: u64) -> u64 {
    memory_mb * 10_000 * (100 - RESERVED_PERCENT)
}

impl Lowering<'_> {
    pub(super) fn cache(&mut self, cache: &Cache) {
        if self.component.existing.is_some() {
            let cause = "an existing Redis of Azure is not supported";
            return self.problem("existing", cause, "remove it, and write its address as `cache.url`");
        }
        // The provider of the objects in the cluster refuses another one.
        let Some(managed) = &cache.managed else { return };
        if managed.replicas > 1 {
            let cause = "Azure Managed Redis has one replica at most";
            return self.problem("replicas", cause, "set `cache.replicas: 1`");
        }
        let Some((sku, _)) = SIZES.iter().find(|(_, memory)| for_values(*memory) >= managed.memory_bytes) else {
            let most = SIZES.iter().map(|(_, memory)| for_values(*memory)).max().unwrap_or_default();
            let cause = format!("no size has {} bytes for values", managed.memory_bytes);
            return self.problem("memory", cause, format!("write at most `cache.memory: {}GB`", most / 1_000_000_000));
        };
        let Ok(password) = ResourceId::part(&self.site.name, &managed.secrets, CACHE_PASSWORD) else { return };
        let spec = json!({ "subscription": self.site.account, "name": "Microsoft.Cache" });
        let provider = self.part("provider", "azure.provider", spec);
        let zone = self.of_world(json!({ "name": ZONE }));
        let Some(zone) = self.part("zone", "azure.dns-zone", zone) else { return };
        let link =
            json!({ "name": "network", "zone": output(&zone, "id"), "network": self.output_of(NETWORK, "vnet", "id") });
        let link = self.part("zone-link", "azure.dns-link", link);
        let redis = self.of_group(json!({
            "name": names::redis(self.site),
            "sku": sku,
            "high_availability": if managed.replicas > 0 { "Enabled" } else { "Disabled" },
            "public_access": "Disabled",
        }));
        let Some(redis) = self.part("redis", "azure.redis", redis) else { return };
        self.after(provider);
        let endpoint = self.of_group(json!({
            "name": names::of(self.site, "cache", MOST),
            "subnet": self.output_of(NETWORK, "subnet", "id"),
            "redis": output(&redis, "id"),
        }));
        let Some(endpoint) = self.part("endpoint", "azure.endpoint", endpoint) else { return };
        let named = json!({ "name": "default", "endpoint": output(&endpoint, "id"), "zone": output(&zone, "id") });
        let named = self.part("names", "azure.endpoint-names", named);
        let database = json!({
            "cluster": output(&redis, "id"),
            "name": DATABASE,
            // The vectors that were not read for the longest time make room.
            "eviction": "AllKeysLRU",
            "access_keys": "Enabled",
            "rotation": output(&password, "secret"),
        });
        self.part(CACHE_PART, "azure.redis-database", database);
        // Pods get its address once the network leads there.
        self.after(link);
        self.after(named);
    }
}

#[cfg(test)]
mod tests {
    use textnlp_provider::component::{ComponentSpec, ManagedCache};
    use textnlp_provider::settings::CacheKind;
    use textnlp_provider::{CloudId, Component, Problems, Wanted};

    use super::*;
    use crate::lower::lower;
    use crate::lower::tests::{component, site};

    fn redis(memory_bytes: u64, replicas: u32) -> Component {
        let managed =
            Some(ManagedCache { memory_bytes, replicas, secrets: "secrets".parse().unwrap(), database: None });
        component("cache", ComponentSpec::Cache(Cache { kind: CacheKind::Redis, managed }))
    }

    fn lowered(memory_bytes: u64, replicas: u32) -> Result<Vec<Wanted>, Problems> {
        lower(&redis(memory_bytes, replicas), &site(false))
    }

    #[test]
    fn memory_and_replicas_choose_the_size_and_what_is_not_offered_is_refused() {
        let of = |memory: u64, replicas: u32| {
            let all = lowered(memory, replicas).unwrap();
            let redis = all.iter().find(|one| one.kind.as_str() == "azure.redis").unwrap().spec.as_value().clone();
            (redis["sku"].clone(), redis["high_availability"].clone())
        };
        assert_eq!(of(1_000_000_000, 0), (json!("Balanced_B3"), json!("Disabled")));
        assert_eq!(of(800_000_000, 1), (json!("Balanced_B1"), json!("Enabled")));
        assert_eq!(of(800_000_001, 1), (json!("Balanced_B3"), json!("Enabled")));
        let refused = lowered(1 << 40, 0).unwrap_err().to_string();
        assert!(refused.contains("`cache.memory: 192GB`"), "{refused}");
        let refused = lowered(1, 2).unwrap_err().to_string();
        assert!(refused.contains("one replica at most"), "{refused}");
        let existing = Component { existing: Some(CloudId::new("r").unwrap()), ..redis(1, 0) };
        let refused = lower(&existing, &site(false)).unwrap_err().to_string();
        assert!(refused.contains("`cache.url`"), "{refused}");
    }

    #[test]
    fn a_redis_is_reached_from_its_network_only_and_its_key_is_no_attribute() {
        let all = lowered(1, 0).unwrap();
        let spec = |part: &str| {
            let one = all.iter().find(|one| one.id.as_str() == format!("main/cache/{part}"));
            one.unwrap_or_else(|| panic!("{part}")).spec.as_value().clone()
        };
        assert_eq!(spec("redis")["public_access"], "Disabled");
        assert_eq!(spec("endpoint")["subnet"], json!({ "$output": "main/network/subnet#id" }));
        assert_eq!(spec("names")["zone"], json!({ "$output": "main/cache/zone#id" }));
        let database = all.last().unwrap();
        assert_eq!(database.id.as_str(), "main/cache/group");
        assert_eq!(spec("group")["rotation"], json!({ "$output": "main/secrets/cache-password#secret" }));
        for need in ["main/cache/names", "main/cache/zone-link", "main/cache/redis"] {
            assert!(database.needs.iter().any(|one| one.on.as_str() == need), "{need}: {:?}", database.needs);
        }
    }

    #[test]
    fn pods_get_the_port_and_the_key_of_the_service() {
        let cluster = textnlp_provider::cluster::ClusterSite::of("textnlp");
        let site = textnlp_provider::Site { cluster: Some(Box::new(cluster)), ..site(false) };
        let inside = crate::inside(&redis(1, 0), &site).unwrap().1.cluster.unwrap().cache;
        assert_eq!((inside.port, inside.has_login), (Some(10_000), true));
    }

    #[test]
    fn sizes_have_more_memory_each() {
        assert!(SIZES.is_sorted_by(|(_, less), (_, more)| less < more));
    }
}
