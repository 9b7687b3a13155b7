//! The kinds, by service.

mod ec2;

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
];
