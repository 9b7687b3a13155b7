//! The images and software lists of a bundle to be.

use anyhow::Context;
use camino::Utf8Path;
use textnlp_bundle::manifest::Item;
use textnlp_bundle::oci::{self, Image, Platform, Reference, image, layout, registry};
use textnlp_bundle::recipe::{IMAGES, Ingredients};
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
    let (version, epoch) = (ingredients.version.clone(), ingredients.epoch);
    let subject = |name: &str| sbom::Subject { name: name.to_owned(), version: version.clone(), epoch };
    let lock = sbom::Lock::parse(LOCK).map_err(|why| anyhow::anyhow!("read this program's Cargo.lock: {why}"))?;
    let mut found = vec![("program".to_owned(), sbom::program(&subject("textnlp-deploy"), &lock, "textnlp-deploy"))];
    let (images, unread) = scan::image::images(&Unsealed(&ingredients.files), IMAGES, scan::image::Limits::default());
    if let (Some((what, why)), false) = (unread.first(), ingredients.images.is_empty()) {
        let error = anyhow::anyhow!("{what}: {why}").context("list what the images are made of");
        return Err(Failure::new(Exit::Failed, "image", error));
    }
    for image in &images {
        let plain: String =
            image.name.chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' }).collect();
        let name = format!("image-{plain}");
        let twice = found.iter().filter(|(there, _)| there.starts_with(&name)).count();
        let name = if twice == 0 { name } else { format!("{name}-{}", twice + 1) };
        found.push((name, sbom::image(&subject(&image.name), image)));
    }
    let models: Vec<sbom::Model> = ingredients
        .models
        .iter()
        .map(|model| sbom::Model {
            name: model.name.clone(),
            version: model.manifest.revision.clone(),
            digest: model.manifest.digest,
            license: model.manifest.license.clone(),
            source: Some(model.manifest.source.clone()),
            architecture: textnlp_models::inspect(&model.path).ok().map(|summary| summary.family.to_string()),
        })
        .collect();
    found.push(("models".to_owned(), sbom::models(&subject("models"), &models)));
    for (name, list) in found {
        document(ingredients, format!("sbom/{name}.cdx.json"), list.to_bytes());
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
