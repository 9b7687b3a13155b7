//! What would make an `up` fail on this machine, all of it at once. Reads only.

mod devices;
mod host;
mod ports;
mod postgres;
mod software;

use camino::{Utf8Path, Utf8PathBuf};
use rustix::fs::StatVfsMountFlags;
use textnlp_models::{Source, Store};
use textnlp_provider::{Ownership, Problem, Result, Wanted};

use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::options::Options;
use crate::spec::{ModelSpec, ProgramSpec};
use crate::table::Noun;
use crate::verbs;

/// What a site needs beside its models and programs: database, logs, configuration.
const SLACK_BYTES: u64 = 256 << 20;
/// A model whose size nobody knows yet is counted as this.
const UNKNOWN_MODEL_BYTES: u64 = 64 << 20;
/// Files that a site makes, generously.
const INODES: u64 = 500;

/// Everything that stands in the way.
pub(crate) async fn preflight(options: &Options, wanted: &[Wanted]) -> Result<Vec<Problem>> {
    let mut problems = Vec::new();
    if wanted.is_empty() {
        return Ok(problems);
    }
    state_folder(options, &mut problems);
    if !options.supervisor.is_file() && !options.serves_elsewhere {
        let cause = format!("{} is not there", options.supervisor);
        problems.push(Problem::new("supervisor", cause, "run the command from the file where it is installed"));
    }
    if !options.serves_elsewhere {
        host::check(&host::Facts::read(&nearest(&options.state_folder)), &options.minimum, &mut problems);
    }
    let mut needed = Needed::default();
    for one in wanted {
        let folder = SiteFolder::of(&options.state_folder, &one.site);
        strangers(one, &folder, &mut problems);
        match Noun::of(&one.kind) {
            Some(Noun::Program) => program(one, &folder, &mut needed, &mut problems).await,
            Some(Noun::Model) => model(one, options, &folder, &mut needed, &mut problems).await,
            Some(Noun::Process) => ports::check(one, &folder, &mut problems),
            Some(Noun::Certificate) => certificate(one, &mut problems),
            Some(Noun::Postgres) => postgres::check_own(one, &folder, &mut problems),
            Some(Noun::File) => postgres::check_port(one, &folder, &mut problems),
            Some(Noun::Schema) => postgres::check_others(one, wanted, &folder, &mut problems).await,
            _ => {}
        }
    }
    space(options, &needed, &mut problems);
    if !options.serves_elsewhere {
        software::check(&software::read().await, &options.minimum, &mut problems);
    }
    Ok(problems)
}

/// What is about to be written, by where.
#[derive(Debug, Default)]
struct Needed {
    site_bytes: u64,
    cache_bytes: u64,
}

/// The path that a wanted object would take and that somebody else has.
pub(crate) fn in_the_way(wanted: &Wanted, folder: &SiteFolder) -> Option<Utf8PathBuf> {
    let spec = &wanted.spec;
    let path = match Noun::of(&wanted.kind)? {
        Noun::Program | Noun::File | Noun::Model | Noun::Database | Noun::Postgres | Noun::Control => {
            folder.join(spec.get("path")?.as_str()?)
        }
        Noun::Authority => folder.join(spec.get("certificate_file")?.as_str()?),
        Noun::Certificate => folder.join(spec.get("key_file")?.as_str()?),
        Noun::Process => folder.unit(spec.get("unit")?.as_str()?),
        Noun::Directory | Noun::Supervisor | Noun::Secret | Noun::Schema | Noun::ApiKey => return None,
    };
    std::fs::symlink_metadata(&path).is_ok().then_some(path)
}

/// Objects without a marker, and sites that hold more than one lineage.
fn strangers(wanted: &Wanted, folder: &SiteFolder, problems: &mut Vec<Problem>) {
    let unmarked = matches!(Marker::read(&folder.marker(&wanted.id)), Ok(None));
    if let Some(path) = in_the_way(wanted, folder).filter(|_| unmarked && wanted.ownership == Ownership::Ours) {
        let cause = format!("{path} is there and is not marked as ours");
        problems.push(Problem::new(
            wanted.id.as_str(),
            cause,
            "look at it and move it away, or choose another `--state-dir`",
        ));
    }
    if Noun::of(&wanted.kind) != Some(Noun::Directory) {
        return;
    }
    match Marker::all(folder) {
        Err(error) => {
            let cause = format!("{} cannot be read: {error}", folder.join("objects"));
            problems.push(Problem::new(wanted.id.as_str(), cause, "make it readable for you"));
        }
        Ok(markers) => {
            let first = markers.first().map(|marker| marker.lineage);
            if let Some(other) = markers.iter().find(|marker| Some(marker.lineage) != first) {
                let cause = format!(
                    "{} holds objects of two lineages; {} is one of {}",
                    folder.root(),
                    other.resource,
                    other.lineage
                );
                problems.push(Problem::new(
                    wanted.id.as_str(),
                    cause,
                    "choose another `--state-dir` for this environment",
                ));
            }
        }
    }
}

fn state_folder(options: &Options, problems: &mut Vec<Problem>) {
    let folder = &options.state_folder;
    let nearest = nearest(folder);
    if let Err(error) =
        rustix::fs::access(nearest.as_std_path(), rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
    {
        let cause = format!("{nearest} cannot be written: {}", std::io::Error::from(error));
        problems.push(Problem::new("state folder", cause, "choose a folder of yours with `--state-dir`"));
    }
    let Ok(mount) = rustix::fs::statvfs(nearest.as_std_path()) else { return };
    if mount.f_flag.contains(StatVfsMountFlags::NOEXEC) {
        let cause = format!("{nearest} lies on a filesystem mounted `noexec`, and programs run from there");
        problems.push(Problem::new("state folder", cause, "choose a folder elsewhere with `--state-dir`"));
    }
    if mount.f_flag.contains(StatVfsMountFlags::RDONLY) {
        let cause = format!("{nearest} lies on a filesystem mounted read-only");
        problems.push(Problem::new("state folder", cause, "choose a folder elsewhere with `--state-dir`"));
    }
}

async fn program(wanted: &Wanted, folder: &SiteFolder, needed: &mut Needed, problems: &mut Vec<Problem>) {
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
                let cause =
                    format!("{} has the digest sha256:{digest}, the release names sha256:{}", spec.source, spec.sha256);
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
    needed: &mut Needed,
    problems: &mut Vec<Problem>,
) {
    let Ok(spec) = wanted.spec.typed::<ModelSpec>() else { return };
    let marker = Marker::read(&folder.marker(&wanted.id)).ok().flatten().filter(|marker| marker.complete);
    let placed = textnlp_models::read_manifest(&folder.join(&spec.path)).ok().flatten();
    let is_there = placed.is_some_and(|placed| match &spec.digest {
        Some(digest) => placed.digest.to_string() == *digest,
        // Nobody says which files: those that came from this source are right.
        None => marker.is_some_and(|marker| marker.spec.get("source").and_then(|s| s.as_str()) == Some(&spec.source)),
    });
    if is_there {
        return;
    }
    let source = match spec.source.parse::<Source>() {
        Ok(source) => source,
        Err(error) => {
            let fix = "`model list` names what there is; `file:`, `hf:` and `https:` are the other ways";
            problems.push(Problem::new(wanted.id.as_str(), textnlp_provider::told(&error), fix));
            return;
        }
    };
    let store = options.model_cache.exists().then(|| Store::open(&options.model_cache).ok()).flatten();
    // What the cache holds already is only linked into the site, wherever it came from.
    let cached = store.as_ref().is_some_and(|store| {
        let found = match spec.digest.as_ref().and_then(|digest| digest.parse().ok()) {
            Some(digest) => store.open_model(&digest),
            None => store.find(&source),
        };
        found.is_ok_and(|found| found.is_some())
    });
    if cached || verbs::has_copy(folder, &spec) {
        return;
    }
    let bytes = size_of(&source).unwrap_or(UNKNOWN_MODEL_BYTES);
    // A download is written once and may be unpacked or repacked beside itself.
    needed.cache_bytes = needed.cache_bytes.saturating_add(bytes.saturating_mul(2));
    let Source::File(path) = &source else { return };
    if !path.exists() {
        let cause = format!("the model {} has no file {path}", spec.name);
        problems.push(Problem::new(wanted.id.as_str(), cause, "correct the model's `source`"));
        return;
    }
    let (folder, source) = (path.clone(), source.clone());
    let looked = tokio::task::spawn_blocking(move || {
        textnlp_models::inspect(&folder)?;
        match &store {
            Some(store) => store.local_digest(&source, &|_| ()),
            None => textnlp_models::local_digest(&source, &|_| ()),
        }
    });
    match looked.await {
        Ok(Ok(found)) => {
            let found = found.map(|digest| digest.to_string());
            if let (Some(locked), Some(found)) = (&spec.digest, &found)
                && locked != found
            {
                let cause = format!("the model {} is locked as {locked}, and {path} holds {found}", spec.name);
                let fix = "put the released files back, or lock those that are there now with `release set`";
                problems.push(Problem::new(wanted.id.as_str(), cause, fix));
            }
        }
        Ok(Err(error)) => {
            let fix = error.hint_for_folder().unwrap_or_else(|| "correct the model's `source`".to_owned());
            problems.push(Problem::new(wanted.id.as_str(), textnlp_provider::told(&error), fix));
        }
        Err(error) => problems.push(Problem::new(wanted.id.as_str(), error.to_string(), "run the command again")),
    }
}

/// How large a source is, where that is known without asking anybody.
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
fn space(options: &Options, needed: &Needed, problems: &mut Vec<Problem>) {
    let site = nearest(&options.state_folder);
    let cache = nearest(&options.model_cache);
    let device =
        |path: &Utf8Path| std::fs::metadata(path).map(|found| std::os::unix::fs::MetadataExt::dev(&found)).ok();
    let site_bytes = needed.site_bytes.saturating_add(SLACK_BYTES);
    let wants = if device(&site) == device(&cache) {
        vec![(site, site_bytes.saturating_add(needed.cache_bytes))]
    } else {
        // Links do not cross filesystems: the models are copied.
        vec![(site, site_bytes.saturating_add(needed.cache_bytes)), (cache, needed.cache_bytes)]
    };
    for (path, bytes) in wants {
        let Ok(mount) = rustix::fs::statvfs(path.as_std_path()) else { continue };
        let free = mount.f_bavail.saturating_mul(mount.f_frsize);
        if free < bytes {
            let cause = format!("{path} has {} MB free and {} MB are needed", free >> 20, bytes >> 20);
            problems.push(Problem::new("disk", cause, "free some space, or choose another `--state-dir`"));
        }
        // Filesystems that make inodes as they go report none at all.
        if mount.f_files > 0 && mount.f_favail < INODES {
            let cause = format!("{path} has {} inodes left and {INODES} are needed", mount.f_favail);
            problems.push(Problem::new("disk", cause, "remove files, or choose another `--state-dir`"));
        }
    }
}

fn certificate(wanted: &Wanted, problems: &mut Vec<Problem>) {
    use textnlp_provider::{Health, Observed};
    let Ownership::External(file) = &wanted.ownership else { return };
    let cause = match verbs::look_at_existing_certificate(file) {
        Observed::Present(object) => match object.health {
            Health::Ready => return,
            Health::Degraded(why) => why,
        },
        Observed::Absent => format!("{file} is not there"),
        Observed::Unknown(why) => why.0,
    };
    problems.push(Problem::new(wanted.id.as_str(), cause, "correct `tls.existing`, or set `tls: { mode: local-ca }`"));
}

/// The folder itself, or the nearest one above it that is there.
fn nearest(path: &Utf8Path) -> Utf8PathBuf {
    path.ancestors().find(|ancestor| ancestor.exists()).map_or_else(|| Utf8PathBuf::from("/"), Utf8Path::to_owned)
}
