//! Preflight checks of cluster services that the objects depend on: metrics for autoscalers, ingress controllers, and
//! classes and volumes for pods. Reads only.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_provider::{ErrorKind, Problem, Result, Wanted};

use crate::api::Api;
use crate::error::Call;
use crate::table;

/// Without a metrics API an autoscaler keeps its replica count, and only its status shows that.
pub(crate) async fn metrics(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    let served: BTreeSet<&str> = apis(wanted).filter_map(|spec| spec["spec"]["group"].as_str()).collect();
    let scalers = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::AUTOSCALER));
    let metrics = scalers.filter_map(|one| one.spec.as_value().pointer("/spec/metrics")?.as_array()).flatten();
    let kinds: BTreeSet<&str> = metrics.filter_map(|metric| metric["type"].as_str()).collect();
    for (kind, group, fix) in [
        ("Resource", "metrics.k8s.io", "install metrics-server in the cluster"),
        (
            "Pods",
            "custom.metrics.k8s.io",
            "set `scaling.adapter: true`, or install an adapter such as prometheus-adapter, with the rule in docs/guide/kubernetes.md, or remove `scaling.requests_per_second`",
        ),
    ] {
        // An API that is part of the wanted objects need not exist yet.
        if !kinds.contains(kind) || served.contains(group) {
            continue;
        }
        let call = Call {
            action: "ask for the metrics of",
            verb: "get",
            row: table::namespaces(),
            namespace: None,
            name: None,
        };
        match api.document(&call, &format!("/apis/{group}")).await {
            Ok(_) => {}
            // Without permission to check, it is assumed to exist.
            Err(error) if error.kind == ErrorKind::Denied => {}
            Err(error) if error.kind == ErrorKind::NotFound => {
                let cause = format!(
                    "the autoscaler needs {group}, which the cluster does not serve: it would not scale the pods"
                );
                problems.push(Problem::warning("scaling", cause, fix));
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The API services among the wanted objects.
fn apis(wanted: &[Wanted]) -> impl Iterator<Item = &Value> {
    let ours = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::API_SERVICE));
    ours.map(|one| one.spec.as_value())
}

/// An API group has one server per cluster. A second one beside an external server of another version would take over
/// its clients.
pub(crate) async fn groups(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    for spec in apis(wanted) {
        let Some(group) = spec["spec"]["group"].as_str() else { continue };
        let ours: BTreeSet<&str> = apis(wanted).filter_map(|spec| spec["metadata"]["name"].as_str()).collect();
        let call =
            Call { action: "find the server of", verb: "list", row: table::namespaces(), namespace: None, name: None };
        let there = match api.metadata(&call, "/apis/apiregistration.k8s.io/v1/apiservices").await {
            Ok(there) => there,
            // The missing permission is reported by kind.
            Err(error) if error.kind == ErrorKind::Denied => continue,
            Err(error) => return Err(error),
        };
        let names = there.iter().filter_map(|one| one["metadata"]["name"].as_str());
        // An API service of the same name is reported as a name conflict.
        let others: Vec<&str> = names
            .filter(|name| name.split_once('.').is_some_and(|(_, of)| of == group) && !ours.contains(name))
            .collect();
        if let Some(first) = others.first() {
            let cause = format!(
                "APIService {} already exists, and another client created it: clients of {group} would be routed to this adapter instead",
                others.join(", ")
            );
            let fix = format!(
                "remove `scaling.adapter` and give the existing adapter the rule in docs/guide/kubernetes.md, or remove the APIService if it is not needed: kubectl delete apiservice {first}"
            );
            problems.push(Problem::new("scaling.adapter", cause, fix));
        }
    }
    Ok(())
}

/// An ingress without a controller for its class serves no clients, and one without its issuer has no certificate.
pub(crate) async fn check_ingress(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    let ingresses = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::INGRESS));
    for spec in ingresses.map(|one| one.spec.as_value()) {
        if let Some(class) = spec["spec"]["ingressClassName"].as_str() {
            let fix = "install ingress-nginx in the cluster";
            let path = "/apis/networking.k8s.io/v1/ingressclasses";
            named(api, ("cluster.ingress", "IngressClass", path), class, fix, problems).await?;
        }
        if let Some(issuer) = spec["metadata"]["annotations"]["cert-manager.io/cluster-issuer"].as_str() {
            let fix = "install cert-manager in the cluster, with a ClusterIssuer";
            let path = "/apis/cert-manager.io/v1/clusterissuers";
            named(api, ("cluster.ingress", "ClusterIssuer", path), issuer, fix, problems).await?;
        }
    }
    Ok(())
}

/// The annotation of an Ingress with a web application firewall.
const FIREWALL: &str = "nginx.ingress.kubernetes.io/enable-modsecurity";
/// What the controller needs for it: the annotations alone only log attacks
/// (<https://kubernetes.github.io/ingress-nginx/user-guide/third-party-addons/modsecurity/>).
const FIREWALL_SETTINGS: [(&str, &str); 3] =
    [("enable-modsecurity", "true"), ("enable-owasp-modsecurity-crs", "true"), (SNIPPET, "SecRuleEngine On")];
const SNIPPET: &str = "modsecurity-snippet";
/// The label with the release that an object is of.
const INSTANCE: &str = "app.kubernetes.io/instance";

/// An ingress-nginx that does not block attacks. Its settings are found by the labels of its IngressClass. Without these, or
/// without permission to read them, they are assumed to be there.
pub(crate) async fn firewall(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    let ingresses = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::INGRESS));
    let mut specs = ingresses.map(|one| one.spec.as_value());
    let Some(spec) = specs.find(|spec| spec["metadata"]["annotations"][FIREWALL] == "true") else { return Ok(()) };
    let readable = |found: Result<Vec<Value>>| match found {
        Err(error) if matches!(error.kind, ErrorKind::Denied | ErrorKind::NotFound) => Ok(Vec::new()),
        found => found,
    };
    let call =
        Call { action: "find the controller of", verb: "list", row: table::namespaces(), namespace: None, name: None };
    let classes = readable(api.metadata(&call, "/apis/networking.k8s.io/v1/ingressclasses").await)?;
    let class = classes.iter().find(|class| class["metadata"]["name"] == spec["spec"]["ingressClassName"]);
    let release = class.and_then(|class| class["metadata"]["labels"][INSTANCE].as_str());
    let row = table::ROWS.iter().find(|row| row.kind == "ConfigMap");
    let Some((release, row)) = release.zip(row) else { return Ok(()) };
    let call = Call { action: "read the firewall settings in", verb: "list", row, namespace: None, name: None };
    let selector =
        format!("app.kubernetes.io/name=ingress-nginx,app.kubernetes.io/component=controller,{INSTANCE}={release}");
    let settings = readable(api.list(&call, &selector).await)?;
    problems.extend(settings.iter().filter_map(firewall_problem));
    Ok(())
}

/// What the ConfigMap of a controller lacks, with the command that sets it. Pure.
fn firewall_problem(settings: &Value) -> Option<Problem> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &settings["metadata"];
    let (name, namespace) = (text(&metadata["name"]), text(&metadata["namespace"]));
    // Others of the chart are of TCP and UDP services, and of headers.
    if !name.ends_with("-controller") {
        return None;
    }
    let is_set = |key: &str, value: &str| match text(&settings["data"][key]) {
        snippet if key == SNIPPET => blocks(&snippet),
        there => there == value,
    };
    let missing: BTreeMap<&str, &str> =
        FIREWALL_SETTINGS.into_iter().filter(|(key, value)| !is_set(key, value)).collect();
    if missing.is_empty() {
        return None;
    }
    let keys: Vec<String> = missing.iter().map(|(key, value)| format!("`{key}: {value}`")).collect();
    let cause = format!(
        "ConfigMap {name} in namespace {namespace} lacks {}, so that ingress-nginx does not block attacks",
        keys.join(", ")
    );
    let labels = &metadata["labels"];
    let has_rules = missing.contains_key(SNIPPET) && !text(&settings["data"][SNIPPET]).trim().is_empty();
    let fix = if has_rules {
        // A command would replace what is there.
        let others = keys.iter().filter(|key| !key.contains(SNIPPET)).map(|key| format!(", and set {key}"));
        format!(
            "write `SecRuleEngine On` as the last `SecRuleEngine` of its `{SNIPPET}`, beside the other lines{}",
            others.collect::<String>()
        )
    } else if labels["app.kubernetes.io/managed-by"] == "Helm" {
        let version = labels["helm.sh/chart"].as_str().and_then(|chart| chart.strip_prefix("ingress-nginx-"));
        let version = version.map(|version| format!(" --version {version}")).unwrap_or_default();
        let sets: String =
            missing.iter().map(|(key, value)| format!(" --set-string 'controller.config.{key}={value}'")).collect();
        format!(
            "helm upgrade --install {} ingress-nginx --repo https://kubernetes.github.io/ingress-nginx --namespace \
             {namespace}{version} --reuse-values{sets}",
            text(&labels[INSTANCE])
        )
    } else {
        format!("kubectl -n {namespace} patch configmap {name} --type merge -p '{}'", json!({ "data": missing }))
    };
    Some(Problem::warning("network.waf", cause, fix))
}

/// Whether a snippet turns rules on: its last `SecRuleEngine` counts. What an included file says is not known here.
fn blocks(snippet: &str) -> bool {
    let directives = snippet.lines().rev().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let mut engines =
        directives.filter(|words| words.first().is_some_and(|word| word.eq_ignore_ascii_case("SecRuleEngine")));
    match engines.next() {
        Some(words) => words.get(1).is_some_and(|mode| mode.trim_matches('"').eq_ignore_ascii_case("On")),
        None => snippet.lines().any(|line| line.trim_start().starts_with("Include ")),
    }
}

/// Pods of a missing runtime or priority class are never created, and a claim of a missing storage class stays pending.
pub(crate) async fn classes(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    const CLASSES: [(&str, &str, &str, &str); 3] = [
        (
            "cluster.runtime_class",
            "RuntimeClass",
            "/apis/node.k8s.io/v1/runtimeclasses",
            "/spec/template/spec/runtimeClassName",
        ),
        (
            "cluster.priority_class",
            "PriorityClass",
            "/apis/scheduling.k8s.io/v1/priorityclasses",
            "/spec/template/spec/priorityClassName",
        ),
        (
            "cluster.models.storage_class",
            "StorageClass",
            "/apis/storage.k8s.io/v1/storageclasses",
            "/spec/storageClassName",
        ),
    ];
    for (location, kind, path, pointer) in CLASSES {
        let named_classes = wanted.iter().filter(|one| table::row(&one.kind).is_some());
        let named_classes: BTreeSet<&str> =
            named_classes.filter_map(|one| one.spec.as_value().pointer(pointer)?.as_str()).collect();
        for class in named_classes {
            let fix = "ask a cluster administrator to create it, or remove it here";
            named(api, (location, kind, path), class, fix, problems).await?;
        }
    }
    Ok(())
}

/// OpenShift is detected by its security context constraints. The default ones allow a pod only a uid of its
/// namespace's range.
pub(crate) async fn users(
    api: &Api,
    wanted: &[Wanted],
    is_configured: bool,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    let user = |one: &Wanted| one.spec.as_value().pointer("/spec/template/spec/securityContext/runAsUser").is_some();
    let names_one = wanted.iter().any(user);
    if !names_one && !is_configured {
        return Ok(());
    }
    let call = Call { action: "ask for users of", verb: "get", row: table::namespaces(), namespace: None, name: None };
    let is_openshift = match api.document(&call, "/apis/security.openshift.io").await {
        Ok(_) => true,
        Err(error) if error.kind == ErrorKind::NotFound => false,
        // Without permission to check, the configured value is used.
        Err(error) if error.kind == ErrorKind::Denied => return Ok(()),
        Err(error) => return Err(error),
    };
    let (cause, fix) = match is_openshift {
        true if names_one => (
            "it is an OpenShift cluster, which only allows the user range of the namespace, and pods request a fixed user",
            "write `sites[].cluster.openshift: true`",
        ),
        false if is_configured => {
            ("it is not an OpenShift cluster: pods get no user assigned", "remove `sites[].cluster.openshift`")
        }
        _ => return Ok(()),
    };
    problems.push(Problem::new("cluster.openshift", cause, fix));
    Ok(())
}

/// Without a default storage class, a claim without a class stays pending unless an operator creates a volume for it.
pub(crate) async fn default_class(api: &Api, wanted: &[Wanted], problems: &mut Vec<Problem>) -> Result<()> {
    const DEFAULT: &str = "storageclass.kubernetes.io/is-default-class";
    let claims = wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| CLAIMS.contains(&row.name)));
    let without = claims.filter(|one| {
        let spec = one.spec.as_value();
        ["/spec/storageClassName", "/spec/storage/storageClass"].iter().all(|at| spec.pointer(at).is_none())
    });
    let without: Vec<&str> = without.map(|one| one.id.as_str()).collect();
    if without.is_empty() {
        return Ok(());
    }
    let call = Call {
        action: "list the storage classes of",
        verb: "list",
        row: table::namespaces(),
        namespace: None,
        name: None,
    };
    let found = match api.metadata(&call, "/apis/storage.k8s.io/v1/storageclasses").await {
        Ok(found) => found,
        // Without permission to check, it is assumed to exist.
        Err(error) if error.kind == ErrorKind::Denied => return Ok(()),
        Err(error) => return Err(error),
    };
    if !found.iter().any(|class| class["metadata"]["annotations"][DEFAULT] == "true") {
        let cause =
            format!("no StorageClass is the default, and {} request volumes without a class", without.join(", "));
        let fix = "ask a cluster administrator to set a default StorageClass or to create the volumes: until then pods stay pending";
        problems.push(Problem::warning("cluster", cause, fix));
    }
    Ok(())
}

/// The kinds that claim volumes.
const CLAIMS: [&str; 2] = ["kubernetes.persistent-volume-claim", "kubernetes.postgres-cluster"];

/// The minor versions since which image volumes are supported: behind a feature gate, and by default.
const IMAGE_VOLUMES: (u64, u64) = (31, 35);

/// An older cluster drops the image field of a volume and rejects the rest.
pub(crate) fn image_volumes(minor: u64, wanted: &[Wanted], problems: &mut Vec<Problem>) {
    let volumes =
        wanted.iter().filter_map(|one| one.spec.as_value().pointer("/spec/template/spec/volumes")?.as_array());
    if !volumes.flatten().any(|volume| volume["image"].is_object()) || minor >= IMAGE_VOLUMES.1 {
        return;
    }
    let location = "cluster.models";
    let fix = format!("write `kind: claim` or `kind: pod`, or use a cluster of version 1.{} or newer", IMAGE_VOLUMES.1);
    if minor < IMAGE_VOLUMES.0 {
        let cause = format!("models come in an image, and Kubernetes 1.{minor} does not support image volumes");
        return problems.push(Problem::new(location, cause, fix));
    }
    let cause = format!(
        "models come in an image, which Kubernetes 1.{minor} supports as a volume only when its feature gate `ImageVolume` is on, for the API server and every kubelet"
    );
    problems.push(Problem::warning(location, cause, fix));
}

/// Checks that a cluster object exists: `(setting, kind, path of the list)`. A problem lists the existing ones. Without
/// permission to check, it is assumed to exist.
async fn named(
    api: &Api,
    (location, kind, path): (&str, &str, &str),
    name: &str,
    fix: &str,
    problems: &mut Vec<Problem>,
) -> Result<()> {
    let call =
        Call { action: "list the routes to", verb: "list", row: table::namespaces(), namespace: None, name: None };
    let there = match api.metadata(&call, path).await {
        Ok(there) => there,
        Err(error) if error.kind == ErrorKind::NotFound => Vec::new(),
        Err(error) if error.kind == ErrorKind::Denied => return Ok(()),
        Err(error) => return Err(error),
    };
    let names: Vec<&str> = there.iter().filter_map(|one| one["metadata"]["name"].as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let fix = if names.is_empty() { fix.to_owned() } else { format!("choose an existing one: {}", names.join(", ")) };
    problems.push(Problem::new(location, format!("the cluster has no {kind} `{name}`"), fix));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use textnlp_provider::{KindName, Ownership, Spec};

    #[test]
    fn firewall_blocks_only_with_all_settings_of_the_controller() {
        let of = |name: &str, manager: &str, data: Value| {
            let labels = json!({ INSTANCE: "waf", "app.kubernetes.io/managed-by": manager });
            firewall_problem(
                &json!({ "metadata": { "name": name, "namespace": "edge", "labels": labels }, "data": data }),
            )
        };
        let all = |snippet: &str| json!({ "enable-modsecurity": "true", "enable-owasp-modsecurity-crs": "true", SNIPPET: snippet });
        for blocking in ["SecRuleEngine On", "Include /a.conf\n  secruleengine \"on\"\n", "Include /etc/nginx/own.conf"]
        {
            assert!(of("waf-controller", "Helm", all(blocking)).is_none(), "{blocking}");
        }
        let problem = of("waf-controller", "Helm", all("")).unwrap();
        let set = "--reuse-values --set-string 'controller.config.modsecurity-snippet=SecRuleEngine On'";
        assert!(problem.warning && problem.fix.ends_with(set), "{problem:?}");
        for logging in ["SecRuleEngine DetectionOnly", "SecRuleEngine On\nSecRuleEngine DetectionOnly"] {
            let problem = of("waf-controller", "Helm", all(logging)).unwrap();
            // A command would remove the lines that are there.
            assert!(problem.warning && problem.fix.ends_with("beside the other lines"), "{problem:?}");
        }
        assert!(of("waf-tcp", "Helm", Value::Null).is_none());
        let by_hand = of("waf-controller", "", Value::Null).unwrap().fix;
        assert!(by_hand.starts_with("kubectl -n edge patch configmap waf-controller --type merge -p '{"), "{by_hand}");
    }

    #[test]
    fn image_volume_support_depends_on_the_cluster_version() {
        let deployment = |volume: serde_json::Value| Wanted {
            id: "a/server/deployment".parse().expect("an id"),
            kind: KindName::new("kubernetes.deployment").expect("a kind"),
            site: "a".parse().expect("a site"),
            via: None,
            spec: Spec::of(&json!({ "spec": { "template": { "spec": { "volumes": [volume] } } } })),
            needs: Vec::new(),
            ownership: Ownership::Ours,
            protected: false,
        };
        let check = |minor: u64, volume: serde_json::Value, says: Option<&str>| {
            let mut problems = Vec::new();
            image_volumes(minor, &[deployment(volume)], &mut problems);
            let problem_text = problems.first().map(|problem| problem.to_string());
            match says {
                None => assert_eq!(problem_text, None, "1.{minor}"),
                Some(says) => assert!(
                    problem_text.as_ref().is_some_and(|problem_text| problem_text.contains(says)),
                    "1.{minor}: {problem_text:?}"
                ),
            }
        };
        let image = || json!({ "name": "shared-models", "image": { "reference": "a" } });
        check(30, image(), Some("does not support image volumes"));
        check(34, image(), Some("feature gate `ImageVolume`"));
        check(35, image(), None);
        check(30, json!({ "name": "tmp", "emptyDir": {} }), None);
    }
}
