//! Mapping of failed calls to the contract's errors.

use http::{HeaderMap, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use textnlp_net::retry::parse_retry_after;
use textnlp_provider::connect::NAME_NOT_FOUND;
use textnlp_provider::{ContestedField, Error, ErrorKind};

use crate::table::Row;

/// One call: the action, and the object it concerns. Messages, paths and missing permissions are derived from it.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// The action in the present tense, for messages: `apply`, `read`.
    pub(crate) action: &'static str,
    /// The RBAC verb.
    pub(crate) verb: &'static str,
    pub(crate) row: &'static Row,
    /// `None` for all namespaces, or for a cluster-scoped kind.
    pub(crate) namespace: Option<&'a str>,
    /// `None` for all objects.
    pub(crate) name: Option<&'a str>,
}

impl Call<'_> {
    /// The path of the object, or of the collection.
    pub(crate) fn path(&self) -> String {
        let root = self.row.path(self.namespace);
        self.name.map_or(root.clone(), |name| format!("{root}/{name}"))
    }

    /// An error of this call without a cause yet.
    pub(crate) fn error(&self, sort: ErrorKind) -> Error {
        Error::new(sort, self.action, self.subject())
    }

    /// The subject of messages, such as `deployments.apps web in namespace shop`.
    pub(crate) fn subject(&self) -> String {
        let mut subject = self.row.resource();
        if let Some(name) = self.name {
            subject = format!("{subject} {name}");
        }
        match self.namespace.filter(|_| self.row.namespaced) {
            Some(namespace) => format!("{subject} in namespace {namespace}"),
            None => subject,
        }
    }
}

/// A permission that is needed on one kind.
pub(crate) struct Rule<'a> {
    pub(crate) group: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) verbs: Vec<&'a str>,
}

impl Rule<'_> {
    pub(crate) fn of<'a>(row: &'a Row, verbs: Vec<&'a str>) -> Rule<'a> {
        Rule { group: row.group, plural: row.plural, verbs }
    }

    /// The resource name, such as `deployments.apps`.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// The missing rules as a role in YAML, for the operator to add.
pub(crate) fn missing_rules(namespace: Option<&str>, rules: &[Rule<'_>]) -> String {
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| json!({ "apiGroups": [rule.group], "resources": [rule.plural], "verbs": rule.verbs }))
        .collect();
    let (kind, metadata) = match namespace {
        Some(namespace) => ("Role", json!({ "name": "textnlp-deploy", "namespace": namespace })),
        None => ("ClusterRole", json!({ "name": "textnlp-deploy" })),
    };
    let role = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": kind,
        "metadata": metadata,
        "rules": rules,
    });
    serde_yaml::to_string(&role).unwrap_or_else(|_| role.to_string())
}

/// The error for a call without an answer.
pub(crate) fn transport(call: &Call<'_>, source: kube::Error) -> Error {
    let (sort, hint) = match &source {
        kube::Error::Auth(_) => (
            ErrorKind::Denied,
            Some(
                "sign in again: the credential of the kubeconfig could not be obtained; `kubectl version` shows the same error",
            ),
        ),
        _ => (ErrorKind::Unavailable, None),
    };
    let is_unknown = is_unknown_name(&source);
    let mut error = call.error(sort).because(source);
    if is_unknown {
        error = error.code(NAME_NOT_FOUND);
    }
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// Whether the name of the API server was not found. The resolver of the standard library tells it by its words only.
fn is_unknown_name(error: &(dyn std::error::Error + 'static)) -> bool {
    std::iter::successors(Some(error), |error| (*error).source())
        .any(|error| error.to_string().starts_with("failed to lookup address information"))
}

/// The error for a call that the API server refused.
pub(crate) fn refusal(call: &Call<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let body_json: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let reason = body_json["reason"].as_str().unwrap_or_default();
    let message = match body_json["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&body[..body.len().min(500)]).trim().to_owned(),
    };
    let after = headers.get("retry-after").and_then(|value| parse_retry_after(value.to_str().ok()?, Timestamp::now()));
    let causes = || body_json["details"]["causes"].as_array().into_iter().flatten();
    let because_of = |reason: &str| causes().any(|cause| cause["reason"] == reason);
    let code = if reason.is_empty() { status.as_u16().to_string() } else { reason.to_owned() };
    let contested = contested(causes());
    let owned = !contested.is_empty();
    let sort = match status.as_u16() {
        401 => ErrorKind::Denied,
        // The namespace is terminating: objects can be created once it is gone.
        403 | 409 if because_of("NamespaceTerminating") => ErrorKind::Conflict,
        403 if message.contains("exceeded quota") => ErrorKind::Quota,
        403 => ErrorKind::Denied,
        // A 404 without a Status object means an unknown path. The API server returns it for a kind whose
        // CustomResourceDefinition was created seconds ago.
        404 if body_json.is_null() && call.verb == "patch" && call.row.brought_by.is_some() => ErrorKind::Unavailable,
        404 => ErrorKind::NotFound,
        405 | 406 | 413 | 415 | 422 => ErrorKind::Invalid,
        409 if owned => ErrorKind::Denied,
        409 if reason == "AlreadyExists" => ErrorKind::Exists,
        409 | 410 => ErrorKind::Conflict,
        429 => ErrorKind::Throttled { after },
        // A webhook that returns no status code is reported with 400.
        400 if message.starts_with("admission webhook ") => ErrorKind::Denied,
        400 => ErrorKind::Invalid,
        // A schema violation in server-side apply is reported as a server error.
        500 if message.starts_with("failed to create typed patch object")
            || message.starts_with("failed to convert new object") =>
        {
            ErrorKind::Invalid
        }
        _ => ErrorKind::Unavailable,
    };
    let hint = if owned {
        Some(conflict(&contested))
    } else if status == StatusCode::UNAUTHORIZED {
        Some("sign in again: the credential of the kubeconfig is no longer valid".to_owned())
    } else if status == StatusCode::FORBIDDEN && message.contains(" cannot ") {
        let rules = [Rule::of(call.row, vec![call.verb])];
        let namespace = call.namespace.filter(|_| call.row.namespaced);
        Some(format!(
            "ask a cluster administrator to add this role and bind it to you:\n{}",
            missing_rules(namespace, &rules)
        ))
    } else if status == StatusCode::NOT_FOUND && sort == ErrorKind::Unavailable {
        call.row.brought_by.map(|who| format!("{who} provides this kind: check that it is still installed"))
    } else if sort == ErrorKind::Quota {
        Some("raise the quota of the namespace, or request less".to_owned())
    } else {
        None
    };
    let mut error = call.error(sort).because(message).code(code);
    error.request_id = headers.get("audit-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    error.contested = contested;
    error.hint = hint;
    error
}

/// The fields of a server-side apply conflict, with their owners.
fn contested<'a>(causes: impl Iterator<Item = &'a Value>) -> Vec<ContestedField> {
    let text = |value: &Value, prefix: &str| value.as_str().unwrap_or_default().trim_start_matches(prefix).to_owned();
    causes
        .filter(|cause| cause["reason"] == "FieldManagerConflict")
        .map(|cause| ContestedField {
            path: text(&cause["field"], "."),
            owner: text(&cause["message"], "conflict with "),
        })
        .collect()
}

fn conflict(contested: &[ContestedField]) -> String {
    let mut text =
        "other field managers own these fields; remove them from the environment, or have their owners release them:"
            .to_owned();
    for ContestedField { path, owner } in contested {
        text.push_str(&format!("\n  {path}: {owner}"));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::table::ROWS;

    fn check(status: u16, body: Value, sort: ErrorKind, hint: Option<&str>) -> Error {
        let row = ROWS.iter().find(|row| row.kind == "Deployment").expect("a row");
        let call = Call { action: "apply", verb: "patch", row, namespace: Some("shop"), name: Some("web") };
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().expect("a header"));
        let error =
            refusal(&call, StatusCode::from_u16(status).expect("a status"), &headers, body.to_string().as_bytes());
        assert_eq!(error.kind, sort, "{body}");
        match hint {
            Some(part) => assert!(error.hint.as_deref().is_some_and(|hint| hint.contains(part)), "{:?}", error.hint),
            None => assert_eq!(error.hint, None),
        }
        error
    }

    #[test]
    fn a_name_that_is_not_found_has_a_code() {
        let why = std::io::Error::other("failed to lookup address information: Name or service not known");
        let row = ROWS.iter().find(|row| row.kind == "Deployment").expect("a row");
        let call = Call { action: "apply", verb: "patch", row, namespace: Some("shop"), name: Some("web") };
        let unknown = transport(&call, kube::Error::Service(Box::new(why)));
        assert_eq!((unknown.kind, unknown.code.as_deref()), (ErrorKind::Unavailable, Some(NAME_NOT_FOUND)));
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        assert_eq!(transport(&call, kube::Error::Service(Box::new(refused))).code, None);
    }

    #[test]
    fn api_errors_are_classified_by_remedy() {
        check(429, json!({}), ErrorKind::Throttled { after: Some(Duration::from_secs(7)) }, None);
        check(500, json!({ "message": "failed calling webhook" }), ErrorKind::Unavailable, None);
        check(
            500,
            json!({ "message": "failed to create typed patch object (a/b; v1): .spec.x: field not declared" }),
            ErrorKind::Invalid,
            None,
        );
        check(410, json!({ "reason": "Expired" }), ErrorKind::Conflict, None);
        check(409, json!({ "reason": "AlreadyExists" }), ErrorKind::Exists, None);
        check(409, json!({ "reason": "Conflict" }), ErrorKind::Conflict, None);
        check(422, json!({ "reason": "Invalid" }), ErrorKind::Invalid, None);
        check(404, json!({ "reason": "NotFound" }), ErrorKind::NotFound, None);
        check(401, json!({ "reason": "Unauthorized" }), ErrorKind::Denied, Some("sign in again"));
        check(
            403,
            json!({ "message": "pods is forbidden: exceeded quota: q" }),
            ErrorKind::Quota,
            Some("raise the quota"),
        );
        let terminating =
            json!({ "details": { "causes": [{ "reason": "NamespaceTerminating" }] }, "message": "forbidden" });
        check(403, terminating, ErrorKind::Conflict, None);
        let rbac = "deployments.apps \"web\" is forbidden: User \"u\" cannot patch resource \"deployments\"";
        check(403, json!({ "message": rbac }), ErrorKind::Denied, Some("verbs:\n  - patch"));
        for status in [400, 403] {
            check(
                status,
                json!({ "message": "admission webhook \"w\" denied the request: no" }),
                ErrorKind::Denied,
                None,
            );
        }
        check(400, json!({ "reason": "BadRequest", "message": "strict decoding error" }), ErrorKind::Invalid, None);
        let owned = json!({ "reason": "Conflict", "details": { "causes": [{
            "reason": "FieldManagerConflict", "field": ".spec.replicas", "message": "conflict with \"hpa\" using apps/v1" }] } });
        let error = check(409, owned, ErrorKind::Denied, Some("spec.replicas: \"hpa\" using apps/v1"));
        let field = ContestedField { path: "spec.replicas".to_owned(), owner: "\"hpa\" using apps/v1".to_owned() };
        assert_eq!(error.contested, [field]);
    }
}
