//! Amazon Web Services: one table of kinds ([`table`](crate)), each a [`textnlp_cloud::Resource`], for the driver in
//! `textnlp-cloud`.
//!
//! Read in this order: `api`, `table`, `kinds`, `lower`.
#![forbid(unsafe_code)]

mod api;
mod billed;
mod boundary;
mod capabilities;
mod costs;
mod declare;
mod endpoint;
mod kinds;
mod lower;
mod names;
mod policy;
mod preflight;
mod provider;
mod records;
mod resource;
mod session;
mod sweep;
mod table;
pub mod tables;
mod tags;

pub use api::{Access, Identity, Simulator};
pub use capabilities::{CAPABILITIES, inside};
pub use endpoint::{EndpointOperations, endpoint};
pub use lower::models_bucket;
pub use names::cluster as cluster_name;
pub use provider::Aws;
pub use records::Records;
pub use session::{AskCode, AssumedRole};
pub use table::{CLUSTER, CLUSTER_NAME, coverage};
