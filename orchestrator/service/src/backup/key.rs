//! The backup key of an environment: created once, stored with its other secrets. The operator stores a copy elsewhere.

use std::io;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;
use textnlp_orchestrator::backup::Key;
use textnlp_orchestrator::state::io_hint;
use textnlp_provider::{Error, ErrorKind, SecretName, SecretRef, SecretVersion};

use super::failed;
use crate::{ChosenEnvironment, Failure, Platform};

const NAME: &str = "backup-key";

fn reference(version: u64) -> SecretRef {
    SecretRef { name: SecretName(NAME.to_owned()), version: SecretVersion(version.to_string()) }
}

/// The versions in the store, oldest first.
async fn versions(platform: &dyn Platform, folder: &Utf8Path) -> Result<Vec<u64>, Failure> {
    let versions = platform.secrets(folder).versions(&SecretName(NAME.to_owned())).await?;
    let mut numbers: Vec<u64> = versions.iter().filter_map(|version| version.0.parse().ok()).collect();
    numbers.sort_unstable();
    Ok(numbers)
}

async fn read(platform: &dyn Platform, folder: &Utf8Path, version: u64) -> Result<Option<Key>, Failure> {
    let secret = platform.secrets(folder).get(&reference(version)).await.context("read the backup key")?;
    Ok(Key::parse(&secret).map_err(failed)?.into_iter().next())
}

/// Creates the key of an environment whose backups are encrypted in a cluster, which gets only the public half. Returns
/// whether there was none, so that the resources have to be planned again.
pub async fn prepare(chosen: &ChosenEnvironment) -> Result<bool, Failure> {
    let (platform, folder) = (chosen.scope.platform, &chosen.scope.folder);
    if !chosen.loaded.environment.dumps_in_cluster() || there(platform, folder).await?.is_some() {
        return Ok(false);
    }
    ensure(platform, folder).await?;
    Ok(true)
}

/// The key that encrypts backups, if there is one.
pub async fn there(platform: &dyn Platform, folder: &Utf8Path) -> Result<Option<Key>, Failure> {
    match versions(platform, folder).await?.last() {
        Some(newest) => read(platform, folder, *newest).await,
        None => Ok(None),
    }
}

/// All keys, newest first: older backups are encrypted with the ones that were replaced.
pub async fn all(platform: &dyn Platform, folder: &Utf8Path) -> Result<Vec<Key>, Failure> {
    let mut keys = Vec::new();
    for version in versions(platform, folder).await?.into_iter().rev() {
        keys.extend(read(platform, folder, version).await?);
    }
    Ok(keys)
}

/// Replaces the key. The old ones stay in the store, because nothing else decrypts the backups that were made with them. The caller
/// holds the lock of the state.
pub async fn rotate(platform: &dyn Platform, folder: &Utf8Path) -> Result<Key, Failure> {
    let fresh = Key::generate();
    let next = versions(platform, folder).await?.last().map_or(1, |newest| newest.saturating_add(1));
    let reference = reference(next);
    let stored = platform.secrets(folder).put(&reference.name, &reference.version, &fresh.secret()).await;
    match stored {
        Ok(()) => Ok(fresh),
        Err(error) => Err(not_stored(Some(error), &folder.join(platform.secrets_folder()))),
    }
}

/// Takes over the keys of a replaced state that the restored one lacks, because nothing else decrypts later backups. The newest of
/// them encrypts from now on, as before. Returns how many there were.
pub(super) async fn take_over(
    platform: &dyn Platform,
    restored: &Utf8Path,
    replaced: &Utf8Path,
) -> Result<usize, Failure> {
    let recipient = |key: &Key| key.recipient().to_string();
    let known: Vec<String> = all(platform, restored).await?.iter().map(recipient).collect();
    let mut next = versions(platform, restored).await?.last().map_or(1, |newest| newest.saturating_add(1));
    let mut taken = 0;
    for version in versions(platform, replaced).await? {
        let Some(key) = read(platform, replaced, version).await? else { continue };
        if known.contains(&recipient(&key)) {
            continue;
        }
        let reference = reference(next);
        let stored = platform.secrets(restored).put(&reference.name, &reference.version, &key.secret()).await;
        stored.map_err(|error| not_stored(Some(error), &restored.join(platform.secrets_folder())))?;
        next = next.saturating_add(1);
        taken += 1;
    }
    Ok(taken)
}

/// The key. Creates it if there is none.
pub async fn ensure(platform: &dyn Platform, folder: &Utf8Path) -> Result<Key, Failure> {
    /// Attempts. Concurrent first backups both create a key, and the store keeps one of them.
    const MAX_ATTEMPTS: u32 = 5;
    let mut failed = None;
    for _ in 0..MAX_ATTEMPTS {
        if let Some(key) = there(platform, folder).await? {
            return Ok(key);
        }
        let reference = reference(1);
        let fresh = Key::generate().secret();
        if let Err(error) = platform.secrets(folder).put(&reference.name, &reference.version, &fresh).await {
            failed = Some(error);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
    there(platform, folder).await?.ok_or_else(|| not_stored(failed, &folder.join(platform.secrets_folder())))
}

fn not_stored(failed: Option<Error>, folder: &Utf8Path) -> Failure {
    const WHAT: &str = "the backup key could not be stored";
    let kind = match failed.as_ref().map(|error| &error.kind) {
        Some(ErrorKind::Quota) => io::ErrorKind::StorageFull,
        Some(ErrorKind::Denied) => io::ErrorKind::PermissionDenied,
        _ => io::ErrorKind::Other,
    };
    let error = failed.map_or_else(|| anyhow::anyhow!(WHAT), |error| anyhow::Error::new(error).context(WHAT));
    Failure::from(error).hint(io_hint(folder.as_str(), kind))
}
