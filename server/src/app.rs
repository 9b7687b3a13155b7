//! State shared by all requests.

use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use textnlp_inference::engine::Handle;
use textnlp_process::Leaving;
use textnlp_store::{Action, Actor, AuditEvent, AuditLog, Store, UsageLog};
use tokio_util::task::TaskTracker;

use crate::allowance::LocalRates;
use crate::auth::jwt::Signer;
use crate::auth::refusals::Refusals;
use crate::config::Config;
use crate::error::ApiError;
use crate::http::BodyMemory;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::ready::Readiness;
use crate::recent::Recent;
use crate::workers::Workers;

/// State shared by all requests.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) signer: Signer,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) usage: UsageLog,
    pub(crate) audit: AuditLog,
    pub(crate) engine: Handle,
    pub(crate) models: Arc<Models>,
    pub(crate) readiness: Readiness,
    pub(crate) refusals: Refusals,
    /// The last read of the public keys that verify tokens of other servers.
    pub(crate) verifiers: Recent<Result<(), ApiError>>,
    /// Whether the database answered.
    pub(crate) database_answers: Recent<bool>,
    pub(crate) local_rates: LocalRates,
    /// Where the primary site counts; otherwise the database does.
    pub(crate) leases: Option<Leases>,
    pub(crate) began: Instant,
    /// Tasks that outlive their request: generations until they are settled.
    pub(crate) tasks: TaskTracker,
    /// Long texts being tokenized or scored.
    pub(crate) texts: Workers,
    /// Large bodies being parsed.
    pub(crate) parsers: Workers,
    pub(crate) bodies: BodyMemory,
    pub(crate) leaving: Arc<Leaving>,
}

/// Long texts tokenized or scored at once, and large bodies parsed at once.
pub(crate) const WORKERS: usize = 2;

impl App {
    /// An act of this replica.
    pub(crate) fn event(&self, action: Action) -> AuditEvent {
        let detail = json!({
            "version": env!("CARGO_PKG_VERSION"), "environment": self.config.environment, "site": self.config.site,
        });
        AuditEvent::new(&Actor::Server, action).detail(detail)
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.leaving.is_going()
    }
}
