//! The attackers, each a process of its own.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::{sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::client::{Client, WRONG_KEY};
use super::{GIVE_UP, HOST, connect, handshake, tls_config};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Attack {
    /// Connections negotiate HTTP/2 and send nothing. What is closed is opened again.
    Silent,
    /// Connections send one request with a wrong key, and then nothing.
    Idle,
    /// Uploads announce 255 KiB and send all but the last byte.
    Length,
    /// The same in one chunk.
    Chunked,
    /// TLS handshakes, each on a new connection.
    Handshakes,
    /// The client's first message of a handshake, always the same, which costs the attacker no cryptography. The gateway
    /// agrees on a key and signs.
    Hellos,
    /// Well-formed requests with a wrong key on open connections.
    Keys,
}

/// Below the 256 KiB up to which the gateway takes in a body.
const UPLOAD_BYTES: usize = 255 << 10;
/// First tries of connections a second, and repeated ones.
const OPENED_PER_SECOND: u32 = 1000;
const REOPENED_PER_SECOND: u32 = 200;
const WRONG_KEYS_PER_SECOND: u32 = 1000;
/// Connections that are being opened at once.
const OPENING: usize = 64;

impl Attack {
    pub(crate) const ALL: [Attack; 7] = [
        Attack::Silent,
        Attack::Idle,
        Attack::Length,
        Attack::Chunked,
        Attack::Handshakes,
        Attack::Hellos,
        Attack::Keys,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Attack::Silent => "silent connections",
            Attack::Idle => "idle connections",
            Attack::Length => "unfinished uploads, content-length",
            Attack::Chunked => "unfinished uploads, chunked",
            Attack::Handshakes => "handshake loops",
            Attack::Hellos => "handshake loops, first message only",
            Attack::Keys => "wrong keys",
        }
    }

    pub(crate) fn named(name: &str) -> Attack {
        Attack::ALL.into_iter().find(|attack| attack.name() == name).unwrap()
    }

    /// Connections that it tries to have at once.
    pub(crate) fn connections(self) -> usize {
        match self {
            Attack::Silent | Attack::Idle => 12_000,
            // More than the gateway has memory for.
            Attack::Length | Attack::Chunked => 3000,
            Attack::Handshakes | Attack::Hellos => 32,
            Attack::Keys => 64,
        }
    }

    /// Repeated tries a second. The gateway closes a silent connection after 10 s, so 12,000 need more of them.
    fn reopened_per_second(self) -> u32 {
        if self == Attack::Silent { OPENED_PER_SECOND } else { REOPENED_PER_SECOND }
    }
}

struct Attacker {
    attack: Attack,
    to: SocketAddr,
    tls: TlsConnector,
    hello: Vec<u8>,
    opening: Semaphore,
    /// The time of the next try.
    next: Mutex<Instant>,
    /// Connections that were tried once.
    tried: AtomicU64,
    /// Connections that are open.
    open: AtomicU64,
    /// Tries of connections, handshakes that the gateway answered, or refused requests.
    done: AtomicU64,
}

/// Attacks until the process is killed. Prints its counters ten times a second.
pub(crate) async fn run(attack: Attack, to: SocketAddr, certificate: &str, addresses: usize) {
    let config = tls_config(certificate, if attack == Attack::Silent { "h2" } else { "http/1.1" });
    let mut hello = Vec::new();
    let name = ServerName::try_from(HOST).unwrap();
    rustls::ClientConnection::new(config.clone(), name).unwrap().write_tls(&mut hello).unwrap();
    let attacker = Arc::new(Attacker {
        attack,
        to,
        tls: TlsConnector::from(config),
        hello,
        opening: Semaphore::new(OPENING),
        next: Mutex::new(Instant::now()),
        tried: AtomicU64::new(0),
        open: AtomicU64::new(0),
        done: AtomicU64::new(0),
    });
    for number in 0..attack.connections() {
        let from = Ipv4Addr::new(127, 0, (number % addresses) as u8, 1);
        let attacker = attacker.clone();
        tokio::spawn(async move {
            match attacker.attack {
                Attack::Keys => attacker.send_wrong_keys(from).await,
                Attack::Handshakes | Attack::Hellos => attacker.repeat_handshakes(from).await,
                _ => attacker.hold_connection(from).await,
            }
        });
    }
    loop {
        let counters = [&attacker.tried, &attacker.open, &attacker.done].map(|counter| counter.load(Relaxed));
        println!("{} {} {}", counters[0], counters[1], counters[2]);
        sleep(Duration::from_millis(100)).await;
    }
}

impl Attacker {
    /// Waits for its turn, so that there are at most as many tries a second over all connections.
    async fn turn(&self, per_second: u32) {
        let at = {
            let mut next = self.next.lock().unwrap();
            let at = (*next).max(Instant::now());
            *next = at + Duration::from_secs(1) / per_second;
            at
        };
        sleep_until(at.into()).await;
    }

    async fn hold_connection(&self, from: Ipv4Addr) {
        self.turn(OPENED_PER_SECOND).await;
        for round in 0u64.. {
            let stream = {
                let _opening = self.opening.acquire().await.unwrap();
                timeout(GIVE_UP, self.open_connection(from)).await
            };
            self.done.fetch_add(1, Relaxed);
            self.tried.fetch_add(u64::from(round == 0), Relaxed);
            if let Ok(Ok(mut stream)) = stream {
                self.open.fetch_add(1, Relaxed);
                // The answer to an upload is its end: another one takes more.
                let goes_on = |read: usize| read > 0 && matches!(self.attack, Attack::Silent | Attack::Idle);
                while stream.read(&mut [0; 512]).await.is_ok_and(goes_on) {}
                self.open.fetch_sub(1, Relaxed);
            }
            self.turn(self.attack.reopened_per_second()).await;
        }
    }

    async fn open_connection(&self, from: Ipv4Addr) -> io::Result<TlsStream<TcpStream>> {
        let mut stream = handshake(from, self.to, &self.tls).await?;
        let begin = format!("POST /v1/embeddings HTTP/1.1\r\nhost: {HOST}\r\nauthorization: {WRONG_KEY}\r\n");
        let (fields, body) = match self.attack {
            Attack::Idle => ("content-length: 2\r\n\r\n{}".to_owned(), 0),
            Attack::Length => (format!("content-length: {UPLOAD_BYTES}\r\n\r\n"), UPLOAD_BYTES - 1),
            Attack::Chunked => (format!("transfer-encoding: chunked\r\n\r\n{UPLOAD_BYTES:x}\r\n"), UPLOAD_BYTES - 1),
            _ => return Ok(stream),
        };
        stream.write_all(format!("{begin}{fields}").as_bytes()).await?;
        stream.write_all(&vec![b' '; body]).await?;
        stream.flush().await?;
        Ok(stream)
    }

    async fn repeat_handshakes(&self, from: Ipv4Addr) {
        for round in 0u64.. {
            match timeout(GIVE_UP, self.shake(from)).await {
                Ok(Ok(())) => _ = self.done.fetch_add(1, Relaxed),
                _ => sleep(Duration::from_millis(10)).await,
            }
            self.tried.fetch_add(u64::from(round == 0), Relaxed);
        }
    }

    async fn shake(&self, from: Ipv4Addr) -> io::Result<()> {
        if self.attack == Attack::Handshakes {
            return handshake(from, self.to, &self.tls).await.map(drop);
        }
        let mut stream = connect(from, self.to).await?;
        stream.write_all(&self.hello).await?;
        match stream.read(&mut [0; 4096]).await? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    async fn send_wrong_keys(&self, from: Ipv4Addr) {
        let client = Client::new(from, self.to, self.tls.clone(), WRONG_KEY);
        for round in 0u64.. {
            self.turn(WRONG_KEYS_PER_SECOND).await;
            match timeout(GIVE_UP, client.exchange()).await {
                Ok(Ok(status)) if status.is_client_error() => _ = self.done.fetch_add(1, Relaxed),
                _ => sleep(Duration::from_millis(100)).await,
            }
            self.tried.fetch_add(u64::from(round == 0), Relaxed);
        }
    }
}
