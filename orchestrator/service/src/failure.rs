//! Why an operation failed: its exit status, a stable code, the causes and a hint.

use std::io::{self, ErrorKind};

use serde_json::{Map, Value, json};
use textnlp_orchestrator::state::StateError;
use textnlp_provider::units::counted;
use textnlp_provider::{EnvironmentName, Problem, error_chain};

use crate::RerunFlags;

/// How a command ended. The value is the process's exit status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// The command succeeded.
    Done = 0,
    /// The command failed.
    Failed = 1,
    /// An invalid environment, an unknown name, or a provider that is not available.
    Usage = 2,
    /// A gate is not open.
    GateShut = 3,
    /// Refused for safety, or changes without `--yes` and without a terminal.
    Refused = 4,
    /// Stopped by a signal. The same command continues from here.
    Stopped = 5,
    /// `plan --exit-code` found changes, or `drift --exit-code` drift.
    ChangesPlanned = 6,
}

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub exit: Exit,
    /// A stable error code: `invalid_environment`, `port_in_use`.
    pub code: &'static str,
    /// The error with its causes.
    pub error: anyhow::Error,
    /// The exact command to run next, or what to change.
    pub hint: Option<String>,
    /// The resource that failed.
    pub resource: Option<String>,
    /// Each fix with its causes, where there are several: a text shows them together.
    pub fixes: Vec<(String, Vec<String>)>,
    /// Additional members of the JSON document.
    pub document: Map<String, Value>,
}

impl Failure {
    /// Creates a failure. One of a file operation has a hint already.
    pub fn new(exit: Exit, code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        let error = error.into();
        let hint = file_hint(&error).map(str::to_owned);
        Self { exit, code, error, hint, resource: None, fixes: Vec::new(), document: Map::new() }
    }

    /// A wrong argument, name or file.
    pub fn usage(code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Usage, code, error)
    }

    /// A refusal for safety.
    pub fn refused(code: &'static str, error: impl Into<anyhow::Error>) -> Self {
        Self::new(Exit::Refused, code, error)
    }

    /// Sets the hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Sets the hint, if there is one.
    #[must_use]
    pub fn hinted(self, hint: Option<String>) -> Self {
        Self { hint: hint.or(self.hint), ..self }
    }

    /// Sets the hint, unless the failed operation did. That of an error of the file system follows it.
    #[must_use]
    pub fn or_hint(self, hint: impl Into<String>) -> Self {
        let (hint, of_file) = (hint.into(), file_hint(&self.error));
        let hint = match self.hint.as_deref() {
            None => hint,
            Some(own) if Some(own) == of_file => format!("{hint}\n{own}"),
            Some(_) => return self,
        };
        self.hint(hint)
    }

    /// Sets the resource.
    #[must_use]
    pub fn resource(mut self, resource: impl Into<String>) -> Self {
        self.resource = Some(resource.into());
        self
    }

    /// Adds members to the JSON document.
    #[must_use]
    pub fn document(mut self, document: Value) -> Self {
        if let Value::Object(members) = document {
            self.document.extend(members);
        }
        self
    }

    /// The causes below the error, outermost first, without duplicates.
    pub fn causes(&self) -> Vec<String> {
        let mut causes: Vec<String> = Vec::new();
        for cause in self.error.chain().skip(1).map(ToString::to_string) {
            if causes.last() != Some(&cause) {
                causes.push(cause);
            }
        }
        causes
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        Self::new(Exit::Failed, "failed", error)
    }
}

/// What an operator does about an error of the file system.
fn file_hint(error: &anyhow::Error) -> Option<&'static str> {
    let cause = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>())?;
    Some(match cause.kind() {
        ErrorKind::PermissionDenied => {
            "name a file or folder that you may read and write, or run the command as its user"
        }
        ErrorKind::ReadOnlyFilesystem => "name a file or folder on a disk that can be written",
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => "free some space there, and run the same command again",
        ErrorKind::NotFound => "check the path, and that what it names exists",
        ErrorKind::NotADirectory => "name a folder: a part of the path is a file",
        ErrorKind::IsADirectory => "name a file: the path is that of a folder",
        _ => return None,
    })
}

/// An error with its causes and its hint, in one line.
pub(crate) fn hinted_chain(error: &textnlp_provider::Error) -> String {
    match &error.hint {
        Some(hint) => format!("{}; {hint}", error_chain(error)),
        None => error_chain(error),
    }
}

/// Formats a size in decimal units, as used for disks and networks.
pub fn size(bytes: u64) -> String {
    let (unit, divisor, digits) = match bytes {
        b if b >= 1_000_000_000 => ("GB", 1e9, 2),
        b if b >= 1_000_000 => ("MB", 1e6, 1),
        b if b >= 1_000 => ("kB", 1e3, 1),
        b => return format!("{b} bytes"),
    };
    format!("{:.digits$} {unit}", bytes as f64 / divisor)
}

/// The code of a state that cannot be read.
pub(crate) const DAMAGED_STATE: &str = "damaged_state";

/// Converts an error of the state.
pub fn state_failed(error: StateError, again: &RerunFlags, environment: &EnvironmentName) -> Failure {
    let (exit, code, hint) = match &error {
        StateError::Held { .. } => (
            Exit::Refused,
            "locked",
            format!(
                "the lock is released when that process ends, also when it is killed; meanwhile see: {}",
                again.command("status", environment)
            ),
        ),
        StateError::OtherPlace { recorded, wanted, .. } => {
            let flag = if recorded.provider == wanted.provider {
                String::new()
            } else {
                format!("if the earlier `up` had `--provider {}`, repeat it; or ", recorded.provider)
            };
            let hint = format!(
                "{flag}restore the earlier `sites`, or use a separate state for the new location with --state-dir DIR"
            );
            (Exit::Refused, "other_deployment", hint)
        }
        StateError::OtherLineage { .. } | StateError::OtherEnvironment { .. } => (
            Exit::Refused,
            "other_deployment",
            "this folder belongs to another deployment: restore the right one, or choose another with --state-dir DIR"
                .to_owned(),
        ),
        StateError::Damaged { .. } | StateError::DamagedBody { .. } | StateError::Unreadable { .. } => (
            Exit::Failed,
            DAMAGED_STATE,
            format!(
                "nothing was changed, and the service keeps running: see what can be repaired with `{}`; what cannot in a state in a folder, from a backup: {}",
                again.command("state repair", environment),
                again.bare(&format!("restore FILE --replace {environment}"))
            ),
        ),
        StateError::LeaseLost { .. } => (
            Exit::Failed,
            "lease_lost",
            format!("no provider was called after that; for the status: {}", again.command("status", environment)),
        ),
        StateError::Moved { .. } => (Exit::Refused, "state_elsewhere", error.hint().unwrap_or_default()),
        StateError::Object { .. } | StateError::Unconditional { .. } | StateError::Sealed { .. } => {
            (Exit::Failed, "state_store", error.hint().unwrap_or_default())
        }
        _ => {
            let hint = error.hint();
            return Failure::new(Exit::Failed, "state", error).hinted(hint);
        }
    };
    Failure::new(exit, code, error).hint(hint)
}

/// One failure with all problems, their locations and causes. The hint is all fixes.
pub fn preflight_failure(action: &str, code: &'static str, exit: Exit, problems: &[Problem]) -> Failure {
    let lines: Vec<String> = problems.iter().map(|p| format!("{}: {}", p.place, p.cause)).collect();
    let mut fixes: Vec<(String, Vec<String>)> = Vec::new();
    for (problem, line) in problems.iter().zip(&lines) {
        match fixes.iter_mut().find(|(fix, _)| *fix == problem.fix) {
            Some((_, causes)) => causes.push(line.clone()),
            None => fixes.push((problem.fix.clone(), vec![line.clone()])),
        }
    }
    let hint: Vec<&str> = fixes.iter().map(|(fix, _)| fix.as_str()).collect();
    let hint = hint.join("\n");
    if fixes.len() == 1 {
        fixes.clear();
    }
    let many = counted(problems.len(), "problem");
    let error = anyhow::anyhow!("{}", lines.join("\n")).context(format!("{action} failed: {many}"));
    let failure = Failure::new(exit, code, error).hint(hint);
    Failure { fixes, ..failure }.document(json!({ "problems": problems_document(problems) }))
}

/// Problems as JSON.
pub fn problems_document(problems: &[Problem]) -> Vec<Value> {
    let one =
        |p: &Problem| json!({ "place": p.place, "cause": p.cause, "fix": p.fix, "warning": p.warning, "note": p.note });
    problems.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn errors_of_files_have_a_hint_and_others_keep_theirs() {
        let of = |kind: ErrorKind| {
            let failed: anyhow::Result<()> = Err(io::Error::from(kind)).context("create the folder out");
            Failure::from(failed.unwrap_err()).hint
        };
        for (kind, says) in [
            (ErrorKind::PermissionDenied, "that you may read and write"),
            (ErrorKind::ReadOnlyFilesystem, "on a disk that can be written"),
            (ErrorKind::StorageFull, "free some space"),
            (ErrorKind::NotFound, "check the path"),
            (ErrorKind::NotADirectory, "name a folder"),
            (ErrorKind::IsADirectory, "name a file"),
        ] {
            assert!(of(kind).is_some_and(|hint| hint.contains(says)), "{kind}");
        }
        assert_eq!(of(ErrorKind::ConnectionRefused), None);
        let denied = || Failure::new(Exit::Failed, "failed", io::Error::from(ErrorKind::PermissionDenied));
        assert_eq!(denied().hint("sign in").hint.as_deref(), Some("sign in"));
        assert_eq!(denied().hinted(Some("sign in".to_owned())).hint.as_deref(), Some("sign in"));
        assert_eq!(denied().hinted(None).hint, denied().hint);
        let status = "textnlp-deploy status --env shop";
        assert_eq!(denied().or_hint(status).hint, denied().hint.map(|file| format!("{status}\n{file}")));
        assert_eq!(denied().hint("sign in").or_hint(status).hint.as_deref(), Some("sign in"));
        let other = Failure::new(Exit::Failed, "failed", io::Error::from(ErrorKind::ConnectionRefused));
        assert_eq!(other.or_hint(status).hint.as_deref(), Some(status));
    }
}
