//! The kinds, by service.

mod ec2;
mod eks;
pub(crate) mod iam;
mod logs;

use textnlp_provider::Verb;

use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[
    ec2::address::ROWS,
    ec2::endpoint::ROWS,
    ec2::gateway::ROWS,
    ec2::launch_template::ROWS,
    ec2::nat::ROWS,
    ec2::route_table::ROWS,
    ec2::security_group::ROWS,
    ec2::subnet::ROWS,
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

/// Operations that need a permission of [`Resource::create`](crate::resource::Resource::create).
const CREATE: &[Verb] = &[Verb::Create];
/// Operations that need one of [`Resource::put`](crate::resource::Resource::put) or its tags.
const PUT: &[Verb] = &[Verb::Create, Verb::Update];
/// Operations that need one of [`Resource::delete`](crate::resource::Resource::delete).
const DELETE: &[Verb] = &[Verb::Delete];
