//! Relational Database Service: PostgreSQL servers, their subnet groups and parameter groups.

mod groups;
mod instances;

pub(super) use instances::weekly;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::postgres::Stand;
use crate::{Behaviour, Call, Fault, Quota, Service, Source, Stages, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "rds",
    model: "rds",
    operations: &[
        ("AddTagsToResource", add_tags),
        ("CreateDBInstance", instances::create),
        ("CreateDBInstanceReadReplica", instances::create_replica),
        ("CreateDBParameterGroup", groups::create_parameter_group),
        ("CreateDBSubnetGroup", groups::create_subnet_group),
        ("DeleteDBInstance", instances::delete),
        ("DeleteDBParameterGroup", groups::delete_parameter_group),
        ("DeleteDBSubnetGroup", groups::delete_subnet_group),
        ("DescribeDBEngineVersions", instances::describe_versions),
        ("DescribeDBInstances", instances::describe),
        ("DescribeDBParameterGroups", groups::describe_parameter_groups),
        ("DescribeDBParameters", groups::describe_parameters),
        ("DescribeDBSubnetGroups", groups::describe_subnet_groups),
        ("ListTagsForResource", list_tags),
        ("ModifyDBInstance", instances::modify),
        ("ModifyDBParameterGroup", groups::modify_parameter_group),
        ("ModifyDBSubnetGroup", groups::modify_subnet_group),
        ("PromoteReadReplica", instances::promote),
        ("RebootDBInstance", instances::reboot),
        ("RemoveTagsFromResource", remove_tags),
        ("ResetDBParameterGroup", groups::reset_parameter_group),
    ],
    quotas: &[INSTANCES],
    ledger: LEDGER,
};

/// Servers of a region.
const INSTANCES: Quota =
    Quota { service: "rds", code: "L-7B6409FD", name: "DB instances", value: 40.0, adjustable: true };

const CREATE: Source =
    Source::Documentation("https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_CreateDBInstance.html");
const MODIFY: Source =
    Source::Documentation("https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_ModifyDBInstance.html");

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "rds",
        what: "names, passwords, ports, storage sizes, backup days, classes and engine versions of new servers are checked",
        source: CREATE,
    },
    Behaviour {
        service: "rds",
        what: "a maintenance window has 30 minutes to 24 hours and does not overlap with that of backups; RDS chooses one that is \
               left out",
        source: CREATE,
    },
    Behaviour {
        service: "rds",
        what: "a new server is creating, then backing-up if it has backups, then available; its endpoint appears at the end",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/accessing-monitoring.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "how long each status lasts, and that modifying shows some seconds late",
        source: Source::LeftOut("a wait of the simulator: callers poll until the state is there"),
    },
    Behaviour {
        service: "rds",
        what: "a server in another status than available refuses changes: InvalidDBInstanceState",
        source: MODIFY,
    },
    Behaviour {
        service: "rds",
        what: "storage only grows, by a tenth at least, and not while it is being optimized",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_PIOPS.StorageTypes.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "the versions of an engine are listed by their full numbers",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_DescribeDBEngineVersions.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "a new major version needs AllowMajorVersionUpgrade and a parameter group of its family; there is no way back",
        source: MODIFY,
    },
    Behaviour {
        service: "rds",
        what: "each family has a parameter group of RDS: `default.` and its name",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_WorkingWithParamGroups.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "a protected server is not deleted; a last snapshot needs a name that no other has, and replicas get none",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_DeleteDBInstance.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "a replica needs a source with backups, in another region its ARN and a key of the replica's region; it shows \
               the source by its name or, in another region, its ARN",
        source: Source::Documentation("https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_ReadRepl.XRgn.html"),
    },
    Behaviour {
        service: "rds",
        what: "only a replica in the status available is promoted: InvalidDBInstanceState",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_PromoteReadReplica.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "a promoted replica is modifying, then rebooting, then a server of its own",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_ReadRepl.Promote.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "a failover needs a standby: InvalidParameterCombination; and the status available: InvalidDBInstanceState",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_RebootDBInstance.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "the zone of the standby is shown as that of the server minutes after a failover",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_RebootInstance.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "a reboot without a failover applies no pending parameters",
        source: Source::LeftOut("this program restarts no server"),
    },
    Behaviour {
        service: "rds",
        what: "a subnet group needs two zones, and groups that a server uses are not deleted",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_VPC.WorkingWithRDSInstanceinaVPC.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "each subnet of a group counts as another zone",
        source: Source::LeftOut("a plan has one subnet in each zone"),
    },
    Behaviour {
        service: "rds",
        what: "security groups are not looked up",
        source: Source::LeftOut("a plan creates them before the server"),
    },
    Behaviour {
        service: "rds",
        what: "static parameters are taken over at a restart only",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_WorkingWithParamGroups.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "which parameters exist: those that tests set",
        source: Source::LeftOut("a plan sets one parameter"),
    },
    Behaviour {
        service: "rds",
        what: "a parameter that is set to its default keeps the source engine-default and the method pending-reboot",
        source: Source::Report("hashicorp/terraform-provider-aws#3182"),
    },
    Behaviour {
        service: "rds",
        what: "a replica in the region of its source, which is given by name, takes no subnet group",
        source: Source::Report("hashicorp/terraform-provider-aws#40426"),
    },
    Behaviour {
        service: "rds",
        what: "Performance Insights is refused for no class",
        source: Source::LeftOut(
            "RDS has it for every class of PostgreSQL, and refuses classes of other engines: \
             https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_DatabaseInsights.Engines.html",
        ),
    },
    Behaviour {
        service: "rds",
        what: "the first subnet group of an account creates RDS's own role, and is refused until it takes effect",
        source: Source::Report("crossplane-contrib/provider-aws#479"),
    },
    Behaviour {
        service: "rds",
        what: "a server is refused until that role takes effect, and told to try again",
        source: Source::Report("aws-samples/eks-workshop-v2#1609"),
    },
    Behaviour {
        service: "rds",
        what: "a replica of PostgreSQL takes no parameter group at its creation",
        source: Source::Report("hashicorp/terraform-provider-aws#38056"),
    },
    Behaviour {
        service: "rds",
        what: "a new replica has the parameter group of its source, in another region the default one",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonRDS/latest/APIReference/API_CreateDBInstanceReadReplica.html",
        ),
    },
];

/// What RDS holds in a region.
#[derive(Default)]
pub struct Rds {
    /// The servers by their names.
    pub instances: BTreeMap<String, Instance>,
    /// The names of snapshots, each with the server that it is of.
    pub snapshots: BTreeMap<String, String>,
    /// Whether the account never had a database: it has no role of RDS. Set it in the global scope of the account.
    pub is_new: bool,
    /// When the role that the first request created takes effect.
    role: Option<Timestamp>,
    /// What stands for new servers, if anything does.
    pub stand: Option<Stand>,
    /// Their hosts, by their names.
    addresses: BTreeMap<String, String>,
    subnet_groups: BTreeMap<String, SubnetGroup>,
    parameter_groups: BTreeMap<String, ParameterGroup>,
}

/// A server.
pub struct Instance {
    /// Its status over time. A test may set another.
    pub status: Stages,
    /// What `DescribeDBInstances` shows besides its status, endpoint, subnet group and tags.
    pub shown: Value,
    /// The password, which no answer shows.
    pub password: String,
    subnet_group: String,
    /// From when on it has an endpoint.
    ready: Timestamp,
}

struct SubnetGroup {
    description: String,
    subnets: Vec<String>,
}

struct ParameterGroup {
    family: String,
    description: String,
    /// The value and the apply method of what is not at its default.
    changed: BTreeMap<String, (String, String)>,
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("InvalidParameterValue", message).status(400)
}

fn combination(message: impl Into<String>) -> Fault {
    Fault::new("InvalidParameterCombination", message).status(400)
}

/// Whether RDS has its role in the account. The first request creates it.
fn check_role(world: &mut World, call: &Call, refusal: &str) -> Result<(), Fault> {
    let state = world.state::<Rds>(&call.global());
    if !state.is_new || *state.role.get_or_insert(call.visible()) <= call.now {
        return Ok(());
    }
    Err(invalid(refusal))
}

fn pairs(call: &Call) -> Result<Vec<(String, String)>, Fault> {
    let text = |tag: &Value, member: &str| tag[member].as_str().unwrap_or_default().to_owned();
    let pairs: Vec<_> = call.list("Tags").iter().map(|tag| (text(tag, "Key"), text(tag, "Value"))).collect();
    match pairs.iter().find(|(key, _)| key.is_empty() || key.starts_with("aws:")) {
        Some((key, _)) => Err(invalid(format!("Tag keys may not begin with aws: {key}"))),
        None => Ok(pairs),
    }
}

fn tag_list(world: &World, arn: &str) -> Vec<Value> {
    world.tags.of(arn).into_iter().map(|(key, value)| json!({ "Key": key, "Value": value })).collect()
}

/// The ARN of the input, if there is such a resource.
fn resource(world: &World, call: &Call) -> Result<String, Fault> {
    let arn = call.text("ResourceName");
    if world.tags.has(arn) {
        return Ok(arn.to_owned());
    }
    let name = arn.rsplit(':').next().unwrap_or_default();
    Err(match arn.split(':').nth(5) {
        Some("subgrp") => groups::no_subnet_group(name),
        Some("pg") => groups::no_parameter_group(name),
        _ => instances::not_found(name),
    })
}

fn add_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let tags = pairs(call)?;
    let arn = resource(world, call)?;
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({}))
}

fn remove_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = resource(world, call)?;
    world.tags.remove(&arn, call.texts("TagKeys"));
    Ok(json!({}))
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = resource(world, call)?;
    Ok(json!({ "TagList": tag_list(world, &arn) }))
}
