//! The whole server, from outside: real sockets, a real database, a real engine with small random models.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod support;

#[path = "../../../tests/src/servers.rs"]
#[allow(dead_code, unreachable_pub)]
mod servers;

#[path = "../../../tests/src/ports.rs"]
#[allow(dead_code, unreachable_pub)]
mod ports;

mod access;
mod analytics;
mod answers;
mod audit;
mod batches;
mod bundled;
mod cache;
#[cfg(feature = "candle")]
mod candle;
mod clients;
mod configuration;
mod custom_models;
mod decoding;
mod documents;
mod embeddings;
mod features;
mod invocations;
mod isolation;
mod lifecycle;
mod memory;
mod openai;
mod pii;
mod postgres;
mod quality;
mod refusals;
mod roles;
mod sign_on;
mod templates;
mod tickets;
mod tools;
mod traces;
mod usage;
mod webhooks;
