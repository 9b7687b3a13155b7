//! PostgreSQL servers, their subnets and settings.

use std::collections::BTreeSet;

use aws_credential_types::Credentials;
use aws_sdk_rds::config::{BehaviorVersion, Region};
use serde_json::{Value, json};
use textnlp_orchestrator::plan::DeleteData;
use textnlp_orchestrator::run::RunOptions;
use textnlp_provider::component::{Component, ComponentSpec, MaintenanceWindow, ManagedPostgres};
use textnlp_provider::conformance::{TestBed, Violation, lowers_purely};
use textnlp_provider::settings::{Hosting, Weekday};
use textnlp_provider::units::TimeOfDay;
use textnlp_provider::{
    CloudId, DeleteBounds, Effect, ErrorKind, Health, Observed, Operation, Progress, Provider, Recorded, SecretName,
    SecretRef, SecretVersion, Site, Spec, Verb, Wanted, error_chain,
};
use textnlp_sim::aws::rds::Rds;
use textnlp_sim::{Market, Options, Scope, Simulator, Stages, Timing};

use crate::engine::{Account, DOWN, Stack, UP};
use crate::kms::key;
use crate::network::{finish, operation, seen, with};
use crate::sagemaker::recorded;
use crate::shape::Shape;
use crate::{ACCOUNT, Bench, REGION, database, lineage, make_all, output, run, site, wanted};

type Outcome<T = ()> = Result<T, Violation>;

const SUBNETS: [&str; 3] = ["subnet-0a", "subnet-0b", "subnet-0c"];

/// Subnets that groups may name.
pub(crate) fn with_subnets(bench: &Bench) {
    let mut world = bench.simulator.world();
    let now = world.now();
    for subnet in SUBNETS {
        let arn = format!("arn:aws:ec2:{REGION}:{ACCOUNT}:subnet/{subnet}");
        world.tags.set(&arn, [("a".to_owned(), "b".to_owned())], now);
    }
}

pub(crate) fn password(version: &str) -> SecretRef {
    SecretRef { name: SecretName("here/database-password".to_owned()), version: SecretVersion(version.to_owned()) }
}

/// With two versions of the password.
fn bench() -> Bench {
    let timing = Timing { consistency: std::time::Duration::from_secs(4), ..Timing::default() };
    let simulator = Simulator::start(Options { timing, ..Options::default() });
    let bench = Bench::of(simulator, [(password("1"), "first-password-0001"), (password("2"), "second-password-0002")]);
    with_subnets(&bench);
    bench
}

fn subnet_group() -> Wanted {
    let spec = json!({
        "name": "textnlp-staging-here-database", "description": "a database", "subnets": [SUBNETS[0], SUBNETS[1]], "tags": {},
    });
    wanted("here/database/subnets", "aws.db-subnet-group", &spec)
}

fn parameter_group(version: u32) -> Wanted {
    let spec = json!({
        "name": format!("textnlp-staging-here-postgres{version}"),
        "description": "a database",
        "family": format!("postgres{version}"),
        "parameters": { "rds.force_ssl": { "value": "1", "at_restart": false } },
        "tags": {},
    });
    wanted(&format!("here/database/parameters-{version}"), "aws.db-parameter-group", &spec)
}

fn instance(key: &str) -> Wanted {
    let spec = json!({
        "name": "textnlp-staging-here-database",
        "source": null,
        "version": "15",
        "class": "db.t4g.medium",
        "storage_gb": 100,
        "storage_type": "gp3",
        "key": key,
        "database": "textnlp",
        "user": "textnlp",
        "password": password("1"),
        "port": 5432,
        "multi_az": true,
        "subnet_group": "textnlp-staging-here-database",
        "security_groups": ["sg-0a"],
        "parameter_group": "textnlp-staging-here-postgres15",
        "backup_days": 7,
        "backup_window": "03:00-04:00",
        "maintenance_window": null,
        "deletion_protection": true,
        "final_snapshot": true,
        "performance_insights": true,
        "minor_upgrades": true,
        "public": false,
        "tags": {},
    });
    wanted("here/database/instance", "aws.db-instance", &spec)
}

/// What a server needs: its groups and a key, whose ARN is returned.
async fn place(bed: &TestBed<'_>) -> Outcome<String> {
    let made = bed.make(&key()).await?;
    bed.make(&subnet_group()).await?;
    bed.make(&parameter_group(15)).await?;
    Ok(output(&made, "arn"))
}

fn replica(source: &Recorded, key: &str) -> Wanted {
    let mut spec = instance(key).spec.as_value().clone();
    spec["name"] = json!("textnlp-staging-here-database-1");
    spec["source"] = json!(output(source, "name"));
    (spec["multi_az"], spec["backup_days"]) = (json!(false), json!(0));
    wanted("here/database/replica-1", "aws.db-instance", &spec)
}

fn changed(wanted: &Wanted, fields: &[(&str, Value)]) -> Spec {
    let mut spec = wanted.spec.as_value().clone();
    for (field, value) in fields {
        spec[*field] = value.clone();
    }
    Spec::of(&spec)
}

#[test]
fn an_rds_subnet_group_lives() {
    let bench = bench();
    run(async {
        let wanted = subnet_group();
        bench.bed().whole_life(&wanted, Some(&with(&wanted, "subnets", json!([SUBNETS[1], SUBNETS[2]])))).await
    });
}

#[test]
fn an_rds_parameter_group_lives() {
    let bench = bench();
    run(async {
        let wanted = parameter_group(16);
        let parameters = json!({ "max_connections": { "value": "500", "at_restart": true } });
        bench.bed().whole_life(&wanted, Some(&with(&wanted, "parameters", parameters))).await
    });
}

#[test]
fn an_rds_server_lives_and_leaves_one_last_snapshot() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let change = changed(
            &wanted,
            &[
                ("class", json!("db.m7g.large")),
                ("storage_gb", json!(200)),
                ("backup_days", json!(14)),
                ("backup_window", json!("07:00-08:00")),
                ("maintenance_window", json!("sun:03:00-sun:07:00")),
                ("multi_az", json!(false)),
            ],
        );
        bed.whole_life(&wanted, Some(&change)).await
    });
    let world = bench.simulator.world();
    let state = world.find::<Rds>(&Bench::scope()).unwrap();
    assert!(state.instances.is_empty());
    assert_eq!(state.snapshots.len(), 1);
}

#[test]
fn the_last_snapshot_of_an_rds_server_follows_from_the_environment() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let made = bed.make(&wanted).await?;
        {
            let mut world = bench.simulator.world();
            let servers = &mut world.state::<Rds>(&Bench::scope()).instances;
            servers.get_mut(made.cloud_id.as_str()).unwrap().shown["CopyTagsToSnapshot"] = json!(false);
        }
        bed.unmake(&wanted, &made).await
    });
    assert_eq!(bench.simulator.world().find::<Rds>(&Bench::scope()).unwrap().snapshots.len(), 1);
}

#[test]
fn an_rds_server_without_a_record_keeps_its_protection_and_leaves_a_snapshot() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let wanted = Wanted { spec: changed(&wanted, &[("final_snapshot", json!(false))]), ..wanted };
        let made = bed.make(&wanted).await?;
        let bounds = DeleteBounds { is_unrecorded: true, ..DeleteBounds::default() };
        let delete = Operation { bounds, ..operation(Verb::Delete, &wanted, Some(&made), 90) };
        let error = finish(&bench, &delete).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Denied);
        assert!(error_chain(&error).contains("is protected against deletion"), "{}", error_chain(&error));
        assert_eq!(bench.calls("ModifyDBInstance") + bench.calls("DeleteDBInstance"), 0);
        {
            let mut world = bench.simulator.world();
            let servers = &mut world.state::<Rds>(&Bench::scope()).instances;
            servers.get_mut(made.cloud_id.as_str()).unwrap().shown["DeletionProtection"] = json!(false);
        }
        finish(&bench, &delete).await.unwrap();
        Ok(())
    });
    assert_eq!(bench.simulator.world().find::<Rds>(&Bench::scope()).unwrap().snapshots.len(), 1);
}

#[test]
fn a_disposable_rds_server_leaves_nothing() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let spec = changed(&wanted, &[("deletion_protection", json!(false)), ("final_snapshot", json!(false))]);
        let wanted = Wanted { spec, ..wanted };
        let made = bed.make(&wanted).await?;
        bed.unmake(&wanted, &made).await
    });
    let world = bench.simulator.world();
    let state = world.find::<Rds>(&Bench::scope()).unwrap();
    assert!(state.instances.is_empty() && state.snapshots.is_empty());
}

#[test]
fn the_password_of_an_rds_server_changes_once() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let made = bed.make(&wanted).await?;
        let wanted = Wanted { spec: with(&wanted, "password", json!(password("2"))), ..wanted };
        let object = finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("password"), wanted.spec.get("password"));
        let world = bench.simulator.world();
        let server = &world.find::<Rds>(&Bench::scope()).unwrap().instances["textnlp-staging-here-database"];
        assert_eq!(server.password, "second-password-0002");
        drop(world);
        assert_eq!(bench.calls("ModifyDBInstance"), 1);
        let shown = format!("{:?}", bench.simulator.requests());
        assert!(!shown.contains("password-000") && !format!("{object:?}").contains("password-000"));
        Ok(())
    });
}

#[test]
fn an_rds_replica_lives_and_is_promoted() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let arn = place(&bed).await?;
        let primary = instance(&arn);
        let source = bed.make(&primary).await?;
        let wanted = replica(&source, &arn);
        bed.whole_life(&wanted, None).await?;
        let made = bed.make(&wanted).await?;
        let own =
            Wanted { spec: changed(&wanted, &[("source", Value::Null), ("backup_days", json!(7))]), ..wanted.clone() };
        let object = finish(&bench, &operation(Verb::Update, &own, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("source"), Some(&Value::Null));
        assert_eq!(object.health, Health::Ready);
        // There is no way back.
        let error = finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 101)).await.unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid);
        Ok(())
    });
}

#[test]
fn new_rds_server_of_an_unknown_major_version_is_refused_by_preflight() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let known = instance(&place(&bed).await?);
        let of = |version: &str| Wanted { spec: with(&known, "version", json!(version)), ..known.clone() };
        let found = async |wanted: Wanted| {
            let mut problems = bench.provider.preflight(&[wanted]).await.unwrap();
            problems.retain(|one| one.cause.contains("RDS has no PostgreSQL"));
            problems
        };
        assert!(found(of("15")).await.is_empty());
        let problems = found(of("99")).await;
        assert_eq!(problems.len(), 1, "{problems:?}");
        assert!(problems[0].word() == "refused" && problems[0].fix.contains("15, 16"), "{problems:?}");
        // A replica in another region has the version of its source.
        let far = of("99");
        assert!(found(Wanted { spec: with(&far, "region", json!("eu-west-1")), ..far }).await.is_empty());
        // A server that is there keeps a version that RDS does not offer any more.
        bed.make(&known).await?;
        assert!(found(of("99")).await.is_empty());
        Ok(())
    });
}

#[test]
fn changes_of_an_rds_server_that_never_work_are_refused_in_the_plan() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let old = instance(&place(&bed).await?);
        let made = bed.make(&old).await?;
        let object = seen(&bench, &old, &made).await;
        for (field, value, expected) in [
            ("version", json!("16"), Some("--allow-major-version-upgrade")),
            ("version", json!("14"), Some("PostgreSQL 15 cannot become 14: set `database.version` to 15")),
            ("storage_gb", json!(99), Some("cannot shrink to 99: set `database.size` to 100GiB")),
            ("storage_gb", json!(109), Some("set `database.size` to 110GiB or more")),
            ("storage_gb", json!(110), None),
        ] {
            let wanted = Wanted { spec: with(&old, field, value.clone()), ..old.clone() };
            let changes = bench.provider.diff(&wanted, &made, &object);
            let refused = changes.iter().find_map(|change| match &change.effect {
                Effect::Refuse(why) => Some((change.field.as_str(), why.as_str())),
                _ => None,
            });
            assert_eq!(changes.len(), 1, "{changes:?}");
            match expected {
                Some(expected) => {
                    assert!(refused.is_some_and(|(of, why)| of == field && why.contains(expected)), "{changes:?}")
                }
                None => assert_eq!(refused, None, "{value}"),
            }
        }
        Ok(())
    });
}

/// The call of the refused plan: after it, the next `up` has nothing but the parameters to change.
#[test]
fn rds_server_that_was_upgraded_outside_is_taken_over() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let old = instance(&place(&bed).await?);
        let made = bed.make(&old).await?;
        let credentials = Credentials::new(Simulator::ACCESS_KEY, Simulator::SECRET_KEY, None, None, "test");
        let config = aws_sdk_rds::Config::builder()
            .behavior_version(BehaviorVersion::v2026_01_12())
            .region(Region::new(REGION))
            .endpoint_url(bench.simulator.url())
            .credentials_provider(credentials);
        let rds = aws_sdk_rds::Client::from_conf(config.build());
        let upgrade = || {
            let call = rds.modify_db_instance().db_instance_identifier(made.cloud_id.as_str()).engine_version("16");
            call.allow_major_version_upgrade(true).apply_immediately(true)
        };
        // Without a group of the new family it keeps its own one, which is of the old.
        assert!(upgrade().send().await.is_err());
        assert!(upgrade().db_parameter_group_name("default.postgres15").send().await.is_err());
        upgrade().db_parameter_group_name("default.postgres16").send().await.unwrap();
        bench.simulator.advance(std::time::Duration::from_secs(3_600));

        bed.make(&parameter_group(16)).await?;
        let fields = [("version", json!("16")), ("parameter_group", json!("textnlp-staging-here-postgres16"))];
        let newer = Wanted { spec: changed(&old, &fields), ..old.clone() };
        let changes = bench.provider.diff(&newer, &made, &seen(&bench, &newer, &made).await);
        let left = changes.iter().map(|change| (change.field.as_str(), &change.effect)).collect::<Vec<_>>();
        assert_eq!(left, [("parameter_group", &Effect::InPlace)]);
        let object = finish(&bench, &operation(Verb::Update, &newer, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("parameter_group"), Some(&json!("textnlp-staging-here-postgres16")));
        Ok(())
    });
}

#[test]
fn rds_storage_that_shrinks_is_refused_without_a_call() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let made = bed.make(&wanted).await?;
        let smaller = Wanted { spec: with(&wanted, "storage_gb", json!(50)), ..wanted };
        let error = finish(&bench, &operation(Verb::Update, &smaller, Some(&made), 100)).await.unwrap_err();
        assert_eq!(error.hint.as_deref(), Some("set `database.size` to 100GiB"));
        assert_eq!(bench.calls("ModifyDBInstance"), 0);
        Ok(())
    });
}

#[test]
fn rds_without_capacity_is_told_apart_from_a_limit() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        bench.simulator.world().capacity.set(&format!("{REGION}a"), "db.t4g.medium", Market::OnDemand, 0);
        let create = operation(Verb::Create, &wanted, None, 100);
        assert_eq!(bench.provider.begin(&create).await.unwrap_err().kind, ErrorKind::Capacity);
        bench.simulator.world().capacity.set(&format!("{REGION}a"), "db.t4g.medium", Market::OnDemand, 9);
        bench.simulator.world().quotas.set(&Bench::scope(), "L-7B6409FD", 0.0);
        assert_eq!(bench.provider.begin(&create).await.unwrap_err().kind, ErrorKind::Quota);
        Ok(())
    });
}

#[test]
fn the_first_database_of_an_account_waits_for_the_role_of_rds() {
    let bench = bench();
    let account = Scope::global(ACCOUNT);
    bench.simulator.world().state::<Rds>(&account).is_new = true;
    run(async {
        let bed = bench.bed();
        let made = bed.make(&key()).await?;
        let create = operation(Verb::Create, &subnet_group(), None, 90);
        // The driver, not the operator, tries again.
        let object = finish(&bench, &create).await.unwrap();
        assert_eq!(object.health, Health::Ready);
        bed.make(&parameter_group(15)).await?;
        // Without the permission, or before the role is seen everywhere, the server itself is refused.
        {
            let mut world = bench.simulator.world();
            let state = world.state::<Rds>(&account);
            *state = Rds::default();
            state.is_new = true;
        }
        let error = bench.provider.begin(&operation(Verb::Create, &instance(&output(&made, "arn")), None, 91)).await;
        let error = error.unwrap_err();
        assert!(error.kind.may_pass(), "{error:?}");
        assert!(error.hint.as_deref().unwrap_or_default().contains("create-service-linked-role"), "{error:?}");
        let create = operation(Verb::Create, &instance(&output(&made, "arn")), None, 91);
        assert_eq!(finish(&bench, &create).await.unwrap().health, Health::Ready);
        Ok(())
    });
    let refused = |one: &&textnlp_sim::Exchange| {
        one.outcome == textnlp_sim::Outcome::Failed("InvalidParameterValue".to_owned())
            && ["CreateDBSubnetGroup", "CreateDBInstance"].contains(&one.operation.as_str())
    };
    assert_eq!(bench.simulator.requests().iter().filter(refused).count(), 2);
}

#[test]
fn an_rds_server_that_fails_says_why() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let create = operation(Verb::Create, &wanted, None, 100);
        let Ok(Progress::Pending { handle, .. }) = bench.provider.begin(&create).await else { panic!("it waits") };
        let status = |word| {
            let mut world = bench.simulator.world();
            let state = world.state::<Rds>(&Bench::scope());
            state.instances.get_mut("textnlp-staging-here-database").unwrap().status = Stages::settled(word);
        };
        status("incompatible-network");
        match bench.provider.advance(&create, &handle).await {
            Ok(Progress::Failed { left: Some(_), error }) => {
                assert_eq!(error.code.as_deref(), Some("incompatible-network"));
            }
            other => panic!("{other:?}"),
        }
        status("available");
        let object = finish(&bench, &create).await.unwrap();
        let recorded = Recorded { cloud_id: object.cloud_id, outputs: object.outputs, ..recorded(&wanted) };
        status("storage-full");
        let object = seen(&bench, &wanted, &recorded).await;
        assert_eq!(object.health, Health::Degraded("its storage is full: raise `database.size`".to_owned()));
        Ok(())
    });
}

fn component(managed: ManagedPostgres, replicas: u32, connections: u32) -> Component {
    crate::engine::component("database", ComponentSpec::Database(database(managed, replicas, connections)))
}

#[test]
fn a_managed_database_is_an_rds_server_that_only_the_private_subnets_reach() {
    let bench = bench();
    let managed = ManagedPostgres { disk_bytes: 100 << 30, backup_seconds: 7 * 86_400, replica_region: None };
    let wanted = lowers_purely(&bench.provider, &component(managed, 2, 700), &site()).unwrap();
    let ids: Vec<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
    let parts =
        ["subnets", "access", "parameters", "instance", "replica-1"].map(|part| format!("here/database/{part}"));
    assert_eq!(ids, parts);
    // No rule names the cluster, which would have to stay as long as the database.
    let rules = wanted[1].spec.as_value()["ingress"].as_array().cloned().unwrap_or_default();
    let peers: Vec<(&Value, &Value)> = rules.iter().map(|rule| (&rule["from"], &rule["peer"])).collect();
    let range = |zone: &str| json!({ "$output": format!("here/network/subnet-private-{zone}#cidr") });
    let ranges = ["a", "b", "c"].map(range);
    let port = json!(5432);
    assert_eq!(peers, ranges.each_ref().map(|range| (&port, range)));
    assert_eq!(wanted[1].spec.get("egress"), Some(&json!([])));
    let server = wanted[3].spec.as_value();
    assert_eq!(
        (&server["class"], &server["storage_gb"], &server["backup_days"]),
        (&json!("db.t4g.large"), &json!(100), &json!(7))
    );
    assert_eq!(
        (&server["public"], &server["multi_az"], &server["deletion_protection"]),
        (&json!(false), &json!(true), &json!(true))
    );
    assert!(wanted[3].protected);
    let managed = ManagedPostgres { disk_bytes: 1, backup_seconds: 0, replica_region: None };
    let problems = bench.provider.lower(&component(managed, 0, 9_000), &site());
    assert!(problems.unwrap_err().to_string().contains("9000 connections"));
}

#[test]
fn only_an_rds_server_of_the_deployment_has_a_maintenance_window() {
    let bench = bench();
    let window = MaintenanceWindow { day: Weekday::Sunday, at: TimeOfDay(150), hours: 4 };
    let site = Site { maintenance: Some(window), ..site() };
    let managed = ManagedPostgres { disk_bytes: 100 << 30, backup_seconds: 7 * 86_400, replica_region: None };
    let own = component(managed, 0, 700);
    let wanted = lowers_purely(&bench.provider, &own, &site).unwrap();
    let server = wanted.last().unwrap().spec.as_value();
    assert_eq!(
        (&server["maintenance_window"], &server["backup_window"]),
        (&json!("sun:02:30-sun:06:30"), &json!("06:30-07:30"))
    );
    let existing = Component { existing: Some(CloudId::new("theirs").unwrap()), ..own.clone() };
    let mut elsewhere = own;
    let ComponentSpec::Database(database) = &mut elsewhere.part else { panic!("no database") };
    database.hosting = Some(Hosting::Cluster);
    for component in [existing, elsewhere] {
        let problems = bench.provider.lower(&component, &site).unwrap_err().to_string();
        assert!(problems.contains("EKS has no maintenance window"), "{problems}");
    }
}

#[test]
fn an_rds_server_whose_window_is_no_longer_set_gets_another_one_beside_its_backups() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let wanted = instance(&place(&bed).await?);
        let window = |backups: &str, window: Value| {
            changed(&wanted, &[("backup_window", json!(backups)), ("maintenance_window", window)])
        };
        let with_window = Wanted { spec: window("07:00-08:00", json!("sun:03:00-sun:07:00")), ..wanted.clone() };
        let made = bed.make(&with_window).await?;
        let without = Wanted { spec: window("03:00-04:00", Value::Null), ..wanted.clone() };
        let object = finish(&bench, &operation(Verb::Update, &without, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("backup_window"), Some(&json!("03:00-04:00")));
        assert_eq!(object.spec.get("maintenance_window"), Some(&json!("sun:04:00-sun:04:30")));
        assert_eq!(bench.calls("ModifyDBInstance"), 1);
        Ok(())
    });
}

fn copied_to(region: &str, backup_seconds: u64) -> Component {
    let managed = ManagedPostgres { disk_bytes: 100 << 30, backup_seconds, replica_region: Some(region.to_owned()) };
    component(managed, 0, 700)
}

#[test]
fn an_rds_server_has_a_replica_in_another_region_that_becomes_a_server_of_its_own() {
    let bench = bench();
    let component = copied_to("eu-central-1", 7 * 86_400);
    let mut remote = lowers_purely(&bench.provider, &component, &site()).unwrap();
    remote.retain(|one| one.id.as_str().starts_with("here/database/remote"));
    assert!(remote.iter().all(|one| one.spec.get("region") == Some(&json!("eu-central-1"))));
    // The password is a secret of the operator's machine.
    for one in remote.iter_mut().filter(|one| one.spec.get("password").is_some()) {
        one.spec = with(one, "password", json!(password("1")));
        one.needs.retain(|need| need.on.as_str() != "here/secrets/database-password");
    }
    run(async {
        let bed = bench.bed();
        let key = place(&bed).await?;
        bed.make(&parameter_group(16)).await?;
        let primary = instance(&key);
        let group = json!("textnlp-staging-here-postgres16");
        let spec = changed(&primary, &[("version", json!("16")), ("parameter_group", group)]);
        remote.push(Wanted { spec, ..primary });
        let mut made = make_all(&bed, remote).await?;
        assert_eq!(made.len(), 10);
        let there = Scope::new(ACCOUNT, "eu-central-1");
        let name = "textnlp-staging-here-database-remote";
        {
            let world = bench.simulator.world();
            let shown = &world.find::<Rds>(&there).unwrap().instances[name].shown;
            let source = format!("arn:aws:rds:{REGION}:{ACCOUNT}:db:textnlp-staging-here-database");
            assert_eq!(shown["ReadReplicaSourceDBInstanceIdentifier"], json!(source));
            assert!(shown["KmsKeyId"].as_str().unwrap().starts_with("arn:aws:kms:eu-central-1:"), "a key of its own");
        }
        let (wanted, recorded) = made.iter().find(|(one, _)| one.id.as_str() == "here/database/remote").unwrap();
        let (environment, site) = ("staging".parse().unwrap(), site());
        let scope = textnlp_provider::Scope {
            lineage: lineage(),
            environment: &environment,
            site: &site.name,
            wanted: std::slice::from_ref(wanted),
            recorded: std::slice::from_ref(recorded),
        };
        let look = async || {
            let seen = bench.provider.observe(&scope).await.unwrap();
            match seen.into_iter().find(|(id, _)| *id == wanted.id) {
                Some((_, Observed::Present(object))) => object,
                other => panic!("{other:?}"),
            }
        };
        let object = look().await;
        assert!(bench.provider.diff(wanted, recorded, &object).is_empty());
        // An operator promotes it, and the next plan says so.
        let own =
            Wanted { spec: changed(wanted, &[("source", Value::Null), ("backup_days", json!(7))]), ..wanted.clone() };
        finish(&bench, &operation(Verb::Update, &own, Some(recorded), 100)).await.unwrap();
        let object = look().await;
        let changes = bench.provider.diff(wanted, recorded, &object);
        let mut fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["backup_days", "source"]);

        while let Some((one, recorded)) = made.pop() {
            bed.unmake(&one, &recorded).await?;
        }
        assert!(bench.simulator.world().find::<Rds>(&there).unwrap().instances.is_empty());
        Ok(())
    });
}

#[test]
fn a_replica_in_another_region_needs_backups_and_the_same_partition() {
    let bench = bench();
    for (region, backup_seconds, says) in [
        (REGION, 86_400, "not another region"),
        ("cn-north-1", 86_400, "not another region"),
        ("eu-west-9", 86_400, "not another region"),
        ("eu-central-1", 0, "without backups"),
    ] {
        let problems = bench.provider.lower(&copied_to(region, backup_seconds), &site()).unwrap_err();
        assert!(problems.to_string().contains(says), "{problems}");
    }
    // The partitions of China and of the government want a signature for the region of the source.
    let china = textnlp_provider::Site { region: "cn-north-1".to_owned(), ..site() };
    let problems = bench.provider.lower(&copied_to("cn-northwest-1", 86_400), &china).unwrap_err();
    assert!(problems.to_string().contains("not another region"), "{problems}");
}

#[test]
fn a_database_that_is_kept_lets_the_cluster_go() {
    let account = Account::new(Options::zero_latency());
    let stack = Stack::new(&account, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_000a);
    let shape = Shape { network: true, cluster: true, models: true, database: true, ..Shape::BARE };
    let mut wanted = shape.wanted(&account, "staging");
    wanted.iter_mut().find(|one| one.id.as_str() == "here/database/instance").unwrap().protected = true;
    stack.reach(UP, &wanted);
    stack.reach(RunOptions { delete_data: DeleteData::Nothing, ..DOWN }, &[]);
    let left = stack.recorded();
    let kinds: BTreeSet<&str> = left.iter().map(|one| one.kind.as_str()).collect();
    let of_server = ["aws.db-instance", "aws.db-parameter-group", "aws.db-subnet-group", "aws.security-group"];
    let around = ["aws.key", "aws.subnet", "aws.vpc"];
    assert_eq!(kinds, of_server.into_iter().chain(around).collect(), "{left:#?}");
    stack.reach(DOWN, &[]);
    assert!(stack.recorded().is_empty());
}
