//! `serve --role postgres`: keeps one PostgreSQL running on a folder that somebody has made, as a primary or as a copy that follows it.
//!
//! PostgreSQL refuses to run as root, so it runs as a user of its own where this process is root. It ends with this process, however
//! that ends: see [`process`]. Roles, passwords and the database are made what the configuration says at every start. Of a PostgreSQL that
//! several sites share, [`sites`] decides what the one here is.

mod api;
mod archive;
mod base;
mod config;
mod make;
mod process;
pub(crate) mod programs;
mod sites;
pub(crate) mod step;

use std::sync::Arc;
use std::time::{Duration, Instant};

use camino::{Utf8Path, Utf8PathBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

pub use archive::{Archive, Recover};
pub use base::{Base, base};
pub use config::{Config, Primary, Sites};
use process::Process;
pub use step::StepError;

/// Why it does not run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The configuration file cannot be used.
    #[error("configuration {file}: {why}")]
    Config {
        /// Which file.
        file: Utf8PathBuf,
        /// Why not.
        why: String,
    },
    /// Its folder cannot be used.
    #[error("use {path}")]
    Folder {
        /// Which path.
        path: Utf8PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// There is nothing to run on: what was stored is gone.
    #[error("{0} holds no PostgreSQL: what was stored there is gone")]
    Gone(Utf8PathBuf),
    /// It ended by itself.
    #[error("PostgreSQL ended by itself ({0}); its own words are in the log above")]
    Ended(std::process::ExitStatus),
    /// A server of before has not stopped yet, and two on one folder destroy it.
    #[error("the server of before (process {0}) still stops")]
    Left(u32),
    /// A copy could not be begun.
    #[error("copy the primary: {0}")]
    Copy(String),
    /// It may not lead, although it is to.
    #[error("{0}")]
    Unfit(String),
    /// A dump could not be read back.
    #[error("make the database from its dump: {0}")]
    Restore(String),
    /// Its files could not be copied.
    #[error("copy the files of the database: {0}")]
    Base(String),
    /// Its log could not be marked.
    #[error("mark the log for its archive")]
    Archive(#[source] sqlx::Error),
    /// Roles and database could not be made.
    #[error("prepare the database")]
    Make(#[source] sqlx::Error),
    /// Signals, sockets or processes.
    #[error("talk to the system")]
    System(#[from] std::io::Error),
}

/// Between two looks at a server that starts.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// Runs the PostgreSQL of this file until SIGTERM or SIGINT.
pub async fn run(file: &Utf8Path) -> Result<(), Error> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let config = Arc::new(Config::read(file)?);
    if let Some(of) = config.sites.clone() {
        let told = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        return sites::run(config, of, told).await;
    }
    let state = api::State::new(config.clone());
    let stop = CancellationToken::new();
    let served = api::serve(&config.listen, state.clone(), stop.clone()).await?;
    let mut process = tokio::select! {
        begun = begin(&config) => begun?,
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

/// Waits for the end of standard input: whoever holds the other end is gone.
async fn left(attended: bool) {
    if !attended {
        return std::future::pending().await;
    }
    // A byte of somebody's is no end.
    let _ = tokio::io::copy(&mut tokio::io::stdin(), &mut tokio::io::sink()).await;
}

/// Writes what the server reads, copies the primary where there is nothing yet, and starts it.
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

/// Waits until it answers, makes it what the configuration says, and looks at it from then on.
async fn keep(config: Arc<Config>, state: Arc<api::State>, stop: CancellationToken) {
    let mut made = false;
    let mut marked: Option<Instant> = None;
    loop {
        if !made {
            match make::make(&config).await {
                Ok(()) => made = true,
                Err(error) => state.missed(&error),
            }
        }
        if made {
            match make::look(&config, config.primary.is_none()).await {
                Ok(seen) => state.saw(seen),
                Err(error) => state.missed(&error),
            }
            let every = config.archive.as_ref().map(|archive| Duration::from_secs(archive.every_seconds));
            if every.is_some_and(|every| marked.is_none_or(|at| at.elapsed() >= every)) {
                marked = Some(Instant::now());
                if let Err(error) = archive::mark(&config).await {
                    tracing::warn!(error = crate::error::chain(&error), "the log is not marked");
                }
            }
        }
        let pause = if made { api::LOOK_EVERY } else { LOOK_EVERY };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}
