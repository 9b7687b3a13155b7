//! Gates: a phase is verified from outside before the next one starts.
//!
//! [`evaluate`] tests a running service as a client, with its own temporary keys. The result is open, wait or shut,
//! with every blocker by name. An unmeasurable requirement shuts the gate unless an operator waived it for a time. The
//! service is left unchanged: temporary keys are revoked in every case.

mod checks;
mod exemption;
mod keys;
mod limits;
pub mod phases;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::Timestamp;
use jiff::civil::Date;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_provider::Lineage;
use tokio_util::sync::CancellationToken;

pub use exemption::{EnteredPhase, EntryBasis, Exemption, MAX_WAIVER_DAYS, RecordedExemption, WaiverError, waiver};
pub use keys::{IssuedKey, KeyIssuer, KeyRequest};
pub use limits::{ChangedLimit, changed_limits};

pub(crate) use checks::encoders;

use crate::clock::Clock;
use crate::environment::model::{AdvisoryPolicy, Environment, Gates, Phase};
use crate::load::{self, Key, Load, Measured, Second, Wire};
use checks::Prober;
use keys::TemporaryKeys;
use phases::{CheckDefinition, CheckSource, GENERATION_RATE, METRICS, PhaseDefinition, Probe};

/// The verdict of a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "blockers", rename_all = "lowercase")]
pub enum Gate {
    /// Every requirement of the phase was measured and is met.
    Open,
    /// No requirement failed, but some were not measured yet.
    Wait(Vec<String>),
    /// A requirement failed or could not be measured.
    Shut(Vec<String>),
}

impl Gate {
    /// `open`, `wait`, `shut`.
    pub fn state(&self) -> &'static str {
        match self {
            Gate::Open => "open",
            Gate::Wait(_) => "wait",
            Gate::Shut(_) => "shut",
        }
    }

    /// The verdict as text: `is open`, `waits for measurements`, `is shut`.
    pub fn verdict(&self) -> &'static str {
        match self {
            Gate::Open => "is open",
            Gate::Wait(_) => "waits for measurements",
            Gate::Shut(_) => "is shut",
        }
    }

    /// The blockers.
    pub fn blockers(&self) -> &[String] {
        match self {
            Gate::Open => &[],
            Gate::Wait(blockers) | Gate::Shut(blockers) => blockers,
        }
    }

    /// Open if every check passed or is waived now; wait if checks are only pending; else shut.
    pub fn of(checks: &[Check], now: Timestamp) -> Self {
        let blockers: Vec<String> = checks.iter().filter(|c| c.blocks(now)).map(ToString::to_string).collect();
        match checks.iter().any(|c| c.blocks(now) && !c.waits) {
            true => Gate::Shut(blockers),
            false if blockers.is_empty() => Gate::Open,
            false => Gate::Wait(blockers),
        }
    }
}

/// A site that got no lease of the primary counts limits apart for a second.
const COUNTED_APART: Duration = Duration::from_secs(2);

/// The check of the error rate.
pub(crate) const SHARE_OF_ERRORS: &str = "share of errors";

/// The unit of a rate of tokens.
const TOKENS_PER_SECOND: &str = "tokens/s";

/// One check of a gate.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Its name.
    pub name: String,
    /// The measured value; null if there is none.
    pub measured: Value,
    /// The required value or the limit.
    pub limit: Value,
    /// Whether the limit is an upper bound.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub at_most: bool,
    /// The unit of both values.
    pub unit: String,
    /// Whether it passed.
    pub ok: bool,
    /// Whether it is only pending.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// Whether it is a warning that does not shut the gate.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub warning: bool,
    /// The last day of its waiver, which counts only while the check could not be measured.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waived_until: Option<Date>,
    /// The reason or a remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Check {
    /// A check with a measured value.
    pub fn new(name: &str, measured: impl Into<Value>, limit: impl Into<Value>, unit: &str, ok: bool) -> Self {
        let (measured, limit) = (measured.into(), limit.into());
        let (name, unit) = (name.to_owned(), unit.to_owned());
        let (at_most, waits, warning) = (false, false, false);
        Self { name, measured, limit, at_most, unit, ok, waits, warning, waived_until: None, note: None }
    }

    /// A check that could not be measured; it fails.
    pub fn unmeasured(name: &str, limit: impl Into<Value>, unit: &str, why: impl fmt::Display) -> Self {
        Self { note: Some(why.to_string()), ..Self::new(name, Value::Null, limit, unit, false) }
    }

    /// A pending check, with what it waits for.
    pub fn waiting(name: &str, limit: impl Into<Value>, unit: &str, why: impl fmt::Display) -> Self {
        Self { waits: true, ..Self::unmeasured(name, limit, unit, why) }
    }

    /// Makes the limit an upper bound.
    #[must_use]
    pub fn at_most(mut self) -> Self {
        self.at_most = true;
        self
    }

    /// The requirement as text: `at most 500 ms`.
    pub fn demand(&self) -> String {
        match &self.limit {
            limit if self.at_most => format!("at most {}", self.shown(limit)),
            limit => plain(limit),
        }
    }

    /// The requirement with the unit, for a table without the measured value beside it: `at most 500 ms`, `200 status`.
    pub fn demand_with_unit(&self) -> String {
        let demand = self.demand();
        if self.at_most || self.unit.is_empty() { demand } else { format!("{demand} {}", self.unit) }
    }

    /// A check that was not made: as the policy says.
    pub fn unchecked(
        name: &str,
        limit: impl Into<Value>,
        unit: &str,
        why: impl fmt::Display,
        policy: AdvisoryPolicy,
    ) -> Self {
        Self::new(name, "not checked", limit, unit, true).falls_short(why, policy)
    }

    /// Marks the check as not met: as the policy says. A check that failed stays failed.
    #[must_use]
    pub fn falls_short(mut self, why: impl fmt::Display, policy: AdvisoryPolicy) -> Self {
        match policy {
            AdvisoryPolicy::Warn => self.warning = true,
            AdvisoryPolicy::Wait => (self.ok, self.waits) = (false, self.ok),
            AdvisoryPolicy::Block => self.ok = false,
        }
        self.note = Some(self.note.map_or_else(|| why.to_string(), |note| format!("{why}; {note}")));
        self
    }

    /// Adds a note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

impl Check {
    /// Whether it did not pass because there is no measurement.
    pub fn is_unknown(&self) -> bool {
        !self.ok && (self.waits || self.measured.is_null())
    }

    /// Whether it is unknown, and a waiver counts.
    pub fn is_waived(&self, now: Timestamp) -> bool {
        self.is_unknown() && self.waived_until.is_some_and(|until| exemption::is_in_force(until, now))
    }

    /// Whether it keeps the gate from opening.
    pub fn blocks(&self, now: Timestamp) -> bool {
        !self.ok && !self.is_waived(now)
    }
}

impl Check {
    /// The unit of a measured value; text has none.
    fn unit_of(&self, measured: &Value) -> String {
        let has_unit = measured.is_number() && !self.unit.is_empty();
        if !has_unit { String::new() } else { format!(" {}", self.unit) }
    }

    /// A value in percent, if the check is about a share.
    fn percent(&self, value: &Value) -> Option<String> {
        let share = value.as_f64().filter(|_| self.name == SHARE_OF_ERRORS)?;
        Some(format!("{} %", (share * 10_000.0).round() / 100.0))
    }

    /// A value with its unit.
    fn shown(&self, value: &Value) -> String {
        self.percent(value).unwrap_or_else(|| plain(value) + &self.unit_of(value))
    }

    /// The measured value with its unit.
    pub fn measured_text(&self) -> String {
        self.shown(&self.measured)
    }
}

/// A value without its unit, as all reports of gates write it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "not measured".to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        other => other.to_string(),
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.name)?;
        match &self.measured {
            Value::Null if self.waits => write!(f, "not measured yet")?,
            Value::Null => write!(f, "could not be measured")?,
            measured => write!(f, "{}, wanted {}", self.shown(measured), self.demand())?,
        }
        if let Some(note) = &self.note {
            write!(f, " ({note})")?;
        }
        match self.waived_until {
            Some(until) => write!(f, "; waived until {until}"),
            None => Ok(()),
        }
    }
}

/// The result of a gate.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evidence {
    /// The phase of the gate.
    pub phase: Phase,
    /// The verdict.
    pub gate: Gate,
    /// Every check, in order.
    pub checks: Vec<Check>,
    /// Every exemption of the environment, also those that ended.
    pub exemptions: Vec<RecordedExemption>,
    /// Settings that differ from those of the environment that ships for the phase.
    pub changed_limits: Vec<ChangedLimit>,
    /// The load test, if it ran.
    pub load: Option<Measured>,
    /// A text that the service generated during the checks.
    pub sample: Option<String>,
    /// The tested address.
    pub address: String,
    /// When it started.
    pub at: Timestamp,
    /// The duration in seconds.
    pub seconds: f64,
}

/// The service under test and the inputs of a gate.
pub struct GateInputs<'a> {
    /// The address, for the report.
    pub address: &'a str,
    /// The deployment. It names the tenants of the gate, so that each gate uses the same ones.
    pub lineage: Lineage,
    /// The service as clients reach it.
    pub service: &'a dyn Wire,
    /// The metrics of all servers. Without them, the checks that need them cannot be measured, unless the check `metrics` is
    /// recorded.
    pub metrics: Option<&'a dyn Wire>,
    /// Issues temporary keys.
    pub keys: &'a dyn KeyIssuer,
    /// Checks of the release that ran elsewhere, such as the dependency audit. Those that the phase lacks are left out.
    pub recorded: Vec<Check>,
    /// Every exemption of the environment.
    pub exemptions: &'a [RecordedExemption],
    /// The clock.
    pub clock: &'a dyn Clock,
    /// Ends the gate early; it is shut then.
    pub stop: &'a CancellationToken,
}

/// The progress of a gate.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress<'a> {
    /// A check ended.
    Checked(&'a Check),
    /// A second of the load test ended.
    Load(&'a Second),
}

/// Evaluates the gate of an environment's phase.
pub async fn evaluate(
    environment: &Environment,
    outside: GateInputs<'_>,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Evidence {
    let (at, begun) = (outside.clock.now(), outside.clock.steady());
    let waivers = waivers(environment.phase, outside.exemptions, at);
    let mut found = GateResults { checks: Vec::new(), waivers, load: None, sample: None };
    let mut temporary_keys = TemporaryKeys::new(outside.keys);
    probe(environment, &outside, &mut temporary_keys, &mut found, tell).await;
    if let Some(check) = temporary_keys.give_back().await {
        found.add(check, tell);
    }
    if outside.stop.is_cancelled() {
        found.add(Check::unmeasured("whole gate", "all checks", "", "it was stopped"), tell);
    }
    Evidence {
        phase: environment.phase,
        gate: Gate::of(&found.checks, at),
        checks: found.checks,
        exemptions: outside.exemptions.to_vec(),
        changed_limits: changed_limits(environment),
        load: found.load,
        sample: found.sample,
        address: outside.address.to_owned(),
        at,
        seconds: outside.clock.steady().saturating_sub(begun).as_secs_f64(),
    }
}

/// The waived checks of a phase with the last day (UTC) of each.
pub fn waivers(phase: Phase, exemptions: &[RecordedExemption], now: Timestamp) -> BTreeMap<String, Date> {
    let definition = PhaseDefinition::of(phase);
    let mut waivers = BTreeMap::new();
    for recorded in exemptions.iter().filter(|recorded| recorded.phase == phase) {
        let Exemption::Waiver { check, until } = &recorded.exemption else { continue };
        let is_waivable = definition.check(check).is_some_and(|check| check.waivable);
        if is_waivable && exemption::is_in_force(*until, now) {
            let last = waivers.entry(check.clone()).or_insert(*until);
            *last = (*last).max(*until);
        }
    }
    waivers
}

struct GateResults {
    checks: Vec<Check>,
    waivers: BTreeMap<String, Date>,
    load: Option<Measured>,
    sample: Option<String>,
}

impl GateResults {
    fn add(&mut self, mut check: Check, tell: &mut (dyn FnMut(Progress<'_>) + Send)) -> bool {
        if check.is_unknown() {
            check.waived_until = self.waivers.get(&check.name).copied();
        }
        tell(Progress::Checked(&check));
        let ok = check.ok;
        self.checks.push(check);
        ok
    }
}

async fn probe(
    environment: &Environment,
    outside: &GateInputs<'_>,
    temporary_keys: &mut TemporaryKeys<'_>,
    found: &mut GateResults,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) {
    let definition = PhaseDefinition::of(environment.phase);
    let prober = Prober { wire: outside.service, environment, definition, stop: outside.stop };
    let mut probes = Probes { prober, outside, temporary_keys, found, tell, key: None, lacks_key: false, embeds: None };
    for check in definition.checks() {
        let CheckSource::Probe(probe) = check.source else { continue };
        let is_met = probes.measure(probe, check).await;
        // Without a healthy service, nothing else can be measured.
        if probe == Probe::Health && !is_met {
            return;
        }
    }
    let Probes { temporary_keys, found, tell, embeds, .. } = probes;
    for check in outside.recorded.iter().filter(|check| definition.check(&check.name).is_some()) {
        found.add(check.clone(), tell);
    }
    for check in definition.checks() {
        if let Some(check) = unmeasured(check, environment, found) {
            found.add(check, tell);
        }
    }
    checks::until_texts_are_measured(definition, environment, outside).await;
    let now = outside.clock.now();
    let failed = found.checks.iter().any(|check| check.blocks(now) && !check.waits);
    let has_load = definition.checks().any(|check| check.source == CheckSource::Load);
    // After a failed check, the results of a load test would mean nothing.
    if has_load && !failed && !outside.stop.is_cancelled() {
        under_load(environment, outside, embeds == Some(true), temporary_keys, found, tell).await;
    }
    if outside.stop.is_cancelled() {
        return;
    }
    for check in checks::gauges(definition, environment, outside).await {
        found.add(check, tell);
    }
}

/// A check of the table that the caller should have measured and did not.
fn unmeasured(check: &CheckDefinition, environment: &Environment, found: &GateResults) -> Option<Check> {
    let measured = |name: &str| found.checks.iter().find(|check| check.name == name);
    if measured(check.name).is_some() {
        return None;
    }
    match check.source {
        _ if !check.is_on(environment) => None,
        CheckSource::Record => Some(check.waiting(environment, format_args!("measured by {}", check.how))),
        CheckSource::With(name) if measured(name).is_some_and(|with| !with.measured.is_null()) => {
            Some(check.unknown(environment, format_args!("`{name}` was measured without it")))
        }
        CheckSource::With(name) => Some(check.waiting(environment, format_args!("measured with `{name}`"))),
        CheckSource::Probe(_) | CheckSource::Load | CheckSource::Gauge(_) | CheckSource::Perplexity => None,
    }
}

/// The probes of one gate.
struct Probes<'a, 'k> {
    prober: Prober<'a>,
    outside: &'a GateInputs<'a>,
    temporary_keys: &'a mut TemporaryKeys<'k>,
    found: &'a mut GateResults,
    tell: &'a mut (dyn FnMut(Progress<'_>) + Send),
    /// The temporary key, once a probe needed one.
    key: Option<Key>,
    /// Whether no key could be issued. It is not requested again.
    lacks_key: bool,
    /// Whether the default model makes embeddings, once the models were measured.
    embeds: Option<bool>,
}

impl Probes<'_, '_> {
    /// Measures one check of the table with requests. Whether it is met.
    async fn measure(&mut self, probe: Probe, check: &CheckDefinition) -> bool {
        const UNKNOWN_KEY: &str = "tnlp_00000000000000000000000000000000";
        let environment = self.prober.environment;
        let needs_key = match probe {
            Probe::ValidKey => true,
            Probe::Models => environment.server.security.api_keys_enabled && !environment.is_endpoint(),
            _ => false,
        };
        if needs_key && self.key.is_none() && !self.lacks_key {
            self.key = self.temporary_keys.key("gate", None, &mut *self.found, &mut *self.tell).await;
            self.lacks_key = self.key.is_none();
        }
        let measured = match (probe, self.key.as_ref()) {
            (Probe::Models | Probe::ValidKey, None) if needs_key => return false,
            (Probe::Models, key) => {
                if self.embeds.is_none() {
                    let embeds = inference(&self.prober, key, &mut *self.found, &mut *self.tell).await;
                    self.embeds = Some(embeds);
                }
                return true;
            }
            (Probe::ValidKey, key) => self.prober.accepted(check, key).await,
            (Probe::Health, _) => self.prober.status(check, "/health").await,
            (Probe::Readiness, _) => self.prober.status(check, "/ready").await,
            (Probe::Tls, _) => {
                let verified = self.outside.service.verified();
                check.measured(environment, verified, verified)
            }
            (Probe::NoKey, _) => self.prober.refused(check, None).await,
            (Probe::UnknownKey, _) => self.prober.refused(check, Some(UNKNOWN_KEY)).await,
            (Probe::RateLimit, _) => {
                let mut first: Option<Check> = None;
                loop {
                    let rate = Some(phases::RATE);
                    let key = self.temporary_keys.key("gate-limit", rate, &mut *self.found, &mut *self.tell).await;
                    let Some(key) = key else { return false };
                    let measured = self.prober.limited(check, &key).await;
                    match first.take() {
                        None if !measured.ok && environment.sites.len() > 1 => {
                            first = Some(measured);
                            self.outside.clock.sleep(COUNTED_APART).await;
                        }
                        None => break measured,
                        Some(first) => {
                            let again = format!("measured again: the first time {}", first.measured_text());
                            let note = match &measured.note {
                                Some(why) => format!("{why}; {again}"),
                                None => again,
                            };
                            break measured.note(note);
                        }
                    }
                }
            }
            (Probe::Tenants, _) => {
                let mut tenants = Vec::new();
                for which in ["a", "b"] {
                    // No tenant of the operator has this name.
                    let tenant = format!("gate-{which}-{}", self.outside.lineage.0.simple());
                    let (name, owner) = (tenant.clone(), Some(tenant.clone()));
                    let request = KeyRequest { name, requests_per_hour: None, tenant: owner };
                    match self.temporary_keys.issue(request, &mut *self.found, &mut *self.tell).await {
                        Some(key) => tenants.push((tenant, key)),
                        None => return false,
                    }
                }
                self.prober.isolated(check, &tenants, self.embeds != Some(true), self.outside.clock).await
            }
            (Probe::CustomModel, _) => {
                let mut models = environment.models.iter();
                let custom = models.find_map(|model| Some((model.tenant.clone()?, model.id())));
                let Some((owner, model)) = custom else {
                    let check = check.unknown(environment, "no model has a `tenant`: add one to `models`");
                    return self.found.add(check, &mut *self.tell);
                };
                let keys = &mut *self.temporary_keys;
                let request = |name: &str, tenant: String| KeyRequest {
                    name: name.to_owned(),
                    requests_per_hour: None,
                    tenant: Some(tenant),
                };
                let request_of_owner = request("gate-model", owner);
                let issued = keys.issue_to_operators_tenant(request_of_owner, &mut *self.found, &mut *self.tell).await;
                let Some(owner) = issued else { return false };
                let tenant = format!("gate-a-{}", self.outside.lineage.0.simple());
                let request_of_other = request("gate-model-of-another", tenant);
                let issued = keys.issue(request_of_other, &mut *self.found, &mut *self.tell).await;
                let Some(other) = issued else { return false };
                self.prober.custom_model(check, &model, &owner.key, &other.key).await
            }
            // In a cluster, the caller checks the metrics where the autoscaler reads them.
            (Probe::Metrics, _) if self.outside.recorded.iter().any(|check| check.name == METRICS) => return true,
            (Probe::Metrics, _) => self.prober.metrics(check, self.outside.metrics).await,
        };
        self.found.add(measured, &mut *self.tell)
    }
}

/// What models compute: a text of the default model, and a vector of each encoder. True if the default is an encoder,
/// which generates no text.
async fn inference(
    prober: &Prober<'_>,
    key: Option<&Key>,
    found: &mut GateResults,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) -> bool {
    let encoders = prober.encoders(key).await;
    let embeds = encoders.iter().any(|model| model.is_default);
    let (checks, sample) = if embeds { (Vec::new(), None) } else { prober.texts(key).await };
    found.sample = sample;
    for check in checks {
        found.add(check, tell);
    }
    for model in encoders {
        found.add(prober.embedding(key, &model.name).await, tell);
    }
    embeds
}

async fn under_load(
    environment: &Environment,
    outside: &GateInputs<'_>,
    embeds: bool,
    temporary_keys: &mut TemporaryKeys<'_>,
    found: &mut GateResults,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) {
    let Some(key) = temporary_keys.key("gate-load", None, found, tell).await else { return };
    let load = Load { embeds, ..Load::of(&environment.gates) };
    let measured = load::run(outside.service, Some(&key), &load, outside.clock, outside.stop, &mut |second| {
        tell(Progress::Load(second))
    })
    .await;
    for check in judge(&environment.gates, &measured) {
        found.add(check, tell);
    }
    found.load = Some(measured);
}

/// The check about the load test's latency.
pub(crate) const P95: &str = "p95 of the whole answer";

/// Compares a load test with the limits of a gate.
pub fn judge(gates: &Gates, measured: &Measured) -> Vec<Check> {
    let limit = Duration::from_millis(gates.p95_ms.into());
    let needed = measured.load.tokens_per_second_needed(limit);
    if measured.generate.count == 0 {
        let kinds: Vec<_> = measured.errors_by_kind.iter().map(|(kind, n)| format!("{n}× {kind}")).collect();
        let why = format!(
            "no generation succeeded: {}",
            if kinds.is_empty() { "none ended".to_owned() } else { kinds.join(", ") }
        );
        let latency = Check::unmeasured(P95, gates.p95_ms, "ms", why).at_most();
        return [latency].into_iter().chain(generation_rate(gates, measured)).collect();
    }
    let p95 = measured.generate.p95_ms;
    let rate = measured.error_rate();
    let tokens = format!(
        "{:.0} tokens/s needed to answer these users within the limit, {:.0} measured",
        needed, measured.tokens_per_second
    );
    let mut latency =
        Check::new(P95, rounded(p95), gates.p95_ms, "ms", p95 <= f64::from(gates.p95_ms)).at_most().note(tokens);
    if measured.stopped {
        latency.ok = false;
        latency.note = Some("the load test was stopped before its end".to_owned());
    }
    let mut errors = Check::new(
        SHARE_OF_ERRORS,
        json!((rate * 10_000.0).round() / 10_000.0),
        gates.error_rate,
        "",
        rate <= gates.error_rate,
    )
    .at_most();
    if measured.errors > 0 {
        let kinds: Vec<_> = measured.errors_by_kind.iter().map(|(kind, n)| format!("{n}× {kind}")).collect();
        errors = errors.note(kinds.join(", "));
    }
    [latency, errors].into_iter().chain(generation_rate(gates, measured)).collect()
}

/// The rate of generated tokens, if it has a limit. Users who think and wait do not show what a service can do above the
/// rate at which it meets the latency.
fn generation_rate(gates: &Gates, measured: &Measured) -> Option<Check> {
    let least = gates.tokens_per_second?;
    let limit = format!("at least {least}");
    let unmeasured = |why: String| Some(Check::unmeasured(GENERATION_RATE, limit.clone(), TOKENS_PER_SECOND, why));
    if measured.load.embeds {
        return unmeasured("the default model makes embeddings and generates no text".to_owned());
    }
    if measured.stopped {
        return unmeasured("the load test was stopped before its end".to_owned());
    }
    if measured.generate.count == 0 {
        return unmeasured("no generation succeeded".to_owned());
    }
    let needed = measured.load.tokens_per_second_needed(Duration::from_millis(gates.p95_ms.into()));
    let is_met = measured.tokens_per_second >= f64::from(least);
    if !is_met && needed < f64::from(least) {
        return unmeasured(format!("this load needs only {needed:.0} tokens/s: raise `gates.users`"));
    }
    // Rounded down, so that what is shown is not above the limit while the value is below it.
    let rate = (measured.tokens_per_second * 10.0).floor() / 10.0;
    Some(Check::new(GENERATION_RATE, rate, limit, TOKENS_PER_SECOND, is_met))
}

fn rounded(ms: f64) -> Value {
    json!((ms * 10.0).round() / 10.0)
}
