//! Every kind of object, one row each: what the API calls it, when it does its work, what cannot change in place.

use std::sync::LazyLock;
use std::time::Duration;

use textnlp_provider::{DataClass, Identity, Kind, KindName, ReplaceOrder};

use crate::ready::{self, Ready};
use serde_json::Value;

/// One kind of object.
pub(crate) struct Row {
    /// `kubernetes.NOUN`.
    pub(crate) name: &'static str,
    says: &'static str,
    /// The API group; empty for the first one.
    pub(crate) group: &'static str,
    pub(crate) version: &'static str,
    /// As in paths.
    pub(crate) plural: &'static str,
    /// As in manifests.
    pub(crate) kind: &'static str,
    /// Whether objects live in a namespace.
    pub(crate) namespaced: bool,
    data: DataClass,
    deadline: Duration,
    /// Whether an object does its work.
    pub(crate) ready: fn(&Value) -> Ready,
    /// Fields that only a new object has otherwise; all below them too.
    pub(crate) fixed: &'static [&'static str],
    /// Its pods say why it does not do its work.
    pub(crate) has_pods: bool,
    permissions: &'static [&'static str],
    /// What adds this kind to a cluster; `None` where every cluster has it.
    pub(crate) brought_by: Option<&'static str>,
}

impl Row {
    fn kind(&self) -> Kind {
        Kind {
            name: self.name,
            says: self.says,
            identity: Identity::Named,
            data: self.data,
            // A name in a namespace belongs to one object.
            replace: ReplaceOrder::DeleteFirst,
            one_by_one: false,
            // Lists that are asked for without a version are read from the quorum.
            settles: Duration::ZERO,
            deadline: self.deadline,
            schema: 1,
            price_key: None,
            permissions: self.permissions,
            // Its ids there hold no uid, so they do not say which object is meant.
            terraform: &[],
        }
    }

    /// As `apiVersion` in manifests.
    pub(crate) fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.to_owned() } else { format!("{}/{}", self.group, self.version) }
    }

    /// `deployments.apps`, as kubectl and messages of the API server say it.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// The path of the group in the version that is used.
    pub(crate) fn root(&self) -> String {
        if self.group.is_empty() {
            format!("/api/{}", self.version)
        } else {
            format!("/apis/{}/{}", self.group, self.version)
        }
    }

    /// The path of all objects, in all namespaces or one.
    pub(crate) fn path(&self, namespace: Option<&str>) -> String {
        match namespace.filter(|_| self.namespaced) {
            Some(namespace) => format!("{}/namespaces/{namespace}/{}", self.root(), self.plural),
            None => format!("{}/{}", self.root(), self.plural),
        }
    }

    /// What changing a field takes: whether it needs a new object.
    pub(crate) fn is_fixed(&self, field: &str) -> bool {
        let below =
            |fixed: &&str| field == *fixed || field.strip_prefix(*fixed).is_some_and(|rest| rest.starts_with('.'));
        ["metadata.name", "metadata.namespace"].iter().chain(self.fixed).any(below)
    }
}

const SECOND: Duration = Duration::from_secs(1);
const MINUTE: Duration = Duration::from_secs(60);

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
            deadline: SECOND.saturating_mul(30),
            ready: ready::at_once,
            fixed: &[],
            has_pods: false,
            permissions: &[concat!("get, list, create, patch, delete ", $plural, " of group \"", $group, "\"")],
            brought_by: None,
        }
    };
}

/// The table itself, in the order in which a person would make them.
pub(crate) static ROWS: [Row; 34] = [
    Row {
        namespaced: false,
        ready: ready::namespace,
        // Whatever still ends in it is waited for.
        deadline: MINUTE.saturating_mul(10),
        ..row!("namespace", "a namespace", "" / "v1", "namespaces", "Namespace")
    },
    row!("resource-quota", "what a namespace may use", "" / "v1", "resourcequotas", "ResourceQuota"),
    row!("limit-range", "what containers of a namespace get and may ask for", "" / "v1", "limitranges", "LimitRange"),
    row!("service-account", "the name under which pods act", "" / "v1", "serviceaccounts", "ServiceAccount"),
    row!("role", "what may be done in a namespace", "rbac.authorization.k8s.io" / "v1", "roles", "Role"),
    Row {
        fixed: &["roleRef"],
        ..row!("role-binding", "who may do it", "rbac.authorization.k8s.io" / "v1", "rolebindings", "RoleBinding")
    },
    Row {
        namespaced: false,
        ..row!(
            "cluster-role",
            "what may be done in a cluster",
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
            "who may do it",
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
        ..row!("priority-class", "which pods go first", "scheduling.k8s.io" / "v1", "priorityclasses", "PriorityClass")
    },
    Row {
        data: DataClass::Precious,
        deadline: MINUTE.saturating_mul(10),
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
        deadline: MINUTE.saturating_mul(10),
        ready: ready::service,
        fixed: &["spec.clusterIP", "spec.clusterIPs"],
        ..row!("service", "a name and an address for pods", "" / "v1", "services", "Service")
    },
    row!("network-policy", "who may talk to pods", "networking.k8s.io" / "v1", "networkpolicies", "NetworkPolicy"),
    Row {
        // Pods come one after the other, and each gets the time that its models take: the deployment's own deadline judges sooner.
        deadline: MINUTE.saturating_mul(240),
        ready: ready::deployment,
        fixed: &["spec.selector"],
        has_pods: true,
        ..row!("deployment", "pods that are all alike", "apps" / "v1", "deployments", "Deployment")
    },
    Row {
        deadline: MINUTE.saturating_mul(30),
        ready: ready::stateful_set,
        fixed: &["spec.selector", "spec.serviceName", "spec.podManagementPolicy", "spec.volumeClaimTemplates"],
        has_pods: true,
        ..row!("stateful-set", "pods with names and volumes of their own", "apps" / "v1", "statefulsets", "StatefulSet")
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
    row!("ingress", "a way in for HTTP", "networking.k8s.io" / "v1", "ingresses", "Ingress"),
    row!(
        "horizontal-pod-autoscaler",
        "how many pods there are",
        "autoscaling" / "v2",
        "horizontalpodautoscalers",
        "HorizontalPodAutoscaler"
    ),
    row!(
        "pod-disruption-budget",
        "how many pods may be away at once",
        "policy" / "v1",
        "poddisruptionbudgets",
        "PodDisruptionBudget"
    ),
    Row {
        namespaced: false,
        // It takes every object of its kind along.
        data: DataClass::Precious,
        deadline: MINUTE.saturating_mul(2),
        ready: ready::definition,
        fixed: &["spec.group", "spec.names.kind", "spec.names.plural", "spec.scope"],
        ..row!(
            "custom-resource-definition",
            "a kind of objects that somebody added",
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
            "who serves an API that is not the API server's own",
            "apiregistration.k8s.io" / "v1",
            "apiservices",
            "APIService"
        )
    },
    // Kinds that others add to clusters: a cluster without their definitions has none of them.
    Row {
        brought_by: Some("a controller of the Gateway API"),
        deadline: MINUTE.saturating_mul(10),
        ready: ready::gateway,
        ..row!("gateway", "a way in for traffic", "gateway.networking.k8s.io" / "v1", "gateways", "Gateway")
    },
    Row {
        brought_by: Some("a controller of the Gateway API"),
        deadline: MINUTE.saturating_mul(2),
        ready: ready::http_route,
        ..row!("http-route", "which requests go where", "gateway.networking.k8s.io" / "v1", "httproutes", "HTTPRoute")
    },
    Row {
        brought_by: Some("the Gateway API 1.4 or newer and a controller that knows it"),
        deadline: MINUTE.saturating_mul(2),
        ready: ready::backend_tls,
        ..row!(
            "backend-tls-policy",
            "how gateways speak TLS with pods",
            "gateway.networking.k8s.io" / "v1",
            "backendtlspolicies",
            "BackendTLSPolicy"
        )
    },
    Row {
        brought_by: Some("OpenShift"),
        deadline: MINUTE.saturating_mul(5),
        ready: ready::openshift_route,
        ..row!("openshift-route", "a way in for HTTP on OpenShift", "route.openshift.io" / "v1", "routes", "Route")
    },
    Row {
        brought_by: Some("cert-manager"),
        deadline: MINUTE.saturating_mul(5),
        ready: ready::of_its_own,
        ..row!("issuer", "who signs certificates", "cert-manager.io" / "v1", "issuers", "Issuer")
    },
    Row {
        brought_by: Some("cert-manager"),
        deadline: MINUTE.saturating_mul(20),
        ready: ready::of_its_own,
        ..row!("certificate", "a certificate that is renewed", "cert-manager.io" / "v1", "certificates", "Certificate")
    },
    Row {
        brought_by: Some("the Prometheus operator"),
        ..row!(
            "service-monitor",
            "which metrics of a service are read",
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
        brought_by: Some("CloudNativePG"),
        data: DataClass::Precious,
        deadline: MINUTE.saturating_mul(30),
        ready: ready::of_its_own,
        fixed: &["spec.bootstrap", "metadata.annotations.textnlp-postgres-version"],
        ..row!("postgres-cluster", "a PostgreSQL by CloudNativePG", "postgresql.cnpg.io" / "v1", "clusters", "Cluster")
    },
];

/// Pods: nobody applies them here, their words are read.
pub(crate) const fn pods() -> Row {
    row!("pod", "a pod", "" / "v1", "pods", "Pod")
}

/// The cluster's machines: whoever made it looks after them.
pub(crate) const fn nodes() -> Row {
    Row { namespaced: false, ..row!("node", "a machine", "" / "v1", "nodes", "Node") }
}

/// Sets of pods: nobody applies them here, deployments make them.
pub(crate) const fn replica_sets() -> Row {
    row!("replica-set", "the pods of one template", "apps" / "v1", "replicasets", "ReplicaSet")
}

/// The rows as the contract declares kinds.
pub(crate) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| ROWS.iter().map(Row::kind).collect());
    &KINDS
}

/// The row of a kind; `None` for a kind that is not ours.
pub(crate) fn row(kind: &KindName) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.name == kind.as_str())
}

/// The row of a kind that this program itself names.
pub(crate) fn named(kind: &str) -> &'static Row {
    ROWS.iter().find(|row| row.name == kind).expect("the kinds that this program names are in the table")
}

/// The row that holds definitions of kinds.
pub(crate) const DEFINITION: &str = "CustomResourceDefinition";
/// What leads the API server to whoever serves an API beside it.
pub(crate) const API_SERVICE: &str = "APIService";
/// What leads clients from outside.
pub(crate) const INGRESS: &str = "Ingress";
/// What leads them there from a Gateway.
pub(crate) const HTTP_ROUTE: &str = "HTTPRoute";
/// What adds pods and removes them.
pub(crate) const AUTOSCALER: &str = "HorizontalPodAutoscaler";

/// The row that holds namespaces.
pub(crate) fn namespaces() -> &'static Row {
    &ROWS[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_api() {
        let kind = |name: &str| row(&KindName::new(name).expect("a kind")).expect("a row");
        assert_eq!(kind("kubernetes.deployment").path(Some("a")), "/apis/apps/v1/namespaces/a/deployments");
        assert_eq!(kind("kubernetes.config-map").path(None), "/api/v1/configmaps");
        assert_eq!(kind("kubernetes.cluster-role").path(Some("a")), "/apis/rbac.authorization.k8s.io/v1/clusterroles");
        assert_eq!(namespaces().kind, "Namespace");
    }

    #[test]
    fn a_field_below_a_fixed_one_is_fixed() {
        let job = row(&KindName::new("kubernetes.job").expect("a kind")).expect("a row");
        assert!(job.is_fixed("spec.template.spec.containers.0.image") && job.is_fixed("metadata.name"));
        assert!(!job.is_fixed("spec.templates") && !job.is_fixed("spec.suspend"));
    }
}
