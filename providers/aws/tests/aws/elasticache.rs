//! Caches.

use serde_json::{Value, json};
use textnlp_provider::component::{
    Cache, Component, ComponentSpec, MaintenanceWindow, ManagedCache, ManagedPostgres, Site,
};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::settings::{CacheKind, Weekday};
use textnlp_provider::units::TimeOfDay;
use textnlp_provider::{CloudId, DataClass, Provider, SecretName, SecretRef, SecretVersion, Spec, Verb, Wanted};
use textnlp_sim::aws::elasticache::ElastiCache;
use textnlp_sim::{Options, Simulator, Timing};

use crate::engine::component;
use crate::kms::key;
use crate::network::{finish, operation, with};
use crate::rds::with_subnets;
use crate::{Bench, database, output, run, site, wanted};

pub(crate) fn token(version: &str) -> SecretRef {
    SecretRef { name: SecretName("here/cache-password".to_owned()), version: SecretVersion(version.to_owned()) }
}

/// A cache that AWS operates.
pub(crate) fn redis(memory_bytes: u64, replicas: u32) -> Cache {
    let managed = ManagedCache { memory_bytes, replicas, secrets: "secrets".parse().unwrap(), database: None };
    Cache { kind: CacheKind::Redis, managed: Some(managed) }
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
        "maintenance_window": null,
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
        spec["maintenance_window"] = json!("sun:22:30-mon:02:30");
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
        let is_node = |node: &str, number: &str| made.outputs[node].as_str().unwrap().ends_with(number);
        assert!(is_node("node_1", "-001") && is_node("node_2", "-002"), "{:?}", made.outputs);
        let mut spec: Value = wanted.spec.as_value().clone();
        (spec["replicas"], spec["multi_az"]) = (json!(0), json!(false));
        let wanted = Wanted { spec: Spec::of(&spec), ..wanted };
        let object = finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("replicas"), Some(&json!(0)));
        assert!(
            object.outputs.contains_key("node_1") && !object.outputs.contains_key("node_2"),
            "{:?}",
            object.outputs
        );
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

/// `down` keeps precious data where data is protected, and such objects.
#[test]
fn a_cache_is_not_kept_where_data_is_protected_and_a_database_is() {
    let bench = bench();
    assert!(site().protect_data);
    let cache = component("cache", ComponentSpec::Cache(redis(1_000_000_000, 1)));
    let managed = ManagedPostgres { disk_bytes: 100 << 30, backup_seconds: 0, replica_region: None };
    let database = component("database", ComponentSpec::Database(database(managed, 1, 100)));
    let kept = |component: &Component| -> Vec<String> {
        let is_kept = |one: &Wanted| {
            let kind = bench.provider.kinds().iter().find(|kind| kind.name == one.kind.as_str()).unwrap();
            one.protected || kind.data == DataClass::Precious
        };
        let wanted = lowers_purely(&bench.provider, component, &site()).unwrap();
        wanted.iter().filter(|one| is_kept(one)).map(|one| one.kind.to_string()).collect()
    };
    assert_eq!(kept(&cache), Vec::<String>::new());
    assert!(kept(&database).contains(&"aws.db-instance".to_owned()));
}

#[test]
fn a_managed_cache_is_a_group_with_tls_that_only_the_private_subnets_reach() {
    let bench = bench();
    let of = |memory_bytes: u64, replicas: u32| component("cache", ComponentSpec::Cache(redis(memory_bytes, replicas)));
    let wanted = lowers_purely(&bench.provider, &of(1_000_000_000, 0), &site()).unwrap();
    let ids: Vec<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
    assert_eq!(ids, ["here/cache/subnets", "here/cache/access", "here/cache/group"]);
    let access = wanted[1].spec.as_value();
    let rules = access["ingress"].as_array().cloned().unwrap_or_default();
    let peers: Vec<(&Value, &Value)> = rules.iter().map(|rule| (&rule["from"], &rule["peer"])).collect();
    let range = |zone: &str| json!({ "$output": format!("here/network/subnet-private-{zone}#cidr") });
    let (port, ranges) = (json!(6379), ["a", "b", "c"].map(range));
    assert_eq!(peers, ranges.each_ref().map(|range| (&port, range)));
    assert_eq!(access["egress"], json!([]));
    let group = wanted[2].spec.as_value();
    let expected = json!({
        "name": "textnlp-staging-here-cache",
        "description": "cache of staging at here",
        "engine": "valkey",
        "version": "8",
        "class": "cache.t4g.small",
        "replicas": 0,
        "multi_az": false,
        "key": { "$output": "here/models/key#arn" },
        "token": { "$output": "here/secrets/cache-password#secret" },
        "subnet_group": { "$output": "here/cache/subnets#name" },
        "security_groups": [{ "$output": "here/cache/access#id" }],
        "snapshot_days": 0,
        "maintenance_window": null,
        "tls": true,
        "encrypted": true,
        "minor_upgrades": true,
        "tags": { "team": "nlp" },
    });
    assert_eq!(*group, expected);
    let window = MaintenanceWindow { day: Weekday::Sunday, at: TimeOfDay(150), hours: 4 };
    let with_window = Site { maintenance: Some(window), ..site() };
    let maintained = lowers_purely(&bench.provider, &of(1_000_000_000, 0), &with_window).unwrap();
    assert_eq!(maintained[2].spec.as_value()["maintenance_window"], "sun:02:30-sun:06:30");
    // It holds nothing that is lost with it.
    assert!(!wanted[2].protected);
    let wanted = lowers_purely(&bench.provider, &of(4 << 30, 2), &site()).unwrap();
    let group = wanted[2].spec.as_value();
    let chosen = (&group["class"], &group["replicas"], &group["multi_az"]);
    assert_eq!(chosen, (&json!("cache.m6g.large"), &json!(2), &json!(true)));
    let problems = bench.provider.lower(&of(1 << 40, 0), &site()).unwrap_err().to_string();
    assert!(problems.contains("cache memory") && problems.contains("write at most `cache.memory: 42GB`"), "{problems}");
    let existing = Component { existing: Some(CloudId::new("theirs").unwrap()), ..of(1, 0) };
    let problems = bench.provider.lower(&existing, &site()).unwrap_err().to_string();
    assert!(problems.contains("an existing cache of ElastiCache is not supported"), "{problems}");
}

#[test]
fn the_name_of_a_cache_is_one_that_elasticache_takes() {
    let bench = bench();
    for (environment, name) in [("a--b", "here"), ("staging", "here"), (&"e".repeat(31)[..], &"s".repeat(31)[..])] {
        let site = Site { environment: environment.parse().unwrap(), name: name.parse().unwrap(), ..site() };
        let cache = component("cache", ComponentSpec::Cache(redis(1, 0)));
        let wanted = bench.provider.lower(&cache, &site).unwrap();
        let name = wanted[2].spec.as_value()["name"].as_str().unwrap();
        assert!(name.len() <= 40 && !name.contains("--") && !name.ends_with('-'), "{name}");
    }
}

#[test]
fn the_address_of_an_elasticache_group_has_no_token() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        bed.make(&subnet_group()).await?;
        let made = bed.make(&cache(None)).await?;
        let address = "rediss://master.textnlp-staging-here.eu-west-1.cache.amazonaws.com:6379";
        assert_eq!(made.outputs["url"], json!(address));
        Ok(())
    });
}

#[test]
fn preflight_counts_the_nodes_of_a_cache_against_the_quota() {
    let bench = bench();
    bench.simulator.world().quotas.set(&Bench::scope(), "L-DFE45DF3", 2.0);
    run(async {
        for (replicas, is_exceeded) in [(1, false), (2, true)] {
            let cache = component("cache", ComponentSpec::Cache(redis(1, replicas)));
            let wanted = bench.provider.lower(&cache, &site()).unwrap();
            let problems = bench.provider.preflight(&wanted).await.unwrap();
            let named = problems.iter().any(|problem| problem.cause.contains("L-DFE45DF3"));
            assert_eq!(named, is_exceeded, "{problems:?}");
        }
        Ok(())
    });
}
