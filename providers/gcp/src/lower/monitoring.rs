//! What Google Cloud itself watches: a channel for each mailbox of the receivers, alert policies about what the environment creates, a
//! check of the service from the internet, a dashboard of the same metrics, and the cost budget, which the billing account of the project
//! has.
//!
//! Latency and errors of the service, its pods and their restarts are the rules of the cluster. Where Google Cloud runs the servers, its
//! metrics of their requests have policies.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_cloud::alerts::{WRITE_MAILBOX, mail_receivers, managed_postgres};
use textnlp_cloud::budget::{Warning, warnings};
use textnlp_cloud::endpoint::plain;
use textnlp_provider::component::{Budget, Monitoring, Postgres, ServiceAddress};
use textnlp_provider::settings::Runtime;
use textnlp_provider::{ComponentName, ResourceId};

use super::database::{REMOTE, tier};
use super::dns::HEALTH_PATH;
use super::{Lowering, output};
use crate::kinds::budgets::{BUDGET, MOST_OF_BUDGET, MOST_OF_NAME};
use crate::kinds::monitoring::{CHANNEL, DASHBOARD, POLICY, UPTIME};
use crate::names;
use crate::service::Service;
use crate::table::CLUSTER_NAME;

/// The services that channels, policies and dashboards need besides those of the network.
const OF_ALERTS: &[Service] = &[Service::Monitoring];
/// Those that a budget needs.
const OF_BUDGET: &[Service] = &[Service::BillingBudgets, Service::CloudBilling];
/// The longest display name (<https://cloud.google.com/monitoring/api/ref_v3/rest/v3/projects.alertPolicies>).
const MOST_OF_TITLE: usize = 512;
/// The most channels of a policy (<https://cloud.google.com/monitoring/quotas#alerting_uptime_limits>).
const MOST_CHANNELS: usize = 16;
/// The seconds of a value of the metrics, and how values within them become one.
const PERIOD: u64 = 60;
const MEAN: &str = "ALIGN_MEAN";
/// What is added in a period: a count, or a distribution.
const ADDED: &str = "ALIGN_DELTA";
/// The longest time that a condition evaluates, without its period (<https://cloud.google.com/monitoring/quotas#alerting_uptime_limits>).
const MOST_WINDOW: u64 = (23 * 60 + 30) * 60 - PERIOD;
/// The same of an uptime check, whose newest result in this time counts, and the label whose values have a count of locations each
/// (<https://cloud.google.com/monitoring/alerts/policies-in-json#json-uptime>).
const UPTIME_PERIOD: u64 = 1_200;
const NEWEST: &str = "ALIGN_NEXT_OLDER";
const CHECKED_HOST: &str = "resource.label.host";
/// The part of the uptime check, the seconds between its requests, and those in which each is answered.
const UPTIME_PART: &str = "uptime";
const UPTIME_EVERY: u64 = 60;
const UPTIME_TIMEOUT: u64 = 10;
/// What has to be there before a request is answered: the Service for clients, and the servers behind it.
const ANSWERING: [(&str, &str); 2] = [("gateway", "service"), ("server", "deployment")];
/// The resource of Cloud SQL in filters, and its label `PROJECT:NAME`.
const SERVER: &str = "cloudsql_database";
const DATABASE_ID: &str = "resource.labels.database_id";
/// The labels of a service of Cloud Run, and of an endpoint of Vertex AI, by which their time series are grouped.
const SERVICE_NAME: &str = "resource.label.service_name";
const ENDPOINT_ID: &str = "resource.label.endpoint_id";

/// What a policy is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Watched {
    Nodes,
    DatabaseServers,
    DatabaseReplicas,
    /// The service, from the internet.
    Service,
    /// The service of Cloud Run.
    CloudRun,
    /// The endpoint of Vertex AI.
    VertexEndpoint,
}

/// The threshold of a policy.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Fixed(f64),
    /// Values below it.
    Below(f64),
    /// The limit of the use of memory, as a share.
    Memory,
    /// The same of the disk.
    Disk,
    /// This share of the connections that the server accepts.
    Connections(f64),
    /// The limit of the latency, in milliseconds.
    Latency,
    /// The largest share of errors.
    ErrorRate,
}

/// How long a limit has to be exceeded before an incident begins.
#[derive(Debug, Clone, Copy)]
enum RetestWindow {
    Minutes(u64),
    /// As long as the latency of the service.
    Latency,
    /// As long as its errors.
    ErrorRate,
}

/// What several time series of an object become, by the label that tells objects apart.
#[derive(Debug, Clone, Copy)]
enum Reducer {
    /// There is one.
    No,
    Sum(&'static str),
    /// Their distributions have one 95th percentile.
    Percentile(&'static str),
    /// The sum, as a share of that without [`Rule::also`].
    Share(&'static str),
}

/// One policy about all objects of a sort: each of them opens an incident of its own.
struct Rule {
    part: &'static str,
    /// What its mails say.
    says: &'static str,
    /// The title of its chart.
    shows: &'static str,
    watched: Watched,
    metric: &'static str,
    /// More of its filter.
    also: &'static str,
    aligner: &'static str,
    reducer: Reducer,
    limit: Limit,
    window: RetestWindow,
}

/// The metrics are in <https://cloud.google.com/monitoring/api/metrics_kubernetes>,
/// <https://cloud.google.com/monitoring/api/metrics_gcp_c#gcp-cloudsql>, <https://cloud.google.com/monitoring/api/metrics_gcp_p_z#gcp-run>
/// and <https://cloud.google.com/monitoring/api/metrics_gcp_a_b#gcp-aiplatform>. Thresholds without a setting are those of the alarms on AWS.
const RULES: &[Rule] = &[
    Rule {
        part: "nodes-memory",
        says: "A node of the cluster has little memory left",
        shows: "Memory of the nodes of the cluster",
        watched: Watched::Nodes,
        metric: "kubernetes.io/node/memory/allocatable_utilization",
        // The rest is given back when it is needed.
        also: " AND metric.labels.memory_type=\"non-evictable\"",
        aligner: MEAN,
        reducer: Reducer::No,
        limit: Limit::Memory,
        window: RetestWindow::Minutes(15),
    },
    Rule {
        part: "database-cpu",
        says: "The database has no CPU left",
        shows: "CPU of the database",
        watched: Watched::DatabaseServers,
        metric: "cloudsql.googleapis.com/database/cpu/utilization",
        also: "",
        aligner: MEAN,
        reducer: Reducer::No,
        limit: Limit::Fixed(0.9),
        window: RetestWindow::Minutes(5),
    },
    Rule {
        part: "database-memory",
        says: "The database has little memory left",
        shows: "Memory of the database",
        watched: Watched::DatabaseServers,
        metric: "cloudsql.googleapis.com/database/memory/utilization",
        also: "",
        aligner: MEAN,
        reducer: Reducer::No,
        limit: Limit::Memory,
        window: RetestWindow::Minutes(15),
    },
    Rule {
        part: "database-disk",
        says: "The disk of the database is nearly full",
        shows: "Disk of the database",
        watched: Watched::DatabaseServers,
        metric: "cloudsql.googleapis.com/database/disk/utilization",
        also: "",
        aligner: MEAN,
        reducer: Reducer::No,
        limit: Limit::Disk,
        window: RetestWindow::Minutes(5),
    },
    Rule {
        part: "database-connections",
        says: "The database accepts few more connections",
        shows: "Connections of the database",
        watched: Watched::DatabaseServers,
        // A time series for each database of a server.
        metric: "cloudsql.googleapis.com/database/postgresql/num_backends",
        also: "",
        aligner: MEAN,
        reducer: Reducer::Sum("resource.label.database_id"),
        limit: Limit::Connections(0.9),
        window: RetestWindow::Minutes(5),
    },
    Rule {
        part: "database-lag",
        says: "A replica of the database lags behind",
        shows: "Lag of the replicas of the database, in seconds",
        watched: Watched::DatabaseReplicas,
        metric: "cloudsql.googleapis.com/database/replication/replica_lag",
        also: "",
        aligner: "ALIGN_MAX",
        reducer: Reducer::No,
        limit: Limit::Fixed(600.0),
        window: RetestWindow::Minutes(10),
    },
    Rule {
        part: "database-replication",
        says: "The replication to a replica of the database has stopped",
        shows: "Lag of the replicas of the database, below 0 where the replication has stopped",
        watched: Watched::DatabaseReplicas,
        // Negative while replication is inactive (<https://cloud.google.com/sql/docs/postgres/admin-api/metrics>).
        metric: "cloudsql.googleapis.com/database/replication/replica_lag",
        also: "",
        aligner: "ALIGN_MAX",
        reducer: Reducer::No,
        limit: Limit::Below(0.0),
        window: RetestWindow::Minutes(10),
    },
    Rule {
        part: "service-uptime",
        says: "The service does not answer on the internet",
        shows: "Locations on the internet that the service does not answer",
        watched: Watched::Service,
        metric: "monitoring.googleapis.com/uptime_check/check_passed",
        also: "",
        aligner: NEWEST,
        reducer: Reducer::No,
        // One location may have a fault of its own.
        limit: Limit::Fixed(1.0),
        window: RetestWindow::Minutes(5),
    },
    Rule {
        part: "service-latency",
        says: "The service is slow",
        shows: "Latency of the service, in milliseconds",
        watched: Watched::CloudRun,
        metric: "run.googleapis.com/request_latencies",
        also: "",
        aligner: ADDED,
        reducer: Reducer::Percentile(SERVICE_NAME),
        limit: Limit::Latency,
        window: RetestWindow::Latency,
    },
    Rule {
        part: "service-errors",
        says: "The service answers with errors",
        shows: "Share of the requests that the service answers with errors",
        watched: Watched::CloudRun,
        metric: "run.googleapis.com/request_count",
        also: " AND metric.labels.response_code_class=\"5xx\"",
        aligner: ADDED,
        reducer: Reducer::Share(SERVICE_NAME),
        limit: Limit::ErrorRate,
        window: RetestWindow::ErrorRate,
    },
    Rule {
        part: "service-latency",
        says: "The endpoint is slow",
        shows: "Latency of the endpoint, in milliseconds",
        watched: Watched::VertexEndpoint,
        metric: "aiplatform.googleapis.com/prediction/online/prediction_latencies",
        // Parts of it are time series, too.
        also: " AND metric.labels.latency_type=\"total\"",
        aligner: ADDED,
        reducer: Reducer::Percentile(ENDPOINT_ID),
        limit: Limit::Latency,
        window: RetestWindow::Latency,
    },
    Rule {
        part: "service-errors",
        says: "The endpoint answers with errors",
        shows: "Share of the requests that the endpoint answers with errors",
        watched: Watched::VertexEndpoint,
        metric: "aiplatform.googleapis.com/prediction/online/response_count",
        also: " AND metric.labels.response_code=\"5xx\"",
        aligner: ADDED,
        reducer: Reducer::Share(ENDPOINT_ID),
        limit: Limit::ErrorRate,
        window: RetestWindow::ErrorRate,
    },
];

impl Lowering<'_> {
    pub(super) fn monitoring(&mut self, monitoring: &Monitoring) {
        // A budget of nothing is never kept.
        let budget = monitoring.budget.as_ref().filter(|budget| budget.monthly > 0.0);
        // Google Cloud bills policies, and without a mailbox nothing shows their incidents.
        let emails = self.emails(monitoring);
        let has_alerts = !emails.is_empty();
        let metrics = self.metrics(monitoring);
        let has_dashboard = monitoring.stack && !metrics.is_empty();
        let needed = [(has_alerts || has_dashboard, OF_ALERTS), (budget.is_some(), OF_BUDGET)];
        let needed = needed.into_iter().filter(|(is_needed, _)| *is_needed);
        let apis: Vec<&str> = needed.flat_map(|(_, services)| services).map(|service| service.api()).collect();
        if apis.is_empty() {
            return;
        }
        let services = self.part("services", "gcp.services", self.of_project(json!({ "services": apis })));
        if let Some(service) = monitoring.monitored.service.as_ref().filter(|_| has_alerts || has_dashboard) {
            self.uptime(service);
            self.after(services.clone());
        }
        let channels = self.channels(emails, services.as_ref());
        if has_alerts {
            self.policies(monitoring, &metrics, &channels, services.as_ref());
        }
        if has_dashboard {
            let chart = |(rule, mut metric): (&Rule, Value)| {
                metric["says"] = json!(rule.shows);
                metric
            };
            let charts: Vec<Value> = metrics.into_iter().map(chart).collect();
            let spec = json!({ "name": names::of(self.site, "overview", MOST_OF_TITLE), "charts": charts });
            // The dashboard of the stack in the cluster is `dashboard`.
            self.part("overview", DASHBOARD, self.of_project(spec));
            self.after(services.clone());
        }
        if let Some(budget) = budget {
            self.budget(budget, &channels);
            self.after(services);
        }
    }

    /// The mailboxes of the receivers.
    fn emails(&mut self, monitoring: &Monitoring) -> BTreeSet<String> {
        let (all, others) = mail_receivers(monitoring);
        for name in others.into_iter().filter(|_| !monitoring.stack) {
            let cause = "Cloud Monitoring sends the alerts to mailboxes only, and `monitoring.stack` is off";
            self.problem(&format!("receivers.{name}"), cause, WRITE_MAILBOX);
        }
        if all.len() > MOST_CHANNELS {
            let cause = format!(
                "they have {} mailboxes, and a policy of Cloud Monitoring has at most {MOST_CHANNELS}",
                all.len()
            );
            self.problem("receivers", cause, "use a mailing list");
        }
        all
    }

    /// The channels of mailboxes: references to their ids.
    fn channels(&mut self, emails: BTreeSet<String>, services: Option<&ResourceId>) -> Vec<Value> {
        let mut channels = Vec::new();
        for (number, email) in (1..).zip(emails) {
            let name = names::of(self.site, &format!("mailbox-{number}"), MOST_OF_TITLE);
            let spec = self.of_project(json!({ "name": name, "email": email, "enabled": true }));
            channels.extend(self.part(&format!("mailbox-{number}"), CHANNEL, spec).map(|id| output(&id, "id")));
            self.after(services.cloned());
        }
        channels
    }

    /// The check of the service from the internet. It begins once the service answers: its policy would mail before.
    fn uptime(&mut self, service: &ServiceAddress) {
        let spec = json!({
            "name": names::of(self.site, UPTIME_PART, MOST_OF_TITLE),
            "host": plain(&service.host),
            "target": { "port": service.port, "path": HEALTH_PATH },
            "period": UPTIME_EVERY,
            "timeout": UPTIME_TIMEOUT,
            "regions": [],
            "matchers": [],
            "enabled": true,
        });
        self.part(UPTIME_PART, UPTIME, self.of_project(spec));
        for (component, part) in ANSWERING {
            let before = self.part_of(component, part);
            self.after(before);
        }
    }

    /// The rules about what this environment creates, each with its metric and limit.
    fn metrics(&self, monitoring: &Monitoring) -> Vec<(&'static Rule, Value)> {
        let metric = |rule: &'static Rule| {
            let (filter, threshold) = (self.filter(rule, rule.also, monitoring)?, rule.threshold(monitoring)?);
            let comparison = if matches!(rule.limit, Limit::Below(_)) { "below" } else { "above" };
            let sum_by = match rule.reducer {
                Reducer::Sum(label) | Reducer::Share(label) => Some(label),
                Reducer::No | Reducer::Percentile(_) => None,
            };
            let mut metric = json!({
                "says": rule.says,
                "filter": filter,
                "aligner": rule.aligner,
                "sum_by": sum_by,
                (comparison): threshold,
                "period_seconds": PERIOD,
            });
            if let Reducer::Percentile(label) = rule.reducer {
                metric["percentile_by"] = json!(label);
            }
            if rule.watched == Watched::Service {
                (metric["false_by"], metric["period_seconds"]) = (json!(CHECKED_HOST), json!(UPTIME_PERIOD));
            }
            Some((rule, metric))
        };
        RULES.iter().filter_map(metric).collect()
    }

    fn policies(
        &mut self,
        monitoring: &Monitoring,
        metrics: &[(&Rule, Value)],
        channels: &[Value],
        services: Option<&ResourceId>,
    ) {
        for (rule, metric) in metrics {
            let mut condition = metric.clone();
            condition["lasting_seconds"] = json!(rule.lasting_seconds(monitoring));
            if matches!(rule.reducer, Reducer::Share(_)) {
                condition["share_of"] = json!(self.filter(rule, "", monitoring));
            }
            let spec = json!({
                "name": names::of(self.site, rule.part, MOST_OF_TITLE),
                "condition": condition,
                "channels": channels,
                "enabled": true,
            });
            self.part(&format!("alert-{}", rule.part), POLICY, self.of_project(spec));
            self.after(services.cloned());
        }
    }

    /// The pieces of a filter with `also`, some of which are references to names of what this environment creates; `None` if it creates
    /// nothing of the sort.
    fn filter(&self, rule: &Rule, also: &str, monitoring: &Monitoring) -> Option<Vec<Value>> {
        let postgres = managed_postgres(monitoring);
        let remote = postgres.and_then(Postgres::replica_region).map(|_| REMOTE.to_owned());
        let replicas = (1..postgres.map_or(0, |postgres| postgres.replicas)).map(|number| format!("replica-{number}"));
        let replicas = replicas.chain(remote);
        let named = |part: String| self.output_of("database", &part, "name");
        let project = format!("{}:", self.site.account);
        let (resource, label, prefix, names): (_, _, _, Vec<Value>) = match rule.watched {
            Watched::Nodes => {
                let cluster = ComponentName::new("cluster").ok().filter(|_| monitoring.monitored.cluster)?;
                let name = output(&ResourceId::of(&self.site.name, &cluster), CLUSTER_NAME);
                ("k8s_node", "resource.labels.cluster_name", String::new(), vec![name])
            }
            Watched::DatabaseServers => {
                let first = postgres.map(|_| "server".to_owned());
                (SERVER, DATABASE_ID, project, first.into_iter().chain(replicas).map(named).collect())
            }
            Watched::DatabaseReplicas => (SERVER, DATABASE_ID, project, replicas.map(named).collect()),
            Watched::Service => {
                monitoring.monitored.service.as_ref()?;
                let check = self.output_of(self.component.name.as_str(), UPTIME_PART, "name");
                ("uptime_url", "metric.labels.check_id", String::new(), vec![check])
            }
            Watched::CloudRun if self.site.runtime == Runtime::CloudRun => {
                let name = self.output_of("server", "service", "name");
                ("cloud_run_revision", "resource.labels.service_name", String::new(), vec![name])
            }
            Watched::VertexEndpoint if self.site.runtime == Runtime::Vertex => {
                let id = self.output_of("server", "endpoint", "name");
                ("aiplatform.googleapis.com/Endpoint", "resource.labels.endpoint_id", String::new(), vec![id])
            }
            Watched::CloudRun | Watched::VertexEndpoint => return None,
        };
        let (open, close) = match names.len() {
            0 => return None,
            1 => ("=", ""),
            _ => ("=one_of(", ")"),
        };
        let metric = rule.metric;
        let start = format!("metric.type=\"{metric}\" AND resource.type=\"{resource}\"{also} AND {label}{open}");
        let mut filter = Vec::new();
        for (place, name) in names.into_iter().enumerate() {
            let before = if place == 0 { start.as_str() } else { "\", " };
            filter.extend([json!(format!("{before}\"{prefix}")), name]);
        }
        filter.push(json!(format!("\"{close}")));
        Some(filter)
    }

    /// `preflight` names the mailboxes beyond those that a budget has.
    fn budget(&mut self, budget: &Budget, channels: &[Value]) {
        let notification = |warning: Warning| {
            let about = if warning.is_forecast { "FORECASTED_SPEND" } else { "CURRENT_SPEND" };
            json!({ "about": about, "percent": warning.percent })
        };
        let notifications: Vec<Value> = warnings(budget).into_iter().map(notification).collect();
        let spec = json!({
            "name": names::of_site(self.site, MOST_OF_NAME),
            "limit": budget.monthly,
            "currency": budget.currency,
            "projects": [self.site.account],
            "notifications": notifications,
            "channels": channels.iter().take(MOST_OF_BUDGET).collect::<Vec<_>>(),
        });
        self.part("budget", BUDGET, self.of_project(spec));
    }
}

impl Rule {
    fn threshold(&self, monitoring: &Monitoring) -> Option<f64> {
        let share = |percent: u32| f64::from(percent) / 100.0;
        Some(match self.limit {
            Limit::Fixed(limit) | Limit::Below(limit) => limit,
            Limit::Memory => share(monitoring.limits.memory),
            Limit::Disk => share(monitoring.limits.disk),
            Limit::Connections(part) => (f64::from(tier(managed_postgres(monitoring)?)?.1) * part).round(),
            Limit::Latency => (monitoring.service.latency_seconds * 1000.0).round(),
            Limit::ErrorRate => monitoring.service.error_rate,
        })
    }

    /// Whole minutes.
    fn lasting_seconds(&self, monitoring: &Monitoring) -> u64 {
        let seconds = match self.window {
            RetestWindow::Minutes(minutes) => minutes * 60,
            RetestWindow::Latency => monitoring.service.latency_for_seconds,
            RetestWindow::ErrorRate => monitoring.service.error_rate_for_seconds,
        };
        (seconds.div_ceil(60) * 60).min(MOST_WINDOW)
    }
}
