//! Keeps the listening sockets of a program during a restart, so that connections wait for the successor instead of
//! being refused.
//!
//! The program sends them on request (see `gateway/handover.rs` of the server), and its successor inherits them. A
//! program without this feature is restarted as usual.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde::Deserialize;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;

use super::output::Notes;
use super::unit::KeepsSockets;

/// Variables of the next program: the pid that they are for, the numbers of its sockets, and that of its lock file.
pub(super) const PROCESS: &str = "TEXTNLP_HANDED_PROCESS";
pub(super) const SOCKETS: &str = "TEXTNLP_HANDED_SOCKETS";
pub(super) const LOCK: &str = "TEXTNLP_HANDED_LOCK";

/// A running program answers at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
/// Size of a head and one short line.
const ANSWER_MAX: usize = 8 << 10;
/// The kernel closes any sockets beyond this count.
const SOCKETS_MAX: usize = 8;
/// Retry interval of a request without an answer.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// The longest wait of a restart for the answer.
const AWAITED_FOR: Duration = Duration::from_secs(5);
/// After this time without a program the sockets are closed, so that clients are refused.
const UNSERVED_MAX: Duration = Duration::from_secs(60);

/// The sockets of one unit.
#[derive(Default)]
pub(super) struct Sockets {
    kept: Vec<TcpListener>,
    asked: Option<SocketRequest>,
    unserved_since: Option<Instant>,
}

/// The request to one process and its outcome.
struct SocketRequest {
    pid: u32,
    since: Instant,
    last: Option<Instant>,
    asking: Option<JoinHandle<Result<PassedSockets, TransferRefusal>>>,
    answered: bool,
    steps_aside: bool,
    logged: bool,
}

/// The sockets that a program sent.
#[derive(Debug)]
struct PassedSockets {
    sockets: Vec<TcpListener>,
    steps_aside: bool,
}

/// Why it sent none.
#[derive(Debug)]
enum TransferRefusal {
    /// It does not support the request.
    Never(String),
    /// It may succeed later.
    Now(String),
}

impl Drop for SocketRequest {
    fn drop(&mut self) {
        if let Some(asking) = self.asking.take() {
            asking.abort();
        }
    }
}

impl Sockets {
    /// Requests the sockets of the running process, once it can answer.
    pub(super) async fn look(
        &mut self,
        name: &str,
        keeps: Option<&KeepsSockets>,
        pid: u32,
        now: Instant,
        notes: &mut Notes,
    ) {
        let Some(keeps) = keeps else { return };
        let asked = match &mut self.asked {
            Some(asked) if asked.pid == pid => asked,
            other => other.insert(SocketRequest {
                pid,
                since: now,
                last: None,
                asking: None,
                answered: false,
                steps_aside: false,
                logged: false,
            }),
        };
        if let Some(asking) = asked.asking.take_if(|asking| asking.is_finished()) {
            match asking.await {
                Ok(Ok(given)) => {
                    asked.answered = true;
                    asked.steps_aside = given.steps_aside;
                    self.kept = given.sockets;
                    self.keep_only(&keeps.addresses);
                    notes.say(&format!("{name} shares {} listening sockets, which outlive it", self.kept.len()));
                }
                Ok(Err(TransferRefusal::Never(why))) => {
                    asked.answered = true;
                    self.kept.clear();
                    notes.say(&format!("{name} does not share its listening sockets: {why}"));
                }
                Ok(Err(TransferRefusal::Now(why)))
                    if !asked.logged && now.duration_since(asked.since) >= AWAITED_FOR =>
                {
                    asked.logged = true;
                    notes.say(&format!("{name} does not share its listening sockets yet: {why}"));
                }
                Ok(Err(TransferRefusal::Now(_))) | Err(_) => {}
            }
            return;
        }
        if !asked.answered
            && asked.asking.is_none()
            && asked.last.is_none_or(|at| now.duration_since(at) >= RETRY_INTERVAL)
        {
            asked.last = Some(now);
            let keeps = keeps.clone();
            asked.asking = Some(tokio::spawn(async move { ask(&keeps).await }));
        }
    }

    /// Whether a process to be stopped may still send its sockets.
    pub(super) fn are_awaited(&self, keeps: Option<&KeepsSockets>, pid: u32, now: Instant) -> bool {
        keeps.is_some()
            && self.asked.as_ref().is_none_or(|asked| {
                asked.pid != pid || (!asked.answered && now.duration_since(asked.since) < AWAITED_FOR)
            })
    }

    /// Whether a process steps aside for its successor before it ends.
    pub(super) fn steps_aside(&self, pid: u32) -> bool {
        !self.kept.is_empty() && self.asked.as_ref().is_some_and(|asked| asked.pid == pid && asked.steps_aside)
    }

    /// Closes the sockets of addresses that are no longer wanted.
    pub(super) fn keep_only(&mut self, addresses: &[SocketAddr]) {
        self.kept.retain(|socket| socket.local_addr().is_ok_and(|address| addresses.contains(&address)));
    }

    /// Frees the ports.
    pub(super) fn close(&mut self) {
        *self = Self::default();
    }

    /// Frees the ports of a program that does not return.
    pub(super) fn close_if_unserved(&mut self, name: &str, served: bool, now: Instant, notes: &mut Notes) {
        if served || self.kept.is_empty() {
            self.unserved_since = None;
        } else if now.duration_since(*self.unserved_since.get_or_insert(now)) >= UNSERVED_MAX {
            notes.say(&format!("{name} does not restart: its ports are free until it does"));
            self.close();
        }
    }

    /// Duplicates for a child. They survive its `exec`, so the caller drops them right after the start.
    pub(super) fn for_child(&self) -> io::Result<Vec<OwnedFd>> {
        self.kept.iter().map(|socket| Ok(rustix::io::dup(socket)?)).collect()
    }
}

/// The numbers as the child reads them.
pub(super) fn numbers(sockets: &[OwnedFd]) -> String {
    sockets.iter().map(|socket| socket.as_raw_fd().to_string()).collect::<Vec<_>>().join(",")
}

async fn ask(keeps: &KeepsSockets) -> Result<PassedSockets, TransferRefusal> {
    match tokio::time::timeout(ANSWER_TIMEOUT, exchange(keeps)).await {
        Ok(Ok(answer)) => answer.given(),
        Ok(Err(error)) => Err(TransferRefusal::Now(error.to_string())),
        Err(_) => Err(TransferRefusal::Now(format!("no answer within {} s", ANSWER_TIMEOUT.as_secs()))),
    }
}

/// The bytes and the sockets sent with them.
struct Answer {
    text: String,
    sockets: Vec<OwnedFd>,
}

#[derive(Deserialize)]
struct Line {
    sockets: Vec<SocketAddr>,
    #[serde(default)]
    steps_aside: bool,
}

async fn exchange(keeps: &KeepsSockets) -> io::Result<Answer> {
    let mut stream = UnixStream::connect(&keeps.from).await?;
    if stream.peer_cred()?.uid() != rustix::process::geteuid().as_raw() {
        return Err(io::ErrorKind::PermissionDenied.into());
    }
    let request = "GET /sockets HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: textnlp-sockets\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    let (mut bytes, mut sockets) = (Vec::new(), Vec::new());
    while !is_whole(&bytes) {
        let got = stream.async_io(Interest::READABLE, || receive(&stream, &mut sockets)).await?;
        if got.is_empty() {
            break;
        }
        bytes.extend_from_slice(&got);
        if bytes.len() > ANSWER_MAX {
            return Err(io::Error::other("the answer is too long"));
        }
    }
    Ok(Answer { text: String::from_utf8_lossy(&bytes).into_owned(), sockets })
}

fn receive(stream: &UnixStream, sockets: &mut Vec<OwnedFd>) -> io::Result<Vec<u8>> {
    let mut buffer = [0; 1024];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(SOCKETS_MAX))];
    let mut beside = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut beside, RecvFlags::CMSG_CLOEXEC)?;
    for message in beside.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            sockets.extend(fds);
        }
    }
    if sockets.len() > SOCKETS_MAX {
        return Err(io::Error::other("too many sockets"));
    }
    Ok(buffer[..got.bytes].to_vec())
}

/// A refusal, or the head and the line behind it.
fn is_whole(bytes: &[u8]) -> bool {
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return false };
    !bytes.starts_with(b"HTTP/1.1 101 ") || bytes[end + 4..].contains(&b'\n')
}

impl Answer {
    fn given(self) -> Result<PassedSockets, TransferRefusal> {
        let later = |why: &str| Err(TransferRefusal::Now(why.to_owned()));
        let Some((head, rest)) = self.text.split_once("\r\n\r\n") else { return later("its answer is incomplete") };
        if !head.starts_with("HTTP/1.1 101 ") {
            let status: String = head.chars().take_while(|c| !c.is_control()).take(60).collect();
            return Err(TransferRefusal::Never(format!("it answers `{status}`")));
        }
        let Ok(line) = serde_json::from_str::<Line>(rest) else { return later("its answer cannot be parsed") };
        if line.sockets.len() != self.sockets.len() {
            return later("its list does not match the sockets that it sent");
        }
        let mut sockets = Vec::new();
        for (address, socket) in line.sockets.into_iter().zip(self.sockets) {
            let listens = rustix::net::sockopt::socket_acceptconn(&socket).unwrap_or(false);
            let socket = TcpListener::from(socket);
            if !listens || socket.local_addr().ok() != Some(address) {
                return later("a socket does not match its description");
            }
            sockets.push(socket);
        }
        Ok(PassedSockets { sockets, steps_aside: line.steps_aside })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use camino::{Utf8Path, Utf8PathBuf};
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    use std::io::{IoSlice, Read};
    use std::os::fd::AsFd;

    /// Answers once per answer given, with all sockets beside the last bytes.
    fn program(path: &Utf8Path, answers: Vec<(String, Vec<OwnedFd>)>) -> std::thread::JoinHandle<()> {
        let listener = std::os::unix::net::UnixListener::bind(path).unwrap();
        std::thread::spawn(move || {
            for (text, sockets) in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut request = [0; 1024];
                let length = stream.read(&mut request).unwrap();
                assert!(request[..length].starts_with(b"GET /sockets "));
                let (head, rest) = text.split_at(text.find("\r\n\r\n").map_or(0, |at| at + 4));
                std::io::Write::write_all(&mut stream, head.as_bytes()).unwrap();
                let fds: Vec<_> = sockets.iter().map(AsFd::as_fd).collect();
                let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(16))];
                let mut beside = SendAncillaryBuffer::new(&mut space);
                assert!(fds.is_empty() || beside.push(SendAncillaryMessage::ScmRights(&fds)));
                if !rest.is_empty() {
                    rustix::net::sendmsg(&stream, &[IoSlice::new(rest.as_bytes())], &mut beside, SendFlags::NOSIGNAL)
                        .unwrap();
                }
            }
        })
    }

    const HEAD: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\n\r\n";

    async fn given(text: String, sockets: Vec<OwnedFd>) -> Result<PassedSockets, TransferRefusal> {
        let dir = tempfile::tempdir().unwrap();
        let from = Utf8PathBuf::from_path_buf(dir.path().join("admin.sock")).unwrap();
        let program = program(&from, vec![(text, sockets)]);
        let answer = ask(&KeepsSockets { from, addresses: Vec::new() }).await;
        program.join().unwrap();
        answer
    }

    fn listener() -> (SocketAddr, TcpListener) {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        (socket.local_addr().unwrap(), socket)
    }

    #[tokio::test]
    async fn handed_over_socket_keeps_listening_after_its_program_exits() {
        let (address, socket) = listener();
        let text = format!("{HEAD}{{\"sockets\":[\"{address}\"],\"steps_aside\":true}}\n");
        let given = given(text, vec![socket.into()]).await.unwrap();
        assert!(given.steps_aside);
        std::net::TcpStream::connect(address).unwrap();
        let mut sockets = Sockets { kept: given.sockets, ..Sockets::default() };
        let duplicates = sockets.for_child().unwrap();
        let flags = rustix::io::fcntl_getfd(&duplicates[0]).unwrap();
        assert!(!flags.contains(rustix::io::FdFlags::CLOEXEC), "a child finds it open");
        assert_eq!(numbers(&duplicates), duplicates[0].as_raw_fd().to_string());
        let flags = rustix::io::fcntl_getfd(&sockets.kept[0]).unwrap();
        assert!(flags.contains(rustix::io::FdFlags::CLOEXEC), "other children do not");
        drop(duplicates);
        sockets.keep_only(&[address]);
        std::net::TcpStream::connect(address).unwrap();
        sockets.keep_only(&[([127, 0, 0, 1], 1).into()]);
        std::net::TcpStream::connect(address).unwrap_err();
    }

    #[tokio::test]
    async fn invalid_socket_handovers_are_refused_and_closed() {
        let (address, socket) = listener();
        let (other, _held) = listener();
        let client = std::net::TcpStream::connect(address).unwrap();
        let copy = || OwnedFd::from(socket.try_clone().unwrap());
        let line = |addresses: &str| format!("{HEAD}{{\"sockets\":[{addresses}],\"steps_aside\":true}}\n");
        let local = client.local_addr().unwrap();
        let cases: [(String, Vec<OwnedFd>); 8] = [
            (line(&format!("\"{other}\"")), vec![copy()]),
            (line(""), vec![copy()]),
            (line(&format!("\"{address}\"")), vec![]),
            (line(&format!("\"{local}\"")), vec![client.try_clone().unwrap().into()]),
            (line("\"0.0.0.0:0\""), vec![std::fs::File::open("/dev/null").unwrap().into()]),
            (format!("{HEAD}sockets\n"), vec![copy()]),
            (format!("{HEAD}{{\"sockets\":[\"{address}\"]"), vec![copy()]),
            (line(&vec![format!("\"{address}\""); 9].join(",")), (0..9).map(|_| copy()).collect()),
        ];
        for (number, (text, fds)) in cases.into_iter().enumerate() {
            assert!(matches!(given(text, fds).await, Err(TransferRefusal::Now(_))), "case {number}");
        }
        drop((socket, client));
        std::net::TcpStream::connect(address).unwrap_err();
    }

    #[tokio::test]
    async fn program_without_socket_handover_is_not_asked_again() {
        let old = "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n";
        assert!(matches!(given(old.to_owned(), vec![]).await, Err(TransferRefusal::Never(_))));
        assert!(matches!(given(String::new(), vec![]).await, Err(TransferRefusal::Now(_))), "one that dies is");
    }

    #[tokio::test]
    async fn each_program_instance_is_asked_for_its_sockets_once() {
        let dir = tempfile::tempdir().unwrap();
        let from = Utf8PathBuf::from_path_buf(dir.path().join("admin.sock")).unwrap();
        let mut notes = Notes::open(Utf8PathBuf::from_path_buf(dir.path().join("log")).unwrap());
        let (address, socket) = listener();
        let text = format!("{HEAD}{{\"sockets\":[\"{address}\"],\"steps_aside\":true}}\n");
        let both = [socket.try_clone().unwrap(), socket].map(|socket| (text.clone(), vec![socket.into()]));
        let program = program(&from, both.into());
        let keeps = KeepsSockets { from, addresses: vec![address] };
        let mut sockets = Sockets::default();
        for pid in [7, 8] {
            assert!(sockets.are_awaited(Some(&keeps), pid, Instant::now()));
            while sockets.are_awaited(Some(&keeps), pid, Instant::now()) {
                assert!(!sockets.steps_aside(pid));
                sockets.look("gateway", Some(&keeps), pid, Instant::now(), &mut notes).await;
                tokio::task::yield_now().await;
            }
            assert!(sockets.steps_aside(pid) && !sockets.steps_aside(pid + 1));
            sockets.look("gateway", Some(&keeps), pid, Instant::now(), &mut notes).await;
            assert!(sockets.asked.as_ref().unwrap().asking.is_none(), "it has answered");
            assert_eq!(sockets.kept.len(), 1);
        }
        program.join().unwrap();
        let now = Instant::now();
        sockets.close_if_unserved("gateway", false, now, &mut notes);
        sockets.close_if_unserved("gateway", true, now + UNSERVED_MAX, &mut notes);
        sockets.close_if_unserved("gateway", false, now + UNSERVED_MAX, &mut notes);
        std::net::TcpStream::connect(address).unwrap();
        sockets.close_if_unserved("gateway", false, now + 2 * UNSERVED_MAX, &mut notes);
        std::net::TcpStream::connect(address).unwrap_err();
    }
}
