//! Objects in any cluster, whoever made the cluster: one table of kinds ([`table`](crate)), one way of working for all of them.
//!
//! A spec is the object's manifest without `apiVersion` and `kind`, which the kind's row knows. It is applied by the server
//! (server-side apply) under a field manager of the deployment's own, never forced: what others own stays theirs. Objects carry
//! the lineage as a label, by which they are found in bulk; what they are called for us is an annotation.
//!
//! Read in this order: `table`, `provider`, `verbs`, `fields` (who owns what, and what differs), `ready`, `credential`, `error`.

mod adapter;
mod api;
mod canary;
mod credential;
mod diff;
mod errand;
mod error;
mod export;
mod fields;
mod gateway;
mod identity;
mod inside;
mod lower;
mod manifest;
mod observe;
mod outage;
mod preflight;
mod provider;
mod ready;
mod scale;
mod served;
mod table;
mod trouble;
mod verbs;
mod watch;

pub use adapter::{Adapter, Answer, FrontProxy};
pub use canary::{Ask, ORDERS, Scrape, Stage, Told, Wish};
pub use errand::Errand;
pub use export::{Export, ExportFile, Form, NeededSecret, export};
pub use lower::{
    ADAPTER_COMPONENT, Analytics, BACKUP, CompanyNetwork, FILLED_BY_CERT_MANAGER, Ingress, ModelVolume, Nodes,
    OwnPostgres, Placement, RESTORE, Spot,
};
pub use provider::{Access, Kubernetes};
pub use scale::{Autoscaler, Scale};
