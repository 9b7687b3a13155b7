//! Alert policies, the channels that they notify, and the dashboard of their metrics.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_provider::component::{Component, ComponentSpec, Monitored, Monitoring, ReceiverAddress, ServiceAddress};
use textnlp_provider::conformance::lowers_purely;
use textnlp_provider::settings::Hosting;
use textnlp_provider::{Effect, ErrorKind, Observed, Progress, Provider, ResourceId, Verb, Wanted};
use textnlp_sim::gcp::{Cloud, Options};
use textnlp_sim::{Disruption, Fault, Rule};

use crate::programs::engine::{Stack, UP};
use crate::random::Played;
use crate::story::Simulated;
use crate::{Bench, Made, mailbox, monitoring, record, run, site};

const CREATE: &str = "monitoring.projects.notificationChannels.create";
const PATCH: &str = "monitoring.projects.alertPolicies.patch";
const CREATE_DASHBOARD: &str = "monitoring.projects.dashboards.create";
const CREATE_UPTIME: &str = "monitoring.projects.uptimeCheckConfigs.create";
const CHECKS: &str = "/uptimeCheckConfigs/";

fn all(world: &Cloud, collection: &str) -> Vec<Value> {
    let keys = world.keys().into_iter().filter(|key| key.contains(collection));
    keys.filter_map(|key| world.get(&key).cloned()).collect()
}

/// The channels of a project.
pub(super) fn channels(world: &Cloud) -> Vec<Value> {
    all(world, "/notificationChannels/")
}

/// The alert policies of a project.
pub(super) fn policies(world: &Cloud) -> Vec<Value> {
    all(world, "/alertPolicies/")
}

fn bench() -> Bench {
    Bench::new(Options::zero_latency().enabled(), false)
}

fn lowered(bench: &Bench, monitoring: Monitoring) -> Result<Vec<Wanted>, String> {
    let part = ComponentSpec::Monitoring(monitoring);
    let component = Component { name: "monitoring".parse().unwrap(), existing: None, part };
    lowers_purely(&bench.provider, &component, &bench.site).map_err(|violation| violation.law)
}

fn of_kind<'w>(all: &'w [Wanted], kind: &str) -> Vec<&'w Wanted> {
    all.iter().filter(|one| one.kind.as_str() == kind).collect()
}

async fn make(bench: &Bench, number: u64, wanted: Wanted) -> Made {
    let object = bench.finish(&bench.operation(number, Verb::Create, &wanted, &wanted.spec, None)).await;
    let recorded = record(&wanted, &wanted.spec, &object);
    (wanted, recorded)
}

/// A channel, and a policy that uses it.
async fn channel_and_policy(bench: &Bench) -> (Made, Made) {
    let spec = json!({ "project": bench.cloud.project(), "name": "mailbox", "email": "oncall@example.com", "enabled": true, "tags": {} });
    let channel = make(bench, 1, bench.wanted("main/monitoring/mailbox-1", "gcp.notification-channel", &spec)).await;
    let spec = json!({
        "project": bench.cloud.project(), "name": "disk", "enabled": true, "channels": [channel.1.outputs["id"]], "tags": {},
        "condition": {
            "says": "The disk is nearly full", "filter": ["metric.type=\"m\" AND resource.type=\"r\" AND resource.labels.n=\"", "db", "\""],
            "aligner": "ALIGN_MEAN", "sum_by": null, "above": 0.9, "period_seconds": 60, "lasting_seconds": 300,
        },
    });
    let policy = make(bench, 2, bench.wanted("main/monitoring/alert-disk", "gcp.alert-policy", &spec)).await;
    (channel, policy)
}

/// An uptime check as `up` creates it.
fn check(bench: &Bench) -> Wanted {
    let spec = json!({
        "project": bench.cloud.project(), "name": "uptime", "host": "text.example.com", "enabled": true, "tags": { "team": "text" },
        "target": { "port": 8443, "path": "/health" }, "period": 60, "timeout": 10, "regions": [], "matchers": [],
    });
    bench.wanted("main/monitoring/uptime", "gcp.uptime-check", &spec)
}

#[test]
fn policies_are_about_what_the_environment_creates() {
    let bench = bench();
    let of = |change: fn(&mut Monitoring)| {
        let mut monitoring = Monitoring { budget: None, ..monitoring("USD") };
        if let Some(postgres) = monitoring.monitored.database.as_mut().and_then(|one| one.postgres.as_mut()) {
            postgres.replicas = 3;
        }
        change(&mut monitoring);
        lowered(&bench, monitoring)
    };
    let names = |all: &[Wanted]| -> Vec<String> {
        of_kind(all, "gcp.alert-policy")
            .iter()
            .map(|one| one.id.as_str().replace("main/monitoring/alert-", ""))
            .collect()
    };
    let all = of(|_| {}).unwrap();
    let of_database = [
        "database-cpu",
        "database-memory",
        "database-disk",
        "database-connections",
        "database-lag",
        "database-replication",
    ];
    assert_eq!(names(&all), [&["nodes-memory"][..], &of_database, &["service-uptime"]].concat());
    let condition = |part: &str| {
        let one = all.iter().find(|one| one.id.as_str() == format!("main/monitoring/alert-{part}")).unwrap();
        one.spec.get("condition").cloned().unwrap()
    };
    let server = |part: &str| json!({ "$output": format!("main/database/{part}#name") });
    let project = bench.cloud.project();
    let start = "metric.type=\"cloudsql.googleapis.com/database/replication/replica_lag\" AND \
                 resource.type=\"cloudsql_database\" AND resource.labels.database_id=one_of(";
    let lag = json!([
        format!("{start}\"{project}:"),
        server("replica-1"),
        format!("\", \"{project}:"),
        server("replica-2"),
        "\")",
    ]);
    assert_eq!(condition("database-lag")["filter"], lag);
    assert_eq!(
        (&condition("database-replication")["filter"], &condition("database-replication")["below"]),
        (&lag, &json!(0.0))
    );
    let remote = of(|one| {
        let postgres = one.monitored.database.as_mut().and_then(|one| one.postgres.as_mut()).unwrap();
        postgres.replicas = 0;
        postgres.managed.as_mut().unwrap().replica_region = Some("europe-west4".to_owned());
    });
    let remote = remote.unwrap();
    let lag = remote.iter().find(|one| one.id.as_str() == "main/monitoring/alert-database-lag").unwrap();
    assert!(lag.spec.as_value()["condition"]["filter"].to_string().contains("main/database/remote#name"));
    assert_eq!(condition("nodes-memory")["above"], json!(0.8));
    assert_eq!(condition("database-disk")["above"], json!(0.9));
    // Nine tenths of what the tier of 50 connections accepts.
    assert_eq!(condition("database-connections")["above"], json!(90.0));

    let external = of(|one| one.monitored.database.as_mut().unwrap().hosting = Some(Hosting::External)).unwrap();
    assert_eq!(names(&external), ["nodes-memory", "service-uptime"]);
    let unnamed = of(|one| one.monitored.service = None).unwrap();
    assert_eq!(names(&unnamed), [&["nodes-memory"][..], &of_database].concat());
    assert!(of_kind(&unnamed, "gcp.uptime-check").is_empty());
    let checked = of_kind(&all, "gcp.uptime-check")[0];
    let check = checked.spec.as_value();
    assert_eq!(check["host"], "text.example.com");
    assert_eq!(check["target"], json!({ "port": 8443, "path": "/health" }));
    // It begins after what answers it, and so does its policy.
    for before in ["main/gateway/service", "main/server/deployment"] {
        assert!(checked.needs.iter().any(|need| need.on.as_str() == before), "{before}: {:?}", checked.needs);
    }
    let uptime = condition("service-uptime");
    let start = "metric.type=\"monitoring.googleapis.com/uptime_check/check_passed\" AND resource.type=\"uptime_url\" AND \
                 metric.labels.check_id=\"";
    assert_eq!(uptime["filter"], json!([start, { "$output": "main/monitoring/uptime#name" }, "\""]));
    assert_eq!((&uptime["false_by"], &uptime["above"]), (&json!("resource.label.host"), &json!(1.0)));
    let existing = of(|one| one.monitored = textnlp_provider::component::Monitored::default()).unwrap();
    assert!(names(&existing).is_empty() && of_kind(&existing, "gcp.dashboard").is_empty());

    let shown = |all: &[Wanted]| -> Vec<Value> {
        let charts = of_kind(all, "gcp.dashboard").into_iter().filter_map(|one| one.spec.get("charts")?.as_array());
        charts.flatten().cloned().collect()
    };
    assert_eq!(shown(&all)[1]["says"], "CPU of the database");
    let metric = |mut one: Value| {
        one.as_object_mut().unwrap().retain(|field, _| !["says", "lasting_seconds"].contains(&field.as_str()));
        one
    };
    let conditions =
        of_kind(&all, "gcp.alert-policy").into_iter().map(|one| one.spec.get("condition").cloned().unwrap());
    assert_eq!(
        shown(&all).into_iter().map(metric).collect::<Vec<Value>>(),
        conditions.map(metric).collect::<Vec<Value>>()
    );
    let stack = of(|one| one.receivers = BTreeMap::new()).unwrap();
    assert_eq!(shown(&stack), shown(&all));
    let kinds: Vec<&str> = stack.iter().map(|one| one.kind.as_str()).collect();
    assert_eq!(kinds, ["gcp.services", "gcp.uptime-check", "gcp.dashboard"]);
    assert!(of(|one| (one.stack, one.receivers) = (false, BTreeMap::new())).unwrap().is_empty());
}

#[test]
fn mailboxes_of_receivers_get_channels() {
    let bench = bench();
    let of = |stack: bool, address: ReceiverAddress, has_budget: bool| {
        let mut monitoring = Monitoring { stack, ..monitoring("USD") };
        monitoring.budget = monitoring.budget.filter(|_| has_budget);
        monitoring.receivers.insert("team".to_owned(), address);
        lowered(&bench, monitoring)
    };
    let emails = |all: &[Wanted]| -> Vec<Value> {
        of_kind(all, "gcp.notification-channel").iter().map(|one| one.spec.get("email").cloned().unwrap()).collect()
    };
    let two = of(false, mailbox("team@example.com,oncall@example.com"), true).unwrap();
    assert_eq!(emails(&two), ["oncall@example.com", "team@example.com"]);
    let hook = || ReceiverAddress::Plain("https://hooks.example.com/".to_owned());
    // The cluster's Alertmanager sends to it.
    assert_eq!(emails(&of(true, hook(), true).unwrap()), ["oncall@example.com"]);
    let refused = of(false, hook(), true).unwrap_err();
    assert!(refused.contains("receivers.team") && refused.contains("mailboxes only"), "{refused}");
    let six = || mailbox("a@example.com,b@example.com,c@example.com,d@example.com,e@example.com");
    let all = of(false, six(), true).unwrap();
    let budget = of_kind(&all, "gcp.budget")[0].spec.get("channels").and_then(Value::as_array).unwrap();
    assert_eq!((emails(&all).len(), budget.len()), (6, 5));
    run(async {
        let problems = bench.provider.preflight(&all).await.unwrap();
        let says = "at most, and not to oncall@example.com";
        assert!(problems.iter().any(|one| one.to_string().contains(says)), "{problems:#?}");
    });
    let many: Vec<String> = (0..17).map(|number| format!("m{number}@example.com")).collect();
    let refused = of(false, mailbox(&many.join(",")), false).unwrap_err();
    assert!(refused.contains("has at most 16"), "{refused}");
}

#[test]
fn a_lost_reply_creates_no_second_channel() {
    run(async {
        let bench = bench();
        bench.cloud.faults().add(Rule::nth("monitoring", CREATE, 1, Disruption::LostReply));
        channel_and_policy(&bench).await;
        assert_eq!(channels(&bench.cloud.world()).len(), 1);
    });
}

/// A change is refused while another one is made in the project (GoogleCloudPlatform/cloud-foundation-toolkit#787).
#[test]
fn a_changed_policy_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let (_, (wanted, recorded)) = channel_and_policy(&bench).await;
        let key = format!("monitoring/{}", recorded.cloud_id);
        let mut conditions = bench.cloud.world().get(&key).unwrap()["conditions"].clone();
        conditions[0]["conditionThreshold"]["thresholdValue"] = json!(0.99);
        bench.cloud.world().change(&key, "/conditions", conditions);
        bench.cloud.world().change(&key, "/enabled", json!(false));
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["condition", "enabled"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let fault = Fault::new("ABORTED", "Too many concurrent edits to the project configuration. Please try again.");
        bench.cloud.faults().add(Rule::nth("monitoring", PATCH, 1, Disruption::Refused(fault)));
        let object = bench.finish(&bench.operation(3, Verb::Update, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
    });
}

/// hashicorp/terraform-provider-google#10337.
#[test]
fn a_channel_waits_for_the_policy_that_uses_it() {
    run(async {
        let bench = bench();
        let (channel, policy) = channel_and_policy(&bench).await;
        let delete =
            |number: u64, made: &Made| bench.operation(number, Verb::Delete, &made.0, &made.0.spec, Some(&made.1));
        let refused = bench.provider.begin(&delete(3, &channel)).await;
        assert_eq!(channels(&bench.cloud.world()).len(), 1, "{refused:?}");
        bench.finish(&delete(4, &policy)).await;
        bench.finish(&delete(3, &channel)).await;
        let world = bench.cloud.world();
        assert!(policies(&world).is_empty() && channels(&world).is_empty());
    });
}

/// hashicorp/terraform-provider-google#10176: the answer does not say that a policy uses the check.
#[test]
fn an_uptime_check_waits_for_the_policy_that_uses_it() {
    run(async {
        let bench = bench();
        let check = make(&bench, 1, check(&bench)).await;
        let start = "metric.type=\"monitoring.googleapis.com/uptime_check/check_passed\" AND resource.type=\"uptime_url\" AND \
                     metric.labels.check_id=\"";
        let spec = json!({
            "project": bench.cloud.project(), "name": "uptime", "enabled": true, "channels": [], "tags": {},
            "condition": {
                "says": "No answer", "filter": [start, check.1.outputs["name"], "\""], "aligner": "ALIGN_NEXT_OLDER",
                "sum_by": null, "false_by": "resource.label.host", "above": 1.0, "period_seconds": 1200, "lasting_seconds": 300,
            },
        });
        let policy = bench.wanted("main/monitoring/alert-service-uptime", "gcp.alert-policy", &spec);
        let policy = make(&bench, 2, policy).await;
        let delete =
            |number: u64, made: &Made| bench.operation(number, Verb::Delete, &made.0, &made.0.spec, Some(&made.1));
        let mut waiting = bench.provider.begin(&delete(3, &check)).await;
        for _ in 0..3 {
            let Ok(Progress::Pending { handle, says, .. }) = &waiting else { panic!("{waiting:?}") };
            assert!(says.contains("an alert policy may still use it"), "{says}");
            waiting = bench.provider.advance(&delete(3, &check), handle).await;
        }
        // What stays is told with a way out, and may be tried again.
        let error = loop {
            match waiting {
                Ok(Progress::Pending { handle, .. }) => {
                    waiting = bench.provider.advance(&delete(3, &check), &handle).await;
                }
                Ok(other) => panic!("{other:?}"),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind, ErrorKind::Conflict);
        assert!(error.hint.as_ref().is_some_and(|hint| hint.contains("out of the conditions")), "{error:?}");
        assert_eq!(all(&bench.cloud.world(), CHECKS).len(), 1);
        bench.finish(&delete(4, &policy)).await;
        bench.finish(&delete(3, &check)).await;
        let world = bench.cloud.world();
        assert!(policies(&world).is_empty() && all(&world, CHECKS).is_empty());
    });
}

#[test]
fn another_host_replaces_an_uptime_check_once_its_policy_uses_the_new_one() {
    let cloud = Played::with(Options::zero_latency(), None);
    let process = cloud.process();
    let stack = Stack::new(&process, "staging", 0x1234_5678_9abc_4def_8000_0000_0000_0021);
    let of = |host: &str| -> Vec<Wanted> {
        let service = Some(ServiceAddress { host: host.to_owned(), port: 8443 });
        let monitored = Monitored { service, ..Monitored::default() };
        let part = ComponentSpec::Monitoring(Monitoring { budget: None, monitored, ..monitoring("USD") });
        let component = Component { name: "monitoring".parse().unwrap(), existing: None, part };
        let lowered = process.provider.lower(&component, &site(&cloud.cloud, "staging"));
        let mut wanted = lowered.unwrap_or_else(|problems| panic!("{problems}"));
        let ids: Vec<ResourceId> = wanted.iter().map(|one| one.id.clone()).collect();
        for one in &mut wanted {
            one.needs.retain(|need| ids.contains(&need.on));
        }
        wanted
    };
    let mut names = Vec::new();
    for host in ["text.example.com", "own.example.com"] {
        stack.reach(UP, &of(host));
        let world = cloud.cloud.world();
        let (checks, policies) = (all(&world, CHECKS), policies(&world));
        let ([check], [policy]) = (checks.as_slice(), policies.as_slice()) else { panic!("{checks:?} {policies:?}") };
        assert_eq!(check["monitoredResource"]["labels"]["host"], host);
        let name = check["name"].as_str().unwrap().rsplit('/').next().unwrap().to_owned();
        let filter = policy["conditions"][0]["conditionThreshold"]["filter"].as_str().unwrap();
        assert!(filter.contains(&name), "{filter}: {name}");
        names.push(name);
    }
    assert_ne!(names[0], names[1]);
    assert_eq!(cloud.cloud.take_violations(), Vec::<String>::new());
}

#[test]
fn a_changed_uptime_check_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        bench.cloud.faults().add(Rule::nth("monitoring", CREATE_UPTIME, 1, Disruption::LostReply));
        let (wanted, recorded) = make(&bench, 1, check(&bench)).await;
        let found = all(&bench.cloud.world(), CHECKS);
        let [check] = found.as_slice() else { panic!("{found:?}") };
        assert_eq!((&check["period"], &check["httpCheck"]["validateSsl"]), (&json!("60s"), &json!(false)));
        assert!(check["name"].as_str().unwrap().ends_with(recorded.outputs["name"].as_str().unwrap()));
        let key = format!("monitoring/{}", recorded.cloud_id);
        for (place, value) in [
            ("/httpCheck/path", json!("/other")),
            ("/httpCheck/acceptedResponseStatusCodes", json!([{ "statusValue": 500 }])),
            ("/httpCheck/authInfo", json!({ "username": "ada", "password": "******" })),
            ("/period", json!("900s")),
            ("/timeout", json!("1s")),
            ("/selectedRegions", json!(["USA"])),
            ("/contentMatchers", json!([{ "content": "ready", "matcher": "CONTAINS_STRING" }])),
            ("/disabled", json!(true)),
        ] {
            bench.cloud.world().change(&key, place, value);
        }
        let read = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap();
        let seen = match read {
            Observed::Present(seen) => seen,
            missing => panic!("{missing:?}"),
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let mut fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        fields.sort_unstable();
        assert_eq!(fields, ["enabled", "matchers", "period", "regions", "target", "timeout"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let object = bench.finish(&bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
        assert!(bench.cloud.world().get(&key).unwrap()["httpCheck"]["authInfo"].is_null());
        bench.finish(&bench.operation(3, Verb::Delete, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(all(&bench.cloud.world(), CHECKS).is_empty());
        assert_eq!(bench.cloud.take_violations(), Vec::<String>::new());
    });
}

#[test]
fn a_changed_dashboard_is_drift_and_is_put_right() {
    run(async {
        let bench = bench();
        let chart = |says: &str, filter: Value| {
            json!({
                "says": says, "filter": filter, "aligner": "ALIGN_MEAN", "sum_by": null, "above": 0.9, "period_seconds": 60,
            })
        };
        let charts =
            json!([chart("disk", json!(["metric.type=\"m", "\""])), chart("cpu", json!(["metric.type=\"c\""]))]);
        let spec = json!({
            "project": bench.cloud.project(), "name": "overview", "charts": charts, "tags": { "team": "text" },
        });
        let wanted = bench.wanted("main/monitoring/overview", "gcp.dashboard", &spec);
        bench.cloud.faults().add(Rule::nth("monitoring", CREATE_DASHBOARD, 1, Disruption::LostReply));
        let (wanted, recorded) = make(&bench, 1, wanted).await;
        assert_eq!(all(&bench.cloud.world(), "/dashboards/").len(), 1);
        let key = format!("monitoring/{}", recorded.cloud_id);
        let mut tiles = bench.cloud.world().get(&key).unwrap()["mosaicLayout"]["tiles"].clone();
        tiles[1]["widget"]["xyChart"]["thresholds"][0]["value"] = json!(0.5);
        bench.cloud.world().change(&key, "/mosaicLayout/tiles", tiles);
        bench.cloud.world().change(&key, "/labels/team", json!("others"));
        let Observed::Present(seen) = bench.provider.read(&wanted.kind, &recorded.cloud_id).await.unwrap() else {
            panic!("it is gone")
        };
        let changes = bench.provider.diff(&wanted, &recorded, &seen);
        let fields: Vec<&str> = changes.iter().map(|change| change.field.as_str()).collect();
        assert_eq!(fields, ["charts", "tags"]);
        assert!(changes.iter().all(|change| change.effect == Effect::InPlace), "{changes:?}");
        let object = bench.finish(&bench.operation(2, Verb::Update, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
        // Another layout in place of the charts.
        let mut body = bench.cloud.world().get(&key).cloned().unwrap();
        body.as_object_mut().unwrap().retain(|member, _| member != "mosaicLayout");
        body["gridLayout"] = json!({ "columns": "2" });
        bench.cloud.world().put(&key, body);
        let object = bench.finish(&bench.operation(3, Verb::Update, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(bench.provider.diff(&wanted, &recorded, &object).is_empty());
        bench.finish(&bench.operation(4, Verb::Delete, &wanted, &wanted.spec, Some(&recorded))).await;
        assert!(all(&bench.cloud.world(), "/dashboards/").is_empty());
    });
}
