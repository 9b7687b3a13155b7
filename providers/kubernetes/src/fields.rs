//! Field ownership, and the differences between a live object and the wanted one. Pure.
//!
//! The API server records the fields of each manager (`managedFields`). A field that another manager changed belongs to
//! it from then on. A field that the deployment owns is as it was applied, whatever its normalised form (`1000m`
//! becomes `1`).

use serde_json::{Map, Value};

use crate::manifest::{PLAIN, REGISTRY, URL};

/// One difference between a live object and the wanted one.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Finding {
    /// The field for messages; list elements appear by their names.
    pub(crate) field: String,
    /// The path within the wanted manifest.
    pub(crate) path: Vec<PathSegment>,
    pub(crate) before: Option<Value>,
    pub(crate) after: Option<Value>,
    pub(crate) is: FieldOwner,
}

/// Who owns a differing field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum FieldOwner {
    /// The deployment owns it, or no manager does: to be corrected.
    Ours,
    /// Another manager owns it, and the wanted value did not change.
    Taken(String),
    /// Another manager owns it, and the wanted value is a different one.
    Contested(String),
}

/// A step of a path within a manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathSegment {
    Key(String),
    Index(usize),
}

/// The owned fields of one manager.
#[derive(Clone, Copy)]
pub(crate) struct Owner<'a> {
    pub(crate) name: &'a str,
    /// `scale` is a replica count set by an autoscaler or by `kubectl scale`.
    pub(crate) subresource: &'a str,
    pub(crate) fields: &'a Value,
}

impl Owner<'_> {
    /// Whether the manager is kubectl: its change is drift, while a controller's change is intended.
    fn is_a_person(&self) -> bool {
        self.name.starts_with("kubectl") && self.subresource != "scale"
    }
}

/// One position in the compared manifests.
#[derive(Clone)]
struct Position<'a> {
    field: String,
    path: Vec<PathSegment>,
    recorded: Option<&'a Value>,
    live: Option<&'a Value>,
    ours: Option<&'a Value>,
    others: Vec<Owner<'a>>,
}

/// Every difference in the order of the wanted manifest, then owned fields that are no longer wanted.
pub(crate) fn compare(
    wanted: &Value,
    recorded: &Value,
    live: &Value,
    ours: Option<&Value>,
    others: &[Owner<'_>],
    kept: &[&str],
) -> Vec<Finding> {
    let mut found = Vec::new();
    // A manager without any field must not count as the owner of the complete object.
    let ours = ours.filter(|fields| fields.as_object().is_some_and(|fields| !fields.is_empty()));
    let here = Position {
        field: String::new(),
        path: Vec::new(),
        recorded: Some(recorded),
        live: Some(live),
        ours,
        others: others.to_vec(),
    };
    walk(wanted, &here, &mut found);
    if let Some(ours) = ours {
        left_over(ours, Some(wanted), Some(live), "", kept, &mut found);
    }
    found
}

/// A manifest without the fields at these paths.
pub(crate) fn without(manifest: &Value, paths: &[&[PathSegment]]) -> Value {
    let mut manifest = manifest.clone();
    for path in paths {
        let Some((PathSegment::Key(last), before)) = path.split_last() else { continue };
        let mut node = Some(&mut manifest);
        for segment in before {
            node = match segment {
                PathSegment::Key(key) => node.and_then(|value| value.get_mut(key)),
                PathSegment::Index(index) => node.and_then(|value| value.get_mut(index)),
            };
        }
        if let Some(parent) = node.and_then(Value::as_object_mut) {
            parent.shift_remove(last);
        }
    }
    manifest
}

fn walk(wanted: &Value, here: &Position<'_>, found: &mut Vec<Finding>) {
    match wanted {
        Value::Object(fields) if !is_one_value(fields) && !here.is_atomic() => {
            for (name, wanted) in fields {
                walk(wanted, &here.key(name), found);
            }
        }
        Value::Array(items) => match here.listed() {
            ListStrategy::ByKey => {
                for (index, item) in items.iter().enumerate() {
                    walk_item(item, index, here, found);
                }
            }
            ListStrategy::AsSet => {
                let live = here.live.and_then(Value::as_array);
                for (index, item) in items.iter().enumerate() {
                    if !live.is_some_and(|live| live.contains(item)) {
                        found.push(here.index(index, &index.to_string()).finding(None, Some(item), FieldOwner::Ours));
                    }
                }
            }
            ListStrategy::AsOne => leaf(wanted, here, found),
        },
        _ => leaf(wanted, here, found),
    }
}

fn walk_item(item: &Value, index: usize, here: &Position<'_>, found: &mut Vec<Finding>) {
    let keys = here.ours.into_iter().chain(here.others.iter().map(|owner| owner.fields));
    let key = keys.flat_map(|fields| fields.as_object().into_iter().flatten().map(|(key, _)| key.as_str()));
    let Some(key) = key.into_iter().find(|key| fits(key, item)) else {
        found.push(here.index(index, &name_of(item, index)).finding(None, Some(item), FieldOwner::Ours));
        return;
    };
    let among = |list: Option<&'_ Value>| -> Option<usize> { list?.as_array()?.iter().position(|one| fits(key, one)) };
    let mut inner = here.index(index, &name_of(item, index));
    inner.live = among(here.live).and_then(|node| here.live?.get(node));
    inner.recorded = among(here.recorded).and_then(|node| here.recorded?.get(node));
    inner.ours = here.ours.and_then(|fields| fields.get(key));
    inner.others = here.others_at(key);
    walk(item, &inner, found);
}

fn leaf(wanted: &Value, here: &Position<'_>, found: &mut Vec<Finding>) {
    if same(Some(wanted), here.live) {
        return;
    }
    let nothing_new = same(Some(wanted), here.recorded);
    let is = match (here.ours, here.others.first()) {
        // Applied, and normalised by the server.
        (Some(_), _) if nothing_new => return,
        (Some(_), _) | (None, None) => FieldOwner::Ours,
        // A replica count that was scaled after it was applied belongs to its manager. One from before is a conflict.
        (None, Some(owner)) if owner.subresource == "scale" && here.recorded.is_some() => {
            FieldOwner::Taken(owner.name.to_owned())
        }
        (None, Some(owner)) if nothing_new && !owner.is_a_person() => FieldOwner::Taken(owner.name.to_owned()),
        (None, Some(owner)) => FieldOwner::Contested(owner.name.to_owned()),
    };
    found.push(here.finding(here.live, Some(wanted), is));
}

/// Owned fields that are no longer wanted.
fn left_over(
    ours: &Value,
    wanted: Option<&Value>,
    live: Option<&Value>,
    field: &str,
    kept: &[&str],
    found: &mut Vec<Finding>,
) {
    for (key, below) in ours.as_object().into_iter().flatten() {
        let (name, wanted, live) = if let Some(name) = key.strip_prefix("f:") {
            (name.to_owned(), wanted.and_then(|one| one.get(name)), live.and_then(|one| one.get(name)))
        } else if key.starts_with("k:") {
            let among = |list: Option<&'_ Value>| list?.as_array()?.iter().position(|one| fits(key, one));
            let node = among(live).unwrap_or_default();
            let inner = live.and_then(|list| list.get(node));
            let name = inner.map_or_else(|| key.clone(), |item| name_of(item, node));
            (name, among(wanted).and_then(|node| wanted?.get(node)), inner)
        } else if let Some(value) = key.strip_prefix("v:") {
            let value: Value = serde_json::from_str(value).unwrap_or(Value::Null);
            let is_wanted = wanted.and_then(Value::as_array).is_some_and(|items| items.contains(&value));
            if !is_wanted {
                found.push(Finding {
                    field: field.to_owned(),
                    path: Vec::new(),
                    before: Some(value),
                    after: None,
                    is: FieldOwner::Ours,
                });
            }
            continue;
        } else {
            continue;
        };
        let field = if field.is_empty() { name } else { format!("{field}.{name}") };
        let is_set = wanted.is_some_and(|value| !value.is_null());
        if kept.contains(&field.as_str()) || live.is_none() {
            continue;
        }
        let is_leaf = below.as_object().is_none_or(Map::is_empty);
        if is_set || (!is_leaf && field.starts_with("metadata")) {
            if !is_set || !wanted.and_then(Value::as_object).is_some_and(is_one_value) {
                left_over(below, wanted, live, &field, kept, found);
            }
        } else {
            found.push(Finding { field, path: Vec::new(), before: live.cloned(), after: None, is: FieldOwner::Ours });
        }
    }
}

/// The merge strategy of a list, derived from the keys of its owned fields.
enum ListStrategy {
    /// Elements are merged by key, as containers are by name.
    ByKey,
    /// The list is a set: each element is its own key.
    AsSet,
    /// The list is atomic.
    AsOne,
}

impl<'a> Position<'a> {
    fn key(&self, name: &str) -> Self {
        let key = format!("f:{name}");
        let mut path = self.path.clone();
        path.push(PathSegment::Key(name.to_owned()));
        Position {
            field: self.below(name),
            path,
            recorded: self.recorded.and_then(|one| one.get(name)),
            live: self.live.and_then(|one| one.get(name)),
            ours: self.ours.and_then(|one| one.get(&key)),
            others: self.others_at(&key),
        }
    }

    fn index(&self, index: usize, name: &str) -> Self {
        let mut path = self.path.clone();
        path.push(PathSegment::Index(index));
        Position { field: self.below(name), path, recorded: None, live: None, ours: None, others: Vec::new() }
    }

    fn below(&self, name: &str) -> String {
        if self.field.is_empty() { name.to_owned() } else { format!("{}.{name}", self.field) }
    }

    fn others_at(&self, key: &str) -> Vec<Owner<'a>> {
        self.others.iter().filter_map(|owner| Some(Owner { fields: owner.fields.get(key)?, ..*owner })).collect()
    }

    fn owned(&self) -> impl Iterator<Item = &Map<String, Value>> {
        let all = self.ours.into_iter().chain(self.others.iter().map(|owner| owner.fields));
        all.filter_map(Value::as_object)
    }

    /// Whether the manager owns the object as a whole.
    fn is_atomic(&self) -> bool {
        self.owned().next().is_some() && self.owned().all(Map::is_empty)
    }

    fn listed(&self) -> ListStrategy {
        let has = |prefix: &str| self.owned().any(|fields| fields.keys().any(|key| key.starts_with(prefix)));
        match (has("k:"), has("v:")) {
            (true, _) => ListStrategy::ByKey,
            (_, true) => ListStrategy::AsSet,
            _ => ListStrategy::AsOne,
        }
    }

    fn finding(&self, before: Option<&Value>, after: Option<&Value>, is: FieldOwner) -> Finding {
        let (field, path) = (self.field.clone(), self.path.clone());
        Finding { field, path, before: before.cloned(), after: after.cloned(), is }
    }
}

/// Whether a list element matches a key such as `k:{"name":"web"}`. A key field that the element leaves to its default
/// matches.
fn fits(key: &str, item: &Value) -> bool {
    let Some(Ok(Value::Object(key))) = key.strip_prefix("k:").map(serde_json::from_str) else { return false };
    !key.is_empty()
        && key.iter().all(|(name, value)| item.get(name).is_none_or(|own| own == value))
        && key.keys().any(|name| item.get(name).is_some())
}

/// The name of a list element in messages.
fn name_of(item: &Value, index: usize) -> String {
    match item.get("name").or(item.get("mountPath")).and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        None => index.to_string(),
    }
}

/// The API server treats null, an empty object and an empty list as equal.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    let is_empty = |value: Option<&Value>| match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(fields)) => fields.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    };
    a == b || (is_empty(a) && is_empty(b))
}

/// References to outputs and secrets are atomic, and so are a plain value, an account at a registry and an address
/// with its password in a Secret.
fn is_one_value(fields: &Map<String, Value>) -> bool {
    const MARKS: [&str; 5] = ["$output", "$secret", PLAIN, REGISTRY, URL];
    fields.is_empty() || MARKS.iter().any(|mark| fields.contains_key(*mark))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// Arguments: the wanted, recorded and live manifests, own fields, other managers (name, subresource, fields), and
    /// the expected findings.
    fn check(manifests: [Value; 3], ours: Value, others: &[(&str, &str, Value)], expect: &[(&str, FieldOwner)]) {
        let [wanted, recorded, live] = manifests;
        let owners: Vec<Owner<'_>> =
            others.iter().map(|(name, subresource, fields)| Owner { name, subresource, fields }).collect();
        let found = compare(&wanted, &recorded, &live, Some(&ours), &owners, &["metadata.labels.kept"]);
        let got: Vec<(&str, FieldOwner)> = found.iter().map(|one| (one.field.as_str(), one.is.clone())).collect();
        assert_eq!(got, expect);
    }

    fn replicas(count: u64) -> Value {
        json!({ "spec": { "replicas": count } })
    }

    #[test]
    fn server_normalised_values_are_no_difference() {
        let wanted = json!({ "spec": { "cpu": "1000m" } });
        let ours = json!({ "f:spec": { "f:cpu": {} } });
        check([wanted.clone(), wanted, json!({ "spec": { "cpu": "1" } })], ours, &[], &[]);
    }

    #[test]
    fn changed_wanted_value_is_a_difference() {
        let ours = json!({ "f:spec": { "f:replicas": {} } });
        check([replicas(3), replicas(2), replicas(2)], ours, &[], &[("spec.replicas", FieldOwner::Ours)]);
    }

    #[test]
    fn fields_of_other_managers_are_left_until_the_wanted_value_changes() {
        let fields = json!({ "f:spec": { "f:replicas": {} } });
        let own = |manager: &'static str, part: &'static str| [(manager, part, fields.clone())];
        let is = |is: FieldOwner| vec![("spec.replicas", is)];
        let taken = |by: &str| is(FieldOwner::Taken(by.to_owned()));
        let contested = |by: &str| is(FieldOwner::Contested(by.to_owned()));
        let seen = |replica_count: u64| [replicas(replica_count), replicas(2), replicas(5)];
        check(seen(2), json!({}), &own("keda", ""), &taken("keda"));
        check(seen(3), json!({}), &own("keda", ""), &contested("keda"));
        check(seen(2), json!({}), &own("kubectl-edit", ""), &contested("kubectl-edit"));
        check(seen(3), json!({}), &own("kube-controller-manager", "scale"), &taken("kube-controller-manager"));
        check(seen(3), json!({}), &own("kubectl", "scale"), &taken("kubectl"));
    }

    /// OpenShift writes a name of its own into the pull secrets of each service account, a list without a merge
    /// strategy (report openshift/openshift-controller-manager#306).
    #[test]
    fn pull_secrets_of_an_account_are_contested_when_they_are_added_and_taken_later() {
        let account = |names: &[&str]| {
            let names: Vec<Value> = names.iter().map(|name| json!({ "name": name })).collect();
            json!({ "kind": "ServiceAccount", "imagePullSecrets": names })
        };
        let (ours, theirs) = (json!({ "f:kind": {} }), json!({ "f:imagePullSecrets": {} }));
        let manager = "openshift-controller-manager";
        let others = [(manager, "", theirs)];
        let live = account(&["textnlp-api-dockercfg-x"]);
        let contested = [("imagePullSecrets", FieldOwner::Contested(manager.to_owned()))];
        check([account(&["textnlp-registry"]), account(&[]), live], ours.clone(), &others, &contested);
        let (wanted, live) =
            (account(&["textnlp-registry"]), account(&["textnlp-registry", "textnlp-api-dockercfg-x"]));
        let taken = [("imagePullSecrets", FieldOwner::Taken(manager.to_owned()))];
        check([wanted.clone(), wanted, live], ours, &others, &taken);
    }

    #[test]
    fn externally_removed_field_is_ours_to_restore() {
        let wanted = json!({ "data": { "a": "1" } });
        check([wanted.clone(), wanted, json!({})], json!({}), &[], &[("data.a", FieldOwner::Ours)]);
    }

    #[test]
    fn list_elements_are_matched_by_their_keys() {
        let container = |image: &str| json!({ "containers": [{ "name": "web", "image": image, "ports": [{ "containerPort": 80 }] }] });
        let live = json!({ "containers": [
            { "name": "sidecar", "image": "s" },
            { "name": "web", "image": "a", "ports": [{ "containerPort": 80, "protocol": "TCP" }] },
        ] });
        let ours = json!({ "f:containers": { "k:{\"name\":\"web\"}": {
            ".": {}, "f:name": {}, "f:image": {},
            "f:ports": { "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": { ".": {}, "f:containerPort": {} } } } } });
        let injected =
            json!({ "f:containers": { "k:{\"name\":\"sidecar\"}": { ".": {}, "f:image": {}, "f:name": {} } } });
        let others = [("mesh", "", injected)];
        check([container("a"), container("a"), live.clone()], ours.clone(), &others, &[]);
        check([container("b"), container("a"), live], ours, &others, &[("containers.web.image", FieldOwner::Ours)]);
    }

    #[test]
    fn each_removed_own_field_is_reported_once() {
        let live = json!({ "metadata": { "labels": { "a": "1", "kept": "2", "foreign": "3" } }, "spec": {
            "containers": [{ "name": "old", "image": "x" }], "paused": true } });
        let ours = json!({
            "f:metadata": { "f:labels": { "f:a": {}, "f:kept": {} } },
            "f:spec": { "f:paused": {}, "f:containers": { "k:{\"name\":\"old\"}": { ".": {}, "f:name": {}, "f:image": {} } } },
        });
        let wanted = json!({ "spec": { "containers": [] } });
        let expect = [
            ("metadata.labels.a", FieldOwner::Ours),
            ("spec.paused", FieldOwner::Ours),
            ("spec.containers.old", FieldOwner::Ours),
        ];
        check([wanted.clone(), wanted, live], ours, &[], &expect);
    }

    #[test]
    fn atomic_maps_and_keyless_lists_are_single_values() {
        let ours = json!({ "f:selector": {}, "f:args": {} });
        let live = json!({ "selector": { "a": "1" }, "args": ["x"] });
        let wanted = json!({ "selector": { "a": "2" }, "args": ["x", "y"] });
        check([wanted, live.clone(), live], ours, &[], &[("selector", FieldOwner::Ours), ("args", FieldOwner::Ours)]);
    }

    #[test]
    fn fields_are_omitted_by_path() {
        let manifest = json!({ "spec": { "replicas": 1, "containers": [{ "name": "a", "image": "x" }] } });
        let key = |key: &str| PathSegment::Key(key.to_owned());
        let paths = [
            vec![key("spec"), key("replicas")],
            vec![key("spec"), key("containers"), PathSegment::Index(0), key("image")],
        ];
        let paths: Vec<&[PathSegment]> = paths.iter().map(Vec::as_slice).collect();
        assert_eq!(without(&manifest, &paths), json!({ "spec": { "containers": [{ "name": "a" }] } }));
    }
}
