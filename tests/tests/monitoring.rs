//! Whatever rules and dashboards ask for is there: in a scrape of the real program, or told by what watches a cluster.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_tests::{Sandbox, http};

/// Metrics of node agents, kube-state-metrics and Prometheus itself: the monitoring of any cluster has it.
const OF_CLUSTERS: [&str; 4] = [
    "container_memory_working_set_bytes",
    "kube_pod_container_resource_limits",
    "kube_pod_container_status_restarts_total",
    "up",
];

/// The metrics in a text with queries: names that a selector follows.
fn asked_for(text: &str) -> BTreeSet<String> {
    let is_part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    let text = text.replace("\\\"", "\"");
    let selectors = ["{namespace=", "{job="].into_iter().flat_map(|label| text.match_indices(label));
    let before = selectors.map(|(place, _)| &text[..place]);
    before.map(|before| before[before.trim_end_matches(is_part).len()..].to_owned()).collect()
}

#[test]
fn every_metric_of_the_rules_and_dashboard_is_scraped() {
    let templates = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("templates/kubernetes");
    let text = |name: &str| std::fs::read_to_string(templates.join(name)).unwrap();
    let (rules, dashboard) = (asked_for(&text("prometheus-rule.yaml")), asked_for(&text("dashboard.json")));
    let of_hosts = asked_for(&text("../prometheus/textnlp.yaml"));
    assert!(rules.len() >= 5 && dashboard.len() >= 12, "{rules:?} {dashboard:?}");
    assert!(of_hosts.len() >= 5 && of_hosts.is_subset(&rules), "{of_hosts:?}");

    let sandbox = Sandbox::new("figures");
    sandbox.up("development");
    assert_eq!(sandbox.run(&["generate", "Mira walked", "--env", "development"]).exit, 0);
    // Errors by type are there once there was one.
    assert_eq!(http::get(sandbox.port, "/v1/no-such-path").unwrap().status, 404);
    let scrape = http::get(sandbox.metrics_port, "/metrics").unwrap().text();
    let told: BTreeSet<&str> =
        scrape.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let missing: Vec<_> = rules
        .union(&dashboard)
        .filter(|name| !told.contains(name.as_str()) && !OF_CLUSTERS.contains(&name.as_str()))
        .collect();
    assert!(missing.is_empty(), "{missing:?} of {told:?}");

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
