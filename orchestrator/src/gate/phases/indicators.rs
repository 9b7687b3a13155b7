//! What an operator watches in each phase.

use super::{Indicator, IndicatorSource, OperatorCommand};

const fn command(name: &'static str, command: &'static str, act_when: &'static str) -> Indicator {
    Indicator { name, source: IndicatorSource::Command(OperatorCommand(command)), act_when }
}

const fn metric(name: &'static str, metric: &'static str, act_when: &'static str) -> Indicator {
    Indicator { name, source: IndicatorSource::Metric(metric), act_when }
}

const fn alert(name: &'static str, alert: &'static str, act_when: &'static str) -> Indicator {
    Indicator { name, source: IndicatorSource::Alert(alert), act_when }
}

const BACKUPS: Indicator = command(
    "backups",
    "backup list --env ENV",
    "the newest is older than `backup.every` (1 day), or its result is `FAILED`",
);
const BACKUPS_OF_CLUSTER: Indicator =
    command("backups", "backup list --env ENV", "the newest is late, or there is none yet");
const AVAILABILITY: Indicator =
    command("availability", "probe --env ENV", "an outage; `gates.availability` is the least share of time");

pub(super) const DEVELOPMENT: &[Indicator] = &[
    command("resources", "status --env ENV", "not `ready`, or drift"),
    command("warnings", "logs --env ENV --level warn", "a line"),
    command("requests", "metrics summary --env ENV --period 10s", "errors above 0, or a queue that grows"),
];

/// Of every phase with the checks of a service.
pub(super) const SERVICE: &[Indicator] = &[
    command("health", "health check --env ENV", "a row with `✗`; its fix is after `→`"),
    command("errors", "logs errors --env ENV --since 1h", "an error; its likely cause is in its row"),
    command(
        "requests",
        "metrics summary --env ENV --period 1m",
        "errors above `gates.error_rate` (1 %), p95 above `gates.p95_ms`, or a queue that grows",
    ),
    command("active alerts", "alert list --env ENV", "an alert, unsent messages, or alerts that are unknown"),
];

/// On machines: the alerts of the supervisor.
pub(super) const HOST: &[Indicator] = &[
    alert("readiness", "ready", "no replica was ready for 5 minutes"),
    alert(
        "restarts",
        "restarts",
        "a program restarted more than `monitoring.alerts.restarts` (5) times within an hour",
    ),
    alert("certificate", "certificate", "it cannot be renewed, or expires"),
    alert("disk", "disk", "fuller than `monitoring.alerts.disk` (90 %)"),
    metric("replicas", "textnlp_gateway_backend_healthy", "0 for a replica"),
];

/// In clusters: the alerts of Prometheus.
pub(super) const CLUSTER: &[Indicator] = &[
    alert("readiness", "TextnlpNotReady", "no server was ready for 5 minutes"),
    alert(
        "latency",
        "TextnlpLatency",
        "p95 above `monitoring.alerts.latency` (1 s) for `monitoring.alerts.latency_for` (5 minutes)",
    ),
    alert(
        "server errors",
        "TextnlpErrors",
        "more than `monitoring.alerts.error_rate` (5 %) for `monitoring.alerts.error_rate_for` (10 minutes)",
    ),
    alert(
        "restarts",
        "TextnlpRestarts",
        "a pod restarted more than `monitoring.alerts.restarts` (5) times within an hour",
    ),
    BACKUPS_OF_CLUSTER,
];

pub(super) const PILOT: &[Indicator] =
    &[AVAILABILITY, command("dependencies", "deps --env ENV", "a line failed, such as that of the database")];

pub(super) const SCALE_UP: &[Indicator] = &[
    metric(
        "load of a pod",
        "http_requests_per_second",
        "near `scaling.requests_per_second` (1,000) with `scaling.max` pods",
    ),
    metric("waiting requests", "textnlp_queue_length", "it grows although pods are added"),
    alert("invalid keys", "TextnlpAuthentication", "more than 300 within 5 minutes"),
    alert(
        "memory",
        "TextnlpMemory",
        "a server uses more than `monitoring.alerts.memory` (80 %) of its limit for 15 minutes",
    ),
];

pub(super) const ENTERPRISE: &[Indicator] = &[
    command("failing tenants", "analytics list --env ENV --kind failures_rise", "a finding"),
    command("unusual load", "analytics list --env ENV --kind traffic_spike", "a finding about a tenant"),
    metric("analytics", "textnlp_analytics_last_run_seconds", "more than 70 minutes ago"),
];

pub(super) const MULTI_REGION: &[Indicator] = &[
    command("sites", "dr status --env ENV", "exit status 1, or a site that is not in sync"),
    alert("replication", "replication", "a site lags by more than `replication.database.max_lag` (5 s)"),
    metric("data at risk", "textnlp_rpo_seconds", "above `dr.rpo` (300 s)"),
    metric("traffic", "textnlp_site_weight", "0 for a site that should have traffic"),
    metric("DNS records", "textnlp_dns_current", "0, with `dns`"),
    BACKUPS,
];

pub(super) const AIR_GAPPED: &[Indicator] = &[
    command(
        "content and connections",
        "gate --env ENV --again",
        "`content as sealed` or `connections to elsewhere` is above 0",
    ),
    command(
        "advisories",
        "security audit --env ENV",
        "a line failed, or advisories older than `gates.advisories_max_age` (30 days)",
    ),
    BACKUPS,
];

pub(super) const OPTIMIZED: &[Indicator] = &[
    AVAILABILITY,
    metric("circuit breaker", "textnlp_breaker_open", "1 for a model"),
    command(
        "speed and cost",
        "baseline compare --env ENV",
        "less than 2 times the speed, or less than 30 % below the cost; it loads the service",
    ),
];
