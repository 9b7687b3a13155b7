//! Secrets planted in every position that an environment has for them, and every byte that is ever written searched for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_orchestrator::backup::Key;
use textnlp_orchestrator::environment::{self, Catalogue, Library, Overrides, components};
use textnlp_orchestrator::event::Event;
use textnlp_orchestrator::plan::DeleteData;
use textnlp_orchestrator::release::{Artifacts, Release, digest};
use textnlp_orchestrator::run::{RunOptions, RunSite, plan_with_refresh, run_phases};
use textnlp_orchestrator::state::{Folder, SiteLocation, State, Store};
use textnlp_orchestrator::status;
use textnlp_provider::component::Program;
use textnlp_provider::settings::Runtime;
use textnlp_provider::{Lineage, Provider, SiteName};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::bucket::Bucket;
use crate::conformance::{objects, on};
use crate::world::{DOWN_WITH_DATA, UP, World};

/// Where a secret is planted, and what has to be said besides.
type Plant = (&'static str, &'static str);

/// Several environments, because a database is told by its address or by its parts, and only several sites have a name to move.
const PLANTED: [(&str, &[Plant]); 4] = [
    (
        "pilot",
        &[
            ("state.encryption_key", ""),
            ("database.url", "database.hosting=external"),
            ("cache.url", "cache.kind=redis cache.hosting=external"),
            (
                "rollout.prometheus.token",
                "rollout.strategy=canary rollout.prometheus.url=https://prometheus.example.com \
                 rollout.queries=[{\"name\":\"up\",\"query\":\"up\",\"at_least\":1}]",
            ),
            ("registry.password", "registry.url=registry.example.com registry.user=ada"),
            ("monitoring.receivers.oncall", ""),
            ("prerequisites.external_keys.weather", ""),
            ("server.security.jwt_secret", ""),
            (
                "server.batch.webhooks[0].secret",
                "server.batch.enabled=true server.batch.webhooks=[{\"url\":\"https://hooks.example.com/\"}]",
            ),
            (
                "server.monitoring.traces.secret",
                "server.monitoring.traces.endpoint=https://collector.example.com/v1/traces",
            ),
            ("gates.sign_on_secret", ""),
            ("backup.credentials", "backup.enabled=true backup.destination=s3://backups/textnlp"),
        ],
    ),
    // Of a cluster's pods a proxy is refused whose address is a secret.
    (
        "staging",
        &[
            ("network.proxy.http", ""),
            ("network.proxy.https", ""),
            ("backup.credentials", "backup.enabled=true backup.destination=s3://backups/textnlp"),
        ],
    ),
    ("pilot", &[("database.password", "database.hosting=external database.host=db.example.com database.user=ada")]),
    (
        "multi-region",
        &[(
            "dns.key.secret",
            "dns.server=192.0.2.53 dns.zone=example.com dns.key.name=textnlp traffic.domain=textnlp.example.com \
             dns.addresses.primary=[192.0.2.1] dns.addresses.secondary=[192.0.2.2] dns.addresses.tertiary=[192.0.2.3]",
        )],
    ),
];

/// Where secrets may stand, as the schema of environments says.
fn positions() -> BTreeSet<String> {
    fn below(node: &Value, path: &str, schema: &Value, found: &mut BTreeSet<String>) {
        if let Some(name) = node["$ref"].as_str() {
            return below(schema.pointer(&name[1..]).unwrap(), path, schema, found);
        }
        if matches!(node["format"].as_str(), Some("textnlp-secret" | "textnlp-address")) {
            found.insert(path.to_owned());
        }
        let join = |name: &str| if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        for (name, inner) in node["properties"].as_object().into_iter().flatten() {
            below(inner, &join(name), schema, found);
        }
        below_one(&node["items"], &format!("{path}[]"), schema, found);
        below_one(&node["additionalProperties"], &join("*"), schema, found);
        for way in ["anyOf", "oneOf", "allOf"] {
            node[way].as_array().into_iter().flatten().for_each(|inner| below(inner, path, schema, found));
        }
    }
    fn below_one(node: &Value, path: &str, schema: &Value, found: &mut BTreeSet<String>) {
        if node.is_object() {
            below(node, path, schema, found);
        }
    }
    let schema = environment::schema();
    let schema = serde_json::to_value(schema).unwrap();
    let mut found = BTreeSet::new();
    below(&schema, "", &schema, &mut found);
    found
}

/// Everything that was written, by where.
#[derive(Default)]
struct Written(Vec<(String, Vec<u8>)>);

impl Written {
    fn add(&mut self, name: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.0.push((name.into(), bytes.into()));
    }

    fn folder(&mut self, folder: &Utf8Path) {
        for entry in folder.read_dir_utf8().unwrap() {
            let path = entry.unwrap().into_path();
            if path.is_dir() {
                self.folder(&path);
            } else {
                self.add(path.as_str(), std::fs::read(&path).unwrap());
            }
        }
    }

    fn holds(&self, text: &str) -> Option<&str> {
        let inside = |bytes: &[u8]| bytes.windows(text.len()).any(|window| window == text.as_bytes());
        self.0.iter().find(|(_, bytes)| inside(bytes)).map(|(name, _)| name.as_str())
    }
}

#[test]
fn canary_secrets_cover_every_secret_setting() {
    let is_under = |planted: &str, position: &str| match position.strip_suffix(".*") {
        Some(parent) => planted.rsplit_once('.').is_some_and(|(above, _)| above == parent),
        None => planted.replace("[0]", "[]") == position,
    };
    let planted: Vec<&str> = PLANTED.iter().flat_map(|(_, set)| set.iter().map(|(path, _)| *path)).collect();
    let missing: Vec<String> =
        positions().into_iter().filter(|position| !planted.iter().any(|planted| is_under(planted, position))).collect();
    assert!(missing.is_empty(), "plant a secret there too: {missing:?}");
}

#[test]
fn no_store_plan_event_or_report_contains_a_secret() {
    for (round, (environment, planted)) in PLANTED.iter().enumerate() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Utf8PathBuf::from_path_buf(folder.path().to_owned()).unwrap();
        std::fs::create_dir(folder.join("secrets")).unwrap();
        let (mut canaries, mut sets) = (Vec::new(), vec!["state.store=s3://states".to_owned()]);
        let key = Key::generate().secret();
        for (i, (path, besides)) in planted.iter().enumerate() {
            let canary = match *path {
                "state.encryption_key" => key.expose_text().unwrap().to_owned(),
                _ => format!("postgres://ada:CANARY{round}{i}QZX7W@db.example.com/x"),
            };
            let file = folder.join("secrets").join(i.to_string());
            textnlp_files::Replace::private().write(&file, canary.as_bytes()).unwrap();
            canaries.push(canary.split('@').next().unwrap().rsplit(':').next().unwrap().to_owned());
            sets.extend(besides.split_whitespace().map(str::to_owned));
            sets.push(format!("{path}=secret:file:{file}"));
        }
        let written = live(environment, &folder, &sets, &key);
        // The search finds what is there.
        assert!(written.holds("secret:file:").is_some() && written.holds("memory.database").is_some());
        for canary in &canaries {
            assert_eq!(written.holds(canary), None, "{canary}");
        }
        println!("{} pieces, {} bytes", written.0.len(), written.0.iter().map(|(_, bytes)| bytes.len()).sum::<usize>());
    }
}

/// A whole life in both kinds of stores: up, a look, a change, down.
fn live(name: &str, folder: &Utf8Path, sets: &[String], key: &textnlp_provider::Secret) -> Written {
    let overrides = Overrides { sets: sets.to_vec(), ..Overrides::default() };
    let loaded = Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap_or_else(|e| panic!("{e:?}"));
    let mut written = Written::default();
    written.add("the file, resolved", loaded.to_yaml(true));
    written.add("the report", format!("{:?}", loaded.report));
    written.add("the environment, debugged", format!("{:?}", loaded.environment));
    let environment = &loaded.environment;
    let digest = digest(b"server");
    let artifacts = Artifacts {
        program: Program { path: "/opt/textnlp-server".to_owned(), digest: digest.clone() },
        models: BTreeMap::from([("textnlp-tiny".to_owned(), digest.clone())]),
        templates: Some(digest),
        given: BTreeMap::new(),
        files: Default::default(),
        image: None,
        schema: Some(3),
    };
    let parts = components(environment, &Release::resolve(environment, &artifacts));
    let shown: Vec<_> = parts.iter().map(|(site, components)| (format!("{site:?}"), components)).collect();
    written.add("the components", serde_json::to_vec(&json!(shown)).unwrap());
    for sealed in [false, true] {
        let (world, bucket) = (World::new(), Bucket::new());
        let place = SiteLocation {
            provider: "memory".to_owned(),
            account: "1".to_owned(),
            region: "local".to_owned(),
            runtime: Runtime::Process,
        };
        let mut sites: BTreeMap<SiteName, RunSite> = BTreeMap::new();
        for (site, components) in &parts {
            let wanted = components.iter().flat_map(|one| world.cloud.lower(one, site).unwrap()).collect();
            let provider = Arc::new(world.cloud.clone());
            sites.insert(site.name.clone(), RunSite { place: place.clone(), provider, protect_data: false, wanted });
        }
        let local = folder.join(format!("state-{sealed}"));
        let remote = || -> Arc<dyn Store> {
            let objects = objects(&bucket, &world.clock);
            Arc::new(if sealed { objects.sealed(Key::parse(key).unwrap().remove(0)) } else { objects })
        };
        let stores: [Arc<dyn Store>; 2] = [remote(), Arc::new(Folder::at(&local))];
        for store in stores {
            let events = Mutex::new(Vec::new());
            let listener = |event: Event| events.lock().unwrap().push(event);
            let asks: [RunOptions; 3] = [UP, RunOptions { delete_data: DeleteData::All, ..UP }, DOWN_WITH_DATA];
            for (i, ask) in asks.into_iter().enumerate() {
                let mut sites = sites.clone();
                if i == 1 {
                    // A change, so that differences are written too.
                    let id = sites.values().next().unwrap().wanted[0].id.clone();
                    world.cloud.change_behind_our_back(&id, "cidr", json!("10.9.0.0/16"));
                }
                if ask == DOWN_WITH_DATA {
                    sites.values_mut().for_each(|site| site.wanted.clear());
                }
                let road = world.road(store.clone(), &sites, &environment.environment, &listener);
                let (plan, facts) = on(&world.clock, plan_with_refresh(&road, ask)).unwrap();
                written.add("a plan", serde_json::to_vec(plan.plan()).unwrap());
                let state =
                    on(&world.clock, State::load(store.clone(), &environment.environment, Lineage(Uuid::nil())))
                        .unwrap();
                let told = status::status(&facts, state.places(), Vec::new());
                written.add("a status", serde_json::to_vec(&told).unwrap());
                for resource in &told.resources {
                    let told = on(&world.clock, status::explain(&state, &facts, &resource.resource)).unwrap();
                    written.add("an explanation", serde_json::to_vec(&told).unwrap());
                }
                let arrival =
                    on(&world.clock, run_phases(&road, ask, &mut |_, _| true, &CancellationToken::new())).unwrap();
                written.add("an outcome", serde_json::to_vec(&arrival.outcome).unwrap());
                written.add("an arrival, debugged", format!("{arrival:?}"));
            }
            written.add("events", serde_json::to_vec(&*events.lock().unwrap()).unwrap());
            world.cloud.heal();
        }
        bucket.content().into_iter().for_each(|(name, bytes)| written.add(name, bytes));
        written.folder(&local);
    }
    written
}
