//! The gateway, between a client that sends any frames of HTTP/2 after the preface and the strict backend. After them the client sends
//! one valid request: the gateway answers it, or closes the connection. When the client closes, the gateway does.
//!
//! An input is the bytes of frames, or lines of JSON with one frame each, in which mutations keep lengths and HPACK intact.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use textnlp_gateway::SocketAddress;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::gateway::{Gateway, TIMEOUT_SECONDS};

/// The first byte of inputs that are lines of JSON. No frame begins with it: it would be too long.
const WITH_JSON: u8 = b'+';

/// The gateway answers a request within its own timeout.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(TIMEOUT_SECONDS + 3);

const HOST: &str = "site.example";
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The bytes of a frame before its payload.
const HEAD: usize = 9;
/// The longest payload that the gateway accepts.
const MOST_PAYLOAD: usize = 16 << 10;
/// Repeated frames are sent up to this many bytes.
const SENT_BYTES: usize = 64 << 10;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const PRIORITY: u8 = 2;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PUSH_PROMISE: u8 = 5;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// The stream of the last request: above those that an input opens, unless it opens the highest, which ends the connection. Mutations
/// often insert the highest number.
const LAST_STREAM: u32 = 0x7fff_fffd;
/// `:status: 200` in the static table of RFC 7541.
const STATUS_200: u8 = 0x88;

struct Client {
    gateway: Gateway,
    address: SocketAddr,
    tls: TlsConnector,
}

fn client() -> &'static Client {
    static CLIENT: OnceLock<Client> = OnceLock::new();
    CLIENT.get_or_init(|| {
        let made = rcgen::generate_simple_self_signed([HOST.to_owned()]).unwrap();
        let gateway = Gateway::start(|folder| {
            std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
            std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
            format!(
                "  listen: \"127.0.0.1:0\"\n  tls: {{ certificate_file: {folder}/cert.pem, key_file: {folder}/key.pem }}\n"
            )
        });
        let SocketAddress::Tcp(address) = gateway.address else { panic!("{}", gateway.address) };
        let mut roots = rustls::RootCertStore::empty();
        roots.add(made.cert.der().clone()).unwrap();
        let mut config =
            rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let client = Client { gateway, address, tls: TlsConnector::from(Arc::new(config)) };
        let nothing = sent(b"");
        client.gateway.until_ready(async || exchange(&client, &nothing).await);
        client
    })
}

/// Whether the last request is answered with status 200.
async fn exchange(client: &Client, sent: &[u8]) -> bool {
    let connecting = async {
        let stream = TcpStream::connect(client.address).await?;
        stream.set_nodelay(true)?;
        client.tls.connect(ServerName::try_from(HOST).unwrap(), stream).await
    };
    let Ok(stream) = timeout(ANSWER_TIMEOUT, connecting).await.expect("a handshake in time") else { return false };
    let (mut read, mut write) = tokio::io::split(stream);
    let sending = async {
        // The gateway may close before it has read everything.
        let _ = write.write_all(sent).await;
        let _ = write.flush().await;
    };
    let answering = async { tokio::join!(last_answer(&mut read), sending).0 };
    let Ok(answer) = timeout(ANSWER_TIMEOUT, answering).await else {
        panic!("the gateway neither answers nor closes the connection")
    };
    let reading = async {
        let mut rest = [0; 4096];
        while read.read(&mut rest).await.is_ok_and(|length| length > 0) {}
    };
    let closing = timeout(ANSWER_TIMEOUT, async { tokio::join!(write.shutdown(), reading) });
    assert!(closing.await.is_ok(), "the gateway does not close a connection that its client closed");
    answer.unwrap_or(false)
}

/// Reads frames until one answers the last request: whether with status 200. `None` at the end of the connection.
async fn last_answer(read: &mut (impl AsyncRead + Unpin)) -> Option<bool> {
    loop {
        let mut head = [0; HEAD];
        read.read_exact(&mut head).await.ok()?;
        let [a, b, c, kind, _, stream @ ..] = head;
        let mut payload = vec![0; u32::from_be_bytes([0, a, b, c]) as usize];
        read.read_exact(&mut payload).await.ok()?;
        if u32::from_be_bytes(stream) == LAST_STREAM && [HEADERS, RST_STREAM].contains(&kind) {
            return Some(kind == HEADERS && payload.first() == Some(&STATUS_200));
        }
    }
}

/// What the client sends for an input.
fn sent(input: &[u8]) -> Vec<u8> {
    let mut between: Vec<u8> = Vec::new();
    match input.split_first() {
        Some((&WITH_JSON, lines)) => {
            for line in lines.split_inclusive(|byte| *byte == b'\n') {
                match serde_json::from_slice::<Value>(line) {
                    Ok(frame) => between.extend(frames(&frame, SENT_BYTES.saturating_sub(between.len()))),
                    Err(_) => between.extend(line),
                }
            }
        }
        _ => between.extend(input),
    }
    complete(&mut between);
    // Without entries of HPACK's dynamic table, which the input may have changed: GET, https, / and the authority.
    let block = format!("\u{82}\u{87}\u{84}\u{1}\u{c}{HOST}");
    let last = json!({"kind": HEADERS, "flags": END_STREAM | END_HEADERS, "stream": LAST_STREAM, "payload": block});
    let settings = frames(&json!({"kind": SETTINGS}), SENT_BYTES);
    [PREFACE, &settings, &between, &frames(&last, SENT_BYTES)].concat()
}

/// Adds what is missing of the last frame, so that the request after it is not read as a part of it.
fn complete(frames: &mut Vec<u8>) {
    let mut at = 0;
    while at < frames.len() {
        if frames.len() < at + HEAD {
            frames.resize(at + HEAD, 0);
        }
        let length = u32::from_be_bytes([0, frames[at], frames[at + 1], frames[at + 2]]) as usize;
        if length > MOST_PAYLOAD {
            return;
        }
        at += HEAD + length;
    }
    frames.resize(at, 0);
}

/// `kind`, `flags` and `stream` of a frame and its `payload`; a `length` that differs from it; how often to `repeat` it, each time with
/// a stream that is higher by `step`. What is missing or of another type is zero, or absent.
fn frames(frame: &Value, most_bytes: usize) -> Vec<u8> {
    let number = |name: &str| frame[name].as_u64();
    let mut payload = Vec::new();
    put_payload(&frame["payload"], &mut payload);
    let length = number("length").unwrap_or(payload.len() as u64) as u32;
    let [kind, flags] = ["kind", "flags"].map(|name| number(name).unwrap_or_default() as u8);
    let [mut stream, step] = ["stream", "step"].map(|name| number(name).unwrap_or_default() as u32);
    let most_frames = most_bytes / (HEAD + payload.len());
    let mut bytes: Vec<u8> = Vec::new();
    for _ in 0..number("repeat").unwrap_or(1).min(most_frames as u64) {
        bytes.extend(&length.to_be_bytes()[1..]);
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(&payload);
        stream = stream.wrapping_add(step);
    }
    bytes
}

/// A list of parts. Text has one byte for each character, and a number has four bytes. A list is a header field: its name, its value,
/// and the first byte of its representation (RFC 7541, 6.2), without which it is not indexed.
fn put_payload(part: &Value, bytes: &mut Vec<u8>) {
    match part {
        Value::Array(parts) => {
            for part in parts {
                match part {
                    Value::Array(field) => put_field(field, bytes),
                    other => put_payload(other, bytes),
                }
            }
        }
        Value::String(text) => bytes.extend(latin1(text)),
        Value::Number(number) => bytes.extend((number.as_u64().unwrap_or_default() as u32).to_be_bytes()),
        _ => {}
    }
}

fn put_field(field: &[Value], bytes: &mut Vec<u8>) {
    bytes.push(field.get(2).and_then(Value::as_u64).unwrap_or_default() as u8);
    for at in 0..2 {
        let text: Vec<u8> = latin1(field.get(at).and_then(Value::as_str).unwrap_or_default()).collect();
        // An integer with a prefix of 7 bits (RFC 7541, 5.1).
        match text.len().checked_sub(127) {
            None => bytes.push(text.len() as u8),
            Some(mut rest) => {
                bytes.push(127);
                while rest >= 128 {
                    bytes.push((rest % 128) as u8 | 128);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend(text);
    }
}

fn latin1(text: &str) -> impl Iterator<Item = u8> {
    text.chars().map(|character| character as u8)
}

/// The head of a request with more fields.
fn request(stream: u32, flags: u8, method: &str, fields: &[[&str; 2]]) -> Value {
    let pseudo = [[":method", method], [":scheme", "https"], [":path", "/v1/generate"], [":authority", HOST]];
    let payload = [&pseudo[..], fields].concat();
    json!({"kind": HEADERS, "flags": flags, "stream": stream, "payload": payload})
}

fn data(stream: u32, flags: u8, text: &str) -> Value {
    json!({"kind": DATA, "flags": flags, "stream": stream, "payload": text})
}

pub(crate) fn seeds() -> Vec<Vec<u8>> {
    let whole = END_STREAM | END_HEADERS;
    let of_two = [["content-type", "application/json"], ["content-length", "2"]];
    let inputs = [
        vec![request(1, whole, "GET", &[]), request(3, whole, "HEAD", &[["cookie", "a=b"], ["cookie", "c=d"]])],
        vec![request(1, END_HEADERS, "POST", &of_two), data(1, END_STREAM, "{}")],
        // Padded, and with a trailer.
        vec![
            request(1, END_HEADERS, "POST", &[["te", "trailers"], ["trailer", "x"], ["expect", "100-continue"]]),
            data(1, PADDED, "\u{2}{}\0\0"),
            json!({"kind": HEADERS, "flags": whole, "stream": 1, "payload": [["x", "y"]]}),
        ],
        // Lengths: repeated, contradictory, empty, and not that of the body.
        vec![
            request(1, END_HEADERS, "POST", &[["content-length", "2"], ["content-length", "2"]]),
            data(1, END_STREAM, "{}"),
            request(3, END_HEADERS, "POST", &[["content-length", "2"], ["content-length", "3"]]),
            request(5, whole, "POST", &[["content-length", ""]]),
            request(7, END_HEADERS, "GET", &[["content-length", ""]]),
            data(7, END_STREAM, ""),
            request(9, END_HEADERS, "GET", &[]),
            data(9, END_STREAM, "GET / HTTP/1.1\r\n\r\n"),
            request(11, END_HEADERS, "POST", &[["content-length", "5"]]),
            data(11, END_STREAM, "{}"),
        ],
        // Fields of a connection, pseudo fields after others, twice or unknown, two hosts, and what would be another line.
        vec![
            request(1, whole, "GET", &[["connection", "keep-alive, x"], ["x", "y"]]),
            request(3, whole, "GET", &[["transfer-encoding", "chunked"], ["upgrade", "h2c"]]),
            request(5, whole, "GET", &[["keep-alive", "1"], ["proxy-connection", "close"], ["te", "gzip"]]),
            request(7, whole, "GET", &[["x", "y"], [":path", "/other"]]),
            request(9, whole, "CONNECT", &[[":protocol", "websocket"]]),
            request(11, whole, "GET", &[["host", "other"]]),
        ],
        vec![request(1, whole, "GET", &[[":unknown", "x"]])],
        vec![request(1, whole, "GET", &[["x\r\ny", "z"], ["X", "y\r\nz: 1"]])],
        vec![request(1, whole, "GET / HTTP/1.1\r\nx:", &[])],
        // A path that is only a fragment.
        vec![json!({"kind": HEADERS, "flags": whole, "stream": 1, "payload":
            [[":method", "GET"], [":scheme", "https"], [":authority", HOST], [":path", "#x"]]})],
        vec![
            json!({"kind": HEADERS, "flags": END_STREAM, "stream": 1, "payload": "\u{82}\u{87}"}),
            json!({"kind": CONTINUATION, "stream": 1, "payload": [[":path", "*"], [":authority", HOST]]}),
            json!({"kind": CONTINUATION, "flags": END_HEADERS, "stream": 1, "payload": [["x", "y", 64], "\u{be}"]}),
        ],
        vec![
            request(1, END_STREAM, "GET", &[]),
            json!({"kind": CONTINUATION, "stream": 1, "payload": [["x", "y"]], "repeat": 1000}),
        ],
        // Frames that carry no request, fewer than end the connection, and one of an unknown kind.
        vec![
            json!({"kind": SETTINGS, "payload": ["\0\u{1}", 0, "\0\u{3}", 100, "\0\u{4}", 0, "\0\u{5}", 16384], "repeat": 2}),
            json!({"kind": SETTINGS, "flags": 1}),
            json!({"kind": PING, "payload": [1, 2], "repeat": 6}),
            json!({"kind": PRIORITY, "stream": 5, "payload": [3, "\u{10}"]}),
            json!({"kind": WINDOW_UPDATE, "payload": [1]}),
            request(1, END_HEADERS, "POST", &[]),
            json!({"kind": WINDOW_UPDATE, "stream": 1, "payload": [1000]}),
            json!({"kind": RST_STREAM, "stream": 1, "payload": [8]}),
            json!({"kind": 99, "flags": 255, "payload": "x"}),
        ],
        vec![request(1, whole, "GET", &[]), json!({"kind": WINDOW_UPDATE, "payload": [0x7fff_ffff]})],
        vec![
            request(1, END_HEADERS, "POST", &[]),
            json!({"kind": WINDOW_UPDATE, "stream": 1, "payload": [0x7fff_ffff]}),
        ],
        vec![json!({"kind": PRIORITY, "stream": 3, "payload": [0, "\u{10}"], "repeat": 2000})],
        vec![
            json!({"kind": HEADERS, "flags": whole, "stream": 1, "step": 2, "repeat": 200, "payload":
                ["\u{82}\u{87}\u{84}", [":authority", HOST]]}),
            json!({"kind": RST_STREAM, "stream": 1, "step": 2, "repeat": 200, "payload": [8]}),
        ],
        // A body of unknown length, and frames without a byte.
        vec![
            request(1, END_HEADERS, "POST", &[]),
            json!({"kind": DATA, "stream": 1, "payload": "x".repeat(1000), "repeat": 50}),
            json!({"kind": DATA, "stream": 1, "repeat": 500}),
        ],
        vec![
            request(1, END_HEADERS, "POST", &of_two),
            json!({"kind": GOAWAY, "payload": [0, 0, "x"]}),
            json!({"kind": PUSH_PROMISE, "flags": END_HEADERS, "stream": 1, "payload": [2, "\u{82}"]}),
        ],
        vec![json!({"kind": DATA, "stream": 1, "length": 16385, "payload": "x"})],
    ];
    let lines = inputs.map(|input| {
        let lines: Vec<String> = input.iter().map(|frame| format!("{frame}\n")).collect();
        format!("{}{}", char::from(WITH_JSON), lines.concat()).into_bytes()
    });
    let bytes = [request(1, END_HEADERS, "POST", &of_two), data(1, END_STREAM, "{}")];
    let bytes = bytes.map(|frame| frames(&frame, SENT_BYTES));
    [lines.to_vec(), vec![bytes.concat()]].concat()
}

pub(crate) fn run(bytes: &[u8]) -> bool {
    let client = client();
    client.gateway.run(exchange(client, &sent(bytes)))
}
