//! `key`: API keys of a running environment. The server program does the work where the database is: as a child, or beside the servers in
//! their cluster.

use std::process::Stdio;

use anyhow::Context;
use serde_json::{Value, json};
use textnlp_orchestrator::dr::talk::Everybody;
use textnlp_orchestrator::environment::Environment;
use textnlp_server::auth::key::{NewKey, digest};
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

use super::running::{self, Running};
use crate::args::Key;
use crate::clouds;
use crate::report::{Console, Failure, Success};
use crate::session::Session;

/// `key …`.
pub async fn key(session: &Session, command: &Key, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(Console::new(session.global.output, true))?;
    let running = running::running(session, &chosen.name, &chosen.folder).await?;
    // After a `restore`, and where another machine put it up, the journal knows a program that is not here.
    if let Some(gone) = running.serving().await.map(|serving| &serving.program).filter(|program| !program.is_file()) {
        let error = anyhow::anyhow!("{gone} is not there").context(format!(
            "environment {} is recorded and does not run here: its server program knows the keys",
            chosen.name
        ));
        return Err(Failure::usage("not_up", error).hint(session.again().same("up", &chosen.name)));
    }
    let environment = &chosen.loaded.environment;
    match command {
        Key::Create { name, tenant, rate_limit, token_rate_limit, token_limit, expires_days } => {
            let expires_at = expires_days
                .map(|days| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(days)));
            let made = ask(
                &running,
                environment,
                &json!({
                    "do": "create", "name": name, "tenant": tenant, "rate_limit": rate_limit,
                    "token_rate_limit": token_rate_limit, "token_limit": token_limit,
                    "expires_at": expires_at.map(|t| t.as_millisecond()),
                }),
            )
            .await?;
            console.say("This is the only time that the key is shown.");
            Ok(Success::new(made["key"].as_str().unwrap_or_default().to_owned(), made))
        }
        Key::List => {
            let listed = ask(&running, environment, &json!({ "do": "list" })).await?;
            let mut text = format!("{:<18} {:<14} {:<22} {:<14} {}", "ID", "TENANT", "NAME", "RATE", "STATE");
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
                text.push_str(&format!(
                    "\n{:<18} {:<14} {:<22} {:<14} {state}",
                    word("public_id"),
                    word("tenant"),
                    word("name"),
                    word("rate_limit")
                ));
            }
            Ok(Success::new(text, listed))
        }
        Key::Rotate { id } => {
            not_our_own(&running, id)?;
            let made = ask(&running, environment, &json!({ "do": "rotate", "public_id": id })).await?;
            console.say("This is the only time that the new key is shown; the old one no longer works.");
            Ok(Success::new(made["key"].as_str().unwrap_or_default().to_owned(), made))
        }
        Key::Revoke { id } => {
            not_our_own(&running, id)?;
            let done = ask(&running, environment, &json!({ "do": "revoke", "public_id": id })).await?;
            // A mistyped id must not look like a key that has ended.
            if done["found"] == json!(false) {
                return Err(Failure::usage("no_such_key", anyhow::anyhow!("there is no key `{id}`"))
                    .hint(session.again().command("key list", &chosen.name)));
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

/// The environment's own first key is a resource: its secret is in the store, and commands talk to the service with it.
fn not_our_own(running: &Running, id: &str) -> Result<(), Failure> {
    if running.key_id.as_deref() != Some(id) {
        return Ok(());
    }
    let error = anyhow::anyhow!("`{id}` is the environment's own key, which `up` made and these commands use");
    Err(Failure::refused("own_key", error)
        .hint("make keys for people and programs with `textnlp-deploy key create NAME`, and rotate those"))
}

/// Has the server program do one command about keys.
pub async fn ask(running: &Running, environment: &Environment, command: &Value) -> Result<Value, Failure> {
    let (program, config) = match (running.serving().await, &running.namespace) {
        (Some(running::Serving { program, config, .. }), _) => (program, config),
        (None, Some(namespace)) => return in_cluster(running, environment, namespace, command).await,
        (None, None) => {
            let error = anyhow::anyhow!("the journal does not say which program serves");
            return Err(Failure::from(error).hint("textnlp-deploy up"));
        }
    };
    let mut child = Command::new(program)
        .args(["serve", "--role", "keys", "--config", config.as_str()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    let mut stdin = child.stdin.take().context("talk to the server program")?;
    let text = without_nulls(command).to_string();
    stdin.write_all(text.as_bytes()).await.context("talk to the server program")?;
    drop(stdin);
    let output = child.wait_with_output().await.context("wait for the server program")?;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let failed = (!output.status.success()).then(|| String::from_utf8_lossy(&output.stderr).into_owned());
    answered(answer, failed)
}

/// Servers in a cluster have their program do it beside them. What it says is in the cluster's logs, so that a key is made here, and only
/// its digest goes there.
async fn in_cluster(
    running: &Running,
    environment: &Environment,
    namespace: &str,
    command: &Value,
) -> Result<Value, Failure> {
    let (mut command, mut new) = (without_nulls(command), None);
    let made = match command["do"].as_str() {
        Some("create") => {
            command["do"] = json!("put");
            Some(NewKey::generate())
        }
        Some("rotate") => Some(NewKey::with_public_id(command["public_id"].as_str().unwrap_or_default())),
        _ => None,
    };
    if let Some(made) = made {
        let made = made.map_err(|_| anyhow::anyhow!("the system has no random numbers"))?;
        command["public_id"] = json!(made.public_id);
        command["sha256"] = json!(digest(&made.text));
        new = Some(made.text);
    }
    let arguments = ["serve", "--role", "keys", "--config", SERVER_CONFIG, "--do", &command.to_string()];
    let arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
    // Where the home site is lost, whoever leads in its place does it: all store in one database.
    let leads = match environment.witness_place() {
        Some(_) => Everybody::at(&clouds::places(&running.folder, environment)?).witness.status().await.ok(),
        None => None,
    };
    let leads = leads.as_ref().map(|witness| witness.primary.as_str());
    let within = (namespace, running.lineage);
    let said = clouds::errand(&running.folder, environment, leads, within, &arguments).await;
    let Some(new) = new else {
        let said = said?;
        return answered(said.answer.unwrap_or_default(), said.failed);
    };
    let id = command["public_id"].as_str().unwrap_or_default();
    // A job that nobody saw the end of may have done its work.
    let doubtful = |failure: Failure| {
        let lost = format!(
            "key `{id}` may be in force, and nobody has it: revoke it with `key revoke {id}` when the cluster answers again"
        );
        Failure { error: failure.error.context(lost), ..failure }
    };
    let said = said.map_err(|error| doubtful(error.into()))?;
    let mut answer = match (said.answer, &said.failed) {
        // It was done, and what was said of it is lost.
        (None, None) => json!({ "public_id": id }),
        (answer, _) => answered(answer.unwrap_or_default(), said.failed)?,
    };
    answer["key"] = json!(new);
    Ok(answer)
}

/// The configuration of a server in its pod.
const SERVER_CONFIG: &str = "/etc/textnlp/server.yaml";

/// What the program says of itself, where it ended badly.
fn answered(answer: Value, failed: Option<String>) -> Result<Value, Failure> {
    if let Some(message) = answer["error"]["message"].as_str() {
        let mut failure = Failure::usage("key", anyhow::anyhow!("{message}"));
        failure.hint = answer["error"]["hint"].as_str().map(str::to_owned);
        return Err(failure);
    }
    match failed {
        None if !answer.is_null() => Ok(answer),
        why => {
            let why = why.unwrap_or_else(|| "it said nothing".to_owned());
            Err(anyhow::anyhow!("{}", why.trim()).context("have the server program do a key command").into())
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
