//! The models of this server: configured, loaded, and loaded on first use.
//!
//! One load at a time, however many requests wait for it. A circuit breaker pauses a model that fails repeatedly. The
//! least recently used models make room for others.

mod quality;
mod room;

pub(crate) use room::fitting;

use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::http::StatusCode;
use camino::Utf8Path;
use textnlp_inference::cpu::Footprint;
use textnlp_inference::engine::{Handle, LoadedModel, ModelInfo};
use textnlp_inference::format::is_encoder;
use textnlp_inference::text::Tokenizer;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::breaker::{Breaker, BreakerOptions, State};
use crate::chat::ChatTemplate;
use crate::config::{self, ByteSize};
use crate::embed::{self, Embedder};
use crate::error::{ApiError, chain};
use crate::executors::{self, Loaded, Opened, Place};
use crate::metrics::Metrics;

/// A loaded model.
pub(crate) struct Ready {
    /// Its description from the engine.
    pub info: ModelInfo,
    /// What makes vectors of texts: of an encoder only, which generates nothing.
    pub embedder: Option<Embedder>,
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
    /// Bytes that it takes at most, its workspace included.
    pub held: u64,
    /// The number of the GPU that computes it; `None` is the CPU.
    pub gpu: Option<usize>,
    /// How long loading took.
    pub load_ms: u64,
}

/// The longest text in bytes that is tokenized at once.
const MAX_WHOLE_TEXT: usize = 320 << 10;

/// The longest texts in bytes of a tokenizer whose time may grow with the square of a part: an expression that reads to the
/// end at each place takes about 1.3 s for 32 KiB at once, and 4 s for 128 KiB in parts.
const MAX_SLOW_TEXT: usize = 128 << 10;
const MAX_SLOW_WHOLE_TEXT: usize = 32 << 10;

impl Ready {
    /// What it does.
    pub(crate) fn kind(&self) -> Kind {
        if self.embedder.is_some() { Kind::Embedding } else { Kind::Generation }
    }

    /// The longest text that is tokenized, in bytes: 16 for each token of the context, at least 64 KiB. Where a text is
    /// not split in parts, tokenizing takes some 200 bytes of memory for each byte.
    pub(crate) fn max_text(&self) -> usize {
        let tokenizer = &self.info.tokenizer;
        let most = self.info.context.max(4096).saturating_mul(16);
        match (tokenizer.is_fast(), tokenizer.splits_in_parts()) {
            (true, true) => most,
            (true, false) => most.min(MAX_WHOLE_TEXT),
            (false, true) => most.min(MAX_SLOW_TEXT),
            (false, false) => MAX_SLOW_WHOLE_TEXT,
        }
    }

    /// The most token ids that are decoded.
    pub(crate) fn max_ids(&self) -> usize {
        self.info.context.max(65_536)
    }

    /// Without its chat template.
    fn refuse_chats(&mut self, why: String) {
        self.notes.push(format!("its chat template cannot be read: {why}"));
        (self.chat, self.chat_problem) = (None, Some(why));
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

/// What a model does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It continues texts.
    Generation,
    /// It makes vectors of texts.
    Embedding,
}

impl Kind {
    /// Its name in answers.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Generation => "generation",
            Kind::Embedding => "embedding",
        }
    }
}

struct Entry {
    config: config::Model,
    standing: Mutex<ModelState>,
    /// The time and length of its `config.json`, and what that said.
    read_kind: Mutex<Option<(SystemTime, u64, Kind)>>,
    breaker: Mutex<Breaker>,
    /// Locked during a load, so that concurrent requests wait for it.
    loading: Arc<tokio::sync::Mutex<()>>,
    asked: AtomicU64,
    /// Whether it was loaded once: it fits where others leave it room.
    was_loaded: AtomicBool,
    /// Whether its text was measured, or is being measured.
    is_measured: AtomicBool,
}

/// Why a model is not loaded.
#[derive(Debug, thiserror::Error)]
enum LoadError {
    /// It does not fit beside the models that are loaded.
    #[error("{0}")]
    NoRoom(String),
    /// The last answers of unloaded models use the memory.
    #[error("{0}")]
    Busy(String),
    #[error("{0}")]
    Failed(String),
}

impl From<String> for LoadError {
    fn from(why: String) -> Self {
        Self::Failed(why)
    }
}

/// The models of this server.
pub(crate) struct Models {
    entries: Vec<Arc<Entry>>,
    default: String,
    embeddings: Option<String>,
    preload: Vec<String>,
    budget: ByteSize,
    threads: usize,
    place: Place,
    /// Whether vectors of encoders are kept, under the digest of their files.
    are_vectors_kept: bool,
    /// The most requests that wait for one encoder.
    queue: usize,
    engine: Handle,
    renderer: config::Renderer,
    metrics: Arc<Metrics>,
    began: Instant,
    created: u64,
    /// Loads run here, so that they finish even if their request is gone.
    tasks: TaskTracker,
    /// Ends measurements of texts.
    stopping: CancellationToken,
    /// Locked while the text of a model is measured.
    measuring: tokio::sync::Mutex<()>,
    /// One load at a time: two would fight for the same disk and cores, and their memory would add up.
    one_load: Arc<tokio::sync::Semaphore>,
    /// Why a GPU computes nothing more, found by a load.
    fault: OnceLock<String>,
    unloaded: room::Unloaded,
}

impl Models {
    /// Starts without any loaded model.
    pub(crate) fn new(
        config: &config::Config,
        place: Place,
        engine: Handle,
        metrics: Arc<Metrics>,
        tasks: TaskTracker,
    ) -> Arc<Self> {
        let are_vectors_kept = config.cache.is_some();
        let (queue, renderer, config) = (config.api.queue, config.renderer.clone(), &config.models);
        let entries = config.serve.iter().map(|model| {
            Arc::new(Entry {
                config: model.clone(),
                standing: Mutex::new(ModelState::Idle),
                read_kind: Mutex::default(),
                breaker: Mutex::new(Breaker::new(BreakerOptions::default())),
                loading: Arc::default(),
                asked: AtomicU64::new(0),
                was_loaded: AtomicBool::new(false),
                is_measured: AtomicBool::new(false),
            })
        });
        Arc::new(Self {
            entries: entries.collect(),
            default: config.default.clone(),
            embeddings: config.embeddings.clone(),
            preload: config.preload.clone(),
            budget: config.max_cache_size,
            threads: config.threads,
            place,
            are_vectors_kept,
            queue,
            engine,
            renderer,
            metrics,
            began: Instant::now(),
            created: SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs()),
            tasks,
            stopping: CancellationToken::new(),
            measuring: tokio::sync::Mutex::default(),
            one_load: Arc::new(tokio::sync::Semaphore::new(1)),
            fault: OnceLock::new(),
            unloaded: room::Unloaded::default(),
        })
    }

    /// Why a model's device computes nothing more in this process.
    pub(crate) fn fault(&self) -> Option<String> {
        self.fault.get().cloned().or_else(|| self.engine.stats().fault)
    }

    /// Where models compute.
    pub(crate) fn place(&self) -> Place {
        self.place
    }

    /// The name of the default model.
    pub(crate) fn default_name(&self) -> &str {
        &self.default
    }

    /// The name of the model for a request of this kind that names none.
    pub(crate) fn default_of(&self, kind: Kind) -> &str {
        match (kind, &self.embeddings) {
            (Kind::Embedding, Some(name)) => name,
            _ => &self.default,
        }
    }

    /// When this server started, in seconds since 1970.
    pub(crate) fn created(&self) -> u64 {
        self.created
    }

    /// All models of a tenant with their states.
    pub(crate) fn list(&self, tenant: &str) -> Vec<(config::Model, ModelState)> {
        self.of_tenant(tenant).map(|entry| (entry.config.clone(), entry.standing())).collect()
    }

    /// One model of a tenant with its state.
    pub(crate) fn find(&self, tenant: &str, name: &str) -> Option<(config::Model, ModelState)> {
        self.entry_of(tenant, name).map(|entry| (entry.config.clone(), entry.standing()))
    }

    /// What a model of a tenant does; `None` if it is unknown or has no files yet.
    pub(crate) fn kind(&self, tenant: &str, name: &str) -> Option<Kind> {
        self.entry_of(tenant, name)?.kind()
    }

    /// The names of a tenant's models of a kind.
    pub(crate) fn of_kind(&self, tenant: &str, kind: Kind) -> Vec<&str> {
        let names = self.of_tenant(tenant).filter(|entry| entry.kind() == Some(kind));
        names.map(|entry| entry.config.name.as_str()).collect()
    }

    /// The loaded encoders.
    pub(crate) fn encoders(&self) -> Vec<Arc<Ready>> {
        let ready = self.entries.iter().filter_map(|entry| match entry.standing() {
            ModelState::Ready(ready) => Some(ready),
            _ => None,
        });
        ready.filter(|ready| ready.embedder.is_some()).collect()
    }

    /// The models to load before the server is ready, with their states, and whether each was loaded before. Readiness is
    /// public: a tenant's model has no name there.
    pub(crate) fn preloads(&self) -> Vec<(Option<String>, ModelState, bool)> {
        let entries = self.preload.iter().filter_map(|name| self.entry(name));
        let public = |entry: &Entry| entry.config.tenant.is_none().then(|| entry.config.name.clone());
        entries.map(|entry| (public(entry), entry.standing(), entry.was_loaded.load(Ordering::Relaxed))).collect()
    }

    /// Loads the models needed for readiness. Failures are logged and reported by `/ready`.
    pub(crate) async fn preload(self: &Arc<Self>) {
        for name in &self.preload {
            let Some(entry) = self.entry(name).cloned() else { continue };
            if let Err(error) = self.loaded(entry).await {
                tracing::error!(model = %name, error = %error.message, "a model could not be loaded");
            }
        }
    }

    /// A loaded model of a tenant; loads it if needed. `None` is the default model.
    pub(crate) async fn get(self: &Arc<Self>, tenant: &str, name: Option<&str>) -> Result<Arc<Ready>, ApiError> {
        let name = name.unwrap_or(&self.default);
        let entry = self.entry_of(tenant, name).cloned().ok_or_else(|| self.unknown(tenant, name))?;
        self.loaded(entry).await
    }

    async fn loaded(self: &Arc<Self>, entry: Arc<Entry>) -> Result<Arc<Ready>, ApiError> {
        let name = entry.config.name.as_str();
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
            match &result {
                Ok(_) => {
                    loading.was_loaded.store(true, Ordering::Relaxed);
                    models.outcome(&loading, true);
                }
                // Other models have its memory for now, which says nothing about this one.
                Err(LoadError::Busy(_)) => models.not_now(&loading),
                Err(LoadError::NoRoom(_)) if loading.was_loaded.load(Ordering::Relaxed) => models.not_now(&loading),
                Err(error) => {
                    models.outcome(&loading, false);
                    loading.stand(ModelState::Failed(error.to_string()));
                }
            }
            drop(guard);
            result
        });
        match load.await {
            Ok(Ok(ready)) => Ok(ready),
            Ok(Err(error)) => Err(cannot(name, &error.to_string())),
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

    /// A load that says nothing about the model.
    fn not_now(&self, entry: &Entry) {
        self.no_outcome(&entry.config.name);
        entry.stand(ModelState::Idle);
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

    /// The models that a tenant may use: those of all tenants, and its own.
    fn of_tenant(&self, tenant: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.entries.iter().filter(move |entry| entry.config.tenant.as_deref().is_none_or(|owner| owner == tenant))
    }

    fn entry_of(&self, tenant: &str, name: &str) -> Option<&Arc<Entry>> {
        self.of_tenant(tenant).find(|entry| entry.config.name == name)
    }

    /// The error for a name that no model of a tenant has.
    pub(crate) fn unknown(&self, tenant: &str, name: &str) -> ApiError {
        let names: Vec<&str> = self.of_tenant(tenant).map(|entry| entry.config.name.as_str()).collect();
        let shown: String = name.chars().take(128).collect();
        let hint = match config::nearest(&shown, &names) {
            Some(word) => format!("did you mean `{word}`?"),
            None => format!("this server has: {}", names.join(", ")),
        };
        ApiError::new(StatusCode::NOT_FOUND, "model_not_found", format!("there is no model `{shown}`"))
            .param("model")
            .hint(hint)
    }

    async fn load(self: &Arc<Self>, entry: &Arc<Entry>) -> Result<Arc<Ready>, LoadError> {
        let _one = self.one_load.acquire().await.map_err(|_| "the server is shutting down".to_owned())?;
        let began = Instant::now();
        let (config, place, are_vectors_kept) = (entry.config.clone(), self.place, self.are_vectors_kept);
        let (before, opened, footprint) = blocking(move || {
            // Before the files are opened: the vectors are of what is read from now on.
            let before = are_vectors_kept.then(|| stamp(&config.path));
            let opened = Opened::new(&config, place)?;
            opened.check_context(config.context)?;
            let footprint = opened.footprint(&config)?;
            Ok((before, opened, footprint))
        })
        .await?;
        let gpu = opened.gpu();
        let kv_positions = self.make_room(entry, &footprint, gpu).await?;
        let (models, config) = (self.clone(), entry.config.clone());
        let started = blocking(move || models.start(&config, before, opened, &footprint, kv_positions)).await;
        if started.is_err()
            && let Some(why) = executors::fault(gpu).await
        {
            let _is_known = self.fault.set(why);
        }
        let mut ready = started?;
        let problem = match &ready.chat {
            Some(template) => template.check().await.err(),
            None => None,
        };
        if let Some(why) = problem {
            ready.refuse_chats(why);
        }
        let took = began.elapsed();
        self.metrics.model_loaded(&entry.config.name, took);
        ready.load_ms = took.as_millis() as u64;
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
        let ready = Arc::new(ready);
        // Before the next load, which counts its memory.
        entry.stand(ModelState::Ready(ready.clone()));
        self.measure(entry);
        Ok(ready)
    }

    /// Reads a model's weights and serves it. `before`: the stamp of its files from before they were opened, if vectors are kept.
    fn start(
        &self,
        config: &config::Model,
        before: Option<Stamp>,
        opened: Opened,
        footprint: &Footprint,
        kv_positions: usize,
    ) -> Result<Ready, String> {
        let mut notes = opened.notes();
        let (loaded, of_weights) = verified(config, || opened.load(config, self.threads, kv_positions))??;
        notes.extend(of_weights);
        let usual = footprint.usual_positions();
        if kv_positions < usual {
            notes.push(format!(
                "memory is short: there are keys and values of {kv_positions} positions instead of {usual}"
            ));
        }
        let (held, parameters, gpu) = (footprint.total(kv_positions, self.threads), opened.parameters(), opened.gpu());
        let tokenizer = Arc::new(opened.into_tokenizer());
        let longest_token = longest_token(&tokenizer);
        let (mut embedder, mut chat) = (None, None);
        let info = match loaded {
            Loaded::Encoder(encoder) => {
                // A model that cannot be cached is served all the same.
                let digest = before.and_then(|before| match digest(&config.path, &before) {
                    Ok(digest) => Some(digest),
                    Err(why) => {
                        notes.push(format!("its vectors are not kept in the cache: {why}"));
                        None
                    }
                });
                let (info, started) = embed::start(config, *encoder, tokenizer, self.queue, digest)?;
                embedder = Some(started);
                info
            }
            Loaded::Decoder(executor) => {
                chat = self.chat_template(config, &tokenizer);
                let model = LoadedModel { executor, tokenizer, context: config.context };
                self.engine.load(&config.name, model).map_err(|failure| failure.to_string())?;
                self.engine.model(&config.name).ok_or("the engine released it")?
            }
        };
        let mut ready = Ready {
            info,
            embedder,
            chat: None,
            chat_problem: None,
            notes,
            parameters,
            longest_token,
            held,
            gpu,
            load_ms: 0,
        };
        match chat.transpose() {
            Ok(template) => ready.chat = template,
            Err(why) => ready.refuse_chats(why),
        }
        Ok(ready)
    }

    /// A model's chat template, if it has one, or why it cannot be used.
    fn chat_template(
        &self,
        config: &config::Model,
        tokenizer: &Arc<Tokenizer>,
    ) -> Option<Result<ChatTemplate, String>> {
        let source = tokenizer.chat_template()?;
        let piece = |id: Option<u32>| id.and_then(|id| tokenizer.piece(id));
        let (bos, eos) = (piece(tokenizer.bos()), piece(tokenizer.eos()));
        let template = ChatTemplate::new(&config.name, self.renderer.clone(), source, bos, eos);
        Some(match config.parse_special_tokens {
            true => template,
            false => template.map(|template| template.with_plain_messages(tokenizer.clone())),
        })
    }
}

impl Entry {
    /// `None` where neither a loaded model nor files say so. The file that says it is read again once it was exchanged.
    fn kind(&self) -> Option<Kind> {
        if let ModelState::Ready(ready) = self.standing() {
            return Some(ready.kind());
        }
        let path = self.config.path.as_std_path();
        let about = std::fs::metadata(path.join("config.json")).ok();
        let version = about.and_then(|about| Some((about.modified().ok()?, about.len())));
        let known = *self.read_kind.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((changed, bytes, kind)) = known
            && version == Some((changed, bytes))
        {
            return Some(kind);
        }
        let kind = if is_encoder(path)? { Kind::Embedding } else { Kind::Generation };
        let read = version.map(|(changed, bytes)| (changed, bytes, kind));
        *self.read_kind.lock().unwrap_or_else(PoisonError::into_inner) = read;
        Some(kind)
    }

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

/// Loads a model while its files are verified: hashing takes about as long as loading and reads the same pages.
fn verified<T: Send>(config: &config::Model, load: impl FnOnce() -> T) -> Result<T, String> {
    let (loaded, verified) = std::thread::scope(|scope| {
        let verified = scope.spawn(|| textnlp_models::verify_to_load(&config.path));
        (load(), verified.join())
    });
    verified.map_err(|_| "its verification was aborted".to_owned())?.map_err(|error| differs(&error))?;
    Ok(loaded)
}

/// The files of a folder by name, with their inodes, lengths and times in nanoseconds.
type Stamp = Vec<(std::ffi::OsString, u64, u64, i64, i64)>;

/// What changes with a folder's files.
fn stamp(folder: &Utf8Path) -> Stamp {
    let about = |entry: std::fs::DirEntry| {
        // That of what a link names.
        let about = std::fs::metadata(entry.path()).ok()?;
        Some((entry.file_name(), about.ino(), about.len(), about.mtime(), about.mtime_nsec()))
    };
    let entries = std::fs::read_dir(folder).into_iter().flatten();
    let mut stamp: Stamp = entries.filter_map(|entry| about(entry.ok()?)).collect();
    stamp.sort();
    stamp
}

/// The digest of an encoder's files, which are those that it was loaded from: nothing has changed since `before`. A manifest was
/// compared with the files while they were loaded.
fn digest(folder: &Utf8Path, before: &Stamp) -> Result<textnlp_models::Digest, String> {
    let manifest = textnlp_models::read_manifest(folder).map_err(|error| chain(&error))?;
    let digest = match manifest {
        Some(manifest) => manifest.digest,
        None => textnlp_models::digest_of(folder).map_err(|error| chain(&error))?.digest,
    };
    if stamp(folder) == *before { Ok(digest) } else { Err("its files changed while it was loaded".to_owned()) }
}

/// Bytes of the longest token.
fn longest_token(tokenizer: &Tokenizer) -> usize {
    (0..tokenizer.vocab() as u32).map(|id| tokenizer.bytes(id).len()).max().unwrap_or(1).max(1)
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
    use super::*;

    #[test]
    fn files_that_were_replaced_since_they_were_opened_have_no_digest() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8Path::from_path(folder.path()).unwrap();
        std::fs::write(path.join("model.safetensors"), "old").unwrap();
        let before = stamp(path);
        assert!(digest(path, &before).is_ok());
        std::fs::write(path.join("new"), "new").unwrap();
        std::fs::rename(path.join("new"), path.join("model.safetensors")).unwrap();
        assert!(digest(path, &before).is_err());
    }
}
