//! Answers as server-sent events.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::StreamExt as _;
use serde_json::Value;
use textnlp_inference::engine::{Done, Event, Token};

use crate::error::ApiError;
use crate::models::Ready;
use crate::work::{Running, broke_off};

/// What there is to say.
pub(super) enum Moment<'a> {
    /// The answer begins.
    Begin,
    /// A token came.
    Token(&'a Ready, &'a Token),
    /// The answer is complete.
    Done(&'a Done),
    /// The answer failed after it had begun.
    Failed(ApiError),
}

/// So often something is sent, so that nobody between here and the client takes the silence for an end.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams an answer in the words of `say` (empty words are not sent). The status waits for the first event: a refusal that
/// comes from the queue is still a refusal.
pub(super) async fn respond(
    mut running: Running,
    mut say: impl FnMut(Moment<'_>) -> String + Send + 'static,
) -> Result<Response, ApiError> {
    let first = match running.events.recv().await {
        Some(Event::Failed(failure)) => return Err(failure.into()),
        None => return Err(broke_off()),
        Some(event) => event,
    };
    let begin = say(Moment::Begin);
    let state = (Some(running), Some(first), say);
    let rest = futures::stream::unfold(state, async |(running, waiting, mut say)| {
        let mut running = running?;
        let mut waiting = waiting;
        loop {
            let event = match waiting.take() {
                Some(event) => Some(event),
                None => match tokio::time::timeout(KEEP_ALIVE, running.events.recv()).await {
                    Ok(event) => event,
                    Err(_) => return Some((": still here\n\n".to_owned(), (Some(running), None, say))),
                },
            };
            let (words, ended) = match event {
                Some(Event::Token(token)) => (say(Moment::Token(&running.model, &token)), false),
                Some(Event::Done(done)) => (say(Moment::Done(&done)), true),
                Some(Event::Failed(failure)) => (failed(&running, &mut say, failure.into()), true),
                None => (failed(&running, &mut say, broke_off()), true),
            };
            if ended || !words.is_empty() {
                return Some((words, ((!ended).then_some(running), None, say)));
            }
        }
    });
    let all = futures::stream::iter((!begin.is_empty()).then_some(begin)).chain(rest);
    let mut response =
        Response::new(Body::from_stream(all.map(|words| Ok::<_, std::convert::Infallible>(Bytes::from(words)))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

fn failed(running: &Running, say: &mut impl FnMut(Moment<'_>) -> String, error: ApiError) -> String {
    running.record.note(|known| known.error = Some(error.code));
    say(Moment::Failed(error))
}

/// One event.
pub(super) fn data(value: &Value) -> String {
    format!("data: {value}\n\n")
}

/// One event with a name.
pub(super) fn named(name: &str, value: &Value) -> String {
    format!("event: {name}\ndata: {value}\n\n")
}

/// OpenAI's last word.
pub(super) const END: &str = "data: [DONE]\n\n";
