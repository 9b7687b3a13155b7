//! The sealed package: one file that holds everything a service needs, every byte of it covered by one signature.
//!
//! A bundle is a tar that any `tar` can list and unpack. Its first member, the [`Manifest`], decides every byte of the rest:
//! names, order, sizes, modes and digests. A reader therefore never trusts an archive's own headers; it compares them with those
//! that the manifest implies. `docs/decisions/0005-a-manifest-decides-every-byte.md` has the reasons.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod manifest;
pub mod report;
pub mod sbom;
pub mod scan;

pub use manifest::Manifest;
