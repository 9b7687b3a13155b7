//! Approval: only an approved plan is applied.

use textnlp_provider::Problems;

use super::{Audited, Plan};

/// What the operator, or a flag, approved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Consent {
    /// Whether the changes of this plan are approved.
    pub changes: bool,
}

/// An approved plan.
#[derive(Debug, Clone)]
pub struct Approved(Plan);

impl Approved {
    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.0
    }
}

/// Why a plan cannot be applied.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PlanRefusal {
    /// It needs a decision that was not given.
    #[error("the plan cannot be applied")]
    Undecided(#[source] Problems),
    /// Its changes were not approved.
    #[error("these changes are not approved")]
    NoConsent,
}

/// Approves an audited plan. A plan without changes needs no consent.
pub fn approve(plan: Audited, consent: Consent) -> Result<Approved, PlanRefusal> {
    let plan = plan.into_plan();
    if !plan.refusals.is_empty() {
        return Err(PlanRefusal::Undecided(Problems(plan.refusals)));
    }
    if plan.has_changes() && !consent.changes {
        return Err(PlanRefusal::NoConsent);
    }
    Ok(Approved(plan))
}
