//! Names of objects. Pure: the same site always has the same names.

use sha2::{Digest, Sha256};
use textnlp_provider::Site;

/// How every name starts.
pub const PREFIX: &str = "textnlp-";

/// `textnlp-ENVIRONMENT-SITE-PART`, at most `most` bytes: a longer name keeps its start and ends with a hash of the whole.
pub fn of(site: &Site, part: &str, most: usize) -> String {
    bounded(format!("{PREFIX}{}-{}-{part}", site.environment, site.name), most)
}

/// The same with the account in it, for names that are unique in all of a cloud.
pub fn global(site: &Site, part: &str, most: usize) -> String {
    bounded(format!("{PREFIX}{}-{}-{}-{part}", site.account, site.environment, site.name), most)
}

/// `textnlp-ENVIRONMENT-SITE`, at most `most` bytes.
pub fn of_site(site: &Site, most: usize) -> String {
    bounded(format!("{PREFIX}{}-{}", site.environment, site.name), most)
}

/// Characters of a hash.
pub const HASH: usize = 8;

/// A hash of a text, short enough to be a part of a name.
pub fn hash(text: &str) -> String {
    hex::encode(&Sha256::digest(text.as_bytes())[..HASH / 2])
}

/// A name of at most `most` bytes: a longer one keeps its start and ends with a hash of the whole.
pub fn bounded(name: String, most: usize) -> String {
    if name.len() <= most {
        return name;
    }
    let hash = hash(&name);
    let start: String = name.chars().take(most.saturating_sub(HASH + 1)).collect();
    format!("{}-{hash}", start.trim_end_matches('-'))
}

/// Digits of the token of an operation that end a name which cannot be used again for a while.
const SUFFIX: usize = 8;

/// A name that ends with a part of the operation's token, because the name of a deleted object is taken for a while.
pub fn suffixed(name: &str, token: &str) -> String {
    format!("{name}-{}", token.chars().take(SUFFIX).collect::<String>())
}

/// The same without its end.
pub fn unsuffixed(name: &str) -> &str {
    match name.rsplit_once('-') {
        Some((start, end)) if end.len() == SUFFIX && end.bytes().all(|byte| byte.is_ascii_hexdigit()) => start,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_of_tokens_are_taken_off() {
        assert_eq!(suffixed("db", "0a1b2c3d4e5f"), "db-0a1b2c3d");
        assert_eq!((unsuffixed("db-0a1b2c3d"), unsuffixed("db-main")), ("db", "db-main"));
    }

    #[test]
    fn long_names_keep_their_bound_and_stay_distinct() {
        let long = |last: &str| bounded(format!("textnlp-{}-{last}", "a".repeat(80)), 63);
        assert_eq!(long("x").len(), 63);
        assert_ne!(long("x"), long("y"));
        assert_eq!(bounded("textnlp-staging-here-nodes".to_owned(), 63), "textnlp-staging-here-nodes");
    }
}
