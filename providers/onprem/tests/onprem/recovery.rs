//! Several sites of one machine: what they are lowered to, without anything being started.

use std::collections::{BTreeMap, BTreeSet};

use crate::parts::{name, postgres, program};
use camino::Utf8PathBuf;
use expect_test::expect;
use serde_json::Value;
use textnlp_onprem::{OnPrem, Options};
use textnlp_provider::component::*;
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::settings::{DatabaseKind, Hosting, Role, Runtime, TlsMode};
use textnlp_provider::*;

const SITES: [&str; 2] = ["primary", "secondary"];

fn site(called: &str) -> Site {
    Site {
        environment: name("multi-region"),
        name: name(called),
        account: "host".to_owned(),
        region: "local".to_owned(),
        runtime: Runtime::Process,
        role: Some(Role::Primary),
        tags: BTreeMap::new(),
        protect_data: true,
        cluster: None,
        subnets: Vec::new(),
        maintenance: None,
    }
}

fn component(called: &str, part: ComponentSpec) -> Component {
    Component { name: name(called), existing: None, part }
}

fn certificate() -> Component {
    component(
        "certificate",
        ComponentSpec::Certificate(Certificate { mode: TlsMode::LocalCa, names: vec![], days: 90, acme: None }),
    )
}

fn ground() -> Vec<Component> {
    vec![
        component("network", ComponentSpec::Network(Network { cidr: None, policies: false, ..Network::default() })),
        component("cluster", ComponentSpec::Cluster(Cluster::of(name("network")))),
        certificate(),
    ]
}

/// The components of a site, as the orchestrator makes them.
fn of_site(called: &str) -> Vec<Component> {
    let peers: Vec<SiteName> = SITES.iter().filter(|other| **other != called).map(|other| name(other)).collect();
    let is_home = called == "primary";
    let mut generate = BTreeMap::from([("jwt-signing-key".to_owned(), SecretRecipe::RsaSigningKey)]);
    if is_home {
        generate.insert("api-key".to_owned(), SecretRecipe::ApiKey);
    }
    let mut components = ground();
    components.extend([
        component(
            "secrets",
            ComponentSpec::Secrets(Secrets { generate, shared: Default::default(), given: Default::default() }),
        ),
        component(
            "models",
            ComponentSpec::ModelStore(ModelStore {
                models: vec![],
                max_cache_bytes: 1,
                key: None,
                archive_after_days: None,
                replica: None,
                permission_boundary: None,
            }),
        ),
        component(
            "database",
            ComponentSpec::Database(Database {
                kind: DatabaseKind::Sqlite,
                hosting: None,
                schema: None,
                postgres: None,
            }),
        ),
        component(
            "border",
            ComponentSpec::Relay(Relay {
                cluster: name("cluster"),
                endpoint: ("0.0.0.0".to_owned(), 8443),
                ready: None,
                watch: name("watch"),
                peers: peers.clone(),
                witness: RemoteComponent { site: name("witness"), component: name("witness") },
                database: None,
                program: program(),
            }),
        ),
        component(
            "watch",
            ComponentSpec::SiteAgent(SiteAgent {
                cluster: name("cluster"),
                border: name("border"),
                workload: name("server"),
                peers,
                order: SITES.iter().map(|site| name(site)).collect(),
                witness: name("witness"),
                home: name("primary"),
                rules: FailureDetection { every_ms: 1000, lost_after: 3 },
                automatic: true,
                failback: true,
                max_lag_ms: 5000,
                copies: Copies { models_every_ms: 1000, configuration_every_ms: 1000, compress: true },
                database: None,
                outside: None,
                program: program(),
            }),
        ),
        component(
            "server",
            ComponentSpec::Workload(Workload {
                autoscaling: None,
                replicas: 1,
                program: program(),
                config: serde_json::json!({"textnlp": {}}),
                cluster: name("cluster"),
                models: name("models"),
                database: name("database"),
                stored: Database { kind: DatabaseKind::Sqlite, hosting: None, schema: None, postgres: None },
                cache: None,
                secrets: name("secrets"),
                first_key: is_home,
                watch: Some(name("watch")),
                drain_seconds: 1,
                canary: None,
                outside: None,
                served: Vec::new(),
                egress: Egress::default(),
                saml: None,
            }),
        ),
        component(
            "gateway",
            ComponentSpec::Endpoint(Endpoint {
                host: "0.0.0.0".to_owned(),
                port: 8443,
                metrics_port: 9090,
                tls: true,
                certificate: name("certificate"),
                workload: name("server"),
                watch: Some(name("watch")),
                program: program(),
                max_request_bytes: 1,
                timeout_seconds: 1,
                connections: Default::default(),
                domain: None,
                waf: false,
                zone: None,
                managed_certificate: false,
                acme: false,
                share: None,
                base_domain: None,
            }),
        ),
    ]);
    components
}

/// The components of the place outside every site.
fn of_witness() -> Vec<Component> {
    let weights: BTreeMap<SiteName, u32> = [(name("primary"), 100), (name("secondary"), 50)].into();
    let mut components = ground();
    components.extend([
        component(
            "witness",
            ComponentSpec::Witness(Witness {
                dns: None,
                cluster: name("cluster"),
                sites: SITES.iter().map(|site| name(site)).collect(),
                home: name("primary"),
                rules: FailureDetection { every_ms: 1000, lost_after: 3 },
                weights: weights.clone(),
                front: name("front"),
                program: program(),
            }),
        ),
        component(
            "front",
            ComponentSpec::GlobalEndpoint(GlobalEndpoint {
                host: "0.0.0.0".to_owned(),
                port: 8440,
                metrics_port: 9080,
                tls: true,
                certificate: name("certificate"),
                weights,
                far: false,
                border: name("border"),
                witness: name("witness"),
                program: program(),
                max_request_bytes: 1,
                timeout_seconds: 1,
                connections: Default::default(),
            }),
        ),
    ]);
    components
}

fn onprem(state: &str) -> OnPrem {
    OnPrem::new(Options::new(Utf8PathBuf::from(state), Utf8PathBuf::from("/opt/supervisor")).unwrap())
}

fn lowered(called: &str, components: &[Component]) -> Vec<Wanted> {
    let onprem = onprem("/srv/state");
    components.iter().flat_map(|component| lowers_purely(&onprem, component, &site(called)).unwrap()).collect()
}

fn spec<'a>(all: &'a [Wanted], id: &str) -> &'a Value {
    all.iter().find(|wanted| wanted.id.as_str() == id).unwrap_or_else(|| panic!("{id}")).spec.as_value()
}

fn document(all: &[Wanted], id: &str) -> String {
    serde_yaml::to_string(&spec(all, id)["document"]).unwrap()
}

fn needs(all: &[Wanted], id: &str) -> String {
    let wanted = all.iter().find(|wanted| wanted.id.as_str() == id).unwrap();
    wanted.needs.iter().map(|need| need.on.as_str().split_once('/').unwrap().1).collect::<Vec<_>>().join(" ")
}

#[test]
fn site_has_a_relay_and_an_agent_that_reference_each_other() {
    let all = lowered("primary", &of_site("primary"));
    let border = document(&all, "primary/border/config");
    expect![[r#"
        border:
          links:
          - listen: unix:/srv/state/sites/primary/run/border-watch.sock
            name: watch-in
            to: unix:/srv/state/sites/primary/run/watch.sock
          - listen: unix:/srv/state/sites/primary/run/border-gateway.sock
            name: gateway-in
            to: 127.0.0.1:8443
          - listen: unix:/srv/state/sites/primary/run/border-ready.sock
            name: ready-in
            to: unix:/srv/state/sites/primary/run/watch-ready.sock
          - listen: unix:/srv/state/sites/primary/run/out-secondary.sock
            name: out-secondary
            to: unix:/srv/state/sites/secondary/run/border-watch.sock
          - listen: unix:/srv/state/sites/primary/run/out-witness.sock
            name: out-witness
            to: unix:/srv/state/sites/witness/run/witness.sock
          listen: unix:/srv/state/sites/primary/run/border.sock
    "#]]
    .assert_eq(&border);
    let watch = document(&all, "primary/watch/config");
    expect![[r#"
        watch:
          automatic: true
          copies:
            compress: true
            configuration: /srv/state/sites/primary/config
            configuration_every_ms: 1000
            models: /srv/state/sites/primary/models
            models_every_ms: 1000
          database: sqlite:///srv/state/sites/primary/data/textnlp.db
          every_ms: 1000
          failback: true
          folder: /srv/state/sites/primary/data/control
          home: primary
          jwt_key_file: /srv/state/sites/primary/certs/server-jwt-key.pem
          listen: unix:/srv/state/sites/primary/run/watch.sock
          lost_after: 3
          max_lag_ms: 5000
          order:
          - primary
          - secondary
          peers:
            secondary: unix:/srv/state/sites/primary/run/out-secondary.sock
          site: primary
          witness: unix:/srv/state/sites/primary/run/out-witness.sock
    "#]]
    .assert_eq(&watch);
    let server = document(&all, "primary/server/config-0");
    assert!(server.contains("replication:\n    watch: unix:/srv/state/sites/primary/run/watch.sock"), "{server}");
    let gateway = document(&all, "primary/gateway/config");
    assert!(gateway.contains("metrics_from:\n  - unix:/srv/state/sites/primary/run/watch.sock"), "{gateway}");
    // Clients cannot take the connections of its health checks.
    assert!(gateway.contains("ready_listen: unix:/srv/state/sites/primary/run/watch-ready.sock"), "{gateway}");
    // The global endpoint is one client to a site, and brings all.
    assert!(gateway.contains("trusted_proxies:\n  - 127.0.0.1"), "{gateway}");
    // What a border leads to is where the other site's border listens.
    let other = document(&lowered("secondary", &of_site("secondary")), "secondary/border/config");
    assert!(other.contains("listen: unix:/srv/state/sites/secondary/run/border-watch.sock"), "{other}");
    assert!(border.contains("to: unix:/srv/state/sites/secondary/run/border-watch.sock"), "{border}");
}

#[test]
fn witness_site_has_a_global_endpoint_that_trusts_each_sites_ca() {
    let all = lowered("witness", &of_witness());
    expect![[r#"
        witness:
          every_ms: 1000
          folder: /srv/state/sites/witness/data/witness
          front: unix:/srv/state/sites/witness/run/front-admin.sock
          home: primary
          listen: unix:/srv/state/sites/witness/run/witness.sock
          lost_after: 3
          sites:
          - primary
          - secondary
          weights:
            primary: 100
            secondary: 50
    "#]]
    .assert_eq(&document(&all, "witness/witness/config"));
    expect![[r#"
        gateway:
          admin_listen: unix:/srv/state/sites/witness/run/front-admin.sock
          backends:
          - listen: unix:/srv/state/sites/primary/run/border-gateway.sock
            name: primary
            ready_listen: unix:/srv/state/sites/primary/run/border-ready.sock
            tls:
              ca_file: /srv/state/sites/primary/certs/ca.pem
              name: localhost
            weight: 100
          - listen: unix:/srv/state/sites/secondary/run/border-gateway.sock
            name: secondary
            ready_listen: unix:/srv/state/sites/secondary/run/border-ready.sock
            tls:
              ca_file: /srv/state/sites/secondary/certs/ca.pem
              name: localhost
            weight: 50
          health:
            gives_up: true
            healthy_after: 1
            interval_ms: 250
            path: /ready
            timeout_ms: 500
            unhealthy_after: 2
          listen: 0.0.0.0:8440
          max_connections: 12000
          max_request_bytes: 1
          metrics_from:
          - unix:/srv/state/sites/witness/run/witness.sock
          metrics_listen: 127.0.0.1:9080
          timeout_seconds: 1
          tls:
            certificate_file:
              $output: witness/certificate/leaf#certificate_file
            key_file:
              $output: witness/certificate/leaf#key_file
    "#]]
    .assert_eq(&document(&all, "witness/front/config"));
    assert_eq!(spec(&all, "witness/front/process")["listen"], "https://127.0.0.1:8440");
    assert_eq!(spec(&all, "witness/front/process")["arguments"], serde_json::json!(["gateway"]));
}

#[test]
fn units_start_after_their_dependencies_and_sites_are_independent() {
    let mut all = lowered("witness", &of_witness());
    for site in SITES {
        all.extend(lowered(site, &of_site(site)));
    }
    let ids: BTreeSet<&ResourceId> = all.iter().map(|wanted| &wanted.id).collect();
    for wanted in &all {
        for need in &wanted.needs {
            assert_eq!(need.on.site(), wanted.id.site(), "{} waits for {}", wanted.id, need.on);
            assert!(ids.contains(&need.on), "{} needs {}, which is nowhere", wanted.id, need.on);
        }
    }
    let orders = [
        ("primary/border/process", "border/config border/program cluster"),
        (
            "primary/watch/process",
            "border/process cluster server/jwt-key server/schema watch/config watch/data watch/program",
        ),
        (
            "primary/server/replica-0",
            "cluster server/config-0 server/jwt-key server/program server/schema watch/process",
        ),
        ("primary/server/api-key", "secrets/api-key server/config-0 server/program server/schema watch/process"),
        (
            "secondary/server/replica-0",
            "cluster server/config-0 server/jwt-key server/program server/schema watch/process",
        ),
        ("witness/witness/process", "cluster witness/config witness/data witness/program"),
        ("witness/front/process", "certificate/leaf front/config front/program witness/process"),
    ];
    for (id, order) in orders {
        assert_eq!(needs(&all, id), order, "{id}");
    }
    // The first key is put once, at home, and reaches the others as every key does.
    let keys: Vec<_> = all.iter().filter(|w| w.kind.as_str() == "onprem.api-key").map(|w| w.id.as_str()).collect();
    assert_eq!(keys, ["primary/server/api-key"]);
    assert_eq!(spec(&all, "primary/server/api-key")["replicated"], true);
    // What nobody could make again is kept by `down`.
    let kept: Vec<_> = all.iter().filter(|w| w.kind.as_str() == "onprem.control").collect();
    assert_eq!(kept.len(), 3);
    assert!(kept.iter().all(|wanted| wanted.protected));
}

/// The same site with one PostgreSQL for all.
fn of_site_with_postgres(called: &str) -> Vec<Component> {
    let peers: Vec<SiteName> = SITES.iter().filter(|other| **other != called).map(|other| name(other)).collect();
    let between = SitePostgres { home: name("primary"), peers, watch: name("watch"), max_lag_ms: 5000 };
    let postgres = Postgres { between: Some(between), ..postgres() };
    let stored = Database {
        kind: DatabaseKind::Postgres,
        hosting: Some(Hosting::Cluster),
        schema: None,
        postgres: Some(Box::new(postgres)),
    };
    let mut components = of_site(called);
    for component in &mut components {
        match &mut component.part {
            ComponentSpec::Database(database) => *database = stored.clone(),
            ComponentSpec::Workload(workload) => workload.stored = stored.clone(),
            ComponentSpec::Relay(border) => border.database = Some(name("database")),
            ComponentSpec::SiteAgent(watch) => watch.database = Some((name("database"), "textnlp".to_owned())),
            ComponentSpec::Secrets(secrets) => {
                for password in ["database-password", "replication-password"] {
                    secrets.generate.insert(password.to_owned(), SecretRecipe::Password(32));
                    secrets.shared.insert(password.to_owned());
                }
            }
            _ => {}
        }
    }
    components
}

#[test]
fn multi_site_postgres_has_a_server_per_site_reached_through_relays() {
    let (home, other) = (
        lowered("primary", &of_site_with_postgres("primary")),
        lowered("secondary", &of_site_with_postgres("secondary")),
    );
    for all in [&home, &other] {
        let ids: BTreeSet<&ResourceId> = all.iter().map(|wanted| &wanted.id).collect();
        for need in all.iter().flat_map(|wanted| &wanted.needs) {
            assert!(ids.contains(&need.on), "{} is nowhere: no site waits for another", need.on);
        }
        // What nobody could make again is kept by `down`, also where it began as a copy.
        assert!(all.iter().filter(|w| w.kind.as_str() == "onprem.postgres").all(|wanted| wanted.protected));
    }
    // The watch says who leads before there is a database, and the schema is made in the one that does.
    assert!(!needs(&home, "primary/watch/process").contains("schema"));
    assert!(needs(&home, "primary/database/server-0").contains("watch/process"));
    assert!(needs(&home, "primary/server/schema").contains("database/server-0"));
    let sites =
        serde_yaml::to_string(&spec(&other, "secondary/database/config-0")["document"]["postgres"]["sites"]).unwrap();
    expect![[r#"
        door: /srv/state/sites/secondary/run/database-door.sock
        link: /srv/state/sites/secondary/data/postgres
        max_lag_ms: 5000
        peers:
          primary: unix:/srv/state/sites/secondary/run/db-primary.sock
        site: secondary
        watch: unix:/srv/state/sites/secondary/run/watch.sock
    "#]]
    .assert_eq(&sites);
    let (border, of_home) = (document(&other, "secondary/border/config"), document(&home, "primary/border/config"));
    assert!(border.contains("- listen: unix:/srv/state/sites/secondary/run/db-primary.sock\n    name: database-primary\n    to: unix:/srv/state/sites/primary/run/border-database.sock"), "{border}");
    assert!(of_home.contains("- listen: unix:/srv/state/sites/primary/run/border-database.sock\n    name: database-in\n    to: unix:/srv/state/sites/primary/run/database-door.sock"), "{of_home}");
    // Servers come by the door, the watch fills the server itself.
    let server = document(&other, "secondary/server/config-0");
    assert!(
        server.contains("postgresql://textnlp@%2Fsrv%2Fstate%2Fsites%2Fsecondary%2Fdata%2Fpostgres%2Frun:5433/textnlp"),
        "{server}"
    );
    let watch = document(&other, "secondary/watch/config");
    assert!(
        watch.contains(
            "own: postgresql://textnlp@%2Fsrv%2Fstate%2Fsites%2Fsecondary%2Fdata%2Fpostgres%2Frun:5432/textnlp"
        ),
        "{watch}"
    );
    // All sites prove themselves by the same passwords; each has its own signing key.
    let secret = |all: &[Wanted], id: &str| spec(all, id)["name"].as_str().unwrap().to_owned();
    assert_eq!(
        secret(&home, "primary/secrets/database-password"),
        secret(&other, "secondary/secrets/database-password")
    );
    // Home's is made empty, the other is copied from it.
    assert_eq!(
        (&spec(&home, "primary/database")["follows"], &spec(&other, "secondary/database")["follows"]),
        (&Value::Null, &Value::Bool(true))
    );
}

#[test]
fn global_endpoint_without_tls_uses_plain_http_to_the_sites() {
    let mut components = of_witness();
    let Some(ComponentSpec::GlobalEndpoint(front)) = components.last_mut().map(|last| &mut last.part) else { panic!() };
    front.tls = false;
    let text = document(&lowered("witness", &components), "witness/front/config");
    assert!(!text.contains("tls"), "{text}");
}

#[test]
fn site_names_that_make_socket_paths_too_long_are_refused() {
    let onprem = onprem("/srv/a-state-folder/whose-name-is-of-middle-length");
    let long = "a-name-of-thirty-nine-letters-and-dashes";
    let mut components = of_site("primary");
    let Some(ComponentSpec::Relay(border)) =
        components.iter_mut().map(|c| &mut c.part).find(|p| matches!(p, ComponentSpec::Relay(_)))
    else {
        panic!()
    };
    border.peers.push(name(long));
    let mut problems = String::new();
    for component in &components {
        if let Err(found) = onprem.lower(component, &site("primary")) {
            problems.push_str(&found.to_string());
        }
    }
    assert!(problems.contains("sockets are named after the sites"), "{problems}");
}
