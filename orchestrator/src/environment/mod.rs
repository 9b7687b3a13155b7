//! Environments: the file that a person writes, read strictly and turned into components.
//!
//! [`model`] says what an environment is; [`Library`] finds and loads one; [`components`] turns it into what providers
//! lower. Reading is strict: everything that is wrong in any layer is in one [`Report`], with its place, its cause and
//! the fix. Nothing here names a cloud: what providers offer comes from the caller as a [`Catalogue`].

pub mod model;

mod author;
mod check;
mod components;
mod library;
mod load;
mod meaning;
mod older;
mod problem;
mod references;
mod saml;
mod show;
mod tree;
mod units;

pub use author::{AuthorError, Migrated, Written, init, migrate, new};
pub use components::{
    API_KEY, DATABASE_PASSWORD, PlaceOf, REPLICATION_PASSWORD, SIGNING_KEY, components, names, places,
};
pub use library::{BASE, Library, Listed, NoSuch, Source};
pub use load::{FlagValue, LoadError, Loaded, Overrides};
pub use meaning::{Catalogue, Offer};
pub use model::{Environment, schema};
pub use problem::{Origin, Problem, Report, Severity};
pub use saml::{SamlProblem, saml_settings};
pub use show::{Change, Fact, diff};
