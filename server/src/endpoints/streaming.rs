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
    running: Running,
    mut say: impl FnMut(Moment<'_>) -> String + Send + 'static,
) -> Result<Response, ApiError> {
    respond_all(vec![running], move |_, moment| say(moment)).await
}

/// Streams several answers as they come, each moment with its answer's place. All end when one fails, and when the client leaves.
pub(super) async fn respond_all(
    running: Vec<Running>,
    mut say: impl FnMut(usize, Moment<'_>) -> String + Send + 'static,
) -> Result<Response, ApiError> {
    let Some(one) = running.first() else { return Err(broke_off()) };
    let (model, record) = (one.model.clone(), one.record.clone());
    let left = running.len();
    let mut events = merge(running);
    let first = match events.next().await {
        Some((_, Some(Event::Failed(failure)))) => return Err(failure.into()),
        Some((_, None)) | None => return Err(broke_off()),
        Some(event) => event,
    };
    let begin = say(0, Moment::Begin);
    let state = Some(Stream { events, waiting: Some(first), model, record, left, say });
    let rest = futures::stream::unfold(state, async |stream| {
        let mut stream = stream?;
        loop {
            let (words, ended) = stream.next().await;
            if ended || !words.is_empty() {
                return Some((words, (!ended).then_some(stream)));
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

/// Events of several answers with their places; `None` when an answer broke off.
type Events = BoxStream<'static, (usize, Option<Event>)>;

/// Dropped, it cancels what is still running.
fn merge(running: Vec<Running>) -> Events {
    let each = running.into_iter().enumerate().map(|(place, one)| {
        futures::stream::unfold(Some(one.events), move |events| async move {
            let mut events = events?;
            let event = events.recv().await;
            let goes_on = matches!(event, Some(Event::Token(_)));
            Some(((place, event), goes_on.then_some(events)))
        })
        .boxed()
    });
    futures::stream::select_all(each).boxed()
}

struct Stream<S> {
    events: Events,
    waiting: Option<(usize, Option<Event>)>,
    model: Arc<Ready>,
    /// Kept, so that the request's record is written only after the answer.
    record: Arc<Record>,
    /// Answers that have not ended.
    left: usize,
    say: S,
}

impl<S: FnMut(usize, Moment<'_>) -> String> Stream<S> {
    /// The next words, and whether they are the last.
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
            Some((place, None)) => (self.failed(place, broke_off()), true),
            None => (self.failed(0, broke_off()), true),
        }
    }

    fn failed(&mut self, place: usize, error: ApiError) -> String {
        self.record.note(|known| known.error = Some(error.code));
        (self.say)(place, Moment::Failed(error))
    }
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
