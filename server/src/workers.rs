//! Work that is too long for the threads that serve HTTP: on threads of its own, few at a time.

use std::sync::Arc;

use axum::http::StatusCode;
use textnlp_inference::engine::Failure;
use tokio::sync::Semaphore;

use crate::error::ApiError;

/// Runs a bounded number of jobs at once; others wait.
pub(crate) struct Workers(Arc<Semaphore>);

impl Workers {
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Semaphore::new(most)))
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, ApiError> {
        let permit = self.0.clone().acquire_owned().await.map_err(|_| ApiError::from(Failure::Draining))?;
        let work = move || {
            // The thread continues after its client disconnected.
            let _permit = permit;
            work()
        };
        tokio::task::spawn_blocking(work).await.map_err(|error| {
            tracing::error!(%error, "a worker was aborted");
            ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
        })
    }
}
