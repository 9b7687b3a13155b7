//! Names of objects. Pure: the same site always has the same names.

pub(crate) use textnlp_cloud::names::{HASH, PREFIX, global, hash, of, of_site};
use textnlp_provider::{EnvironmentName, Site, SiteName};

/// The name of a site's cluster: at most 100 characters
/// (<https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html>), of which load balancers and roles that contain it
/// need some.
pub fn cluster(site: &Site) -> String {
    of_site(site, 63)
}

/// The name of a site's endpoint: at most 50 characters, because the names of its models and configurations end with a
/// part of a token besides.
pub(crate) fn endpoint(site: &Site) -> String {
    of_site(site, 50)
}

/// How the names of a site's roles start.
pub(crate) fn roles(environment: &EnvironmentName, site: &SiteName) -> String {
    format!("{PREFIX}{environment}-{site}-").chars().take(MOST_OF_ROLE - HASH - 2).collect()
}

/// The most bytes of a role's name.
pub(crate) const MOST_OF_ROLE: usize = 64;

#[cfg(test)]
mod tests {
    use textnlp_cloud::names::bounded;

    use super::*;

    #[test]
    fn roles_of_a_site_start_alike() {
        for length in [1, 20, 31] {
            let (environment, name) = ("e".repeat(length), "s".repeat(length));
            let start = roles(&environment.parse().unwrap(), &name.parse().unwrap());
            for part in ["a", "models-replica"] {
                let role = bounded(format!("{PREFIX}{environment}-{name}-{part}"), MOST_OF_ROLE);
                assert!(role.starts_with(&start), "{role} {start}");
            }
            assert!(length > 20 || start.ends_with("s-"), "another site: {start}");
        }
    }
}
