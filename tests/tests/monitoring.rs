//! Whatever rules and dashboards ask for is there: in a scrape of the real program, or told by what watches a cluster.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::io::Write;
use std::process::{Command, Stdio};

use camino::Utf8Path;
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
    let before = text.match_indices("{namespace=").map(|(place, _)| &text[..place]);
    before.map(|before| before[before.trim_end_matches(is_part).len()..].to_owned()).collect()
}

#[test]
fn every_metric_of_the_rules_and_dashboard_is_scraped() {
    let templates = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("templates/kubernetes");
    let text = |name: &str| std::fs::read_to_string(templates.join(name)).unwrap();
    let (rules, dashboard) = (asked_for(&text("prometheus-rule.yaml")), asked_for(&text("dashboard.json")));
    assert!(rules.len() >= 5 && dashboard.len() >= 12, "{rules:?} {dashboard:?}");

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
