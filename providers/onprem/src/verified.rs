//! Programs of a site whose content is what was recorded when `up` put them there.

use std::fs::{File, Metadata};
use std::io::{self, Read, Seek};
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_files::copy_sha256;
use textnlp_keys::{
    Marker, SiteFolder,
    files::{self, Stamp},
};

use crate::table::ResourceKind;

/// What is wrong with a program whose inode or times are not those of the file that was put there.
pub(crate) const COPIED: &str = "is not the file that `up` put there: it was copied, or its owner or mode was changed";
/// The digests that a marker keeps of programs that its unfinished operations replace.
pub(crate) const PREVIOUS: &str = "previous";

/// A program whose content has a recorded digest. The file stays open, and the commands start this open file: what is
/// put at its path later does not run.
#[derive(Debug)]
pub struct VerifiedProgram {
    file: File,
    path: Utf8PathBuf,
}

impl VerifiedProgram {
    /// A program of a site by its absolute path, `SITE/bin/NAME`, that `up` put there.
    pub fn at(path: &Utf8Path) -> io::Result<Self> {
        let root = path.parent().and_then(Utf8Path::parent);
        let relative = root.and_then(|root| path.strip_prefix(root).ok());
        let (Some(root), Some(relative)) = (root, relative) else {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a program of a site"));
        };
        Self::placed(&SiteFolder::at(root), relative.as_str())
    }

    /// The file that `up` put at a path relative to the site's folder, and no copy of it. For commands that need no
    /// approval: the author of a state folder that was cloned or unpacked also wrote the digest that is recorded in it.
    pub(crate) fn placed(folder: &SiteFolder, relative: &str) -> io::Result<Self> {
        let (marker, program) = Self::recorded(folder, relative)?;
        if marker.facts.get("stamp") != Some(&json!(Stamp::from(&program.file.metadata()?))) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{} {COPIED}", program.path)));
        }
        Ok(program)
    }

    /// The program at a path relative to the site's folder, with the digest that the site's objects record.
    pub(crate) fn of_site(folder: &SiteFolder, relative: &str) -> io::Result<Self> {
        Self::recorded(folder, relative).map(|(_, program)| program)
    }

    fn recorded(folder: &SiteFolder, relative: &str) -> io::Result<(Marker, Self)> {
        let recorded = Marker::all(folder)?.into_iter().find(|marker| {
            marker.kind == ResourceKind::Program.kind()
                && marker.spec.get("path").and_then(Value::as_str) == Some(relative)
        });
        let Some(marker) = recorded else {
            let why = "no object of the site records its digest";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        };
        let path = folder.inside(relative).map_err(io::Error::other)?;
        // Hashing tens of megabytes at each `status` and each restart would be slow. Only root can set a change time.
        let stamp = marker.facts.get("stamp").filter(|_| marker.complete);
        let program = Self::open(&path, &accepted(&marker), stamp)?;
        let found = program.file.metadata()?;
        if !is_own(&found) {
            let why = format!("{path} can be changed by other users; run `up`, which replaces it");
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
        }
        Ok((marker, program))
    }

    /// A program by its path and its digest.
    pub(crate) fn of_digest(path: &Utf8Path, sha256: &str) -> io::Result<Self> {
        Self::open(&path.canonicalize_utf8()?, &[sha256.to_owned()], None)
    }

    fn open(path: &Utf8Path, digests: &[String], stamp: Option<&Value>) -> io::Result<Self> {
        let mut file = files::open_plain(path)?;
        if stamp != Some(&json!(Stamp::from(&file.metadata()?))) {
            let digest = copy_sha256(&mut file, &mut io::sink())?.hex();
            if !digests.contains(&digest) {
                let recorded = digests.first().map_or("none", String::as_str);
                let why = format!("{path} was changed: it has sha256:{digest}, recorded is sha256:{recorded}");
                return Err(io::Error::new(io::ErrorKind::InvalidData, why));
            }
        }
        let mut head = [0; 2];
        file.rewind()?;
        if file.read_exact(&mut head).is_ok() && head == *b"#!" {
            // The interpreter opens the script after `exec`, by its descriptor.
            rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty())?;
        }
        Ok(Self { file, path: path.to_owned() })
    }

    /// A command that starts it. It must start while `self` lives.
    pub fn command(&self) -> Command {
        let mut command = Command::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()));
        command.arg0(&self.path);
        command
    }

    /// The same, with the file that must stay open until it started.
    pub fn into_command(self) -> (Command, File) {
        (self.command(), self.file)
    }
}

/// The digests that the program at a marker's path may have. While an operation replaces it, it has the old or the new.
pub(crate) fn accepted(marker: &Marker) -> Vec<String> {
    let digest = marker.spec.get("sha256").and_then(Value::as_str);
    let previous = marker.facts.get(PREVIOUS).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str);
    digest.into_iter().chain(previous).map(str::to_owned).collect()
}

/// Whether no other user can change it between the check and the start.
pub(crate) fn is_own(found: &Metadata) -> bool {
    let is_ours = found.uid() == 0 || found.uid() == rustix::process::geteuid().as_raw();
    is_ours && found.mode() & 0o022 == 0
}

/// Records the program at a path of a site, as a completed operation does.
#[cfg(test)]
pub(crate) fn record_program(folder: &SiteFolder, path: &str) {
    let file = folder.join(path);
    let sha256 = files::sha256(&file).unwrap();
    let marker: Marker = serde_json::from_value(json!({
        "textnlp-lineage": uuid::Uuid::nil(), "textnlp-environment": "test", "textnlp-site": "here",
        "textnlp-resource": "here/server/program", "textnlp-operation": 1, "kind": "onprem.program",
        "cloud_id": "sites/here/bin/server", "complete": true,
        "spec": { "source": "/nowhere", "sha256": sha256, "path": path },
        "facts": { "sha256": sha256, "stamp": Stamp::of(&file).unwrap() },
    }))
    .unwrap();
    files::make_folder(&folder.join("objects")).unwrap();
    marker.write(folder).unwrap();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn site() -> (tempfile::TempDir, SiteFolder, Utf8PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let folder = SiteFolder::at(Utf8Path::from_path(dir.path()).unwrap());
        let program = folder.join("bin/server");
        std::fs::create_dir(folder.join("bin")).unwrap();
        std::fs::copy("/bin/sh", &program).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        (dir, folder, program)
    }

    #[test]
    fn program_that_was_checked_runs_after_another_took_its_path() {
        let (_dir, folder, program) = site();
        record_program(&folder, "bin/server");
        let verified = VerifiedProgram::of_site(&folder, "bin/server").unwrap();
        let other = folder.join("bin/other");
        std::fs::copy("/bin/false", &other).unwrap();
        std::fs::rename(&other, &program).unwrap();
        let output = verified.command().args(["-c", "echo it is"]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&output.stdout), "it is\n");
        let refused = VerifiedProgram::of_site(&folder, "bin/server").unwrap_err().to_string();
        assert!(refused.contains("was changed"), "{refused}");
    }

    #[test]
    fn program_of_a_copied_state_does_not_run_without_approval() {
        let (_dir, folder, program) = site();
        record_program(&folder, "bin/server");
        VerifiedProgram::at(&program).unwrap();
        let copy = folder.join("bin/copy");
        std::fs::copy(&program, &copy).unwrap();
        std::fs::rename(&copy, &program).unwrap();
        let refused = VerifiedProgram::at(&program).unwrap_err().to_string();
        assert!(refused.contains("is not the file that `up` put there"), "{refused}");
        // The author of a copied state can remove what is recorded about the file.
        let mut marker = Marker::all(&folder).unwrap().remove(0);
        marker.facts.remove("stamp");
        marker.write(&folder).unwrap();
        VerifiedProgram::at(&program).unwrap_err();
        VerifiedProgram::of_site(&folder, "bin/server").expect("the supervisor starts it after an approved `up`");
    }

    #[test]
    fn changed_program_with_its_old_times_is_refused() {
        let (_dir, folder, program) = site();
        record_program(&folder, "bin/server");
        let (before, stamp) = (std::fs::metadata(&program).unwrap(), Stamp::of(&program).unwrap());
        let mut bytes = std::fs::read(&program).unwrap();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        // The clock of a filesystem has ticks of some milliseconds.
        while Stamp::of(&program).unwrap() == stamp {
            std::fs::write(&program, &bytes).unwrap();
            let times = std::fs::FileTimes::new().set_modified(before.modified().unwrap());
            File::options().write(true).open(&program).unwrap().set_times(times).unwrap();
        }
        let refused = VerifiedProgram::of_site(&folder, "bin/server").unwrap_err().to_string();
        assert!(refused.contains("was changed"), "{refused}");
    }

    #[test]
    fn program_that_other_users_can_write_is_refused() {
        let (_dir, folder, program) = site();
        record_program(&folder, "bin/server");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o777)).unwrap();
        let refused = VerifiedProgram::of_site(&folder, "bin/server").unwrap_err().to_string();
        assert!(refused.contains("can be changed by other users"), "{refused}");
    }

    #[test]
    fn unfinished_update_accepts_the_old_and_the_new_program_only() {
        let marker: Marker = serde_json::from_value(json!({
            "textnlp-lineage": uuid::Uuid::nil(), "textnlp-environment": "test", "textnlp-site": "here",
            "textnlp-resource": "here/server/program", "textnlp-operation": 2, "kind": "onprem.program",
            "cloud_id": "sites/here/bin/server", "complete": false,
            "spec": { "source": "/nowhere", "sha256": "new", "path": "bin/server" },
            "facts": { "previous": ["old"] },
        }))
        .unwrap();
        assert_eq!(accepted(&marker), ["new", "old"]);
    }
}
