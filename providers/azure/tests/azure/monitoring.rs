//! Metric alerts, the action group that they notify, and the workbook of their metrics.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Monitored, Monitoring};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::settings::Hosting;
use textnlp_provider::{Effect, Observed, Provider, Verb, Wanted};
use textnlp_sim::azure::Options;
use textnlp_sim::{Disruption, Rule};

use crate::{Bench, monitoring, record, run};

const ALERT: &str = "microsoft.insights/metricalerts/";
const WRITE: &str = "Microsoft.Insights/metricAlerts/write";
const WRITE_WORKBOOK: &str = "Microsoft.Insights/workbooks/write";

fn bench() -> Bench {
    Bench::new(Options::zero_latency().registered(), false)
}

/// The metric alerts of a subscription.
pub(super) fn alerts(bench: &Bench) -> Vec<Value> {
    let world = bench.cloud.world();
    let ids = world.ids().into_iter().filter(|id| id.to_lowercase().contains(ALERT));
    ids.filter_map(|id| world.get(&id)).collect()
}

fn lowered(bench: &Bench, monitoring: Monitoring) -> Result<Vec<Wanted>, String> {
    let part = ComponentSpec::Monitoring(monitoring);
    let component = Component { name: "monitoring".parse().unwrap(), existing: None, part };
    lowers_purely(&bench.provider, &component, &bench.site).map_err(|violation| violation.law)
}

fn named(all: &[Wanted], start: &str) -> Vec<String> {
    let ids = all.iter().filter_map(|one| one.id.as_str().strip_prefix("main/monitoring/"));
    ids.filter_map(|id| id.strip_prefix(start)).map(str::to_owned).collect()
}

#[test]
fn alerts_are_about_what_the_environment_creates() {
    let bench = bench();
    let of = |change: fn(&mut Monitoring)| {
        let mut monitoring = monitoring();
        change(&mut monitoring);
        lowered(&bench, monitoring)
    };
    let of_nodes = ["nodes-memory", "nodes-disk"];
    let of_database = ["database-cpu", "database-memory", "database-disk", "database-connections"];
    let all = of(|_| {}).unwrap();
    assert_eq!(named(&all, "alert-"), [&of_nodes[..], &of_database].concat());
    let alert = |part: &str| {
        let id = format!("main/monitoring/alert-{part}");
        all.iter().find(|one| one.id.as_str() == id).unwrap().spec.as_value().clone()
    };
    let nodes = alert("nodes-memory");
    assert_eq!(nodes["scopes"], json!([{ "$output": "main/cluster#id" }]));
    assert_eq!((&nodes["criterion"]["above"], &nodes["criterion"]["each"]), (&json!(80.0), &json!(["node"])));
    assert_eq!(alert("nodes-disk")["criterion"]["each"], json!(["node", "device"]));
    assert_eq!(nodes["groups"], json!([{ "$output": "main/monitoring/mailboxes#id" }]));
    // Nine tenths of what the smallest size with a standby accepts from users.
    assert_eq!(alert("database-connections")["criterion"]["above"], json!(760.0));
    let copied = of(|one| {
        let postgres = one.monitored.database.as_mut().and_then(|one| one.postgres.as_mut()).unwrap();
        postgres.managed.as_mut().unwrap().replica_region = Some("northeurope".to_owned());
    });
    assert_eq!(named(&copied.unwrap(), "alert-"), [&of_nodes[..], &of_database, &["database-lag"]].concat());
    let external = of(|one| one.monitored.database.as_mut().unwrap().hosting = Some(Hosting::External)).unwrap();
    assert_eq!(named(&external, "alert-"), of_nodes);
    let existing = of(|one| one.monitored = Monitored::default()).unwrap();
    assert!(named(&existing, "alert-").is_empty() && named(&existing, "overview").is_empty());
    let without = of(|one| one.receivers = BTreeMap::new()).unwrap();
    assert!(named(&without, "alert-").is_empty() && named(&without, "mailboxes").is_empty());
    let charts = |all: &[Wanted]| {
        let workbook = all.iter().find(|one| one.kind.as_str() == "azure.workbook").unwrap();
        assert!(workbook.needs.iter().any(|need| need.on.as_str() == "main/monitoring/insights"), "{workbook:?}");
        workbook.spec.get("charts").and_then(Value::as_array).cloned().unwrap()
    };
    assert_eq!(charts(&without), charts(&all));
    let shown: Vec<&Value> = all.iter().filter_map(|one| one.spec.get("criterion")).collect();
    assert_eq!(charts(&all).len(), shown.len());
    for (chart, criterion) in charts(&all).iter().zip(shown) {
        assert_eq!((&chart["metric"], &chart["above"]), (&criterion["metric"], &criterion["above"]));
    }
    assert_eq!(
        (&charts(&all)[1]["each"], &charts(&all)[1]["resource"]),
        (&json!(["node", "device"]), &json!({ "$output": "main/cluster#id" }))
    );
    assert_eq!(charts(&all)[2]["says"], "CPU of the database");
    let off = of(|one| one.stack = false).unwrap_err();
    assert!(off.contains("receivers.hook") && off.contains("mailboxes only"), "{off}");
    let off = of(|one| {
        one.stack = false;
        one.receivers.remove("hook");
    });
    let off = off.unwrap();
    assert_eq!((named(&off, "alert-").len(), named(&off, "overview").len()), (6, 0));
}

/// Creates the group of a site: its path.
async fn group(bench: &Bench) -> String {
    let all = bench.all();
    let group = all.iter().find(|one| one.kind.as_str() == "azure.group").unwrap();
    bench.finish(&bench.operation(1, Verb::Create, group, &group.spec, None)).await;
    let name = group.spec.get("name").and_then(Value::as_str).unwrap();
    format!("/subscriptions/{}/resourceGroups/{name}", bench.cloud.subscription())
}

#[test]
fn a_changed_alert_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let path = group(&bench).await;
        let spec = json!({
            "group": path, "name": "disk", "says": "The disk is nearly full", "severity": 2, "enabled": true,
            "scopes": [format!("{path}/providers/a/b/c")], "frequency": "PT1M", "window": "PT5M", "groups": [], "tags": {},
            "criterion": { "namespace": "a/b", "metric": "m", "each": [], "above": 90.0 },
        });
        let wanted = bench.wanted("main/monitoring/alert-disk", "azure.metric-alert", &spec);
        bench.cloud.faults().add(Rule::nth("Microsoft.Insights", WRITE, 1, Disruption::LostReply));
        let object = bench.finish(&bench.operation(2, Verb::Create, &wanted, &wanted.spec, None)).await;
        let recorded = record(&wanted, &wanted.spec, &object);
        assert_eq!(alerts(&bench).len(), 1);
        let id = recorded.cloud_id.to_string();
        let mut criteria = alerts(&bench)[0]["properties"]["criteria"].clone();
        criteria["allOf"][0]["threshold"] = json!(99);
        bench.cloud.world().change(&id, "/properties/criteria", criteria);
        bench.cloud.world().change(&id, "/properties/enabled", json!(false));
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["criterion", "enabled"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let object = bench.finish(&bench.operation(3, Verb::Update, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
    });
}

#[test]
fn a_changed_workbook_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let path = group(&bench).await;
        let chart = |metric: &str| {
            json!({
                "says": metric, "resource": format!("{path}/providers/A/b/c"), "namespace": "a/b", "metric": metric,
                "each": ["node", "device"], "above": 90.0,
            })
        };
        let spec = json!({
            "group": path, "location": bench.site.region, "name": "11111111-2222-4333-8444-555555555555", "title": "overview",
            "charts": [chart("m"), chart("n")], "tags": { "team": "text" },
        });
        let wanted = bench.wanted("main/monitoring/overview", "azure.workbook", &spec);
        bench.cloud.faults().add(Rule::nth("Microsoft.Insights", WRITE_WORKBOOK, 1, Disruption::LostReply));
        let object = bench.finish(&bench.operation(2, Verb::Create, &wanted, &wanted.spec, None)).await;
        let recorded = record(&wanted, &wanted.spec, &object);
        let id = recorded.cloud_id.to_string();
        bench.cloud.world().change(
            &id,
            "/properties/serializedData",
            json!(r#"{"version":"Notebook/1.0","items":[]}"#),
        );
        bench.cloud.world().change(&id, "/properties/displayName", json!("others"));
        bench.cloud.world().change(&id, "/tags/hidden-title", json!("others"));
        bench.cloud.world().change(&id, "/tags/team", json!("others"));
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["charts", "tags", "title"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let object = bench.finish(&bench.operation(3, Verb::Update, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
        bench.finish(&bench.operation(4, Verb::Delete, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.cloud.world().get(&id).is_none());
    });
}
