//! `load --sessions`: measures how many clients an address can hold at once, each with its own connection.

use std::time::Duration;

use serde_json::json;
use textnlp_orchestrator::load::{self, HttpWire, SessionProgress, SessionResult, Sessions};

use super::{LoadResult, LoadTarget};
use crate::args;
use crate::commands::gate::clock_and_stop;
use crate::progress::Progress;
use crate::report::{Console, Failure};

/// Default ramp-up in sessions per second.
const RAMP: f64 = 200.0;
/// Open files of this program besides its connections.
const OTHER_FILES: u64 = 64;

pub(super) async fn measure(
    goal: &LoadTarget,
    args: &args::Load,
    count: u32,
    wire: &HttpWire,
    console: Console,
) -> Result<LoadResult<SessionResult>, Failure> {
    enough_files(count)?;
    let (clock, stop) = clock_and_stop(console);
    let wanted = Sessions {
        count,
        ramp: args.ramp.unwrap_or(RAMP).max(1.0) as u32,
        hold: Duration::from_secs(u64::from(args.seconds)),
        every: Duration::from_secs_f64(args.every),
        tokens: args.tokens,
        timeout: Duration::from_secs(60),
        seed: 1,
    };
    let progress = Progress::new(console);
    let mut say = |standing: &SessionProgress| {
        console.event(&json!({ "event": "sessions", "standing": standing }));
        progress.doing(&format!(
            "second {}, {} of {count} sessions open, {} lost, {} requests, {} failed",
            standing.second, standing.open, standing.lost, standing.requests, standing.errors
        ));
    };
    let held = goal
        .watched(
            (clock.as_ref(), &stop),
            &progress,
            load::hold(wire, goal.key.as_ref(), &wanted, clock.as_ref(), &stop, &mut say),
        )
        .await;
    progress.finish();
    Ok(held)
}

/// Raises the soft limit of open files: each session needs one, and shells start with a low limit.
fn enough_files(count: u32) -> Result<(), Failure> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
    let needed = u64::from(count) + OTHER_FILES;
    match getrlimit(Resource::Nofile).current {
        Some(allowed) if allowed < needed => {
            let error = anyhow::anyhow!("{count} sessions need {needed} open files, but the limit is {allowed}");
            Err(Failure::usage("too_few_files", error).hint(format!("raise the limit: ulimit -Hn {needed}, as root")))
        }
        _ => Ok(()),
    }
}

pub(super) fn summary(held: &SessionResult) -> String {
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
