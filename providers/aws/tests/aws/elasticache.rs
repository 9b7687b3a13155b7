//! Caches.

use serde_json::{Value, json};
use textnlp_provider::{SecretName, SecretRef, SecretVersion, Spec, Verb, Wanted};
use textnlp_sim::aws::elasticache::ElastiCache;
use textnlp_sim::{Options, Simulator, Timing};

use crate::kms::key;
use crate::network::{finish, operation, with};
use crate::rds::with_subnets;
use crate::{Bench, output, run, wanted};

fn token(version: &str) -> SecretRef {
    SecretRef { name: SecretName("here/cache-password".to_owned()), version: SecretVersion(version.to_owned()) }
}

fn bench() -> Bench {
    let timing = Timing { consistency: std::time::Duration::from_secs(4), ..Timing::default() };
    let simulator = Simulator::start(Options { timing, ..Options::default() });
    let bench = Bench::of(simulator, [(token("1"), "first-token-of-a-test"), (token("2"), "second-token-of-a-test")]);
    with_subnets(&bench);
    bench
}

fn subnet_group() -> Wanted {
    let spec = json!({
        "name": "textnlp-staging-here-cache", "description": "a cache", "subnets": ["subnet-0a", "subnet-0b"], "tags": {},
    });
    wanted("here/cache/subnets", "aws.cache-subnet-group", &spec)
}

fn cache(key: Option<&str>) -> Wanted {
    let spec = json!({
        "name": "textnlp-staging-here",
        "description": "a cache",
        "engine": "valkey",
        "version": "8",
        "class": "cache.t4g.small",
        "replicas": 1,
        "multi_az": true,
        "key": key,
        "token": token("1"),
        "subnet_group": "textnlp-staging-here-cache",
        "security_groups": ["sg-0a"],
        "snapshot_days": 1,
        "tls": true,
        "encrypted": true,
        "minor_upgrades": true,
        "tags": {},
    });
    wanted("here/cache/group", "aws.cache", &spec)
}

#[test]
fn an_elasticache_subnet_group_lives() {
    let bench = bench();
    run(async {
        let wanted = subnet_group();
        bench.bed().whole_life(&wanted, Some(&with(&wanted, "subnets", json!(["subnet-0b", "subnet-0c"])))).await
    });
}

#[test]
fn an_elasticache_group_lives() {
    let bench = bench();
    run(async {
        let (bed, key) = (bench.bed(), key());
        let made = bed.make(&key).await?;
        bed.make(&subnet_group()).await?;
        let wanted = cache(Some(&output(&made, "arn")));
        let mut spec: Value = wanted.spec.as_value().clone();
        (spec["replicas"], spec["snapshot_days"], spec["class"]) = (json!(2), json!(5), json!("cache.t4g.medium"));
        bed.whole_life(&wanted, Some(&Spec::of(&spec))).await
    });
}

#[test]
fn the_last_replica_of_an_elasticache_group_goes_after_its_failover() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        bed.make(&subnet_group()).await?;
        let wanted = cache(None);
        let made = bed.make(&wanted).await?;
        let mut spec: Value = wanted.spec.as_value().clone();
        (spec["replicas"], spec["multi_az"]) = (json!(0), json!(false));
        let wanted = Wanted { spec: Spec::of(&spec), ..wanted };
        let object = finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("replicas"), Some(&json!(0)));
        Ok(())
    });
}

#[test]
fn the_token_of_an_elasticache_group_changes_once_and_the_old_one_stays_valid() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        bed.make(&subnet_group()).await?;
        let wanted = cache(None);
        let made = bed.make(&wanted).await?;
        let wanted = Wanted { spec: with(&wanted, "token", json!(token("2"))), ..wanted };
        let object = finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("token"), wanted.spec.get("token"));
        let world = bench.simulator.world();
        let group = &world.find::<ElastiCache>(&Bench::scope()).unwrap().groups["textnlp-staging-here"];
        assert_eq!(group.tokens, ["first-token-of-a-test", "second-token-of-a-test"]);
        drop(world);
        assert_eq!(bench.calls("ModifyReplicationGroup"), 1);
        Ok(())
    });
}
