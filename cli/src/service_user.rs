//! `prerequisites.user`: a command of root changes to this user before it touches the state, so that neither the
//! command nor a program that it starts has the rights of root.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::Access;
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use textnlp_orchestrator::environment::Loaded;

use crate::clouds::SystemUser;
use crate::report::Failure;
use crate::session::Session;

/// Starts this command again as a user. Does nothing unless this is root, or where the user is missing, which
/// `preflight` reports. After a failure the process may only end: it is no longer root.
pub fn switch(session: &Session, name: &str, loaded: &Loaded, state: &Utf8Path) -> Result<(), Failure> {
    if !rustix::process::geteuid().is_root() || !loaded.environment.runs_here() {
        return Ok(());
    }
    let Some(user) = SystemUser::find(name).context("read /etc/passwd")?.filter(|user| user.uid != 0) else {
        return Ok(());
    };
    // As root, which sees everything.
    let exists = state.exists();
    let nearest = state.ancestors().find(|path| path.is_dir()).unwrap_or(state).to_owned();
    let files: Vec<Utf8PathBuf> =
        loaded.files.iter().map(|file| session.here.join(file)).filter(|file| file.is_file()).collect();
    let program = Utf8PathBuf::try_from(std::env::current_exe().context("find this program")?)
        .context("the path of this program is not UTF-8")?;
    become_user(&user).with_context(|| format!("change to the user `{name}`"))?;

    let needed = [(&program, Access::EXEC_OK), (&session.here, Access::READ_OK | Access::EXEC_OK)];
    let needed = needed.into_iter().chain(files.iter().map(|file| (file, Access::READ_OK)));
    for (path, access) in needed {
        if rustix::fs::access(path.as_std_path(), access).is_err() {
            let error = anyhow::anyhow!("the user `{name}` of this environment cannot use {path}");
            return Err(Failure::refused("user_denied", error)
                .hint("move it to a folder that this user can enter, such as /opt/textnlp or /usr/local/bin"));
        }
    }
    if rustix::fs::access(nearest.as_std_path(), Access::READ_OK | Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let error = anyhow::anyhow!("the user `{name}` of this environment cannot write to {nearest}");
        return Err(Failure::refused("user_denied", error).hint(fix(name, state, exists)));
    }

    let mut arguments = std::env::args_os();
    let mut command = Command::new("/proc/self/exe");
    command.arg0(arguments.next().unwrap_or_default()).args(arguments).env("HOME", &user.home);
    if session.global.state_dir.is_none() && session.library.folder().is_none() {
        // It was found with the home directory of root.
        command.env("TEXTNLP_STATE_DIR", state.parent().unwrap_or(state));
    }
    Err(anyhow::Error::new(command.exec()).context(format!("start again as the user `{name}`")).into())
}

/// What gives the state to the user.
fn fix(name: &str, state: &Utf8Path, exists: bool) -> String {
    let closed = state.ancestors().skip(1).filter(|folder| folder.is_dir()).last();
    let enter = |folder: &Utf8Path| rustix::fs::access(folder.as_std_path(), Access::EXEC_OK).is_ok();
    match closed.filter(|folder| !enter(folder)) {
        Some(folder) => format!("it cannot enter {folder}: choose another folder with --state-dir DIR"),
        None if exists => format!("while nothing of it runs: chown -R {name}: {state}"),
        None => format!("install -d -m 700 -o {name} {}", state.parent().unwrap_or(state)),
    }
}

/// Takes the user's rights. The right to bind ports below 1024 stays, for the gateway.
fn become_user(user: &SystemUser) -> rustix::io::Result<()> {
    use rustix::process::{getppid, parent_process_death_signal, set_parent_process_death_signal};
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
