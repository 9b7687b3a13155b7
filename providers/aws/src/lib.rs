//! Amazon Web Services: one table of kinds ([`table`](crate)), each a [`resource::Resource`], and one driver for all of them.
//!
//! A kind states how its object is read, listed, created, changed one field at a time, and deleted: one call each. The driver
//! ([`work`]) is level-triggered: it reads the object, makes the one call that brings it closer to the spec, and returns. It can
//! therefore be continued by another process after a crash at any call.
//!
//! Objects carry the lineage, the environment, the resource id and the token of the operation that created them as tags.
//!
//! Read in this order: `resource`, `work`, `observe`, `table`, `kinds`, `lower`.
#![forbid(unsafe_code)]

mod api;
mod capabilities;
mod costs;
mod diff;
mod endpoint;
mod image;
mod kinds;
mod lower;
mod names;
mod observe;
mod policy;
mod preflight;
mod provider;
mod resource;
mod session;
mod sweep;
mod table;
pub mod tables;
mod tags;
mod work;

pub use api::{Access, Identity, Simulator};
pub use capabilities::{CAPABILITIES, inside};
pub use endpoint::{EndpointOperations, endpoint};
pub use image::{ImageSource, ImageTarget};
pub use names::cluster as cluster_name;
pub use provider::Aws;
pub use session::{AskCode, AssumedRole};
pub use table::{CLUSTER, CLUSTER_NAME};
