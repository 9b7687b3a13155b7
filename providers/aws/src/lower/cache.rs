//! The managed cache of vectors: subnets, access, and the nodes of ElastiCache.

use serde_json::{Value, json};
use textnlp_provider::component::{CACHE_PART, CACHE_PASSWORD, Cache};
use textnlp_provider::{ComponentName, ResourceId};

use super::{Lowering, output};
use crate::kinds::rds::window;
use crate::names;
use crate::tables::machines;

const PORT: u16 = 6379;
const MOST_OF_GROUP: usize = 255;
/// It has Redis's protocol, and costs less than Redis.
const ENGINE: &str = "valkey";
const VERSION: &str = "8";
/// Percent of a node's memory that ElastiCache keeps for itself: `reserved-memory-percent` of its default parameter group
/// (<https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/redis-memory-management.html>, 2026-11-30).
const RESERVED_PERCENT: u64 = 25;

/// Classes by memory: of those with as much, the one at the lowest list price.
const CLASSES: &[&str] = &[
    "cache.t4g.micro",
    "cache.t4g.small",
    "cache.t4g.medium",
    "cache.m6g.large",
    "cache.r7g.large",
    "cache.r7g.xlarge",
    "cache.r7g.2xlarge",
];

/// What a node of a class has for values, in bytes.
fn memory(class: &str) -> Option<u64> {
    let (_, memory) = machines::cache(class)?;
    Some(memory / 100 * (100 - RESERVED_PERCENT))
}

impl Lowering<'_> {
    pub(super) fn cache(&mut self, cache: &Cache) {
        if self.component.existing.is_some() {
            let cause = "an existing cache of ElastiCache is not supported";
            return self.problem("existing", cause, "remove it, and write its address as `cache.url`");
        }
        // The provider of the objects in the cluster refuses another one.
        let Some(managed) = &cache.managed else { return };
        let Some(class) = CLASSES.iter().find(|class| memory(class) >= Some(managed.memory_bytes)) else {
            let most = CLASSES.iter().filter_map(|class| memory(class)).max().unwrap_or_default();
            let cause = format!("no class of nodes has {} bytes for values", managed.memory_bytes);
            return self.problem("memory", cause, format!("write at most `cache.memory: {}GB`", most / 1_000_000_000));
        };
        let network = ComponentName::new("network").expect("it is a label");
        let description = format!("cache of {} at {}", self.site.environment, self.site.name);
        let subnets = json!({
            "name": names::of(self.site, "cache", MOST_OF_GROUP),
            "description": description,
            "subnets": self.private_subnets(&network),
        });
        // As for the database: a rule for the group of the cluster would keep the control plane as long as the cache.
        let ingress: Vec<Value> = self
            .private_ranges(&network)
            .into_iter()
            .map(|range| {
                json!({
                    "protocol": "tcp", "from": PORT, "to": PORT, "peer": range, "description": "nodes and pods",
                })
            })
            .collect();
        let access = json!({
            "vpc": self.vpc(&network),
            "name": names::of(self.site, "cache", MOST_OF_GROUP),
            "description": description,
            "ingress": ingress,
            "egress": [],
        });
        let (Some(subnets), Some(access), Ok(password)) = (
            self.part("subnets", "aws.cache-subnet-group", &subnets),
            self.part("access", "aws.security-group", &access),
            ResourceId::part(&self.site.name, &managed.secrets, CACHE_PASSWORD),
        ) else {
            return;
        };
        let group = json!({
            "name": names::cache(self.site),
            "description": description,
            "engine": ENGINE,
            "version": VERSION,
            "class": class,
            "replicas": managed.replicas,
            "multi_az": managed.replicas > 0,
            "key": self.data_key(),
            "token": output(&password, "secret"),
            "subnet_group": output(&subnets, "name"),
            "security_groups": [output(&access, "id")],
            // A lost vector is computed again.
            "snapshot_days": 0,
            "maintenance_window": self.site.maintenance.as_ref().map(window::maintenance),
            "tls": true,
            "encrypted": true,
            "minor_upgrades": true,
        });
        self.part(CACHE_PART, "aws.cache", &group);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::prices;

    #[test]
    fn classes_have_a_price_and_more_memory_each() {
        let known: Vec<u64> = CLASSES.iter().map(|class| memory(class).unwrap()).collect();
        assert!(known.is_sorted_by(|less, more| less < more), "{known:?}");
        assert!(known[1] > 1_000_000_000, "the usual size is one of a small node: {known:?}");
        for class in CLASSES {
            let key = prices::cache(ENGINE, class);
            assert!(prices::PRICES.iter().any(|price| price.key == key), "{key}");
        }
    }
}
