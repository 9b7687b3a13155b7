//! Simple Notification Service: topics and their subscriptions. Messages are not simulated.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::key_values::KeyValues;
use crate::{Behaviour, Call, Fault, Quota, Scope, Service, Source, World, later};

/// The service.
pub const SERVICE: Service = Service {
    name: "sns",
    model: "sns",
    operations: &[
        ("CreateTopic", create),
        ("DeleteTopic", delete),
        ("GetTopicAttributes", attributes),
        ("ListSubscriptionsByTopic", list_subscriptions),
        ("ListTagsForResource", |world, call| TAGS.list(world, call)),
        ("SetTopicAttributes", set_attribute),
        ("Subscribe", subscribe),
        ("TagResource", |world, call| TAGS.set(world, call)),
        ("Unsubscribe", unsubscribe),
        ("UntagResource", |world, call| TAGS.remove(world, call)),
    ],
    quotas: &[TOPICS],
    ledger: LEDGER,
};

const TOPICS: Quota =
    Quota { service: "sns", code: "L-61103206", name: "Topics per Account", value: 100_000.0, adjustable: true };

const fn row(what: &'static str, source: Source) -> Behaviour {
    Behaviour { service: "sns", what, source }
}

const CREATE_TOPIC: Source = Source::Documentation("https://docs.aws.amazon.com/sns/latest/api/API_CreateTopic.html");

const TAGS: KeyValues = KeyValues {
    arn: "ResourceArn",
    tags: "Tags",
    keys: "TagKeys",
    missing: |arn| Fault::new("ResourceNotFound", format!("Resource {arn} not found")),
};

const LEDGER: &[Behaviour] = &[
    row("CreateTopic of a topic that exists with the same attributes and tags answers its ARN", CREATE_TOPIC),
    row("with other attributes it is refused with InvalidParameter", Source::Report("MassTransit/MassTransit#3721")),
    row("with other tags it is refused with InvalidParameter", Source::Report("localstack/localstack#2405")),
    row(
        "names of topics have 1 to 256 letters, digits, hyphens and underscores, and .fifo at the end of FIFO topics only",
        CREATE_TOPIC,
    ),
    row(
        "a policy of a topic has actions of a list, which has no wildcard; others are out of service scope",
        Source::Documentation(
            "https://docs.aws.amazon.com/sns/latest/dg/sns-access-policy-language-api-permissions-reference.html",
        ),
    ),
    row(
        "a topic without a policy of its own has one that admits its owner",
        Source::Documentation("https://docs.aws.amazon.com/sns/latest/api/API_GetTopicAttributes.html"),
    ),
    row(
        "a subscription by mail or HTTPS waits for its confirmation, and has PendingConfirmation in place of its ARN",
        Source::Documentation("https://docs.aws.amazon.com/sns/latest/api/API_Subscribe.html"),
    ),
    row(
        "an unconfirmed one cannot be removed, and is gone after 48 hours",
        Source::Documentation("https://docs.aws.amazon.com/sns/latest/dg/sns-delete-subscription-topic.html"),
    ),
    row("a second subscription of an address answers the first one", Source::Report("getmoto/moto#1418")),
    row(
        "DeleteTopic ends the subscriptions, and of a topic that does not exist it is no error",
        Source::Documentation("https://docs.aws.amazon.com/sns/latest/api/API_DeleteTopic.html"),
    ),
    row(
        "the key of a topic is not looked up before a message is published",
        Source::LeftOut("a plan creates it before the topic"),
    ),
    row("a new topic is read at once", Source::LeftOut("callers know the topic by its ARN")),
];

/// What a statement of a topic's policy may allow or deny.
const ACTIONS: [&str; 8] = [
    "sns:addpermission",
    "sns:deletetopic",
    "sns:gettopicattributes",
    "sns:listsubscriptionsbytopic",
    "sns:publish",
    "sns:removepermission",
    "sns:settopicattributes",
    "sns:subscribe",
];

/// When an unconfirmed subscription is gone.
const UNCONFIRMED: Duration = Duration::from_secs(48 * 3600);

/// What SNS holds in a region.
#[derive(Default)]
pub struct Sns {
    /// The topics by their ARNs.
    pub topics: BTreeMap<String, Topic>,
}

/// A topic.
#[derive(Default)]
pub struct Topic {
    /// What was set.
    pub attributes: BTreeMap<String, String>,
    /// Its subscriptions.
    pub subscriptions: Vec<Subscription>,
}

/// A subscription.
pub struct Subscription {
    /// `email`, `https`.
    pub protocol: String,
    /// The address.
    pub endpoint: String,
    /// Its ARN once its owner has confirmed it.
    pub arn: Option<String>,
}

/// Confirms all subscriptions of an address, as its owner does.
pub fn confirm(world: &mut World, scope: &Scope, endpoint: &str) {
    for (arn, topic) in &mut world.state::<Sns>(scope).topics {
        for one in topic.subscriptions.iter_mut().filter(|one| one.endpoint == endpoint) {
            one.arn = Some(format!("{arn}:{}", endpoint.replace(|c: char| !c.is_ascii_alphanumeric(), "-")));
        }
    }
}

fn invalid(message: impl Into<String>) -> Fault {
    Fault::new("InvalidParameter", format!("Invalid parameter: {}", message.into()))
}

fn no_topic() -> Fault {
    Fault::new("NotFound", "Topic does not exist")
}

fn topic<'a>(world: &'a mut World, call: &Call) -> Result<&'a mut Topic, Fault> {
    world.state::<Sns>(&call.scope()).topics.get_mut(call.text("TopicArn")).ok_or_else(no_topic)
}

fn check(name: &str, value: &str, topic: &str) -> Result<(), Fault> {
    match name {
        "Policy" if !value.is_empty() => check_policy(value, topic),
        "DisplayName" | "KmsMasterKeyId" | "Policy" => Ok(()),
        _ => Err(invalid("AttributeName")),
    }
}

fn check_policy(text: &str, topic: &str) -> Result<(), Fault> {
    let broken = || invalid("Policy Error: null");
    let policy: Value = serde_json::from_str(text).map_err(|_| broken())?;
    let statements = policy["Statement"].as_array().filter(|all| !all.is_empty()).ok_or_else(broken)?;
    let texts = |value: &Value| -> Vec<String> {
        let all = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        all.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    for statement in statements {
        let (actions, resources) = (texts(&statement["Action"]), texts(&statement["Resource"]));
        if actions.is_empty() || actions.iter().any(|one| !ACTIONS.contains(&one.to_lowercase().as_str())) {
            return Err(invalid("Policy statement action out of service scope!"));
        }
        if resources != [topic] {
            return Err(invalid("Policy statement resource must match the topic"));
        }
        if statement["Principal"].is_null() || !["Allow", "Deny"].contains(&statement["Effect"].as_str().unwrap_or(""))
        {
            return Err(broken());
        }
    }
    Ok(())
}

fn create(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let name = call.text("Name");
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > 256 || !name.chars().all(is_allowed) {
        return Err(invalid("Topic Name"));
    }
    let (arn, tags) = (call.arn(name), TAGS.pairs(call));
    let given = call.input["Attributes"].as_object().into_iter().flatten();
    let attributes: BTreeMap<String, String> =
        given.map(|(name, value)| (name.clone(), value.as_str().unwrap_or_default().to_owned())).collect();
    attributes.iter().try_for_each(|(name, value)| check(name, value, &arn))?;
    let limit = world.quotas.of(&call.scope(), &TOPICS);
    let has_other_tags = world.tags.of(&arn).into_iter().collect::<Vec<_>>() != tags;
    let topics = &mut world.state::<Sns>(&call.scope()).topics;
    match topics.get(&arn) {
        Some(_) if has_other_tags => return Err(invalid("Tags Reason: Topic already exists with different tags")),
        Some(known) if attributes.iter().any(|(name, value)| known.attributes.get(name) != Some(value)) => {
            return Err(invalid("Attributes Reason: Topic already exists with different attributes"));
        }
        Some(_) => return Ok(json!({ "TopicArn": arn })),
        None => {}
    }
    if topics.len() as f64 >= limit {
        return Err(Fault::new("TopicLimitExceeded", "The number of topics has reached its limit."));
    }
    topics.insert(arn.clone(), Topic { attributes, subscriptions: Vec::new() });
    world.tags.set(&arn, tags, call.visible());
    Ok(json!({ "TopicArn": arn }))
}

fn delete(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("TopicArn");
    world.state::<Sns>(&call.scope()).topics.remove(arn);
    world.tags.forget(arn);
    Ok(json!({}))
}

fn attributes(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (arn, account) = (call.text("TopicArn"), call.account.clone());
    let topic = topic(world, call)?;
    let confirmed = topic.subscriptions.iter().filter(|one| one.arn.is_some()).count();
    let mut all: Map<String, Value> =
        topic.attributes.iter().map(|(name, value)| (name.clone(), json!(value))).collect();
    let own = json!({
        "Version": "2008-10-17",
        "Statement": [{
            "Sid": "__default_statement_ID",
            "Effect": "Allow",
            "Principal": { "AWS": "*" },
            "Action": ["SNS:Publish", "SNS:Subscribe"],
            "Resource": arn,
            "Condition": { "StringEquals": { "AWS:SourceOwner": account } },
        }],
    });
    all.entry("Policy").or_insert_with(|| json!(own.to_string()));
    all.insert("TopicArn".to_owned(), json!(arn));
    all.insert("Owner".to_owned(), json!(account));
    all.insert("SubscriptionsConfirmed".to_owned(), json!(confirmed.to_string()));
    all.insert("SubscriptionsPending".to_owned(), json!((topic.subscriptions.len() - confirmed).to_string()));
    Ok(json!({ "Attributes": all }))
}

fn set_attribute(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (name, value) = (call.text("AttributeName"), call.str("AttributeValue").unwrap_or_default());
    check(name, value, call.text("TopicArn"))?;
    let attributes = &mut topic(world, call)?.attributes;
    match value {
        "" => drop(attributes.remove(name)),
        value => drop(attributes.insert(name.to_owned(), value.to_owned())),
    }
    Ok(json!({}))
}

fn subscribe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (protocol, endpoint) = (call.text("Protocol").to_owned(), call.str("Endpoint").unwrap_or_default().to_owned());
    let fits = match protocol.as_str() {
        "email" => endpoint.contains('@'),
        "https" => endpoint.starts_with("https://"),
        _ => return Err(invalid("Amazon SNS does not support this protocol string here")),
    };
    if !fits {
        return Err(invalid("Endpoint"));
    }
    let topic = topic(world, call)?;
    if let Some(known) = topic.subscriptions.iter().find(|one| one.protocol == protocol && one.endpoint == endpoint) {
        return Ok(json!({ "SubscriptionArn": known.arn.as_deref().unwrap_or("pending confirmation") }));
    }
    topic.subscriptions.push(Subscription { protocol, endpoint: endpoint.clone(), arn: None });
    let (scope, arn) = (call.scope(), call.text("TopicArn").to_owned());
    world.defer(later(call.now, UNCONFIRMED), move |world| {
        if let Some(topic) = world.state::<Sns>(&scope).topics.get_mut(&arn) {
            topic.subscriptions.retain(|one| one.endpoint != endpoint || one.arn.is_some());
        }
    });
    Ok(json!({ "SubscriptionArn": "pending confirmation" }))
}

fn unsubscribe(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let arn = call.text("SubscriptionArn");
    if !arn.starts_with("arn:") {
        return Err(invalid("SubscriptionArn Reason: An ARN must have at least 6 elements"));
    }
    for topic in world.state::<Sns>(&call.scope()).topics.values_mut() {
        topic.subscriptions.retain(|one| one.arn.as_deref() != Some(arn));
    }
    Ok(json!({}))
}

fn list_subscriptions(world: &mut World, call: &Call) -> Result<Value, Fault> {
    let (arn, account) = (call.text("TopicArn").to_owned(), call.account.clone());
    let all = topic(world, call)?.subscriptions.iter().map(|one| {
        json!({
            "SubscriptionArn": one.arn.as_deref().unwrap_or("PendingConfirmation"),
            "Owner": account,
            "Protocol": one.protocol,
            "Endpoint": one.endpoint,
            "TopicArn": arn,
        })
    });
    call.page("Subscriptions", all.collect(), invalid("NextToken"))
}
