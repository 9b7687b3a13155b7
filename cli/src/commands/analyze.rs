//! `analyze`: groups the errors of logs, with the time from which they occur more often and their likely cause.

use std::fs::File;
use std::io::{self, BufReader};

use anyhow::Context;
use camino::Utf8Path;
use jiff::Timestamp;
use textnlp_orchestrator::analysis::{Analysis, Analyzer, Group, Level, RunSpan};
use textnlp_service::logs::{self, lines};

use super::prelude::*;
use crate::args::Analyze;
use crate::report::in_line;

/// Groups that are printed; the JSON document has all.
const SHOWN: usize = 20;
/// The name of standard input among the files.
const STDIN: &str = "-";

/// `analyze [FILE]…`.
pub async fn analyze(session: &Session, args: &Analyze, console: Console) -> Result<Success, Failure> {
    let mut analyzer = Analyzer::since(args.since);
    // Commands are completed with the environment only where its own logs were read.
    let (mut command, mut runs, mut incomplete) = (None, Vec::new(), Vec::new());
    if args.files.is_empty() {
        let chosen = session.load(session.quiet())?;
        let mut read = Vec::new();
        let is_empty = match args.since {
            Some(since) => {
                read = logs::add_files(&mut analyzer, &chosen.scope.folder, since)?;
                read.is_empty()
            }
            None => {
                let all = logs::newest(&chosen.scope.folder, usize::MAX)?;
                for (name, text) in &all {
                    text.lines().for_each(|line| analyzer.add(name, line));
                }
                all.is_empty()
            }
        };
        let progress = Progress::new(console);
        let since = args.since.unwrap_or(Timestamp::UNIX_EPOCH);
        let containers = logs::add_containers(&mut analyzer, &chosen, since, &progress).await;
        read.extend(progress.done(containers)?);
        for site in read.iter().filter(|site| !site.complete) {
            incomplete.extend(site.notes.iter().map(|note| format!("{}: {note}", site.site)));
        }
        incomplete.iter().for_each(|note: &String| console.warn(note));
        if is_empty && read.iter().all(|site| site.logs == 0) {
            return Err(logs::no_logs(&chosen, "no log", "").await?);
        }
        match progress.done(logs::runs(&chosen).await) {
            Ok(all) => runs = all,
            Err(failure) => console.warn(no_runs(&failure)),
        }
        command = Some(move |text: &str| chosen.scope.command(text));
    }
    for file in &args.files {
        read(&mut analyzer, file)?;
    }
    let mut found = analyzer.finish();
    found.groups.iter_mut().for_each(|group| group.attribute(&runs));
    let complete =
        |text: &str| command.as_ref().map_or_else(|| format!("textnlp-deploy {text}"), |command| command(text));
    Ok(Success::new(text(&found, &complete), json!({ "analysis": found, "incomplete": incomplete })))
}

/// The warning that errors are shown without the runs during which they began.
pub(super) fn no_runs(failure: &Failure) -> String {
    format!("no run is named beside its errors: {:#}", failure.error)
}

fn read(analyzer: &mut Analyzer, file: &Utf8Path) -> anyhow::Result<()> {
    if file == STDIN {
        return lines(io::stdin().lock(), |line| analyzer.add("", line)).context("read standard input");
    }
    let failed = || format!("read {file}");
    let open = File::open(file).with_context(failed)?;
    let name = file.file_stem().unwrap_or_default();
    lines(BufReader::new(open), |line| analyzer.add(name, line)).with_context(failed)
}

fn text(found: &Analysis, complete: &dyn Fn(&str) -> String) -> String {
    let span = match (found.from, found.to) {
        (Some(from), Some(to)) => format!(" from {} to {}", shown(from), shown(to)),
        _ => String::new(),
    };
    let mut text = format!(
        "{}{span}: {} and {} in {}",
        counted(found.lines, "line"),
        counted(found.errors, "error"),
        counted(found.warnings, "warning"),
        counted(found.groups.len(), "group")
    );
    for group in found.groups.iter().take(SHOWN) {
        text.push_str(&lines_of(group, complete));
    }
    if let Some(more) = found.groups.len().checked_sub(SHOWN).filter(|more| *more > 0) {
        text.push_str(&format!("\n\n{}: `--output json` has them all", counted(more, "more group")));
    }
    if found.ungrouped > 0 {
        text.push_str(&format!(
            "\noccurrences in no group, because there were too many different ones: {}",
            found.ungrouped
        ));
    }
    text
}

fn lines_of(group: &Group, complete: &dyn Fn(&str) -> String) -> String {
    let level = if group.level == Level::Error { "error" } else { "warning" };
    let mut text = format!("\n\n{level} × {}  {}", group.count, in_line(&group.template));
    if !group.sources.is_empty() {
        text.push_str(&format!("\n  in        {}", group.sources.join(", ")));
    }
    if let (Some(first), Some(last)) = (group.first, group.last) {
        text.push_str(&format!("\n  time      {} to {}", shown(first), shown(last)));
    }
    if let Some(change) = &group.change {
        let (before, since) = (change.before, change.since);
        text.push_str(&format!("\n  since     {}: {since:.1} a minute, {before:.1} before", shown(change.at)));
    }
    if let Some(run) = &group.run {
        text.push_str(&run_line(run));
    }
    if let Some(cause) = &group.cause {
        text.push_str(&format!("\n  cause     {}\n  next      {}", cause.text, complete(cause.command)));
    }
    if group.example != group.template {
        text.push_str(&format!("\n  example   {}", in_line(&group.example)));
    }
    text
}

/// The line about the run during which an error began.
pub(super) fn run_line(run: &RunSpan) -> String {
    let RunSpan { site, purpose, from, until } = run;
    format!(
        "\n  run       `{purpose}` changed {site} from {} to {}: what it restarts does not answer meanwhile",
        shown(*from),
        shown(*until)
    )
}

pub(super) fn shown(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_errors_with_change_cause_and_command() {
        let mut analyzer = Analyzer::default();
        for second in 0..3000 {
            let (minute, second) = (second / 60, second % 60);
            let level = if minute < 40 { "INFO" } else { "ERROR" };
            let line = format!(
                r#"{{"timestamp":"2026-11-23T10:{minute:02}:{second:02}Z","level":"{level}","message":"usage could not be written"}}"#
            );
            analyzer.add("server-0", &line);
        }
        let complete = |command: &str| format!("textnlp-deploy {command} --env demo");
        let expected = "\
3000 lines from 2026-11-23 10:00:00Z to 2026-11-23 10:49:59Z: 600 errors and 0 warnings in 1 group

error × 600  usage could not be written
  in        server-0
  time      2026-11-23 10:40:00Z to 2026-11-23 10:49:59Z
  since     2026-11-23 10:40:00Z: 60.0 a minute, 0.0 before
  cause     the database does not answer or refuses
  next      textnlp-deploy status --env demo";
        assert_eq!(text(&analyzer.finish(), &complete), expected);
    }
}
