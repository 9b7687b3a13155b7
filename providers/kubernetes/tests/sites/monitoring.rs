//! The alerts as Prometheus itself reads them: `promtool` says whether each is told when it should be, and not before.

use std::collections::BTreeMap;
use std::process::Command;
use std::sync::Arc;

use serde_json::{Value, json};
use textnlp_kubernetes::{Access, Kubernetes};
use textnlp_provider::component::{
    AlertLimits, ComponentSpec, ExternalSecret, Monitoring, ReceiverAddress, ServiceLimits,
};
use textnlp_provider::settings::{Role, Runtime};
use textnlp_provider::{Component, Provider, Site, Wanted};

use crate::parts::{Fixture, fixture};

/// What a site in namespace `shop` gets.
fn lowered(monitoring: Monitoring) -> Vec<Wanted> {
    let fixture = Fixture { namespace: "shop".to_owned(), ..fixture() };
    let site = Site {
        environment: "pilot".parse().unwrap(),
        name: "main".parse().unwrap(),
        account: String::new(),
        region: "local".to_owned(),
        runtime: Runtime::Kubernetes,
        role: Some(Role::Primary),
        tags: BTreeMap::new(),
        protect_data: true,
        cluster: Some(Box::new(fixture.cluster())),
        subnets: Vec::new(),
        maintenance: None,
    };
    let component =
        Component { name: "monitoring".parse().unwrap(), existing: None, part: ComponentSpec::Monitoring(monitoring) };
    let access = Access::kubeconfig(None, None);
    Kubernetes::new(access, Arc::new(crate::world::Vault::default())).lower(&component, &site).unwrap()
}

fn rules(monitoring: Monitoring) -> Value {
    let made = lowered(monitoring);
    let rules = made.iter().find(|one| one.kind.as_str() == "kubernetes.prometheus-rule").unwrap();
    rules.spec.as_value()["spec"].clone()
}

fn promtool(arguments: &[&str]) -> Option<String> {
    let said = match Command::new("promtool").args(arguments).output() {
        Ok(said) => said,
        Err(why) => {
            assert!(std::env::var_os("TEXTNLP_TESTS_REQUIRE_TOOLS").is_none(), "promtool: {why}");
            eprintln!("LEFT OUT: promtool is not here");
            return None;
        }
    };
    let text = [said.stdout, said.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    assert!(said.status.success(), "{text}");
    Some(text)
}

/// After how long, which alert, and of what it is told.
type Told<'a> = (&'a str, &'a str, &'a [&'a str]);
/// Series with their values, and what is told of them.
type Case<'a> = (Vec<(String, &'a str)>, Vec<Told<'a>>);

/// What is measured, minute by minute, and which alerts are told after so many minutes.
fn case(series: &[(&str, &str)], told: &[Told<'_>]) -> Value {
    let input: Vec<Value> =
        series.iter().map(|(series, values)| json!({ "series": series, "values": values })).collect();
    let tests: Vec<Value> = told
        .iter()
        .map(|(at, alert, about)| {
            // Only that it is told, and of what: the words are for people.
            let label = if *alert == "TextnlpDisk" { "device" } else { "pod" };
            let count: Vec<Value> = match about.is_empty() {
                true => Vec::new(),
                false => about
                    .iter()
                    .map(|pod| {
                        let labels = if pod.is_empty() { "{}".to_owned() } else { format!("{{{label}=\"{pod}\"}}") };
                        json!({ "labels": labels, "value": 1 })
                    })
                    .collect(),
            };
            let expr = format!("count by ({label}) (ALERTS{{alertname=\"{alert}\",alertstate=\"firing\"}})");
            json!({ "expr": expr, "eval_time": at, "exp_samples": count })
        })
        .collect();
    json!({ "interval": "1m", "input_series": input, "promql_expr_test": tests })
}

#[test]
fn each_prometheus_alert_fires_when_due_and_not_before() {
    let folder = tempfile::tempdir().unwrap();
    let (file, tests) = (folder.path().join("rules.yml"), folder.path().join("tests.yml"));
    std::fs::write(&file, serde_yaml::to_string(&rules(Monitoring { stack: true, ..Monitoring::default() })).unwrap())
        .unwrap();
    let Some(said) = promtool(&["check", "rules", file.to_str().unwrap()]) else { return };
    assert!(said.contains("11 rules found"), "{said}");

    let answer = |le: &str, values: &'static str| {
        (
            format!("http_request_duration_seconds_bucket{{namespace=\"shop\",route=\"/v1/generate\",le=\"{le}\"}}"),
            values,
        )
    };
    let requests = |status: u16, values: &'static str| {
        (format!("http_requests_total{{namespace=\"shop\",status=\"{status}\"}}"), values)
    };
    let on_pod = |metric: &str, more: &str, values: &'static str| {
        (format!("{metric}{{namespace=\"shop\",pod=\"a\",container=\"api\"{more}}}"), values)
    };
    let backup = |metric: &str, values: &'static str| {
        (format!("kube_cronjob_{metric}{{namespace=\"shop\",cronjob=\"textnlp-backup\"}}"), values)
    };
    let disk = |metric: &str, device: &str, kind: &str, values: &'static str| {
        let labels = format!("instance=\"10.0.0.1:9100\",device=\"{device}\",fstype=\"{kind}\"");
        (format!("node_filesystem_{metric}_bytes{{{labels}}}"), values)
    };
    let cases: Vec<Case<'_>> = vec![
        // From the tenth minute on all answers take between one and two seconds.
        (
            vec![answer("1", "0+10x10 100+0x40"), answer("2", "0+10x50"), answer("+Inf", "0+10x50")],
            vec![("9m", "TextnlpLatency", &[]), ("14m", "TextnlpLatency", &[]), ("25m", "TextnlpLatency", &[""])],
        ),
        // Quick answers are nobody's trouble, however many.
        (
            vec![answer("1", "0+1000x50"), answer("2", "0+1000x50"), answer("+Inf", "0+1000x50")],
            vec![("40m", "TextnlpLatency", &[])],
        ),
        // One in ten fails; what clients do wrong is not counted.
        (
            vec![requests(200, "0+9x60"), requests(503, "0+1x60"), requests(404, "0+0x60")],
            vec![("8m", "TextnlpErrors", &[]), ("30m", "TextnlpErrors", &[""])],
        ),
        (
            vec![requests(200, "0+9x60"), requests(404, "0+9x60"), requests(500, "0+0x60")],
            vec![("50m", "TextnlpErrors", &[])],
        ),
        // No pod is ready, then one of two; and no pod is there at all. What is absent has no labels of a pod.
        (
            vec![on_pod("textnlp_ready", "", "1+0x5 0+0x20 1+0x20")],
            vec![("10m", "TextnlpNotReady", &[]), ("12m", "TextnlpNotReady", &[""]), ("30m", "TextnlpNotReady", &[])],
        ),
        (
            vec![
                on_pod("textnlp_ready", "", "0+0x60"),
                ("textnlp_ready{namespace=\"shop\",pod=\"b\",container=\"api\"}".to_owned(), "1+0x60"),
            ],
            vec![("50m", "TextnlpNotReady", &[]), ("50m", "TextnlpAbsent", &[])],
        ),
        (
            vec![("textnlp_ready{namespace=\"other\",pod=\"a\"}".to_owned(), "1+0x60")],
            vec![("4m", "TextnlpAbsent", &[]), ("6m", "TextnlpAbsent", &[""]), ("40m", "TextnlpNotReady", &[])],
        ),
        // From the thirtieth minute on more than one wrong key a second.
        (
            vec![on_pod("textnlp_authentication_failures_total", ",type=\"invalid_api_key\"", "0+50x30 1550+100x30")],
            vec![("29m", "TextnlpAuthentication", &[]), ("45m", "TextnlpAuthentication", &[""])],
        ),
        // One of two servers cannot be scraped; the pod of another service is not ours.
        (
            vec![
                ("up{namespace=\"shop\",job=\"textnlp-metrics\",pod=\"a\"}".to_owned(), "1+0x5 0+0x30"),
                ("up{namespace=\"shop\",job=\"textnlp-metrics\",pod=\"b\"}".to_owned(), "1+0x40"),
                ("up{namespace=\"shop\",job=\"other\",pod=\"c\"}".to_owned(), "0+0x40"),
            ],
            vec![("10m", "TextnlpDown", &[]), ("12m", "TextnlpDown", &["a"]), ("30m", "TextnlpDown", &["a"])],
        ),
        // Nine tenths of the memory, from the start.
        (
            vec![
                on_pod("container_memory_working_set_bytes", "", "90+0x60"),
                on_pod("kube_pod_container_resource_limits", ",resource=\"memory\"", "100+0x60"),
                on_pod("kube_pod_container_resource_limits", ",resource=\"cpu\"", "4+0x60"),
            ],
            vec![("14m", "TextnlpMemory", &[]), ("16m", "TextnlpMemory", &["a"])],
        ),
        (
            vec![
                disk("avail", "sda1", "ext4", "20 9+0x9"),
                disk("size", "sda1", "ext4", "100+0x10"),
                disk("avail", "shm", "tmpfs", "0+0x10"),
                disk("size", "shm", "tmpfs", "100+0x10"),
            ],
            vec![("0m", "TextnlpDisk", &[]), ("2m", "TextnlpDisk", &["sda1"])],
        ),
        // One restart each ten minutes, and one each five.
        (
            vec![on_pod("kube_pod_container_status_restarts_total", "", "0x9 1x9 2x9 3x9 4x9 5x9 6x9")],
            vec![("45m", "TextnlpRestarts", &[])],
        ),
        (
            vec![on_pod(
                "kube_pod_container_status_restarts_total",
                "",
                "0x4 1x4 2x4 3x4 4x4 5x4 6x4 7x4 8x4 9x4 10x4 11x4 12x4",
            )],
            vec![("10m", "TextnlpRestarts", &[]), ("55m", "TextnlpRestarts", &["a"])],
        ),
        // A run of the third hour, after one that succeeded, and after none; and one of the first hour that succeeded.
        (
            vec![backup("status_last_successful_time", "600+0x600"), backup("status_last_schedule_time", "7200+0x600")],
            vec![("6h", "TextnlpBackup", &[]), ("8h", "TextnlpBackup", &[""])],
        ),
        (
            vec![backup("created", "600+0x600"), backup("status_last_schedule_time", "7200+0x600")],
            vec![("6h", "TextnlpBackup", &[]), ("8h", "TextnlpBackup", &[""])],
        ),
        (
            vec![backup("status_last_successful_time", "900+0x600"), backup("status_last_schedule_time", "600+0x600")],
            vec![("9h", "TextnlpBackup", &[])],
        ),
        // Only insights that are warnings fire, until they are older than a day.
        (
            vec![
                on_pod("textnlp_insights", ",kind=\"summary\"", "9+0x60"),
                on_pod("textnlp_insights", ",kind=\"latency_rise\"", "0+0x5 1+0x20 0+0x20"),
            ],
            vec![("4m", "TextnlpInsights", &[]), ("7m", "TextnlpInsights", &[""]), ("40m", "TextnlpInsights", &[])],
        ),
    ];
    let cases: Vec<Value> = cases
        .iter()
        .map(|(series, told)| {
            let series: Vec<(&str, &str)> = series.iter().map(|(series, values)| (series.as_str(), *values)).collect();
            case(&series, told)
        })
        .collect();
    let text =
        serde_yaml::to_string(&json!({ "rule_files": [file], "evaluation_interval": "1m", "tests": cases })).unwrap();
    std::fs::write(&tests, text).unwrap();
    promtool(&["test", "rules", tests.to_str().unwrap()]);
}

#[test]
fn alert_thresholds_follow_from_the_environment() {
    let monitoring = Monitoring {
        stack: true,
        limits: AlertLimits { memory: 70, disk: 85, restarts: 3 },
        service: ServiceLimits {
            latency_seconds: 2.5,
            latency_for_seconds: 60,
            error_rate: 0.01,
            error_rate_for_seconds: 90,
        },
        ..Monitoring::default()
    };
    let rules = rules(monitoring);
    let limits: Vec<String> = rules["groups"][0]["rules"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|rule| Some(rule["expr"].as_str().unwrap().rsplit_once("> ")?.1.to_owned()))
        .collect();
    // The third and the last are numbers of invalid credentials and of insights, which no setting changes.
    assert_eq!(limits, ["2.5", "0.01", "300", "0.7", "0.85", "3", "0"]);
    let durations: Vec<&Value> =
        rules["groups"][0]["rules"].as_array().unwrap()[..2].iter().map(|r| &r["for"]).collect();
    assert_eq!(durations, ["60s", "90s"]);
    assert!(!rules.to_string().contains("\"textnlp\"}"), "each namespace is watched by itself");
}

#[test]
fn alerts_reach_every_receiver_by_their_namespace() {
    let plain = |text: &str| ReceiverAddress::Plain(text.to_owned());
    let secret = ExternalSecret { source: "secret:env:ONCALL_URL".to_owned(), version: "1".to_owned() };
    let receivers = BTreeMap::from([
        ("oncall".to_owned(), ReceiverAddress::Secret(secret)),
        ("bridge".to_owned(), plain("https://hooks.example.com")),
        ("team".to_owned(), plain("smtps://mail.example.com?from=a@example.com&to=b@example.com,c@example.com")),
        ("boss".to_owned(), plain("smtp://mail.example.com:2587?from=a@example.com&to=d@example.com")),
    ]);
    let secrets = Some("secrets".parse().unwrap());
    let made = lowered(Monitoring { stack: true, receivers, secrets, ..Monitoring::default() });
    let of = |part: &str| made.iter().find(|one| one.id.as_str() == format!("main/monitoring/{part}")).unwrap();
    let config = of("receivers");
    assert!(config.needs.iter().any(|need| need.on == of("receiver-addresses").id), "{:?}", config.needs);
    let spec = &config.spec.as_value()["spec"];
    let hook = |key: &str| json!({ "urlSecret": { "name": "textnlp-receivers", "key": key }, "sendResolved": true });
    let mail = |to: &str, server: &str, starttls: bool| json!({ "to": to, "from": "a@example.com", "smarthost": server, "requireTLS": starttls, "sendResolved": true });
    let all = json!([{
        "name": "all",
        "webhookConfigs": [hook("receiver-bridge"), hook("receiver-oncall")],
        "emailConfigs": [
            mail("d@example.com", "mail.example.com:2587", true),
            mail("b@example.com,c@example.com", "mail.example.com:465", false),
        ],
    }]);
    assert_eq!((&spec["receivers"], &spec["route"]["receiver"]), (&all, &json!("all")));
    let addresses = of("receiver-addresses");
    let data = addresses.spec.as_value().to_string();
    assert!(data.contains("main/secrets/receiver-oncall") && !data.contains("ONCALL_URL"), "{data}");
    assert!(!config.spec.as_value().to_string().contains("hooks.example.com"), "it may hold a token");
    // The route has the namespace of its object as a condition, which each alert must meet.
    let rules = rules(Monitoring { stack: true, ..Monitoring::default() });
    for rule in rules["groups"][0]["rules"].as_array().unwrap() {
        assert_eq!(rule["labels"]["namespace"], "shop", "{rule}");
    }
    let none = lowered(Monitoring { stack: true, ..Monitoring::default() });
    assert!(none.iter().all(|one| !one.id.as_str().contains("receiver")));
}
