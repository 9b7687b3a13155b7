//! One module per command or group of commands. Each gets a session and arguments, and returns its output.

mod adapter;
mod alert;
mod analytics;
mod analyze;
mod apply;
mod audit_log;
mod audited;
pub mod backup;
mod baseline;
mod batch;
mod bundle;
mod cleanup;
mod compare;
mod compliance;
mod db;
mod deps;
mod doctor;
mod down;
mod dr;
mod env;
mod export;
mod feature;
pub mod gate;
mod health;
mod hold;
mod inference;
mod key;
mod kube_token;
mod load;
mod log_errors;
mod logs;
mod man;
mod metrics;
mod model;
mod monthly;
mod phase;
mod plan;
mod prelude;
mod probe;
mod providers;
pub mod reach;
mod release;
pub mod rollout;
mod secret;
mod security;
mod state;
mod status;
mod supervise;
mod support;
mod up;

use std::os::fd::{BorrowedFd, RawFd};

use anyhow::Context;

use self::prelude::*;
use crate::args::{Cli, Command};
use crate::dr_args::Dr;
use crate::operations_args::{Health, Metrics};
use crate::rerun_flags;

/// Runs the command from the command line.
pub fn run(cli: Cli, console: Console) -> Result<Success, Failure> {
    // A variable may be set for other commands.
    let is_typed = || rerun_flags::of(&cli.global).changes.iter().any(|(flag, _)| flag == "--site");
    if concerns_all_sites(&cli.command) && is_typed() {
        let error = anyhow::anyhow!("this command cannot be limited to a site");
        return Err(Failure::usage("conflicting_flags", error).hint("remove --site"));
    }
    match cli.command {
        // The supervisor creates its own runtime.
        Command::Supervise(args) => supervise::supervise(&args),
        Command::Completions(args) => Ok(supervise::completions(&args)),
        Command::Man(args) => man::man(&args),
        // It uses no environment, because kubectl runs it in any folder.
        Command::KubeToken(args) => kube_token::kube_token(&args),
        command => {
            keep_inherited_files().context("list the open files of this process")?;
            let session = Session::new(cli.global)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(audited::run(&session, command, console))
        }
    }
}

/// Whether `--site` has no meaning for a command.
fn concerns_all_sites(command: &Command) -> bool {
    match command {
        Command::Init(_)
        | Command::Providers
        | Command::Analyze(_)
        | Command::Analytics(_)
        | Command::Probe(_)
        | Command::Phase(_)
        | Command::Baseline(_)
        | Command::Compliance(_)
        | Command::Key(_)
        | Command::Feature(_)
        | Command::Audit(_)
        | Command::Release(_)
        | Command::Promote(_)
        | Command::Rollback(_)
        | Command::Model(_)
        | Command::Bundle(_)
        | Command::Backup(_)
        | Command::Restore(_)
        | Command::Alert(_)
        | Command::Generate(_)
        | Command::Chat(_)
        | Command::Tokenize(_)
        | Command::Embed(_)
        | Command::Batch(_)
        | Command::Validate(_)
        | Command::Load(_)
        | Command::Health(Health { command: None })
        | Command::Metrics(Metrics::Dashboard(_)) => true,
        Command::Dr(verb) => !matches!(verb, Dr::Drill(_)),
        _ => false,
    }
}

/// Keeps files that the caller left open, such as locks, from the programs that this one starts: they run for months, and
/// as other users.
fn keep_inherited_files() -> std::io::Result<()> {
    let open = match std::fs::read_dir("/proc/self/fd") {
        // Without /proc no program is started.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        open => open?,
    };
    for entry in open.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok());
        let Some(number) = number.filter(|number| *number > 2) else { continue };
        // SAFETY: nothing else runs yet, so a listed file is open, and stays so. That of the list is open while it is read.
        let file = unsafe { BorrowedFd::borrow_raw(number) };
        rustix::io::fcntl_setfd(file, rustix::io::FdFlags::CLOEXEC)?;
    }
    Ok(())
}

async fn dispatch(session: &Session, command: Command, console: Console) -> Result<Success, Failure> {
    match command {
        Command::Init(args) => env::init(session, &args),
        Command::Env(command) => env::env(session, &command, console),
        Command::Providers => Ok(providers::providers()),
        Command::Preflight => providers::preflight(session, console).await,
        Command::Plan(args) => plan::plan(session, &args, console).await,
        Command::Apply(args) => apply::apply(session, &args, console).await,
        Command::Up(args) => up::up(session, &args, console).await,
        Command::Down(args) => down::down(session, &args, console).await,
        Command::Status => status::status(session, console).await,
        Command::Drift { exit_code } => status::drift(session, exit_code, console).await,
        Command::Explain(args) => status::explain(session, &args, console).await,
        Command::Logs(args) => logs::logs(session, &args, console).await,
        Command::Analyze(args) => analyze::analyze(session, &args, console).await,
        Command::Metrics(command) => metrics::metrics(session, &command, console).await,
        Command::Analytics(command) => analytics::analytics(session, &command).await,
        Command::Probe(args) => probe::probe(session, &args, console).await,
        Command::Cost(command) => monthly::cost(session, &command, console).await,
        Command::Performance(command) => monthly::performance(session, &command, console).await,
        Command::Baseline(command) => baseline::baseline(session, &command, console).await,
        Command::Gate(args) => gate::gate(session, &args, console).await,
        Command::Phase(command) => phase::phase(session, &command, console),
        Command::State(command) => state::state(session, &command, console).await,
        Command::Hold(args) => hold::hold(session, &args, console).await,
        Command::Export(command) => export::export(session, &command, console).await,
        Command::Doctor => doctor::doctor(session, console).await,
        Command::Deps(args) => deps::deps(session, &args, console).await,
        Command::Db(command) => db::db(session, &command, console).await,
        Command::Cleanup(args) => cleanup::cleanup(session, &args, console).await,
        Command::SupportBundle(args) => support::support_bundle(session, &args, console).await,
        Command::Key(command) => key::key(session, &command, console).await,
        Command::Feature(command) => feature::feature(session, &command, console).await,
        Command::Secret(command) => secret::secret(session, &command, console).await,
        Command::Audit(command) => audit_log::audit(session, &command, console).await,
        Command::Compliance(command) => compliance::compliance(session, &command, console).await,
        Command::Security(command) => security::security(session, &command, console).await,
        Command::Release(command) => release::release(session, &command, console).await,
        Command::Promote(args) => release::promote(session, &args, console).await,
        Command::Rollback(args) => release::rollback(session, &args, console).await,
        Command::Adapter(args) => adapter::adapter(&args, console).await,
        Command::Rollout(command) => rollout::rollout(session, &command, console).await,
        Command::Model(command) => model::model(session, &command, console).await,
        Command::Bundle(verb) => bundle::bundle(session, &verb, console).await,
        Command::Dr(verb) => dr::dr(session, &verb, console).await,
        Command::Backup(verb) => backup::backup(session, &verb, console).await,
        Command::Alert(verb) => alert::alert(session, &verb, console).await,
        Command::Restore(args) => backup::restore(session, &args, console).await,
        Command::Generate(args) => inference::generate(session, args, console).await,
        Command::Chat(args) => inference::chat(session, args, console).await,
        Command::Tokenize(args) => inference::tokenize(session, args).await,
        Command::Embed(args) => inference::embed(session, args).await,
        Command::Batch(command) => batch::batch(session, &command, console).await,
        Command::Validate(args) => inference::validate(session, args).await,
        Command::Health(args) => health::health(session, &args, console).await,
        Command::Load(args) => load::load(session, &args, console).await,
        Command::Server(_)
        | Command::Supervise(_)
        | Command::Completions(_)
        | Command::Man(_)
        | Command::KubeToken(_) => {
            Err(Failure::new(Exit::Failed, "internal", anyhow::anyhow!("this command is run by its own function")))
        }
    }
}
