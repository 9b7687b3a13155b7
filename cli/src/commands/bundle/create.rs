//! `bundle create`: collects the content of a bundle and writes it.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Context;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use serde_yaml::Value;
use textnlp_bundle::recipe::{self, Ingredients, ModelFolder, ProgramFile};
use textnlp_bundle::{Inputs, KeyChange, Manifest, Packed, STOCK_VERIFICATION, STOCK_VERIFICATION_FILES, elf, pack};
use textnlp_models::{Cut, Digest, FetchOptions, Model, Source, Store};
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::environment::{Loaded, Origin};

use super::{advisories, drive, epoch, failed, inspect};
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
    let wanted = environments.iter().any(|e| e.environment.phase == Phase::AirGapped);
    let advisories = advisories::find(session, args, wanted, &progress).await?;
    if wanted && advisories.is_none() {
        console.warn(
            "no advisories were found, so the air-gapped gate will wait for known vulnerabilities to be checked. To include some: \
             git clone --depth 1 https://github.com/RustSec/advisory-db.git, then give the folder with --advisories advisory-db",
        );
    }
    let programs = programs(args)?;
    let (store, models, held) = models(session, args, &environments, &progress).await?;
    let digests: BTreeMap<&str, Digest> = models.iter().map(|m| (m.name.as_str(), m.manifest.digest)).collect();
    let texts = environments.iter().map(|e| Ok((e.environment.environment.to_string(), sealed(e, &digests)?)));
    let texts = texts.collect::<Result<Vec<_>, Failure>>()?;

    let keys = KeyChange::new(
        super::public_keys("--next-key", &args.next_key)?,
        super::public_keys("--revoke", &args.revoke)?,
    );
    let version = args.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let mut ingredients = Ingredients {
        version,
        epoch: epoch()?,
        programs,
        environments: texts,
        models,
        packages: args.package.clone(),
        keys,
        ..Ingredients::default()
    };
    let database = advisories.as_ref().map(|found| &found.database);
    super::parts::gather(session, args, database, &mut ingredients, &progress).await?;
    let inputs = recipe::inputs(ingredients).map_err(failed)?;
    let stop = crate::signals::stop(console);
    let packed = drive(&progress, &stop, |drive| {
        pack(&inputs, &args.out, &textnlp_bundle::PackOptions { volume_size: args.volume_size, drive })
    });
    progress.finish();
    let packed = packed.map_err(|error| {
        let mut failure = failed(error);
        failure.error = failure.error.context(format!("cannot create {}", args.out));
        failure
    })?;
    keep_chunks(&store, &inputs, &packed.manifest);
    // The cache may delete models from here on.
    drop(held);
    let signed = match &args.sign_key {
        Some(key) => Some(super::keys::sign_with(&args.out, key, None)?),
        None => None,
    };

    let files: Vec<_> = packed.paths.iter().map(ToString::to_string).collect();
    let mut text =
        format!("{}: {} in {} files of content", files.join(", "), size(packed.bytes), packed.manifest.files.len());
    text.push_str(&inspect::items_text(&packed.manifest));
    text.push_str(&format!("\n  content    {}", packed.content));
    match &signed {
        Some(key) => text.push_str(&format!("\n  signed by  {key}")),
        None => {
            text.push_str("\n  signed by  no key: sign it with `textnlp-deploy bundle sign`, so that the target machine can verify its origin")
        }
    }
    text.push_str(&inspect::keys_text(&packed.manifest));
    let facts = advisories.as_ref().map_or_else(Vec::new, |found| found.database.facts(jiff::Timestamp::now()));
    if let (Some(found), false) = (&advisories, facts.is_empty()) {
        let said: Vec<String> = facts.iter().map(advisories::said).collect();
        text.push_str(&format!("\n  advisories {}, from {}", said.join("; "), found.origin));
    }
    text.push_str(&installer(&packed, args.sign_key.as_deref().and_then(Utf8Path::file_stem)));
    Ok(Success::new(
        text,
        json!({
            "file": args.out, "volumes": files, "bytes": packed.bytes, "digest": packed.content, "version": packed.manifest.version,
            "items": packed.manifest.items, "signed_by": signed, "advisories": facts,
            "files": packed.manifest.files.iter().map(|f| json!({ "path": f.path, "size": f.size, "digest": f.digest })).collect::<Vec<_>>(),
            "resumed_bytes": packed.resumed, "seconds": packed.elapsed.as_secs_f64(),
        }),
    ))
}

/// How to install a bundle that `KEY.pub` verifies, and the digests of the files that run before a program verifies the rest.
fn installer(packed: &Packed, key: Option<&str>) -> String {
    let bundle = packed.paths[0].file_name().unwrap_or("BUNDLE");
    let Some(key) = key else {
        return format!("\nOn the target machine: tar -xf {bundle} install.sh bin && sh install.sh {bundle}");
    };
    let mut text = String::new();
    for file in packed.manifest.files.iter().filter(|file| file.path == "install.sh" || file.path.starts_with("bin/")) {
        text.push_str(&format!("\n  sha256     {}  {}", file.digest.hex(), file.path));
    }
    text.push_str(&format!(
        "\nOn the target machine:\n  tar -xf {bundle} {} install.sh bin &&\n",
        STOCK_VERIFICATION_FILES.join(" ")
    ));
    for check in STOCK_VERIFICATION {
        text.push_str(&format!("  {} &&\n", check.replace("KEY", &format!("{key}.pub"))));
    }
    text.push_str(&format!("  sh install.sh {bundle} --trust {key}.pub"));
    text
}

fn environments(session: &Session, args: &Create, console: Console) -> Result<Vec<Loaded>, Failure> {
    let mut loaded = Vec::new();
    if session.global.env.is_some() || session.global.file.is_some() || args.with_env.is_empty() {
        loaded.push(session.loaded(console)?);
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

/// The environment as one self-contained text: all layers applied, and each model as a path in the bundle with its
/// digest.
fn sealed(loaded: &Loaded, digests: &BTreeMap<&str, Digest>) -> Result<String, Failure> {
    let mut document: Value = serde_yaml::from_str(&loaded.to_yaml(false)).context("read the environment again")?;
    // Defaults are left out, because the program in the bundle has them.
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

/// The models of all environments and of `--model`, from the cache or their sources. The last value prevents their
/// deletion from the cache.
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
                let error = anyhow::anyhow!("model {} has two sources: {} and {}", model.name, other.0, entry.0);
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
        // A cached model is read once, while it is packed. If the bundle exists, this is a repeated run: it verifies
        // the cache first, because that repairs a damaged model instead of failing.
        options.verify = args.out.exists() || Utf8PathBuf::from(format!("{}.001", args.out)).exists();
        options.expect = digest
            .as_deref()
            .map(str::parse)
            .transpose()
            .map_err(|e| Failure::usage("usage", anyhow::Error::new(e)))?;
        progress.doing(&format!("model {name}"));
        let model = store.fetch(&source, &options, &|_| {}).await.map_err(crate::commands::model::failed)?;
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

/// Stores the chunk lists of new weights in the cache, so that the next bundle need not hash them. A failure does not
/// affect the bundle.
fn keep_chunks(store: &Store, inputs: &Inputs, made: &Manifest) {
    for file in made.files.iter().filter(|file| !inputs.recorded.contains_key(&file.path)) {
        let weights = file.path.ends_with(".safetensors") || file.path.ends_with(".gguf");
        if weights && inputs.promised.get(&file.path) == Some(&file.digest) {
            let cuts: Vec<Cut> = file.chunks.iter().map(|chunk| (chunk.size, chunk.digest)).collect();
            let _ = store.keep_chunks(&file.digest, &cuts);
        }
    }
}

/// Rejects an unwritable output path before hours of work.
fn writable(out: &Utf8Path) -> Result<(), Failure> {
    let folder = out.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "no_such_folder", anyhow::anyhow!("{folder} is not a folder"))
        .hint(format!("mkdir -p {folder}")))
}
