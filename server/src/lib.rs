//! The server: HTTP, keys and tokens, tenants, limits, metrics and storage around the inference engine. It knows nothing of
//! clouds and deployments.
//!
//! Read in this order: [`config`] (what a replica is told), [`Server`] (how it runs), `endpoints` (what it answers), `work` (one
//! generation from request to settled end).
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod serve;
mod server;

pub mod config;

mod app;
mod endpoints;
mod error;
mod http;

mod allowance;
pub mod auth;
mod chat;
mod models;
mod models_role;
mod ready;
mod ready_role;
mod record;
mod work;

pub mod breaker;
mod keys_role;
mod leaving;
mod log;
pub mod metrics;
pub mod quality;
pub mod rate;
pub mod retry;

pub mod database;

pub mod control;

pub mod gateway;

pub mod border;

pub mod fronted;

pub mod mirror;

pub mod postgres;

pub use keys_role::{KeysError, keys};
pub use serve::{Role, ServeArgs, ServeError, run, serve};
pub use server::{Server, StartError};
