use std::fmt;
use std::fs::Metadata;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::account::Account;
use crate::error::{Error, Result};

/// The most findings that are reported at once.
const MOST: usize = 8;
const STICKY: u32 = 0o1000;

/// Why other users control or read a file or folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exposure {
    /// It belongs to this user.
    Owner(u32),
    /// The folder above belongs to this user, who can replace what is in it.
    Parent(u32),
    /// Other users can write to it; its permission bits.
    Writable(u32),
    /// Other users have access to a secret; its permission bits.
    Open(u32),
    /// It is a symbolic link, which would lead elsewhere.
    Link,
    /// It is no folder.
    NotFolder,
}

/// A file or folder that other users control or read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exposed {
    /// Its path.
    pub path: PathBuf,
    /// The reason.
    pub why: Exposure,
}

impl fmt::Display for Exposed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match self.why {
            Exposure::Owner(uid) => write!(f, "{path} belongs to {}", user(uid)),
            Exposure::Parent(uid) => {
                write!(f, "{path} belongs to {}, who can replace the folders in it", user(uid))
            }
            Exposure::Writable(mode) => write!(f, "other users can write to {path} (mode {mode:04o})"),
            Exposure::Open(mode) => {
                write!(f, "permissions {mode:04o} for {path} are too open: other users have access")
            }
            Exposure::Link => write!(f, "{path} is a symbolic link, which is not followed"),
            Exposure::NotFolder => write!(f, "{path} is not a folder"),
        }
    }
}

impl Exposed {
    /// How to fix it: a shell command where one suffices.
    pub fn fix(&self) -> String {
        let path = shell_word(&self.path);
        match self.why {
            Exposure::Owner(_) => {
                let sudo = if caller() == 0 { "" } else { "sudo " };
                format!("if you trust its content: {sudo}chown -h {} {path}", caller())
            }
            Exposure::Parent(_) => "use a folder whose parents belong to you or to root".to_owned(),
            // A folder for everybody, such as `/tmp`.
            Exposure::Writable(mode) if mode & STICKY != 0 => format!("use a folder of your own in {path}"),
            Exposure::Writable(_) => format!("chmod go-w {path}"),
            Exposure::Open(_) => format!("chmod 600 {path}"),
            Exposure::Link => format!("replace {path} by the folder that it leads to"),
            Exposure::NotFolder => format!("move {path} away, or use another folder"),
        }
    }
}

/// The effective user of this process.
pub fn caller() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// A user for messages: `alice (uid 1001)`.
pub fn user(uid: u32) -> String {
    user_name(uid).map_or_else(|| format!("uid {uid}"), |name| format!("{name} (uid {uid})"))
}

/// The name of a user in `/etc/passwd`; `None` for users of other sources, and for names that a shell would not take as
/// a word.
pub fn user_name(uid: u32) -> Option<String> {
    let is_plain = |name: &str| name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
    let found = Account::find(|account| account.uid == uid && is_plain(&account.name)).ok()?;
    found.map(|account| account.name)
}

/// The account behind this process: the login from which it was started where the kernel records it, which `sudo` and a change of user
/// keep, else the real user. Its number stands for an account without a name. No variable has a say in it.
pub fn operator() -> String {
    let login = std::fs::read_to_string("/proc/self/loginuid").ok();
    let uid = recorded_login(login.as_deref()).unwrap_or_else(|| rustix::process::getuid().as_raw());
    user_name(uid).unwrap_or_else(|| format!("uid {uid}"))
}

/// The kernel writes the largest number for a process without a login (audit_set_loginuid).
fn recorded_login(file: Option<&str>) -> Option<u32> {
    file?.trim().parse().ok().filter(|uid| *uid != u32::MAX)
}

/// Appends what other users control at a path of this process's user: the path itself, which has to be a folder, and what is in it, down
/// to `depth` levels. Nothing that does not exist is reported. Links are not followed; below the folder itself only their owner counts.
pub fn check_folder(path: impl AsRef<Path>, depth: usize, found: &mut Vec<Exposed>) -> Result<()> {
    let path = path.as_ref();
    let Some(there) = metadata(path)? else { return Ok(()) };
    let why = if there.uid() != caller() {
        Some(Exposure::Owner(there.uid()))
    } else if there.is_symlink() {
        Some(Exposure::Link)
    } else if !there.is_dir() {
        Some(Exposure::NotFolder)
    } else {
        writable(&there)
    };
    match why {
        // What is in it is in the same hands.
        Some(why) => found.push(Exposed { path: path.to_owned(), why }),
        None => check_entries(path, depth, found)?,
    }
    Ok(())
}

fn check_entries(folder: &Path, depth: usize, found: &mut Vec<Exposed>) -> Result<()> {
    if depth == 0 {
        return Ok(());
    }
    each_entry(folder, found, |path, there, found| {
        if there.is_dir() {
            return check_folder(path, depth - 1, found);
        }
        found.extend(of_others(there).map(|why| Exposed { path: path.to_owned(), why }));
        Ok(())
    })
}

/// What other users control of the plain files in a folder of this process's user.
pub fn check_files(folder: impl AsRef<Path>, found: &mut Vec<Exposed>) -> Result<()> {
    each_entry(folder.as_ref(), found, |path, there, found| {
        let why = of_others(there).filter(|_| !there.is_dir());
        found.extend(why.map(|why| Exposed { path: path.to_owned(), why }));
        Ok(())
    })
}

/// Checks what is in a folder. Other processes may remove entries meanwhile, and the folder too.
fn each_entry(
    folder: &Path,
    found: &mut Vec<Exposed>,
    check: impl Fn(&Path, &Metadata, &mut Vec<Exposed>) -> Result<()>,
) -> Result<()> {
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries.map_err(Error::at("list", folder))?,
    };
    for entry in entries {
        if found.len() >= MOST {
            break;
        }
        let path = entry.map_err(Error::at("list", folder))?.path();
        if let Some(there) = metadata(&path)? {
            check(&path, &there, found)?;
        }
    }
    Ok(())
}

/// Checks a folder above those of this process's user, and all folders above that one, as sshd does: who owns or can
/// write to one of them can replace what is in it. They belong to this process's user or to root, for `sudo` also to its
/// caller, and a sticky bit protects what is in them. The path has to be absolute and free of links.
pub fn check_parents(path: impl AsRef<Path>) -> Result<Option<Exposed>> {
    let path = path.as_ref();
    for (level, folder) in path.ancestors().enumerate() {
        let Some(there) = metadata(folder)? else { continue };
        // Groups of administrators may write to folders such as `/usr/local`.
        let refused = if level == 0 { 0o022 } else { 0o002 };
        let why = if level == 0 && !there.is_dir() {
            Some(Exposure::NotFolder)
        } else if level == 0 && ![caller(), 0].contains(&there.uid()) {
            Some(Exposure::Owner(there.uid()))
        } else if !is_trusted(there.uid()) {
            Some(Exposure::Parent(there.uid()))
        } else {
            (there.mode() & STICKY == 0 && there.mode() & refused != 0)
                .then(|| Exposure::Writable(there.mode() & 0o7777))
        };
        if let Some(why) = why {
            return Ok(Some(Exposed { path: folder.to_owned(), why }));
        }
    }
    Ok(None)
}

/// Checks a file or folder that decides what this process does, such as settings in the working directory, as git checks
/// a repository: it belongs to this process's user or to root, for `sudo` also to its caller. Links are followed.
pub fn check_settings(path: impl AsRef<Path>) -> Result<Option<Exposed>> {
    let path = path.as_ref();
    let owner = std::fs::metadata(path).map_err(Error::at("check", path))?.uid();
    Ok((!is_trusted(owner)).then(|| Exposed { path: path.to_owned(), why: Exposure::Owner(owner) }))
}

/// Checks a file that decides which programs run, such as a saved plan: as [`check_settings`], and not every user may write to it.
/// A group may: on many systems each user has one.
pub fn check_instructions(path: impl AsRef<Path>) -> Result<Option<Exposed>> {
    let path = path.as_ref();
    if let Some(exposed) = check_settings(path)? {
        return Ok(Some(exposed));
    }
    let mode = std::fs::metadata(path).map_err(Error::at("check", path))?.mode() & 0o7777;
    Ok((mode & 0o002 != 0).then(|| Exposed { path: path.to_owned(), why: Exposure::Writable(mode) }))
}

/// Whether a user decides anyway what this process does. Who called it by `sudo` also chose its arguments.
fn is_trusted(uid: u32) -> bool {
    let sudo = std::env::var("SUDO_UID").ok().and_then(|uid| uid.parse().ok());
    [caller(), 0].contains(&uid) || sudo == Some(uid) || is_outside(uid)
}

/// Whether a user id represents all users outside of this user namespace, such as the host's root in a container.
fn is_outside(uid: u32) -> bool {
    const OVERFLOW: u32 = 65_534;
    // `FIRST OUTSIDE COUNT`, see user_namespaces(7).
    let covers = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|number| number.parse().ok()).collect();
        matches!(numbers[..], [first, _, count] if (first..first + count).contains(&u64::from(uid)))
    };
    uid == OVERFLOW && std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !map.lines().any(covers))
}

/// Checks a file with a secret, as ssh and PostgreSQL check private keys: it belongs to this process's user or to root, and other
/// users have no access. A file of root may be readable for its group, if another user than root reads it. Links are followed: those of certbot and of mounted volumes are links.
pub fn check_secret(path: impl AsRef<Path>) -> Result<Option<Exposed>> {
    let path = path.as_ref();
    let there = std::fs::metadata(path).map_err(Error::at("check", path))?;
    // A pipe has no content that stays.
    if !there.is_file() {
        return Ok(None);
    }
    let refused = if there.uid() == 0 && caller() != 0 { 0o037 } else { 0o077 };
    let why = if ![caller(), 0].contains(&there.uid()) {
        Some(Exposure::Owner(there.uid()))
    } else {
        (there.mode() & refused != 0).then(|| Exposure::Open(there.mode() & 0o7777))
    };
    Ok(why.map(|why| Exposed { path: path.to_owned(), why }))
}

/// Whether only this process's user can change a file: it belongs to that user, and others cannot write to it.
pub fn is_own(there: &Metadata) -> bool {
    of_others(there).is_none()
}

fn of_others(there: &Metadata) -> Option<Exposure> {
    if there.uid() != caller() {
        return Some(Exposure::Owner(there.uid()));
    }
    // The permission bits of a link mean nothing.
    if there.is_symlink() { None } else { writable(there) }
}

fn writable(there: &Metadata) -> Option<Exposure> {
    (there.mode() & 0o022 != 0).then(|| Exposure::Writable(there.mode() & 0o7777))
}

fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::symlink_metadata(path) {
        Ok(there) => Ok(Some(there)),
        // Nothing is below a file either.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => Ok(None),
        Err(error) => Err(Error::at("check", path)(error)),
    }
}

fn shell_word(path: &Path) -> String {
    let text = path.to_string_lossy();
    let is_plain = text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-:=@%+,".contains(c));
    if is_plain { text.into_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn found(path: &Path, depth: usize) -> Vec<Exposed> {
        let mut found = Vec::new();
        check_folder(path, depth, &mut found).unwrap();
        found
    }

    #[test]
    fn links_and_writable_levels_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        assert_eq!(found(&root.join("missing"), 3), []);
        fs::create_dir_all(root.join("bin/deep")).unwrap();
        fs::write(root.join("bin/server"), "program").unwrap();
        for path in ["bin", "bin/deep", "bin/server"] {
            set_mode(&root.join(path), 0o755);
        }
        assert_eq!(found(root, 3), []);
        for (path, mode) in [("bin", 0o777), ("bin/deep", 0o775), ("bin/server", 0o666)] {
            set_mode(&root.join(path), mode);
            let path = root.join(path);
            assert_eq!(found(root, 3), [Exposed { path: path.clone(), why: Exposure::Writable(mode) }]);
            set_mode(&path, 0o755);
        }
        set_mode(&root.join("bin/server"), 0o666);
        assert_eq!(found(root, 1), [], "what is deeper is not looked at");
        symlink(root.join("bin"), root.join("link")).unwrap();
        assert_eq!(found(&root.join("link"), 3), [Exposed { path: root.join("link"), why: Exposure::Link }]);
        assert_eq!(found(&root.join("bin/server"), 3)[0].why, Exposure::NotFolder);
    }

    #[test]
    fn owners_other_than_the_caller_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "").unwrap();
        // Only root may give a file away. Another user sees root's folder instead.
        let (path, owner) = if caller() == 0 {
            std::os::unix::fs::chown(&file, Some(1001), None).unwrap();
            (folder.path().to_owned(), 1001)
        } else {
            (PathBuf::from("/"), 0)
        };
        let depth = usize::from(caller() == 0);
        assert!(found(&path, depth).iter().any(|exposed| exposed.why == Exposure::Owner(owner)));
        assert!(check_parents(Path::new("/")).unwrap().is_none(), "root may own what is above");
    }

    #[test]
    fn parents_are_protected_by_a_sticky_bit_only() {
        let folder = tempfile::tempdir().unwrap();
        let (shared, own) = (folder.path().join("shared"), folder.path().join("shared/own"));
        fs::create_dir_all(&own).unwrap();
        set_mode(&own, 0o755);
        set_mode(&shared, 0o1777);
        assert_eq!(check_parents(&own).unwrap(), None);
        assert_eq!(check_parents(own.join("not there yet")).unwrap(), None);
        set_mode(&shared, 0o777);
        assert_eq!(
            check_parents(&own).unwrap(),
            Some(Exposed { path: shared.clone(), why: Exposure::Writable(0o777) })
        );
        // Only root may give a folder away.
        set_mode(&shared, 0o755);
        if std::os::unix::fs::chown(&shared, Some(1001), None).is_ok() {
            assert_eq!(check_parents(&own).unwrap(), Some(Exposed { path: shared, why: Exposure::Parent(1001) }));
        }
    }

    #[test]
    fn settings_of_other_users_are_found() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(check_settings(folder.path()).unwrap(), None);
        assert_eq!(check_settings("/etc/passwd").unwrap(), None, "root may own them");
        if std::os::unix::fs::chown(folder.path(), Some(1001), None).is_ok() {
            assert_eq!(check_settings(folder.path()).unwrap().map(|exposed| exposed.why), Some(Exposure::Owner(1001)));
        }
    }

    #[test]
    fn secrets_that_others_read_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("it's secret"), folder.path().join("link"));
        fs::write(&file, "s").unwrap();
        symlink(&file, &link).unwrap();
        for mode in [0o644, 0o660, 0o602] {
            set_mode(&file, mode);
            let exposed = check_secret(&link).unwrap().unwrap();
            assert_eq!(exposed.why, Exposure::Open(mode));
        }
        let exposed = check_secret(&file).unwrap().unwrap();
        assert!(exposed.to_string().contains("permissions 0602 for"), "{exposed}");
        assert!(exposed.fix().ends_with(r"/it'\''s secret'"), "{}", exposed.fix());
        set_mode(&file, 0o400);
        assert_eq!(check_secret(&link).unwrap(), None);
        assert!(check_secret(folder.path().join("none")).is_err());
    }

    #[test]
    fn users_have_names() {
        assert_eq!(user(0), "root (uid 0)");
        assert_eq!(user(3_999_999_999), "uid 3999999999");
    }

    #[test]
    fn operator_is_the_login_that_the_kernel_recorded_or_the_real_user() {
        assert_eq!(recorded_login(Some("1001\n")), Some(1001));
        assert_eq!(recorded_login(Some("4294967295")), None, "no login");
        assert_eq!(recorded_login(Some("alice")), None);
        assert_eq!(recorded_login(None), None, "this kernel records none");
        assert!(!operator().is_empty());
    }
}
