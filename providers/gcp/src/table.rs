//! The table of kinds.

use std::sync::LazyLock;

pub(crate) use textnlp_cloud::{MINUTE, kind};
use textnlp_provider::{CloudId, InvalidName, Kind, KindName, Site};

use crate::api::Api;

/// The kind of clusters; resources inside of them are reached through these.
pub const CLUSTER: &str = "gcp.gke-cluster";
/// The output of a cluster with its name. Its endpoint and its authority are the outputs that every host has.
pub const CLUSTER_NAME: &str = "name";

/// The cloud id of a site's cluster, for commands that have no outputs at hand.
///
/// # Errors
/// The names in it are too long.
pub fn cluster_id(project: &str, region: &str, name: &str) -> Result<CloudId, InvalidName> {
    if name.starts_with("projects/") {
        return CloudId::new(name);
    }
    CloudId::new(format!("projects/{project}/locations/{region}/clusters/{name}"))
}

/// One kind. Its service is the name of a discovery document.
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

/// The project of a site in ids.
pub(crate) fn is_bound(site: &Site) -> bool {
    !site.account.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::Service;

    #[test]
    fn guide_lists_every_kind() {
        let table = textnlp_cloud::markdown::<Api>("permissions", |kind| crate::lower::LABELLED.contains(&kind.name));
        textnlp_tests::guide::expect_section("docs/guide/gcp.md", "kinds", &table);
    }

    #[test]
    fn kinds_are_complete() {
        for row in rows() {
            let name = row.kind.name;
            assert!(!row.kind.permissions.is_empty(), "{name} has no permissions");
            assert!(Service::named(row.service).is_some(), "{name}: {} is no service of the table", row.service);
        }
    }
}
