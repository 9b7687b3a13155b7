//! `load`: runs a load test with many users, finds the maximum sustainable number of users, or holds many open
//! sessions.

use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::load::{Key, Limit, Measured, SessionResult};
use textnlp_orchestrator::report::Report;
use textnlp_provider::Secret;
use textnlp_service::gate::growth::ScaleUp;
use textnlp_service::load::{LoadTarget, MOST_USERS, Watch};

use super::prelude::*;
use crate::args::Load;
use crate::network;
use crate::signals;

/// Default ramp-up in users, and in sessions, per second.
const RAMP: f64 = 10.0;
const SESSION_RAMP: f64 = 200.0;

/// `load`.
pub async fn load(session: &Session, args: &Load, console: Console) -> Result<Success, Failure> {
    let goal = goal(session, args).await?;
    let measured = measure(&goal, args, console).await;
    if let Err(why) = goal.close().await {
        console.warn(why);
    }
    measured
}

async fn goal(session: &Session, args: &Load) -> Result<LoadTarget, Failure> {
    let key = args.server.key().map(|key| Key { header: "X-API-Key".to_owned(), value: Secret::new(key) });
    let ca_file = args.server.ca_file.as_deref();
    let Some(address) = args.server.address.clone() else {
        let chosen = session.load(session.quiet())?;
        return LoadTarget::of(&chosen, ca_file, key).await;
    };
    let (trust, reports) = (network::trust(ca_file, None)?, session.here.join("textnlp-reports"));
    Ok(LoadTarget { address, trust, key, reports, health: session.again().bare("health"), own: None })
}

async fn measure(goal: &LoadTarget, args: &Load, console: Console) -> Result<Success, Failure> {
    let wire = goal.wire()?;
    let stop = signals::stop(console);
    let progress = Progress::new(console);
    let watch = Watch { clock: &SystemClock, stop: &stop, progress: &progress };
    let at = SystemClock.now();
    if let Some(count) = args.sessions {
        let each = (Duration::from_secs_f64(args.every), args.tokens);
        let (held, growth) =
            goal.sessions(&wire, (count, args.ramp.unwrap_or(SESSION_RAMP), args.seconds), each, watch).await?;
        progress.finish();
        return report_sessions(goal, at, &held, growth.as_ref(), console);
    }
    progress.line(match args.find_limit {
        true => {
            "Searching for the most users within the p95 limit: a series of load tests, which takes several minutes …"
        }
        false => "Running the load test …",
    });
    let p95_ms = args.find_limit.then_some(args.p95_ms);
    let (measured, limit, growth) =
        goal.users(&wire, (args.users, args.ramp.unwrap_or(RAMP), args.seconds), p95_ms, watch).await?;
    progress.finish();
    report_users(goal, args, at, (&measured, limit.as_ref(), growth.as_ref()), console)
}

/// Reports the sessions that were held.
fn report_sessions(
    goal: &LoadTarget,
    at: Timestamp,
    held: &SessionResult,
    growth: Option<&ScaleUp>,
    console: Console,
) -> Result<Success, Failure> {
    let report = Report {
        title: format!("Open sessions on {}", goal.address),
        at,
        address: goal.address.clone(),
        facts: growth.iter().map(|growth| ("pods".into(), grown(growth))).collect(),
        held: Some(held.clone()),
        ..Report::default()
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
    let text = held_summary(held) + &ending(growth, written.html.as_str());
    let ended = (held.stopped, held.errors == held.requests);
    finish(goal, (text, document), ended, || goal.keep(at, Some(held), growth), console)
}

fn report_users(
    goal: &LoadTarget,
    args: &Load,
    at: Timestamp,
    (measured, limit, growth): (&Measured, Option<&Limit>, Option<&ScaleUp>),
    console: Console,
) -> Result<Success, Failure> {
    let report = Report {
        title: format!("Load on {}", goal.address),
        at,
        address: goal.address.clone(),
        facts: vec![
            ("users".into(), args.users.clamp(1, MOST_USERS).to_string()),
            ("seconds".into(), args.seconds.to_string()),
        ],
        load: Some(measured.clone()),
        limit: limit.cloned(),
        ..Report::default()
    };
    let written = report.write(&goal.reports, "load").context("write the report")?;
    let document = json!({
        "requests": measured.requests, "errors": measured.errors, "errors_by_kind": measured.errors_by_kind,
        "p50_ms": measured.generate.p50_ms, "p95_ms": measured.generate.p95_ms, "p99_ms": measured.generate.p99_ms,
        "rps": measured.rps, "tokens_per_second": measured.tokens_per_second,
        "limit": limit.map(|l| json!({ "users": l.users, "at_least": l.at_least })),
        "scaling": growth,
        "report": written.html,
    });
    let text = summary(measured, limit, args.p95_ms) + &ending(growth, written.html.as_str());
    let ended = (measured.stopped, measured.errors > 0 && measured.errors == measured.requests);
    // A search runs many loads, so the time until pods were added has no meaning.
    let growth = growth.filter(|_| limit.is_none());
    finish(goal, (text, document), ended, || goal.keep(at, None, growth), console)
}

/// The result. A load that stopped early, or that got no answer, is a failure with what was measured.
fn finish(
    goal: &LoadTarget,
    (text, document): (String, Value),
    (stopped, nothing_answered): (bool, bool),
    keep: impl FnOnce() -> anyhow::Result<Option<&'static str>>,
    console: Console,
) -> Result<Success, Failure> {
    if stopped {
        let error = anyhow::anyhow!("stopped early; measured so far:\n{text}");
        return Err(Failure::new(Exit::Stopped, "stopped", error).document(document));
    }
    if nothing_answered {
        let error = anyhow::anyhow!("{text}").context(format!("{} answered no request", goal.address));
        return Err(Failure::new(Exit::Failed, "nothing_answered", error)
            .hint(format!("check that the service runs and that the key is valid: {}", goal.health))
            .document(document));
    }
    match keep().context("store the measurements") {
        Ok(warning) => {
            warning.iter().for_each(|warning| console.warn(warning));
            Ok(Success::new(text, document))
        }
        Err(error) => Err(Failure::from(error).document(document)),
    }
}

/// The last lines of the text.
fn ending(growth: Option<&ScaleUp>, report: &str) -> String {
    let pods = growth.map_or(String::new(), |growth| format!("\n  pods          {}", grown(growth)));
    format!("{pods}\n  report        {report}")
}

fn grown(growth: &ScaleUp) -> String {
    let ScaleUp { from, to, seconds } = growth;
    match seconds {
        Some(seconds) => format!("{from} before, {to} ready after {seconds:.0} s"),
        None => format!("{from} before, {to} desired, never all ready"),
    }
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

fn held_summary(held: &SessionResult) -> String {
    let refused: u64 = held.refused.values().sum();
    let mut text = format!(
        "  sessions      {} of {} open at the end, {} dropped, {refused} refused\n",
        held.open, held.sessions.count, held.dropped
    );
    let (opening, answers) = (&held.opening, &held.answers);
    text.push_str(&format!("  opened in     p50 {:.0} ms, p95 {:.0} ms\n", opening.p50_ms, opening.p95_ms));
    text.push_str(&format!("  requests      {} ({} failed)\n", held.requests, held.errors));
    text.push_str(&format!(
        "  whole answer  p50 {:.0} ms, p95 {:.0} ms, p99 {:.0} ms",
        answers.p50_ms, answers.p95_ms, answers.p99_ms
    ));
    for (kind, count) in &held.errors_by_kind {
        text.push_str(&format!("\n  failed        {count} × {kind}"));
    }
    for (kind, count) in &held.refused {
        text.push_str(&format!("\n  refused       {count} × {kind}"));
    }
    text
}
