//! A backend that behaves as a test wants: every path is a behaviour.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) listen: String,
    pub(crate) state: Arc<State>,
    accepting: tokio::task::JoinHandle<()>,
}

/// How many events may be written.
pub(crate) struct Permits(Semaphore);

impl Default for Permits {
    fn default() -> Permits {
        Permits(Semaphore::new(0))
    }
}

impl Permits {
    pub(crate) fn add(&self, many: usize) {
        self.0.add_permits(many);
    }

    async fn take(&self) {
        self.0.acquire().await.unwrap().forget();
    }
}

#[derive(Default)]
pub(crate) struct State {
    name: String,
    pub(crate) sick: AtomicBool,
    /// It answers 429, and is healthy.
    pub(crate) busy: AtomicBool,
    /// It says so when it is looked at, and goes on answering.
    pub(crate) draining: AtomicBool,
    /// Requests other than looks.
    pub(crate) requests: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) open: AtomicU64,
    pub(crate) left: AtomicU64,
    pub(crate) sent: AtomicU64,
    pub(crate) waiting: AtomicU64,
    pub(crate) go: Notify,
    pub(crate) events: Permits,
    pub(crate) last: Mutex<BTreeMap<String, String>>,
    /// Held while connections stay in the queue of a Unix socket.
    pub(crate) accepting: tokio::sync::Mutex<()>,
}

impl Backend {
    pub(crate) async fn tcp(name: &str) -> Backend {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let listen = listener.local_addr().unwrap().to_string();
        Backend::tcp_on(name, listener, listen)
    }

    pub(crate) async fn tcp_at(name: &str, listen: &str) -> Backend {
        Backend::tcp_on(name, TcpListener::bind(listen).await.unwrap(), listen.to_owned())
    }

    fn tcp_on(name: &str, listener: TcpListener, listen: String) -> Backend {
        let state = State::new(name);
        let accepting = tokio::spawn({
            let state = state.clone();
            async move {
                // Dropped with this task: a killed backend's connections break at once.
                let mut open = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    open.spawn(serve(stream, state.clone()));
                }
            }
        });
        Backend { name: name.to_owned(), listen, state, accepting }
    }

    pub(crate) fn unix(name: &str, path: &camino::Utf8Path) -> Backend {
        let listener = UnixListener::bind(path).unwrap();
        // A short queue, which a test can fill.
        rustix::net::listen(&listener, 8).unwrap();
        let state = State::new(name);
        let accepting = tokio::spawn({
            let state = state.clone();
            async move {
                let mut open = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    drop(state.accepting.lock().await);
                    open.spawn(serve(stream, state.clone()));
                }
            }
        });
        Backend { name: name.to_owned(), listen: format!("unix:{path}"), state, accepting }
    }

    /// Speaks TLS on a Unix socket, as a site does behind its border.
    pub(crate) fn secure(
        name: &str,
        path: &camino::Utf8Path,
        certificate: &rcgen::CertifiedKey<rcgen::KeyPair>,
    ) -> Backend {
        let key = rustls::pki_types::PrivateKeyDer::try_from(certificate.signing_key.serialize_der()).unwrap();
        let mut config =
            rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_no_client_auth()
                .with_single_cert(vec![certificate.cert.der().clone()], key)
                .unwrap();
        // A gateway offers both; what comes from another gateway must be HTTP/1.1.
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).unwrap();
        let state = State::new(name);
        let accepting = tokio::spawn({
            let state = state.clone();
            async move {
                let mut open = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let (acceptor, state) = (acceptor.clone(), state.clone());
                    open.spawn(async move {
                        if let Ok(stream) = acceptor.accept(stream).await {
                            serve(stream, state).await;
                        }
                    });
                }
            }
        });
        Backend { name: name.to_owned(), listen: format!("unix:{path}"), state, accepting }
    }

    /// Ends it as a kill would: no goodbye on any connection.
    pub(crate) async fn kill(self) {
        self.accepting.abort();
        let _ = self.accepting.await;
    }

    pub(crate) fn requests(&self) -> u64 {
        self.state.requests.load(SeqCst)
    }
}

impl State {
    fn new(name: &str) -> Arc<State> {
        Arc::new(State { name: name.to_owned(), ..State::default() })
    }
}

/// Counts a connection while it is open.
struct Open(Arc<State>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, SeqCst);
    }
}

struct Asked {
    method: String,
    path: String,
    headers: BTreeMap<String, String>,
    body: u64,
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<State>) {
    state.connections.fetch_add(1, SeqCst);
    let mut stream = BufReader::new(stream);
    let open = Open(state.clone());
    open.0.open.fetch_add(1, SeqCst);
    while let Some(asked) = read(&mut stream).await {
        if asked.path != "/ready" && asked.path != "/metrics" {
            state.requests.fetch_add(1, SeqCst);
            *state.last.lock().unwrap() = asked.headers.clone();
        }
        if behave(&mut stream, &state, asked).await.is_none() {
            return;
        }
    }
}

async fn line(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<String> {
    let mut line = String::new();
    let n = stream.read_line(&mut line).await.ok()?;
    (n > 0).then(|| line.trim_end().to_owned())
}

async fn read(stream: &mut (impl AsyncBufReadExt + Unpin)) -> Option<Asked> {
    let first = line(stream).await?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    loop {
        let text = line(stream).await?;
        if text.is_empty() {
            break;
        }
        let (name, value) = text.split_once(": ").unwrap();
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let mut body = 0;
    if path == "/reset" || path == "/refuse" {
        return Some(Asked { method, path, headers, body });
    }
    if let Some(length) = headers.get("content-length") {
        body = length.parse().unwrap();
        skip(stream, body).await?;
    } else if headers.contains_key("transfer-encoding") {
        loop {
            let size = u64::from_str_radix(&line(stream).await?, 16).unwrap();
            skip(stream, size).await?;
            line(stream).await?;
            if size == 0 {
                break;
            }
            body += size;
        }
    }
    Some(Asked { method, path, headers, body })
}

async fn skip(stream: &mut (impl AsyncRead + Unpin), size: u64) -> Option<()> {
    let skipped = tokio::io::copy(&mut stream.take(size), &mut tokio::io::sink()).await.ok()?;
    (skipped == size).then_some(())
}

/// None: the connection ends.
async fn behave(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), state: &State, asked: Asked) -> Option<()> {
    let name = &state.name;
    let path = match asked.path.split_once('?') {
        // The behaviour of `/hold` for any path.
        Some((_, "hold")) => "/hold",
        Some((path, _)) => path,
        None => asked.path.as_str(),
    };
    match path {
        "/ready" if state.draining.load(SeqCst) => {
            answer(stream, "503 Draining", "connection: close\r\n", "{\"status\":\"draining\"}").await
        }
        "/ready" if state.sick.load(SeqCst) => answer(stream, "503 Sick", "", "sick").await,
        "/ready" => answer(stream, "200 OK", "", "ready").await,
        "/metrics" => {
            let text = "# HELP textnlp_requests Requests.\n# TYPE textnlp_requests counter\ntextnlp_requests_total{route=\"/a\"} 7\n\
                # TYPE textnlp_up gauge\ntextnlp_up 1\n# EOF\n";
            answer(stream, "200 OK", "", text).await
        }
        // Waits until the test says go.
        "/hold" => {
            state.waiting.fetch_add(1, SeqCst);
            let mut byte = [0];
            tokio::select! {
                () = state.go.notified() => answer(stream, "200 OK", "", name).await,
                _ = stream.read(&mut byte) => {
                    state.left.fetch_add(1, SeqCst);
                    None
                }
            }
        }
        // Server-sent events, one for each permit.
        "/events" => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await.ok()?;
            let mut byte = [0];
            for at in 0.. {
                tokio::select! {
                    () = state.events.take() => {}
                    _ = stream.read(&mut byte) => {
                        state.left.fetch_add(1, SeqCst);
                        return None;
                    }
                }
                let event = format!("data: {at}\n\n");
                stream.write_all(format!("{:x}\r\n{event}\r\n", event.len()).as_bytes()).await.ok()?;
                stream.flush().await.ok()?;
                if at == 2 {
                    break;
                }
            }
            stream.write_all(b"0\r\n\r\n").await.ok()
        }
        // Promises more than it sends.
        "/lie" => {
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nonly this").await.ok()?;
            stream.flush().await.ok()?;
            None
        }
        // Dies with the request in its hands.
        "/die" => None,
        // Closes the connection over a body that it has not read.
        "/reset" => None,
        // Answers without reading the body, and closes the connection over it.
        "/refuse" => {
            answer(stream, "401 Unauthorized", "connection: close\r\n", "refused").await;
            None
        }
        "/draining" => {
            answer(stream, "503 Draining", "connection: close\r\n", "draining").await;
            None
        }
        // Answers, and says that it is the last answer on this connection.
        "/last" => {
            answer(stream, "200 OK", "connection: close\r\n", name).await;
            None
        }
        _ if state.busy.load(SeqCst) => answer(stream, "429 Too Many Requests", "retry-after: 7\r\n", "busy").await,
        "/busy" => answer(stream, "503 Busy", "retry-after: 7\r\n", "busy").await,
        "/huge" => {
            let piece = vec![7u8; 64 << 10];
            let total = 256u64 << 20;
            stream.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {total}\r\n\r\n").as_bytes()).await.ok()?;
            for _ in 0..total / piece.len() as u64 {
                stream.write_all(&piece).await.ok()?;
                state.sent.fetch_add(piece.len() as u64, SeqCst);
            }
            Some(())
        }
        _ => {
            answer(
                stream,
                "200 OK",
                "keep-alive: timeout=5\r\nx-kept: yes\r\n",
                &format!("{name} {} {path} {}", asked.method, asked.body),
            )
            .await
        }
    }
}

async fn answer(stream: &mut (impl AsyncWrite + Unpin), status: &str, headers: &str, body: &str) -> Option<()> {
    let text = format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await.ok()?;
    stream.flush().await.ok()
}
