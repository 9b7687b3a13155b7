//! The kinds of the memory cloud: with each identity, slow and fast, with data and without.

use std::time::Duration;

use crate::kind::{DataClass, Identity, Kind, Price, ReplaceOrder};
use crate::resource::Effect;

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
        settles: Duration::ZERO,
        deadline: Duration::from_secs(600),
        schema: 1,
        price_key: None,
        permissions: &[],
        terraform: &[],
    }
}

use DataClass::{Derived, None as Nothing, Precious};
use Identity::{Named, Part, Token};
use ReplaceOrder::{CreateFirst, DeleteFirst};

/// What the memory cloud charges.
pub(crate) const PRICES: &[Price] = &[
    Price { key: "cluster", monthly_cents: 7_300, currency: "USD" },
    Price { key: "database", monthly_cents: 5_000, currency: "USD" },
    Price { key: "server", monthly_cents: 2_050, currency: "USD" },
];

/// Every kind of the memory cloud.
pub const KINDS: &[Kind] = &[
    // As if a Terraform provider existed for this cloud: the import of its state files is tested with these.
    Kind {
        terraform: &[("memory_network", "id"), ("memory_vpc", "network_id")],
        ..kind("memory.network", "a network", Token, Nothing, CreateFirst)
    },
    Kind {
        price_key: Some("cluster"),
        ..kind("memory.cluster", "a cluster; servers are reached through it", Token, Nothing, CreateFirst)
    },
    kind("memory.vault", "a place for secrets", Named, Nothing, DeleteFirst),
    kind("memory.secret", "a generated secret", Named, Nothing, DeleteFirst),
    kind("memory.certificate", "a certificate", Named, Nothing, DeleteFirst),
    kind("memory.bucket", "a bucket for models", Token, Derived, CreateFirst),
    kind("memory.model", "a model in a bucket", Part, Derived, DeleteFirst),
    Kind { price_key: Some("database"), ..kind("memory.database", "a database", Named, Precious, DeleteFirst) },
    Kind {
        settles: Duration::from_secs(5),
        ..kind("memory.cache", "a cache that lists late", Token, Nothing, CreateFirst)
    },
    Kind {
        one_by_one: true,
        price_key: Some("server"),
        terraform: &[("memory_server", "id")],
        ..kind("memory.server", "a replica", Token, Nothing, CreateFirst)
    },
    kind("memory.service", "the replicas' common name", Named, Nothing, DeleteFirst),
    kind("memory.gateway", "what clients talk to", Named, Nothing, DeleteFirst),
    kind("memory.weight", "a weight of a gateway", Part, Nothing, DeleteFirst),
    kind("memory.monitor", "dashboards and alerts", Named, Nothing, DeleteFirst),
    kind("memory.relay", "what passes between two sites", Named, Nothing, DeleteFirst),
    kind("memory.watch", "the store of control data, which observes other sites", Named, Precious, DeleteFirst),
    // Its price is in no table, because not every price is known.
    Kind {
        price_key: Some("registry"),
        ..kind("memory.registry", "a registry of images", Named, Nothing, DeleteFirst)
    },
    kind("memory.schedule", "scheduled backups", Named, Nothing, DeleteFirst),
];
