//! Traffic by DNS: the witness keeps the addresses of one name equal to the sites that may have traffic. It sends
//! dynamic updates (RFC 2136), signed with a shared key (RFC 8945).
//!
//! Nothing here resolves names: the server is configured by address, so that moving traffic does not depend on DNS.

mod failed;
mod message;
mod name;
mod publish;
mod query;
mod records;
mod settings;
#[cfg(test)]
mod tests;
mod tsig;

pub(super) use publish::{Records, publish};
pub use settings::{DnsConfig, DnsKey};
