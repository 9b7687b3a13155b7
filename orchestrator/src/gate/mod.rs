//! Gates: a stage is proven from outside before the next begins.
//!
//! [`evaluate`] asks a running service what any client could ask, with temporary keys of its own, and says Open, Wait or
//! Shut with every blocker by name. What cannot be measured is Shut. The service is left as it was found: temporary keys
//! are revoked whatever happens.

mod checks;
mod keys;

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

pub use keys::{IssuedKey, KeyIssuer, KeyRequest};

use crate::clock::Clock;
use crate::environment::model::{Environment, Gates, Phase};
use crate::load::{self, Load, Measured, Second, Wire};
use checks::Prober;
use keys::Lent;

/// The state of a gate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", content = "blockers", rename_all = "lowercase")]
pub enum Gate {
    /// Everything that the phase asks for was measured and is so.
    Open,
    /// Nothing is wrong; not enough was measured yet.
    Wait(Vec<String>),
    /// Something is not as it must be, or could not be measured.
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

    /// What stands in the way.
    pub fn blockers(&self) -> &[String] {
        match self {
            Gate::Open => &[],
            Gate::Wait(blockers) | Gate::Shut(blockers) => blockers,
        }
    }

    /// Open when every check is; where nothing is wrong and something is still to be measured, it waits.
    fn of(checks: &[Check]) -> Self {
        let blockers: Vec<String> = checks.iter().filter(|c| !c.ok).map(ToString::to_string).collect();
        match checks.iter().any(|c| !c.ok && !c.waits) {
            true => Gate::Shut(blockers),
            false if blockers.is_empty() => Gate::Open,
            false => Gate::Wait(blockers),
        }
    }
}

/// One thing that a gate measures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// What.
    pub name: String,
    /// What was measured; null when nothing could be.
    pub measured: Value,
    /// What it must be, or stay under.
    pub limit: Value,
    /// The unit of both.
    pub unit: String,
    /// Whether it is so.
    pub ok: bool,
    /// Whether it is only still to be measured.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub waits: bool,
    /// Why it is not, or what else there is to say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Check {
    /// A check.
    pub fn new(name: &str, measured: impl Into<Value>, limit: impl Into<Value>, unit: &str, ok: bool) -> Self {
        let (measured, limit) = (measured.into(), limit.into());
        Self { name: name.to_owned(), measured, limit, unit: unit.to_owned(), ok, waits: false, note: None }
    }

    /// A check that could not be made: it is not so.
    pub fn unmeasured(name: &str, limit: impl Into<Value>, unit: &str, why: impl fmt::Display) -> Self {
        Self { note: Some(why.to_string()), ..Self::new(name, Value::Null, limit, unit, false) }
    }

    /// A check for which something has to happen first.
    pub fn waiting(name: &str, limit: impl Into<Value>, unit: &str, why: impl fmt::Display) -> Self {
        Self { waits: true, ..Self::unmeasured(name, limit, unit, why) }
    }

    /// The same with a note.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.note = Some(note.into());
        self
    }
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        write!(f, "{}: ", self.name)?;
        match &self.measured {
            Value::Null if self.waits => write!(f, "not measured yet")?,
            Value::Null => write!(f, "could not be measured")?,
            measured => {
                let unit = if self.unit.is_empty() { String::new() } else { format!(" {}", self.unit) };
                write!(f, "{}{unit}, wanted {}", plain(measured), plain(&self.limit))?;
            }
        }
        match &self.note {
            Some(note) => write!(f, " ({note})"),
            None => Ok(()),
        }
    }
}

/// What a gate found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Evidence {
    /// The phase whose gate this is.
    pub phase: Phase,
    /// The gate.
    pub gate: Gate,
    /// Every check, in the order they were made.
    pub checks: Vec<Check>,
    /// The load test, when there was one.
    pub load: Option<Measured>,
    /// A text that the service wrote during the checks.
    pub sample: Option<String>,
    /// The address that was asked.
    pub address: String,
    /// When it began.
    pub at: jiff::Timestamp,
    /// How long it took, in seconds.
    pub seconds: f64,
}

/// Whom a gate asks, and with what.
pub struct Outside<'a> {
    /// The address, for the report.
    pub address: &'a str,
    /// The service, as clients reach it.
    pub service: &'a dyn Wire,
    /// The listener of `/metrics`; without it, and without a recorded check `metrics`, they cannot be measured.
    pub metrics: Option<&'a dyn Wire>,
    /// Who issues temporary keys.
    pub keys: &'a dyn KeyIssuer,
    /// Checks of the release that were made elsewhere: the audit of its dependencies, for one.
    pub recorded: Vec<Check>,
    /// Where time comes from.
    pub clock: &'a dyn Clock,
    /// Ends the gate early; it is Shut then.
    pub stop: &'a CancellationToken,
}

/// What a gate tells while it works.
#[derive(Debug, Clone, PartialEq)]
pub enum Progress<'a> {
    /// A check was made.
    Checked(&'a Check),
    /// A second of the load test passed.
    Load(&'a Second),
}

/// Evaluates the gate of an environment's phase.
pub async fn evaluate(
    environment: &Environment,
    outside: Outside<'_>,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) -> Evidence {
    let (at, begun) = (outside.clock.now(), outside.clock.steady());
    let mut found = Found { checks: Vec::new(), load: None, sample: None };
    let mut lent = Lent::new(outside.keys);
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

struct Found {
    checks: Vec<Check>,
    load: Option<Measured>,
    sample: Option<String>,
}

impl Found {
    fn add(&mut self, check: Check, tell: &mut (dyn FnMut(Progress<'_>) + Send)) -> bool {
        tell(Progress::Checked(&check));
        let ok = check.ok;
        self.checks.push(check);
        ok
    }
}

async fn probe(
    environment: &Environment,
    outside: &Outside<'_>,
    lent: &mut Lent<'_>,
    found: &mut Found,
    tell: &mut (dyn FnMut(Progress<'_>) + Send),
) {
    let security = &environment.server.security;
    let prober = Prober { wire: outside.service, header: &security.api_key_header, stop: outside.stop };
    let has_gate = [Phase::AirGapped, Phase::MultiRegion, Phase::ScaleUp].contains(&environment.phase);
    if environment.phase > Phase::Staging && !has_gate {
        // Their gates read live metrics over days; claiming to have measured that would be a lie.
        let why = format!("the gate of phase {} is not part of this version", environment.phase);
        found.add(Check::unmeasured("gate of the phase", "measured", "", why), tell);
        return;
    }
    // Nothing else can be measured of a service that is not there.
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
        // Each site counts for itself.
        let sites = environment.sites.iter().filter(|site| site.serves()).count() as u64;
        found.add(prober.limited(&key, SMALL, sites.max(1)).await, tell);
    }
    // In a cluster they are seen by whoever decides there how many pods there are.
    if !outside.recorded.iter().any(|check| check.name == checks::METRICS) {
        found.add(checks::metrics(outside.metrics).await, tell);
    }
    for check in &outside.recorded {
        found.add(check.clone(), tell);
    }
    // From pilot on nobody loads what others work with; and what fails a check would say nothing under load.
    if environment.phase <= Phase::Staging && found.checks.iter().all(|c| c.ok) && !outside.stop.is_cancelled() {
        under_load(environment, outside, lent, found, tell).await;
    }
}

async fn under_load(
    environment: &Environment,
    outside: &Outside<'_>,
    lent: &mut Lent<'_>,
    found: &mut Found,
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

/// The check that a load test is about.
pub(crate) const P95: &str = "p95 of the whole answer";

/// What a load test says about the limits of a gate.
pub fn judge(gates: &Gates, measured: &Measured) -> Vec<Check> {
    let limit = Duration::from_millis(gates.p95_ms.into());
    let needed = measured.load.tokens_per_second_needed(limit);
    if measured.generate.count == 0 {
        let kinds: Vec<_> = measured.errors_by_kind.iter().map(|(kind, n)| format!("{n}× {kind}")).collect();
        let why = format!(
            "no generation succeeded: {}",
            if kinds.is_empty() { "none ended".to_owned() } else { kinds.join(", ") }
        );
        return vec![Check::unmeasured(P95, gates.p95_ms, "ms", why)];
    }
    let p95 = measured.generate.p95_ms;
    let rate = measured.error_rate();
    let tokens = format!("{:.0} tokens/s needed for this load, {:.0} measured", needed, measured.tokens_per_second);
    let mut latency = Check::new(P95, rounded(p95), gates.p95_ms, "ms", p95 <= f64::from(gates.p95_ms)).note(tokens);
    if measured.stopped {
        latency.ok = false;
        latency.note = Some("the load test was stopped before its end".to_owned());
    }
    let mut errors = Check::new(
        "share of errors",
        json!((rate * 10_000.0).round() / 10_000.0),
        gates.error_rate,
        "",
        rate <= gates.error_rate,
    );
    if measured.errors > 0 {
        let kinds: Vec<_> = measured.errors_by_kind.iter().map(|(kind, n)| format!("{n}× {kind}")).collect();
        errors = errors.note(kinds.join(", "));
    }
    vec![latency, errors]
}

fn rounded(ms: f64) -> Value {
    json!((ms * 10.0).round() / 10.0)
}
