//! `backup …` and `restore`: backups of a deployment and their verification.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_models::Source;
use textnlp_orchestrator::backup::{
    BackupDirectory, BackupFacts, CopiedDumps, Decryptor, DumpFolder, EncryptionMode, Key, StoredBackup,
};
use textnlp_orchestrator::dr::report::signing_key;
use textnlp_orchestrator::environment::model::{Backup as Settings, NetworkSettings, SecretSource};
use textnlp_orchestrator::gate::phases::PhaseDefinition;
use textnlp_orchestrator::state::SCHEDULE;
use textnlp_provider::operations::SiteBackups;
use textnlp_provider::{EnvironmentName, Secret};
use textnlp_service::Platform as _;
use textnlp_service::backup::create::{Created, Encryption, Expired};
use textnlp_service::backup::{
    self, FetchedBackup, LostKey, ValidAgain, Withdrawn, backup_status, create, failed, key, point_in_time, put_file,
    restore as restoring, secret_file, small_file,
};
use textnlp_service::cleanup::MIN_AGE;
use textnlp_service::up::is_store_not_frozen;

use super::prelude::*;
use crate::args::Up;
use crate::backup_args::{Archive, Backup, Create, Decrypt, Encrypt, Opening, Passphrase, Restore, Run, Verify};
use crate::clouds::Linked;
use crate::deployment::{acting, operator};
use crate::rerun_flags::quoted;
use crate::session::{ENVIRONMENTS, states};
use crate::stores;

/// Runs the subcommand.
pub async fn backup(session: &Session, verb: &Backup, console: Console) -> Result<Success, Failure> {
    match verb {
        Backup::Create(args) => create(session, args, console).await,
        Backup::List => list(session, console).await,
        Backup::Verify(args) => verify(session, args, console).await,
        Backup::Prune { keep } => prune(session, keep.as_deref(), console).await,
        Backup::Key(crate::backup_args::Key::Show { out }) => show_key(session, out.as_deref(), console).await,
        Backup::Run(args) => run(args).await,
        Backup::Archive(args) => archive(args).await,
        Backup::Encrypt(args) => tokio::task::block_in_place(|| encrypt(args)),
        Backup::Decrypt(args) => tokio::task::block_in_place(|| decrypt(args)),
    }
}

/// The key from the flags. Without any, the key in the state.
async fn opener(
    session: &Session,
    opening: &Opening,
    key: Option<&Secret>,
    folder: &Utf8Path,
) -> Result<Decryptor, Failure> {
    backup::opener(passphrase(&opening.passphrase, session)?, key, (&Linked, folder)).await
}

/// The content of the `--key` file, which can be a pipe and is read once.
fn key_file(opening: &Opening, session: &Session) -> Result<Option<Secret>, Failure> {
    let file = opening.key.as_ref().map(|file| session.here.join(file));
    file.map(|file| secret_file(&file, "the key file")).transpose()
}

fn passphrase(from: &Passphrase, session: &Session) -> Result<Option<Secret>, Failure> {
    if let Some(file) = &from.passphrase_file {
        return secret_file(&session.here.join(file), "the passphrase file").map(Some);
    }
    let Some(name) = &from.passphrase_env else { return Ok(None) };
    match std::env::var(name) {
        Ok(value) if !value.is_empty() => Ok(Some(Secret::new(value.into_bytes()))),
        _ => Err(Failure::usage("no_passphrase", anyhow::anyhow!("the variable `{name}` is not set"))
            .hint("set it to the passphrase, or give the passphrase in a file: --passphrase-file FILE")),
    }
}

/// The environment with its backup directory and settings.
fn its_shelf(session: &Session, console: Console) -> Result<(ChosenEnvironment, BackupDirectory, Settings), Failure> {
    let chosen = session.load(console)?;
    let (shelf, settings) = backup::directory(&chosen.scope, &chosen.loaded.environment)?;
    Ok((chosen, shelf, settings))
}

/// `backup list`.
async fn list(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(session.quiet())?;
    if let Some(backups) = chosen.scope.platform.site_backups(&chosen.scope.folder, &chosen.loaded.environment)? {
        return list_of_site(&chosen, &*backups).await;
    }
    let (chosen, shelf, settings) = its_shelf(session, console)?;
    let backup::Listing { dumps, ranges, logs } = backup::list(&shelf)?;
    let document = json!({
        "environment": chosen.scope.name, "folder": shelf.folder(),
        "backups": dumps.iter().map(document).collect::<Vec<_>>(),
        "moments": ranges.iter().map(point_in_time::Range::document).collect::<Vec<_>>(),
        "logs": logs.iter().map(|log| json!({
            "log": log.folder, "system": log.system, "parts": log.parts, "bytes": log.bytes, "until": log.until,
        })).collect::<Vec<_>>(),
    });
    if dumps.is_empty() {
        let (name, create) = (&chosen.scope.name, chosen.scope.command("backup create"));
        let text = match settings.enabled && backup_status::is_first_expected(&chosen.scope.folder) {
            true => format!("The first backup of {name} is being taken, into {}", shelf.folder()),
            false => format!("{name} has no backup in {}\nTo create one: {create}", shelf.folder()),
        };
        return Ok(Success::new(text, document));
    }
    let mut text = format!(
        "{}\n{:<26} {:<20} {:>9}  {:<11} LAST VERIFICATION (UTC)",
        shelf.folder(),
        "BACKUP",
        "CREATED (UTC)",
        "SIZE",
        "ENCRYPTION"
    );
    for dump in &dumps {
        text.push_str(&format!("\n{}", row(dump)));
    }
    if !logs.is_empty() {
        text.push_str("\n\nPOINT-IN-TIME RECOVERY");
        ranges.iter().for_each(|range| text.push_str(&format!("\n{}", range.says())));
        for log in &logs {
            text.push_str(&format!("\n{}: {} parts, {}", log.folder, log.parts, size(log.bytes)));
        }
    }
    Ok(Success::new(text, document))
}

/// The dumps that a site makes itself: where they are, and the newest.
async fn list_of_site(chosen: &ChosenEnvironment, backups: &dyn SiteBackups) -> Result<Success, Failure> {
    let scope = &chosen.scope;
    let state = textnlp_service::running::state(scope).await?;
    if state.is_new() {
        return Err(backup::nothing_to_back_up(scope));
    }
    let newest = backups.last(state.lineage()).await.context("read the newest dump of the cluster")?;
    let every = chosen.loaded.environment.backup.every;
    let mut text = format!(
        "Dumps of its database are on {}, where the cluster makes one every {every}, restores it to verify it, and removes old \
         ones.\n",
        backups.location()
    );
    match newest {
        Some(newest) => {
            let is_late = Timestamp::now().duration_since(newest).unsigned_abs() > every.0.saturating_mul(2);
            let late = if is_late { ", which is late" } else { "" };
            text.push_str(&format!("The newest verified one is of {newest:.0}{late}.\n"));
        }
        None => text.push_str(&format!("There is none yet. To create one: {}\n", backups.first_command())),
    }
    text.push_str(&format!("The log of a run, for an hour after its end: {}", backups.log_command()));
    let document = json!({
        "environment": scope.name, "location": backups.location(), "newest_verified": newest,
        "log_command": backups.log_command(),
    });
    Ok(Success::new(text, document))
}

/// A backup in the table.
fn row(dump: &StoredBackup) -> String {
    let (name, facts) = (dump.file.file_name().unwrap_or_default(), dump.facts.as_ref());
    let sealed = facts.map_or("unknown", |facts| facts.sealed.as_str());
    format!("{name:<26} {:<20} {:>9}  {sealed:<11} {}", created(dump), size(dump.bytes), proof_text(dump))
}

/// When it was created, if a record says so: a file that was copied here has none.
fn created(dump: &StoredBackup) -> String {
    let time = |facts: &BackupFacts| facts.at.strftime("%Y-%m-%d %H:%M").to_string();
    dump.facts.as_ref().map_or("not recorded".to_owned(), time)
}

fn proof_text(dump: &StoredBackup) -> String {
    match &dump.proof {
        None => "never".to_owned(),
        Some(proof) if proof.ok => format!("{}: restored: {}", proof.at.strftime("%Y-%m-%d %H:%M"), proof.says),
        Some(proof) => format!("FAILED {}: {}", proof.at.strftime("%Y-%m-%d %H:%M"), proof.says),
    }
}

/// A backup as JSON.
fn document(dump: &StoredBackup) -> serde_json::Value {
    let facts = dump.facts.as_ref();
    json!({
        "file": dump.file, "bytes": dump.bytes, "recorded": facts.is_some(),
        "at": facts.map(|f| f.at), "digest": facts.map(|f| format!("sha256:{}", f.sha256)),
        "lineage": facts.map(|f| f.lineage), "sealed": facts.map(|f| f.sealed),
        "recipients": facts.map(|f| f.recipients.clone()), "models": facts.map(|f| f.models),
        "verified": dump.is_proven(), "proof": dump.proof,
    })
}

/// Parses a duration: `30d`, `12h`, or seconds.
fn age(text: &str) -> Result<Duration, Failure> {
    use textnlp_orchestrator::environment::model::Span;
    text.parse::<Span>().map(|span| span.0).map_err(|_| {
        Failure::usage("usage", anyhow::anyhow!("`{text}` is not a duration"))
            .hint("write it like `14d`, `12h` or `90m`")
    })
}

/// Starts the site's own database backup now. Secrets and state stay on this machine.
async fn by_site(
    chosen: &ChosenEnvironment,
    backups: &dyn SiteBackups,
    args: &Create,
    console: Console,
) -> Result<Success, Failure> {
    let began = Instant::now();
    let Passphrase { passphrase_file, passphrase_env } = &args.passphrase;
    let requirements = [
        ("--recipient", !args.recipient.is_empty()),
        ("--passphrase-file", passphrase_file.is_some()),
        ("--passphrase-env", passphrase_env.is_some()),
        ("--plain", args.plain),
        ("--with-models", args.with_models),
    ];
    if let Some((flag, _)) = requirements.iter().find(|(_, requested)| *requested) {
        let error = anyhow::anyhow!(
            "{flag} applies to backups of a machine; the cluster encrypts its dumps for the environment's key and `backup.recipients`, without models"
        );
        return Err(Failure::usage("in_cluster", error).hint("omit it; for further keys, set `backup.recipients`"));
    }
    let progress = Progress::new(console);
    let said = progress.done(create::by_site(&chosen.scope, backups, &progress).await)?;
    let seconds = (began.elapsed().as_secs_f64() * 10.0).round() / 10.0;
    let document = json!({ "environment": chosen.scope.name, "says": said, "seconds": seconds });
    let mut text = format!("{said}\nThe dump is on {}.", backups.location());
    if backup_status::read(&chosen.scope.folder).key_shown.is_none() {
        let show = chosen.scope.command("backup key show");
        text.push_str(&format!("\nThe key that decrypts it is on this machine only. To export the key: {show}"));
    }
    Ok(Success::new(text, document))
}

/// `backup create`.
async fn create(session: &Session, args: &Create, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load(session.quiet())?;
    if let Some(backups) = chosen.scope.platform.site_backups(&chosen.scope.folder, &chosen.loaded.environment)? {
        return by_site(&chosen, &*backups, args, console).await;
    }
    let (chosen, shelf, settings) = its_shelf(session, console)?;
    let encryption = if args.plain {
        console.warn("the backup is not encrypted: anyone who can read the file has every key of this environment");
        Encryption::Plain
    } else if let Some(passphrase) = passphrase(&args.passphrase, session)? {
        Encryption::Passphrase(passphrase)
    } else {
        Encryption::Keys(settings.recipients.iter().chain(&args.recipient).collect())
    };
    let progress = Progress::new(console);
    let (with_models, operator) = (args.with_models, operator(session));
    let request = create::Request { shelf: &shelf, encryption, with_models, operator };
    let Created { dump, notes, seal, signer, same_disk, key_is_only_here } =
        progress.done(create::create(&chosen.scope, request, &progress).await)?;
    notes.iter().for_each(|note| console.warn(note));
    if same_disk {
        console.say(
            "The backup is on the same disk as the data: copy it to another machine, or set `backup.destination`.",
        );
    }
    let mut document = document(&dump);
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    document["environment"] = json!(chosen.scope.name);
    document["same_disk"] = json!(same_disk);
    document["signer"] = json!(signer);
    let mut text = format!("{}  {}, {}", dump.file, size(dump.bytes), sealed_text(&seal));
    text.push_str(&format!("\nSigned by {}", signer.to_base64()));
    text.push_str(&format!("\nTo verify that it can be restored: {}", chosen.scope.command("backup verify")));
    if key_is_only_here {
        text.push_str(&format!(
            "\nThe key that decrypts it is on this machine only. To export the key: {}",
            chosen.scope.command("backup key show")
        ));
    }
    Ok(Success::new(text, document))
}

/// `backup run`: a scheduled backup, started by the supervisor.
async fn run(args: &Run) -> Result<Success, Failure> {
    // The service has priority.
    let _ = rustix::process::nice(10);
    let operator = acting(&Linked, SCHEDULE.to_owned(), Some("backup.every".to_owned()));
    let done = create::run(&Linked, &args.folder, &args.order, &operator).await?;
    Ok(Success::new(done.says, document(&done.dump)))
}

/// `backup archive`: accepts log segments until its standard input closes.
async fn archive(args: &Archive) -> Result<Success, Failure> {
    // The service has priority, but the archive must keep up with the log.
    let _ = rustix::process::nice(5);
    let order = backup::order(&args.order)?;
    let end = tokio::task::spawn_blocking(|| std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink()));
    backup::archive::archive(&Linked, &args.folder, &order, &args.postgres, end).await?;
    Ok(Success::new(String::new(), json!({})))
}

/// `backup encrypt`: stores a verified dump of the database in a cluster, and then copies what a bucket lacks.
fn encrypt(args: &Encrypt) -> Result<Success, Failure> {
    let recipients = args.recipient.iter().map(|text| text.parse()).collect::<Result<Vec<_>, _>>().map_err(failed)?;
    let keys = recipients.len();
    let report = std::fs::read_to_string(&args.report).with_context(|| format!("read {}", args.report))?;
    let folder = DumpFolder::at(args.folder.clone());
    let keep = Duration::from_secs(args.keep);
    let stored = folder.store(&args.dump, recipients, Timestamp::now(), keep).map_err(failed)?;
    // Its volume outlives this program.
    std::fs::remove_file(&args.dump).with_context(|| format!("remove {}", args.dump))?;
    let keys = counted(keys, "key");
    let mut text = format!("{}: {} bytes, encrypted for {keys}, {}", stored.name, stored.bytes, report.trim());
    let mut document = json!({ "file": stored.name, "bytes": stored.bytes });
    if let Some(url) = &args.destination {
        let CopiedDumps { copied, removed, retained } = copy_dumps(args, url, &folder).map_err(|mut failure| {
            let what = format!("{} is stored in {}, and not all dumps are copied to {url}", stored.name, args.folder);
            failure.error = failure.error.context(what);
            failure
        })?;
        // `backup create` shows the last line.
        text = format!("{text}; {} copied to {url}", counted(copied.len(), "dump"));
        if !retained.is_empty() {
            text =
                format!("{}\n{text}; {} retained there", retained.join("\n"), counted(retained.len(), "expired copy"));
        }
        document["copied"] = json!(copied);
        document["removed"] = json!(removed);
        document["retained"] = json!(retained);
    }
    Ok(Success::new(text, document))
}

/// Copies the dumps of a cluster to a bucket, with the certificate authority and the proxies of this process.
fn copy_dumps(args: &Encrypt, url: &str, folder: &DumpFolder) -> Result<CopiedDumps, Failure> {
    let credentials = args.credentials.as_ref().map(|file| SecretSource::File(file.to_string()));
    let bucket = stores::backup_bucket(url, credentials.as_ref(), &NetworkSettings::default())?;
    bucket.copy_dumps(folder, Duration::from_secs(args.keep), Timestamp::now()).map_err(failed)
}

/// `backup decrypt`: prepares the restore of a dump in a cluster. A dump of an earlier version needs no key.
fn decrypt(args: &Decrypt) -> Result<Success, Failure> {
    let opener = match args.key.is_file() {
        true => Decryptor::Keys(Key::parse(&small_file(&args.key, "the key file")?).map_err(failed)?),
        false => Decryptor::Nothing,
    };
    let folder = DumpFolder::at(args.folder.clone());
    let name = folder.open(args.dump.as_deref(), &opener, &args.out).map_err(|error| {
        let names = folder.names().unwrap_or_default();
        let failure = failed(error);
        match opener {
            Decryptor::Nothing => failure.hint(
                "create the Secret with the key first: `textnlp-deploy backup key show > key.txt`, then `kubectl create secret generic textnlp-backup-key --from-file=key.txt`",
            ),
            _ => failure.hint(format!("the dumps are: {}", names.join(", "))),
        }
    })?;
    put_file(&args.report, name.as_bytes()).with_context(|| format!("write {}", args.report))?;
    Ok(Success::new(format!("decrypted {name}"), json!({ "file": name })))
}

/// The age of `backup prune --keep`. A slip such as `0d` must not be a plan to remove nearly all of them.
fn least_age(text: &str) -> Result<Duration, Failure> {
    let keep = age(text)?;
    if keep >= MIN_AGE {
        return Ok(keep);
    }
    Err(Failure::usage("usage", anyhow::anyhow!("--keep is `{text}`, and must be at least 1d"))
        .hint("write it like `14d`; the newest backup and the newest verified one stay in any case"))
}

/// What `backup prune` would remove, one backup a line.
fn expired_text(dumps: &[StoredBackup], parts: usize) -> String {
    let mut text = String::new();
    for dump in dumps {
        let made = created(dump);
        text.push_str(&format!(
            "  {:<26} {made:<20} {:>9}\n",
            dump.file.file_name().unwrap_or_default(),
            size(dump.bytes)
        ));
    }
    let bytes = dumps.iter().map(|dump| dump.bytes).sum();
    text.push_str(&format!("{} to remove, {}", counted(dumps.len(), "backup"), size(bytes)));
    if parts > 0 {
        text.push_str(&format!(", and {} that no other backup needs", counted(parts, "log file")));
    }
    text
}

/// `backup prune`.
async fn prune(session: &Session, keep: Option<&str>, console: Console) -> Result<Success, Failure> {
    let (chosen, shelf, settings) = its_shelf(session, console)?;
    let keep = match keep {
        Some(text) => least_age(text)?,
        None => settings.keep.0,
    };
    let Expired { dumps, parts } = create::expired(&chosen.scope, &shelf, keep).await?;
    if !dumps.is_empty() || parts > 0 {
        console.say(expired_text(&dumps, parts));
        if !session.global.yes && !console.confirm("Remove these backups?") {
            let error = anyhow::anyhow!("not approved, so nothing was removed");
            let found: Vec<_> = dumps.iter().map(|dump| &dump.file).collect();
            return Err(Failure::refused("not_approved", error)
                .hint("approve it with --yes")
                .document(json!({ "found": found, "parts_found": parts })));
        }
    }
    let gone = create::prune(&chosen.scope, &shelf, keep, &dumps).await?;
    let mut text = format!("{} removed, {} kept in {}", counted(gone.dumps.len(), "backup"), gone.left, shelf.folder());
    if gone.parts > 0 {
        text.push_str(&format!("\n{} removed that no kept backup needs", counted(gone.parts, "log file")));
    }
    gone.kept.iter().for_each(|why| text.push_str(&format!("\n{why}")));
    let removed: Vec<_> = gone.dumps.iter().map(|dump| dump.file.clone()).collect();
    let document = json!({
        "environment": chosen.scope.name, "removed": removed, "kept": gone.left, "parts_removed": gone.parts, "parts_kept": gone.kept,
    });
    Ok(Success::new(text, document))
}

/// The backup at this path or address, else the one of this name in the environment's backup folder: `backup list` prints
/// names.
fn named(session: &Session, typed: &Utf8Path, shelf: impl FnOnce() -> Option<BackupDirectory>) -> Utf8PathBuf {
    if is_address(typed) {
        return typed.to_owned();
    }
    let here = session.here.join(typed);
    if here.exists() || typed.file_name() != Some(typed.as_str()) {
        return here;
    }
    shelf().and_then(|shelf| shelf.named(typed.as_str())).unwrap_or(here)
}

/// Whether a backup is named by its address in a bucket.
fn is_address(backup: &Utf8Path) -> bool {
    backup.as_str().contains("://")
}

/// `backup verify`.
async fn verify(session: &Session, args: &Verify, console: Console) -> Result<Success, Failure> {
    let mut is_recorded = true;
    let (file, shelf, folder, next) = match its_shelf(session, console) {
        Ok((chosen, shelf, _)) => {
            let file = match &args.backup {
                Some(file) => named(session, file, || Some(shelf.clone())),
                None => backup::newest(&chosen.scope, &shelf)?.file,
            };
            let next = format!("create another backup: {}", chosen.scope.command("backup create"));
            (file, shelf, chosen.scope.folder, next)
        }
        Err(failure) => {
            let Some(typed) = without_environment(session, args, &failure) else { return Err(failure) };
            let (file, root) = (named(session, typed, || None), session.state_root()?);
            let shelf = match is_address(&file) {
                true => backup::of_address(&Linked, &file, &root)?,
                false => BackupDirectory::at(root.as_path()),
            };
            // Names of environments contain no dot, so no state is there.
            let folder = root.join(".none");
            textnlp_service::access::check(&Linked, &folder)?;
            // What this machine lacks says nothing about the backup.
            is_recorded = false;
            (file, shelf, folder, "verify another backup".to_owned())
        }
    };
    let key = key_file(&args.opening, session)?;
    let opener = Arc::new(opener(session, &args.opening, key.as_ref(), &folder).await?);
    let signer = backup::required_signer(args.signed_by.as_deref(), key.as_ref())?;
    let progress = Progress::new(console);
    progress.doing("restores it to a temporary folder and queries it");
    let verified = match is_recorded {
        true => backup::verify_backup(&Linked, &shelf, &file, &opener, &folder, args.light, signer).await,
        false => backup::check_backup(&Linked, &shelf, &file, &opener, &folder, args.light, signer).await,
    };
    let proof = progress.done(verified)?;
    let document = json!({ "file": file, "verified": proof.ok, "proof": proof });
    if !proof.ok {
        let error = anyhow::anyhow!("{}", proof.says).context(format!("{file} cannot be restored"));
        return Err(Failure::new(Exit::Failed, "not_proven", error).hint(next).document(document));
    }
    let text = format!("{file} is verified: {}, in {:.1} s", proof.says, proof.milliseconds as f64 / 1000.0);
    Ok(Success::new(text, document))
}

/// The backup that is verified without an environment: none is named or found, and a file and what decrypts it are given.
fn without_environment<'a>(session: &Session, args: &'a Verify, failure: &Failure) -> Option<&'a Utf8Path> {
    let Opening { key, passphrase } = &args.opening;
    let is_named = session.global.env.is_some() || session.global.file.is_some();
    let opens = [key.is_some(), passphrase.passphrase_file.is_some(), passphrase.passphrase_env.is_some()];
    let has_means = opens.contains(&true) || args.signed_by.is_some();
    let typed = args.backup.as_deref().filter(|_| !is_named && has_means)?;
    match failure.code {
        "no_environment" => Some(typed),
        // A name in `backup list` is of an environment that has to be chosen.
        "which_environment" | "no_such_environment" => {
            Some(typed).filter(|typed| is_address(typed) || session.here.join(typed).exists())
        }
        _ => None,
    }
}

/// `backup key show`. The key counts as exported only after it was written.
async fn show_key(session: &Session, out: Option<&Utf8Path>, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(session.quiet())?;
    if textnlp_service::running::state(&chosen.scope).await?.is_new() {
        return Err(backup::nothing_to_back_up(&chosen.scope));
    }
    let key = key::ensure(&Linked, &chosen.scope.folder).await?;
    console.say(format!(
        "This key decrypts every backup of {}. Store it off this machine, where only authorized operators can read it:\n\
         for example in a password manager. If this machine is lost, backups cannot be decrypted without the key.",
        chosen.scope.name
    ));
    let signer = signing_key(&chosen.scope.folder).context("read the key that signs backups")?;
    let signer = signer.public().context("read the key that signs backups")?;
    let keys = key::all(&Linked, &chosen.scope.folder).await?;
    let (secret, content) = (key.secret(), Key::file(&keys, &chosen.scope.name, &signer));
    let public = key.recipient().to_string();
    let shown = match out {
        None => Success::new(
            content.expose_text().unwrap_or_default(),
            json!({
                "environment": chosen.scope.name, "key": secret.expose_text().unwrap_or_default(),
                "recipient": public, "signer": signer,
            }),
        ),
        Some(out) => {
            let file = session.here.join(out);
            if file.symlink_metadata().is_ok() {
                return Err(Failure::refused("file_exists", anyhow::anyhow!("{file} exists"))
                    .hint("give the path of a new file"));
            }
            textnlp_files::Replace::private().write(&file, content.expose()).context("write the key")?;
            Success::new(
                format!("{file}"),
                json!({ "environment": chosen.scope.name, "file": file, "recipient": public, "signer": signer }),
            )
        }
    };
    let shown = console.deliver(shown)?;
    backup_status::key_was_shown(&chosen.scope.folder)?;
    Ok(shown)
}

/// `restore FILE`.
pub async fn restore(session: &Session, args: &Restore, console: Console) -> Result<Success, Failure> {
    if args.up && !session.global.yes && !console.can_ask() {
        let error = anyhow::anyhow!("--up needs an approval, and there is no terminal to ask at");
        return Err(Failure::refused("not_approved", error).hint("add --yes, or restore without --up"));
    }
    let began = Instant::now();
    let at = args.at.as_deref().map(point_in_time::read).transpose()?;
    let root = session.state_root()?;
    // A state that still exists here has the key of its own backups.
    let here = match (&session.global.env, &args.replace) {
        (Some(name), _) | (None, Some(name)) => root.join(name),
        (None, None) => root.clone(),
    };
    if here != root {
        textnlp_service::access::check(&Linked, &here)?;
    }
    if let Some(name) = &args.replace {
        let release = session.again().named("hold --release", name);
        is_store_not_frozen(Linked.store(&root.join(name)), &release).await?;
    }
    let file = chosen(session, args, at, console)?;
    let key = key_file(&args.opening, session)?;
    let opener = Arc::new(opener(session, &args.opening, key.as_ref(), &here).await?);
    let progress = Progress::new(console);
    let (again, model_cache) = (session.again(), session.model_cache()?);
    if is_address(&file) {
        progress.doing("copies the backup from its bucket");
    }
    let fetched = fetched(session, &file, &root, console).map_err(|failure| progress.done(failure))?;
    let request = restoring::Request {
        platform: &Linked,
        again: &again,
        root: &root,
        model_cache: &model_cache,
        file: &fetched.file,
        shown: &file,
        at,
        environment: session.global.env.as_deref(),
        replace: args.replace.as_deref(),
        signer: backup::required_signer(args.signed_by.as_deref(), key.as_ref())?,
        operator: operator(session),
        words: words(session, args),
    };
    let restored = progress.done(restoring::restore(&request, &opener, &progress).await).map_err(|failure| {
        let is_without_key = failure.code == "sealed" && here == root && matches!(*opener, Decryptor::Nothing);
        if is_without_key { with_states(failure, &root) } else { failure }
    })?;
    let restoring::Restored { manifest, state: target, moved, replaced, audit_ends, backup_keys, .. } = restored;
    let (valid_again, lost_keys, is_verified) = (restored.valid_again, restored.lost_keys, restored.is_verified);
    drop(fetched);
    let name = &manifest.environment;
    if !is_verified {
        let origin = manifest.signer.as_ref().map_or("it is not signed".to_owned(), |signer| {
            format!("{} signed it; compare that with what `backup create` printed", signer.to_base64())
        });
        console.warn(format!("the origin of {file} was not verified: {origin}"));
    }

    let mut lines = vec![format!(
        "{name} of {} is restored to {target}: lineage {}",
        manifest.at.strftime("%Y-%m-%d %H:%M UTC"),
        manifest.lineage
    )];
    if let Some(at) = at {
        lines.push(format!(
            "  its database is that of {at}: later data is lost, and keys that were revoked later are valid again"
        ));
    }
    for (site, database) in &manifest.databases {
        lines.push(format!("  {site}: keys {}, requests accounted for {}", database.keys, database.usage));
        if Utf8Path::new(&database.path).extension() == Some("dump") {
            // A managed server loads the dump when it is created. An external one is for its operator to restore.
            lines.push(format!(
                "  {site}: `up` restores the built-in PostgreSQL from {dump}; to restore into an external one: pg_restore -c --if-exists --no-owner -d URL {dump}",
                dump = quoted(target.join(&database.path).as_str())
            ));
        }
    }
    for (site, machine) in &moved {
        lines.push(format!("  {site}: was on {machine}, now belongs to this machine; if it still runs there, stop it"));
    }
    if let Some(replaced) = &replaced {
        lines.push(format!("  the earlier state is kept in {replaced}"));
        if let Some(why) = &audit_ends {
            console.warn(format!(
                "the audit log may lack what was recorded after the backup; all of it is in {replaced}: {why}"
            ));
        }
        match &backup_keys {
            Ok(0) => {}
            Ok(count) => lines.push(format!(
                "  backup keys of the earlier state: {count}; they decrypt later backups, and the newest encrypts"
            )),
            Err(why) => console
                .warn(format!("later backups may need a backup key of the earlier state; keep {replaced}: {why}")),
        }
    }
    // An installed site has the environment and the models of its bundle; those of the backup have paths of the old machine.
    let is_installed =
        session.own_site().is_some_and(|site| site.join(ENVIRONMENTS).join(format!("{name}.yaml")).is_file());
    let fetched = manifest.models.iter().filter(|(_, model)| model.folder.is_none() && !is_installed);
    lines.extend(fetched.map(|(model, known)| format!("  {}", model_text(model, &known.source))));
    let whole = Some(backup::settings::provisioned_file(&target)).filter(|whole| whole.is_file() && !is_installed);
    let which = match &whole {
        Some(whole) => format!("--file {} --state-dir {}", quoted(whole.as_str()), quoted(root.as_str())),
        None => format!("--env {name} --state-dir {}", quoted(root.as_str())),
    };
    let of_restored = |verb: &str| match is_installed {
        true => session.again().named(verb, name),
        false => format!("textnlp-deploy {verb} {which}"),
    };
    let next = of_restored("up");
    let again = |withdrawn: &Withdrawn| of_restored(&withdrawn.command);
    lines.extend(valid_again_lines(&valid_again, again));
    match &lost_keys {
        Some(keys) => lines.extend(lost_keys_lines(keys)),
        None => console.warn("whether API keys of the earlier state are not in the backup is unknown"),
    }
    if let Some(why) = &valid_again.unknown {
        console.warn(format!("more keys and secrets may be valid again than are known: {why}"));
    }
    let withdrawn = |of: &[Withdrawn]| -> Vec<Value> {
        let document = |one: &Withdrawn| json!({ "id": one.id, "name": one.name, "at": one.at, "command": again(one) });
        of.iter().map(document).collect()
    };
    let mut document = json!({
        "environment": name, "lineage": manifest.lineage, "made": manifest.at, "at": at, "file": file, "state": target, "replaced": replaced,
        "signer": manifest.signer, "signer_verified": is_verified,
        "databases": manifest.databases, "environment_file": whole, "next": next,
        "audit_ends": audit_ends, "backup_keys_taken_over": backup_keys.as_ref().ok(), "lost_keys": lost_keys, "valid_again": {
            "keys": withdrawn(&valid_again.keys), "secrets": withdrawn(&valid_again.secrets), "unknown": valid_again.unknown,
        },
    });
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    if !args.up {
        lines.push(format!("To start the service: {next}"));
        return Ok(Success::new(lines.join("\n"), document));
    }
    console.say(lines.join("\n"));
    let mut global = session.global.clone();
    if !is_installed {
        global.state_dir = Some(root);
    }
    global.env = whole.is_none().then(|| name.to_string());
    global.file = whole;
    let session = Session::new(global)?;
    // A restore also works in a phase whose gate needs more than this run.
    let phase = session.load(session.quiet())?.loaded.environment.phase;
    let up = Up { no_gate: !PhaseDefinition::of(phase).is_measured_by_up(), ..Up::default() };
    let mut done = super::up::up(&session, &up, console).await.map_err(|failure| failure.document(document.clone()))?;
    done.document.insert("restored".to_owned(), document);
    Ok(done)
}

/// Where the next `up` takes a model from that the backup does not contain.
fn model_text(name: &str, source: &str) -> String {
    match source.parse() {
        Ok(Source::Bundled) => format!("model {name} is part of this program"),
        _ => format!("model {name} will be fetched from {source} again"),
    }
}

/// The lines about what is valid again, with the commands that end that.
fn valid_again_lines(valid_again: &ValidAgain, again: impl Fn(&Withdrawn) -> String) -> Vec<String> {
    let ValidAgain { keys, secrets, .. } = valid_again;
    if keys.is_empty() && secrets.is_empty() {
        return Vec::new();
    }
    let counts = [(keys.len(), "key"), (secrets.len(), "secret")];
    let counts = counts.into_iter().filter(|(count, _)| *count > 0).map(|(count, what)| counted(count, what));
    let mut lines = vec![format!(
        "  {} revoked or rotated after the backup, and valid again; once the service runs:",
        counts.collect::<Vec<_>>().join(" and ")
    )];
    lines.extend(keys.iter().chain(secrets).map(|one| {
        let name = one.name.as_ref().map_or(String::new(), |name| format!(" ({name})"));
        format!("    {}{name}, {}: {}", one.id, one.at.strftime("%Y-%m-%d %H:%M UTC"), again(one))
    }));
    lines
}

/// The lines about API keys that are not in the backup.
fn lost_keys_lines(keys: &[LostKey]) -> Vec<String> {
    if keys.is_empty() {
        return Vec::new();
    }
    let count = counted(keys.len(), "key");
    let mut lines = vec![format!("  {count} of the earlier state not in the backup, and refused from now on:")];
    lines.extend(keys.iter().map(|LostKey { id, name, tenant }| format!("    {id} ({name}), tenant {tenant}")));
    lines
}

/// A state that is here has the key of its own backups, and is used only if it is named.
fn with_states(failure: Failure, root: &Utf8Path) -> Failure {
    const NAMED: usize = 3;
    let states = states(root).into_iter().take(NAMED);
    let named = states.map(|name| format!("{name} has a state here: if the backup is of it, add --replace {name}"));
    let hints: Vec<String> = failure.hint.iter().cloned().chain(named).collect();
    if hints.is_empty() { failure } else { failure.hint(hints.join("\n")) }
}

/// The words of a restore without `--replace`, for hints.
fn words(session: &Session, args: &Restore) -> String {
    let Restore { backup, opening, signed_by, up, at, .. } = args;
    let path = |path: &Option<Utf8PathBuf>| path.as_ref().map(ToString::to_string);
    // The environment says where its backups are.
    let is_elsewhere = backup.as_ref().is_none_or(|backup| !session.here.join(backup).exists());
    let of_its_own = |value: Option<String>| value.filter(|_| is_elsewhere);
    let flags = [
        ("--env", of_its_own(session.global.env.clone())),
        ("--file", of_its_own(path(&session.global.file))),
        ("--key", path(&opening.key)),
        ("--passphrase-file", path(&opening.passphrase.passphrase_file)),
        ("--passphrase-env", opening.passphrase.passphrase_env.clone()),
        ("--signed-by", signed_by.clone()),
        ("--at", at.clone()),
    ];
    let mut words = vec!["restore".to_owned()];
    words.extend(path(backup).map(|file| quoted(&file)));
    words.extend(flags.into_iter().filter_map(|(flag, value)| Some(format!("{flag} {}", quoted(&value?)))));
    words.extend(up.then(|| "--up".to_owned()));
    words.join(" ")
}

/// The backup from the command line, or the one that covers the point in time.
fn chosen(session: &Session, args: &Restore, at: Option<Timestamp>, console: Console) -> Result<Utf8PathBuf, Failure> {
    let is_known = session.global.env.is_some() || session.global.file.is_some();
    let shelf = || {
        let (_, shelf, _) = is_known.then(|| its_shelf(session, console).ok())??;
        Some(shelf)
    };
    let named = args.backup.as_ref().map(|backup| named(session, backup, shelf));
    let root = session.state_root()?;
    let there = |name: &EnvironmentName| restoring::lineage_in(&root.join(name.as_str()));
    match (named, at) {
        (Some(folder), Some(at)) if folder.is_dir() => point_in_time::choose(&BackupDirectory::at(folder), at, there),
        (Some(file), _) => Ok(file),
        (None, Some(at)) => {
            let (_, shelf, _) = its_shelf(session, console)?;
            point_in_time::choose(&shelf, at, there)
        }
        (None, None) => Err(Failure::usage("usage", anyhow::anyhow!("no backup is given"))
            .hint("give the path of a file that `backup create` made: `textnlp-deploy restore FILE`")),
    }
}

/// The backup as a file of this machine. If it is in the bucket of the environment, that says how the bucket is reached.
fn fetched(session: &Session, file: &Utf8Path, root: &Utf8Path, console: Console) -> Result<FetchedBackup, Failure> {
    if !is_address(file) {
        return backup::fetch(&BackupDirectory::at(root), file, root);
    }
    let is_known = session.global.env.is_some() || session.global.file.is_some();
    let known = is_known.then(|| its_shelf(session, console).ok()).flatten();
    let shelf = match known.map(|(_, shelf, _)| shelf).filter(|shelf| shelf.is_elsewhere(file)) {
        Some(shelf) => shelf,
        None => backup::of_address(&Linked, file, root)?,
    };
    backup::fetch(&shelf, file, root)
}

fn sealed_text(seal: &EncryptionMode) -> String {
    match seal {
        EncryptionMode::Keys(recipients) if recipients.len() > 1 => format!("encrypted for {} keys", recipients.len()),
        EncryptionMode::Keys(_) => "encrypted with the environment's key".to_owned(),
        EncryptionMode::Passphrase(_) => "encrypted with the passphrase".to_owned(),
        EncryptionMode::Plain => "NOT encrypted".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_of_this_program_is_not_fetched() {
        assert_eq!(model_text("tiny", "bundled"), "model tiny is part of this program");
        let fetched = model_text("gpt2", "file:/srv/gpt2");
        assert_eq!(fetched, "model gpt2 will be fetched from file:/srv/gpt2 again");
    }

    #[test]
    fn keys_that_a_restore_loses_are_listed_with_their_tenant() {
        let lost = LostKey { id: "0f3a91c2".to_owned(), name: "ci".to_owned(), tenant: "acme".to_owned() };
        let expect = [
            "  1 key of the earlier state not in the backup, and refused from now on:",
            "    0f3a91c2 (ci), tenant acme",
        ];
        assert_eq!(lost_keys_lines(&[lost]), expect);
        assert!(lost_keys_lines(&[]).is_empty());
    }

    #[test]
    fn backup_without_a_record_is_listed_as_not_recorded() {
        let dump = StoredBackup { file: "s3://bucket/copied.bak".into(), bytes: 2048, facts: None, proof: None };
        let row = row(&dump);
        assert!(row.starts_with("copied.bak ") && row.contains(" not recorded ") && row.ends_with(" never"), "{row}");
        assert_eq!((&document(&dump)["recorded"], &document(&dump)["at"]), (&json!(false), &Value::Null));
    }

    #[test]
    fn least_age_of_a_prune_is_a_day() {
        assert!(least_age("1d").is_ok_and(|keep| keep == MIN_AGE) && least_age("24h").is_ok());
        for slip in ["0d", "0", "23h"] {
            assert_eq!(least_age(slip).err().map(|failure| failure.code), Some("usage"), "{slip}");
        }
    }
}
