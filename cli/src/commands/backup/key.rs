//! The key of an environment's copies: made once, kept with its other secrets, and to be carried away by a person.

use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;
use serde_json::json;
use textnlp_orchestrator::backup::Key;
use textnlp_provider::{Secret, SecretName, SecretRef, SecretStore, SecretVersion};

use super::{failed, standing};
use crate::clouds;
use crate::report::{Console, Failure, Success};
use crate::session::Session;

const NAME: &str = "backup-key";
const VERSION: &str = "1";

fn reference() -> SecretRef {
    SecretRef { name: SecretName(NAME.to_owned()), version: SecretVersion(VERSION.to_owned()) }
}

/// The key, if there is one.
pub async fn there(folder: &Utf8Path) -> Result<Option<Key>, Failure> {
    let store = clouds::secrets(folder);
    let reference = reference();
    if !store.versions(&reference.name).await?.contains(&reference.version) {
        return Ok(None);
    }
    let secret = store.get(&reference).await.context("read the backup key")?;
    Ok(Key::parse(&secret).map_err(failed)?.into_iter().next())
}

/// The key, made when there is none.
pub async fn ensure(folder: &Utf8Path) -> Result<Key, Failure> {
    /// Two first copies at once make two keys, of which the store keeps one.
    const TRIES: u32 = 5;
    for _ in 0..TRIES {
        if let Some(key) = there(folder).await? {
            return Ok(key);
        }
        let reference = reference();
        let fresh = Key::generate().secret();
        if clouds::secrets(folder).put(&reference.name, &reference.version, &fresh).await.is_err() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    there(folder).await?.ok_or_else(|| {
        Failure::from(anyhow::anyhow!("the backup key could not be stored"))
            .hint("look at the state folder's `secrets`")
    })
}

/// `backup key show`.
pub async fn show(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(Console::new(session.global.output, true))?;
    if super::super::running::state(&session.again(), &chosen.name, &chosen.folder).await?.is_new() {
        return Err(super::gather::not_up(&session.again(), &chosen.name));
    }
    let key = ensure(&chosen.folder).await?;
    console.say(format!(
        "This key opens every backup of {}. Keep it where a fire here does not reach, and where nobody else reads it:\n\
         a password manager, a sheet of paper in a safe. Without it, backups are worthless once this machine is gone.",
        chosen.name
    ));
    standing::key_was_shown(&chosen.folder)?;
    let secret: Secret = key.secret();
    let text = secret.expose_text().unwrap_or_default();
    let public = key.recipient().to_string();
    let shown = format!("# backups of {}\n# public key: {public}\n{text}", chosen.name);
    Ok(Success::new(shown, json!({ "environment": chosen.name, "key": text, "recipient": public })))
}
