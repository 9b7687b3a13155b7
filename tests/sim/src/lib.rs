//! Simulators of cloud APIs: the real wire protocols over HTTP on the loopback interface, with virtual time and faults.
//!
//! No third-party double has client tokens, quotas, capacity, lost replies and eventual consistency, on which the engine
//! depends. What a simulated service does is held against the vendor's published models in both directions, is driven by
//! the vendor's own clients, and has a source in a ledger ([`Behaviour`]).
#![forbid(unsafe_code)]

pub mod aws;
pub mod azure;
mod call;
mod clock;
mod fault_plan;
mod filter;
pub mod gcp;
pub mod objects;
pub mod oci;
pub mod postgres;
mod server;
mod simulator;
#[cfg(test)]
mod tests;
mod world;

pub use call::{Behaviour, Call, Fault, Handler, Service, Source, Timing};
pub use clock::{Clock, Random, Stages, later, timestamp};
pub use fault_plan::{Disruption, FaultPlan, Rule};
pub use filter::{is_like, passes};
pub use simulator::{Exchange, Options, Outcome, Simulator};
pub use world::{Authorizer, Capacity, Credential, Credentials, Market, Quota, Quotas, Scope, Tags, Uses, World};
