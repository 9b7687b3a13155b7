//! The gateway, between a client that sends any bytes and a backend that accepts only what RFC 9112 allows without ambiguity.
//!
//! A request that a client and a backend would frame differently is the way to smuggle one past the gateway. So the backend checks what
//! reaches it: one framing per request, no bare line feed, no field of another connection, and nothing but requests after a body.

use std::future::Future;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use camino::Utf8Path;
use textnlp_gateway::SocketAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Longer exchanges are given up: a request that is not complete waits for its timeout.
const EXCHANGE_TIMEOUT: Duration = Duration::from_millis(50);

const HEAD_LIMIT: usize = 64 << 10;

/// Each field of HTTP/2 counts 32 bytes and its own (RFC 9113, 6.5.2) of the 32 KiB that the gateway accepts.
const FIELDS_LIMIT: usize = 1024;

/// The gateway's timeout of a request.
pub(crate) const TIMEOUT_SECONDS: u64 = 5;

/// Fields of the client's own connection (RFC 9110, 7.6.1). The transfer coding is the gateway's.
const CONNECTION_FIELDS: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "trailer", "upgrade"];

/// A gateway in front of the strict backend. Both live as long as the process.
pub(crate) struct Gateway {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) address: SocketAddress,
    runtime: tokio::runtime::Runtime,
    /// The first defect since the last exchange: an invalid request, or a panic of a task.
    violation: Arc<Mutex<Option<String>>>,
}

impl Gateway {
    /// `listener`: its settings, by the folder of the files.
    pub(crate) fn start(listener: impl FnOnce(&Utf8Path) -> String) -> Gateway {
        // Everything runs in the thread that calls, so coverage belongs to the input.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let violation: Arc<Mutex<Option<String>>> = Arc::default();
        let path = Utf8Path::from_path(folder.path()).unwrap();
        let file = path.join("gateway.yaml");
        std::fs::write(
            &file,
            format!(
                "gateway:\n{}  timeout_seconds: {TIMEOUT_SECONDS}\n  max_request_bytes: 100000\n  \
                 backends:\n    - {{ name: a, listen: \"unix:{path}/backend.sock\" }}\n",
                listener(path)
            ),
        )
        .unwrap();
        // The runtime catches the panic of a task, and the gateway does not report it.
        let (report, panicked) = (std::panic::take_hook(), violation.clone());
        std::panic::set_hook(Box::new(move |panic| {
            panicked.lock().unwrap().get_or_insert_with(|| panic.to_string());
            report(panic);
        }));
        let address = runtime.block_on(async {
            let listener = UnixListener::bind(path.join("backend.sock")).unwrap();
            tokio::spawn(backend(listener, violation.clone()));
            let running = textnlp_gateway::start(&file).await.unwrap();
            let address = running.address().clone();
            // It lives as long as the process.
            std::mem::forget(running);
            address
        });
        Gateway { folder, address, runtime, violation }
    }

    /// Waits for the backend's first health check: before it, requests have nowhere to go.
    pub(crate) fn until_ready(&self, is_served: impl AsyncFn() -> bool) {
        self.runtime.block_on(async {
            for _ in 0..200 {
                if is_served().await {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(25)).await;
            }
        });
    }

    /// Runs an exchange, which must have caused no violation.
    pub(crate) fn run<T>(&self, exchange: impl Future<Output = T>) -> T {
        let outcome = self.runtime.block_on(exchange);
        let violation = self.violation.lock().unwrap().take();
        assert_eq!(violation, None);
        outcome
    }
}

fn gateway() -> &'static Gateway {
    static GATEWAY: OnceLock<Gateway> = OnceLock::new();
    GATEWAY.get_or_init(|| {
        let gateway = Gateway::start(|folder| format!("  listen: \"unix:{folder}/gateway.sock\"\n"));
        gateway.until_ready(async || {
            exchange(gateway.folder.path(), b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
                .await
                .starts_with(b"HTTP/1.1 200")
        });
        gateway
    })
}

async fn exchange(folder: &std::path::Path, bytes: &[u8]) -> Vec<u8> {
    let Ok(mut stream) = UnixStream::connect(folder.join("gateway.sock")).await else { return Vec::new() };
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(EXCHANGE_TIMEOUT, async {
        stream.write_all(bytes).await?;
        stream.shutdown().await?;
        stream.read_to_end(&mut answer).await
    })
    .await;
    answer
}

async fn backend(listener: UnixListener, violation: Arc<Mutex<Option<String>>>) {
    while let Ok((stream, _)) = listener.accept().await {
        let violation = violation.clone();
        tokio::spawn(async move {
            if let Err(why) = serve(stream).await {
                violation.lock().unwrap().get_or_insert_with(|| format!("reached the backend: {why}"));
            }
        });
    }
}

/// Reads requests strictly. An end of the connection is no violation: the client went away.
async fn serve(mut stream: UnixStream) -> Result<(), String> {
    let mut bytes = Vec::new();
    loop {
        let head = loop {
            if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break end + 4;
            }
            if bytes.len() > HEAD_LIMIT {
                return Err("a head without an end".to_owned());
            }
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return Ok(());
            }
        };
        let framing = framing(&bytes[..head])?;
        bytes.drain(..head);
        match framing {
            Framing::Length(length) => {
                while (bytes.len() as u64) < length {
                    if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                        return Ok(());
                    }
                }
                drop(bytes.drain(..usize::try_from(length).unwrap()));
            }
            Framing::Chunked => {
                while let Some(taken) = chunk(&bytes)? {
                    let (taken, is_last) = taken;
                    if bytes.len() < taken {
                        if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                            return Ok(());
                        }
                        continue;
                    }
                    drop(bytes.drain(..taken));
                    if is_last {
                        break;
                    }
                }
            }
        }
        if stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.is_err() {
            return Ok(());
        }
    }
}

enum Framing {
    Length(u64),
    Chunked,
}

fn framing(head: &[u8]) -> Result<Framing, String> {
    let shown = || String::from_utf8_lossy(head).into_owned();
    let bare = head.iter().enumerate().any(|(at, byte)| match byte {
        b'\n' => at == 0 || head[at - 1] != b'\r',
        b'\r' => head.get(at + 1) != Some(&b'\n'),
        0 => true,
        _ => false,
    });
    if bare {
        return Err(format!("a bare line end or NUL: {:?}", shown()));
    }
    let mut headers = [httparse::EMPTY_HEADER; FIELDS_LIMIT];
    let mut request = httparse::Request::new(&mut headers);
    match request.parse(head) {
        Ok(httparse::Status::Complete(_)) => {}
        other => return Err(format!("{other:?}: {:?}", shown())),
    }
    let values = |name: &str| -> Vec<String> {
        let found = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case(name));
        found.map(|header| String::from_utf8_lossy(header.value).into_owned()).collect()
    };
    let (lengths, codings, hosts) = (values("content-length"), values("transfer-encoding"), values("host"));
    if lengths.len() + codings.len() > 1 || hosts.len() > 1 {
        return Err(format!("more than one framing or host: {:?}", shown()));
    }
    if !request.path.is_some_and(|target| target.starts_with('/') || target == "*") {
        return Err(format!("a target that is not a path: {:?}", shown()));
    }
    // Every forwarded request has an id. A health check has none, and closes its connection.
    let is_forwarded = !values("x-request-id").is_empty();
    if is_forwarded && CONNECTION_FIELDS.iter().any(|name| !values(name).is_empty()) {
        return Err(format!("a field of the client's connection: {:?}", shown()));
    }
    match (lengths.first(), codings.first()) {
        (Some(length), _) if length.bytes().all(|b| b.is_ascii_digit()) => {
            length.parse().map(Framing::Length).map_err(|error| format!("{error}: {length}"))
        }
        (Some(length), _) => Err(format!("content-length: {length}")),
        (None, Some(coding)) if coding == "chunked" => Ok(Framing::Chunked),
        (None, Some(coding)) => Err(format!("transfer-encoding: {coding}")),
        (None, None) => Ok(Framing::Length(0)),
    }
}

/// The length of the first chunk with its frame, and whether it is the last; a length beyond the bytes needs more of them.
fn chunk(bytes: &[u8]) -> Result<Option<(usize, bool)>, String> {
    match httparse::parse_chunk_size(bytes) {
        Ok(httparse::Status::Complete((head, size))) => {
            let size = usize::try_from(size).map_err(|error| error.to_string())?;
            Ok(Some((head + size + 2, size == 0)))
        }
        Ok(httparse::Status::Partial) => Ok(Some((bytes.len() + 1, false))),
        Err(_) => Err(format!("an invalid chunk: {:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(100)]))),
    }
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    [
        "GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /v1/generate HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}",
        "POST /v1/generate HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n1;x=y\r\na\r\n0\r\nTrailer: b\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET http://b/x?y=%00 HTTP/1.0\r\nConnection: keep-alive, x\r\nX: 1\r\nUpgrade: h2c\r\nExpect: 100-continue\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\nCONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

pub(crate) fn http1(bytes: &[u8]) -> bool {
    let gateway = gateway();
    let answer = gateway.run(exchange(gateway.folder.path(), bytes));
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1."), "{:?}", String::from_utf8_lossy(&answer));
    answer.starts_with(b"HTTP/1.1 200")
}
