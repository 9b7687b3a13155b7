//! The table of supported kinds, one row each: API names, readiness and immutable fields.

use std::sync::LazyLock;
use std::time::Duration;

use textnlp_provider::{CostLine, DataClass, Identity, Kind, KindName, Permission, Pricing, ReplaceOrder, Spec};

use crate::ready::{self, Ready};
use serde_json::Value;

/// The verbs that applying and deleting an object need.
pub(crate) const VERBS: [&str; 5] = ["get", "list", "create", "patch", "delete"];

/// One kind of object.
pub(crate) struct Row {
    /// The kind in the contract: `kubernetes.NOUN`.
    pub(crate) name: &'static str,
    says: &'static str,
    /// The API group; empty for the core group.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    /// The plural, as in paths.
    pub(crate) plural: &'static str,
    /// The kind, as in manifests.
    pub(crate) kind: &'static str,
    /// Whether the kind is namespaced.
    pub(crate) namespaced: bool,
    /// What is lost with an object.
    pub(crate) data: DataClass,
    pricing: Pricing,
    deadline: Duration,
    /// The readiness check.
    pub(crate) ready: fn(&Value) -> Ready,
    /// Immutable fields, including everything below them: a change needs a replacement.
    pub(crate) fixed: &'static [&'static str],
    /// Whether its pods explain why it is not ready.
    pub(crate) has_pods: bool,
    /// The project that defines this kind; `None` if every cluster has it.
    pub(crate) brought_by: Option<&'static str>,
}

impl Row {
    fn kind(&self) -> Kind {
        let permission = format!("{} {} of group \"{}\"", VERBS.join(", "), self.plural, self.group);
        Kind {
            name: self.name,
            says: self.says,
            identity: Identity::Named,
            data: self.data,
            // A name belongs to one object at a time.
            replace: ReplaceOrder::DeleteFirst,
            one_by_one: false,
            shared: &[],
            replica: None,
            // Lists without a `resourceVersion` are consistent reads.
            settles: Duration::ZERO,
            deadline: self.deadline,
            schema: 1,
            // An object without a readiness check takes one call; others depend on images, models and controllers.
            typical: (self.deadline <= AT_ONCE).then_some(SECOND),
            pricing: self.pricing,
            // The kinds live as long as the program.
            permissions: vec![Permission::change(permission.leak())].leak(),
            // Terraform ids contain no uid, so they do not identify the object.
            terraform: &[],
        }
    }

    /// The `apiVersion` of manifests.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// The resource name in kubectl and API messages, such as `deployments.apps`.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of the group and version.
    pub(crate) fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// The path of all objects, in all namespaces or in one.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", self.root(), self.plural),
            None => format!("{}/{}", self.root(), self.plural),
        }
    }

    /// Whether a change of the field needs a replacement.
    pub(crate) fn is_fixed(&self, field: &str) -> bool {
        let below =
            |fixed: &&str| field == *fixed || field.strip_prefix(*fixed).is_some_and(|rest| rest.starts_with('.'));
        ["metadata.name", "metadata.namespace"].iter().chain(self.fixed).any(below)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);
/// The deadline of objects that are ready at once.
const AT_ONCE: Duration = Duration::from_secs(30);

/// Why the cost of a volume is not known.
const DISKS: &str = "by the size and the class of the disks, at the storage of the cluster";

/// What an object costs beyond the nodes: load balancers and disks that controllers create for it.
pub(crate) fn costs(kind: &KindName, spec: &Spec) -> Vec<CostLine> {
    const SERVICE: &str = "kubernetes";
    let Some(declared) = kinds().iter().find(|one| one.name == kind.as_str()) else { return Vec::new() };
    let fields = spec.get("spec").unwrap_or(&Value::Null);
    let extra = match kind.as_str() {
        "kubernetes.service" if fields["type"] == "LoadBalancer" => ("a load balancer", "by the cluster's provider"),
        "kubernetes.stateful-set" if fields["volumeClaimTemplates"].as_array().is_some_and(|all| !all.is_empty()) => {
            ("a volume for each pod", DISKS)
        }
        "kubernetes.service" | "kubernetes.stateful-set" => return vec![CostLine::included(SERVICE, declared.says)],
        _ => return declared.costs(),
    };
    vec![CostLine::included(SERVICE, declared.says), CostLine::unknown(SERVICE, extra.0, extra.1)]
}

macro_rules! row {
    ($name:literal, $says:literal, $group:literal / $version:literal, $plural:literal, $kind:literal) => {
        Row {
            name: concat!("kubernetes.", $name),
            says: $says,
            group: $group,
            version: $version,
            plural: $plural,
            kind: $kind,
            namespaced: true,
            data: DataClass::None,
            pricing: Pricing::Included,
            deadline: AT_ONCE,
            ready: ready::at_once,
            fixed: &[],
            has_pods: false,
            brought_by: None,
        }
    };
}

/// The table, in dependency order.
pub(crate) static ROWS: [Row; 35] = [
    Row {
        namespaced: false,
        ready: ready::namespace,
        // The deletion waits for all terminating objects in it.
        deadline: MINUTE.saturating_mul(10),
        ..row!("namespace", "a namespace", "" / "v1", "namespaces", "Namespace")
    },
    row!("resource-quota", "the quota of a namespace", "" / "v1", "resourcequotas", "ResourceQuota"),
    row!(
        "limit-range",
        "default resources and limits of containers in a namespace",
        "" / "v1",
        "limitranges",
        "LimitRange"
    ),
    row!("service-account", "the identity of pods", "" / "v1", "serviceaccounts", "ServiceAccount"),
    row!("role", "permissions in a namespace", "rbac.authorization.k8s.io" / "v1", "roles", "Role"),
    Row {
        fixed: &["roleRef"],
        ..row!(
            "role-binding",
            "the grant of permissions",
            "rbac.authorization.k8s.io" / "v1",
            "rolebindings",
            "RoleBinding"
        )
    },
    Row {
        namespaced: false,
        ..row!(
            "cluster-role",
            "permissions in a cluster",
            "rbac.authorization.k8s.io" / "v1",
            "clusterroles",
            "ClusterRole"
        )
    },
    Row {
        namespaced: false,
        fixed: &["roleRef"],
        ..row!(
            "cluster-role-binding",
            "the grant of permissions",
            "rbac.authorization.k8s.io" / "v1",
            "clusterrolebindings",
            "ClusterRoleBinding"
        )
    },
    row!("config-map", "settings", "" / "v1", "configmaps", "ConfigMap"),
    Row {
        data: DataClass::Derived,
        fixed: &["type"],
        ..row!("secret", "secrets that pods read", "" / "v1", "secrets", "Secret")
    },
    Row {
        namespaced: false,
        fixed: &["provisioner", "parameters", "reclaimPolicy", "volumeBindingMode"],
        ..row!("storage-class", "a kind of volume", "storage.k8s.io" / "v1", "storageclasses", "StorageClass")
    },
    Row {
        namespaced: false,
        fixed: &["value", "preemptionPolicy"],
        ..row!("priority-class", "the priority of pods", "scheduling.k8s.io" / "v1", "priorityclasses", "PriorityClass")
    },
    Row {
        data: DataClass::Precious,
        pricing: Pricing::Unknown(DISKS),
        // The deletion waits for its volume.
        deadline: MINUTE.saturating_mul(20),
        ready: ready::volume_claim,
        fixed: &[
            "spec.accessModes",
            "spec.storageClassName",
            "spec.volumeName",
            "spec.selector",
            "spec.volumeMode",
            "spec.dataSource",
        ],
        ..row!("persistent-volume-claim", "a volume", "" / "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
    },
    Row {
        pricing: Pricing::BySpec,
        deadline: MINUTE.saturating_mul(10),
        ready: ready::service,
        fixed: &[
            "spec.clusterIP",
            "spec.clusterIPs",
            // Controllers of AWS would leave a load balancer of the other type behind.
            "metadata.annotations.service.beta.kubernetes.io/aws-load-balancer-type",
        ],
        ..row!("service", "a stable name and address for pods", "" / "v1", "services", "Service")
    },
    row!(
        "network-policy",
        "allowed connections of pods",
        "networking.k8s.io" / "v1",
        "networkpolicies",
        "NetworkPolicy"
    ),
    Row {
        // Pods start one after the other, each with the startup timeout of its models. The deployment's own deadline
        // ends sooner.
        deadline: MINUTE.saturating_mul(240),
        ready: ready::deployment,
        fixed: &["spec.selector"],
        has_pods: true,
        ..row!("deployment", "identical pods", "apps" / "v1", "deployments", "Deployment")
    },
    Row {
        pricing: Pricing::BySpec,
        deadline: MINUTE.saturating_mul(30),
        ready: ready::stateful_set,
        fixed: &["spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.volumeClaimTemplates"],
        has_pods: true,
        ..row!("stateful-set", "pods with stable names and volumes", "apps" / "v1", "statefulsets", "StatefulSet")
    },
    Row {
        deadline: MINUTE.saturating_mul(30),
        ready: ready::daemon_set,
        fixed: &["spec.selector"],
        has_pods: true,
        ..row!("daemon-set", "a pod on every node", "apps" / "v1", "daemonsets", "DaemonSet")
    },
    Row {
        deadline: MINUTE.saturating_mul(60),
        ready: ready::job,
        fixed: &["spec.template", "spec.selector", "spec.completions", "spec.completionMode"],
        has_pods: true,
        ..row!("job", "a program that runs to its end", "batch" / "v1", "jobs", "Job")
    },
    row!("cron-job", "a program that runs on a schedule", "batch" / "v1", "cronjobs", "CronJob"),
    row!("ingress", "an HTTP entry point", "networking.k8s.io" / "v1", "ingresses", "Ingress"),
    row!(
        "horizontal-pod-autoscaler",
        "the number of pods",
        "autoscaling" / "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler"
    ),
    row!(
        "pod-disruption-budget",
        "the number of pods that can be unavailable at once",
        "policy" / "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget"
    ),
    Row {
        namespaced: false,
        // Its deletion deletes every object of its kind.
        data: DataClass::Precious,
        deadline: MINUTE.saturating_mul(2),
        ready: ready::definition,
        fixed: &["spec.group", "spec.names.kind", "spec.names.plural", "spec.scope"],
        ..row!(
            "custom-resource-definition",
            "a custom resource definition",
            "apiextensions.k8s.io" / "v1",
            "customresourcedefinitions",
            "CustomResourceDefinition"
        )
    },
    Row {
        namespaced: false,
        deadline: MINUTE.saturating_mul(5),
        ready: ready::api_service,
        fixed: &["spec.group", "spec.version"],
        ..row!(
            "api-service",
            "the server of an aggregated API",
            "apiregistration.k8s.io" / "v1",
            "apiservices",
            "APIService"
        )
    },
    // Kinds of other projects, which a cluster has only with their definitions.
    Row {
        brought_by: Some("a controller of the Gateway API"),
        pricing: Pricing::Unknown("by the load balancer that its controller creates"),
        deadline: MINUTE.saturating_mul(10),
        ready: ready::gateway,
        ..row!("gateway", "an entry point for traffic", "gateway.networking.k8s.io" / "v1", "gateways", "Gateway")
    },
    Row {
        brought_by: Some("a controller of the Gateway API"),
        deadline: MINUTE.saturating_mul(2),
        ready: ready::http_route,
        ..row!(
            "http-route",
            "routing rules for requests",
            "gateway.networking.k8s.io" / "v1",
            "httproutes",
            "HTTPRoute"
        )
    },
    Row {
        brought_by: Some("the Gateway API 1.4 or newer and a controller that supports it"),
        deadline: MINUTE.saturating_mul(2),
        ready: ready::backend_tls,
        ..row!(
            "backend-tls-policy",
            "TLS settings between gateways and pods",
            "gateway.networking.k8s.io" / "v1",
            "backendtlspolicies",
            "BackendTLSPolicy"
        )
    },
    Row {
        brought_by: Some("OpenShift"),
        deadline: MINUTE.saturating_mul(5),
        ready: ready::openshift_route,
        ..row!("openshift-route", "an HTTP entry point on OpenShift", "route.openshift.io" / "v1", "routes", "Route")
    },
    Row {
        brought_by: Some("cert-manager"),
        deadline: MINUTE.saturating_mul(5),
        ready: ready::of_custom_resource,
        ..row!("issuer", "an issuer of certificates", "cert-manager.io" / "v1", "issuers", "Issuer")
    },
    Row {
        brought_by: Some("cert-manager"),
        deadline: MINUTE.saturating_mul(20),
        ready: ready::of_custom_resource,
        ..row!("certificate", "a certificate that is renewed", "cert-manager.io" / "v1", "certificates", "Certificate")
    },
    Row {
        brought_by: Some("the Prometheus operator"),
        ..row!(
            "service-monitor",
            "metrics of a service to scrape",
            "monitoring.coreos.com" / "v1",
            "servicemonitors",
            "ServiceMonitor"
        )
    },
    Row {
        brought_by: Some("the Prometheus operator"),
        ..row!("prometheus-rule", "alerts", "monitoring.coreos.com" / "v1", "prometheusrules", "PrometheusRule")
    },
    Row {
        brought_by: Some("the Prometheus operator"),
        ..row!(
            "alertmanager-config",
            "receivers of alerts",
            "monitoring.coreos.com" / "v1alpha1",
            "alertmanagerconfigs",
            "AlertmanagerConfig"
        )
    },
    Row {
        brought_by: Some("CloudNativePG 1.25 or newer"),
        data: DataClass::Precious,
        pricing: Pricing::Unknown(DISKS),
        deadline: MINUTE.saturating_mul(30),
        ready: ready::of_custom_resource,
        fixed: &["spec.bootstrap", "metadata.annotations.textnlp-postgres-version"],
        ..row!("postgres-cluster", "a PostgreSQL by CloudNativePG", "postgresql.cnpg.io" / "v1", "clusters", "Cluster")
    },
];

/// Pods; they are never applied, only read.
pub(crate) const fn pods() -> Row {
    row!("pod", "a pod", "" / "v1", "pods", "Pod")
}

/// Nodes; they are managed outside of this provider.
pub(crate) const fn nodes() -> Row {
    Row { namespaced: false, ..row!("node", "a machine", "" / "v1", "nodes", "Node") }
}

/// Volumes; the cluster's storage creates and deletes them.
pub(crate) const fn volumes() -> Row {
    Row { namespaced: false, ..row!("volume", "a disk", "" / "v1", "persistentvolumes", "PersistentVolume") }
}

/// Replica sets; deployments create them.
pub(crate) const fn replica_sets() -> Row {
    row!("replica-set", "the pods of one template", "apps" / "v1", "replicasets", "ReplicaSet")
}

/// The kinds as the contract declares them.
pub(crate) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| ROWS.iter().map(Row::kind).collect());
    &KINDS
}

/// The row of a kind; `None` for an unsupported kind.
pub(crate) fn row(kind: &KindName) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == kind.as_str())
}

/// The row of a kind that is named in the code.
pub(crate) fn named(kind: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == kind).expect("the kinds that this program uses are in the table")
}

/// The kind of custom resource definitions.
pub(crate) const DEFINITION: &str = "CustomResourceDefinition";
/// The kind that registers an aggregated API server.
pub(crate) const API_SERVICE: &str = "APIService";
/// The kind that exposes services through an ingress controller.
pub(crate) const INGRESS: &str = "Ingress";
/// The kind that exposes services through a Gateway.
pub(crate) const HTTP_ROUTE: &str = "HTTPRoute";
/// The kind of databases by CloudNativePG.
pub(crate) const POSTGRES_CLUSTER: &str = "Cluster";
/// The kind that has a volume.
pub(crate) const VOLUME_CLAIM: &str = "PersistentVolumeClaim";
/// The kind that scales pods.
pub(crate) const AUTOSCALER: &str = "HorizontalPodAutoscaler";

/// The row of namespaces.
pub(crate) fn namespaces() -> &'static Row {
    &ROWS[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_paths_match_the_kubernetes_api() {
        let kind = |name: &str| row(&KindName::new(name).expect("a kind")).expect("a row");
        assert_eq!(kind("kubernetes.deployment").path(Some("a")), "/apis/apps/v1/namespaces/a/deployments");
        assert_eq!(kind("kubernetes.config-map").path(None), "/api/v1/configmaps");
        assert_eq!(kind("kubernetes.cluster-role").path(Some("a")), "/apis/rbac.authorization.k8s.io/v1/clusterroles");
        assert_eq!(namespaces().kind, "Namespace");
    }

    #[test]
    fn field_below_an_immutable_one_is_immutable() {
        let job = row(&KindName::new("kubernetes.job").expect("a kind")).expect("a row");
        assert!(job.is_fixed("spec.template.spec.containers.0.image") && job.is_fixed("metadata.name"));
        assert!(!job.is_fixed("spec.templates") && !job.is_fixed("spec.suspend"));
    }
}
