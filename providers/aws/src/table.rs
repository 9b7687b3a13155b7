//! The table of kinds.

use std::sync::LazyLock;

pub(crate) use textnlp_cloud::{MINUTE, kind};
use textnlp_provider::{Kind, KindName};

use crate::api::Api;

/// The kind of clusters; resources inside of them are reached through these.
pub const CLUSTER: &str = "aws.eks-cluster";
/// The output of a cluster with its name. Its endpoint and its authority are the outputs that every host has.
pub const CLUSTER_NAME: &str = "name";

/// One kind. Its service is the signing name.
pub(crate) type Row = textnlp_cloud::Row<Api>;

/// All rows.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    textnlp_cloud::rows::<Api>()
}

/// The row of a kind.
pub(crate) fn row(kind: &KindName) -> Option<&'static Row> {
    textnlp_cloud::row(kind)
}

/// The declarations of all kinds.
pub(crate) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(textnlp_cloud::kinds::<Api>);
    &KINDS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use textnlp_cloud::TAGS;
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
        textnlp_tests::guide::expect_section("docs/guide/aws.md", "kinds", &table());
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
