//! The files that operators name for results.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;

use crate::ownership::{caller, user};

/// As many links as Linux follows (path_resolution(7)).
const MAX_LINKS: usize = 40;
const NO_DESTINATION: &str = "it is no file, no pipe and no character device";

/// What the path of a result leads to.
pub(crate) enum Destination {
    /// A regular file, or none yet.
    File(PathBuf),
    /// A pipe, a character device, or what the standard output is.
    Stream(File),
}

impl Destination {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        Self::of_owners(path, &[0, caller(), rustix::process::getuid().as_raw()])
    }

    /// The file, for a format that is written with seeks.
    pub(crate) fn file(self) -> io::Result<PathBuf> {
        match self {
            Self::File(file) => Ok(file),
            Self::Stream(_) => Err(invalid(
                "it is a pipe, a device or the standard output, and only a file can hold this format".to_owned(),
            )),
        }
    }

    /// The same for the users whose links and pipes are trusted. Each step uses what an earlier one checked: a link that is put at the
    /// path meanwhile is not followed.
    fn of_owners(path: &Path, trusted: &[u32]) -> io::Result<Self> {
        let mut target = follow(path, trusted)?;
        let there = match fs::symlink_metadata(&target) {
            // A link of `/proc` to a pipe has no path at its end, but it can be opened.
            Err(error) if error.kind() == io::ErrorKind::NotFound => match fs::metadata(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(target)),
                there => {
                    let there = there?;
                    if !there.is_file() {
                        target = path.to_owned();
                    }
                    there
                }
            },
            there => there?,
        };
        // Text that follows on the standard output would overwrite what another open of the same file wrote.
        if let Some(stream) = standard_stream(&there)? {
            return Ok(Self::Stream(stream));
        }
        let kind = there.file_type();
        match (kind.is_file(), kind.is_fifo() || kind.is_char_device()) {
            (true, _) => Ok(Self::File(target)),
            (false, true) => open(&target, trusted).map(Self::Stream),
            (false, false) if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            (false, false) => Err(invalid(NO_DESTINATION.to_owned())),
        }
    }
}

/// The path at the end of a chain of links. A link of another user would let that user choose what is replaced.
fn follow(path: &Path, trusted: &[u32]) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        let there = match fs::symlink_metadata(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target),
            there => there?,
        };
        if !there.is_symlink() {
            return Ok(target);
        }
        if !trusted.contains(&there.uid()) {
            let (link, owner) = (target.display(), user(there.uid()));
            return Err(invalid(format!("{link} is a link of {owner}, which is not followed")));
        }
        let next = fs::read_link(&target)?;
        target = target.parent().unwrap_or(Path::new("")).join(next);
    }
    Err(Errno::LOOP.into())
}

/// The standard output or the standard error, if the path leads to the same file.
fn standard_stream(there: &Metadata) -> io::Result<Option<File>> {
    let (out, err) = (io::stdout(), io::stderr());
    for stream in [out.as_fd(), err.as_fd()] {
        let Ok(file) = duplicate(stream) else { continue };
        let found = file.metadata()?;
        if (found.dev(), found.ino()) == (there.dev(), there.ino()) {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

fn duplicate(stream: BorrowedFd<'_>) -> io::Result<File> {
    stream.try_clone_to_owned().map(File::from)
}

/// Opens a pipe or a device without waiting for a reader. A pipe of another user would give that user the result.
fn open(path: &Path, trusted: &[u32]) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path).map_err(|error| {
        match error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
            true => invalid("no process reads from this pipe or device".to_owned()),
            false => error,
        }
    })?;
    let opened = file.metadata()?;
    let kind = opened.file_type();
    if !kind.is_fifo() && !kind.is_char_device() {
        return Err(invalid(NO_DESTINATION.to_owned()));
    }
    if kind.is_fifo() && !trusted.contains(&opened.uid()) {
        return Err(invalid(format!("it is a pipe of {}, who could read the result", user(opened.uid()))));
    }
    fcntl_setfl(&file, fcntl_getfl(&file)?.difference(OFlags::NONBLOCK))?;
    Ok(file)
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, Mode, mkfifoat};

    use crate::{Error, Replace};

    use super::*;

    #[test]
    fn output_follows_links_to_the_file_that_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "old and longer").unwrap();
        symlink("file", at("link")).unwrap();
        symlink(at("link"), at("links")).unwrap();
        symlink("later", at("dangling")).unwrap();
        symlink("loop", at("loop")).unwrap();
        Replace::private().output(at("links"), b"new").unwrap();
        Replace::private().output(at("dangling"), b"first").unwrap();
        assert_eq!(
            (fs::read(at("file")).unwrap(), fs::read(at("later")).unwrap()),
            (b"new".to_vec(), b"first".to_vec())
        );
        for link in ["link", "links", "dangling", "loop"] {
            assert!(fs::symlink_metadata(at(link)).unwrap().is_symlink(), "{link} is kept");
        }
        Replace::private().output(at("loop"), b"new").unwrap_err();
        let error = Replace::private().output(folder.path(), b"new").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::IsADirectory);
    }

    #[test]
    fn output_to_a_pipe_is_a_stream_and_without_a_reader_it_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        mkfifoat(CWD, &pipe, Mode::RUSR | Mode::WUSR).unwrap();
        let error = Replace::private().output(&pipe, b"new").unwrap_err();
        assert!(error.source.to_string().contains("no process reads"), "{error}: {}", error.source);
        let mut reader =
            OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(&pipe).unwrap();
        let written: Result<usize, Error> = Replace::private().output_with(&pipe, |file| {
            file.write_all(b"a stream").map_err(Error::at("write", &pipe))?;
            Ok(8)
        });
        assert_eq!(written.unwrap(), 8);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "a stream");
        assert!(fs::symlink_metadata(&pipe).unwrap().file_type().is_fifo());
    }

    #[test]
    fn links_and_pipes_of_other_users_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "old").unwrap();
        symlink("file", at("link")).unwrap();
        mkfifoat(CWD, at("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        let _reader =
            OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(at("pipe")).unwrap();
        let others = [caller() + 1];
        for (name, says) in [("link", "is a link of"), ("pipe", "is a pipe of")] {
            assert!(Destination::of(&at(name)).is_ok(), "{name} of this user");
            let Err(error) = Destination::of_owners(&at(name), &others) else { panic!("{name} of another user") };
            assert!(error.to_string().contains(says), "{error}");
        }
        assert!(Destination::of_owners(&at("file"), &others).is_ok(), "files are replaced, not written to");
    }

    #[test]
    fn file_output_is_never_a_stream() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        symlink("file", at("link")).unwrap();
        let fill = |file: &mut File| file.write_all(b"zip").map_err(Error::at("write", Path::new("zip")));
        Replace::private().file_output_with(at("link"), fill).unwrap();
        assert_eq!(fs::read(at("file")).unwrap(), b"zip");
        mkfifoat(CWD, at("pipe"), Mode::RUSR | Mode::WUSR).unwrap();
        let mut reader =
            OpenOptions::new().read(true).custom_flags(OFlags::NONBLOCK.bits() as i32).open(at("pipe")).unwrap();
        let error = Replace::private().file_output_with(at("pipe"), fill).unwrap_err();
        assert!(error.source.to_string().contains("only a file"), "{}", error.source);
        assert_eq!(reader.read(&mut [0]).unwrap(), 0, "nothing was written");
        assert!(fs::symlink_metadata(at("pipe")).unwrap().file_type().is_fifo());
    }

    #[test]
    fn output_to_what_is_neither_a_file_nor_a_stream_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = Replace::private().output(&socket, b"new").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
        assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    }
}
