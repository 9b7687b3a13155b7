//! Names of objects. Pure: the same site always has the same names.

pub(crate) use textnlp_cloud::names::{PREFIX, global, of, of_site};
use textnlp_provider::Site;

/// The most characters of a cluster's name:
/// <https://cloud.google.com/kubernetes-engine/docs/reference/rest/v1/projects.locations.clusters>.
const MOST_OF_CLUSTER: usize = 40;

/// The most characters of a service's name:
/// <https://cloud.google.com/run/docs/reference/rest/v2/projects.locations.services/create>.
const MOST_OF_SERVICE: usize = 49;
/// The most characters of the ids of an endpoint and of a model, of which the operation takes some
/// (<https://cloud.google.com/vertex-ai/docs/reference/rest/v1/projects.locations.models/upload>).
const MOST_OF_ENDPOINT: usize = 63;
const MOST_OF_MODEL: usize = 54;
/// The longest id of a service account.
pub(crate) const MOST_OF_ACCOUNT: usize = 30;

/// The name of a site's service of Cloud Run.
pub(crate) fn service(site: &Site) -> String {
    of_site(site, MOST_OF_SERVICE)
}

/// The name of a site's endpoint of Vertex AI.
pub(crate) fn endpoint(site: &Site) -> String {
    of_site(site, MOST_OF_ENDPOINT)
}

/// The start of the name of its model.
pub(crate) fn model(site: &Site) -> String {
    of_site(site, MOST_OF_MODEL)
}

/// The id of the account that may call a service.
pub(crate) fn caller(site: &Site) -> String {
    of(site, "caller", MOST_OF_ACCOUNT)
}

/// The name of a site's cluster.
pub fn cluster(site: &Site) -> String {
    of_site(site, MOST_OF_CLUSTER)
}
