//! Google Cloud: one table of kinds, each a row over Google's uniform REST methods, for the driver in `textnlp-cloud`.
//!
//! A row ([`row`](crate)) states the path of a kind, the members of its documents and what changes them; `row.rs` reads, creates,
//! changes and deletes by it. Buckets are called over gRPC by Google's own crate and have rows as well.
//!
//! Read in this order: `service`, `access`, `api`, `row`, `kinds`, `lower`.
#![forbid(unsafe_code)]

mod access;
mod answer;
mod api;
mod billed;
mod capabilities;
mod costs;
mod declare;
mod endpoint;
mod invoke;
mod kinds;
mod labels;
mod lower;
mod names;
mod operation;
mod policy;
mod preflight;
mod provider;
mod records;
mod row;
mod service;
mod storage;
mod sweep;
mod table;
pub mod tables;
mod token;

pub use access::{Access, Identity};
pub use capabilities::{CAPABILITIES, inside};
pub use endpoint::{EndpointOperations, endpoint};
pub use invoke::InvocationOperations;
pub use lower::models_bucket;
pub use names::cluster as cluster_name;
pub use provider::Gcp;
pub use records::Records;
pub use service::Service;
pub use table::{CLUSTER, CLUSTER_NAME, cluster_id, coverage};
