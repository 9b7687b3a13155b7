//! Operations on objects and their observation: one file per kind, each with `put`, `remove` and `look`.

mod child;
mod control;
mod database;
pub(crate) mod file;
mod model;
pub(crate) mod postgres;
mod process;
mod program;
mod public_certificate;
mod supervisor;

use std::os::unix::fs::MetadataExt;

use camino::Utf8Path;
use textnlp_keys::{Marker, Observation, ObservedObject, SiteFolder};
use textnlp_provider::{Error, ErrorKind, Handle, Object, Progress, Result, Verb};

use crate::OnPrem;
use crate::supervise;
use crate::table::ResourceKind;
pub(crate) use child::{Input, ProgramOutput, pass_bytes, pass_file, query_database, run};
pub(crate) use model::has_copy;
pub(crate) use process::interruption;

/// One operation on one object, with its context.
pub(crate) type Work<'a> = textnlp_keys::Work<'a, OnPrem>;

/// The status of the site's supervisor, read once per observation.
pub enum Supervisor {
    /// It runs and answers.
    Runs(supervise::Status),
    /// It does not run.
    Stopped,
    /// It does not answer, with the reason.
    Silent(String),
}

impl Supervisor {
    pub(crate) async fn of(folder: &SiteFolder) -> Self {
        match supervise::status(folder.root()).await {
            Ok(Some(status)) => Self::Runs(status),
            Ok(None) => Self::Stopped,
            Err(error) => Self::Silent(error.to_string()),
        }
    }

    /// Refuses a folder that was moved while its programs ran: they and their supervisor use the paths of the old one.
    pub(crate) fn check_folder(&self, folder: &SiteFolder) -> Result<()> {
        let Self::Runs(supervise::Status { folder: Some(started_in), pid, .. }) = self else { return Ok(()) };
        let identity = |path: &Utf8Path| std::fs::metadata(path).ok().map(|found| (found.dev(), found.ino()));
        if started_in == folder.root() || identity(started_in) == identity(folder.root()) {
            return Ok(());
        }
        let why = format!(
            "it was moved from {started_in} while its programs ran, and they still use that path (supervisor: pid {pid})"
        );
        let hint = format!(
            "move {} back to {started_in}, run `textnlp-deploy down` there, move it again and run `up`",
            folder.root()
        );
        Err(Error::new(ErrorKind::Conflict, "use", folder.root().as_str()).because(why).hint(hint))
    }
}

pub(crate) async fn put(work: &Work<'_>) -> Result<Progress> {
    match work.noun {
        ResourceKind::Supervisor => supervisor::put(work).await,
        ResourceKind::Model => model::put(work).await,
        ResourceKind::Program => program::put(work).await,
        ResourceKind::File => file::put(work).await,
        ResourceKind::Database => database::put(work).await,
        ResourceKind::Postgres => postgres::put(work).await,
        ResourceKind::Control => control::put(work).await,
        ResourceKind::Schema => child::put_schema(work).await,
        ResourceKind::ApiKey => child::put_key(work).await,
        ResourceKind::Process => process::put(work).await,
        ResourceKind::PublicCertificate => public_certificate::put(work).await,
    }
}

pub(crate) async fn remove(work: &Work<'_>, last: Object) -> Result<Progress> {
    match work.noun {
        ResourceKind::Process => return process::remove(work).await,
        ResourceKind::Supervisor => return supervisor::remove(work).await,
        ResourceKind::PublicCertificate => return public_certificate::remove(work).await,
        ResourceKind::Model => model::remove(work).await?,
        ResourceKind::Program => program::remove(work)?,
        ResourceKind::File => file::remove(work)?,
        ResourceKind::Database => database::remove(work)?,
        ResourceKind::Postgres => postgres::remove(work)?,
        ResourceKind::Control => control::remove(work)?,
        // The tables go with the database.
        ResourceKind::Schema => {}
        ResourceKind::ApiKey => child::revoke_key(work).await?,
    }
    work.removed(last)
}

/// The next call of a pending operation; `None` for a job that is polled by starting it again.
pub(crate) async fn proceed(work: &Work<'_>, handle: &Handle) -> Result<Option<Progress>> {
    let progress = match (work.noun, work.op.verb) {
        (ResourceKind::Process, Verb::Delete) => process::stopping(work, handle).await,
        (ResourceKind::Process, _) => process::starting(work).await,
        (ResourceKind::Supervisor, Verb::Delete) => supervisor::stopping(work, handle).await,
        (ResourceKind::Supervisor, _) => supervisor::starting(work, handle).await,
        (ResourceKind::PublicCertificate, Verb::Create | Verb::Update) => {
            public_certificate::ordering(work, handle).await
        }
        _ => return Ok(None),
    };
    progress.map(Some)
}

/// Observes the object of a marker. Reads only.
pub(crate) async fn observe_object(
    noun: ResourceKind,
    folder: &SiteFolder,
    marker: &Marker,
    supervisor: &Supervisor,
) -> Result<Observation> {
    match noun {
        ResourceKind::Supervisor => supervisor::observe(folder, supervisor),
        ResourceKind::Model => model::observe(folder, marker).await,
        ResourceKind::Program => program::observe(folder, marker).await,
        ResourceKind::File => file::observe(folder, marker),
        ResourceKind::Database => database::observe(folder, marker),
        ResourceKind::Postgres => postgres::observe(folder, marker),
        ResourceKind::Control => control::observe(folder, marker),
        ResourceKind::Schema => child::observe_schema(folder, marker).await,
        ResourceKind::ApiKey => child::observe_key(folder, marker).await,
        ResourceKind::Process => process::observe(folder, marker, supervisor),
        ResourceKind::PublicCertificate => public_certificate::observe(folder, marker),
    }
}
