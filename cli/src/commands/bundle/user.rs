//! The user that runs an installed environment. The first installation by root chooses it and records it in the site's
//! settings, where later commands of root find it.

use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;
use rustix::fs::{Access, OFlags};
use textnlp_bundle::manifest::Item;
use textnlp_files::user;
use textnlp_provider::{Problem, finished};
use tokio::process::Command;
use tokio::runtime::Handle;

use textnlp_service::bundle::site;
use textnlp_service::bundle::user::{name_of, not_recordable, owner, with_user};

use super::install::requested_state;
use super::preflight;
use crate::clouds::SystemUser;
use crate::commands::prelude::*;
use crate::service_user;

/// The user that is created where no other is named.
const DEFAULT: &str = "textnlp";
/// The home directory of the created user. The folder itself is not created.
const HOME: &str = "/var/lib/textnlp";
/// The flags of shadow's `useradd`.
const USERADD: &[&str] =
    &["--system", "--user-group", "--home-dir", HOME, "--no-create-home", "--shell", "/usr/sbin/nologin"];
/// Programs that create a system user, with their arguments before its name. Only root can write to their folders.
const TOOLS: [(&str, &[&str]); 3] = [
    ("/usr/sbin/useradd", USERADD),
    ("/sbin/useradd", USERADD),
    ("/bin/busybox", &["adduser", "-S", "-D", "-H", "-h", HOME, "-s", "/sbin/nologin"]),
];
/// Timeout of such a program, which may wait for the lock of /etc/passwd or for a directory service.
const ADD_TIMEOUT: Duration = Duration::from_secs(60);
/// The uid for access checks while the user does not exist: the kernel's number for users without a number.
const NOBODY: u32 = 65534;
const GUIDE: &str = "docs/guide/security.md, \"Choose the user\"";

/// The user of an installation by root.
pub struct ServiceUser {
    /// The name.
    pub name: String,
    /// `None` if this machine does not have it.
    account: Option<SystemUser>,
    /// Whether the installation creates a missing account.
    is_default: bool,
}

impl ServiceUser {
    /// Chooses the user for an environment. `None` if the caller is not root, the environment runs elsewhere, or what is
    /// deployed already decides. `bundled` is the environment with the items of its bundle; for a stream it is unknown
    /// before the stream is unpacked.
    pub fn choose(
        session: &Session,
        requested: Option<&str>,
        root: &Utf8Path,
        name: &str,
        bundled: Option<(&str, &[Item])>,
    ) -> Result<Option<Self>, Failure> {
        let find = |name: &str| SystemUser::find(name).context("read /etc/passwd");
        let me = rustix::process::geteuid();
        if !me.is_root() {
            return match requested {
                Some(other) if find(other)?.is_none_or(|user| user.uid != me.as_raw()) => {
                    let error = anyhow::anyhow!("only root can install for another user, `{other}`");
                    Err(Failure::usage("not_root", error).hint("run it as root, or omit --user"))
                }
                _ => Ok(None),
            };
        }
        let state = site::wanted_state(root, requested_state(session).as_deref())?;
        let deployed = state.join(name);
        if deployed.join("lineage.json").exists() {
            let uid = std::fs::metadata(&deployed).with_context(|| format!("read {deployed}"))?.uid();
            return match requested {
                Some(other) if find(other)?.is_none_or(|user| user.uid != uid) => {
                    let error = anyhow::anyhow!("{name} runs as {}, not as `{other}`", user(uid));
                    Err(Failure::refused("other_user", error).hint(format!("omit --user; to change the user: {GUIDE}")))
                }
                _ => Ok(None),
            };
        }
        let own = site::settings_file(root, name);
        let kept = own.is_file().then(|| std::fs::read_to_string(&own)).transpose();
        let kept = kept.with_context(|| format!("read {own}"))?;
        let environment = match bundled {
            Some((text, items)) => {
                let (_folder, probe) = preflight::probe(session, root, name, text, items)?;
                Some(probe.loaded(session.quiet())?.environment)
            }
            None if kept.is_some() => return Ok(None),
            None => None,
        };
        if environment.as_ref().is_some_and(|environment| !environment.runs_here()) {
            return match requested {
                None => Ok(None),
                Some(_) => Err(Failure::usage("runs_elsewhere", anyhow::anyhow!("{name} does not run on this host"))
                    .hint("omit --user")),
            };
        }
        let named = environment.and_then(|environment| environment.prerequisites.user);
        if let (Some(requested), Some(named), Some(_)) = (requested, &named, &kept)
            && requested != named
        {
            let error = anyhow::anyhow!("the settings of this site name the user `{named}`, not `{requested}`");
            return Err(Failure::refused("other_user", error).hint(format!("omit --user, or edit {own}")));
        }
        let chosen = requested.map(str::to_owned).or(named);
        let is_default = chosen.is_none();
        let name = match (chosen, owner(&state)?) {
            (Some(chosen), _) => chosen,
            (None, None) => DEFAULT.to_owned(),
            (None, Some(0)) => return Ok(None),
            (None, Some(uid)) => name_of(uid, &state)?,
        };
        if kept.is_some_and(|text| with_user(&text, &name).is_none()) {
            return Err(not_recordable(&own, &name));
        }
        Ok(Some(Self { account: find(&name)?, name, is_default }))
    }

    /// Whether the environment runs as root, because the operator chose it.
    pub fn is_root(&self) -> bool {
        self.account.as_ref().is_some_and(|account| account.uid == 0)
    }

    /// Whether the installation creates the user.
    pub fn is_created(&self) -> bool {
        self.is_default && self.account.is_none()
    }

    /// What prevents this user from running an environment in this root.
    pub fn problems(&self, root: &Utf8Path, state: &Utf8Path) -> Result<Vec<Problem>, Failure> {
        let name = &self.name;
        if self.is_root() {
            let cause = "the programs of this environment will run as root: --user root";
            return Ok(vec![Problem::warning("--user", cause, format!("see {GUIDE}"))]);
        }
        let account = match &self.account {
            Some(account) => account.clone(),
            None if self.is_default && tool().is_some() => {
                SystemUser { name: name.clone(), uid: NOBODY, groups: vec![NOBODY], home: HOME.to_owned() }
            }
            None => {
                let fix = format!("create it, or choose an existing user: --user NAME; see {GUIDE}");
                return Ok(vec![Problem::new("--user", format!("this machine has no user `{name}`"), fix)]);
            }
        };
        // An empty folder of root becomes the user's.
        let is_given = owner(state)?.is_none() && std::fs::metadata(state).map_or(true, |found| found.uid() == 0);
        let above = state.parent().unwrap_or(state);
        let checked = service_user::as_user(&account, || {
            let may = |path: &Utf8Path, access| rustix::fs::access(path.as_std_path(), access).is_ok();
            let closed = |folder: &Utf8Path, access| {
                let mut path: Vec<&Utf8Path> = folder.ancestors().collect();
                path.reverse();
                let closed = path
                    .into_iter()
                    .find(|at| at.exists() && !may(at, if *at == folder { access } else { Access::EXEC_OK }));
                closed.map(Utf8Path::to_owned)
            };
            let entered = closed(root, Access::READ_OK | Access::EXEC_OK);
            let entered =
                entered.map(|at| ("--root", at)).or(closed(above, Access::EXEC_OK).map(|at| ("--state-dir", at)));
            let all = Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK;
            (entered, !is_given && !may(state, all))
        });
        Ok(match checked {
            Ok((Some((flag, at)), _)) => {
                let fix =
                    format!("choose a folder that it can enter: {flag} DIR; to run everything as root: --user root");
                vec![Problem::new(flag, format!("the user `{name}` cannot enter {at}"), fix)]
            }
            Ok((None, true)) => {
                let fix = format!("while nothing of it runs: chown -R {name}: {state}");
                vec![Problem::new("--user", format!("the user `{name}` cannot write to {state}"), fix)]
            }
            Ok((None, false)) => Vec::new(),
            Err(error) => {
                let cause = format!("this process cannot change to the user `{name}`: {error}");
                vec![Problem::new("--user", cause, "to run everything as root: --user root")]
            }
        })
    }

    /// Creates the user if it is missing, and gives it the state folder.
    pub fn prepare(&self, state: &Utf8Path, console: Console) -> Result<(), Failure> {
        let account = match &self.account {
            Some(account) if account.uid == 0 => return Ok(()),
            Some(account) => account.clone(),
            None => {
                let account = create(&self.name)?;
                console.say(format!("Created the system user `{}`", self.name));
                account
            }
        };
        if let Some(above) = state.parent() {
            std::fs::create_dir_all(above).with_context(|| format!("create {above}"))?;
        }
        if !state.exists() {
            DirBuilder::new().mode(0o700).create(state).with_context(|| format!("create {state}"))?;
        }
        let group = account.groups.first().copied();
        Ok(give(state, account.uid, group).with_context(|| format!("give {state} to {}", self.name))?)
    }
}

/// Changes the owner of a folder of the caller that is empty.
fn give(folder: &Utf8Path, user: u32, group: Option<u32>) -> io::Result<()> {
    // The folder that is looked at is the one that changes its owner: the user may own the folder above, and replace it.
    let flags = (OFlags::DIRECTORY | OFlags::NOFOLLOW).bits();
    let folder = OpenOptions::new().read(true).custom_flags(flags as i32).open(folder)?;
    let is_empty = std::fs::read_dir(format!("/proc/self/fd/{}", folder.as_raw_fd()))?.next().is_none();
    match is_empty && folder.metadata()?.uid() == textnlp_files::caller() {
        true => fchown(&folder, Some(user), group),
        false => Ok(()),
    }
}

fn tool() -> Option<(&'static str, &'static [&'static str])> {
    TOOLS.into_iter().find(|(program, _)| Utf8Path::new(program).is_file())
}

fn create(name: &str) -> Result<SystemUser, Failure> {
    let failed = |why: String| {
        Failure::refused("user_not_created", anyhow::anyhow!("create the system user `{name}`: {why}"))
            .hint(format!("create it, or choose an existing user: --user NAME; see {GUIDE}"))
    };
    let (program, arguments) = tool().ok_or_else(|| failed("this machine has no useradd".to_owned()))?;
    add(program, arguments, name, ADD_TIMEOUT).map_err(failed)?;
    let created = SystemUser::find(name).context("read /etc/passwd")?;
    created.ok_or_else(|| failed(format!("it is not in /etc/passwd after {program}")))
}

/// Runs the program that creates a user. The error is its output.
fn add(program: &str, arguments: &[&str], name: &str, within: Duration) -> Result<(), String> {
    let mut command = Command::new(program);
    command.args(arguments).arg(name).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let ended = tokio::task::block_in_place(|| Handle::current().block_on(finished(command, within)));
    match ended.map_err(|error| format!("start {program}: {error}"))? {
        Some((status, ..)) if status.success() => Ok(()),
        Some((_, _, errors)) => Err(format!("{program}: {}", String::from_utf8_lossy(&errors).trim())),
        None => Err(format!("{program} did not end within {} s and was stopped", within.as_secs())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_in_the_place_of_a_state_folder_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let root = Utf8Path::from_path(dir.path()).unwrap();
        let (outside, state) = (root.join("outside"), root.join("state"));
        std::fs::create_dir(&outside).unwrap();
        std::os::unix::fs::symlink(&outside, &state).unwrap();
        let own = std::fs::metadata(root).unwrap();
        assert!(give(&state, own.uid(), Some(own.gid())).is_err());
        std::fs::remove_file(&state).unwrap();
        std::fs::create_dir(&state).unwrap();
        give(&state, own.uid(), Some(own.gid())).unwrap();
        // Only root can give it away: a folder with content is left as it is, so this does not fail.
        std::fs::write(state.join("a"), "").unwrap();
        give(&state, own.uid() + 1, None).unwrap();
        assert_eq!(std::fs::metadata(&state).unwrap().uid(), own.uid());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn failing_and_endless_program_that_creates_the_user_is_an_error() {
        let failed = |script, within| add("/bin/sh", &["-c", script, "sh"], "textnlp", within).unwrap_err();
        let long = Duration::from_secs(60);
        assert_eq!(failed("echo $1 is taken >&2; exit 9", long), "/bin/sh: textnlp is taken");
        let said = failed("exec sleep 1000", Duration::ZERO);
        assert_eq!(said, "/bin/sh did not end within 0 s and was stopped");
        assert!(add("/nowhere/useradd", &[], "textnlp", long).unwrap_err().contains("start /nowhere/useradd"));
    }
}
