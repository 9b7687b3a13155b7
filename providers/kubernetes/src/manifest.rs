//! Manifests that are applied, and specs that are seen of objects.

use base64::Engine;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use textnlp_provider::{Error, Health, Object, Operation, Outputs, Result, SecretRef, SecretStore, Sort, Spec};

use crate::fields::{self, Owner, Segment};
use crate::identity::{self, Place};
use crate::ready::Ready;
use crate::table::{API_SERVICE, Row};

/// The member of a seen spec that says who owns which field: `{"ours": …, "others": [{name, subresource, fields}]}`.
pub(crate) const FIELDS: &str = "fields";
/// How a Secret's value is marked that is no secret: `{"$plain": "textnlp"}`.
pub(crate) const PLAIN: &str = "$plain";
/// The label of a ConfigMap whose texts others may refer to, each by its key.
pub(crate) const CARRIED: &str = "textnlp-carried";
/// A value that is in a Secret and of which we know nothing.
const UNKNOWN: &str = "***";
/// Whom the API server believes, which stands as PEM in specs; the API has bytes in base64.
const AUTHORITY: &str = "/spec/caBundle";
/// Above this an object is refused anyway: etcd takes 1.5 MiB.
const LARGEST: usize = 1536 << 10;

/// What is applied: the spec with its secrets, and who made it. Fields at `left_to_others` are left out.
pub(crate) async fn applied(
    row: &Row,
    op: &Operation,
    secrets: &dyn SecretStore,
    uid: Option<&str>,
    left_to_others: &[&[Segment]],
) -> Result<Value> {
    let invalid = |why: String| Error::new(Sort::Invalid, "apply", op.resource.to_string()).because(why);
    let mut manifest = fields::without(op.spec.as_value(), left_to_others);
    let mut versions = Map::new();
    if row.kind == "Secret" {
        if let Some(plain) = manifest.get("stringData") {
            return Err(invalid(format!(
                "`stringData` is not taken, `data` names secrets: {} keys",
                plain.as_object().map_or(0, Map::len)
            )));
        }
        for (key, value) in manifest.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
            // A word that everybody knows, such as a name that stands beside a password.
            if let Some(word) = value.get(PLAIN).and_then(Value::as_str).map(str::to_owned) {
                versions.insert(key.clone(), value.clone());
                *value = Value::from(base64::engine::general_purpose::STANDARD.encode(word));
                continue;
            }
            let Some(reference) = SecretRef::from_value(value) else {
                return Err(invalid(format!("`data.{key}` is no reference to a secret")));
            };
            let secret = secrets.get(&reference).await?;
            *value = Value::from(base64::engine::general_purpose::STANDARD.encode(secret.expose()));
            versions.insert(key.clone(), json!(reference));
        }
    } else if !op.spec.secrets().is_empty() {
        return Err(invalid("a secret stands where the API server keeps no secrets".to_owned()));
    }
    if let Some(authority) = manifest.pointer_mut(AUTHORITY).filter(|_| row.kind == API_SERVICE) {
        let pem = authority.as_str().unwrap_or_default();
        *authority = Value::from(base64::engine::general_purpose::STANDARD.encode(pem));
    }
    let Some(object) = manifest.as_object_mut() else { return Err(invalid("the spec is no object".to_owned())) };
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
        return Err(invalid(format!("the object is larger than {LARGEST} bytes, which no cluster keeps")));
    }
    Ok(manifest)
}

/// What is applied to give all fields of an object back: nothing but which one it is.
pub(crate) fn bare(row: &Row, place: &Place, uid: &str) -> Value {
    let mut metadata = json!({ "name": place.name, "uid": uid });
    if let Some(namespace) = &place.namespace {
        metadata["namespace"] = json!(namespace);
    }
    json!({ "apiVersion": row.api_version(), "kind": row.kind, "metadata": metadata })
}

/// An object as the contract shows it.
pub(crate) fn seen(row: &Row, raw: &Value, manager: &str, ready: Ready) -> Result<Object> {
    let place = Place::of_object(row, raw)
        .ok_or_else(|| Error::new(Sort::Unavailable, "read", row.resource()).because("an object has no name"))?;
    Ok(Object {
        kind: textnlp_provider::KindName::new(row.name).expect("the names in the table are kind names"),
        cloud_id: place.id()?,
        spec: spec(row, raw, manager),
        outputs: outputs(row, raw),
        lineage: identity::lineage(raw),
        health: match ready {
            Ready::Yes => Health::Ready,
            Ready::NotYet(why) | Ready::Never(why) => Health::Degraded(why),
        },
        via: None,
        foreign: Vec::new(),
    })
}

/// The manifest as it is, without what the server adds for itself, without values of secrets, and with who owns what.
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

/// A key that is ours holds the version that we wrote down beside it; of any other only that it is there is told.
fn hide(manifest: &mut Map<String, Value>, raw: &Value, ours: &Value) {
    let noted = raw["metadata"]["annotations"][identity::SECRETS].as_str().unwrap_or("{}");
    let versions: Value = serde_json::from_str(noted).unwrap_or_default();
    for (key, value) in manifest.get_mut("data").and_then(Value::as_object_mut).into_iter().flatten() {
        let is_ours = ours["f:data"].get(format!("f:{key}")).is_some();
        *value = versions.get(key).filter(|_| is_ours).cloned().unwrap_or_else(|| Value::from(UNKNOWN));
    }
    // Tools write what they applied into annotations once more, values and all: only those that we set are shown.
    let set = &ours["f:metadata"]["f:annotations"];
    let annotations = manifest.get_mut("metadata").and_then(|one| one.get_mut("annotations"));
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.retain(|name, _| set.get(format!("f:{name}")).is_some());
    }
}

/// Who owns what of a seen spec: our fields, and those of others.
pub(crate) fn owners(seen: &Spec) -> (Option<&Value>, Vec<Owner<'_>>) {
    let Some(fields) = seen.get(FIELDS) else { return (None, Vec::new()) };
    let others = fields["others"].as_array().into_iter().flatten().map(|owner| Owner {
        name: owner["name"].as_str().unwrap_or_default(),
        subresource: owner["subresource"].as_str().unwrap_or_default(),
        fields: &owner["fields"],
    });
    (fields.get("ours"), others.collect())
}

/// What others may read of an object: what stays the same while it lives, and digests by which pods are rolled.
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
            // For pods that carry what they read in their template.
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
            // Where clients reach it, where it was applied with that.
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
