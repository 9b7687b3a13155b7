//! Operations of a site of local processes. It has no autoscaling, canary or backup of its own; of the optional
//! abilities it has one-off jobs, and the instances of its database.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use camino::Utf8PathBuf;
use serde_json::Value;
use textnlp_keys::SiteFolder;
use textnlp_provider::operations::{
    DatabaseInstances, DatabaseStatus, EndpointAccess, JobOutput, Jobs, Operations, ServerProgram, ServiceEndpoint,
    SiteOutputs,
};
use textnlp_provider::{Error, ErrorKind, Lineage, Result};

use crate::fault;
use crate::supervise::{self, PhaseName};
use crate::verbs::{Input, ProgramOutput, run};
use crate::verified::VerifiedProgram;

/// Timeout of a one-off job. A key that several sites acknowledge takes up to two minutes.
const JOB_TIMEOUT: Duration = Duration::from_secs(300);

/// The prefix of the units of the database. The first one is the primary, the others follow it.
const DATABASE: &str = "database-";
const PRIMARY: &str = "database-0";

/// A site of local processes.
#[derive(Debug, Clone)]
pub struct LocalOperations {
    server: Option<ServerProgram>,
    folder: Option<Utf8PathBuf>,
    within: Duration,
}

impl LocalOperations {
    /// The operations with this server program; `None` when none is recorded.
    pub fn new(server: Option<ServerProgram>) -> Self {
        Self { server, folder: None, within: JOB_TIMEOUT }
    }

    /// The same for the site in this folder.
    #[must_use]
    pub fn at(self, folder: Utf8PathBuf) -> Self {
        Self { folder: Some(folder), ..self }
    }
}

/// The client endpoint of a site with these outputs; `None` when it does not run as processes.
pub fn endpoint(outputs: &SiteOutputs) -> Option<ServiceEndpoint> {
    let text = |part: &str, field: &str| outputs.get(part)?.get(field)?.as_str().map(str::to_owned);
    ["front/process", "gateway/process"].into_iter().find_map(|part| {
        Some(ServiceEndpoint {
            url: text(part, "address")?,
            ca_file: text(part, "ca_file"),
            metrics: text("gateway/process", "metrics_listen"),
            is_global: part.starts_with("front"),
            access: EndpointAccess::Keys,
        })
    })
}

impl Operations for LocalOperations {
    fn jobs(self: Arc<Self>) -> Option<Arc<dyn Jobs>> {
        if self.server.is_some() { Some(self) } else { None }
    }

    fn database(self: Arc<Self>) -> Option<Arc<dyn DatabaseInstances>> {
        if self.folder.is_some() { Some(self) } else { None }
    }
}

#[async_trait]
impl DatabaseInstances for LocalOperations {
    async fn status(&self, _: Lineage) -> Result<DatabaseStatus> {
        let folder = self.folder.clone().unwrap_or_default();
        let failed = |source| Error::io("read the status of", folder.as_str(), source);
        let found = supervise::status(&folder).await.map_err(failed)?;
        let units = found.map(|status| status.units).unwrap_or_default();
        let instances: Vec<_> = units.iter().filter(|unit| is_instance(&unit.name)).collect();
        if !instances.iter().any(|unit| unit.name == PRIMARY) {
            let why = "no PostgreSQL of its own runs there";
            return Err(Error::new(ErrorKind::NotFound, "find the database of", folder).because(why));
        }
        let ready = instances.iter().filter(|unit| unit.phase == PhaseName::Ready).count();
        let count = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        Ok(DatabaseStatus { primary: PRIMARY.to_owned(), wanted: count(instances.len()), ready: count(ready) })
    }

    async fn kill_primary(&self, _: Lineage, primary: &str) -> Result<()> {
        let folder = SiteFolder::at(&self.folder.clone().unwrap_or_default());
        let failed = |why| Error::new(ErrorKind::Conflict, "stop", primary).because(why);
        if primary != PRIMARY {
            return Err(failed(format!("the primary is {PRIMARY}")));
        }
        fault::kill_unit(&folder, PRIMARY).map_err(failed)
    }
}

/// Whether a unit is an instance of the database: `database-1`.
fn is_instance(unit: &str) -> bool {
    unit.strip_prefix(DATABASE).is_some_and(|number| number.parse::<u32>().is_ok())
}

#[async_trait]
impl Jobs for LocalOperations {
    fn are_logged(&self) -> bool {
        false
    }

    async fn run_for(&self, _: Lineage, command: &str, input: &Value, takes: Duration) -> Result<JobOutput> {
        let Some(ServerProgram { program, config }) = &self.server else {
            return Err(Error::new(ErrorKind::NotFound, "start", "the server program"));
        };
        let failed = |action: &'static str| move |error| Error::io(action, program.as_str(), error);
        let path = program.clone();
        let verified = tokio::task::spawn_blocking(move || VerifiedProgram::at(&path)).await;
        let verified = verified
            .map_err(std::io::Error::other)
            .and_then(|verified| verified)
            .map_err(|error| failed("start")(error).hint("`up` restores the recorded program"))?;
        let arguments = ["admin", command, "--config", config.as_str()].map(str::to_owned);
        let input = Input::Text(input.to_string());
        let ProgramOutput { status, out, err } =
            run(&verified, &arguments, input, self.within + takes, program.as_str()).await?;
        let failure = (!status.success()).then(|| String::from_utf8_lossy(&err).into_owned());
        Ok(JobOutput { answer: serde_json::from_slice(&out).ok(), failure })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn job_gets_its_command_on_stdin_and_answers_in_json() {
        let folder = tempfile::tempdir().unwrap();
        let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
        let program = folder.join("bin/server");
        std::fs::create_dir(folder.join("bin")).unwrap();
        // Written by another process: a program that a fork of this one holds open for writing cannot be started.
        let script = "printf '#!/bin/sh\\ncat\\necho \"$*\" >&2\\nexit 1\\n' > \"$0\" && chmod 755 \"$0\"";
        let written = std::process::Command::new("sh").args(["-c", script, program.as_str()]).status().unwrap();
        assert!(written.success());
        let server = ServerProgram { program: program.clone(), config: folder.join("server.yaml") };
        let jobs = Arc::new(LocalOperations::new(Some(server))).jobs().unwrap();
        let lineage = Lineage(uuid::Uuid::nil());
        let refused = jobs.run(lineage, "keys", &json!({})).await.unwrap_err();
        assert!(
            textnlp_provider::error_chain(&refused).contains("no object of the site records its digest"),
            "{refused:?}"
        );
        crate::verified::record_program(&SiteFolder::at(folder), "bin/server");
        let done = jobs.run(lineage, "keys", &json!({ "do": "list" })).await.unwrap();
        assert_eq!(done.answer, Some(json!({ "do": "list" })));
        let failure = done.failure.unwrap();
        assert!(failure.contains("admin keys --config") && !failure.contains("list"), "{failure}");
        let changed = "echo 'touch \"$0.ran\"' >> \"$0\"";
        assert!(std::process::Command::new("sh").args(["-c", changed, program.as_str()]).status().unwrap().success());
        let refused = jobs.run(lineage, "keys", &json!({})).await.unwrap_err();
        assert!(textnlp_provider::error_chain(&refused).contains("was changed: it has sha256:"), "{refused:?}");
        assert!(Arc::new(LocalOperations::new(None)).jobs().is_none());
    }

    #[tokio::test]
    async fn job_that_does_not_end_is_stopped() {
        let folder = tempfile::tempdir().unwrap();
        let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
        let program = folder.join("bin/server");
        std::fs::create_dir(folder.join("bin")).unwrap();
        let script = "printf '#!/bin/sh\\nexec cat /dev/zero\\n' > \"$0\" && chmod 755 \"$0\"";
        let written = std::process::Command::new("sh").args(["-c", script, program.as_str()]).status().unwrap();
        assert!(written.success());
        crate::verified::record_program(&SiteFolder::at(folder), "bin/server");
        let server = ServerProgram { program: program.clone(), config: folder.join("server.yaml") };
        let run = |within: Duration| {
            let jobs = LocalOperations { server: Some(server.clone()), folder: None, within };
            async move { jobs.run(Lineage(uuid::Uuid::nil()), "keys", &json!({})).await }
        };
        // Without a bound its output would be held in memory.
        let flooded = run(JOB_TIMEOUT).await.unwrap();
        assert!(flooded.failure.is_some() && flooded.answer.is_none(), "{flooded:?}");
        let stopped = run(Duration::ZERO).await.unwrap_err();
        assert!(textnlp_provider::error_chain(&stopped).contains("no answer in 0 s"), "{stopped:?}");
    }

    #[test]
    fn global_endpoint_takes_precedence_over_a_site_endpoint() {
        let of = |parts: &[(&str, Value)]| {
            let parts =
                parts.iter().map(|(part, value)| ((*part).to_owned(), serde_json::from_value(value.clone()).unwrap()));
            endpoint(&parts.collect())
        };
        let gateway = ("gateway/process", json!({ "address": "https://a", "ca_file": "/ca", "metrics_listen": "b" }));
        let site = of(std::slice::from_ref(&gateway)).unwrap();
        assert_eq!((site.url.as_str(), site.is_global, site.metrics.as_deref()), ("https://a", false, Some("b")));
        let both = of(&[gateway, ("front/process", json!({ "address": "https://c" }))]).unwrap();
        assert_eq!((both.url.as_str(), both.is_global), ("https://c", true));
        assert_eq!(of(&[("gateway/service", json!({ "url": "https://d" }))]), None);
    }
}
