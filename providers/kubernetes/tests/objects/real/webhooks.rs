//! Somebody else's webhooks look at what we apply: they refuse it, change it, or do not answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use textnlp_cluster::webhook::Verdict;

use super::*;

/// The API server asks a webhook that was just added only after a moment.
async fn until_asked(asked: &AtomicBool, world: &World) {
    for number in 0.. {
        let probe = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": format!("probe-{number}"), "namespace": world.namespace } });
        let path = format!("/api/v1/namespaces/{}/configmaps", world.namespace);
        let _ = world.cluster.api().call("POST", &path, Some(&probe)).await;
        if asked.load(Ordering::SeqCst) {
            return;
        }
        assert!(number < 300, "the webhook is never asked");
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_denial_is_quoted_and_an_unresponsive_webhook_retried() {
    let Some(world) = World::new("hooked") else { return };
    let asked = Arc::new(AtomicBool::new(false));
    let seen = asked.clone();
    world.cluster.webhook(&world.namespace, "configmaps", move |object| {
        seen.store(true, Ordering::SeqCst);
        match object["data"]["day"] == "friday" {
            true => Verdict::Deny("nothing is changed on a Friday".to_owned()),
            false => Verdict::Allow,
        }
    });
    until_asked(&asked, &world).await;
    let of = |day: &str| world.want("config-map", "settings", json!({ "data": { "day": day } }));
    let error = world.refused(&of("friday")).await;
    assert_eq!(error.kind, ErrorKind::Denied);
    let text = told(&error);
    assert!(text.contains("somebody.example.com") && text.contains("nothing is changed on a Friday"), "{text}");
    assert!(!text.contains("kind: Role"), "no rule would help: {text}");
    let recorded = world.create(&of("monday")).await;

    // Nobody listens there any more: whoever journaled the operation tries again, and nothing has changed.
    // A bound socket that does not listen: no other process can take its port.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let refusing = held.local_addr().unwrap().port();
    world.cluster.register_webhook(&world.namespace, "configmaps", refusing);
    let tuesday = of("tuesday");
    let update = operation(&world, 7, Verb::Update, &tuesday, Some(&recorded));
    let mut failed = None;
    for _ in 0..300 {
        match world.provider.begin(&update).await {
            Err(error) => {
                failed = Some(error);
                break;
            }
            // Asked by the webhook of before.
            Ok(_) => tokio::time::sleep(Duration::from_millis(200)).await,
        }
    }
    let error = failed.expect("the webhook that does not answer is asked");
    assert_eq!(error.kind, ErrorKind::Unavailable, "{}", told(&error));
    assert!(told(&error).contains("failed calling webhook"), "{}", told(&error));
    let configuration = format!("of-{}", world.namespace);
    world.cluster.kubectl(&["delete", "mutatingwebhookconfiguration", &configuration]);
    assert!(matches!(follow(&world.provider, &update, None).await.unwrap(), Followed::Done(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn webhook_mutations_are_not_drift() {
    let Some(world) = World::new("mutated") else { return };
    let asked = Arc::new(AtomicBool::new(false));
    let seen = asked.clone();
    world.cluster.webhook(&world.namespace, "configmaps", move |object| {
        seen.store(true, Ordering::SeqCst);
        let mut patch = vec![json!({ "op": "add", "path": "/metadata/labels/theirs", "value": "yes" })];
        if object["metadata"]["labels"].is_null() {
            patch.insert(0, json!({ "op": "add", "path": "/metadata/labels", "value": {} }));
        }
        if object["data"].is_object() {
            patch.push(json!({ "op": "add", "path": "/data/added", "value": "theirs" }));
            // It insists on a value of its own where we wish for another.
            patch.push(json!({ "op": "add", "path": "/data/level", "value": "low" }));
        }
        Verdict::Patch(json!(patch))
    });
    until_asked(&asked, &world).await;
    let of = |more: &str| world.want("config-map", "settings", json!({ "data": { "level": "high", "more": more } }));
    let wanted = of("1");
    let recorded = world.create(&wanted).await;
    let object = world.object(&wanted, &recorded).await;
    assert_eq!(object.spec.as_value()["data"], json!({ "added": "theirs", "level": "low", "more": "1" }));
    assert_eq!(world.provider.diff(&wanted, &recorded, &object), [], "a second look plans nothing");

    // What is ours is changed all the same, and what the webhook added stays.
    let next = of("2");
    let update = operation(&world, 8, Verb::Update, &next, Some(&recorded));
    let object = follow(&world.provider, &update, None).await.unwrap().done();
    assert_eq!(object.spec.as_value()["data"], json!({ "added": "theirs", "level": "low", "more": "2" }));
    assert_eq!(object.spec.as_value()["metadata"]["labels"]["theirs"], "yes");
    let recorded = record(&next, &object);
    let object = world.object(&next, &recorded).await;
    assert_eq!(world.provider.diff(&next, &recorded, &object), []);
    let delete = operation(&world, 9, Verb::Delete, &next, Some(&recorded));
    follow(&world.provider, &delete, None).await.unwrap();
}
