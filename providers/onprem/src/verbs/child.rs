//! Changes to a database by the server program: its schema, its first key. No other program writes to its tables.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use textnlp_keys::{Marker, SiteFolder, files::Stamp};
use textnlp_provider::{Error, ErrorKind, Progress, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use super::program::start_written;
use super::{Observation, ObservedObject, Work};
use crate::jobs::JobStatus;
use crate::spec::{ApiKeySpec, SchemaSpec};
use crate::supervise::clean_environment;
use crate::table::ResourceKind;
use crate::verified::VerifiedProgram;

/// A query of keys is answered at once.
const KEYS_TIMEOUT: Duration = Duration::from_secs(8);
/// A replicated put waits for another site; the program itself has a timeout, and a put is two writes.
const REPLICATED_TIMEOUT: Duration = Duration::from_secs(120);
/// Sites start side by side: until a second one has joined, control data cannot be acknowledged.
const JOIN_TIMEOUT: Duration = Duration::from_secs(300);
/// Retry interval.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The code of an error that the program expects to pass: the database is busy, starts, stops or moves.
const PASSES: &str = "passes";
/// A migration of a large database takes its time.
const MIGRATE_TIMEOUT: Duration = Duration::from_secs(600);
/// What a child may print: a page of the audit log, all keys.
const OUTPUT_MAX: u64 = 64 << 20;

pub(super) async fn put_schema(work: &Work<'_>) -> Result<Progress> {
    let spec: SchemaSpec = work.spec()?;
    let cloud_id = work.folder.cloud_id(&format!("{}#schema", spec.database))?;
    if work.marker.as_ref().is_none_or(|marker| marker.complete || marker.operation != work.op.id) {
        work.claim(&cloud_id, Map::new())?;
    }
    let folder = work.folder.clone();
    let subject = work.op.resource.to_string();
    match work.provider.jobs().look(work.op, move |_| migrate(folder, spec, subject)).await? {
        JobStatus::GoesOn(_) => Ok(work.pending(json!({ "step": "migrate" }), "migrates the database")),
        JobStatus::Ended(facts) => {
            let marker = work.complete(&cloud_id, facts)?;
            work.done(&marker).await
        }
    }
}

async fn migrate(folder: SiteFolder, spec: SchemaSpec, subject: String) -> Result<Map<String, Value>> {
    let mut arguments = vec!["admin".to_owned(), "migrate".to_owned()];
    arguments.extend(["--config".to_owned(), folder.join(&spec.config).into_string()]);
    if let Some(version) = spec.version {
        arguments.extend(["--to".to_owned(), version.to_string()]);
    }
    let lock_path = folder.lock("migrate");
    // The child inherits this lock as its standard input. A second migration then waits for the first one, even if its
    // parent died.
    let lock = tokio::task::spawn_blocking(move || -> std::io::Result<File> {
        let lock = File::options().read(true).write(true).create(true).truncate(false).open(&lock_path)?;
        lock.lock()?;
        Ok(lock)
    });
    let lock = lock.await.map_err(std::io::Error::other).and_then(|lock| lock);
    let lock = lock.map_err(|error| Error::io("lock", folder.lock("migrate").as_str(), error))?;
    let program = verified(&folder, &spec.program, &subject).await?;
    let answer = ask(&program, &arguments, Input::Held(lock), MIGRATE_TIMEOUT, &subject).await?;
    let version = answer.get("to").and_then(Value::as_u64).ok_or_else(|| {
        Error::new(ErrorKind::Unavailable, "migrate", subject.as_str())
            .because(format!("the program answered {answer}"))
    })?;
    let mut facts = Map::new();
    facts.insert("version".to_owned(), json!(version));
    let identity = match spec.served {
        true => answer.get("made").cloned().unwrap_or_default(),
        false => json!(identity(&folder.join(&spec.database))),
    };
    facts.insert("database".to_owned(), identity);
    Ok(facts)
}

/// Whether a database has nothing in it, not even a schema.
fn is_empty(path: &Utf8Path) -> Result<bool> {
    let there = Stamp::of(path).map_err(|error| Error::io("check", path.as_str(), error))?;
    Ok(there.is_none_or(|stamp| stamp.bytes == 0 && !Utf8PathBuf::from(format!("{path}-wal")).exists()))
}

/// The identity of a database file: another file has another schema. Inode numbers are reused, so the birth time is
/// included where the filesystem has one.
fn identity(path: &Utf8Path) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let found = std::fs::symlink_metadata(path).ok()?;
    let born = found.created().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    Some(format!("{}.{}", found.ino(), born.unwrap_or_default().as_nanos()))
}

pub(super) async fn observe_schema(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: SchemaSpec = marker.spec.typed().map_err(|error| unreadable(marker, error))?;
    if spec.served {
        return observe_served_schema(folder, marker, &spec).await;
    }
    let path = folder.inside(&spec.database)?;
    if is_empty(&path)? {
        return Ok(Observation::Absent);
    }
    let mut look = ObservedObject::default();
    look.output("version", marker.facts.get("version").cloned().unwrap_or_default());
    if marker.complete && marker.facts.get("database") != Some(&json!(identity(&path))) {
        look.drift("database", "another file has its path");
    }
    Ok(Observation::There(look))
}

/// The server reports its own schema.
async fn observe_served_schema(folder: &SiteFolder, marker: &Marker, spec: &SchemaSpec) -> Result<Observation> {
    let mut look = ObservedObject::default();
    look.output("version", marker.facts.get("version").cloned().unwrap_or_default());
    let (subject, config) = (marker.resource.as_str(), folder.join(&spec.config));
    if !folder.join(&spec.program).is_file() || !config.is_file() {
        look.trouble = Some("the database cannot be queried at the moment".to_owned());
        return Ok(Observation::There(look));
    }
    let program = match placed(folder, &spec.program, subject).await {
        Ok(program) => program,
        Err(error) => {
            look.trouble = Some(format!("the database cannot be queried: {}", textnlp_provider::error_chain(&error)));
            return Ok(Observation::There(look));
        }
    };
    let mut found = query_database(&program, &config, subject).await?;
    // Its server may be about to take over from another one. What stays unknown would hold up a whole `down`.
    if found["passes"] == true {
        tokio::time::sleep(RETRY_INTERVAL).await;
        found = query_database(&program, &config, subject).await?;
    }
    if let Some(problem) = found["problems"].as_array().and_then(|problems| problems.first()) {
        let cause = problem["cause"].as_str().unwrap_or_default();
        return Err(
            Error::new(ErrorKind::Unavailable, "ask the database of", marker.resource.to_string()).because(cause)
        );
    }
    if found["schema"] == 0 {
        return Ok(Observation::Absent);
    }
    if marker.complete && marker.facts.get("database") != Some(&found["made"]) {
        look.drift("database", "another one has its path");
    }
    Ok(Observation::There(look))
}

/// What the server program reports about a configuration's database; see `admin check`.
pub(crate) async fn query_database(program: &VerifiedProgram, config: &Utf8Path, subject: &str) -> Result<Value> {
    let arguments = ["admin", "check", "--config", config.as_str()].map(str::to_owned);
    ask(program, &arguments, Input::Text(String::new()), KEYS_TIMEOUT, subject).await
}

pub(super) async fn put_key(work: &Work<'_>) -> Result<Progress> {
    let spec: ApiKeySpec = work.spec()?;
    let cloud_id = work.folder.cloud_id(&format!("{}#keys/{}", spec.database, spec.public_id))?;
    if work.marker.as_ref().is_none_or(|marker| marker.complete || marker.operation != work.op.id) {
        work.claim(&cloud_id, Map::new())?;
    }
    let folder = work.folder.clone();
    let subject = work.op.resource.to_string();
    match work.provider.jobs().look(work.op, move |_| store_key(folder, spec, subject)).await? {
        JobStatus::GoesOn(_) => Ok(work.pending(json!({ "step": "store" }), "stores the key")),
        JobStatus::Ended(facts) => {
            let marker = work.complete(&cloud_id, facts)?;
            work.done(&marker).await
        }
    }
}

async fn store_key(folder: SiteFolder, spec: ApiKeySpec, subject: String) -> Result<Map<String, Value>> {
    let command = json!({
        "do": "put", "public_id": spec.public_id, "sha256": spec.sha256, "name": spec.name, "tenant": "default",
        "reinstate": true,
    });
    let (program, config) = (verified(&folder, &spec.program, &subject).await?, folder.join(&spec.config));
    if spec.replicated {
        return replicate_key(&program, &config, &command, &subject).await;
    }
    let put = keys(&program, &config, &command, &subject).await;
    match (put, schema_of(&folder, &spec)) {
        // An older database was restored over it: its schema is not that of the marker.
        (Err(error), Some(schema)) if error.kind == ErrorKind::Invalid => {
            migrate(folder, schema, subject.clone()).await?;
            keys(&program, &config, &command, &subject).await?;
        }
        (put, _) => drop(put?),
    }
    Ok(Map::new())
}

/// Retries until enough sites have stored the key. A put is idempotent.
async fn replicate_key(
    program: &VerifiedProgram,
    config: &Utf8Path,
    command: &Value,
    subject: &str,
) -> Result<Map<String, Value>> {
    let started = tokio::time::Instant::now();
    loop {
        match keys_within(program, config, command, subject, REPLICATED_TIMEOUT).await {
            Ok(_) => return Ok(Map::new()),
            Err(error) if started.elapsed() > JOIN_TIMEOUT => {
                return Err(error.hint("check the agents of the sites: a second one must run and be reachable"));
            }
            Err(_) => tokio::time::sleep(RETRY_INTERVAL).await,
        }
    }
}

/// Revokes a key. Without a database or without the program, the key opens nothing.
pub(super) async fn revoke_key(work: &Work<'_>) -> Result<()> {
    let spec: ApiKeySpec = work.applied()?;
    // Sites are removed side by side, so the last one cannot acknowledge anything. A key opens nothing where no server
    // runs; where the sites stay, use `key revoke`.
    if spec.replicated {
        return Ok(());
    }
    let there = |path: &str| std::fs::symlink_metadata(work.folder.join(path)).is_ok();
    if (!spec.served && !there(&spec.database)) || !there(&spec.program) || !there(&spec.config) {
        return Ok(());
    }
    let (subject, config) = (work.op.resource.as_str(), work.folder.join(&spec.config));
    let program = verified(&work.folder, &spec.program, subject).await?;
    // A key that was replaced with a grace period ends by itself.
    let listed = keys(&program, &config, &json!({ "do": "list" }), subject).await?;
    if find_key(&listed, &spec.public_id).is_some_and(|key| key["expires_at"].is_number()) {
        return Ok(());
    }
    let command = json!({ "do": "revoke", "public_id": spec.public_id });
    keys(&program, &config, &command, subject).await.map(|_| ())
}

/// A key in the answer to `list`.
fn find_key<'a>(listed: &'a Value, public_id: &str) -> Option<&'a Value> {
    listed["keys"].as_array()?.iter().find(|key| key["public_id"] == public_id)
}

pub(super) async fn observe_key(folder: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: ApiKeySpec = marker.spec.typed().map_err(|error| unreadable(marker, error))?;
    if !spec.served && is_empty(&folder.inside(&spec.database)?)? {
        return Ok(Observation::Absent);
    }
    let mut look = ObservedObject::default();
    look.output("public_id", spec.public_id.as_str()).output("revoked_at", Value::Null);
    let is_there = folder.join(&spec.program).is_file();
    let Some(config) = config_as_applied(folder, marker, &spec).filter(|_| is_there) else {
        // The program or its configuration is missing, which is reported there. The marker says that the key was put.
        look.trouble = Some("the API keys cannot be read at the moment".to_owned());
        return Ok(Observation::There(look));
    };
    let program = match placed(folder, &spec.program, marker.resource.as_str()).await {
        Ok(program) => program,
        Err(error) => {
            look.trouble = Some(format!("the API keys cannot be read: {}", textnlp_provider::error_chain(&error)));
            return Ok(Observation::There(look));
        }
    };
    // The configuration may be missing or changed by hand; the program reads the applied one, and writes nothing.
    let passed = pass_file(&config)
        .map_err(|error| Error::io("write a temporary configuration for", marker.resource.to_string(), error))?;
    let answer = match keys(&program, &passed.path, &json!({ "do": "list" }), marker.resource.as_str()).await {
        // The program refuses the database, for example an older one that was restored. The key is put again after the
        // migration.
        Err(error) if error.kind == ErrorKind::Invalid => {
            look.drift("key", textnlp_provider::error_chain(&error));
            return Ok(Observation::There(look));
        }
        // The marker says that the key was put.
        Err(error) if error.code.as_deref() == Some(PASSES) => {
            look.trouble = Some(format!("the API keys cannot be read: {}", textnlp_provider::error_chain(&error)));
            return Ok(Observation::There(look));
        }
        other => other?,
    };
    let Some(key) = find_key(&answer, &spec.public_id) else { return Ok(Observation::Absent) };
    // A revocation is intended, so there is nothing to repair.
    look.output("revoked_at", key.get("revoked_at").cloned().unwrap_or_default());
    Ok(Observation::There(look))
}

fn unreadable(marker: &Marker, error: impl std::error::Error + Send + Sync + 'static) -> Error {
    Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error)
}

async fn keys(program: &VerifiedProgram, config: &Utf8Path, command: &Value, subject: &str) -> Result<Value> {
    keys_within(program, config, command, subject, KEYS_TIMEOUT).await
}

async fn keys_within(
    program: &VerifiedProgram,
    config: &Utf8Path,
    command: &Value,
    subject: &str,
    within: Duration,
) -> Result<Value> {
    let arguments = ["admin", "keys", "--config", config.as_str()].map(str::to_owned);
    ask(program, &arguments, Input::Text(command.to_string()), within, subject).await
}

/// How the schema of a key's database is made.
fn schema_of(folder: &SiteFolder, spec: &ApiKeySpec) -> Option<SchemaSpec> {
    let schemas = Marker::all(folder).ok()?.into_iter().filter(|marker| marker.kind == ResourceKind::Schema.kind());
    schemas.filter_map(|marker| marker.spec.typed::<SchemaSpec>().ok()).find(|schema| schema.database == spec.database)
}

/// The applied configuration, with the current path of the database.
fn config_as_applied(folder: &SiteFolder, marker: &Marker, spec: &ApiKeySpec) -> Option<Value> {
    let all = Marker::all(folder).ok()?;
    let file = all.iter().find(|other| other.spec.get("path").and_then(Value::as_str) == Some(&spec.config))?;
    let mut document = file.spec.get("document")?.clone();
    if file.lineage != marker.lineage {
        return None;
    }
    if !spec.served {
        let database = document.get_mut("textnlp")?.get_mut("database")?.as_object_mut()?;
        database.insert("url".to_owned(), json!(format!("sqlite://{}", folder.join(&spec.database))));
    }
    Some(document)
}

/// A file without a path: the child reads it through an open descriptor.
pub(crate) struct DescriptorFile {
    pub(crate) path: Utf8PathBuf,
    _file: File,
}

pub(crate) fn pass_file(document: &Value) -> std::io::Result<DescriptorFile> {
    pass_bytes(serde_yaml::to_string(document).map_err(std::io::Error::other)?.as_bytes())
}

/// See [`DescriptorFile`].
pub(crate) fn pass_bytes(bytes: &[u8]) -> std::io::Result<DescriptorFile> {
    let mut file = File::from(rustix::fs::memfd_create("server.yaml", rustix::fs::MemfdFlags::CLOEXEC)?);
    file.write_all(bytes)?;
    let path = format!("/proc/{}/fd/{}", std::process::id(), std::os::fd::AsRawFd::as_raw_fd(&file));
    Ok(DescriptorFile { path: path.into(), _file: file })
}

pub(crate) enum Input {
    Text(String),
    Held(File),
}

/// The site's program, if it has the recorded digest. For approved operations.
async fn verified(folder: &SiteFolder, program: &str, subject: &str) -> Result<VerifiedProgram> {
    opened(VerifiedProgram::of_site, folder, program, subject).await
}

/// The site's program, if it is the file that `up` put there. For observations.
async fn placed(folder: &SiteFolder, program: &str, subject: &str) -> Result<VerifiedProgram> {
    opened(VerifiedProgram::placed, folder, program, subject).await
}

async fn opened(
    open: fn(&SiteFolder, &str) -> std::io::Result<VerifiedProgram>,
    folder: &SiteFolder,
    program: &str,
    subject: &str,
) -> Result<VerifiedProgram> {
    let (folder, relative) = (folder.clone(), program.to_owned());
    let opened = tokio::task::spawn_blocking(move || open(&folder, &relative)).await;
    opened
        .map_err(std::io::Error::other)
        .and_then(|opened| opened)
        .map_err(|error| Error::io("run program for", subject, error).hint("`up` restores the recorded program"))
}

/// Runs the program once and reads its JSON answer.
async fn ask(
    program: &VerifiedProgram,
    arguments: &[String],
    input: Input,
    within: Duration,
    subject: &str,
) -> Result<Value> {
    let ProgramOutput { status, out, err } = run(program, arguments, input, within, subject).await?;
    // The last line: a program may print other lines before.
    let answer = String::from_utf8_lossy(&out);
    let answer = answer.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let parsed: Option<Value> = serde_json::from_str(answer).ok().or_else(|| serde_json::from_slice(&out).ok());
    match parsed {
        Some(answer) if status.success() => Ok(answer),
        answer => Err(refused(subject, status, answer, &err)),
    }
}

/// What a program printed, each at most [`OUTPUT_MAX`] bytes.
pub(crate) struct ProgramOutput {
    pub(crate) status: std::process::ExitStatus,
    pub(crate) out: Vec<u8>,
    pub(crate) err: Vec<u8>,
}

/// Runs the program once, for at most this time.
pub(crate) async fn run(
    program: &VerifiedProgram,
    arguments: &[String],
    input: Input,
    within: Duration,
    subject: &str,
) -> Result<ProgramOutput> {
    let fails = |error: std::io::Error| Error::io("run program for", subject, error);
    let (text, stdin) = match input {
        Input::Text(text) => (Some(text), Stdio::piped()),
        Input::Held(lock) => (None, Stdio::from(lock)),
    };
    let mut command = Command::from(program.command());
    command
        .args(arguments)
        .env_clear()
        .envs(clean_environment())
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    let mut child = start_written(&mut command).await.map_err(fails)?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let exchange = async {
        let write = async {
            if let (Some(mut stdin), Some(text)) = (stdin, text) {
                // A program that does not read its input says why on its output.
                let _ = stdin.write_all(text.as_bytes()).await;
            }
        };
        let (mut out, mut err) = (Vec::new(), Vec::new());
        let read_out = async {
            match stdout {
                Some(stdout) => stdout.take(OUTPUT_MAX).read_to_end(&mut out).await,
                None => Ok(0),
            }
        };
        let read_err = async {
            match stderr {
                Some(stderr) => stderr.take(OUTPUT_MAX).read_to_end(&mut err).await,
                None => Ok(0),
            }
        };
        let ((), first, second) = tokio::join!(write, read_out, read_err);
        first.and(second)?;
        Ok((child.wait().await?, out, err))
    };
    let ended = tokio::time::timeout(within, exchange).await;
    let (status, out, err) = ended
        .map_err(|_| {
            Error::new(ErrorKind::Unavailable, "run program for", subject)
                .because(format!("no answer in {} s", within.as_secs()))
        })?
        .map_err(fails)?;
    Ok(ProgramOutput { status, out, err })
}

fn refused(subject: &str, status: std::process::ExitStatus, answer: Option<Value>, err: &[u8]) -> Error {
    let error_document = answer.as_ref().and_then(|answer| answer.get("error"));
    let text = |field: &str| {
        error_document.and_then(|error_document| error_document.get(field)).and_then(Value::as_str).map(str::to_owned)
    };
    let last = String::from_utf8_lossy(err);
    let last = last.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let why = text("message").unwrap_or_else(|| format!("the program ended with {status}: {last}"));
    let error = match error_document.is_some_and(|error_document| error_document["passes"] == true) {
        // Nothing was changed, so that the outcome is known.
        true => Error::new(ErrorKind::Conflict, "run program for", subject).code(PASSES),
        false => Error::new(ErrorKind::Invalid, "run program for", subject),
    };
    let error = error.because(why);
    match text("hint") {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_of_a_database_that_is_busy_may_pass() {
        let error = |passes: bool| {
            let answer = json!({ "error": { "message": "the database is busy", "passes": passes } });
            refused("here/server/api-key", std::process::ExitStatus::default(), Some(answer), b"")
        };
        assert!(error(true).kind.may_pass() && !error(false).kind.may_pass());
    }
}
