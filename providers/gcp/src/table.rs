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
    use std::collections::BTreeSet;

    use textnlp_cloud::TAGS;
    use textnlp_provider::Pricing;

    use super::*;
    use crate::service::Service;

    /// The table of the guide.
    fn table() -> String {
        let mut text = String::from(
            "| kind | what it is | changes in place | from Terraform | cost | permissions |\n|---|---|---|---|---|---|\n",
        );
        let listed = |words: Vec<String>| if words.is_empty() { "—".to_owned() } else { words.join(", ") };
        for row in rows() {
            let kind = &row.kind;
            let tags = crate::lower::LABELLED.contains(&kind.name).then_some(TAGS);
            let fields = row.resource.in_place().iter().copied().chain(tags).map(|field| format!("`{field}`"));
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
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/gcp.md");
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
            assert!(Service::named(row.service).is_some(), "{name}: {} is no service of the table", row.service);
        }
    }
}
