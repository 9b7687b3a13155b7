//! API keys where control data is replicated: read from the site's watch, written through it.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use textnlp_control::Write;

use super::client;
use super::rows::{self, KEY};
use crate::config::Address;
use crate::database::{ApiKey, KeyPut, now_ms};

/// Why a key was not read or written, as a sentence, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct NotDone {
    /// What happened.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
}

/// A failover takes less, and so does the first time that a second site joins.
const WITHIN: Duration = Duration::from_secs(45);

/// One key.
pub(crate) async fn key(watch: &Address, public_id: &str) -> Result<Option<ApiKey>, NotDone> {
    let name = format!("{KEY}{public_id}");
    let path = format!("/v1/table?prefix={name}&fresh=1");
    let answer = told(client::get(watch, &path, Duration::from_secs(5)).await)?;
    match answer["entries"].get(&name) {
        Some(value) => {
            let unreadable = |why| NotDone { message: format!("key {public_id} cannot be read: {why}"), hint: None };
            rows::to_key(public_id, value).map(Some).map_err(unreadable)
        }
        None => Ok(None),
    }
}

/// Makes a key what is wanted; see [`Store::put_key`](crate::database::Store::put_key).
pub(crate) async fn put(watch: &Address, wanted: &ApiKey) -> Result<KeyPut, NotDone> {
    let (key, done) = match key(watch, &wanted.public_id).await? {
        None => (wanted.clone(), KeyPut::Created),
        Some(there) => {
            let same = ApiKey { created_at: there.created_at, revoked_at: there.revoked_at, ..wanted.clone() };
            if same == there {
                return Ok(KeyPut::Unchanged);
            }
            (same, KeyPut::Changed)
        }
    };
    write(watch, &key).await.map(|()| done)
}

/// Ends a key, or lets a revoked one in again; says whether that changed anything.
pub(crate) async fn set_revoked(watch: &Address, public_id: &str, revoked: bool) -> Result<bool, NotDone> {
    let Some(there) = key(watch, public_id).await?.filter(|key| key.revoked_at.is_some() != revoked) else {
        return Ok(false);
    };
    let key = ApiKey { revoked_at: revoked.then(now_ms), ..there };
    write(watch, &key).await.map(|()| true)
}

async fn write(watch: &Address, key: &ApiKey) -> Result<(), NotDone> {
    let (key, value) = rows::of_key(key);
    let writes = [Write { key, value: Some(value) }];
    // Whoever is told of a key uses it at once, at whichever site.
    let body = json!({ "writes": writes, "timeout_ms": WITHIN.as_millis() as u64, "visible": true });
    told(client::post(watch, "/v1/write", &body, WITHIN + Duration::from_secs(5)).await).map(drop)
}

fn told(answer: Result<(StatusCode, Value), String>) -> Result<Value, NotDone> {
    match answer {
        Ok((StatusCode::OK, answer)) => Ok(answer),
        Ok((status, answer)) => {
            let said = &answer["error"];
            let message = said["message"].as_str().map_or_else(|| format!("it answered {status}"), str::to_owned);
            Err(NotDone {
                message: format!("control data is not written: {message}"),
                hint: said["hint"].as_str().map(str::to_owned),
            })
        }
        Err(why) => Err(NotDone {
            message: format!("the site's watch does not answer: {why}"),
            hint: Some("`textnlp-deploy dr status` tells which sites run".to_owned()),
        }),
    }
}
