//! Model management: sources, storage, and memory requirements.
//!
//! A [`Source`] names a model (`bundled`, `file:…`, `https://…`, `hf:…` or a name of the [`Catalogue`]); a [`Store`] fetches
//! it once, checks every byte and keeps it by content; [`inspect`] and [`fit`] say what it is and whether it fits into this
//! machine without loading a tensor. Loading and running models is left to the inference crate.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attempts;
mod source;

mod catalogue;

mod fetch;
mod store;

mod fit;
mod inspect;

pub mod sha;

mod bundled;
mod chunks;
mod digest;
mod download;
mod error;
mod gguf;
mod hub;
mod local;
mod manifest;
mod names;
mod options;
mod select;
mod tokenizer;
mod transport;
mod web;
mod weights;

pub use attempts::Attempts;
pub use bundled::bundled_digest;
pub use catalogue::{Catalogue, Entry};
pub use chunks::{Cut, MOST_CHUNK, cuts};
pub use digest::{Digest, InvalidDigest};
pub use error::{Error, Result};
pub use fetch::{Event, Progress, local_digest};
pub use fit::{DEFAULT_SEQUENCES, Fit, Memory, UnknownWeightFormat, Verdict, Want, WeightFormat, fit};
pub use inspect::{Format, Summary, inspect};
pub use manifest::{FileEntry, MANIFEST, Manifest, digest_of, digest_of_files, read_manifest, verify, verify_to_load};
pub use options::{FetchOptions, Limits, ProxySettings, Token};
pub use source::{HubSource, Source, SourceError, WebSource};
pub use store::{Model, Removed, Store, Stored};
