//! The kinds, by service.

mod binding;
pub(crate) mod bucket;
pub(crate) mod budgets;
pub(crate) mod container;
mod dns;
pub(crate) mod health_check;
mod kms;
pub(crate) mod monitoring;
mod network;
pub(crate) mod private;
pub(crate) mod redis;
mod registry;
pub(crate) mod run;
mod services;
mod sql;
pub(crate) mod vertex;
mod weighted;

pub(crate) use binding::{PODS, prepare_declarations};
pub(crate) use network::NAT;
pub(crate) use sql::{DATABASE, USER};
use textnlp_provider::{Permission, Verb};

use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[
    services::ROWS,
    network::ROWS,
    private::ROWS,
    binding::ROWS,
    container::ROWS,
    bucket::ROWS,
    registry::ROWS,
    run::ROWS,
    vertex::ROWS,
    kms::ROWS,
    sql::ROWS,
    redis::ROWS,
    health_check::ROWS,
    dns::ROWS,
    monitoring::ROWS,
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
