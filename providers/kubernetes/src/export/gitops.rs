//! A folder for a Git repository, which Argo CD or Flux applies: the manifests, and the objects that tell the controller of
//! them.
//!
//! The manifests are in stages: what a database or a job needs is applied before it, and everything else after it. Objects
//! that may wait for others, such as a volume without a pod or an address of a load balancer, are thus in the last stage, which
//! nothing waits for. Secrets are in no stage: the operator creates them, and no controller knows them.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::{Controller, DataClass, Delivery, ResourceId};

use super::{ExportFile, Item, SiteObjects, notes, short_digest, yaml};

const MANIFESTS: &str = "manifests";
/// The longest name that is also the value of a label.
const NAME_BYTES: usize = 63;
/// How long Flux waits for the objects of a stage, before it reports them and tries again.
const STAGE_TIMEOUT: &str = "10m";

/// The objects of a step: the next step waits until they are ready.
struct Stage<'a> {
    name: &'a str,
    items: Vec<&'a Item>,
}

pub(super) fn files(
    site: &SiteObjects,
    delivery: &Delivery,
    environment: &str,
    name: &str,
) -> Result<Vec<ExportFile>, String> {
    let stages = stages(&site.items);
    let file = |path: String, text: String| ExportFile { path, text };
    let mut files = Vec::new();
    for (number, stage) in stages.iter().enumerate() {
        let folder = format!("{MANIFESTS}/{}", stage.name);
        for item in &stage.items {
            let manifest = annotated(item, number, delivery.controller());
            files.push(file(format!("{folder}/{}", item.file()), yaml(&manifest)?));
        }
        let resources = stage.items.iter().map(|item| item.file()).collect();
        files.push(file(format!("{folder}/kustomization.yaml"), kustomization(resources)?));
    }
    let folders = stages.iter().map(|stage| stage.name.to_owned()).collect();
    files.push(file(format!("{MANIFESTS}/kustomization.yaml"), kustomization(folders)?));
    let place = [environment, name];
    let (controlled, text) = match delivery.controller() {
        Controller::ArgoCd { project, cluster } => {
            let application = application(site, delivery, &object_name(&place), (project.as_str(), cluster.as_str()));
            ("application.yaml", yaml(&application)?)
        }
        Controller::Flux { interval, secret } => {
            let interval = format!("{}s", interval.as_seconds());
            let mut text = yaml(&repository(delivery, &object_name(&place), (&interval, secret.as_deref())))?;
            for (number, stage) in stages.iter().enumerate() {
                let before = number.checked_sub(1).map(|before| stages[before].name);
                text += "---\n";
                text += &yaml(&step(stage, before, delivery, (place, &interval)))?;
            }
            ("flux.yaml", text)
        }
    };
    files.push(file("README.md".to_owned(), notes::gitops(site, environment, delivery, controlled)));
    files.push(file(controlled.to_owned(), text));
    Ok(files)
}

/// Whether other objects wait for what it does.
fn is_awaited(item: &Item) -> bool {
    matches!(item.row.name, "kubernetes.job" | "kubernetes.postgres-cluster")
}

/// The objects in steps by what is awaited. A stage is named after that, so that its objects stay in it when other stages come or
/// go.
fn stages(items: &[Item]) -> Vec<Stage<'_>> {
    // Items are in dependency order: the numbers of awaited objects that come before each, by the longest chain.
    let mut depths: BTreeMap<&ResourceId, usize> = BTreeMap::new();
    for item in items {
        let before = item.needs.iter().filter_map(|need| depths.get(need)).max().copied().unwrap_or(0);
        depths.insert(&item.id, before + usize::from(is_awaited(item)));
    }
    let last = depths.values().max().map_or(0, |most| most + 1);
    let mut steps: BTreeMap<&ResourceId, usize> = BTreeMap::new();
    for item in items.iter().rev() {
        let needed = steps.get(&item.id).copied();
        let step = match item.row.kind {
            // Connections are restricted before the first pod starts.
            "NetworkPolicy" => 0,
            _ if is_awaited(item) => depths[&item.id],
            _ => needed.unwrap_or(last),
        };
        steps.insert(&item.id, step);
        for need in &item.needs {
            let known = steps.entry(need).or_insert(step);
            *known = step.min(*known);
        }
    }
    let in_step = |step: usize| items.iter().filter(|item| steps[&item.id] == step).collect::<Vec<_>>();
    let steps = (0..=last).map(|step| {
        let items = in_step(step);
        let awaited = items.iter().copied().find(|item| is_awaited(item));
        let name = match awaited {
            Some(item) => item.name.trim_start_matches("textnlp-"),
            None if step == last => "service",
            None => "network",
        };
        Stage { name, items }
    });
    steps.filter(|stage| !stage.items.is_empty()).collect()
}

/// A manifest with what the controller must know of it.
fn annotated(item: &Item, number: usize, controller: &Controller) -> Value {
    let mut manifest = item.fixed();
    let is_kept = item.row.data == DataClass::Precious || item.row.kind == "Namespace";
    let mut annotate = |name: &str, value: &str| manifest["metadata"]["annotations"][name] = json!(value);
    match controller {
        Controller::ArgoCd { .. } => {
            annotate("argocd.argoproj.io/sync-wave", &number.to_string());
            if is_kept {
                annotate("argocd.argoproj.io/sync-options", "Prune=false,Delete=false");
            }
        }
        Controller::Flux { .. } if is_kept => annotate("kustomize.toolkit.fluxcd.io/prune", "disabled"),
        Controller::Flux { .. } => {}
    }
    manifest
}

fn kustomization(resources: Vec<String>) -> Result<String, String> {
    yaml(&json!({
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": resources,
    }))
}

/// A name that no other site of any environment has: their names have no dots. It is also the value of a label.
fn object_name(parts: &[&str]) -> String {
    let name = format!("textnlp.{}", parts.join("."));
    if name.len() <= NAME_BYTES {
        return name;
    }
    let digest = short_digest(&json!(name));
    let start: String = name.chars().take(NAME_BYTES - digest.len() - 1).collect();
    format!("{}-{digest}", start.trim_end_matches(['-', '.']))
}

/// The path of the manifests in the repository.
fn path(delivery: &Delivery, below: &[&str]) -> String {
    let source = Some(delivery.source().path.as_str()).filter(|path| !path.is_empty());
    source.into_iter().chain([MANIFESTS]).chain(below.iter().copied()).collect::<Vec<_>>().join("/")
}

fn application(site: &SiteObjects, delivery: &Delivery, name: &str, (project, cluster): (&str, &str)) -> Value {
    let source = delivery.source();
    let autoscalers = site.items.iter().filter(|item| item.row.kind == "HorizontalPodAutoscaler");
    // The manifests of autoscaled objects have no count; an overlay of the operator's may.
    let ignored: Vec<Value> = autoscalers
        .map(|item| {
            let target = &item.manifest["spec"]["scaleTargetRef"];
            json!({
                "group": "apps",
                "kind": target["kind"],
                "name": target["name"],
                "namespace": site.namespace,
                "jsonPointers": ["/spec/replicas"],
            })
        })
        .collect();
    json!({
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {
            "name": name,
            "namespace": delivery.namespace(),
            // What admission webhooks and defaults of the API server add is no difference.
            "annotations": { "argocd.argoproj.io/compare-options": "ServerSideDiff=true" },
        },
        "spec": {
            "project": project,
            "source": {
                "repoURL": source.repository,
                "targetRevision": source.revision,
                "path": path(delivery, &[]),
            },
            "destination": { "name": cluster, "namespace": site.namespace },
            "ignoreDifferences": ignored,
            "syncPolicy": {
                "automated": { "prune": true, "selfHeal": true },
                "syncOptions": ["ServerSideApply=true", "RespectIgnoreDifferences=true", "FailOnSharedResource=true"],
                "retry": { "limit": 5, "backoff": { "duration": "30s", "factor": 2, "maxDuration": "5m" } },
            },
        },
    })
}

fn repository(delivery: &Delivery, name: &str, (interval, secret): (&str, Option<&str>)) -> Value {
    let source = delivery.source();
    let revision = source.revision.as_str();
    let is_commit = matches!(revision.len(), 40 | 64) && revision.bytes().all(|byte| byte.is_ascii_hexdigit());
    let field = if is_commit {
        "commit"
    } else if revision.starts_with("refs/") {
        "name"
    } else {
        "branch"
    };
    let mut repository = json!({
        "apiVersion": "source.toolkit.fluxcd.io/v1",
        "kind": "GitRepository",
        "metadata": { "name": name, "namespace": delivery.namespace() },
        "spec": { "interval": interval, "url": source.repository, "ref": { field: revision } },
    });
    if let Some(secret) = secret {
        repository["spec"]["secretRef"] = json!({ "name": secret });
    }
    repository
}

/// A Kustomization of Flux for one stage.
fn step(stage: &Stage<'_>, before: Option<&str>, delivery: &Delivery, (place, interval): ([&str; 2], &str)) -> Value {
    let of_stage = |stage: &str| object_name(&[place[0], place[1], stage]);
    let awaited = stage.items.iter().filter(|item| item.row.has_pods || is_awaited(item));
    let checks: Vec<Value> = awaited
        .map(|item| {
            let manifest = item.fixed();
            json!({
                "apiVersion": manifest["apiVersion"],
                "kind": manifest["kind"],
                "name": manifest["metadata"]["name"],
                "namespace": manifest["metadata"]["namespace"],
            })
        })
        .collect();
    let mut spec = json!({
        "interval": interval,
        "retryInterval": "1m",
        "timeout": STAGE_TIMEOUT,
        "path": format!("./{}", path(delivery, &[stage.name])),
        "sourceRef": { "kind": "GitRepository", "name": object_name(&place) },
        "prune": true,
        // Objects survive the removal of a stage, which another one may apply next.
        "deletionPolicy": "Orphan",
        "healthChecks": checks,
    });
    if let Some(before) = before {
        spec["dependsOn"] = json!([{ "name": of_stage(before) }]);
    }
    if let Some(item) = stage.items.iter().find(|item| item.row.name == "kubernetes.postgres-cluster") {
        // A new cluster has no conditions, which Flux would take for ready.
        spec["healthCheckExprs"] = json!([{
            "apiVersion": item.row.api_version(),
            "kind": item.row.kind,
            "current": "status.conditions.exists(e, e.type == 'Ready' && e.status == 'True')",
        }]);
    }
    json!({
        "apiVersion": "kustomize.toolkit.fluxcd.io/v1",
        "kind": "Kustomization",
        "metadata": { "name": of_stage(stage.name), "namespace": delivery.namespace() },
        "spec": spec,
    })
}
