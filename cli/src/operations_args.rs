//! Arguments of the commands for operating a running environment: `logs`, `metrics`, `analytics`, `health`, `security`,
//! `compliance`, `cost`, `performance`, `baseline`, `cleanup`, `db`, `deps`, `probe`.

use camino::Utf8PathBuf;
use clap::{Args, Subcommand, ValueEnum};
use textnlp_orchestrator::environment::model::{Framework, Span};
use textnlp_orchestrator::monthly::{Dimension, Month};

/// A subcommand of `logs`.
#[derive(Debug, Subcommand)]
pub enum LogsCommand {
    /// Show the errors in the logs of all sites, equal ones together
    ///
    /// With count, first and last time, site and processes. Rotated logs on this machine are read, and the pods of
    /// sites in a cluster. Exits with status 1 when a log cannot be read.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy logs errors --env staging                 errors of the last hour\n  \
        textnlp-deploy logs errors --env pilot --since 1d        errors of the last day\n  \
        textnlp-deploy logs errors --env pilot --site here -o json")]
    Errors(LogErrors),
}

/// `logs errors`.
#[derive(Debug, Args)]
pub struct LogErrors {
    /// Errors since this date (UTC), time or duration before now: `1h`, `2026-11-01`
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = crate::args::since)]
    pub since: jiff::Timestamp,
}

/// See [`crate::args::Command::Metrics`].
#[derive(Debug, Subcommand)]
pub enum Metrics {
    /// Show requests, errors, latency, tokens, queue and memory over a period
    ///
    /// From the Prometheus of the cluster, else from two scrapes of the servers. Exits with status 1 when a site's
    /// metrics cannot be read.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy metrics summary --env pilot --period 24h     of the last day, where a Prometheus runs\n  \
        textnlp-deploy metrics summary --env staging --period 10s   of the next ten seconds, by two scrapes")]
    Summary(MetricsSummary),
    /// Print a Grafana dashboard of what the environment runs on machines
    ///
    /// Made from the environment file, with the panels of the dashboard that `monitoring.stack` creates in clusters, and
    /// those of gateways, site agents and the witness. The scrape job of Prometheus is `textnlp`.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy metrics dashboard --env staging                       to import in Grafana\n  \
        textnlp-deploy metrics dashboard --env staging --out dashboard.json")]
    Dashboard(MetricsDashboard),
}

/// `metrics summary`.
#[derive(Debug, Args)]
pub struct MetricsSummary {
    /// Length of the period: `24h` [default: 1h by Prometheus, 30s between two scrapes; above 15m by usage records]
    #[arg(long, value_name = "DURATION", value_parser = period)]
    pub period: Option<Span>,
}

/// `metrics dashboard`.
#[derive(Debug, Args)]
pub struct MetricsDashboard {
    /// Write to this file [default: stdout]
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
}

/// See [`crate::args::Command::Analytics`].
#[derive(Debug, Subcommand)]
pub enum Analytics {
    /// List insights, the newest hours first
    ///
    /// Summaries of the service, its tenants and their models, and findings against earlier hours: spikes and drops of traffic,
    /// more failures, higher latency, first use. `server.analytics` turns them on.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy analytics list --env enterprise                             of the last day\n  \
        textnlp-deploy analytics list --env enterprise --since 7d --kind traffic_spike\n  \
        textnlp-deploy analytics list --env enterprise --limit 1000 -o json")]
    List(AnalyticsList),
    /// Analyze the usage now, not only once an hour
    ///
    /// Complete hours that have insights stay as they are. The current hour is analyzed so far.
    Run,
}

/// `analytics list`.
#[derive(Debug, Args)]
pub struct AnalyticsList {
    /// Insights since this date (UTC), time or duration before now: `24h`, `2026-11-01`
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = crate::args::since)]
    pub since: jiff::Timestamp,
    /// Kind of insights, such as `summary` or `traffic_spike` [default: all]
    #[arg(long, value_name = "KIND")]
    pub kind: Option<String>,
    /// Number of insights of a site
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
}

/// A length of time of at least a second.
fn period(text: &str) -> Result<Span, String> {
    match crate::dr_args::span(text)? {
        span if span.0.as_secs() == 0 => Err("it must be at least 1s".to_owned()),
        span => Ok(span),
    }
}

/// See [`crate::args::Command::Probe`].
#[derive(Debug, Args)]
#[command(
    after_help = "Run it on a machine of your clients' network, with the state folder of the environment. Each result is kept for\n\
    32 days in the folder `availability` of the state. Another prober of the same environment is refused.\n\n\
    Examples:\n  \
    textnlp-deploy probe --env pilot                      until it is stopped\n  \
    textnlp-deploy probe --env pilot --for 24h            as long as the gate of pilot needs\n  \
    textnlp-deploy probe --env pilot --every 5s --for 1h -o jsonl"
)]
pub struct Probe {
    /// Time between two requests, from 1s to 60s
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = interval)]
    pub every: Span,
    /// Time after which it ends [default: when it is stopped]
    #[arg(long = "for", value_name = "DURATION", value_parser = period)]
    pub length: Option<Span>,
    /// API key of the requests [default: the environment's first key]
    #[arg(long, value_name = "KEY")]
    pub api_key: Option<String>,
}

fn interval(text: &str) -> Result<Span, String> {
    match crate::dr_args::span(text)? {
        span if !textnlp_service::availability::INTERVALS.contains(&span.0) => {
            Err("it must be from 1s to 60s".to_owned())
        }
        span => Ok(span),
    }
}

/// See [`crate::args::Command::Cost`].
#[derive(Debug, Subcommand)]
pub enum Cost {
    /// Show the monthly cost of what is deployed, and the cost of 1,000 tokens
    ///
    /// By the recorded list prices. What has no price is unknown, never zero. The cost of tokens is by the service's own
    /// usage records. With `server.prices` it also shows what tenants were charged, and the margin. With `--billed` it also
    /// shows what AWS, Azure and Google Cloud billed.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy cost report --env staging\n  \
        textnlp-deploy cost report --env pilot --breakdown service,region\n  \
        textnlp-deploy cost report --env pilot --month 2026-10 --billed\n  \
        textnlp-deploy cost report --env pilot --month 2026-11 --html cost.html")]
    Report(CostReport),
}

/// `cost report`.
#[derive(Debug, Args)]
pub struct CostReport {
    #[command(flatten)]
    pub monthly: MonthlyArgs,
    /// Sum by these, in this order: `service`, `region`, `site`
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "service,site")]
    pub breakdown: Vec<Dimension>,
    /// Also read what the providers billed; AWS charges USD 0.01 for it, BigQuery for the bytes that it reads
    #[arg(long)]
    pub billed: bool,
}

/// See [`crate::args::Command::Performance`].
#[derive(Debug, Subcommand)]
pub enum Performance {
    /// Show requests, errors, latency, tokens and availability of a month, by day
    ///
    /// By the service's own usage records. Days without records are shown as not recorded.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy performance report --env staging\n  \
        textnlp-deploy performance report --env pilot --month 2026-11 -o json\n  \
        textnlp-deploy performance report --env pilot --month 2026-11 --compare 2026-10\n  \
        textnlp-deploy performance report --env pilot --load load.json --models models.json --database database.json --pdf final.pdf\n  \
        textnlp-deploy performance report --env pilot --month 2026-11 --html november.html --pdf november.pdf")]
    Report(PerformanceReportArgs),
}

/// See [`Performance::Report`].
#[derive(Debug, Args)]
pub struct PerformanceReportArgs {
    #[command(flatten)]
    pub monthly: MonthlyArgs,
    /// Compare the month with another one (UTC)
    #[arg(long, value_name = "YYYY-MM")]
    pub compare: Option<Month>,
    /// Add the result of a load test, as `load -o json` printed it; may be repeated
    #[arg(long = "load", value_name = "FILE")]
    pub loads: Vec<Utf8PathBuf>,
    /// Add the result of a benchmark of models, as `model bench -o json` printed it; may be repeated
    #[arg(long, value_name = "FILE")]
    pub models: Vec<Utf8PathBuf>,
    /// Add the result of a database benchmark, as `db bench -o json` printed it
    #[arg(long, value_name = "FILE")]
    pub database: Option<Utf8PathBuf>,
}

/// The month and the page of a report.
#[derive(Debug, Args)]
pub struct MonthlyArgs {
    /// Month of the usage (UTC) [default: the current one]
    #[arg(long, value_name = "YYYY-MM")]
    pub month: Option<Month>,
    /// Write the page to this file [default: in the folder `reports` of the state]
    #[arg(long, value_name = "FILE")]
    pub html: Option<Utf8PathBuf>,
    /// Write a PDF to this file
    #[arg(long, value_name = "FILE")]
    pub pdf: Option<Utf8PathBuf>,
}

/// See [`crate::args::Command::Baseline`].
#[derive(Debug, Subcommand)]
pub enum Baseline {
    /// Record the cost and the speed of what runs now
    ///
    /// The speed is measured with a constant number of requests without pauses, which uses all of the service. `promote`
    /// copies the baseline to an environment that has none.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy baseline record --env enterprise\n  \
        textnlp-deploy baseline record --env enterprise --users 16 --seconds 60\n  \
        textnlp-deploy baseline record --env enterprise --only cost --replace")]
    Record(BaselineRecord),
    /// Measure the speed again in the same way, and compare it and the cost
    ///
    /// The gate of phase optimized reads the result.
    #[command(after_help = "Examples:\n  textnlp-deploy baseline compare --env optimized")]
    Compare,
    /// Show the recorded baseline
    #[command(after_help = "Examples:\n  textnlp-deploy baseline show --env optimized")]
    Show,
}

/// `baseline record`.
#[derive(Debug, Args)]
pub struct BaselineRecord {
    /// Requests at the same time
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub users: u32,
    /// Duration of the measurement in seconds
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub seconds: u64,
    /// Record only one of them
    #[arg(long, value_enum, value_name = "PART")]
    pub only: Option<BaselinePart>,
    /// Replace a recorded baseline
    #[arg(long)]
    pub replace: bool,
}

/// A part of a baseline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum BaselinePart {
    /// The monthly cost
    Cost,
    /// The speed under load
    Speed,
}

/// See [`crate::args::Command::Health`].
#[derive(Debug, Args)]
pub struct Health {
    #[command(subcommand)]
    pub command: Option<HealthCommand>,
}

/// A subcommand of `health`.
#[derive(Debug, Subcommand)]
pub enum HealthCommand {
    /// Check each component of each site
    ///
    /// Resources, certificates, the endpoint, the database, models, disk, backups and the last gate. Measures nothing and
    /// changes nothing. Exits with status 1 when a check fails.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy health check --env staging          show what is not healthy\n  \
        textnlp-deploy health check --env staging --all    show a line for every component")]
    Check(HealthCheck),
}

/// `health check`.
#[derive(Debug, Args)]
pub struct HealthCheck {
    /// Show healthy components too; JSON documents always have them
    #[arg(long)]
    pub all: bool,
}

/// See [`crate::args::Command::Security`].
#[derive(Debug, Subcommand)]
pub enum Security {
    /// Report access, certificates, keys, waivers, advisories, images, roles, open ports, backups and records
    ///
    /// Each line has its state (ok, warning, failed or unknown), the evidence and the command that fixes it. What cannot be
    /// measured is unknown, with the reason. Exits with status 1 when a line failed.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy security audit --env staging\n  \
        textnlp-deploy security audit --env staging --full --sarif audit.sarif\n  \
        textnlp-deploy security audit --env pilot -o json\n  \
        textnlp-deploy security audit --env pilot --advisories /srv/advisory-db")]
    Audit(SecurityAudit),
}

/// `security audit`.
#[derive(Debug, Args)]
pub struct SecurityAudit {
    /// Also send requests to the service: TLS versions, headers, requests without a valid key
    #[arg(long)]
    pub full: bool,
    /// Write the lines as SARIF 2.1.0 to this file, for code-scanning services
    #[arg(long, value_name = "FILE")]
    pub sarif: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub audit: crate::gate_args::AuditArgs,
}

/// See [`crate::args::Command::Compliance`].
#[derive(Debug, Subcommand)]
pub enum Compliance {
    /// Map the controls of a framework to evidence of the running environment
    ///
    /// Runs `security audit --full`. A control is met if every line of its evidence is ok. What cannot be measured is
    /// unknown, and the controls of your organization are listed as yours. Exits with status 1 unless every measured control
    /// is met. The report is no certificate.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy compliance report --env pilot --framework gdpr\n  \
        textnlp-deploy compliance report --env pilot --framework soc2 --format pdf --out soc2.pdf\n  \
        textnlp-deploy compliance report --env pilot --framework hipaa -o json")]
    Report(ComplianceReport),
}

/// `compliance report`.
#[derive(Debug, Args)]
pub struct ComplianceReport {
    /// The framework: `gdpr`, `hipaa` or `soc2`
    #[arg(long, value_parser = framework)]
    pub framework: Framework,
    /// The format of the file
    #[arg(long, value_enum, default_value_t = FileFormat::Html)]
    pub format: FileFormat,
    /// Write to this file [default: in the folder `reports` of the state]
    #[arg(long, value_name = "FILE")]
    pub out: Option<Utf8PathBuf>,
    #[command(flatten)]
    pub audit: crate::gate_args::AuditArgs,
}

fn framework(word: &str) -> Result<Framework, String> {
    let found = Framework::ALL.into_iter().find(|framework| framework.as_str() == word);
    found.ok_or_else(|| format!("the frameworks are {}", Framework::ALL.map(Framework::as_str).join(", ")))
}

/// See [`textnlp_service::report_files::ReportFormat`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum FileFormat {
    /// A page
    Html,
    /// A PDF
    Pdf,
}

/// See [`crate::args::Command::Cleanup`].
#[derive(Debug, Args)]
#[command(
    after_help = "Removes retained server programs that no rollback to the previous release needs, cached models that no release\n\
    needs, unfinished downloads, rotated logs, and support bundles in the working directory. Journals, evidence,\n\
    reports, secrets, data and backups stay; `backup prune` removes backups. States that `restore --replace` kept are\n\
    named with their size, and removed with --replaced-states ENV only.\n\n\
    Examples:\n  \
    textnlp-deploy cleanup --env staging --older-than 30d --dry-run    show the files\n  \
    textnlp-deploy cleanup --env staging --older-than 30d --yes        remove them"
)]
pub struct Cleanup {
    /// Keep what was used within this time; at least 1d
    #[arg(long, value_name = "DURATION", value_parser = old)]
    pub older_than: Span,
    /// Show the files only
    #[arg(long)]
    pub dry_run: bool,
    /// Remove the states that `restore --replace` kept, too; type the environment's name
    ///
    /// Such a state may have the only copy of data, and the keys of later backups.
    #[arg(long, value_name = "ENV")]
    pub replaced_states: Option<String>,
}

fn old(text: &str) -> Result<Span, String> {
    match crate::dr_args::span(text)? {
        span if span.0 < textnlp_service::cleanup::MIN_AGE => Err("it must be at least 1d".to_owned()),
        span => Ok(span),
    }
}

/// See [`crate::args::Command::Deps`].
#[derive(Debug, Args)]
pub struct Deps {
    #[command(subcommand)]
    pub command: Option<DepsCommand>,
}

/// A subcommand of `deps`.
#[derive(Debug, Subcommand)]
pub enum DepsCommand {
    /// Compare the versions that the release uses with newer ones and with advisories
    ///
    /// Programs, crates, images and models. Registries and the hub are asked. What cannot be asked is unknown, with the
    /// reason. Changes nothing.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy deps check-updates --env staging\n  \
        textnlp-deploy deps check-updates --env pilot --advisories /srv/advisory-db --exit-code\n  \
        textnlp-deploy deps check-updates --env pilot -o json")]
    CheckUpdates(CheckUpdates),
    /// Write newer versions into the environment file and the release lock, after an approval
    ///
    /// The next `up` deploys them. Names the command for what it does not change itself. Exits with status 1 while a
    /// version with a known vulnerability remains.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy deps update --env staging --security-only\n  \
        textnlp-deploy deps update --env staging --security-only --advisories /srv/advisory-db --yes\n  \
        textnlp-deploy deps update --env staging")]
    Update(DepsUpdate),
}

/// `deps check-updates`.
#[derive(Debug, Args)]
pub struct CheckUpdates {
    /// Exit with status 6 when a newer version is known, or a used one has a known vulnerability
    ///
    /// Otherwise with status 1 when a registry, the hub or the state did not answer.
    #[arg(long)]
    pub exit_code: bool,
    #[command(flatten)]
    pub audit: crate::gate_args::AuditArgs,
}

/// `deps update`.
#[derive(Debug, Args)]
pub struct DepsUpdate {
    /// Change only versions with a known vulnerability, to the first version without one
    #[arg(long)]
    pub security_only: bool,
    #[command(flatten)]
    pub audit: crate::gate_args::AuditArgs,
}

/// See [`crate::args::Command::Db`].
#[derive(Debug, Subcommand)]
#[command(
    after_help = "`vacuum` and `analyze` take at most 150 seconds each. They are refused while an `up`, a migration or a backup\n\
    works on the database.\n\n\
    Examples:\n  \
    textnlp-deploy db vacuum --env staging     reclaim the space of deleted rows\n  \
    textnlp-deploy db analyze --env staging    renew the statistics of the query planner\n  \
    textnlp-deploy db bench --env staging      measure transactions per second and their latency\n  \
    textnlp-deploy db failover --env pilot     fail the database over, and count acknowledged writes that are lost\n  \
    textnlp-deploy db promote --env production --region eu-west-1    use the replica there: the region of the site is lost"
)]
pub enum Db {
    /// Reclaim the space of deleted rows
    ///
    /// PostgreSQL goes on meanwhile. Changes in SQLite wait until the end, and a file above 512 MiB is refused.
    Vacuum,
    /// Renew the statistics of the query planner
    Analyze,
    /// Measure transactions per second and their latency
    ///
    /// A transaction is what the service does for one request: look up a key, take a request of its rate, reserve tokens,
    /// settle them. The service does the last two only for keys with token limits. Usage records are stored in batches. It
    /// works in tables of its own, which it removes; those of the service are not changed. Requests may become slower
    /// meanwhile. Ends after 1,000,000 transactions at the latest.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy db bench --env staging\n  \
        textnlp-deploy db bench --env pilot --clients 16 --duration 1m\n  \
        textnlp-deploy db bench --env pilot --clients 10 --transactions 1000\n  \
        textnlp-deploy db bench --env pilot --clients 16 --duration 1m -o json")]
    Bench(DbBench),
    /// Rehearse a failover of the database: kill its primary while rows are written
    ///
    /// Only for a PostgreSQL with replicas that the site runs itself, and for the managed one of AWS, Google Cloud and Azure,
    /// which its cloud fails over to the standby (`database.replicas`). The service cannot write until the database recovers.
    /// Counts acknowledged writes that are missing afterwards, and removes its rows. The gate of pilot reads the signed
    /// record. Exits with status 3 when a write is lost or the database does not recover.
    Failover,
    /// Promote the replica in another region, once the region of its source is lost
    ///
    /// Only for `database.replica_region` on AWS, Google Cloud and Azure. The replication ends for good, and what the source had
    /// not sent is lost. Refused while the source answers; one that does not may still run. Waits until the replica is a server
    /// of its own, and prints the environment that uses it. An interrupted promotion is finished by the same command, or by the
    /// next `up` or `down`; a finished one changes nothing.
    #[command(after_help = "Examples:\n  \
        textnlp-deploy db promote --env production --region eu-west-1\n  \
        textnlp-deploy db promote --env production --region eu-west-1 --yes -o json\n  \
        textnlp-deploy db promote --env production --region eu-west-1 --force-while-source-runs --reason INC-42")]
    Promote(DbPromote),
}

/// `db promote`.
#[derive(Debug, Args)]
pub struct DbPromote {
    /// Region of the replica: `database.replica_region` of the environment
    #[arg(long, value_name = "REGION")]
    pub region: String,
    /// Promote it while its source may still accept writes; needs --reason
    #[arg(long)]
    pub force_while_source_runs: bool,
}

/// `db bench`.
#[derive(Debug, Args)]
pub struct DbBench {
    /// Clients at the same time, 1 to 64; with PostgreSQL at most half of the free connections, less two
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub clients: u32,
    /// Duration of the measurement, from 1s to 10m
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = bench_duration)]
    pub duration: Span,
    /// Transactions of each client in place of a duration; all clients have at most 1,000,000, and 10 minutes
    #[arg(long, value_name = "N", conflicts_with = "duration", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    pub transactions: Option<u64>,
}

/// The longest benchmark of a database.
pub const BENCH_SECONDS_MAX: u64 = 600;

fn bench_duration(text: &str) -> Result<Span, String> {
    match crate::dr_args::span(text)? {
        span if !(1..=BENCH_SECONDS_MAX).contains(&span.as_seconds()) => Err("it must be from 1s to 10m".to_owned()),
        span => Ok(span),
    }
}
