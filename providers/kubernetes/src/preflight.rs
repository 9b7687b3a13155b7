//! Preflight checks of an apply: access, missing kinds, permissions and name conflicts. Reads only; the permission
//! reviews are not stored by the API server.

use std::collections::{BTreeMap, BTreeSet};

use futures::future::BoxFuture;
use serde_json::{Value, json};
use textnlp_provider::cluster::{Capacity, ClusterGpus, ClusterSite, GPU_POOL, GPU_RESOURCES, POOL};
use textnlp_provider::units::{Bytes, Cores, counted};
use textnlp_provider::{ErrorKind, Ownership, Problem, Result, Wanted, error_chain};

use crate::api::Api;
use crate::diff::quantity;
use crate::error::{Call, Rule, missing_rules};
use crate::gateway;
use crate::identity::{self, ObjectLocation};
use crate::lower::{gateway_port, gpu_resource, has_gpu, is_pinned};
use crate::observe::several;
use crate::provider::Kubernetes;
use crate::served;
use crate::table::{self, ROWS, Row, VERBS};

/// The oldest minor version that serves every kind of the table in the version used.
const OLDEST_MINOR: u64 = 30;
const ADD_GPUS: &str = "add nodes with GPUs, or change `gpu.count`";
/// What installs NVIDIA's device plugin.
const DEVICE_PLUGIN: &str =
    "https://raw.githubusercontent.com/NVIDIA/k8s-device-plugin/v0.20.0/deployments/static/nvidia-device-plugin.yml";
static NODES: Row = table::nodes();
const REVIEWS: &str = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";

pub(crate) async fn preflight(kubernetes: &Kubernetes, wanted: &[Wanted]) -> Result<Vec<Problem>> {
    let supported: Vec<(&'static Row, &Wanted)> =
        wanted.iter().filter_map(|one| Some((table::row(&one.kind)?, one))).collect();
    let mut problems = Vec::new();
    let (api, minor) = match reach(kubernetes, &mut problems).await {
        Ok(reached) => reached,
        Err(error) if error.kind == ErrorKind::Denied || error.kind == ErrorKind::Unavailable => {
            let fix = error.hint.clone().unwrap_or_else(|| {
                "check the address in the kubeconfig, and that this machine can reach it".to_owned()
            });
            return Ok(vec![Problem::new("cluster", error_chain(&error), fix)]);
        }
        Err(error) => return Err(error),
    };
    let site = kubernetes.site();
    served::users(&api, wanted, site.is_some_and(|site| site.settings.openshift), &mut problems).await?;
    if let Some(site) = site {
        problems.extend(nodes(&api, site, &supported).await?);
    }
    if let Some((site, gpu)) = site.and_then(|site| Some((site, site.gpu.as_ref()?)))
        && !brings_gpus(&supported)
    {
        problems.extend(gpus(&api, gpu, site).await?);
    }
    problems.extend(room(&api, &supported, site).await?);
    problems.extend(site.and_then(|site| site.max_nodes.filter(|most| *most > site.min_nodes)).map(|most| {
        let cause =
            format!("`cluster.max_nodes` is {most}, but this program does not create nodes in an existing cluster");
        Problem::warning("cluster.max_nodes", cause, "set this limit in the cluster's own node autoscaler")
    }));
    let image = site.and_then(|site| site.settings.image.as_ref());
    if let Some(image) = image.filter(|image| !is_pinned(image)) {
        let cause = format!("`{image}` has no digest: a new push of that tag changes what new pods run");
        problems.push(Problem::warning("cluster.image", cause, "write `REGISTRY/textnlp@sha256:…`"));
    }
    if site.is_some_and(|site| site.replicates && site.settings.health_address.is_none()) {
        let cause = "health checks of the other sites use the clients' address: a flood there looks like a failed site";
        let fix = "make service textnlp-api-ready reachable from the witness's machine only, and write its address: `https://HOST:PORT`";
        problems.push(Problem::warning("cluster.health_address", cause, fix));
    }
    let brought = brought_kinds(wanted);
    let missing = missing_kinds(&api, &supported).await?;
    for row in ROWS.iter().filter(|row| missing.contains(row.name) && !brought.contains(&row.resource())) {
        let fix = match row.brought_by {
            Some(who) => format!("install {who} in the cluster, which provides it"),
            None => format!("use a cluster of version 1.{OLDEST_MINOR} or newer"),
        };
        problems.push(Problem::new(
            row.resource(),
            format!("the cluster has no {} in version {}", row.kind, row.version),
            fix,
        ));
    }
    served::metrics(&api, wanted, &mut problems).await?;
    served::groups(&api, wanted, &mut problems).await?;
    served::check_ingress(&api, wanted, &mut problems).await?;
    served::firewall(&api, wanted, &mut problems).await?;
    served::classes(&api, wanted, &mut problems).await?;
    served::default_class(&api, wanted, &mut problems).await?;
    let port = site.and_then(|site| gateway_port(&site.settings));
    if let Some(port) = port.filter(|_| !missing.contains("kubernetes.http-route")) {
        gateway::listeners(&api, wanted, port, &mut problems).await?;
    }
    served::image_volumes(minor, wanted, &mut problems);
    let supported: Vec<_> = supported.into_iter().filter(|(row, _)| !missing.contains(row.name)).collect();
    permissions(&api, &supported, &mut problems).await?;
    for (row, wanted) in supported.iter().filter(|(row, _)| row.name == "kubernetes.deployment") {
        problems.extend(image_of_cpu(&api, row, wanted).await?);
    }
    taken_names(&api, &supported, &mut problems).await?;
    Ok(problems)
}

/// Too few nodes are only a warning: a cluster may add nodes when pods need them.
async fn nodes(api: &Api, site: &ClusterSite, supported: &[(&'static Row, &Wanted)]) -> Result<Option<Problem>> {
    let least = site.min_nodes.max(site.phase_nodes);
    if least <= 1 {
        return Ok(None);
    }
    let call = Call { action: "count the nodes of", verb: "list", row: &NODES, namespace: None, name: None };
    match api.list(&call, "").await {
        Ok(nodes) => {
            let deployments = supported.iter().filter(|(row, _)| row.name == "kubernetes.deployment");
            let pods: Vec<&Value> =
                deployments.map(|(_, wanted)| &wanted.spec.as_value()["spec"]["template"]["spec"]).collect();
            Ok(too_few(&nodes, &pods, site))
        }
        Err(error) if error.kind == ErrorKind::Denied => {
            let cause = format!("whether it has {least} nodes could not be checked: you are not allowed to list nodes");
            Ok(Some(Problem::warning("cluster", cause, "compare them with `kubectl get nodes`")))
        }
        Err(error) => Err(error),
    }
}

/// Whether fewer of these nodes can run pods of Deployments than the environment and its phase need. Pure.
fn too_few(nodes: &[Value], pods: &[&Value], site: &ClusterSite) -> Option<Problem> {
    let usable = nodes.iter().filter(|node| is_usable(node, pods)).count();
    let (least, wanted, fix) = match site.phase_nodes > site.min_nodes {
        true => {
            let least = site.phase_nodes;
            let fix = format!("add nodes; where `up` creates the cluster, write `cluster.min_nodes: {least}`");
            (least, format!("the phase of its environment needs {least}"), fix)
        }
        false => {
            let fix =
                "add nodes, or change `cluster.min_nodes`; this program does not create nodes in an existing cluster";
            (site.min_nodes, format!("`cluster.min_nodes` is {}", site.min_nodes), fix.to_owned())
        }
    };
    let cause = format!("it has {} that its pods may run on, and {wanted}", counted(usable, "ready node"));
    (usable < least as usize).then(|| Problem::warning("cluster", cause, fix))
}

/// Whether a node is ready, and new pods may run on it: one of these, or without any of them one without tolerations. Pure.
fn is_usable(node: &Value, pods: &[&Value]) -> bool {
    let mut conditions = node["status"]["conditions"].as_array().into_iter().flatten();
    let is_ready = conditions.any(|one| one["type"] == "Ready" && one["status"] == "True");
    let may_run = match pods {
        [] => is_allowed(node, &Value::Null),
        _ => pods.iter().any(|pod| is_allowed(node, pod)),
    };
    is_ready && node["spec"]["unschedulable"] != true && may_run
}

/// Whether the cloud of the cluster creates the nodes with GPUs, which pods choose by their label. Pure.
fn brings_gpus(supported: &[(&'static Row, &Wanted)]) -> bool {
    let of_pods = |one: &Wanted| one.spec.as_value()["spec"]["template"]["spec"]["nodeSelector"][POOL] == GPU_POOL;
    supported.iter().any(|(row, wanted)| row.name == "kubernetes.deployment" && of_pods(wanted))
}

/// Whether a node autoscaler adds nodes, as the environment says.
fn grows(site: &ClusterSite) -> bool {
    site.max_nodes.is_some_and(|most| most > site.min_nodes)
}

/// Pods of Deployments that no node could run, however empty it is: they would wait. The nodes of a cluster that its provider creates are
/// chosen by its pods, and may not be there yet.
async fn room(api: &Api, supported: &[(&'static Row, &Wanted)], site: Option<&ClusterSite>) -> Result<Vec<Problem>> {
    let is_existing = site.is_some_and(|site| site.existing);
    let deployments = supported.iter().filter(|(row, _)| row.name == "kubernetes.deployment");
    let deployments: Vec<_> = deployments.filter(|(_, wanted)| is_existing || wanted.via.is_none()).collect();
    if deployments.is_empty() {
        return Ok(Vec::new());
    }
    let call = Call { action: "read the nodes of", verb: "list", row: &NODES, namespace: None, name: None };
    let nodes = match api.list(&call, "").await {
        Ok(nodes) => nodes,
        Err(error) if error.kind == ErrorKind::Denied => {
            let cause =
                "whether its nodes have room for the pods could not be checked: you are not allowed to list nodes";
            return Ok(vec![Problem::note("cluster", cause, "no action is needed if `up` succeeds")]);
        }
        Err(error) => return Err(error),
    };
    let pod = |wanted: &Wanted| no_node(&nodes, &wanted.spec.as_value()["spec"]["template"]["spec"]);
    let mut found = Vec::new();
    for (row, wanted) in deployments {
        if let Some(problem) = pod(wanted)
            && !deployed(api, row, wanted).await?.is_some_and(|there| runs(&there, wanted.spec.as_value()))
        {
            found.push((*wanted, problem));
        }
    }
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let is_autoscaled = site.is_some_and(grows) || is_autoscaled(api, &nodes).await?;
    let problem = |(wanted, (cause, fix)): (&Wanted, (String, String))| match is_autoscaled {
        true => {
            let cause = format!("{cause}; it waits until such a node is there");
            let fix = "check that the cluster's node autoscaler can add one, or add it";
            Problem::warning(wanted.id.to_string(), cause, fix)
        }
        false => {
            let autoscaler = "where a node autoscaler adds them, set `cluster.max_nodes` above `cluster.min_nodes`";
            Problem::new(wanted.id.to_string(), cause, format!("{fix}; {autoscaler}"))
        }
    };
    Ok(found.into_iter().map(problem).collect())
}

/// Whether the cluster may add nodes of other sizes: some of its nodes are of a kind that it does so for, or a node autoscaler is there, or
/// may be.
async fn is_autoscaled(api: &Api, nodes: &[Value]) -> Result<bool> {
    /// The status that Cluster Autoscaler writes, and the API of Karpenter, which AKS and EKS Auto Mode have too.
    const SIGNS: [&str; 2] =
        ["/api/v1/namespaces/kube-system/configmaps/cluster-autoscaler-status", "/apis/karpenter.sh"];
    if has_growing(nodes) {
        return Ok(true);
    }
    for path in SIGNS {
        let action = "look for the node autoscaler of";
        let call = Call { action, verb: "get", row: table::namespaces(), namespace: None, name: None };
        if may_be_there(api.document(&call, path).await)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether what was asked for exists, or may not be read: in doubt it does. Pure.
fn may_be_there(answer: Result<Value>) -> Result<bool> {
    match answer {
        Err(error) if error.kind == ErrorKind::NotFound => Ok(false),
        Err(error) if error.kind == ErrorKind::Denied => Ok(true),
        other => other.map(|_| true),
    }
}

/// Whether one of the nodes is of Karpenter, of EKS Auto Mode or Fargate
/// (<https://docs.aws.amazon.com/eks/latest/userguide/associate-workload.html>, aws/containers-roadmap#1976), or of GKE Autopilot, whose
/// nodes alone have such names (as GoogleContainerTools/kpt-config-sync knows them). Pure.
fn has_growing(nodes: &[Value]) -> bool {
    const LABELS: [&str; 3] =
        ["karpenter.sh/nodepool", "karpenter.sh/provisioner-name", "eks.amazonaws.com/compute-type"];
    nodes.iter().map(|node| &node["metadata"]).any(|node| {
        let is_of_autopilot = node["name"].as_str().is_some_and(|name| name.starts_with("gk3-"));
        is_of_autopilot || LABELS.iter().any(|label| node["labels"][label].is_string())
    })
}

/// Why none of these nodes could run a pod, and what to do: no pod runs on nodes with other labels, with taints that it does not tolerate
/// or with less CPU and memory than it requests. Missing GPUs are reported for all pods together. Pure.
fn no_node(nodes: &[Value], pod: &Value) -> Option<(String, String)> {
    let resource = gpu_resource(pod);
    let nodes: Vec<&Value> =
        nodes.iter().filter(|node| resource.is_none_or(|resource| offered(node, resource) > 0)).collect();
    if nodes.is_empty() {
        return None;
    }
    let requested = requests(pod);
    let allowed = nodes.iter().filter(|node| is_allowed(node, pod));
    let room = allowed.map(|node| capacity(&node["status"]["allocatable"], u32::MAX));
    // The nearest to enough: of those with the memory the one with the most CPU, else the one with the most memory.
    let nearness = |room: &Capacity| match room.memory >= requested.memory {
        true => (true, u64::from(room.cpu.0)),
        false => (false, room.memory.0),
    };
    let Some(largest) = room.clone().max_by_key(nearness) else {
        let cause = format!("it has {}, and none that its pods may run on", counted(nodes.len(), "node"));
        let fix = "change the labels and taints of nodes, or `sites[].cluster.node_selector` and `tolerations`";
        return Some((cause, fix.to_owned()));
    };
    if room.clone().any(|room| room.holds(&requested)) {
        return None;
    }
    let cause = format!(
        "a pod requests {requested}, and the largest of {} that it may run on has {largest}",
        counted(room.count(), "node")
    );
    let fix = "add a larger node, or lower `sites[].cluster.resources.requests`, or use a smaller model or fewer bits for its weights";
    Some((cause, fix.to_owned()))
}

/// What a pod requests of a node: its containers run at the same time, and those before them one after another. Pure.
fn requests(pod: &Value) -> Capacity {
    let of = |field: &str| {
        let containers = pod[field].as_array().into_iter().flatten();
        containers.map(|container| capacity(&container["resources"]["requests"], 0)).collect::<Vec<_>>()
    };
    let mut all = Capacity { cpu: Cores(0), memory: Bytes(0) };
    for one in of("containers") {
        all.cpu.0 = all.cpu.0.saturating_add(one.cpu.0);
        all.memory.0 = all.memory.0.saturating_add(one.memory.0);
    }
    for one in of("initContainers") {
        all = Capacity { cpu: all.cpu.max(one.cpu), memory: all.memory.max(one.memory) };
    }
    all
}

/// CPU and memory of an object; what is not stated, or cannot be read, is `otherwise`. Pure.
fn capacity(of: &Value, otherwise: u32) -> Capacity {
    let text = |name: &str| match &of[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let memory = quantity(&text("memory")).map_or(u64::from(otherwise) << 32, |bytes| bytes as u64);
    Capacity { cpu: text("cpu").parse().unwrap_or(Cores(otherwise)), memory: Bytes(memory) }
}

/// How the keys of taints begin that tell of a node's state, and go with it: also those of node autoscalers for a node that they remove,
/// in place of which they add another one
/// (<https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/utils/taints/taints.go>).
const OF_STATE: [&str; 5] = [
    "node.kubernetes.io/",
    "node.cloudprovider.kubernetes.io/",
    "ToBeDeletedByClusterAutoscaler",
    "DeletionCandidateOfClusterAutoscaler",
    "karpenter.sh/disrupt",
];

/// Whether a pod may run on a node by its labels and taints. Taints of a node's state pass. Pure.
fn is_allowed(node: &Value, pod: &Value) -> bool {
    let list = |of: &Value| of.as_array().cloned().unwrap_or_default();
    let (labels, tolerations) = (&node["metadata"]["labels"], list(&pod["tolerations"]));
    let is_of_state = |taint: &Value| {
        let key = taint["key"].as_str().unwrap_or_default();
        OF_STATE.iter().any(|start| key.starts_with(start))
    };
    let tolerates = |one: &Value, taint: &Value| {
        let value = |of: &Value| of["value"].as_str().unwrap_or_default().to_owned();
        let is_of_key = one["key"].is_null() || one["key"] == taint["key"];
        let is_of_value = one["operator"] == "Exists" || value(one) == value(taint);
        is_of_key && is_of_value && (one["effect"].is_null() || one["effect"] == taint["effect"])
    };
    let is_tolerated = |taint: &Value| {
        let passes = taint["effect"] == "PreferNoSchedule" || is_of_state(taint);
        passes || tolerations.iter().any(|one| tolerates(one, taint))
    };
    let mut selector = pod["nodeSelector"].as_object().into_iter().flatten();
    let is_selected = selector.all(|(key, value)| labels.get(key) == Some(value));
    is_selected && list(&node["spec"]["taints"]).iter().all(is_tolerated)
}

/// GPUs are there where NVIDIA's device plugin offers them, or where a node autoscaler adds nodes with them.
async fn gpus(api: &Api, gpu: &ClusterGpus, site: &ClusterSite) -> Result<Option<Problem>> {
    let call = Call { action: "count the GPUs of", verb: "list", row: &NODES, namespace: None, name: None };
    match api.list(&call, "").await {
        Ok(nodes) => Ok(missing_gpus(&nodes, site.settings.gpu_resource(), gpu.count, grows(site))),
        Err(error) if error.kind == ErrorKind::Denied => {
            let cause = format!("its {} GPUs could not be checked: you are not allowed to list nodes", gpu.count);
            Ok(Some(Problem::warning("cluster", cause, ADD_GPUS)))
        }
        Err(error) => Err(error),
    }
}

/// Whether these nodes offer too few GPUs; `grows` says that the cluster adds nodes for pods that wait. Pure.
fn missing_gpus(nodes: &[Value], resource: &str, wanted: u32, grows: bool) -> Option<Problem> {
    let total = nodes.iter().map(|node| offered(node, resource)).fold(0u32, u32::saturating_add);
    if total == 0 && grows {
        // An autoscaler knows what a node of an empty group will offer
        // (https://github.com/kubernetes/autoscaler/blob/master/cluster-autoscaler/FAQ.md#how-can-i-scale-a-node-group-to-0).
        let cause =
            format!("no node offers `{resource}` now, so the pods wait until the cluster's node autoscaler adds one");
        let fix =
            "check that one of its groups has GPUs and may grow, with NVIDIA's driver and device plugin on its nodes";
        return Some(Problem::warning("cluster", cause, fix));
    }
    if total == 0 {
        let cause = format!("no node offers `{resource}`, so that no pod with a GPU can be scheduled");
        let others = gpu_resources(nodes);
        let fix = match others.first() {
            Some(other) => format!(
                "its nodes offer {}: write `sites[].cluster.gpu_resource: {other}`, or configure NVIDIA's device plugin",
                others.iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
            ),
            None => format!(
                "install NVIDIA's driver on nodes with GPUs, and its device plugin: `kubectl apply -f {DEVICE_PLUGIN}`; where a node \
                 autoscaler adds them, set `cluster.max_nodes` above `cluster.min_nodes`"
            ),
        };
        return Some(Problem::new("cluster", cause, fix));
    }
    let cause = format!("its nodes offer {total} of `{resource}`, and the environment has {wanted} GPUs");
    (total < wanted).then(|| Problem::warning("cluster", cause, ADD_GPUS))
}

/// The count of an extended resource that a node offers. Pure.
fn offered(node: &Value, resource: &str) -> u32 {
    let amount = node["status"]["allocatable"][resource].as_str();
    amount.and_then(quantity).map_or(0, |amount| amount as u32)
}

/// The resources of GPUs that nodes offer. Pure.
fn gpu_resources(nodes: &[Value]) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    for node in nodes {
        let names = node["status"]["allocatable"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        found.extend(names.filter(|name| name.starts_with(GPU_RESOURCES) && offered(node, name) > 0));
    }
    found
}

/// Servers that get GPUs with the image that computes on the CPU now. It may be one with CUDA, so this is only a warning; the job that
/// runs before them knows.
async fn image_of_cpu(api: &Api, row: &'static Row, wanted: &Wanted) -> Result<Option<Problem>> {
    let there = deployed(api, row, wanted).await?;
    let image = there.as_ref().and_then(|there| kept_image(there, wanted.spec.as_value()));
    Ok(image.map(|image| {
        let cause =
            format!("`{image}` computes without a GPU now, and is refused with one if it was built without CUDA");
        let fix = "build one by `server/cuda/Dockerfile`, push it, and write its digest, or remove `gpu`";
        Problem::warning("cluster.image", cause, fix)
    }))
}

/// A deployment as it is, if it exists and may be read.
async fn deployed(api: &Api, row: &'static Row, wanted: &Wanted) -> Result<Option<Value>> {
    let Ok(location) = ObjectLocation::of_spec(row, &wanted.spec) else { return Ok(None) };
    let (namespace, name) = (location.namespace.as_deref(), Some(location.name.as_str()));
    let call = Call { action: "read", verb: "get", row, namespace, name };
    match api.get(&call).await {
        Err(error) if error.kind == ErrorKind::Denied => Ok(None),
        other => other,
    }
}

/// Whether the pods of a deployment run with the wanted requests on the wanted nodes: what runs fits, whatever the nodes show. Pure.
fn runs(there: &Value, wanted: &Value) -> bool {
    let (before, after) = (&there["spec"]["template"]["spec"], &wanted["spec"]["template"]["spec"]);
    let status = &there["status"];
    let is_running = status["availableReplicas"].as_u64().is_some_and(|pods| pods > 0);
    // During a rollout, those that run may be of the template before.
    let is_current = status["updatedReplicas"] == status["replicas"];
    let is_same = requests(before) == requests(after) && before["nodeSelector"] == after["nodeSelector"];
    is_running && is_current && is_same
}

/// The image of pods that get a GPU, if it stays the same. Pure.
fn kept_image<'a>(there: &'a Value, wanted: &Value) -> Option<&'a str> {
    let (before, after) = (&there["spec"]["template"]["spec"], &wanted["spec"]["template"]["spec"]);
    let image = before["containers"][0]["image"].as_str()?;
    (has_gpu(after) && !has_gpu(before) && after["containers"][0]["image"] == image).then_some(image)
}

/// The kinds whose definitions are part of the wanted objects, by the names of definitions:
/// `certificates.cert-manager.io`.
fn brought_kinds(wanted: &[Wanted]) -> BTreeSet<String> {
    let definitions =
        wanted.iter().filter(|one| table::row(&one.kind).is_some_and(|row| row.kind == table::DEFINITION));
    let names = definitions.filter_map(|one| one.spec.get("metadata")?["name"].as_str());
    names.map(str::to_owned).collect()
}

/// Connects to the API server; returns its minor version.
async fn reach(kubernetes: &Kubernetes, problems: &mut Vec<Problem>) -> Result<(Api, u64)> {
    let api = kubernetes.api().await?;
    let call =
        Call { action: "ask the version of", verb: "get", row: table::namespaces(), namespace: None, name: None };
    let version = api.document(&call, "/version").await?;
    // Some clouds append a plus: `34+`.
    let minor = version["minor"].as_str().unwrap_or_default();
    let minor: u64 = minor.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(u64::MAX);
    if minor < OLDEST_MINOR {
        let cause = format!(
            "it runs Kubernetes {}, whose API lacks required kinds or versions",
            version["gitVersion"].as_str().unwrap_or("of an unknown version")
        );
        problems.push(Problem::warning("cluster", cause, format!("upgrade it to 1.{OLDEST_MINOR} or newer")));
    }
    Ok((api, minor))
}

/// The kinds that the cluster lacks.
async fn missing_kinds(api: &Api, supported: &[(&'static Row, &Wanted)]) -> Result<BTreeSet<&'static str>> {
    let mut versions: BTreeMap<String, Vec<&'static Row>> = BTreeMap::new();
    for row in ROWS.iter().filter(|row| supported.iter().any(|(one, _)| one.name == row.name)) {
        versions.entry(row.root()).or_default().push(row);
    }
    let mut missing = BTreeSet::new();
    for (path, rows) in versions {
        let call = Call { action: "list the kinds of", verb: "get", row: rows[0], namespace: None, name: None };
        let document = match api.document(&call, &path).await {
            Ok(document) => document,
            Err(error) if error.kind == ErrorKind::NotFound => Value::Null,
            Err(error) => return Err(error),
        };
        let has = |row: &Row| {
            document["resources"].as_array().is_some_and(|all| all.iter().any(|one| one["name"] == row.plural))
        };
        missing.extend(rows.into_iter().filter(|row| !has(row)).map(|row| row.name));
    }
    Ok(missing)
}

/// The permissions to review: namespace, index in [`ROWS`] and verb. Pure.
pub(crate) fn reviews(supported: &[(&'static Row, &Wanted)]) -> BTreeSet<(Option<String>, usize, &'static str)> {
    let mut questions = BTreeSet::new();
    for (row, wanted) in supported.iter().filter(|(_, wanted)| wanted.ownership == Ownership::Ours) {
        let number = ROWS.iter().position(|one| one.name == row.name);
        if let (Some(number), Ok(location)) = (number, ObjectLocation::of_spec(row, &wanted.spec)) {
            questions.extend(VERBS.map(|verb| (location.namespace.clone(), number, verb)));
        }
    }
    questions
}

/// Reviews the permissions per kind and namespace. Missing ones are one problem, with the rules to add.
async fn permissions(api: &Api, supported: &[(&'static Row, &Wanted)], problems: &mut Vec<Problem>) -> Result<()> {
    let questions = reviews(supported);
    let mut answers: Vec<BoxFuture<'_, Result<bool>>> = Vec::new();
    for (namespace, location, verb) in &questions {
        answers.push(Box::pin(may(api, namespace.as_deref(), &ROWS[*location], verb)));
    }
    let answers = several(answers).await;
    let mut refused: BTreeMap<Option<String>, Vec<Rule<'_>>> = BTreeMap::new();
    for ((namespace, location, verb), may) in questions.into_iter().zip(answers) {
        if may? {
            continue;
        }
        let row = &ROWS[location];
        let rules = refused.entry(namespace).or_default();
        match rules.iter_mut().find(|rule| (rule.group, rule.plural) == (row.group, row.plural)) {
            Some(rule) => rule.verbs.push(verb),
            None => rules.push(Rule::of(row, vec![verb])),
        }
    }
    for (namespace, rules) in refused {
        let location = namespace.as_ref().map_or("cluster".to_owned(), |namespace| format!("namespace {namespace}"));
        let kinds: Vec<String> =
            rules.iter().map(|rule| format!("{} {}", rule.verbs.join(", "), rule.resource())).collect();
        let cause = format!("you are not allowed to {}", kinds.join("; "));
        let fix = format!(
            "ask a cluster administrator to add this role and bind it to you:\n{}",
            missing_rules(namespace.as_deref(), &rules)
        );
        problems.push(Problem::new(location, cause, fix));
    }
    Ok(())
}

pub(crate) async fn may(api: &Api, namespace: Option<&str>, row: &'static Row, verb: &'static str) -> Result<bool> {
    let attributes = json!({ "namespace": namespace, "verb": verb, "group": row.group, "version": row.version, "resource": row.plural });
    let question = json!({
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectAccessReview",
        "spec": { "resourceAttributes": attributes },
    });
    let call = Call { action: "check the permissions on", verb, row, namespace, name: None };
    Ok(api.ask(&call, REVIEWS, &question).await?["status"]["allowed"] == true)
}

/// What has the name of a wanted object.
enum Taken {
    /// Nothing, or an object of this deployment or of another.
    No,
    /// An object of this deployment or of another, which this controller applies too.
    Shared(String),
    /// An object without a lineage, or the name is not valid.
    Refused(Problem),
}

/// Names taken by objects without a lineage. Those of other deployments are reported once their lineage is known.
async fn taken_names(api: &Api, supported: &[(&'static Row, &Wanted)], problems: &mut Vec<Problem>) -> Result<()> {
    let mut looks: Vec<BoxFuture<'_, Result<Taken>>> = Vec::new();
    for (row, wanted) in supported.iter().filter(|(_, wanted)| wanted.ownership == Ownership::Ours) {
        looks.push(Box::pin(taken_name(api, row, wanted)));
    }
    let mut shared: BTreeMap<String, usize> = BTreeMap::new();
    for taken in several(looks).await {
        match taken? {
            Taken::No => {}
            Taken::Shared(controller) => *shared.entry(controller).or_default() += 1,
            Taken::Refused(problem) => problems.push(problem),
        }
    }
    problems.extend(shared.into_iter().map(|(controller, count)| {
        let cause = format!("{controller} applies {count} objects of this site too, and reverts what `up` changes");
        Problem::warning("cluster", cause, "use only one of both, see docs/guide/gitops.md")
    }));
    Ok(())
}

async fn taken_name(api: &Api, row: &'static Row, wanted: &Wanted) -> Result<Taken> {
    let location = match ObjectLocation::of_spec(row, &wanted.spec) {
        Ok(location) => location,
        Err(error) => {
            return Ok(Taken::Refused(Problem::new(
                wanted.id.to_string(),
                error_chain(&error),
                "give it a name that the API server accepts",
            )));
        }
    };
    let (namespace, name) = (location.namespace.as_deref(), Some(location.name.as_str()));
    let call = Call { action: "read", verb: "get", row, namespace, name };
    let there = match api.get(&call).await {
        // The missing permission is reported above.
        Err(error) if error.kind == ErrorKind::Denied => None,
        other => other?,
    };
    let Some(object) = there else { return Ok(Taken::No) };
    if identity::lineage(&object).is_some() {
        return Ok(identity::controller(&object).map_or(Taken::No, Taken::Shared));
    }
    let cause = format!("{} exists, and {} created it", call.subject(), identity::creator(&object));
    let fix = "choose another name, or remove it if it is not needed";
    Ok(Taken::Refused(Problem::new(wanted.id.to_string(), cause, fix)))
}

#[cfg(test)]
mod tests {
    use textnlp_provider::cluster::GPU;

    use super::*;

    #[test]
    fn servers_that_get_a_gpu_need_an_image_for_it() {
        let servers = |image: &str, limits: Value| {
            let container = json!({ "image": image, "resources": { "limits": limits } });
            json!({ "spec": { "template": { "spec": { "containers": [container] } } } })
        };
        let (with, without) = (json!({ "nvidia.com/gpu": 1 }), json!({ "cpu": "4" }));
        let kept = |before: &Value, after: &Value| kept_image(before, after).map(str::to_owned);
        let before = servers("a", without.clone());
        assert_eq!(kept(&before, &servers("a", with.clone())).as_deref(), Some("a"));
        assert_eq!(kept(&before, &servers("b", with.clone())), None);
        assert_eq!(kept(&before, &servers("a", without)), None);
        assert_eq!(kept(&servers("a", with.clone()), &servers("a", with)), None);
    }

    #[test]
    fn pods_that_no_node_can_run_are_found() {
        let node = |cpu: &str, memory: &str| {
            json!({
                "metadata": { "labels": { "disk": "fast" } },
                "spec": {},
                "status": { "allocatable": { "cpu": cpu, "memory": memory } },
            })
        };
        let container =
            |cpu: &str, memory: &str| json!({ "resources": { "requests": { "cpu": cpu, "memory": memory } } });
        let pod = json!({
            "initContainers": [container("1", "6Gi")],
            "containers": [container("4", "5Gi"), container("100m", "64Mi"), {}],
        });
        assert_eq!(requests(&pod).to_string(), "4100m CPU and 6144Mi memory");
        let found = |nodes: &[Value], pod: &Value| no_node(nodes, pod).map(|(cause, _)| cause);
        assert_eq!(found(&[node("3920m", "12Gi"), node("7910m", "13498416Ki")], &pod), None);
        assert_eq!(found(&[], &pod), None, "a cluster without nodes is not measured");
        assert_eq!(found(&[json!({})], &pod), None, "nor is a node that states nothing");
        // The one has the CPU, and the other the memory, as has a third one with less of the CPU.
        let cause = found(&[node("8", "4Gi"), node("3920m", "12Gi"), node("2", "24Gi")], &pod).unwrap();
        let expected = "a pod requests 4100m CPU and 6144Mi memory, and the largest of 3 nodes that it may run on has 3920m CPU and 12288Mi memory";
        assert_eq!(cause, expected);
        let mut slow = pod.clone();
        slow["nodeSelector"] = json!({ "disk": "slow" });
        let large = node("16", "64Gi");
        let none = Some("it has 1 node, and none that its pods may run on".to_owned());
        assert_eq!(found(std::slice::from_ref(&large), &slow), none);
        slow["nodeSelector"] = json!({ "disk": "fast" });
        assert_eq!(found(std::slice::from_ref(&large), &slow), None);
        let tainted = |key: &str, effect: &str| {
            let mut node = large.clone();
            node["spec"]["taints"] = json!([{ "key": key, "value": "text", "effect": effect }]);
            node
        };
        assert_eq!(found(&[tainted("team", "NoSchedule")], &pod), none);
        assert_eq!(found(&[tainted("team", "PreferNoSchedule")], &pod), None);
        for state in ["node.kubernetes.io/unschedulable", "ToBeDeletedByClusterAutoscaler", "karpenter.sh/disrupted"] {
            assert_eq!(found(&[tainted(state, "NoSchedule")], &pod), None, "{state} passes");
        }
        for (toleration, is_enough) in [
            (json!({ "key": "team", "operator": "Equal", "value": "text", "effect": "NoSchedule" }), true),
            (json!({ "key": "team", "value": "other" }), false),
            (json!({ "key": "team", "operator": "Exists", "effect": "NoExecute" }), false),
            (json!({ "operator": "Exists" }), true),
        ] {
            let mut pod = pod.clone();
            pod["tolerations"] = json!([toleration]);
            assert_eq!(found(&[tainted("team", "NoSchedule")], &pod).is_none(), is_enough, "{toleration}");
        }
        // Nodes without GPUs are not those of a pod with one, and missing GPUs are reported elsewhere.
        let mut with_gpu = pod.clone();
        with_gpu["containers"][0]["resources"]["limits"] = json!({ GPU: 1 });
        assert_eq!(found(std::slice::from_ref(&large), &with_gpu), None);
        let mut small = node("3920m", "12Gi");
        small["status"]["allocatable"][GPU] = json!("1");
        assert!(found(&[large.clone(), small.clone()], &with_gpu).is_some_and(|cause| cause.contains("of 1 node ")));
        with_gpu["containers"][0]["resources"]["limits"] = json!({ "nvidia.com/gpu.shared": 1 });
        assert_eq!(found(&[large, small], &with_gpu), None, "no node offers a share");
    }

    #[test]
    fn nodes_that_are_ready_and_schedulable_are_counted_for_the_phase() {
        let node = |ready: &str, spec: Value| {
            let conditions =
                [json!({ "type": "DiskPressure", "status": "False" }), json!({ "type": "Ready", "status": ready })];
            json!({ "spec": spec, "status": { "conditions": conditions } })
        };
        let worker = node("True", json!({}));
        let taint = json!({ "key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule" });
        let control_plane = node("True", json!({ "taints": [taint] }));
        let cordoned = node("True", json!({ "unschedulable": true }));
        let site = |min_nodes, phase_nodes| ClusterSite { min_nodes, phase_nodes, ..ClusterSite::of("textnlp") };
        let pilot = site(1, 3);
        let all = [&worker, &worker, &worker].map(Clone::clone);
        assert_eq!(too_few(&all, &[], &pilot), None);
        for other in [&control_plane, &cordoned, &node("False", json!({})), &node("Unknown", json!({}))] {
            let few = too_few(&[worker.clone(), worker.clone(), other.clone()], &[], &pilot).unwrap();
            let says = "it has 2 ready nodes that its pods may run on, and the phase of its environment needs 3";
            assert!(few.warning && few.cause == says && few.fix.contains("`cluster.min_nodes: 3`"), "{few:?}");
        }
        let tolerant =
            json!({ "tolerations": [{ "key": "node-role.kubernetes.io/control-plane", "operator": "Exists" }] });
        let mixed = [worker.clone(), worker.clone(), control_plane];
        assert_eq!(too_few(&mixed, &[&tolerant], &pilot), None);
        let few = too_few(&mixed, &[&json!({})], &site(3, 3)).unwrap();
        assert!(few.warning && few.cause.ends_with(", and `cluster.min_nodes` is 3"), "{few:?}");
        assert_eq!(too_few(&[worker], &[], &site(1, 1)), None);
    }

    #[test]
    fn clusters_that_may_add_nodes_are_known() {
        let node = |name: &str, labels: Value| json!({ "metadata": { "name": name, "labels": labels } });
        let fixed = node("gke-pilot-pool-1", json!({ "cloud.google.com/gke-provisioning": "standard" }));
        assert!(!has_growing(std::slice::from_ref(&fixed)));
        for other in [
            node("ip-10-0-0-1", json!({ "karpenter.sh/nodepool": "general" })),
            node("ip-10-0-0-1", json!({ "karpenter.sh/provisioner-name": "default" })),
            node("fargate-ip-10-0-0-1", json!({ "eks.amazonaws.com/compute-type": "fargate" })),
            node("i-0123", json!({ "eks.amazonaws.com/compute-type": "auto" })),
            node("gk3-pilot-pool-1", json!({})),
        ] {
            assert!(has_growing(&[fixed.clone(), other.clone()]), "{other}");
        }
        let error = |kind| Err(textnlp_provider::Error::new(kind, "read", "the status of the node autoscaler"));
        assert!(may_be_there(Ok(json!({}))).unwrap());
        assert!(!may_be_there(error(ErrorKind::NotFound)).unwrap());
        assert!(may_be_there(error(ErrorKind::Denied)).unwrap(), "in doubt nothing is refused");
        assert!(may_be_there(error(ErrorKind::Unavailable)).is_err());
    }

    #[test]
    fn pods_that_run_fit() {
        let deployment = |cpu: &str, selector: Value, status: Value| {
            let container = json!({ "resources": { "requests": { "cpu": cpu, "memory": "4Gi" } } });
            let pod = json!({ "containers": [container], "nodeSelector": selector });
            json!({ "spec": { "template": { "spec": pod } }, "status": status })
        };
        let all = json!({ "replicas": 2, "updatedReplicas": 2, "availableReplicas": 1 });
        let wanted = deployment("4", Value::Null, Value::Null);
        assert!(runs(&deployment("4000m", Value::Null, all.clone()), &wanted));
        assert!(!runs(&deployment("3", Value::Null, all.clone()), &wanted), "it requested less");
        assert!(!runs(&deployment("4", json!({ "disk": "fast" }), all), &wanted), "it ran on other nodes");
        let waits = json!({ "replicas": 2, "updatedReplicas": 2, "unavailableReplicas": 2 });
        assert!(!runs(&deployment("4", Value::Null, waits), &wanted));
        let rollout = json!({ "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2 });
        assert!(!runs(&deployment("4", Value::Null, rollout), &wanted), "those that run may be of another template");
    }

    #[test]
    fn gpus_are_counted_by_what_nodes_offer() {
        let node = |gpus: &str| json!({ "status": { "allocatable": { "cpu": "4", "nvidia.com/gpu": gpus } } });
        let plain = json!({ "status": { "allocatable": { "cpu": "4" } } });
        let missing = missing_gpus(&[plain.clone(), node("0")], GPU, 1, false).unwrap();
        assert!(!missing.warning && missing.fix.contains("kubectl apply -f https://"), "{missing:?}");
        // From zero, an autoscaler adds the first one.
        let from_zero = missing_gpus(std::slice::from_ref(&plain), GPU, 1, true).unwrap();
        assert!(from_zero.warning && from_zero.cause.contains("node autoscaler"), "{from_zero:?}");
        let few = missing_gpus(&[plain.clone(), node("1"), node("1")], GPU, 3, false).unwrap();
        assert!(few.warning && few.cause.contains("offer 2 of"), "{few:?}");
        assert!(missing_gpus(&[plain.clone(), node("2"), node("1")], GPU, 3, false).is_none());
        // Slices of MIG have a resource of their own, and their node no whole GPU.
        const SLICE: &str = "nvidia.com/mig-1g.10gb";
        let sliced = json!({ "status": { "allocatable": { "cpu": "4", GPU: "0", SLICE: "7" } } });
        assert!(missing_gpus(std::slice::from_ref(&sliced), SLICE, 7, false).is_none());
        let few = missing_gpus(std::slice::from_ref(&sliced), SLICE, 8, false).unwrap();
        assert!(few.warning && few.cause.contains("offer 7 of `nvidia.com/mig-1g.10gb`"), "{few:?}");
        let other = missing_gpus(&[plain.clone(), sliced], GPU, 1, false).unwrap();
        assert!(
            !other.warning && other.fix.contains("`sites[].cluster.gpu_resource: nvidia.com/mig-1g.10gb`"),
            "{other:?}"
        );
        let none = missing_gpus(&[plain, node("2")], SLICE, 1, false).unwrap();
        assert!(!none.warning && none.fix.contains("its nodes offer `nvidia.com/gpu`"), "{none:?}");
    }
}
