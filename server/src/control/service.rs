//! The service of a site that is elsewhere than its watch, such as in a cluster.
//!
//! The watch stands for the site. While the service does not answer, the watch keeps silent: it neither sends nor takes in what sites and
//! the witness tell one another, as if its process stood still. Silence moves nothing but time, so that a service which is gone for longer
//! than a grace loses its place to another site, and one that comes back is taken in again.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use super::config::WatchConfig;
use crate::gateway::{self, Trust};

/// Between two looks at most, and how long an answer may take.
const LOOK: Duration = Duration::from_millis(500);
const ANSWERS_WITHIN: Duration = Duration::from_millis(1250);
/// One look that fails may be a packet that was lost.
const FAILED: u32 = 2;
/// What it says of itself is short.
const MOST_BYTES: usize = 64 << 10;

/// Whether a site's service answers, and what it says.
#[derive(Debug, Clone)]
pub(super) struct Service(Arc<Mutex<Heard>>);

#[derive(Debug, Default)]
struct Heard {
    /// Why it does not answer.
    silent: Option<String>,
    /// The role of its database.
    database: Option<&'static str>,
}

impl Service {
    /// One that has not been asked yet, where there is one to ask.
    pub(super) fn of(config: &WatchConfig) -> Self {
        let silent = config.service.as_ref().map(|_| "it was not asked yet".to_owned());
        Self(Arc::new(Mutex::new(Heard { silent, database: None })))
    }

    /// Whether it does not.
    pub(super) fn is_silent(&self) -> bool {
        self.heard().silent.is_some()
    }

    /// Why it does not.
    pub(super) fn silent(&self) -> Option<String> {
        self.heard().silent.clone()
    }

    /// `primary` where its servers get into a database that takes changes, else `unavailable`; nothing while it was not asked.
    pub(super) fn database(&self) -> Option<&'static str> {
        self.heard().database
    }

    fn heard(&self) -> MutexGuard<'_, Heard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks it until the watch stops.
pub(super) async fn follow(config: WatchConfig, service: Service, stop: CancellationToken) {
    let Some(settings) = &config.service else { return };
    let trust = settings.tls.as_ref().map(Trust::new);
    let mut every = tokio::time::interval(LOOK.min(Duration::from_millis(config.every_ms)));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let asked = gateway::get(&settings.at, trust.as_ref(), &settings.path, ANSWERS_WITHIN, MOST_BYTES).await;
        let why = match asked {
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
                tracing::warn!(%why, "the service of this site does not answer: it is as if this site were lost");
            }
            (Some(_), false) => continue,
            _ => {}
        }
        service.heard().silent = why;
    }
}

/// What `/ready` says of the database. A server works with none that is in recovery.
fn database(body: &[u8]) -> &'static str {
    let said: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if said["database"] == "ok" { "primary" } else { "unavailable" }
}
