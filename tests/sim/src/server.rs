//! The HTTP servers in front of the simulated clouds.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

use crate::aws::model::lock;
use crate::aws::protocol::{Reply, Request, http_date};
use crate::fault_plan::Disruption;

/// The most bytes of a request.
const MAX_BODY: usize = 1 << 30;

/// Answers a request. `None` says that the connection closes without an answer.
pub(crate) type Answer = Arc<dyn Fn(Request) -> (Option<Reply>, Option<Disruption>) + Send + Sync>;

/// The versions of HTTP that a server speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocols {
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/1.1, and HTTP/2 without TLS, by the first bytes of a connection. gRPC needs it.
    Both,
}

/// A server on the loopback interface, until it is dropped.
pub(crate) struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a server.
    ///
    /// # Panics
    /// No port of the loopback interface can be had.
    pub(crate) fn start(protocols: Protocols, answer: Answer) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind a port of the loopback interface");
        listener.set_nonblocking(true).expect("make the listener non-blocking");
        let address = listener.local_addr().expect("the listener's address");
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            runtime.expect("start a runtime").block_on(async move {
                tokio::select! {
                    () = serve(listener, protocols, answer) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { address, stop: Some(stop), thread: Some(thread) }
    }

    /// Its address.
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // A panic of a handler is a failure of the test.
            let ended = thread.join();
            assert!(std::thread::panicking() || ended.is_ok(), "the simulator panicked");
        }
    }
}

async fn serve(listener: std::net::TcpListener, protocols: Protocols, answer: Answer) {
    let listener = TcpListener::from_std(listener).expect("register the listener");
    loop {
        // Out of descriptors, or a peer that left already.
        let Ok((stream, _)) = listener.accept().await else { continue };
        match protocols {
            Protocols::Http1 => drop(tokio::spawn(http1(stream, answer.clone()))),
            Protocols::Both => drop(tokio::spawn(both(stream, answer.clone()))),
        }
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

async fn http1(stream: TcpStream, answer: Answer) {
    let is_reset = Arc::new(Mutex::new(false));
    let of_service = is_reset.clone();
    let service = service_fn(move |request: http::Request<Incoming>| {
        let (answer, is_reset) = (answer.clone(), of_service.clone());
        Box::pin(async move {
            let (reply, disruption) = answered(request, answer).await?;
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

async fn both(stream: TcpStream, answer: Answer) {
    let service = service_fn(move |request: http::Request<Incoming>| {
        let answer = answer.clone();
        Box::pin(async move {
            let (reply, _) = answered(request, answer).await?;
            let reply = reply.ok_or(Dropped)?;
            // The status of gRPC follows the body.
            let is_trailer = |(name, _): &(String, String)| name.starts_with("grpc-");
            let (trailers, headers): (Vec<_>, Vec<_>) = reply.headers.into_iter().partition(is_trailer);
            let mut map = http::HeaderMap::new();
            set_headers(&mut map, trailers);
            let trailers = (!map.is_empty()).then_some(Ok(map));
            let response = response(Reply { headers, ..reply });
            Ok::<_, Dropped>(response.map(|body| body.with_trailers(std::future::ready(trailers))))
        })
    });
    let builder = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
    let _ = builder.serve_connection(TokioIo::new(stream), service).await;
}

async fn answered(
    request: http::Request<Incoming>,
    answer: Answer,
) -> Result<(Option<Reply>, Option<Disruption>), Dropped> {
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
    let (reply, disruption) = tokio::task::spawn_blocking(move || answer(request)).await.map_err(|_| Dropped)?;
    if let Some(Disruption::Delayed(by)) = disruption {
        tokio::time::sleep(by).await;
    }
    Ok((reply, disruption))
}

fn set_headers(map: &mut http::HeaderMap, headers: Vec<(String, String)>) {
    for (name, value) in headers {
        let name = http::HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, http::HeaderValue::from_str(&value)) {
            map.insert(name, value);
        }
    }
}

fn response(reply: Reply) -> http::Response<Full<Bytes>> {
    let mut response = http::Response::new(Full::new(reply.body));
    *response.status_mut() =
        http::StatusCode::from_u16(reply.status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
    set_headers(response.headers_mut(), reply.headers);
    // The real time: callers correct their clock by it.
    if let Ok(date) = http::HeaderValue::from_str(&http_date(jiff::Timestamp::now())) {
        response.headers_mut().insert(http::header::DATE, date);
    }
    response
}
