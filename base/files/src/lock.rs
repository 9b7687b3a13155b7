use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use crate::error::{Error, Result};

/// How often a lock file is opened again that another process removed meanwhile.
const REMOVED_RETRIES: usize = 100;

/// A lock on a file (`flock`), released when this is dropped or the process ends, however it ends.
#[derive(Debug)]
#[must_use]
pub struct Lock(File);

impl Lock {
    /// Takes the lock alone. `None` while another one is held on the file, by this process or another. The file is created with these
    /// permission bits, less the umask, and stays.
    pub fn try_exclusive(path: impl AsRef<Path>, mode: u32) -> Result<Option<Self>> {
        named(path.as_ref(), mode, File::try_lock)
    }

    /// Takes the lock beside other shared ones. `None` while an exclusive one is held.
    pub fn try_shared(path: impl AsRef<Path>, mode: u32) -> Result<Option<Self>> {
        named(path.as_ref(), mode, File::try_lock_shared)
    }

    /// Takes the lock alone, and waits until it is free.
    pub fn exclusive(path: impl AsRef<Path>, mode: u32) -> Result<Self> {
        let path = path.as_ref();
        let held = named(path, mode, |file| file.lock().map_err(TryLockError::Error))?;
        held.ok_or_else(|| Error::at("lock", path)(io::ErrorKind::ResourceBusy.into()))
    }

    /// Takes the lock of an open file alone; `path` is for the error. `None` while another one is held.
    pub fn try_file(file: File, path: impl AsRef<Path>) -> Result<Option<Self>> {
        take(file, path.as_ref(), File::try_lock)
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing is not enough: a child process that another thread is starting has the file open until its `exec`.
        let _ = self.0.unlock();
    }
}

fn named(path: &Path, mode: u32, lock: fn(&File) -> Result<(), TryLockError>) -> Result<Option<Lock>> {
    for _ in 0..REMOVED_RETRIES {
        let file = OpenOptions::new()
            // For reading too: network filesystems refuse a shared lock otherwise.
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(mode)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
            .map_err(Error::at("open lock", path))?;
        let opened = file.metadata().map_err(Error::at("open lock", path))?;
        let Some(held) = take(file, path, lock)? else { return Ok(None) };
        // A process that cleans up may have removed the file in between: then the next one locks another file of that name.
        if fs::metadata(path).is_ok_and(|found| (found.dev(), found.ino()) == (opened.dev(), opened.ino())) {
            return Ok(Some(held));
        }
    }
    Ok(None)
}

fn take(file: File, path: &Path, lock: fn(&File) -> Result<(), TryLockError>) -> Result<Option<Lock>> {
    match lock(&file) {
        Ok(()) => Ok(Some(Lock(file))),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(Error::at("lock", path)(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn exclusive_lock_excludes_others_and_shared_locks_coexist() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let alone = Lock::try_exclusive(&path, 0o600).unwrap().unwrap();
        assert!(Lock::try_exclusive(&path, 0o600).unwrap().is_none());
        assert!(Lock::try_shared(&path, 0o600).unwrap().is_none());
        drop(alone);
        let shared =
            (Lock::try_shared(&path, 0o600).unwrap().unwrap(), Lock::try_shared(&path, 0o600).unwrap().unwrap());
        assert!(Lock::try_file(File::open(&path).unwrap(), &path).unwrap().is_none());
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| Lock::exclusive(&path, 0o600).unwrap());
            drop(shared);
            drop(waits.join().unwrap());
        });
        assert!(Lock::try_file(File::open(&path).unwrap(), &path).unwrap().is_some());
    }

    #[test]
    fn lock_on_a_deleted_file_does_not_block_a_new_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let old = Lock::try_exclusive(&path, 0o600).unwrap().unwrap();
        fs::remove_file(&path).unwrap();
        let new = Lock::try_exclusive(&path, 0o600).unwrap().unwrap();
        drop(old);
        assert!(Lock::try_exclusive(&path, 0o600).unwrap().is_none());
        drop(new);
    }

    #[test]
    fn lock_refuses_a_symlink() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
        assert_eq!(Lock::try_exclusive(&path, 0o600).unwrap_err().action, "open lock");
        assert!(!folder.path().join("elsewhere").exists());
    }

    /// Started by the test below as a process of its own: holds the lock until it is killed.
    #[test]
    fn child() {
        let Ok(path) = std::env::var("TEXTNLP_FILES_LOCK") else { return };
        let _held = Lock::try_exclusive(path, 0o600).unwrap().unwrap();
        std::io::stderr().write_all(b"L").unwrap();
        std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    }

    #[test]
    fn lock_is_released_when_its_process_is_killed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("lock");
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["lock::tests::child", "--exact", "--nocapture", "--test-threads=1"])
            .env("TEXTNLP_FILES_LOCK", &path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        child.stderr.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        assert!(Lock::try_exclusive(&path, 0o600).unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(Lock::try_exclusive(&path, 0o600).unwrap().is_some());
    }
}
