//! The files that an operator names for results: `--out`, `--html`, `--pdf`, `--sarif`.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;

use anyhow::Context as _;
use camino::Utf8Path;
use textnlp_files::Replace;

use crate::{Exit, Failure};

/// Writes a result to such a file, with the folders above it.
pub fn write(path: &Utf8Path, replace: Replace, bytes: &[u8]) -> Result<(), Failure> {
    write_with(path, || Ok(replace.output(path, bytes)?))
}

/// Writes a result that `fill` writes to such a file, with the folders above it.
pub fn fill(
    path: &Utf8Path,
    replace: Replace,
    fill: impl FnOnce(&mut File) -> anyhow::Result<()>,
) -> Result<(), Failure> {
    write_with(path, || replace.output_with(path, fill))
}

fn write_with(path: &Utf8Path, write: impl FnOnce() -> anyhow::Result<()>) -> Result<(), Failure> {
    let folder = path.parent().filter(|folder| !folder.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("create {folder}"))
        .and_then(|()| write())
        .map_err(unwritten)
}

fn unwritten(error: anyhow::Error) -> Failure {
    use ErrorKind::{IsADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let kind = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
    let failure = Failure::new(Exit::Failed, "failed", error);
    match kind {
        Some(PermissionDenied | NotFound | ReadOnlyFilesystem | IsADirectory) => {
            failure.hint("give another file, in a folder in which you may write")
        }
        // Such as that of a full disk.
        _ if failure.hint.is_some() => failure,
        _ => failure.hint("give another file"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn result_is_written_through_a_link_and_a_folder_in_its_place_is_reported_with_a_hint() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        write(&root.join("link"), Replace::private(), b"one").unwrap();
        assert_eq!(std::fs::read(root.join("real")).unwrap(), b"one");
        assert!(root.join("link").is_symlink());
        write(&root.join("new/folder/file"), Replace::umask(), b"two").unwrap();
        let failure = write(&root.join("new"), Replace::private(), b"three").unwrap_err();
        assert!(failure.hint.is_some() && format!("{:#}", failure.error).contains("/new"), "{:#}", failure.error);
    }

    #[test]
    fn hint_names_the_folder_only_where_another_one_helps() {
        let folder = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(folder.path()).unwrap();
        let hint = |path: &Utf8Path| write(path, Replace::private(), b"one").unwrap_err().hint;
        assert_eq!(hint(root).as_deref(), Some("give another file, in a folder in which you may write"));
        let _bound = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        assert_eq!(hint(&root.join("socket")).as_deref(), Some("give another file"));
        let full = hint(Utf8Path::new("/dev/full"));
        assert!(full.is_some_and(|hint| hint.contains("space")), "a device is written to as a stream");
    }
}
