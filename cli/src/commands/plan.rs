//! `plan`: what `up` would do, and nothing done.

use serde_json::json;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::road::{Ask, look};

use crate::args::Plan;
use crate::deployment::{Deployment, road_failed};
use crate::plan_view;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// `plan`.
pub async fn plan(session: &Session, args: &Plan, console: Console) -> Result<Success, Failure> {
    let chosen = if args.down { session.load_to_remove(console)? } else { session.load_to_run(console)? };
    let name = chosen.name.clone();
    let (deployment, purpose) = if args.down {
        (Deployment::recorded(session, chosen)?, Purpose::Down)
    } else {
        (Deployment::wanted(session, chosen, console).await?, Purpose::Up)
    };
    let progress = Progress::new(console);
    let looked = look(&deployment.road(&progress), Ask { purpose, delete_data: false }).await;
    progress.finish();
    let (audited, facts) = looked.map_err(|e| road_failed(e, session, &name))?;
    let plan = audited.plan();
    let mut text = plan_view::text(plan);
    if plan.has_changes() {
        let verb = if args.down { "down" } else { "up" };
        text.push_str(&format!("\nTo do it: {}", session.again().same(verb, &name)));
    }
    let currency = &deployment.chosen.loaded.environment.budget.currency;
    let mut document = plan_view::document(plan, &facts, currency);
    document["file"] = json!(null);
    document["state"] = json!(deployment.chosen.folder);
    let success = Success::new(text, document);
    Ok(if args.exit_code && plan.has_changes() { success.exit(Exit::ChangesPlanned) } else { success })
}
