//! The recorded baseline of cost and speed, with which phase optimized is compared.
//!
//! It is a file that the environment's report key signs. It is of no release: later ones are compared with it. `promote`
//! copies it to an environment that has none.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::environment::model::Phase;
use textnlp_orchestrator::gate::Check;
use textnlp_orchestrator::gate::phases::{
    CheckDefinition, GENERATION_RATE, MIN_REDUCTION, MIN_SPEED_UP, PhaseDefinition, REDUCTION, SPEED_UP,
};
use textnlp_orchestrator::load::{self, HttpWire, Load, Measured};
use textnlp_orchestrator::plan::{Cost, amount};
use textnlp_orchestrator::state::State;
use textnlp_provider::units::counted;
use textnlp_provider::{EnvironmentName, Lineage, SiteName};
use tokio_util::sync::CancellationToken;

use crate::gate::{self, read_signed, release_of, sha256, write_signed};
use crate::keys::Admin;
use crate::{ChosenEnvironment, Deployment, Exit, Failure, Progress, RunningEnvironment};

/// Tokens of each measured answer, unless the server allows fewer.
const TOKENS: u32 = 100;

/// The baseline of an environment, and what was compared with it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// The monthly cost.
    pub cost: Option<RecordedCost>,
    /// The speed.
    pub speed: Option<RecordedSpeed>,
    /// The newest speed that was measured in the same way.
    pub compared: Option<RecordedSpeed>,
}

/// Where and when something was recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Origin {
    /// The environment.
    pub environment: EnvironmentName,
    /// Its phase.
    pub phase: Phase,
    /// The deployment.
    pub lineage: Lineage,
    /// The digest of its release and settings.
    pub release: String,
    /// When.
    pub at: Timestamp,
}

/// A monthly cost.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedCost {
    /// Of what.
    #[serde(flatten)]
    pub origin: Origin,
    /// The sum of the known amounts, in millionths.
    pub known_micros: u64,
    /// The amounts that are not known: each service with the reason.
    pub unknown: BTreeSet<String>,
    /// The currency.
    pub currency: String,
    /// The known amounts by service, in millionths.
    pub services: BTreeMap<String, u64>,
}

/// The speed under a constant number of requests without pauses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RecordedSpeed {
    /// Of what.
    #[serde(flatten)]
    pub origin: Origin,
    /// Requests at the same time.
    pub users: u32,
    /// The duration.
    pub seconds: u64,
    /// Tokens of each answer.
    pub tokens: u32,
    /// Generated tokens per second, of all requests together.
    pub tokens_per_second: f64,
    /// The median latency of an answer in milliseconds.
    pub p50_ms: f64,
    /// The 95th percentile.
    pub p95_ms: f64,
    /// The 99th percentile.
    pub p99_ms: f64,
    /// Requests.
    pub requests: u64,
    /// Those that failed.
    pub errors: u64,
    /// The machine that sent the requests.
    pub client: String,
}

/// How a speed is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpeedTest {
    /// Requests at the same time.
    pub users: u32,
    /// The duration.
    pub seconds: u64,
    /// Tokens of each answer.
    pub tokens: u32,
}

impl SpeedTest {
    /// With as many tokens in an answer as the server allows, up to [`TOKENS`].
    pub fn new(users: u32, seconds: u64, environment: &Environment) -> Self {
        Self { users, seconds, tokens: TOKENS.min(environment.server.api.max_tokens) }
    }

    /// The same test as an earlier one.
    pub fn of(recorded: &RecordedSpeed) -> Self {
        let RecordedSpeed { users, seconds, tokens, .. } = *recorded;
        Self { users, seconds, tokens }
    }

    fn load(self) -> Load {
        Load {
            users: self.users,
            // All at once, and always one more request: the service is never idle.
            ramp: self.users,
            think_min: Duration::ZERO,
            think_max: Duration::ZERO,
            hold: Duration::from_secs(self.seconds),
            tokens_min: self.tokens,
            tokens_max: self.tokens,
            validate_share: 0.0,
            model: None,
            embeds: false,
            mix: None,
            timeout: Duration::from_secs(60),
            seed: 1,
        }
    }
}

impl Baseline {
    /// Reads the baseline of a state folder, if this environment signed it. Else why it is not used.
    pub fn read(folder: &Utf8Path) -> Result<Self, String> {
        Ok(read_signed(folder, &file(folder), what)?.unwrap_or_default())
    }

    /// Writes and signs it.
    pub fn write(&self, folder: &Utf8Path) -> anyhow::Result<()> {
        let bytes = serde_json::to_vec_pretty(self)?;
        write_signed(folder, &file(folder), &bytes, &what(&bytes))
    }

    fn is_empty(&self) -> bool {
        self.cost.is_none() && self.speed.is_none()
    }
}

fn file(folder: &Utf8Path) -> Utf8PathBuf {
    folder.join("evidence").join("baseline.json")
}

/// What the signature of these bytes says.
fn what(bytes: &[u8]) -> String {
    format!("textnlp baseline, sha256 {}", sha256(bytes))
}

/// Copies the baseline of `source` to the state folder `target`, if that has none. Returns whether it was copied, or
/// why not.
pub(crate) fn carry(source: &Utf8Path, target: &Utf8Path) -> Result<bool, String> {
    let found = Baseline::read(source)?;
    if found.is_empty() || !Baseline::read(target)?.is_empty() {
        return Ok(false);
    }
    // What was compared is of a deployment of the source.
    let carried = Baseline { compared: None, ..found };
    carried.write(target).map_err(|error| format!("the baseline could not be written: {error:#}"))?;
    Ok(true)
}

/// The origin of a measurement now.
pub fn origin(chosen: &ChosenEnvironment, lineage: Lineage) -> Result<Origin, Failure> {
    Ok(Origin {
        environment: chosen.scope.name.clone(),
        phase: chosen.loaded.environment.phase,
        lineage,
        release: release_of(chosen)?,
        at: SystemClock.now(),
    })
}

/// The monthly cost of what the state records.
pub fn recorded_cost(deployment: &Deployment, state: &State) -> Result<Cost, Failure> {
    let budget = &deployment.chosen.loaded.environment.budget;
    Cost::recorded(&deployment.sites, state, budget).map_err(|error| deployment.failed(error))
}

/// What can be compared of a cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparable {
    known_micros: u64,
    unknown: BTreeSet<String>,
    currency: String,
    services: BTreeMap<String, u64>,
}

impl Comparable {
    /// With the origin, as it is recorded.
    pub fn record(self, origin: Origin) -> RecordedCost {
        let Self { known_micros, unknown, currency, services } = self;
        RecordedCost { origin, known_micros, unknown, currency, services }
    }
}

/// A site with recorded resources whose cost is not included: another one was selected, or it is not in the file.
pub fn left_out(deployment: &Deployment, state: &State) -> Result<Option<SiteName>, Failure> {
    for site in state.sites() {
        let holdings = state.holdings(site).map_err(|error| deployment.failed(error))?;
        if !holdings.is_empty() && !deployment.sites.contains_key(site) {
            return Ok(Some(site.clone()));
        }
    }
    Ok(None)
}

/// The cost, if it is that of everything that is recorded, on machines with a price. Else why not.
pub fn whole(deployment: &Deployment, state: &State, cost: &Cost) -> Result<Result<Comparable, String>, Failure> {
    Ok(match left_out(deployment, state)? {
        Some(site) => Err(format!("the cost of site {site} is not included")),
        None => comparable(cost),
    })
}

fn comparable(cost: &Cost) -> Result<Comparable, String> {
    if let Some(site) = cost.unpriced_hosts().first() {
        let set = format!("set `budget.machines.{site}`");
        return Err(format!("the machines of site {site}, or the nodes of its cluster, are not priced: {set}"));
    }
    if cost.known_micros == 0 {
        return Err("nothing that is deployed has a price".to_owned());
    }
    let services = cost.services().into_iter().map(|(name, service)| (name.to_owned(), service.known_micros));
    Ok(Comparable {
        known_micros: cost.known_micros,
        unknown: cost.unknown_reasons().into_keys().collect(),
        currency: cost.currency.clone(),
        services: services.collect(),
    })
}

/// By how many percent the cost is below the baseline, rounded down, and what was compared. What is not known must not
/// have been known before, and what is known now must not count against a baseline that lacks it.
pub fn reduction(before: &RecordedCost, now: &Comparable) -> Result<(f64, String), String> {
    if before.currency != now.currency {
        return Err(format!("the baseline is in {}, and `budget.currency` is {}", before.currency, now.currency));
    }
    if let Some(new) = now.unknown.difference(&before.unknown).next() {
        return Err(format!("an amount is not known that the baseline does not lack: {new}"));
    }
    // What was removed is in neither sum, and its service does not cost more.
    let is_known_now = |lacked: &&String| {
        let service = lacked.split_once(": ").map_or(lacked.as_str(), |(service, _)| service);
        now.services.get(service) > before.services.get(service)
    };
    if let Some(old) = before.unknown.difference(&now.unknown).find(is_known_now) {
        return Err(format!("an amount was not known in the baseline, record it again: {old}"));
    }
    if before.known_micros == 0 {
        return Err("the baseline has no known amount".to_owned());
    }
    let saved = (i128::from(before.known_micros) - i128::from(now.known_micros)) * 1000;
    let tenths = saved.div_euclid(i128::from(before.known_micros));
    let (known, of) = (amount(now.known_micros), amount(before.known_micros));
    let Origin { environment, at, .. } = &before.origin;
    let mut note =
        format!("{known:.2} {} a month; {of:.2} in {environment} on {}", now.currency, at.strftime("%Y-%m-%d"));
    if !before.unknown.is_empty() {
        let unknown: Vec<&str> = before.unknown.iter().map(String::as_str).collect();
        note.push_str(&format!("; not compared: {}", unknown.join(", ")));
    }
    Ok((tenths as f64 / 10.0, note))
}

/// How many times as fast as the baseline it is, rounded down, and what was compared.
pub fn speed_up(before: &RecordedSpeed, now: &RecordedSpeed) -> Result<(f64, String), String> {
    if SpeedTest::of(before) != SpeedTest::of(now) {
        return Err("it was compared by another test than that of the baseline".to_owned());
    }
    if before.tokens_per_second <= 0.0 {
        return Err("the baseline has no tokens per second".to_owned());
    }
    let factor = (now.tokens_per_second / before.tokens_per_second * 100.0).floor() / 100.0;
    let Origin { environment, at, .. } = &before.origin;
    let mut note = format!(
        "{:.1} tokens/s, p95 {:.0} ms; {:.1} tokens/s, p95 {:.0} ms in {environment} on {}",
        now.tokens_per_second,
        now.p95_ms,
        before.tokens_per_second,
        before.p95_ms,
        at.strftime("%Y-%m-%d")
    );
    if before.client != now.client {
        note.push_str(&format!("; measured from {}, the baseline from {}", now.client, before.client));
    }
    Ok((factor, note))
}

/// The tokens per second of a service that is never idle.
fn generation_rate(check: &CheckDefinition, environment: &Environment, now: &RecordedSpeed) -> Check {
    let is_met = environment.gates.tokens_per_second.is_none_or(|least| now.tokens_per_second >= f64::from(least));
    let note = format!("{} at a time, p95 {:.0} ms", counted(now.users, "request"), now.p95_ms);
    check.measured(environment, now.tokens_per_second, is_met).note(note)
}

/// Refuses a measurement that would be recorded for another release or other settings than those that run.
pub async fn runs_these_settings(chosen: &ChosenEnvironment) -> Result<(), Failure> {
    gate::runs_the_lock(chosen).await?;
    gate::runs_the_configuration(chosen)
}

/// Measures the speed of a running environment, with a temporary key.
pub async fn speed(
    chosen: &ChosenEnvironment,
    running: &RunningEnvironment,
    test: SpeedTest,
    progress: &dyn Progress,
    stop: &CancellationToken,
) -> Result<RecordedSpeed, Failure> {
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let trust = scope.platform.trust(running.ca_file.as_deref(), Some(environment))?;
    let wire = HttpWire::new(&running.address, &trust)?;
    let keys = Admin { platform: scope.platform, running, environment };
    let issued = keys.temporary("baseline").await?;
    let SpeedTest { users, seconds, tokens } = test;
    progress.line(&format!("Measuring the speed: {users} requests at a time for {seconds} s …"));
    let mut each = |second: &load::Second| {
        progress.event(&json!({ "event": "load", "second": second }));
        progress.doing(&format!("second {} of about {seconds}, {} tokens/s", second.second, second.tokens));
    };
    let measured = load::run(&wire, Some(&issued.key), &test.load(), &SystemClock, stop, &mut each).await;
    if let Err(why) = keys.end(&issued.public_id).await {
        progress.warn(&why);
    }
    if measured.stopped {
        return Err(Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped; nothing was recorded")));
    }
    let Measured { generate, requests, errors, tokens_per_second, .. } = measured;
    // A service that refuses or fails would look fast.
    if errors > 0 {
        let kinds = json!(measured.errors_by_kind);
        let error = anyhow::anyhow!("{errors} of {requests} requests failed: {kinds}")
            .context("the speed was not recorded, because the service did not answer every request");
        return Err(Failure::new(Exit::Failed, "requests_failed", error).hint(scope.command("health check --all")));
    }
    if generate.count == 0 || tokens_per_second <= 0.0 {
        let error = anyhow::anyhow!("no answer ended within {seconds} s; nothing was recorded");
        let hint =
            "measure longer, or with fewer requests at a time: `baseline record --seconds 300 --users 1 --replace`";
        return Err(Failure::new(Exit::Failed, "too_short", error).hint(hint));
    }
    let client = scope.platform.host_name();
    let origin = origin(chosen, running.lineage)?;
    let rounded = |value: f64| (value * 10.0).round() / 10.0;
    Ok(RecordedSpeed {
        origin,
        users,
        seconds,
        tokens,
        tokens_per_second: rounded(tokens_per_second),
        p50_ms: rounded(generate.p50_ms),
        p95_ms: rounded(generate.p95_ms),
        p99_ms: rounded(generate.p99_ms),
        requests,
        errors,
        client,
    })
}

/// The checks of phase optimized: speed and cost against the baseline.
pub(crate) fn checks(
    deployment: &Deployment,
    running: &RunningEnvironment,
    state: &State,
) -> Result<Vec<Check>, Failure> {
    let chosen = &deployment.chosen;
    let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
    let (baseline, refused) = match Baseline::read(&scope.folder) {
        Ok(baseline) => (baseline, String::new()),
        Err(why) => (Baseline::default(), format!("{why}; ")),
    };
    let release = release_of(chosen)?;
    let current = |speed: &&RecordedSpeed| {
        // `down` ends what was measured before it.
        let counts = state.removal().is_none_or(|removal| speed.origin.at > removal);
        counts && speed.origin.lineage == running.lineage && speed.origin.release == release
    };
    let compared = baseline.compared.as_ref().filter(current);
    let (record, compare) = (scope.last("baseline record"), scope.last("baseline compare"));
    let definition = PhaseDefinition::of(environment.phase);
    let mut checks = Vec::new();
    let speeds = match (&baseline.speed, compared) {
        (None, _) => Err(format!("{refused}no baseline is recorded: {record}")),
        (Some(_), None) => Err(format!("this release was not compared: {compare}")),
        (Some(before), Some(now)) => Ok((before, now)),
    };
    if let Some(check) = definition.check(SPEED_UP) {
        checks.push(match &speeds {
            Err(why) => check.waiting(environment, why),
            Ok((before, now)) => speed_up(before, now).map_or_else(
                |why| check.waiting(environment, format_args!("{why}: {compare}")),
                |(factor, note)| check.measured(environment, factor, factor >= MIN_SPEED_UP).note(note),
            ),
        });
    }
    if let Some(check) = definition.check(GENERATION_RATE).filter(|check| check.is_on(environment)) {
        checks.push(match &speeds {
            Err(why) => check.waiting(environment, why),
            Ok((_, now)) => generation_rate(check, environment, now),
        });
    }
    if let Some(check) = definition.check(REDUCTION) {
        checks.push(match &baseline.cost {
            None => check.waiting(environment, format_args!("{refused}no baseline is recorded: {record}")),
            Some(before) => {
                let cost = recorded_cost(deployment, state)?;
                let reduced = whole(deployment, state, &cost)?.and_then(|now| reduction(before, &now));
                reduced.map_or_else(
                    |why| check.unknown(environment, why),
                    |(percent, note)| check.measured(environment, percent, percent >= MIN_REDUCTION).note(note),
                )
            }
        });
    }
    Ok(checks)
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::environment::{Catalogue, Library, Overrides};
    use uuid::Uuid;

    use super::*;

    fn origin() -> Origin {
        Origin {
            environment: EnvironmentName::new("enterprise").unwrap(),
            phase: Phase::Enterprise,
            lineage: Lineage(Uuid::nil()),
            release: "sha256:r".to_owned(),
            at: Timestamp::UNIX_EPOCH,
        }
    }

    fn cost(known_micros: u64, unknown: &[&str]) -> Comparable {
        Comparable {
            known_micros,
            unknown: unknown.iter().map(|why| (*why).to_owned()).collect(),
            currency: "USD".to_owned(),
            services: BTreeMap::new(),
        }
    }

    fn speed(tokens_per_second: f64) -> RecordedSpeed {
        RecordedSpeed {
            origin: origin(),
            users: 4,
            seconds: 30,
            tokens: 100,
            tokens_per_second,
            p50_ms: 100.0,
            p95_ms: 200.0,
            p99_ms: 300.0,
            requests: 10,
            errors: 0,
            client: "laptop".to_owned(),
        }
    }

    #[test]
    fn reduction_is_not_rounded_up_and_needs_the_same_amounts() {
        let percent =
            |before: u64, now: u64| reduction(&cost(before, &[]).record(origin()), &cost(now, &[])).unwrap().0;
        assert_eq!((percent(1000, 700), percent(1000, 701), percent(1000, 1200)), (30.0, 29.9, -20.0));
        let before = cost(1000, &["S3: by the stored data"]).record(origin());
        let (percent, note) = reduction(&before, &cost(500, &["S3: by the stored data"])).unwrap();
        assert!(percent == 50.0 && note.contains("not compared: S3: by the stored data"), "{note}");
        let why = reduction(&before, &cost(500, &["EC2: no price"])).unwrap_err();
        assert!(why.ends_with("EC2: no price"), "{why}");
        let with_s3 = |known: u64| Comparable { services: [("S3".to_owned(), known)].into(), ..cost(500, &[]) };
        let why = reduction(&before, &with_s3(100)).unwrap_err();
        assert!(why.contains("record it again") && why.ends_with("S3: by the stored data"), "{why}");
        assert_eq!(reduction(&before, &cost(500, &[])).unwrap().0, 50.0, "the bucket was removed");
        let euros = Comparable { currency: "EUR".to_owned(), ..cost(1, &[]) };
        assert!(reduction(&before, &euros).unwrap_err().contains("the baseline is in USD"));
        assert!(reduction(&cost(0, &[]).record(origin()), &cost(0, &[])).is_err());
    }

    #[test]
    fn speed_up_is_not_rounded_up_and_needs_the_same_test() {
        let factor = |now| speed_up(&speed(100.0), &speed(now)).unwrap().0;
        assert_eq!((factor(200.0), factor(199.9), factor(50.0)), (2.0, 1.99, 0.5));
        let other = RecordedSpeed { users: 8, ..speed(400.0) };
        assert!(speed_up(&speed(100.0), &other).unwrap_err().contains("another test"));
        assert!(speed_up(&speed(0.0), &speed(1.0)).is_err());
        let elsewhere = RecordedSpeed { client: "server".to_owned(), ..speed(100.0) };
        assert!(speed_up(&speed(100.0), &elsewhere).unwrap().1.contains("measured from server"));
    }

    #[test]
    fn generation_rate_is_that_of_the_compared_speed() {
        let of = |sets: &[&str]| {
            let overrides =
                Overrides { sets: sets.iter().map(|set| (*set).to_owned()).collect(), ..Overrides::default() };
            Library::built_in().load("optimized", &overrides, &Catalogue::default()).unwrap().environment
        };
        let check = PhaseDefinition::of(Phase::Optimized).check(GENERATION_RATE).unwrap();
        let limited = of(&["gates.tokens_per_second=1000"]);
        let met = |rate| generation_rate(check, &limited, &speed(rate)).ok;
        assert_eq!((met(1000.0), met(999.9)), (true, false));
        let said = generation_rate(check, &limited, &speed(999.9)).to_string();
        assert_eq!(said, "generation rate: 999.9 tokens/s, wanted at least 1000 (4 requests at a time, p95 200 ms)");
        assert!(!check.is_on(&of(&[])));
    }

    #[test]
    fn baseline_counts_only_as_signed_and_is_carried_once() {
        let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [source, target] = [0, 1].map(|n| Utf8Path::from_path(folders[n].path()).unwrap());
        assert_eq!(Baseline::read(source), Ok(Baseline::default()));
        assert_eq!(carry(source, target), Ok(false), "there is none");
        let baseline = Baseline {
            cost: Some(cost(1000, &[]).record(origin())),
            speed: Some(speed(100.0)),
            compared: Some(speed(300.0)),
        };
        baseline.write(source).unwrap();
        assert_eq!(Baseline::read(source).as_ref(), Ok(&baseline));
        assert_eq!(carry(source, target), Ok(true));
        assert_eq!(Baseline::read(target), Ok(Baseline { compared: None, ..baseline.clone() }));
        Baseline { cost: None, ..baseline }.write(source).unwrap();
        assert_eq!(carry(source, target), Ok(false), "the target has its own");
        let written = std::fs::read_to_string(file(source)).unwrap();
        std::fs::write(file(source), written.replace("100.0", "1.0")).unwrap();
        assert!(Baseline::read(source).unwrap_err().contains("baseline.json is not verified"));
        assert!(carry(source, target).is_err());
        // A baseline that another environment signed is not one of this.
        for end in ["", ".minisig"] {
            std::fs::copy(format!("{}{end}", file(target)), format!("{}{end}", file(source))).unwrap();
        }
        assert!(Baseline::read(source).is_err());
    }
}
