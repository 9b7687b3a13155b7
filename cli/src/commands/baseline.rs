//! `baseline`: records the cost and the speed of what runs, and compares later releases with them.

use std::fmt::Write as _;

use textnlp_orchestrator::plan::amount;
use textnlp_service::baseline::{self, Baseline as Recorded, Origin, RecordedCost, RecordedSpeed, SpeedTest};
use textnlp_service::running::{self, RunningEnvironment};

use super::prelude::*;
use crate::deployment::{self, Deployment};
use crate::operations_args::{Baseline, BaselinePart, BaselineRecord};
use crate::signals;

/// `baseline …`.
pub async fn baseline(session: &Session, command: &Baseline, console: Console) -> Result<Success, Failure> {
    match command {
        Baseline::Record(args) => record(session, args, console).await,
        Baseline::Compare => compare(session, console).await,
        Baseline::Show => show(session, console),
    }
}

fn unverified(why: String, record: &str) -> Failure {
    Failure::refused("baseline_not_verified", anyhow::anyhow!(why)).hint(format!("record it again: {record} --replace"))
}

async fn running_of(session: &Session, console: Console) -> Result<(Deployment, RunningEnvironment), Failure> {
    let chosen = session.load_to_run(console)?;
    let deployment = deployment::recorded(session, chosen).await?;
    let running = running::running(&deployment.chosen.scope).await?;
    running.has_api(&deployment.chosen.scope, "API keys for measurements")?;
    Ok((deployment, running))
}

async fn record(session: &Session, args: &BaselineRecord, console: Console) -> Result<Success, Failure> {
    let (deployment, running) = running_of(session, console).await?;
    let chosen = &deployment.chosen;
    let (scope, folder) = (&chosen.scope, &chosen.scope.folder);
    let again = scope.last("baseline record");
    let mut recorded = match Recorded::read(folder) {
        Ok(recorded) => recorded,
        Err(_) if args.replace => Recorded::default(),
        Err(why) => return Err(unverified(why, &again)),
    };
    let is_wanted = |part| args.only.is_none_or(|only| only == part);
    let there = (is_wanted(BaselinePart::Cost) && recorded.cost.is_some())
        || (is_wanted(BaselinePart::Speed) && recorded.speed.is_some());
    if there && !args.replace {
        let error = anyhow::anyhow!("a baseline of {} is recorded; nothing was measured", scope.name);
        let hint = format!("show it: {}\nreplace it: {again} --replace", scope.command("baseline show"));
        return Err(Failure::refused("baseline_exists", error).hint(hint));
    }
    let state = deployment.state().await?;
    if is_wanted(BaselinePart::Cost) {
        let cost = baseline::recorded_cost(&deployment, &state)?;
        match baseline::whole(&deployment, &state, &cost)? {
            Ok(cost) => recorded.cost = Some(cost.record(baseline::origin(chosen, running.lineage)?)),
            Err(why) if args.only.is_some() => {
                let error = anyhow::anyhow!(why).context("the cost was not recorded");
                return Err(Failure::refused("cost_unknown", error).hint(scope.command("cost report")));
            }
            Err(why) => console.warn(format!("the cost was not recorded: {why}")),
        }
    }
    if is_wanted(BaselinePart::Speed) {
        baseline::runs_these_settings(chosen).await?;
        let test = SpeedTest::new(args.users, args.seconds, &chosen.loaded.environment);
        let stop = signals::stop(console);
        let progress = Progress::new(console);
        let measured = baseline::speed(chosen, &running, test, &progress, &stop).await;
        progress.finish();
        recorded.speed = Some(measured?);
        // It was compared with the previous baseline.
        recorded.compared = None;
    }
    recorded.write(folder)?;
    Ok(Success::new(text(&recorded), json!({ "environment": scope.name, "baseline": document(&recorded) })))
}

async fn compare(session: &Session, console: Console) -> Result<Success, Failure> {
    let (deployment, running) = running_of(session, console).await?;
    let chosen = &deployment.chosen;
    let (scope, folder) = (&chosen.scope, &chosen.scope.folder);
    let record = scope.last("baseline record");
    let mut recorded = Recorded::read(folder).map_err(|why| unverified(why, &record))?;
    let Some(before) = recorded.speed.clone() else {
        let error = anyhow::anyhow!("{} has no baseline of the speed", scope.name);
        return Err(Failure::usage("no_baseline", error)
            .hint(format!("record it, or promote from an environment that has one: {record}")));
    };
    baseline::runs_these_settings(chosen).await?;
    let stop = signals::stop(console);
    let progress = Progress::new(console);
    let now = progress.done(baseline::speed(chosen, &running, SpeedTest::of(&before), &progress, &stop).await)?;
    let speed = baseline::speed_up(&before, &now);
    recorded.compared = Some(now);
    recorded.write(folder)?;
    let state = deployment.state().await?;
    let cost = match &recorded.cost {
        None => Err("no baseline of the cost is recorded".to_owned()),
        Some(before) => {
            let cost = baseline::recorded_cost(&deployment, &state)?;
            baseline::whole(&deployment, &state, &cost)?.and_then(|now| baseline::reduction(before, &now))
        }
    };
    let line = |name: &str, unit: &str, compared: &Result<(f64, String), String>| match compared {
        Ok((value, note)) => format!("\n  {name:<8} {value}{unit}   {note}"),
        Err(why) => format!("\n  {name:<8} unknown   {why}"),
    };
    let text = format!(
        "{} compared with its baseline{}{}",
        scope.name,
        line("speed", " times", &speed),
        line("cost", " % less", &cost)
    );
    let member = |compared: Result<(f64, String), String>| match compared {
        Ok((value, note)) => json!({ "value": value, "note": note }),
        Err(why) => json!({ "value": null, "note": why }),
    };
    let document = json!({
        "environment": scope.name, "baseline": document(&recorded), "speed_up": member(speed),
        "cost_reduction_percent": member(cost),
    });
    Ok(Success::new(text, document))
}

fn show(session: &Session, console: Console) -> Result<Success, Failure> {
    let chosen = session.load(console)?;
    let scope = &chosen.scope;
    let recorded = Recorded::read(&scope.folder).map_err(|why| unverified(why, &scope.last("baseline record")))?;
    Ok(Success::new(text(&recorded), json!({ "environment": scope.name, "baseline": document(&recorded) })))
}

/// As in JSON documents: amounts are in the currency's unit.
fn document(recorded: &Recorded) -> Value {
    let mut document = json!(recorded);
    if let Some(cost) = &recorded.cost {
        let services = cost.services.iter().map(|(name, micros)| (name.clone(), json!(amount(*micros))));
        document["cost"]["services"] = Value::Object(services.collect());
        document["cost"]["known"] = json!(amount(cost.known_micros));
        if let Some(members) = document["cost"].as_object_mut() {
            members.remove("known_micros");
        }
    }
    document
}

fn text(recorded: &Recorded) -> String {
    let mut text = "Baseline".to_owned();
    let of = |origin: &Origin| {
        let Origin { environment, phase, at, .. } = origin;
        format!("{environment}, phase {phase}, {}", at.strftime("%Y-%m-%d %H:%M UTC"))
    };
    match &recorded.cost {
        None => text.push_str("\n  cost      not recorded"),
        Some(cost) => {
            let RecordedCost { origin, known_micros, unknown, currency, .. } = cost;
            let _ = write!(text, "\n  cost      {:.2} {currency} a month   {}", amount(*known_micros), of(origin));
            for why in unknown {
                let _ = write!(text, "\n            not included: {why}");
            }
        }
    }
    for (name, speed) in [("speed", &recorded.speed), ("compared", &recorded.compared)] {
        match speed {
            None => {
                let _ = write!(text, "\n  {name:<8}  not recorded");
            }
            Some(RecordedSpeed { origin, users, seconds, tokens_per_second, p50_ms, p95_ms, .. }) => {
                let _ = write!(
                    text,
                    "\n  {name:<8}  {tokens_per_second:.1} tokens/s, p50 {p50_ms:.0} ms, p95 {p95_ms:.0} ms, {users} requests at a \
                     time for {seconds} s   {}",
                    of(origin)
                );
            }
        }
    }
    text
}
