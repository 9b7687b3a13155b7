//! Probes of a running service from outside, as a client, and the service's own record of the same time.

use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use textnlp_orchestrator::availability::{
    MAX_WINDOW, Outcome, Probe, ProbeRecord, Recorder, WindowSummary, embeds_by_default, over, probe,
};
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::load::{HttpWire, Key};
use textnlp_orchestrator::monthly::{MonthlyUsage, RequestSum};
use tokio_util::sync::CancellationToken;

use crate::keys::Admin;
use crate::{ChosenEnvironment, Failure, Progress, RunningEnvironment, running};

/// The intervals of a prober: with longer ones, a day has too few probes for a share of 0.999.
pub const INTERVALS: std::ops::RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(60);

/// How often address, key and default model are read again during an outage: each time delays the next probe.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(60);
/// How long that may take.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(5);

/// A prober of a running environment.
pub struct Prober<'a> {
    chosen: &'a ChosenEnvironment,
    record: ProbeRecord,
    /// The key that the operator gave, else the environment's first key.
    given: Option<Key>,
    target: ProbeTarget,
    renewals: Renewals,
}

/// The service that a schedule probes.
trait ProbedService {
    /// Sends a probe.
    async fn ask(&mut self) -> (Outcome, Option<String>);

    /// Prepares the next probe, once this outcome was recorded.
    async fn recorded(&mut self, outcome: Outcome, now: Duration, progress: &dyn Progress);
}

/// How the service is reached.
struct ProbeTarget {
    wire: HttpWire,
    key: Option<Key>,
    /// Whether its default model makes embeddings. `None` if it listed no models yet.
    embeds: Option<bool>,
}

impl<'a> Prober<'a> {
    /// The prober of an environment that runs.
    pub async fn of(
        chosen: &'a ChosenEnvironment,
        running: &RunningEnvironment,
        given: Option<Key>,
    ) -> Result<Self, Failure> {
        let record = ProbeRecord::at(&chosen.scope.folder, running.lineage);
        let target = ProbeTarget::of(chosen, running, given.as_ref()).await?;
        Ok(Self { chosen, record, given, target, renewals: Renewals::default() })
    }

    /// The folder of its record.
    pub fn folder(&self) -> Utf8PathBuf {
        self.record.folder()
    }

    /// Probes every `every` until `length` is over or `stop`, and records each result. Returns the summary of this time.
    pub async fn run(
        mut self,
        (every, length): (Duration, Option<Duration>),
        clock: &dyn Clock,
        progress: &dyn Progress,
        stop: &CancellationToken,
    ) -> Result<Probed, Failure> {
        let folder = self.record.folder();
        let recorder = self.record.begin().with_context(|| format!("open the record in {folder}"))?;
        let Some(mut recorder) = recorder else {
            let error = anyhow::anyhow!("another prober writes to {folder}");
            return Err(Failure::refused("prober_runs", error)
                .hint("its record counts for the gate; stop it first if you need another interval"));
        };
        let schedule = Schedule { every, length, clock, stop };
        let result = schedule.run(&mut recorder, progress, &mut self).await;
        result.with_context(|| format!("write the record in {folder}")).map_err(Failure::from)
    }

    /// Reads address, key and default model again. A failure leaves them as they are.
    async fn renew(&mut self, progress: &dyn Progress) {
        let renewed = async {
            let running = running::running(&self.chosen.scope).await?;
            ProbeTarget::of(self.chosen, &running, self.given.as_ref()).await
        };
        match tokio::time::timeout(RENEWAL_TIMEOUT, renewed).await {
            // A service that does not answer lists no models.
            Ok(Ok(target)) => self.target = ProbeTarget { embeds: target.embeds.or(self.target.embeds), ..target },
            Ok(Err(failure)) => progress.log(&format!("address and key were not read again: {:#}", failure.error)),
            Err(_) => progress.log("address and key were not read again within 5 s"),
        }
    }
}

impl ProbedService for Prober<'_> {
    async fn ask(&mut self) -> (Outcome, Option<String>) {
        let ProbeTarget { wire, key, embeds } = &self.target;
        probe(wire, key.as_ref(), *embeds == Some(true)).await
    }

    async fn recorded(&mut self, outcome: Outcome, now: Duration, progress: &dyn Progress) {
        if self.renewals.is_due(outcome, now) {
            self.renew(progress).await;
        }
    }
}

/// When address, key and default model are read again.
#[derive(Default)]
struct Renewals {
    last: Option<Duration>,
}

impl Renewals {
    fn is_due(&mut self, outcome: Outcome, now: Duration) -> bool {
        let is_due = match outcome {
            Outcome::Available => false,
            // The key was rotated.
            Outcome::Refused => true,
            // The service moved, or another release has another certificate or default model.
            Outcome::Unavailable => self.last.is_none_or(|last| now.saturating_sub(last) >= RENEWAL_INTERVAL),
        };
        if is_due {
            self.last = Some(now);
        }
        is_due
    }
}

impl ProbeTarget {
    async fn of(
        chosen: &ChosenEnvironment,
        running: &RunningEnvironment,
        given: Option<&Key>,
    ) -> Result<Self, Failure> {
        let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
        let trust = scope.platform.trust(running.ca_file.as_deref(), Some(environment))?;
        let wire = HttpWire::new(&running.address, &trust)?;
        let key = match (given, &running.key) {
            (Some(key), _) => Some(key.clone()),
            (None, Some(secret)) => {
                let value =
                    scope.platform.secrets(&scope.folder).get(secret).await.context("read the first API key")?;
                Some(Key { header: environment.server.security.api_key_header.clone(), value })
            }
            (None, None) => None,
        };
        let embeds = embeds_by_default(&wire, key.as_ref()).await;
        Ok(Self { wire, key, embeds })
    }
}

/// The result of a prober.
#[derive(Debug, Clone, PartialEq)]
pub struct Probed {
    /// The summary of its time; `None` if no probe ended.
    pub summary: Option<WindowSummary>,
    /// The longest time without an answer, in seconds.
    pub longest_outage_s: f64,
    /// Whether it was stopped before its end.
    pub is_stopped: bool,
}

/// When probes are sent.
struct Schedule<'a> {
    every: Duration,
    length: Option<Duration>,
    clock: &'a dyn Clock,
    stop: &'a CancellationToken,
}

impl Schedule<'_> {
    async fn run(
        &self,
        recorder: &mut Recorder,
        progress: &dyn Progress,
        service: &mut impl ProbedService,
    ) -> std::io::Result<Probed> {
        let Self { every, length, clock, stop } = *self;
        let begun = clock.steady();
        // The record may have probes of an earlier prober just before.
        let since = clock.now().checked_sub(SignedDuration::from_nanos(1)).ok();
        let (mut turn, mut changes, mut counts) = (0_u32, Changes::default(), [0_u64; 3]);
        // The end of the last probe's interval.
        let mut covered = Duration::ZERO;
        let is_stopped = loop {
            let (at, sent) = (clock.now(), clock.steady());
            let (outcome, why) = tokio::select! {
                answer = service.ask() => answer,
                () = stop.cancelled() => break true,
            };
            let took = clock.steady().saturating_sub(sent);
            covered = sent.saturating_sub(begun) + every.max(took);
            let probe = Probe { at, every_ms: milliseconds(every), ms: milliseconds(took), outcome };
            recorder.add(&probe, why.as_deref())?;
            progress.event(&json!({ "event": "probe", "probe": probe, "why": why }));
            if let Some(line) = changes.see(&probe, why.as_deref()) {
                progress.line(&line);
            }
            counts[outcome as usize] += 1;
            let [available, unavailable, refused] = counts;
            progress.doing(&format!("{available} probes answered, {unavailable} failed, {refused} refused"));
            tokio::select! {
                () = service.recorded(outcome, clock.steady(), progress) => {}
                () = stop.cancelled() => break true,
            }
            let passed = clock.steady().saturating_sub(begun);
            // A prober that was suspended leaves out what it missed.
            let missed = passed.as_millis().div_ceil(every.as_millis().max(1));
            turn = turn.saturating_add(1).max(u32::try_from(missed).unwrap_or(u32::MAX));
            let next = every.saturating_mul(turn);
            if length.is_some_and(|length| next >= length) {
                break false;
            }
            tokio::select! {
                () = clock.sleep(next.saturating_sub(passed)) => {}
                () = stop.cancelled() => break true,
            }
        };
        let window = covered.min(MAX_WINDOW);
        let summary =
            if window.is_zero() { None } else { over(&recorder.record().read(window, clock.now())?, window, since) };
        let longest_outage_s = changes.longest.max(changes.current(clock.now())).as_secs_f64();
        Ok(Probed { summary, longest_outage_s, is_stopped: is_stopped && length.is_some() })
    }
}

fn milliseconds(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// The changes between available and unavailable.
#[derive(Default)]
struct Changes {
    last: Option<Outcome>,
    /// When the service became unavailable.
    since: Option<Timestamp>,
    longest: Duration,
}

impl Changes {
    /// The line to print, if the state changed.
    fn see(&mut self, probe: &Probe, why: Option<&str>) -> Option<String> {
        let Probe { at, outcome, .. } = probe;
        if self.last.replace(*outcome) == Some(*outcome) {
            return None;
        }
        let ended = match outcome {
            Outcome::Unavailable => {
                self.since.get_or_insert(*at);
                None
            }
            _ => self.since.take().map(|since| at.duration_since(since).unsigned_abs()),
        };
        self.longest = self.longest.max(ended.unwrap_or_default());
        let after = ended.map_or_else(String::new, |time| format!(" after {:.0} s", time.as_secs_f64()));
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        let state = match outcome {
            Outcome::Available => "available",
            Outcome::Unavailable => "unavailable",
            Outcome::Refused => "the request is refused, so nothing is measured",
        };
        Some(format!("{at:.0}  {state}{after}{why}"))
    }

    /// The time of an outage that has not ended.
    fn current(&self, now: Timestamp) -> Duration {
        self.since.map_or(Duration::ZERO, |since| now.duration_since(since).unsigned_abs())
    }
}

/// The requests that the service recorded from a time until another.
pub(crate) async fn own_record(admin: Admin<'_>, (from, until): (Timestamp, Timestamp)) -> Result<RequestSum, Failure> {
    let jobs = admin.site(admin.running.serving().await).await?;
    let request = json!({ "from": from.as_millisecond(), "until": until.as_millisecond() });
    let answer = jobs.run("usage", &request).await?;
    let usage: MonthlyUsage = serde_json::from_value(answer).context("read the usage records")?;
    Ok(usage.total)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use camino::Utf8Path;
    use serde_json::Value;
    use textnlp_orchestrator::clock::VirtualClock;
    use textnlp_provider::Lineage;
    use uuid::Uuid;

    use super::*;

    #[test]
    fn target_is_read_again_after_each_refusal_and_once_a_minute_in_an_outage() {
        let mut renewals = Renewals::default();
        let mut due = |outcome, second| renewals.is_due(outcome, Duration::from_secs(second));
        assert!(!due(Outcome::Available, 0));
        assert!(due(Outcome::Unavailable, 10) && !due(Outcome::Unavailable, 69) && due(Outcome::Unavailable, 70));
        assert!(due(Outcome::Refused, 80) && due(Outcome::Refused, 90));
    }

    /// A service whose address is read again after each probe.
    struct Answers<'a, F> {
        ask: F,
        clock: &'a VirtualClock,
        renewal: Duration,
    }

    impl<F: AsyncFnMut() -> (Outcome, Option<String>)> ProbedService for Answers<'_, F> {
        async fn ask(&mut self) -> (Outcome, Option<String>) {
            (self.ask)().await
        }

        async fn recorded(&mut self, _: Outcome, _: Duration, _: &dyn Progress) {
            self.clock.sleep(self.renewal).await;
        }
    }

    #[derive(Default)]
    struct Lines(Mutex<Vec<String>>);

    impl Progress for Lines {
        fn doing(&self, _: &str) {}
        fn line(&self, line: &str) {
            self.0.lock().unwrap().push(line.to_owned());
        }
        fn log(&self, _: &str) {}
        fn warn(&self, _: &str) {}
        fn event(&self, _: &Value) {}
    }

    #[test]
    fn outage_is_recorded_and_its_changes_are_printed() {
        let folder = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(folder.path()).unwrap();
        let clock = VirtualClock::at("2027-01-02T00:00:00Z".parse().unwrap());
        let record = ProbeRecord::at(state, Lineage(Uuid::nil()));
        let (stop, lines) = (CancellationToken::new(), Lines::default());
        let (every, length) = (Duration::from_secs(10), Some(Duration::from_secs(600)));
        let schedule = Schedule { every, length, clock: &clock, stop: &stop };
        let mut recorder = record.begin().unwrap().unwrap();
        // Unavailable from 100 s on, for 50 s; one answer takes 25 s.
        let begun = clock.steady();
        let ask = async || {
            let passed = clock.steady().saturating_sub(begun).as_secs();
            clock.sleep(Duration::from_secs(if passed == 300 { 25 } else { 0 })).await;
            match passed {
                100..150 => (Outcome::Unavailable, Some("status 503".to_owned())),
                _ => (Outcome::Available, None),
            }
        };
        // The address is read again for 5 s after each probe, which neither delays the next one nor counts as its time.
        let mut service = Answers { ask, clock: &clock, renewal: Duration::from_secs(5) };
        let probed = clock.run(schedule.run(&mut recorder, &lines, &mut service)).unwrap().unwrap();
        let summary = probed.summary.unwrap();
        // At 310 and 320 s the slow probe was not over.
        assert_eq!((summary.probes, summary.unavailable, summary.refused), (58, 5, 0));
        assert!(summary.covered > 0.999 && (summary.available.unwrap() - 550.0 / 600.0).abs() < 0.001, "{summary:?}");
        assert_eq!((probed.longest_outage_s, probed.is_stopped), (50.0, false));
        let expect = [
            "2027-01-02T00:00:00Z  available",
            "2027-01-02T00:01:40Z  unavailable: status 503",
            "2027-01-02T00:02:30Z  available after 50 s",
        ];
        assert_eq!(*lines.0.lock().unwrap(), expect);
        let probes = record.read(Duration::from_secs(600), Timestamp::MAX).unwrap();
        assert_eq!((probes.len(), probes.iter().filter(|probe| probe.ms > 0).count()), (58, 1));
    }

    #[test]
    fn stopped_prober_keeps_its_record() {
        let folder = tempfile::tempdir().unwrap();
        let state = Utf8Path::from_path(folder.path()).unwrap();
        let clock = VirtualClock::at("2027-01-02T00:00:00Z".parse().unwrap());
        let record = ProbeRecord::at(state, Lineage(Uuid::nil()));
        let (stop, lines) = (CancellationToken::new(), Lines::default());
        let run = |length: Option<Duration>| {
            let schedule = Schedule { every: Duration::from_secs(1), length, clock: &clock, stop: &stop };
            let mut recorder = record.begin().unwrap().unwrap();
            let ask = async || {
                stop.cancel();
                (Outcome::Refused, Some("status 401".to_owned()))
            };
            let mut service = Answers { ask, clock: &clock, renewal: Duration::ZERO };
            clock.run(schedule.run(&mut recorder, &lines, &mut service)).unwrap().unwrap()
        };
        let probed = run(Some(Duration::from_secs(60)));
        assert!(probed.is_stopped && probed.summary.unwrap().refused == 1, "{probed:?}");
        // Without a length, a signal is the usual end.
        assert!(!run(None).is_stopped);
    }
}
