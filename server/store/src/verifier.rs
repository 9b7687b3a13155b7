//! Keys that verify tokens: the public halves of signing keys, as the sites exchange them.

use std::time::Duration;

use jsonwebtoken::jwk::{Jwk, PublicKeyUse, ThumbprintHash};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

/// The id and the public half of a signing key.
pub fn public_half(pem: &[u8]) -> Result<(String, Value), jsonwebtoken::errors::Error> {
    let (_, kid, jwk) = halves(pem)?;
    Ok((kid, json!(jwk)))
}

/// A signing key, its id, and its public half.
pub fn halves(pem: &[u8]) -> Result<(EncodingKey, String, Jwk), jsonwebtoken::errors::Error> {
    let signing = EncodingKey::from_rsa_pem(pem)?;
    let mut jwk = Jwk::from_encoding_key(&signing, Algorithm::RS256)?;
    let kid = jwk.thumbprint(ThumbprintHash::SHA256)?;
    jwk.common.key_id = Some(kid.clone());
    jwk.common.public_key_use = Some(PublicKeyUse::Signature);
    Ok((signing, kid, jwk))
}

/// A public half that verifies tokens until `until`, in seconds since 1970. The servers that sign with the key extend it;
/// after a rotation it ends, later than the last token that the key signed. In a JWK the end is `exp`, which other
/// readers ignore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifierLease {
    /// Its name among the verifiers: `SITE/KID`.
    pub name: String,
    /// The id of the key.
    pub kid: String,
    /// Its end.
    pub until: u64,
}

/// How much longer a lease lasts than the tokens that are signed now. It is extended when half of this is over, so a
/// server may miss that for the other half.
const RESERVE: Duration = Duration::from_secs(3600);

impl VerifierLease {
    /// The lease that a server at `site` needs now for tokens of this lifetime.
    pub fn new(site: &str, kid: &str, lifetime: Duration, now: u64) -> Self {
        let until = now.saturating_add(lifetime.as_secs()).saturating_add(RESERVE.as_secs());
        Self { name: format!("{site}/{kid}"), kid: kid.to_owned(), until }
    }

    /// Whether a lease that ends at `until` must be extended to this one.
    pub fn extends(&self, until: Option<u64>) -> bool {
        until.is_none_or(|until| until.saturating_add(RESERVE.as_secs() / 2) <= self.until)
    }

    /// The JWK of the key with the end.
    pub fn jwk(&self, jwk: &Jwk) -> Value {
        let mut value = json!(jwk);
        value["exp"] = json!(self.until);
        value
    }
}

/// The end of a stored JWK; `None` for one without an end.
pub fn ends(jwk: &Value) -> Option<u64> {
    jwk["exp"].as_u64()
}

/// Whether a name is that of a lease: names of sites have no slash.
pub fn is_lease(name: &str) -> bool {
    name.contains('/')
}
