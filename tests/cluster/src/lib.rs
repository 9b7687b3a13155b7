//! A real Kubernetes control plane for tests: etcd, API server, controller manager and scheduler as their makers wrote them, on
//! loopback, with nodes that are simulated by kwok and one node, [`kubelet`], whose pods are real processes of this machine.
//!
//! One control plane serves one test program ([`Cluster::shared`]); each test takes a namespace of its own. `build` beside this
//! crate's manifest makes the programs, once per machine. Everything ends with the test program, however it ends.

mod api;
mod databases;
mod gateway;
pub mod kubelet;
pub mod metrics;
#[path = "../../src/ports.rs"]
pub mod ports;
mod programs;
mod tls;
mod trust;
pub mod webhook;

use std::collections::BTreeSet;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};

pub use api::Api;
use kubelet::Kubelet;
use metrics::Metrics;
use ports::Ports;
use programs::{Keeper, Programs};
use trust::Authority;
use webhook::Verdict;

/// A start that something else of this machine disturbed is tried again.
const STARTS: u32 = 3;
/// The time until all of them say that they are ready; a busy machine with two cores takes 20 seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// One control plane, and the node whose pods are processes.
pub struct Cluster {
    folder: Utf8PathBuf,
    url: String,
    authority: Authority,
    programs: Programs,
    keeper: Keeper,
    kubelet: OnceLock<Kubelet>,
    metrics: OnceLock<Metrics>,
    /// Whose kinds were added.
    defined: Mutex<BTreeSet<String>>,
    namespaces: AtomicU32,
    /// The API server's process, and how it was started.
    api_server: Mutex<(u32, Vec<String>)>,
    /// Where the network of pods is reached.
    proxy: u16,
    _ports: Ports,
}

impl Cluster {
    /// The control plane of this test program, started for the first who asks. `None`, said loudly, where the programs are not
    /// built, unless everything must be there.
    pub fn shared() -> Option<&'static Cluster> {
        static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
        Self::once(&SHARED)
    }

    /// Another one, for what goes on between two.
    pub fn second() -> Option<&'static Cluster> {
        static SECOND: OnceLock<Option<Cluster>> = OnceLock::new();
        Self::once(&SECOND)
    }

    #[allow(clippy::print_stderr)]
    fn once(place: &'static OnceLock<Option<Cluster>>) -> Option<&'static Cluster> {
        place
            .get_or_init(|| match Programs::find() {
                Ok(programs) => Some(Self::start(programs)),
                Err(why) => {
                    let is_set = |name: &str| std::env::var_os(name).is_some();
                    let required = is_set("TEXTNLP_TESTS_REQUIRE_TOOLS") && !is_set("TEXTNLP_TESTS_NO_CLUSTER");
                    assert!(!required, "{why}");
                    eprintln!("LEFT OUT: {why}");
                    None
                }
            })
            .as_ref()
    }

    fn start(programs: Programs) -> Self {
        let mut failures = Vec::new();
        for _ in 0..STARTS {
            match Self::try_start(&programs) {
                Ok(cluster) => return cluster,
                Err(why) => failures.push(why),
            }
        }
        panic!("the control plane does not start:\n{}", failures.join("\n"));
    }

    fn try_start(programs: &Programs) -> Result<Self, String> {
        let keeper = Keeper::new();
        let folder = keeper.folder().to_owned();
        let authority = Authority::new();
        let ports = Ports::ask(4);
        let [etcd, peer, secure, proxy] = [0, 1, 2, 3].map(|n| ports.numbers()[n]);
        let url = format!("https://127.0.0.1:{secure}");
        let file = |name: &str| folder.join(name);
        let write = |name: &str, text: &str| std::fs::write(file(name), text).expect("write a file of the cluster");
        let (server, server_key) = authority.server(&["127.0.0.1", "localhost", "kubernetes.default.svc", "10.0.0.1"]);
        let (signing, verifying) = trust::signing_key();
        write("ca.crt", authority.pem());
        write("ca.key", &authority.key_pem());
        write("server.crt", &server);
        write("server.key", &server_key);
        // Whom servers beside the API server know it by.
        let front = Authority::new();
        let (client, client_key) = front.client("front-proxy-client", &[]);
        write("front-ca.crt", front.pem());
        write("front.crt", &client);
        write("front.key", &client_key);
        write("tokens.key", &signing);
        write("tokens.pub", &verifying);
        let cluster = Self {
            folder: folder.clone(),
            url: url.clone(),
            authority,
            programs: programs.clone(),
            keeper,
            kubelet: OnceLock::new(),
            metrics: OnceLock::new(),
            defined: Mutex::default(),
            namespaces: AtomicU32::new(0),
            api_server: Mutex::default(),
            proxy,
            _ports: ports,
        };
        let admin = cluster.kubeconfig("admin", &["system:masters"]);

        let client = format!("http://127.0.0.1:{etcd}");
        let between = format!("http://127.0.0.1:{peer}");
        cluster.run(
            "etcd",
            &[
                &format!("--data-dir={}", file("etcd-data")),
                &format!("--listen-client-urls={client}"),
                &format!("--advertise-client-urls={client}"),
                &format!("--listen-peer-urls={between}"),
                &format!("--initial-advertise-peer-urls={between}"),
                &format!("--initial-cluster=default={between}"),
                // Nothing in it outlives the tests.
                "--unsafe-no-fsync",
                "--log-level=error",
            ],
        );
        let arguments = [
            format!("--etcd-servers={client}"),
            format!("--secure-port={secure}"),
            "--bind-address=127.0.0.1".to_owned(),
            format!("--cert-dir={folder}"),
            format!("--tls-cert-file={}", file("server.crt")),
            format!("--tls-private-key-file={}", file("server.key")),
            format!("--client-ca-file={}", file("ca.crt")),
            format!("--requestheader-client-ca-file={}", file("front-ca.crt")),
            "--requestheader-allowed-names=front-proxy-client".to_owned(),
            "--requestheader-username-headers=X-Remote-User".to_owned(),
            "--requestheader-group-headers=X-Remote-Group".to_owned(),
            "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
            format!("--proxy-client-cert-file={}", file("front.crt")),
            format!("--proxy-client-key-file={}", file("front.key")),
            "--authorization-mode=RBAC".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("tokens.pub")),
            format!("--service-account-signing-key-file={}", file("tokens.key")),
            "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
            "--allow-privileged".to_owned(),
            "--max-requests-inflight=1000".to_owned(),
            "--watch-cache=true".to_owned(),
            "--profiling=false".to_owned(),
            // As it is from 1.35 on.
            "--feature-gates=ImageVolume=true".to_owned(),
        ];
        cluster.lock_api_server().1 = arguments.to_vec();
        cluster.start_api_server()?;
        let kubeconfig = format!("--kubeconfig={admin}");
        cluster.run(
            "kube-controller-manager",
            &[
                &kubeconfig,
                "--leader-elect=false",
                "--secure-port=0",
                &format!("--root-ca-file={}", file("ca.crt")),
                &format!("--service-account-private-key-file={}", file("tokens.key")),
                &format!("--cluster-signing-cert-file={}", file("ca.crt")),
                &format!("--cluster-signing-key-file={}", file("ca.key")),
                // Tests of autoscaling do not wait for the defaults, which are minutes.
                "--horizontal-pod-autoscaler-sync-period=2s",
                "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
                "--horizontal-pod-autoscaler-downscale-stabilization=5s",
            ],
        );
        cluster.run("kube-scheduler", &[&kubeconfig, "--leader-elect=false", "--secure-port=0"]);
        // The controllers have begun when a namespace gets what every namespace gets.
        cluster.until_ready("kube-controller-manager", |cluster| {
            cluster.kubectl(&["get", "serviceaccount", "default", "--namespace=default"]).status.success()
        })?;
        Ok(cluster)
    }

    /// Starts the API server, again after [`Self::stop_api_server`], where it was.
    pub fn start_api_server(&self) -> Result<(), String> {
        let mut running = self.lock_api_server();
        running.0 = self.run("kube-apiserver", &running.1.iter().map(String::as_str).collect::<Vec<_>>());
        drop(running);
        self.until_ready("kube-apiserver", |cluster| {
            cluster.kubectl(&["get", "--raw", "/readyz"]).stdout.starts_with(b"ok")
        })
    }

    /// Ends the API server at once, as a lost machine would; what it answered stays in etcd.
    pub fn stop_api_server(&self) {
        self.keeper.end(self.lock_api_server().0);
    }

    fn lock_api_server(&self) -> std::sync::MutexGuard<'_, (u32, Vec<String>)> {
        self.api_server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, program: &str, arguments: &[&str]) -> u32 {
        let log = std::fs::File::create(self.log(program)).expect("make a log");
        let mut command = Command::new(self.programs.path(program));
        if program == "kube-apiserver" {
            // Nobody leads to the addresses of services; what is on loopback needs nobody.
            command.env("HTTPS_PROXY", format!("http://127.0.0.1:{}", self.proxy));
        }
        command.args(arguments).current_dir(&self.folder).stdout(log.try_clone().expect("share a log")).stderr(log);
        self.keeper.spawn(&mut command)
    }

    fn log(&self, program: &str) -> Utf8PathBuf {
        self.folder.join(format!("{program}.log"))
    }

    fn until_ready(&self, program: &str, look: impl Fn(&Self) -> bool) -> Result<(), String> {
        let until = Instant::now() + PATIENCE;
        while !look(self) {
            if Instant::now() > until || self.keeper.lost_one() {
                let log = std::fs::read_to_string(self.log(program)).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(20).collect();
                return Err(format!(
                    "{program} is not ready:\n{}",
                    last.into_iter().rev().collect::<Vec<_>>().join("\n")
                ));
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        Ok(())
    }

    /// Where the API server answers.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The authority that signed its certificate, PEM.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// A kubeconfig file for a user with these groups; `admin` of `system:masters` may do anything.
    pub fn kubeconfig(&self, user: &str, groups: &[&str]) -> Utf8PathBuf {
        let path = self.folder.join(format!("{user}.kubeconfig"));
        let (certificate, key) = self.authority.client(user, groups);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "test", "cluster": {
                "server": self.url,
                "certificate-authority-data": trust::base64(self.ca_pem()),
            }}],
            "users": [{ "name": user, "user": {
                "client-certificate-data": trust::base64(&certificate),
                "client-key-data": trust::base64(&key),
            }}],
            "contexts": [{ "name": "test", "context": { "cluster": "test", "user": user, "namespace": "default" } }],
            "current-context": "test",
        });
        // A file that is read while it is written again is a file of two halves.
        let fresh = self.folder.join(format!("{user}.{}.fresh", self.namespaces.fetch_add(1, Ordering::SeqCst)));
        std::fs::write(&fresh, config.to_string()).expect("write a kubeconfig");
        std::fs::rename(&fresh, &path).expect("put a kubeconfig in its place");
        path
    }

    /// The administrator's kubeconfig file.
    pub fn admin(&self) -> Utf8PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A name for a namespace that no other test uses. It is not made.
    pub fn namespace_name(&self, about: &str) -> String {
        format!("{about}-{}", self.namespaces.fetch_add(1, Ordering::SeqCst))
    }

    /// A namespace of its own.
    pub fn namespace(&self, about: &str) -> String {
        let name = self.namespace_name(about);
        let made = self.kubectl(&["create", "namespace", &name]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Pods need its service account, which a controller makes.
        let until = Instant::now() + PATIENCE;
        while !self.kubectl(&["get", "serviceaccount", "default", "--namespace", &name]).status.success() {
            assert!(Instant::now() < until, "namespace {name} gets no service account");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        name
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(self.programs.path("kubectl"));
        command.env("KUBECONFIG", self.admin()).env("HOME", &self.folder).args(arguments);
        command.output().expect("start kubectl")
    }

    /// Helm as the administrator, with a home of its own; `None` where it is not built, unless everything must be there.
    pub fn helm(&self) -> Option<Command> {
        let there = programs::asked("--helm");
        assert!(
            there.is_some() || std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(),
            "Helm is not built: run tests/cluster/build"
        );
        let mut command = Command::new(there?);
        command.env("KUBECONFIG", self.admin()).env("HOME", &self.folder).env("HELM_NAMESPACE", "default");
        Some(command)
    }

    /// The folder of what the newest versions of Kubernetes say of their objects, a file a version.
    pub fn schemas() -> Option<Utf8PathBuf> {
        programs::asked("--schemas")
    }

    /// Adds the kinds of others, `gateway-api`, `cloudnative-pg` or `prometheus-operator`, as their makers define them, once; whether they are
    /// there, which they must be where everything must.
    pub fn define(&self, whose: &str) -> bool {
        let mut defined = self.defined.lock().unwrap_or_else(PoisonError::into_inner);
        if defined.contains(whose) {
            return true;
        }
        let Some(folder) = programs::asked("--definitions") else {
            let required = std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_some();
            assert!(!required, "the definitions are not there: run tests/cluster/build");
            return false;
        };
        let folder = folder.join(whose);
        let added = ["apply", "--server-side", "--force-conflicts", "-f", folder.as_str()];
        let out = self.kubectl(&added);
        assert!(out.status.success(), "kubectl {added:?}: {}", String::from_utf8_lossy(&out.stderr));
        // Established is not served yet, and kubectl ends at once where nobody has said anything of a definition.
        let out = self.kubectl(&["get", "-f", folder.as_str(), "-o", "json"]);
        let found: Value = serde_json::from_slice(&out.stdout).expect("what was applied");
        let definitions = found["items"].as_array().cloned().unwrap_or_else(|| vec![found]);
        let began = Instant::now();
        for spec in definitions.iter().map(|one| &one["spec"]) {
            let versions =
                spec["versions"].as_array().into_iter().flatten().filter(|version| version["served"] == true);
            for version in versions.filter_map(|version| version["name"].as_str()) {
                let word = |value: &Value| value.as_str().unwrap_or_default().to_owned();
                let list = format!("/apis/{}/{version}/{}", word(&spec["group"]), word(&spec["names"]["plural"]));
                while !self.kubectl(&["get", "--raw", &list]).status.success() {
                    assert!(began.elapsed() < Duration::from_secs(60), "{list} is not served");
                    std::thread::sleep(Duration::from_millis(200));
                }
            }
        }
        defined.insert(whose.to_owned());
        true
    }

    /// From now on a controller of the Gateway API looks after the Gateway `NAMESPACE/web`, which it makes: clients of `host` come by the port
    /// that it answers with, with a certificate of this cluster's authority, and routes of namespaces with this label are taken. `None` where the
    /// Gateway API cannot be had.
    pub fn gateway(&self, namespace: &str, host: &str, label: (&str, &str)) -> Option<u16> {
        if !self.define("gateway-api") {
            return None;
        }
        let port = gateway::start(self.admin(), namespace.to_owned(), self.authority.server(&[host]));
        self.feed(&["apply"], &gateway::object(namespace, host, port, label));
        Some(port)
    }

    /// Gives kubectl a text, as `kubectl apply -f -` takes it, and expects that it succeeds.
    #[track_caller]
    pub fn feed(&self, arguments: &[&str], text: &Value) -> String {
        let file = self.folder.join(format!("fed-{}.json", self.namespaces.fetch_add(1, Ordering::SeqCst)));
        std::fs::write(&file, text.to_string()).expect("write a manifest");
        let out = self.kubectl(&[arguments, &["-f", file.as_str()]].concat());
        assert!(out.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Simulates nodes by kwok: `count` of them, which say that all their pods run. Only pods that tolerate the taint
    /// `kwok.x-k8s.io/node` come there.
    pub fn fake_nodes(&self, count: u32) {
        static RUNS: OnceLock<()> = OnceLock::new();
        RUNS.get_or_init(|| {
            self.run(
                "kwok",
                &[
                    &format!("--kubeconfig={}", self.admin()),
                    "--manage-all-nodes=false",
                    "--manage-nodes-with-annotation-selector=kwok.x-k8s.io/node=fake",
                    "--server-address=127.0.0.1:0",
                    // Without leases its nodes are taken for lost after a while.
                    "--node-lease-duration-seconds=40",
                ],
            );
        });
        let nodes: Vec<Value> = (0..count)
            .map(|number| {
                let capacity = json!({ "cpu": "32", "memory": "256Gi", "pods": "110" });
                json!({
                    "apiVersion": "v1",
                    "kind": "Node",
                    "metadata": {
                        "name": format!("fake-{number}"),
                        "annotations": { "kwok.x-k8s.io/node": "fake", "node.alpha.kubernetes.io/ttl": "0" },
                        "labels": {
                            "kubernetes.io/hostname": format!("fake-{number}"),
                            "topology.kubernetes.io/zone": format!("zone-{}", number % 3),
                            "type": "kwok",
                        },
                    },
                    "spec": { "taints": [{ "key": "kwok.x-k8s.io/node", "value": "fake", "effect": "NoSchedule" }] },
                    "status": { "allocatable": capacity, "capacity": capacity },
                })
            })
            .collect();
        self.feed(&["apply"], &json!({ "apiVersion": "v1", "kind": "List", "items": nodes }));
    }

    /// The node whose pods are processes of this machine; it joins the cluster when it is asked for first.
    pub fn kubelet(&self) -> &Kubelet {
        self.kubelet.get_or_init(|| {
            let trusted = self.authority.server(&["127.0.0.1"]);
            Kubelet::start(self.admin(), self.folder.join("pods"), self.keeper.sender(), trusted, self.proxy)
        })
    }

    /// From now on somebody makes databases of `Cluster` objects and volumes of claims, by PostgreSQL's programs in this folder; `user` and
    /// its group are whom they run as where we are root.
    pub fn databases(&'static self, programs: std::path::PathBuf, user: Option<(u32, u32)>) {
        static RUNS: OnceLock<()> = OnceLock::new();
        RUNS.get_or_init(|| databases::start(self, programs, user));
    }

    /// What autoscalers are told of pods; the API server leads them there from the first call on.
    pub fn metrics(&self) -> &Metrics {
        self.metrics.get_or_init(|| {
            let metrics = Metrics::start(self.admin(), self.authority.server(&["localhost"]));
            let mut items = vec![json!({
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": { "name": "metrics", "namespace": "kube-system" },
                "spec": { "type": "ExternalName", "externalName": "localhost" },
            })];
            for (group, version, _) in metrics::SERVED {
                items.push(json!({
                    "apiVersion": "apiregistration.k8s.io/v1",
                    "kind": "APIService",
                    "metadata": { "name": format!("{version}.{group}") },
                    "spec": {
                        "group": group, "version": version, "groupPriorityMinimum": 100, "versionPriority": 100, "insecureSkipTLSVerify": true,
                        "service": { "name": "metrics", "namespace": "kube-system", "port": metrics.port },
                    },
                }));
            }
            self.feed(&["apply"], &json!({ "apiVersion": "v1", "kind": "List", "items": items }));
            metrics
        })
    }

    /// Has everything that is made or changed in a namespace shown to a webhook of somebody's, which decides. `plural` is as in `configmaps`.
    pub fn webhook(&self, namespace: &str, plural: &str, decide: impl Fn(&Value) -> Verdict + Send + Sync + 'static) {
        let port = webhook::start(self.authority.server(&["localhost"]), decide);
        self.register_webhook(namespace, plural, port);
    }

    /// The same where nobody may answer on this port.
    pub fn register_webhook(&self, namespace: &str, plural: &str, port: u16) {
        use base64::Engine;
        let authority = base64::engine::general_purpose::STANDARD.encode(self.ca_pem());
        self.feed(
            &["apply"],
            &json!({
                "apiVersion": "admissionregistration.k8s.io/v1",
                "kind": "MutatingWebhookConfiguration",
                "metadata": { "name": format!("of-{namespace}") },
                "webhooks": [{
                    "name": "somebody.example.com",
                    "clientConfig": { "url": format!("https://localhost:{port}/"), "caBundle": authority },
                    "rules": [{ "apiGroups": ["*"], "apiVersions": ["*"], "operations": ["CREATE", "UPDATE"], "resources": [plural] }],
                    "namespaceSelector": { "matchLabels": { "kubernetes.io/metadata.name": namespace } },
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "failurePolicy": "Fail",
                    "timeoutSeconds": 5,
                }],
            }),
        );
    }

    /// A plain client of its API, for what tests look at behind the provider's back.
    pub fn api(&self) -> Api {
        Api::new(&self.admin())
    }

    /// Its folder: programs' logs, kubeconfig files, the pods' files.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }
}
