//! Readiness of this replica: its models are loaded, and the engine computes or has computed recently.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use textnlp_inference::engine::{Event, Failure, Request, Sampling};
use tokio::sync::{Mutex, mpsc};

use crate::app::App;
use crate::models::ModelState;

/// A step as recent as this is proof enough.
const RECENT: Duration = Duration::from_secs(30);

/// Minimum interval between two probes of the engine.
const MIN_PROBE_INTERVAL: Duration = Duration::from_secs(10);

/// Timeout of a probe.
const PROBE_FOR: Duration = Duration::from_secs(5);

/// The answer of `/ready`.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Verdict {
    Ready,
    Loading(Value),
    Draining,
    Failing(String),
}

/// The last probe.
#[derive(Default)]
pub(crate) struct Readiness {
    last: Mutex<Option<(Instant, Result<(), String>)>>,
    retried: Mutex<Option<Instant>>,
}

/// Determines readiness; probes the engine only if nothing else proves it.
pub(crate) async fn verdict(app: &Arc<App>) -> Verdict {
    let verdict = look(app).await;
    app.metrics.ready(verdict == Verdict::Ready);
    verdict
}

async fn look(app: &Arc<App>) -> Verdict {
    if app.is_stopping() {
        return Verdict::Draining;
    }
    let preloads = app.models.preloads();
    let total = preloads.len();
    let loaded = preloads.iter().filter(|(_, state, _)| matches!(state, ModelState::Ready(_))).count();
    for (name, state, was_loaded) in &preloads {
        match state {
            ModelState::Failed(why) => {
                load_again(app).await;
                return Verdict::Failing(match name {
                    Some(name) => format!("model `{name}` cannot be loaded: {why}"),
                    None => "a model of one tenant cannot be loaded: see the server's log".to_owned(),
                });
            }
            // Unloaded for another model: it is loaded again on demand, and requests for it wait.
            ModelState::Idle | ModelState::Loading(_) if *was_loaded => {}
            ModelState::Loading(since) => {
                let seconds = since.elapsed().as_secs_f64();
                return Verdict::Loading(json!({ "loaded": loaded, "of": total, "model": name, "seconds": seconds }));
            }
            ModelState::Idle if app.began.elapsed() < RECENT => {
                return Verdict::Loading(json!({ "loaded": loaded, "of": total, "model": name, "seconds": null }));
            }
            ModelState::Idle | ModelState::Ready(_) => {}
        }
    }
    let stats = app.engine.stats();
    if stats.last_step.is_some_and(|step| step.elapsed() < RECENT) || stats.queued >= app.config.api.queue {
        return Verdict::Ready;
    }
    let mut last = app.readiness.last.lock().await;
    if let Some((at, result)) = last.as_ref()
        && at.elapsed() < MIN_PROBE_INTERVAL
    {
        return result.clone().map_or_else(Verdict::Failing, |()| Verdict::Ready);
    }
    let result = probe(app).await;
    *last = Some((Instant::now(), result.clone()));
    result.map_or_else(Verdict::Failing, |()| Verdict::Ready)
}

/// One token of any loaded model; of an encoder where no other is loaded.
async fn probe(app: &App) -> Result<(), String> {
    let models = app.engine.models();
    let Some(model) = models.iter().find(|m| m.name == app.models.default_name()).or(models.first()) else {
        return crate::embed::probe(app, PROBE_FOR).await;
    };
    let (outlet, mut inbox) = mpsc::channel(4);
    let request = Request {
        model: model.name.clone(),
        tenant: "probe".into(),
        prompt: vec![model.tokenizer.bos().or_else(|| model.tokenizer.eos()).unwrap_or(0)],
        max_tokens: 1,
        sampling: Sampling {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
            seed: 0,
        },
        stop: Vec::new(),
        guide: None,
        ignore_end: false,
        logprobs: None,
        deadline: Some(Instant::now() + PROBE_FOR),
    };
    match app.engine.submit(request, app.delivery.outlet(outlet)) {
        Ok(_) => {}
        // It may have been unloaded since, for another one.
        Err(Failure::Busy { .. } | Failure::NoModel(_)) => return Ok(()),
        Err(failure) => return Err(failure.to_string()),
    }
    let answer = async {
        loop {
            match inbox.recv().await {
                Some(Event::Token(_)) => {}
                Some(Event::Done(_)) | Some(Event::Failed(Failure::Busy { .. })) => return Ok(()),
                Some(Event::Failed(failure)) => return Err(failure.to_string()),
                None => return Err("the engine does not answer".to_owned()),
            }
        }
    };
    tokio::time::timeout(PROBE_FOR + Duration::from_secs(1), answer)
        .await
        .unwrap_or_else(|_| Err("the engine does not answer".into()))
}

/// Retries loading a failed model from time to time: its files may have been repaired.
async fn load_again(app: &Arc<App>) {
    let mut retried = app.readiness.retried.lock().await;
    if retried.is_some_and(|at| at.elapsed() < MIN_PROBE_INTERVAL) {
        return;
    }
    *retried = Some(Instant::now());
    let models = app.models.clone();
    app.tasks.spawn(async move { models.preload().await });
}
