//! Clusters and what is in them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_aws::{Access, Aws};
use textnlp_provider::cluster::{Capacity, ClusterGpus, ClusterSite, NodeAutoscaler, NodeChoice};
use textnlp_provider::component::{Cluster, ClusterIdentity, Component, ComponentSpec, GpuPool, Network, Site};
use textnlp_provider::conformance::{TestBed, Violation, lowers_purely};
use textnlp_provider::memory::Fuse;
use textnlp_provider::settings::{AccessLevel, GpuSize, NodeSize, Spot};
use textnlp_provider::units::{Bytes, Cores};
use textnlp_provider::{
    CloudId, Effect, ErrorKind, Health, Observed, Operation, Ownership, Progress, Provider, Recorded, ResourceId,
    Scope, Verb, Wanted, error_chain,
};
use textnlp_sim::aws::eks::Eks;
use textnlp_sim::aws::iam::Iam;
use textnlp_sim::aws::logs::{LogGroup, Logs};
use textnlp_sim::aws::{ec2, elb};
use textnlp_sim::{Credential, Disruption, Market, Options, Rule, Simulator, Timing};

use crate::capacity::{bought, lacking};
use crate::engine::{Account, Stack, UP, component, site_of};
use crate::iam::{role, with};
use crate::network::{finish, operation, seen};
use crate::shape::Shape;
use crate::{ACCOUNT, Bench, REGION, Secrets, lineage, make_all, output, run, site, wanted};

type Outcome<T = ()> = Result<T, Violation>;

const NAME: &str = "textnlp-staging-here";

/// What a cluster needs.
struct Ground {
    vpc: String,
    subnets: Vec<String>,
    role: String,
}

async fn ground(bed: &TestBed<'_>) -> Outcome<Ground> {
    let spec = json!({ "cidr": "10.42.0.0/16", "dns_hostnames": true, "default_rules": false, "tags": {} });
    let vpc = output(&bed.make(&wanted("here/network/vpc", "aws.vpc", &spec)).await?, "id");
    let mut subnets = Vec::new();
    for (letter, number) in [("a", 1), ("b", 2)] {
        let spec = json!({
            "vpc": vpc, "cidr": format!("10.42.{number}.0/24"), "zone": format!("euw1-az{number}"),
            "public_addresses": false, "tags": {},
        });
        let subnet = wanted(&format!("here/network/subnet-private-{letter}"), "aws.subnet", &spec);
        subnets.push(output(&bed.make(&subnet).await?, "id"));
    }
    let role = bed.make(&role("role", "eks.amazonaws.com", &["AmazonEKSClusterPolicy"])).await?;
    Ok(Ground { vpc, subnets, role: output(&role, "arn") })
}

fn cluster(ground: &Ground) -> Wanted {
    let spec = json!({
        "name": NAME, "version": "1.33", "role": ground.role, "subnets": ground.subnets, "security_groups": [],
        "private_access": true, "public_cidrs": ["203.0.113.0/24"], "key": format!("arn:aws:kms:{REGION}:{ACCOUNT}:key/1"),
        "logs": ["api", "audit"], "authentication": "API", "support": "STANDARD", "deletion_protection": true,
        "deployer_access": true, "tags": {},
    });
    wanted("here/cluster", "aws.eks-cluster", &spec)
}

fn addon(name: &str) -> Wanted {
    let spec = json!({
        "cluster": NAME, "name": name, "version": null, "kubernetes": ["1.33"], "configuration": null, "tags": {},
    });
    wanted(&format!("here/cluster/addon-{name}"), "aws.eks-addon", &spec)
}

/// A cluster with a network for its nodes, and the wanted resource of a group of them.
async fn with_nodes(bed: &TestBed<'_>) -> Outcome<(Wanted, Recorded, Wanted)> {
    let ground = ground(bed).await?;
    let wanted_cluster = cluster(&ground);
    let recorded = bed.make(&wanted_cluster).await?;
    bed.make(&addon("vpc-cni")).await?;
    let nodes = bed.make(&role("node-role", "ec2.amazonaws.com", &["AmazonEKSWorkerNodePolicy"])).await?;
    Ok((wanted_cluster, recorded, node_group(&ground, &output(&nodes, "arn"))))
}

/// A group of machines with a role.
fn node_group(ground: &Ground, role: &str) -> Wanted {
    let spec = json!({
        "cluster": NAME, "name": "gpu", "version": null, "release": { "max_days_behind": 30 },
        "role": role, "subnets": ground.subnets,
        "instance_types": ["g4dn.xlarge"], "ami_type": "AL2023_x86_64_NVIDIA", "capacity": ["ON_DEMAND"],
        "scaling": { "min": 1, "max": 3, "desired": 2 }, "labels": { "pool": "gpu" },
        "taints": [{ "key": "nvidia.com/gpu", "value": "present", "effect": "NO_SCHEDULE" }],
        "launch_template": null, "max_unavailable": 1, "repair": true, "tags": {},
    });
    wanted("here/cluster/gpu-nodes", "aws.eks-node-group", &spec)
}

#[test]
fn a_cluster_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let wanted = cluster(&ground(&bed).await?);
        let changed = with(
            &wanted,
            json!({
                "logs": ["audit", "scheduler"], "public_cidrs": [], "support": "EXTENDED", "version": "1.34",
                "tags": { "owner": "me" },
            }),
        );
        bed.whole_life(&wanted, Some(&changed.spec)).await
    });
}

#[test]
fn a_node_group_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let changed = with(
            &group,
            json!({
                "scaling": { "min": 3, "max": 5, "desired": 3 }, "labels": { "pool": "other" }, "taints": [],
                "max_unavailable": 2, "repair": false, "tags": { "owner": "me" },
            }),
        );
        bed.whole_life(&group, Some(&changed.spec)).await
    });
}

#[test]
fn what_is_in_a_cluster_lives() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        bed.make(&cluster(&ground(&bed).await?)).await?;
        let cni = addon("vpc-cni");
        let changed =
            with(&cni, json!({ "configuration": { "enableNetworkPolicy": "true" }, "tags": { "owner": "me" } }));
        bed.whole_life(&cni, Some(&changed.spec)).await?;

        let pods = "pods.eks.amazonaws.com";
        let one = output(&bed.make(&role("one", pods, &[])).await?, "arn");
        let other = output(&bed.make(&role("other", pods, &[])).await?, "arn");
        let spec = json!({
            "cluster": NAME, "namespace": "kube-system", "service_account": "aws-node", "role": one, "tags": {},
        });
        let association = wanted("here/cluster/network-identity", "aws.eks-pod-identity-association", &spec);
        let changed = with(&association, json!({ "role": other, "tags": { "owner": "me" } }));
        bed.whole_life(&association, Some(&changed.spec)).await?;

        let policy = |name: &str, namespaces: Value| json!({ "arn": format!("arn:aws:eks::aws:cluster-access-policy/{name}"), "namespaces": namespaces });
        let spec = json!({
            "cluster": NAME, "principal": one, "groups": ["viewers"],
            "policies": [policy("AmazonEKSViewPolicy", json!([])), policy("AmazonEKSEditPolicy", json!(["a"]))], "tags": {},
        });
        let entry = wanted("here/cluster/access", "aws.eks-access-entry", &spec);
        let policies = json!([policy("AmazonEKSEditPolicy", json!(["b"])), policy("AmazonEKSAdminPolicy", json!([]))]);
        let changed = with(&entry, json!({ "groups": [], "policies": policies, "tags": { "owner": "me" } }));
        bed.whole_life(&entry, Some(&changed.spec)).await
    });
}

#[test]
fn a_new_role_is_waited_for_and_a_wrong_one_is_not() {
    // The cluster follows its role by fewer requests than EKS needs to see it.
    let (step, consistency) = (Duration::from_secs(2), Duration::from_secs(22));
    let timing = Timing { step, consistency, ..Timing::default() };
    let bench = Bench::of(Simulator::start(Options { timing, ..Options::default() }), []);
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        bed.make(&cluster(&ground)).await?;
        let refused = bench.simulator.requests().into_iter().filter(|request| {
            request.operation == "CreateCluster" && request.outcome != textnlp_sim::Outcome::Succeeded
        });
        assert!(refused.count() > 0, "EKS saw the role at once");

        for (wrong, says) in [
            (output(&bed.make(&role("wrong", "ec2.amazonaws.com", &[])).await?, "arn"), "does not trust"),
            (format!("arn:aws:iam::{ACCOUNT}:role/nobody"), "there is no role"),
        ] {
            let other = with(&cluster(&ground), json!({ "name": "textnlp-staging-other", "role": wrong }));
            let error = finish(&bench, &operation(textnlp_provider::Verb::Create, &other, None, 90)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Invalid);
            assert!(error.hint.as_deref().unwrap_or_default().contains(says), "{error:?}");
        }
        Ok(())
    });
}

#[test]
fn an_upgrade_goes_by_one_minor_version_and_add_ons_follow() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        let wanted = with(&cluster(&ground), json!({ "version": "1.32" }));
        let recorded = bed.make(&wanted).await?;
        let proxy = with(&addon("kube-proxy"), json!({ "kubernetes": ["1.32"] }));
        let proxy_recorded = bed.make(&proxy).await?;

        let newer = with(&wanted, json!({ "version": "1.34" }));
        let op = operation(textnlp_provider::Verb::Update, &newer, Some(&recorded), 90);
        let object = finish(&bench, &op).await.unwrap();
        assert_eq!(object.outputs["version"], "1.34");
        assert_eq!(bench.calls("UpdateClusterVersion"), 2);

        let newer_proxy = with(&proxy, json!({ "kubernetes": ["1.34"] }));
        let op = operation(textnlp_provider::Verb::Update, &newer_proxy, Some(&proxy_recorded), 91);
        let object = finish(&bench, &op).await.unwrap();
        assert_eq!(object.outputs["version"], "v1.34.1-eksbuild.2");

        let older = operation(textnlp_provider::Verb::Update, &wanted, Some(&recorded), 92);
        let error = finish(&bench, &older).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        // The plan refuses it before.
        for (version, expected) in [
            ("1.32", Some("cannot go back to 1.32; set `cluster.version` to 1.34")),
            ("1.38", Some("set `cluster.version` to 1.37")),
            ("1.35", None),
        ] {
            let wanted = with(&wanted, json!({ "version": version }));
            let Ok(Observed::Present(object)) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await else {
                panic!()
            };
            let changes = bench.provider.diff(&wanted, &recorded, &object);
            let refused = changes.iter().find_map(|change| match &change.effect {
                Effect::Refuse(why) => Some(why.as_str()),
                _ => None,
            });
            assert_eq!(refused.is_some(), expected.is_some(), "{changes:?}");
            assert!(expected.is_none_or(|text| refused.unwrap_or_default().contains(text)), "{refused:?}");
        }
        Ok(())
    });
}

#[test]
fn nodes_may_be_three_minor_versions_older_and_are_updated_before_the_next_upgrade() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        let at = |version: &str| with(&cluster(&ground), json!({ "version": version }));
        let recorded = bed.make(&at("1.31")).await?;
        bed.make(&with(&addon("vpc-cni"), json!({ "kubernetes": ["1.31"] }))).await?;
        let of_nodes = bed.make(&role("node-role", "ec2.amazonaws.com", &["AmazonEKSWorkerNodePolicy"])).await?;
        let group = node_group(&ground, &output(&of_nodes, "arn"));
        let nodes = bed.make(&group).await?;
        let upgrade = async |version: &str, number: u64| {
            finish(&bench, &operation(Verb::Update, &at(version), Some(&recorded), number)).await
        };
        assert_eq!(upgrade("1.34", 90).await.unwrap().outputs["version"], "1.34");

        let error = upgrade("1.35", 91).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        let why = error_chain(&error);
        assert!(why.contains("Nodegroups gpu must be updated to match cluster version 1.34"), "{why}");
        assert!(error.hint.as_deref().unwrap_or_default().contains("run `up`, which updates the nodes"), "{error:?}");

        let newer = with(&group, json!({ "version": "1.34" }));
        finish(&bench, &operation(Verb::Update, &newer, Some(&nodes), 92)).await.unwrap();
        assert_eq!(upgrade("1.35", 93).await.unwrap().outputs["version"], "1.35");
        Ok(())
    });
}

#[test]
fn the_reason_of_a_failed_change_is_told() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let wanted = cluster(&ground(&bed).await?);
        let recorded = bed.make(&wanted).await?;
        let issue = ("InsufficientFreeAddresses".to_owned(), "Subnet subnet-1 has no free address".to_owned());
        let state = |bench: &Bench| {
            bench
                .simulator
                .world()
                .state::<Eks>(&Bench::scope())
                .failures
                .insert(("update", NAME.to_owned()), issue.clone());
        };
        state(&bench);
        let newer = with(&wanted, json!({ "version": "1.34" }));
        let op = operation(textnlp_provider::Verb::Update, &newer, Some(&recorded), 90);
        let error = finish(&bench, &op).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Quota);
        assert!(error_chain(&error).contains("no free address"), "{}", error_chain(&error));
        // The next attempt succeeds.
        assert_eq!(finish(&bench, &op).await.unwrap().outputs["version"], "1.34");
        Ok(())
    });
}

/// Leaves no spot machine in any zone, and so many others.
fn capacity(bench: &Bench, on_demand: u64) {
    let mut world = bench.simulator.world();
    for zone in ["a", "b", "c"] {
        let zone = format!("{REGION}{zone}");
        world.capacity.set(&zone, "g4dn.xlarge", Market::Spot, 0);
        world.capacity.set(&zone, "g4dn.xlarge", Market::OnDemand, on_demand);
    }
}

#[test]
fn spot_machines_that_cannot_be_had_are_replaced_by_others() {
    let bench = Bench::new();
    capacity(&bench, 10);
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let group = with(&group, json!({ "capacity": ["SPOT", "ON_DEMAND"] }));
        let recorded = bed.make(&group).await?;
        assert_eq!((bench.calls("CreateNodegroup"), bench.calls("DeleteNodegroup")), (2, 1));
        let Ok(Observed::Present(object)) = bench.provider.read(&group.kind, &recorded.cloud_id).await else {
            panic!()
        };
        assert_eq!(object.spec.get("capacity"), Some(&json!(["ON_DEMAND"])));
        assert!(bench.provider.diff(&group, &recorded, &object).is_empty());
        bed.unmake(&group, &recorded).await
    });
}

#[test]
fn the_market_that_lacked_capacity_is_tried_last() {
    const SPOT: &str = "SPOT g4dn.xlarge";
    const ON_DEMAND: &str = "ON_DEMAND g4dn.xlarge";
    let spot = |is_recent| lacking(&[SPOT], is_recent);
    for (lacking, left, lacked, got) in [
        (spot(true), [10, 10], vec![], Some("ON_DEMAND")),
        (spot(true), [10, 0], vec![ON_DEMAND], Some("SPOT")),
        (spot(true), [0, 0], vec![ON_DEMAND, SPOT], None),
        (spot(false), [10, 10], vec![], Some("SPOT")),
        (spot(false), [0, 10], vec![SPOT], Some("ON_DEMAND")),
        (vec![], [0, 0], vec![SPOT, ON_DEMAND], None),
        // Spot was not tried with these machines.
        (lacking(&["SPOT g6.xlarge", "SPOT g4dn.xlarge,g6.xlarge"], true), [10, 10], vec![], Some("SPOT")),
    ] {
        let bench = Bench::new();
        for (market, left) in [Market::Spot, Market::OnDemand].into_iter().zip(left) {
            for zone in ["a", "b", "c"] {
                bench.simulator.world().capacity.set(&format!("{REGION}{zone}"), "g4dn.xlarge", market, left);
            }
        }
        run(async {
            let (.., group) = with_nodes(&bench.bed()).await?;
            let group = with(&group, json!({ "capacity": ["SPOT", "ON_DEMAND"] }));
            let op = Operation { lacking, ..operation(Verb::Create, &group, None, 90) };
            let (found, object) = bought(&bench.provider, &op).await;
            assert_eq!(found, lacked);
            assert_eq!(object.and_then(|one| one.spec.get("capacity").cloned()), got.map(|name| json!([name])));
            assert_eq!(bench.calls("CreateNodegroup"), lacked.len() + usize::from(got.is_some()));
            Ok(())
        });
    }
}

#[test]
fn a_quota_is_no_lack_of_capacity() {
    let bench = Bench::new();
    bench.simulator.world().quotas.set(&Bench::scope(), "L-3819A6DF", 4.0);
    run(async {
        let (.., group) = with_nodes(&bench.bed()).await?;
        let group = with(&group, json!({ "capacity": ["SPOT", "ON_DEMAND"] }));
        let (found, object) = bought(&bench.provider, &operation(Verb::Create, &group, None, 90)).await;
        assert!(found.is_empty(), "{found:?}");
        assert_eq!(object.unwrap().spec.get("capacity"), Some(&json!(["ON_DEMAND"])));
        Ok(())
    });
}

#[test]
fn missing_capacity_and_a_quota_are_told_apart() {
    let bench = Bench::new();
    capacity(&bench, 0);
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let op = operation(textnlp_provider::Verb::Create, &group, None, 90);
        assert_eq!(finish(&bench, &op).await.unwrap_err().kind, ErrorKind::Capacity);

        bench.simulator.world().quotas.set(&Bench::scope(), "L-DB2E81BA", 4.0);
        let group = with(&group, json!({ "name": "other" }));
        let op = operation(textnlp_provider::Verb::Create, &group, None, 91);
        let error = finish(&bench, &op).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Quota);
        assert!(error.hint.as_deref().unwrap_or_default().contains("L-DB2E81BA"), "{error:?}");
        Ok(())
    });
}

#[test]
fn quotas_name_the_settings_that_they_have_room_for() {
    let bench = Bench::new();
    for (code, limit) in [("L-1216C47A", 9.0), ("L-DB2E81BA", 0.0), ("L-0263D0A3", 2.0)] {
        bench.simulator.world().quotas.set(&Bench::scope(), code, limit);
    }
    let all = lowered(&bench, &full_site(), Spot::Never);
    run(async {
        let problems = bench.provider.preflight(&all).await.unwrap();
        for (code, room) in [
            ("L-1216C47A", "today it has room for `cluster.min_nodes: 2` and `cluster.max_nodes: 2`"),
            ("L-DB2E81BA", "today it has room for `gpu.size: none`"),
            ("L-0263D0A3", "a new environment without data of value fits with `data: disposable`"),
        ] {
            let of_quota = problems.iter().find(|one| one.cause.contains(code)).unwrap();
            assert!(of_quota.fix.contains(room), "{of_quota:?}");
        }
        Ok(())
    });
}

#[test]
fn nodes_that_cannot_use_the_key_of_their_disks_name_the_grant() {
    let bench = Bench::new();
    bench.simulator.world().state::<Eks>(&Bench::scope()).lacks_disk_grant = true;
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let error = finish(&bench, &operation(Verb::Create, &group, None, 90)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error.hint.as_deref().unwrap_or_default().contains("aws kms create-grant"), "{error:?}");
        Ok(())
    });
}

#[test]
fn a_default_key_of_disks_that_is_the_accounts_own_is_named_before_anything_is_created() {
    let bench = Bench::new();
    let all = lowered(&bench, &full_site(), Spot::Never);
    let found = async || {
        let all = bench.provider.preflight(&all).await.unwrap();
        all.into_iter().find(|one| one.cause.contains("default key of EBS"))
    };
    run(async {
        assert!(found().await.is_none());
        bench.simulator.world().state::<Eks>(&Bench::scope()).lacks_disk_grant = true;
        let problem = found().await.unwrap();
        assert!(problem.warning && problem.fix.contains("aws kms create-grant"), "{problem:?}");
        Ok(())
    });
}

/// An endpoint of a service in the subnets of a network without a default route.
fn endpoint(ground: &Ground, service: &str) -> Wanted {
    let is_gateway = service == "s3";
    let subnets: &[String] = if is_gateway { &[] } else { &ground.subnets };
    let policy = json!({ "Version": "2012-10-17", "Statement": [
        { "Effect": "Allow", "Principal": "*", "Action": "*", "Resource": "*" },
    ] });
    let spec = json!({
        "vpc": ground.vpc, "service": format!("com.amazonaws.{REGION}.{service}"),
        "kind": if is_gateway { "Gateway" } else { "Interface" }, "route_tables": [], "subnets": subnets, "groups": [],
        "private_dns": !is_gateway, "policy": policy, "tags": {},
    });
    wanted(&format!("here/network/endpoint-{}", service.replace('.', "-")), "aws.vpc-endpoint", &spec)
}

#[test]
fn nodes_without_the_endpoint_of_their_roles_do_not_join_and_preflight_names_it() {
    let bench = Bench::new();
    bench.simulator.world().state::<Eks>(&Bench::scope()).needs_routes = true;
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        bed.make(&cluster(&ground)).await?;
        bed.make(&addon("vpc-cni")).await?;
        let role = bed.make(&role("node-role", "ec2.amazonaws.com", &["AmazonEKSWorkerNodePolicy"])).await?;
        let nodes = |name: &str| {
            let id = ResourceId::new(format!("here/cluster/{name}-nodes")).unwrap();
            Wanted { id, ..with(&node_group(&ground, &output(&role, "arn")), json!({ "name": name })) }
        };
        for service in ["ec2", "ecr.api", "ecr.dkr", "s3", "sts"] {
            bed.make(&endpoint(&ground, service)).await?;
        }
        let existing = Component {
            existing: Some(CloudId::new(ground.vpc.as_str()).unwrap()),
            ..component("network", ComponentSpec::Network(Network { cidr: None, ..Network::default() }))
        };
        let subnets = ground.subnets.iter().map(|id| CloudId::new(id.as_str()).unwrap()).collect();
        let existing = bench.provider.lower(&existing, &Site { subnets, ..site() }).unwrap();
        let missing = async || {
            let problems = bench.provider.preflight(&existing).await.unwrap();
            problems.into_iter().map(|one| one.cause).find(|cause| cause.contains("no endpoint of"))
        };
        let cause = missing().await.unwrap();
        assert!(cause.contains("no endpoint of eks-auth:"), "{cause}");
        let error = finish(&bench, &operation(Verb::Create, &nodes("early"), None, 90)).await.unwrap_err();
        assert!(error_chain(&error).contains("Unhealthy nodes"), "{}", error_chain(&error));

        bed.make(&endpoint(&ground, "eks-auth")).await?;
        assert_eq!(missing().await, None);
        bed.make(&nodes("late")).await?;
        Ok(())
    });
    // IAM's own simulator of policies is not simulated here.
    drop(bench.simulator.take_violations());
}

#[test]
fn the_number_of_nodes_is_the_autoscalers() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let recorded = bed.make(&group).await?;
        let scope = Bench::scope();
        let scale = |desired: i64| {
            let mut world = bench.simulator.world();
            let groups = &mut world.state::<Eks>(&scope).clusters.get_mut(NAME).unwrap().node_groups;
            groups.get_mut("gpu").unwrap().scaling.2 = desired;
        };
        scale(3);
        let Ok(Observed::Present(object)) = bench.provider.read(&group.kind, &recorded.cloud_id).await else {
            panic!()
        };
        assert!(bench.provider.diff(&group, &recorded, &object).is_empty());
        // A lower maximum takes the number along.
        let smaller = with(&group, json!({ "scaling": { "min": 1, "max": 2, "desired": 1 } }));
        let op = operation(textnlp_provider::Verb::Update, &smaller, Some(&recorded), 90);
        let object = finish(&bench, &op).await.unwrap();
        assert_eq!(object.spec.get("scaling"), Some(&json!({ "min": 1, "max": 2, "desired": 2 })));
        Ok(())
    });
}

/// How often a new image of nodes comes out. After three of them, the image of nodes is too old.
const TWO_WEEKS: Duration = Duration::from_secs(14 * 86_400);

#[test]
fn nodes_with_an_old_image_get_the_newest_one_once() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let recorded = bed.make(&group).await?;
        let new = seen(&bench, &group, &recorded).await;
        assert!(bench.provider.diff(&group, &recorded, &new).is_empty());

        // A newer image alone is no reason to replace nodes.
        bench.simulator.advance(TWO_WEEKS);
        let later = seen(&bench, &group, &recorded).await;
        assert_ne!(later.spec.get("release"), new.spec.get("release"));
        assert!(bench.provider.diff(&group, &recorded, &later).is_empty());

        bench.simulator.advance(2 * TWO_WEEKS);
        let old = seen(&bench, &group, &recorded).await;
        let changes = bench.provider.diff(&group, &recorded, &old);
        let [change] = changes.as_slice() else { panic!("{changes:?}") };
        assert_eq!((change.field.as_str(), &change.effect), ("release", &Effect::InPlace));
        let shown = change.before.clone().unwrap();
        assert_eq!(shown["version"], new.spec.get("release").unwrap()["version"]);
        assert!(shown["newest"].is_string(), "{shown}");

        let op = operation(Verb::Update, &group, Some(&recorded), 90);
        let object = finish(&bench, &op).await.unwrap();
        assert!(bench.provider.diff(&group, &recorded, &object).is_empty());
        assert_ne!(object.spec.get("release").unwrap()["version"], shown["version"]);
        assert_eq!(bench.calls("UpdateNodegroupVersion"), 1);
        bed.unmake(&group, &recorded).await
    });
}

#[test]
fn an_update_of_nodes_goes_on_after_a_crash() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let recorded = bed.make(&group).await?;
        bench.simulator.advance(3 * TWO_WEEKS);
        let op = operation(Verb::Update, &group, Some(&recorded), 90);
        // The process ends after the call, before its answer is stored.
        bench.provider.begin(&op).await.unwrap();
        let object = finish(&bench, &Operation { is_repeated: true, ..op }).await.unwrap();
        assert!(bench.provider.diff(&group, &recorded, &object).is_empty());
        assert_eq!(bench.calls("UpdateNodegroupVersion"), 1);
        Ok(())
    });
}

#[test]
fn pods_that_cannot_be_evicted_stop_an_update_of_nodes() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let recorded = bed.make(&group).await?;
        bench.simulator.advance(3 * TWO_WEEKS);
        let message = "Reached max retries while trying to evict pods from nodes in node group gpu";
        let issue = ("PodEvictionFailure".to_owned(), message.to_owned());
        bench.simulator.world().state::<Eks>(&Bench::scope()).failures.insert(("update", "gpu".to_owned()), issue);
        let op = operation(Verb::Update, &group, Some(&recorded), 90);
        let mut progress = bench.provider.begin(&op).await;
        while let Ok(Progress::Pending { handle, .. }) = progress {
            progress = bench.provider.advance(&op, &handle).await;
        }
        let error = progress.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error_chain(&error).contains(message), "{}", error_chain(&error));
        assert!(error.hint.as_deref().unwrap_or_default().contains("disruption budget"), "{error:?}");
        // Once the budget allows it, the next attempt succeeds.
        let object = finish(&bench, &op).await.unwrap();
        assert!(bench.provider.diff(&group, &recorded, &object).is_empty());
        assert_eq!(bench.calls("UpdateNodegroupVersion"), 2);
        Ok(())
    });
}

#[test]
fn each_pool_is_updated_once_wherever_the_process_is_killed() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0009);
    let shape = Shape { network: true, cluster: true, gpu: Some((1, Spot::Never)), ..Shape::BARE };
    let wanted = shape.wanted(&account, "staging");
    stack.reach(UP, &wanted);
    account.simulator.advance(3 * TWO_WEEKS);

    let (plan, _) = stack.look(UP, &wanted);
    let mut planned: Vec<(&str, Vec<&str>)> = plan
        .steps
        .iter()
        .map(|step| (step.resource.as_str(), step.changes.iter().map(|change| change.field.as_str()).collect()))
        .collect();
    planned.sort_unstable();
    let expected = ["here/cluster/gpu-nodes", "here/cluster/system-nodes"].map(|id| (id, vec!["release"]));
    assert_eq!(planned, expected);

    for kill in 0.. {
        if let Some(outcome) = stack.go(UP, &wanted, &Fuse::blows_at(kill)) {
            assert!(outcome.unwrap().is_complete());
            break;
        }
    }
    let (plan, _) = stack.look(UP, &wanted);
    assert!(plan.steps.is_empty(), "another run plans {:#?}", plan.steps);
    let is_update = |one: &&textnlp_sim::Exchange| one.operation == "UpdateNodegroupVersion";
    assert_eq!(account.simulator.requests().iter().filter(is_update).count(), 2);
}

#[test]
fn nodes_of_another_size_are_there_before_the_old_ones_go() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_000a);
    let components = [
        component("network", ComponentSpec::Network(Network::default())),
        component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap()))),
    ];
    let wanted = |size| {
        let mut site = site_of("staging", false, 3);
        let cluster = site.cluster.as_mut().unwrap();
        // A node in each zone.
        cluster.min_nodes = 3;
        cluster.node_choice.size = size;
        account.lower(&components, &site)
    };
    stack.reach(UP, &wanted(None));
    let same = stack.look(UP, &wanted(Some(NodeSize::Small))).0;
    assert!(same.steps.is_empty(), "the usual size is what was there: {:#?}", same.steps);

    let plan = stack.reach(UP, &wanted(Some(NodeSize::Medium)));
    let step = |id: &str, verb: Verb| {
        let is_it = |call: &&textnlp_orchestrator::plan::Call| call.verb() == verb;
        let of_pool = |part: &str| format!("here/cluster/{part}");
        let mut steps = plan.steps.iter().filter(|step| step.resource.as_str() == of_pool(id));
        steps.find(|step| step.node.calls().iter().any(is_it)).unwrap_or_else(|| panic!("{id}: {:#?}", plan.steps)).id
    };
    let (new, old) = (step("system-medium-nodes", Verb::Create), step("system-nodes", Verb::Delete));
    let (mut todo, mut before) = (vec![old], BTreeSet::new());
    while let Some(id) = todo.pop() {
        if before.insert(id) {
            todo.extend(&plan.steps[id as usize].after);
        }
    }
    assert!(before.contains(&new), "the old nodes wait for the new ones: {:#?}", plan.steps);
    let again = stack.look(UP, &wanted(Some(NodeSize::Medium))).0;
    assert!(again.steps.is_empty(), "{:#?}", again.steps);
}

#[test]
fn nodes_that_take_the_place_of_others_are_in_every_zone() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let of = |name: &str, least: u32| {
            let scaling = json!({ "min": least, "max": 3, "desired": least });
            with(&group, json!({ "name": name, "labels": { "textnlp/pool": "system" }, "scaling": scaling }))
        };
        let refused = async |group: Wanted| {
            let problems = bench.provider.preflight(&[group]).await.unwrap();
            problems.into_iter().find(|one| one.place == "cluster.min_nodes")
        };
        assert_eq!(refused(of("system-medium", 1)).await, None, "no volume is older than these nodes");
        bed.make(&of("system", 1)).await?;
        let problem = refused(of("system-medium", 1)).await.unwrap();
        assert!(!problem.warning && problem.cause.contains("takes the place of `system`"), "{problem:?}");
        assert!(problem.fix.contains("`cluster.min_nodes: 2`"), "{problem:?}");
        assert_eq!(refused(of("system-medium", 2)).await, None, "the cluster has two zones");
        assert_eq!(refused(of("system", 1)).await, None, "these nodes stay");
        Ok(())
    });
}

#[test]
fn nodes_have_room_for_a_pod_of_the_servers() {
    let bench = Bench::new();
    let expand = |machine: Option<&str>, cpu: u32, gpu: Option<GpuPool>| {
        let pod = Some(Capacity { cpu: Cores(cpu), memory: Bytes(9 << 30) });
        let node_choice = NodeChoice { size: None, machine: machine.map(str::to_owned), pod };
        let gpus = ClusterGpus {
            count: 1,
            existing: false,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            device_plugin: false,
        };
        let cluster = ClusterSite { node_choice, gpu: gpu.as_ref().map(|_| gpus), ..ClusterSite::of("textnlp") };
        let site = Site { cluster: Some(Box::new(cluster)), ..site() };
        let cluster = Cluster { gpu, ..Cluster::of("network".parse().unwrap()) };
        let cluster = component("cluster", ComponentSpec::Cluster(cluster));
        let general = textnlp_aws::inside(&cluster, &site).unwrap().1.cluster.unwrap().nodes.unwrap().general;
        let all = bench.provider.lower(&cluster, &site).map_err(|problems| problems.to_string())?;
        let group = all.into_iter().find(|one| one.id.as_str() == format!("here/cluster/{general}")).unwrap();
        let of = |field: &str| group.spec.get(field).cloned().unwrap();
        Ok::<_, String>((general, of("instance_types"), of("labels")))
    };
    let pool = |part: &str, types: &[&str]| Ok((part.to_owned(), json!(types), json!({ "textnlp/pool": "system" })));
    assert_eq!(expand(None, 2100, None), pool("system-nodes", &["m7i.xlarge", "m6i.xlarge"]));
    // Requests that run on the usual nodes today do not replace them.
    assert_eq!(expand(None, 3700, None), pool("system-nodes", &["m7i.xlarge", "m6i.xlarge"]));
    assert_eq!(expand(None, 5100, None), pool("system-medium-nodes", &["m7i.2xlarge", "m6i.2xlarge"]));
    assert_eq!(expand(None, 16_100, None), pool("system-xlarge-nodes", &["m7i.8xlarge", "m6i.8xlarge"]));
    assert_eq!(expand(Some("m6i.2xlarge"), 5100, None), pool("system-m6i-2xlarge-nodes", &["m6i.2xlarge"]));
    let refused = expand(Some("m7i.xlarge"), 5100, None).unwrap_err();
    assert!(refused.contains("5100m CPU") && refused.contains("`m7i.xlarge` has at most 3920m CPU"), "{refused}");
    assert!(refused.contains("write `cluster.node_size: medium`"), "{refused}");
    // The images of the servers are for x86_64.
    assert!(expand(Some("m7g.2xlarge"), 2100, None).unwrap_err().contains("`m7g.2xlarge` is no known"));
    // Pods with GPUs run on other nodes, which have to be large enough.
    let usual = pool("system-nodes", &["m7i.xlarge", "m6i.xlarge"]);
    assert_eq!(expand(None, 2100, Some(GpuPool::of(GpuSize::Small, 1))), usual);
    // One of the types that are tried is enough: the nodes of a site may be of it.
    assert_eq!(expand(None, 5100, Some(GpuPool::of(GpuSize::Small, 1))), usual);
    let refused = expand(None, 8100, Some(GpuPool::of(GpuSize::Small, 1))).unwrap_err();
    assert!(refused.contains("`g4dn.xlarge` has at most 3920m CPU"), "{refused}");
    assert!(refused.contains("`gpu.machines: [g4dn.4xlarge]`"), "{refused}");
}

#[test]
fn a_lost_reply_makes_no_second_node_group_and_a_failed_deletion_is_repeated() {
    let bench = Bench::new();
    bench.simulator.faults().add(Rule::nth("eks", "CreateNodegroup", 1, Disruption::LostReply));
    run(async {
        let bed = bench.bed();
        let (.., group) = with_nodes(&bed).await?;
        let recorded = bed.make(&group).await?;
        let issue = ("Ec2SecurityGroupDeletionFailure".to_owned(), "a dependency".to_owned());
        bench.simulator.world().state::<Eks>(&Bench::scope()).failures.insert(("delete", "gpu".to_owned()), issue);
        bed.unmake(&group, &recorded).await?;
        assert_eq!((bench.calls("CreateNodegroup"), bench.calls("DeleteNodegroup")), (1, 2));
        Ok(())
    });
}

#[test]
fn what_a_cluster_leaves_behind_is_swept_and_its_protection_ends_with_it() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        let wanted = cluster(&ground);
        let recorded = bed.make(&wanted).await?;
        let scope = Bench::scope();
        {
            let mut world = bench.simulator.world();
            elb::leave_behind(&mut world, &scope, NAME, &ground.vpc, &ground.subnets);
            ec2::volumes::leave_behind(&mut world, &scope, "vol-0123", NAME);
            ec2::volumes::leave_behind(&mut world, &scope, "vol-4567", "another");
            elb::leave_behind(&mut world, &scope, NAME, "vpc-of-others", &[]);
            elb::leave_classic_behind(&mut world, &scope, NAME, &ground.vpc, &ground.subnets);
            elb::leave_classic_behind(&mut world, &scope, NAME, "vpc-of-others", &[]);
        }
        bench.simulator.advance(Duration::from_secs(60));
        let Ok(Observed::Present(object)) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await else {
            panic!()
        };
        let found: Vec<_> = object.foreign.iter().map(|one| (one.what.as_str(), one.swept, one.outlives)).collect();
        // Those of another VPC have the tags too.
        let (classic, disk) = (("classic load balancer", true, false), ("disk", false, true));
        assert_eq!(found, [classic, disk, ("load balancer", true, false), ("target group", true, false)]);
        // What no plan named stays, and stops the deletion.
        let error = finish(&bench, &operation(Verb::Delete, &wanted, Some(&recorded), 90)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error_chain(&error).contains("created after the plan"), "{}", error_chain(&error));
        assert_eq!(bench.calls("DeleteLoadBalancer") + bench.calls("DeleteTargetGroup"), 0);
        bed.unmake(&wanted, &recorded).await?;
        let world = bench.simulator.world();
        let elb::Elb { balancers, classics, .. } = world.find::<elb::Elb>(&scope).unwrap();
        let disks: Vec<&str> = world.find::<ec2::Ec2>(&scope).unwrap().all(&ec2::VOLUME).map(|(id, _)| id).collect();
        assert_eq!((balancers.len(), classics.len()), (1, 1), "those of another VPC");
        assert_eq!(disks, ["vol-0123", "vol-4567"]);
        Ok(())
    });
}

#[test]
fn classic_load_balancer_in_an_existing_network_is_named_and_kept() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        let wanted = cluster(&ground);
        let recorded = bed.make(&wanted).await?;
        {
            let mut world = bench.simulator.world();
            elb::leave_classic_behind(&mut world, &Bench::scope(), NAME, &ground.vpc, &ground.subnets);
            // Somebody else's network.
            let arn = format!("arn:aws:ec2:{REGION}:{ACCOUNT}:vpc/{}", ground.vpc);
            world.tags.remove(&arn, ["textnlp-lineage"]);
        }
        bench.simulator.advance(Duration::from_secs(60));
        let Ok(Observed::Present(object)) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await else {
            panic!()
        };
        let found: Vec<_> = object.foreign.iter().map(|one| (one.what.as_str(), one.swept, one.outlives)).collect();
        assert_eq!(found, [("classic load balancer", false, true)]);
        bed.unmake(&wanted, &recorded).await?;
        assert_eq!(bench.calls("DeleteLoadBalancer"), 0);
        Ok(())
    });
}

#[test]
fn classic_load_balancer_with_the_name_of_one_that_the_cluster_had_is_kept() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let ground = ground(&bed).await?;
        let wanted = cluster(&ground);
        let recorded = bed.make(&wanted).await?;
        {
            let (mut world, scope) = (bench.simulator.world(), Bench::scope());
            let (arn, _) = elb::leave_classic_behind(&mut world, &scope, NAME, &ground.vpc, &ground.subnets);
            // The tagging API shows the tags of the deleted one.
            elb::renew_classic(&mut world, &scope, &arn);
        }
        bench.simulator.advance(Duration::from_secs(60));
        let Ok(Observed::Present(object)) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await else {
            panic!()
        };
        assert!(object.foreign.is_empty(), "{:?}", object.foreign);
        bed.unmake(&wanted, &recorded).await?;
        assert_eq!(bench.calls("DeleteLoadBalancer"), 0);
        Ok(())
    });
}

#[test]
fn an_existing_cluster_is_read_with_its_endpoint_and_the_access_to_it() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let wanted = with(&cluster(&ground(&bed).await?), json!({ "deployer_access": false }));
        let recorded = bed.make(&wanted).await?;
        let ca = "-----BEGIN CERTIFICATE-----\nb3du\n-----END CERTIFICATE-----\n";
        {
            let mut world = bench.simulator.world();
            let own = ("https://127.0.0.1:6443".to_owned(), ca.to_owned());
            world.state::<Eks>(&Bench::scope()).endpoint = Some(own);
            // Somebody else's cluster.
            let arn = format!("arn:aws:eks:{REGION}:{ACCOUNT}:cluster/{NAME}");
            let keys: Vec<String> = world.tags.of(&arn).into_keys().collect();
            world.tags.remove(&arn, keys.iter().map(String::as_str));
        }
        let external = Wanted { ownership: Ownership::External(CloudId::new(NAME).unwrap()), ..wanted };
        let writes = bench.simulator.requests().len();
        let Ok(Observed::Present(object)) = bench.provider.read(&external.kind, &recorded.cloud_id).await else {
            panic!()
        };
        assert_eq!(object.outputs["endpoint"], "https://127.0.0.1:6443");
        assert_eq!(object.outputs["ca_pem"], ca);
        assert!(object.foreign.is_empty());
        let Health::Degraded(why) = &object.health else { panic!("{:?}", object.health) };
        assert!(why.contains("user/operator"), "{why}");
        let all = bench.simulator.requests();
        let changes =
            |name: &str| ["Create", "Update", "Delete", "Associate", "Tag"].iter().any(|verb| name.starts_with(verb));
        assert!(!all[writes..].iter().any(|request| changes(&request.operation)));
        Ok(())
    });
}

/// A site with machines.
fn full_site() -> Site {
    let cluster = ClusterSite { min_nodes: 3, max_nodes: Some(10), ..ClusterSite::of("textnlp") };
    Site { cluster: Some(Box::new(cluster)), ..site() }
}

fn lowered(bench: &Bench, site: &Site, spot: Spot) -> Vec<Wanted> {
    let gpu = GpuPool { spot, ..GpuPool::of(GpuSize::Small, 2) };
    let cluster = Cluster { gpu: Some(gpu), ..Cluster::of("network".parse().unwrap()) };
    let components = [
        component("network", ComponentSpec::Network(Network { cidr: None, policies: true, ..Network::default() })),
        component("cluster", ComponentSpec::Cluster(cluster)),
    ];
    components.iter().flat_map(|component| lowers_purely(&bench.provider, component, site).unwrap()).collect()
}

#[test]
fn a_cluster_with_its_network_and_machines_is_created_seen_unchanged_and_removed() {
    let bench = Bench::new();
    let site = full_site();
    let all = lowered(&bench, &site, Spot::Prefer);
    bench.simulator.world().state::<Eks>(&Bench::scope()).demanded_tags.insert("team".to_owned());
    run(async {
        let bed = bench.bed();
        let mut made = make_all(&bed, all).await?;
        let groups: Vec<&str> = made
            .iter()
            .filter(|(one, _)| one.kind.as_str() == "aws.eks-node-group")
            .map(|(_, recorded)| recorded.cloud_id.as_str())
            .collect();
        assert_eq!(groups.len(), 2, "{groups:?}");
        let has_class = bench.simulator.world().state::<Eks>(&Bench::scope()).clusters[NAME].has_default_class();
        assert!(has_class, "claims of the database name no class");

        bench.simulator.advance(Duration::from_secs(3600));
        let wanted: Vec<Wanted> = made.iter().map(|(one, _)| one.clone()).collect();
        let recorded: Vec<Recorded> = made.iter().map(|(_, recorded)| recorded.clone()).collect();
        let environment = "staging".parse().unwrap();
        let scope = Scope {
            lineage: lineage(),
            environment: &environment,
            site: &site.name,
            wanted: &wanted,
            recorded: &recorded,
        };
        let seen = bench.provider.observe(&scope).await.unwrap();
        assert_eq!(seen.len(), made.len(), "one object for each");
        for (id, seen) in seen {
            let (one, recorded) = made.iter().find(|(one, _)| one.id == id).unwrap();
            let Observed::Present(object) = seen else { panic!("{id}: {seen:?}") };
            assert!(bench.provider.diff(one, recorded, &object).is_empty(), "{id}");
            assert_eq!(object.health, Health::Ready, "{id}");
        }

        while let Some((one, recorded)) = made.pop() {
            bed.unmake(&one, &recorded).await?;
        }
        let scope = Scope { wanted: &[], recorded: &[], ..scope };
        let rest = bench.provider.observe(&scope).await.unwrap();
        assert!(rest.is_empty(), "{rest:?}");
        bench.simulator.advance(Duration::from_secs(3600));
        let world = bench.simulator.world();
        let groups = world.find::<Logs>(&Bench::scope()).map(|logs| logs.groups.keys().cloned().collect::<Vec<_>>());
        assert_eq!(groups.unwrap_or_default(), Vec::<String>::new(), "EKS makes none again");
        Ok(())
    });
}

#[test]
fn a_cluster_whose_creation_failed_is_deleted_with_its_logs() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let wanted = cluster(&ground(&bed).await?);
        let issue = ("InsufficientFreeAddresses".to_owned(), "no free address".to_owned());
        bench.simulator.world().state::<Eks>(&Bench::scope()).failures.insert(("create", NAME.to_owned()), issue);
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 90)).await.unwrap_err();
        assert!(error_chain(&error).contains("no free address"), "{}", error_chain(&error));
        let recorded = Recorded { cloud_id: CloudId::new(NAME).unwrap(), ..crate::sagemaker::recorded(&wanted) };
        finish(&bench, &operation(Verb::Delete, &wanted, Some(&recorded), 91)).await.unwrap();
        assert!(bench.simulator.world().state::<Eks>(&Bench::scope()).clusters.is_empty());
        Ok(())
    });
}

#[test]
fn settings_of_add_ons_are_those_that_an_account_needs() {
    let bench = Bench::new();
    let tags = BTreeMap::from([("team".to_owned(), "text".to_owned())]);
    for tags in [BTreeMap::new(), tags] {
        let all = lowered(&bench, &Site { tags: tags.clone(), ..full_site() }, Spot::Never);
        let settings = |name: &str| {
            let one = all.iter().find(|one| one.spec.get("name") == Some(&json!(name))).unwrap();
            one.spec.get("configuration").cloned().unwrap()
        };
        let (disks, network) = (settings("aws-ebs-csi-driver"), settings("vpc-cni"));
        assert_eq!(disks["defaultStorageClass"]["enabled"], true);
        if tags.is_empty() {
            assert!(disks.get("controller").is_none() && network.get("env").is_none());
        } else {
            assert_eq!(disks["controller"]["extraVolumeTags"], json!(tags));
            assert_eq!(network["env"]["ADDITIONAL_ENI_TAGS"], json!(tags).to_string());
        }
    }
}

#[test]
fn a_log_group_that_eks_made_again_is_taken_over_and_one_with_tags_is_not() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let group = |number: u32| {
            let name = format!("/aws/eks/textnlp-staging-here-{number}/cluster");
            let spec = json!({ "name": name, "retention_days": 90, "key": null, "tags": {} });
            (name, wanted(&format!("here/cluster/logs-{number}"), "aws.log-group", &spec))
        };
        let (names, all): (Vec<_>, Vec<_>) = (1..=2).map(group).unzip();
        {
            let mut world = bench.simulator.world();
            let now = world.now();
            for name in &names {
                let groups = &mut world.state::<Logs>(&Bench::scope()).groups;
                groups.insert(name.clone(), LogGroup::by_service(now));
            }
            let arn = format!("arn:aws:logs:{REGION}:{ACCOUNT}:log-group:{}", names[1]);
            world.tags.set(&arn, [("team".to_owned(), "others".to_owned())], now);
        }
        bench.simulator.advance(Duration::from_secs(60));
        let problems = bench.provider.preflight(&all).await.unwrap();
        let taken: Vec<&str> =
            problems.iter().filter(|one| one.cause.contains("exists")).map(|one| one.place.as_str()).collect();
        assert_eq!(taken, ["here/cluster/logs-2"]);
        let recorded = bed.make(&all[0]).await?;
        assert_eq!(recorded.cloud_id.as_str(), names[0]);
        let error = finish(&bench, &operation(Verb::Create, &all[1], None, 7)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Exists);
        bed.unmake(&all[0], &recorded).await
    });
}

#[test]
fn settings_of_a_cluster_reach_its_resources() {
    let bench = Bench::new();
    let boundary = format!("arn:aws:iam::{ACCOUNT}:policy/boundary");
    let spec = Cluster {
        version: Some("1.33".to_owned()),
        allow_from: Some(Vec::new()),
        permission_boundary: Some(boundary.clone()),
        ..Cluster::of("network".parse().unwrap())
    };
    let all =
        lowers_purely(&bench.provider, &component("cluster", ComponentSpec::Cluster(spec)), &full_site()).unwrap();
    let of = |id: &str| all.iter().find(|one| one.id.as_str() == id).unwrap();
    let main = of("here/cluster");
    assert_eq!((main.spec.get("version"), main.spec.get("public_cidrs")), (Some(&json!("1.33")), Some(&json!([]))));
    assert_eq!(main.spec.get("deletion_protection"), Some(&json!(true)));
    let roles: Vec<_> = all.iter().filter(|one| one.kind.as_str() == "aws.role").collect();
    assert!(roles.len() >= 4 && roles.iter().all(|one| one.spec.get("boundary") == Some(&json!(boundary))));
    assert_eq!(
        of("here/cluster/system-nodes").spec.get("scaling"),
        Some(&json!({ "min": 3, "max": 10, "desired": 3 }))
    );
    assert!(!all.iter().any(|one| one.id.as_str().contains("gpu")));

    for (spot, capacity) in [
        (Spot::Never, json!(["ON_DEMAND"])),
        (Spot::Prefer, json!(["SPOT", "ON_DEMAND"])),
        (Spot::Only, json!(["SPOT"])),
    ] {
        let all = lowered(&bench, &full_site(), spot);
        let gpu = all.iter().find(|one| one.id.as_str() == "here/cluster/gpu-nodes").unwrap();
        assert_eq!(gpu.spec.get("capacity"), Some(&capacity));
        assert_eq!(gpu.spec.get("instance_types").and_then(|types| types.get(0)), Some(&json!("g4dn.xlarge")));
        assert_eq!(gpu.spec.get("ami_type"), Some(&json!("AL2023_x86_64_NVIDIA")));
        // Pods select the nodes by the label that the group gives them.
        let mut site = full_site();
        let of_site = ClusterGpus {
            count: 2,
            existing: false,
            node_selector: BTreeMap::new(),
            tolerations: Vec::new(),
            device_plugin: false,
        };
        site.cluster.as_mut().unwrap().gpu = Some(of_site);
        let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
        let found = textnlp_aws::inside(&cluster, &site).unwrap().1.cluster.unwrap().gpu.unwrap();
        assert_eq!((gpu.spec.get("labels"), found.device_plugin), (Some(&json!(found.node_selector)), true));
    }

    let expand = |machines: &[&str], per_machine| {
        let machines = machines.iter().map(ToString::to_string).collect();
        let gpu = GpuPool { machines, per_machine, ..GpuPool::of(GpuSize::Large, 2) };
        let cluster = Cluster { gpu: Some(gpu), ..Cluster::of("network".parse().unwrap()) };
        bench.provider.lower(&component("cluster", ComponentSpec::Cluster(cluster)), &full_site())
    };
    let all = expand(&["g6.12xlarge", "g5.12xlarge"], Some(4)).unwrap();
    let gpu = all.iter().find(|one| one.id.as_str() == "here/cluster/gpu-nodes").unwrap();
    assert_eq!(gpu.spec.get("instance_types"), Some(&json!(["g6.12xlarge", "g5.12xlarge"])));
    // A type with other GPUs, a withdrawn one and one without GPUs are no choice.
    let wrong = expand(&["g6.12xlarge", "p3.2xlarge", "m7i.xlarge"], None).unwrap_err().to_string();
    for part in ["has 4 GPUs", "`p3.2xlarge` is no known", "`m7i.xlarge` is no known", "`per_machine: 4`"] {
        assert!(wrong.contains(part), "{part}: {wrong}");
    }

    let existing = Component {
        existing: Some(CloudId::new("theirs").unwrap()),
        ..component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())))
    };
    let all = lowers_purely(&bench.provider, &existing, &full_site()).unwrap();
    assert_eq!(all.iter().map(|one| one.id.as_str()).collect::<Vec<_>>(), ["here/cluster"]);
}

#[test]
fn nodes_in_china_trust_the_service_of_its_partition() {
    let bench = Bench::new();
    for (region, partition, machines) in
        [(REGION, "aws", "ec2.amazonaws.com"), ("cn-north-1", "aws-cn", "ec2.amazonaws.com.cn")]
    {
        let cluster = component("cluster", ComponentSpec::Cluster(Cluster::of("network".parse().unwrap())));
        let site = Site { region: region.to_owned(), ..full_site() };
        let all = lowers_purely(&bench.provider, &cluster, &site).unwrap();
        let role = |id: &str| all.iter().find(|one| one.id.as_str() == id).unwrap().spec.as_value().clone();
        let service = |role: &Value| role["trust"]["Statement"][0]["Principal"]["Service"].clone();
        let (nodes, control) = (role("here/cluster/node-role"), role("here/cluster/role"));
        assert_eq!((service(&nodes), service(&control)), (json!([machines]), json!(["eks.amazonaws.com"])), "{region}");
        let policy = format!("arn:{partition}:iam::aws:policy/AmazonEKSClusterPolicy");
        assert_eq!(control["managed"], json!([policy]));
    }
}

/// The provider of another identity of the account, in the same simulator.
fn signed_in(bench: Bench, identity: &str) -> Bench {
    let (access_key, secret) = ("ASIASIMULATEDSESSION", "simulated/secret+of/a+session/00000000000");
    let credential = Credential {
        secret: secret.to_owned(),
        token: None,
        account: ACCOUNT.to_owned(),
        identity: identity.to_owned(),
        id: "AROASIMULATEDSESSION".to_owned(),
        expires: None,
    };
    bench.simulator.world().credentials.insert(access_key, credential);
    let credentials = aws_credential_types::Credentials::new(access_key, secret, None, None, "test");
    let simulator = textnlp_aws::Simulator { url: bench.simulator.url(), credentials };
    let access = Access { simulator: Some(simulator), ..bench.access() };
    let provider = Aws::new(access, Arc::new(Secrets(BTreeMap::new()))).polling_every(Duration::ZERO);
    Bench { provider, ..bench }
}

#[test]
fn a_session_of_identity_center_has_its_role_with_its_path_and_root_is_refused() {
    const ROLE: &str = "AWSReservedSSO_Deployers_0123456789abcdef";
    let mut bench = Bench::new();
    let mut needed = None;
    run(async {
        let bed = bench.bed();
        let path = "/aws-reserved/sso.amazonaws.com/eu-west-1/";
        bed.make(&with(&role("deployers", "unused.amazonaws.com", &[]), json!({ "name": ROLE, "path": path }))).await?;
        needed = Some(cluster(&ground(&bed).await?));
        Ok(())
    });
    bench = signed_in(bench, &format!("arn:aws:sts::{ACCOUNT}:assumed-role/{ROLE}/ann"));
    bench
        .simulator
        .world()
        .state::<Iam>(&textnlp_sim::Scope::global(ACCOUNT))
        .denied
        .insert("eks:CreateCluster".to_owned());
    let all = lowered(&bench, &full_site(), Spot::Never);
    run(async {
        // IAM knows the role by its whole ARN only, so that this is the answer of a simulation.
        let problems = bench.provider.preflight(&all).await.unwrap();
        let found = problems.iter().find(|one| one.place == "permissions").unwrap();
        assert!(found.warning && found.cause.contains("eks:CreateCluster"), "{problems:?}");
        finish(&bench, &operation(Verb::Create, &needed.unwrap(), None, 90)).await.unwrap();
        Ok(())
    });
    let entry = format!("arn:aws:iam::{ACCOUNT}:role/aws-reserved/sso.amazonaws.com/eu-west-1/{ROLE}");
    let world = bench.simulator.world();
    let entries = &world.find::<Eks>(&Bench::scope()).unwrap().clusters[NAME].entries;
    assert!(entries.contains_key(&entry), "{:?}", entries.keys());
    drop(world);

    let bench = signed_in(bench, &format!("arn:aws:iam::{ACCOUNT}:root"));
    run(async {
        let problems = bench.provider.preflight(&all).await.unwrap();
        let found = problems.iter().find(|one| one.place == "account").unwrap();
        assert!(!found.warning && !found.note && found.cause.contains("root user"), "{problems:?}");
        Ok(())
    });
}

fn with_access(identities: &[(&str, AccessLevel)]) -> Component {
    let identity =
        |(identity, level): &(&str, AccessLevel)| ClusterIdentity { identity: (*identity).to_owned(), level: *level };
    let access = identities.iter().map(identity).collect();
    component("cluster", ComponentSpec::Cluster(Cluster { access, ..Cluster::of("network".parse().unwrap()) }))
}

#[test]
fn identities_of_the_environment_reach_the_cluster() {
    let bench = Bench::new();
    let (admins, readers) =
        (format!("arn:aws:iam::{ACCOUNT}:role/ops/admins"), format!("arn:aws:iam::{ACCOUNT}:user/ann"));
    let component = with_access(&[(&admins, AccessLevel::Admin), (&readers, AccessLevel::View)]);
    let all = lowers_purely(&bench.provider, &component, &full_site()).unwrap();
    let entries: Vec<&Wanted> = all.iter().filter(|one| one.kind.as_str() == "aws.eks-access-entry").collect();
    assert_eq!(entries.len(), 2);
    for (entry, (identity, policy)) in
        entries.iter().zip([(&admins, "AmazonEKSClusterAdminPolicy"), (&readers, "AmazonEKSViewPolicy")])
    {
        assert_eq!(entry.spec.get("principal"), Some(&json!(identity)));
        let arn = format!("arn:aws:eks::aws:cluster-access-policy/{policy}");
        assert_eq!(entry.spec.as_value()["policies"], json!([{ "arn": arn, "namespaces": [] }]));
        assert!(entry.needs.iter().any(|need| need.on.as_str() == "here/cluster"));
    }
    // The order in the file is no difference.
    let other = with_access(&[(&readers, AccessLevel::View), (&admins, AccessLevel::Admin)]);
    let other = lowers_purely(&bench.provider, &other, &full_site()).unwrap();
    assert!(entries.iter().all(|entry| other.contains(entry)));
}

#[test]
fn only_roles_and_users_reach_a_cluster() {
    let bench = Bench::new();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/admins");
    for (identities, says) in [
        (vec!["arn:aws:sts::123456789012:assumed-role/admins/me"], "neither a role nor a user"),
        (vec!["arn:aws-cn:iam::123456789012:role/admins"], "neither a role nor a user"),
        (vec!["arn:aws:iam::123456789012:role/"], "neither a role nor a user"),
        (vec!["arn:aws:iam::1234:user/ann"], "neither a role nor a user"),
        (vec!["ann"], "neither a role nor a user"),
        (vec![&role, &role], "twice"),
    ] {
        let identities: Vec<_> = identities.into_iter().map(|one| (one, AccessLevel::View)).collect();
        let problems = bench.provider.lower(&with_access(&identities), &full_site()).unwrap_err();
        assert!(problems.to_string().contains(says), "{problems}");
    }
    let existing =
        Component { existing: Some(CloudId::new("theirs").unwrap()), ..with_access(&[(&role, AccessLevel::View)]) };
    let problems = bench.provider.lower(&existing, &full_site()).unwrap_err();
    assert!(problems.to_string().contains("existing cluster is never changed"), "{problems}");
}

#[test]
fn version_that_eks_never_has_is_refused() {
    let bench = Bench::new();
    let lowered = |version: &str| {
        let spec = Cluster { version: Some(version.to_owned()), ..Cluster::of("network".parse().unwrap()) };
        bench.provider.lower(&component("cluster", ComponentSpec::Cluster(spec)), &full_site())
    };
    assert!(lowered("1.34").is_ok());
    for version in ["9.99", "1.34.2", "v1.34", "1.", "1.034", "latest"] {
        let problems = lowered(version).unwrap_err().to_string();
        assert!(problems.contains("is no version of EKS"), "{version}: {problems}");
    }
}

#[test]
fn eks_gets_an_autoscaler_where_a_pool_may_grow() {
    let bench = Bench::new();
    for (nodes, max, grows) in [(3, None, false), (3, Some(2), false), (3, Some(5), true), (10, None, true)] {
        let cluster = ClusterSite { min_nodes: 3, max_nodes: Some(nodes), ..ClusterSite::of("textnlp") };
        let site = Site { cluster: Some(Box::new(cluster)), ..site() };
        let gpu = GpuPool { max, ..GpuPool::of(GpuSize::Small, 2) };
        let network = "network".parse().unwrap();
        let spec = Cluster { gpu: Some(gpu), version: Some("1.33".to_owned()), ..Cluster::of(network) };
        let cluster = component("cluster", ComponentSpec::Cluster(spec));
        let all = lowers_purely(&bench.provider, &cluster, &site).unwrap();
        let find = |part: &str| all.iter().find(|one| one.id.as_str() == format!("here/cluster/{part}"));
        let group = find("gpu-nodes").unwrap();
        let scaling = json!({ "min": 2, "max": max.unwrap_or(2), "desired": 2 });
        assert_eq!(group.spec.get("scaling"), Some(&scaling));
        let labels = group.spec.get("labels").unwrap();
        assert_eq!(labels.get("k8s.amazonaws.com/accelerator").is_some(), max == Some(5), "{labels}");

        let inside = *textnlp_aws::inside(&cluster, &site).unwrap().1.cluster.unwrap();
        let disks = inside.nodes.and_then(|nodes| nodes.disks).unwrap();
        assert!(find(&disks).is_some(), "{disks}");
        let inside = inside.node_autoscaler;
        let (role, identity) = (find("autoscaler-role"), find("autoscaler-identity"));
        assert_eq!((inside.is_some(), role.is_some(), identity.is_some()), (grows, grows, grows), "{nodes} {max:?}");
        let (Some(autoscaler), Some(role), Some(identity)) = (inside, role, identity) else { continue };
        assert_eq!(autoscaler.part, "autoscaler-identity");
        assert!(autoscaler.image.contains(":v1.33.") && autoscaler.discovery.ends_with(NAME), "{autoscaler:?}");
        let account = json!(NodeAutoscaler::name("textnlp"));
        assert_eq!(identity.spec.get("service_account"), Some(&account));
        // It reads everything, and changes the groups of its own cluster only.
        let statements = role.spec.get("inline").unwrap()["autoscaler"]["Statement"].as_array().unwrap();
        for statement in statements {
            let (actions, condition) = (statement["Action"].to_string(), statement["Condition"].to_string());
            let changes = ["Set", "Terminate"].iter().any(|verb| actions.contains(&format!("autoscaling:{verb}")));
            assert_eq!(changes, condition.contains(&format!("cluster-autoscaler/{NAME}")), "{statement}");
        }
    }
}

#[test]
fn the_deployer_gets_no_second_access_entry() {
    let bench = Bench::new();
    run(async {
        let own = Aws::sign_in(&bench.access()).await.unwrap().arn;
        let other = format!("arn:aws:iam::{ACCOUNT}:role/admins");
        for (identity, refused) in [(&own, true), (&other, false)] {
            let all =
                lowers_purely(&bench.provider, &with_access(&[(identity, AccessLevel::Admin)]), &full_site()).unwrap();
            let problems = bench.provider.preflight(&all).await.unwrap();
            let found = problems.iter().any(|problem| problem.fix.contains("cluster.access") && !problem.warning);
            assert_eq!(found, refused, "{problems:?}");
        }
        Ok(())
    });
}
