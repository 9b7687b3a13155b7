//! What an audit reads of a deployment's objects: images, rights, privileges and services.

use serde_json::Value;
use textnlp_provider::operations::{AuditedAspect, SecurityAspect};
use textnlp_provider::units::counted;
use textnlp_provider::{Lineage, Result};

use crate::api::Api;
use crate::error::Call;
use crate::provider::Kubernetes;
use crate::{identity, lower, one_off_job, table};

/// The kinds with a pod template. Jobs are made of those of cron jobs, or end.
const PODS: [&str; 4] =
    ["kubernetes.deployment", "kubernetes.stateful-set", "kubernetes.daemon-set", "kubernetes.cron-job"];
const ROLES: [&str; 2] = ["kubernetes.role", "kubernetes.cluster-role"];
/// Verbs that return the content of objects.
const READS: [&str; 4] = ["get", "list", "watch", "*"];

impl Kubernetes {
    /// Reads the objects of an aspect. `clients`: the service that clients use.
    pub async fn audit(
        &self,
        (namespace, lineage): (&str, Lineage),
        clients: &str,
        aspect: SecurityAspect,
    ) -> Result<AuditedAspect> {
        let api = self.api().await?;
        let owned = format!("{}={lineage}", identity::LINEAGE);
        let list = |kinds: &'static [&'static str]| list(&api, namespace, kinds, &owned);
        Ok(match aspect {
            SecurityAspect::Images => of_containers(&list(&PODS).await?, "images", |_, container| image(container)),
            SecurityAspect::Pods => of_containers(&list(&PODS).await?, "containers", privileges),
            SecurityAspect::Roles => {
                let found = list(&ROLES).await?;
                let findings = found.iter().flat_map(|role| rights(role).map(|why| named("role", role, &why)));
                AuditedAspect { read: counted(found.len(), "role"), findings: findings.collect() }
            }
            SecurityAspect::Ports => {
                let found = list(&["kubernetes.service"]).await?;
                let findings = found.iter().filter_map(|service| exposed(service, clients));
                AuditedAspect { read: counted(found.len(), "service"), findings: findings.collect() }
            }
            SecurityAspect::Backups => {
                let row = table::named("kubernetes.cron-job");
                let call =
                    Call { action: "read", verb: "get", row, namespace: Some(namespace), name: Some(lower::BACKUP) };
                encryption(&one_off_job::read_own(&api, &call, lineage).await?)
            }
        })
    }
}

async fn list(api: &Api, namespace: &str, kinds: &[&str], owned: &str) -> Result<Vec<Value>> {
    let mut found = Vec::new();
    for kind in kinds {
        let row = table::named(kind);
        let namespace = row.namespaced.then_some(namespace);
        found.extend(api.list(&Call { action: "list", verb: "list", row, namespace, name: None }, owned).await?);
    }
    Ok(found)
}

fn named(kind: &str, object: &Value, why: &str) -> String {
    format!("{kind} {}: {why}", object["metadata"]["name"].as_str().unwrap_or_default())
}

/// The pod of a template, also of a cron job.
fn pod(object: &Value) -> &Value {
    let of = &object["spec"];
    if of["jobTemplate"].is_object() { &of["jobTemplate"]["spec"]["template"]["spec"] } else { &of["template"]["spec"] }
}

fn of_containers(objects: &[Value], what: &str, finding: impl Fn(&Value, &Value) -> Option<String>) -> AuditedAspect {
    let (mut count, mut findings) = (0, Vec::new());
    for object in objects {
        let pod = pod(object);
        for container in ["initContainers", "containers"].iter().flat_map(|of| pod[of].as_array()).flatten() {
            count += 1;
            let of = container["name"].as_str().unwrap_or_default();
            findings.extend(finding(pod, container).map(|why| named(&format!("container {of} of"), object, &why)));
        }
    }
    AuditedAspect { read: format!("{count} {what}"), findings }
}

fn image(container: &Value) -> Option<String> {
    let image = container["image"].as_str().unwrap_or_default();
    (!image.contains("@sha256:")).then(|| format!("{image} is a tag, which can change"))
}

/// The baseline and restricted rules of
/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/>, and a read-only root file system.
fn privileges(pod: &Value, container: &Value) -> Option<String> {
    let (own, shared) = (&container["securityContext"], &pod["securityContext"]);
    let either = |field: &str| if own[field].is_null() { &shared[field] } else { &own[field] };
    let dropped = own["capabilities"]["drop"].as_array();
    let host = ["hostNetwork", "hostPID", "hostIPC"].into_iter().find(|field| pod[field] == true);
    let rules = [
        (host.is_some(), host.unwrap_or_default()),
        (own["privileged"] == true, "it is privileged"),
        (either("runAsNonRoot") != true, "it may run as root"),
        (own["allowPrivilegeEscalation"] != false, "it may gain privileges"),
        (!dropped.is_some_and(|all| all.iter().any(|name| name == "ALL")), "it keeps capabilities"),
        (
            either("seccompProfile")["type"].as_str().is_none_or(|kind| kind == "Unconfined"),
            "it has no seccomp profile",
        ),
        (own["readOnlyRootFilesystem"] != true, "its root file system is writable"),
    ];
    let broken: Vec<&str> = rules.into_iter().filter(|(is_broken, _)| *is_broken).map(|(_, why)| why).collect();
    (!broken.is_empty()).then(|| broken.join(", "))
}

/// The rights of a role that are wider than a service needs.
fn rights(role: &Value) -> impl Iterator<Item = String> {
    let rules = role["rules"].as_array().into_iter().flatten();
    let has = |rule: &Value, field: &str, any: &[&str]| {
        let values = rule[field].as_array().into_iter().flatten();
        values.filter_map(Value::as_str).any(|value| any.contains(&value))
    };
    rules.filter_map(move |rule| {
        let is_named = rule["resourceNames"].as_array().is_some_and(|names| !names.is_empty());
        match () {
            () if has(rule, "resources", &["*"]) => Some("it has rights on all resources".to_owned()),
            () if has(rule, "verbs", &["*"]) => Some("it has all verbs".to_owned()),
            () if has(rule, "resources", &["secrets"]) && has(rule, "verbs", &READS) && !is_named => {
                Some("it can read every secret".to_owned())
            }
            () if has(rule, "verbs", &["impersonate", "escalate", "bind"]) => {
                Some("it can take other roles".to_owned())
            }
            () => None,
        }
    })
}

/// Whether the container that stores dumps encrypts them, and to how many keys.
fn encryption(job: &Value) -> AuditedAspect {
    let words = |container: &Value| -> Vec<String> {
        let words = container["command"].as_array().into_iter().flatten().filter_map(Value::as_str);
        words.map(str::to_owned).collect()
    };
    let stores = pod(job)["containers"].as_array().into_iter().flatten().map(words);
    let recipients: Vec<usize> = stores
        .filter(|words| words.iter().any(|word| word == "encrypt"))
        .map(|words| words.iter().filter(|word| word.starts_with("--recipient=")).count())
        .collect();
    let all: usize = recipients.iter().sum();
    let finding = || named("cron job", job, "it stores dumps without encryption");
    AuditedAspect {
        read: format!("the backup job encrypts dumps to {all} keys"),
        findings: if all == 0 { vec![finding()] } else { Vec::new() },
    }
}

fn exposed(service: &Value, clients: &str) -> Option<String> {
    let kind = service["spec"]["type"].as_str().unwrap_or("ClusterIP");
    let is_open = matches!(kind, "NodePort" | "LoadBalancer")
        || service["spec"]["externalIPs"].as_array().is_some_and(|addresses| !addresses.is_empty());
    let is_clients = service["metadata"]["name"] == clients;
    (is_open && !is_clients).then(|| named("service", service, &format!("{kind} opens it outside of the cluster")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn deployment(pod: Value) -> Value {
        json!({ "metadata": { "name": "api" }, "spec": { "template": { "spec": pod } } })
    }

    #[test]
    fn container_of_the_restricted_standard_has_no_finding() {
        let strict = json!({
            "securityContext": { "runAsNonRoot": true, "seccompProfile": { "type": "RuntimeDefault" } },
            "containers": [{ "name": "api", "image": "r.example/s@sha256:00", "securityContext": {
                "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true, "capabilities": { "drop": ["ALL"] },
            } }],
        });
        let audited = of_containers(&[deployment(strict.clone())], "containers", privileges);
        assert_eq!(audited, AuditedAspect { read: "1 containers".to_owned(), findings: Vec::new() });
        for (pointer, value, expected) in [
            ("/hostNetwork", json!(true), "hostNetwork"),
            ("/securityContext/runAsNonRoot", json!(false), "may run as root"),
            ("/securityContext/seccompProfile/type", json!("Unconfined"), "no seccomp profile"),
            ("/containers/0/securityContext/privileged", json!(true), "is privileged"),
            ("/containers/0/securityContext/runAsNonRoot", json!(false), "may run as root"),
            ("/containers/0/securityContext/allowPrivilegeEscalation", json!(true), "gain privileges"),
            ("/containers/0/securityContext/capabilities/drop", json!(["NET_RAW"]), "keeps capabilities"),
            ("/containers/0/securityContext/readOnlyRootFilesystem", json!(false), "is writable"),
        ] {
            let mut pod = strict.clone();
            let (parent, last) = pointer.rsplit_once('/').unwrap();
            pod.pointer_mut(parent).unwrap()[last] = value;
            let findings = of_containers(&[deployment(pod)], "containers", privileges).findings;
            assert!(findings.len() == 1 && findings[0].contains(expected), "{pointer}: {findings:?}");
            assert!(findings[0].starts_with("container api of api: "), "{findings:?}");
        }
    }

    #[test]
    fn cron_jobs_and_init_containers_are_read() {
        let job = json!({ "metadata": { "name": "dump" }, "spec": { "jobTemplate": { "spec": { "template": { "spec": {
            "initContainers": [{ "name": "a", "image": "r.example/a:1" }],
            "containers": [{ "name": "b", "image": "r.example/b@sha256:00" }],
        } } } } } });
        let audited = of_containers(&[job], "images", |_, container| image(container));
        assert_eq!(audited.read, "2 images");
        assert_eq!(audited.findings, ["container a of dump: r.example/a:1 is a tag, which can change"]);
    }

    #[test]
    fn wide_rights_are_findings_and_those_on_named_objects_are_not() {
        let role = |rule: Value| json!({ "metadata": { "name": "r" }, "rules": [rule] });
        let found = |rule: Value| rights(&role(rule)).collect::<Vec<_>>();
        assert_eq!(found(json!({ "resources": ["secrets"], "resourceNames": ["own"], "verbs": ["get"] })), [""; 0]);
        assert_eq!(found(json!({ "resources": ["pods"], "verbs": ["list"] })), [""; 0]);
        for (rule, expected) in [
            (json!({ "resources": ["*"], "verbs": ["get"] }), "all resources"),
            (json!({ "resources": ["pods"], "verbs": ["*"] }), "all verbs"),
            (json!({ "resources": ["pods", "secrets"], "verbs": ["list"] }), "every secret"),
            (json!({ "resources": ["secrets"], "resourceNames": [], "verbs": ["watch"] }), "every secret"),
            (json!({ "resources": ["users"], "verbs": ["impersonate"] }), "other roles"),
        ] {
            let findings = found(rule);
            assert!(findings.len() == 1 && findings[0].contains(expected), "{findings:?}");
        }
    }

    #[test]
    fn dumps_need_a_step_that_encrypts_them_to_a_key() {
        let job = |command: Value| {
            let pod = json!({ "containers": [{ "name": "textnlp-backup", "command": command }] });
            json!({ "metadata": { "name": "textnlp-backup" }, "spec": { "jobTemplate": { "spec": { "template": { "spec": pod } } } } })
        };
        let audited = encryption(&job(json!(["server", "backup", "encrypt", "--recipient=a", "--recipient=b"])));
        assert!(audited.findings.is_empty() && audited.read.ends_with("to 2 keys"), "{audited:?}");
        for command in [json!(["server", "backup", "encrypt"]), json!(["cp", "--recipient=a"]), Value::Null] {
            assert_eq!(encryption(&job(command)).findings.len(), 1);
        }
    }

    #[test]
    fn only_the_service_of_the_clients_may_be_open() {
        let service = |name: &str, spec: Value| json!({ "metadata": { "name": name }, "spec": spec });
        assert_eq!(exposed(&service("api", json!({ "type": "LoadBalancer" })), "api"), None);
        assert_eq!(exposed(&service("db", json!({ "type": "ClusterIP" })), "api"), None);
        assert!(exposed(&service("db", json!({ "type": "NodePort" })), "api").is_some());
        assert!(exposed(&service("db", json!({ "externalIPs": ["192.0.2.1"] })), "api").is_some());
    }
}
