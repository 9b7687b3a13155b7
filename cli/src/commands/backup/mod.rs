//! `backup …` and `restore`: copies that bring a deployment back, and the proof that they do.

mod archive;
mod beside;
mod create;
mod gather;
pub mod keep;
mod key;
mod moment;
mod prove;
mod restore;
mod standing;

use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use textnlp_orchestrator::backup::{Dump, Error, Key, Opener, Shelf};
use textnlp_orchestrator::environment::model::Backup as Settings;
use textnlp_provider::{EnvironmentName, Secret};

use crate::backup_args::{Backup, Opening, Passphrase};
use crate::clouds;
use crate::report::{Console, Exit, Failure, Success, size};
use crate::session::{Chosen, Session};

pub use gather::{Gathered, gather};
pub use keep::{put as put_file, remember};
pub use restore::{into_cache, restore};
pub use standing::warning;

/// Picks the verb.
pub async fn backup(session: &Session, verb: &Backup, console: Console) -> Result<Success, Failure> {
    match verb {
        Backup::Create(args) => create::create(session, args, console).await,
        Backup::List => list(session, console),
        Backup::Verify(args) => prove::verify(session, args, console).await,
        Backup::Prune { keep } => create::prune(session, keep.as_deref(), console).await,
        Backup::Key(crate::backup_args::Key::Show) => key::show(session, console).await,
        Backup::Run(args) => create::run(args).await,
        Backup::Archive(args) => archive::archive(args).await,
    }
}

/// Where the copies of an environment lie: in a folder of its name in the destination, else beside its state.
pub fn shelf(name: &EnvironmentName, folder: &Utf8Path, destination: Option<&str>) -> Shelf {
    Shelf::at(match destination {
        Some(destination) => Utf8Path::new(destination).join(name.as_str()),
        // No environment has a dot in its name.
        None => Utf8PathBuf::from(format!("{folder}.backups")),
    })
}

/// An error of a copy, for people and programs.
pub fn failed(error: Error) -> Failure {
    let exit = match &error {
        Error::Foreign { .. } | Error::Newer { .. } | Error::Key(_) | Error::Sealed { .. } => Exit::Usage,
        Error::Busy { .. } => Exit::Refused,
        _ => Exit::Failed,
    };
    let (code, hint) = (error.code(), error.hint());
    Failure::new(exit, code, error).hint(hint)
}

/// What the flags say that opens a copy; without any, the key that the state still has.
pub async fn opener(opening: &Opening, session: &Session, folder: &Utf8Path) -> Result<Opener, Failure> {
    if let Some(passphrase) = passphrase(&opening.passphrase, session)? {
        return Ok(Opener::Passphrase(passphrase));
    }
    if let Some(file) = &opening.key {
        let text = small_file(&session.here.join(file), "the key file")?;
        return Ok(Opener::Keys(Key::parse(&text).map_err(failed)?));
    }
    opener_of_state(folder).await
}

/// The key that a state has for its own copies.
async fn opener_of_state(folder: &Utf8Path) -> Result<Opener, Failure> {
    Ok(match key::there(folder).await? {
        Some(key) => Opener::Keys(vec![key]),
        None => Opener::Nothing,
    })
}

fn passphrase(from: &Passphrase, session: &Session) -> Result<Option<Secret>, Failure> {
    if let Some(file) = &from.passphrase_file {
        return small_file(&session.here.join(file), "the passphrase file").map(Some);
    }
    let Some(name) = &from.passphrase_env else { return Ok(None) };
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(Some(Secret::new(value.into_bytes()))),
        _ => Err(Failure::usage("no_passphrase", anyhow::anyhow!("the variable `{name}` is not set"))
            .hint("set it to the passphrase, or give the passphrase in a file: --passphrase-file FILE")),
    }
}

/// A file that holds a key or a passphrase.
fn small_file(path: &Utf8Path, what: &str) -> Result<Secret, Failure> {
    use std::io::Read;
    const MAX: u64 = 64 << 10;
    let fails = |error: std::io::Error| {
        Failure::usage("no_such_file", anyhow::Error::new(error).context(format!("read {what} {path}")))
            .hint("give the path of a file that can be read")
    };
    let file = std::fs::File::open(path).map_err(fails)?;
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(fails)?;
    if bytes.len() as u64 > MAX {
        return Err(fails(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Secret::new(bytes))
}

/// The environment's shelf, for the verbs that only look at copies.
fn its_shelf(session: &Session, console: Console) -> Result<(Chosen, Shelf, Settings), Failure> {
    let chosen = session.load(console)?;
    let environment = &chosen.loaded.environment;
    if clouds::dumps_itself(environment) {
        let namespace = &environment.cluster.namespace;
        let error = anyhow::anyhow!(
            "dumps of its database lie on volume textnlp-backups of namespace {namespace}, where the cluster makes, proves and removes them"
        );
        return Err(Failure::usage("in_cluster", error)
            .hint(format!("kubectl logs --namespace {namespace} --selector app.kubernetes.io/name=textnlp-backup")));
    }
    let settings = keep::settings(&chosen.folder, &chosen.loaded.environment).backup;
    no_object_store(settings.destination.as_deref())?;
    let shelf = shelf(&chosen.name, &chosen.folder, settings.destination.as_deref());
    Ok((chosen, shelf, settings))
}

/// Copies go to folders; anything else is said by its name.
fn no_object_store(destination: Option<&str>) -> Result<(), Failure> {
    match destination.and_then(|place| place.split_once("://")) {
        Some((scheme, _)) => {
            let error = anyhow::anyhow!("copies cannot go to `{scheme}://` yet");
            Err(Failure::usage("not_available", error)
                .hint("set `backup.destination` to a folder, and have it copied elsewhere: copies are sealed"))
        }
        None => Ok(()),
    }
}

/// `backup list`.
fn list(session: &Session, console: Console) -> Result<Success, Failure> {
    let (chosen, shelf, _) = its_shelf(session, console)?;
    let dumps = shelf.list().map_err(failed)?;
    let mut parts = moment::Parts::default();
    let ranges = moment::Range::all(&dumps, &mut parts)?;
    let mut logs = Vec::new();
    for log in shelf.logs().map_err(failed)? {
        let names = parts.of(&log)?;
        logs.push(json!({
            "log": log.folder(), "system": log.system(), "parts": names.len(), "bytes": log.bytes(names),
            "until": log.newest(names),
        }));
    }
    let document = json!({
        "environment": chosen.name, "folder": shelf.folder(),
        "backups": dumps.iter().map(document).collect::<Vec<_>>(),
        "moments": ranges.iter().map(moment::Range::document).collect::<Vec<_>>(),
        "logs": logs,
    });
    if dumps.is_empty() {
        let text = format!(
            "{} has no backup in {}\nTo make one: {}",
            chosen.name,
            shelf.folder(),
            session.again().command("backup create", &chosen.name)
        );
        return Ok(Success::new(text, document));
    }
    let mut text =
        format!("{}\n{:<26} {:<20} {:>9}  {:<11} PROOF", shelf.folder(), "BACKUP", "MADE (UTC)", "SIZE", "SEALED");
    for dump in &dumps {
        let facts = dump.facts.as_ref();
        let made = facts.map_or("?".to_owned(), |facts| facts.at.strftime("%Y-%m-%d %H:%M").to_string());
        let sealed = facts.map_or("?", |facts| facts.sealed.as_str());
        let name = dump.file.file_name().unwrap_or_default();
        text.push_str(&format!("\n{name:<26} {made:<20} {:>9}  {sealed:<11} {}", size(dump.bytes), proof_text(dump)));
    }
    if !logs.is_empty() {
        text.push_str("\n\nWITH THE ARCHIVED LOG");
        ranges.iter().for_each(|range| text.push_str(&format!("\n{}", range.says())));
        for log in &logs {
            let (parts, bytes) = (&log["parts"], log["bytes"].as_u64().unwrap_or_default());
            text.push_str(&format!("\n{}: {parts} parts, {}", log["log"].as_str().unwrap_or_default(), size(bytes)));
        }
    }
    Ok(Success::new(text, document))
}

fn proof_text(dump: &Dump) -> String {
    match &dump.proof {
        None => "never verified".to_owned(),
        Some(proof) if proof.ok => format!("{}: {}", proof.at.strftime("%Y-%m-%d %H:%M"), proof.says),
        Some(proof) => format!("FAILED {}: {}", proof.at.strftime("%Y-%m-%d %H:%M"), proof.says),
    }
}

/// A copy, for programs.
fn document(dump: &Dump) -> serde_json::Value {
    let facts = dump.facts.as_ref();
    json!({
        "file": dump.file, "bytes": dump.bytes,
        "at": facts.map(|f| f.at), "digest": facts.map(|f| format!("sha256:{}", f.sha256)),
        "lineage": facts.map(|f| f.lineage), "sealed": facts.map(|f| f.sealed.clone()),
        "recipients": facts.map(|f| f.recipients.clone()), "models": facts.map(|f| f.models),
        "verified": dump.is_proven(), "proof": dump.proof,
    })
}

/// A span of time that was typed: `30d`, `12h`, seconds.
fn age(text: &str) -> Result<Duration, Failure> {
    use textnlp_orchestrator::environment::model::Span;
    text.parse::<Span>().map(|span| span.0).map_err(|_| {
        Failure::usage("usage", anyhow::anyhow!("`{text}` is no span of time"))
            .hint("write it like `14d`, `12h` or `90m`")
    })
}
