//! `prerequisites.user`: a command of root changes to this user before it touches the state, so that neither the
//! command nor a program that it starts has the rights of root.
//!
//! Not the programs alone: root would then write into folders of a user who can replace their entries by links.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::Command;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::Access;
use rustix::process::{
    DumpableBehavior, Gid, Pid, Signal, Uid, getpid, getppid, ioctl_tiocsctty, kill_process, set_dumpable_behavior,
    set_parent_process_death_signal, setsid,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use textnlp_orchestrator::environment::Loaded;
use textnlp_orchestrator::environment::model::Environment;
use tokio::runtime::Handle;
use tokio::signal::unix::{SignalKind, signal};

use crate::clouds::SystemUser;
use crate::own_terminal::OwnTerminal;
use crate::report::Failure;
use crate::session::Session;
use crate::signals;

/// The signals that reach this process from its terminal or from a supervisor, and that the command of the user has to get.
const FORWARDED: [(SignalKind, Signal); 4] = [
    (SignalKind::interrupt(), Signal::INT),
    (SignalKind::terminate(), Signal::TERM),
    (SignalKind::quit(), Signal::QUIT),
    (SignalKind::hangup(), Signal::HUP),
];

/// Variables that the command of the user gets: what this program and the programs that it starts read.
const KEPT: &str = "ALL_PROXY HF_ENDPOINT HF_HUB_OFFLINE HF_TOKEN HTTPS_PROXY HTTP_PROXY LANG LOGNAME NO_COLOR NO_PROXY \
    PATH RUST_BACKTRACE RUST_LOG SSL_CERT_DIR SSL_CERT_FILE SUDO_UID SUDO_USER TERM TMPDIR TZ USER \
    all_proxy http_proxy https_proxy no_proxy SOURCE_DATE_EPOCH";
/// The provider of sites on this machine.
const HOST: &str = "onprem";
/// The beginnings of names of further such variables.
const KEPT_PREFIXES: [&str; 3] = ["LC_", "TEXTNLP_", "XDG_"];
/// The same for credentials of clouds and clusters, for an environment that uses one.
const CLOUD_PREFIXES: [&str; 5] = ["AWS_", "AZURE_", "CLOUDSDK_", "GOOGLE_", "KUBE"];

/// Runs this command again as a user, and ends as it does. Does nothing unless this is root, or where the user is missing,
/// which `preflight` reports. After a failure the process may only end: it is no longer root.
pub fn switch(session: &Session, name: &str, loaded: &Loaded, state: &Utf8Path) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() || !loaded.environment.runs_here() {
        return Ok(());
    }
    let Some(user) = SystemUser::find(name).context("read /etc/passwd")?.filter(|user| user.uid != 0) else {
        return Ok(());
    };
    // As root, which sees everything: the environment's folder beside the model cache, or where they will be.
    let root = state.parent().unwrap_or(state);
    let folders = [root, state].into_iter().filter(|folder| folder.is_dir());
    let mut folders: Vec<(&Utf8Path, String)> =
        folders.map(|folder| (folder, format!("while nothing of it runs: chown -R {name}: {root}"))).collect();
    if folders.is_empty() {
        let nearest = root.ancestors().find(|path| path.is_dir()).unwrap_or(root);
        folders.push((nearest, format!("install -d -m 700 -o {name} {root}")));
    }
    let files: Vec<Utf8PathBuf> =
        loaded.files.iter().map(|file| session.here.join(file)).filter(|file| file.is_file()).collect();
    let program = Utf8PathBuf::try_from(std::env::current_exe().context("find this program")?)
        .context("the path of this program is not UTF-8")?;
    let texts = files.iter().filter_map(|file| std::fs::read_to_string(file).ok());
    let variables = variables(std::env::vars_os(), std::env::args_os(), texts, &loaded.environment);
    become_user(&user).with_context(|| format!("change to the user `{name}`"))?;

    let may = |path: &Utf8Path, access: Access| rustix::fs::access(path.as_std_path(), access).is_ok();
    let enter = Access::READ_OK | Access::EXEC_OK;
    // Root's home is closed to this user, but an installed site is used from any folder.
    let start = session.own_site().filter(|_| !may(&session.here, enter)).unwrap_or(&session.here);
    let (program, here) = ((program.as_path(), Access::EXEC_OK), (start, enter));
    let files = files.iter().map(|file| (file.as_path(), Access::READ_OK));
    for (path, access) in [program, here].into_iter().chain(files) {
        if !may(path, access) {
            let error = anyhow::anyhow!("the user `{name}` of this environment cannot use {path}");
            return Err(Failure::refused("user_denied", error)
                .hint("move it to a folder that this user can enter, such as /opt/textnlp or /usr/local/bin"));
        }
    }
    for (folder, fix) in folders {
        if may(folder, Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK) {
            continue;
        }
        let above: Vec<&Utf8Path> = folder.ancestors().skip(1).collect();
        let closed = above.into_iter().rev().find(|above| !may(above, Access::EXEC_OK));
        let error = anyhow::anyhow!("the user `{name}` of this environment cannot write to {folder}");
        let elsewhere = |closed| format!("it cannot enter {closed}: choose another folder with --state-dir DIR");
        return Err(Failure::refused("user_denied", error).hint(closed.map_or(fix, elsewhere)));
    }

    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).current_dir(start);
    command.env_clear().envs(variables).env("HOME", &user.home);
    if session.global.state_dir.is_none() && session.library.folder().is_none() {
        // It was found with the home directory of root.
        command.env("TEXTNLP_STATE_DIR", root);
    }
    let Err(error) = run_in_own_session(command);
    let failure = Failure::from(anyhow::Error::new(error).context(format!("start again as the user `{name}`")));
    Err(failure.hint(format!("run the command as `{name}`, in a folder that this user can enter")))
}

/// The variables of root that the command of the user gets: the user can read them in `/proc`. Beside those that this
/// program reads, the ones that the command line, the environment or its files name (`secret:env:NAME`, `${NAME}`).
fn variables(
    all: impl Iterator<Item = (OsString, OsString)>,
    arguments: impl Iterator<Item = OsString>,
    files: impl Iterator<Item = String>,
    environment: &Environment,
) -> Vec<(OsString, OsString)> {
    let all: Vec<(OsString, OsString)> = all.collect();
    let set = all.iter().filter(|(name, _)| name.to_string_lossy().starts_with("TEXTNLP_SET__"));
    let texts = set.map(|(_, value)| value.clone()).chain(arguments).map(|text| text.to_string_lossy().into_owned());
    let mut named = BTreeSet::new();
    for text in texts.chain(files).chain(serde_json::to_string(environment)) {
        named.extend(text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').map(str::to_owned));
    }
    let is_elsewhere = environment.state.store != "local"
        || environment.sites.iter().any(|site| site.is_in_cluster() || site.provider != HOST);
    let begins = |name: &str, prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    let is_kept = |name: &str| {
        KEPT.split(' ').any(|kept| kept == name)
            || begins(name, &KEPT_PREFIXES)
            || is_elsewhere && begins(name, &CLOUD_PREFIXES)
            || named.contains(name)
    };
    all.into_iter().filter(|(name, _)| name.to_str().is_some_and(is_kept)).collect()
}

/// Runs a command in a session of its own, forwards signals to it, and ends as it does.
fn run_in_own_session(mut command: Command) -> io::Result<Infallible> {
    // Before the start: a signal in between would end this process alone.
    let mut received = Vec::new();
    for (kind, forwarded) in FORWARDED {
        // The command inherits an ignored signal; a handler here would undo that.
        if forwarded != Signal::HUP || !signals::ignores_hangup() {
            received.push((signal(kind)?, forwarded));
        }
    }
    // This process has root's terminal open, and the rights of the user by now.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let streams = [
        io::stdin().as_fd().try_clone_to_owned()?,
        io::stdout().as_fd().try_clone_to_owned()?,
        io::stderr().as_fd().try_clone_to_owned()?,
    ];
    let own = OwnTerminal::between(streams)?;
    let controlling = own.as_ref().map(|own| own.give_to(&mut command)).transpose()?;
    let mut child = own_session(&mut command, controlling).spawn()?;
    // The terminal ends with the last process that has it open.
    drop(command);
    let pid = Pid::from_child(&child);
    let runtime = Handle::current();
    let copying = own.map(OwnTerminal::copy).transpose()?;
    if let Some(copying) = &copying {
        let (resize, mut resized) = (copying.resizer()?, signal(SignalKind::window_change())?);
        runtime.spawn(async move {
            while resized.recv().await.is_some() {
                resize();
            }
        });
    }
    for (mut signal, forwarded) in received {
        runtime.spawn(async move {
            while signal.recv().await.is_some() {
                let _ = kill_process(pid, forwarded);
            }
        });
    }
    let ended = child.wait()?;
    drop(copying);
    // As shells report a signal.
    std::process::exit(ended.code().or(ended.signal().map(|signal| 128 + signal)).unwrap_or(1))
}

/// Starts a command with this controlling terminal or none, and lets it end with this process. A process of the user could
/// otherwise put input into root's terminal (`TIOCSTI`), which the shell of root executes afterwards.
fn own_session(command: &mut Command, controlling: Option<OwnedFd>) -> &mut Command {
    let parent = getpid();
    let detach = move || {
        setsid()?;
        if let Some(terminal) = &controlling {
            ioctl_tiocsctty(terminal)?;
        }
        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the signal was set up.
        if getppid() == Some(parent) { Ok(()) } else { Err(io::Error::from(io::ErrorKind::BrokenPipe)) }
    };
    // SAFETY: only system calls between fork and exec, and nothing is allocated.
    unsafe { command.pre_exec(detach) }
}

/// Runs a check with a user's rights, in a thread of its own: the kernel keeps rights by thread.
pub fn as_user<T: Send>(user: &SystemUser, check: impl FnOnce() -> T + Send) -> rustix::io::Result<T> {
    std::thread::scope(|scope| {
        let checked = scope.spawn(|| become_user(user).map(|()| check()));
        checked.join().unwrap_or(Err(rustix::io::Errno::CANCELED))
    })
}

/// Takes the user's rights. The right to bind ports below 1024 stays, for the gateway.
fn become_user(user: &SystemUser) -> rustix::io::Result<()> {
    use rustix::process::parent_process_death_signal;
    use rustix::thread::{
        capabilities, configure_capability_in_ambient_set, set_capabilities, set_keep_capabilities, set_thread_groups,
        set_thread_res_gid, set_thread_res_uid,
    };
    // A change of the user clears this signal, by which an installation ends with its parent.
    let (signal, parent) = (parent_process_death_signal()?, getppid());
    let bind = CapabilitySet::NET_BIND_SERVICE & capabilities(None)?.permitted;
    let groups: Vec<Gid> = user.groups.iter().map(|group| Gid::from_raw(*group)).collect();
    let (uid, gid) = (Uid::from_raw(user.uid), groups.first().copied().unwrap_or(Gid::from_raw(user.uid)));
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_keep_capabilities(true)?;
    set_thread_res_uid(uid, uid, uid)?;
    set_capabilities(None, CapabilitySets { effective: bind, permitted: bind, inheritable: bind })?;
    if !bind.is_empty() {
        configure_capability_in_ambient_set(bind, true)?;
    }
    set_parent_process_death_signal(signal)?;
    if signal.is_some() && getppid() != parent {
        return Err(rustix::io::Errno::CANCELED);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_of_another_user_gets_only_the_variables_that_it_needs() {
        let text = |environment: &str, extra: serde_json::Value| -> Vec<String> {
            let mut document = serde_json::json!({
                "environment": "a", "models": [{ "name": "tiny", "source": "bundled:tiny" }],
                "sites": [{ "name": "here", "provider": "onprem", "region": "local", "runtime": environment }],
            });
            document.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
            let environment: Environment = serde_json::from_value(document).unwrap();
            let all = [
                "PATH",
                "LC_TIME",
                "TEXTNLP_SET__database__password",
                "AWS_SECRET_ACCESS_KEY",
                "KUBECONFIG",
                "LD_PRELOAD",
                "GITHUB_TOKEN",
                "PASSPHRASE",
                "DB_PASSWORD",
                "DB_PASS",
                "REGION",
            ];
            let value = |name: &str| if name.starts_with("TEXTNLP_") { "secret:env:DB_PASSWORD" } else { "x" };
            let all = all.map(|name| (name.into(), value(name).into())).into_iter();
            let arguments = ["--passphrase-env", "PASSPHRASE"].map(OsString::from).into_iter();
            let files = ["tags: { a: \"${REGION:-b}\" }".to_owned()].into_iter();
            let kept = variables(all, arguments, files, &environment);
            kept.into_iter().map(|(name, _)| name.into_string().unwrap()).collect()
        };
        let here = ["PATH", "LC_TIME", "TEXTNLP_SET__database__password", "PASSPHRASE", "DB_PASSWORD", "REGION"];
        assert_eq!(text("process", serde_json::json!({})), here);
        for elsewhere in [
            text("kubernetes", serde_json::json!({})),
            text("process", serde_json::json!({ "state": { "store": "s3://bucket/a" } })),
        ] {
            assert!(elsewhere.iter().any(|name| name == "AWS_SECRET_ACCESS_KEY"), "{elsewhere:?}");
            assert!(!elsewhere.iter().any(|name| name == "GITHUB_TOKEN"), "{elsewhere:?}");
        }
        let named = text("process", serde_json::json!({ "database": { "url": "secret:env:DB_PASS" } }));
        assert!(named.iter().any(|name| name == "DB_PASS"), "{named:?}");
    }

    #[test]
    fn command_of_another_user_has_no_controlling_terminal() {
        // Of `/proc/PID/stat`: the session, and the number of the terminal.
        let mut command = Command::new("sh");
        command.args(["-c", "echo $$ $(cut -d' ' -f6,7 /proc/$$/stat)"]);
        let output = own_session(&mut command, None).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let fields: Vec<&str> = text.split_whitespace().collect();
        assert!(matches!(fields[..], [pid, session, "0"] if pid == session), "{text}");
    }
}
