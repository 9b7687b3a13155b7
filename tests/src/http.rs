//! A minimal HTTP/1.1 client: tests must be able to send requests that a regular client would not.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// Longer than any answer of a healthy service; a service that hangs fails the test instead of blocking it.
const PATIENCE: Duration = Duration::from_secs(60);

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The head, as received.
    pub head: String,
    /// The body; chunks are joined.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as JSON; null if it is not JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or(Value::Null)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// Connects to a port of this machine.
pub fn connect(port: u16) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// The head of a request with `Connection: close`.
pub fn head(method: &str, path: &str, headers: &[(&str, &str)], length: usize) -> String {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n");
    if method == "POST" {
        head.push_str(&format!("Content-Type: application/json\r\nContent-Length: {length}\r\n"));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head + "\r\n"
}

/// Sends one request on a new connection.
pub fn ask(port: u16, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Answer> {
    let mut stream = connect(port)?;
    stream.write_all(head(method, path, headers, body.len()).as_bytes())?;
    stream.write_all(body)?;
    read(stream)
}

/// Sends a GET request.
pub fn get(port: u16, path: &str) -> std::io::Result<Answer> {
    ask(port, "GET", path, &[], b"")
}

/// Sends a POST request with a JSON body.
pub fn post(port: u16, path: &str, body: &Value) -> std::io::Result<Answer> {
    ask(port, "POST", path, &[], body.to_string().as_bytes())
}

/// Reads an answer until the server closes the connection; a truncated one is an error.
pub fn read(mut stream: impl Read) -> std::io::Result<Answer> {
    let mut raw = Vec::new();
    let ended = stream.read_to_end(&mut raw);
    let bad = |what: &str| std::io::Error::other(format!("{what}: {}", String::from_utf8_lossy(&raw)));
    let Some(split) = raw.windows(4).position(|w| w == b"\r\n\r\n") else {
        ended?;
        return Err(bad("an answer without an end of its head"));
    };
    let head = String::from_utf8_lossy(&raw[..split]).into_owned();
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no status"))?;
    let rest = &raw[split + 4..];
    let header = |name: &str| {
        head.lines().find_map(|l| {
            let (key, value) = l.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim().to_owned())
        })
    };
    let body = if header("transfer-encoding").is_some_and(|t| t.contains("chunked")) {
        chunks(rest).ok_or_else(|| bad("a cut answer"))?
    } else {
        let length = header("content-length").and_then(|l| l.parse().ok()).unwrap_or(rest.len());
        rest.get(..length).ok_or_else(|| bad("a cut answer"))?.to_vec()
    };
    Ok(Answer { status, head, body })
}

fn chunks(mut rest: &[u8]) -> Option<Vec<u8>> {
    let mut body = Vec::new();
    loop {
        let line = rest.windows(2).position(|w| w == b"\r\n")?;
        let size = std::str::from_utf8(&rest[..line]).ok()?.split(';').next()?.trim();
        let size = usize::from_str_radix(size, 16).ok()?;
        rest = rest.get(line + 2..)?;
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest.get(size + 2..)?;
    }
}
