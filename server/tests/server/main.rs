//! The whole server, from outside: real sockets, a real database, a real engine with small random models.
#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stderr)]

mod support;

mod access;
mod answers;
mod audit;
mod bundled;
mod clients;
mod configuration;
mod documents;
mod isolation;
mod lifecycle;
mod memory;
mod openai;
mod postgres;
mod quality;
mod refusals;
mod roles;
mod tickets;
mod usage;
