//! Models and configuration of the primary, kept at every other site too.
//!
//! Every watch offers what its site has ([`offer`]); a site that is not primary takes what it lacks from the one that is ([`take`]),
//! file by file, from where it was left off, and believes a file only by its digest. Nothing here needs whoever deployed the sites.
//!
//! ```text
//! FOLDER/copies/models/HEX/          a model by its digest, as a model folder; appears by one rename
//! FOLDER/copies/models/.part-HEX/    one that is not complete
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

/// `copies:` of a watch's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CopiesConfig {
    /// The folder of the site's models, one folder each.
    pub models: Utf8PathBuf,
    /// The folder of the site's configuration files.
    pub configuration: Utf8PathBuf,
    /// What is there is compared at least this often; a change is seen sooner.
    pub models_every_ms: u64,
    /// The same for configuration.
    pub configuration_every_ms: u64,
    /// Whether models are compressed on the way.
    pub compress: bool,
}

impl CopiesConfig {
    /// What is wrong with it, as a sentence.
    pub(super) fn problem(&self) -> Option<String> {
        let folders = [("models", &self.models), ("configuration", &self.configuration)];
        let relative = folders.into_iter().find(|(_, folder)| !folder.is_absolute());
        let none = self.models_every_ms == 0 || self.configuration_every_ms == 0;
        relative
            .map(|(name, _)| format!("`copies.{name}` is not an absolute path"))
            .or_else(|| none.then(|| "`copies` has an interval of 0 ms".to_owned()))
    }
}

/// What a site has for others.
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
pub(super) struct Standing {
    /// Whether this site is the one that others copy from.
    pub(super) source: bool,
    /// How many the primary has.
    pub(super) wanted: usize,
    /// How many of them are here.
    pub(super) held: usize,
    /// Bytes that are still to come.
    pub(super) missing_bytes: u64,
    /// How old the primary's list is that everything here was last found equal to; absent before the first time.
    pub(super) whole_ms: Option<u64>,
    /// Why something is not here.
    pub(super) error: Option<String>,
}

#[derive(Debug, Clone, Default)]
struct Mark {
    source: bool,
    wanted: usize,
    held: usize,
    missing_bytes: u64,
    whole: Option<Instant>,
    error: Option<String>,
}

/// How far this site is; shared with whoever tells.
#[derive(Debug, Clone, Default)]
pub(super) struct Copied(Arc<Mutex<BTreeMap<Data, Mark>>>);

impl Copied {
    pub(super) fn standing(&self) -> BTreeMap<&'static str, Standing> {
        let marks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let told = |mark: &Mark| Standing {
            source: mark.source,
            wanted: mark.wanted,
            held: mark.held,
            missing_bytes: mark.missing_bytes,
            whole_ms: mark.whole.map(|at| u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX)),
            error: mark.error.clone(),
        };
        marks.iter().map(|(data, mark)| (data.word(), told(mark))).collect()
    }

    fn update(&self, data: Data, change: impl FnOnce(&mut Mark)) {
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
