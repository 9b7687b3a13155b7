//! Prepares the selected environment for a run.

pub use textnlp_orchestrator::release::short;
use textnlp_orchestrator::state::Operator;
use textnlp_service::deployment::Selection;
pub use textnlp_service::deployment::{Deployment, acting};
pub use textnlp_service::failure::{preflight_failure, state_failed};
pub use textnlp_service::up::run_failed;

use crate::clouds;
use crate::progress::Progress;
use crate::report::{Console, Failure};
use crate::session::{ChosenEnvironment, Session};
use crate::stores;

/// With all wanted resources, planned by the providers.
pub async fn wanted(session: &Session, chosen: ChosenEnvironment, console: Console) -> Result<Deployment, Failure> {
    Deployment::wanted(selection(session, chosen)?, true, &Progress::new(console)).await
}

/// Without wanted resources: for showing the state and for `down`.
pub async fn recorded(session: &Session, chosen: ChosenEnvironment) -> Result<Deployment, Failure> {
    Deployment::recorded(selection(session, chosen)?).await
}

/// How the selected environment is prepared.
pub fn selection(session: &Session, chosen: ChosenEnvironment) -> Result<Selection, Failure> {
    Ok(Selection {
        store: stores::of(session, &chosen)?,
        chosen,
        operator: operator(session),
        site: session.global.site.clone(),
        take_ownership: session.global.take_ownership.clone(),
        server: session.server(),
    })
}

/// The operator, for the journal.
pub fn operator(session: &Session) -> Operator {
    acting(&clouds::Linked, textnlp_files::operator(), session.global.reason.clone())
}
