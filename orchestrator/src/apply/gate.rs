//! A gate within a run: somebody measures from outside whether what was made may take the place of what was there.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use textnlp_provider::SiteName;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Who is asked at gates.
#[async_trait]
pub trait Gates: Send + Sync {
    /// Measures a site as its clients see it. It may take minutes; a run waits no longer than [`Limits::gate`](super::Limits::gate).
    async fn ask(&self, site: &SiteName) -> Answer;
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Open,
    /// It does not, or nobody knows: every reason.
    Shut(Vec<String>),
}

/// Asks, no longer than `within`; `None` when somebody asked to stop meanwhile.
pub(super) async fn ask(
    gates: &dyn Gates,
    site: SiteName,
    clock: Arc<dyn Clock>,
    within: Duration,
    stop: CancellationToken,
) -> Option<Answer> {
    tokio::select! {
        biased;
        () = stop.cancelled() => None,
        answer = gates.ask(&site) => Some(answer),
        () = clock.sleep(within) => Some(Answer::Shut(vec![format!("no answer came within {} s", within.as_secs())])),
    }
}
