//! The rows of the table.

use serde_json::{Value, json};

use super::super::checks::perplexity_limits;
use super::super::{P95, SHARE_OF_ERRORS};
use super::{
    ANALYTICS, ANSWERS, AVAILABILITY, COMPLIANCE, CONTENT, CheckDefinition, CheckSource, ELSEWHERE, EMBEDDINGS,
    FAILOVER, GENERATION, GENERATION_RATE, GROWTH, Gauge, HOME, IN_SYNC, LAG, LOST, Limit, METRICS, MODEL_LOAD,
    PhaseDefinition, PhaseEntry, Probe, RATE, REDUCTION, RESTORED, RPO, RTO, SECURITY_AUDIT, SEED, SERVER_MEMORY,
    SESSIONS, SIGN_ON, SPEED_UP, STOP, TEXT_QUALITY, VULNERABILITIES, WITNESS, indicators, steps,
};
use crate::environment::model::Phase;
use crate::metrics::{MEMORY, MODEL_LOAD_SECONDS};

const fn probe(
    name: &'static str,
    limit: Limit,
    unit: &'static str,
    probe: Probe,
    how: &'static str,
) -> CheckDefinition {
    CheckDefinition::of(name, limit, unit, CheckSource::Probe(probe), how)
}

const fn record(name: &'static str, limit: Limit, unit: &'static str, how: &'static str) -> CheckDefinition {
    CheckDefinition::of(name, limit, unit, CheckSource::Record, how)
}

const HEALTH: CheckDefinition = probe("health", Limit::Number(200), "status", Probe::Health, "`GET /health`");
const TEXT: CheckDefinition = probe(
    GENERATION,
    Limit::Text("at least 1"),
    "characters",
    Probe::Models,
    "one `POST /v1/generate`, unless the default model makes embeddings",
);
const VECTORS: CheckDefinition = probe(
    EMBEDDINGS,
    Limit::Text("at least 1"),
    "numbers",
    Probe::Models,
    "the same `POST /v1/embeddings` twice, for each model that makes embeddings",
);

const DEVELOPMENT: &[CheckDefinition] = &[HEALTH, TEXT, VECTORS];

const SERVICE: &[CheckDefinition] = &[
    HEALTH,
    probe("readiness", Limit::Number(200), "status", Probe::Readiness, "`GET /ready`"),
    probe("TLS verified", Limit::Yes, "", Probe::Tls, "the chain and the name of the certificate"),
    probe("refused without a key", Limit::Number(401), "status", Probe::NoKey, "a generation without a key"),
    probe(
        "refused with an unknown key",
        Limit::Number(401),
        "status",
        Probe::UnknownKey,
        "a generation with another key",
    ),
    probe(
        "accepted with a key",
        Limit::Number(200),
        "status",
        Probe::ValidKey,
        "`GET /v1/models` with a temporary key",
    ),
    TEXT,
    probe(SEED, Limit::Yes, "", Probe::Models, "the same generation again"),
    probe(STOP, Limit::Yes, "", Probe::Models, "the same generation with a word of its text as stop sequence"),
    VECTORS,
    probe(
        "rate limit limits",
        Limit::Number(RATE),
        "accepted",
        Probe::RateLimit,
        "a temporary key for 3 requests an hour is refused with 429 after them",
    ),
];

const AUDITED: CheckDefinition = record(
    VULNERABILITIES,
    Limit::Number(0),
    "found",
    "advisories against the dependencies, not older than `gates.advisories_max_age`",
);

const OBSERVED: &[CheckDefinition] = &[
    probe(
        METRICS,
        Limit::Text("exported"),
        "",
        Probe::Metrics,
        "each key metric in `GET /metrics`, in a cluster of all replicas",
    )
    .waivable(),
    AUDITED,
];

/// Bytes of a GB.
const GB: u64 = 1_000_000_000;

/// What servers measure of themselves.
const SERVERS: &[CheckDefinition] = &[
    CheckDefinition::of(
        MODEL_LOAD,
        Limit::Setting("gates.model_load_time", |e| json!(e.gates.model_load_time.map(|most| most.0.as_secs_f64()))),
        "s",
        CheckSource::Gauge(Gauge { metric: MODEL_LOAD_SECONDS, unit: 1 }),
        "the last load of each model, by the metrics of the servers; the longest counts",
    )
    .at_most()
    .waivable(),
    CheckDefinition::of(
        SERVER_MEMORY,
        Limit::Setting("gates.server_memory", |e| json!(e.gates.server_memory.map(|most| most.0 as f64 / GB as f64))),
        "GB",
        CheckSource::Gauge(Gauge { metric: MEMORY, unit: GB }),
        "the resident memory of each server at the end of the gate, after its load test if it has one; the highest counts",
    )
    .at_most()
    .waivable(),
    CheckDefinition::of(
        TEXT_QUALITY,
        Limit::Setting("models[].quality.max_perplexity", |e| {
            let limits: Vec<String> = perplexity_limits(e).map(|(model, most)| format!("{model} {most}")).collect();
            if limits.is_empty() { Value::Null } else { json!(limits.join(", ")) }
        }),
        "perplexity",
        CheckSource::Perplexity,
        "the perplexity of each model's `quality.text`, by the metrics of the servers; the highest of each model counts",
    )
    .at_most()
    .waivable(),
];

const TOKENS_PER_SECOND: Limit = Limit::Setting("gates.tokens_per_second", |e| {
    json!(e.gates.tokens_per_second.map(|least| format!("at least {least}")))
});

const LOADED: &[CheckDefinition] = &[
    CheckDefinition::of(
        P95,
        Limit::Setting("gates.p95_ms", |e| json!(e.gates.p95_ms)),
        "ms",
        CheckSource::Load,
        "a load test of `gates.users` clients for `gates.hold`",
    )
    .at_most(),
    CheckDefinition::of(
        SHARE_OF_ERRORS,
        Limit::Setting("gates.error_rate", |e| json!(e.gates.error_rate)),
        "",
        CheckSource::Load,
        "the same load test",
    )
    .at_most(),
    CheckDefinition::of(
        GENERATION_RATE,
        TOKENS_PER_SECOND,
        "tokens/s",
        CheckSource::Load,
        "the tokens of all answers of the same load test",
    )
    .waivable(),
];

const AVAILABLE: CheckDefinition = record(
    AVAILABILITY,
    Limit::Setting("gates.availability", |e| json!(format!("at least {}", e.gates.availability))),
    "share",
    "the record of `probe` over `gates.availability_window`, since the release was applied, and the usage records of that time: the lower share counts",
)
.waivable();

const PILOT: &[CheckDefinition] = &[
    AVAILABLE,
    record(
        FAILOVER,
        Limit::Number(0),
        "acknowledged writes lost",
        "the last `db failover` of the release, instances and PostgreSQL that run now, not older than 90 days",
    )
    .waivable(),
    record(
        RESTORED,
        Limit::Yes,
        "",
        "the newest backup, restored beside the service, in a cluster by its backup job since the last `up`: counts of rows, and on a machine signature and digests",
    )
    .waivable(),
];

const GROWN: &[CheckDefinition] = &[
    record(
        SESSIONS,
        Limit::Setting("gates.sessions", |e| json!(e.gates.sessions)),
        "",
        "`load --sessions` of this release, all open for `gates.hold`",
    )
    .waivable(),
    CheckDefinition::of(
        ANSWERS,
        Limit::Setting("gates.p95_ms", |e| json!(e.gates.p95_ms)),
        "ms",
        CheckSource::With(SESSIONS),
        "the same load test",
    )
    .at_most(),
    record(
        GROWTH,
        Limit::Setting("gates.scaling", |e| json!(e.gates.scaling.0.as_secs_f64())),
        "s",
        "the time until all pods that the autoscaler added under `load` were ready",
    )
    .at_most()
    .waivable(),
    record(METRICS, Limit::Text("read"), "", "the autoscaler reads every configured metric").waivable(),
    AUDITED,
];

const HARDENED: &[CheckDefinition] = &[
    record(SECURITY_AUDIT, Limit::Number(0), "failed lines", "`security audit --full`").waivable(),
    record(
        COMPLIANCE,
        Limit::Text("complete"),
        "",
        "the measured controls of `compliance report`, for each framework of `gates.compliance`",
    )
    .waivable(),
];

const TENANTS: &[CheckDefinition] = &[
    probe(
        "tenant isolation",
        Limit::Number(0),
        "requests answered",
        Probe::Tenants,
        "temporary keys of two tenants: requests that name the other tenant, its stream ticket, and the usage of each key; those of the owner must succeed",
    ),
    record(
        ANALYTICS,
        Limit::Text("at least 1"),
        "insight in the last hour",
        "the last run of usage analytics (`server.analytics`), at most 70 minutes ago, and the insights that it wrote",
    )
    .waivable(),
    probe(
        "custom model",
        Limit::Text("a text or a vector"),
        "",
        Probe::CustomModel,
        "one `POST /v1/generate`, or `/v1/embeddings` of an encoder, of the first model with a `tenant`, with a temporary key of that tenant; for a key of another tenant there is no such model",
    )
    .waivable(),
    record(
        SIGN_ON,
        Limit::Text("accepted"),
        "",
        "a request with a token that the identity provider (`server.security.oidc`) issues to `gates.sign_on_client`; the same with another signature is refused",
    )
    .waivable(),
];

const DRILLED: &[CheckDefinition] = &[
    record(IN_SYNC, Limit::Text("all"), "sites", "the status of each site agent"),
    record(
        LAG,
        Limit::Setting("replication.database.max_lag", |e| {
            json!(u64::try_from(e.replication.database.max_lag.0.as_millis()).unwrap_or(u64::MAX))
        }),
        "ms",
        "the status of each site agent",
    )
    .at_most(),
    record(WITNESS, Limit::Text("answers"), "", "the status of the witness"),
    record(
        RTO,
        Limit::Setting("dr.rto", |e| json!(e.dr.rto.0.as_secs_f64())),
        "s",
        "the last `dr drill` of the home site, not older than 90 days",
    )
    .at_most()
    .waivable(),
    CheckDefinition::of(
        RPO,
        Limit::Setting("dr.rpo", |e| json!(e.dr.rpo.0.as_secs_f64())),
        "s",
        CheckSource::With(RTO),
        "the same drill",
    )
    .at_most(),
    CheckDefinition::of(LOST, Limit::Number(0), "acknowledged writes", CheckSource::With(RTO), "the same drill"),
    CheckDefinition::of(HOME, Limit::Text("yes"), "", CheckSource::With(RTO), "the same drill"),
];

const SEALED: &[CheckDefinition] = &[
    record(CONTENT, Limit::Number(0), "altered files", "the digest of every installed file"),
    record(ELSEWHERE, Limit::Number(0), "connections", "the sockets of every process of the service"),
];

const IMPROVED: &[CheckDefinition] = &[
    record(
        SPEED_UP,
        Limit::Text("at least 2"),
        "times the baseline",
        "tokens per second of `baseline compare`, against those of `baseline record`",
    )
    .waivable(),
    record(GENERATION_RATE, TOKENS_PER_SECOND, "tokens/s", "tokens per second of `baseline compare`").waivable(),
    record(
        REDUCTION,
        Limit::Text("at least 30"),
        "% of the baseline",
        "the monthly cost of what is deployed, against that of `baseline record`",
    )
    .waivable(),
    AVAILABLE,
];

/// The way back of every release and of its data.
const RELEASE: &str = "`rollback --env ENV`, then `up --env ENV`";
const DATA: &str = "`restore BACKUP --env ENV --up`";
const REMOVE: &str = "`down --env ENV`; data stays until `--delete-data ENV`";

/// The phases, in order.
pub static PHASES: [PhaseDefinition; 8] = [
    PhaseDefinition {
        phase: Phase::Development,
        objective: "the service runs on one machine, for development",
        weeks: (1, 2),
        entry: PhaseEntry::Free("nothing: it is the first phase"),
        prerequisites: &["Linux"],
        steps: steps::DEVELOPMENT,
        watched: &[indicators::DEVELOPMENT],
        groups: &[DEVELOPMENT],
        deliverables: &[
            "a running service",
            "a text by HTTP and by `generate`",
            "`NAME.lock` with the digests of the release",
        ],
        rollback: &[REMOVE],
    },
    PhaseDefinition {
        phase: Phase::Staging,
        objective: "the release is reachable over HTTPS, needs keys and sustains a load test",
        weeks: (1, 1),
        entry: PhaseEntry::Free(
            "nothing: a new machine can start here, and `promote` brings the release of phase development",
        ),
        prerequisites: &["the ports of the service", "names for the certificate (`tls.names`)"],
        steps: steps::STAGING,
        watched: &[indicators::SERVICE, indicators::HOST],
        groups: &[SERVICE, OBSERVED, LOADED, SERVERS],
        deliverables: &[
            "TLS, API keys and rate limits",
            "a load test as an HTML report",
            "signed evidence for `promote`",
        ],
        rollback: &[RELEASE, REMOVE],
    },
    PhaseDefinition {
        phase: Phase::Pilot,
        objective: "the first users work with three replicas and a database that survives a failure",
        weeks: (1, 1),
        entry: PhaseEntry::Promotion { after: Phase::Staging },
        prerequisites: &[
            "a Kubernetes cluster with three nodes",
            "CloudNativePG and the Prometheus operator",
            "the server's image with its digest",
            "on-call contacts (`prerequisites.people`)",
        ],
        steps: steps::PILOT,
        watched: &[indicators::SERVICE, indicators::CLUSTER, indicators::PILOT],
        groups: &[SERVICE, OBSERVED, PILOT, SERVERS],
        deliverables: &[
            "three replicas",
            "a replicated database",
            "dashboards and alerts",
            "verified backups",
            "a runbook for disasters",
        ],
        rollback: &[RELEASE, DATA, REMOVE],
    },
    PhaseDefinition {
        phase: Phase::ScaleUp,
        objective: "the service grows with its load and is hardened",
        weeks: (1, 1),
        entry: PhaseEntry::Promotion { after: Phase::Pilot },
        prerequisites: &[
            "metrics-server, and request metrics for the autoscaler",
            "ingress-nginx with ModSecurity",
            "a machine for load tests with 10,000 connections",
        ],
        steps: steps::SCALE_UP,
        watched: &[indicators::SERVICE, indicators::CLUSTER, indicators::SCALE_UP],
        groups: &[SERVICE, GROWN, HARDENED, SERVERS],
        deliverables: &[
            "an autoscaler with measured reaction time",
            "a web application firewall",
            "network policies and restricted pods",
        ],
        rollback: &[RELEASE, "fixed replicas: remove `scaling.max`, then `up --env ENV`", DATA],
    },
    PhaseDefinition {
        phase: Phase::Enterprise,
        objective: "many tenants share the service",
        weeks: (1, 1),
        entry: PhaseEntry::Promotion { after: Phase::ScaleUp },
        prerequisites: &["an identity provider"],
        steps: steps::ENTERPRISE,
        watched: &[indicators::SERVICE, indicators::CLUSTER, indicators::ENTERPRISE],
        groups: &[SERVICE, OBSERVED, TENANTS, SERVERS],
        deliverables: &[
            "keys and records by tenant, separated by row-level security",
            "insights into the usage of each hour",
        ],
        rollback: &[RELEASE, DATA],
    },
    PhaseDefinition {
        phase: Phase::MultiRegion,
        objective: "the service survives a site failure",
        weeks: (1, 1),
        entry: PhaseEntry::Free(
            "nothing: drills on one machine need no earlier phase; `promote` brings a release of phase enterprise",
        ),
        prerequisites: &["two sites and a witness", "a DNS zone, or a machine for the global endpoint"],
        steps: steps::MULTI_REGION,
        watched: &[indicators::SERVICE, indicators::HOST, indicators::MULTI_REGION],
        groups: &[SERVICE, OBSERVED, DRILLED, SERVERS],
        deliverables: &[
            "replicated data and models",
            "traffic that follows healthy sites",
            "the signed report of a drill",
        ],
        rollback: &["`dr failback --env ENV`", RELEASE, DATA],
    },
    PhaseDefinition {
        phase: Phase::AirGapped,
        objective: "the service runs without a network to the outside",
        weeks: (1, 1),
        entry: PhaseEntry::Free("the signature of its bundle: an isolated machine has no earlier environment"),
        prerequisites: &["a bundle and its public key", "a way to bring files to the machine"],
        steps: steps::AIR_GAPPED,
        watched: &[indicators::SERVICE, indicators::HOST, indicators::AIR_GAPPED],
        groups: &[SERVICE, OBSERVED, SEALED, SERVERS],
        deliverables: &["a signed bundle", "an installed site", "updates from files", "a scan of the content"],
        rollback: &["`bundle update rollback`", DATA],
    },
    PhaseDefinition {
        phase: Phase::Optimized,
        objective: "the service is twice as fast and costs a third less",
        weeks: (1, 1),
        entry: PhaseEntry::Promotion { after: Phase::Enterprise },
        prerequisites: &["baselines of speed and cost"],
        steps: steps::OPTIMIZED,
        watched: &[indicators::SERVICE, indicators::CLUSTER, indicators::OPTIMIZED],
        groups: &[SERVICE, GROWN, IMPROVED, SERVERS],
        deliverables: &["quantized models", "spot capacity where it is available", "a gate with p95 of at most 200 ms"],
        rollback: &[RELEASE, DATA],
    },
];
