//! `bundle …`: one file that installs a running service without a network.

pub mod advisories;
mod create;
mod export;
pub mod gate;
mod inspect;
mod install;
pub mod keys;
mod parts;
mod preflight;
mod scan;
mod serve;
mod site;
mod update;
mod user;

pub use site::platform;

use std::sync::atomic::{AtomicBool, Ordering};

use textnlp_bundle::{AdmissionOptions, Authenticity, Bundle, Drive, Error, Event, PublicKey, TrustSet};
use tokio_util::sync::CancellationToken;

use crate::bundle_args::{Bundle as Verb, Overrides, Trust};
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success, size};
use crate::session::Session;

/// Runs the subcommand.
pub async fn bundle(session: &Session, verb: &Verb, console: Console) -> Result<Success, Failure> {
    match verb {
        Verb::Create(args) => create::create(session, args, console).await,
        Verb::Verify(args) => inspect::verify(args, console),
        Verb::Inspect(args) => inspect::inspect(args),
        Verb::Diff(args) => inspect::diff(args),
        Verb::Install(args) => install::install(session, args, console).await,
        Verb::Serve(args) => serve::serve(args, console).await,
        Verb::Scan(args) => scan::scan(session, args, console),
        Verb::Update(command) => update::update(session, command, console).await,
        Verb::Export(args) => export::export(args, console),
        Verb::Keygen(args) => keys::keygen(args),
        Verb::Sign(args) => keys::sign(args),
        Verb::Trust(args) => keys::trust(session, args),
    }
}

/// Converts an error of the bundle crate.
pub fn failed(error: Error) -> Failure {
    let hint = error.hint();
    let (exit, code) = match &error {
        Error::Stopped { .. } => (Exit::Stopped, "stopped"),
        Error::NotABundle { .. } => (Exit::Usage, "no_bundle"),
        Error::NewerFormat { .. } => (Exit::Usage, "newer_format"),
        Error::Inputs { .. } => (Exit::Usage, "wrong_inputs"),
        Error::Kind { .. } => (Exit::Usage, "other_kind"),
        Error::Key { .. } => (Exit::Usage, "wrong_key"),
        Error::Manifest { .. } | Error::Damaged { .. } | Error::Truncated { .. } | Error::Signature { .. } => {
            (Exit::Failed, "damaged")
        }
        Error::WrongBase { .. } => (Exit::Refused, "wrong_base"),
        Error::NotTrusted { .. } => (Exit::Refused, "not_trusted"),
        Error::Exposed(_) => (Exit::Refused, "root_exposed"),
        Error::OlderRelease { .. } => (Exit::Refused, "older_release"),
        Error::Room { .. } => (Exit::Failed, "no_space"),
        Error::Busy { .. } => (Exit::Refused, "locked"),
        _ => (Exit::Failed, "bundle"),
    };
    let document = match &error {
        Error::Damaged { damages } => serde_json::json!({ "damages": damages }),
        Error::WrongBase { mismatches, .. } => serde_json::json!({ "mismatches": mismatches }),
        Error::Inputs { problems } | Error::Manifest { problems } => serde_json::json!({ "problems": problems }),
        _ => serde_json::json!({}),
    };
    let mut failure = Failure::new(exit, code, error).document(document);
    failure.hint = hint;
    failure
}

/// Opens a bundle from a path or from standard input.
pub fn open(path: &camino::Utf8Path) -> Result<Bundle, Failure> {
    let opened = if path == "-" { Bundle::from_stream(std::io::stdin()) } else { Bundle::open(path) };
    opened.map_err(|error| match error {
        Error::Io { action: "open", path, source } if source.kind() == std::io::ErrorKind::NotFound => {
            Failure::usage("no_such_file", anyhow::Error::new(source).context(format!("open {path}")))
                .hint("give the path of the bundle, or of its first volume, FILE.001")
        }
        error => failed(error),
    })
}

/// The trusted keys.
pub fn trusted(trust: &Trust) -> Result<TrustSet, Failure> {
    Ok(TrustSet::new(public_keys("--trust", &trust.trust)?))
}

/// The public keys of a flag.
pub fn public_keys(flag: &str, paths: &[camino::Utf8PathBuf]) -> Result<Vec<PublicKey>, Failure> {
    // A key may also be the text of its second line, which starts with `RW`.
    if let Some(missing) = paths.iter().find(|path| !path.exists() && !path.as_str().starts_with("RW")) {
        return Err(Failure::usage("no_such_file", anyhow::anyhow!("the public key {missing} does not exist"))
            .hint(format!("{flag} takes the NAME.pub that `bundle keygen` wrote where the bundle was created")));
    }
    let keys = TrustSet::from_texts(paths.iter().map(|path| path.as_str())).map_err(failed)?;
    Ok(keys.keys().to_vec())
}

impl From<Overrides> for AdmissionOptions {
    fn from(Overrides { forget_trust, downgrade }: Overrides) -> AdmissionOptions {
        AdmissionOptions { forget_trust, downgrade }
    }
}

/// Checks a bundle's signature. An invalid signature is refused, and so is one by an untrusted key if there are trusted
/// keys. Without trusted keys, the result is recorded with a warning.
pub fn authentic(bundle: &Bundle, trust: &TrustSet, console: Console) -> Result<Authenticity, Failure> {
    let authenticity = bundle.checked_authenticity(trust).map_err(failed)?;
    warn_if_unverified(&authenticity, console);
    Ok(authenticity)
}

/// Warns that the origin of the bundle is unknown.
pub fn warn_if_unverified(authenticity: &Authenticity, console: Console) {
    if let Authenticity::Unverified { why } = authenticity {
        console
            .warn(format!("authenticity: unverified; {why}. To verify who created this bundle, give --trust KEY.pub"));
    }
}

/// Runs long work with progress, until it completes or a signal arrives.
pub fn drive<T: Send>(
    progress: &Progress,
    stop: &CancellationToken,
    work: impl FnOnce(Drive<'_>) -> Result<T, Error> + Send,
) -> Result<T, Error> {
    let stopped = AtomicBool::new(false);
    let total = std::sync::atomic::AtomicU64::new(0);
    let report_progress = |event: Event<'_>| {
        if stop.is_cancelled() {
            stopped.store(true, Ordering::Relaxed);
        }
        match event {
            Event::Start { what, bytes, files } => {
                total.store(bytes, Ordering::Relaxed);
                progress.doing(&format!("{what}: {} in {files} files", size(bytes)));
            }
            Event::Resume { bytes } => {
                progress.line(format!("  resuming after {} that an earlier run completed", size(bytes)))
            }
            Event::Bytes { done } => {
                let total = total.load(Ordering::Relaxed).max(1);
                progress.doing(&format!("{} of {} ({} %)", size(done), size(total), done * 100 / total));
            }
            _ => {}
        }
    };
    // The runtime's other threads continue to listen for signals.
    tokio::task::block_in_place(|| work(Drive { threads: threads(), progress: &report_progress, stop: &stopped }))
}

/// Four threads hash faster than any disk reads.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from).min(4)
}

/// The timestamp of every member.
pub fn epoch() -> Result<u64, Failure> {
    match std::env::var("SOURCE_DATE_EPOCH") {
        Ok(text) => text.trim().parse().map_err(|_| {
            Failure::usage("usage", anyhow::anyhow!("SOURCE_DATE_EPOCH is `{text}`, not a number of seconds"))
                .hint("unset it, or: export SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)")
        }),
        // 2026-01-01. A fixed default makes builds reproducible.
        Err(_) => Ok(1_767_225_600),
    }
}
