//! Kubernetes objects in any cluster, however it was created: one table of kinds ([`table`](crate)), one implementation
//! for all of them.
//!
//! A spec is the object's manifest without `apiVersion` and `kind`, which its row in the table provides. It is applied
//! by server-side apply under a field manager of the deployment. Apply is not forced by default: fields of other
//! managers remain theirs. Objects carry the lineage as a label, by which they are listed, and the resource id as an
//! annotation.
//!
//! Read in this order: `table`, `provider`, `verbs`, `fields` (ownership and differences), `ready`, `credential`,
//! `error`.
#![forbid(unsafe_code)]

mod adapter;
mod api;
mod canary;
mod capabilities;
mod credential;
mod diagnosis;
mod diff;
mod error;
mod export;
mod fields;
mod gateway;
mod identity;
mod inside;
mod logs;
mod lower;
mod manifest;
mod observe;
mod one_off_job;
mod operations;
mod outage;
mod policy;
mod postgres;
mod preflight;
mod provider;
mod ready;
mod scale;
mod scrape;
mod security;
mod served;
mod table;
mod verbs;
mod watch;

pub use adapter::{Adapter, Answer, FrontProxy};
pub use canary::{ORDERS, OperatorCommand, QueryApi, RolloutReport, Scrape, Stage};
pub use capabilities::CAPABILITIES;
pub use export::export;
pub use lower::{BACKUP, RESTORE, local_part, server_pod};
pub use one_off_job::JobResult;
pub use operations::{ClusterOperations, endpoint};
pub use provider::{Access, Kubernetes, kubeconfig_files};
