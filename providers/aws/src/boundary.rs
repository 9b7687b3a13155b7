//! The permissions boundary for the roles of a plan: the most that any of them needs
//! (<https://docs.aws.amazon.com/IAM/latest/UserGuide/access_policies_boundaries.html>). Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};
use textnlp_provider::{PolicyDocument, PolicyFormat, PolicyRequest};

use crate::policy::MOST_CHARACTERS;
use crate::tags::LINEAGE;

/// The only action of IAM that a role needs, for the service that is in [`LINKED`].
const LINKED_ROLE: &str = "iam:CreateServiceLinkedRole";
const LINKED: &str = "elasticloadbalancing.amazonaws.com";

/// The actions of AWS's managed policies, without those of [`TAGGED`]. Those that only read and those on load balancers are patterns:
/// AWS adds such actions the most often (<https://docs.aws.amazon.com/aws-managed-policy/latest/reference/policy-list.html>).
const MANAGED: &[(&str, &[&str])] = &[
    (
        "AmazonEBSCSIDriverPolicy",
        &[
            "ec2:AttachVolume",
            "ec2:CopyVolumes",
            "ec2:CreateSnapshot",
            "ec2:CreateTags",
            "ec2:CreateVolume",
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

/// What AWS allows in [`MANAGED`] with a tag of the resource only, and no other of these policies allows without it: the policy, the
/// action, the key of the condition and its value.
const TAGGED: &[(&str, &str, &str, &str)] = &[
    ("AmazonEBSCSIDriverPolicy", "ec2:DeleteSnapshot", "ec2:ResourceTag/CSIVolumeSnapshotName", "*"),
    ("AmazonEBSCSIDriverPolicy", "ec2:DeleteSnapshot", "ec2:ResourceTag/ebs.csi.aws.com/cluster", "true"),
];

/// How an operator uses the document.
const NOTE: &str = "create it with `aws iam create-policy --policy-name textnlp-boundary --policy-document file://boundary.json`, set \
                    `account.permission_boundary` to its ARN, and print the policies again; print the boundary again for each change of \
                    the environment, and where it differs set the new version before `up`: `aws iam create-policy-version --policy-arn \
                    ARN --policy-document file://boundary.json --set-as-default`; a policy has at most five versions";

/// The boundary; `None` for a plan without roles.
pub(crate) fn boundary(request: &PolicyRequest) -> Option<PolicyDocument> {
    let roles = request.resources.iter().filter(|one| one.kind.as_str() == "aws.role");
    let roles: Vec<&Value> = roles.map(|one| one.spec.as_value()).collect();
    if roles.is_empty() {
        return None;
    }
    let attached: BTreeSet<&str> = roles.iter().flat_map(|role| texts(&role["managed"])).collect();
    let mut notes = vec![NOTE.to_owned()];
    let is_known = |arn: &&&str| MANAGED.iter().any(|(name, _)| *name == policy_name(arn));
    let unknown: Vec<&str> = attached.iter().filter(|arn| !is_known(arn)).copied().collect();
    if !unknown.is_empty() {
        let unknown = unknown.join("`, `");
        notes
            .push(format!("the actions of `{unknown}` are not known: add what the roles with it need to the document"));
    }
    let head = of_attached(&attached.iter().map(|arn| policy_name(arn)).collect());
    let inline = roles.iter().flat_map(|role| role["inline"].as_object().into_iter().flat_map(|all| all.values()));
    let own = inline.flat_map(|document| document["Statement"].as_array().into_iter().flatten());
    let own: BTreeMap<String, Value> = own.map(statement).map(|one| (one.to_string(), one)).collect();
    let own: Vec<Value> = own.into_values().collect();
    let document = |own: Vec<Value>| {
        let statements = [head.clone(), own].concat();
        json!({ "Version": "2012-10-17", "Statement": statements })
    };
    // A role has one boundary, which is one policy: what does not fit is bounded by less, step by step.
    let anywhere = merged(own.iter().cloned().map(|one| with(one, "Resource", json!("*"))).collect(), "Action");
    let actions = merged(anywhere.iter().cloned().map(|one| without(one, "Condition")).collect(), "Action");
    let steps = [own.clone(), merged(own, "Resource"), anywhere.clone(), actions].map(document);
    let step = steps.iter().position(|one| one.to_string().len() <= MOST_CHARACTERS).unwrap_or(steps.len() - 1);
    if step > 1 {
        let conditioned = anywhere.iter().filter(|one| step > 2 && one.get("Condition").is_some());
        let conditioned: BTreeSet<&str> = conditioned.flat_map(|one| texts(&one["Action"])).collect();
        let unconditioned = match conditioned.is_empty() {
            true => String::new(),
            false => format!(", and without their conditions `{}`", Vec::from_iter(conditioned).join("`, `")),
        };
        notes.push(format!(
            "a boundary has at most {MOST_CHARACTERS} characters: this one allows what the roles need on every resource{unconditioned}"
        ));
    }
    Some(PolicyDocument {
        title: "AWS IAM permissions boundary".to_owned(),
        format: PolicyFormat::Json,
        text: serde_json::to_string_pretty(&steps[step]).unwrap_or_default(),
        notes,
    })
}

/// The statements for what AWS's policies with these names allow.
fn of_attached(names: &BTreeSet<&str>) -> Vec<Value> {
    let managed = MANAGED.iter().filter(|(name, _)| names.contains(name));
    let mut managed: BTreeSet<&str> = managed.flat_map(|(_, actions)| actions.iter().copied()).collect();
    let mut statements = Vec::new();
    if managed.remove(LINKED_ROLE) {
        let only = json!({ "StringEquals": { "iam:AWSServiceName": [LINKED] } });
        statements.push(with(allow(&BTreeSet::from([LINKED_ROLE])), "Condition", only));
    }
    let tags = ["ec2:CreateTags", "ec2:DeleteTags"];
    let has_tags = tags.iter().any(|action| managed.contains(action));
    if !managed.is_empty() {
        statements.push(allow(&managed));
    }
    for (_, action, key, value) in TAGGED.iter().filter(|(name, ..)| names.contains(name)) {
        let tagged = json!({ "StringLike": { (*key): [value] } });
        statements.push(with(allow(&BTreeSet::from([*action])), "Condition", tagged));
    }
    // No role makes an object one of this deployment, which the deletion of a network would sweep. Without keys all tags are deleted.
    if has_tags {
        let ours = json!({ "ForAnyValue:StringEquals": { "aws:TagKeys": [LINEAGE] } });
        for (actions, condition) in [(&tags[..], ours), (&tags[1..], json!({ "Null": { "aws:TagKeys": "true" } }))] {
            statements.push(json!({ "Effect": "Deny", "Action": actions, "Resource": "*", "Condition": condition }));
        }
    }
    statements
}

/// The name of a policy in its ARN.
fn policy_name(arn: &str) -> &str {
    arn.rsplit('/').next().unwrap_or_default()
}

fn allow(actions: &BTreeSet<&str>) -> Value {
    json!({ "Effect": "Allow", "Action": actions, "Resource": "*" })
}

fn with(mut statement: Value, member: &str, value: Value) -> Value {
    statement[member] = value;
    statement
}

fn without(mut statement: Value, member: &str) -> Value {
    if let Some(members) = statement.as_object_mut() {
        members.remove(member);
    }
    statement
}

/// One text, or those of a list.
fn texts(value: &Value) -> impl Iterator<Item = &str> {
    let one = value.as_str().into_iter();
    one.chain(value.as_array().into_iter().flatten().filter_map(Value::as_str))
}

/// One statement with all values of a member for those that differ in it only.
fn merged(statements: Vec<Value>, member: &str) -> Vec<Value> {
    let mut groups: BTreeMap<String, (Value, BTreeSet<String>)> = BTreeMap::new();
    for one in statements {
        let values: Vec<String> = texts(&one[member]).map(str::to_owned).collect();
        let rest = without(one, member);
        groups.entry(rest.to_string()).or_insert_with(|| (rest, BTreeSet::new())).1.extend(values);
    }
    let whole = |values: BTreeSet<String>| if values.contains("*") { json!("*") } else { json!(values) };
    groups.into_values().map(|(rest, values)| with(rest, member, whole(values))).collect()
}

/// A statement of a role beside those of other roles: the ids of statements are unique in a policy, and what an object that is not
/// there yet is called is not known.
fn statement(of_role: &Value) -> Value {
    let mut one = without(of_role.clone(), "Sid");
    let is_unknown = |value: &Value| value.to_string().contains("\"$output\"");
    if one.get("Resource").is_some_and(is_unknown) {
        one["Resource"] = json!("*");
    }
    if one.get("Condition").is_some_and(is_unknown) {
        one = without(one, "Condition");
    }
    one
}

#[cfg(test)]
mod tests {
    use textnlp_provider::{PolicyResource, Spec};

    use super::*;

    fn printed(roles: &[Value]) -> Option<PolicyDocument> {
        let resource = |role: &Value| PolicyResource {
            id: "here/cluster/role".parse().unwrap(),
            kind: "aws.role".parse().unwrap(),
            cloud_id: None,
            spec: Spec::of(role),
            verbs: BTreeSet::new(),
        };
        boundary(&PolicyRequest {
            lineage: None,
            environment: "staging".parse().unwrap(),
            site: "here".parse().unwrap(),
            resources: roles.iter().map(resource).collect(),
        })
    }

    fn statements(roles: &[Value]) -> Option<Vec<Value>> {
        let document: Value = serde_json::from_str(&printed(roles)?.text).unwrap();
        document["Statement"].as_array().cloned()
    }

    fn role(managed: &[&str], statements: &Value) -> Value {
        json!({ "managed": managed, "inline": { "own": { "Statement": statements } } })
    }

    #[test]
    fn boundary_is_the_union_of_what_roles_need() {
        let read = |resource: Value| json!({ "Sid": "Read", "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": resource });
        let puller = role(&["arn:aws:iam::aws:policy/AmazonEC2ContainerRegistryPullOnly"], &json!([read(json!("a"))]));
        let reader = role(&[], &json!([read(json!("a")), read(json!({ "$output": "here/models/bucket#arn" }))]));
        let found = statements(&[puller, reader]).unwrap();
        let read = |resource: &str| json!({ "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": resource });
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found[0]["Action"].as_array().map(Vec::len), Some(4));
        assert!(found.contains(&read("a")) && found.contains(&read("*")), "{found:?}");
        assert_eq!(statements(&[]), None);
    }

    #[test]
    fn roles_give_no_object_the_tag_of_the_deployment() {
        let driver = role(&["arn:aws:iam::aws:policy/AmazonEBSCSIDriverPolicy"], &json!([]));
        let found = statements(&[driver]).unwrap();
        let denied: Vec<&Value> = found.iter().filter(|one| one["Effect"] == "Deny").collect();
        assert_eq!(denied.len(), 2);
        assert_eq!(denied[0]["Action"], json!(["ec2:CreateTags", "ec2:DeleteTags"]));
        assert_eq!(
            denied[0]["Condition"],
            json!({ "ForAnyValue:StringEquals": { "aws:TagKeys": ["textnlp-lineage"] } })
        );
        let of_snapshots: Vec<&Value> =
            found.iter().filter(|one| one["Action"].to_string().contains("ec2:DeleteSnapshot")).collect();
        assert_eq!(of_snapshots.len(), 2);
        assert!(of_snapshots.iter().all(|one| one["Condition"]["StringLike"].is_object()), "{of_snapshots:?}");
    }

    #[test]
    fn policy_of_aws_whose_actions_are_not_known_is_named() {
        let arn = "arn:aws:iam::aws:policy/AmazonSomethingPolicy";
        let notes = printed(&[role(&[arn], &json!([]))]).unwrap().notes;
        assert!(notes.iter().any(|note| note.contains(arn)), "{notes:?}");
        let known = role(&["arn:aws-cn:iam::aws:policy/AmazonEKS_CNI_Policy"], &json!([]));
        assert_eq!(printed(&[known]).unwrap().notes, [NOTE]);
    }

    fn many(count: usize, statement: impl Fn(usize) -> Value) -> Value {
        let statements: Vec<Value> = (0..count).map(statement).collect();
        role(&[], &json!(statements))
    }

    #[test]
    fn boundary_that_would_be_too_long_is_bounded_by_less_step_by_step() {
        let on = |action: String, resource: String, region: String| {
            let only = json!({ "StringEquals": { "aws:RequestedRegion": region } });
            json!({ "Effect": "Allow", "Action": [action], "Resource": resource, "Condition": only })
        };
        let bucket = |number: usize| format!("arn:aws:s3:::{number:040}");
        let read = || "s3:GetObject".to_owned();
        // Their resources fit into one statement.
        let joined = many(50, |number| on(read(), bucket(number), "eu".to_owned()));
        let found = statements(std::slice::from_ref(&joined)).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["Resource"].as_array().map(Vec::len), Some(50));
        assert_eq!(printed(&[joined]).unwrap().notes, [NOTE]);
        // Their conditions fit.
        let anywhere = many(200, |number| on(read(), bucket(number), "eu".to_owned()));
        let found = statements(std::slice::from_ref(&anywhere)).unwrap();
        assert_eq!(found, [on(read(), "*".to_owned(), "eu".to_owned())]);
        let notes = printed(&[anywhere]).unwrap().notes;
        assert!(notes[1].ends_with("on every resource"), "{notes:?}");
        // Only their actions do.
        let actions = many(200, |number| on(read(), bucket(number), format!("eu-{number}")));
        let found = statements(std::slice::from_ref(&actions)).unwrap();
        assert_eq!(found, [json!({ "Effect": "Allow", "Action": ["s3:GetObject"], "Resource": "*" })]);
        let notes = printed(&[actions]).unwrap().notes;
        assert!(notes[1].ends_with("without their conditions `s3:GetObject`"), "{notes:?}");
    }
}
