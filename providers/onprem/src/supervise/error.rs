//! Errors of the supervisor.

use camino::Utf8PathBuf;

/// Why a supervisor or one of its children could not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The site's folder cannot be used.
    #[error("use site folder {folder}")]
    Folder {
        /// The folder.
        folder: Utf8PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// Another supervisor runs.
    #[error("a supervisor of {folder} runs already, with pid {pid}")]
    Held {
        /// The folder of its site.
        folder: Utf8PathBuf,
        /// Its pid.
        pid: u32,
    },
    /// A unit file is invalid.
    #[error("read unit `{name}`: {why}")]
    Unit {
        /// The unit.
        name: String,
        /// The reason.
        why: String,
    },
    /// The unit's program runs already.
    #[error("unit `{name}` runs already")]
    Double {
        /// The unit.
        name: String,
    },
    /// The program could not be started.
    #[error("start unit `{name}`")]
    Exec {
        /// The unit.
        name: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The control socket or the event loop failed.
    #[error("run supervisor")]
    Run(#[source] std::io::Error),
}
