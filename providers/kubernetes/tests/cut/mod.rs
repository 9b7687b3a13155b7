//! A connection to the API server that is lost at a chosen call, before the call arrives or after it was answered, or on which
//! chosen calls are answered with something else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::task::{Context, Poll};

use camino::Utf8Path;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::{BodyExt, Full};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::config::{KubeConfigOptions, Kubeconfig};
use tower::{BoxError, Layer, Service};

/// When the connection is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The call never arrives.
    Before,
    /// It was carried out, and the answer is lost.
    After,
}

/// A connection that is lost at one call and stays lost.
#[derive(Clone)]
pub struct Cut(Arc<State>);

struct State {
    at: u32,
    side: Side,
    /// Calls that change nothing are not counted.
    changes: bool,
    /// Calls that never reach the API server, and what is said to them.
    answers: Vec<(u32, u16, serde_json::Value)>,
    calls: AtomicU32,
    happened: AtomicBool,
}

impl Cut {
    pub fn at(call: u32, side: Side) -> Self {
        Self::new(call, side, false, Vec::new())
    }

    /// The same at one of the calls that change something.
    pub fn at_change(change: u32, side: Side) -> Self {
        Self::new(change, side, true, Vec::new())
    }

    /// These calls are answered with these statuses and documents; 429 asks for a second.
    pub fn answering(answers: Vec<(u32, u16, serde_json::Value)>) -> Self {
        Self::new(u32::MAX, Side::Before, false, answers)
    }

    fn new(at: u32, side: Side, changes: bool, answers: Vec<(u32, u16, serde_json::Value)>) -> Self {
        Self(Arc::new(State { at, side, changes, answers, calls: AtomicU32::new(0), happened: AtomicBool::new(false) }))
    }

    /// How many calls there were.
    pub fn calls(&self) -> u32 {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// Whether it came to that call.
    pub fn happened(&self) -> bool {
        self.0.happened.load(Ordering::SeqCst)
    }

    /// A client on this connection.
    pub async fn client(&self, kubeconfig: &Utf8Path) -> kube::Client {
        let read = Kubeconfig::read_from(kubeconfig).unwrap();
        let mut config = kube::Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await.unwrap();
        config.default_retry = false;
        ClientBuilder::try_from(config).unwrap().with_layer(self).build()
    }
}

impl<S> Layer<S> for Cut {
    type Service = Line<S>;

    fn layer(&self, inner: S) -> Line<S> {
        Line { inner, cut: self.clone() }
    }
}

/// The connection.
pub struct Line<S> {
    inner: S,
    cut: Cut,
}

type Answer = Response<Box<DynBody>>;

impl<S> Service<Request<Body>> for Line<S>
where
    S: Service<Request<Body>, Response = Answer, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Answer;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Answer, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let state = self.cut.0.clone();
        let number = match state.changes && request.method() == Method::GET {
            // It is lost when the connection is, and else none that is meant.
            true => match state.calls.load(Ordering::SeqCst) {
                made if made > state.at => made,
                _ => return Box::pin(self.inner.call(request)),
            },
            false => state.calls.fetch_add(1, Ordering::SeqCst),
        };
        if let Some((_, status, body)) = state.answers.iter().find(|(call, ..)| *call == number) {
            let body: Box<DynBody> = Box::new(Full::from(body.to_string()).map_err(|never| match never {}));
            let answer =
                Response::builder().status(*status).header("retry-after", "1").body(body).map_err(BoxError::from);
            return Box::pin(async move { answer });
        }
        let lost = || Box::new(std::io::Error::from(std::io::ErrorKind::ConnectionReset)) as BoxError;
        if number > state.at || (number == state.at && state.side == Side::Before) {
            state.happened.store(true, Ordering::SeqCst);
            return Box::pin(async move { Err(lost()) });
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await;
            if number == state.at {
                state.happened.store(true, Ordering::SeqCst);
                return Err(lost());
            }
            answer
        })
    }
}
