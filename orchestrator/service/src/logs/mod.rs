//! Logs of an environment: those of processes on this machine, and those of containers.

mod containers;
mod errors;
mod line;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, Read, Seek, SeekFrom};
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::{Mode, OFlags};
use textnlp_orchestrator::analysis::time_of;
use textnlp_provider::Error;

use crate::failure::hinted_chain;
use crate::{ChosenEnvironment, Exit, Failure, running, size};

use containers::ContainerLogs;
pub use errors::{ErrorRow, Errors, SiteRead, add_containers, add_files, errors, runs};
pub use line::LogLine;
use line::{TimedLine, in_order_of_time, is_shown, rank};

/// Limit of the bytes read from the end of a file.
const TAIL: u64 = 4 << 20;
/// The most bytes that are searched for the last lines of one process, in its newest log and the rotated ones.
const SEARCHED: u64 = 128 << 20;
/// How often followed files are read, and followed containers.
const FILES_INTERVAL: Duration = Duration::from_millis(300);
const CONTAINERS_INTERVAL: Duration = Duration::from_secs(2);
/// Bytes of a line that are read into memory. The rest is skipped.
const LINE_MAX: u64 = 1 << 20;

/// The logs of an environment, from a level on, and how far each was read.
pub struct EnvironmentLogs {
    files: BTreeMap<String, (LogFile, u64)>,
    level: Option<usize>,
    /// The processes of which older lines were left out, and why.
    cut: BTreeMap<String, String>,
    containers: ContainerLogs,
}

impl EnvironmentLogs {
    /// Those of all processes and containers, or of one site, or of the named ones: `server-0` of every site,
    /// `primary/server-0` of one; a pod, a container, or `POD/CONTAINER`.
    pub async fn find(
        chosen: &ChosenEnvironment,
        (site, name): (Option<&str>, Option<&str>),
        level: Option<&str>,
    ) -> Result<Self, Failure> {
        let level = level.map(rank).transpose()?;
        let all = files(&chosen.scope.folder, site)?;
        let names = all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
        let meant = all.into_iter().filter(|(process, _)| name.is_none_or(|name| is_meant(process, name)));
        let files: BTreeMap<_, _> = meant.map(|(process, file)| (process, (file, 0))).collect();
        let containers = match name {
            // A process of a machine was named.
            Some(_) if !files.is_empty() => ContainerLogs::default(),
            name => ContainerLogs::of(chosen, (site, name), level).await?,
        };
        if files.is_empty() && containers.is_empty() {
            let mut what = name.map_or("no log".to_owned(), |name| format!("no log `{name}`"));
            if let Some(site) = site {
                what.push_str(&format!(" of site `{site}`"));
            }
            return Err(no_logs(chosen, &what, &names).await?);
        }
        Ok(Self { files, level, cut: BTreeMap::new(), containers })
    }

    /// Whether there may be several.
    pub fn are_several(&self) -> bool {
        self.files.len() > 1 || !self.containers.is_empty()
    }

    /// The last lines of each, in the order of time.
    pub async fn last(&mut self, count: usize) -> Result<Vec<LogLine>, Failure> {
        let mut found = self.last_of_files(count)?;
        found.extend(self.containers.last(count).await.map_err(unreadable)?);
        if found.is_empty() && self.files.is_empty() {
            let names = self.containers.names().await.map_err(unreadable)?;
            if !names.iter().any(|name| self.containers.is_meant(name)) {
                let error = anyhow::anyhow!("no container of this deployment has that name");
                return Err(Failure::usage("no_logs", error).hint(format!("the logs are: {}", names.join(", "))));
            }
        }
        Ok(in_order_of_time(found))
    }

    /// The lines that were appended since, in the order of time.
    pub async fn appended(&mut self) -> Result<Vec<LogLine>, Failure> {
        let mut found = self.appended_to_files()?;
        found.extend(self.containers.appended().await.map_err(unreadable)?);
        Ok(in_order_of_time(found))
    }

    /// The processes and containers whose wanted lines were not all read, and why.
    pub fn unread(&self) -> impl Iterator<Item = (&String, &String)> {
        self.cut.iter().chain(&self.containers.unread)
    }

    /// How long to wait before [`Self::appended`]: an API server is asked less often than a file is read.
    pub fn poll_interval(&self) -> Duration {
        if self.containers.is_empty() { FILES_INTERVAL } else { CONTAINERS_INTERVAL }
    }

    fn last_of_files(&mut self, count: usize) -> anyhow::Result<Vec<TimedLine>> {
        let mut found = Vec::new();
        let room = SEARCHED / (self.files.len() as u64).max(1);
        for (name, (file, end)) in &mut self.files {
            let last = last_lines(file, count, self.level, room)?;
            *end = last.length;
            if last.is_cut {
                let why = format!("its last {} were searched; older lines were left out", size(room));
                self.cut.insert(name.clone(), why);
            }
            found.extend(last.lines.into_iter().map(|line| (time_of(&line), (name.clone(), line))));
        }
        Ok(found)
    }

    fn appended_to_files(&mut self) -> anyhow::Result<Vec<TimedLine>> {
        let mut found = Vec::new();
        for (name, (file, end)) in &mut self.files {
            let text = since(&file.path, end)?;
            let lines = text.lines().filter(|line| is_shown(self.level, line));
            found.extend(lines.map(|line| (time_of(line), (name.clone(), line.to_owned()))));
        }
        Ok(found)
    }
}

fn unreadable(error: Error) -> Failure {
    let error = anyhow::anyhow!("the logs of the cluster cannot be read: {}", hinted_chain(&error));
    Failure::new(Exit::Failed, "logs", error)
}

/// Why there is no log on this machine, with the command that shows those that are elsewhere.
pub async fn no_logs(chosen: &ChosenEnvironment, what: &str, names: &str) -> Result<Failure, Failure> {
    let is_up = running::running(&chosen.scope).await.is_ok();
    let environment = &chosen.loaded.environment;
    let external_command =
        chosen.scope.platform.find(&chosen.scope.folder, environment, None, |site| site.log_command())?;
    if let Some(command) = external_command.filter(|_| is_up) {
        let place = if environment.is_endpoint() { "are run by the cloud" } else { "run in a cluster" };
        let error = anyhow::anyhow!("{}: its servers {place}, which keeps their logs", chosen.scope.name);
        return Ok(Failure::usage("no_logs", error).hint(command));
    }
    let hint = if names.is_empty() { chosen.scope.command("status") } else { format!("the logs are: {names}") };
    Ok(Failure::usage("no_logs", anyhow::anyhow!("{}: there is {what}", chosen.scope.name)).hint(hint))
}

/// `server-0` selects that process of every site, `primary/server-0` that of one site.
fn is_meant(name: &str, requested: &str) -> bool {
    name == requested || name.split_once('/').is_some_and(|(_, process)| process == requested)
}

/// The last lines of every process's log, by process name.
pub fn newest(folder: &Utf8Path, lines: usize) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (name, file) in files(folder, None)? {
        let (text, _) = tail(&file.path, TAIL)?;
        let whole: Vec<&str> = text.lines().collect();
        all.insert(name, whole[whole.len().saturating_sub(lines)..].join("\n"));
    }
    Ok(all)
}

/// The last lines of a process.
#[derive(Debug, PartialEq)]
struct LastLines {
    /// Oldest first.
    lines: Vec<String>,
    /// The length of the newest file.
    length: u64,
    /// Whether wanted lines are older than what was searched.
    is_cut: bool,
}

/// The last lines of a level, at most this many: of the newest file, then of rotated ones as far back as needed, at most
/// `room` bytes.
fn last_lines(file: &LogFile, count: usize, level: Option<usize>, mut room: u64) -> anyhow::Result<LastLines> {
    let (mut parts, mut missing, mut newest, mut is_cut) = (Vec::new(), count, None, false);
    for path in [&file.path].into_iter().chain(file.rotated.iter().rev()) {
        if missing == 0 {
            break;
        }
        let is_rotated = newest.is_some();
        if is_rotated && !path.exists() {
            // It was rotated out meanwhile, and so were those before it.
            break;
        }
        let mut limit = TAIL.min(room);
        let (lines, length) = loop {
            let (text, length) = tail(path, limit)?;
            let lines: Vec<String> = text.lines().filter(|line| is_shown(level, line)).map(str::to_owned).collect();
            if lines.len() >= missing || length <= limit || limit == room {
                break (lines, length);
            }
            limit = room;
        };
        is_cut = length > limit && lines.len() < missing;
        newest = newest.or(Some(length));
        let lines = lines[lines.len().saturating_sub(missing)..].to_vec();
        missing -= lines.len();
        parts.push(lines);
        room = room.saturating_sub(length.min(limit));
        if is_cut {
            break;
        }
    }
    let lines = parts.into_iter().rev().flatten().collect();
    // Without a wanted line nothing was opened.
    let length = newest.map_or_else(|| tail(&file.path, 0).map(|(_, length)| length), Ok)?;
    Ok(LastLines { lines, length, is_cut })
}

/// The log of each process, of one site if it is given, by process name. With several sites the name is prefixed with the
/// site's.
fn files(folder: &Utf8Path, only: Option<&str>) -> anyhow::Result<BTreeMap<String, LogFile>> {
    let several = folder.join("sites").read_dir_utf8().is_ok_and(|sites| sites.count() > 1);
    let name = |file: &LogFile| if several { format!("{}/{}", file.site, file.unit) } else { file.unit.clone() };
    let meant = all(folder)?.into_iter().filter(|file| only.is_none_or(|only| only == file.site));
    Ok(meant.map(|file| (name(&file), file)).collect())
}

/// The log of one process on this machine.
#[derive(Debug)]
struct LogFile {
    site: String,
    unit: String,
    /// The newest file.
    path: Utf8PathBuf,
    /// `NAME.log.NUMBER`, the oldest first.
    rotated: Vec<Utf8PathBuf>,
}

/// The logs of all processes on this machine, by site and process.
fn all(folder: &Utf8Path) -> anyhow::Result<Vec<LogFile>> {
    let mut found = Vec::new();
    let Ok(sites) = folder.join("sites").read_dir_utf8() else { return Ok(found) };
    for site in sites {
        let site = site.context("list sites")?;
        let log = site.path().join("log");
        if !is_folder(site.path()) || !is_folder(&log) {
            continue;
        }
        let Ok(entries) = log.read_dir_utf8() else { continue };
        let (mut newest, mut rotated) = (Vec::new(), BTreeMap::<String, BTreeMap<Reverse<u32>, Utf8PathBuf>>::new());
        for entry in entries {
            let entry = entry.context("list logs")?;
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            let path = entry.into_path();
            match (path.file_stem(), path.extension()) {
                (Some(unit), Some("log")) => newest.push((unit.to_owned(), path)),
                (Some(name), Some(number)) => {
                    if let (Some(unit), Ok(number)) = (name.strip_suffix(".log"), number.parse()) {
                        rotated.entry(unit.to_owned()).or_default().insert(Reverse(number), path);
                    }
                }
                _ => {}
            }
        }
        for (unit, path) in newest {
            let rotated = rotated.remove(&unit).unwrap_or_default().into_values().collect();
            found.push(LogFile { site: site.file_name().to_owned(), unit, path, rotated });
        }
    }
    found.sort_by(|a, b| (&a.site, &a.unit).cmp(&(&b.site, &b.unit)));
    Ok(found)
}

fn is_folder(path: &Utf8Path) -> bool {
    path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir())
}

/// Opens a log. What is no regular file may be a link to a secret of the reader, or a pipe without an end.
fn open(path: &Utf8Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::open(path.as_std_path(), flags, Mode::empty())?);
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is not a regular file")),
    }
}

/// Reads lines of any length; each is cut at [`LINE_MAX`].
pub fn lines(mut from: impl BufRead, mut each: impl FnMut(&str)) -> io::Result<()> {
    let mut line = Vec::new();
    loop {
        line.clear();
        if from.by_ref().take(LINE_MAX).read_until(b'\n', &mut line)? == 0 {
            return Ok(());
        }
        if line.last() != Some(&b'\n') && line.len() as u64 == LINE_MAX {
            from.skip_until(b'\n')?;
        }
        each(&String::from_utf8_lossy(&line));
    }
}

/// The end of a file, at most this many bytes, starting at a whole line, and the file's length.
fn tail(path: &Utf8Path, limit: u64) -> anyhow::Result<(String, u64)> {
    let mut file = open(path).with_context(|| format!("read {path}"))?;
    let length = file.metadata().with_context(|| format!("read {path}"))?.len();
    let from = length.saturating_sub(limit);
    file.seek(SeekFrom::Start(from)).with_context(|| format!("read {path}"))?;
    let mut bytes = Vec::new();
    file.take(limit).read_to_end(&mut bytes).with_context(|| format!("read {path}"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let text = if from > 0 { text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()) } else { text };
    Ok((text, length))
}

/// Whole lines appended after `end`. A file that became shorter was rotated and is read from its start.
fn since(path: &Utf8Path, end: &mut u64) -> anyhow::Result<String> {
    let Ok(mut file) = open(path) else { return Ok(String::new()) };
    let length = file.metadata().with_context(|| format!("read {path}"))?.len();
    if length < *end {
        *end = 0;
    }
    file.seek(SeekFrom::Start(*end)).with_context(|| format!("read {path}"))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).with_context(|| format!("read {path}"))?;
    let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
    *end += whole as u64;
    Ok(String::from_utf8_lossy(&bytes[..whole]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_and_pipes_are_no_logs() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        let (log, secret) = (folder.join("sites/here/log"), folder.join("id_ed25519"));
        std::fs::create_dir_all(&log).unwrap();
        std::fs::write(&secret, "secret\n").unwrap();
        std::fs::write(log.join("server-0.log"), "one\n").unwrap();
        std::os::unix::fs::symlink(&secret, log.join("evil.log")).unwrap();
        let pipe = log.join("pipe.log");
        let (kind, mode) = (rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR);
        rustix::fs::mknodat(rustix::fs::CWD, pipe.as_std_path(), kind, mode, 0).unwrap();
        let away = folder.join("away");
        std::fs::create_dir(&away).unwrap();
        std::fs::write(away.join("x.log"), "secret\n").unwrap();
        std::fs::create_dir(folder.join("sites/there")).unwrap();
        std::os::unix::fs::symlink(&away, folder.join("sites/there/log")).unwrap();
        let found = newest(folder, 9).unwrap();
        assert_eq!(found.into_iter().collect::<Vec<_>>(), [("here/server-0".to_owned(), "one".to_owned())]);
        // Put there after the list was made.
        assert!(tail(&log.join("evil.log"), TAIL).is_err() && tail(&pipe, TAIL).is_err());
    }

    #[test]
    fn last_lines_are_read_from_rotated_logs_as_far_back_as_needed() {
        let kept = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(kept.path()).unwrap();
        let log = folder.join("sites/here/log");
        std::fs::create_dir_all(&log).unwrap();
        for (name, text) in [("a.log.2", "1\n2\n"), ("a.log.1", "3 ERROR\n4\n"), ("a.log", "5\n6\n")] {
            std::fs::write(log.join(name), text).unwrap();
        }
        let files = files(folder, None).unwrap();
        let last = |count, level, room| {
            let LastLines { lines, length, is_cut } = last_lines(&files["a"], count, level, room).unwrap();
            assert_eq!(length, 4, "where a follower continues");
            (lines.join(","), is_cut)
        };
        assert_eq!(last(1, None, SEARCHED), ("6".to_owned(), false));
        assert_eq!(last(3, None, SEARCHED), ("4,5,6".to_owned(), false));
        assert_eq!(last(9, None, SEARCHED), ("1,2,3 ERROR,4,5,6".to_owned(), false));
        assert_eq!(last(1, Some(4), SEARCHED), ("3 ERROR".to_owned(), false));
        assert_eq!(last(9, None, 7), ("4,5,6".to_owned(), true), "what is left out is reported");
        assert_eq!(last(0, None, SEARCHED), (String::new(), false));
        // A process with more than what is read at first.
        let line = format!("{}\n", "x".repeat(1023));
        let count = 2 * usize::try_from(TAIL).unwrap() / line.len();
        std::fs::write(log.join("a.log"), line.repeat(count)).unwrap();
        let all = last_lines(&files["a"], usize::MAX, None, SEARCHED).unwrap();
        assert_eq!((all.lines.len(), all.is_cut), (count + 4, false));
    }

    #[test]
    fn log_follow_returns_each_whole_line_once_and_detects_rotation() {
        let folder = tempfile::tempdir().unwrap();
        let path = Utf8PathBuf::try_from(folder.path().join("a.log")).unwrap();
        std::fs::write(&path, "one\ntw").unwrap();
        let mut end = 0;
        assert_eq!(since(&path, &mut end).unwrap(), "one\n");
        std::fs::write(&path, "one\ntwo\n").unwrap();
        assert_eq!(since(&path, &mut end).unwrap(), "two\n");
        std::fs::write(&path, "new\n").unwrap();
        assert_eq!(since(&path, &mut end).unwrap(), "new\n");
    }

    #[test]
    fn long_lines_are_cut_and_broken_text_is_read() {
        let mut input = vec![b'x'; usize::try_from(LINE_MAX).unwrap() + 7];
        input.extend_from_slice(b"\nnext \xff\nlast");
        let mut all = Vec::new();
        lines(io::Cursor::new(input), |line| all.push(line.trim_end().to_owned())).unwrap();
        assert_eq!(all.len(), 3);
        assert_eq!(all[0].len() as u64, LINE_MAX);
        assert_eq!(&all[1..], ["next \u{fffd}", "last"]);
    }
}
