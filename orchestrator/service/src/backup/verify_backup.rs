//! Verification: reads a whole backup, restores it into a temporary folder, and sends a request to its server on a
//! socket, with the restored key.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde_json::{Map, Value, json};
use textnlp_orchestrator::backup::{
    BackupDirectory, Database, Decryptor, Manifest, StoredBackup, VerificationResult, listed, opened, unpack,
};
use textnlp_orchestrator::environment::{API_KEY, SIGNING_KEY, names};
use textnlp_orchestrator::state::{Folder, State};
use textnlp_provider::{Lineage, Secret, SecretRef, SiteName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::Command;
use uuid::Uuid;

use super::failed;
use super::gather::{Counts, DATABASE_TIMEOUT, STATE, answered};
use super::point_in_time::{self, Range, SegmentNames};
use super::scratch_postgres::{DatabaseSource, Postgres};
use super::signer::{self, RequiredSigner};
use crate::{Failure, Platform, Scope, workplace};

/// The prompt for the restored server.
const PROMPT: &str = "Mira walked to the harbour";
/// Timeout of loading the models, which may have many gigabytes.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
/// Timeout of generating a few tokens on a busy machine.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);
pub(super) const KEYS_TIMEOUT: Duration = Duration::from_secs(60);
/// Limit of the output of a child or a server in bytes.
const SAID_MAX: u64 = 1 << 20;
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// The newest backup in a directory.
pub fn newest(scope: &Scope, shelf: &BackupDirectory) -> Result<StoredBackup, Failure> {
    shelf.list().map_err(failed)?.into_iter().next().ok_or_else(|| {
        Failure::usage("no_backup", anyhow::anyhow!("{} has no backup in {}", scope.name, shelf.folder()))
            .hint(scope.command("backup create"))
    })
}

/// Verifies a backup and writes the result beside it, also after a failure. See [`check_backup`].
pub async fn verify_backup(
    platform: &'static dyn Platform,
    shelf: &BackupDirectory,
    file: &Utf8Path,
    opener: &Arc<Decryptor>,
    live: &Utf8Path,
    light: bool,
    signer: Option<RequiredSigner>,
) -> Result<VerificationResult, Failure> {
    let proof = check_backup(platform, shelf, file, opener, live, light, signer).await?;
    shelf.prove(file, &proof).map_err(failed)?;
    Ok(proof)
}

/// Verifies a backup. One in a bucket is copied first. Returns an error if the backup cannot be decrypted or this machine cannot run the
/// verification. `signer` is by default the state's own key.
pub async fn check_backup(
    platform: &'static dyn Platform,
    shelf: &BackupDirectory,
    file: &Utf8Path,
    opener: &Arc<Decryptor>,
    live: &Utf8Path,
    light: bool,
    signer: Option<RequiredSigner>,
) -> Result<VerificationResult, Failure> {
    let signer = signer::of_verification(live, signer, file)?;
    let began = Instant::now();
    let fetched = super::fetch(shelf, file, live.parent().unwrap_or(live))?;
    let copy = fetched.file.as_path();
    let (sha256, read) = {
        let work = workplace(live, copy)?;
        let place = Utf8Path::from_path(work.path()).context("temporary folders have UTF-8 names")?;
        let unpacked = tokio::task::block_in_place(|| open(copy, opener, place));
        match unpacked {
            Ok((sha256, manifest)) => match signer::check(file, &manifest, Some(&signer)) {
                Ok(()) => match misdated(copy, &manifest) {
                    Some(why) => (sha256, Err(anyhow::Error::msg(why))),
                    None => (sha256, restored(platform, copy, opener, place, &manifest, live, light).await),
                },
                // Nothing of it is run, and the copy of another deployment is not marked as damaged.
                Err(failure) => return Err(failure),
            },
            // A wrong key says nothing about the backup.
            Err(failure) if !matches!(failure.code, "damaged") => return Err(failure),
            Err(failure) => (digest(copy)?, Err(failure.error)),
        }
    };
    let (ok, level, says) = match read {
        Ok((level, says)) => (true, level, says),
        Err(error) => (false, "none", format!("{error:#}")),
    };
    Ok(VerificationResult {
        format: 1,
        at: Timestamp::now(),
        sha256,
        ok,
        level: level.to_owned(),
        says,
        tool: concat!("textnlp-deploy ", env!("CARGO_PKG_VERSION")).to_owned(),
        milliseconds: began.elapsed().as_millis() as u64,
    })
}

/// Why the unsigned record beside a backup, whose date lists, status and gates use, is not that of its signed manifest.
fn misdated(file: &Utf8Path, manifest: &Manifest) -> Option<String> {
    let bytes = std::fs::metadata(file).ok()?.len();
    let recorded = BackupDirectory::known(file, bytes).facts?;
    let same = (recorded.at, recorded.lineage) == (manifest.at, manifest.lineage);
    (!same).then(|| {
        format!(
            "the record beside it says {:.0} of deployment {}, its signed manifest {:.0} of {}: another backup was put in its place",
            recorded.at, recorded.lineage, manifest.at, manifest.lineage
        )
    })
}

fn digest(file: &Utf8Path) -> anyhow::Result<String> {
    Ok(textnlp_files::sha256(file).with_context(|| format!("read {file}"))?.hex())
}

/// A private folder on the file system of the state, if that has room for the content of a backup.
fn workplace(live: &Utf8Path, backup: &Utf8Path) -> Result<tempfile::TempDir, Failure> {
    const PREFIX: &str = ".verify-";
    /// Contents are compressed, and a server copies a database once more.
    const TIMES: u64 = 4;
    let bytes = std::fs::metadata(backup).map_or(0, |file| file.len());
    let parent = live.parent().unwrap_or(live);
    std::fs::create_dir_all(parent).with_context(|| format!("make {parent}"))?;
    Ok(workplace::with_room(parent, PREFIX, Some(bytes.saturating_mul(TIMES)))?)
}

/// Unpacks a backup into `FOLDER/state`, with every file where a state has it. Returns the backup's digest.
pub(super) fn open(file: &Utf8Path, opener: &Decryptor, folder: &Utf8Path) -> Result<(String, Manifest), Failure> {
    let manifest = unpack(file, &mut *opened(file, source(file)?, opener).map_err(failed)?, folder).map_err(failed)?;
    let sha256 = digest(file)?;
    for database in manifest.databases.values() {
        let to = folder.join(STATE).join(&database.path);
        let parent = to.parent().context("a database is in a folder")?;
        std::fs::create_dir_all(parent).with_context(|| format!("make {parent}"))?;
        std::fs::rename(folder.join(&database.member), &to).with_context(|| format!("put {to}"))?;
    }
    Ok((sha256, manifest))
}

/// Reads only the manifest at the start of a backup: its deployment and its content.
pub(super) fn list(file: &Utf8Path, opener: &Decryptor) -> Result<Manifest, Failure> {
    listed(file, &mut *opened(file, source(file)?, opener).map_err(failed)?).map_err(failed)
}

fn source(file: &Utf8Path) -> Result<std::fs::File, Failure> {
    let source = std::fs::File::open(file).map_err(|error| {
        Failure::usage("no_such_file", anyhow::Error::new(error).context(format!("open {file}")))
            .hint("give the path of a file that `backup create` made; `backup list` shows where they are")
    })?;
    match source.metadata().context("check the file")?.is_file() {
        true => Ok(source),
        false => Err(Failure::usage("no_such_file", anyhow::anyhow!("{file} is not a file"))),
    }
}

/// The path in a backup of the configuration of a site's first replica.
pub(super) fn served(site: &SiteName) -> String {
    format!("served/{site}.yaml")
}

/// Loads the state of an unpacked backup, with its whole journal.
pub(super) async fn state_of(folder: &Utf8Path, manifest: &Manifest) -> anyhow::Result<State> {
    let store = std::sync::Arc::new(Folder::at(folder.join(STATE)));
    let state = State::load(store, &manifest.environment, Lineage(Uuid::new_v4())).await?;
    ensure!(!state.is_new(), "there is no state in it");
    ensure!(
        state.lineage() == manifest.lineage,
        "its state is of lineage {}, not {}",
        state.lineage(),
        manifest.lineage
    );
    Ok(state)
}

/// The verified level, and notes on what was found.
async fn restored(
    platform: &'static dyn Platform,
    copy: &Utf8Path,
    opener: &Arc<Decryptor>,
    place: &Utf8Path,
    manifest: &Manifest,
    live: &Utf8Path,
    light: bool,
) -> anyhow::Result<(&'static str, String)> {
    let state = state_of(place, manifest).await.context("read the restored state")?;
    let folder = place.join(STATE);
    if manifest.databases.is_empty() {
        return Ok(("state", "the state is complete; the backup has no database".to_owned()));
    }
    let mut said = Vec::new();
    let mut level = "answered";
    for (site, database) in &manifest.databases {
        let file = folder.join(&database.path);
        let (settings, beside) = match file.extension() {
            Some("dump") => {
                let beside = Postgres::start(platform, site, DatabaseSource::Dump(&file), place)
                    .await
                    .context("restore the dump to a temporary PostgreSQL")?;
                (beside.settings.clone(), Some(beside))
            }
            _ => (json!({ "url": format!("sqlite://{file}") }), None),
        };
        let at = RestoredDatabase { platform, site, folder: &folder, settings, place };
        let keys = at.keys(&state).await.with_context(|| format!("check the keys of site {site}"))?;
        let found = at.counts().await.with_context(|| format!("count the rows of site {site}"))?;
        if let Some(why) = less(database, &found) {
            bail!("the restored database of site {site} {why}");
        }
        let counted = format!("keys restored: {}, requests accounted for: {}", found.keys, found.usage);
        match at.ask(live, &keys, light).await.with_context(|| format!("query the restored server of site {site}"))? {
            Ok(()) => said.push(format!("{counted}, a restored server accepted a restored key")),
            Err(why) => {
                level = "keys";
                said.push(format!("{counted}, the stored keys match; no server was started ({why})"));
            }
        }
        if let Some(beside) = beside {
            beside.stop().await;
        }
        if let Some(base) = &database.base {
            let range = Range::in_backup(copy, site, base, manifest, &mut SegmentNames::default());
            let range = range.map_err(|failure| failure.error)?;
            let (asked, says) = logged(range, opener, at, live, light, &state).await?;
            level = if asked { level } else { "keys" };
            said.push(says);
        }
    }
    if manifest.signer.is_none() {
        said.push("it is not signed: an earlier version made it".to_owned());
    }
    Ok((level, said.join("; ")))
}

/// What a restored database lacks of what the manifest recorded, if anything.
fn less(recorded: &Database, found: &Counts) -> Option<String> {
    let rows = [
        ("keys", recorded.keys, found.keys),
        ("accounted requests", recorded.usage, found.usage),
        ("schema version", recorded.schema, found.schema),
    ];
    let (what, expected, found) = rows.into_iter().find(|(_, expected, found)| found < expected)?;
    Some(format!("has less than the backup recorded: {what} {found}, not {expected}"))
}

/// Recovers a base backup with its whole log and starts a server on it. Returns whether the server could be queried,
/// and notes.
async fn logged(
    range: Range,
    opener: &Arc<Decryptor>,
    at: RestoredDatabase<'_>,
    live: &Utf8Path,
    light: bool,
    state: &State,
) -> anyhow::Result<(bool, String)> {
    let RestoredDatabase { platform, site, place, .. } = at;
    let to = range.reach.until;
    let (opened, damaged) = tokio::task::block_in_place(|| point_in_time::open(&range, to, opener));
    ensure!(damaged.is_empty(), "the log of site {site}: {}", damaged.join("; "));
    let gap = range.reach.missing.as_ref().map(|missing| format!(", but not further: {missing} is missing"));
    let tar = place.join(&range.base.member);
    let from =
        DatabaseSource::Base { tar: &tar, base: &range.base, log: range.log, opener: opener.clone(), opened, to };
    let beside = Postgres::start(platform, site, from, place)
        .await
        .context("recover the base backup and its log to a temporary PostgreSQL")?;
    let at = RestoredDatabase { settings: beside.settings.clone(), ..at };
    let keys = at.keys(state).await.with_context(|| format!("check the keys of site {site} after its log"))?;
    let asked =
        at.ask(live, &keys, light).await.with_context(|| format!("query the recovered server of site {site}"))?;
    beside.stop().await;
    let reached = to.map_or("the base backup alone".to_owned(), |to| {
        format!("base backup and log up to {}", point_in_time::format_time(to))
    });
    let answered = if asked.is_ok() { ", and a server with it answered" } else { "" };
    Ok((asked.is_ok(), format!("{reached} recovered{answered}{}", gap.unwrap_or_default())))
}

/// A restored database and its state.
pub(super) struct RestoredDatabase<'a> {
    /// The providers and this machine.
    pub platform: &'static dyn Platform,
    /// The site of the database.
    pub site: &'a SiteName,
    /// The folder of the state.
    pub folder: &'a Utf8Path,
    /// The `database:` settings of a server that uses the restored database.
    pub settings: Value,
    /// A private folder for temporary files.
    pub place: &'a Utf8Path,
}

/// The credentials for requests to the restored server.
pub(super) struct Keys {
    api: Secret,
    jwt: Option<Utf8PathBuf>,
}

impl RestoredDatabase<'_> {
    /// The restored secrets. The restored database must know the first key.
    pub(super) async fn keys(&self, state: &State) -> anyhow::Result<Keys> {
        let secrets = self.platform.secrets(self.folder);
        let reference = |site: &SiteName, name: &str| {
            let id = format!("{site}/{}/{name}", names::SECRETS);
            let holdings = state.holdings(site).ok()?;
            let (_, holding) = holdings.iter().find(|(known, _)| known.as_str() == id)?;
            SecretRef::from_value(holding.current.as_ref()?.outputs.get("secret")?)
        };
        // If there are several sites, the home site created it, and replication copied it to the others.
        let first = || state.sites().find_map(|site| reference(site, API_KEY));
        let api = reference(self.site, API_KEY).or_else(first).context("no journal records a first key")?;
        let api = secrets.get(&api).await?;
        let text = api.expose_text().context("the key is not UTF-8")?;
        let id = text.split('_').nth(1).context("the key has no public id")?;
        let config = self.place.join(format!("{}-keys.yaml", self.site));
        std::fs::write(&config, chores(&self.settings))?;
        let this = std::env::current_exe()?;
        // Migrates an older schema, as `up` does.
        child(this.as_ref(), &["admin", "migrate", "--config", config.as_str()], None, KEYS_TIMEOUT).await?;
        let command = json!({
            "do": "put", "public_id": id, "sha256": sha256(api.expose()), "name": "first", "tenant": "default",
        });
        let arguments = ["admin", "keys", "--config", config.as_str()];
        let answer = child(this.as_ref(), &arguments, Some(&command), KEYS_TIMEOUT).await?;
        // Storing a key that exists changes nothing.
        ensure!(answer["changed"] == json!(false), "the database does not hold the digest of the restored key `{id}`");
        let jwt = reference(self.site, SIGNING_KEY).and_then(|jwt| self.platform.secret_file(self.folder, &jwt));
        Ok(Keys { api, jwt })
    }

    /// Dumps the database, and returns the report of its content.
    pub(super) async fn dump(&self, to: &Utf8Path) -> anyhow::Result<Value> {
        let config = self.place.join(format!("{}-dump.yaml", self.site));
        std::fs::write(&config, chores(&self.settings))?;
        let arguments = ["admin", "backup", "--config", config.as_str(), "--out", to.as_str()];
        child(std::env::current_exe()?.as_ref(), &arguments, None, DATABASE_TIMEOUT).await
    }

    /// The counts of the restored rows, by the same report as when the backup was taken.
    async fn counts(&self) -> anyhow::Result<Counts> {
        let copy = self.place.join(format!("{}-counted", self.site));
        let said = self.dump(&copy).await?;
        std::fs::remove_file(&copy).with_context(|| format!("remove {copy}"))?;
        answered(said)
    }

    /// Starts the restored server and sends a request. The inner `Err` says why the server could not be started.
    async fn ask(&self, live: &Utf8Path, keys: &Keys, light: bool) -> anyhow::Result<Result<(), String>> {
        if light {
            return Ok(Err("--light".to_owned()));
        }
        let sockets = workplace::for_sockets()?;
        let socket = Utf8Path::from_path(sockets.path()).context("temporary folders have UTF-8 names")?.join("s");
        let config = match self.config(&socket, keys)? {
            Ok(config) => config,
            Err(why) => return Ok(Err(why)),
        };
        let (program, _open) = self.program(live)?;
        let log = self.place.join(format!("{}-server.log", self.site));
        let out = std::fs::File::create(&log)?;
        let mut server = Command::from(program)
            .args(["serve", "--config", config.as_str()])
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| name == "PATH" || name == "HOME"))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .kill_on_drop(true)
            .spawn()
            .context("start the server program")?;
        let asked = tokio::select! {
            asked = answer(&socket, &keys.api) => asked,
            ended = server.wait() => Err(anyhow::anyhow!("it ended: {}", ended.map_or_else(|e| e.to_string(), |s| s.to_string()))),
        };
        // The server has no other clients.
        let _ = server.kill().await;
        asked.with_context(|| last_words(&log))?;
        Ok(Ok(()))
    }

    /// The program that serves now, if it is the recorded one, else this program; and the file that must stay open until
    /// it started.
    fn program(&self, live: &Utf8Path) -> anyhow::Result<(std::process::Command, Option<std::fs::File>)> {
        let serving = self.platform.site_copy(live, self.site).ok().and_then(|copy| copy.served);
        match serving.and_then(|(program, _)| self.platform.site_program(&program).ok()) {
            Some((command, file)) => Ok((command, Some(file))),
            None => Ok((std::process::Command::new(std::env::current_exe()?), None)),
        }
    }

    /// The configuration from the backup, with the restored files and a private socket.
    fn config(&self, socket: &Utf8Path, keys: &Keys) -> anyhow::Result<Result<Utf8PathBuf, String>> {
        let Ok(text) = std::fs::read(self.place.join(served(self.site))) else {
            return Ok(Err("the service did not run when it was created".to_owned()));
        };
        let mut config: Value = serde_yaml::from_slice(&text).context("read the restored configuration")?;
        let mut bytes = 0u64;
        for model in config["textnlp"]["models"]["serve"].as_array().into_iter().flatten() {
            let path = Utf8Path::new(model["path"].as_str().unwrap_or_default());
            if !path.is_dir() {
                let name = model["name"].as_str().unwrap_or_default();
                return Ok(Err(format!("model {name} is not deployed on this machine: {path} does not exist")));
            }
            let files = path.read_dir_utf8()?.flatten();
            bytes += files.filter_map(|file| std::fs::metadata(file.path()).ok()).map(|file| file.len()).sum::<u64>();
        }
        // The verification must not cause an out-of-memory kill of the service.
        if let Some(free) = free_memory().filter(|free| bytes.saturating_mul(2) > *free) {
            return Ok(Err(format!("a second copy of its models needs {bytes} bytes of memory, {free} are free")));
        }
        let Some(tree) = config["textnlp"].as_object_mut() else {
            bail!("the restored configuration is not an object")
        };
        separate(tree);
        let mut set = |section: &str, field: &str, value: Value| {
            if let Some(section) = tree.entry(section).or_insert_with(|| json!({})).as_object_mut() {
                match value {
                    Value::Null => drop(section.shift_remove(field)),
                    value => drop(section.insert(field.to_owned(), value)),
                }
            }
        };
        set("api", "listen", json!(format!("unix:{socket}")));
        set("api", "metrics_listen", Value::Null);
        set("api", "require_https", json!(false));
        set("monitoring", "metrics_port", Value::Null);
        set("monitoring", "log_file", Value::Null);
        set("monitoring", "traces", Value::Null);
        for field in ["url", "url_file", "password_file", "ca_file"] {
            set("database", field, self.settings.get(field).cloned().unwrap_or_default());
        }
        set("security", "jwt_private_key_file", keys.jwt.as_ref().map_or(Value::Null, |jwt| json!(jwt)));
        let path = self.place.join(format!("{}-server.yaml", self.site));
        std::fs::write(&path, serde_yaml::to_string(&config)?)?;
        Ok(Ok(path))
    }
}

/// Removes from a server's settings what it shares with the service.
fn separate(tree: &mut Map<String, Value>) {
    // The restored events were sent, or will be, by the service.
    if let Some(batch) = tree.get_mut("batch").and_then(Value::as_object_mut) {
        batch.shift_remove("webhooks");
    }
    // The models are to compute. The file of the address of a Redis may be on another machine.
    tree.shift_remove("cache");
}

/// Waits until the server on this socket reports that it is ready.
pub(super) async fn ready(socket: &Utf8Path, within: Duration) -> anyhow::Result<()> {
    let began = Instant::now();
    loop {
        match exchange(socket, "GET /ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".as_bytes()).await {
            Ok((200, _)) => return Ok(()),
            Ok((_, body)) if body.contains("\"status\":\"failing\"") => bail!("it cannot serve: {body}"),
            _ if began.elapsed() > within => bail!("it was not ready within {} s", within.as_secs()),
            _ => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Waits until the server is ready, then generates a text with the restored key; a vector if the default model makes those.
async fn answer(socket: &Utf8Path, key: &Secret) -> anyhow::Result<()> {
    ready(socket, READY_TIMEOUT).await?;
    let text = json!({ "prompt": PROMPT, "max_tokens": 8, "temperature": 0.0 });
    let (mut status, mut said) = post(socket, key, "/v1/generate", &text).await?;
    let mut wanted = "text";
    if status == 400 && said.contains("\"unsupported_model\"") {
        wanted = "embedding";
        (status, said) = post(socket, key, "/v1/embeddings", &json!({ "input": PROMPT })).await?;
    }
    ensure!(status == 200, "it answered {status}: {}", said.chars().take(300).collect::<String>());
    ensure!(said.contains(&format!("\"{wanted}\"")), "its answer contains no {wanted}");
    Ok(())
}

async fn post(socket: &Utf8Path, key: &Secret, path: &str, body: &Value) -> anyhow::Result<(u16, String)> {
    let body = body.to_string();
    let mut request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nAuthorization: Bearer ",
        body.len()
    )
    .into_bytes();
    request.extend_from_slice(key.expose());
    request.extend_from_slice(b"\r\n\r\n");
    request.extend_from_slice(body.as_bytes());
    tokio::time::timeout(ANSWER_TIMEOUT, exchange(socket, &request)).await.context("it did not answer in time")?
}

async fn exchange(socket: &Utf8Path, request: &[u8]) -> anyhow::Result<(u16, String)> {
    let mut stream = UnixStream::connect(socket).await?;
    stream.write_all(request).await?;
    let mut said = Vec::new();
    stream.take(SAID_MAX).read_to_end(&mut said).await?;
    let said = String::from_utf8_lossy(&said).into_owned();
    let status = said.split(' ').nth(1).and_then(|status| status.parse().ok()).context("it does not speak HTTP")?;
    Ok((status, said.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.to_owned())))
}

fn last_words(log: &Utf8Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(3).collect();
    format!("its last output: {}", lines.into_iter().rev().collect::<Vec<_>>().join(" | "))
}

fn free_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    hex::encode(Sha256::digest(bytes))
}

/// A configuration for one-off jobs on a database without a server.
pub(super) fn least_config(database: &Utf8Path) -> String {
    chores(&json!({ "url": format!("sqlite://{database}") }))
}

/// See [`least_config`].
fn chores(settings: &Value) -> String {
    // YAML is a superset of JSON.
    json!({ "textnlp": {
        "database": settings,
        "models": { "serve": [{ "name": "none", "path": "/nowhere" }] },
    } })
    .to_string()
}

/// Runs a program and parses its JSON output.
pub(super) async fn child(
    program: &std::path::Path,
    arguments: &[&str],
    command: Option<&Value>,
    within: Duration,
) -> anyhow::Result<Value> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("start {}", program.display()))?;
    let mut stdin = child.stdin.take().context("talk to the server program")?;
    if let Some(command) = command {
        stdin.write_all(command.to_string().as_bytes()).await.context("talk to the server program")?;
    }
    drop(stdin);
    let output = tokio::time::timeout(within, child.wait_with_output())
        .await
        .with_context(|| format!("the server program did not end within {} s", within.as_secs()))??;
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    if output.status.success() && !answer.is_null() {
        return Ok(answer);
    }
    match answer["error"]["message"].as_str() {
        Some(message) => bail!("{message}"),
        None => bail!("{}", String::from_utf8_lossy(&output.stderr).trim()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn restored_server_neither_sends_events_nor_uses_the_cache_of_the_service() {
        let mut config = json!({
            "batch": { "folder": "/batches", "webhooks": [{ "url": "https://hooks.example.com" }] },
            "cache": { "kind": "redis", "url_file": "/certs/server-cache-url" },
            "models": { "default": "tiny" },
        });
        separate(config.as_object_mut().unwrap());
        assert_eq!(config, json!({ "batch": { "folder": "/batches" }, "models": { "default": "tiny" } }));
    }

    #[test]
    fn restored_database_must_have_what_the_manifest_counted() {
        let (member, path) = ("databases/here.db".to_owned(), "here.db".to_owned());
        let recorded = Database { member, path, schema: 7, keys: 2, usage: 90, base: None };
        let counts = |schema, keys, usage| less(&recorded, &Counts { schema, keys, usage });
        assert_eq!(counts(7, 2, 90), None);
        assert_eq!(counts(8, 2, 90), None, "a newer program migrates it");
        for (found, says) in [
            (counts(7, 1, 90), "keys 1, not 2"),
            (counts(7, 2, 0), "accounted requests 0, not 90"),
            (counts(6, 2, 90), "schema version 6, not 7"),
        ] {
            assert!(found.unwrap().ends_with(says), "{says}");
        }
    }
}
