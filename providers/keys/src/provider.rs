//! [`Keys`]: the provider of secrets and certificates on the operator's machine.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_provider::{
    CloudId, Component, Effect, Error, ErrorKind, FieldChange, Handle, Kind, KindName, Lineage, Object, Observed,
    Operation, Outputs, PlannedObject, Problem, Problems, Progress, Provider, ROTATION, Recorded, ResourceId, Result,
    Scope, Secret, SecretRef, SecretStore, SecretVersion, Site, Verb, Wanted,
};
use tokio::task::{JoinError, JoinHandle};

use crate::diff::diff;
use crate::expansion::Expansion;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::objects::{self, FolderProvider};
use crate::preflight;
use crate::spec::SecretSpec;
use crate::table::{KINDS, KeyKind};
use crate::verbs::{authority, certificate, directory, secret};
use crate::work::{Observation, Work};

/// Where secrets and certificates are stored.
#[derive(Clone)]
pub struct Options {
    /// The environment's state folder, absolute. Sites are in `sites/` below it.
    pub state_folder: Utf8PathBuf,
    /// The secret store.
    pub secrets: Arc<dyn SecretStore>,
    /// This machine's name, for certificates. `None` where the programs of the sites run elsewhere: certificates and
    /// their keys are then copied into the secret store.
    pub hostname: Option<String>,
    /// Whether the environment is in a Git repository, so that `git` is required on this machine.
    pub needs_git: bool,
}

/// The provider of site folders, secrets, local authorities and certificates. It expands networks (the site's folder),
/// secrets and certificates, and no other component.
pub struct Keys {
    pub(crate) options: Options,
    /// Values that are being made, by the cloud ids of their secrets.
    making: Mutex<BTreeMap<String, Making>>,
}

/// A value that is being made. Why it cannot be made, if so.
type Making = JoinHandle<std::result::Result<Secret, String>>;

impl Keys {
    /// The provider for one state folder.
    pub fn new(options: Options) -> Self {
        Self { options, making: Mutex::default() }
    }

    /// The value that `make` makes in the background, or `None` while it does so after a wait: a key takes long on a busy
    /// machine, and a call that gave up would begin another one beside it.
    pub(crate) async fn made(
        &self,
        id: &str,
        wait: Duration,
        make: impl FnOnce() -> std::result::Result<Secret, String> + Send + 'static,
    ) -> Option<std::result::Result<std::result::Result<Secret, String>, JoinError>> {
        let begun = self.making().remove(id);
        let mut making = begun.unwrap_or_else(|| tokio::task::spawn_blocking(make));
        let made = tokio::time::timeout(wait, &mut making).await.ok();
        if made.is_none() {
            self.making().insert(id.to_owned(), making);
        }
        made
    }

    fn making(&self) -> MutexGuard<'_, BTreeMap<String, Making>> {
        self.making.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn secrets(&self) -> &dyn SecretStore {
        &*self.options.secrets
    }

    /// Adds the resources of a component; see [`Keys`].
    pub fn expand(&self, expansion: &mut Expansion<'_>) {
        expansion.keys(&self.options);
    }
}

#[async_trait]
impl Provider for Keys {
    fn kinds(&self) -> &'static [Kind] {
        &KINDS
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        let mut expansion = Expansion::new(component, site);
        self.expand(&mut expansion);
        expansion.finish()
    }

    /// A secret, whose name is known before its value. Its version never leaves an export.
    fn planned(&self, wanted: &Wanted, _lineage: Lineage) -> Option<PlannedObject> {
        if KeyKind::of(&wanted.kind) != Some(KeyKind::Secret) {
            return None;
        }
        let SecretSpec { name, .. } = wanted.spec.typed().ok()?;
        let cloud_id = CloudId::new(&name.0).ok()?;
        let secret = SecretRef { name, version: SecretVersion("1".to_owned()) };
        let outputs = Outputs::from([("secret".to_owned(), serde_json::json!(secret))]);
        Some(PlannedObject { cloud_id, outputs })
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        let Some(kind) = KeyKind::of(&wanted.kind) else { return Vec::new() };
        let mut changes = diff(wanted, recorded, seen, &kind.rules());
        // An authority of an earlier version stays as it is until it is rotated.
        if kind == KeyKind::Authority && seen.spec.get("names").is_none() {
            changes.retain(|change| change.field != "days" && change.field != "names");
        }
        if let (KeyKind::Secret | KeyKind::Authority, Some(rotation)) = (kind, recorded.spec.get(ROTATION)) {
            changes.push(FieldChange {
                field: ROTATION.to_owned(),
                before: None,
                after: Some(rotation.clone()),
                effect: Effect::InPlace,
            });
        }
        changes
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        let mut problems = Vec::new();
        if !wanted.is_empty() {
            preflight::state_folder(self.state_folder(), &mut problems);
            if self.options.needs_git {
                preflight::git(&std::env::var_os("PATH").unwrap_or_default(), &mut problems);
            }
            for one in wanted {
                preflight::object(self, one, &mut problems);
            }
            preflight::space([(self.state_folder(), preflight::SITE_BYTES)], &mut problems);
        }
        Ok(problems)
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        objects::observe(self, scope).await
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        objects::read(self, kind, id).await
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        Work::on(self, op)?.begin().await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        Work::on(self, op)?.advance(handle).await
    }
}

#[async_trait]
impl FolderProvider for Keys {
    type Noun = KeyKind;
    type Status = ();

    fn noun(kind: &KindName) -> Option<KeyKind> {
        KeyKind::of(kind)
    }

    fn state_folder(&self) -> &Utf8Path {
        &self.options.state_folder
    }

    async fn status(&self, _folder: &SiteFolder) -> Result<()> {
        Ok(())
    }

    async fn look(&self, folder: &SiteFolder, marker: &Marker, _status: &()) -> Result<Observation> {
        let noun = KeyKind::of(&marker.kind).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "check", marker.resource.as_str())
                .because("its kind is not known to this provider")
        })?;
        match noun {
            KeyKind::Directory => directory::observe(folder, marker),
            KeyKind::Secret => secret::observe(self, marker).await,
            KeyKind::Authority => authority::observe(self, folder, marker).await,
            KeyKind::Certificate => certificate::observe(folder, marker),
        }
    }

    fn path(&self, wanted: &Wanted, folder: &SiteFolder) -> Option<Utf8PathBuf> {
        let file = match KeyKind::of(&wanted.kind)? {
            KeyKind::Authority => "certificate_file",
            KeyKind::Certificate => "key_file",
            KeyKind::Directory | KeyKind::Secret => return None,
        };
        Some(folder.join(wanted.spec.get(file)?.as_str()?))
    }

    async fn put(&self, work: &Work<'_, Self>) -> Result<Progress> {
        match work.noun {
            KeyKind::Directory => directory::put(work).await,
            KeyKind::Secret => secret::put(work).await,
            KeyKind::Authority => authority::put(work).await,
            KeyKind::Certificate => certificate::put(work).await,
        }
    }

    async fn remove(&self, work: &Work<'_, Self>, last: Object) -> Result<Progress> {
        match work.noun {
            KeyKind::Directory => return directory::remove(work, last).await,
            KeyKind::Secret => secret::remove(work).await?,
            KeyKind::Authority => authority::remove(work).await?,
            KeyKind::Certificate => certificate::remove(work).await?,
        }
        work.removed(last)
    }

    async fn proceed(&self, work: &Work<'_, Self>, _handle: &Handle) -> Result<Option<Progress>> {
        match (work.noun, work.op.verb) {
            (KeyKind::Authority, Verb::Create | Verb::Update) => authority::certify(work).await.map(Some),
            _ => Ok(None),
        }
    }

    /// Nothing is waited for: the second call may follow at once.
    fn poll_interval(_noun: KeyKind) -> Duration {
        Duration::ZERO
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::FileSecretStore;

    #[test]
    fn a_value_that_takes_long_is_made_once() {
        let secrets = Arc::new(FileSecretStore::new("/nowhere"));
        let options = Options { state_folder: "/nowhere".into(), secrets, hostname: None, needs_git: false };
        let keys = Keys::new(options);
        let (go, waits) = mpsc::channel::<()>();
        let slow = move || waits.recv().map(|()| Secret::new("first")).map_err(|error| error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            assert!(keys.made("a", Duration::from_millis(1), slow).await.is_none());
            let other = keys.made("b", Duration::from_secs(60), || Ok(Secret::new("other"))).await;
            assert_eq!(other.unwrap().unwrap().unwrap().expose_text(), Some("other"));
            go.send(()).unwrap();
            let again = || Err("it is made twice".to_owned());
            let made = keys.made("a", Duration::from_secs(60), again).await;
            assert_eq!(made.unwrap().unwrap().unwrap().expose_text(), Some("first"));
        });
    }
}
