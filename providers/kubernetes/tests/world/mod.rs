//! What these tests share: a provider on the real API server, and objects to try.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use serde_json::{Value, json};
use textnlp_cluster::Cluster;
use textnlp_kubernetes::{Access, Kubernetes};
use textnlp_provider::conformance::TestBed;
use textnlp_provider::{
    Error, ErrorKind, Lineage, Operation, OperationId, Ownership, Recorded, ResourceId, Result, Secret, SecretName,
    SecretRef, SecretStore, SecretVersion, SiteName, Spec, Token, Verb, Wanted,
};
use tokio::sync::MutexGuard;
use uuid::Uuid;

/// Secrets in memory.
#[derive(Default)]
pub struct Vault(Mutex<BTreeMap<(String, String), Secret>>);

#[async_trait]
impl SecretStore for Vault {
    async fn put(&self, name: &SecretName, version: &SecretVersion, value: &Secret) -> Result<()> {
        self.0.lock().unwrap().insert((name.0.clone(), version.0.clone()), value.clone());
        Ok(())
    }

    async fn get(&self, secret: &SecretRef) -> Result<Secret> {
        let key = (secret.name.0.clone(), secret.version.0.clone());
        let found = self.0.lock().unwrap().get(&key).cloned();
        found.ok_or_else(|| Error::new(ErrorKind::NotFound, "read secret", secret.name.to_string()))
    }

    async fn versions(&self, _: &SecretName) -> Result<Vec<SecretVersion>> {
        Ok(Vec::new())
    }

    async fn list(&self, _: &str) -> Result<Vec<SecretName>> {
        Ok(Vec::new())
    }

    async fn delete(&self, _: &SecretName) -> Result<()> {
        Ok(())
    }
}

/// A provider for one lineage on the shared cluster.
pub struct World {
    pub cluster: &'static Cluster,
    pub provider: Kubernetes,
    pub lineage: Lineage,
    /// A namespace that a test of its own has.
    pub namespace: String,
}

/// The value that is planted as a secret: it must be nowhere but in Secret objects.
pub const PLANTED: &str = "planted-hunter2";

impl World {
    /// `None` where there is no control plane.
    pub fn new(about: &str) -> Option<Self> {
        Cluster::shared().map(|cluster| Self::on(cluster, about))
    }

    /// The same on a second control plane, which one test at a time has: it may add kinds, and stop the API server.
    pub async fn exclusive(about: &str) -> Option<(Self, MutexGuard<'static, ()>)> {
        static IN_USE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());
        let in_use = IN_USE.lock().await;
        Cluster::second().map(|cluster| (Self::on(cluster, about), in_use))
    }

    fn on(cluster: &'static Cluster, about: &str) -> Self {
        let namespace = cluster.namespace(about);
        Self { cluster, provider: provider(cluster), lineage: Lineage(Uuid::new_v4()), namespace }
    }

    pub fn bench(&self) -> TestBed<'_> {
        let mut bench = TestBed::new(&self.provider, "staging".parse().unwrap(), "here".parse().unwrap(), self.lineage);
        bench.patience = Duration::from_secs(120);
        bench
    }

    /// The secrets that its objects name.
    pub fn vault(&self) -> Arc<Vault> {
        vault()
    }

    /// A wanted object of a kind in this world's namespace.
    pub fn want(&self, kind: &str, name: &str, rest: Value) -> Wanted {
        want(kind, name, Some(&self.namespace), rest)
    }
}

fn vault() -> Arc<Vault> {
    let vault = Vault::default();
    for (version, value) in [("1", PLANTED), ("2", "planted-hunter3")] {
        vault.0.lock().unwrap().insert(("key".to_owned(), version.to_owned()), Secret::new(value));
    }
    Arc::new(vault)
}

/// The provider as another process would have it.
pub fn provider(cluster: &Cluster) -> Kubernetes {
    let file = Some(cluster.admin().into_std_path_buf());
    Kubernetes::new(Access::kubeconfig(file, None), vault())
}

/// One operation as the engine would journal it.
pub fn operation(world: &World, number: u64, verb: Verb, wanted: &Wanted, recorded: Option<&Recorded>) -> Operation {
    let id = OperationId(number);
    let site: SiteName = "here".parse().unwrap();
    Operation {
        id,
        token: Token::derive(world.lineage, &site, id),
        verb,
        resource: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site,
        environment: "staging".parse().unwrap(),
        lineage: world.lineage,
        via: None,
        host: None,
        spec: if verb == Verb::Delete { Spec::of(&json!({})) } else { wanted.spec.clone() },
        recorded: recorded.cloned(),
        changes: Vec::new(),
        bounds: Default::default(),
        lacking: Vec::new(),
        is_repeated: false,
    }
}

/// A wanted object: its id is made of kind and name.
pub fn want(kind: &str, name: &str, namespace: Option<&str>, rest: Value) -> Wanted {
    let mut spec = rest;
    spec["metadata"]["name"] = json!(name);
    if let Some(namespace) = namespace {
        spec["metadata"]["namespace"] = json!(namespace);
    }
    let part = name.replace(['.', ':'], "-");
    Wanted {
        id: ResourceId::new(format!("here/{kind}/{part}")).unwrap(),
        kind: format!("kubernetes.{kind}").parse().unwrap(),
        site: "here".parse().unwrap(),
        via: None,
        spec: Spec::of(&spec),
        needs: Vec::new(),
        ownership: Ownership::Ours,
        protected: false,
    }
}

/// The kinds that others add to clusters, as far as tests need them: anything may stand in their objects. Their controllers are
/// [`content`].
pub const ADDED: [(&str, &str, &str, &str); 10] = [
    ("gateway.networking.k8s.io", "v1", "gateways", "Gateway"),
    ("gateway.networking.k8s.io", "v1", "httproutes", "HTTPRoute"),
    ("gateway.networking.k8s.io", "v1", "backendtlspolicies", "BackendTLSPolicy"),
    ("route.openshift.io", "v1", "routes", "Route"),
    ("cert-manager.io", "v1", "issuers", "Issuer"),
    ("cert-manager.io", "v1", "certificates", "Certificate"),
    ("monitoring.coreos.com", "v1", "servicemonitors", "ServiceMonitor"),
    ("monitoring.coreos.com", "v1", "prometheusrules", "PrometheusRule"),
    ("monitoring.coreos.com", "v1alpha1", "alertmanagerconfigs", "AlertmanagerConfig"),
    ("postgresql.cnpg.io", "v1", "clusters", "Cluster"),
];

/// What defines a kind whose objects live in namespaces.
pub fn definition(group: &str, plural: &str, kind: &str) -> Value {
    definition_of(group, "v1", plural, kind)
}

fn definition_of(group: &str, version: &str, plural: &str, kind: &str) -> Value {
    json!({
        "metadata": { "annotations": { "api-approved.kubernetes.io": "unapproved, for tests" } },
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": { "kind": kind, "listKind": format!("{kind}List"), "plural": plural, "singular": kind.to_lowercase() },
            "versions": [{
                "name": version,
                "served": true,
                "storage": true,
                "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } },
            }],
        },
    })
}

/// Adds the kinds of others to the cluster: three groups as their makers define them, the rest as far as tests need them.
pub async fn add_real_kinds(cluster: &Cluster) {
    for group in ["gateway-api", "cloudnative-pg", "prometheus-operator"] {
        cluster.define(group);
    }
    add_kinds(cluster).await;
}

/// Adds the kinds of others to the cluster, as whoever installs their controllers does.
pub async fn add_kinds(cluster: &Cluster) {
    let api = cluster.api();
    for (group, version, plural, kind) in ADDED {
        let mut made = definition_of(group, version, plural, kind);
        made["apiVersion"] = json!("apiextensions.k8s.io/v1");
        made["kind"] = json!("CustomResourceDefinition");
        made["metadata"]["name"] = json!(format!("{plural}.{group}"));
        let definitions = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
        let answer = api.call("POST", definitions, Some(&made)).await.unwrap();
        assert!(answer.status == 201 || answer.status == 409, "{answer:?}");
    }
    for (group, version, plural, _) in ADDED {
        let path = format!("/apis/{group}/{version}/{plural}");
        // Not there yet, then there and busy with itself.
        while api.call("GET", &path, None).await.unwrap().status != 200 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A controller of all these kinds that is content with everything in a namespace; it ends with its handle.
pub fn content(cluster: &'static Cluster, namespace: &str) -> tokio::task::JoinHandle<()> {
    let (api, namespace) = (cluster.api(), namespace.to_owned());
    tokio::spawn(async move {
        loop {
            for (group, version, plural, _) in ADDED {
                let all = format!("/apis/{group}/{version}/namespaces/{namespace}/{plural}");
                let Ok(listed) = api.call("GET", &all, None).await else { continue };
                for object in listed.body["items"].as_array().into_iter().flatten() {
                    let generation = &object["metadata"]["generation"];
                    let holds = |kind: &str| json!({ "type": kind, "status": "True", "reason": kind, "message": "", "observedGeneration": generation });
                    let kinds = ["Ready", "Programmed", "Accepted", "ResolvedRefs", "Admitted"];
                    let conditions = json!(kinds.map(holds));
                    let one = json!([{ "conditions": conditions, "parentRef": object["spec"]["parentRefs"][0] }]);
                    let status = json!({ "status": { "conditions": conditions, "parents": one, "ancestors": one, "ingress": one } });
                    if object["status"] != status["status"] {
                        let path = format!("{all}/{}/status", object["metadata"]["name"].as_str().unwrap());
                        let _ = api.call("PATCH", &path, Some(&status)).await;
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    })
}

/// A Deployment whose pods run a command, wherever the kubelet stand-in may put them.
pub fn deployment(replicas: u64, command: &[&str]) -> Value {
    json!({ "spec": {
        "replicas": replicas,
        "selector": { "matchLabels": { "app": "web" } },
        "template": {
            "metadata": { "labels": { "app": "web" } },
            "spec": {
                "terminationGracePeriodSeconds": 1,
                "containers": [{
                    "name": "web",
                    "image": "local/web:1",
                    "command": command,
                    "resources": { "requests": { "cpu": "0.1", "memory": "64Mi" } },
                }],
            },
        },
    } })
}

/// A spec with one field set otherwise, by its JSON pointer.
pub fn with(spec: &Spec, pointer: &str, value: Value) -> Spec {
    let mut changed = spec.as_value().clone();
    *changed.pointer_mut(pointer).unwrap_or_else(|| panic!("no {pointer} in {spec}")) = value;
    Spec::of(&changed)
}
