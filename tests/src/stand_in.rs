//! A fake HTTP service: it records requests, and the test determines the answers.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A received request.
#[derive(Debug, Clone, Default)]
pub struct Request {
    /// `GET /path?query`.
    pub line: String,
    /// Headers, with lowercase names.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: String,
}

impl Request {
    /// A header's value, or an empty text.
    pub fn header(&self, name: &str) -> &str {
        self.headers.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }

    /// A field of a form, decoded.
    pub fn field(&self, name: &str) -> String {
        let pairs = self.body.split('&').filter_map(|pair| pair.split_once('='));
        pairs.filter(|(key, _)| *key == name).map(|(_, value)| decoded(value)).next().unwrap_or_default()
    }
}

/// The answer to a request.
pub enum Reply {
    /// A status and a body.
    Answer(u16, String),
    /// A status, an additional header line, and a body.
    Headed(u16, &'static str, String),
    /// No answer, until the client gives up.
    Silence,
}

/// A fake service; it runs until the test program ends.
pub struct StandIn {
    /// `127.0.0.1:PORT`.
    pub address: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl StandIn {
    /// Starts a service on a free port.
    pub fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen on a free port");
        let address = listener.local_addr().expect("its address").to_string();
        let requests = Arc::<Mutex<Vec<Request>>>::default();
        let (kept, answer) = (requests.clone(), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (kept, answer) = (kept.clone(), answer.clone());
                std::thread::spawn(move || drop(serve(stream, &kept, &*answer)));
            }
        });
        Self { address, requests }
    }

    /// Starts a service that always returns the same answer.
    pub fn of(status: u16, body: impl Into<String>) -> Self {
        let body = body.into();
        Self::start(move |_| Reply::Answer(status, body.clone()))
    }

    /// `http://127.0.0.1:PORT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("nobody panics with it").clone()
    }
}

fn serve(stream: TcpStream, kept: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut request = Request::default();
    reader.read_line(&mut request.line)?;
    request.line = request.line.trim_end().trim_end_matches(" HTTP/1.1").to_owned();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        request.headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut body = vec![0; request.header("content-length").parse().unwrap_or(0)];
    reader.read_exact(&mut body)?;
    request.body = String::from_utf8_lossy(&body).into_owned();
    let reply = answer(&request);
    kept.lock().expect("nobody panics with it").push(request);
    match reply {
        Reply::Answer(status, body) => say(&stream, status, "x-nothing: more", &body),
        Reply::Headed(status, line, body) => say(&stream, status, line, &body),
        // Ends when the client gives up.
        Reply::Silence => reader.read_to_end(&mut Vec::new()).map(drop),
    }
}

fn say(mut stream: &TcpStream, status: u16, line: &str, body: &str) -> std::io::Result<()> {
    let length = body.len();
    let head = format!("HTTP/1.1 {status} Said\r\ncontent-length: {length}\r\n{line}\r\nconnection: close\r\n\r\n");
    stream.write_all((head + body).as_bytes())
}

/// Decodes a value of a form or a query.
pub fn decoded(value: &str) -> String {
    let (mut bytes, mut rest) = (Vec::new(), value.as_bytes());
    while let Some((&first, after)) = rest.split_first() {
        rest = after;
        let coded = after.get(..2).and_then(|two| u8::from_str_radix(std::str::from_utf8(two).ok()?, 16).ok());
        match (first, coded) {
            (b'%', Some(byte)) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            (b'+', _) => bytes.push(b' '),
            _ => bytes.push(first),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}
