//! Checks of what runs in containers: compose files and objects of Kubernetes.

use serde_json::Value;

use super::document::{Container, Document, DocumentKind};
use super::{Check, Hits, has};
use crate::scan::finding::Severity;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "image-latest",
        severity: Severity::Medium,
        title: "An image without a version",
        reason: "`latest` is the image that was pushed last: two machines may run different programs under one name.",
        fix: "set a version and a digest: `name:15.4@sha256:…`",
        passes: "services: { a: { image: 'postgres:15' } }",
        fails: "services: { a: { image: 'postgres:latest' } }",
        find: |document, hits| {
            each_image(document, hits, |image| {
                let name = image.rsplit('/').next().unwrap_or(image);
                let tag = name.split_once(':').map(|(_, tag)| tag);
                !image.contains('@') && tag.is_none_or(|t| t == "latest")
            })
        },
    },
    Check {
        id: "image-unpinned",
        severity: Severity::Low,
        title: "An image without a digest",
        reason: "A tag can be moved; only a digest says which bytes run.",
        fix: "add the digest: `name:15.4@sha256:…`",
        passes: "services: { a: { image: 'postgres:15@sha256:0123' } }",
        fails: "services: { a: { image: 'postgres:15' } }",
        find: |document, hits| each_image(document, hits, |image| !image.contains("@sha256:")),
    },
    Check {
        id: "container-root",
        severity: Severity::Medium,
        title: "A container may run as root",
        reason: "Root in a container is root for the kernel: one flaw in it gives an attacker the machine.",
        fix: "set `user: \"65532\"`, or `securityContext.runAsNonRoot: true` with a `runAsUser`",
        passes: "services: { a: { image: 'b@sha256:0', user: '65532:65532' } }",
        fails: "services: { a: { image: 'b@sha256:0', user: root } }",
        find: |document, hits| {
            each(document, hits, |c| match document.of {
                // A compose file that says nothing has the image's user, which the image's own scan looks at.
                DocumentKind::Compose => c.value.get("user").is_some_and(|u| {
                    let text = u.as_str().map_or_else(|| u.to_string(), str::to_owned);
                    matches!(text.split(':').next(), Some("0" | "root"))
                }),
                _ => {
                    let user = c.security("runAsUser").and_then(Value::as_u64);
                    user == Some(0) || (user.is_none() && c.security("runAsNonRoot") != Some(&Value::Bool(true)))
                }
            })
        },
    },
    Check {
        id: "container-privileged",
        severity: Severity::Critical,
        title: "A privileged container",
        reason: "It can do everything that root on the machine can: load kernel modules, open disks, leave the container.",
        fix: "remove `privileged` and add only the capability that it needs",
        passes: "services: { a: { image: 'b@sha256:0', privileged: false } }",
        fails: "services: { a: { image: 'b@sha256:0', privileged: true } }",
        find: |document, hits| {
            each(document, hits, |c| {
                let yes = Some(&Value::Bool(true));
                c.value.get("privileged") == yes || c.security("privileged") == yes
            })
        },
    },
    Check {
        id: "capabilities-added",
        severity: Severity::High,
        title: "A container with capabilities over the host",
        reason: "A process with these capabilities can leave its container.",
        fix: "drop ALL and add only what is needed, such as NET_BIND_SERVICE",
        passes: "services: { a: { image: 'b@sha256:0', cap_drop: [ALL], cap_add: [NET_BIND_SERVICE] } }",
        fails: "services: { a: { image: 'b@sha256:0', cap_add: [SYS_ADMIN] } }",
        find: |document, hits| {
            each(document, hits, |c| {
                let mut added = c.strings("cap_add");
                if let Some(Value::Array(list)) = c.security("capabilities").and_then(|v| v.get("add")) {
                    added.extend(list.iter().filter_map(Value::as_str).map(str::to_owned));
                }
                added.iter().any(|cap| {
                    let name = cap.to_ascii_uppercase();
                    has(POWERS, name.strip_prefix("CAP_").unwrap_or(&name))
                })
            })
        },
    },
    Check {
        id: "host-network",
        severity: Severity::High,
        title: "A container in the host network",
        reason: "It reaches everything that listens on 127.0.0.1 of the machine, and can take its ports.",
        fix: "publish the ports that are needed instead",
        passes: "services: { a: { image: 'b@sha256:0', network_mode: bridge } }",
        fails: "services: { a: { image: 'b@sha256:0', network_mode: host } }",
        find: |document, hits| shares(document, hits, "network_mode", "hostNetwork"),
    },
    Check {
        id: "host-processes",
        severity: Severity::High,
        title: "A container that sees the machine's processes",
        reason: "It can read their environment, secrets included, and signal them.",
        fix: "remove `pid: host` (`hostPID`, `hostIPC`)",
        passes: "services: { a: { image: 'b@sha256:0' } }",
        fails: "services: { a: { image: 'b@sha256:0', pid: host } }",
        find: |document, hits| {
            shares(document, hits, "pid", "hostPID");
            shares(document, hits, "ipc", "hostIPC");
        },
    },
    Check {
        id: "engine-socket",
        severity: Severity::Critical,
        title: "A container with the container engine's socket",
        reason: "A process with access to it can start privileged containers: it is root on the machine.",
        fix: "remove the mount; a program that needs to list containers can use a read-only proxy",
        passes: "services: { a: { image: 'b@sha256:0', volumes: [ 'data:/data' ] } }",
        fails: "services: { a: { image: 'b@sha256:0', volumes: [ '/var/run/docker.sock:/var/run/docker.sock:ro' ] } }",
        find: |document, hits| {
            let sockets = ["docker.sock", "containerd.sock", "crio.sock"];
            each_mount(document, hits, |source| sockets.iter().any(|socket| source.ends_with(socket)))
        },
    },
    Check {
        id: "host-folder",
        severity: Severity::High,
        title: "A container that mounts a system folder of the host",
        reason: "A process that can write there controls what the machine runs.",
        fix: "mount the one folder with the data that is needed, read-only where possible",
        passes: "services: { a: { image: 'b@sha256:0', volumes: [ '/srv/models:/models:ro' ] } }",
        fails: "services: { a: { image: 'b@sha256:0', volumes: [ '/etc:/host/etc' ] } }",
        find: |document, hits| {
            each_mount(document, hits, |source| {
                let folder = source.trim_end_matches('/');
                RULING.contains(&folder) && source.starts_with('/')
            })
        },
    },
    Check {
        id: "memory-unlimited",
        severity: Severity::Low,
        title: "A container without a memory limit",
        reason: "When it uses all memory, the kernel kills arbitrary processes on that machine.",
        fix: "set `mem_limit` or `deploy.resources.limits.memory`; in pods `resources.limits.memory`",
        passes: "services: { a: { image: 'b@sha256:0', deploy: { resources: { limits: { memory: 2G } } } } }",
        fails: "services: { a: { image: 'b@sha256:0' } }",
        find: |document, hits| {
            each(document, hits, |c| {
                let limits = ["/mem_limit", "/deploy/resources/limits/memory", "/resources/limits/memory"];
                !limits.iter().any(|at| c.value.pointer(at).is_some_and(|v| !v.is_null()))
            })
        },
    },
    Check {
        id: "escalation-open",
        severity: Severity::Low,
        title: "A process can gain privileges",
        reason: "A setuid program in the image can then become root.",
        fix: "set `allowPrivilegeEscalation: false`; in compose files `security_opt: [no-new-privileges:true]`",
        passes: "services: { a: { image: 'b@sha256:0', security_opt: [ 'no-new-privileges:true' ] } }",
        fails: "services: { a: { image: 'b@sha256:0' } }",
        find: |document, hits| {
            each(document, hits, |c| !match document.of {
                DocumentKind::Compose => c
                    .strings("security_opt")
                    .iter()
                    .any(|o| o.starts_with("no-new-privileges") && !o.ends_with("false")),
                _ => c.security("allowPrivilegeEscalation") == Some(&Value::Bool(false)),
            })
        },
    },
    Check {
        id: "root-writable",
        severity: Severity::Info,
        title: "A container with a writable root filesystem",
        reason: "An attacker can install programs that stay until the container is replaced.",
        fix: "set `read_only: true` (`readOnlyRootFilesystem: true`) and give it a volume for what it writes",
        passes: "services: { a: { image: 'b@sha256:0', read_only: true } }",
        fails: "services: { a: { image: 'b@sha256:0' } }",
        find: |document, hits| {
            each(document, hits, |c| {
                let yes = Some(&Value::Bool(true));
                c.value.get("read_only") != yes && c.security("readOnlyRootFilesystem") != yes
            })
        },
    },
    Check {
        id: "store-published",
        severity: Severity::High,
        title: "A database or cache is open to the network",
        reason: "Only the service needs it; every host on the network can try passwords against it.",
        fix: "remove the port, or publish it on 127.0.0.1 only: `127.0.0.1:5432:5432`",
        passes: "services: { db: { image: 'b@sha256:0', ports: [ '127.0.0.1:5432:5432' ] } }",
        fails: "services: { db: { image: 'b@sha256:0', ports: [ '5432:5432' ] } }",
        find: |document, hits| {
            document.containers().iter().for_each(|c| {
                for (at, port) in c.value.get("ports").and_then(Value::as_array).into_iter().flatten().enumerate() {
                    if document.of == DocumentKind::Compose
                        && published(port).is_some_and(|target| STORES.contains(&target))
                    {
                        hits.at(format!("{}.ports[{at}]", c.path));
                    }
                }
            })
        },
    },
    Check {
        id: "service-token",
        severity: Severity::Info,
        title: "A pod holds a token of the cluster that it may not need",
        reason: "An attacker who takes over the pod can use it against the cluster's API.",
        fix: "set `automountServiceAccountToken: false` unless it talks to the API",
        passes: "apiVersion: v1\nkind: Pod\nspec: { automountServiceAccountToken: false, containers: [] }",
        fails: "apiVersion: v1\nkind: Pod\nspec: { containers: [] }",
        find: |document, hits| {
            if let Some((path, pod)) = document.pod()
                && pod.get("automountServiceAccountToken") != Some(&Value::Bool(false))
            {
                hits.at(path);
            }
        },
    },
];

/// Capabilities that lead out of a container.
const POWERS: &str = "ALL SYS_ADMIN SYS_MODULE SYS_PTRACE SYS_RAWIO NET_ADMIN DAC_READ_SEARCH BPF MKNOD SYS_BOOT";

/// Folders that decide what a machine runs. The first is `/` without its slash.
const RULING: [&str; 12] =
    ["", "/etc", "/root", "/usr", "/bin", "/sbin", "/lib", "/boot", "/proc", "/sys", "/dev", "/var/run"];

/// Ports of PostgreSQL, MySQL, Redis, MongoDB, MinIO, etcd.
const STORES: [u64; 6] = [5432, 3306, 6379, 27017, 9000, 2379];

/// Finds every container to which this applies.
fn each(document: &Document, hits: &mut Hits, is_found: impl Fn(&Container<'_>) -> bool) {
    document.containers().iter().filter(|c| is_found(c)).for_each(|c| hits.at(&c.path));
}

fn each_image(document: &Document, hits: &mut Hits, is_found: impl Fn(&str) -> bool) {
    for c in document.containers() {
        // A compose file may build what it runs, or take the name from a variable.
        if let Some(image) = c.value.get("image").and_then(Value::as_str)
            && c.value.get("build").is_none()
            && !image.contains("${")
            && is_found(image)
        {
            hits.at(format!("{}.image", c.path));
        }
    }
}

fn shares(document: &Document, hits: &mut Hits, compose: &str, pod: &str) {
    for container in document.containers() {
        if document.of == DocumentKind::Compose && container.value.get(compose).and_then(Value::as_str) == Some("host")
        {
            hits.at(format!("{}.{compose}", container.path));
        }
    }
    if let Some((path, spec)) = document.pod()
        && spec.get(pod) == Some(&Value::Bool(true))
    {
        hits.at(format!("{path}.{pod}"));
    }
}

/// Finds every folder or socket of the machine that a container is given, if this applies to it.
fn each_mount(document: &Document, hits: &mut Hits, is_found: impl Fn(&str) -> bool) {
    let volumes = |of: &Value| of.get("volumes").and_then(Value::as_array).cloned().unwrap_or_default();
    for c in document.containers().iter().filter(|_| document.of == DocumentKind::Compose) {
        for (at, volume) in volumes(c.value).iter().enumerate() {
            let source = match volume {
                Value::String(text) => text.split(':').next(),
                other => other.get("source").and_then(Value::as_str),
            };
            if is_found(source.unwrap_or_default()) {
                hits.at(format!("{}.volumes[{at}]", c.path));
            }
        }
    }
    if let Some((path, pod)) = document.pod() {
        for (at, volume) in volumes(pod).iter().enumerate() {
            if volume.pointer("/hostPath/path").and_then(Value::as_str).is_some_and(&is_found) {
                hits.at(format!("{path}.volumes[{at}].hostPath"));
            }
        }
    }
}

/// The port inside, when it is published beyond this machine: `5432:5432`, `0.0.0.0:5432:5432`, `{ target: 5432, published: 5432 }`.
fn published(port: &Value) -> Option<u64> {
    match port {
        Value::Number(n) => n.as_u64(),
        Value::String(text) => {
            let text = text.split('/').next()?;
            let (before, target) = text.rsplit_once(':').unwrap_or(("", text));
            let local = before.starts_with("127.") || before.starts_with("[::1]") || before.starts_with("localhost");
            (!local).then(|| target.parse().ok())?
        }
        other => {
            let local =
                other.get("host_ip").and_then(Value::as_str).is_some_and(|ip| ip.starts_with("127.") || ip == "::1");
            (!local).then(|| other.get("target")?.as_u64())?
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::*;

    fn found(text: &str) -> Vec<String> {
        let documents = Document::read("a.yaml", text.as_bytes()).unwrap();
        findings(&documents)
            .into_iter()
            .map(|f| format!("{} {}", f.id, f.place.trim_start_matches("a.yaml: ")))
            .collect()
    }

    #[test]
    fn pod_specs_are_checked_in_every_workload_kind() {
        let spec = "{ hostNetwork: true, volumes: [ { name: v, hostPath: { path: / } } ], containers: [ { name: a, image: 'b:1', securityContext: { privileged: true, capabilities: { add: [NET_ADMIN] } } } ] }";
        for (kind, at, text) in [
            ("Pod", "spec", format!("spec: {spec}")),
            ("Deployment", "spec.template.spec", format!("spec: {{ template: {{ spec: {spec} }} }}")),
            (
                "CronJob",
                "spec.jobTemplate.spec.template.spec",
                format!("spec: {{ jobTemplate: {{ spec: {{ template: {{ spec: {spec} }} }} }} }}"),
            ),
        ] {
            let found = found(&format!("apiVersion: v1\nkind: {kind}\n{text}"));
            for wanted in [
                format!("container-privileged {at}.containers[0]"),
                format!("host-network {at}.hostNetwork"),
                format!("host-folder {at}.volumes[0].hostPath"),
                format!("capabilities-added {at}.containers[0]"),
                format!("container-root {at}.containers[0]"),
                format!("image-unpinned {at}.containers[0].image"),
            ] {
                assert!(found.contains(&wanted), "{kind}: {wanted} is not in {found:?}");
            }
        }
    }

    #[test]
    fn hardened_pod_has_no_findings() {
        let text = "apiVersion: apps/v1\nkind: Deployment\nspec: { template: { spec: { automountServiceAccountToken: false, \
            securityContext: { runAsNonRoot: true, runAsUser: 65532 }, containers: [ { name: a, image: 'r.example.com:5000/b:1@sha256:00', \
            resources: { limits: { memory: 2Gi } }, securityContext: { allowPrivilegeEscalation: false, readOnlyRootFilesystem: true } } ] } } }";
        assert_eq!(found(text), Vec::<String>::new());
    }

    #[test]
    fn registry_port_is_not_mistaken_for_a_tag() {
        let with = |image: &str| {
            found(&format!("services: {{ a: {{ image: '{image}' }} }}")).iter().any(|f| f.starts_with("image-latest"))
        };
        assert!(with("localhost:5000/a") && with("a") && !with("localhost:5000/a:1") && !with("a@sha256:00"));
    }
}
