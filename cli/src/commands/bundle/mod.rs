//! `bundle …`: one file that installs a running service without a network.

mod create;
mod export;
mod inspect;
mod install;
pub mod keys;
mod preflight;
mod scan;
mod serve;
mod site;
mod update;
mod user;

use std::sync::atomic::{AtomicBool, Ordering};

use textnlp_bundle::{AdmissionOptions, Authenticity, Bundle, Drive, Error, Event, TrustSet};
pub use textnlp_service::bundle::{failed, public_keys};
use tokio_util::sync::CancellationToken;

use crate::bundle_args::{Bundle as Verb, Overrides, Trust};
use crate::commands::prelude::*;

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
