//! `up`: the whole road. Provision, deliver, speak, and prove by the gate that it is healthy.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use textnlp_orchestrator::apply::{Gates, Outcome};
use textnlp_orchestrator::environment::names;
use textnlp_orchestrator::plan::Plan;
use textnlp_orchestrator::release::Lock;
use textnlp_orchestrator::road::{Arrival, Ask, Road, travel, travel_as_planned};
use textnlp_provider::EnvironmentName;

use super::{backup, gate, release, running};
use crate::again;
use crate::args::Up;
use crate::client::Client;
use crate::deployment::{Deployment, broken_lock, road_failed};
use crate::plan_view;
use crate::progress::Progress;
use crate::report::{Console, Exit, Failure, Success};
use crate::session::Session;
use crate::signals;
use crate::stores;

/// What the first text begins with, in the domain of the model that ships.
const PROMPT: &str = "Mira walked to the harbour";

/// `up`.
pub async fn up(session: &Session, args: &Up, console: Console) -> Result<Success, Failure> {
    whole(session, args, None, console).await
}

/// `up`, by a plan that somebody agreed to before, if there is one.
pub async fn whole(session: &Session, args: &Up, saved: Option<&Plan>, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_run(console)?;
    let (name, phase) = (chosen.name.clone(), chosen.loaded.environment.phase);
    let deployment = Deployment::wanted(session, chosen, console).await?;
    let ask = Ask { gated: args.gated, ..Ask::UP };
    release::keep_replaced(&deployment, console).await?;
    let gates = gate::WithinRun::new(&deployment, console);
    let arrival = go(&deployment, ask, Some(&gates), saved, console).await?;
    let mut document = document(&deployment, &arrival);
    document["phase"] = json!(phase.to_string());
    if !arrival.outcome.shut.is_empty() {
        if let Some(evidence) = gates.evidence() {
            document["gate"] = evidence.document();
            document["report"] = json!(evidence.report_file());
            console.stream(&format!("{}\n\n", evidence.text()));
        }
        return Err(shut(&arrival, session, &name).document(document));
    }
    if !arrival.is_complete() {
        return Err(incomplete(&arrival, "up", session, &name).document(document));
    }
    keep_release(&deployment, &arrival).await?;
    backup::remember(&deployment)?;

    let running = running::running(session, &name, &deployment.chosen.folder).await?;
    document["address"] = json!(running.address);
    document["ca_file"] = running::path_or_null(running.ca_file.as_ref());
    document["key_file"] = running::path_or_null(running.key_file.as_ref());
    let prompt = args.prompt.as_deref().unwrap_or(PROMPT);
    let spoken = first_text(&deployment, prompt, console).await?;
    document["text"] = json!(spoken);

    let saved = backup::warning(
        &session.again(),
        &name,
        &deployment.chosen.folder,
        arrival.lineage,
        &deployment.chosen.loaded.environment,
    )
    .await;
    saved.lines.iter().for_each(|line| console.warn(line));
    document["backup"] = saved.document;
    let mut report = String::new();
    let mut verdict = Ok(());
    if args.no_gate {
        document["gate"] = Value::Null;
    } else {
        let evidence = gate::measure(&deployment, &running, false, console).await?;
        document["gate"] = evidence.document();
        document["report"] = json!(evidence.report_file());
        report = evidence.text();
        verdict = evidence.verdict(&session.again().command("gate --again", &name));
    }
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    let text = format!("{report}\n{}", how_to_reach(session, &running, &name, prompt));
    match verdict {
        Ok(()) => Ok(Success::new(text, document)),
        // The service stays up for inspection; a person reads the measurements and how to reach it all the same.
        Err(failure) => {
            if console.is_text() {
                console.stream(&format!("{text}\n\n"));
            }
            Err(failure.document(document))
        }
    }
}

/// Travels the road with progress, signals and consent: by a saved plan, or asking.
pub async fn go(
    deployment: &Deployment<'_>,
    ask: Ask,
    gates: Option<&dyn Gates>,
    saved: Option<&Plan>,
    console: Console,
) -> Result<Arrival, Failure> {
    let progress = Progress::new(console);
    let yes = deployment.session.global.yes;
    let mut agree = |plan: &Plan| {
        progress.line(plan_view::text(plan));
        yes || asked(console)
    };
    let stop = signals::stop(console);
    stores::remember(&stores::Located::of(&deployment.chosen.loaded.environment)?, &deployment.chosen.folder)?;
    let road = Road { gates, ..deployment.road(&progress) };
    let arrived = match saved {
        Some(plan) => travel_as_planned(&road, plan, &stop).await,
        None => travel(&road, ask, &mut agree, &stop).await,
    };
    progress.finish();
    let arrival = arrived.map_err(|e| road_failed(e, deployment.session, &deployment.chosen.name))?;
    // Without changes nobody was asked, so nobody has seen the plan.
    if let Some(plan) = arrival.plan.as_ref().filter(|p| !p.has_changes()) {
        console.say(plan_view::text(plan));
    }
    Ok(arrival)
}

/// Asks on a terminal; off a terminal nothing is asked and nothing is agreed to.
fn asked(console: Console) -> bool {
    if !std::io::stdin().is_terminal() || !console.is_text() {
        return false;
    }
    console.say("Make these changes? [y/N]");
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer).is_ok() && matches!(answer.trim(), "y" | "Y" | "yes" | "ja")
}

/// The members that `up` and `down` have in common.
pub fn document(deployment: &Deployment<'_>, arrival: &Arrival) -> Value {
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

/// What stays because the new did not pass, and how to go on.
fn shut(arrival: &Arrival, session: &Session, environment: &EnvironmentName) -> Failure {
    let outcome = &arrival.outcome;
    let stays: Vec<_> = outcome.skipped.iter().map(|skipped| skipped.resource.to_string()).collect();
    let reasons =
        outcome.shut.iter().flat_map(|shut| shut.because.iter().map(move |why| format!("{}: {why}", shut.site)));
    let reasons: Vec<_> = reasons.collect();
    let error = anyhow::anyhow!("{}", reasons.join("\n")).context(format!(
        "up {environment}: the gate is shut, and nothing of the old was removed: {}",
        stays.join(", ")
    ));
    let (again, back) = (session.again().same("up", environment), session.again().command("rollback", environment));
    Failure::new(Exit::GateShut, "gate_not_open", error).hint(format!(
        "measure again, and go on if it passes: {again} --gated\nback to the release before: {back}\nremove the old all the same: {again}"
    ))
}

/// What did not get done, and how to go on.
pub fn incomplete(arrival: &Arrival, verb: &str, session: &Session, environment: &EnvironmentName) -> Failure {
    let Outcome { failed, open, stopped, .. } = &arrival.outcome;
    let again = session.again().same(verb, environment);
    if *stopped && failed.is_empty() {
        let error = anyhow::anyhow!("stopped; nothing is half-done that the next run does not finish");
        return Failure::new(Exit::Stopped, "stopped", error).hint(again);
    }
    let Some(first) = failed.first() else {
        let waiting: Vec<_> = open.iter().map(|o| format!("{}: {}", o.resource, o.because)).collect();
        let blocked = arrival.plan.iter().flat_map(plan_view::blocked);
        let blocked = blocked.map(|(names, because)| format!("{names}: {because}"));
        let lines: Vec<_> = waiting.into_iter().chain(blocked).collect();
        let error = anyhow::anyhow!("{}", lines.join("\n"))
            .context(format!("{verb} {environment}: not everything could be done"));
        let (away, works) = arrival.plan.as_ref().map(plan_view::away).unwrap_or_default();
        let hint = match works.first() {
            Some(site) if !away.is_empty() => {
                let away = away.into_iter().collect::<Vec<_>>().join(", ");
                format!("once {away} can be reached: {again}\nuntil then a site by itself: {again} --site {site}")
            }
            _ => again,
        };
        return Failure::new(Exit::Failed, "incomplete", error).hint(hint);
    };
    let lines: Vec<_> = failed.iter().map(textnlp_orchestrator::apply::Failure::line).collect();
    let many = if failed.len() == 1 { "a step".to_owned() } else { format!("{} steps", failed.len()) };
    let error = anyhow::anyhow!("{}", lines.join("\n")).context(format!("{verb} {environment}: {many} failed"));
    let hint = first
        .hint
        .clone()
        .map_or_else(|| format!("mend it and run again: {again}"), |hint| format!("{hint}\nthen run again: {again}"));
    Failure::new(Exit::Failed, "apply_failed", error).hint(hint).resource(first.resource.to_string())
}

/// Writes down which release was applied, and the release lock after the first `up`; later ones honour it. Models are locked by the
/// digests that were delivered, for as long as their source stays the same.
async fn keep_release(deployment: &Deployment<'_>, arrival: &Arrival) -> Result<(), Failure> {
    let Some(release) = &deployment.release else { return Ok(()) };
    if arrival.plan.is_none() {
        return Ok(());
    }
    let there =
        Lock::read(&deployment.lock_path).map_err(|e| broken_lock(e, deployment.session, &deployment.chosen.name))?;
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
    // First, so that no lock was ever applied that the history does not know.
    release::keep_applied(deployment, &lock).await?;
    if is_new {
        lock.write(&deployment.lock_path)?;
    }
    Ok(())
}

/// Replicas and gateway are ready each by itself; the gateway looks at its replicas twice a second.
async fn until_ready(client: &Client) -> Result<(), Failure> {
    const PATIENCE: Duration = Duration::from_secs(15);
    const LOOK: Duration = Duration::from_millis(100);
    let began = Instant::now();
    loop {
        match client.get("/ready").await {
            Ok(_) => return Ok(()),
            Err(failure) if began.elapsed() > PATIENCE => return Err(failure),
            Err(_) => tokio::time::sleep(LOOK).await,
        }
    }
}

/// A text from the model, streamed to people.
async fn first_text(deployment: &Deployment<'_>, prompt: &str, console: Console) -> Result<String, Failure> {
    let client =
        Client::new(running::target(deployment.session, &deployment.chosen.name, &deployment.chosen.folder).await?)?;
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

fn how_to_reach(session: &Session, running: &running::Running, environment: &EnvironmentName, prompt: &str) -> String {
    let mut text = format!("{environment} is up at {}\n", running.address);
    if let Some(key) = &running.key_file {
        text.push_str(&format!("  key    {key}\n"));
    }
    if let Some(ca) = &running.ca_file {
        text.push_str(&format!("  ca     {ca}\n"));
    }
    text.push_str(&format!("  try    {}\n", running::curl(running, prompt)));
    text.push_str(&format!(
        "  or     {} {}\n",
        session.again().command("generate", environment),
        again::quoted(prompt)
    ));
    text.push_str(match &running.namespace {
        Some(_) if running.ca_file.is_none() => {
            "  The cluster keeps it running. Its certificate is renewed by whoever made it."
        }
        Some(_) => {
            "  The cluster keeps it running. Its certificate is renewed by an `up` in the last third of its life."
        }
        None => "  A reboot of this machine needs another `up`.",
    });
    text
}
