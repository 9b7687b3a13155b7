//! State shared by all requests.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use serde_json::json;
use textnlp_inference::engine::Handle;
use textnlp_process::{Leaving, LineLimit};
use textnlp_store::{Action, Actor, AuditEvent, AuditLog, Store, UsageLog};
use tokio_util::task::TaskTracker;

use crate::allowance::LocalRates;
use crate::auth::jwt::Signer;
use crate::auth::oidc::Oidc;
use crate::auth::refusals::Refusals;
use crate::cache::VectorCache;
use crate::config::Config;
use crate::delivery::Delivery;
use crate::error::ApiError;
use crate::features::Features;
use crate::http::SharedMemory;
use crate::leases::Leases;
use crate::metrics::Metrics;
use crate::models::Models;
use crate::pii::{Detector, Findings, Problem};
use crate::ready::Readiness;
use crate::recent::Recent;
use crate::schemas::Schemas;
use crate::traces::Traces;
use crate::webhooks::Webhooks;
use crate::workers::Workers;

/// State shared by all requests.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) signer: Signer,
    /// The OpenID Connect provider, if one is configured.
    pub(crate) oidc: Option<Arc<Oidc>>,
    pub(crate) metrics: Arc<Metrics>,
    /// The export of traces, if one is configured.
    pub(crate) traces: Option<Traces>,
    pub(crate) usage: UsageLog,
    pub(crate) audit: AuditLog,
    pub(crate) engine: Handle,
    pub(crate) delivery: Arc<Delivery>,
    pub(crate) models: Arc<Models>,
    /// Vectors of texts, if they are kept.
    pub(crate) cache: Option<VectorCache>,
    pub(crate) features: Features,
    pub(crate) readiness: Readiness,
    pub(crate) refusals: Refusals,
    /// Access lines of refused requests and of those without a key: any client can cause them.
    pub(crate) refused_lines: LineLimit,
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
    /// The same for models whose tokenizer may take minutes, by model: only requests for that model wait.
    pub(crate) slow_texts: BTreeMap<String, Workers>,
    /// Schemas of structured output being compiled.
    pub(crate) schemas: Schemas,
    /// Sums of the usage log: they leave the database's connections to others.
    pub(crate) sums: Workers,
    /// Large bodies being parsed.
    pub(crate) parsers: Workers,
    pub(crate) bodies: SharedMemory,
    pub(crate) answers: Arc<SharedMemory>,
    /// Memory of files of batches that are sent or received: clients may take minutes.
    pub(crate) files: SharedMemory,
    /// Memory of the guides of structured answers.
    pub(crate) guides: SharedMemory,
    /// Who is notified when batches end.
    pub(crate) webhooks: Webhooks,
    pub(crate) leaving: Arc<Leaving>,
    /// Searches requests for personal data, if that is configured.
    pub(crate) pii: Option<Arc<Detector>>,
}

/// Access lines of such requests in ten seconds, and those about one client.
pub(crate) const REFUSED_LINES: (usize, usize) = (1000, 100);
/// Long texts tokenized or scored at once, schemas compiled at once, and large bodies parsed at once.
pub(crate) const WORKERS: usize = 2;
/// Schemas of a tenant compiled at once: one may take a second.
pub(crate) const SCHEMAS_OF_TENANT: usize = 1;
/// Sums of the usage log of one tenant at once.
pub(crate) const SUMS_OF_TENANT: usize = 1;

impl App {
    /// Counts personal data that was found in a request.
    pub(crate) fn count_pii(&self, found: &Findings) {
        let Some(pii) = &self.pii else { return };
        for (kind, count) in found.counts() {
            self.metrics.pii_found(kind.name(), pii.action().name(), count);
        }
    }

    /// The same, and the error where the request is refused for it.
    pub(crate) fn settle_pii(&self, found: &Findings) -> Result<(), ApiError> {
        self.count_pii(found);
        let problem = self.pii.as_ref().and_then(|pii| pii.problem(found, ""));
        let Some(Problem { code, field, message, hint }) = problem else { return Ok(()) };
        Err(ApiError::new(StatusCode::BAD_REQUEST, code, message).param(field).hint(hint))
    }

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
