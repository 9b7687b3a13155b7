//! The user that runs an installed environment. The first installation by root chooses it and records it in the site's
//! settings, where later commands of root find it.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, fchown};
use std::process::Command;

use anyhow::Context;
use camino::Utf8Path;
use rustix::fs::{Access, Mode};
use serde_yaml::{Mapping, Value as Yaml};
use textnlp_bundle::manifest::Item;
use textnlp_files::{user, user_name};
use textnlp_provider::Problem;

use super::{preflight, site};
use crate::clouds::SystemUser;
use crate::report::{Console, Failure};
use crate::service_user;
use crate::session::Session;

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
        let state = site::wanted_state(session, root)?;
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
                Some(probe.loaded(Console::new(session.global.output, true))?.environment)
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
        // The folder that was looked at is the folder that changes its owner.
        let folder = File::open(state).with_context(|| format!("open {state}"))?;
        let found = folder.metadata().with_context(|| format!("read {state}"))?;
        if found.uid() == 0 && owner(state)?.is_none() {
            let group = account.groups.first().copied();
            fchown(&folder, Some(account.uid), group).with_context(|| format!("give {state} to {}", self.name))?;
        }
        Ok(())
    }
}

/// Makes what is written readable for other users, whatever the umask of root, until it is dropped.
pub struct SharedFiles(Mode);

impl SharedFiles {
    /// From now on.
    pub fn begin() -> Self {
        Self(rustix::process::umask(Mode::WGRP | Mode::WOTH))
    }
}

impl Drop for SharedFiles {
    fn drop(&mut self) {
        rustix::process::umask(self.0);
    }
}

/// The user of a site that root installed for it: the owner of its state. `None` if that is root, or if the caller is
/// not root.
pub fn of_site(session: &Session, root: &Utf8Path) -> Result<Option<String>, Failure> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let state = site::wanted_state(session, root)?;
    let uid = owner(&state)?.filter(|uid| *uid != 0);
    uid.map(|uid| name_of(uid, &state)).transpose()
}

/// The settings of a site with this user; as they are if they name one. `None` if they have a form that cannot be
/// extended.
pub fn with_user(text: &str, user: &str) -> Option<String> {
    let mut wanted: Yaml = serde_yaml::from_str(text).ok()?;
    let settings = wanted.as_mapping_mut()?.entry("prerequisites".into()).or_insert_with(|| Mapping::new().into());
    let settings = settings.as_mapping_mut()?;
    if settings.contains_key("user") {
        return Some(text.to_owned());
    }
    settings.insert("user".into(), user.into());
    // The text is extended and not rewritten, because the operator's comments are in it.
    const KEY: &str = "\nprerequisites:\n";
    let inserted = text.find(KEY).map(|at| {
        let (head, rest) = text.split_at(at + KEY.len());
        let indentation = &rest[..rest.len() - rest.trim_start_matches(' ').len()];
        format!("{head}{indentation}user: {user}\n{rest}")
    });
    let appended = format!("{}{KEY}  user: {user}\n", text.trim_end());
    let is_wanted = |text: &String| serde_yaml::from_str::<Yaml>(text).is_ok_and(|found| found == wanted);
    inserted.into_iter().chain([appended]).find(is_wanted)
}

/// The failure for settings that [`with_user`] cannot extend.
pub fn not_recordable(file: &Utf8Path, user: &str) -> Failure {
    let error = anyhow::anyhow!("{file} names no user, and it has a form that the installation does not change");
    Failure::refused("user_not_recorded", error).hint(format!("add `prerequisites: {{ user: {user} }}` to {file}"))
}

/// The owner of a state folder with content.
fn owner(state: &Utf8Path) -> Result<Option<u32>, Failure> {
    let has_content = state.read_dir_utf8().is_ok_and(|mut entries| entries.next().is_some());
    if !has_content {
        return Ok(None);
    }
    Ok(Some(std::fs::metadata(state).with_context(|| format!("read {state}"))?.uid()))
}

fn name_of(uid: u32, state: &Utf8Path) -> Result<String, Failure> {
    user_name(uid).ok_or_else(|| {
        Failure::refused("unknown_user", anyhow::anyhow!("{state} belongs to uid {uid}, which has no name here"))
            .hint("create that user, or choose another folder with --state-dir DIR")
    })
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
    let mut command = Command::new(program);
    command.args(arguments).arg(name).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    let output = tokio::task::block_in_place(|| command.stdin(std::process::Stdio::null()).output());
    let output = output.with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        return Err(failed(format!("{program}: {}", String::from_utf8_lossy(&output.stderr).trim())));
    }
    let created = SystemUser::find(name).context("read /etc/passwd")?;
    created.ok_or_else(|| failed(format!("it is not in /etc/passwd after {program}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_is_added_to_settings_and_comments_stay() {
        let user = |text: &str| with_user(text, "textnlp");
        let bare = "# mine\nextends: bundle-a\n";
        assert_eq!(user(bare).unwrap(), format!("{bare}prerequisites:\n  user: textnlp\n"));
        let nested = "a: 1\nprerequisites:\n    # small\n    allow_below_minimum: true\nb: 2\n";
        let extended = "a: 1\nprerequisites:\n    user: textnlp\n    # small\n    allow_below_minimum: true\nb: 2\n";
        assert_eq!(user(nested).unwrap(), extended);
        for named in ["prerequisites: { user: other }\n", "prerequisites:\n  user: root\n"] {
            assert_eq!(user(named).unwrap(), named);
        }
        for closed in
            ["a: 1\nprerequisites: { git: {} }\n", "{ a: 1 }\n", "a: 1\n...\n", "- a\n", "", "prerequisites: 1\n"]
        {
            assert_eq!(user(closed), None, "{closed}");
        }
        assert_eq!(with_user(bare, "null"), None, "it would not be a name");
    }
}
