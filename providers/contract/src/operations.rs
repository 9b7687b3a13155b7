//! Operating a site whose resources exist: what commands do beside plans.
//!
//! A provider implements [`Operations`] once for each of its runtimes. Every optional ability is a trait of its own,
//! and [`Operations`] says whether a site has it: by default none is supported.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::delivery::{Controller, Delivery};
use crate::error::Result;
use crate::name::Lineage;
use crate::resource::{Outputs, Wanted};
use crate::secret::Secret;

/// The recorded outputs of one site, by `COMPONENT/PART`.
pub type SiteOutputs = BTreeMap<String, Outputs>;

/// Who authorizes the requests of clients, and what of them reaches the servers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndpointAccess {
    /// The servers do, by API keys.
    Keys,
    /// The cloud that runs them does. It passes on invocations that it has signed for: see [`Operations::invocations`].
    Invocations,
    /// The cloud that runs them does, by the identities of callers. It passes on every request: see
    /// [`Operations::caller`].
    Identities,
}

/// The client endpoint of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceEndpoint {
    /// The address.
    pub url: String,
    /// The file of the certificate authority that clients must trust; `None` where the certificate has another issuer.
    pub ca_file: Option<String>,
    /// The address of the metrics.
    pub metrics: Option<String>,
    /// Whether it is the endpoint of all sites together.
    pub is_global: bool,
    /// Who authorizes its callers. Where the cloud does, API keys, tenants and metrics do not exist.
    pub access: EndpointAccess,
}

/// One running site.
pub trait Operations: Send + Sync {
    /// Runs one-off jobs beside the servers.
    fn jobs(self: Arc<Self>) -> Option<Arc<dyn Jobs>> {
        None
    }

    /// Signs requests to an endpoint that the cloud runs.
    fn invocations(self: Arc<Self>) -> Option<Arc<dyn Invocations>> {
        None
    }

    /// Authorizes requests to a service whose callers the cloud knows by their identities.
    fn caller(self: Arc<Self>) -> Option<Arc<dyn Caller>> {
        None
    }

    /// Reads the count of replicas, where it is not fixed.
    fn scaling(self: Arc<Self>) -> Option<Arc<dyn Scaling>> {
        None
    }

    /// Reads the metrics of its servers, where no address of this machine has them.
    fn metrics(self: Arc<Self>) -> Option<Arc<dyn SiteMetrics>> {
        None
    }

    /// Reads the logs of its programs, where they are not files of this machine.
    fn logs(self: Arc<Self>) -> Option<Arc<dyn SiteLogs>> {
        None
    }

    /// Reads what an audit needs of its objects, where they are not files and processes of this machine.
    fn security(self: Arc<Self>) -> Option<Arc<dyn SiteSecurity>> {
        None
    }

    /// Rolls out releases in steps.
    fn rollouts(self: Arc<Self>) -> Option<Arc<dyn Rollouts>> {
        None
    }

    /// Makes backups of its database inside the site; `None` where this program makes them.
    fn backups(self: Arc<Self>) -> Option<Arc<dyn SiteBackups>> {
        None
    }

    /// Simulates an outage for a drill, where its programs run on other machines.
    fn outages(self: Arc<Self>) -> Option<Arc<dyn Outages>> {
        None
    }

    /// Reads the instances of its own PostgreSQL, and stops the primary for a rehearsal.
    fn database(self: Arc<Self>) -> Option<Arc<dyn DatabaseInstances>> {
        None
    }

    /// The command that shows the logs of its programs; `None` where they are files of this machine.
    fn log_command(&self) -> Option<String> {
        None
    }

    /// The wanted resources as files for another tool; `None` where no other tool can apply them.
    fn export(&self, _wanted: &[Wanted], _environment: &str, _format: ExportFormat<'_>) -> Result<Option<Export>> {
        Ok(None)
    }
}

/// Runs one `admin` command of the server program, with the configuration and the secrets of the servers.
#[async_trait]
pub trait Jobs: Send + Sync {
    /// Whether the output of a job is logged: then it must not print a secret.
    fn are_logged(&self) -> bool;

    /// Runs `admin COMMAND` of the server program (`keys`, …) with its JSON input, and waits for the end. On an error
    /// the end of the job was not observed; it may have succeeded.
    async fn run(&self, lineage: Lineage, command: &str, input: &Value) -> Result<JobOutput> {
        self.run_for(lineage, command, input, Duration::ZERO).await
    }

    /// The same for a command that takes this time by design, besides the usual timeout.
    async fn run_for(&self, lineage: Lineage, command: &str, input: &Value, takes: Duration) -> Result<JobOutput>;
}

/// The outcome of a one-off job that ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobOutput {
    /// The last JSON object that it printed, if any.
    pub answer: Option<Value>,
    /// Why it failed, if it did.
    pub failure: Option<String>,
}

/// Signs requests to an endpoint that the cloud runs.
#[async_trait]
pub trait Invocations: std::fmt::Debug + Send + Sync {
    /// A `POST` of this JSON body as the cloud accepts it for some minutes. The answer is that of `/v1/completions`, or of
    /// `/v1/chat/completions` for a body with `messages`.
    async fn sign(&self, body: &[u8]) -> Result<SignedRequest>;
}

/// The identity of a caller of a service that the cloud runs.
#[async_trait]
pub trait Caller: std::fmt::Debug + Send + Sync {
    /// Headers that authorize any request to the service at this address for some minutes.
    async fn headers(&self, address: &str) -> Result<Vec<(String, Secret)>>;
}

/// A request with the headers that authorize it.
#[derive(Debug)]
pub struct SignedRequest {
    /// The URL.
    pub url: String,
    /// Headers with their values.
    pub headers: Vec<(String, Secret)>,
}

impl SignedRequest {
    /// A request with a JSON body that a bearer token authorizes.
    pub fn bearer(url: impl Into<String>, token: &Secret) -> Self {
        let token = format!("Bearer {}", token.expose_text().unwrap_or_default());
        let headers = [("authorization", token), ("content-type", "application/json".to_owned())];
        let headers = headers.map(|(name, value)| (name.to_owned(), Secret::new(value)));
        Self { url: url.into(), headers: headers.into() }
    }
}

/// Reads the count of replicas.
#[async_trait]
pub trait Scaling: Send + Sync {
    /// The replicas of the servers now.
    async fn scale(&self, lineage: Lineage) -> Result<Scale>;
}

/// The replicas of the servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scale {
    /// The wanted count, set by the autoscaler, or by the deployment without one.
    pub wanted: u32,
    /// How many are ready.
    pub ready: u32,
    /// The autoscaler; `None` where there is none.
    pub autoscaler: Option<Autoscaler>,
}

/// The autoscaler of the replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Autoscaler {
    /// The metrics that it reads: `cpu`, `memory`, `http_requests_per_second`.
    pub metrics: Vec<String>,
    /// The count of metrics in its configuration.
    pub configured: usize,
    /// Why it does not scale, as its controller says.
    pub problem: Option<String>,
}

/// Reads the metrics of a site's servers.
#[async_trait]
pub trait SiteMetrics: Send + Sync {
    /// The metrics of each ready replica now, in a text format of Prometheus, by its name; `None` for a replica that did
    /// not answer. An error when none answered, or when the access is denied.
    async fn scrape(&self, lineage: Lineage) -> Result<BTreeMap<String, Option<String>>>;

    /// The PromQL matchers of its series: `namespace="shop"`.
    fn matchers(&self) -> String;

    /// The answer of the site's Prometheus to an instant query; `None` where there is no Prometheus with such series.
    async fn query(&self, query: &str) -> Result<Option<Value>>;
}

/// Reads the logs of a site's programs.
#[async_trait]
pub trait SiteLogs: Send + Sync {
    /// The programs that have a log. The previous run of a program comes before the current one.
    async fn sources(&self, lineage: Lineage) -> Result<Vec<LogSource>>;

    /// The newest lines of one log since a time, at most this many, each after its time and a space, as far as the
    /// provider's limit allows.
    async fn read(&self, source: &LogSource, since: Timestamp, lines: usize) -> Result<LogText>;
}

/// The objects of a site, as far as an audit reads them.
#[async_trait]
pub trait SiteSecurity: Send + Sync {
    /// Reads the objects of an aspect.
    async fn audit(&self, lineage: Lineage, aspect: SecurityAspect) -> Result<AuditedAspect>;
}

/// What was read of an aspect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditedAspect {
    /// What was read: `4 roles`.
    pub read: String,
    /// What is less strict than it should be, each with its object.
    pub findings: Vec<String>,
}

/// An aspect of security.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SecurityAspect {
    /// Images are named by digest.
    Images,
    /// Service accounts have few rights.
    Roles,
    /// Containers have no privileges.
    Pods,
    /// Services that are open outside of the cluster, beside that of the clients.
    Ports,
    /// Dumps are encrypted before they are stored. Only where the site makes backups.
    Backups,
}

/// A container with a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSource {
    /// Its pod.
    pub pod: String,
    /// Its name in the pod.
    pub container: String,
    /// Whether this is the log of the run before its last restart.
    pub is_previous: bool,
}

/// The lines of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogText {
    /// The lines.
    pub text: String,
    /// Whether older lines of the wanted time were left out.
    pub is_cut: bool,
}

/// A release that is rolled out to some of the replicas first.
#[async_trait]
pub trait Rollouts: Send + Sync {
    /// The last rollout; `None` where there was none.
    async fn status(&self, lineage: Lineage) -> Result<Option<RolloutStatus>>;

    /// Sends the rollout a command. An error when there is no rollout that supports it.
    async fn command(&self, lineage: Lineage, command: RolloutCommand) -> Result<RolloutStatus>;
}

/// A command of the operator to a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutCommand {
    /// Continues at once, if the new replicas are healthy.
    Promote,
    /// Reverts at once.
    Abort,
    /// Stops automatic progress; the deadline keeps running.
    Pause,
    /// Resumes automatic progress.
    Resume,
    /// Lets the next `up` try a reverted release once more.
    Retry,
}

impl RolloutCommand {
    /// Its name on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Promote => "promote",
            Self::Abort => "abort",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Retry => "retry",
        }
    }
}

/// The status of a rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RolloutStatus {
    /// Its stage.
    pub stage: String,
    /// The reason, with the measurements.
    pub message: String,
    /// When the new replicas were created.
    pub began: Option<Timestamp>,
    /// The traffic weight of the new replicas in percent, where traffic is split.
    pub weight: Option<u32>,
    /// The full status, for programs.
    pub document: Value,
}

/// Backups of a site's database that run inside the site.
#[async_trait]
pub trait SiteBackups: Send + Sync {
    /// Their location, as text.
    fn location(&self) -> String;

    /// The command that shows the logs of the backup job.
    fn log_command(&self) -> String;

    /// The command that makes the first one.
    fn first_command(&self) -> String;

    /// Makes one now and returns a report in one line; `report` is called with the progress.
    async fn back_up(
        &self,
        lineage: Lineage,
        timeout: Duration,
        report: &(dyn for<'a> Fn(&'a str) + Sync),
    ) -> Result<String>;

    /// When the last one was completed; `None` where there is none.
    async fn last(&self, lineage: Lineage) -> Result<Option<Timestamp>>;
}

/// The contents of a site's backup. Paths are relative to the state folder.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct SiteCopy {
    /// Files that are copied unchanged.
    pub files: Vec<String>,
    /// The SQLite database. Only the server program can copy it while it is in use; `None` when the disk was lost.
    pub database: Option<String>,
    /// The site's last known cluster configuration, for a site that replicates control data.
    pub control: Option<KnownPrimary>,
    /// Where the dump of a PostgreSQL belongs. Only the server program can take it.
    pub dump: Option<String>,
    /// Whether that server is external, so that other sites may use it too.
    pub outside: bool,
    /// The configuration of the PostgreSQL supervisor where WAL archiving is on: a base backup belongs to that log.
    pub base: Option<Utf8PathBuf>,
    /// How the site is served: the program and the configuration of the first replica, as absolute paths.
    pub served: Option<(Utf8PathBuf, Utf8PathBuf)>,
    /// The models that are present.
    pub models: Vec<ModelCopy>,
}

/// The primary, as a site last knew it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
pub struct KnownPrimary {
    /// The epoch of the configuration: of two sites, the one with the higher epoch is more recent.
    pub epoch: u64,
    /// The primary site.
    pub primary: String,
}

/// A model of a site.
#[derive(Debug, PartialEq, Eq)]
pub struct ModelCopy {
    /// The name that requests use.
    pub name: String,
    /// Its source.
    pub source: String,
    /// Its digest, once it was delivered.
    pub digest: Option<String>,
    /// Its folder, absolute.
    pub folder: Utf8PathBuf,
}

/// A site's server program, with the configuration of one of its replicas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerProgram {
    /// The program.
    pub program: Utf8PathBuf,
    /// Its configuration.
    pub config: Utf8PathBuf,
}

/// Simulates the outage of a site's programs in a drill, and ends it.
#[async_trait]
pub trait Outages: Send + Sync {
    /// How another process reaches the site later, to end the outage.
    async fn access(&self) -> Result<SiteAccess>;

    /// Whether an outage could start now; changes nothing. The error is the reason.
    async fn check(&self, lineage: Lineage) -> Result<()>;

    /// Starts an outage. After an error, [`end`](Outages::end) reverts what was done.
    async fn begin(&self, lineage: Lineage, outage: &str, until: Timestamp) -> Result<()>;

    /// Ends an outage and returns the count of restored nodes. Repeating it succeeds.
    async fn end(&self, outage: &str) -> Result<usize>;

    /// The count of nodes; an error if an outage could not be ended from here.
    async fn nodes(&self) -> Result<usize>;

    /// The count of ready replicas.
    async fn ready(&self, lineage: Lineage) -> Result<usize>;
}

/// The instances of a PostgreSQL that a site runs itself.
#[async_trait]
pub trait DatabaseInstances: Send + Sync {
    /// The instances now. An error if the site has no PostgreSQL of its own, or the primary may not be killed.
    async fn status(&self, lineage: Lineage) -> Result<DatabaseStatus>;

    /// Kills the primary, if it is still this one and all instances are ready. The site recovers without an operator.
    async fn kill_primary(&self, lineage: Lineage, primary: &str) -> Result<()>;
}

/// The instances of a PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DatabaseStatus {
    /// The name of the primary.
    pub primary: String,
    /// The wanted count of instances, with the primary.
    pub wanted: u32,
    /// How many are ready: they serve, or follow the primary.
    pub ready: u32,
}

/// The access to a site from any folder of this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SiteAccess {
    /// By a kubeconfig.
    Kubeconfig {
        /// The file with the credentials.
        kubeconfig: Option<Utf8PathBuf>,
        /// The context in it.
        context: Option<String>,
        /// The address of its API server.
        api_server: String,
    },
    /// By the environment, and the credentials of its cloud.
    Cloud {
        /// The address of its API server.
        api_server: String,
    },
}

/// A tool that reads resources from files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat<'a> {
    /// One stream of documents, for `kubectl apply`.
    Yaml,
    /// A folder with a `kustomization.yaml`, for `kubectl apply -k`.
    Kustomize,
    /// A folder that is a chart, for `helm install`.
    Helm,
    /// A folder for a Git repository, which a controller in the cluster applies.
    Delivery(&'a Delivery),
}

impl std::fmt::Display for ExportFormat<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Yaml => "kubectl",
            Self::Kustomize => "kustomize",
            Self::Helm => "helm",
            Self::Delivery(delivery) => match delivery.controller() {
                Controller::ArgoCd { .. } => "argocd",
                Controller::Flux { .. } => "flux",
            },
        })
    }
}

/// Files for another tool, and the secrets that they need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Export {
    /// In the order of their paths.
    pub files: Vec<ExportFile>,
    /// In the order of their names, external ones last.
    pub secrets: Vec<NeededSecret>,
}

/// One file of an export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportFile {
    /// Its path within the export, with `/`.
    pub path: String,
    /// Its content.
    pub text: String,
}

/// A Secret that must exist before the export is applied; no export contains it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NeededSecret {
    /// Its name.
    pub name: String,
    /// `Opaque`, `kubernetes.io/tls`.
    pub kind: String,
    /// Its keys; empty where another tool creates it.
    pub keys: BTreeSet<String>,
}
