//! The texts of errors that several services share.

use serde_json::json;

use super::Service;
use super::cloud::Project;
use super::problem::Problem;

pub(crate) fn api_disabled(service: &Service, project: &Project) -> Problem {
    let number = &project.number;
    let message = format!(
        "{} has not been used in project {number} before or it is disabled. Enable it by visiting \
         https://console.developers.google.com/apis/api/{}/overview?project={number} then retry. If you enabled this API \
         recently, wait a few minutes for the action to propagate to our systems and retry.",
        service.title, service.api
    );
    let metadata = json!({ "service": service.api, "consumer": format!("projects/{number}") });
    Problem::new("PERMISSION_DENIED", message).reason("accessNotConfigured").info(
        "SERVICE_DISABLED",
        "googleapis.com",
        metadata,
    )
}

pub(crate) fn denied(service: &str, permission: &str, resource: &str) -> Problem {
    if service == "compute" {
        let message = format!("Required '{permission}' permission for '{resource}'");
        return Problem::new("PERMISSION_DENIED", message);
    }
    if service == "bigquery" {
        let project = resource.split('/').nth(1).unwrap_or_default();
        let message = format!(
            "Access Denied: Project {project}: User does not have {permission} permission in project {project}."
        );
        return Problem::new("PERMISSION_DENIED", message).reason("accessDenied");
    }
    let message = format!("Permission '{permission}' denied on resource '{resource}' (or it may not exist).");
    let metadata = json!({ "permission": permission, "resource": resource });
    let domain = if service == "iam" { "iam.googleapis.com" } else { "cloud.google.com" };
    Problem::new("PERMISSION_DENIED", message).info("IAM_PERMISSION_DENIED", domain, metadata)
}

pub(crate) fn rate_limited(service: &str, project: &str) -> Problem {
    let metadata = json!({ "service": format!("{service}.googleapis.com"), "consumer": format!("projects/{project}"),
        "quota_metric": format!("{service}.googleapis.com/default_requests"),
            "quota_limit": "DefaultRequestsPerMinutePerProject" });
    let message = format!(
        "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute' of service \
        '{service}.googleapis.com' for consumer 'project_number:{project}'."
    );
    // Compute Engine signals the same with 403.
    let code = if service == "compute" { "PERMISSION_DENIED" } else { "RESOURCE_EXHAUSTED" };
    Problem::new(code, message).reason("rateLimitExceeded").info("RATE_LIMIT_EXCEEDED", "googleapis.com", metadata)
}

pub(crate) fn not_found(service: &str, name: &str) -> Problem {
    let message = match service {
        "compute" => format!("The resource '{name}' was not found"),
        "sql" => "The Cloud SQL instance does not exist.".to_owned(),
        "container" => format!("Not found: {name}."),
        "cloudkms" => format!("Resource {name} not found."),
        _ => format!("Requested entity was not found: {name}"),
    };
    let problem = Problem::new("NOT_FOUND", message);
    if service == "sql" { problem.reason("instanceDoesNotExist") } else { problem }
}

pub(crate) fn already_exists(service: &str, name: &str) -> Problem {
    let last = name.rsplit('/').next().unwrap_or_default();
    let message = match service {
        "compute" => format!("The resource '{name}' already exists"),
        "container" => format!("Already exists: {name}."),
        "iam" => format!("Service account {last} already exists within project {name}."),
        "cloudkms" => format!("Resource {name} already exists."),
        _ => "the resource already exists".to_owned(),
    };
    Problem::new("ALREADY_EXISTS", message)
}

pub(crate) fn in_use(name: &str, user: &str) -> Problem {
    let message = format!("The resource '{name}' is already being used by '{user}'");
    Problem::with_reason(400, "resourceInUseByAnotherResource", message)
}

pub(crate) fn constraints_violated(project: &str, violated: &[(String, String)]) -> Problem {
    let texts = violated
        .iter()
        .map(|(constraint, why)| format!("Constraint constraints/{constraint} violated for project {project}. {why}"));
    let mut texts: Vec<String> = texts.collect();
    let first = texts.remove(0);
    let mut problem = Problem::with_reason(412, "conditionNotMet", first);
    problem.more = texts.into_iter().map(|text| ("conditionNotMet".to_owned(), text)).collect();
    problem
}

/// The names of a Compute Engine resource: <https://cloud.google.com/compute/docs/naming-resources>.
pub(crate) fn is_name(name: &str, most: usize) -> bool {
    let is_inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let length = 1..=most;
    length.contains(&name.len())
        && name.chars().all(is_inner)
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
}

/// The labels of all services: <https://cloud.google.com/resource-manager/docs/labels-overview#requirements>.
pub(crate) fn check_labels(labels: &serde_json::Value) -> Result<(), Problem> {
    let Some(labels) = labels.as_object() else { return Ok(()) };
    let is_inner = |c: char| (c.is_alphanumeric() && !c.is_uppercase()) || c == '_' || c == '-';
    let is_value = |text: &str| text.chars().count() <= 63 && text.chars().all(is_inner);
    for (key, value) in labels {
        let is_key = key.starts_with(|c: char| c.is_alphabetic()) && is_value(key);
        if !is_key || !value.as_str().is_some_and(is_value) {
            let message = format!("Invalid value for field 'labels': label {key:?} with value {value}.");
            return Err(Problem::with_reason(400, "invalid", message).info(
                "INVALID_FIELD_VALUE",
                "googleapis.com",
                json!({ "field": "labels" }),
            ));
        }
    }
    if labels.len() > 64 {
        return Err(Problem::with_reason(400, "invalid", "Too many labels: at most 64."));
    }
    Ok(())
}
