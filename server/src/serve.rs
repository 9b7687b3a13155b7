//! `serve`: one program, several roles.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use camino::Utf8PathBuf;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use crate::border;
use crate::config::{Config, ConfigError, Monitoring};
use crate::control;
use crate::database::{self, Store, StoreError};
use crate::error::chain;
use crate::gateway;
use crate::keys_role::{KeysError, keys};
use crate::log;
use crate::models_role::{DeliveryError, deliver};
use crate::postgres;
use crate::ready_role;
use crate::server::{Server, StartError};

/// Arguments of `serve`.
#[derive(Debug, Clone, clap::Args)]
pub struct ServeArgs {
    /// What this process is
    #[arg(long, value_enum, default_value_t = Role::Server)]
    pub role: Role,
    /// The configuration: server.yaml, or the file of the role: gateway.yaml, border.yaml
    #[arg(long, value_name = "FILE")]
    pub config: Utf8PathBuf,
    /// With `--role migrate`: the schema to go to, instead of the newest
    #[arg(long, value_name = "N")]
    pub to: Option<u32>,
    /// With `--role backup`, `base` and `fetch`: the file that is made
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    /// With `--role archive` and `fetch`: the part of the log
    #[arg(long, value_name = "PART")]
    pub segment: Option<Utf8PathBuf>,
    /// With `--role keys`: the command, instead of standard input
    #[arg(long = "do", value_name = "JSON")]
    pub command: Option<String>,
}

/// What a process is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Answers requests
    Server,
    /// Spreads requests over servers
    Gateway,
    /// Passes every byte between a site and the others
    Border,
    /// Brings the database to a schema, prints {"from", "to", "made"} and ends
    Migrate,
    /// Says what the database is and what stands in its way, {"schema", "made", "connections", "problems", "notes"}, and ends
    Database,
    /// Does one JSON command about API keys from standard input
    Keys,
    /// Fetches the models of a list into their folders, proves each by its digest, prints {"models"} and ends
    Models,
    /// Keeps a site's control data equal to that of the other sites
    Watch,
    /// Keeps who is primary
    Witness,
    /// Keeps a PostgreSQL running, as a primary or as a copy
    Postgres,
    /// Copies the database into a file while it is used, prints {"schema", "keys", "usage", "bytes"} and ends
    Backup,
    /// Copies the files of a PostgreSQL of our own, from which its archived log goes on, prints what they are and ends
    Base,
    /// Hands a part of a PostgreSQL's log to whoever archives it: what PostgreSQL runs
    #[value(hide = true)]
    Archive,
    /// Asks the archive for a part of a PostgreSQL's log: what PostgreSQL runs
    #[value(hide = true)]
    Fetch,
    /// Asks the server of this configuration whether it takes requests, and ends: for health checks
    Ready,
}

/// Why `serve` ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log file.
    #[error("open the log {0}")]
    Log(String, #[source] std::io::Error),
    /// The start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The database.
    #[error("migrate the database")]
    Migrate(#[from] StoreError),
    /// A key command; what is wrong with it is on standard output.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The delivery of models.
    #[error(transparent)]
    Models(#[from] DeliveryError),
    /// The watch or the witness.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The gateway.
    #[error(transparent)]
    Gateway(#[from] gateway::Error),
    /// The border.
    #[error(transparent)]
    Border(#[from] border::Error),
    /// The keeper of a PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// A server that does not take requests.
    #[error("the server is not ready")]
    NotReady(#[source] std::io::Error),
    /// An argument that does not belong to the role.
    #[error("--to is only for --role migrate")]
    To,
    /// An argument that does not belong to the role.
    #[error("--do JSON is only for --role keys")]
    Do,
    /// An argument that does not belong to the role, or is missing.
    #[error("--out FILE belongs to --role backup, base and fetch, and only to them")]
    Out,
    /// An argument that does not belong to the role, or is missing.
    #[error("--segment PART belongs to --role archive and fetch, and only to them")]
    Segment,
    /// A part of a PostgreSQL's log; and whether it was asked for.
    #[error("the log of PostgreSQL")]
    Step(#[source] postgres::StepError, bool),
    /// The copy of the database.
    #[error("copy the database")]
    Copy(#[source] StoreError),
    /// Standard input, output, or signals.
    #[error("talk to the system")]
    System(#[from] std::io::Error),
}

/// Runs `serve` on a runtime of its own: HTTP needs few threads, the engine has its own.
pub fn run(args: ServeArgs) -> ExitCode {
    let workers = match args.role {
        // The file is read again inside; here only the number is wanted, and what is wrong is said there.
        Role::Server => Config::read(&args.config).map_or(1, |config| config.api.workers),
        Role::Gateway => std::thread::available_parallelism().map_or(2, usize::from).min(8),
        Role::Border | Role::Watch | Role::Witness => 2,
        Role::Migrate | Role::Database | Role::Keys | Role::Postgres | Role::Backup | Role::Ready => 1,
        Role::Base | Role::Archive | Role::Fetch | Role::Models => 1,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).thread_name("http").enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(serve(args));
            // What still hangs in blocking calls after a drain is not waited for.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(ServeError::System(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(match &error {
                ServeError::Config(_) | ServeError::Do | ServeError::To | ServeError::Out | ServeError::Segment => 2,
                ServeError::Step(step, fetches) => step.status(*fetches),
                _ => 1,
            })
        }
    }
}

/// Runs one role until it is done, or until the process is told to stop.
pub async fn serve(args: ServeArgs) -> Result<(), ServeError> {
    if args.to.is_some() && args.role != Role::Migrate {
        return Err(ServeError::To);
    }
    if args.command.is_some() && args.role != Role::Keys {
        return Err(ServeError::Do);
    }
    if args.out.is_some() != matches!(args.role, Role::Backup | Role::Base | Role::Fetch) {
        return Err(ServeError::Out);
    }
    if args.segment.is_some() != matches!(args.role, Role::Archive | Role::Fetch) {
        return Err(ServeError::Segment);
    }
    match args.role {
        Role::Server => server(Config::read(&args.config)?).await,
        Role::Gateway => {
            raise_file_limit();
            Ok(gateway::run(&args.config).await?)
        }
        Role::Border => {
            log_plainly()?;
            raise_file_limit();
            Ok(border::run(&args.config).await?)
        }
        Role::Postgres => {
            log_plainly()?;
            Ok(postgres::run(&args.config).await?)
        }
        Role::Watch | Role::Witness => {
            log_plainly()?;
            if args.role == Role::Watch {
                control::watch(&args.config).await?;
            } else {
                control::witness(&args.config).await?;
            }
            Ok(())
        }
        Role::Migrate => {
            let config = Config::read(&args.config)?;
            let store = Store::open(&config.database).await?;
            let done = store.migrate(args.to).await?;
            let made = store.made().await?;
            store.close().await;
            print(&json!({ "from": done.from, "to": done.to, "made": made }))
        }
        Role::Database => {
            let config = Config::read(&args.config)?;
            let found = database::ask(&config.database).await;
            print(&serde_json::to_value(found).map_err(std::io::Error::other)?)
        }
        Role::Backup => {
            let config = Config::read(&args.config)?;
            let to = args.out.ok_or(ServeError::Out)?;
            let copied = database::copy(&config.database, &to).await.map_err(ServeError::Copy)?;
            print(&serde_json::to_value(copied).map_err(std::io::Error::other)?)
        }
        Role::Base => {
            let to = args.out.ok_or(ServeError::Out)?;
            let copied = postgres::base(&args.config, &to).await?;
            print(&serde_json::to_value(copied).map_err(std::io::Error::other)?)
        }
        Role::Archive => {
            let part = args.segment.ok_or(ServeError::Segment)?;
            postgres::step::archive(&args.config, &part).map_err(|error| ServeError::Step(error, false))
        }
        Role::Fetch => {
            let (part, to) = (args.segment.ok_or(ServeError::Segment)?, args.out.ok_or(ServeError::Out)?);
            postgres::step::fetch(&args.config, &part, &to).map_err(|error| ServeError::Step(error, true))
        }
        Role::Models => {
            log_plainly()?;
            print(&deliver(&args.config).await?)
        }
        Role::Ready => {
            let config = Config::read(&args.config)?;
            ready_role::ask(&config.api.listen).await.map_err(ServeError::NotReady)
        }
        Role::Keys => {
            let config = Config::read(&args.config)?;
            let command = match args.command {
                Some(command) => command,
                None => {
                    let mut command = String::new();
                    std::io::stdin().take(1 << 20).read_to_string(&mut command)?;
                    command
                }
            };
            match keys(&config, &command).await {
                Ok(answer) => print(&answer),
                Err(error) => {
                    let hint = match &error {
                        KeysError::Command { hint, .. } => hint.clone(),
                        KeysError::Watch(why) => why.hint.clone(),
                        _ => None,
                    };
                    print(&json!({ "error": { "message": chain(&error), "hint": hint } }))?;
                    Err(error.into())
                }
            }
        }
    }
}

async fn server(config: Config) -> Result<(), ServeError> {
    let log_file =
        config.monitoring.log_file.as_ref().map_or_else(|| "standard output".to_owned(), ToString::to_string);
    log::begin(&config.monitoring).map_err(|error| ServeError::Log(log_file, error))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A log rotated by renaming is not ours to reopen (rotation copies and truncates); the signal must not kill us.
    let _hangup = signal(SignalKind::hangup())?;
    raise_file_limit();
    let server = Server::start(config).await?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::select! {
        _ = server.drain() => {}
        _ = terminate.recv() => tracing::warn!("told to stop twice: leaving at once"),
        _ = interrupt.recv() => tracing::warn!("told to stop twice: leaving at once"),
    }
    Ok(())
}

/// To standard output, for roles whose file says nothing of logs.
fn log_plainly() -> Result<(), ServeError> {
    log::begin(&Monitoring::standard()).map_err(|error| ServeError::Log("standard output".to_owned(), error))
}

/// Each connection is a file: the soft limit of 1,024 that shells give is raised to what the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays");
    }
}

fn print(value: &serde_json::Value) -> Result<(), ServeError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}

fn report(error: &ServeError) {
    let mut err = std::io::stderr().lock();
    let mut text = format!("error: {error}\n");
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!("  cause: {next}\n"));
        cause = next.source();
    }
    if let ServeError::Gateway(gateway) = error
        && let Some(hint) = gateway.hint()
    {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // Nobody is left to tell when standard error is gone.
    let _ = err.write_all(text.as_bytes());
}
