//! `load`: many users at an address, or the search for how many it bears.

use std::time::Duration;

use anyhow::Context;
use camino::Utf8PathBuf;
use serde_json::json;
use textnlp_orchestrator::clock::Clock;
use textnlp_orchestrator::gate::{KeyIssuer, KeyRequest};
use textnlp_orchestrator::load::{self, FindLimit, HttpWire, Key, Limit, Load as Wanted, Measured, Second};
use textnlp_orchestrator::report::Report;
use textnlp_provider::Secret;

use super::gate::{Issuer, clock_and_stop};
use super::running;
use crate::args::Load;
use crate::client;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;

/// The search goes no further: beyond it the machine that asks is what is measured.
const MOST_USERS: u32 = 10_000;

/// Where the load goes.
struct Goal {
    address: String,
    ca_pem: Option<Vec<u8>>,
    key: Option<Key>,
    /// A key of ours to give back.
    temporary: Option<(Issuer, String)>,
    reports: Utf8PathBuf,
    /// The command that looks whether it is there.
    health: String,
}

/// `load`.
pub async fn load(session: &Session, args: &Load, console: Console) -> Result<Success, Failure> {
    let goal = goal(session, args).await?;
    let measured = measure(&goal, args, console).await;
    if let Some((issuer, id)) = &goal.temporary
        && let Err(why) = issuer.revoke(id).await
    {
        console.warn(format!("the temporary key {id} could not be revoked ({why}); it ends within the hour"));
    }
    measured
}

async fn measure(goal: &Goal, args: &Load, console: Console) -> Result<Success, Failure> {
    let wire = HttpWire::new(&goal.address, goal.ca_pem.as_deref()).map_err(|e| Failure::usage("usage", e))?;
    let (clock, stop) = clock_and_stop(console);
    let wanted = Wanted {
        users: args.users.clamp(1, MOST_USERS),
        ramp: args.ramp.max(1.0) as u32,
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
        progress.doing(&format!(
            "second {}, {} of {users} users, {} requests/s, p95 {:.0} ms",
            second.second, second.users, second.requests, second.p95_ms
        ));
    };
    let at = clock.now();
    let (measured, limit) = if args.find_limit {
        let search = FindLimit {
            load: wanted.clone(),
            p95: Duration::from_secs_f64((args.p95_ms / 1000.0).clamp(0.001, 600.0)),
            error_rate: 0.01,
            from: wanted.users.min(10),
            to: MOST_USERS,
            tolerance: 0.1,
        };
        let limit = load::find_limit(&wire, goal.key.as_ref(), &search, clock.as_ref(), &stop, &mut |users, second| {
            say(users, second)
        })
        .await;
        let best = limit.probes.iter().rfind(|p| p.ok).or(limit.probes.last()).map(|p| p.measured.clone());
        (best, Some(limit))
    } else {
        let users = wanted.users;
        let measured =
            load::run(&wire, goal.key.as_ref(), &wanted, clock.as_ref(), &stop, &mut |second| say(users, second)).await;
        (Some(measured), None)
    };
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
    };
    let written = report.write(&goal.reports, "load").context("write the report")?;
    let document = json!({
        "requests": measured.requests, "errors": measured.errors, "errors_by_kind": measured.errors_by_kind,
        "p50_ms": measured.generate.p50_ms, "p95_ms": measured.generate.p95_ms, "p99_ms": measured.generate.p99_ms,
        "rps": measured.rps, "tokens_per_second": measured.tokens_per_second,
        "limit": limit.as_ref().map(|l| json!({ "users": l.users, "at_least": l.at_least })),
        "report": written.html,
    });
    let mut text = summary(&measured, limit.as_ref(), args.p95_ms);
    text.push_str(&format!("\n  report        {}", written.html));
    if measured.stopped {
        return Err(Failure::new(Exit::Stopped, "stopped", anyhow::anyhow!("stopped early; measured so far:\n{text}"))
            .document(document));
    }
    if measured.errors > 0 && measured.errors == measured.requests {
        let error = anyhow::anyhow!("{text}").context(format!("{} answered no request", goal.address));
        return Err(Failure::new(Exit::Failed, "nothing_answered", error)
            .hint(format!("is it running, and is the key right? {}", goal.health))
            .document(document));
    }
    Ok(Success::new(text, document))
}

fn summary(measured: &Measured, limit: Option<&Limit>, p95_ms: f64) -> String {
    let mut text = String::new();
    if let Some(limit) = limit {
        text.push_str(&match limit.users {
            Some(users) if limit.at_least => format!("at least {users} users with p95 within {p95_ms:.0} ms\n"),
            Some(users) => format!("{users} users with p95 within {p95_ms:.0} ms\n"),
            None => format!("not even the fewest users with p95 within {p95_ms:.0} ms\n"),
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

async fn goal(session: &Session, args: &Load) -> Result<Goal, Failure> {
    let health = session.again().bare("health");
    let given = args.api_key.as_deref().map(|key| Key { header: "X-API-Key".to_owned(), value: Secret::new(key) });
    let ca_pem = args.ca_file.as_deref().map(client::read_ca).transpose()?;
    if let Some(address) = &args.address {
        let reports = session.here.join("textnlp-reports");
        return Ok(Goal { address: address.clone(), ca_pem, key: given, temporary: None, reports, health });
    }
    let chosen = session.load(Console::new(session.global.output, true))?;
    let health = session.again().command("health", &chosen.name);
    let running = running::running(session, &chosen.name, &chosen.folder).await?;
    let own_ca = running.ca_file.as_deref().map(client::read_ca).transpose()?;
    let (address, reports) = (running.address.clone(), chosen.folder.join("reports"));
    let ca_pem = ca_pem.or(own_ca);
    if given.is_some() {
        return Ok(Goal { address, ca_pem, key: given, temporary: None, reports, health });
    }
    let header = chosen.loaded.environment.server.security.api_key_header.clone();
    let issuer = Issuer { running, environment: chosen.loaded.environment.clone(), header };
    let issued = issuer
        .create(KeyRequest { name: "load (temporary)".to_owned(), requests_per_hour: None })
        .await
        .map_err(|why| Failure::from(anyhow::anyhow!("{why}").context("make a temporary key")))?;
    Ok(Goal { address, ca_pem, key: Some(issued.key), temporary: Some((issuer, issued.public_id)), reports, health })
}
