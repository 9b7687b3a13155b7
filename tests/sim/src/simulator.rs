//! The HTTP server in front of a simulated cloud.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::aws::model::lock;
use crate::aws::protocol::{Reply, Request, http_date};
use crate::clock::Random;
use crate::fault_plan::{Disruption, FaultPlan};
use crate::{Credential, Timing, World, aws};

/// The most bytes of a request.
const MAX_BODY: usize = 1 << 30;
/// How many requests and violations are kept.
const MAX_RECORDS: usize = 100_000;

/// How a simulated cloud starts.
#[derive(Clone, Debug)]
pub struct Options {
    /// What ids and chances follow from.
    pub seed: u64,
    /// Delays.
    pub timing: Timing,
    /// The account of the first identity.
    pub account: String,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, timing: Timing::default(), account: "123456789012".to_owned() }
    }
}

impl Options {
    /// Everything is ready at the next request.
    #[must_use]
    pub fn zero_latency() -> Self {
        Self { timing: Timing { zero_latency: true, ..Timing::default() }, ..Self::default() }
    }
}

/// How a request ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Outcome {
    /// With an output.
    #[default]
    Succeeded,
    /// With an error of this code.
    Failed(String),
}

/// One request and how it ended.
#[derive(Clone, Debug, Default)]
pub struct Exchange {
    /// The service, by its signing name.
    pub service: &'static str,
    /// The operation.
    pub operation: String,
    /// The region of the signature.
    pub region: String,
    /// The account of the identity; empty if it is unknown.
    pub account: String,
    /// The ARN of the identity; empty if it is unknown.
    pub identity: String,
    /// The input, in which what the model calls sensitive is `***`.
    pub input: Value,
    /// How it ended.
    pub outcome: Outcome,
    /// Whether the answer was lost by an injected fault.
    pub is_lost: bool,
}

pub(crate) struct Shared {
    world: Mutex<World>,
    pub(crate) faults: Mutex<FaultPlan>,
    pub(crate) timing: Timing,
    exchanges: Mutex<VecDeque<Exchange>>,
    violations: Mutex<Vec<String>>,
    ids: Random,
}

impl Shared {
    pub(crate) fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.world)
    }

    pub(crate) fn request_id(&self) -> String {
        self.ids.uuid()
    }

    pub(crate) fn violation(&self, what: String) {
        let mut violations = lock(&self.violations);
        if violations.len() < MAX_RECORDS {
            violations.push(what);
        }
    }

    pub(crate) fn record(&self, exchange: Exchange) {
        let mut exchanges = lock(&self.exchanges);
        if exchanges.len() == MAX_RECORDS {
            exchanges.pop_front();
        }
        exchanges.push_back(exchange);
    }
}

/// A simulated cloud that answers on the loopback interface until it is dropped.
///
/// Dropping it panics if a request or an answer broke the contract and [`Simulator::take_violations`] was not called: a
/// test that uses it is a test of the contract too.
pub struct Simulator {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Simulator {
    /// The access key of the first identity, `user/operator` of the account.
    pub const ACCESS_KEY: &str = "AKIASIMULATEDOPERATR";
    /// The secret of [`Simulator::ACCESS_KEY`].
    pub const SECRET_KEY: &str = "simulated/secret+of/the+operator/0000000";

    /// Starts a cloud with nothing in it but one identity.
    ///
    /// # Panics
    /// No port of the loopback interface can be had.
    #[must_use]
    pub fn start(options: Options) -> Self {
        let mut world = World::new(options.seed);
        let operator = Credential {
            secret: Self::SECRET_KEY.to_owned(),
            token: None,
            identity: format!("arn:aws:iam::{}:user/operator", options.account),
            account: options.account,
            id: "AIDASIMULATEDOPERATR".to_owned(),
            expires: None,
        };
        world.credentials.insert(Self::ACCESS_KEY, operator);
        let shared = Arc::new(Shared {
            world: Mutex::new(world),
            faults: Mutex::default(),
            timing: options.timing,
            exchanges: Mutex::default(),
            violations: Mutex::default(),
            ids: Random::new(options.seed ^ 1),
        });
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port of the loopback interface");
        listener.set_nonblocking(true).expect("make the listener non-blocking");
        let address = listener.local_addr().expect("the listener's address");
        let (stop, stopped) = oneshot::channel();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("start a runtime").block_on(async move {
                tokio::select! {
                    () = serve(listener, of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, shared, stop: Some(stop), thread: Some(thread) }
    }

    /// The address of every service: the signature of a request names its service and region.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What the cloud holds. Requests wait while it is locked.
    pub fn world(&self) -> MutexGuard<'_, World> {
        self.shared.world()
    }

    /// Moves the virtual time.
    pub fn advance(&self, by: std::time::Duration) {
        self.world().advance(by);
    }

    /// All requests so far, at most the last 100,000.
    #[must_use]
    pub fn requests(&self) -> Vec<Exchange> {
        lock(&self.shared.exchanges).iter().cloned().collect()
    }

    /// The faults to inject.
    pub fn faults(&self) -> MutexGuard<'_, FaultPlan> {
        lock(&self.shared.faults)
    }

    /// What broke the contract so far, in either direction.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        lock(&self.shared.violations).clone()
    }

    /// The same, for tests that expect them: they no longer fail the test.
    #[must_use]
    pub fn take_violations(&self) -> Vec<String> {
        std::mem::take(&mut *lock(&self.shared.violations))
    }
}

impl Drop for Simulator {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of a handler is a failure of the test.
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the simulator panicked");
        }
        let violations = self.violations();
        assert!(
            std::thread::panicking() || violations.is_empty(),
            "the contract was broken {} times:\n{}",
            violations.len(),
            violations.join("\n")
        );
    }
}

async fn serve(listener: std::net::TcpListener, shared: Arc<Shared>) {
    let listener = TcpListener::from_std(listener).expect("register the listener");
    loop {
        // Out of descriptors, or a peer that left already.
        let Ok((stream, _)) = listener.accept().await else { continue };
        tokio::spawn(connection(stream, shared.clone()));
    }
}

/// Why a connection ends without an answer.
#[derive(Debug)]
struct Dropped;

impl std::fmt::Display for Dropped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an injected fault ends the connection")
    }
}

impl std::error::Error for Dropped {}

async fn connection(stream: TcpStream, shared: Arc<Shared>) {
    let is_reset = Arc::new(Mutex::new(false));
    let of_service = is_reset.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (shared, is_reset) = (shared.clone(), of_service.clone());
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            let body = Limited::new(body, MAX_BODY).collect().await.map_err(|_| Dropped)?.to_bytes();
            let raw_query = parts.uri.query().unwrap_or_default().to_owned();
            let request = Request {
                method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                query: url::form_urlencoded::parse(raw_query.as_bytes()).into_owned().collect(),
                raw_query,
                headers: parts.headers,
                body,
            };
            // Handlers are computation only, but the first use of a model reads and inflates it.
            let answered = tokio::task::spawn_blocking(move || aws::answer(&shared, request)).await;
            let (reply, disruption) = answered.map_err(|_| Dropped)?;
            if let Some(Disruption::Delayed(by)) = disruption {
                tokio::time::sleep(by).await;
            }
            *lock(&is_reset) = disruption == Some(Disruption::Reset);
            reply.map(response).ok_or(Dropped)
        })
    });
    let mut connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
    let _ = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
    let stream = connection.into_parts().io.into_inner();
    if *lock(&is_reset) {
        // Closing then sends RST instead of FIN.
        let _ = rustix::net::sockopt::set_socket_linger(&stream, Some(std::time::Duration::ZERO));
    }
}

fn response(reply: Reply) -> http::Response<Full<bytes::Bytes>> {
    let mut response = http::Response::new(Full::new(reply.body));
    *response.status_mut() =
        http::StatusCode::from_u16(reply.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in reply.headers {
        let name = http::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_str(&value)) {
            response.headers_mut().insert(name, value);
        }
    }
    // The real time: callers correct their clock by it.
    if let Ok(date) = http::HeaderValue::from_str(&http_date(jiff::Timestamp::now())) {
        response.headers_mut().insert(http::header::DATE, date);
    }
    response
}
