//! The least-privilege policy of a plan, as IAM reads it
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_grammar.html>). Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_cloud::policy::documents;
use textnlp_provider::{FilledPermission, PolicyDocument, PolicyRequest, PolicyResource};

use crate::{names, table};

/// The most characters of a managed policy, without white space
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html>).
pub(crate) const MOST_CHARACTERS: usize = 6_144;

/// What preflight and the search for forgotten objects read, besides the objects themselves.
pub(crate) const ALWAYS: &[&str] = &[
    "ec2:DescribeInstanceTypeOfferings",
    "ec2:DescribeInstances",
    "ec2:DescribeRegions",
    // Of the role that is signed in: the ARN of a session does not contain its path.
    "iam:GetRole",
    "iam:SimulatePrincipalPolicy",
    "servicequotas:GetServiceQuota",
    "servicequotas:GetAWSDefaultServiceQuota",
    "tag:GetResources",
];

/// The policies that allow exactly what a plan needs: several documents where one would be too long.
pub(crate) fn policies(request: &PolicyRequest, own: impl Fn(&str) -> Option<String>) -> Vec<PolicyDocument> {
    let needed = permissions(request, own);
    let framed = |statements: Vec<Value>| json!({ "Version": "2012-10-17", "Statement": statements });
    let mut documents = documents("AWS IAM policy", statements(&needed), MOST_CHARACTERS - FRAME, framed);
    if let Some(first) = documents.first_mut().filter(|_| is_unbounded(&needed)) {
        first.notes.push(UNBOUNDED.to_owned());
    }
    documents
}

/// The note on policies that let their holder create a role without a permissions boundary.
const UNBOUNDED: &str = "without a permissions boundary, an identity with these policies can create a role that may do everything: \
                         create the policy that `plan --policy --boundary` prints, set `account.permission_boundary` to its ARN, \
                         and print them again";

/// The actions that give a role its permissions.
const WIDENING: [&str; 3] = ["iam:AttachRolePolicy", "iam:CreateRole", "iam:PutRolePolicy"];

fn is_unbounded(needed: &BTreeSet<FilledPermission>) -> bool {
    let is_widening = |one: &FilledPermission| WIDENING.contains(&one.action.as_str());
    needed.iter().any(|one| is_widening(one) && !one.conditions.contains_key("iam:PermissionsBoundary"))
}

/// The characters of a document around its statements.
const FRAME: usize = 50;

/// The filled permissions of a request, with those that every plan needs.
pub(crate) fn permissions(request: &PolicyRequest, own: impl Fn(&str) -> Option<String>) -> BTreeSet<FilledPermission> {
    let any = |action: &&str| FilledPermission {
        action: (*action).to_owned(),
        resource: "*".to_owned(),
        conditions: BTreeMap::new(),
    };
    let always = ALWAYS.iter().map(any);
    let is_cluster = |resource: &&PolicyResource| resource.kind.as_str() == "aws.eks-cluster";
    let cluster =
        request.resources.iter().find(is_cluster).and_then(|resource| resource.spec.as_value()["name"].as_str());
    let own = |name: &str| match name {
        "$cluster" => cluster.map(str::to_owned),
        "$names" => Some(names::roles(&request.environment, &request.site)),
        _ => own(name),
    };
    request.permissions(table::kinds(), own).into_keys().chain(always).collect()
}

/// How the key of a condition starts that holds for each of several values
/// (<https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_condition-single-vs-multi-valued-context-keys.html>).
const ALL: &str = "ForAllValues:";

/// One statement for the actions of a service with the same resource and the same conditions.
fn statements(needed: &BTreeSet<FilledPermission>) -> Vec<Value> {
    let service = |action: &str| action.split_once(':').map_or(action, |(service, _)| service).to_owned();
    let mut groups: BTreeMap<_, BTreeSet<&str>> = BTreeMap::new();
    for FilledPermission { action, resource, conditions } in needed {
        groups.entry((service(action), resource, conditions)).or_default().insert(action);
    }
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    let groups = groups.into_iter().map(|((service, resource, conditions), actions)| {
        let count = counts.entry(service.clone()).or_default();
        *count += 1;
        // Sids have letters and digits only.
        let service: String = service.chars().filter(char::is_ascii_alphanumeric).collect();
        let mut statement = json!({
            "Sid": format!("{service}{count}"),
            "Effect": "Allow",
            "Action": actions,
            "Resource": listed(resource),
        });
        for (key, value) in conditions {
            let operator = match value.as_str() {
                "true" => "Bool",
                _ if value.contains('*') => "StringLike",
                _ => "StringEquals",
            };
            match key.strip_prefix(ALL) {
                Some(key) => statement["Condition"][format!("{ALL}{operator}")][key] = listed(value),
                None => statement["Condition"][operator][key] = listed(value),
            }
        }
        statement
    });
    groups.collect()
}

/// One value, or a list of those that spaces separate: neither ARNs nor the values of conditions have any.
fn listed(values: &str) -> Value {
    if values.contains(' ') { values.split_ascii_whitespace().collect() } else { json!(values) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn permission(action: &str, resource: &str, conditions: &[(&str, &str)]) -> FilledPermission {
        FilledPermission {
            action: action.to_owned(),
            resource: resource.to_owned(),
            conditions: conditions.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
        }
    }

    #[test]
    fn policies_that_create_roles_without_a_boundary_have_a_note() {
        let bounded = [("iam:PermissionsBoundary", "arn:aws:iam::123456789012:policy/most")];
        for (action, conditions, expected) in [
            ("iam:CreateRole", &[][..], true),
            ("iam:CreateRole", &bounded[..], false),
            ("iam:PutRolePolicy", &[][..], true),
            ("iam:GetRole", &[][..], false),
        ] {
            let needed = BTreeSet::from([permission(action, "*", conditions)]);
            assert_eq!(is_unbounded(&needed), expected, "{action} {conditions:?}");
        }
    }

    #[test]
    fn actions_with_the_same_resource_and_conditions_share_a_statement() {
        let ours = [("aws:ResourceTag/textnlp-lineage", "1-2-3")];
        let needed = BTreeSet::from([
            permission("ec2:DescribeVpcs", "*", &[]),
            permission("ec2:DescribeSubnets", "*", &[]),
            permission("ec2:DeleteVpc", "*", &ours),
            permission("s3:CreateBucket", "arn:aws:s3:::models", &[]),
            permission(
                "route53:ChangeResourceRecordSets",
                "zone",
                &[("ForAllValues:names", "a *.a"), ("types", "A TXT")],
            ),
        ]);
        let statements = statements(&needed);
        assert_eq!(
            statements,
            [
                json!({ "Sid": "ec21", "Effect": "Allow", "Action": ["ec2:DescribeSubnets", "ec2:DescribeVpcs"], "Resource": "*" }),
                json!({ "Sid": "ec22", "Effect": "Allow", "Action": ["ec2:DeleteVpc"], "Resource": "*",
                        "Condition": { "StringEquals": { "aws:ResourceTag/textnlp-lineage": "1-2-3" } } }),
                json!({ "Sid": "route531", "Effect": "Allow", "Action": ["route53:ChangeResourceRecordSets"], "Resource": "zone",
                        "Condition": { "ForAllValues:StringLike": { "names": ["a", "*.a"] }, "StringEquals": { "types": ["A", "TXT"] } } }),
                json!({ "Sid": "s31", "Effect": "Allow", "Action": ["s3:CreateBucket"], "Resource": "arn:aws:s3:::models" }),
            ]
        );
    }
}
