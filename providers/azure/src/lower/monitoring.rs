//! What Azure itself watches: an action group of the receivers' mailboxes, metric alerts about what the environment creates, a workbook of
//! the same metrics, and the cost budget, which the subscription has.
//!
//! Latency and errors of the service, its pods and their restarts are the rules of the cluster.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_cloud::alerts::{WRITE_MAILBOX, mail_receivers, managed_postgres};
use textnlp_cloud::budget::{Warning, warnings};
use textnlp_provider::component::{Budget, Monitoring, Postgres};
use textnlp_provider::{ComponentName, ResourceId};

use super::database::size;
use super::{Lowering, output};
use crate::kinds::budgets::{BUDGET, CONSUMPTION};
use crate::kinds::monitoring::{ALERT, GROUP, INSIGHTS, WORKBOOK};
use crate::names;
use crate::tables::machines::KEPT_CONNECTIONS;

/// The most characters of the name of a budget
/// (<https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftconsumption>).
const MOST_OF_NAME: usize = 63;
/// The same of an action group and of an alert
/// (<https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftinsights>).
const MOST_OF_ALERT: usize = 260;
/// The most mailboxes of an action group (<https://learn.microsoft.com/azure/azure-monitor/service-limits#action-groups>).
const MOST_MAILBOXES: usize = 1_000;
/// The name of the action group in mails, at most 12 characters (Azure/azure-rest-api-specs#2840).
const SHORT_NAME: &str = "textnlp";
/// The role at the subscription whose holders get each notification: one has to have a recipient
/// (hashicorp/terraform-provider-azurerm#12471).
const RECIPIENTS: &str = "Owner";
/// A warning.
const SEVERITY: u32 = 2;
/// How often the metrics are compared.
const FREQUENCY: &str = "PT1M";

/// What an alert is about.
#[derive(Debug, Clone, Copy)]
enum Watched {
    Nodes,
    DatabaseServer,
    /// The same, if it has a replica in another region.
    ReplicatedServer,
}

impl Watched {
    /// The type of the resource.
    fn namespace(self) -> &'static str {
        match self {
            Self::Nodes => "Microsoft.ContainerService/managedClusters",
            Self::DatabaseServer | Self::ReplicatedServer => "Microsoft.DBforPostgreSQL/flexibleServers",
        }
    }
}

/// The threshold of an alert.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Fixed(f64),
    /// The limit of the use of memory, in percent.
    Memory,
    /// The same of the disk.
    Disk,
    /// This share of the connections that the server accepts from users.
    Connections(f64),
}

/// One alert.
struct Rule {
    part: &'static str,
    /// What its mails say.
    says: &'static str,
    /// The title of its chart.
    shows: &'static str,
    watched: Watched,
    metric: &'static str,
    /// The dimensions whose values are each compared. The others are averaged.
    each: &'static [&'static str],
    limit: Limit,
    minutes: u32,
}

/// The metrics are in <https://learn.microsoft.com/azure/aks/monitor-aks-reference#metrics> and
/// <https://learn.microsoft.com/azure/postgresql/flexible-server/concepts-monitoring#list-of-metrics>. Thresholds without a setting are
/// those of the alarms on AWS.
const RULES: &[Rule] = &[
    Rule {
        part: "nodes-memory",
        says: "A node of the cluster has little memory left",
        shows: "Memory of the nodes of the cluster",
        watched: Watched::Nodes,
        // Without the files in memory, such as mapped models: the working set has those, and is high in normal operation.
        metric: "node_memory_rss_percentage",
        each: &["node"],
        limit: Limit::Memory,
        minutes: 15,
    },
    Rule {
        part: "nodes-disk",
        says: "A disk of a node of the cluster is nearly full: see the dimensions `node` and `device`",
        shows: "Disks of the nodes of the cluster",
        watched: Watched::Nodes,
        metric: "node_disk_usage_percentage",
        each: &["node", "device"],
        limit: Limit::Disk,
        minutes: 5,
    },
    Rule {
        part: "database-cpu",
        says: "The database has no CPU left",
        shows: "CPU of the database",
        watched: Watched::DatabaseServer,
        metric: "cpu_percent",
        each: &[],
        limit: Limit::Fixed(90.0),
        minutes: 5,
    },
    Rule {
        part: "database-memory",
        says: "The database has little memory left",
        shows: "Memory of the database",
        watched: Watched::DatabaseServer,
        metric: "memory_percent",
        each: &[],
        limit: Limit::Memory,
        minutes: 15,
    },
    Rule {
        part: "database-disk",
        says: "The disk of the database is nearly full",
        shows: "Disk of the database",
        watched: Watched::DatabaseServer,
        metric: "storage_percent",
        each: &[],
        limit: Limit::Disk,
        minutes: 5,
    },
    Rule {
        part: "database-connections",
        says: "The database accepts few more connections",
        shows: "Connections of the database",
        watched: Watched::DatabaseServer,
        metric: "active_connections",
        each: &[],
        limit: Limit::Connections(0.9),
        minutes: 5,
    },
    Rule {
        part: "database-lag",
        says: "The replica of the database in another region lags behind by more than 1 GiB, which the source keeps on its disk",
        shows: "Lag of the replica of the database in another region, in bytes",
        watched: Watched::ReplicatedServer,
        // In seconds it would also grow while nothing is written
        // (<https://learn.microsoft.com/azure/postgresql/read-replica/concepts-read-replicas#monitor-replication>).
        metric: "physical_replication_delay_in_bytes",
        each: &[],
        limit: Limit::Fixed(1_073_741_824.0),
        minutes: 15,
    },
];

/// A rule about what this environment creates.
struct Metric {
    rule: &'static Rule,
    /// The resource.
    scope: Value,
    above: f64,
}

impl Lowering<'_> {
    pub(super) fn monitoring(&mut self, monitoring: &Monitoring) {
        // Azure bills alerts, and without a mailbox nothing shows them.
        let emails = self.emails(monitoring);
        let metrics = self.metrics(monitoring);
        let has_workbook = monitoring.stack && !metrics.is_empty();
        let mut provider = None;
        if has_workbook || !emails.is_empty() {
            let spec = json!({ "subscription": self.site.account, "name": INSIGHTS });
            provider = self.part("insights", "azure.provider", spec);
        }
        let mut group = None;
        if !emails.is_empty() {
            group = self.alerts(&emails, &metrics, provider.as_ref());
        }
        if has_workbook {
            self.workbook(&metrics);
            self.after(provider);
        }
        // A budget of nothing is never kept.
        if let Some(budget) = monitoring.budget.as_ref().filter(|budget| budget.monthly > 0.0) {
            self.budget(budget, group.as_ref());
        }
    }

    fn metrics(&self, monitoring: &Monitoring) -> Vec<Metric> {
        let metric = |rule: &'static Rule| {
            Some(Metric { rule, scope: self.watched(rule, monitoring)?, above: rule.threshold(monitoring)? })
        };
        RULES.iter().filter_map(metric).collect()
    }

    /// The alerts and their action group.
    fn alerts(
        &mut self,
        emails: &BTreeSet<String>,
        metrics: &[Metric],
        provider: Option<&ResourceId>,
    ) -> Option<ResourceId> {
        let spec = self.of_world(json!({
            "name": names::of(self.site, "alerts", MOST_OF_ALERT),
            "short_name": SHORT_NAME,
            "emails": emails,
            "enabled": true,
        }));
        let group = self.part("mailboxes", GROUP, spec);
        self.after(provider.cloned());
        let groups: Vec<Value> = group.iter().map(|id| output(id, "id")).collect();
        let place = format!("{} at {}", self.site.environment, self.site.name);
        for Metric { rule, scope, above } in metrics {
            let spec = self.of_world(json!({
                "name": names::of(self.site, rule.part, MOST_OF_ALERT),
                "says": format!("{}: {place}", rule.says),
                "severity": SEVERITY,
                "enabled": true,
                "scopes": [scope],
                "frequency": FREQUENCY,
                "window": format!("PT{}M", rule.minutes),
                "criterion": {
                    "namespace": rule.watched.namespace(),
                    "metric": rule.metric,
                    "each": rule.each,
                    "above": above,
                },
                "groups": groups,
            }));
            self.part(&format!("alert-{}", rule.part), ALERT, spec);
            self.after(provider.cloned());
        }
        group
    }

    fn workbook(&mut self, metrics: &[Metric]) {
        let chart = |Metric { rule, scope, above }: &Metric| {
            json!({
                "says": rule.shows,
                "resource": scope,
                "namespace": rule.watched.namespace().to_ascii_lowercase(),
                "metric": rule.metric,
                "each": rule.each,
                "above": above,
            })
        };
        let spec = self.of_group(json!({
            "name": names::workbook(self.site),
            "title": names::of(self.site, "overview", MOST_OF_ALERT),
            "charts": metrics.iter().map(chart).collect::<Vec<Value>>(),
        }));
        // The dashboard of the stack in the cluster is `dashboard`.
        self.part("overview", WORKBOOK, spec);
    }

    /// The mailboxes of the receivers.
    fn emails(&mut self, monitoring: &Monitoring) -> BTreeSet<String> {
        let (emails, others) = mail_receivers(monitoring);
        for name in others.into_iter().filter(|_| !monitoring.stack) {
            let cause = "Azure Monitor sends the alerts to mailboxes only, and `monitoring.stack` is off";
            self.problem(&format!("receivers.{name}"), cause, WRITE_MAILBOX);
        }
        if emails.len() > MOST_MAILBOXES {
            let cause = format!("they have {} mailboxes, and {MOST_MAILBOXES} are the most", emails.len());
            self.problem("receivers", cause, "use a mailing list");
        }
        emails
    }

    /// What an alert is about, if this environment creates it.
    fn watched(&self, rule: &Rule, monitoring: &Monitoring) -> Option<Value> {
        match rule.watched {
            Watched::Nodes => {
                let cluster = ComponentName::new("cluster").ok().filter(|_| monitoring.monitored.cluster)?;
                Some(output(&ResourceId::of(&self.site.name, &cluster), "id"))
            }
            Watched::DatabaseServer => managed_postgres(monitoring).map(|_| self.output_of("database", "server", "id")),
            Watched::ReplicatedServer => managed_postgres(monitoring)
                .and_then(Postgres::replica_region)
                .map(|_| self.output_of("database", "server", "id")),
        }
    }

    fn budget(&mut self, budget: &Budget, group: Option<&ResourceId>) {
        let groups: Vec<Value> = group.into_iter().map(|id| output(id, "id")).collect();
        let notification = |warning: Warning| {
            let about = if warning.is_forecast { "Forecasted" } else { "Actual" };
            // The mailboxes are those of the action group.
            json!({ "about": about, "percent": warning.percent, "emails": [], "groups": groups, "roles": [RECIPIENTS] })
        };
        let notifications: Vec<Value> = warnings(budget).into_iter().map(notification).collect();
        let subscription = &self.site.account;
        let provider = json!({ "subscription": subscription, "name": CONSUMPTION });
        let spec = json!({
            "subscription": subscription,
            "name": names::of(self.site, "budget", MOST_OF_NAME),
            "limit": budget.monthly,
            "currency": budget.currency,
            "notifications": notifications,
        });
        let provider = self.part("provider", "azure.provider", provider);
        self.part("budget", BUDGET, spec);
        self.after(provider);
    }
}

impl Rule {
    fn threshold(&self, monitoring: &Monitoring) -> Option<f64> {
        Some(match self.limit {
            Limit::Fixed(limit) => limit,
            Limit::Memory => f64::from(monitoring.limits.memory),
            Limit::Disk => f64::from(monitoring.limits.disk),
            Limit::Connections(part) => {
                let (_, most) = size(managed_postgres(monitoring)?)?;
                (f64::from(most.saturating_sub(KEPT_CONNECTIONS)) * part).round()
            }
        })
    }
}
