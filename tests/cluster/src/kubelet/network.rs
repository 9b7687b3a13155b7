//! What stands for the network of pods: addresses, and a proxy for what pods ask one another over HTTP.
//!
//! Each pod listens on a loopback address of its own, and the API takes no such address for a pod: another one is shown there, to which
//! nothing leads but the proxy that programs in pods are told of.

use std::net::{Ipv4Addr, SocketAddr};

use camino::Utf8Path;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// The longest head of a request.
const HEAD: usize = 16 << 10;

/// Where a pod listens.
pub(super) fn real(high: u8, low: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, (std::process::id() % 200) as u8 + 20, high, low)
}

/// What the API server is told of it.
pub(super) fn shown(real: Ipv4Addr) -> Ipv4Addr {
    let bytes = real.octets();
    Ipv4Addr::new(10, 200, bytes[2], bytes[3])
}

/// What programs in pods are told: where the API server is, and where the proxy.
pub(super) async fn surroundings(kubeconfig: &Utf8Path) -> Vec<(&'static str, String)> {
    let config: Value = serde_json::from_slice(&std::fs::read(kubeconfig).expect("read a kubeconfig of ours"))
        .expect("a kubeconfig of ours is JSON");
    let server = config["clusters"][0]["cluster"]["server"].as_str().expect("it says where the API server is");
    let (host, port) = server.trim_start_matches("https://").split_once(':').expect("it has a port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("ask for a port");
    let proxy = listener.local_addr().expect("ask for a port");
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(lead(client));
        }
    });
    vec![
        ("KUBERNETES_SERVICE_HOST", host.to_owned()),
        ("KUBERNETES_SERVICE_PORT", port.to_owned()),
        ("http_proxy", format!("http://{proxy}")),
    ]
}

/// One request for `http://SHOWN:PORT/…`, and its answer. Whoever cannot be led is hung up on.
async fn lead(mut client: TcpStream) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD || client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8(head).ok()?;
    let (first, rest) = text.split_once("\r\n")?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?.strip_prefix("http://")?);
    let (authority, path) = target.split_once('/')?;
    let asked: SocketAddr = authority.parse().ok()?;
    let std::net::IpAddr::V4(address) = asked.ip() else { return None };
    let bytes = address.octets();
    let mut pod = TcpStream::connect((real(bytes[2], bytes[3]), asked.port())).await.ok()?;
    // The next request may be for another pod.
    let request = format!("{method} /{path} HTTP/1.1\r\nconnection: close\r\n{rest}");
    pod.write_all(request.as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await.ok()?;
    Some(())
}
