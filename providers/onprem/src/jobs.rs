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
        let mut held = HeldJob { jobs: self, token: &op.token, job: self.take(&op.token) };
        let job = held.job.get_or_insert_with(|| {
            let saying = JobMessage::default();
            Job { task: tokio::spawn(begin(saying.clone())), saying }
        });
        let Ok(ended) = tokio::time::timeout(WAIT, &mut job.task).await else {
            return Ok(JobStatus::GoesOn(job.saying.get()));
        };
        held.job = None;
        match ended {
            Ok(ended) => ended.map(JobStatus::Ended),
            Err(error) => {
                Err(Error::new(ErrorKind::Unavailable, "finish work on", op.resource.to_string()).because(error))
            }
        }
    }

    fn take(&self, token: &Token) -> Option<Job> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)
    }
}

/// A job that a call polls. A call that reaches its deadline is dropped, and the job goes on: a second one of the same operation
/// would write the same files.
struct HeldJob<'a> {
    jobs: &'a Jobs,
    token: &'a Token,
    job: Option<Job>,
}

impl Drop for HeldJob<'_> {
    fn drop(&mut self) {
        if let Some(job) = self.job.take() {
            self.jobs.0.lock().unwrap_or_else(PoisonError::into_inner).insert(self.token.clone(), job);
        }
    }
}

impl Drop for Job {
    /// The provider's jobs end with it.
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn call_that_reaches_its_deadline_leaves_the_job_to_the_next_one() {
        let operation: Operation = serde_json::from_value(json!({
            "id": 1, "token": "a", "verb": "create", "resource": "here/server/program", "kind": "onprem.program",
            "site": "here", "environment": "test", "lineage": uuid::Uuid::nil(), "spec": {},
        }))
        .unwrap();
        let (jobs, starts, end) =
            (Jobs::default(), Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
        let look = || {
            let (starts, end) = (starts.clone(), end.clone());
            jobs.look(&operation, move |_| async move {
                starts.fetch_add(1, Ordering::SeqCst);
                end.notified().await;
                Ok(Map::new())
            })
        };
        assert!(tokio::time::timeout(Duration::from_millis(1), look()).await.is_err());
        assert!(matches!(look().await, Ok(JobStatus::GoesOn(_))));
        end.notify_one();
        while matches!(look().await, Ok(JobStatus::GoesOn(_))) {}
        assert_eq!(starts.load(Ordering::SeqCst), 1);
    }
}
