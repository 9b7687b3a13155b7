//! The images and software lists of a bundle to be.

use anyhow::Context;
use camino::Utf8Path;
use textnlp_bundle::manifest::{Item, ItemKind};
use textnlp_bundle::oci::{self, Image, Platform, Reference, image, layout, registry};
use textnlp_bundle::recipe::{IMAGES, Ingredients, list_path};
use textnlp_bundle::scan::{self, Unsealed};
use textnlp_bundle::{Content, Input, sbom};
use textnlp_models::FetchOptions;

use crate::bundle_args::Create;
use crate::progress::Progress;
use crate::report::{Exit, Failure, size};
use crate::session::Session;

/// What this program was built from.
const LOCK: &str = include_str!("../../../../Cargo.lock");

/// Puts images and software lists among the ingredients. Blobs that are pulled stay for the next time.
pub async fn gather(
    session: &Session,
    args: &Create,
    ingredients: &mut Ingredients,
    progress: &Progress,
) -> Result<(), Failure> {
    let work = session.model_cache()?.with_file_name("image-cache");
    let mut images = Vec::new();
    if !args.no_server_image {
        for program in &ingredients.programs {
            progress.doing(&format!("assembling the image for {}", program.platform));
            let recipe = image::Recipe {
                program: program.path.clone(),
                name: "textnlp".to_owned(),
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
    for wanted in &args.image {
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
    lists(args, ingredients)
}

async fn third_party(text: &str, platform: &Platform, work: &Utf8Path, progress: &Progress) -> Result<Image, Failure> {
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
    let fetch = FetchOptions::from_env();
    let options = registry::Options {
        proxy: fetch.proxy.clone(),
        ca_file: fetch.ca_file.clone(),
        credentials: credentials()?,
        limits: fetch.limits,
        ..registry::Options::default()
    };
    let tell = |event| {
        if let textnlp_models::Event::File { name, done, .. } = event {
            progress.doing(&format!("{name}: {}", size(done)));
        }
    };
    let pinned = registry::resolve(&reference, &options, &tell).await.map_err(failed)?;
    if reference.digest.is_none() {
        progress.line(format!("  {text} is {pinned} now; name it so to have the same again"));
    }
    std::fs::create_dir_all(work).with_context(|| format!("make {work}"))?;
    registry::pull(&pinned, platform, work, &options, &tell).await.map_err(failed)
}

/// The account at a registry, from the environment: a password on a command line is seen by everybody.
fn credentials() -> Result<Option<registry::Credentials>, Failure> {
    let Ok(user) = std::env::var("TEXTNLP_REGISTRY_USER") else { return Ok(None) };
    let Ok(password) = std::env::var("TEXTNLP_REGISTRY_PASSWORD") else {
        return Err(Failure::usage(
            "usage",
            anyhow::anyhow!("TEXTNLP_REGISTRY_USER is set, TEXTNLP_REGISTRY_PASSWORD is not"),
        )
        .hint("export TEXTNLP_REGISTRY_PASSWORD as well, or unset the user"));
    };
    Ok(Some(registry::Credentials { user, password: registry::Secret::new(password) }))
}

fn items(images: &[Image]) -> Vec<Item> {
    images.iter().map(|image| image.item(Some(format!("{}@{}", image.name, image.pinned)))).collect()
}

/// What everything is made of, as CycloneDX, and the advisories for scans on the other side.
fn lists(args: &Create, ingredients: &mut Ingredients) -> Result<(), Failure> {
    let own = sbom::Subject {
        name: "textnlp-deploy".to_owned(),
        version: ingredients.version.clone(),
        epoch: Some(ingredients.epoch),
    };
    // What did not change keeps its list: nothing of the release or of the day is in it.
    let subject = |name: &str, version: Option<&str>, digest: &str| {
        let version = version.unwrap_or(digest).to_owned();
        sbom::Subject { name: name.to_owned(), version, epoch: None }
    };
    let lock = sbom::Lock::parse(LOCK).map_err(|why| anyhow::anyhow!("read this program's Cargo.lock: {why}"))?;
    let program = list_path(ItemKind::Program, "textnlp-deploy", None);
    let mut found = vec![(program, sbom::program(&own, &lock, "textnlp-deploy"))];
    let (images, unread) = scan::image::images(&Unsealed(&ingredients.files), IMAGES, scan::image::Limits::default());
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
                found.push((path, sbom::image(&subject, image)));
            }
        }
    }
    for model in &ingredients.models {
        let of = sbom::Model {
            name: model.name.clone(),
            version: model.manifest.revision.clone(),
            digest: model.manifest.digest,
            license: model.manifest.license.clone(),
            source: Some(model.manifest.source.clone()),
            architecture: textnlp_models::inspect(&model.path).ok().map(|summary| summary.family.to_string()),
        };
        let subject = subject(&model.name, of.version.as_deref(), &of.digest.to_string());
        found.push((list_path(ItemKind::Model, &model.name, None), sbom::models(&subject, &[of])));
    }
    for (path, list) in found {
        document(ingredients, path, list.to_bytes());
    }
    if let Some(folder) = &args.advisories {
        let database = scan::Database::from_folder(folder).map_err(super::scan::failed)?;
        document(ingredients, scan::CARRIED.to_owned(), database.to_bytes());
    }
    Ok(())
}

fn document(ingredients: &mut Ingredients, path: String, bytes: Vec<u8>) {
    ingredients.files.push(Input { path, executable: false, content: Content::Bytes(bytes) });
}

/// An error of images, for people.
pub fn failed(error: oci::Error) -> Failure {
    let hint = error.hint();
    Failure::new(Exit::Failed, "image", error).hint(hint)
}
