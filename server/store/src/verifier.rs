//! Keys that verify tokens: the public halves of signing keys, as the sites exchange them.

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
