//! `logs`: prints the last lines of every process and container of an environment in the order of time, and follows them.

use textnlp_service::logs::{EnvironmentLogs, LogLine};

use super::log_errors;
use super::prelude::*;
use crate::args::Logs;
use crate::operations_args::LogsCommand;
use crate::signals;

/// Lines of each process, unless another number is chosen.
const LINES: usize = 40;

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
    let selected = (session.global.site.as_deref(), args.name.as_deref());
    let mut logs = EnvironmentLogs::find(&chosen, selected, args.level.as_deref()).await?;
    let several = logs.are_several();
    let print = |(name, line): &LogLine| match several {
        true => console.stream(&format!("{name}  {line}\n")),
        false => console.stream(&format!("{line}\n")),
    };
    let shown = logs.last(args.lines.unwrap_or(LINES)).await?;
    shown.iter().for_each(print);
    let unread: Vec<_> = logs.unread().map(|(name, why)| (name.clone(), why.clone())).collect();
    unread.iter().for_each(|(name, why)| console.warn(format!("{name}: {why}")));
    if args.follow {
        let stop = signals::stop(session.quiet());
        while !stop.is_cancelled() {
            tokio::select! {
                () = tokio::time::sleep(logs.poll_interval()) => {}
                () = stop.cancelled() => break,
            }
            logs.appended().await?.iter().for_each(print);
        }
    }
    let lines: Vec<_> = shown.iter().map(|(name, line)| json!({ "process": name, "line": line })).collect();
    let incomplete: Vec<_> = unread.iter().map(|(name, why)| json!({ "process": name, "why": why })).collect();
    Ok(Success::new("", json!({ "environment": chosen.scope.name, "lines": lines, "incomplete": incomplete })))
}
