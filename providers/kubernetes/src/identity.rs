//! The identity of an object: its name and uid as a cloud id, and its owner by labels and annotations.

use serde_json::Value;
use textnlp_provider::{CloudId, Error, ErrorKind, Lineage, ResourceId, Result, Spec};

use crate::table::Row;

/// The label with the lineage of a deployment, by which all of its objects are listed.
pub(crate) const LINEAGE: &str = "textnlp-lineage";
/// The label with the environment.
pub(crate) const ENVIRONMENT: &str = "textnlp-environment";
/// The annotation with the resource id: ids contain slashes and may exceed the length of labels.
pub(crate) const RESOURCE: &str = "textnlp-resource";
/// The annotation with the operation that last applied the object.
pub(crate) const OPERATION: &str = "textnlp-operation";
/// The annotation with the secret version of each key, as JSON.
pub(crate) const SECRETS: &str = "textnlp-secrets";

/// The annotation of a service with its external address.
pub(crate) const ADDRESS: &str = "textnlp-address";

/// The labels and annotations that are added to every object and are not part of a spec.
pub(crate) const OURS: [&str; 5] = [LINEAGE, ENVIRONMENT, RESOURCE, OPERATION, SECRETS];

/// The field manager of a deployment. Each lineage has its own.
pub(crate) fn manager(lineage: Lineage) -> String {
    format!("textnlp-deploy-{}", lineage.0.as_simple())
}

/// The manager that holds a value such as `replicas` during a handover, until its new owner sets it.
pub(crate) fn holder(manager: &str) -> String {
    format!("{manager}-handover")
}

/// The location of an object, and its uid to tell it from another object of the same name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ObjectLocation {
    pub(crate) namespace: Option<String>,
    pub(crate) name: String,
    /// `None` if only the name is known.
    pub(crate) uid: Option<String>,
}

impl ObjectLocation {
    /// The location in a spec.
    pub(crate) fn of_spec(row: &Row, spec: &Spec) -> Result<Self> {
        let invalid =
            |why: &str| Err(Error::new(ErrorKind::Invalid, "read the spec of", row.name).because(why.to_owned()));
        let metadata = spec.get("metadata").unwrap_or(&Value::Null);
        let text = |field: &str| metadata[field].as_str().filter(|text| is_name(text)).map(str::to_owned);
        let Some(name) = text("name") else { return invalid("`metadata.name` is not the name of an object") };
        let namespace = match (row.namespaced, text("namespace")) {
            (true, None) => return invalid("`metadata.namespace` is not the name of a namespace"),
            (true, namespace) => namespace,
            (false, _) => None,
        };
        Ok(Self { namespace, name, uid: None })
    }

    /// Parses `NAMESPACE/NAME/UID`, or `NAME/UID` of a cluster-scoped kind; an id from an operator may lack the uid.
    pub(crate) fn of_id(row: &Row, id: &CloudId) -> Option<Self> {
        let parts: Vec<&str> = id.as_str().split('/').collect();
        let (namespace, name, uid) = match (row.namespaced, &parts[..]) {
            (true, [namespace, name]) => (Some(*namespace), *name, None),
            (true, [namespace, name, uid]) => (Some(*namespace), *name, Some(*uid)),
            (false, [name]) => (None, *name, None),
            (false, [name, uid]) => (None, *name, Some(*uid)),
            _ => return None,
        };
        let sound = is_name(name) && namespace.is_none_or(is_name);
        sound.then(|| Self {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            uid: uid.map(str::to_owned),
        })
    }

    /// The location of an object from the API server.
    pub(crate) fn of_object(row: &Row, object: &Value) -> Option<Self> {
        let text = |field: &str| object["metadata"][field].as_str().map(str::to_owned);
        Some(Self { namespace: text("namespace").filter(|_| row.namespaced), name: text("name")?, uid: text("uid") })
    }

    /// The cloud id; it lacks the uid if that is not known.
    pub(crate) fn id(&self) -> Result<CloudId> {
        let parts = [self.namespace.as_deref(), Some(&self.name), self.uid.as_deref()];
        let id = parts.into_iter().flatten().collect::<Vec<_>>().join("/");
        CloudId::new(&id).map_err(|source| Error::new(ErrorKind::Invalid, "name", id).because(source))
    }
}

/// The uid of an object from the API server.
pub(crate) fn uid(object: &Value) -> &str {
    object["metadata"]["uid"].as_str().unwrap_or_default()
}

/// The lineage of an object; `None` if it has no lineage label.
pub(crate) fn lineage(object: &Value) -> Option<Lineage> {
    object["metadata"]["labels"][LINEAGE].as_str()?.parse().ok()
}

/// Whether a deployment applied an object. Users and controllers copy labels, but not field managers.
pub(crate) fn is_applied(object: &Value, lineage: Lineage) -> bool {
    let manager = manager(lineage);
    let mut entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    entries.any(|entry| entry["manager"] == manager.as_str() && entry["operation"] == "Apply")
}

/// The resource id of an object; `None` without the annotation.
pub(crate) fn resource(object: &Value) -> Option<ResourceId> {
    ResourceId::new(object["metadata"]["annotations"][RESOURCE].as_str()?).ok()
}

/// The GitOps controller that applies an object, by what it writes into each: Argo CD `APPLICATION:GROUP/KIND:NAMESPACE/NAME`,
/// Flux the name of its Kustomization.
pub(crate) fn controller(object: &Value) -> Option<String> {
    let metadata = &object["metadata"];
    if let Some(tracked) = metadata["annotations"][TRACKING].as_str() {
        return Some(format!("Argo CD (Application {})", tracked.split(':').next().unwrap_or_default()));
    }
    let kustomization = metadata["labels"]["kustomize.toolkit.fluxcd.io/name"].as_str()?;
    Some(format!("Flux (Kustomization {kustomization})"))
}

/// The annotation of Argo CD with the Application of an object.
pub(crate) const TRACKING: &str = "argocd.argoproj.io/tracking-id";
/// The field managers of GitOps controllers.
pub(crate) const CONTROLLERS: [(&str, &str); 3] =
    [("argocd-controller", "Argo CD"), ("helm-controller", "Flux"), ("kustomize-controller", "Flux")];

/// Who created an object that has no lineage, as the start of a sentence.
pub(crate) fn creator(object: &Value) -> String {
    controller(object).unwrap_or_else(|| "another client".to_owned())
}

/// Whether a name is safe in a path: names are DNS labels, and those of roles may contain colons.
fn is_name(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '.' | ':');
    (1..=253).contains(&text.len()) && text.chars().all(plain) && !text.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::ROWS;
    use serde_json::json;

    #[test]
    fn object_ids_round_trip() {
        for (kind, text) in
            [("Deployment", "shop/web/1-2"), ("Deployment", "shop/web"), ("ClusterRole", "system:reader/1-2")]
        {
            let row = ROWS.iter().find(|row| row.kind == kind).expect("a row");
            let place = ObjectLocation::of_id(row, &CloudId::new(text).expect("an id")).expect("a place");
            assert_eq!(place.id().expect("an id").as_str(), text);
        }
    }

    #[test]
    fn controllers_are_recognised_by_what_they_write_into_objects() {
        let tracked = "textnlp.pilot.main:apps/Deployment:textnlp/textnlp-api";
        let argo = json!({ "metadata": { "annotations": { "argocd.argoproj.io/tracking-id": tracked } } });
        assert_eq!(creator(&argo), "Argo CD (Application textnlp.pilot.main)");
        let flux = json!({ "metadata": { "labels": { "kustomize.toolkit.fluxcd.io/name": "apps" } } });
        assert_eq!(creator(&flux), "Flux (Kustomization apps)");
        assert_eq!(creator(&json!({ "metadata": { "name": "textnlp-api" } })), "another client");
    }

    #[test]
    fn unsafe_object_names_are_refused() {
        let row = ROWS.iter().find(|row| row.kind == "Deployment").expect("a row");
        for bad in ["../secrets/x", "a?b", "", "A", "x/y"] {
            let spec = Spec::of(&json!({ "metadata": { "name": bad, "namespace": "shop" } }));
            assert!(ObjectLocation::of_spec(row, &spec).is_err(), "{bad}");
            assert_eq!(ObjectLocation::of_id(row, &CloudId::new(format!("shop/{bad}/u/v")).expect("an id")), None);
        }
    }
}
