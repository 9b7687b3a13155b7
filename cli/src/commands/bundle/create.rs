//! `bundle create`: collects the content of a bundle and writes it.

use std::collections::BTreeSet;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_bundle::{KeyChange, Packed, STOCK_VERIFICATION, STOCK_VERIFICATION_FILES, pack};
use textnlp_orchestrator::environment::Loaded;
use textnlp_orchestrator::environment::model::{AdvisoryPolicy, Phase};
use textnlp_service::Platform as _;
use textnlp_service::bundle::advisories::{self, LoadedAdvisories};
use textnlp_service::bundle::create::{Request, collect, lacks_gpu_image};
use textnlp_service::bundle::{public_keys, scan_failed};

use super::{drive, failed, inspect};
use crate::bundle_args::Create;
use crate::clouds::{self, Linked};
use crate::commands::prelude::*;
use crate::rerun_flags::quoted;
use crate::session::{invalid, known_models};

/// `bundle create`.
pub async fn create(session: &Session, args: &Create, console: Console) -> Result<Success, Failure> {
    writable(&args.out)?;
    let progress = Progress::new(console);
    let environments = environments(session, args, console)?;
    let wanted = environments.iter().any(|e| e.environment.phase == Phase::AirGapped);
    let sources = session.advisories();
    let advisories = match &args.advisories {
        Some(folder) => Some(LoadedAdvisories::read(folder).map_err(scan_failed)?),
        None if wanted => sources.newest((!args.offline).then_some(&args.advisories_url), &progress).await,
        None => None,
    };
    if wanted && advisories.is_none() {
        let mut policies = environments.iter().map(|e| (e.environment.phase, e.environment.gates.advisories));
        let is_warned = policies.all(|(phase, policy)| phase != Phase::AirGapped || policy == AdvisoryPolicy::Warn);
        let gate = if is_warned {
            "warn that known vulnerabilities were not checked"
        } else {
            "not open before known vulnerabilities are checked"
        };
        console.warn(format!(
            "no advisories were found, so the air-gapped gate will {gate}. To include some: git clone --depth 1 \
             https://github.com/RustSec/advisory-db.git, then give the folder with --advisories advisory-db"
        ));
    }
    for one in &environments {
        lacks_gpu_image(&one.environment, &args.image).iter().for_each(|why| console.warn(why));
    }
    let keys = KeyChange::new(public_keys("--next-key", &args.next_key)?, public_keys("--revoke", &args.revoke)?);
    let version = args.version.clone().unwrap_or_else(|| env!("CARGO_PKG_VERSION").to_owned());
    let request = Request {
        version,
        out: &args.out,
        environments: &environments,
        programs: &args.program,
        models: &args.model,
        images: &args.image,
        has_server_image: !args.no_server_image,
        packages: args.package.clone(),
        keys,
        offline: args.offline,
        model_cache: &session.model_cache()?,
        build: Linked.build(),
    };
    let collected = collect(request, advisories.as_ref().map(|found| &found.database), &progress).await?;
    let stop = crate::signals::stop(console);
    let packed = drive(&progress, &stop, |drive| {
        pack(&collected.inputs, &args.out, &textnlp_bundle::PackOptions { volume_size: args.volume_size, drive })
    });
    progress.finish();
    let packed = packed.map_err(|error| {
        let mut failure = failed(error);
        failure.error = failure.error.context(format!("cannot create {}", args.out));
        failure
    })?;
    collected.keep_chunks(&packed.manifest);
    // The cache may delete models from here on.
    drop(collected);
    let signed = match &args.sign_key {
        Some(key) => Some(super::keys::sign_with(&args.out, key, None)?),
        None => None,
    };

    let files: Vec<_> = packed.paths.iter().map(ToString::to_string).collect();
    let mut text = format!(
        "{}: {} in {} of content",
        files.join(", "),
        size(packed.bytes),
        counted(packed.manifest.files.len(), "file")
    );
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

/// How to install a bundle that `KEY.pub` verifies, without the owners and modes of a file that is not verified yet, and the digests of the files that run before a program verifies the rest.
fn installer(packed: &Packed, key: Option<&str>) -> String {
    let Some(key) = key else {
        // A line to install it would run a script and a program without a signature to verify.
        return "\nNot signed: the target machine cannot verify the installer before it runs. Create the bundle with \
                --sign-key KEY.key; `textnlp-deploy bundle keygen --out KEY` makes a key."
            .to_owned();
    };
    let mut text = String::new();
    for file in packed.manifest.files.iter().filter(|file| file.path == "install.sh" || file.path.starts_with("bin/")) {
        text.push_str(&format!("\n  sha256     {}  {}", file.digest.hex(), file.path));
    }
    let (bundle, public) = (file_name(&packed.paths[0]), quoted(&format!("{key}.pub")));
    let extracted = [&STOCK_VERIFICATION_FILES[..], &["install.sh", "bin"]].concat().join(" ");
    text.push_str(&format!("\nOn the target machine:\n  {} {extracted} &&\n", extraction(&packed.paths)));
    for check in STOCK_VERIFICATION {
        text.push_str(&format!("  {} &&\n", check.replace("KEY", &public)));
    }
    text.push_str(&format!("  sh install.sh {bundle} --trust {public}"));
    text
}

/// The command that extracts files, without their names. `tar` reads one archive, so volumes are joined first.
fn extraction(paths: &[Utf8PathBuf]) -> String {
    const TAR: &str = "tar --no-same-owner --no-same-permissions -xf";
    match paths[0].file_name().and_then(|first| first.strip_suffix(".001")).filter(|_| paths.len() > 1) {
        Some(name) => format!("cat {}.[0-9][0-9][0-9] | {TAR} -", quoted(name)),
        None => format!("{TAR} {}", file_name(&paths[0])),
    }
}

fn file_name(path: &Utf8Path) -> String {
    quoted(path.file_name().unwrap_or("BUNDLE"))
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

/// Rejects an unwritable output path before hours of work.
fn writable(out: &Utf8Path) -> Result<(), Failure> {
    let folder = out.parent().filter(|p| !p.as_str().is_empty()).unwrap_or(Utf8Path::new("."));
    if folder.is_dir() {
        return Ok(());
    }
    Err(Failure::new(Exit::Usage, "no_such_folder", anyhow::anyhow!("{folder} is not a folder"))
        .hint(format!("mkdir -p {folder}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_joined_before_they_are_extracted() {
        let command = |paths: &[&str]| extraction(&paths.iter().map(Utf8PathBuf::from).collect::<Vec<_>>());
        let tar = "tar --no-same-owner --no-same-permissions -xf";
        assert_eq!(command(&["out/x.tar"]), format!("{tar} x.tar"));
        let joined = format!("cat x.tar.[0-9][0-9][0-9] | {tar} -");
        assert_eq!(command(&["out/x.tar.001", "out/x.tar.002"]), joined);
        assert_eq!(command(&["x.tar.001"]), format!("{tar} x.tar.001"), "one volume is an archive");
        assert_eq!(command(&["a b.tar"]), format!("{tar} 'a b.tar'"));
    }
}
