//! `rollback --config`: lists the commits of an environment's file, and restores the file of one of them.

use std::fmt::Write as _;

use textnlp_service::configuration::{EnvironmentFile, Restored};

use crate::clouds;
use crate::commands::prelude::*;
use crate::stores::{self, OtherPlace};

/// `rollback --config [--to COMMIT]`.
pub async fn rollback(session: &Session, to: Option<&str>, console: Console) -> Result<Success, Failure> {
    let file = file(session)?;
    match to {
        None => list(&file).await,
        Some(commit) => restore(session, &file, commit, console).await,
    }
}

fn file(session: &Session) -> Result<EnvironmentFile, Failure> {
    session.check_library()?;
    let (path, environment) = match &session.global.file {
        Some(file) => (session.here.join(file), String::new()),
        None => {
            let name = session.environment_name()?;
            let listed = session.library.list().into_iter().find(|listed| listed.name == name);
            let hint = match &listed {
                Some(_) => format!(
                    "it is a built-in environment: settings are written into {}\nof whose commits this command restores one",
                    session.library.new_file(&name)
                ),
                None => "textnlp-deploy env list".to_owned(),
            };
            let file = listed.and_then(|listed| listed.file).ok_or_else(|| {
                let error = anyhow::anyhow!("environment `{name}` has no file here: nothing was changed in it");
                Failure::usage("no_environment_file", error).hint(hint)
            })?;
            (session.here.join(file), name)
        }
    };
    let list = session.again().command("rollback --config", environment);
    EnvironmentFile::at(path, list)
}

async fn list(file: &EnvironmentFile) -> Result<Success, Failure> {
    let commits = file.commits().await?;
    let mut text = format!("commits of {}, the newest first", file.path);
    for [commit, at, author, subject] in &commits {
        let _ = write!(text, "\n{}  {}  {author}  {subject}", &commit[..commit.len().min(12)], short_time(at));
    }
    if commits.is_empty() {
        text = format!("no commit has {}", file.path);
    } else {
        let _ = write!(text, "\nTo restore one: {} --to COMMIT", file.list);
    }
    let mut shown = Vec::new();
    for [commit, at, author, subject] in &commits {
        shown.push(json!({ "commit": commit, "at": at, "author": author, "subject": subject }));
    }
    Ok(Success::new(text, json!({ "file": file.path, "commits": shown })))
}

async fn restore(
    session: &Session,
    file: &EnvironmentFile,
    commit: &str,
    console: Console,
) -> Result<Success, Failure> {
    let loading = (&session.overrides(), &clouds::catalogue());
    let Restored { environment: name, commit: id, store, is_changed: changed } =
        file.restore(commit, &session.library, loading, &session.again()).await?;
    if changed {
        console.say("Files that it extends are not changed. Commit the file to keep it.");
    }
    let scope = session.scope(name.clone())?;
    if let Ok(Some(OtherPlace { text, fixes })) = stores::other_place(&scope, &store) {
        console.warn(format!("{text}: {}", fixes.join(", ")));
    }
    let (plan, up) = (scope.last("plan"), scope.last_up());
    let text = match changed {
        true => {
            format!("wrote {}: commit {}\nTo see what changes: {plan}\nTo deploy it: {up}", file.path, &id[..12])
        }
        false => format!("{} is that of commit {}\nTo deploy it: {up}", file.path, &id[..12]),
    };
    let document = json!({ "environment": name, "file": file.path, "commit": id, "changed": changed, "next": up });
    Ok(Success::new(text, document))
}

/// A time of git in the form of other lists.
fn short_time(at: &str) -> String {
    let time: Option<jiff::Timestamp> = at.parse().ok();
    time.map_or_else(|| at.to_owned(), |time| time.strftime("%Y-%m-%d %H:%M").to_string())
}
