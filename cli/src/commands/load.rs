//! `load`: runs a load test with many users or at a fixed rate, finds the maximum sustainable number of users, or holds
//! many open sessions.

use std::time::Duration;

use anyhow::Context;
use camino::Utf8Path;
use jiff::Timestamp;
use textnlp_orchestrator::clock::{Clock, SystemClock};
use textnlp_orchestrator::load::{self, Key, KindResult, Limit, MOST_ERRORS, Measured, RateResult, SessionResult};
use textnlp_orchestrator::report::Report;
use textnlp_provider::Secret;
use textnlp_service::gate::growth::ScaleUp;
use textnlp_service::load::{LoadTarget, RateOptions, Watch};
use textnlp_service::report_files;

use super::prelude::*;
use crate::args::{Arrivals, Load};
use crate::network;
use crate::signals;

/// Default ramp-up in users, and in sessions, per second.
const RAMP: f64 = 10.0;
const SESSION_RAMP: f64 = 200.0;
/// Default limit of the p95 of `--find-limit`.
const P95_MS: f64 = 500.0;

/// `load`.
pub async fn load(session: &Session, args: &Load, console: Console) -> Result<Success, Failure> {
    // Before anything is measured: the result must not be lost for that.
    let folder = args.pdf.as_deref().and_then(Utf8Path::parent).filter(|folder| !folder.as_str().is_empty());
    if let Some(folder) = folder.filter(|folder| !folder.is_dir()) {
        return Err(Failure::usage("no_such_folder", anyhow::anyhow!("--pdf: there is no folder {folder}")));
    }
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
        return report_sessions(goal, args, at, (&held, growth.as_ref()), console);
    }
    if let Some(per_second) = args.rate {
        progress.line("Running the load test at a fixed rate …");
        let rate = load::Rate::from(RateOptions {
            per_second,
            arrivals: match args.arrivals {
                Arrivals::Poisson => load::Arrivals::Poisson,
                Arrivals::Uniform => load::Arrivals::Uniform,
            },
            ramp: args.ramp,
            seconds: args.seconds,
            in_flight: args.in_flight,
            mix: args.mix.clone().unwrap_or_default(),
        });
        let (measured, growth) = progress.done(goal.rate(&wire, &rate, watch).await)?;
        return report_rate(goal, args, at, (&measured, growth.as_ref()), console);
    }
    progress.line(match args.find_limit {
        true => {
            "Searching for the most users within the p95 limit: a series of load tests, which takes several minutes …"
        }
        false => "Running the load test …",
    });
    let p95_ms = args.find_limit.then_some(args.p95_ms.unwrap_or(P95_MS));
    let users = (args.users, args.ramp.unwrap_or(RAMP), args.seconds);
    let (measured, limit, growth) = goal.users(&wire, users, args.mix.clone(), p95_ms, watch).await?;
    progress.finish();
    report_users(goal, args, at, (&measured, limit.as_ref(), growth.as_ref()), console)
}

/// Writes the report. Returns its page.
fn write(goal: &LoadTarget, args: &Load, report: &Report, name: &str) -> Result<String, Failure> {
    let written = report.write(&goal.reports, name).context("write the report")?;
    if let Some(pdf) = &args.pdf {
        report_files::write_pdf(&report.to_tables(), pdf)?;
    }
    Ok(written.html.into_string())
}

/// Reports the sessions that were held.
fn report_sessions(
    goal: &LoadTarget,
    args: &Load,
    at: Timestamp,
    (held, growth): (&SessionResult, Option<&ScaleUp>),
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
    let page = write(goal, args, &report, "sessions")?;
    let document = json!({
        "requests": held.requests, "errors": held.errors, "errors_by_kind": held.errors_by_kind,
        "p50_ms": held.answers.p50_ms, "p95_ms": held.answers.p95_ms, "p99_ms": held.answers.p99_ms,
        "rps": held.requests as f64 / held.seconds.max(0.001), "tokens_per_second": held.tokens_per_second,
        "sessions": { "wanted": held.sessions.count, "open": held.open, "dropped": held.dropped, "refused": held.refused,
            "kept_all": held.kept_all(), "opening_p95_ms": held.opening.p95_ms },
        "scaling": growth,
        "report": page,
        "pdf": args.pdf,
    });
    let text = held_summary(held) + &ending(growth, &page);
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
        facts: args.mix.iter().map(|mix| ("mix".to_owned(), mix.to_string())).collect(),
        load: Some(measured.clone()),
        limit: limit.cloned(),
        ..Report::default()
    };
    let page = write(goal, args, &report, "load")?;
    let document = json!({
        "requests": measured.requests, "errors": measured.errors, "errors_by_kind": measured.errors_by_kind,
        "p50_ms": measured.generate.p50_ms, "p95_ms": measured.generate.p95_ms, "p99_ms": measured.generate.p99_ms,
        "rps": measured.rps, "tokens_per_second": measured.tokens_per_second,
        "kinds": measured.kinds,
        "limit": limit.map(|l| json!({ "users": l.users, "at_least": l.at_least })),
        "scaling": growth,
        "report": page,
        "pdf": args.pdf,
    });
    let text = summary(measured, limit, args.p95_ms.unwrap_or(P95_MS)) + &ending(growth, &page);
    let ended = (measured.stopped, measured.errors > 0 && measured.errors == measured.requests);
    // A search runs many loads, so the time until pods were added has no meaning. Its last load may fail on purpose.
    let growth = growth.filter(|_| limit.is_none());
    let failed = limit.is_none() && measured.errors as f64 > measured.requests as f64 * MOST_ERRORS;
    let done = finish(goal, (text.clone(), document.clone()), ended, || goal.keep(at, None, growth), console)?;
    if failed {
        let verdict = format!("{} of {} requests failed", measured.errors, measured.requests);
        return Err(Failure::new(Exit::Failed, "requests_failed", anyhow::anyhow!("{text}").context(verdict))
            .hint(format!("check the service: {}", goal.health))
            .document(document));
    }
    Ok(done)
}

/// Reports a load at a fixed rate. It fails if the rate was not sustained.
fn report_rate(
    goal: &LoadTarget,
    args: &Load,
    at: Timestamp,
    (measured, growth): (&RateResult, Option<&ScaleUp>),
    console: Console,
) -> Result<Success, Failure> {
    let RateResult { rate, latency, send_lag, .. } = measured;
    let problems = measured.problems(args.p95_ms);
    let verdict = match problems.as_slice() {
        [] => format!("{} requests/s were sustained", rate.per_second),
        problems => format!("{} requests/s were not sustained: {}", rate.per_second, problems.join("; ")),
    };
    let report = Report {
        title: format!("Load on {}", goal.address),
        at,
        address: goal.address.clone(),
        facts: vec![("result".into(), verdict.clone()), ("mix".into(), rate.mix.to_string())],
        rate: Some(measured.clone()),
        ..Report::default()
    };
    let page = write(goal, args, &report, "rate")?;
    let document = json!({
        "requests": measured.requests, "errors": measured.errors, "errors_by_kind": measured.errors_by_kind,
        "p50_ms": latency.p50_ms, "p90_ms": latency.p90_ms, "p95_ms": latency.p95_ms, "p99_ms": latency.p99_ms,
        "p99_9_ms": latency.p99_9_ms, "max_ms": latency.max_ms,
        "rps": measured.answered_per_second, "tokens_per_second": measured.tokens_per_second,
        "kinds": measured.kinds,
        "rate": {
            "wanted": rate.per_second, "sent": measured.sent_per_second, "answered": measured.answered_per_second,
            "arrivals": rate.arrivals, "mix": rate.mix, "due": measured.due, "sent_requests": measured.sent(),
            "dropped": measured.dropped, "unfinished": measured.unfinished,
            "in_flight": { "limit": rate.in_flight, "max": measured.in_flight_max },
            "send_lag": { "p99_ms": send_lag.p99_ms, "max_ms": send_lag.max_ms },
            "sustained": problems.is_empty(), "problems": problems,
        },
        "scaling": growth,
        "report": page,
        "pdf": args.pdf,
    });
    let text = rate_summary(measured) + &ending(growth, &page);
    let nothing_answered = measured.due > 0 && measured.errors == measured.requests;
    let (stopped, keep) = (measured.stopped, || goal.keep(at, None, growth));
    let shown = format!("{verdict}\n{text}");
    let measured = finish(goal, (shown, document.clone()), (stopped, nothing_answered), keep, console)?;
    match problems.is_empty() {
        true => Ok(measured),
        false => {
            let error = anyhow::anyhow!("{text}").context(verdict);
            Err(Failure::new(Exit::Failed, "rate_not_sustained", error).document(document))
        }
    }
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
    push_kinds(&mut text, &measured.kinds);
    for (kind, count) in &measured.errors_by_kind {
        text.push_str(&format!("\n  failed        {count} × {kind}"));
    }
    text
}

fn rate_summary(measured: &RateResult) -> String {
    let RateResult { rate, latency, send_lag, .. } = measured;
    let mut text = format!(
        "  wanted        {}/s for {} s, at most {} in flight\n",
        rate.per_second,
        rate.hold.as_secs(),
        rate.in_flight
    );
    text.push_str(&format!(
        "  sent          {:.1}/s, {} requests, {} dropped, at most {} in flight\n",
        measured.sent_per_second,
        measured.sent(),
        measured.dropped,
        measured.in_flight_max
    ));
    text.push_str(&format!(
        "  answered      {:.1}/s, {} of {} failed\n",
        measured.answered_per_second, measured.errors, measured.requests
    ));
    text.push_str(&format!(
        "  whole answer  p50 {:.0} ms, p90 {:.0} ms, p95 {:.0} ms, p99 {:.0} ms, p99.9 {:.0} ms, longest {:.0} ms\n",
        latency.p50_ms, latency.p90_ms, latency.p95_ms, latency.p99_ms, latency.p99_9_ms, latency.max_ms
    ));
    text.push_str(&format!("  sent late     p99 {:.0} ms, longest {:.0} ms\n", send_lag.p99_ms, send_lag.max_ms));
    text.push_str(&format!("  tokens        {:.0}/s", measured.tokens_per_second));
    push_kinds(&mut text, &measured.kinds);
    for (kind, count) in &measured.errors_by_kind {
        text.push_str(&format!("\n  failed        {count} × {kind}"));
    }
    text
}

fn push_kinds(text: &mut String, kinds: &[KindResult]) {
    for KindResult { kind, requests, errors, latency } in kinds {
        text.push_str(&format!(
            "\n  {kind}: {requests} requests, {errors} failed, p50 {:.0} ms, p95 {:.0} ms, p99 {:.0} ms",
            latency.p50_ms, latency.p95_ms, latency.p99_ms
        ));
    }
}

fn held_summary(held: &SessionResult) -> String {
    let refused: u64 = held.refused.values().sum();
    let mut text = format!(
        "  sessions      {} of {} open at the end, {} dropped, {refused} not opened\n",
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
        text.push_str(&format!("\n  not opened    {count} × {kind}"));
    }
    text
}
