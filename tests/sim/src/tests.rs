//! Tests of the mechanisms that services share.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};

use crate::aws::check;
use crate::aws::model::{Model, Protocol, Reference};
use crate::clock::Random;
use crate::fault_plan::{Disruption, FaultPlan, Rule};
use crate::{Call, Fault, Market, Quota, Scope, Timing, World, is_like, later, passes};

const SECOND: Duration = Duration::from_secs(1);

fn call(world: &World, operation: &str, input: Value) -> Call {
    Call {
        service: "ec2",
        operation: operation.to_owned(),
        account: "1".to_owned(),
        region: "eu-west-1".to_owned(),
        identity: String::new(),
        identity_id: String::new(),
        access_key: String::new(),
        input,
        now: world.now(),
        request_id: String::new(),
        host: String::new(),
        timing: Timing { page: 3, ..Timing::default() },
        random: world.random.clone(),
        body: Default::default(),
        reply_body: Default::default(),
        paginator: Model::of("ec2").unwrap().paginator(operation).cloned(),
        protocol: Protocol::Ec2,
    }
}

fn mismatch() -> Fault {
    Fault::new("IdempotentParameterMismatch", "")
}

#[test]
fn client_tokens_give_the_first_object_for_the_same_input_only() {
    let mut world = World::new(1);
    let mut once = |input: Value, result: Result<&str, Fault>| {
        let call = call(&world, "RunInstances", input);
        world.once(&call, "ClientToken", mismatch(), |_| result.map(str::to_owned))
    };
    assert_eq!(
        once(json!({ "ClientToken": "t", "MinCount": 1 }), Err(Fault::new("Failed", ""))),
        Err(Fault::new("Failed", ""))
    );
    assert_eq!(once(json!({ "ClientToken": "t", "MinCount": 2 }), Ok("i-1")), Ok("i-1".to_owned()));
    assert_eq!(once(json!({ "MinCount": 2, "ClientToken": "t" }), Ok("i-2")), Ok("i-1".to_owned()));
    assert_eq!(once(json!({ "ClientToken": "t", "MinCount": 3 }), Ok("i-3")), Err(mismatch()));
    assert_eq!(once(json!({ "MinCount": 2 }), Ok("i-4")), Ok("i-4".to_owned()));
}

#[test]
fn pages_hold_all_items_once_and_their_tokens_fit_one_operation() {
    let world = World::new(1);
    let items: Vec<Value> = (0..8).map(Value::from).collect();
    let page = |operation: &str, input: Value| {
        call(&world, operation, input).page("Vpcs", items.clone(), Fault::new("InvalidNextToken", ""))
    };
    let (mut seen, mut input, mut sizes) = (Vec::new(), json!({ "MaxResults": 1000 }), Vec::new());
    loop {
        let output = page("DescribeVpcs", input).unwrap();
        let items = output["Vpcs"].as_array().unwrap().clone();
        sizes.push(items.len());
        seen.extend(items);
        match output.get("NextToken") {
            Some(token) => input = json!({ "NextToken": token, "MaxResults": 1000 }),
            None => break,
        }
    }
    assert_eq!((seen, sizes), (items.clone(), vec![3, 3, 2]));
    let small = page("DescribeVpcs", json!({ "MaxResults": 2 })).unwrap();
    assert_eq!(small["Vpcs"], json!([0, 1]));
    for (operation, token) in [("DescribeSubnets", &small["NextToken"]), ("DescribeVpcs", &json!("nothing"))] {
        assert_eq!(page(operation, json!({ "NextToken": token })).unwrap_err().code, "InvalidNextToken");
    }
}

#[test]
fn paginators_with_nested_members_are_filled() {
    let world = World::new(1);
    let mut call = call(&world, "ListResourceRecordSets", json!({ "MaxItems": "2" }));
    call.paginator = Model::of("route53").unwrap().paginator("ListHostedZones").cloned();
    let output = call.page("HostedZones", vec![json!(1), json!(2), json!(3)], mismatch()).unwrap();
    assert_eq!((&output["HostedZones"], &output["IsTruncated"]), (&json!([1, 2]), &json!(true)));
    assert!(output["NextMarker"].is_string());
    call.paginator = None;
    assert_eq!(call.page("A.B", vec![json!(1)], mismatch()).unwrap(), json!({ "A": { "B": [1] } }));
}

#[test]
fn deferred_actions_happen_in_order_at_their_time() {
    #[derive(Default)]
    struct Seen(Vec<(u32, jiff::Timestamp)>);
    let scope = Scope::global("1");
    let mut world = World::new(1);
    let start = world.now();
    for (number, after) in [(2, 20), (1, 10), (3, 20)] {
        let scope = scope.clone();
        world.defer(later(start, after * SECOND), move |world| {
            let now = world.now();
            world.state::<Seen>(&scope).0.push((number, now));
        });
    }
    world.advance(15 * SECOND);
    assert_eq!(world.state::<Seen>(&scope).0, [(1, later(start, 10 * SECOND))]);
    world.advance(15 * SECOND);
    let seen: Vec<u32> = world.find::<Seen>(&scope).unwrap().0.iter().map(|(number, _)| *number).collect();
    assert_eq!((seen, world.now()), (vec![1, 2, 3], later(start, 30 * SECOND)));
    assert_eq!(world.scopes::<Seen>(), [scope]);
}

#[test]
fn stages_follow_the_clock_and_zero_latency_is_the_next_request() {
    let mut world = World::new(1);
    let mut request = call(&world, "CreateVpc", json!({}));
    let slow = request.stages("pending", &[(10 * SECOND, "running"), (30 * SECOND, "failed")]);
    request.timing.zero_latency = true;
    let quick = request.stages("pending", &[(10 * SECOND, "available")]);
    assert_eq!((slow.at(world.now()), quick.at(world.now())), ("pending", "pending"));
    world.advance(Duration::from_millis(1));
    assert_eq!((slow.at(world.now()), quick.at(world.now())), ("pending", "available"));
    world.advance(10 * SECOND);
    assert_eq!(slow.at(world.now()), "running");
    world.advance(20 * SECOND);
    assert_eq!((slow.at(world.now()), slow.last().0), ("failed", "failed"));
}

#[test]
fn filters_take_alternatives_and_wildcards() {
    let tags = BTreeMap::from([("Name".to_owned(), "web-1".to_owned())]);
    let is = |filters: Value| {
        passes(filters.as_array().unwrap(), &tags, |name| (name == "state").then(|| vec!["available".to_owned()]))
    };
    assert_eq!(is(json!([])), Ok(true));
    assert_eq!(
        is(json!([{ "Name": "state", "Values": ["pending", "avail*"] }, { "Name": "tag:Name", "Values": ["web-?"] }])),
        Ok(true)
    );
    assert_eq!(
        is(json!([{ "Name": "state", "Values": ["available"] }, { "Name": "tag:Name", "Values": ["db"] }])),
        Ok(false)
    );
    assert_eq!(is(json!([{ "Name": "tag-key", "Values": ["Name"] }])), Ok(true));
    assert_eq!(is(json!([{ "Name": "tag:Other", "Values": ["*"] }])), Ok(false));
    assert_eq!(is(json!([{ "Name": "size", "Values": ["1"] }])).unwrap_err().code, "InvalidParameterValue");
    for (pattern, text, wanted) in [
        ("*", "", true),
        ("a*b*c", "aXbXbXc", true),
        ("a*b*c", "aXbX", false),
        (r"a\*", "a*", true),
        (r"a\*", "ab", false),
        ("a?", "a", false),
        ("", "a", false),
        (r"\", r"\", true),
    ] {
        assert_eq!(is_like(pattern, text), wanted, "{pattern} {text}");
    }
}

#[test]
fn tags_are_listed_late_and_uses_are_found_across_services() {
    let mut world = World::new(1);
    let now = world.now();
    let tag = |value: &str| [("k".to_owned(), value.to_owned())];
    world.tags.set("arn:a/1", tag("1"), later(now, SECOND));
    world.tags.set("arn:a/2", [], now);
    world.tags.set("arn:b/1", tag("1"), now);
    let listed = |world: &World, at| {
        world.tags.listed("arn:a/", at).map(|(arn, tags)| (arn.to_owned(), tags.len())).collect::<Vec<_>>()
    };
    assert_eq!(listed(&world, now), [("arn:a/1".to_owned(), 0), ("arn:a/2".to_owned(), 0)]);
    assert_eq!(listed(&world, later(now, SECOND))[0].1, 1);
    assert_eq!(world.tags.of("arn:a/1")["k"], "1");
    world.tags.remove("arn:a/1", ["k"]);
    world.tags.forget("arn:a/2");
    assert!(world.tags.has("arn:a/1") && !world.tags.has("arn:a/2") && world.tags.of("arn:a/1").is_empty());

    world.uses.add("arn:lb", "subnet-1");
    world.uses.add("arn:eni", "subnet-1");
    world.uses.add("arn:lb", "subnet-10");
    assert_eq!(world.uses.users("subnet-1").collect::<Vec<_>>(), ["arn:eni", "arn:lb"]);
    world.uses.remove("arn:eni", "subnet-1");
    world.uses.forget("arn:lb");
    assert_eq!(world.uses.users("subnet-1").count() + world.uses.users("subnet-10").count(), 0);
}

#[test]
fn capacity_is_per_zone_type_and_market_and_quotas_per_place() {
    let mut world = World::new(1);
    world.capacity.set("a", "g5.xlarge", Market::Spot, 2);
    assert!(!world.capacity.take("a", "g5.xlarge", Market::Spot, 3));
    assert!(world.capacity.take("a", "g5.xlarge", Market::Spot, 2));
    assert!(!world.capacity.take("a", "g5.xlarge", Market::Spot, 1));
    assert!(
        world.capacity.take("a", "g5.xlarge", Market::OnDemand, 1000)
            && world.capacity.take("b", "g5.xlarge", Market::Spot, 1)
    );
    world.capacity.give("a", "g5.xlarge", Market::Spot, 1);
    assert_eq!(world.capacity.left("a", "g5.xlarge", Market::Spot), Some(1));

    const QUOTA: Quota = Quota { service: "ec2", code: "L-1", name: "", value: 5.0, adjustable: true };
    let (here, there) = (Scope::new("1", "eu-west-1"), Scope::new("1", "us-east-1"));
    world.quotas.set(&here, "L-1", 7.0);
    assert_eq!((world.quotas.of(&here, &QUOTA), world.quotas.of(&there, &QUOTA)), (7.0, 5.0));
}

#[test]
fn the_same_seed_gives_the_same_ids_and_faults() {
    let ids = |seed| {
        let world = World::new(seed);
        let call = call(&world, "CreateVpc", json!({}));
        (call.id("vpc"), call.random.uuid(), call.random.base32(16))
    };
    assert_eq!(ids(7), ids(7));
    assert_ne!(ids(7), ids(8));
    let (id, uuid, _) = ids(7);
    assert!(id.len() == 21 && id.starts_with("vpc-0") && uuid.len() == 36 && &uuid[14..15] == "4", "{id} {uuid}");

    let faults = |seed| {
        let mut plan = FaultPlan::default();
        plan.by_chance(seed, vec![(0.1, Disruption::Throttled), (0.1, Disruption::LostReply)]);
        (0..1000).map(|_| plan.next("ec2", "CreateVpc", "")).collect::<Vec<_>>()
    };
    assert_eq!(faults(3), faults(3));
    for kind in [Disruption::Throttled, Disruption::LostReply] {
        let count = faults(3).iter().filter(|one| **one == Some(kind.clone())).count();
        assert!((50..200).contains(&count), "{kind:?}: {count}");
    }
    assert!(Random::new(1).fraction() < 1.0);
}

#[test]
fn rules_choose_requests_by_service_operation_and_count() {
    let mut plan = FaultPlan::default();
    plan.add(Rule::nth("ec2", "CreateVpc", 2, Disruption::LostReply));
    plan.add(Rule::always("iam", "", Disruption::Throttled));
    plan.add(Rule::always("", "", Disruption::Unavailable).in_region("us-east-1"));
    let next = |plan: &mut FaultPlan, service, operation| plan.next(service, operation, "eu-west-1");
    assert_eq!(next(&mut plan, "ec2", "CreateVpc"), None);
    assert_eq!(next(&mut plan, "ec2", "DeleteVpc"), None);
    assert_eq!(next(&mut plan, "ec2", "CreateVpc"), Some(Disruption::LostReply));
    assert_eq!(next(&mut plan, "ec2", "CreateVpc"), None);
    assert_eq!(next(&mut plan, "iam", "GetRole"), Some(Disruption::Throttled));
    assert_eq!(plan.next("ec2", "DeleteVpc", "us-east-1"), Some(Disruption::Unavailable));
    plan.clear();
    assert_eq!(next(&mut plan, "iam", "GetRole"), None);
}

#[test]
fn values_outside_of_the_model_are_found_with_their_path() {
    let problems = |folder: &str, shape: &str, value: Value| {
        let mut problems = Vec::new();
        let reference = Reference { shape: shape.to_owned(), ..Reference::default() };
        check::check(Model::of(folder).unwrap(), &reference, &value, "input", &mut problems);
        problems
    };
    let cluster = json!({ "name": "a", "roleArn": "r", "resourcesVpcConfig": {} });
    assert_eq!(problems("eks", "CreateClusterRequest", cluster.clone()), Vec::<String>::new());
    let with = |member: &str, value: Value| {
        let mut changed = cluster.clone();
        changed[member] = value;
        problems("eks", "CreateClusterRequest", changed)
    };
    for (member, value, wanted) in [
        ("colour", json!("red"), "input.colour: the model has no such member"),
        ("name", json!("-"), "input.name: \"-\" does not match"),
        ("name", json!("a".repeat(101)), "input.name: its length 101 is outside of 1..100"),
        ("version", json!(1.31), "input.version: 1.31 is no String"),
        ("tags", json!({ "k": 1 }), "input.tags.k: 1 is no String"),
        (
            "logging",
            json!({ "clusterLogging": [{ "types": ["api", "all"] }] }),
            "input.logging.clusterLogging[0].types[1]: \"all\"",
        ),
        (
            "resourcesVpcConfig",
            json!({ "endpointPublicAccess": "yes" }),
            "input.resourcesVpcConfig.endpointPublicAccess",
        ),
    ] {
        let found = with(member, value);
        assert!(found.iter().any(|problem| problem.starts_with(wanted)), "{found:?} lacks {wanted}");
    }
    assert_eq!(problems("eks", "CreateClusterRequest", json!({})).len(), 3);
    let secret = json!({ "Name": "n", "SecretString": "hunter2" });
    let reference = Reference { shape: "CreateSecretRequest".to_owned(), ..Reference::default() };
    let shown = check::redacted(Model::of("secretsmanager").unwrap(), &reference, &secret);
    assert_eq!(shown, json!({ "Name": "n", "SecretString": "***" }));
}
