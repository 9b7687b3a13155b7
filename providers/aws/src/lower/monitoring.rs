//! What AWS itself watches: a topic for the receivers, alarms about what the environment creates, a dashboard of the same metrics, and
//! a budget.
//!
//! AWS publishes no metrics of the service's requests (latency, errors) and of its pods (memory, restarts): the rules of the cluster are
//! about these.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use textnlp_cloud::alerts::{mailboxes, managed_postgres};
use textnlp_cloud::budget::{Warning, warnings};
use textnlp_provider::component::{Budget, CACHE_PART, Monitoring, Postgres, ReceiverAddress};
use textnlp_provider::{ComponentName, ResourceId};
use textnlp_token::partition;

use super::database::{Server, server};
use super::{Lowering, SYSTEM, output};
use crate::names;
use crate::tables::machines::NODES;

/// The longest name of a budget; those of topics, alarms and dashboards may be longer.
const MOST_OF_NAME: usize = 100;
/// The most addresses of receivers: a notification is sent to each.
const MOST_ADDRESSES: usize = 50;
/// The seconds of most values of AWS's metrics.
const MINUTE: i32 = 60;
/// The longest time that an alarm evaluates.
const DAY_SECONDS: u64 = 86_400;
/// The columns of a dashboard, and the widgets in a row.
const COLUMNS: usize = 24;
const IN_A_ROW: usize = 3;
const HEIGHT: usize = 6;

/// What an alarm is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    NatGateway,
    ControlPlane,
    Machines,
    DatabaseServer,
    DatabaseReplica,
    CacheNode,
}

/// The threshold of an alarm.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Fixed(f64),
    /// The largest share of errors, in percent.
    ErrorRate,
    /// What is left of the memory at the limit of its use, in bytes.
    FreeMemory,
    /// The same of the disk.
    FreeDisk,
    /// This percentage of the connections that the server accepts.
    Connections(f64),
}

/// How long a threshold has to be exceeded.
#[derive(Debug, Clone, Copy)]
enum Lasting {
    Minutes(i32),
    /// As long as the errors of the service.
    ErrorRate,
}

/// One alarm about each object of a sort.
struct Rule {
    part: &'static str,
    /// What its message says.
    says: &'static str,
    /// The title of its chart.
    shows: &'static str,
    watched: Watched,
    namespace: &'static str,
    dimension: &'static str,
    /// By their ids in the expression.
    metrics: &'static [(&'static str, &'static str)],
    statistic: &'static str,
    expression: Option<&'static str>,
    comparison: &'static str,
    limit: Limit,
    lasting: Lasting,
    /// The seconds of a value.
    period: i32,
    missing: &'static str,
    /// Where AWS documents the metric.
    #[cfg_attr(not(test), expect(dead_code, reason = "provenance"))]
    source: &'static str,
}

const ABOVE: &str = "GreaterThanThreshold";
const BELOW: &str = "LessThanThreshold";
/// Metrics of a cache are of its nodes (widdix/aws-cf-templates#571).
const ELASTICACHE: &str = "https://docs.aws.amazon.com/AmazonElastiCache/latest/dg/CacheMetrics.Redis.html";
const RDS: &str = "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/rds-metrics.html";

/// Periods and thresholds without a setting are those that AWS recommends
/// (<https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/Best_Practice_Recommended_Alarms_AWS_Services.html>).
const RULES: &[Rule] = &[
    Rule {
        part: "nat-ports",
        says: "A NAT gateway has no free ports: connections to the internet fail",
        shows: "Ports that the NAT gateways could not allocate",
        watched: Watched::NatGateway,
        namespace: "AWS/NATGateway",
        dimension: "NatGatewayId",
        metrics: &[("m", "ErrorPortAllocation")],
        statistic: "Sum",
        expression: None,
        comparison: ABOVE,
        limit: Limit::Fixed(0.0),
        lasting: Lasting::Minutes(15),
        period: MINUTE,
        // The metric has no values while there are no errors and no connections.
        missing: "notBreaching",
        source: "https://docs.aws.amazon.com/vpc/latest/userguide/metrics-dimensions-nat-gateway.html",
    },
    Rule {
        part: "cluster-errors",
        says: "The API server of the cluster answers with errors",
        shows: "Errors of the API server of the cluster",
        watched: Watched::ControlPlane,
        namespace: "AWS/EKS",
        dimension: "ClusterName",
        metrics: &[("errors", "apiserver_request_total_5XX"), ("total", "apiserver_request_total")],
        statistic: "Sum",
        expression: Some("IF(total > 0, 100 * errors / total, 0)"),
        comparison: ABOVE,
        limit: Limit::ErrorRate,
        lasting: Lasting::ErrorRate,
        period: MINUTE,
        missing: "notBreaching",
        source: "https://docs.aws.amazon.com/eks/latest/userguide/cloudwatch.html",
    },
    Rule {
        part: "machine-status",
        says: "A machine of the cluster fails AWS's status checks",
        shows: "Failed status checks of the machines of the cluster",
        watched: Watched::Machines,
        namespace: "AWS/EC2",
        dimension: "AutoScalingGroupName",
        metrics: &[("m", "StatusCheckFailed")],
        statistic: "Maximum",
        expression: None,
        comparison: ABOVE,
        limit: Limit::Fixed(0.0),
        lasting: Lasting::Minutes(10),
        period: 5 * MINUTE,
        // A group without machines.
        missing: "notBreaching",
        source: "https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/viewing_metrics_with_cloudwatch.html",
    },
    Rule {
        part: "database-cpu",
        says: "The database has no CPU left",
        shows: "CPU of the database",
        watched: Watched::DatabaseServer,
        namespace: "AWS/RDS",
        dimension: "DBInstanceIdentifier",
        metrics: &[("m", "CPUUtilization")],
        statistic: "Average",
        expression: None,
        comparison: ABOVE,
        limit: Limit::Fixed(90.0),
        lasting: Lasting::Minutes(5),
        period: MINUTE,
        missing: "missing",
        source: RDS,
    },
    Rule {
        part: "database-memory",
        says: "The database has little memory left",
        shows: "Free memory of the database",
        watched: Watched::DatabaseServer,
        namespace: "AWS/RDS",
        dimension: "DBInstanceIdentifier",
        metrics: &[("m", "FreeableMemory")],
        statistic: "Average",
        expression: None,
        comparison: BELOW,
        limit: Limit::FreeMemory,
        lasting: Lasting::Minutes(15),
        period: MINUTE,
        missing: "missing",
        source: RDS,
    },
    Rule {
        part: "database-disk",
        says: "The disk of the database is nearly full",
        shows: "Free disk of the database",
        watched: Watched::DatabaseServer,
        namespace: "AWS/RDS",
        dimension: "DBInstanceIdentifier",
        metrics: &[("m", "FreeStorageSpace")],
        statistic: "Minimum",
        expression: None,
        comparison: BELOW,
        limit: Limit::FreeDisk,
        lasting: Lasting::Minutes(5),
        period: MINUTE,
        missing: "missing",
        source: RDS,
    },
    Rule {
        part: "database-connections",
        says: "The database accepts few more connections",
        shows: "Connections of the database",
        watched: Watched::DatabaseServer,
        namespace: "AWS/RDS",
        dimension: "DBInstanceIdentifier",
        metrics: &[("m", "DatabaseConnections")],
        statistic: "Average",
        expression: None,
        comparison: ABOVE,
        limit: Limit::Connections(90.0),
        lasting: Lasting::Minutes(5),
        period: MINUTE,
        missing: "missing",
        source: RDS,
    },
    Rule {
        part: "database-lag",
        says: "A replica of the database lags behind",
        shows: "Lag of the replicas of the database, in seconds",
        watched: Watched::DatabaseReplica,
        namespace: "AWS/RDS",
        dimension: "DBInstanceIdentifier",
        metrics: &[("m", "ReplicaLag")],
        statistic: "Maximum",
        expression: None,
        comparison: ABOVE,
        // Without transactions a replica shows a lag of up to five minutes.
        limit: Limit::Fixed(600.0),
        lasting: Lasting::Minutes(10),
        period: MINUTE,
        missing: "missing",
        source: "https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/USER_PostgreSQL.Replication.ReadReplicas.html",
    },
    // Of the one thread that answers: the CPU of a node has other cores too. For nodes with two of them, AWS advises the CPU of
    // the node, which includes its other work.
    Rule {
        part: "cache-cpu",
        says: "A node of the cache has no CPU left",
        shows: "CPU of the engine of the cache",
        watched: Watched::CacheNode,
        namespace: "AWS/ElastiCache",
        dimension: "CacheClusterId",
        metrics: &[("m", "EngineCPUUtilization")],
        statistic: "Average",
        expression: None,
        comparison: ABOVE,
        limit: Limit::Fixed(90.0),
        lasting: Lasting::Minutes(5),
        period: MINUTE,
        missing: "missing",
        source: ELASTICACHE,
    },
];

impl Lowering<'_> {
    pub(super) fn monitoring(&mut self, monitoring: &Monitoring) {
        let budget = monitoring.budget.as_ref().filter(|_| self.partition() == "aws");
        if self.site.account.is_empty() && (!monitoring.receivers.is_empty() || budget.is_some()) {
            let cause = "the policy of the topic names the account, which is not known";
            return self.problem("account", cause, "set `sites[].account` to its twelve digits");
        }
        let topic = self.topic(monitoring);
        if monitoring.stack || topic.is_some() {
            self.alarms(monitoring, topic.as_ref());
        }
        if let Some(budget) = budget {
            self.budget(budget, topic.as_ref());
        }
    }

    fn partition(&self) -> &'static str {
        partition(&self.site.region).name
    }

    /// The topic that alarms and the budget are sent to, if there are receivers.
    fn topic(&mut self, monitoring: &Monitoring) -> Option<ResourceId> {
        if monitoring.receivers.is_empty() {
            return None;
        }
        let mut subscriptions = Vec::new();
        for (name, address) in &monitoring.receivers {
            match subscriptions_of(address) {
                Ok(found) => subscriptions.extend(found),
                Err((cause, fix)) => self.problem(&format!("receivers.{name}"), cause, fix),
            }
        }
        subscriptions.sort();
        subscriptions.dedup();
        if subscriptions.len() > MOST_ADDRESSES {
            let cause = format!("they have {} addresses, and {MOST_ADDRESSES} are the most", subscriptions.len());
            self.problem("receivers", cause, "use a mailing list");
        }
        let name = names::of(self.site, "alarms", MOST_OF_NAME);
        let (partition, region, account) = (self.partition(), &self.site.region, &self.site.account);
        let arn = format!("arn:{partition}:sns:{region}:{account}:{name}");
        let publish = |sid: &str, service: &str, from: String| {
            json!({
                "Sid": sid,
                "Effect": "Allow",
                "Principal": { "Service": service },
                "Action": "sns:Publish",
                "Resource": arn,
                "Condition": {
                    "StringEquals": { "aws:SourceAccount": account },
                    "ArnLike": { "aws:SourceArn": from },
                },
            })
        };
        let subscriptions: Vec<Value> = subscriptions
            .into_iter()
            .map(|(protocol, endpoint)| json!({ "protocol": protocol, "endpoint": endpoint }))
            .collect();
        let topic = json!({
            "name": name,
            "key": self.data_key(),
            "policy": {
                "Version": "2012-10-17",
                "Statement": [
                    {
                        "Sid": "OnlyTls",
                        "Effect": "Deny",
                        "Principal": "*",
                        "Action": "sns:Publish",
                        "Resource": arn,
                        "Condition": { "Bool": { "aws:SecureTransport": "false" } },
                    },
                    publish(
                        "Alarms",
                        "cloudwatch.amazonaws.com",
                        format!("arn:{partition}:cloudwatch:{region}:{account}:alarm:*"),
                    ),
                    publish("Budgets", "budgets.amazonaws.com", format!("arn:{partition}:budgets::{account}:*")),
                ],
            },
            "subscriptions": subscriptions,
        });
        self.part("topic", "aws.topic", &topic)
    }

    /// The alarms, and the dashboard of their metrics where dashboards are installed.
    fn alarms(&mut self, monitoring: &Monitoring, topic: Option<&ResourceId>) {
        let actions: Vec<Value> = topic.map(|topic| output(topic, "arn")).into_iter().collect();
        let place = format!("{} at {}", self.site.environment, self.site.name);
        let servers = servers(monitoring);
        let mut widgets = Vec::new();
        for rule in RULES {
            let objects = self.objects(rule.watched, monitoring);
            let Some(first) = objects.first() else { continue };
            let Some(threshold) = rule.threshold(monitoring, servers.as_ref().map(|(_, server)| server)) else {
                continue;
            };
            let periods = rule.periods(monitoring);
            for object in &objects {
                let part = format!("{}{}", rule.part, object.suffix);
                let metrics: BTreeMap<&str, Value> = rule.metrics.iter().map(|(id, name)| {
                    let dimensions = json!({ (rule.dimension): object.value });
                    (*id, json!({ "namespace": rule.namespace, "name": name, "statistic": rule.statistic, "dimensions": dimensions }))
                }).collect();
                let alarm = json!({
                    "name": names::of(self.site, &part, MOST_OF_NAME),
                    "description": format!("{}: {place}", rule.says),
                    "enabled": true,
                    "metrics": metrics,
                    "expression": rule.expression,
                    "period_seconds": rule.period,
                    "periods": periods,
                    "datapoints": periods,
                    "comparison": rule.comparison,
                    "threshold": threshold,
                    "missing": rule.missing,
                    "alarm_actions": actions,
                    "ok_actions": actions,
                });
                self.part(&format!("alarm-{part}"), "aws.alarm", &alarm);
            }
            widgets.push(rule.widget(&self.site.region, &objects, first, threshold, widgets.len()));
        }
        if monitoring.stack && !widgets.is_empty() {
            let name = names::of(self.site, "overview", MOST_OF_NAME);
            let body = json!({ "widgets": widgets });
            // The dashboard of the stack in the cluster is `dashboard`.
            self.part("overview", "aws.dashboard", &json!({ "name": name, "body": body }));
        }
    }

    /// The objects of a sort that this environment creates.
    fn objects(&self, watched: Watched, monitoring: &Monitoring) -> Vec<Object> {
        let monitored = &monitoring.monitored;
        let named = |component: &str, part: &str| {
            let component = ComponentName::new(component).ok()?;
            ResourceId::part(&self.site.name, &component, part).ok()
        };
        let of = |suffix: String, id: Option<ResourceId>, field: &str| {
            id.map(|id| Object { suffix, value: output(&id, field) })
        };
        let replicas = servers(monitoring).map_or(0, |(postgres, _)| postgres.replicas);
        let replica = |n: u32| of(format!("-{n}"), named("database", &format!("replica-{n}")), "name");
        let found: Vec<Option<Object>> = match watched {
            Watched::NatGateway if monitored.network => {
                let gateways = self.nat_gateways().into_iter();
                gateways
                    .map(|letter| of(format!("-{letter}"), named("network", &format!("nat-{letter}")), "id"))
                    .collect()
            }
            Watched::ControlPlane if monitored.cluster => {
                let cluster = ComponentName::new("cluster").ok().map(|name| ResourceId::of(&self.site.name, &name));
                vec![of(String::new(), cluster, "name")]
            }
            Watched::Machines if monitored.cluster => {
                let general = NODES.of_any_site(self.site).named(SYSTEM);
                let pools = [(SYSTEM, general.as_str()), ("gpu", "gpu")].into_iter();
                let pools = pools.filter(|(pool, _)| *pool != "gpu" || monitored.gpu);
                let group = |pool: &str| named("cluster", &format!("{pool}-nodes"));
                pools.map(|(part, pool)| of(format!("-{part}"), group(pool), "autoscaling_group")).collect()
            }
            Watched::DatabaseServer if servers(monitoring).is_some() => {
                let first = of(String::new(), named("database", "instance"), "name");
                std::iter::once(first).chain((1..replicas).map(replica)).collect()
            }
            Watched::DatabaseReplica => (1..replicas).map(replica).collect(),
            Watched::CacheNode => {
                let nodes = monitored.cache.as_ref().map_or(0, |cache| cache.replicas.saturating_add(1));
                let node = |n: u32| of(format!("-{n}"), named("cache", CACHE_PART), &format!("node_{n}"));
                (1..=nodes).map(node).collect()
            }
            _ => Vec::new(),
        };
        found.into_iter().flatten().collect()
    }

    fn budget(&mut self, budget: &Budget, topic: Option<&ResourceId>) {
        if budget.currency != "USD" {
            let cause = format!("AWS counts in USD, and the budget is in {}", budget.currency);
            return self.problem("budget.currency", cause, "write the budget in USD");
        }
        // A budget of nothing is never kept.
        if budget.monthly <= 0.0 {
            return;
        }
        let notify = |topic: &ResourceId| -> Vec<Value> {
            let one = |warning: Warning| {
                let about = if warning.is_forecast { "FORECASTED" } else { "ACTUAL" };
                json!({ "about": about, "percent": warning.percent, "topics": [output(topic, "arn")] })
            };
            warnings(budget).into_iter().map(one).collect()
        };
        let notifications = topic.map(notify).unwrap_or_default();
        let spec = json!({
            "name": names::of(self.site, "budget", MOST_OF_NAME),
            "limit": budget.monthly,
            "unit": budget.currency,
            "filter": { (crate::tags::ENVIRONMENT): [self.site.environment] },
            "notifications": notifications,
        });
        self.part("budget", "aws.budget", &spec);
    }
}

/// One object that alarms are about.
struct Object {
    /// What tells it apart in the name of its alarm.
    suffix: String,
    /// The value of the rule's dimension.
    value: Value,
}

impl Rule {
    fn periods(&self, monitoring: &Monitoring) -> i32 {
        let seconds = match self.lasting {
            Lasting::Minutes(minutes) => minutes * MINUTE,
            Lasting::ErrorRate => {
                i32::try_from(monitoring.service.error_rate_for_seconds.min(DAY_SECONDS)).unwrap_or_default()
            }
        };
        (seconds / self.period).max(1)
    }

    fn threshold(&self, monitoring: &Monitoring, server: Option<&Server>) -> Option<f64> {
        const GIB: f64 = (1_u64 << 30) as f64;
        let left = |percent: u32| f64::from(100_u32.saturating_sub(percent)) / 100.0;
        Some(match self.limit {
            Limit::Fixed(limit) => limit,
            Limit::ErrorRate => (monitoring.service.error_rate * 10_000.0).round() / 100.0,
            Limit::FreeMemory => (f64::from(server?.memory_gib) * GIB * left(monitoring.limits.memory)).round(),
            Limit::FreeDisk => (server?.storage_gb as f64 * GIB * left(monitoring.limits.disk)).round(),
            Limit::Connections(percent) => (f64::from(server?.connections) * percent / 100.0).round(),
        })
    }

    /// A widget with a line for each object.
    fn widget(&self, region: &str, objects: &[Object], first: &Object, threshold: f64, place: usize) -> Value {
        let line = |object: &Object, name: &str, options: Value| {
            json!([self.namespace, name, self.dimension, object.value, options])
        };
        let metrics: Vec<Value> = match self.expression {
            Some(expression) => {
                let hidden = |(id, name): &(&str, &str)| line(first, name, json!({ "id": id, "visible": false }));
                let result = json!([{ "expression": expression, "id": "result", "label": "%" }]);
                self.metrics.iter().map(hidden).chain([result]).collect()
            }
            None => {
                let lines = |object: &Object| -> Vec<Value> {
                    self.metrics.iter().map(|(_, name)| line(object, name, json!({}))).collect()
                };
                objects.iter().flat_map(lines).collect()
            }
        };
        let width = COLUMNS / IN_A_ROW;
        json!({
            "type": "metric",
            "x": place % IN_A_ROW * width,
            "y": place / IN_A_ROW * HEIGHT,
            "width": width,
            "height": HEIGHT,
            "properties": {
                "title": self.shows,
                "region": region,
                "view": "timeSeries",
                "stat": self.statistic,
                "period": self.period,
                "metrics": metrics,
                "annotations": { "horizontal": [{ "label": "alarm", "value": threshold }] },
            },
        })
    }
}

/// The database that RDS runs for this environment, and its server.
fn servers(monitoring: &Monitoring) -> Option<(&Postgres, Server)> {
    let postgres = managed_postgres(monitoring)?;
    Some((postgres, server(postgres)?))
}

/// The protocols and addresses of a receiver; an error is its cause and fix.
///
/// SNS sends mails itself, so that only the recipients of an SMTP address count.
fn subscriptions_of(address: &ReceiverAddress) -> Result<Vec<(&'static str, String)>, (&'static str, &'static str)> {
    let text = match address {
        ReceiverAddress::Plain(text) => text.trim(),
        ReceiverAddress::Secret(_) => {
            return Err((
                "SNS shows the addresses of its subscriptions, so that a secret one is not given to it",
                "write the address of a mailbox: `smtps://mail.example.com?from=alerts@example.com&to=oncall@example.com`",
            ));
        }
    };
    if text.starts_with("https://") {
        return Ok(vec![("https", text.to_owned())]);
    }
    let Some(recipients) = mailboxes(text) else {
        return Err(("SNS sends to mailboxes and to HTTPS addresses only", "write `smtps://…&to=…` or `https://…`"));
    };
    Ok(recipients.into_iter().map(|one| ("email", one)).collect())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn rules_are_distinct_and_name_their_sources() {
        let parts: BTreeSet<_> = RULES.iter().map(|rule| rule.part).collect();
        assert_eq!(parts.len(), RULES.len());
        for rule in RULES {
            assert!(rule.source.starts_with("https://docs.aws.amazon.com/"), "{}", rule.part);
            assert!(rule.expression.is_some() || rule.metrics.len() == 1, "{} compares one metric", rule.part);
            let used = |(id, _): &(&str, &str)| rule.expression.is_none_or(|expression| expression.contains(*id));
            assert!(rule.metrics.iter().all(used), "{} uses its metrics", rule.part);
        }
    }
}
