//! The commands of the server programs.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_gateway as gateway;
use textnlp_net::retry::{Backoff, RetryPolicy, retry};
use textnlp_sites::{control, postgres, relay};
use textnlp_store::{Store, StoreError};
use tokio::signal::unix::{SignalKind, signal};

use crate::admin::analytics::analytics;
use crate::admin::audit::audit;
use crate::admin::database::database;
use crate::admin::features::features;
use crate::admin::keys::{KeysError, keys};
use crate::admin::models::{DeliveryError, deliver};
use crate::admin::ready;
use crate::admin::usage::usage;
use crate::config::{Config, ConfigError, Monitoring};
use crate::container;
use crate::error::chain;
use crate::executors;
use crate::log;
use crate::server::{Server, StartError};
use crate::{chat, schemas};

/// The server programs.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Command {
    /// Serve the HTTP API
    Serve(ServerConfiguration),
    /// Terminate TLS and balance requests over servers
    Gateway(Configuration),
    /// Replicate a site's control data with the other sites
    Agent(Configuration),
    /// Grant the primary role to one site
    Witness(Configuration),
    /// Relay all traffic between a site and the others
    Relay(Configuration),
    /// Supervise a PostgreSQL server, as primary or standby
    Postgres(Configuration),
    /// Run a one-off command on the data of a server
    #[command(subcommand)]
    Admin(Admin),
    /// Render the chat template of one model; run by the server
    #[command(hide = true)]
    RenderChat,
    /// Compile the JSON schema on standard input within limits; run by the server
    #[command(hide = true)]
    CheckSchema,
}

/// One-off commands. Most print one JSON object.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum Admin {
    /// Migrate the database and print {"from", "to", "made"}
    Migrate {
        /// Its configuration.
        #[command(flatten)]
        configuration: Configuration,
        /// Target schema version [default: the newest]
        #[arg(long, value_name = "N")]
        to: Option<u32>,
    },
    /// Check the database and print {"schema", "made", "connections", "problems", "notes"}
    Check(Configuration),
    /// Run one JSON command about API keys
    Keys(JsonCommand),
    /// Print one page of the audit log, {"events", "next"}
    Audit(JsonCommand),
    /// Run one JSON command about feature flags
    Features(JsonCommand),
    /// Vacuum, analyze or measure the database and print the result
    Database(JsonCommand),
    /// Print the usage of a period, {"total", "days", "groups"}
    Usage(JsonCommand),
    /// Run usage analytics, or print insights: {"run"}, {"insights"} or the last run
    Analytics(JsonCommand),
    /// Download and verify a list of models and print {"models"}
    Models(Configuration),
    /// Check whether the server accepts requests; for health checks
    Ready(Configuration),
    /// Copy the live database to a file and print {"schema", "keys", "usage", "bytes"}
    Backup {
        /// Its configuration.
        #[command(flatten)]
        configuration: Configuration,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
    },
    /// Take a base backup of the supervised PostgreSQL server
    BaseBackup {
        /// Its configuration.
        #[command(flatten)]
        configuration: Configuration,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
    },
    /// Archive a PostgreSQL log segment; run by PostgreSQL
    #[command(hide = true)]
    ArchiveWal {
        /// Its configuration.
        #[command(flatten)]
        configuration: Configuration,
        /// Log segment
        #[arg(long, value_name = "FILE")]
        segment: Utf8PathBuf,
    },
    /// Restore a PostgreSQL log segment from the archive; run by PostgreSQL
    #[command(hide = true)]
    RestoreWal {
        /// Its configuration.
        #[command(flatten)]
        configuration: Configuration,
        /// Log segment
        #[arg(long, value_name = "NAME")]
        segment: Utf8PathBuf,
        /// File to write
        #[arg(long, value_name = "FILE")]
        out: Utf8PathBuf,
    },
}

/// The configuration of a program.
#[derive(Debug, Clone, clap::Args)]
pub struct Configuration {
    /// Configuration file of the program, such as server.yaml or gateway.yaml
    #[arg(long = "config", value_name = "FILE")]
    file: Utf8PathBuf,
}

/// The configuration of a server.
#[derive(Debug, Clone, clap::Args)]
pub struct ServerConfiguration {
    /// Configuration file, such as server.yaml; a container of SageMaker, Cloud Run, Vertex AI or Azure Machine Learning has variables instead
    #[arg(long = "config", value_name = "FILE")]
    file: Option<Utf8PathBuf>,
}

impl ServerConfiguration {
    fn read(&self) -> Result<Config, ConfigError> {
        container::config(self.file.as_deref())
    }
}

/// A configuration and a JSON command.
#[derive(Debug, Clone, clap::Args)]
pub struct JsonCommand {
    #[command(flatten)]
    configuration: Configuration,
    /// JSON command [default: read standard input]
    #[arg(long = "do", value_name = "JSON")]
    command: Option<String>,
}

impl JsonCommand {
    fn text(self) -> std::io::Result<String> {
        if let Some(command) = self.command {
            return Ok(command);
        }
        let mut command = String::new();
        std::io::stdin().take(1 << 20).read_to_string(&mut command)?;
        Ok(command)
    }
}

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The configuration.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The log file.
    #[error("open the log {0}")]
    Log(String, #[source] std::io::Error),
    /// A directory that the server needs.
    #[error("create the directory {0}")]
    Directory(Utf8PathBuf, #[source] std::io::Error),
    /// The start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The device of the models, which a restart may bring back.
    #[error("{0}: this process ends, and the next one starts with the device as new")]
    Fault(String),
    /// The database.
    #[error("migrate the database")]
    Migrate(#[from] StoreError),
    /// A key command; what is wrong with it is on standard output.
    #[error(transparent)]
    Keys(#[from] KeysError),
    /// The delivery of models.
    #[error(transparent)]
    Models(#[from] DeliveryError),
    /// The site agent or the witness.
    #[error(transparent)]
    Control(#[from] control::Error),
    /// The gateway.
    #[error(transparent)]
    Gateway(#[from] gateway::Error),
    /// The inter-site relay.
    #[error(transparent)]
    Relay(#[from] relay::Error),
    /// The supervisor of a PostgreSQL.
    #[error(transparent)]
    Postgres(#[from] postgres::Error),
    /// A server that does not take requests.
    #[error("the server is not ready")]
    NotReady(#[source] std::io::Error),
    /// A segment of PostgreSQL's log, and whether it was restored.
    #[error("archive or restore a segment of PostgreSQL's log")]
    Step(#[source] postgres::ArchiveStepError, bool),
    /// The copy of the database.
    #[error("copy the database")]
    Copy(#[source] StoreError),
    /// Ids and keys come from random numbers. A static program may read them from a file.
    #[error("the system gives no random numbers: a chroot or jail needs /dev/urandom")]
    Random,
    /// Standard input, output, or signals.
    #[error("call the operating system")]
    System(#[from] std::io::Error),
}

/// The supervisor starts the file that it verified, by its descriptor, and the kernel names a process after that number.
fn set_process_name() {
    let program = std::env::args_os().next().unwrap_or_default();
    let name = std::path::Path::new(&program).file_name().unwrap_or_default();
    if let Ok(name) = std::ffi::CString::new(name.as_encoded_bytes()) {
        // The name is for people only.
        let _ = rustix::thread::set_name(&name);
    }
}

/// Whether the random numbers that ids are made of are there: the library panics in each request otherwise.
fn has_random_numbers() -> bool {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let works = std::panic::catch_unwind(uuid::Uuid::new_v4).is_ok();
    std::panic::set_hook(hook);
    works
}

/// Runs a command on its own runtime: HTTP needs few threads, the engine has its own.
pub fn run(command: Command) -> ExitCode {
    set_process_name();
    disable_core_dumps();
    if !has_random_numbers() {
        report(&CommandError::Random);
        return ExitCode::FAILURE;
    }
    let workers = match &command {
        // The file is read again inside, where its problems are reported.
        Command::Serve(of) => of.read().map_or(1, |config| config.api.workers),
        Command::Gateway(_) => std::thread::available_parallelism().map_or(2, usize::from).min(8),
        Command::Agent(_) | Command::Witness(_) | Command::Relay(_) => 2,
        // A benchmark has many clients.
        Command::Admin(Admin::Database(_)) => std::thread::available_parallelism().map_or(1, usize::from).min(4),
        Command::Postgres(_) | Command::Admin(_) | Command::RenderChat | Command::CheckSchema => 1,
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(workers).thread_name("http").enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(execute(command));
            // What still hangs in blocking calls after a drain is not waited for.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(CommandError::System(error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            report(&error);
            ExitCode::from(status(&error))
        }
    }
}

/// The exit status of a command that failed.
fn status(error: &CommandError) -> u8 {
    match error {
        CommandError::Config(_) => 2,
        CommandError::Step(step, restores) => step.status(*restores),
        _ => 1,
    }
}

/// Runs until the command is done, or until SIGTERM or SIGINT.
async fn execute(command: Command) -> Result<(), CommandError> {
    match command {
        Command::Serve(of) => server(of.read()?).await,
        Command::Gateway(of) => {
            log_plainly()?;
            raise_file_limit();
            Ok(gateway::run(&of.file).await?)
        }
        Command::Agent(of) => {
            log_plainly()?;
            Ok(control::watch(&of.file).await?)
        }
        Command::Witness(of) => {
            log_plainly()?;
            Ok(control::witness(&of.file).await?)
        }
        Command::Relay(of) => {
            log_plainly()?;
            raise_file_limit();
            Ok(relay::run(&of.file).await?)
        }
        Command::Postgres(of) => {
            log_plainly()?;
            Ok(postgres::run(&of.file).await?)
        }
        Command::Admin(command) => administer(command).await,
        Command::RenderChat => Ok(chat::serve_renderings()?),
        Command::CheckSchema => Ok(schemas::serve()?),
    }
}

/// A migration waits about 20 seconds for a database that does not answer.
const ELECTION: RetryPolicy =
    RetryPolicy::new(24, Backoff { first: Duration::from_millis(100), longest: Duration::from_secs(1) });

async fn administer(command: Admin) -> Result<(), CommandError> {
    match command {
        Admin::Migrate { configuration, to } => {
            let config = Config::read(&configuration.file)?;
            // Servers change only after this command, and those of this program would not start.
            executors::supports(config.models.device).map_err(StartError::Device)?;
            // The primary of several sites may be elected only now.
            let open = || Store::open(&config.database);
            let store = retry(ELECTION, StoreError::passes, open).await?;
            let done = store.migrate(to).await?;
            let made = store.made().await?;
            store.close().await;
            print(&json!({ "from": done.from, "to": done.to, "made": made }))
        }
        Admin::Check(of) => {
            let config = Config::read(&of.file)?;
            let found = textnlp_store::check_database(&config.database).await;
            print(&serde_json::to_value(found).map_err(std::io::Error::other)?)
        }
        Admin::Keys(of) => {
            let config = Config::read(&of.configuration.file)?;
            answer(keys(&config, &of.text()?).await)
        }
        Admin::Audit(of) => {
            let config = Config::read(&of.configuration.file)?;
            answer(audit(&config, &of.text()?).await)
        }
        Admin::Features(of) => {
            let config = Config::read(&of.configuration.file)?;
            answer(features(&config, &of.text()?).await)
        }
        Admin::Database(of) => {
            let config = Config::read(&of.configuration.file)?;
            answer(database(&config, &of.text()?).await)
        }
        Admin::Usage(of) => {
            let config = Config::read(&of.configuration.file)?;
            answer(usage(&config, &of.text()?).await)
        }
        Admin::Analytics(of) => {
            let config = Config::read(&of.configuration.file)?;
            answer(analytics(&config, &of.text()?).await)
        }
        Admin::Models(of) => {
            log_plainly()?;
            print(&deliver(&of.file).await?)
        }
        Admin::Ready(of) => {
            let config = Config::read(&of.file)?;
            ready::ask(&config.api.listen).await.map_err(CommandError::NotReady)
        }
        Admin::Backup { configuration, out } => {
            let config = Config::read(&configuration.file)?;
            let copied = textnlp_store::copy(&config.database, &out).await.map_err(CommandError::Copy)?;
            print(&serde_json::to_value(copied).map_err(std::io::Error::other)?)
        }
        Admin::BaseBackup { configuration, out } => {
            let copied = postgres::base(&configuration.file, &out).await?;
            print(&serde_json::to_value(copied).map_err(std::io::Error::other)?)
        }
        Admin::ArchiveWal { configuration, segment } => {
            postgres::step::archive(&configuration.file, &segment).map_err(|error| CommandError::Step(error, false))
        }
        Admin::RestoreWal { configuration, segment, out } => {
            postgres::step::fetch(&configuration.file, &segment, &out).map_err(|error| CommandError::Step(error, true))
        }
    }
}

/// Prints the answer of a JSON command, or its error with the hint.
fn answer(done: Result<serde_json::Value, KeysError>) -> Result<(), CommandError> {
    let error = match done {
        Ok(answer) => return print(&answer),
        Err(error) => error,
    };
    let hint = match &error {
        KeysError::Command { hint, .. } => hint.clone(),
        KeysError::Watch(why) => why.hint.clone(),
        KeysError::Store(StoreError::Missing(_) | StoreError::Empty(_)) => Some(
            "check that its disk is mounted; if it is lost, restore a backup: `textnlp-deploy backup list` lists them, \
             `textnlp-deploy restore` restores one"
                .to_owned(),
        ),
        _ => None,
    };
    // A wrong command is the caller's mistake, a full disk is not.
    let internal = matches!(error, KeysError::Store(_) | KeysError::Random);
    let passes = matches!(&error, KeysError::Store(error) if error.passes());
    print(&json!({ "error": { "message": chain(&error), "hint": hint, "internal": internal, "passes": passes } }))?;
    Err(error.into())
}

async fn server(config: Config) -> Result<(), CommandError> {
    let log_file =
        config.monitoring.log_file.as_ref().map_or_else(|| "standard output".to_owned(), ToString::to_string);
    log::begin(&config.monitoring).map_err(|error| CommandError::Log(log_file, error))?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    // A log rotated by renaming is not ours to reopen (rotation copies and truncates); the signal must not kill us.
    let _hangup = signal(SignalKind::hangup())?;
    raise_file_limit();
    if let Some(container) = config.container {
        tokio::select! {
            prepared = container::prepare(&config, container) => prepared?,
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
        }
    }
    let server = Server::start(config).await?;
    let fault = tokio::select! {
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
        why = server.fault() => Some(why),
    };
    if let Some(why) = &fault {
        tracing::error!(why, "a model's device failed, so the server stops");
    }
    tokio::select! {
        _ = server.drain() => {}
        _ = terminate.recv() => tracing::warn!("second stop signal: exiting immediately"),
        _ = interrupt.recv() => tracing::warn!("second stop signal: exiting immediately"),
    }
    outcome(fault)
}

/// The outcome of a server that drained: an error if a device failed, so that its supervisor starts it again.
fn outcome(fault: Option<String>) -> Result<(), CommandError> {
    fault.map_or(Ok(()), |why| Err(CommandError::Fault(why)))
}

/// To standard output, for programs whose configuration has no log settings.
fn log_plainly() -> Result<(), CommandError> {
    log::begin(&Monitoring::standard()).map_err(|error| CommandError::Log("standard output".to_owned(), error))
}

/// No core file of this process and its children: it would hold keys and prompts.
///
/// Not `PR_SET_DUMPABLE`: children read files that their parent passes as `/proc/PID/fd/N`, and the gate of an air-gapped
/// site reads the connections of the service there.
pub fn disable_core_dumps() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    // One byte and not zero: with zero the kernel still passes the core to a handler such as systemd-coredump; see core(5).
    let most = Some(getrlimit(Resource::Core).maximum.map_or(1, |most| most.min(1)));
    // A lower limit is always allowed.
    let _ = setrlimit(Resource::Core, Rlimit { current: most, maximum: most });
}

/// Each connection is a file: the soft limit of 1,024 that shells give is raised to what the system allows.
fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files could not be raised");
    }
}

fn print(value: &serde_json::Value) -> Result<(), CommandError> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}")?;
    out.flush()?;
    Ok(())
}

/// The hint of a server whose database is missing or empty. A status shows the last line of its log.
const LOST_DATABASE: &str = "the file of the database is missing or empty: check that its disk is mounted; if it is lost, restore a backup \
     (`textnlp-deploy backup list`), or create an empty one: `textnlp-deploy up` (with `data: protected` also `--accept-data-loss ENV`), or \
     `textnlp-server admin migrate` with the same configuration";

fn report(error: &CommandError) {
    let mut err = std::io::stderr().lock();
    let mut text = format!("error: {error}\n");
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text.push_str(&format!("  cause: {next}\n"));
        cause = next.source();
    }
    let hint = match error {
        CommandError::Gateway(gateway) => gateway.hint(),
        CommandError::Start(StartError::Database { source: StoreError::Missing(_) | StoreError::Empty(_), .. }) => {
            Some(LOST_DATABASE.to_owned())
        }
        _ => None,
    };
    if let Some(hint) = hint {
        text.push_str(&format!("hint: {hint}\n"));
    }
    // There is no other place to report that standard error is closed.
    let _ = err.write_all(text.as_bytes());
}

#[cfg(test)]
mod tests {
    use super::{outcome, status};

    #[test]
    fn server_whose_device_failed_ends_with_status_1() {
        let error = outcome(Some("GPU 0 fails in each call".to_owned())).unwrap_err();
        assert_eq!((status(&error), error.to_string().starts_with("GPU 0 fails in each call: ")), (1, true));
        assert!(outcome(None).is_ok(), "stopped by a signal");
    }
}
