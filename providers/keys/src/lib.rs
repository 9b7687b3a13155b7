//! Secrets, local certificate authorities and certificates in a folder on the operator's machine, for providers without
//! a vault and a certificate service of their own.
//!
//! [`Keys`] is a [`Provider`](textnlp_provider::Provider) of these kinds. A provider that has more kinds in the same
//! folder embeds it and implements [`FolderProvider`], as the on-prem provider does. Every object is in the folder of its
//! site ([`SiteFolder`]) or in the secret store, and has a [`Marker`] that records its owner.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod objects;
mod provider;
mod work;

mod expansion;
mod spec;
mod table;
mod verbs;

mod diff;
pub mod preflight;

mod layout;
mod marker;
mod order;
mod secret_store;

pub mod acme;
pub mod files;
pub mod trust;

pub use diff::{FieldRules, diff};
pub use expansion::{CA_FILE, CERTIFICATE_FILE, Expansion, KEY_FILE, NETWORK};
pub use layout::{SOCKET_PATH_MAX, SiteFolder};
pub use marker::Marker;
pub use objects::{FolderProvider, observe, read};
pub use order::{Order, reissue, renewal_order};
pub use provider::{Keys, Options};
pub use secret_store::FileSecretStore;
pub use spec::{AuthoritySpec, SecretSpec};
pub use table::{AUTHORITY, CERTIFICATE, DIRECTORY, KeyKind, SECRET};
pub use work::{Observation, ObservedObject, Work};
