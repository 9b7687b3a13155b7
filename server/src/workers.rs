//! Work that is too long for the threads that serve HTTP: on threads of its own, few at a time.

use std::sync::Arc;

use axum::http::StatusCode;
use textnlp_inference::engine::Failure;
use tokio::sync::{Notify, Semaphore};

use crate::error::ApiError;

/// Runs a bounded number of jobs at once; others wait.
pub(crate) struct Workers {
    permits: Arc<Semaphore>,
    /// Notified after each job.
    finished: Arc<Notify>,
}

impl Workers {
    pub(crate) fn new(most: usize, finished: &Arc<Notify>) -> Self {
        Self { permits: Arc::new(Semaphore::new(most)), finished: finished.clone() }
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| ApiError::from(Failure::Draining))?;
        let finished = self.finished.clone();
        let work = move || {
            // The thread continues after its client disconnected.
            let _permit = permit;
            let result = work();
            finished.notify_one();
            result
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "a worker was aborted");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
        })
    }
}
