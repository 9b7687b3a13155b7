//! The metrics that dashboards and alerts use, in OpenMetrics format on a separate listener.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use textnlp_inference::engine::Stats;
use textnlp_process::encoded;
use textnlp_store::analytics::{AnalyticsStatus, KINDS};
use textnlp_store::batches::{BatchCount, UNFINISHED};

use crate::auth::GUESSES;
use crate::cache::CacheEvent;
use crate::executors::GpuMemory;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByModelAndUser {
    model: String,
    user: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByModel {
    model: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMeasure {
    model: String,
    metric_type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPrice {
    model: String,
    kind: &'static str,
    currency: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByMemory {
    model: String,
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByDevice {
    device: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRequest {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByRoute {
    method: &'static str,
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByType {
    r#type: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKindAndAction {
    kind: &'static str,
    action: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByState {
    state: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByResult {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByLevel {
    level: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InfoLabels {
    environment: String,
    phase: &'static str,
    region: String,
    version: &'static str,
}

type Count = Counter<u64, AtomicU64>;
type Level = Gauge<i64, AtomicI64>;
type Real = Gauge<f64, AtomicU64>;

/// All of it.
pub struct Metrics {
    registry: Registry,
    tokens: Family<ByModelAndUser, Count>,
    prompt_tokens: Family<ByModelAndUser, Count>,
    embeddings: Family<ByModelAndUser, Count>,
    cost: Family<ByPrice, Counter<f64, AtomicU64>>,
    inference: Family<ByModel, Histogram, fn() -> Histogram>,
    first_token: Family<ByModel, Histogram, fn() -> Histogram>,
    requests: Family<ByRequest, Count>,
    request_seconds: Family<ByRoute, Histogram, fn() -> Histogram>,
    errors: Family<ByType, Count>,
    authentication_failures: Family<ByType, Count>,
    open: Level,
    rate: Real,
    queued: Level,
    running: Level,
    tokens_per_second: Real,
    step: Real,
    steps: Count,
    failed_steps: Count,
    cached_tokens: Count,
    drafted_tokens: Count,
    accepted_tokens: Count,
    memory: Family<ByMemory, Level>,
    gpu_used: Family<ByDevice, Level>,
    gpu_total: Family<ByDevice, Level>,
    model_load: Family<ByModel, Real>,
    model_quality: Family<ByMeasure, Real>,
    breaker: Family<ByModel, Level>,
    model_hits: Count,
    model_misses: Count,
    resident: Level,
    cpu: Counter<f64, AtomicU64>,
    usage_lost: Count,
    audit_lost: Count,
    usage_deleted: Count,
    analyzed: Real,
    insights: Family<ByKind, Level>,
    batches: Family<ByState, Level>,
    batch_age: Real,
    batch_requests: Family<ByResult, Count>,
    webhook_deliveries: Family<ByResult, Count>,
    webhook_age: Real,
    trace_spans: Family<ByResult, Count>,
    cache_hits: Family<ByLevel, Count>,
    cache_misses: Count,
    cache_evictions: Count,
    cache_errors: Family<ByKind, Count>,
    cache_entries: Level,
    cache_bytes: Level,
    pii: Family<ByKindAndAction, Count>,
    ready: Level,
    users: Mutex<HashSet<String>>,
    window: Mutex<Window>,
}

/// Series by user are bounded: further users are counted together.
const MAX_USERS: usize = 500;

fn seconds() -> Histogram {
    Histogram::new([0.005, 0.01, 0.025, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0])
}

impl Metrics {
    /// All metrics at zero, and one info series with environment, phase and region.
    pub fn new(environment: &str, phase: &'static str, region: &str) -> Self {
        let metrics = Self {
            registry: Registry::default(),
            tokens: Family::default(),
            prompt_tokens: Family::default(),
            embeddings: Family::default(),
            cost: Family::default(),
            inference: Family::new_with_constructor(seconds),
            first_token: Family::new_with_constructor(seconds),
            requests: Family::default(),
            request_seconds: Family::new_with_constructor(seconds),
            errors: Family::default(),
            authentication_failures: Family::default(),
            open: Level::default(),
            rate: Real::default(),
            queued: Level::default(),
            running: Level::default(),
            tokens_per_second: Real::default(),
            step: Real::default(),
            steps: Count::default(),
            failed_steps: Count::default(),
            cached_tokens: Count::default(),
            drafted_tokens: Count::default(),
            accepted_tokens: Count::default(),
            memory: Family::default(),
            gpu_used: Family::default(),
            gpu_total: Family::default(),
            model_load: Family::default(),
            model_quality: Family::default(),
            breaker: Family::default(),
            model_hits: Count::default(),
            model_misses: Count::default(),
            resident: Level::default(),
            cpu: Counter::default(),
            usage_lost: Count::default(),
            audit_lost: Count::default(),
            usage_deleted: Count::default(),
            analyzed: Real::default(),
            insights: Family::default(),
            batches: Family::default(),
            batch_age: Real::default(),
            batch_requests: Family::default(),
            webhook_deliveries: Family::default(),
            webhook_age: Real::default(),
            trace_spans: Family::default(),
            cache_hits: Family::default(),
            cache_misses: Count::default(),
            cache_evictions: Count::default(),
            cache_errors: Family::default(),
            cache_entries: Level::default(),
            cache_bytes: Level::default(),
            pii: Family::default(),
            ready: Level::default(),
            users: Mutex::default(),
            window: Mutex::new(Window::new(Instant::now())),
        };
        let mut r = Registry::default();
        r.register("textnlp_tokens_generated", "Tokens generated", metrics.tokens.clone());
        r.register("textnlp_prompt_tokens", "Tokens of prompts", metrics.prompt_tokens.clone());
        r.register("textnlp_embeddings", "Vectors of texts", metrics.embeddings.clone());
        r.register(
            "textnlp_cost",
            "What tokens cost by the operator's prices, in units of the currency",
            metrics.cost.clone(),
        );
        r.register(
            "textnlp_inference_duration_seconds",
            "Time of one generation, from the start of its work",
            metrics.inference.clone(),
        );
        r.register(
            "textnlp_first_token_seconds",
            "Time to the first token, from the start of the work",
            metrics.first_token.clone(),
        );
        r.register("http_requests", "Requests answered", metrics.requests.clone());
        r.register(
            "http_request_duration_seconds",
            "Time of one request, to the last byte",
            metrics.request_seconds.clone(),
        );
        r.register("http_requests_per_second", "Requests per second, over the last 30 seconds", metrics.rate.clone());
        r.register("http_requests_in_flight", "Requests being answered", metrics.open.clone());
        r.register("textnlp_errors", "Errors by type", metrics.errors.clone());
        // At zero from the start: an increase is measured from the first sample.
        for code in GUESSES {
            drop(metrics.authentication_failures.get_or_create(&ByType { r#type: code }));
        }
        r.register(
            "textnlp_authentication_failures",
            "Invalid keys, tokens and tickets",
            metrics.authentication_failures.clone(),
        );
        r.register("textnlp_queue_length", "Requests waiting for the engine", metrics.queued.clone());
        r.register("textnlp_running_requests", "Requests in the engine", metrics.running.clone());
        r.register(
            "textnlp_tokens_per_second",
            "Tokens generated per second, over about 5 seconds",
            metrics.tokens_per_second.clone(),
        );
        r.register("textnlp_last_step_seconds", "Time of the engine's last step", metrics.step.clone());
        r.register("textnlp_engine_steps", "Steps of the engine", metrics.steps.clone());
        r.register("textnlp_engine_failed_steps", "Steps of the engine that failed", metrics.failed_steps.clone());
        r.register(
            "textnlp_prompt_tokens_cached",
            "Tokens of prompts that were not computed again",
            metrics.cached_tokens.clone(),
        );
        r.register(
            "textnlp_tokens_drafted",
            "Tokens that were guessed and computed ahead",
            metrics.drafted_tokens.clone(),
        );
        r.register(
            "textnlp_tokens_drafted_accepted",
            "Tokens that were guessed and right",
            metrics.accepted_tokens.clone(),
        );
        r.register("textnlp_model_memory_bytes", "Memory of a loaded model", metrics.memory.clone());
        r.register(
            "textnlp_gpu_memory_used_bytes",
            "Memory in use on a GPU, by all processes",
            metrics.gpu_used.clone(),
        );
        r.register("textnlp_gpu_memory_total_bytes", "Memory of a GPU", metrics.gpu_total.clone());
        r.register("textnlp_model_load_seconds", "Time of the last load of a model", metrics.model_load.clone());
        r.register(
            "textnlp_model_quality_score",
            "Perplexity of the text that measures a model, lower is better",
            metrics.model_quality.clone(),
        );
        r.register("textnlp_breaker_open", "1 while a model's circuit breaker refuses calls", metrics.breaker.clone());
        r.register("textnlp_model_cache_hits", "Requests that found their model loaded", metrics.model_hits.clone());
        r.register("textnlp_model_cache_misses", "Requests that had to load their model", metrics.model_misses.clone());
        r.register("process_resident_memory_bytes", "Resident memory", metrics.resident.clone());
        r.register("process_cpu_seconds", "CPU time used", metrics.cpu.clone());
        r.register("textnlp_usage_rows_lost", "Rows of usage that could not be written", metrics.usage_lost.clone());
        r.register("textnlp_usage_rows_deleted", "Rows of usage deleted by retention", metrics.usage_deleted.clone());
        r.register("textnlp_audit_events_lost", "Audit events that could not be written", metrics.audit_lost.clone());
        r.register(
            "textnlp_analytics_last_run_seconds",
            "Unix time of the last usage analytics",
            metrics.analyzed.clone(),
        );
        r.register("textnlp_insights", "Insights of the last 24 hours", metrics.insights.clone());
        r.register("textnlp_batches", "Unfinished batches of all servers", metrics.batches.clone());
        r.register(
            "textnlp_batch_oldest_seconds",
            "Age of the oldest unfinished batch; 0 without one",
            metrics.batch_age.clone(),
        );
        r.register("textnlp_batch_requests", "Requests of batches that have a result", metrics.batch_requests.clone());
        r.register(
            "textnlp_webhook_deliveries",
            "Events of batches that were delivered to webhooks or given up, and attempts that failed",
            metrics.webhook_deliveries.clone(),
        );
        r.register(
            "textnlp_webhook_oldest_seconds",
            "Age of the oldest event that a webhook has not received; 0 without one",
            metrics.webhook_age.clone(),
        );
        r.register("textnlp_trace_spans", "Spans that were sent to the collector or lost", metrics.trace_spans.clone());
        r.register(
            "textnlp_cache_hits",
            "Vectors of texts that were found in the cache, by the level that had them",
            metrics.cache_hits.clone(),
        );
        r.register(
            "textnlp_cache_misses",
            "Vectors of texts that were in no level of the cache",
            metrics.cache_misses.clone(),
        );
        r.register(
            "textnlp_cache_evictions",
            "Vectors that made room for others in memory",
            metrics.cache_evictions.clone(),
        );
        r.register(
            "textnlp_cache_errors",
            "Calls of the cache's Redis that failed, its values that are damaged, and vectors that it did not get",
            metrics.cache_errors.clone(),
        );
        r.register("textnlp_cache_entries", "Vectors that the cache has in memory", metrics.cache_entries.clone());
        r.register("textnlp_cache_bytes", "Memory of these vectors with their keys", metrics.cache_bytes.clone());
        r.register("textnlp_pii_found", "Values of personal data that were found in requests", metrics.pii.clone());
        r.register("textnlp_ready", "1 while /ready says so", metrics.ready.clone());
        let info = Family::<InfoLabels, Level>::default();
        let info_labels = InfoLabels {
            environment: environment.to_owned(),
            phase,
            region: region.to_owned(),
            version: env!("CARGO_PKG_VERSION"),
        };
        info.get_or_create(&info_labels).set(1);
        r.register("textnlp_server_info", "Where this is", info);
        Self { registry: r, ..metrics }
    }

    /// Counts one finished or failed generation.
    pub fn record_generation(&self, model: &str, user: &str, prompt_tokens: u64, tokens: u64, duration: Duration) {
        let labels = ByModelAndUser { model: model.to_owned(), user: self.bounded(user) };
        self.tokens.get_or_create(&labels).inc_by(tokens);
        self.prompt_tokens.get_or_create(&labels).inc_by(prompt_tokens);
        self.inference.get_or_create(&ByModel { model: model.to_owned() }).observe(duration.as_secs_f64());
    }

    /// Counts a request for vectors that the cache had: its tokens as computed ones, without a time.
    pub(crate) fn record_cached(&self, model: &str, user: &str, prompt_tokens: u64) {
        let labels = ByModelAndUser { model: model.to_owned(), user: self.bounded(user) };
        self.prompt_tokens.get_or_create(&labels).inc_by(prompt_tokens);
    }

    /// Counts vectors that were computed or found.
    pub(crate) fn record_embeddings(&self, model: &str, user: &str, count: u64) {
        let labels = ByModelAndUser { model: model.to_owned(), user: self.bounded(user) };
        self.embeddings.get_or_create(&labels).inc_by(count);
    }

    /// Counts what the tokens of a request cost, in billionths of the currency, by their kind. Zero makes no series.
    pub(crate) fn record_cost(&self, model: Option<&str>, currency: &str, parts: [(&'static str, u64); 2]) {
        let Some(model) = model else { return };
        for (kind, nanos) in parts.into_iter().filter(|(_, nanos)| *nanos > 0) {
            let labels = ByPrice { model: model.to_owned(), kind, currency: currency.to_owned() };
            self.cost.get_or_create(&labels).inc_by(nanos as f64 / 1e9);
        }
    }

    /// Notes how long a first token took.
    pub fn record_first_token(&self, model: &str, duration: Duration) {
        self.first_token.get_or_create(&ByModel { model: model.to_owned() }).observe(duration.as_secs_f64());
    }

    /// Counts a started request.
    pub fn request_began(&self) {
        self.open.inc();
        if let Ok(mut window) = self.window.lock() {
            window.count(Instant::now());
        }
    }

    /// Counts a request that was answered.
    pub fn request_ended(&self, method: &'static str, route: &str, status: u16, duration: Duration) {
        self.open.dec();
        self.requests.get_or_create(&ByRequest { method, route: route.to_owned(), status }).inc();
        self.request_seconds
            .get_or_create(&ByRoute { method, route: route.to_owned() })
            .observe(duration.as_secs_f64());
    }

    /// Counts an error.
    pub fn error(&self, code: &'static str) {
        self.errors.get_or_create(&ByType { r#type: code }).inc();
    }

    /// Counts an invalid credential.
    pub(crate) fn authentication_failed(&self, code: &'static str) {
        self.authentication_failures.get_or_create(&ByType { r#type: code }).inc();
    }

    /// Counts rows of usage that retention deleted.
    pub fn usage_deleted(&self, rows: u64) {
        self.usage_deleted.inc_by(rows);
    }

    /// Notes what usage analytics found. Without analytics, the time stays 0.
    pub(crate) fn analyzed(&self, status: &AnalyticsStatus) {
        let Some(last) = status.last_run_ms else { return };
        self.analyzed.set(last as f64 / 1e3);
        for definition in &KINDS {
            let count = status.of_last_day.get(&definition.kind).copied().unwrap_or_default();
            self.insights.get_or_create(&ByKind { kind: definition.name }).set(count);
        }
    }

    /// Notes the unfinished batches.
    pub(crate) fn batches(&self, counts: &[BatchCount], now_ms: i64) {
        for state in UNFINISHED {
            let batches = counts.iter().find(|count| count.state == state).map_or(0, |count| count.batches);
            self.batches.get_or_create(&ByState { state: state.name() }).set(batches);
        }
        let oldest = counts.iter().map(|count| count.oldest_ms).min();
        self.batch_age.set(oldest.map_or(0.0, |oldest| (now_ms - oldest).max(0) as f64 / 1e3));
    }

    /// Counts a result of a request of a batch.
    pub(crate) fn batch_request(&self, is_success: bool) {
        let result = if is_success { "completed" } else { "failed" };
        self.batch_requests.get_or_create(&ByResult { result }).inc();
    }

    /// Counts what became of events for webhooks: `delivered`, `failed` (an attempt) or `given_up`.
    pub(crate) fn webhook_deliveries(&self, result: &'static str, count: u64) {
        self.webhook_deliveries.get_or_create(&ByResult { result }).inc_by(count);
    }

    /// Notes the oldest event that waits for its webhook.
    pub(crate) fn webhook_age(&self, oldest_ms: Option<i64>, now_ms: i64) {
        self.webhook_age.set(oldest_ms.map_or(0.0, |oldest| (now_ms - oldest).max(0) as f64 / 1e3));
    }

    /// Counts what became of spans: `exported`; `rejected` by the collector; `failed`, because it accepted no message; `dropped` from a full
    /// queue. Zero makes no series.
    pub(crate) fn trace_spans(&self, result: &'static str, count: u64) {
        if count > 0 {
            self.trace_spans.get_or_create(&ByResult { result }).inc_by(count);
        }
    }

    /// Counts what the cache of vectors did.
    pub(crate) fn cache(&self, event: CacheEvent) {
        match event {
            CacheEvent::Hits(level, count) => {
                self.cache_hits.get_or_create(&ByLevel { level }).inc_by(count);
            }
            CacheEvent::Misses(count) => {
                self.cache_misses.inc_by(count);
            }
            CacheEvent::Error(kind) => {
                self.cache_errors.get_or_create(&ByKind { kind }).inc();
            }
            CacheEvent::Memory { entries, bytes, evicted } => {
                self.cache_entries.set(entries as i64);
                self.cache_bytes.set(bytes as i64);
                self.cache_evictions.inc_by(evicted);
            }
        }
    }

    /// Counts values of personal data in a request, by their kind and what was done.
    pub(crate) fn pii_found(&self, kind: &'static str, action: &'static str, count: u64) {
        self.pii.get_or_create(&ByKindAndAction { kind, action }).inc_by(count);
    }

    /// Notes whether a request found its model loaded.
    pub fn model_asked(&self, loaded: bool) {
        if loaded { &self.model_hits } else { &self.model_misses }.inc();
    }

    /// Notes the memory of the GPU. Without an answer there is no series, rather than an old value.
    pub(crate) fn gpu_memory(&self, found: Option<GpuMemory>) {
        let Some(GpuMemory { number, used, total }) = found else {
            self.gpu_used.clear();
            self.gpu_total.clear();
            return;
        };
        let labels = ByDevice { device: format!("cuda:{number}") };
        self.gpu_used.get_or_create(&labels).set(i64::try_from(used).unwrap_or(i64::MAX));
        self.gpu_total.get_or_create(&labels).set(i64::try_from(total).unwrap_or(i64::MAX));
    }

    /// Notes how long the load of a model took.
    pub(crate) fn model_loaded(&self, model: &str, duration: Duration) {
        self.model_load.get_or_create(&ByModel { model: model.to_owned() }).set(duration.as_secs_f64());
    }

    /// Notes the perplexity of the text that measures a model; no number where it cannot be measured.
    pub(crate) fn perplexity(&self, model: &str, value: f64) {
        self.model_quality.get_or_create(&ByMeasure { model: model.to_owned(), metric_type: "perplexity" }).set(value);
    }

    /// Notes whether a model's breaker refuses calls.
    pub fn breaker(&self, model: &str, open: bool) {
        self.breaker.get_or_create(&ByModel { model: model.to_owned() }).set(i64::from(open));
    }

    /// Notes the last answer of `/ready`.
    pub fn ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// Everything as text.
    pub fn text(&self, stats: &Stats, usage_lost: u64, audit_lost: u64) -> String {
        self.queued.set(stats.queued as i64);
        self.running.set(stats.running as i64);
        self.tokens_per_second.set(stats.tokens_per_second);
        self.step.set(stats.last_step_ms / 1e3);
        advance(&self.steps, stats.steps);
        advance(&self.failed_steps, stats.failed_steps);
        advance(&self.cached_tokens, stats.cached_tokens);
        advance(&self.drafted_tokens, stats.drafted_tokens);
        advance(&self.accepted_tokens, stats.accepted_tokens);
        advance(&self.usage_lost, usage_lost);
        advance(&self.audit_lost, audit_lost);
        self.memory.clear();
        for model in &stats.models {
            for (kind, bytes) in [("weights", model.memory.weights), ("kv", model.memory.kv)] {
                self.memory.get_or_create(&ByMemory { model: model.name.clone(), kind }).inc_by(bytes as i64);
            }
        }
        if let Ok(window) = self.window.lock() {
            self.rate.set(window.per_second(Instant::now()));
        }
        let process = process();
        self.resident.set(process.resident_bytes as i64);
        let before = self.cpu.get();
        if process.cpu_seconds > before {
            self.cpu.inc_by(process.cpu_seconds - before);
        }
        encoded(&self.registry)
    }

    fn bounded(&self, user: &str) -> String {
        let Ok(mut users) = self.users.lock() else { return "other".into() };
        if users.contains(user) || (users.len() < MAX_USERS && users.insert(user.to_owned())) {
            user.to_owned()
        } else {
            "other".into()
        }
    }
}

fn advance(counter: &Count, to: u64) {
    counter.inc_by(to.saturating_sub(counter.get()));
}

/// Requests of the last seconds.
struct Window {
    began: Instant,
    seconds: [(u64, u64); WINDOW as usize],
}

const WINDOW: u64 = 30;

impl Window {
    fn new(began: Instant) -> Self {
        Self { began, seconds: [(u64::MAX, 0); WINDOW as usize] }
    }

    fn count(&mut self, now: Instant) {
        let second = now.duration_since(self.began).as_secs();
        let slot = &mut self.seconds[(second % WINDOW) as usize];
        if slot.0 != second {
            *slot = (second, 0);
        }
        slot.1 += 1;
    }

    fn per_second(&self, now: Instant) -> f64 {
        let age = now.duration_since(self.began);
        let oldest = age.as_secs().saturating_sub(WINDOW - 1);
        let count: u64 =
            self.seconds.iter().filter(|(second, _)| *second != u64::MAX && *second >= oldest).map(|(_, n)| n).sum();
        count as f64 / age.as_secs_f64().clamp(1.0, WINDOW as f64)
    }
}

/// Process statistics from the kernel.
#[derive(Debug, Clone, Copy, Default)]
pub struct Process {
    /// Resident memory.
    pub resident_bytes: u64,
    /// CPU time in user and kernel.
    pub cpu_seconds: f64,
}

/// Reads `/proc/self`; zeros if it does not exist.
pub fn process() -> Process {
    let resident = std::fs::read_to_string("/proc/self/status").ok().and_then(|text| {
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()
    });
    let cpu = std::fs::read_to_string("/proc/self/stat").ok().and_then(|text| {
        // The second field may contain any character; only numbers follow its closing bracket.
        let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
        Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
    });
    // The kernel shows clock ticks in units of 1/100 s to programs on every architecture that we run on.
    Process { resident_bytes: resident.unwrap_or(0) * 1024, cpu_seconds: cpu.unwrap_or(0) as f64 / 100.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_metric_series_are_limited_to_five_hundred() {
        let metrics = Metrics::new("e", "staging", "r");
        for n in 0..600 {
            metrics.record_generation("m", &format!("user{n}"), 2, 1, Duration::from_millis(3));
        }
        let text = metrics.text(&Stats::default(), 0, 0);
        assert_eq!(text.matches("textnlp_tokens_generated_total{").count(), 501);
        assert!(text.contains("textnlp_tokens_generated_total{model=\"m\",user=\"other\"} 100"), "{text}");
        assert!(text.contains("textnlp_inference_duration_seconds_bucket{le=\"0.005\",model=\"m\"} 600"), "{text}");
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn memory_of_a_gpu_has_no_series_while_it_does_not_answer() {
        let metrics = Metrics::new("e", "staging", "r");
        let text = || metrics.text(&Stats::default(), 0, 0);
        assert!(!text().contains("textnlp_gpu_memory_used_bytes{"));
        metrics.gpu_memory(Some(GpuMemory { number: 1, used: 3 << 30, total: 16 << 30 }));
        let answered = text();
        assert!(answered.contains("textnlp_gpu_memory_used_bytes{device=\"cuda:1\"} 3221225472\n"), "{answered}");
        assert!(answered.contains("textnlp_gpu_memory_total_bytes{device=\"cuda:1\"} 17179869184\n"), "{answered}");
        metrics.gpu_memory(None);
        assert!(!text().contains("device="));
    }

    #[test]
    fn cost_has_no_series_without_tokens_that_have_a_price() {
        let metrics = Metrics::new("e", "staging", "r");
        metrics.record_cost(None, "EUR", [("prompt", 5), ("answer", 0)]);
        metrics.record_cost(Some("m"), "EUR", [("prompt", 0), ("answer", 0)]);
        assert!(!metrics.text(&Stats::default(), 0, 0).contains("textnlp_cost"));
        for _ in 0..2 {
            metrics.record_cost(Some("m"), "EUR", [("prompt", 250_000_000), ("answer", 0)]);
        }
        let text = metrics.text(&Stats::default(), 0, 0);
        let series = "textnlp_cost_total{model=\"m\",kind=\"prompt\",currency=\"EUR\"} 0.5";
        assert!(text.contains(series) && !text.contains("kind=\"answer\""), "{text}");
    }

    #[test]
    fn requests_per_second_drop_entries_outside_the_window() {
        let began = Instant::now();
        let mut window = Window::new(began);
        let at = |seconds| began + Duration::from_secs(seconds);
        for second in 0..60 {
            for _ in 0..4 {
                window.count(at(second));
            }
        }
        assert_eq!(window.per_second(at(59)), 4.0);
        assert_eq!(window.per_second(at(1000)), 0.0);
    }

    #[test]
    fn process_memory_is_measured() {
        assert!(process().resident_bytes > 1_000_000);
    }
}
