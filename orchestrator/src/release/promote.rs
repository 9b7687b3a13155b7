//! Promotion: the artifacts that were verified in one environment, released in the next one.

use super::{Lock, configuration_digest, images};
use crate::environment::Environment;

/// The lock of `target` with the artifacts of `proven` and the target's own configuration. The error names every model
/// and image of the target that was not verified.
pub fn promote(proven: &Lock, target: &Environment) -> Result<Lock, Vec<String>> {
    let mut blockers = Vec::new();
    let mut lock = Lock {
        environment: target.environment.clone(),
        configuration: configuration_digest(target),
        models: Default::default(),
        sources: target.models.iter().map(|m| (m.name.clone(), m.source().to_owned())).collect(),
        images: Default::default(),
        image_sources: images(target),
        ..proven.clone()
    };
    for model in &target.models {
        let (name, from, to) = (&model.name, &proven.environment, &target.environment);
        match proven.models.get(name) {
            None => blockers.push(format!("model {name} of {to} does not run in {from}")),
            Some(_) if !proven.holds(name, model.source()) => {
                blockers.push(format!("model {name} has another source in {to} than in {from}"));
            }
            Some(digest) if model.digest.as_ref().is_some_and(|pinned| pinned != digest) => {
                blockers.push(format!("model {name} is pinned to another digest by {to} than runs in {from}"));
            }
            Some(digest) => drop(lock.models.insert(name.clone(), digest.clone())),
        }
    }
    // A release that was verified on machines has no image to compare; the target selects its own.
    if let Some((first, image)) = proven.images.first_key_value() {
        if let Some((other, _)) = proven.images.iter().find(|(_, other)| *other != image) {
            let from = &proven.environment;
            blockers.push(format!("sites {first} and {other} of {from} do not run the same image"));
        }
        for (site, said) in &lock.image_sources {
            match same_bytes(image, said) {
                Some(image) => drop(lock.images.insert(site.clone(), image)),
                None => blockers.push(format!(
                    "site {site} of {} has the image {said}, but {} runs {image}: write that image or its digest",
                    target.environment, proven.environment
                )),
            }
        }
    }
    if blockers.is_empty() { Ok(lock) } else { Err(blockers) }
}

/// The image with the digest of `proven` in the repository of `said`: registries may mirror each other.
fn same_bytes(proven: &str, said: &str) -> Option<String> {
    if proven == said {
        return Some(said.to_owned());
    }
    let digest = proven.split_once('@')?.1;
    match said.split_once('@') {
        Some((_, pinned)) => (pinned == digest).then(|| said.to_owned()),
        None => Some(format!("{said}@{digest}")),
    }
}
