//! Grafana's dashboard of the service: one table of panels, for pods and for machines.

use serde::Serialize;
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::{Value, json};

use crate::EnvironmentName;

/// The scrape job of the gateways of machines, as in `templates/prometheus/textnlp.yaml`.
const JOB: &str = "textnlp";
/// Grafana's limit for the unique id of a dashboard, in characters.
const UID_MAX: usize = 40;
/// Columns of Grafana's grid.
const COLUMNS: u32 = 24;

/// What a dashboard shows.
#[derive(Debug, Clone, Copy)]
pub enum Watched<'a> {
    /// The pods of a namespace that its reader selects.
    Pods,
    /// What runs on the machines of an environment.
    Machines(&'a Machines),
}

/// What runs on the machines of an environment.
#[derive(Debug, Clone)]
pub struct Machines {
    /// The environment.
    pub environment: EnvironmentName,
    /// Whether servers do.
    pub servers: bool,
    /// Whether each site has a site agent.
    pub site_agents: bool,
    /// Whether the sites share a PostgreSQL, whose metrics the site agents have.
    pub shared_database: bool,
    /// Whether the witness does, with the global endpoint.
    pub witness: bool,
    /// Whether the witness updates DNS records.
    pub dns: bool,
}

/// Where a panel is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shown {
    /// Wherever servers run.
    Servers,
    Pods,
    Gateways,
    SiteAgents,
    SharedDatabase,
    Witness,
    Dns,
}

impl Watched<'_> {
    fn shows(self, shown: Shown) -> bool {
        match self {
            Watched::Pods => matches!(shown, Shown::Servers | Shown::Pods),
            Watched::Machines(machines) => match shown {
                Shown::Servers => machines.servers,
                Shown::Pods => false,
                Shown::Gateways => true,
                Shown::SiteAgents => machines.site_agents,
                Shown::SharedDatabase => machines.site_agents && machines.shared_database,
                Shown::Witness => machines.witness,
                Shown::Dns => machines.witness && machines.dns,
            },
        }
    }

    /// A query or a legend of the table, with its words for what differs.
    fn filled(self, text: &str) -> String {
        let (selector, labels, replica) = match self {
            Watched::Pods => ("namespace=\"$namespace\"".to_owned(), "pod", "{{pod}}"),
            Watched::Machines(_) => {
                (format!("job=\"{JOB}\",instance=~\"$instance\""), "instance, replica", "{{instance}} {{replica}}")
            }
        };
        text.replace("SELECTOR", &selector).replace("REPLICA_LABELS", labels).replace("REPLICA", replica)
    }

    /// The variable that [`Self::filled`] selects by.
    fn variable(self) -> Value {
        let source = json!({ "type": "prometheus", "uid": "${datasource}" });
        match self {
            Watched::Pods => json!({
                "name": "namespace",
                "type": "query",
                "label": "Namespace",
                "datasource": source,
                "query": { "query": "label_values(textnlp_ready, namespace)", "refId": "namespaces" },
                "refresh": 2,
                "sort": 1,
            }),
            Watched::Machines(_) => json!({
                "name": "instance",
                "type": "query",
                "label": "Instance",
                "datasource": source,
                "query": { "query": format!("label_values(up{{job=\"{JOB}\"}}, instance)"), "refId": "instances" },
                "refresh": 2,
                "sort": 1,
                "multi": true,
                "includeAll": true,
                "allValue": ".*",
                "current": { "text": ["All"], "value": ["$__all"] },
            }),
        }
    }

    fn title(self) -> String {
        match self {
            Watched::Pods => "textnlp".to_owned(),
            Watched::Machines(machines) => format!("textnlp {}", machines.environment),
        }
    }

    fn uid(self) -> String {
        let name = match self {
            Watched::Pods => return "textnlp".to_owned(),
            Watched::Machines(machines) => machines.environment.as_str(),
        };
        let uid = format!("textnlp-{name}");
        if uid.len() > UID_MAX { name.to_owned() } else { uid }
    }
}

/// How a panel looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// One number.
    Stat,
    /// Lines over time.
    Chart,
    /// The heading of the panels below it.
    Heading,
}

/// Queries, each with its legend.
type Queries = &'static [(&'static str, &'static str)];

/// A row of the table. In its queries, `SELECTOR` selects the series and `REPLICA_LABELS` are the labels of a replica; in its
/// legends, `REPLICA` is the name of a replica.
#[derive(Debug, Clone, Copy)]
struct Panel {
    form: Form,
    title: &'static str,
    about: &'static str,
    unit: &'static str,
    queries: Queries,
    shown: Shown,
}

impl Panel {
    const fn about(self, about: &'static str) -> Panel {
        Panel { about, ..self }
    }

    const fn of(self, shown: Shown) -> Panel {
        Panel { shown, ..self }
    }
}

const fn stat(title: &'static str, unit: &'static str, queries: Queries) -> Panel {
    Panel { form: Form::Stat, title, about: "", unit, queries, shown: Shown::Servers }
}

const fn chart(title: &'static str, unit: &'static str, queries: Queries) -> Panel {
    Panel { form: Form::Chart, title, about: "", unit, queries, shown: Shown::Servers }
}

const fn heading(title: &'static str) -> Panel {
    Panel { form: Form::Heading, title, about: "", unit: "", queries: &[], shown: Shown::Servers }
}

/// The panels, in the order of reading.
const PANELS: &[Panel] = &[
    stat("Servers ready", "none", &[("sum(textnlp_ready{SELECTOR})", "ready")]),
    stat("Requests a second", "reqps", &[("sum(rate(http_requests_total{SELECTOR}[5m]))", "requests")]),
    stat(
        "Failed",
        "percentunit",
        &[(
            "sum(rate(http_requests_total{SELECTOR,status=~\"5..\"}[5m])) / sum(rate(http_requests_total{SELECTOR}[5m]))",
            "failed",
        )],
    ),
    stat("Tokens a second", "none", &[("sum(textnlp_tokens_per_second{SELECTOR})", "tokens")]),
    chart(
        "Requests by answer",
        "reqps",
        &[("sum by (status) (rate(http_requests_total{SELECTOR}[5m]))", "{{status}}")],
    ),
    chart(
        "Time of an answer",
        "s",
        &[
            (
                "histogram_quantile(0.5, sum by (le) (rate(http_request_duration_seconds_bucket{SELECTOR,route=~\"/v1/.*\"}[5m])))",
                "half of them",
            ),
            (
                "histogram_quantile(0.95, sum by (le) (rate(http_request_duration_seconds_bucket{SELECTOR,route=~\"/v1/.*\"}[5m])))",
                "95 of 100",
            ),
            (
                "histogram_quantile(0.99, sum by (le) (rate(http_request_duration_seconds_bucket{SELECTOR,route=~\"/v1/.*\"}[5m])))",
                "99 of 100",
            ),
        ],
    ),
    chart(
        "Time to the first token",
        "s",
        &[(
            "histogram_quantile(0.95, sum by (le) (rate(textnlp_first_token_seconds_bucket{SELECTOR}[5m])))",
            "95 of 100",
        )],
    ),
    chart(
        "Waiting and running",
        "none",
        &[
            ("sum(textnlp_queue_length{SELECTOR})", "waiting"),
            ("sum(textnlp_running_requests{SELECTOR})", "running"),
            ("sum(http_requests_in_flight{SELECTOR})", "being answered"),
        ],
    ),
    chart(
        "Model inference latency",
        "s",
        &[(
            "histogram_quantile(0.95, sum by (le, model) (rate(textnlp_inference_duration_seconds_bucket{SELECTOR}[5m])))",
            "{{model}}, 95 of 100",
        )],
    )
    .about("The time of a whole generation, from the start of its work."),
    chart(
        "Token generation rate",
        "none",
        &[("sum by (model) (rate(textnlp_tokens_generated_total{SELECTOR}[5m]))", "{{model}}")],
    ),
    chart("Errors by type", "none", &[("sum by (type) (rate(textnlp_errors_total{SELECTOR}[5m]))", "{{type}}")]),
    chart(
        "Memory",
        "bytes",
        &[
            ("sum by (REPLICA_LABELS) (process_resident_memory_bytes{SELECTOR})", "REPLICA"),
            ("max by (model, kind) (textnlp_model_memory_bytes{SELECTOR})", "model {{model}}, {{kind}}"),
        ],
    )
    .about("Weights stay in memory: most of it is in use from the start."),
    chart(
        "GPU memory usage",
        "percentunit",
        &[(
            "textnlp_gpu_memory_used_bytes{SELECTOR} / textnlp_gpu_memory_total_bytes{SELECTOR}",
            "REPLICA, {{device}}",
        )],
    )
    .about("Where models compute on a GPU: what all processes have taken of its memory."),
    chart(
        "Found in memory",
        "percentunit",
        &[
            (
                "sum(rate(textnlp_prompt_tokens_cached_total{SELECTOR}[5m])) / sum(rate(textnlp_prompt_tokens_total{SELECTOR}[5m]))",
                "tokens of prompts",
            ),
            (
                "sum(rate(textnlp_model_cache_hits_total{SELECTOR}[5m])) / (sum(rate(textnlp_model_cache_hits_total{SELECTOR}[5m])) + sum(rate(textnlp_model_cache_misses_total{SELECTOR}[5m])))",
                "models",
            ),
        ],
    )
    .about("Tokens that earlier requests of the tenant had computed, and requests that found their model loaded."),
    chart(
        "Vectors from the cache",
        "percentunit",
        &[
            (
                "sum(rate(textnlp_cache_hits_total{SELECTOR}[5m])) / (sum(rate(textnlp_cache_hits_total{SELECTOR}[5m])) + sum(rate(textnlp_cache_misses_total{SELECTOR}[5m])))",
                "all levels",
            ),
            (
                "sum by (level) (rate(textnlp_cache_hits_total{SELECTOR}[5m])) / ignoring (level) group_left () (sum(rate(textnlp_cache_hits_total{SELECTOR}[5m])) + sum(rate(textnlp_cache_misses_total{SELECTOR}[5m])))",
                "{{level}}",
            ),
        ],
    )
    .about("With `cache`. The share of texts whose vectors were found, in memory or in Redis."),
    chart(
        "Processors",
        "none",
        &[("sum by (REPLICA_LABELS) (rate(process_cpu_seconds_total{SELECTOR}[5m]))", "REPLICA")],
    ),
    chart(
        "Usage that was lost",
        "none",
        &[("sum(increase(textnlp_usage_rows_lost_total{SELECTOR}[1h]))", "rows in an hour")],
    )
    .about("Rows of usage that could not be written, for want of a database."),
    chart(
        "Restarts",
        "none",
        &[("sum by (pod) (increase(kube_pod_container_status_restarts_total{SELECTOR}[1h]))", "{{pod}}")],
    )
    .of(Shown::Pods),
    heading("Usage analytics"),
    chart(
        "Generations in an hour by model",
        "none",
        &[("sum by (model) (increase(textnlp_inference_duration_seconds_count{SELECTOR}[1h]))", "{{model}}")],
    ),
    chart(
        "Tokens in an hour by key",
        "none",
        &[("topk(10, sum by (user) (increase(textnlp_tokens_generated_total{SELECTOR}[1h])))", "{{user}}")],
    )
    .about("Generated tokens of the ten keys with the most."),
    chart(
        "Cost in an hour by model",
        "none",
        &[("sum by (model, currency) (increase(textnlp_cost_total{SELECTOR}[1h]))", "{{model}} {{currency}}")],
    )
    .about("By `server.prices`; without prices there are no series."),
    chart(
        "Failed requests in an hour by route",
        "none",
        &[("sum by (route) (increase(http_requests_total{SELECTOR,status=~\"5..\"}[1h]))", "{{route}}")],
    ),
    chart("Insights of the last 24 hours", "none", &[("max by (kind) (textnlp_insights{SELECTOR})", "{{kind}}")])
        .about("With `server.analytics`. `textnlp-deploy analytics list` shows them."),
    chart(
        "Time since the last analysis",
        "s",
        &[("time() - max(textnlp_analytics_last_run_seconds{SELECTOR})", "age")],
    )
    .about("More than 70 minutes: neither the job nor a server analyzed the usage."),
    heading("Batches"),
    chart("Unfinished batches", "none", &[("max by (state) (textnlp_batches{SELECTOR})", "{{state}}")])
        .about("With `server.batch`. The batches of all tenants, by state."),
    chart("Age of the oldest unfinished batch", "s", &[("max(textnlp_batch_oldest_seconds{SELECTOR})", "age")])
        .about("Requests that have no result when the time of their batch ends are not computed."),
    heading("Gateways").of(Shown::Gateways),
    chart("Gateways that answer Prometheus", "none", &[("up{SELECTOR}", "{{instance}}")])
        .about("0: the machine or its gateway is down.")
        .of(Shown::Gateways),
    chart(
        "Client requests by status",
        "reqps",
        &[(
            "sum by (instance, status) (rate(textnlp_gateway_requests_total{SELECTOR}[5m]))",
            "{{instance}} {{status}}",
        )],
    )
    .about("With several sites, the global endpoint counts a request, and the gateway of the site that answers it.")
    .of(Shown::Gateways),
    chart(
        "Replicas and sites that get requests",
        "none",
        &[("min by (instance, replica) (textnlp_gateway_backend_healthy{SELECTOR})", "{{instance}} {{replica}}")],
    )
    .of(Shown::Gateways),
    chart(
        "Failed requests by replica or site",
        "reqps",
        &[(
            "sum by (instance, replica) (rate(textnlp_gateway_backend_failures_total{SELECTOR}[5m]))",
            "{{instance}} {{replica}}",
        )],
    )
    .of(Shown::Gateways),
    chart("Open connections", "none", &[("sum by (instance) (textnlp_gateway_connections{SELECTOR})", "{{instance}}")])
        .of(Shown::Gateways),
    chart(
        "Time until the certificate expires",
        "s",
        &[("min by (instance) (textnlp_gateway_certificate_not_after_seconds{SELECTOR} > 0) - time()", "{{instance}}")],
    )
    .about("Without TLS there are no series.")
    .of(Shown::Gateways),
    heading("Site agents").of(Shown::SiteAgents),
    chart("Primary", "none", &[("max by (site) (textnlp_control_primary{SELECTOR})", "{{site}}")])
        .of(Shown::SiteAgents),
    chart("Sites in sync", "none", &[("max by (site) (textnlp_control_member{SELECTOR})", "{{site}}")])
        .of(Shown::SiteAgents),
    chart(
        "Sites where control data can be written",
        "none",
        &[("max by (site) (textnlp_control_writable{SELECTOR})", "{{site}}")],
    )
    .about("0 at every site: keys and limits cannot be changed.")
    .of(Shown::SiteAgents),
    chart("Data at risk", "s", &[("max by (site, data) (textnlp_rpo_seconds{SELECTOR})", "{{site}} {{data}}")])
        .about("What would be lost with this site's disk now.")
        .of(Shown::SiteAgents),
    chart(
        "Usage records that another site lacks",
        "none",
        &[("max by (site, peer) (textnlp_usage_unshipped_rows{SELECTOR})", "{{site}} to {{peer}}")],
    )
    .of(Shown::SiteAgents),
    chart(
        "Time since the witness answered",
        "s",
        &[("max by (site) (textnlp_control_witness_silent_seconds{SELECTOR})", "{{site}}")],
    )
    .of(Shown::SiteAgents),
    heading("Shared PostgreSQL").of(Shown::SharedDatabase),
    chart("Database servers that run", "none", &[("max by (site) (textnlp_database_ready{SELECTOR})", "{{site}}")])
        .of(Shown::SharedDatabase),
    chart("Sites whose database may lead", "none", &[("max by (site) (textnlp_database_fit{SELECTOR})", "{{site}}")])
        .of(Shown::SharedDatabase),
    heading("Witness").of(Shown::Witness),
    chart("Traffic weights", "none", &[("max by (site) (textnlp_site_weight{SELECTOR})", "{{site}}")])
        .of(Shown::Witness),
    chart(
        "Time since the primary reported",
        "s",
        &[("max(textnlp_witness_primary_silent_seconds{SELECTOR})", "primary")],
    )
    .of(Shown::Witness),
    chart("DNS records are current", "none", &[("min(textnlp_dns_current{SELECTOR})", "current")]).of(Shown::Dns),
    chart(
        "Failed DNS updates in an hour",
        "none",
        &[("sum(increase(textnlp_dns_update_failures_total{SELECTOR}[1h]))", "failures")],
    )
    .of(Shown::Dns),
];

/// The place of the next panel.
#[derive(Default)]
struct Cursor {
    x: u32,
    y: u32,
    /// The height of the panels beside it.
    height: u32,
}

impl Cursor {
    fn place(&mut self, form: Form) -> Value {
        let (width, height) = match form {
            Form::Stat => (6, 4),
            Form::Chart => (12, 8),
            Form::Heading => (COLUMNS, 1),
        };
        if self.x + width > COLUMNS {
            (self.x, self.y) = (0, self.y + self.height);
        }
        let place = json!({ "x": self.x, "y": self.y, "w": width, "h": height });
        self.x += width;
        self.height = height;
        place
    }
}

fn panel(watched: Watched<'_>, (index, panel): (usize, &Panel), cursor: &mut Cursor) -> Value {
    let place = cursor.place(panel.form);
    let id = index + 1;
    if panel.form == Form::Heading {
        return json!({ "id": id, "title": panel.title, "type": "row", "collapsed": false, "gridPos": place, "panels": [] });
    }
    let targets = panel.queries.iter().zip('A'..).map(|((query, legend), letter)| {
        json!({ "refId": letter, "expr": watched.filled(query), "legendFormat": watched.filled(legend) })
    });
    let mut shown = json!({
        "id": id,
        "title": panel.title,
        "type": if panel.form == Form::Stat { "stat" } else { "timeseries" },
        "description": panel.about,
        "datasource": { "type": "prometheus", "uid": "${datasource}" },
        "gridPos": place,
        "fieldConfig": { "defaults": { "unit": panel.unit, "min": 0 }, "overrides": [] },
        "targets": targets.collect::<Vec<_>>(),
    });
    if panel.form == Form::Chart {
        shown["options"] =
            json!({ "legend": { "displayMode": "list", "placement": "bottom" }, "tooltip": { "mode": "multi" } });
    }
    shown
}

/// The dashboard, in Grafana's JSON model.
pub fn dashboard(watched: Watched<'_>) -> Value {
    let mut cursor = Cursor::default();
    let panels = PANELS.iter().filter(|panel| watched.shows(panel.shown));
    let panels: Vec<Value> = panels.enumerate().map(|row| panel(watched, row, &mut cursor)).collect();
    json!({
        "title": watched.title(),
        "uid": watched.uid(),
        "schemaVersion": 39,
        "version": 1,
        "editable": true,
        "refresh": "30s",
        "tags": ["textnlp"],
        "time": { "from": "now-6h", "to": "now" },
        "timezone": "utc",
        "templating": {
            "list": [
                { "name": "datasource", "type": "datasource", "query": "prometheus", "label": "Source" },
                watched.variable(),
            ],
        },
        "panels": panels,
    })
}

/// The text of a dashboard, with an indent of one space as in clusters that have it: a config map is compared as text.
pub fn text(dashboard: &Value) -> String {
    let mut text = Vec::new();
    // Writing into memory cannot fail, and a document has text keys.
    let _ = dashboard.serialize(&mut Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b" ")));
    text.push(b'\n');
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machines(name: &str, all: bool) -> Machines {
        Machines {
            environment: EnvironmentName::new(name).unwrap(),
            servers: true,
            site_agents: all,
            shared_database: all,
            witness: all,
            dns: all,
        }
    }

    #[test]
    fn machines_have_every_panel_of_servers_by_their_own_selector() {
        let (one, many) = (machines("staging", false), machines("regions", true));
        let (pods, one, many) =
            (dashboard(Watched::Pods), dashboard(Watched::Machines(&one)), dashboard(Watched::Machines(&many)));
        let titles = |of: &Value| -> Vec<String> {
            let panels = of["panels"].as_array().unwrap();
            panels.iter().map(|panel| panel["title"].as_str().unwrap().to_owned()).collect()
        };
        let missing: Vec<String> =
            titles(&pods).into_iter().filter(|title| !titles(&one).contains(title) && title != "Restarts").collect();
        assert!(missing.is_empty() && !titles(&one).contains(&"Restarts".to_owned()), "{missing:?}");
        assert!(titles(&one).contains(&"Gateways".to_owned()) && !titles(&one).contains(&"Witness".to_owned()));
        assert_eq!(titles(&many).len(), PANELS.len() - 1);
        for (of, selector) in [(&pods, "{namespace="), (&one, "{job="), (&many, "{job=")] {
            for panel in of["panels"].as_array().unwrap() {
                for target in panel["targets"].as_array().into_iter().flatten() {
                    let query = target["expr"].as_str().unwrap();
                    assert!(query.contains(selector), "{query}");
                    assert!(!target.to_string().contains("SELECTOR") && !target.to_string().contains("REPLICA"));
                }
            }
        }
    }

    #[test]
    fn panels_do_not_overlap_and_ids_are_unique() {
        let all = machines("regions", true);
        for of in [dashboard(Watched::Pods), dashboard(Watched::Machines(&all))] {
            let (mut ids, mut cells) = (Vec::new(), std::collections::BTreeSet::new());
            for panel in of["panels"].as_array().unwrap() {
                ids.push(panel["id"].clone());
                let at = |field: &str| panel["gridPos"][field].as_u64().unwrap();
                for (x, y) in (0..at("w")).flat_map(|x| (0..at("h")).map(move |y| (x, y))) {
                    assert!(cells.insert((at("x") + x, at("y") + y)) && at("x") + x < 24, "{panel}");
                }
            }
            let unique: std::collections::BTreeSet<String> = ids.iter().map(Value::to_string).collect();
            assert_eq!(unique.len(), ids.len());
        }
    }

    #[test]
    fn unique_id_is_not_too_long_for_grafana() {
        for name in ["a".repeat(32), "a".repeat(33), "a".repeat(40)] {
            let uid = Watched::Machines(&machines(&name, false)).uid();
            assert!(uid.len() <= UID_MAX && uid.contains(&name), "{uid}");
        }
    }
}
