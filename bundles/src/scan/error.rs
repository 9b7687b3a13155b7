//! Errors that prevent a scan. Problems during a scan are in its report.

use std::io;

use camino::Utf8PathBuf;
use textnlp_models::Digest;

/// Why a scan could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or folder could not be read.
    #[error("read {path}")]
    Read {
        /// Which.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// A folder without advisories.
    #[error("no advisory in {0}")]
    NoAdvisories(Utf8PathBuf),
    /// An included database is damaged or of a newer version.
    #[error("advisories in {path}: {why}")]
    Advisories {
        /// The file.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// An included database does not match its digest.
    #[error("advisories of {name} in {path} have the digest {found}, not {wanted}")]
    Digest {
        /// The file.
        path: String,
        /// The source within.
        name: String,
        /// The recorded digest.
        wanted: Digest,
        /// The digest of its content.
        found: Digest,
    },
    /// A lock file that cannot be read.
    #[error("read {path} as a Cargo.lock: {why}")]
    Lock {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A list of allowances that cannot be read.
    #[error("{path} is not a valid list of allowances: {why}")]
    Allow {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
    /// A document that is not a scan.
    #[error("read {path} as a scan: {why}")]
    Report {
        /// Which.
        path: String,
        /// What is wrong with it.
        why: String,
    },
}

impl Error {
    /// What to do next.
    pub fn hint(&self) -> String {
        match self {
            Error::Read { .. } => "check that it exists and is readable".to_owned(),
            Error::NoAdvisories(_) => {
                "give a copy of the RustSec database (with `crates/NAME/RUSTSEC-….md`) or a folder of OSV documents (`*.json`)"
                    .to_owned()
            }
            Error::Advisories { .. } | Error::Digest { .. } => {
                "create the bundle again: `textnlp-deploy bundle create` includes a new copy".to_owned()
            }
            Error::Lock { .. } => "cargo writes it: `cargo generate-lockfile`".to_owned(),
            Error::Allow { .. } => {
                "write `allow: [ { id: RUSTSEC-…, path: sbom/*, reason: why it is tolerated, until: 2027-01-31 } ]`".to_owned()
            }
            Error::Report { .. } => "give documents that `bundle scan --format json` wrote".to_owned(),
        }
    }
}
