//! The errors in the logs of all sites since a time, equal ones together.

use std::io::{BufReader, Seek, SeekFrom};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use camino::Utf8Path;
use jiff::Timestamp;
use serde::Serialize;
use textnlp_orchestrator::analysis::{self, Analyzer, Cause, Group, RunSpan};
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_orchestrator::state::StateError;
use textnlp_provider::Lineage;
use textnlp_provider::operations::SiteLogs;

use super::containers::CONTAINERS_MAX;
use crate::failure::{hinted_chain, state_failed};
use crate::logs::{self, LogFile};
use crate::{ChosenEnvironment, Failure, Progress, running, size};

/// Bytes read from the end of one file. The supervisor rotates logs at 10 MiB.
const FILE_MAX: u64 = 64 << 20;
/// Time for reading the state, which only adds to what the logs of this machine say.
const STATE_TIMEOUT: Duration = Duration::from_secs(5);
/// Failed reads of a site that are listed.
const NOTES_MAX: usize = 10;

/// Equal errors of one site.
#[derive(Debug, PartialEq, Serialize)]
pub struct ErrorRow {
    /// The site.
    pub site: String,
    /// The processes or containers that reported it, at most 20.
    pub units: Vec<String>,
    /// The message without numbers, addresses and identifiers.
    pub message: String,
    /// How often.
    pub count: u64,
    /// When first.
    pub first: Option<Timestamp>,
    /// When last.
    pub last: Option<Timestamp>,
    /// One of the messages.
    pub example: String,
    /// The likely cause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cause: Option<Cause>,
    /// The run during which it began, or became more frequent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run: Option<RunSpan>,
}

/// What was read of one site.
#[derive(Debug, Default, Serialize)]
pub struct SiteRead {
    /// The site.
    pub site: String,
    /// Logs that were read.
    pub logs: usize,
    /// Their lines.
    pub lines: u64,
    /// Whether all of its logs were read.
    pub complete: bool,
    /// What was not read, and why.
    pub notes: Vec<String>,
    /// Occurrences of errors that are in no row: there were too many different ones.
    pub ungrouped: u64,
}

/// What the logs of an environment have.
#[derive(Debug)]
pub struct Errors {
    /// The most frequent first.
    pub rows: Vec<ErrorRow>,
    /// What was read of each site.
    pub sites: Vec<SiteRead>,
    /// Why no run is named beside an error.
    pub runs_unknown: Option<Failure>,
}

/// The errors of all sites or of the named one since a time.
pub async fn errors(
    chosen: &ChosenEnvironment,
    named: Option<&str>,
    since: Timestamp,
    progress: &dyn Progress,
) -> Result<Errors, Failure> {
    let (mut rows, mut sites) = (Vec::new(), Vec::new());
    let files = logs::all(&chosen.scope.folder)?;
    let known = chosen.loaded.environment.sites.iter().map(|site| site.name.to_string());
    let mut names: Vec<String> = files.iter().map(|file| file.site.clone()).chain(known).collect();
    names.sort();
    names.dedup();
    let (runs, runs_unknown) = match runs(chosen).await {
        Ok(runs) => (runs, None),
        Err(failure) => (Vec::new(), Some(failure)),
    };
    let mut lineage = None;
    for site in names.into_iter().filter(|site| named.is_none_or(|named| named == site)) {
        progress.doing(&format!("reading the logs of {site}"));
        let mut analyzer = Analyzer::errors_since(since);
        let mut read = SiteRead { site: site.clone(), complete: true, ..SiteRead::default() };
        for file in files.iter().filter(|file| file.site == site) {
            read.log_file(&mut analyzer, &file.unit, file, since);
        }
        if read.logs == 0 && read.complete {
            if lineage.is_none() {
                lineage = Some(deployed(chosen).await);
            }
            if let Some(lineage) = lineage.as_ref().and_then(|lineage| read.deployment(lineage)) {
                read.elsewhere(&mut analyzer, chosen, lineage, since).await?;
            }
        }
        let found = analyzer.finish();
        (read.lines, read.ungrouped) = (found.lines, found.ungrouped);
        let here: Vec<RunSpan> = runs.iter().filter(|run| run.site.as_str() == site).cloned().collect();
        rows.extend(found.groups.into_iter().map(|mut group| {
            group.attribute(&here);
            ErrorRow::of(&site, group)
        }));
        sites.push(read);
    }
    if sites.iter().all(|site| site.logs == 0 && site.complete) {
        let what = named.map_or("no log".to_owned(), |named| format!("no log of site `{named}`"));
        return Err(logs::no_logs(chosen, &what, "").await?);
    }
    rows.sort_by(|a, b| b.count.cmp(&a.count).then_with(|| (&a.site, &a.message).cmp(&(&b.site, &b.message))));
    Ok(Errors { rows, sites, runs_unknown })
}

/// Adds the logs of all containers of sites that run elsewhere. Returns what was read of each such site.
pub async fn add_containers(
    analyzer: &mut Analyzer,
    chosen: &ChosenEnvironment,
    since: Timestamp,
    progress: &dyn Progress,
) -> Result<Vec<SiteRead>, Failure> {
    let mut sites = Vec::new();
    // The logs of machines are read without the state, which may be in a bucket that does not answer.
    if !chosen.loaded.environment.sites.iter().any(SiteSettings::is_in_cluster) {
        return Ok(sites);
    }
    let lineage = deployed(chosen).await;
    // Without the state, only those in clusters certainly lack something.
    let is_read = |site: &&SiteSettings| lineage.is_ok() || site.is_in_cluster();
    for site in chosen.loaded.environment.sites.iter().filter(is_read) {
        progress.doing(&format!("reading the logs of {}", site.name));
        let mut read = SiteRead { site: site.name.to_string(), complete: true, ..SiteRead::default() };
        if let Some(lineage) = read.deployment(&lineage) {
            read.elsewhere(analyzer, chosen, lineage, since).await?;
        }
        if read.logs > 0 || !read.complete {
            sites.push(read);
        }
    }
    Ok(sites)
}

/// Adds the logs of all processes on this machine since a time, with the rotated ones. Returns what was read of each site.
pub fn add_files(analyzer: &mut Analyzer, folder: &Utf8Path, since: Timestamp) -> anyhow::Result<Vec<SiteRead>> {
    let mut sites: Vec<SiteRead> = Vec::new();
    for (unit, file) in logs::files(folder, None)? {
        if sites.last().is_none_or(|last| last.site != file.site) {
            sites.push(SiteRead { site: file.site.clone(), complete: true, ..SiteRead::default() });
        }
        if let Some(read) = sites.last_mut() {
            read.log_file(analyzer, &unit, &file, since);
        }
    }
    Ok(sites)
}

/// The runs that changed a deployment, for [`Group::attribute`].
pub async fn runs(chosen: &ChosenEnvironment) -> Result<Vec<RunSpan>, Failure> {
    in_time(async {
        let state = running::state(&chosen.scope).await?;
        analysis::runs(&state).await.map_err(|error| failed(chosen, error))
    })
    .await
}

/// The deployment whose logs may be elsewhere; `None` if there is none. An error says why it is not known.
async fn deployed(chosen: &ChosenEnvironment) -> Result<Option<Lineage>, String> {
    let state = in_time(running::state(&chosen.scope)).await.map_err(|failure| format!("{:#}", failure.error))?;
    Ok((!state.is_new()).then(|| state.lineage()))
}

/// Reads of a state, which may be in a bucket that does not answer.
async fn in_time<T>(read: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::time::timeout(STATE_TIMEOUT, read)
        .await
        .map_err(|_| anyhow::anyhow!("the state did not answer within {} s", STATE_TIMEOUT.as_secs()))?
}

fn failed(chosen: &ChosenEnvironment, error: StateError) -> Failure {
    state_failed(error, &chosen.scope.again, &chosen.scope.name)
}

impl ErrorRow {
    fn of(site: &str, group: Group) -> Self {
        let Group { template, count, sources, first, last, cause, run, example, .. } = group;
        Self { site: site.to_owned(), units: sources, message: template, count, first, last, example, cause, run }
    }
}

impl SiteRead {
    fn failed(&mut self, why: String) {
        self.complete = false;
        self.note(why);
    }

    fn note(&mut self, why: String) {
        if self.notes.len() < NOTES_MAX {
            self.notes.push(why);
        }
    }

    /// Reads a process's log with its rotated predecessors, the oldest first.
    fn log_file(&mut self, analyzer: &mut Analyzer, unit: &str, file: &LogFile, since: Timestamp) {
        let begins = SystemTime::from(since);
        for path in file.rotated.iter().chain([&file.path]) {
            // A file without a change since then has no newer line.
            let is_old = path.metadata().and_then(|about| about.modified()).is_ok_and(|changed| changed < begins);
            if is_old {
                self.logs += 1;
                continue;
            }
            match read_file(analyzer, unit, path) {
                Ok(left_out) => {
                    self.logs += 1;
                    if left_out > 0 {
                        self.failed(format!("{path}: the first {} were not read", size(left_out)));
                    }
                }
                Err(error) => self.failed(format!("{error:#}")),
            }
        }
    }

    /// The deployment, if there is one. Where that is not known, the logs of the site are incomplete.
    fn deployment(&mut self, known: &Result<Option<Lineage>, String>) -> Option<Lineage> {
        match known {
            Ok(lineage) => *lineage,
            Err(why) => {
                self.failed(format!("its logs were not read: {why}"));
                None
            }
        }
    }

    /// Reads the logs of a site whose programs run elsewhere.
    async fn elsewhere(
        &mut self,
        analyzer: &mut Analyzer,
        chosen: &ChosenEnvironment,
        lineage: Lineage,
        since: Timestamp,
    ) -> Result<(), Failure> {
        let (folder, environment) = (&chosen.scope.folder, &chosen.loaded.environment);
        let Some(operations) = chosen.scope.platform.operations_of(folder, environment, &self.site, None)? else {
            return Ok(());
        };
        let command = operations.log_command();
        match (operations.logs(), command) {
            (Some(reader), _) => self.containers(analyzer, &*reader, lineage, since).await,
            (None, Some(command)) => self.failed(format!("the cloud has its logs, which are not read: {command}")),
            (None, None) => {}
        }
        Ok(())
    }

    async fn containers(&mut self, analyzer: &mut Analyzer, reader: &dyn SiteLogs, lineage: Lineage, since: Timestamp) {
        let found = match reader.sources(lineage).await {
            Ok(found) => found,
            Err(error) => return self.failed(hinted_chain(&error)),
        };
        if found.is_empty() {
            self.failed("no container of this deployment has a log".to_owned());
        }
        let left_out = found.len().saturating_sub(CONTAINERS_MAX);
        if left_out > 0 {
            self.failed(format!("the logs of {left_out} more containers were not read"));
        }
        for source in found.iter().take(CONTAINERS_MAX) {
            let unit = format!("{}/{}", source.pod, source.container);
            match reader.read(source, since, usize::MAX).await {
                Ok(log) => {
                    self.logs += 1;
                    log.text.lines().for_each(|line| analyzer.add(&unit, line));
                    if log.is_cut {
                        self.failed(format!("{unit}: older lines were left out; choose a later --since"));
                    }
                }
                Err(error) => self.failed(format!("{unit}: {}", hinted_chain(&error))),
            }
        }
    }
}

/// Reads a file; returns the bytes at its start that were left out.
fn read_file(analyzer: &mut Analyzer, unit: &str, path: &Utf8Path) -> anyhow::Result<u64> {
    let failed = || format!("read {path}");
    let mut file = logs::open(path).with_context(failed)?;
    let left_out = file.metadata().with_context(failed)?.len().saturating_sub(FILE_MAX);
    file.seek(SeekFrom::Start(left_out)).with_context(failed)?;
    let mut is_part = left_out > 0;
    let from = BufReader::new(std::io::Read::take(file, FILE_MAX));
    logs::lines(from, |line| {
        // The first line after the cut lacks its beginning.
        if !std::mem::take(&mut is_part) {
            analyzer.add(unit, line);
        }
    })
    .with_context(failed)?;
    Ok(left_out)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use textnlp_provider::operations::{LogSource, LogText};
    use textnlp_provider::{Error, ErrorKind};
    use uuid::Uuid;

    use super::*;

    fn line(minute: u32, level: &str, message: &str) -> String {
        format!("{{\"timestamp\":\"2020-11-23T10:{minute:02}:00Z\",\"level\":\"{level}\",\"message\":\"{message}\"}}\n")
    }

    fn since() -> Timestamp {
        "2020-11-23T10:10:00Z".parse().unwrap()
    }

    #[test]
    fn errors_of_rotated_logs_are_counted_since_a_time() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        let log = folder.join("sites/here/log");
        std::fs::create_dir_all(&log).unwrap();
        let failed = |minute, n: u32| line(minute, "ERROR", &format!("request {n} failed"));
        let rotated = [failed(5, 1), failed(20, 2)].concat();
        std::fs::write(log.join("server-0.log.1"), rotated).unwrap();
        std::fs::write(log.join("server-0.log.2"), failed(4, 9)).unwrap();
        std::fs::write(log.join("server-0.log"), [failed(30, 3), line(31, "WARN", "request 4 is slow")].concat())
            .unwrap();
        let files = logs::all(folder).unwrap();
        let [file] = files.as_slice() else { panic!("{files:?}") };
        assert_eq!((file.site.as_str(), file.unit.as_str()), ("here", "server-0"));
        let names: Vec<&str> = file.rotated.iter().filter_map(|path| path.file_name()).collect();
        assert_eq!(names, ["server-0.log.2", "server-0.log.1"], "the oldest first");
        let mut analyzer = Analyzer::errors_since(since());
        let mut read = SiteRead { site: "here".to_owned(), complete: true, ..SiteRead::default() };
        read.log_file(&mut analyzer, &file.unit, file, since());
        assert!(read.complete && read.logs == 3, "{read:?}");
        let groups = analyzer.finish().groups;
        let rows: Vec<ErrorRow> = groups.into_iter().map(|group| ErrorRow::of("here", group)).collect();
        let [row] = rows.as_slice() else { panic!("{rows:?}") };
        assert_eq!((row.message.as_str(), row.count), ("request N failed", 2));
        let time = |minute| format!("2020-11-23T10:{minute}:00Z").parse::<Timestamp>().ok();
        assert_eq!((row.first, row.last), (time(20), time(30)));
        assert_eq!(row.units, ["server-0"]);
    }

    #[test]
    fn logs_since_a_time_include_rotated_ones_and_those_of_all_sites() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        for (site, minute) in [("one", 20), ("two", 30)] {
            let log = folder.join(format!("sites/{site}/log"));
            std::fs::create_dir_all(&log).unwrap();
            std::fs::write(log.join("server-0.log.1"), line(minute, "ERROR", "the disk failed")).unwrap();
            std::fs::write(log.join("server-0.log"), line(40, "INFO", "fine")).unwrap();
        }
        let mut analyzer = Analyzer::since(Some(since()));
        let read = add_files(&mut analyzer, folder, since()).unwrap();
        let read: Vec<_> = read.iter().map(|read| (read.site.as_str(), read.logs, read.complete)).collect();
        assert_eq!(read, [("one", 2, true), ("two", 2, true)]);
        let found = analyzer.finish();
        let [group] = found.groups.as_slice() else { panic!("{found:?}") };
        assert_eq!((group.count, group.sources.join(",")), (2, "one/server-0,two/server-0".to_owned()));
    }

    #[tokio::test]
    async fn site_without_a_known_deployment_is_incomplete_instead_of_failing_the_command() {
        assert_eq!(in_time(async { Ok(1) }).await.unwrap(), 1);
        let failed = in_time::<()>(async { Err(Failure::usage("x", anyhow::anyhow!("no journal"))) }).await;
        let why = format!("{:#}", failed.unwrap_err().error);
        let mut read = SiteRead { complete: true, ..SiteRead::default() };
        assert_eq!((read.deployment(&Ok(None)), read.complete), (None, true));
        let lineage = Lineage(Uuid::nil());
        assert_eq!(read.deployment(&Ok(Some(lineage))), Some(lineage));
        assert_eq!((read.deployment(&Err(why)), read.complete), (None, false));
        assert_eq!(read.notes, ["its logs were not read: no journal"]);
    }

    /// A cluster with a pod that was restarted, and one that ends meanwhile.
    struct Cluster(Mutex<Vec<Timestamp>>);

    #[async_trait]
    impl SiteLogs for Cluster {
        async fn sources(&self, _: Lineage) -> textnlp_provider::Result<Vec<LogSource>> {
            let source =
                |pod: &str, is_previous| LogSource { pod: pod.to_owned(), container: "api".to_owned(), is_previous };
            Ok(vec![source("api-1", true), source("api-1", false), source("api-2", false)])
        }

        async fn read(&self, source: &LogSource, since: Timestamp, _: usize) -> textnlp_provider::Result<LogText> {
            self.0.lock().unwrap().push(since);
            if source.pod == "api-2" {
                return Err(Error::new(ErrorKind::NotFound, "read the log of", "pods api-2"));
            }
            let minute = if source.is_previous { 11 } else { 12 };
            let text = format!("2020-11-23T10:{minute}:00Z ERROR the disk failed\n2020-11-23T10:59:00Z INFO fine\n");
            Ok(LogText { text, is_cut: false })
        }
    }

    #[tokio::test]
    async fn logs_of_containers_are_read_and_a_failed_one_is_named() {
        let cluster = Cluster(Mutex::new(Vec::new()));
        let mut analyzer = Analyzer::errors_since(since());
        let mut read = SiteRead { site: "cluster".to_owned(), complete: true, ..SiteRead::default() };
        read.containers(&mut analyzer, &cluster, Lineage(Uuid::nil()), since()).await;
        assert_eq!(*cluster.0.lock().unwrap(), [since(); 3]);
        assert!(!read.complete && read.logs == 2, "{read:?}");
        assert!(read.notes[0].starts_with("api-2/api: "), "{read:?}");
        let found = analyzer.finish();
        let [group] = found.groups.as_slice() else { panic!("{found:?}") };
        assert_eq!((group.count, group.sources.as_slice()), (2, ["api-1/api".to_owned()].as_slice()));
    }
}
