//! `load`: runs a load test with many users, finds the maximum sustainable number of users, or holds many open
//! sessions.

mod sessions;

use std::future::Future;
use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_net::trust::TrustRoots;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::environment::Environment;
use textnlp_orchestrator::gate::{KeyIssuer, KeyRequest};
use textnlp_orchestrator::load::{
    self, FindLimit, HttpWire, Key, Limit, Load as Wanted, Measured, Second, SessionResult,
};
use textnlp_orchestrator::release::{History, configuration_digest};
use textnlp_orchestrator::report::Report;
use textnlp_provider::{Lineage, Secret};
use tokio_util::sync::CancellationToken;

use super::gate::{Issuer, clock_and_stop};
use crate::args::Load;
use crate::clouds::Linked;
use crate::network;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use textnlp_service::gate::growth::{self, ScaleUp};
use textnlp_service::gate::{is_logged, load as evidence, release_digest};
use textnlp_service::running;

/// Default ramp-up in users per second.
const RAMP: f64 = 10.0;
/// Limit of the search. With more users, the client machine becomes the bottleneck.
const MOST_USERS: u32 = 10_000;

/// The target of a load test.
struct LoadTarget {
    address: String,
    trust: TrustRoots,
    key: Option<Key>,
    /// A temporary key to revoke at the end.
    temporary: Option<(Issuer, String)>,
    reports: Utf8PathBuf,
    /// The suggested command that checks the target's health.
    health: String,
    /// The environment, if the target belongs to one.
    own: Option<OwnEnvironment>,
}

/// The environment under load and its release.
struct OwnEnvironment {
    environment: Environment,
    folder: Utf8PathBuf,
    lineage: Lineage,
    /// The number of the last applied release, and the digest of what runs. `None` if the environment file differs.
    release: Option<(u64, String)>,
}

/// The result of a load test, and the pods added under it.
type LoadResult<T> = (T, Option<ScaleUp>);

impl LoadTarget {
    /// Runs a load test and polls the pods meanwhile.
    async fn watched<T>(
        &self,
        (clock, stop): (&dyn Clock, &CancellationToken),
        progress: &Progress,
        load: impl Future<Output = T>,
    ) -> LoadResult<T> {
        let over = CancellationToken::new();
        let watch = async {
            match &self.own {
                Some(OwnEnvironment { environment, folder, lineage, .. }) => {
                    let own = growth::Own { environment, folder, lineage: *lineage };
                    growth::watch(&Linked, own, clock, (&over, stop), progress).await
                }
                None => None,
            }
        };
        let load = async {
            let loaded = load.await;
            over.cancel();
            loaded
        };
        tokio::join!(load, watch)
    }

    /// Stores the evidence for the gate.
    fn keep(
        &self,
        at: jiff::Timestamp,
        held: Option<&SessionResult>,
        growth: Option<&ScaleUp>,
        console: Console,
    ) -> anyhow::Result<()> {
        let Some(own) = self.own.as_ref().filter(|_| held.is_some() || growth.is_some()) else { return Ok(()) };
        // Another release may have been applied meanwhile.
        let newest = History::at(&own.folder).read()?.entries.last().map(|newest| newest.number);
        match own.release.as_ref().filter(|(applied, _)| newest == Some(*applied)) {
            Some((_, release)) => evidence::keep(&own.folder, (own.lineage, release), at, held, growth),
            None => {
                console.warn("the environment differs from what was applied, so this result does not count for a gate: run `up` first");
                Ok(())
            }
        }
    }
}

/// `load`.
pub async fn load(session: &Session, args: &Load, console: Console) -> Result<Success, Failure> {
    let goal = goal(session, args).await?;
    let measured = measure(&goal, args, console).await;
    if let Some((issuer, id)) = &goal.temporary
        && let Err(why) = issuer.revoke(id).await
    {
        console.warn(format!("the temporary key {id} could not be revoked ({why}); it expires within one hour"));
    }
    measured
}

async fn measure(goal: &LoadTarget, args: &Load, console: Console) -> Result<Success, Failure> {
    let wire = HttpWire::new(&goal.address, &goal.trust).map_err(|e| Failure::usage("usage", e))?;
    match args.sessions {
        Some(count) => {
            let at = SystemClock.now();
            held(goal, at, sessions::measure(goal, args, count, &wire, console).await?, console)
        }
        None => users(goal, args, &wire, console).await,
    }
}

/// Reports the sessions that were held.
fn held(
    goal: &LoadTarget,
    at: jiff::Timestamp,
    (held, growth): LoadResult<SessionResult>,
    console: Console,
) -> Result<Success, Failure> {
    let report = Report {
        title: format!("Open sessions on {}", goal.address),
        at,
        address: goal.address.clone(),
        facts: growth.iter().map(|growth| ("pods".into(), grown(growth))).collect(),
        gate: None,
        load: None,
        limit: None,
        held: Some(held.clone()),
    };
    let written = report.write(&goal.reports, "sessions").context("write the report")?;
    let document = json!({
        "requests": held.requests, "errors": held.errors, "errors_by_kind": held.errors_by_kind,
        "p50_ms": held.answers.p50_ms, "p95_ms": held.answers.p95_ms, "p99_ms": held.answers.p99_ms,
        "rps": held.requests as f64 / held.seconds.max(0.001), "tokens_per_second": held.tokens_per_second,
        "sessions": { "wanted": held.sessions.count, "open": held.open, "dropped": held.dropped, "refused": held.refused,
            "kept_all": held.kept_all(), "opening_p95_ms": held.opening.p95_ms },
        "scaling": growth,
        "report": written.html,
    });
    let mut text = sessions::summary(&held);
    if let Some(growth) = &growth {
        text.push_str(&format!("\n  pods          {}", grown(growth)));
    }
    text.push_str(&format!("\n  report        {}", written.html));
    if held.stopped {
        return Err(Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped early; measured so far:\n{text}"))
            .document(document));
    }
    if held.errors == held.requests {
        return Err(nothing_answered(goal, &text, document));
    }
    match goal.keep(at, Some(&held), growth.as_ref(), console).context("store the measurements") {
        Ok(()) => Ok(Success::new(text, document)),
        Err(error) => Err(Failure::from(error).document(document)),
    }
}

fn grown(growth: &ScaleUp) -> String {
    let ScaleUp { from, to, seconds } = growth;
    match seconds {
        Some(seconds) => format!("{from} before, {to} ready after {seconds:.0} s"),
        None => format!("{from} before, {to} desired, never all ready"),
    }
}

fn nothing_answered(goal: &LoadTarget, text: &str, document: serde_json::Value) -> Failure {
    let error = anyhow::anyhow!("{text}").context(format!("{} answered no request", goal.address));
    Failure::new(Exit::Failed, "nothing_answered", error)
        .hint(format!("check that the service runs and that the key is valid: {}", goal.health))
        .document(document)
}

async fn users(goal: &LoadTarget, args: &Load, wire: &HttpWire, console: Console) -> Result<Success, Failure> {
    let (clock, stop) = clock_and_stop(console);
    let wanted = Wanted {
        users: args.users.clamp(1, MOST_USERS),
        ramp: args.ramp.unwrap_or(RAMP).max(1.0) as u32,
        think_min: Duration::from_secs(1),
        think_max: Duration::from_secs(3),
        hold: Duration::from_secs(u64::from(args.seconds)),
        tokens_min: 50,
        tokens_max: 100,
        validate_share: 0.1,
        model: None,
        timeout: Duration::from_secs(60),
        seed: 1,
    };
    let progress = Progress::new(console);
    let say = |users: u32, second: &Second| {
        console.event(&json!({ "event": "load", "users": users, "second": second }));
        let text = format!(
            "second {}, {} of {users} users, {} requests/s, p95 {:.0} ms",
            second.second, second.users, second.requests, second.p95_ms
        );
        if is_logged(second) {
            progress.log(&format!("  {text}"));
        }
        progress.doing(&text);
    };
    let at = clock.now();
    progress.line(match args.find_limit {
        true => {
            "Searching for the most users within the p95 limit: a series of load tests, which takes several minutes …"
        }
        false => "Running the load test …",
    });
    let work = async {
        if !args.find_limit {
            let users = wanted.users;
            let key = goal.key.as_ref();
            let mut say = |second: &Second| say(users, second);
            let run = load::run(wire, key, &wanted, clock.as_ref(), &stop, &mut say);
            return (Some(run.await), None);
        }
        let search = FindLimit {
            load: wanted.clone(),
            p95: Duration::from_secs_f64((args.p95_ms / 1000.0).clamp(0.001, 600.0)),
            error_rate: 0.01,
            from: wanted.users.min(10),
            to: MOST_USERS,
            tolerance: 0.1,
        };
        let limit = load::find_limit(wire, goal.key.as_ref(), &search, clock.as_ref(), &stop, &mut |users, second| {
            say(users, second)
        })
        .await;
        let best = limit.probes.iter().rfind(|p| p.ok).or(limit.probes.last()).map(|p| p.measured.clone());
        (best, Some(limit))
    };
    let ((measured, limit), growth) = goal.watched((clock.as_ref(), &stop), &progress, work).await;
    progress.finish();
    let Some(measured) = measured else {
        return Err(Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped before anything was measured")));
    };
    let report = Report {
        title: format!("Load on {}", goal.address),
        at,
        address: goal.address.clone(),
        facts: vec![("users".into(), wanted.users.to_string()), ("seconds".into(), args.seconds.to_string())],
        gate: None,
        load: Some(measured.clone()),
        limit: limit.clone(),
        held: None,
    };
    let written = report.write(&goal.reports, "load").context("write the report")?;
    let document = json!({
        "requests": measured.requests, "errors": measured.errors, "errors_by_kind": measured.errors_by_kind,
        "p50_ms": measured.generate.p50_ms, "p95_ms": measured.generate.p95_ms, "p99_ms": measured.generate.p99_ms,
        "rps": measured.rps, "tokens_per_second": measured.tokens_per_second,
        "limit": limit.as_ref().map(|l| json!({ "users": l.users, "at_least": l.at_least })),
        "scaling": growth,
        "report": written.html,
    });
    let mut text = summary(&measured, limit.as_ref(), args.p95_ms);
    if let Some(growth) = &growth {
        text.push_str(&format!("\n  pods          {}", grown(growth)));
    }
    text.push_str(&format!("\n  report        {}", written.html));
    if measured.stopped {
        return Err(Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped early; measured so far:\n{text}"))
            .document(document));
    }
    if measured.errors > 0 && measured.errors == measured.requests {
        return Err(nothing_answered(goal, &text, document));
    }
    // A search runs many loads, so the time until pods were added has no meaning.
    let growth = growth.filter(|_| limit.is_none());
    if let Err(error) = goal.keep(at, None, growth.as_ref(), console).context("store the measurements") {
        return Err(Failure::from(error).document(document));
    }
    Ok(Success::new(text, document))
}

fn summary(measured: &Measured, limit: Option<&Limit>, p95_ms: f64) -> String {
    let mut text = String::new();
    if let Some(limit) = limit {
        text.push_str(&match limit.users {
            Some(users) if limit.at_least => format!("at least {users} users with p95 within {p95_ms:.0} ms\n"),
            Some(users) => format!("{users} users with p95 within {p95_ms:.0} ms\n"),
            None => format!("p95 was above {p95_ms:.0} ms even with the fewest users\n"),
        });
    }
    let Measured { requests, errors, generate, rps, tokens_per_second, .. } = measured;
    text.push_str(&format!("  requests      {requests} ({errors} failed), {rps:.1}/s\n"));
    text.push_str(&format!(
        "  whole answer  p50 {:.0} ms, p95 {:.0} ms, p99 {:.0} ms\n",
        generate.p50_ms, generate.p95_ms, generate.p99_ms
    ));
    text.push_str(&format!("  tokens        {tokens_per_second:.0}/s"));
    for (kind, count) in &measured.errors_by_kind {
        text.push_str(&format!("\n  failed        {count} × {kind}"));
    }
    text
}

async fn goal(session: &Session, args: &Load) -> Result<LoadTarget, Failure> {
    let health = session.again().bare("health");
    let provided_key =
        args.api_key.as_deref().map(|key| Key { header: "X-API-Key".to_owned(), value: Secret::new(key) });
    if let Some(address) = &args.address {
        let trust = network::trust(args.ca_file.as_deref(), None)?;
        let reports = session.here.join("textnlp-reports");
        return Ok(LoadTarget {
            address: address.clone(),
            trust,
            key: provided_key,
            temporary: None,
            reports,
            health,
            own: None,
        });
    }
    let chosen = session.load(Console::new(session.global.output, true))?;
    let health = chosen.scope.command("health");
    let running = running::running(&chosen.scope).await?;
    let (address, reports) = (running.address.clone(), chosen.scope.folder.join("reports"));
    let environment = &chosen.loaded.environment;
    let ca_file = args.ca_file.as_deref().or(running.ca_file.as_deref());
    let trust = network::trust(ca_file, Some(environment))?;
    let lock = chosen.lock()?;
    let applied =
        History::at(&chosen.scope.folder).read().map_err(|error| Failure::new(Exit::Failed, "history", error))?;
    let applied = applied.entries.last().filter(|newest| {
        let ran = &newest.applied.lock;
        ran.configuration == configuration_digest(environment)
            && lock.as_ref().is_none_or(|lock| ran.runs_the_same(lock))
    });
    let own = Some(OwnEnvironment {
        environment: environment.clone(),
        folder: chosen.scope.folder.clone(),
        lineage: running.lineage,
        release: applied.map(|newest| (newest.number, release_digest(lock.as_ref(), environment))),
    });
    if provided_key.is_some() {
        return Ok(LoadTarget { address, trust, key: provided_key, temporary: None, reports, health, own });
    }
    let issuer = Issuer { running, environment: chosen.loaded.environment };
    let issued = issuer
        .create(KeyRequest { name: "load (temporary)".to_owned(), requests_per_hour: None })
        .await
        .map_err(|why| Failure::from(anyhow::anyhow!("{why}").context("make a temporary key")))?;
    Ok(LoadTarget {
        address,
        trust,
        key: Some(issued.key),
        temporary: Some((issuer, issued.public_id)),
        reports,
        health,
        own,
    })
}
