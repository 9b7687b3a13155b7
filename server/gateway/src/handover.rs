//! Listening sockets outlive the gateway: its supervisor requests them, holds them, and passes them to the successor.
//!
//! So during a restart no connection is refused: it waits in the kernel's queue of a socket that is never closed.
//!
//! - **Giving**: `GET /sockets` on the administration's Unix socket, with `upgrade: textnlp-sockets`. The answer is 101; then comes
//!   one line of JSON, `{"sockets":["127.0.0.1:8443",…],"steps_aside":true}`, with the sockets in that order beside its bytes
//!   (`SCM_RIGHTS`). Only a process of the same user is given any.
//! - **Taking**: the process that starts the gateway leaves sockets open for it. [`SOCKETS`] has their file descriptors,
//!   and [`LOCK`] that of the open file whose lock says that the gateway runs. [`PROCESS`] has the PID they are meant
//!   for, so that a child process that inherits the variables ignores them.
//! - **Stepping aside**: on SIGUSR1 a gateway with such a lock stops listening and releases the lock, so that its
//!   successor may start at once. Then it finishes its requests.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use serde_json::json;
use tokio::net::UnixStream;

use super::Gateway;
use super::answer::error;

/// The PID that the other two variables are meant for.
const PROCESS: &str = "TEXTNLP_HANDED_PROCESS";
/// The numbers of listening sockets, separated by commas.
const SOCKETS: &str = "TEXTNLP_HANDED_SOCKETS";
/// The number of the file whose lock is held.
const LOCK: &str = "TEXTNLP_HANDED_LOCK";

/// No gateway has more.
const MOST_SOCKETS: usize = 8;
/// The protocol of the upgrade.
const PROTOCOL: &str = "textnlp-sockets";
/// Send timeout; the receiver reads at once.
const SEND_TIMEOUT: Duration = Duration::from_secs(5);

/// The sockets and the lock passed to this process.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    sockets: Vec<TcpListener>,
    pub(super) lock: Option<OwnedFd>,
}

impl Inherited {
    /// Takes what the environment names. Call it once in a process: the result owns the file descriptors.
    pub(super) fn take() -> Inherited {
        let (sockets, lock) = numbers(|name| std::env::var(name).ok(), std::process::id());
        let mut inherited = Inherited::default();
        for number in sockets {
            match adopt(number).and_then(listening) {
                Ok(socket) => inherited.sockets.push(socket),
                Err(error) => tracing::warn!(number, %error, "an inherited socket cannot be used"),
            }
        }
        // Not adopted as a lock here: reopening and closing its file would release it.
        inherited.lock = lock.and_then(|number| adopt(number).ok());
        inherited
    }

    /// The socket that listens on exactly this address.
    pub(super) fn socket(&mut self, wanted: SocketAddr) -> Option<TcpListener> {
        let at = self.sockets.iter().position(|socket| socket.local_addr().is_ok_and(|address| address == wanted))?;
        Some(self.sockets.swap_remove(at))
    }

    /// Closes sockets of addresses that are no longer configured.
    pub(super) fn drop_the_rest(&mut self) {
        for socket in self.sockets.drain(..) {
            tracing::info!(address = ?socket.local_addr().ok(), "an inherited socket is no longer needed");
        }
    }

    #[cfg(test)]
    fn of(sockets: Vec<TcpListener>) -> Inherited {
        Inherited { sockets, lock: None }
    }
}

/// The file descriptors meant for process `pid`; invalid values are ignored.
fn numbers(variable: impl Fn(&str) -> Option<String>, pid: u32) -> (Vec<RawFd>, Option<RawFd>) {
    if variable(PROCESS).and_then(|text| text.parse().ok()) != Some(pid) {
        return (Vec::new(), None);
    }
    // 0 to 2 are the standard streams, and a duplicate would be closed twice.
    let number = |text: &str| text.parse::<RawFd>().ok().filter(|number| *number > 2);
    let lock = variable(LOCK).and_then(|text| number(&text));
    let mut sockets: Vec<RawFd> = Vec::new();
    for text in variable(SOCKETS).unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
        match number(text) {
            Some(number) if !sockets.contains(&number) && lock != Some(number) && sockets.len() < MOST_SOCKETS => {
                sockets.push(number);
            }
            _ => return (Vec::new(), lock),
        }
    }
    (sockets, lock)
}

/// Takes ownership of an inherited descriptor, and sets close-on-exec.
fn adopt(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: borrowed for one call that says EBADF if nothing is open under this number.
    let there = unsafe { BorrowedFd::borrow_raw(number) };
    let flags = rustix::io::fcntl_getfd(there)?;
    // Descriptors that this program opened close on exec; inherited ones do not.
    if flags.contains(rustix::io::FdFlags::CLOEXEC) {
        return Err(io::Error::other("it was not inherited"));
    }
    rustix::io::fcntl_setfd(there, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, the process that started this one left it to this process alone (`PROCESS`), each number is adopted once (`numbers`), and a
    // second call finds it closing on exec.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// As a TCP socket that listens, which it must be.
fn listening(fd: OwnedFd) -> io::Result<TcpListener> {
    if !rustix::net::sockopt::socket_acceptconn(&fd)? {
        return Err(io::Error::other("it does not listen"));
    }
    let socket = TcpListener::from(fd);
    socket.local_addr()?;
    socket.set_nonblocking(true)?;
    Ok(socket)
}

/// The listening sockets that may be passed on.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    open: Mutex<Vec<(SocketAddr, OwnedFd)>>,
    /// Whether SIGUSR1 makes room for a successor.
    pub(super) steps_aside: bool,
}

impl Sockets {
    pub(super) fn new(open: Vec<(SocketAddr, OwnedFd)>, steps_aside: bool) -> Sockets {
        Sockets { open: Mutex::new(open), steps_aside }
    }

    /// Passes nothing on any more and releases the ports.
    pub(super) fn close(&self) {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// The line, and the sockets beside it.
    fn send(&self, to: impl AsFd) -> io::Result<()> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let addresses: Vec<SocketAddr> = open.iter().map(|(address, _)| *address).collect();
        let line = format!("{}\n", json!({ "sockets": addresses, "steps_aside": self.steps_aside }));
        let fds: Vec<BorrowedFd<'_>> = open.iter().map(|(_, socket)| socket.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
        let mut beside = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() && !beside.push(SendAncillaryMessage::ScmRights(&fds)) {
            return Err(io::Error::other("too many sockets"));
        }
        let sent = rustix::net::sendmsg(to, &[io::IoSlice::new(line.as_bytes())], &mut beside, SendFlags::NOSIGNAL)?;
        // It follows short headers, so it fits, unless the receiver stopped reading.
        if sent == line.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }
}

/// The peer process of a Unix socket, as a request extension.
#[derive(Debug, Clone)]
pub(super) struct Peer(Arc<OwnedFd>, u32);

impl Peer {
    pub(super) fn of(stream: &UnixStream) -> io::Result<Peer> {
        Ok(Peer(Arc::new(stream.as_fd().try_clone_to_owned()?), stream.peer_cred()?.uid()))
    }

    fn is_ours(&self) -> bool {
        self.1 == rustix::process::geteuid().as_raw()
    }
}

/// `GET /sockets`.
pub(super) fn send_sockets(gateway: &Arc<Gateway>, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let hint = "only the supervisor of the gateway may use this endpoint";
    let bad = |status, code, message| error(status, "invalid_request_error", code, message, hint);
    let peer = request.extensions().get::<Peer>().cloned();
    let Some(peer) = peer.filter(Peer::is_ours) else {
        return bad(
            StatusCode::FORBIDDEN,
            "not_for_you",
            "sockets are handed over on a Unix socket to the gateway's own user only",
        );
    };
    if request.headers().get(header::UPGRADE).is_none_or(|wanted| wanted != PROTOCOL) {
        return bad(StatusCode::UPGRADE_REQUIRED, "no_upgrade", "send the header `upgrade: textnlp-sockets`");
    }
    let upgraded = hyper::upgrade::on(&mut request);
    let given = gateway.clone();
    gateway.stops.tasks.spawn(async move {
        match tokio::time::timeout(SEND_TIMEOUT, upgraded).await {
            Ok(Ok(open)) => {
                if let Err(error) = given.sockets.send(&*peer.0) {
                    tracing::warn!(%error, "the sockets could not be handed over");
                }
                drop(open);
            }
            Ok(Err(error)) => tracing::debug!(%error, "the sockets were requested but not received"),
            Err(_) => tracing::debug!("the sockets were requested but not received"),
        }
    });
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    answer.headers_mut().insert(header::CONNECTION, header::HeaderValue::from_static("upgrade"));
    answer.headers_mut().insert(header::UPGRADE, header::HeaderValue::from_static(PROTOCOL));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    fn check(process: &str, sockets: &str, lock: &str) -> (Vec<RawFd>, Option<RawFd>) {
        let variable = |name: &str| {
            let text = match name {
                PROCESS => process,
                SOCKETS => sockets,
                LOCK => lock,
                _ => unreachable!(),
            };
            (!text.is_empty()).then(|| text.to_owned())
        };
        numbers(variable, 77)
    }

    #[test]
    fn only_sockets_passed_to_this_process_are_inherited() {
        assert_eq!(check("77", "7,9", "5"), (vec![7, 9], Some(5)));
        assert_eq!(check("77", "", "5"), (vec![], Some(5)));
        for process in ["78", "", "77x", "-77"] {
            assert_eq!(check(process, "7,9", "5"), (vec![], None), "{process}");
        }
        for sockets in ["7,x", "2", "-1", "7,7", "5", "3,4,6,7,8,9,10,11,12", "99999999999999999999"] {
            assert_eq!(check("77", sockets, "5"), (vec![], Some(5)), "{sockets}");
        }
        assert_eq!(check("77", "7", "1"), (vec![7], None));
    }

    #[test]
    fn inherited_socket_is_used_for_its_own_address_only() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap();
        let other: SocketAddr = ([127, 0, 0, 2], address.port()).into();
        let mut inherited = Inherited::of(vec![socket]);
        assert!(inherited.socket(other).is_none());
        assert_eq!(inherited.socket(address).unwrap().local_addr().unwrap(), address);
        assert!(inherited.socket(address).is_none(), "it is given once");
        let mut stale = Inherited::of(vec![TcpListener::bind("127.0.0.1:0").unwrap()]);
        let stale_address = stale.sockets[0].local_addr().unwrap();
        stale.drop_the_rest();
        std::net::TcpStream::connect(stale_address).unwrap_err();
    }

    #[test]
    fn non_listening_descriptor_is_not_inherited() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = std::net::TcpStream::connect(socket.local_addr().unwrap()).unwrap();
        assert!(listening(client.into()).is_err());
        assert!(listening(std::fs::File::open("/dev/null").unwrap().into()).is_err());
        assert!(listening(socket.into()).is_ok());
    }

    #[test]
    fn file_descriptor_is_adopted_once_and_closed_on_exec() {
        assert!(adopt(987_654).is_err(), "nothing is open there");
        let file = rustix::io::dup(std::fs::File::open("/dev/null").unwrap()).unwrap();
        let number = file.into_raw_fd();
        let owned = adopt(number).unwrap();
        assert!(rustix::io::fcntl_getfd(&owned).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        assert!(adopt(number).is_err(), "it has an owner");
    }

    #[tokio::test]
    async fn socket_peer_of_another_user_is_not_the_supervisor() {
        let (ours, _other) = UnixStream::pair().unwrap();
        let peer = Peer::of(&ours).unwrap();
        assert!(peer.is_ours());
        assert!(!Peer(peer.0, peer.1 + 1).is_ours());
    }
}
