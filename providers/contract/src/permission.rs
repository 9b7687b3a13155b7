//! The permissions of resource kinds, as table rows, and the request to write those of a plan as a policy.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

use crate::kind::Kind;
use crate::name::{CloudId, EnvironmentName, KindName, Lineage, ResourceId, SiteName};
use crate::operation::Verb;
use crate::spec::Spec;

/// A permission that a caller needs for the objects of a kind: one row.
///
/// In every text, `{field}` stands for a value of the resource's spec, such as `{inputs.listen}`. `{$lineage}`,
/// `{$environment}` and `{$site}` stand for those of the deployment, `{$id}` for the recorded object, and any other
/// `{$name}` for a value that only the provider knows, such as `{$account}`. `{!field}` is empty if the spec has no value
/// for the field, or an empty list, and has no value otherwise; `{?field}` is the opposite. `{field=TEXT}` is empty if the
/// field has this value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Permission {
    /// In the provider's notation: `ec2:CreateVpc`, or a sentence where the provider has no policies. Without a value
    /// for one of its placeholders, the permission is not needed.
    pub action: &'static str,
    /// The resources, as a pattern of the provider: `arn:{$partition}:s3:::{name}`. An unknown value becomes `*`.
    pub resource: &'static str,
    /// All of them must hold.
    pub conditions: &'static [Condition],
    /// The operations that need it; none of them: reads, which every resource of a plan needs, changed or not.
    pub verbs: &'static [Verb],
}

/// A condition of a permission: a request or resource attribute has this value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Condition {
    /// The attribute, in the provider's notation: `aws:ResourceTag/textnlp-lineage`.
    pub key: &'static str,
    /// Its value. An unknown value becomes `*`, which matches every value: the lineage is unknown until the first `up`. The condition is
    /// left out if a field in it is `null` or an empty list.
    pub value: &'static str,
}

impl Permission {
    /// A permission to create, update and delete any resource.
    pub const fn change(action: &'static str) -> Self {
        Self { action, resource: "*", conditions: &[], verbs: &[Verb::Create, Verb::Update, Verb::Delete] }
    }

    /// A permission that these operations need, on any resource.
    pub const fn on(verbs: &'static [Verb], action: &'static str) -> Self {
        Self { verbs, ..Self::change(action) }
    }

    /// A permission to read any resource.
    pub const fn read(action: &'static str) -> Self {
        Self::on(&[], action)
    }

    /// The row with its placeholders filled; `None` if it is not needed.
    fn filled(&self, spec: &Spec, value: impl Fn(&str) -> Option<String>) -> Option<FilledPermission> {
        let is_unset = |field: &str| match spec.as_value().get(field) {
            Some(Value::Array(items)) => items.is_empty(),
            value => value.is_some_and(Value::is_null),
        };
        let value = |name: &str| match name.split_at_checked(1) {
            Some(("!", field)) => is_unset(field).then(String::new),
            Some(("?", field)) => (!is_unset(field)).then(String::new),
            _ => match name.split_once('=') {
                Some((field, wanted)) => {
                    let shown = match spec.as_value().get(field) {
                        Some(Value::String(text)) => Some(text.clone()),
                        other => other.map(Value::to_string),
                    };
                    (shown.as_deref() == Some(wanted)).then(String::new)
                }
                None => value(name),
            },
        };
        let pattern = |text| filled(text, |name| Some(value(name).unwrap_or_else(|| "*".to_owned())));
        let mut conditions = BTreeMap::new();
        for Condition { key, value } in self.conditions {
            if filled(value, |name| (!is_unset(name)).then(String::new)).is_some() {
                conditions.insert(pattern(key)?, pattern(value)?);
            }
        }
        let resource = pattern(self.resource)?;
        Some(FilledPermission { action: filled(self.action, value)?, resource, conditions })
    }
}

/// A permission whose placeholders have values.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct FilledPermission {
    /// In the provider's notation.
    #[serde(rename = "permission")]
    pub action: String,
    /// The resources; `*` for any.
    pub resource: String,
    /// The value of each attribute; `*` in a value matches any characters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub conditions: BTreeMap<String, String>,
}

/// One resource whose permissions are needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyResource {
    /// Its id.
    pub id: ResourceId,
    /// Its kind.
    pub kind: KindName,
    /// The id of its object, once that is recorded.
    pub cloud_id: Option<CloudId>,
    /// Its wanted spec, or the recorded one of a resource that is deleted. References to outputs may be unknown.
    pub spec: Spec,
    /// The operations on it; none for a resource that is only read.
    pub verbs: BTreeSet<Verb>,
}

/// The request for the least-privilege policies of a plan at one site.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRequest {
    /// The lineage; `None` before the first `up`, which determines it.
    pub lineage: Option<Lineage>,
    /// The environment.
    pub environment: EnvironmentName,
    /// The site.
    pub site: SiteName,
    /// Every resource of the plan, also the unchanged ones.
    pub resources: Vec<PolicyResource>,
}

impl PolicyRequest {
    /// The filled permissions without duplicates, each with the kinds that need it. `own` has the values that only the
    /// provider knows, by their names with the `$`: `$account`.
    pub fn permissions(
        &self,
        kinds: &[Kind],
        own: impl Fn(&str) -> Option<String>,
    ) -> BTreeMap<FilledPermission, BTreeSet<KindName>> {
        let mut needed: BTreeMap<FilledPermission, BTreeSet<KindName>> = BTreeMap::new();
        for resource in &self.resources {
            let Some(kind) = kinds.iter().find(|kind| kind.name == resource.kind.as_str()) else { continue };
            let value = |name: &str| match name {
                "$lineage" => self.lineage.map(|lineage| lineage.to_string()),
                "$environment" => Some(self.environment.to_string()),
                "$site" => Some(self.site.to_string()),
                "$id" => resource.cloud_id.as_ref().map(ToString::to_string),
                // An object may be in another region than its site.
                "$region" => field_of(&resource.spec, "region").or_else(|| own(name)),
                _ if name.starts_with('$') => own(name),
                field => field_of(&resource.spec, field),
            };
            let is_needed =
                |row: &&Permission| row.verbs.is_empty() || row.verbs.iter().any(|verb| resource.verbs.contains(verb));
            for permission in
                kind.permissions.iter().filter(is_needed).filter_map(|row| row.filled(&resource.spec, value))
            {
                needed.entry(permission).or_default().insert(resource.kind.clone());
            }
        }
        needed
    }

    /// The part of the request with these kinds.
    #[must_use]
    pub fn of_kinds(&self, is_included: impl Fn(&KindName) -> bool) -> Self {
        let resources = self.resources.iter().filter(|resource| is_included(&resource.kind)).cloned().collect();
        Self { resources, ..self.clone() }
    }
}

/// A policy in a provider's own format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PolicyDocument {
    /// What it is: `AWS IAM policy`.
    pub title: String,
    /// The format.
    pub format: PolicyFormat,
    /// The document.
    pub text: String,
    /// What an operator should know before it is given to an identity.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

crate::words! {
    /// The format of a policy document.
    pub enum PolicyFormat {
        /// JSON.
        Json = "json",
        /// YAML; several documents are separated by `---`.
        Yaml = "yaml",
    }
}

/// A text with its placeholders replaced; `None` if one has no value.
fn filled(text: &str, value: impl Fn(&str) -> Option<String>) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        let (name, after) = after.split_once('}')?;
        out.push_str(before);
        out.push_str(&value(name)?);
        rest = after;
    }
    out.push_str(rest);
    Some(out)
}

/// A text, a number or a list of texts of a spec by its dotted path. Spaces separate the texts of a list.
fn field_of(spec: &Spec, field: &str) -> Option<String> {
    match field.split('.').try_fold(spec.as_value(), |value, name| value.get(name))? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Array(items) => Some(items.iter().map(Value::as_str).collect::<Option<Vec<_>>>()?.join(" ")),
        _ => None,
    }
}
