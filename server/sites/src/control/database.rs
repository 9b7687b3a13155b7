//! The shared PostgreSQL of all sites: its supervisor learns who leads, and releases the database before leadership is
//! handed over.
//!
//! The log alone decides who is primary. The database follows: the supervisor requests [`lead`] several times per
//! heartbeat and lets no client write without a lease. A replica that lacks data keeps its site from taking over.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use camino::Utf8PathBuf;
use http::StatusCode;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Value, json};
use textnlp_control::{MemberRole, Overview, Refused, Site};
use textnlp_process::Address;
use tokio_util::sync::CancellationToken;

use super::actor::{Actor, Unanswered};
use super::client;
use super::config::AgentConfig;

/// `watch.postgres`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PostgresConfig {
    /// The control socket of the supervisor of this site's server.
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

/// Interval between two polls of the supervisor.
const POLL_INTERVAL: Duration = Duration::from_millis(200);
/// It answers from memory.
const KEEPER_TIMEOUT: Duration = Duration::from_secs(1);
/// An older observation is ignored.
const MAX_OBSERVATION_AGE: Duration = Duration::from_secs(3);
/// Timeout for a fast shutdown of a server whose replica has everything.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(15);
/// Interval between two handovers that were refused.
const HANDOVER_RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// A server that is unresponsive for longer than this, and than two graces, is given up: a start takes less.
const DEAD_AFTER: Duration = Duration::from_secs(15);
/// Timeout for another site agent, which answers from memory.
const PEER_TIMEOUT: Duration = Duration::from_secs(2);

/// The role of a PostgreSQL server. Only a primary accepts writes, so a role that a newer supervisor reports counts as
/// none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum ServerRole {
    Primary,
    Copy,
    #[default]
    #[serde(rename = "", other)]
    NotRunning,
}

/// The status of the server, as its supervisor reports it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct ServerStatus {
    pub(crate) role: ServerRole,
    /// Whether it does its work.
    pub(crate) ready: bool,
    /// Why not.
    pub(crate) why: Option<String>,
    /// Whether it has everything that the primary's server had, as far as observed.
    pub(crate) fit: bool,
    /// The replicas at other sites, as the primary's server sees them.
    pub(crate) copies: BTreeMap<Site, CopyAt>,
    /// How often the local data was replaced by another site's history: by rewind, and by a full copy.
    pub(crate) rewound: u64,
    pub(crate) copied: u64,
}

/// The replication progress of a site.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct CopyAt {
    pub(crate) connected: bool,
    pub(crate) behind_bytes: u64,
    pub(crate) behind_ms: u64,
}

/// The known status of the database, and how much of the log it contains.
#[derive(Debug, Clone, Default)]
pub(super) struct DatabaseStatus {
    kept: Arc<Mutex<Option<(Instant, ServerStatus)>>>,
    /// The leadership (its first epoch) for which the database contains everything acknowledged.
    shown: Arc<AtomicU64>,
    /// Since when this site leads while its server is unresponsive.
    idle_since: Arc<Mutex<Option<Instant>>>,
}

impl DatabaseStatus {
    /// The last status from the supervisor, unless it is too old.
    pub(super) fn kept(&self) -> Option<ServerStatus> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|(at, _)| at.elapsed() < MAX_OBSERVATION_AGE).map(|(_, kept)| kept.clone())
    }

    /// For how long this site has led while its server was unresponsive.
    fn idle(&self, overview: &Overview) -> Option<Duration> {
        let serves = self.kept().is_some_and(|kept| kept.role == ServerRole::Primary && kept.ready);
        let mut since = self.idle_since.lock().unwrap_or_else(PoisonError::into_inner);
        // The protocol itself handles a site that cannot acknowledge.
        if overview.role != MemberRole::Primary || !overview.writable || serves {
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

/// The answer to the supervisor's `GET /v1/lead`.
pub(super) async fn lead(actor: &Actor, beside: &DatabaseStatus) -> Result<Value, Unanswered> {
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

/// Polls the supervisor until the site agent stops.
pub(super) async fn follow(config: PostgresConfig, actor: Actor, beside: DatabaseStatus, stop: CancellationToken) {
    let mut every = tokio::time::interval(POLL_INTERVAL);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let answer = client::get(&config.keeper, "/v1/standing", KEEPER_TIMEOUT).await;
        let kept = answer.ok().filter(|(status, _)| *status == StatusCode::OK);
        if let Some(kept) = kept.and_then(|(_, answer)| serde_json::from_value::<ServerStatus>(answer).ok()) {
            actor.is_fit(kept.fit);
            *beside.kept.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), kept));
        } else if beside.kept().is_none() {
            // A site whose database has no supervisor cannot lead.
            actor.is_fit(false);
        }
    }
}

/// Why leadership was not handed over.
#[derive(Debug)]
pub(super) enum HandoverError {
    Unanswered(Unanswered),
    /// The supervisor refused, with a hint.
    Refused(String, String),
}

/// Hands leadership over, the database first. The site stops reporting itself as primary, the supervisor drains the
/// server to the replica there and stops it, and then the witness is asked. A refusal changes nothing. With `hold` there
/// is no failback without a command.
pub(super) async fn hand_over(
    config: &AgentConfig,
    postgres: &PostgresConfig,
    actor: &Actor,
    beside: &DatabaseStatus,
    to: &Site,
    hold: bool,
) -> Result<(), HandoverError> {
    let (overview, _) = actor.look().await.map_err(HandoverError::Unanswered)?;
    let refused = |why| Err(HandoverError::Unanswered(Unanswered::Refused(why)));
    if overview.role != MemberRole::Primary {
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
    if !actor.suspend_lease() {
        return Err(HandoverError::Unanswered(Unanswered::Busy));
    }
    let given = match is_dead {
        true => step_down_dead(config, actor, to, hold).await,
        false => demote_database(config, postgres, actor, to, hold).await,
    };
    // From here on the protocol itself reports whether this site leads.
    actor.report_leadership();
    given
}

fn dead_after(config: &AgentConfig) -> Duration {
    DEAD_AFTER.max(Duration::from_millis(2 * config.grace_ms()))
}

/// Whether a site reports that its replica of the database had caught up.
async fn is_fit(config: &AgentConfig, site: &Site) -> bool {
    let Some(address) = config.peers.get(site) else { return false };
    let answer = client::get(address, "/v1/status", PEER_TIMEOUT).await;
    answer.is_ok_and(|(status, answer)| status == StatusCode::OK && answer["database"]["fit"] == json!(true))
}

/// Hands leadership over while the local server is unresponsive. No release is possible, so it waits for the end of the
/// lease that the supervisor last received. Data that the server had not sent is lost, as in a site failure.
async fn step_down_dead(config: &AgentConfig, actor: &Actor, to: &Site, hold: bool) -> Result<(), HandoverError> {
    tokio::time::sleep(Duration::from_millis(config.grace_ms())).await;
    transfer_leadership(config, actor, to, hold).await
}

async fn demote_database(
    config: &AgentConfig,
    postgres: &PostgresConfig,
    actor: &Actor,
    to: &Site,
    hold: bool,
) -> Result<(), HandoverError> {
    let body = json!({ "to": to });
    match client::post(&postgres.keeper, "/v1/release", &body, RELEASE_TIMEOUT).await {
        Ok((StatusCode::OK, _)) => {}
        Ok((_, answer)) => {
            let text = |field: &str| answer["error"][field].as_str().unwrap_or_default().to_owned();
            return Err(HandoverError::Refused(text("message"), text("hint")));
        }
        Err(why) => {
            let hint = "check the database's log; `textnlp-deploy dr status` shows the status of each site";
            return Err(HandoverError::Refused(
                format!("the supervisor of the database at {}: {why}", config.site),
                hint.into(),
            ));
        }
    }
    transfer_leadership(config, actor, to, hold).await
}

/// Requests the change from the witness, after the database stopped accepting clients.
async fn transfer_leadership(config: &AgentConfig, actor: &Actor, to: &Site, hold: bool) -> Result<(), HandoverError> {
    actor.hand_over(to.clone(), hold).await.map_err(HandoverError::Unanswered)?;
    // Until the witness's answer is known, or the request is cancelled, this site leads nothing and says so itself.
    let until = Instant::now() + Duration::from_millis(config.grace_ms() + 2000);
    while Instant::now() < until {
        match actor.look().await {
            Ok((overview, _)) if overview.role != MemberRole::Primary => return Ok(()),
            _ => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    Ok(())
}

/// Hands leadership back to the home site once it and its replica of the database have been healthy for two graces, unless
/// a planned failover holds.
pub(super) async fn fail_back_home(
    config: AgentConfig,
    postgres: PostgresConfig,
    actor: Actor,
    beside: DatabaseStatus,
    stop: CancellationToken,
) {
    let mut well_since: Option<Instant> = None;
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let Ok((overview, _)) = actor.look().await else { continue };
        let copy = beside.kept().and_then(|kept| kept.copies.get(&config.home).cloned());
        let is_well = overview.role == MemberRole::Primary
            && config.site != config.home
            && !overview.held
            && overview.members.contains(&config.home)
            && copy.is_some_and(|copy| copy.connected && copy.behind_ms <= config.max_lag_ms);
        if !is_well {
            well_since = None;
            continue;
        }
        let rested = well_since.get_or_insert_with(Instant::now).elapsed();
        if rested >= Duration::from_millis(2 * config.grace_ms()) && Instant::now() >= not_before {
            not_before = Instant::now() + HANDOVER_RETRY_INTERVAL;
            if let Err(why) = hand_over(&config, &postgres, &actor, &beside, &config.home, false).await {
                tracing::info!(?why, home = %config.home, "the failback to the home site is deferred");
            }
        }
    }
}

/// Hands leadership to the first site in the order whose replica had caught up, when this site leads and its server has
/// been unresponsive for longer than a start takes. A full or broken disk stops the database but not the site agent,
/// and no other site takes over from a primary that is heard.
pub(super) async fn hand_over_when_dead(
    config: AgentConfig,
    postgres: PostgresConfig,
    actor: Actor,
    beside: DatabaseStatus,
    stop: CancellationToken,
) {
    let mut not_before = Instant::now();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let Ok((overview, _)) = actor.look().await else { continue };
        // Recorded even where nothing is automatic, for a request for another primary.
        let is_dead = beside.idle(&overview).is_some_and(|idle| idle >= dead_after(&config));
        if !is_dead || !config.automatic || Instant::now() < not_before {
            continue;
        }
        not_before = Instant::now() + HANDOVER_RETRY_INTERVAL;
        let members = config.sites().into_iter().filter(|site| *site != config.site && overview.members.contains(site));
        for to in members {
            match hand_over(&config, &postgres, &actor, &beside, &to, false).await {
                Ok(()) => {
                    tracing::warn!(%to, "the local database has stopped: handing over the primary role");
                    break;
                }
                Err(why) => {
                    tracing::warn!(?why, %to, "the local database has stopped, and no site took over the primary role")
                }
            }
        }
    }
}
