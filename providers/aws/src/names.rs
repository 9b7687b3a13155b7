//! Names of objects. Pure: the same site always has the same names.

use sha2::{Digest, Sha256};
use textnlp_provider::Site;

/// How every name starts.
pub(crate) const PREFIX: &str = "textnlp-";

/// `textnlp-ENVIRONMENT-SITE-PART`, at most `most` bytes: a longer name keeps its start and ends with a hash of the whole.
pub(crate) fn of(site: &Site, part: &str, most: usize) -> String {
    bounded(format!("textnlp-{}-{}-{part}", site.environment, site.name), most)
}

/// The same with the account in it, for names that are unique in all of AWS.
pub(crate) fn global(site: &Site, part: &str, most: usize) -> String {
    bounded(format!("textnlp-{}-{}-{}-{part}", site.account, site.environment, site.name), most)
}

/// The name of a site's cluster: at most 100 characters
/// (<https://docs.aws.amazon.com/eks/latest/APIReference/API_CreateCluster.html>), of which load balancers and roles that contain it
/// need some.
pub fn cluster(site: &Site) -> String {
    bounded(format!("textnlp-{}-{}", site.environment, site.name), 63)
}

fn bounded(name: String, most: usize) -> String {
    const HASH: usize = 8;
    if name.len() <= most {
        return name;
    }
    let hash = hex::encode(&Sha256::digest(name.as_bytes())[..HASH / 2]);
    let start: String = name.chars().take(most.saturating_sub(HASH + 1)).collect();
    format!("{}-{hash}", start.trim_end_matches('-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_names_keep_their_bound_and_stay_distinct() {
        let long = |last: &str| bounded(format!("textnlp-{}-{last}", "a".repeat(80)), 63);
        assert_eq!(long("x").len(), 63);
        assert_ne!(long("x"), long("y"));
        assert_eq!(bounded("textnlp-staging-here-nodes".to_owned(), 63), "textnlp-staging-here-nodes");
    }
}
