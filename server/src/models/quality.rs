//! How well a model predicts a text of the operator: its perplexity, measured once in the background.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use textnlp_inference::engine::{Failure, Score, Ticket};
use tokio::sync::oneshot;

use super::{Entry, ModelState, Models, Ready, blocking};

/// How long a sequence of the text waits for a moment without requests. Then it has its turns like a request of one more tenant.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the engine may take for a sequence beside requests.
const SEQUENCE_TIMEOUT: Duration = Duration::from_secs(120);
/// The pauses before a sequence is tried again, each twice the one before.
const PAUSES: std::ops::RangeInclusive<Duration> = Duration::from_secs(2)..=Duration::from_secs(600);
/// Whose work it is for the engine. No tenant has a name with a space.
const TENANT: &str = "text quality";

/// Why there is no perplexity.
enum Unmeasured {
    /// The model was unloaded, or the server stops. Its next load measures it.
    Gone,
    /// It never can be.
    Never(String),
}

impl Models {
    /// Measures the text of a model that was loaded, in the background, unless it was measured.
    pub(super) fn measure(self: &Arc<Self>, entry: &Arc<Entry>) {
        let Some(text) = entry.config.quality_text.clone() else { return };
        if entry.is_measured.swap(true, Ordering::Relaxed) {
            return;
        }
        let (models, entry) = (self.clone(), entry.clone());
        self.tasks.spawn(async move {
            let (model, began) = (entry.config.name.as_str(), Instant::now());
            let measured = models.stopping.run_until_cancelled(models.perplexity(&entry, &text)).await;
            match measured {
                Some(Ok(perplexity)) => {
                    models.metrics.perplexity(model, perplexity);
                    tracing::info!(model, perplexity, ms = began.elapsed().as_millis() as u64, "text measured");
                }
                Some(Err(Unmeasured::Never(why))) => {
                    // A value that is no number: gates do not wait for it.
                    models.metrics.perplexity(model, f64::NAN);
                    tracing::warn!(model, why, "the text that measures the model cannot be measured");
                }
                Some(Err(Unmeasured::Gone)) | None => entry.is_measured.store(false, Ordering::Relaxed),
            }
        });
    }

    /// Ends measurements: they are no reason to wait at the shutdown.
    pub(crate) fn stop_measuring(&self) {
        self.stopping.cancel();
    }

    async fn perplexity(&self, entry: &Entry, text: &Arc<str>) -> Result<f64, Unmeasured> {
        // One model at a time.
        let _one = self.measuring.lock().await;
        let (mut sum, mut count) = (0.0, 0_usize);
        let loaded = ready(entry)?;
        let sequences = sequences(&loaded, text).await.map_err(Unmeasured::Never)?;
        drop(loaded);
        for sequence in sequences {
            count += sequence.len() - 1;
            sum += self.log_likelihood(entry, sequence).await?;
        }
        let perplexity = (-sum / count.max(1) as f64).exp();
        match perplexity.is_finite() {
            true => Ok(perplexity),
            false => Err(Unmeasured::Never("the model gives a token of it no probability".to_owned())),
        }
    }

    async fn log_likelihood(&self, entry: &Entry, tokens: Vec<u32>) -> Result<f64, Unmeasured> {
        let mut pause = *PAUSES.start();
        loop {
            self.idle().await;
            // Held while the engine computes: it is not unloaded for another model.
            let held = ready(entry)?;
            let score = Score {
                model: entry.config.name.clone(),
                tenant: TENANT.to_owned(),
                tokens: tokens.clone(),
                deadline: Some(Instant::now() + SEQUENCE_TIMEOUT),
            };
            let (sender, scored) = oneshot::channel();
            let asked = self.engine.score(score, Box::new(move |result| drop(sender.send(result))));
            let failure = match asked.map(Ticket::cancel_on_drop) {
                Ok(_ticket) => match scored.await {
                    Ok(Ok(scored)) => return Ok(scored.sum),
                    Ok(Err(failure)) => failure,
                    Err(_) => return Err(Unmeasured::Gone),
                },
                Err(failure) => failure,
            };
            match failure {
                Failure::Draining | Failure::NoModel(_) => return Err(Unmeasured::Gone),
                Failure::Busy { .. } | Failure::Deadline => {}
                failure => return Err(Unmeasured::Never(failure.to_string())),
            }
            drop(held);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(*PAUSES.end());
        }
    }

    /// Waits for a moment without requests and loads, but not for ever.
    async fn idle(&self) {
        let last = Instant::now() + IDLE_TIMEOUT;
        let is_busy = || {
            let stats = self.engine.stats();
            let encoders = self.encoders();
            let of_encoder =
                |ready: &Arc<Ready>| ready.embedder.as_ref().is_some_and(|one| one.handle.load() != (0, 0));
            stats.queued + stats.running > 0
                || self.one_load.available_permits() == 0
                || encoders.iter().any(of_encoder)
        };
        while is_busy() && Instant::now() < last {
            tokio::time::sleep(IDLE_POLL_INTERVAL).await;
        }
    }
}

/// A model that is loaded now.
fn ready(entry: &Entry) -> Result<Arc<Ready>, Unmeasured> {
    match entry.standing() {
        ModelState::Ready(ready) => Ok(ready),
        _ => Err(Unmeasured::Gone),
    }
}

/// The tokens of a text as the requests that measure it.
async fn sequences(ready: &Ready, text: &Arc<str>) -> Result<Vec<Vec<u32>>, String> {
    if ready.embedder.is_some() {
        return Err("it makes vectors and predicts no text".to_owned());
    }
    if text.len() > ready.max_text() {
        return Err(format!(
            "it is longer than {} bytes, the most that its tokenizer splits at once",
            ready.max_text()
        ));
    }
    let (tokenizer, context, text) = (ready.info.tokenizer.clone(), ready.info.context, text.clone());
    blocking(move || {
        let tokens = tokenizer.encode(&text, false).map_err(|error| error.to_string())?;
        textnlp_models::windows(&tokens, tokenizer.bos(), context).map_err(|why| why.to_string())
    })
    .await
}
