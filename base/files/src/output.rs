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

/// What the path of a result leads to.
pub(crate) enum Destination {
    /// A regular file, or none yet.
    File(PathBuf),
    /// A pipe, a character device, or what the standard output is.
    Stream(File),
}

impl Destination {
    pub(crate) fn of(path: &Path) -> io::Result<Self> {
        let target = follow(path)?;
        let there = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::File(target)),
            there => there?,
        };
        // Text that follows on the standard output would overwrite what another open of the same file wrote.
        if let Some(stream) = standard_stream(&there)? {
            return Ok(Self::Stream(stream));
        }
        let kind = there.file_type();
        match (kind.is_file(), kind.is_fifo() || kind.is_char_device()) {
            (true, _) => Ok(Self::File(fs::canonicalize(path)?)),
            (false, true) => open(path).map(Self::Stream),
            (false, false) if kind.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
            (false, false) => Err(invalid("it is no file, no pipe and no character device".to_owned())),
        }
    }
}

/// The path at the end of a chain of links. A link of another user would let that user choose what is replaced.
fn follow(path: &Path) -> io::Result<PathBuf> {
    let mut target = path.to_owned();
    for _ in 0..MAX_LINKS {
        let there = match fs::symlink_metadata(&target) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(target),
            there => there?,
        };
        if !there.is_symlink() {
            return Ok(target);
        }
        if ![0, caller(), rustix::process::getuid().as_raw()].contains(&there.uid()) {
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

/// Opens a pipe or a device without waiting for a reader.
fn open(path: &Path) -> io::Result<File> {
    let flags = (OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32;
    let file = OpenOptions::new().write(true).custom_flags(flags).open(path).map_err(|error| {
        match error.raw_os_error() == Some(Errno::NXIO.raw_os_error()) {
            true => invalid("no process reads from this pipe or device".to_owned()),
            false => error,
        }
    })?;
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
    fn output_to_what_is_neither_a_file_nor_a_stream_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let error = Replace::private().output(&socket, b"new").unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::InvalidInput);
        assert!(fs::symlink_metadata(&socket).unwrap().file_type().is_socket());
    }
}
