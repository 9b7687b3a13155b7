//! The permissions that a plan needs, from the tables of its resource kinds. Pure.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;
use textnlp_provider::{KindName, SiteName, Spec};

use super::{Call, ChoiceBasis, Facts, Node, Plan};

/// A permission that a plan needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Permission {
    /// The site.
    pub site: SiteName,
    /// The permission, in the provider's notation.
    pub permission: String,
    /// The resource kinds that need it.
    pub kinds: BTreeSet<KindName>,
}

/// The permissions that this plan needs, without duplicates. `{field}` in a table is replaced by the resource's value.
/// Without a value, the permission is not needed.
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

/// The spec of a step's resource; `None` for a record change, which makes no call.
fn spec_of(node: &Node) -> Option<&Spec> {
    match node {
        Node::Call(Call::Create { wanted, .. } | Call::Update { wanted, .. }) => Some(&wanted.spec),
        Node::Call(Call::Delete { recorded, .. }) => Some(&recorded.spec),
        Node::OneOf(one) => match &one.decides {
            ChoiceBasis::Difference { wanted, .. } => Some(&wanted.spec),
            ChoiceBasis::As(_) => None,
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
    fn permission_placeholders_are_filled_and_unused_ones_omitted() {
        let spec = Spec::of(&json!({ "inputs": { "listen": "127.0.0.1:1" }, "path": "a", "port": 7 }));
        let check = |text: &str, expect: Option<&str>| assert_eq!(filled(text, &spec).as_deref(), expect, "{text}");
        check("to write", Some("to write"));
        check("to listen on {inputs.listen}", Some("to listen on 127.0.0.1:1"));
        check("{path} and {port}", Some("a and 7"));
        check("to listen on {inputs.metrics_listen}", None);
        check("{inputs}", None);
    }
}
