//! Checks of this machine, and of objects that take a path in a site's folder. Reads only.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_provider::{Health, Observed, Ownership, Problem, Wanted};

use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::objects::{FolderProvider, taken_path};
use crate::table::KeyKind;
use crate::verbs::certificate;

/// Space that a site needs beside its models and programs: database, logs, configuration.
pub const SITE_BYTES: u64 = 256 << 20;
/// Files of a site, with a reserve.
const INODES: u64 = 500;

/// Checks that the state folder can be written to and programs can run from it.
pub fn state_folder(folder: &Utf8Path, problems: &mut Vec<Problem>) {
    let nearest = nearest(folder);
    if let Err(error) =
        rustix::fs::access(nearest.as_std_path(), rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
    {
        let cause = format!("{nearest} cannot be written: {}", std::io::Error::from(error));
        problems.push(Problem::new("state folder", cause, "choose a folder that you can write with `--state-dir`"));
    }
    let Ok(found) = textnlp_files::filesystem(&nearest) else { return };
    if found.no_exec {
        let cause = format!("{nearest} is on a filesystem mounted `noexec`, and programs run from it");
        problems.push(Problem::new("state folder", cause, "choose another folder with `--state-dir`"));
    }
    if found.read_only {
        let cause = format!("{nearest} is on a filesystem mounted read-only");
        problems.push(Problem::new("state folder", cause, "choose another folder with `--state-dir`"));
    }
}

/// `prerequisites.git` names a repository, and nothing can be fetched from one without `git`.
pub fn git(path: &OsStr, problems: &mut Vec<Problem>) {
    let is_program =
        |file: PathBuf| file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0);
    if !std::env::split_paths(path).any(|folder| is_program(folder.join("git"))) {
        let fix = "install git, or remove `prerequisites.git`";
        problems.push(Problem::new("prerequisites.git", "`git` is not on PATH", fix));
    }
}

/// Checks that a wanted object takes no path of another owner, that a site's folder has one owner, and that a
/// user-provided certificate can be used.
pub fn object(provider: &impl FolderProvider, wanted: &Wanted, problems: &mut Vec<Problem>) {
    let folder = SiteFolder::of(provider.state_folder(), &wanted.site);
    let unmarked = matches!(Marker::read(&folder.marker(&wanted.id)), Ok(None));
    if let Some(path) =
        taken_path(provider, wanted, &folder).filter(|_| unmarked && wanted.ownership == Ownership::Ours)
    {
        let cause = format!("{path} exists and has no marker of this program");
        problems.push(Problem::new(
            wanted.id.as_str(),
            cause,
            "check it and move it away, or choose another `--state-dir`",
        ));
    }
    match KeyKind::of(&wanted.kind) {
        Some(KeyKind::Directory) => lineages(wanted, &folder, problems),
        Some(KeyKind::Certificate) => user_certificate(wanted, problems),
        _ => {}
    }
}

/// A site whose objects have more than one lineage.
fn lineages(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
    match Marker::all(folder) {
        Err(error) => {
            let cause = format!("{} cannot be read: {error}", folder.join("objects"));
            problems.push(Problem::new(wanted.id.as_str(), cause, "make it readable for your user"));
        }
        Ok(markers) => {
            let first = markers.first().map(|marker| marker.lineage);
            if let Some(other) = markers.iter().find(|marker| Some(marker.lineage) != first) {
                let cause = format!(
                    "{} has objects of two lineages; {} is one of {}",
                    folder.root(),
                    other.resource,
                    other.lineage
                );
                problems.push(Problem::new(
                    wanted.id.as_str(),
                    cause,
                    "choose another `--state-dir` for this environment",
                ));
            }
        }
    }
}

fn user_certificate(wanted: &Wanted, problems: &mut Vec<Problem>) {
    let Ownership::External(file) = &wanted.ownership else { return };
    let cause = match certificate::observe_existing(file) {
        Observed::Present(object) => match object.health {
            Health::Ready => return,
            Health::Degraded(why) => why,
        },
        Observed::Absent => format!("{file} is not there"),
        Observed::Unknown(why) => why.0,
    };
    problems.push(Problem::new(wanted.id.as_str(), cause, "correct `tls.existing`, or set `tls: { mode: local-ca }`"));
}

/// Free space and inodes on the filesystem of each folder that is written to, with the bytes that it needs.
pub fn space<'a>(needed: impl IntoIterator<Item = (&'a Utf8Path, u64)>, problems: &mut Vec<Problem>) {
    for (folder, bytes) in needed {
        let path = nearest(folder);
        // In another folder, what runs would be deployed a second time.
        let or_elsewhere = if folder.join("sites").is_dir() { "" } else { ", or choose another `--state-dir`" };
        let Ok(textnlp_files::Filesystem { free, free_inodes, .. }) = textnlp_files::filesystem(&path) else {
            continue;
        };
        if free < bytes {
            let cause = format!("{path} has {} MB free and {} MB are needed", free >> 20, bytes >> 20);
            problems.push(Problem::new("disk", cause, format!("free some space{or_elsewhere}")));
        }
        if let Some(left) = free_inodes.filter(|left| *left < INODES) {
            let cause = format!("{path} has {left} inodes left and {INODES} are needed");
            problems.push(Problem::new("disk", cause, format!("remove files{or_elsewhere}")));
        }
    }
}

/// The folder itself, or its nearest existing parent.
pub fn nearest(path: &Utf8Path) -> Utf8PathBuf {
    path.ancestors().find(|ancestor| ancestor.exists()).map_or_else(|| Utf8PathBuf::from("/"), Utf8Path::to_owned)
}

#[cfg(test)]
mod tests {
    use textnlp_provider::CloudId;

    use super::*;

    #[test]
    fn user_provided_key_that_others_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (certificate, key_file) = (folder.path().join("site.pem"), folder.path().join("site.key"));
        let key = crate::trust::new_key().unwrap();
        let pem = crate::trust::authority(&key, "site.example", &[], 30, jiff::Timestamp::now()).unwrap();
        std::fs::write(&certificate, pem).unwrap();
        std::fs::write(&key_file, key.expose()).unwrap();
        let health = |mode| {
            std::fs::set_permissions(&key_file, std::fs::Permissions::from_mode(mode)).unwrap();
            match certificate::observe_existing(&CloudId::new(certificate.to_str().unwrap()).unwrap()) {
                Observed::Present(object) => object.health,
                other => panic!("{other:?}"),
            }
        };
        assert_eq!(health(0o600), Health::Ready);
        let Health::Degraded(why) = health(0o644) else { panic!("it is ready") };
        assert!(why.contains("permissions 0644 for") && why.contains("chmod 600 "), "{why}");
    }

    #[test]
    fn git_is_required_where_a_repository_is_configured() {
        let folder = tempfile::tempdir().unwrap();
        let problems_of = || {
            let mut problems = Vec::new();
            git(folder.path().as_os_str(), &mut problems);
            problems
        };
        assert!(problems_of().iter().any(|problem| !problem.warning && problem.place == "prerequisites.git"));
        let program = folder.path().join("git");
        std::fs::write(&program, "").unwrap();
        assert_eq!(problems_of().len(), 1, "a file that cannot be run is no program");
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(problems_of(), []);
    }
}
