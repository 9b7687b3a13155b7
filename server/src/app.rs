//! What all requests share.

use std::sync::Arc;
use std::time::Instant;

use textnlp_inference::engine::Handle;
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use crate::allowance::LocalRates;
use crate::auth::jwt::Signer;
use crate::config::Config;
use crate::database::{Store, UsageLog};
use crate::leaving::Leaving;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::ready::Readiness;

/// What all requests share.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) signer: Signer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) usage: UsageLog,
    pub(crate) engine: Handle,
    pub(crate) models: Arc<Models>,
    pub(crate) readiness: Readiness,
    pub(crate) local_rates: LocalRates,
    pub(crate) began: Instant,
    /// Work that outlives the request which began it: generations, until they are settled.
    pub(crate) tasks: TaskTracker,
    /// Long texts being turned into tokens, each on a thread of its own.
    pub(crate) tokenizing: Arc<Semaphore>,
    pub(crate) leaving: Arc<Leaving>,
}

/// Long texts being tokenized at once.
pub(crate) const TOKENIZING: usize = 2;

impl App {
    pub(crate) fn is_stopping(&self) -> bool {
        self.leaving.is_going()
    }
}
