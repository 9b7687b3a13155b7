//! `up`: provisions an environment, delivers its models, generates a first text, and verifies its health by the gate.

use std::time::Instant;

use textnlp_orchestrator::apply::Gates;
use textnlp_orchestrator::plan::{Cost, Facts, Node, Plan, PlanRefusal, Purpose, shortages};
use textnlp_orchestrator::run::{Run, RunError, RunOptions, RunOutcome, run_phases, run_saved_plan};
use textnlp_orchestrator::state::Entry;
use textnlp_service::backup::{backup_status, key, settings};
use textnlp_service::bundle::installed;
use textnlp_service::client::{Client, Refusal, Target, completed};
use textnlp_service::gate::{Occasion, order};
use textnlp_service::running::{self, RunningEnvironment};
use textnlp_service::up::{accepted_loss, incomplete, prepare, record, shut};
use textnlp_service::{Progress as _, Scope, origin, program_digests};

use super::prelude::*;
use super::{gate, reach};
use crate::args::Up;
use crate::deployment::{self, Deployment, run_failed};
use crate::plan_view;
use crate::progress::completed_hints;
use crate::rerun_flags;
use crate::signals;
use crate::stores;

/// The start of the first text, in the domain of the embedded model.
const PROMPT: &str = "Mira walked to the harbour";

/// Tokens of the first text.
const FIRST_TOKENS: u32 = 120;

/// `up`.
pub async fn up(session: &Session, args: &Up, console: Console) -> Result<Success, Failure> {
    run(session, args, None, console).await
}

/// `up`, with a saved plan that was approved, if there is one.
pub async fn run(session: &Session, args: &Up, saved: Option<&Plan>, console: Console) -> Result<Success, Failure> {
    let began = Instant::now();
    let chosen = session.load_to_deploy(console)?;
    let phase = chosen.loaded.environment.phase;
    let delete_data = accepted_loss(args.accept_data_loss.as_deref(), &chosen.scope.name)?;
    let mut deployment = deployment::wanted(session, chosen, console).await?;
    let gated = args.gated || saved.is_some_and(|plan| plan.steps.iter().any(|s| matches!(s.node, Node::Gate(_))));
    let bundle = installed::basis(&session.library, &deployment);
    let entry = order::enter(&deployment, args.from_scratch, bundle).await?;
    let is_exempted = matches!(entry, Some(Entry::Exempted { .. }));
    if is_exempted {
        console.warn(format!("phase {phase} is entered from scratch, which the journal records"));
    }
    prepare(&deployment, args.no_gate, gated).await?.iter().for_each(|warning| console.warn(warning));
    if key::prepare(&deployment.chosen).await? {
        deployment = deployment::wanted(session, deployment.chosen, console).await?;
    }
    deployment.entry = entry;
    let options = RunOptions { gated: args.gated, delete_data, ..RunOptions::UP };
    let gates = gate::WithinRun::new(session, &deployment, &args.audit, console);
    let arrival = go(session, &deployment, options, Some(&gates), saved, console).await?;
    let mut document = document(&deployment, &arrival);
    document["phase"] = json!(phase.to_string());
    document["from_scratch"] = json!(is_exempted);
    if !arrival.outcome.shut.is_empty() {
        if let Some(evidence) = gates.evidence() {
            document["gate"] = gate::document(&evidence);
            document["report"] = json!(evidence.report);
            console.stream(&format!("{}\n\n", gate::text(&evidence)));
        }
        return Err(shut(&arrival.outcome, &deployment.chosen.scope).document(document));
    }
    if !arrival.is_complete() {
        return Err(incomplete(&arrival, "up", &deployment.chosen.scope).document(document));
    }
    record(&deployment, &arrival).await?;

    let running = running::running(&deployment.chosen.scope).await?;
    document["address"] = json!(running.address);
    document["ca_file"] = reach::path_or_null(running.ca_file.as_ref());
    document["key_file"] = reach::path_or_null(running.key_file.as_ref());
    let prompt = args.prompt.as_deref().unwrap_or(PROMPT);
    let is_changed = arrival.recovered > 0 || arrival.plan.as_ref().is_some_and(Plan::has_changes);
    let spoken = match first_text(&deployment, prompt, is_changed, console).await {
        // What clients have used says nothing about what runs.
        Err(failure) if failure.error.downcast_ref::<Refusal>().is_some_and(Refusal::is_limit) => {
            console.stream("\n");
            console.warn(format!("no first text was generated: {:#}", failure.error));
            None
        }
        spoken => spoken?,
    };
    document["text"] = json!(spoken);

    let environment = &deployment.chosen.loaded.environment;
    let saved = backup_status::warning(&deployment.chosen.scope, arrival.lineage, environment).await;
    saved.lines.iter().for_each(|line| console.warn(line.to_string()));
    document["backup"] = saved.document;
    let mut report = String::new();
    let mut verdict = Ok(());
    if args.no_gate {
        document["gate"] = Value::Null;
    } else {
        let occasion = (Occasion::Unmeasured, &args.audit);
        let evidence = gate::measure(session, &deployment, &running, occasion, console).await?;
        document["gate"] = gate::document(&evidence);
        document["report"] = json!(evidence.report);
        report = gate::text(&evidence);
        verdict = evidence.verdict(&deployment.chosen.scope.last("gate --again"));
    }
    document["seconds"] = json!((began.elapsed().as_secs_f64() * 10.0).round() / 10.0);
    let text = format!("{report}\n{}", how_to_reach(&deployment.chosen.scope, &running, prompt));
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

/// Runs with progress, signals and approval: from a saved plan or by a confirmation.
pub async fn go(
    session: &Session,
    deployment: &Deployment,
    options: RunOptions,
    gates: Option<&dyn Gates>,
    saved: Option<&Plan>,
    console: Console,
) -> Result<RunOutcome, Failure> {
    let ChosenEnvironment { scope, loaded, .. } = &deployment.chosen;
    let progress = Progress::new(console);
    let yes = session.global.yes;
    let remember_flags = |purpose: Purpose| {
        if purpose == Purpose::Up
            && let Err(failure) = settings::remember_flags(&scope.folder, session.again(), &session.here)
        {
            progress.warn(&format!("later hints will lack the flags of this run: {:#}", failure.error));
        }
    };
    // Only an approved plan takes over a state that was copied.
    let remember = |purpose: Purpose| {
        remember_flags(purpose);
        if purpose == Purpose::Up
            && let Err(failure) = origin::record(&scope.folder)
        {
            progress.warn(&format!("later commands will take the state for a copy: {:#}", failure.error));
        }
        if purpose == Purpose::Up
            && let Err(error) = program_digests::keep(&scope.folder)
        {
            progress.warn(&format!("later plans will read this program again: {error}"));
        }
    };
    let stop = signals::stop_steps(console);
    let purpose = saved.map_or(options.purpose, |plan| plan.purpose);
    let stopped = || signals::stopped_at_question(scope.same(if purpose == Purpose::Down { "down" } else { "up" }));
    // A run finishes open operations before it plans, and the author of the state decided what they do.
    if !yes {
        let open = origin::unapproved(deployment).await?;
        if !open.is_empty() {
            progress
                .line(format!("Open operations that were started with this state elsewhere:\n  {}", open.join("\n  ")));
            if !progress.paused(|| console.confirm("Finish them?")) {
                if stop.is_cancelled() {
                    return Err(stopped());
                }
                let error = anyhow::anyhow!("the open operations of a state from elsewhere were not approved");
                let hint = format!(
                    "if you trust its author, take it over with {}, or approve it with --yes",
                    scope.command("state adopt")
                );
                return Err(Failure::refused("not_approved", error).hint(hint));
            }
        }
    }
    let mut agree = |plan: &Plan, facts: &Facts| {
        let cost = Cost::after(plan, facts, &loaded.environment.budget);
        let lacked = plan_view::shortages(&shortages(plan, facts));
        progress.line(plan_view::text(plan, scope, 0) + &lacked + &plan_view::costs(&cost, plan.purpose));
        let agreed = yes || progress.paused(|| console.confirm("Make these changes?"));
        if agreed {
            remember(plan.purpose);
        }
        agreed
    };
    stores::remember(&stores::StateLocation::of(&loaded.environment)?, &scope.folder)?;
    let events = completed_hints(&progress, scope);
    let road = Run { gates, ..deployment.run(&events) };
    let arrived = match saved {
        Some(plan) => {
            remember(plan.purpose);
            run_saved_plan(&road, plan, &stop).await
        }
        None => run_phases(&road, options, &mut agree, &stop).await,
    };
    progress.finish();
    let arrival = arrived.map_err(|error| match error {
        RunError::Refused(PlanRefusal::NoConsent) if stop.is_cancelled() => stopped(),
        error => run_failed(error, purpose, scope),
    })?;
    // A plan without changes needs no approval, so it was not printed yet.
    if let Some(plan) = arrival.plan.as_ref().filter(|p| !p.has_changes()) {
        remember_flags(plan.purpose);
        console.say(plan_view::text(plan, scope, 0));
    }
    Ok(arrival)
}

/// The members that the documents of `up` and `down` share.
pub fn document(deployment: &Deployment, arrival: &RunOutcome) -> Value {
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
        "environment": deployment.chosen.scope.name,
        "lineage": arrival.lineage,
        "region": region,
        "sites": sites,
        "plan": counts,
        "retained": retained,
        "recovered": arrival.recovered,
        "outcome": arrival.outcome,
    })
}

/// Generates a text, and streams it to the terminal; none if the default model makes embeddings.
async fn first_text(
    deployment: &Deployment,
    prompt: &str,
    is_changed: bool,
    console: Console,
) -> Result<Option<String>, Failure> {
    let environment = &deployment.chosen.loaded.environment;
    let client = Client::new(Target::of(&deployment.chosen.scope, Some(environment)).await?)?;
    let max_tokens = environment.server.api.max_tokens.min(FIRST_TOKENS);
    let body = json!({ "prompt": prompt, "max_tokens": max_tokens, "temperature": 0.6, "seed": 7 });
    if client.is_invoked() {
        let answer = completed(&client, &body).await?;
        let output = answer["text"].as_str().unwrap_or_default().to_owned();
        console.stream(&format!("\n{prompt}{output}\n\n"));
        return Ok(Some(output));
    }
    reach::until_ready(environment, &client, is_changed, console).await?;
    let models = client.get("/v1/models").await?;
    let embeds = |model: &serde_json::Value| model["default"] == true && model["kind"] == "embedding";
    if models["data"].as_array().is_some_and(|models| models.iter().any(embeds)) {
        return Ok(None);
    }
    let mut output = String::new();
    console.stream(&format!("\n{prompt}"));
    client
        .stream("/v1/stream", &body, |event| {
            if let Some(piece) = event["text"].as_str() {
                console.stream(piece);
                output.push_str(piece);
            }
        })
        .await?;
    console.stream("\n\n");
    Ok(Some(output))
}

fn how_to_reach(scope: &Scope, running: &RunningEnvironment, prompt: &str) -> String {
    let mut text = format!("{} is up at {}\n", scope.name, running.address);
    if running.is_endpoint() {
        let prompt = rerun_flags::quoted(prompt);
        return text
            + &format!(
                "  try    {} {prompt}\n  The cloud keeps it running, and its permissions decide who may invoke it.",
                scope.command("generate")
            );
    }
    if let Some(key) = &running.key_file {
        text.push_str(&format!("  key    {key}\n"));
    }
    if let Some(ca) = &running.ca_file {
        text.push_str(&format!("  ca     {ca}\n"));
    }
    text.push_str(&format!("  try    {}\n", reach::curl(running, prompt)));
    text.push_str(&format!("  or     {} {}\n", scope.command("generate"), rerun_flags::quoted(prompt)));
    text.push_str(match &running.namespace {
        Some(_) if running.ca_file.is_none() => {
            "  The cluster keeps it running. You provided its certificate, and you renew it."
        }
        Some(_) => "  The cluster keeps it running. `up` renews its certificate in the last third of its validity.",
        None => "  After a reboot of this machine, run `up` again.",
    });
    text
}
