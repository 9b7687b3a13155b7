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

/// What this program does with each kind: rows with the head of [`textnlp_cloud::COVERAGE`].
pub fn coverage(users: &dyn Fn(&str) -> String) -> String {
    textnlp_cloud::coverage::<Api>(users)
}

/// The declarations of all kinds.
pub(crate) fn kinds() -> &'static [Kind] {
    static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(textnlp_cloud::kinds::<Api>);
    &KINDS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guide_lists_every_kind() {
        let table = textnlp_cloud::markdown::<Api>("actions of IAM", |_| true);
        textnlp_tests::guide::expect_section("docs/guide/aws.md", "kinds", &table);
    }

    /// Kinds whose creation takes minutes.
    const SLOW: [&str; 8] = [
        "aws.cache",
        "aws.db-instance",
        "aws.eks-addon",
        "aws.eks-cluster",
        "aws.eks-node-group",
        "aws.endpoint",
        "aws.nat-gateway",
        "aws.vpc-endpoint",
    ];

    #[test]
    fn estimates_of_a_first_plan_include_what_takes_minutes() {
        for name in SLOW {
            let kind = kinds().iter().find(|kind| kind.name == name).unwrap();
            assert!(kind.typical.is_some_and(|typical| typical >= MINUTE), "{name}");
        }
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
