//! `up`: provisions an environment, delivers its models, generates a first text, and verifies its health by the gate.

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use textnlp_orchestrator::apply::{Gates, Outcome};
use textnlp_orchestrator::environment::names;
use textnlp_orchestrator::plan::{Cost, Node, Plan};
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::run::{Run, RunOptions, RunOutcome, run_phases, run_saved_plan};
use textnlp_provider::EnvironmentName;
use textnlp_service::{backup, gate as measured, release, running};

use super::{gate, reach};
use crate::args::Up;
use crate::client::Client;
use crate::deployment::{Deployment, broken_lock, operator, preflight_failure, run_failed};
use crate::plan_view;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::rerun_flags;
use crate::session::Session;
use crate::signals;
use crate::stores;

/// The start of the first text, in the domain of the embedded model.
const PROMPT: &str = "Mira walked to the harbour";

/// `up`.
pub async fn up(session: &Session, args: &Up, console: Console) -> Result<Success, Failure> {
    run(session, args, None, console).await
}

/// `up`, with a saved plan that was approved, if there is one.
pub async fn run(session: &Session, args: &Up, saved: Option<&Plan>, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_run(console)?;
    let (name, phase) = (chosen.name.clone(), chosen.loaded.environment.phase);
    let deployment = Deployment::wanted(session, chosen, console).await?;
    let gated = args.gated || saved.is_some_and(|plan| plan.steps.iter().any(|s| matches!(s.node, Node::Gate(_))));
    measured::is_measured(&deployment.scope(), phase, args.no_gate, gated)?;
    within_budget(&deployment, console)?;
    let ask = RunOptions { gated: args.gated, ..RunOptions::UP };
    if let Some(warning) = release::keep_replaced(&deployment.scope(), deployment.release.as_ref()).await? {
        console.warn(warning);
    }
    let gates = gate::WithinRun::new(&deployment, console);
    let arrival = go(&deployment, ask, Some(&gates), saved, console).await?;
    let mut document = document(&deployment, &arrival);
    document["phase"] = json!(phase.to_string());
    if !arrival.outcome.shut.is_empty() {
        if let Some(evidence) = gates.evidence() {
            document["gate"] = gate::document(&evidence);
            document["report"] = json!(evidence.report);
            console.stream(&format!("{}\n\n", gate::text(&evidence)));
        }
        return Err(shut(&arrival, session, &name).document(document));
    }
    if !arrival.is_complete() {
        return Err(incomplete(&arrival, "up", session, &name).document(document));
    }
    keep_release(&deployment, &arrival).await?;
    backup::settings::remember(&deployment.chosen.folder, &deployment.chosen.loaded, &deployment.lock_path)?;

    let running = running::running(&deployment.scope()).await?;
    document["address"] = json!(running.address);
    document["ca_file"] = reach::path_or_null(running.ca_file.as_ref());
    document["key_file"] = reach::path_or_null(running.key_file.as_ref());
    let prompt = args.prompt.as_deref().unwrap_or(PROMPT);
    let spoken = first_text(&deployment, prompt, console).await?;
    document["text"] = json!(spoken);

    let environment = &deployment.chosen.loaded.environment;
    let saved = backup::backup_status::warning(&deployment.scope(), arrival.lineage, environment).await;
    saved.lines.iter().for_each(|line| console.warn(line));
    document["backup"] = saved.document;
    let mut report = String::new();
    let mut verdict = Ok(());
    if args.no_gate {
        document["gate"] = Value::Null;
    } else {
        let evidence = gate::measure(&deployment, &running, false, console).await?;
        document["gate"] = gate::document(&evidence);
        document["report"] = json!(evidence.report);
        report = gate::text(&evidence);
        verdict = evidence.verdict(&session.again().command("gate --again", &name));
    }
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    let text = format!("{report}\n{}", how_to_reach(session, &running, &name, prompt));
    match verdict {
        Ok(()) => Ok(Success::new(text, document)),
        // The service keeps running for inspection. The measurements and the address are printed in any case.
        Err(failure) => {
            if console.is_text() {
                console.stream(&format!("{text}\n\n"));
            }
            Err(failure.document(document))
        }
    }
}

/// Refuses costs above the budget before anything is created, and warns about costs that cannot be checked.
fn within_budget(deployment: &Deployment<'_>, console: Console) -> Result<(), Failure> {
    let budget = &deployment.chosen.loaded.environment.budget;
    match Cost::wanted(deployment.sites.values(), &budget.currency).against(budget) {
        Some(problem) if problem.warning => console.warn(problem.to_string()),
        Some(problem) => return Err(preflight_failure("up", "over_budget", Exit::Refused, &[problem])),
        None => {}
    }
    Ok(())
}

/// Runs with progress, signals and approval: from a saved plan or by a confirmation.
pub async fn go(
    deployment: &Deployment<'_>,
    ask: RunOptions,
    gates: Option<&dyn Gates>,
    saved: Option<&Plan>,
    console: Console,
) -> Result<RunOutcome, Failure> {
    let progress = Progress::new(console);
    let yes = deployment.session.global.yes;
    let mut agree = |plan: &Plan| {
        progress.line(plan_view::text(plan));
        yes || console.confirm("Make these changes?")
    };
    let stop = signals::stop(console);
    let purpose = saved.map_or(ask.purpose, |plan| plan.purpose);
    stores::remember(&stores::StateLocation::of(&deployment.chosen.loaded.environment)?, &deployment.chosen.folder)?;
    let road = Run { gates, ..deployment.road(&progress) };
    let arrived = match saved {
        Some(plan) => run_saved_plan(&road, plan, &stop).await,
        None => run_phases(&road, ask, &mut agree, &stop).await,
    };
    progress.finish();
    let arrival = arrived.map_err(|e| run_failed(e, purpose, deployment.session, &deployment.chosen.name))?;
    // A plan without changes needs no approval, so it was not printed yet.
    if let Some(plan) = arrival.plan.as_ref().filter(|p| !p.has_changes()) {
        console.say(plan_view::text(plan));
    }
    Ok(arrival)
}

/// The members that the documents of `up` and `down` share.
pub fn document(deployment: &Deployment<'_>, arrival: &RunOutcome) -> Value {
    let counts = arrival.plan.as_ref().map(plan_view::counts);
    let retained = arrival.plan.as_ref().map(|p| p.retained.clone()).unwrap_or_default();
    let roles = deployment.roles();
    let sites: Vec<_> = deployment
        .sites
        .iter()
        .map(|(name, site)| {
            json!({ "name": name, "role": roles.get(name), "provider": site.place.provider, "region": site.place.region })
        })
        .collect();
    let region = deployment.chosen.loaded.environment.primary().map(|s| s.region.clone());
    json!({
        "environment": deployment.chosen.name,
        "lineage": arrival.lineage,
        "region": region,
        "sites": sites,
        "plan": counts,
        "retained": retained,
        "recovered": arrival.recovered,
        "outcome": arrival.outcome,
    })
}

/// The failure of a shut gate within a run: what remains, and how to continue.
fn shut(arrival: &RunOutcome, session: &Session, environment: &EnvironmentName) -> Failure {
    let outcome = &arrival.outcome;
    let stays: Vec<_> = outcome.skipped.iter().map(|skipped| skipped.resource.to_string()).collect();
    let reasons =
        outcome.shut.iter().flat_map(|shut| shut.because.iter().map(move |why| format!("{}: {why}", shut.site)));
    let reasons: Vec<_> = reasons.collect();
    let error = anyhow::anyhow!("{}", reasons.join("\n")).context(format!(
        "up {environment}: the gate is not open, so the previous version was not removed: {}",
        stays.join(", ")
    ));
    let (again, back) = (session.again().same("up", environment), session.again().command("rollback", environment));
    Failure::new(Exit::GateShut, "gate_not_open", error).hint(format!(
        "measure again, and continue if it passes: {again} --gated\nroll back to the previous release: {back}\nremove the previous version without the gate: {again}"
    ))
}

/// The failure of an incomplete run, and how to continue.
pub fn incomplete(arrival: &RunOutcome, verb: &str, session: &Session, environment: &EnvironmentName) -> Failure {
    let Outcome { failed, open, stopped, .. } = &arrival.outcome;
    let again = session.again().same(verb, environment);
    if *stopped && failed.is_empty() {
        let error = anyhow::anyhow!("stopped; the next run resumes where this one stopped");
        return Failure::new(Exit::Stopped, "stopped", error).hint(again);
    }
    let Some(first) = failed.first() else {
        let waiting: Vec<_> = open.iter().map(|o| format!("{}: {}", o.resource, o.because)).collect();
        let blocked = arrival.plan.iter().flat_map(plan_view::blocked);
        let blocked = blocked.map(|(names, because)| format!("{names}: {because}"));
        let lines: Vec<_> = waiting.into_iter().chain(blocked).collect();
        let error = anyhow::anyhow!("{}", lines.join("\n"))
            .context(format!("{verb} {environment}: some changes could not be made"));
        let (away, works) = arrival.plan.as_ref().map(plan_view::away).unwrap_or_default();
        let hint = match works.first() {
            Some(site) if !away.is_empty() => {
                let away = away.into_iter().collect::<Vec<_>>().join(", ");
                format!("once {away} can be reached: {again}\nuntil then, one site at a time: {again} --site {site}")
            }
            _ => again,
        };
        return Failure::new(Exit::Failed, "incomplete", error).hint(hint);
    };
    let lines: Vec<_> = failed.iter().map(textnlp_orchestrator::apply::StepFailure::line).collect();
    let many = if failed.len() == 1 { "a step".to_owned() } else { format!("{} steps", failed.len()) };
    let error = anyhow::anyhow!("{}", lines.join("\n")).context(format!("{verb} {environment}: {many} failed"));
    let hint = first.hint.clone().map_or_else(
        || format!("fix the cause and run again: {again}"),
        |hint| format!("{hint}\nthen run again: {again}"),
    );
    Failure::new(Exit::Failed, "apply_failed", error).hint(hint).resource(first.resource.to_string())
}

/// Records the applied release, and writes the release lock after the first `up`. Later runs use the lock. It has the
/// digests of the delivered models while their sources stay the same.
async fn keep_release(deployment: &Deployment<'_>, arrival: &RunOutcome) -> Result<(), Failure> {
    let Some(release) = &deployment.release else { return Ok(()) };
    if arrival.plan.is_none() {
        return Ok(());
    }
    let there = Lock::read(&deployment.lock_path).map_err(|e| broken_lock(e, &deployment.scope()))?;
    let mut lock = there.clone().unwrap_or_else(|| release.lock.clone());
    let models = &deployment.chosen.loaded.environment.models;
    let fresh: Vec<_> =
        models.iter().filter(|m| !lock.models.contains_key(&m.name) || !lock.holds(&m.name, m.source())).collect();
    let said = release.lock.image_sources.iter();
    let said = said.filter(|(site, _)| deployment.sites.keys().any(|applied| applied.as_str() == site.as_str()));
    let other: Vec<_> = said.filter(|(site, said)| lock.image(site, Some(said)).is_none()).collect();
    let is_new = there.is_none() || !fresh.is_empty() || !other.is_empty();
    for (site, said) in other {
        lock.images.extend(release.lock.images.get_key_value(site).map(|(site, image)| (site.clone(), image.clone())));
        lock.image_sources.insert(site.clone(), said.clone());
    }
    if is_new {
        let state = deployment.state().await?;
        for site in deployment.sites.keys() {
            for (id, holding) in state.holdings(site)? {
                let digest =
                    holding.current.as_ref().and_then(|r| r.outputs.get("digest")?.as_str().map(str::to_owned));
                let model = id.as_str().rsplit('/').next().and_then(|name| fresh.iter().find(|m| m.name == name));
                if let (names::MODELS, Some(digest), Some(model)) = (id.component(), digest, model) {
                    lock.models.insert(model.name.clone(), digest);
                    lock.sources.insert(model.name.clone(), model.source().to_owned());
                }
            }
        }
    }
    // Recorded first, so that the history contains every applied lock.
    let scope = deployment.scope();
    let (sites, operator) = (deployment.sites.len(), operator(deployment.session));
    release::keep_applied(deployment.subject(&scope), release, &lock, sites, operator).await?;
    if is_new {
        lock.write(&deployment.lock_path)?;
    }
    Ok(())
}

/// Replicas and the gateway become ready independently. The gateway polls its replicas twice a second.
async fn until_ready(client: &Client) -> Result<(), Failure> {
    const LOCK_TIMEOUT: Duration = Duration::from_secs(15);
    const POLL_INTERVAL: Duration = Duration::from_millis(100);
    let began = Instant::now();
    loop {
        match client.get("/ready").await {
            Ok(_) => return Ok(()),
            Err(failure) if began.elapsed() > LOCK_TIMEOUT => return Err(failure),
            Err(_) => tokio::time::sleep(POLL_INTERVAL).await,
        }
    }
}

/// Generates a text, and streams it to the terminal.
async fn first_text(deployment: &Deployment<'_>, prompt: &str, console: Console) -> Result<String, Failure> {
    let environment = &deployment.chosen.loaded.environment;
    let client = Client::new(reach::target(&deployment.scope(), Some(environment)).await?)?;
    until_ready(&client).await?;
    let mut whole = String::new();
    console.stream(&format!("\n{prompt}"));
    let body = json!({ "prompt": prompt, "max_tokens": 120, "temperature": 0.6, "seed": 7 });
    client
        .stream("/v1/stream", &body, |event| {
            if let Some(piece) = event["text"].as_str() {
                console.stream(piece);
                whole.push_str(piece);
            }
        })
        .await?;
    console.stream("\n\n");
    Ok(whole)
}

fn how_to_reach(
    session: &Session,
    running: &running::RunningEnvironment,
    environment: &EnvironmentName,
    prompt: &str,
) -> String {
    let mut text = format!("{environment} is up at {}\n", running.address);
    if let Some(key) = &running.key_file {
        text.push_str(&format!("  key    {key}\n"));
    }
    if let Some(ca) = &running.ca_file {
        text.push_str(&format!("  ca     {ca}\n"));
    }
    text.push_str(&format!("  try    {}\n", reach::curl(running, prompt)));
    text.push_str(&format!(
        "  or     {} {}\n",
        session.again().command("generate", environment),
        rerun_flags::quoted(prompt)
    ));
    text.push_str(match &running.namespace {
        Some(_) if running.ca_file.is_none() => {
            "  The cluster keeps it running. You provided its certificate, and you renew it."
        }
        Some(_) => "  The cluster keeps it running. `up` renews its certificate in the last third of its validity.",
        None => "  After a reboot of this machine, run `up` again.",
    });
    text
}
