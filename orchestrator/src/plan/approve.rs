//! Only what somebody agreed to is applied.

use textnlp_provider::Problems;

use super::{Audited, Plan};

/// What a person, or a flag in a person's place, agreed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consent {
    /// The changes of this plan.
    pub changes: bool,
}

/// A plan that may be applied.
#[derive(Debug, Clone)]
pub struct Approved(Plan);

impl Approved {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.0
    }
}

/// Why a plan may not be applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refused {
    /// It would need a decision that was not given.
    #[error("the plan cannot be applied as it stands")]
    Undecided(#[source] Problems),
    /// Nobody agreed to its changes.
    #[error("nobody agreed to these changes")]
    NoConsent,
}

/// Makes an audited plan one that may be applied. A plan without changes needs no consent.
pub fn approve(plan: Audited, consent: Consent) -> Result<Approved, Refused> {
    let plan = plan.into_plan();
    if !plan.refusals.is_empty() {
        return Err(Refused::Undecided(Problems(plan.refusals)));
    }
    if plan.has_changes() && !consent.changes {
        return Err(Refused::NoConsent);
    }
    Ok(Approved(plan))
}
