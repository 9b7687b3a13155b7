//! The messages against what other programs sent, the order of things, and a real name server.

mod messages;
#[path = "../../../../../tests/control/named.rs"]
mod named;
mod order;
mod refusals;
mod server;
