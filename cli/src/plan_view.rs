//! The text and JSON output of a plan.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use textnlp_orchestrator::plan::{
    Branch, Call, Cost, Facts, Node, Note, Plan, ServiceCost, Step, TAKEN_DOWN, amount, permissions, unknown_reason,
};
use textnlp_provider::{Charge, CostLine, Effect, FieldChange};
pub use textnlp_service::failure::problems_document as problems;
use textnlp_service::up::blocked;

/// Limit of a printed value in characters, so that a plan fits a terminal.
const VALUE: usize = 60;

/// The plan as text: a sign for the action, the resource, its kind and the reason, followed by the changed fields.
pub fn text(plan: &Plan) -> String {
    let mut out = String::new();
    for step in &plan.steps {
        let sign = sign(step);
        // `down` has the same reason for every deletion.
        let because = Some(step.because.as_str()).filter(|because| *because != TAKEN_DOWN).unwrap_or_default();
        let line = format!("  {sign} {:<34} {:<22} {because}", step.resource.as_str(), step.kind.as_str());
        let _ = writeln!(out, "{}", line.trim_end());
        for change in step.changes.iter().filter(|_| sign != '+') {
            let _ = writeln!(out, "        {}", field(change));
        }
    }
    for (names, because) in blocked(plan) {
        let _ = writeln!(out, "  ! {names:<34} cannot be planned: {because}");
    }
    for kept in &plan.retained {
        let _ = writeln!(out, "  = {:<34} kept: {}", kept.resource.as_str(), kept.because);
    }
    for problem in plan.refusals.iter().chain(&plan.warnings) {
        let _ = writeln!(out, "{}", finding(problem));
    }
    let _ = write!(out, "{}", sum(plan));
    out
}

/// A problem, formatted below the steps of a plan.
pub fn finding(problem: &textnlp_provider::Problem) -> String {
    format!("  {}: {}: {}\n           {}", problem.word(), problem.place, problem.cause, problem.fix)
}

/// The monthly cost: the total, and below it each service on the bill, and each site of several.
pub fn costs(cost: &Cost) -> String {
    let mut text = format!("Cost: {cost}");
    if cost.known_micros == 0 {
        return text;
    }
    let (services, sites) = (cost.services(), cost.sites());
    let longest = services.keys().chain(sites.keys()).map(|name| name.chars().count()).max().unwrap_or_default();
    let list = |text: &mut String, parts: BTreeMap<&str, ServiceCost>| {
        for (name, part) in parts {
            let _ = write!(text, "\n  {name:<longest$}  {:>12}", amount_text(part));
        }
    };
    list(&mut text, services);
    if sites.len() > 1 {
        text.push_str("\nBy site:");
        list(&mut text, sites);
    }
    text
}

/// An amount; with `≥` if a part of it is not known.
pub fn amount_text(cost: ServiceCost) -> String {
    let known = cost.known();
    match (cost.known_micros, cost.is_partial) {
        (_, false) => format!("{known:.2}"),
        (0, true) => "unknown".to_owned(),
        (_, true) => format!("≥ {known:.2}"),
    }
}

/// Every line of the cost, with the source and the date of its price.
pub fn cost_lines(cost: &Cost) -> String {
    let mut text = String::from("Cost by resource, per month:");
    for (resource, CostLine { service, what, charge }) in &cost.lines {
        let says = match charge {
            Charge::Priced { quantity, price } => {
                let monthly = amount(price.monthly_micros(*quantity));
                format!("{quantity} × {price} = {monthly:.2} ({}, {})", price.source, price.date)
            }
            Charge::Included | Charge::Unknown(_) => {
                format!("unknown: {}", unknown_reason(charge).unwrap_or_default())
            }
        };
        let _ = write!(text, "\n  {:<34} {service}: {what}: {says}", resource.as_str());
    }
    for (site, micros) in &cost.machines {
        let _ = write!(text, "\n  {site:<34} Machines: by budget.machines.{site}: {:.2}", amount(*micros));
    }
    text
}

/// The counts of each action on one line.
pub fn sum(plan: &Plan) -> String {
    let s = &plan.summary;
    let undone = match plan.blocked.len() {
        0 => String::new(),
        count => format!(" {count} cannot be planned now and stay unchanged."),
    };
    if !plan.has_changes() {
        return format!("No changes: {} resources are up to date.{undone}", s.unchanged);
    }
    let mut parts = Vec::new();
    for (count, word) in
        [(s.create, "to create"), (s.update, "to update"), (s.replace, "to replace"), (s.delete, "to delete")]
    {
        if count > 0 {
            parts.push(format!("{count} {word}"));
        }
    }
    if s.possible > 0 {
        parts.push(format!("{} decided during the run", s.possible));
    }
    parts.push(format!("{} unchanged", s.unchanged));
    format!("Plan: {}.{undone}", parts.join(", "))
}

/// The counts, for every document with a plan.
pub fn counts(plan: &Plan) -> Value {
    let s = &plan.summary;
    json!({ "create": s.create, "update": s.update, "replace": s.replace, "delete": s.delete, "unchanged": s.unchanged, "possible": s.possible })
}

/// The whole plan as JSON.
pub fn document(plan: &Plan, facts: &Facts, cost: &Cost) -> Value {
    let steps: Vec<_> = plan
        .steps
        .iter()
        .map(|step| {
            let mut document = json!({
                "id": step.id, "resource": step.resource, "kind": step.kind, "site": step.site, "action": action(step),
                "after": step.after, "changes": step.changes, "because": step.because,
            });
            if let Node::Call(Call::Update { recorded, .. } | Call::Delete { recorded, .. }) = &step.node {
                document["cloud_id"] = json!(recorded.cloud_id);
            }
            if let Node::Gate(gate) = &step.node {
                document["gate"] = json!(gate);
            }
            document
        })
        .collect();
    json!({
        "environment": plan.environment,
        "purpose": plan.purpose,
        "lineage": plan.lineage,
        "digest": plan.digest(),
        "steps": steps,
        "plan": counts(plan),
        "blocked": plan.blocked,
        "retained": plan.retained,
        "refusals": problems(&plan.refusals),
        "warnings": problems(&plan.warnings),
        "cost": cost,
        "permissions": permissions(plan, facts),
    })
}

/// The action of a step in one word.
fn action(step: &Step) -> &'static str {
    match &step.node {
        Node::Call(Call::Create { beside: true, .. }) => "replace",
        Node::Call(Call::Create { .. }) => "create",
        Node::Call(Call::Update { .. }) => "update",
        Node::Call(Call::Delete { .. }) => "delete",
        Node::OneOf(_) => "possible",
        Node::Gate(_) => "gate",
        Node::Note(Note::Adopt { .. }) => "adopt",
        Node::Note(Note::Remember { .. }) => "remember",
        Node::Note(Note::Return { .. }) => "return",
        Node::Note(Note::Forget) => "forget",
        _ => "other",
    }
}

fn sign(step: &Step) -> char {
    match &step.node {
        Node::Call(Call::Create { beside: true, .. }) => '±',
        Node::Call(Call::Create { .. }) => '+',
        Node::Call(Call::Update { .. }) => '~',
        Node::Call(Call::Delete { .. }) => '-',
        Node::OneOf(one) if one.alternatives.iter().any(|a| a.branch == Branch::Replace) => '?',
        Node::OneOf(_) => '?',
        Node::Gate(_) => '◇',
        _ => '·',
    }
}

fn field(change: &FieldChange) -> String {
    let shown = |value: &Option<Value>| value.as_ref().map_or("(nothing)".to_owned(), value_text);
    let effect = match &change.effect {
        Effect::InPlace => String::new(),
        Effect::Replace => "  (forces replacement)".to_owned(),
        Effect::Refuse(why) => format!("  (not possible: {why})"),
    };
    format!("{}: {} → {}{effect}", change.field, shown(&change.before), shown(&change.after))
}

fn value_text(value: &Value) -> String {
    if value.get("$output").is_some() {
        return "(known after apply)".to_owned();
    }
    let text = value.to_string();
    if text.chars().count() <= VALUE { text } else { format!("{}…", text.chars().take(VALUE).collect::<String>()) }
}
