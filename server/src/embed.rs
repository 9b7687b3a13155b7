//! Encoders: starting one, and the vectors of a request's texts from the reservation of its tokens to its settlement.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use textnlp_inference::cpu::{Encoder, VECTORS};
use textnlp_inference::engine::{EmbedRequest, Embedded, EncoderHandle, Failure, ModelInfo, ModelStats, Stats};
use textnlp_inference::format::EncoderSettings;
use textnlp_inference::guide::Guides;
use textnlp_inference::text::{EncoderText, Tokenizer};
use tokio::sync::oneshot;

use crate::allowance;
use crate::app::App;
use crate::auth::Caller;
use crate::cache::{Fingerprint, Key};
use crate::config;
use crate::error::{ApiError, chain};
use crate::models::Ready;
use crate::record::Record;
use crate::traces::{ModelCall, of_millis};

/// What makes vectors of texts.
pub(crate) struct Embedder {
    pub(crate) handle: EncoderHandle,
    pub(crate) text: Arc<EncoderText>,
    pub(crate) settings: EncoderSettings,
    /// Numbers of a vector.
    pub(crate) width: usize,
    /// Vectors may be shortened.
    pub(crate) matryoshka: bool,
    /// What its vectors depend on; absent where no vector is kept.
    pub(crate) fingerprint: Option<Fingerprint>,
}

impl Embedder {
    /// For `/v1/models`.
    pub(crate) fn describe(&self) -> Value {
        json!({
            "dimensions": self.width,
            "matryoshka": self.matryoshka,
            "pooling": self.settings.pooling.name(),
            "normalized": self.settings.normalize,
            "prompts": self.settings.prompts.keys().collect::<Vec<_>>(),
            "default_prompt": self.settings.default_prompt,
        })
    }

    /// The text before each text of a request.
    pub(crate) fn prompt(&self, name: Option<&str>) -> Result<String, ApiError> {
        let prompts = &self.settings.prompts;
        let Some(name) = name.or(self.settings.default_prompt.as_deref()) else { return Ok(String::new()) };
        prompts.get(name).cloned().ok_or_else(|| {
            let shown: String = name.chars().take(64).collect();
            let names: Vec<&str> = prompts.keys().map(String::as_str).collect();
            let hint = match names.as_slice() {
                [] => "this model has no prompts: put what it needs before your texts".to_owned(),
                names => format!("this model has: {}", names.join(", ")),
            };
            ApiError::invalid(format!("there is no prompt `{shown}`")).param("prompt_name").hint(hint)
        })
    }
}

/// Starts the thread of an encoder. `digest`: that of its files, if vectors are kept.
pub(crate) fn start(
    config: &config::Model,
    encoder: Encoder,
    tokenizer: Arc<Tokenizer>,
    queue: usize,
    digest: Option<textnlp_models::Digest>,
) -> Result<(ModelInfo, Embedder), String> {
    let settings = encoder.settings().clone();
    let width = encoder.architecture().width;
    let fingerprint = digest.map(|digest| fingerprint(config, &settings, width, &digest));
    let text = EncoderText::new(tokenizer.clone(), &settings).map_err(|error| chain(&error))?;
    let shape = Arc::new(encoder.architecture().shape());
    let info = ModelInfo {
        name: config.name.clone(),
        guides: Guides::new(&tokenizer, shape.vocab),
        shape,
        tokenizer,
        context: settings.max_tokens,
        memory: encoder.memory(),
        loaded: SystemTime::now(),
    };
    let handle = EncoderHandle::start(&config.name, encoder, queue)
        .map_err(|error| format!("its thread cannot be started: {error}"))?;
    let (text, matryoshka) = (Arc::new(text), config.matryoshka);
    Ok((info, Embedder { handle, text, settings, width, matryoshka, fingerprint }))
}

/// What the numbers of an encoder's vectors depend on: how this program computes, the files, how the weights are held, and how
/// rows become a vector. A text's prompt is among its tokens, and vectors are shortened after they were found.
fn fingerprint(
    config: &config::Model,
    settings: &EncoderSettings,
    width: usize,
    digest: &textnlp_models::Digest,
) -> Fingerprint {
    let parts = json!([
        VECTORS,
        digest.hex(),
        format!("{:?}", config.quantize),
        settings.pooling.name(),
        settings.normalize,
        width,
    ]);
    Fingerprint(Sha256::digest(parts.to_string()).into())
}

/// The vectors of texts, given as tokens with the special ones around them. The work ends when this future is dropped.
/// `is_cached`: whether they may come from the cache, and are kept there.
pub(crate) async fn embed(
    app: &Arc<App>,
    record: &Arc<Record>,
    caller: &Caller,
    model: Arc<Ready>,
    texts: Vec<Vec<u32>>,
    is_cached: bool,
) -> Result<Embedded, ApiError> {
    let (out, answer) = oneshot::channel();
    let work = Work { app: app.clone(), record: record.clone(), caller: caller.clone(), model, is_cached };
    // A task of its own: a client that leaves now must find its tokens neither set aside for ever nor unpaid.
    app.tasks.spawn(work.run(texts, out));
    answer.await.map_err(|_| aborted())?
}

fn aborted() -> ApiError {
    Failure::Model("the request was aborted".into()).into()
}

struct Work {
    app: Arc<App>,
    record: Arc<Record>,
    caller: Caller,
    model: Arc<Ready>,
    is_cached: bool,
}

/// The vectors of a request.
struct Outcome {
    result: Result<Embedded, Failure>,
    /// The tokens that are charged: those of the vectors that were found count as computed ones.
    used: u64,
    /// Whether the encoder was asked.
    is_computed: bool,
}

impl Work {
    async fn run(self, texts: Vec<Vec<u32>>, mut out: oneshot::Sender<Result<Embedded, ApiError>>) {
        let count = texts.len() as u64;
        let tokens: u64 = texts.iter().map(|text| text.len() as u64).sum();
        let reservation = match allowance::reserve(&self.app, &self.caller, tokens).await {
            Ok(reservation) => reservation,
            Err(error) => {
                let error = if error.param.is_some() { error.param("input").hint("send fewer texts") } else { error };
                let _gone = out.send(Err(error));
                return;
            }
        };
        let name = &self.model.info.name;
        if let Err(refused) = self.app.models.may_ask(name) {
            allowance::settle(&self.app, reservation, 0).await;
            let _gone = out.send(Err(refused));
            return;
        }
        let began = Instant::now();
        let Outcome { result, used, is_computed } = self.vectors(texts, &mut out).await;
        self.record.called(|| self.call(&result, began, used));
        match &result {
            // It says nothing about the model.
            Ok(_) if !is_computed => self.app.models.no_outcome(name),
            Ok(_) => self.app.models.answered(name, true),
            Err(Failure::Model(_)) => self.app.models.answered(name, false),
            Err(_) => self.app.models.no_outcome(name),
        }
        let metrics = &self.app.metrics;
        if let Ok(embedded) = &result {
            match is_computed {
                true => metrics.record_generation(name, &self.caller.user, used, 0, of_millis(embedded.total_ms)),
                false => metrics.record_cached(name, &self.caller.user, used),
            }
            metrics.record_embeddings(name, &self.caller.user, count);
            self.record.note(|known| known.queued_ms = Some(embedded.queued_ms));
        }
        self.record.note(|known| known.prompt_tokens += used);
        // Settled before the client sees the end, so that its next request finds the remaining budget.
        allowance::settle(&self.app, reservation, used).await;
        let _gone = out.send(result.map_err(|failure| match failure {
            Failure::Deadline => ApiError::from(Failure::Deadline).hint("send fewer texts in one request"),
            failure => failure.into(),
        }));
    }

    /// What a trace says of it.
    fn call(&self, result: &Result<Embedded, Failure>, began: Instant, used: u64) -> ModelCall {
        let parts = result.as_ref().map_or_else(
            |_| Vec::new(),
            |done| vec![("queue", of_millis(done.queued_ms)), ("encode", of_millis(done.total_ms))],
        );
        ModelCall {
            model: self.model.info.name.clone(),
            began,
            ended: Instant::now(),
            parts,
            input_tokens: used,
            cached_tokens: 0,
            output_tokens: 0,
            finish: None,
            error: result.as_ref().err().map(|failure| ApiError::from(failure.clone()).code),
        }
    }

    /// The vectors of texts: those that the cache has, and the others from the encoder, each text once.
    async fn vectors(&self, texts: Vec<Vec<u32>>, out: &mut oneshot::Sender<Result<Embedded, ApiError>>) -> Outcome {
        let cache = self.app.cache.as_ref().filter(|_| self.is_cached);
        let embedder = self.model.embedder.as_ref();
        let cached = cache.zip(embedder.and_then(|embedder| Some((embedder.width, embedder.fingerprint.as_ref()?))));
        let Some((cache, (width, fingerprint))) = cached else {
            let (result, used) = self.compute(texts, out).await;
            return Outcome { result, used, is_computed: true };
        };
        let tokens: u64 = texts.iter().map(|text| text.len() as u64).sum();
        let keys: Vec<Key> = texts.iter().map(|text| cache.key(&self.caller.tenant, fingerprint, text)).collect();
        let none = |failure| Outcome { result: Err(failure), used: 0, is_computed: false };
        let mut found = tokio::select! {
            biased;
            found = cache.find(&keys, width) => found,
            () = out.closed() => return none(Failure::Draining),
            () = tokio::time::sleep_until(self.record.deadline().into()) => return none(Failure::Deadline),
        };
        let mut seen = HashSet::new();
        let missing = keys.iter().zip(texts).filter(|(key, _)| !found.contains_key(*key) && seen.insert(**key));
        let (missing, texts): (Vec<Key>, Vec<Vec<u32>>) = missing.map(|(key, text)| (*key, text)).unzip();
        // Those of the model: the cache's time says nothing about it.
        let (mut queued_ms, mut total_ms, is_computed) = (0.0, 0.0, !missing.is_empty());
        if is_computed {
            let (result, used) = self.compute(texts, out).await;
            match result {
                Ok(embedded) => {
                    (queued_ms, total_ms) = (embedded.queued_ms, embedded.total_ms);
                    let copies = missing.iter().zip(&embedded.vectors);
                    let copies = copies.map(|(key, vector)| (*key, Arc::<[f32]>::from(vector.as_slice())));
                    cache.keep(copies.collect());
                    found.extend(missing.into_iter().zip(embedded.vectors));
                }
                failed => return Outcome { result: failed, used, is_computed },
            }
        }
        let result = in_order(&keys, found).map(|vectors| Embedded { vectors, queued_ms, total_ms });
        let result = result.ok_or_else(|| Failure::Model("a text has no vector".into()));
        Outcome { result, used: tokens, is_computed }
    }

    /// The vectors, and the tokens that were computed for them.
    async fn compute(
        &self,
        texts: Vec<Vec<u32>>,
        out: &mut oneshot::Sender<Result<Embedded, ApiError>>,
    ) -> (Result<Embedded, Failure>, u64) {
        let Some(embedder) = &self.model.embedder else {
            return (Err(Failure::NoModel(self.model.info.name.clone())), 0);
        };
        let (sender, result) = oneshot::channel::<Result<Embedded, Failure>>();
        let deadline = Some(self.record.deadline());
        let request = EmbedRequest { tenant: self.caller.tenant.clone(), texts, deadline };
        // Its receiver is gone where the client is.
        let then = move |result| drop(sender.send(result));
        let ticket = match embedder.handle.submit(request, then) {
            Ok(ticket) => ticket,
            Err(failure) => return (Err(failure), 0),
        };
        let result = tokio::select! {
            () = out.closed() => Err(Failure::Draining),
            result = result => result.unwrap_or(Err(Failure::Draining)),
        };
        (result, ticket.taken())
    }
}

/// The vectors of keys, in their order; `None` if one is missing. Only a text that a request has several times is copied.
fn in_order(keys: &[Key], mut found: HashMap<Key, Vec<f32>>) -> Option<Vec<Vec<f32>>> {
    let last: HashMap<Key, usize> = keys.iter().enumerate().map(|(place, key)| (*key, place)).collect();
    let of = |(place, key): (usize, &Key)| match last.get(key) == Some(&place) {
        true => found.remove(key),
        false => found.get(key).cloned(),
    };
    keys.iter().enumerate().map(of).collect()
}

/// Adds what encoders hold and have to do to what the engine says of itself.
pub(crate) fn stats(app: &App) -> Stats {
    let mut stats = app.engine.stats();
    for ready in app.models.encoders() {
        let Some(embedder) = &ready.embedder else { continue };
        let (queued, running) = embedder.handle.load();
        stats.queued += queued;
        stats.running += running;
        let (name, memory) = (ready.info.name.clone(), ready.info.memory);
        stats.models.push(ModelStats { name, queued, running, memory, ..ModelStats::default() });
    }
    stats
}

/// One token of a loaded encoder, within this time.
pub(crate) async fn probe(app: &App, most: Duration) -> Result<(), String> {
    let encoders = app.models.encoders();
    let Some(embedder) = encoders.first().and_then(|ready| ready.embedder.as_ref()) else { return Ok(()) };
    let (sender, result) = oneshot::channel::<Result<Embedded, Failure>>();
    let request = EmbedRequest { tenant: "probe".into(), texts: vec![vec![0]], deadline: Some(Instant::now() + most) };
    let _ticket = match embedder.handle.submit(request, move |result| drop(sender.send(result))) {
        Ok(ticket) => ticket,
        Err(Failure::Busy { .. }) => return Ok(()),
        Err(failure) => return Err(failure.to_string()),
    };
    match tokio::time::timeout(most, result).await {
        Ok(Ok(Ok(_) | Err(Failure::Busy { .. }))) => Ok(()),
        Ok(Ok(Err(failure))) => Err(failure.to_string()),
        Ok(Err(_)) | Err(_) => Err("the encoder does not answer".to_owned()),
    }
}
