//! Environments: the user's file, read strictly and converted into components.
//!
//! [`model`] defines an environment, [`Library`] finds and loads one, and [`components`](fn@components) converts it into the
//! components that providers plan. Every problem of every layer is in one [`Report`], with origin, cause and fix. This
//! module has no code that is specific to a cloud: the caller passes what providers offer as a [`Catalogue`].

pub mod model;

mod author;
mod check;
mod components;
mod files;
mod library;
mod load;
mod problem;
mod references;
mod saml;
mod semantics;
mod show;
mod tree;
mod upgrade;

use textnlp_provider::units;

pub use author::{AuthorError, Migrated, Written, init, migrate, new};
pub use components::{
    ACCOUNT_KEY, API_KEY, CACHE_PASSWORD, DATABASE_PASSWORD, REPLICATION_PASSWORD, SIGNING_KEY, SiteOrWitness,
    components, names, places,
};
pub use files::SettingFiles;
pub use library::{BASE, Library, Listed, Source, UnknownEnvironment};
pub use load::{FlagValue, LoadError, Loaded, Overrides};
pub use model::{Environment, schema};
pub use problem::{Origin, Problem, Report, Severity};
pub use semantics::{
    Catalogue, Detected, DetectionError, DetectionInputs, Offer, ProviderEvidence, check_endpoint, is_region,
};
pub use show::{Change, Fact, diff};
