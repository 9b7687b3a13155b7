//! [`OnPrem`]: the provider of local processes.

use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_keys::acme::PUBLIC_CERTIFICATE_FILE;
use textnlp_keys::{FolderProvider, Keys, Marker, Observation, SiteFolder, Work, diff, observe, read};
use textnlp_provider::{
    CloudId, Component, DatabasePart, FieldChange, Handle, Kind, KindName, Object, Observed, Operation, Problem,
    Problems, Progress, Provider, Recorded, ResourceId, Result, Scope, Site, Wanted,
};

use crate::jobs::Jobs;
use crate::lower;
use crate::names::DUMP;
use crate::options::Options;
use crate::preflight;
use crate::spec::PostgresSpec;
use crate::table::{KINDS, ResourceKind};
use crate::verbs::{self, Supervisor};
use crate::waiting::Waiting;

/// A provider for the machine that it runs on.
///
/// Every object is in `STATE/sites/SITE` and has its lineage in a marker file. All verbs may be repeated, by this
/// process or another, after any outcome of the first attempt.
pub struct OnPrem {
    options: Options,
    /// Owns folders, secrets and certificates.
    keys: Keys,
    jobs: Jobs,
    waiting: Waiting,
}

impl OnPrem {
    /// The provider for one state folder.
    pub fn new(options: Options) -> Self {
        let keys = Keys::new(textnlp_keys::Options {
            state_folder: options.state_folder.clone(),
            secrets: options.secrets.clone(),
            hostname: Some(options.hostname.clone()).filter(|_| !options.serves_elsewhere),
            needs_git: options.needs_git,
        });
        Self { options, keys, jobs: Jobs::default(), waiting: Waiting::default() }
    }

    /// Its options.
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    pub(crate) fn waiting(&self) -> &Waiting {
        &self.waiting
    }
}

#[async_trait]
impl Provider for OnPrem {
    fn kinds(&self) -> &'static [Kind] {
        &KINDS
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        let folder = SiteFolder::of(&self.options.state_folder, &site.name);
        lower::lower(component, site, &self.keys, folder, self.options.serves_elsewhere)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        match ResourceKind::of(&wanted.kind) {
            Some(noun) => diff(wanted, recorded, seen, &noun.rules()),
            None => self.keys.diff(wanted, recorded, seen),
        }
    }

    fn interruption(&self, wanted: &Wanted, changes: &[FieldChange], among: &[Wanted]) -> Option<Problem> {
        match ResourceKind::of(&wanted.kind)? {
            ResourceKind::Process => verbs::interruption(wanted, changes, among),
            _ => None,
        }
    }

    fn database_part(&self, recorded: &Recorded) -> Option<DatabasePart> {
        match ResourceKind::of(&recorded.kind)? {
            ResourceKind::Database => Some(DatabasePart::Data),
            ResourceKind::Postgres => Some(DatabasePart::Loaded),
            ResourceKind::Control => Some(DatabasePart::Shared),
            _ => None,
        }
    }

    fn is_refilled(&self, recorded: &Recorded) -> bool {
        let follows = recorded.spec.typed::<PostgresSpec>().map_or(true, |spec| spec.follows);
        follows || SiteFolder::of(&self.options.state_folder, &recorded.site).join(DUMP).is_file()
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        preflight::preflight(self, wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        observe(self, scope).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        read(self, kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        match ResourceKind::of(&op.kind) {
            Some(_) => Work::on(self, op)?.begin().await,
            None => self.keys.begin(op).await,
        }
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        match ResourceKind::of(&op.kind) {
            Some(_) => Work::on(self, op)?.advance(handle).await,
            None => self.keys.advance(op, handle).await,
        }
    }
}

#[async_trait]
impl FolderProvider for OnPrem {
    type Noun = ResourceKind;
    type Status = Supervisor;

    fn noun(kind: &KindName) -> Option<ResourceKind> {
        ResourceKind::of(kind)
    }

    fn state_folder(&self) -> &Utf8Path {
        &self.options.state_folder
    }

    async fn status(&self, folder: &SiteFolder) -> Result<Supervisor> {
        let supervisor = Supervisor::of(folder).await;
        supervisor.check_folder(folder)?;
        Ok(supervisor)
    }

    async fn look(&self, folder: &SiteFolder, marker: &Marker, supervisor: &Supervisor) -> Result<Observation> {
        match ResourceKind::of(&marker.kind) {
            Some(noun) => verbs::observe_object(noun, folder, marker, supervisor).await,
            None => self.keys.look(folder, marker, &()).await,
        }
    }

    fn path(&self, wanted: &Wanted, folder: &SiteFolder) -> Option<Utf8PathBuf> {
        let text = |field: &str| wanted.spec.get(field)?.as_str();
        match ResourceKind::of(&wanted.kind) {
            Some(
                ResourceKind::Program
                | ResourceKind::File
                | ResourceKind::Model
                | ResourceKind::Database
                | ResourceKind::Postgres
                | ResourceKind::Control,
            ) => Some(folder.join(text("path")?)),
            Some(ResourceKind::Process) => Some(folder.unit(text("unit")?)),
            Some(ResourceKind::PublicCertificate) => Some(folder.join(PUBLIC_CERTIFICATE_FILE)),
            Some(ResourceKind::Supervisor | ResourceKind::Schema | ResourceKind::ApiKey) => None,
            None => self.keys.path(wanted, folder),
        }
    }

    async fn put(&self, work: &Work<'_, Self>) -> Result<Progress> {
        verbs::put(work).await
    }

    async fn remove(&self, work: &Work<'_, Self>, last: Object) -> Result<Progress> {
        verbs::remove(work, last).await
    }

    async fn proceed(&self, work: &Work<'_, Self>, handle: &Handle) -> Result<Option<Progress>> {
        verbs::proceed(work, handle).await
    }

    fn poll_interval(noun: ResourceKind) -> Duration {
        match noun {
            ResourceKind::Supervisor => Duration::from_millis(25),
            _ => Duration::from_millis(100),
        }
    }

    fn is_absent_without_marker(&self, kind: &KindName, supervisor: &Supervisor) -> bool {
        match ResourceKind::of(kind) {
            // A part is put again with the same content, present or not.
            Some(ResourceKind::Schema | ResourceKind::ApiKey) => true,
            // A supervisor is a process: without marker and process there is nothing.
            Some(ResourceKind::Supervisor) => matches!(supervisor, Supervisor::Stopped),
            _ => false,
        }
    }

    /// Observing a changed model reads it whole, and observing a key runs a program: too long for one call with the
    /// removal.
    fn is_observed_before_removal(noun: ResourceKind) -> bool {
        !matches!(noun, ResourceKind::Model | ResourceKind::Schema | ResourceKind::ApiKey)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use textnlp_provider::{Outputs, Ownership, Spec};

    use super::*;

    #[test]
    fn postgres_is_refilled_by_a_dump_beside_it_or_by_the_one_that_it_follows() {
        let folder = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(folder.path()).unwrap();
        let onprem = OnPrem::new(Options::new(state, "/bin/false").unwrap());
        let recorded = |follows: bool| Recorded {
            id: "here/database/cluster".parse().unwrap(),
            kind: KindName::new("onprem.postgres").unwrap(),
            site: "here".parse().unwrap(),
            via: None,
            spec: Spec::of(&json!({ "path": "data/postgres", "version": 15, "schema": null, "follows": follows })),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            schema: 1,
            cloud_id: CloudId::new("postgres").unwrap(),
            created: None,
            outputs: Outputs::default(),
            protected: false,
            tainted: false,
        };
        assert!(!onprem.is_refilled(&recorded(false)) && onprem.is_refilled(&recorded(true)));
        let dump = SiteFolder::of(&onprem.options.state_folder, &recorded(false).site).join(DUMP);
        std::fs::create_dir_all(dump.parent().unwrap()).unwrap();
        std::fs::write(&dump, "dump").unwrap();
        assert!(onprem.is_refilled(&recorded(false)));
    }
}
