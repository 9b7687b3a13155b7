//! A real Kubernetes control plane for tests: unmodified etcd, API server, controller manager and scheduler on
//! loopback. It has one node, [`kubelet`], whose pods are real local processes, and optional nodes that run nothing,
//! [`hollow`].
//!
//! A test program has one control plane ([`Cluster::shared`]); each test uses a namespace of its own. `build` beside
//! this crate's manifest installs the programs, once per machine. All processes end with the test program, however it
//! ends.
#![forbid(unsafe_code)]

mod api;
mod authenticator;
mod databases;
mod gateway;
pub mod hollow;
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
use authenticator::Authenticator;
use kubelet::Kubelet;
use metrics::Metrics;
use ports::Ports;
use programs::{Keeper, Programs};
use trust::Authority;
use webhook::Verdict;

/// The number of attempts to start: another process on the machine may take a port.
const STARTS: u32 = 3;
/// The timeout until all components are ready; a busy machine with two cores takes 20 seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// A control plane, and the node whose pods are processes.
pub struct Cluster {
    folder: Utf8PathBuf,
    url: String,
    authority: Authority,
    programs: Programs,
    authenticator: Authenticator,
    keeper: Keeper,
    kubelet: OnceLock<Kubelet>,
    /// The number of hollow nodes.
    hollow: Mutex<u32>,
    metrics: OnceLock<Metrics>,
    /// The projects whose kinds were added.
    defined: Mutex<BTreeSet<String>>,
    namespaces: AtomicU32,
    /// The API server's process id and arguments.
    api_server: Mutex<(u32, Vec<String>)>,
    /// The port of the proxy that replaces the pod network.
    proxy: u16,
    _ports: Ports,
}

impl Cluster {
    /// The control plane of this test program, started on the first call. `None` with a message if the programs are not
    /// installed; a failure if the tests require all tools.
    pub fn shared() -> Option<&'static Cluster> {
        static SHARED: OnceLock<Option<Cluster>> = OnceLock::new();
        Self::once(&SHARED)
    }

    /// A second control plane, for tests across two clusters.
    pub fn second() -> Option<&'static Cluster> {
        static SECOND: OnceLock<Option<Cluster>> = OnceLock::new();
        Self::once(&SECOND)
    }

    /// A third one.
    pub fn third() -> Option<&'static Cluster> {
        static THIRD: OnceLock<Option<Cluster>> = OnceLock::new();
        Self::once(&THIRD)
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
        // The front proxy authority, by which aggregated servers authenticate the API server.
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
            authenticator: Authenticator::default(),
            keeper,
            kubelet: OnceLock::new(),
            hollow: Mutex::default(),
            metrics: OnceLock::new(),
            defined: Mutex::default(),
            namespaces: AtomicU32::new(0),
            api_server: Mutex::default(),
            proxy,
            _ports: ports,
        };
        let admin = cluster.kubeconfig("admin", &["system:masters"]);

        let reviews = cluster.authenticator.start(cluster.authority.server(&["localhost"]));
        let reviewer = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "reviewer",
            "clusters": [{ "name": "reviewer", "cluster": {
                "server": format!("https://localhost:{reviews}/"), "certificate-authority": file("ca.crt"),
            } }],
            "users": [{ "name": "api-server", "user": {} }],
            "contexts": [{ "name": "reviewer", "context": { "cluster": "reviewer", "user": "api-server" } }],
        });
        write("reviewer.kubeconfig", &reviewer.to_string());
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
                // The data need not survive a crash.
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
            format!("--authentication-token-webhook-config-file={}", file("reviewer.kubeconfig")),
            "--authentication-token-webhook-version=v1".to_owned(),
            "--authentication-token-webhook-cache-ttl=1s".to_owned(),
            "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
            format!("--service-account-key-file={}", file("tokens.pub")),
            format!("--service-account-signing-key-file={}", file("tokens.key")),
            "--service-cluster-ip-range=10.0.0.0/16".to_owned(),
            "--allow-privileged".to_owned(),
            "--max-requests-inflight=1000".to_owned(),
            "--watch-cache=true".to_owned(),
            "--profiling=false".to_owned(),
            // The default since Kubernetes 1.35.
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
                // The defaults are minutes, too long for tests of autoscaling.
                "--horizontal-pod-autoscaler-sync-period=2s",
                "--horizontal-pod-autoscaler-initial-readiness-delay=1s",
                "--horizontal-pod-autoscaler-downscale-stabilization=5s",
            ],
        );
        cluster.run("kube-scheduler", &[&kubeconfig, "--leader-elect=false", "--secure-port=0"]);
        // The controller manager is ready when it has created a namespace's default objects.
        cluster.until_ready("kube-controller-manager", |cluster| {
            cluster.kubectl(&["get", "serviceaccount", "default", "--namespace=default"]).status.success()
        })?;
        Ok(cluster)
    }

    /// Starts the API server, after [`Self::stop_api_server`] at the same address.
    pub fn start_api_server(&self) -> Result<(), String> {
        let mut running = self.lock_api_server();
        running.0 = self.run("kube-apiserver", &running.1.iter().map(String::as_str).collect::<Vec<_>>());
        drop(running);
        self.until_ready("kube-apiserver", |cluster| {
            cluster.kubectl(&["get", "--raw", "/readyz"]).stdout.starts_with(b"ok")
        })
    }

    /// Kills the API server, like a lost machine. Its data remains in etcd.
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
            // Pods and services are reachable only through the proxy; loopback addresses are reached directly.
            let proxy = format!("http://127.0.0.1:{}", self.proxy);
            command.env("HTTPS_PROXY", &proxy).env("HTTP_PROXY", proxy);
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

    /// The address of the API server.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// The authority of its certificate, as PEM.
    pub fn ca_pem(&self) -> &str {
        self.authority.pem()
    }

    /// Writes a kubeconfig for a user with these groups; `admin` of `system:masters` has all permissions.
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
        // The file is replaced atomically, because another process may be reading it.
        let fresh = self.folder.join(format!("{user}.{}.fresh", self.namespaces.fetch_add(1, Ordering::SeqCst)));
        std::fs::write(&fresh, config.to_string()).expect("write a kubeconfig");
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&fresh, private).expect("close a kubeconfig to others");
        std::fs::rename(&fresh, &path).expect("put a kubeconfig in its place");
        path
    }

    /// The administrator's kubeconfig.
    pub fn admin(&self) -> Utf8PathBuf {
        self.folder.join("admin.kubeconfig")
    }

    /// A unique name for a namespace, which is not created.
    pub fn namespace_name(&self, about: &str) -> String {
        format!("{about}-{}", self.namespaces.fetch_add(1, Ordering::SeqCst))
    }

    /// Creates a namespace with a unique name.
    pub fn namespace(&self, about: &str) -> String {
        let name = self.namespace_name(about);
        let made = self.kubectl(&["create", "namespace", &name]);
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        // Pods need the default service account, which a controller creates.
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

    /// A Helm command as the administrator, with a home of its own. `None` if Helm is not installed; a failure if the
    /// tests require all tools.
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

    /// The folder with the OpenAPI schemas of recent Kubernetes versions, one file per version.
    pub fn schemas() -> Option<Utf8PathBuf> {
        programs::asked("--schemas")
    }

    /// Adds the kinds of a project once: `gateway-api`, `cloudnative-pg`, `prometheus-operator` or `flux`. Returns false if
    /// their definitions are not installed; a failure if the tests require all tools.
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
        // An established definition may not be served yet, and `kubectl wait` fails at once without a status.
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

    /// Creates the Gateway `NAMESPACE/web` and starts its controller. It listens for clients of `host` at the returned
    /// port, with a certificate of this cluster's authority, and accepts routes of namespaces with this label. `None`
    /// if the Gateway API is not available.
    pub fn gateway(&self, namespace: &str, host: &str, label: (&str, &str)) -> Option<u16> {
        if !self.define("gateway-api") {
            return None;
        }
        let port = gateway::start(self.admin(), namespace.to_owned(), self.authority.server(&[host]));
        self.feed(&["apply"], &gateway::object(namespace, host, port, label));
        Some(port)
    }

    /// Runs kubectl with a document on its input, as `kubectl apply -f -` does, and expects success.
    #[track_caller]
    pub fn feed(&self, arguments: &[&str], text: &Value) -> String {
        let file = self.folder.join(format!("fed-{}.json", self.namespaces.fetch_add(1, Ordering::SeqCst)));
        std::fs::write(&file, text.to_string()).expect("write a manifest");
        let out = self.kubectl(&[arguments, &["-f", file.as_str()]].concat());
        assert!(out.status.success(), "kubectl {arguments:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    /// Adds hollow nodes, which run nothing and report all their pods as running, up to this count. Only pods that
    /// tolerate the taint [`hollow::HOLLOW`] are bound to them.
    pub fn hollow_nodes(&self, count: u32) {
        let mut present = self.hollow.lock().unwrap_or_else(PoisonError::into_inner);
        if *present < count {
            hollow::start(self.admin(), *present..count);
            *present = count;
        }
    }

    /// The node whose pods are local processes; it joins the cluster on the first call.
    pub fn kubelet(&self) -> &Kubelet {
        self.kubelet.get_or_init(|| {
            let trusted = self.authority.server(&["127.0.0.1"]);
            Kubelet::start(self.admin(), self.folder.join("pods"), self.keeper.sender(), trusted, self.proxy)
        })
    }

    /// Starts the controller of `Cluster` objects and volume claims, with PostgreSQL's programs in this folder. `user`
    /// is the uid and gid to run as if the tests run as root.
    pub fn databases(&'static self, programs: std::path::PathBuf, user: Option<(u32, u32)>) {
        static RUNS: OnceLock<()> = OnceLock::new();
        RUNS.get_or_init(|| databases::start(self, programs, user));
    }

    /// The metrics server for autoscalers, registered with the API server on the first call.
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

    /// Registers an admission webhook for changes in a namespace, which `decide` answers. `plural` is a resource such
    /// as `configmaps`.
    pub fn webhook(&self, namespace: &str, plural: &str, decide: impl Fn(&Value) -> Verdict + Send + Sync + 'static) {
        let port = webhook::start(self.authority.server(&["localhost"]), decide);
        self.register_webhook(namespace, plural, port);
    }

    /// Lets `identify` say whose a token is: a user and groups. It is asked for tokens that no service account has.
    pub fn identify(&self, identify: impl Fn(&str) -> Option<(String, Vec<String>)> + Send + Sync + 'static) {
        self.authenticator.add(Box::new(identify));
    }

    /// Registers a webhook at a port where possibly no server listens.
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

    /// A plain API client, to inspect objects without the provider.
    pub fn api(&self) -> Api {
        Api::new(&self.admin())
    }

    /// The cluster's folder: logs, kubeconfig files and the pods' files.
    pub fn folder(&self) -> &Utf8Path {
        &self.folder
    }
}
