//! Model management: sources, storage, and memory requirements.
//!
//! A [`Source`] names a model (`bundled`, `file:…`, `https://…`, `s3://…`, `hf:…` or a name of the [`Catalogue`]); a [`Store`] fetches
//! it once, checks every byte and keeps it by content; [`inspect`](fn@inspect) and [`fit`](fn@fit) say what it is and whether it fits into this
//! machine. Files are read by the inference crate, which also loads and runs models: what it refuses is refused here.
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attempts;
mod source;

mod catalogue;

mod fetch;
mod store;

mod fit;
mod inspect;

pub mod sha;

mod bucket;
mod bundled;
mod chunks;
mod decoder;
mod digest;
mod download;
mod encoder;
mod error;
mod hub;
mod local;
mod manifest;
mod names;
mod options;
mod progress;
mod push;
mod quality;
mod select;
mod transport;
mod web;
mod weight_format;
mod weights;

pub use attempts::Attempts;
pub use bundled::bundled_digest;
pub use catalogue::{Catalogue, Entry};
pub use chunks::{Cut, MOST_CHUNK, cuts};
pub use digest::{Digest, InvalidDigest};
pub use error::{Error, Result, SourceError};
pub use fetch::local_digest;
pub use fit::{Fit, Memory, Verdict, Want, fit};
pub use hub::{HubRevision, hub_revision};
pub use inspect::{Format, Summary, inspect, inspect_as};
pub use manifest::{FileEntry, MANIFEST, Manifest, digest_of, digest_of_files, read_manifest, verify, verify_to_load};
pub use options::{FetchOptions, Limits, ProxySettings, Token};
pub use progress::{Event, Progress};
pub use push::{Pushed, push};
pub use quality::{Quality, Unmeasurable, quality, windows};
pub use source::{BucketSource, HubSource, Source, WebSource};
pub use store::{AbandonedDownload, Model, Removed, Store, Stored};
pub use weight_format::{UnknownWeightFormat, WeightFormat};
