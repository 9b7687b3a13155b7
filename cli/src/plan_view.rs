//! The text and JSON output of a plan.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};
use textnlp_orchestrator::plan::{
    Blocked, Branch, Call, Cost, Facts, Node, Note, Plan, Purpose, ResourceShortage, ServiceCost, Step, TAKEN_DOWN,
    amount, permissions, unknown_reason,
};
use textnlp_provider::units::counted;
use textnlp_provider::{Charge, CostLine, Effect, FieldChange, Problem};
use textnlp_service::Scope;
pub use textnlp_service::failure::problems_document as problems;
use textnlp_service::up::blocked;

/// Limit of a printed value in characters, so that a plan fits a terminal.
const VALUE: usize = 60;
/// The least widths of the columns of resources and of kinds.
const NAME: usize = 34;
const KIND: usize = 22;
/// The most lines without a price that are named.
const UNPRICED: usize = 4;
/// The most lines about one field.
const PARTS: usize = 8;
/// The key of a value that an earlier step sets.
const OUTPUT: &str = "$output";

/// The plan as text: a sign for the action, the resource, its kind and the reason, followed by the changed fields.
pub fn text(plan: &Plan, scope: &Scope, refused: usize) -> String {
    let mut out = String::new();
    let retained = plan.retained.iter().map(|kept| kept.resource.as_str());
    let names = width(plan.steps.iter().map(|step| step.resource.as_str()).chain(retained), NAME);
    let kinds = width(plan.steps.iter().map(|step| step.kind.as_str()), KIND);
    for step in &plan.steps {
        let sign = sign(step);
        // `down` has the same reason for every deletion.
        let because = Some(step.because.as_str()).filter(|because| *because != TAKEN_DOWN).unwrap_or_default();
        let line = format!("  {sign} {:<names$} {:<kinds$} {because}", step.resource.as_str(), step.kind.as_str());
        let _ = writeln!(out, "{}", line.trim_end());
        for change in step.changes.iter().filter(|_| sign != '+') {
            for line in field(change) {
                let _ = writeln!(out, "        {line}");
            }
        }
    }
    for (resources, because) in blocked(plan, scope) {
        let _ = writeln!(out, "  ! {resources:<names$} cannot be planned: {because}");
    }
    for kept in &plan.retained {
        let _ = writeln!(out, "  = {:<names$} kept: {}", kept.resource.as_str(), kept.because);
    }
    for problem in completed(&plan.refusals, scope).iter().chain(&completed(&plan.warnings, scope)) {
        let _ = writeln!(out, "{}", finding(problem));
    }
    let _ = write!(out, "{}", sum(plan, refused));
    out
}

/// What lacked capacity lately for resources that may be created: which alternative they begin with depends on it.
pub fn shortages(all: &[ResourceShortage]) -> String {
    let mut text = String::new();
    for lacked in all.chunk_by(|one, next| one.resource == next.resource) {
        let names = lacked.iter().map(|one| format!("{} at {:.0}", one.shortage.name, one.shortage.at));
        let names: Vec<String> = names.collect();
        let _ = write!(text, "\n  no capacity lately for {}: {}", lacked[0].resource, names.join(", "));
    }
    text
}

/// The width of a column with these values.
fn width<'a>(values: impl Iterator<Item = &'a str>, least: usize) -> usize {
    values.map(str::len).fold(least, usize::max)
}

/// The problems of a plan, which knows no flags, with the commands of this environment.
fn completed(problems: &[Problem], scope: &Scope) -> Vec<Problem> {
    let complete = |problem: &Problem| Problem { fix: scope.complete(&problem.fix), ..problem.clone() };
    problems.iter().map(complete).collect()
}

/// A problem, formatted below the steps of a plan.
pub fn finding(problem: &Problem) -> String {
    format!("  {}: {}: {}\n           {}", problem.word(), problem.place, problem.cause, problem.fix)
}

/// The monthly cost on lines of their own: the total, and below it each service on the bill, and each site of several.
/// Nothing where nothing has a price. Where only machines lack one, the settings of their prices, except for a removal.
pub fn costs(cost: &Cost, purpose: Purpose) -> String {
    let hosts = cost.unpriced_hosts();
    if cost.known_micros == 0 && cost.unknown_reasons().is_empty() {
        let is_of_nothing = cost.lines.is_empty() || purpose == Purpose::Down;
        if is_of_nothing && cost.recorded_micros.unwrap_or_default() == 0 {
            return String::new();
        }
        if !hosts.is_empty() {
            let settings: Vec<String> = hosts.iter().map(|site| format!("`budget.machines.{site}`")).collect();
            return format!("\nCost: unknown: the machines have no price; set {}", settings.join(", "));
        }
    }
    let mut text = format!("\nCost: {cost}");
    let unpriced: Vec<String> = cost.unpriced().into_iter().collect();
    if !unpriced.is_empty() {
        let _ = write!(text, "\n  not in it, without a price in {}: {}", cost.currency, first(&unpriced, UNPRICED));
    }
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

/// The first ones of a list, and how many more there are.
pub fn first(all: &[String], shown: usize) -> String {
    let mut names: Vec<String> = all.iter().take(shown).cloned().collect();
    if all.len() > shown {
        names.push(format!("{} more", all.len() - shown));
    }
    names.join(", ")
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
    let names = width(cost.lines.iter().map(|(resource, _)| resource.as_str()), NAME);
    for (resource, CostLine { service, what, charge }) in &cost.lines {
        let says = match charge {
            Charge::Priced { quantity, price } => {
                let monthly = amount(price.monthly_micros(*quantity));
                format!("{quantity} × {price} = {monthly:.2} ({}, {})", price.source, price.date)
            }
            Charge::Included | Charge::Unpriced(_) | Charge::Unknown(_) => {
                format!("unknown: {}", unknown_reason(charge).unwrap_or_default())
            }
        };
        let _ = write!(text, "\n  {:<names$} {service}: {what}: {says}", resource.as_str());
    }
    for (site, micros) in &cost.machines {
        let _ = write!(text, "\n  {site:<names$} Machines: by budget.machines.{site}: {:.2}", amount(*micros));
    }
    text
}

/// The counts of each action on one line, with what is refused besides the plan's own.
pub fn sum(plan: &Plan, refused: usize) -> String {
    let s = &plan.summary;
    let is_complete = plan.is_complete() && refused == 0;
    let refused = match plan.refusals.len() + refused {
        0 => String::new(),
        count => format!(" Refused: {count}."),
    };
    let undone = match plan.blocked.len() {
        0 => refused,
        count => format!("{refused} {count} cannot be planned now and stay unchanged."),
    };
    if !plan.has_changes() {
        let are = if s.unchanged == 1 { "is" } else { "are" };
        let nothing = if is_complete { "No changes" } else { "Nothing can be changed" };
        return format!("{nothing}: {} {are} up to date.{undone}", counted(s.unchanged, "resource"));
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
    if !plan.retained.is_empty() {
        parts.push(format!("{} kept", plan.retained.len()));
    }
    format!("Plan: {}.{undone}", parts.join(", "))
}

/// The counts, for every document with a plan.
pub fn counts(plan: &Plan) -> Value {
    let s = &plan.summary;
    json!({ "create": s.create, "update": s.update, "replace": s.replace, "delete": s.delete, "unchanged": s.unchanged, "possible": s.possible })
}

/// The whole plan as JSON.
pub fn document(plan: &Plan, facts: &Facts, cost: &Cost, scope: &Scope) -> Value {
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
        "blocked": blocked_document(plan, scope),
        "retained": plan.retained,
        "refusals": problems(&completed(&plan.refusals, scope)),
        "warnings": problems(&completed(&plan.warnings, scope)),
        "cost": cost,
        "permissions": permissions(plan, facts),
    })
}

fn blocked_document(plan: &Plan, scope: &Scope) -> Vec<Value> {
    let one = |one: &Blocked| json!({ "resource": one.resource, "because": scope.complete(&one.because) });
    plan.blocked.iter().map(one).collect()
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

/// The lines of a changed field. Of a long list or mapping, one for each part that differs.
fn field(change: &FieldChange) -> Vec<String> {
    let effect = match &change.effect {
        Effect::InPlace => String::new(),
        Effect::Replace => "  (forces replacement)".to_owned(),
        Effect::Refuse(why) => format!("  (not possible: {why})"),
    };
    let mut parts = Vec::new();
    differences(&change.field, change.before.as_ref(), change.after.as_ref(), &mut parts);
    let more = parts.len().saturating_sub(PARTS);
    parts.truncate(PARTS);
    let mut lines: Vec<String> = parts.into_iter().map(|part| part + &effect).collect();
    if more > 0 {
        lines.push(format!("{}: {more} more parts differ", change.field));
    }
    lines
}

fn differences(path: &str, before: Option<&Value>, after: Option<&Value>, parts: &mut Vec<String>) {
    let is_long = [before, after].into_iter().flatten().any(|value| text_of(value).chars().count() > VALUE);
    match (before, after) {
        (Some(Value::Array(old)), Some(Value::Array(new))) if is_long => {
            let first = old.iter().zip(new).take_while(|(old, new)| old == new).count();
            let rest = old.len().min(new.len()) - first;
            let last = old.iter().rev().zip(new.iter().rev()).take(rest).take_while(|(old, new)| old == new).count();
            let (old, new) = (&old[first..old.len() - last], &new[first..new.len() - last]);
            for i in 0..old.len().max(new.len()) {
                let at = format!("{path}[{}]", first + i);
                match (old.get(i), new.get(i)) {
                    (Some(old), None) => parts.push(format!("{at}: - {}", cut(&text_of(old), 0))),
                    (None, Some(new)) => parts.push(format!("{at}: + {}", cut(&text_of(new), 0))),
                    (old, new) if old == new => {}
                    (old, new) => differences(&at, old, new, parts),
                }
            }
        }
        (Some(Value::Object(old)), Some(Value::Object(new)))
            if is_long && !old.contains_key(OUTPUT) && !new.contains_key(OUTPUT) =>
        {
            for key in old.keys().chain(new.keys().filter(|key| !old.contains_key(*key))) {
                if old.get(key) != new.get(key) {
                    differences(&format!("{path}.{key}"), old.get(key), new.get(key), parts);
                }
            }
        }
        (before, after) => {
            let text = |value: Option<&Value>| value.map_or("(nothing)".to_owned(), text_of);
            let (before, after) = (text(before), text(after));
            let same = before.chars().zip(after.chars()).take_while(|(old, new)| old == new).count();
            // Both would be cut before they differ.
            let skipped = if is_long && same > VALUE / 2 { same - VALUE / 4 } else { 0 };
            parts.push(format!("{path}: {} → {}", cut(&before, skipped), cut(&after, skipped)));
        }
    }
}

fn text_of(value: &Value) -> String {
    if value.get(OUTPUT).is_some() { "(known after apply)".to_owned() } else { value.to_string() }
}

/// A text without its first characters, and no longer than a terminal shows.
fn cut(text: &str, skipped: usize) -> String {
    let start = if skipped > 0 { "…" } else { "" };
    let end = if text.chars().count() > skipped + VALUE { "…" } else { "" };
    format!("{start}{}{end}", text.chars().skip(skipped).take(VALUE).collect::<String>())
}

#[cfg(test)]
mod tests {
    use textnlp_orchestrator::plan::{DeleteData, Summary};
    use textnlp_orchestrator::state::Shortage;
    use textnlp_provider::ResourceId;
    use textnlp_service::RerunFlags;

    use super::*;
    use crate::clouds;

    fn lines(before: Value, after: Value) -> String {
        let (before, after) = (Some(before), Some(after));
        field(&FieldChange { field: "document".to_owned(), before, after, effect: Effect::InPlace }).join("\n")
    }

    #[test]
    fn columns_are_as_wide_as_their_longest_value() {
        let long = "main/cluster/addon-eks-pod-identity-agent";
        assert_eq!(width(["here/server", long].into_iter(), NAME), long.len());
        assert_eq!((width(["here/server"].into_iter(), NAME), width([].into_iter(), KIND)), (NAME, KIND));
    }

    #[test]
    fn hints_of_resources_that_cannot_be_planned_name_the_environment() {
        let because = "it could not be observed: denied: `textnlp-deploy plan --policy` prints the role".to_owned();
        let plan = Plan {
            format: 1,
            environment: "shop".parse().unwrap(),
            purpose: Purpose::Up,
            lineage: None,
            delete_data: DeleteData::Nothing,
            steps: Vec::new(),
            unchanged: Vec::new(),
            blocked: vec![Blocked { resource: "main/db".parse().unwrap(), because }],
            retained: Vec::new(),
            refusals: Vec::new(),
            warnings: Vec::new(),
            summary: Summary::default(),
            reads: BTreeMap::new(),
        };
        let (again, name) = (RerunFlags::default(), plan.environment.clone());
        let scope = Scope { platform: &clouds::Linked, again, name, folder: "/srv/shop".into() };
        let says = "denied: `textnlp-deploy plan --policy --env shop` prints the role";
        let shown = text(&plan, &scope, 0);
        assert!(shown.contains(says), "{shown}");
        let document = &blocked_document(&plan, &scope)[0];
        assert!(document["resource"] == "main/db" && document["because"].as_str().unwrap().ends_with(says));
    }

    #[test]
    fn what_lacked_capacity_is_one_line_for_each_resource() {
        let lacked = |resource: &str, name: &str, time: &str| {
            let shortage = Shortage { name: name.to_owned(), at: format!("2026-11-30T{time}:00Z").parse().unwrap() };
            ResourceShortage { resource: resource.parse().unwrap(), shortage }
        };
        let (pool, other) = ("main/cluster/gpu-nodes", "second/cluster/gpu-nodes");
        let all = [
            lacked(pool, "spot eu-b n1", "14:05"),
            lacked(pool, "spot n1", "14:06"),
            lacked(other, "SPOT g5.xlarge", "13:00"),
        ];
        let says = "\n  no capacity lately for main/cluster/gpu-nodes: spot eu-b n1 at 2026-11-30T14:05:00Z, spot n1 at \
                    2026-11-30T14:06:00Z\n  no capacity lately for second/cluster/gpu-nodes: SPOT g5.xlarge at \
                    2026-11-30T13:00:00Z";
        assert_eq!(shortages(&all), says);
        assert_eq!(shortages(&[]), "");
        let json = json!({ "resource": pool, "name": "spot eu-b n1", "at": "2026-11-30T14:05:00Z" });
        assert_eq!(serde_json::to_value(&all[0]).unwrap(), json);
    }

    #[test]
    fn long_lists_of_names_end_with_a_count() {
        let names = ["a", "b", "c"].map(str::to_owned);
        assert_eq!((first(&names, 3).as_str(), first(&names, 2).as_str()), ("a, b, c", "a, b, 1 more"));
    }

    #[test]
    fn cost_names_what_is_missing_in_it() {
        let id: ResourceId = "main/endpoint/config".parse().unwrap();
        let cost = |line: CostLine, known_micros: u64| Cost {
            lines: vec![(id.clone(), line)],
            currency: "USD".to_owned(),
            known_micros,
            machines: BTreeMap::new(),
            unknown: [id.clone()].into(),
            recorded_micros: None,
        };
        let unpriced = || CostLine::unpriced("SageMaker", "1 × ml.m5.xlarge, `main`", "no price is recorded");
        let missing = "\n  not in it, without a price in USD: 1 × ml.m5.xlarge, `main` (SageMaker)";
        for known in [0, 1_200_000] {
            let text = costs(&cost(unpriced(), known), Purpose::Up);
            assert!(text.contains(missing), "{text}");
        }
        let by_use = costs(&cost(CostLine::unknown("SNS", "messages", "by use"), 1_200_000), Purpose::Up);
        assert!(by_use.starts_with("\nCost: ≥ 1.20 USD a month") && !by_use.contains("not in it"), "{by_use}");
    }

    #[test]
    fn long_lists_show_the_parts_that_differ() {
        let backend = |n: u32, weight: u32| json!({ "listen": format!("unix:{}/replica-{n}.sock", "x".repeat(70)), "weight": weight });
        assert_eq!(
            lines(json!([backend(1, 1)]), json!([backend(1, 1), { "weight": 2 }])),
            "document[1]: + {\"weight\":2}"
        );
        assert_eq!(
            lines(json!([{ "a": 1 }, backend(1, 1), backend(2, 1)]), json!([backend(1, 1), backend(2, 3)])),
            format!(
                "document[0].a: 1 → (nothing)\n\
                 document[0].listen: (nothing) → \"unix:{}…\n\
                 document[0].weight: (nothing) → 1\n\
                 document[1].listen: …{}/replica-1.sock\" → …{}/replica-2.sock\"\n\
                 document[1].weight: 1 → 3\n\
                 document[2]: - {{\"listen\":\"unix:{}…",
                "x".repeat(54),
                "x".repeat(6),
                "x".repeat(6),
                "x".repeat(44)
            )
        );
        let many = |from: u32| json!((from..from + 20).map(|n| backend(n, 1)).collect::<Vec<_>>());
        assert_eq!(lines(many(0), many(100)).lines().last(), Some("document: 12 more parts differ"));
        assert_eq!(lines(json!([1, 2]), json!([1, 3])), "document: [1,2] → [1,3]");
    }
}
