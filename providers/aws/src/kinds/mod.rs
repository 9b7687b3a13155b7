//! The kinds, by service.

mod ec2;
mod eks;
pub(crate) mod iam;
mod logs;

use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[
    ec2::vpc::ROWS,
    eks::access_entry::ROWS,
    eks::addon::ROWS,
    eks::cluster::ROWS,
    eks::node_group::ROWS,
    eks::pod_identity::ROWS,
    iam::instance_profile::ROWS,
    iam::oidc_provider::ROWS,
    iam::role::ROWS,
    logs::ROWS,
];
