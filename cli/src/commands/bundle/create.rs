//! `bundle create`: gathers what a service needs, and seals it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use serde_yaml::Value;
use textnlp_bundle::recipe::{self, Ingredients, ModelFolder, ProgramFile};
use textnlp_bundle::{Inputs, Manifest, elf, pack};
use textnlp_models::{Cut, Digest, FetchOptions, Model, Source, Store};
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::environment::{Loaded, Origin};

use super::{drive, epoch, failed, look};
use crate::bundle_args::Create;
use crate::clouds;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success, size};
use crate::session::{Session, invalid, known_models};

/// `bundle create`.
pub async fn create(session: &Session, args: &Create, console: Console) -> Result<Success, Failure> {
    writable(&args.out)?;
    let progress = Progress::new(console);
    let environments = environments(session, args, console)?;
    if args.advisories.is_none() && environments.iter().any(|e| e.environment.phase == Phase::AirGapped) {
        console.warn(
            "no advisories are carried along, so nobody can tell on the other side what is known against this content, and the \
             air-gapped gate stays shut: --advisories DIR takes a folder of RustSec's",
        );
    }
    let programs = programs(args)?;
    let (store, models, held) = models(session, args, &environments, &progress).await?;
    let digests: BTreeMap<&str, Digest> = models.iter().map(|m| (m.name.as_str(), m.manifest.digest)).collect();
    let texts = environments.iter().map(|e| Ok((e.environment.environment.to_string(), sealed(e, &digests)?)));
    let texts = texts.collect::<Result<Vec<_>, Failure>>()?;

    let version = args.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let mut ingredients = Ingredients {
        version,
        epoch: epoch()?,
        programs,
        environments: texts,
        models,
        packages: args.package.clone(),
        ..Ingredients::default()
    };
    super::parts::gather(session, args, &mut ingredients, &progress).await?;
    let inputs = recipe::inputs(ingredients).map_err(failed)?;
    let stop = crate::signals::stop(console);
    let packed = drive(&progress, &stop, |drive| {
        pack(&inputs, &args.out, &textnlp_bundle::PackOptions { volume_size: args.volume_size, drive })
    });
    progress.finish();
    let packed = packed.map_err(|error| {
        let mut failure = failed(error);
        failure.error = failure.error.context(format!("{} is not made", args.out));
        failure
    })?;
    keep_chunks(&store, &inputs, &packed.manifest);
    // Models may be removed from the cache from here on.
    drop(held);
    let signed = match &args.sign_key {
        Some(key) => Some(super::keys::sign_with(&args.out, key, None)?),
        None => None,
    };

    let files: Vec<_> = packed.paths.iter().map(ToString::to_string).collect();
    let mut text =
        format!("{}: {} in {} files of content", files.join(", "), size(packed.bytes), packed.manifest.files.len());
    text.push_str(&look::items_text(&packed.manifest));
    text.push_str(&format!("\n  content    {}", packed.content));
    match &signed {
        Some(key) => text.push_str(&format!("\n  signed by  {key}")),
        None => {
            text.push_str("\n  signed by  nobody: `textnlp-deploy bundle sign` makes it trustworthy on the other side")
        }
    }
    text.push_str(&format!(
        "\nThere: tar -xf {0} install.sh bin && sh install.sh {0}",
        packed.paths[0].file_name().unwrap_or("BUNDLE")
    ));
    Ok(Success::new(
        text,
        json!({
            "file": args.out, "volumes": files, "bytes": packed.bytes, "digest": packed.content, "version": packed.manifest.version,
            "items": packed.manifest.items, "signed_by": signed,
            "files": packed.manifest.files.iter().map(|f| json!({ "path": f.path, "size": f.size, "digest": f.digest })).collect::<Vec<_>>(),
            "resumed_bytes": packed.resumed, "seconds": packed.elapsed.as_secs_f64(),
        }),
    ))
}

fn environments(session: &Session, args: &Create, console: Console) -> Result<Vec<Loaded>, Failure> {
    let mut loaded = Vec::new();
    if session.global.env.is_some() || session.global.file.is_some() || args.with_env.is_empty() {
        loaded.push(session.load(console)?.loaded);
    }
    for name in &args.with_env {
        let one = session
            .library
            .load(name, &session.overrides(), &clouds::catalogue())
            .map_err(|e| invalid(e, &session.again()))?;
        known_models(&one, &session.again())?;
        loaded.push(one);
    }
    let mut seen = BTreeSet::new();
    loaded.retain(|one| seen.insert(one.environment.environment.to_string()));
    Ok(loaded)
}

/// The environment as one text with nothing to look up: every layer applied, each model where the bundle has it and by its digest.
fn sealed(loaded: &Loaded, digests: &BTreeMap<&str, Digest>) -> Result<String, Failure> {
    let mut document: Value = serde_yaml::from_str(&loaded.to_yaml(false)).context("read the environment again")?;
    // Defaults stay defaults: the program beside it knows them.
    let said = loaded.facts().into_iter().filter(|fact| !matches!(fact.origin, Origin::Default { .. }));
    keep(&mut document, "", &said.map(|fact| fact.path).collect());
    let models = document.get_mut("models").and_then(Value::as_sequence_mut).into_iter().flatten();
    for model in models.filter_map(Value::as_mapping_mut) {
        let Some(name) = model.get("name").and_then(Value::as_str).map(str::to_owned) else { continue };
        if let Some(digest) = digests.get(name.as_str()) {
            model.insert("source".into(), format!("file:{}", recipe::model_path(&name)).into());
            model.insert("digest".into(), digest.to_string().into());
        }
    }
    let text = serde_yaml::to_string(&document).context("write the environment")?;
    Ok(format!(
        "# Sealed into a bundle: all layers of the environment in one. `bundle install` puts it beside a file that is yours to change.\n{text}"
    ))
}

/// Keeps what stands at these paths, and the mappings and lists around it.
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

fn programs(args: &Create) -> Result<Vec<ProgramFile>, Failure> {
    let mut wanted: Vec<(Option<String>, Utf8PathBuf)> = args
        .program
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
        let read = elf::is_static(&path).map_err(|error| {
            let hint = error.hint();
            Failure::usage(
                "program_not_static",
                anyhow::Error::new(error).context(format!("take {path} as the bundle's program")),
            )
            .hint(hint)
        })?;
        let platform = format!("linux/{}", read.architecture);
        if let Some(said) = said.filter(|said| *said != platform) {
            let error = anyhow::anyhow!("{path} is a program for {platform}, not for {said}");
            return Err(Failure::usage("other_platform", error).hint(format!("--program {platform}={path}")));
        }
        if programs.iter().any(|p| p.platform == platform) {
            let error = anyhow::anyhow!("two programs are for {platform}; the second is {path}");
            return Err(Failure::usage("platform_twice", error).hint("give one program for each platform"));
        }
        let digest = std::fs::File::open(&path).and_then(Digest::of_reader).with_context(|| format!("read {path}"))?.0;
        programs.push(ProgramFile { platform, path, digest });
    }
    Ok(programs)
}

/// Every model of every environment, and those of `--model`, from the cache or their sources; the last value keeps them in the cache.
async fn models(
    session: &Session,
    args: &Create,
    environments: &[Loaded],
    progress: &Progress,
) -> Result<(Store, Vec<ModelFolder>, Vec<Model>), Failure> {
    let mut wanted: BTreeMap<String, (String, Option<String>)> = BTreeMap::new();
    for loaded in environments {
        for model in &loaded.environment.models {
            let entry = (model.source().to_owned(), model.digest.clone());
            if let Some(other) = wanted.insert(model.name.clone(), entry.clone())
                && other != entry
            {
                let error = anyhow::anyhow!("model {} comes from {} and from {}", model.name, other.0, entry.0);
                return Err(
                    Failure::usage("model_twice", error).hint("give the two environments' models different names")
                );
            }
        }
    }
    for text in &args.model {
        let (name, source) = match text.split_once('=') {
            Some((name, source)) if !name.contains([':', '/']) => (name.to_owned(), source.to_owned()),
            _ => (
                text.rsplit(['/', ':']).next().unwrap_or(text).split('@').next().unwrap_or(text).to_owned(),
                text.clone(),
            ),
        };
        wanted.entry(name).or_insert((source, None));
    }
    let store = Store::open(session.model_cache()?).map_err(crate::commands::model::failed)?;
    let (mut folders, mut held) = (Vec::new(), Vec::new());
    for (name, (source, digest)) in wanted {
        let source: Source =
            source.parse().map_err(|e| crate::commands::model::failed(textnlp_models::Error::Source(e)))?;
        let mut options = FetchOptions::from_env();
        options.offline |= args.offline;
        // What is in the cache is read once, while it is packed. Where a bundle lies already this is a second run of many: one that
        // reads twice and mends what is damaged is worth more there than one that ends.
        options.verify = args.out.exists() || Utf8PathBuf::from(format!("{}.001", args.out)).exists();
        options.expect = digest
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e| Failure::usage("usage", anyhow::Error::new(e)))?;
        progress.doing(&format!("model {name}"));
        let model = store.fetch(&source, &options, &|_| {}).await.map_err(crate::commands::model::failed)?;
        let mut manifest = model.manifest.clone();
        // Where it lay on this machine is nobody's business on another, and would make other bytes elsewhere.
        if let Some(path) = manifest.source.strip_prefix("file:") {
            manifest.source = format!("file:{}", Utf8Path::new(path).file_name().unwrap_or(path));
        }
        let lists = model.manifest.files.iter().filter_map(|f| Some((f.name.clone(), store.chunks(&f.digest)?)));
        folders.push(ModelFolder { name, path: model.dir.clone(), manifest, recorded: lists.collect() });
        held.push(model);
    }
    Ok((store, folders, held))
}

/// Keeps the chunks of weights beside them in the cache, where that has none yet: the next bundle hashes them once. The bundle is made,
/// whether this succeeds or not.
fn keep_chunks(store: &Store, inputs: &Inputs, made: &Manifest) {
    for file in made.files.iter().filter(|file| !inputs.recorded.contains_key(&file.path)) {
        let weights = file.path.ends_with(".safetensors") || file.path.ends_with(".gguf");
        if weights && inputs.promised.get(&file.path) == Some(&file.digest) {
            let cuts: Vec<Cut> = file.chunks.iter().map(|chunk| (chunk.size, chunk.digest)).collect();
            let _ = store.keep_chunks(&file.digest, &cuts);
        }
    }
}

/// Refuses a place that nothing can be written to before hours of work.
fn writable(out: &Utf8Path) -> Result<(), Failure> {
    let folder = out.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "no_such_folder", anyhow::anyhow!("{folder} is not a folder"))
        .hint(format!("mkdir -p {folder}")))
}
