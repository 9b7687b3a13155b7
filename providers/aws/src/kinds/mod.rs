//! The kinds, by service.

mod ec2;

use crate::table::Row;

/// The rows of every service.
pub(crate) static ALL: &[&[Row]] = &[ec2::vpc::ROWS];
