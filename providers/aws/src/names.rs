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

/// The name of a database server. RDS takes no two hyphens in a row:
/// <https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html#RDS_Limits.Constraints>.
pub(crate) fn server(site: &Site, part: &str) -> String {
    single_hyphens(of(site, part, MOST_OF_SERVER), MOST_OF_SERVER)
}

/// The most bytes of a server's name.
const MOST_OF_SERVER: usize = 63;

/// The name of a cache, which has no two hyphens in a row either:
/// <https://docs.aws.amazon.com/AmazonElastiCache/latest/APIReference/API_CreateReplicationGroup.html>.
pub(crate) fn cache(site: &Site) -> String {
    single_hyphens(of(site, "cache", MOST_OF_CACHE), MOST_OF_CACHE)
}

/// The most bytes of a cache's name.
const MOST_OF_CACHE: usize = 40;

/// A name without two hyphens in a row, at most `most` bytes.
fn single_hyphens(name: String, most: usize) -> String {
    if !name.contains("--") {
        return name;
    }
    let words: Vec<&str> = name.split('-').filter(|word| !word.is_empty()).collect();
    textnlp_cloud::names::bounded(format!("{}-{}", words.join("-"), hash(&name)), most)
}

/// The most bytes of a role's name.
pub(crate) const MOST_OF_ROLE: usize = 64;

#[cfg(test)]
mod tests {
    use textnlp_cloud::names::bounded;

    use super::*;

    #[test]
    fn names_of_servers_have_no_two_hyphens_in_a_row() {
        let bounds: Vec<String> = [("a--b", "here"), ("a-b", "here"), ("a", "b--here")]
            .map(|(environment, site)| {
                let words = format!("{PREFIX}{environment}-{site}-database");
                single_hyphens(words, MOST_OF_SERVER)
            })
            .to_vec();
        assert_eq!(bounds[1], "textnlp-a-b-here-database");
        assert!(bounds.iter().all(|name| !name.contains("--") && name.len() <= 63), "{bounds:?}");
        assert!(bounds[0] != bounds[1] && bounds[0] != bounds[2], "{bounds:?}");
    }

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
