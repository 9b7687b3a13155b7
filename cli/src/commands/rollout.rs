//! `rollout`: a new release on its first pods in a cluster. A job there judges them; here is what it says, and what a person says to it.

use serde_json::{Value, json};

use super::running;
use crate::args::Rollout;
use crate::clouds;
use crate::report::{Console, Failure, Success};
use crate::session::Session;

/// `rollout …`.
pub async fn rollout(session: &Session, command: &Rollout, console: Console) -> Result<Success, Failure> {
    let wish = match command {
        Rollout::Watch { account, prometheus, shares: _ } => {
            let ended = clouds::see_to(account, prometheus.as_deref(), &|says| console.say(says)).await?;
            return Ok(Success::new(said(&ended), ended));
        }
        Rollout::Status => None,
        Rollout::Promote => Some("promote"),
        Rollout::Abort => Some("abort"),
        Rollout::Pause => Some("pause"),
        Rollout::Resume => Some("resume"),
        Rollout::Retry => Some("retry"),
    };
    let chosen = session.load(Console::new(session.global.output, true))?;
    let running = running::running(session, &chosen.name, &chosen.folder).await?;
    let environment = &chosen.loaded.environment;
    if running.namespace.is_none() {
        let error =
            anyhow::anyhow!("environment {} runs in no cluster: its servers are replaced one by one", chosen.name);
        return Err(Failure::usage("no_rollout", error));
    }
    let site = session.global.site.as_deref();
    let found = clouds::rollout(&running.folder, environment, site, running.lineage, wish).await?;
    match (found, wish) {
        (None, _) => {
            Ok(Success::new("no release was rolled out step by step yet".to_owned(), json!({ "rollout": null })))
        }
        (Some(told), Some("retry")) => {
            let text = "the next `up` tries it once more".to_owned();
            Ok(Success::new(text, json!({ "wish": "retry", "rollout": told })))
        }
        (Some(told), Some(wish)) => {
            let text = format!(
                "{wish}: told to the job, which looks every two seconds; `rollout status` shows what it makes of it"
            );
            Ok(Success::new(text, json!({ "wish": wish, "rollout": told })))
        }
        (Some(told), None) => Ok(Success::new(said(&told), json!({ "rollout": told }))),
    }
}

fn said(told: &Value) -> String {
    let word = |field: &str| told[field].as_str().unwrap_or_default();
    let began =
        told["began"].as_i64().filter(|began| *began > 0).and_then(|began| jiff::Timestamp::from_second(began).ok());
    let began = began.map(|at| format!(", since {}", at.strftime("%Y-%m-%d %H:%M:%S UTC"))).unwrap_or_default();
    let share = told["share"].as_u64().map(|share| format!(", {share} % of the clients")).unwrap_or_default();
    format!("{}{began}{share}: {}", word("stage"), word("says"))
}
