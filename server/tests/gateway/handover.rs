//! Who keeps the gateway running gets its sockets; who has a connection to a gateway that leaves loses no request.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::Ordering::SeqCst;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::backend::Backend;
use crate::site::{SOON, Site, eventually};

/// What the supervisor does: the line, and the sockets beside it.
async fn ask(site: &Site) -> (serde_json::Value, Vec<TcpListener>) {
    let mut stream = UnixStream::connect(site.path("admin.sock")).await.unwrap();
    let request = "GET /sockets HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: textnlp-sockets\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let (mut text, mut sockets) = (String::new(), Vec::new());
    while !text.ends_with("}\n") {
        let got = stream.async_io(tokio::io::Interest::READABLE, || {
            let mut buffer = [0; 1024];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
            let mut beside = RecvAncillaryBuffer::new(&mut space);
            let iov = &mut [IoSliceMut::new(&mut buffer)];
            let got = rustix::net::recvmsg(&stream, iov, &mut beside, RecvFlags::CMSG_CLOEXEC)?;
            for message in beside.drain() {
                let RecvAncillaryMessage::ScmRights(fds) = message else { panic!("another message") };
                sockets.extend(fds.map(TcpListener::from));
            }
            Ok(String::from_utf8(buffer[..got.bytes].to_vec()).unwrap())
        });
        let got = tokio::time::timeout(SOON, got).await.unwrap().unwrap();
        assert!(!got.is_empty(), "cut after {text:?}");
        text.push_str(&got);
    }
    assert!(text.starts_with("HTTP/1.1 101 "), "{text}");
    (serde_json::from_str(text.lines().last().unwrap()).unwrap(), sockets)
}

#[tokio::test]
async fn sockets_are_handed_to_the_same_user_and_outlive_the_gateway() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    let address = site.address();
    let (first, _) = ask(&site).await;
    let (line, mut sockets) = ask(&site).await;
    assert_eq!(line, first, "asking costs nothing");
    assert_eq!(line["steps_aside"], false, "nobody said that there is a successor");
    let found: Vec<SocketAddr> = sockets.iter().map(|socket| socket.local_addr().unwrap()).collect();
    assert_eq!(serde_json::json!(found), line["sockets"]);
    assert_eq!((found.len(), found[0]), (2, address));
    assert_eq!(site.get("/x").await.0, 200, "it serves as before");

    let Site { folder: _folder, gateway } = site;
    gateway.drain().await;
    let waits = TcpStream::connect(address).await.unwrap();
    let mine = sockets.swap_remove(0);
    mine.set_nonblocking(false).unwrap();
    let (accepted, peer) = tokio::task::spawn_blocking(move || mine.accept()).await.unwrap().unwrap();
    assert_eq!(peer, waits.local_addr().unwrap(), "who came between two gateways is served by the next");
    drop(accepted);
    TcpStream::connect(address).await.unwrap_err();
}

#[tokio::test]
async fn sockets_are_refused_to_other_clients() {
    let a = Backend::tcp("a").await;
    let site = Site::new(&[&a]).await;
    assert_eq!(site.admin("GET", "/sockets", "").await.0, 426);
    assert_eq!(site.admin("POST", "/sockets", "").await.0, 404);

    // By TCP nobody can be known.
    let folder = tempfile::tempdir().unwrap();
    let file = camino::Utf8Path::from_path(folder.path()).unwrap().join("gateway.yaml");
    std::fs::write(&file, "gateway:\n  listen: \"127.0.0.1:0\"\n  admin_listen: \"127.0.0.1:0\"\n").unwrap();
    let running = textnlp_gateway::start(&file).await.unwrap();
    let Some(textnlp_gateway::SocketAddress::Tcp(admin)) = running.admin_address() else { panic!() };
    let mut stream = TcpStream::connect(admin).await.unwrap();
    let request = "GET /sockets HTTP/1.1\r\nhost: x\r\nconnection: upgrade, close\r\nupgrade: textnlp-sockets\r\n\r\n";
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = [0; 12];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"HTTP/1.1 403");
}

/// Reads one answer with a length; its head, in lower case.
async fn answer(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap().parse().unwrap();
    stream.read_exact(&mut vec![0; length]).await.unwrap();
    head
}

#[tokio::test]
async fn open_connections_are_closed_gracefully_on_drain() {
    const REQUEST: &[u8] = b"GET /x HTTP/1.1\r\nhost: x\r\n\r\n";
    let a = Backend::tcp("a").await;
    let Site { folder: _folder, gateway } = Site::new(&[&a]).await;
    let textnlp_gateway::SocketAddress::Tcp(address) = gateway.address().clone() else { panic!() };
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(REQUEST).await.unwrap();
    assert!(!answer(&mut kept).await.contains("connection: close"));
    let mut held = TcpStream::connect(address).await.unwrap();
    held.write_all(b"POST /hold HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}").await.unwrap();
    eventually(async || a.state.waiting.load(SeqCst) == 1).await;
    let mut fresh = TcpStream::connect(address).await.unwrap();
    // Whoever came before us has been accepted when this one is served.
    let mut last = TcpStream::connect(address).await.unwrap();
    last.write_all(REQUEST).await.unwrap();
    answer(&mut last).await;

    let draining = tokio::spawn(gateway.drain());
    eventually(async || TcpStream::connect(address).await.is_err()).await;
    for stream in [&mut kept, &mut fresh] {
        stream.write_all(REQUEST).await.unwrap();
        let head = answer(stream).await;
        assert!(head.starts_with("http/1.1 200") && head.contains("connection: close"), "{head}");
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    }
    // One that says nothing more is closed.
    assert_eq!(tokio::time::timeout(SOON, last.read(&mut [0])).await.unwrap().unwrap(), 0);
    assert!(!draining.is_finished());
    a.state.go.notify_one();
    assert!(answer(&mut held).await.contains("connection: close"));
    tokio::time::timeout(SOON, draining).await.unwrap().unwrap();
}
