//! `logs`: prints the last lines of every process of an environment, and follows them.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::time::Duration;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_service::running;

use crate::args::Logs;
use crate::clouds;
use crate::report::{Console, Failure, Success};
use crate::session::Session;
use crate::signals;

/// Limit of the bytes read from the end of a file.
const TAIL: u64 = 4 << 20;
/// Poll interval of a followed file.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// `logs [NAME] [-f]`.
pub async fn logs(session: &Session, args: &Logs, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(Console::new(session.global.output, true))?;
    let all = files(&chosen.scope.folder)?;
    let names = all.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let files: BTreeMap<_, _> =
        all.into_iter().filter(|(name, _)| args.name.as_ref().is_none_or(|n| is_meant(name, n))).collect();
    if files.is_empty() {
        let is_up = running::running(&chosen.scope).await.is_ok();
        let environment = &chosen.loaded.environment;
        let external_command = clouds::find(&chosen.scope.folder, environment, None, |site| site.log_command())?;
        if let Some(command) = external_command.filter(|_| is_up) {
            let error = anyhow::anyhow!("{}: its servers run in a cluster, which keeps their logs", chosen.scope.name);
            return Err(Failure::usage("no_logs", error).hint(command));
        }
        let what = args.name.as_ref().map_or("no logs".to_owned(), |n| format!("no log of `{n}`"));
        return Err(Failure::usage("no_logs", anyhow::anyhow!("{}: there are {what}", chosen.scope.name))
            .hint(if names.is_empty() { chosen.scope.command("status") } else { format!("the logs are: {names}") }));
    }
    let level = args.level.as_deref().map(rank).transpose()?;
    let mut shown = Vec::new();
    let mut ends = BTreeMap::new();
    for (name, path) in &files {
        let (text, end) = tail(path)?;
        ends.insert(name.clone(), end);
        let lines: Vec<&str> = text.lines().filter(|l| level.is_none_or(|least| level_of(l) >= least)).collect();
        for line in &lines[lines.len().saturating_sub(args.lines)..] {
            shown.push((name.clone(), (*line).to_owned()));
        }
    }
    let several = files.len() > 1;
    for (name, line) in &shown {
        print(console, several, name, line);
    }
    if args.follow {
        let stop = signals::stop(Console::new(session.global.output, true));
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = stop.cancelled() => break,
            }
            for (name, path) in &files {
                let end = ends.entry(name.clone()).or_default();
                for line in since(path, end)?.lines().filter(|l| level.is_none_or(|least| level_of(l) >= least)) {
                    print(console, several, name, line);
                }
            }
        }
    }
    let lines: Vec<_> = shown.iter().map(|(name, line)| json!({ "process": name, "line": line })).collect();
    Ok(Success::new("", json!({ "environment": chosen.scope.name, "lines": lines })))
}

fn print(console: Console, several: bool, name: &str, line: &str) {
    if several {
        console.stream(&format!("{name}  {line}\n"));
    } else {
        console.stream(&format!("{line}\n"));
    }
}

/// `server-0` selects that process of every site, `primary/server-0` that of one site.
fn is_meant(name: &str, requested: &str) -> bool {
    name == requested || name.split_once('/').is_some_and(|(_, process)| process == requested)
}

/// The last lines of every process's log, by process name.
pub fn newest(folder: &Utf8Path, lines: usize) -> anyhow::Result<BTreeMap<String, String>> {
    let mut all = BTreeMap::new();
    for (name, path) in files(folder)? {
        let (text, _) = tail(&path)?;
        let whole: Vec<&str> = text.lines().collect();
        all.insert(name, whole[whole.len().saturating_sub(lines)..].join("\n"));
    }
    Ok(all)
}

/// The newest log file of each process, by process name. With several sites the name is prefixed with the site's.
fn files(folder: &Utf8Path) -> anyhow::Result<BTreeMap<String, Utf8PathBuf>> {
    let mut found = BTreeMap::new();
    let Ok(sites) = folder.join("sites").read_dir_utf8() else { return Ok(found) };
    let sites = sites.collect::<Result<Vec<_>, _>>().context("list sites")?;
    for site in &sites {
        let log = site.path().join("log");
        let Ok(entries) = log.read_dir_utf8() else { continue };
        for entry in entries {
            let path = entry.context("list logs")?.into_path();
            if let (Some("log"), Some(name)) = (path.extension(), path.file_stem()) {
                let name = if sites.len() > 1 { format!("{}/{name}", site.file_name()) } else { name.to_owned() };
                found.insert(name, path.clone());
            }
        }
    }
    Ok(found)
}

/// The end of a file, starting at a whole line, and the file's length.
fn tail(path: &Utf8Path) -> anyhow::Result<(String, u64)> {
    let mut file = std::fs::File::open(path).with_context(|| format!("read {path}"))?;
    let length = file.metadata().with_context(|| format!("read {path}"))?.len();
    let from = length.saturating_sub(TAIL);
    file.seek(SeekFrom::Start(from)).with_context(|| format!("read {path}"))?;
    let mut bytes = Vec::new();
    file.take(TAIL).read_to_end(&mut bytes).with_context(|| format!("read {path}"))?;
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let text = if from > 0 { text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()) } else { text };
    Ok((text, length))
}

/// Whole lines appended after `end`. A file that became shorter was rotated and is read from its start.
fn since(path: &Utf8Path, end: &mut u64) -> anyhow::Result<String> {
    let Ok(mut file) = std::fs::File::open(path) else { return Ok(String::new()) };
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

const LEVELS: [&str; 5] = ["trace", "debug", "info", "warn", "error"];

fn rank(level: &str) -> Result<usize, Failure> {
    let wanted = level.to_ascii_lowercase();
    let wanted = if wanted == "warning" { "warn" } else { wanted.as_str() };
    LEVELS.iter().position(|l| *l == wanted).ok_or_else(|| {
        Failure::usage("no_such_level", anyhow::anyhow!("`{level}` is not a level"))
            .hint(format!("one of {}", LEVELS.join(", ")))
    })
}

/// The level of a line: its JSON `level` field, else the first word that is a level, else info.
fn level_of(line: &str) -> usize {
    const INFO: usize = 2;
    if let Ok(Value::Object(fields)) = serde_json::from_str(line) {
        return fields.get("level").and_then(Value::as_str).and_then(|l| rank(l).ok()).unwrap_or(INFO);
    }
    line.split_whitespace()
        .take(6)
        .find_map(|w| rank(w.trim_matches(|c: char| !c.is_ascii_alphabetic())).ok())
        .unwrap_or(INFO)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_levels_are_parsed_from_json_and_text() {
        assert!(level_of(r#"{"level":"ERROR","message":"x"}"#) > level_of(r#"{"level":"INFO"}"#));
        assert_eq!(level_of("2026-01-01 WARN disk"), 3);
        assert_eq!(level_of("plain words"), 2);
        assert!(rank("loud").is_err());
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
}
