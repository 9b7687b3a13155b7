//! Work that takes longer than a call: downloads, migrations. Begun by one call, looked at by the next.
//!
//! A job lives as long as this process. Another process that goes on with the operation begins the job again; every job
//! can be begun again.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Map, Value};
use textnlp_provider::{Error, Operation, Result, Sort, Token};
use tokio::task::JoinHandle;

/// A short job ends within the call that begins it.
const WAIT: Duration = Duration::from_millis(400);

/// What a job says of itself while it runs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Saying(Arc<Mutex<String>>);

impl Saying {
    pub(crate) fn say(&self, text: String) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = text;
    }

    fn get(&self) -> String {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

struct Job {
    task: JoinHandle<Result<Map<String, Value>>>,
    saying: Saying,
}

/// The jobs of this process by operation.
#[derive(Default)]
pub(crate) struct Jobs(Mutex<HashMap<Token, Job>>);

/// How a job stands.
pub(crate) enum Standing {
    /// It ended with facts for the marker.
    Ended(Map<String, Value>),
    /// It goes on; this is what it says.
    GoesOn(String),
}

impl Jobs {
    /// Begins the job of an operation, or looks at it when it was begun.
    pub(crate) async fn look<F>(&self, op: &Operation, begin: impl FnOnce(Saying) -> F) -> Result<Standing>
    where
        F: Future<Output = Result<Map<String, Value>>> + Send + 'static,
    {
        let mut job = self.take(&op.token).unwrap_or_else(|| {
            let saying = Saying::default();
            Job { task: tokio::spawn(begin(saying.clone())), saying }
        });
        match tokio::time::timeout(WAIT, &mut job.task).await {
            Ok(Ok(ended)) => ended.map(Standing::Ended),
            Ok(Err(error)) => {
                Err(Error::new(Sort::Unavailable, "finish work on", op.resource.to_string()).because(error))
            }
            Err(_) => {
                let says = job.saying.get();
                self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(op.token.clone(), job);
                Ok(Standing::GoesOn(says))
            }
        }
    }

    fn take(&self, token: &Token) -> Option<Job> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(token)
    }
}

impl Drop for Job {
    /// A job belongs to the provider: it ends with it.
    fn drop(&mut self) {
        self.task.abort();
    }
}
