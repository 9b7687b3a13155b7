//! [`OnPrem`]: the provider's face.

use std::collections::BTreeMap;

use async_trait::async_trait;
use camino::Utf8Path;
use serde_json::json;
use textnlp_provider::{
    CloudId, Component, Error, FieldChange, Handle, Health, Kind, KindName, Object, Observed, Operation, Ownership,
    Problem, Problems, Progress, Provider, Recorded, ResourceId, Result, Scope, Site, SiteName, Spec, Wanted, Why,
};

use crate::diff::{self, DRIFT};
use crate::jobs::Jobs;
use crate::layout::SiteFolder;
use crate::lower;
use crate::marker::Marker;
use crate::options::Options;
use crate::preflight;
use crate::table::{KINDS, Noun};
use crate::verbs::{self, Supervisor, Work};
use crate::waiting::Waiting;

/// The machine that this runs on, as a provider.
///
/// Every object lies in `STATE/sites/SITE` and carries its lineage in a marker beside it. All verbs may be repeated, by this
/// process or another, whatever became of the first try.
pub struct OnPrem {
    options: Options,
    jobs: Jobs,
    waiting: Waiting,
}

impl OnPrem {
    /// The provider for one state folder.
    pub fn new(options: Options) -> Self {
        Self { options, jobs: Jobs::default(), waiting: Waiting::default() }
    }

    /// How it works.
    pub fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn jobs(&self) -> &Jobs {
        &self.jobs
    }

    pub(crate) fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    fn folder(&self, site: &SiteName) -> SiteFolder {
        SiteFolder::of(&self.options.state_folder, site)
    }

    async fn observe_one(
        &self,
        asked: Asked<'_>,
        folder: &SiteFolder,
        supervisor: &Supervisor,
        scope: &Scope<'_>,
    ) -> Observed {
        let ownership = asked.wanted.map(|w| &w.ownership).or(asked.recorded.map(|r| &r.ownership));
        if let Some(Ownership::External(file)) = ownership {
            return verbs::look_at_existing_certificate(file);
        }
        match asked.marker {
            Some(marker) if marker.lineage != scope.lineage => {
                let owner = format!("lineage {} of environment {}", marker.lineage, marker.environment);
                Observed::Unknown(Why(format!("{} belongs to {owner}", marker.cloud_id)))
            }
            Some(marker) => verbs::look(self, folder, marker, supervisor).await,
            None => match asked.recorded {
                Some(recorded) => self.observe_unmarked(recorded, folder, supervisor, scope).await,
                None => asked.wanted.map_or(Observed::Absent, |wanted| stranger(wanted, folder)),
            },
        }
    }

    /// We wrote it down and its marker is gone: what is there is looked at as it was recorded, and the marker is missed.
    async fn observe_unmarked(
        &self,
        recorded: &Recorded,
        folder: &SiteFolder,
        supervisor: &Supervisor,
        scope: &Scope<'_>,
    ) -> Observed {
        match (Noun::of(&recorded.kind), supervisor) {
            // A part is put again in the same words whether or not it is there.
            (Some(Noun::Schema | Noun::ApiKey), _) => return Observed::Absent,
            // A supervisor is a process: without marker and process there is nothing.
            (Some(Noun::Supervisor), Supervisor::Stopped) => return Observed::Absent,
            _ => {}
        }
        let facts = recorded.outputs.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
        let mut marker = Marker {
            lineage: scope.lineage,
            environment: scope.environment.clone(),
            site: recorded.site.clone(),
            resource: recorded.id.clone(),
            operation: textnlp_provider::OperationId(0),
            kind: recorded.kind.clone(),
            cloud_id: recorded.cloud_id.clone(),
            complete: true,
            spec: recorded.spec.clone(),
            facts,
        };
        if let Some(version) = recorded.outputs.get("secret").and_then(|secret| secret.get("version")) {
            marker.facts.insert("version".to_owned(), version.clone());
            marker.facts.insert("key_version".to_owned(), version.clone());
        }
        match verbs::look(self, folder, &marker, supervisor).await {
            Observed::Present(mut object) => {
                let mut spec = object.spec.as_value().clone();
                let mut drift = spec.get(DRIFT).cloned().unwrap_or_else(|| json!({}));
                drift["marker"] = json!("the marker that says whose it is is gone");
                spec[DRIFT] = drift;
                object.spec = Spec::of(&spec);
                object.health = Health::Degraded("the marker that says whose it is is gone".to_owned());
                Observed::Present(object)
            }
            other => other,
        }
    }
}

/// All that is known beforehand of one id.
#[derive(Default)]
struct Asked<'a> {
    wanted: Option<&'a Wanted>,
    recorded: Option<&'a Recorded>,
    marker: Option<&'a Marker>,
}

/// Nothing of ours is there; does something of somebody else lie in the way?
fn stranger(wanted: &Wanted, folder: &SiteFolder) -> Observed {
    match preflight::in_the_way(wanted, folder) {
        Some(path) => Observed::Unknown(Why(format!("{path} is there and carries no lineage"))),
        None => Observed::Absent,
    }
}

#[async_trait]
impl Provider for OnPrem {
    fn kinds(&self) -> &'static [Kind] {
        &KINDS
    }

    fn lower(&self, component: &Component, site: &Site) -> Result<Vec<Wanted>, Problems> {
        let elsewhere = self.options.serves_elsewhere;
        lower::lower(component, site, self.folder(&site.name), &self.options.hostname, elsewhere)
    }

    fn diff(&self, wanted: &Wanted, recorded: &Recorded, seen: &Object) -> Vec<FieldChange> {
        diff::diff(wanted, recorded, seen)
    }

    async fn preflight(&self, wanted: &[Wanted]) -> Result<Vec<Problem>> {
        preflight::preflight(&self.options, wanted).await
    }

    async fn observe(&self, scope: &Scope<'_>) -> Result<Vec<(ResourceId, Observed)>> {
        let folder = self.folder(scope.site);
        let markers = Marker::all(&folder)
            .map_err(|error| textnlp_provider::Error::io("read site", folder.root().as_str(), error))?;
        let supervisor = Supervisor::of(&folder).await;
        let mut asked: BTreeMap<&ResourceId, Asked<'_>> = BTreeMap::new();
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
        let mut observed = Vec::with_capacity(asked.len());
        for (id, asked) in asked {
            observed.push((id.clone(), self.observe_one(asked, &folder, &supervisor, scope).await));
        }
        Ok(observed)
    }

    async fn read(&self, kind: &KindName, id: &CloudId) -> Result<Observed> {
        if Noun::of(kind) == Some(Noun::Certificate) && id.as_str().starts_with('/') {
            return Ok(verbs::look_at_existing_certificate(id));
        }
        // Our own ids begin with `sites/SITE/`.
        let site = Utf8Path::new(id.as_str()).components().nth(1).map(|part| part.as_str()).unwrap_or_default();
        let Ok(site) = SiteName::new(site) else {
            return Ok(Observed::Absent);
        };
        let folder = self.folder(&site);
        let markers = Marker::all(&folder).map_err(|error| Error::io("read site", folder.root().as_str(), error))?;
        let Some(marker) = markers.iter().find(|marker| marker.kind == *kind && marker.cloud_id == *id) else {
            return Ok(Observed::Absent);
        };
        Ok(verbs::look(self, &folder, marker, &Supervisor::of(&folder).await).await)
    }

    async fn begin(&self, op: &Operation) -> Result<Progress> {
        Work::on(self, op)?.begin().await
    }

    async fn advance(&self, op: &Operation, handle: &Handle) -> Result<Progress> {
        Work::on(self, op)?.advance(handle).await
    }
}
