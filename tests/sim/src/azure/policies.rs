//! Azure Policy: assignments of built-in policies with the effect Deny.

use serde_json::{Value, json};

use super::cloud::{Cloud, text};
use super::kinds::{Answer, Call, Special, kind_of, row};
use super::problem::{Problem, bad};
use crate::{Behaviour, Source};

pub(crate) const SPECIALS: &[Special] = &[Special {
    method: "POST",
    path: "Microsoft.PolicyInsights/checkPolicyRestrictions",
    version: "2024-10-01",
    request: "",
    answer: "",
    handler: check,
}];

/// Resource groups, and what policies call them.
const GROUPS: (&str, &str) = ("Microsoft.Resources/resourceGroups", "Microsoft.Resources/subscriptions/resourceGroups");

pub(crate) const LEDGER: &[Behaviour] = &[
    rule(
        "an assignment that refuses a write is named in its error: 403 RequestDisallowedByPolicy",
        Source::Report("Azure/azure-policy#700"),
    ),
    rule("a policy on tags refuses groups", Source::Report("Azure/azure-cli#7573")),
    rule("a policy on locations lets through what is global", Source::Report("rancher/rancher#29086")),
    rule(
        "a policy on tags or locations of resources is about types that have both, and not about groups",
        Source::Documentation(
            "https://learn.microsoft.com/azure/governance/policy/concepts/definition-structure-basics#resource-manager-modes",
        ),
    ),
    rule(
        "a check evaluates the content of a resource by the assignments to its scope and above, and changes nothing",
        Source::Documentation(
            "https://learn.microsoft.com/rest/api/policy/policy-restrictions/check-at-resource-group-scope",
        ),
    ),
    rule(
        "the action of a check is a read",
        Source::Documentation(
            "https://learn.microsoft.com/azure/role-based-access-control/permissions/management-and-governance",
        ),
    ),
];

const fn rule(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "Microsoft.PolicyInsights", what, source }
}

/// A built-in policy with its parameter.
#[derive(Clone, Debug)]
pub enum Policy {
    /// Resources are in one of these regions.
    AllowedLocations(Vec<String>),
    /// Resources have this tag.
    RequiredTag(String),
    /// Resource groups have this tag, those of AKS too.
    RequiredGroupTag(String),
}

impl Policy {
    fn definition(&self) -> (&'static str, &'static str) {
        match self {
            Self::AllowedLocations(_) => ("Allowed locations", "e56962a6-4747-49cd-b67b-bf8b01975c4c"),
            Self::RequiredTag(_) => ("Require a tag on resources", "871b6d14-10aa-478d-b590-94f262ecfa99"),
            Self::RequiredGroupTag(_) => ("Require a tag on resource groups", "96670d01-0a4d-4649-9c89-2d3abc0a5025"),
        }
    }

    fn definition_id(&self) -> String {
        format!("/providers/Microsoft.Authorization/policyDefinitions/{}", self.definition().1)
    }

    /// The expressions by which it refuses a resource of a type; none if it does not.
    fn refusal(&self, kind: &str, content: &Value) -> Vec<Value> {
        let is_group = kind.eq_ignore_ascii_case(GROUPS.0);
        let is_indexed = !is_group && content["location"].is_string() && row(kind).is_some_and(|kind| kind.tags > 0);
        let field = |path: &str, value: Value, operator: &str, target: Value| {
            json!({ "result": "True", "expressionKind": "Field", "expression": path, "path": path,
                "expressionValue": value, "operator": operator, "targetValue": target })
        };
        let location = text(content, "/location").replace(' ', "").to_lowercase();
        match self {
            Self::AllowedLocations(allowed) if is_indexed && location != "global" && !allowed.contains(&location) => {
                vec![
                    field("location", json!(location), "NotIn", json!(allowed)),
                    field("location", json!(location), "NotEquals", json!("global")),
                ]
            }
            Self::RequiredTag(tag) if is_indexed && content["tags"][tag].is_null() => {
                vec![field(&format!("tags[{tag}]"), Value::Null, "Exists", json!("false"))]
            }
            Self::RequiredGroupTag(tag) if is_group && content["tags"][tag].is_null() => vec![
                field("type", json!(GROUPS.1), "Equals", json!(GROUPS.1)),
                field(&format!("tags[{tag}]"), Value::Null, "Exists", json!("false")),
            ],
            _ => Vec::new(),
        }
    }
}

/// The assignments to a scope and above that refuse a resource: their ids, policies and expressions.
fn refusals<'c>(cloud: &'c Cloud, at: &str, kind: &str, content: &Value) -> Vec<(&'c str, &'c Policy, Vec<Value>)> {
    let at = format!("{}/", at.to_lowercase());
    let is_around = |assignment: &str| {
        let scope = assignment.rsplit_once("/providers/").map(|(scope, _)| scope.to_lowercase());
        scope.is_some_and(|scope| at.starts_with(&format!("{scope}/")))
    };
    let all = cloud.policies.iter().filter(|(assignment, _)| is_around(assignment));
    let all = all.map(|(assignment, policy)| (assignment.as_str(), policy, policy.refusal(kind, content)));
    all.filter(|(.., expressions)| !expressions.is_empty()).collect()
}

/// The error of a write that an assignment refuses.
pub(crate) fn disallowed(cloud: &Cloud, id: &str, content: &Value) -> Option<Problem> {
    let one = |(assignment, policy, _): (&str, &Policy, Vec<Value>)| {
        json!({ "policyAssignment": { "name": assignment.rsplit('/').next(), "id": assignment },
            "policyDefinition": { "name": policy.definition().0, "id": policy.definition_id() } })
    };
    let all: Vec<Value> = refusals(cloud, id, &kind_of(id), content).into_iter().map(one).collect();
    let name = id.rsplit('/').next().filter(|_| !all.is_empty())?;
    let message = format!("Resource '{name}' was disallowed by policy. Policy identifiers: '{}'.", Value::Array(all));
    Some(Problem::new(403, "RequestDisallowedByPolicy", message).target(name))
}

fn check(cloud: &mut Cloud, call: &Call) -> Result<Answer, Problem> {
    let content = call.body.pointer("/resourceDetails/resourceContent").filter(|content| content.is_object());
    let content = content.ok_or_else(|| bad("InvalidRequestContent", "The request has no resource content."))?;
    let kind = text(content, "/type");
    if kind.is_empty() || text(&call.body, "/resourceDetails/apiVersion").is_empty() {
        return Err(bad("InvalidRequestContent", "The resource has no type, or the request no version of it."));
    }
    let kind = if kind.eq_ignore_ascii_case(GROUPS.1) { GROUPS.0 } else { kind };
    let scope = call.key.rsplit_once("/providers/").map_or("", |(scope, _)| scope);
    let one = |(assignment, policy, expressions): (&str, &Policy, Vec<Value>)| {
        json!({
            "policyInfo": { "policyDefinitionId": policy.definition_id(), "policyAssignmentId": assignment },
            "evaluationResult": "NonCompliant",
            "evaluationDetails": { "evaluatedExpressions": expressions },
            "effectDetails": { "policyEffect": "Deny" },
        })
    };
    let all: Vec<Value> = refusals(cloud, scope, kind, content).into_iter().map(one).collect();
    Ok(Answer::ok(json!({ "fieldRestrictions": [], "contentEvaluationResult": { "policyEvaluations": all } })))
}
