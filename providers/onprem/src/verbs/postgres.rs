//! The folder of a PostgreSQL: created once, by the installed programs, for the user that runs them. Its content
//! belongs to the server program's `postgres`.
//!
//! PostgreSQL refuses to run as root. For root its folder is outside of the site's, which no other user may enter, and
//! a link points to it.

use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_keys::{Marker, SiteFolder, files};
use textnlp_provider::{Error, ErrorKind, Progress, Result};

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
    let said = std::process::Command::new(program).arg("--version").env_clear().stdin(Stdio::null()).output().ok()?;
    // `postgres (PostgreSQL) 15.14 (Debian …)`
    let said = String::from_utf8(said.stdout).ok()?;
    said.split_whitespace().find_map(|word| word.split('.').next()?.parse().ok())
}

pub(super) async fn put(work: &Work<'_>) -> Result<Progress> {
    let spec: PostgresSpec = work.spec()?;
    let link = work.folder.join(&spec.path);
    work.refuse_strangers(&link)?;
    let cloud_id = work.folder.cloud_id(&spec.path)?;
    let mut user = user().map_err(|why| work.invalid(why))?;
    // The files of an existing folder stay with their owner, also when a better user was added since.
    if let (Some(user), Ok(folder)) = (&mut user, link.read_link_utf8())
        && folder.starts_with(ELSEWHERE)
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
            let there = link.read_link_utf8().ok().filter(|there| there.starts_with(ELSEWHERE));
            there.unwrap_or_else(|| Utf8Path::new(ELSEWHERE).join(name))
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
    }
    Ok(folder)
}

fn make(programs: &Utf8Path, folder: &Utf8Path, user: Option<&User>) -> std::io::Result<()> {
    let (data, beside) = (folder.join("data"), folder.join("data.new"));
    files::remove_tree(&beside)?;
    let mut initdb = std::process::Command::new(programs.join("initdb"));
    // The PostgreSQL supervisor writes the access rules (`pg_hba.conf`).
    initdb.args([
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
    initdb
        .arg(&beside)
        .env_clear()
        .env("PATH", "/usr/bin:/bin")
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::null());
    if let Some(user) = user {
        initdb.uid(user.ids.0).gid(user.ids.1);
    }
    let said = initdb.output()?;
    if !said.status.success() {
        let why = String::from_utf8_lossy(&said.stderr).trim().replace('\n', "; ");
        return Err(std::io::Error::other(format!("initdb: {why}")));
    }
    files::remove_tree(&data)?;
    std::fs::rename(&beside, &data)?;
    files::flush_folder(folder)
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
    }
}

fn is_made(link: &Utf8Path) -> bool {
    version_of(link).is_some()
}

/// The version that created a folder.
fn version_of(link: &Utf8Path) -> Option<u32> {
    std::fs::read_to_string(link.join("data/PG_VERSION")).ok()?.trim().parse().ok()
}

pub(super) fn remove(work: &Work<'_>) -> Result<()> {
    let spec: PostgresSpec = work.applied()?;
    let link = work.folder.join(&spec.path);
    // The next database starts empty.
    if !spec.follows {
        let dump = work.folder.join(crate::lower::DUMP);
        files::remove_file(&dump).map_err(work.io(&dump))?;
    }
    if let Ok(folder) = link.read_link_utf8() {
        // A link to another folder was put there by another owner.
        if folder.starts_with(ELSEWHERE) {
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
