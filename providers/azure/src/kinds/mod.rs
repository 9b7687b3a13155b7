//! The kinds, by service.

pub(crate) mod budgets;
pub(crate) mod cluster;
pub(crate) mod database;
pub(crate) mod dns;
mod endpoints;
mod group;
pub(crate) mod identity;
pub(crate) mod machine_learning;
pub(crate) mod monitoring;
pub(crate) mod network;
pub(crate) mod redis;
mod registry;
pub(crate) mod storage;
mod traffic;
mod vault;

use textnlp_provider::{CloudId, Foreign, Permission, Verb};

use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[
    group::ROWS,
    network::ROWS,
    identity::ROWS,
    cluster::ROWS,
    storage::ROWS,
    registry::ROWS,
    database::ROWS,
    vault::ROWS,
    redis::ROWS,
    endpoints::ROWS,
    dns::ROWS,
    traffic::ROWS,
    monitoring::ROWS,
    machine_learning::ROWS,
    budgets::ROWS,
];

/// A permission to create objects.
const fn create(action: &'static str) -> Permission {
    Permission::on(&[Verb::Create], action)
}

/// A permission to create or change objects.
const fn put(action: &'static str) -> Permission {
    Permission::on(&[Verb::Create, Verb::Update], action)
}

/// A permission to delete objects.
const fn delete(action: &'static str) -> Permission {
    Permission::on(&[Verb::Delete], action)
}

/// A permission to read objects.
const fn read(action: &'static str) -> Permission {
    Permission::read(action)
}

/// An object that others created, and that would end with what it is in.
fn external(id: &str, what: &str) -> Option<Foreign> {
    let cloud_id = CloudId::new(id).ok()?;
    Some(Foreign { cloud_id, what: what.to_owned(), swept: false, outlives: false, maker: None })
}
