//! One driver for the kinds of every cloud. It knows no cloud: a provider gives it the clients ([`Cloud`]) and a table of kinds
//! ([`Row`]), each a [`Resource`].
//!
//! A kind states how its object is read, listed, created, changed one field at a time, and deleted: one call each. The driver
//! ([`Work`]) is level-triggered: it reads the object, makes the one call that brings it closer to the spec, and returns. It can
//! therefore be continued by another process after a crash at any call.
//!
//! Objects carry the lineage, the environment, the resource id and the token of the operation that created them as [`tags`].
//!
//! Read in this order: `cloud`, `resource`, `work`, `observe`, `table`.
#![forbid(unsafe_code)]

pub mod alerts;
pub mod budget;
mod cloud;
mod container;
mod diff;
pub mod dns_owner;
pub mod document;
pub mod endpoint;
pub mod errors;
mod example;
mod image;
mod inside;
mod machines;
pub mod names;
mod nodes;
mod observe;
pub mod policy;
pub mod preflight;
mod prices;
mod range;
mod records;
mod resource;
mod secrets;
pub mod sweep;
mod table;
pub mod tags;
mod work;

pub use cloud::{Cloud, REGION, region_of};
pub use container::{ContainerHost, by_digest, is_fetched};
pub use diff::{PROMOTED, diff};
pub use image::{ImageSource, ImageTarget, Images, PUSH_IT, has_image, has_images, lacking, tag_and_digest};
pub use inside::{GPU_NODES, created_gpus, inside};
pub use machines::{MOST_MACHINES, by_machine, has_machine, machine_names, of_machines, wrong_machines};
pub use nodes::{NodeTable, NodeType, Nodes, WrongNodes, reserved_cpu};
pub use observe::{observe, read};
pub use prices::{UsePrice, by_use, prices};
pub use range::Range;
pub use records::{Records, ZoneProvider};
pub use resource::{AnyResource, Candidate, Filter, Make, ObservedObject, Of, Resource, State, TAGS, same};
pub use secrets::{GeneratesSecrets, NoSecrets, WithGenerated, secret};
pub use table::{COVERAGE, MINUTE, Row, coverage, kind, kinds, markdown, row, rows};
pub use work::Work;
