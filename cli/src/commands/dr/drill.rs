//! `dr drill`: runs a drill, and prints its report.

use std::fmt::Write as _;

use async_trait::async_trait;
use camino::{Utf8Path, Utf8PathBuf};
use textnlp_orchestrator::dr::report::Report;
use textnlp_orchestrator::gate::phases::{DATABASE_ROLE, LOST, RPO, RTO_CONTROL, RTO_SERVICE, UNACCOUNTED};
use textnlp_orchestrator::run::RunOptions;
use textnlp_service::dr::drill::{self, Request};
use textnlp_service::dr::{CloneRunner, environment_file};
use textnlp_service::up::incomplete;

use super::{sites, sites_to_change};
use crate::args::{Down, Global, Output};
use crate::commands::prelude::*;
use crate::commands::{down, up};
use crate::deployment::{self, operator};
use crate::dr_args::Drill;
use crate::signals;

/// `dr drill`.
pub async fn drill(session: &Session, args: &Drill, console: Console) -> Result<Success, Failure> {
    // A freeze keeps no fault in place.
    let sites = if args.finish { sites(session)? } else { sites_to_change(session).await? };
    let progress = Progress::new(console);
    let request = Request {
        site: session.global.site.as_deref(),
        fault: args.fault,
        lose_data: args.lose_data,
        ttl: args.ttl,
        live: args.live.as_deref(),
        operator: operator(session),
        clones: &Clones(session),
        progress: &progress,
        stop: signals::stop_steps(console),
    };
    if args.finish {
        let (drills, clones) = drill::finish(&sites, &request).await?;
        progress.finish();
        let text = match (drills.as_slice(), clones.as_slice()) {
            ([], []) => "No drill is unfinished".to_owned(),
            ([], _) => "The clones of killed drills are removed".to_owned(),
            (_, []) => format!("Finished: {}", drills.join(", ")),
            _ => format!("Finished: {}; clones removed: {}", drills.join(", "), clones.len()),
        };
        return Ok(Success::new(text, json!({ "finished": drills, "clones_removed": clones })));
    }
    let (report, page) = drill::drill(&sites, &request).await?;
    progress.finish();
    let mut document = report.to_json();
    document["report"] = json!(page);
    let text = text(&report, page.as_str());
    match drill::verdict(&report, &page) {
        Ok(()) => Ok(Success::new(text, document)),
        Err(failure) => {
            console.stream(&format!("{text}\n"));
            Err(failure.document(document))
        }
    }
}

/// Runs clones with the flags of a session. Their progress is not printed. Failures become errors.
struct Clones<'a>(&'a Session);

impl Clones<'_> {
    fn session(&self, root: &Utf8Path, server: Option<Utf8PathBuf>) -> Result<Session, Failure> {
        Session::alone(Global {
            env: None,
            file: Some(environment_file(root)),
            server,
            set: Vec::new(),
            site: None,
            provider: None,
            state_dir: Some(root.to_owned()),
            yes: true,
            ..self.0.global.clone()
        })
    }
}

#[async_trait(?Send)]
impl CloneRunner for Clones<'_> {
    async fn up(&self, root: &Utf8Path, server: Option<Utf8PathBuf>) -> Result<ChosenEnvironment, Failure> {
        let (session, quiet) = (self.session(root, server)?, Console::new(Output::Text, true));
        let deployment = deployment::wanted(&session, session.load_to_run(quiet)?, quiet).await?;
        let outcome = up::go(&session, &deployment, RunOptions::UP, None, None, quiet).await?;
        if !outcome.is_complete() {
            return Err(incomplete(&outcome, "up", &deployment.chosen.scope));
        }
        Ok(deployment.chosen)
    }

    async fn down(&self, root: &Utf8Path, name: &str) -> Result<(), Failure> {
        let args = Down { delete_data: Some(name.to_owned()), delete_dumps: None };
        down::down(&self.session(root, None)?, &args, Console::new(Output::Text, true)).await.map(drop)
    }
}

fn text(report: &Report, page: &str) -> String {
    let (found, targets) = (&report.figures.findings, &report.targets);
    let seconds = |ms: f64| format!("{:.2} s", ms / 1000.0);
    let on = if report.facts.live { "" } else { " on a clone" };
    let mut text =
        format!("Drill {}: {} of {}{on} ({:.1} s)\n", report.id, report.fault.word(), report.site, report.seconds);
    let mut rows = vec![
        (
            RTO_SERVICE,
            found.service_rto_ms.map_or("not reached".to_owned(), seconds),
            format!("target {} s", targets.rto_s),
        ),
        (RTO_CONTROL, report.control_rto(), format!("target {} s", targets.rto_s)),
        (RPO, seconds(found.rpo_ms), format!("target {} s", targets.rpo_s)),
        (LOST, found.lost.to_string(), format!("of {} writes", found.acknowledged)),
        (UNACCOUNTED, found.unaccounted.to_string(), format!("of {} requests", found.requests)),
    ];
    rows.extend(report.figures.database.map(|role| (DATABASE_ROLE, role.to_string(), "target primary".to_owned())));
    for (what, measured, note) in rows {
        let _ = writeln!(text, "  {what:<28}{measured:<12} {note}");
    }
    let failed = found.failed;
    let _ = writeln!(
        text,
        "  requests failed             {} until the failover, {} refused and {} timed out after it, {} during failback",
        failed.before_fault + failed.during,
        failed.after_shift,
        failed.slow_after_shift,
        failed.on_return
    );
    if !found.reasons.is_empty() {
        let _ = writeln!(text, "  why they failed             {}", found.why());
    }
    let left = if report.leftovers.is_empty() { "nothing".to_owned() } else { report.leftovers.join("; ") };
    let _ = write!(text, "  left over                   {left}\n  report                      {page}");
    text
}
