//! Commands that the server program of a running environment runs beside its database, and its API keys.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::dr::control_client::ControlClients;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::{IssuedKey, KeyIssuer, KeyRequest};
use textnlp_orchestrator::load::Key;
use textnlp_provider::Secret;
use textnlp_provider::operations::Jobs;

use crate::running::ServerProcess;
use crate::{ChosenEnvironment, Exit, Failure, Platform, RunningEnvironment};

/// Lifetime in minutes of a temporary key, for the case that its user is killed.
const KEY_MINUTES: i64 = 60;
/// The `admin` command for keys.
const KEYS: &str = "keys";

/// Runs the `admin` commands of the server program of a running environment.
#[derive(Clone, Copy)]
pub struct Admin<'a> {
    /// The providers.
    pub platform: &'a dyn Platform,
    /// The running environment.
    pub running: &'a RunningEnvironment,
    /// The environment that it was provisioned from.
    pub environment: &'a Environment,
}

/// Jobs beside the servers of a site.
pub struct SiteJobs<'a> {
    of: Admin<'a>,
    jobs: Arc<dyn Jobs>,
}

impl<'a> Admin<'a> {
    /// That of a running environment.
    pub fn of(chosen: &'a ChosenEnvironment, running: &'a RunningEnvironment) -> Self {
        Self { platform: chosen.scope.platform, running, environment: &chosen.loaded.environment }
    }

    /// Runs one key command beside the database, on behalf of the operator.
    pub async fn ask(&self, command: &Value) -> Result<Value, Failure> {
        let mut command = without_nulls(command);
        command["operator"] = json!(self.operator());
        match self.ask_once(&command).await {
            // Before the next `up`, the program may be of a release without the audit log.
            Err(failure) if failure.error.to_string().contains("`operator` is not a known field") => {
                if let Some(fields) = command.as_object_mut() {
                    fields.remove("operator");
                }
                self.ask_once(&command).await
            }
            answer => answer,
        }
    }

    async fn ask_once(&self, command: &Value) -> Result<Value, Failure> {
        let site = self.site(self.running.serving().await).await?;
        if site.jobs.are_logged() {
            return site.logged(command.clone()).await;
        }
        site.run(KEYS, command).await
    }

    /// Where each database of an environment is reached. Sites on hosts have one each. Sites in clusters share one.
    pub fn places(&self) -> Vec<Option<&'a ServerProcess>> {
        match self.running.servers.as_slice() {
            [] => vec![None],
            servers => servers.iter().map(Some).collect(),
        }
    }

    /// One-off jobs beside the servers of a site, or of the primary site if none is given.
    pub async fn site(&self, serving: Option<&ServerProcess>) -> Result<SiteJobs<'a>, Failure> {
        let Self { platform, running: RunningEnvironment { folder, .. }, environment } = *self;
        let jobs = match serving {
            Some(ServerProcess { site, server, .. }) => {
                let site = platform.operations_of(folder, environment, site.as_str(), Some(server.clone()))?;
                site.and_then(|site| site.jobs())
            }
            None => {
                // If the home site is lost, the primary site runs the job. In clusters all sites share one database.
                let leads = match environment.witness_place() {
                    Some(_) => ControlClients::at(&platform.places(folder, environment)?).witness.status().await.ok(),
                    None => None,
                };
                let leads = leads.as_ref().map(|witness| witness.primary.as_str());
                platform.find(folder, environment, leads, |site| site.jobs())?
            }
        };
        let jobs = jobs.ok_or_else(|| {
            let error = anyhow::anyhow!("the journal does not record which server program runs");
            Failure::from(error).hint("textnlp-deploy up")
        })?;
        Ok(SiteJobs { of: *self, jobs })
    }

    /// The operator's name in the audit log.
    pub fn operator(&self) -> String {
        let name = format!("{}@{}", textnlp_files::operator(), self.platform.host_name());
        name.chars().filter(|c| !c.is_control()).take(100).collect()
    }

    /// Issues a key for a measurement.
    pub async fn temporary(&self, name: &str) -> Result<IssuedKey, Failure> {
        let name = format!("{name} (temporary)");
        let issued = self.create(KeyRequest { name, requests_per_hour: None, tenant: None }).await;
        issued.map_err(|why| Failure::from(anyhow::anyhow!("{why}").context("make a temporary key")))
    }

    /// Revokes it. The error is a warning.
    pub async fn end(&self, id: &str) -> Result<(), String> {
        let revoked = self.revoke(id).await;
        revoked
            .map_err(|why| format!("the temporary key {id} could not be revoked ({why}); it expires within one hour"))
    }

    /// Records the rotation of a secret in the audit logs. The servers forget the public halves of a leaked signing key.
    pub async fn rotated(&self, name: &str, immediately: bool) -> Result<(), Failure> {
        for place in self.places() {
            let command =
                json!({ "do": "rotated", "name": name, "immediately": immediately, "operator": self.operator() });
            self.site(place).await?.run(KEYS, &command).await?;
        }
        Ok(())
    }
}

impl SiteJobs<'_> {
    /// Runs one `admin` command of the server program with its JSON input.
    pub async fn run(&self, command: &str, input: &Value) -> Result<Value, Failure> {
        self.run_for(command, input, Duration::ZERO).await
    }

    /// The same for a command that takes this time by design.
    pub async fn run_for(&self, command: &str, input: &Value, takes: Duration) -> Result<Value, Failure> {
        let output = self.jobs.run_for(self.of.running.lineage, command, input, takes).await?;
        answered(command, output.answer.unwrap_or_default(), output.failure)
    }

    /// Like [`Self::run`], for job output that is kept in logs: the key is created here, and the job gets only its digest.
    async fn logged(&self, mut command: Value) -> Result<Value, Failure> {
        let platform = self.of.platform;
        let made = match command["do"].as_str() {
            Some("create") => {
                command["do"] = json!("put");
                platform.new_key(None)
            }
            Some("rotate") => platform.new_key(Some(command["public_id"].as_str().unwrap_or_default())),
            _ => return self.run(KEYS, &command).await,
        };
        let made = made.ok_or_else(|| anyhow::anyhow!("the system has no random numbers"))?;
        command["public_id"] = json!(made.public_id);
        command["sha256"] = json!(made.digest);
        let id = made.public_id.as_str();
        let output = self.jobs.run(self.of.running.lineage, KEYS, &command).await.map_err(|error| {
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
            (answer, _) => answered(KEYS, answer.unwrap_or_default(), output.failure)?,
        };
        answer["key"] = json!(made.text);
        Ok(answer)
    }
}

/// Issues temporary keys.
#[async_trait]
impl KeyIssuer for Admin<'_> {
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String> {
        let until = SystemClock.now() + SignedDuration::from_mins(KEY_MINUTES);
        let rate = request.requests_per_hour.map_or("10000000/hour".to_owned(), |n| format!("{n}/hour"));
        let command = json!({
            "do": "create", "name": request.name, "rate_limit": rate, "expires_at": until.as_millisecond(),
            "tenant": request.tenant,
        });
        let made = self.ask(&command).await.map_err(|failure| format!("{:#}", failure.error))?;
        let text = |field: &str| {
            made[field].as_str().map(str::to_owned).ok_or_else(|| format!("the server reported no {field}"))
        };
        let header = self.environment.server.security.api_key_header.clone();
        Ok(IssuedKey { public_id: text("public_id")?, key: Key { header, value: Secret::new(text("key")?) } })
    }

    async fn revoke(&self, public_id: &str) -> Result<(), String> {
        let revoked = self.ask(&json!({ "do": "revoke", "public_id": public_id })).await;
        revoked.map(drop).map_err(|failure| format!("{:#}", failure.error))
    }

    async fn remove_tenant(&self, tenant: &str) -> Result<Option<String>, String> {
        why_it_stays(self.ask(&json!({ "do": "remove_tenant", "tenant": tenant })).await)
    }
}

/// Why a tenant was not removed. Sites that replicate control data keep it.
fn why_it_stays(answer: Result<Value, Failure>) -> Result<Option<String>, String> {
    match answer {
        Ok(answer) => {
            let stays = answer["found"] == true && answer["removed"] == false && answer["replicated"] == false;
            Ok(stays.then(|| "it has another valid key".to_owned()))
        }
        // Before the next `up`, and after a rollback, the program may be of a release without this command.
        Err(failure) if failure.error.to_string().contains("`do` cannot be `remove_tenant`") => {
            Ok(Some("the running release cannot remove it: deploy a release with this command: `up`".to_owned()))
        }
        Err(failure) => Err(format!("{:#}", failure.error)),
    }
}

/// Whether a list of keys has one with all scopes and without an end besides `id`.
pub fn has_other_administrator(listed: &Value, id: &str) -> bool {
    listed["keys"].as_array().into_iter().flatten().any(|key| {
        key["public_id"] != id && has_all_scopes(key) && key["revoked_at"].is_null() && key["expires_at"].is_null()
    })
}

/// Whether a key of a list was issued for a measurement of this program, and has ended.
pub fn was_temporary(key: &Value, now: Timestamp) -> bool {
    // The clocks of the server and of the operator's machine may differ.
    const LIFETIME_MS: i64 = 2 * KEY_MINUTES * 60_000;
    let at = |field: &str| key[field].as_i64();
    let name = key["name"].as_str().unwrap_or_default();
    let is_ours = name == "gate" || name.starts_with("gate-") || name.ends_with(" (temporary)");
    let is_short = at("created_at").zip(at("expires_at")).is_some_and(|(from, until)| until - from <= LIFETIME_MS);
    let has_ended = at("revoked_at").or(at("expires_at")).is_some_and(|end| end <= now.as_millisecond());
    is_ours && is_short && has_ended
}

/// Whether a key of a list has all scopes.
pub(crate) fn has_all_scopes(key: &Value) -> bool {
    key["scopes"].as_array().is_some_and(|scopes| scopes.iter().any(|scope| scope == "*"))
}

/// The answer of the program, or its own error message.
fn answered(command: &str, answer: Value, failed: Option<String>) -> Result<Value, Failure> {
    if let Some(message) = answer["error"]["message"].as_str() {
        let exit = if answer["error"]["internal"] == true { Exit::Failed } else { Exit::Usage };
        let hint = answer["error"]["hint"].as_str().map(str::to_owned);
        return Err(Failure::new(exit, "key", anyhow::anyhow!("{message}")).hinted(hint));
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
    fn tenant_that_stays_unexpectedly_is_reported() {
        let of = |found: bool, removed: bool, replicated: bool| {
            why_it_stays(Ok(json!({ "found": found, "removed": removed, "replicated": replicated })))
        };
        assert_eq!(of(true, true, false), Ok(None));
        assert_eq!(of(true, false, true), Ok(None));
        assert_eq!(of(false, false, false), Ok(None));
        assert_eq!(of(true, false, false), Ok(Some("it has another valid key".to_owned())));
        let failed = |message: &'static str| why_it_stays(Err(Failure::usage("key", anyhow::anyhow!(message))));
        assert!(failed("`do` cannot be `remove_tenant`").unwrap().unwrap().ends_with("`up`"));
        assert_eq!(failed("query the database"), Err("query the database".to_owned()));
    }

    #[test]
    fn ended_keys_of_measurements_are_told_from_those_of_clients() {
        let now = Timestamp::from_second(4000).unwrap();
        let of = |name: &str, created: i64, until: Value, revoked: Value| {
            let key = json!({ "name": name, "created_at": created, "expires_at": until, "revoked_at": revoked });
            was_temporary(&key, now)
        };
        assert!(of("gate-load", 0, json!(3_600_000), json!(10)));
        assert!(of("load (temporary)", 0, json!(3_600_000), Value::Null), "it has expired");
        assert!(!of("load (temporary)", 1_000_000, json!(4_600_000), Value::Null), "it is valid");
        assert!(!of("visitor", 0, json!(3_600_000), json!(10)));
        assert!(!of("gate", 0, Value::Null, json!(10)), "a client's key of this name has no such end");
    }

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
