//! The text of an API key: `tnlp_<public id>_<secret>`, 16 and 64 hexadecimal digits. The public id may be shown and logged; the
//! secret is 256 random bits, and only the digest of the whole text is stored.

use sha2::{Digest, Sha256};

/// The prefix of every key.
pub const PREFIX: &str = "tnlp_";

/// The latest expiry of a key, in days from now: a hundred years. Times far beyond it fit into no calendar.
pub const MAX_EXPIRY_DAYS: i64 = 36_500;

/// Whether a text can be the name of a key: 1 to 200 bytes that a list and the audit log can show.
pub fn is_name(text: &str) -> bool {
    textnlp_store::is_plain(text) && !text.trim().is_empty()
}

/// A newly created key. Its text is available only here.
pub struct NewKey {
    /// The public id.
    pub public_id: String,
    /// The secret text that clients send.
    pub text: String,
}

impl NewKey {
    /// Makes a key; the error is a system without random numbers.
    pub fn generate() -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut public = [0u8; 8];
        aws_lc_rs::rand::fill(&mut public)?;
        Self::with_public_id(&hex::encode(public))
    }

    /// Makes a key for a public id that is there already.
    pub fn with_public_id(public_id: &str) -> Result<Self, aws_lc_rs::error::Unspecified> {
        let mut secret = [0u8; 32];
        aws_lc_rs::rand::fill(&mut secret)?;
        Ok(Self { public_id: public_id.to_owned(), text: format!("{PREFIX}{public_id}_{}", hex::encode(secret)) })
    }
}

impl std::fmt::Debug for NewKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NewKey").field("public_id", &self.public_id).field("text", &"***").finish()
    }
}

/// The public id within a key's text; `None` if the text is not an API key.
pub fn public_id(text: &str) -> Option<&str> {
    let (public, secret) = text.strip_prefix(PREFIX)?.split_once('_')?;
    (is_public_id(public) && secret.len() == 64 && secret.bytes().all(|b| b.is_ascii_hexdigit())).then_some(public)
}

/// Whether a text can be a public id.
pub fn is_public_id(text: &str) -> bool {
    (4..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
}

/// The digest that is stored for a key.
pub fn digest(text: &str) -> String {
    hex::encode(Sha256::digest(text.as_bytes()))
}

/// Whether a key's text has this digest, compared in constant time.
pub fn matches(text: &str, stored: &str) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(digest(text).as_bytes(), stored.as_bytes()).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_key_is_verified_by_its_digest() {
        let key = NewKey::generate().unwrap();
        assert_eq!(public_id(&key.text), Some(key.public_id.as_str()));
        let stored = digest(&key.text);
        assert!(matches(&key.text, &stored));
        assert!(!matches(&NewKey::with_public_id(&key.public_id).unwrap().text, &stored));
        assert!(!matches(&key.text, ""));
        assert!(!format!("{key:?}").contains(&key.text[22..]));
    }

    #[test]
    fn malformed_api_keys_are_rejected() {
        let secret = "0".repeat(64);
        for text in [
            "",
            "tnlp_",
            "tnlp_0123456789abcdef",
            "sk-0123456789abcdef",
            &format!("tnlp_0123456789ABCDEF_{secret}"),
            &format!("tnlp_0123456789abcdef_{}", &secret[1..]),
            &format!("tnlp_0123456789abcdef_{secret}0"),
            &format!("tnlp_0123'; --_{secret}"),
            &format!("tnlp_0123456789abcdef_{}ü", &secret[2..]),
        ] {
            assert_eq!(public_id(text), None, "{text}");
        }
        assert!(public_id(&format!("tnlp_0123456789abcdef_{secret}")).is_some());
    }
}
