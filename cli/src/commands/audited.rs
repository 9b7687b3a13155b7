//! Records the commands that change an environment in the audit log of its state: before a command acts, and at its end.

use std::ffi::OsString;
use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::Arc;

use camino::{Utf8Path, Utf8PathBuf};
use clap::parser::ValueSource;
use futures::FutureExt as _;
use futures::future::LocalBoxFuture;
use textnlp_orchestrator::clock::SystemClock;
use textnlp_orchestrator::state::audit::{self, AuditEvent, AuditedCommand, CommandOutcome};
use textnlp_orchestrator::state::{Folder, StateError, Store};
use textnlp_provider::EnvironmentName;
use uuid::Uuid;

use super::apply;
use super::prelude::*;
use crate::args::{Apply, Audit, Command, Env, Feature, Global, Key, Model, Release, Rollout, SecretCommand};
use crate::backup_args::{Backup, Restore};
use crate::deployment::{operator, short, state_failed};
use crate::dr_args::Dr;
use crate::operations_args::{Analytics, Baseline, Db, DepsCommand};
use crate::state_args::State;
use crate::stores::{self, StateLocation};
use crate::{clouds, help};

/// What a command does to an environment.
enum Effect<'a> {
    /// It reads, or uses the service as a client does.
    Reads,
    /// It changes files, caches, buckets or bundles. An installation runs `up`, which is recorded.
    ChangesOthers,
    /// Another program of this deployment starts it.
    IsPartOfService,
    /// It changes an environment, gives its secrets away, or writes what its gate reads.
    Changes(Selected<'a>),
}

/// The environment that a command changes.
enum Selected<'a> {
    /// The one of `--env` or `--file`. Without a state there is nothing that the command could change.
    Deployed,
    /// The same; the command may be the first one with it.
    New,
    /// The same; the command repairs what may keep a record from being written.
    Rescue,
    /// The same; the command frees space or revokes a key, so a full disk does not prevent it.
    RecordedOnFullDisk,
    /// The one of a saved plan.
    Planned(&'a Apply),
    /// The one with this name; the command may be the first one with it.
    Named(&'a str),
    /// The one of a backup. Its name is known at the end, except where its state is replaced.
    Restored(&'a Restore),
}

/// What each command does.
fn effect<'a>(command: &'a Command, global: &Global) -> Effect<'a> {
    use Effect::{Changes, ChangesOthers, IsPartOfService, Reads};
    use Selected::{Deployed, Named, New, Planned, RecordedOnFullDisk, Rescue, Restored};
    let when = |changes: bool| if changes { Changes(Deployed) } else { Reads };
    match command {
        Command::Init(_) => ChangesOthers,
        Command::Env(command) => match command {
            Env::List | Env::Show { .. } | Env::Diff { .. } | Env::Check { .. } | Env::Schema => Reads,
            Env::New { .. } | Env::Migrate { .. } => ChangesOthers,
        },
        Command::Providers | Command::Preflight | Command::Plan(_) => Reads,
        Command::Apply(args) => Changes(Planned(args)),
        Command::Up(_) => Changes(New),
        Command::Status | Command::Explain(_) | Command::Drift { .. } | Command::Doctor => Reads,
        Command::Logs(_) | Command::Analyze(_) | Command::Metrics(_) => Reads,
        Command::Analytics(command) => match command {
            Analytics::List(_) => Reads,
            Analytics::Run => Changes(Deployed),
        },
        Command::Cost(_) | Command::Performance(_) | Command::Phase(_) | Command::Health(_) => Reads,
        Command::Export(_) | Command::SupportBundle(_) | Command::Compliance(_) | Command::Security(_) => Reads,
        Command::Probe(_) | Command::Gate(_) | Command::Down(_) => Changes(Deployed),
        Command::Baseline(command) => match command {
            Baseline::Record(_) | Baseline::Compare => Changes(Deployed),
            Baseline::Show => Reads,
        },
        Command::State(command) => match command {
            State::List | State::Show { .. } | State::History(_) | State::At { .. } => Reads,
            State::Diff { .. } | State::Export { .. } => Reads,
            State::Repair(_) | State::Adopt => Changes(Rescue),
            State::Move(_) | State::Remove { .. } => Changes(Deployed),
            State::Import(_) => Changes(New),
        },
        Command::Hold(args) => when(args.release || global.reason.is_some()),
        Command::Db(command) => match command {
            Db::Vacuum | Db::Analyze | Db::Bench(_) | Db::Failover | Db::Promote(_) => Changes(Deployed),
        },
        Command::Cleanup(args) if !args.dry_run => Changes(RecordedOnFullDisk),
        Command::Cleanup(_) => Reads,
        Command::Key(command) => match command {
            Key::Create { .. } | Key::Rotate { .. } => Changes(Deployed),
            Key::Revoke { .. } => Changes(RecordedOnFullDisk),
            Key::List { .. } => Reads,
        },
        Command::Feature(command) => match command {
            Feature::Set { .. } | Feature::Clear { .. } => Changes(Deployed),
            Feature::List => Reads,
        },
        Command::Secret(SecretCommand::Rotate { .. }) => Changes(Deployed),
        Command::Audit(Audit::List(_) | Audit::Export(_)) => Reads,
        Command::Deps(args) => match &args.command {
            None | Some(DepsCommand::CheckUpdates(_)) => Reads,
            Some(DepsCommand::Update(_)) => Changes(Deployed),
        },
        Command::Release(command) => match command {
            Release::Show | Release::History | Release::Diff { .. } => Reads,
            Release::Set => Changes(Deployed),
            // The commands that it runs have records of their own.
            Release::Checklist(args) => when(!args.done.is_empty()),
        },
        Command::Promote(args) => Changes(Named(&args.to)),
        Command::Rollback(args) => when(!args.config || args.to.is_some()),
        Command::Rollout(command) => match command {
            Rollout::Status => Reads,
            Rollout::Promote | Rollout::Abort | Rollout::Pause | Rollout::Resume | Rollout::Retry => Changes(Deployed),
            Rollout::Watch { .. } => IsPartOfService,
        },
        Command::Model(command) => match command {
            Model::List | Model::Inspect { .. } | Model::Fit { .. } | Model::Bench { .. } => Reads,
            Model::Pull { .. } | Model::Push { .. } => ChangesOthers,
        },
        Command::Bundle(_) => ChangesOthers,
        Command::Dr(command) => match command {
            Dr::Status | Dr::Watch | Dr::History | Dr::Report(_) | Dr::VerifyReport(_) => Reads,
            Dr::Failover(_) | Dr::Failback(_) | Dr::Drill(_) => Changes(Deployed),
            Dr::TakeBack(_) => IsPartOfService,
        },
        Command::Backup(command) => match command {
            Backup::List => Reads,
            Backup::Create(_) | Backup::Verify(_) | Backup::Key(_) => Changes(Deployed),
            Backup::Prune { .. } => Changes(RecordedOnFullDisk),
            Backup::Run(_) | Backup::Archive(_) | Backup::Encrypt(_) | Backup::Decrypt(_) => IsPartOfService,
        },
        Command::Alert(_) => Reads,
        Command::Restore(args) => Changes(Restored(args)),
        Command::Generate(_) | Command::Chat(_) | Command::Tokenize(_) | Command::Embed(_) => Reads,
        Command::Batch(_) | Command::Validate(_) | Command::Load(_) => Reads,
        Command::Server(_) | Command::Supervise(_) | Command::Adapter(_) => IsPartOfService,
        Command::KubeToken(_) | Command::Completions(_) | Command::Man(_) => Reads,
    }
}

/// Arguments whose values are recorded. Of every other one the record has `***`.
const SHOWN: [&str; 57] = [
    "accept_data_loss",
    "accept_loss",
    "at",
    "backup",
    "clients",
    "delete_data",
    "delete_dumps",
    "done",
    "duration",
    "env",
    "every",
    "expires_days",
    "fault",
    "file",
    "from",
    "from_tfstate",
    "grace",
    "id",
    "keep",
    "length",
    "lineage",
    "live",
    "model",
    "name",
    "objects",
    "older_than",
    "only",
    "output",
    "percent",
    "plan",
    "production",
    "provider",
    "rate_limit",
    "rebind",
    "region",
    "replace",
    "replaced_states",
    "resources",
    "scopes",
    "seconds",
    "server",
    "site",
    "state",
    "state_dir",
    "take_ownership",
    "tenant",
    "tenants",
    "to",
    "token_limit",
    "token_rate_limit",
    "transactions",
    "ttl",
    "until",
    "users",
    "wait",
    "waive",
    "what",
];
const HIDDEN: &str = "***";

/// The command line without secrets.
struct TypedCommand {
    /// The command: `up`, `state move`.
    name: String,
    /// Its arguments as typed. Values from variables are left out.
    arguments: Vec<String>,
}

impl TypedCommand {
    fn of(words: impl IntoIterator<Item = OsString>) -> Self {
        let mut definition = help::command();
        let parsed = definition.try_get_matches_from_mut(textnlp_server::current(words));
        let Ok(matches) = parsed else { return Self { name: String::new(), arguments: Vec::new() } };
        let (mut names, mut at, mut within) = (Vec::new(), &matches, &definition);
        while let Some((name, inner)) = at.subcommand() {
            let Some(sub) = within.find_subcommand(name) else { break };
            names.push(name);
            (at, within) = (inner, sub);
        }
        let mut arguments = Vec::new();
        for arg in within.get_arguments() {
            let id = arg.get_id().as_str();
            // The reason has a field of its own.
            if id == "reason" || at.value_source(id) != Some(ValueSource::CommandLine) {
                continue;
            }
            let flag = arg.get_long().map(|long| format!("--{long}"));
            if !arg.get_action().takes_values() {
                arguments.extend(flag);
                continue;
            }
            // As parsed where that is a text: of an API key it is the public ID.
            let values: Vec<String> = match at.try_get_many::<String>(id) {
                Ok(values) => values.into_iter().flatten().cloned().collect(),
                Err(_) => {
                    at.get_raw(id).into_iter().flatten().map(|value| value.to_string_lossy().into_owned()).collect()
                }
            };
            let shown = values.iter().map(|value| shown(id, value));
            arguments.extend(shown.map(|value| flag.as_ref().map_or(value.clone(), |flag| format!("{flag}={value}"))));
        }
        Self { name: names.join(" "), arguments }
    }

    /// A command that is not typed itself, with these arguments and the flags of its session.
    fn within(session: &Session, name: &str, mut arguments: Vec<String>) -> Self {
        let again = session.again();
        let which = [("--env", again.env), ("--file", again.file)];
        let which = which.into_iter().filter_map(|(flag, value)| Some((flag.to_owned(), value?)));
        let flags = which.chain(again.changes);
        arguments.extend(flags.map(|(flag, value)| {
            let id = flag.trim_start_matches('-').replace('-', "_");
            format!("{flag}={}", shown(&id, &value))
        }));
        Self { name: name.to_owned(), arguments }
    }

    /// The record of its start.
    fn command(&self, session: &Session, environment: EnvironmentName, release: Option<String>) -> AuditedCommand {
        let who = operator(session);
        let caller = textnlp_files::caller();
        let user = textnlp_files::user_name(caller).unwrap_or_else(|| format!("uid {caller}"));
        let command = AuditedCommand {
            id: Uuid::new_v4(),
            environment,
            command: self.name.clone(),
            arguments: self.arguments.clone(),
            user: Some(user).filter(|user| *user != who.by),
            actor: who.by,
            claimed_sudo_user: std::env::var("SUDO_USER").ok(),
            host: who.host,
            pid: who.pid,
            tool: who.tool,
            release,
            reason: who.reason,
        };
        command.bounded()
    }
}

/// A value for the record. Of a changed setting it has the name. URLs may have credentials in them.
fn shown(id: &str, value: &str) -> String {
    if id == "set" {
        return value.split_once('=').map_or(HIDDEN.to_owned(), |(key, _)| format!("{key}={HIDDEN}"));
    }
    let has_credentials = value.contains("://") && value.contains(['@', '?', '#']);
    if SHOWN.contains(&id) && !has_credentials { value.to_owned() } else { HIDDEN.to_owned() }
}

/// A command whose start is recorded.
struct Attempt {
    command: AuditedCommand,
    folder: Utf8PathBuf,
    /// The recorded location of the state when the command began.
    located: Option<StateLocation>,
    store: Arc<dyn Store>,
    /// Whether the command may put another state in the place of this one.
    is_restore: bool,
}

/// Runs the command of the command line, with its records.
pub async fn run(session: &Session, command: Command, console: Console) -> Result<Success, Failure> {
    run_as(session, command, || TypedCommand::of(std::env::args_os()), console).await
}

/// Runs a command as a part of another one, with records of its own. Its type ends the recursion.
pub fn run_within<'a>(
    session: &'a Session,
    command: Command,
    (name, arguments): (&'a str, Vec<String>),
    console: Console,
) -> LocalBoxFuture<'a, Result<Success, Failure>> {
    run_as(session, command, move || TypedCommand::within(session, name, arguments), console).boxed_local()
}

async fn run_as(
    session: &Session,
    command: Command,
    typed: impl FnOnce() -> TypedCommand,
    console: Console,
) -> Result<Success, Failure> {
    let Effect::Changes(selected) = effect(&command, &session.global) else {
        return super::dispatch(session, command, console).await;
    };
    let typed = typed();
    let attempt = begin(session, &selected, &typed, console).await?;
    let is_restore = matches!(selected, Selected::Restored(_));
    let ended = AssertUnwindSafe(super::dispatch(session, command, console)).catch_unwind().await;
    let (outcome, exit, code) = match &ended {
        Ok(Ok(success)) => (CommandOutcome::Succeeded, success.exit.unwrap_or(Exit::Done) as i32, None),
        Ok(Err(failure)) => {
            let stopped = failure.exit == Exit::Stopped;
            let outcome = if stopped { CommandOutcome::Interrupted } else { CommandOutcome::Failed };
            (outcome, failure.exit as i32, Some(failure.code))
        }
        // The exit status of a panic.
        Err(_) => (CommandOutcome::Failed, 101, Some("panic")),
    };
    let end = |id| AuditEvent::End { id, outcome, exit, code: code.map(str::to_owned) };
    let recorded = match (attempt, &ended) {
        (Some(attempt), _) => attempt.end(session, end).await,
        (None, Ok(Ok(success))) if is_restore => restored(session, &typed, success, end).await,
        (None, _) => Ok(()),
    };
    if let Err(failure) = recorded {
        console.warn(format!("the end of this command is not in the audit log: {:#}", failure.error));
    }
    ended.unwrap_or_else(|panic| resume_unwind(panic))
}

/// Records that a command begins. `None`: it has nothing to change, or it will fail.
async fn begin(
    session: &Session,
    selected: &Selected<'_>,
    typed: &TypedCommand,
    console: Console,
) -> Result<Option<Attempt>, Failure> {
    let Some((name, folder, chosen)) = locate(session, selected)? else { return Ok(None) };
    let located = stores::recorded(&folder);
    let mut store = match open(&folder, &located, chosen.as_ref(), session) {
        Ok(store) => store,
        Err(failure) => {
            // Other commands fail for the same reason.
            if matches!(selected, Selected::Rescue) {
                console.warn(format!("this command is not recorded in the audit log: {:#}", failure.error));
            }
            return Ok(None);
        }
    };
    let located = located.unwrap_or_default();
    if typed.name == "down" && located.is_none() {
        // It runs on a full disk too.
        Folder::at(folder.clone()).free_reserve();
    }
    let is_restore = matches!(selected, Selected::Restored(_));
    let may_create = matches!(selected, Selected::New | Selected::Planned(_) | Selected::Named(_));
    let release = chosen.as_ref().and_then(|chosen| chosen.lock().ok().flatten()).map(|lock| short(&lock.server));
    let command = typed.command(session, name.clone(), release);
    let write = async |store: &dyn Store| {
        if !may_create && store.document(LINEAGE).await?.is_none() && store.sites().await?.is_empty() {
            return Ok::<bool, StateError>(false);
        }
        audit::append(store, &SystemClock, &[AuditEvent::Begin(Box::new(command.clone()))]).await.map(|()| true)
    };
    let mut written = write(&*store).await;
    let is_full = written.as_ref().is_err_and(StateError::is_full);
    if is_full
        && matches!(selected, Selected::RecordedOnFullDisk)
        && located.is_none()
        && Folder::at(&*folder).release_part_of_reserve()
    {
        // A failed write closed the store.
        store = stores::of_folder(&folder)?;
        written = write(&*store).await;
    }
    match written {
        Ok(true) => Ok(Some(Attempt { command, folder, located, store, is_restore })),
        Ok(false) => Ok(None),
        Err(error) if matches!(selected, Selected::Rescue | Selected::Restored(_)) => {
            let error = anyhow::Error::new(error);
            console.warn(format!("this command is not recorded in the audit log: {error:#}"));
            Ok(None)
        }
        Err(error) => {
            let failure = state_failed(error, &session.again(), &name);
            let error = failure.error.context("this command cannot be recorded in the audit log, so nothing was done");
            Err(Failure { code: "not_recorded", error, ..failure })
        }
    }
}

/// The file of a state that names its deployment.
const LINEAGE: &str = "lineage.json";

/// The environment of a command, and its folder.
type Located = (EnvironmentName, Utf8PathBuf, Option<ChosenEnvironment>);

fn locate(session: &Session, selected: &Selected<'_>) -> Result<Option<Located>, Failure> {
    let chosen = match selected {
        Selected::Deployed | Selected::New | Selected::Rescue | Selected::RecordedOnFullDisk => load(session)?,
        Selected::Planned(args) => match apply::planned_session(session, args) {
            Ok(planned) => load(&planned)?,
            Err(_) => None,
        },
        Selected::Named(name) => {
            load(&Session::new(Global { env: Some((*name).to_owned()), file: None, ..session.global.clone() })?)?
        }
        Selected::Restored(args) => {
            let name = args.replace.as_ref().or(session.global.env.as_ref());
            let Some(name) = name.and_then(|name| EnvironmentName::new(name).ok()) else { return Ok(None) };
            let folder = session.state_folder(&name)?;
            let is_there = folder.join(LINEAGE).exists() || folder.join("store.json").exists();
            let is_safe = is_there && textnlp_service::access::check(&clouds::Linked, &folder).is_ok();
            return Ok(is_safe.then_some((name, folder, None)));
        }
    };
    Ok(chosen.map(|chosen| (chosen.scope.name.clone(), chosen.scope.folder.clone(), Some(chosen))))
}

/// Loads an environment as the command will. `None`: the command fails for the same reason, and reports it itself.
fn load(session: &Session) -> Result<Option<ChosenEnvironment>, Failure> {
    let was_root = textnlp_files::caller() == 0;
    match session.load(session.quiet()) {
        Ok(chosen) => Ok(Some(chosen)),
        // After a failed change of the user the process may only end.
        Err(failure) if was_root && textnlp_files::caller() != 0 => Err(failure),
        Err(_) => Ok(None),
    }
}

/// The store that has the state, else the one of the environment file.
fn open(
    folder: &Utf8Path,
    located: &Result<Option<StateLocation>, Failure>,
    chosen: Option<&ChosenEnvironment>,
    session: &Session,
) -> Result<Arc<dyn Store>, Failure> {
    match (located, chosen) {
        (Ok(None), Some(chosen)) if !folder.join(LINEAGE).exists() => {
            StateLocation::of(&chosen.loaded.environment)?.open(folder, session.quiet())
        }
        _ => stores::of_folder(folder),
    }
}

/// The store with the audit log of an environment, for reading.
pub fn log_store(session: &Session, chosen: &ChosenEnvironment) -> Result<Arc<dyn Store>, Failure> {
    let folder = &chosen.scope.folder;
    open(folder, &stores::recorded(folder), Some(chosen), session)
}

impl Attempt {
    /// Records the end, in the store where the state is now.
    async fn end(self, session: &Session, end: impl Fn(Uuid) -> AuditEvent) -> Result<(), Failure> {
        let Self { command, folder, located, store, is_restore } = self;
        let failed = |error| state_failed(error, &session.again(), &command.environment);
        let now = stores::recorded(&folder)?;
        let is_moved = now != located;
        let store = if is_moved { stores::of_folder(&folder)? } else { store };
        let mut events = vec![end(command.id)];
        // A backup has an earlier log.
        if is_moved || is_restore {
            let log = audit::read(&*store).await.map_err(failed)?;
            if log.commands.iter().all(|known| known.command.id != command.id) {
                events.insert(0, AuditEvent::Begin(Box::new(command.clone())));
            }
        }
        audit::append(&*store, &SystemClock, &events).await.map_err(failed)
    }
}

/// Records a restore to a place that had no state before it.
async fn restored(
    session: &Session,
    typed: &TypedCommand,
    success: &Success,
    end: impl Fn(Uuid) -> AuditEvent,
) -> Result<(), Failure> {
    // With --up, the document is that of `up`.
    let document = success.document.get("restored").and_then(Value::as_object).unwrap_or(&success.document);
    let text = |name: &str| document.get(name).and_then(Value::as_str);
    let (Some(name), Some(folder)) = (text("environment"), text("state")) else { return Ok(()) };
    let name = EnvironmentName::new(name).map_err(|error| Failure::usage("invalid_name", error))?;
    let store = stores::of_folder(Utf8Path::new(folder))?;
    let command = typed.command(session, name.clone(), None);
    let events = [AuditEvent::Begin(Box::new(command.clone())), end(command.id)];
    let written = audit::append(&*store, &SystemClock, &events).await;
    written.map_err(|error| state_failed(error, &session.again(), &name))
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::args::Cli;

    fn typed(words: &[&str]) -> TypedCommand {
        TypedCommand::of(["textnlp-deploy"].iter().chain(words).map(OsString::from))
    }

    fn is_recorded(words: &[&str]) -> bool {
        let cli = Cli::try_parse_from(["textnlp-deploy"].iter().chain(words)).unwrap();
        matches!(effect(&cli.command, &cli.global), Effect::Changes(_))
    }

    #[test]
    fn commands_that_only_read_are_not_recorded() {
        for changing in [
            &["up"][..],
            &["down", "--yes"],
            &["apply", "plan"],
            &["hold", "--release"],
            &["hold", "--reason", "exams"],
            &["state", "move", "--to", "local"],
            &["rollback"],
            &["rollback", "--config", "--to", "1f0c2ab"],
            &["promote", "--from", "a", "--to", "b"],
            &["restore", "file"],
            &["backup", "key", "show"],
            &["deps", "update"],
            &["cleanup", "--older-than", "30d"],
        ] {
            assert!(is_recorded(changing), "{changing:?}");
        }
        for reading in [
            &["status"][..],
            &["plan"],
            &["hold"],
            &["state", "list"],
            &["rollback", "--config"],
            &["key", "list"],
            &["audit", "list"],
            &["deps"],
            &["cleanup", "--older-than", "30d", "--dry-run"],
            &["bundle", "keygen"],
        ] {
            assert!(!is_recorded(reading), "{reading:?}");
        }
    }

    #[test]
    fn what_frees_space_or_revokes_a_key_is_recorded_on_a_full_disk() {
        let is_freeing = |words: &[&str]| {
            let cli = Cli::try_parse_from(["textnlp-deploy"].iter().chain(words)).unwrap();
            matches!(effect(&cli.command, &cli.global), Effect::Changes(Selected::RecordedOnFullDisk))
        };
        let key = "0123456789abcdef";
        let cleanup = ["cleanup", "--older-than", "30d"];
        for freeing in [&cleanup[..], &["backup", "prune"], &["key", "revoke", key]] {
            assert!(is_freeing(freeing), "{freeing:?}");
        }
        let shown = [&cleanup[..], &["--dry-run"]].concat();
        for other in [&shown[..], &["backup", "create"], &["key", "create", "a"], &["down"]] {
            assert!(!is_freeing(other), "{other:?}");
        }
    }

    #[test]
    fn values_that_may_be_secret_are_hidden() {
        let up = typed(&[
            "up",
            "--env",
            "staging",
            "--set",
            "database.password=hunter2",
            "--prompt",
            "hunter2",
            "--yes",
            "--reason",
            "hunter2",
        ]);
        assert_eq!(up.name, "up");
        let mut arguments = up.arguments;
        arguments.sort();
        assert_eq!(arguments, ["--env=staging", "--prompt=***", "--set=database.password=***", "--yes"]);
        let moved = typed(&["state", "move", "--to", "s3://bucket/a", "-y"]);
        assert_eq!(
            (moved.name.as_str(), moved.arguments.contains(&"--to=s3://bucket/a".to_owned())),
            ("state move", true)
        );
        for secret in ["s3://user:hunter2@bucket/a", "https://host/?token=hunter2"] {
            let moved = typed(&["state", "move", "--to", secret]);
            assert!(!moved.arguments.iter().any(|argument| argument.contains("hunter2")), "{:?}", moved.arguments);
        }
        // Of a whole key only its public part is kept.
        let secret = "ab".repeat(32);
        let revoked = typed(&["key", "revoke", &format!("tnlp_0123456789abcdef_{secret}")]);
        assert_eq!(revoked.arguments, ["0123456789abcdef"]);
        assert_eq!(revoked.name, "key revoke");
    }

    /// The arguments of a command and of those below it.
    fn ids_of(command: &clap::Command, found: &mut Vec<String>) {
        found.extend(command.get_arguments().map(|arg| arg.get_id().to_string()));
        command.get_subcommands().for_each(|sub| ids_of(sub, found));
    }

    #[test]
    fn every_shown_argument_exists_and_none_is_named_like_a_secret() {
        let mut ids = Vec::new();
        ids_of(&help::command(), &mut ids);
        for id in SHOWN {
            assert!(ids.iter().any(|known| known == id), "no command has {id}");
            let is_secret =
                ["key", "pass", "secret", "credential", "url", "address"].iter().any(|word| id.contains(word));
            assert!(!is_secret, "{id}");
        }
    }
}
