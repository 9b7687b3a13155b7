//! `admin keys`: JSON key commands on standard input, answers on standard output, for deployment tools.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_net::retry::retry;
use textnlp_sites::control::keys as replicated;
use textnlp_sites::control::keys::ControlDataError;
use textnlp_store::{Action, Actor, ApiKey, AuditEvent, KeyPut, Outcome, RETRIES, Store, StoreError, now_ms, verifier};

use crate::auth::{SCOPES, key, tenant};
use crate::config::{Address, Config, Database, DatabaseAt, Rate, nearest};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The command is wrong.
    #[error("{message}")]
    Command {
        /// The problem.
        message: String,
        /// The hint.
        hint: Option<String>,
    },
    /// The database cannot be used.
    #[error("query the database")]
    Store(#[from] StoreError),
    /// The site agent refused or failed.
    #[error(transparent)]
    Watch(#[from] ControlDataError),
    /// The system has no random numbers.
    #[error("no key could be generated")]
    Random,
}

fn wrong<T>(message: impl Into<String>, hint: &str) -> Result<T, KeysError> {
    Err(KeysError::Command { message: message.into(), hint: Some(hint.to_owned()) })
}

const COMMANDS: &[&str] = &["create", "put", "list", "revoke", "rotate", "expire", "take", "rotated", "remove_tenant"];

const FIELDS: &[&str] = &[
    "do",
    "public_id",
    "sha256",
    "name",
    "tenant",
    "scopes",
    "rate_limit",
    "token_rate_limit",
    "token_limit",
    "expires_at",
    "expires_in",
    "reinstate",
    "from",
    "immediately",
    "operator",
];

/// The operator of a command: the account it names, else the one that runs this process.
pub(crate) fn operator(named: Option<&str>) -> Result<Actor, KeysError> {
    match named {
        None => Ok(Actor::of_process()),
        Some(name) if textnlp_store::is_plain(name) => Ok(Actor::Operator(name.to_owned())),
        Some(_) => wrong("`operator` is empty, too long or has control characters", "at most 200 bytes"),
    }
}

/// Does one command.
pub async fn keys(config: &Config, command: &str) -> Result<Value, KeysError> {
    let command: Value = serde_json::from_str(command).map_err(|error| KeysError::Command {
        message: format!("the command is not valid JSON: {error}"),
        hint: Some(r#"{"do":"list"}"#.into()),
    })?;
    let Some(fields) = command.as_object() else {
        return wrong("the command is not a JSON object", r#"{"do":"list"}"#);
    };
    if let Some(other) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let hint = nearest(other, FIELDS)
            .map_or_else(|| format!("known: {}", FIELDS.join(", ")), |word| format!("did you mean `{word}`?"));
        return wrong(format!("`{other}` is not a known field"), &hint);
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let public_id = || match text("public_id") {
        Some(id) if key::is_public_id(id) => Ok(id.to_owned()),
        _ => {
            wrong("`public_id` is missing or not a public id", "4 to 64 of a-z, 0-9 and -, as in `tnlp_<public id>_…`")
        }
    };
    let by = match fields.get("operator") {
        None | Some(Value::Null) => operator(None)?,
        Some(named) => operator(Some(named.as_str().unwrap_or_default()))?,
    };
    let store = Store::open_existing(&config.database).await?;
    store.prepare().await?;
    let keys = Keys { store: &store, watch: config.watch.as_ref(), by: &by };
    let answer = match text("do") {
        Some("list") => {
            store.append_audit(&[AuditEvent::new(&by, Action::KeyList)]).await?;
            json!({ "keys": store.keys().await? })
        }
        Some("create") => {
            let new = key::NewKey::generate().map_err(|_| KeysError::Random)?;
            let wanted = wanted(fields, &new.public_id, &key::digest(&new.text))?;
            // Two keys of one name are allowed, such as while clients change to the new one.
            let same: Vec<String> = match fields.contains_key("name") {
                true => {
                    let others = store.keys().await?.into_iter().filter(|other| is_same(other, &wanted));
                    others.map(|other| other.public_id).collect()
                }
                false => Vec::new(),
            };
            keys.put(&wanted).await?;
            let mut answer = shown(&wanted, Some(&new.text));
            answer["same_name"] = json!(same);
            answer
        }
        Some("put") => {
            let wanted = wanted(fields, &public_id()?, &digest(text("sha256").unwrap_or_default())?)?;
            let done = keys.put(&wanted).await?;
            // A database may remember that a key was revoked: putting it again requires an explicit `reinstate`.
            let reinstated = match fields.get("reinstate") {
                None | Some(Value::Bool(false)) => false,
                Some(Value::Bool(true)) => keys.set_revoked(&wanted.public_id, false).await?,
                Some(_) => return wrong("`reinstate` is not true or false", "omit it, or write true"),
            };
            let mut answer = shown(&wanted, None);
            answer["changed"] = json!(done != KeyPut::Unchanged || reinstated);
            answer
        }
        Some("revoke") => {
            let id = public_id()?;
            let there = keys.key(&id).await?.is_some();
            let revoked = keys.set_revoked(&id, true).await?;
            json!({ "public_id": id, "found": there, "revoked": revoked })
        }
        Some("rotate") => {
            let id = public_id()?;
            let Some(old) = keys.key(&id).await? else {
                return wrong(format!("there is no key `{id}`"), "`textnlp-deploy key list` shows them");
            };
            if old.revoked_at.is_some() {
                return wrong(format!("key `{id}` is revoked"), "create a new one");
            }
            // A caller that must not see the key generates it elsewhere and supplies its digest.
            let (sha256, new) = match text("sha256") {
                Some(sha256) => (digest(sha256)?, None),
                None => {
                    let new = key::NewKey::with_public_id(&id).map_err(|_| KeysError::Random)?;
                    (key::digest(&new.text), Some(new.text))
                }
            };
            let wanted = ApiKey { sha256, ..old };
            keys.put(&wanted).await?;
            shown(&wanted, new.as_deref())
        }
        // The key ends at this time, or earlier where it would end earlier.
        Some("expire") => {
            let id = public_id()?;
            let Some(old) = keys.key(&id).await? else {
                return wrong(format!("there is no key `{id}`"), "`textnlp-deploy key list` shows them");
            };
            let end = match expires_at(fields)? {
                Some(end) => end.min(old.expires_at.unwrap_or(end)),
                None => return wrong("`expires_in` is missing", "seconds from now"),
            };
            let wanted = ApiKey { expires_at: Some(end), ..old };
            keys.put(&wanted).await?;
            shown(&wanted, None)
        }
        // Keys of sites that replicate control data stay in it: a removed tenant would come back with them.
        Some("remove_tenant") => {
            let name = text("tenant").unwrap_or_default();
            let (found, replicated) = (store.has_tenant(name).await?, config.watch.is_some());
            let removed = !replicated && store.remove_tenant(name, &by).await?;
            json!({ "tenant": name, "found": found, "removed": removed, "replicated": replicated })
        }
        // The deployment tool has replaced a secret. After a leaked signing key, tokens that it signed are no longer
        // accepted: entries of keys in use come back with the next look of the servers that sign with them.
        Some("rotated") => {
            let Some(name) = text("name").filter(|name| textnlp_store::is_plain(name)) else {
                return wrong("`name` is missing, or too long, or has control characters", "the secret: jwt, ca");
            };
            let drops = name == "jwt" && fields.get("immediately") == Some(&Value::Bool(true));
            let verifiers = if drops { store.verifiers().await? } else { BTreeMap::new() };
            let dropped: Vec<String> = verifiers.into_keys().filter(|name| verifier::is_lease(name)).collect();
            let event = AuditEvent::new(&by, Action::SecretRotate).object(name).detail(json!({ "dropped": dropped }));
            store.append_audit(&[event]).await?;
            store.drop_verifiers(&dropped).await?;
            json!({ "name": name, "dropped": dropped })
        }
        // For replicas at several sites: all take over the primary's keys, including revocations.
        Some("take") => {
            let Some(from) = text("from") else { return wrong("`from` is missing", "the path of another database") };
            let other = Database { at: DatabaseAt::File(from.into()), ..config.database.clone() };
            let other = Store::open_existing(&other).await?;
            let all = other.keys().await?;
            let copied = AuditEvent::new(&by, Action::KeyCopy).detail(json!({ "keys": all.len() }));
            store.append_audit(&[copied]).await?;
            for key in &all {
                store.mirror_key(key).await?;
            }
            other.close().await;
            json!({ "keys": all.len() })
        }
        other => {
            let typed = other.unwrap_or_default();
            let hint = nearest(typed, COMMANDS)
                .map_or_else(|| format!("one of: {}", COMMANDS.join(", ")), |word| format!("did you mean `{word}`?"));
            return wrong(format!("`do` cannot be `{typed}`"), &hint);
        }
    };
    store.close().await;
    Ok(answer)
}

/// Where keys are written: the site's own database, or the control data of all sites, which that database mirrors.
struct Keys<'a> {
    store: &'a Store,
    watch: Option<&'a Address>,
    by: &'a Actor,
}

impl Keys<'_> {
    async fn key(&self, public_id: &str) -> Result<Option<ApiKey>, KeysError> {
        match self.watch {
            Some(watch) => Ok(replicated::key(watch, public_id).await?),
            None => Ok(self.store.key(public_id).await?),
        }
    }

    async fn put(&self, key: &ApiKey) -> Result<KeyPut, KeysError> {
        let Some(watch) = self.watch else {
            let put = || self.store.put_key(key, Some(self.by));
            return Ok(retry(RETRIES, StoreError::may_be_repeated, put).await?);
        };
        let there = replicated::key(watch, &key.public_id).await?;
        let Some(act) = textnlp_store::act(there.as_ref(), key) else { return Ok(KeyPut::Unchanged) };
        elsewhere(self.store, key.event(self.by, act), replicated::put(watch, key)).await
    }

    async fn set_revoked(&self, public_id: &str, revoked: bool) -> Result<bool, KeysError> {
        if let Some(watch) = self.watch {
            let there = replicated::key(watch, public_id).await?;
            let Some(there) = there.filter(|key| key.revoked_at.is_some() != revoked) else { return Ok(false) };
            let act = if revoked { Action::KeyRevoke } else { Action::KeyReinstate };
            let event = there.event(self.by, act);
            return elsewhere(self.store, event, replicated::set_revoked(watch, public_id, revoked)).await;
        }
        let set = async || match revoked {
            true => self.store.revoke_key(public_id, Some(self.by)).await,
            false => self.store.reinstate_key(public_id, Some(self.by)).await,
        };
        Ok(retry(RETRIES, StoreError::may_be_repeated, set).await?)
    }
}

/// Records a change to the control data of all sites: once before it, so that none is unrecorded, and once with its
/// outcome.
pub(crate) async fn elsewhere<T, E: From<StoreError> + From<ControlDataError>>(
    store: &Store,
    event: AuditEvent,
    act: impl Future<Output = Result<T, ControlDataError>>,
) -> Result<T, E> {
    let append = async |events: [AuditEvent; 1]| {
        retry(RETRIES, StoreError::may_be_repeated, || store.append_audit(&events)).await
    };
    append([event.clone().outcome(Outcome::Attempted)]).await?;
    let done = act.await;
    let outcome = if done.is_ok() { Outcome::Succeeded } else { Outcome::Failed };
    // The act cannot be undone, and that it was attempted is recorded: its answer is worth more than this row.
    let _ = append([event.renewed().outcome(outcome)]).await;
    Ok(done?)
}

fn digest(text: &str) -> Result<String, KeysError> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(text.to_owned());
    }
    wrong("`sha256` is missing or not a digest", "64 hexadecimal digits: SHA-256 of the key's whole text")
}

fn wanted(fields: &serde_json::Map<String, Value>, public_id: &str, sha256: &str) -> Result<ApiKey, KeysError> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => wrong(format!("`{name}` must be a text"), "write it in quotes"),
    };
    let rate = |name: &str| -> Result<Option<Rate>, KeysError> {
        let Some(text) = text(name)? else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|why: String| KeysError::Command { message: format!("`{name}` {why}"), hint: None })
    };
    let tenant = text("tenant")?.unwrap_or_else(|| tenant::DEFAULT.to_owned());
    if !tenant::is_tenant_id(&tenant) {
        return wrong(format!("`{tenant}` is not a valid tenant id"), "1 to 40 of a-z, 0-9, - and _");
    }
    let name = text("name")?.unwrap_or_else(|| "unnamed".to_owned());
    if !key::is_name(&name) {
        return wrong("`name` is empty, too long or has control characters", "1 to 200 bytes");
    }
    let scopes: Vec<String> = match fields.get("scopes") {
        None | Some(Value::Null) => vec!["*".into()],
        Some(value) => {
            match value.as_array().map(|list| list.iter().map(|s| s.as_str().map(str::to_owned)).collect()) {
                Some(Some(scopes)) => scopes,
                _ => return wrong("`scopes` must be a list of texts", &SCOPES.join(", ")),
            }
        }
    };
    if let Some(other) = scopes.iter().find(|scope| *scope != "*" && !SCOPES.contains(&scope.as_str())) {
        return wrong(format!("there is no scope `{other}`"), &format!("*, {}", SCOPES.join(", ")));
    }
    let expires_at = expires_at(fields)?;
    Ok(ApiKey {
        public_id: public_id.to_owned(),
        sha256: sha256.to_owned(),
        tenant,
        name,
        scopes,
        rate_limit: rate("rate_limit")?,
        token_rate_limit: rate("token_rate_limit")?,
        token_limit: number(fields, "token_limit")?,
        created_at: now_ms(),
        expires_at,
        revoked_at: None,
    })
}

fn number(fields: &serde_json::Map<String, Value>, name: &str) -> Result<Option<u64>, KeysError> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|n| (1..=1 << 50).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => wrong(format!("`{name}` must be a whole number above 0"), "omit it for none"),
        },
    }
}

/// When a key is to end, in milliseconds since 1970.
fn expires_at(fields: &serde_json::Map<String, Value>) -> Result<Option<i64>, KeysError> {
    // One day more: the clock of the caller, which checked the limit, may be ahead.
    let latest = now_ms().saturating_add((key::MAX_EXPIRY_DAYS + 1) * 24 * 60 * 60 * 1000);
    let end = match (number(fields, "expires_at")?, number(fields, "expires_in")?) {
        (Some(_), Some(_)) => return wrong("`expires_at` cannot be combined with `expires_in`", "use one of them"),
        (Some(at), None) => at as i64,
        (None, Some(seconds)) => now_ms().saturating_add((seconds as i64).saturating_mul(1000)),
        (None, None) => return Ok(None),
    };
    if end > latest {
        let hint = "omit `expires_at` and `expires_in` for a key that does not expire";
        return wrong(format!("a key expires within {} days", key::MAX_EXPIRY_DAYS), hint);
    }
    Ok(Some(end))
}

/// Whether another key that is valid has the name of a new one.
fn is_same(other: &ApiKey, new: &ApiKey) -> bool {
    let is_valid = other.revoked_at.is_none() && other.expires_at.is_none_or(|end| end > now_ms());
    is_valid && (&other.tenant, &other.name) == (&new.tenant, &new.name)
}

fn shown(key: &ApiKey, text: Option<&str>) -> Value {
    let mut shown = json!(key);
    if let Some(text) = text {
        shown["key"] = json!(text);
    }
    shown
}
