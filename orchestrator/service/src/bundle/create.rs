//! Collects the content of a bundle.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_yaml::Value;
use textnlp_bundle::recipe::{self, Ingredients, ModelFolder, ProgramFile};
use textnlp_bundle::scan::Database;
use textnlp_bundle::{Inputs, KeyChange, Manifest, elf};
use textnlp_models::{Cut, Digest, FetchOptions, Model, Source, Store};
use textnlp_orchestrator::environment::model::SiteSettings;
use textnlp_orchestrator::environment::{Environment, Loaded, Origin};
use textnlp_provider::settings::GpuSize;

use super::{epoch, failed, model_name, model_name_of, parts};
use crate::models::failed as model_failed;
use crate::platform::Build;
use crate::{Failure, Progress};

/// What a bundle is made of.
pub struct Request<'a> {
    /// Its version.
    pub version: String,
    /// The bundle's file.
    pub out: &'a Utf8Path,
    /// The environments.
    pub environments: &'a [Loaded],
    /// The programs, as `PATH` or `linux/ARCHITECTURE=PATH`; this one if there is none.
    pub programs: &'a [String],
    /// Further models, as `SOURCE` or `NAME=SOURCE`.
    pub models: &'a [String],
    /// Further images.
    pub images: &'a [String],
    /// Whether it has the image of the server.
    pub has_server_image: bool,
    /// Files of packages.
    pub packages: Vec<Utf8PathBuf>,
    /// The keys that it introduces and revokes.
    pub keys: Option<KeyChange>,
    /// Whether nothing is downloaded.
    pub offline: bool,
    /// The model cache.
    pub model_cache: &'a Utf8Path,
    /// How this program was built.
    pub build: &'static Build,
}

/// The content of a bundle. Its models stay in the cache until it is dropped.
pub struct Collected {
    /// The content.
    pub inputs: Inputs,
    store: Store,
    _held: Vec<Model>,
}

/// Collects the content of a bundle, with these advisories.
pub async fn collect(
    mut request: Request<'_>,
    advisories: Option<&Database>,
    progress: &dyn Progress,
) -> Result<Collected, Failure> {
    let programs = programs(&request)?;
    let (store, models, held) = models(&request, progress).await?;
    let digests: BTreeMap<&str, Digest> = models.iter().map(|m| (m.name.as_str(), m.manifest.digest)).collect();
    let texts = request.environments.iter();
    let texts = texts.map(|e| Ok((e.environment.environment.to_string(), sealed(e, &digests)?)));
    let environments = texts.collect::<Result<Vec<_>, Failure>>()?;
    let mut ingredients = Ingredients {
        version: request.version.clone(),
        epoch: epoch()?,
        programs,
        environments,
        models,
        packages: std::mem::take(&mut request.packages),
        keys: request.keys.take(),
        ..Ingredients::default()
    };
    parts::gather(&request, advisories, &mut ingredients, progress).await?;
    let inputs = recipe::inputs(ingredients).map_err(failed)?;
    Ok(Collected { inputs, store, _held: held })
}

/// Why pods of a bundled environment would not start: they have GPUs, and none of the included images is theirs. Whether an image
/// was built with CUDA is not known here.
pub fn lacks_gpu_image(environment: &Environment, images: &[String]) -> Option<String> {
    let has_gpus = |site: &&SiteSettings| {
        let gpu = site.gpu.as_ref().unwrap_or(&environment.gpu);
        site.serves() && site.is_in_cluster() && gpu.size != GpuSize::None
    };
    let is_included = |site: &SiteSettings| match site.cluster.image.as_deref().and_then(|image| image.split_once('@'))
    {
        // The digest of a folder is not read.
        Some((_, digest)) => images.iter().any(|image| image.ends_with(digest) || image.starts_with("oci:")),
        None => false,
    };
    let site = environment.sites.iter().filter(has_gpus).find(|site| !is_included(site))?;
    Some(format!(
        "site `{}` of {} has GPUs, and the bundle does not include its image with CUDA: the bundle's own image of the server \
         computes on the CPU, and pods with GPUs refuse it. Set `sites[].cluster.image` to an image with CUDA, and include it with \
         --image NAME:TAG@sha256:DIGEST",
        site.name, environment.environment
    ))
}

impl Collected {
    /// Stores the chunk lists of new weights in the cache, so that the next bundle need not hash them. A failure does
    /// not affect the bundle.
    pub fn keep_chunks(&self, made: &Manifest) {
        let Self { inputs, store, .. } = self;
        for file in made.files.iter().filter(|file| !inputs.recorded.contains_key(&file.path)) {
            let weights = file.path.ends_with(".safetensors") || file.path.ends_with(".gguf");
            if weights && inputs.promised.get(&file.path) == Some(&file.digest) {
                let cuts: Vec<Cut> = file.chunks.iter().map(|chunk| (chunk.size, chunk.digest)).collect();
                let _ = store.keep_chunks(&file.digest, &cuts);
            }
        }
    }
}

/// The environment as one self-contained text: all layers applied, and each model as a path in the bundle with its
/// digest.
fn sealed(loaded: &Loaded, digests: &BTreeMap<&str, Digest>) -> Result<String, Failure> {
    let mut document: Value = serde_yaml::from_str(&loaded.to_yaml(false)).context("read the environment again")?;
    // Defaults are left out, because the program in the bundle has them.
    let said = loaded.facts().into_iter().filter(|fact| !matches!(fact.origin, Origin::Default { .. }));
    keep(&mut document, "", &said.map(|fact| fact.path).collect());
    let models = document.get_mut("models").and_then(Value::as_sequence_mut).into_iter().flatten();
    for model in models.filter_map(Value::as_mapping_mut) {
        let Some(name) = model_name_of(model) else { continue };
        if let Some(digest) = digests.get(name.as_str()) {
            model.insert("source".into(), format!("file:{}", recipe::model_path(&name)).into());
            model.insert("digest".into(), digest.to_string().into());
        }
    }
    let text = serde_yaml::to_string(&document).context("write the environment")?;
    Ok(format!(
        "# Written by `bundle create`: all layers of the environment in one. Make changes in the file that `bundle install` puts next to it.\n{text}"
    ))
}

/// Keeps the values at these paths, and the mappings and lists that contain them.
fn keep(value: &mut Value, path: &str, said: &BTreeSet<String>) -> bool {
    match value {
        Value::Mapping(fields) if !fields.is_empty() => {
            fields.retain(|name, field| {
                let name = name.as_str().unwrap_or_default();
                keep(field, &if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }, said)
            });
            !fields.is_empty()
        }
        Value::Sequence(items) if items.iter().any(Value::is_mapping) => {
            items.iter_mut().enumerate().fold(false, |any, (n, item)| keep(item, &format!("{path}[{n}]"), said) || any)
        }
        _ => said.contains(path),
    }
}

fn programs(request: &Request<'_>) -> Result<Vec<ProgramFile>, Failure> {
    let mut wanted: Vec<(Option<String>, Utf8PathBuf)> = request
        .programs
        .iter()
        .map(|text| match text.split_once('=') {
            Some((platform, path)) if platform.starts_with("linux/") => (Some(platform.to_owned()), path.into()),
            _ => (None, text.into()),
        })
        .collect();
    if wanted.is_empty() {
        let own = std::env::current_exe().context("find this program")?;
        wanted.push((None, Utf8PathBuf::try_from(own).context("this program's path is not UTF-8")?));
    }
    let mut programs: Vec<ProgramFile> = Vec::new();
    for (said, path) in wanted {
        let architecture = elf::static_architecture(&path).map_err(|error| {
            let hint = error.hint();
            let error = anyhow::Error::new(error).context(format!("take {path} as the bundle's program"));
            Failure::usage("program_not_static", error).hint(hint)
        })?;
        let platform = format!("linux/{architecture}");
        if let Some(said) = said.filter(|said| *said != platform) {
            let error = anyhow::anyhow!("{path} is a program for {platform}, not {said}");
            return Err(Failure::usage("other_platform", error).hint(format!("--program {platform}={path}")));
        }
        if programs.iter().any(|p| p.platform == platform) {
            let error = anyhow::anyhow!("two programs are given for {platform}; the second is {path}");
            return Err(Failure::usage("platform_twice", error).hint("give one program per platform"));
        }
        let digest = std::fs::File::open(&path).and_then(Digest::of_reader).with_context(|| format!("read {path}"))?.0;
        programs.push(ProgramFile { platform, path, digest });
    }
    Ok(programs)
}

/// The sources of all models by their names, with the digests that environments demand. A name has one source.
fn named_models(request: &Request<'_>) -> Result<BTreeMap<String, (String, Option<String>)>, Failure> {
    let mut wanted: BTreeMap<String, (String, Option<String>)> = BTreeMap::new();
    for loaded in request.environments {
        for model in &loaded.environment.models {
            let entry = (model.source().to_owned(), model.digest.clone());
            let name = model_name(model.tenant.as_deref(), &model.name);
            if let Some(other) = wanted.insert(name, entry.clone())
                && other != entry
            {
                let hint = "give the two environments' models different names";
                return Err(model_twice(&model.id(), &other.0, &entry.0, hint));
            }
        }
    }
    for text in request.models {
        let (name, source) = match text.split_once('=') {
            Some((name, source)) if !name.contains([':', '/']) => (name.to_owned(), source.to_owned()),
            _ => (
                text.rsplit(['/', ':']).next().unwrap_or(text).split('@').next().unwrap_or(text).to_owned(),
                text.clone(),
            ),
        };
        // A second source would be dropped.
        match wanted.get(&name) {
            None => drop(wanted.insert(name, (source, None))),
            Some((other, _)) if *other == source => {}
            Some((other, _)) => return Err(model_twice(&name, other, &source, "write `--model OTHER_NAME=SOURCE`")),
        }
    }
    Ok(wanted)
}

fn model_twice(name: &str, first: &str, second: &str, hint: &str) -> Failure {
    let error = anyhow::anyhow!("model {name} has two sources: {first} and {second}");
    Failure::usage("model_twice", error).hint(hint)
}

/// The models of all environments and of `--model`, from the cache or their sources. The last value prevents their
/// deletion from the cache.
async fn models(
    request: &Request<'_>,
    progress: &dyn Progress,
) -> Result<(Store, Vec<ModelFolder>, Vec<Model>), Failure> {
    let wanted = named_models(request)?;
    let store = Store::open(request.model_cache).map_err(model_failed)?;
    let (mut folders, mut held) = (Vec::new(), Vec::new());
    for (name, (source, digest)) in wanted {
        let source: Source = source.parse().map_err(|e| model_failed(textnlp_models::Error::Source(e)))?;
        let mut options = FetchOptions::from_env();
        options.offline |= request.offline;
        // A cached model is read once, while it is packed. If the bundle exists, this is a repeated run: it verifies
        // the cache first, because that repairs a damaged model instead of failing.
        options.verify = request.out.exists() || Utf8PathBuf::from(format!("{}.001", request.out)).exists();
        options.expect = digest
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e| Failure::usage("usage", anyhow::Error::new(e)))?;
        progress.doing(&format!("model {name}"));
        let model = store.fetch(&source, &options, &|_| {}).await.map_err(model_failed)?;
        let mut manifest = model.manifest.clone();
        // A local path is private, and would make the bundle differ between machines.
        if let Some(path) = manifest.source.strip_prefix("file:") {
            manifest.source = format!("file:{}", Utf8Path::new(path).file_name().unwrap_or(path));
        }
        let lists = model.manifest.files.iter().filter_map(|f| Some((f.name.clone(), store.chunks(&f.digest)?)));
        folders.push(ModelFolder { name, path: model.dir.clone(), manifest, recorded: lists.collect() });
        held.push(model);
    }
    Ok((store, folders, held))
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};

    use super::*;

    #[test]
    fn pods_with_gpus_need_their_image_in_the_bundle() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let lacks = |environment: &str, sets: &[&str], images: &[&str]| {
            let overrides = Overrides { sets: sets.iter().map(ToString::to_string).collect(), ..Overrides::default() };
            let loaded = Library::built_in().load(environment, &overrides, &Catalogue::default()).unwrap();
            let images: Vec<String> = images.iter().map(ToString::to_string).collect();
            lacks_gpu_image(&loaded.environment, &images)
        };
        let named = format!("sites[0].cluster.image=r.example.com/textnlp-cuda@{digest}");
        let (in_cluster, named) = (["sites[0].runtime=kubernetes"], ["sites[0].runtime=kubernetes", named.as_str()]);
        let why = lacks("optimized", &named, &["postgres:15@sha256:1"]).unwrap();
        assert!(why.contains("of optimized has GPUs") && why.contains("--image"), "{why}");
        assert!(lacks("optimized", &in_cluster, &[]).is_some());
        for included in [format!("r.example.com/textnlp-cuda:1@{digest}"), "oci:cuda".to_owned()] {
            assert_eq!(lacks("optimized", &named, &[included.as_str()]), None, "{included}");
        }
        assert_eq!(lacks("optimized", &["sites[0].runtime=kubernetes", "gpu.size=none"], &[]), None);
        assert_eq!(lacks("air-gapped", &[], &[]), None);
    }

    #[test]
    fn models_of_one_name_and_two_sources_are_refused() {
        static BUILD: Build = Build { features: &[], marker: "" };
        let named = |models: &[&str]| {
            let models: Vec<String> = models.iter().map(ToString::to_string).collect();
            let request = Request {
                version: String::new(),
                out: Utf8Path::new("out.tar"),
                environments: &[],
                programs: &[],
                models: &models,
                images: &[],
                has_server_image: false,
                packages: Vec::new(),
                keys: None,
                offline: true,
                model_cache: Utf8Path::new("cache"),
                build: &BUILD,
            };
            named_models(&request).map(|found| found.into_keys().collect::<Vec<_>>())
        };
        for twice in [&["a=file:x", "a=file:y"][..], &["file:x/a", "a=file:y"], &["file:x/a", "file:y/a"]] {
            let failure = named(twice).unwrap_err();
            assert_eq!((failure.exit, failure.code), (crate::Exit::Usage, "model_twice"), "{twice:?}");
            assert!(failure.hint.is_some());
        }
        assert_eq!(named(&["a=file:x", "b=file:x", "a=file:x"]).unwrap(), ["a", "b"]);
    }

    #[test]
    fn only_values_that_were_written_stay_in_a_bundled_environment() {
        let text = "a: 1\nb: { c: 2, d: 3 }\ne: [{ f: 4, g: 5 }]\nh: [1, 2]\ni: {}\n";
        let mut value: Value = serde_yaml::from_str(text).unwrap();
        let said = ["b.c", "e[0].g", "h", "i"].map(str::to_owned).into();
        assert!(keep(&mut value, "", &said));
        let expected: Value = serde_yaml::from_str("b: { c: 2 }\ne: [{ g: 5 }]\nh: [1, 2]\ni: {}\n").unwrap();
        assert_eq!(value, expected);
    }
}
