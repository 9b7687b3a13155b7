//! Checks of environments, of `server.yaml` and of `gateway.yaml`.

use serde_json::Value;

use super::Check;
use super::document::{Document, DocumentKind};
use crate::scan::finding::Severity;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "tls-off",
        severity: Severity::Critical,
        title: "TLS is off",
        reason: "Prompts, answers and keys are sent in clear text; an attacker on the network can read and change them.",
        fix: "set `tls.mode` to `local-ca`, `acme` or `existing`",
        passes: "environment: a\nphase: pilot\ntls: { mode: local-ca }",
        fails: "environment: a\nphase: pilot\ntls: { mode: 'off' }",
        find: |document, hits| {
            let mode = document.value.pointer("/tls/mode");
            let off = mode.is_some_and(|m| m.as_str() == Some("off") || *m == Value::Bool(false));
            if document.of != DocumentKind::Environment || !off {
                return;
            }
            let host = document.value.pointer("/server/api/host").and_then(Value::as_str);
            match document.phase.as_deref() {
                // On this machine only: the connection does not cross a network.
                Some("development") if host.is_none_or(local) => {}
                Some("development") => hits.milder("tls.mode", Severity::Medium),
                Some("staging") => hits.milder("tls.mode", Severity::High),
                _ => hits.at("tls.mode"),
            }
        },
    },
    Check {
        id: "open-without-tls",
        severity: Severity::High,
        title: "Listens on the network without TLS",
        reason: "An attacker on that network can read prompts, answers and API keys.",
        fix: "listen on 127.0.0.1 or a Unix socket behind the gateway, or give the gateway a certificate",
        passes: "gateway: { listen: '0.0.0.0:8443', tls: { certificate_file: /c, key_file: /k } }",
        fails: "gateway: { listen: '0.0.0.0:8080' }",
        find: |document, hits| {
            let listen = match document.of {
                DocumentKind::Gateway if document.value.pointer("/gateway/tls").is_none_or(Value::is_null) => {
                    "/gateway/listen"
                }
                DocumentKind::Server
                    if document.value.pointer("/textnlp/api/require_https") != Some(&Value::Bool(true)) =>
                {
                    "/textnlp/api/listen"
                }
                _ => return,
            };
            if document.value.pointer(listen).and_then(Value::as_str).is_some_and(|l| !local(l)) {
                hits.at(listen.trim_start_matches('/').replace('/', "."));
            }
        },
    },
    Check {
        id: "auth-off",
        severity: Severity::Critical,
        title: "No API key is required",
        reason: "Every client that reaches the address can use the service at your cost.",
        fix: "set `security.api_keys_enabled: true`",
        passes: "environment: a\nphase: staging\nserver: { security: { api_keys_enabled: true } }",
        fails: "environment: a\nphase: staging\nserver: { security: { api_keys_enabled: false } }",
        find: |document, hits| {
            let Some((path, security)) = document.served("security") else { return };
            if security.get("api_keys_enabled") != Some(&Value::Bool(false)) {
                return;
            }
            let path = format!("{path}.api_keys_enabled");
            let host = document.served("api").and_then(|(_, api)| api.get("host").or(api.get("listen"))?.as_str());
            match document.phase.as_deref() {
                Some("development") if host.is_none_or(local) => {}
                Some("development" | "staging") => hits.milder(path, Severity::High),
                _ => hits.at(path),
            }
        },
    },
    Check {
        id: "cors-any",
        severity: Severity::High,
        title: "Pages of any origin may call the service",
        reason: "A malicious page can use the service with the credentials in a visitor's browser.",
        fix: "list the origins that need it in `api.cors_origins`, or none",
        passes: "textnlp: { api: { cors_origins: ['https://app.example.com'] } }",
        fails: "textnlp: { api: { cors_origins: ['*'] } }",
        find: |document, hits| {
            let Some((path, api)) = document.served("api") else { return };
            let origins = api.get("cors_origins");
            let any = |v: &Value| v.as_str() == Some("*");
            let found = origins.is_some_and(|o| any(o) || o.as_array().is_some_and(|list| list.iter().any(any)));
            if found && document.in_development() {
                hits.milder(format!("{path}.cors_origins"), Severity::Low);
            } else if found {
                hits.at(format!("{path}.cors_origins"));
            }
        },
    },
    Check {
        id: "rate-unlimited",
        severity: Severity::Medium,
        title: "Requests are not limited",
        reason: "One client can use up the machine, and a stolen key can be used without limit.",
        fix: "set `security.rate_limit`, such as `1000/hour`",
        passes: "textnlp: { security: { rate_limit: 1000/hour } }",
        fails: "textnlp: { security: { api_keys_enabled: true } }",
        find: |document, hits| {
            let Some((path, security)) = document.served("security") else { return };
            let none = match security.get("rate_limit") {
                // An environment without the setting has the default; a server's file without it has no limit.
                None => document.of == DocumentKind::Server,
                Some(Value::Null | Value::Bool(false)) => true,
                Some(Value::String(text)) => text.starts_with("0/") || text == "off",
                Some(_) => false,
            };
            if none && !document.in_development() {
                hits.at(format!("{path}.rate_limit"));
            }
        },
    },
    Check {
        id: "metrics-open",
        severity: Severity::Medium,
        title: "Metrics are open to the network",
        reason: "They show every client on the network who uses the service, how much and when.",
        fix: "set `metrics_listen` to a Unix socket or 127.0.0.1, and scrape it from there",
        passes: "gateway: { listen: 'unix:/s', metrics_listen: '127.0.0.1:9090' }",
        fails: "gateway: { listen: 'unix:/s', metrics_listen: '0.0.0.0:9090' }",
        find: |document, hits| {
            for path in ["gateway.metrics_listen", "textnlp.api.metrics_listen", "gateway.admin_listen"] {
                let found = document.value.pointer(&format!("/{}", path.replace('.', "/"))).and_then(Value::as_str);
                if matches!(document.of, DocumentKind::Gateway | DocumentKind::Server)
                    && found.is_some_and(|l| !local(l))
                {
                    hits.at(path);
                }
            }
        },
    },
    Check {
        id: "debug-log",
        severity: Severity::Medium,
        title: "Debug logs in a production phase",
        reason: "Debug logs hold more than an operator needs, fill disks and slow the service.",
        fix: "set `monitoring.log_level` to INFO or WARNING",
        passes: "environment: a\nphase: pilot\nserver: { monitoring: { log_level: WARNING } }",
        fails: "environment: a\nphase: pilot\nserver: { monitoring: { log_level: DEBUG } }",
        find: |document, hits| {
            let Some((path, monitoring)) = document.served("monitoring") else { return };
            let level = monitoring.get("log_level").and_then(Value::as_str).unwrap_or_default();
            if document.in_production() && ["DEBUG", "TRACE"].contains(&level.to_ascii_uppercase().as_str()) {
                hits.at(format!("{path}.log_level"));
            }
        },
    },
    Check {
        id: "docs-open",
        severity: Severity::Low,
        title: "The API documentation is public in a production phase",
        reason: "`/docs` and `/openapi.json` answer without a key and show every endpoint.",
        fix: "set `api.docs: false`",
        passes: "textnlp: { phase: pilot, api: { docs: false } }",
        fails: "textnlp: { phase: pilot, api: { docs: true } }",
        find: |document, hits| {
            let Some((path, api)) = document.served("api") else { return };
            if document.in_production() && api.get("docs") == Some(&Value::Bool(true)) {
                hits.at(format!("{path}.docs"));
            }
        },
    },
    Check {
        id: "token-weak",
        severity: Severity::High,
        title: "Tokens are signed with a weak or shared secret",
        reason: "With HS… every service that can verify a token can also create one; with `none` every client can.",
        fix: "set `security.jwt_algorithm: RS256`",
        passes: "textnlp: { security: { rate_limit: 1/s, jwt_algorithm: RS256 } }",
        fails: "textnlp: { security: { rate_limit: 1/s, jwt_algorithm: HS256 } }",
        find: |document, hits| {
            let Some((path, security)) = document.served("security") else { return };
            let algorithm =
                security.get("jwt_algorithm").and_then(Value::as_str).unwrap_or("RS256").to_ascii_uppercase();
            if algorithm == "NONE" || algorithm.starts_with("HS") {
                hits.at(format!("{path}.jwt_algorithm"));
            }
        },
    },
    Check {
        id: "token-long-lived",
        severity: Severity::Medium,
        title: "Tokens live longer than a day",
        reason: "A token cannot be revoked: it is accepted until it expires.",
        fix: "set `security.jwt_expiry` to an hour (3600)",
        passes: "textnlp: { security: { rate_limit: 1/s, jwt_expiry: 3600 } }",
        fails: "textnlp: { security: { rate_limit: 1/s, jwt_expiry: 30d } }",
        find: |document, hits| {
            let Some((path, security)) = document.served("security") else { return };
            if security.get("jwt_expiry").and_then(seconds).is_some_and(|s| s > 86_400) {
                hits.at(format!("{path}.jwt_expiry"));
            }
        },
    },
    Check {
        id: "data-disposable",
        severity: Severity::High,
        title: "Data can be deleted in a production phase",
        reason: "With `data: disposable`, `down` deletes keys, quotas and usage without confirmation.",
        fix: "set `data: protected`",
        passes: "environment: a\nphase: pilot\ndata: protected",
        fails: "environment: a\nphase: pilot\ndata: disposable",
        find: |document, hits| {
            let disposable = document.value.get("data").and_then(Value::as_str) == Some("disposable");
            if document.of == DocumentKind::Environment && document.in_production() && disposable {
                hits.at("data");
            }
        },
    },
    Check {
        id: "backup-off",
        severity: Severity::Medium,
        title: "No backup in a production phase",
        reason: "A lost disk or a wrong command loses all keys, quotas and usage records.",
        fix: "set `backup.enabled: true` and a destination on another machine",
        passes: "environment: a\nphase: pilot\nbackup: { enabled: true }",
        fails: "environment: a\nphase: pilot\nbackup: { enabled: false }",
        find: |document, hits| {
            let off = document.value.pointer("/backup/enabled") == Some(&Value::Bool(false));
            if document.of == DocumentKind::Environment && document.in_production() && off {
                hits.at("backup.enabled");
            }
        },
    },
    Check {
        id: "model-by-http",
        severity: Severity::High,
        title: "A model is fetched by plain HTTP",
        reason: "An attacker on the network can replace the model.",
        fix: "fetch it by https, and set its digest",
        passes: "environment: a\nphase: pilot\nmodels: [ { name: m, source: 'https://example.com/m', digest: 'sha256:00' } ]",
        fails: "environment: a\nphase: pilot\nmodels: [ { name: m, source: 'http://example.com/m' } ]",
        find: |document, hits| {
            each_model(document, |at, source, digest| {
                if source.starts_with("http://") {
                    let path = format!("models[{at}].source");
                    if digest { hits.milder(path, Severity::Low) } else { hits.at(path) }
                }
            })
        },
    },
    Check {
        id: "model-unpinned",
        severity: Severity::Medium,
        title: "A model may change under its name",
        reason: "Without a digest or revision the next fetch may bring other weights without notice.",
        fix: "write `digest: sha256:…` next to the source, or a revision: `hf:org/name@REVISION`",
        passes: "environment: a\nphase: pilot\nmodels: [ { name: m, source: 'hf:org/m@0123abc' }, { name: n, source: bundled } ]",
        fails: "environment: a\nphase: pilot\nmodels: [ { name: m, source: 'hf:org/m' } ]",
        find: |document, hits| {
            each_model(document, |at, source, digest| {
                let remote =
                    ["hf:", "https:", "http:", "s3:", "gs:", "az:", "oci:"].iter().any(|s| source.starts_with(s));
                let pinned =
                    digest || source.contains("@sha256:") || (source.starts_with("hf:") && source.contains('@'));
                if remote && !pinned && document.in_production() {
                    hits.at(format!("models[{at}].source"));
                }
            })
        },
    },
    Check {
        id: "registry-by-http",
        severity: Severity::High,
        title: "Images are fetched by plain HTTP",
        reason: "An attacker on the network can read the registry's password and replace images.",
        fix: "set an https address for the registry",
        passes: "environment: a\nphase: pilot\nregistry: { url: 'https://registry.example.com' }",
        fails: "environment: a\nphase: pilot\nregistry: { url: 'http://registry.example.com' }",
        find: |document, hits| {
            let url = document.value.pointer("/registry/url").and_then(Value::as_str).unwrap_or_default();
            if document.of == DocumentKind::Environment && url.strip_prefix("http://").is_some_and(|host| !local(host))
            {
                hits.at("registry.url");
            }
        },
    },
    Check {
        id: "state-in-clear",
        severity: Severity::Medium,
        title: "State is stored unencrypted in an object store",
        reason: "The state lists every resource: every account that can read the bucket can read it.",
        fix: "set `state.encryption_key`, such as `secret:env:TEXTNLP_STATE_KEY`",
        passes: "environment: a\nphase: pilot\nstate: { store: 's3://b', encryption_key: 'secret:env:KEY' }",
        fails: "environment: a\nphase: pilot\nstate: { store: 's3://b' }",
        find: |document, hits| {
            let store = document.value.pointer("/state/store").and_then(Value::as_str).unwrap_or_default();
            let key = document.value.pointer("/state/encryption_key").is_some_and(|k| !k.is_null());
            if document.of == DocumentKind::Environment && store.contains("://") && !key {
                hits.at("state.store");
            }
        },
    },
    Check {
        id: "certificate-long-lived",
        severity: Severity::Low,
        title: "Certificates are valid for longer than 398 days",
        reason: "A stolen key can be used until its certificate expires; many clients refuse certificates with a longer validity.",
        fix: "set `tls.days` to 90: certificates are renewed automatically",
        passes: "environment: a\nphase: pilot\ntls: { mode: local-ca, days: 90 }",
        fails: "environment: a\nphase: pilot\ntls: { mode: local-ca, days: 825 }",
        find: |document, hits| {
            let days = document.value.pointer("/tls/days").and_then(Value::as_u64).unwrap_or(0);
            if document.of == DocumentKind::Environment && days > 398 {
                hits.at("tls.days");
            }
        },
    },
];

/// Whether an address can be reached from this machine only: a socket, 127.0.0.0/8, ::1, localhost.
fn local(listen: &str) -> bool {
    let host = listen.trim_start_matches('[');
    listen.starts_with("unix:") || host.starts_with("127.") || host.starts_with("::1") || host.starts_with("localhost")
}

fn each_model(document: &Document, mut visit: impl FnMut(usize, &str, bool)) {
    if document.of != DocumentKind::Environment {
        return;
    }
    for (at, model) in document.value.get("models").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let digest = model.get("digest").is_some_and(|d| !d.is_null());
        visit(at, model.get("source").and_then(Value::as_str).unwrap_or_default(), digest);
    }
}

/// `3600`, `3600s`, `30d`.
fn seconds(value: &Value) -> Option<u64> {
    if let Some(seconds) = value.as_u64() {
        return Some(seconds);
    }
    let text = value.as_str()?.trim();
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit = match text[end..].trim() {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    text[..end].parse::<u64>().ok()?.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::*;

    fn worst(text: &str, id: &str) -> Option<Severity> {
        let documents = Document::read("a.yaml", text.as_bytes()).unwrap();
        findings(&documents).into_iter().filter(|f| f.id == id).map(|f| f.severity).max()
    }

    #[test]
    fn severity_depends_on_the_phase_and_the_listen_address() {
        let with = |phase: &str, host: &str| {
            format!(
                "environment: a\nphase: {phase}\ntls: {{ mode: 'off' }}\nserver: {{ api: {{ host: {host} }}, security: {{ api_keys_enabled: false }} }}"
            )
        };
        assert_eq!(worst(&with("development", "127.0.0.1"), "tls-off"), None);
        assert_eq!(worst(&with("development", "0.0.0.0"), "tls-off"), Some(Severity::Medium));
        assert_eq!(worst(&with("staging", "127.0.0.1"), "tls-off"), Some(Severity::High));
        assert_eq!(worst(&with("air-gapped", "127.0.0.1"), "tls-off"), Some(Severity::Critical));
        assert_eq!(worst(&with("development", "127.0.0.1"), "auth-off"), None);
        assert_eq!(worst(&with("development", "0.0.0.0"), "auth-off"), Some(Severity::High));
        assert_eq!(worst(&with("pilot", "127.0.0.1"), "auth-off"), Some(Severity::Critical));
    }
}
