//! Checks of values in any document: passwords in clear, well-known passwords, private keys.

use serde_json::Value;

use super::document::{Document, DocumentKind, walk};
use super::{Check, Hits, has};
use crate::scan::finding::Severity;

pub(super) const CHECKS: &[Check] = &[
    Check {
        id: "password-known",
        severity: Severity::Critical,
        title: "A well-known default password",
        reason: "It is among the first passwords that an attacker tries.",
        fix: "create a random one and reference it: `secret:env:NAME` or `secret:file:PATH`",
        passes: "services: { db: { image: p, environment: { POSTGRES_PASSWORD_FILE: /run/secrets/p } } }",
        fails: "services: { db: { image: p, environment: { POSTGRES_PASSWORD: postgres } } }",
        find: |document, hits| each_password(document, hits, known),
    },
    Check {
        id: "password-in-clear",
        severity: Severity::High,
        title: "A password or key in a configuration file",
        reason: "Configuration files are copied, mailed and kept in version control; every reader has the password.",
        fix: "reference it: `secret:env:NAME` or `secret:file:PATH`; in compose files `secrets:`",
        passes: "services: { db: { image: p, environment: [ 'DB_PASSWORD=${DB_PASSWORD}' ] } }",
        fails: "services: { db: { image: p, environment: [ 'DB_PASSWORD=kX8/tq0aZ2' ] } }",
        find: |document, hits| each_password(document, hits, |value| !known(value)),
    },
    Check {
        id: "database-in-clear",
        severity: Severity::Medium,
        title: "The connection to the database does not use TLS",
        reason: "Key digests, quotas and usage records are sent in clear text between the service and its database.",
        fix: "write `sslmode=verify-full` (or at least `require`) in the database's address",
        passes: "textnlp: { database: { url: 'postgres://db.internal/textnlp?sslmode=verify-full' } }",
        fails: "textnlp: { database: { url: 'postgres://db.internal/textnlp?sslmode=disable' } }",
        find: |document, hits| {
            walk(&document.value, &mut |path, _, value| {
                let text = value.as_str().unwrap_or_default();
                if text.starts_with("postgres") && text.contains("sslmode=disable") {
                    hits.at(path);
                }
            })
        },
    },
];

/// Words under which a password, a token or a private key stands.
const NAMES: &str = "password passwd passphrase secret token api_key apikey access_key private_key credential";

/// Ends of keys that look like one and are not.
const NOT: &str = "_file _path _name _ref _header _enabled _expiry _limit _length _algorithm _count _env tokens _id";

/// Well-known passwords.
const KNOWN: &str = "postgres password passw0rd password1 password123 changeme change-me change_me changeit admin administrator \
    root secret textnlp test guest default 123456 12345678 minioadmin redis letmein qwerty grafana";

fn known(value: &str) -> bool {
    has(KNOWN, &value.to_ascii_lowercase())
}

fn names_a_password(key: &str) -> bool {
    let mut flat = String::with_capacity(key.len() + 4);
    // `apiKey`, `API-KEY` and `api.key` are one word.
    for (at, c) in key.char_indices() {
        if c.is_ascii_uppercase() && at > 0 && key[..at].ends_with(|p: char| p.is_ascii_lowercase()) {
            flat.push('_');
        }
        flat.push(if matches!(c, '-' | '.') { '_' } else { c.to_ascii_lowercase() });
    }
    NAMES.split(' ').any(|n| flat.contains(n)) && !NOT.split(' ').any(|n| flat.ends_with(n))
}

/// Whether it only says where the value is: a reference, a variable, a template, a mounted file.
fn refers(value: &str) -> bool {
    value.is_empty()
        || value.starts_with("secret:")
        || value.starts_with("${")
        || value.starts_with("$(")
        || value.starts_with('/')
        || value.starts_with("unix:")
        || value.contains("{{")
        || (value.starts_with('<') && value.ends_with('>'))
        || value.chars().all(|c| c == '*')
        // `${NAME:-…}` within: only what stands after `:-` would be a value.
        || (value.starts_with('$') && value.len() > 1 && value[1..].bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_'))
}

/// Finds every literal password to which this applies: under a telling key, as `NAME=value` in a list, as an `env` entry, in an
/// address.
fn each_password(document: &Document, hits: &mut Hits, is_found: impl Fn(&str) -> bool) {
    let mut look = |path: &str, value: &str| {
        if is_found(value) {
            hits.at(path);
        }
    };
    let mut both = |path: &str, value: &str| {
        // `${NAME:-fallback}`: the fallback is a literal.
        let fallback = value.strip_prefix("${").and_then(|v| v.strip_suffix('}')).and_then(|v| v.split_once(":-"));
        match fallback {
            Some((_, literal)) if !refers(literal) => look(path, literal),
            _ if !refers(value) => look(path, value),
            _ => {}
        }
    };
    let secret_object =
        document.of == DocumentKind::Kubernetes && document.value.get("kind").and_then(Value::as_str) == Some("Secret");
    walk(&document.value, &mut |path, key, value| {
        if let Some((name, literal)) = value.as_str().and_then(|text| text.split_once('=')) {
            // `- POSTGRES_PASSWORD=…` in a list.
            if names_a_password(name) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
                return both(path, literal);
            }
        }
        match value {
            Value::String(text) => {
                let in_secret = secret_object && (path.starts_with("data.") || path.starts_with("stringData."));
                if let Some(password) = in_address(text) {
                    both(path, password);
                } else if in_secret || (names_a_password(key) && !is_reference_list(document, path)) {
                    both(path, text);
                }
            }
            // `- { name: DB_PASSWORD, value: … }` of a pod.
            Value::Object(map) => {
                if let (Some(Value::String(name)), Some(Value::String(literal))) = (map.get("name"), map.get("value"))
                    && names_a_password(name)
                {
                    both(&format!("{path}.value"), literal);
                }
            }
            _ => {}
        }
    });
}

/// `secrets:` of a compose file and `secretName` of a pod name secrets, they do not hold any.
fn is_reference_list(document: &Document, path: &str) -> bool {
    match document.of {
        DocumentKind::Compose => path.starts_with("secrets.") || path.contains(".secrets"),
        DocumentKind::Kubernetes => ["secretName", "secretKeyRef", "secretRef", "imagePullSecrets", "tokenSecret"]
            .iter()
            .any(|n| path.contains(n)),
        _ => false,
    }
}

/// The password of `scheme://user:password@host`.
fn in_address(text: &str) -> Option<&str> {
    let (_, rest) = text.split_once("://")?;
    let (user, _) = rest.split(['/', '?', '#']).next()?.rsplit_once('@')?;
    user.split_once(':').map(|(_, password)| password).filter(|p| !p.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::findings;
    use super::*;

    fn places(text: &str) -> Vec<String> {
        let documents = Document::read("a.yaml", text.as_bytes()).unwrap();
        let found = findings(&documents).into_iter().filter(|f| f.id.starts_with("password-"));
        found.map(|f| format!("{} {}", f.id, f.place.trim_start_matches("a.yaml: "))).collect()
    }

    #[test]
    fn passwords_are_detected_in_every_notation() {
        for (text, wanted) in [
            ("database: { password: hunter2x }", "password-in-clear database.password"),
            ("database: { url: 'postgres://u:hunter2x@db/x' }", "password-in-clear database.url"),
            ("a: { adminPassword: admin }", "password-known a.adminPassword"),
            ("services: { d: { environment: ['A_TOKEN=abcdefgh1'] } }", "password-in-clear services.d.environment[0]"),
            (
                "services: { d: { environment: { P_PASSWORD: '${P:-postgres}' } } }",
                "password-known services.d.environment.P_PASSWORD",
            ),
            ("apiVersion: v1\nkind: Secret\nstringData: { a: hunter2x }", "password-in-clear stringData.a"),
            (
                "apiVersion: v1\nkind: Pod\nspec: { containers: [ { env: [ { name: DB_PASSWORD, value: hunter2x } ] } ] }",
                "password-in-clear spec.containers[0].env[0].value",
            ),
        ] {
            assert_eq!(places(text), [wanted], "{text}");
        }
    }

    #[test]
    fn password_references_and_related_settings_are_not_findings() {
        for text in [
            "database: { password: 'secret:env:DB', url: 'secret:file:/etc/db' }",
            "database: { password: '${DB}', password_file: /etc/p }",
            "server: { security: { api_key_header: X-API-Key, token_rate_limit: 10/s, api_keys_enabled: true } }",
            "server: { api: { max_tokens: 4096 } }\ngates: { tokens_min: 50 }",
            "secrets: { db: { file: ./db } }\nservices: { d: { secrets: [ db ], environment: { P_PASSWORD_FILE: /run/secrets/db } } }",
            "apiVersion: v1\nkind: Pod\nspec: { volumes: [ { secret: { secretName: a } } ] }",
            "database: { url: 'postgres://db.internal/x' }",
            "a: { password: '***' }\nb: { password: '{{ password }}' }",
        ] {
            assert_eq!(places(text), Vec::<String>::new(), "{text}");
        }
    }
}
