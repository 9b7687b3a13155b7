//! What each program of the server has: addresses, an HTTP listener, a graceful shutdown, metrics, a configuration file.
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic))]

mod address;
mod exposition;
mod guard;
mod leaving;
mod listen;

pub use address::Address;
pub use exposition::{OPENMETRICS, encoded};
pub use leaving::{Connected, Leaving};
pub use listen::{Listener, Peer, Serving};

use camino::Utf8Path;

/// Reads a YAML file of at most `most` bytes, strictly. The error is a sentence.
pub fn read_yaml<T: serde::de::DeserializeOwned>(file: &Utf8Path, most: u64) -> Result<T, String> {
    let length = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if length > most {
        return Err(format!("it has {length} bytes, more than {most}"));
    }
    let text = std::fs::read_to_string(file).map_err(|error| error.to_string())?;
    serde_yaml::from_str(&text).map_err(|error| error.to_string())
}
