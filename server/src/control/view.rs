//! The site's database as a view of the acknowledged table: replicas read it as they always did.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_control::Write;
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::beside::Beside;
use super::config::WatchConfig;
use super::rows::{self, KEY, VERIFIER};
use crate::auth::jwt;
use crate::config;
use crate::database::{Store, StoreError};
use crate::retry::{Backoff, retry};

/// Between two looks at whether the PostgreSQL of all sites is to be written here.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// Between two looks at what this site itself has to tell.
const TELL_EVERY: Duration = Duration::from_secs(1);

/// Between two looks at whether what this site told is still known.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// The databases of a watch.
pub(super) struct Stores {
    /// The one that the replicas use.
    pub(super) all: Store,
    /// The one that is filled here.
    pub(super) own: Store,
}

/// Opens the site's database, whose schema somebody else has made. A PostgreSQL may be still to come, or be a copy at the moment.
pub(super) async fn open(watch: &WatchConfig) -> Result<Stores, StoreError> {
    if let Some(outside) = &watch.outside {
        let store = Store::open_later(&outside.at().map_err(StoreError::Address)?, 2)?;
        return Ok(Stores { all: store.clone(), own: store });
    }
    let Some(postgres) = &watch.postgres else {
        let file = watch.database.strip_prefix("sqlite://").unwrap_or(&watch.database);
        let at = config::DatabaseAt::File(file.into());
        let store = Store::open(&config::Database { at, pool_size: 2, max_overflow: 2 }).await?;
        store.prepare().await?;
        return Ok(Stores { all: store.clone(), own: store });
    };
    let open = |url: &str| {
        let at = config::PostgresAt::new(url).map_err(StoreError::Address)?.with_password(&postgres.password_file);
        Store::open_later(&at, 2)
    };
    Ok(Stores { all: open(&watch.database)?, own: open(&postgres.own)? })
}

/// The same as [`follow`] for the PostgreSQL of all sites: only the site that leads writes, and after it has taken the place everything once more,
/// because its copy may have lacked the last of it.
pub(super) async fn lead(actor: Actor, own: Store, config: WatchConfig, beside: Beside, stop: CancellationToken) {
    let mut committed = actor.committed();
    let mut told = Told::default();
    let (mut look, mut tell) = (tokio::time::interval(LOOK_EVERY), tokio::time::interval(TELL_EVERY));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let upto = *committed.borrow_and_update();
        show_as_leader(&actor, &own, &config, &beside, upto).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
            // A database that is not there yet would be waited for.
            _ = tell.tick() => told.look(&actor, beside.is_shown_at_all().then_some(&own), &config).await,
        }
    }
}

async fn show_as_leader(actor: &Actor, own: &Store, config: &WatchConfig, beside: &Beside, committed: u64) {
    let Ok(standing) = actor.standing().await else { return };
    if standing.primary.as_ref() != Some(&config.site) {
        beside.set_shown(0);
        // Its replicas read where the primary writes.
        return actor.is_applied(committed);
    }
    if !beside.is_shown(standing.since) {
        actor.is_applied(0);
    }
    // A copy would only refuse, after a while.
    if beside.kept().is_none_or(|kept| kept.role != "primary") {
        return;
    }
    match own.schema().await {
        // Nobody has a key in a database that has no tables.
        Ok(0) => beside.set_shown(standing.since),
        Ok(_) if show(actor, own).await => beside.set_shown(standing.since),
        Ok(_) => {}
        Err(error) => tracing::debug!(error = %crate::error::chain(&error), "the database does not answer yet"),
    }
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
            _ = tell.tick() => told.look(&actor, Some(&store), &config).await,
        }
    }
}

/// Where all sites store in a database of somebody else's, keys and usage are there and nowhere else: what the log carries is only who leads. The
/// public half of this site's signing key is put where the others look for it.
pub(super) async fn tell(actor: Actor, store: Store, config: WatchConfig, stop: CancellationToken) {
    let applies = async {
        let mut committed = actor.committed();
        loop {
            actor.is_applied(*committed.borrow_and_update());
            if committed.changed().await.is_err() {
                return;
            }
        }
    };
    // Again and again: whoever keeps the database may put an older one in its place.
    let tells = async {
        loop {
            let told = put_verifier(&store, &config).await;
            tokio::time::sleep(if told { TELL_AGAIN } else { TELL_EVERY }).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = applies => {}
        () = tells => {}
    }
}

async fn put_verifier(store: &Store, config: &WatchConfig) -> bool {
    match own_verifier(config).await {
        Verifier::None => true,
        Verifier::NotYet => false,
        Verifier::Is { kid, jwk } => match store.put_verifier(&config.site.to_string(), &kid, &jwk.to_string()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(error = %crate::error::chain(&error), "the database does not take this site's key yet");
                false
            }
        },
    }
}

/// Writes what was acknowledged since the last time; says whether that was done.
async fn show(actor: &Actor, store: &Store) -> bool {
    let Ok((upto, writes)) = actor.acknowledged_after(actor.applied()).await else { return false };
    for Write { key, value } in writes {
        // Nothing of ours is ever taken out of the table; what others put there has no row.
        let Some(value) = value else { continue };
        let written = retry(Backoff::DATABASE, StoreError::may_be_repeated, || show_one(store, &key, &value)).await;
        if let Err(error) = written {
            // All of it is tried again with the next change, and at the latest with the next look.
            tracing::warn!(%key, error = %crate::error::chain(&error), "a row could not be written");
            return false;
        }
    }
    actor.is_applied(upto);
    true
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
    async fn look(&mut self, actor: &Actor, store: Option<&Store>, config: &WatchConfig) {
        if !self.verifier {
            self.verifier = tell_verifier(actor, config).await;
        }
        // The first primary brings what its database held; later ones hold nothing that the table does not.
        if let (false, true, Some(store)) = (self.keys, config.site == config.home, store) {
            self.keys = tell_keys(actor, store).await;
        }
    }
}

/// The public half of the key that signs this site's tokens.
enum Verifier {
    None,
    NotYet,
    Is { kid: String, jwk: Value },
}

async fn own_verifier(config: &WatchConfig) -> Verifier {
    let Some(file) = &config.jwt_key_file else { return Verifier::None };
    // Its replicas may be still to come, and their key with them.
    let Ok(pem) = tokio::fs::read(file).await else { return Verifier::NotYet };
    match jwt::public_half(&pem) {
        Ok((kid, jwk)) => Verifier::Is { kid, jwk },
        Err(_) => {
            tracing::warn!(%file, "the key that signs tokens cannot be read: other sites will not know its tokens");
            Verifier::None
        }
    }
}

async fn tell_verifier(actor: &Actor, config: &WatchConfig) -> bool {
    let (kid, jwk) = match own_verifier(config).await {
        Verifier::None => return true,
        Verifier::NotYet => return false,
        Verifier::Is { kid, jwk } => (kid, jwk),
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
