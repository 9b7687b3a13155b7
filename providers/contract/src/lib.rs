//! The contract of providers: the types that plan, apply and the providers share.
//!
//! Read in this order: [`provider`] (the trait for resources), [`resource`] (what is wanted, recorded and observed), [`operation`]
//! (one mutating call with its token), [`capacity`] (which of several alternatives is tried first), [`component`] (the cloud-neutral
//! parts of a service), [`operations`] (a site that runs), [`capabilities`] (which settings a provider supports), [`declare`] (objects in the
//! terms of other tools), [`delivery`] (exports that a GitOps controller applies), [`exposition`] (metrics as servers export them),
//! [`dashboard`] (the panels of Grafana that show them), [`cost`] and
//! [`permission`] (what a plan prints of both), [`bill`] (what was charged), [`cluster`] (the settings of sites in clusters). [`memory`] is a provider that
//! lives in memory and implements every component; [`conformance`] holds the lists that every provider passes.
//! This crate knows no cloud, no terminal and no file format but canonical JSON.
#![forbid(unsafe_code)]

mod program;
pub mod provider;

pub mod component;
pub mod conformance;
pub mod memory;
pub mod operation;
pub mod operations;
pub mod resource;

pub mod alert;
pub mod bill;
pub mod capabilities;
pub mod capacity;
pub mod cluster;
pub mod combined;
pub mod connect;
pub mod cost;
pub mod dashboard;
pub mod declare;
pub mod delivery;
pub mod error;
pub mod exposition;
pub mod kind;
pub mod minimum;
pub mod name;
pub mod permission;
pub mod secret;
pub mod settings;
pub mod spec;
pub mod through;
pub mod units;

pub use bill::{Bill, BillLine, Billed, BilledAmount, BilledRequest, BillingExport};
pub use capabilities::{Capabilities, Capability, Form, RuntimeSupport, SiteRecords};
pub use capacity::Lacking;
pub use combined::{Combined, SecondPart};
pub use component::{Component, Site};
pub use cost::{Charge, CostLine, HOURS_PER_MONTH, Price, PriceUnit, Pricing, SPOT_AT_MOST, priced_regions};
pub use declare::{Declaration, Declare, Placeholder, PlannedObject, Plugin, SUBSCRIPTION_SCOPE, Tool, Within};
pub use delivery::{Controller, Delivery, GitFolder};
pub use error::{ContestedField, Error, ErrorKind, Result, error_chain};
pub use kind::{DataClass, DatabasePart, Identity, Kind, ReplaceOrder, ReplicaFields, Verified};
pub use minimum::{Disk, Minimum};
pub use name::{CloudId, ComponentName, EnvironmentName, InvalidName, KindName, Lineage, ResourceId, SiteName};
pub use operation::{DeleteBounds, Handle, Operation, OperationId, Progress, Token, Verb};
pub use permission::{
    Condition, FilledPermission, Permission, PolicyDocument, PolicyFormat, PolicyRequest, PolicyResource,
};
pub use program::{finished, first_line};
pub use provider::{Leftover, Leftovers, Problem, Problems, Provider, Scope, Sweep};
pub use resource::{
    Effect, FieldChange, Foreign, Health, Need, Object, Observed, Origin, Outputs, Ownership, ReadFailure, Recorded,
    Ref, Wanted,
};
pub use secret::{Secret, SecretName, SecretRef, SecretStore, SecretVersion};
pub use spec::{DRIFT, OutputRef, ROTATION, Rotation, Spec, SpecError, ZONES, Zones};
pub use through::{Reach, Through};
