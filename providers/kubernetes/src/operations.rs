//! Operating a site in a cluster: one-off jobs, replicas, rollouts, backups, outages and exports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_provider::operations::{
    AuditedAspect, DatabaseInstances, DatabaseStatus, EndpointAccess, Export, ExportFormat, JobOutput, Jobs, LogSource,
    LogText, Operations, Outages, RolloutCommand, RolloutStatus, Rollouts, Scale, Scaling, SecurityAspect,
    ServiceEndpoint, SiteAccess, SiteBackups, SiteLogs, SiteMetrics, SiteOutputs, SiteSecurity,
};
use textnlp_provider::{Error, ErrorKind, Lineage, Result, SecretStore, Wanted, error_chain};

use crate::canary::{OperatorCommand, RolloutReport};
use crate::export;
use crate::lower::{BACKUP, DUMPS_CLAIM};
use crate::provider::{Access, Kubernetes};

/// The deployment of the servers, and its container with access to the database.
const SERVERS: &str = "textnlp-api";
const SERVER: &str = "api";
/// The autoscaler of the deployment.
const AUTOSCALER: &str = "textnlp-api-hpa";
/// The path of the server configuration in a pod.
const SERVER_CONFIG: &str = "/etc/textnlp/server.yaml";
/// The prefix of this provider's resource kinds.
const KINDS: &str = "kubernetes.";

/// Operations on a site in a cluster. The cluster is not called before the first operation.
pub struct ClusterOperations {
    cluster: Kubernetes,
    kubeconfig: Option<KubeconfigContext>,
    namespace: String,
    is_autoscaled: bool,
    copies: Option<String>,
}

/// A kubeconfig, if it is not the usual one, and a context in it, if it is not the current one.
type KubeconfigContext = (Option<PathBuf>, Option<String>);

impl ClusterOperations {
    /// Creates the operations of a site in a namespace, for the cluster of a kubeconfig.
    pub fn new(
        (file, context): KubeconfigContext,
        secrets: Arc<dyn SecretStore>,
        namespace: String,
        is_autoscaled: bool,
    ) -> Self {
        let access = Access::kubeconfig(file.clone(), context.clone());
        let kubeconfig = Some((file, context));
        Self { cluster: Kubernetes::new(access, secrets), kubeconfig, namespace, is_autoscaled, copies: None }
    }

    /// The same for a cluster that no kubeconfig names.
    pub fn of(cluster: Kubernetes, namespace: String, is_autoscaled: bool) -> Self {
        Self { cluster, kubeconfig: None, namespace, is_autoscaled, copies: None }
    }

    /// The same with the address of the bucket that dumps are copied to.
    #[must_use]
    pub fn copying_to(self, copies: Option<String>) -> Self {
        Self { copies, ..self }
    }

    fn place(&self, lineage: Lineage) -> (&str, Lineage) {
        (&self.namespace, lineage)
    }
}

/// The endpoint of a site with these outputs; `None` if it does not run in a cluster.
pub fn endpoint(outputs: &SiteOutputs) -> Option<ServiceEndpoint> {
    let text = |part: &str, field: &str| outputs.get(part)?.get(field)?.as_str().map(str::to_owned);
    // An ingress or a route has a certificate of its own.
    let is_behind = ["gateway/ingress", "gateway/http-route"].iter().any(|part| outputs.contains_key(*part));
    let leaf = outputs.contains_key("certificate/leaf") && !is_behind;
    let certificate = if leaf { "certificate/leaf" } else { "gateway/service" };
    Some(ServiceEndpoint {
        url: text("gateway/service", "url")?,
        ca_file: text(certificate, "ca_file"),
        metrics: None,
        is_global: false,
        access: EndpointAccess::Keys,
    })
}

impl Operations for ClusterOperations {
    fn jobs(self: Arc<Self>) -> Option<Arc<dyn Jobs>> {
        Some(self)
    }

    fn scaling(self: Arc<Self>) -> Option<Arc<dyn Scaling>> {
        Some(self)
    }

    fn metrics(self: Arc<Self>) -> Option<Arc<dyn SiteMetrics>> {
        Some(self)
    }

    fn logs(self: Arc<Self>) -> Option<Arc<dyn SiteLogs>> {
        Some(self)
    }

    fn security(self: Arc<Self>) -> Option<Arc<dyn SiteSecurity>> {
        Some(self)
    }

    fn rollouts(self: Arc<Self>) -> Option<Arc<dyn Rollouts>> {
        Some(self)
    }

    fn backups(self: Arc<Self>) -> Option<Arc<dyn SiteBackups>> {
        Some(self)
    }

    fn outages(self: Arc<Self>) -> Option<Arc<dyn Outages>> {
        Some(self)
    }

    fn database(self: Arc<Self>) -> Option<Arc<dyn DatabaseInstances>> {
        Some(self)
    }

    fn log_command(&self) -> Option<String> {
        let namespace = &self.namespace;
        let words = format!("logs --namespace {namespace} --selector app={SERVERS} --all-containers --prefix");
        Some(self.cluster.kubectl(&words))
    }

    fn export(&self, wanted: &[Wanted], environment: &str, format: ExportFormat<'_>) -> Result<Option<Export>> {
        let objects: Vec<Wanted> = wanted.iter().filter(|one| one.kind.as_str().starts_with(KINDS)).cloned().collect();
        let failed = |why: String| Error::new(ErrorKind::Invalid, "export", environment).because(why);
        export::export(&objects, environment, format).map(Some).map_err(failed)
    }
}

#[async_trait]
impl Jobs for ClusterOperations {
    fn are_logged(&self) -> bool {
        true
    }

    async fn run_for(&self, lineage: Lineage, command: &str, input: &Value, takes: Duration) -> Result<JobOutput> {
        let arguments = ["admin", command, "--config", SERVER_CONFIG, "--do", &input.to_string()];
        let arguments = arguments.map(str::to_owned);
        let done = self.cluster.run_job(self.place(lineage), SERVERS, SERVER, &arguments, takes).await?;
        Ok(JobOutput { answer: done.answer(), failure: (!done.succeeded).then(|| error_chain(&done.failure())) })
    }
}

#[async_trait]
impl Scaling for ClusterOperations {
    async fn scale(&self, lineage: Lineage) -> Result<Scale> {
        self.cluster.scale(self.place(lineage), SERVERS, self.is_autoscaled.then_some(AUTOSCALER)).await
    }
}

#[async_trait]
impl SiteMetrics for ClusterOperations {
    async fn scrape(&self, lineage: Lineage) -> Result<BTreeMap<String, Option<String>>> {
        self.cluster.scrape(self.place(lineage), SERVERS).await
    }

    fn matchers(&self) -> String {
        // Names of namespaces have no characters that PromQL escapes.
        format!("namespace=\"{}\"", self.namespace)
    }

    async fn query(&self, query: &str) -> Result<Option<Value>> {
        self.cluster.ask_prometheus(&self.namespace, query).await
    }
}

#[async_trait]
impl SiteLogs for ClusterOperations {
    async fn sources(&self, lineage: Lineage) -> Result<Vec<LogSource>> {
        self.cluster.log_sources(self.place(lineage)).await
    }

    async fn read(&self, source: &LogSource, since: Timestamp, lines: usize) -> Result<LogText> {
        self.cluster.log_of(&self.namespace, source, (since, lines)).await
    }
}

#[async_trait]
impl SiteSecurity for ClusterOperations {
    async fn audit(&self, lineage: Lineage, aspect: SecurityAspect) -> Result<AuditedAspect> {
        self.cluster.audit(self.place(lineage), SERVERS, aspect).await
    }
}

#[async_trait]
impl Rollouts for ClusterOperations {
    async fn status(&self, lineage: Lineage) -> Result<Option<RolloutStatus>> {
        let found = self.cluster.rollout(self.place(lineage), SERVERS).await?;
        Ok(found.map(|(last, is_running)| last.status(Some(is_running))))
    }

    async fn command(&self, lineage: Lineage, command: RolloutCommand) -> Result<RolloutStatus> {
        let place = self.place(lineage);
        let command = match command {
            RolloutCommand::Retry => {
                return Ok(self.cluster.retry(place, SERVERS).await?.status(Some(false)));
            }
            RolloutCommand::Promote => OperatorCommand::Promote,
            RolloutCommand::Abort => OperatorCommand::Abort,
            RolloutCommand::Pause => OperatorCommand::Pause,
            RolloutCommand::Resume => OperatorCommand::Resume,
        };
        Ok(self.cluster.record_command(place, SERVERS, command).await?.status(Some(true)))
    }
}

impl RolloutReport {
    /// The status for rollout commands; the document has no `goes_on` if `is_running` is not known.
    pub fn status(&self, is_running: Option<bool>) -> RolloutStatus {
        let mut document = json!(self);
        if let Some(is_running) = is_running {
            document["goes_on"] = json!(is_running);
        }
        let began = i64::try_from(self.began).ok().filter(|began| *began > 0);
        RolloutStatus {
            stage: document["stage"].as_str().unwrap_or_default().to_owned(),
            message: self.says.clone(),
            began: began.and_then(|began| Timestamp::from_second(began).ok()),
            weight: self.share,
            document,
        }
    }
}

#[async_trait]
impl SiteBackups for ClusterOperations {
    fn location(&self) -> String {
        let copies = self.copies.as_ref().map_or(String::new(), |url| format!(", to be copied to {url}"));
        format!("volume {DUMPS_CLAIM} of namespace {}{copies}", self.namespace)
    }

    fn log_command(&self) -> String {
        let words = format!("logs --namespace {} --selector app.kubernetes.io/name={BACKUP}", self.namespace);
        self.cluster.kubectl(&words)
    }

    fn first_command(&self) -> String {
        let words = format!("create job --namespace {} first-dump --from=cronjob/{BACKUP}", self.namespace);
        self.cluster.kubectl(&words)
    }

    async fn back_up(
        &self,
        lineage: Lineage,
        timeout: Duration,
        report: &(dyn for<'a> Fn(&'a str) + Sync),
    ) -> Result<String> {
        let done = self.cluster.run_now(self.place(lineage), BACKUP, timeout, report).await?;
        if !done.succeeded {
            return Err(done.failure());
        }
        Ok(done.output.lines().last().unwrap_or("the backup is complete; its report is not available").to_owned())
    }

    async fn last(&self, lineage: Lineage) -> Result<Option<Timestamp>> {
        let last = self.cluster.last_success(self.place(lineage), BACKUP).await?;
        Ok(last.and_then(|last| last.parse().ok()))
    }
}

#[async_trait]
impl DatabaseInstances for ClusterOperations {
    async fn status(&self, lineage: Lineage) -> Result<DatabaseStatus> {
        self.cluster.database_status(self.place(lineage)).await
    }

    async fn kill_primary(&self, lineage: Lineage, primary: &str) -> Result<()> {
        self.cluster.kill_primary(self.place(lineage), primary).await
    }
}

#[async_trait]
impl Outages for ClusterOperations {
    async fn access(&self) -> Result<SiteAccess> {
        let Some((file, context)) = self.kubeconfig.clone() else {
            return Ok(SiteAccess::Cloud { api_server: self.cluster.located_server().await? });
        };
        let context = context.or_else(|| Kubernetes::current_context(file.as_deref()));
        let api_server = Kubernetes::server(file.as_deref(), context.as_deref())?;
        let not_text = |path: PathBuf| {
            Error::new(ErrorKind::Invalid, "use", path.display().to_string()).because("its path is not valid UTF-8")
        };
        let kubeconfig = file.map(|file| Utf8PathBuf::from_path_buf(file).map_err(not_text)).transpose()?;
        Ok(SiteAccess::Kubeconfig { kubeconfig, context, api_server })
    }

    async fn check(&self, lineage: Lineage) -> Result<()> {
        self.cluster.check_outage(self.place(lineage), SERVERS).await
    }

    async fn begin(&self, lineage: Lineage, outage: &str, until: Timestamp) -> Result<()> {
        self.cluster.start_outage(self.place(lineage), SERVERS, (outage, until)).await
    }

    async fn end(&self, outage: &str) -> Result<usize> {
        self.cluster.end_outage(outage).await
    }

    async fn nodes(&self) -> Result<usize> {
        self.cluster.count_nodes().await
    }

    async fn ready(&self, lineage: Lineage) -> Result<usize> {
        self.cluster.ready_pods(self.place(lineage), SERVERS).await
    }
}

#[cfg(test)]
mod tests {
    use textnlp_provider::Outputs;

    use super::*;

    fn outputs(parts: &[(&str, Value)]) -> SiteOutputs {
        let of = |value: &Value| -> Outputs { serde_json::from_value(value.clone()).unwrap() };
        parts.iter().map(|(part, value)| ((*part).to_owned(), of(value))).collect()
    }

    #[test]
    fn endpoint_names_the_ca_of_the_certificate_that_clients_see() {
        let service = ("gateway/service", json!({ "url": "https://10.0.0.1:8443" }));
        let leaf = ("certificate/leaf", json!({ "ca_file": "/ca.crt" }));
        let found = endpoint(&outputs(&[service.clone(), leaf.clone()])).unwrap();
        assert_eq!((found.url.as_str(), found.ca_file.as_deref()), ("https://10.0.0.1:8443", Some("/ca.crt")));
        let behind = endpoint(&outputs(&[service, leaf, ("gateway/ingress", json!({}))])).unwrap();
        assert_eq!(behind.ca_file, None, "the ingress shows a certificate of its own");
        assert_eq!(endpoint(&outputs(&[("gateway/process", json!({ "address": "http://127.0.0.1" }))])), None);
    }

    #[test]
    fn rollout_status_keeps_every_field_in_json() {
        let last: RolloutReport = serde_json::from_value(json!({
            "id": "r1", "stage": "promoting", "says": "well", "release": "d", "began": 1_700_000_000, "share": 25,
        }))
        .unwrap();
        let status = last.status(Some(true));
        assert_eq!((status.stage.as_str(), status.message.as_str(), status.weight), ("promoting", "well", Some(25)));
        assert_eq!(status.began.map(|at| at.as_second()), Some(1_700_000_000));
        assert_eq!((&status.document["id"], &status.document["goes_on"]), (&json!("r1"), &json!(true)));
        assert_eq!(last.status(None).document.get("goes_on"), None);
    }
}
