//! What each program of the server has: addresses, an HTTP listener, a graceful shutdown, metrics, a configuration file, the trace of a
//! request.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod address;
mod cors;
mod exposition;
mod guard;
mod leaving;
mod line_limit;
mod listen;
mod memory;
mod trace;

pub use address::Address;
pub use cors::Cors;
pub use exposition::{OPENMETRICS, encoded, negotiated};
pub use leaving::{Connected, Leaving};
pub use line_limit::LineLimit;
pub use listen::{Listener, Peer, Serving};
pub use memory::release_memory;
pub use trace::{TRACEPARENT, TRACESTATE, TraceContext};

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;

/// A configuration that cannot be used, with everything that is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{label} {file}: {}", .problems.join("; "))]
pub struct InvalidConfig {
    /// The kind of configuration, as errors name it: `gateway configuration`.
    pub label: &'static str,
    /// The file.
    pub file: Utf8PathBuf,
    /// The problems, one sentence each.
    pub problems: Vec<String>,
}

/// Reads a section of a YAML file of at most `most` bytes, strictly, and checks it.
pub fn read_config<D: DeserializeOwned, T, P: IntoIterator<Item = String>>(
    label: &'static str,
    file: &Utf8Path,
    most: u64,
    section: impl FnOnce(D) -> T,
    check: impl FnOnce(&T) -> P,
) -> Result<T, InvalidConfig> {
    let fail = |problems| InvalidConfig { label, file: file.to_owned(), problems };
    let config = section(read_yaml(file, most).map_err(|problem| fail(vec![problem]))?);
    let problems: Vec<String> = check(&config).into_iter().collect();
    if problems.is_empty() { Ok(config) } else { Err(fail(problems)) }
}

fn read_yaml<T: DeserializeOwned>(file: &Utf8Path, most: u64) -> Result<T, String> {
    let length = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if length > most {
        return Err(format!("it has {length} bytes, more than {most}"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    serde_yaml::from_str(&text).map_err(|error| error.to_string())
}
