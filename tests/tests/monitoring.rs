//! Whatever rules and dashboards ask for is there: in a scrape of the real program, or told by what watches a cluster. The commands
//! of the maintenance runbook are run.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_provider::dashboard::{self, Watched};
use textnlp_tests::metrics::{queried, scraped};
use textnlp_tests::stand_in::StandIn;
use textnlp_tests::{Sandbox, eventually, guide, http};

/// Metrics of node agents, kube-state-metrics and Prometheus itself: the monitoring of any cluster has it.
const OF_CLUSTERS: [&str; 7] = [
    "container_memory_working_set_bytes",
    "kube_cronjob_created",
    "kube_cronjob_status_last_schedule_time",
    "kube_cronjob_status_last_successful_time",
    "kube_pod_container_resource_limits",
    "kube_pod_container_status_restarts_total",
    "up",
];
/// Metrics of servers that compute on a GPU: this one does not.
const OF_GPUS: [&str; 2] = ["textnlp_gpu_memory_total_bytes", "textnlp_gpu_memory_used_bytes"];

/// What commands of the runbook for maintenance print where nothing is wrong.
const GOOD: [(&str, &str); 10] = [
    ("health check", "No problems found."),
    ("logs errors", "0 errors in 0 groups"),
    ("alert list", "✓ no active alerts"),
    ("status", "ready"),
    ("drift", "no drift: everything is as recorded"),
    ("deps", "0 failed"),
    ("deps check-updates", "0 with a known vulnerability"),
    ("cleanup", "nothing older than 30d to remove"),
    ("backup verify", "is verified:"),
    ("security audit", "0 failed"),
];

/// Each command of the sections that an operator follows all the time, with shorter measurements.
#[test]
fn the_runbook_of_maintenance_is_followed() {
    const PAGE: &str = "docs/runbooks/maintenance.md";
    let text = std::fs::read_to_string(format!("{}/../{PAGE}", env!("CARGO_MANIFEST_DIR"))).unwrap();
    for (command, good) in GOOD {
        let (row, cell) = (format!("| `{command}"), format!("`{good}`"));
        assert!(text.lines().any(|line| line.starts_with(&row) && line.contains(&cell)), "{command}: {good}");
    }
    let hook = StandIn::of(200, "");
    let mut sandbox = Sandbox::new("maintenance");
    sandbox.variables.extend([
        ("TEXTNLP_SET__gates__users", "1".to_owned()),
        ("TEXTNLP_SET__gates__hold", "1s".to_owned()),
        ("TEXTNLP_SET__gates__p95_ms", "60000".to_owned()),
        ("TEXTNLP_SET__monitoring__receivers__oncall", format!("{}/oncall", hook.url())),
    ]);
    sandbox.run(&["up", "--env", "staging", "--yes"]).expect(0);
    // As the schedule does, which is off in this environment.
    sandbox.run(&["backup", "create", "--env", "staging"]).expect(0);
    let (mut followed, mut good) = (0, BTreeSet::new());
    for section in ["Daily", "Weekly", "Monthly", "Before a change", "After a change"] {
        for line in guide::commands(PAGE, section) {
            let line = line.replace("production", "staging");
            let line = line.replace("--period 1m", "--period 1s").replace("--duration 30s", "--duration 1s");
            let command = line.strip_prefix("textnlp-deploy ").unwrap().split(" --").next().unwrap();
            let said = sandbox.shell(&line);
            // Advisories may be too old, and controls are then not met.
            let is_expected = said.exit == 0 || (command == "compliance report" && said.exit == 1);
            assert!(is_expected, "`{line}`: {}\n{}{}", said.exit, said.out, said.err);
            if let Some((_, wanted)) = GOOD.iter().find(|(of, _)| *of == command) {
                // Neither `not ready` nor `10 failed`.
                let is_other =
                    |before: &str| before.ends_with("not ") || before.ends_with(|c: char| c.is_ascii_digit());
                let is_said = said.out.match_indices(*wanted).any(|(at, _)| !is_other(&said.out[..at]));
                assert!(is_said, "`{line}` does not print `{wanted}`: {}{}", said.out, said.err);
                good.insert(*wanted);
            }
            followed += 1;
        }
    }
    let distinct: BTreeSet<&str> = GOOD.iter().map(|(_, wanted)| *wanted).collect();
    assert!(followed > 30 && good == distinct, "{followed} commands, {good:?}");
    assert!(hook.requests().iter().any(|request| request.body.contains("test message")), "{:?}", hook.requests());
}

#[test]
fn every_metric_of_the_rules_and_dashboards_is_scraped() {
    let templates = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("templates/kubernetes");
    let text = |name: &str| std::fs::read_to_string(templates.join(name)).unwrap();
    let rules = queried(&text("prometheus-rule.yaml"));
    let dashboard = queried(&dashboard::text(&dashboard::dashboard(Watched::Pods)));
    let of_hosts = queried(&text("../prometheus/textnlp.yaml"));
    assert!(rules.len() >= 5 && dashboard.len() >= 12, "{rules:?} {dashboard:?}");
    assert!(of_hosts.len() >= 5 && of_hosts.is_subset(&rules), "{of_hosts:?}");

    let mut sandbox = Sandbox::new("figures");
    sandbox.variables.extend([
        ("TEXTNLP_SET__server__analytics__enabled", "true".to_owned()),
        ("TEXTNLP_SET__server__prices__answer", "1".to_owned()),
        ("TEXTNLP_SET__cache__kind", "memory".to_owned()),
    ]);
    sandbox.up("development");
    assert_eq!(sandbox.run(&["generate", "Mira walked", "--env", "development"]).exit, 0);
    // Errors by type are there once there was one.
    assert_eq!(http::get(sandbox.port, "/v1/no-such-path").unwrap().status, 404);
    let scrape = http::get(sandbox.metrics_port, "/metrics").unwrap().text();
    let told = scraped(&scrape);
    let missing = |wanted: &BTreeSet<String>| -> Vec<String> {
        let is_elsewhere = |name: &str| OF_CLUSTERS.contains(&name) || OF_GPUS.contains(&name);
        wanted.difference(&told).filter(|name| !is_elsewhere(name)).cloned().collect()
    };
    assert!(OF_GPUS.iter().all(|name| dashboard.contains(*name)), "{dashboard:?}");
    assert!(missing(&rules).is_empty() && missing(&dashboard).is_empty(), "{rules:?} {dashboard:?} of {told:?}");

    // A machine's dashboard has these and those of the gateway; what the supervision of a cluster knows is not there.
    let shown = ["metrics", "dashboard", "--env", "development"];
    let printed = sandbox.run(&shown).expect(0).out;
    let of_machine = queried(&printed);
    assert!(missing(&of_machine).is_empty(), "{:?} of {told:?}", missing(&of_machine));
    let only_pods: Vec<&String> = dashboard.difference(&of_machine).collect();
    assert_eq!(only_pods, ["kube_pod_container_status_restarts_total"]);
    assert!(of_machine.contains("up") && of_machine.contains("textnlp_gateway_connections"), "{of_machine:?}");
    let printed: Value = serde_json::from_str(&printed).unwrap();
    assert_eq!(printed["uid"], "textnlp-development");
    let file = sandbox.folder().join("dashboard.json");
    let out = ["--out", file.as_str(), "-o", "json"];
    assert_eq!(sandbox.run(&[&shown[..], &out].concat()).expect(0).json()["file"], file.as_str());
    assert_eq!(serde_json::from_str::<Value>(&std::fs::read_to_string(&file).unwrap()).unwrap(), printed);
    assert_eq!(sandbox.run(&[&shown[..], &out[2..]].concat()).expect(0).json()["dashboard"], printed);
    let in_cluster = ["metrics", "dashboard", "--env", "pilot", "-o", "json"];
    assert_eq!(sandbox.run(&in_cluster).expect(2).json()["error"]["code"], "no_machines");
    sandbox.run(&[&shown[..], &["--site", "here"]].concat()).expect(2);

    let summary = ["metrics", "summary", "--env", "development", "--period", "1s", "-o", "json"];
    let told = sandbox.run(&summary).expect(0).json();
    let site = &told["sites"][0];
    assert_eq!((&site["site"], &site["source"], &site["notes"]), (&json!("here"), &json!("two_scrapes"), &json!([])));
    assert!(site["summary"]["memory_bytes_max"].as_u64().unwrap() > 1_000_000, "{told}");
    assert_eq!(site["summary"]["requests"], 0, "nobody asked it meanwhile: {told}");
    assert!(told["sites"][0]["summary"]["queue_max"].is_u64(), "{told}");

    let run = sandbox.run(&["analytics", "run", "--env", "development", "-o", "json"]).expect(0).json();
    assert!(run["sites"][0]["run"]["insights"].as_u64().unwrap() >= 1, "{run}");
    let list = ["analytics", "list", "--env", "development", "--kind"];
    let listed = sandbox.run(&[&list[..], &["summary", "-o", "json"]].concat()).expect(0).json();
    let insights = listed["insights"].as_array().unwrap();
    assert!(insights.iter().any(|one| one["tenant"].is_null() && one["site"] == "here"), "{listed}");
    assert!(insights.iter().all(|one| one["kind"] == "summary"), "{listed}");
    sandbox.run(&[&list[..], &["unknown"]].concat()).expect(2);

    for task in ["vacuum", "analyze"] {
        let done = sandbox.run(&["db", task, "--env", "development", "-o", "json"]).expect(0).json();
        let database = &done["databases"][0];
        assert_eq!((&database["site"], &database["database"]), (&json!("here"), &json!("sqlite")), "{done}");
        assert!(database["bytes_after"].as_u64().unwrap() > 0, "{done}");
    }
    let bench = ["db", "bench", "--env", "development", "--clients", "2", "--duration", "1s"];
    let done = sandbox.run(&[&bench[..], &["-o", "json"]].concat()).expect(0).json();
    let database = &done["databases"][0];
    assert_eq!((&database["site"], &database["database"]), (&json!("here"), &json!("sqlite")), "{done}");
    let of_clients = database["per_client"].as_array().unwrap().iter().map(|of_client| of_client.as_u64().unwrap());
    assert_eq!(Some(of_clients.sum::<u64>()), database["transactions"].as_u64(), "{done}");
    let each = ["--clients", "2", "--transactions", "20", "-o", "json"];
    let counted = sandbox.run(&[&bench[..4], &each].concat()).expect(0).json();
    let of = |member: &str| counted["databases"][0][member].as_u64().unwrap();
    assert_eq!(of("transactions") + of("failed"), 40, "{counted}");
    let shown = sandbox.run(&bench).expect(0).out;
    assert!(shown.starts_with("here: sqlite, 2 clients") && shown.contains("\n  append_usage "), "{shown}");
    let left = sandbox.files(&sandbox.site("development").join("data"));
    assert!(!left.iter().any(|file| file.contains("benchmark")), "{left:?}");
    for wrong in [["--clients", "65"], ["--duration", "11m"], ["--transactions", "0"]] {
        sandbox.run(&[&bench[..4], &wrong].concat()).expect(2);
    }
    assert_eq!(sandbox.run(&["generate", "Mira walked", "--env", "development"]).exit, 0);

    let errors = sandbox.run(&["logs", "errors", "--env", "development", "-o", "json"]).expect(0).json();
    let site = &errors["sites"][0];
    assert_eq!((&site["site"], &site["complete"]), (&json!("here"), &json!(true)), "{errors}");
    assert!(site["logs"].as_u64().unwrap() > 0 && site["lines"].as_u64().unwrap() > 0, "{errors}");

    let piped = "textnlp-deploy logs --env development -n 50 | textnlp-deploy analyze - -o json";
    let analysis = sandbox.shell(piped).expect(0).json();
    assert!(analysis["analysis"]["lines"].as_u64().unwrap() > 0, "{analysis}");
    assert!(analysis["analysis"]["from"].is_string(), "the lines have times: {analysis}");

    let state = |document: &Value, list: &str, name: &str| {
        let found = document[list].as_array().unwrap().iter().find(|one| one["name"] == name);
        found.map_or(Value::Null, |one| one["state"].clone())
    };
    let deps = sandbox.run(&["deps", "--env", "development", "-o", "json"]).expect(0).json();
    for name in ["state store", "database"] {
        assert_eq!(state(&deps, "dependencies", name), "ok", "{name}: {deps}");
    }
    let audit = sandbox.run(&["security", "audit", "--env", "development", "-o", "json"]).expect(0).json();
    for name in ["state files", "secrets", "open ports", "secret jwt-signing-key", "waivers", "bundle signature"] {
        assert_eq!(state(&audit, "lines", name), "ok", "{name}: {audit}");
    }
    // What does not exist is not encrypted either.
    for name in ["backup encryption", "backup age"] {
        assert_eq!(state(&audit, "lines", name), "warning", "{name}: {audit}");
    }

    // Somebody else reads the scrape too.
    let mut child = match Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
    {
        Ok(child) => child,
        Err(why) => {
            assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "promtool: {why}");
            return;
        }
    };
    child.stdin.take().unwrap().write_all(scrape.as_bytes()).unwrap();
    let said = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(!said.contains("error while linting"), "{said}");
}

#[test]
fn a_log_that_is_piped_into_analyze_is_grouped_and_limited_by_time() {
    let sandbox = Sandbox::new("piped");
    let line = |second: u32, level: &str, message: &str| {
        json!({ "timestamp": format!("2026-11-23T10:00:{second:02}Z"), "level": level, "message": message }).to_string()
    };
    let log = [
        line(0, "INFO", "request"),
        line(1, "ERROR", "the database query failed after 900 ms"),
        line(2, "WARN", "handshake failed"),
        line(3, "ERROR", "the database query failed after 1200 ms"),
    ];
    std::fs::write(sandbox.folder().join("server.log"), log.join("\n")).unwrap();
    let piped = |more: &str| {
        let said = sandbox.shell(&format!("cat server.log | textnlp-deploy analyze - {more} -o json"));
        said.expect(0).json()["analysis"].clone()
    };
    let all = piped("");
    let counts = |analysis: &Value| ["lines", "errors", "warnings"].map(|member| analysis[member].as_u64().unwrap());
    assert_eq!(counts(&all), [4, 2, 1], "{all}");
    let error = &all["groups"][0];
    assert_eq!(error["template"], "the database query failed after N ms", "{all}");
    assert_eq!((&error["count"], &error["sources"]), (&json!(2), &json!([])), "a pipe has no name: {all}");
    let late = piped("--since 2026-11-23T10:00:02Z");
    assert_eq!(counts(&late), [2, 1, 1], "{late}");
}

#[test]
fn monthly_reports_are_of_the_records_and_price_only_what_is_known() {
    let sandbox = Sandbox::new("months");
    sandbox.up("development");
    assert_eq!(sandbox.run(&["generate", "Mira walked", "--max-tokens", "20", "--env", "development"]).exit, 0);
    let report = |words: &[&str], more: &[String]| {
        let more = more.iter().map(String::as_str);
        let typed: Vec<&str> =
            words.iter().copied().chain(["--env", "development", "-o", "json"]).chain(more).collect();
        sandbox.run(&typed)
    };
    // The server writes its records in batches.
    let month = eventually("a recorded request", || {
        let month = report(&["performance", "report"], &[]).expect(0).json();
        (month["total"]["requests"].as_u64()? > 0).then_some(month)
    });
    let total = &month["total"];
    assert_eq!((&total["errors"], &total["availability"]), (&json!(0), &json!(1.0)), "{month}");
    assert!(total["generated_tokens"].as_u64().unwrap() >= 1 && total["p95_ms"].is_u64(), "{month}");
    assert_eq!(month["groups"][0]["tenant"], "default", "{month}");
    let page = std::fs::read_to_string(month["report"].as_str().unwrap()).unwrap();
    assert!(page.contains("<svg") && !page.contains("<script"), "{page}");
    let file = sandbox.folder().join("month.pdf");
    report(&["performance", "report"], &["--pdf".to_owned(), file.to_string()]).expect(0);
    assert!(std::fs::read(&file).unwrap().starts_with(b"%PDF-"));
    let early = ["--month", "1999-12"].map(str::to_owned);
    let none = report(&["performance", "report"], &early).expect(0).json();
    assert_eq!((&none["total"]["requests"], &none["days"][0]["state"]), (&json!(0), &json!("not_recorded")), "{none}");
    let compared = ["--compare", "1999-12"].map(str::to_owned);
    let compared = report(&["performance", "report"], &compared).expect(0).json();
    let hourly = &compared["compared"]["requests_an_hour"];
    assert!(hourly["before"].is_null() && hourly["after"].as_f64() > Some(0.0), "{compared}");
    let written = |name: &str, words: &[&str]| {
        let file = sandbox.folder().join(name);
        std::fs::write(&file, sandbox.run(&[words, &["--env", "development", "-o", "json"]].concat()).expect(0).out)
            .unwrap();
        file.into_string()
    };
    let load = written("load.json", &["load", "--users", "2", "--seconds", "4"]);
    let bench = written("database.json", &["db", "bench", "--clients", "1", "--duration", "1s"]);
    let models = sandbox.folder().join("models.json");
    let measured = sandbox.run(&["model", "bench", "bundled", "--prompt-tokens", "16", "-o", "json"]).expect(0).out;
    std::fs::write(&models, measured).unwrap();
    let all = ["--load", &load, "--models", models.as_str(), "--database", &bench, "--pdf", file.as_str()];
    let last = report(&["performance", "report"], &all.map(str::to_owned)).expect(0).json();
    assert!(last["models"][0]["results"][0]["decode"].as_f64() > Some(0.0), "{last}");
    assert!(last["load_tests"][0]["result"]["requests"].as_u64() > Some(0), "{last}");
    assert!(last["databases"][0]["transactions"].as_u64() > Some(0), "{last}");
    if let Ok(text) = Command::new("pdftotext").args(["-layout", file.as_str(), "-"]).output() {
        let text = String::from_utf8_lossy(&text.stdout).into_owned();
        for part in ["Latency, ms", "Load tests", "Model benchmark", "Database benchmark"] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
    let swapped = ["--load", &bench, "--models", &load, "--database", &load].map(str::to_owned);
    let refused = report(&["performance", "report"], &swapped).expect(2).json();
    let why = refused["error"]["message"].as_str().unwrap();
    for command in ["`load -o json`", "`model bench -o json`", "`db bench -o json`"] {
        assert!(why.contains(command), "each is named: {refused}");
    }
    let late = ["--month", "9998-01"].map(str::to_owned);
    assert_eq!(report(&["performance", "report"], &late).expect(2).json()["error"]["code"], "future_month");

    let day = report(&["metrics", "summary"], &["--period", "24h"].map(str::to_owned)).expect(0).json();
    let site = &day["sites"][0];
    assert_eq!((&site["source"], &site["summary"]["errors"]), (&json!("usage_records"), &json!(0)), "{day}");
    assert!(site["summary"]["generated_tokens"].as_u64() > Some(0) && site["summary"]["queue_max"].is_null(), "{day}");

    let unpriced = report(&["cost", "report"], &[]).expect(0).json();
    assert_eq!((&unpriced["not_priced"], &unpriced["tokens"]), (&json!(["here"]), &Value::Null), "{unpriced}");
    assert_eq!(unpriced["cost"]["monthly"], Value::Null, "{unpriced}");
    // 0.1 kW for 730 hours at 0.2.
    let machine = ["watts=100", "price_per_kwh=0.2", "purchase_price=0", "depreciation_months=1"];
    let machine: Vec<String> = machine.iter().map(|value| format!("--set=budget.machines.here.{value}")).collect();
    let priced = report(&["cost", "report"], &machine).expect(0).json();
    assert_eq!((&priced["cost"]["monthly"], &priced["not_priced"]), (&json!(14.6), &json!([])), "{priced}");
    let row = json!({ "service": "Machines", "site": "here", "monthly": 14.6, "known": 14.6 });
    assert_eq!(priced["breakdown"], json!([row]), "{priced}");
    assert!(priced["tokens"]["per_1k_tokens"].as_f64().unwrap() >= 0.0, "{priced}");
    assert_eq!(priced["tokens"]["groups"][0]["tenant"], "default", "{priced}");

    let cost = ["baseline", "record", "--only", "cost"];
    assert_eq!(report(&cost, &[]).expect(4).json()["error"]["code"], "cost_unknown");
    let recorded = report(&cost, &machine).expect(0).json();
    assert_eq!(recorded["baseline"]["cost"]["known"], 14.6, "{recorded}");
    assert_eq!(report(&cost, &machine).expect(4).json()["error"]["code"], "baseline_exists");
    let again = report(&["cost", "report"], &machine).expect(0).json();
    assert_eq!(again["baseline"]["change_percent"], 0.0, "{again}");

    assert_eq!(report(&["baseline", "compare"], &[]).expect(2).json()["error"]["code"], "no_baseline");
    let speed = ["baseline", "record", "--only", "speed", "--users", "2", "--seconds", "3"];
    // Settings that are not applied are not what is measured.
    assert_eq!(report(&speed, &machine).expect(3).json()["error"]["code"], "settings_not_applied");
    let recorded = report(&speed, &[]).expect(0).json();
    assert!(recorded["baseline"]["speed"]["tokens_per_second"].as_f64().unwrap() > 0.0, "{recorded}");
    let compared = report(&["baseline", "compare"], &[]).expect(0).json();
    assert!(compared["speed_up"]["value"].as_f64().unwrap() > 0.0, "{compared}");
    assert_eq!(compared["cost_reduction_percent"]["value"], Value::Null, "the machine has no price here: {compared}");

    let file = sandbox.state("development").join("evidence/baseline.json");
    let altered = std::fs::read_to_string(&file).unwrap().replace("14600000", "99600000");
    std::fs::write(&file, altered).unwrap();
    let shown = report(&["baseline", "show"], &[]).expect(4).json();
    assert_eq!(shown["error"]["code"], "baseline_not_verified", "{shown}");

    // Prices apply to later requests.
    assert_eq!((&again["charged"], &again["margin"]), (&Value::Null, &Value::Null), "{again}");
    let prices = ["--set=server.prices.prompt=1000", "--set=server.prices.answer=2000"];
    let up = ["up", "--env", "development", "--yes", "--no-gate"];
    sandbox.run(&[up.as_slice(), prices.as_slice()].concat()).expect(0);
    assert_eq!(sandbox.run(&["generate", "Mira walked", "--max-tokens", "20", "--env", "development"]).exit, 0);
    let charged = eventually("a charged request", || {
        let month = report(&["cost", "report"], &machine).expect(0).json();
        (!month["charged"].is_null()).then_some(month)
    });
    assert!(charged["charged"]["USD"].as_f64().unwrap() > 0.0, "{charged}");
    assert_eq!((&charged["margin"]["currency"], &charged["tokens"]["currency"]), (&json!("USD"), &json!("USD")));
}

#[test]
fn alerts_for_hosts_fire_when_due_and_not_before() {
    let rules = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("templates/prometheus/textnlp.yaml");
    let series = |name: &str, values: &str| json!({ "series": name, "values": values });
    let fires = |alert: &str, at: &str, labels: Option<&str>| {
        let expr = format!("count by (alertname, instance) (ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})");
        let sample = |more: &str| json!({ "labels": format!("{{alertname=\"{alert}\"{more}}}"), "value": 1 });
        json!({ "expr": expr, "eval_time": at, "exp_samples": labels.map(sample).into_iter().collect::<Vec<_>>() })
    };
    let a = ",instance=\"a\"";
    let case = |input: Vec<Value>, tests: Vec<Value>| json!({ "interval": "1m", "input_series": input, "promql_expr_test": tests });
    let answer = |le: &str, values: &str| {
        series(
            &format!(
                "http_request_duration_seconds_bucket{{job=\"textnlp\",instance=\"a\",route=\"/v1/generate\",le=\"{le}\"}}"
            ),
            values,
        )
    };
    let requests = |status: u16, values: &str| {
        series(&format!("http_requests_total{{job=\"textnlp\",instance=\"a\",status=\"{status}\"}}"), values)
    };
    let cases = [
        case(
            vec![answer("1", "0+10x10 100+0x40"), answer("2", "0+10x50"), answer("+Inf", "0+10x50")],
            vec![fires("TextnlpLatency", "9m", None), fires("TextnlpLatency", "25m", Some(a))],
        ),
        case(
            vec![requests(200, "0+9x60"), requests(503, "0+1x60")],
            vec![fires("TextnlpErrors", "8m", None), fires("TextnlpErrors", "30m", Some(a))],
        ),
        case(
            vec![
                series("textnlp_ready{job=\"textnlp\",instance=\"a\"}", "1+0x5 0+0x40"),
                series("textnlp_ready{job=\"textnlp\",instance=\"b\"}", "1+0x50"),
            ],
            vec![
                fires("TextnlpNotReady", "10m", None),
                fires("TextnlpNotReady", "12m", Some(a)),
                fires("TextnlpAbsent", "40m", None),
            ],
        ),
        case(
            vec![
                series("textnlp_ready{job=\"other\",instance=\"a\"}", "1+0x40"),
                series("up{job=\"textnlp\",instance=\"a\"}", "1+0x5 0+0x40"),
            ],
            vec![
                fires("TextnlpAbsent", "4m", None),
                fires("TextnlpAbsent", "6m", Some("")),
                fires("TextnlpDown", "10m", None),
                fires("TextnlpDown", "12m", Some(a)),
            ],
        ),
        case(
            vec![series(
                "textnlp_authentication_failures_total{job=\"textnlp\",instance=\"a\",type=\"invalid_api_key\"}",
                "0+50x30 1550+100x30",
            )],
            vec![fires("TextnlpAuthentication", "29m", None), fires("TextnlpAuthentication", "45m", Some(a))],
        ),
        case(
            vec![
                series("textnlp_insights{job=\"textnlp\",instance=\"a\",kind=\"summary\"}", "9+0x60"),
                series("textnlp_insights{job=\"textnlp\",instance=\"a\",kind=\"latency_rise\"}", "0+0x5 1+0x20 0+0x20"),
            ],
            vec![
                fires("TextnlpInsights", "4m", None),
                fires("TextnlpInsights", "7m", Some(a)),
                fires("TextnlpInsights", "40m", None),
            ],
        ),
    ];
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tests.yml");
    let text = json!({ "rule_files": [rules], "evaluation_interval": "1m", "tests": cases }).to_string();
    std::fs::write(&file, text).unwrap();
    match Command::new("promtool").args(["test", "rules"]).arg(&file).output() {
        Ok(said) => assert!(
            said.status.success(),
            "{}",
            [said.stdout, said.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat()
        ),
        Err(why) => assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "promtool: {why}"),
    }
}
