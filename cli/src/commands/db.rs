//! `db`: maintenance of the database of a running environment, and rehearsals of its failover. The server program does
//! it beside the database.

use std::fmt::Write as _;

use textnlp_orchestrator::clock::SystemClock;
use textnlp_service::keys::Admin;
use textnlp_service::origin;
use textnlp_service::rehearsal::{self, FailoverRecord, Rehearsal};
use textnlp_service::running::ServerProcess;

use super::prelude::*;
use crate::deployment::{self, Deployment};
use crate::operations_args::Db;
use crate::signals;

/// `db …`.
pub async fn db(session: &Session, command: &Db, console: Console) -> Result<Success, Failure> {
    match command {
        Db::Vacuum => maintenance(session, "vacuum", console).await,
        Db::Analyze => maintenance(session, "analyze", console).await,
        Db::Failover => failover(session, console).await,
    }
}

async fn maintenance(session: &Session, task: &str, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("database", console).await?;
    let deployment = deployment::recorded(session, chosen).await?;
    // `up` migrates databases, and a backup on this machine copies them: both take this lock.
    let locked = deployment.locked().await?;
    let progress = Progress::new(console);
    let mut rows = Vec::new();
    let mut first_failure = None;
    let admin = Admin::of(&deployment.chosen, &running);
    for place in admin.places().into_iter().filter(|place| is_meant(session, *place)) {
        let site = place.map(|process| process.site.as_str());
        progress.doing(&format!("{task} of the database{}", site.map_or(String::new(), |site| format!(" of {site}"))));
        match maintain(&deployment, &admin, place, task).await {
            Ok(row) => rows.push(row),
            Err(failure) => {
                rows.push(json!({ "site": site, "error": format!("{:#}", failure.error) }));
                first_failure.get_or_insert(failure);
            }
        }
    }
    progress.finish();
    locked.close().await.map_err(|error| deployment.failed(error))?;
    let document = json!({ "environment": deployment.chosen.scope.name, "do": task, "databases": rows });
    match first_failure {
        Some(failure) => Err(failure.document(document)),
        None if rows.is_empty() => {
            let error = anyhow::anyhow!("no database of {} is at that site", deployment.chosen.scope.name);
            Err(Failure::usage("no_such_site", error).hint(deployment.chosen.scope.command("status")))
        }
        None => Ok(Success::new(text(&rows), document)),
    }
}

/// `--site` selects one of several databases. Sites in clusters share one.
fn is_meant(session: &Session, place: Option<&ServerProcess>) -> bool {
    match (&session.global.site, place) {
        (Some(named), Some(process)) => process.site.as_str() == named,
        _ => true,
    }
}

async fn maintain(
    deployment: &Deployment,
    admin: &Admin<'_>,
    place: Option<&ServerProcess>,
    task: &str,
) -> Result<Value, Failure> {
    let done = admin.site(place).await?.run("database", &json!({ "do": task })).await;
    let mut row = done.map_err(|failure| {
        // The server program refuses it; the command itself is right.
        let exit = if failure.exit == Exit::Usage { Exit::Refused } else { failure.exit };
        let hint = failure.hint.or_else(|| Some(deployment.chosen.scope.command("status")));
        Failure { exit, code: "database", hint, ..failure }
    })?;
    if let Some(process) = place {
        row["site"] = json!(process.site);
    }
    Ok(row)
}

fn text(rows: &[Value]) -> String {
    let mut text = String::new();
    for row in rows {
        let _ = write!(text, "{}: ", row["site"].as_str().unwrap_or("database"));
        let bytes = |member: &str| size(row[member].as_u64().unwrap_or_default());
        let _ = match row["skipped"].as_str() {
            Some(why) => writeln!(text, "skipped: {why}"),
            None => writeln!(
                text,
                "{}, {} before, {} now, {} ms",
                row["database"].as_str().unwrap_or("done"),
                bytes("bytes_before"),
                bytes("bytes_after"),
                row["milliseconds"].as_u64().unwrap_or_default()
            ),
        };
    }
    text
}

/// Kills the primary after an approval.
async fn failover(session: &Session, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("database", console).await?;
    origin::check(&chosen.scope)?;
    let deployment = deployment::recorded(session, chosen).await?;
    let chosen = &deployment.chosen;
    let rehearsal = Rehearsal::prepare(chosen, &running).await?;
    let name = &chosen.scope.name;
    console.say(format!(
        "The primary {} of the database of {name} is killed, one of {} instances. Requests fail until the database recovers.",
        rehearsal.before.primary, rehearsal.before.wanted
    ));
    if !session.global.yes && !console.confirm("Kill it?") {
        let error = anyhow::anyhow!("not approved, so nothing was changed");
        return Err(Failure::refused("not_approved", error).hint("approve it with --yes"));
    }
    // `up` migrates databases, and a backup on this machine copies them: both take this lock.
    let locked = deployment.locked().await?;
    let (stop, progress) = (signals::stop(console), Progress::new(console));
    let measured = rehearsal.run(deployment.operator.clone(), &SystemClock, &progress, &stop).await;
    progress.finish();
    // What was measured is kept, also if the lock cannot be given back.
    let kept = measured.map(|record| rehearsal::keep(&chosen.scope.folder, &record).map(|file| (record, file)));
    let closed = locked.close().await;
    let (record, file) = kept??;
    closed.map_err(|error| deployment.failed(error))?;
    let mut document = json!(record);
    document["environment"] = json!(name);
    document["record"] = json!(file);
    let text = format!("{}  record         {file}", failover_text(&record));
    match rehearsal::verdict(&record) {
        Ok(()) => Ok(Success::new(text, document)),
        Err(missed) => {
            console.stream(&format!("{text}\n"));
            let error = anyhow::anyhow!(missed).context("the rehearsal missed its target");
            let hint = chosen.scope.command("status");
            Err(Failure::new(Exit::GateShut, "target_missed", error).hint(hint).document(document))
        }
    }
}

fn failover_text(record: &FailoverRecord) -> String {
    let FailoverRecord { killed, primary, writes, ready_s, instances, .. } = record;
    let lost = writes.lost.map_or("unknown".to_owned(), |lost| lost.to_string());
    let ready = ready_s.map_or("not ready again".to_owned(), |seconds| format!("ready after {seconds:.1} s"));
    let seconds = writes.without_writes_ms as f64 / 1000.0;
    format!(
        "{killed} was killed; the primary is {primary}\n  writes         {} acknowledged, {} failed, {lost} lost\n  \
         without writes {seconds:.1} s\n  instances      {instances}, {ready}\n",
        writes.acknowledged, writes.failed
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_database_has_a_line() {
        let rows = [
            json!({ "site": "a", "database": "sqlite", "bytes_before": 2_000_000, "bytes_after": 500_000, "milliseconds": 7 }),
            json!({ "site": "b", "skipped": "it is a standby, and follows its primary" }),
        ];
        let expect =
            "a: sqlite, 2.0 MB before, 500.0 kB now, 7 ms\nb: skipped: it is a standby, and follows its primary\n";
        assert_eq!(text(&rows), expect);
    }
}
