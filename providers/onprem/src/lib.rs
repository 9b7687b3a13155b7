//! On-prem provider, process runtime: folders, secrets, certificates, models, a database and supervised processes on this
//! machine.
//!
//! Read in this order: [`OnPrem`] (the provider), `table` (its kinds), `lower` (components → resources), `verbs` (one file
//! per kind: put, remove, look), [`supervise`] (the detached process that keeps programs running). Everything of a site lies in one
//! folder, `STATE/sites/SITE`; what this crate leaves to others is what the programs do (the server) and when to call it
//! (the orchestrator).
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod copy;
mod options;
mod provider;

mod diff;
mod lower;
mod preflight;
mod spec;
mod table;
mod verbs;
mod waiting;

pub mod alert;
pub mod supervise;

pub mod fault;

mod secret_store;
mod trust;

mod files;
mod jobs;
mod layout;
mod lock;
mod marker;

pub use copy::{ModelCopy, SiteCopy, seed};
pub use lower::{API_KEY, JWT_KEY, NETWORK};
pub use options::Options;
pub use provider::OnPrem;
pub use secret_store::FileSecretStore;
pub use verbs::postgres::{Beside, archive_socket};
