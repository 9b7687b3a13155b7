//! Environments as an operator meets them: files in, an environment or one complete report out.

mod capabilities;
mod components;
mod older;
mod reference;

use std::collections::BTreeMap;

use expect_test::{Expect, expect};
use serde_json::json;
use textnlp_orchestrator::environment::{
    self, Catalogue, DetectionInputs, Environment, FlagValue, Library, LoadError, Loaded, Offer, Overrides,
    ProviderEvidence, Severity, Source, components, diff,
};
use textnlp_orchestrator::gate::phases;
use textnlp_orchestrator::release::{Artifacts, Release};
use textnlp_provider::capabilities::{Capabilities, Capability, RuntimeSupport, Store};
use textnlp_provider::component::{ComponentSpec, Program, webhook_secret};
use textnlp_provider::settings::{DatabaseKind, Hosting, Role, Runtime, Strategy, TlsMode, TrafficMode};

fn artifacts() -> Artifacts {
    let digest = textnlp_orchestrator::release::digest(b"server");
    Artifacts {
        program: Program { path: "/opt/textnlp-server".to_owned(), digest: digest.clone() },
        models: BTreeMap::from([("textnlp-tiny".to_owned(), digest.clone())]),
        templates: Some(digest),
        schema: Some(3),
        given: BTreeMap::new(),
        files: Default::default(),
        image: None,
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
fn every_built_in_environment_loads_under_its_own_name() {
    let listed = Library::built_in().list();
    assert_eq!(listed.len(), 9);
    for entry in listed {
        assert_eq!(built_in(&entry.name).environment.as_str(), entry.name);
    }
}

/// The hint is true: a file of the same name that extends the built-in environment replaces it.
#[test]
fn settings_of_a_built_in_environment_are_written_into_a_new_file() {
    let folder = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
    let library = Library::from_folder(folder);
    let load = || library.load("staging", &Overrides::default(), &Catalogue::default()).unwrap();
    let built_in = load();
    assert!(built_in.is_built_in());
    let file = folder.join("staging.yaml");
    assert_eq!(built_in.own_file(), format!("{file}, a new file that begins with `extends: staging`"));
    std::fs::write(&file, "extends: staging\nscaling: { min: 2 }\n").unwrap();
    let own = load();
    assert!(!own.is_built_in() && own.own_file() == file.as_str(), "{}", own.own_file());
    assert_eq!((own.environment.environment.as_str(), own.environment.scaling.min), ("staging", 2));
}

#[test]
fn development_and_staging_run_on_one_machine_at_the_same_time() {
    let ports = |name| {
        let server = built_in(name).server;
        [server.api.port, server.monitoring.metrics_port]
    };
    let staging = ports("staging");
    assert!(ports("development").iter().all(|port| !staging.contains(port)), "{staging:?}");
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
fn all_errors_of_a_file_are_in_one_report() {
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
            mine.yaml:1:1: note: whether the settings fit together was not checked; fix these errors first; more checks follow
            mine.yaml:2:14: error: `environment`: `My_Env` is not a valid environment name: use 1 to 40 lower-case letters, digits and hyphens, beginning with a letter; choose such a name
            mine.yaml:3:8: error: `phase`: `stagign` is not one of `development`, `staging`, `pilot`, `scale-up`, `enterprise`, `multi-region`, `air-gapped`, `optimized`; did you mean `staging`?
            mine.yaml:5:37: error: `sites[0].regoin`: `regoin` is not a key of `sites[0]`; did you mean `region`?
            mine.yaml:6:43: error: `sites[1].port`: 70000 is out of range; write a number from 1 to 65535
            mine.yaml:7:17: error: `scaling.min`: found the text `three`; write a whole number
            mine.yaml:7:29: error: `scaling.max`: 0 is out of range; write a number from 1 to 1000
            mine.yaml:8:1: error: `scalling`: `scalling` is not a key of an environment; did you mean `scaling`?
            mine.yaml:10:19: error: `server.api.timeout`: `MB` is not a unit of time; write seconds as a number, or a number and one of ms, s, m, h, d, such as `5m`
            mine.yaml:10:43: error: `server.api.max_request_size`: the size `10` has no unit; write a number and one of B, KB, MB, GB, TB, KiB, MiB, GiB, TiB, such as `10MB`
            mine.yaml:10:53: error: `server.api.port`: found the text `8443`; write a whole number
            mine.yaml:11:27: error: `server.security.rate_limit`: found `1000`; write a rate such as `1000/hour`
            mine.yaml:11:45: error: `server.security.jwt_expiry`: `soon` is not a length of time; write seconds as a number, or a number and one of ms, s, m, h, d, such as `5m`
            mine.yaml:12:3: error: the key `api` is duplicated, first at mine.yaml:10:3; keep one of them
            mine.yaml:13:37: error: `database.password`: this is a secret in plain text; write `secret:env:NAME` or `secret:file:PATH`, and keep the value there
            mine.yaml:14:9: error: `models`: found the text `textnlp-tiny`; begin each entry with `- `, or write `[a, b]`
            mine.yaml:15:20: error: `backup.enabled`: `yes` is a text in YAML 1.2; write `true` or `false`
            mine.yaml:16:21: error: `cluster.version`: `1.30` is a number or a boolean in YAML; put quotes around it: "1.30"
            mine.yaml:17:22: error: `gates.error_rate`: 2 is out of range; write a number from 0 to 1
            mine.yaml:18:1: error: `replicas`: `replicas` is not a key of an environment; did you mean one of `database.replicas`, `cache.replicas`?
            mine.yaml:19:1: error: `port`: `port` is not a key of an environment; remove it; its keys are `extends`, `environment`, `description`, `phase`, `state`, `sites`, `models`, `server`, `data`, `database`, `cache`, `tls`, `scaling`, `gpu`, `cluster`, `network`, `storage`, `registry`, `monitoring`, `backup`, `traffic`, `dns`, `replication`, `dr`, `rollout`, `maintenance`, `tags`, `budget`, `gates`, `account`, `prerequisites`, `features`"#]],
    );
}

#[test]
fn contradictions_are_reported_beside_values_of_the_wrong_type() {
    check(
        "\
extends: base
environment: mine
phase: stagng
sites: [{ name: here, provider: onprem }]
tls: { mode: \"off\" }
scaling: { min: 4, max: 2 }
database: { kind: sqlite, hosting: manged }
tags: { textnlp-lineage: x }
gates: { users: many, tokens_min: 100, tokens_max: 50 }
",
        expect![[r#"
            mine.yaml:3:8: error: `phase`: `stagng` is not one of `development`, `staging`, `pilot`, `scale-up`, `enterprise`, `multi-region`, `air-gapped`, `optimized`; did you mean `staging`?
            mine.yaml:5:14: error: `tls.mode`: API keys would be sent without TLS; use `local-ca`, `acme` or `existing` from staging on
            mine.yaml:6:25: error: `scaling.max`: the maximum, 2, is less than `min`, which is 4; write 4 or more
            mine.yaml:7:36: error: `database.hosting`: `manged` is not one of `managed`, `cluster`, `external`; did you mean `managed`?
            mine.yaml:8:7: error: `tags`: `textnlp-lineage` is a built-in tag; choose another name
            mine.yaml:9:17: error: `gates.users`: found the text `many`; write a whole number
            mine.yaml:9:52: error: `gates.tokens_max`: it is less than `tokens_min`; swap them"#]],
    );
    // The rest of a section may fit the word that was meant.
    check_more(
        "\
scaling: { min: 4, max: 2 }
database: { kind: mysql, hosting: managed, url: \"secret:env:DATABASE_URL\" }
",
        expect![[r#"
            mine.yaml:5:25: error: `scaling.max`: the maximum, 2, is less than `min`, which is 4; write 4 or more
            mine.yaml:6:19: error: `database.kind`: `mysql` is not one of `sqlite`, `postgres`; write one of `sqlite`, `postgres`"#]],
    );
    // Other settings refer to a site by the name that is missing.
    let unnamed = GOOD.replace("name: here", "nmae: here") + "traffic: { weights: { here: 1 } }\n";
    let said = said(load(&unnamed, &Overrides::default(), &Catalogue::default()));
    assert!(said.contains("`sites[0].name`: this key is missing") && said.contains("more checks follow"), "{said}");
    assert!(!said.contains("traffic.weights"), "{said}");
}

/// A hint is no answer that another check refuses.
#[test]
fn sites_on_one_machine_have_their_witness_on_it_in_every_region() {
    let sites = "name: here, provider: onprem, region: x }, { name: there, provider: onprem, region: x, role: standby, port: 9443, metrics_port: 9444 }";
    let text = |witness: &str| {
        let more = format!("dr: {{ mode: automatic{witness} }}\nreplication: {{ database: {{ mode: streaming }} }}\n");
        let text = GOOD.replace("name: here, provider: onprem }", sites) + &more;
        said(load(&text, &Overrides::default(), &Catalogue::default()))
    };
    let hint = "witness: { provider: onprem, region: x }";
    assert!(text("").contains(&format!("add `{hint}`, or write `mode: manual`")), "{}", text(""));
    let followed = text(&format!(", {hint}"));
    assert!(!followed.contains("witness"), "{followed}");
}

#[test]
fn contradictory_settings_are_reported_with_their_location() {
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
            mine.yaml:5:14: error: `tls.mode`: API keys would be sent without TLS; use `local-ca`, `acme` or `existing` from staging on
            mine.yaml:6:25: error: `scaling.max`: the maximum, 2, is less than `min`, which is 4; write 4 or more
            mine.yaml:6:37: error: `scaling.adapter`: it gives the request rate to an autoscaler, and this environment has none; add `max` above `min` and `requests_per_second: 1000`, or remove it
            mine.yaml:7:36: error: `database.hosting`: SQLite is a file and has no hosting (managed); remove it, or use `kind: postgres`
            mine.yaml:8:8: error: `cache.url`: an external Redis needs its address; write `url: secret:env:REDIS_URL`, or `kind: memory`
            mine.yaml:9:13: error: `dr.mode`: automatic failover needs a witness in a third location; add `witness: { provider: onprem, region: local }`, or write `mode: manual`
            mine.yaml:9:13: error: `dr.mode`: there is no second site to fail over to; add a site, or write `mode: none`
            mine.yaml:10:10: error: `traffic.domain`: `mode: dns` needs a domain; write `domain: textnlp.example.com`
            mine.yaml:10:40: error: `traffic.weights.hree`: there is no site `hree`; did you mean `here`?
            mine.yaml:11:7: error: `tags`: `textnlp-lineage` is a built-in tag; choose another name
            mine.yaml:11:7: error: `tags`: the account requires the tag `cost-centre`; add `cost-centre: …`
            mine.yaml:13:8: error: `gates.think_max`: it is shorter than `think_min`; swap them
            mine.yaml:13:39: error: `gates.tokens_max`: it is less than `tokens_min`; swap them
            mine.yaml:15:24: error: `models[0].source`: `bundeld` is not a source; did you mean `bundled`?
            mine.yaml:16:13: error: `models[1].name`: `models[0]` has the name `a` too; give each model a name of its own
            mine.yaml:16:24: error: `models[1].source`: the model would be fetched without TLS; use `https:`
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
dr: { mode: automatic, rpo: 1s, rto: 3s }
replication: { database: { mode: streaming } }
",
        expect![[r#"
            (built-in) base.yaml:17:11: error: `server.api.port`: two sites of one machine use port 8443; give each its own port; in a site: `port` and `metrics_port`
            (built-in) base.yaml:31:19: error: `server.monitoring.metrics_port`: two sites of one machine use port 9090; give each its own port; in a site: `port` and `metrics_port`
            mine.yaml:6:32: error: `traffic.weights.b`: a standby has no traffic before a failover; write 0; the failover gives it its weight
            mine.yaml:7:13: error: `dr.mode`: automatic failover needs a witness in a third location; add `witness: { provider: onprem, region: local }`, or write `mode: manual`
            mine.yaml:7:38: error: `dr.rto`: a site failure is detected only after 3s (`watch_every` 1s × `lost_after` 3), and another site takes over within 5500ms more: 8500ms in total; allow more time, or poll more often (`watch_every`, `lost_after`)
            mine.yaml:8:26: error: `replication.database.max_lag`: a lag of 5s is allowed, which is not less than `dr.rpo` (1s); allow less lag, or a larger `dr.rpo`"#]],
    );
}

#[test]
fn overridden_layers_are_validated_too() {
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
        FOLDER/lower.yaml:2:17: error: `scaling.min`: found the text `none`; write a whole number
        FOLDER/lower.yaml:3:18: error: `server.api.prot`: `prot` is not a key of `server.api`; did you mean `port`?
        FOLDER/upper.yaml:1:1: note: whether the settings fit together was not checked; fix these errors first; more checks follow
        FOLDER/upper.yaml:4:8: error: `sites`: the list has 0 entries; at least 1 must be there
        $TEXTNLP_SET__gpu__size: error: `gpu.size`: `smal` is not one of `none`, `small`, `medium`, `large`, `xlarge`; did you mean `small`?
        --set nonsense: error: there is no `=` in it; write `--set scaling.min=2`
        --set scaling.maxx: error: `scaling.maxx`: `maxx` is not a key of `scaling`; did you mean `max`?"#]].assert_eq(&said.replace(folder.as_str(), "FOLDER"));
}

#[test]
fn option_without_a_setting_is_named_without_its_value() {
    let overrides = Overrides { variables: BTreeMap::new(), sets: vec!["=hunter2".to_owned()], flags: Vec::new() };
    let said = said(Library::built_in().load("development", &overrides, &Catalogue::default()));
    let expected = "--set =VALUE: error: there is no setting before the `=`; write `--set scaling.min=2`";
    assert!(said.contains(expected) && !said.contains("hunter2"), "{said}");
}

#[test]
fn higher_precedence_layers_win_and_every_value_has_its_origin() {
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
fn names_of_variables_may_be_in_upper_case() {
    let all = |variables: &[(&str, &str)]| {
        let variables = variables.iter().map(|(name, value)| (format!("TEXTNLP_SET__{name}"), (*value).to_owned()));
        let overrides = Overrides { variables: variables.collect(), ..Overrides::default() };
        load(&format!("{GOOD}tags: {{ team: a }}\n"), &overrides, &Catalogue::default())
    };
    let with = |name: &str, value: &str| all(&[(name, value)]);
    assert_eq!(with("SCALING__MIN", "2").unwrap().environment.scaling.min, 2);
    assert_eq!(with("GATES__P95_MS", "700").unwrap().environment.gates.p95_ms, 700);
    assert_eq!(with("SITES__HERE__PROVIDER", "other").unwrap().environment.sites[0].provider.as_str(), "other");
    assert_eq!(with("MODELS__0__CONTEXT", "512").unwrap().environment.models[0].context, Some(512));
    let unknown = said(with("SCALING__MAXX", "3"));
    assert!(unknown.contains("`MAXX` is not a key of `scaling`; did you mean `max`?"), "{unknown}");
    let tags = |name: &str| with(name, "b").unwrap().environment.tags.into_iter().collect::<Vec<_>>();
    let tag = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    assert_eq!(tags("TAGS__TEAM"), [tag("team", "b")]);
    assert_eq!(tags("tags__Team"), [tag("Team", "b"), tag("team", "a")]);
    let twice = said(all(&[("SCALING__MIN", "2"), ("scaling__min", "3")]));
    let both = "$TEXTNLP_SET__scaling__min: error: `scaling.min`: the variable `TEXTNLP_SET__SCALING__MIN` sets it too";
    assert!(twice.contains(both), "{twice}");
}

#[test]
fn shown_configuration_round_trips() {
    for entry in Library::built_in().list() {
        let first = Library::built_in().load(&entry.name, &Overrides::default(), &Catalogue::default()).unwrap();
        let again = load(&first.to_yaml(true), &Overrides::default(), &Catalogue::default());
        let again = again.unwrap_or_else(|e| panic!("{}: {e}\n{}", entry.name, first.to_yaml(true)));
        assert_eq!(diff(&first, &again), [], "{}", entry.name);
    }
}

#[test]
fn shown_values_carry_their_origins() {
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
fn environment_diff_lists_each_changed_value() {
    let load = |name| Library::built_in().load(name, &Overrides::default(), &Catalogue::default()).unwrap();
    let changes = diff(&load("development"), &load("staging"));
    let text = |v: Option<serde_json::Value>| v.map_or("–".to_owned(), |v| v.to_string());
    let lines: Vec<_> =
        changes.into_iter().map(|c| format!("{}: {} → {}", c.path, text(c.left), text(c.right))).collect();
    expect![[r#"
        environment: "development" → "staging"
        description: "One process on this machine, for development" → "TLS, keys and a load test on this machine"
        phase: "development" → "staging"
        server.api.host: "127.0.0.1" → "0.0.0.0"
        server.api.port: 8080 → 8443
        server.api.workers: 2 → 4
        server.api.drain: "5s" → "30s"
        server.security.api_keys_enabled: false → true
        server.monitoring.metrics_port: 9089 → 9090
        server.monitoring.log_level: "DEBUG" → "INFO"
        tls.mode: "off" → "local-ca"
        storage.model_cache: "1GB" → "50GB"
        gates.advisories: "wait" → "warn""#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn credentials_of_clouds_are_no_secrets_of_servers_that_a_file_names() {
    for (reference, is_refused) in [
        ("secret:env:AWS_SECRET_ACCESS_KEY", true),
        ("secret:env:HF_TOKEN", true),
        ("secret:file:/root/.ssh/id_ed25519", true),
        ("secret:file:/var/run/secrets/kubernetes.io/serviceaccount/token", true),
        ("secret:env:DB_PASSWORD", false),
        ("secret:file:/etc/textnlp/password", false),
    ] {
        let database = format!(
            "database: {{ kind: postgres, hosting: external, host: db, user: u, password: \"{reference}\" }}\n"
        );
        let text = said(load(&format!("{GOOD}{database}"), &Overrides::default(), &Catalogue::default()));
        assert_eq!(
            text.contains("error: `database.password`") && text.contains("another service"),
            is_refused,
            "{text}"
        );
    }
}

#[test]
fn references_outside_of_the_callers_list_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (listed, other) = (folder.path().join("listed"), folder.path().join("other"));
    for place in [&listed, &other] {
        std::fs::create_dir(place).unwrap();
        std::fs::write(place.join("password"), "hunter2").unwrap();
    }
    std::os::unix::fs::symlink(other.join("password"), listed.join("link")).unwrap();
    let (listed, other) = (listed.to_str().unwrap(), other.to_str().unwrap());
    for (reference, is_refused) in [
        ("secret:env:DB_PASSWORD".to_owned(), false),
        ("${DB_PASSWORD}".to_owned(), false),
        ("secret:env:DB_PASSWORD_OF_OTHERS".to_owned(), true),
        ("secret:env:DB".to_owned(), true),
        (format!("secret:file:{listed}/password"), false),
        (format!("secret:file:{listed}/../other/password"), true),
        (format!("secret:file:{listed}/link"), true),
        (format!("secret:file:{other}/password"), true),
    ] {
        let list = format!("DB_PASSWORD::{listed}");
        let variables = BTreeMap::from([("TEXTNLP_ALLOW_SECRETS".to_owned(), list)]);
        let overrides = Overrides { variables, ..Overrides::default() };
        let database = format!(
            "database: {{ kind: postgres, hosting: external, host: db, user: u, password: \"{reference}\" }}\n"
        );
        let text = said(load(&format!("{GOOD}{database}"), &overrides, &Catalogue::default()));
        let refusal = "is not in TEXTNLP_ALLOW_SECRETS";
        assert_eq!(
            text.contains("error: `database.password`") && text.contains(refusal),
            is_refused,
            "{reference}: {text}"
        );
    }
}

#[test]
fn state_goes_to_no_server_that_a_file_chooses_in_the_clear_or_with_a_token() {
    let cases = [
        ("s3://b/p", "http://198.51.100.7", "without encryption"),
        ("s3://b/p", "https://u:p@minio.example.com", "not the address of a store"),
        ("gs://b/p", "https://evil.example.com", "your token"),
        ("gs://b/p", "https://evilgoogleapis.com", "your token"),
        ("az://b/p", "https://core.windows.net.evil.example.com", "your token"),
        ("s3://b/p", "https://minio.example.com:9000", ""),
        ("s3://b/p", "http://127.0.0.1:9000", ""),
        ("gs://b/p", "https://storage.europe-west3.rep.googleapis.com", ""),
        ("az://b/p", "https://account.blob.core.windows.net", ""),
        ("s3://${AWS_PROFILE}/p", "https://minio.example.com", "variables are not filled in here"),
    ];
    for (store, endpoint, expected) in cases {
        let variables = BTreeMap::from([("AWS_PROFILE".to_owned(), "me".to_owned())]);
        let overrides = Overrides { variables, ..Overrides::default() };
        let text = format!("{GOOD}state: {{ store: \"{store}\", endpoint: \"{endpoint}\" }}\n");
        let loaded = load(&text, &overrides, &Catalogue::default());
        match loaded {
            Ok(_) => assert!(expected.is_empty(), "{store} {endpoint}"),
            Err(problems) => {
                let text = format!("{problems:?}");
                assert!(!expected.is_empty() && text.contains(expected), "{store} {endpoint}: {text}");
            }
        }
    }
}

#[test]
fn variables_that_may_be_secrets_are_kept_out_of_other_fields() {
    let secret = [
        ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ("AWS_SESSION_TOKEN", "hunter2"),
        ("PGPASSWORD", "hunter2"),
        ("githubtoken", "hunter2"),
        ("DATABASE_URL", "postgresql://u:hunter2@db/x"),
        ("CERTIFICATE", "-----BEGIN PRIVATE hunter2"),
    ];
    let harmless = [("AWS_REGION", "eu-west-1"), ("MONKEY", "a"), ("HOST", "https://u@db:80/x:y@z")];
    for (name, value) in secret.into_iter().chain(harmless) {
        let variables = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        let overrides = Overrides { variables, ..Overrides::default() };
        let loaded = load(&format!("{GOOD}description: \"${{{name}}}\"\n"), &overrides, &Catalogue::default());
        match loaded {
            Ok(loaded) => {
                assert!(harmless.contains(&(name, value)), "{name}");
                assert_eq!(loaded.environment.description.as_deref(), Some(value));
            }
            Err(problems) => {
                let text = format!("{problems:?}");
                assert!(secret.contains(&(name, value)) && text.contains("may be a secret"), "{text}");
                assert!(!text.contains("hunter2"));
            }
        }
    }
}

#[test]
fn plaintext_secrets_are_refused_and_a_missing_variable_is_named() {
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
            "mine.yaml:5:34: error: `database.url`: this URL contains a password in plain text; write `secret:env:NAME`, with the whole address in the variable"
        ],
    );
}

#[test]
fn unsupported_provider_settings_are_refused_by_name() {
    let mut catalogue = Catalogue::default();
    const PROCESSES: RuntimeSupport = RuntimeSupport {
        runtime: Runtime::Process,
        supported: &[
            Capability::Database(DatabaseKind::Sqlite, None),
            Capability::Tls(TlsMode::Off),
            Capability::Tls(TlsMode::LocalCa),
            Capability::Traffic(TrafficMode::Gateway),
            Capability::Rollout(Strategy::Rolling),
            Capability::State(Store::Folder),
        ],
        refused: &[],
    };
    let capabilities = Capabilities { runtimes: &[PROCESSES], ..Capabilities::default() };
    catalogue.providers.insert("onprem".to_owned(), Offer { capabilities, ..Offer::default() });
    let missing = Some("build with `--features all`".to_owned());
    catalogue.providers.insert("cumulus".to_owned(), Offer { missing, ..Offer::default() });
    let check = |more: &str, expected: Expect| {
        expected.assert_eq(&said(load(&format!("{GOOD}{more}"), &Overrides::default(), &catalogue)))
    };
    check("", expect![[r#""#]]);
    check(
        "database: { kind: postgres, hosting: managed }\ncache: { kind: redis, hosting: managed }\nstate: { store: \"ftp://host/state\" }\n",
        expect![[r#"
            mine.yaml:5:19: not yet: `database.kind`: provider `onprem` does not support `postgres/managed`; use `sqlite`
            mine.yaml:6:16: not yet: `cache.kind`: provider `onprem` does not support `redis/managed`: no Redis is created here; `cache.url` names one that you run; remove it
            mine.yaml:7:17: not yet: `state.store`: provider `onprem` does not support `ftp://host/state`; use `local`"#]],
    );
    // A setting that is written out at its default asks nothing.
    check(
        "rollout: { bake: 10m, deadline: 1h }\ntraffic: { ttl: 60 }\nmonitoring: { alerts: { disk: 90 } }\n",
        expect![[r#""#]],
    );
    check(
        "rollout: { bake: 5m, deadline: 2h }\ntraffic: { ttl: 5 }\nmonitoring: { alerts: { disk: 70, memory: 70 } }\n\
         gpu: { size: small }\nnetwork: { waf: true, cidr: 10.0.0.0/16 }\n",
        expect![[r#"
            mine.yaml:5:18: not yet: `rollout.bake`: provider `onprem` does not support this setting (`5m`): only canary and blue-green releases wait; remove it
            mine.yaml:5:32: not yet: `rollout.deadline`: provider `onprem` does not support this setting (`2h`): only canary and blue-green releases have a deadline; remove it
            mine.yaml:6:17: not yet: `traffic.ttl`: provider `onprem` does not support this setting (`5s`): only records of `dns` get another TTL; remove it
            mine.yaml:7:23: not yet: `monitoring.alerts`: provider `onprem` does not support this setting (`memory, disk`): without a receiver or `monitoring.stack` there is no alert; remove it
            mine.yaml:8:14: not yet: `gpu.size`: provider `onprem` does not support GPUs of size `small`: the GPUs of machines are no parts of an environment; remove it
            mine.yaml:9:17: not yet: `network.waf`: provider `onprem` does not support this setting (`true`): the web application firewall is part of an ingress in a cluster; remove it
            mine.yaml:9:29: not yet: `network.cidr`: provider `onprem` does not support this setting (`10.0.0.0/16`): no network is created here; remove it"#]],
    );
    let with =
        |site: &str| said(load(&GOOD.replace("name: here, provider: onprem", site), &Overrides::default(), &catalogue));
    expect!["mine.yaml:4:33: not yet: `sites[0].provider`: provider `cumulus` is not part of this program; build with `--features all`"].assert_eq(&with("name: here, provider: cumulus, runtime: kubernetes"));
    expect!["mine.yaml:4:33: error: `sites[0].provider`: there is no provider `onprm`; did you mean `onprem`?"]
        .assert_eq(&with("name: here, provider: onprm"));
    expect!["mine.yaml:4:50: not yet: `sites[0].runtime`: provider `onprem` does not support the runtime `kubernetes`; use `process`"]
        .assert_eq(&with("name: here, provider: onprem, runtime: kubernetes"));
    expect!["mine.yaml:4:50: error: `sites[0].runtime`: `proces` is not one of `process`, `kubernetes`, `sagemaker`, `cloud-run`, `vertex`, `azure-ml`; did you mean `process`?"]
        .assert_eq(&with("name: here, provider: onprem, runtime: proces"));
    expect!["mine.yaml:4:33: error: `sites[0].provider`: provider detection did not run; write one, such as `provider: onprem`"].assert_eq(&with("name: here, provider: auto"));
}

#[test]
fn flag_that_replaces_the_provider_replaces_what_the_new_one_does_not_support() {
    const PODS: RuntimeSupport = RuntimeSupport {
        runtime: Runtime::Kubernetes,
        supported: &[
            Capability::Database(DatabaseKind::Postgres, Some(Hosting::Cluster)),
            Capability::Database(DatabaseKind::Postgres, Some(Hosting::External)),
            Capability::Tls(TlsMode::LocalCa),
            Capability::Rollout(Strategy::Rolling),
            Capability::State(Store::Folder),
        ],
        refused: &[],
    };
    let capabilities = Capabilities { runtimes: &[PODS], ..Capabilities::default() };
    let offer = Offer { capabilities, region: Some("north-1".to_owned()), ..Offer::default() };
    let catalogue = Catalogue { providers: BTreeMap::from([("cumulus".to_owned(), offer)]), ..Catalogue::default() };
    let flag = FlagValue {
        flag: "--provider".to_owned(),
        path: "sites[*].provider".to_owned(),
        value: serde_json::json!("cumulus"),
    };
    let with = |sets: &[&str]| {
        let sets = sets.iter().map(|set| (*set).to_owned()).collect();
        let overrides = Overrides { sets, flags: vec![flag.clone()], ..Overrides::default() };
        let loaded = Library::built_in().load("staging", &overrides, &catalogue).unwrap();
        let site = &loaded.environment.sites[0];
        let hosting = loaded.environment.database_hosting();
        (site.provider.clone(), site.runtime, site.region.clone(), hosting, loaded.report.to_string())
    };
    let (provider, runtime, region, hosting, report) = with(&[]);
    assert_eq!((provider.as_str(), runtime, region.as_str()), ("cumulus", Runtime::Kubernetes, "north-1"));
    assert_eq!(hosting, Some(Hosting::Cluster));
    assert!(report.contains("`sites[0].region`: it is `north-1` for provider `cumulus`"), "{report}");
    let (.., region, hosting, _) =
        with(&["sites.0.region=south-2", "database.hosting=external", "database.url=secret:env:U"]);
    assert_eq!((region.as_str(), hosting), ("south-2", Some(Hosting::External)), "arguments decide");
}

#[test]
fn provider_detection_needs_evidence_and_never_guesses() {
    let offer = |linked: bool, runtimes: &'static [RuntimeSupport]| Offer {
        missing: (!linked).then(|| "not part of this version".to_owned()),
        capabilities: Capabilities { runtimes, ..Capabilities::default() },
        ..Offer::default()
    };
    const PROCESSES: &[RuntimeSupport] = &[RuntimeSupport { runtime: Runtime::Process, supported: &[], refused: &[] }];
    const PODS: &[RuntimeSupport] = &[RuntimeSupport { runtime: Runtime::Kubernetes, supported: &[], refused: &[] }];
    let providers =
        [("onprem", true, PROCESSES), ("pods", true, PODS), ("cumulus", true, PODS), ("nimbus", false, PODS)];
    let providers = providers.map(|(name, linked, runtimes)| (name.to_owned(), offer(linked, runtimes)));
    // How it ends for a site with these fields, where this much is seen: each `provider: what`.
    let detected = |site: &str, seen: &[&str]| {
        let evidence = seen.iter().map(|one| {
            let (provider, seen) = one.split_once(": ").unwrap();
            ProviderEvidence { provider: provider.to_owned(), seen: seen.to_owned() }
        });
        let surroundings = DetectionInputs { evidence: evidence.collect(), fallback: "onprem".to_owned() };
        let catalogue = Catalogue { providers: BTreeMap::from(providers.clone()), surroundings: Some(surroundings) };
        let text = GOOD.replace("name: here, provider: onprem", &format!("name: here, provider: auto{site}"));
        let loaded = load(&text, &Overrides::default(), &catalogue);
        match &loaded {
            Ok(loaded) => {
                let site = &loaded.environment.sites[0];
                let origin = loaded.explain("sites[0].provider")[0].origin.to_string();
                assert!(loaded.report.to_string().contains(&format!("`{}` is detected", site.provider)));
                format!("{} {}: {origin}", site.provider, site.runtime)
            }
            Err(_) => said(loaded),
        }
    };
    expect!["onprem process: detected (no other provider was detected)"].assert_eq(&detected("", &[]));
    expect!["pods kubernetes: detected (a kubeconfig)"].assert_eq(&detected("", &["pods: a kubeconfig"]));
    // The runtime that the file names decides which providers count.
    expect![
        "onprem process: detected (no other provider was detected; a kubeconfig, but `pods` does not run this site)"
    ]
    .assert_eq(&detected(", runtime: process", &["pods: a kubeconfig"]));
    expect!["pods kubernetes: detected (a kubeconfig)"]
        .assert_eq(&detected(", runtime: kubernetes", &["pods: a kubeconfig"]));
    expect!["mine.yaml:4:33: error: `sites[0].provider`: no provider that runs `kubernetes` was detected; write one, such as `provider: onprem`"]
        .assert_eq(&detected(", runtime: kubernetes", &[]));
    // A cloud that this program does not have decides nothing, and is named.
    expect!["onprem process: detected (no other provider was detected; A_KEY is set, but `nimbus` is not part of this program)"]
        .assert_eq(&detected("", &["nimbus: A_KEY is set"]));
    expect!["pods kubernetes: detected (a kubeconfig; A_KEY is set, but `nimbus` is not part of this program)"]
        .assert_eq(&detected("", &["pods: a kubeconfig", "nimbus: A_KEY is set"]));
    expect!["mine.yaml:4:33: error: `sites[0].provider`: more than one provider was detected: `cumulus` (A_KEY is set, ~/.cumulus exists) and `pods` (a kubeconfig); write `provider: cumulus` or `provider: pods`"]
        .assert_eq(&detected("", &["pods: a kubeconfig", "cumulus: A_KEY is set", "cumulus: ~/.cumulus exists"]));
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
fn init_writes_missing_environments_and_overwrites_none() {
    let folder = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(folder.path()).unwrap().join("environments");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("staging.yaml"), "extends: staging\nscaling: { min: 2 }\n").unwrap();
    let written = environment::init(&folder, &phases::schema()).unwrap();
    assert_eq!(
        written.iter().filter(|w| !w.written).map(|w| w.path.file_name().unwrap()).collect::<Vec<_>>(),
        ["staging.yaml"]
    );
    assert!(environment::init(&folder, &phases::schema()).unwrap().iter().all(|w| !w.written));
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
fn extends_cycles_and_missing_parents_are_reported() {
    let folder = tempfile::tempdir().unwrap();
    let folder = camino::Utf8Path::from_path(folder.path()).unwrap();
    std::fs::write(folder.join("a.yaml"), "extends: b\nenvironment: a\n").unwrap();
    std::fs::write(folder.join("b.yaml"), "extends: a\n").unwrap();
    std::fs::write(folder.join("c.yaml"), "extends: bse\nenvironment: c\nsites: []\n").unwrap();
    std::fs::write(folder.join("d.yaml"), "extends: stagin\nenvironment: d\nscaling: { min: 5, max: 2 }\n").unwrap();
    std::fs::write(folder.join("e.yaml"), "extends: nothing-like-it\nenvironment: e\nscaling: { min: 5, max: 2 }\n")
        .unwrap();
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
    // The settings are checked with the environment that is meant, or a note says that they were not.
    let d = said(library.load("d", &Overrides::default(), &Catalogue::default()));
    assert!(d.contains("did you mean `staging`?") && d.contains("the maximum, 2, is less than `min`"), "{d}");
    let e = said(library.load("e", &Overrides::default(), &Catalogue::default()));
    assert!(e.contains("there is no environment `nothing-like-it`"), "{e}");
    for said in [&a, &e] {
        assert!(said.contains("whether the settings fit together was not checked"), "{said}");
    }
}

#[test]
fn committed_schema_matches_the_types() {
    let made = serde_json::to_string_pretty(&phases::schema()).unwrap() + "\n";
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../environments/environment.schema.json");
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, &made).unwrap();
    }
    assert!(
        std::fs::read_to_string(path).unwrap() == made,
        "run this test with UPDATE_EXPECT=1 and commit environments/environment.schema.json"
    );
}

/// The cost of own machines.
const MACHINE: &str = "budget: { machines: { SITE: { watts: 200, price_per_kwh: 0.3, purchase_price: 900, \
                       depreciation_months: 36 } } }";

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
fn each_validation_rule_has_its_own_message() {
    let site =
        |fields: &str| GOOD.replace("name: here, provider: onprem", &format!("name: here, provider: onprem, {fields}"));
    const OUTSIDE: &str = "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, host: db.example.com }";
    const URL: &str = "url: \"http://prometheus-operated.monitoring:9090\"";
    const PROMETHEUS: &str = "{ url: \"http://prometheus-operated.monitoring:9090\" }";
    const QUERY: &str = "{ name: errors, query: \"sum(x{pod=~'api-{{ new }}-.*'})\", at_most: 0.01 }";
    const DOMAIN: &str = "traffic: { domain: text.example.com }\n";
    let there = |ingress: &str| site(&format!("runtime: kubernetes, cluster: {{ ingress: {{ {ingress} }} }}"));
    let within = |settings: &str| site(&format!("runtime: kubernetes, cluster: {{ {settings} }}"));
    let registry =
        |account: &str| within("image: \"r.example.com/team/textnlp:1\"") + &format!("registry: {{ {account} }}\n");
    let two = |second: &str, more: &str| {
        GOOD.replace(
            "provider: onprem }",
            &format!("provider: onprem }}, {{ name: there, provider: onprem, {second} }}"),
        ) + more
    };
    let plus = |more: &str| format!("{GOOD}{more}\n");
    let hooks = |more: &str| {
        plus(&format!("server: {{ batch: {{ enabled: true, webhooks: [{{ {more}, secret: secret:env:PATH }}] }} }}"))
    };
    let traced =
        |more: &str| plus(&format!("server: {{ monitoring: {{ enable_tracing: true, traces: {{ {more} }} }} }}"));
    const TEXT: &str = "text: \"A text like those that the model is to continue, of sixty-four characters at least.\"";
    let quality =
        |more: &str| plus(&format!("models: [{{ name: a, source: bundled, preload: true, quality: {{ {more} }} }}]"));
    let own = |more: &str| {
        plus(&format!("models: [{{ name: a, source: bundled }}, {{ name: own, source: bundled, {more} }}]"))
    };
    let long = format!("tenant: {}, name: {}", "b".repeat(40), "a".repeat(100));
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
        (two("role: standby, metrics_port: 9444", ""), "two sites of one machine use port 8443"),
        (two("role: standby, port: 9443", ""), "two sites of one machine use port 9090"),
        (two("role: standby, services: [database-primary], port: 9443, metrics_port: 9444", ""), "the site is standby, but has the writable database"),
        (two("role: standby, port: 9443, metrics_port: 9444", "traffic: { weights: { here: 1, there: 1 } }"), "a standby has no traffic before a failover"),
        (two("role: secondary, services: [models], port: 9443, metrics_port: 9444", "traffic: { weights: { here: 1, there: 1 } }"), "this site does not run the API"),
        (site("region: \"a b\""), "this is not the name of a region"),
        (site("region: evil.example/#"), "this is not the name of a region"),
        (format!("{GOOD}state: {{ store: \"s3://b/x\", region: \"evil.example/#\" }}\n"), "state.region`: this is not the name of a region"),
        (format!("{GOOD}state: {{ store: \"s3://b/x\", region: \"evil.example\" }}\n"), "state.region`: this is not the name of a region"),
        (format!("{GOOD}storage: {{ replicate_to: \"x@evil.example\" }}\n"), "storage.replicate_to`: this is not the name of a region"),
        (format!("{GOOD}database: {{ kind: postgres, hosting: managed, replica_region: \"a/b\" }}\n"), "database.replica_region`: this is not the name of a region"),
        (two("role: standby, port: 9443, metrics_port: 9444", "dr: { witness: { provider: onprem, region: \"a:1\" } }"), "dr.witness.region`: this is not the name of a region"),
        (site("cluster: { ingress: { class: nginx, issuer: x } }"), "the site has `runtime: process` and is not in a cluster"),
        (there("class: nginx, issuer: x"), "the name that clients use is not configured"),
        (there("class: nginx") + DOMAIN, "the certificate for clients has one source"),
        (there("class: nginx, issuer: x, tls_secret: y") + DOMAIN, "the certificate for clients has one source"),
        (there("issuer: x") + DOMAIN, "an ingress without a class is handled by no controller"),
        (there("class: \"a b\", issuer: x") + DOMAIN, "`a b` is not the name of an object"),
        (there("kind: route, issuer: x") + DOMAIN, "it has no effect with `kind: route`"),
        (there("kind: rout") + DOMAIN, "`rout` is not one of `ingress`, `route`, `gateway`"),
        (there("kind: gateway") + DOMAIN, "no Gateway is configured"),
        (there("kind: gateway, gateway: web") + DOMAIN, "it needs a namespace and a name"),
        (there("kind: gateway, gateway: a.b/web") + DOMAIN, "this is not the name of a namespace"),
        (there("kind: gateway, gateway: infra/We b") + DOMAIN, "`We b` is not the name of an object"),
        (there("kind: gateway, gateway: infra/web, section: \"a b\"") + DOMAIN, "`a b` is not the name of an object"),
        (there("kind: gateway, gateway: infra/web, port: 0") + DOMAIN, "no listener can have this port"),
        (there("kind: gateway, gateway: infra/web, class: nginx") + DOMAIN, "the Gateway has its class and the certificate for clients"),
        (there("kind: gateway, gateway: infra/web"), "the name that clients use is not configured"),
        (there("class: nginx, issuer: x, gateway: infra/web") + DOMAIN, "only `kind: gateway` has this key"),
        (there("kind: route, section: https") + DOMAIN, "only `kind: gateway` has this key"),
        (there("kind: gateway, gateway: infra/web") + DOMAIN + "tls: { mode: existing, existing: site-tls }\n", "it gets only the built-in certificate authority"),
        (site("runtime: kubernetes, cluster: { address: \"https://x\", ingress: { kind: route } }") + DOMAIN, "it contradicts `address`"),
        (site("cluster: { saml: a.json }"), "the site has `runtime: process` and is not in a cluster"),
        (site("cluster: { load_balancer: true }"), "the site has `runtime: process` and is not in a cluster"),
        (site("cluster: { database_image: a }"), "the site has `runtime: process` and is not in a cluster"),
        (within("egress: [{ to: db.example.com, port: 5432 }]"), "`db.example.com` is neither an address nor a network"),
        (within("egress: [{ to: 10.0.0.1/8, port: 5432 }]"), "`10.0.0.1/8` is neither an address nor a network"),
        (within("egress: [{ to: 169.254.169.254, port: 80 }]"), "has the cloud's metadata service"),
        (within("egress: [{ to: \"fd00:ec2::254\", port: 443 }]"), "has the cloud's metadata service"),
        (within("egress: [{ to: 10.0.0.0/8, port: 53, protocol: icmp }]"), "`icmp` is not one of `tcp`, `udp`"),
        (within("analytics: { schedule: \"@hourly\", image: a }"), "`@hourly` is not a cron schedule"),
        (within("analytics: { }"), "no image of your own is configured, and the servers do not analyze usage"),
        (within("analytics: { image: a, command: [\"\"] }"), "one of its entries is empty or has control characters"),
        (within("analytics: { command: [a] }") + "server: { analytics: { enabled: true } }\n", "without `image`, the job runs the server program"),
        (within("analytics: { image: a, deadline: 2d }"), "the time limit is out of range"),
        (within("analytics: { image: a, memory: 1MiB }"), "it is too little memory to start a program"),
        (within("analytics: { image: a, spot: often }"), "`often` is not one of `never`, `prefer`, `only`"),
        (within("models: { kind: node }"), "needs a `hostPath` volume, which the restricted profile of the namespace refuses"),
        (within("models: { kind: image }"), "no image with the models is configured"),
        (registry("url: r.example.com, user: ci"), "`registry.user`: it has no effect without `registry.password`"),
        (registry("url: r.example.com, password: secret:env:PATH"), "`registry.password`: the account at the registry has no user"),
        (registry("url: r.example.com, user: 'ci:x', password: secret:env:PATH"), "`registry.user`: `ci:x` is not the name of a user"),
        (registry("url: r.example.com, user: '', password: secret:env:PATH"), "`registry.user`: `` is not the name of a user"),
        (registry("user: ci, password: secret:env:PATH"), "`registry.url`: it is not set, and the account needs the address of its registry"),
        (registry("url: 'https://', user: ci, password: secret:env:PATH"), "`registry.url`: `https://` is not the address of a registry"),
        (registry("url: '*.example.com', user: ci, password: secret:env:PATH"), "`registry.url`: `*.example.com` is not the address of a registry"),
        (registry("url: r.example.com, existing: a, user: ci, password: secret:env:PATH"), "an existing registry of a cloud is used with the credentials of the nodes"),
        (registry("url: r.example.com/te, user: ci, password: secret:env:PATH"), "warning: `sites[0].cluster.image`: no image of the site is in `r.example.com/te`"),
        (registry("url: 'https://index.docker.io/v1/', user: ci, password: secret:env:PATH"), "no image of the site is in `docker.io`"),
        (registry("url: index.docker.io/v1, user: ci, password: secret:env:PATH"), "no image of the site is in `docker.io`"),
        (registry("url: index.docker.io, user: ci, password: secret:env:PATH"), "no image of the site is in `docker.io`"),
        (registry("url: r.example.com, user: ci, password: hunter2"), "this is a secret in plain text"),
        (within("models: { kind: claim, reference: a }"), "it has no effect with `kind: claim`"),
        (within("models: { size: 1GiB }"), "it has no effect with `kind: pod`"),
        (within("models: { kind: claim, storage_class: A_b }"), "`A_b` is not the name of an object"),
        (within("node_selector: { \"a b\": c }"), "`a b: c` is not a valid node label"),
        (within("tolerations: [{ operator: Exists, value: a }]"), "`Equal` needs a value"),
        (within("tolerations: [{ value: a }]"), "no taint is configured"),
        (within("tolerations: [{ key: a, value: b, effect: Maybe }]"), "`Maybe` is not one of `NoSchedule`"),
        (within("runtime_class: \"-\""), "`-` is not the name of an object"),
        (within("gpu_resource: amd.com/gpu"), "`sites[0].cluster.gpu_resource`: `amd.com/gpu` is not the name of a GPU"),
        (within("gpu_resource: nvidia.com/"), "`nvidia.com/` is not the name of a GPU"),
        (within("gpu_resource: nvidia.com/gpu.shared"), "`sites[0].cluster.gpu_resource`: site `here` has no GPUs"),
        (site("cluster: { gpu_resource: nvidia.com/gpu.shared }"), "`sites[0].cluster.gpu_resource`: the site has `runtime: process` and is not in a cluster"),
        (within("saml: /nowhere/saml.json"), "there is no file /nowhere/saml.json"),
        (within("saml: /etc/hosts"), "/etc/hosts: it is not JSON"),
        (site("host: example"), "`example` is not an address of this machine"),
        (plus("server: { api: { port: 9090 } }"), "`server.api.port`: port 9090 is also used by `server.monitoring.metrics_port`"),
        (plus("server: { api: { port: 443 } }"), "port 443 needs root or CAP_NET_BIND_SERVICE"),
        (plus("server: { api: { timeout: 0 } }"), "the time limit is too short for any answer"),
        (plus("server: { api: { base_domain: '*.example.com' } }"), "is not a domain that has subdomains"),
        (plus("server: { api: { base_domain: 10.0.0.1 } }"), "is not a domain that has subdomains"),
        (plus("server: { api: { max_request_size: 1B } }"), "the size limit is too small for any request"),
        (plus("server: { security: { jwt_expiry: 0 } }"), "the lifetime of a token is too short"),
        (plus("server: { audit: { retention_days: 29 } }"), "keeps audit events for at least 30 days"),
        (own("tenant: Acme"), "`models[1].tenant`: `Acme` is not a tenant id"),
        (own("tenant: acme, role: default"), "`models[1].role`: requests without a model are of all tenants, and this one belongs to `acme`"),
        (own("tenant: acme, role: embeddings"), "`models[1].role`: requests without a model are of all tenants, and this one belongs to `acme`"),
        (plus("models: [{ name: textnlp-tiny, source: bundled, role: default }, { name: a, source: \"file:a\", role: embeddings }, { name: b, source: \"file:b\", role: embeddings }]"), "`models[2].role`: 2 models are for requests for embeddings without a model"),
        (own("tenant: acme }, { name: acme/own"), "`models[1]` has the name `acme/own` too"),
        (own("tenant: acme }, { name: acme/other"), "all tenants would use `acme/other`, which has the form of a model of `acme`"),
        (own("tenant: default"), "`models[1].tenant`: it is the tenant of all keys that name none"),
        (plus(&format!("models: [{{ name: a, source: bundled }}, {{ source: bundled, {long} }}]")), "`models[1].name`: `TENANT/NAME` has 141 bytes, and servers take 128"),
        (plus("models: [{ name: own, source: bundled, tenant: acme }]"), "`models`: every model belongs to one tenant"),
        (own("tenant: acme") + "features: { new_model: { model: acme/own } }\n", "requests of all tenants would get `acme/own`, which belongs to one"),
        (own("tenant: acme") + "server: { prices: { models: { own: { prompt: 1 } } } }\n", "`models` has no `own`"),
        (own("tenant: acme").replace("phase: staging", "phase: development") + "server: { security: { api_keys_enabled: false } }\n", "`models[1].tenant`: without API keys, clients choose their tenant themselves"),
        (own("tenant: acme").replace("provider: onprem", "provider: onprem, runtime: sagemaker"), "`models[1].tenant`: the cloud authorizes the callers of an inference endpoint"),
        (plus("server: { analytics: { enabled: true, retention_days: 27 } }"), "an hour is compared with those of the 28 days before it"),
        (plus("server: { analytics: { retention_days: 30 } }"), "it has no effect while usage is not analyzed"),
        (plus("server: { batch: { concurrency: 1 } }"), "its settings have no effect while there are no batches"),
        (plus("server: { batch: { enabled: true, max_file_size: 1B } }"), "write a size from `1KiB` to `1GiB`"),
        (plus("server: { batch: { enabled: true, max_stored: 1MB } }"), "1MB has no room for a file of `max_file_size`"),
        (plus("server: { pii: { kinds: [email] } }"), "its settings have no effect while requests are not searched"),
        (plus("server: { pii: { action: mask, kinds: [] } }"), "`server.pii.kinds`: the list has 0 entries; at least 1 must be there"),
        (plus("server: { pii: { action: mask, kinds: [ip, ip] } }"), "`server.pii.kinds[1]`: `ip` is there twice"),
        (own("tenant: acme").replace("provider: onprem", "provider: onprem, runtime: sagemaker") + "server: { pii: { action: count } }\n", "`server.pii.action`: an inference endpoint has no metrics"),
        (hooks("url: http://hooks.example.com/"), "`server.batch.webhooks[0].url`: this is not an `https:` address"),
        (hooks("url: 'https://ada:hunter2@hooks.example.com/'"), "this is not an `https:` address without a password"),
        (hooks("url: hooks.example.com"), "write an address such as `https://hooks.example.com/batches`"),
        (hooks("url: https://a.example.com, tenant: Acme"), "`server.batch.webhooks[0].tenant`: `Acme` is not a tenant id"),
        (hooks("url: https://a.example.com, secret: secret:env:PATH }, { url: https://a.example.com/"), "`server.batch.webhooks[1].url`: `webhooks[0]` has this address for the same tenant too"),
        (hooks("url: https://a.example.com").replace("provider: onprem", "provider: onprem, runtime: sagemaker"), "`server.batch.webhooks`: an inference endpoint has no batches"),
        (hooks("url: https://a.example.com").replace("secret:env:PATH", "whsec_AAAA"), "this is a secret in plain text"),
        (hooks("url: https://a.example.com").replace("enabled: true", "enabled: false"), "its settings have no effect while there are no batches"),
        (traced("endpoint: collector.example.com"), "`server.monitoring.traces.endpoint`: this is not an `https:` or `http:` address"),
        (traced("endpoint: 'https://ada:hunter2@collector.example.com'"), "this is not an `https:` or `http:` address without a password"),
        (traced("endpoint: http://collector.example.com, secret: secret:env:PATH"), "`server.monitoring.traces.secret`: the secret would be sent without TLS"),
        (traced("endpoint: http://collector.example.com"), "spans are sent without TLS"),
        (traced("endpoint: https://collector.example.com, secret: hunter2"), "this is a secret in plain text"),
        (traced("endpoint: https://collector.example.com, header: 'a b'"), "`server.monitoring.traces.header`: `a b` is not the name of a header"),
        (traced("endpoint: https://collector.example.com, header: x-api-key"), "`server.monitoring.traces.header`: it has no effect without a secret"),
        (traced("endpoint: https://collector.example.com, header: Content-Type, secret: secret:env:PATH"), "`server.monitoring.traces.header`: `Content-Type` is a header of each message"),
        (traced("endpoint: https://collector.example.com, header: host, secret: secret:env:PATH"), "`server.monitoring.traces.header`: `host` is a header of each message"),
        (traced("endpoint: https://collector.example.com, ratio: 2"), "2 is out of range"),
        (traced("ratio: 0.5"), "its settings have no effect without a collector"),
        (traced("endpoint: https://collector.example.com").replace("enable_tracing: true", "enable_tracing: false"), "it has no effect while requests are not traced"),
        (traced("endpoint: https://collector.example.com").replace("provider: onprem", "provider: onprem, runtime: sagemaker"), "an inference endpoint exports no traces"),
        (plus("server: { prices: { prompt: -1 } }"), "-1 is out of range"),
        (plus("server: { prices: { answer: 1000001 } }"), "write a number from 0 to 1000000"),
        (plus("server: { prices: { prompt: .nan } }"), "`server.prices"),
        (plus("server: { prices: { prompt: 1, currency: eur } }"), "`eur` is not a currency"),
        (plus("server: { prices: { currency: EUR } }"), "it has no effect without prices"),
        (plus("server: { prices: { models: { textnlp-tinny: { prompt: 1 } } } }"), "`models` has no `textnlp-tinny`"),
        (plus("server: { prices: { models: { textnlp-tiny: { prompts: 1 } } } }"), "did you mean `prompt`?"),
        (plus("server: { security: { api_key_header: \"a b\" } }"), "`a b` is not a header"),
        (plus("server: { security: { api_keys_enabled: false } }"), "every client could generate without a key"),
        (phase("development", "server: { security: { api_keys_enabled: false } }"), "every machine that reaches `0.0.0.0` could generate without a key"),
        (phase("development", "tls: { mode: 'off' }\nserver: { api: { host: '::' } }"), "every machine that reaches `::` could send API keys without TLS"),
        (plus("server: { security: { jwt_secret: secret:env:X } }"), "this secret is not used"),
        (plus("models: [{ name: ../x }]"), "is not a valid model name"),
        (plus("models: [{ name: x, source: \"hf:x\" }]"), "names no model"),
        (plus("models: [{ name: x, source: \"fiel:x\" }]"), "did you mean `file:`?"),
        (plus("models: [{ name: x }, { name: y }]"), "no model has `role: default`"),
        (plus("database: { kind: postgres, user: u }"), "this PostgreSQL is created by `up`, with its own user and password"),
        (plus("database: { kind: postgres, hosting: external }"), "an external PostgreSQL needs its address"),
        (plus("database: { kind: postgres, hosting: managed, host: db }"), "this PostgreSQL is created by `up`"),
        (plus("database: { kind: postgres, url: \"mysql://db/x\" }"), "this is not the address of a PostgreSQL"),
        (plus("database: { kind: postgres, url: \"postgresql://db/x\", host: db }"), "the address is in `database.url` already"),
        (plus("database: { replicas: 2 }"), "SQLite has no replicas"),
        (site("region: far").to_owned() + "scaling: { min: 2 }\n", "replicas on several machines cannot share a file"),
        (plus("cache: { hosting: managed }"), "no cache is used"),
        (plus("cache: { url: \"redis://x\" }"), "no cache is used"),
        (plus("cache: { kind: memory, url: \"redis://x\" }"), "the cache is in the memory of the servers"),
        (plus("cache: { kind: redis, url: \"https://x\" }"), "this is not the address of a Redis"),
        (plus("cache: { kind: redis, url: \"redis://cache.example.com\" }"), "vectors are sent without TLS"),
        (plus("cache: { kind: redis, url: \"redis://:hunter2@x\" }"), "contains a password in plain text"),
        (plus("cache: { kind: memory, size: 1KB }"), "it must be from 1 MiB to 1 TiB"),
        (plus("cache: { kind: memory, ttl: 400d }"), "it must be from one second to 365 days"),
        (plus("cache: { host: redis.example.com }"), "it was replaced by `url`"),
        (plus("cache: { host: null, db: 0 }"), "note: `cache.db`: it was replaced by `url`; remove it"),
        (plus("cache: { max_size: 64MiB }"), "note: `cache.max_size`: it was replaced by `size`; remove it"),
        (plus("cache: { max_size: 1GB }"), "error: `cache.max_size`: it was replaced by `size`; write `size` instead"),
        (plus("traffic: { health_path: /health }"), "note: `traffic.health_path`: it had no effect, and was removed; remove it"),
        (plus("traffic: { health_path: /ready }"), "error: `traffic.health_path`: it had no effect, and was removed; remove it"),
        (plus("cache: { kind: redis, hosting: external }"), "an external Redis needs its address"),
        (plus("cache: { kind: redis, hosting: external, existing: r-1 }"), "an external Redis needs its address"),
        (plus("cache: { kind: redis, url: \"rediss://h\", existing: r-1 }"), "`cache.existing`: the servers connect to `cache.url`"),
        (site("existing: { cache: r-1 }").to_owned() + "cache: { kind: memory }\n", "`sites[0].existing.cache`: the cache is in the memory of the servers"),
        (plus("cache: { existing: r-1 }"), "`cache.existing`: no cache is used"),
        (plus("cache: { kind: redis, url: \"rediss://h\" }\nnetwork: { private_ca: ca.pem }"), "error: `network.private_ca`: the servers verify the Redis of the cache by it"),
        (plus("cache: { kind: redis, hosting: managed, url: \"redis://x\" }"), "this Redis is created by `up`"),
        (plus("cache: { kind: redis, hosting: managed, memory: 1KB }"), "`cache.memory`: it must be from 1 MiB to 1 TiB"),
        (plus("cache: { kind: redis, hosting: managed, existing: r-1 }"), "`cache.existing`: `up` creates this Redis"),
        (plus("cache: { kind: redis, hosting: managed, replicas: 9 }"), "9 is out of range"),
        (plus("cache: { kind: redis, url: \"rediss://x\", memory: 1GB }"), "`cache.memory`: it is for a Redis that a cloud runs"),
        (plus("cache: { kind: redis, url: \"rediss://x\", replicas: 1 }"), "`cache.replicas`: it is for a Redis that a cloud runs"),
        (plus("cache: { kind: memory, memory: 1GB }"), "`cache.memory`: the cache is in the memory of the servers"),
        (plus("state: { store: locla }"), "did you mean `local`?"),
        (plus("network: { cidr: 10.0.0.0 }"), "is not an address range"),
        (plus("tls: { email: a@example.com }"), "`tls.email`: it has no effect with `mode: local-ca`"),
        (plus("tls: { mode: acme }"), "a public certificate authority needs a DNS name"),
        (plus("tls: { directory: \"https://a.example\" }"), "`tls.directory`: it has no effect with `mode: local-ca`"),
        (plus("tls: { mode: acme, names: [\"*.example.com\"] }"), "a wildcard needs the challenge DNS-01"),
        (plus("tls: { mode: acme, names: [192.0.2.1] }"), "does not certify `192.0.2.1`"),
        (plus("tls: { mode: acme, names: [host] }"), "does not certify `host`"),
        (plus("tls: { mode: acme, names: [a.example.com], email: ada }"), "`ada` is not a mail address"),
        (plus("tls: { mode: acme, names: [a.example.com], directory: \"http://ca\" }"), "is not a URL with `https`"),
        (plus("tls: { mode: acme, names: [a.example.com] }"), "warning: `tls.mode`: the authority connects to port 443"),
        (plus("tls: { mode: existing }"), "no existing certificate is set"),
        (plus("tls: { existing: c-1 }"), "it has no effect with `mode: local-ca`"),
        (plus("tls: { names: [\"-x\"] }"), "neither a DNS name nor an address"),
        (plus("scaling: { max: 3 }"), "nothing says when to add a replica"),
        (plus("scaling: { cpu: 70 }"), "the number of replicas is fixed"),
        (plus("cluster: { min_nodes: 3, max_nodes: 2 }"), "the maximum, 2, is less than `min_nodes`, which is 3"),
        (plus("gpu: { count: 2 }"), "no GPU machines are configured"),
        (plus("traffic: { weights: { here: 0 } }"), "no site gets any traffic"),
        (plus("traffic: { weights: { here: 1001 } }"), "1001 is out of range"),
        (plus("traffic: { domain: \"a b\" }"), "is not a DNS name"),
        (plus("traffic: { existing: Z1 }"), "the name of the record is not set"),
        (plus("traffic: { managed_certificate: true }"), "no DNS zone is configured"),
        (two("role: secondary, port: 9443, metrics_port: 9444", "traffic: { domain: x.org, existing: Z1 }"), "not yet: `traffic.existing`: several sites serve clients, and do not fail over to one another"),
        (
            two(STANDBY, "dr: { mode: automatic, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }\ntraffic: { domain: x.org, existing: Z1 }"),
            "not yet: `traffic.existing`: site `here` is not in a cluster and has no load balancer for a record",
        ),
        (
            two(&format!("{STANDBY}, existing: {{ zone: Z1 }}"), "dr: { mode: automatic, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }\ntraffic: { domain: x.org }"),
            "not yet: `sites[1].existing.zone`: the records of several sites are in one zone, that of the primary",
        ),
        (two(STANDBY, &zone("192.0.2.53", ", existing: Z1")), "the witness updates the same name with `dns`"),
        (plus("traffic: { health_path: /health }"), "`traffic.health_path`: it had no effect, and was removed"),
        (plus("monitoring: { existing: a }"), "`monitoring.existing`: it had no effect, and was removed"),
        (plus("dr: { failback: automatic }"), "failback has no effect without failover"),
        (plus("replication: { database: { mode: streaming } }"), "there is no second site to replicate to"),
        (
            two("role: standby, region: far", "dr: { mode: automatic, rto: 1m, witness: { provider: w, region: w } }\ntraffic: { mode: dns, domain: x.org }\nreplication: { database: { mode: streaming } }"),
            "resolvers keep the old answer for 1m",
        ),
        (
            GOOD.replace("name: here, provider: onprem }", "name: here, provider: kubernetes, runtime: kubernetes, region: x }, { name: there, provider: kubernetes, runtime: kubernetes, region: y, role: standby }")
                + "dr: { mode: automatic, witness: { provider: kubernetes, region: x } }\nreplication: { database: { mode: streaming } }\n",
            "the witness would fail together with the primary",
        ),
        (two(STANDBY, "dr: { mode: automatic, rto: 7s, rpo: 6s, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }"), "detected only after 3s (`watch_every` 1s × `lost_after` 3), and another site takes over within 5500ms more: 8500ms in total"),
        (two(&format!("{STANDBY} }}, {{ name: third, provider: onprem, role: standby, port: 9445, metrics_port: 9446"), "dr: { mode: automatic, rto: 8800ms, rpo: 6s, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }"), "and another site takes over within 6s more: 9s in total"),
        (two(STANDBY, "dr: { mode: automatic, watch_every: 10ms, witness: { provider: onprem, region: local } }\nreplication: { database: { mode: streaming } }"), "a poll interval of 10ms is shorter than the time of one answer"),
        (two(STANDBY, "dr: { mode: manual, watch_every: 1h }\nreplication: { database: { mode: streaming } }"), "a poll interval of 1h is too long to detect a site failure in time"),
        (two(STANDBY, "dr: { mode: manual, lost_after: 1 }\nreplication: { database: { mode: streaming } }"), "can be a busy machine and not a site failure"),
        (two(STANDBY, "dr: { mode: manual, failback: automatic }\nreplication: { database: { mode: streaming } }"), "automatic failback needs automatic failover"),
        (two("role: standby, services: [models], port: 9443, metrics_port: 9444", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "only one site runs the API"),
        (two("role: standby, services: [api], port: 9443, metrics_port: 9444", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "has no database for control data"),
        (two("role: standby, region: far, port: 9443, metrics_port: 9444", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "supports only clusters and sites on one machine"),
        (two("role: standby, region: far, runtime: kubernetes", "dr: { mode: manual }\nreplication: { database: { mode: streaming } }"), "only if all use one external PostgreSQL"),
        (two("role: standby, region: far, runtime: kubernetes", OUTSIDE), "the global endpoint needs the address of this site, and none is configured"),
        (two("role: standby, runtime: kubernetes, cluster: { ingress: { kind: route } }", OUTSIDE), "the global endpoint needs TLS to the pods of a site, and an ingress terminates TLS"),
        (two("role: standby, runtime: kubernetes, cluster: { context: a } }, { name: third, provider: kubernetes, role: standby, runtime: kubernetes, cluster: { context: a }", OUTSIDE).replace("there, provider: onprem", "there, provider: kubernetes"), "`there` is in the same cluster"),
        (two("role: standby, runtime: kubernetes, existing: { cluster: c } }, { name: third, provider: aws, role: standby, runtime: kubernetes, existing: { cluster: c }", OUTSIDE).replace("there, provider: onprem", "there, provider: aws"), "`there` is in the same cluster"),
        (two("role: standby, runtime: kubernetes", OUTSIDE).replace("name: here, provider: onprem", "name: here, provider: onprem, runtime: kubernetes"), "are processes on a machine outside every cluster"),
        (site("runtime: kubernetes") + "database: { kind: postgres, url: \"postgres://db/x\" }\nbackup: { enabled: true }\n", "takes no backups of a database that runs elsewhere"),
        (site("runtime: kubernetes, cluster: { load_balancer: true }"), "it has no effect without `address`"),
        (site("runtime: kubernetes") + "network: { proxy: { https: \"secret:env:PROXY\" } }\n", "a proxy address from a secret is not supported in pods yet"),
        (plus("monitoring: { receivers: { a: \"https://a\" } }\nnetwork: { proxy: { http: \"secret:file:proxy\" } }"), "`network.proxy.http`: the supervisor that sends the messages runs in another folder"),
        (plus("monitoring: { receivers: { a: \"https://hooks.example.com/services/hunter2\" } }"), "`monitoring.receivers.a`: the path or query of a webhook usually holds its token"),
        (plus("monitoring: { receivers: { a: \"https://hooks.example.com/services/hunter2\" } }"), "for sites on AWS, a mailbox instead: `smtps://"),
        (plus("monitoring: { receivers: { a: \"https://hooks.example.com/?t=hunter2\" } }"), "write a reference to a secret"),
        (site("runtime: kubernetes, cluster: { address: \"https://here:0\" }"), "is not the address of a service"),
        (site("runtime: kubernetes, cluster: { health_address: \"http://here\" }"), "is not the address of a service"),
        (site("runtime: kubernetes, cluster: { api_server: [api.example.com] }"), "`api.example.com` is neither an address nor a network"),
        (site("runtime: kubernetes, cluster: { api_server: [0.0.0.0/0, 169.254.0.0/16] }"), "has the cloud's metadata service"),
        (site("runtime: kubernetes, cluster: { health_address: \"https://here\" }"), "it has no effect without failover between sites"),
        (two(STANDBY, "dr: { mode: manual, witness: { provider: onprem, region: far } }\nreplication: { database: { mode: streaming } }"), "is a process on that machine, not in `far`"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ntls: { mode: existing, existing: /x.pem }"), "the global endpoint verifies each site"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ntraffic: { port: 9443 }"), "port 9443 is also used by"),
        (two(STANDBY, "dr: { mode: automatic, witness: { provider: onprem, region: local, port: 8450 } }"), "`port` is not a key of `dr.witness`"),
        (two(STANDBY, "dr: { mode: manual }").replace("name: there", "name: witness"), "the location of the witness and the global endpoint"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, replicas: 1 }"), "each site has one database server"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, port: 5433 }"), "the database servers of several sites cannot share a port"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, hosting: managed }"), "each site would have its own managed database"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, host: db.example.com }"), "a clone would write to the database of the running service"),
        (two(STANDBY, "dr: { mode: manual }\nreplication: { database: { mode: streaming } }\ndatabase: { kind: postgres, host: db.example.com, replicas: 1 }"), "is backed up by its operator"),
        (plus("traffic: { port: 8441 }"), "only sites that fail over to one another have a global endpoint"),
        (plus("traffic: { mode: gateway }"), "warning: `traffic.mode`: only sites that fail over to one another have a global endpoint"),
        (two(STANDBY, "dr: { mode: manual, rpo: 500ms }\nreplication: { database: { mode: streaming, max_lag: 100ms } }"), "usage data reaches the other sites within 1s, which is more than `dr.rpo` (500ms)"),
        (plus(DNS), "the witness updates the DNS records"),
        (two(STANDBY, &zone("dns.example.com", "")), "`dns.example.com` is not the address of a name server"),
        (two(STANDBY, &zone("192.0.2.53:0", "")), "is not the address of a name server"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("domain: textnlp.example.com", "domain: textnlp.example.org")), "`textnlp.example.org` is not in the zone `example.com`"),
        (two(STANDBY, &zone("192.0.2.53", "").replace(", domain: textnlp.example.com", "")), "the zone needs the name that clients use"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("there: [", "elsewhere: [")), "`elsewhere` is not a site that serves"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("there: [", "elsewhere: [")), "there has no address, so clients could not reach it as primary"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("2001:db8::2", "192.0.2.1")), "here also has 192.0.2.1, so neither could be removed"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("2001:db8::2", "0.0.0.0")), "0.0.0.0 cannot be the address of a site"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("2001:db8::2", "x")), "`x` is not an IP address"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("secret:env:TSIG", "secret:file:tsig")), "`tsig` is not an absolute path"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("secret:env:TSIG", "c2VjcmV0")), "this is a secret in plain text"),
        (two(STANDBY, &zone("192.0.2.53", "").replace("name: update", "algorithm: md5, name: update")), "md5"),
        (two(STANDBY, &zone("192.0.2.53", ", ttl: 2d")), "2d is not a valid TTL of a DNS record"),
        (two(STANDBY, &zone("192.0.2.53", ", ttl: 892s")), "resolvers keep the old answer for 892s after another site has taken over: 8500ms + 892s are 900500ms"),
        (two(STANDBY, &zone("192.0.2.53", ", weights: { here: 0, there: 0 }")), "the name would resolve to no address while all sites are healthy"),
        (plus("backup: { enabled: true, keep: 1h }"), "a backup would expire before the next one is taken"),
        (plus("backup: { enabled: true, every: 1s }"), "the interval of backups is too short"),
        (plus("storage: { archive_after: 30 }"), "30s is not a number of whole days"),
        (plus("storage: { archive_after: 36h }"), "36h is not a number of whole days"),
        (plus("backup: { enabled: true, recipients: [age1nobody] }"), "`age1nobody` is not a public key"),
        (plus("backup: { enabled: true, destination: backups }"), "neither an absolute path nor an object store"),
        (plus("rollout: { deadline: 5m }"), "would revert before the analysis of the new release ends"),
        (plus(&format!("rollout: {{ prometheus: {PROMETHEUS} }}")), "a rolling update has no analysis of the new release"),
        (plus(&format!("rollout: {{ strategy: canary, queries: [{QUERY}] }}")), "a job in a cluster queries it, and no site is in a cluster"),
        (asked("", ""), "`rollout.prometheus`: it has no queries"),
        (rolled(&format!("queries: [{QUERY}]")), "`rollout.queries`: no Prometheus is configured for the queries"),
        (asked("url: prometheus:9090", QUERY), "this is not the address of a Prometheus"),
        (asked("url: \"ftp://p\"", QUERY), "this is not the address of a Prometheus"),
        (asked("url: \"https://ada:hunter2@p\"", QUERY), "the address contains a user name or a password"),
        (asked("url: \"https://p/?a=b\"", QUERY), "it cannot end with a query or a fragment"),
        (asked("url: \"http://p/api/v1/query/\"", QUERY), "it cannot end with a query or a fragment"),
        (asked("url: \"http://p\", token: \"secret:env:TOKEN\"", QUERY), "the token would be sent without TLS"),
        (asked("url: \"http://p\", token: \"hunter2\"", QUERY), "this is a secret in plain text"),
        (asked("url: \"http://p\", ca_file: /etc/hosts", QUERY), "an `http` address has no certificate to verify"),
        (asked("url: \"https://p\", ca_file: /nowhere/ca.pem", QUERY), "there is no file /nowhere/ca.pem"),
        (asked(URL, "{ name: a, query: up }"), "the query has no limit"),
        (asked(URL, "{ name: a, query: up, at_most: 1, at_least: 0 }"), "it has two bounds"),
        (asked(URL, "{ name: a, query: up, at_most: .nan }"), "queries[0].at_most"),
        (asked(URL, "{ name: a, query: up, at_least: .inf }"), "queries[0].at_least"),
        (asked(URL, "{ name: \" \", query: up, at_most: 1 }"), "the name is empty, too long or not printable"),
        (asked(URL, &format!("{QUERY}, {QUERY}")), "another query is also called `errors`"),
        (asked(URL, "{ name: a, query: \"\", at_most: 1 }"), "the query is empty"),
        (asked(URL, &format!("{{ name: a, query: {}, at_most: 1 }}", "x".repeat(1001))), "it has 1001 bytes; the maximum is 1000"),
        (asked(URL, "{ name: a, query: \"up{pod='{{pod}}'}\", at_most: 1 }"), "`{{pod}}` is not a known placeholder"),
        (asked(URL, "{ name: a, query: up, at_most: 1, for: 0 }"), "queries[0].for"),
        (asked(URL, "{ name: a, query: up, at_most: 1, for: 60 }").replace("rollout: {", "rollout: { bake: 1m, deadline: 10m,"), "60 answers take 600 s"),
        (asked(URL, &(0..11).map(|n| QUERY.replace("errors", &format!("a{n}"))).collect::<Vec<_>>().join(", ")), "11 are more than 10"),
        (plus("gates: { tokens_max: 4096 }\nserver: { api: { max_tokens: 100 } }"), "the server refuses more than 100 tokens"),
        (plus("gates: { p95_ms: 2000 }\nserver: { api: { timeout: 1s } }"), "the timeout of the server is shorter"),
        (plus("budget: { currency: usd }"), "`usd` is not a currency"),
        (plus("budget: { billing_export: costs }"), "`costs` is not a table of BigQuery: it is not `PROJECT.DATASET.TABLE`"),
        (plus("budget: { billing_export: my-project.my-costs.t }"), "error: `budget.billing_export`: `my-project.my-costs.t` is not a table"),
        (plus(&MACHINE.replace("SITE", "elsewhere")), "there is no site `elsewhere`"),
        (plus(&MACHINE.replace("SITE", "here").replace("200", ".inf")), "budget.machines.here"),
        (plus(&MACHINE.replace("SITE", "here").replace("watts: 200, ", "")), "watts"),
        (plus("budget: { warn_at: 0.5 }"), "it is a share of the budget, and none is set"),
        (plus("gates: { availability_window: 31d }"), "`gates.availability_window`: 31d is not from 1s to 30d"),
        (plus("gates: { availability: 1.01 }"), "gates.availability"),
        (plus("gates: { model_load_time: 0s }"), "`gates.model_load_time`: every load takes longer"),
        (plus("gates: { server_memory: 0B }"), "`gates.server_memory`: every server takes more"),
        (plus("gates: { tokens_per_second: 0 }"), "gates.tokens_per_second"),
        (quality("text: short"), "models[0].quality.text"),
        (quality(&format!("text: {}", "ü".repeat(40_000))), "it has 80000 bytes, and at most 65536 are measured"),
        (quality(&format!("{TEXT}, max_perplexity: 1")), "no text has a perplexity of 1 or less"),
        (quality(&format!("{TEXT}, max_perplexity: .nan")), "`models[0].quality.max_perplexity`"),
        (quality(TEXT).replace("preload", "role: embeddings, preload"), "a model for embeddings predicts no text"),
        (plus("server: { api: { cors_origins: [\"not an origin\"] } }"), "`server.api.cors_origins[0]`: `not an origin` is not an origin"),
        (plus("server: { api: { cors_origins: [\"*\", \"javascript:alert(1)\"] } }"), "`server.api.cors_origins[1]`"),
        (plus("server: { api: { cors_origins: [\"https://a.example/\"] } }"), "is not an origin"),
        (plus("server: { api: { trusted_proxies: [10.0.0.0/8, 10.0.0.1/8] } }"), "`server.api.trusted_proxies[1]`: `10.0.0.1/8` is neither an address nor a network"),
        (GOOD.replace("name: here", "name: witness"), "the name is reserved for the location of the witness"),
        (site("runtime: kubernetes") + "tags: { note: \"{{ 7*7 }} : x\" }\n", "`tags`: `note: {{ 7*7 }} : x` cannot be a label of objects in a cluster"),
        (plus("models: [{ name: x, source: \"file:x\" }]"), "error: `models[0].source`: a relative path depends on the working directory"),
        (two(STANDBY, "dr: { mode: manual, witness: { provider: auto, region: local } }\nreplication: { database: { mode: streaming } }"), "the provider of the witness is not detected automatically"),
        (plus("tags: { x: \"a\\nb\" }"), "is not accepted everywhere"),
        (plus("prerequisites: { people: { devop: Ada } }"), "did you mean `devops`?"),
        (phase("pilot", ""), "phase pilot has at least 3 replicas"),
        (phase("pilot", "data: disposable"), "stored data must be protected"),
        (phase("pilot", "backup: { enabled: false }"), "needs backups"),
        (phase("pilot", ""), "no on-call contact for devops, security, database, network"),
        (phase("multi-region", ""), "phase multi-region has at least 2 sites"),
    ];
    let mut missing = Vec::new();
    for (text, sentence) in cases {
        let said = said(load(&text, &Overrides::default(), &Catalogue::default()));
        if !said.contains(sentence) {
            missing.push(format!("{sentence}\n--- said:\n{said}\n--- of:\n{text}"));
        }
    }
    assert!(missing.is_empty(), "{}", missing.join("\n"));
    assert_eq!(said(load(GOOD, &Overrides::default(), &Catalogue::default())), "");
    assert!(!said(load(&asked(URL, QUERY), &Overrides::default(), &Catalogue::default())).contains("rollout"));
    let hub = "registry: { url: docker.io, user: ci, password: secret:env:PATH }\n";
    for (image, is_warned) in
        [("team/textnlp:1", false), ("docker.io/team/textnlp:1", false), ("r.example.com/a:1", true)]
    {
        let text = within(&format!("image: \"{image}\"")) + hub;
        let said = said(load(&text, &Overrides::default(), &Catalogue::default()));
        assert_eq!(said.contains("no image of the site is in"), is_warned, "{image}: {said}");
    }
}

/// Readers copy the environments of the guides.
#[test]
fn environments_of_the_guides_load() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guide");
    let mut loaded = 0;
    for page in std::fs::read_dir(folder).unwrap().flatten().map(|entry| entry.path()) {
        let text = std::fs::read_to_string(&page).unwrap();
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            let indent = block.len() - block.trim_start().len();
            let lines = block.lines().map(|line| line.get(indent..).unwrap_or_default());
            let block = lines.collect::<Vec<_>>().join("\n") + "\n";
            if !block.starts_with("extends:") || !block.contains("\nenvironment:") {
                continue;
            }
            // A digest that the reader fills in.
            let block = block.replace("sha256:…", &format!("sha256:{}", "0".repeat(64)));
            let variables = [("DATABASE_URL".to_owned(), "postgres://x@db.example.com/x".to_owned())].into();
            let overrides = Overrides { variables, ..Overrides::default() };
            let said = said(load(&block, &overrides, &Catalogue::default()));
            assert!(!said.contains("error:"), "{}:\n{block}\n{said}", page.display());
            loaded += 1;
        }
    }
    assert!(loaded >= 4, "{loaded}");
}

#[test]
fn backups_in_a_bucket_need_what_the_supervisor_can_read() {
    let credentials = "credentials: \"secret:file:/etc/textnlp/bucket.env\"";
    let cases = [
        (format!("destination: s3://b/p, {credentials}"), ""),
        (format!("destination: gs://b, {credentials}"), ""),
        ("destination: s3://b/p".to_owned(), ""),
        ("destination: az://c/p".to_owned(), "the storage account is a variable"),
        ("destination: s3://b/p, credentials: \"secret:env:KEYS\"".to_owned(), "neither the variables"),
        ("destination: s3://b/p, credentials: \"secret:file:bucket.env\"".to_owned(), "neither the variables"),
        (format!("destination: /mnt/elsewhere, {credentials}"), "need no credentials"),
        ("destination: s3://".to_owned(), "not a bucket and a prefix"),
        ("destination: \"s3://b/p?versionId=1\"".to_owned(), "not a bucket and a prefix"),
        ("destination: s3://b/../c".to_owned(), "not a bucket and a prefix"),
        ("destination: \"s3://${HOME}/p\"".to_owned(), "variables are not filled in here"),
        (format!("destination: s3://b/p, {credentials}, point_in_time: 1m"), "archived in folders"),
    ];
    for (backup, expected) in cases {
        let text = format!("{GOOD}backup: {{ enabled: true, {backup} }}\ndatabase: {{ kind: postgres }}\n");
        let variables = BTreeMap::from([("KEYS".to_owned(), "x".to_owned()), ("HOME".to_owned(), "/home".to_owned())]);
        let said = said(load(&text, &Overrides { variables, ..Overrides::default() }, &Catalogue::default()));
        match expected {
            "" => {
                for wrong in ["backup.destination", "neither the variables", "need no credentials", "is a variable"] {
                    assert!(!said.contains(wrong), "{backup}: {said}");
                }
            }
            expected => assert!(said.contains(expected), "{backup}: {said}"),
        }
    }
}

#[test]
fn dumps_of_a_cluster_are_copied_to_a_bucket_and_not_to_a_folder() {
    let credentials = "backup.credentials=secret:file:/etc/textnlp/bucket.env";
    for (sets, expected) in [
        (&["backup.destination=s3://b/p", credentials][..], ""),
        (&["backup.destination=gs://b"], ""),
        // Files of settings are read where `up` runs.
        (&["backup.destination=s3://b/p", "network.private_ca=ca.pem"], ""),
        (&["backup.destination=az://c/p"], "which the job in the cluster does not have"),
        (&["backup.destination=/mnt/elsewhere"], "are on a volume in it, not in the folder `/mnt/elsewhere`"),
        (&["backup.destination=elsewhere"], "write the bucket for copies of them, `s3://BUCKET/PREFIX`"),
        (&["backup.destination=s3://b/p", "backup.credentials=secret:file:bucket.env"], "neither the variables"),
    ] {
        let overrides = Overrides { sets: sets.iter().map(|&set| set.to_owned()).collect(), ..Overrides::default() };
        let said = said(Library::built_in().load("pilot", &overrides, &Catalogue::default()));
        match expected {
            "" => {
                for wrong in ["`backup.destination`", "error: `backup.", "supervisor"] {
                    assert!(!said.contains(wrong), "{sets:?}: {said}");
                }
            }
            expected => assert!(said.contains(expected), "{sets:?}: {said}"),
        }
    }
}

#[test]
fn air_gapped_environment_loads_without_warnings_and_with_backups() {
    let loaded = Library::built_in().load("air-gapped", &Overrides::default(), &Catalogue::default()).unwrap();
    let warnings: Vec<_> = loaded.report.0.iter().filter(|problem| problem.severity == Severity::Warning).collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    assert!(loaded.environment.backup.enabled && loaded.environment.backup.destination.is_none());
}

#[test]
fn small_machines_warn_up_to_staging_and_block_from_pilot() {
    use environment::model::Phase;
    use textnlp_provider::{Disk, Minimum};
    let of = |phase: Phase| {
        let Minimum { cores, memory_bytes, disk_bytes, disk, network_mbps, gpu_recommended, blocks, .. } =
            phase.minimum();
        (cores, memory_bytes / 1_000_000_000, disk_bytes / 1_000_000_000, disk, network_mbps, gpu_recommended, blocks)
    };
    assert_eq!(of(Phase::Staging), (4, 8, 50, Disk::Solid, 1_000, false, false));
    assert_eq!(of(Phase::Pilot), (16, 32, 500, Disk::Nvme, 10_000, true, true));
    assert_eq!(of(Phase::AirGapped), (16, 32, 500, Disk::Nvme, 10_000, true, false));
    assert_eq!([Phase::Staging, Phase::Pilot, Phase::Optimized].map(|phase| phase.minimum().nodes), [1, 3, 3]);
    let blocks = |phase: &str, prerequisites: &str| {
        let text = format!(
            "{}prerequisites: {{ {prerequisites} }}\n",
            GOOD.replace("phase: staging", &format!("phase: {phase}"))
        );
        load(&text, &Overrides::default(), &Catalogue::default()).unwrap().environment.minimum().blocks
    };
    for (phase, prerequisites, wanted) in [
        ("staging", "", false),
        ("staging", "minimum: block", true),
        ("optimized", "", true),
        ("optimized", "minimum: warn", false),
        ("optimized", "allow_below_minimum: true", false),
        ("optimized", "minimum: block, allow_below_minimum: true", true),
        ("air-gapped", "", false),
        ("air-gapped", "minimum: block", true),
    ] {
        assert_eq!(blocks(phase, prerequisites), wanted, "{phase}: {prerequisites}");
    }
}

#[test]
fn each_replica_in_a_cluster_needs_a_gpu_of_its_own() {
    let clustered = GOOD.replace("name: here, provider: onprem", "name: here, provider: onprem, runtime: kubernetes");
    let report = |more: &str| said(load(&format!("{clustered}{more}"), &Overrides::default(), &Catalogue::default()));
    for (more, says) in [
        (
            "gpu: { size: small, count: 2 }\nscaling: { min: 3 }\n",
            "error: `gpu.count`: site `here` has 2 GPUs, one for each pod: not enough for 3 replicas; raise it",
        ),
        (
            "gpu: { size: small, count: 3 }\nscaling: { min: 3, max: 20, requests_per_second: 5 }\n",
            "warning: `gpu.count`: site `here` has 3 GPUs, one for each pod: not enough for 20 replicas, so the autoscaler stops at 3",
        ),
        (
            "gpu: { size: small, count: 3 }\nscaling: { min: 3 }\nrollout: { strategy: canary }\n",
            "not enough for 3 replicas beside the new pods of a rollout (`canary`)",
        ),
        (
            "gpu: { size: small, count: 5 }\nscaling: { min: 3 }\nrollout: { strategy: blue-green }\n",
            "not enough for 3 replicas beside the new pods of a rollout (`blue-green`)",
        ),
        (
            "gpu: { size: small, count: 2, max: 6 }\nscaling: { min: 3, max: 6, requests_per_second: 5 }\n",
            "error: `gpu.count`: site `here` has 2 GPUs, one for each pod: not enough for 3 replicas; raise it",
        ),
        (
            "gpu: { size: small, count: 3, max: 6 }\nscaling: { min: 3, max: 20, requests_per_second: 5 }\n",
            "warning: `gpu.max`: site `here` has 6 GPUs, one for each pod: not enough for 20 replicas, so the autoscaler stops at 6",
        ),
        (
            "gpu: { size: small, count: 3, max: 2 }\n",
            "error: `gpu.max`: the maximum, 2, is less than `count`, which is 3",
        ),
        (
            "gpu: { size: small, count: 3, max: 6 }\ncluster: { existing: theirs }\n",
            "error: `gpu.max`: the machines of the existing cluster of site `here` are its operator's",
        ),
        (
            "gpu: { size: small, machines: [a] }\ncluster: { existing: theirs }\n",
            "error: `gpu.machines`: the machines of the existing cluster of site `here` are its operator's",
        ),
        (
            "gpu: { size: small, upgrade: surge }\ncluster: { existing: theirs }\n",
            "error: `gpu.upgrade`: the machines of the existing cluster of site `here` are its operator's",
        ),
        (
            "gpu: { size: small, per_machine: 4 }\nscaling: { min: 5 }\n",
            "error: `gpu.count`: site `here` has 4 GPUs, one for each pod: not enough for 5 replicas; raise it",
        ),
        (
            "gpu: { size: small, count: 5 }\nscaling: { min: 3, max: 5, cpu: 70 }\n",
            "error: `scaling`: `cpu` and `memory` of a pod whose GPU computes do not follow its load; write `requests_per_second",
        ),
        (
            "gpu: { size: small, count: 5 }\nscaling: { min: 3, max: 5, memory: 80, requests_per_second: 5 }\n",
            "warning: `scaling`: `cpu` and `memory` of a pod whose GPU computes do not follow its load, and have no effect",
        ),
        (
            "gpu: { size: small }\nmodels: [{ name: textnlp-tiny, source: bundled, role: default, executor: own }]\n",
            "error: `models[0].executor`: the own kernels compute on the CPU",
        ),
    ] {
        assert!(report(more).contains(says), "{more}: {}", report(more));
    }
    for enough in [
        "gpu: { size: small, count: 3 }\nscaling: { min: 3 }\n",
        "gpu: { size: xlarge }\nscaling: { min: 8 }\n",
        "gpu: { size: small, per_machine: 4 }\nscaling: { min: 4 }\n",
        "gpu: { size: small, count: 3, max: 6 }\nscaling: { min: 3, max: 6, requests_per_second: 5 }\n",
        "gpu: { size: small, count: 4 }\nscaling: { min: 3 }\nrollout: { strategy: canary }\n",
        "gpu: { size: small, count: 6 }\nscaling: { min: 3 }\nrollout: { strategy: blue-green }\n",
    ] {
        assert!(!report(enough).contains("gpu"), "{enough}: {}", report(enough));
    }
    let sliced = clustered
        .replace("runtime: kubernetes", "runtime: kubernetes, cluster: { gpu_resource: nvidia.com/mig-1g.10gb }");
    let more = "gpu: { size: small, count: 7 }\nscaling: { min: 7 }\n";
    let sliced = said(load(&format!("{sliced}{more}"), &Overrides::default(), &Catalogue::default()));
    assert!(!sliced.contains("gpu"), "{sliced}");
    // The shipped environment with GPUs has enough of them.
    let overrides = Overrides { sets: vec!["sites[0].runtime=kubernetes".to_owned()], ..Overrides::default() };
    let loaded = Library::built_in().load("optimized", &overrides, &Catalogue::default()).unwrap();
    let (site, parts) = components(&loaded.environment, &Release::resolve(&loaded.environment, &artifacts())).remove(0);
    assert_eq!(site.cluster.and_then(|cluster| cluster.gpu).map(|gpu| gpu.count), Some(6));
    let server = parts.iter().find(|part| part.name.as_str() == "server").map(|part| json!(part.part)).unwrap();
    assert_eq!(server["workload"]["config"]["textnlp"]["models"]["device"], "cuda");
}

#[test]
fn feature_flags_are_switches_or_have_a_share_and_tenants() {
    let features = |text: &str| {
        let loaded = load(&format!("{GOOD}features: {text}\n"), &Overrides::default(), &Catalogue::default()).unwrap();
        json!(loaded.environment.features)
    };
    let value = |enabled: bool, percent: u8, tenants: &[&str]| {
        let model = serde_json::Value::Null;
        json!({ "enabled": enabled, "percent": percent, "tenants": tenants, "model": model })
    };
    assert_eq!(
        features("{ a: true, b: false, c: { percent: 10, tenants: [acme] }, new_model: false }"),
        json!({
            "a": value(true, 100, &[]), "b": value(false, 100, &[]), "c": value(true, 10, &["acme"]),
            "new_model": value(false, 100, &[]),
        })
    );
    let of_model = features("{ new_model: { model: textnlp-tiny, percent: 5 } }");
    assert_eq!(of_model["new_model"]["model"], "textnlp-tiny");
}

#[test]
fn wrong_feature_flags_are_all_reported() {
    let said =
        |text: &str| said(load(&format!("{GOOD}features: {text}\n"), &Overrides::default(), &Catalogue::default()));
    let report =
        said("{ A-b: true, a: { tenants: [A B] }, b: { model: textnlp-tiny }, new_model: { model: textnlp-tini } }");
    for line in [
        "`features.A-b`: `A-b` is not the name of a feature flag",
        "`features.a.tenants[0]`: `A B` is not a tenant",
        "`features.b.model`: it has no effect with this flag",
        "`features.new_model.model`: `models` has no `textnlp-tini`; did you mean `textnlp-tiny`?",
    ] {
        assert!(report.contains(&format!("error: {line}")), "{line}:\n{report}");
    }
    assert!(said("{ new_model: true }").contains("the model of the share is not set"));
    for mistyped in ["{ a: yes please }", "{ a: { percent: 101 } }", "{ a: { percentage: 5 } }", "{ a: 1 }", "[a]"] {
        assert!(said(mistyped).contains("error: `features"), "{mistyped}: {}", said(mistyped));
    }
}

#[test]
fn what_a_provider_refuses_has_the_place_of_its_setting() {
    let text = format!("{GOOD}traffic: {{ domain: text.example.com }}\n");
    let loaded = load(&text, &Overrides::default(), &Catalogue::default()).unwrap();
    let at = |place: &str, fix: &str| loaded.origin_of(place, fix).map(|origin| origin.to_string());
    for (place, fix, expected) in [
        ("here/gateway zone", "write `traffic.existing`, or another `traffic.domain`", Some("mine.yaml:5:20")),
        ("here/network account", "set `sites[].account`, not `sites[].provider`", Some("mine.yaml:4:33")),
        ("here/network cidr", "choose another range", Some("mine.yaml:4:9")),
        ("there/network cidr", "choose another range", None),
    ] {
        let found = at(place, fix);
        assert_eq!(found.as_deref(), expected, "{place}: {fix}");
    }
}
