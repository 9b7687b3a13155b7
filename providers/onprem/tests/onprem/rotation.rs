//! Requested rotations of a site's secrets and of its certificate authority.

use crate::machine::Machine;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};
use textnlp_keys::{Marker, SiteFolder, trust};
use textnlp_provider::{Observed, Provider, ResourceId, Rotation, Spec, Verb, Wanted};

const AUTHORITY: &str = "here/certificate/authority";

fn id(id: &str) -> ResourceId {
    ResourceId::new(id).unwrap()
}

fn now() -> Rotation {
    Rotation { at: Timestamp::now(), immediately: false, new_id: false }
}

/// Records the operator's request, as the journal does.
fn request(machine: &mut Machine, resource: &str, rotation: &Rotation) {
    let recorded = machine.recorded.get_mut(&id(resource)).unwrap();
    recorded.spec = recorded.spec.with_rotation(rotation);
}

fn output(machine: &Machine, resource: &str, name: &str) -> Value {
    machine.recorded[&id(resource)].outputs[name].clone()
}

fn versions(machine: &Machine, secret: &str) -> usize {
    machine.state.join("secrets").join(secret).read_dir_utf8().unwrap().count()
}

fn assert_step(steps: &[String], start: &str) {
    assert!(steps.iter().any(|step| step.starts_with(start)), "{start} in {steps:#?}");
}

#[tokio::test]
async fn requested_rotation_replaces_a_secret_and_what_is_made_of_it() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let key_file = machine.folder().join("certs/server-jwt-key.pem");
    let old = std::fs::read(&key_file).unwrap();
    let (public_id, sha256) =
        (output(&machine, "here/secrets/api-key", "public_id"), output(&machine, "here/secrets/api-key", "sha256"));
    request(&mut machine, "here/secrets/jwt-signing-key", &now());
    request(&mut machine, "here/secrets/api-key", &now());
    let steps = machine.up().await;
    for step in [
        "update here/secrets/jwt-signing-key: requested_rotation",
        "update here/secrets/api-key: requested_rotation",
        "update here/server/jwt-key: ",
        "update here/server/replica-0: ",
        "update here/server/api-key: sha256",
    ] {
        assert_step(&steps, step);
    }
    assert_ne!(std::fs::read(&key_file).unwrap(), old);
    assert_eq!(output(&machine, "here/secrets/api-key", "public_id"), public_id);
    assert_ne!(output(&machine, "here/secrets/api-key", "sha256"), sha256);
    assert_eq!(machine.up().await, [] as [String; 0], "it is done once");
    request(&mut machine, "here/secrets/api-key", &Rotation { new_id: true, ..now() });
    machine.up().await;
    assert_ne!(output(&machine, "here/secrets/api-key", "public_id"), public_id);
    assert_eq!(versions(&machine, "here.api-key"), 3);
    machine.down().await;
}

#[tokio::test]
async fn interrupted_rotation_goes_on_with_the_value_that_it_made() {
    let mut machine = Machine::new(1);
    machine.up().await;
    for (resource, secret) in [("here/secrets/jwt-signing-key", "here.jwt-signing-key"), (AUTHORITY, "here.ca-key")] {
        request(&mut machine, resource, &now());
        let wanted: Wanted = machine.wanted().into_iter().find(|wanted| wanted.id == id(resource)).unwrap();
        let spec: Spec = machine.resolved(&wanted);
        let object = read(&machine, resource).await;
        let changes = machine.onprem.diff(&wanted, &machine.recorded[&id(resource)], &object);
        let op = machine.operation(Verb::Update, &wanted, spec.clone(), changes);
        // The answers of the first calls are lost.
        machine.onprem.begin(&op).await.unwrap();
        machine.onprem.begin(&op).await.unwrap();
        let object = machine.drive(&op).await.unwrap();
        assert_eq!(versions(&machine, secret), 2, "{resource}");
        machine.record(&wanted, spec, object);
        let object = read(&machine, resource).await;
        assert_eq!(machine.onprem.diff(&wanted, &machine.recorded[&id(resource)], &object), []);
    }
    machine.up().await;
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}

async fn read(machine: &Machine, resource: &str) -> textnlp_provider::Object {
    match machine.observe().await.remove(&id(resource)) {
        Some(Observed::Present(object)) => object,
        other => panic!("{resource}: {other:?}"),
    }
}

#[tokio::test]
async fn replaced_authority_stays_in_the_file_until_the_overlap_ends() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let folder = machine.folder();
    let file = |name: &str| std::fs::read_to_string(folder.join("certs").join(name)).unwrap();
    let count = |pem: &str| pem.matches("BEGIN CERTIFICATE").count();
    let signed_by = |ca: &str| {
        trust::inspect(file("server.pem").as_bytes(), Some(ca.as_bytes()), None).unwrap().signed == Some(true)
    };
    let first = file("ca.pem");
    assert!(signed_by(&first));

    request(&mut machine, AUTHORITY, &now());
    let steps = machine.up().await;
    assert_step(&steps, "update here/certificate/authority: requested_rotation");
    assert_step(&steps, "update here/certificate/leaf: authority");
    let both = file("ca.pem");
    assert!(count(&both) == 2 && both.contains(first.trim()), "{both}");
    assert!(signed_by(&both) && !signed_by(&first), "the new one comes first, and is the only one that signs");
    assert_eq!(machine.up().await, [] as [String; 0]);

    // The overlap ends.
    let site = SiteFolder::at(&folder);
    let mut marker = Marker::read(&site.marker(&id(AUTHORITY))).unwrap().unwrap();
    marker.facts.insert("previous_until".to_owned(), json!(Timestamp::now() - SignedDuration::from_secs(1)));
    marker.write(&site).unwrap();
    assert_eq!(machine.up().await, ["update here/certificate/authority: certificate"]);
    let second = file("ca.pem");
    assert!(count(&second) == 1 && both.starts_with(second.trim()), "{second}");
    assert!(signed_by(&second));
    assert_eq!(machine.up().await, [] as [String; 0]);

    // After a leak there is no overlap.
    request(&mut machine, AUTHORITY, &Rotation { immediately: true, ..now() });
    machine.up().await;
    let third = file("ca.pem");
    assert!(count(&third) == 1 && third != second && signed_by(&third));
    machine.down().await;
}

#[tokio::test]
async fn authority_of_an_earlier_version_stays_until_it_is_rotated() {
    let mut machine = Machine::new(1);
    machine.up().await;
    let site = SiteFolder::at(&machine.folder());
    let mut marker = Marker::read(&site.marker(&id(AUTHORITY))).unwrap().unwrap();
    let mut spec = marker.spec.as_value().clone();
    let names = spec.as_object_mut().unwrap().remove("names").unwrap();
    assert!(names.as_array().unwrap().contains(&json!("a.example")), "{names}");
    spec["days"] = json!(3650);
    marker.spec = Spec::of(&spec);
    marker.write(&site).unwrap();
    machine.recorded.get_mut(&id(AUTHORITY)).unwrap().spec = Spec::of(&spec);
    assert_eq!(machine.up().await, [] as [String; 0]);
    request(&mut machine, AUTHORITY, &now());
    machine.up().await;
    let marker = Marker::read(&site.marker(&id(AUTHORITY))).unwrap().unwrap();
    assert_eq!(marker.spec.get("names"), Some(&names));
    assert_eq!(machine.up().await, [] as [String; 0]);
    machine.down().await;
}
