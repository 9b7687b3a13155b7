//! Work that takes longer than a call: downloads, migrations. One call starts it, later calls poll it.
//!
//! A job lives as long as this process. Another process that continues the operation restarts the job; every job is
//! restartable.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use textnlp_provider::{Error, ErrorKind, Operation, Result, Token};
use tokio::task::JoinHandle;

/// A short job ends within the call that starts it.
const WAIT: Duration = Duration::from_millis(400);

/// The progress message of a running job.
#[derive(Debug, Clone, Default)]
pub(crate) struct JobMessage(Arc<Mutex<String>>);

impl JobMessage {
    pub(crate) fn say(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Job {
    task: JoinHandle<Result<Map<String, Value>>>,
    saying: JobMessage,
}

/// The jobs of this process by operation.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<HashMap<Token, Job>>);

/// The status of a job.
pub(crate) enum JobStatus {
    /// It ended with facts for the marker.
    Ended(Map<String, Value>),
    /// It is running, with this progress message.
    GoesOn(String),
}

impl Jobs {
    /// Starts the job of an operation, or polls it when it was started.
    pub(crate) async fn look<F>(&self, op: &Operation, begin: impl FnOnce(JobMessage) -> F) -> Result<JobStatus>
    where
        F: Future<Output = Result<Map<String, Value>>> + Send + 'static,
    {
        let mut job = self.take(&op.token).unwrap_or_else(|| {
            let saying = JobMessage::default();
            Job { task: tokio::spawn(begin(saying.clone())), saying }
        });
        match tokio::time::timeout(WAIT, &mut job.task).await {
            Ok(Ok(ended)) => ended.map(JobStatus::Ended),
            Ok(Err(error)) => {
                Err(Error::new(ErrorKind::Unavailable, "finish work on", op.resource.to_string()).because(error))
            }
            Err(_) => {
                let says = job.saying.get();
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(op.token.clone(), job);
                Ok(JobStatus::GoesOn(says))
            }
        }
    }

    fn take(&self, token: &Token) -> Option<Job> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)
    }
}

impl Drop for Job {
    /// The provider's jobs end with it.
    fn drop(&mut self) {
        self.task.abort();
    }
}
