//! A kind as a row: the path, the API version, the members and the states of its documents. [`Rest`] does the rest, the same for all
//! kinds: Azure Resource Manager creates and replaces by `PUT`, and reads, lists, patches and deletes alike everywhere.

use std::marker::PhantomData;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{capture, fill, get, last, set};
use textnlp_cloud::names::{hash, suffixed, unsuffixed};
use textnlp_cloud::tags::{self, Tags};
use textnlp_cloud::{AnyResource, Candidate, Filter, ObservedObject, REGION, State, TAGS, same};
use textnlp_provider::{
    CloudId, Declaration, Declare, Error, ErrorKind, Foreign, Lineage, Operation, Outputs, Placeholder, PlannedObject,
    Result, Spec, Wanted, Zones,
};

use crate::api::{Api, Call, Reply, tags_at};
use crate::declare;
use crate::operation::Pending;

/// How often a read that finds nothing is repeated: an answer of a replica that lags is no proof
/// (hashicorp/terraform-provider-azurerm#18268 (workaround merged in #25758), hashicorp/terraform-provider-azurerm#32331 (open PR),
/// Azure/terraform-provider-azapi#587).
pub(crate) const SECOND_READS: usize = 2;
/// Members of an answer that no request has.
const READ_ONLY: [&str; 6] = ["id", "name", "type", "etag", "eTag", "systemData"];
/// The place of the state in most documents.
const STATE: &str = "/properties/provisioningState";

/// What the documents of a kind are like.
pub(crate) struct Table {
    /// The type of its resources: `Microsoft.Network/virtualNetworks`.
    pub(crate) arm: &'static str,
    pub(crate) version: &'static str,
    /// The id. A placeholder is a member of the spec.
    pub(crate) path: &'static str,
    /// Members that a new object has whatever its spec says: their places, and their values as JSON.
    pub(crate) constants: &'static [(&'static str, &'static str)],
    pub(crate) fields: &'static [Field],
    /// The fields that change in place, in the order in which they do.
    pub(crate) in_place: &'static [&'static str],
    pub(crate) update: Update,
    pub(crate) marks: Marks,
    /// Whether a change has the etag in its document instead of a header.
    pub(crate) etag_in_body: bool,
    /// The member with the state.
    pub(crate) state: &'static str,
    /// Outputs besides `id` and `name`, by their members.
    pub(crate) outputs: &'static [(&'static str, &'static str)],
    /// Whether the name ends with a part of the operation's token, because the name of a deleted object is taken for a while.
    pub(crate) suffixed: bool,
    /// Whether an object stays when its resource is deleted: it ends with its parent.
    pub(crate) retained: bool,
    /// Why no other tool can declare an object. Nothing waits for it there.
    pub(crate) undeclared: Option<&'static str>,
    /// What no declaration has, and how to do it: see [`Declaration::without`].
    pub(crate) without: &'static str,
    /// The attributes of a declaration that other programs change.
    pub(crate) ignored: &'static [&'static str],
    /// See [`Declaration::settings`].
    pub(crate) settings: &'static [(&'static str, &'static str)],
}

impl Table {
    /// A table with the usual values.
    pub(crate) const USUAL: Self = Self {
        arm: "",
        version: "",
        path: "",
        constants: &[],
        fields: &[],
        in_place: &[],
        update: Update::Put,
        marks: Marks::Tags,
        etag_in_body: false,
        state: STATE,
        outputs: &[],
        suffixed: false,
        retained: false,
        undeclared: None,
        without: "",
        ignored: &[],
        settings: &[],
    };

    pub(crate) fn field(&self, name: &str) -> Option<&'static Field> {
        self.fields.iter().find(|field| field.name == name)
    }

    /// The fields whose members in a request are secrets.
    pub(crate) fn secrets(&self) -> impl Iterator<Item = &'static Field> {
        self.fields.iter().filter(|field| matches!(field.form, Form::Secret) && !field.member.is_empty())
    }
}

/// How a member is changed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Update {
    /// `PUT` of the whole document as it was read just before: what it leaves out is lost or refused (pulumi/pulumi-azure-native#74,
    /// pulumi/pulumi-azure-native#959, pulumi/pulumi-azure-native#579).
    Put,
    /// `PATCH` of the member.
    Patch,
}

/// Where the tags of an object are.
#[derive(Clone, Copy)]
pub(crate) enum Marks {
    /// In `tags`, changed by `PATCH`, and shown in the list of all resources.
    Tags,
    /// In a member of its properties, changed as any member.
    Member(&'static str),
    /// In such a member by code: its place, its value for tags, and the tags in it. No list shows them.
    Written(&'static str, fn(&Tags) -> Value, fn(&Value) -> Tags),
    /// In such a member that only the code of the kind reads and writes, without the tags of a spec: they are beside the object.
    Beside(&'static str),
    /// Nowhere: whose a part is, follows from its parent, which this deployment created or verified.
    Part,
}

/// One attribute.
pub(crate) struct Field {
    /// Its name in a spec.
    pub(crate) name: &'static str,
    /// Its place in a document, as a JSON pointer; empty if no request has it.
    pub(crate) member: &'static str,
    pub(crate) form: Form,
    /// What it is where an answer leaves it out, as JSON.
    pub(crate) absent: &'static str,
    /// Whether it changes in place as the table says.
    pub(crate) changes: bool,
}

/// The form of a member in a document.
#[derive(Clone, Copy)]
pub(crate) enum Form {
    /// As in the spec.
    Plain,
    /// The value of a secret, which no answer has. Without a place, another value is a reason for [`RestKind::put`] only.
    Secret,
    /// By code: the member of a request for a value, and the value in a whole document.
    Code(fn(&Value) -> Value, fn(&Value) -> Value),
}

impl Field {
    pub(crate) const fn plain(name: &'static str, member: &'static str) -> Self {
        Self { name, member, form: Form::Plain, absent: "null", changes: false }
    }

    /// A value that no request has.
    pub(crate) const fn seen(name: &'static str, read: fn(&Value) -> Value) -> Self {
        Self::code(name, "", |_| Value::Null, read)
    }

    pub(crate) const fn code(
        name: &'static str,
        member: &'static str,
        write: fn(&Value) -> Value,
        read: fn(&Value) -> Value,
    ) -> Self {
        Self { form: Form::Code(write, read), ..Self::plain(name, member) }
    }

    pub(crate) const fn changed(self) -> Self {
        Self { changes: true, ..self }
    }

    /// Its value in a document.
    pub(crate) fn read(&self, document: &Value) -> Value {
        let found = match self.form {
            Form::Code(_, read) => return read(document),
            Form::Secret => None,
            Form::Plain => get(document, self.member).cloned(),
        };
        found.unwrap_or_else(|| serde_json::from_str(self.absent).unwrap_or_default())
    }

    /// Its member in a request.
    pub(crate) fn write(&self, value: &Value) -> Value {
        match self.form {
            Form::Code(write, _) => write(value),
            _ => value.clone(),
        }
    }
}

/// The region of an object: answers have its name or its title.
pub(crate) const LOCATION: Field = Field::code("location", "/location", Value::clone, |one| {
    let text = one["location"].as_str().unwrap_or_default().to_ascii_lowercase();
    text.replace(' ', "").into()
});

/// A kind: its table, and code where its API is odd.
#[async_trait]
pub(crate) trait RestKind: Send + Sync + 'static {
    const TABLE: &'static Table;

    /// The document of an object.
    async fn fetch(api: &Api, id: &str) -> Result<Option<Value>> {
        api.find(Call::get(id, Self::TABLE.version)).await
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
    async fn fail_over(_api: &Api, id: &str) -> Result<Option<Pending>> {
        Err(invalid("fail over", id, "it has no standby"))
    }

    /// Objects inside it that no operation created.
    async fn foreign(_api: &Api, _id: &str, _document: &Value) -> Result<Vec<Foreign>> {
        Ok(Vec::new())
    }

    /// The id of an object with this spec; `None` where it does not follow from its name.
    fn id(spec: &Spec) -> Option<String> {
        fill(Self::TABLE.path, |name| spec.get(name)?.as_str().map(str::to_owned))
    }

    /// The id that a new object gets from another tool.
    fn planned_id(wanted: &Wanted, lineage: Lineage) -> Option<String> {
        let id = Self::id(&wanted.spec)?;
        // There is no operation whose token could end the name.
        Some(if Self::TABLE.suffixed { suffixed(&id, &hash(&lineage.to_string())) } else { id })
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

    /// Completes the document of an object with what follows from its spec.
    fn complete(_spec: &Spec, _document: &mut Value) {}

    /// Completes the declaration of an object with what its create decided by reads: its spec is as observed.
    fn declared(_api: Option<&Api>, _request: &Declare<'_>, _document: &mut Value) -> Result<(), String> {
        Ok(())
    }

    /// The objects of Resource Manager that are a part of it, and that no other resource is.
    fn parts(_spec: &Spec) -> Vec<Part> {
        Vec::new()
    }

    /// Completes the document of a new object, by reads only.
    async fn prepare(_api: &Api, _spec: &Spec, _document: &mut Value, _chosen: &Candidate) -> Result<()> {
        Ok(())
    }

    /// Sends a new object.
    async fn send(api: &Api, id: &str, document: Value) -> Result<Reply> {
        api.send(Call::new(Method::PUT, id, Self::TABLE.version).body(document)).await
    }

    /// The id of an object that makes a new one needless.
    async fn existing(_api: &Api, _id: &str, _spec: &Spec) -> Result<Option<String>> {
        Ok(None)
    }

    /// Changes a field whose row has no change.
    async fn put(_api: &Api, id: &str, _wanted: &Value, field: &str) -> Result<Option<Pending>> {
        Err(invalid("change", id, &format!("`{field}` does not change in place")))
    }

    /// How a change goes on that [`RestKind::put`] or [`RestKind::send`] began.
    async fn change(api: &Api, change: &str) -> Result<State> {
        Pending::state(api, change).await
    }

    /// Brings an object closer to its end.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<Pending>> {
        Ok(api.send(Call::new(Method::DELETE, &seen.id, Self::TABLE.version)).await?.pending)
    }
}

/// An object of Resource Manager that is a part of another.
pub(crate) struct Part {
    /// Its type.
    pub(crate) arm: &'static str,
    /// What its id has after that of the whole.
    pub(crate) end: &'static str,
    pub(crate) document: Value,
}

/// The state that a document shows. A word that is not known means that something goes on (hashicorp/go-azure-sdk#1135).
pub(crate) fn state(table: &Table, document: &Value) -> State {
    let Some(said) = get(document, table.state).and_then(Value::as_str) else { return State::Ready };
    match said.to_ascii_lowercase().as_str() {
        "succeeded" | "ready" | "active" | "registered" => State::Ready,
        "failed" | "canceled" | "cancelled" => {
            State::Failed { code: String::new(), why: format!("its state is {said}") }
        }
        "deleting" | "dropping" | "deprovisioning" => State::Deleting,
        word => State::Pending(word.to_owned()),
    }
}

/// Carries the type of a kind.
pub(crate) struct Rest<K>(PhantomData<fn() -> K>);

impl<K: RestKind> Rest<K> {
    /// The kind of a row.
    pub(crate) const fn kind() -> Self {
        Self(PhantomData)
    }

    /// The ids of the parts of an object, which end with the last word of their type: `agentPools`.
    async fn within(api: &Api, parent: &str) -> Result<Vec<String>> {
        let collection = K::TABLE.arm.rsplit('/').next().unwrap_or_default();
        let all = api.list(Call::get(format!("{parent}/{collection}"), K::TABLE.version)).await?;
        Ok(all.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect())
    }

    fn observed(api: &Api, id: &str, document: &Value) -> Result<ObservedObject<Spec>> {
        let table = K::TABLE;
        let lower = (table.path.to_ascii_lowercase(), id.to_ascii_lowercase());
        // Azure writes ids in any case (Azure/azure-rest-api-specs#24337).
        let values = capture(table.path, id).or_else(|| capture(&lower.0, &lower.1));
        let values = values.ok_or_else(|| invalid("read", id, "it is no id of this kind"))?;
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
        let created = get(document, "/systemData/createdAt").and_then(Value::as_str);
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
            Marks::Tags => tags_at(document, "/tags"),
            Marks::Member(member) | Marks::Beside(member) => tags_at(document, member),
            Marks::Written(member, _, read) => get(document, member).map(read).unwrap_or_default(),
            Marks::Part => Tags::new(),
        }
    }

    /// What became of a create that found its name taken.
    async fn taken(api: &Api, id: &str, op: &Operation, error: Error) -> Result<(String, Option<String>)> {
        if let Some(existing) = K::existing(api, id, &op.spec).await? {
            return Ok((existing, None));
        }
        let Some(found) = K::fetch(api, id).await? else {
            if K::TABLE.suffixed {
                return Err(error.hint("run the same command again: the next operation has another name"));
            }
            // It was just created or deleted, and reads do not show that yet; a name may live on for a while (hashicorp/terraform#11485).
            return Err(Error { kind: ErrorKind::Conflict, refused: false, ..error });
        };
        let is_own = tags::origin(&Self::tags(&found)).operation() == Some(&op.token);
        if is_own || is_part::<K>() { Ok((id.to_owned(), None)) } else { Err(error) }
    }

    /// The document of an object with this spec, before what only reads tell. Secrets are references.
    pub(crate) fn body(spec: &Spec, tags: &Tags) -> Value {
        let table = K::TABLE;
        let mut document = json!({});
        match table.marks {
            Marks::Tags => document[TAGS] = json!(tags),
            Marks::Member(member) | Marks::Beside(member) => set(&mut document, member, json!(tags)),
            Marks::Written(member, write, _) => set(&mut document, member, write(tags)),
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
        K::complete(spec, &mut document);
        document
    }

    async fn document(api: &Api, op: &Operation, chosen: &Candidate) -> Result<Value> {
        let tags = tags::of_new::<Api>(op, &tags::in_spec(&op.spec));
        let mut document = Self::body(&op.spec, &tags);
        for field in K::TABLE.secrets() {
            let Some(value) = op.spec.get(field.name) else { continue };
            let value = textnlp_cloud::secret(api.session.secrets.as_ref(), value).await?;
            if !value.is_null() {
                set(&mut document, field.member, value);
            }
        }
        K::prepare(api, &op.spec, &mut document, chosen).await?;
        Ok(document)
    }

    /// Changes one member.
    pub(crate) async fn replace(api: &Api, id: &str, member: &str, value: Value) -> Result<Option<Pending>> {
        let table = K::TABLE;
        if table.update == Update::Patch {
            let mut body = json!({});
            set(&mut body, member, value);
            return Ok(api.send(Call::new(Method::PATCH, id, table.version).body(body)).await?.pending);
        }
        rewrite::<K>(api, id, |document| set(document, member, value)).await
    }

    async fn tag(api: &Api, seen: &ObservedObject<Spec>, op: &Operation) -> Result<Option<Pending>> {
        let (set, gone) = tags::change::<Api>(op, &seen.tags, &tags::in_spec(&op.spec));
        let mut tags = seen.tags.clone();
        tags.extend(set);
        tags.retain(|key, _| !gone.contains(key));
        match K::TABLE.marks {
            Marks::Tags => {
                let call = Call::new(Method::PATCH, &seen.id, K::TABLE.version).body(json!({ TAGS: tags }));
                Ok(api.send(call.saying("set tags of", last(&seen.id))).await?.pending)
            }
            Marks::Member(member) => Self::replace(api, &seen.id, member, json!(tags)).await,
            Marks::Written(member, write, _) => Self::replace(api, &seen.id, member, write(&tags)).await,
            Marks::Beside(_) | Marks::Part => Ok(None),
        }
    }
}

/// Changes the whole document of an object, as it is now; a change by another client in the meantime is a conflict.
pub(crate) async fn rewrite<K: RestKind>(
    api: &Api,
    id: &str,
    edit: impl FnOnce(&mut Value) + Send,
) -> Result<Option<Pending>> {
    let version = K::TABLE.version;
    let mut document = api.send(Call::get(id, version)).await?.body;
    // That of a pool is among its properties.
    let etag = ["/etag", "/eTag", "/properties/eTag"].iter().find_map(|place| document.pointer(place)?.as_str());
    let mut etag = etag.map(str::to_owned);
    if let Value::Object(members) = &mut document {
        members.retain(|name, _| !READ_ONLY.contains(&name.as_str()));
    }
    if let Some(properties) = document["properties"].as_object_mut() {
        properties.remove("provisioningState");
        properties.remove("eTag");
    }
    if K::TABLE.etag_in_body {
        document["eTag"] = json!(etag.take());
    }
    edit(&mut document);
    let call = Call::new(Method::PUT, id, version).body(document).etag(etag.as_deref());
    Ok(api.send(call.saying("change", last(id))).await?.pending)
}

/// A call that needs an object which reads do not show yet: it is repeated (hashicorp/terraform-provider-azurerm#18268 (workaround merged
/// in #25758), Azure/Azure-Verified-Modules#2673).
fn not_yet(error: Error) -> Error {
    match error.kind {
        ErrorKind::NotFound => Error { kind: ErrorKind::Conflict, refused: false, ..error },
        _ => error,
    }
}

/// Whether objects of a kind carry no tags.
fn is_part<K: RestKind>() -> bool {
    matches!(K::TABLE.marks, Marks::Part)
}

fn address(pending: Option<Pending>) -> Option<String> {
    pending.map(|one| one.0)
}

#[async_trait]
impl<K: RestKind> AnyResource<Api> for Rest<K> {
    fn in_place(&self) -> &'static [&'static str] {
        K::TABLE.in_place
    }

    fn has_client_token(&self) -> bool {
        false
    }

    fn deletes_pending(&self) -> bool {
        false
    }

    fn carries_tags(&self) -> bool {
        !matches!(K::TABLE.marks, Marks::Beside(_) | Marks::Part)
    }

    fn is_retained(&self) -> bool {
        K::TABLE.retained
    }

    async fn read(&self, api: &Api, id: &str) -> Result<Option<ObservedObject<Spec>>> {
        for _ in 0..=SECOND_READS {
            if let Some(document) = K::fetch(api, id).await? {
                let mut seen = Self::observed(api, id, &document)?;
                seen.foreign = K::foreign(api, id, &document).await?;
                return Ok(Some(seen));
            }
        }
        Ok(None)
    }

    async fn list(&self, api: &Api, filter: &Filter<Api>) -> Result<Vec<ObservedObject<Spec>>> {
        let (arm, is_within) = match K::TABLE.marks {
            Marks::Tags => (K::TABLE.arm, false),
            // The list of all resources has the parents only.
            Marks::Member(_) => (K::TABLE.arm.rsplit_once('/').map_or(K::TABLE.arm, |(parent, _)| parent), true),
            Marks::Written(..) | Marks::Beside(_) | Marks::Part => return Ok(Vec::new()),
        };
        let mut own = Vec::new();
        let mut all = Vec::new();
        for one in api.tagged(filter, &mut own).await? {
            let is_kind = one["type"].as_str().is_some_and(|kind| kind.eq_ignore_ascii_case(arm));
            let Some(id) = one["id"].as_str().filter(|_| is_kind) else { continue };
            let ids = if is_within { Self::within(api, &canonical(arm, id)).await? } else { vec![id.to_owned()] };
            for id in ids {
                // The list lags and has no properties: point reads decide (cloudfoundry/bosh-azure-cpi-release#765, Azure/ARO-HCP#2585).
                let found = self.read(api, &canonical(K::TABLE.arm, &id)).await?;
                // A part that its parent was made with has the tags of that: it is no object of its own.
                let is_own = |seen: &ObservedObject<Spec>| {
                    !is_within
                        || seen.tags.get(tags::RESOURCE).map(String::as_str) != one["tags"][tags::RESOURCE].as_str()
                };
                all.extend(found.filter(|seen| is_own(seen) && filter.matches(&seen.tags)));
            }
        }
        Ok(all)
    }

    fn id(&self, wanted: &Spec) -> Option<String> {
        if K::TABLE.suffixed { None } else { K::id(wanted) }
    }

    async fn begin(&self, api: &Api, op: &Operation, chosen: &Candidate) -> Result<(String, Option<String>)> {
        let id = K::id(&op.spec).map(|id| if K::TABLE.suffixed { suffixed(&id, op.token.as_str()) } else { id });
        let Some(id) = id else {
            return Err(invalid("create", op.resource.as_str(), "its spec lacks a part of its path"));
        };
        let document = Self::document(api, op, chosen).await.map_err(not_yet)?;
        match K::send(api, &id, document).await.map_err(not_yet) {
            Ok(reply) => Ok((id, address(reply.pending))),
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
            return Self::tag(api, seen, op).await.map_err(not_yet).map(address);
        }
        let wanted = op.spec.get(field).cloned().unwrap_or_default();
        let started = match K::TABLE.field(field).filter(|row| row.changes) {
            Some(row) => {
                let value = match row.form {
                    Form::Secret => textnlp_cloud::secret(api.session.secrets.as_ref(), &wanted).await?,
                    _ => row.write(&wanted),
                };
                Self::replace(api, &seen.id, row.member, value).await
            }
            None => K::put(api, &seen.id, &wanted, field).await,
        };
        started.map_err(not_yet).map(address)
    }

    async fn change(&self, api: &Api, _id: &str, change: &str) -> Result<State> {
        K::change(api, change).await
    }

    async fn fail_over(&self, api: &Api, seen: &ObservedObject<Spec>, _op: &Operation) -> Result<Option<String>> {
        K::fail_over(api, &seen.id).await.map_err(not_yet).map(address)
    }

    fn fits(&self, field: &str, wanted: Option<&Value>, seen: Option<&Value>) -> bool {
        if same(wanted, seen) {
            return true;
        }
        let (Some(wanted), Some(seen)) = (wanted, seen) else { return false };
        (self.is_hidden(field) && seen.is_null()) || is_same_id(wanted, seen) || K::fits(field, wanted, seen)
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

    async fn delete(&self, api: &Api, seen: &ObservedObject<Spec>, _op: &Operation) -> Result<Option<String>> {
        K::end(api, seen).await.map(address)
    }

    fn declare(&self, api: Option<&Api>, request: &Declare<'_>) -> Option<Result<Vec<Declaration>, String>> {
        declare::declarations::<K>(api, request)
    }

    /// The place of each field in a request, empty where none has it.
    fn example(&self) -> Value {
        Value::Object(K::TABLE.fields.iter().map(|field| (field.name.to_owned(), json!(field.member))).collect())
    }

    fn planned(&self, wanted: &Wanted, lineage: Lineage) -> Option<PlannedObject> {
        let id = K::planned_id(wanted, lineage)?;
        let mut outputs = Outputs::new();
        K::outputs(&id, &Self::body(&wanted.spec, &Tags::new()), &mut outputs);
        outputs.retain(|_, value| !value.is_null());
        for (output, _) in K::TABLE.outputs {
            let placeholder = json!(Placeholder::of(wanted, output).to_string());
            outputs.entry((*output).to_owned()).or_insert(placeholder);
        }
        outputs.insert("id".to_owned(), json!(id));
        outputs.insert("name".to_owned(), json!(last(&id)));
        let is_optional = K::TABLE.undeclared.is_some();
        Some(PlannedObject { cloud_id: CloudId::new(&id).ok()?, outputs, is_optional })
    }
}

/// Whether two texts are the same id: their case says nothing (Azure/azure-rest-api-specs#24337).
fn is_same_id(wanted: &Value, seen: &Value) -> bool {
    let (Some(wanted), Some(seen)) = (wanted.as_str(), seen.as_str()) else { return false };
    wanted.starts_with("/subscriptions/") && wanted.eq_ignore_ascii_case(seen)
}

/// An id of a list in the form that this program gives it: the words of its type as documented, and names in lower case.
pub(crate) fn canonical(arm: &str, id: &str) -> String {
    let known = |part: &str| {
        let words = ["subscriptions", "resourceGroups", "providers"].into_iter().chain(arm.split('/'));
        words.into_iter().find(|word| word.eq_ignore_ascii_case(part)).map(str::to_owned)
    };
    let parts = id.split('/').map(|part| known(part).unwrap_or_else(|| part.to_ascii_lowercase()));
    parts.collect::<Vec<_>>().join("/")
}

pub(crate) fn invalid(action: &str, subject: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, action, subject).because(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_in_any_case() {
        let found = "/subscriptions/S/resourcegroups/G/providers/microsoft.network/virtualnetworks/N";
        let id = canonical("Microsoft.Network/virtualNetworks", found);
        assert_eq!(id, "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/virtualNetworks/n");
        assert!(is_same_id(&json!(id), &json!(found)) && !is_same_id(&json!("a"), &json!("A")));
        assert_eq!(LOCATION.read(&json!({ "location": "West Europe" })), json!("westeurope"));
    }

    #[test]
    fn unknown_states_go_on() {
        let of = |said: &str| state(&Table::USUAL, &json!({ "properties": { "provisioningState": said } }));
        assert_eq!((of("Succeeded"), of("Deleting")), (State::Ready, State::Deleting));
        assert_eq!(of("Restarting"), State::Pending("restarting".to_owned()));
        assert!(matches!(of("Failed"), State::Failed { .. }));
        assert_eq!(state(&Table::USUAL, &json!({})), State::Ready);
    }
}
