//! The site's database as a view of the acknowledged table: replicas read it as they always did.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_control::Write;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::config::WatchConfig;
use super::rows::{self, KEY, VERIFIER};
use crate::auth::jwt;
use crate::config;
use crate::database::{Store, StoreError};
use crate::retry::{Backoff, retry};

/// Between two looks at what this site itself has to tell.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Opens the site's database, whose schema somebody else has made.
pub(super) async fn open(url: &str) -> Result<Store, StoreError> {
    let file = url.strip_prefix("sqlite://").unwrap_or(url);
    let at = config::DatabaseAt::File(file.into());
    let store = Store::open(&config::Database { at, pool_size: 2, max_overflow: 2 }).await?;
    store.prepare().await?;
    Ok(store)
}

/// Writes what is acknowledged into the database, and tells the others what only this site knows, until the watch stops.
pub(super) async fn follow(actor: Actor, store: Store, config: WatchConfig, stop: CancellationToken) {
    let mut committed = actor.committed();
    let mut told = Told::default();
    let mut tell = tokio::time::interval(TELL_EVERY);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        show(&actor, &store).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
            _ = tell.tick() => told.look(&actor, &store, &config).await,
        }
    }
}

/// Writes what was acknowledged since the last time.
async fn show(actor: &Actor, store: &Store) {
    let Ok((upto, writes)) = actor.acknowledged_after(actor.applied()).await else { return };
    for Write { key, value } in writes {
        // Nothing of ours is ever taken out of the table; what others put there has no row.
        let Some(value) = value else { continue };
        let written = retry(Backoff::DATABASE, StoreError::passes, || show_one(store, &key, &value)).await;
        if let Err(error) = written {
            // All of it is tried again with the next change, and at the latest with the next look.
            return tracing::warn!(%key, error = %crate::error::chain(&error), "a row could not be written");
        }
    }
    actor.is_applied(upto);
}

async fn show_one(store: &Store, name: &str, value: &Value) -> Result<(), StoreError> {
    if let Some(public_id) = name.strip_prefix(KEY) {
        match rows::to_key(public_id, value) {
            Ok(key) => return store.mirror_key(&key).await,
            // A newer release may know more; what this one cannot read it leaves alone.
            Err(why) => tracing::warn!(%name, %why, "a key in the table cannot be read"),
        }
    } else if let Some(site) = name.strip_prefix(VERIFIER)
        && let Some(kid) = value["kid"].as_str()
    {
        return store.put_verifier(site, kid, &value["jwk"].to_string()).await;
    }
    Ok(())
}

/// What only this site knows and everybody should: the public half of its signing key, and keys that were there before there was a log.
#[derive(Debug, Default)]
struct Told {
    verifier: bool,
    keys: bool,
}

impl Told {
    async fn look(&mut self, actor: &Actor, store: &Store, config: &WatchConfig) {
        if !self.verifier {
            self.verifier = tell_verifier(actor, config).await;
        }
        // The first primary brings what its database held; later ones hold nothing that the table does not.
        if !self.keys && config.site == config.home {
            self.keys = tell_keys(actor, store).await;
        }
    }
}

async fn tell_verifier(actor: &Actor, config: &WatchConfig) -> bool {
    let Some(file) = &config.jwt_key_file else { return true };
    // Its replicas may be still to come, and their key with them.
    let Ok(pem) = tokio::fs::read(file).await else { return false };
    let Ok((kid, jwk)) = jwt::public_half(&pem) else {
        tracing::warn!(%file, "the key that signs tokens cannot be read: other sites will not know its tokens");
        return true;
    };
    let (name, value) = (format!("{VERIFIER}{}", config.site), json!({ "kid": kid, "jwk": jwk }));
    let Ok((_, there)) = actor.table(&name).await else { return false };
    if there.get(&name) == Some(&value) {
        return true;
    }
    super::http::put(actor, config, vec![Write { key: name, value: Some(value) }], Duration::from_secs(5)).await.is_ok()
}

async fn tell_keys(actor: &Actor, store: &Store) -> bool {
    let Ok((overview, _)) = actor.look().await else { return false };
    if overview.role != "primary" || !overview.writable {
        return false;
    }
    let (Ok(keys), Ok((_, table))) = (store.keys().await, actor.table(KEY).await) else { return false };
    let missing: Vec<Write> = keys
        .iter()
        .map(rows::of_key)
        .filter(|(name, _)| !table.contains_key(name))
        .map(|(key, value)| Write { key, value: Some(value) })
        .collect();
    for some in missing.chunks(100) {
        if actor.write(some.to_vec()).await.is_err() {
            return false;
        }
    }
    true
}
