//! The images and software lists of a new bundle.

use anyhow::Context;
use camino::Utf8Path;
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::oci::{self, Image, Platform, Reference, image, layout, registry};
use textnlp_bundle::recipe::{IMAGES, Ingredients, list_path, program_path};
use textnlp_bundle::scan::{self, BundleInputs};
use textnlp_bundle::{Content, Input, sbom};
use textnlp_models::FetchOptions;

use super::create::Request;
use crate::audit::{LOCK, PROGRAM, conditions};
use crate::models::failed as model_failed;
use crate::platform::Build;
use crate::{Exit, Failure, Progress, size};

/// The name of the server's image.
const SERVER: &str = "textnlp";

/// Adds images and software lists. Downloaded blobs are cached.
pub(super) async fn gather(
    request: &Request<'_>,
    advisories: Option<&scan::Database>,
    ingredients: &mut Ingredients,
    progress: &dyn Progress,
) -> Result<(), Failure> {
    let work = request.model_cache.with_file_name("image-cache");
    let mut images = Vec::new();
    if request.has_server_image {
        for program in &ingredients.programs {
            progress.doing(&format!("assembling the image for {}", program.platform));
            let recipe = image::Recipe {
                program: program.path.clone(),
                name: SERVER.to_owned(),
                version: ingredients.version.clone(),
                epoch: ingredients.epoch,
                revision: None,
                source: None,
                models: Vec::new(),
            };
            images.push(image::assemble(&recipe).map_err(failed)?);
        }
    }
    let platforms: Vec<Platform> = ingredients
        .programs
        .iter()
        .map(|program| Platform::linux(program.platform.rsplit('/').next().unwrap_or_default()))
        .collect();
    for wanted in request.images {
        for platform in &platforms {
            progress.doing(&format!("image {wanted} for {}/{}", platform.os, platform.architecture));
            images.push(third_party(wanted, platform, &work, progress).await?);
        }
    }
    ingredients.images = items(&images);
    for blob in layout::merge(&images).map_err(failed)? {
        let path = format!("{IMAGES}/{}", blob.path);
        ingredients.files.push(Input { path, executable: false, content: Content::Parts(blob.content) });
    }
    lists(request, advisories, ingredients)
}

async fn third_party(
    text: &str,
    platform: &Platform,
    work: &Utf8Path,
    progress: &dyn Progress,
) -> Result<Image, Failure> {
    if let Some(local) = text.strip_prefix("oci:") {
        let (folder, tag) = match local.rsplit_once(':') {
            Some((folder, tag)) if !tag.contains('/') => (folder, Some(tag)),
            _ => (local, None),
        };
        let called = tag.map_or_else(|| folder.rsplit('/').next().unwrap_or("image").to_owned(), str::to_owned);
        let layout = layout::Layout::open(Utf8Path::new(folder)).map_err(failed)?;
        return layout.image(tag, platform, &called).map_err(failed);
    }
    let reference: Reference = text.parse().map_err(failed)?;
    let options = registry_options(&reference.host, FetchOptions::from_env())?;
    let report_progress = |event| {
        if let textnlp_models::Event::File { name, done, .. } = event {
            progress.doing(&format!("{name}: {}", size(done)));
        }
    };
    let pinned = registry::resolve(&reference, &options, &report_progress).await.map_err(failed)?;
    if reference.digest.is_none() {
        progress.line(&format!("  {text} is {pinned} now; pin it to that for reproducible bundles"));
    }
    std::fs::create_dir_all(work).with_context(|| format!("make {work}"))?;
    registry::pull(&pinned, platform, work, &options, &report_progress).await.map_err(failed)
}

/// How a registry is asked, with the account of the variables.
pub(crate) fn registry_options(host: &str, fetch: FetchOptions) -> Result<registry::Options, Failure> {
    Ok(registry::Options {
        credentials: credentials(host, |name| std::env::var(name).ok())?,
        proxy: fetch.proxy,
        ca_file: fetch.ca_file,
        limits: fetch.limits,
        ..registry::Options::default()
    })
}

/// The account at a registry, from variables: command lines are visible to other users. One registry gets the password.
fn credentials(
    host: &str,
    variable: impl Fn(&str) -> Option<String>,
) -> Result<Option<registry::Credentials>, Failure> {
    let Some(user) = variable("TEXTNLP_REGISTRY_USER") else { return Ok(None) };
    let needed = |name: &str, value: &str| {
        variable(name).ok_or_else(|| {
            Failure::usage("usage", anyhow::anyhow!("TEXTNLP_REGISTRY_USER is set, but {name} is not"))
                .hint(format!("export {name}={value}, or unset TEXTNLP_REGISTRY_USER"))
        })
    };
    let password = needed("TEXTNLP_REGISTRY_PASSWORD", "…")?;
    let is_meant = needed("TEXTNLP_REGISTRY_HOST", host)?.eq_ignore_ascii_case(host);
    Ok(is_meant.then(|| registry::Credentials { user, password: registry::Secret::new(password) }))
}

fn items(images: &[Image]) -> Vec<Item> {
    images.iter().map(|image| image.item(Some(format!("{}@{}", image.name, image.pinned)))).collect()
}

/// Adds software lists in CycloneDX format, and the advisories for scans of the installed site.
fn lists(
    request: &Request<'_>,
    advisories: Option<&scan::Database>,
    ingredients: &mut Ingredients,
) -> Result<(), Failure> {
    let Build { features, marker } = request.build;
    let own = sbom::Subject {
        name: PROGRAM.to_owned(),
        version: ingredients.version.clone(),
        epoch: Some(ingredients.epoch),
    };
    // No release or date, so that the list of an unchanged item stays the same.
    let subject = |name: &str, version: Option<&str>, digest: &str| {
        let version = version.unwrap_or(digest).to_owned();
        sbom::Subject { name: name.to_owned(), version, epoch: None }
    };
    let lock = sbom::Lock::parse(LOCK).map_err(|why| anyhow::anyhow!("read this program's Cargo.lock: {why}"))?;
    let program = list_path(ItemKind::Program, PROGRAM, None);
    let programs: Vec<sbom::File> = ingredients
        .programs
        .iter()
        .map(|program| sbom::File {
            kind: "application",
            path: program_path(&program.platform),
            name: PROGRAM.to_owned(),
            version: ingredients.version.clone(),
            digest: program.digest,
        })
        .collect();
    let (mut platforms, mut same) = (Vec::new(), true);
    for program in &ingredients.programs {
        let bytes = std::fs::read(&program.path).with_context(|| format!("read {}", program.path))?;
        if contains(&bytes, LOCK) {
            platforms.push(program.platform.as_str());
            same &= contains(&bytes, marker);
        }
    }
    let conditions = [&platforms[..], &conditions(features, same)].concat();
    let graph = sbom::CrateGraph { lock: &lock, root: PROGRAM, conditions: &conditions };
    let mut found = vec![(program, sbom::program(&own, &programs, (!platforms.is_empty()).then_some(&graph)))];
    let (images, unread) =
        scan::image::images(&BundleInputs(&ingredients.files), IMAGES, scan::image::Limits::default());
    if let (Some((what, why)), false) = (unread.first(), ingredients.images.is_empty()) {
        let error = anyhow::anyhow!("{what}: {why}").context("list what the images are made of");
        return Err(Failure::new(Exit::Failed, "image", error));
    }
    for image in &images {
        let same = |item: &&Item| item.digest.to_string() == image.digest && item.platform == image.platform;
        for item in ingredients.images.iter().filter(same) {
            let path = list_path(ItemKind::Image, &item.name, item.platform.as_deref());
            if found.iter().all(|(there, _)| *there != path) {
                let subject = subject(&image.name, item.version.as_deref(), &image.digest);
                // The server's image is assembled from the bundle's own programs.
                let is_server = request.has_server_image
                    && item.name == SERVER
                    && item.version.as_ref() == Some(&ingredients.version);
                let mut programs = ingredients.programs.iter().filter(|_| is_server);
                let program = programs.find(|program| item.platform.as_ref() == Some(&program.platform));
                let files = program.map(|program| image::files(&ingredients.version, program.digest));
                let files = files.as_ref().map_or(&[][..], |files| &files[..]);
                found.push((path, sbom::image(&subject, image, files)));
            }
        }
    }
    for model in &ingredients.models {
        // The other side of the air gap could only refuse it.
        let summary = textnlp_models::inspect(&model.path).map_err(model_failed)?;
        let of = sbom::Model {
            name: model.name.clone(),
            version: model.manifest.revision.clone(),
            digest: model.manifest.digest,
            license: model.manifest.license.clone(),
            source: Some(model.manifest.source.clone()),
            architecture: Some(summary.family),
        };
        let subject = subject(&model.name, of.version.as_deref(), &of.digest.to_string());
        found.push((list_path(ItemKind::Model, &model.name, None), sbom::models(&subject, &[of])));
    }
    for (path, list) in found {
        document(ingredients, path, list.to_bytes());
    }
    if let Some(database) = advisories {
        document(ingredients, scan::CARRIED.to_owned(), database.to_bytes());
    }
    Ok(())
}

/// Whether a program holds this text. Each build of this program embeds its lock file and its features.
fn contains(program: &[u8], text: &str) -> bool {
    let Some((first, _)) = text.as_bytes().split_first() else { return false };
    let mut starts = program.iter().enumerate().filter(|(_, byte)| *byte == first);
    starts.any(|(at, _)| program[at..].starts_with(text.as_bytes()))
}

fn document(ingredients: &mut Ingredients, path: String, bytes: Vec<u8>) {
    ingredients.files.push(Input { path, executable: false, content: Content::Bytes(bytes) });
}

/// Converts an error about images.
fn failed(error: oci::Error) -> Failure {
    let hint = error.hint();
    Failure::new(Exit::Failed, "image", error).hint(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_registry_gets_the_password() {
        let account = |registry: Option<&'static str>, host: &str| {
            credentials(host, |name| match name {
                "TEXTNLP_REGISTRY_USER" => Some("me".to_owned()),
                "TEXTNLP_REGISTRY_PASSWORD" => Some("hunter2".to_owned()),
                "TEXTNLP_REGISTRY_HOST" => registry.map(str::to_owned),
                _ => None,
            })
        };
        assert!(account(Some("registry.example"), "registry.example").unwrap().is_some());
        assert!(account(Some("registry.example"), "other.example").unwrap().is_none());
        assert!(account(None, "registry.example").is_err());
        assert!(credentials("registry.example", |_| None).unwrap().is_none());
    }

    #[test]
    fn program_is_matched_by_its_embedded_lock_file() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        assert!(contains(&own, LOCK));
        assert!(!contains(&own, &format!("{LOCK}#")));
        assert!(!contains(&std::fs::read("/bin/sh").unwrap(), LOCK));
    }
}
