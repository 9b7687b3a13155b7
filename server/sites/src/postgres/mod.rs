//! `postgres`: supervises one PostgreSQL server on an existing directory, as a primary or as a replica.
//!
//! PostgreSQL refuses to run as root, so it runs as a separate user where this process is root. It stops with this
//! process, however that ends: see [`process`]. Roles, passwords and the database are updated to the configuration at
//! every start. For a PostgreSQL that several sites share, [`sites`] decides the role of this server.

mod api;
mod archive;
mod base;
mod config;
mod process;
mod setup;
mod sites;
pub mod step;

use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_process::InvalidConfig;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use archive::{Archive, Recover};
pub use base::{Base, base};
pub use config::{Config, Primary, Sites};
use process::Process;
pub use step::ArchiveStepError;

/// Why it does not run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be used.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// Its folder cannot be used.
    #[error("use {path}")]
    Folder {
        /// Which path.
        path: Utf8PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The data directory is missing: its data is lost.
    #[error("{0} contains no PostgreSQL data: the data that was stored there is missing")]
    Gone(Utf8PathBuf),
    /// It exited unexpectedly.
    #[error("PostgreSQL exited unexpectedly ({0}); see its output in the log above")]
    Ended(std::process::ExitStatus),
    /// A server of before has not stopped yet, and two on one folder destroy it.
    #[error("the previous server (process {0}) is still stopping")]
    Left(u32),
    /// A replica could not be created.
    #[error("copy the primary: {0}")]
    Copy(String),
    /// It may not become primary, although it should.
    #[error("{0}")]
    Unfit(String),
    /// A dump could not be read back.
    #[error("restore the database from its dump: {0}")]
    Restore(String),
    /// Its files could not be copied.
    #[error("copy the files of the database: {0}")]
    Base(String),
    /// Its log could not be marked.
    #[error("mark the log for its archive")]
    Archive(#[source] sqlx::Error),
    /// Roles and database could not be set up.
    #[error("prepare the database")]
    Make(#[source] sqlx::Error),
    /// Signals, sockets or processes.
    #[error("call the operating system")]
    System(#[from] std::io::Error),
}

/// Poll interval during startup.
const POLL_INTERVAL: Duration = Duration::from_millis(250);

/// Runs the PostgreSQL of this file until SIGTERM or SIGINT.
pub async fn run(file: &Utf8Path) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Arc::new(Config::read(file)?);
    if config.attended {
        // Without the terminal of the command that waits for it: the server's user could put input into it (`TIOCSTI`),
        // which the shell of root executes. It fails only where this process leads its group, and has none to lose.
        let _ = rustix::process::setsid();
    }
    if let Some(of) = config.sites.clone() {
        let statuses = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        return sites::run(config, of, statuses).await;
    }
    let state = api::State::new(config.clone());
    let stop = CancellationToken::new();
    let served = api::serve(&config.listen, state.clone(), stop.clone()).await?;
    let mut process = tokio::select! {
        started = begin(&config) => started?,
        _ = terminate.recv() => return Ok(()),
        _ = interrupt.recv() => return Ok(()),
    };
    let kept = tokio::spawn(keep(config.clone(), state, stop.clone()));
    let ended = tokio::select! {
        ended = process.ended() => Err(Error::Ended(ended?)),
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
        () = left(config.attended) => Ok(()),
    };
    stop.cancel();
    if ended.is_ok() {
        process.stop().await?;
    }
    kept.abort();
    served.abort();
    ended
}

/// Waits for the end of standard input: the parent process is gone.
async fn left(attended: bool) {
    if !attended {
        return std::future::pending().await;
    }
    // Input is ignored; only the end counts.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}

/// Writes the server's files, copies the primary if there is no data yet, and starts the server.
async fn begin(config: &Config) -> Result<Process, Error> {
    let there = config.data().join("PG_VERSION").is_file();
    match (&config.primary, there) {
        (Some(primary), false) => {
            process::copy_primary(config, primary).await?;
            process::take_copy(config).await?;
        }
        (None, false) => return Err(Error::Gone(config.data())),
        (_, true) => {}
    }
    config.write_files()?;
    Process::start(config)
}

/// Waits until the server answers, applies the configuration, and then polls it.
async fn keep(config: Arc<Config>, state: Arc<api::State>, stop: CancellationToken) {
    let mut made = false;
    let mut marked: Option<Instant> = None;
    loop {
        if !made {
            match setup::make(&config).await {
                Ok(()) => made = true,
                Err(error) => state.missed(&error),
            }
        }
        if made {
            match setup::observe(&config, config.primary.is_none()).await {
                Ok(seen) => state.saw(seen),
                Err(error) => state.missed(&error),
            }
            let every = config.archive.as_ref().map(|archive| Duration::from_secs(archive.every_seconds));
            if every.is_some_and(|every| marked.is_none_or(|at| at.elapsed() >= every)) {
                marked = Some(Instant::now());
                if let Err(error) = archive::mark(&config).await {
                    tracing::warn!(error = textnlp_net::error_chain(&error), "the log could not be marked");
                }
            }
        }
        let pause = if made { api::POLL_INTERVAL } else { POLL_INTERVAL };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
