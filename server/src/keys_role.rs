//! `serve --role keys`: keys by JSON, for whoever deploys: a command on standard input, an answer on standard output.

use serde_json::{Value, json};

use crate::auth::{SCOPES, key, tenant};
use crate::config::{Address, Config, Database, DatabaseAt, Rate, nearest};
use crate::control::keys as replicated;
use crate::control::keys::NotDone;
use crate::database::{ApiKey, KeyPut, Store, StoreError, now_ms};
use crate::retry::{Backoff, retry};

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The command is wrong.
    #[error("{message}")]
    Command {
        /// What is wrong with it.
        message: String,
        /// What to write instead.
        hint: Option<String>,
    },
    /// The database cannot be used.
    #[error("ask the database")]
    Store(#[from] StoreError),
    /// The site's watch does not do it.
    #[error(transparent)]
    Watch(#[from] NotDone),
    /// The system has no random numbers.
    #[error("no key could be generated")]
    Random,
}

fn wrong<T>(message: impl Into<String>, hint: &str) -> Result<T, KeysError> {
    Err(KeysError::Command { message: message.into(), hint: Some(hint.to_owned()) })
}

const COMMANDS: &[&str] = &["create", "put", "list", "revoke", "rotate", "take"];

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
];

/// Does one command.
pub async fn keys(config: &Config, command: &str) -> Result<Value, KeysError> {
    let command: Value = serde_json::from_str(command).map_err(|error| KeysError::Command {
        message: format!("the command is no JSON: {error}"),
        hint: Some(r#"{"do":"list"}"#.into()),
    })?;
    let Some(fields) = command.as_object() else { return wrong("the command is no JSON object", r#"{"do":"list"}"#) };
    if let Some(other) = fields.keys().find(|name| !FIELDS.contains(&name.as_str())) {
        let hint = nearest(other, FIELDS)
            .map_or_else(|| format!("known: {}", FIELDS.join(", ")), |word| format!("did you mean `{word}`?"));
        return wrong(format!("`{other}` is not a known field"), &hint);
    }
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    let public_id = || match text("public_id") {
        Some(id) if key::is_public_id(id) => Ok(id.to_owned()),
        _ => wrong("`public_id` is missing or no public id", "4 to 64 of a-z, 0-9 and -, as in `tnlp_<public id>_…`"),
    };
    let store = Store::open(&config.database).await?;
    store.prepare().await?;
    let keys = Keys { store: &store, watch: config.watch.as_ref() };
    let answer = match text("do") {
        Some("list") => json!({ "keys": store.keys().await? }),
        Some("create") => {
            let new = key::NewKey::generate().map_err(|_| KeysError::Random)?;
            let wanted = wanted(fields, &new.public_id, &key::digest(&new.text))?;
            keys.put(&wanted).await?;
            shown(&wanted, Some(&new.text))
        }
        Some("put") => {
            let wanted = wanted(fields, &public_id()?, &digest(text("sha256").unwrap_or_default())?)?;
            let done = keys.put(&wanted).await?;
            // A key is put again where a kept database remembers that it was once taken back: whoever puts it says that it is to open.
            let reinstated = match fields.get("reinstate") {
                None | Some(Value::Bool(false)) => false,
                Some(Value::Bool(true)) => keys.set_revoked(&wanted.public_id, false).await?,
                Some(_) => return wrong("`reinstate` is not true or false", "leave it out, or write true"),
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
                return wrong(format!("there is no key `{id}`"), r#"{"do":"list"} shows them"#);
            };
            if old.revoked_at.is_some() {
                return wrong(format!("key `{id}` is revoked"), "create a new one");
            }
            // Whoever cannot be told a key in private makes it elsewhere, and brings its digest.
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
        // For copies of several sites: all hold what the primary's database held, revocations too.
        Some("take") => {
            let Some(from) = text("from") else { return wrong("`from` is missing", "the path of another database") };
            let other = Database { at: DatabaseAt::File(from.into()), ..config.database.clone() };
            let other = Store::open(&other).await?;
            let all = other.keys().await?;
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

/// Where keys are written: the site's own database, or the control data of all sites, of which that is a view.
struct Keys<'a> {
    store: &'a Store,
    watch: Option<&'a Address>,
}

impl Keys<'_> {
    async fn key(&self, public_id: &str) -> Result<Option<ApiKey>, KeysError> {
        match self.watch {
            Some(watch) => Ok(replicated::key(watch, public_id).await?),
            None => Ok(self.store.key(public_id).await?),
        }
    }

    async fn put(&self, key: &ApiKey) -> Result<KeyPut, KeysError> {
        match self.watch {
            Some(watch) => Ok(replicated::put(watch, key).await?),
            None => Ok(retry(Backoff::DATABASE, StoreError::may_be_repeated, || self.store.put_key(key)).await?),
        }
    }

    async fn set_revoked(&self, public_id: &str, revoked: bool) -> Result<bool, KeysError> {
        if let Some(watch) = self.watch {
            return Ok(replicated::set_revoked(watch, public_id, revoked).await?);
        }
        let set = async || match revoked {
            true => self.store.revoke_key(public_id).await,
            false => self.store.reinstate_key(public_id).await,
        };
        Ok(retry(Backoff::DATABASE, StoreError::may_be_repeated, set).await?)
    }
}

fn digest(text: &str) -> Result<String, KeysError> {
    if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
        return Ok(text.to_owned());
    }
    wrong("`sha256` is missing or no digest", "64 hexadecimal digits: SHA-256 of the key's whole text")
}

fn wanted(fields: &serde_json::Map<String, Value>, public_id: &str, sha256: &str) -> Result<ApiKey, KeysError> {
    let text = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => wrong(format!("`{name}` must be a text"), "write it in quotes"),
    };
    let number = |name: &str| match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64().filter(|n| (1..=1 << 50).contains(n)) {
            Some(number) => Ok(Some(number)),
            None => wrong(format!("`{name}` must be a whole number above 0"), "leave it out for none"),
        },
    };
    let rate = |name: &str| -> Result<Option<Rate>, KeysError> {
        let Some(text) = text(name)? else { return Ok(None) };
        text.parse()
            .map(Some)
            .map_err(|why: String| KeysError::Command { message: format!("`{name}` {why}"), hint: None })
    };
    let tenant = text("tenant")?.unwrap_or_else(|| tenant::DEFAULT.to_owned());
    if !tenant::is_tenant_id(&tenant) {
        return wrong(format!("`{tenant}` is no tenant id"), "1 to 40 of a-z, 0-9, - and _");
    }
    let name = text("name")?.unwrap_or_else(|| "unnamed".to_owned());
    if name.len() > 200 || name.chars().any(char::is_control) {
        return wrong("`name` is too long or holds control characters", "at most 200 bytes");
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
    let expires_at = match (number("expires_at")?, number("expires_in")?) {
        (Some(_), Some(_)) => return wrong("`expires_at` stands beside `expires_in`", "write one of them"),
        (Some(at), None) => Some(at as i64),
        (None, Some(seconds)) => Some(now_ms().saturating_add((seconds as i64).saturating_mul(1000))),
        (None, None) => None,
    };
    Ok(ApiKey {
        public_id: public_id.to_owned(),
        sha256: sha256.to_owned(),
        tenant,
        name,
        scopes,
        rate_limit: rate("rate_limit")?,
        token_rate_limit: rate("token_rate_limit")?,
        token_limit: number("token_limit")?,
        created_at: now_ms(),
        expires_at,
        revoked_at: None,
    })
}

fn shown(key: &ApiKey, text: Option<&str>) -> Value {
    let mut shown = json!(key);
    if let Some(text) = text {
        shown["key"] = json!(text);
    }
    shown
}
