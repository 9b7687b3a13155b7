//! `logs errors`: the errors in the logs of all sites since a time, equal ones together.

use jiff::Timestamp;
use textnlp_service::logs::{self, ErrorRow, Errors, SiteRead};

use super::analyze;
use super::prelude::*;
use crate::operations_args::LogErrors;
use crate::report::in_line;

/// Rows of the text, and of the JSON document.
const SHOWN: usize = 20;
const ROWS_MAX: usize = 500;

/// `logs errors --since TIME`.
pub async fn errors(session: &Session, args: &LogErrors, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(session.quiet())?;
    let progress = Progress::new(console);
    let Errors { mut rows, sites, runs_unknown } =
        progress.done(logs::errors(&chosen, session.global.site.as_deref(), args.since, &progress).await)?;
    if let Some(failure) = runs_unknown {
        console.warn(analyze::no_runs(&failure));
    }
    let left_out = rows.len().saturating_sub(ROWS_MAX);
    let total: u64 = rows.iter().map(|row| row.count).sum();
    let complete = sites.iter().all(|site| site.complete);
    let command = |text: &str| chosen.scope.command(text);
    let text = text(&rows, &sites, (total, args.since), &command);
    rows.truncate(ROWS_MAX);
    let document = json!({
        "environment": chosen.scope.name, "since": args.since, "sites": sites, "occurrences": total, "errors": rows,
        "left_out": left_out,
    });
    let success = Success::new(text, document);
    Ok(if complete { success } else { success.exit(Exit::Failed) })
}

fn text(
    rows: &[ErrorRow],
    sites: &[SiteRead],
    (total, since): (u64, Timestamp),
    command: &dyn Fn(&str) -> String,
) -> String {
    let lines: u64 = sites.iter().map(|site| site.lines).sum();
    let mut text = format!(
        "{} in {} since {}, in {} of {}",
        counted(total, "error"),
        counted(rows.len(), "group"),
        analyze::shown(since),
        counted(lines, "line"),
        counted(sites.len(), "site")
    );
    for row in rows.iter().take(SHOWN) {
        text.push_str(&format!(
            "\n\n{} × {}\n  in        {}: {}",
            row.count,
            in_line(&row.message),
            row.site,
            in_line(&row.units.join(", "))
        ));
        if let (Some(first), Some(last)) = (row.first, row.last) {
            text.push_str(&format!("\n  time      {} to {}", analyze::shown(first), analyze::shown(last)));
        }
        if let Some(run) = &row.run {
            text.push_str(&analyze::run_line(run));
        }
        if let Some(cause) = &row.cause {
            text.push_str(&format!("\n  cause     {}\n  next      {}", cause.text, command(cause.command)));
        }
        if row.example != row.message {
            text.push_str(&format!("\n  example   {}", in_line(&row.example)));
        }
    }
    if rows.len() > SHOWN {
        text.push_str(&format!("\n\n{}: `--output json` has {ROWS_MAX}", counted(rows.len() - SHOWN, "more group")));
    }
    for site in sites {
        if site.ungrouped > 0 {
            text.push_str(&format!(
                "\n\n{}: errors in no group, because there were too many different ones: {}",
                site.site, site.ungrouped
            ));
        }
        for note in &site.notes {
            text.push_str(&format!("\n\nnote: {}: {note}", site.site));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_names_the_site_and_the_processes_of_an_error() {
        let since: Timestamp = "2020-11-23T10:10:00Z".parse().unwrap();
        let row = ErrorRow {
            site: "here".to_owned(),
            units: vec!["server-0".to_owned()],
            message: "request N failed".to_owned(),
            count: 2,
            first: None,
            last: None,
            example: "request N failed".to_owned(),
            cause: None,
            run: None,
        };
        let read = SiteRead { site: "here".to_owned(), lines: 4, complete: true, ..SiteRead::default() };
        let shown = text(&[row], &[read], (2, since), &|command| command.to_owned());
        let expected = "2 errors in 1 group since 2020-11-23 10:10:00Z, in 4 lines of 1 site\n\n2 × request N failed\n  in        here: server-0";
        assert_eq!(shown, expected);
    }
}
