//! A client that sends well-formed requests: the measured one, and the one with wrong keys.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE};
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;

use super::{GIVE_UP, HOST, handshake};

/// The header field that the backend accepts.
pub(crate) const VALID_KEY: &str = "Bearer sk-valid-0123456789abcdef";
pub(crate) const WRONG_KEY: &str = "Bearer sk-wrong-0123456789abcdef";

/// 200 requests and 20 new connections a second.
const REQUEST_INTERVAL: Duration = Duration::from_millis(5);
const CONNECTION_INTERVAL: Duration = Duration::from_millis(50);
/// Connections that are kept for the next requests.
const MOST_IDLE: usize = 16;
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// The time of a request or a connection, or why it failed.
pub(crate) type Outcome = Result<Duration, String>;

type Sender = SendRequest<Full<Bytes>>;

pub(crate) struct Client {
    from: Ipv4Addr,
    to: SocketAddr,
    tls: TlsConnector,
    key: &'static str,
    idle: Mutex<VecDeque<Sender>>,
}

impl Client {
    pub(crate) fn new(from: Ipv4Addr, to: SocketAddr, tls: TlsConnector, key: &'static str) -> Client {
        Client { from, to, tls, key, idle: Mutex::default() }
    }

    /// Waits until the gateway has a healthy backend.
    pub(crate) async fn wait_until_ready(&self) {
        let answered = async {
            while !self.exchange().await.is_ok_and(|status| status.is_success()) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(READY_TIMEOUT, answered).await.expect("the gateway answers no request");
    }

    /// The outcomes of the requests and of the new connections of this time.
    pub(crate) async fn load(self: &Arc<Self>, period: Duration) -> (Vec<Outcome>, Vec<Outcome>) {
        let (requesting, connecting) = (self.clone(), self.clone());
        let requests = at_fixed_times(period, REQUEST_INTERVAL, move || {
            let client = requesting.clone();
            async move { client.succeed().await }
        });
        let connections = at_fixed_times(period, CONNECTION_INTERVAL, move || {
            let client = connecting.clone();
            async move { handshake(client.from, client.to, &client.tls).await.map(drop) }
        });
        tokio::join!(requests, connections)
    }

    async fn succeed(&self) -> io::Result<()> {
        match self.exchange().await? {
            StatusCode::OK => Ok(()),
            status => Err(io::Error::other(status.to_string())),
        }
    }

    /// Sends a request on an idle connection or a new one, and reads the whole answer.
    pub(crate) async fn exchange(&self) -> io::Result<StatusCode> {
        let mut request = self.request();
        if let Some(mut sender) = self.take_idle() {
            match sender.try_send_request(request).await {
                Ok(response) => return self.finish(sender, response).await,
                // The gateway had closed the idle connection: like any HTTP client, this one sends it on a new one.
                Err(mut error) => match error.take_message() {
                    Some(unsent) => request = unsent,
                    None => return Err(io::Error::other(error.into_error())),
                },
            }
        }
        let mut sender = self.open().await?;
        let response = sender.send_request(request).await.map_err(io::Error::other)?;
        self.finish(sender, response).await
    }

    fn request(&self) -> Request<Full<Bytes>> {
        let body = Full::new(Bytes::from_static(br#"{"model":"m","input":"What does a hostile client cost others?"}"#));
        Request::post("/v1/embeddings")
            .header("host", HOST)
            .header(CONTENT_TYPE, "application/json")
            .header(AUTHORIZATION, self.key)
            .body(body)
            .unwrap()
    }

    /// The one that has been idle longest, so that all are in use.
    fn take_idle(&self) -> Option<Sender> {
        let mut idle = self.idle.lock().unwrap();
        idle.retain(|sender| !sender.is_closed());
        idle.pop_front()
    }

    async fn open(&self) -> io::Result<Sender> {
        let stream = handshake(self.from, self.to, &self.tls).await?;
        let (sender, connection) =
            http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.map_err(io::Error::other)?;
        tokio::spawn(connection);
        Ok(sender)
    }

    async fn finish(&self, sender: Sender, response: Response<Incoming>) -> io::Result<StatusCode> {
        let status = response.status();
        response.into_body().collect().await.map_err(io::Error::other)?;
        let mut idle = self.idle.lock().unwrap();
        if idle.len() < MOST_IDLE {
            idle.push_back(sender);
        }
        Ok(status)
    }
}

/// Starts `work` at fixed times, whether or not earlier work has ended. A thread of its own keeps them, because the
/// runtime's timer has a resolution of a millisecond, which is longer than an answer takes.
async fn at_fixed_times<F>(period: Duration, interval: Duration, work: impl Fn() -> F + Send + 'static) -> Vec<Outcome>
where
    F: Future<Output = io::Result<()>> + Send + 'static,
{
    let runtime = tokio::runtime::Handle::current();
    let started = tokio::task::spawn_blocking(move || {
        let first = Instant::now();
        let count = (period.as_micros() / interval.as_micros()) as u32;
        let start = |number: u32| {
            std::thread::sleep((first + interval * number).saturating_duration_since(Instant::now()));
            let (begun, work) = (Instant::now(), work());
            runtime.spawn(async move {
                match timeout(GIVE_UP, work).await {
                    Ok(Ok(())) => Ok(begun.elapsed()),
                    Ok(Err(error)) => Err(error.to_string()),
                    Err(_) => Err("timeout".to_owned()),
                }
            })
        };
        (0..count).map(start).collect::<Vec<_>>()
    });
    let mut outcomes = Vec::new();
    for task in started.await.unwrap() {
        outcomes.push(task.await.unwrap());
    }
    outcomes
}
