//! Promotion: the artifacts that were verified in one environment, released in the next one.

use std::collections::BTreeSet;

use super::{Lock, LockDifference, configuration_digest, images, owners};
use crate::environment::Environment;
use crate::environment::model::ModelSettings;

/// The lock of `target` with the artifacts of `proven` and the target's own configuration. The error names every model
/// and image of the target that was not verified.
pub fn promote(proven: &Lock, target: &Environment) -> Result<Lock, Vec<String>> {
    let mut blockers = Vec::new();
    let mut lock = Lock {
        environment: target.environment.clone(),
        configuration: configuration_digest(target),
        models: Default::default(),
        sources: target.models.iter().map(|m| (m.id(), m.source().to_owned())).collect(),
        tenants: owners(target),
        images: Default::default(),
        image_sources: images(target),
        ..proven.clone()
    };
    for model in &target.models {
        let (name, from, to) = (&model.id(), &proven.environment, &target.environment);
        let is_owned_alike = proven.tenants.get(name) == model.tenant.as_ref();
        let same_source =
            |(other, _): &(&String, &String)| proven.sources.get(*other).map(String::as_str) == Some(model.source());
        let found: BTreeSet<&String> = match proven.models.get(name).filter(|_| is_owned_alike) {
            Some(_) if !proven.holds(name, model.source()) => {
                blockers.push(format!("model {name} has another source in {to} than in {from}"));
                continue;
            }
            Some(digest) => BTreeSet::from([digest]),
            // The content of a tenant's model is verified by whatever name it runs, because only its tenant uses this one.
            None if model.tenant.is_some() => {
                proven.models.iter().filter(same_source).map(|(_, digest)| digest).collect()
            }
            None => BTreeSet::new(),
        };
        match (found.first(), model.digest.as_ref()) {
            (None, _) if model.tenant.is_none() && proven.models.contains_key(name) => {
                blockers.push(format!("model {name} of {to} is for all tenants, and belongs to one in {from}"));
            }
            (None, _) => blockers.push(format!("model {name} of {to} does not run in {from}")),
            (Some(_), Some(pinned)) if !found.contains(pinned) => {
                blockers.push(format!("model {name} is pinned to another digest by {to} than runs in {from}"));
            }
            (Some(_), None) if found.len() > 1 => blockers.push(format!(
                "model {name} of {to} has a source of which {from} runs {} digests: write one of them as its `digest`",
                found.len()
            )),
            (Some(digest), pinned) => drop(lock.models.insert(name.clone(), pinned.unwrap_or(digest).clone())),
        }
    }
    // A release that was verified on machines has no image to compare; the target selects its own.
    if let Some((first, image)) = proven.images.first_key_value() {
        if let Some((other, _)) = proven.images.iter().find(|(_, other)| *other != image) {
            let from = &proven.environment;
            blockers.push(format!("sites {first} and {other} of {from} do not run the same image"));
        }
        for (site, configured) in &lock.image_sources {
            match same_bytes(image, configured) {
                Some(image) => drop(lock.images.insert(site.clone(), image)),
                None => blockers.push(format!(
                    "site {site} of {} has the image {configured}, but {} runs {image}: write that image or its digest",
                    target.environment, proven.environment
                )),
            }
        }
    }
    if blockers.is_empty() { Ok(lock) } else { Err(blockers) }
}

/// Whether a release runs what was recorded: the same server, templates, models and images, for the models and sites of
/// the environment. The error is the first difference. A release of machines has no images to compare.
pub fn covers(recorded: &Lock, wanted: &Lock, environment: &Environment) -> Result<(), Box<LockDifference>> {
    let is_needed = |difference: &LockDifference| match difference.what.split_once('.') {
        Some(("models", name)) => environment.models.iter().any(|model| model.id() == name),
        Some(("images", name)) => {
            !recorded.images.is_empty() && environment.sites.iter().any(|site| site.name.as_str() == name)
        }
        _ => difference.what == "server" || (difference.what == "templates" && difference.locked.is_some()),
    };
    let is_new = |name: &String| !recorded.sources.is_empty() && !recorded.sources.contains_key(name);
    let added = environment.models.iter().map(ModelSettings::id).find(|name| is_new(name)).map(|name| {
        let here = wanted.models.get(&name).cloned();
        LockDifference { what: format!("models.{name}"), locked: None, here }
    });
    match added.or_else(|| recorded.differences(wanted).into_iter().find(is_needed)) {
        Some(difference) => Err(Box::new(difference)),
        None => Ok(()),
    }
}

/// The image with the digest of `proven` in the repository of `said`: registries may mirror each other.
fn same_bytes(proven: &str, configured: &str) -> Option<String> {
    if proven == configured {
        return Some(configured.to_owned());
    }
    let digest = proven.split_once('@')?.1;
    match configured.split_once('@') {
        Some((_, pinned)) => (pinned == digest).then(|| configured.to_owned()),
        None => Some(format!("{configured}@{digest}")),
    }
}
