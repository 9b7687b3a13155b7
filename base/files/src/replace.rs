use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher, RandomState};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use crate::error::{Error, Result};
use crate::output::Destination;

/// The ending of temporary files. Code that lists a folder passes over them by it.
const TEMPORARY: &str = "new";

/// Writes a file whole: after a crash at any point the path holds the old content or the new one, never a part.
///
/// The content goes to a temporary file in the same folder, is synced, and is renamed onto the path; then the folder is synced. A symbolic
/// link at the path is replaced, never followed. A device, a pipe or a socket is never replaced.
#[derive(Debug, Clone, Copy)]
#[must_use]
pub struct Replace {
    mode: u32,
    exact: bool,
    sync: bool,
    sole_writer: bool,
    only_new: bool,
}

impl Replace {
    /// With exactly these permission bits, whatever the umask.
    pub const fn mode(mode: u32) -> Self {
        Self { mode, exact: true, sync: true, sole_writer: false, only_new: false }
    }

    /// Readable and writable by its owner alone.
    pub const fn private() -> Self {
        Self::mode(0o600)
    }

    /// With the permission bits that the umask leaves, as [`File::create`] sets them.
    pub const fn umask() -> Self {
        Self { exact: false, ..Self::mode(0o666) }
    }

    /// Without a sync of the file and its folder: for what is written again after a restart of the machine.
    pub const fn without_sync(mut self) -> Self {
        self.sync = false;
        self
    }

    /// For callers that exclude other writers of the same path, by a lock or by design. The temporary file then has a fixed name, so that
    /// a write replaces what a killed process left. Without this, the name is unique and concurrent writers do not disturb one another.
    pub const fn sole_writer(mut self) -> Self {
        self.sole_writer = true;
        self
    }

    /// Replaces nothing: something at the path, even a link to nothing, is the error [`io::ErrorKind::AlreadyExists`].
    pub const fn only_new(mut self) -> Self {
        self.only_new = true;
        self
    }

    /// Replaces the file by these bytes.
    pub fn write(self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.with(path, |file| file.write_all(bytes).map_err(Error::at("write", path)))
    }

    /// Writes the file that an operator named for a result, such as that of `--out`: see [`output_with`](Self::output_with).
    pub fn output(self, path: impl AsRef<Path>, bytes: &[u8]) -> Result<()> {
        let path = path.as_ref();
        self.output_with(path, |file| file.write_all(bytes).map_err(Error::at("write", path)))
    }

    /// Writes what `fill` writes to the file that an operator named for a result. The file that links lead to is replaced. Pipes and
    /// character devices, such as `/dev/stdout`, are written to as streams. Links and pipes of other users and everything else that is
    /// no regular file are refused.
    pub fn output_with<T, E: From<Error>>(
        self,
        path: impl AsRef<Path>,
        fill: impl FnOnce(&mut File) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = path.as_ref();
        match Destination::of(path).map_err(Error::at("write", path))? {
            Destination::File(file) => self.with(file, fill),
            Destination::Stream(mut stream) => fill(&mut stream),
        }
    }

    /// The same for a format that is written with seeks, such as that of zip files: streams are refused.
    pub fn file_output_with<T, E: From<Error>>(
        self,
        path: impl AsRef<Path>,
        fill: impl FnOnce(&mut File) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = path.as_ref();
        self.with(Destination::of(path).and_then(Destination::file).map_err(Error::at("write", path))?, fill)
    }

    /// Replaces the file by what `fill` writes. When `fill` fails, its error is returned, the path is as before and the temporary file is
    /// gone. Errors name the path, never the temporary file, which the caller did not choose.
    pub fn with<T, E: From<Error>>(
        self,
        path: impl AsRef<Path>,
        fill: impl FnOnce(&mut File) -> Result<T, E>,
    ) -> Result<T, E> {
        let path = path.as_ref();
        let (folder, temporary) = self.temporary(path).map_err(Error::at("write", path))?;
        if fs::symlink_metadata(path).is_ok_and(|there| is_special(there.file_type())) {
            let why = "it is a device, a pipe or a socket, and only files are replaced";
            return Err(Error::at("write", path)(io::Error::new(io::ErrorKind::InvalidInput, why)).into());
        }
        if self.sole_writer {
            remove(&temporary).map_err(Error::at("write", path))?;
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(self.mode)
            .open(&temporary)
            .map_err(Error::at("create", path))?;
        let written = fill(&mut file).and_then(|value| {
            let finish = || -> io::Result<()> {
                if self.exact {
                    file.set_permissions(fs::Permissions::from_mode(self.mode))?;
                }
                if self.sync {
                    file.sync_all()?;
                }
                if self.only_new { rename_new(&temporary, path) } else { fs::rename(&temporary, path) }
            };
            finish().map_err(Error::at("write", path))?;
            Ok(value)
        });
        match written {
            Ok(value) if self.sync => Ok(sync_folder(folder).map(|()| value)?),
            Ok(value) => Ok(value),
            Err(error) => {
                // The first error is the one to report.
                let _ = fs::remove_file(&temporary);
                Err(error)
            }
        }
    }

    fn temporary(self, path: &Path) -> io::Result<(&Path, PathBuf)> {
        let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"));
        };
        // Hidden, and no deeper: `.a` and `a` give `.a.new`.
        let mut temporary = OsString::from(if name.as_bytes().starts_with(b".") { "" } else { "." });
        temporary.push(name);
        temporary.push(if self.sole_writer {
            format!(".{TEMPORARY}")
        } else {
            format!(".{}.{TEMPORARY}", unique_name())
        });
        Ok((folder, folder.join(temporary)))
    }
}

/// Whether it is a device, a pipe or a socket.
fn is_special(kind: fs::FileType) -> bool {
    kind.is_fifo() || kind.is_char_device() || kind.is_block_device() || kind.is_socket()
}

/// Makes created, renamed and removed names in a folder durable. An empty path is the working directory.
pub fn sync_folder(folder: impl AsRef<Path>) -> Result<()> {
    let folder = folder.as_ref();
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    File::open(folder).and_then(|opened| opened.sync_all()).map_err(Error::at("sync folder", folder))
}

/// Renames a file to a path where nothing is.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        // The file system, such as NFS, has no such rename; some have no links either.
        Err(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => match fs::hard_link(from, to) {
            Ok(()) => fs::remove_file(from),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
            Err(_) if fs::symlink_metadata(to).is_ok() => Err(io::ErrorKind::AlreadyExists.into()),
            Err(_) => fs::rename(from, to),
        },
        renamed => renamed.map_err(io::Error::from),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// A part of a file name that no other process or thread uses, on any machine that shares the folder. A process number is not enough: in
/// containers it is always the same.
pub fn unique_name() -> String {
    static PROCESS: LazyLock<u64> = LazyLock::new(|| RandomState::new().hash_one(std::process::id()));
    static NEXT: AtomicU64 = AtomicU64::new(0);
    format!("{:016x}-{}", *PROCESS, NEXT.fetch_add(1, Ordering::Relaxed))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::*;

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn replace_sets_content_and_mode_and_leaves_no_temporary_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old and longer").unwrap();
        for replace in [Replace::private(), Replace::private().sole_writer(), Replace::private().without_sync()] {
            replace.write(&path, b"new").unwrap();
            assert_eq!((fs::read(&path).unwrap(), mode(&path)), (b"new".to_vec(), 0o600));
            assert_eq!(names(folder.path()), ["a"]);
        }
        Replace::mode(0o777).write(&path, b"new").unwrap();
        assert_eq!(mode(&path), 0o777, "the umask does not count");
        Replace::umask().write(&path, b"new").unwrap();
        File::create(folder.path().join("b")).unwrap();
        assert_eq!(mode(&path), mode(&folder.path().join("b")));
    }

    #[test]
    fn replace_keeps_the_old_content_until_the_new_content_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        let failed: io::Result<()> = Replace::private().with(&path, |file| {
            file.write_all(b"ne")?;
            assert_eq!(fs::read(&path)?, b"old");
            Err(io::Error::other("cut"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "cut");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn replace_overwrites_a_symlink_without_following_it() {
        let folder = tempfile::tempdir().unwrap();
        let (path, target) = (folder.path().join("a"), folder.path().join("target"));
        fs::write(&target, "untouched").unwrap();
        symlink(&target, &path).unwrap();
        // A link where the temporary file goes is not followed either.
        symlink(&target, folder.path().join(".a.new")).unwrap();
        Replace::private().sole_writer().write(&path, b"new").unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_file());
        assert_eq!((fs::read(&path).unwrap(), fs::read(&target).unwrap()), (b"new".to_vec(), b"untouched".to_vec()));
        assert_eq!(names(folder.path()), ["a", "target"]);
    }

    #[test]
    fn what_is_only_new_leaves_a_file_and_a_dangling_link_as_they_are() {
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        Replace::umask().only_new().write(&path, b"first").unwrap();
        symlink("nowhere", &link).unwrap();
        for there in [&path, &link] {
            let error = Replace::umask().only_new().write(there, b"second").unwrap_err();
            assert_eq!(error.source.kind(), io::ErrorKind::AlreadyExists, "{error}");
        }
        assert_eq!(fs::read(&path).unwrap(), b"first");
        assert_eq!(names(folder.path()), ["a", "link"]);
    }

    #[test]
    fn replace_never_replaces_a_pipe_or_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, socket) = (folder.path().join("pipe"), folder.path().join("socket"));
        rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR).unwrap();
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for path in [&pipe, &socket] {
            let error = Replace::private().write(path, b"new").unwrap_err();
            assert!(error.source.to_string().contains("only files are replaced"), "{error}");
        }
        assert_eq!(names(folder.path()), ["pipe", "socket"]);
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    }

    #[test]
    fn replace_accepts_file_names_that_are_not_utf8() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(OsStr::from_bytes(b"a\xff"));
        Replace::private().write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        let missing = folder.path().join(OsStr::from_bytes(b"no\xff")).join("a");
        let error = Replace::private().write(&missing, b"new").unwrap_err();
        assert_eq!((error.action, error.source.kind()), ("create", io::ErrorKind::NotFound));
        assert_eq!(error.path, missing, "the temporary file is not named");
        assert!(Replace::private().write("/", b"new").is_err());
    }

    #[test]
    fn concurrent_replacements_never_mix_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::thread::scope(|scope| {
            for letter in b'a'..b'e' {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        Replace::private().without_sync().write(path, &[letter; 9000]).unwrap();
                        let found = fs::read(path).unwrap();
                        assert!(found.len() == 9000 && found.iter().all(|byte| *byte == found[0]));
                    }
                });
            }
        });
        assert_eq!(names(folder.path()), ["a"]);
    }

    /// Started by the tests below as a process of its own.
    #[test]
    fn child() {
        let (Ok(act), Ok(path)) = (std::env::var("TEXTNLP_FILES_ACT"), std::env::var("TEXTNLP_FILES_PATH")) else {
            return;
        };
        let written: io::Result<()> = Replace::private().sole_writer().with(&path, |file| {
            file.write_all(&[b'n'; 64 << 10])?;
            if act == "die" {
                std::process::abort();
            }
            Ok(())
        });
        assert_eq!(written.unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    /// Runs `child` after these commands of a shell.
    fn run(before: &str, act: &str, path: &Path) -> bool {
        Command::new("sh")
            .args(["-c", &format!("{before} exec \"$0\" replace::tests::child --exact --test-threads=1")])
            .arg(std::env::current_exe().unwrap())
            .envs([("TEXTNLP_FILES_ACT", OsStr::new(act)), ("TEXTNLP_FILES_PATH", path.as_os_str())])
            .output()
            .unwrap()
            .status
            .success()
    }

    #[test]
    fn killed_replace_keeps_the_old_content_and_the_next_one_cleans_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        assert!(!run("ulimit -c 0;", "die", &path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), [".a.new", "a"]);
        Replace::private().sole_writer().write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(folder.path()), ["a"]);
    }

    #[test]
    fn replace_past_the_size_limit_keeps_the_old_content() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        fs::write(&path, "old").unwrap();
        assert!(run("trap '' XFSZ; ulimit -f 8;", "write", &path));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["a"]);
    }
}
