//! Answers as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use serde_json::Value;
use textnlp_inference::engine::{Done, Event, Token};

use crate::error::ApiError;
use crate::models::Ready;
use crate::record::Record;
use crate::work::{Running, interrupted};

/// An event of a stream.
pub(super) enum Moment<'a> {
    /// The answer starts.
    Begin,
    /// A token.
    Token(&'a Ready, &'a Token),
    /// The answer is complete.
    Done(&'a Done),
    /// The answer failed after it started.
    Failed(ApiError),
}

/// Interval of keep-alive comments, so that proxies do not close a silent stream.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// Streams an answer as formatted by `say` (empty texts are skipped). The status is sent with the first event: a
/// rejection by the queue still gets its error status.
pub(super) async fn respond(
    running: Running,
    mut say: impl FnMut(Moment<'_>) -> String + Send + 'static,
) -> Result<Response, ApiError> {
    respond_all(vec![running], move |_, stream_event| say(stream_event)).await
}

/// Streams several answers, each event with its answer's index. All end when one fails, and when the client
/// disconnects.
pub(super) async fn respond_all(
    running: Vec<Running>,
    mut say: impl FnMut(usize, Moment<'_>) -> String + Send + 'static,
) -> Result<Response, ApiError> {
    let Some(one) = running.first() else { return Err(interrupted()) };
    let (model, record) = (one.model.clone(), one.record.clone());
    let left = running.len();
    let mut events = merge(running);
    let first = match events.next().await {
        Some((_, Some(Event::Failed(failure)))) => return Err(failure.into()),
        Some((_, None)) | None => return Err(interrupted()),
        Some(event) => event,
    };
    let begin = say(0, Moment::Begin);
    let state = Some(Stream { events, waiting: Some(first), model, record, left, say });
    let rest = futures::stream::unfold(state, async |stream| {
        let mut stream = stream?;
        loop {
            let (frames, ended) = stream.next().await;
            if ended || !frames.is_empty() {
                return Some((frames, (!ended).then_some(stream)));
            }
        }
    });
    let all = futures::stream::iter((!begin.is_empty()).then_some(begin)).chain(rest);
    let mut response =
        Response::new(Body::from_stream(all.map(|frames| Ok::<_, std::convert::Infallible>(Bytes::from(frames)))));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    Ok(response)
}

/// Events of several answers with their indices; `None` when an answer was interrupted.
type Events = BoxStream<'static, (usize, Option<Event>)>;

/// Dropping it cancels all running generations.
fn merge(running: Vec<Running>) -> Events {
    let each = running.into_iter().enumerate().map(|(place, one)| {
        futures::stream::unfold(Some(one.events), move |events| async move {
            let mut events = events?;
            let event = events.recv().await;
            let continues = matches!(event, Some(Event::Token(_)));
            Some(((place, event), continues.then_some(events)))
        })
        .boxed()
    });
    futures::stream::select_all(each).boxed()
}

struct Stream<S> {
    events: Events,
    waiting: Option<(usize, Option<Event>)>,
    model: Arc<Ready>,
    /// Held so that the request's record is written only after the answer.
    record: Arc<Record>,
    /// Answers that have not ended.
    left: usize,
    say: S,
}

impl<S: FnMut(usize, Moment<'_>) -> String> Stream<S> {
    /// The next text, and whether it is the last.
    async fn next(&mut self) -> (String, bool) {
        let event = match self.waiting.take() {
            Some(event) => Some(event),
            None => match tokio::time::timeout(KEEP_ALIVE, self.events.next()).await {
                Ok(event) => event,
                Err(_) => return (": still here\n\n".to_owned(), false),
            },
        };
        match event {
            Some((place, Some(Event::Token(token)))) => ((self.say)(place, Moment::Token(&self.model, &token)), false),
            Some((place, Some(Event::Done(done)))) => {
                self.left -= 1;
                ((self.say)(place, Moment::Done(&done)), self.left == 0)
            }
            Some((place, Some(Event::Failed(failure)))) => (self.failed(place, failure.into()), true),
            Some((place, None)) => (self.failed(place, interrupted()), true),
            None => (self.failed(0, interrupted()), true),
        }
    }

    fn failed(&mut self, place: usize, error: ApiError) -> String {
        self.record.note(|known| known.error = Some(error.code));
        (self.say)(place, Moment::Failed(error))
    }
}

/// One event.
pub(super) fn data(value: &Value) -> String {
    format!("data: {}\n\n", one_line(value))
}

/// One event with a name.
pub(super) fn named(name: &str, value: &Value) -> String {
    format!("event: {name}\ndata: {}\n\n", one_line(value))
}

/// JSON without the characters at which some clients end a line of an event, though only CR and LF do
/// (<https://html.spec.whatwg.org/multipage/server-sent-events.html#parsing-an-event-stream>).
fn one_line(value: &Value) -> String {
    let text = value.to_string();
    if !text.contains(LINE_SEPARATORS) {
        return text;
    }
    // JSON has them in strings only.
    let escaped = |character: char| match LINE_SEPARATORS.contains(&character) {
        true => format!("\\u{:04x}", u32::from(character)),
        false => character.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// NEXT LINE, LINE SEPARATOR and PARAGRAPH SEPARATOR.
const LINE_SEPARATORS: [char; 3] = ['\u{85}', '\u{2028}', '\u{2029}'];

/// The end marker of OpenAI's streams.
pub(super) const END: &str = "data: [DONE]\n\n";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_separators_are_escaped() {
        let value = serde_json::json!({ "text": "a\u{85}b\u{2028}c\u{2029}d\ne\u{e9}" });
        for event in [data(&value), named("token", &value)] {
            let (_, json) = event.split_once("data: ").unwrap();
            assert_eq!(json, "{\"text\":\"a\\u0085b\\u2028c\\u2029d\\ne\u{e9}\"}\n\n");
            assert_eq!(serde_json::from_str::<Value>(json).unwrap(), value);
        }
    }
}
