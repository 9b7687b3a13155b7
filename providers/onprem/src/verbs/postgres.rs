//! The folder of a PostgreSQL: created once, by the installed programs, for the user that runs them. Its content
//! belongs to the server program's `postgres`.
//!
//! PostgreSQL refuses to run as root. For root its folder is outside of the site's, which no other user may enter, and
//! a link points to it.

use std::io::Read as _;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_keys::{
    Marker, SiteFolder,
    files::{self, Stamp},
};
use textnlp_provider::{Error, ErrorKind, Progress, Result, finished, first_line};
use tokio::process::Command;
use tokio::runtime::Handle;

use super::{Observation, ObservedObject, Work};
use crate::jobs::JobStatus;
use crate::spec::PostgresSpec;
use crate::user::SystemUser;

/// The parent of the folders, for root.
pub(crate) const ELSEWHERE: &str = "/var/lib/textnlp-deploy";
/// The oldest supported version.
const OLDEST: u32 = 15;
/// Other programs run as this user too.
pub(crate) const SHARED_USER: &str = "nobody";
/// Timeout of `postgres --version`, on a busy machine.
const VERSION_TIMEOUT: Duration = Duration::from_secs(10);
/// Timeout of `initdb`, which writes and flushes 40 MB.
const INITDB_TIMEOUT: Duration = Duration::from_secs(300);
/// See `server/sites/src/postgres`.
const OWNER: &str = "textnlp_owner";

/// The user of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) name: &'static str,
    pub(crate) ids: (u32, u32),
}

/// The user of servers when this process is root: that of PostgreSQL's package, else that of this product, else a shared
/// one. The error says what is missing.
pub(crate) fn user() -> std::result::Result<Option<User>, String> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "textnlp", SHARED_USER] {
        let found = SystemUser::find(name).map_err(|error| format!("read /etc/passwd: {error}"))?;
        if let Some(found) = found.filter(|user| user.uid != 0) {
            let ids = (found.uid, found.groups.first().copied().unwrap_or(found.uid));
            return Ok(Some(User { name, ids }));
        }
    }
    Err("PostgreSQL refuses to run as root, and there is no unprivileged system user for it".to_owned())
}

/// The programs of a version: Debian's path, Red Hat's, then `PATH`.
pub(crate) fn programs(version: u32) -> Option<Utf8PathBuf> {
    let mut candidates = vec![format!("/usr/lib/postgresql/{version}/bin"), format!("/usr/pgsql-{version}/bin")];
    if let Some(place) = std::env::var("TEXTNLP_POSTGRES_BIN").ok().filter(|place| version_in(place) == Some(version)) {
        candidates.insert(0, place);
    }
    let path = std::env::var("PATH").unwrap_or_default();
    // An empty or relative entry is the working directory, whose files others may have put there.
    let places = path.split(':').filter(|place| place.starts_with('/'));
    candidates.extend(places.filter(|place| version_in(place) == Some(version)).map(str::to_owned));
    candidates
        .into_iter()
        .map(Utf8PathBuf::from)
        .find(|place| place.join("initdb").is_file() && place.join("postgres").is_file())
}

/// The newest installed version, from `least` on.
pub(crate) fn newest(least: u32) -> Option<u32> {
    // Twenty years of versions.
    (least..least + 20).rev().find(|version| programs(*version).is_some())
}

fn version_in(place: &str) -> Option<u32> {
    let program = Utf8Path::new(place).join("postgres");
    if !program.is_file() {
        return None;
    }
    // `postgres (PostgreSQL) 15.14 (Debian …)`
    let said = first_line(&program, &["--version"], VERSION_TIMEOUT)?;
    said.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok())
}

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: PostgresSpec = work.spec()?;
    let link = work.folder.join(&spec.path);
    work.refuse_strangers(&link)?;
    refuse_copy(&link).map_err(work.io(&link))?;
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    let mut user = user().map_err(|why| work.invalid(why))?;
    // The files of an existing folder stay with their owner, also when a better user was added since.
    if let (Some(user), Some(folder)) = (&mut user, elsewhere(&link))
        && let Ok(found) = std::fs::metadata(&folder)
        && found.uid() != 0
    {
        user.ids = (found.uid(), found.gid());
    }
    // The folder of an operation that did not complete is partial.
    let is_whole = work.marker.as_ref().is_some_and(|marker| marker.complete) && (spec.shared || is_made(&link));
    if work.marker.as_ref().is_none_or(|marker| marker.complete || marker.operation != work.op.id) {
        let mut facts = Map::new();
        facts.insert("whole".to_owned(), json!(is_whole));
        work.claim(&cloud_id, facts)?;
    }
    let is_whole = is_whole || work.marker.as_ref().and_then(|marker| marker.facts.get("whole")) == Some(&json!(true));
    let unique = format!("{} {} {}", link, work.op.lineage, work.op.id);
    let name = format!("{}-{}", work.op.site, &hex::encode(Sha256::digest(unique))[..16]);
    let folder = home(&name, &link, user.as_ref()).map_err(work.io(&link))?;
    if spec.follows || (is_whole && (spec.shared || is_made(&link))) {
        let marker = work.complete(&cloud_id, Map::new())?;
        return work.done(&marker).await;
    }
    let version = newest(spec.version).ok_or_else(|| work.invalid(missing(spec.version)))?;
    let programs = programs(version).ok_or_else(|| work.invalid(missing(spec.version)))?;
    let subject = work.op.resource.to_string();
    let make = move |_| async move {
        let made = tokio::task::spawn_blocking(move || make(&programs, &folder, user.as_ref()));
        let made = made.await.map_err(std::io::Error::other).and_then(|made| made);
        made.map_err(|error| Error::new(ErrorKind::Unavailable, "create PostgreSQL for", subject).because(error))?;
        Ok(Map::new())
    };
    match work.provider.jobs().look(work.op, make).await? {
        JobStatus::GoesOn(_) => Ok(work.pending(json!({ "step": "make" }), "creates an empty PostgreSQL")),
        JobStatus::Ended(facts) => {
            let marker = work.complete(&cloud_id, facts)?;
            work.done(&marker).await
        }
    }
}

/// The socket of a server's WAL archiver: beside its folder, see `server/sites/src/postgres/archive.rs`.
pub fn archive_socket(folder: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{folder}.archive"))
}

/// The hint where no PostgreSQL is installed.
pub(crate) fn missing(version: u32) -> String {
    format!(
        "PostgreSQL {version} or newer is not installed: on Debian and Ubuntu, apt-get install postgresql-{version}"
    )
}

/// The target of a link, if it is a folder directly in [`ELSEWHERE`]: a target with `..` would lead root to any other.
pub(crate) fn elsewhere(link: &Utf8Path) -> Option<Utf8PathBuf> {
    let is_inside =
        |there: &Utf8PathBuf| there.parent() == Some(Utf8Path::new(ELSEWHERE)) && there.file_name().is_some();
    link.read_link_utf8().ok().filter(is_inside)
}

/// The file with path and stamp of the link to a folder of [`ELSEWHERE`], beside it, where only root writes. A link that was
/// put back in its place has the path, one that moved with its state has the stamp.
fn record_of(folder: &Utf8Path) -> Utf8PathBuf {
    Utf8PathBuf::from(format!("{folder}.link"))
}

/// Refuses a link that was copied with its state, or that its author made: the database is the one of another link.
fn refuse_copy(link: &Utf8Path) -> std::io::Result<()> {
    let Some(folder) = elsewhere(link) else { return Ok(()) };
    let recorded = match std::fs::read(record_of(&folder)) {
        Ok(text) => serde_json::from_slice::<Value>(&text).unwrap_or_default(),
        // A folder of an earlier version.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if recorded["path"] == link.as_str() || recorded["stamp"] == json!(Stamp::of(link)?) {
        return Ok(());
    }
    let record = record_of(&folder);
    let why = format!(
        "{folder} is the database of another state folder, of which this state is a copy; if the state was moved, remove {record}"
    );
    Err(std::io::Error::new(std::io::ErrorKind::PermissionDenied, why))
}

/// The folder itself, created where it is missing: the target of the link, else a new one of this name.
fn home(name: &str, link: &Utf8Path, user: Option<&User>) -> std::io::Result<Utf8PathBuf> {
    if let Some(parent) = link.parent() {
        files::make_folder(parent)?;
    }
    let folder = match user {
        None => link.to_owned(),
        Some(_) => {
            std::fs::create_dir_all(ELSEWHERE)?;
            std::fs::set_permissions(ELSEWHERE, std::fs::Permissions::from_mode(0o711))?;
            elsewhere(link).unwrap_or_else(|| Utf8Path::new(ELSEWHERE).join(name))
        }
    };
    match std::fs::create_dir(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error),
        _ => std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?,
    }
    if let Some(user) = user {
        chown(&folder, Some(user.ids.0), Some(user.ids.1))?;
        match symlink(&folder, link) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists && link.read_link_utf8()? == folder => {}
            other => other?,
        }
        if folder.parent() == Some(Utf8Path::new(ELSEWHERE)) {
            let record = json!({ "path": link, "stamp": Stamp::of(link)? });
            files::put(&record_of(&folder), record.to_string().as_bytes(), 0o600)?;
        }
    }
    Ok(folder)
}

fn make(programs: &Utf8Path, folder: &Utf8Path, user: Option<&User>) -> std::io::Result<()> {
    let (data, beside) = (folder.join("data"), folder.join("data.new"));
    files::remove_tree(&beside)?;
    initdb(programs, &beside, user, INITDB_TIMEOUT)?;
    files::remove_tree(&data)?;
    std::fs::rename(&beside, &data)?;
    files::flush_folder(folder)
}

/// Runs `initdb`. Needs a tokio runtime, on a thread that may block.
fn initdb(programs: &Utf8Path, data: &Utf8Path, user: Option<&User>, within: Duration) -> std::io::Result<()> {
    // In a session of its own, without the terminal of root: the server's user could put input into it (`TIOCSTI`).
    let mut command = Command::new("setsid");
    // The PostgreSQL supervisor writes the access rules (`pg_hba.conf`).
    command.arg(programs.join("initdb")).args([
        "-U",
        OWNER,
        "-A",
        "peer",
        "--auth-host=reject",
        "-E",
        "UTF8",
        "--locale=C",
        "--data-checksums",
        "-D",
    ]);
    command.arg(data).env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C").current_dir("/");
    if let Some(user) = user {
        command.uid(user.ids.0).gid(user.ids.1);
    }
    let failed = |why: String| std::io::Error::other(format!("initdb: {why}"));
    let ended = Handle::current().block_on(finished(command, within));
    let ended = ended.map_err(|error| failed(format!("start it by `setsid` (util-linux): {error}")))?;
    let Some((status, _, errors)) = ended else {
        return Err(failed(format!("it did not end within {} s and was stopped", within.as_secs())));
    };
    match status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&errors).trim().replace('\n', "; "))),
    }
}

/// An empty scratch PostgreSQL for a verification: its folder, its programs and its user. Dropping it removes the
/// folder.
#[derive(Debug)]
pub struct ScratchInstance {
    /// The folder.
    pub folder: Utf8PathBuf,
    /// Its programs.
    pub programs: Utf8PathBuf,
    /// User and group, where it cannot run as the current user.
    pub user: Option<(u32, u32)>,
}

impl ScratchInstance {
    /// Creates one: in `place`, or outside where other users may not enter that. Takes seconds. The error says what is
    /// missing.
    pub fn make(place: &Utf8Path) -> std::result::Result<Self, String> {
        let version = newest(OLDEST).ok_or_else(|| missing(OLDEST))?;
        let beside = Self::empty(place, version)?;
        let user = user()?;
        make(&beside.programs, &beside.folder, user.as_ref()).map_err(|error| error.to_string())?;
        Ok(beside)
    }

    /// The folder alone, for files of exactly this version.
    pub fn empty(place: &Utf8Path, version: u32) -> std::result::Result<Self, String> {
        let programs = programs(version).ok_or_else(|| missing(version))?;
        let user = user()?;
        clear();
        let unique = &hex::encode(Sha256::digest(place.as_str()))[..16];
        let name = format!("{VERIFY}{}-{unique}", std::process::id());
        let folder = home(&name, &place.join("postgres"), user.as_ref()).map_err(|error| error.to_string())?;
        Ok(Self { folder, programs, user: user.as_ref().map(|user| user.ids) })
    }

    /// What is missing on this machine to read files of a version.
    pub fn lacks(version: u32) -> Option<String> {
        programs(version).is_none().then(|| {
            format!("PostgreSQL {version} wrote it, and is not installed: on Debian and Ubuntu, apt-get install postgresql-{version}")
        })
    }
}

/// The prefix of verification folders, followed by the owner's pid, so that stale ones are recognised.
const VERIFY: &str = "verify-";

/// Removes the folders of killed verifications, for root.
fn clear() {
    for entry in Utf8Path::new(ELSEWHERE).read_dir_utf8().into_iter().flatten().flatten() {
        let pid = entry.file_name().strip_prefix(VERIFY).and_then(|rest| rest.split_once('-')?.0.parse::<u32>().ok());
        if pid.is_some_and(|pid| !Utf8PathBuf::from(format!("/proc/{pid}")).exists()) {
            // A failed removal is retried by the next verification.
            let _ = match entry.file_type() {
                Ok(kind) if kind.is_dir() => files::remove_tree(entry.path()),
                _ => files::remove_file(entry.path()),
            };
        }
    }
}

impl Drop for ScratchInstance {
    fn drop(&mut self) {
        // Secrets in a folder that cannot be removed exist elsewhere too.
        let _ = files::remove_tree(&self.folder);
        let _ = files::remove_file(&archive_socket(&self.folder));
        let _ = files::remove_file(&record_of(&self.folder));
    }
}

fn is_made(link: &Utf8Path) -> bool {
    version_of(link).is_some()
}

/// The version that created a folder.
fn version_of(link: &Utf8Path) -> Option<u32> {
    // Its user can put a pipe or a device there.
    let mut text = String::new();
    files::open_plain(&link.join("data/PG_VERSION")).ok()?.take(16).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}

pub(super) fn remove(work: &Work<'_>) -> Result<()> {
    let spec: PostgresSpec = work.applied()?;
    let link = work.folder.join(&spec.path);
    // The next database starts empty.
    if !spec.follows {
        let dump = work.folder.join(crate::names::DUMP);
        files::remove_file(&dump).map_err(work.io(&dump))?;
    }
    if link.is_symlink() {
        // A link to another folder was put there by another owner.
        if let Some(folder) = elsewhere(&link) {
            refuse_copy(&link).map_err(work.io(&link))?;
            files::remove_file(&record_of(&folder)).map_err(work.io(&folder))?;
            files::remove_tree(&folder).map_err(work.io(&folder))?;
            files::remove_file(&archive_socket(&folder)).map_err(work.io(&folder))?;
        }
        return files::remove_file(&link).map_err(work.io(&link));
    }
    files::remove_file(&archive_socket(&link)).map_err(work.io(&link))?;
    files::remove_tree(&link).map_err(work.io(&link))
}

pub(super) fn observe(site: &SiteFolder, marker: &Marker) -> Result<Observation> {
    let spec: PostgresSpec = marker
        .spec
        .typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, "read", marker.resource.to_string()).because(error))?;
    let link = site.join(&spec.path);
    let found = match std::fs::metadata(&link) {
        Ok(found) => found,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Observation::Absent),
        Err(error) => return Err(Error::io("check", link.as_str(), error)),
    };
    let version = version_of(&link);
    // A shared one is restored by the PostgreSQL supervisor, and never recreated once it was there.
    if version.is_none() && !spec.follows && !(spec.shared && marker.complete) {
        return Ok(Observation::Absent);
    }
    let folder = link.canonicalize_utf8().map_err(|error| Error::io("check", link.as_str(), error))?;
    let mut look = ObservedObject::default();
    let used = version.or_else(|| newest(spec.version));
    match used.and_then(programs) {
        Some(programs) => drop(look.output("programs", programs.as_str())),
        None => look.trouble = Some(missing(used.unwrap_or(spec.version))),
    }
    let user = (found.uid() != rustix::process::geteuid().as_raw()).then(|| json!([found.uid(), found.gid()]));
    look.output("folder", folder.as_str()).output("sockets", folder.join("run").as_str());
    look.output("user", user.unwrap_or(Value::Null))
        .output("version", json!(version))
        .output("schema", json!(spec.schema));
    if found.permissions().mode() & 0o077 != 0 {
        look.drift("mode", "other users can enter it");
    }
    Ok(Observation::There(look))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_leads_to_a_folder_of_databases_and_nowhere_else() {
        let dir = tempfile::tempdir().unwrap();
        let link = Utf8PathBuf::try_from(dir.path().join("postgres")).unwrap();
        for (target, is_followed) in [
            (format!("{ELSEWHERE}/1234"), true),
            (format!("{ELSEWHERE}/../../../etc"), false),
            (format!("{ELSEWHERE}/.."), false),
            (format!("{ELSEWHERE}/1234/.."), false),
            (format!("{ELSEWHERE}/1234/data"), false),
            (ELSEWHERE.to_owned(), false),
            ("/etc".to_owned(), false),
        ] {
            symlink(&target, &link).unwrap();
            assert_eq!(elsewhere(&link).is_some(), is_followed, "{target}");
            std::fs::remove_file(&link).unwrap();
        }
    }

    /// Runs this script as `initdb`, for a folder that does not exist yet.
    async fn run_as_initdb(script: &str, within: Duration) -> (tempfile::TempDir, std::io::Result<()>) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::try_from(dir.path().to_owned()).unwrap();
        // Under a temporary name: a file that is open for writing cannot be executed.
        let (new, program) = (folder.join("new"), folder.join("initdb"));
        std::fs::write(&new, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(&new, &program).unwrap();
        let ran = tokio::task::spawn_blocking(move || initdb(&folder, &folder.join("data"), None, within));
        let ran = ran.await.unwrap();
        (dir, ran)
    }

    #[tokio::test]
    async fn initdb_runs_in_a_session_of_its_own_without_a_terminal() {
        // Of `/proc/PID/stat`: the session, and the number of the terminal.
        let script = "for folder; do :; done; echo $$ $(cut -d' ' -f6,7 /proc/$$/stat) >$folder";
        let (dir, ran) = run_as_initdb(script, INITDB_TIMEOUT).await;
        ran.unwrap();
        let text = std::fs::read_to_string(dir.path().join("data")).unwrap();
        let fields: Vec<&str> = text.split_whitespace().collect();
        assert!(matches!(fields[..], [pid, session, "0"] if pid == session), "{text}");
    }

    #[tokio::test]
    async fn failing_and_endless_initdb_are_errors_with_their_reason() {
        let failed = async |script, within| run_as_initdb(script, within).await.1.unwrap_err().to_string();
        let said = failed("echo no room >&2; echo for it >&2; exit 1", INITDB_TIMEOUT).await;
        assert_eq!(said, "initdb: no room; for it");
        let said = failed("exec sleep 1000", Duration::ZERO).await;
        assert!(said.contains("did not end within 0 s"), "{said}");
    }
}
