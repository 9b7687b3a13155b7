//! `backup create`, what the supervisor runs, and `backup prune`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::Utf8Path;
use jiff::Timestamp;
use serde_json::json;
use textnlp_orchestrator::backup::{
    Base, Database, Dump, Facts, Manifest, Recipient, Seal, Shelf, removable, unneeded, write,
};
use textnlp_orchestrator::state::{LineageFile, Operator};
use textnlp_provider::component::Backup as Order;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};

use super::gather::{Gathered, gather};
use super::standing::{self, Last};
use super::{age, failed, its_shelf, keep, key, passphrase, prove, shelf};
use crate::again::Again;
use crate::backup_args::{Create, Passphrase, Run};
use crate::clouds;
use crate::deployment::operator;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success, size};
use crate::session::{Chosen, Session};
use crate::stores;

/// A person who is told that an `up` runs can wait by himself.
const PATIENCE: Duration = Duration::from_secs(5);
/// A job of the cluster has this long too.
const DUMP_WITHIN: Duration = Duration::from_secs(6 * 3600);
/// Between two looks at an `up` that goes on.
const LOOK: Duration = Duration::from_millis(500);
/// The schedule waits for an `up` to end.
const PATIENCE_SCHEDULED: Duration = Duration::from_secs(1800);

/// A dump of the database by the cluster's own schedule, now: secrets and state are where this command is typed.
async fn in_cluster(session: &Session, chosen: &Chosen, args: &Create, console: Console) -> Result<Success, Failure> {
    let (began, environment) = (Instant::now(), &chosen.loaded.environment);
    let Passphrase { passphrase_file, passphrase_env } = &args.passphrase;
    let asks = [
        ("--recipient", !args.recipient.is_empty()),
        ("--passphrase-file", passphrase_file.is_some()),
        ("--passphrase-env", passphrase_env.is_some()),
        ("--plain", args.plain),
        ("--with-models", args.with_models),
    ];
    if let Some((flag, _)) = asks.iter().find(|(_, asked)| *asked) {
        let error = anyhow::anyhow!(
            "{flag} is of sealed copies, and the cluster dumps its database onto a volume, unsealed and without models"
        );
        return Err(Failure::usage("in_cluster", error).hint("leave it out; a dump holds digests of keys, and no key"));
    }
    let state = super::super::running::state(&session.again(), &chosen.name, &chosen.folder).await?;
    if state.is_new() {
        return Err(super::gather::not_up(&session.again(), &chosen.name));
    }
    let progress = Progress::new(console);
    progress.doing("the cluster dumps the database");
    let tell = |says: &str| progress.doing(&format!("the cluster dumps the database: {says}"));
    let made = clouds::dump_now(&chosen.folder, environment, state.lineage(), DUMP_WITHIN, &tell).await;
    progress.finish();
    let said = made.context("make a dump in the cluster")?;
    let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let document = json!({ "environment": chosen.name, "says": said, "seconds": seconds });
    let text = format!("{said}\nIt lies on volume textnlp-backups of namespace {}.", environment.cluster.namespace);
    Ok(Success::new(text, document))
}

/// `backup create`.
pub async fn create(session: &Session, args: &Create, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load(Console::new(session.global.output, true))?;
    if clouds::dumps_itself(&chosen.loaded.environment) {
        return in_cluster(session, &chosen, args, console).await;
    }
    let (chosen, shelf, settings) = its_shelf(session, console)?;
    let seal = if args.plain {
        console.warn("the backup is not sealed: whoever reads the file has every key of this environment");
        Seal::Plain
    } else if let Some(passphrase) = passphrase(&args.passphrase, session)? {
        Seal::Passphrase(passphrase)
    } else {
        // Asked before a key is made: an environment that was never up has nothing to copy.
        if super::super::running::state(&session.again(), &chosen.name, &chosen.folder).await?.is_new() {
            return Err(super::gather::not_up(&session.again(), &chosen.name));
        }
        Seal::Keys(recipients(&chosen.folder, settings.recipients.iter().chain(&args.recipient)).await?)
    };
    let progress = Progress::new(console);
    progress.doing("copies state, keys and databases");
    let (name, folder, again) = (&chosen.name, &chosen.folder, session.again());
    let making = Making { again, name, folder, shelf: &shelf, seal: &seal, scheduled: false };
    let made = making.make(args.with_models, &operator(session), PATIENCE).await;
    progress.finish();
    let (dump, notes) = made?;
    notes.iter().for_each(|note| console.warn(note));
    let is_here = same_disk(shelf.folder(), &chosen.folder);
    if is_here {
        console.say("It lies on the disk of what it copies: take it elsewhere, or set `backup.destination`.");
    }
    let mut document = super::document(&dump);
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    document["environment"] = json!(chosen.name);
    document["same_disk"] = json!(is_here);
    let mut text = format!("{}  {}, {}", dump.file, size(dump.bytes), sealed_text(&seal));
    text.push_str(&format!(
        "\nTo prove that it brings the service back: {}",
        session.again().command("backup verify", name)
    ));
    if matches!(seal, Seal::Keys(_)) && standing::read(&chosen.folder).key_shown.is_none() {
        text.push_str(&format!(
            "\nThe key that opens it is on this machine only. To carry it away: {}",
            session.again().command("backup key show", name)
        ));
    }
    Ok(Success::new(text, document))
}

/// The environment's own key, and everybody else's who was named.
pub async fn recipients<'a>(
    folder: &Utf8Path,
    others: impl Iterator<Item = &'a String>,
) -> Result<Vec<Recipient>, Failure> {
    let mut recipients = vec![key::ensure(folder).await?.recipient()];
    for other in others {
        recipients.push(other.parse().map_err(failed)?);
    }
    Ok(recipients)
}

fn sealed_text(seal: &Seal) -> String {
    match seal {
        Seal::Keys(recipients) if recipients.len() > 1 => format!("sealed for {} keys", recipients.len()),
        Seal::Keys(_) => "sealed with the environment's key".to_owned(),
        Seal::Passphrase(_) => "sealed with the passphrase".to_owned(),
        Seal::Plain => "NOT sealed".to_owned(),
    }
}

fn same_disk(a: &Utf8Path, b: &Utf8Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let disk = |path: &Utf8Path| std::fs::metadata(path).map(|found| found.dev()).ok();
    disk(a).is_some() && disk(a) == disk(b)
}

fn bases(manifest: &Manifest) -> BTreeMap<SiteName, Base> {
    let base = |(site, database): (&SiteName, &Database)| Some((site.clone(), database.base.clone()?));
    manifest.databases.iter().filter_map(base).collect()
}

struct Making<'a> {
    again: Again,
    name: &'a EnvironmentName,
    folder: &'a Utf8Path,
    shelf: &'a Shelf,
    seal: &'a Seal,
    scheduled: bool,
}

impl Making<'_> {
    async fn make(
        &self,
        with_models: bool,
        operator: &Operator,
        patience: Duration,
    ) -> Result<(Dump, Vec<String>), Failure> {
        let gathered = gather(&self.again, self.name, self.folder, with_models, operator, patience).await?;
        let Gathered { manifest, items, notes, .. } = &gathered;
        let at = manifest.at;
        let recipients = match self.seal {
            Seal::Keys(recipients) => recipients.iter().map(ToString::to_string).collect(),
            Seal::Passphrase(_) | Seal::Plain => Vec::new(),
        };
        let facts = |bytes: u64, sha256: String| Facts {
            format: 1,
            environment: manifest.environment.clone(),
            lineage: manifest.lineage,
            at,
            bytes,
            sha256,
            sealed: self.seal.word().to_owned(),
            recipients,
            models: with_models,
            scheduled: self.scheduled,
            tool: manifest.tool.clone(),
            bases: bases(manifest),
        };
        // The runtime's other thread goes on listening for signals meanwhile.
        let put = tokio::task::block_in_place(|| {
            self.shelf.put(facts, at, |to| self.seal.write(to, |to| write(manifest.clone(), items, to)).map(drop))
        });
        Ok((put.map_err(failed)?, notes.clone()))
    }
}

/// `backup run`: a copy by the schedule, its proof, and what may go. How it went is left for `status` and for the supervisor.
pub async fn run(args: &Run) -> Result<Success, Failure> {
    // The service comes first.
    let _ = rustix::process::nice(10);
    let at = Timestamp::now();
    let done = scheduled(args).await;
    let says = match &done {
        Ok(success) => success.text.clone(),
        Err(failure) => format!("{:#}", failure.error),
    };
    standing::ran(&args.folder, Last { at, ok: done.is_ok(), says })?;
    done
}

async fn scheduled(args: &Run) -> Result<Success, Failure> {
    let text = std::fs::read(&args.order).with_context(|| format!("read {}", args.order))?;
    let order: Order = serde_yaml::from_slice(&text).with_context(|| format!("read {}", args.order))?;
    let whose = whose(&args.folder).await?;
    let (name, lineage) = whose.with_context(|| format!("there is no state in {}", args.folder))?;
    let shelf = shelf(&name, &args.folder, order.destination.as_deref());
    let seal = Seal::Keys(recipients(&args.folder, order.recipients.iter()).await?);
    let operator = Operator {
        by: "schedule".to_owned(),
        reason: Some("backup.every".to_owned()),
        tool: concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned(),
        host: crate::clouds::host_name(),
        pid: std::process::id(),
    };
    let again = Again::default();
    // The first copy is due while the first `up` goes on, which writes at its end what it put up: a copy without that does not say what
    // to make of it.
    let began = Instant::now();
    while !keep::whole(&args.folder).is_file() && began.elapsed() < PATIENCE_SCHEDULED {
        tokio::time::sleep(LOOK).await;
    }
    let making = Making { again, name: &name, folder: &args.folder, shelf: &shelf, seal: &seal, scheduled: true };
    // One wait, for both.
    let patience = PATIENCE_SCHEDULED.saturating_sub(began.elapsed());
    let (dump, _) = making.make(false, &operator, patience).await?;
    let mut text = format!("{} {}", dump.file, size(dump.bytes));
    if order.verify {
        let opener = Arc::new(super::opener_of_state(&args.folder).await?);
        let proof = prove::prove(&dump.file, &opener, &args.folder, false).await?;
        if !proof.ok {
            return Err(Failure::new(Exit::Failed, "not_proven", anyhow::anyhow!("{}: {}", dump.file, proof.says)));
        }
        text.push_str(&format!(", {}", proof.says));
    }
    let gone = clear(&shelf, lineage, Duration::from_secs(order.keep_seconds))?;
    if !gone.dumps.is_empty() || gone.parts > 0 {
        text.push_str(&format!(", {} old and {} parts of the log removed", gone.dumps.len(), gone.parts));
    }
    for why in gone.kept {
        text.push_str(&format!("; {why}"));
    }
    Ok(Success::new(text, super::document(&dump)))
}

/// Whose state a folder holds or points to; `None` where there is none.
pub async fn whose(folder: &Utf8Path) -> Result<Option<(EnvironmentName, Lineage)>, Failure> {
    let store = stores::of_folder(folder)?;
    let Some(text) = store.document("lineage.json").await? else { return Ok(None) };
    let file: LineageFile =
        serde_json::from_slice(&text).with_context(|| format!("read the lineage in {}", store.place()))?;
    Ok(Some((file.environment, file.lineage)))
}

/// What was let go, and why something was not.
struct Cleared {
    dumps: Vec<Dump>,
    parts: usize,
    kept: Vec<String>,
}

/// Removes copies that may go, and then the parts of logs that no copy needs which is left.
fn clear(shelf: &Shelf, lineage: Lineage, keep: Duration) -> Result<Cleared, Failure> {
    let now = Timestamp::now();
    let dumps = removable(&shelf.list().map_err(failed)?, lineage, keep, now);
    if !dumps.is_empty() {
        shelf.remove(&dumps).map_err(failed)?;
    }
    let left = shelf.list().map_err(failed)?;
    let (mut parts, mut kept) = (0, Vec::new());
    for log in shelf.logs().map_err(failed)? {
        // Another deployment's, or nobody knows whose.
        if log.header().is_none_or(|header| header.lineage != lineage) {
            continue;
        }
        match unneeded(&log, &log.names().map_err(failed)?, &left, keep, now) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => {
                log.remove(&gone).map_err(failed)?;
                parts += gone.len();
            }
            Err(why) => kept.push(why),
        }
    }
    Ok(Cleared { dumps, parts, kept })
}

/// `backup prune`.
pub async fn prune(session: &Session, keep: Option<&str>, console: Console) -> Result<Success, Failure> {
    let (chosen, shelf, settings) = its_shelf(session, console)?;
    let keep = match keep {
        Some(text) => age(text)?,
        None => settings.keep.0,
    };
    let Some((_, lineage)) = whose(&chosen.folder).await? else {
        return Err(super::gather::not_up(&session.again(), &chosen.name));
    };
    let gone = clear(&shelf, lineage, keep)?;
    let left = shelf.list().map_err(failed)?.len();
    let mut text = format!("{} removed, {left} kept in {}", gone.dumps.len(), shelf.folder());
    if gone.parts > 0 {
        text.push_str(&format!("\n{} parts of the log removed, which no kept backup needs", gone.parts));
    }
    gone.kept.iter().for_each(|why| text.push_str(&format!("\n{why}")));
    let removed: Vec<_> = gone.dumps.iter().map(|dump| dump.file.clone()).collect();
    let document = json!({
        "environment": chosen.name, "removed": removed, "kept": left, "parts_removed": gone.parts, "parts_kept": gone.kept,
    });
    Ok(Success::new(text, document))
}
