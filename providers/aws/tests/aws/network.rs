//! VPCs and what is in them.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Network, Site};
use textnlp_provider::conformance::{TestBed, Violation, lowers_purely};
use textnlp_provider::{
    CloudId, DeleteBounds, ErrorKind, Health, Object, Observed, Operation, OperationId, Outputs, Ownership, Progress,
    Provider, Recorded, Scope, Spec, Token, Verb, Wanted, error_chain,
};
use textnlp_sim::aws::{ec2, elb};
use textnlp_sim::{Disruption, Fault, Rule};

use crate::{Bench, lineage, output, run, site, wanted};

type Outcome<T = ()> = Result<T, Violation>;

/// The tags of a network in which a cluster's controllers create objects.
const CLUSTER: &str = "textnlp-staging-here";

pub(crate) fn vpc() -> Wanted {
    let tags = json!({ (format!("kubernetes.io/cluster/{CLUSTER}")): "shared" });
    let spec = json!({ "cidr": "10.42.0.0/16", "dns_hostnames": true, "default_rules": false, "tags": tags });
    wanted("here/network/vpc", "aws.vpc", &spec)
}

fn subnet(vpc: &Recorded, letter: &str, number: u8) -> Wanted {
    let tags = json!({ "kubernetes.io/role/elb": "1", (format!("kubernetes.io/cluster/{CLUSTER}")): "shared" });
    let spec = json!({
        "vpc": output(vpc, "id"), "cidr": format!("10.42.{number}.0/24"), "zone": format!("euw1-az{}", number + 1),
        "public_addresses": false, "tags": tags,
    });
    wanted(&format!("here/network/subnet-public-{letter}"), "aws.subnet", &spec)
}

fn gateway(vpc: &Recorded) -> Wanted {
    wanted("here/network/internet-gateway", "aws.internet-gateway", &json!({ "vpc": output(vpc, "id"), "tags": {} }))
}

fn group(vpc: &Recorded) -> Wanted {
    let rule = |peer: &str, port: u16| json!({ "protocol": "tcp", "from": port, "to": port, "peer": peer, "description": "a test" });
    let all = json!({ "protocol": "-1", "from": -1, "to": -1, "peer": "::/0", "description": "" });
    let spec = json!({
        "vpc": output(vpc, "id"), "name": "textnlp-staging-here-test", "description": "a group",
        "ingress": [rule("self", 22), rule("10.42.0.0/16", 443)], "egress": [all], "tags": {},
    });
    wanted("here/network/endpoints", "aws.security-group", &spec)
}

/// The same resource with another value of a field.
pub(crate) fn with(wanted: &Wanted, field: &str, value: Value) -> Spec {
    let mut spec = wanted.spec.as_value().clone();
    spec[field] = value;
    Spec::of(&spec)
}

pub(crate) fn operation(verb: Verb, wanted: &Wanted, recorded: Option<&Recorded>, number: u64) -> Operation {
    let id = OperationId(number);
    Operation {
        id,
        token: Token::derive(lineage(), &wanted.site, id),
        verb,
        resource: wanted.id.clone(),
        kind: wanted.kind.clone(),
        site: wanted.site.clone(),
        environment: "staging".parse().unwrap(),
        lineage: lineage(),
        via: None,
        host: None,
        spec: wanted.spec.clone(),
        recorded: recorded.cloned(),
        changes: Vec::new(),
        bounds: DeleteBounds::default(),
        lacking: Vec::new(),
        is_repeated: false,
    }
}

/// Runs an operation to its end, at most so many steps.
pub(crate) async fn finish(bench: &Bench, op: &Operation) -> Result<Object, textnlp_provider::Error> {
    let mut handle = None;
    for _ in 0..4_000 {
        let answer = match &handle {
            Some(handle) => bench.provider.advance(op, handle).await,
            None => bench.provider.begin(op).await,
        };
        match answer {
            Ok(Progress::Done(object)) => return Ok(object),
            Ok(Progress::Failed { error, .. }) => return Err(error),
            Ok(Progress::Pending { handle: next, .. }) => handle = Some(next),
            Err(error) if error.kind.may_pass() => {}
            Err(error) => return Err(error),
        }
    }
    panic!("it does not end");
}

pub(crate) async fn seen(bench: &Bench, wanted: &Wanted, recorded: &Recorded) -> Object {
    match bench.provider.read(&wanted.kind, &recorded.cloud_id).await {
        Ok(Observed::Present(object)) => object,
        other => panic!("{other:?}"),
    }
}

fn count(bench: &Bench, collection: &'static ec2::Collection) -> usize {
    let world = bench.simulator.world();
    world.find::<ec2::Ec2>(&Bench::scope()).map_or(0, |state| state.all(collection).count())
}

#[test]
fn a_vpc_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = vpc();
        bench.bed().whole_life(&wanted, Some(&with(&wanted, "dns_hostnames", json!(false)))).await
    });
}

#[test]
fn a_subnet_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (network, id) = (vpc(), bed.make(&vpc()).await?);
        let wanted = subnet(&id, "a", 0);
        bed.whole_life(&wanted, Some(&with(&wanted, "public_addresses", json!(true)))).await?;
        bed.unmake(&network, &id).await
    });
}

#[test]
fn an_internet_gateway_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (network, id) = (vpc(), bed.make(&vpc()).await?);
        let wanted = gateway(&id);
        bed.whole_life(&wanted, Some(&with(&wanted, "tags", json!({ "a": "b" })))).await?;
        bed.unmake(&network, &id).await
    });
}

#[test]
fn an_address_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = wanted("here/network/address-a", "aws.elastic-ip", &json!({ "tags": {} }));
        bench.bed().whole_life(&wanted, Some(&with(&wanted, "tags", json!({ "a": "b" })))).await
    });
}

/// A VPC with a subnet, a gateway and an address.
async fn nat_world(bed: &TestBed<'_>) -> Outcome<(Vec<(Wanted, Recorded)>, Wanted)> {
    let mut made = vec![(vpc(), bed.make(&vpc()).await?)];
    let address = wanted("here/network/address-a", "aws.elastic-ip", &json!({ "tags": {} }));
    for one in [subnet(&made[0].1, "a", 0), gateway(&made[0].1), address] {
        let recorded = bed.make(&one).await?;
        made.push((one, recorded));
    }
    let spec = json!({ "subnet": output(&made[1].1, "id"), "address": output(&made[3].1, "id"), "tags": {} });
    Ok((made, wanted("here/network/nat-a", "aws.nat-gateway", &spec)))
}

async fn unmake(bed: &TestBed<'_>, made: Vec<(Wanted, Recorded)>) -> Outcome {
    for (wanted, recorded) in made.iter().rev() {
        bed.unmake(wanted, recorded).await?;
    }
    Ok(())
}

#[test]
fn a_nat_gateway_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (made, wanted) = nat_world(&bed).await?;
        bed.whole_life(&wanted, Some(&with(&wanted, "tags", json!({ "a": "b" })))).await?;
        unmake(&bed, made).await
    });
}

fn flow_log(vpc: &Recorded) -> Wanted {
    let spec = json!({
        "vpc": output(vpc, "id"), "log_group": "/textnlp/textnlp-staging-here-network",
        "role": "arn:aws:iam::123456789012:role/textnlp/logs", "traffic": "ALL", "interval_seconds": 600, "tags": {},
    });
    wanted("here/network/flow-log", "aws.flow-log", &spec)
}

#[test]
fn a_flow_log_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let network = bed.make(&vpc()).await?;
        let wanted = flow_log(&network);
        bed.whole_life(&wanted, Some(&with(&wanted, "tags", json!({ "a": "b" })))).await?;
        bed.unmake(&vpc(), &network).await
    });
}

#[test]
fn a_flow_log_that_exists_is_reported() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let network = bed.make(&vpc()).await?;
        bed.make(&flow_log(&network)).await?;
        let second = Wanted { id: "here/network/flow-log-2".parse().unwrap(), ..flow_log(&network) };
        let error = finish(&bench, &operation(Verb::Create, &second, None, 100)).await.unwrap_err();
        assert_eq!(error.code.as_deref(), Some("FlowLogAlreadyExists"));
        assert_eq!(count(&bench, &ec2::FLOW_LOG), 1);
        Ok(())
    });
}

#[test]
fn a_route_table_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (mut made, nat) = nat_world(&bed).await?;
        let other = subnet(&made[0].1, "b", 1);
        let recorded = bed.make(&other).await?;
        made.push((other, recorded));
        let nat_id = bed.make(&nat).await?;
        made.push((nat, nat_id));
        let ids: Vec<String> = made.iter().map(|(_, recorded)| output(recorded, "id")).collect();
        let route = |via: &str| json!({ "to": "0.0.0.0/0", "via": via });
        let spec = json!({ "vpc": ids[0], "routes": [route(&ids[2])], "subnets": [ids[1], ids[4]], "tags": {} });
        let wanted = wanted("here/network/routes-public", "aws.route-table", &spec);
        let more = json!([route(&ids[5]), { "to": "192.0.2.0/24", "via": ids[2] }]);
        let changed =
            with(&Wanted { spec: with(&wanted, "routes", more), ..wanted.clone() }, "subnets", json!([ids[4]]));
        bed.whole_life(&wanted, Some(&changed)).await?;
        unmake(&bed, made).await
    });
}

#[test]
fn a_subnet_moves_to_a_new_route_table_without_a_time_without_routes() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (made, _) = nat_world(&bed).await?;
        let ids: Vec<String> = made.iter().map(|(_, recorded)| output(recorded, "id")).collect();
        let spec = json!({ "vpc": ids[0], "routes": [], "subnets": [ids[1]], "tags": {} });
        let tables = ["a", "b"].map(|part| wanted(&format!("here/network/routes-{part}"), "aws.route-table", &spec));
        let first = bed.make(&tables[0]).await?;
        let second = bed.make(&tables[1]).await?;
        assert_eq!(bench.calls("DisassociateRouteTable"), 0);
        assert_eq!(seen(&bench, &tables[0], &first).await.spec.get("subnets"), Some(&json!([])));
        bed.unmake(&tables[1], &second).await?;
        bed.unmake(&tables[0], &first).await?;
        unmake(&bed, made).await
    });
}

#[test]
fn a_security_group_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (network, id) = (vpc(), bed.make(&vpc()).await?);
        let wanted = group(&id);
        let mut rules = wanted.spec.get("ingress").unwrap().clone();
        (rules[0]["description"], rules[1]["to"]) = (json!("another text"), json!(444));
        let changed = with(&Wanted { spec: with(&wanted, "ingress", rules), ..wanted.clone() }, "egress", json!([]));
        bed.whole_life(&wanted, Some(&changed)).await?;
        bed.unmake(&network, &id).await
    });
}

#[test]
fn an_endpoint_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let mut made = vec![(vpc(), bed.make(&vpc()).await?)];
        for one in [subnet(&made[0].1, "a", 0), subnet(&made[0].1, "b", 1), group(&made[0].1)] {
            let recorded = bed.make(&one).await?;
            made.push((one, recorded));
        }
        let ids: Vec<String> = made.iter().map(|(_, recorded)| output(recorded, "id")).collect();
        let policy = json!({ "Version": "2012-10-17", "Statement": [
            { "Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*" },
        ] });
        let spec = json!({
            "vpc": ids[0], "service": "com.amazonaws.eu-west-1.sts", "kind": "Interface", "route_tables": [],
            "subnets": [ids[1], ids[2]], "groups": [ids[3]], "private_dns": true, "policy": policy, "tags": {},
        });
        let wanted = wanted("here/network/endpoint-sts", "aws.vpc-endpoint", &spec);
        let changed = with(
            &Wanted { spec: with(&wanted, "subnets", json!([ids[2]])), ..wanted.clone() },
            "private_dns",
            json!(false),
        );
        bed.whole_life(&wanted, Some(&changed)).await?;
        unmake(&bed, made).await
    });
}

#[test]
fn a_launch_template_lives() {
    let bench = Bench::new();
    run(async {
        let spec = json!({
            "name": "textnlp-staging-here-gpu", "image": "", "instance_type": "g5.xlarge", "groups": ["sg-1", "sg-2"],
            "root_device": "/dev/xvda", "root_gib": 200, "key": "", "metadata_hops": 1, "user_data": "",
            "instance_tags": { "a": "b" }, "hardened": true, "tags": {},
        });
        let wanted = wanted("here/cluster/gpu-template", "aws.launch-template", &spec);
        let changed =
            with(&Wanted { spec: with(&wanted, "root_gib", json!(300)), ..wanted.clone() }, "groups", json!([]));
        bench.bed().whole_life(&wanted, Some(&changed)).await
    });
}

#[test]
fn a_lost_reply_creates_nothing_twice() {
    // Lists show what was created after four more requests only.
    let bench = Bench::consistent_after(Duration::from_secs(22));
    bench.simulator.faults().add(Rule::nth("ec2", "CreateVpc", 1, Disruption::LostReply));
    bench.simulator.faults().add(Rule::nth("ec2", "CreateSubnet", 1, Disruption::LostReply));
    bench.simulator.faults().add(Rule::nth("ec2", "CreateInternetGateway", 1, Disruption::LostReply));
    run(async {
        let bed = bench.bed();
        let network = bed.make(&vpc()).await?;
        bed.make(&subnet(&network, "a", 0)).await?;
        bed.make(&gateway(&network)).await?;
        for (collection, operation) in [
            (&ec2::VPC, "CreateVpc"),
            (&ec2::SUBNET, "CreateSubnet"),
            (&ec2::INTERNET_GATEWAY, "CreateInternetGateway"),
        ] {
            assert_eq!(count(&bench, collection), 1, "{operation}");
        }
        Ok(())
    });
}

#[test]
fn a_create_that_is_repeated_before_lists_show_the_first_object_waits_for_it() {
    let bench = Bench::consistent_after(Duration::from_secs(22));
    run(async {
        let wanted = wanted("here/network/address-a", "aws.elastic-ip", &json!({ "tags": {} }));
        let op = operation(Verb::Create, &wanted, None, 7);
        // The process ends after the first call, and another one repeats it.
        bench.provider.begin(&op).await.unwrap();
        let object = finish(&bench, &Operation { is_repeated: true, ..op }).await.unwrap();
        assert_eq!(bench.calls("AllocateAddress"), 1);
        assert_eq!(object.health, Health::Ready);
        Ok(())
    });
}

#[test]
fn a_second_object_with_the_tag_of_an_operation_is_not_deleted() {
    let bench = Bench::consistent_after(Duration::from_secs(50));
    run(async {
        let wanted = wanted("here/network/address-a", "aws.elastic-ip", &json!({ "tags": {} }));
        let op = operation(Verb::Create, &wanted, None, 7);
        // Nobody can tell an object of a lost call from one that somebody gave the same tags.
        bench.provider.begin(&op).await.unwrap();
        let object = finish(&bench, &op).await.unwrap();
        assert_eq!((bench.calls("AllocateAddress"), bench.calls("ReleaseAddress")), (2, 0));
        assert_eq!(count(&bench, &ec2::ADDRESS), 2);
        let again = finish(&bench, &op).await.unwrap_err();
        assert_eq!(again.kind, ErrorKind::Exists);
        assert!(error_chain(&again).contains(object.cloud_id.as_str()), "{}", error_chain(&again));
        assert_eq!((bench.calls("AllocateAddress"), bench.calls("ReleaseAddress")), (2, 0));
        Ok(())
    });
}

#[test]
fn a_failed_nat_gateway_is_reported_with_its_reason() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let network = bed.make(&vpc()).await?;
        let subnet = bed.make(&subnet(&network, "a", 0)).await?;
        let address = bed.make(&wanted("here/network/address-a", "aws.elastic-ip", &json!({ "tags": {} }))).await?;
        let spec = json!({ "subnet": output(&subnet, "id"), "address": output(&address, "id"), "tags": {} });
        let nat = wanted("here/network/nat-a", "aws.nat-gateway", &spec);
        let error = finish(&bench, &operation(Verb::Create, &nat, None, 70)).await.unwrap_err();
        assert_eq!(error.code.as_deref(), Some("Gateway.NotAttached"));
        assert!(error_chain(&error).contains("has no Internet gateway attached"), "{}", error_chain(&error));
        Ok(())
    });
}

#[test]
fn throttled_and_failing_calls_are_repeated() {
    let bench = Bench::new();
    for (operation, disruption) in [
        ("CreateVpc", Disruption::Throttled),
        ("DescribeVpcs", Disruption::Internal),
        ("ModifyVpcAttribute", Disruption::LostReply),
        ("DeleteVpc", Disruption::LostReply),
    ] {
        bench.simulator.faults().add(Rule::nth("ec2", operation, 1, disruption));
    }
    run(async {
        let bed = bench.bed();
        let recorded = bed.make(&vpc()).await?;
        assert_eq!(seen(&bench, &vpc(), &recorded).await.spec.get("default_rules"), Some(&json!(false)));
        assert_eq!(count(&bench, &ec2::VPC), 1);
        bed.unmake(&vpc(), &recorded).await?;
        assert_eq!(count(&bench, &ec2::VPC), 0);
        Ok(())
    });
}

#[test]
fn what_was_changed_by_hand_is_found_and_changed_back() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let network = bed.make(&vpc()).await?;
        let wanted = group(&network);
        let recorded = bed.make(&wanted).await?;
        let changes = bench.provider.diff(&wanted, &recorded, &seen(&bench, &wanted, &recorded).await);
        assert!(changes.is_empty(), "{changes:?}");
        // An operator opens SSH to the internet; a controller of the cluster adds a rule of its own.
        let open = json!({ "protocol": "tcp", "from": 22, "to": 22, "peer": "0.0.0.0/0", "description": "" });
        let by_controller = json!({
            "protocol": "tcp", "from": 8443, "to": 8443, "peer": "10.42.0.0/16",
            "description": "elbv2.k8s.aws/targetGroupBinding=shared",
        });
        let mut rules = wanted.spec.get("ingress").unwrap().clone();
        rules.as_array_mut().unwrap().extend([open, by_controller]);
        let by_hand = Wanted { spec: with(&wanted, "ingress", rules), ..wanted.clone() };
        // The rule of a controller is never shown, so that this ends with an error.
        let _ = finish(&bench, &operation(Verb::Update, &by_hand, Some(&recorded), 90)).await;
        let object = seen(&bench, &wanted, &recorded).await;
        let changes = bench.provider.diff(&wanted, &recorded, &object);
        assert_eq!(changes.iter().map(|change| change.field.as_str()).collect::<Vec<_>>(), ["ingress"]);
        let fixed = finish(&bench, &operation(Verb::Update, &wanted, Some(&recorded), 91)).await.unwrap();
        assert!(bench.provider.diff(&wanted, &recorded, &fixed).is_empty());
        let world = bench.simulator.world();
        let group = world.find::<ec2::Ec2>(&Bench::scope()).unwrap().get(recorded.cloud_id.as_str()).unwrap();
        assert!(group.value["IpPermissions"].to_string().contains("targetGroupBinding"), "{}", group.value);
        Ok(())
    });
}

/// A VPC with two subnets in which a cluster left its objects.
async fn with_leftovers(
    bench: &Bench,
    bed: &TestBed<'_>,
    cluster: &str,
) -> Outcome<(Vec<(Wanted, Recorded)>, elb::Leftovers)> {
    let mut made = vec![(vpc(), bed.make(&vpc()).await?)];
    for one in [subnet(&made[0].1, "a", 0), subnet(&made[0].1, "b", 1)] {
        let recorded = bed.make(&one).await?;
        made.push((one, recorded));
    }
    let ids: Vec<String> = made.iter().map(|(_, recorded)| output(recorded, "id")).collect();
    let mut world = bench.simulator.world();
    let left = elb::leave_behind(&mut world, &Bench::scope(), cluster, &ids[0], &ids[1..]);
    Ok((made, left))
}

#[test]
fn what_the_controllers_of_the_cluster_left_behind_is_swept() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (made, left) = with_leftovers(&bench, &bed, CLUSTER).await?;
        let (classic, classic_group) = leave_classic_behind(&bench, &made, CLUSTER);
        let mut foreign: BTreeMap<String, bool> = BTreeMap::new();
        for (wanted, recorded) in &made {
            for one in seen(&bench, wanted, recorded).await.foreign {
                assert_eq!(one.maker, Some(CloudId::new(CLUSTER).unwrap()));
                foreign.insert(one.cloud_id.to_string(), one.swept);
            }
        }
        let of_controller = [left.balancer, left.target_group, left.group, left.cluster_group, left.interface];
        let all = of_controller.into_iter().chain([classic, classic_group]);
        assert_eq!(foreign, all.map(|id| (id, true)).collect());
        unmake(&bed, made).await?;
        for collection in [&ec2::VPC, &ec2::SUBNET, &ec2::GROUP, &ec2::INTERFACE, &ec2::TABLE] {
            assert_eq!(count(&bench, collection), 0, "{}", collection.list);
        }
        let world = bench.simulator.world();
        let state = world.find::<elb::Elb>(&Bench::scope()).unwrap();
        assert!(state.balancers.is_empty() && state.groups.is_empty() && state.classics.is_empty());
        Ok(())
    });
}

/// A classic load balancer of a cluster in the subnets of a VPC, and its security group.
fn leave_classic_behind(bench: &Bench, made: &[(Wanted, Recorded)], cluster: &str) -> (String, String) {
    let ids: Vec<String> = made.iter().map(|(_, recorded)| output(recorded, "id")).collect();
    elb::leave_classic_behind(&mut bench.simulator.world(), &Bench::scope(), cluster, &ids[0], &ids[1..])
}

#[test]
fn many_classic_load_balancers_of_strangers_are_read() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let mut made = vec![(vpc(), bed.make(&vpc()).await?)];
        let one = subnet(&made[0].1, "a", 0);
        let recorded = bed.make(&one).await?;
        made.push((one, recorded));
        let (arn, _) = leave_classic_behind(&bench, &made, CLUSTER);
        {
            let mut world = bench.simulator.world();
            let machines: Vec<Value> =
                (0..100).map(|number| json!({ "InstanceId": format!("i-{number:017}") })).collect();
            for number in 0..120 {
                // Listed before that of the cluster.
                let name = format!("0-{number}");
                let value = json!({
                    "LoadBalancerName": name, "Instances": machines, "Subnets": ["subnet-other"], "VPCId": "vpc-other",
                });
                world.state::<elb::Elb>(&Bench::scope()).classics.insert(name, value);
            }
        }
        let foreign = seen(&bench, &made[1].0, &made[1].1).await.foreign;
        let found: Vec<&str> = foreign.iter().map(|one| one.cloud_id.as_str()).collect();
        assert_eq!(found, [arn.as_str()]);
        Ok(())
    });
}

#[test]
fn classic_load_balancers_that_cannot_be_listed_matter_only_where_there_is_one() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let mut made = vec![(vpc(), bed.make(&vpc()).await?)];
        let one = subnet(&made[0].1, "a", 0);
        let recorded = bed.make(&one).await?;
        made.push((one, recorded));
        // The first call with this name is one of the other API.
        let disrupt = |disruption: Disruption| {
            bench.simulator.faults().add(Rule::nth("elasticloadbalancing", "DescribeLoadBalancers", 2, disruption));
        };
        let refused = |code: &str| Disruption::Refused(Fault::new(code, "a test"));
        // A region without them answers the first.
        for disruption in [refused("InvalidAction"), refused("AccessDenied"), Disruption::Internal] {
            disrupt(disruption);
            let foreign = seen(&bench, &made[1].0, &made[1].1).await.foreign;
            assert!(foreign.is_empty(), "{foreign:?}");
        }
        leave_classic_behind(&bench, &made, CLUSTER);
        disrupt(refused("AccessDenied"));
        let error = bench.provider.read(&made[1].0.kind, &made[1].1.cloud_id).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert_eq!(seen(&bench, &made[1].0, &made[1].1).await.foreign.len(), 1);
        Ok(())
    });
}

#[test]
fn classic_load_balancer_of_another_cluster_keeps_the_network() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let mut made = vec![(vpc(), bed.make(&vpc()).await?)];
        let one = subnet(&made[0].1, "a", 0);
        let recorded = bed.make(&one).await?;
        made.push((one, recorded));
        let (arn, group) = leave_classic_behind(&bench, &made, "another");
        // One without any tag.
        let (untagged, _) = leave_classic_behind(&bench, &made, "another");
        bench.simulator.world().tags.forget(&untagged);
        let (network, subnet) = (&made[0], &made[1]);
        let of_subnet = seen(&bench, &subnet.0, &subnet.1).await.foreign;
        let found: BTreeMap<String, bool> = of_subnet.iter().map(|one| (one.cloud_id.to_string(), one.swept)).collect();
        assert_eq!(found.get(&arn), Some(&false));
        assert_eq!(found.get(&untagged), Some(&false));
        assert!(!found.values().any(|swept| *swept), "{found:?}");
        let of_network = seen(&bench, &network.0, &network.1).await.foreign;
        assert!(of_network.iter().any(|one| one.cloud_id.as_str() == group && !one.swept), "{of_network:?}");
        let error = finish_once(&bench, &operation(Verb::Delete, &subnet.0, Some(&subnet.1), 82)).await;
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error_chain(&error).contains("classic load balancer"), "{}", error_chain(&error));
        assert_eq!(bench.calls("DeleteLoadBalancer"), 0);
        Ok(())
    });
}

#[test]
fn objects_of_another_cluster_keep_the_network() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (made, left) = with_leftovers(&bench, &bed, "another").await?;
        let (subnet, recorded) = &made[1];
        assert!(seen(&bench, subnet, recorded).await.foreign.iter().all(|one| !one.swept));
        let error = finish_once(&bench, &operation(Verb::Delete, subnet, Some(recorded), 80)).await;
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error_chain(&error).contains(&left.balancer), "{}", error_chain(&error));
        assert_eq!(bench.calls("DeleteLoadBalancer") + bench.calls("DeleteNetworkInterface"), 0);
        Ok(())
    });
}

/// The error of the first call.
async fn finish_once(bench: &Bench, op: &Operation) -> textnlp_provider::Error {
    match bench.provider.begin(op).await {
        Err(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn an_interface_in_the_way_is_named() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let network = bed.make(&vpc()).await?;
        let one = subnet(&network, "a", 0);
        let recorded = bed.make(&one).await?;
        {
            let mut world = bench.simulator.world();
            let new = ec2::interfaces::New {
                subnet: &output(&recorded, "id"),
                groups: &[],
                description: "RDSNetworkInterface",
                kind: "interface",
                public_address: None,
            };
            ec2::interfaces::place(&mut world, &Bench::scope(), "eni-1", &new, "in-use", Vec::new());
        }
        // It is waited for: interfaces of services end on their own.
        let answer = bench.provider.begin(&operation(Verb::Delete, &one, Some(&recorded), 81)).await;
        let Ok(Progress::Pending { says, .. }) = answer else { panic!("{answer:?}") };
        assert!(says.contains("`eni-1` (RDSNetworkInterface)"), "{says}");
        Ok(())
    });
}

fn network(cidr: Option<&str>, existing: Option<&str>) -> Component {
    Component {
        name: "network".parse().unwrap(),
        existing: existing.map(|id| CloudId::new(id).unwrap()),
        part: ComponentSpec::Network(Network { cidr: cidr.map(str::to_owned), policies: false, ..Network::default() }),
    }
}

/// Creates everything in the order of the expansion, and returns the records.
async fn up(bed: &TestBed<'_>, all: &[Wanted]) -> Outcome<Vec<(Wanted, Recorded)>> {
    let mut made: Vec<(Wanted, Recorded)> = Vec::new();
    for one in all {
        let outputs = |id: &textnlp_provider::ResourceId| -> Option<&Outputs> {
            made.iter().find(|(wanted, _)| wanted.id == *id).map(|(_, recorded)| &recorded.outputs)
        };
        let spec = one.spec.resolve(outputs).unwrap();
        assert!(one.needs.iter().all(|need| outputs(&need.on).is_some()), "{} is too early", one.id);
        let resolved = Wanted { spec, ..one.clone() };
        let recorded = bed.make(&resolved).await?;
        made.push((resolved, recorded));
    }
    Ok(made)
}

#[test]
fn a_network_is_created_observed_unchanged_and_deleted() {
    for (protect_data, nats, endpoints) in [(true, 3, 5), (false, 1, 1)] {
        let bench = Bench::new();
        run(async {
            let bed = bench.bed();
            let site = Site { protect_data, ..site() };
            let all = lowers_purely(&bench.provider, &network(None, None), &site)?;
            let made = up(&bed, &all).await?;
            assert_eq!(count(&bench, &ec2::NAT_GATEWAY), nats);
            assert_eq!(count(&bench, &ec2::ENDPOINT), endpoints);
            assert_eq!(count(&bench, &ec2::SUBNET), 6);
            assert_eq!(count(&bench, &ec2::FLOW_LOG), usize::from(protect_data));

            let (wanted, recorded): (Vec<_>, Vec<_>) = made.iter().cloned().unzip();
            let scope = Scope {
                lineage: bed.lineage,
                environment: &bed.environment,
                site: &bed.site,
                wanted: &wanted,
                recorded: &recorded,
            };
            let before = bench.simulator.requests().len();
            let observed = bench.provider.observe(&scope).await.unwrap();
            let calls = bench.simulator.requests().len() - before;
            // One list for each kind, however many objects there are, and a few reads.
            assert!(calls <= 60, "an observation takes {calls} calls");
            for (id, seen) in observed {
                let (wanted, recorded) = made.iter().find(|(wanted, _)| wanted.id == id).unwrap();
                let Observed::Present(object) = seen else { panic!("{id}: {seen:?}") };
                let changes = bench.provider.diff(wanted, recorded, &object);
                assert!(changes.is_empty() && object.foreign.is_empty(), "{id}: {changes:?} {:?}", object.foreign);
            }
            unmake(&bed, made).await?;
            for collection in
                [&ec2::VPC, &ec2::ADDRESS, &ec2::INTERFACE, &ec2::ENDPOINT, &ec2::FLOW_LOG, &ec2::TABLE, &ec2::GROUP]
            {
                assert_eq!(count(&bench, collection), 0, "{}", collection.list);
            }
            Ok(())
        });
    }
}

#[test]
fn an_existing_network_is_read_and_never_changed() {
    let bench = Bench::new();
    let two = ["subnet-1", "subnet-2"].map(|id| CloudId::new(id).unwrap()).to_vec();
    let site_with = |subnets: Vec<CloudId>| Site { subnets, ..site() };
    let all = bench.provider.lower(&network(None, Some("vpc-1")), &site_with(two.clone())).unwrap();
    let ids: Vec<_> = all.iter().map(|one| (one.id.as_str(), &one.ownership)).collect();
    let external = |id: &str| Ownership::External(CloudId::new(id).unwrap());
    assert_eq!(
        ids,
        [
            ("here/network/vpc", &external("vpc-1")),
            ("here/network/subnet-private-a", &external("subnet-1")),
            ("here/network/subnet-private-b", &external("subnet-2")),
        ]
    );
    for (component, subnets, place) in [
        (network(None, Some("vpc-1")), Vec::new(), "here/network subnets"),
        (network(None, None), two.clone(), "here/network subnets"),
        (network(Some("10.0.0.0/16"), Some("vpc-1")), two, "here/network cidr"),
        (network(Some("10.0.0.0/8"), None), Vec::new(), "here/network cidr"),
        (network(Some("8.8.0.0/16"), None), Vec::new(), "here/network cidr"),
    ] {
        let problems = bench.provider.lower(&component, &site_with(subnets)).unwrap_err();
        assert_eq!(problems.0.iter().map(|one| one.place.as_str()).collect::<Vec<_>>(), [place], "{problems}");
    }
}

#[test]
fn a_reached_limit_is_told_apart() {
    let bench = Bench::new();
    let refused = Fault::new("VpcLimitExceeded", "The maximum number of VPCs has been reached.");
    bench.simulator.faults().add(Rule::always("ec2", "CreateVpc", Disruption::Refused(refused)));
    run(async {
        let error = finish_once(&bench, &operation(Verb::Create, &vpc(), None, 1)).await;
        assert_eq!(error.code.as_deref(), Some("VpcLimitExceeded"));
        assert!(!error.kind.may_pass(), "{error:?}");
        Ok(())
    });
}

#[test]
fn an_existing_network_must_be_fit_for_a_cluster() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let network_id = bed.make(&vpc()).await?;
        let (small, other) = (subnet(&network_id, "a", 0), subnet(&network_id, "b", 1));
        let small = Wanted { spec: with(&small, "cidr", json!("10.42.0.0/28")), ..small };
        let ids = [bed.make(&small).await?, bed.make(&other).await?].map(|recorded| recorded.cloud_id);
        let causes = async |subnets: &[CloudId]| {
            let site = Site { subnets: subnets.to_vec(), ..site() };
            let component = network(None, Some(network_id.cloud_id.as_str()));
            let wanted = bench.provider.lower(&component, &site).unwrap();
            let problems = bench.provider.preflight(&wanted).await.unwrap();
            let of_network = problems.into_iter().filter(|one| one.place.starts_with("here/network") && !one.note);
            of_network.map(|one| one.cause).collect::<Vec<_>>()
        };
        let found = causes(&ids).await;
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("has 11 free addresses"), "{found:?}");
        assert!(found[1].contains("have no default route"), "{found:?}");
        assert!(found[1].contains("no endpoint of ec2, ecr.api, ecr.dkr, eks-auth, s3, sts"), "{found:?}");
        let found = causes(&[ids[1].clone(), ids[1].clone()]).await;
        assert!(found[0].contains("its subnets are in 1 zone"), "{found:?}");
        let found = causes(&[ids[1].clone(), CloudId::new("subnet-0").unwrap()]).await;
        assert!(found.iter().any(|cause| cause.contains("does not exist")), "{found:?}");
        Ok(())
    });
    // IAM's own simulator of policies is not simulated here.
    drop(bench.simulator.take_violations());
}
