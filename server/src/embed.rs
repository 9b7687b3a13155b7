//! Encoders: starting one, and the vectors of a request's texts from the reservation of its tokens to its settlement.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};
use textnlp_inference::cpu::Encoder;
use textnlp_inference::engine::{EmbedRequest, Embedded, EncoderHandle, Failure, ModelInfo, ModelStats, Stats};
use textnlp_inference::format::EncoderSettings;
use textnlp_inference::guide::Guides;
use textnlp_inference::text::{EncoderText, Tokenizer};
use tokio::sync::oneshot;

use crate::allowance;
use crate::app::App;
use crate::auth::Caller;
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

/// Starts the thread of an encoder.
pub(crate) fn start(
    config: &config::Model,
    encoder: Encoder,
    tokenizer: Arc<Tokenizer>,
    queue: usize,
) -> Result<(ModelInfo, Embedder), String> {
    let settings = encoder.settings().clone();
    let width = encoder.architecture().width;
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
    Ok((info, Embedder { handle, text: Arc::new(text), settings, width, matryoshka: config.matryoshka }))
}

/// The vectors of texts, given as tokens with the special ones around them. The work ends when this future is dropped.
pub(crate) async fn embed(
    app: &Arc<App>,
    record: &Arc<Record>,
    caller: &Caller,
    model: Arc<Ready>,
    texts: Vec<Vec<u32>>,
) -> Result<Embedded, ApiError> {
    let (out, answer) = oneshot::channel();
    let work = Work { app: app.clone(), record: record.clone(), caller: caller.clone(), model };
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
        let (result, used) = self.compute(texts, &mut out).await;
        self.record.called(|| self.call(&result, began, used));
        match &result {
            Ok(_) => self.app.models.answered(name, true),
            Err(Failure::Model(_)) => self.app.models.answered(name, false),
            Err(_) => self.app.models.no_outcome(name),
        }
        let metrics = &self.app.metrics;
        if let Ok(embedded) = &result {
            let took = of_millis(embedded.total_ms);
            metrics.record_generation(name, &self.caller.user, used, 0, took);
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
