//! On-prem provider, process runtime: models, a database and supervised processes on this machine. The site's folder,
//! secrets and certificates are those of `textnlp_keys`.
//!
//! Read in this order: [`OnPrem`] (the provider), `table` (its kinds), `lower` (components → resources), `verbs` (one
//! file per kind: put, remove, look), [`supervise`] (the detached process that keeps programs running). Everything of a
//! site is in one folder, `STATE/sites/SITE`. The server defines what the programs do; the orchestrator decides when
//! this crate is called.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod capabilities;
mod copy;
mod options;
mod provider;

mod lower;
mod preflight;
mod spec;
mod table;
mod verbs;
mod waiting;

pub mod alert;
pub mod supervise;

pub mod fault;

mod jobs;
mod lock;
mod names;
mod operations;
mod user;
mod verified;

pub use capabilities::CAPABILITIES;
pub use copy::{seed, site_copy};
pub use names::{API_KEY, JWT_KEY};
pub use operations::{LocalOperations, endpoint};
pub use options::Options;
pub use provider::OnPrem;
pub use user::SystemUser;
pub use verbs::postgres::{ScratchInstance, archive_socket};
pub use verified::VerifiedProgram;
