//! Releases: the artifacts that run, and the lock file `environments/ENV.lock`.
//!
//! An environment describes what is wanted. The lock records the server, models, templates, configuration and database
//! schema of the last release. `up` uses the lock, so a newer version of this program does not change every
//! environment.

mod history;
mod image;
mod lock;
mod promote;

use std::collections::BTreeMap;

use serde_json::Value;
use sha2::{Digest, Sha256};
use textnlp_provider::component::Program;

pub use history::{Applied, Entry, History, HistoryError, MAX_RELEASES, PROGRAMS, Recorded, runs_on};
pub use image::{ImageError, image_reference, server_image};
pub use lock::{Lock, LockDifference, LockError, short};
pub use promote::{covers, promote};

use crate::environment::model::SiteSettings;
use crate::environment::{Environment, SettingFiles};

/// The artifacts that are available for a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Artifacts {
    /// The server artifact.
    pub program: Program,
    /// The digest of each known model by name.
    pub models: BTreeMap<String, String>,
    /// The digest of the templates, if any are rendered.
    pub templates: Option<String>,
    /// The database schema of the server.
    pub schema: Option<u32>,
    /// The present value of each user-provided secret: its reference, and a fingerprint that shows a change.
    pub given: BTreeMap<String, String>,
    /// The files that settings name.
    pub files: SettingFiles,
    /// The image of this program, `TAG@sha256:…`, for sites whose registry `up` pushes it to.
    pub image: Option<String>,
}

/// A release: the lock, and the path of its server artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// The digests.
    pub lock: Lock,
    /// The server artifact.
    pub program: Program,
    /// See [`Artifacts::given`].
    pub given: BTreeMap<String, String>,
    /// See [`Artifacts::files`].
    pub files: SettingFiles,
}

impl Release {
    /// The release of this environment with these artifacts.
    pub fn resolve(environment: &Environment, artifacts: &Artifacts) -> Self {
        let models = environment
            .models
            .iter()
            .filter_map(|m| Some((m.id(), m.digest.clone().or_else(|| artifacts.models.get(&m.id()).cloned())?)))
            .collect();
        let lock = Lock {
            environment: environment.environment.clone(),
            server: artifacts.program.digest.clone(),
            models,
            sources: environment.models.iter().map(|m| (m.id(), m.source().to_owned())).collect(),
            tenants: owners(environment),
            images: resolved_images(environment, artifacts),
            image_sources: images(environment),
            templates: artifacts.templates.clone(),
            configuration: configuration_digest(environment),
            schema: artifacts.schema,
        };
        let Artifacts { program, given, files, .. } = artifacts.clone();
        Self { lock, program, given, files }
    }

    /// The release of a lock with these artifacts: locked values are retained, the configuration is the present one.
    /// Returns the difference if the server artifact is not the locked one.
    pub fn locked(environment: &Environment, lock: &Lock, artifacts: &Artifacts) -> Result<Self, Box<LockDifference>> {
        if lock.server != artifacts.program.digest {
            let (locked, here) = (Some(lock.server.clone()), Some(artifacts.program.digest.clone()));
            return Err(Box::new(LockDifference { what: "server".to_owned(), locked, here }));
        }
        let mut release = Self::resolve(environment, artifacts);
        for model in environment.models.iter().filter(|m| m.digest.is_none() && lock.holds(&m.id(), m.source())) {
            if let Some(locked) = lock.models.get(&model.id()) {
                release.lock.models.insert(model.id(), locked.clone());
            }
        }
        for (site, source) in &release.lock.image_sources {
            if let Some(locked) = lock.image(site, Some(source)) {
                release.lock.images.insert(site.clone(), locked.clone());
            }
        }
        release.lock.schema = lock.schema.or(release.lock.schema);
        release.lock.templates.clone_from(&lock.templates);
        Ok(release)
    }
}

/// The tenant of each model that belongs to one.
pub fn owners(environment: &Environment) -> BTreeMap<String, String> {
    environment.models.iter().filter_map(|model| Some((model.id(), model.tenant.clone()?))).collect()
}

/// The configured image of each site that runs one. Without one, the repository of `registry.url`, which `up` pushes the
/// image of this program to.
pub fn images(environment: &Environment) -> BTreeMap<String, String> {
    let sites = environment.sites.iter().filter(|site| site.runs_image());
    let image = |site: &SiteSettings| site.cluster.image.clone().or_else(|| repository(environment));
    sites.filter_map(|site| Some((site.name.to_string(), image(site)?))).collect()
}

/// The same with the image of this program.
pub fn resolved_images(environment: &Environment, artifacts: &Artifacts) -> BTreeMap<String, String> {
    let mut images = images(environment);
    images.retain(|name, image| {
        let is_configured = |site: &SiteSettings| site.name.as_str() == name && site.cluster.image.is_some();
        if environment.sites.iter().any(is_configured) {
            return true;
        }
        let own = artifacts.image.as_ref().map(|own| format!("{image}:{own}"));
        own.map(|own| *image = own).is_some()
    });
    images
}

/// The repository of `registry.url`, as references name it.
fn repository(environment: &Environment) -> Option<String> {
    environment.registry.of_cloud()?;
    environment.registry.address().map(str::to_owned)
}

/// Whether `up` pushes the image of this site.
pub fn pushes_image(environment: &Environment, site: &SiteSettings) -> bool {
    site.runs_image() && site.cluster.image.is_none() && environment.registry.of_cloud().is_some()
}

/// The environment with the images of a release.
pub fn with_images(environment: &Environment, lock: &Lock) -> Environment {
    let mut environment = environment.clone();
    for site in environment.sites.iter_mut().filter(|site| site.runs_image()) {
        if let Some(image) = lock.images.get(site.name.as_str()) {
            site.cluster.image = Some(image.clone());
        }
    }
    environment
}

/// The SHA-256 of these bytes, in the format of lock files.
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

/// The digest of an environment's configuration, independent of order and layers.
pub fn configuration_digest(environment: &Environment) -> String {
    // What it extends and its description do not affect what runs.
    digest_without(environment, &["extends", "description"])
}

/// The digest of the configuration that runs: gates are measured with other limits without an `up`.
pub fn settings_digest(environment: &Environment) -> String {
    digest_without(environment, &["extends", "description", "gates"])
}

fn digest_without(environment: &Environment, omitted: &[&str]) -> String {
    let mut value = serde_json::to_value(environment).expect("environments are plain data with text keys");
    if let Value::Object(fields) = &mut value {
        for name in omitted {
            fields.shift_remove(*name);
        }
    }
    digest(textnlp_provider::Spec::of(&value).to_string().as_bytes())
}
