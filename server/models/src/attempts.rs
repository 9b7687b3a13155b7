//! Retries of one transfer, reported as progress.

use std::time::Duration;

use textnlp_net::retry::{GaveUp, Retry, Transient};

use crate::options::Limits;
use crate::progress::{Event, Progress};

/// Counts the failed attempts at one transfer and pauses between them.
pub struct Attempts(Retry);

impl Attempts {
    /// Starts now.
    pub fn new(limits: &Limits) -> Attempts {
        Attempts(Retry::new(limits.retry_policy()))
    }

    /// Waits before the next attempt at `what`, or says why there is none. `progressed`: the failed attempt brought some bytes.
    pub async fn pause(
        &mut self,
        what: &str,
        failure: Transient,
        progressed: bool,
        progress: &Progress<'_>,
    ) -> Result<(), GaveUp> {
        let why = failure.reason.clone();
        let pause = self.0.failed(failure, progressed)?;
        progress(Event::Retrying { attempt: self.0.failures() + 1, why });
        if pause >= Duration::from_secs(1) {
            progress(Event::Waiting { for_what: what.to_owned(), seconds: pause.as_secs() });
        }
        self.0.sleep(pause).await;
        Ok(())
    }
}
