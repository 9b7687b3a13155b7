//! How well a model predicts a text of the operator: its perplexity, measured once after its first load.

use std::time::{Duration, Instant};

use textnlp_inference::engine::{Failure, Handle, Score};
use tokio::sync::oneshot;

/// Tokens that are measured; what follows is left out.
const MOST_TOKENS: usize = 8192;
/// Tokens of a text at least: fewer say nothing about a model.
pub(crate) const FEWEST_TOKENS: usize = 64;
/// Tokens that are predicted from what stands before them in the same window. One takes no longer than a prompt of that length.
const WINDOW: usize = 512;
/// How long a window waits for a moment without requests. Then it has its turns like a request of one more tenant.
const IDLE_TIMEOUT: Duration = Duration::from_secs(10);
const IDLE_POLL_INTERVAL: Duration = Duration::from_millis(50);
/// How long the engine may take for a window beside requests.
const WINDOW_TIMEOUT: Duration = Duration::from_secs(120);
/// How often a window is tried where the queue is full.
const ATTEMPTS: usize = 5;
/// Whose work it is for the engine. No tenant has a name with a space.
const TENANT: &str = "text quality";

/// Why there is no perplexity.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Unmeasured {
    /// The model was unloaded, or the server stops.
    #[error("the model was unloaded")]
    Gone,
    #[error("{0}")]
    Failed(String),
}

/// The tokens of a text as the requests that measure it. `first`: the token that the model's texts begin with.
pub(crate) fn windows(tokens: &[u32], first: Option<u32>, context: usize) -> Result<Vec<Vec<u32>>, String> {
    if tokens.len() < FEWEST_TOKENS {
        return Err(format!("it has {} tokens, and at least {FEWEST_TOKENS} are needed", tokens.len()));
    }
    let room = WINDOW.min(context).saturating_sub(usize::from(first.is_some()));
    if room < FEWEST_TOKENS {
        return Err(format!("the context of the model has {context} tokens, and more than {FEWEST_TOKENS} are needed"));
    }
    let parts = tokens[..tokens.len().min(MOST_TOKENS)].chunks(room);
    let windows = parts.map(|part| first.into_iter().chain(part.iter().copied()).collect::<Vec<u32>>());
    // The first token of a window is not predicted.
    Ok(windows.filter(|window| window.len() > 1).collect())
}

/// The perplexity of the text of these windows.
pub(crate) async fn perplexity(engine: &Handle, model: &str, windows: Vec<Vec<u32>>) -> Result<f64, Unmeasured> {
    let (mut sum, mut count) = (0.0, 0_usize);
    for window in windows {
        count += window.len() - 1;
        sum += log_likelihood(engine, model, window).await?;
    }
    let perplexity = (-sum / count.max(1) as f64).exp();
    match perplexity.is_finite() {
        true => Ok(perplexity),
        false => Err(Unmeasured::Failed("the model gives a token of the text no probability".to_owned())),
    }
}

async fn log_likelihood(engine: &Handle, model: &str, tokens: Vec<u32>) -> Result<f64, Unmeasured> {
    let mut attempt = 1;
    loop {
        idle(engine).await;
        let score = Score {
            model: model.to_owned(),
            tenant: TENANT.to_owned(),
            tokens: tokens.clone(),
            deadline: Some(Instant::now() + WINDOW_TIMEOUT),
        };
        let (sender, scored) = oneshot::channel();
        let asked = engine.score(score, Box::new(move |result| drop(sender.send(result))));
        let failure = match asked {
            Ok(_ticket) => match scored.await {
                Ok(Ok(scored)) => return Ok(scored.sum),
                Ok(Err(failure)) => failure,
                Err(_) => return Err(Unmeasured::Gone),
            },
            Err(failure) => failure,
        };
        match failure {
            Failure::Draining | Failure::NoModel(_) => return Err(Unmeasured::Gone),
            Failure::Busy { retry_after_ms } if attempt < ATTEMPTS => {
                attempt += 1;
                tokio::time::sleep(Duration::from_millis(retry_after_ms).min(IDLE_TIMEOUT)).await;
            }
            failure => return Err(Unmeasured::Failed(failure.to_string())),
        }
    }
}

/// Waits for a moment without requests, but not for ever.
async fn idle(engine: &Handle) {
    let last = Instant::now() + IDLE_TIMEOUT;
    loop {
        let stats = engine.stats();
        if stats.draining || stats.queued + stats.running == 0 || Instant::now() >= last {
            return;
        }
        tokio::time::sleep(IDLE_POLL_INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_hold_every_token_once_and_begin_as_texts_of_the_model_do() {
        let tokens: Vec<u32> = (10..1300).collect();
        let with_first = windows(&tokens, Some(1), 4096).unwrap();
        assert!(with_first.iter().all(|window| window[0] == 1 && window.len() <= WINDOW));
        let again: Vec<u32> = with_first.iter().flat_map(|window| window[1..].iter().copied()).collect();
        assert_eq!(again, tokens);
        let short = windows(&tokens, None, 100).unwrap();
        assert_eq!((short.len(), short.concat()), (13, tokens));
    }

    #[test]
    fn window_of_one_token_that_nothing_stands_before_is_left_out() {
        let tokens: Vec<u32> = (0..WINDOW as u32 + 1).collect();
        assert_eq!(windows(&tokens, None, 4096).unwrap(), [&tokens[..WINDOW]]);
        assert_eq!(windows(&tokens, Some(7), 4096).unwrap().concat().len(), WINDOW + 3);
    }

    #[test]
    fn long_texts_are_cut_and_short_ones_are_refused() {
        let long = windows(&vec![3; 3 * MOST_TOKENS], None, 4096).unwrap();
        assert_eq!(long.concat().len(), MOST_TOKENS);
        assert_eq!(windows(&[3; 63], None, 4096).unwrap_err(), "it has 63 tokens, and at least 64 are needed");
        assert!(windows(&[3; 64], None, 64).is_ok());
        assert!(windows(&[3; 64], Some(1), 64).unwrap_err().starts_with("the context of the model has 64 tokens"));
    }
}
