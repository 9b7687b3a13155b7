//! API keys where control data is replicated: read from and written through the site agent.

use std::time::Duration;

use http::StatusCode;
use serde_json::{Value, json};
use textnlp_control::Write;
use textnlp_process::Address;
use textnlp_store::{ApiKey, KeyPut, now_ms};

use super::client;
use super::rows::{self, KEY};

/// Why control data was not read or written, with a hint.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct ControlDataError {
    /// The error.
    pub message: String,
    /// The hint.
    pub hint: Option<String>,
}

/// Timeout of a write. A failover takes less, and so does the first join of a second site.
const WRITE_TIMEOUT: Duration = Duration::from_secs(45);

/// One key.
pub async fn key(watch: &Address, public_id: &str) -> Result<Option<ApiKey>, ControlDataError> {
    let name = format!("{KEY}{public_id}");
    let path = format!("/v1/table?prefix={name}&fresh=1");
    let answer = write_result(client::get(watch, &path, Duration::from_secs(5)).await)?;
    match answer["entries"].get(&name) {
        Some(value) => {
            let unreadable =
                |why| ControlDataError { message: format!("key {public_id} cannot be read: {why}"), hint: None };
            rows::to_key(public_id, value).map(Some).map_err(unreadable)
        }
        None => Ok(None),
    }
}

/// Creates or updates a key; see [`Store::put_key`](textnlp_store::Store::put_key).
pub async fn put(watch: &Address, wanted: &ApiKey) -> Result<KeyPut, ControlDataError> {
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
    write_key(watch, &key).await.map(|()| done)
}

/// Revokes or reinstates a key; returns whether that changed anything.
pub async fn set_revoked(watch: &Address, public_id: &str, revoked: bool) -> Result<bool, ControlDataError> {
    let Some(there) = key(watch, public_id).await?.filter(|key| key.revoked_at.is_some() != revoked) else {
        return Ok(false);
    };
    let key = ApiKey { revoked_at: revoked.then(now_ms), ..there };
    write_key(watch, &key).await.map(|()| true)
}

async fn write_key(watch: &Address, key: &ApiKey) -> Result<(), ControlDataError> {
    let (key, value) = rows::of_key(key);
    write(watch, Write { key, value: Some(value) }).await
}

/// Writes an entry and waits until the sites show it: a new key is used at once, at any site.
pub(super) async fn write(watch: &Address, write: Write) -> Result<(), ControlDataError> {
    let body = json!({ "writes": [write], "timeout_ms": WRITE_TIMEOUT.as_millis() as u64, "visible": true });
    write_result(client::post(watch, "/v1/write", &body, WRITE_TIMEOUT + Duration::from_secs(5)).await).map(drop)
}

fn write_result(answer: Result<(StatusCode, Value), String>) -> Result<Value, ControlDataError> {
    match answer {
        Ok((StatusCode::OK, answer)) => Ok(answer),
        Ok((status, answer)) => {
            let details = &answer["error"];
            let message = details["message"].as_str().map_or_else(|| format!("it answered {status}"), str::to_owned);
            Err(ControlDataError {
                message: format!("control data was not written: {message}"),
                hint: details["hint"].as_str().map(str::to_owned),
            })
        }
        Err(why) => Err(ControlDataError {
            message: format!("the site agent does not answer: {why}"),
            hint: Some("`textnlp-deploy dr status` shows which sites run".to_owned()),
        }),
    }
}
