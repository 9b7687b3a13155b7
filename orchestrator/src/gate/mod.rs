//! Gates: a phase is verified from outside before the next one starts.
//!
//! [`evaluate`] tests a running service as a client, with its own temporary keys. The result is open, wait or shut,
//! with every blocker by name. An unmeasurable requirement shuts the gate. The service is left unchanged: temporary
//! keys are revoked in every case.

mod checks;
mod keys;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use keys::{IssuedKey, KeyIssuer, KeyRequest};

use crate::clock::Clock;
use crate::environment::model::{AdvisoryPolicy, Environment, Gates, Phase};
use crate::load::{self, Load, Measured, Second, Wire};
use checks::Prober;
use keys::TemporaryKeys;

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

    /// Open if every check passed; wait if checks are only pending; else shut.
    pub fn of(checks: &[Check]) -> Self {
        let blockers: Vec<String> = checks.iter().filter(|c| !c.ok).map(ToString::to_string).collect();
        match checks.iter().any(|c| !c.ok && !c.waits) {
            true => Gate::Shut(blockers),
            false if blockers.is_empty() => Gate::Open,
            false => Gate::Wait(blockers),
        }
    }
}

/// The check of the error rate.
const SHARE_OF_ERRORS: &str = "share of errors";

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
    /// The reason or a remark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Check {
    /// A check with a measured value.
    pub fn new(name: &str, measured: impl Into<Value>, limit: impl Into<Value>, unit: &str, ok: bool) -> Self {
        let (measured, limit) = (measured.into(), limit.into());
        let (name, unit) = (name.to_owned(), unit.to_owned());
        Self { name, measured, limit, at_most: false, unit, ok, waits: false, warning: false, note: None }
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
            Value::String(limit) => limit.clone(),
            limit => limit.to_string(),
        }
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
    /// The unit of a measured value; text has none.
    fn unit_of(&self, measured: &Value) -> String {
        if self.unit.is_empty() || measured.is_string() { String::new() } else { format!(" {}", self.unit) }
    }

    /// A value in percent, if the check is about a share.
    pub fn percent(&self, value: &Value) -> Option<String> {
        let share = value.as_f64().filter(|_| self.name == SHARE_OF_ERRORS)?;
        Some(format!("{} %", (share * 10_000.0).round() / 100.0))
    }

    /// A value with its unit.
    fn shown(&self, value: &Value) -> String {
        let plain = || value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        self.percent(value).unwrap_or_else(|| plain() + &self.unit_of(value))
    }

    /// The measured value with its unit.
    pub fn measured_text(&self) -> String {
        if self.measured.is_null() { "not measured".to_owned() } else { self.shown(&self.measured) }
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
        match &self.note {
            Some(note) => write!(f, " ({note})"),
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
    /// The load test, if it ran.
    pub load: Option<Measured>,
    /// A text that the service generated during the checks.
    pub sample: Option<String>,
    /// The tested address.
    pub address: String,
    /// When it started.
    pub at: jiff::Timestamp,
    /// The duration in seconds.
    pub seconds: f64,
}

/// The service under test and the inputs of a gate.
pub struct GateInputs<'a> {
    /// The address, for the report.
    pub address: &'a str,
    /// The service as clients reach it.
    pub service: &'a dyn Wire,
    /// The listener of `/metrics`. Without it and without a recorded check `metrics`, that check cannot be measured.
    pub metrics: Option<&'a dyn Wire>,
    /// Issues temporary keys.
    pub keys: &'a dyn KeyIssuer,
    /// Checks of the release that ran elsewhere, such as the dependency audit.
    pub recorded: Vec<Check>,
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
    let mut found = GateResults { checks: Vec::new(), load: None, sample: None };
    let mut lent = TemporaryKeys::new(outside.keys);
    probe(environment, &outside, &mut lent, &mut found, tell).await;
    if let Err(left) = lent.give_back().await {
        let check = Check::new("temporary keys revoked", left.len(), 0, "keys left", false).note(left.join("; "));
        found.add(check, tell);
    }
    if outside.stop.is_cancelled() {
        found.add(Check::unmeasured("whole gate", "all checks", "", "it was stopped"), tell);
    }
    Evidence {
        phase: environment.phase,
        gate: Gate::of(&found.checks),
        checks: found.checks,
        load: found.load,
        sample: found.sample,
        address: outside.address.to_owned(),
        at,
        seconds: outside.clock.steady().saturating_sub(begun).as_secs_f64(),
    }
}

struct GateResults {
    checks: Vec<Check>,
    load: Option<Measured>,
    sample: Option<String>,
}

impl GateResults {
    fn add(&mut self, check: Check, tell: &mut (dyn FnMut(Progress<'_>) + Send)) -> bool {
        tell(Progress::Checked(&check));
        let ok = check.ok;
        self.checks.push(check);
        ok
    }
}

async fn probe(
    environment: &Environment,
    outside: &GateInputs<'_>,
    lent: &mut TemporaryKeys<'_>,
    found: &mut GateResults,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) {
    let security = &environment.server.security;
    let prober = Prober { wire: outside.service, header: &security.api_key_header, stop: outside.stop };
    if !environment.phase.has_gate() {
        let why = format!("the gate of phase {} is not part of this version", environment.phase);
        found.add(Check::unmeasured("gate of the phase", "measured", "", why), tell);
        return;
    }
    // Without a healthy service, nothing else can be measured.
    if !found.add(prober.status("health", "/health", 200).await, tell) {
        return;
    }
    if environment.phase == Phase::Development {
        let key = if security.api_keys_enabled { lent.key("gate", None, found, tell).await } else { None };
        if security.api_keys_enabled && key.is_none() {
            return;
        }
        let (checks, sample) = prober.one_generation(key.as_ref()).await;
        found.sample = sample;
        for check in checks {
            found.add(check, tell);
        }
        return;
    }
    found.add(prober.status("readiness", "/ready", 200).await, tell);
    let verified = outside.service.verified();
    found.add(Check::new("TLS verified", verified, true, "", verified), tell);
    found.add(prober.refused("refused without a key", None).await, tell);
    found.add(prober.refused("refused with an unknown key", Some("tnlp_00000000000000000000000000000000")).await, tell);
    if let Some(key) = lent.key("gate", None, found, tell).await {
        found.add(prober.accepted(&key).await, tell);
        let (checks, sample) = prober.sense(&key).await;
        found.sample = sample;
        for check in checks {
            found.add(check, tell);
        }
    }
    const SMALL: u64 = 3;
    if let Some(key) = lent.key("gate-limit", Some(SMALL), found, tell).await {
        found.add(prober.limited(&key, SMALL).await, tell);
    }
    // In a cluster, the caller checks the metrics where the autoscaler reads them.
    if !outside.recorded.iter().any(|check| check.name == checks::METRICS) {
        found.add(checks::metrics(outside.metrics).await, tell);
    }
    for check in &outside.recorded {
        found.add(check.clone(), tell);
    }
    // From the pilot phase on, a load test would disturb users. After a failed check, its results would mean nothing.
    let failed = found.checks.iter().any(|check| !check.ok && !check.waits);
    if environment.phase <= Phase::Staging && !failed && !outside.stop.is_cancelled() {
        under_load(environment, outside, lent, found, tell).await;
    }
}

async fn under_load(
    environment: &Environment,
    outside: &GateInputs<'_>,
    lent: &mut TemporaryKeys<'_>,
    found: &mut GateResults,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) {
    let Some(key) = lent.key("gate-load", None, found, tell).await else { return };
    let load = Load::of(&environment.gates);
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
        return vec![Check::unmeasured(P95, gates.p95_ms, "ms", why).at_most()];
    }
    let p95 = measured.generate.p95_ms;
    let rate = measured.error_rate();
    let tokens = format!("{:.0} tokens/s needed for this load, {:.0} measured", needed, measured.tokens_per_second);
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
    vec![latency, errors]
}

fn rounded(ms: f64) -> Value {
    json!((ms * 10.0).round() / 10.0)
}
