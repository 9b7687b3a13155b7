//! The kinds of the memory cloud: with each identity, slow and fast, with data and without.

use std::time::Duration;

use jiff::civil::{Date, date};
use serde_json::Value;

use crate::cost::{CostLine, Price, PriceUnit, Pricing};
use crate::kind::{DataClass, Identity, Kind, ReplaceOrder, ReplicaFields, Verified};
use crate::name::KindName;
use crate::permission::{Condition, Permission};
use crate::resource::Effect;
use crate::spec::Spec;

/// Fields whose change needs a replacement.
const FIXED: &[&str] = &["cidr", "engine", "fixed", "parent", "network"];
/// Fields that cannot change at all.
const FROZEN: &[&str] = &["frozen"];
/// Kinds whose creates and deletes take several polls.
const SLOW: &[&str] = &["memory.cluster", "memory.database"];

/// What a change of a field takes.
pub fn effect(field: &str) -> Effect {
    if FROZEN.contains(&field) {
        Effect::Refuse(format!("`{field}` never changes; give the resource another name"))
    } else if FIXED.contains(&field) {
        Effect::Replace
    } else {
        Effect::InPlace
    }
}

pub(crate) fn is_slow(kind: &str) -> bool {
    SLOW.contains(&kind)
}

pub(crate) fn find(name: &str) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.name == name)
}

const fn kind(
    name: &'static str,
    says: &'static str,
    identity: Identity,
    data: DataClass,
    replace: ReplaceOrder,
) -> Kind {
    Kind {
        name,
        says,
        identity,
        data,
        replace,
        one_by_one: false,
        shared: &[],
        replica: None,
        settles: Duration::ZERO,
        deadline: Duration::from_secs(600),
        schema: 1,
        typical: None,
        pricing: Pricing::Free,
        permissions: PERMISSIONS,
        terraform: &[],
    }
}

use DataClass::{Derived, None as Nothing, Precious};
use Identity::{Named, Part, Token};
use ReplaceOrder::{CreateFirst, DeleteFirst};

const PERMISSIONS: &[Permission] = &[
    Permission::read("memory:Observe"),
    Permission {
        resource: "memory://{$environment}/{$site}",
        conditions: &[Condition { key: "lineage", value: "{$lineage}" }],
        ..Permission::change("memory:Change")
    },
];

const LISTED: Date = date(2026, 11, 1);

const fn price(key: &'static str, micros: u64, unit: PriceUnit) -> Price {
    Price {
        key,
        region: None,
        micros,
        currency: "USD",
        unit,
        source: "the price list of the memory cloud",
        date: LISTED,
    }
}

/// What the memory cloud charges. Nothing for a registry: not every price is known.
const PRICES: &[Price] = &[
    price("cluster", 100_000, PriceUnit::Hour),
    price("database", 50_000_000, PriceUnit::Month),
    price("database-storage", 100_000, PriceUnit::MonthOf("GB")),
    price("server", 20_500_000, PriceUnit::Month),
];

/// What an object costs: a database by its `storage_gb` too.
pub(crate) fn costs(kind: &KindName, spec: &Spec) -> Vec<CostLine> {
    let line = |key, service, what: &str, quantity| CostLine::priced(PRICES, key, "memory", service, what, quantity);
    match kind.as_str() {
        "memory.cluster" => vec![line("cluster", "Clusters", "1 cluster", 1)],
        "memory.database" => {
            let mut lines = vec![line("database", "Databases", "1 database", 1)];
            let storage = spec.get("storage_gb").and_then(Value::as_u64);
            lines.extend(storage.map(|gb| line("database-storage", "Databases", "storage", gb)));
            lines
        }
        "memory.server" => vec![line("server", "Servers", "1 replica", 1)],
        "memory.registry" => vec![line("registry", "Registries", "1 registry", 1)],
        name => find(name).map(Kind::costs).unwrap_or_default(),
    }
}

/// Every kind of the memory cloud.
pub const KINDS: &[Kind] = &[
    // As if a Terraform provider existed for this cloud: the import of its state files is tested with these.
    Kind {
        terraform: &[("memory_network", "id"), ("memory_vpc", "network_id")],
        ..kind("memory.network", "a network", Token, Nothing, CreateFirst)
    },
    Kind {
        pricing: Pricing::BySpec,
        ..kind("memory.cluster", "a cluster; servers are reached through it", Token, Nothing, CreateFirst)
    },
    kind("memory.vault", "a place for secrets", Named, Nothing, DeleteFirst),
    kind("memory.secret", "a generated secret", Named, Nothing, DeleteFirst),
    kind("memory.certificate", "a certificate", Named, Nothing, DeleteFirst),
    kind("memory.bucket", "a bucket for models", Token, Derived, CreateFirst),
    kind("memory.model", "a model in a bucket", Part, Derived, DeleteFirst),
    Kind { pricing: Pricing::BySpec, ..kind("memory.database", "a database", Named, Precious, DeleteFirst) },
    Kind {
        replica: Some(ReplicaFields {
            region: "region",
            source: "source",
            output: "address",
            inherited: &[],
            protection: None,
            verified: Verified::Public,
        }),
        ..kind("memory.replica", "a copy of a database in another region", Named, Precious, DeleteFirst)
    },
    Kind {
        settles: Duration::from_secs(5),
        ..kind("memory.cache", "a cache that lists late", Token, Nothing, CreateFirst)
    },
    Kind {
        one_by_one: true,
        pricing: Pricing::BySpec,
        terraform: &[("memory_server", "id")],
        ..kind("memory.server", "a replica", Token, Nothing, CreateFirst)
    },
    kind("memory.service", "the replicas' common name", Named, Nothing, DeleteFirst),
    kind("memory.gateway", "what clients talk to", Named, Nothing, DeleteFirst),
    kind("memory.weight", "a weight of a gateway", Part, Nothing, DeleteFirst),
    kind("memory.monitor", "dashboards and alerts", Named, Nothing, DeleteFirst),
    kind("memory.relay", "what passes between two sites", Named, Nothing, DeleteFirst),
    kind("memory.watch", "the store of control data, which observes other sites", Named, Precious, DeleteFirst),
    Kind {
        pricing: Pricing::BySpec,
        typical: Some(Duration::from_secs(90)),
        ..kind("memory.registry", "a registry of images", Named, Nothing, DeleteFirst)
    },
    kind("memory.schedule", "scheduled backups", Named, Nothing, DeleteFirst),
];
