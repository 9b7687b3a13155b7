//! Runs the program of an installed site.

use std::process::Stdio;

use anyhow::Context;
use camino::Utf8Path;
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::recipe;
use textnlp_orchestrator::state::StateError;
use textnlp_provider::units::quoted;
use textnlp_service::Platform as _;
use textnlp_service::bundle::platform;
use textnlp_service::bundle::site::{STATE, names, passed_on, state_folder};
use textnlp_service::up::is_store_not_frozen;
use tokio::process::Command;

use crate::args::Output;
use crate::clouds::Linked;
use crate::commands::prelude::*;
use crate::signals;

/// Options of a run of the site's own program.
pub struct Run<'a> {
    /// The site's root.
    pub root: &'a Utf8Path,
    /// The environment's name.
    pub environment: &'a str,
    /// Whether to skip the gate.
    pub no_gate: bool,
}

/// The program is a part of the installed content.
fn not_started(program: &Utf8Path, error: std::io::Error) -> Failure {
    let hint = "install the bundle again, which repairs the content, in a folder whose programs may be run";
    Failure::from(anyhow::Error::new(error).context(format!("start {program}"))).hint(hint)
}

/// Locks the installed release and rolls it out, with the installed program, which knows its own formats. Returns the
/// document of `up`.
pub async fn up(session: &Session, run: &Run<'_>, console: Console) -> Result<Value, Failure> {
    let program = run.root.join("current").join(recipe::program_path(&platform()));
    let released = own(&program, session, run).args(["release", "set", "--quiet", "--output", "json"]).output().await;
    let released = released.map_err(|error| not_started(&program, error))?;
    if !released.status.success() {
        return Err(passed_on(released.status.code(), &released.stdout, "release"));
    }
    let mut command = own(&program, session, run);
    command.arg("up").args(run.no_gate.then_some("--no-gate"));
    for set in &session.global.set {
        command.args(["--set", set]);
    }
    if session.global.yes {
        command.arg("--yes");
    }
    if session.global.quiet {
        command.arg("--quiet");
    }
    let text = session.global.output == Output::Text;
    command.args(["--output", if text { "text" } else { "json" }]);
    command.stdin(Stdio::inherit()).stdout(if text { Stdio::inherit() } else { Stdio::piped() });
    let child = command.spawn().map_err(|error| not_started(&program, error))?;
    let pid = child.id();
    let stop = signals::stop(console);
    let ended = child.wait_with_output();
    tokio::pin!(ended);
    let output = tokio::select! {
        output = &mut ended => output,
        () = stop.cancelled() => {
            // Ctrl-C on a terminal reaches the child as well, but a `kill` of this process does not.
            if let Some(pid) = pid.and_then(|pid| rustix::process::Pid::from_raw(pid as i32)) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            ended.await
        }
    };
    let output = output.with_context(|| format!("wait for {program}"))?;
    match output.status.code() {
        Some(0) => Ok(serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)),
        code => Err(passed_on(code, &output.stdout, "up")),
    }
}

/// Refuses to switch the content while one of its environments is frozen: the `up` of the other content would be refused.
/// `state`: the folder of their states.
pub async fn is_not_frozen(items: &[Item], root: &Utf8Path, state: &Utf8Path) -> Result<(), Failure> {
    let is_elsewhere = state != root.join(STATE);
    let flag = if is_elsewhere { format!(" --state-dir {}", quoted(state.as_str())) } else { String::new() };
    for name in names(items, ItemKind::Environment) {
        let root = quoted(root.as_str());
        let release = format!("cd {root} && bin/textnlp-deploy hold --release --env {name}{flag}");
        match is_store_not_frozen(Linked.store(&state.join(&name)), &release).await {
            // The program of the other content may know it, and refuses a freeze itself.
            Err(failure) if matches!(failure.error.downcast_ref(), Some(StateError::Future { .. })) => {}
            result => result?,
        }
    }
    Ok(())
}

fn own(program: &Utf8Path, session: &Session, run: &Run<'_>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(run.root).args(["--env", run.environment]);
    let state = state_folder(run.root);
    if state != run.root.join(STATE) {
        command.args(["--state-dir", state.as_str()]);
    }
    // Only this site counts, whatever variables the operator's shell sets.
    for name in
        ["TEXTNLP_ENV", "TEXTNLP_FILE", "TEXTNLP_STATE_DIR", "TEXTNLP_SERVER", "TEXTNLP_OUTPUT", "TEXTNLP_QUIET"]
    {
        command.env_remove(name);
    }
    if let Some(reason) = &session.global.reason {
        command.args(["--reason", reason]);
    }
    command.stdin(Stdio::null());
    let parent = rustix::process::getpid();
    let die_together = move || {
        rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        // The parent may have exited before the signal was set up.
        if rustix::process::getppid() == Some(parent) {
            Ok(())
        } else {
            Err(std::io::Error::other("the caller closed the pipe"))
        }
    };
    // If this process is killed, the child must not continue: another install would run beside it. `up` may be
    // interrupted at any time.
    // SAFETY: only two system calls between fork and exec. Nothing is allocated on success, and on failure the child
    // exits.
    unsafe { command.pre_exec(die_together) };
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_is_missing_is_not_a_path_to_check() {
        let missing = not_started(Utf8Path::new("/srv/site/bin"), std::io::ErrorKind::NotFound.into());
        assert!(missing.hint.is_some_and(|hint| hint.starts_with("install the bundle again")));
    }
}
