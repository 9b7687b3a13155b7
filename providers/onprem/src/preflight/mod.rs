//! Finds all problems that would make an `up` fail on this machine. Reads only.

mod devices;
mod host;
mod ports;
mod postgres;
mod software;

use camino::Utf8Path;
use textnlp_keys::{Marker, SiteFolder, files, preflight};
use textnlp_models::{Source, Store};
use textnlp_provider::{Problem, Result, Wanted};

use crate::OnPrem;
use crate::options::Options;
use crate::spec::{ModelSpec, ProgramSpec};
use crate::table::ResourceKind;
use crate::verbs;

/// The assumed size of a model whose size is unknown.
const UNKNOWN_MODEL_BYTES: u64 = 64 << 20;
/// All problems of the machine and of the wanted resources.
pub(crate) async fn preflight(onprem: &OnPrem, wanted: &[Wanted]) -> Result<Vec<Problem>> {
    let (options, mut problems) = (onprem.options(), Vec::new());
    if wanted.is_empty() {
        return Ok(problems);
    }
    preflight::state_folder(&options.state_folder, &mut problems);
    if !options.supervisor.is_file() && !options.serves_elsewhere {
        let cause = format!("{} does not exist", options.supervisor);
        problems.push(Problem::new("supervisor", cause, "run the command from the file where it is installed"));
    }
    if !options.serves_elsewhere {
        let facts = host::Facts::read(&preflight::nearest(&options.state_folder));
        host::check(&facts, &options.minimum, connections(wanted), &mut problems);
    }
    if !options.serves_elsewhere {
        crate::user::check(options.user.as_deref(), options.requires_user, &mut problems);
    }
    if options.needs_git {
        preflight::git(&std::env::var_os("PATH").unwrap_or_default(), &mut problems);
    }
    let mut needed = SpaceDemand::default();
    for one in wanted {
        let folder = SiteFolder::of(&options.state_folder, &one.site);
        preflight::object(onprem, one, &mut problems);
        match ResourceKind::of(&one.kind) {
            Some(ResourceKind::Program) => program(one, &folder, &mut needed, &mut problems).await,
            Some(ResourceKind::Model) => model(one, options, &folder, &mut needed, &mut problems).await,
            Some(ResourceKind::Process) => ports::check(one, &folder, &mut problems),
            Some(ResourceKind::Postgres) => postgres::check_managed(one, &folder, &mut problems),
            Some(ResourceKind::File) => postgres::check_port(one, &folder, &mut problems),
            Some(ResourceKind::Schema) => postgres::check_external(one, wanted, &folder, &mut problems).await,
            _ => {}
        }
    }
    space(options, &needed, &mut problems);
    if !options.serves_elsewhere {
        software::check(&software::read().await, &options.minimum, &mut problems);
    }
    Ok(problems)
}

/// The connections that a gateway of the site may accept.
fn connections(wanted: &[Wanted]) -> Option<u64> {
    let files = wanted.iter().filter(|one| ResourceKind::of(&one.kind) == Some(ResourceKind::File));
    files.filter_map(|one| one.spec.get("document")?.get("gateway")?.get("max_connections")?.as_u64()).max()
}

/// The bytes to be written, by filesystem.
#[derive(Debug, Default)]
struct SpaceDemand {
    site_bytes: u64,
    cache_bytes: u64,
}

async fn program(wanted: &Wanted, folder: &SiteFolder, needed: &mut SpaceDemand, problems: &mut Vec<Problem>) {
    let Ok(spec) = wanted.spec.typed::<ProgramSpec>() else { return };
    let marker = Marker::read(&folder.marker(&wanted.id)).ok().flatten();
    if marker.is_some_and(|marker| marker.complete && marker.fact("sha256") == Some(&spec.sha256)) {
        return;
    }
    let source = spec.source.clone();
    let digest = tokio::task::spawn_blocking(move || {
        let real = source.canonicalize_utf8()?;
        let bytes = std::fs::metadata(&real)?.len();
        files::sha256(&real).map(|digest| (digest, bytes))
    });
    match digest.await.map_err(std::io::Error::other).and_then(|read| read) {
        Ok((digest, bytes)) => {
            needed.site_bytes += bytes;
            if digest != spec.sha256 {
                let cause = format!(
                    "{} has the digest sha256:{digest}; the release is locked to sha256:{}",
                    spec.source, spec.sha256
                );
                let fix = "give the released file with `--server FILE`, or lock this one with `release set`";
                problems.push(Problem::new(wanted.id.as_str(), cause, fix));
            }
        }
        Err(error) => {
            let cause = format!("the program {} cannot be read: {error}", spec.source);
            problems.push(Problem::new(wanted.id.as_str(), cause, "give it with `--server FILE`"));
        }
    }
}

async fn model(
    wanted: &Wanted,
    options: &Options,
    folder: &SiteFolder,
    needed: &mut SpaceDemand,
    problems: &mut Vec<Problem>,
) {
    let Ok(spec) = wanted.spec.typed::<ModelSpec>() else { return };
    let marker = Marker::read(&folder.marker(&wanted.id)).ok().flatten().filter(|marker| marker.complete);
    let placed = textnlp_models::read_manifest(&folder.join(&spec.path)).ok().flatten();
    let is_there = placed.is_some_and(|placed| match &spec.digest {
        Some(digest) => placed.digest.to_string() == *digest,
        // Without a digest, any files from this source are accepted.
        None => marker.is_some_and(|marker| marker.spec.get("source").and_then(|s| s.as_str()) == Some(&spec.source)),
    });
    if is_there {
        return;
    }
    let source = match spec.source.parse::<Source>() {
        Ok(source) => source,
        Err(error) => {
            let fix = "list the models with `model list`, or use a `file:`, `hf:` or `https:` source";
            problems.push(Problem::new(wanted.id.as_str(), textnlp_provider::error_chain(&error), fix));
            return;
        }
    };
    let store = match Store::existing(&options.model_cache) {
        Ok(store) => store,
        Err(error) => {
            let fix = error.hint().unwrap_or_else(|| format!("check the folder {}", options.model_cache));
            problems.push(Problem::new(wanted.id.as_str(), textnlp_provider::error_chain(&error), fix));
            return;
        }
    };
    // Files in the cache are only linked into the site, whatever their source.
    let cached = store.as_ref().is_some_and(|store| {
        let digest = match spec.digest.as_ref().and_then(|digest| digest.parse().ok()) {
            Some(digest) => Ok(Some(digest)),
            None => store.recorded(&source),
        };
        let found = digest.and_then(|digest| digest.map_or(Ok(None), |digest| store.model_folder(&digest)));
        found.is_ok_and(|found| found.is_some())
    });
    if cached || verbs::has_copy(folder, &spec) {
        return;
    }
    let bytes = size_of(&source).unwrap_or(UNKNOWN_MODEL_BYTES);
    // A download is written once and may be unpacked or repacked next to itself.
    needed.cache_bytes = needed.cache_bytes.saturating_add(bytes.saturating_mul(2));
    let Source::File(path) = &source else { return };
    if !path.exists() {
        let cause = format!("the model {} has no file {path}", spec.name);
        problems.push(Problem::new(wanted.id.as_str(), cause, "correct the model's `source`"));
        return;
    }
    let (folder, source) = (path.clone(), source.clone());
    let facts = tokio::task::spawn_blocking(move || {
        textnlp_models::inspect(&folder)?;
        match &store {
            Some(store) => store.local_digest(&source, &|_| ()),
            None => textnlp_models::local_digest(&source, &|_| ()),
        }
    });
    match facts.await {
        Ok(Ok(found)) => {
            let found = found.map(|digest| digest.to_string());
            if let (Some(locked), Some(found)) = (&spec.digest, &found)
                && locked != found
            {
                let cause = format!("the model {} is locked as {locked}, and {path} holds {found}", spec.name);
                let fix = "restore the released files, or lock the current ones with `release set`";
                problems.push(Problem::new(wanted.id.as_str(), cause, fix));
            }
        }
        Ok(Err(error)) => {
            let fix = error.hint_for_folder().unwrap_or_else(|| "correct the model's `source`".to_owned());
            problems.push(Problem::new(wanted.id.as_str(), textnlp_provider::error_chain(&error), fix));
        }
        Err(error) => problems.push(Problem::new(wanted.id.as_str(), error.to_string(), "run the command again")),
    }
}

/// The size of a source, where it is known without a request.
fn size_of(source: &Source) -> Option<u64> {
    match source {
        Source::File(path) => folder_bytes(path).ok(),
        Source::Catalogue(name) => {
            textnlp_models::Catalogue::embedded().get(name).map(|entry| entry.parameters.saturating_mul(4))
        }
        _ => None,
    }
}

fn folder_bytes(path: &Utf8Path) -> std::io::Result<u64> {
    let found = std::fs::metadata(path)?;
    if !found.is_dir() {
        return Ok(found.len());
    }
    let mut bytes = 0u64;
    for entry in path.read_dir_utf8()? {
        bytes = bytes.saturating_add(entry?.metadata()?.len());
    }
    Ok(bytes)
}

/// Free space and inodes on each filesystem that is written to.
fn space(options: &Options, needed: &SpaceDemand, problems: &mut Vec<Problem>) {
    let (site, cache) = (&*options.state_folder, &*options.model_cache);
    let device = |path: &Utf8Path| {
        std::fs::metadata(preflight::nearest(path)).map(|found| std::os::unix::fs::MetadataExt::dev(&found)).ok()
    };
    let site_bytes = needed.site_bytes.saturating_add(preflight::SITE_BYTES).saturating_add(needed.cache_bytes);
    // Hard links do not cross filesystems: the models are copied.
    let copied = (cache, needed.cache_bytes);
    preflight::space(
        [(site, site_bytes)].into_iter().chain((device(site) != device(cache)).then_some(copied)),
        problems,
    );
}
