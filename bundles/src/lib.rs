//! Bundles: one file with everything that a service needs, every byte of it covered by one signature.
//!
//! A bundle is a tar that any `tar` can list and unpack. Its first member, the [`Manifest`], decides every byte of the rest:
//! names, order, sizes, modes and digests. A reader therefore never trusts an archive's own headers; it compares them with those
//! that the manifest implies. `docs/decisions/0005-a-manifest-decides-every-byte.md` has the reasons.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod elf;
pub mod file_source;
pub mod legacy;
pub mod manifest;
pub mod oci;
pub mod recipe;
pub mod report;
pub mod sbom;
pub mod scan;

mod apply;
mod contents;
mod delta;
mod diff;
mod error;
mod flow;
mod incoming;
mod layout;
mod listing;
mod open;
mod pack;
mod proof;
mod rules;
mod sign;
mod site;
mod trust;
mod unpack;
mod verify;

mod chunk;
mod volumes;
mod walk;

pub use contents::Contents;
pub use delta::{CreatedDelta, Scope, Target, make_delta};
pub use diff::{Change, Diff, FileChange, ItemChange, diff};
pub use error::{Damage, Error, Mismatch, Result, TRUST};
pub use flow::{Drive, Event};
pub use incoming::Needs;
pub use manifest::{KeyChange, Manifest};
pub use open::{Bundle, FileReader};
pub use pack::{Content, Input, Inputs, PackOptions, Packed, pack};
pub use rules::{MOST_CHUNK, MOST_MANIFEST, TOPS};
pub use sign::{
    Authenticity, Password, PublicKey, STOCK_VERIFICATION, STOCK_VERIFICATION_FILES, SecretKey, Signature, TrustSet,
    keygen, sign, sign_bytes, sign_file, signature_of, verify_bytes, verify_file,
};
pub use site::{Collected, INSTALLED, Installed, Site, SiteLock, Source, Stamp};
pub use trust::{Admission, AdmissionOptions, PinnedKeys, Release};
pub use unpack::{UnpackOptions, Unpacked};
pub use verify::{Verified, VerifyOptions};
