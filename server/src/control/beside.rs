//! The PostgreSQL of all sites, where that is what they store in: its keeper is told who leads, and lets go before the place is given away.
//!
//! Who is primary is decided by the log alone. The database follows: the keeper asks [`lead`] several times per heartbeat and lets nobody
//! write without a lease; a copy that lacks something keeps its site from taking over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use textnlp_control::{Overview, Refused, Site};
use tokio_util::sync::CancellationToken;

use super::actor::{Actor, Unanswered};
use super::client;
use super::config::WatchConfig;
use crate::config::Address;

/// `watch.postgres`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// The keeper of this site's server.
    #[serde(deserialize_with = "address")]
    pub keeper: Address,
    /// This site's own server, whatever its role: `postgresql://…`.
    pub own: String,
    /// The password of the service.
    pub password_file: Utf8PathBuf,
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Address, D::Error> {
    String::deserialize(from)?.parse().map_err(serde::de::Error::custom)
}

/// Between two looks at the keeper.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// It answers from memory.
const ANSWERS_WITHIN: Duration = Duration::from_secs(1);
/// What was seen longer ago says nothing any more.
const FRESH: Duration = Duration::from_secs(3);
/// A fast shutdown of a server whose copy has everything.
const RELEASE_WITHIN: Duration = Duration::from_secs(15);
/// Between two attempts at giving the place away that were refused.
const AGAIN: Duration = Duration::from_secs(5);
/// A server that does nothing for longer than this, and than two graces, is given up: a start takes less.
const DEAD_AFTER: Duration = Duration::from_secs(15);
/// Another site's watch answers from memory.
const PEER_WITHIN: Duration = Duration::from_secs(2);

/// What the keeper says of its server.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kept {
    /// `primary`, `copy`, or nothing while it does not run.
    pub(super) role: String,
    /// Whether it does its work.
    pub(super) ready: bool,
    /// Why not.
    pub(super) why: Option<String>,
    /// Whether it has everything that the primary's had, as far as it could be seen.
    pub(super) fit: bool,
    /// The copies at other sites, as the primary's server sees them.
    pub(super) copies: BTreeMap<Site, CopyAt>,
    /// How often another site's history took the place of what was here: by rewinding, and by a copy of everything.
    pub(super) rewound: u64,
    pub(super) copied: u64,
}

/// How far the copy at a site is.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct CopyAt {
    pub(super) connected: bool,
    pub(super) behind_bytes: u64,
    pub(super) behind_ms: u64,
}

/// What is known of the database, and how far it shows the log.
#[derive(Debug, Clone, Default)]
pub(super) struct Beside {
    kept: Arc<Mutex<Option<(Instant, Kept)>>>,
    /// For which lead (its first epoch) everything that was acknowledged is in the database.
    shown: Arc<AtomicU64>,
    /// Since when this site leads and its server does nothing.
    idle_since: Arc<Mutex<Option<Instant>>>,
}

impl Beside {
    /// What the keeper said a moment ago.
    pub(super) fn kept(&self) -> Option<Kept> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(at, _)| at.elapsed() < FRESH).map(|(_, kept)| kept.clone())
    }

    /// For how long this site has led while its server did nothing.
    fn idle(&self, overview: &Overview) -> Option<Duration> {
        let serves = self.kept().is_some_and(|kept| kept.role == "primary" && kept.ready);
        let mut since = self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        // A site that cannot acknowledge has other troubles, which the protocol sees to.
        if overview.role != "primary" || !overview.writable || serves {
            *since = None;
        } else {
            since.get_or_insert_with(Instant::now);
        }
        since.map(|since| since.elapsed())
    }

    pub(super) fn is_shown(&self, since: u64) -> bool {
        since > 0 && self.shown.load(Ordering::SeqCst) == since
    }

    /// For whichever.
    pub(super) fn is_shown_at_all(&self) -> bool {
        self.shown.load(Ordering::SeqCst) > 0
    }

    /// 0: for none.
    pub(super) fn set_shown(&self, since: u64) {
        self.shown.store(since, Ordering::SeqCst);
    }
}

/// What the keeper is told: `GET /v1/lead`.
pub(super) async fn lead(actor: &Actor, beside: &Beside) -> Result<Value, Unanswered> {
    let standing = actor.standing().await?;
    Ok(json!({
        "epoch": standing.epoch,
        "since": standing.since,
        "primary": standing.primary,
        "before": standing.before,
        "lease_ms": standing.lease_ms,
        "shown": beside.is_shown(standing.since),
    }))
}

/// Looks at the keeper until the watch stops.
pub(super) async fn follow(config: PostgresConfig, actor: Actor, beside: Beside, stop: CancellationToken) {
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let answer = client::get(&config.keeper, "/v1/standing", ANSWERS_WITHIN).await;
        let kept = answer.ok().filter(|(status, _)| *status == StatusCode::OK);
        if let Some(kept) = kept.and_then(|(_, answer)| serde_json::from_value::<Kept>(answer).ok()) {
            actor.is_fit(kept.fit);
            *beside.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), kept));
        } else if beside.kept().is_none() {
            // A site whose database nobody keeps could lead nobody.
            actor.is_fit(false);
        }
    }
}

/// Why the place was not given away.
#[derive(Debug)]
pub(super) enum NotGiven {
    Unanswered(Unanswered),
    /// The keeper says no, and what to do.
    Refused(String, String),
}

/// Gives the place to another site, the database first: nobody is told any more that this site leads, the keeper lets everything out to the copy
/// there and stops its server, and then the witness is asked. What is refused changes nothing.
pub(super) async fn hand_over(
    config: &WatchConfig,
    postgres: &PostgresConfig,
    actor: &Actor,
    beside: &Beside,
    to: &Site,
) -> Result<(), NotGiven> {
    let (overview, _) = actor.look().await.map_err(NotGiven::Unanswered)?;
    let refused = |why| Err(NotGiven::Unanswered(Unanswered::Refused(why)));
    if overview.role != "primary" {
        return refused(Refused::NotPrimary { primary: overview.primary });
    }
    if *to == config.site {
        return refused(Refused::Already);
    }
    if !overview.members.contains(to) {
        return refused(Refused::NotInSync { site: to.clone() });
    }
    let is_dead = beside.idle(&overview).is_some_and(|idle| idle >= dead_after(config));
    if let Some(why) = overview.why_not {
        return refused(why);
    }
    if is_dead && !is_fit(config, to).await {
        return refused(Refused::NotFit { site: to.clone() });
    }
    if !actor.hold_lead() {
        return Err(NotGiven::Unanswered(Unanswered::Busy));
    }
    let given = match is_dead {
        true => leave(config, actor, to).await,
        false => let_go(config, postgres, actor, to).await,
    };
    // From here on the protocol itself says whether this site leads.
    actor.tell_lead();
    given
}

fn dead_after(config: &WatchConfig) -> Duration {
    DEAD_AFTER.max(Duration::from_millis(2 * config.grace_ms()))
}

/// Whether a site says that its copy of the database had caught up.
async fn is_fit(config: &WatchConfig, site: &Site) -> bool {
    let Some(address) = config.peers.get(site) else { return false };
    let answer = client::get(address, "/v1/status", PEER_WITHIN).await;
    answer.is_ok_and(|(status, answer)| status == StatusCode::OK && answer["database"]["fit"] == json!(true))
}

/// Gives the place away where the server here does nothing: there is nobody to let go, so the lease is waited out that its keeper was told
/// of last. What the server had not sent is lost with it, as with a site that dies.
async fn leave(config: &WatchConfig, actor: &Actor, to: &Site) -> Result<(), NotGiven> {
    tokio::time::sleep(Duration::from_millis(config.grace_ms())).await;
    give(config, actor, to).await
}

async fn let_go(config: &WatchConfig, postgres: &PostgresConfig, actor: &Actor, to: &Site) -> Result<(), NotGiven> {
    let body = json!({ "to": to });
    match client::post(&postgres.keeper, "/v1/release", &body, RELEASE_WITHIN).await {
        Ok((StatusCode::OK, _)) => {}
        Ok((_, answer)) => {
            let text = |field: &str| answer["error"][field].as_str().unwrap_or_default().to_owned();
            return Err(NotGiven::Refused(text("message"), text("hint")));
        }
        Err(why) => {
            let hint = "look at the database's log; `textnlp-deploy dr status` tells how each site is";
            return Err(NotGiven::Refused(
                format!("the keeper of the database at {}: {why}", config.site),
                hint.into(),
            ));
        }
    }
    give(config, actor, to).await
}

/// Asks the witness, once nobody here is let in any more.
async fn give(config: &WatchConfig, actor: &Actor, to: &Site) -> Result<(), NotGiven> {
    actor.hand_over(to.clone()).await.map_err(NotGiven::Unanswered)?;
    // Until the witness's answer is known, or the wish is given up, this site leads nobody, and says so by itself.
    let until = Instant::now() + Duration::from_millis(config.grace_ms() + 2000);
    while Instant::now() < until {
        match actor.look().await {
            Ok((overview, _)) if overview.role != "primary" => return Ok(()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    Ok(())
}

/// Gives the home site its place back once it has been well for two graces, its copy of the database too.
pub(super) async fn go_home(
    config: WatchConfig,
    postgres: PostgresConfig,
    actor: Actor,
    beside: Beside,
    stop: CancellationToken,
) {
    let mut well_since: Option<Instant> = None;
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Ok((overview, _)) = actor.look().await else { continue };
        let copy = beside.kept().and_then(|kept| kept.copies.get(&config.home).cloned());
        let is_well = overview.role == "primary"
            && config.site != config.home
            && overview.members.contains(&config.home)
            && copy.is_some_and(|copy| copy.connected && copy.behind_ms <= config.max_lag_ms);
        if !is_well {
            well_since = None;
            continue;
        }
        let rested = well_since.get_or_insert_with(Instant::now).elapsed();
        if rested >= Duration::from_millis(2 * config.grace_ms()) && Instant::now() >= not_before {
            not_before = Instant::now() + AGAIN;
            if let Err(why) = hand_over(&config, &postgres, &actor, &beside, &config.home).await {
                tracing::info!(?why, home = %config.home, "the home site does not get its place back yet");
            }
        }
    }
}

/// Gives the place to a site whose copy had caught up, the first in order, when this one leads and its server has done nothing for longer than a
/// start takes: a disk that is full or broken stops the database and not the watch. Nobody else would take the place of a primary that is heard.
pub(super) async fn leave_when_dead(
    config: WatchConfig,
    postgres: PostgresConfig,
    actor: Actor,
    beside: Beside,
    stop: CancellationToken,
) {
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
        let Ok((overview, _)) = actor.look().await else { continue };
        // Told to whoever asks for another primary, also where nothing is automatic.
        let is_dead = beside.idle(&overview).is_some_and(|idle| idle >= dead_after(&config));
        if !is_dead || !config.automatic || Instant::now() < not_before {
            continue;
        }
        not_before = Instant::now() + AGAIN;
        let members = config.sites().into_iter().filter(|site| *site != config.site && overview.members.contains(site));
        for to in members {
            match hand_over(&config, &postgres, &actor, &beside, &to).await {
                Ok(()) => {
                    tracing::warn!(%to, "the database here does nothing: this site's place is given away");
                    break;
                }
                Err(why) => tracing::warn!(?why, %to, "the database here does nothing, and the place is not taken"),
            }
        }
    }
}
