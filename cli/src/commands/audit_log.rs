//! `audit`: the commands that changed an environment, and the audit log of the running service. The server program reads
//! that beside the database, one page at a time.

use jiff::Timestamp;
use textnlp_orchestrator::report::table::Table;
use textnlp_orchestrator::state::audit::{self, AuditDamage, CommandRecord};
use textnlp_service::keys::Admin;

use super::audited::log_store;
use super::prelude::*;
use crate::args::{Audit, AuditExport, AuditList};
use crate::deployment::state_failed;
use crate::report::in_line;
use crate::table_view;

/// Rows of one page: a cluster returns at most 4 MiB of a job's output.
const PAGE: u64 = 2000;

/// `audit …`.
pub async fn audit(session: &Session, command: &Audit, console: Console) -> Result<Success, Failure> {
    match command {
        Audit::List(args) => list(session, args, console).await,
        Audit::Export(AuditExport { since, commands: true }) => export_commands(session, *since, console).await,
        Audit::Export(AuditExport { since, commands: false }) => export(session, *since, console).await,
    }
}

/// The commands in the audit log of an environment, oldest first.
struct Commands {
    chosen: ChosenEnvironment,
    place: String,
    commands: Vec<CommandRecord>,
    damage: Vec<AuditDamage>,
}

impl Commands {
    async fn read(session: &Session, is_shown: impl Fn(&CommandRecord) -> bool) -> Result<Self, Failure> {
        let chosen = session.load(session.quiet())?;
        let store = log_store(session, &chosen)?;
        let log = audit::read(&*store).await;
        let mut log = log.map_err(|error| state_failed(error, &session.again(), &chosen.scope.name))?;
        log.commands.retain(is_shown);
        Ok(Self { place: store.place(), commands: log.commands, damage: log.damage, chosen })
    }

    /// Fails if the chain of records is broken.
    fn verify(&self, document: &Value) -> Result<(), Failure> {
        if self.damage.is_empty() {
            return Ok(());
        }
        let lines: Vec<String> = self.damage.iter().map(damage_text).collect();
        let error = anyhow::anyhow!("{}", lines.join("\n"))
            .context(format!("the audit log in {} is broken: records may have been changed", self.place));
        Err(Failure::new(Exit::Failed, "broken_audit_log", error)
            .hint("compare it with an exported copy or a backup; find out who can write to the store")
            .document(document.clone()))
    }
}

fn damage_text(damage: &AuditDamage) -> String {
    format!("record {} of {}: {}", damage.record, damage.document, damage.because)
}

/// `audit list`.
async fn list(session: &Session, args: &AuditList, console: Console) -> Result<Success, Failure> {
    let is_shown = |command: &CommandRecord| {
        args.since.is_none_or(|since| command.time >= since) && args.until.is_none_or(|until| command.time < until)
    };
    let mut found = Commands::read(session, is_shown).await?;
    let left_out = found.commands.len().saturating_sub(args.limit);
    found.commands.drain(..left_out);
    let name = &found.chosen.scope.name;
    let document = json!({
        "environment": name, "store": found.place, "commands": found.commands, "left_out": left_out,
        "damage": found.damage,
    });
    let mut text = match found.commands.len() {
        0 => format!("{name}: no command is recorded"),
        _ => format!("{name}{}", table_view::lines(&table(&found.commands))),
    };
    if left_out > 0 {
        text.push_str(&format!("\n  {left_out} earlier ones: --limit {}", left_out + args.limit));
    }
    if let Err(broken) = found.verify(&document) {
        console.stream(&format!("{text}\n"));
        return Err(broken);
    }
    Ok(Success::new(text, document))
}

fn table(commands: &[CommandRecord]) -> Table {
    let columns = ["TIME (UTC)", "OPERATOR", "COMMAND", "OUTCOME", "TOOK"].map(str::to_owned).to_vec();
    Table { title: "", columns, rows: commands.iter().map(row).collect() }
}

fn row(record: &CommandRecord) -> Vec<String> {
    let CommandRecord { time, command, end } = record;
    let user = command.user.as_ref().map_or(String::new(), |user| format!(" as {user}"));
    let typed = [&[command.command.clone()][..], &command.arguments[..]].concat().join(" ");
    let (outcome, took) = match end {
        None => ("did not end".to_owned(), String::new()),
        Some(end) => {
            let outcome = end.outcome.word();
            let code = end.code.as_ref().map_or(String::new(), |code| format!(": {code}"));
            let took = end.time.duration_since(*time).as_secs_f64().max(0.0);
            (format!("{outcome}{code}"), format!("{took:.1} s"))
        }
    };
    let who = format!("{}@{}{user}", command.actor, command.host);
    let cells = [time.strftime("%Y-%m-%d %H:%M:%S").to_string(), who, typed, outcome, took];
    cells.iter().map(|cell| in_line(cell).into_owned()).collect()
}

/// `audit export --commands`.
async fn export_commands(session: &Session, since: Option<Timestamp>, console: Console) -> Result<Success, Failure> {
    let found = Commands::read(session, |command| since.is_none_or(|since| command.time >= since)).await?;
    for command in &found.commands {
        let line = json!(command);
        console.stream(&format!("{line}\n"));
        console.event(&line);
    }
    let mut document = json!({ "count": found.commands.len(), "damage": found.damage });
    if !console.is_jsonl() {
        document["commands"] = json!(found.commands);
    }
    found.verify(&document)?;
    Ok(Success::new("", document))
}

/// `audit export`.
async fn export(session: &Session, since: Option<Timestamp>, console: Console) -> Result<Success, Failure> {
    let (chosen, running) = session.load_running("audit log", session.quiet()).await?;
    let admin = Admin::of(&chosen, &running);
    let (mut count, mut events) = (0u64, Vec::new());
    for place in admin.places() {
        let site = admin.site(place).await?;
        let mut after = 0;
        loop {
            let request = json!({
                "after": after, "since": since.map_or(0, |since| since.as_millisecond()), "limit": PAGE,
                "operator": admin.operator(),
            });
            let page = site.run("audit", &request).await?;
            for event in page["events"].as_array().into_iter().flatten() {
                let mut event = event.clone();
                event["site"] = page["site"].clone();
                count += 1;
                console.stream(&format!("{event}\n"));
                console.event(&event);
                if !console.is_text() && !console.is_jsonl() {
                    events.push(event);
                }
            }
            match page["next"].as_i64() {
                Some(next) if next > after => after = next,
                _ => break,
            }
        }
    }
    let mut document = json!({ "count": count });
    if !console.is_jsonl() {
        document["events"] = json!(events);
    }
    Ok(Success::new("", document))
}
