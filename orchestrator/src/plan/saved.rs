//! A plan in a file: made here, read by whoever has to agree, applied there exactly as it was read or not at all.
//!
//! The file is no permission by itself. Whoever applies it plans anew from what is there then; only a plan that is byte for byte
//! the saved one is applied, and one that read something else is named as stale.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{FORMAT, Plan};

/// A plan with who made it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Saved {
    /// Name and version of the tool.
    pub tool: String,
    /// The operator.
    pub by: String,
    /// When, by the wall clock of that machine.
    pub at: Timestamp,
    /// The flags that said what to plan, each with its value: whoever applies it says the same.
    pub flags: Vec<(String, String)>,
    /// The plan.
    pub plan: Plan,
}

/// The largest file that is read: a plan of thirty thousand resources has less than half of it.
pub const MOST_BYTES: u64 = 256 << 20;

/// Why a file is not a plan that may be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotSaved {
    /// It is something else.
    #[error("it is not a saved plan: {0}")]
    Other(String),
    /// A newer tool wrote it.
    #[error("it has format {found}, this program knows formats up to {FORMAT}")]
    Future {
        /// Its format.
        found: u64,
    },
    /// It is not as it was saved.
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

    /// Reads the bytes of a file.
    pub fn read(bytes: &[u8]) -> Result<Self, NotSaved> {
        let other = |error: serde_json::Error| NotSaved::Other(error.to_string());
        let value: Value = serde_json::from_slice(bytes).map_err(other)?;
        let Some(format) = value.get("textnlp_plan").and_then(Value::as_u64) else {
            return Err(NotSaved::Other("`textnlp_plan` is missing".to_owned()));
        };
        if format > u64::from(FORMAT) {
            return Err(NotSaved::Future { found: format });
        }
        let file: File<Saved> = serde_json::from_value(value).map_err(other)?;
        if file.saved.sum() != file.sha256 {
            return Err(NotSaved::Changed);
        }
        Ok(file.saved)
    }

    /// SHA-256 of the canonical text, hex.
    fn sum(&self) -> String {
        hex::encode(Sha256::digest(serde_json::to_vec(self).expect("plans are plain data")))
    }
}
