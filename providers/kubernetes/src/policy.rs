//! The least-privilege policy of a plan: roles with the permissions that [`preflight`](crate::preflight) reviews, and their
//! bindings. Where the plan changes claims, they may also read volumes.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_provider::{PolicyDocument, PolicyFormat, PolicyRequest, PolicyResource, Verb};

use crate::identity::ObjectLocation;
use crate::table::{self, Row, VERBS};

const API: &str = "rbac.authorization.k8s.io";

/// The note on the permission to read volumes.
const OPTIONAL: &str = "`get` of persistentvolumes is optional: without it, the removal of a claim does not wait until its \
                        disk is deleted";

/// The verbs that reading an object needs.
const READ: [&str; 2] = ["get", "list"];

/// The rules of one role.
#[derive(Default)]
struct Rules {
    /// The verbs by group and plural.
    verbs: BTreeMap<(&'static str, &'static str), BTreeSet<&'static str>>,
    /// What the plan's own roles grant: the API server lets only those grant a permission who have it.
    granted: Vec<Value>,
    /// The existing roles that the plan's bindings refer to, by their plurals.
    bound: BTreeMap<&'static str, BTreeSet<String>>,
}

/// The document, or nothing if no permission is needed.
pub(crate) fn document(request: &PolicyRequest) -> Option<PolicyDocument> {
    let mut scopes: BTreeMap<Option<String>, Rules> = BTreeMap::new();
    let mut notes = Vec::new();
    let made = made_roles(request);
    for resource in &request.resources {
        let Some(row) = table::row(&resource.kind) else { continue };
        let Ok(location) = ObjectLocation::of_spec(row, &resource.spec) else { continue };
        if row.kind == table::VOLUME_CLAIM && !resource.verbs.is_empty() {
            // Its removal, perhaps by the next plan, waits for its volume where that is permitted: `preflight` does not review it.
            let volume = table::volumes();
            let rules = scopes.entry(None).or_default();
            rules.verbs.entry((volume.group, volume.plural)).or_default().insert("get");
            notes = vec![OPTIONAL.to_owned()];
        }
        let rules = scopes.entry(location.namespace.clone()).or_default();
        rules.verbs.entry((row.group, row.plural)).or_default().extend(verbs(resource));
        if resource.verbs.contains(&Verb::Create) || resource.verbs.contains(&Verb::Update) {
            rules.grant(resource, location.namespace.as_deref(), &made);
        }
    }
    if scopes.is_empty() {
        return None;
    }
    let name = format!("textnlp-deploy-{}", request.environment);
    let mut text =
        "# Replace USER by the user that runs textnlp-deploy: `kubectl auth whoami` prints the name.\n".to_owned();
    for (namespace, rules) in scopes {
        for manifest in manifests(&name, namespace.as_deref(), rules.into_values()) {
            text.push_str("---\n");
            text.push_str(&serde_yaml::to_string(&manifest).unwrap_or_else(|_| manifest.to_string()));
        }
    }
    Some(PolicyDocument { title: "Kubernetes roles".to_owned(), format: PolicyFormat::Yaml, text, notes })
}

fn verbs(resource: &PolicyResource) -> Vec<&'static str> {
    if resource.verbs.contains(&Verb::Create) || resource.verbs.contains(&Verb::Update) {
        // Preflight reviews all of them, because the next plan may undo this one.
        return VERBS.to_vec();
    }
    let delete = resource.verbs.contains(&Verb::Delete).then_some("delete");
    READ.into_iter().chain(delete).collect()
}

/// The roles of the plan: plural, namespace and name.
fn made_roles(request: &PolicyRequest) -> BTreeSet<(&'static str, Option<String>, String)> {
    let role = |resource: &PolicyResource| {
        let row: &'static Row = table::row(&resource.kind)?;
        let location = ObjectLocation::of_spec(row, &resource.spec).ok()?;
        is_role(row).then_some((row.plural, location.namespace, location.name))
    };
    request.resources.iter().filter_map(role).collect()
}

fn is_role(row: &Row) -> bool {
    row.group == API && matches!(row.plural, "roles" | "clusterroles")
}

impl Rules {
    /// Adds what a role or a binding needs beyond the permission to write it.
    fn grant(
        &mut self,
        resource: &PolicyResource,
        namespace: Option<&str>,
        made: &BTreeSet<(&'static str, Option<String>, String)>,
    ) {
        let granted = resource.spec.get("rules").and_then(Value::as_array).into_iter().flatten();
        if table::row(&resource.kind).is_some_and(is_role) {
            self.granted.extend(granted.cloned());
        }
        let Some(to) = resource.spec.get("roleRef") else { return };
        let (plural, scope) = match to["kind"].as_str() {
            Some("Role") => ("roles", namespace.map(str::to_owned)),
            Some("ClusterRole") => ("clusterroles", None),
            _ => return,
        };
        let Some(name) = to["name"].as_str() else { return };
        if !made.contains(&(plural, scope, name.to_owned())) {
            self.bound.entry(plural).or_default().insert(name.to_owned());
        }
    }

    fn into_values(self) -> Vec<Value> {
        // The kinds with equal verbs share a rule.
        let mut shared: BTreeMap<(Vec<&str>, &str), Vec<&str>> = BTreeMap::new();
        for ((group, plural), verbs) in &self.verbs {
            let verbs = VERBS.into_iter().filter(|verb| verbs.contains(verb)).collect();
            shared.entry((verbs, group)).or_default().push(plural);
        }
        let own = shared
            .into_iter()
            .map(|((verbs, group), plurals)| json!({ "apiGroups": [group], "resources": plurals, "verbs": verbs }));
        let mut rules: Vec<Value> = own.collect();
        for (plural, names) in self.bound {
            rules.push(json!({ "apiGroups": [API], "resources": [plural], "resourceNames": names, "verbs": ["bind"] }));
        }
        for rule in self.granted {
            if !rules.contains(&rule) {
                rules.push(rule);
            }
        }
        rules
    }
}

/// A role and its binding, of a namespace or of the cluster.
fn manifests(name: &str, namespace: Option<&str>, rules: Vec<Value>) -> [Value; 2] {
    let (role, binding) = match namespace {
        Some(_) => ("Role", "RoleBinding"),
        None => ("ClusterRole", "ClusterRoleBinding"),
    };
    let metadata = match namespace {
        Some(namespace) => json!({ "name": name, "namespace": namespace }),
        None => json!({ "name": name }),
    };
    let api_version = format!("{API}/v1");
    [
        json!({ "apiVersion": api_version, "kind": role, "metadata": metadata, "rules": rules }),
        json!({
            "apiVersion": api_version,
            "kind": binding,
            "metadata": metadata,
            "roleRef": { "apiGroup": API, "kind": role, "name": name },
            "subjects": [{ "apiGroup": API, "kind": "User", "name": "USER" }],
        }),
    ]
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;
    use textnlp_provider::{Ownership, Spec, Wanted};

    use super::*;
    use crate::preflight::reviews;
    use crate::table::ROWS;

    fn wanted(noun: &str, namespace: Option<&str>, name: &str, more: Value) -> Wanted {
        let mut spec = more;
        spec["metadata"] = json!({ "name": name, "namespace": namespace });
        Wanted {
            id: format!("here/{noun}/{name}").parse().unwrap(),
            kind: format!("kubernetes.{noun}").parse().unwrap(),
            site: "here".parse().unwrap(),
            via: None,
            spec: Spec::of(&spec),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        }
    }

    fn request(all: &[(&Wanted, &[Verb])]) -> PolicyRequest {
        let resource = |(wanted, verbs): &(&Wanted, &[Verb])| PolicyResource {
            id: wanted.id.clone(),
            cloud_id: None,
            kind: wanted.kind.clone(),
            spec: wanted.spec.clone(),
            verbs: verbs.iter().copied().collect(),
        };
        PolicyRequest {
            lineage: None,
            environment: "staging".parse().unwrap(),
            site: "here".parse().unwrap(),
            resources: all.iter().map(resource).collect(),
        }
    }

    fn roles(request: &PolicyRequest) -> Vec<Value> {
        let text = document(request).unwrap().text;
        let all: Vec<Value> =
            serde_yaml::Deserializer::from_str(&text).map(|one| Value::deserialize(one).unwrap()).collect();
        assert!(all.iter().all(|one| one["metadata"]["name"] == "textnlp-deploy-staging"), "{text}");
        all
    }

    /// Scope, group, plural and verb of every rule on objects of any name.
    fn granted(roles: &[Value]) -> BTreeSet<(Option<String>, String, String, String)> {
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().unwrap().iter().map(|one| one.as_str().unwrap().to_owned()).collect()
        };
        let mut all = BTreeSet::new();
        for role in roles.iter().filter(|role| matches!(role["kind"].as_str(), Some("Role" | "ClusterRole"))) {
            let scope = role["metadata"]["namespace"].as_str().map(str::to_owned);
            for rule in role["rules"].as_array().unwrap().iter().filter(|rule| rule["resourceNames"].is_null()) {
                for (group, plural) in texts(&rule["apiGroups"])
                    .iter()
                    .flat_map(|group| texts(&rule["resources"]).into_iter().map(move |plural| (group.clone(), plural)))
                {
                    let row = |verb| (scope.clone(), group.clone(), plural.clone(), verb);
                    all.extend(texts(&rule["verbs"]).into_iter().map(row));
                }
            }
        }
        all
    }

    #[test]
    fn policy_grants_exactly_what_preflight_reviews() {
        let all = [
            wanted("namespace", None, "prod", json!({})),
            wanted("deployment", Some("prod"), "server", json!({})),
            wanted("service", Some("prod"), "server", json!({})),
            wanted("config-map", Some("other"), "settings", json!({})),
            wanted("persistent-volume-claim", Some("prod"), "dumps", json!({})),
            wanted("priority-class", None, "high", json!({})),
        ];
        let created: Vec<_> = all.iter().map(|one| (one, [Verb::Create].as_slice())).collect();
        let supported: Vec<_> = all.iter().map(|one| (table::row(&one.kind).unwrap(), one)).collect();
        let mut reviewed: BTreeSet<_> = reviews(&supported)
            .into_iter()
            .map(|(scope, row, verb)| (scope, ROWS[row].group.to_owned(), ROWS[row].plural.to_owned(), verb.to_owned()))
            .collect();
        // A claim's removal only waits for its volume where this is granted.
        reviewed.insert((None, String::new(), "persistentvolumes".to_owned(), "get".to_owned()));
        let roles = roles(&request(&created));
        assert_eq!(granted(&roles), reviewed);
        assert_eq!(document(&request(&created)).unwrap().notes, [OPTIONAL]);
        let bindings: Vec<_> = roles.iter().filter(|one| !one["roleRef"].is_null()).collect();
        assert_eq!(bindings.len(), 3, "the cluster and two namespaces");
        for binding in bindings {
            assert_eq!(binding["roleRef"]["kind"], binding["kind"].as_str().unwrap().trim_end_matches("Binding"));
        }
    }

    #[test]
    fn policy_grants_no_more_than_the_verbs_of_the_plan() {
        let kept = wanted("deployment", Some("prod"), "server", json!({}));
        let dumps = wanted("persistent-volume-claim", Some("prod"), "dumps", json!({}));
        let gone = wanted("service", Some("prod"), "old", json!({}));
        let roles = roles(&request(&[(&kept, &[]), (&dumps, &[]), (&gone, &[Verb::Delete])]));
        let row = |group: &str, plural: &str, verb: &str| {
            (Some("prod".to_owned()), group.to_owned(), plural.to_owned(), verb.to_owned())
        };
        let expect = [
            row("apps", "deployments", "get"),
            row("apps", "deployments", "list"),
            row("", "persistentvolumeclaims", "get"),
            row("", "persistentvolumeclaims", "list"),
            row("", "services", "get"),
            row("", "services", "list"),
            row("", "services", "delete"),
        ];
        assert_eq!(granted(&roles), BTreeSet::from(expect));
        assert_eq!(document(&request(&[])), None);
    }

    #[test]
    fn policy_includes_what_created_roles_and_bindings_grant() {
        let rules = json!([{ "apiGroups": ["metrics.k8s.io"], "resources": ["pods"], "verbs": ["get"] }]);
        let role = wanted("role", Some("prod"), "reader", json!({ "rules": rules }));
        let binding = |name: &str, kind: &str, to: &str| {
            let to = json!({ "apiGroup": API, "kind": kind, "name": to });
            wanted("role-binding", Some("prod"), name, json!({ "roleRef": to }))
        };
        let (own, existing) = (binding("own", "Role", "reader"), binding("existing", "ClusterRole", "view"));
        let create = [Verb::Create].as_slice();
        let roles = roles(&request(&[(&role, create), (&own, create), (&existing, create)]));
        let [role, _] = roles.as_slice() else { panic!("{roles:?}") };
        let all = role["rules"].as_array().unwrap();
        assert!(all.contains(&rules[0]), "{all:?}");
        let bind =
            json!({ "apiGroups": [API], "resources": ["clusterroles"], "resourceNames": ["view"], "verbs": ["bind"] });
        let binds: Vec<_> = all.iter().filter(|rule| rule["verbs"] == json!(["bind"])).collect();
        assert_eq!(binds, [&bind], "the plan's own role needs no `bind`");
    }
}
