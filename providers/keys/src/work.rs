//! One operation on one object in a site's folder, and the observation of such an object.

use std::io;

use camino::{Utf8Path, Utf8PathBuf};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use textnlp_provider::{
    CloudId, DRIFT, Error, ErrorKind, Handle, Health, Object, Observed, Operation, Origin, Outputs, Ownership,
    Progress, ReadFailure, Result, Spec, Verb, error_chain,
};

use crate::files;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::objects::{FolderProvider, observed};

/// One operation on one object, with its context.
pub struct Work<'a, P: FolderProvider> {
    /// The provider that owns the kind.
    pub provider: &'a P,
    /// The kind of the object.
    pub noun: P::Noun,
    /// The operation.
    pub op: &'a Operation,
    /// The folder of the site.
    pub folder: SiteFolder,
    /// The object's marker, if there is one.
    pub marker: Option<Marker>,
}

/// The observation of an object.
pub enum Observation {
    /// It is not there.
    Absent,
    /// It is.
    There(ObservedObject),
}

/// The observed properties of an object besides the applied spec.
#[derive(Debug, Default)]
pub struct ObservedObject {
    /// Its outputs.
    pub outputs: Outputs,
    /// Drift of the object itself, by field.
    pub drift: Map<String, Value>,
    /// Why it is unhealthy, when `drift` does not say it.
    pub trouble: Option<String>,
}

impl ObservedObject {
    /// Sets an output.
    pub fn output(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.outputs.insert(name.to_owned(), value.into());
        self
    }

    /// Reports drift of a field.
    pub fn drift(&mut self, field: &str, says: impl Into<String>) -> &mut Self {
        self.drift.insert(field.to_owned(), Value::from(says.into()));
        self
    }

    /// The object of a marker with these properties.
    pub(crate) fn into_object(mut self, marker: &Marker) -> Object {
        if !marker.complete && !self.drift.contains_key("complete") {
            self.drift("complete", "an operation on it did not finish");
        }
        let reasons: Vec<String> =
            self.drift.iter().map(|(field, says)| format!("{field}: {}", says.as_str().unwrap_or_default())).collect();
        let health = match (self.trouble, reasons.is_empty()) {
            (Some(trouble), _) => Health::Degraded(trouble),
            (None, true) => Health::Ready,
            (None, false) => Health::Degraded(reasons.join("; ")),
        };
        let spec = if self.drift.is_empty() {
            marker.spec.clone()
        } else {
            let mut spec = marker.spec.as_value().clone();
            spec[DRIFT] = json!(self.drift);
            Spec::of(&spec)
        };
        Object {
            kind: marker.kind.clone(),
            cloud_id: marker.cloud_id.clone(),
            spec,
            outputs: self.outputs,
            lineage: Some(marker.lineage),
            origin: Origin::Untold,
            created: None,
            health,
            via: None,
            foreign: Vec::new(),
        }
    }
}

impl<'a, P: FolderProvider> Work<'a, P> {
    /// Reads the context of an operation and refuses objects of other owners.
    pub fn on(provider: &'a P, op: &'a Operation) -> Result<Self> {
        let noun = P::noun(&op.kind).ok_or_else(|| {
            Error::new(ErrorKind::Invalid, "change", op.resource.to_string())
                .because("its kind is not known to this provider")
        })?;
        if op.resource.site() != op.site.as_str() {
            return Err(
                Error::new(ErrorKind::Invalid, "change", op.resource.to_string()).because("it belongs to another site")
            );
        }
        if op.recorded.as_ref().is_some_and(|recorded| matches!(recorded.ownership, Ownership::External(_))) {
            let error = Error::new(ErrorKind::Denied, "change", op.resource.to_string());
            return Err(error.because("an existing object is read and never changed"));
        }
        let folder = SiteFolder::of(provider.state_folder(), &op.site);
        let path = folder.marker(&op.resource);
        let marker = Marker::read(&path).map_err(|error| Error::io("read marker", path.as_str(), error))?;
        if let Some(marker) = &marker {
            refuse_foreign(op, marker)?;
        }
        Ok(Self { provider, noun, op, folder, marker })
    }

    /// Starts the operation: at most one change, more is left to [`Self::advance`].
    pub async fn begin(&self) -> Result<Progress> {
        match self.op.verb {
            Verb::Create | Verb::Update => self.put().await,
            Verb::Delete => self.remove().await,
        }
    }

    /// Continues the operation.
    pub async fn advance(&self, handle: &Handle) -> Result<Progress> {
        match self.provider.proceed(self, handle).await? {
            Some(progress) => Ok(progress),
            // One call, or a job that is polled by starting it again.
            None => self.begin().await,
        }
    }

    async fn put(&self) -> Result<Progress> {
        if let Some(object) = self.done_before().await {
            return Ok(Progress::Done(object));
        }
        // The site's folders, whichever resource comes first.
        let path = self.folder.join("objects");
        files::make_folder(&path).map_err(|error| Error::io("make folder", path.as_str(), error))?;
        self.provider.put(self).await
    }

    /// The object of this operation, if it completed earlier and its answer was lost.
    async fn done_before(&self) -> Option<Object> {
        let marker = self.marker.as_ref()?;
        if !marker.complete || marker.operation != self.op.id || marker.spec != self.op.spec {
            return None;
        }
        match self.observed(marker).await {
            Observed::Present(object) if object.health == Health::Ready => Some(object),
            _ => None,
        }
    }

    async fn observed(&self, marker: &Marker) -> Observed {
        match self.provider.status(&self.folder).await {
            Ok(status) => observed(self.provider, &self.folder, marker, &status).await,
            Err(error) => Observed::Unknown(ReadFailure(error_chain(&error))),
        }
    }

    async fn remove(&self) -> Result<Progress> {
        let last = self.last_seen().await?;
        // Without a marker nothing may be removed: the object is gone, or it is not managed here.
        if self.marker.is_none() && self.op.recorded.is_none() {
            return Ok(Progress::Done(last));
        }
        self.provider.remove(self, last).await
    }

    /// The object was removed: removes its marker.
    pub fn removed(&self, last: Object) -> Result<Progress> {
        let path = self.folder.marker(&self.op.resource);
        files::remove_file(&path).map_err(self.io(&path))?;
        Ok(Progress::Done(last))
    }

    /// The wanted spec as the kind's type.
    pub fn spec<T: DeserializeOwned>(&self) -> Result<T> {
        self.op.spec.applied().typed().map_err(|error| self.invalid(error))
    }

    /// The spec of the object that is removed: as it was applied.
    pub fn applied<T: DeserializeOwned>(&self) -> Result<T> {
        let applied = self.marker.as_ref().map(|marker| &marker.spec);
        let recorded = self.op.recorded.as_ref().map(|recorded| &recorded.spec);
        let spec = applied.or(recorded).unwrap_or(&self.op.spec);
        // Earlier versions recorded what was observed, drift and all.
        spec.applied().typed().map_err(|error| self.invalid(error))
    }

    /// An error that another attempt does not avoid.
    pub fn invalid(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Invalid, self.op.verb.to_string(), self.op.resource.to_string()).because(source)
    }

    /// An error that another attempt may avoid.
    pub fn fails(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(ErrorKind::Unavailable, self.op.verb.to_string(), self.op.resource.to_string()).because(source)
    }

    /// Converts an I/O error at a path.
    pub fn io(&self, path: impl Into<Utf8PathBuf>) -> impl Fn(io::Error) -> Error + 'static {
        let (action, path) = (format!("{} {} at", self.op.verb, self.op.resource), path.into().into_string());
        move |error| Error::io(action.clone(), path.clone(), error)
    }

    /// Writes the marker before the object exists.
    pub fn claim(&self, cloud_id: &CloudId, facts: Map<String, Value>) -> Result<Marker> {
        self.mark(cloud_id, false, facts)
    }

    /// Marks the object as complete.
    pub fn complete(&self, cloud_id: &CloudId, facts: Map<String, Value>) -> Result<Marker> {
        self.mark(cloud_id, true, facts)
    }

    fn mark(&self, cloud_id: &CloudId, complete: bool, facts: Map<String, Value>) -> Result<Marker> {
        let marker = Marker {
            lineage: self.op.lineage,
            environment: self.op.environment.clone(),
            site: self.op.site.clone(),
            resource: self.op.resource.clone(),
            operation: self.op.id,
            kind: self.op.kind.clone(),
            cloud_id: cloud_id.clone(),
            complete,
            spec: self.op.spec.clone(),
            facts,
        };
        marker.write(&self.folder).map_err(self.io(self.folder.marker(&self.op.resource)))?;
        Ok(marker)
    }

    /// Refuses to overwrite a path that this program did not create.
    pub fn refuse_strangers(&self, path: &Utf8Path) -> Result<()> {
        let known = self.marker.is_some() || self.op.recorded.is_some();
        let there = std::fs::symlink_metadata(path).is_ok();
        if known || !there {
            return Ok(());
        }
        let error = Error::new(ErrorKind::Exists, "create", path.as_str())
            .because("a file or folder of another owner is there");
        Err(error.hint(format!("check `{path}` and move it away")))
    }

    /// Done, with the object as observed now.
    pub async fn done(&self, marker: &Marker) -> Result<Progress> {
        match self.observed(marker).await {
            Observed::Present(object) => Ok(Progress::Done(object)),
            Observed::Absent => Err(self.fails("it is gone again")),
            Observed::Unknown(ReadFailure(why)) => Err(self.fails(why)),
        }
    }

    /// More to do or to wait for.
    pub fn pending(&self, handle: Value, says: impl Into<String>) -> Progress {
        let again_in = P::poll_interval(self.noun);
        Progress::Pending { handle: Handle(handle), says: says.into(), again_in }
    }

    /// The object before its removal: as observed, else as recorded.
    pub async fn last_seen(&self) -> Result<Object> {
        let is_checked = P::is_observed_before_removal(self.noun);
        if let Some(marker) = self.marker.as_ref().filter(|_| is_checked)
            && let Observed::Present(object) = self.observed(marker).await
        {
            return Ok(object);
        }
        let recorded = self.op.recorded.as_ref();
        let cloud_id = match recorded {
            Some(recorded) => recorded.cloud_id.clone(),
            None => self.folder.cloud_id(self.op.resource.as_str())?,
        };
        Ok(Object {
            kind: self.op.kind.clone(),
            cloud_id,
            spec: recorded.map(|recorded| recorded.spec.clone()).unwrap_or_default(),
            outputs: recorded.map(|recorded| recorded.outputs.clone()).unwrap_or_default(),
            lineage: Some(self.op.lineage),
            origin: Origin::Untold,
            created: None,
            health: Health::Degraded("it is gone".to_owned()),
            via: None,
            foreign: Vec::new(),
        })
    }
}

fn refuse_foreign(op: &Operation, marker: &Marker) -> Result<()> {
    if marker.lineage == op.lineage && marker.kind == op.kind {
        return Ok(());
    }
    let why =
        format!("it belongs to lineage {} of environment {} as {}", marker.lineage, marker.environment, marker.kind);
    let error = Error::new(ErrorKind::Exists, op.verb.to_string(), op.resource.to_string()).because(why);
    Err(error.hint("give this environment another `--state-dir`"))
}
