//! A frozen environment: no run may change it until it is released. The operator who froze it may give a reason.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Locked, State, StateError, Store};

pub(super) const HOLD: &str = "hold.json";

/// The freeze of an environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hold {
    /// The operator.
    pub by: String,
    /// The machine.
    pub host: String,
    /// When it was frozen.
    pub since: Timestamp,
    /// The reason.
    pub why: String,
    /// Name and version of the program.
    pub tool: String,
}

/// The file `hold.json`.
#[derive(Serialize, Deserialize)]
struct HoldFile {
    format: u32,
    held: Option<Hold>,
}

impl State {
    /// The freeze of this environment, if any.
    pub async fn held(&self) -> Result<Option<Hold>, StateError> {
        held_in(&*self.store).await
    }
}

/// The freeze in a store, also where the rest of the state cannot be read.
pub async fn held_in(store: &dyn Store) -> Result<Option<Hold>, StateError> {
    store.document(HOLD).await?.map_or(Ok(None), |bytes| read(&store.place(), &bytes))
}

/// The freeze in a file of the state at `place`.
pub(super) fn read(place: &str, bytes: &[u8]) -> Result<Option<Hold>, StateError> {
    let what = || format!("{place}/{HOLD}");
    let file: HoldFile = serde_json::from_slice(bytes)
        .map_err(|error| StateError::Unreadable { what: what(), because: super::json_problem(&error) })?;
    if file.format > FORMAT {
        return Err(StateError::Future { what: what(), found: file.format.into(), known: FORMAT });
    }
    Ok(file.held)
}

/// The file of a freeze.
pub(super) fn written(held: Option<Hold>) -> Vec<u8> {
    serde_json::to_vec_pretty(&HoldFile { format: FORMAT, held }).expect("a hold is plain data")
}

impl Locked {
    /// Freezes the environment as this run's operator, with the operator's reason; empty without one.
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

    /// Ends the freeze.
    pub async fn release(&self) -> Result<(), StateError> {
        self.write_hold(None).await
    }

    async fn write_hold(&self, held: Option<Hold>) -> Result<(), StateError> {
        self.state.store.replace(&self.lock, HOLD, &written(held)).await
    }
}
