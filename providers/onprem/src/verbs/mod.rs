//! What is done to an object, and what is seen of it: one file per kind, each with `put`, `remove` and `look`.

mod authority;
mod certificate;
mod child;
mod control;
mod database;
mod directory;
mod file;
mod model;
pub(crate) mod postgres;
mod process;
mod program;
mod secret;
mod supervisor;

pub(crate) use model::has_copy;

use std::io;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use textnlp_provider::{
    CloudId, Error, Handle, Health, Object, Observed, Operation, Outputs, Ownership, Progress, Result, Sort, Spec,
    Verb, Why,
};

use crate::OnPrem;
use crate::diff::DRIFT;
use crate::layout::SiteFolder;
use crate::marker::Marker;
use crate::supervise;
use crate::table::Noun;
pub(crate) use child::{ask_database, lend, lend_bytes};

/// One operation on one object, with what is known of it.
pub(crate) struct Work<'a> {
    pub(crate) onprem: &'a OnPrem,
    pub(crate) op: &'a Operation,
    pub(crate) folder: SiteFolder,
    pub(crate) marker: Option<Marker>,
    pub(crate) noun: Noun,
}

/// What is seen of an object.
pub(crate) enum Seen {
    /// It is not there.
    Absent,
    /// It is.
    There(Look),
}

/// What an object shows besides what was applied.
#[derive(Debug, Default)]
pub(crate) struct Look {
    pub(crate) outputs: Outputs,
    /// What is wrong with the object itself, by field.
    pub(crate) drift: Map<String, Value>,
    /// Why it does not do its work, when nothing of `drift` says it.
    pub(crate) trouble: Option<String>,
}

impl Look {
    pub(crate) fn output(&mut self, name: &str, value: impl Into<Value>) -> &mut Self {
        self.outputs.insert(name.to_owned(), value.into());
        self
    }

    pub(crate) fn drift(&mut self, field: &str, says: impl Into<String>) -> &mut Self {
        self.drift.insert(field.to_owned(), Value::from(says.into()));
        self
    }
}

/// What is asked of the site's supervisor once per observation.
pub(crate) enum Supervisor {
    Runs(supervise::Status),
    Stopped,
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
}

impl<'a> Work<'a> {
    /// Reads what is known of an operation's object and refuses objects of others.
    pub(crate) fn on(onprem: &'a OnPrem, op: &'a Operation) -> Result<Self> {
        let noun = Noun::of(&op.kind).ok_or_else(|| {
            Error::new(Sort::Invalid, "change", op.resource.to_string()).because("its kind is not ours")
        })?;
        if op.resource.site() != op.site.as_str() {
            return Err(Error::new(Sort::Invalid, "change", op.resource.to_string()).because("it is of another site"));
        }
        if op.recorded.as_ref().is_some_and(|recorded| matches!(recorded.ownership, Ownership::External(_))) {
            let error = Error::new(Sort::Denied, "change", op.resource.to_string());
            return Err(error.because("an existing object is read and never changed"));
        }
        let folder = SiteFolder::of(&onprem.options().state_folder, &op.site);
        let path = folder.marker(&op.resource);
        let marker = Marker::read(&path).map_err(|error| Error::io("read marker", path.as_str(), error))?;
        if let Some(marker) = &marker {
            refuse_foreign(op, marker)?;
        }
        Ok(Self { onprem, op, folder, marker, noun })
    }

    /// Begins the operation: at most one thing is changed, more is left to [`Self::advance`].
    pub(crate) async fn begin(&self) -> Result<Progress> {
        match self.op.verb {
            Verb::Create | Verb::Update => self.put().await,
            Verb::Delete => self.remove().await,
        }
    }

    /// Goes on with the operation.
    pub(crate) async fn advance(&self, handle: &Handle) -> Result<Progress> {
        match (self.noun, self.op.verb) {
            (Noun::Process, Verb::Delete) => process::stopping(self, handle).await,
            (Noun::Process, _) => process::starting(self).await,
            (Noun::Supervisor, Verb::Delete) => supervisor::stopping(self, handle).await,
            (Noun::Supervisor, _) => supervisor::starting(self, handle).await,
            (Noun::Authority, Verb::Create | Verb::Update) => authority::certify(self).await,
            // Everything else is one call, or a job that is looked at by beginning it again.
            _ => self.begin().await,
        }
    }

    async fn put(&self) -> Result<Progress> {
        if let Some(object) = self.done_before().await {
            return Ok(Progress::Done(object));
        }
        self.prepare()?;
        match self.noun {
            Noun::Directory => directory::put(self).await,
            Noun::Supervisor => supervisor::put(self).await,
            Noun::Secret => secret::put(self).await,
            Noun::Authority => authority::put(self).await,
            Noun::Certificate => certificate::put(self).await,
            Noun::Model => model::put(self).await,
            Noun::Program => program::put(self).await,
            Noun::File => file::put(self).await,
            Noun::Database => database::put(self).await,
            Noun::Postgres => postgres::put(self).await,
            Noun::Control => control::put(self).await,
            Noun::Schema => child::put_schema(self).await,
            Noun::ApiKey => child::put_key(self).await,
            Noun::Process => process::put(self).await,
        }
    }

    /// What this very operation made when it came to its end before and nobody heard of it.
    async fn done_before(&self) -> Option<Object> {
        let marker = self.marker.as_ref()?;
        if !marker.complete || marker.operation != self.op.id || marker.spec != self.op.spec {
            return None;
        }
        let supervisor = Supervisor::of(&self.folder).await;
        match look(self.onprem, &self.folder, marker, &supervisor).await {
            Observed::Present(object) if object.health == Health::Ready => Some(object),
            _ => None,
        }
    }

    async fn remove(&self) -> Result<Progress> {
        let last = self.last_seen().await?;
        // Without a marker there is nothing that we may remove: it is gone, or it is not ours.
        if self.marker.is_none() && self.op.recorded.is_none() {
            return Ok(Progress::Done(last));
        }
        match self.noun {
            Noun::Process => return process::remove(self).await,
            Noun::Supervisor => return supervisor::remove(self).await,
            Noun::Directory => return directory::remove(self, last).await,
            Noun::Secret => secret::remove(self).await?,
            Noun::Authority => authority::remove(self).await?,
            Noun::Certificate => certificate::remove(self).await?,
            Noun::Model => model::remove(self).await?,
            Noun::Program => program::remove(self)?,
            Noun::File => file::remove(self)?,
            Noun::Database => database::remove(self)?,
            Noun::Postgres => postgres::remove(self)?,
            Noun::Control => control::remove(self)?,
            // The tables go with the database.
            Noun::Schema => {}
            Noun::ApiKey => child::revoke_key(self).await?,
        }
        self.forget()?;
        Ok(Progress::Done(last))
    }

    /// Makes sure that the site's folders are there: whatever is made first makes them.
    fn prepare(&self) -> Result<()> {
        let path = self.folder.join("objects");
        crate::files::make_folder(&path).map_err(|error| Error::io("make folder", path.as_str(), error))
    }

    /// The wanted spec as the kind's type.
    pub(crate) fn spec<T: DeserializeOwned>(&self) -> Result<T> {
        self.op.spec.typed().map_err(|error| self.invalid(error))
    }

    /// The spec of the object that is removed: as it was applied.
    pub(crate) fn applied<T: DeserializeOwned>(&self) -> Result<T> {
        let applied = self.marker.as_ref().map(|marker| &marker.spec);
        let recorded = self.op.recorded.as_ref().map(|recorded| &recorded.spec);
        let spec = applied.or(recorded).unwrap_or(&self.op.spec);
        spec.typed().map_err(|error| self.invalid(error))
    }

    pub(crate) fn invalid(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(Sort::Invalid, self.op.verb.to_string(), self.op.resource.to_string()).because(source)
    }

    pub(crate) fn fails(&self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        Error::new(Sort::Unavailable, self.op.verb.to_string(), self.op.resource.to_string()).because(source)
    }

    pub(crate) fn io(&self, path: impl Into<camino::Utf8PathBuf>) -> impl Fn(io::Error) -> Error + 'static {
        let (action, path) = (format!("{} {} at", self.op.verb, self.op.resource), path.into().into_string());
        move |error| Error::io(action.clone(), path.clone(), error)
    }

    /// Writes down whose the object will be, before it is there.
    pub(crate) fn claim(&self, cloud_id: &CloudId, facts: Map<String, Value>) -> Result<Marker> {
        self.mark(cloud_id, false, facts)
    }

    /// Writes down that the object is there and complete.
    pub(crate) fn complete(&self, cloud_id: &CloudId, facts: Map<String, Value>) -> Result<Marker> {
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

    /// Removes the marker: the object is gone.
    pub(crate) fn forget(&self) -> Result<()> {
        let path = self.folder.marker(&self.op.resource);
        crate::files::remove_file(&path).map_err(self.io(&path))
    }

    /// Refuses to write where something lies that we did not make.
    pub(crate) fn refuse_strangers(&self, path: &camino::Utf8Path) -> Result<()> {
        let known = self.marker.is_some() || self.op.recorded.is_some();
        let there = std::fs::symlink_metadata(path).is_ok();
        if known || !there {
            return Ok(());
        }
        let error = Error::new(Sort::Exists, "create", path.as_str()).because("something lies there that is not ours");
        Err(error.hint(format!("look at `{path}` and move it away")))
    }

    /// Done, with the object as it is seen now.
    pub(crate) async fn done(&self, marker: &Marker) -> Result<Progress> {
        let supervisor = Supervisor::of(&self.folder).await;
        match look(self.onprem, &self.folder, marker, &supervisor).await {
            Observed::Present(object) => Ok(Progress::Done(object)),
            Observed::Absent => Err(self.fails("it is gone again")),
            Observed::Unknown(Why(why)) => Err(self.fails(why)),
        }
    }

    /// More to do or to wait for.
    pub(crate) fn pending(&self, handle: Value, says: impl Into<String>) -> Progress {
        let again_in = match self.noun {
            // Nothing is waited for: the second call may follow at once.
            Noun::Authority => Duration::ZERO,
            Noun::Supervisor => Duration::from_millis(25),
            _ => Duration::from_millis(100),
        };
        Progress::Pending { handle: Handle(handle), says: says.into(), again_in }
    }

    /// The object before it is removed: as seen, else as it was written down.
    pub(crate) async fn last_seen(&self) -> Result<Object> {
        // Looking at a changed model reads it whole, looking at a key asks a program: with the removal more than one call may take.
        let looks = !matches!(self.noun, Noun::Model | Noun::Schema | Noun::ApiKey);
        if let Some(marker) = self.marker.as_ref().filter(|_| looks) {
            let supervisor = Supervisor::of(&self.folder).await;
            if let Observed::Present(object) = look(self.onprem, &self.folder, marker, &supervisor).await {
                return Ok(object);
            }
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
    let error = Error::new(Sort::Exists, op.verb.to_string(), op.resource.to_string()).because(why);
    Err(error.hint("give this environment another `--state-dir`"))
}

/// What is there for a marker. Reads only.
pub(crate) async fn look(onprem: &OnPrem, folder: &SiteFolder, marker: &Marker, supervisor: &Supervisor) -> Observed {
    let Some(noun) = Noun::of(&marker.kind) else {
        return Observed::Unknown(Why(format!("its kind {} is not ours", marker.kind)));
    };
    let seen = match noun {
        Noun::Directory => directory::look(folder, marker),
        Noun::Supervisor => supervisor::look(folder, supervisor),
        Noun::Secret => secret::look(onprem, marker).await,
        Noun::Authority => authority::look(onprem, folder, marker).await,
        Noun::Certificate => certificate::look(folder, marker),
        Noun::Model => model::look(folder, marker).await,
        Noun::Program => program::look(folder, marker).await,
        Noun::File => file::look(folder, marker),
        Noun::Database => database::look(folder, marker),
        Noun::Postgres => postgres::look(folder, marker),
        Noun::Control => control::look(folder, marker),
        Noun::Schema => child::look_at_schema(folder, marker).await,
        Noun::ApiKey => child::look_at_key(folder, marker).await,
        Noun::Process => process::look(folder, marker, supervisor),
    };
    match seen {
        Err(error) => Observed::Unknown(Why(textnlp_provider::told(&error))),
        Ok(Seen::Absent) => Observed::Absent,
        Ok(Seen::There(look)) => Observed::Present(object(marker, look)),
    }
}

fn object(marker: &Marker, mut look: Look) -> Object {
    if !marker.complete && !look.drift.contains_key("complete") {
        look.drift("complete", "an operation on it did not come to its end");
    }
    let reasons: Vec<String> =
        look.drift.iter().map(|(field, says)| format!("{field}: {}", says.as_str().unwrap_or_default())).collect();
    let health = match (look.trouble, reasons.is_empty()) {
        (Some(trouble), _) => Health::Degraded(trouble),
        (None, true) => Health::Ready,
        (None, false) => Health::Degraded(reasons.join("; ")),
    };
    let spec = if look.drift.is_empty() {
        marker.spec.clone()
    } else {
        let mut spec = marker.spec.as_value().clone();
        spec[DRIFT] = json!(look.drift);
        Spec::of(&spec)
    };
    let kind = marker.kind.clone();
    Object {
        kind,
        cloud_id: marker.cloud_id.clone(),
        spec,
        outputs: look.outputs,
        lineage: Some(marker.lineage),
        health,
        via: None,
        foreign: Vec::new(),
    }
}

/// What an `existing:` certificate shows.
pub(crate) fn look_at_existing_certificate(file: &CloudId) -> Observed {
    certificate::look_at_existing(file)
}
