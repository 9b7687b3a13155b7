//! One file per verb, or per family of verbs. Each takes a session and its arguments, and returns what is to be said.

mod adapter;
mod alert;
mod apply;
mod audit;
pub mod backup;
mod bundle;
mod doctor;
mod down;
mod dr;
mod env;
mod export;
mod gate;
mod hold;
mod key;
mod kube_token;
mod load;
mod logs;
mod model;
mod plan;
mod providers;
mod release;
pub mod rollout;
pub mod running;
mod state;
mod status;
mod supervise;
mod support;
mod talk;
mod up;

use anyhow::Context;

use crate::args::{Cli, Command};
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// Runs the command that was typed.
pub fn run(cli: Cli, console: Console) -> Result<Success, Failure> {
    match cli.command {
        // It makes its own runtime, on a thread of its own.
        Command::Supervise(args) => supervise::supervise(&args),
        Command::Completions(args) => Ok(supervise::completions(&args)),
        // It is of no environment: kubectl runs it from any folder.
        Command::KubeToken(args) => kube_token::kube_token(&args),
        command => {
            let session = Session::new(cli.global)?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .context("start the runtime")?;
            runtime.block_on(dispatch(&session, command, console))
        }
    }
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
        Command::Drift => status::drift(session, console).await,
        Command::Explain(args) => status::explain(session, &args, console).await,
        Command::Logs(args) => logs::logs(session, &args, console).await,
        Command::Gate(args) => gate::gate(session, &args, console).await,
        Command::State(command) => state::state(session, &command, console).await,
        Command::Hold(args) => hold::hold(session, &args, console).await,
        Command::Export(command) => export::export(session, &command, console).await,
        Command::Doctor => doctor::doctor(session, console).await,
        Command::SupportBundle(args) => support::support_bundle(session, &args, console).await,
        Command::Key(command) => key::key(session, &command, console).await,
        Command::Release(command) => release::release(session, &command, console),
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
        Command::Generate(args) => talk::generate(session, args, console).await,
        Command::Chat(args) => talk::chat(session, args, console).await,
        Command::Tokenize(args) => talk::tokenize(session, args).await,
        Command::Validate(args) => talk::validate(session, args).await,
        Command::Health => talk::health(session).await,
        Command::Load(args) => load::load(session, &args, console).await,
        Command::Serve(_) | Command::Supervise(_) | Command::Completions(_) | Command::KubeToken(_) => {
            Err(Failure::new(Exit::Failed, "internal", anyhow::anyhow!("this command has a road of its own")))
        }
    }
}
