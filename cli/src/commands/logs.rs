//! `logs`: prints the last lines of every process of an environment, and follows them.

use std::time::Duration;

use textnlp_service::logs::{LogLine, ProcessLogs};

use super::log_errors;
use super::prelude::*;
use crate::args::Logs;
use crate::operations_args::LogsCommand;
use crate::signals;

/// Lines of each process, unless another number is chosen.
const LINES: usize = 40;
/// Poll interval of a followed file.
const POLL_INTERVAL: Duration = Duration::from_millis(300);

/// `logs [NAME] [-f]`.
pub async fn logs(session: &Session, args: &Logs, console: Console) -> Result<Success, Failure> {
    if let Some(LogsCommand::Errors(errors)) = &args.command {
        let Logs { name, lines, follow, level, .. } = args;
        if name.is_some() || lines.is_some() || *follow || level.is_some() {
            let error =
                anyhow::anyhow!("`logs errors` reads all logs: it takes no process, --lines, --follow or --level");
            return Err(Failure::usage("usage", error).hint("textnlp-deploy logs errors --help"));
        }
        return log_errors::errors(session, errors, console).await;
    }
    let chosen = session.load(session.quiet())?;
    let mut files = ProcessLogs::find(&chosen, args.name.as_deref(), args.level.as_deref()).await?;
    let several = files.are_several();
    let print = |(name, line): &LogLine| match several {
        true => console.stream(&format!("{name}  {line}\n")),
        false => console.stream(&format!("{line}\n")),
    };
    let shown = files.last(args.lines.unwrap_or(LINES))?;
    shown.iter().for_each(print);
    if args.follow {
        let stop = signals::stop(session.quiet());
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(POLL_INTERVAL) => {}
                () = stop.cancelled() => break,
            }
            files.appended()?.iter().for_each(print);
        }
    }
    let lines: Vec<_> = shown.iter().map(|(name, line)| json!({ "process": name, "line": line })).collect();
    Ok(Success::new("", json!({ "environment": chosen.scope.name, "lines": lines })))
}
