//! Releases: which bytes run, and the lock file `environments/ENV.lock` that says so.
//!
//! An environment says what is wanted; the lock says which server, models, templates, configuration and database schema
//! that was when it was last released. `up` honours the lock, so a newer tool does not roll every environment.

mod history;
mod lock;
mod promote;

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_provider::component::Program;

pub use history::{Applied, Entry, History, HistoryError, MOST, PROGRAMS, Recorded, runs_on};
pub use lock::{Difference, Lock, LockError, short};
pub use promote::promote;

use crate::environment::Environment;

/// What is at hand to be released.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifacts {
    /// The server artifact.
    pub program: Program,
    /// The digest of each model that is known, by its name.
    pub models: BTreeMap<String, String>,
    /// The digest of the templates, where something is rendered from them.
    pub templates: Option<String>,
    /// The database schema that the server brings.
    pub schema: Option<u32>,
    /// What each secret that a person keeps is now: its reference, and a mark by which a change is seen.
    pub given: BTreeMap<String, String>,
}

/// What runs: the lock, and where its server artifact is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The digests.
    pub lock: Lock,
    /// The server artifact.
    pub program: Program,
    /// See [`Artifacts::given`].
    pub given: BTreeMap<String, String>,
}

impl Release {
    /// The release that these artifacts make of this environment.
    pub fn resolve(environment: &Environment, artifacts: &Artifacts) -> Self {
        let models = environment
            .models
            .iter()
            .filter_map(|m| {
                Some((m.name.clone(), m.digest.clone().or_else(|| artifacts.models.get(&m.name).cloned())?))
            })
            .collect();
        let lock = Lock {
            environment: environment.environment.clone(),
            server: artifacts.program.digest.clone(),
            models,
            sources: environment.models.iter().map(|m| (m.name.clone(), m.source().to_owned())).collect(),
            images: images(environment),
            image_sources: images(environment),
            templates: artifacts.templates.clone(),
            configuration: configuration_digest(environment),
            schema: artifacts.schema,
        };
        Self { lock, program: artifacts.program.clone(), given: artifacts.given.clone() }
    }

    /// The release that a lock names, run by the artifacts at hand: what the lock fixes stays, the configuration is today's. The server artifact
    /// must be the one that is locked; otherwise the difference is the error.
    pub fn locked(environment: &Environment, lock: &Lock, artifacts: &Artifacts) -> Result<Self, Box<Difference>> {
        if lock.server != artifacts.program.digest {
            let (locked, here) = (Some(lock.server.clone()), Some(artifacts.program.digest.clone()));
            return Err(Box::new(Difference { what: "server".to_owned(), locked, here }));
        }
        let mut release = Self::resolve(environment, artifacts);
        for model in environment.models.iter().filter(|m| m.digest.is_none() && lock.holds(&m.name, m.source())) {
            if let Some(locked) = lock.models.get(&model.name) {
                release.lock.models.insert(model.name.clone(), locked.clone());
            }
        }
        for (site, image) in &mut release.lock.images {
            if let Some(locked) = lock.image(site, Some(image)) {
                image.clone_from(locked);
            }
        }
        release.lock.schema = lock.schema.or(release.lock.schema);
        release.lock.templates.clone_from(&lock.templates);
        Ok(release)
    }
}

/// What an environment says of the image of each site in a cluster.
pub fn images(environment: &Environment) -> BTreeMap<String, String> {
    let clusters = environment.sites.iter().filter(|site| site.is_in_cluster());
    clusters.filter_map(|site| Some((site.name.to_string(), site.cluster.image.clone()?))).collect()
}

/// The environment with the images of a release.
pub fn with_images(environment: &Environment, lock: &Lock) -> Environment {
    let mut environment = environment.clone();
    for site in environment.sites.iter_mut().filter(|site| site.is_in_cluster()) {
        if let Some(image) = lock.images.get(site.name.as_str()) {
            site.cluster.image = Some(image.clone());
        }
    }
    environment
}

/// SHA-256 of a file's or a text's bytes, as locks write it.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The digest of everything that an environment says, whatever the order and the layers it was said in.
pub fn configuration_digest(environment: &Environment) -> String {
    let mut value = serde_json::to_value(environment).expect("environments are plain data with text keys");
    // Which file it extends and how it is described change nothing that runs.
    if let Value::Object(fields) = &mut value {
        fields.shift_remove("extends");
        fields.shift_remove("description");
    }
    digest(textnlp_provider::Spec::of(&value).to_string().as_bytes())
}
