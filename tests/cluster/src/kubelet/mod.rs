//! A node whose pods are processes of this machine: enough of a kubelet for a Deployment to end in a service that answers.
//!
//! It starts the containers of pods that the scheduler gives it, with their environment, config maps and secrets, probes them,
//! restarts them, tells the API server, and lends their logs. What it is not: there are no images (an image from
//! `missing.example` cannot be pulled, any other is there, with the programs of [`Kubelet::put_program`]), no namespaces of the kernel (a
//! mount's path is replaced by its real one in commands, variables and config maps, and in config maps the pod's own addresses, `0.0.0.0` and
//! `127.0.0.1`, by the one that it has here) and no pod network (each pod has a loopback address of its own, which it finds
//! in `status.podIP` of its variables; [`Kubelet::forward`] stands for the services).

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

/// How often it looks at its pods.
const EVERY: Duration = Duration::from_millis(100);
/// How often it says that it is there; the controllers give a node up after 40 s.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// The node; it lives as long as the test program.
pub struct Kubelet {
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
}

/// What pods and probes share.
pub(crate) struct Shared {
    pub(crate) api: Api,
    /// Where the API server asks for logs, of whichever node.
    logs: u16,
    pub(crate) folder: Utf8PathBuf,
    pub(crate) keeper: Sender,
    /// Address of each pod, by its uid.
    pods: Mutex<BTreeMap<String, Ipv4Addr>>,
    /// What images hold, by its path there.
    programs: Mutex<BTreeMap<String, Utf8PathBuf>>,
    /// Who a user of pods is on this machine, with its group.
    users: Mutex<BTreeMap<u64, (u32, u32)>>,
    /// What leads elsewhere than to pods.
    names: Mutex<Names>,
    /// What every program in a pod is told.
    surroundings: Vec<(&'static str, String)>,
}

impl Shared {
    /// An address of 127.0.0.0/8 that no other pod has, here or in a test program beside this one.
    fn new_address(&self) -> Ipv4Addr {
        // Nodes of two clusters are in one network.
        static ADDRESSES: AtomicU32 = AtomicU32::new(1);
        let number = ADDRESSES.fetch_add(1, Ordering::SeqCst);
        let bytes = number.to_be_bytes();
        network::real(bytes[2], bytes[3])
    }

    /// What every program in a pod is told by its variables.
    pub(crate) fn surroundings(&self) -> impl Iterator<Item = (&'static str, String)> {
        self.surroundings.iter().cloned()
    }

    /// The file behind a program's path in an image; else the path itself.
    pub(crate) fn program(&self, image: &str, path: &str) -> Utf8PathBuf {
        let programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        let of_this = programs.get(&format!("{image} {path}"));
        of_this.or_else(|| programs.get(path)).cloned().unwrap_or_else(|| Utf8PathBuf::from(path))
    }

    /// Who runs a pod here, where it is somebody else than we are.
    pub(crate) fn user(&self, pod: &Value) -> Option<(u32, u32)> {
        let wanted = pod["spec"]["securityContext"]["runAsUser"].as_u64()?;
        self.users.lock().unwrap_or_else(PoisonError::into_inner).get(&wanted).copied()
    }

    /// The names of a namespace that lead elsewhere than to pods.
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
    /// Starts it on threads of its own, so that a test may ask for it from within a runtime.
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
                join(&api, NODE, port, &[]).await;
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

    /// From now on every image holds this program at this path.
    pub fn put_program(&self, path: &str, program: impl Into<Utf8PathBuf>) {
        let mut programs = self.shared.programs.lock().unwrap_or_else(PoisonError::into_inner);
        programs.insert(path.to_owned(), program.into());
    }

    /// From now on one image holds another program at this path.
    pub fn put_program_of(&self, image: &str, path: &str, program: impl Into<Utf8PathBuf>) {
        self.put_program(&format!("{image} {path}"), program);
    }

    /// From now on pods of a user run as this user and group of the machine, which takes that we are root.
    pub fn put_user(&self, user: u32, here: (u32, u32)) {
        self.shared.users.lock().unwrap_or_else(PoisonError::into_inner).insert(user.into(), here);
    }

    /// From now on a name leads pods of a namespace to an address of this machine.
    pub(crate) fn put_name(&self, namespace: &str, name: &str, address: Ipv4Addr) {
        let mut names = self.shared.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.insert((namespace.to_owned(), name.to_owned()), address);
    }

    /// One more node, of this name and with this taint, whose pods are processes too, until it is lost.
    pub fn another(&self, name: &'static str, taint: &Value) -> Node {
        let node = Node { name, shared: self.shared.clone(), runtime: self.runtime.clone(), lost: Arc::default() };
        let (shared, taints) = (node.shared.clone(), [taint.clone()]);
        node.on_a_thread(move || async move { join(&shared.api, name, shared.logs, &taints).await })
            .join()
            .expect("it joins");
        node.begin();
        node
    }

    /// An address that no pod has.
    pub(crate) fn new_address(&self) -> Ipv4Addr {
        self.shared.new_address()
    }

    /// An address on loopback behind which the ready pods of a service take turns.
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
                    // A connection that finds nobody is closed, as a service without endpoints refuses it.
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

/// A node that may be lost.
pub struct Node {
    name: &'static str,
    shared: Arc<Shared>,
    runtime: tokio::runtime::Handle,
    lost: Arc<AtomicBool>,
}

impl Node {
    /// Ends it as a power cut does: its pods' programs are killed, and nobody says anything of them any more.
    pub fn lose(&self) {
        self.lost.store(true, Ordering::SeqCst);
    }

    /// The machine runs again, with nothing of before.
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

    /// For work that cannot be sent from one thread to another.
    fn on_a_thread<W: Future<Output = ()>>(
        &self,
        work: impl FnOnce() -> W + Send + 'static,
    ) -> std::thread::JoinHandle<()> {
        let runtime = self.runtime.clone();
        std::thread::spawn(move || runtime.block_on(work()))
    }
}

/// The ready pods of a service with the port that it means, as the cluster's controllers have found them.
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
        // A port without a name is shown with an empty one.
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

/// A number, the name of a container's port, or nothing: then it is the service's own.
pub(crate) fn container_port(pod: &Value, target: &Value, otherwise: u16) -> Option<u16> {
    if let Some(number) = target.as_u64() {
        return u16::try_from(number).ok();
    }
    let Some(name) = target.as_str() else { return Some(otherwise) };
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let mut ports = containers.flat_map(|one| one["ports"].as_array().into_iter().flatten());
    ports.find(|port| port["name"] == name)?["containerPort"].as_u64().and_then(|port| u16::try_from(port).ok())
}

/// Makes a node and says that it is ready.
async fn join(api: &Api, name: &str, logs: u16, taints: &[Value]) {
    let node = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": { "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "topology.kubernetes.io/zone": "zone-0" },
        },
        "spec": { "taints": taints },
    });
    api.call("POST", "/api/v1/nodes", Some(&node)).await.expect("make the node").ok();
    let resources = json!({ "cpu": "64", "memory": "256Gi", "pods": "500", "ephemeral-storage": "100Gi" });
    let ready = json!({ "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "it runs processes" });
    let status = json!({ "status": {
        "capacity": resources,
        "allocatable": resources,
        "conditions": [ready],
        // Without a host name, which the API server would look up in the DNS first.
        "addresses": [{ "type": "InternalIP", "address": "127.0.0.1" }],
        "daemonEndpoints": { "kubeletEndpoint": { "Port": logs } },
    } });
    let path = format!("/api/v1/nodes/{name}/status");
    api.call("PATCH", &path, Some(&status)).await.expect("tell of the node").ok();
}

/// Says again and again that a node is there.
async fn heartbeat(api: Api, name: &str, lost: Arc<AtomicBool>) {
    let path = format!(
        "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}?fieldManager=kubelet&force=true"
    );
    while !lost.load(Ordering::SeqCst) {
        // A lease's time is RFC 3339 with microseconds.
        let now = k8s_openapi::jiff::Timestamp::now();
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": { "name": name, "namespace": "kube-node-lease" },
            "spec": { "holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": format!("{now:.6}") },
        });
        // The API server may just be restarted by a test.
        let _ = api.call("PATCH", &path, Some(&lease)).await;
        tokio::time::sleep(HEARTBEAT).await;
    }
}

/// Looks at a node's pods until it is lost.
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
        // A pod that was removed without being asked is ended without being asked.
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
