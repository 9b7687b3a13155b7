//! What we ask of any provider: the words that plan, apply and the providers share.
//!
//! Read in this order: [`provider`] (the trait), [`resource`] (what is wanted, recorded and observed), [`operation`]
//! (one mutating call with its token), [`component`] (the cloud-neutral parts of a service). [`memory`] is a provider that
//! lives in memory and implements every component; [`conformance`] holds the lists that every provider passes.
//! This crate knows no cloud, no terminal and no file format but canonical JSON.

mod program;
pub mod provider;

pub mod component;
pub mod conformance;
pub mod memory;
pub mod operation;
pub mod resource;

pub mod alert;
pub mod connect;
pub mod error;
pub mod kind;
pub mod minimum;
pub mod name;
pub mod secret;
pub mod spec;
pub mod through;

pub use component::{Component, Site};
pub use error::{Error, Result, Sort, told};
pub use kind::{DataClass, Identity, Kind, ReplaceOrder};
pub use minimum::{Disk, Minimum};
pub use name::{CloudId, ComponentName, EnvironmentName, InvalidName, KindName, Lineage, ResourceId, SiteName};
pub use operation::{Handle, Operation, OperationId, Progress, Token, Verb};
pub use program::finished;
pub use provider::{Problem, Problems, Provider, Scope};
pub use resource::{
    Effect, FieldChange, Foreign, Health, Need, Object, Observed, Outputs, Ownership, Recorded, Ref, Wanted, Why,
};
pub use secret::{Secret, SecretName, SecretRef, SecretStore, SecretVersion};
pub use spec::{OutputRef, Spec, SpecError};
pub use through::{Reach, Through};
