//! Secrets as 0600 files in a 0700 folder.

use std::fs::File;
use std::io;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_provider::{Error, ErrorKind, Result, Secret, SecretName, SecretRef, SecretStore, SecretVersion};

use crate::files;

/// Far above the size of any secret here.
const VALUE_MAX: u64 = 1 << 20;

/// A [`SecretStore`] in a folder: `NAME/SEQUENCE.VERSION` holds the exact bytes of one version.
///
/// Versions are files that are hard-linked into place and never rewritten. `put` is durable when it returns.
#[derive(Debug, Clone)]
pub struct FileSecretStore {
    folder: Utf8PathBuf,
}

impl FileSecretStore {
    /// A store in `folder`, which is created with the first secret.
    pub fn new(folder: impl Into<Utf8PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The file that holds exactly the bytes of one version; NotFound when there is none.
    pub fn file_of(&self, secret: &SecretRef) -> Result<Utf8PathBuf> {
        let found = self.entries(&secret.name)?.into_iter().find(|entry| entry.version == secret.version);
        found
            .map(|entry| entry.path)
            .ok_or_else(|| Error::new(ErrorKind::NotFound, "read secret", secret.name.to_string()))
    }

    fn folder_of(&self, name: &SecretName) -> Result<Utf8PathBuf> {
        if name.0.is_empty() || name.0.len() > 150 {
            return Err(Error::new(ErrorKind::Invalid, "name secret", name.to_string()));
        }
        Ok(self.folder.join(escape(&name.0)))
    }

    fn entries(&self, name: &SecretName) -> Result<Vec<Entry>> {
        let folder = self.folder_of(name)?;
        let fails = |error| Error::io("list secret", name.to_string(), error);
        let listed = match std::fs::read_dir(&folder) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fails(error)),
        };
        let mut entries = Vec::new();
        for file in listed {
            let file = file.map_err(fails)?.file_name();
            let Some((sequence, version)) = file.to_str().and_then(|file| file.split_once('.')) else { continue };
            let (Ok(sequence), Some(version)) = (sequence.parse::<u64>(), unescape(version)) else { continue };
            let path = folder.join(file.to_string_lossy().as_ref());
            entries.push(Entry { sequence, version: SecretVersion(version), path });
        }
        entries.sort_by_key(|entry| entry.sequence);
        Ok(entries)
    }

    /// Sequence numbers are assigned under a lock, across processes.
    fn locked(&self) -> io::Result<File> {
        files::make_folder(&self.folder)?;
        let lock = File::options().write(true).create(true).truncate(false).open(self.folder.join(".lock"))?;
        lock.lock()?;
        Ok(lock)
    }

    fn write(&self, name: &SecretName, version: &SecretVersion, value: &Secret) -> Result<()> {
        if version.0.is_empty() || version.0.len() > 100 || value.expose().len() as u64 > VALUE_MAX {
            return Err(Error::new(ErrorKind::Invalid, "store secret", name.to_string()));
        }
        let fails = |error| Error::io("store secret", name.to_string(), error);
        let folder = self.folder_of(name)?;
        let _lock = self.locked().map_err(fails)?;
        let entries = self.entries(name)?;
        if let Some(there) = entries.iter().find(|entry| entry.version == *version) {
            let same = files::read_bounded(&there.path, VALUE_MAX).map_err(fails)? == value.expose();
            let taken = || {
                Error::new(ErrorKind::Conflict, "store secret", name.to_string())
                    .because("the version has another value")
            };
            return if same { Ok(()) } else { Err(taken()) };
        }
        files::make_folder(&folder).map_err(fails)?;
        let sequence = entries.last().map_or(1, |last| last.sequence.saturating_add(1));
        let path = folder.join(format!("{sequence:06}.{}", escape(&version.0)));
        files::put(&path, value.expose(), 0o600).map_err(fails)?;
        files::flush_folder(&self.folder).map_err(fails)
    }
}

struct Entry {
    sequence: u64,
    version: SecretVersion,
    path: Utf8PathBuf,
}

#[async_trait]
impl SecretStore for FileSecretStore {
    async fn put(&self, name: &SecretName, version: &SecretVersion, value: &Secret) -> Result<()> {
        self.write(name, version, value)
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        let path = self.file_of(secret)?;
        let bytes = files::read_bounded(&path, VALUE_MAX);
        Ok(Secret::new(bytes.map_err(|error| Error::io("read secret", secret.name.to_string(), error))?))
    }

    async fn versions(&self, name: &SecretName) -> Result<Vec<SecretVersion>> {
        Ok(self.entries(name)?.into_iter().map(|entry| entry.version).collect())
    }

    async fn list(&self, prefix: &str) -> Result<Vec<SecretName>> {
        let fails = |error| Error::io("list secrets", self.folder.as_str(), error);
        let listed = match std::fs::read_dir(&self.folder) {
            Ok(listed) => listed,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fails(error)),
        };
        let mut names = Vec::new();
        for folder in listed {
            let folder = folder.map_err(fails)?.file_name();
            let name = folder.to_str().filter(|name| !name.starts_with('.')).and_then(unescape);
            let Some(name) = name.filter(|name| name.starts_with(prefix)).map(SecretName) else { continue };
            if !self.entries(&name)?.is_empty() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    async fn delete(&self, name: &SecretName) -> Result<()> {
        let fails = |error| Error::io("delete secret", name.to_string(), error);
        let folder = self.folder_of(name)?;
        if is_absent(&folder) {
            return Ok(());
        }
        let _lock = self.locked().map_err(fails)?;
        files::remove_tree(&folder).map_err(fails)?;
        files::flush_folder(&self.folder).map_err(fails)
    }
}

/// Whether nothing lies at a path, links included.
fn is_absent(path: &Utf8Path) -> bool {
    std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A name as one readable file name: `here/api-key` becomes `here.api-key`, unusual characters `%XX`.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => escaped.push(byte as char),
            b'/' => escaped.push('.'),
            _ => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    // A leading dot would hide the folder.
    if escaped.starts_with('.') { escaped.replacen('.', "%2F", 1) } else { escaped }
}

fn unescape(escaped: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(escaped.len());
    let mut rest = escaped.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'.' => b'/',
            b'%' => {
                let (high, low) = (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
                u8::try_from(high * 16 + low).ok()?
            }
            plain => plain,
        });
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn store() -> (tempfile::TempDir, FileSecretStore) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::from_path_buf(dir.path().join("the secrets")).unwrap();
        (dir, FileSecretStore::new(folder))
    }

    fn names(name: &str, version: &str) -> (SecretName, SecretVersion) {
        (SecretName(name.to_owned()), SecretVersion(version.to_owned()))
    }

    #[tokio::test]
    async fn secret_version_is_immutable_and_its_file_private() {
        let (_dir, store) = store();
        let (name, version) = names("here/api-key", "12");
        store.put(&name, &version, &Secret::new("a")).await.unwrap();
        store.put(&name, &version, &Secret::new("a")).await.unwrap();
        assert_eq!(store.put(&name, &version, &Secret::new("b")).await.unwrap_err().kind, ErrorKind::Conflict);
        let path = store.file_of(&SecretRef { name, version }).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read(&path).unwrap(), b"a");
    }

    #[tokio::test]
    async fn secret_versions_are_sorted_and_hostile_names_contained() {
        let (dir, store) = store();
        for version in ["9", "10", "../../x"] {
            let (name, version) = names("../../etc", version);
            store.put(&name, &version, &Secret::new(version.0.clone())).await.unwrap();
        }
        let (name, _) = names("../../etc", "");
        let versions: Vec<String> = store.versions(&name).await.unwrap().into_iter().map(|version| version.0).collect();
        assert_eq!(versions, ["9", "10", "../../x"]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(store.list("../").await.unwrap(), std::slice::from_ref(&name));
        store.delete(&name).await.unwrap();
        store.delete(&name).await.unwrap();
        assert_eq!(store.list("").await.unwrap(), []);
    }

    #[test]
    fn escaped_secret_names_round_trip() {
        for name in ["here/api-key", "/a", "a.b/c", "ü%", "a//b"] {
            assert_eq!(unescape(&escape(name)).as_deref(), Some(name));
        }
    }
}
