//! What an environment becomes: components, site by site.

use textnlp_orchestrator::environment::model::Service;
use textnlp_provider::cluster::{ClusterIngress, IngressKind};
use textnlp_provider::settings::NodeSize;

use super::*;

#[test]
fn base_domain_tenants_reach_the_server_and_the_certificate() {
    let sets = ["server.api.base_domain=example.com", "server.security.jwt_token_limit=5000"];
    let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
    let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
    let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
    let part =
        |name: &str| serde_json::to_value(&parts.iter().find(|c| c.name.as_str() == name).unwrap().part).unwrap();
    let config = &part("server")["workload"]["config"]["textnlp"];
    assert_eq!(
        (&config["api"]["base_domain"], &config["security"]["jwt_token_limit"]),
        (&json!("example.com"), &json!(5000))
    );
    let names = part("certificate")["certificate"]["names"].to_string();
    assert!(names.contains("\"example.com\"") && names.contains("\"*.example.com\""), "{names}");
}

#[test]
fn later_settings_reach_the_server_only_when_not_default() {
    let config = |sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let server = parts.into_iter().find(|c| c.name.as_str() == "server").unwrap();
        serde_json::to_value(&server.part).unwrap()["workload"]["config"]["textnlp"].clone()
    };
    assert_eq!(config(&["server.usage.retention_days=30"])["usage"], json!({ "retention_days": 30 }));
    assert_eq!(config(&["server.usage.retention_days=0"])["usage"], json!({ "retention_days": 0 }));
    assert_eq!(config(&["server.audit.retention_days=30"])["audit"], json!({ "retention_days": 30 }));
    let analytics = json!({ "retention_days": 90 });
    assert_eq!(config(&["server.analytics.enabled=true"])["analytics"], analytics);
    assert_eq!(config(&["server.analytics.retention_days=30"])["analytics"], json!(null));
    let batch = json!({
        "max_requests": 50_000, "max_file_size": "5MB", "max_pending": 20, "max_stored": "1GB", "concurrency": 2, "retention_days": 30,
    });
    assert_eq!(config(&["server.batch.enabled=true", "server.batch.max_file_size=5MB"])["batch"], batch);
    assert_eq!(config(&["server.batch.concurrency=1"])["batch"], json!(null));
    let pii = json!({ "action": "mask", "kinds": ["email", "card"] });
    assert_eq!(config(&["server.pii.action=mask", r#"server.pii.kinds=["email", "card"]"#])["pii"], pii);
    assert_eq!(config(&["server.pii.kinds=[email]"])["pii"], json!(null));
    assert_eq!(config(&["server.inference.prefix_cache=false"])["models"]["prefix_cache"], json!(false));
    assert_eq!(config(&["server.inference.draft_tokens=0"])["models"]["draft_tokens"], json!(0));
    assert_eq!(config(&["server.inference.max_batch_size=8"])["models"]["max_batch_size"], json!(8));
    let beta = json!({ "name": "beta", "enabled": true, "percent": 100, "tenants": [], "model": null });
    assert_eq!(config(&["features.beta=true"])["features"], json!([beta]));
    let prices = json!({ "currency": "USD", "prompt": "0.5", "answer": "0", "models": [] });
    assert_eq!(config(&["server.prices.prompt=0.5"])["prices"], prices);
    let sets = ["budget.currency=EUR", "server.prices.answer=1.5", "server.prices.models.textnlp-tiny.prompt=0.0375"];
    let tiny = json!({ "name": "textnlp-tiny", "prompt": "0.0375", "answer": "1.5" });
    let prices = json!({ "currency": "EUR", "prompt": "0", "answer": "1.5", "models": [tiny] });
    assert_eq!(config(&sets)["prices"], prices);
    let sets = ["server.prices.currency=CHF", "server.prices.prompt=1000000"];
    assert_eq!(config(&sets)["prices"]["currency"], "CHF");
    assert_eq!(config(&["server.prices.currency=CHF"])["prices"], json!(null));
    let usual = config(&[]);
    for later in [
        &usual["usage"],
        &usual["prices"],
        &usual["audit"],
        &usual["analytics"],
        &usual["batch"],
        &usual["monitoring"]["traces"],
        &usual["features"],
        &usual["models"]["prefix_cache"],
        &usual["models"]["draft_tokens"],
        &usual["models"]["max_batch_size"],
    ] {
        assert_eq!(later, &json!(null), "servers of earlier releases do not know it");
    }
}

#[test]
fn secrets_of_webhooks_are_given_and_not_in_the_configuration() {
    let webhooks = r#"server.batch.webhooks=[{"url":"https://a.example.com/","secret":"secret:env:HOOK_A"},{"tenant":"acme","url":"https://b.example.com/","secret":"secret:env:HOOK_B"}]"#;
    let parts_with = |sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let part = |name: &str| json!(parts.iter().find(|part| part.name.as_str() == name).unwrap().part);
        (part("server")["workload"]["config"]["textnlp"].clone(), part("secrets")["secrets"]["given"].clone())
    };
    let (config, given) = parts_with(&["server.batch.enabled=true", webhooks]);
    let wanted = json!([{ "url": "https://a.example.com/" }, { "tenant": "acme", "url": "https://b.example.com/" }]);
    assert_eq!(config["batch"]["webhooks"], wanted);
    assert!(!config.to_string().contains("HOOK_"), "{config}");
    let name = webhook_secret(Some("acme"), "https://b.example.com/");
    assert_eq!(given[name], json!({ "source": "secret:env:HOOK_B", "version": "" }));
    assert_eq!(given.as_object().unwrap().len(), 2);
    let (config, given) = parts_with(&[webhooks]);
    assert_eq!((&config["batch"], &given), (&json!(null), &json!(null)), "without batches they have no effect");
}

#[test]
fn collector_of_traces_reaches_the_server_and_its_secret_only_by_reference() {
    let endpoint = "server.monitoring.traces.endpoint=https://collector.example.com/v1/traces";
    let parts_with = |sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let part = |name: &str| json!(parts.iter().find(|part| part.name.as_str() == name).unwrap().part);
        let config = part("server")["workload"]["config"]["textnlp"]["monitoring"]["traces"].clone();
        (config, part("secrets")["secrets"]["given"].clone())
    };
    let enabled = "server.monitoring.enable_tracing=true";
    let wanted = json!({ "endpoint": "https://collector.example.com/v1/traces", "ratio": "1" });
    assert_eq!(parts_with(&[enabled, endpoint]), (wanted, json!(null)));
    let of_secret = ["server.monitoring.traces.secret=secret:env:COLLECTOR", "server.monitoring.traces.ratio=0.1"];
    let (config, given) = parts_with(&[&[enabled, endpoint][..], &of_secret].concat());
    let wanted =
        json!({ "endpoint": "https://collector.example.com/v1/traces", "ratio": "0.1", "header": "authorization" });
    assert_eq!((config, &given["traces"]["source"]), (wanted, &json!("secret:env:COLLECTOR")));
    assert_eq!(parts_with(&[enabled, of_secret[0]]), (json!(null), json!(null)), "nothing is sent without an endpoint");
}

#[test]
fn gateway_passes_files_of_requests_on_where_there_are_batches() {
    let most = |sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let parts = serde_json::to_value(parts.iter().map(|c| &c.part).collect::<Vec<_>>()).unwrap();
        let endpoint = parts.as_array().unwrap().iter().find_map(|part| part["endpoint"].as_object()).unwrap();
        endpoint["max_request_bytes"].as_u64().unwrap()
    };
    assert_eq!(most(&[]), 10_000_000);
    assert_eq!(most(&["server.batch.enabled=true"]), 100_000_000 + 65_536);
}

#[test]
fn model_for_embeddings_is_not_the_default_of_others() {
    let text = format!(
        "{GOOD}models:\n  - {{ name: vectors, source: bundled, role: embeddings }}\n  - {{ name: texts, source: bundled }}\n"
    );
    assert_eq!(said(load(&text, &Overrides::default(), &Catalogue::default())), "");
    let environment = load(&text, &Overrides::default(), &Catalogue::default()).unwrap().environment;
    let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
    let server = json!(parts.iter().find(|part| part.name.as_str() == "server").unwrap().part);
    let models = &server["workload"]["config"]["textnlp"]["models"];
    assert_eq!((&models["default"], &models["embeddings"]), (&json!("texts"), &json!("vectors")));
}

#[test]
fn cache_reaches_the_servers_and_its_secret_address_is_one_of_their_secrets() {
    let of = |sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let part = |name: &str| parts.iter().find(|part| part.name.as_str() == name).map(|found| json!(found.part));
        let server = part("server").unwrap()["workload"]["config"]["textnlp"]["cache"].clone();
        let given = part("secrets").unwrap()["secrets"]["given"]["cache-url"]["source"].clone();
        (server, given, part("cache").is_some())
    };
    assert_eq!(of(&[]), (json!(null), json!(null), false));
    let (memory, given, is_component) = of(&["cache.kind=memory"]);
    assert_eq!((&memory["kind"], given, is_component), (&json!("memory"), json!(null), false));
    let bytes: textnlp_orchestrator::environment::model::Bytes = memory["size"].as_str().unwrap().parse().unwrap();
    assert_eq!((bytes.0, memory.get("url")), (64 << 20, None));
    let (redis, given, is_component) = of(&["cache.kind=redis", "cache.url=secret:env:REDIS_URL", "cache.ttl=2h"]);
    assert_eq!((&redis["ttl"], &redis["max_connections"], redis.get("url")), (&json!(7200), &json!(8), None));
    assert_eq!((given, is_component), (json!("secret:env:REDIS_URL"), false));
    let (redis, given, _) = of(&["cache.kind=redis", "cache.url=rediss://cache.example.com:6379/0"]);
    assert_eq!((&redis["url"], given), (&json!("rediss://cache.example.com:6379/0"), json!(null)));
    let (redis, ..) = of(&["cache.kind=redis", "cache.url=REDIS://cache:6379/0", "network.private_ca=/etc/ca.pem"]);
    assert_eq!((&redis["url"], redis.get("ca_file")), (&json!("redis://cache:6379/0"), None));
    for url in ["rediss://cache.example.com:6379/0", "secret:env:REDIS_URL"] {
        let url = format!("cache.url={url}");
        let (redis, ..) = of(&["cache.kind=redis", &url, "network.private_ca=/etc/ca.pem"]);
        assert_eq!(redis["ca_file"], "/etc/ca.pem", "{url}");
    }
    // Only a provider creates one, and refuses it.
    assert!(of(&["cache.kind=redis", "cache.hosting=managed"]).2);
}

#[test]
fn managed_cache_has_its_own_password_and_the_servers_read_its_address_from_a_file() {
    let of = |sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let part = |name: &str| json!(parts.iter().find(|part| part.name.as_str() == name).unwrap().part);
        [part("cache")["cache"].clone(), part("secrets")["secrets"].clone(), part("server")["workload"].clone()]
    };
    let managed = ["cache.kind=redis", "cache.hosting=managed"];
    let [cache, secrets, server] = of(&managed);
    let usual = json!({ "memory_bytes": 1_000_000_000, "replicas": 0, "secrets": "secrets" });
    assert_eq!(cache, json!({ "kind": "redis", "managed": usual }));
    assert_eq!(secrets["generate"]["cache-password"], json!({ "random": 32 }));
    assert!(secrets["given"].get("cache-url").is_none(), "{secrets}");
    let config = &server["config"]["textnlp"]["cache"];
    assert_eq!((&config["kind"], config.get("url"), &server["cache"]), (&json!("redis"), None, &json!("cache")));
    let [cache, ..] = of(&[managed[0], managed[1], "cache.memory=4GiB", "cache.replicas=2"]);
    assert_eq!((&cache["managed"]["memory_bytes"], &cache["managed"]["replicas"]), (&json!(4_u64 << 30), &json!(2)));
    let [cache, ..] = of(&[managed[0], managed[1], "database.kind=postgres", "database.hosting=managed"]);
    assert_eq!(cache["managed"]["database"], "database", "a cloud may connect both to the network at once");
    // A site without servers has nothing that would read it.
    let overrides = Overrides { sets: managed.map(str::to_owned).into(), ..Overrides::default() };
    let mut environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
    environment.sites[0].services = vec![Service::DatabasePrimary];
    let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
    assert!(parts.iter().all(|part| part.name.as_str() != "cache"), "{parts:?}");
    assert!(!json!(parts).to_string().contains("cache-password"), "{parts:?}");
}

#[test]
fn model_of_a_tenant_is_named_after_it_everywhere() {
    let text = format!(
        "{GOOD}models:\n  - {{ name: own, source: bundled, tenant: acme, preload: true }}\n  \
         - {{ name: own, source: bundled, tenant: globex }}\n  - {{ name: shared, source: bundled }}\n\
         server: {{ prices: {{ models: {{ acme/own: {{ prompt: 2 }} }} }} }}\n"
    );
    assert_eq!(said(load(&text, &Overrides::default(), &Catalogue::default())), "");
    let environment = load(&text, &Overrides::default(), &Catalogue::default()).unwrap().environment;
    let mut artifacts = artifacts();
    artifacts.models.insert("acme/own".to_owned(), "sha256:1".to_owned());
    let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts)).remove(0);
    let part = |name: &str| json!(parts.iter().find(|part| part.name.as_str() == name).unwrap().part);
    let config = &part("server")["workload"]["config"]["textnlp"];
    let served = json!([
        { "name": "acme/own", "tenant": "acme" }, { "name": "globex/own", "tenant": "globex" }, { "name": "shared" },
    ]);
    assert_eq!(config["models"]["serve"], served);
    assert_eq!((&config["models"]["default"], &config["models"]["preload"]), (&json!("shared"), &json!(["acme/own"])));
    assert_eq!(config["prices"]["models"], json!([{ "name": "acme/own", "prompt": "2", "answer": "0" }]));
    let stored = &part("models")["model_store"]["models"];
    assert_eq!((&stored[0]["name"], &stored[0]["digest"]), (&json!("acme/own"), &json!("sha256:1")));
    assert_eq!((&stored[1]["name"], &stored[1]["digest"]), (&json!("globex/own"), &json!(null)));
}

#[test]
fn policies_and_pinned_images_follow_from_the_phase_and_dumps_have_the_backup_key() {
    let of = |name: &str, sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap().environment;
        let mut artifacts = artifacts();
        artifacts.files.backup_recipient = Some("age1own".to_owned());
        let (site, parts) = components(&environment, &Release::resolve(&environment, &artifacts)).remove(0);
        let part = |name: &str| parts.iter().find(|part| part.name.as_str() == name).map(|part| json!(part.part));
        let recipients = part("backup").map(|backup| backup["backup"]["recipients"].clone());
        let policies = part("network").unwrap()["network"]["policies"] == true;
        assert_eq!(part("server").unwrap()["workload"]["egress"]["policies"] == true, policies);
        (policies, site.cluster.map(|cluster| cluster.pinned), recipients)
    };
    let own = Some(json!(["age1own"]));
    assert_eq!(of("pilot", &[]), (true, Some(true), own.clone()));
    assert_eq!(of("scale-up", &[]), (true, Some(true), own.clone()));
    assert_eq!(of("pilot", &["network.policies=false"]), (false, Some(true), own.clone()));
    // Also where a cloud runs the database, with the disk for dumps that is set.
    let managed = ["database.hosting=managed", "database.size=50GiB"];
    assert_eq!(of("pilot", &managed), (true, Some(true), own));
    let sized = [&managed[..], &["backup.size=80GiB"]].concat();
    for (sets, gib) in [(&managed[..], 50_u64), (&sized[..], 80)] {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load("pilot", &overrides, &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let dumped = parts.iter().find_map(|part| match &part.part {
            ComponentSpec::Backup(backup) => backup.managed.clone(),
            _ => None,
        });
        let dumped = dumped.unwrap();
        assert_eq!((dumped.version, dumped.disk_bytes, dumped.backup_bytes), (15, 50_u64 << 30, gib << 30));
    }
    assert_eq!(of("staging", &[]), (false, None, None));
    // A machine has the key itself.
    assert_eq!(of("air-gapped", &[]).2, Some(json!([])));
}

#[test]
fn dumps_of_a_cluster_have_a_folder_in_the_bucket_and_a_secret_that_machines_do_not_get() {
    let of = |name: &str, sets: &[&str]| {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let environment = Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap().environment;
        let mut artifacts = artifacts();
        artifacts.files.backup_endpoint = Some("https://minio.example.com:9000".to_owned());
        let (site, parts) = components(&environment, &Release::resolve(&environment, &artifacts)).remove(0);
        let part = |name: &str| parts.iter().find(|part| part.name.as_str() == name).map(|part| json!(part.part));
        let given = part("secrets").unwrap()["secrets"]["given"]["backup-credentials"]["source"].clone();
        (site.name, part("backup").unwrap()["backup"]["copies"].clone(), given)
    };
    let bucket = "backup.destination=s3://b/p/";
    let source = "secret:file:/etc/textnlp/bucket.env";
    let credentials = format!("backup.credentials={source}");
    let (site, copies, given) = of("pilot", &[bucket, &credentials]);
    assert_eq!(copies["url"], format!("s3://b/p/pilot/{site}"));
    assert_eq!((&copies["credentials"], &given), (&json!("secrets"), &json!(source)));
    assert_eq!(copies["endpoint"], "https://minio.example.com:9000");
    assert_eq!(copies["egress"]["policies"], true);
    let (_, copies, given) = of("pilot", &[bucket]);
    assert_eq!((&copies["credentials"], given), (&json!(null), json!(null)));
    assert_eq!(of("pilot", &[]).1, json!(null));
    let (_, copies, given) = of("air-gapped", &[bucket, &credentials]);
    assert_eq!((copies, given), (json!(null), json!(null)));
}

#[test]
fn built_in_environments_become_components_in_a_fixed_order() {
    let names = |name: &str| {
        let environment = built_in(name);
        let release = Release::resolve(&environment, &artifacts());
        let mut sites = components(&environment, &release);
        assert_eq!(sites.len(), 1);
        let (site, parts) = sites.remove(0);
        assert_eq!((site.name.as_str(), site.region.as_str(), site.runtime.as_str()), ("here", "local", "process"));
        (parts.iter().map(|c| c.name.to_string()).collect::<Vec<_>>().join(" "), parts)
    };
    assert_eq!(names("development").0, "network cluster secrets models database server gateway");
    let (staging, parts) = names("staging");
    assert_eq!(staging, "network cluster secrets certificate models database server gateway");
    let ComponentSpec::Workload(server) = &parts[6].part else { panic!("{:?}", parts[6]) };
    let config = serde_yaml::to_string(&server.config).unwrap();
    expect_test::expect![[r#"
        textnlp:
          environment: staging
          phase: staging
          region: local
          site: here
          api:
            workers: 4
            timeout: 300
            max_request_size: 10MB
            queue: 256
            max_tokens: 4096
            cors_origins: []
            docs: true
            base_domain: null
            drain_seconds: 30
            require_https: true
          models:
            default: textnlp-tiny
            max_cache_size: 50GB
            preload:
            - textnlp-tiny
            serve:
            - name: textnlp-tiny
              quantize: q8_0
              context: 1024
            threads: 0
          database:
            pool_size: 20
            max_overflow: 40
          security:
            jwt_algorithm: RS256
            jwt_expiry: 3600
            jwt_token_limit: 1000000
            api_keys_enabled: true
            api_key_header: X-API-Key
            rate_limit: 1000/hour
            token_rate_limit: null
            issuer: staging
          monitoring:
            metrics_port: 9090
            enable_tracing: false
            log_level: INFO
            log_file: null
    "#]]
    .assert_eq(&config);
}

/// Who is told of a site's trouble is told of the witness's too; only the home site tells of what the environment has once.
#[test]
fn each_site_alerts_on_its_own_problems() {
    let overrides =
        Overrides { sets: vec!["monitoring.receivers.oncall=http://127.0.0.1:1/".to_owned()], ..Overrides::default() };
    let environment = Library::built_in().load("multi-region", &overrides, &Catalogue::default()).unwrap().environment;
    let release = Release::resolve(&environment, &artifacts());
    let told: Vec<_> = components(&environment, &release)
        .into_iter()
        .filter_map(|(site, parts)| {
            let found = parts.into_iter().find_map(|component| match component.part {
                ComponentSpec::Monitoring(monitoring) => Some(monitoring),
                _ => None,
            })?;
            Some((site.name.to_string(), found.receivers.len(), found.home, found.stack))
        })
        .collect();
    let expected = [("primary", true), ("secondary", false), ("tertiary", false), ("witness", false)];
    assert_eq!(told, expected.map(|(site, home)| (site.to_owned(), 1, home, false)));
}

#[test]
fn the_service_is_watched_at_its_public_address() {
    type Case = (&'static str, fn(&mut Environment), Option<(&'static str, u16)>);
    const CASES: [Case; 10] = [
        ("the domain", |_| {}, Some(("text.example.com", 8443))),
        ("no domain", |e| e.traffic.domain = None, None),
        ("no TLS", |e| e.tls.mode = TlsMode::Off, None),
        ("a port of the site", |e| e.sites[0].port = Some(9443), Some(("text.example.com", 9443))),
        (
            "an ingress",
            |e| {
                e.sites[0].port = Some(9443);
                e.sites[0].cluster.ingress = Some(ClusterIngress::default());
            },
            Some(("text.example.com", 443)),
        ),
        (
            "a Gateway with another port",
            |e| {
                let (kind, port) = (IngressKind::Gateway, Some(8444));
                e.sites[0].cluster.ingress = Some(ClusterIngress { kind, port, ..ClusterIngress::default() });
            },
            Some(("text.example.com", 8444)),
        ),
        (
            "an address beside the domain",
            |e| e.sites[0].cluster.address = Some("https://own.example.com:9443".to_owned()),
            Some(("own.example.com", 9443)),
        ),
        (
            "an address without a port",
            |e| e.sites[0].cluster.address = Some("https://own.example.com/".to_owned()),
            Some(("own.example.com", 443)),
        ),
        (
            "an IP address beside the domain",
            |e| e.sites[0].cluster.address = Some("https://203.0.113.7:8443".to_owned()),
            None,
        ),
        (
            "a port-forward beside the domain",
            |e| e.sites[0].cluster.address = Some("https://localhost:8443".to_owned()),
            None,
        ),
    ];
    let watched = |environment: &Environment| -> Vec<Option<(String, u16)>> {
        let release = Release::resolve(environment, &artifacts());
        let parts = components(environment, &release).into_iter().flat_map(|(_, parts)| parts);
        let services = parts.filter_map(|one| match one.part {
            ComponentSpec::Monitoring(monitoring) => Some(monitoring.monitored.service),
            _ => None,
        });
        services.map(|service| service.map(|at| (at.host, at.port))).collect()
    };
    let mut environment = built_in("staging");
    environment.monitoring.stack = true;
    environment.server.api.port = 8443;
    environment.traffic.domain = Some("text.example.com".to_owned());
    for (what, change, expected) in CASES {
        let mut environment = environment.clone();
        change(&mut environment);
        assert_eq!(watched(&environment), [expected.map(|(host, port)| (host.to_owned(), port))], "{what}");
    }
    for private in [
        "text",
        "text.internal",
        "text.local",
        "TEXT.LAN.",
        "text.home.arpa",
        "textnlp-api.textnlp.svc",
        "textnlp-api.textnlp.svc.cluster.example",
        "203.0.113.7",
    ] {
        environment.traffic.domain = Some(private.to_owned());
        assert_eq!(watched(&environment), [None::<(String, u16)>], "{private}");
    }

    // The domain is not that of one of several sites.
    let sets = ["traffic.existing=Z1", "sites[2].cluster.address=https://192.0.2.7:8443"];
    let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
    let loaded = Library::built_in().load("multi-region-clouds", &overrides, &Catalogue::default()).unwrap();
    let mut environment = loaded.environment;
    environment.monitoring.stack = true;
    let named = |host: &str| Some((host.to_owned(), 8443));
    let expected = [named("aws.textnlp.example.com"), named("gcp.textnlp.example.com"), None];
    assert_eq!(watched(&environment)[..3], expected);
    environment.sites[0].cluster.address = None;
    assert_eq!(watched(&environment)[0], None);
}

#[test]
fn alerts_use_the_proxies_of_the_environment() {
    let sets = [
        "monitoring.receivers.oncall=https://a.example/",
        "network.proxy.https=secret:env:PROXY",
        "network.proxy.http=http://proxy:3128",
        "network.proxy.no_proxy=[a.example, b.example]",
    ];
    let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
    let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
    let artifacts =
        Artifacts { given: BTreeMap::from([("secret:env:PROXY".to_owned(), "v1".to_owned())]), ..artifacts() };
    let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts)).remove(0);
    let monitoring = parts.iter().find(|component| component.name.as_str() == "monitoring").unwrap();
    assert_eq!(
        serde_json::to_value(&monitoring.part).unwrap()["monitoring"]["proxy"],
        json!({
            "HTTPS_PROXY": { "secret": { "source": "secret:env:PROXY", "version": "v1" } },
            "HTTP_PROXY": { "plain": "http://proxy:3128" },
            "NO_PROXY": { "plain": "a.example,b.example" },
        })
    );
}

#[test]
fn multi_region_sites_have_relays_agents_and_a_separate_witness() {
    let environment = built_in("multi-region");
    let release = Release::resolve(&environment, &artifacts());
    let places = components(&environment, &release);
    let site = "network cluster secrets certificate models database border watch server gateway";
    let shape: Vec<_> = places
        .iter()
        .map(|(site, parts)| {
            let names: Vec<_> = parts.iter().map(|c| c.name.as_str()).collect();
            (site.name.as_str(), site.role.map_or("witness", Role::as_str), names.join(" "))
        })
        .collect();
    assert_eq!(
        shape,
        [
            // Copies are made where control data is written when all are well.
            ("primary", "primary", format!("{site} backup")),
            ("secondary", "secondary", site.to_owned()),
            ("tertiary", "standby", site.to_owned()),
            ("witness", "witness", "network cluster certificate witness front".to_owned()),
        ]
    );
    let mut seen = Vec::new();
    for (site, parts) in &places {
        assert!(site.protect_data, "{}", site.name);
        for component in parts {
            match &component.part {
                // One first key, which the others get as they get every key.
                ComponentSpec::Secrets(s) => seen.push(format!(
                    "{} secrets {}",
                    site.name,
                    s.generate.keys().cloned().collect::<Vec<_>>().join(" ")
                )),
                ComponentSpec::Workload(w) => seen.push(format!("{} first key {}", site.name, w.first_key)),
                ComponentSpec::Endpoint(e) => {
                    // The server, whose limit is 300 s, reports it before a gateway ends the request.
                    assert_eq!(e.timeout_seconds, 305);
                    seen.push(format!("{} listens on {} and {}", site.name, e.port, e.metrics_port))
                }
                ComponentSpec::Relay(b) => {
                    let peers: Vec<_> = b.peers.iter().map(ToString::to_string).collect();
                    seen.push(format!("{} lets {} in to {:?}", site.name, peers.join(" "), b.endpoint));
                }
                ComponentSpec::SiteAgent(w) => seen.push(format!(
                    "{} watches for {:?}",
                    site.name,
                    (w.rules, w.automatic, w.failback, w.max_lag_ms)
                )),
                ComponentSpec::Witness(w) => {
                    seen.push(format!("{} weighs {:?}", site.name, w.weights.values().collect::<Vec<_>>()))
                }
                ComponentSpec::GlobalEndpoint(f) => {
                    assert_eq!(f.timeout_seconds, 310);
                    seen.push(format!("{} listens on {} and {}", site.name, f.port, f.metrics_port))
                }
                ComponentSpec::Traffic(_) => panic!("the front has the weights"),
                _ => {}
            }
        }
    }
    expect![[r#"
        primary secrets api-key jwt-signing-key
        primary lets secondary tertiary in to ("0.0.0.0", 8443)
        primary watches for (FailureDetection { every_ms: 1000, lost_after: 3 }, true, true, 5000)
        primary first key true
        primary listens on 8443 and 9090
        secondary secrets jwt-signing-key
        secondary lets primary tertiary in to ("0.0.0.0", 8444)
        secondary watches for (FailureDetection { every_ms: 1000, lost_after: 3 }, true, true, 5000)
        secondary first key false
        secondary listens on 8444 and 9091
        tertiary secrets jwt-signing-key
        tertiary lets primary secondary in to ("0.0.0.0", 8445)
        tertiary watches for (FailureDetection { every_ms: 1000, lost_after: 3 }, true, true, 5000)
        tertiary first key false
        tertiary listens on 8445 and 9092
        witness weighs [100, 50, 0]
        witness listens on 8440 and 9080"#]]
    .assert_eq(&seen.join("\n"));
}

#[test]
fn witness_receives_the_dns_zone_but_no_secret() {
    let overrides =
        Overrides { variables: [("TSIG".to_owned(), "c2VjcmV0".to_owned())].into(), ..Overrides::default() };
    let text = GOOD
        .replace("provider: onprem }", &format!("provider: onprem }}, {{ name: there, provider: onprem, {STANDBY} }}"));
    let environment = load(&(text + &zone("192.0.2.53", "")), &overrides, &Catalogue::default()).unwrap().environment;
    let given = [("secret:env:TSIG".to_owned(), "5eed12".to_owned())].into();
    let release = Release::resolve(&environment, &Artifacts { given, ..artifacts() });
    let (_, parts) = components(&environment, &release).pop().unwrap();
    let witness = parts.iter().find(|part| part.name.as_str() == "witness").unwrap();
    let dns = &serde_json::to_value(&witness.part).unwrap()["witness"]["dns"];
    assert_eq!(
        *dns,
        json!({
            "server": "192.0.2.53:53", "zone": "example.com", "name": "textnlp.example.com", "ttl_seconds": 60, "key": "update",
            "algorithm": "hmac-sha256", "secret": { "source": "secret:env:TSIG", "version": "5eed12" },
            "addresses": { "here": ["192.0.2.1"], "there": ["2001:db8::2"] },
        })
    );
}

#[test]
fn each_of_three_clouds_has_its_records_in_the_zone_of_the_primary() {
    let load = |sets: &[&str]| {
        let sets = ["traffic.existing=Z1", "server.api.base_domain=x.org"].iter().chain(sets);
        let sets = sets.map(|set| (*set).to_owned()).collect();
        let overrides = Overrides { sets, ..Overrides::default() };
        Library::built_in().load("multi-region-clouds", &overrides, &Catalogue::default())
    };
    let environment = load(&["sites[2].cluster.address=https://192.0.2.7:8443"]).unwrap().environment;
    let release = Release::resolve(&environment, &artifacts());
    let mut zones = Vec::new();
    for (site, parts) in components(&environment, &release) {
        for part in parts {
            match part.part {
                ComponentSpec::Endpoint(endpoint) => {
                    let zone = endpoint.zone.unwrap();
                    zones.push(json!([site.name, zone, endpoint.share]));
                }
                ComponentSpec::Traffic(_) => panic!("the endpoints have the weights"),
                _ => {}
            }
        }
    }
    let sites = json!({ "primary": 100, "secondary": 50, "tertiary": 0 });
    let share = |weight: u32, is_at_other_provider: bool, host: &str| json!({ "weight": weight, "is_at_other_provider": is_at_other_provider, "host": host, "sites": sites });
    assert_eq!(
        json!(zones),
        json!([
            ["primary", "Z1", share(100, false, "aws.textnlp.example.com")],
            ["secondary", "Z1", share(50, true, "gcp.textnlp.example.com")],
            ["tertiary", "Z1", share(0, true, "192.0.2.7")],
        ])
    );
    for (set, says) in [
        ("sites[1].cluster.load_balancer=false", "`sites[1].cluster.load_balancer`: a record needs the load balancer"),
        (
            "sites[1].cluster.address=https://AWS.textnlp.example.com:8443",
            "`sites[1].cluster.address`: `AWS.textnlp.example.com` is also the name of `sites[0].cluster.address`",
        ),
        ("traffic.managed_certificate=true", "the global endpoint verifies each site"),
        ("sites[1].existing.zone=Z2", "`sites[1].existing.zone`: the records of several sites are in one zone"),
        ("dr.rto=90s", "clients that follow the DNS records notice a lost site only after 90s"),
        ("traffic.domain=\"*.example.com\"", "clients use one name, and this is a wildcard"),
    ] {
        let said = said(load(&[set]));
        assert!(said.contains(says), "{set}: {said}");
    }
}

#[test]
fn each_site_of_several_clouds_has_a_managed_cache_and_password_of_its_own() {
    let sets = [
        "traffic.existing=Z1",
        "server.api.base_domain=x.org",
        "sites[2].cluster.address=https://192.0.2.7:8443",
        "cache.kind=redis",
        "cache.hosting=managed",
    ];
    let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
    let loaded = Library::built_in().load("multi-region-clouds", &overrides, &Catalogue::default()).unwrap();
    let environment = loaded.environment;
    let of_sites = components(&environment, &Release::resolve(&environment, &artifacts()));
    // The witness has none.
    let of_sites = of_sites.into_iter().filter(|(_, parts)| parts.iter().any(|part| part.name.as_str() == "server"));
    let of_sites: Vec<_> = of_sites.collect();
    assert_eq!(of_sites.len(), 3);
    for (site, parts) in of_sites {
        let part = |name: &str| json!(parts.iter().find(|part| part.name.as_str() == name).unwrap().part);
        assert_eq!(part("cache")["cache"]["managed"]["secrets"], "secrets", "{}", site.name);
        assert_eq!(part("server")["workload"]["cache"], "cache", "{}", site.name);
        let secrets = part("secrets")["secrets"].clone();
        assert_eq!(secrets["generate"]["cache-password"], json!({ "random": 32 }));
        assert!(!secrets["shared"].to_string().contains("cache-password"), "{secrets}");
    }
}

#[test]
fn records_of_several_sites_depend_on_the_provider_of_the_primary() {
    use textnlp_provider::capabilities::{Setting, SiteRecords};
    const PODS: &[RuntimeSupport] = &[RuntimeSupport {
        runtime: Runtime::Kubernetes,
        supported: &[Capability::Optional(Setting::ClusterVersion), Capability::Optional(Setting::ExistingZone)],
        refused: &[],
    }];
    let offer = |seconds: Option<u64>, takes_names: bool, names_balancers: bool| Offer {
        capabilities: Capabilities {
            runtimes: PODS,
            site_records: seconds
                .map(|seconds| SiteRecords { notices_after: std::time::Duration::from_secs(seconds), takes_names }),
            names_balancers,
            ..Capabilities::default()
        },
        ..Offer::default()
    };
    let mut catalogue = Catalogue::default();
    for (name, offer) in [
        ("aws", offer(Some(30), true, true)),
        ("gcp", offer(Some(60), false, false)),
        ("azure", offer(None, false, false)),
    ] {
        catalogue.providers.insert(name.to_owned(), offer);
    }
    let said = |sites: [&str; 3]| {
        let sets = sites.iter().enumerate().map(|(i, provider)| format!("sites[{i}].provider={provider}"));
        let sets = sets.chain(["traffic.existing=Z1".to_owned(), "dr.rto=100s".to_owned()]).collect();
        let overrides = Overrides { sets, ..Overrides::default() };
        said(Library::built_in().load("multi-region-clouds", &overrides, &catalogue))
    };
    let (names, none, late) = (
        "load balancers of provider `aws` have names and no fixed addresses",
        "zones of provider `azure` have no records of several sites",
        "clients that follow the DNS records notice a lost site only after",
    );
    for (sites, expected) in [
        (["aws", "gcp", "azure"], [false, false, false]),
        (["gcp", "gcp", "azure"], [false, false, true]),
        (["gcp", "azure", "aws"], [true, false, true]),
        (["azure", "gcp", "aws"], [false, true, false]),
    ] {
        let said = said(sites);
        assert_eq!([names, none, late].map(|text| said.contains(text)), expected, "{sites:?}: {said}");
    }
}

#[test]
fn dns_traffic_has_no_global_endpoint() {
    let sets = ["traffic.mode=dns", "dr.witness=null"].map(str::to_owned).into();
    let overrides = Overrides { sets, ..Overrides::default() };
    let loaded = Library::built_in().load("multi-region-clouds", &overrides, &Catalogue::default()).unwrap();
    let environment = loaded.environment;
    let release = Release::resolve(&environment, &artifacts());
    let places = components(&environment, &release);
    assert_eq!(places.len(), 3);
    let weights: Vec<_> = places
        .iter()
        .flat_map(|(_, parts)| parts)
        .filter_map(|c| {
            if let ComponentSpec::Traffic(t) = &c.part {
                Some(t.weights.values().copied().collect::<Vec<_>>())
            } else {
                None
            }
        })
        .collect();
    assert_eq!(weights, [[100, 50, 0]]);
}

#[test]
fn existing_objects_are_assigned_to_their_components() {
    let text = format!(
        "{}network: {{ existing: net-1 }}\n",
        GOOD.replace("provider: onprem", "provider: onprem, existing: { cluster: c-1, bucket: b-1 }")
    );
    let environment = load(&text, &Overrides::default(), &Catalogue::default()).unwrap().environment;
    let release = Release::resolve(&environment, &artifacts());
    let (_, parts) = components(&environment, &release).remove(0);
    let existing: Vec<_> = parts.iter().filter_map(|c| Some(format!("{}={}", c.name, c.existing.as_ref()?))).collect();
    assert_eq!(existing, ["network=net-1", "cluster=c-1", "models=b-1"]);
}

#[test]
fn account_at_a_registry_reaches_sites_in_clusters_only_and_nothing_is_pushed_to_it() {
    let text = GOOD.replace("name: here, provider: onprem", "name: here, provider: onprem, runtime: kubernetes");
    let account = "registry: { url: \"https://r.example.com/team/\", user: ci, password: \"secret:env:PULL\" }\n";
    let of = |text: &str| {
        let overrides =
            Overrides { variables: [("PULL".to_owned(), "hunter2".to_owned())].into(), ..Overrides::default() };
        let environment = load(text, &overrides, &Catalogue::default()).unwrap().environment;
        let given = [("secret:env:PULL".to_owned(), "5eed12".to_owned())].into();
        let artifacts = Artifacts { given, image: Some("1.0-a@sha256:1".to_owned()), ..artifacts() };
        let release = Release::resolve(&environment, &artifacts);
        assert!(release.lock.images.is_empty(), "{:?}", release.lock.images);
        let (site, parts) = components(&environment, &release).remove(0);
        assert!(parts.iter().all(|part| part.name.as_str() != "registry"));
        let secrets = parts.iter().find(|part| part.name.as_str() == "secrets").unwrap();
        (site.cluster.and_then(|cluster| cluster.registry), json!(secrets.part)["secrets"]["given"].clone())
    };
    let (registry, given) = of(&format!("{text}{account}"));
    let wanted = json!({ "address": "r.example.com/team", "user": "ci", "secrets": "secrets" });
    assert_eq!(json!(registry), wanted);
    assert_eq!(given, json!({ "registry-password": { "source": "secret:env:PULL", "version": "5eed12" } }));
    let (registry, given) = of(&format!("{GOOD}{account}"));
    assert!(registry.is_none() && given.get("registry-password").is_none(), "{given}");
    assert_eq!(of(&text).0, None);
}

#[test]
fn the_size_of_nodes_is_for_the_clusters_that_are_created() {
    let sets = ["traffic.existing=Z1", "sites[2].cluster.address=https://192.0.2.7:8443", "cluster.node_size=large"];
    let overrides = Overrides { sets: sets.map(str::to_owned).into(), ..Overrides::default() };
    let loaded = Library::built_in().load("multi-region-clouds", &overrides, &Catalogue::default());
    let mut environment = loaded.unwrap().environment;
    let sizes = |environment: &Environment| -> Vec<Option<NodeSize>> {
        let release = Release::resolve(environment, &artifacts());
        let sites = components(environment, &release).into_iter().filter_map(|(site, _)| site.cluster);
        sites.map(|cluster| cluster.node_choice.size).collect()
    };
    let large = Some(NodeSize::Large);
    assert_eq!(sizes(&environment), [large; 3]);
    environment.sites[1].existing.cluster = Some("theirs".to_owned());
    assert_eq!(sizes(&environment), [large, None, large]);
    for site in &mut environment.sites {
        site.existing.cluster = Some("theirs".to_owned());
    }
    assert_eq!(sizes(&environment), [large; 3], "where no nodes are created, it is refused");
}

#[test]
fn rollout_queries_reach_the_workload_with_the_token_as_a_reference() {
    let text = GOOD.replace("name: here, provider: onprem", "name: here, provider: onprem, runtime: kubernetes")
        + "rollout: { strategy: canary, prometheus: { url: \"https://p/\", token: \"secret:env:TOKEN\" }, \
           queries: [{ name: errors, query: up, at_most: 0.01 }, { name: seen, query: up, at_least: 1, for: 5 }] }\n";
    let overrides =
        Overrides { variables: [("TOKEN".to_owned(), "hunter2".to_owned())].into(), ..Overrides::default() };
    let environment = load(&text, &overrides, &Catalogue::default()).unwrap().environment;
    let given = [("secret:env:TOKEN".to_owned(), "5eed12".to_owned())].into();
    let parts = |environment: &Environment| {
        let release = Release::resolve(environment, &Artifacts { given, ..artifacts() });
        let (_, parts) = components(environment, &release).remove(0);
        let part =
            |name: &str| parts.iter().find(|part| part.name.as_str() == name).map(|part| json!(part.part)).unwrap();
        (part("server")["workload"]["outside"].clone(), part("secrets")["secrets"]["given"].clone())
    };
    let (outside, given) = parts(&environment);
    assert_eq!(
        outside,
        json!({ "url": "https://p", "token": true, "queries": [
            { "name": "errors", "query": "up", "at_most": 0.01, "samples": 3 },
            { "name": "seen", "query": "up", "at_least": 1.0, "samples": 5 },
        ] })
    );
    assert_eq!(given, json!({ "prometheus-token": { "source": "secret:env:TOKEN", "version": "5eed12" } }));
}

#[test]
fn inference_endpoint_has_its_models_and_image_and_neither_secrets_nor_a_gateway() {
    let registry = "registry.url=123456789012.dkr.ecr.eu-west-1.amazonaws.com/textnlp";
    let sets = ["sites[0].runtime=sagemaker", "sites[0].provider=aws", "sites[0].region=eu-west-1", "scaling.max=4"];
    let sets = sets.into_iter().chain(["scaling.requests_per_second=5", registry, "cache.kind=memory"]);
    let overrides = Overrides { sets: sets.map(str::to_owned).collect(), ..Overrides::default() };
    let environment = Library::built_in().load("staging", &overrides, &Catalogue::default()).unwrap().environment;
    let mut artifacts = artifacts();
    artifacts.image = Some("1.0-a@sha256:1".to_owned());
    let release = Release::resolve(&environment, &artifacts);
    let (site, parts) = components(&environment, &release).remove(0);
    assert!(site.cluster.is_none());
    let names: Vec<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    assert_eq!(names, ["models", "registry", "server"]);
    let part = |name: &str| json!(parts.iter().find(|part| part.name.as_str() == name).unwrap().part);
    let image = "123456789012.dkr.ecr.eu-west-1.amazonaws.com/textnlp:1.0-a@sha256:1";
    assert_eq!(part("registry")["registry"]["image"], image, "`up` pushes it");
    let endpoint = &part("server")["inference_endpoint"];
    assert_eq!(
        (&endpoint["image"], &endpoint["replicas"], &endpoint["autoscaling"]["max"]),
        (&json!(image), &json!(1), &json!(4))
    );
    assert_eq!(endpoint["models"], part("models")["model_store"]["models"]);
    assert!(!endpoint.to_string().contains(r#""kind":"memory""#), "it keeps no vectors: {endpoint}");
    assert!(!environment.runs_here() && environment.is_endpoint());
}

#[test]
fn an_endpoint_knows_whether_its_image_is_in_the_registry_of_the_environment() {
    let of = |image: &str| {
        let site = "name: here, provider: aws, region: eu-west-1, runtime: sagemaker";
        let site = format!("{site}, cluster: {{ image: {image} }}");
        let text = GOOD.replace("name: here, provider: onprem", &site) + "registry: { url: r.example.com/text }\n";
        let environment = load(&text, &Overrides::default(), &Catalogue::default()).unwrap().environment;
        let (_, parts) = components(&environment, &Release::resolve(&environment, &artifacts())).remove(0);
        let server = parts.into_iter().find(|part| part.name.as_str() == "server").unwrap();
        let ComponentSpec::InferenceEndpoint(endpoint) = server.part else { panic!("it is no endpoint") };
        assert_eq!(endpoint.registry, None, "`up` does not push it");
        endpoint.image_in.map(|name| name.as_str().to_owned())
    };
    assert_eq!(of("r.example.com/cuda:1").as_deref(), Some("registry"));
    assert_eq!(of("other.example.com/text:1"), None);
}
