//! Azure: one table of kinds, each a row over Azure Resource Manager's uniform methods, for the driver in `textnlp-cloud`.
//!
//! A row ([`row`](crate)) states the path of a kind, its API version, the members of its documents and what changes them; `row.rs`
//! reads, creates, changes and deletes by it. Sizes and quotas of machines are read with the crate `azure_mgmt_compute`.
//!
//! Read in this order: `access`, `token`, `transport`, `api`, `row`, `images`, `kinds`, `lower`.
#![forbid(unsafe_code)]

mod access;
mod answer;
mod api;
mod billed;
mod capabilities;
mod compute;
mod costs;
mod declare;
mod images;
mod invoke;
mod kinds;
mod lower;
mod names;
mod operation;
mod policy;
mod preflight;
mod provider;
mod records;
mod restrictions;
mod row;
mod sweep;
mod table;
pub mod tables;
mod token;
mod transport;

pub use access::{Access, Identity};
pub use capabilities::{CAPABILITIES, inside};
pub use invoke::{InvocationOperations, endpoint};
pub use lower::models_container;
pub use names::cluster as cluster_name;
pub use provider::Azure;
pub use records::Records;
pub use table::{CLUSTER, cluster_id, coverage};
pub use transport::ENDPOINT;
