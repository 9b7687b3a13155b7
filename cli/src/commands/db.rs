//! `db`: maintenance of the database of a running environment, measurements of it, and rehearsals of its failover. The
//! server program does it beside the database. The promotion of a replica in another region needs neither.

use std::fmt::Write as _;
use std::time::Duration;

use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::replica::{SourceState, find, promote as promote_replica};
use textnlp_provider::Verified;
use textnlp_service::keys::Admin;
use textnlp_service::rehearsal::{self, FailoverRecord, Rehearsal};
use textnlp_service::running::ServerProcess;
use textnlp_service::{origin, replica};

use super::prelude::*;
use crate::deployment::{self, Deployment};
use crate::operations_args::{BENCH_SECONDS_MAX, Db, DbBench, DbPromote};
use crate::signals;

/// What the server program does with a database.
struct Task {
    name: &'static str,
    input: Value,
    /// How long it takes by design.
    takes: Duration,
    /// The input that removes what it left, if a signal stops it.
    cleanup: Option<Value>,
    /// The text of its results.
    text: fn(&[Value]) -> String,
}

impl Task {
    fn maintenance(name: &'static str) -> Self {
        Self { name, input: json!({ "do": name }), takes: Duration::ZERO, cleanup: None, text: maintenance_text }
    }

    fn bench(args: &DbBench) -> Self {
        let (length, number, takes) = match args.transactions {
            Some(each) => ("transactions", each, BENCH_SECONDS_MAX),
            None => ("seconds", args.duration.as_seconds(), args.duration.as_seconds()),
        };
        Self {
            name: "bench",
            input: json!({ "do": "bench", "clients": args.clients, length: number }),
            takes: Duration::from_secs(takes),
            cleanup: Some(json!({ "do": "end_bench" })),
            text: bench_text,
        }
    }
}

/// `db …`.
pub async fn db(session: &Session, command: &Db, console: Console) -> Result<Success, Failure> {
    match command {
        Db::Vacuum => perform(session, &Task::maintenance("vacuum"), console).await,
        Db::Analyze => perform(session, &Task::maintenance("analyze"), console).await,
        Db::Bench(args) => perform(session, &Task::bench(args), console).await,
        Db::Failover => failover(session, console).await,
        Db::Promote(args) => promote(session, args, console).await,
    }
}

/// Performs a task with each database.
async fn perform(session: &Session, task: &Task, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("database", console).await?;
    let deployment = deployment::recorded(session, chosen).await?;
    // `up` migrates databases, and a backup on this machine copies them: both take this lock.
    let locked = deployment.locked().await?;
    let progress = Progress::new(console);
    let mut rows = Vec::new();
    let mut first_failure = None;
    let admin = Admin::of(&deployment.chosen, &running);
    let name = task.name;
    for place in admin.places().into_iter().filter(|place| is_meant(session, *place)) {
        let site = place.map(|process| process.site.as_str());
        progress.doing(&format!("{name} of the database{}", site.map_or(String::new(), |site| format!(" of {site}"))));
        match unless_stopped(&deployment, &admin, place, task, console).await {
            Ok(row) => rows.push(row),
            Err(failure) if failure.exit == Exit::Stopped => {
                first_failure = Some(failure);
                break;
            }
            Err(failure) => {
                rows.push(json!({ "site": site, "error": format!("{:#}", failure.error) }));
                first_failure.get_or_insert(failure);
            }
        }
    }
    progress.finish();
    locked.close().await.map_err(|error| deployment.failed(error))?;
    let document = json!({ "environment": deployment.chosen.scope.name, "do": name, "databases": rows });
    match first_failure {
        Some(failure) => Err(failure.document(document)),
        None if rows.is_empty() => {
            let error = anyhow::anyhow!("no database of {} is at that site", deployment.chosen.scope.name);
            Err(Failure::usage("no_such_site", error).hint(deployment.chosen.scope.command("status")))
        }
        None => Ok(Success::new((task.text)(&rows), document)),
    }
}

/// `--site` selects one of several databases. Sites in clusters share one.
fn is_meant(session: &Session, place: Option<&ServerProcess>) -> bool {
    match (&session.global.site, place) {
        (Some(named), Some(process)) => process.site.as_str() == named,
        _ => true,
    }
}

/// Performs a task. Where it leaves something, a signal stops it and removes that.
async fn unless_stopped(
    deployment: &Deployment,
    admin: &Admin<'_>,
    place: Option<&ServerProcess>,
    task: &Task,
    console: Console,
) -> Result<Value, Failure> {
    let Some(cleanup) = &task.cleanup else { return run(deployment, admin, place, &task.input, task.takes).await };
    let stop = signals::stop(console);
    let done = tokio::select! {
        done = run(deployment, admin, place, &task.input, task.takes) => Some(done),
        () = stop.cancelled() => None,
    };
    // The signals of a terminal reach the server program too, which then fails.
    if let Some(done) = done.filter(|done| done.is_ok() || !stop.is_cancelled()) {
        return done;
    }
    // In a cluster, the dropped run deletes its job: the pod gets TERM and removes its tables. This removes what is left.
    if let Err(failure) = run(deployment, admin, place, cleanup, Duration::ZERO).await {
        console.warn(format!(
            "the tables of the benchmark were not removed; the next benchmark removes them: {:#}",
            failure.error
        ));
    }
    let error = anyhow::anyhow!("{} was stopped", task.name);
    Err(Failure::new(Exit::Stopped, "stopped", error))
}

async fn run(
    deployment: &Deployment,
    admin: &Admin<'_>,
    place: Option<&ServerProcess>,
    input: &Value,
    takes: Duration,
) -> Result<Value, Failure> {
    let done = admin.site(place).await?.run_for("database", input, takes).await;
    let mut row = done.map_err(|failure| {
        // The server program refuses it; the command itself is right.
        let exit = if failure.exit == Exit::Usage { Exit::Refused } else { failure.exit };
        Failure { exit, code: "database", ..failure.or_hint(deployment.chosen.scope.command("status")) }
    })?;
    if let Some(process) = place {
        row["site"] = json!(process.site);
    }
    Ok(row)
}

/// The place of a result, and why there is none if so.
fn head(row: &Value) -> (&str, Option<&str>) {
    (row["site"].as_str().unwrap_or("database"), row["skipped"].as_str())
}

fn maintenance_text(rows: &[Value]) -> String {
    let mut text = String::new();
    for row in rows {
        let (place, skipped) = head(row);
        let _ = write!(text, "{place}: ");
        let bytes = |member: &str| size(row[member].as_u64().unwrap_or_default());
        let _ = match skipped {
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

fn bench_text(rows: &[Value]) -> String {
    let mut text = String::new();
    for row in rows {
        let (place, skipped) = head(row);
        if let Some(why) = skipped {
            let _ = writeln!(text, "{place}: skipped: {why}");
            continue;
        }
        let number = |member: &str| row[member].as_f64().unwrap_or_default();
        let count = |member: &str| row[member].as_u64().unwrap_or_default();
        let _ = write!(
            text,
            "{place}: {}, {} clients, {:.1} s\n  transactions    {} succeeded, {} failed, {:.1} per second\n  \
             connections     {}, open after {:.1} ms\n  usage records   {}\n\n  milliseconds         calls",
            row["database"].as_str().unwrap_or_default(),
            count("clients"),
            number("seconds"),
            count("transactions"),
            count("failed"),
            number("per_second"),
            count("connections"),
            number("connection_ms"),
            count("usage_rows")
        );
        for name in LATENCIES {
            let _ = write!(text, "{name:>10}");
        }
        text.push('\n');
        let whole = json!({ "name": "transaction", "calls": row["transactions"], "latency_ms": row["latency_ms"] });
        for statement in [&whole].into_iter().chain(row["statements"].as_array().into_iter().flatten()) {
            let (name, calls) = (statement["name"].as_str().unwrap_or_default(), statement["calls"].as_u64());
            let _ = write!(text, "  {name:<16}{:>10}", calls.unwrap_or_default());
            for name in LATENCIES {
                let _ = write!(text, "{:>10.3}", statement["latency_ms"][name].as_f64().unwrap_or_default());
            }
            text.push('\n');
        }
        for note in row["notes"].as_array().into_iter().flatten() {
            let _ = writeln!(text, "  note: {}", note.as_str().unwrap_or_default());
        }
    }
    text
}

/// The latencies of a benchmark, in the order of the table.
const LATENCIES: [&str; 5] = ["average", "p50", "p95", "p99", "max"];

/// Kills the primary, or has its cloud fail it over, after an approval.
async fn failover(session: &Session, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("database", console).await?;
    origin::check(&chosen.scope)?;
    let deployment = deployment::recorded(session, chosen).await?;
    let chosen = &deployment.chosen;
    let progress = Progress::new(console);
    let run = deployment.run(&progress);
    let rehearsal = Rehearsal::prepare(chosen, &running, &run).await?;
    let (name, action) = (&chosen.scope.name, rehearsal.action());
    progress.line(format!(
        "The primary {} of the database of {name} is {action}, one of {} instances. Requests fail until the database recovers.",
        rehearsal.before.primary, rehearsal.before.wanted
    ));
    if !session.global.yes && !progress.paused(|| console.confirm("Continue?")) {
        let error = anyhow::anyhow!("not approved, so nothing was changed");
        return Err(Failure::refused("not_approved", error).hint("approve it with --yes"));
    }
    // `up` migrates databases, and a backup on this machine copies them: both take this lock.
    let mut locked = deployment.locked().await?;
    let stop = signals::stop_steps(console);
    let measured = rehearsal.run(deployment.operator.clone(), &mut locked, &SystemClock, &progress, &stop).await;
    progress.finish();
    // What was measured is kept, also if the lock cannot be given back.
    let kept = measured.map(|record| rehearsal::keep(&chosen.scope.folder, &record).map(|file| (record, file)));
    let closed = locked.close().await;
    let (record, file) = kept??;
    closed.map_err(|error| deployment.failed(error))?;
    let mut document = json!(record);
    document["environment"] = json!(name);
    document["record"] = json!(file);
    let text = format!("{}  record         {file}", failover_text(&record, action));
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

fn failover_text(record: &FailoverRecord, action: &str) -> String {
    let FailoverRecord { killed, primary, writes, ready_s, instances, .. } = record;
    let lost = writes.lost.map_or("unknown".to_owned(), |lost| lost.to_string());
    let ready = ready_s.map_or("not ready again".to_owned(), |seconds| format!("ready after {seconds:.1} s"));
    let seconds = writes.without_writes_ms as f64 / 1000.0;
    format!(
        "{killed} was {action}; the primary is {primary}\n  writes         {} acknowledged, {} failed, {lost} lost\n  \
         without writes {seconds:.1} s\n  instances      {instances}, {ready}\n",
        writes.acknowledged, writes.failed
    )
}

/// Promotes the replica in another region after an approval.
async fn promote(session: &Session, args: &DbPromote, console: Console) -> Result<Success, Failure> {
    let has_reason = session.global.reason.as_ref().is_some_and(|reason| !reason.trim().is_empty());
    if args.force_while_source_runs && !has_reason {
        let error = anyhow::anyhow!("--force-while-source-runs needs a reason");
        return Err(Failure::usage("no_reason", error).hint("add --reason TEXT"));
    }
    let chosen = session.load(console)?;
    origin::check(&chosen.scope)?;
    let deployment = deployment::recorded(session, chosen).await?;
    let (scope, region) = (&deployment.chosen.scope, args.region.as_str());
    let failed = |error| replica::failed(error, scope, region);
    let (stop, progress) = (signals::stop_steps(console), Progress::new(console));
    let run = deployment.run(&progress);
    progress.doing("reading the replica and its source");
    let found = find(&run, region).await.map_err(failed)?;
    found.permit(args.force_while_source_runs).map_err(failed)?;
    let id = found.recorded.cloud_id.clone();
    if !found.is_promoted {
        let source = match &found.source {
            SourceState::Detached => "it does not follow its source any more".to_owned(),
            SourceState::Lost(why) => format!("its source counts as lost: {why}"),
            SourceState::MayRun(why) => format!("its source may still accept writes: {why}"),
        };
        progress.line(format!(
            "The replica {id} in {region} is promoted; {source}. The replication ends for good. What the source has not sent is lost, and so is what clients still write to it."
        ));
        if !session.global.yes && !progress.paused(|| console.confirm("Promote it?")) {
            if stop.is_cancelled() {
                return Err(signals::stopped_at_question(replica::command(scope, region)));
            }
            let error = anyhow::anyhow!("not approved, so nothing was changed");
            return Err(Failure::refused("not_approved", error).hint("approve it with --yes"));
        }
    }
    let promoted = promote_replica(&run, &found, args.force_while_source_runs, &stop).await;
    progress.finish();
    let promoted = promoted.map_err(failed)?;
    let place = &deployment.sites[&promoted.site].place;
    let environment = replica::environment(&promoted, found.verified(), place, region);
    let output = |name: &str| promoted.outputs.get(name).cloned().unwrap_or_default();
    let mut document = json!({
        "environment": scope.name,
        "region": region,
        "site": promoted.site,
        "resource": promoted.id,
        "id": id,
        "changed": !found.is_promoted,
        "host": output("host"),
        "port": output("port"),
        "database": output("database"),
        "user": output("user"),
        "password_file": replica::password_file(scope, found.password.as_ref()),
        "next": environment,
    });
    if found.verified() == Verified::ByServer {
        document["ca_pem"] = output("ca_pem");
    }
    Ok(Success::new(promoted_text(&document)?, document))
}

/// The address of a promoted server, and the environment that uses it.
fn promoted_text(document: &Value) -> Result<String, Failure> {
    let word = |name: &str| document[name].as_str().unwrap_or_default();
    let next = serde_yaml::to_string(&document["next"])?;
    let next: String = next.lines().map(|line| format!("  {line}\n")).collect();
    let password = document["password_file"]
        .as_str()
        .map_or("that of the source".to_owned(), |file| format!("export {}=\"$(cat '{file}')\"", replica::PASSWORD));
    let authority = document["ca_pem"].as_str().map_or(String::new(), |pem| {
        format!(
            "The authority that signed the certificate of the server, for the file of `network.private_ca`:\n\n{}\n\n",
            pem.trim_end()
        )
    });
    Ok(format!(
        "{} in {} is a server of its own and accepts writes\n  address        {}:{}\n  database       {}, user {}\n  \
         password       {password}\n\n\
         Deploy another environment with a site in that region and:\n\n{next}\n{authority}\
         Let its network reach the server, and remove `database.replica_region` of {} before its next `up`, which keeps the server.\n",
        word("id"),
        word("region"),
        word("host"),
        document["port"],
        word("database"),
        word("user"),
        word("environment"),
    ))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::{Cli, Command};

    #[test]
    fn each_database_has_a_line() {
        let rows = [
            json!({ "site": "a", "database": "sqlite", "bytes_before": 2_000_000, "bytes_after": 500_000, "milliseconds": 7 }),
            json!({ "site": "b", "skipped": "it is a standby, and follows its primary" }),
        ];
        let expect =
            "a: sqlite, 2.0 MB before, 500.0 kB now, 7 ms\nb: skipped: it is a standby, and follows its primary\n";
        assert_eq!(maintenance_text(&rows), expect);
    }

    #[test]
    fn promoted_server_has_an_address_and_an_environment() {
        let document = json!({
            "environment": "production", "region": "eu-west-1", "id": "replica", "host": "db.example.com", "port": 5432,
            "database": "textnlp", "user": "textnlp", "password_file": "/state/password",
            "next": { "database": { "hosting": "external" } }, "ca_pem": "-----BEGIN CERTIFICATE-----\n",
        });
        let text = promoted_text(&document).unwrap();
        for part in [
            "for the file of `network.private_ca`:\n\n-----BEGIN CERTIFICATE-----\n\nLet its network",
            "  address        db.example.com:5432\n",
            "  password       export DATABASE_PASSWORD=\"$(cat '/state/password')\"\n",
            "\n  database:\n    hosting: external\n",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn benchmark_ends_by_its_duration_or_by_its_transactions() {
        let task = |more: &[&str]| {
            let cli = Cli::try_parse_from(["textnlp-deploy", "db", "bench"].iter().chain(more)).ok()?;
            match cli.command {
                Command::Db(Db::Bench(args)) => Some(Task::bench(&args)),
                _ => None,
            }
        };
        let usual = task(&[]).unwrap();
        assert_eq!((usual.input, usual.takes.as_secs()), (json!({ "do": "bench", "clients": 4, "seconds": 10 }), 10));
        let counted = task(&["--clients", "10", "--transactions", "1000"]).unwrap();
        let input = json!({ "do": "bench", "clients": 10, "transactions": 1000 });
        assert_eq!((counted.input, counted.takes.as_secs()), (input, 600));
        assert!(task(&["--transactions", "1000", "--duration", "10s"]).is_none());
        assert!(task(&["--transactions", "0"]).is_none() && task(&["--transactions", "1000001"]).is_none());
    }

    #[test]
    fn benchmark_has_a_table_of_latencies() {
        let latency = json!({ "average": 1.5, "p50": 1.25, "p95": 2.0, "p99": 3.0, "max": 12.0 });
        let rows = [
            json!({
                "site": "a", "database": "sqlite", "clients": 4, "seconds": 10.0, "connections": 5, "connection_ms": 2.0,
                "transactions": 1000, "failed": 1, "per_second": 100.0, "latency_ms": latency, "usage_rows": 1000,
                "statements": [{ "name": "reserve", "calls": 1000, "latency_ms": latency }],
                "notes": ["the service recorded 3 requests meanwhile, which use the same database"],
            }),
            json!({ "site": "b", "skipped": "it is a standby, and follows its primary" }),
        ];
        let expect = "\
a: sqlite, 4 clients, 10.0 s
  transactions    1000 succeeded, 1 failed, 100.0 per second
  connections     5, open after 2.0 ms
  usage records   1000

  milliseconds         calls   average       p50       p95       p99       max
  transaction           1000     1.500     1.250     2.000     3.000    12.000
  reserve               1000     1.500     1.250     2.000     3.000    12.000
  note: the service recorded 3 requests meanwhile, which use the same database
b: skipped: it is a standby, and follows its primary
";
        assert_eq!(bench_text(&rows), expect);
    }
}
