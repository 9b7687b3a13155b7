//! `key`: API keys of a running environment. The server program manages them beside the database, as a one-off job.

use std::sync::Arc;

use serde_json::{Value, json};
use textnlp_orchestrator::dr::control_client::ControlClients;
use textnlp_orchestrator::environment::{API_KEY, Environment, names};
use textnlp_provider::operations::Jobs;
use textnlp_provider::{Lineage, Recorded, Rotation};
use textnlp_server::auth::key::{NewKey, digest};
use textnlp_service::platform::Scope;
use textnlp_service::running::{self, RunningEnvironment, ServerProcess};

use super::secret;
use crate::args::Key;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::{clouds, deployment};

/// `key …`.
pub async fn key(session: &Session, command: &Key, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(Console::new(session.global.output, true))?;
    let running = running::running(&chosen.scope).await?;
    // After a `restore` or an `up` on another machine, the journal may name a program that this machine lacks.
    let program = running.serving().await.map(|serving| &serving.server.program);
    if let Some(gone) = program.filter(|program| !program.is_file()) {
        let error = anyhow::anyhow!("{gone} does not exist").context(format!(
            "environment {} is recorded but does not run on this machine: run the command where its server runs",
            chosen.scope.name
        ));
        return Err(Failure::usage("not_up", error).hint(chosen.scope.same("up")));
    }
    let environment = &chosen.loaded.environment;
    match command {
        Key::Create { name, tenant, rate_limit, token_rate_limit, token_limit, expires_days, scopes } => {
            let expires_at = expires_days
                .map(|days| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(days)));
            let made = ask(
                &running,
                environment,
                &json!({
                    "do": "create", "name": name, "tenant": tenant, "rate_limit": rate_limit,
                    "token_rate_limit": token_rate_limit, "token_limit": token_limit,
                    "expires_at": expires_at.map(|t| t.as_millisecond()),
                    "scopes": (!scopes.is_empty()).then_some(scopes),
                }),
            )
            .await?;
            let scopes = if scopes.is_empty() { "* (everything)".to_owned() } else { scopes.join(", ") };
            console.say(format!("Scopes: {scopes}. This is the only time that the key is shown."));
            shown_once(&chosen.scope, made, console)
        }
        Key::List => {
            let listed = ask(&running, environment, &json!({ "do": "list" })).await?;
            let mut text =
                format!("{:<18} {:<14} {:<22} {:<14} {:<16} {}", "ID", "TENANT", "NAME", "RATE", "SCOPES", "STATE");
            for key in listed["keys"].as_array().into_iter().flatten() {
                let word = |field: &str| key[field].as_str().unwrap_or("-").to_owned();
                let day = |field: &str| {
                    let at = key[field].as_i64().and_then(|s| jiff::Timestamp::from_millisecond(s).ok());
                    at.map_or("-".to_owned(), |t| t.strftime("%Y-%m-%d %H:%M").to_string())
                };
                let state = if !key["revoked_at"].is_null() {
                    format!("revoked {}", day("revoked_at"))
                } else if !key["expires_at"].is_null() {
                    format!("until {}", day("expires_at"))
                } else {
                    "active".to_owned()
                };
                let scopes: Vec<&str> =
                    key["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
                text.push_str(&format!(
                    "\n{:<18} {:<14} {:<22} {:<14} {:<16} {state}",
                    word("public_id"),
                    word("tenant"),
                    word("name"),
                    word("rate_limit"),
                    scopes.join(",")
                ));
            }
            Ok(Success::new(text, listed))
        }
        Key::Rotate { id, grace, no_gate } if running.key_id.as_deref() == Some(id.as_str()) => {
            // First, so that the old key ends whatever happens afterwards.
            let expire = async || {
                let Some(grace) = grace else { return Ok(()) };
                let seconds = grace.as_seconds().max(1);
                let command = json!({ "do": "expire", "public_id": id, "expires_in": seconds });
                ask(&running, environment, &command).await.map(drop)
            };
            let rotation = Rotation { at: jiff::Timestamp::now(), immediately: false, new_id: grace.is_some() };
            let hooks = (expire, async || Ok::<(), Failure>(()));
            secret::rotate(session, is_first_key, FIRST_KEY, &rotation, hooks, *no_gate, console).await
        }
        Key::Rotate { grace: Some(_), .. } => {
            let error = anyhow::anyhow!("only the first key can be replaced with a grace period");
            Err(Failure::usage("no_grace", error).hint("create a second key, and revoke this one later"))
        }
        Key::Rotate { id, grace: None, .. } => {
            let made = ask(&running, environment, &json!({ "do": "rotate", "public_id": id })).await?;
            console.say("This is the only time that the new key is shown; the old one no longer works.");
            shown_once(&chosen.scope, made, console)
        }
        Key::Revoke { id } => {
            if running.key_id.as_deref() == Some(id.as_str()) {
                let listed = ask(&running, environment, &json!({ "do": "list" })).await?;
                if !has_other_administrator(&listed, id) {
                    let error = anyhow::anyhow!("`{id}` is the only key with all scopes that does not expire");
                    return Err(Failure::refused("only_key", error).hint(format!(
                        "replace it: {}; or create another one first: {}",
                        chosen.scope.command(&format!("key rotate {id}")),
                        chosen.scope.command("key create NAME")
                    )));
                }
                // First, so that no later run makes the revoked key valid again.
                let rotation = Rotation { at: jiff::Timestamp::now(), immediately: false, new_id: false };
                secret::request(session, is_first_key, FIRST_KEY, &rotation, async || Ok(()), console).await?;
                console.say("The next `up` creates a new first key.");
            }
            let done = ask(&running, environment, &json!({ "do": "revoke", "public_id": id })).await?;
            // A mistyped id must not look like an expired key.
            if done["found"] == json!(false) {
                return Err(Failure::usage("no_such_key", anyhow::anyhow!("there is no key `{id}`"))
                    .hint(chosen.scope.command("key list")));
            }
            let text = if done["revoked"] == json!(true) {
                format!("{id} is revoked")
            } else {
                format!("{id} was revoked already")
            };
            Ok(Success::new(text, done))
        }
    }
}

/// Prints a new key. When it cannot be written, it is lost, and the hint says how to replace it.
fn shown_once(scope: &Scope, made: Value, console: Console) -> Result<Success, Failure> {
    let replace = scope.command(&format!("key rotate {}", made["public_id"].as_str().unwrap_or("ID")));
    let shown = Success::new(made["key"].as_str().unwrap_or_default().to_owned(), made);
    console.deliver(shown).map_err(|lost| lost.hint(format!("the key exists but was not shown: {replace}")))
}

/// What the messages of a rotation call it.
const FIRST_KEY: &str = "the first API key";

/// The environment's first key is a resource: its secret is in the store, and commands use it.
fn is_first_key(recorded: &Recorded) -> bool {
    secret::is_part(recorded, &format!("{}/{API_KEY}", names::SECRETS))
}

/// Whether a list of keys has one with all scopes and without an end besides `id`.
fn has_other_administrator(listed: &Value, id: &str) -> bool {
    listed["keys"].as_array().into_iter().flatten().any(|key| {
        let has_all = key["scopes"].as_array().is_some_and(|scopes| scopes.iter().any(|scope| scope == "*"));
        key["public_id"] != id && has_all && key["revoked_at"].is_null() && key["expires_at"].is_null()
    })
}

/// Runs one key command beside the database, on behalf of the operator.
pub async fn ask(running: &RunningEnvironment, environment: &Environment, command: &Value) -> Result<Value, Failure> {
    let mut command = without_nulls(command);
    command["operator"] = json!(operator());
    match ask_once(running, environment, &command).await {
        // Before the next `up`, the program may be of a release without the audit log.
        Err(failure) if failure.error.to_string().contains("`operator` is not a known field") => {
            if let Some(fields) = command.as_object_mut() {
                fields.remove("operator");
            }
            ask_once(running, environment, &command).await
        }
        answer => answer,
    }
}

/// The operator's name in the audit log.
pub fn operator() -> String {
    let name = format!("{}@{}", deployment::operating_account(), clouds::host_name());
    name.chars().filter(|c| !c.is_control()).take(100).collect()
}

async fn ask_once(running: &RunningEnvironment, environment: &Environment, command: &Value) -> Result<Value, Failure> {
    let jobs = jobs(running, environment, running.serving().await).await?;
    if jobs.are_logged() {
        return logged(&*jobs, running.lineage, command.clone()).await;
    }
    run(&*jobs, running.lineage, COMMAND, command).await
}

/// Runs one `admin` command of the server program with its JSON input.
pub async fn run(jobs: &dyn Jobs, lineage: Lineage, command: &str, input: &Value) -> Result<Value, Failure> {
    let output = jobs.run(lineage, command, input).await?;
    answered(command, output.answer.unwrap_or_default(), output.failure)
}

/// Where each database of an environment is reached. Sites on hosts have one each. Sites in clusters share one.
pub fn processes(running: &RunningEnvironment) -> Vec<Option<&ServerProcess>> {
    match running.servers.as_slice() {
        [] => vec![None],
        servers => servers.iter().map(Some).collect(),
    }
}

/// One-off jobs beside the servers of a site, or of the primary site if none is given.
pub async fn jobs(
    running: &RunningEnvironment,
    environment: &Environment,
    serving: Option<&ServerProcess>,
) -> Result<Arc<dyn Jobs>, Failure> {
    let jobs = match serving {
        Some(ServerProcess { site, server, .. }) => {
            let server = Some(server.clone());
            clouds::operations_of(&running.folder, environment, site.as_str(), server)?.and_then(|site| site.jobs())
        }
        None => {
            // If the home site is lost, the primary site runs the job. In clusters all sites share one database.
            let leads = match environment.witness_place() {
                Some(_) => {
                    ControlClients::at(&clouds::places(&running.folder, environment)?).witness.status().await.ok()
                }
                None => None,
            };
            let leads = leads.as_ref().map(|witness| witness.primary.as_str());
            clouds::find(&running.folder, environment, leads, |site| site.jobs())?
        }
    };
    jobs.ok_or_else(|| {
        let error = anyhow::anyhow!("the journal does not record which server program runs");
        Failure::from(error).hint("textnlp-deploy up")
    })
}

/// The `admin` command of the server program.
pub const COMMAND: &str = "keys";

/// Like [`run`], for job output that is kept in logs: the key is created here, and the job gets only its digest.
async fn logged(jobs: &dyn Jobs, lineage: Lineage, mut command: Value) -> Result<Value, Failure> {
    let made = match command["do"].as_str() {
        Some("create") => {
            command["do"] = json!("put");
            Some(NewKey::generate())
        }
        Some("rotate") => Some(NewKey::with_public_id(command["public_id"].as_str().unwrap_or_default())),
        _ => None,
    };
    let Some(made) = made else {
        return run(jobs, lineage, COMMAND, &command).await;
    };
    let made = made.map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
    command["public_id"] = json!(made.public_id);
    command["sha256"] = json!(digest(&made.text));
    let id = command["public_id"].as_str().unwrap_or_default();
    let output = jobs.run(lineage, COMMAND, &command).await.map_err(|error| {
        // A job whose end was not observed may have completed.
        let failure = Failure::from(error);
        let lost = format!(
            "key `{id}` may be active, but its secret was not received: revoke it with `key revoke {id}` when the cluster answers again"
        );
        Failure { error: failure.error.context(lost), ..failure }
    })?;
    let mut answer = match (output.answer, &output.failure) {
        // The job completed, but its answer is lost.
        (None, None) => json!({ "public_id": id }),
        (answer, _) => answered(COMMAND, answer.unwrap_or_default(), output.failure)?,
    };
    answer["key"] = json!(made.text);
    Ok(answer)
}

/// The answer of the program, or its own error message.
pub fn answered(command: &str, answer: Value, failed: Option<String>) -> Result<Value, Failure> {
    if let Some(message) = answer["error"]["message"].as_str() {
        let exit = if answer["error"]["internal"] == true { Exit::Failed } else { Exit::Usage };
        let mut failure = Failure::new(exit, "key", anyhow::anyhow!("{message}"));
        failure.hint = answer["error"]["hint"].as_str().map(str::to_owned);
        return Err(failure);
    }
    match failed {
        None if !answer.is_null() => Ok(answer),
        why => {
            let why = why.unwrap_or_else(|| "it printed no error".to_owned());
            Err(anyhow::anyhow!("{}", why.trim()).context(format!("run the server program, admin {command}")).into())
        }
    }
}

/// What was not given is left to the server's default.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            Value::Object(fields.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_key_is_revoked_only_beside_another_valid_key_with_all_scopes() {
        let key = |id: &str, scopes: &[&str], expires_at: Value, revoked_at: Value| json!({ "public_id": id, "scopes": scopes, "expires_at": expires_at, "revoked_at": revoked_at });
        let first = key("first", &["*"], Value::Null, Value::Null);
        let check = |other: Value, expect: bool| {
            let listed = json!({ "keys": [first, other] });
            assert_eq!(has_other_administrator(&listed, "first"), expect, "{listed}");
        };
        check(key("a", &["*"], Value::Null, Value::Null), true);
        check(key("a", &["generate"], Value::Null, Value::Null), false);
        check(key("a", &["*"], json!(100), Value::Null), false);
        check(key("first", &["*"], Value::Null, Value::Null), false);
        check(key("a", &["*"], Value::Null, json!(1)), false);
        assert!(!has_other_administrator(&json!({}), "first"));
    }
}
