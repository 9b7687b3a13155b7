//! Topics, alarms, dashboards, budgets, and what of an environment they are about.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_provider::component::{
    Budget, Component, ComponentSpec, ExternalSecret, ManagedPostgres, Monitored, Monitoring, ReceiverAddress,
};
use textnlp_provider::conformance::{TestBed, Violation, lowers_purely};
use textnlp_provider::{ErrorKind, Health, Outputs, Ownership, Problem, Provider, Recorded, Scope, Site, Verb, Wanted};
use textnlp_sim::aws::budgets::Budgets;
use textnlp_sim::aws::cloudwatch::CloudWatch;
use textnlp_sim::aws::sns::{Sns, confirm};
use textnlp_sim::{Disruption, Rule};

use crate::network::{finish, operation, seen, with};
use crate::{ACCOUNT, Bench, REGION, database, output, run, site, wanted};

const TOPIC: &str = "textnlp-staging-here-alarms";
const MAIL: &str = "oncall@example.com";

fn topic(subscriptions: &Value) -> Wanted {
    let arn = format!("arn:aws:sns:{REGION}:{ACCOUNT}:{TOPIC}");
    let tls = json!({
        "Sid": "OnlyTls", "Effect": "Deny", "Principal": "*", "Action": "sns:Publish", "Resource": arn,
        "Condition": { "Bool": { "aws:SecureTransport": "false" } },
    });
    let spec = json!({
        "name": TOPIC, "key": "alias/textnlp-staging-here-data", "subscriptions": subscriptions, "tags": {},
        "policy": { "Version": "2012-10-17", "Statement": [tls] },
    });
    wanted("here/monitoring/topic", "aws.topic", &spec)
}

fn mail(address: &str) -> Value {
    json!({ "protocol": "email", "endpoint": address })
}

pub(crate) fn alarm() -> Wanted {
    let metric = |name: &str| json!({ "namespace": "AWS/EKS", "name": name, "statistic": "Sum", "dimensions": { "ClusterName": "c" } });
    let spec = json!({
        "name": "textnlp-staging-here-cluster-errors", "description": "errors", "enabled": true,
        "metrics": { "errors": metric("apiserver_request_total_5XX"), "total": metric("apiserver_request_total") },
        "expression": "IF(total > 0, 100 * errors / total, 0)",
        "period_seconds": 60, "periods": 10, "datapoints": 10, "comparison": "GreaterThanThreshold", "threshold": 5,
        "missing": "notBreaching", "alarm_actions": [], "ok_actions": [], "tags": {},
    });
    wanted("here/monitoring/alarm-cluster-errors", "aws.alarm", &spec)
}

fn budget(topic: &str) -> Wanted {
    let notify = |about: &str, percent: u32| json!({ "about": about, "percent": percent, "topics": [topic] });
    let spec = json!({
        "name": "textnlp-staging-here-budget", "limit": 500, "unit": "USD",
        "filter": { "textnlp-environment": ["staging"] },
        "notifications": [notify("ACTUAL", 80), notify("FORECASTED", 100)], "tags": {},
    });
    wanted("here/monitoring/budget", "aws.budget", &spec)
}

fn changed(wanted: &Wanted, field: &str, value: Value) -> Wanted {
    Wanted { spec: with(wanted, field, value), ..wanted.clone() }
}

/// The names of the fields in which an object differs from what is wanted.
async fn drift(bench: &Bench, wanted: &Wanted, recorded: &Recorded) -> Vec<String> {
    let object = seen(bench, wanted, recorded).await;
    bench.provider.diff(wanted, recorded, &object).into_iter().map(|change| change.field).collect()
}

#[test]
fn a_topic_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = topic(&json!([mail(MAIL)]));
        let other = changed(&wanted, "subscriptions", json!([mail(MAIL), mail("second@example.com")]));
        let other = changed(&other, "key", json!("alias/other"));
        bench.bed().whole_life(&wanted, Some(&other.spec)).await
    });
    assert!(bench.simulator.world().state::<Sns>(&Bench::scope()).topics.is_empty());
}

#[test]
fn an_alarm_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = alarm();
        let other = changed(&changed(&wanted, "threshold", json!(7.5)), "missing", json!("breaching"));
        bench.bed().whole_life(&wanted, Some(&other.spec)).await
    });
}

#[test]
fn a_dashboard_lives() {
    let bench = Bench::new();
    run(async {
        let widget = |title: &str| json!({ "type": "text", "x": 0, "y": 0, "width": 6, "height": 3, "properties": { "markdown": title } });
        let spec = json!({ "name": "textnlp-staging-here-overview", "body": { "widgets": [widget("a")] }, "tags": {} });
        let wanted = wanted("here/monitoring/dashboard", "aws.dashboard", &spec);
        let other = changed(&wanted, "body", json!({ "widgets": [widget("b"), widget("c")] }));
        bench.bed().whole_life(&wanted, Some(&other.spec)).await
    });
}

#[test]
fn a_budget_lives() {
    let bench = Bench::new();
    run(async {
        let wanted = budget(&format!("arn:aws:sns:{REGION}:{ACCOUNT}:{TOPIC}"));
        let other = changed(&changed(&wanted, "limit", json!(750.5)), "notifications", json!([]));
        bench.bed().whole_life(&wanted, Some(&other.spec)).await
    });
}

#[test]
fn an_unconfirmed_subscription_is_shown_and_is_no_drift() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), topic(&json!([mail(MAIL)])));
        let made = bed.make(&wanted).await?;
        let object = seen(&bench, &wanted, &made).await;
        assert_eq!((object.health, object.outputs["unconfirmed"].as_str()), (Health::Ready, Some(MAIL)));
        assert!(drift(&bench, &wanted, &made).await.is_empty());

        confirm(&mut bench.simulator.world(), &Bench::scope(), MAIL);
        assert!(!seen(&bench, &wanted, &made).await.outputs.contains_key("unconfirmed"));
        assert!(drift(&bench, &wanted, &made).await.is_empty());
        Ok(())
    });
}

#[test]
fn a_subscription_that_nobody_confirmed_is_made_again() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), topic(&json!([mail(MAIL)])));
        let made = bed.make(&wanted).await?;
        bench.simulator.advance(Duration::from_secs(49 * 3600));
        assert_eq!(drift(&bench, &wanted, &made).await, ["subscriptions"]);
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert!(drift(&bench, &wanted, &made).await.is_empty());
        assert_eq!(bench.calls("Subscribe"), 2);
        Ok(())
    });
}

#[test]
fn only_confirmed_subscriptions_are_removed() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) =
            (bench.bed(), topic(&json!([mail(MAIL), mail("gone@example.com"), mail("late@example.com")])));
        let made = bed.make(&wanted).await?;
        confirm(&mut bench.simulator.world(), &Bench::scope(), "gone@example.com");
        let fewer = changed(&wanted, "subscriptions", json!([mail(MAIL)]));
        finish(&bench, &operation(Verb::Update, &fewer, Some(&made), 100)).await.unwrap();
        assert_eq!(bench.calls("Unsubscribe"), 1);
        assert!(drift(&bench, &fewer, &made).await.is_empty(), "nobody can remove the other one");
        let object = seen(&bench, &fewer, &made).await;
        assert_eq!(object.outputs["unconfirmed"].as_str(), Some(format!("{MAIL}, late@example.com").as_str()));
        Ok(())
    });
}

#[test]
fn a_topic_policy_that_sns_does_not_take_is_refused() {
    let bench = Bench::new();
    run(async {
        let all = json!({ "Effect": "Deny", "Principal": "*", "Action": "sns:*", "Resource": "*" });
        let wanted = changed(&topic(&json!([])), "policy", json!({ "Version": "2012-10-17", "Statement": [all] }));
        let error = finish(&bench, &operation(Verb::Create, &wanted, None, 100)).await.unwrap_err();
        assert_eq!((error.kind, error.code.as_deref()), (ErrorKind::Invalid, Some("InvalidParameter")));
        Ok(())
    });
}

#[test]
fn an_alarm_that_was_silenced_by_hand_is_found_and_enabled() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), alarm());
        let made = bed.make(&wanted).await?;
        {
            let mut world = bench.simulator.world();
            let alarm = world.state::<CloudWatch>(&Bench::scope()).alarms.get_mut(made.cloud_id.as_str()).unwrap();
            (alarm["ActionsEnabled"], alarm["Threshold"]) = (json!(false), json!(50.0));
        }
        assert_eq!(drift(&bench, &wanted, &made).await, ["enabled", "threshold"]);
        let before = bench.calls("PutMetricAlarm");
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert!(drift(&bench, &wanted, &made).await.is_empty());
        assert_eq!(bench.calls("PutMetricAlarm"), before + 1, "one call changes all of an alarm");
        Ok(())
    });
}

/// What another program put for one metric is read, too.
#[test]
fn an_alarm_of_a_single_metric_is_imported() {
    let bench = Bench::new();
    run(async {
        let (bed, wanted) = (bench.bed(), alarm());
        let made = bed.make(&wanted).await?;
        let name = made.cloud_id.as_str();
        {
            let mut world = bench.simulator.world();
            let alarm = world.state::<CloudWatch>(&Bench::scope()).alarms.get_mut(name).unwrap();
            alarm
                .as_object_mut()
                .unwrap()
                .retain(|member, _| !["Metrics", "DatapointsToAlarm"].contains(&member.as_str()));
            (alarm["MetricName"], alarm["Namespace"]) = (json!("CPUUtilization"), json!("AWS/RDS"));
            (alarm["Statistic"], alarm["Period"]) = (json!("Average"), json!(300));
            alarm["Dimensions"] = json!([{ "Name": "DBInstanceIdentifier", "Value": "d" }]);
        }
        let spec = seen(&bench, &wanted, &made).await.spec;
        let metric = json!({ "namespace": "AWS/RDS", "name": "CPUUtilization", "statistic": "Average", "dimensions": { "DBInstanceIdentifier": "d" } });
        assert_eq!(spec.get("metrics"), Some(&json!({ "result": metric })));
        assert_eq!((spec.get("period_seconds"), spec.get("datapoints")), (Some(&json!(300)), Some(&json!(10))));
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert!(drift(&bench, &wanted, &made).await.is_empty());
        Ok(())
    });
}

#[test]
fn a_lost_reply_leaves_one_topic_alarm_and_budget() {
    let bench = Bench::new();
    for (service, operation) in [("sns", "CreateTopic"), ("monitoring", "PutMetricAlarm"), ("budgets", "CreateBudget")]
    {
        bench.simulator.faults().add(Rule::nth(service, operation, 1, Disruption::LostReply));
    }
    run(async {
        let bed = bench.bed();
        let made = bed.make(&topic(&json!([]))).await?;
        bed.make(&alarm()).await?;
        bed.make(&budget(&output(&made, "arn"))).await?;
        for operation in ["CreateTopic", "PutMetricAlarm", "CreateBudget"] {
            assert_eq!(bench.calls(operation), 1, "{operation}");
        }
        Ok(())
    });
}

#[test]
fn a_notification_of_a_budget_that_goes_elsewhere_is_put_back() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let topic = bed.make(&topic(&json!([]))).await?;
        let wanted = budget(&output(&topic, "arn"));
        let made = bed.make(&wanted).await?;
        {
            let mut world = bench.simulator.world();
            let budgets = &mut world.state::<Budgets>(&textnlp_sim::Scope::global(ACCOUNT)).budgets;
            let one = budgets.get_mut(made.cloud_id.as_str()).unwrap();
            one.notifications[0].1[0]["Address"] = json!("arn:aws:sns:eu-west-1:210987654321:theirs");
            one.value["BudgetLimit"]["Amount"] = json!("9000.0");
        }
        assert_eq!(drift(&bench, &wanted, &made).await, ["limit", "notifications"]);
        finish(&bench, &operation(Verb::Update, &wanted, Some(&made), 100)).await.unwrap();
        assert!(drift(&bench, &wanted, &made).await.is_empty());
        assert_eq!((bench.calls("DeleteNotification"), bench.calls("CreateNotification")), (1, 1));
        Ok(())
    });
}

fn monitored(replicas: u32) -> Monitored {
    let managed = ManagedPostgres { disk_bytes: 100 << 30, backup_seconds: 0, replica_region: None };
    let cache = crate::elasticache::redis(1_000_000_000, 1).managed;
    let database = Some(database(managed, replicas, 100));
    Monitored { network: true, cluster: true, gpu: true, database, cache, service: None }
}

fn monitoring() -> Monitoring {
    let to = "smtps://mail.example.com?from=alerts@example.com&to=oncall@example.com";
    Monitoring {
        stack: true,
        receivers: BTreeMap::from([("oncall".to_owned(), ReceiverAddress::Plain(to.to_owned()))]),
        monitored: monitored(2),
        budget: Some(Budget { monthly: 900.0, currency: "USD".to_owned(), warn_at: 0.8 }),
        ..Monitoring::default()
    }
}

fn component(monitoring: Monitoring) -> Component {
    let part = ComponentSpec::Monitoring(monitoring);
    Component { name: "monitoring".parse().unwrap(), existing: None, part }
}

fn ids(all: &[Wanted]) -> Vec<&str> {
    all.iter().map(|one| one.id.as_str().trim_start_matches("here/monitoring/")).collect()
}

/// Creates everything; what other components create is named after its id.
async fn up(bed: &TestBed<'_>, all: &[Wanted]) -> Result<Vec<(Wanted, Recorded)>, Violation> {
    let mut made: Vec<(Wanted, Recorded)> = Vec::new();
    for one in all {
        let fields = ["arn", "autoscaling_group", "id", "name", "node_1", "node_2"];
        let other = |id: &str| -> Outputs {
            let id = id.replace('/', "-");
            let value = |field: &str| field.strip_prefix("node_").map_or(id.clone(), |node| format!("{id}-00{node}"));
            fields.iter().map(|field| ((*field).to_owned(), json!(value(field)))).collect()
        };
        let outputs: BTreeMap<_, Outputs> = one
            .spec
            .outputs_needed()
            .iter()
            .map(|needed| {
                let own = made.iter().find(|(wanted, _)| wanted.id == needed.resource);
                let outputs = own.map_or_else(|| other(needed.resource.as_str()), |(_, own)| own.outputs.clone());
                (needed.resource.clone(), outputs)
            })
            .collect();
        let spec = one.spec.resolve(|id| outputs.get(id)).unwrap();
        let one = Wanted { spec, ..one.clone() };
        let recorded = bed.make(&one).await?;
        made.push((one, recorded));
    }
    Ok(made)
}

#[test]
fn a_site_is_watched_from_its_network_to_its_database() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let all = lowers_purely(&bench.provider, &component(monitoring()), &site())?;
        let made = up(&bed, &all).await?;
        let alarms = bench.simulator.world().state::<CloudWatch>(&Bench::scope()).alarms.clone();
        let of = |part: &str| alarms[&format!("textnlp-staging-here-{part}")].clone();
        let topic = json!([format!("arn:aws:sns:{REGION}:{ACCOUNT}:{TOPIC}")]);
        assert!(alarms.values().all(|alarm| alarm["AlarmActions"] == topic && alarm["OKActions"] == topic));
        // 90 % of 100 GiB, 80 % of 4 GiB, 90 % of 400 connections.
        assert_eq!(of("database-disk")["Threshold"], json!(10.0 * f64::from(1 << 30)));
        assert_eq!(of("database-memory")["Threshold"], json!((0.2 * 4.0 * f64::from(1 << 30)).round()));
        assert_eq!(of("database-memory")["EvaluationPeriods"], 15);
        assert_eq!(of("database-connections")["Threshold"], json!(360.0));
        let errors = of("cluster-errors");
        assert_eq!((&errors["Threshold"], &errors["EvaluationPeriods"]), (&json!(5.0), &json!(10)));
        let dimension = &of("database-lag-1")["Metrics"][0]["MetricStat"]["Metric"]["Dimensions"][0];
        assert_eq!(*dimension, json!({ "Name": "DBInstanceIdentifier", "Value": "here-database-replica-1" }));

        // One for each node.
        for (node, id) in [("1", "here-cache-group-001"), ("2", "here-cache-group-002")] {
            let metric = |part: &str| of(&format!("{part}-{node}"))["Metrics"][0]["MetricStat"]["Metric"].clone();
            let dimension = json!([{ "Name": "CacheClusterId", "Value": id }]);
            assert_eq!(metric("cache-cpu")["MetricName"], "EngineCPUUtilization");
            assert_eq!(metric("cache-cpu")["Dimensions"], dimension);
        }
        assert_eq!(of("cache-cpu-1")["Threshold"], 90.0);

        let (wanted, recorded): (Vec<_>, Vec<_>) = made.iter().cloned().unzip();
        let scope = Scope {
            lineage: bed.lineage,
            environment: &bed.environment,
            site: &bed.site,
            wanted: &wanted,
            recorded: &recorded,
        };
        let before = bench.simulator.requests().len();
        let observed = bench.provider.observe(&scope).await.unwrap();
        let calls = bench.simulator.requests().len() - before;
        assert!(observed.len() == 20 && calls <= 100, "{calls} calls for {} objects", observed.len());
        for (one, recorded) in &made {
            assert!(drift(&bench, one, recorded).await.is_empty(), "{}", one.id);
        }
        for (one, recorded) in made.into_iter().rev() {
            bed.unmake(&one, &recorded).await?;
        }
        Ok(())
    });
}

#[test]
fn alarms_are_about_what_the_environment_creates() {
    let bench = Bench::new();
    let lowered =
        |monitoring: Monitoring, site: &Site| lowers_purely(&bench.provider, &component(monitoring), site).unwrap();
    let disposable = Site { protect_data: false, ..site() };
    let without = |monitored: Monitored| Monitoring { monitored, budget: None, ..monitoring() };
    assert_eq!(ids(&lowered(without(Monitored::default()), &site())), ["topic"]);
    let network = Monitored { network: true, ..Monitored::default() };
    assert_eq!(ids(&lowered(without(network), &disposable)), ["topic", "alarm-nat-ports-a", "overview"]);
    let cluster = Monitored { cluster: true, ..Monitored::default() };
    let cache = Monitored { cache: monitored(1).cache, ..Monitored::default() };
    let nodes = ["alarm-cache-cpu-1", "alarm-cache-cpu-2"];
    let all = lowered(without(cache), &disposable);
    assert_eq!(ids(&all), [&["topic"][..], &nodes[..], &["overview"][..]].concat());
    let quiet = Monitoring { receivers: BTreeMap::new(), ..without(cluster) };
    let all = lowered(quiet, &site());
    assert_eq!(ids(&all), ["alarm-cluster-errors", "alarm-machine-status-system", "overview"]);
    assert_eq!(all[0].spec.get("alarm_actions"), Some(&json!([])));
    let nothing = Monitoring { stack: false, receivers: BTreeMap::new(), budget: None, ..monitoring() };
    assert!(lowered(nothing, &site()).is_empty());
}

#[test]
fn a_budget_counts_the_environment_in_dollars() {
    let bench = Bench::new();
    let of = |budget: Budget, receivers: bool| {
        let receivers = if receivers { monitoring().receivers } else { BTreeMap::new() };
        let monitoring = Monitoring {
            stack: false,
            receivers,
            monitored: Monitored::default(),
            budget: Some(budget),
            ..Monitoring::default()
        };
        bench.provider.lower(&component(monitoring), &site())
    };
    let budget = Budget { monthly: 900.0, currency: "USD".to_owned(), warn_at: 0.75 };
    let alone = of(budget.clone(), false).unwrap();
    assert_eq!(ids(&alone), ["budget"]);
    assert_eq!(alone[0].spec.get("notifications"), Some(&json!([])));
    assert_eq!(alone[0].spec.get("filter"), Some(&json!({ "textnlp-environment": ["staging"] })));
    let told = of(budget.clone(), true).unwrap();
    let spec = told.iter().find(|one| one.id.as_str() == "here/monitoring/budget").unwrap().spec.as_value().clone();
    let percents: Vec<_> =
        spec["notifications"].as_array().unwrap().iter().map(|one| one["percent"].as_f64()).collect();
    assert_eq!(percents, [Some(75.0), Some(100.0), Some(100.0)]);
    let error = of(Budget { currency: "EUR".to_owned(), ..budget }, false).unwrap_err();
    assert!(error.to_string().contains("EUR"), "{error}");
}

#[test]
fn a_secret_receiver_is_refused() {
    let bench = Bench::new();
    let secret = ExternalSecret { source: "secret:env:ONCALL".to_owned(), version: String::new() };
    let receivers = BTreeMap::from([("oncall".to_owned(), ReceiverAddress::Secret(secret))]);
    let error = bench.provider.lower(&component(Monitoring { receivers, ..monitoring() }), &site()).unwrap_err();
    assert!(error.to_string().contains("receivers.oncall"), "{error}");
}

#[test]
fn preflight_tells_what_keeps_alarms_from_being_noticed() {
    let bench = Bench::new();
    run(async {
        let bed = bench.bed();
        let key = crate::kms::key();
        let made_key = bed.make(&key).await?;
        let all = lowers_purely(&bench.provider, &component(monitoring()), &site())?;
        let topic = all.iter().find(|one| one.kind.as_str() == "aws.topic").unwrap();
        let theirs = Wanted { ownership: Ownership::External(made_key.cloud_id.clone()), ..key };
        let budget = all.iter().find(|one| one.kind.as_str() == "aws.budget").unwrap();
        let wanted = [theirs, topic.clone(), budget.clone()];
        let told = |problems: Vec<Problem>| -> Vec<(String, String)> {
            let ours = problems.into_iter().filter(|one| one.place.contains("monitoring"));
            ours.map(|one| (one.word().to_owned(), one.to_string())).collect()
        };
        let before = told(bench.provider.preflight(&wanted).await.unwrap());
        let [(warning, key), (note, tag)] = before.as_slice() else { panic!("{before:?}") };
        assert!(warning == "warning" && key.contains("cloudwatch.amazonaws.com and budgets.amazonaws.com"), "{key}");
        assert!(note == "note" && tag.contains("textnlp-environment"), "{tag}");

        bed.make(&crate::monitoring::topic(&json!([mail(MAIL)]))).await?;
        let after = told(bench.provider.preflight(&wanted).await.unwrap());
        assert!(
            after.len() == 3 && after.iter().any(|(word, text)| word == "warning" && text.contains(MAIL)),
            "{after:?}"
        );
        confirm(&mut bench.simulator.world(), &Bench::scope(), MAIL);
        assert_eq!(told(bench.provider.preflight(&wanted).await.unwrap()), before);
        Ok(())
    });
}

#[test]
fn receivers_become_subscriptions() {
    let bench = Bench::new();
    let of = |text: &str| {
        let receivers = BTreeMap::from([("oncall".to_owned(), ReceiverAddress::Plain(text.to_owned()))]);
        let monitoring = Monitoring { receivers, ..Monitoring::default() };
        let all = bench.provider.lower(&component(monitoring), &site()).ok()?;
        all[0].spec.get("subscriptions").cloned()
    };
    let two = "smtps://mail.example.com?from=a@example.com&to=b@example.com,c@example.com";
    assert_eq!(of(two), Some(json!([mail("b@example.com"), mail("c@example.com")])));
    assert_eq!(of("smtp://m?to=b%40example.com&from=a@b"), Some(json!([mail("b@example.com")])));
    let hook = json!({ "protocol": "https", "endpoint": "https://hooks.example.com/" });
    assert_eq!(of("https://hooks.example.com/"), Some(json!([hook])));
    for bad in ["http://localhost/", "smtps://mail.example.com", "", "smtps://m?to=nobody", "smtps://m?to=a@b,nobody"] {
        assert_eq!(of(bad), None, "{bad}");
    }
}
