//! The table of kinds.

use std::sync::LazyLock;

pub(crate) use textnlp_cloud::{MINUTE, kind};
use textnlp_provider::{CloudId, InvalidName, Kind, KindName, Site};

use crate::api::Api;

/// The kind of clusters; resources inside of them are reached through these.
pub const CLUSTER: &str = "azure.cluster";

/// The cloud id of a site's cluster, for commands that have no outputs at hand: it has the name of its resource group.
///
/// # Errors
/// The names in it are too long.
pub fn cluster_id(subscription: &str, name: &str) -> Result<CloudId, InvalidName> {
    if name.starts_with("/subscriptions/") {
        return CloudId::new(name);
    }
    let group = format!("/subscriptions/{subscription}/resourceGroups/{name}");
    CloudId::new(format!("{group}/providers/Microsoft.ContainerService/managedClusters/{name}"))
}

/// One kind. Its service is the namespace of a resource provider.
pub(crate) type Row = textnlp_cloud::Row<Api>;

/// All rows.
pub(crate) fn rows() -> impl Iterator<Item = &'static Row> {
    textnlp_cloud::rows::<Api>()
}

/// The row of a kind.
pub(crate) fn row(kind: &KindName) -> Option<&'static Row> {
    textnlp_cloud::row::<Api>(kind)
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

/// Whether the subscription of a site is known.
pub(crate) fn is_bound(site: &Site) -> bool {
    !site.account.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guide_lists_every_kind() {
        let is_tagged = |kind: &Kind| {
            let name = kind.name.parse().ok();
            name.and_then(|name| row(&name)).is_some_and(|row| row.resource.carries_tags())
        };
        let table = textnlp_cloud::markdown::<Api>("permissions", is_tagged);
        textnlp_tests::guide::expect_section("docs/guide/azure.md", "kinds", &table);
    }

    #[test]
    fn kinds_are_complete() {
        for row in rows() {
            assert!(!row.kind.permissions.is_empty(), "{} has no permissions", row.kind.name);
            assert!(row.service.starts_with("Microsoft."), "{}", row.kind.name);
        }
    }

    #[test]
    fn clusters_are_known_by_their_names() {
        let id = cluster_id("s", "textnlp-a-main").unwrap();
        assert!(id.as_str().ends_with(
            "/resourceGroups/textnlp-a-main/providers/Microsoft.ContainerService/managedClusters/textnlp-a-main"
        ));
        assert_eq!(cluster_id("s", "/subscriptions/x/y").unwrap().as_str(), "/subscriptions/x/y");
    }
}
