//! What keeps several sites one service: the site agent and the witness ([`control`]), the inter-site relay ([`relay`])
//! and the supervisor of a PostgreSQL server ([`postgres`]).
//!
//! The decisions about control data are made by `textnlp-control`, which is pure. Here are its disk, its clock and its
//! connections.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

pub mod control;
pub mod postgres;
pub mod relay;
