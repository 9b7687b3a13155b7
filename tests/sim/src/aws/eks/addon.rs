//! Add-ons.

use std::time::Duration;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    Change, Cluster, Eks, KUBERNETES, active, bad_token, cluster, eks, in_use, invalid, mismatch, new_tags, not_found,
    set_tags, start,
};
use crate::{Call, Fault, Stages, World, timestamp};

/// The versions of add-ons: name, version, the versions of Kubernetes that it works with, and for which of them it is the default.
pub const VERSIONS: &[(&str, &str, &[&str], &[&str])] = &[
    ("aws-ebs-csi-driver", "v1.50.1-eksbuild.1", &KUBERNETES, &KUBERNETES),
    ("coredns", "v1.11.4-eksbuild.24", &["1.31", "1.32", "1.33"], &["1.31", "1.32"]),
    ("coredns", "v1.12.4-eksbuild.1", &["1.33", "1.34", "1.35"], &["1.33", "1.34", "1.35"]),
    ("eks-pod-identity-agent", "v1.3.9-eksbuild.3", &KUBERNETES, &KUBERNETES),
    ("kube-proxy", "v1.31.13-eksbuild.2", &["1.31"], &["1.31"]),
    ("kube-proxy", "v1.32.9-eksbuild.2", &["1.32"], &["1.32"]),
    ("kube-proxy", "v1.33.5-eksbuild.2", &["1.33"], &["1.33"]),
    ("kube-proxy", "v1.34.1-eksbuild.2", &["1.34"], &["1.34"]),
    ("kube-proxy", "v1.35.0-eksbuild.2", &["1.35"], &["1.35"]),
    ("vpc-cni", "v1.20.4-eksbuild.1", &KUBERNETES, &KUBERNETES),
];

/// Add-ons whose pods need nodes; the others run on each node, also on none.
const DEPLOYMENTS: [&str; 2] = ["aws-ebs-csi-driver", "coredns"];
/// After which time without nodes those are DEGRADED.
const PATIENCE: Duration = Duration::from_secs(20 * 60);

/// An add-on of a cluster.
#[derive(Clone, Debug)]
pub struct Addon {
    /// Its ARN.
    pub arn: String,
    /// Its version.
    pub version: String,
    state: Stages,
    /// When pods that have no node are given up on.
    patience: Timestamp,
    configuration: Option<String>,
    issue: Option<(String, String)>,
    created: Timestamp,
}

fn addon<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Addon, Fault> {
    let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("addonName").to_owned());
    cluster(world, call, "clusterName")?
        .addons
        .get_mut(&name)
        .ok_or_else(|| not_found(format!("No addon: {name} found in cluster: {cluster_name}")))
}

impl Addon {
    /// A setting of its configuration.
    pub(super) fn setting(&self, pointer: &str) -> Option<Value> {
        let configuration = serde_json::from_str::<Value>(self.configuration.as_deref()?).ok()?;
        configuration.pointer(pointer).cloned()
    }

    fn status(&self, name: &str, cluster: &Cluster, now: Timestamp) -> &'static str {
        match self.state.at(now) {
            "ACTIVE" if DEPLOYMENTS.contains(&name) && !cluster.has_nodes(now) => {
                if now < self.patience {
                    "CREATING"
                } else {
                    "DEGRADED"
                }
            }
            state => state,
        }
    }
}

fn answer(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let addon = addon(world, call)?.clone();
    let (cluster_name, name) = (call.text("clusterName"), call.text("addonName"));
    let status = addon.status(name, cluster(world, call, "clusterName")?, call.now);
    let issue = match (status, &addon.issue) {
        ("DEGRADED", _) => Some((
            "InsufficientNumberOfReplicas",
            "The add-on is unhealthy because it doesn't have the desired \
                                                                 number of replicas.",
        )),
        ("CREATE_FAILED" | "DELETE_FAILED", Some((code, message))) => Some((code.as_str(), message.as_str())),
        _ => None,
    };
    let issues: Vec<Value> =
        issue.iter().map(|(code, message)| json!({ "code": code, "message": message, "resourceIds": [] })).collect();
    let mut answer = json!({
        "addonName": name,
        "clusterName": cluster_name,
        "status": status,
        "addonVersion": addon.version,
        "health": { "issues": issues },
        "addonArn": addon.arn,
        "createdAt": timestamp(addon.created),
        "modifiedAt": timestamp(addon.created),
    });
    set_tags(world, &addon.arn, &mut answer);
    if let Some(configuration) = &addon.configuration {
        answer["configurationValues"] = json!(configuration);
    }
    Ok(json!({ "addon": answer }))
}

/// The version of an input, or the default one, for a cluster of a version.
fn version(call: &Call, kubernetes: &str) -> Result<Option<String>, Fault> {
    let name = call.text("addonName");
    match call.str("addonVersion") {
        None => Ok(None),
        Some(wanted) => {
            let is_known = |(addon, version, works, _): &&(&str, &str, &[&str], &[&str])| {
                *addon == name && *version == wanted && works.contains(&kubernetes)
            };
            let found = VERSIONS.iter().find(is_known);
            found.map(|(_, version, ..)| Some((*version).to_owned())).ok_or_else(|| {
                invalid(format!(
                    "Addon version specified is not supported: {name} {wanted} with Kubernetes {kubernetes}"
                ))
            })
        }
    }
}

fn configuration(call: &Call) -> Result<Option<String>, Fault> {
    let Some(text) = call.str("configurationValues") else { return Ok(None) };
    let is_object = serde_json::from_str::<Value>(text).is_ok_and(|value| value.is_object());
    if !is_object {
        return Err(invalid("ConfigurationValue provided in request is not supported: Json schema validation failed"));
    }
    Ok(Some(text.to_owned()).filter(|text| text != "{}"))
}

pub(super) fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    world.once(call, "clientRequestToken", mismatch(), |world| {
        let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("addonName").to_owned());
        let cluster = active(world, call, "clusterName")?;
        if cluster.addons.contains_key(&name) {
            return Err(in_use("Addon already exists.").with("addonName", name));
        }
        if !VERSIONS.iter().any(|(addon, ..)| *addon == name) {
            return Err(invalid(format!("Addon {name} specified is not supported")));
        }
        let kubernetes = cluster.version.clone();
        let is_default = |(addon, _, _, default): &&(&str, &str, &[&str], &[&str])| {
            *addon == name && default.contains(&kubernetes.as_str())
        };
        let default = VERSIONS.iter().find(is_default).map(|(_, version, ..)| (*version).to_owned());
        let version = version(call, &kubernetes)?.or(default).ok_or_else(|| invalid("No version of the addon"))?;
        let configuration = configuration(call)?;
        let tags = new_tags(call)?;
        let arn = call.arn(&format!("addon/{cluster_name}/{name}/{}", call.random.uuid()));
        let issue = eks(world, call).failures.remove(&("create", name.clone()));
        let last = if issue.is_some() { "CREATE_FAILED" } else { "ACTIVE" };
        let state = call.stages("CREATING", &[(Duration::from_secs(20), last)]);
        let patience = crate::later(call.now, PATIENCE);
        let addon = Addon { arn: arn.clone(), version, state, patience, configuration, issue, created: call.now };
        active(world, call, "clusterName")?.addons.insert(name.clone(), addon);
        world.tags.set(&arn, tags, call.visible());
        Ok(name)
    })?;
    answer(world, call)
}

pub(super) fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    answer(world, call)
}

pub(super) fn list(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let names = cluster(world, call, "clusterName")?.addons.keys().map(|name| json!(name)).collect();
    call.page("addons", names, bad_token())
}

pub(super) fn versions(_: &mut World, call: &Call) -> Result<Value, Fault> {
    let (wanted, kubernetes) = (call.str("addonName"), call.str("kubernetesVersion"));
    let mut addons: Vec<Value> = Vec::new();
    for (name, version, works, default) in VERSIONS.iter().rev() {
        if wanted.is_some_and(|wanted| wanted != *name) || kubernetes.is_some_and(|one| !works.contains(&one)) {
            continue;
        }
        let with: Vec<Value> = works
            .iter()
            .map(|with| {
                json!({ "clusterVersion": with, "platformVersions": ["*"], "defaultVersion": default.contains(with) })
            })
            .collect();
        let version = json!({ "addonVersion": version, "architecture": ["amd64", "arm64"], "compatibilities": with });
        match addons.iter_mut().find(|addon| addon["addonName"] == *name) {
            Some(addon) => {
                if let Some(versions) = addon["addonVersions"].as_array_mut() {
                    versions.push(version);
                }
            }
            None => addons
                .push(json!({ "addonName": name, "addonVersions": [version], "publisher": "eks", "owner": "aws" })),
        }
    }
    call.page("addons", addons, bad_token())
}

pub(super) fn update(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("addonName").to_owned());
    let kubernetes = active(world, call, "clusterName")?.version.clone();
    let new = version(call, &kubernetes)?;
    let has_configuration = call.input.get("configurationValues").is_some();
    let configuration = configuration(call)?;
    let addon = addon(world, call)?;
    if !["ACTIVE", "DEGRADED", "UPDATE_FAILED"].contains(&addon.state.at(call.now)) {
        return Err(in_use(format!("Addon {name} cannot be updated as it is currently in another state")));
    }
    let takes = Duration::from_secs(60);
    addon.state = call.stages("UPDATING", &[(takes, "ACTIVE")]);
    let params = new.iter().map(|version| ("AddonVersion", version.clone())).collect();
    let change = Change { cluster: cluster_name, part: Some(name.clone()), kind: "AddonUpdate", params, takes };
    Ok(start(world, call, change, move |cluster| {
        let Some(addon) = cluster.addons.get_mut(&name) else { return };
        if let Some(new) = new {
            addon.version = new;
        }
        if has_configuration {
            addon.configuration = configuration;
        }
    }))
}

pub(super) fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    active(world, call, "clusterName")?;
    let (cluster_name, name) = (call.text("clusterName").to_owned(), call.text("addonName").to_owned());
    let addon = addon(world, call)?;
    let arn = addon.arn.clone();
    if addon.state.at(call.now) != "DELETING" {
        addon.state = Stages::settled("DELETING");
        let scope = call.scope();
        world.defer(call.due(Duration::from_secs(20)), move |world| {
            if let Some(cluster) = world.state::<Eks>(&scope).clusters.get_mut(&cluster_name) {
                cluster.addons.remove(&name);
            }
            world.tags.forget(&arn);
        });
    }
    answer(world, call)
}
