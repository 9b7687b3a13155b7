//! A gate within a run: a measurement from outside decides whether the new objects may replace the old ones.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use textnlp_provider::SiteName;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;

/// Measures sites at gates.
#[async_trait]
pub trait Gates: Send + Sync {
    /// Measures a site as its clients see it. It may take minutes; a run waits at most
    /// [`Limits::gate`](super::Limits::gate).
    async fn ask(&self, site: &SiteName) -> Answer;
}

/// The result of a measurement.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// The site works.
    Open,
    /// The site does not work or could not be measured: every reason.
    Shut(Vec<String>),
}

/// Measures with the timeout `within`; `None` if the operator asked to stop meanwhile.
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
