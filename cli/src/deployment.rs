//! Prepares the selected environment for a run.

pub use textnlp_orchestrator::release::short;
use textnlp_orchestrator::state::Operator;
pub use textnlp_service::deployment::Deployment;
use textnlp_service::deployment::Selection;
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

/// The same without any access to accounts or clusters, which thus need not be reachable.
pub async fn described(session: &Session, chosen: ChosenEnvironment, console: Console) -> Result<Deployment, Failure> {
    Deployment::wanted(selection(session, chosen)?, false, &Progress::new(console)).await
}

/// Without wanted resources: for showing the state and for `down`.
pub async fn recorded(session: &Session, chosen: ChosenEnvironment) -> Result<Deployment, Failure> {
    Deployment::recorded(selection(session, chosen)?).await
}

fn selection(session: &Session, chosen: ChosenEnvironment) -> Result<Selection, Failure> {
    Ok(Selection {
        store: stores::of(session, &chosen)?,
        chosen,
        operator: operator(session),
        site: session.global.site.clone(),
        take_ownership: session.global.take_ownership.clone(),
        server: session.server(),
    })
}

/// The name of the account that runs this program.
pub fn operating_account() -> String {
    let by =
        ["SUDO_USER", "USER", "LOGNAME"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    by.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

/// The operator, for the journal.
pub fn operator(session: &Session) -> Operator {
    acting(operating_account(), session.global.reason.clone())
}

/// The account `by` as the operator, in this process.
pub fn acting(by: String, reason: Option<String>) -> Operator {
    Operator {
        by,
        reason,
        tool: concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned(),
        host: clouds::host_name(),
        pid: std::process::id(),
    }
}
