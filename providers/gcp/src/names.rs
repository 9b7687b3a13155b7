//! Names of objects. Pure: the same site always has the same names.

pub(crate) use textnlp_cloud::names::{PREFIX, global, of, of_site};
use textnlp_provider::Site;

/// The most characters of a cluster's name:
/// <https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters>.
const MOST_OF_CLUSTER: usize = 40;

/// The name of a site's cluster.
pub fn cluster(site: &Site) -> String {
    of_site(site, MOST_OF_CLUSTER)
}
