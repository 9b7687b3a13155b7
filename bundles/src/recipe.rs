//! The inputs of a bundle and their paths: from named items to the files and items of the archive.
//!
//! The texts that every bundle carries are in `bundles/recipes/`.

use std::collections::{BTreeMap, BTreeSet};

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Cut, Digest, MANIFEST, Manifest as ModelManifest};

use crate::error::{Error, Result};
use crate::manifest::{Chunk, Item, ItemKind, KeyChange};
use crate::pack::{Content, Input, Inputs};
use crate::scan::CARRIED;

const INSTALL: &str = include_str!("../recipes/install.sh");
const READ_ME: &str = include_str!("../recipes/README.md");

/// Where a bundle's environments are.
pub const ENVIRONMENTS: &str = "configs/environments";
/// Where its models are.
pub const MODELS: &str = "models";
/// Where its images are, as one OCI layout.
pub const IMAGES: &str = "images";

/// All inputs of a bundle.
#[derive(Debug, Default)]
pub struct Ingredients {
    /// The release's version.
    pub version: String,
    /// Seconds since 1970 that every member carries as its time.
    pub epoch: u64,
    /// The static program, once for each platform.
    pub programs: Vec<ProgramFile>,
    /// Environments as texts.
    pub environments: Vec<(String, String)>,
    /// Models, as a store keeps them.
    pub models: Vec<ModelFolder>,
    /// Images, as items whose paths are among `files`.
    pub images: Vec<Item>,
    /// Packages of operating systems and languages, unchanged.
    pub packages: Vec<Utf8PathBuf>,
    /// Further files: the blobs of images, software lists.
    pub files: Vec<Input>,
    /// See [`Manifest::keys`](crate::Manifest::keys).
    pub keys: Option<KeyChange>,
}

/// The program of one platform.
#[derive(Debug)]
pub struct ProgramFile {
    /// `linux/amd64`.
    pub platform: String,
    /// Where it is.
    pub path: Utf8PathBuf,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// One model.
#[derive(Debug)]
pub struct ModelFolder {
    /// Its name in environments.
    pub name: String,
    /// The folder with its files.
    pub path: Utf8PathBuf,
    /// The manifest of the folder.
    pub manifest: ModelManifest,
    /// The chunks of its weights, by the names of the files, where they were recorded with the digests.
    pub recorded: BTreeMap<String, Vec<Cut>>,
}

/// The path of a platform's program in a bundle: `bin/linux-amd64/textnlp-deploy`.
pub fn program_path(platform: &str) -> String {
    format!("bin/{}/textnlp-deploy", platform.replace('/', "-"))
}

/// The path of an environment in a bundle.
pub fn environment_path(name: &str) -> String {
    format!("{ENVIRONMENTS}/{name}.yaml")
}

/// The path of a package in a bundle.
pub fn package_path(name: &str) -> String {
    format!("packages/{name}")
}

/// The folder of a model in a bundle.
pub fn model_path(name: &str) -> String {
    format!("{MODELS}/{name}")
}

/// The path of an item's software list. Each item has its own, except the programs: theirs is the same on every platform.
pub fn list_path(kind: ItemKind, name: &str, platform: Option<&str>) -> String {
    if kind == ItemKind::Program {
        return "sbom/program.cdx.json".to_owned();
    }
    let mut plain = String::new();
    for c in name.chars().chain(platform.is_some().then_some('-')).chain(platform.unwrap_or_default().chars()) {
        match c {
            // Names of images have no `+` and no `=`, so that different ones stay different.
            '/' => plain.push('+'),
            c if c.is_ascii_alphanumeric() || "._-".contains(c) => plain.push(c),
            c => plain.push_str(&format!("={:x}=", u32::from(c))),
        }
    }
    format!("sbom/{kind}-{plain}.cdx.json")
}

/// The files and items of a bundle from these inputs. Every file belongs to an item, except the list of images, which
/// is derived from them.
pub fn inputs(from: Ingredients) -> Result<Inputs> {
    let mut files = vec![text("install.sh", true, INSTALL), text("scripts/README.md", false, READ_ME)];
    let mut items = from.images;
    let (mut promised, mut recorded) = (BTreeMap::new(), BTreeMap::new());
    let own: Vec<String> = files.iter().map(|file| file.path.clone()).collect();
    for program in &from.programs {
        let path = program_path(&program.platform);
        items.push(Item {
            version: Some(from.version.clone()),
            platform: Some(program.platform.clone()),
            license: Some("Apache-2.0".into()),
            ..item(
                ItemKind::Program,
                "textnlp-deploy",
                program.digest,
                [&own[..], std::slice::from_ref(&path)].concat(),
            )
        });
        promised.insert(path.clone(), program.digest);
        files.push(file(path, true, &program.path));
    }
    for (name, yaml) in &from.environments {
        let path = environment_path(name);
        items.push(item(ItemKind::Environment, name, Digest::of(yaml.as_bytes()), vec![path.clone()]));
        files.push(text(&path, false, yaml));
    }
    for model in &from.models {
        let (found, paths) = model_files(model)?;
        let folder = model_path(&model.name);
        promised.extend(model.manifest.files.iter().map(|f| (format!("{folder}/{}", f.name), f.digest)));
        recorded.extend(model.recorded.iter().map(|(name, cuts)| {
            let chunks = cuts.iter().map(|(size, digest)| Chunk { size: *size, digest: *digest });
            (format!("{folder}/{name}"), chunks.collect())
        }));
        files.extend(found);
        items.push(Item {
            version: model.manifest.revision.clone(),
            license: model.manifest.license.clone(),
            source: Some(model.manifest.source.clone()),
            ..item(ItemKind::Model, &model.name, model.manifest.digest, paths)
        });
    }
    for package in &from.packages {
        let name = package.file_name().unwrap_or_default();
        let (digest, _) = std::fs::File::open(package)
            .and_then(Digest::of_reader)
            .map_err(|error| Error::Inputs { problems: vec![format!("read package {package}: {error}")] })?;
        let path = package_path(name);
        items.push(item(ItemKind::Package, name, digest, vec![path.clone()]));
        promised.insert(path.clone(), digest);
        files.push(file(path, false, package));
    }
    files.extend(from.files);
    let there: BTreeSet<&str> = files.iter().map(|file| file.path.as_str()).collect();
    for item in &mut items {
        let list = list_path(item.kind, &item.name, item.platform.as_deref());
        if there.contains(list.as_str()) {
            item.paths.push(list);
        }
    }
    if let Some(Input { content: Content::Bytes(bytes), .. }) = files.iter().find(|file| file.path == CARRIED) {
        items.push(item(ItemKind::Document, "advisories", Digest::of(bytes), vec![CARRIED.to_owned()]));
    }
    Ok(Inputs { version: from.version, epoch: from.epoch, items, files, promised, recorded, keys: from.keys })
}

/// The files that the model's manifest names, and the manifest itself, so that the installed folder equals the source folder.
fn model_files(model: &ModelFolder) -> Result<(Vec<Input>, Vec<String>)> {
    let folder = model_path(&model.name);
    let mut files: Vec<Input> = model
        .manifest
        .files
        .iter()
        .map(|entry| file(format!("{folder}/{}", entry.name), false, &model.path.join(&entry.name)))
        .collect();
    let manifest = serde_json::to_vec_pretty(&model.manifest).map_err(|error| Error::Inputs {
        problems: vec![format!("write the manifest of model {}: {error}", model.name)],
    })?;
    files.push(Input { path: format!("{folder}/{MANIFEST}"), executable: false, content: Content::Bytes(manifest) });
    let paths = files.iter().map(|file| file.path.clone()).collect();
    Ok((files, paths))
}

fn item(kind: ItemKind, name: &str, digest: Digest, paths: Vec<String>) -> Item {
    Item {
        kind,
        name: name.to_owned(),
        version: None,
        digest,
        platform: None,
        license: None,
        source: None,
        media_type: None,
        paths,
    }
}

fn text(path: &str, executable: bool, text: &str) -> Input {
    Input { path: path.to_owned(), executable, content: Content::Bytes(text.as_bytes().to_vec()) }
}

fn file(path: String, executable: bool, from: &Utf8Path) -> Input {
    Input { path, executable, content: Content::File(from.to_owned()) }
}
