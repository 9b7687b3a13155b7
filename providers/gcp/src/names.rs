//! Names of objects. Pure: the same site always has the same names.

pub(crate) use textnlp_cloud::names::{PREFIX, global, of, of_site};
use textnlp_provider::Site;

/// The most characters of a cluster's name:
/// <https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters>.
const MOST_OF_CLUSTER: usize = 40;

/// The most characters of a service's name:
/// <https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/create>.
const MOST_OF_SERVICE: usize = 49;
/// The longest id of a service account.
pub(crate) const MOST_OF_ACCOUNT: usize = 30;

/// The name of a site's service of Cloud Run.
pub(crate) fn service(site: &Site) -> String {
    of_site(site, MOST_OF_SERVICE)
}

/// The id of the account that may call it.
pub(crate) fn caller(site: &Site) -> String {
    of(site, "caller", MOST_OF_ACCOUNT)
}

/// The name of a site's cluster.
pub fn cluster(site: &Site) -> String {
    of_site(site, MOST_OF_CLUSTER)
}
