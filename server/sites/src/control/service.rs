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

/// Maximum poll interval.
const MAX_POLL_INTERVAL: Duration = Duration::from_millis(500);
/// How long a request may take until another one follows. It does not grow with `every_ms`: the time until the service counts as
/// down is no part of the failover time that `dr.rto` is checked against.
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
    let trust = trust.as_ref();
    let send = move |most_time: Duration| async move {
        let probe = textnlp_gateway::Probe {
            own: settings.ready_at.as_ref(),
            shared: &settings.at,
            trust,
            path: &settings.path,
            most_time,
            most_bytes: MOST_BYTES,
        };
        match probe.send().await {
            Ok((status, _, body)) if status.is_success() => Ok(database(&body)),
            Ok((status, _, _)) => Err(format!("{} answers {status}", settings.path)),
            Err(why) => Err(why),
        }
    };
    let mut every = tokio::time::interval(MAX_POLL_INTERVAL.min(Duration::from_millis(config.every_ms)));
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut failed = 0;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = every.tick() => {}
        }
        let polled = tokio::select! {
            () = stop.cancelled() => return,
            polled = poll(failed, send) => polled,
        };
        let why = match polled {
            Ok(database) => {
                service.heard().database = Some(database);
                failed = 0;
                None
            }
            Err((why, polls)) => {
                failed = polls;
                Some(why)
            }
        };
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

/// Polls a service of which `failed` polls in a row have failed. The error has the new number of them. While the second request
/// waits, the first one may still be answered: a service that is slow for both is not down.
async fn poll<T, F>(failed: u32, send: impl Fn(Duration) -> F) -> Result<T, (String, u32)>
where
    F: Future<Output = Result<T, String>>,
{
    if failed > 0 {
        return send(ANSWER_TIMEOUT).await.map_err(|why| (why, failed.saturating_add(1)));
    }
    let mut first = std::pin::pin!(send(ANSWER_TIMEOUT * FAILED));
    if let Ok(answer) = tokio::time::timeout(ANSWER_TIMEOUT, &mut first).await {
        return answer.map_err(|why| (why, 1));
    }
    let second = std::pin::pin!(send(ANSWER_TIMEOUT));
    futures::future::select_ok([first, second]).await.map(|(answer, _)| answer).map_err(|why| (why, FAILED))
}

/// The database state in the answer of `/ready`. A server does not accept a database in recovery.
fn database(body: &[u8]) -> DatabaseAccess {
    let body_json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    if body_json["database"] == "ok" { DatabaseAccess::Primary } else { DatabaseAccess::Unavailable }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use super::*;

    /// Polls a service whose requests are answered as `answers` says; the result, and the time that each request had.
    async fn polled<F: Future<Output = Result<u8, String>>>(
        failed: u32,
        answers: impl Fn(usize, Duration) -> F,
    ) -> (Result<u8, (String, u32)>, Vec<Duration>) {
        let sent = Mutex::new(Vec::new());
        let send = |most_time: Duration| {
            let mut sent = sent.lock().unwrap();
            sent.push(most_time);
            answers(sent.len(), most_time)
        };
        let result = poll(failed, send).await;
        (result, sent.into_inner().unwrap())
    }

    fn slow() -> String {
        "no answer".to_owned()
    }

    #[tokio::test]
    async fn service_that_answers_slower_than_the_timeout_is_not_down() {
        let (answer, sent) = polled(0, |number, _| async move {
            if number > 1 {
                return pending().await;
            }
            tokio::time::sleep(ANSWER_TIMEOUT * 3 / 2).await;
            Ok(7)
        })
        .await;
        assert_eq!((answer, sent), (Ok(7), vec![ANSWER_TIMEOUT * 2, ANSWER_TIMEOUT]));
    }

    #[tokio::test]
    async fn lost_request_is_followed_by_another_one() {
        let (answer, _) = polled(0, |number, _| async move { if number == 1 { pending().await } else { Ok(7) } }).await;
        assert_eq!(answer, Ok(7));
    }

    #[tokio::test]
    async fn service_that_answers_neither_request_is_down_as_early_as_after_two_polls() {
        let (answer, sent) = polled(0, |_, most_time| async move {
            tokio::time::sleep(most_time).await;
            Err(slow())
        })
        .await;
        assert_eq!((answer, sent), (Err((slow(), FAILED)), vec![ANSWER_TIMEOUT * 2, ANSWER_TIMEOUT]));
    }

    #[tokio::test]
    async fn refused_request_is_one_failed_poll() {
        let refused = |_: usize, _: Duration| async { Err(slow()) };
        assert_eq!(polled(0, refused).await, (Err((slow(), 1)), vec![ANSWER_TIMEOUT * 2]));
        assert_eq!(polled(1, refused).await, (Err((slow(), 2)), vec![ANSWER_TIMEOUT]));
    }
}
