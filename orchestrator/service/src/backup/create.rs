//! Taking backups, by the operator or by the supervisor's schedule, and pruning them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use camino::Utf8Path;
use jiff::Timestamp;
use textnlp_orchestrator::backup::{
    BackupDirectory, BackupFacts, Base, Database, EncryptionMode, Log, Manifest, PublicKey, Recipient, SegmentName,
    StoredBackup, removable, unneeded, write,
};
use textnlp_orchestrator::dr::report::{own_key, signing_key};
use textnlp_orchestrator::state::{LineageFile, Operator};
use textnlp_provider::component::Backup as Order;
use textnlp_provider::operations::SiteBackups;
use textnlp_provider::units::counted;
use textnlp_provider::{EnvironmentName, Lineage, Secret, SiteName};

use super::backup_status::{self, LastRun};
use super::gather::{BackupContent, gather, nothing_to_back_up};
use super::{failed, key, settings, shelf, verify_backup};
use crate::{Exit, Failure, Platform, Progress, RerunFlags, Scope, origin, running, size};

/// Grace period of an interactive command for another run's lock.
const LOCK_TIMEOUT: Duration = Duration::from_secs(5);
/// Timeout of a dump: the `activeDeadlineSeconds` of the cluster's job.
const DUMP_TIMEOUT: Duration = Duration::from_secs(6 * 3600);
/// Poll interval while an `up` runs.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Grace period of a scheduled backup for an `up` to end.
const PATIENCE_SCHEDULED: Duration = Duration::from_secs(1800);

/// Has the site take its own database backup now. Secrets and state stay on this machine. Returns the site's report.
pub async fn by_site(scope: &Scope, backups: &dyn SiteBackups, progress: &dyn Progress) -> Result<String, Failure> {
    let state = running::state(scope).await?;
    if state.is_new() {
        return Err(nothing_to_back_up(scope));
    }
    progress.doing("the cluster dumps the database");
    let tell = |says: &str| progress.doing(&format!("the cluster dumps the database: {says}"));
    let made = backups.back_up(state.lineage(), DUMP_TIMEOUT, &tell).await;
    Ok(made.context("make a dump in the cluster")?)
}

/// How the operator wants a backup.
pub struct Request<'a> {
    /// The backup directory.
    pub shelf: &'a BackupDirectory,
    /// How it is encrypted.
    pub encryption: Encryption<'a>,
    /// Whether it includes the content of the models.
    pub with_models: bool,
    /// Who asks for it.
    pub operator: Operator,
}

/// How a backup is encrypted.
pub enum Encryption<'a> {
    /// Not at all.
    Plain,
    /// With a passphrase.
    Passphrase(Secret),
    /// With the environment's key, and for these further public keys.
    Keys(Vec<&'a String>),
}

/// A new backup.
pub struct Created {
    /// The backup.
    pub dump: StoredBackup,
    /// Notes on what it does not contain.
    pub notes: Vec<String>,
    /// How it was encrypted.
    pub seal: EncryptionMode,
    /// The key that signed it.
    pub signer: PublicKey,
    /// Whether it is on the disk of what it backs up.
    pub same_disk: bool,
    /// Whether the key that decrypts it was never shown to the operator.
    pub key_is_only_here: bool,
}

/// Takes a backup now.
pub async fn create(scope: &Scope, request: Request<'_>, progress: &dyn Progress) -> Result<Created, Failure> {
    let Request { shelf, encryption, with_models, operator } = request;
    let seal = match encryption {
        Encryption::Plain => EncryptionMode::Plain,
        Encryption::Passphrase(passphrase) => EncryptionMode::Passphrase(passphrase),
        Encryption::Keys(others) => {
            // Before a key is created: an environment that was never up has nothing to back up.
            if running::state(scope).await?.is_new() {
                return Err(nothing_to_back_up(scope));
            }
            EncryptionMode::Keys(recipients(scope.platform, &scope.folder, others.into_iter()).await?)
        }
    };
    progress.doing("copies state, keys and databases");
    let making = BackupRun { scope, shelf, seal: &seal, scheduled: false };
    let (dump, notes) = making.make(with_models, &operator, LOCK_TIMEOUT).await?;
    let signer = own_key(&scope.folder).context("read the key that signed the backup")?;
    let same_disk = same_disk(shelf.folder(), &scope.folder);
    let key_is_only_here =
        matches!(seal, EncryptionMode::Keys(_)) && backup_status::read(&scope.folder).key_shown.is_none();
    Ok(Created { dump, notes, seal, signer, same_disk, key_is_only_here })
}

/// The environment's own key, and all further recipients.
pub async fn recipients<'a>(
    platform: &dyn Platform,
    folder: &Utf8Path,
    others: impl Iterator<Item = &'a String>,
) -> Result<Vec<Recipient>, Failure> {
    let mut recipients = vec![key::ensure(platform, folder).await?.recipient()];
    for other in others {
        recipients.push(other.parse().map_err(failed)?);
    }
    Ok(recipients)
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

struct BackupRun<'a> {
    scope: &'a Scope,
    shelf: &'a BackupDirectory,
    seal: &'a EncryptionMode,
    scheduled: bool,
}

impl BackupRun<'_> {
    async fn make(
        &self,
        with_models: bool,
        operator: &Operator,
        timeout: Duration,
    ) -> Result<(StoredBackup, Vec<String>), Failure> {
        origin::check(self.scope)?;
        // Before the content is gathered: the key is part of it.
        let key = signing_key(&self.scope.folder).context("sign the backup")?;
        let gathered = gather(self.scope, with_models, operator, timeout).await?;
        let BackupContent { manifest, items, notes, .. } = &gathered;
        let at = manifest.at;
        let recipients = match self.seal {
            EncryptionMode::Keys(recipients) => recipients.iter().map(ToString::to_string).collect(),
            EncryptionMode::Passphrase(_) | EncryptionMode::Plain => Vec::new(),
        };
        let facts = |bytes: u64, sha256: String| BackupFacts {
            format: 1,
            environment: manifest.environment.clone(),
            lineage: manifest.lineage,
            at,
            bytes,
            sha256,
            sealed: self.seal.kind(),
            recipients,
            models: with_models,
            scheduled: self.scheduled,
            tool: manifest.tool.clone(),
            bases: bases(manifest),
        };
        // The runtime's other thread continues to listen for signals.
        let put = tokio::task::block_in_place(|| {
            self.shelf.put(facts, at, |to| self.seal.write(to, |to| write(manifest.clone(), items, &key, to)).map(drop))
        });
        Ok((put.map_err(failed)?, notes.clone()))
    }
}

/// A scheduled backup.
pub struct Scheduled {
    /// The backup.
    pub dump: StoredBackup,
    /// The result of the run, as recorded.
    pub says: String,
}

/// Takes a scheduled backup, verifies it and prunes. Records the result for `status` and the supervisor. `order` is the
/// file with the settings.
pub async fn run(
    platform: &'static dyn Platform,
    folder: &Utf8Path,
    order: &Utf8Path,
    operator: &Operator,
) -> Result<Scheduled, Failure> {
    let run = async {
        let order = super::order(order)?;
        scheduled(platform, folder, &order, operator).await
    };
    recorded(folder, run).await
}

/// Runs a scheduled backup with its records. Where they cannot be written, such as on a full disk, the backup is taken all
/// the same: it may be on another disk. The supervisor knows when it ended.
async fn recorded(
    folder: &Utf8Path,
    run: impl Future<Output = Result<Scheduled, Failure>>,
) -> Result<Scheduled, Failure> {
    let at = Timestamp::now();
    let warn = |what: &str, failure: Failure| {
        let says = format!("the {what} of the run is not recorded: {:#}", failure.error);
        tracing::warn!("{says}");
        format!("; {says}")
    };
    let start_failure = backup_status::starts(folder, at).map_err(|failure| warn("start", failure)).err();
    let done = run.await;
    let says = match &done {
        Ok(scheduled) => scheduled.says.clone(),
        Err(failure) => format!("{:#}", failure.error),
    };
    let end = backup_status::ran(folder, LastRun { at, ok: done.is_ok(), says });
    let end_failure = end.map_err(|failure| warn("end", failure)).err();
    let mut scheduled = done?;
    scheduled.says.extend(end_failure.or(start_failure));
    Ok(scheduled)
}

async fn scheduled(
    platform: &'static dyn Platform,
    folder: &Utf8Path,
    order: &Order,
    operator: &Operator,
) -> Result<Scheduled, Failure> {
    let whose = whose(platform, folder).await?;
    let (name, lineage) = whose.with_context(|| format!("there is no state in {folder}"))?;
    let seal = EncryptionMode::Keys(recipients(platform, folder, order.recipients.iter()).await?);
    let scope = Scope { platform, again: RerunFlags::default(), name, folder: folder.to_owned() };
    // The first backup may be due while the first `up` still runs. `up` records the environment at its end, and a
    // restore needs that record.
    let began = Instant::now();
    while !settings::provisioned_file(folder).is_file() && began.elapsed() < PATIENCE_SCHEDULED {
        tokio::time::sleep(POLL_INTERVAL).await;
    }
    let is_elsewhere = order.destination.as_deref().is_some_and(|to| to.contains("://"));
    let mut settings = match settings::provisioned(folder) {
        Some(settings) if !is_elsewhere || settings.backup.destination == order.destination => settings,
        // The credentials of another destination would be sent to this one.
        _ if is_elsewhere => {
            let to = order.destination.as_deref().unwrap_or_default();
            let file = settings::provisioned_file(folder);
            let error = anyhow::anyhow!("{file} does not name {to} yet: the `up` that sets it has not ended");
            return Err(
                Failure::new(Exit::Failed, "not_ready", error).hint(format!("run it again: {}", scope.last_up()))
            );
        }
        _ => settings::Settings::default(),
    };
    settings.backup.destination.clone_from(&order.destination);
    let shelf = shelf(platform, &scope.name, folder, &settings)?;
    let making = BackupRun { scope: &scope, shelf: &shelf, seal: &seal, scheduled: true };
    // The grace period covers both waits.
    let timeout = PATIENCE_SCHEDULED.saturating_sub(began.elapsed());
    let (dump, _) = making.make(false, operator, timeout).await?;
    let mut text = format!("{} {}", dump.file, size(dump.bytes));
    if order.verify {
        let opener = Arc::new(super::opener_of_state(platform, folder).await?);
        let verification =
            verify_backup::verify_backup(platform, &shelf, &dump.file, &opener, folder, false, None).await?;
        if !verification.ok {
            let error = anyhow::anyhow!("{}: {}", dump.file, verification.says);
            return Err(Failure::new(Exit::Failed, "not_proven", error));
        }
        text.push_str(&format!(", {}", verification.says));
    }
    let gone = match clear(&shelf, lineage, Duration::from_secs(order.keep_seconds), |_| true) {
        Ok(gone) => gone,
        // The backup is made. If it counted as failed, another one would be made in its place soon.
        Err(failure) => {
            text.push_str(&format!("; old backups were not removed: {:#}", failure.error));
            return Ok(Scheduled { dump, says: text });
        }
    };
    if !gone.dumps.is_empty() || gone.parts > 0 {
        let (old, logs) = (counted(gone.dumps.len(), "old backup"), counted(gone.parts, "log file"));
        text.push_str(&format!(", {old} and {logs} removed"));
    }
    for why in gone.kept {
        text.push_str(&format!("; {why}"));
    }
    Ok(Scheduled { dump, says: text })
}

/// The environment and the lineage of the state in a folder, or `None` if it has no state.
pub async fn whose(platform: &dyn Platform, folder: &Utf8Path) -> Result<Option<(EnvironmentName, Lineage)>, Failure> {
    let store = platform.store(folder)?;
    let Some(text) = store.document("lineage.json").await? else { return Ok(None) };
    let file: LineageFile =
        serde_json::from_slice(&text).with_context(|| format!("read the lineage in {}", store.place()))?;
    Ok(Some((file.environment, file.lineage)))
}

/// What was pruned, and what could not be.
pub struct Pruned {
    /// The removed backups.
    pub dumps: Vec<StoredBackup>,
    /// The count of removed log segments.
    pub parts: usize,
    /// Why log segments were retained, and backups by their bucket.
    pub kept: Vec<String>,
    /// The count of backups that are left.
    pub left: usize,
}

/// Prunes expired backups that are approved, then log segments that no remaining backup needs.
fn clear(
    shelf: &BackupDirectory,
    lineage: Lineage,
    keep: Duration,
    is_approved: impl Fn(&StoredBackup) -> bool,
) -> Result<Pruned, Failure> {
    let now = Timestamp::now();
    let mut dumps = removable(&shelf.list().map_err(failed)?, lineage, keep, now);
    dumps.retain(is_approved);
    let (mut parts, mut kept) = (0, Vec::new());
    if !dumps.is_empty() {
        let retained = shelf.remove(&dumps).map_err(failed)?;
        dumps.retain(|dump| !retained.contains_key(&dump.file));
        kept.extend(retained.into_values());
    }
    let left = shelf.list().map_err(failed)?;
    let Unneeded { segments, doubts } = unneeded_segments(shelf, lineage, &left, keep, now)?;
    for (log, gone) in segments {
        log.remove(&gone).map_err(failed)?;
        parts += gone.len();
    }
    kept.extend(doubts);
    Ok(Pruned { dumps, parts, kept, left: left.len() })
}

/// Log segments that no backup needs.
struct Unneeded {
    segments: Vec<(Log, Vec<SegmentName>)>,
    /// Why others are retained.
    doubts: Vec<String>,
}

/// The log segments of a deployment that no backup of `left` needs.
fn unneeded_segments(
    shelf: &BackupDirectory,
    lineage: Lineage,
    left: &[StoredBackup],
    keep: Duration,
    now: Timestamp,
) -> Result<Unneeded, Failure> {
    let (mut segments, mut doubts) = (Vec::new(), Vec::new());
    for log in shelf.logs().map_err(failed)? {
        // The log belongs to another deployment, or its owner is unknown.
        if log.header().is_none_or(|header| header.lineage != lineage) {
            continue;
        }
        match unneeded(&log, &log.names().map_err(failed)?, left, keep, now) {
            Ok(gone) if gone.is_empty() => {}
            Ok(gone) => segments.push((log, gone)),
            Err(why) => doubts.push(why),
        }
    }
    Ok(Unneeded { segments, doubts })
}

/// What pruning would remove.
pub struct Expired {
    /// Backups.
    pub dumps: Vec<StoredBackup>,
    /// The count of log segments that the other backups do not need.
    pub parts: usize,
}

/// Finds what is older than `keep`. Changes nothing.
pub async fn expired(scope: &Scope, shelf: &BackupDirectory, keep: Duration) -> Result<Expired, Failure> {
    let (lineage, now) = (lineage_of(scope).await?, Timestamp::now());
    let mut left = shelf.list().map_err(failed)?;
    let dumps = removable(&left, lineage, keep, now);
    left.retain(|dump| dumps.iter().all(|gone| gone.file != dump.file));
    let unneeded = unneeded_segments(shelf, lineage, &left, keep, now)?;
    Ok(Expired { dumps, parts: unneeded.segments.iter().map(|(_, gone)| gone.len()).sum() })
}

/// Prunes the approved backups that are still older than `keep`.
pub async fn prune(
    scope: &Scope,
    shelf: &BackupDirectory,
    keep: Duration,
    approved: &[StoredBackup],
) -> Result<Pruned, Failure> {
    let is_approved = |dump: &StoredBackup| approved.iter().any(|known| known.file == dump.file);
    clear(shelf, lineage_of(scope).await?, keep, is_approved)
}

async fn lineage_of(scope: &Scope) -> Result<Lineage, Failure> {
    let whose = whose(scope.platform, &scope.folder).await?;
    whose.map(|(_, lineage)| lineage).ok_or_else(|| nothing_to_back_up(scope))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn backup_is_taken_where_its_run_cannot_be_recorded() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8Path::from_path(dir.path()).unwrap();
        let dump = StoredBackup { file: folder.join("b.dump"), bytes: 1, facts: None, proof: None };
        let taken = async || Ok::<_, Failure>(Scheduled { dump: dump.clone(), says: "b.dump 1 B".to_owned() });
        let done = recorded(folder, taken()).await.unwrap();
        assert_eq!(done.says, "b.dump 1 B");
        assert!(backup_status::read(folder).last.is_some_and(|last| last.ok));
        // No file can be put in the place of a folder, as none can be written on a full disk.
        std::fs::remove_file(folder.join("backup.json")).unwrap();
        std::fs::create_dir(folder.join("backup.json")).unwrap();
        let done = recorded(folder, taken()).await.unwrap();
        assert!(done.says.starts_with("b.dump 1 B; the end of the run is not recorded: write "), "{}", done.says);
        let failed = async { Err(Failure::refused("locked", anyhow::anyhow!("an `up` runs"))) };
        assert_eq!(recorded(folder, failed).await.err().unwrap().code, "locked", "the failure of the backup counts");
    }
}
