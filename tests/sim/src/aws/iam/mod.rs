//! Identity and Access Management.

mod document;
mod profile;
mod provider;
mod role;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

pub use document::trusts;
pub use profile::Profile;
pub use provider::Provider;
pub use role::Role;

use crate::{Behaviour, Call, Fault, Quota, Service, Source, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "iam",
    model: "iam",
    operations: &[
        ("AddClientIDToOpenIDConnectProvider", provider::add_audience),
        ("AddRoleToInstanceProfile", profile::add_role),
        ("AttachRolePolicy", role::attach),
        ("CreateInstanceProfile", profile::create),
        ("CreateOpenIDConnectProvider", provider::create),
        ("CreateRole", role::create),
        ("DeleteInstanceProfile", profile::delete),
        ("DeleteOpenIDConnectProvider", provider::delete),
        ("DeleteRole", role::delete),
        ("DeleteRolePermissionsBoundary", role::unbound),
        ("DeleteRolePolicy", role::delete_policy),
        ("DetachRolePolicy", role::detach),
        ("GetInstanceProfile", profile::get),
        ("GetOpenIDConnectProvider", provider::get),
        ("GetRole", role::get),
        ("GetRolePolicy", role::policy),
        ("ListAttachedRolePolicies", role::attached),
        ("ListInstanceProfileTags", profile::tags),
        ("ListInstanceProfiles", profile::list),
        ("ListOpenIDConnectProviderTags", provider::tags),
        ("ListOpenIDConnectProviders", provider::list),
        ("ListRolePolicies", role::policies),
        ("ListRoles", role::list),
        ("PutRolePermissionsBoundary", role::bound),
        ("PutRolePolicy", role::put_policy),
        ("RemoveClientIDFromOpenIDConnectProvider", provider::remove_audience),
        ("RemoveRoleFromInstanceProfile", profile::remove_role),
        ("SimulatePrincipalPolicy", simulate),
        ("TagInstanceProfile", profile::tag),
        ("TagOpenIDConnectProvider", provider::tag),
        ("TagRole", role::tag),
        ("UntagInstanceProfile", profile::untag),
        ("UntagOpenIDConnectProvider", provider::untag),
        ("UntagRole", role::untag),
        ("UpdateAssumeRolePolicy", role::trust),
    ],
    quotas: &[ROLES, PROFILES, PROVIDERS, ATTACHED],
    ledger: LEDGER,
};

const fn quota(code: &'static str, name: &'static str, value: f64) -> Quota {
    Quota { service: "iam", code, name, value, adjustable: true }
}

const ROLES: Quota = quota("L-FE177D64", "Roles per account", 1000.0);
const PROFILES: Quota = quota("L-6E65F664", "Instance profiles per account", 1000.0);
const PROVIDERS: Quota = quota("L-858F3967", "OpenId connect providers per account", 100.0);
const ATTACHED: Quota = quota("L-0DA4ABF3", "Managed policies per role", 10.0);

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "iam",
        what: "EntityAlreadyExists, NoSuchEntity, LimitExceeded, MalformedPolicyDocument and DeleteConflict of roles, instance \
               profiles and OIDC providers",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/API_Operations.html"),
    },
    Behaviour {
        service: "iam",
        what: "a role is deleted once it has no policies and is in no instance profile",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/API_DeleteRole.html"),
    },
    Behaviour {
        service: "iam",
        what: "policy documents in answers are percent-encoded, and lists of roles have neither tags nor boundaries",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/API_ListRoles.html"),
    },
    Behaviour {
        service: "iam",
        what: "other services see a new role, and a changed trust, some seconds later",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/IAM/latest/UserGuide/troubleshoot.html#troubleshoot_general_eventual-consistency",
        ),
    },
    Behaviour {
        service: "iam",
        what: "names are unique without regard to case",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateRole.html"),
    },
    Behaviour {
        service: "iam",
        what: "the policies of a role have at most 10,240 characters together, and its trust 2,048",
        source: Source::Documentation("https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html"),
    },
    Behaviour {
        service: "iam",
        what: "an OIDC provider is created without a thumbprint, which IAM reads itself",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/IAM/latest/APIReference/API_CreateOpenIDConnectProvider.html",
        ),
    },
    Behaviour {
        service: "iam",
        what: "a session does not tell the path of its role, and a role is found by its ARN with the path only",
        source: Source::Report("serverless/serverless#13652"),
    },
    Behaviour {
        service: "iam",
        what: "the policies of users, groups and roles are simulated, not those of a session or of the root user: InvalidInput",
        source: Source::Report("newrelic/newrelic-lambda-cli#96"),
    },
    Behaviour {
        service: "iam",
        what: "IAM itself shows a new role at once",
        source: Source::LeftOut("other services see it later, which is what callers wait for"),
    },
    Behaviour {
        service: "iam",
        what: "a simulation of policies allows every action that the test does not deny",
        source: Source::LeftOut("policies are not evaluated"),
    },
];

/// What an account has in IAM.
#[derive(Default)]
pub struct Iam {
    /// The roles by their names.
    pub roles: BTreeMap<String, Role>,
    /// The instance profiles by their names.
    pub profiles: BTreeMap<String, Profile>,
    /// The OIDC providers by their URLs without scheme.
    pub providers: BTreeMap<String, Provider>,
    /// The ARNs of policies besides those of AWS.
    pub policies: BTreeSet<String>,
    /// Actions that a simulation of policies denies.
    pub denied: BTreeSet<String>,
}

impl Iam {
    /// The role of an ARN, as other services see it at a time.
    #[must_use]
    pub fn seen_role(&self, arn: &str, now: jiff::Timestamp) -> Option<&Role> {
        self.roles.values().find(|role| role.arn == arn && role.visible <= now)
    }
}

/// Policies of AWS that are known here.
const MANAGED: &[&str] = &[
    "AmazonEC2ContainerRegistryPullOnly",
    "AmazonEC2ContainerRegistryReadOnly",
    "AmazonEKSClusterPolicy",
    "AmazonEKSWorkerNodePolicy",
    "AmazonEKS_CNI_Policy",
    "AmazonS3ReadOnlyAccess",
    "AmazonSSMManagedInstanceCore",
    "CloudWatchAgentServerPolicy",
    "service-role/AmazonEBSCSIDriverPolicy",
    "service-role/AmazonRDSEnhancedMonitoringRole",
];

fn iam<'a>(world: &'a mut World, call: &Call) -> &'a mut Iam {
    world.state::<Iam>(&call.global())
}

/// An ARN of the account.
fn arn(call: &Call, resource: &str) -> String {
    format!("arn:aws:iam::{}:{resource}", call.account)
}

fn is_policy(world: &mut World, call: &Call, arn: &str) -> bool {
    let managed = arn.strip_prefix("arn:aws:iam::aws:policy/");
    managed.is_some_and(|name| MANAGED.contains(&name)) || iam(world, call).policies.contains(arn)
}

/// A unique id, such as `AROA…`.
fn unique(call: &Call, prefix: &str) -> String {
    format!("{prefix}{}", call.random.base32(17))
}

fn no_such(what: &str, name: &str) -> Fault {
    Fault::new("NoSuchEntity", format!("The {what} with name {name} cannot be found."))
}

fn over(world: &World, call: &Call, quota: &Quota, name: &str, count: usize) -> Result<(), Fault> {
    let limit = world.quotas.of(&call.global(), quota);
    if (count as f64) < limit {
        return Ok(());
    }
    Err(Fault::new("LimitExceeded", format!("Cannot exceed quota for {name}: {limit}")))
}

fn new_tags(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let tags: Vec<(String, String)> = pairs(call);
    let keys: BTreeSet<String> = tags.iter().map(|(key, _)| key.to_lowercase()).collect();
    if keys.len() < tags.len() {
        return Err(Fault::new(
            "InvalidInput",
            "Duplicate tag keys found. Please note that Tag keys are case insensitive.",
        ));
    }
    if keys.iter().any(|key| key.starts_with("aws:")) {
        return Err(Fault::new("InvalidInput", "Tag keys that start with aws: are reserved."));
    }
    Ok(tags)
}

fn pairs(call: &Call) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    call.list("Tags").iter().map(|tag| (text(&tag["Key"]), text(&tag["Value"]))).collect()
}

fn tag_list(tags: &BTreeMap<String, String>) -> Value {
    tags.iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect()
}

fn set_tags(world: &mut World, call: &Call, arn: &str) -> Result<Value, Fault> {
    let new = new_tags(call)?;
    let mut all = world.tags.of(arn);
    all.extend(new.clone());
    if all.len() > 50 {
        return Err(Fault::new("LimitExceeded", "The number of tags has exceeded the maximum limit."));
    }
    world.tags.set(arn, new, call.now);
    Ok(json!({}))
}

fn remove_tags(world: &mut World, call: &Call, arn: &str) -> Result<Value, Fault> {
    world.tags.remove(arn, call.texts("TagKeys"));
    Ok(json!({}))
}

/// One page of a list.
fn page(call: &Call, key: &str, items: Vec<Value>) -> Result<Value, Fault> {
    let mut output = call.page(key, items, Fault::new("InvalidInput", "Invalid Marker"))?;
    if output.get("IsTruncated").is_none() {
        output["IsTruncated"] = json!(false);
    }
    Ok(output)
}

fn simulate(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let source = call.text("PolicySourceArn");
    if !source.contains(":role/") && !source.contains(":user/") {
        return Err(Fault::new("InvalidInput", format!("Invalid Entity Arn: {source}")));
    }
    if source.contains(":role/") && !iam(world, call).roles.values().any(|role| role.arn == source) {
        return Err(no_such("role", source));
    }
    let denied = iam(world, call).denied.clone();
    let resources = call.texts("ResourceArns");
    let resource = resources.first().copied().unwrap_or("*");
    let results = call.texts("ActionNames").into_iter().map(|action| {
        let decision = if denied.contains(action) { "implicitDeny" } else { "allowed" };
        json!({ "EvalActionName": action, "EvalResourceName": resource, "EvalDecision": decision })
    });
    page(call, "EvaluationResults", results.collect())
}
