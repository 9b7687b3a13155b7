//! The site's database as a view of the acknowledged table: replicas read it as they always did.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_control::{MemberRole, Write};
use textnlp_net::retry::retry;
use textnlp_store::{Database, DatabaseAt, PostgresAt, RETRIES, Store, StoreError, verifier};
use tokio_util::sync::CancellationToken;

use super::actor::Actor;
use super::config::AgentConfig;
use super::database::{DatabaseStatus, ServerRole};
use super::rows::{self, FEATURE, KEY, VERIFIER};

/// Interval between two checks whether the shared PostgreSQL is writable here.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// Interval between two checks for data that only this site has.
const PUBLISH_INTERVAL: Duration = Duration::from_secs(1);

/// Interval between two checks that published data is still there.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// The databases of a site agent.
pub(super) struct Stores {
    /// The one that the replicas use.
    pub(super) all: Store,
    /// The one that is filled here.
    pub(super) own: Store,
}

/// Opens the site's database; its schema is created elsewhere. A PostgreSQL server may not run yet, or may be a replica
/// at the moment.
///
/// A missing SQLite file is created: a site whose disk was lost joins the others again without an `up`, and its keys and
/// feature flags are filled in from the acknowledged table.
pub(super) async fn open(watch: &AgentConfig) -> Result<Stores, StoreError> {
    if let Some(outside) = &watch.outside {
        let store = Store::open_later(&outside.at().map_err(StoreError::Address)?, 2)?;
        return Ok(Stores { all: store.clone(), own: store });
    }
    let Some(postgres) = &watch.postgres else {
        let file = watch.database.strip_prefix("sqlite://").unwrap_or(&watch.database);
        if !tokio::fs::try_exists(file).await.unwrap_or(true) {
            tracing::warn!(
                file,
                "the database file was missing and is created: what only this site had, such as usage and the audit log, is not in it"
            );
        }
        let at = DatabaseAt::File(file.into());
        let store = Store::open(&Database { at, pool_size: 2, max_overflow: 2 }).await?;
        store.prepare().await?;
        return Ok(Stores { all: store.clone(), own: store });
    };
    let open = |url: &str| {
        let at = PostgresAt::new(url).map_err(StoreError::Address)?.with_password(&postgres.password_file);
        Store::open_later(&at, 2)
    };
    Ok(Stores { all: open(&watch.database)?, own: open(&postgres.own)? })
}

/// The same as [`follow`] for the shared PostgreSQL of all sites. Only the primary writes. After a failover it writes
/// everything once more, because its replica may have lacked the last part.
pub(super) async fn lead(
    actor: Actor,
    own: Store,
    config: AgentConfig,
    database_status: DatabaseStatus,
    stop: CancellationToken,
) {
    let mut committed = actor.committed();
    let mut published = PublishedState::default();
    let (mut look, mut tell) = (tokio::time::interval(POLL_INTERVAL), tokio::time::interval(PUBLISH_INTERVAL));
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let upto = *committed.borrow_and_update();
        show_as_leader(&actor, &own, &config, &database_status, upto).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
            _ = look.tick() => {}
            // A database that is not there yet would be waited for.
            _ = tell.tick() => published.look(&actor, database_status.is_shown_at_all().then_some(&own), &config).await,
        }
    }
}

async fn show_as_leader(
    actor: &Actor,
    own: &Store,
    config: &AgentConfig,
    database_status: &DatabaseStatus,
    committed: u64,
) {
    let Ok(standing) = actor.standing().await else { return };
    if standing.primary.as_ref() != Some(&config.site) {
        database_status.set_shown(0);
        // The replicas read from the primary's database.
        return actor.is_applied(committed);
    }
    if !database_status.is_shown(standing.since) {
        actor.is_applied(0);
    }
    // A replica would only fail, after a timeout.
    if database_status.kept().is_none_or(|kept| kept.role != ServerRole::Primary) {
        return;
    }
    match own.schema().await {
        // A database without tables contains no keys.
        Ok(0) => database_status.set_shown(standing.since),
        Ok(_) if show(actor, own, config).await => database_status.set_shown(standing.since),
        Ok(_) => {}
        Err(error) => tracing::debug!(error = %textnlp_net::error_chain(&error), "the database does not answer yet"),
    }
}

/// Writes acknowledged data into the database, and publishes what only this site has, until the site agent stops.
pub(super) async fn follow(actor: Actor, store: Store, config: AgentConfig, stop: CancellationToken) {
    let mut committed = actor.committed();
    let mut published = PublishedState::default();
    let mut tell = tokio::time::interval(PUBLISH_INTERVAL);
    tell.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        show(&actor, &store, &config).await;
        tokio::select! {
            () = stop.cancelled() => return,
            changed = committed.changed() => if changed.is_err() { return },
            _ = tell.tick() => published.look(&actor, Some(&store), &config).await,
        }
    }
}

/// Where all sites store in an external database, keys and usage are only there, and the log carries only who leads.
/// The public half of this site's signing key is published where the others read it.
pub(super) async fn publish_state(actor: Actor, store: Store, config: AgentConfig, stop: CancellationToken) {
    let applies = async {
        let mut committed = actor.committed();
        loop {
            actor.is_applied(*committed.borrow_and_update());
            if committed.changed().await.is_err() {
                return;
            }
        }
    };
    // Repeated, because the operator of the database may restore an older state.
    let publisher = async {
        loop {
            let published = put_verifier(&store, &config).await;
            tokio::time::sleep(if published { TELL_AGAIN } else { PUBLISH_INTERVAL }).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = applies => {}
        () = publisher => {}
    }
}

async fn put_verifier(store: &Store, config: &AgentConfig) -> bool {
    match own_verifier(config).await {
        Verifier::None => true,
        Verifier::NotYet => false,
        Verifier::Is { kid, jwk } => match store.put_verifier(&config.site.to_string(), &kid, &jwk.to_string()).await {
            Ok(()) => true,
            Err(error) => {
                tracing::debug!(error = %textnlp_net::error_chain(&error), "the database does not accept this site's key yet");
                false
            }
        },
    }
}

/// Writes what was acknowledged since the last time; returns whether that succeeded.
async fn show(actor: &Actor, store: &Store, config: &AgentConfig) -> bool {
    let Ok((upto, writes)) = actor.acknowledged_after(actor.applied()).await else { return false };
    let own_leases = leases_of(config);
    for Write { key, value } in writes {
        // The servers of this site write these themselves; an older entry must not bring back one that they dropped.
        if key.starts_with(&own_leases) {
            continue;
        }
        let written = retry(RETRIES, StoreError::may_be_repeated, || show_one(store, &key, value.as_ref())).await;
        if let Err(error) = written {
            // Everything is retried with the next change or the next poll.
            tracing::warn!(%key, error = %textnlp_net::error_chain(&error), "a row could not be written");
            return false;
        }
    }
    actor.is_applied(upto);
    true
}

async fn show_one(store: &Store, name: &str, value: Option<&Value>) -> Result<(), StoreError> {
    // API keys are never removed from the table; foreign entries have no row.
    let Some(value) = value else {
        if let Some(verifier) = name.strip_prefix(VERIFIER) {
            return store.drop_verifiers(&[verifier.to_owned()]).await;
        }
        if let Some(feature) = name.strip_prefix(FEATURE) {
            return store.drop_feature(feature, None).await.map(drop);
        }
        return Ok(());
    };
    if let Some(public_id) = name.strip_prefix(KEY) {
        match rows::to_key(public_id, value) {
            Ok(key) => return store.mirror_key(&key).await,
            // A newer release may use formats that this one cannot read and ignores.
            Err(why) => tracing::warn!(%name, %why, "a key in the table cannot be read"),
        }
    } else if let Some(feature) = name.strip_prefix(FEATURE) {
        match rows::to_feature(feature, value) {
            Ok(change) => {
                if store.put_feature(&change, None).await?.is_err() {
                    tracing::warn!(%name, "the database has too many feature flags for another one");
                }
            }
            Err(why) => tracing::warn!(%name, %why, "a feature flag in the table cannot be read"),
        }
    } else if let Some(site) = name.strip_prefix(VERIFIER)
        && let Some(kid) = value["kid"].as_str()
    {
        return store.put_verifier(site, kid, &value["jwk"].to_string()).await;
    }
    Ok(())
}

/// What only this site has and must publish: the public half of its signing key, and keys and changed feature flags
/// older than the log.
#[derive(Debug, Default)]
struct PublishedState {
    verifier: bool,
    keys: bool,
    leases: Option<tokio::time::Instant>,
}

impl PublishedState {
    async fn look(&mut self, actor: &Actor, store: Option<&Store>, config: &AgentConfig) {
        if !self.verifier {
            self.verifier = publish_verifier(actor, config).await;
        }
        // Where all sites have one database, the leases are there already.
        if let (None, Some(store)) = (&config.postgres, store)
            && self.leases.is_none_or(|at| at.elapsed() >= TELL_AGAIN)
            && publish_leases(actor, store, config).await
        {
            self.leases = Some(tokio::time::Instant::now());
        }
        // The first primary publishes the keys and flags of its database; later ones have none that the table lacks.
        if let (false, true, Some(store)) = (self.keys, config.site == config.home, store) {
            self.keys = publish_keys(actor, store).await;
        }
    }
}

/// The public half of the key that signs this site's tokens.
enum Verifier {
    None,
    NotYet,
    Is { kid: String, jwk: Value },
}

async fn own_verifier(config: &AgentConfig) -> Verifier {
    let Some(file) = &config.jwt_key_file else { return Verifier::None };
    // Its replicas, and their key, may not exist yet.
    let Ok(pem) = tokio::fs::read(file).await else { return Verifier::NotYet };
    match verifier::public_half(&pem) {
        Ok((kid, jwk)) => Verifier::Is { kid, jwk },
        Err(_) => {
            tracing::warn!(%file, "the key that signs tokens cannot be read: other sites will not accept its tokens");
            Verifier::None
        }
    }
}

async fn publish_verifier(actor: &Actor, config: &AgentConfig) -> bool {
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

/// The entries of this site's verifier leases.
fn leases_of(config: &AgentConfig) -> String {
    format!("{VERIFIER}{}/", config.site)
}

/// Gives the other sites the leases that the servers of this site wrote, and takes back those that they dropped.
async fn publish_leases(actor: &Actor, store: &Store, config: &AgentConfig) -> bool {
    let own = leases_of(config);
    let (Ok(stored), Ok((_, table))) = (store.verifiers().await, actor.table(&own).await) else { return false };
    let entries = stored.iter().filter_map(|(name, jwk)| {
        let (key, jwk) = (format!("{VERIFIER}{name}"), serde_json::from_str::<Value>(jwk).ok()?);
        key.starts_with(&own).then(|| (key, json!({ "kid": jwk["kid"], "jwk": jwk })))
    });
    let entries: BTreeMap<String, Value> = entries.collect();
    let changed = entries.iter().filter(|(key, value)| table.get(*key) != Some(*value));
    let changed = changed.map(|(key, value)| Write { key: key.clone(), value: Some(value.clone()) });
    let dropped = table.keys().filter(|key| !entries.contains_key(*key));
    let dropped = dropped.map(|key| Write { key: key.clone(), value: None });
    let writes: Vec<Write> = changed.chain(dropped).collect();
    writes.is_empty() || super::http::put(actor, config, writes, Duration::from_secs(5)).await.is_ok()
}

async fn publish_keys(actor: &Actor, store: &Store) -> bool {
    let Ok((overview, _)) = actor.look().await else { return false };
    if overview.role != MemberRole::Primary || !overview.writable {
        return false;
    }
    let (Ok(keys), Ok(features)) = (store.keys().await, store.feature_changes().await) else { return false };
    let (Ok((_, table)), Ok((_, flags))) = (actor.table(KEY).await, actor.table(FEATURE).await) else { return false };
    let missing: Vec<Write> = keys
        .iter()
        .map(rows::of_key)
        .chain(features.iter().map(rows::of_feature))
        .filter(|(name, _)| !table.contains_key(name) && !flags.contains_key(name))
        .map(|(key, value)| Write { key, value: Some(value) })
        .collect();
    for some in missing.chunks(100) {
        if actor.write(some.to_vec()).await.is_err() {
            return false;
        }
    }
    true
}
