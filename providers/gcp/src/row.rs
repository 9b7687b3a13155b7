//! A kind as a row: the paths, the members and the states of its documents. [`Rest`] does the rest, the same for all kinds.

use std::marker::PhantomData;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{self, capture, fill, get, last, set};
use textnlp_cloud::names::{hash, suffixed, unsuffixed};
use textnlp_cloud::tags::{self, ENVIRONMENT, LINEAGE, Tags};
use textnlp_cloud::{AnyResource, Candidate, Filter, ObservedObject, REGION, State, TAGS, same};
use textnlp_provider::{
    CloudId, Declaration, Declare, Error, ErrorKind, Foreign, Lineage, Operation, Outputs, Placeholder, PlannedObject,
    Result, Spec, Verb, Wanted, Zones,
};
use uuid::Uuid;

use crate::api::{Api, Call};
use crate::declare::{self, Terraform};
use crate::labels;
use crate::operation::Family;
use crate::service::Service;

/// What the documents of a kind are like.
pub(crate) struct Table {
    pub(crate) service: Service,
    /// Where an object is read, relative to the service: its id. A placeholder is a member of the spec.
    pub(crate) path: &'static str,
    /// Where objects are listed and created: the path without its last segment.
    pub(crate) collection: &'static str,
    /// The member of an answer with the list.
    pub(crate) items: &'static str,
    /// The list of the parents of this program, if objects are listed within each, and its member.
    pub(crate) within: Option<(&'static str, &'static str)>,
    pub(crate) create: Create,
    /// Members that a new object has whatever its spec says: their places, and their values as JSON.
    pub(crate) constants: &'static [(&'static str, &'static str)],
    pub(crate) fields: &'static [Field],
    /// The fields that change in place, in the order in which they do.
    pub(crate) in_place: &'static [&'static str],
    pub(crate) update: Update,
    pub(crate) marks: Marks,
    pub(crate) family: Family,
    pub(crate) states: Option<States>,
    /// The member with the time of creation.
    pub(crate) created: &'static str,
    /// Outputs besides `id` and `name`, by their members.
    pub(crate) outputs: &'static [(&'static str, &'static str)],
    /// Whether the name ends with a part of the operation's token, because the name of a deleted object is taken for a while.
    pub(crate) suffixed: bool,
    /// Whether Google gives an object its name, so that only its labels tell whose it is. The name in a spec is another member.
    pub(crate) assigned: bool,
    /// Whether Google deletes an object that it is creating or changing.
    pub(crate) deletes_pending: bool,
    /// Whether an object stays when its resource is deleted.
    pub(crate) retained: bool,
    /// How Terraform declares an object.
    pub(crate) terraform: Terraform,
}

impl Table {
    /// A table with the usual values.
    pub(crate) const USUAL: Self = Self {
        service: Service::Compute,
        path: "",
        collection: "",
        items: "items",
        within: None,
        create: Create::Body,
        constants: &[],
        fields: &[],
        in_place: &[],
        update: Update::Mask,
        marks: Marks::Part,
        family: Family::None,
        states: None,
        created: "/createTime",
        outputs: &[],
        suffixed: false,
        assigned: false,
        deletes_pending: false,
        retained: false,
        terraform: Terraform::USUAL,
    };

    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }
}

/// The state of an object in its document.
pub(crate) struct States {
    /// The member with the state.
    pub(crate) member: &'static str,
    pub(crate) words: &'static [(&'static str, Word)],
    /// The member that explains it.
    pub(crate) reason: &'static str,
}

/// How a new object gets its name.
#[derive(Clone, Copy)]
pub(crate) enum Create {
    /// The member `name` of its document.
    Body,
    /// A parameter of the call.
    Query(&'static str),
    /// The member `name` of its document, which is a member of the request.
    Wrapped(&'static str),
    /// A member of the request beside the document, which is a member too: `accountId`, `serviceAccount`.
    Beside(&'static str, &'static str),
}

/// How a member is changed.
#[derive(Clone, Copy)]
pub(crate) enum Update {
    /// `PATCH` with an update mask.
    Mask,
    /// `PATCH` that merges, with these members as they were read just before: fingerprints and versions.
    Merge(&'static [&'static str]),
    /// `PATCH` with an update mask in the body, beside the document.
    Beside(&'static str),
    /// `PATCH` that replaces: with the whole document as it was read just before, and its etag. A document has at most one of these
    /// members.
    Whole(&'static [&'static str]),
}

/// Where the tags of an object are.
#[derive(Clone, Copy)]
pub(crate) enum Marks {
    /// In labels, at this place, changed so.
    Labels(&'static str, Labelling),
    /// In a description: its most bytes, and whether it can be changed.
    Description(&'static str, usize, bool),
    /// Nowhere: whose a part is, follows from its parent. Code that reads it puts the parent's tags at [`TAGS_MEMBER`].
    Part,
}

/// The member of a part's document with the tags of its parent.
const TAGS_MEMBER: &str = "$tags";

/// How labels are changed.
#[derive(Clone, Copy)]
pub(crate) enum Labelling {
    /// As any member.
    Patch,
    /// By a method of their own: the request for the labels and the document as read.
    Call(Request, &'static str, fn(Value, &Value) -> Value),
}

/// The method of a change that is no `PATCH`.
#[derive(Clone, Copy)]
pub(crate) enum Request {
    Post,
    Put,
}

impl From<Request> for Method {
    fn from(method: Request) -> Self {
        match method {
            Request::Post => Method::POST,
            Request::Put => Method::PUT,
        }
    }
}

/// One attribute.
pub(crate) struct Field {
    /// Its name in a spec.
    pub(crate) name: &'static str,
    /// Its place in a request, as a JSON pointer; empty if no request has it.
    pub(crate) member: &'static str,
    /// Its place in an answer, where that differs.
    pub(crate) seen: &'static str,
    pub(crate) form: Form,
    /// What it is where an answer leaves it out, as JSON.
    pub(crate) absent: &'static str,
    pub(crate) change: Change,
}

/// The form of a member in a document.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// As in the spec.
    Plain,
    /// A number as text: int64.
    Integer,
    /// The path of another object, in answers with the address of the service before it.
    Link,
    /// The value of a secret, which no answer has.
    Secret,
    /// By code: the member of a request for a value, and the value in a whole document.
    Code(fn(&Value) -> Value, fn(&Value) -> Value),
}

/// How an attribute changes in place.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    /// It does not, or code does it.
    None,
    /// As the table says.
    Patch,
    /// By a method of its own: the end of the path, and the request for a value.
    Call(Request, &'static str, fn(&Value) -> Value),
}

impl Field {
    pub(crate) const fn plain(name: &'static str, member: &'static str) -> Self {
        Self { name, member, seen: member, form: Form::Plain, absent: "null", change: Change::None }
    }

    pub(crate) const fn flag(name: &'static str, member: &'static str) -> Self {
        Self { absent: "false", ..Self::plain(name, member) }
    }

    pub(crate) const fn link(name: &'static str, member: &'static str) -> Self {
        Self { form: Form::Link, ..Self::plain(name, member) }
    }

    pub(crate) const fn code(
        name: &'static str,
        member: &'static str,
        write: fn(&Value) -> Value,
        read: fn(&Value) -> Value,
    ) -> Self {
        Self { form: Form::Code(write, read), ..Self::plain(name, member) }
    }

    pub(crate) const fn patched(self) -> Self {
        Self { change: Change::Patch, ..self }
    }

    pub(crate) const fn called(self, method: Request, suffix: &'static str, body: fn(&Value) -> Value) -> Self {
        Self { change: Change::Call(method, suffix, body), ..self }
    }

    pub(crate) const fn seen_at(self, seen: &'static str) -> Self {
        Self { seen, ..self }
    }

    /// Its value in a document.
    pub(crate) fn read(&self, document: &Value) -> Value {
        if let Form::Code(_, read) = self.form {
            return read(document);
        }
        let found = if self.seen.is_empty() { None } else { get(document, self.seen).cloned() };
        let found = match self.form {
            Form::Integer => found.and_then(|value| match &value {
                Value::String(text) => text.parse::<i64>().ok().map(Value::from),
                _ => Some(value),
            }),
            Form::Link => found.map(|value| value.as_str().map_or(Value::Null, |text| relative(text).into())),
            Form::Secret => None,
            _ => found,
        };
        found.unwrap_or_else(|| serde_json::from_str(self.absent).unwrap_or_default())
    }

    /// Its member in a request.
    pub(crate) fn write(&self, value: &Value) -> Value {
        match self.form {
            Form::Integer => value.as_i64().map_or(Value::Null, |number| number.to_string().into()),
            Form::Code(write, _) => write(value),
            _ => value.clone(),
        }
    }
}

/// What a state of Google's means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    Ready,
    Pending,
    Degraded,
    Failed,
    Deleting,
}

/// A path without the address of a service before it.
pub(crate) fn relative(address: &str) -> &str {
    address.find("projects/").map_or(address, |at| &address[at..])
}

/// A kind: its table, and code where its API is odd.
#[async_trait]
pub(crate) trait RestKind: Send + Sync + 'static {
    const TABLE: &'static Table;

    /// The document of an object.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        api.find_enabled(Call::get(Self::TABLE.service, id)).await
    }

    /// The ids and documents of all objects that may be this program's.
    async fn fetch_all(api: &Api) -> Result<Vec<(String, Value)>> {
        fetch_all(api, Self::TABLE).await
    }

    /// The state of an object.
    fn state(document: &Value) -> State {
        state(Self::TABLE, document)
    }

    /// Outputs that are no members.
    fn outputs(_id: &str, _document: &Value, _outputs: &mut Outputs) {}

    /// The zones of a database whose standby can take over.
    fn zones(_document: &Value) -> Option<Zones> {
        None
    }

    /// Fails it over to that standby, and returns the operation.
    async fn fail_over(_api: &Api, id: &str) -> Result<Option<String>> {
        Err(invalid("fail over", id, "it has no standby"))
    }

    /// Objects inside it that no operation created.
    async fn foreign(_api: &Api, _id: &str, _document: &Value) -> Result<Vec<Foreign>> {
        Ok(Vec::new())
    }

    /// Whether a value that differs is as good.
    fn fits(_field: &str, _wanted: &Value, _seen: &Value) -> bool {
        false
    }

    /// The names of the alternatives in a spec, best first: their market, zone and machines.
    fn alternatives(_wanted: &Spec) -> Vec<String> {
        Vec::new()
    }

    /// The alternatives that an object was created as.
    fn tried(_wanted: &Spec, _seen: &Spec) -> Vec<usize> {
        Vec::new()
    }

    /// Those of these alternatives that are offered, in the same order, by reads only.
    async fn choose(_api: &Api, _wanted: &Spec, rest: &[usize]) -> Result<Vec<Candidate>> {
        Ok(rest.iter().copied().map(Candidate::of).collect())
    }

    /// Completes the document of a declaration, whose spec is as observed, with what no table says.
    fn declared(_api: Option<&Api>, _request: &Declare<'_>, _document: &mut Value) -> Result<(), String> {
        Ok(())
    }

    /// The declarations of an object, from that of the object itself.
    fn declarations(_api: Option<&Api>, _request: &Declare<'_>, main: Declaration) -> Vec<Declaration> {
        vec![main]
    }

    /// Completes the document of a new object, by reads only.
    async fn prepare(_api: &Api, _spec: &Spec, _document: &mut Value, _alternative: usize) -> Result<()> {
        Ok(())
    }

    /// Sends a new object, and returns the operation.
    async fn send(api: &Api, new: New) -> Result<Option<String>> {
        send(api, Self::TABLE, new).await
    }

    /// Changes a field whose row has no [`Change`].
    async fn put(_api: &Api, id: &str, _wanted: &Value, field: &str) -> Result<Option<String>> {
        Err(Error::new(ErrorKind::Invalid, "change", id).because(format!("`{field}` does not change in place")))
    }

    /// The state of an operation.
    async fn change(api: &Api, _id: &str, change: &str) -> Result<State> {
        Self::TABLE.family.state(api, Self::TABLE.service, change).await
    }

    /// Brings an object closer to its end, and returns the operation.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let answer = api.send(Call::new(Self::TABLE.service, Method::DELETE, seen.id.clone())).await?;
        Ok(Self::TABLE.family.started(api, &seen.id, &answer))
    }
}

/// A new object.
pub(crate) struct New {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) collection: String,
    pub(crate) document: Value,
    /// The token of the operation.
    pub(crate) token: String,
}

/// Creates an object as its table says.
pub(crate) async fn send(api: &Api, table: &Table, new: New) -> Result<Option<String>> {
    let New { id, name, collection, mut document, token } = new;
    let mut call = Call::new(table.service, Method::POST, collection).saying("create", name.clone());
    let body = match table.create {
        Create::Body => {
            document["name"] = name.into();
            document
        }
        Create::Query(parameter) => {
            call = call.query(parameter, name);
            document
        }
        Create::Wrapped(member) => {
            document["name"] = name.into();
            json!({ member: document })
        }
        Create::Beside(parameter, member) => json!({ parameter: name, member: document }),
    };
    if table.family == Family::Compute {
        // A repeated request with the same id answers the first operation.
        call = call.query("requestId", request_id(&token));
    }
    let answer = api.send(call.body(body)).await?;
    Ok(table.family.started(api, &id, &answer))
}

/// The token of an operation in the form of a UUID.
fn request_id(token: &str) -> String {
    Uuid::parse_str(token).map_or_else(|_| token.to_owned(), |id| id.hyphenated().to_string())
}

/// All objects of a kind in the project and region, by their ids.
pub(crate) async fn fetch_all(api: &Api, table: &Table) -> Result<Vec<(String, Value)>> {
    let mut collections = Vec::new();
    match table.within {
        None => collections.push(api.path(table.collection)),
        Some((parents, items)) => {
            let (parents, nested) = (api.path(parents), last(table.collection));
            for parent in api.list(table.service, &parents, items, &[]).await? {
                let name = last(parent["name"].as_str().unwrap_or_default());
                if name.starts_with(crate::names::PREFIX) {
                    collections.push(format!("{parents}/{name}/{nested}"));
                }
            }
        }
    }
    let mut all = Vec::new();
    for collection in collections {
        for document in api.list(table.service, &collection, table.items, &[]).await? {
            let name = last(document["name"].as_str().unwrap_or_default()).to_owned();
            all.push((format!("{collection}/{name}"), document));
        }
    }
    Ok(all)
}

/// The state that a document shows.
pub(crate) fn state(table: &Table, document: &Value) -> State {
    let Some(States { member, words, reason }) = &table.states else { return State::Ready };
    let Some(said) = get(document, member).and_then(Value::as_str) else { return State::Ready };
    let why = || match get(document, reason).and_then(Value::as_str) {
        Some(why) if !why.is_empty() => why.to_owned(),
        _ => format!("its state is {said}"),
    };
    match words.iter().find(|(word, _)| *word == said).map_or(Word::Pending, |(_, meaning)| *meaning) {
        Word::Ready => State::Ready,
        Word::Pending => State::Pending(said.to_owned()),
        Word::Degraded => State::Degraded(why()),
        Word::Failed => State::Failed { code: String::new(), why: why() },
        Word::Deleting => State::Deleting,
    }
}

/// Carries the type of a kind.
pub(crate) struct Rest<K>(PhantomData<fn() -> K>);

impl<K: RestKind> Rest<K> {
    /// The kind of a row.
    pub(crate) const fn kind() -> Self {
        Self(PhantomData)
    }

    fn observed(api: &Api, id: &str, document: &Value) -> Result<ObservedObject<Spec>> {
        let table = K::TABLE;
        let values = capture(table.path, id).ok_or_else(|| invalid("read", id, "it is no id of this kind"))?;
        let tags = Self::tags(document);
        let mut spec = json!({});
        for (name, value) in &values {
            spec[*name] = match *name == "name" && table.suffixed {
                true => unsuffixed(value).into(),
                false => value.as_str().into(),
            };
        }
        for field in table.fields {
            spec[field.name] = field.read(document);
        }
        spec[TAGS] = json!(tags::own::<Api>(&tags));
        if textnlp_cloud::Cloud::is_elsewhere(api) {
            spec[REGION] = json!(api.region);
        }
        let created = get(document, table.created).and_then(Value::as_str);
        let created = created.and_then(|text| text.parse::<Timestamp>().ok());
        let created = created.and_then(|at| Timestamp::from_second(at.as_second()).ok());
        let mut outputs = Outputs::from([("id".to_owned(), json!(id)), ("name".to_owned(), json!(last(id)))]);
        for (name, member) in table.outputs {
            if let Some(value) = get(document, member) {
                outputs.insert((*name).to_owned(), value.clone());
            }
        }
        K::outputs(id, document, &mut outputs);
        let mut seen = ObservedObject::new(id, Spec::of(&spec), tags).created(created).state(K::state(document));
        seen.outputs = outputs;
        seen.zones = K::zones(document);
        Ok(seen)
    }

    fn tags(document: &Value) -> Tags {
        match K::TABLE.marks {
            Marks::Labels(member, _) => labels::decode(get(document, member).unwrap_or(&Value::Null)),
            Marks::Description(member, ..) => {
                labels::of_description(get(document, member).and_then(Value::as_str).unwrap_or_default())
            }
            Marks::Part => labels::decode(&document[TAGS_MEMBER]),
        }
    }

    async fn seen(api: &Api, id: &str, document: &Value) -> Result<ObservedObject<Spec>> {
        let mut seen = Self::observed(api, id, document)?;
        seen.foreign = K::foreign(api, id, document).await?;
        Ok(seen)
    }

    /// What became of a create that found its name taken.
    async fn taken(api: &Api, id: &str, op: &Operation, error: Error) -> Result<(String, Option<String>)> {
        let found = match K::fetch(api, id).await {
            Ok(found) => found,
            Err(read) if read.kind == ErrorKind::Denied => {
                return Err(error.hint("the name is another project's: give the environment or the site another name"));
            }
            Err(read) => return Err(read),
        };
        let Some(found) = found else {
            if K::TABLE.suffixed {
                // A failed create burns the name for a week (hashicorp/terraform-provider-google#6066).
                return Err(error.hint("run the same command again: the next operation has another name"));
            }
            // It was just created or deleted, and reads do not show that yet (hashicorp/terraform-provider-google#15042,
            // hashicorp/terraform-provider-google#7854, GoogleCloudPlatform/mlops-with-vertex-ai#26).
            return Err(Error { kind: ErrorKind::Conflict, refused: false, ..error });
        };
        let seen = Self::observed(api, id, &found)?;
        let is_own = tags::origin(&seen.tags).operation() == Some(&op.token);
        let is_part = matches!(K::TABLE.marks, Marks::Part);
        if is_own || is_part { Ok((id.to_owned(), None)) } else { Err(error) }
    }

    /// The document of an object with this spec, before what only reads tell. Secrets are references.
    pub(crate) fn body(spec: &Spec, tags: &Tags) -> Result<Value> {
        let table = K::TABLE;
        let mut document = json!({});
        match table.marks {
            Marks::Labels(member, _) => set(&mut document, member, labels::encode(tags)),
            Marks::Description(member, most, _) => {
                let resource = tags.get(tags::RESOURCE).map(String::as_str).unwrap_or_default();
                let text = labels::describe(tags, most)
                    .ok_or_else(|| invalid("create", resource, "its names are too long for a description"))?;
                set(&mut document, member, text.into());
            }
            Marks::Part => {}
        }
        for (member, text) in table.constants {
            set(&mut document, member, serde_json::from_str(text).unwrap_or_default());
        }
        for field in table.fields.iter().filter(|field| !field.member.is_empty()) {
            let value = spec.get(field.name).map(|value| field.write(value)).unwrap_or_default();
            if !value.is_null() {
                set(&mut document, field.member, value);
            }
        }
        Ok(document)
    }

    async fn document(api: &Api, op: &Operation, tags: &Tags, alternative: usize) -> Result<Value> {
        let mut document = Self::body(&op.spec, tags)?;
        for field in K::TABLE.fields.iter().filter(|field| matches!(field.form, Form::Secret)) {
            let Some(value) = op.spec.get(field.name) else { continue };
            let value = textnlp_cloud::secret(api.session.secrets.as_ref(), value).await?;
            if !value.is_null() {
                set(&mut document, field.member, value);
            }
        }
        K::prepare(api, &op.spec, &mut document, alternative).await?;
        Ok(document)
    }

    /// Changes one member.
    async fn patch(api: &Api, id: &str, member: &str, value: Value) -> Result<Option<String>> {
        let table = K::TABLE;
        let mut body = json!({});
        if let Update::Whole(layouts) = table.update {
            body = api.send(Call::get(table.service, id)).await?;
            // The answer may have the number of the project in place of its id.
            body["name"] = id.into();
            if let Some(members) = body.as_object_mut().filter(|_| layouts.contains(&member)) {
                members.retain(|name, _| !layouts.iter().any(|one| one.trim_start_matches('/') == name));
            }
        }
        set(&mut body, member, value);
        let mut call = Call::new(table.service, Method::PATCH, id);
        if table.service == Service::Storage {
            let mask = snake(member);
            return api.buckets().await?.update(id, body, &mask).await.map(|()| None);
        }
        match table.update {
            Update::Mask => call = call.query("updateMask", document::mask(member)),
            Update::Merge(carried) => {
                let read = api.send(Call::get(table.service, id)).await?;
                for member in carried {
                    if let Some(value) = get(&read, member) {
                        set(&mut body, member, value.clone());
                    }
                }
            }
            Update::Beside(wrapped) => body = json!({ wrapped: body, "updateMask": document::mask(member) }),
            Update::Whole(_) => {}
        }
        let answer = api.send(call.body(body)).await?;
        Ok(table.family.started(api, id, &answer))
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, op: &Operation) -> Result<Option<String>> {
        let (set, gone) = tags::change::<Api>(op, &seen.tags, &tags::in_spec(&op.spec));
        let (id, labels) = (&seen.id, labels::changed(&seen.tags, &set, &gone));
        match K::TABLE.marks {
            Marks::Labels(member, Labelling::Patch) => {
                let mut labels = labels;
                // A merge keeps the keys that it leaves out.
                if matches!(K::TABLE.update, Update::Merge(_)) {
                    for key in gone {
                        labels[key] = Value::Null;
                    }
                }
                Self::patch(api, id, member, labels).await
            }
            Marks::Labels(_, Labelling::Call(method, suffix, body)) => {
                let read =
                    K::fetch(api, id).await?.ok_or_else(|| Error::new(ErrorKind::NotFound, "set labels of", id))?;
                let call = Call::new(K::TABLE.service, method.into(), format!("{id}{suffix}"));
                let answer = api.send(call.saying("set labels of", last(id)).body(body(labels, &read))).await?;
                Ok(K::TABLE.family.started(api, id, &answer))
            }
            Marks::Description(member, most, true) => {
                let mut tags = seen.tags.clone();
                tags.extend(set);
                let text = labels::describe(&tags, most);
                let text =
                    text.ok_or_else(|| invalid("set tags of", id, "its names are too long for a description"))?;
                Self::patch(api, id, member, text.into()).await
            }
            Marks::Description(..) => {
                let error =
                    invalid("set tags of", id, "Google Cloud does not change the description that has its tags");
                Err(error.hint("name it as an existing object, or delete it so that `up` creates it"))
            }
            Marks::Part => Ok(None),
        }
    }
}

#[async_trait]
impl<K: RestKind> AnyResource<Api> for Rest<K> {
    fn in_place(&self) -> &'static [&'static str] {
        K::TABLE.in_place
    }

    /// Compute Engine does, and its objects have names besides.
    fn has_client_token(&self) -> bool {
        false
    }

    fn deletes_pending(&self) -> bool {
        K::TABLE.deletes_pending
    }

    fn carries_tags(&self) -> bool {
        !matches!(K::TABLE.marks, Marks::Part)
    }

    fn is_retained(&self) -> bool {
        K::TABLE.retained
    }

    async fn read(&self, api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        match K::fetch(api, id).await? {
            Some(document) => Self::seen(api, id, &document).await.map(Some),
            None => Ok(None),
        }
    }

    async fn list(&self, api: &Api, filter: &Filter<Api>) -> Result<Vec<ObservedObject<Spec>>> {
        if !self.carries_tags() {
            return Ok(Vec::new());
        }
        let mut all = Vec::new();
        for (id, document) in K::fetch_all(api).await? {
            if capture(K::TABLE.path, &id).is_none() {
                continue;
            }
            let mut seen = Self::observed(api, &id, &document)?;
            if filter.matches(&seen.tags) {
                seen.foreign = K::foreign(api, &id, &document).await?;
                all.push(seen);
            }
        }
        Ok(all)
    }

    fn id(&self, wanted: &Spec) -> Option<String> {
        let table = K::TABLE;
        if table.suffixed || table.assigned {
            return None;
        }
        fill(table.path, |name| wanted.get(name)?.as_str().map(str::to_owned))
    }

    async fn begin(&self, api: &Api, op: &Operation, chosen: &Candidate) -> Result<(String, Option<String>)> {
        let table = K::TABLE;
        let value = |name: &str| op.spec.get(name)?.as_str().map(str::to_owned);
        let mut name = value("name").unwrap_or_default();
        if table.suffixed {
            name = suffixed(&name, op.token.as_str());
        }
        let collection = fill(table.collection, value);
        let id = fill(table.path, |part| if part == "name" { Some(name.clone()) } else { value(part) });
        let (Some(collection), Some(id)) = (collection, id) else {
            return Err(invalid("create", op.resource.as_str(), "its spec lacks a part of its path"));
        };
        let tags = tags::of_new::<Api>(op, &tags::in_spec(&op.spec));
        let document = Self::document(api, op, &tags, chosen.first()).await?;
        if table.assigned {
            let call = Call::post(table.service, collection.clone(), document).saying("create", name);
            let answer = api.send(call).await?;
            // The answer may have the number of the project in place of its id.
            let name = last(answer["name"].as_str().unwrap_or_default());
            return Ok((format!("{collection}/{name}"), None));
        }
        let token = op.token.as_str().to_owned();
        let new = New { id: id.clone(), name, collection, document, token };
        match K::send(api, new).await {
            Ok(operation) => Ok((id, operation)),
            Err(error) if error.kind == ErrorKind::Exists => Self::taken(api, &id, op, error).await,
            Err(error) => Err(error),
        }
    }

    async fn start(
        &self,
        api: &Api,
        seen: &ObservedObject<Spec>,
        op: &Operation,
        field: &str,
    ) -> Result<Option<String>> {
        if field == TAGS {
            return Self::tag(api, seen, op).await;
        }
        let wanted = op.spec.get(field).cloned().unwrap_or_default();
        let id = seen.id.as_str();
        match K::TABLE.field(field).map(|row| (row, row.change)) {
            Some((row, Change::Patch)) => Self::patch(api, id, row.member, row.write(&wanted)).await,
            Some((_, Change::Call(method, suffix, body))) => {
                let call = Call::new(K::TABLE.service, method.into(), format!("{id}{suffix}"));
                let answer = api.send(call.saying("change", last(id)).body(body(&wanted))).await?;
                Ok(K::TABLE.family.started(api, id, &answer))
            }
            _ => K::put(api, id, &wanted, field).await,
        }
    }

    async fn change(&self, api: &Api, id: &str, change: &str) -> Result<State> {
        K::change(api, id, change).await
    }

    async fn fail_over(&self, api: &Api, seen: &ObservedObject<Spec>, _op: &Operation) -> Result<Option<String>> {
        K::fail_over(api, &seen.id).await
    }

    fn fits(&self, field: &str, wanted: Option<&Value>, seen: Option<&Value>) -> bool {
        if same(wanted, seen) {
            return true;
        }
        let (Some(wanted), Some(seen)) = (wanted, seen) else { return false };
        (self.is_hidden(field) && seen.is_null()) || K::fits(field, wanted, seen)
    }

    fn is_hidden(&self, field: &str) -> bool {
        K::TABLE.field(field).is_some_and(|row| matches!(row.form, Form::Secret))
    }

    fn alternatives(&self, wanted: &Spec) -> Vec<String> {
        K::alternatives(wanted)
    }

    fn tried(&self, wanted: &Spec, seen: &Spec) -> Vec<usize> {
        K::tried(wanted, seen)
    }

    async fn choose(&self, api: &Api, wanted: &Spec, rest: &[usize]) -> Result<Vec<Candidate>> {
        K::choose(api, wanted, rest).await
    }

    async fn delete(&self, api: &Api, seen: &ObservedObject<Spec>, op: &Operation) -> Result<Option<String>> {
        if op.verb == Verb::Delete && K::TABLE.retained {
            return Ok(None);
        }
        K::end(api, seen).await
    }

    fn declare(&self, api: Option<&Api>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        declare::declarations::<K>(api, request)
    }

    /// The place of each field in a request, empty where none or no attribute has it.
    fn example(&self) -> Value {
        let table = K::TABLE;
        let is_lost = |member: &str| table.terraform.moved.contains(&(member, ""));
        let fields = table.fields.iter().map(|field| {
            let member = if is_lost(field.member) { "" } else { field.member };
            (field.name.to_owned(), json!(member))
        });
        Value::Object(fields.collect())
    }

    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        let table = K::TABLE;
        let value = |name: &str| wanted.spec.get(name)?.as_str().map(str::to_owned);
        // There is no operation whose token could end the name.
        let named = |name: String| if table.suffixed { suffixed(&name, &hash(&lineage.to_string())) } else { name };
        let part = |name: &str| value(name).map(|value| if name == "name" { named(value) } else { value });
        let id = if table.assigned { Placeholder::of(wanted, "id").to_string() } else { fill(table.path, part)? };
        let mut document = Self::body(&wanted.spec, &Tags::new()).unwrap_or_default();
        // The address of an account follows from its name.
        document["email"] = json!(last(&id));
        let mut outputs = Outputs::new();
        K::outputs(&id, &document, &mut outputs);
        outputs.retain(|_, value| !value.is_null());
        for (output, _) in table.terraform.outputs {
            let placeholder = json!(Placeholder::of(wanted, output).to_string());
            outputs.entry((*output).to_owned()).or_insert(placeholder);
        }
        outputs.insert("id".to_owned(), json!(id));
        if !table.assigned {
            outputs.insert("name".to_owned(), json!(last(&id)));
        }
        Some(PlannedObject { cloud_id: CloudId::new(&id).ok()?, outputs, is_optional: false })
    }
}

/// The document of a part with what it has of its parent's tags.
pub(crate) fn part_of(parent: &Tags, mut document: Value) -> Value {
    let is_inherited = |key: &str| [LINEAGE, ENVIRONMENT].contains(&key);
    let tags = parent.iter().filter(|(key, _)| is_inherited(key)).map(|(key, value)| (key.clone(), value.clone()));
    document[TAGS_MEMBER] = labels::encode(&tags.collect());
    document
}

/// A member in the names of a message: `/softDeletePolicy` is `soft_delete_policy`.
pub(crate) fn snake(pointer: &str) -> String {
    let mut out = String::new();
    for c in document::mask(pointer).chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

pub(crate) fn invalid(action: &str, subject: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, action, subject).because(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_have_the_forms_of_their_documents() {
        let document =
            json!({ "network": "https://www.googleapis.com/compute/v1/projects/p/global/networks/n", "size": "20" });
        assert_eq!(Field::link("network", "/network").read(&document), json!("projects/p/global/networks/n"));
        let size = Field { form: Form::Integer, ..Field::plain("size", "/size") };
        assert_eq!(size.read(&document), json!(20));
        assert_eq!(size.write(&json!(30)), json!("30"));
        assert_eq!(Field::flag("on", "/on").read(&document), json!(false));
        assert_eq!(snake("/softDeletePolicy"), "soft_delete_policy");
        assert_eq!(request_id("0123456789abcdef0123456789abcdef"), "01234567-89ab-cdef-0123-456789abcdef");
    }
}
