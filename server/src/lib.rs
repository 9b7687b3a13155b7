//! The API server: HTTP, keys and tokens, tenants, limits and metrics around the inference engine, and the commands of
//! all server programs. The database is in `textnlp-store`, the gateway in `textnlp-gateway`, the programs of a site in
//! `textnlp-sites`. It does not depend on clouds or deployments.
//!
//! Read in this order: [`config`] (settings of a replica), [`Server`] (its lifecycle), `endpoints` (the API), `work`
//! (one generation from request to settlement), `chat` (templates of models, rendered in processes of their own).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod admin;
mod commands;
mod container;
mod legacy;
mod server;

pub mod config;

mod app;
mod endpoints;
mod error;
mod executors;
mod http;

mod allowance;
mod analytics;
pub mod auth;
mod batches;
mod cache;
mod chat;
mod delivery;
mod embed;
mod features;
mod leases;
mod models;
mod pii;
mod ready;
mod recent;
mod record;
mod restrict;
mod schemas;
mod traces;
mod webhooks;
mod work;
mod workers;

pub mod breaker;
mod log;
pub mod metrics;
pub mod quality;
pub mod speed;

pub mod fronted;

pub mod mirror;

pub use admin::analytics::analytics;
pub use admin::audit::audit;
pub use admin::features::features;
pub use admin::keys::{KeysError, keys};
pub use commands::{
    Admin, Command, CommandError, Configuration, JsonCommand, ServerConfiguration, disable_core_dumps, run,
};
pub use legacy::current;
pub use server::{Server, StartError};
