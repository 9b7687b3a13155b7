//! Whose a name and a field is: what others have is left to them, and taken only by name.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn object_with_the_same_name_of_another_owner_is_left_alone() {
    let Some(world) = World::new("taken") else { return };
    inside(&world, &["create", "configmap", "settings", "--from-literal=a=theirs"]);
    let wanted = world.want("config-map", "settings", json!({ "data": { "a": "ours" } }));
    let error = world.refused(&wanted).await;
    assert!(error.kind == ErrorKind::Exists && told(&error).contains("has no lineage label"), "{}", told(&error));
    let seen = world.seen(std::slice::from_ref(&wanted), &[]).await;
    assert!(
        matches!(&seen[..], [(_, Observed::Unknown(ReadFailure(why)))] if why.contains("another client created it")),
        "{seen:?}"
    );
    let problems = world.provider.preflight(std::slice::from_ref(&wanted)).await.unwrap();
    assert!(problems.iter().any(|one| one.cause.contains("another client created it")), "{problems:?}");
    let text = inside(&world, &["get", "configmap", "settings", "-o", "jsonpath={.data.a}"]);
    assert_eq!(text, "theirs");

    // It was not there when we looked, and was when we applied: what was added to it is taken back.
    let absent = json!({ "kind": "Status", "reason": "NotFound", "message": "not found", "code": 404 });
    let line = Cut::answering(vec![(0, 404, absent)]);
    let late = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
    let wanted = world.want("config-map", "settings", json!({ "data": { "b": "ours" } }));
    let error = late.begin(&operation(&world, 2, Verb::Create, &wanted, None)).await.unwrap_err();
    assert!(error.kind == ErrorKind::Exists && told(&error).contains("at the same time"), "{}", told(&error));
    let left: Value = serde_json::from_str(&inside(&world, &["get", "configmap", "settings", "-o", "json"])).unwrap();
    assert_eq!(left["data"], json!({ "a": "theirs" }));
    assert_eq!((&left["metadata"]["labels"], &left["metadata"]["annotations"]), (&Value::Null, &Value::Null));

    // An object to which somebody copied our labels is still theirs.
    let ours = world.want("config-map", "ours", json!({ "data": { "a": "1" } }));
    let recorded = world.create(&ours).await;
    let text =
        inside(&world, &["get", "configmap", "ours", "-o", "json"]).replace(r#""name": "ours""#, r#""name": "copy""#);
    let mut copied: Value = serde_json::from_str(&text).unwrap();
    for own in ["uid", "resourceVersion", "creationTimestamp", "managedFields"] {
        copied["metadata"].as_object_mut().unwrap().shift_remove(own);
    }
    copied["metadata"]["annotations"]["textnlp-resource"] = json!("here/config-map/copy");
    world.cluster.feed(&["create"], &copied);
    let wanted = world.want("config-map", "copy", json!({ "data": { "a": "1" } }));
    let error = world.refused(&wanted).await;
    assert!(error.kind == ErrorKind::Exists && told(&error).contains("copied"), "{}", told(&error));
    let seen = world.seen(&[], std::slice::from_ref(&recorded)).await;
    assert!(matches!(&seen[..], [(id, Observed::Present(_))] if *id == ours.id), "{seen:?}");

    // Recorded by its name alone, it may be any object: it is not removed.
    let nameless = Recorded { cloud_id: CloudId::new(format!("{}/copy", world.namespace)).unwrap(), ..recorded };
    let op = operation(&world, 3, Verb::Delete, &wanted, Some(&nameless));
    assert_eq!(world.provider.begin(&op).await.unwrap_err().kind, ErrorKind::Denied);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_of_other_managers_are_kept_and_manual_changes_reported() {
    let Some(world) = World::new("owners") else { return };
    world.cluster.kubelet();
    let wanted = world.want("deployment", "web", deployment(1, &FOREVER));
    let recorded = world.create(&wanted).await;
    // An autoscaler, or a person at its lever, has the last word on the number.
    inside(&world, &["scale", "deployment", "web", "--replicas=2"]);
    let object = world.object(&wanted, &recorded).await;
    assert_eq!(world.provider.diff(&wanted, &recorded, &object), Vec::new());
    let image = "/spec/template/spec/containers/0/image";
    let next = Wanted { spec: with(&wanted.spec, image, json!("local/web:2")), ..wanted.clone() };
    let op = operation(&world, 2, Verb::Update, &next, Some(&recorded));
    let updated = record(&next, &follow(&world.provider, &op, None).await.unwrap().done());
    assert_eq!(
        inside(&world, &["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]),
        "2",
        "the update left it alone"
    );

    // A person set a field of ours: it is named with its owner, and nothing is forced.
    inside(&world, &["set", "image", "deployment/web", "web=local/web:person"]);
    let object = world.object(&next, &updated).await;
    let changes = world.provider.diff(&next, &updated, &object);
    let fields: Vec<_> = changes.iter().map(|change| (change.field.as_str(), &change.effect)).collect();
    assert!(
        matches!(&fields[..], [("spec.template.spec.containers.web.image", Effect::Refuse(why))] if why.contains("kubectl-set")),
        "{fields:?}"
    );
    let error = match follow(&world.provider, &operation(&world, 3, Verb::Update, &next, Some(&updated)), None).await {
        Err(error) => error,
        Ok(_) => panic!("an update over a person's change is refused"),
    };
    assert_eq!(error.kind, ErrorKind::Denied);
    assert!(told(&error).contains("image: \"kubectl-set\""), "{}", told(&error));
    let image =
        inside(&world, &["get", "deployment", "web", "-o", "jsonpath={.spec.template.spec.containers[0].image}"]);
    assert_eq!(image, "local/web:person");

    // Taken with consent: that field and no other.
    let takes =
        |fields: &[&str]| provider(world.cluster).taking(fields.iter().map(|field| (*field).to_owned()).collect());
    let image = "spec.template.spec.containers.web.image";
    inside(&world, &["set", "env", "deployment/web", "THEIRS=1"]);
    let object = world.object(&next, &updated).await;
    let changes = takes(&[image]).diff(&next, &updated, &object);
    assert!(matches!(&changes[..], [FieldChange { effect: Effect::InPlace, .. }]), "{changes:?}");
    let (other, op) = (takes(&["spec.replicas"]), operation(&world, 4, Verb::Update, &next, Some(&updated)));
    let refused = follow(&other, &op, None).await.err().unwrap();
    assert_eq!(refused.kind, ErrorKind::Denied, "consent is for the field that is named");
    let op = operation(&world, 5, Verb::Update, &next, Some(&updated));
    let updated = record(&next, &follow(&takes(&[image]), &op, None).await.unwrap().done());
    let container = ["get", "deployment", "web", "-o"].into_iter();
    let seen = |what: &'static str| inside(&world, &container.clone().chain([what]).collect::<Vec<_>>());
    assert_eq!(seen("jsonpath={.spec.template.spec.containers[0].image}"), "local/web:2");
    assert_eq!(
        seen("jsonpath={.spec.template.spec.containers[0].env[0].name}"),
        "THEIRS",
        "what is theirs beside it stays"
    );
    assert_eq!(seen("jsonpath={.spec.replicas}"), "2", "the lever is still theirs");
    // Whoever has the lever loses it only by name, and then it is ours for good.
    let op = operation(&world, 6, Verb::Update, &next, Some(&updated));
    let updated = record(&next, &follow(&takes(&["spec.replicas"]), &op, None).await.unwrap().done());
    assert_eq!(seen("jsonpath={.spec.replicas}"), "1");
    let object = world.object(&next, &updated).await;
    assert_eq!(world.provider.diff(&next, &updated, &object), Vec::new());

    // Labels that others add beside ours are nobody's business; one of ours that is gone is put back.
    inside(&world, &["label", "deployment", "web", "theirs=1"]);
    inside(&world, &["label", "deployment", "web", "textnlp-lineage-"]);
    let object = world.object(&next, &updated).await;
    let changes = world.provider.diff(&next, &updated, &object);
    assert_eq!(
        changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(),
        ["metadata.labels.textnlp-lineage"]
    );
    let op = operation(&world, 7, Verb::Update, &next, Some(&updated));
    follow(&world.provider, &op, None).await.unwrap().done();
    let object = world.object(&next, &updated).await;
    assert_eq!((world.provider.diff(&next, &updated, &object), object.lineage), (Vec::new(), Some(world.lineage)));
}

#[tokio::test(flavor = "multi_thread")]
async fn released_replica_count_stays_until_another_manager_sets_it() {
    let Some(world) = World::new("handover") else { return };
    world.cluster.kubelet();
    let counted = world.want("deployment", "web", deployment(3, &FOREVER));
    let mut left = deployment(3, &FOREVER);
    left["spec"].as_object_mut().unwrap().shift_remove("replicas");
    let left = world.want("deployment", "web", left);
    let replicas = || inside(&world, &["get", "deployment", "web", "-o", "jsonpath={.spec.replicas}"]);
    let recorded = world.create(&counted).await;
    // An autoscaler is to have the last word: nobody falls to the default of one on the way.
    let op = operation(&world, 2, Verb::Update, &left, Some(&recorded));
    let recorded = record(&left, &follow(&world.provider, &op, None).await.unwrap().done());
    assert_eq!(replicas(), "3");
    let object = world.object(&left, &recorded).await;
    assert_eq!(world.provider.diff(&left, &recorded, &object), Vec::new());
    // And back, whether or not it ever said anything.
    let fewer = Wanted { spec: with(&counted.spec, "/spec/replicas", json!(2)), ..counted.clone() };
    let object = world.object(&left, &recorded).await;
    let changes = world.provider.diff(&fewer, &recorded, &object);
    assert!(matches!(&changes[..], [FieldChange { effect: Effect::InPlace, .. }]), "{changes:?}");
    let op = operation(&world, 3, Verb::Update, &fewer, Some(&recorded));
    let recorded = record(&fewer, &follow(&world.provider, &op, None).await.unwrap().done());
    assert_eq!(replicas(), "2");
    let object = world.object(&fewer, &recorded).await;
    assert_eq!(world.provider.diff(&fewer, &recorded, &object), Vec::new());
}
