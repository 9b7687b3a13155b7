//! Load tests of an address: with many users, in search of the most users, at a fixed rate, or with many open sessions.

use std::future::Future;
use std::time::Duration;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::json;
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::load::{
    self, Arrivals, FindLimit, HttpWire, Key, Limit, Load, LoadRequest, Measured, Mix, Rate, RateResult, RateSecond,
    Second, ServedModel, SessionProgress, SessionResult, Sessions, Unserved, Wire,
};
use textnlp_orchestrator::release::{History, configuration_digest};
use textnlp_provider::units::counted;
use tokio_util::sync::CancellationToken;

use crate::gate::growth::{self, ScaleUp};
use crate::gate::{is_logged, load as evidence, release_digest};
use crate::keys::Admin;
use crate::{ChosenEnvironment, Exit, Failure, Platform, Progress, RunningEnvironment, running};

/// Limit of the search. With more users, the client machine becomes the bottleneck.
pub const MOST_USERS: u32 = 10_000;
/// Open files of this program besides its connections.
const OTHER_FILES: u64 = 64;
/// Timeout of one request.
const TIMEOUT: Duration = Duration::from_secs(60);
/// Requests in flight of a load at a fixed rate, if nothing else is set: those of this time in seconds, within these limits.
const IN_FLIGHT_SECONDS: f64 = 10.0;
const IN_FLIGHT: (u32, u32) = (100, 10_000);
/// The longest ramp-up of a load at a fixed rate, in seconds.
const MOST_RAMP: f64 = 600.0;

/// The target of a load test.
pub struct LoadTarget {
    /// Its address.
    pub address: String,
    /// The certificate authorities to trust.
    pub trust: TrustRoots,
    /// The API key.
    pub key: Option<Key>,
    /// The folder of reports.
    pub reports: Utf8PathBuf,
    /// The suggested command that checks the target's health.
    pub health: String,
    /// The environment, if the target belongs to one.
    pub own: Option<OwnEnvironment>,
}

/// The environment under load and its release.
pub struct OwnEnvironment {
    platform: &'static dyn Platform,
    environment: Environment,
    running: RunningEnvironment,
    /// The number of the last applied release, and the digest of what runs. `None` if the environment file differs.
    release: Option<(u64, String)>,
    /// The public id of a temporary key, which is revoked at the end.
    temporary: Option<String>,
}

/// The parameters of a load at a fixed rate.
#[derive(Debug, Clone)]
pub struct RateOptions {
    /// Requests per second.
    pub per_second: f64,
    /// The times between requests.
    pub arrivals: Arrivals,
    /// By how much the rate grows in each second of the ramp-up; a fifth of the rate if it is not set.
    pub ramp: Option<f64>,
    /// The duration after the ramp-up in seconds.
    pub seconds: u32,
    /// The most requests in flight.
    pub in_flight: Option<u32>,
    /// The requests.
    pub mix: Mix,
}

impl From<RateOptions> for Rate {
    fn from(options: RateOptions) -> Self {
        let RateOptions { per_second, arrivals, ramp, seconds, in_flight, mix } = options;
        let (least, most) = IN_FLIGHT;
        let ramp = ramp.unwrap_or(per_second / 5.0).max(per_second / MOST_RAMP);
        Self {
            per_second,
            arrivals,
            ramp: Duration::from_secs_f64(per_second / ramp),
            hold: Duration::from_secs(u64::from(seconds)),
            in_flight: in_flight.unwrap_or(((per_second * IN_FLIGHT_SECONDS).ceil() as u32).clamp(least, most)),
            mix,
            timeout: TIMEOUT,
            seed: 1,
        }
    }
}

/// The clock, the signal to stop, and the sink for progress.
#[derive(Clone, Copy)]
pub struct Watch<'a> {
    /// The clock.
    pub clock: &'a dyn Clock,
    /// Ends the test early.
    pub stop: &'a CancellationToken,
    /// What the test does.
    pub progress: &'a dyn Progress,
}

impl OwnEnvironment {
    fn admin(&self) -> Admin<'_> {
        Admin { platform: self.platform, running: &self.running, environment: &self.environment }
    }
}

impl LoadTarget {
    /// A running environment, with the given key, else with a temporary one.
    pub async fn of(chosen: &ChosenEnvironment, ca_file: Option<&Utf8Path>, key: Option<Key>) -> Result<Self, Failure> {
        let (scope, environment) = (&chosen.scope, &chosen.loaded.environment);
        let running = running::running(scope).await?;
        running.has_api(scope, "address for load tests")?;
        let trust = scope.platform.trust(ca_file.or(running.ca_file.as_deref()), Some(environment))?;
        let lock = chosen.lock()?;
        let history =
            History::at(&scope.folder).read().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
        let applied = history.entries.last().filter(|newest| {
            let ran = &newest.applied.lock;
            ran.configuration == configuration_digest(environment)
                && lock.as_ref().is_none_or(|lock| ran.runs_the_same(lock))
        });
        let release = applied.map(|newest| (newest.number, release_digest(lock.as_ref(), environment)));
        let (address, platform, environment) = (running.address.clone(), scope.platform, environment.clone());
        let mut own = OwnEnvironment { platform, environment, running, release, temporary: None };
        let key = match key {
            Some(key) => key,
            None => {
                let issued = own.admin().temporary("load").await?;
                own.temporary = Some(issued.public_id);
                issued.key
            }
        };
        let (reports, health) = (scope.folder.join("reports"), scope.command("health"));
        Ok(Self { address, trust, key: Some(key), reports, health, own: Some(own) })
    }

    /// Revokes a temporary key. The error is a warning.
    pub async fn close(&self) -> Result<(), String> {
        let temporary = self.own.as_ref().and_then(|own| Some((own.admin(), own.temporary.as_deref()?)));
        let Some((admin, id)) = temporary else { return Ok(()) };
        admin.end(id).await
    }

    /// How it is reached.
    pub fn wire(&self) -> Result<HttpWire, Failure> {
        HttpWire::new(&self.address, &self.trust).map_err(|error| Failure::usage("usage", error))
    }

    /// Runs a load test and polls the pods meanwhile. Returns the pods that were added, too.
    async fn watched<T>(
        &self,
        Watch { clock, stop, progress }: Watch<'_>,
        load: impl Future<Output = T>,
    ) -> (T, Option<ScaleUp>) {
        let over = CancellationToken::new();
        let watch = async {
            let OwnEnvironment { platform, environment, running, .. } = self.own.as_ref()?;
            let own = growth::Own { environment, folder: &running.folder, lineage: running.lineage };
            growth::watch(*platform, own, clock, (&over, stop), progress).await
        };
        let load = async {
            let loaded = load.await;
            over.cancel();
            loaded
        };
        tokio::join!(load, watch)
    }

    /// Measures with users: `ramp` more in each second, then all for `seconds`. With a limit of the p95 in milliseconds,
    /// searches for the most users within it.
    pub async fn users(
        &self,
        wire: &HttpWire,
        (users, ramp, seconds): (u32, f64, u32),
        mix: Option<Mix>,
        p95_ms: Option<f64>,
        watch: Watch<'_>,
    ) -> Result<(Measured, Option<Limit>, Option<ScaleUp>), Failure> {
        let Watch { clock, stop, progress } = watch;
        self.serves(wire, &mix.clone().unwrap_or_default()).await?;
        let wanted = Load {
            users: users.clamp(1, MOST_USERS),
            ramp: ramp.max(1.0) as u32,
            think_min: Duration::from_secs(1),
            think_max: Duration::from_secs(3),
            hold: Duration::from_secs(u64::from(seconds)),
            tokens_min: 50,
            tokens_max: 100,
            validate_share: 0.1,
            model: None,
            embeds: false,
            mix,
            timeout: TIMEOUT,
            seed: 1,
        };
        let say = |users: u32, second: &Second| {
            progress.event(&json!({ "event": "load", "users": users, "second": second }));
            let text = format!(
                "second {}, {} of {users} users, {} requests/s, p95 {:.0} ms",
                second.second, second.users, second.requests, second.p95_ms
            );
            if is_logged(second) {
                progress.log(&format!("  {text}"));
            }
            progress.doing(&text);
        };
        let key = self.key.as_ref();
        let work = async {
            let Some(p95_ms) = p95_ms else {
                let mut say = |second: &Second| say(wanted.users, second);
                return (Some(load::run(wire, key, &wanted, clock, stop, &mut say).await), None);
            };
            let search = FindLimit {
                load: wanted.clone(),
                p95: Duration::from_secs_f64((p95_ms / 1000.0).clamp(0.001, 600.0)),
                error_rate: load::MOST_ERRORS,
                from: wanted.users.min(10),
                to: MOST_USERS,
                tolerance: 0.1,
            };
            let mut say = |users, second: &Second| say(users, second);
            let limit = load::find_limit(wire, key, &search, clock, stop, &mut say).await;
            let best = limit.probes.iter().rfind(|p| p.ok).or(limit.probes.last()).map(|p| p.measured.clone());
            (best, Some(limit))
        };
        let ((measured, limit), growth) = self.watched(watch, work).await;
        let measured = measured.ok_or_else(|| {
            Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped before anything was measured"))
        })?;
        Ok((measured, limit, growth))
    }

    /// Measures at a fixed rate.
    pub async fn rate(
        &self,
        wire: &HttpWire,
        rate: &Rate,
        watch: Watch<'_>,
    ) -> Result<(RateResult, Option<ScaleUp>), Failure> {
        enough_files(rate.in_flight, ("requests in flight", "--in-flight"))?;
        self.serves(wire, &rate.mix).await?;
        let Watch { clock, stop, progress } = watch;
        let mut say = |second: &RateSecond| {
            progress.event(&json!({ "event": "load", "rate": rate.per_second, "second": second }));
            let text = format!(
                "second {}, {} requests due, {} in flight, {} dropped, {} failed, p95 {:.0} ms",
                second.second, second.due, second.in_flight, second.dropped, second.errors, second.p95_ms
            );
            if second.second > 0 && second.second.is_multiple_of(10) {
                progress.log(&format!("  {text}"));
            }
            progress.doing(&text);
        };
        let measured = load::run_rate(wire, self.key.as_ref(), rate, clock, stop, &mut say);
        Ok(self.watched(watch, measured).await)
    }

    /// Fails if the service has no model for requests of a mix: every one of them would fail.
    async fn serves(&self, wire: &HttpWire, mix: &Mix) -> Result<(), Failure> {
        let request = LoadRequest { key: self.key.clone(), ..LoadRequest::get("/v1/models") };
        // A service that does not answer is reported by the load test.
        let answer =
            wire.send(request).await.ok().filter(|answer| answer.status == 200).and_then(|answer| answer.json());
        let Some(listed) = answer.as_ref().and_then(|answer| answer["data"].as_array()) else { return Ok(()) };
        let served = listed.iter().filter_map(|model| {
            Some(ServedModel {
                name: model["id"].as_str()?.to_owned(),
                kind: model["kind"].as_str().map(str::to_owned),
                is_default: model["default"] == true,
            })
        });
        let served: Vec<ServedModel> = served.collect();
        let Some(Unserved { code, reason, hint }) = mix.unserved(&served) else { return Ok(()) };
        Err(Failure::usage(code, anyhow::anyhow!("{} {reason}", self.address)).hint(hint))
    }

    /// Holds open sessions: `ramp` more in each second, then all for `seconds`; each with a request of `tokens` in every
    /// interval.
    pub async fn sessions(
        &self,
        wire: &HttpWire,
        (count, ramp, seconds): (u32, f64, u32),
        (every, tokens): (Duration, u32),
        watch: Watch<'_>,
    ) -> Result<(SessionResult, Option<ScaleUp>), Failure> {
        enough_files(count, ("sessions", "--sessions"))?;
        let Watch { clock, stop, progress } = watch;
        let wanted = Sessions {
            count,
            ramp: ramp.max(1.0) as u32,
            hold: Duration::from_secs(u64::from(seconds)),
            every,
            tokens,
            timeout: TIMEOUT,
            seed: 1,
        };
        let mut say = |standing: &SessionProgress| {
            progress.event(&json!({ "event": "sessions", "standing": standing }));
            progress.doing(&format!(
                "second {}, {} of {} open, {} lost, {}, {} failed",
                standing.second,
                standing.open,
                counted(count, "session"),
                standing.lost,
                counted(standing.requests, "request"),
                standing.errors
            ));
        };
        let held = load::hold(wire, self.key.as_ref(), &wanted, clock, stop, &mut say);
        Ok(self.watched(watch, held).await)
    }

    /// Stores the evidence for the gate. Returns a warning if it does not count.
    pub fn keep(
        &self,
        at: Timestamp,
        held: Option<&SessionResult>,
        growth: Option<&ScaleUp>,
    ) -> anyhow::Result<Option<&'static str>> {
        let Some(own) = self.own.as_ref().filter(|_| held.is_some() || growth.is_some()) else { return Ok(None) };
        let RunningEnvironment { folder, lineage, .. } = &own.running;
        // Another release may have been applied meanwhile.
        let newest = History::at(folder).read()?.entries.last().map(|newest| newest.number);
        match own.release.as_ref().filter(|(applied, _)| newest == Some(*applied)) {
            Some((_, release)) => evidence::keep(folder, (*lineage, release), at, held, growth).map(|()| None),
            None => Ok(Some(
                "the environment differs from what was applied, so this result does not count for a gate: run `up` first",
            )),
        }
    }
}

/// Raises the soft limit of open files: each connection needs one, and shells start with a low limit.
fn enough_files(count: u32, (what, flag): (&str, &str)) -> Result<(), Failure> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let needed = u64::from(count) + OTHER_FILES;
    match getrlimit(Resource::Nofile).current {
        Some(allowed) if allowed < needed => {
            let error = anyhow::anyhow!("{count} {what} need {needed} open files, but the limit is {allowed}");
            let hint = format!("raise the limit: ulimit -Hn {needed}, as root; or lower {flag}");
            Err(Failure::usage("too_few_files", error).hint(hint))
        }
        _ => Ok(()),
    }
}
