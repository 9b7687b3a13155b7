//! The faults of a drill. The provider of the site injects them, with an end that does not depend on this process.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Every process of the site is killed at once.
    Kill,
    /// Every process of the site is suspended.
    Freeze,
    /// The network between the site and the others is cut.
    Blackhole,
    /// The site's disk is full.
    DiskFull,
}

impl FaultKind {
    /// Its name in commands and reports.
    pub fn word(self) -> &'static str {
        match self {
            FaultKind::Kill => "kill",
            FaultKind::Freeze => "freeze",
            FaultKind::Blackhole => "blackhole",
            FaultKind::DiskFull => "disk_full",
        }
    }
}

/// One fault.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// Its id: the drill's.
    pub id: String,
    /// The site it is injected into.
    pub site: String,
    /// Its kind.
    pub kind: FaultKind,
    /// When it is reverted, whether or not this process is alive.
    pub until: Timestamp,
    /// Whether the site's data is lost with it.
    pub lose_data: bool,
}

/// Injects and reverts faults. Errors are messages for the operator.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Why this fault cannot be injected now. Changes nothing.
    async fn check(&self, fault: &Fault) -> Result<(), String>;
    /// Records the fault durably, then injects it. After an error, [`Faults::revert`] reverts what was done.
    async fn inject(&self, fault: &Fault) -> Result<(), String>;
    /// Reverts the fault. Idempotent.
    async fn revert(&self, id: &str) -> Result<(), String>;
    /// Every fault that has not been reverted.
    async fn open(&self) -> Result<Vec<Fault>, String>;
    /// The programs of a site that are ready.
    async fn ready_units(&self, site: &str) -> Vec<String>;
    /// The location of the data that a fault set aside, if it exists.
    async fn lost_data(&self, fault: &Fault) -> Option<String>;
    /// Removes that data once nothing in it is missing elsewhere.
    async fn discard_lost(&self, fault: &Fault) -> Result<(), String>;
}
