//! Environments as an operator meets them: files in, an environment or one complete report out.
#![allow(clippy::unwrap_used)]

mod components;
mod older;

use std::collections::{BTreeMap, BTreeSet};

use expect_test::{Expect, expect};
use serde_json::json;
use textnlp_orchestrator::environment::{
    self, Catalogue, Environment, FlagValue, Library, LoadError, Loaded, Offer, Overrides, Source, components, diff,
};
use textnlp_orchestrator::release::{Artifacts, Release};
use textnlp_provider::component::{Part, Program};

fn artifacts() -> Artifacts {
    let digest = textnlp_orchestrator::release::digest(b"server");
    Artifacts {
        program: Program { path: "/opt/textnlp-server".to_owned(), digest: digest.clone() },
        models: BTreeMap::from([("textnlp-tiny".to_owned(), digest.clone())]),
        templates: Some(digest),
        schema: Some(3),
        given: BTreeMap::new(),
    }
}

fn built_in(name: &str) -> Environment {
    match Library::built_in().load(name, &Overrides::default(), &Catalogue::default()) {
        Ok(loaded) => loaded.environment,
        Err(LoadError::Invalid(report)) => panic!("{name}:\n{report}"),
        Err(other) => panic!("{name}: {other}"),
    }
}

#[test]
fn every_environment_that_ships_loads_and_says_its_own_name() {
    let listed = Library::built_in().list();
    assert_eq!(listed.len(), 9);
    for entry in listed {
        assert_eq!(built_in(&entry.name).environment.as_str(), entry.name);
    }
}

const GOOD: &str = "\
extends: base
environment: mine
phase: staging
sites: [{ name: here, provider: onprem }]
";

fn load(text: &str, overrides: &Overrides, catalogue: &Catalogue) -> Result<Loaded, LoadError> {
    let source = Source { label: "mine.yaml".to_owned(), bytes: text.as_bytes().to_vec() };
    Library::built_in().load_source(source, overrides, catalogue)
}

fn said(result: Result<Loaded, LoadError>) -> String {
    match result {
        Ok(loaded) => loaded.report.to_string(),
        Err(LoadError::Invalid(report)) => report.to_string(),
        Err(other) => other.to_string(),
    }
}

/// The report about a file, whether it loads or not.
fn check(text: &str, expected: Expect) {
    expected.assert_eq(&said(load(text, &Overrides::default(), &Catalogue::default())));
}

/// The report about `GOOD` and some lines more.
fn check_more(more: &str, expected: Expect) {
    check(&format!("{GOOD}{more}"), expected);
}

#[test]
fn every_mistake_of_a_file_is_in_one_report() {
    check(
        "\
extends: base
environment: My_Env
phase: stagign
sites:
  - { name: here, provider: onprem, regoin: local }
  - { name: here, provider: onprem, port: 70000 }
scaling: { min: three, max: 0 }
scalling: { min: 1 }
server:
  api: { timeout: 10MB, max_request_size: 10, port: \"8443\" }
  security: { rate_limit: 1000, jwt_expiry: soon }
  api: {}
database: { kind: sqlite, password: hunter2 }
models: textnlp-tiny
backup: { enabled: yes }
cluster: { version: 1.30 }
gates: { error_rate: 2 }
replicas: 3
port: 1
",
        expect![[r#"
            mine.yaml:2:14: error: `environment`: `My_Env` is not a valid environment name: use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter; choose such a name
            mine.yaml:3:8: error: `phase`: `stagign` is not one of `development`, `staging`, `pilot`, `scale-up`, `enterprise`, `multi-region`, `air-gapped`, `optimized`; did you mean `staging`?
            mine.yaml:5:37: error: `sites[0].regoin`: `regoin` is not a key of `sites[0]`; did you mean `region`?
            mine.yaml:6:43: error: `sites[1].port`: 70000 is out of range; write a number from 1 to 65535
            mine.yaml:7:17: error: `scaling.min`: the text `three` stands where a whole number is expected; write a whole number
            mine.yaml:7:29: error: `scaling.max`: 0 is out of range; write a number from 1 to 1000
            mine.yaml:8:1: error: `scalling`: `scalling` is not a key of an environment; did you mean `scaling`?
            mine.yaml:10:19: error: `server.api.timeout`: `MB` is not a unit of time; write seconds as a number, or a number and one of ms, s, m, h, d, such as `5m`
            mine.yaml:10:43: error: `server.api.max_request_size`: the size `10` has no unit; write a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as `10MB`
            mine.yaml:10:53: error: `server.api.port`: the text `8443` stands where a whole number is expected; write a whole number
            mine.yaml:11:27: error: `server.security.rate_limit`: `1000` stands where a rate such as `1000/hour` is expected; write a rate such as `1000/hour`
            mine.yaml:11:45: error: `server.security.jwt_expiry`: `soon` is not a length of time; write seconds as a number, or a number and one of ms, s, m, h, d, such as `5m`
            mine.yaml:12:3: error: the key `api` is here twice, first at mine.yaml:10:3; keep one of them
            mine.yaml:13:37: error: `database.password`: a secret is written out here; write `secret:env:NAME`, `secret:file:PATH` or `secret:store:NAME`, and keep the value there
            mine.yaml:14:9: error: `models`: the text `textnlp-tiny` stands where a list is expected; begin each entry with `- `, or write `[a, b]`
            mine.yaml:15:20: error: `backup.enabled`: `yes` is a text in YAML 1.2; write `true` or `false`
            mine.yaml:16:21: error: `cluster.version`: `1.30` is read as a number or a boolean where a text is expected; put quotes around it: "1.30"
            mine.yaml:17:22: error: `gates.error_rate`: 2 is out of range; write a number from 0 to 1
            mine.yaml:18:1: error: `replicas`: `replicas` is not a key of an environment; did you mean `database.replicas`?
            mine.yaml:19:1: error: `port`: `port` is not a key of an environment; remove it; its keys are `extends`, `environment`, `description`, `phase`, `state`, `sites`, `models`, `server`, `data`, `database`, `cache`, `tls`, `scaling`, `gpu`, `cluster`, `network`, `storage`, `registry`, `monitoring`, `backup`, `traffic`, `dns`, `replication`, `dr`, `rollout`, `tags`, `budget`, `gates`, `account`, `prerequisites`, `features`"#]],
    );
}

#[test]
fn contradictions_are_named_where_they_stand() {
    check_more(
        "\
tls: { mode: \"off\" }
scaling: { min: 4, max: 2, adapter: true }
database: { kind: sqlite, hosting: managed, replicas: 1 }
cache: { kind: redis }
dr: { mode: automatic }
traffic: { mode: dns, weights: { hree: 1 } }
tags: { textnlp-lineage: x }
account: { mandatory_tags: [cost-centre] }
gates: { tokens_min: 100, tokens_max: 50, think_min: 5s }
models:
  - { name: a, source: bundeld, role: default }
  - { name: a, source: \"http://x/y\", role: default, digest: sha256:12 }
",
        expect![[r#"
            mine.yaml:1:1: error: `replication.database.mode`: after a failover the database would be gone; write `mode: streaming`
            mine.yaml:5:14: error: `tls.mode`: keys would travel in the open; use `local-ca`, `acme` or `existing` from staging on
            mine.yaml:6:25: error: `scaling.max`: at most 2 is less than at least 4; write 4 or more
            mine.yaml:6:37: error: `scaling.adapter`: it tells an autoscaler how many requests there are, and no autoscaler asks; add `max` above `min` and `requests_per_second: 1000`, or leave it out
            mine.yaml:7:36: error: `database.hosting`: SQLite is a file; nobody hosts it (managed); remove it, or use `kind: postgres`
            mine.yaml:8:8: error: `cache.hosting`: nobody says who runs Redis; write `hosting: managed`, `cluster` or `external`
            mine.yaml:9:13: error: `dr.mode`: automatic failover needs a third place that grants it; add `witness: { provider: …, region: … }` outside both sites, or write `mode: manual`
            mine.yaml:9:13: error: `dr.mode`: there is no second site to fail over to; add a site, or write `mode: none`
            mine.yaml:10:10: error: `traffic.domain`: DNS needs a name; write `domain: textnlp.example.com`
            mine.yaml:10:40: error: `traffic.weights.hree`: there is no site `hree`; did you mean `here`?
            mine.yaml:11:7: error: `tags`: `textnlp-lineage` is one of our own tags; choose another name
            mine.yaml:11:7: error: `tags`: the account demands the tag `cost-centre`; add `cost-centre: …`
            mine.yaml:13:8: error: `gates.think_max`: it is shorter than `think_min`; swap them
            mine.yaml:13:39: error: `gates.tokens_max`: it is less than `tokens_min`; swap them
            mine.yaml:15:24: error: `models[0].source`: `bundeld` is not a source; did you mean `bundled`?
            mine.yaml:16:13: error: `models[1].name`: `models[0]` has the name `a` too; give each model a name of its own
            mine.yaml:16:24: error: `models[1].source`: the model would come over a line that anybody can change; use `https:`
            mine.yaml:16:44: error: `models[1].role`: 2 models are the default; leave `role: default` with one
            mine.yaml:16:61: error: `models[1].digest`: this is not a digest; write `sha256:` and 64 hexadecimal digits"#]],
    );
    check(
        "\
extends: base
environment: mine
sites:
  - { name: a, provider: onprem }
  - { name: b, provider: onprem, role: standby }
traffic: { weights: { a: 0, b: 10 } }
dr: { mode: automatic, rpo: 1s, rto: 3s, warm: false }
replication: { database: { mode: streaming } }
",
        expect![[r#"
            (built-in) base.yaml:17:11: error: `server.api.port`: two sites of one machine want port 8443; give each its own port; in a site: `port` and `metrics_port`
            (built-in) base.yaml:31:19: error: `server.monitoring.metrics_port`: two sites of one machine want port 9090; give each its own port; in a site: `port` and `metrics_port`
            mine.yaml:6:32: error: `traffic.weights.b`: a standby has no traffic before a failover; write 0; the failover gives it its share
            mine.yaml:7:13: error: `dr.mode`: automatic failover needs a third place that grants it; add `witness: { provider: …, region: … }` outside both sites, or write `mode: manual`
            mine.yaml:7:38: error: `dr.rto`: a cold site cannot answer within 3s; write `warm: true`, or allow more than 20 minutes
            mine.yaml:7:38: error: `dr.rto`: a lost site is noticed only after 3s (`watch_every` 1s × `lost_after` 3), and another takes its place within 5s more: 8s in all; allow more time, or look more often (`watch_every`, `lost_after`)
            mine.yaml:8:26: error: `replication.database.max_lag`: a lag of 5s may be lost, and only 1s may be; allow less lag, or a larger `dr.rpo`"#]],
    );
}

#[test]
fn all_layers_are_checked_even_where_a_stronger_one_wins() {
    let folder = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
    std::fs::write(folder.join("lower.yaml"), "extends: base\nscaling: { min: none }\nserver: { api: { prot: 1 } }\n")
        .unwrap();
    std::fs::write(folder.join("upper.yaml"), "extends: lower\nenvironment: upper\nscaling: { min: 2 }\nsites: []\n")
        .unwrap();
    let overrides = Overrides {
        variables: BTreeMap::from([("TEXTNLP_SET__gpu__size".to_owned(), "smal".to_owned())]),
        sets: vec!["scaling.maxx=3".to_owned(), "nonsense".to_owned()],
        flags: Vec::new(),
    };
    let said = said(Library::from_folder(folder).load("upper", &overrides, &Catalogue::default()));
    expect![[r#"
        FOLDER/lower.yaml:2:17: error: `scaling.min`: the text `none` stands where a whole number is expected; write a whole number
        FOLDER/lower.yaml:3:18: error: `server.api.prot`: `prot` is not a key of `server.api`; did you mean `port`?
        FOLDER/upper.yaml:4:8: error: `sites`: the list has 0 entries; at least 1 must be there
        $TEXTNLP_SET__gpu__size: error: `gpu.size`: `smal` is not one of `none`, `small`, `medium`, `large`, `xlarge`; did you mean `small`?
        --set nonsense: error: there is no `=` in it; write `--set scaling.min=2`
        --set scaling.maxx: error: `scaling.maxx`: `maxx` is not a key of `scaling`; did you mean `max`?"#]].assert_eq(&said.replace(folder.as_str(), "FOLDER"));
}

#[test]
fn stronger_layers_win_and_every_value_knows_where_it_came_from() {
    let overrides = Overrides {
        variables: BTreeMap::from([
            ("TEXTNLP_SET__scaling__min".to_owned(), "2".to_owned()),
            ("TEXTNLP_SET__gates__users".to_owned(), "7".to_owned()),
            ("REGION".to_owned(), "local".to_owned()),
        ]),
        sets: vec![
            "gates.users=8".to_owned(),
            "sites.here.region=${REGION}".to_owned(),
            "models[0].context=512".to_owned(),
        ],
        flags: vec![FlagValue {
            flag: "--provider".to_owned(),
            path: "sites[*].provider".to_owned(),
            value: json!("other"),
        }],
    };
    let loaded = load(GOOD, &overrides, &Catalogue::default()).unwrap();
    let e = &loaded.environment;
    assert_eq!((e.scaling.min, e.gates.users, e.models[0].context), (2, 8, Some(512)));
    assert_eq!((e.sites[0].region.as_str(), e.sites[0].provider.as_str()), ("local", "other"));
    let line = |path: &str| {
        loaded
            .explain(path)
            .iter()
            .map(|f| format!("{} = {} ({})", f.path, f.value, f.origin))
            .collect::<Vec<_>>()
            .join("\n")
    };
    let all = [
        "environment",
        "sites[0]",
        "scaling",
        "gates.users",
        "models[0].context",
        "server.api.port",
        "data",
        "gates.p95_ms",
    ]
    .map(line);
    expect![[r#"
        environment = "mine" (mine.yaml:2:14)
        sites[0].name = "here" (mine.yaml:4:17)
        sites[0].role = "primary" (default)
        sites[0].provider = "other" (--provider)
        sites[0].runtime = "process" (default)
        sites[0].region = "local" (--set sites.here.region)
        scaling.min = 2 ($TEXTNLP_SET__scaling__min)
        scaling.adapter = false (default)
        gates.users = 8 (--set gates.users)
        models[0].context = 512 (--set models[0].context)
        server.api.port = 8443 ((built-in) base.yaml:17:11)
        data = "disposable" (default of phase staging)
        gates.p95_ms = 500 (default)"#]]
    .assert_eq(&all.join("\n"));
}

#[test]
fn what_is_shown_loads_again_and_is_the_same() {
    for entry in Library::built_in().list() {
        let first = Library::built_in().load(&entry.name, &Overrides::default(), &Catalogue::default()).unwrap();
        let again = load(&first.to_yaml(true), &Overrides::default(), &Catalogue::default());
        let again = again.unwrap_or_else(|e| panic!("{}: {e}\n{}", entry.name, first.to_yaml(true)));
        assert_eq!(diff(&first, &again), [], "{}", entry.name);
    }
}

#[test]
fn shown_values_carry_their_places() {
    let loaded = Library::built_in().load("staging", &Overrides::default(), &Catalogue::default()).unwrap();
    let shown = loaded.to_yaml(true);
    let head: Vec<&str> = shown.lines().take(24).collect();
    expect![[r#"
        environment: staging                                      # (built-in) staging.yaml:3:14
        description: "TLS, keys and a load test on this machine"  # (built-in) staging.yaml:4:14
        phase: staging                                            # (built-in) staging.yaml:5:8
        state:
          store: local                                            # (built-in) base.yaml:4:10
        sites:
          - name: here                                            # (built-in) staging.yaml:7:13
            role: primary                                         # (built-in) staging.yaml:7:25
            provider: onprem                                      # (built-in) staging.yaml:7:44
            runtime: process                                      # (built-in) staging.yaml:7:61
            region: local                                         # (built-in) staging.yaml:7:78
        models:
          - name: textnlp-tiny                                    # (built-in) base.yaml:7:11
            source: bundled                                       # (built-in) base.yaml:8:13
            role: default                                         # (built-in) base.yaml:9:11
            quantize: q8_0                                        # (built-in) base.yaml:10:15
            context: 1024                                         # (built-in) base.yaml:11:14
            preload: true                                         # (built-in) base.yaml:12:14
        server:
          api:
            host: 0.0.0.0                                         # (built-in) base.yaml:16:11
            port: 8443                                            # (built-in) base.yaml:17:11
            workers: 4                                            # (built-in) base.yaml:18:14
            timeout: 5m                                           # (built-in) base.yaml:19:14"#]]
    .assert_eq(&head.join("\n"));
}

#[test]
fn the_difference_of_two_environments_names_each_value() {
    let load = |name| Library::built_in().load(name, &Overrides::default(), &Catalogue::default()).unwrap();
    let changes = diff(&load("development"), &load("staging"));
    let text = |v: Option<serde_json::Value>| v.map_or("–".to_owned(), |v| v.to_string());
    let lines: Vec<_> =
        changes.into_iter().map(|c| format!("{}: {} → {}", c.path, text(c.left), text(c.right))).collect();
    expect![[r#"
        environment: "development" → "staging"
        description: "One process on this machine, for whoever works on it" → "TLS, keys and a load test on this machine"
        phase: "development" → "staging"
        server.api.host: "127.0.0.1" → "0.0.0.0"
        server.api.port: 8080 → 8443
        server.api.workers: 2 → 4
        server.api.drain: "5s" → "30s"
        server.security.api_keys_enabled: false → true
        server.monitoring.log_level: "DEBUG" → "INFO"
        tls.mode: "off" → "local-ca"
        storage.model_cache: "1GB" → "50GB""#]].assert_eq(&lines.join("\n"));
}

#[test]
fn secrets_are_references_and_a_missing_variable_is_named() {
    let text = format!(
        "{GOOD}database: {{ kind: postgres, hosting: external, host: \"${{DB_HOST}}\", user: u, password: \"${{DB_PASSWORD}}\" }}\n"
    );
    let variables =
        BTreeMap::from([("DB_HOST".to_owned(), "db".to_owned()), ("DB_PASSWORD".to_owned(), "hunter2".to_owned())]);
    let overrides = Overrides { variables, ..Overrides::default() };
    let loaded = load(&text, &overrides, &Catalogue::default()).unwrap();
    assert_eq!(loaded.environment.database.host.as_deref(), Some("db"));
    assert_eq!(loaded.environment.database.password.as_ref().unwrap().to_string(), "secret:env:DB_PASSWORD");
    assert!(!format!("{loaded:?}{}", loaded.to_yaml(true)).contains("hunter2"));
    check(
        &text,
        expect![
            "mine.yaml:5:54: error: `database.host`: the variable `DB_HOST` is not set; export DB_HOST=…, or write `${DB_HOST:-otherwise}`
mine.yaml:5:87: not yet: `database.password`: the variable `DB_PASSWORD` is not set; export DB_PASSWORD=…"
        ],
    );
    check_more(
        "database: { kind: postgres, url: \"postgresql://u:hunter2@db/x\" }\n",
        expect![
            "mine.yaml:5:34: error: `database.url`: a password is written out in this URL; write `secret:env:NAME`, or a URL without a password and the password as `password: secret:env:NAME`"
        ],
    );
}

#[test]
fn what_a_provider_cannot_do_yet_is_refused_later_and_what_nobody_can_do_now() {
    let words = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<BTreeSet<_>>();
    let mut catalogue = Catalogue::default();
    let choices = words(&["database.kind=sqlite", "cache.kind=memory", "tls.mode=off", "tls.mode=local-ca"]);
    catalogue.providers.insert(
        "onprem".to_owned(),
        Offer { linked: true, how_to_get: String::new(), runtimes: words(&["process"]), choices },
    );
    let cloud = Offer { how_to_get: "build with `--features all`".to_owned(), ..Offer::default() };
    catalogue.providers.insert("cumulus".to_owned(), cloud);
    let check = |more: &str, expected: Expect| {
        expected.assert_eq(&said(load(&format!("{GOOD}{more}"), &Overrides::default(), &catalogue)))
    };
    check("", expect![[r#""#]]);
    check(
        "database: { kind: postgres, hosting: managed }\ncache: { kind: redis, hosting: managed }\n",
        expect![[r#"
        mine.yaml:5:19: not yet: `database.kind`: `postgres/managed` is not there yet; `onprem` offers `sqlite` today
        mine.yaml:6:16: not yet: `cache.kind`: `redis/managed` is not there yet; `onprem` offers `memory` today"#]],
    );
    let idle = [
        "rollout.bake",
        "rollout.deadline",
        "traffic.ttl",
        "traffic.health_path",
        "monitoring.retention",
        "monitoring.alerts",
    ];
    catalogue.providers.get_mut("onprem").unwrap().choices.extend(idle.map(|field| format!("{field}=none")));
    let check = |more: &str, expected: Expect| {
        expected.assert_eq(&said(load(&format!("{GOOD}{more}"), &Overrides::default(), &catalogue)))
    };
    // Written out as they are anyway, they are no wish.
    check(
        "rollout: { bake: 10m, deadline: 1h }\ntraffic: { ttl: 60, health_path: /health }\nmonitoring: { retention: 15d, alerts: { disk: 90 } }\n",
        expect![[r#""#]],
    );
    check(
        "rollout: { bake: 5m, deadline: 2h }\ntraffic: { ttl: 5, health_path: /ready }\nmonitoring: { retention: 30d, alerts: { disk: 70, memory: 70 } }\n",
        expect![[r#"
            mine.yaml:5:18: not yet: `rollout.bake`: `5m` is not there yet; remove it: `onprem` does nothing with it today
            mine.yaml:5:32: not yet: `rollout.deadline`: `2h` is not there yet; remove it: `onprem` does nothing with it today
            mine.yaml:6:17: not yet: `traffic.ttl`: `5s` is not there yet; remove it: `onprem` does nothing with it today
            mine.yaml:6:33: not yet: `traffic.health_path`: `/ready` is not there yet; remove it: `onprem` does nothing with it today
            mine.yaml:7:26: not yet: `monitoring.retention`: `30d` is not there yet; remove it: `onprem` does nothing with it today
            mine.yaml:7:39: not yet: `monitoring.alerts`: `memory, disk` is not there yet; remove it: `onprem` does nothing with it today"#]],
    );
    let with =
        |site: &str| said(load(&GOOD.replace("name: here, provider: onprem", site), &Overrides::default(), &catalogue));
    expect!["mine.yaml:4:33: not yet: `sites[0].provider`: provider `cumulus` is not part of this program; build with `--features all`"].assert_eq(&with("name: here, provider: cumulus, runtime: pods"));
    expect!["mine.yaml:4:33: error: `sites[0].provider`: there is no provider `onprm`; did you mean `onprem`?"]
        .assert_eq(&with("name: here, provider: onprm"));
    expect!["mine.yaml:4:50: not yet: `sites[0].runtime`: `onprem` cannot run `proces` yet; did you mean `process`?"]
        .assert_eq(&with("name: here, provider: onprem, runtime: proces"));
    expect!["mine.yaml:4:33: error: `sites[0].provider`: no provider could be told from the surroundings; name one, such as `sites[0].provider: onprem`"].assert_eq(&with("name: here, provider: auto"));
    catalogue.detected = Some(("onprem".to_owned(), "no account is signed in".to_owned()));
    let text = GOOD.replace("provider: onprem", "provider: auto");
    let loaded = load(&text, &Overrides::default(), &catalogue).unwrap();
    assert_eq!(loaded.environment.sites[0].provider, "onprem");
    assert_eq!(loaded.explain("sites[0].provider")[0].origin.to_string(), "detected (no account is signed in)");
}

const OLD_FLAT: &str = "\
server: { host: localhost, port: 8080, workers: 2 }
database: { host: localhost, port: 5432, name: textnlp_dev, user: postgres, password: \"${DB_PASSWORD}\" }
redis: { host: localhost, port: 6379, db: 0 }
models: { path: ./models, cache_size: 1GB, download_on_startup: false }
security: { jwt_secret: \"${JWT_SECRET}\", api_keys_enabled: false }
logging: { level: DEBUG, file: logs/textnlp.log }
";

const OLD_NESTED: &str = "\
textnlp:
  api: { host: 0.0.0.0, port: 8080, workers: 4, timeout: 300, max_request_size: 10MB }
  models: { default: gpt2, cache_dir: /models, max_cache_size: 50GB, preload: [gpt2, bert] }
  database: { url: \"${DATABASE_URL}\", pool_size: 20, max_overflow: 40 }
  redis: { url: \"redis://cache:6379/0\", max_connections: 100 }
  security: { jwt_algorithm: RS256, jwt_expiry: 3600, api_key_header: X-API-Key, rate_limit: 1000/hour }
  monitoring: { metrics_port: 9090, enable_tracing: true, log_level: INFO }
";

const OLD_VARIABLES: &str = "\
# staging
ENVIRONMENT=staging
DEBUG=false
LOG_LEVEL=INFO
DATABASE_URL=postgresql://postgres:hunter2@staging-db:5432/textnlp_staging
export REDIS_URL=\"redis://staging-redis:6379/0\"
";

#[test]
fn init_writes_what_is_missing_and_never_over_what_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(folder.path()).unwrap().join("environments");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("staging.yaml"), "extends: staging\nscaling: { min: 2 }\n").unwrap();
    let written = environment::init(&folder).unwrap();
    assert_eq!(
        written.iter().filter(|w| !w.written).map(|w| w.path.file_name().unwrap()).collect::<Vec<_>>(),
        ["staging.yaml"]
    );
    assert!(environment::init(&folder).unwrap().iter().all(|w| !w.written));
    // A file of one's own stands in for the one that ships, and may extend it.
    let library = Library::from_working_directory(&folder.join("deep/inside"));
    let loaded = library.load("staging", &Overrides::default(), &Catalogue::default()).unwrap();
    assert_eq!(loaded.environment.scaling.min, 2);
    assert!(
        loaded.files[0].ends_with("environments/staging.yaml") && loaded.files[1].starts_with("(built-in)"),
        "{:?}",
        loaded.files
    );
    let name = "canteen".parse().unwrap();
    let path = environment::new(&library, &folder, &name, "staging").unwrap();
    assert_eq!(
        library.load_file(&path, &Overrides::default(), &Catalogue::default()).unwrap().environment.environment,
        name
    );
    assert!(matches!(
        environment::new(&library, &folder, &name, "staging"),
        Err(environment::AuthorError::Exists { .. })
    ));
    assert!(library.list().iter().any(|l| l.name == "canteen" && l.file.is_some()));
    let Err(LoadError::NoSuch(no)) = library.load("stagin", &Overrides::default(), &Catalogue::default()) else {
        panic!()
    };
    assert_eq!(no.fix(), "did you mean `staging`?");
    assert!(matches!(
        library.load("../staging", &Overrides::default(), &Catalogue::default()),
        Err(LoadError::NoSuch(_))
    ));
}

#[test]
fn circles_and_missing_environments_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
    std::fs::write(folder.join("a.yaml"), "extends: b\nenvironment: a\n").unwrap();
    std::fs::write(folder.join("b.yaml"), "extends: a\n").unwrap();
    std::fs::write(folder.join("c.yaml"), "extends: bse\nenvironment: c\nsites: []\n").unwrap();
    let library = Library::from_folder(folder);
    let a = said(library.load("a", &Overrides::default(), &Catalogue::default()));
    assert!(
        a.contains(
            "FOLDER/b.yaml:1:10: error: `extends`: `a` extends itself".replace("FOLDER", folder.as_str()).as_str()
        ),
        "{a}"
    );
    let c = said(library.load("c", &Overrides::default(), &Catalogue::default()));
    assert!(c.contains("there is no environment `bse`; did you mean `base`?"), "{c}");
}

#[test]
fn the_schema_in_the_repository_is_the_one_that_the_types_make() {
    let made = serde_json::to_string_pretty(&environment::schema()).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../environments/environment.schema.json");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap() == made,
        "run this test with UPDATE_EXPECT=1 and commit environments/environment.schema.json"
    );
}

/// A zone for two sites.
const DNS: &str = "dns: { server: 192.0.2.53, zone: example.com, key: { name: update, secret: \"secret:env:TSIG\" }, \
                   addresses: { here: [192.0.2.1], there: [\"2001:db8::2\"] } }";

fn zone(server: &str, traffic: &str) -> String {
    let dns = DNS.replace("192.0.2.53", server);
    format!(
        "dr: {{ mode: automatic, witness: {{ provider: onprem, region: local }} }}\nreplication: {{ database: {{ mode: streaming }} }}\n\
         traffic: {{ mode: gateway, domain: textnlp.example.com{traffic} }}\n{dns}\n"
    )
}

/// A second site of the same machine.
const STANDBY: &str = "role: standby, port: 9443, metrics_port: 9444";

/// Each line alone, added to a good file, is answered by the sentence beside it.
#[test]
fn each_rule_answers_with_its_own_sentence() {
    let site =
        |fields: &str| GOOD.replace("name: here, provider: onprem", &format!("name: here, provider: onprem, {fields}"));
    const OUTSIDE: &str = "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, host: db.example.com }";
    const URL: &str = "url: \"http://prometheus-operated.monitoring:9090\"";
    const PROMETHEUS: &str = "{ url: \"http://prometheus-operated.monitoring:9090\" }";
    const QUERY: &str = "{ name: errors, query: \"sum(x{pod=~'api-{{ new }}-.*'})\", at_most: 0.01 }";
    const DOMAIN: &str = "traffic: { domain: text.example.com }\n";
    let there = |ingress: &str| site(&format!("runtime: kubernetes, cluster: {{ ingress: {{ {ingress} }} }}"));
    let within = |settings: &str| site(&format!("runtime: kubernetes, cluster: {{ {settings} }}"));
    let two = |second: &str, more: &str| {
        GOOD.replace(
            "provider: onprem }",
            &format!("provider: onprem }}, {{ name: there, provider: onprem, {second} }}"),
        ) + more
    };
    let plus = |more: &str| format!("{GOOD}{more}\n");
    let rolled = |more: &str| format!("{}rollout: {{ strategy: canary, {more} }}\n", site("runtime: kubernetes"));
    let asked = |prometheus: &str, queries: &str| {
        let prometheus = if prometheus.is_empty() { URL } else { prometheus };
        rolled(&format!("prometheus: {{ {prometheus} }}, queries: [{queries}]"))
    };
    let phase =
        |phase: &str, more: &str| format!("{}{more}\n", GOOD.replace("phase: staging", &format!("phase: {phase}")));
    let cases = [
        (site("role: standby"), "0 sites are primary"),
        (two("port: 9443, metrics_port: 9444", ""), "2 sites are primary"),
        (two("role: standby, metrics_port: 9444", ""), "two sites of one machine want port 8443"),
        (two("role: standby, port: 9443", ""), "two sites of one machine want port 9090"),
        (two("role: standby, services: [database-primary], port: 9443, metrics_port: 9444", ""), "the site is standby, but holds the database that is written"),
        (two("role: standby, port: 9443, metrics_port: 9444", "traffic: { weights: { here: 1, there: 1 } }"), "a standby has no traffic before a failover"),
        (two("role: secondary, services: [models], port: 9443, metrics_port: 9444", "traffic: { weights: { here: 1, there: 1 } }"), "this site does not run the API"),
        (site("region: \"a b\""), "this is not the name of a region"),
        (site("cluster: { ingress: { class: nginx, issuer: x } }"), "the site runs by `process`, in no cluster"),
        (there("class: nginx, issuer: x"), "nobody says under which name clients come"),
        (there("class: nginx") + DOMAIN, "the certificate that clients see comes from one place"),
        (there("class: nginx, issuer: x, tls_secret: y") + DOMAIN, "the certificate that clients see comes from one place"),
        (there("issuer: x") + DOMAIN, "an ingress without a class is nobody's"),
        (there("class: \"a b\", issuer: x") + DOMAIN, "`a b` is not the name of an object"),
        (there("kind: route, issuer: x") + DOMAIN, "nothing reads it with `kind: route`"),
        (there("kind: rout") + DOMAIN, "`rout` is not one of `ingress`, `route`, `gateway`"),
        (there("kind: gateway") + DOMAIN, "nobody says which Gateway leads clients"),
        (there("kind: gateway, gateway: web") + DOMAIN, "it has to say a namespace and a name"),
        (there("kind: gateway, gateway: a.b/web") + DOMAIN, "this is not the name of a namespace"),
        (there("kind: gateway, gateway: infra/We b") + DOMAIN, "`We b` is not the name of an object"),
        (there("kind: gateway, gateway: infra/web, section: \"a b\"") + DOMAIN, "`a b` is not the name of an object"),
        (there("kind: gateway, gateway: infra/web, port: 0") + DOMAIN, "nobody listens there"),
        (there("kind: gateway, gateway: infra/web, class: nginx") + DOMAIN, "the Gateway has its class and the certificate that clients see"),
        (there("kind: gateway, gateway: infra/web"), "nobody says under which name clients come"),
        (there("class: nginx, issuer: x, gateway: infra/web") + DOMAIN, "only a Gateway has one"),
        (there("kind: route, section: https") + DOMAIN, "only a Gateway has one"),
        (there("kind: gateway, gateway: infra/web") + DOMAIN + "tls: { mode: existing, existing: site-tls }\n", "it is told the authority of ours alone"),
        (site("runtime: kubernetes, cluster: { address: \"https://x\", ingress: { kind: route } }") + DOMAIN, "it contradicts `address`"),
        (site("cluster: { saml: a.json }"), "the site runs by `process`, in no cluster"),
        (site("cluster: { load_balancer: true }"), "the site runs by `process`, in no cluster"),
        (site("cluster: { database_image: a }"), "the site runs by `process`, in no cluster"),
        (within("analytics: { schedule: \"@hourly\", image: a }"), "`@hourly` is not a line of cron"),
        (within("analytics: { }"), "the image is one of your own"),
        (within("analytics: { image: a, command: [] }"), "it is empty, or a word of it is"),
        (within("analytics: { image: a, deadline: 2d }"), "no run ends like that"),
        (within("analytics: { image: a, memory: 1MiB }"), "no program begins with that"),
        (within("analytics: { image: a, spot: often }"), "`often` is not one of `never`, `prefer`, `only`"),
        (within("models: { kind: node }"), "`hostPath` alone, which the restricted profile of the namespace refuses"),
        (within("models: { kind: image }"), "nobody says which image has the models"),
        (within("models: { kind: claim, reference: a }"), "with `kind: claim` nothing reads it"),
        (within("models: { size: 1GiB }"), "with `kind: pod` nothing reads it"),
        (within("models: { kind: claim, storage_class: A_b }"), "`A_b` is not the name of an object"),
        (within("node_selector: { \"a b\": c }"), "no node has the label `a b: c`"),
        (within("tolerations: [{ operator: Exists, value: a }]"), "`Equal` compares with a value"),
        (within("tolerations: [{ value: a }]"), "nobody says which taint"),
        (within("tolerations: [{ key: a, value: b, effect: Maybe }]"), "`Maybe` is not one of `NoSchedule`"),
        (within("runtime_class: \"-\""), "`-` is not the name of an object"),
        (within("saml: /nowhere/saml.json"), "there is no file /nowhere/saml.json"),
        (within("saml: /etc/hosts"), "/etc/hosts: it is no JSON"),
        (site("host: example"), "`example` is not an address of this machine"),
        (plus("server: { api: { port: 9090 } }"), "port 9090 is wanted by `server.api.port` too"),
        (plus("server: { api: { port: 443 } }"), "port 443 needs a privilege"),
        (plus("server: { api: { timeout: 0 } }"), "no answer could be that fast"),
        (plus("server: { api: { base_domain: '*.example.com' } }"), "is not a domain that has subdomains"),
        (plus("server: { api: { base_domain: 10.0.0.1 } }"), "is not a domain that has subdomains"),
        (plus("server: { api: { max_request_size: 1B } }"), "no request is that small"),
        (plus("server: { security: { jwt_expiry: 0 } }"), "a token would be old when it is made"),
        (plus("server: { security: { api_key_header: \"a b\" } }"), "`a b` is not a header"),
        (plus("server: { security: { api_keys_enabled: false } }"), "anybody could generate without a key"),
        (plus("server: { security: { jwt_secret: secret:env:X } }"), "this secret is not used"),
        (plus("models: [{ name: ../x }]"), "cannot be the name of a model"),
        (plus("models: [{ name: x, source: \"hf:x\" }]"), "names no model"),
        (plus("models: [{ name: x, source: \"fiel:x\" }]"), "did you mean `file:`?"),
        (plus("models: [{ name: x }, { name: y }]"), "no model has `role: default`"),
        (plus("database: { kind: postgres, user: u }"), "we make this PostgreSQL, with a user and a password of its own"),
        (plus("database: { kind: postgres, hosting: external }"), "an external PostgreSQL needs its address"),
        (plus("database: { kind: postgres, hosting: managed, host: db }"), "we make this PostgreSQL"),
        (plus("database: { kind: postgres, url: \"mysql://db/x\" }"), "this is not the address of a PostgreSQL"),
        (plus("database: { kind: postgres, url: \"postgresql://db/x\", host: db }"), "the address is in `database.url` already"),
        (plus("database: { replicas: 2 }"), "SQLite has no replicas"),
        (site("region: far").to_owned() + "scaling: { min: 2 }\n", "replicas on several machines cannot share a file"),
        (plus("cache: { hosting: managed }"), "the cache is the server's own memory"),
        (plus("cache: { url: \"redis://x\" }"), "the cache is the server's own memory and has no address"),
        (plus("cache: { kind: redis, hosting: external }"), "an external Redis needs its address"),
        (plus("state: { store: locla }"), "did you mean `local`?"),
        (plus("network: { cidr: 10.0.0.0 }"), "is not an address range"),
        (plus("tls: { mode: acme }"), "a public authority certifies a name"),
        (plus("tls: { mode: existing }"), "an existing certificate is named nowhere"),
        (plus("tls: { existing: c-1 }"), "with `mode: local-ca` nothing reads this"),
        (plus("tls: { names: [\"-x\"] }"), "neither a DNS name nor an address"),
        (plus("scaling: { max: 3 }"), "nothing says when to add a replica"),
        (plus("scaling: { cpu: 70 }"), "the number of replicas is fixed"),
        (plus("cluster: { min_nodes: 3, max_nodes: 2 }"), "at most 2 is less than at least 3"),
        (plus("gpu: { count: 2 }"), "no GPU machines are asked for"),
        (plus("traffic: { weights: { here: 0 } }"), "no site gets any traffic"),
        (plus("traffic: { weights: { here: 1001 } }"), "1001 is out of range"),
        (plus("traffic: { domain: \"a b\" }"), "is not a DNS name"),
        (plus("traffic: { health_path: health }"), "a path begins with a slash"),
        (plus("dr: { failback: automatic }"), "without a failover there is nothing to go back from"),
        (plus("replication: { database: { mode: streaming } }"), "there is no second site to copy to"),
        (two("role: standby, port: 9443, metrics_port: 9444", "dr: { mode: manual, warm: false }\nreplication: { database: { mode: streaming } }"), "a cold site cannot answer within 15m"),
        (
            two("role: standby, region: far", "dr: { mode: automatic, rto: 1m, witness: { provider: w, region: w } }\ntraffic: { mode: dns, domain: x.org }\nreplication: { database: { mode: streaming } }"),
            "resolvers keep the old answer for 1m",
        ),
        (
            GOOD.replace("name: here, provider: onprem }", "name: here, provider: onprem, region: x }, { name: there, provider: onprem, region: y, role: standby }")
                + "dr: { mode: automatic, witness: { provider: onprem, region: x } }\nreplication: { database: { mode: streaming } }\n",
            "the witness would be lost together with the primary",
        ),
        (two(STANDBY, "dr: { mode: automatic, rto: 7s, rpo: 6s, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }"), "noticed only after 3s (`watch_every` 1s × `lost_after` 3), and another takes its place within 5s more: 8s in all"),
        (two(STANDBY, "dr: { mode: automatic, watch_every: 10ms, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }"), "10ms between two looks is less than an answer takes"),
        (two(STANDBY, "dr: { mode: manual, watch_every: 1h }\nreplication: { database: { mode: streaming } }"), "1h between two looks is longer than a loss may stay unnoticed"),
        (two(STANDBY, "dr: { mode: manual, lost_after: 1 }\nreplication: { database: { mode: streaming } }"), "may be a busy machine as well as a lost site"),
        (two(STANDBY, "dr: { mode: manual, failback: automatic }\nreplication: { database: { mode: streaming } }"), "the site to go back from would have been chosen by a person"),
        (two("role: standby, services: [models], port: 9443, metrics_port: 9444", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "only one site runs the API"),
        (two("role: standby, services: [api], port: 9443, metrics_port: 9444", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "control data could be stored nowhere"),
        (two("role: standby, region: far, port: 9443, metrics_port: 9444", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "reaches clusters and the sites of one machine today"),
        (two("role: standby, region: far, runtime: kubernetes", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "only where all of them store in one PostgreSQL that somebody else runs"),
        (two("role: standby, region: far, runtime: kubernetes", OUTSIDE), "the front has to reach this site, and nobody says where"),
        (two("role: standby, runtime: kubernetes, cluster: { ingress: { kind: route } }", OUTSIDE), "the front speaks TLS with the pods of a site, and an ingress would end it"),
        (two("role: standby, runtime: kubernetes, cluster: { context: a } }, { name: third, provider: onprem, role: standby, runtime: kubernetes, cluster: { context: a }", OUTSIDE), "`there` is in the same cluster"),
        (two("role: standby, runtime: kubernetes", OUTSIDE).replace("name: here, provider: onprem", "name: here, provider: onprem, runtime: kubernetes"), "are processes of a machine, outside every cluster"),
        (site("runtime: kubernetes, cluster: { load_balancer: true }"), "it is about `address`, which is not written"),
        (site("runtime: kubernetes") + "network: { proxy: { https: \"secret:env:PROXY\" } }\n", "a proxy's address that is a secret does not come to pods yet"),
        (site("runtime: kubernetes, cluster: { address: \"https://here:0\" }"), "is not where a service is reached"),
        (two(STANDBY, "dr: { mode: manual, witness: { provider: onprem, region: far } }\nreplication: { database: { mode: streaming } }"), "is a process beside them, not in `far`"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ntls: { mode: existing, existing: /x.pem }"), "the front trusts each site by the authority"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ntraffic: { port: 9443 }"), "port 9443 is wanted by"),
        (two(STANDBY, "dr: { mode: automatic, witness: { provider: onprem, region: local, port: 8450 } }"), "`port` is not a key of `dr.witness`"),
        (two(STANDBY, "dr: { mode: manual }").replace("name: there", "name: witness"), "the place that holds the witness and the front"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, replicas: 1 }"), "each site has one server"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, port: 5433 }"), "the servers of several sites cannot listen on one port"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, hosting: managed }"), "each site would have one of its own"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, host: db.example.com }"), "a clone would store in the database of the service itself"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, host: db.example.com, replicas: 1 }"), "has the copies that they make"),
        (plus("traffic: { port: 8441 }"), "only sites that fail over to one another have a front"),
        (two(STANDBY, "dr: { mode: manual, rpo: 500ms }\nreplication: { database: { mode: streaming, max_lag: 100ms } }"), "usage reaches the other sites within 1s, and only 500ms may be lost"),
        (plus(DNS), "the witness of sites that fail over keeps the records"),
        (two(STANDBY, &zone("dns.example.com", "")), "`dns.example.com` is not the address of a name server"),
        (two(STANDBY, &zone("192.0.2.53:0", "")), "is not the address of a name server"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("domain: textnlp.example.com", "domain: textnlp.example.org")), "`textnlp.example.org` is not in the zone `example.com`"),
        (two(STANDBY, &zone("192.0.2.53", "").replace(", domain: textnlp.example.com", "")), "the zone needs the name that clients use"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("there: [", "elsewhere: [")), "no site `elsewhere` serves here"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("there: [", "elsewhere: [")), "there is no address for there, which could not be reached as primary"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("2001:db8::2", "192.0.2.1")), "here has 192.0.2.1 too, and neither could be taken out"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("2001:db8::2", "0.0.0.0")), "nobody can be reached at 0.0.0.0"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("2001:db8::2", "x")), "`x` is not an IP address"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("secret:env:TSIG", "secret:file:tsig")), "`tsig` is not a whole path"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("secret:env:TSIG", "c2VjcmV0")), "a secret is written out here"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("name: update", "algorithm: md5, name: update")), "md5"),
        (two(STANDBY, &zone("192.0.2.53", ", ttl: 2d")), "cannot be told to keep an answer for 2d"),
        (two(STANDBY, &zone("192.0.2.53", ", ttl: 892s")), "resolvers keep the old answer for 892s after another site has taken over: 8s + 892s are 15m"),
        (two(STANDBY, &zone("192.0.2.53", ", weights: { here: 0, there: 0 }")), "the name would lead to nobody while all is well"),
        (plus("backup: { enabled: true, keep: 1h }"), "a copy would be gone before the next one is made"),
        (plus("backup: { enabled: true, every: 1s }"), "copies would follow one another without a pause"),
        (plus("backup: { enabled: true, recipients: [age1nobody] }"), "`age1nobody` is no public key"),
        (plus("backup: { enabled: true, destination: backups }"), "neither a whole path nor an object store"),
        (plus("rollout: { deadline: 5m }"), "would revert before the new release has been watched"),
        (plus(&format!("rollout: {{ prometheus: {PROMETHEUS} }}")), "nobody judges a release that replaces the other pod by pod"),
        (plus(&format!("rollout: {{ strategy: canary, queries: [{QUERY}] }}")), "it is asked by a job in a cluster, and no site is in one"),
        (asked("", ""), "`rollout.prometheus`: it is asked nothing"),
        (rolled(&format!("queries: [{QUERY}]")), "`rollout.queries`: nobody is there to be asked"),
        (asked("url: prometheus:9090", QUERY), "this is not where a Prometheus is reached"),
        (asked("url: \"ftp://p\"", QUERY), "this is not where a Prometheus is reached"),
        (asked("url: \"https://ada:hunter2@p\"", QUERY), "a name or a password is written out here"),
        (asked("url: \"https://p/?a=b\"", QUERY), "it ends with something else"),
        (asked("url: \"http://p/api/v1/query/\"", QUERY), "it ends with something else"),
        (asked("url: \"http://p\", token: \"secret:env:TOKEN\"", QUERY), "the token would travel in the open"),
        (asked("url: \"http://p\", token: \"hunter2\"", QUERY), "a secret is written out here"),
        (asked("url: \"http://p\", ca_file: /etc/hosts", QUERY), "nobody shows a certificate there"),
        (asked("url: \"https://p\", ca_file: /nowhere/ca.pem", QUERY), "there is no file /nowhere/ca.pem"),
        (asked(URL, "{ name: a, query: up }"), "every answer would be well"),
        (asked(URL, "{ name: a, query: up, at_most: 1, at_least: 0 }"), "it has two bounds"),
        (asked(URL, "{ name: a, query: up, at_most: .nan }"), "queries[0].at_most"),
        (asked(URL, "{ name: a, query: up, at_least: .inf }"), "queries[0].at_least"),
        (asked(URL, "{ name: \" \", query: up, at_most: 1 }"), "nobody can be told of it by this name"),
        (asked(URL, &format!("{QUERY}, {QUERY}")), "another one is called `errors` too"),
        (asked(URL, "{ name: a, query: \"\", at_most: 1 }"), "nothing is asked"),
        (asked(URL, &format!("{{ name: a, query: {}, at_most: 1 }}", "x".repeat(1001))), "it has 1001 bytes, and 1000 are the most"),
        (asked(URL, "{ name: a, query: \"up{pod='{{pod}}'}\", at_most: 1 }"), "nobody knows what `{{pod}}` stands for"),
        (asked(URL, "{ name: a, query: up, at_most: 1, for: 0 }"), "queries[0].for"),
        (asked(URL, "{ name: a, query: up, at_most: 1, for: 60 }").replace("rollout: {", "rollout: { bake: 1m, deadline: 10m,"), "60 answers take 600 s"),
        (asked(URL, &(0..11).map(|n| QUERY.replace("errors", &format!("a{n}"))).collect::<Vec<_>>().join(", ")), "11 are more than 10"),
        (plus("gates: { tokens_max: 4096 }\nserver: { api: { max_tokens: 100 } }"), "the server refuses more than 100 tokens"),
        (plus("gates: { p95_ms: 2000 }\nserver: { api: { timeout: 1s } }"), "the server gives up before that"),
        (plus("budget: { currency: usd }"), "`usd` is not a currency"),
        (site("region: far") + "budget: { monthly: 0 }\n", "nothing may cost anything"),
        (plus("tags: { x: \"a\\nb\" }"), "is not accepted everywhere"),
        (plus("prerequisites: { people: { devop: Ada } }"), "did you mean `devops`?"),
        (phase("pilot", ""), "phase pilot has at least 3 replicas"),
        (phase("pilot", "data: disposable"), "people rely on what is stored"),
        (phase("pilot", "backup: { enabled: false }"), "nothing would bring lost data back"),
        (phase("pilot", ""), "nobody is named for devops, security, database, network"),
        (phase("multi-region", ""), "phase multi-region has at least 2 sites"),
    ];
    for (text, sentence) in cases {
        let said = said(load(&text, &Overrides::default(), &Catalogue::default()));
        assert!(said.contains(sentence), "{sentence}\n--- said:\n{said}\n--- of:\n{text}");
    }
    assert_eq!(said(load(GOOD, &Overrides::default(), &Catalogue::default())), "");
    assert!(!said(load(&asked(URL, QUERY), &Overrides::default(), &Catalogue::default())).contains("rollout"));
}

#[test]
fn smaller_machines_are_warned_of_up_to_staging_and_refused_from_pilot_on() {
    use environment::model::Phase;
    use textnlp_provider::{Disk, Minimum};
    let of = |phase: Phase| {
        let Minimum { cores, memory_bytes, disk_bytes, disk, network_mbps, gpu_recommended, blocks, .. } =
            phase.minimum();
        (cores, memory_bytes / 1_000_000_000, disk_bytes / 1_000_000_000, disk, network_mbps, gpu_recommended, blocks)
    };
    assert_eq!(of(Phase::Staging), (4, 8, 50, Disk::Solid, 1_000, false, false));
    assert_eq!(of(Phase::Pilot), (16, 32, 500, Disk::Nvme, 10_000, true, true));
}
