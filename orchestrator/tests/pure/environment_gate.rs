//! Gates and load, proven open and shut by a service that lives in virtual time: its latency is what a test says, and
//! minutes of load pass in a moment.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use expect_test::{Expect, expect};
use jiff::civil::date;
use serde_json::{Value, json};
use textnlp_orchestrator::clock::{Clock, VirtualClock};
use textnlp_orchestrator::environment::model::{ModelQuality, ModelSettings, Phase};
use textnlp_orchestrator::environment::{Catalogue, Environment, Library, Overrides};
use textnlp_orchestrator::gate::phases::{
    self, COMPLIANCE, CheckDefinition, CheckSource, EMBEDDINGS, GENERATION_RATE, GROWTH, IndicatorSource, METRICS,
    MODEL_LOAD, PHASES, SECURITY_AUDIT, SERVER_MEMORY, SESSIONS, TEXT_QUALITY, VULNERABILITIES,
};
use textnlp_orchestrator::gate::{
    self, Check, Evidence, Gate, GateInputs, IssuedKey, KeyIssuer, KeyRequest, Progress, RecordedExemption,
    WaiverError, waiver,
};
use textnlp_orchestrator::load::{self, FindLimit, Key, Load, LoadRequest, LoadResponse, RequestFailure, Wire};
use textnlp_orchestrator::metrics::KEY_METRICS;
use textnlp_orchestrator::report::Report;
use textnlp_provider::{Lineage, Secret};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

fn clock() -> VirtualClock {
    VirtualClock::at("2026-01-02T03:04:05Z".parse().unwrap())
}

/// What is wrong with a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    Down,
    Loading,
    TakesAnyKey,
    TakesNoKey,
    NoLimit,
    /// The first time.
    CountsLimitsApart,
    Mute,
    ForgetsItsSeed,
    NeverStops,
    NoMetrics,
    FailsOneIn(u32),
    KeepsKeys,
    GivesNoKeys,
    MixesTenants,
    SharesTickets,
    RefusesTickets,
    RefusesFeatures,
    MixesUsage,
    RecordsNothing,
    KeepsTenants,
    CannotRemoveTenants,
    /// Of the model of [`OWNER`].
    LosesModels,
    SharesModels,
    TellsOfModels,
    HintsAtModels,
    /// No fault: it is an encoder.
    EncodesForOwner,
    PlainHttp,
    /// No fault: its default model is an encoder.
    Embeds,
    ForgetsItsVectors,
}

/// The tenant of the only model that belongs to one, and the name of that model.
const OWNER: &str = "acme";
const OWN_MODEL: &str = "acme/own";

/// A service in virtual time.
struct Service {
    clock: VirtualClock,
    faults: Vec<Fault>,
    /// How long an answer takes when nobody else asks.
    latency: Duration,
    /// What each other request in flight adds.
    each: Duration,
    in_flight: AtomicU32,
    asked: AtomicU32,
    keys: Mutex<HashMap<String, Option<u64>>>,
    /// The tenant of each key that has one.
    tenants: Mutex<HashMap<String, String>>,
    /// The recorded requests of each of these keys.
    recorded: Mutex<HashMap<String, u64>>,
    /// What it exports besides the key metrics.
    exports: String,
}

impl Service {
    fn new(latency_ms: u64, faults: impl IntoIterator<Item = Fault>) -> Self {
        Self {
            clock: clock(),
            faults: faults.into_iter().collect(),
            latency: Duration::from_millis(latency_ms),
            each: Duration::ZERO,
            in_flight: AtomicU32::new(0),
            asked: AtomicU32::new(0),
            keys: Mutex::new(HashMap::new()),
            tenants: Mutex::default(),
            recorded: Mutex::default(),
            exports: "textnlp_model_load_seconds{replica=\"a\",model=\"m\"} 0.25\n".to_owned(),
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.faults.contains(&fault)
    }

    fn key_is_good(&self, key: Option<&Key>) -> Result<(), u16> {
        if self.has(Fault::TakesAnyKey) {
            return Ok(());
        }
        let mut keys = self.keys.lock().unwrap();
        let text = key.and_then(|k| k.value.expose_text()).unwrap_or_default();
        let Some(left) = keys.get_mut(text).filter(|_| !self.has(Fault::TakesNoKey)) else { return Err(401) };
        match left {
            Some(0) if !self.has(Fault::NoLimit) => return Err(429),
            Some(left) => *left = left.saturating_sub(1),
            None => {}
        }
        Ok(())
    }

    fn text(&self, body: &Value, asked: u32) -> String {
        if self.has(Fault::Mute) {
            return String::new();
        }
        let seed = if self.has(Fault::ForgetsItsSeed) { u64::from(asked) } else { body["seed"].as_u64().unwrap_or(0) };
        let words: Vec<String> = (0..body["max_tokens"].as_u64().unwrap_or(1))
            .map(|i| format!("word{}", (seed * 31 + i * 7) % 97))
            .collect();
        let text = words.join(" ");
        match body["stop"][0].as_str().filter(|_| !self.has(Fault::NeverStops)).and_then(|stop| text.find(stop)) {
            Some(at) => text[..at].to_owned(),
            None => text,
        }
    }
}

#[async_trait]
impl Wire for Service {
    async fn send(&self, ask: LoadRequest) -> Result<LoadResponse, RequestFailure> {
        if self.has(Fault::Down) {
            return Err(RequestFailure::Connect("connection refused".to_owned()));
        }
        let asked = self.asked.fetch_add(1, Ordering::SeqCst);
        let answer = |status: u16, body: Value| Ok(LoadResponse { status, body: body.to_string().into_bytes() });
        match ask.path.as_str() {
            "/health" => return answer(200, json!({"region": "local"})),
            "/ready" => return answer(if self.has(Fault::Loading) { 503 } else { 200 }, json!({})),
            "/metrics" => {
                let absent = self.has(Fault::NoMetrics).then_some("textnlp_queue_length");
                let names = KEY_METRICS.into_iter().filter(|name| Some(*name) != absent);
                // The name of a metric alone is no sample of it.
                let text: String = names.map(|name| format!("{name}{{replica=\"a\"}} 1\n")).collect();
                let body = format!("# HELP textnlp_queue_length Requests\n{text}{}", self.exports).into_bytes();
                return Ok(LoadResponse { status: 200, body });
            }
            _ => {}
        }
        if let Err(status) = self.key_is_good(ask.key.as_ref()) {
            return answer(status, json!({}));
        }
        let tenants = self.tenants.lock().unwrap().clone();
        let key = ask.key.as_ref().and_then(|key| key.value.expose_text()).unwrap_or_default();
        let own = tenants.get(key);
        let names_another = ask.tenant.as_ref().is_some_and(|named| Some(named) != own);
        let ticket = own.zip(ask.path.strip_prefix("/v1/stream?ticket="));
        let is_theirs = ticket.is_some_and(|(own, ticket)| !ticket.starts_with(&format!("{own}&")));
        let is_refused = (names_another && !self.has(Fault::MixesTenants))
            || (is_theirs && !self.has(Fault::SharesTickets))
            || (ticket.is_some() && self.has(Fault::RefusesTickets))
            || (ask.path == "/v1/features" && self.has(Fault::RefusesFeatures));
        if is_refused {
            return answer(403, json!({}));
        }
        let mut recorded = self.recorded.lock().unwrap().clone();
        if own.is_some() && !self.has(Fault::RecordsNothing) {
            *self.recorded.lock().unwrap().entry(key.to_owned()).or_default() += 1;
        }
        if let (Some(own), true) = (own, ask.path.starts_with("/v1/stream")) {
            return answer(200, json!({"url": format!("/v1/stream?ticket={own}")}));
        }
        if ask.path == "/v1/usage" {
            recorded.retain(|of, _| of == key || self.has(Fault::MixesUsage));
            let requests: u64 = recorded.values().sum();
            return answer(200, json!({"key": key, "tenant": own, "total": {"requests": requests}}));
        }
        let body = ask.body.unwrap_or_default();
        let is_owner = own.is_some_and(|tenant| tenant == OWNER) && !self.has(Fault::LosesModels);
        let encodes = self.has(Fault::EncodesForOwner);
        let is_for_models = ask.path == "/v1/generate" || (encodes && ask.path == "/v1/embeddings");
        if let Some(model) = body["model"].as_str().filter(|_| is_for_models) {
            let is_it = model == OWN_MODEL;
            if !is_it || !(is_owner || self.has(Fault::SharesModels)) {
                let tells = is_it && self.has(Fault::TellsOfModels);
                let hints = is_it && self.has(Fault::HintsAtModels);
                let message = if tells { "it is of acme".to_owned() } else { format!("there is no model `{model}`") };
                let hint = if hints { format!("did you mean `{model}`?") } else { format!("{} letters", model.len()) };
                return answer(404, json!({"error": {"message": message, "hint": hint}}));
            }
        }
        if encodes && is_owner {
            match ask.path.as_str() {
                "/v1/models" => {
                    let models = json!([{"id": OWN_MODEL, "kind": "embedding", "default": false}]);
                    return answer(200, json!({"data": models}));
                }
                "/v1/embeddings" => return answer(200, json!({"data": [{"embedding": [0.6, -0.8]}]})),
                _ => return answer(400, json!({})),
            }
        }
        if ask.path == "/v1/generate" {
            let others = self.in_flight.fetch_add(1, Ordering::SeqCst);
            self.clock.sleep(self.latency + self.each * others).await;
            self.in_flight.fetch_sub(1, Ordering::SeqCst);
            let fails = |fault: &Fault| matches!(fault, Fault::FailsOneIn(n) if asked.is_multiple_of(*n));
            if self.faults.iter().any(fails) && body["ignore_end"] == true {
                return answer(500, json!({}));
            }
        }
        if self.has(Fault::Embeds) {
            match ask.path.as_str() {
                "/v1/models" => {
                    let models = json!([
                        {"id": "encoder", "kind": "embedding", "default": true},
                        {"id": "writer", "kind": "generation", "default": false},
                    ]);
                    return answer(200, json!({"data": models}));
                }
                "/v1/embeddings" => {
                    let more = if self.has(Fault::ForgetsItsVectors) { f64::from(asked) } else { 0.0 };
                    return answer(200, json!({"data": [{"embedding": [0.6, -0.8 + more]}]}));
                }
                "/v1/generate" => return answer(400, json!({})),
                _ => {}
            }
        }
        let text = self.text(&body, asked);
        answer(200, json!({"text": text, "usage": {"completion_tokens": body["max_tokens"]}}))
    }

    fn verified(&self) -> bool {
        !self.has(Fault::PlainHttp)
    }
}

#[async_trait]
impl KeyIssuer for Service {
    async fn create(&self, request: KeyRequest) -> Result<IssuedKey, String> {
        if self.has(Fault::GivesNoKeys) {
            return Err("the database is locked".to_owned());
        }
        let mut keys = self.keys.lock().unwrap();
        let is_apart = self.has(Fault::CountsLimitsApart) && !keys.contains_key(&request.name);
        keys.insert(request.name.clone(), request.requests_per_hour.map(|limit| limit - u64::from(is_apart)));
        self.tenants.lock().unwrap().extend(request.tenant.map(|tenant| (request.name.clone(), tenant)));
        let key = Key { header: "X-API-Key".to_owned(), value: Secret::new(request.name.as_str()) };
        Ok(IssuedKey { public_id: request.name, key })
    }

    async fn revoke(&self, public_id: &str) -> Result<(), String> {
        if self.has(Fault::KeepsKeys) {
            return Err("the database is locked".to_owned());
        }
        self.keys.lock().unwrap().remove(public_id);
        Ok(())
    }

    async fn remove_tenant(&self, tenant: &str) -> Result<Option<String>, String> {
        if self.has(Fault::KeepsTenants) {
            return Err("the database is locked".to_owned());
        }
        if self.has(Fault::CannotRemoveTenants) {
            return Ok(Some("run `up`".to_owned()));
        }
        self.tenants.lock().unwrap().retain(|_, name| name != tenant);
        Ok(None)
    }
}

fn environment(name: &str) -> Environment {
    environment_with(name, &[])
}

fn environment_with(name: &str, sets: &[&str]) -> Environment {
    let sets = sets.iter().map(|set| (*set).to_owned()).collect();
    let overrides = Overrides { sets, ..Overrides::default() };
    Library::built_in().load(name, &overrides, &Catalogue::default()).unwrap().environment
}

fn evidence_with(name: &str, service: &Service, recorded: Vec<Check>, stop: &CancellationToken) -> Evidence {
    evidence_exempted(name, service, recorded, &[], stop)
}

fn evidence_exempted(
    name: &str,
    service: &Service,
    recorded: Vec<Check>,
    exemptions: &[RecordedExemption],
    stop: &CancellationToken,
) -> Evidence {
    evidence_of(&environment(name), service, recorded, exemptions, stop)
}

fn evidence_of(
    environment: &Environment,
    service: &Service,
    recorded: Vec<Check>,
    exemptions: &[RecordedExemption],
    stop: &CancellationToken,
) -> Evidence {
    let outside = GateInputs {
        address: "https://localhost:8443",
        lineage: Lineage(Uuid::nil()),
        service,
        metrics: Some(service),
        keys: service,
        recorded,
        exemptions,
        clock: &service.clock,
        stop,
    };
    service.clock.run(gate::evaluate(environment, outside, &mut |_| {})).expect("the gate ends")
}

/// No advisory is about the program.
fn audit() -> Check {
    Check::new(VULNERABILITIES, 0, 0, "found", true)
}

fn evidence(name: &str, service: &Service) -> Evidence {
    evidence_with(name, service, vec![audit()], &CancellationToken::new())
}

/// The state of the gate and every check that is not so.
fn check(name: &str, service: &Service, expected: Expect) {
    let evidence = evidence(name, service);
    let mut said = evidence.gate.state().to_owned();
    for blocker in evidence.gate.blockers() {
        said += &format!("\n{blocker}");
    }
    expected.assert_eq(&said);
}

#[test]
fn fast_service_passes_the_gate_and_leaves_no_temporary_key() {
    let service = Service::new(300, None);
    let evidence = evidence("staging", &service);
    assert_eq!(evidence.gate, Gate::Open);
    assert!(service.keys.lock().unwrap().is_empty());
    let names: Vec<String> =
        evidence.checks.iter().map(|c| format!("{} = {} {}", c.name, c.measured, c.unit)).collect();
    expect![[r#"
        health = 200 status
        readiness = 200 status
        TLS verified = true 
        refused without a key = 401 status
        refused with an unknown key = 401 status
        accepted with a key = 200 status
        generation = 332 characters
        same seed, same text = true 
        stops where asked = true 
        rate limit limits = 3 accepted
        metrics = "exported" 
        known vulnerabilities = 0 found
        p95 of the whole answer = 300.0 ms
        share of errors = 0.0 "#]]
    .assert_eq(&names.join("\n"));
    let load = evidence.load.unwrap();
    assert_eq!((load.errors, load.generate.p50_ms, load.generate.p99_ms), (0, 300.0, 300.0));
    assert_eq!(load.series.iter().map(|s| s.users).max(), Some(100));
    assert_eq!((load.series[0].users, load.series[4].users), (10, 50));
    // 100 users who think 2 s on average and wait 0.3 s, nine of ten generating 75 tokens.
    assert!((2600.0..3300.0).contains(&load.tokens_per_second), "{}", load.tokens_per_second);
}

#[test]
fn slow_service_closes_the_gate_with_the_missing_token_rate() {
    check(
        "staging",
        &Service::new(501, None),
        expect![[r#"
        shut
        p95 of the whole answer: 501.0 ms, wanted at most 500 ms (2700 tokens/s needed to answer these users within the limit, 2751 measured)"#]],
    );
    check("staging", &Service::new(500, None), expect!["open"]);
}

#[test]
fn each_fault_closes_the_gate_with_its_own_message() {
    let said: Vec<String> = [
        Fault::Down,
        Fault::Loading,
        Fault::TakesAnyKey,
        Fault::TakesNoKey,
        Fault::NoLimit,
        Fault::Mute,
        Fault::ForgetsItsSeed,
        Fault::NeverStops,
        Fault::NoMetrics,
        Fault::FailsOneIn(20),
        Fault::KeepsKeys,
        Fault::GivesNoKeys,
        Fault::PlainHttp,
    ]
    .into_iter()
    .map(|fault| {
        let service = Service::new(100, Some(fault));
        let evidence = evidence("staging", &service);
        assert_eq!(evidence.gate.state(), "shut", "{fault:?}");
        assert_eq!(evidence.load.is_some(), matches!(fault, Fault::FailsOneIn(_) | Fault::KeepsKeys), "{fault:?}");
        if fault != Fault::KeepsKeys {
            assert!(service.keys.lock().unwrap().is_empty(), "{fault:?}");
        }
        format!("{fault:?}\n  {}", evidence.gate.blockers().join("\n  "))
    })
    .collect();
    expect![[r#"
        Down
          health: could not be measured (not reachable: connection refused)
        Loading
          readiness: 503 status, wanted 200
        TakesAnyKey
          refused without a key: 200 status, wanted 401
          refused with an unknown key: 200 status, wanted 401
          rate limit limits: 8 accepted, wanted 3 (nothing was refused)
        TakesNoKey
          accepted with a key: 401 status, wanted 200
          generation: could not be measured (status 401)
          rate limit limits: could not be measured (status 401)
        NoLimit
          rate limit limits: 8 accepted, wanted 3 (nothing was refused)
        Mute
          generation: 0 characters, wanted at least 1
        ForgetsItsSeed
          same seed, same text: no, wanted yes
          stops where asked: no, wanted yes
        NeverStops
          stops where asked: no, wanted yes
        NoMetrics
          metrics: missing, wanted exported (textnlp_queue_length)
        FailsOneIn(20)
          share of errors: 4.68 %, wanted at most 1 % (80× status 500)
        KeepsKeys
          temporary keys revoked: 3 left, wanted 0 (gate: the database is locked; gate-limit: the database is locked; gate-load: the database is locked)
        GivesNoKeys
          temporary key: could not be measured (the database is locked)
          temporary key: could not be measured (the database is locked)
        PlainHttp
          TLS verified: no, wanted yes"#]].assert_eq(&said.join("\n"));
}

#[test]
fn limits_that_sites_counted_apart_are_measured_again() {
    let measured = |name: &str| {
        let evidence = evidence(name, &Service::new(100, Some(Fault::CountsLimitsApart)));
        evidence.checks.into_iter().find(|check| check.name == "rate limit limits").unwrap()
    };
    let several = measured("multi-region");
    assert!(several.ok);
    assert_eq!(several.note.as_deref(), Some("measured again: the first time 2 accepted"));
    assert_eq!(measured("staging").to_string(), "rate limit limits: 2 accepted, wanted 3");
}

#[test]
fn error_rate_above_one_percent_closes_the_gate() {
    let few = evidence("staging", &Service::new(100, Some(Fault::FailsOneIn(200))));
    assert_eq!(few.gate, Gate::Open);
    assert!(few.load.unwrap().errors > 0);
    let many = evidence("staging", &Service::new(100, Some(Fault::FailsOneIn(50))));
    assert_eq!(many.gate.blockers().len(), 1, "{:?}", many.gate);
}

#[test]
fn servers_are_measured_by_the_limits_that_are_set() {
    let measured = |sets: &[&str], exports: &str| {
        let service = Service { exports: exports.to_owned(), ..Service::new(20, None) };
        let stop = CancellationToken::new();
        let evidence = evidence_of(&environment_with("staging", sets), &service, vec![audit()], &[], &stop);
        let of_servers = |check: &&Check| [MODEL_LOAD, SERVER_MEMORY].contains(&check.name.as_str());
        let said: Vec<String> = evidence.checks.iter().filter(of_servers).map(ToString::to_string).collect();
        format!("{}: {}", evidence.gate.state(), said.join("; "))
    };
    let exported = |seconds: &str, bytes: u64| {
        format!(
            "textnlp_model_load_seconds{{replica=\"a\",model=\"small\"}} 0.25\n\
             textnlp_model_load_seconds{{replica=\"b\",model=\"large\"}} {seconds}\n\
             process_resident_memory_bytes{{replica=\"b\"}} {bytes}\n"
        )
    };
    let limits = ["gates.model_load_time=5s", "gates.server_memory=4GB"];
    let (most, more) = (exported("5.0", 4_000_000_000), exported("5.0001", 4_000_000_001));
    assert_eq!(measured(&[], &more), "open: ", "without limits there is no check");
    expect![[r#"
        open: model load time: 5.0 s, wanted at most 5.0 s (model large, replica b); memory of a server: 4.0 GB, wanted at most 4.0 GB (replica b)
        shut: model load time: 5.001 s, wanted at most 5.0 s (model large, replica b); memory of a server: 4.001 GB, wanted at most 4.0 GB (replica b)"#]]
    .assert_eq(&[&most, &more].map(|exports| measured(&limits, exports)).join("\n"));
    // A server or a site that could not be read may be above the limit, and so may a server that measures nothing. The site
    // agent is no server.
    let gathered = "textnlp_gateway_backend_metrics_gathered";
    let others = [
        format!("{most}textnlp_gateway_backend_weight{{replica=\"c\"}} 0\n{gathered}{{replica=\"c\"}} 0\n"),
        format!("{most}{gathered}{{site=\"west\"}} 0\n"),
        format!("{most}{gathered}{{replica=\"watch\"}} 0\n"),
        "process_resident_memory_bytes{replica=\"b\"} 0\n".to_owned(),
    ];
    expect![[r#"
        shut: model load time: could not be measured (the metrics of c could not be read); memory of a server: could not be measured (the metrics of c could not be read)
        shut: model load time: could not be measured (the metrics of site west could not be read); memory of a server: could not be measured (the metrics of site west could not be read)
        open: model load time: 5.0 s, wanted at most 5.0 s (model large, replica b); memory of a server: 4.0 GB, wanted at most 4.0 GB (replica b)
        shut: model load time: could not be measured (no server exports a value of `textnlp_model_load_seconds`); memory of a server: could not be measured (b exports no value of `process_resident_memory_bytes`)"#]]
    .assert_eq(&others.map(|exports| measured(&limits, &exports)).join("\n"));
}

#[test]
fn text_of_a_model_is_measured_by_every_server_that_loaded_it() {
    let model = environment("staging").models[0].id();
    let measured = |most: Option<f64>, exports: &str| {
        let mut environment = environment("staging");
        environment.models[0].quality = Some(ModelQuality { text: "a text ".repeat(20), max_perplexity: most });
        let service = Service { exports: exports.to_owned(), ..Service::new(20, None) };
        let evidence = evidence_of(&environment, &service, vec![audit()], &[], &CancellationToken::new());
        let check = evidence.checks.into_iter().find(|check| check.name == TEXT_QUALITY);
        (check.map_or_else(String::new, |check| check.to_string()), evidence.gate.state(), evidence.seconds)
    };
    let exported = |second: &str| {
        let loaded =
            |replica: &str| format!("textnlp_model_load_seconds{{replica=\"{replica}\",model=\"{model}\"}} 0.25\n");
        let score = |replica: &str, value: &str| {
            format!(
                "textnlp_model_quality_score{{replica=\"{replica}\",model=\"{model}\",metric_type=\"perplexity\"}} {value}\n"
            )
        };
        let second = if second.is_empty() { String::new() } else { score("b", second) };
        // Another model has no limit.
        format!(
            "{}{}{}{second}textnlp_model_load_seconds{{replica=\"a\",model=\"other\"}} 1\n",
            loaded("a"),
            loaded("b"),
            score("a", "20.5")
        )
    };
    assert_eq!(measured(None, &exported("31")).0, "", "without a limit there is no check");
    let (said, state, usual) = measured(Some(30.0), &exported("30"));
    assert_eq!((said, state), (format!("text quality of models: {model} 30, wanted at most {model} 30"), "open"));
    let (said, state, _) = measured(Some(30.0), &exported("30.0001"));
    assert_eq!((said, state), (format!("text quality of models: {model} 30.001, wanted at most {model} 30"), "shut"));
    let (said, state, waited) = measured(Some(30.0), &exported(""));
    assert_eq!(said, format!("text quality of models: not measured yet (b has not measured `{model}` yet)"));
    assert_eq!(state, "wait");
    assert!(waited - usual > 290.0, "servers have time to measure it: {waited} s instead of {usual} s");
    let (said, state, waited) = measured(Some(30.0), &exported("NaN"));
    assert_eq!(
        said,
        format!("text quality of models: could not be measured (b cannot measure the text of `{model}`: see its log)")
    );
    assert_eq!(state, "shut");
    assert!(waited - usual < 1.0, "nothing is awaited");
    let (said, state, waited) = measured(Some(30.0), "");
    assert_eq!(said, format!("text quality of models: could not be measured (no server has loaded `{model}`)"));
    assert_eq!(state, "shut");
    assert!(waited - usual < 1.0, "nothing is awaited");
    let unread = format!("{}textnlp_gateway_backend_metrics_gathered{{site=\"west\"}} 0\n", exported("30"));
    let said = measured(Some(30.0), &unread).0;
    assert_eq!(said, "text quality of models: could not be measured (the metrics of site west could not be read)");
}

/// A service that passed its gate passes it after an upgrade, too.
#[test]
fn shipped_environments_set_no_limit_of_speed_and_memory() {
    for listed in Library::built_in().list() {
        let gates = environment(&listed.name).gates;
        let limits = (gates.model_load_time, gates.server_memory, gates.tokens_per_second);
        assert!(matches!(limits, (None, None, None)), "{}", listed.name);
    }
}

#[test]
fn generation_rate_is_that_of_the_load_unless_its_users_ask_for_less() {
    let measured = |least: u32, latency_ms: u64, fault: Option<Fault>| {
        let limit = format!("gates.tokens_per_second={least}");
        let environment = environment_with("staging", &[limit.as_str()]);
        let service = Service::new(latency_ms, fault);
        let evidence = evidence_of(&environment, &service, vec![audit()], &[], &CancellationToken::new());
        evidence.checks.into_iter().find(|check| check.name == GENERATION_RATE).unwrap()
    };
    let fast = measured(1000, 20, None);
    assert!(fast.ok && (2600.0..3500.0).contains(&fast.measured.as_f64().unwrap()), "{fast}");
    assert_eq!((&fast.limit, fast.unit.as_str()), (&json!("at least 1000"), "tokens/s"));
    let slow = measured(2500, 5000, None);
    assert!(!slow.ok && !slow.is_unknown(), "{slow}");
    // 100 users who think 2 s on average and wait at most 0.5 s, nine of ten generating 75 tokens.
    let idle = measured(10_000, 20, None);
    assert!(idle.is_unknown(), "{idle}");
    assert_eq!(idle.note.as_deref(), Some("this load needs only 2700 tokens/s: raise `gates.users`"));
    // Only answers that take no time give these users 3375.
    let waiting = measured(3300, 300, None);
    assert!(waiting.is_unknown(), "{waiting}");
    let failing = measured(1000, 20, Some(Fault::FailsOneIn(1)));
    assert_eq!(failing.note.as_deref(), Some("no generation succeeded"));
    let encoder = measured(1000, 20, Some(Fault::Embeds));
    assert!(encoder.is_unknown() && encoder.note.unwrap().contains("generates no text"));
    assert!(evidence("staging", &Service::new(20, None)).checks.iter().all(|check| check.name != GENERATION_RATE));
}

#[test]
fn recorded_release_checks_are_part_of_the_gate() {
    let audit = Check::new(VULNERABILITIES, 2, 0, "found", false);
    let evidence = evidence_with("staging", &Service::new(100, None), vec![audit], &CancellationToken::new());
    assert_eq!(evidence.gate, Gate::Shut(vec!["known vulnerabilities: 2 found, wanted 0".to_owned()]));
}

/// The metrics of a cluster are among the recorded checks: they are not requested once more.
#[test]
fn scale_up_gate_runs_no_load_and_waits_for_missing_measurements() {
    let service = Service::new(100, Some(Fault::NoMetrics));
    let metrics = Check::new(METRICS, 3, 3, "read", true);
    let held = Check::new(SESSIONS, 10_000, 10_000, "", true);
    let blockers = |recorded: Vec<Check>| {
        let found = evidence_with("scale-up", &service, recorded, &CancellationToken::new());
        assert_eq!(found.load, None);
        found.checks.into_iter().filter(|check| !check.ok).map(|check| (check.name, check.waits)).collect::<Vec<_>>()
    };
    let owned = |all: &[(&str, bool)]| all.iter().map(|(name, waits)| ((*name).to_owned(), *waits)).collect::<Vec<_>>();
    let missing = [(SECURITY_AUDIT, true), (COMPLIANCE, true)];
    let none = blockers(Vec::new());
    let records =
        [(SESSIONS, true), ("p95 of their answers", true), (GROWTH, true), (METRICS, true), (VULNERABILITIES, true)];
    assert_eq!(none, owned(&[&records[..], &missing].concat()));
    let some = blockers(vec![metrics, held, audit()]);
    assert_eq!(some, owned(&[&[("p95 of their answers", false), (GROWTH, true)][..], &missing].concat()));
}

#[test]
fn phases_are_in_order_and_their_checks_have_distinct_names() {
    assert_eq!(PHASES.each_ref().map(|definition| definition.phase), Phase::ALL);
    let ordered: Vec<_> =
        PHASES.iter().filter_map(|definition| Some((definition.after()?, definition.phase))).collect();
    let expected = [
        (Phase::Staging, Phase::Pilot),
        (Phase::Pilot, Phase::ScaleUp),
        (Phase::ScaleUp, Phase::Enterprise),
        (Phase::Enterprise, Phase::Optimized),
    ];
    assert_eq!(ordered, expected);
    assert!(phases::PhaseDefinition::of(Phase::Optimized).starts_after().contains("the gate of phase enterprise"));
    for definition in &PHASES {
        let mut names: Vec<&str> = definition.checks().map(|check| check.name).collect();
        names.sort_unstable();
        let all = names.len();
        names.dedup();
        assert_eq!(names.len(), all, "{}", definition.phase);
        for check in definition.checks() {
            let CheckSource::With(with) = check.source else { continue };
            assert!(definition.check(with).is_some(), "{}: {with}", check.name);
        }
    }
}

#[test]
fn gates_measure_the_checks_of_the_table_with_its_limits() {
    for definition in &PHASES {
        let (name, environment) = (definition.phase.as_str(), environment(definition.phase.as_str()));
        let keys = (definition.phase == Phase::Development).then_some(Fault::TakesAnyKey);
        let found = evidence(name, &Service::new(20, keys)).checks;
        for check in &found {
            let row = definition.check(&check.name).unwrap_or_else(|| panic!("{name}: {} is in no row", check.name));
            assert_eq!(row.limit(&environment), check.limit, "{name}: {}", check.name);
        }
        let is_measured = |row: &&CheckDefinition| row.name != EMBEDDINGS && row.is_on(&environment);
        for row in definition.checks().filter(is_measured) {
            let check = found.iter().find(|check| check.name == row.name);
            let check = check.unwrap_or_else(|| panic!("{name}: {} was not measured", row.name));
            assert_eq!(check.measured.is_null(), !check.ok, "{name}: {check}");
            let why = check.note.clone().unwrap_or_default();
            assert!(check.ok || !why.is_empty(), "{name}: {check} has no reason");
        }
    }
}

#[test]
fn guide_lists_every_phase() {
    let table = phases::markdown(|phase| environment(phase.as_str()));
    textnlp_tests::guide::expect_section("docs/guide/phases.md", "phases", &table);
}

#[test]
fn metrics_and_alerts_that_phases_watch_exist() {
    let page = |name: &str| {
        let file = format!("{}/../docs/guide/{name}.md", env!("CARGO_MANIFEST_DIR"));
        std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("read {file}: {error}"))
    };
    let (metrics, alerts) = (page("metrics"), page("alerts") + &page("kubernetes"));
    for definition in &PHASES {
        for indicator in definition.indicators() {
            let (guide, name) = match indicator.source {
                IndicatorSource::Metric(name) => (&metrics, name),
                IndicatorSource::Alert(name) => (&alerts, name),
                IndicatorSource::Command(_) => continue,
            };
            assert!(guide.contains(&format!("\n| `{name}` |")), "{}: {name}", definition.phase);
        }
    }
}

#[test]
fn development_gate_needs_only_health_and_one_generation() {
    let names = |evidence: Evidence| evidence.checks.into_iter().map(|check| check.name).collect::<Vec<_>>();
    // The dependency audit is not among its checks.
    let found = evidence("development", &Service::new(1, Some(Fault::TakesAnyKey)));
    assert_eq!(names(found), ["health", "generation"]);
    check("development", &Service::new(60_000, Some(Fault::TakesAnyKey)), expect!["open"]);
    check(
        "development",
        &Service::new(1, [Fault::Mute, Fault::TakesAnyKey]),
        expect![[r#"
            shut
            generation: 0 characters, wanted at least 1"#]],
    );
    check(
        "development",
        &Service::new(1, Some(Fault::Down)),
        expect![[r#"
        shut
        health: could not be measured (not reachable: connection refused)"#]],
    );
}

#[test]
fn check_without_a_measurement_keeps_the_gate_from_opening_with_the_reason() {
    check(
        "pilot",
        &Service::new(1, None),
        expect![[r#"
        wait
        availability: not measured yet (measured by the record of `probe` over `gates.availability_window`, since the release was applied, and the usage records of that time: the lower share counts)
        database failover: not measured yet (measured by the last `db failover` of the release, instances and PostgreSQL that run now, not older than 90 days)
        restored backup: not measured yet (measured by the newest backup, restored beside the service, in a cluster by its backup job since the last `up`: counts of rows, and on a machine signature and digests)"#]],
    );
    check(
        "enterprise",
        &Service::new(1, None),
        expect![[r#"
        shut
        custom model: could not be measured (no model has a `tenant`: add one to `models`)
        analytics: not measured yet (measured by the last run of usage analytics (`server.analytics`), at most 70 minutes ago, and the insights that it wrote)
        single sign-on: not measured yet (measured by a request with a token that the identity provider (`server.security.oidc`) issues to `gates.sign_on_client`; the same with another signature is refused)"#]],
    );
    let unmeasured =
        PHASES.iter().filter(|definition| !definition.is_measured_by_up()).map(|definition| definition.phase);
    let expected = [Phase::Pilot, Phase::ScaleUp, Phase::MultiRegion, Phase::Optimized];
    assert_eq!(unmeasured.collect::<Vec<_>>(), expected);
}

#[test]
fn enterprise_gate_finds_what_a_key_reads_of_another_tenant() {
    let named = |found: &[Check], name: &str| found.iter().find(|check| check.name == name).cloned();
    let isolation = |fault: Option<Fault>| {
        let service = Service::new(1, fault);
        let found = evidence("enterprise", &service).checks;
        assert!(service.keys.lock().unwrap().is_empty(), "temporary keys are revoked");
        assert!(service.tenants.lock().unwrap().is_empty(), "and their tenants removed");
        named(&found, "tenant isolation").unwrap()
    };
    let good = isolation(None);
    assert!(good.ok && good.measured == 0, "{good}");
    for (fault, count, what) in [
        (Fault::MixesTenants, 6, "/v1/models of gate-"),
        (Fault::SharesTickets, 2, "a stream ticket of gate-"),
        (Fault::MixesUsage, 2, "usage of others with a key of gate-"),
    ] {
        let shown = isolation(Some(fault));
        assert!(!shown.ok && !shown.is_unknown() && shown.measured == count, "{fault:?}: {shown}");
        assert!(shown.note.unwrap().starts_with(what), "{fault:?}");
    }
    // What its owner does not get says nothing about others.
    for (fault, why) in [
        (Fault::RefusesTickets, "status 403 of a stream ticket with a key of its own tenant"),
        (Fault::RefusesFeatures, "status 403 of /v1/features with a key of its own tenant"),
        (Fault::RecordsNothing, "has no request of its key"),
    ] {
        let unknown = isolation(Some(fault));
        assert!(unknown.is_unknown() && unknown.note.unwrap().ends_with(why), "{fault:?}");
    }
    let left = |fault: Fault| {
        let service = Service::new(1, Some(fault));
        let left = named(&evidence("enterprise", &service).checks, "temporary keys revoked").unwrap();
        let mut tenants: Vec<String> = service.tenants.into_inner().unwrap().into_values().collect();
        tenants.sort_unstable();
        (left, tenants)
    };
    let (failed, tenants) = left(Fault::KeepsTenants);
    assert!(!failed.ok && failed.measured == 2 && failed.note.unwrap().starts_with("tenant gate-"));
    let of = |which: &str| format!("gate-{which}-{}", Uuid::nil().simple());
    assert_eq!(tenants, [of("a"), of("b")], "each gate of a deployment has the same tenants");
    let (warning, _) = left(Fault::CannotRemoveTenants);
    assert!(warning.ok && warning.warning && warning.note.unwrap().ends_with(" stays: run `up`"));
}

#[test]
fn enterprise_gate_generates_by_a_model_of_one_tenant_which_is_absent_for_others() {
    let custom = |faults: &[Fault]| {
        let mut environment = environment("enterprise");
        let usual = environment.models[0].clone();
        let (name, tenant) = ("own".to_owned(), Some(OWNER.to_owned()));
        environment.models.push(ModelSettings { name, tenant, role: None, ..usual });
        let service = Service::new(1, faults.iter().copied());
        let found = evidence_of(&environment, &service, vec![audit()], &[], &CancellationToken::new()).checks;
        assert!(service.keys.lock().unwrap().is_empty(), "temporary keys are revoked");
        let left: Vec<String> = service.tenants.into_inner().unwrap().into_values().collect();
        assert_eq!(left, [OWNER], "the tenant of the operator stays");
        found.into_iter().find(|check| check.name == "custom model").unwrap()
    };
    let good = custom(&[]);
    assert!(good.ok && good.measured == "a text", "{good}");
    let encoder = custom(&[Fault::EncodesForOwner]);
    assert!(encoder.ok && encoder.measured == "a vector", "{encoder}");
    let shared = custom(&[Fault::EncodesForOwner, Fault::SharesModels]);
    assert!(!shared.ok && !shared.is_unknown(), "{shared}");
    for (fault, measured) in [
        (Fault::LosesModels, "not found"),
        (Fault::Mute, "an empty text"),
        (Fault::SharesModels, "a text for another tenant"),
        (Fault::TellsOfModels, "shown to another tenant"),
        (Fault::HintsAtModels, "shown to another tenant"),
    ] {
        let wrong = custom(&[fault]);
        assert!(!wrong.ok && !wrong.is_unknown() && wrong.measured == measured, "{fault:?}: {wrong}");
        assert!(wrong.note.unwrap().contains(OWN_MODEL), "{fault:?}");
    }
    let now = clock().now();
    assert!(waiver(Phase::Enterprise, "custom model", date(2026, 2, 1), Some("INC-7"), now).is_ok());
}

#[test]
fn waiver_counts_up_to_its_day_for_what_cannot_be_measured() {
    const UNMEASURED: [&str; 3] = ["availability", "database failover", "restored backup"];
    let now = clock().now();
    let until = date(2026, 2, 1);
    let waived = |phase: Phase, check: &str| RecordedExemption {
        at: now,
        by: "ada".to_owned(),
        reason: Some("INC-7".to_owned()),
        phase,
        exemption: waiver(Phase::Pilot, check, until, Some("INC-7"), now).unwrap(),
    };
    let measured = |exemptions: &[RecordedExemption], fault: Option<Fault>| {
        let stop = CancellationToken::new();
        evidence_exempted("pilot", &Service::new(1, fault), vec![audit()], exemptions, &stop)
    };
    let all = UNMEASURED.map(|check| waived(Phase::Pilot, check));
    let open = measured(&all, None);
    assert_eq!((&open.gate, &open.exemptions[..]), (&Gate::Open, &all[..]));
    let at = |time: &str| Gate::of(&open.checks, time.parse().unwrap()).blockers().len();
    assert_eq!((at("2026-02-01T23:59:59Z"), at("2026-02-02T00:00:00Z")), (0, 3));
    assert!(all[0].text("2026-02-02T00:00:00Z".parse().unwrap()).contains("until 2026-02-01 (ended), by ada"));
    assert_eq!(measured(&all[1..], None).gate.blockers().len(), 1);
    let elsewhere = UNMEASURED.map(|check| waived(Phase::ScaleUp, check));
    assert_eq!(measured(&elsewhere, None).gate.blockers().len(), 3, "a waiver is of its phase");
    // A failure is not waived.
    let metrics = [&all[..], &[waived(Phase::Pilot, METRICS)]].concat();
    let shut = measured(&metrics, Some(Fault::NoMetrics));
    assert_eq!(shut.gate, Gate::Shut(vec!["metrics: missing, wanted exported (textnlp_queue_length)".to_owned()]));
}

#[test]
fn waivers_are_of_known_checks_bounded_and_reasoned() {
    let now = clock().now();
    let of = |check: &str, until, reason: Option<&str>| waiver(Phase::Pilot, check, until, reason, now);
    let reason = Some("INC-7");
    let names =
        vec![METRICS, "availability", "database failover", "restored backup", MODEL_LOAD, SERVER_MEMORY, TEXT_QUALITY];
    for unknown in ["health", "known vulnerabilities", "availabilty"] {
        let error = WaiverError::Unknown { phase: Phase::Pilot, name: unknown.to_owned(), names: names.clone() };
        assert_eq!(of(unknown, date(2026, 1, 3), reason), Err(error));
    }
    assert_eq!(of(METRICS, date(2026, 1, 3), None), Err(WaiverError::NoReason));
    assert_eq!(of(METRICS, date(2026, 1, 3), Some(" ")), Err(WaiverError::NoReason));
    assert_eq!(of(METRICS, date(2026, 1, 1), reason), Err(WaiverError::Past { until: date(2026, 1, 1) }));
    assert_eq!(of(METRICS, date(2026, 4, 3), reason), Err(WaiverError::TooLong { until: date(2026, 4, 3) }));
    for good in [date(2026, 1, 2), date(2026, 4, 2)] {
        assert!(of(METRICS, good, reason).is_ok(), "{good}");
    }
}

#[test]
fn cancelled_gate_is_closed_and_leaves_no_key() {
    let service = Service::new(100, None);
    let stop = CancellationToken::new();
    let environment = environment("staging");
    let outside = GateInputs {
        address: "",
        lineage: Lineage(Uuid::nil()),
        service: &service,
        metrics: Some(&service),
        keys: &service,
        recorded: Vec::new(),
        exemptions: &[],
        clock: &service.clock,
        stop: &stop,
    };
    let mut seconds = 0;
    let mut tell = |progress: Progress<'_>| {
        if matches!(progress, Progress::Load(_)) {
            seconds += 1;
            stop.cancel();
        }
    };
    let evidence = service.clock.run(gate::evaluate(&environment, outside, &mut tell)).expect("the gate ends");
    assert_eq!(evidence.gate.state(), "shut");
    assert!(evidence.load.as_ref().unwrap().stopped && evidence.load.unwrap().seconds < 10.0);
    assert!(service.keys.lock().unwrap().is_empty());
}

#[test]
fn encoders_are_tested_by_their_vectors_instead_of_texts() {
    let named = |evidence: &Evidence, name: &str| evidence.checks.iter().find(|check| check.name == name).cloned();
    // Development has no keys.
    for (environment, open) in [("development", Some(Fault::TakesAnyKey)), ("staging", None)] {
        let right = evidence(environment, &Service::new(20, [Fault::Embeds].into_iter().chain(open)));
        let vector = named(&right, "embedding of encoder").unwrap();
        assert!(vector.ok && vector.measured == 2, "{environment}: {vector:?}");
        assert!(named(&right, "generation").is_none() && right.sample.is_none());
        let faults = [Fault::Embeds, Fault::ForgetsItsVectors].into_iter().chain(open);
        let wrong = evidence(environment, &Service::new(20, faults));
        assert!(!named(&wrong, "embedding of encoder").unwrap().ok, "{environment}");
        assert_eq!(wrong.gate.state(), "shut");
    }
    let load = evidence("staging", &Service::new(20, [Fault::Embeds])).load.unwrap();
    assert!(load.load.embeds && load.generate.count > 0 && load.errors == 0, "{load:?}");
}

fn small_load(users: u32) -> Load {
    let mut load = Load::of(&environment("staging").gates);
    (load.users, load.ramp, load.hold) = (users, 100, Duration::from_secs(20));
    load
}

#[test]
fn seconds_after_the_load_are_measured_and_not_reported() {
    // Answers take so long that the last ones end after the load.
    let service = Service::new(2500, Some(Fault::TakesAnyKey));
    let (load, stop, mut reported) = (small_load(10), CancellationToken::new(), Vec::new());
    let mut each = |second: &textnlp_orchestrator::load::Second| reported.push(second.second);
    let measured = service.clock.run(load::run(&service, None, &load, &service.clock, &stop, &mut each)).unwrap();
    let end = (load.ramp_time() + load.hold).as_secs_f64();
    assert!(measured.series.iter().any(|second| f64::from(second.second) >= end), "{:?}", measured.series);
    // The second in which the load ends has requests of a part of it only.
    let within = measured.series.iter().map(|second| second.second).filter(|second| f64::from(*second) + 1.0 <= end);
    assert_eq!(reported, within.collect::<Vec<_>>());
}

#[test]
fn load_run_is_deterministic_for_a_seed() {
    let measure = |seed: u64| {
        let service = Service::new(120, Some(Fault::TakesAnyKey));
        let load = Load { seed, ..small_load(10) };
        service
            .clock
            .run(load::run(&service, None, &load, &service.clock, &CancellationToken::new(), &mut |_| {}))
            .unwrap()
    };
    assert_eq!(measure(1), measure(1));
    assert_ne!(measure(1).series, measure(2).series);
}

#[test]
fn load_limit_is_found_where_latency_crosses_the_target() {
    let find = |to: u32| {
        let mut service = Service::new(100, Some(Fault::TakesAnyKey));
        service.each = Duration::from_millis(20);
        let search = FindLimit {
            load: small_load(1),
            p95: Duration::from_millis(500),
            error_rate: 0.01,
            from: 4,
            to,
            tolerance: 0.05,
        };
        let stop = CancellationToken::new();
        service.clock.run(load::find_limit(&service, None, &search, &service.clock, &stop, &mut |_, _| {})).unwrap()
    };
    let limit = find(10_000);
    let users = limit.users.unwrap();
    let worst_good = limit.probes.iter().filter(|p| p.ok).map(|p| p.users).max().unwrap();
    let best_bad = limit.probes.iter().filter(|p| !p.ok).map(|p| p.users).min().unwrap();
    assert!(
        worst_good == users && users < best_bad && f64::from(best_bad - users) <= (f64::from(users) * 0.05).max(1.0),
        "{users} {best_bad}"
    );
    assert!(!limit.at_least);
    let few = find(8);
    assert_eq!((few.users, few.at_least, few.probes.len()), (Some(8), true, 2));
}

#[test]
fn html_report_is_self_contained_and_escapes_its_content() {
    let service = Service::new(420, Some(Fault::FailsOneIn(90)));
    let mut evidence = evidence("staging", &service);
    evidence.sample = Some("<script>alert(1)</script>".to_owned());
    let report = Report {
        title: "Gate of staging".to_owned(),
        at: evidence.at,
        address: evidence.address.clone(),
        facts: vec![("environment".to_owned(), "<b>staging</b>".to_owned())],
        gate: Some(evidence),
        ..Report::default()
    };
    let page = report.to_html();
    assert!(!page.contains("<script") && !page.contains("<b>staging"), "user text is escaped");
    assert_eq!(page.matches("<svg").count(), 4);
    assert!(
        !page.contains("src=") && !page.contains("@import") && !page.contains("url("),
        "nothing is loaded from elsewhere"
    );
    assert!(page.contains("p95 of the whole answer") && page.contains("status 500"));
    for value in [">at most 500 ms<", ">420.0 ms<", ">200 status<", ">yes<"] {
        assert!(page.contains(value), "{value}");
    }
    assert!(!page.contains("ms ms") && !page.contains(">true<"));
    let json = report.to_json();
    assert_eq!(
        (json["gate"]["gate"]["state"].as_str(), json["format"].as_str()),
        (Some("open"), Some("textnlp-report/1"))
    );
    let folder = tempfile::tempdir().unwrap();
    let written = report.write(camino::Utf8Path::from_path(folder.path()).unwrap(), "gate").unwrap();
    assert_eq!(written.html.file_name(), Some("gate-20260102T030405Z.html"));
    assert_eq!(std::fs::read_to_string(&written.html).unwrap(), page);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2);
    // For a look at it in a browser.
    if let Some(keep) = std::env::var_os("TEXTNLP_KEEP_REPORT") {
        std::fs::write(keep, page).unwrap();
    }
}

#[test]
fn report_without_measurements_is_still_rendered() {
    let service = Service::new(1, Some(Fault::Down));
    let evidence = evidence("staging", &service);
    let report = Report {
        title: "x".to_owned(),
        at: evidence.at,
        address: String::new(),
        facts: Vec::new(),
        gate: Some(evidence),
        ..Report::default()
    };
    let page = report.to_html();
    assert!(page.contains("not measured") && page.contains("connection refused") && !page.contains("<svg"));
}
