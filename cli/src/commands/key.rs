//! `key`: API keys of a running environment. The server program manages them beside the database, as a one-off job.

use textnlp_orchestrator::environment::{API_KEY, names};
use textnlp_orchestrator::report::table::Table;
use textnlp_provider::{Recorded, Rotation};
use textnlp_service::keys::{Admin, has_other_administrator, was_temporary};
use textnlp_service::platform::Scope;

use super::prelude::*;
use super::secret;
use crate::args::Key;
use crate::table_view;

/// `key …`.
pub async fn key(session: &Session, command: &Key, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("API keys and tenants", session.quiet()).await?;
    // After a `restore` or an `up` on another machine, the journal may name a program that this machine lacks.
    let program = running.serving().await.map(|serving| &serving.server.program);
    if let Some(gone) = program.filter(|program| !program.is_file()) {
        let error = anyhow::anyhow!("{gone} does not exist").context(format!(
            "environment {} is recorded but does not run on this machine: run the command where its server runs",
            chosen.scope.name
        ));
        return Err(Failure::usage("not_up", error).hint(chosen.scope.last_up()));
    }
    let admin = Admin::of(&chosen, &running);
    match command {
        Key::Create { name, tenant, rate_limit, token_rate_limit, token_limit, expires_days, scopes } => {
            let expires_at = expires_days
                .map(|days| jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(days)));
            let made = admin
                .ask(&json!({
                    "do": "create", "name": name, "tenant": tenant, "rate_limit": rate_limit,
                    "token_rate_limit": token_rate_limit, "token_limit": token_limit,
                    "expires_at": expires_at.map(|t| t.as_millisecond()),
                    "scopes": (!scopes.is_empty()).then_some(scopes),
                }))
                .await?;
            let scopes = if scopes.is_empty() { "* (everything but admin)".to_owned() } else { scopes.join(", ") };
            // Servers of earlier versions do not say it.
            let same: Vec<&str> =
                made["same_name"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            if !same.is_empty() {
                let revoke = chosen.scope.command(&format!("key revoke {}", same[0]));
                let (valid, ids) = (counted(same.len(), "valid key"), same.join(", "));
                console.warn(format!("the tenant has {valid} of this name already: {ids}; to revoke one: {revoke}"));
            }
            console.say(format!("Scopes: {scopes}. This is the only time that the key is shown."));
            shown_once(&chosen.scope, made, console)
        }
        Key::List { all } => {
            let mut listed = admin.ask(&json!({ "do": "list" })).await?;
            let now = jiff::Timestamp::now();
            let keys = listed["keys"].as_array().into_iter().flatten();
            let (ended, shown): (Vec<_>, Vec<_>) = keys.partition(|key| !all && was_temporary(key, now));
            let usual = chosen.loaded.environment.server.security.rate_limit.to_string();
            let rows = shown.into_iter().map(|key| row(key, &usual)).collect();
            let scope = &chosen.scope;
            let mut text = rows_text(scope.name.as_str(), rows, &scope.command("key create NAME"));
            if !ended.is_empty() {
                let list = scope.command("key list --all");
                text.push_str(&format!("\n  {} of gates, loads and drills: {list}", counted(ended.len(), "ended key")));
            }
            listed["keys"].as_array_mut().into_iter().flatten().for_each(write_times);
            Ok(Success::new(text, listed))
        }
        Key::Rotate { id, grace, no_gate } if running.key_id.as_deref() == Some(id.as_str()) => {
            // First, so that the old key ends whatever happens afterwards.
            let expire = async || {
                let Some(grace) = grace else { return Ok(()) };
                let seconds = grace.as_seconds().max(1);
                let command = json!({ "do": "expire", "public_id": id, "expires_in": seconds });
                admin.ask(&command).await.map(drop)
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
            let made = admin.ask(&json!({ "do": "rotate", "public_id": id })).await?;
            console.say("This is the only time that the new key is shown; the old one no longer works.");
            shown_once(&chosen.scope, made, console)
        }
        Key::Revoke { id } => {
            if running.key_id.as_deref() == Some(id.as_str()) {
                let listed = admin.ask(&json!({ "do": "list" })).await?;
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
            let done = admin.ask(&json!({ "do": "revoke", "public_id": id })).await?;
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

/// The list, or that it is empty, with the command that creates a key.
fn rows_text(environment: &str, rows: Vec<Vec<String>>, create: &str) -> String {
    if rows.is_empty() {
        return format!("{environment} has no key\nTo create one: {create}");
    }
    let columns = ["ID", "TENANT", "NAME", "RATE", "SCOPES", "STATE"].map(str::to_owned).to_vec();
    format!("{environment}{}", table_view::lines(&Table { title: "", columns, rows }))
}

/// A row of the list. `usual`: the rate limit of keys without one.
fn row(key: &Value, usual: &str) -> Vec<String> {
    let word = |field: &str, otherwise: &str| key[field].as_str().unwrap_or(otherwise).to_owned();
    let day = |field: &str| {
        let at = key[field].as_i64().and_then(|at| jiff::Timestamp::from_millisecond(at).ok());
        at.map_or("-".to_owned(), |at| at.strftime("%Y-%m-%d %H:%M").to_string())
    };
    let state = if !key["revoked_at"].is_null() {
        format!("revoked {}", day("revoked_at"))
    } else if !key["expires_at"].is_null() {
        format!("until {}", day("expires_at"))
    } else {
        "active".to_owned()
    };
    let scopes: Vec<&str> = key["scopes"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let (id, tenant, name) = (word("public_id", "-"), word("tenant", "-"), word("name", "-"));
    vec![id, tenant, name, word("rate_limit", usual), scopes.join(","), state]
}

/// Writes the times of a key as documents of other commands have them. The server's program has milliseconds.
fn write_times(key: &mut Value) {
    for field in ["created_at", "expires_at", "revoked_at"] {
        if let Some(at) = key[field].as_i64().and_then(|at| jiff::Timestamp::from_millisecond(at).ok()) {
            key[field] = json!(at);
        }
    }
}

/// Prints a new key. When it cannot be written, it is lost, and the hint says how to replace it.
fn shown_once(scope: &Scope, mut made: Value, console: Console) -> Result<Success, Failure> {
    write_times(&mut made);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn list_without_keys_names_the_command_that_creates_one() {
        assert_eq!(rows_text("shop", Vec::new(), "key create NAME"), "shop has no key\nTo create one: key create NAME");
        let row = ["0f3a91c2", "-", "ci", "100", "*", "active"].map(str::to_owned).to_vec();
        let shown = rows_text("shop", vec![row], "key create NAME");
        assert!(shown.contains("TENANT") && shown.contains("0f3a91c2"), "{shown}");
    }
}
