//! The logs of containers of sites in clusters.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_provider::operations::{LogSource, SiteLogs};
use textnlp_provider::units::counted;
use textnlp_provider::{ErrorKind, Lineage, Result};

use super::line::{TimedLine, is_shown};
use crate::failure::hinted_chain;
use crate::{ChosenEnvironment, Failure, running};

/// Containers of one site whose logs are read.
pub(super) const CONTAINERS_MAX: usize = 300;
/// Lines of a container that are searched for lines of a level.
const SEARCHED: usize = 2000;

/// The logs of the containers of an environment, and how far each was read.
#[derive(Default)]
pub(super) struct ContainerLogs {
    /// The names of sites, the deployment that their containers belong to, and its logs.
    sites: Vec<(String, Lineage, Arc<dyn SiteLogs>)>,
    name: Option<String>,
    level: Option<usize>,
    /// The time of the newest line of each container.
    newest: BTreeMap<String, Timestamp>,
    /// Why the log of a container could not be read.
    pub(super) unread: BTreeMap<String, String>,
}

impl ContainerLogs {
    /// Those of all containers, or of one site, or of the named ones. Without sites where the environment is not up, or has none in a
    /// cluster.
    pub(super) async fn of(
        chosen: &ChosenEnvironment,
        (only, name): (Option<&str>, Option<&str>),
        level: Option<usize>,
    ) -> std::result::Result<Self, Failure> {
        let (folder, environment) = (&chosen.scope.folder, &chosen.loaded.environment);
        let mut logs = Self { name: name.map(str::to_owned), level, ..Self::default() };
        // The logs of machines are read without the state, which may be in a bucket that does not answer.
        if !environment.sites.iter().any(SiteSettings::is_in_cluster) {
            return Ok(logs);
        }
        let state = running::state(&chosen.scope).await?;
        if state.is_new() {
            return Ok(logs);
        }
        for site in environment.sites.iter().filter(|site| only.is_none_or(|only| only == site.name.as_str())) {
            if let Some(reader) = chosen.scope.platform.operations(folder, environment, site, None)?.logs() {
                logs.sites.push((site.name.to_string(), state.lineage(), reader));
            }
        }
        Ok(logs)
    }

    /// Whether any site has containers.
    pub(super) fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// The names of all containers.
    pub(super) async fn names(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        for (site, lineage, logs) in &self.sites {
            let sources = logs.sources(*lineage).await?;
            names.extend(sources.iter().map(|source| self.unit(site, source)));
        }
        names.sort();
        names.dedup();
        Ok(names)
    }

    /// The last lines of each container, with those before its last restart.
    pub(super) async fn last(&mut self, count: usize) -> Result<Vec<TimedLine>> {
        Ok(lines(self.read(Timestamp::UNIX_EPOCH, count).await?))
    }

    /// The lines that were written since.
    pub(super) async fn appended(&mut self) -> Result<Vec<TimedLine>> {
        let since = self.newest.values().min().copied().unwrap_or(Timestamp::UNIX_EPOCH);
        Ok(lines(self.read(since, usize::MAX).await?))
    }

    /// Reads the lines of each container that are newer than those that were read: the last ones, at most this many.
    async fn read(&mut self, since: Timestamp, count: usize) -> Result<BTreeMap<String, Vec<(Timestamp, String)>>> {
        let searched = if self.level.is_some() { count.max(SEARCHED) } else { count };
        let mut found: BTreeMap<String, Vec<(Timestamp, String)>> = BTreeMap::new();
        for (site, lineage, logs) in self.sites.clone() {
            let sources = match logs.sources(lineage).await {
                // A follower reads at the next poll what this one did not.
                Err(error) if error.kind.may_pass() && !self.newest.is_empty() => continue,
                sources => sources?,
            };
            let meant = sources.iter().map(|source| (self.unit(&site, source), source));
            let mut meant: Vec<_> = meant.filter(|(unit, _)| self.is_meant(unit)).collect();
            if let Some(more) = meant.len().checked_sub(CONTAINERS_MAX).filter(|more| *more > 0) {
                self.unread.insert(site, format!("the logs of {more} more containers were not read"));
                meant.truncate(CONTAINERS_MAX);
            }
            for (unit, source) in meant {
                let since = self.newest.get(&unit).copied().unwrap_or(since);
                let lines = found.entry(unit.clone()).or_default();
                let log = match logs.read(source, since, searched).await {
                    Ok(log) => log,
                    Err(error) if error.kind == ErrorKind::Denied => return Err(error),
                    // A pod may end meanwhile, and the log of the run before may be gone.
                    Err(error) if source.is_previous || error.kind == ErrorKind::NotFound => continue,
                    Err(error) => {
                        self.unread.insert(unit, hinted_chain(&error));
                        continue;
                    }
                };
                let mut shown = 0;
                let before = self.newest.get(&unit).copied();
                for line in log.text.lines() {
                    let (time, text) = line.split_once(' ').unwrap_or((line, ""));
                    let Ok(time) = time.parse::<Timestamp>() else { continue };
                    if before.is_some_and(|before| time <= before) {
                        continue;
                    }
                    self.newest.insert(unit.clone(), time);
                    if is_shown(self.level, text) {
                        shown += 1;
                        lines.push((time, text.to_owned()));
                    }
                }
                // Else those that were asked for are there, or the log has no more.
                if log.is_cut && shown < count {
                    let count_read = log.text.lines().count();
                    let why = format!("older lines were left out: {} read", counted(count_read, "line"));
                    self.unread.insert(unit.clone(), why);
                }
                lines.drain(..lines.len().saturating_sub(count));
            }
        }
        Ok(found)
    }

    /// `POD/CONTAINER`; with several sites `SITE/POD/CONTAINER`.
    fn unit(&self, site: &str, source: &LogSource) -> String {
        let unit = format!("{}/{}", source.pod, source.container);
        if self.sites.len() > 1 { format!("{site}/{unit}") } else { unit }
    }

    /// Whether a part of the name of a container is the wanted one: its pod, its container, both, or with its site.
    pub(super) fn is_meant(&self, unit: &str) -> bool {
        self.name.as_ref().is_none_or(|name| format!("/{unit}/").contains(&format!("/{name}/")))
    }
}

/// The lines of all containers.
fn lines(read: BTreeMap<String, Vec<(Timestamp, String)>>) -> Vec<TimedLine> {
    let of = |(unit, lines): (String, Vec<(Timestamp, String)>)| {
        lines.into_iter().map(move |(at, line)| (Some(at), (unit.clone(), line)))
    };
    read.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use textnlp_provider::operations::LogText;
    use uuid::Uuid;

    use super::super::line::{LogLine, in_order_of_time};
    use super::*;

    /// A pod that was restarted, with the lines of both runs, and a container beside it.
    struct Cluster(Mutex<Vec<&'static str>>, usize);

    #[async_trait]
    impl SiteLogs for Cluster {
        async fn sources(&self, _: Lineage) -> textnlp_provider::Result<Vec<LogSource>> {
            let source = |container: &str, is_previous| LogSource {
                pod: "api-1".to_owned(),
                container: container.to_owned(),
                is_previous,
            };
            Ok(vec![source("api", true), source("api", false), source("gateway", false)])
        }

        async fn read(&self, source: &LogSource, since: Timestamp, _: usize) -> textnlp_provider::Result<LogText> {
            let lines = self.0.lock().unwrap();
            let run = if source.is_previous { "before" } else { source.container.as_str() };
            let is_of =
                |line: &&&str| line.contains(run) && line[..20].parse::<Timestamp>().is_ok_and(|at| at >= since);
            let text: Vec<&str> = lines.iter().filter(is_of).copied().collect();
            Ok(LogText { is_cut: text.len() > self.1, text: text[text.len().saturating_sub(self.1)..].join("\n") })
        }
    }

    fn logs(name: Option<&str>, level: Option<usize>) -> (Arc<Cluster>, ContainerLogs) {
        logs_of(usize::MAX, name, level)
    }

    /// Of a cluster that returns at most this many lines of a container.
    fn logs_of(most: usize, name: Option<&str>, level: Option<usize>) -> (Arc<Cluster>, ContainerLogs) {
        let lines = vec![
            "2026-11-23T10:00:00Z INFO before one",
            "2026-11-23T10:00:01Z ERROR before two",
            "2026-11-23T10:00:05Z INFO api three",
            "2026-11-23T10:00:05Z ERROR gateway four",
        ];
        let cluster = Arc::new(Cluster(Mutex::new(lines), most));
        let sites = vec![("main".to_owned(), Lineage(Uuid::nil()), Arc::clone(&cluster) as Arc<dyn SiteLogs>)];
        let (name, newest) = (name.map(str::to_owned), BTreeMap::new());
        (cluster, ContainerLogs { sites, name, level, newest, unread: BTreeMap::new() })
    }

    fn line(unit: &str, text: &str) -> LogLine {
        (unit.to_owned(), text.to_owned())
    }

    #[tokio::test]
    async fn last_lines_of_containers_come_without_times_and_new_ones_once() {
        let (cluster, mut logs) = logs(None, None);
        let last = [
            line("api-1/api", "ERROR before two"),
            line("api-1/api", "INFO api three"),
            line("api-1/gateway", "ERROR gateway four"),
        ];
        assert_eq!(in_order_of_time(logs.last(2).await.unwrap()), last);
        assert_eq!(in_order_of_time(logs.appended().await.unwrap()), []);
        cluster.0.lock().unwrap().push("2026-11-23T10:00:06Z INFO api five");
        assert_eq!(in_order_of_time(logs.appended().await.unwrap()), [line("api-1/api", "INFO api five")]);
        assert_eq!(in_order_of_time(logs.appended().await.unwrap()), []);
        assert_eq!(logs.names().await.unwrap(), ["api-1/api", "api-1/gateway"]);
    }

    #[tokio::test]
    async fn lines_that_a_cluster_leaves_out_are_reported() {
        let (cluster, mut logs) = logs_of(1, Some("api-1"), None);
        cluster.0.lock().unwrap().push("2026-11-23T10:00:06Z INFO api five");
        assert_eq!(logs.last(1).await.unwrap().len(), 2, "one of each container");
        assert!(logs.unread.is_empty(), "{:?}", logs.unread);
        let (cluster, mut logs) = logs_of(1, Some("api-1"), None);
        cluster.0.lock().unwrap().push("2026-11-23T10:00:06Z INFO api five");
        logs.last(9).await.unwrap();
        let why = "older lines were left out: 1 line read";
        assert_eq!(logs.unread, BTreeMap::from([("api-1/api".to_owned(), why.to_owned())]));
    }

    #[tokio::test]
    async fn containers_are_chosen_by_a_part_of_their_name_and_lines_by_level() {
        for name in ["gateway", "api-1/gateway"] {
            let (_, mut logs) = logs(Some(name), None);
            assert_eq!(
                in_order_of_time(logs.last(9).await.unwrap()),
                [line("api-1/gateway", "ERROR gateway four")],
                "{name}"
            );
        }
        let (_, mut logs) = logs(Some("api-1"), Some(4));
        let errors = [line("api-1/api", "ERROR before two"), line("api-1/gateway", "ERROR gateway four")];
        assert_eq!(in_order_of_time(logs.last(9).await.unwrap()), errors);
        assert_eq!(in_order_of_time(self::logs(Some("ap"), None).1.last(9).await.unwrap()), []);
    }
}
