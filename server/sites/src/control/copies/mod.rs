//! Copies of the primary's models and configuration at every other site.
//!
//! Every site agent offers what its site has ([`offer`]). A site that is not primary copies what it lacks from the
//! primary ([`take`]), file by file. Downloads resume, and a file is accepted only by its digest. The deploying client
//! is not involved.
//!
//! ```text
//! FOLDER/copies/models/HEX/          a model by its digest, as a model folder; appears by one rename
//! FOLDER/copies/models/.part-HEX/    an incomplete one
//! FOLDER/copies/configuration/       the primary's configuration files
//! ```

pub(super) mod offer;
mod take;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use camino::{Utf8Path, Utf8PathBuf};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use textnlp_models::Manifest;

pub(super) use take::follow;

/// `copies:` of a site agent's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiesConfig {
    /// The folder of the site's models, one folder each.
    pub models: Utf8PathBuf,
    /// The folder of the site's configuration files.
    pub configuration: Utf8PathBuf,
    /// Interval of the periodic comparison; a change is noticed sooner.
    pub models_every_ms: u64,
    /// The same for configuration.
    pub configuration_every_ms: u64,
    /// Whether models are compressed in transit.
    pub compress: bool,
}

impl CopiesConfig {
    /// The problem with the settings, as a sentence.
    pub(super) fn problem(&self) -> Option<String> {
        let folders = [("models", &self.models), ("configuration", &self.configuration)];
        let relative = folders.into_iter().find(|(_, folder)| !folder.is_absolute());
        let none = self.models_every_ms == 0 || self.configuration_every_ms == 0;
        relative
            .map(|(name, _)| format!("`copies.{name}` is not an absolute path"))
            .or_else(|| none.then(|| "`copies` has an interval of 0 ms".to_owned()))
    }
}

/// What a site offers to others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Offer {
    pub(super) models: Vec<Manifest>,
    pub(super) configuration: Vec<File>,
}

/// A configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct File {
    pub(super) name: String,
    pub(super) bytes: u64,
    pub(super) sha256: String,
}

/// A kind of data that is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Data {
    Models,
    Configuration,
}

impl Data {
    pub(super) fn word(self) -> &'static str {
        match self {
            Data::Models => "models",
            Data::Configuration => "configuration",
        }
    }
}

/// How far a site is with one kind of data.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct CopyProgress {
    /// Whether this site is the source of the copies.
    pub(super) source: bool,
    /// How many the primary has.
    pub(super) wanted: usize,
    /// The number of complete copies here.
    pub(super) held: usize,
    /// Bytes that are still missing.
    pub(super) missing_bytes: u64,
    /// How old the primary's list is that everything here was last found equal to; absent before the first time.
    pub(super) whole_ms: Option<u64>,
    /// Why something could not be copied.
    pub(super) error: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct CopyMark {
    source: bool,
    wanted: usize,
    held: usize,
    missing_bytes: u64,
    whole: Option<Instant>,
    error: Option<String>,
}

/// The progress of this site, shared with the status endpoint.
#[derive(Debug, Clone, Default)]
pub(super) struct CopyStatus(Arc<Mutex<BTreeMap<Data, CopyMark>>>);

impl CopyStatus {
    pub(super) fn standing(&self) -> BTreeMap<&'static str, CopyProgress> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let progress_of = |mark: &CopyMark| CopyProgress {
            source: mark.source,
            wanted: mark.wanted,
            held: mark.held,
            missing_bytes: mark.missing_bytes,
            whole_ms: mark.whole.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
            error: mark.error.clone(),
        };
        marks.iter().map(|(data, mark)| (data.word(), progress_of(mark))).collect()
    }

    fn update(&self, data: Data, change: impl FnOnce(&mut CopyMark)) {
        change(self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(data).or_default());
    }
}

fn models_of(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("copies/models")
}

fn configuration_of(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("copies/configuration")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}
