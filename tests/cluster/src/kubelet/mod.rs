//! A node whose pods are local processes: enough of a kubelet for a Deployment to become a service that answers.
//!
//! It starts the containers of its pods with their variables, config maps and secrets, probes and restarts them, writes
//! their status, and serves their logs. It differs from a kubelet in these points:
//!
//! - No images: an image from `missing.example` cannot be pulled, any other exists, with the programs of
//!   [`Kubelet::put_program`].
//! - No kernel namespaces: in commands, variables and config maps, the path of a mount is replaced by its real one. In
//!   config maps, `0.0.0.0` and `127.0.0.1` become the pod's real address.
//! - No pod network: each pod has a loopback address, which is `status.podIP` in its variables. [`Kubelet::forward`]
//!   replaces services.

mod container;
mod logs;
mod network;
mod pod;
mod probe;
mod volumes;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};

use crate::api::Api;
use crate::databases::Names;
use crate::programs::Sender;
pub(crate) use network::here;
use pod::Pod;
pub(crate) use pod::names;

/// The name of the node.
pub const NODE: &str = "here";

/// The poll interval of pods.
const EVERY: Duration = Duration::from_millis(100);
/// The heartbeat interval; the controllers consider a node lost after 40 s.
const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often load balancers are given to the services of a namespace.
const BALANCERS_EVERY: Duration = Duration::from_millis(300);

/// The node; it lives as long as the test program.
pub struct Kubelet {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
}

/// State shared by pods and probes.
pub(crate) struct Shared {
    pub(crate) api: Api,
    /// The port at which the API server requests logs, for every node.
    logs: u16,
    pub(crate) folder: Utf8PathBuf,
    pub(crate) keeper: Sender,
    /// The address of each pod, by uid.
    pods: Mutex<BTreeMap<String, Ipv4Addr>>,
    /// The programs in images, by their path there.
    programs: Mutex<BTreeMap<String, Utf8PathBuf>>,
    /// The local uid and gid for a pod's uid.
    users: Mutex<BTreeMap<u64, (u32, u32)>>,
    /// Host names that are not pods.
    names: Mutex<Names>,
    /// Variables for every program in a pod.
    surroundings: Vec<(&'static str, String)>,
}

impl Shared {
    /// A free address in 127.0.0.0/8, distinct from those of other pods and concurrent test programs.
    fn new_address(&self) -> Ipv4Addr {
        // A global counter, because the nodes of two clusters share the network.
        static ADDRESSES: AtomicU32 = AtomicU32::new(1);
        let number = ADDRESSES.fetch_add(1, Ordering::SeqCst);
        let bytes = number.to_be_bytes();
        network::real(bytes[2], bytes[3])
    }

    /// The variables for every program in a pod.
    pub(crate) fn surroundings(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.surroundings.iter().cloned()
    }

    /// The local file of a program in an image; an unknown path is returned as it is.
    pub(crate) fn program(&self, image: &str, path: &str) -> Utf8PathBuf {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = programs.get(&format!("{image} {path}"));
        of_this.or_else(|| programs.get(path)).cloned().unwrap_or_else(|| Utf8PathBuf::from(path))
    }

    /// The local uid and gid of a pod, if they differ from those of the test.
    pub(crate) fn user(&self, pod: &Value) -> Option<(u32, u32)> {
        let wanted = pod["spec"]["securityContext"]["runAsUser"].as_u64()?;
        self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&wanted).copied()
    }

    /// The host names of a namespace that are not pods, with their addresses.
    pub(crate) fn names(&self, namespace: &str) -> BTreeMap<String, String> {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let here = names.iter().filter(|((there, _), _)| there == namespace);
        here.map(|((_, name), address)| (name.clone(), address.to_string())).collect()
    }

    fn address_of(&self, uid: &str) -> Option<Ipv4Addr> {
        self.pods.lock().unwrap_or_else(PoisonError::into_inner).get(uid).copied()
    }
}

impl Kubelet {
    /// Starts the node on separate threads, so that a test may call it from within a runtime.
    pub(crate) fn start(
        kubeconfig: Utf8PathBuf,
        folder: Utf8PathBuf,
        keeper: Sender,
        trusted: (String, String),
        proxy: u16,
    ) -> Self {
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let runtime = runtime.expect("start a runtime");
            runtime.block_on(async {
                let api = Api::new(&kubeconfig);
                let port = logs::lend(folder.clone(), &trusted).await;
                let surroundings = network::surroundings(&kubeconfig, &api, proxy).await;
                join(&api, NODE, port, &json!({ "topology.kubernetes.io/zone": "zone-0" }), &[]).await;
                let shared = Arc::new(Shared {
                    api,
                    logs: port,
                    folder,
                    keeper,
                    pods: Mutex::default(),
                    programs: Mutex::default(),
                    users: Mutex::default(),
                    names: Mutex::default(),
                    surroundings,
                });
                let handle = tokio::runtime::Handle::current();
                tell.send(Self { shared: shared.clone(), runtime: handle }).expect("somebody waits");
                tokio::join!(heartbeat(shared.api.clone(), NODE, Arc::default()), turn(shared, NODE, Arc::default()));
            });
        });
        told.recv().expect("the kubelet starts")
    }

    /// Installs a program at this path in every image.
    pub fn put_program(&self, path: &str, program: impl Into<Utf8PathBuf>) {
        let mut programs = self.shared.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.insert(path.to_owned(), program.into());
    }

    /// Installs another program at this path in one image.
    pub fn put_program_of(&self, image: &str, path: &str, program: impl Into<Utf8PathBuf>) {
        self.put_program(&format!("{image} {path}"), program);
    }

    /// Runs pods with this uid as a local user and group. It needs root.
    pub fn put_user(&self, user: u32, here: (u32, u32)) {
        self.shared.users.lock().unwrap_or_else(PoisonError::into_inner).insert(user.into(), here);
    }

    /// Sets a host name for the pods of a namespace, with a local address.
    pub(crate) fn put_name(&self, namespace: &str, name: &str, address: Ipv4Addr) {
        let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert((namespace.to_owned(), name.to_owned()), address);
    }

    /// Starts another node with this name and taint, whose pods are processes too, until it is lost.
    pub fn another(&self, name: &'static str, taint: &Value) -> Node {
        let node = Node { name, shared: self.shared.clone(), runtime: self.runtime.clone(), lost: Arc::default() };
        let (shared, taints) = (node.shared.clone(), [taint.clone()]);
        let labels = json!({ "topology.kubernetes.io/zone": "zone-0" });
        node.on_a_thread(move || async move { join(&shared.api, name, shared.logs, &labels, &taints).await })
            .join()
            .expect("it joins");
        node.begin();
        node
    }

    /// A free address.
    pub(crate) fn new_address(&self) -> Ipv4Addr {
        self.shared.new_address()
    }

    /// Gives the services of a namespace this address as soon as they ask for a load balancer, as the controller of a cloud does: a host
    /// name or an IP address.
    pub fn balance(&self, namespace: &str, address: &str) {
        let member = if address.parse::<std::net::IpAddr>().is_ok() { "ip" } else { "hostname" };
        let status = json!({ "status": { "loadBalancer": { "ingress": [{ member: address }] } } });
        let (shared, path) = (self.shared.clone(), format!("/api/v1/namespaces/{namespace}/services"));
        self.runtime.spawn(async move {
            loop {
                let services = shared.api.get(&path).await.unwrap_or_default();
                for service in services["items"].as_array().into_iter().flatten() {
                    let has_address = !service["status"]["loadBalancer"]["ingress"].is_null();
                    if service["spec"]["type"] == "LoadBalancer" && !has_address {
                        let name = service["metadata"]["name"].as_str().unwrap_or_default();
                        // One that was deleted since has none.
                        let _ = shared.api.call("PATCH", &format!("{path}/{name}/status"), Some(&status)).await;
                    }
                }
                tokio::time::sleep(BALANCERS_EVERY).await;
            }
        });
    }

    /// A loopback address that balances connections over the ready pods of a service.
    pub fn forward(&self, namespace: &str, service: &str, port: u16) -> SocketAddr {
        let (shared, namespace, service) = (self.shared.clone(), namespace.to_owned(), service.to_owned());
        let (tell, told) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("ask for a port");
            tell.send(listener.local_addr().expect("ask for a port")).expect("somebody waits");
            for turn in 0_usize.. {
                let Ok((mut client, _)) = listener.accept().await else { return };
                let (shared, namespace, service) = (shared.clone(), namespace.clone(), service.clone());
                tokio::spawn(async move {
                    let behind = backends(&shared, &namespace, &service, port).await;
                    // Without a ready pod the connection is closed, as a service without endpoints refuses it.
                    if behind.is_empty() {
                        return;
                    }
                    if let Ok(mut pod) = TcpStream::connect(behind[turn % behind.len()]).await {
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
                    }
                });
            }
        });
        told.recv().expect("the runtime runs")
    }
}

/// A node that a test can stop.
pub struct Node {
    name: &'static str,
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    lost: Arc<AtomicBool>,
}

impl Node {
    /// Simulates a power cut: the processes of its pods are killed, and no status is reported any more.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    /// Starts the node again, without any previous state.
    pub fn come_back(&mut self) {
        self.lost = Arc::default();
        self.begin();
    }

    fn begin(&self) {
        let (api, name, lost) = (self.shared.api.clone(), self.name, self.lost.clone());
        let lost_too = lost.clone();
        self.on_a_thread(move || heartbeat(api, name, lost_too));
        let shared = self.shared.clone();
        self.on_a_thread(move || turn(shared, name, lost));
    }

    /// Runs work that is not `Send` on a thread of its own.
    fn on_a_thread<W: Future<Output = ()>>(
        &self,
        work: impl FnOnce() -> W + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let runtime = self.runtime.clone();
        std::thread::spawn(move || runtime.block_on(work()))
    }
}

/// The ready pods of a service with their target port, from its endpoint slices.
async fn backends(shared: &Shared, namespace: &str, service: &str, port: u16) -> Vec<SocketAddr> {
    let path = format!("/api/v1/namespaces/{namespace}/services/{service}");
    let Some(object) = shared.api.get(&path).await else { return Vec::new() };
    let ports = object["spec"]["ports"].as_array().cloned().unwrap_or_default();
    let Some(name) = ports.iter().find(|one| one["port"] == port).map(|one| one["name"].clone()) else {
        return Vec::new();
    };
    let path = format!(
        "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices?labelSelector=kubernetes.io/service-name={service}"
    );
    let Some(slices) = shared.api.get(&path).await else { return Vec::new() };
    let mut found = Vec::new();
    for slice in slices["items"].as_array().into_iter().flatten() {
        let ports = slice["ports"].as_array().into_iter().flatten();
        // A port without a name has an empty name in the slice.
        let mut ports =
            ports.filter(|one| one["name"].as_str().unwrap_or_default() == name.as_str().unwrap_or_default());
        let port = ports.next().and_then(|one| one["port"].as_u64()).and_then(|port| u16::try_from(port).ok());
        for endpoint in slice["endpoints"].as_array().into_iter().flatten() {
            let is_ready = endpoint["conditions"]["ready"] != false;
            let address = endpoint["targetRef"]["uid"].as_str().and_then(|uid| shared.address_of(uid));
            if let (true, Some(address), Some(port)) = (is_ready, address, port) {
                found.push(SocketAddr::from((address, port)));
            }
        }
    }
    found
}

/// Resolves a target port: a number, the name of a container port, or the service's own port if it is not set.
pub(crate) fn container_port(pod: &Value, target: &Value, otherwise: u16) -> Option<u16> {
    if let Some(number) = target.as_u64() {
        return u16::try_from(number).ok();
    }
    let Some(name) = target.as_str() else { return Some(otherwise) };
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == name)?["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok())
}

/// Registers a ready node. `logs` is the port of its kubelet.
pub(crate) async fn join(api: &Api, name: &str, logs: u16, labels: &Value, taints: &[Value]) {
    let mut labels = labels.clone();
    (labels["kubernetes.io/hostname"], labels["kubernetes.io/os"]) = (json!(name), json!("linux"));
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": name, "labels": labels },
        "spec": { "taints": taints },
    });
    api.call("POST", "/api/v1/nodes", Some(&node)).await.expect("make the node").ok();
    let resources = json!({ "cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "100Gi" });
    let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it runs processes" });
    let status = json!({ "status": {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [ready],
        // Without a host name, which the API server would resolve by DNS first.
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": logs } },
    } });
    let path = format!("/api/v1/nodes/{name}/status");
    api.call("PATCH", &path, Some(&status)).await.expect("tell of the node").ok();
}

/// Renews the lease of a node until it is lost.
pub(crate) async fn heartbeat(api: Api, name: &str, lost: Arc<AtomicBool>) {
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}?fieldManager=kubelet&force=true"
    );
    while !lost.load(Ordering::SeqCst) {
        // Lease times are RFC 3339 with microseconds.
        let now = k8s_openapi::jiff::Timestamp::now();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "namespace": "kube-node-lease" },
            "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}") },
        });
        // A test may be restarting the API server.
        let _ = api.call("PATCH", &path, Some(&lease)).await;
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Polls the pods of a node until it is lost.
async fn turn(shared: Arc<Shared>, name: &str, lost: Arc<AtomicBool>) {
    let path = format!("/api/v1/pods?fieldSelector=spec.nodeName={name}");
    let mut pods: BTreeMap<String, Pod> = BTreeMap::new();
    loop {
        tokio::time::sleep(EVERY).await;
        if lost.load(Ordering::SeqCst) {
            for pod in pods.values_mut() {
                pod.end_at_once(&shared).await;
            }
            return;
        }
        let Ok(answer) = shared.api.call("GET", &path, None).await else { continue };
        if answer.status != 200 {
            continue;
        }
        let wanted = answer.body["items"].as_array().cloned().unwrap_or_default();
        let is_there = |uid: &str| wanted.iter().any(|pod| pod["metadata"]["uid"] == uid);
        // A pod that was deleted without a grace period is killed at once.
        for (uid, mut pod) in std::mem::take(&mut pods) {
            if is_there(&uid) {
                pods.insert(uid, pod);
            } else {
                pod.end_at_once(&shared).await;
                shared.pods.lock().unwrap_or_else(PoisonError::into_inner).remove(&uid);
            }
        }
        for object in wanted {
            let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
            let pod = pods.entry(uid.clone()).or_insert_with(|| {
                let address = shared.new_address();
                shared.pods.lock().unwrap_or_else(PoisonError::into_inner).insert(uid, address);
                Pod::new(address)
            });
            pod.turn(&shared, &object).await;
        }
    }
}
