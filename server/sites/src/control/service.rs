//! The service of a site that runs elsewhere than its site agent, such as in a cluster.
//!
//! The site agent represents the site. While the service does not answer, the agent neither sends nor handles protocol
//! messages, as if its process had stopped. Silence only lets time pass: a service that is away for longer than a grace
//! loses leadership to another site, and one that comes back rejoins.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use textnlp_gateway::Trust;
use tokio_util::sync::CancellationToken;

use super::config::AgentConfig;

/// Maximum poll interval, and the request timeout.
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(500);
const ANSWER_TIMEOUT: Duration = Duration::from_millis(1250);
/// Failed polls in a row until it counts as down: a single one may be a lost packet.
const FAILED: u32 = 2;
/// Maximum size of its answer, in bytes.
const MOST_BYTES: usize = 64 << 10;

/// What the servers of a site report of their database.
#[derive(Debug, Clone, Copy, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum DatabaseAccess {
    /// It accepts writes.
    Primary,
    /// They cannot connect to it, or it is a replica.
    Unavailable,
}

/// Whether a site's service answers, and its last answer.
#[derive(Debug, Clone)]
pub(super) struct Service(Arc<Mutex<ServiceAnswer>>);

#[derive(Debug, Default)]
struct ServiceAnswer {
    /// Why it does not answer.
    silent: Option<String>,
    database: Option<DatabaseAccess>,
}

impl Service {
    /// The initial state, where a service is configured.
    pub(super) fn of(config: &AgentConfig) -> Self {
        let silent = config.service.as_ref().map(|_| "it was not checked yet".to_owned());
        Self(Arc::new(Mutex::new(ServiceAnswer { silent, database: None })))
    }

    /// Whether it does not.
    pub(super) fn is_silent(&self) -> bool {
        self.heard().silent.is_some()
    }

    /// Why it does not.
    pub(super) fn silent(&self) -> Option<String> {
        self.heard().silent.clone()
    }

    /// `None` before the first poll.
    pub(super) fn database(&self) -> Option<DatabaseAccess> {
        self.heard().database
    }

    fn heard(&self) -> MutexGuard<'_, ServiceAnswer> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Polls the service until the site agent stops.
pub(super) async fn follow(config: AgentConfig, service: Service, stop: CancellationToken) {
    let Some(settings) = &config.service else { return };
    let trust = settings.tls.as_ref().map(Trust::new);
    let mut every = tokio::time::interval(MAX_POLL_INTERVAL.min(Duration::from_millis(config.every_ms)));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let probe = textnlp_gateway::Probe {
            own: settings.ready_at.as_ref(),
            shared: &settings.at,
            trust: trust.as_ref(),
            path: &settings.path,
            most_time: ANSWER_TIMEOUT,
            most_bytes: MOST_BYTES,
        };
        let why = match probe.send().await {
            Ok((status, _, body)) if status.is_success() => {
                service.heard().database = Some(database(&body));
                None
            }
            Ok((status, _, _)) => Some(format!("{} answers {status}", settings.path)),
            Err(why) => Some(why),
        };
        failed = if why.is_some() { failed + 1 } else { 0 };
        match (&why, service.is_silent()) {
            (None, true) => tracing::info!("the service of this site answers"),
            (Some(why), false) if failed >= FAILED => {
                tracing::warn!(%why, "the service of this site does not answer: the site counts as failed");
            }
            (Some(_), false) => continue,
            _ => {}
        }
        service.heard().silent = why;
    }
}

/// The database state in the answer of `/ready`. A server does not accept a database in recovery.
fn database(body: &[u8]) -> DatabaseAccess {
    let body_json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if body_json["database"] == "ok" { DatabaseAccess::Primary } else { DatabaseAccess::Unavailable }
}
