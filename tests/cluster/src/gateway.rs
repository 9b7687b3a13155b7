//! A fake Gateway API controller with its proxy. It accepts a Gateway and the routes that name it, writes their status,
//! and routes connections to ready pods by the weights of the route.
//!
//! It uses TLS to pods if a BackendTLSPolicy requires it, and verifies their name and authority. It accepts routes as a
//! whole and uses their first rule; it ignores paths.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};

use crate::api::Api;
use crate::kubelet::here;
use crate::tls;

/// The poll interval.
const EVERY: Duration = Duration::from_millis(100);
const GROUP: &str = "gateway.networking.k8s.io/v1";
const CONTROLLER: &str = "example.com/stand-in";
/// The name of the Gateway.
const NAME: &str = "web";

/// A backend of the route.
#[derive(Debug, Clone, Default)]
struct Backend {
    weight: i64,
    pods: Vec<SocketAddr>,
    /// The expected name of the pods, and the certificate authorities.
    tls: Option<(String, String)>,
    /// The balance of the weighted round-robin.
    credit: i64,
}

type Backends = Arc<Mutex<Vec<Backend>>>;

/// The Gateway object.
pub(crate) fn object(namespace: &str, host: &str, port: u16, (label, value): (&str, &str)) -> Value {
    json!({
        "apiVersion": GROUP,
        "kind": "Gateway",
        "metadata": { "name": NAME, "namespace": namespace },
        "spec": {
            "gatewayClassName": "stand-in",
            "listeners": [{
                "name": "https", "protocol": "HTTPS", "port": port, "hostname": host,
                "tls": { "mode": "Terminate", "certificateRefs": [{ "name": "of-the-operator" }] },
                "allowedRoutes": { "namespaces": { "from": "Selector", "selector": { "matchLabels": { label: value } } } },
            }],
        },
    })
}

/// Starts the controller for the Gateway of a namespace, with this certificate for clients. Returns its port.
pub(crate) fn start(kubeconfig: Utf8PathBuf, namespace: String, trusted: (String, String)) -> u16 {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("start a runtime").block_on(async {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("ask for a port");
            tell.send(listener.local_addr().expect("ask for a port").port()).expect("somebody waits");
            let backends = Backends::default();
            let api = Api::new(&kubeconfig);
            tokio::join!(lead(listener, &trusted, &backends), look(&api, &namespace, &backends));
        });
    });
    told.recv().expect("the gateway starts")
}

async fn lead(listener: TcpListener, trusted: &(String, String), backends: &Backends) {
    let acceptor = tls::acceptor(trusted);
    while let Ok((client, _)) = listener.accept().await {
        let (acceptor, backends) = (acceptor.clone(), backends.clone());
        tokio::spawn(async move {
            let Ok(client) = acceptor.accept(client).await else { return };
            let chosen = choose(&mut backends.lock().unwrap_or_else(PoisonError::into_inner));
            let Some(chosen) = chosen else { return };
            for pod in chosen.pods {
                // A terminating pod is skipped, as any proxy does.
                let Ok(pod) = TcpStream::connect(pod).await else { continue };
                match &chosen.tls {
                    None => join(client, pod).await,
                    Some((name, authorities)) => {
                        let Some(pod) = tls::connect(pod, authorities, name).await else { return };
                        join(client, pod).await;
                    }
                }
                return;
            }
        });
    }
}

async fn join(mut client: impl AsyncRead + AsyncWrite + Unpin, mut pod: impl AsyncRead + AsyncWrite + Unpin) {
    let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
}

/// Selects the backend with the highest balance; its pods take turns.
fn choose(backends: &mut [Backend]) -> Option<Backend> {
    let total: i64 = backends.iter().map(|one| one.weight).sum();
    backends.iter_mut().for_each(|one| one.credit += one.weight);
    let chosen = backends.iter_mut().filter(|one| one.weight > 0).max_by_key(|one| one.credit)?;
    chosen.credit -= total;
    let next = chosen.clone();
    if !chosen.pods.is_empty() {
        chosen.pods.rotate_left(1);
    }
    Some(next)
}

/// One poll of the Gateway and its routes.
async fn look(api: &Api, namespace: &str, backends: &Backends) {
    loop {
        if let Some(found) = taken(api, namespace).await {
            let mut known = backends.lock().unwrap_or_else(PoisonError::into_inner);
            let credits: Vec<i64> = known.iter().map(|one| one.credit).collect();
            let is_same = known.iter().map(|one| one.weight).eq(found.iter().map(|one| one.weight));
            *known = found;
            for (one, credit) in known.iter_mut().zip(credits).filter(|_| is_same) {
                one.credit = credit;
            }
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// The backends of the route that names the Gateway; `None` if an object could not be read.
async fn taken(api: &Api, namespace: &str) -> Option<Vec<Backend>> {
    let list =
        |path: String| async move { Some(api.call("GET", &path, None).await.ok()?.body["items"].as_array()?.clone()) };
    let gateway = api.call("GET", &format!("/apis/{GROUP}/namespaces/{namespace}/gateways/{NAME}"), None).await.ok()?;
    say(
        api,
        &gateway.body,
        "gateways",
        |generation| json!({ "conditions": conditions(generation, &["Accepted", "Programmed"]) }),
    )
    .await;
    let mut backends = Vec::new();
    for route in list(format!("/apis/{GROUP}/httproutes")).await? {
        let parent = &route["spec"]["parentRefs"][0];
        if parent["namespace"] != namespace || parent["name"] != NAME {
            continue;
        }
        let there = route["metadata"]["namespace"].as_str()?;
        let policies = list(format!("/apis/{GROUP}/namespaces/{there}/backendtlspolicies")).await?;
        let seen = |generation: &Value| conditions(generation, &["Accepted", "ResolvedRefs"]);
        say(api, &route, "httproutes", |generation| {
            json!({ "parents": [{ "controllerName": CONTROLLER, "parentRef": parent, "conditions": seen(generation) }] })
        })
        .await;
        for policy in &policies {
            say(api, policy, "backendtlspolicies", |generation| {
                json!({ "ancestors": [{ "controllerName": CONTROLLER, "ancestorRef": parent, "conditions": seen(generation) }] })
            })
            .await;
        }
        for wanted in route.pointer("/spec/rules/0/backendRefs")?.as_array()? {
            let name = wanted["name"].as_str()?;
            let slices = list(format!(
                "/apis/discovery.k8s.io/v1/namespaces/{there}/endpointslices?labelSelector=kubernetes.io/service-name%3D{name}"
            ));
            let pods = slices.await?.iter().flat_map(ready).collect();
            let about = |policy: &&Value| {
                policy["spec"]["targetRefs"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == name))
            };
            let tls = match policies.iter().find(about) {
                Some(policy) => Some(known_by(api, there, &policy["spec"]["validation"]).await?),
                None => None,
            };
            backends.push(Backend { weight: wanted["weight"].as_i64().unwrap_or(1), pods, tls, credit: 0 });
        }
    }
    Some(backends)
}

/// The ready pods of an endpoint slice.
fn ready(slice: &Value) -> Vec<SocketAddr> {
    let port = slice["ports"][0]["port"].as_u64().and_then(|port| u16::try_from(port).ok());
    let endpoints = slice["endpoints"].as_array().into_iter().flatten();
    let ready = endpoints.filter(|one| one["conditions"]["ready"] == true);
    ready.filter_map(|one| here(one["addresses"][0].as_str()?.parse().ok()?, port?)).collect()
}

async fn known_by(api: &Api, namespace: &str, validation: &Value) -> Option<(String, String)> {
    let map = validation["caCertificateRefs"][0]["name"].as_str()?;
    let map = api.call("GET", &format!("/api/v1/namespaces/{namespace}/configmaps/{map}"), None).await.ok()?;
    Some((validation["hostname"].as_str()?.to_owned(), map.body["data"]["ca.crt"].as_str()?.to_owned()))
}

fn conditions(generation: &Value, kinds: &[&str]) -> Value {
    let now = k8s_openapi::jiff::Timestamp::from_second(0).expect("a time").to_string();
    kinds
        .iter()
        .map(|kind| {
            json!({
                "type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": generation, "lastTransitionTime": now,
            })
        })
        .collect()
}

/// Writes the status of an object if it changed.
async fn say(api: &Api, object: &Value, plural: &str, status: impl FnOnce(&Value) -> Value) {
    let metadata = &object["metadata"];
    let (Some(namespace), Some(name)) = (metadata["namespace"].as_str(), metadata["name"].as_str()) else { return };
    let status = status(&metadata["generation"]);
    let differs =
        status.as_object().is_some_and(|fields| fields.iter().any(|(field, value)| object["status"][field] != *value));
    if differs {
        let path = format!("/apis/{GROUP}/namespaces/{namespace}/{plural}/{name}/status");
        let _ = api.call("PATCH", &path, Some(&json!({ "status": status }))).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_distributed_by_weight() {
        let backend = |weight| Backend { weight, ..Backend::default() };
        let mut backends = [backend(90), backend(10)];
        let mut led = [0, 0];
        for _ in 0..100 {
            let chosen = choose(&mut backends).expect("somebody is there");
            led[usize::from(chosen.weight == 10)] += 1;
        }
        assert_eq!(led, [90, 10]);
        assert!(choose(&mut [backend(0)]).is_none(), "nobody is led where the weight is nothing");
    }
}
