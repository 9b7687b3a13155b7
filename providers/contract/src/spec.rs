//! Specs: the wanted attributes of a resource, as canonical JSON between the engine and a provider.
//!
//! Inside a provider specs are typed. In between they are JSON objects with two special members. A secret is
//! `{"$secret": NAME, "version": V}`, never a value. The output of another resource is `{"$output": "RESOURCE#FIELD"}`
//! until the engine has resolved it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, OnceLock};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::name::ResourceId;
use crate::resource::Outputs;
use crate::secret::SecretRef;

/// The wanted or recorded attributes of a resource. Keys are sorted, so equal specs have equal bytes. Clones share one text.
#[derive(Clone, Default)]
pub struct Spec(Arc<Attributes>);

#[derive(Default)]
struct Attributes {
    value: Value,
    /// Computed on first use: planning reads it often.
    outputs: OnceLock<BTreeSet<OutputRef>>,
}

/// Why a spec could not be read as the type that a provider expects.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The JSON does not fit the type.
    #[error("spec does not fit `{expected}`: {source}")]
    Shape {
        /// The Rust type's name.
        expected: &'static str,
        /// serde's explanation.
        source: serde_json::Error,
    },
    /// An output that the spec refers to is not known yet.
    #[error("output `{field}` of `{resource}` is not known yet")]
    Unresolved {
        /// The resource with the output.
        resource: ResourceId,
        /// The output's name.
        field: String,
    },
}

/// The member of an observed spec with the drift of the object itself. It is not part of the applied spec, so it is
/// never recorded.
pub const DRIFT: &str = "drift";

/// The member of a recorded spec with the [`Rotation`] that the operator requested. The update that carries it out
/// records the spec without it.
pub const ROTATION: &str = "requested_rotation";

/// The member of an observed spec with the [`Zones`] of a database that has a standby. The update that fails over to the
/// standby wants other ones; it is never recorded.
pub const ZONES: &str = "standby_zones";

/// The member of a spec with the tags of an object of a cloud, to which others may add theirs.
pub const TAGS: &str = "tags";

/// The zones of a database and of its standby, which takes over when the primary fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Zones {
    /// The zone of the primary.
    pub primary: String,
    /// The zone of the standby, which may be the same.
    pub standby: String,
    /// Whether the standby can take over now.
    pub is_ready: bool,
}

impl Zones {
    /// Those after a failover.
    #[must_use]
    pub fn failed_over(&self) -> Self {
        Self { primary: self.standby.clone(), standby: self.primary.clone(), is_ready: true }
    }
}

/// A request to replace a credential by a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rotation {
    /// When it was requested.
    pub at: jiff::Timestamp,
    /// Whether the old one must not be accepted beside the new one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub immediately: bool,
    /// Whether the new one gets another public id, so that both can exist at the same time.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub new_id: bool,
}

impl Spec {
    /// The applied spec: an observed or recorded spec without [`DRIFT`], [`ROTATION`] and [`ZONES`].
    #[must_use]
    pub fn applied(&self) -> Self {
        const REMOVED: [&str; 3] = [DRIFT, ROTATION, ZONES];
        match &self.0.value {
            Value::Object(fields) if REMOVED.iter().any(|name| fields.contains_key(*name)) => {
                let mut fields = fields.clone();
                REMOVED.iter().for_each(|name| drop(fields.remove(*name)));
                Self::from_sorted(Value::Object(fields))
            }
            _ => self.clone(),
        }
    }

    /// An observed spec without the tags that a wanted one does not state: those of others, as far as is known.
    #[must_use]
    pub fn with_tags_of(&self, wanted: &Self) -> Self {
        let Some(Value::Object(seen)) = self.get(TAGS) else { return self.clone() };
        let own = wanted.get(TAGS).and_then(Value::as_object);
        let is_own = |key: &String| own.is_some_and(|own| own.contains_key(key));
        let tags = seen.iter().filter(|(key, _)| is_own(key)).map(|(key, tag)| (key.clone(), tag.clone()));
        let mut value = self.as_value().clone();
        value[TAGS] = tags.collect();
        Self::of(&value)
    }

    /// The same spec with a requested rotation.
    #[must_use]
    pub fn with_rotation(&self, rotation: &Rotation) -> Self {
        let mut value = self.as_value().clone();
        value[ROTATION] = serde_json::to_value(rotation).expect("a rotation is plain data");
        Self::of(&value)
    }

    /// The same spec with the zones of a standby.
    #[must_use]
    pub fn with_zones(&self, zones: &Zones) -> Self {
        let mut value = self.as_value().clone();
        value[ZONES] = serde_json::to_value(zones).expect("zones are plain data");
        Self::of(&value)
    }

    /// The zones in it; `None` without a standby.
    pub fn zones(&self) -> Option<Zones> {
        Zones::deserialize(self.get(ZONES)?).ok()
    }

    /// Canonicalises any serialisable value; it must serialise to a JSON object.
    pub fn of<T: Serialize>(value: &T) -> Self {
        let value = serde_json::to_value(value).expect("specs are plain data with text keys");
        assert!(value.is_object(), "a spec is a JSON object");
        Self::from_sorted(sorted(value))
    }

    fn from_sorted(value: Value) -> Self {
        Self(Arc::new(Attributes { value, outputs: OnceLock::new() }))
    }

    /// Reads the spec as a provider's own type.
    pub fn typed<T: DeserializeOwned>(&self) -> Result<T, SpecError> {
        T::deserialize(&self.0.value)
            .map_err(|source| SpecError::Shape { expected: std::any::type_name::<T>(), source })
    }

    /// The attribute at the top level, if there.
    pub fn get(&self, field: &str) -> Option<&Value> {
        self.0.value.get(field)
    }

    /// All top-level attributes in order of their names.
    pub fn fields(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.0.value.as_object().into_iter().flatten()
    }

    /// The canonical JSON value.
    pub fn as_value(&self) -> &Value {
        &self.0.value
    }

    /// SHA-256 of the canonical bytes, hex.
    pub fn digest(&self) -> String {
        hex::encode(Sha256::digest(self.0.value.to_string().as_bytes()))
    }

    /// Every output of another resource that this spec refers to.
    pub fn outputs_needed(&self) -> &BTreeSet<OutputRef> {
        self.0.outputs.get_or_init(|| {
            let mut found = BTreeSet::new();
            collect_outputs(&self.0.value, &mut found);
            found
        })
    }

    /// Every secret that this spec refers to.
    pub fn secrets(&self) -> Vec<SecretRef> {
        let mut found = Vec::new();
        collect_secrets(&self.0.value, &mut found);
        found
    }

    /// Replaces the references to known outputs and leaves the others unchanged.
    #[must_use]
    pub fn resolve_known<'a>(&self, look_up: impl Fn(&ResourceId) -> Option<&'a Outputs>) -> Self {
        if self.outputs_needed().is_empty() {
            return self.clone();
        }
        Self::from_sorted(resolve_known(&self.0.value, &look_up))
    }

    /// Replaces references to outputs by their values; `look_up` returns the outputs of a resource when they are known.
    pub fn resolve<'a>(&self, look_up: impl Fn(&ResourceId) -> Option<&'a Outputs>) -> Result<Self, SpecError> {
        if self.outputs_needed().is_empty() {
            return Ok(self.clone());
        }
        Ok(Self::from_sorted(resolve(&self.0.value, &look_up)?))
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.value.fmt(f)
    }
}

impl fmt::Debug for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Spec({})", self.0.value)
    }
}

impl PartialEq for Spec {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self.0.value == other.0.value
    }
}

impl Eq for Spec {}

impl Serialize for Spec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.value.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Spec {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Self::from_sorted)
    }
}

/// A reference to the output of another resource.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct OutputRef {
    /// The resource.
    pub resource: ResourceId,
    /// Its name among the outputs.
    pub field: String,
}

impl OutputRef {
    /// An output of `resource`.
    pub fn new(resource: ResourceId, field: impl Into<String>) -> Self {
        Self { resource, field: field.into() }
    }

    /// Reads `{"$output": "RESOURCE#FIELD"}`.
    pub fn from_value(value: &Value) -> Option<Self> {
        let object = value.as_object().filter(|o| o.len() == 1)?;
        let (resource, field) = object.get("$output")?.as_str()?.split_once('#')?;
        Some(Self { resource: ResourceId::new(resource).ok()?, field: field.to_owned() })
    }
}

impl Serialize for OutputRef {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry("$output", &format!("{}#{}", self.resource, self.field))?;
        map.end()
    }
}

fn collect_outputs(value: &Value, found: &mut BTreeSet<OutputRef>) {
    if let Some(output) = OutputRef::from_value(value) {
        found.insert(output);
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_outputs(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| collect_outputs(field, found)),
        _ => {}
    }
}

fn collect_secrets(value: &Value, found: &mut Vec<SecretRef>) {
    if let Some(secret) = SecretRef::from_value(value) {
        found.push(secret);
        return;
    }
    match value {
        Value::Array(items) => items.iter().for_each(|item| collect_secrets(item, found)),
        Value::Object(fields) => fields.values().for_each(|field| collect_secrets(field, found)),
        _ => {}
    }
}

fn resolve<'a>(value: &Value, look_up: &impl Fn(&ResourceId) -> Option<&'a Outputs>) -> Result<Value, SpecError> {
    if let Some(OutputRef { resource, field }) = OutputRef::from_value(value) {
        let known = look_up(&resource).and_then(|outputs| outputs.get(&field)).cloned();
        return known.map(sorted).ok_or(SpecError::Unresolved { resource, field });
    }
    Ok(match value {
        Value::Array(items) => Value::Array(items.iter().map(|item| resolve(item, look_up)).collect::<Result<_, _>>()?),
        Value::Object(fields) => Value::Object(
            fields
                .iter()
                .map(|(name, field)| Ok((name.clone(), resolve(field, look_up)?)))
                .collect::<Result<_, SpecError>>()?,
        ),
        plain => plain.clone(),
    })
}

fn resolve_known<'a>(value: &Value, look_up: &impl Fn(&ResourceId) -> Option<&'a Outputs>) -> Value {
    if let Some(OutputRef { resource, field }) = OutputRef::from_value(value) {
        let known = look_up(&resource).and_then(|outputs| outputs.get(&field));
        return known.map_or_else(|| value.clone(), |known| sorted(known.clone()));
    }
    match value {
        Value::Array(items) => Value::Array(items.iter().map(|item| resolve_known(item, look_up)).collect()),
        Value::Object(fields) => {
            Value::Object(fields.iter().map(|(name, field)| (name.clone(), resolve_known(field, look_up))).collect())
        }
        plain => plain.clone(),
    }
}

/// serde_json keeps insertion order in this workspace; canonical JSON wants sorted keys.
fn sorted(value: Value) -> Value {
    match value {
        Value::Array(items) => Value::Array(items.into_iter().map(sorted).collect()),
        Value::Object(fields) => {
            let mut pairs: Vec<_> = fields.into_iter().collect();
            pairs.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(pairs.into_iter().map(|(name, field)| (name, sorted(field))).collect::<Map<_, _>>())
        }
        plain => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn drift_is_not_part_of_the_applied_spec() {
        let applied = Spec::of(&json!({"port": 1}));
        assert_eq!(Spec::of(&json!({"port": 1, "drift": {"state": "stopped"}})).applied(), applied);
        assert_eq!(applied.applied(), applied);
        let zones = Zones { primary: "a".to_owned(), standby: "b".to_owned(), is_ready: true };
        let seen = applied.with_zones(&zones);
        assert_eq!((seen.zones(), seen.applied(), applied.zones()), (Some(zones), applied.clone(), None));
    }

    #[test]
    fn tags_of_others_are_no_part_of_what_is_wanted() {
        let seen = Spec::of(&json!({"port": 1, "tags": {"team": "old", "cost-center": "7"}}));
        let left = |wanted: Value| seen.with_tags_of(&Spec::of(&wanted));
        let team = Spec::of(&json!({"port": 1, "tags": {"team": "old"}}));
        assert_eq!(left(json!({"tags": {"team": "text", "new": "1"}})), team);
        assert_eq!(left(json!({"port": 2})), Spec::of(&json!({"port": 1, "tags": {}})));
        let without = Spec::of(&json!({"port": 1}));
        assert_eq!(without.with_tags_of(&seen), without);
    }

    #[test]
    fn equal_specs_have_equal_digests_in_any_order() {
        let a = Spec::of(&json!({"b": {"y": 1, "x": 2}, "a": [1]}));
        let b = Spec::of(&json!({"a": [1], "b": {"x": 2, "y": 1}}));
        assert_eq!(a.digest(), b.digest());
        assert_eq!(a, b);
    }

    #[test]
    fn output_references_are_found_and_resolved() {
        let ca = ResourceId::new("here/ca").unwrap();
        let spec = Spec::of(&json!({"trust": [{"$output": "here/ca#pem"}], "port": 1}));
        assert_eq!(spec.outputs_needed().iter().collect::<Vec<_>>(), [&OutputRef::new(ca.clone(), "pem")]);
        assert!(spec.resolve(|_| None).is_err());
        let outputs = Outputs::from([("pem".to_owned(), json!("PEM"))]);
        let resolved = spec.resolve(|id| (*id == ca).then_some(&outputs)).unwrap();
        assert_eq!(resolved, Spec::of(&json!({"trust": ["PEM"], "port": 1})));
    }
}
