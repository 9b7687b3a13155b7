//! CloudWatch Logs.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::{Behaviour, Call, Fault, Quota, Service, Source, World};

/// The service.
pub const SERVICE: Service = Service {
    name: "logs",
    model: "logs",
    operations: &[
        ("AssociateKmsKey", associate_key),
        ("CreateLogGroup", create),
        ("DeleteLogGroup", delete),
        ("DeleteRetentionPolicy", delete_retention),
        ("DescribeLogGroups", describe),
        ("DisassociateKmsKey", disassociate_key),
        ("ListTagsForResource", list_tags),
        ("PutRetentionPolicy", put_retention),
        ("TagResource", tag),
        ("UntagResource", untag),
    ],
    quotas: &[GROUPS],
    ledger: LEDGER,
};

const GROUPS: Quota =
    Quota { service: "logs", code: "L-D2832119", name: "Log groups", value: 1_000_000.0, adjustable: true };

const LEDGER: &[Behaviour] = &[
    Behaviour {
        service: "logs",
        what: "ResourceAlreadyExistsException and ResourceNotFoundException of log groups, and the days of a retention",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_PutRetentionPolicy.html",
        ),
    },
    Behaviour {
        service: "logs",
        what: "the tags of a log group are read by its ARN without the asterisk at the end",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_LogGroup.html",
        ),
    },
    Behaviour {
        service: "logs",
        what: "a page has 50 log groups at most",
        source: Source::Documentation(
            "https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_DescribeLogGroups.html",
        ),
    },
    Behaviour {
        service: "logs",
        what: "a new log group is listed at once",
        source: Source::LeftOut("callers know the group by its name"),
    },
];

/// Days that a retention may have.
const DAYS: [i64; 22] =
    [1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, 1096, 1827, 2192, 2557, 2922, 3288, 3653];

/// The log groups of a region by their names.
#[derive(Default)]
pub struct Logs {
    /// The log groups.
    pub groups: BTreeMap<String, LogGroup>,
}

/// A log group.
#[derive(Clone, Debug)]
pub struct LogGroup {
    /// Days after which entries are deleted.
    pub retention: Option<i64>,
    /// The ARN of its key.
    pub key: Option<String>,
    created: Timestamp,
}

impl LogGroup {
    /// One that a service makes for its entries, without tags.
    #[must_use]
    pub fn by_service(created: Timestamp) -> Self {
        Self { retention: None, key: None, created }
    }
}

fn arn(call: &Call, name: &str) -> String {
    call.arn(&format!("log-group:{name}"))
}

fn no_group() -> Fault {
    Fault::new("ResourceNotFoundException", "The specified log group does not exist.")
}

fn group<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut LogGroup, Fault> {
    world.state::<Logs>(&call.scope()).groups.get_mut(call.text("logGroupName")).ok_or_else(no_group)
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("logGroupName").to_owned();
    let limit = world.quotas.of(&call.scope(), &GROUPS);
    let groups = &mut world.state::<Logs>(&call.scope()).groups;
    if groups.contains_key(&name) {
        return Err(Fault::new("ResourceAlreadyExistsException", "The specified log group already exists"));
    }
    if groups.len() as f64 >= limit {
        return Err(Fault::new("LimitExceededException", "Resource limit exceeded."));
    }
    let group = LogGroup { retention: None, key: call.str("kmsKeyId").map(str::to_owned), created: call.now };
    groups.insert(name.clone(), group);
    world.tags.set(&arn(call, &name), pairs(&call.input["tags"]), call.visible());
    Ok(json!({}))
}

fn pairs(tags: &Value) -> Vec<(String, String)> {
    let pairs = tags.as_object().into_iter().flatten();
    pairs.map(|(key, value)| (key.clone(), value.as_str().unwrap_or_default().to_owned())).collect()
}

fn describe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let prefix = call.str("logGroupNamePrefix").unwrap_or_default();
    let groups = world.state::<Logs>(&call.scope()).groups.iter().filter(|(name, _)| name.starts_with(prefix));
    let all: Vec<Value> = groups
        .map(|(name, group)| {
            let mut answer = json!({
                "logGroupName": name,
                "creationTime": group.created.as_millisecond(),
                "metricFilterCount": 0,
                "arn": format!("{}:*", arn(call, name)),
                "logGroupArn": arn(call, name),
                "storedBytes": 0,
                "logGroupClass": "STANDARD",
            });
            if let Some(days) = group.retention {
                answer["retentionInDays"] = json!(days);
            }
            if let Some(key) = &group.key {
                answer["kmsKeyId"] = json!(key);
            }
            answer
        })
        .collect();
    let mut call = call.clone();
    call.timing.page = call.timing.page.min(50);
    call.page("logGroups", all, Fault::new("InvalidParameterException", "The specified nextToken is invalid."))
}

fn put_retention(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let days = call.int("retentionInDays").unwrap_or_default();
    if !DAYS.contains(&days) {
        return Err(Fault::new(
            "InvalidParameterException",
            format!("Value {days} is not a number of days that is allowed"),
        ));
    }
    group(world, call)?.retention = Some(days);
    Ok(json!({}))
}

fn delete_retention(world: &mut World, call: &Call) -> Result<Value, Fault> {
    group(world, call)?.retention = None;
    Ok(json!({}))
}

fn associate_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    group(world, call)?.key = Some(call.text("kmsKeyId").to_owned());
    Ok(json!({}))
}

fn disassociate_key(world: &mut World, call: &Call) -> Result<Value, Fault> {
    group(world, call)?.key = None;
    Ok(json!({}))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    group(world, call)?;
    world.state::<Logs>(&call.scope()).groups.remove(call.text("logGroupName"));
    world.tags.forget(&arn(call, call.text("logGroupName")));
    Ok(json!({}))
}

/// The ARN of an input, if it is one of a log group.
fn tagged<'a>(world: &World, call: &'a Call) -> Result<&'a str, Fault> {
    let arn = call.text("resourceArn");
    let name = arn.split_once(":log-group:").map_or("", |(_, name)| name);
    let is_there = world.find::<Logs>(&call.scope()).is_some_and(|logs| logs.groups.contains_key(name));
    if is_there { Ok(arn) } else { Err(no_group()) }
}

fn list_tags(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    let tags: Map<String, Value> = world.tags.of(arn).into_iter().map(|(key, value)| (key, json!(value))).collect();
    Ok(json!({ "tags": tags }))
}

fn tag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    world.tags.set(arn, pairs(&call.input["tags"]), call.visible());
    Ok(json!({}))
}

fn untag(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = tagged(world, call)?;
    world.tags.remove(arn, call.texts("tagKeys"));
    Ok(json!({}))
}
