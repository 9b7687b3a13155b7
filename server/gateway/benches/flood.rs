//! What silent connections cost other clients: `cargo bench -p textnlp-gateway --bench flood`.
//!
//! One process is the gateway, one the attacker, and this one the client that is measured. The attacker opens 12,000
//! connections, negotiates HTTP/2 and sends nothing: from one address, and from twelve. It opens what is closed again
//! after a second. A second program can be measured: `flood -- --gateway "PROGRAM gateway --config"`.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::panic, missing_docs)]

use std::net::{Ipv4Addr, SocketAddr};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const CONNECTIONS: usize = 12_000;
const HANDSHAKES: usize = 500;
/// A client gives up after this time.
const GIVE_UP: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["gateway", file] => textnlp_gateway::run(file.into()).await.unwrap(),
        ["attack", to, certificate, addresses] => {
            attack(to.parse().unwrap(), &connector(certificate, b"h2"), addresses.parse().unwrap()).await;
        }
        [] => measure(None).await,
        ["--gateway", program] => measure(Some(program)).await,
        _ => panic!("{words:?}: --gateway \"PROGRAM ARGUMENTS…\" is the only option"),
    }
}

fn connector(certificate: &str, protocol: &[u8]) -> TlsConnector {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    TlsConnector::from(Arc::new(config))
}

async fn handshake(from: Ipv4Addr, to: SocketAddr, tls: &TlsConnector) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((from, 0).into())?;
    tls.connect(ServerName::try_from("site.example").unwrap(), socket.connect(to).await?).await
}

/// Says `up` when every connection was tried once, and goes on until it is killed.
async fn attack(to: SocketAddr, tls: &TlsConnector, addresses: usize) {
    let (tried, open) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let hands = Arc::new(tokio::sync::Semaphore::new(64));
    for number in 0..CONNECTIONS {
        let (tls, tried, open, hands) = (tls.clone(), tried.clone(), open.clone(), hands.clone());
        let from = Ipv4Addr::new(127, 0, (number % addresses) as u8, 1);
        tokio::spawn(async move {
            for round in 0.. {
                let hand = hands.acquire().await.unwrap();
                let stream = timeout(GIVE_UP, handshake(from, to, &tls)).await;
                drop(hand);
                tried.fetch_add(usize::from(round == 0), Relaxed);
                if let Ok(Ok(mut stream)) = stream {
                    open.fetch_add(1, Relaxed);
                    while stream.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
                    open.fetch_sub(1, Relaxed);
                }
                sleep(Duration::from_secs(1)).await;
            }
        });
    }
    while tried.load(Relaxed) < CONNECTIONS {
        sleep(Duration::from_millis(50)).await;
    }
    println!("{}", open.load(Relaxed));
    std::future::pending::<()>().await;
}

/// Ended with the benchmark.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Answers every request at once.
async fn backend() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = [0; 4096];
                while stream.read(&mut head).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if stream.write_all(answer).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

async fn measure(program: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).into_os_string().into_string().unwrap();
    let certified = rcgen::generate_simple_self_signed(["site.example".to_owned()]).unwrap();
    std::fs::write(path("cert.pem"), certified.cert.pem()).unwrap();
    std::fs::write(path("key.pem"), certified.signing_key.serialize_pem()).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let to = SocketAddr::from(([127, 0, 0, 1], port));
    let config = format!(
        "gateway:\n  listen: \"{to}\"\n  tls: {{ certificate_file: {}, key_file: {} }}\n  backends: [ {{ name: a, listen: \"{}\" }} ]\n",
        path("cert.pem"),
        path("key.pem"),
        backend().await
    );
    std::fs::write(path("gateway.yaml"), config).unwrap();
    let own = std::env::current_exe().unwrap().into_os_string().into_string().unwrap();
    let own_gateway = format!("{own} gateway");
    let start = |words: &str, out: Stdio| {
        let mut words = words.split(' ');
        Ended(Command::new(words.next().unwrap()).args(words).stdout(out).spawn().unwrap())
    };
    let tls = connector(&path("cert.pem"), b"http/1.1");

    println!("| silent connections | up | in s | handshakes | failed | p50 ms | p99 ms | max ms |");
    println!("|---|---|---|---|---|---|---|---|");
    for addresses in [0, 1, 12] {
        let gateway = start(&format!("{} {}", program.unwrap_or(&own_gateway), path("gateway.yaml")), Stdio::null());
        while handshake(Ipv4Addr::new(127, 0, 0, 2), to, &tls).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
        if addresses == 0 {
            row("none", 0, 0.0, &sample(to, &tls).await);
            continue;
        }
        let name = format!("{CONNECTIONS} from {addresses} addresses");
        let begun = Instant::now();
        let mut attacker = start(&format!("{own} attack {to} {} {addresses}", path("cert.pem")), Stdio::piped());
        let mut said = tokio::process::ChildStdout::from_std(attacker.0.stdout.take().unwrap()).unwrap();
        let opening = tokio::spawn({
            let tls = tls.clone();
            async move { sample(to, &tls).await }
        });
        let mut up = [0; 16];
        let read = said.read(&mut up).await.unwrap();
        let up: usize = std::str::from_utf8(&up[..read]).unwrap().trim().parse().unwrap();
        let took = begun.elapsed().as_secs_f64();
        row(&format!("{name}, while they open"), up, took, &opening.await.unwrap());
        row(&format!("{name}, open"), up, took, &sample(to, &tls).await);
        drop((attacker, gateway));
    }
}

/// Times of handshakes from another address, one after the other; none where the client gave up.
async fn sample(to: SocketAddr, tls: &TlsConnector) -> Vec<Option<Duration>> {
    let mut times = Vec::new();
    for _ in 0..HANDSHAKES {
        let begun = Instant::now();
        let stream = timeout(GIVE_UP, handshake(Ipv4Addr::new(127, 0, 0, 200), to, tls)).await;
        times.push(matches!(stream, Ok(Ok(_))).then(|| begun.elapsed()));
        // A program that locks clients out is not asked for an hour.
        if times.iter().filter(|time| time.is_none()).count() == 5 {
            break;
        }
        sleep(Duration::from_millis(10)).await;
    }
    times
}

fn row(name: &str, up: usize, took: f64, times: &[Option<Duration>]) {
    let mut done: Vec<f64> = times.iter().flatten().map(|time| time.as_secs_f64() * 1000.0).collect();
    done.sort_by(f64::total_cmp);
    let at =
        |share: f64| done.get((done.len() as f64 * share) as usize).map_or("–".to_owned(), |ms| format!("{ms:.1}"));
    let most = done.last().map_or("–".to_owned(), |ms| format!("{ms:.1}"));
    let failed = times.len() - done.len();
    println!("| {name} | {up} | {took:.1} | {} | {failed} | {} | {} | {most} |", times.len(), at(0.5), at(0.99));
}
