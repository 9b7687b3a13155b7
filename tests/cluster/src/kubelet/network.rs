//! A replacement for the pod network: addresses, and a proxy for HTTP requests between pods.
//!
//! Each pod listens on a loopback address, which the API does not accept for pods. The API shows another address
//! instead, which only the proxy can reach. Programs in pods are configured to use it, and so is the API server for its
//! calls to services and pods.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use camino::Utf8Path;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::api::Api;

/// The longest head of a request, in bytes.
const HEAD: usize = 16 << 10;

/// The real address of a pod.
pub(super) fn real(high: u8, low: u8) -> Ipv4Addr {
    Ipv4Addr::new(127, (std::process::id() % 200) as u8 + 20, high, low)
}

/// The address of a pod in the API.
pub(super) fn shown(real: Ipv4Addr) -> Ipv4Addr {
    let bytes = real.octets();
    Ipv4Addr::new(10, 200, bytes[2], bytes[3])
}

/// The variables for programs in pods: the addresses of the API server and of the proxy at this port.
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

/// Forwards one request for `http://SHOWN:PORT/…`, one of the API server for `pods/proxy`, or a connection of the API
/// server to a service. An unknown destination closes the connection.
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
    let place = match forwarded(rest) {
        Some((namespace, name, port)) => {
            let pod = api.get(&format!("/api/v1/namespaces/{namespace}/pods/{name}")).await?;
            here(pod["status"]["podIP"].as_str()?.parse().ok()?, port)?
        }
        None => {
            let asked: SocketAddr = authority.parse().ok()?;
            here(asked.ip(), asked.port())?
        }
    };
    let mut pod = TcpStream::connect(place).await.ok()?;
    // One request per connection, because the next one may be for another pod.
    let request = format!("{method} /{path} HTTP/1.1\r\nconnection: close\r\n{rest}");
    pod.write_all(request.as_bytes()).await.ok()?;
    tokio::io::copy_bidirectional(&mut client, &mut pod).await.ok()?;
    Some(())
}

/// The namespace, the name and the port of the pod that the API server forwards a request to. The target of such a
/// request names the host that was asked, which is the API server; this header has the path that was asked for.
fn forwarded(headers: &str) -> Option<(&str, &str, u16)> {
    let mut headers = headers.lines().filter_map(|line| line.split_once(':'));
    let (_, asked) = headers.find(|(name, _)| name.eq_ignore_ascii_case("x-forwarded-uri"))?;
    let mut parts = asked.trim().strip_prefix("/api/v1/namespaces/")?.split('/');
    let (namespace, "pods", pod, "proxy") = (parts.next()?, parts.next()?, parts.next()?, parts.next()?) else {
        return None;
    };
    let (name, port) = pod.rsplit_once(':')?;
    Some((namespace, name, port.parse().ok()?))
}

/// The real address of a pod with this API address.
pub(crate) fn here(shown: IpAddr, port: u16) -> Option<SocketAddr> {
    let IpAddr::V4(address) = shown else { return None };
    let bytes = address.octets();
    Some((real(bytes[2], bytes[3]), port).into())
}

/// A ready pod of the service with this cluster IP, from its endpoint slices.
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
