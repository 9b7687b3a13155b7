//! What the resources of EC2 have in common: they are described by ids and filters, have states and tags, and appear late.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{Call, Fault, Scope, Stages, World, passes};

/// One kind of resource, as the model names its parts.
#[derive(Debug)]
pub struct Collection {
    /// The type in ARNs and `TagSpecifications`: `subnet`.
    pub name: &'static str,
    /// The first part of an id: `subnet`.
    pub prefix: &'static str,
    /// The member with the id: `SubnetId`.
    pub id: &'static str,
    /// The input's member with ids: `SubnetIds`.
    pub ids: &'static str,
    /// The output's member with resources: `Subnets`.
    pub list: &'static str,
    /// The input's member with filters.
    pub filter: &'static str,
    /// The member with the state; empty if there is none.
    pub state: &'static str,
    /// The member with the tags.
    pub tags: &'static str,
    /// The error code for an unknown id.
    pub unknown: &'static str,
    /// The filters besides those by tag, each with the path of its values.
    pub filters: &'static [(&'static str, &'static str)],
}

/// A resource.
#[derive(Clone, Debug)]
pub struct Item {
    /// Its kind.
    pub collection: &'static Collection,
    /// Its members by the names of the model, without its id, its state and its tags.
    pub value: Value,
    /// Its state.
    pub state: Stages,
    /// From when on descriptions show it.
    pub visible: Timestamp,
}

/// What EC2 holds in a region.
#[derive(Debug, Default)]
pub struct Ec2 {
    items: BTreeMap<String, Item>,
    /// Addresses whose NAT gateway ended, and until when they are not released.
    pub(super) held: BTreeMap<String, Timestamp>,
}

impl Ec2 {
    /// A resource by its id.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<&Item> {
        self.items.get(id)
    }

    /// The resources of a kind, with their ids.
    pub fn all<'a>(&'a self, collection: &'static Collection) -> impl Iterator<Item = (&'a str, &'a Item)> + 'a {
        let is_one = |item: &Item| item.collection.name == collection.name;
        self.items.iter().filter(move |(_, item)| is_one(item)).map(|(id, item)| (id.as_str(), item))
    }

    pub(super) fn change(&mut self, id: &str) -> Option<&mut Value> {
        self.items.get_mut(id).map(|item| &mut item.value)
    }

    pub(super) fn set_state(&mut self, id: &str, state: Stages) {
        if let Some(item) = self.items.get_mut(id) {
            item.state = state;
        }
    }
}

/// What EC2 holds in a place.
pub(super) fn state<'a>(world: &'a mut World, call: &Call) -> &'a mut Ec2 {
    world.state(&call.scope())
}

/// A copy of a resource that exists.
pub(super) fn find(world: &mut World, call: &Call, collection: &Collection, id: &str) -> Result<Item, Fault> {
    let found = state(world, call).get(id).filter(|item| item.collection.name == collection.name).cloned();
    found.ok_or_else(|| unknown(collection, id))
}

pub(super) fn unknown(collection: &Collection, id: &str) -> Fault {
    Fault::new(collection.unknown, format!("The {} ID '{id}' does not exist", collection.name))
}

/// The ARN of a resource.
pub(super) fn arn_in(scope: &Scope, collection: &Collection, id: &str) -> String {
    format!("arn:aws:ec2:{}:{}:{}/{id}", scope.region, scope.account, collection.name)
}

/// Adds a resource and returns what a create answers.
pub(super) fn insert(
    world: &mut World,
    call: &Call,
    collection: &'static Collection,
    value: Value,
    state: Stages,
    tags: Vec<(String, String)>,
) -> String {
    let id = call.id(collection.prefix);
    place(world, &call.scope(), (&id, collection), value, state, (tags, call.visible()));
    id
}

/// Adds a resource that no call made.
pub(crate) fn place(
    world: &mut World,
    scope: &Scope,
    (id, collection): (&str, &'static Collection),
    value: Value,
    state: Stages,
    (tags, visible): (Vec<(String, String)>, Timestamp),
) {
    world.tags.set(&arn_in(scope, collection, id), tags, visible);
    world.state::<Ec2>(scope).items.insert(id.to_owned(), Item { collection, value, state, visible });
}

/// Removes a resource, its tags, and its uses of others.
pub(super) fn remove(world: &mut World, scope: &Scope, id: &str) {
    if let Some(item) = world.state::<Ec2>(scope).items.remove(id) {
        world.tags.forget(&arn_in(scope, item.collection, id));
        world.uses.forget(id);
    }
}

/// A resource as answers show it.
pub(super) fn shown(world: &World, scope: &Scope, now: Timestamp, id: &str) -> Value {
    let Some(item) = world.find::<Ec2>(scope).and_then(|state| state.get(id)) else { return Value::Null };
    let Collection { id: id_member, state, tags, .. } = item.collection;
    let mut value = item.value.clone();
    value[*id_member] = id.into();
    if !state.is_empty() {
        value[*state] = item.state.at(now).into();
    }
    let known = world.tags.of(&arn_in(scope, item.collection, id));
    value[*tags] = known.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
    value
}

/// What a create or a change answers.
pub(super) fn answered(world: &World, call: &Call, id: &str) -> Value {
    shown(world, &call.scope(), call.now, id)
}

/// Describes the resources of a kind. New resources and new tags appear late, in lists and by id.
pub(super) fn describe(world: &mut World, call: &Call, collection: &'static Collection) -> Result<Value, Fault> {
    described(world, call, collection, |_, _| {})
}

/// The same, with members that depend on other resources.
pub(super) fn described(
    world: &mut World,
    call: &Call,
    collection: &'static Collection,
    complete: impl Fn(&World, &mut Value),
) -> Result<Value, Fault> {
    let (ids, scope) = (call.texts(collection.ids), call.scope());
    let visible = |item: &Item| item.visible <= call.now;
    let state = world.state::<Ec2>(&scope);
    let is_unknown = |id: &&&str| !state.all(collection).any(|(known, item)| known == **id && visible(item));
    if let Some(id) = ids.iter().find(is_unknown) {
        return Err(unknown(collection, id));
    }
    let is_meant = |id: &str| ids.is_empty() || ids.contains(&id);
    let known = state.all(collection).filter(|(id, item)| is_meant(id) && visible(item));
    let known: Vec<String> = known.map(|(id, _)| id.to_owned()).collect();
    let mut found = Vec::new();
    for id in known {
        let mut value = shown(world, &scope, call.now, &id);
        complete(world, &mut value);
        let arn = arn_in(&scope, collection, &id);
        let tags = world.tags.listed(&arn, call.now).find(|(one, _)| *one == arn).map(|(_, tags)| tags);
        let tags = tags.unwrap_or_default();
        value[collection.tags] = tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect();
        let field = |name: &str| {
            let path = collection.filters.iter().find(|(known, _)| *known == name)?.1;
            let mut values = Vec::new();
            collect(&value, path, &mut values);
            Some(values)
        };
        if passes(call.list(collection.filter), &tags, field)? {
            found.push(value);
        }
    }
    call.page(collection.list, found, Fault::new("InvalidNextToken", "The specified token is not valid"))
}

/// The values at a path such as `Associations.SubnetId`, through lists.
fn collect(value: &Value, path: &str, values: &mut Vec<String>) {
    match (value, path.split_once('.')) {
        (Value::Array(items), _) => items.iter().for_each(|item| collect(item, path, values)),
        (Value::Object(_), Some((first, rest))) => collect(&value[first], rest, values),
        (Value::Object(_), None) if !path.is_empty() => collect(&value[path], "", values),
        (Value::String(text), _) => values.push(text.clone()),
        (Value::Null | Value::Object(_), _) => {}
        (other, _) => values.push(other.to_string()),
    }
}

/// The tags that an input sets on a new resource of a kind.
pub(super) fn new_tags(call: &Call, collection: &Collection) -> Result<Vec<(String, String)>, Fault> {
    let mut tags = Vec::new();
    for specification in call.list("TagSpecifications") {
        let given = specification["ResourceType"].as_str().unwrap_or_default();
        if given != collection.name {
            let message = format!("'{given}' is not a valid taggable resource type for this operation.");
            return Err(Fault::new("InvalidParameterValue", message));
        }
        tags.extend(super::tags::pairs(specification["Tags"].as_array().map_or(&[], Vec::as_slice))?);
    }
    Ok(tags)
}

/// Refuses to delete what others use.
pub(super) fn unused(world: &World, id: &str, message: &str) -> Result<(), Fault> {
    match world.uses.users(id).next() {
        Some(_) => Err(Fault::new("DependencyViolation", message)),
        None => Ok(()),
    }
}

/// Refuses when a place already has as many resources of a kind as a quota allows.
pub(super) fn below(world: &World, call: &Call, quota: &crate::Quota, count: usize, code: &str) -> Result<(), Fault> {
    if (count as f64) < world.quotas.of(&call.scope(), quota) {
        return Ok(());
    }
    Err(Fault::new(code, format!("The maximum number of {} has been reached.", quota.name)))
}

/// The error for a client token that was used with other parameters.
pub(super) fn mismatch() -> Fault {
    Fault::new("IdempotentParameterMismatch", "The client token was used before with other parameters.")
}
