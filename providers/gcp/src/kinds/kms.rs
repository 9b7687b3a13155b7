//! Key rings and keys of Cloud KMS: <https://cloud.google.com/kms/docs/reference/rest>.
//!
//! A ring and the name of a key never end (hashicorp/terraform-provider-google#1214). A ring that exists is therefore adopted, and a key
//! whose versions were
//! destroyed counts as gone and gets a new version.

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::{get, last};
use textnlp_cloud::{ObservedObject, State};
use textnlp_provider::{DataClass, Error, ErrorKind, Identity, Kind, Pricing, Result, Spec};

use super::{create, delete, put, read};
use crate::api::{Api, Call};
use crate::declare::{ID, Terraform};
use crate::row::{Create, Field, Labelling, Marks, New, Rest, RestKind, Table, send};
use crate::service::Service;
use crate::table::{Row, kind};

/// States of a version that is or becomes usable.
const LIVE: [&str; 3] = ["ENABLED", "DISABLED", "PENDING_GENERATION"];
/// The seconds of a day.
const DAY: u64 = 86_400;
/// The members that say when a key rotates.
const ROTATION: &str = "rotationPeriod,nextRotationTime";

pub(crate) static ROWS: &[Row] = &[
    Row {
        kind: Kind {
            permissions: &[create("cloudkms.keyRings.create"), read("cloudkms.keyRings.get")],
            ..kind("gcp.key-ring", "a ring of keys", Identity::Part)
        },
        service: "cloudkms",
        resource: &Rest::<KeyRing>::kind(),
        refused: &[],
    },
    Row {
        kind: Kind {
            data: DataClass::Precious,
            pricing: Pricing::BySpec,
            permissions: &[
                create("cloudkms.cryptoKeys.create"),
                read("cloudkms.cryptoKeys.get"),
                read("cloudkms.cryptoKeys.list"),
                // Keys are listed ring by ring.
                read("cloudkms.keyRings.list"),
                put("cloudkms.cryptoKeys.update"),
                delete("cloudkms.cryptoKeys.update"),
                create("cloudkms.cryptoKeyVersions.create"),
                create("cloudkms.cryptoKeyVersions.list"),
                delete("cloudkms.cryptoKeyVersions.list"),
                delete("cloudkms.cryptoKeyVersions.destroy"),
            ],
            terraform: &[("google_kms_crypto_key", "id")],
            ..kind("gcp.key", "a key", Identity::Named)
        },
        service: "cloudkms",
        resource: &Rest::<Key>::kind(),
        refused: &[],
    },
];

/// A ring. It has no labels and never ends. Outputs: `id`, `name`.
struct KeyRing;

impl RestKind for KeyRing {
    const TABLE: &'static Table = &Table {
        service: Service::CloudKms,
        path: "projects/{project}/locations/{location}/keyRings/{name}",
        collection: "projects/{project}/locations/{location}/keyRings",
        items: "keyRings",
        create: Create::Query("keyRingId"),
        retained: true,
        terraform: Terraform {
            kind: "google_kms_key_ring",
            named: &[("project", "/project"), ("location", "/location"), ("name", "/name")],
            outputs: &[ID],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };
}

/// A key that encrypts for Google's services. Outputs: `id`, `name`.
struct Key;

#[async_trait]
impl RestKind for Key {
    const TABLE: &'static Table = &Table {
        service: Service::CloudKms,
        path: "{ring}/cryptoKeys/{name}",
        collection: "{ring}/cryptoKeys",
        items: "cryptoKeys",
        within: Some(("projects/{project}/locations/{location}/keyRings", "keyRings")),
        create: Create::Query("cryptoKeyId"),
        constants: &[
            ("/purpose", "\"ENCRYPT_DECRYPT\""),
            ("/versionTemplate/algorithm", "\"GOOGLE_SYMMETRIC_ENCRYPTION\""),
            ("/versionTemplate/protectionLevel", "\"SOFTWARE\""),
        ],
        fields: &[Field::code("rotation_days", "/rotationPeriod", period, days)],
        in_place: &["rotation_days"],
        marks: Marks::Labels("/labels", Labelling::Patch),
        terraform: Terraform {
            kind: "google_kms_crypto_key",
            named: &[("ring", "/key_ring"), ("name", "/name")],
            outputs: &[ID],
            ..Terraform::USUAL
        },
        ..Table::USUAL
    };

    fn state(document: &Value) -> State {
        match get(document, "/primary/state").and_then(Value::as_str) {
            Some("ENABLED") => State::Ready,
            Some("PENDING_GENERATION") => State::Pending("being generated".to_owned()),
            Some("DISABLED") => State::Degraded("its primary version is disabled".to_owned()),
            // A version that is scheduled to be destroyed cannot be used (hashicorp/terraform-provider-google#27365).
            _ => State::Gone,
        }
    }

    async fn prepare(_api: &Api, spec: &Spec, document: &mut Value, _alternative: usize) -> Result<()> {
        if let Some(time) = spec.get("rotation_days").and_then(next_rotation) {
            document["nextRotationTime"] = time;
        }
        Ok(())
    }

    /// The period and the next time of rotations change together.
    async fn put(api: &Api, id: &str, wanted: &Value, field: &str) -> Result<Option<String>> {
        if field != "rotation_days" {
            return Err(crate::row::invalid("change", id, &format!("`{field}` does not change in place")));
        }
        let body = match next_rotation(wanted) {
            Some(time) => json!({ "rotationPeriod": period(wanted), "nextRotationTime": time }),
            None => json!({}),
        };
        let call = Call::new(Service::CloudKms, Method::PATCH, id).query("updateMask", ROTATION);
        api.send(call.body(body)).await.map(|_| None)
    }

    /// The name of a key whose versions were destroyed stays taken: it gets another version and our labels.
    async fn send(api: &Api, new: New) -> Result<Option<String>> {
        let (id, document) = (new.id.clone(), new.document.clone());
        let error = match send(api, Self::TABLE, new).await {
            Err(error) if error.kind == ErrorKind::Exists => error,
            sent => return sent,
        };
        match Self::fetch(api, &id).await? {
            Some(found) if Self::state(&found) == State::Gone => revive(api, &id, &document).await.map(|()| None),
            _ => Err(error),
        }
    }

    /// Stops the rotation, and destroys the versions: they stay recoverable for the days that KMS waits.
    async fn end(api: &Api, seen: &ObservedObject<Spec>) -> Result<Option<String>> {
        let id = seen.id.as_str();
        if seen.spec.get("rotation_days").is_some_and(|days| !days.is_null()) {
            let call = Call::new(Service::CloudKms, Method::PATCH, id).query("updateMask", ROTATION);
            return api.send(call.body(json!({}))).await.map(|_| None);
        }
        for version in versions(api, id).await?.into_iter().filter(is_live) {
            let name = version["name"].as_str().unwrap_or_default();
            let call = Call::post(Service::CloudKms, format!("{name}:destroy"), json!({}));
            api.send(call.saying("destroy", format!("version {} of {id}", last(name)))).await?;
        }
        Ok(None)
    }
}

async fn versions(api: &Api, id: &str) -> Result<Vec<Value>> {
    api.list(Service::CloudKms, &format!("{id}/cryptoKeyVersions"), "cryptoKeyVersions", &[]).await
}

fn is_live(version: &Value) -> bool {
    version["state"].as_str().is_some_and(|state| LIVE.contains(&state))
}

async fn revive(api: &Api, id: &str, document: &Value) -> Result<()> {
    let subject = format!("key {}", last(id));
    let live = versions(api, id).await?.into_iter().find(is_live);
    let version = match live {
        Some(version) => version,
        None => {
            let call = Call::post(Service::CloudKms, format!("{id}/cryptoKeyVersions"), json!({}));
            api.send(call.saying("create a version of", subject.clone())).await?
        }
    };
    // A version is generated for a while, and cannot be the primary one until then.
    if version["state"] == "PENDING_GENERATION" {
        let error = Error::new(ErrorKind::Conflict, "create", subject);
        return Err(error.because("its new version is being generated"));
    }
    let labels = Call::new(Service::CloudKms, Method::PATCH, id)
        .query("updateMask", "labels,rotationPeriod,nextRotationTime")
        .body(json!({
            "labels": document["labels"],
            "rotationPeriod": document["rotationPeriod"],
            "nextRotationTime": document["nextRotationTime"],
        }));
    api.send(labels).await?;
    let body = json!({ "cryptoKeyVersionId": last(version["name"].as_str().unwrap_or_default()) });
    let call = Call::post(Service::CloudKms, format!("{id}:updatePrimaryVersion"), body);
    api.send(call.saying("change", subject)).await.map(drop)
}

/// The time of the next rotation, if there is one.
fn next_rotation(days: &Value) -> Option<Value> {
    let days = days.as_i64()?;
    Some(json!(Timestamp::now() + SignedDuration::from_hours(days.saturating_mul(24))))
}

fn period(days: &Value) -> Value {
    days.as_u64().map_or(Value::Null, |days| json!(format!("{}s", days.saturating_mul(DAY))))
}

fn days(document: &Value) -> Value {
    let text = get(document, "/rotationPeriod").and_then(Value::as_str);
    let seconds = text.and_then(|text| text.trim_end_matches('s').parse::<u64>().ok());
    seconds.map_or(Value::Null, |seconds| json!(seconds / DAY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destroyed_keys_are_gone() {
        let of = |state: &str| Key::state(&json!({ "primary": { "state": state } }));
        assert_eq!(of("ENABLED"), State::Ready);
        assert_eq!([of("DESTROY_SCHEDULED"), of("DESTROYED"), Key::state(&json!({}))], [const { State::Gone }; 3]);
        assert_eq!(days(&json!({ "rotationPeriod": period(&json!(90)) })), json!(90));
    }
}
