//! What a kind states about its objects, and what the driver knows of an object.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use textnlp_provider::{
    CloudId, Declaration, Declare, Error, ErrorKind, Foreign, Health, Lineage, Object, Operation, Origin, Outputs,
    PlannedObject, Result, Spec, Verb, Wanted, Zones,
};

use crate::cloud::{Cloud, REGION};
use crate::example::example;
use crate::table::Row;
use crate::tags::{self, Tags};

/// One kind of object.
///
/// Its spec has a member for each attribute, never leaves one out, and has the tags of the operator in `tags`. The driver adds the
/// member `region` for an object outside of its site's region. [`read`](Self::read)
/// fills the same type in from the object, so that equal values mean that nothing is to do. A list is a set: see [`same`].
#[async_trait]
pub trait Resource<C: Cloud>: Send + Sync + 'static {
    /// The attributes of an object.
    type Spec: Serialize + DeserializeOwned + Send + Sync;

    /// The fields of the spec that [`put`](Self::put) changes in place. A change of any other field replaces the object.
    const IN_PLACE: &'static [&'static str];

    /// Whether the API returns the first object for a repeated client token. Otherwise the driver looks for an object of the same
    /// operation before it creates one.
    const HAS_CLIENT_TOKEN: bool = false;

    /// Whether the cloud deletes an object that it is creating or changing. Otherwise the delete waits.
    const DELETES_PENDING: bool = true;

    /// Whether objects can carry tags. Otherwise whose an object is follows from its parent: a create adopts one that exists.
    const CARRIES_TAGS: bool = true;

    /// Whether an object stays when its resource is deleted: the cloud cannot delete it, or others may use it.
    const IS_RETAINED: bool = false;

    /// Reads one object; `None` when it does not exist.
    async fn read(api: &C, id: &str) -> Result<Option<ObservedObject<Self::Spec>>>;

    /// All objects with these tags, in as few calls as possible.
    async fn list(api: &C, filter: &Filter<C>) -> Result<Vec<ObservedObject<Self::Spec>>>;

    /// The id that an object with this spec has, where it follows from the name in it.
    fn id(_spec: &Self::Spec) -> Option<String> {
        None
    }

    /// Whether an object without any tags that has the name of a new one is one that the cloud made for it: the driver takes it over
    /// as if it had created it.
    fn is_made_by_cloud(_id: &str) -> bool {
        false
    }

    /// Creates an object and returns its id: one mutating call, with `make.tags` as the object's tags from its first moment. An error
    /// tells whether the cloud refused it; after a call that it accepted there is none.
    async fn create(api: &C, make: &Make<'_>, spec: &Self::Spec) -> Result<String>;

    /// The same for an object that the cloud finishes in the background: also the id that [`change`](Self::change) reads.
    async fn begin(api: &C, make: &Make<'_>, spec: &Self::Spec) -> Result<(String, Option<String>)> {
        Ok((Self::create(api, make, spec).await?, None))
    }

    /// Brings one field of the object closer to the spec: one mutating call. It is called again, after a read, until the field has
    /// the wanted value: a list is changed one element at a time. A kind that changes nothing in place has none.
    async fn put(_api: &C, _seen: &ObservedObject<Self::Spec>, _spec: &Self::Spec, _field: &str) -> Result<()> {
        Ok(())
    }

    /// The same for a change that the cloud makes in the background and that can fail: its id, which [`change`](Self::change) reads.
    async fn start(
        api: &C,
        seen: &ObservedObject<Self::Spec>,
        spec: &Self::Spec,
        field: &str,
    ) -> Result<Option<String>> {
        Self::put(api, seen, spec, field).await.map(|()| None)
    }

    /// The state of a change that [`start`](Self::start) began: `Ready` once it is made.
    async fn change(_api: &C, _id: &str, _change: &str) -> Result<State> {
        Ok(State::Ready)
    }

    /// Whether a value that differs from the wanted one is as good: a size between two bounds, one of several alternatives.
    fn fits(_field: &str, _wanted: &Value, _seen: &Value) -> bool {
        false
    }

    /// Why a field with this value never gets the wanted one, and what to do instead; `None` where it may. The plan refuses it.
    fn refuses(_field: &str, _wanted: &Value, _seen: &Value) -> Option<String> {
        None
    }

    /// The names of the alternatives in a spec, best first; see [`Make::alternative`]. The first word is the market, the last one the
    /// machines, and a zone is between them: `spot us-central1-a n1-standard-4`. Other machines may have capacity where these do not.
    fn alternatives(_wanted: &Spec) -> Vec<String> {
        Vec::new()
    }

    /// The alternatives that an object was created as, by their index: more than one where the cloud does not tell them apart.
    fn tried(_wanted: &Self::Spec, _seen: &Self::Spec) -> Vec<usize> {
        Vec::new()
    }

    /// Fails a database over to its standby, which is there: one call. The id of the change, which [`change`](Self::change) reads, where
    /// there is one.
    async fn fail_over(_api: &C, seen: &ObservedObject<Self::Spec>) -> Result<Option<String>> {
        Err(no_failover(&seen.id))
    }

    /// Sets and removes tags of the object: one call; removes are asked for once nothing is to be set.
    async fn tag(api: &C, seen: &ObservedObject<Self::Spec>, set: &Tags, remove: &[String]) -> Result<()>;

    /// Takes from the record what the environment wants of the object's end: the object itself may have been changed by others.
    /// `None`: the object has no record.
    fn before_delete(_seen: &mut ObservedObject<Self::Spec>, _recorded: Option<&Self::Spec>) {}

    /// Brings the object closer to its end: one mutating call, repeated after a read until the object is gone.
    async fn delete(api: &C, seen: &ObservedObject<Self::Spec>) -> Result<()>;

    /// The same for a call that the cloud carries out in the background and that can fail: also the id that
    /// [`change`](Self::change) reads.
    async fn end(api: &C, seen: &ObservedObject<Self::Spec>) -> Result<Option<String>> {
        Self::delete(api, seen).await.map(|()| None)
    }

    /// See [`Provider::declare`](textnlp_provider::Provider::declare). The clients are those of calls before it, of which it makes none.
    fn declare(_api: Option<&C>, _request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        None
    }
}

/// What [`Resource::create`] gives the new object.
pub struct Make<'a> {
    /// The client token: the same for a repeated operation.
    pub token: &'a str,
    /// Its tags.
    pub tags: Tags,
    /// Which of the alternatives in the spec is created, by its index: the first one, unless the cloud had no capacity for it.
    pub alternative: usize,
}

/// An alternative that the cloud offers, or several that it does not tell apart.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Candidate {
    /// Their indexes, in the order in which they would be tried.
    pub places: Vec<usize>,
    /// Whether it is created without the zone in its name.
    pub without_zone: bool,
}

impl Candidate {
    /// That of one alternative.
    pub fn of(place: usize) -> Self {
        Self { places: vec![place], without_zone: false }
    }

    /// The alternative that is created: see [`Make::alternative`].
    pub fn first(&self) -> usize {
        self.places.first().copied().unwrap_or_default()
    }
}

/// Which objects [`Resource::list`] returns.
pub enum Filter<C: Cloud> {
    /// Those of a deployment, in one observation.
    Lineage(Lineage, Arc<C::Shared>),
    /// The one that an operation of a deployment created.
    Operation(Lineage, String),
}

impl<C: Cloud> Filter<C> {
    /// The objects of a deployment, for one observation.
    pub fn of(lineage: Lineage) -> Self {
        Self::Lineage(lineage, Arc::default())
    }

    /// The tag that an object must have.
    pub fn tag(&self) -> (&'static str, String) {
        match self {
            Self::Lineage(lineage, _) => (tags::LINEAGE, lineage.to_string()),
            Self::Operation(_, token) => (tags::OPERATION, token.clone()),
        }
    }

    /// Whether an object has it.
    pub fn matches(&self, tags: &Tags) -> bool {
        let (key, value) = self.tag();
        tags.get(key) == Some(&value)
    }
}

/// An object as read.
#[derive(Debug, Clone)]
pub struct ObservedObject<S> {
    /// Its id.
    pub id: String,
    /// Its attributes. The driver fills in `tags`.
    pub spec: S,
    /// Its outputs.
    pub outputs: Outputs,
    /// All of its tags.
    pub tags: Tags,
    /// Its state.
    pub state: State,
    /// When the cloud created it, in whole seconds, where it tells.
    pub created: Option<Timestamp>,
    /// Objects inside it that no operation created.
    pub foreign: Vec<Foreign>,
    /// The zones of a database that has a standby.
    pub zones: Option<Zones>,
}

impl<S> ObservedObject<S> {
    /// A ready object without outputs.
    pub fn new(id: impl Into<String>, spec: S, tags: Tags) -> Self {
        let (outputs, state, created, foreign) = (BTreeMap::new(), State::Ready, None, Vec::new());
        Self { id: id.into(), spec, outputs, tags, state, created, foreign, zones: None }
    }

    /// Adds an output, if the object has it.
    #[must_use]
    pub fn output(mut self, name: &str, value: Option<impl Into<Value>>) -> Self {
        if let Some(value) = value {
            self.outputs.insert(name.to_owned(), value.into());
        }
        self
    }

    /// Sets when the cloud created it.
    #[must_use]
    pub fn created(self, created: Option<Timestamp>) -> Self {
        Self { created, ..self }
    }

    /// Sets the state.
    #[must_use]
    pub fn state(self, state: State) -> Self {
        Self { state, ..self }
    }
}

/// The state of an object, in the terms of the driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// It can be used.
    Ready,
    /// It is being created or changed; the text is the cloud's own word: `CREATING`.
    Pending(String),
    /// It exists and is unhealthy: the cloud's reason.
    Degraded(String),
    /// Its creation failed for good. `code` is the cloud's, if it has one.
    Failed {
        /// The code of the reason.
        code: String,
        /// The reason.
        why: String,
    },
    /// It is being deleted.
    Deleting,
    /// It was deleted, and the cloud still shows it for a while.
    Gone,
}

/// [`Resource`] without its type.
#[async_trait]
#[expect(missing_docs, reason = "they are those of `Resource`")]
pub trait AnyResource<C: Cloud>: Send + Sync {
    fn in_place(&self) -> &'static [&'static str];
    fn has_client_token(&self) -> bool;
    fn deletes_pending(&self) -> bool;
    fn carries_tags(&self) -> bool;
    fn is_retained(&self) -> bool;
    async fn read(&self, api: &C, id: &str) -> Result<Option<ObservedObject<Spec>>>;
    async fn list(&self, api: &C, filter: &Filter<C>) -> Result<Vec<ObservedObject<Spec>>>;
    fn id(&self, wanted: &Spec) -> Option<String>;
    fn is_made_by_cloud(&self, _id: &str) -> bool {
        false
    }
    async fn begin(&self, api: &C, op: &Operation, chosen: &Candidate) -> Result<(String, Option<String>)>;
    async fn start(&self, api: &C, seen: &ObservedObject<Spec>, op: &Operation, field: &str) -> Result<Option<String>>;
    async fn change(&self, api: &C, id: &str, change: &str) -> Result<State>;
    async fn fail_over(&self, _api: &C, seen: &ObservedObject<Spec>, _op: &Operation) -> Result<Option<String>> {
        Err(no_failover(&seen.id))
    }
    fn fits(&self, field: &str, wanted: Option<&Value>, seen: Option<&Value>) -> bool;
    fn refuses(&self, _field: &str, _wanted: &Value, _seen: &Value) -> Option<String> {
        None
    }
    /// Whether answers never show the field: the record tells what the object got.
    fn is_hidden(&self, _field: &str) -> bool {
        false
    }
    fn alternatives(&self, wanted: &Spec) -> Vec<String>;
    fn tried(&self, wanted: &Spec, seen: &Spec) -> Vec<usize>;
    /// Those of these alternatives that the cloud offers, in the same order, by reads only. The first one is created.
    async fn choose(&self, _api: &C, _wanted: &Spec, rest: &[usize]) -> Result<Vec<Candidate>> {
        Ok(rest.iter().copied().map(Candidate::of).collect())
    }
    async fn delete(&self, api: &C, seen: &ObservedObject<Spec>, op: &Operation) -> Result<Option<String>>;
    fn declare(&self, _api: Option<&C>, _request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        None
    }
    /// A spec with a value in every field, for checks of tables.
    fn example(&self) -> Value {
        Value::Null
    }
    fn planned(&self, wanted: &Wanted, _lineage: Lineage) -> Option<PlannedObject> {
        let cloud_id = CloudId::new(self.id(&wanted.spec)?).ok()?;
        Some(PlannedObject { cloud_id, outputs: Outputs::new(), is_optional: false })
    }
}

/// The field of every spec that the driver changes.
pub const TAGS: &str = textnlp_provider::spec::TAGS;

/// Carries the type of a kind.
pub struct Of<R>(PhantomData<R>);

impl<R> Of<R> {
    /// The kind of a row.
    pub const fn kind() -> Self {
        Self(PhantomData)
    }
}

#[async_trait]
impl<C: Cloud, R: Resource<C>> AnyResource<C> for Of<R> {
    fn in_place(&self) -> &'static [&'static str] {
        R::IN_PLACE
    }

    fn has_client_token(&self) -> bool {
        R::HAS_CLIENT_TOKEN
    }

    fn deletes_pending(&self) -> bool {
        R::DELETES_PENDING
    }

    fn carries_tags(&self) -> bool {
        R::CARRIES_TAGS
    }

    fn is_retained(&self) -> bool {
        R::IS_RETAINED
    }

    async fn read(&self, api: &C, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        Ok(R::read(api, id).await?.map(|seen| untyped(api, seen)))
    }

    async fn list(&self, api: &C, filter: &Filter<C>) -> Result<Vec<ObservedObject<Spec>>> {
        Ok(R::list(api, filter).await?.into_iter().map(|seen| untyped(api, seen)).collect())
    }

    fn id(&self, wanted: &Spec) -> Option<String> {
        R::id(&wanted.typed().ok()?)
    }

    fn is_made_by_cloud(&self, id: &str) -> bool {
        R::is_made_by_cloud(id)
    }

    async fn begin(&self, api: &C, op: &Operation, chosen: &Candidate) -> Result<(String, Option<String>)> {
        let (token, tags) = (op.token.as_str(), tags::of_new::<C>(op, &tags::in_spec(&op.spec)));
        let make = Make { token, tags, alternative: chosen.first() };
        R::begin(api, &make, &typed(&op.spec, op)?).await
    }

    async fn start(&self, api: &C, seen: &ObservedObject<Spec>, op: &Operation, field: &str) -> Result<Option<String>> {
        let typed_seen = retyped::<R::Spec>(seen, op)?;
        if field == TAGS {
            let (set, gone) = tags::change::<C>(op, &seen.tags, &tags::in_spec(&op.spec));
            return R::tag(api, &typed_seen, &set, &gone).await.map(|()| None);
        }
        R::start(api, &typed_seen, &typed(&op.spec, op)?, field).await
    }

    async fn change(&self, api: &C, id: &str, change: &str) -> Result<State> {
        R::change(api, id, change).await
    }

    async fn fail_over(&self, api: &C, seen: &ObservedObject<Spec>, op: &Operation) -> Result<Option<String>> {
        R::fail_over(api, &retyped::<R::Spec>(seen, op)?).await
    }

    fn fits(&self, field: &str, wanted: Option<&Value>, seen: Option<&Value>) -> bool {
        same(wanted, seen) || wanted.zip(seen).is_some_and(|(wanted, seen)| R::fits(field, wanted, seen))
    }

    fn refuses(&self, field: &str, wanted: &Value, seen: &Value) -> Option<String> {
        R::refuses(field, wanted, seen)
    }

    fn alternatives(&self, wanted: &Spec) -> Vec<String> {
        R::alternatives(wanted)
    }

    fn tried(&self, wanted: &Spec, seen: &Spec) -> Vec<usize> {
        let (Ok(wanted), Ok(seen)) = (wanted.typed(), seen.typed()) else { return Vec::new() };
        R::tried(&wanted, &seen)
    }

    fn declare(&self, api: Option<&C>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        R::declare(api, request)
    }

    fn example(&self) -> Value {
        example::<R::Spec>().and_then(|spec| serde_json::to_value(spec).ok()).unwrap_or_default()
    }

    async fn delete(&self, api: &C, seen: &ObservedObject<Spec>, op: &Operation) -> Result<Option<String>> {
        let mut seen = retyped::<R::Spec>(seen, op)?;
        if op.verb == Verb::Delete {
            let recorded = op.recorded.as_ref().filter(|_| !op.bounds.is_unrecorded);
            R::before_delete(&mut seen, recorded.and_then(|recorded| recorded.spec.typed().ok()).as_ref());
        }
        R::end(api, &seen).await
    }
}

fn no_failover(id: &str) -> Error {
    Error::new(ErrorKind::Invalid, "fail over", id).because("objects of this kind have no standby")
}

fn typed<S: DeserializeOwned>(spec: &Spec, op: &Operation) -> Result<S> {
    spec.typed()
        .map_err(|error| Error::new(ErrorKind::Invalid, op.verb.to_string(), op.resource.to_string()).because(error))
}

fn retyped<S: DeserializeOwned>(seen: &ObservedObject<Spec>, op: &Operation) -> Result<ObservedObject<S>> {
    Ok(with_spec(seen, typed(&seen.spec, op)?))
}

fn with_spec<S>(seen: &ObservedObject<Spec>, spec: S) -> ObservedObject<S> {
    ObservedObject {
        id: seen.id.clone(),
        spec,
        outputs: seen.outputs.clone(),
        tags: seen.tags.clone(),
        state: seen.state.clone(),
        created: seen.created,
        foreign: seen.foreign.clone(),
        zones: seen.zones.clone(),
    }
}

fn untyped<C: Cloud, S: Serialize>(api: &C, seen: ObservedObject<S>) -> ObservedObject<Spec> {
    let mut value = serde_json::to_value(&seen.spec).unwrap_or_default();
    if api.is_elsewhere() {
        value[REGION] = serde_json::json!(api.region());
    }
    value[TAGS] = serde_json::json!(tags::own::<C>(&seen.tags));
    let spec = Spec::of(&value);
    ObservedObject {
        id: seen.id,
        spec,
        outputs: seen.outputs,
        tags: seen.tags,
        state: seen.state,
        created: seen.created,
        foreign: seen.foreign,
        zones: seen.zones,
    }
}

impl ObservedObject<Spec> {
    /// The object in the terms of the contract; `None` when its id is not one.
    pub fn object<C: Cloud>(&self, row: &Row<C>) -> Option<Object> {
        let kind = &row.kind;
        let health = match &self.state {
            State::Ready => Health::Ready,
            State::Pending(says) => Health::Degraded(format!("it is {says}")),
            State::Degraded(why) | State::Failed { why, .. } => Health::Degraded(why.clone()),
            State::Deleting | State::Gone => Health::Degraded("it is being deleted".to_owned()),
        };
        // A part that can carry no mark is judged by its parent.
        let is_unmarked = !row.resource.carries_tags() && !self.tags.contains_key(tags::OPERATION);
        Some(Object {
            kind: kind.name.parse().ok()?,
            cloud_id: CloudId::new(&self.id).ok()?,
            spec: self.zones.as_ref().map_or_else(|| self.spec.clone(), |zones| self.spec.with_zones(zones)),
            outputs: self.outputs.clone(),
            lineage: tags::lineage(&self.tags),
            origin: if is_unmarked { Origin::Untold } else { tags::origin(&self.tags) },
            created: self.created,
            health,
            via: None,
            foreign: self.foreign.clone(),
        })
    }

    /// The fields that an update would change, in the order in which it does: those of the kind's table, then the tags.
    pub(crate) fn next<C: Cloud>(&self, resource: &dyn AnyResource<C>, op: &Operation) -> Option<&'static str> {
        let differs = |field: &&&str| !resource.fits(field, op.spec.get(field), self.spec.get(field));
        let field = resource.in_place().iter().find(differs).copied();
        let is_tagged = || {
            if !resource.carries_tags() {
                return true;
            }
            let (set, gone) = tags::change::<C>(op, &self.tags, &tags::in_spec(&op.spec));
            set.is_empty() && gone.is_empty()
        };
        field.or_else(|| (!is_tagged()).then_some(TAGS))
    }
}

/// Whether two values of a field that answers never show are equal. One that is null is absent: a replica has no secret of its own.
pub(crate) fn same_hidden(a: Option<&Value>, b: Option<&Value>) -> bool {
    a.filter(|value| !value.is_null()) == b.filter(|value| !value.is_null())
}

/// Whether two values of a field are equal. A list is a set: clouds return lists in any order, and references to outputs cannot be
/// sorted before they are resolved.
pub fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    // A record of an earlier version lacks what its spec left open.
    let [a, b] = [a, b].map(|value| value.filter(|value| !value.is_null()));
    let (Some(Value::Array(a)), Some(Value::Array(b))) = (a, b) else { return a == b };
    let sorted = |list: &[Value]| {
        let mut texts: Vec<String> = list.iter().map(Value::to_string).collect();
        texts.sort();
        texts
    };
    a.len() == b.len() && sorted(a) == sorted(b)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{same, same_hidden};

    #[test]
    fn a_field_that_a_record_lacks_is_null() {
        assert!(same(Some(&Value::Null), None) && !same(Some(&json!(1)), None));
    }

    #[test]
    fn a_secret_that_is_null_is_absent() {
        let secret = json!({ "$secret": "main/database-password", "version": "1" });
        assert!(same_hidden(Some(&Value::Null), None) && same_hidden(None, Some(&Value::Null)));
        assert!(!same_hidden(Some(&secret), Some(&Value::Null)) && !same_hidden(None, Some(&secret)));
    }
}
