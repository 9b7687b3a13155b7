//! The contract's lists, tried on every kind against a real API server.

use std::collections::BTreeSet;

use crate::world::{World, add_kinds, content, definition, deployment, want, with};
use serde_json::{Value, json};
use textnlp_provider::conformance::well_formed;
use textnlp_provider::{Provider, Spec, Wanted};

#[test]
fn kinds_are_well_formed() {
    use std::sync::Arc;
    let access = textnlp_kubernetes::Access::Account("/nowhere".into());
    well_formed(&textnlp_kubernetes::Kubernetes::new(access, Arc::new(crate::world::Vault::default()))).unwrap();
}

const FOREVER: [&str; 3] = ["sh", "-c", "exec sleep 100000"];

/// One object of every kind, with what can be changed of it in place.
fn every_kind(world: &World) -> Vec<(Wanted, Option<Spec>)> {
    let fresh = world.cluster.namespace_name("life");
    let cluster_wide = |name: &str| format!("{name}.{}", world.namespace);
    let mut all = Vec::new();
    let mut add = |wanted: Wanted, change: Option<(&str, Value)>| {
        let changed = change.map(|(pointer, value)| with(&wanted.spec, pointer, value));
        all.push((wanted, changed));
    };
    let labelled = json!({ "metadata": { "labels": { "team": "a" } } });
    add(want("namespace", &fresh, None, labelled.clone()), Some(("/metadata/labels/team", json!("b"))));
    let quota = json!({ "spec": { "hard": { "pods": "100" } } });
    add(world.want("resource-quota", "quota", quota), Some(("/spec/hard/pods", json!("90"))));
    let limits = json!({ "spec": { "limits": [{ "type": "Container", "default": { "cpu": "1000m" } }] } });
    add(world.want("limit-range", "limits", limits), Some(("/spec/limits/0/default/cpu", json!("2"))));
    let account = json!({ "automountServiceAccountToken": false, "metadata": { "annotations": { "a": "1" } } });
    add(world.want("service-account", "server", account), Some(("/metadata/annotations/a", json!("2"))));
    let rules = json!({ "rules": [{ "apiGroups": [""], "resources": ["configmaps"], "verbs": ["get"] }] });
    let more = ("/rules/0/verbs", json!(["get", "list"]));
    add(world.want("role", "reader", rules.clone()), Some(more.clone()));
    add(want("cluster-role", &cluster_wide("reader"), None, rules), Some(more));
    let binding = |kind: &str| {
        json!({
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": "reader" },
            "subjects": [{ "kind": "ServiceAccount", "name": "server", "namespace": world.namespace }],
        })
    };
    let other = ("/subjects/0/name", json!("other"));
    add(world.want("role-binding", "reader", binding("Role")), Some(other.clone()));
    add(want("cluster-role-binding", &cluster_wide("reader"), None, binding("ClusterRole")), Some(other));
    add(world.want("config-map", "settings", json!({ "data": { "a": "1" } })), Some(("/data/a", json!("2"))));
    let secret = json!({ "data": { "key": { "$secret": "key", "version": "1" } } });
    add(world.want("secret", "keys", secret), Some(("/data/key/version", json!("2"))));
    let class = json!({ "provisioner": "example.com/none", "allowVolumeExpansion": false });
    add(want("storage-class", &cluster_wide("fast"), None, class), Some(("/allowVolumeExpansion", json!(true))));
    let priority = json!({ "value": 1000, "description": "a" });
    add(want("priority-class", &cluster_wide("first"), None, priority), Some(("/description", json!("b"))));
    let claim = json!({
        "metadata": { "labels": { "team": "a" } },
        "spec": { "accessModes": ["ReadWriteOnce"], "storageClassName": "", "resources": { "requests": { "storage": "1Gi" } } },
    });
    add(world.want("persistent-volume-claim", "models", claim), Some(("/metadata/labels/team", json!("b"))));
    let service = json!({ "spec": { "selector": { "app": "web" }, "ports": [{ "name": "http", "port": 80, "targetPort": 8080 }] } });
    add(world.want("service", "web", service), Some(("/spec/ports/0/targetPort", json!(8081))));
    let deny = json!({ "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] } });
    add(world.want("network-policy", "deny", deny), Some(("/spec/policyTypes", json!(["Ingress"]))));
    add(world.want("deployment", "web", deployment(2, &FOREVER)), Some(("/spec/replicas", json!(1))));
    let mut set = deployment(1, &FOREVER);
    set["spec"]["serviceName"] = json!("web");
    add(world.want("stateful-set", "base", set), Some(("/spec/replicas", json!(2))));
    let mut daemons = deployment(1, &FOREVER);
    daemons["spec"].as_object_mut().unwrap().shift_remove("replicas");
    let image = "/spec/template/spec/containers/0/image";
    add(world.want("daemon-set", "agent", daemons), Some((image, json!("local/web:2"))));
    let mut once = json!({ "spec": { "backoffLimit": 0, "template": deployment(1, &["true"])["spec"]["template"] } });
    once["spec"]["template"]["spec"]["restartPolicy"] = json!("Never");
    add(world.want("job", "migrate", once.clone()), Some(("/spec/backoffLimit", json!(1))));
    let nightly = json!({ "spec": { "schedule": "0 3 * * *", "jobTemplate": once } });
    add(world.want("cron-job", "backup", nightly), Some(("/spec/schedule", json!("0 4 * * *"))));
    let backend = json!({ "service": { "name": "web", "port": { "number": 80 } } });
    let ingress = json!({ "spec": { "rules": [{ "host": "a.example", "http": { "paths": [{ "path": "/", "pathType": "Prefix", "backend": backend }] } }] } });
    add(world.want("ingress", "web", ingress), Some(("/spec/rules/0/host", json!("b.example"))));
    let scaler = json!({ "spec": {
        "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "web" },
        "minReplicas": 3,
        "maxReplicas": 20,
        "metrics": [{ "type": "Resource", "resource": { "name": "cpu", "target": { "type": "Utilization", "averageUtilization": 70 } } }],
    } });
    add(world.want("horizontal-pod-autoscaler", "web", scaler), Some(("/spec/maxReplicas", json!(10))));
    let budget = json!({ "spec": { "minAvailable": 2, "selector": { "matchLabels": { "app": "web" } } } });
    add(world.want("pod-disruption-budget", "web", budget), Some(("/spec/minAvailable", json!(1))));
    let group = format!("{}.example.com", world.namespace);
    let widgets = definition(&group, "widgets", "Widget");
    let more = ("/spec/names/singular", json!("gadget"));
    add(want("custom-resource-definition", &format!("widgets.{group}"), None, widgets), Some(more));
    // One that the API server serves itself leads nowhere, and is available.
    let api = json!({ "spec": { "group": group, "version": "v9", "groupPriorityMinimum": 10, "versionPriority": 10 } });
    add(want("api-service", &format!("v9.{group}"), None, api), Some(("/spec/versionPriority", json!(20))));
    let listener = json!({ "name": "https", "port": 443, "protocol": "HTTPS" });
    let gateway = json!({ "spec": { "gatewayClassName": "any", "listeners": [listener] } });
    add(world.want("gateway", "web", gateway), Some(("/spec/listeners/0/port", json!(8443))));
    let route = json!({ "spec": { "parentRefs": [{ "name": "web" }], "rules": [{ "backendRefs": [{ "name": "web", "port": 80, "weight": 90 }] }] } });
    add(world.want("http-route", "web", route), Some(("/spec/rules/0/backendRefs/0/weight", json!(10))));
    let policy = json!({ "spec": { "targetRefs": [{ "group": "", "kind": "Service", "name": "web" }], "validation": { "hostname": "a.example" } } });
    add(world.want("backend-tls-policy", "web", policy), Some(("/spec/validation/hostname", json!("b.example"))));
    let route = json!({ "spec": { "host": "a.example", "to": { "kind": "Service", "name": "web" } } });
    add(world.want("openshift-route", "web", route), Some(("/spec/host", json!("b.example"))));
    add(
        world.want("issuer", "own", json!({ "spec": { "ca": { "secretName": "a" } } })),
        Some(("/spec/ca/secretName", json!("b"))),
    );
    let certificate =
        json!({ "spec": { "secretName": "web", "dnsNames": ["a.example"], "issuerRef": { "name": "own" } } });
    add(world.want("certificate", "web", certificate), Some(("/spec/dnsNames", json!(["a.example", "b.example"]))));
    let monitor = json!({ "spec": { "selector": { "matchLabels": { "app": "web" } }, "endpoints": [{ "port": "metrics", "interval": "30s" }] } });
    add(world.want("service-monitor", "web", monitor), Some(("/spec/endpoints/0/interval", json!("15s"))));
    let rule = json!({ "spec": { "groups": [{ "name": "web", "rules": [{ "alert": "Down", "expr": "up == 0" }] }] } });
    add(world.want("prometheus-rule", "web", rule), Some(("/spec/groups/0/rules/0/expr", json!("up < 1"))));
    let receivers =
        json!({ "spec": { "route": { "receiver": "all", "repeatInterval": "1d" }, "receivers": [{ "name": "all" }] } });
    add(world.want("alertmanager-config", "web", receivers), Some(("/spec/route/repeatInterval", json!("2d"))));
    add(
        world.want("postgres-cluster", "db", json!({ "spec": { "instances": 3 } })),
        Some(("/spec/instances", json!(1))),
    );
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn every_kind_passes_its_lifecycle() {
    let Some((world, _in_use)) = World::exclusive("conformance").await else { return };
    world.cluster.kubelet();
    add_kinds(world.cluster).await;
    let controller = content(world.cluster, &world.namespace);
    let bench = world.bench();
    let mut tried = BTreeSet::new();
    for (wanted, changed) in every_kind(&world) {
        bench.whole_life(&wanted, changed.as_ref()).await.unwrap_or_else(|breach| panic!("{}: {breach}", wanted.id));
        tried.insert(wanted.kind.clone());
    }
    controller.abort();
    assert_eq!(tried.len(), world.provider.kinds().len(), "every kind was tried: {tried:?}");
}
