//! The phases as one table: what each needs, what an operator does and watches, what its gate checks and how, what it delivers,
//! and how it is rolled back.
//!
//! [`evaluate`](super::evaluate) takes the checks of a gate from this table. `phase show` and the guide print it.

mod indicators;
mod steps;
mod table;

use std::fmt;

use serde_json::{Value, json};
use textnlp_provider::Minimum;

use super::Check;
use crate::environment::model::Phase;
use crate::environment::{self, Environment};

pub use table::PHASES;

/// One phase.
#[derive(Debug, Clone, Copy)]
pub struct PhaseDefinition {
    /// The phase.
    pub phase: Phase,
    /// Its purpose.
    pub objective: &'static str,
    /// The planned length: the shortest and the longest count of weeks.
    pub weeks: (u8, u8),
    /// What its `up` needs before a release enters it.
    pub entry: PhaseEntry,
    /// What is needed beside the [minimum machine](Self::hardware).
    pub prerequisites: &'static [&'static str],
    /// What an operator does, in order.
    pub steps: &'static [Step],
    /// What to watch, in groups that several phases share.
    watched: &'static [&'static [Indicator]],
    /// The checks of its gate, in groups that several phases share.
    groups: &'static [&'static [CheckDefinition]],
    /// What it delivers.
    pub deliverables: &'static [&'static str],
    /// The commands that roll it back. `ENV` is the environment.
    pub rollback: &'static [&'static str],
}

impl PhaseDefinition {
    /// The definition of a phase.
    pub fn of(phase: Phase) -> &'static Self {
        let [first, ..] = &PHASES;
        PHASES.iter().find(|definition| definition.phase == phase).unwrap_or(first)
    }

    /// The checks of its gate, in the order of the report.
    pub fn checks(&self) -> impl Iterator<Item = &'static CheckDefinition> {
        self.groups.iter().copied().flatten()
    }

    /// What to watch, in order.
    pub fn indicators(&self) -> impl Iterator<Item = &'static Indicator> {
        self.watched.iter().copied().flatten()
    }

    /// The check with this name.
    pub fn check(&self, name: &str) -> Option<&'static CheckDefinition> {
        self.checks().find(|check| check.name == name)
    }

    /// The minimum machine: `16 cores, 32 GB of memory, 500 GB of disk`.
    pub fn hardware(&self) -> String {
        const GB: u64 = 1_000_000_000;
        let Minimum { cores, memory_bytes, disk_bytes, .. } = self.phase.minimum();
        format!("{cores} cores, {} GB of memory, {} GB of disk", memory_bytes / GB, disk_bytes / GB)
    }

    /// The planned length: `1 week`, `1 to 2 weeks`.
    pub fn length(&self) -> String {
        match self.weeks {
            (1, 1) => "1 week".to_owned(),
            (least, most) => format!("{least} to {most} weeks"),
        }
    }

    /// What it starts after, as text.
    pub fn starts_after(&self) -> String {
        match self.entry {
            PhaseEntry::Promotion { after } => format!(
                "`promote` of a release that passed the gate of phase {after}, measured at most {MAX_EVIDENCE_DAYS} days before"
            ),
            PhaseEntry::Free(why) => why.to_owned(),
        }
    }

    /// The phase whose gate a release passed before it enters this one. `None` if entry is free.
    pub fn after(&self) -> Option<Phase> {
        match self.entry {
            PhaseEntry::Promotion { after } => Some(after),
            PhaseEntry::Free(_) => None,
        }
    }

    /// Whether a release that passed the gate of this phase has passed that of `before`: the same phase, or one that this
    /// one starts after. Phases with free entry prove nothing of those before them.
    pub fn includes(&self, before: Phase) -> bool {
        self.phase == before || self.after().is_some_and(|after| Self::of(after).includes(before))
    }

    /// Whether `up` alone measures every check: none needs another command before.
    pub fn is_measured_by_up(&self) -> bool {
        !self.checks().any(|check| EARLIER.contains(&check.name))
    }
}

/// The checks that read what another command recorded: `probe`, `db failover`, `backup create`, `load`, `dr drill` or
/// `baseline`.
const EARLIER: [&str; 8] = [AVAILABILITY, FAILOVER, RESTORED, SESSIONS, GROWTH, RTO, SPEED_UP, REDUCTION];

/// The longest time in days between the measurement of a gate and the entry into the next phase.
pub const MAX_EVIDENCE_DAYS: i64 = 90;

/// A command of this program. `ENV` in it is the environment.
#[derive(Debug, Clone, Copy)]
pub struct OperatorCommand(&'static str);

impl OperatorCommand {
    /// The command line for an environment.
    pub fn line(&self, environment: &str) -> String {
        format!("textnlp-deploy {}", self.0.replace("ENV", environment))
    }
}

/// One step of a phase.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// What the operator runs.
    pub command: OperatorCommand,
    /// What to expect of it.
    pub expect: &'static str,
}

/// What an operator watches in a phase.
#[derive(Debug, Clone, Copy)]
pub struct Indicator {
    /// What it is about.
    pub name: &'static str,
    /// What shows it.
    pub source: IndicatorSource,
    /// The threshold.
    pub act_when: &'static str,
}

/// What shows an indicator.
#[derive(Debug, Clone, Copy)]
pub enum IndicatorSource {
    /// A command.
    Command(OperatorCommand),
    /// A metric of the service.
    Metric(&'static str),
    /// An alert, by its name.
    Alert(&'static str),
}

impl IndicatorSource {
    /// Its kind, and the command for an environment or the name.
    pub fn parts(&self, environment: &str) -> (&'static str, String) {
        match self {
            Self::Command(command) => ("command", command.line(environment)),
            Self::Metric(name) => ("metric", (*name).to_owned()),
            Self::Alert(name) => ("alert", (*name).to_owned()),
        }
    }

    /// As text: "metric `textnlp_queue_length`".
    pub fn text(&self, environment: &str) -> String {
        match self.parts(environment) {
            ("command", line) => format!("`{line}`"),
            (kind, name) => format!("{kind} `{name}`"),
        }
    }
}

/// What the `up` of a phase needs before a release enters it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PhaseEntry {
    /// Nothing, with the reason.
    Free(&'static str),
    /// The promotion of a release whose gate was open.
    Promotion {
        /// In this phase or one that starts after it.
        after: Phase,
    },
}

/// One check of a gate.
#[derive(Debug, Clone, Copy)]
pub struct CheckDefinition {
    /// Its name.
    pub name: &'static str,
    /// The required value or the limit.
    limit: Limit,
    /// The unit.
    unit: &'static str,
    /// Whether the limit is an upper bound.
    at_most: bool,
    /// What measures it.
    pub source: CheckSource,
    /// How it is measured.
    pub how: &'static str,
    /// Whether it can be waived while it cannot be measured. The others need nothing but the running service, or protect it.
    pub waivable: bool,
}

/// What measures a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckSource {
    /// Requests of the gate to the running service.
    Probe(Probe),
    /// The load test of the gate.
    Load,
    /// The status of the deployment, or evidence that another command stored.
    Record,
    /// The same measurement as the check with this name. Both wait for it, and each needs a waiver of its own.
    With(&'static str),
    /// A metric of the servers, read last: after the load test, where the gate has one.
    Gauge(Gauge),
    /// The perplexity of the texts that measure models, read with the gauges.
    Perplexity,
}

impl CheckSource {
    /// Whether the gate reads the metrics of the servers for it.
    pub fn reads_metrics(self) -> bool {
        matches!(self, Self::Probe(Probe::Metrics) | Self::Gauge(_) | Self::Perplexity)
    }
}

/// A metric of the servers, of which the highest value counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gauge {
    /// Its name.
    pub metric: &'static str,
    /// One unit of the check, in the unit of the metric.
    pub unit: u64,
}

/// Requests of the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// `/health`.
    Health,
    /// `/ready`.
    Readiness,
    /// The certificate.
    Tls,
    /// A generation without a key.
    NoKey,
    /// A generation with an unknown key.
    UnknownKey,
    /// A request with a valid key.
    ValidKey,
    /// What the models compute. All checks with this probe are measured together.
    Models,
    /// Requests above a rate limit.
    RateLimit,
    /// `/metrics`.
    Metrics,
    /// Requests of two tenants.
    Tenants,
    /// A text of a tenant's model, for its tenant and for another one.
    CustomModel,
}

/// A required value.
#[derive(Debug, Clone, Copy)]
enum Limit {
    Number(u64),
    Yes,
    Text(&'static str),
    /// A setting of the environment. Null turns the check off.
    Setting(&'static str, fn(&Environment) -> Value),
}

impl CheckDefinition {
    /// The required value in an environment.
    pub fn limit(&self, environment: &Environment) -> Value {
        match self.limit {
            Limit::Number(number) => json!(number),
            Limit::Yes => json!(true),
            Limit::Text(text) => json!(text),
            Limit::Setting(_, of) => of(environment),
        }
    }

    /// The setting that holds the limit, if there is one: `gates.p95_ms`.
    pub fn setting(&self) -> Option<&'static str> {
        match self.limit {
            Limit::Setting(path, _) => Some(path),
            _ => None,
        }
    }

    /// Whether the gate of an environment measures it: a setting without a value turns it off.
    pub fn is_on(&self, environment: &Environment) -> bool {
        !self.limit(environment).is_null()
    }

    /// The requirement as text: `at most 500 ms`.
    pub fn demand(&self, environment: &Environment) -> String {
        match self.is_on(environment) {
            true => self.unknown(environment, "").demand_with_unit(),
            false => "off".to_owned(),
        }
    }

    /// The check with its measured value.
    pub fn measured(&self, environment: &Environment, measured: impl Into<Value>, ok: bool) -> Check {
        let at_most = self.at_most;
        Check { at_most, ..Check::new(self.name, measured, self.limit(environment), self.unit, ok) }
    }

    /// The check, which could not be measured, with the reason.
    pub fn unknown(&self, environment: &Environment, why: impl fmt::Display) -> Check {
        Check { note: Some(why.to_string()), ..self.measured(environment, Value::Null, false) }
    }

    /// The check, which was not measured yet, with the reason.
    pub fn waiting(&self, environment: &Environment, why: impl fmt::Display) -> Check {
        Check { waits: true, ..self.unknown(environment, why) }
    }

    const fn of(name: &'static str, limit: Limit, unit: &'static str, source: CheckSource, how: &'static str) -> Self {
        let waivable = matches!(source, CheckSource::With(_));
        Self { name, limit, unit, at_most: false, source, how, waivable }
    }

    const fn at_most(self) -> Self {
        Self { at_most: true, ..self }
    }

    const fn waivable(self) -> Self {
        Self { waivable: true, ..self }
    }
}

/// A text of the default model.
pub(super) const GENERATION: &str = "generation";
/// The check of models that make embeddings, one for each model.
pub const EMBEDDINGS: &str = "embedding of MODEL";
/// The same request has the same text twice.
pub(super) const SEED: &str = "same seed, same text";
/// A text ends before its stop sequence.
pub(super) const STOP: &str = "stops where asked";
/// The metrics that dashboards and alerts need, or in a cluster those of the autoscaler.
pub const METRICS: &str = "metrics";
/// Advisories against the program and, for an installed site, its content.
pub const VULNERABILITIES: &str = "known vulnerabilities";
/// The lines of a full security audit.
pub const SECURITY_AUDIT: &str = "security audit";
/// The measured controls of all compliance reports.
pub const COMPLIANCE: &str = "compliance report";
/// The share of time and of requests that the service answered.
pub const AVAILABILITY: &str = "availability";
/// Acknowledged writes that a failover of the database lost.
pub const FAILOVER: &str = "database failover";
/// The newest backup, restored and compared.
pub const RESTORED: &str = "restored backup";
/// Concurrent sessions of a load test.
pub const SESSIONS: &str = "open sessions";
/// The latency in these sessions.
pub const ANSWERS: &str = "p95 of their answers";
/// The reaction time of the autoscaler, in seconds.
pub const GROWTH: &str = "more pods under load within";
/// The insights of the last hour.
pub const ANALYTICS: &str = "analytics";
/// Whether a token of the identity provider is accepted.
pub const SIGN_ON: &str = "single sign-on";
/// Sites whose database follows the primary.
pub const IN_SYNC: &str = "sites in sync";
/// The highest replication lag, in milliseconds.
pub const LAG: &str = "lag of the slowest site";
/// The witness of failovers.
pub const WITNESS: &str = "witness";
// What a drill measures has the same names in its report, in `dr drill` and in the gate.
/// The recovery time of the last drill, in seconds: the later of [`RTO_SERVICE`] and [`RTO_CONTROL`].
pub const RTO: &str = "RTO";
/// The time from the fault until no request failed any more.
pub const RTO_SERVICE: &str = "RTO, service";
/// The time from the fault until a write of control data was acknowledged.
pub const RTO_CONTROL: &str = "RTO, control data";
/// The data loss of the last drill, in seconds: the age of the oldest lost data.
pub const RPO: &str = "RPO";
/// Acknowledged writes that the last drill lost.
pub const LOST: &str = "acknowledged writes lost";
/// Answered requests whose usage the last drill lost.
pub const UNACCOUNTED: &str = "answers without usage";
/// The role that the database of the new primary has.
pub const DATABASE_ROLE: &str = "role of the database";
/// The failback of the last drill.
pub const HOME: &str = "failback";
/// The speed, compared with the recorded baseline.
pub const SPEED_UP: &str = "inference speed-up";
/// How many times as fast as the baseline it must be.
pub const MIN_SPEED_UP: f64 = 2.0;
/// The rate of generated tokens, in tokens per second.
pub const GENERATION_RATE: &str = "generation rate";
/// The longest time to load a model, in seconds.
pub const MODEL_LOAD: &str = "model load time";
/// The perplexity of the text of each model that has a limit for it.
pub const TEXT_QUALITY: &str = "text quality of models";
/// The most resident memory of a server, in GB.
pub const SERVER_MEMORY: &str = "memory of a server";
/// The cost, compared with the recorded baseline.
pub const REDUCTION: &str = "cost reduction";
/// By how many percent it must be below the baseline.
pub const MIN_REDUCTION: f64 = 30.0;
/// The bytes of an installed site.
pub const CONTENT: &str = "content as sealed";
/// Outgoing connections of an isolated site.
pub const ELSEWHERE: &str = "connections to elsewhere";

/// Requests per hour of the key that tests the rate limit.
pub(super) const RATE: u64 = 3;

/// The JSON Schema of an environment file, in which each phase tells what it starts after and what its gate checks.
pub fn schema() -> Value {
    let mut schema = environment::schema();
    let options = schema.pointer_mut("/$defs/Phase/oneOf").and_then(Value::as_array_mut);
    for option in options.into_iter().flatten() {
        let Some(definition) = PHASES.iter().find(|definition| option["const"] == definition.phase.as_str()) else {
            continue;
        };
        let Some(about) = option["description"].as_str() else { continue };
        let checks: Vec<String> = definition
            .checks()
            .map(|check| match check.setting() {
                Some(path) => format!("{} (`{path}`)", check.name),
                None => check.name.to_owned(),
            })
            .collect();
        option["description"] =
            json!(format!("{about}\nStarts after: {}.\nGate: {}.", definition.starts_after(), checks.join("; ")));
    }
    schema
}

/// The table of the guide: every phase with its steps, what to watch, and every check.
pub fn markdown(environment: impl Fn(Phase) -> Environment) -> String {
    let mut text = String::new();
    for definition in &PHASES {
        let PhaseDefinition { phase, objective, prerequisites, deliverables, rollback, .. } = definition;
        let of = environment(*phase);
        text += &format!("### {phase}\n\n{}.\n\n| | |\n|---|---|\n", sentence(objective));
        text += &format!("| planned length | {} |\n", definition.length());
        text += &format!("| starts after | {} |\n", definition.starts_after());
        text += &format!("| needs | {}; {} |\n", definition.hardware(), prerequisites.join("; "));
        text += &format!("| delivers | {} |\n| rollback | {} |\n", deliverables.join("; "), rollback.join("; "));
        text += "\n```sh\n";
        let name = of.environment.as_str();
        let steps: Vec<_> = definition.steps.iter().map(|step| (step.command.line(name), step.expect)).collect();
        let width = steps.iter().map(|(line, _)| line.len()).max().unwrap_or_default();
        for (line, expect) in steps {
            text += &format!("{line:<width$}  # {expect}\n");
        }
        text += "```\n\n| check | required | measured by |\n|---|---|---|\n";
        for check in definition.checks() {
            let setting = check.setting().map_or_else(String::new, |path| format!(" (`{path}`)"));
            let waived = if check.waivable { "; can be waived" } else { "" };
            text += &format!("| {} | {}{setting} | {}{waived} |\n", check.name, check.demand(&of), check.how);
        }
        text += "\n| watch | by | act when |\n|---|---|---|\n";
        for Indicator { name: about, source, act_when } in definition.indicators() {
            text += &format!("| {about} | {} | {act_when} |\n", source.text(name));
        }
        text.push('\n');
    }
    text
}

fn sentence(text: &str) -> String {
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
}
