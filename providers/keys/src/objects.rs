//! [`FolderProvider`]: what providers with objects in site folders have in common.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::json;
use textnlp_provider::{
    CloudId, DRIFT, Error, Handle, Health, KindName, Object, Observed, OperationId, Ownership, Progress, Provider,
    ReadFailure, Recorded, ResourceId, Result, Scope, SiteName, Spec, Wanted, error_chain,
};

use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::table::KeyKind;
use crate::verbs::certificate;
use crate::work::{Observation, ObservedObject, Work};

/// A provider whose objects are in the folders of sites, each with a [`Marker`].
#[async_trait]
pub trait FolderProvider: Provider + Sized {
    /// The kinds of which this provider changes objects.
    type Noun: Copy + Send + Sync;
    /// What an observation of a site reads once for all of its objects.
    type Status: Send + Sync;

    /// The noun of a kind's name; `None` for another kind.
    fn noun(kind: &KindName) -> Option<Self::Noun>;

    /// The environment's state folder. Sites are in `sites/` below it.
    fn state_folder(&self) -> &Utf8Path;

    /// Reads the status of a site; an error where none of its objects can be observed or changed.
    async fn status(&self, folder: &SiteFolder) -> Result<Self::Status>;

    /// Observes the object of a marker. Reads only.
    async fn look(&self, folder: &SiteFolder, marker: &Marker, status: &Self::Status) -> Result<Observation>;

    /// The path that a wanted object takes; `None` for an object without a path of its own.
    fn path(&self, wanted: &Wanted, folder: &SiteFolder) -> Option<Utf8PathBuf>;

    /// Creates or updates an object.
    async fn put(&self, work: &Work<'_, Self>) -> Result<Progress>;

    /// Deletes an object, which was observed as `last`; ends with [`Work::removed`].
    async fn remove(&self, work: &Work<'_, Self>, last: Object) -> Result<Progress>;

    /// The next call of a pending operation; `None` where the first call is repeated.
    async fn proceed(&self, work: &Work<'_, Self>, handle: &Handle) -> Result<Option<Progress>>;

    /// The interval between two calls of a pending operation.
    fn poll_interval(noun: Self::Noun) -> Duration;

    /// Whether an object of this kind is absent when it has no marker.
    fn is_absent_without_marker(&self, _kind: &KindName, _status: &Self::Status) -> bool {
        false
    }

    /// Whether one call has time for an observation before the removal.
    fn is_observed_before_removal(_noun: Self::Noun) -> bool {
        true
    }
}

/// [`Provider::observe`] for objects in a site's folder.
pub async fn observe<P: FolderProvider>(provider: &P, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
    let folder = SiteFolder::of(provider.state_folder(), scope.site);
    let markers = Marker::all(&folder).map_err(|error| Error::io("read site", folder.root().as_str(), error))?;
    let site = Site { provider, status: provider.status(&folder).await?, folder };
    let mut asked: BTreeMap<&ResourceId, KnownFacts<'_>> = BTreeMap::new();
    for wanted in scope.wanted.iter().filter(|wanted| wanted.site == *scope.site) {
        asked.entry(&wanted.id).or_default().wanted = Some(wanted);
    }
    for recorded in scope.recorded.iter().filter(|recorded| recorded.site == *scope.site) {
        asked.entry(&recorded.id).or_default().recorded = Some(recorded);
    }
    for marker in &markers {
        let ours = marker.lineage == scope.lineage;
        if ours || asked.contains_key(&marker.resource) {
            asked.entry(&marker.resource).or_default().marker = Some(marker);
        }
    }
    let mut seen = Vec::with_capacity(asked.len());
    for (id, asked) in asked {
        seen.push((id.clone(), site.observe(asked, scope).await));
    }
    Ok(seen)
}

/// [`Provider::read`] for objects in the folders of sites.
pub async fn read<P: FolderProvider>(provider: &P, kind: &KindName, id: &CloudId) -> Result<Observed> {
    if KeyKind::of(kind) == Some(KeyKind::Certificate) && id.as_str().starts_with('/') {
        return Ok(certificate::observe_existing(id));
    }
    // Our own ids begin with `sites/SITE/`.
    let site = Utf8Path::new(id.as_str()).components().nth(1).map(|part| part.as_str()).unwrap_or_default();
    let Ok(site) = SiteName::new(site) else {
        return Ok(Observed::Absent);
    };
    let folder = SiteFolder::of(provider.state_folder(), &site);
    let markers = Marker::all(&folder).map_err(|error| Error::io("read site", folder.root().as_str(), error))?;
    let Some(marker) = markers.iter().find(|marker| marker.kind == *kind && marker.cloud_id == *id) else {
        return Ok(Observed::Absent);
    };
    Ok(observed(provider, &folder, marker, &provider.status(&folder).await?).await)
}

/// Observes the object of a marker.
pub(crate) async fn observed<P: FolderProvider>(
    provider: &P,
    folder: &SiteFolder,
    marker: &Marker,
    status: &P::Status,
) -> Observed {
    if !provider.kinds().iter().any(|one| one.name == marker.kind.as_str()) {
        return Observed::Unknown(ReadFailure(format!("its kind {} is not known to this provider", marker.kind)));
    }
    match provider.look(folder, marker, status).await {
        Err(error) => Observed::Unknown(ReadFailure(error_chain(&error))),
        Ok(Observation::Absent) => Observed::Absent,
        Ok(Observation::There(look)) => Observed::Present(ObservedObject::into_object(look, marker)),
    }
}

/// A site during one observation.
struct Site<'a, P: FolderProvider> {
    provider: &'a P,
    folder: SiteFolder,
    status: P::Status,
}

/// The known facts of one id.
#[derive(Default)]
struct KnownFacts<'a> {
    wanted: Option<&'a Wanted>,
    recorded: Option<&'a Recorded>,
    marker: Option<&'a Marker>,
}

impl<P: FolderProvider> Site<'_, P> {
    async fn observe(&self, asked: KnownFacts<'_>, scope: &Scope<'_>) -> Observed {
        let ownership = asked.wanted.map(|w| &w.ownership).or(asked.recorded.map(|r| &r.ownership));
        if let Some(Ownership::External(file)) = ownership {
            return certificate::observe_existing(file);
        }
        match asked.marker {
            Some(marker) if marker.lineage != scope.lineage => {
                let owner = format!("lineage {} of environment {}", marker.lineage, marker.environment);
                Observed::Unknown(ReadFailure(format!("{} belongs to {owner}", marker.cloud_id)))
            }
            Some(marker) => observed(self.provider, &self.folder, marker, &self.status).await,
            None => match asked.recorded {
                Some(recorded) => self.observe_unmarked(recorded, scope).await,
                None => asked.wanted.map_or(Observed::Absent, |wanted| self.stranger(wanted)),
            },
        }
    }

    /// Observes a recorded object without a marker as it was recorded, and reports the missing marker.
    async fn observe_unmarked(&self, recorded: &Recorded, scope: &Scope<'_>) -> Observed {
        if self.provider.is_absent_without_marker(&recorded.kind, &self.status) {
            return Observed::Absent;
        }
        let facts = recorded.outputs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut marker = Marker {
            lineage: scope.lineage,
            environment: scope.environment.clone(),
            site: recorded.site.clone(),
            resource: recorded.id.clone(),
            operation: OperationId(0),
            kind: recorded.kind.clone(),
            cloud_id: recorded.cloud_id.clone(),
            complete: true,
            spec: recorded.spec.applied(),
            facts,
        };
        if let Some(version) = recorded.outputs.get("secret").and_then(|secret| secret.get("version")) {
            marker.facts.insert("version".to_owned(), version.clone());
            marker.facts.insert("key_version".to_owned(), version.clone());
        }
        match observed(self.provider, &self.folder, &marker, &self.status).await {
            Observed::Present(mut object) => {
                let mut spec = object.spec.as_value().clone();
                let mut drift = spec.get(DRIFT).cloned().unwrap_or_else(|| json!({}));
                drift["marker"] = json!("its ownership marker is gone");
                spec[DRIFT] = drift;
                object.spec = Spec::of(&spec);
                object.health = Health::Degraded("its ownership marker is gone".to_owned());
                Observed::Present(object)
            }
            other => other,
        }
    }

    /// No managed object is there: reports an object of another owner at its path.
    fn stranger(&self, wanted: &Wanted) -> Observed {
        match taken_path(self.provider, wanted, &self.folder) {
            Some(path) => Observed::Unknown(ReadFailure(format!("{path} exists and has no lineage marker"))),
            None => Observed::Absent,
        }
    }
}

/// The path of a wanted object, if something is there.
pub(crate) fn taken_path(provider: &impl FolderProvider, wanted: &Wanted, folder: &SiteFolder) -> Option<Utf8PathBuf> {
    provider.path(wanted, folder).filter(|path| std::fs::symlink_metadata(path).is_ok())
}
