//! The inter-site relay between real sockets: what passes, what stalls, and what ends.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_sites::relay::{Config, Running, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

/// Everything is there within this, or the test has failed.
const SOON: Duration = Duration::from_secs(20);
/// What does not come within this does not come while nothing changes.
const SILENCE: Duration = Duration::from_millis(150);

/// A relay with one link, `echo`, to a server that sends back what it gets and says `bye` when its client has no more to say.
struct Site {
    folder: tempfile::TempDir,
    relay: Option<Running>,
    echo: tokio::task::JoinHandle<()>,
}

impl Site {
    async fn new() -> Site {
        Site::with("").await
    }

    /// `more`: further lines of the configuration.
    async fn with(more: &str) -> Site {
        let folder = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(path(&folder, "echo.sock")).unwrap();
        let echo = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut read, mut write) = stream.split();
                    if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                        let _ = write.write_all(b"bye").await;
                    }
                });
            }
        });
        let text = format!(
            "border:\n  listen: \"unix:{}\"\n{more}  links: [ {{ name: echo, listen: \"unix:{}\", to: \"unix:{}\" }} ]\n",
            path(&folder, "border.sock"),
            path(&folder, "in.sock"),
            path(&folder, "echo.sock")
        );
        std::fs::write(path(&folder, "border.yaml"), text).unwrap();
        let relay = start(Config::read(&path(&folder, "border.yaml")).unwrap()).await.unwrap();
        Site { folder, relay: Some(relay), echo }
    }

    async fn connect(&self) -> UnixStream {
        UnixStream::connect(path(&self.folder, "in.sock")).await.unwrap()
    }

    async fn api(&self, method: &str, target: &str, body: &str) -> (u16, Value) {
        let (status, text) = self.raw(method, target, body).await;
        (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
    }

    async fn raw(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(path(&self.folder, "border.sock")).await.unwrap();
        let request = format!(
            "{method} {target} HTTP/1.1\r\nhost: border\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    async fn blackhole(&self, ttl_ms: u64) {
        let (status, told) =
            self.api("PUT", "/v1/fault", &json!({"kind": "blackhole", "ttl_ms": ttl_ms}).to_string()).await;
        assert_eq!((status, &told["fault"]["kind"]), (200, &json!("blackhole")), "{told}");
    }

    async fn figure(&self, name: &str) -> u64 {
        self.api("GET", "/v1/status", "").await.1["links"][0][name].as_u64().unwrap()
    }

    async fn until(&self, name: &str, value: u64) {
        let begun = Instant::now();
        while self.figure(name).await != value {
            assert!(
                begun.elapsed() < SOON,
                "{name} never became {value}: {:?}",
                self.api("GET", "/v1/status", "").await
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.echo.abort();
    }
}

fn path(folder: &tempfile::TempDir, name: &str) -> Utf8PathBuf {
    Utf8Path::from_path(folder.path()).unwrap().join(name)
}

async fn says(stream: &mut UnixStream, text: &str) -> String {
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; text.len()];
    tokio::time::timeout(SOON, stream.read_exact(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

/// Nothing comes, and nothing ends.
async fn is_silent(stream: &mut UnixStream) -> bool {
    let mut byte = [0];
    tokio::time::timeout(SILENCE, stream.read(&mut byte)).await.is_err()
}

/// It is closed without a byte.
async fn is_closed(stream: &mut UnixStream) -> bool {
    let mut byte = [0];
    matches!(tokio::time::timeout(SOON, stream.read(&mut byte)).await.unwrap(), Ok(0) | Err(_))
}

#[tokio::test]
async fn relay_passes_bytes_in_both_directions_with_half_close() {
    let site = Site::new().await;
    let mut stream = site.connect().await;
    assert_eq!(says(&mut stream, "hello").await, "hello");
    assert_eq!(site.figure("open").await, 1);
    // Half of it is closed; the other half still carries what the server has to say.
    stream.shutdown().await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "bye");
    site.until("open", 0).await;
}

#[tokio::test]
async fn relay_passes_large_streams_unchanged() {
    let site = Site::new().await;
    let stream = site.connect().await;
    let sent: Vec<u8> = (0..8_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let (mut read, mut write) = stream.into_split();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    });
    let mut got = Vec::new();
    read.read_to_end(&mut got).await.unwrap();
    sending.await.unwrap();
    assert!(got.len() == expected.len() + 3 && got.starts_with(&expected), "{} bytes came back", got.len());
}

#[tokio::test]
async fn blackhole_stalls_old_and_new_connections_and_closes_them_afterwards() {
    let site = Site::new().await;
    let mut old = site.connect().await;
    assert_eq!(says(&mut old, "before").await, "before");
    site.blackhole(60_000).await;
    site.until("stalled", 1).await;
    old.write_all(b"lost").await.unwrap();
    let mut new = site.connect().await;
    new.write_all(b"lost too").await.unwrap();
    assert!(is_silent(&mut old).await && is_silent(&mut new).await);
    site.until("stalled", 2).await;
    // Its own socket is no link.
    assert_eq!(site.api("GET", "/ready", "").await.0, 200);

    let (status, told) = site.api("DELETE", "/v1/fault", "").await;
    assert_eq!((status, &told["fault"]), (200, &Value::Null));
    assert!(is_closed(&mut old).await && is_closed(&mut new).await, "what stalled must not go on half-way");
    assert_eq!(says(&mut site.connect().await, "after").await, "after");
    site.until("stalled", 0).await;
}

#[tokio::test]
async fn blackhole_expires_on_its_own() {
    let site = Site::new().await;
    let begun = Instant::now();
    site.blackhole(3000).await;
    let mut stream = site.connect().await;
    assert!(is_silent(&mut stream).await);
    assert!(is_closed(&mut stream).await);
    assert!(begun.elapsed() >= Duration::from_millis(3000), "{:?}", begun.elapsed());
    assert_eq!(site.api("GET", "/v1/status", "").await.1["fault"], Value::Null);
    assert_eq!(says(&mut site.connect().await, "after").await, "after");
}

#[tokio::test]
async fn second_fault_replaces_the_expiry_of_the_first() {
    let site = Site::new().await;
    site.blackhole(60_000).await;
    let mut stream = site.connect().await;
    site.until("stalled", 1).await;
    site.blackhole(200).await;
    assert!(is_closed(&mut stream).await);
    assert!(site.api("GET", "/v1/status", "").await.1["fault"].is_null());
}

#[tokio::test]
async fn unknown_faults_are_refused_with_the_known_ones() {
    let site = Site::new().await;
    let cases = [
        (r#"{"kind":"blackhole"}"#, "missing field `ttl_ms`"),
        (r#"{"kind":"blackhole","ttl_ms":0}"#, "a fault of 0 ms"),
        (r#"{"kind":"blackhole","ttl_ms":600001}"#, "a fault of 600001 ms"),
        (r#"{"kind":"blackhole","ttl_ms":-1}"#, "invalid value"),
        (r#"{"kind":"kill","ttl_ms":10}"#, "`kill` is not a fault"),
        (r#"{"kind":"blackhole","ttl_ms":10,"also":1}"#, "unknown field `also`"),
        ("nonsense", "expected"),
    ];
    for (body, sentence) in cases {
        let (status, told) = site.api("PUT", "/v1/fault", body).await;
        let message = told["error"]["message"].as_str().unwrap();
        assert!(status == 400 && message.contains(sentence), "{body}: {told}");
    }
    assert_eq!(site.api("PUT", "/v1/fault", &"x".repeat(5000)).await.0, 400);
    assert_eq!(site.api("GET", "/v1/nothing", "").await.0, 404);
    assert!(site.api("GET", "/v1/status", "").await.1["fault"].is_null(), "nothing of that began");
}

#[tokio::test]
async fn relay_connections_above_the_limit_wait() {
    let site = Site::with("  max_connections: 2\n").await;
    let (mut a, mut b) = (site.connect().await, site.connect().await);
    assert_eq!((says(&mut a, "a").await, says(&mut b, "b").await), ("a".to_owned(), "b".to_owned()));
    let mut third = site.connect().await;
    third.write_all(b"c").await.unwrap();
    assert!(is_silent(&mut third).await);
    drop(a);
    let mut byte = [0];
    tokio::time::timeout(SOON, third.read_exact(&mut byte)).await.unwrap().unwrap();
    assert_eq!(&byte, b"c");
}

#[tokio::test]
async fn five_hundred_concurrent_relay_connections_are_served() {
    let site = std::sync::Arc::new(Site::new().await);
    let mut all = tokio::task::JoinSet::new();
    for number in 0..500 {
        let site = site.clone();
        all.spawn(async move {
            let mut stream = site.connect().await;
            let text = format!("connection {number}");
            assert_eq!(says(&mut stream, &text).await, text);
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    assert_eq!(site.figure("connections").await, 500);
    assert_eq!(site.figure("failures").await, 0);
    site.until("open", 0).await;
}

#[tokio::test]
async fn relay_to_an_unreachable_target_closes_the_connection() {
    let folder = tempfile::tempdir().unwrap();
    // A bound socket that does not listen: no other process can take its port.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let unreachable = held.local_addr().unwrap();
    let text = format!(
        "border:\n  listen: \"unix:{}\"\n  links: [ {{ name: a, listen: \"127.0.0.1:0\", to: \"{unreachable}\" }} ]\n",
        path(&folder, "border.sock")
    );
    std::fs::write(path(&folder, "border.yaml"), text).unwrap();
    let relay = start(Config::read(&path(&folder, "border.yaml")).unwrap()).await.unwrap();
    let address = relay.address("a").unwrap().to_string();
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut byte = [0];
    assert!(matches!(tokio::time::timeout(SOON, stream.read(&mut byte)).await.unwrap(), Ok(0) | Err(_)));
}

#[tokio::test]
async fn stopping_relay_closes_connections_and_its_successor_takes_the_sockets() {
    let mut site = Site::new().await;
    let mut stream = site.connect().await;
    assert_eq!(says(&mut stream, "x").await, "x");
    // The client keeps its connection, and the relay does not wait for it.
    tokio::time::timeout(SOON, site.relay.take().unwrap().leave()).await.unwrap();
    assert!(is_closed(&mut stream).await);
    site.relay = Some(start(Config::read(&path(&site.folder, "border.yaml")).unwrap()).await.unwrap());
    assert_eq!(says(&mut site.connect().await, "again").await, "again");
    let second = start(Config::read(&path(&site.folder, "border.yaml")).unwrap()).await;
    assert!(second.is_err_and(|error| error.to_string().contains("listen on unix:")), "a socket has one owner");
}

#[tokio::test]
async fn relay_metrics_are_valid_openmetrics() {
    let site = Site::new().await;
    let mut stream = site.connect().await;
    assert_eq!(says(&mut stream, "x").await, "x");
    let (status, text) = site.raw("GET", "/metrics", "").await;
    assert_eq!(status, 200);
    for line in [
        "textnlp_border_connections_total{link=\"echo\"} 1",
        "textnlp_border_open{link=\"echo\"} 1",
        "textnlp_border_fault 0",
        "# EOF",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n---\n{text}");
    }
}

#[test]
fn relay_configuration_errors_are_all_named() {
    let folder = tempfile::tempdir().unwrap();
    let file = path(&folder, "border.yaml");
    let check = |text: &str, sentences: &[&str]| {
        std::fs::write(&file, text).unwrap();
        let error = Config::read(&file).unwrap_err().to_string();
        for sentence in sentences {
            assert!(error.contains(sentence), "{sentence}: {error}");
        }
    };
    check(
        "border: { listen: \"127.0.0.1:1\", max_connections: 0, links: [ { name: \"a b\", listen: \"unix:/a\", to: \"unix:/a\" }, { name: x, listen: \"unix:/a\", to: \"unix:/c\" }, { name: x, listen: \"unix:/b\", to: \"unix:/c\" } ] }",
        &[
            "must be `unix:…`",
            "link `a b`: a name has",
            "its destination is its own listener",
            "unix:/a is already in use by another link",
            "link `x` is duplicated",
            "max_connections 0",
        ],
    );
    check("border: { listen: \"unix:/a\", links: [], also: 1 }", &["unknown field `also`"]);
    check("border: { listen: \"unix:a\", links: [] }", &["the path of a socket must be absolute"]);
    let own = "certificate_file: /c, key_file: /k, ca_file: /a";
    check(
        &format!(
            "border: {{ listen: \"unix:/a\", links: [ {{ name: in, listen: \"10.0.0.1:1\", to: \"unix:/b\" }}, {{ name: out, listen: \"unix:/c\", to: \"10.0.0.2:1\" }}, \
             {{ name: nameless, listen: \"unix:/d\", to: \"10.0.0.2:1\", to_tls: {{ {own} }} }}, {{ name: named, listen: \"10.0.0.1:2\", to: \"unix:/e\", listen_tls: {{ {own}, name: x }} }} ] }}"
        ),
        &[
            "link `in`: listen: that connection leaves this machine, so it needs `listen_tls`",
            "link `out`: to: that connection leaves this machine, so it needs `to_tls`",
            "link `nameless`: `to_tls`: the connecting end needs the `name`",
            "link `named`: `listen_tls`: only the connecting end may have a `name`",
        ],
    );
    // What has a name is on another machine, whose TLS is this relay's, or that of those who speak through it.
    check(
        &format!(
            "border: {{ listen: \"unix:/a\", links: [ {{ name: far, listen: \"unix:/b\", to: \"door.example.com:8443\" }}, \
             {{ name: both, listen: \"unix:/c\", to: \"door.example.com:8443\", end_to_end_tls: true, to_tls: {{ {own}, name: x }} }} ] }}"
        ),
        &[
            "link `far`: to: that connection leaves this machine, so it needs `to_tls`",
            "link `both`: `end_to_end_tls` excludes",
        ],
    );
    let to = |to: &str, more: &str| {
        format!("border: {{ listen: \"unix:/a\", links: [ {{ name: x, listen: \"unix:/b\", to: \"{to}\"{more} }} ] }}")
    };
    for nowhere in ["door.example.com", "door.example.com:0", "door..com:1", "https://door:1", ":1", "door:70000"] {
        check(&to(nowhere, ""), &["nor `NAME:PORT`"]);
    }
    std::fs::write(&file, to("door.example.com:8443", ", end_to_end_tls: true")).unwrap();
    assert_eq!(Config::read(&file).unwrap().links[0].to.to_string(), "door.example.com:8443");
    check("[", &["relay configuration"]);
    let missing = Config::read(Utf8Path::new("/nowhere/border.yaml")).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/border.yaml"));
}
