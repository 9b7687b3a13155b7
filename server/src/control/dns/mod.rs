//! Traffic by DNS: the witness keeps the addresses of one name equal to the sites that may have traffic, by dynamic updates (RFC 2136)
//! that a shared key signs (RFC 8945).
//!
//! The messages are our own: there are three of them, HMAC is in the tree already, and the crates that speak DNS leave the server's clock
//! unchecked, or bring a second crypto provider. Resolving names is no matter of this module: the server is given by its address, so
//! that moving DNS needs no DNS.

mod ask;
mod failed;
mod keep;
mod message;
mod name;
mod records;
mod settings;
#[cfg(test)]
mod tests;
mod tsig;

pub(super) use keep::{Records, keep};
pub use settings::{DnsConfig, DnsKey};
