//! Backups of a deployment: taking, listing, pruning, verifying and restoring them.

pub mod archive;
pub mod backup_status;
pub mod create;
mod gather;
pub mod key;
pub mod point_in_time;
pub mod restore;
mod scratch_postgres;
pub mod settings;
mod signer;
mod valid_again;
mod verify_backup;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_orchestrator::backup::{BackupDirectory, Decryptor, Error, Key, PublicKey, StoredBackup};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::{Backup as Settings, NetworkSettings};
use textnlp_provider::component::Backup as Order;
use textnlp_provider::{EnvironmentName, Problem, Secret};

use crate::{ChosenEnvironment, Exit, Failure, Platform, Scope, workplace};

pub use gather::nothing_to_back_up;
pub(crate) use gather::{BackupContent, gather};
pub(crate) use restore::into_cache;
pub use settings::put as put_file;
pub use signer::RequiredSigner;
pub use valid_again::{LostKey, ValidAgain, Withdrawn};
pub use verify_backup::{check_backup, newest, verify_backup};

/// The backup directory of an environment: a folder of its name in the destination, else beside its state. Sends no
/// request to a bucket.
pub fn shelf(
    platform: &dyn Platform,
    name: &EnvironmentName,
    folder: &Utf8Path,
    settings: &settings::Settings,
) -> Result<BackupDirectory, Failure> {
    let destination = settings.backup.destination.as_deref();
    let Some(url) = destination.filter(|destination| destination.contains("://")) else {
        return Ok(local(name, folder, destination));
    };
    let bucket = platform.backup_bucket(url, settings.backup.credentials.as_ref(), &settings.network)?;
    Ok(bucket.folder(name.as_str()).directory(beside(folder)))
}

/// Why backups cannot be written to the bucket of an environment: what is wrong with its address or its credentials. Sends
/// no request.
pub fn bucket_problem(chosen: &ChosenEnvironment) -> Option<Problem> {
    let Environment { backup, network, .. } = &chosen.loaded.environment;
    let url = backup.destination.as_deref().filter(|url| backup.enabled && url.contains("://"))?;
    let failure = match chosen.loaded.environment.dumps_in_cluster() {
        false => chosen.scope.platform.backup_bucket(url, backup.credentials.as_ref(), network).err()?,
        // Without credentials, pods have variables of their own.
        true => chosen.scope.platform.bucket_of_pods(url, backup.credentials.as_ref()?).err()?,
    };
    let fix = failure.hint.unwrap_or_default();
    Some(Problem::new("backup.destination", format!("{:#}", failure.error), fix))
}

/// The address of the store that a cluster copies its dumps to, if it is not that of the cloud. [`bucket_problem`] reports
/// one that cannot be read.
pub fn bucket_endpoint(chosen: &ChosenEnvironment) -> Option<String> {
    let environment = &chosen.loaded.environment;
    let (url, credentials) = (environment.dump_copies()?, environment.backup.credentials.as_ref()?);
    chosen.scope.platform.bucket_of_pods(&url, credentials).ok().flatten()
}

/// The backup directory of a destination that is a folder, or of none.
fn local(name: &EnvironmentName, folder: &Utf8Path, destination: Option<&str>) -> BackupDirectory {
    BackupDirectory::at(match destination {
        Some(destination) => Utf8Path::new(destination).join(name.as_str()),
        None => beside(folder),
    })
}

/// The folder for backups beside a state. Names of environments contain no dot.
fn beside(folder: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{folder}.backups"))
}

/// The backup directory of a backup in a bucket, by its address and the variables of this process: where no environment
/// says how the bucket is reached.
pub fn of_address(platform: &dyn Platform, file: &Utf8Path, root: &Utf8Path) -> Result<BackupDirectory, Failure> {
    let folder = file.as_str().rsplit_once('/').map_or(file.as_str(), |(folder, _)| folder);
    Ok(platform.backup_bucket(folder, None, &NetworkSettings::default())?.directory(root))
}

/// A backup as a file of this machine: itself, or a copy of one in a bucket, which is removed with this value.
pub struct FetchedBackup {
    /// Its path.
    pub file: Utf8PathBuf,
    _folder: Option<tempfile::TempDir>,
}

/// Copies a backup from a bucket into a private folder in `parent`. One on this machine is used as it is.
pub fn fetch(shelf: &BackupDirectory, file: &Utf8Path, parent: &Utf8Path) -> Result<FetchedBackup, Failure> {
    const PREFIX: &str = ".fetch-";
    if !shelf.is_elsewhere(file) {
        if file.as_str().contains("://") {
            let error = anyhow::anyhow!("{file} is not a backup in {}", shelf.folder());
            return Err(Failure::usage("no_such_file", error).hint("give an address that `backup list` prints"));
        }
        return Ok(FetchedBackup { file: file.to_owned(), _folder: None });
    }
    std::fs::create_dir_all(parent).with_context(|| format!("make {parent}"))?;
    let folder = workplace::make(parent, PREFIX, |_| false)?;
    let place = Utf8Path::from_path(folder.path()).context("temporary folders have UTF-8 names")?;
    let file = tokio::task::block_in_place(|| shelf.fetch(file, place)).map_err(failed)?;
    Ok(FetchedBackup { file, _folder: Some(folder) })
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

/// What decrypts a backup: the passphrase, the content of a key file, or the key in a state.
pub async fn opener(
    passphrase: Option<Secret>,
    key: Option<&Secret>,
    (platform, folder): (&dyn Platform, &Utf8Path),
) -> Result<Decryptor, Failure> {
    if let Some(passphrase) = passphrase {
        return Ok(Decryptor::Passphrase(passphrase));
    }
    if let Some(text) = key {
        return Ok(Decryptor::Keys(Key::parse(text).map_err(failed)?));
    }
    opener_of_state(platform, folder).await
}

/// The backup keys in a state. `Decryptor::Nothing` without one.
pub async fn opener_of_state(platform: &dyn Platform, folder: &Utf8Path) -> Result<Decryptor, Failure> {
    let keys = key::all(platform, folder).await?;
    Ok(if keys.is_empty() { Decryptor::Nothing } else { Decryptor::Keys(keys) })
}

/// Reads a file with a key or a passphrase, to which only its owner has access.
pub fn secret_file(path: &Utf8Path, what: &str) -> Result<Secret, Failure> {
    // A missing file is an error of reading it.
    match textnlp_files::check_secret(path).ok().flatten() {
        None => small_file(path, what),
        Some(exposed) => {
            Err(Failure::refused("secret_exposed", anyhow::anyhow!("{exposed}").context(format!("read {what}")))
                .hint(exposed.fix()))
        }
    }
}

/// Reads a small file.
pub fn small_file(path: &Utf8Path, what: &str) -> Result<Secret, Failure> {
    use std::io::Read;
    const MAX: u64 = 64 << 10;
    let fails = |error: std::io::Error| {
        Failure::usage("no_such_file", anyhow::Error::new(error).context(format!("read {what} {path}")))
            .hint("give the path of a readable file")
    };
    let file = std::fs::File::open(path).map_err(fails)?;
    let mut bytes = Vec::new();
    file.take(MAX + 1).read_to_end(&mut bytes).map_err(fails)?;
    if bytes.len() as u64 > MAX {
        return Err(fails(std::io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Secret::new(bytes))
}

/// Whose signature is required: `--signed-by`, else the one in the key file.
pub fn required_signer(signed_by: Option<&str>, key: Option<&Secret>) -> Result<Option<RequiredSigner>, Failure> {
    match signed_by {
        Some("any") => Ok(Some(RequiredSigner::Any)),
        Some(key) => PublicKey::parse(key).map(|key| Some(RequiredSigner::Key(key))).map_err(|error| {
            Failure::usage("usage", error).hint("give the key that `backup create` printed: --signed-by RW…")
        }),
        None => match key {
            Some(text) => Ok(Key::signer(text).map_err(failed)?.map(RequiredSigner::Key)),
            None => Ok(None),
        },
    }
}

/// The backup directory of the environment; refused where a site takes its backups itself.
pub fn directory(scope: &Scope, environment: &Environment) -> Result<(BackupDirectory, Settings), Failure> {
    if let Some(backups) = scope.platform.site_backups(&scope.folder, environment)? {
        let error = anyhow::anyhow!(
            "dumps of its database are on {}, where the cluster makes, verifies and removes them",
            backups.location()
        );
        return Err(Failure::usage("in_cluster", error).hint(backups.log_command()));
    }
    if environment.is_endpoint() {
        let error = anyhow::anyhow!("an inference endpoint keeps no keys and no usage, so there is nothing to back up");
        let hint = format!("its state is in {}: copy that folder, or set `state.store` to a bucket", scope.folder);
        return Err(Failure::usage("inference_endpoint", error).hint(hint));
    }
    let settings = settings::settings(&scope.folder, environment);
    let shelf = shelf(scope.platform, &scope.name, &scope.folder, &settings)?;
    Ok((shelf, settings.backup))
}

/// The content of a backup directory.
pub struct Listing {
    /// The backups, the newest first.
    pub dumps: Vec<StoredBackup>,
    /// The points in time that can be restored.
    pub ranges: Vec<point_in_time::Range>,
    /// The archived logs.
    pub logs: Vec<ArchivedLog>,
}

/// An archived log of a PostgreSQL.
pub struct ArchivedLog {
    /// Its folder.
    pub folder: Utf8PathBuf,
    /// The system identifier of the database.
    pub system: String,
    /// The count of its files.
    pub parts: usize,
    /// Their size in bytes.
    pub bytes: u64,
    /// The newest change in it.
    pub until: Option<Timestamp>,
}

/// Lists a backup directory.
pub fn list(shelf: &BackupDirectory) -> Result<Listing, Failure> {
    let dumps = shelf.list().map_err(failed)?;
    let mut parts = point_in_time::SegmentNames::default();
    let ranges = point_in_time::Range::all(&dumps, &mut parts)?;
    let mut logs = Vec::new();
    for log in shelf.logs().map_err(failed)? {
        let names = parts.of(&log)?;
        logs.push(ArchivedLog {
            folder: log.folder().to_owned(),
            system: log.system().to_owned(),
            parts: names.len(),
            bytes: log.bytes(names),
            until: log.newest(names),
        });
    }
    Ok(Listing { dumps, ranges, logs })
}

/// Reads the backup settings that a provider wrote for the supervisor.
pub fn order(file: &Utf8Path) -> Result<Order, Failure> {
    let text = std::fs::read(file).with_context(|| format!("read {file}"))?;
    Ok(serde_yaml::from_slice(&text).with_context(|| format!("read {file}"))?)
}
