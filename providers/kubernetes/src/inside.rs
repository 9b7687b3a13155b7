//! Foreign objects in a namespace, which its deletion would delete too. The same for a custom resource definition,
//! whose deletion deletes all objects of its kind.

use std::collections::BTreeSet;

use futures::future::BoxFuture;
use serde_json::Value;
use textnlp_provider::{Error, ErrorKind, Lineage, Result};

use crate::api::Api;
use crate::error::{Call, Rule, missing_rules};
use crate::identity;
use crate::lower::FILLED_BY_CERT_MANAGER;
use crate::observe::several;
use crate::ready::{self, Ready};

/// Objects that clusters create in every namespace or derive from its content.
const EVERY_NAMESPACES: [(&str, &str); 6] = [
    ("serviceaccounts", "default"),
    ("configmaps", "kube-root-ca.crt"),
    // Created by OpenShift.
    ("configmaps", "openshift-service-ca.crt"),
    ("serviceaccounts", "builder"),
    ("serviceaccounts", "deployer"),
    ("serviceaccounts", "pipeline"),
];
/// Kinds that only describe other objects.
const WORDS_ABOUT_OTHERS: [(&str, &str); 3] = [("", "events"), ("events.k8s.io", "events"), ("", "endpoints")];
/// The group whose objects are computed on request.
const READINGS: &str = "metrics.k8s.io";

/// Objects of others.
pub(crate) struct Foreign {
    /// Their names. Example: `configmaps settings`.
    pub(crate) names: Vec<String>,
    /// Whether the cluster removes all of them: each one is being deleted, or belongs to an owner that no longer exists, such as
    /// a pod whose job was deleted.
    pub(crate) is_leaving: bool,
}

impl Foreign {
    fn of<'a>(objects: impl Iterator<Item = (String, &'a Value)>) -> Self {
        let mut foreign = Self { names: Vec::new(), is_leaving: true };
        for (name, object) in objects {
            let metadata = &object["metadata"];
            // An owner that exists is one of the objects, and decides.
            let is_owned = metadata["ownerReferences"].as_array().is_some_and(|owners| !owners.is_empty());
            foreign.is_leaving &= is_owned || metadata["deletionTimestamp"].is_string();
            foreign.names.push(name);
        }
        foreign
    }
}

/// A namespaced kind, as API discovery names it.
struct NamespacedKind {
    group: String,
    version: String,
    plural: String,
}

impl NamespacedKind {
    fn path(&self, namespace: &str) -> String {
        format!("{}/namespaces/{namespace}/{}", self.root(), self.plural)
    }

    /// The path of all objects, across namespaces.
    fn everywhere(&self) -> String {
        format!("{}/{}", self.root(), self.plural)
    }

    fn root(&self) -> String {
        let Self { group, version, .. } = self;
        if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
    }

    fn rule(&self) -> Rule<'_> {
        Rule { group: &self.group, plural: &self.plural, verbs: vec!["list"] }
    }
}

/// The foreign objects in a namespace: without this lineage, and not owned by an object that has it.
///
/// `call` is the deletion of the namespace.
///
/// # Errors
/// If a kind cannot be listed: its objects must not be assumed absent.
pub(crate) async fn foreign(api: &Api, call: &Call<'_>, namespace: &str, lineage: Lineage) -> Result<Foreign> {
    let kinds = kinds(api, call).await?;
    let mut lists: Vec<BoxFuture<'_, Result<Vec<Value>>>> = Vec::new();
    for kind in &kinds {
        lists.push(Box::pin(async move { api.metadata(call, &kind.path(namespace)).await }));
    }
    let mut denied = Vec::new();
    let mut all = Vec::new();
    for (kind, listed) in kinds.iter().zip(several(lists).await) {
        match listed {
            Ok(objects) => all.extend(objects.into_iter().map(|object| (kind, object))),
            Err(error) if is_forbidden(&error) => denied.push(kind.rule()),
            // A kind that was removed meanwhile, or does not support lists, has no objects.
            Err(error) if error.kind == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    if !denied.is_empty() {
        let kinds: Vec<String> = denied.iter().map(Rule::resource).collect();
        let why = format!("its contents are deleted with it, and you are not allowed to list its {}", kinds.join(", "));
        let rules = missing_rules(Some(namespace), &denied);
        let hint = format!("ask a cluster administrator to add this role and bind it to you:\n{rules}");
        return Err(call.error(ErrorKind::Denied).because(why).hint(hint));
    }
    let known = derived(&all, lineage);
    let foreign = all
        .iter()
        .filter(|(kind, object)| !known.contains(identity::uid(object)) && !is_every_namespaces(&kind.plural, object));
    Ok(Foreign::of(foreign.map(|(kind, object)| {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        (format!("{} {name}", kind.rule().resource()), object)
    })))
}

/// The foreign objects of a definition's kind: without this lineage, and not owned by an object that has it. A name is such as `shop/web`.
///
/// `call` is the deletion of the definition.
///
/// # Errors
/// If the objects cannot be listed.
pub(crate) async fn of_kind(api: &Api, call: &Call<'_>, definition: &Value, lineage: Lineage) -> Result<Foreign> {
    let spec = &definition["spec"];
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let versions = spec["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    // The API server converts objects, so any served version lists them all.
    let Some(version) = versions.iter().find(|version| version["served"] == true) else {
        let why = "none of its versions is served, so the objects that are deleted with it cannot be listed";
        return Err(call.error(ErrorKind::Denied).because(why).hint("serve a version, and run the same command again"));
    };
    let kind = NamespacedKind {
        group: text(&spec["group"]),
        version: text(&version["name"]),
        plural: text(&spec["names"]["plural"]),
    };
    let objects = match api.metadata(call, &kind.everywhere()).await {
        Ok(objects) => objects,
        // The definition was never established.
        Err(error) if error.kind == ErrorKind::NotFound && !matches!(ready::definition(definition), Ready::Yes) => {
            return Ok(Foreign::of(std::iter::empty()));
        }
        Err(error) if is_forbidden(&error) => {
            let why = format!(
                "the objects of its kind are deleted with it, and you are not allowed to list {}",
                kind.rule().resource()
            );
            let rules = missing_rules(None, &[kind.rule()]);
            let hint = format!("ask a cluster administrator to add this role and bind it to you:\n{rules}");
            return Err(call.error(ErrorKind::Denied).because(why).hint(hint));
        }
        Err(error) => return Err(error),
    };
    let all: Vec<(&NamespacedKind, Value)> = objects.into_iter().map(|object| (&kind, object)).collect();
    let known = derived(&all, lineage);
    let foreign = all.iter().filter(|(_, object)| !known.contains(identity::uid(object)));
    Ok(Foreign::of(foreign.map(|(_, object)| {
        let metadata = &object["metadata"];
        let parts = [&metadata["namespace"], &metadata["name"]].into_iter().filter_map(Value::as_str);
        (parts.collect::<Vec<_>>().join("/"), object)
    })))
}

/// Whether a role is missing. An identity that the API server does not accept at the moment, or that has no credential for it, needs none.
pub(crate) fn is_forbidden(error: &Error) -> bool {
    error.kind == ErrorKind::Denied && error.code.as_deref().is_some_and(|code| !matches!(code, "401" | "Unauthorized"))
}

/// Every namespaced kind that can be listed, in the preferred version.
async fn kinds(api: &Api, call: &Call<'_>) -> Result<Vec<NamespacedKind>> {
    let groups = api.document(call, "/apis").await?;
    let groups = groups["groups"].as_array().cloned().unwrap_or_default();
    let mut versions = vec![(String::new(), "v1".to_owned())];
    for group in &groups {
        let name = group["name"].as_str().unwrap_or_default();
        if let Some(version) = group["preferredVersion"]["version"].as_str()
            && name != READINGS
            && !name.ends_with(&format!(".{READINGS}"))
        {
            versions.push((name.to_owned(), version.to_owned()));
        }
    }
    let mut documents: Vec<BoxFuture<'_, Result<Value>>> = Vec::new();
    for (group, version) in &versions {
        let path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        documents.push(Box::pin(async move { api.document(call, &path).await }));
    }
    let mut kinds = Vec::new();
    for ((group, version), document) in versions.iter().zip(several(documents).await) {
        let document = match document {
            // Its last definition was removed meanwhile.
            Err(error) if error.kind == ErrorKind::NotFound => continue,
            document => document?,
        };
        for one in document["resources"].as_array().into_iter().flatten() {
            let Some(plural) = one["name"].as_str() else { continue };
            let can_be_listed = one["verbs"].as_array().is_some_and(|verbs| verbs.iter().any(|verb| verb == "list"));
            let is_part = plural.contains('/');
            if one["namespaced"] == true
                && can_be_listed
                && !is_part
                && !WORDS_ABOUT_OTHERS.contains(&(group.as_str(), plural))
            {
                kinds.push(NamespacedKind {
                    group: group.clone(),
                    version: version.clone(),
                    plural: plural.to_owned(),
                });
            }
        }
    }
    match kinds.is_empty() {
        true => {
            Err(Error::new(ErrorKind::Unavailable, "list the kinds of", "the cluster").because("the answer lists none"))
        }
        false => Ok(kinds),
    }
}

/// The uids of the objects with the lineage, and of everything that they own, directly or not.
fn derived<'a>(all: &'a [(&NamespacedKind, Value)], lineage: Lineage) -> BTreeSet<&'a str> {
    let ours = all.iter().filter(|(_, object)| identity::lineage(object) == Some(lineage));
    let mut known: BTreeSet<&str> = ours.map(|(_, object)| identity::uid(object)).collect();
    loop {
        let before = known.len();
        for (_, object) in all {
            let mut owners = object["metadata"]["ownerReferences"].as_array().into_iter().flatten();
            if owners.any(|owner| owner["uid"].as_str().is_some_and(|uid| known.contains(uid))) {
                known.insert(identity::uid(object));
            }
        }
        if known.len() == before {
            return known;
        }
    }
}

fn is_every_namespaces(plural: &str, object: &Value) -> bool {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().unwrap_or_default();
    // Service account tokens. The cluster deletes them with their account.
    let is_token = plural == "secrets" && metadata["annotations"]["kubernetes.io/service-account.name"].is_string();
    // The certificate that cert-manager issued for the deployment's own ingress outlives it and is not used elsewhere.
    let filled = metadata["annotations"]["cert-manager.io/certificate-name"].as_str();
    let is_ours = plural == "secrets" && name == FILLED_BY_CERT_MANAGER && filled == Some(FILLED_BY_CERT_MANAGER);
    is_token || is_ours || EVERY_NAMESPACES.contains(&(plural, name))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn objects_leave_by_themselves_unless_one_has_no_owner() {
        let pod = json!({ "metadata": { "ownerReferences": [{ "kind": "Job", "uid": "gone" }] } });
        let ending = json!({ "metadata": { "deletionTimestamp": "2026-01-01T00:00:00Z" } });
        let settings = json!({ "metadata": { "name": "settings" } });
        let is_leaving =
            |objects: &[&Value]| Foreign::of(objects.iter().map(|object| (String::new(), *object))).is_leaving;
        assert!(is_leaving(&[&pod, &ending]));
        assert!(!is_leaving(&[&pod, &ending, &settings]));
    }

    #[test]
    fn identity_that_is_not_accepted_lacks_no_role() {
        let denied = |code: &str| Error::new(ErrorKind::Denied, "list", "pods").code(code);
        assert!(is_forbidden(&denied("Forbidden")) && !is_forbidden(&denied("Unauthorized")));
        assert!(!is_forbidden(&Error::new(ErrorKind::Denied, "list", "pods")));
    }
}
