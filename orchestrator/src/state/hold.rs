//! A frozen environment: somebody said who may change nothing for now, and why.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Locked, State, StateError};

const HOLD: &str = "hold.json";

/// Who froze an environment, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The operator.
    pub by: String,
    /// The machine.
    pub host: String,
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub why: String,
    /// Name and version of the tool.
    pub tool: String,
}

/// The file `hold.json`.
#[derive(Serialize, Deserialize)]
struct HoldFile {
    format: u32,
    held: Option<Hold>,
}

impl State {
    /// Who froze this environment, if anybody did.
    pub async fn held(&self) -> Result<Option<Hold>, StateError> {
        let Some(bytes) = self.store.document(HOLD).await? else { return Ok(None) };
        let unreadable = |because: String| StateError::Unreadable { what: format!("{}/{HOLD}", self.place()), because };
        let file: HoldFile = serde_json::from_slice(&bytes).map_err(|error| unreadable(error.to_string()))?;
        if file.format > FORMAT {
            let what = format!("{}/{HOLD}", self.place());
            return Err(StateError::Future { what, found: file.format.into(), known: FORMAT });
        }
        Ok(file.held)
    }
}

impl Locked {
    /// Freezes the environment in the name of this run's operator. The reason is the operator's, else nothing stands there.
    pub async fn hold(&self) -> Result<Hold, StateError> {
        let operator = &self.operator;
        let hold = Hold {
            by: operator.by.clone(),
            host: operator.host.clone(),
            since: self.clock.now(),
            why: operator.reason.clone().unwrap_or_default(),
            tool: operator.tool.clone(),
        };
        self.write_hold(Some(hold.clone())).await?;
        Ok(hold)
    }

    /// Lets the environment be changed again.
    pub async fn release(&self) -> Result<(), StateError> {
        self.write_hold(None).await
    }

    async fn write_hold(&self, held: Option<Hold>) -> Result<(), StateError> {
        let bytes = serde_json::to_vec_pretty(&HoldFile { format: FORMAT, held }).expect("a hold is plain data");
        self.state.store.replace(&self.lock, HOLD, &bytes).await
    }
}
