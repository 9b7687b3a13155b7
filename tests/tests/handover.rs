//! The gateway is the one address that clients see: replaced, killed, or looked after by another supervisor, it costs them nothing.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::mpsc::RecvTimeoutError;
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_tests::ports::Ports;
use textnlp_tests::{Said, Sandbox, eventually, http, program};

const GATEWAY: &str = " gateway --config";
const SUPERVISOR: &str = "supervise --folder";
const TWO: [&str; 4] = ["--env", "development", "--set", "scaling.min=2"];

/// A program of another digest that does the same: what follows an ELF file's end is nobody's.
fn other_program(sandbox: &Sandbox, name: &str) -> Utf8PathBuf {
    let path = sandbox.folder().join(name);
    std::fs::copy(program(), &path).unwrap();
    std::fs::OpenOptions::new().append(true).open(&path).unwrap().write_all(name.as_bytes()).unwrap();
    path
}

fn run_with(sandbox: &Sandbox, server: &Utf8PathBuf, args: &[&str]) -> Said {
    textnlp_tests::said(sandbox.command(&[args, &TWO].concat()).env("TEXTNLP_SERVER", server).output().unwrap())
}

/// Rolls everything to another program while a request is in flight, which ends when everything else is new.
fn replace(sandbox: &Sandbox, name: &str) {
    let old = gateways(sandbox);
    let body = Crowd::body(9).to_string();
    let (begin, end) = body.split_at(10);
    let mut slow = http::connect(sandbox.port).unwrap();
    slow.write_all(http::head("POST", "/v1/generate", &[], body.len()).as_bytes()).unwrap();
    slow.write_all(begin.as_bytes()).unwrap();
    let server = other_program(sandbox, name);
    let (over, waits) = std::sync::mpsc::channel::<()>();
    let rest = std::thread::scope(|scope| {
        // The gateway ends a request whose body pauses for 30 s, and the commands may take longer.
        let mut slow = &slow;
        let slowly = scope.spawn(move || {
            let mut rest = end.as_bytes();
            while waits.recv_timeout(Duration::from_secs(5)) == Err(RecvTimeoutError::Timeout) {
                if let [byte, more @ ..] = rest
                    && !more.is_empty()
                {
                    slow.write_all(&[*byte]).unwrap();
                    rest = more;
                }
            }
            rest
        });
        run_with(sandbox, &server, &["release", "set"]).expect(0);
        run_with(sandbox, &server, &["up", "--yes", "--no-gate"]).expect(0);
        assert_eq!(gateways(sandbox).len(), 2, "the old one finishes what it has, and nobody waits for that");
        drop(over);
        slowly.join().unwrap()
    });
    slow.write_all(rest).unwrap();
    assert_eq!(http::read(slow).unwrap().status, 200);
    eventually("another gateway alone", || {
        let new = gateways(sandbox);
        (new.len() == 1 && !old.contains(&new[0])).then_some(())
    });
}

fn gateways(sandbox: &Sandbox) -> Vec<u32> {
    sandbox.processes().into_iter().filter(|(_, line)| line.contains(GATEWAY)).map(|(pid, _)| pid).collect()
}

fn supervisor_says(sandbox: &Sandbox, what: &str) -> usize {
    let log = std::fs::read_to_string(sandbox.site("development").join("log/supervisor.log")).unwrap_or_default();
    log.matches(what).count()
}

/// How often each of four clients asks: 20 requests a second in all.
const REQUEST_INTERVAL: Duration = Duration::from_millis(200);

/// Clients that ask all the time; `lost` is what went wrong for them.
#[derive(Default)]
struct Crowd {
    stop: AtomicBool,
    answered: AtomicUsize,
    lost: Mutex<Vec<String>>,
    refused: AtomicUsize,
}

impl Crowd {
    fn note(&self, who: &str, error: &std::io::Error) {
        if error.kind() == std::io::ErrorKind::ConnectionRefused {
            self.refused.fetch_add(1, SeqCst);
        }
        self.lost.lock().unwrap().push(format!("{who}: {error}"));
    }

    fn body(client: usize) -> serde_json::Value {
        json!({ "prompt": "Once upon a time", "max_tokens": 16, "seed": client })
    }

    /// Every request on a connection of its own.
    fn new_connections(&self, port: u16, client: usize) {
        while self.goes_on() {
            match http::post(port, "/v1/generate", &Self::body(client)) {
                Ok(answer) if answer.status == 200 && answer.json()["usage"]["completion_tokens"].is_u64() => {
                    self.answered.fetch_add(1, SeqCst);
                }
                Ok(answer) => self.lost.lock().unwrap().push(format!("new: {} {}", answer.status, answer.text())),
                Err(error) => self.note("new", &error),
            }
        }
    }

    /// Whether there is another request, after the pause before it.
    fn goes_on(&self) -> bool {
        std::thread::sleep(REQUEST_INTERVAL);
        !self.stop.load(SeqCst)
    }

    /// One connection for as long as the other side lets it, which may close one that rests, as HTTP allows; nothing is sent twice.
    fn kept_connection(&self, port: u16, client: usize) {
        let mut kept: Option<BufReader<TcpStream>> = None;
        while self.goes_on() {
            let asked =
                kept.take().filter(is_open).map_or_else(|| http::connect(port).map(BufReader::new), Ok).and_then(
                    |stream| {
                        let (status, stream) = ask_on(stream, &Self::body(client).to_string())?;
                        if status == 200 { Ok(stream) } else { Err(std::io::Error::other(format!("status {status}"))) }
                    },
                );
            match asked {
                Ok(stream) => {
                    kept = stream;
                    self.answered.fetch_add(1, SeqCst);
                }
                Err(error) => self.note("kept", &error),
            }
        }
    }

    fn go_on(&self, requests: usize) {
        let seen = self.answered.load(SeqCst);
        eventually("requests are answered", || (self.answered.load(SeqCst) >= seen + requests).then_some(()));
    }

    fn take_lost(&self) -> Vec<String> {
        std::mem::take(&mut *self.lost.lock().unwrap())
    }
}

/// Whether the other side has left a resting connection open.
fn is_open(stream: &BufReader<TcpStream>) -> bool {
    let stream = stream.get_ref();
    stream.set_nonblocking(true).unwrap();
    let seen = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    seen.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock)
}

/// One request on a connection, which is given back when it may be used again.
fn ask_on(mut stream: BufReader<TcpStream>, body: &str) -> std::io::Result<(u16, Option<BufReader<TcpStream>>)> {
    let length = body.len();
    let request = format!(
        "POST /v1/generate HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
    );
    stream.get_mut().write_all(request.as_bytes())?;
    let (mut status, mut length, mut closes) = (0, 0, false);
    for number in 0.. {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if number == 0 {
            status = line.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        }
        if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse().map_err(std::io::Error::other)?;
        }
        closes |= line == "connection: close";
    }
    if status == 0 {
        return Err(std::io::Error::other("closed without an answer"));
    }
    stream.read_exact(&mut vec![0; length])?;
    Ok((status, (!closes).then_some(stream)))
}

/// Puts two replicas up and lets both kinds of clients loose on them while the story happens.
fn with_a_crowd(name: &str, story: impl FnOnce(&Sandbox, &Crowd)) {
    let sandbox = Sandbox::new(name);
    sandbox.run(&[&["up", "--yes", "--no-gate"], &TWO[..]].concat()).expect(0);
    let crowd = Crowd::default();
    std::thread::scope(|scope| {
        for client in 0..2 {
            let (crowd, port) = (&crowd, sandbox.port);
            scope.spawn(move || crowd.new_connections(port, client));
            scope.spawn(move || crowd.kept_connection(port, client));
        }
        let told = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            crowd.go_on(20);
            story(&sandbox, &crowd);
        }));
        crowd.stop.store(true, SeqCst);
        if let Err(why) = told {
            std::panic::resume_unwind(why);
        }
    });
}

#[track_caller]
fn nothing_was_lost(sandbox: &Sandbox, crowd: &Crowd) {
    let lost = crowd.take_lost();
    let log = sandbox.run(&["logs", "supervisor"]).out;
    assert!(
        lost.is_empty(),
        "{} lost, {} answered: {:?}\n{log}",
        lost.len(),
        crowd.answered.load(SeqCst),
        &lost[..lost.len().min(5)]
    );
}

#[test]
fn gateway_replacement_fails_no_request() {
    with_a_crowd("over", |sandbox, crowd| {
        replace(sandbox, "second");
        crowd.go_on(20);
        nothing_was_lost(sandbox, crowd);

        // Another supervisor, which did not start what runs, does it as well.
        let old = sandbox.pid(SUPERVISOR).unwrap();
        sandbox.kill(old);
        eventually("it is gone", || sandbox.pid(SUPERVISOR).is_none().then_some(()));
        crowd.go_on(20);
        replace(sandbox, "third");
        assert_ne!(sandbox.pid(SUPERVISOR).unwrap(), old);
        crowd.go_on(20);
        nothing_was_lost(sandbox, crowd);
        assert_eq!(supervisor_says(sandbox, "gateway was replaced"), 2, "nobody had to wait for the old one's end");
    });
}

#[test]
fn clients_wait_while_a_killed_gateway_restarts() {
    with_a_crowd("away", |sandbox, crowd| {
        for times in 1..=3 {
            let shared = "gateway shares 2 listening sockets";
            eventually("its sockets are kept", || (supervisor_says(sandbox, shared) >= times).then_some(()));
            let old = sandbox.pid(GATEWAY).unwrap();
            sandbox.kill(old);
            eventually("another gateway", || gateways(sandbox).into_iter().find(|new| *new != old));
            crowd.go_on(20);
        }
        let lost = crowd.take_lost();
        assert_eq!(crowd.refused.load(SeqCst), 0, "{lost:?}");
        // What was in flight is lost, at most: one request of each client each time.
        assert!(lost.len() <= 12, "{lost:?}");
    });
}

#[test]
fn down_frees_the_ports_and_a_changed_port_replaces_the_old_one() {
    let sandbox = Sandbox::new("ports");
    sandbox.up("development");
    let shared = "gateway shares 2 listening sockets";
    eventually("its sockets are kept", || (supervisor_says(&sandbox, shared) > 0).then_some(()));
    let held = Ports::ask(1);
    let port = held.numbers()[0];
    let other = format!("server.api.port={port}");
    let mut command = sandbox.command(&["up", "--env", "development", "--yes", "--no-gate", "--set", &other]);
    let said = textnlp_tests::said(command.env_remove("TEXTNLP_SET__server__api__port").output().unwrap());
    said.expect(0);
    assert_eq!(http::get(port, "/health").unwrap().status, 200);
    let refused = |port: u16| TcpStream::connect(("127.0.0.1", port)).is_err().then_some(());
    eventually("nobody listens on the old port", || refused(sandbox.port));
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
    for port in [port, sandbox.metrics_port] {
        refused(port).expect("the port is free");
    }
    assert!(gateways(&sandbox).is_empty());
}
