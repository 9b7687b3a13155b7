//! Names of objects. Pure: the same site always has the same names. All are in lower case.

use sha2::{Digest, Sha256};
use textnlp_cloud::names::hash;
pub(crate) use textnlp_cloud::names::{of, of_site};
use textnlp_provider::Site;

/// The most characters of a cluster's name
/// (<https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules>); its group has the same name.
const MOST_OF_CLUSTER: usize = 63;

/// The most characters of a workspace's name without the nine of its end.
const MOST_OF_WORKSPACE: usize = 24;

/// The name of a site's resource group and of its cluster.
pub fn cluster(site: &Site) -> String {
    of_site(site, MOST_OF_CLUSTER)
}

/// The id of a site's resource group.
pub(crate) fn group(site: &Site) -> String {
    format!("/subscriptions/{}/resourceGroups/{}", site.account, cluster(site))
}

/// The name of the resource group of a replica in another region.
pub(crate) fn remote_group(site: &Site) -> String {
    of(site, "remote", MOST_OF_CLUSTER)
}

/// The name of the resource group of the copies of models in another region.
pub(crate) fn models_group(site: &Site) -> String {
    of(site, "models-remote", MOST_OF_CLUSTER)
}

/// The name of a storage account: 3 to 24 letters and digits, unique in all of Azure. `part` is `models` or `models-replica`.
pub(crate) fn storage(site: &Site, part: &str) -> String {
    let letters = site.environment.as_str().chars().filter(char::is_ascii_alphanumeric);
    let start: String = letters.take(9).collect();
    format!("textnlp{start}{}", unique(site, part))
}

/// The start of the name of a vault, of at most 24 characters with the end that makes each new vault another one.
pub(crate) fn vault(site: &Site) -> String {
    format!("tn-{}", unique(site, "vault"))
}

/// The start of the name of the vault of a workspace of Azure Machine Learning.
pub(crate) fn workspace_vault(site: &Site) -> String {
    format!("tn-{}", unique(site, "workspace"))
}

/// The start of the name of a workspace, of at most 33 characters with its end
/// (<https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftmachinelearningservices>).
pub(crate) fn workspace(site: &Site) -> String {
    of_site(site, MOST_OF_WORKSPACE)
}

/// The start of the name of an online endpoint, unique in its region, of at most 32 letters, digits and single hyphens with its end
/// (<https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas#azure-machine-learning-online-endpoints-and-batch-endpoints>).
pub(crate) fn online_endpoint(site: &Site) -> String {
    let letters = site.environment.as_str().chars().filter(char::is_ascii_alphanumeric);
    let start: String = letters.take(5).collect();
    format!("textnlp-{start}{}", unique(site, "endpoint"))
}

/// The name of a database server, unique in all of Azure. `part` is `database` or `replica`.
pub(crate) fn server(site: &Site, part: &str) -> String {
    format!("{}-{}", of(site, part, 50), unique(site, part))
}

/// The name of a Redis, of at most 60 characters without two hyphens in a row, unique in its region
/// (<https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules#microsoftcache>).
pub(crate) fn redis(site: &Site) -> String {
    let name = server(site, "cache");
    name.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
}

/// The name of a workbook, which is a GUID.
pub(crate) fn workbook(site: &Site) -> String {
    guid(&format!("{}/workbook", group(site)))
}

/// A GUID that follows from a text.
pub(crate) fn guid(seed: &str) -> String {
    let digest = Sha256::digest(seed.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&digest[..16]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().hyphenated().to_string()
}

fn unique(site: &Site, part: &str) -> String {
    hash(&format!("{}/{}/{}/{part}", site.account, site.environment, site.name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lower::tests::site;

    #[test]
    fn names_keep_the_rules_of_azure() {
        let site = site(false);
        assert_ne!(storage(&site, "models"), storage(&site, "models-replica"));
        let storage = storage(&site, "models");
        assert!(storage.len() <= 24 && storage.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit()));
        assert!(vault(&site).len() <= 15 && workspace_vault(&site) != vault(&site));
        assert!(online_endpoint(&site).len() <= 32 - 9 && workspace(&site).len() <= 33 - 9);
        assert!(server(&site, "database").len() <= 63 && server(&site, "replica") != server(&site, "database"));
        let long = Site { environment: "a--b".parse().unwrap(), name: "c".repeat(20).parse().unwrap(), ..site.clone() };
        assert!(redis(&long).len() <= 60 && !redis(&long).contains("--"), "{}", redis(&long));
        assert!(group(&site).ends_with("/resourceGroups/textnlp-staging-main"));
    }
}
