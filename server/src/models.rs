//! The models of this server: configured, loaded, and loaded on first use.
//!
//! One load at a time, however many requests wait for it. A circuit breaker pauses a model that fails repeatedly. The
//! least recently used models make room for others.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use textnlp_inference::cpu::{Cpu, LoadOptions, Quant};
use textnlp_inference::engine::{Handle, LoadedModel, ModelInfo};
use textnlp_inference::format::Checkpoint;
use textnlp_inference::text::Tokenizer;
use tokio_util::task::TaskTracker;

use crate::breaker::{Breaker, BreakerOptions, State};
use crate::chat::ChatTemplate;
use crate::config::{self, ByteSize, Weights};
use crate::error::{ApiError, chain};
use crate::metrics::Metrics;

/// A loaded model.
pub(crate) struct Ready {
    /// Its description from the engine.
    pub info: ModelInfo,
    /// Its chat template, if it has one that can be read.
    pub chat: Option<ChatTemplate>,
    /// Why its chat template is unusable, if it has one.
    pub chat_problem: Option<String>,
    /// Sentences for operators.
    pub notes: Vec<String>,
    /// Number of weights.
    pub parameters: u64,
    /// Bytes of the longest token: a longer text than this times the context cannot fit.
    pub longest_token: usize,
    /// How long loading took.
    pub load_ms: u64,
}

/// The longest text in bytes that is tokenized at once.
const MAX_WHOLE_TEXT: usize = 320 << 10;

impl Ready {
    /// The longest text that is tokenized, in bytes: 16 for each token of the context, at least 64 KiB. Where a text is
    /// not split in parts, tokenizing takes some 200 bytes of memory for each byte.
    pub(crate) fn max_text(&self) -> usize {
        let most = self.info.context.max(4096).saturating_mul(16);
        if self.info.tokenizer.splits_in_parts() { most } else { most.min(MAX_WHOLE_TEXT) }
    }

    /// The most token ids that are decoded.
    pub(crate) fn max_ids(&self) -> usize {
        self.info.context.max(65_536)
    }
}

/// The state of a model.
#[derive(Clone)]
pub(crate) enum ModelState {
    /// Not requested yet, or evicted.
    Idle,
    /// Being loaded since then.
    Loading(Instant),
    /// Loaded.
    Ready(Arc<Ready>),
    /// Loading failed.
    Failed(String),
}

struct Entry {
    config: config::Model,
    standing: Mutex<ModelState>,
    breaker: Mutex<Breaker>,
    /// Locked during a load, so that concurrent requests wait for it.
    loading: Arc<tokio::sync::Mutex<()>>,
    asked: AtomicU64,
}

/// The models of this server.
pub(crate) struct Models {
    entries: Vec<Arc<Entry>>,
    default: String,
    preload: Vec<String>,
    budget: ByteSize,
    threads: usize,
    engine: Handle,
    metrics: Arc<Metrics>,
    began: Instant,
    created: u64,
    /// Loads run here, so that they finish even if their request is gone.
    tasks: TaskTracker,
    /// One load at a time: two would fight for the same disk and cores, and their memory would add up.
    one_load: Arc<tokio::sync::Semaphore>,
}

impl Models {
    /// Starts without any loaded model.
    pub(crate) fn new(config: &config::Models, engine: Handle, metrics: Arc<Metrics>, tasks: TaskTracker) -> Arc<Self> {
        let entries = config.serve.iter().map(|model| {
            Arc::new(Entry {
                config: model.clone(),
                standing: Mutex::new(ModelState::Idle),
                breaker: Mutex::new(Breaker::new(BreakerOptions::default())),
                loading: Arc::default(),
                asked: AtomicU64::new(0),
            })
        });
        Arc::new(Self {
            entries: entries.collect(),
            default: config.default.clone(),
            preload: config.preload.clone(),
            budget: config.max_cache_size,
            threads: config.threads,
            engine,
            metrics,
            began: Instant::now(),
            created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            tasks,
            one_load: Arc::new(tokio::sync::Semaphore::new(1)),
        })
    }

    /// The name of the default model.
    pub(crate) fn default_name(&self) -> &str {
        &self.default
    }

    /// When this server started, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// All models with their states.
    pub(crate) fn list(&self) -> Vec<(config::Model, ModelState)> {
        self.entries.iter().map(|entry| (entry.config.clone(), entry.standing())).collect()
    }

    /// One model with its state.
    pub(crate) fn find(&self, name: &str) -> Option<(config::Model, ModelState)> {
        self.entry(name).map(|entry| (entry.config.clone(), entry.standing()))
    }

    /// The models to load before the server is ready, with their states.
    pub(crate) fn preloads(&self) -> Vec<(String, ModelState)> {
        self.preload.iter().filter_map(|name| Some((name.clone(), self.entry(name)?.standing()))).collect()
    }

    /// Loads the models needed for readiness. Failures are logged and reported by `/ready`.
    pub(crate) async fn preload(self: &Arc<Self>) {
        for name in &self.preload {
            if let Err(error) = self.get(Some(name)).await {
                tracing::error!(model = %name, error = %error.message, "a model could not be loaded");
            }
        }
    }

    /// A loaded model; loads it if needed. `None` is the default model.
    pub(crate) async fn get(self: &Arc<Self>, name: Option<&str>) -> Result<Arc<Ready>, ApiError> {
        let name = name.unwrap_or(&self.default);
        let entry = self.entry(name).cloned().ok_or_else(|| self.unknown(name))?;
        entry.asked.store(self.began.elapsed().as_micros() as u64 + 1, Ordering::Relaxed);
        if let ModelState::Ready(ready) = entry.standing() {
            self.metrics.model_asked(true);
            return Ok(ready);
        }
        self.metrics.model_asked(false);
        let guard = entry.loading.clone().lock_owned().await;
        if let ModelState::Ready(ready) = entry.standing() {
            return Ok(ready);
        }
        self.permit(&entry)?;
        entry.stand(ModelState::Loading(Instant::now()));
        let (models, loading) = (self.clone(), entry.clone());
        let load = self.tasks.spawn(async move {
            let result = models.load(&loading).await;
            models.outcome(&loading, result.is_ok());
            match &result {
                Ok(ready) => loading.stand(ModelState::Ready(ready.clone())),
                Err(why) => loading.stand(ModelState::Failed(why.clone())),
            }
            drop(guard);
            result
        });
        match load.await {
            Ok(Ok(ready)) => Ok(ready),
            Ok(Err(why)) => Err(cannot(name, &why)),
            Err(_) => {
                entry.stand(ModelState::Failed("its loading was aborted".into()));
                Err(cannot(name, "its loading was aborted"))
            }
        }
    }

    /// Whether the breaker allows a call now. Must be followed by [`Models::outcome`] or [`Models::no_outcome`].
    pub(crate) fn may_ask(&self, name: &str) -> Result<(), ApiError> {
        self.entry(name).map_or(Ok(()), |entry| self.permit(entry))
    }

    /// Notes that a model answered, or failed.
    pub(crate) fn answered(&self, name: &str, well: bool) {
        if let Some(entry) = self.entry(name) {
            self.outcome(entry, well);
        }
    }

    /// Records a call that says nothing about the model's health: its client disconnected, or its deadline passed.
    pub(crate) fn no_outcome(&self, name: &str) {
        if let Some(entry) = self.entry(name) {
            entry.breaker.lock().unwrap_or_else(PoisonError::into_inner).abandoned();
        }
    }

    fn permit(&self, entry: &Entry) -> Result<(), ApiError> {
        entry.breaker.lock().unwrap_or_else(PoisonError::into_inner).permit(Instant::now()).map_err(|wait| {
            let why = match entry.standing() {
                ModelState::Failed(why) => format!(": {why}"),
                _ => String::new(),
            };
            ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "circuit_open",
                format!(
                    "model `{}` failed several times, so requests to it are refused for a while{why}",
                    entry.config.name
                ),
            )
            .hint("try again after the time in Retry-After, or use another model")
            .retry_after(wait)
        })
    }

    fn outcome(&self, entry: &Entry, well: bool) {
        let mut breaker = entry.breaker.lock().unwrap_or_else(PoisonError::into_inner);
        if well {
            breaker.succeeded()
        } else {
            breaker.failed(Instant::now())
        }
        self.metrics.breaker(&entry.config.name, breaker.state() == State::Open);
    }

    fn entry(&self, name: &str) -> Option<&Arc<Entry>> {
        self.entries.iter().find(|entry| entry.config.name == name)
    }

    /// The error for an unknown name.
    pub(crate) fn unknown(&self, name: &str) -> ApiError {
        let names: Vec<&str> = self.entries.iter().map(|entry| entry.config.name.as_str()).collect();
        let shown: String = name.chars().take(128).collect();
        let hint = match config::nearest(&shown, &names) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("this server has: {}", names.join(", ")),
        };
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", format!("there is no model `{shown}`"))
            .param("model")
            .hint(hint)
    }

    async fn load(&self, entry: &Arc<Entry>) -> Result<Arc<Ready>, String> {
        let _one = self.one_load.acquire().await.map_err(|_| "the server is shutting down".to_owned())?;
        let began = Instant::now();
        let config = entry.config.clone();
        let opened = blocking(move || open(&config)).await?;
        self.make_room(entry, opened.needed)?;
        let (config, engine, threads) = (entry.config.clone(), self.engine.clone(), self.threads);
        let mut ready = blocking(move || load(&config, opened, &engine, threads)).await?;
        ready.load_ms = began.elapsed().as_millis() as u64;
        for note in &ready.notes {
            tracing::info!(model = %entry.config.name, note, "loading");
        }
        tracing::info!(
            model = %entry.config.name,
            ms = ready.load_ms,
            weights = ready.info.memory.weights,
            kv = ready.info.memory.kv,
            "model loaded"
        );
        Ok(Arc::new(ready))
    }

    /// Unloads the least recently used models until the new one fits into the budget.
    fn make_room(&self, entry: &Arc<Entry>, needed: u64) -> Result<(), String> {
        if needed > self.budget.0 {
            return Err(format!(
                "it needs about {}, but models.max_cache_size is {}; quantize it (q8_0) or raise the limit",
                ByteSize(needed),
                self.budget
            ));
        }
        loop {
            let mut loaded: Vec<(&Arc<Entry>, u64)> = Vec::new();
            for other in self.entries.iter().filter(|other| !Arc::ptr_eq(other, entry)) {
                if let ModelState::Ready(ready) = other.standing() {
                    loaded.push((other, ready.info.memory.weights + ready.info.memory.kv));
                }
            }
            let held: u64 = loaded.iter().map(|(_, bytes)| bytes).sum();
            if held + needed <= self.budget.0 {
                return fits_in_memory(needed);
            }
            // Never empty: without loaded models `held` is 0, and the check above returned.
            let Some((oldest, _)) = loaded.iter().min_by_key(|(other, _)| other.asked.load(Ordering::Relaxed)) else {
                return Ok(());
            };
            tracing::info!(model = %oldest.config.name, "unloaded to make room");
            self.engine.unload(&oldest.config.name);
            oldest.stand(ModelState::Idle);
        }
    }
}

/// Refuses a load that would exceed the available memory, which would end in an OOM kill.
fn fits_in_memory(needed: u64) -> Result<(), String> {
    let memory = textnlp_models::Memory::here();
    if needed <= memory.available || memory.total == 0 {
        return Ok(());
    }
    Err(format!(
        "it needs about {}, but {} of {} are free ({}); quantize it (q8_0) or serve fewer models",
        ByteSize(needed),
        ByteSize(memory.available),
        ByteSize(memory.total),
        memory.bound_by
    ))
}

impl Entry {
    fn standing(&self) -> ModelState {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn stand(&self, standing: ModelState) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }
}

fn cannot(name: &str, why: &str) -> ApiError {
    ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "model_unavailable",
        format!("model `{name}` cannot be loaded: {why}"),
    )
    .param("model")
    .hint("`textnlp-deploy model inspect` checks its files")
    .retry_after(Duration::from_secs(5))
}

/// Runs blocking work on a separate thread; a panic becomes an error.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err("the loader was aborted".to_owned()))
}

struct Opened {
    checkpoint: Checkpoint,
    tokenizer: Tokenizer,
    needed: u64,
}

fn open(config: &config::Model) -> Result<Opened, String> {
    let checkpoint = Checkpoint::open(config.path.as_std_path()).map_err(|error| chain(&error))?;
    let tokenizer = match checkpoint.vocabulary().map_err(|error| chain(&error))? {
        Some(vocabulary) => Tokenizer::from_gguf(&vocabulary),
        None => Tokenizer::from_directory(config.path.as_std_path()),
    }
    .map_err(|error| chain(&error))?;
    // Bytes of a thousand weights: q8_0 is 32 bytes and a scale per group of 32.
    let per_thousand = match config.quantize {
        Some(Weights::F32) => Some(4000),
        Some(Weights::F16) => Some(2000),
        Some(Weights::Q8_0) => Some(1125),
        None => None,
    };
    let needed = match per_thousand {
        Some(bytes) => (u128::from(checkpoint.parameters()) * bytes / 1000).min(u128::from(u64::MAX)) as u64,
        None => weight_bytes(config.path.as_std_path()),
    };
    Ok(Opened { checkpoint, tokenizer, needed })
}

/// Bytes of the files that hold weights.
fn weight_bytes(path: &std::path::Path) -> u64 {
    let Ok(folder) = std::fs::read_dir(path) else { return std::fs::metadata(path).map_or(0, |file| file.len()) };
    let weights = |path: &std::path::Path| path.extension().is_some_and(|kind| kind == "safetensors" || kind == "gguf");
    folder
        .flatten()
        .filter(|file| weights(&file.path()))
        .filter_map(|file| file.path().metadata().ok())
        .map(|file| file.len())
        .sum()
}

fn load(config: &config::Model, opened: Opened, engine: &Handle, threads: usize) -> Result<Ready, String> {
    let Opened { checkpoint, tokenizer, .. } = opened;
    let quantize = config.quantize.map(|weights| match weights {
        Weights::F32 => Quant::F32,
        Weights::F16 => Quant::F16,
        Weights::Q8_0 => Quant::Q8_0,
    });
    let options = LoadOptions { quantize, context: config.context, threads, ..LoadOptions::default() };
    // Hashing takes about as long as loading and reads the same pages, so both run side by side.
    let (cpu, verified) = std::thread::scope(|scope| {
        let verified = scope.spawn(|| textnlp_models::verify_to_load(&config.path));
        (Cpu::load(&checkpoint, &options), verified.join())
    });
    verified.map_err(|_| "its verification was aborted".to_owned())?.map_err(|error| differs(&error))?;
    let (cpu, mut notes) = cpu.map_err(|error| chain(&error))?;
    let (mut chat, mut chat_problem) = (None, None);
    if let Some(source) = tokenizer.chat_template() {
        let piece = |id: Option<u32>| id.and_then(|id| tokenizer.piece(id));
        match ChatTemplate::new(source, piece(tokenizer.bos()), piece(tokenizer.eos())) {
            Ok(template) => chat = Some(template),
            Err(error) => {
                notes.push(format!("its chat template cannot be read: {error}"));
                chat_problem = Some(error.to_string());
            }
        }
    }
    let parameters = checkpoint.parameters();
    drop(checkpoint);
    let longest_token = (0..tokenizer.vocab() as u32).map(|id| tokenizer.bytes(id).len()).max().unwrap_or(1).max(1);
    let model = LoadedModel { executor: Box::new(cpu), tokenizer: Arc::new(tokenizer), context: config.context };
    engine.load(&config.name, model).map_err(|failure| failure.to_string())?;
    let info = engine.model(&config.name).ok_or("the engine released it")?;
    Ok(Ready { info, chat, chat_problem, notes, parameters, longest_token, load_ms: 0 })
}

/// The file comes first: a status shows the beginning of a message.
fn differs(error: &textnlp_models::Error) -> String {
    match error {
        textnlp_models::Error::Corrupt { path, why } => {
            format!("`{}` differs from {}: {why}", path.file_name().unwrap_or_default(), textnlp_models::MANIFEST)
        }
        error => chain(error),
    }
}

#[cfg(test)]
mod tests {
    use super::fits_in_memory;

    #[test]
    fn model_larger_than_memory_is_not_loaded() {
        assert_eq!(fits_in_memory(1), Ok(()));
        assert!(fits_in_memory(u64::MAX).unwrap_err().contains("quantize it"));
    }
}
