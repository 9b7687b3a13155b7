//! What a failed call means for whoever made it.

use std::time::Duration;

use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use textnlp_provider::{Error, Sort};

use crate::table::Row;

/// What is being done to what: in the words of messages, of paths and of permissions.
#[derive(Clone, Copy)]
pub(crate) struct Call<'a> {
    /// In the present tense: `apply`, `read`.
    pub(crate) action: &'static str,
    /// The verb that a role must allow.
    pub(crate) verb: &'static str,
    pub(crate) row: &'static Row,
    /// `None` for all namespaces, or for a kind that lives in none.
    pub(crate) namespace: Option<&'a str>,
    /// `None` for all objects.
    pub(crate) name: Option<&'a str>,
}

impl Call<'_> {
    /// The path of its object, or of all of them.
    pub(crate) fn path(&self) -> String {
        let root = self.row.path(self.namespace);
        self.name.map_or(root.clone(), |name| format!("{root}/{name}"))
    }

    /// An error of this call without a reason yet.
    pub(crate) fn error(&self, sort: Sort) -> Error {
        Error::new(sort, self.action, self.subject())
    }

    /// `deployments.apps web in namespace shop`.
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

/// What must be allowed on one kind.
pub(crate) struct Rule<'a> {
    pub(crate) group: &'a str,
    pub(crate) plural: &'a str,
    pub(crate) verbs: Vec<&'a str>,
}

impl Rule<'_> {
    pub(crate) fn of<'a>(row: &'a Row, verbs: Vec<&'a str>) -> Rule<'a> {
        Rule { group: row.group, plural: row.plural, verbs }
    }

    /// `deployments.apps`.
    pub(crate) fn resource(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }
}

/// Rules that are missing, as a person adds them: a role in YAML.
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

/// No answer came.
pub(crate) fn transport(call: &Call<'_>, source: kube::Error) -> Error {
    let (sort, hint) = match &source {
        kube::Error::Auth(_) => (
            Sort::Denied,
            Some("sign in again: the kubeconfig's credential could not be had; `kubectl version` shows the same"),
        ),
        _ => (Sort::Unavailable, None),
    };
    let error = call.error(sort).because(source);
    match hint {
        Some(hint) => error.hint(hint),
        None => error,
    }
}

/// The API server answered, and refused.
pub(crate) fn refusal(call: &Call<'_>, status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Error {
    let said: Value = serde_json::from_slice(body).unwrap_or(Value::Null);
    let reason = said["reason"].as_str().unwrap_or_default();
    let message = match said["message"].as_str() {
        Some(message) => message.to_owned(),
        None => String::from_utf8_lossy(&body[..body.len().min(500)]).trim().to_owned(),
    };
    let after = headers.get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok()).map(Duration::from_secs);
    let causes = || said["details"]["causes"].as_array().into_iter().flatten();
    let because_of = |reason: &str| causes().any(|cause| cause["reason"] == reason);
    let code = if reason.is_empty() { status.as_u16().to_string() } else { reason.to_owned() };
    let owned = because_of("FieldManagerConflict");
    let sort = match status.as_u16() {
        401 => Sort::Denied,
        // The namespace goes; what is wanted in it comes after it.
        403 | 409 if because_of("NamespaceTerminating") => Sort::Conflict,
        403 if message.contains("exceeded quota") => Sort::Quota,
        403 => Sort::Denied,
        // No document says what is not there: the path is not served, as that of a kind whose definition was added a moment ago.
        404 if said.is_null() && call.verb == "patch" && call.row.brought_by.is_some() => Sort::Unavailable,
        404 => Sort::NotFound,
        405 | 406 | 413 | 415 | 422 => Sort::Invalid,
        409 if owned => Sort::Denied,
        409 if reason == "AlreadyExists" => Sort::Exists,
        409 | 410 => Sort::Conflict,
        429 => Sort::Throttled { after },
        // A webhook that names no status of its own answers with this one.
        400 if message.starts_with("admission webhook ") => Sort::Denied,
        400 => Sort::Invalid,
        // What fits no schema is answered as if the server had failed.
        500 if message.starts_with("failed to create typed patch object")
            || message.starts_with("failed to convert new object") =>
        {
            Sort::Invalid
        }
        _ => Sort::Unavailable,
    };
    let hint = if owned {
        Some(conflict(causes()))
    } else if status == StatusCode::UNAUTHORIZED {
        Some("sign in again: the credential of the kubeconfig is not valid any more".to_owned())
    } else if status == StatusCode::FORBIDDEN && message.contains(" cannot ") {
        let rules = [Rule::of(call.row, vec![call.verb])];
        let namespace = call.namespace.filter(|_| call.row.namespaced);
        Some(format!(
            "whoever administers the cluster adds this, and binds it to you:\n{}",
            missing_rules(namespace, &rules)
        ))
    } else if status == StatusCode::NOT_FOUND && sort == Sort::Unavailable {
        call.row.brought_by.map(|who| format!("{who} brings this kind to a cluster; is it still installed?"))
    } else if sort == Sort::Quota {
        Some("raise the quota of the namespace, or ask for less".to_owned())
    } else {
        None
    };
    let mut error = call.error(sort).because(message).code(code);
    error.request_id = headers.get("audit-id").and_then(|value| value.to_str().ok()).map(str::to_owned);
    error.hint = hint;
    error
}

/// Who owns what we wanted to set, field by field.
fn conflict<'a>(causes: impl Iterator<Item = &'a Value>) -> String {
    let mut lines = vec![
        "these fields belong to others; take them out of the environment, or have their owners give them up:"
            .to_owned(),
    ];
    for cause in causes.filter(|cause| cause["reason"] == "FieldManagerConflict") {
        let field = cause["field"].as_str().unwrap_or_default().trim_start_matches('.');
        let owner = cause["message"].as_str().unwrap_or_default().trim_start_matches("conflict with ");
        lines.push(format!("  {field}: {owner}"));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::ROWS;

    fn check(status: u16, body: Value, sort: Sort, hint: Option<&str>) {
        let row = ROWS.iter().find(|row| row.kind == "Deployment").expect("a row");
        let call = Call { action: "apply", verb: "patch", row, namespace: Some("shop"), name: Some("web") };
        let mut headers = HeaderMap::new();
        headers.insert("retry-after", "7".parse().expect("a header"));
        let error =
            refusal(&call, StatusCode::from_u16(status).expect("a status"), &headers, body.to_string().as_bytes());
        assert_eq!(error.sort, sort, "{body}");
        match hint {
            Some(part) => assert!(error.hint.as_deref().is_some_and(|hint| hint.contains(part)), "{:?}", error.hint),
            None => assert_eq!(error.hint, None),
        }
    }

    #[test]
    fn refusals_are_sorted_by_what_can_be_done() {
        check(429, json!({}), Sort::Throttled { after: Some(Duration::from_secs(7)) }, None);
        check(500, json!({ "message": "failed calling webhook" }), Sort::Unavailable, None);
        check(
            500,
            json!({ "message": "failed to create typed patch object (a/b; v1): .spec.x: field not declared" }),
            Sort::Invalid,
            None,
        );
        check(410, json!({ "reason": "Expired" }), Sort::Conflict, None);
        check(409, json!({ "reason": "AlreadyExists" }), Sort::Exists, None);
        check(409, json!({ "reason": "Conflict" }), Sort::Conflict, None);
        check(422, json!({ "reason": "Invalid" }), Sort::Invalid, None);
        check(404, json!({ "reason": "NotFound" }), Sort::NotFound, None);
        check(401, json!({ "reason": "Unauthorized" }), Sort::Denied, Some("sign in again"));
        check(403, json!({ "message": "pods is forbidden: exceeded quota: q" }), Sort::Quota, Some("raise the quota"));
        let terminating =
            json!({ "details": { "causes": [{ "reason": "NamespaceTerminating" }] }, "message": "forbidden" });
        check(403, terminating, Sort::Conflict, None);
        let rbac = "deployments.apps \"web\" is forbidden: User \"u\" cannot patch resource \"deployments\"";
        check(403, json!({ "message": rbac }), Sort::Denied, Some("verbs:\n  - patch"));
        for status in [400, 403] {
            check(status, json!({ "message": "admission webhook \"w\" denied the request: no" }), Sort::Denied, None);
        }
        check(400, json!({ "reason": "BadRequest", "message": "strict decoding error" }), Sort::Invalid, None);
        let owned = json!({ "reason": "Conflict", "details": { "causes": [{
            "reason": "FieldManagerConflict", "field": ".spec.replicas", "message": "conflict with \"hpa\" using apps/v1" }] } });
        check(409, owned, Sort::Denied, Some("spec.replicas: \"hpa\" using apps/v1"));
    }
}
