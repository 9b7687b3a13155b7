//! Conversion between specs and manifests: applied manifests, and specs of live objects.

use base64::Engine;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::{Error, ErrorKind, Health, Object, Operation, Outputs, Result, SecretRef, SecretStore, Spec};

use crate::api::encode;
use crate::fields::{self, Owner, PathSegment};
use crate::identity::{self, ObjectLocation};
use crate::ready::Ready;
use crate::table::{API_SERVICE, Row};

/// The member of a live spec with field ownership: `{"ours": …, "others": [{name, subresource, fields}]}`.
pub(crate) const FIELDS: &str = "fields";
/// Marks a value in a Secret that is not secret: `{"$plain": "textnlp"}`.
pub(crate) const PLAIN: &str = "$plain";
/// Marks the account at a registry: `{"$registry": "r.example.com", "username": "ci", "password": {"$secret": …}}`. In a Secret it is
/// the file of [`docker_config`].
pub(crate) const REGISTRY: &str = "$registry";
/// Marks an address whose password is a secret: `{"$url": "rediss://cache.example.com:6379", "password": {"$secret": …}}`. In a Secret it
/// is the address of [`with_password`].
pub(crate) const URL: &str = "$url";
/// The label of a ConfigMap whose texts are outputs, one per key.
pub(crate) const CARRIED: &str = "textnlp-carried";
/// The placeholder for a value in a Secret that the deployment does not own.
const UNKNOWN: &str = "***";
/// The certificate authority of an API service: PEM in specs, base64 in the API.
const AUTHORITY: &str = "/spec/caBundle";
/// The limit of a manifest in bytes; etcd rejects objects above 1.5 MiB.
const LARGEST: usize = 1536 << 10;

/// The manifest to apply: the spec with its secrets and identity. Fields at `left_to_others` are omitted.
pub(crate) async fn applied(
    row: &Row,
    op: &Operation,
    secrets: &dyn SecretStore,
    uid: Option<&str>,
    left_to_others: &[&[PathSegment]],
) -> Result<Value> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, "apply", op.resource.to_string()).because(why);
    let mut manifest = fields::without(op.spec.as_value(), left_to_others);
    let mut versions = Map::new();
    if row.kind == "Secret" {
        if let Some(plain) = manifest.get("stringData") {
            return Err(invalid(format!(
                "`stringData` is not supported, `data` references secrets: {} keys",
                plain.as_object().map_or(0, Map::len)
            )));
        }
        for (key, value) in manifest.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
            // A value that is not secret, such as the user name beside a password.
            if let Some(word) = value.get(PLAIN).and_then(Value::as_str).map(str::to_owned) {
                versions.insert(key.clone(), value.clone());
                *value = Value::from(base64::engine::general_purpose::STANDARD.encode(word));
                continue;
            }
            let is_registry = value.get(REGISTRY).is_some();
            let address = value.get(REGISTRY).or_else(|| value.get(URL)).and_then(Value::as_str).map(str::to_owned);
            let Some(reference) = SecretRef::from_value(if address.is_some() { &value["password"] } else { &*value })
            else {
                return Err(invalid(format!("`data.{key}` is not a reference to a secret")));
            };
            let secret = secrets.get(&reference).await?;
            let Some(address) = address else {
                *value = Value::from(base64::engine::general_purpose::STANDARD.encode(secret.expose()));
                versions.insert(key.clone(), json!(reference));
                continue;
            };
            let Some(password) = secret.expose_text() else {
                return Err(invalid(format!("the password of `{address}` is not UTF-8")));
            };
            let user = value["username"].as_str().unwrap_or_default();
            let file = match is_registry {
                true => docker_config(&address, user, password),
                false => with_password(&address, password).map_err(|why| invalid(format!("`data.{key}`: {why}")))?,
            };
            versions.insert(key.clone(), value.clone());
            *value = Value::from(base64::engine::general_purpose::STANDARD.encode(file));
        }
    } else if !op.spec.secrets().is_empty() {
        return Err(invalid("a secret is in a field that the API server does not treat as secret".to_owned()));
    }
    if let Some(authority) = manifest.pointer_mut(AUTHORITY).filter(|_| row.kind == API_SERVICE) {
        let pem = authority.as_str().unwrap_or_default();
        *authority = Value::from(base64::engine::general_purpose::STANDARD.encode(pem));
    }
    let Some(object) = manifest.as_object_mut() else { return Err(invalid("the spec is not an object".to_owned())) };
    object.insert("apiVersion".to_owned(), json!(row.api_version()));
    object.insert("kind".to_owned(), json!(row.kind));
    let metadata = &mut object["metadata"];
    metadata["labels"][identity::LINEAGE] = json!(op.lineage.to_string());
    metadata["labels"][identity::ENVIRONMENT] = json!(op.environment);
    metadata["annotations"][identity::RESOURCE] = json!(op.resource);
    metadata["annotations"][identity::OPERATION] = json!(op.id.to_string());
    if !versions.is_empty() {
        metadata["annotations"][identity::SECRETS] = json!(Value::Object(versions).to_string());
    }
    if let Some(uid) = uid {
        metadata["uid"] = json!(uid);
    }
    if manifest.to_string().len() > LARGEST {
        return Err(invalid(format!("the object is larger than {LARGEST} bytes, the limit of a cluster")));
    }
    Ok(manifest)
}

/// The file by which a kubelet signs in to a registry, with the members that `kubectl create secret docker-registry` writes
/// (<https://kubernetes.io/docs/concepts/containers/images/#config-json>).
fn docker_config(registry: &str, user: &str, password: &str) -> String {
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    json!({ "auths": { (registry): { "username": user, "password": password, "auth": basic } } }).to_string()
}

/// An address with a password.
fn with_password(address: &str, password: &str) -> Result<String, &'static str> {
    let (scheme, rest) = address.split_once("://").ok_or("the address has no scheme")?;
    Ok(format!("{scheme}://:{}@{rest}", encode(password)))
}

/// The manifest that releases all fields of an object: it contains only the object's identity.
pub(crate) fn bare(row: &Row, place: &ObjectLocation, uid: &str) -> Value {
    let mut metadata = json!({ "name": place.name, "uid": uid });
    if let Some(namespace) = &place.namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": row.api_version(), "kind": row.kind, "metadata": metadata })
}

/// A live object in the form of the contract.
pub(crate) fn seen(row: &Row, raw: &Value, manager: &str, ready: Ready) -> Result<Object> {
    let place = ObjectLocation::of_object(row, raw)
        .ok_or_else(|| Error::new(ErrorKind::Unavailable, "read", row.resource()).because("an object has no name"))?;
    Ok(Object {
        kind: textnlp_provider::KindName::new(row.name).expect("the names in the table are kind names"),
        cloud_id: place.id()?,
        spec: spec(row, raw, manager),
        outputs: outputs(row, raw),
        lineage: identity::lineage(raw),
        // The field manager, which names the lineage, marks what was applied; the annotation names the last operation.
        origin: textnlp_provider::Origin::Untold,
        created: None,
        health: match ready {
            Ready::Yes => Health::Ready,
            Ready::NotYet(why) | Ready::Never(why) => Health::Degraded(why),
        },
        via: None,
        foreign: Vec::new(),
    })
}

/// The live manifest with field ownership, without server-generated fields and without the values of secrets.
fn spec(row: &Row, raw: &Value, manager: &str) -> Spec {
    let mut manifest: Map<String, Value> = raw.as_object().cloned().unwrap_or_default();
    for own in ["apiVersion", "kind", "status"] {
        manifest.shift_remove(own);
    }
    let mut metadata = Map::new();
    for shown in ["name", "namespace", "labels", "annotations"] {
        if let Some(value) = raw["metadata"].get(shown) {
            metadata.insert(shown.to_owned(), value.clone());
        }
    }
    for texts in ["labels", "annotations"] {
        if let Some(texts) = metadata.get_mut(texts).and_then(Value::as_object_mut) {
            identity::OURS.iter().for_each(|ours| drop(texts.shift_remove(*ours)));
        }
    }
    manifest.insert("metadata".to_owned(), Value::Object(metadata));
    let managed = raw["metadata"]["managedFields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let is_ours = |entry: &&Value| entry["manager"] == manager && entry["operation"] == "Apply";
    let ours = managed.iter().find(is_ours).map_or(json!({}), |entry| entry["fieldsV1"].clone());
    if row.kind == "Secret" {
        hide(&mut manifest, raw, &ours);
    }
    let bundle = manifest.get_mut("spec").and_then(|spec| spec.get_mut("caBundle"));
    if let Some(bundle) = bundle.filter(|_| row.kind == API_SERVICE) {
        let bytes = base64::engine::general_purpose::STANDARD.decode(bundle.as_str().unwrap_or_default());
        *bundle = Value::from(bytes.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default());
    }
    let holder = identity::holder(manager);
    let others: Vec<Value> = managed
        .iter()
        .filter(|entry| !is_ours(entry) && entry["manager"] != holder.as_str() && entry["subresource"] != "status")
        .map(|entry| json!({ "name": entry["manager"], "subresource": entry["subresource"], "fields": entry["fieldsV1"] }))
        .collect();
    manifest.insert(FIELDS.to_owned(), json!({ "ours": ours, "others": others }));
    Spec::of(&Value::Object(manifest))
}

/// Replaces secret values: an owned key by its recorded version, any other by a placeholder.
fn hide(manifest: &mut Map<String, Value>, raw: &Value, ours: &Value) {
    let noted = raw["metadata"]["annotations"][identity::SECRETS].as_str().unwrap_or("{}");
    let versions: Value = serde_json::from_str(noted).unwrap_or_default();
    for (key, value) in manifest.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
        let is_ours = ours["f:data"].get(format!("f:{key}")).is_some();
        *value = versions.get(key).filter(|_| is_ours).cloned().unwrap_or_else(|| Value::from(UNKNOWN));
    }
    // Tools such as kubectl store a copy of applied values in annotations, so only owned annotations are shown, and the name of an
    // Application of Argo CD: else it would count as another controller than that of the other objects.
    let set = &ours["f:metadata"]["f:annotations"];
    let annotations = manifest.get_mut("metadata").and_then(|one| one.get_mut("annotations"));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.retain(|name, _| name == identity::TRACKING || set.get(format!("f:{name}")).is_some());
    }
}

/// The owned fields of a live spec, and those of other managers.
pub(crate) fn owners(seen: &Spec) -> (Option<&Value>, Vec<Owner<'_>>) {
    let Some(fields) = seen.get(FIELDS) else { return (None, Vec::new()) };
    let others = fields["others"].as_array().into_iter().flatten().map(|owner| Owner {
        name: owner["name"].as_str().unwrap_or_default(),
        subresource: owner["subresource"].as_str().unwrap_or_default(),
        fields: &owner["fields"],
    });
    (fields.get("ours"), others.collect())
}

/// The GitOps controller that applies an object too: by what it writes into it, else by its field manager.
pub(crate) fn controller(seen: &Spec) -> Option<String> {
    let (_, others) = owners(seen);
    let named = |owner: &Owner<'_>| {
        let known = identity::CONTROLLERS.into_iter().find(|(manager, _)| *manager == owner.name);
        known.map(|(_, name)| name.to_owned())
    };
    identity::controller(seen.as_value()).or_else(|| others.iter().find_map(named))
}

/// The outputs of an object: values that are constant for its lifetime, and digests that roll pods.
pub(crate) fn outputs(row: &Row, raw: &Value) -> Outputs {
    let mut outputs = Outputs::new();
    for field in ["name", "namespace", "uid"] {
        if let Some(value) = raw["metadata"].get(field) {
            outputs.insert(field.to_owned(), value.clone());
        }
    }
    match row.kind {
        "ConfigMap" => {
            let data = Spec::of(&json!({ "data": raw["data"], "binaryData": raw["binaryData"] }));
            outputs.insert("digest".to_owned(), json!(data.digest()));
            // For pods whose template includes their configuration.
            if raw["metadata"]["labels"][CARRIED] == "true" {
                let texts = raw["data"].as_object().into_iter().flatten();
                outputs.extend(texts.map(|(key, text)| (key.clone(), text.clone())));
            }
        }
        "Secret" => {
            let noted = raw["metadata"]["annotations"][identity::SECRETS].as_str().unwrap_or_default();
            outputs.insert("digest".to_owned(), json!(hex::encode(Sha256::digest(noted.as_bytes()))));
        }
        "Service" => {
            let (name, namespace) = (&raw["metadata"]["name"], &raw["metadata"]["namespace"]);
            let host = format!("{}.{}.svc", name.as_str().unwrap_or_default(), namespace.as_str().unwrap_or_default());
            outputs.insert("host".to_owned(), json!(host));
            // The external address, if the service was applied with one.
            if let Some(url) = raw["metadata"]["annotations"].get(identity::ADDRESS) {
                outputs.insert("url".to_owned(), url.clone());
            }
            let balancer = &raw["status"]["loadBalancer"]["ingress"][0];
            if let Some(address) = balancer.get("ip").or(balancer.get("hostname")) {
                outputs.insert("address".to_owned(), address.clone());
            }
        }
        _ => {}
    }
    outputs
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_escaped_in_an_address() {
        let address = with_password("rediss://r.example.com:10000", "aB1/+=~#");
        assert_eq!(address.unwrap(), "rediss://:aB1%2F%2B%3D~%23@r.example.com:10000");
        assert!(with_password("r.example.com:10000", "a").is_err());
    }

    #[test]
    fn a_controller_is_recognised_by_its_field_manager_too() {
        let row = crate::table::ROWS.iter().find(|row| row.kind == "Secret").expect("a row");
        let found = |manager: &str| {
            let entry = |name: &str| json!({ "manager": name, "operation": "Apply", "fieldsV1": { "f:data": {} } });
            let entries = [entry("textnlp"), entry(manager)];
            let raw = json!({ "metadata": { "name": "a", "managedFields": entries } });
            controller(&spec(row, &raw, "textnlp"))
        };
        assert_eq!(found("argocd-controller").as_deref(), Some("Argo CD"));
        assert_eq!(found("kustomize-controller").as_deref(), Some("Flux"));
        assert_eq!(found("kube-controller-manager"), None);
        let annotations = json!({ (identity::TRACKING): "shop:/Secret:a/a", "last-applied": "the values" });
        let seen = spec(row, &json!({ "metadata": { "name": "a", "annotations": annotations } }), "textnlp");
        assert_eq!(controller(&seen).as_deref(), Some("Argo CD (Application shop)"));
        assert!(seen.as_value()["metadata"]["annotations"].get("last-applied").is_none(), "{seen:?}");
    }
}
