//! `plan`: shows what `up` would do. Read-only.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;
use textnlp_files::Replace;
use textnlp_orchestrator::plan::{
    Call, Cost, DeleteData, Deletion, Estimate, Facts, Impact, ImpactKind, Node, Plan as Steps, Policy, Purpose, Saved,
    boundaries, estimate, impact, policies, shortages, swept,
};
use textnlp_orchestrator::run::{RunOptions, plan_with_refresh, plan_without_refresh};
use textnlp_provider::{KindName, Problem};
use textnlp_service::backup::{key, put_file};
use textnlp_service::bundle::installed;
use textnlp_service::gate::order;
use textnlp_service::up::{accepted_loss, data_to_delete};
use textnlp_service::{Scope, gate, output};

use super::compare;
use super::prelude::*;
use crate::args::{Global, Plan};
use crate::deployment::{self, operator, preflight_failure, run_failed};
use crate::plan_view;
use crate::rerun_flags::quoted;

/// `plan`.
pub async fn plan(session: &Session, args: &Plan, console: Console) -> Result<Success, Failure> {
    if !args.compare.is_empty() {
        return compare::compare(session, &args.compare, console);
    }
    let chosen = if args.down { session.load_to_remove(console)? } else { session.load_to_deploy(console)? };
    let name = chosen.scope.name.clone();
    let delete_data = match args.down {
        true => data_to_delete(args.delete_data.as_deref(), args.delete_dumps.as_deref(), &name)?,
        false => accepted_loss(args.accept_data_loss.as_deref(), &name)?,
    };
    let (deployment, purpose) = if args.down {
        (deployment::recorded(session, chosen).await?, Purpose::Down)
    } else {
        let mut deployment = deployment::wanted(session, chosen, console).await?;
        // `apply` compares a saved plan with its own.
        if args.out.is_some() && key::prepare(&deployment.chosen).await? {
            deployment = deployment::wanted(session, deployment.chosen, console).await?;
        }
        (deployment, Purpose::Up)
    };
    let environment = &deployment.chosen.loaded.environment;
    let unmeasured = gate::unmeasured(environment);
    let not_entered = if args.down {
        None
    } else {
        order::missing(&deployment, installed::basis(&session.library, &deployment)).await?
    };
    let is_measured = unmeasured.is_none();
    if args.gated {
        gate::is_measured(&deployment.chosen.scope, environment, false, true)?;
    }
    let progress = Progress::new(console);
    let (run, options) = (deployment.run(&progress), RunOptions { purpose, delete_data, gated: args.gated });
    let (audited, facts) = progress
        .done(if args.no_refresh {
            plan_without_refresh(&run, options).await
        } else {
            plan_with_refresh(&run, options).await
        })
        .map_err(|e| run_failed(e, purpose, &deployment.chosen.scope))?;
    let plan = audited.plan();
    unreadable_models(plan, &facts, &deployment.chosen.scope).await?;
    let reaches = impact(plan, &facts);
    let (estimate, swept) = (estimate(plan, &facts), swept(plan, &facts));
    let shortages = shortages(plan, &facts);
    let cost = Cost::after(plan, &facts, &environment.budget);
    let found: Vec<Problem> = match purpose {
        Purpose::Up => cost.against(&environment.budget).into_iter().chain(cost.outdated(facts.now)).collect(),
        Purpose::Down => Vec::new(),
    };
    let policies = if args.boundary { boundaries(plan, &facts) } else { policies(plan, &facts) };
    if args.policy {
        let document = plan_view::document(plan, &facts, &cost, &deployment.chosen.scope);
        for Policy { site, document } in &policies {
            document.notes.iter().for_each(|note| console.warn(format!("policy of site {site}: {note}")));
        }
        return policy(&policies, args, document, &deployment.chosen.scope);
    }
    let refused = found.iter().filter(|problem| !problem.warning).count();
    let mut text = plan_view::text(plan, &deployment.chosen.scope, refused);
    if args.no_refresh {
        text.push_str("\nThe sites were not read (--no-refresh): changes since the last `up` are not in this plan");
    }
    text.push_str(&plan_view::costs(&cost, plan.purpose));
    if args.costs {
        let _ = write!(text, "\n{}", plan_view::cost_lines(&cost));
    }
    for problem in &found {
        let _ = write!(text, "\n{}", plan_view::finding(problem));
    }
    if let Some(why) = unmeasured.filter(|_| !args.down) {
        let _ = write!(text, "\nGate: {why}; `up` needs --no-gate");
    }
    if let Some(why) = &not_entered {
        let _ = write!(text, "\nPhase {}: {why}; `up` needs a promoted release, or --from-scratch", environment.phase);
    }
    if plan.has_changes() {
        text.push_str(&plan_view::shortages(&shortages));
        text.push_str(&goes_along(&swept));
        text.push_str(&feels(&reaches, &estimate));
        if !policies.is_empty() {
            let down = if args.down { "plan --down" } else { "plan" };
            let _ = write!(text, "\nPermissions it needs: {} --policy", deployment.chosen.scope.same(down));
        }
        let typed = match delete_data {
            DeleteData::Nothing => String::new(),
            DeleteData::Lost => format!(" --accept-data-loss {name}"),
            DeleteData::Dumps => format!(" --delete-dumps {name}"),
            DeleteData::All => format!(" --delete-data {name}"),
        };
        let verb = match (args.down, is_measured) {
            (true, _) => "down",
            (false, true) => "up",
            (false, false) => "up --no-gate",
        };
        let is_refused = !plan.refusals.is_empty() || refused > 0;
        let does = match &args.out {
            // What is changed for it is not in the saved plan.
            Some(file) if is_refused => {
                let plan = deployment.chosen.scope.same(if args.down { "plan --down" } else { "plan" });
                format!("{plan} --out {}", quoted(file.as_str()))
            }
            Some(file) => session.again().bare(&format!("apply {}", quoted(file.as_str()))),
            None => deployment.chosen.scope.same(verb) + &typed + if args.gated { " --gated" } else { "" },
        };
        let first = [
            is_refused.then_some("change what is refused above"),
            not_entered.is_some().then_some("promote a release, or add `--from-scratch --reason TEXT`"),
        ];
        let first: Vec<&str> = first.into_iter().flatten().collect();
        let _ = match first.is_empty() {
            true => write!(text, "\nTo apply: {does}"),
            false => write!(text, "\nBefore it can be applied: {}\nThen: {does}", first.join("; ")),
        };
    }
    if let Some(file) = &args.out {
        save(session, file, plan)?;
        let _ = write!(text, "\nSaved as {file}");
    }
    let mut document = plan_view::document(plan, &facts, &cost, &deployment.chosen.scope);
    let (refused, warned): (Vec<_>, Vec<_>) = found.into_iter().partition(|problem| !problem.warning);
    let is_refused = !plan.refusals.is_empty() || !refused.is_empty();
    for (member, more) in [("refusals", refused), ("warnings", warned)] {
        if let Some(all) = document[member].as_array_mut() {
            all.extend(plan_view::problems(&more));
        }
    }
    document["refreshed"] = json!(!args.no_refresh);
    document["gate"] = json!({ "phase": environment.phase, "measured": is_measured });
    document["not_entered"] = json!(not_entered);
    document["file"] = json!(args.out);
    document["state"] = json!(deployment.chosen.scope.folder);
    document["reaches"] = json!(reaches);
    document["estimate"] = json!(estimate);
    document["swept"] = json!(swept);
    document["shortages"] = json!(shortages);
    let success = Success::new(text, document);
    match exit(is_refused, !plan.blocked.is_empty(), plan.has_changes()) {
        Some(exit) if args.exit_code => Ok(success.exit(exit)),
        _ => Ok(success),
    }
}

/// The exit status with `--exit-code`. `up` makes no change where one is refused, and fails in the end where one cannot be planned.
fn exit(is_refused: bool, is_blocked: bool, has_changes: bool) -> Option<Exit> {
    match (is_refused, is_blocked, has_changes) {
        (true, ..) => Some(Exit::Refused),
        (_, true, _) => Some(Exit::Failed),
        (.., true) => Some(Exit::ChangesPlanned),
        _ => None,
    }
}

/// The policies alone: one as it is, several below their titles, or each in a file of its own.
fn policy(policies: &[Policy], args: &Plan, mut document: Value, scope: &Scope) -> Result<Success, Failure> {
    document["policies"] = json!(policies);
    let folder = args.policy_folder.as_deref();
    let text = match policies {
        [] => {
            let (error, hint) = match args.boundary {
                true => (
                    anyhow::anyhow!("no role of this plan takes a permissions boundary"),
                    "only sites on AWS have such roles: `--site SITE` selects one".to_owned(),
                ),
                false => (
                    anyhow::anyhow!("the providers of this plan have no policies"),
                    format!("list the permissions it needs: {} -o json", scope.same("plan")),
                ),
            };
            return Err(Failure::new(Exit::Usage, "no_policies", error).hint(hint));
        }
        [one] if folder.is_none() => one.document.text.trim_end().to_owned(),
        several => match folder {
            None => {
                let titled = several.iter().map(|one| {
                    format!("# site {}: {}\n{}", one.site, one.document.title, one.document.text.trim_end())
                });
                titled.collect::<Vec<_>>().join("\n\n")
            }
            Some(folder) => {
                let files = several.iter().map(|one| policy_file(folder, one)).collect::<Result<Vec<_>, _>>()?;
                document["files"] = json!(files);
                files.iter().map(|file| file.as_str()).collect::<Vec<_>>().join("\n")
            }
        },
    };
    Ok(Success::new(text, document))
}

/// Writes a policy to a file with the names of its site and of what it is: `here-aws-iam-policy.json`.
fn policy_file(folder: &Utf8Path, policy: &Policy) -> Result<Utf8PathBuf, Failure> {
    let title = policy.document.title.to_lowercase().replace(' ', "-");
    let file = folder.join(format!("{}-{title}.{}", policy.site, policy.document.format));
    let text = format!("{}\n", policy.document.text.trim_end());
    let written = std::fs::create_dir_all(folder).and_then(|()| put_file(&file, text.as_bytes()));
    written.map_err(|error| {
        let error = anyhow::Error::new(error).context(format!("write policy {file}"));
        Failure::new(Exit::Failed, "unwritable_policy", error).hint("give a folder in which you may write")
    })?;
    Ok(file)
}

/// Rejects a model file that is missing or invalid, as `up` does.
async fn unreadable_models(plan: &Steps, facts: &Facts, scope: &Scope) -> Result<(), Failure> {
    let mut problems = Vec::new();
    for step in &plan.steps {
        let Node::Call(Call::Create { wanted, .. } | Call::Update { wanted, .. }) = &step.node else { continue };
        let source = wanted.spec.get("source").and_then(serde_json::Value::as_str);
        let Some(site) = facts.sites.get(&step.site).filter(|_| source.is_some_and(|s| s.starts_with("file:"))) else {
            continue;
        };
        let found = site.provider.preflight(&[(**wanted).clone()]).await?;
        problems.extend(found.into_iter().filter(|problem| !problem.warning && problem.place == wanted.id.as_str()));
    }
    problems.iter_mut().for_each(|problem| problem.fix = scope.complete(&problem.fix));
    match problems.is_empty() {
        true => Ok(()),
        false => Err(preflight_failure("plan", "preflight", Exit::Failed, &problems)),
    }
}

/// Objects from controllers in the cluster that are deleted as well.
fn goes_along(swept: &[Deletion]) -> String {
    let mut text = String::new();
    for Deletion { resource, foreign } in swept {
        let names: Vec<_> = foreign.iter().map(|one| format!("{} ({})", one.cloud_id, one.what)).collect();
        let _ = write!(
            text,
            "\n  deleting {resource} also deletes objects that its controllers created: {}",
            names.join(", ")
        );
    }
    text
}

/// The dependents of what changes, and the estimated duration.
fn feels(reaches: &[Impact], estimate: &Estimate) -> String {
    const SHOWN: usize = 4;
    let mut text = String::new();
    // A resource that is deleted itself is not listed as a dependent.
    let removed: BTreeSet<_> =
        reaches.iter().filter(|one| one.does == ImpactKind::Delete).map(|one| &one.resource).collect();
    for one in reaches {
        let stay: Vec<_> = one.reaches.iter().filter(|id| !removed.contains(id)).map(ToString::to_string).collect();
        if !stay.is_empty() {
            let depend = if stay.len() == 1 { "depends" } else { "depend" };
            let names = plan_view::first(&stay, SHOWN);
            let _ = write!(text, "\n  {} of {}: {names} {depend} on it", one.does, one.resource);
        }
    }
    if estimate.seconds > 0.0 {
        let kinds = |kinds: &BTreeSet<KindName>| {
            plan_view::first(&kinds.iter().map(ToString::to_string).collect::<Vec<_>>(), SHOWN)
        };
        let source = if estimate.typical.is_empty() { "from earlier runs" } else { "duration" };
        let _ = write!(text, "\nEstimated {source}: about {}", lasts(estimate.seconds));
        if !estimate.typical.is_empty() {
            let _ = write!(text, ", with typical durations of {}", kinds(&estimate.typical));
        }
        if !estimate.unknown.is_empty() {
            let _ = write!(text, ", plus the time for {}, which was not measured yet", kinds(&estimate.unknown));
        }
    }
    text
}

/// `8.3 s`, or `14 min` where seconds do not matter.
fn lasts(seconds: f64) -> String {
    if seconds < 120.0 { format!("{seconds:.1} s") } else { format!("{:.0} min", seconds / 60.0) }
}

fn save(session: &Session, file: &Utf8Path, plan: &Steps) -> Result<(), Failure> {
    let operator = operator(session);
    let flags = flags(&session.global);
    let saved = Saved { tool: operator.tool, by: operator.by, at: Timestamp::now(), flags, plan: plan.clone() };
    output::write(file, Replace::private(), &saved.to_bytes())
        .map_err(|failure| Failure { code: "unwritable_plan", ..failure })
}

/// The planning flags of the command line with their values.
pub fn flags(global: &Global) -> Vec<(String, String)> {
    let others = [
        ("--site", global.site.clone()),
        ("--provider", global.provider.clone()),
        ("--server", global.server.as_ref().map(ToString::to_string)),
        ("--file", global.file.as_ref().map(ToString::to_string)),
    ];
    let sets = global.set.iter().map(|set| ("--set", Some(set.clone())));
    let takes = global.take_ownership.iter().map(|field| ("--take-ownership", Some(field.clone())));
    sets.chain(takes).chain(others).filter_map(|(flag, value)| Some((flag.to_owned(), value?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plan_that_cannot_be_applied_as_a_whole_is_not_without_changes() {
        for has_changes in [false, true] {
            assert_eq!(exit(true, false, has_changes), Some(Exit::Refused));
            assert_eq!(exit(true, true, has_changes), Some(Exit::Refused));
            assert_eq!(exit(false, true, has_changes), Some(Exit::Failed));
        }
        assert_eq!(exit(false, false, true), Some(Exit::ChangesPlanned));
        assert_eq!(exit(false, false, false), None);
    }
}
