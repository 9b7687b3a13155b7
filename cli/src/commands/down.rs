//! `down`: removes everything that holds no data, and says what it kept.

use std::fmt::Write as _;
use std::time::Instant;

use serde_json::json;
use textnlp_orchestrator::plan::Purpose;
use textnlp_orchestrator::road::Ask;

use super::up::{document, go, incomplete};
use crate::args::Down;
use crate::deployment::Deployment;
use crate::report::{Console, Failure, Success};
use crate::session::Session;

/// `down [--delete-data ENV]`.
pub async fn down(session: &Session, args: &Down, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_remove(console)?;
    let name = chosen.name.clone();
    let delete_data = match args.delete_data.as_deref() {
        None => false,
        Some(typed) if typed == name.as_str() => true,
        Some(typed) => {
            let error = anyhow::anyhow!("--delete-data names `{typed}`, the environment is `{name}`");
            return Err(Failure::refused("wrong_name", error).hint(format!("type its name: --delete-data {name}")));
        }
    };
    let deployment = Deployment::recorded(session, chosen)?;
    let arrival = go(&deployment, Ask { purpose: Purpose::Down, delete_data }, console).await?;
    let mut document = document(&deployment, &arrival);
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if !arrival.is_complete() {
        return Err(incomplete(&arrival, "down", session, &name).document(document));
    }
    let plan = arrival.plan.as_ref();
    let removed = plan.map_or(0, |p| p.summary.delete);
    let mut text = format!("{name} is down: {removed} resources removed");
    for kept in plan.iter().flat_map(|p| &p.retained) {
        let _ = write!(text, "\n  kept {}: {}", kept.resource, kept.because);
    }
    if plan.is_some_and(|p| !p.retained.is_empty()) {
        let _ =
            write!(text, "\nTo remove the data too: {} --delete-data {name}", session.again().command("down", &name));
    }
    Ok(Success::new(text, document))
}
