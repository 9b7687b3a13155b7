//! The policies that a plan prints, held against the requests that its run makes: they suffice, and nothing in them is unused.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_orchestrator::plan::{boundaries, policies};
use textnlp_orchestrator::run::RunOptions;
use textnlp_provider::component::{Autoscaling, Component, ComponentSpec, InferenceEndpoint, Network, Site};
use textnlp_provider::{Kind, Need, OutputRef, Provider, Spec, Wanted};
use textnlp_sim::Options;
use textnlp_sim::aws::{model, sns};

use crate::authorize::{Allowed, authorize, is_allowed, place};
use crate::engine::{Account, DOWN, Stack, UP, component};
use crate::iam::BOUNDARY;
use crate::network::vpc;
use crate::shape::Shape;
use crate::{ACCOUNT, Bench, inference, provider_of, run, site};

/// Checks of checkov that the policies do not pass, each with the reason.
const UNCHECKED: &[(&str, &str)] =
    &[("CKV_AWS_111", "objects of EC2 are created without a condition: a new one has neither tags nor a known id")];

/// The checks of checkov that policies do not pass. It reads them in a template of CloudFormation.
fn failed_checks(statements: &[Value]) -> BTreeSet<String> {
    let folder = tempfile::tempdir().unwrap();
    let document = json!({ "Version": "2012-10-17", "Statement": statements });
    let policy = json!({ "Type": "AWS::IAM::ManagedPolicy", "Properties": { "PolicyDocument": document } });
    let template = json!({ "AWSTemplateFormatVersion": "2010-09-09", "Resources": { "Policy": policy } });
    std::fs::write(folder.path().join("policy.json"), template.to_string()).unwrap();
    let tests = std::path::Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests"));
    crate::checkov::failures(tests, folder.path()).into_keys().collect()
}

/// The statements of the policies of a plan.
fn statements(stack: &Stack<'_>, ask: RunOptions, wanted: &[Wanted]) -> Vec<Value> {
    let (plan, facts) = stack.look(ask, wanted);
    let texts = policies(&plan, &facts).into_iter().map(|one| one.document.text);
    let documents = texts.map(|text| serde_json::from_str::<Value>(&text).unwrap());
    documents.flat_map(|document| document["Statement"].as_array().unwrap().clone()).collect()
}

/// The actions of kinds that neither a plan nor the records have, as far as no other kind needs them. An observation lists every
/// kind, and these lists may be denied.
fn elsewhere(account: &Account, stack: &Stack<'_>, wanted: &[Wanted]) -> BTreeSet<&'static str> {
    let recorded = stack.recorded();
    let present: BTreeSet<&str> =
        wanted.iter().map(|one| one.kind.as_str()).chain(recorded.iter().map(|one| one.kind.as_str())).collect();
    let (here, there): (Vec<&'static Kind>, Vec<&'static Kind>) =
        account.kinds().iter().partition(|kind| present.contains(kind.name));
    let actions = |kinds: Vec<&'static Kind>| -> BTreeSet<&'static str> {
        let actions = kinds.into_iter().flat_map(|kind| kind.permissions.iter().map(|permission| permission.action));
        actions.filter_map(|action| action.split('{').next()).collect()
    };
    &actions(there) - &actions(here)
}

/// A run under the policies of its plan; returns their actions.
fn under_policy(account: &Account, stack: &Stack<'_>, ask: RunOptions, wanted: &[Wanted]) -> BTreeSet<String> {
    let (statements, elsewhere) = (statements(stack, ask, wanted), elsewhere(account, stack, wanted));
    let actions = statements.iter().flat_map(|one| one["Action"].as_array().unwrap().iter());
    let actions = actions.map(|action| action.as_str().unwrap().to_owned()).collect();
    {
        let mut world = account.simulator.world();
        world.state::<Allowed>(&place()).statements = statements;
        world.authorizer = Some(authorize);
    }
    let outcome = stack.go(ask, wanted, &Default::default());
    let mut world = account.simulator.world();
    world.authorizer = None;
    let denied = std::mem::take(&mut *world.state::<Allowed>(&place()).denied.lock().unwrap());
    drop(world);
    let is_needed = |need: &&String| !elsewhere.iter().any(|action| need.starts_with(&format!("{action} ")));
    let denied: Vec<&String> = denied.iter().filter(is_needed).collect();
    assert!(denied.is_empty(), "the policies of the plan do not suffice: {denied:#?}");
    assert!(outcome.unwrap().unwrap().is_complete());
    actions
}

/// Actions that no run of the test needs, each with what needs it.
const UNUSED: &[(&str, &str)] = &[
    ("ec2:AuthorizeSecurityGroupEgress", DRIFT),
    ("ec2:DeleteNetworkInterface", SWEEP),
    ("ec2:DeleteRoute", DRIFT),
    ("ec2:ModifySubnetAttribute", DRIFT),
    ("ec2:ModifyVpcEndpoint", DRIFT),
    ("ec2:ReplaceRouteTableAssociation", CHANGE),
    ("ec2:RunInstances", SERVICE),
    ("ec2:UpdateSecurityGroupRuleDescriptionsEgress", DRIFT),
    ("ec2:UpdateSecurityGroupRuleDescriptionsIngress", DRIFT),
    ("ecr:BatchCheckLayerAvailability", REGISTRY),
    ("ecr:BatchGetImage", REGISTRY),
    ("ecr:CompleteLayerUpload", REGISTRY),
    ("ecr:DeleteLifecyclePolicy", DRIFT),
    ("ecr:GetAuthorizationToken", REGISTRY),
    ("ecr:InitiateLayerUpload", REGISTRY),
    ("ecr:PutImage", REGISTRY),
    ("ecr:PutImageScanningConfiguration", DRIFT),
    ("ecr:PutImageTagMutability", DRIFT),
    ("ecr:UploadLayerPart", REGISTRY),
    ("eks:UpdatePodIdentityAssociation", CHANGE),
    ("elasticloadbalancing:DeleteLoadBalancer", SWEEP),
    ("elasticloadbalancing:DeleteTargetGroup", SWEEP),
    ("elasticloadbalancing:DescribeTags", SWEEP),
    ("iam:AddClientIDToOpenIDConnectProvider", CHANGE),
    ("iam:DeleteRolePermissionsBoundary", DRIFT),
    ("iam:PutRolePermissionsBoundary", DRIFT),
    ("iam:RemoveClientIDFromOpenIDConnectProvider", CHANGE),
    ("iam:UpdateAssumeRolePolicy", DRIFT),
    ("kms:DisableKey", DRIFT),
    ("kms:DisableKeyRotation", DRIFT),
    ("kms:EnableKey", DRIFT),
    ("kms:RetireGrant", SERVICE),
    ("kms:UpdateAlias", CHANGE),
    ("kms:UpdateKeyDescription", DRIFT),
    ("logs:AssociateKmsKey", DRIFT),
    ("logs:DeleteRetentionPolicy", DRIFT),
    ("logs:DisassociateKmsKey", DRIFT),
    ("rds:CreateDBSnapshot", DATA),
    ("rds:ModifyDBSubnetGroup", CHANGE),
    ("rds:PromoteReadReplica", CHANGE),
    ("rds:RebootDBInstance", FAILOVER),
    ("rds:ModifyDBParameterGroup", CHANGE),
    ("rds:ResetDBParameterGroup", CHANGE),
    ("s3:DeleteBucketPolicy", DRIFT),
    ("s3:DeleteObject", DATA),
    ("s3:DeleteObjectVersion", DATA),
    ("s3:PutBucketOwnershipControls", DRIFT),
    ("s3:PutBucketPublicAccessBlock", DRIFT),
    ("servicequotas:GetAWSDefaultServiceQuota", SERVICE),
];
/// The actions of the registry, which has a protocol of its own: `tests/sim/tests/road` pushes an image.
const REGISTRY: &str = "the push of an image";
const SWEEP: &str = "what controllers of a cluster left behind";
const FAILOVER: &str = "`db failover`, which no plan makes";
const DATA: &str = "the deletion of data";
const SERVICE: &str = "what a service of AWS checks as the caller, and quotas without a value of the account";
/// See [`policies_suffice_to_bring_back_what_others_changed`].
const DRIFT: &str = "attributes that others changed";
const CHANGE: &str = "changes of others, and of settings, that are tested without a policy";

#[test]
fn policies_of_a_plan_pass_checkov() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0003);
    let wanted = Shape::full().wanted(&account, "staging");
    let mut failed = failed_checks(&statements(&stack, UP, &wanted));
    stack.reach(UP, &wanted);
    failed.extend(failed_checks(&statements(&stack, DOWN, &[])));
    let known: BTreeSet<String> = UNCHECKED.iter().map(|(id, _)| (*id).to_owned()).collect();
    assert_eq!(failed, known, "checks that fail, and those of the table");
}

#[test]
fn policies_change_no_other_key_than_the_recorded_one() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0004);
    // The actions that take a key, each with its resource and whether it is for a new key only.
    let of_keys = |ask, wanted: &[Wanted]| -> BTreeSet<(String, String, bool)> {
        const TAKES: [&str; 4] = ["kms:DisableKey", "kms:PutKeyPolicy", "kms:ScheduleKeyDeletion", "kms:TagResource"];
        let mut found = BTreeSet::new();
        for statement in statements(&stack, ask, wanted) {
            let is_of_new = statement["Condition"].to_string().contains("aws:RequestTag/textnlp-lineage");
            let actions = statement["Action"].as_array().unwrap().iter().filter_map(Value::as_str);
            for action in actions.filter(|action| TAKES.contains(action)) {
                found.insert((action.to_owned(), statement["Resource"].as_str().unwrap().to_owned(), is_of_new));
            }
        }
        found
    };
    let first = Shape::full().core().wanted(&account, "staging");
    let new = of_keys(UP, &first);
    assert!(!new.is_empty() && new.iter().all(|(_, _, is_of_new)| *is_of_new), "{new:?}");
    stack.reach(UP, &first);
    let changed = Shape::full().otherwise().core().wanted(&account, "staging");
    let to_change = of_keys(UP, &changed);
    // Data that is protected stays.
    stack.reach(UP, &changed);
    for known in [to_change, of_keys(DOWN, &[])] {
        let is_open = |(_, key, is_of_new): &(String, String, bool)| *is_of_new || key.ends_with("key/*");
        assert!(!known.is_empty() && !known.iter().any(is_open), "{known:?}");
    }
}

/// An action with its resource, and the condition keys of a request.
type Case<'a> = ((&'a str, &'a str), &'a [(&'a str, &'a str)]);

#[test]
fn stranger_with_the_policies_gains_no_more_rights_than_the_boundary_has() {
    const ADMIN: &str = "arn:aws:iam::aws:policy/AdministratorAccess";
    const BOUND: (&str, &str) = ("iam:PermissionsBoundary", BOUNDARY);
    let to = |service: &'static str| ("iam:PassedToService", service);
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0009);
    let bounded = |shape: Shape| Shape { boundary: true, ..shape.core() }.wanted(&account, "staging");
    let first = bounded(Shape::full());
    let spec = &first.iter().find(|one| one.id.as_str() == "here/cluster/role").unwrap().spec;
    let managed = spec.get("managed").unwrap()[0].as_str().unwrap();
    let own = format!("arn:aws:iam::{ACCOUNT}:role/textnlp/{}", spec.get("name").unwrap().as_str().unwrap());
    let (elsewhere, named) = (format!("arn:aws:iam::{ACCOUNT}:role/deploy"), format!("{own}-2"));
    let (own, elsewhere, named) = (own.as_str(), elsewhere.as_str(), named.as_str());

    let create = statements(&stack, UP, &first);
    stack.reach(UP, &first);
    let change = statements(&stack, UP, &bounded(Shape::full().otherwise()));
    let remove = statements(&stack, DOWN, &[]);
    let world = account.simulator.world();
    // What the plan does itself, so that each refusal below has one reason.
    let granted: &[Case<'_>] = &[
        (("iam:CreateRole", own), &[BOUND]),
        (("iam:AttachRolePolicy", own), &[BOUND, ("iam:PolicyARN", managed)]),
        (("iam:PutRolePolicy", own), &[BOUND]),
        (("iam:PutRolePermissionsBoundary", own), &[BOUND]),
        (("iam:PassRole", own), &[to("eks.amazonaws.com")]),
    ];
    for (need, keys) in granted {
        assert!(is_allowed(&world, &create, *need, keys), "{need:?} with {keys:?} is refused");
    }
    let user = "arn:aws:iam::123456789012:user/stranger";
    let refused: &[Case<'_>] = &[
        (("iam:CreateRole", own), &[]),
        (("iam:CreateRole", own), &[("iam:PermissionsBoundary", ADMIN)]),
        (("iam:CreateRole", elsewhere), &[BOUND]),
        (("iam:CreateRole", named), &[BOUND]),
        (("iam:AttachRolePolicy", own), &[BOUND, ("iam:PolicyARN", ADMIN)]),
        (("iam:AttachRolePolicy", own), &[("iam:PolicyARN", managed)]),
        (("iam:AttachRolePolicy", elsewhere), &[BOUND, ("iam:PolicyARN", managed)]),
        (("iam:PutRolePolicy", own), &[]),
        (("iam:PutRolePolicy", elsewhere), &[BOUND]),
        (("iam:DeleteRolePermissionsBoundary", own), &[BOUND]),
        (("iam:PutRolePermissionsBoundary", own), &[("iam:PermissionsBoundary", ADMIN)]),
        (("iam:UpdateAssumeRolePolicy", elsewhere), &[BOUND]),
        (("iam:PassRole", elsewhere), &[to("eks.amazonaws.com")]),
        (("iam:PassRole", own), &[to("lambda.amazonaws.com")]),
        (("iam:AttachUserPolicy", user), &[("iam:PolicyARN", ADMIN)]),
        (("iam:CreateAccessKey", user), &[]),
        (("iam:CreatePolicyVersion", BOUNDARY), &[]),
        (("sts:AssumeRole", elsewhere), &[]),
    ];
    for (need, keys) in refused {
        for (plan, statements) in [("creates", &create), ("changes", &change), ("removes", &remove)] {
            assert!(
                !is_allowed(&world, statements, *need, keys),
                "{need:?} with {keys:?}: a plan that {plan} allows it"
            );
        }
    }
}

/// Prints the actions of each policy that AWS manages, as moto records them.
const MANAGED: &str = r#"
import json
from moto.iam.aws_managed_policies import aws_managed_policies_data
def actions(document):
    for statement in document["Statement"]:
        assert statement["Effect"] == "Allow", statement
        action = statement["Action"]
        yield from [action] if isinstance(action, str) else action
names = ["AmazonEBSCSIDriverPolicy", "AmazonEC2ContainerRegistryPullOnly", "AmazonEKSClusterPolicy", "AmazonEKSWorkerNodePolicy",
         "AmazonEKS_CNI_Policy"]
known = json.loads(aws_managed_policies_data)
print(json.dumps({name: sorted(set(actions(known[name]["Document"]))) for name in names}))
"#;

/// An action on a resource, with the keys of its conditions.
type Use = (String, String, Vec<(String, String)>);

/// What a statement of a role allows: an action on a resource, with keys that its condition wants.
fn uses(statement: &Value) -> Vec<Use> {
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().into_iter().flatten().chain(value.is_string().then_some(value));
        all.filter_map(|one| one.as_str().map(str::to_owned)).collect()
    };
    let operators = statement["Condition"].as_object().into_iter().flat_map(|all| all.values());
    let keys = operators.flat_map(|keys| keys.as_object().unwrap());
    let keys = keys.map(|(key, value)| (key.clone(), texts(value)[0].replace('*', "a")));
    let keys: Vec<(String, String)> = keys.collect();
    let resources: Vec<String> = texts(&statement["Resource"]).iter().map(|one| one.replace('*', "a")).collect();
    assert!(!resources.is_empty(), "{statement}");
    let on = |action: String| resources.iter().map(move |one| (action.clone(), one.clone())).collect::<Vec<_>>();
    let all = texts(&statement["Action"]).into_iter().flat_map(on);
    all.map(|(action, resource)| (action, resource, keys.clone())).collect()
}

/// The boundary, set as `account.permission_boundary`, is what bounds the roles of the test before this one.
#[test]
fn printed_boundary_allows_what_roles_need_and_nothing_that_makes_an_administrator() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0010);
    let unbounded = Shape { copies: (true, true), ..Shape::full().core() }.wanted(&account, "staging");
    let (plan, facts) = stack.look(UP, &unbounded);
    let warned = policies(&plan, &facts).into_iter().flat_map(|one| one.document.notes).collect::<Vec<_>>();
    assert!(warned.iter().any(|note| note.contains("`plan --policy --boundary`")), "{warned:?}");
    let print = || {
        let (plan, facts) = stack.look(UP, &unbounded);
        let mut printed = boundaries(&plan, &facts);
        assert_eq!(printed.len(), 1);
        let document: Value = serde_json::from_str(&printed.remove(0).document.text).unwrap();
        assert!(document.to_string().len() <= 6144, "{document}");
        document["Statement"].as_array().unwrap().clone()
    };
    let first = print();
    stack.reach(UP, &unbounded);
    let second = print();
    let script = std::process::Command::new(model::python().unwrap()).args(["-c", MANAGED]).output().unwrap();
    assert!(script.status.success(), "{}", String::from_utf8_lossy(&script.stderr));
    let managed: Value = serde_json::from_slice(&script.stdout).unwrap();
    let mut needs = Vec::new();
    let roles: Vec<_> = stack.recorded().into_iter().filter(|one| one.kind.as_str() == "aws.role").collect();
    assert!(roles.len() >= 4, "{roles:?}");
    for role in &roles {
        let spec = role.spec.as_value();
        let inline = spec["inline"].as_object().unwrap().values();
        needs.extend(inline.flat_map(|one| one["Statement"].as_array().unwrap()).flat_map(uses));
        for arn in spec["managed"].as_array().unwrap() {
            let actions = managed[arn.as_str().unwrap().rsplit('/').next().unwrap()].as_array().unwrap();
            assert!(!actions.is_empty(), "the actions of {arn} are not known");
            for action in actions {
                let on = format!("arn:aws:ec2:eu-west-1:{ACCOUNT}:snapshot/snap-0123");
                let service = ("iam:AWSServiceName".to_owned(), "elasticloadbalancing.amazonaws.com".to_owned());
                let tag = ("ec2:ResourceTag/ebs.csi.aws.com/cluster".to_owned(), "true".to_owned());
                let keys = ("aws:TagKeys".to_owned(), "ebs.csi.aws.com/cluster".to_owned());
                needs.push((action.as_str().unwrap().to_owned(), on, vec![service, tag, keys]));
            }
        }
    }
    let mut world = account.simulator.world();
    let now = world.now();
    for (_, resource, keys) in &needs {
        let tags =
            keys.iter().filter_map(|(key, value)| Some((key.split_once("ResourceTag/")?.1.to_owned(), value.clone())));
        let tags: Vec<_> = tags.collect();
        if !tags.is_empty() {
            world.tags.set(resource, tags, now);
        }
    }
    let is_within = |statements: &[Value], (action, resource): (&str, &str), keys: &[(&str, &str)]| {
        let (denied, allowed): (Vec<Value>, Vec<Value>) =
            statements.iter().cloned().partition(|one| one["Effect"] == "Deny");
        is_allowed(&world, &allowed, (action, resource), keys) && !is_allowed(&world, &denied, (action, resource), keys)
    };
    for (action, resource, keys) in &needs {
        let keys: Vec<(&str, &str)> = keys.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
        for (which, statements) in [("first", &first), ("second", &second)] {
            assert!(
                is_within(statements, (action.as_str(), resource.as_str()), &keys),
                "the {which} boundary: {action} on {resource}"
            );
        }
    }
    let own = format!("arn:aws:iam::{ACCOUNT}:role/textnlp/textnlp-staging-here-a");
    let user = format!("arn:aws:iam::{ACCOUNT}:user/stranger");
    let elsewhere = format!("arn:aws:iam::{ACCOUNT}:role/deploy");
    let volume = format!("arn:aws:ec2:eu-west-1:{ACCOUNT}:volume/vol-0123");
    let snapshot = format!("arn:aws:ec2:eu-west-1:{ACCOUNT}:snapshot/snap-of-others");
    let refused: &[Case<'_>] = &[
        (("cloudformation:CreateStack", "*"), &[]),
        (("ec2:RunInstances", "*"), &[]),
        (("eks:CreateAccessEntry", "*"), &[]),
        (("iam:AttachRolePolicy", &own), &[]),
        (("iam:AttachUserPolicy", &user), &[]),
        (("iam:CreateAccessKey", &user), &[]),
        (("iam:CreatePolicyVersion", BOUNDARY), &[]),
        (("iam:CreateRole", &own), &[]),
        (("iam:CreateServiceLinkedRole", "*"), &[("iam:AWSServiceName", "ecs.amazonaws.com")]),
        (("iam:DeleteRolePermissionsBoundary", &own), &[]),
        (("iam:PassRole", &own), &[]),
        (("iam:PutRolePermissionsBoundary", &own), &[]),
        (("iam:PutRolePolicy", &own), &[]),
        (("iam:UpdateAssumeRolePolicy", &elsewhere), &[]),
        (("lambda:CreateFunction", "*"), &[]),
        (("sts:AssumeRole", &elsewhere), &[]),
        // No object becomes one of the deployment, and none of the others' snapshots ends.
        (("ec2:CreateTags", &volume), &[("aws:TagKeys", "Name,textnlp-lineage")]),
        (("ec2:DeleteTags", &volume), &[("aws:TagKeys", "textnlp-lineage")]),
        (("ec2:DeleteTags", &volume), &[]),
        (("ec2:DeleteSnapshot", &snapshot), &[]),
    ];
    for (need, keys) in refused {
        for statements in [&first, &second] {
            assert!(!is_within(statements, *need, keys), "a role with the boundary may {need:?} with {keys:?}");
        }
    }
    // Once the buckets are there the boundary names them.
    for action in ["s3:GetObject", "s3:ReplicateObject"] {
        assert!(!is_within(&second, (action, "arn:aws:s3:::another/object"), &[]), "{action}");
    }
}

#[test]
fn policies_delete_only_classic_load_balancers_of_the_cluster() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_000f);
    let first = Shape::full().core().wanted(&account, "staging");
    let cluster = &first.iter().find(|one| one.kind.as_str() == "aws.eks-cluster").unwrap().spec;
    let cluster = cluster.get("name").unwrap().as_str().unwrap();
    stack.reach(UP, &first);
    let remove = statements(&stack, DOWN, &[]);
    let mut world = account.simulator.world();
    let now = world.now();
    let arn = |name: &str| format!("arn:aws:elasticloadbalancing:eu-west-1:{ACCOUNT}:loadbalancer/{name}");
    for (name, owner) in [("ours", cluster), ("theirs", "another")] {
        world.tags.set(&arn(name), [(format!("kubernetes.io/cluster/{owner}"), "owned".to_owned())], now);
    }
    let found = ["ours", "theirs", "untagged"]
        .map(|name| is_allowed(&world, &remove, ("elasticloadbalancing:DeleteLoadBalancer", arn(name).as_str()), &[]));
    assert_eq!(found, [true, false, false]);
}

/// Everything, with a tag that [`Shape::otherwise`] does not have.
fn owned() -> Shape {
    Shape { owner: Some("ada"), ..Shape::full() }
}

#[test]
fn policies_of_a_plan_suffice_and_hold_nothing_unused() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0001);
    // Monitoring, records and endpoints have tests of their own; access and images are left to the tests of their kinds.
    let of = |shape: Shape, version| Shape { copies: (true, true), version: Some(version), ..shape.core() };
    let versions = [of(owned(), "1.33"), of(Shape::full().otherwise(), "1.34")];
    let versions = versions.map(|shape| shape.wanted(&account, "staging"));
    let known: BTreeSet<String> = UNUSED.iter().map(|(action, _)| (*action).to_owned()).collect();
    assert_eq!(unused(&account, &stack, &versions, || ()), known, "actions that nothing used, and those of the table");
}

/// The actions of the policies of `up`, of another `up` with changes, and of `down`, that none of these runs needs.
fn unused(
    account: &Account,
    stack: &Stack<'_>,
    versions: &[Vec<Wanted>; 2],
    between: impl FnOnce(),
) -> BTreeSet<String> {
    let [first, changed] = versions;
    let mut printed = under_policy(account, stack, UP, first);
    between();
    printed.extend(under_policy(account, stack, UP, changed));
    printed.extend(under_policy(account, stack, DOWN, &[]));
    let used = used(account);
    assert!(used.is_subset(&printed), "{:?}", used.difference(&printed).collect::<Vec<_>>());
    printed.difference(&used).cloned().collect()
}

/// Rules to the outside of a group, for a change of their descriptions: the resource, the place in its spec, and the value.
const WITH_EGRESS: &[(&str, &str, &str)] = &[(
    "here/network/endpoints",
    "/egress",
    r#"[{ "protocol": "tcp", "from": 443, "to": 443, "peer": "10.42.0.0/16", "description": "HTTPS to the VPC" }]"#,
)];
/// What others changed.
const CHANGED: &[(&str, &str, &str)] = &[
    ("here/network/subnet-public-a", "/public_addresses", "true"),
    (
        "here/network/routes-public",
        "/routes",
        r#"[{ "to": "0.0.0.0/0", "via": { "$output": "here/network/internet-gateway#id" } },
            { "to": "192.0.2.0/24", "via": { "$output": "here/network/internet-gateway#id" } }]"#,
    ),
    ("here/network/endpoint-s3", "/policy/Statement/0/Action", r#""s3:*""#),
    ("here/network/endpoints", "/ingress/0/description", r#""another one""#),
    ("here/network/endpoints", "/egress/0/description", r#""another one""#),
    ("here/network/flow-logs", "/key", r#"{ "$output": "here/models/key#arn" }"#),
    ("here/network/flow-logs", "/retention_days", "null"),
    ("here/network/flow-log-role", "/trust/Statement/0/Action", r#"["sts:AssumeRole", "sts:TagSession"]"#),
    ("here/models/key", "/description", r#""another one""#),
    ("here/models/key", "/rotation_days", "0"),
    ("here/models/bucket", "/policy", "null"),
    ("here/models/bucket", "/owner_enforced", "false"),
    ("here/models/bucket", "/public_access_blocked", "false"),
    ("here/registry/repository", "/immutable", "false"),
    ("here/registry/repository", "/scan_on_push", "false"),
    ("here/registry/repository", "/lifecycle", "null"),
];
/// KMS changes no other attribute of a disabled key.
const DISABLED: &[(&str, &str, &str)] = &[("here/models/key", "/enabled", "false")];

/// The same resources with changes of their specs.
fn altered(all: &[Wanted], changes: &[(&str, &str, &str)]) -> Vec<Wanted> {
    let mut all = all.to_vec();
    for (id, place, value) in changes {
        let one = all.iter_mut().find(|one| one.id.as_str() == *id).unwrap_or_else(|| panic!("no {id}"));
        let mut spec = one.spec.as_value().clone();
        *spec.pointer_mut(place).unwrap_or_else(|| panic!("{id} has no {place}")) =
            serde_json::from_str(value).unwrap();
        one.spec = Spec::of(&spec);
        one.needs.extend(one.spec.outputs_needed().iter().map(|output| Need::on(output.resource.clone())));
        one.needs.sort();
        one.needs.dedup();
    }
    all
}

/// Each change is made under a policy too, and then taken back.
#[test]
fn policies_suffice_to_bring_back_what_others_changed() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0010);
    let shape = Shape { network: true, models: true, registry: true, protect_data: true, ..Shape::BARE };
    let usual = altered(&shape.wanted(&account, "staging"), WITH_EGRESS);
    let boundary = json!(BOUNDARY).to_string();
    let bounded = [("here/network/flow-log-role", "/boundary", boundary.as_str())];
    let changed = altered(&altered(&usual, CHANGED), &bounded);
    let disabled = altered(&usual, DISABLED);
    for version in [&usual, &changed, &usual, &disabled, &usual] {
        under_policy(&account, &stack, UP, version);
    }
    under_policy(&account, &stack, DOWN, &[]);
    let used = used(&account);
    let is_unused = |row: &&(&str, &str)| row.1 == DRIFT && !used.contains(row.0);
    let unused: Vec<&str> = UNUSED.iter().filter(is_unused).map(|(action, _)| *action).collect();
    assert_eq!(unused, Vec::<&str>::new());
}

/// The actions that runs under policies needed.
fn used(account: &Account) -> BTreeSet<String> {
    account.simulator.world().find::<Allowed>(&place()).unwrap().used.lock().unwrap().clone()
}

/// Those of services that the core does not use.
fn of_services(unused: &BTreeSet<String>, services: &[&str]) -> Vec<String> {
    let is_of = |action: &&String| services.iter().any(|service| action.starts_with(&format!("{service}:")));
    unused.iter().filter(is_of).cloned().collect()
}

#[test]
fn policies_of_an_existing_network_let_preflight_compare_it() {
    let account = Account::new(Options::zero_latency());
    // Nothing leads out of its subnets, so that its endpoints are read too.
    let vpc = vpc();
    let subnet = |letter: &str, number: u8| {
        let spec = json!({
            "vpc": OutputRef::new(vpc.id.clone(), "id"), "cidr": format!("10.42.{number}.0/24"),
            "zone": format!("euw1-az{number}"), "public_addresses": false, "tags": {},
        });
        let one = crate::wanted(&format!("here/network/subnet-private-{letter}"), "aws.subnet", &spec);
        Wanted { needs: vec![Need::on(vpc.id.clone())], ..one }
    };
    let theirs = Stack::new(&account, "theirs", 0x1234_5678_9abc_4def_8000_0000_0000_000d);
    theirs.reach(UP, &[vpc.clone(), subnet("a", 1), subnet("b", 2)]);
    let recorded = theirs.recorded();
    let ids = |kind: &str| -> Vec<_> {
        recorded.iter().filter(|one| one.kind.as_str() == kind).map(|one| one.cloud_id.clone()).collect()
    };
    let network = component("network", ComponentSpec::Network(Network::default()));
    let existing = Component { existing: ids("aws.vpc").pop(), ..network };
    let all = account.lower(&[existing], &Site { subnets: ids("aws.subnet"), ..site() });

    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_000e);
    let statements = statements(&stack, UP, &all);
    {
        let mut world = account.simulator.world();
        world.state::<Allowed>(&place()).statements = statements;
        world.authorizer = Some(authorize);
    }
    run(async {
        let problems = provider_of(&account.simulator, []).preflight(&all).await.unwrap();
        assert!(problems.iter().any(|one| one.cause.contains("no endpoint of")), "{problems:?}");
        Ok(())
    });
    // IAM's own simulator of policies is not simulated here.
    drop(account.simulator.take_violations());
}

#[test]
fn policies_of_monitoring_suffice_and_hold_nothing_unused() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0005);
    let part = |shape: Shape| {
        let rest = shape.core();
        Shape { cluster: false, database: false, registry: false, gpu: None, monitoring: true, ..rest }
    };
    let versions = [owned(), Shape::full().otherwise()].map(|shape| part(shape).wanted(&account, "staging"));
    // Only a confirmed subscription can be removed.
    let confirmed = || sns::confirm(&mut account.simulator.world(), &Bench::scope(), "oncall@example.com");
    let unused = of_services(&unused(&account, &stack, &versions, confirmed), &["budgets", "cloudwatch", "sns"]);
    // What others changed: see `DRIFT`.
    assert_eq!(unused, ["sns:SetTopicAttributes"]);
}

#[test]
fn policies_of_a_cache_suffice_and_hold_nothing_unused() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_000c);
    let versions = [((4, 1), Some("ada")), ((1, 0), None)].map(|(cache, owner)| {
        let team = if owner.is_some() { "nlp" } else { "search" };
        let shape = Shape { network: true, models: true, cache: Some(cache), team, owner, ..Shape::BARE };
        shape.wanted(&account, "staging")
    });
    let unused = of_services(&unused(&account, &stack, &versions, || ()), &["elasticache"]);
    let known = [
        // More replicas, which the test does not want.
        "elasticache:IncreaseReplicaCount",
        // What others changed: see `DRIFT`.
        "elasticache:ModifyCacheSubnetGroup",
    ];
    assert_eq!(unused, known);
}

#[test]
fn policies_of_records_and_health_checks_suffice_and_hold_nothing_unused() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0006);
    let versions = [3, 5].map(|failures| Shape { failover: Some(failures), ..Shape::BARE });
    let versions = versions.map(|shape| shape.wanted(&account, "staging"));
    let unused = of_services(&unused(&account, &stack, &versions, || ()), &["route53"]);
    assert!(unused.is_empty(), "{unused:?}");
}

#[test]
fn policies_of_an_endpoint_suffice_and_hold_nothing_unused() {
    let (account, registry) = inference::account();
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0008);
    // The image is there before the endpoint is.
    stack.reach(UP, &registry);
    inference::push(&account);
    let autoscaling = Some(Autoscaling { max: 6, cpu: None, memory: None, requests_per_second: Some(7) });
    let changed = InferenceEndpoint { autoscaling, ..inference::with_model(2) };
    let versions = [inference::with_model(1), changed];
    let versions = versions.map(|one| account.lower(&inference::components(one), &inference::place()));
    let unused = of_services(&unused(&account, &stack, &versions, || ()), &["application-autoscaling", "sagemaker"]);
    let known = [
        // What others changed.
        "application-autoscaling:DeleteScalingPolicy",
        "application-autoscaling:UntagResource",
        "sagemaker:DeleteTags",
        // The first text, which is asked for after a run.
        "sagemaker:InvokeEndpoint",
        // What Application Auto Scaling checks as the caller.
        "sagemaker:UpdateEndpointWeightsAndCapacities",
    ];
    assert_eq!(unused, known);
}

/// Disks of the instances' own take no key.
#[test]
fn policies_of_an_endpoint_make_grants_of_the_key_for_volumes_only() {
    let (account, _) = inference::account();
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0011);
    let has_grants = |endpoint: InferenceEndpoint| {
        let wanted = account.lower(&inference::components(endpoint), &inference::place());
        let statements = statements(&stack, UP, &wanted);
        statements.iter().any(|one| one["Condition"].to_string().contains("kms:GrantIsForAWSResource"))
    };
    assert!(has_grants(inference::with_model(1)));
    assert!(!has_grants(inference::with_gpus(None)));
}
