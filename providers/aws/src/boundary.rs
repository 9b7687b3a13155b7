//! The permissions boundary for the roles of a plan: the most that any of them needs
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_boundaries.html>). Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_provider::{PolicyDocument, PolicyFormat, PolicyRequest};

use crate::policy::MOST_CHARACTERS;

/// The only action of IAM that a role needs, for the service that is in [`LINKED`].
const LINKED_ROLE: &str = "iam:CreateServiceLinkedRole";
const LINKED: &str = "elasticloadbalancing.amazonaws.com";

/// The actions of AWS's managed policies. Those that only read and those on load balancers are patterns: AWS adds such actions the most
/// often (<https://docs.aws.amazon.com/aws-managed-policy/latest/reference/policy-list.html>).
const MANAGED: &[(&str, &[&str])] = &[
    (
        "AmazonEBSCSIDriverPolicy",
        &[
            "ec2:AttachVolume",
            "ec2:CopyVolumes",
            "ec2:CreateSnapshot",
            "ec2:CreateTags",
            "ec2:CreateVolume",
            "ec2:DeleteSnapshot",
            "ec2:DeleteTags",
            "ec2:DeleteVolume",
            "ec2:Describe*",
            "ec2:DetachVolume",
            "ec2:EnableFastSnapshotRestores",
            "ec2:LockSnapshot",
            "ec2:ModifyVolume",
        ],
    ),
    (
        "AmazonEC2ContainerRegistryPullOnly",
        &[
            "ecr:BatchGetImage",
            "ecr:BatchImportUpstreamImage",
            "ecr:GetAuthorizationToken",
            "ecr:GetDownloadUrlForLayer",
        ],
    ),
    (
        "AmazonEKSClusterPolicy",
        &[
            "autoscaling:Describe*",
            "autoscaling:UpdateAutoScalingGroup",
            "ec2:AttachVolume",
            "ec2:AuthorizeSecurityGroupIngress",
            "ec2:CreateRoute",
            "ec2:CreateSecurityGroup",
            "ec2:CreateTags",
            "ec2:CreateVolume",
            "ec2:DeleteNetworkInterface",
            "ec2:DeleteRoute",
            "ec2:DeleteSecurityGroup",
            "ec2:DeleteVolume",
            "ec2:Describe*",
            "ec2:DetachVolume",
            "ec2:ModifyInstanceAttribute",
            "ec2:ModifyVolume",
            "ec2:RevokeSecurityGroupIngress",
            "elasticloadbalancing:*",
            LINKED_ROLE,
            "kms:DescribeKey",
        ],
    ),
    ("AmazonEKSWorkerNodePolicy", &["ec2:Describe*", "eks-auth:AssumeRoleForPodIdentity", "eks:DescribeCluster"]),
    (
        "AmazonEKS_CNI_Policy",
        &[
            "ec2:AssignPrivateIpAddresses",
            "ec2:AttachNetworkInterface",
            "ec2:CreateNetworkInterface",
            "ec2:CreateTags",
            "ec2:DeleteNetworkInterface",
            "ec2:Describe*",
            "ec2:DetachNetworkInterface",
            "ec2:ModifyNetworkInterfaceAttribute",
            "ec2:UnassignPrivateIpAddresses",
        ],
    ),
];

/// How an operator uses the document.
const NOTE: &str = "create it with `aws iam create-policy --policy-name textnlp-boundary --policy-document file://FILE`, set \
                    `account.permission_boundary` to its ARN, and print the policies again; print it again for each change of the \
                    environment, and where it differs make it the default: `aws iam create-policy-version --set-as-default`";

/// The boundary; `None` for a plan without roles.
pub(crate) fn boundary(request: &PolicyRequest) -> Option<PolicyDocument> {
    let roles = request.resources.iter().filter(|one| one.kind.as_str() == "aws.role");
    let roles: Vec<&Value> = roles.map(|one| one.spec.as_value()).collect();
    if roles.is_empty() {
        return None;
    }
    let attached = roles.iter().flat_map(|role| role["managed"].as_array().into_iter().flatten());
    let attached: BTreeSet<&str> = attached.filter_map(|arn| arn.as_str()?.rsplit('/').next()).collect();
    let managed = MANAGED.iter().filter(|(name, _)| attached.contains(name));
    let mut managed: BTreeSet<&str> = managed.flat_map(|(_, actions)| actions.iter().copied()).collect();
    let mut statements = Vec::new();
    if managed.remove(LINKED_ROLE) {
        let mut linked = allow(&BTreeSet::from([LINKED_ROLE]));
        linked["Condition"] = json!({ "StringEquals": { "iam:AWSServiceName": [LINKED] } });
        statements.push(linked);
    }
    if !managed.is_empty() {
        statements.push(allow(&managed));
    }
    let inline = roles.iter().flat_map(|role| role["inline"].as_object().into_iter().flat_map(|all| all.values()));
    let inline: Vec<&Value> =
        inline.flat_map(|document| document["Statement"].as_array().into_iter().flatten()).collect();
    let own: BTreeMap<String, Value> =
        inline.iter().map(|one| statement(one)).map(|one| (one.to_string(), one)).collect();
    let document = |statements: Vec<Value>| json!({ "Version": "2012-10-17", "Statement": statements });
    let mut whole = document(statements.iter().cloned().chain(own.into_values()).collect());
    // A role has one boundary, which is one policy: where the resources do not fit, the actions bound it.
    if whole.to_string().len() > MOST_CHARACTERS {
        let actions = inline.iter().flat_map(|one| one["Action"].as_array().into_iter().flatten());
        let actions: BTreeSet<&str> = actions.filter_map(Value::as_str).collect();
        statements.push(allow(&actions));
        whole = document(statements);
    }
    Some(PolicyDocument {
        title: "AWS IAM permissions boundary".to_owned(),
        format: PolicyFormat::Json,
        text: serde_json::to_string_pretty(&whole).unwrap_or_default(),
        notes: vec![NOTE.to_owned()],
    })
}

fn allow(actions: &BTreeSet<&str>) -> Value {
    json!({ "Effect": "Allow", "Action": actions, "Resource": "*" })
}

/// A statement of a role beside those of other roles: the ids of statements are unique in a policy, and what an object that is not
/// there yet is called is not known.
fn statement(of_role: &Value) -> Value {
    let mut one = of_role.clone();
    let is_unknown = |value: &Value| value.to_string().contains("\"$output\"");
    if let Some(members) = one.as_object_mut() {
        members.remove("Sid");
        if members.get("Resource").is_some_and(is_unknown) {
            members.insert("Resource".to_owned(), json!("*"));
        }
        if members.get("Condition").is_some_and(is_unknown) {
            members.remove("Condition");
        }
    }
    one
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{PolicyResource, Spec};

    use super::*;

    fn statements(roles: &[Value]) -> Option<Vec<Value>> {
        let resource = |role: &Value| PolicyResource {
            id: "here/cluster/role".parse().unwrap(),
            kind: "aws.role".parse().unwrap(),
            cloud_id: None,
            spec: Spec::of(role),
            verbs: BTreeSet::new(),
        };
        let request = PolicyRequest {
            lineage: None,
            environment: "staging".parse().unwrap(),
            site: "here".parse().unwrap(),
            resources: roles.iter().map(resource).collect(),
        };
        let document: Value = serde_json::from_str(&boundary(&request)?.text).unwrap();
        document["Statement"].as_array().cloned()
    }

    #[test]
    fn boundary_is_the_union_of_what_roles_need() {
        let role = |managed: &[&str], statements: Value| json!({ "managed": managed, "inline": { "own": { "Statement": statements } } });
        let read = |resource: Value| json!({ "Sid": "Read", "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": resource });
        let puller = role(&["arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly"], json!([read(json!("a"))]));
        let reader = role(&[], json!([read(json!("a")), read(json!({ "$output": "here/models/bucket#arn" }))]));
        let found = statements(&[puller, reader]).unwrap();
        let read = |resource: &str| json!({ "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": resource });
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0]["Action"].as_array().map(Vec::len), Some(4));
        assert!(found.contains(&read("a")) && found.contains(&read("*")), "{found:?}");
        assert_eq!(statements(&[]), None);
    }

    #[test]
    fn boundary_that_would_be_too_long_is_bounded_by_actions() {
        let many: Vec<Value> = (0..200)
            .map(|number| json!({ "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": format!("arn:aws:s3:::bucket-{number}/*") }))
            .collect();
        let found = statements(&[json!({ "managed": [], "inline": { "models": { "Statement": many } } })]).unwrap();
        assert_eq!(found, [json!({ "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "*" })]);
    }
}
