//! PostgreSQL servers, their subnets and settings.

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Database, ManagedPostgres, Postgres, Program};
use textnlp_provider::conformance::{TestBed, Violation, lowers_purely};
use textnlp_provider::settings::{DatabaseKind, Hosting};
use textnlp_provider::{
    ErrorKind, Health, Progress, Provider, Recorded, SecretName, SecretRef, SecretVersion, Spec, Verb, Wanted,
    error_chain,
};
use textnlp_sim::aws::rds::Rds;
use textnlp_sim::{Market, Options, Simulator, Stages, Timing};

use crate::kms::key;
use crate::network::{finish, operation, seen, with};
use crate::{ACCOUNT, Bench, REGION, output, run, site, wanted};

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
fn an_rds_server_is_upgraded_with_its_settings_and_never_downgraded() {
    let bench = bench();
    run(async {
        let bed = bench.bed();
        let old = instance(&place(&bed).await?);
        let made = bed.make(&old).await?;
        bed.make(&parameter_group(16)).await?;
        let group = json!("textnlp-staging-here-postgres16");
        let new =
            Wanted { spec: changed(&old, &[("version", json!("16")), ("parameter_group", group)]), ..old.clone() };
        let object = finish(&bench, &operation(Verb::Update, &new, Some(&made), 100)).await.unwrap();
        assert_eq!(object.spec.get("version"), Some(&json!("16")));
        let error = finish(&bench, &operation(Verb::Update, &old, Some(&made), 101)).await.unwrap_err();
        assert!(error_chain(&error).contains("only upgrades"), "{error}");
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
        let recorded = bed.make(&wanted).await?;
        assert_eq!(object.cloud_id, recorded.cloud_id);
        status("storage-full");
        let object = seen(&bench, &wanted, &recorded).await;
        assert_eq!(object.health, Health::Degraded("its storage is full: raise `database.size`".to_owned()));
        Ok(())
    });
}

fn database(managed: Option<ManagedPostgres>, replicas: u32, connections: u32) -> Component {
    let postgres = Postgres {
        address: None,
        ca_file: Some("rds.pem".to_owned()),
        name: "textnlp".to_owned(),
        version: 16,
        port: None,
        replicas,
        connections,
        secrets: "secrets".parse().unwrap(),
        cluster: "cluster".parse().unwrap(),
        program: Program { path: "textnlp-server".to_owned(), digest: "sha256:0".to_owned() },
        archive_seconds: None,
        between: None,
        managed,
    };
    let database = Database {
        kind: DatabaseKind::Postgres,
        hosting: Some(Hosting::Managed),
        schema: None,
        postgres: Some(Box::new(postgres)),
    };
    Component { name: "database".parse().unwrap(), existing: None, part: ComponentSpec::Database(database) }
}

#[test]
fn a_managed_database_is_an_rds_server_that_only_the_cluster_reaches() {
    let bench = bench();
    let managed = ManagedPostgres { disk_bytes: 100 << 30, backup_seconds: 7 * 86_400 };
    let wanted = lowers_purely(&bench.provider, &database(Some(managed), 2, 700), &site()).unwrap();
    let ids: Vec<&str> = wanted.iter().map(|one| one.id.as_str()).collect();
    let parts =
        ["subnets", "access", "parameters", "instance", "replica-1"].map(|part| format!("here/database/{part}"));
    assert_eq!(ids, parts);
    let rule = &wanted[1].spec.as_value()["ingress"][0];
    assert_eq!((&rule["from"], &rule["peer"]), (&json!(5432), &json!({ "$output": "here/cluster#security_group" })));
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
    let problems =
        bench.provider.lower(&database(Some(ManagedPostgres { disk_bytes: 1, backup_seconds: 0 }), 0, 9_000), &site());
    assert!(problems.unwrap_err().to_string().contains("9000 connections"));
}
