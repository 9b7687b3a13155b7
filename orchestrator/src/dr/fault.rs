//! What is done to a site in a rehearsal. Whoever provides the site does it, with an end that does not depend on us.

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A kind of loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// Every process of the site is gone at once.
    Kill,
    /// Every process of the site stands still.
    Freeze,
    /// Nothing passes between the site and the others.
    Blackhole,
    /// The site's disk takes no more bytes.
    DiskFull,
}

impl FaultKind {
    /// Its word.
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
    /// Which: the drill's id.
    pub id: String,
    /// What it is done to.
    pub site: String,
    /// What is done.
    pub kind: FaultKind,
    /// When it is taken back, whoever lives then.
    pub until: Timestamp,
    /// Whether the site's data is gone with it.
    pub lose_data: bool,
}

/// Whoever can do it. Reasons are for people.
#[async_trait]
pub trait Faults: Send + Sync {
    /// Why this fault could not be injected now; nothing is touched.
    async fn check(&self, fault: &Fault) -> Result<(), String>;
    /// Writes it down where it outlives us, then does it. After an error [`Faults::revert`] takes back what was done.
    async fn inject(&self, fault: &Fault) -> Result<(), String>;
    /// Takes it back. What was taken back already is fine.
    async fn revert(&self, id: &str) -> Result<(), String>;
    /// Every fault that has not been taken back.
    async fn open(&self) -> Result<Vec<Fault>, String>;
    /// The programs that do their work at a site.
    async fn ready_units(&self, site: &str) -> Vec<String>;
    /// Where the data of a fault that lost it lies, if it lies there.
    async fn lost_data(&self, fault: &Fault) -> Option<String>;
    /// Removes it, once nothing in it is missing elsewhere.
    async fn discard_lost(&self, fault: &Fault) -> Result<(), String>;
}
