//! An operator with a kubeconfig, a namespace and a database that somebody else runs.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::OnceLock;

use camino::Utf8PathBuf;
use serde_json::Value;
use textnlp_cluster::Cluster;
use textnlp_tests::{Said, Sandbox, program};

#[path = "../../../server/tests/support/postgres.rs"]
pub(crate) mod postgres;

/// Where the program is in its image.
pub(crate) const PROGRAM: &str = "/usr/local/bin/textnlp-deploy";

/// An image with a digest, as production requires. Nodes of the tests look at the whole name only.
pub(crate) fn pinned(image: &str) -> String {
    let digest: String = image.bytes().rev().take(32).map(|byte| format!("{byte:02x}")).collect();
    format!("{image}@sha256:{digest:0>64}")
}

/// A copy of the program that pods of another user can run too: that of a build may be in a private folder.
pub(crate) fn program_for_pods() -> Utf8PathBuf {
    static COPY: OnceLock<Utf8PathBuf> = OnceLock::new();
    let copy = || {
        let copy = Cluster::shared().unwrap().folder().join("textnlp-deploy");
        std::fs::copy(program(), &copy).unwrap();
        copy
    };
    COPY.get_or_init(copy).clone()
}

/// An operator with a kubeconfig, a namespace and a database.
pub(crate) struct Operator {
    pub(crate) cluster: &'static Cluster,
    pub(crate) sandbox: Sandbox,
    pub(crate) namespace: String,
    pub(crate) url: String,
    pub(crate) sets: Vec<String>,
    /// The environment that its commands are about: a shipped one, unless the test writes another.
    pub(crate) environment: &'static str,
    /// Whether a release was promoted to that environment, so that its `up` needs no exemption.
    pub(crate) is_promoted: bool,
}

impl Operator {
    /// One who has nothing but a cluster in which CloudNativePG runs: `pilot` as it is written, but for what only the operator knows.
    pub(crate) fn with_nothing(about: &str) -> Option<Self> {
        let mut operator = Self::new(about)?;
        operator.cluster.databases(postgres::programs()?, postgres::user());
        // Where the Prometheus operator's definitions are there, so is what it is told.
        let watched = operator.cluster.define("prometheus-operator");
        let is_kept = |set: &str| set.contains("cluster.") || (!watched && set.starts_with("monitoring"));
        operator.sets.retain(|set| is_kept(set));
        operator.url.clear();
        Some(operator)
    }

    /// `None` where there is no control plane or no PostgreSQL.
    pub(crate) fn new(about: &str) -> Option<Self> {
        let cluster = Cluster::shared()?;
        let database = postgres::shared()?;
        cluster.kubelet().put_program(PROGRAM, program_for_pods());
        let namespace = cluster.namespace_name(about);
        let sandbox = Sandbox::new(about);
        // What a load balancer, an ingress or a port-forward would lead to.
        let address = cluster.kubelet().forward(&namespace, "textnlp-api", sandbox.port);
        let sets = [
            format!("cluster.namespace={namespace}"),
            format!("sites[0].cluster.address=https://{address}"),
            format!("sites[0].cluster.image={}", pinned("local/textnlp:1")),
            "database.hosting=external".to_owned(),
            "database.url=secret:env:DATABASE_URL".to_owned(),
            "cache.kind=none".to_owned(),
            "cache.hosting=null".to_owned(),
            "monitoring.stack=false".to_owned(),
            "backup.enabled=false".to_owned(),
        ];
        let url = database.url(&database.database());
        Some(Self { cluster, sandbox, namespace, url, sets: sets.into(), environment: "pilot", is_promoted: false })
    }

    /// Names the receivers of alerts, if the Prometheus operator's definitions are there. Returns whether they are.
    pub(crate) fn receives_alerts(&mut self) -> bool {
        let is_watched = !self.sets.iter().any(|set| set == "monitoring.stack=false");
        let receivers = [
            "monitoring.receivers.oncall=secret:env:ONCALL_URL",
            "monitoring.receivers.team=smtp://mail.example.com?from=a@example.com&to=b@example.com",
        ];
        self.sets.extend(receivers.into_iter().filter(|_| is_watched).map(str::to_owned));
        is_watched
    }

    pub(crate) fn command(&self, args: &[&str], more: &[&str]) -> Command {
        self.command_of(self.environment, args, more)
    }

    /// A command about another shipped environment.
    pub(crate) fn command_of(&self, environment: &str, args: &[&str], more: &[&str]) -> Command {
        let mut all: Vec<&str> = args.to_vec();
        all.extend(["--env", environment]);
        if args.first() == Some(&"up") && environment != "staging" && !self.is_promoted {
            all.push("--from-scratch");
            let has_reason = args.contains(&"--reason");
            all.extend((!has_reason).then_some(["--reason", "a test"]).into_iter().flatten());
        }
        all.extend(self.sets.iter().map(String::as_str).chain(more.iter().copied()).flat_map(|set| ["--set", set]));
        let mut command = self.sandbox.command(&all);
        command.env("KUBECONFIG", self.cluster.admin()).env("DATABASE_URL", &self.url);
        command.env("ONCALL_URL", "https://hooks.example.com/services/t0ken");
        command
    }

    pub(crate) fn run(&self, args: &[&str], more: &[&str]) -> Said {
        textnlp_tests::said(self.command(args, more).output().unwrap())
    }

    pub(crate) fn up(&self, more: &[&str]) -> Value {
        self.run(&["up", "--yes", "--no-gate", "-o", "json"], more).expect(0).json()
    }

    /// Every object of the namespace that is not the trace of another one, by kind and name, with what it is.
    pub(crate) fn objects(&self) -> BTreeMap<String, Value> {
        let kinds = self.cluster.kubectl(&["api-resources", "--verbs=list", "--namespaced", "-o", "name"]);
        let kinds = String::from_utf8(kinds.stdout).unwrap();
        let listed: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
        let out = self.cluster.kubectl(&[
            "get",
            &listed.join(","),
            "-n",
            &self.namespace,
            "-o",
            "json",
            "--ignore-not-found",
        ]);
        let found: Value = serde_json::from_slice(&out.stdout).unwrap_or_default();
        let objects = found["items"].as_array().cloned().unwrap_or_default();
        objects
            .into_iter()
            .map(|mut object| {
                let metadata = object["metadata"].as_object_mut().unwrap();
                for changing in ["resourceVersion", "managedFields", "generation"] {
                    metadata.remove(changing);
                }
                object.as_object_mut().unwrap().remove("status");
                (format!("{} {}", object["kind"], object["metadata"]["name"]), object)
            })
            .collect()
    }

    pub(crate) fn get(&self, kind: &str, name: &str) -> Value {
        let out = self.cluster.kubectl(&["get", kind, name, "-n", &self.namespace, "-o", "json"]);
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    }

    /// PostgreSQL's own client.
    pub(crate) fn psql() -> std::path::PathBuf {
        postgres::programs().unwrap().join("psql")
    }

    /// A statement of whoever may do anything in the database that runs beside the servers.
    pub(crate) fn sql(&self, statement: &str) {
        let object = self.get("clusters.postgresql.cnpg.io", "textnlp-database");
        let folder = self.cluster.folder().join("databases").join(object["metadata"]["uid"].as_str().unwrap());
        let mut psql = Command::new(postgres::programs().unwrap().join("psql"));
        psql.args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-d", "textnlp", "-c", statement]);
        let said = textnlp_tests::said(psql.args(["-h", folder.as_str()]).output().unwrap());
        assert_eq!(said.exit, 0, "{said:?}");
    }

    /// Exports a chart and makes what it lacks, in a folder of its own, by the commands of the chart's README as they stand there: that
    /// folder, and the flags by which Helm takes the files. The certificate is one for 127.0.0.1 that signs itself.
    pub(crate) fn chart(&self) -> (Utf8PathBuf, Vec<String>) {
        let (chart, files) = (self.sandbox.folder().join("chart"), self.sandbox.folder().join("files"));
        self.run(&["export", "helm", "--out", chart.as_str()], &[]).expect(0);
        std::fs::create_dir(&files).unwrap();
        let readme = std::fs::read_to_string(chart.join("README.md")).unwrap();
        let commands = readme.split("```sh\n").nth(1).unwrap().split("```").next().unwrap();
        let certificate = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=textnlp -addext subjectAltName=IP:127.0.0.1 -keyout tls.key -out tls.crt";
        for script in [commands, certificate] {
            let made = Command::new("sh").current_dir(&files).args(["-euc", script]).output().unwrap();
            assert!(made.status.success(), "{script}: {}", String::from_utf8_lossy(&made.stderr));
        }
        std::fs::write(files.join("database-url"), &self.url).unwrap();
        let sets = readme.split("--set-file ").skip(1).map(|rest| rest.split([' ', '\n']).next().unwrap());
        (files, sets.flat_map(|set| ["--set-file".to_owned(), set.to_owned()]).collect())
    }

    pub(crate) fn key(&self) -> String {
        let site = if self.environment == "staging" { "here" } else { "main" };
        let folder = self.sandbox.state(self.environment).join(format!("secrets/{site}.api-key"));
        let newest = folder.read_dir_utf8().unwrap().flatten().max_by_key(|entry| entry.file_name().to_owned());
        std::fs::read_to_string(newest.unwrap().path()).unwrap().trim().to_owned()
    }
}
