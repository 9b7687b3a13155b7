//! What a PostgreSQL is lowered to, without anything being started, and how a change of its secrets is seen.

use crate::parts::{name, onprem, postgres, program, site};
use expect_test::{Expect, expect};
use textnlp_provider::component::*;
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::settings::{DatabaseKind, Hosting};
use textnlp_provider::*;

fn given(version: &str) -> ExternalSecret {
    ExternalSecret { source: "secret:env:DATABASE_URL".to_owned(), version: version.to_owned() }
}

fn database(address: Option<DatabaseAddress>, change: impl FnOnce(&mut Postgres)) -> Database {
    let hosting = if address.is_some() { Hosting::External } else { Hosting::Cluster };
    let mut postgres = Postgres { address, ..postgres() };
    change(&mut postgres);
    Database { kind: DatabaseKind::Postgres, hosting: Some(hosting), schema: None, postgres: Some(Box::new(postgres)) }
}

fn lower(database: &Database, state: &str) -> Result<Vec<Wanted>, Problems> {
    let (onprem, site) = (onprem(state), site());
    let server = ComponentSpec::Workload(workload(database));
    let mut wanted = Vec::new();
    for (called, part) in [("database", ComponentSpec::Database(database.clone())), ("server", server)] {
        let component = Component { name: name(called), existing: None, part };
        wanted.extend(onprem.lower(&component, &site)?);
        lowers_purely(&onprem, &component, &site).unwrap();
    }
    Ok(wanted)
}

fn workload(database: &Database) -> Workload {
    Workload {
        autoscaling: None,
        replicas: 1,
        program: program(),
        config: serde_json::json!({"textnlp": {"database": {"pool_size": 20}}}),
        cluster: name("cluster"),
        models: name("models"),
        database: name("database"),
        stored: database.clone(),
        cache: None,
        secrets: name("secrets"),
        first_key: true,
        watch: None,
        drain_seconds: 1,
        canary: None,
        outside: None,
        served: Vec::new(),
        egress: Egress::default(),
        saml: None,
    }
}

/// What the database becomes, what the server is told of it, and what its first replica waits for.
fn check(database: &Database, expected: Expect) {
    let wanted = lower(database, "/srv/state").unwrap();
    let mut lines = Vec::new();
    for one in wanted.iter().filter(|one| one.id.as_str().starts_with("here/database")) {
        let needs: Vec<&str> = one.needs.iter().map(|need| need.on.as_str()).collect();
        let protected = if one.protected { " protected" } else { "" };
        lines.push(format!("{} {}{protected} <- {}", one.kind.as_str(), one.id, needs.join(" ")));
    }
    let find = |id: &str| wanted.iter().find(|one| one.id.as_str() == id).unwrap();
    let config = find("here/server/config-0").spec.get("document").unwrap();
    lines.push(config["textnlp"]["database"].to_string());
    lines.push(find("here/server/replica-0").spec.get("inputs").unwrap().to_string());
    expected.assert_eq(&lines.join("\n"));
}

#[test]
fn external_database_expands_into_an_address_and_its_secrets() {
    check(
        &database(Some(DatabaseAddress::Secret(given("a1"))), |_| {}),
        expect![[r#"
        onprem.secret here/database/url <- here/network
        onprem.file here/database/url-file <- here/database/url here/network
        {"pool_size":20,"url_file":"/srv/state/sites/here/certs/database-url"}
        {"database-url":{"$output":"here/database/url-file#sha256"},"jwt-key":{"$output":"here/server/jwt-key#sha256"}}"#]],
    );
    let url = DatabaseAddress::Url("postgresql://u@db/x".to_owned(), Some(given("a1")));
    check(
        &database(Some(url), |p| p.ca_file = Some("/etc/ca.pem".to_owned())),
        expect![[r#"
        onprem.secret here/database/password <- here/network
        onprem.file here/database/password-file <- here/database/password here/network
        {"ca_file":"/etc/ca.pem","password_file":"/srv/state/sites/here/certs/database-password","pool_size":20,"url":"postgresql://u@db/x"}
        {"database-password":{"$output":"here/database/password-file#sha256"},"jwt-key":{"$output":"here/server/jwt-key#sha256"}}"#]],
    );
}

#[test]
fn secret_of_a_webhook_is_a_file_whose_change_restarts_the_server() {
    let (onprem, site) = (onprem("/srv/state"), site());
    let url = "https://hooks.example.com/batches";
    let webhooks = serde_json::json!([{ "tenant": "acme", "url": url }]);
    let mut server = workload(&database(Some(DatabaseAddress::Secret(given("a1"))), |_| {}));
    server.config["textnlp"]["batch"] = serde_json::json!({ "webhooks": webhooks });
    let component = Component { name: name("server"), existing: None, part: ComponentSpec::Workload(server) };
    let wanted = onprem.lower(&component, &site).unwrap();
    lowers_purely(&onprem, &component, &site).unwrap();
    let secret = webhook_secret(Some("acme"), url);
    let find = |id: &str| wanted.iter().find(|one| one.id.as_str() == id).unwrap();
    let file = find(&format!("here/server/{secret}"));
    assert_eq!(file.spec.get("secret").unwrap()["$output"], format!("here/secrets/{secret}#secret"));
    let path = format!("certs/server-{secret}");
    assert_eq!(file.spec.get("path").unwrap(), &path);
    let config = &find("here/server/config-0").spec.get("document").unwrap()["textnlp"]["batch"]["webhooks"];
    let absolute = format!("/srv/state/sites/here/{path}");
    assert_eq!(config, &serde_json::json!([{ "tenant": "acme", "url": url, "secret_file": absolute }]));
    let inputs = find("here/server/replica-0").spec.get("inputs").unwrap();
    assert_eq!(inputs[&secret]["$output"], format!("here/server/{secret}#sha256"));
}

#[test]
fn secret_of_the_collector_of_traces_is_a_file_whose_change_restarts_the_server() {
    let (onprem, site) = (onprem("/srv/state"), site());
    let mut server = workload(&database(Some(DatabaseAddress::Secret(given("a1"))), |_| {}));
    let traces = serde_json::json!({ "endpoint": "https://collector.example.com/", "header": "authorization" });
    server.config["textnlp"]["monitoring"] = serde_json::json!({ "enable_tracing": true, "traces": traces });
    let component = Component { name: name("server"), existing: None, part: ComponentSpec::Workload(server) };
    let wanted = onprem.lower(&component, &site).unwrap();
    let find = |id: &str| wanted.iter().find(|one| one.id.as_str() == id).unwrap();
    assert_eq!(find("here/server/traces").spec.get("secret").unwrap()["$output"], "here/secrets/traces#secret");
    let config = &find("here/server/config-0").spec.get("document").unwrap()["textnlp"]["monitoring"]["traces"];
    assert_eq!(config["secret_file"], "/srv/state/sites/here/certs/server-traces");
    let inputs = find("here/server/replica-0").spec.get("inputs").unwrap();
    assert_eq!(inputs["traces"]["$output"], "here/server/traces#sha256");
}

#[test]
fn managed_postgres_expands_into_a_directory_program_and_processes() {
    check(
        &database(None, |p| p.replicas = 1),
        expect![[r#"
        onprem.file here/database/password-file <- here/network here/secrets/database-password
        onprem.file here/database/replication-file <- here/network here/secrets/replication-password
        onprem.program here/database/program <- here/network
        onprem.postgres here/database protected <- here/network
        onprem.file here/database/config-0 <- here/database here/network
        onprem.process here/database/server-0 <- here/cluster here/database/config-0 here/database/password-file here/database/program here/database/replication-file
        onprem.postgres here/database/copy-1 <- here/network
        onprem.file here/database/config-1 <- here/database here/database/copy-1 here/network
        onprem.process here/database/server-1 <- here/cluster here/database/config-1 here/database/password-file here/database/program here/database/replication-file here/database/server-0
        {"password_file":"/srv/state/sites/here/certs/database-password","pool_size":20,"url":"postgresql://textnlp@%2Fsrv%2Fstate%2Fsites%2Fhere%2Fdata%2Fpostgres%2Frun:5432/textnlp"}
        {"database-password":{"$output":"here/database/password-file#sha256"},"jwt-key":{"$output":"here/server/jwt-key#sha256"}}"#]],
    );
    let wanted = lower(&database(None, |p| (p.replicas, p.port) = (1, Some(5433))), "/srv/state").unwrap();
    let config = |id: &str| {
        let file = wanted.iter().find(|one| one.id.as_str() == id).unwrap();
        file.spec.get("document").unwrap()["postgres"].clone()
    };
    let (primary, copy) = (config("here/database/config-0"), config("here/database/config-1"));
    assert_eq!(
        (&primary["loopback"], &primary["port"], &primary["copies"][0]),
        (&true.into(), &5433.into(), &"copy_1".into())
    );
    assert_eq!((&copy["loopback"], &copy["primary"]["name"]), (&false.into(), &"copy_1".into()));
    assert_eq!(primary["max_connections"], 80);
}

#[test]
fn unsupported_database_settings_are_refused_with_a_hint() {
    let refused = |database: Database, state: &str| lower(&database, state).unwrap_err().to_string();
    assert!(refused(database(None, |p| p.replicas = 4), "/srv/state").contains("choose 0 to 3"));
    let mut managed = database(None, |_| {});
    managed.hosting = Some(Hosting::Managed);
    assert!(refused(managed, "/srv/state").contains("hosting: cluster"));
    let deep = format!("/srv/{}", "x".repeat(80));
    assert!(refused(database(None, |_| {}), &deep).contains("--state-dir"));
    let url = || Some(DatabaseAddress::Url("postgresql://u@db/x".to_owned(), None));
    assert!(
        refused(database(url(), |p| p.ca_file = Some("ca.pem".to_owned())), "/srv/state").contains("absolute path")
    );
}

#[test]
fn changed_user_secret_updates_in_place_and_an_unknown_one_is_no_change() {
    let of = |version: &str| {
        let wanted = lower(&database(Some(DatabaseAddress::Secret(given(version))), |_| {}), "/srv/state").unwrap();
        wanted.into_iter().find(|one| one.id.as_str() == "here/database/url").unwrap()
    };
    let onprem = onprem("/srv/state");
    let effects = |version: &str| -> Vec<Effect> {
        let before = of("a1");
        let seen = Object {
            kind: before.kind.clone(),
            cloud_id: CloudId::new("sites/here/secrets/x").unwrap(),
            spec: before.spec.clone(),
            outputs: Outputs::new(),
            lineage: None,
            origin: textnlp_provider::Origin::Untold,
            created: None,
            health: Health::Ready,
            via: None,
            foreign: Vec::new(),
        };
        let recorded = Recorded {
            id: before.id.clone(),
            kind: before.kind.clone(),
            site: before.site.clone(),
            cloud_id: seen.cloud_id.clone(),
            spec: before.spec.clone(),
            outputs: Outputs::new(),
            ownership: Ownership::Ours,
            protected: false,
            via: None,
            needs: Vec::new(),
            schema: 1,
            tainted: false,
            created: None,
        };
        onprem.diff(&of(version), &recorded, &seen).into_iter().map(|change| change.effect).collect()
    };
    assert_eq!(effects("a1"), []);
    assert_eq!(effects("b2"), [Effect::InPlace]);
    assert_eq!(effects(""), []);
    assert_ne!(given("").mark("staging", b"one"), given("").mark("staging", b"two"));
    assert_eq!(given("").mark("staging", b"one").len(), 6, "too short to check a guess by");
}

#[tokio::test]
async fn password_is_not_sent_to_a_server_that_no_run_approved() {
    let state = tempfile::tempdir().unwrap();
    let state = state.path().to_str().unwrap();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = server.local_addr().unwrap();
    let url = format!("postgresql://u@{address}/x");
    let wanted = lower(&database(Some(DatabaseAddress::Url(url, Some(given("a1")))), |_| {}), state).unwrap();
    let problems = onprem(state).preflight(&wanted).await.unwrap();
    let notes: Vec<&Problem> = problems.iter().filter(|problem| problem.place.ends_with(": database")).collect();
    let [note] = notes.as_slice() else { panic!("{problems:?}") };
    assert!(note.note && note.cause.starts_with(&format!("{address} answers;")), "{note:?}");
    let mut sent = Vec::new();
    std::io::Read::read_to_end(&mut server.accept().unwrap().0, &mut sent).unwrap();
    assert!(sent.is_empty(), "{sent:?}");
    // A bound socket that does not listen: no other process can take its port.
    let held = tokio::net::TcpSocket::new_v4().unwrap();
    held.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let address = held.local_addr().unwrap();
    let url = format!("postgresql://u@{address}/x");
    let wanted = lower(&database(Some(DatabaseAddress::Url(url, Some(given("a1")))), |_| {}), state).unwrap();
    let problems = onprem(state).preflight(&wanted).await.unwrap();
    let refused = |problem: &Problem| !problem.warning && problem.cause.starts_with(&format!("{address}: "));
    assert!(problems.iter().any(refused), "{problems:?}");
}

#[test]
fn secret_address_of_the_cache_is_a_file_and_one_without_a_secret_is_in_the_configuration() {
    let (onprem, site) = (onprem("/srv/state"), site());
    for (cache, is_secret) in [
        (serde_json::json!({ "kind": "redis", "ttl": 60 }), true),
        (serde_json::json!({ "kind": "redis", "url": "redis://cache:6379" }), false),
        (serde_json::json!({ "kind": "memory" }), false),
    ] {
        let mut server = workload(&database(Some(DatabaseAddress::Secret(given("a1"))), |_| {}));
        server.config["textnlp"]["cache"] = cache.clone();
        let component = Component { name: name("server"), existing: None, part: ComponentSpec::Workload(server) };
        let wanted = onprem.lower(&component, &site).unwrap();
        let find = |id: &str| wanted.iter().find(|one| one.id.as_str() == id);
        let config = &find("here/server/config-0").unwrap().spec.get("document").unwrap()["textnlp"]["cache"];
        let file = find("here/server/cache-url");
        assert_eq!(file.is_some(), is_secret, "{cache}");
        let Some(file) = file else {
            assert_eq!(config, &cache);
            continue;
        };
        assert_eq!(file.spec.get("secret").unwrap()["$output"], "here/secrets/cache-url#secret");
        assert_eq!(config["url_file"], "/srv/state/sites/here/certs/server-cache-url");
        let inputs = find("here/server/replica-0").unwrap().spec.get("inputs").unwrap();
        assert_eq!(inputs["cache-url"]["$output"], "here/server/cache-url#sha256");
    }
}
