//! A saved plan: made here, reviewed, then applied exactly as it was reviewed or not at all.
//!
//! The file itself is no approval. Applying it plans again from the facts of that time. Only a plan that is equal byte
//! for byte is applied; one from other facts is reported as stale.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{FORMAT, Plan};

/// A plan with its author.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Name and version of the program.
    pub tool: String,
    /// The operator.
    pub by: String,
    /// When it was made, by that machine's wall clock.
    pub at: Timestamp,
    /// The planning flags with their values; applying must use the same.
    pub flags: Vec<(String, String)>,
    /// The plan.
    pub plan: Plan,
}

/// The largest file in bytes: a plan of thirty thousand resources has less than half.
pub const MOST_BYTES: u64 = 256 << 20;

/// Why a file is not a valid saved plan.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedPlanError {
    /// It is not a saved plan.
    #[error("it is not a saved plan: {0}")]
    Other(String),
    /// A newer version of this program wrote it.
    #[error("it has format {found}; this program supports formats up to {FORMAT}")]
    Future {
        /// Its format version.
        found: u64,
    },
    /// It was changed after it was saved.
    #[error("it was changed after it was saved: its checksum does not match")]
    Changed,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File<S> {
    textnlp_plan: u64,
    sha256: String,
    saved: S,
}

impl Saved {
    /// The bytes of the file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let file = File { textnlp_plan: u64::from(FORMAT), sha256: self.sum(), saved: self };
        let mut bytes = serde_json::to_vec(&file).expect("plans are plain data");
        bytes.push(b'\n');
        bytes
    }

    /// Parses the bytes of a file.
    pub fn read(bytes: &[u8]) -> Result<Self, SavedPlanError> {
        let other = |error: serde_json::Error| SavedPlanError::Other(error.to_string());
        let value: Value = serde_json::from_slice(bytes).map_err(other)?;
        let Some(format) = value.get("textnlp_plan").and_then(Value::as_u64) else {
            return Err(SavedPlanError::Other("`textnlp_plan` is missing".to_owned()));
        };
        if format > u64::from(FORMAT) {
            return Err(SavedPlanError::Future { found: format });
        }
        let file: File<Saved> = serde_json::from_value(value).map_err(other)?;
        if file.saved.sum() != file.sha256 {
            return Err(SavedPlanError::Changed);
        }
        Ok(file.saved)
    }

    /// The SHA-256 of the canonical text, in hexadecimal.
    fn sum(&self) -> String {
        hex::encode(Sha256::digest(serde_json::to_vec(self).expect("plans are plain data")))
    }
}
