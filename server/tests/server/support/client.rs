//! A client that sends exactly what it is told to: one connection per request, unless a test wants it otherwise.

use std::time::Duration;

use serde_json::Value;
use textnlp_server::config::Address;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

#[derive(Clone)]
pub(crate) struct Client {
    address: Address,
}

#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Reply {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.body.clone()).unwrap()
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The data of a stream's events, with their names.
    pub(crate) fn events(&self) -> Vec<(String, String)> {
        let text = self.text();
        let events = text.split("\n\n").filter(|event| !event.is_empty() && !event.starts_with(':'));
        events
            .map(|event| {
                let field =
                    |name: &str| event.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().to_owned();
                (field("event: "), field("data: "))
            })
            .collect()
    }

    /// The error's code, field and hint, checked to be in the shape that all errors have.
    pub(crate) fn error(&self) -> (String, Option<String>, Option<String>) {
        let body = self.json();
        let error = &body["error"];
        assert!(error["message"].is_string() && error["type"].is_string(), "{body}");
        let text = |name: &str| error[name].as_str().map(str::to_owned);
        (text("code").unwrap(), text("param"), text("hint"))
    }
}

impl Client {
    pub(crate) fn new(address: &Address) -> Self {
        Self { address: address.clone() }
    }

    pub(crate) async fn connect(&self) -> Box<dyn Stream> {
        match &self.address {
            Address::Tcp(address) => Box::new(TcpStream::connect(address).await.unwrap()),
            Address::Unix(path) => Box::new(UnixStream::connect(path).await.unwrap()),
        }
    }

    pub(crate) async fn try_connect(&self) -> Option<Box<dyn Stream>> {
        match &self.address {
            Address::Tcp(address) => TcpStream::connect(address).await.ok().map(|s| Box::new(s) as Box<dyn Stream>),
            Address::Unix(path) => UnixStream::connect(path).await.ok().map(|s| Box::new(s) as Box<dyn Stream>),
        }
    }

    pub(crate) fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
        let mut head = format!("{method} {path} HTTP/1.1\r\n");
        if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str("host: localhost\r\n");
        }
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if length > 0 && !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("content-type")) {
            head.push_str("content-type: application/json\r\n");
        }
        head + &format!("content-length: {length}\r\nconnection: close\r\n\r\n")
    }

    pub(crate) async fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
        let mut stream = self.connect().await;
        stream.write_all(Self::head(method, path, headers, body.len()).as_bytes()).await.unwrap();
        // A server that refuses may close before it has read everything.
        let _ = stream.write_all(body).await;
        read_reply(&mut stream).await
    }
}

/// Reads one whole answer.
pub(crate) async fn read_reply(stream: &mut (dyn Stream + 'static)) -> Reply {
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(120), stream.read_to_end(&mut bytes))
        .await
        .expect("the server answers");
    if let Err(error) = read {
        assert!(!bytes.is_empty(), "{error}");
    }
    parse(&bytes)
}

fn parse(bytes: &[u8]) -> Reply {
    let end = bytes
        .windows(4)
        .position(|four| four == b"\r\n\r\n")
        .unwrap_or_else(|| panic!("no answer: {:?}", String::from_utf8_lossy(bytes)));
    let head = std::str::from_utf8(&bytes[..end]).unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().split(' ').nth(1).unwrap().parse().unwrap();
    let headers: Vec<(String, String)> = lines
        .map(|line| line.split_once(": ").unwrap())
        .map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
        .collect();
    let mut body = bytes[end + 4..].to_vec();
    if headers.iter().any(|(name, value)| name == "transfer-encoding" && value == "chunked") {
        body = dechunk(&body);
    }
    Reply { status, headers, body }
}

fn dechunk(mut bytes: &[u8]) -> Vec<u8> {
    let mut body = Vec::new();
    while let Some(end) = bytes.windows(2).position(|two| two == b"\r\n") {
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap().trim(), 16).unwrap();
        let data = &bytes[end + 2..];
        if size == 0 || data.len() < size {
            break;
        }
        body.extend_from_slice(&data[..size]);
        bytes = &data[(size + 2).min(data.len())..];
    }
    body
}
