//! Names of objects. Pure: the same site always has the same names.

use sha2::{Digest, Sha256};
use textnlp_provider::{EnvironmentName, Site, SiteName};

/// How every name starts.
pub(crate) const PREFIX: &str = "textnlp-";

/// `textnlp-ENVIRONMENT-SITE-PART`, at most `most` bytes: a longer name keeps its start and ends with a hash of the whole.
pub(crate) fn of(site: &Site, part: &str, most: usize) -> String {
    bounded(format!("{PREFIX}{}-{}-{part}", site.environment, site.name), most)
}

/// The same with the account in it, for names that are unique in all of AWS.
pub(crate) fn global(site: &Site, part: &str, most: usize) -> String {
    bounded(format!("{PREFIX}{}-{}-{}-{part}", site.account, site.environment, site.name), most)
}

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

/// `textnlp-ENVIRONMENT-SITE`, at most `most` bytes.
fn of_site(site: &Site, most: usize) -> String {
    bounded(format!("{PREFIX}{}-{}", site.environment, site.name), most)
}

/// How the names of a site's roles start.
pub(crate) fn roles(environment: &EnvironmentName, site: &SiteName) -> String {
    format!("{PREFIX}{environment}-{site}-").chars().take(MOST_OF_ROLE - HASH - 2).collect()
}

/// The most bytes of a role's name.
pub(crate) const MOST_OF_ROLE: usize = 64;

/// Characters of a hash.
const HASH: usize = 8;

/// A hash of a text, short enough to be a part of a name.
pub(crate) fn hash(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..HASH / 2])
}

fn bounded(name: String, most: usize) -> String {
    if name.len() <= most {
        return name;
    }
    let hash = hash(&name);
    let start: String = name.chars().take(most.saturating_sub(HASH + 1)).collect();
    format!("{}-{hash}", start.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
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

    #[test]
    fn long_names_keep_their_bound_and_stay_distinct() {
        let long = |last: &str| bounded(format!("textnlp-{}-{last}", "a".repeat(80)), 63);
        assert_eq!(long("x").len(), 63);
        assert_ne!(long("x"), long("y"));
        assert_eq!(bounded("textnlp-staging-here-nodes".to_owned(), 63), "textnlp-staging-here-nodes");
    }
}
