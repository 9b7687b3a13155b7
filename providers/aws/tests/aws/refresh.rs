//! How many requests an observation takes, and what the account's other environments use of its quotas.

use std::time::Instant;

use aws_credential_types::Credentials;
use aws_sdk_ec2::config::{BehaviorVersion, Region};
use aws_sdk_ec2::types::{ResourceType, Tag, TagSpecification};
use serde_json::json;
use textnlp_orchestrator::run::RunError;
use textnlp_provider::memory::Fuse;
use textnlp_provider::{Observed, Provider, ResourceId, Scope, Verb, Wanted};
use textnlp_sim::{Options, Simulator};

use crate::engine::{Account, Stack, UP};
use crate::monitoring::alarm;
use crate::network::{operation, vpc, with};
use crate::programs::measure;
use crate::shape::Shape;
use crate::{Bench, REGION, lineage, output, run, site};

/// The most requests of an observation of a whole environment: a list for each kind in each region, and for each object what no list
/// tells: nine requests for a bucket, four for a role, a key and a repository, two for an add-on and a node group.
const MOST_OF_WHOLE: usize = 210;
/// The most requests of an observation of two thousand objects of kinds that AWS lists with their attributes and tags.
const MOST: usize = 120;
const GROUPS: usize = 1_800;
const ALARMS: usize = 199;

#[test]
fn two_thousand_objects_are_observed_in_few_requests() {
    let bench = Bench::of(Simulator::start(Options::zero_latency()), []);
    run(async {
        let network = output(&bench.bed().make(&vpc()).await?, "id");
        let credentials = Credentials::new(Simulator::ACCESS_KEY, Simulator::SECRET_KEY, None, None, "test");
        let config = aws_sdk_ec2::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(REGION))
            .endpoint_url(bench.simulator.url())
            .credentials_provider(credentials);
        let ec2 = aws_sdk_ec2::Client::from_conf(config.build());
        for n in 0..GROUPS {
            let tag = |key: &str, value: String| Tag::builder().key(key).value(value).build();
            let tags = TagSpecification::builder()
                .resource_type(ResourceType::SecurityGroup)
                .tags(tag("textnlp-lineage", lineage().to_string()))
                .tags(tag("textnlp-resource", format!("here/network/group-{n}")));
            let call = ec2.create_security_group().vpc_id(&network).group_name(format!("group-{n}")).description("one");
            call.tag_specifications(tags.build()).send().await.unwrap();
        }
        for n in 0..ALARMS {
            let id = ResourceId::new(format!("here/monitoring/alarm-{n}")).unwrap();
            let spec = with(&alarm(), "name", json!(format!("textnlp-alarm-{n}")));
            let one = Wanted { id, spec, ..alarm() };
            bench.provider.begin(&operation(Verb::Create, &one, None, 1_000 + n as u64)).await.unwrap();
        }
        let site = site();
        let (environment, here) = (&site.environment, &site.name);
        let scope = Scope { lineage: lineage(), environment, site: here, wanted: &[], recorded: &[] };
        let before = bench.simulator.requests().len();
        let start = Instant::now();
        let seen = bench.provider.observe(&scope).await.unwrap();
        let calls = bench.simulator.requests().len() - before;
        let present = seen.iter().filter(|(_, seen)| matches!(seen, Observed::Present(_))).count();
        println!("{calls} requests observe {present} objects in {:?}", start.elapsed());
        assert_eq!(present, 1 + GROUPS + ALARMS);
        assert!(calls <= MOST, "{calls} requests");
        Ok(())
    });
}

#[test]
fn a_whole_environment_is_observed_in_few_requests() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0002);
    let wanted = Shape::full().wanted(&account, "staging");
    let fewer = Shape::BARE.wanted(&account, "staging");
    measure(|| account.simulator.requests(), &stack, &wanted, &fewer, MOST_OF_WHOLE);
}

#[test]
fn addresses_of_another_environment_count_against_the_quota() {
    let account = Account::new(Options::zero_latency());
    account.simulator.world().quotas.set(&Bench::scope(), "L-0263D0A3", 5.0);
    let network = Shape { network: true, protect_data: true, ..Shape::BARE };
    let theirs = Stack::new(&account, "theirs", 7);
    theirs.reach(UP, &network.wanted(&account, "theirs"));
    // Another process, with the same site and the same ids of resources.
    let account = account.again();
    let ours = Stack::new(&account, "staging", 8);
    let refused = ours.go(UP, &network.wanted(&account, "staging"), &Fuse::default()).unwrap();
    let Err(RunError::Preflight(problems)) = refused else { panic!("{refused:?}") };
    assert!(problems.to_string().contains("3 are used"), "{problems}");
}
