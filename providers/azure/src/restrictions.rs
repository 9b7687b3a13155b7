//! What Azure Policy would refuse: it evaluates the documents of new objects, and changes nothing
//! (<https://learn.microsoft.com/rest/api/policy/policy-restrictions/check-at-subscription-scope>).

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};
use textnlp_cloud::document::last;
use textnlp_cloud::errors::shown;
use textnlp_cloud::preflight::unknown;
use textnlp_provider::{
    Declaration, Declare, EnvironmentName, Error, Lineage, OutputRef, Outputs, Ownership, PlannedObject, Problem,
    Recorded, ResourceId, Result, SecretRef, Spec, Tool, Wanted, Within,
};
use uuid::Uuid;

use crate::api::{Api, Call, RESOURCES, is_unregistered};
use crate::table::{self, Row};

const VERSION: &str = "2024-10-01";
const PROVIDER: &str = "Microsoft.PolicyInsights";
/// Objects that are evaluated at the same time: one takes seconds.
const AT_ONCE: usize = 24;
/// The place of what is not known.
const WHAT: &str = "Azure Policy";
/// Resource groups, and what policies call them (Azure/azure-policy#166).
const GROUPS: (&str, &str) = ("Microsoft.Resources/resourceGroups", "Microsoft.Resources/subscriptions/resourceGroups");

/// The policy assignments that would refuse a new object.
pub(crate) async fn denials(api: &Api, wanted: &[Wanted]) -> Vec<Problem> {
    let planned = planned(wanted);
    let documents = documents(api, &planned);
    let groups: BTreeSet<&str> = documents.iter().filter_map(|one| group_of(&one.id)).collect();
    let mut existing: BTreeSet<&str> = BTreeSet::new();
    let reads = groups.iter().map(|group| api.find(Call::get(*group, RESOURCES)));
    for (group, found) in groups.iter().zip(futures::future::join_all(reads).await) {
        match found {
            Ok(found) => existing.extend(found.map(|_| *group)),
            Err(error) => return vec![unknown(WHAT, &error)],
        }
    }
    let checks: Vec<_> = documents.iter().map(|one| evaluate(api, one, &existing)).collect();
    let found: Vec<_> = futures::stream::iter(checks).buffered(AT_ONCE).collect().await;
    let mut denials: BTreeMap<Denial, BTreeSet<&str>> = BTreeMap::new();
    let mut failed = None;
    for (one, found) in documents.iter().zip(found) {
        match found {
            Ok(all) => {
                for denial in all {
                    denials.entry(denial).or_default().insert(one.object.id.as_str());
                }
            }
            Err(error) => failed = failed.or(Some(error)),
        }
    }
    let problem = |(denial, places): (Denial, BTreeSet<&str>)| {
        let place = places.into_iter().collect::<Vec<_>>().join(", ");
        // Not a problem that ends `up`: an exemption, or an assignment that is not enforced, is not known to count here.
        Problem::warning(place, denial.cause, denial.fix)
    };
    denials.into_iter().map(problem).chain(failed.as_ref().map(not_evaluated)).collect()
}

/// Policies that could not be asked.
fn not_evaluated(error: &Error) -> Problem {
    if !is_unregistered(error) {
        return unknown(WHAT, error);
    }
    let cause = format!("the subscription has not registered {PROVIDER}, which tells what policies would refuse");
    let fix = format!("no action is needed if `up` succeeds, else `az provider register --namespace {PROVIDER}`");
    Problem::note(WHAT, cause, fix)
}

/// A policy assignment that refuses objects.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Denial {
    cause: String,
    fix: String,
}

/// An object of Resource Manager that a plan creates.
struct Document<'p> {
    object: &'p Recorded,
    row: &'static Row,
    id: String,
    /// The object as a check takes it.
    details: Value,
}

/// The objects of a plan as they would be recorded. Of outputs, those that only a creation shows are placeholders; secrets, and outputs
/// of objects that other providers create, are left out.
fn planned(wanted: &[Wanted]) -> Vec<Recorded> {
    let all: BTreeSet<&ResourceId> = wanted.iter().map(|one| &one.id).collect();
    let mut known: BTreeMap<ResourceId, Outputs> = BTreeMap::new();
    let mut planned = Vec::new();
    let mut waiting: Vec<&Wanted> = wanted.iter().collect();
    loop {
        let is_ready = |one: &&Wanted| {
            let mut needed = one.spec.outputs_needed().iter().map(|output| &output.resource);
            needed.all(|resource| known.contains_key(resource) || !all.contains(resource))
        };
        let (ready, rest): (Vec<&Wanted>, Vec<&Wanted>) = waiting.into_iter().partition(is_ready);
        if ready.is_empty() {
            return planned;
        }
        for one in ready {
            if let Ownership::External(id) = &one.ownership {
                let id = id.as_str();
                let outputs = [("id".to_owned(), json!(id)), ("name".to_owned(), json!(last(id)))];
                known.insert(one.id.clone(), Outputs::from(outputs));
                continue;
            }
            let spec = one.spec.resolve_known(|id| known.get(id));
            let new = Wanted { spec: Spec::of(&without_references(spec.as_value())), ..one.clone() };
            let object = table::row(&one.kind).and_then(|row| row.resource.planned(&new, Lineage(Uuid::nil())));
            let Some(PlannedObject { cloud_id, outputs, .. }) = object else {
                known.insert(one.id.clone(), Outputs::new());
                continue;
            };
            known.insert(one.id.clone(), outputs.clone());
            planned.push(Recorded {
                id: new.id,
                kind: new.kind,
                site: new.site,
                via: None,
                spec: new.spec,
                needs: Vec::new(),
                ownership: Ownership::Ours,
                schema: 1,
                cloud_id,
                created: None,
                outputs,
                protected: new.protected,
                tainted: false,
            });
        }
        waiting = rest;
    }
}

/// A value without its references to secrets and to outputs.
fn without_references(value: &Value) -> Value {
    if OutputRef::from_value(value).is_some() || SecretRef::from_value(value).is_some() {
        return Value::Null;
    }
    match value {
        Value::Array(items) => {
            Value::Array(items.iter().map(without_references).filter(|item| !item.is_null()).collect())
        }
        Value::Object(members) => {
            Value::Object(members.iter().map(|(name, member)| (name.clone(), without_references(member))).collect())
        }
        plain => plain.clone(),
    }
}

/// The documents of objects in the own subscription. Kinds without a declaration have none that a policy is about.
fn documents<'p>(api: &Api, planned: &'p [Recorded]) -> Vec<Document<'p>> {
    let Ok(environment) = EnvironmentName::new("any") else { return Vec::new() };
    let subscription = api.of_subscription("/");
    let is_own = |id: &str| id.get(..subscription.len()).is_some_and(|start| start.eq_ignore_ascii_case(&subscription));
    let mut documents = Vec::new();
    for object in planned {
        let Some(row) = table::row(&object.kind) else { continue };
        let request = Declare {
            tool: Tool::Bicep,
            environment: &environment,
            lineage: Lineage(Uuid::nil()),
            object,
            beside: planned,
            is_planned: true,
        };
        let Some(Ok(declared)) = row.resource.declare(Some(api), &request) else { continue };
        let own = declared.into_iter().filter(|one| is_own(&one.id));
        documents.extend(own.map(|one| Document { object, row, id: one.id.clone(), details: details(one) }));
    }
    documents
}

/// An object as a check takes it.
fn details(declaration: Declaration) -> Value {
    let Declaration { kind, body, within, .. } = declaration;
    let (arm, version) = kind.split_once('@').unwrap_or((kind.as_str(), ""));
    let arm = if arm == GROUPS.0 { GROUPS.1 } else { arm };
    let mut details = json!({ "resourceContent": body, "apiVersion": version });
    details["resourceContent"]["type"] = arm.into();
    if let Some(Within::Parent { id, .. } | Within::Scope(id)) = within {
        details["scope"] = id.into();
    }
    details
}

/// The id of the resource group that an object is in.
fn group_of(id: &str) -> Option<&str> {
    let (group, _) = id.split_once("/providers/")?;
    group.contains("/resourceGroups/").then_some(group)
}

/// The policy assignments that would refuse an object.
async fn evaluate(api: &Api, one: &Document<'_>, existing: &BTreeSet<&str>) -> Result<Vec<Denial>> {
    let (group, subscription) = (group_of(&one.id), api.of_subscription(""));
    // Assignments to a group count too, if it is there.
    let scope = group.filter(|group| existing.contains(group)).unwrap_or(&subscription);
    let path = format!("{scope}/providers/{PROVIDER}/checkPolicyRestrictions");
    let body = json!({ "resourceDetails": one.details, "includeAuditEffect": false });
    let answer = api.send(Call::new(Method::POST, path, VERSION).body(body).saying("check", WHAT)).await?.body;
    let all = answer["contentEvaluationResult"]["policyEvaluations"].as_array().into_iter().flatten();
    let denials: Vec<&Value> = all.filter(|evaluation| is_denial(evaluation)).collect();
    if denials.is_empty() {
        return Ok(Vec::new());
    }
    let is_in_new_group = group.is_some_and(|group| !existing.contains(group));
    // `None`: the end of its name follows from its creation, or from that of another object.
    let id = one.row.resource.id(&one.object.spec).filter(|id| id == one.object.cloud_id.as_str());
    // Policies leave existing objects as they are.
    if let Some(id) = id.filter(|_| !is_in_new_group)
        && let Ok(Some(_)) = one.row.resource.read(api, &id).await
    {
        return Ok(Vec::new());
    }
    let location = one.details["resourceContent"]["location"].as_str();
    let region = match one.object.id.component() {
        _ if location.is_none_or(|location| location == api.region) => "sites[].region",
        "models" => "storage.replicate_to",
        _ => "database.replica_region",
    };
    Ok(denials.into_iter().map(|evaluation| denial(evaluation, region)).collect())
}

fn is_denial(evaluation: &Value) -> bool {
    let is = |value: &Value, expected: &str| value.as_str().is_some_and(|text| text.eq_ignore_ascii_case(expected));
    is(&evaluation["evaluationResult"], "NonCompliant") && is(&evaluation["effectDetails"]["policyEffect"], "Deny")
}

/// `region` is the setting with the region of the object.
fn denial(evaluation: &Value, region: &str) -> Denial {
    let assignment = evaluation["policyInfo"]["policyAssignmentId"].as_str().unwrap_or_default();
    let details = &evaluation["evaluationDetails"];
    let path = |one: &Value| one["path"].as_str().or(one["expression"].as_str()).unwrap_or_default().to_owned();
    let is_met = |one: &&Value| one["result"].as_str().is_some_and(|result| result.eq_ignore_ascii_case("true"));
    let all = details["evaluatedExpressions"].as_array().into_iter().flatten();
    let met: Vec<&Value> = all.filter(is_met).filter(|one| path(one) != "type").collect();
    let compared = |one: &&Value| {
        let value = &one["expressionValue"];
        let value = if value.is_null() { "not set".to_owned() } else { value.to_string() };
        format!("`{}` is {value} ({} {})", path(one), one["operator"].as_str().unwrap_or_default(), one["targetValue"])
    };
    let reason = match details["reason"].as_str().map(str::trim) {
        Some(reason) if !reason.is_empty() => reason.to_owned(),
        _ if met.is_empty() => "Azure gives no reason".to_owned(),
        _ => met.iter().map(compared).collect::<Vec<_>>().join(" and "),
    };
    let settings: BTreeSet<String> = met.iter().filter_map(|one| setting(&path(one), region)).collect();
    let exemption = format!("ask the administrator of `{assignment}` for an exemption");
    let fix = match settings.is_empty() {
        true => exemption,
        false => format!("{}, or {exemption}", settings.into_iter().collect::<Vec<_>>().join(" and ")),
    };
    let cause = format!("the policy assignment `{}` would refuse it: {}", last(assignment), shown(&reason));
    Denial { cause, fix }
}

/// The setting that changes a field which a policy compares: `location`, `tags[owner]`, `tags['owner']`, `tags.owner`.
fn setting(field: &str, region: &str) -> Option<String> {
    if field.eq_ignore_ascii_case("location") {
        return Some(format!("choose another `{region}`"));
    }
    let (start, tag) = field.split_at_checked("tags".len())?;
    let tag = tag.trim_matches(['.', '[', ']', '\'', '"']);
    (start.eq_ignore_ascii_case("tags") && !tag.is_empty()).then(|| format!("set the tag `{tag}` in `tags`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As the examples of Azure's specification have them.
    #[test]
    fn only_a_denial_refuses_and_its_own_reason_is_shown() {
        let expression =
            json!({ "result": "True", "path": "tags['cost center']", "operator": "exists", "targetValue": "false" });
        let evaluation = |effect: &str, reason: &str| {
            json!({
                "policyInfo": { "policyAssignmentId": "/subscriptions/s/providers/Microsoft.Authorization/policyAssignments/a" },
                "evaluationResult": "NonCompliant",
                "evaluationDetails": { "evaluatedExpressions": [expression], "reason": reason },
                "effectDetails": { "policyEffect": effect },
            })
        };
        assert!(is_denial(&evaluation("deny", "")) && !is_denial(&evaluation("Audit", "")));
        let own = denial(&evaluation("Deny", "each object has a cost center"), "sites[].region");
        assert_eq!(own.cause, "the policy assignment `a` would refuse it: each object has a cost center");
        assert!(
            own.fix.starts_with("set the tag `cost center` in `tags`, or ask the administrator of `/"),
            "{}",
            own.fix
        );
        let compared = denial(&evaluation("Deny", " "), "sites[].region").cause;
        assert!(compared.ends_with("`tags['cost center']` is not set (exists \"false\")"), "{compared}");
        assert_eq!(setting("Microsoft.Storage/storageAccounts/networkAcls.defaultAction", "sites[].region"), None);
        assert_eq!(
            setting("Location", "database.replica_region").as_deref(),
            Some("choose another `database.replica_region`")
        );
    }

    #[test]
    fn a_document_has_no_references() {
        let spec = json!({ "a": { "$output": "main/a#id" }, "b": [{ "$secret": "main/p", "version": "1" }, 1], "c": { "d": 2 } });
        assert_eq!(without_references(&spec), json!({ "a": null, "b": [1], "c": { "d": 2 } }));
    }
}
