//! What stands for the network of pods: addresses, and a proxy for what pods ask one another over HTTP.
//!
//! Each pod listens on a loopback address of its own, and the API takes no such address for a pod: another one is shown there, to which
//! nothing leads but the proxy that programs in pods are told of. The API server is told of it too, for what it asks services.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use camino::Utf8Path;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::api::Api;

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

/// What programs in pods are told: where the API server is, and where the proxy, which is at this port.
pub(super) async fn surroundings(kubeconfig: &Utf8Path, api: &Api, port: u16) -> Vec<(&'static str, String)> {
    let config: Value = serde_json::from_slice(&std::fs::read(kubeconfig).expect("read a kubeconfig of ours"))
        .expect("a kubeconfig of ours is JSON");
    let server = config["clusters"][0]["cluster"]["server"].as_str().expect("it says where the API server is");
    let (host, port_there) = server.trim_start_matches("https://").split_once(':').expect("it has a port");
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.expect("listen at a port that is ours");
    let proxy = listener.local_addr().expect("ask for a port");
    let api = api.clone();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(lead(client, api.clone()));
        }
    });
    vec![
        ("KUBERNETES_SERVICE_HOST", host.to_owned()),
        ("KUBERNETES_SERVICE_PORT", port_there.to_owned()),
        ("http_proxy", format!("http://{proxy}")),
    ]
}

/// One request for `http://SHOWN:PORT/…`, and its answer, or what the API server sends to the address of a service. Whoever cannot be led is
/// hung up on.
async fn lead(mut client: TcpStream, api: Api) -> Option<()> {
    let mut head = Vec::new();
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        if head.len() > HEAD || client.read_buf(&mut head).await.ok()? == 0 {
            return None;
        }
    }
    let text = String::from_utf8(head).ok()?;
    let (first, rest) = text.split_once("\r\n")?;
    let mut words = first.split(' ');
    let (method, target) = (words.next()?, words.next()?);
    if method == "CONNECT" {
        let asked: SocketAddr = target.parse().ok()?;
        let mut pod = TcpStream::connect(behind(&api, asked).await?).await.ok()?;
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.ok()?;
        tokio::io::copy_bidirectional(&mut client, &mut pod).await.ok()?;
        return Some(());
    }
    let (authority, path) = target.strip_prefix("http://")?.split_once('/')?;
    let asked: SocketAddr = authority.parse().ok()?;
    let mut pod = TcpStream::connect(here(asked.ip(), asked.port())?).await.ok()?;
    // The next request may be for another pod.
    let request = format!("{method} /{path} HTTP/1.1\r\nconnection: close\r\n{rest}");
    pod.write_all(request.as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await.ok()?;
    Some(())
}

/// Where a pod listens that is shown with this address.
pub(crate) fn here(shown: IpAddr, port: u16) -> Option<SocketAddr> {
    let IpAddr::V4(address) = shown else { return None };
    let bytes = address.octets();
    Some((real(bytes[2], bytes[3]), port).into())
}

/// A pod behind the address of a service, as its controller wrote down which are ready.
async fn behind(api: &Api, asked: SocketAddr) -> Option<SocketAddr> {
    let services = api.get("/api/v1/services").await?;
    let mut services = services["items"].as_array()?.iter();
    let service = services.find(|one| one["spec"]["clusterIP"] == asked.ip().to_string())?;
    let port = service["spec"]["ports"].as_array()?.iter().find(|port| port["port"] == asked.port())?;
    let (namespace, name) = (service["metadata"]["namespace"].as_str()?, service["metadata"]["name"].as_str()?);
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io/service-name%3D{name}"
    );
    let slices = api.get(&path).await?;
    slices["items"].as_array()?.iter().find_map(|slice| {
        let target = slice["ports"].as_array()?.iter().find(|one| one["name"] == port["name"])?["port"].as_u64()?;
        let ready = slice["endpoints"].as_array()?.iter().find(|one| one["conditions"]["ready"] == true)?;
        here(ready["addresses"][0].as_str()?.parse().ok()?, target.try_into().ok()?)
    })
}
