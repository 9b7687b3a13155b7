//! The files that an operator names for results: `--out`, `--html`, `--pdf`, `--sarif`.

use std::fs::File;
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
        .map_err(|error| {
            Failure::new(Exit::Failed, "failed", error).hint("give another file, in a folder in which you may write")
        })
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
}
