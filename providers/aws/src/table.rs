//! The table of kinds.

use std::sync::LazyLock;
use std::time::Duration;

use textnlp_provider::{DataClass, Effect, Identity, Kind, KindName, Pricing, ReplaceOrder};

use crate::kinds;
use crate::resource::{AnyResource, TAGS};

/// The kind of clusters; resources inside of them are reached through these.
pub const CLUSTER: &str = "aws.eks-cluster";
/// The output of a cluster with its name. Its endpoint and its authority are the outputs that every host has.
pub const CLUSTER_NAME: &str = "name";

/// One kind.
pub(crate) struct Row {
    /// Its declaration.
    pub(crate) kind: Kind,
    /// The signing name of its service, by which error codes are looked up.
    pub(crate) service: &'static str,
    /// How its objects are read and changed.
    pub(crate) resource: &'static dyn AnyResource,
    /// Fields that can neither change nor be recreated, each with what to do instead.
    pub(crate) refused: &'static [(&'static str, &'static str)],
}

impl Row {
    /// What a change of the field takes.
    pub(crate) fn effect(&self, field: &str) -> Effect {
        if let Some((_, why)) = self.refused.iter().find(|(refused, _)| *refused == field) {
            return Effect::Refuse((*why).to_owned());
        }
        if field == TAGS || self.resource.in_place().contains(&field) { Effect::InPlace } else { Effect::Replace }
    }
}

/// A declaration with the usual values: no data, created before the old one is deleted, ten minutes.
pub(crate) const fn kind(name: &'static str, says: &'static str, identity: Identity) -> Kind {
    Kind {
        name,
        says,
        identity,
        data: DataClass::None,
        replace: match identity {
            Identity::Token => ReplaceOrder::CreateFirst,
            Identity::Named | Identity::Part => ReplaceOrder::DeleteFirst,
        },
        one_by_one: false,
        settles: SETTLES,
        deadline: MINUTE.saturating_mul(10),
        typical: None,
        schema: 1,
        pricing: Pricing::Free,
        permissions: &[],
        terraform: &[],
    }
}

/// A minute.
pub(crate) const MINUTE: Duration = Duration::from_secs(60);
/// How long a new object may be missing from lists: AWS states no bound, and its own tools retry for about this long
/// (<https://docs.aws.amazon.com/ec2/latest/devguide/eventual-consistency.html>).
const SETTLES: Duration = Duration::from_secs(60);

/// All rows.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    kinds::ALL.iter().copied().flatten()
}

/// The row of a kind.
pub(crate) fn row(kind: &KindName) -> Option<&'static Row> {
    rows().find(|row| row.kind.name == kind.as_str())
}

/// The declarations of all kinds.
pub(crate) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| rows().map(|row| row.kind.clone()).collect());
    &KINDS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use textnlp_provider::Pricing;

    use super::*;

    /// The table of the guide. Every kind is created, read for drift attribute by attribute, and deleted by the same driver.
    fn table() -> String {
        let mut text = String::from(
            "| kind | what it is | changes in place | from Terraform | cost | actions of IAM |\n|---|---|---|---|---|---|\n",
        );
        let listed = |words: Vec<String>| if words.is_empty() { "—".to_owned() } else { words.join(", ") };
        for row in rows() {
            let kind = &row.kind;
            let fields = row.resource.in_place().iter().chain([&TAGS]).map(|field| format!("`{field}`"));
            let terraform = kind.terraform.iter().map(|(name, _)| format!("`{name}`"));
            let cost = match kind.pricing {
                Pricing::Free => "none",
                Pricing::BySpec => "by its spec",
                Pricing::Included => "included",
                Pricing::Unknown(why) => why,
            };
            let actions: BTreeSet<&str> = kind.permissions.iter().map(|permission| permission.action).collect();
            text += &format!(
                "| `{}` | {} | {} | {} | {cost} | {} |\n",
                kind.name,
                kind.says,
                listed(fields.collect()),
                listed(terraform.collect()),
                actions.len()
            );
        }
        text
    }

    #[test]
    fn guide_lists_every_kind() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/aws.md");
        let text = std::fs::read_to_string(file).unwrap();
        let (before, rest) = text.split_once("<!-- kinds -->\n").unwrap();
        let (found, after) = rest.split_once("<!-- end of kinds -->").unwrap();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            let new = format!("{before}<!-- kinds -->\n{}<!-- end of kinds -->{after}", table());
            return std::fs::write(file, new).unwrap();
        }
        assert_eq!(found, table(), "UPDATE_EXPECT=1 writes it");
    }

    #[test]
    fn kinds_are_complete() {
        for row in rows() {
            let name = row.kind.name;
            assert!(!row.kind.permissions.is_empty(), "{name} has no permissions");
            let service = row.service;
            assert!(crate::tables::Service::signed(service).is_some(), "{name}: {service} is no service of the table");
        }
    }
}
