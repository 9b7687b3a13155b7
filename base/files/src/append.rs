use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::replace::sync_folder;

/// Adds bytes to the end of a file, durable when this returns. A new file gets these permission bits, less the umask.
///
/// One writer at a time: after a failure the file is truncated to its former length, so that no partial bytes remain. A symbolic link
/// is not followed.
pub fn append(path: impl AsRef<Path>, bytes: &[u8], mode: u32) -> Result<()> {
    let path = path.as_ref();
    let fails = |action| Error::at(action, path);
    let mut options = OpenOptions::new();
    options.append(true).mode(mode).custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed());
    let (mut file, is_new) = match options.open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            (options.create(true).open(path).map_err(fails("create"))?, true)
        }
        opened => (opened.map_err(fails("open"))?, false),
    };
    let before = file.metadata().map_err(fails("open"))?.len();
    if let Err(error) = file.write_all(bytes).and_then(|()| file.sync_data()) {
        // The first error is the one to report.
        let _ = file.set_len(before).and_then(|()| file.sync_data());
        return Err(fails("append to")(error));
    }
    match path.parent() {
        Some(folder) if is_new => sync_folder(folder),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::process::Command;

    use super::*;

    #[test]
    fn append_adds_bytes_and_refuses_symlinks() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, b"one\n", 0o600).unwrap();
        append(&path, b"two\n", 0o644).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let link = folder.path().join("link");
        symlink(&path, &link).unwrap();
        assert!(append(&link, b"three\n", 0o600).is_err());
        assert_eq!(fs::read(&path).unwrap(), b"one\ntwo\n");
    }

    /// Started by the test below as a process of its own.
    #[test]
    fn child() {
        let Ok(path) = std::env::var("TEXTNLP_FILES_APPEND") else { return };
        let error = append(path, &[b'x'; 64 << 10], 0o600).unwrap_err();
        assert_eq!((error.action, error.source.kind()), ("append to", io::ErrorKind::FileTooLarge));
    }

    #[test]
    fn append_past_the_size_limit_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("log");
        append(&path, b"one\n", 0o600).unwrap();
        let done = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 8; exec \"$0\" append::tests::child --exact --test-threads=1"])
            .arg(std::env::current_exe().unwrap())
            .env("TEXTNLP_FILES_APPEND", &path)
            .output()
            .unwrap();
        assert!(done.status.success());
        assert_eq!(fs::read(&path).unwrap(), b"one\n");
    }
}
