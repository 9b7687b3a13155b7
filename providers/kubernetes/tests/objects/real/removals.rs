//! What takes other things along is removed only when all of them are ours.

use super::*;
use crate::parts::{Fixture, bare};

#[tokio::test(flavor = "multi_thread")]
async fn blocked_deletions_are_reported_and_external_content_is_kept() {
    let Some(world) = World::new("held") else { return };
    let held = world.want(
        "config-map",
        "held",
        json!({ "metadata": { "finalizers": ["example.com/hold"] }, "data": { "a": "1" } }),
    );
    let recorded = world.create(&held).await;
    let op = operation(&world, 2, Verb::Delete, &held, Some(&recorded));
    let says = follow(&world.provider, &op, Some("example.com/hold")).await.unwrap().says();
    assert!(says.contains("of its controller"), "{says}");
    inside(
        &world,
        &["patch", "configmap", "held", "--type=json", "-p", r#"[{"op":"remove","path":"/metadata/finalizers"}]"#],
    );
    follow(&world.provider, &op, None).await.unwrap().done();

    // An object that took its name meanwhile is another one.
    let again = world.want("config-map", "again", json!({ "data": { "a": "1" } }));
    let recorded = world.create(&again).await;
    inside(&world, &["delete", "configmap", "again"]);
    inside(&world, &["create", "configmap", "again", "--from-literal=a=theirs"]);
    follow(&world.provider, &operation(&world, 3, Verb::Delete, &again, Some(&recorded)), None).await.unwrap().done();
    assert_eq!(inside(&world, &["get", "configmap", "again", "-o", "jsonpath={.data.a}"]), "theirs");

    // A namespace of ours with something of somebody else in it.
    let name = world.cluster.namespace_name("mine");
    let mine = want("namespace", &name, None, json!({}));
    let recorded = world.create(&mine).await;
    kubectl(world.cluster, &["create", "configmap", "precious", "--namespace", &name]);
    let op = operation(&world, 4, Verb::Delete, &mine, Some(&recorded));
    let error = follow(&world.provider, &op, None).await.err().unwrap();
    assert!(error.kind == ErrorKind::Denied && told(&error).contains("configmaps precious"), "{}", told(&error));
    kubectl(world.cluster, &["delete", "configmap", "precious", "--namespace", &name]);
    // Kinds of which we know nothing, and pods of nobody; what comes out of our own objects is ours.
    let group = "held.example.com";
    let schema = json!({ "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } });
    let version = json!({ "name": "v1", "served": true, "storage": true, "schema": schema });
    world.cluster.feed(
        &["create"],
        &json!({
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": { "name": format!("gems.{group}") },
            "spec": { "group": group, "scope": "Namespaced", "names": { "plural": "gems", "kind": "Gem" }, "versions": [version] },
        }),
    );
    kubectl(world.cluster, &["wait", "--for=condition=Established", &format!("crd/gems.{group}")]);
    let gem = json!({ "apiVersion": format!("{group}/v1"), "kind": "Gem", "metadata": { "name": "ruby", "namespace": name } });
    world.cluster.feed(&["create"], &gem);
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "lonely", "namespace": name },
        "spec": { "containers": [{ "name": "web", "image": "local/web:1" }] } });
    world.cluster.feed(&["create"], &pod);
    let mut web = deployment(1, &FOREVER);
    web["spec"]["template"]["spec"]["nodeSelector"] = json!({ "no": "such-node" });
    let web = want("deployment", "web", Some(&name), web);
    let begun = world.provider.begin(&operation(&world, 5, Verb::Create, &web, None)).await.unwrap();
    assert!(matches!(begun, Progress::Pending { .. }), "{begun:?}");
    for _ in 0..300 {
        if !kubectl(world.cluster, &["get", "pods", "-l", "app=web", "-o", "name", "--namespace", &name]).is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // What cert-manager leaves of an ingress of ours keeps nothing; a Secret of its own for somebody else does.
    for (secret, of) in [("textnlp-ingress-tls", "textnlp-ingress-tls"), ("site-tls", "site-tls")] {
        let annotations = json!({ "cert-manager.io/certificate-name": of });
        let metadata = json!({ "name": secret, "namespace": name, "annotations": annotations });
        world.cluster.feed(&["create"], &json!({ "apiVersion": "v1", "kind": "Secret", "metadata": metadata }));
    }
    let error = follow(&world.provider, &op, None).await.err().unwrap();
    let said = std::error::Error::source(&error).unwrap().to_string();
    let held = said.split_once(": ").unwrap().1;
    let mut held: Vec<&str> = held.split(", ").collect();
    held.sort_unstable();
    assert_eq!(held, [&format!("gems.{group} ruby"), "pods lonely", "secrets site-tls"], "{said}");
    kubectl(world.cluster, &["delete", "crd", &format!("gems.{group}")]);
    kubectl(world.cluster, &["delete", "secret", "site-tls", "--namespace", &name]);
    kubectl(world.cluster, &["delete", "pod", "lonely", "--now", "--namespace", &name]);
    follow(&world.provider, &op, None).await.unwrap().done();
}

#[tokio::test(flavor = "multi_thread")]
async fn claim_is_gone_when_its_volume_is_deleted_and_the_wait_for_that_has_a_bound() {
    let Some(world) = World::new("disks") else { return };
    let name = format!("{}-disk", world.namespace);
    let asks = json!({ "accessModes": ["ReadWriteOnce"], "storageClassName": "", "volumeName": name, "resources": { "requests": { "storage": "1Gi" } } });
    let claim = world.want("persistent-volume-claim", "dumps", json!({ "spec": asks }));
    let recorded = world.create(&claim).await;
    // A driver that is not there deletes it.
    let volume = json!({
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": { "name": name, "annotations": { "pv.kubernetes.io/provisioned-by": "disks.example.com" } },
        "spec": {
            "capacity": { "storage": "1Gi" },
            "accessModes": ["ReadWriteOnce"],
            "persistentVolumeReclaimPolicy": "Delete",
            "claimRef": { "namespace": world.namespace, "name": "dumps" },
            "hostPath": { "path": "/nowhere" },
        },
    });
    world.cluster.feed(&["create"], &volume);
    inside(&world, &["wait", "--for=jsonpath={.status.phase}=Bound", "persistentvolumeclaim/dumps", "--timeout=60s"]);
    let op = operation(&world, 2, Verb::Delete, &claim, Some(&recorded));
    let Followed::Says(handle, says) = follow(&world.provider, &op, Some("is being deleted")).await.unwrap() else {
        panic!("its volume is not waited for")
    };
    assert!(says.contains(&name), "{says}");
    // An expired sign-in leaves the operation open, at the read of the claim and at that of the volume. Who may not read volumes does not
    // wait for them.
    let refusing = async |call: u32, status: u16, reason: &str| {
        let answer = json!({ "kind": "Status", "reason": reason, "message": "not now", "code": status });
        let line = Cut::answering(vec![(call, status, answer)]);
        let refused = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
        refused.advance(&op, &handle).await
    };
    for call in [0, 1] {
        let error = refusing(call, 401, "Unauthorized").await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Unavailable, "{error:?}");
        assert!(error.hint.is_some_and(|hint| hint.contains("sign in again")));
    }
    assert!(matches!(refusing(1, 403, "Forbidden").await, Ok(Progress::Done(_))));
    let waiting = follow_from(&world.provider, &op, Some(handle.clone()), None, Duration::ZERO).await;
    let error = told(&waiting.err().unwrap());
    assert!(error.contains(&format!("its volume {name} is still ")) && error.contains("describe pv"), "{error}");
    let last = world.provider.advance(&op, &handle).await.unwrap();
    assert!(matches!(last, Progress::Pending { .. }), "{last:?}");
    kubectl(world.cluster, &["delete", "persistentvolume", &name]);
    follow_from(&world.provider, &op, Some(handle), None, Duration::ZERO).await.unwrap().done();
}

#[tokio::test(flavor = "multi_thread")]
async fn definition_with_external_objects_is_kept_and_a_missing_one_is_named() {
    let Some(world) = World::new("kinds") else { return };
    // Fewer nodes than are asked for are told of.
    let namespace = world.namespace.clone();
    let fixture = Fixture { namespace, min_nodes: 900, max_nodes: Some(901), replicates: true, ..bare() };
    let problems = provider(world.cluster).of_site(fixture.cluster()).preflight(&[]).await.unwrap();
    assert!(
        matches!(&problems[..], [few, many, flooded] if few.warning && few.cause.contains("`cluster.min_nodes` is 900")
            && many.warning && many.cause.contains("`cluster.max_nodes` is 901")
            && flooded.warning && flooded.cause.contains("a flood there looks like a failed site")),
        "{problems:#?}"
    );
    let apart = fixture.set(|site| site.health_address = Some("https://ready.example.com:8444".to_owned()));
    let problems = provider(world.cluster).of_site(apart.cluster()).preflight(&[]).await.unwrap();
    assert_eq!(problems.len(), 2, "{problems:#?}");
    // So is a claim for a volume that nobody makes by itself.
    let asks =
        json!({ "spec": { "accessModes": ["ReadWriteOnce"], "resources": { "requests": { "storage": "1Gi" } } } });
    let claim = world.want("persistent-volume-claim", "dumps", asks);
    let problems = world.provider.preflight(std::slice::from_ref(&claim)).await.unwrap();
    let waits = |one: &textnlp_provider::Problem| one.warning && one.cause.contains("no StorageClass is the default");
    assert!(problems.iter().any(waits), "{problems:#?}");
    // In a cluster without them, whoever brings them is named; a plan that brings them itself is not held up.
    let monitor = world.want("service-monitor", "web", json!({ "spec": {} }));
    let problems = world.provider.preflight(std::slice::from_ref(&monitor)).await.unwrap();
    let problem = problems.iter().find(|problem| problem.place == "servicemonitors.monitoring.coreos.com").unwrap();
    assert!(problem.fix.contains("the Prometheus operator"), "{problem:?}");
    let monitors = definition("monitoring.coreos.com", "servicemonitors", "ServiceMonitor");
    let monitors = want("custom-resource-definition", "servicemonitors.monitoring.coreos.com", None, monitors);
    let problems = world.provider.preflight(&[monitors, monitor.clone()]).await.unwrap();
    assert!(problems.is_empty(), "{problems:#?}");
    let error = world.provider.begin(&operation(&world, 1, Verb::Create, &monitor, None)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "it may be served in a moment: {error:?}");

    let group = format!("{}.example.com", world.namespace);
    let name = format!("stones.{group}");
    let stones = want("custom-resource-definition", &name, None, definition(&group, "stones", "Stone"));
    let recorded = world.create(&stones).await;
    let stone = json!({ "apiVersion": format!("{group}/v1"), "kind": "Stone", "metadata": { "name": "old", "namespace": world.namespace } });
    world.cluster.feed(&["create"], &stone);
    let op = operation(&world, 3, Verb::Delete, &stones, Some(&recorded));
    let error = follow(&world.provider, &op, None).await.err().unwrap();
    assert!(
        error.kind == ErrorKind::Denied && told(&error).contains(&format!("{}/old", world.namespace)),
        "{}",
        told(&error)
    );
    inside(&world, &["delete", &name, "old"]);
    follow(&world.provider, &op, None).await.unwrap().done();
}
