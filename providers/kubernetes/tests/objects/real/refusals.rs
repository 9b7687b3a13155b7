//! What an API server refuses, and what is said of it: rights, quotas, policies, pods that do not come up.

use super::*;
use crate::parts::{Fixture, bare};

/// Each call is made once: who journaled the operation decides when it is made again.
#[tokio::test(flavor = "multi_thread")]
async fn api_server_errors_are_classified_and_never_retried_by_the_provider() {
    let Some(world) = World::new("busy") else { return };
    let wanted = world.want("config-map", "settings", json!({ "data": { "a": "1" } }));
    let op = operation(&world, 1, Verb::Create, &wanted, None);
    let second = Some(Duration::from_secs(1));
    for (status, sort) in [
        (429, ErrorKind::Throttled { after: second }),
        (500, ErrorKind::Unavailable),
        (503, ErrorKind::Unavailable),
        (504, ErrorKind::Unavailable),
    ] {
        // The look goes through, the apply is answered.
        let line = Cut::answering(vec![(1, status, json!({ "kind": "Status", "message": "not now" }))]);
        let busy = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
        let error = busy.begin(&op).await.unwrap_err();
        assert_eq!((error.kind, line.calls()), (sort, 2));
    }
    world.create(&wanted).await;
    // A look changes nothing, and is taken again: a kind that was defined a moment ago is put off like that.
    let line = Cut::answering(vec![(0, 429, json!({ "kind": "Status", "message": "storage is (re)initializing" }))]);
    let put_off = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
    let seen = look(&put_off, world.lineage, &[], &[]).await;
    assert!(matches!(&seen[..], [(id, Observed::Present(_))] if *id == wanted.id), "{seen:?}");
    // The second page of a list has expired: the list is begun again and is whole.
    let first = json!({ "kind": "List", "metadata": { "continue": "next" }, "items": [{ "metadata": { "name": "of the first page" } }] });
    let expired = json!({ "kind": "Status", "reason": "Expired", "message": "the provided continue parameter is too old", "code": 410 });
    let line = Cut::answering(
        (0..8).map(|call| (call, 200, first.clone())).chain((8..16).map(|call| (call, 410, expired.clone()))).collect(),
    );
    let paged = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
    let seen = look(&paged, world.lineage, &[], &[]).await;
    assert!(matches!(&seen[..], [(id, Observed::Present(_))] if *id == wanted.id), "{seen:?}");
}

/// It takes connections, as one that hangs does, and never says a word.
#[tokio::test(flavor = "multi_thread")]
async fn unresponsive_api_server_times_out() {
    let Some(world) = World::new("silent") else { return };
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut kubeconfig: Value = serde_json::from_slice(&std::fs::read(world.cluster.admin()).unwrap()).unwrap();
    kubeconfig["clusters"][0]["cluster"]["server"] = json!(format!("https://{}", silent.local_addr().unwrap()));
    let file = world.cluster.folder().join("silent.json").into_std_path_buf();
    std::fs::write(&file, kubeconfig.to_string()).unwrap();
    let far = Kubernetes::new(Access::kubeconfig(Some(file), None), world.vault());
    let wanted = world.want("config-map", "settings", json!({ "data": { "a": "1" } }));
    let op = operation(&world, 1, Verb::Create, &wanted, None);
    let (begun, problems) = tokio::time::timeout(Duration::from_secs(120), async {
        futures::join!(far.begin(&op), far.preflight(std::slice::from_ref(&wanted)))
    })
    .await
    .expect("both have an end");
    let error = begun.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error:?}");
    assert!(told(&error).contains("did not answer within 10 s"), "{}", told(&error));
    assert_eq!(problems.unwrap()[0].place, "cluster");
}

/// What is wanted in a namespace that goes waits for the one after it.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_created_in_a_terminating_namespace() {
    let Some(world) = World::new("goes") else { return };
    let held = json!({ "metadata": { "finalizers": ["example.com/hold"] }, "data": { "a": "1" } });
    world.create(&world.want("config-map", "held", held)).await;
    let namespace = world.namespace.as_str();
    assert!(world.cluster.kubectl(&["delete", "namespace", namespace, "--wait=false"]).status.success());
    let wanted = world.want("config-map", "late", json!({ "data": { "a": "1" } }));
    let error = world.provider.begin(&operation(&world, 2, Verb::Create, &wanted, None)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Conflict, "{error:?}");
    assert!(told(&error).contains("is being terminated"), "{}", told(&error));
    let released = r#"[{"op":"remove","path":"/metadata/finalizers"}]"#;
    inside(&world, &["patch", "configmap", "held", "--type=json", "-p", released]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_rbac_rule_is_printed_and_adding_it_suffices() {
    let Some(world) = World::new("denied") else { return };
    let user = format!("user-of-{}", world.namespace);
    let file = Some(world.cluster.kubeconfig(&user, &[]).into_std_path_buf());
    let limited = Kubernetes::new(Access::kubeconfig(file, None), world.vault());
    let wanted = world.want("config-map", "settings", json!({ "data": { "a": "1" } }));
    let problems = limited.preflight(std::slice::from_ref(&wanted)).await.unwrap();
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert!(problem.cause.contains("you are not allowed to create, delete, get, list, patch configmaps"), "{problem}");
    let op = operation(&world, 1, Verb::Create, &wanted, None);
    let error = follow(&limited, &op, None).await.err().unwrap();
    assert!(error.kind == ErrorKind::Denied && told(&error).contains("kind: Role"), "{}", told(&error));
    // A user of whom nothing is allowed sees nothing, and says so.
    assert!(
        limited
            .observe(&Scope {
                lineage: world.lineage,
                environment: &"staging".parse().unwrap(),
                site: &"here".parse().unwrap(),
                wanted: std::slice::from_ref(&wanted),
                recorded: &[],
            })
            .await
            .is_err()
    );

    // What was printed, as it was printed.
    let role = problem.fix.split_once(":\n").unwrap().1;
    world.cluster.feed(&["apply"], &serde_yaml::from_str::<Value>(role).unwrap());
    inside(&world, &["create", "rolebinding", "it", "--role=textnlp-deploy", &format!("--user={user}")]);
    let object = follow(&limited, &op, None).await.unwrap().done();
    assert_eq!(limited.preflight(&[want("config-map", "other", Some(&world.namespace), json!({}))]).await.unwrap(), []);
    // Lists over all namespaces are still forbidden: the namespace is asked instead, and what is not seen is unknown.
    let recorded = record(&wanted, &object);
    let other = world.want("service", "web", json!({ "spec": { "ports": [{ "port": 80 }] } }));
    let seen = look(&limited, world.lineage, &[wanted.clone(), other.clone()], &[recorded]).await;
    let of = |id: &ResourceId| seen.iter().filter(|(one, _)| one == id).map(|(_, seen)| seen).collect::<Vec<_>>();
    assert!(matches!(of(&wanted.id)[..], [Observed::Present(_)]), "{seen:?}");
    assert!(matches!(of(&other.id)[..], [Observed::Unknown(_)]), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn policy_of_a_plan_suffices_and_allows_nothing_else() {
    let Some(world) = World::new("policy") else { return };
    let user = format!("planner-of-{}", world.namespace);
    let file = Some(world.cluster.kubeconfig(&user, &[]).into_std_path_buf());
    let limited = Kubernetes::new(Access::kubeconfig(file, None), world.vault());
    let binding = |kind: &str, name: &str| {
        let group = "rbac.authorization.k8s.io";
        json!({
            "roleRef": { "apiGroup": group, "kind": kind, "name": name },
            "subjects": [{ "apiGroup": group, "kind": "User", "name": "reader" }],
        })
    };
    let rules = json!({ "rules": [{ "apiGroups": [""], "resources": ["pods"], "verbs": ["get"] }] });
    let wanted = [
        world.want("config-map", "settings", json!({ "data": { "a": "1" } })),
        world.want("role", "reader", rules),
        world.want("role-binding", "own", binding("Role", "reader")),
        world.want("role-binding", "existing", binding("ClusterRole", "view")),
    ];
    let resource = |one: &Wanted| PolicyResource {
        id: one.id.clone(),
        cloud_id: None,
        kind: one.kind.clone(),
        spec: one.spec.clone(),
        verbs: [Verb::Create].into(),
    };
    let request = PolicyRequest {
        lineage: None,
        environment: "staging".parse().unwrap(),
        site: "here".parse().unwrap(),
        resources: wanted.iter().map(resource).collect(),
    };
    let [policy] = &limited.policies(&request)[..] else { panic!("one document") };
    assert_eq!(limited.preflight(&wanted).await.unwrap().len(), 1, "nothing is allowed yet");
    for manifest in serde_yaml::Deserializer::from_str(&policy.text.replace("USER", &user)) {
        world.cluster.feed(&["apply"], &serde::Deserialize::deserialize(manifest).unwrap());
    }
    assert_eq!(limited.preflight(&wanted).await.unwrap(), []);
    for (number, one) in (1..).zip(&wanted) {
        follow(&limited, &operation(&world, number, Verb::Create, one, None), None).await.unwrap().done();
    }
    let other = world.want("service", "web", json!({ "spec": { "ports": [{ "port": 80 }] } }));
    let problems = limited.preflight(std::slice::from_ref(&other)).await.unwrap();
    assert!(matches!(&problems[..], [problem] if problem.cause.contains("services")), "{problems:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn quota_policy_and_spec_errors_are_distinguished() {
    let Some(world) = World::new("refused") else { return };
    let ns = &world.namespace;
    world.cluster.feed(
        &["apply"],
        &json!({
            "apiVersion": "v1", "kind": "ResourceQuota", "metadata": { "name": "few", "namespace": ns },
            "spec": { "hard": { "count/secrets": "0" } },
        }),
    );
    let secret = world.want("secret", "keys", json!({ "data": { "key": { "$secret": "key", "version": "1" } } }));
    // The quota is counted by a controller: until then everything is let in.
    let mut error = None;
    for number in 0..100 {
        match follow(&world.provider, &operation(&world, number, Verb::Create, &secret, None), None).await {
            Err(refused) => {
                error = Some(refused);
                break;
            }
            Ok(done) => {
                let recorded = record(&secret, &done.done());
                follow(&world.provider, &operation(&world, 500 + number, Verb::Delete, &secret, Some(&recorded)), None)
                    .await
                    .unwrap()
                    .done();
            }
        }
    }
    let error = error.expect("the quota refuses");
    assert!(error.kind == ErrorKind::Quota && told(&error).contains("exceeded quota: few"), "{}", told(&error));
    assert!(!told(&error).contains(PLANTED));

    let misspelt = world.want("service", "web", json!({ "spec": { "prots": [{ "port": 80 }] } }));
    let error = world.refused(&misspelt).await;
    assert!(error.kind == ErrorKind::Invalid && told(&error).contains("prots"), "{}", told(&error));
    let banana = world.want(
        "limit-range",
        "limits",
        json!({ "spec": { "limits": [{ "type": "Container", "max": { "cpu": "banana" } }] } }),
    );
    let error = world.refused(&banana).await;
    assert!(error.kind == ErrorKind::Invalid, "{}", told(&error));
    let plain = world.want("secret", "plain", json!({ "data": { "key": "aHVudGVyMg==" } }));
    assert_eq!(
        world.refused(&plain).await.kind,
        ErrorKind::Invalid,
        "a secret's value in a spec is refused before anything is sent"
    );
    let nowhere = want("config-map", "settings", Some("no-such-namespace"), json!({ "data": {} }));
    assert_eq!(world.refused(&nowhere).await.kind, ErrorKind::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_ingress_controller_is_reported_before_the_apply() {
    let Some(world) = World::new("ways") else { return };
    let class = format!("class-of-{}", world.namespace);
    let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
    let spec = json!({ "ingressClassName": class, "defaultBackend": backend });
    let annotations = json!({ "cert-manager.io/cluster-issuer": "nobody" });
    let ingress = world.want("ingress", "web", json!({ "metadata": { "annotations": annotations }, "spec": spec }));
    let asked = async || {
        let problems = world.provider.preflight(std::slice::from_ref(&ingress)).await.unwrap();
        assert!(problems.iter().all(|problem| problem.place == "cluster.ingress" && !problem.warning), "{problems:?}");
        problems.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let problems = asked().await;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        problems[0].contains(&format!("no IngressClass `{class}`"))
            && problems[1].contains("no ClusterIssuer `nobody`")
    );
    let controller = json!({ "controller": "example.com/ingress" });
    let made = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": { "name": class }, "spec": controller });
    world.cluster.feed(&["apply"], &made);
    assert_eq!(asked().await.len(), 1);
    world.cluster.kubectl(&["delete", "ingressclass", &class]);
}

#[tokio::test(flavor = "multi_thread")]
async fn firewall_of_a_controller_that_does_not_block_is_a_warning() {
    let Some(world) = World::new("firewall") else { return };
    let class = format!("class-of-{}", world.namespace);
    let labels = json!({
        "app.kubernetes.io/name": "ingress-nginx", "app.kubernetes.io/component": "controller",
        "app.kubernetes.io/instance": class, "app.kubernetes.io/managed-by": "Helm", "helm.sh/chart": "ingress-nginx-4.13.3",
    });
    let metadata = json!({ "name": class, "labels": labels });
    let made = json!({ "apiVersion": "networking.k8s.io/v1", "kind": "IngressClass", "metadata": metadata, "spec": { "controller": "k8s.io/ingress-nginx" } });
    world.cluster.feed(&["apply"], &made);
    let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
    let annotations = json!({ "nginx.ingress.kubernetes.io/enable-modsecurity": "true" });
    let spec = json!({ "ingressClassName": class, "defaultBackend": backend });
    let ingress = world.want("ingress", "web", json!({ "metadata": { "annotations": annotations }, "spec": spec }));
    let asked = async |data: Value| {
        let metadata = json!({ "name": "web-controller", "namespace": world.namespace, "labels": labels });
        let settings = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data });
        world.cluster.feed(&["apply"], &settings);
        world.provider.preflight(std::slice::from_ref(&ingress)).await.unwrap()
    };
    let problems = asked(json!({ "enable-modsecurity": "true" })).await;
    let [problem] = &problems[..] else { panic!("{problems:?}") };
    assert!(problem.warning && problem.place == "network.waf", "{problem:?}");
    let command = format!(
        "helm upgrade --install {class} ingress-nginx --repo https://kubernetes.github.io/ingress-nginx --namespace {} \
         --version 4.13.3 --reuse-values --set-string 'controller.config.enable-owasp-modsecurity-crs=true' --set-string \
         'controller.config.modsecurity-snippet=SecRuleEngine On'",
        world.namespace
    );
    assert_eq!(problem.fix, command);
    let set = json!({
        "enable-modsecurity": "true", "enable-owasp-modsecurity-crs": "true", "modsecurity-snippet": "SecRuleEngine On",
    });
    assert_eq!(asked(set).await, []);
    world.cluster.kubectl(&["delete", "ingressclass", &class]);
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_class_is_reported_before_the_apply() {
    let Some(world) = World::new("classes") else { return };
    let class = format!("class-of-{}", world.namespace);
    let mut web = deployment(1, &FOREVER);
    web["spec"]["template"]["spec"]["runtimeClassName"] = json!(class);
    web["spec"]["template"]["spec"]["priorityClassName"] = json!("system-cluster-critical");
    let claim = json!({ "spec": { "accessModes": ["ReadWriteMany"], "storageClassName": class, "resources": { "requests": { "storage": "1Gi" } } } });
    let wanted = [world.want("deployment", "web", web), world.want("persistent-volume-claim", "models", claim)];
    let asked = async || {
        let problems = world.provider.preflight(&wanted).await.unwrap();
        assert!(problems.iter().all(|problem| !problem.warning), "{problems:?}");
        problems.into_iter().map(|problem| problem.place).collect::<Vec<_>>()
    };
    // The class of the cluster's own is there.
    assert_eq!(asked().await, ["cluster.runtime_class", "cluster.models.storage_class"]);
    let made = json!({ "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": { "name": class }, "handler": "runc" });
    world.cluster.feed(&["apply"], &made);
    assert_eq!(asked().await, ["cluster.models.storage_class"]);
    world.cluster.kubectl(&["delete", "runtimeclass", &class]);
}

#[tokio::test(flavor = "multi_thread")]
async fn openshift_is_detected_by_its_apis() {
    let Some(world) = World::new("openshift") else { return };
    let pods = |context: Value| {
        let mut web = deployment(1, &FOREVER);
        web["spec"]["template"]["spec"]["securityContext"] = context;
        world.want("deployment", "web", web)
    };
    let (ours, theirs) = (pods(json!({ "runAsUser": 65532 })), pods(json!({})));
    // The version is asked for first, and then this.
    let group = json!({ "kind": "APIGroup", "name": "security.openshift.io" });
    let asked = async |is_one: bool, told: bool, wanted: &Wanted| {
        let line = Cut::answering(if is_one { vec![(1, 200, group.clone())] } else { Vec::new() });
        let fixture = Fixture { namespace: world.namespace.clone(), ..bare() }.set(|site| site.openshift = told);
        let provider = Kubernetes::with_client(line.client(&world.cluster.admin()).await, world.vault());
        let provider = provider.of_site(fixture.cluster());
        let problems = provider.preflight(std::slice::from_ref(wanted)).await.unwrap();
        problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
    };
    assert!(asked(true, false, &ours).await.contains("cluster.openshift: it is an OpenShift"));
    assert!(asked(false, true, &theirs).await.contains("it is not an OpenShift cluster"));
    assert_eq!([asked(true, true, &theirs).await, asked(false, false, &ours).await], ["", ""]);
}

/// What is said while pods do not come up: image, node, quota, crash.
#[tokio::test(flavor = "multi_thread")]
async fn failing_pods_report_the_reason() {
    let Some(world) = World::new("trouble") else { return };
    world.cluster.kubelet();
    let of = |name: &str, change: &dyn Fn(&mut Value)| {
        let mut spec = deployment(1, &FOREVER);
        spec["spec"]["selector"]["matchLabels"]["app"] = json!(name);
        spec["spec"]["template"]["metadata"]["labels"]["app"] = json!(name);
        change(&mut spec["spec"]);
        world.want("deployment", name, spec)
    };
    let container =
        |spec: &mut Value, field: &str, value: Value| spec["template"]["spec"]["containers"][0][field] = value;
    let crash = json!(["sh", "-c", "echo loading the model; echo no such file: weights >&2; exit 7"]);
    let cases = [
        (
            of("image", &|spec| container(spec, "image", json!("missing.example/web:1"))),
            "failed to pull image \"missing.example/web:1\"",
        ),
        (
            of("node", &|spec| spec["template"]["spec"]["nodeSelector"] = json!({ "gpu": "h100" })),
            "cannot be scheduled: 0/",
        ),
        (
            of("crash", &|spec| {
                // Between two crashes it is ready for a moment.
                spec["minReadySeconds"] = json!(60);
                container(spec, "command", crash.clone());
            }),
            "exited with status 7 and restarts repeatedly; end of its log:\n  loading the model\n  no such file: weights",
        ),
        (
            of("config", &|spec| container(spec, "envFrom", json!([{ "configMapRef": { "name": "gone" } }]))),
            "CreateContainerConfigError configmap \"gone\" not found",
        ),
    ];
    for (number, (wanted, expect)) in cases.iter().enumerate() {
        let op = operation(&world, number as u64, Verb::Create, wanted, None);
        follow(&world.provider, &op, Some(expect)).await.unwrap().says();
    }
    // The same words stand in what is observed, but for the moment of a restart.
    let is_told = |seen: &Observed| matches!(seen, Observed::Present(object) if matches!(&object.health, Health::Degraded(why) if why.contains("status 7")));
    let mut crashed = None;
    for _ in 0..60 {
        let seen = world.seen(&[cases[2].0.clone()], &[]).await;
        crashed = seen.into_iter().find(|(id, _)| *id == cases[2].0.id);
        if crashed.as_ref().is_some_and(|(_, seen)| is_told(seen)) {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    }
    assert!(crashed.as_ref().is_some_and(|(_, seen)| is_told(seen)), "{crashed:?}");

    let late = of("late", &|spec| {
        spec["progressDeadlineSeconds"] = json!(1);
        container(spec, "image", json!("missing.example/web:1"));
    });
    let error = world.refused(&late).await;
    assert!(told(&error).contains("no progress within 1 s"), "{}", told(&error));
    // Its pod may come to say why after that; from then on both are said.
    for _ in 0..300 {
        let seen = world.seen(std::slice::from_ref(&late), &[]).await;
        let seen = seen.iter().find(|(id, _)| *id == late.id).map(|(_, seen)| seen);
        if let Some(Observed::Present(Object { health: Health::Degraded(why), .. })) = seen
            && why.contains("no progress within 1 s")
            && why.contains("failed to pull image")
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    panic!("it gives no reason");
}
