//! What a plan must be allowed to do, from the tables of the kinds that it touches. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use textnlp_provider::{KindName, SiteName, Spec};

use super::{Call, Decides, Facts, Node, Plan};

/// One thing that a plan must be allowed to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// Where.
    pub site: SiteName,
    /// What, in the words of the provider.
    pub permission: String,
    /// For which kinds of resources.
    pub kinds: BTreeSet<KindName>,
}

/// What this plan must be allowed to do, each once. `{field}` in a table stands for what the resource says there; where it says
/// nothing, nothing is needed for it.
pub fn permissions(plan: &Plan, facts: &Facts) -> Vec<Permission> {
    let mut needed: BTreeMap<(&SiteName, String), BTreeSet<KindName>> = BTreeMap::new();
    for step in &plan.steps {
        let Some(spec) = spec_of(&step.node) else { continue };
        let kinds = facts.sites.get(&step.site).map(|site| site.provider.kinds()).unwrap_or_default();
        let Some(kind) = kinds.iter().find(|kind| kind.name == step.kind.as_str()) else { continue };
        for permission in kind.permissions.iter().filter_map(|text| filled(text, spec)) {
            needed.entry((&step.site, permission)).or_default().insert(step.kind.clone());
        }
    }
    let permission = |((site, permission), kinds): ((&SiteName, String), _)| {
        let site = site.clone();
        Permission { site, permission, kinds }
    };
    needed.into_iter().map(permission).collect()
}

/// What the resource of a step says; a note touches nothing but our own record.
fn spec_of(node: &Node) -> Option<&Spec> {
    match node {
        Node::Call(Call::Create { wanted, .. } | Call::Update { wanted, .. }) => Some(&wanted.spec),
        Node::Call(Call::Delete { recorded, .. }) => Some(&recorded.spec),
        Node::OneOf(one) => match &one.decides {
            Decides::Difference { wanted, .. } => Some(&wanted.spec),
            Decides::As(_) => None,
        },
        Node::Note(_) | Node::Gate(_) => None,
    }
}

fn filled(text: &str, spec: &Spec) -> Option<String> {
    let Some((before, rest)) = text.split_once('{') else { return Some(text.to_owned()) };
    let (field, after) = rest.split_once('}')?;
    let mut value = spec.as_value();
    for name in field.split('.') {
        value = value.get(name)?;
    }
    let value = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    filled(after, spec).map(|after| format!("{before}{value}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_filled_in_and_what_says_nothing_needs_nothing() {
        let spec = Spec::of(&json!({ "inputs": { "listen": "127.0.0.1:1" }, "path": "a", "port": 7 }));
        let check = |text: &str, expect: Option<&str>| assert_eq!(filled(text, &spec).as_deref(), expect, "{text}");
        check("to write", Some("to write"));
        check("to listen on {inputs.listen}", Some("to listen on 127.0.0.1:1"));
        check("{path} and {port}", Some("a and 7"));
        check("to listen on {inputs.metrics_listen}", None);
        check("{inputs}", None);
    }
}
