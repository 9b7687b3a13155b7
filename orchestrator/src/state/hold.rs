//! A frozen environment: no run may change it until it is released. The operator who froze it may give a reason.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{FORMAT, Holder, Locked, Operator, State, StateError, Store, lock_after_schedule};
use crate::clock::Clock;

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

/// Ends the freeze of a state whose journals cannot be read. Returns the freeze; `None` without one, or if its file
/// cannot be read either.
pub async fn release_in(store: &dyn Store, operator: &Operator, clock: &dyn Clock) -> Result<Option<Hold>, StateError> {
    let Operator { by, pid, host, tool, .. } = operator.clone();
    let holder = Holder { by, pid, host, since: clock.now(), tool };
    let lock = lock_after_schedule(store, &holder, clock, &mut |_| true).await?;
    let held = match held_in(store).await {
        Err(StateError::Unreadable { .. }) => Ok(None),
        held => held,
    };
    let released = match held {
        Ok(held) => store.replace(&lock, HOLD, &written(None)).await.map(|()| held),
        Err(error) => Err(error),
    };
    let unlocked = store.unlock(lock).await;
    let held = released?;
    unlocked.map(|()| held)
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
