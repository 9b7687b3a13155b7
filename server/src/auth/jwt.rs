//! Tokens of `/auth/token`: RS256, signed with a key that replicas share, verified by anyone with `/.well-known/jwks.json`.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use aws_lc_rs::encoding::{AsDer, Pkcs8V1Der};
use aws_lc_rs::rsa::{KeyPair, KeySize};
use base64::Engine as _;
use camino::Utf8Path;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use textnlp_store::verifier::{self, VerifierLease};

use crate::config::Security;

/// The claims of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// The issuer.
    pub iss: String,
    /// Public id of the key that it was exchanged for.
    pub user_id: String,
    /// The key's tenant.
    pub tenant_id: String,
    /// The most prompt and generated tokens that it may spend.
    pub token_limit: u64,
    /// When it ends, in seconds since 1970.
    pub exp: u64,
    /// When it was issued, in seconds since 1970.
    pub iat: u64,
    /// Its name in the budgets.
    pub jti: String,
    /// [`ApiKey::version`](textnlp_store::ApiKey::version) of the key. Tokens of earlier releases have none; they end within
    /// `security.jwt_expiry`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// Signs and verifies.
pub struct Signer {
    signing: EncodingKey,
    verifying: DecodingKey,
    header: Header,
    validation: Validation,
    jwk: Jwk,
    issuer: String,
    expiry: Duration,
    others: RwLock<Others>,
    /// Whether other processes have the same key: it is configured.
    is_shared: bool,
}

/// The public keys of other sites, and of earlier signing keys, by key id.
#[derive(Default)]
struct Others {
    keys: BTreeMap<String, OtherKey>,
}

struct OtherKey {
    jwk: Jwk,
    verifying: DecodingKey,
    /// In seconds since 1970; `None`: while it is stored.
    until: Option<u64>,
}

impl OtherKey {
    fn is_valid(&self) -> bool {
        self.until.is_none_or(|until| jsonwebtoken::get_current_timestamp() < until)
    }
}

/// Why a signing key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SignerError {
    /// Its file cannot be read.
    #[error("read the key that signs tokens, {path}")]
    Read {
        /// Which file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// It is no such key.
    #[error("{path} is not an RSA private key of at least 2048 bits in PEM format")]
    Unusable {
        /// Which file.
        path: String,
        /// Why.
        source: Option<jsonwebtoken::errors::Error>,
    },
    /// The system has no random numbers.
    #[error("no key could be generated")]
    Generate,
}

impl Signer {
    /// Uses the configured key, or generates one that lives as long as the process.
    pub fn new(security: &Security) -> Result<Self, SignerError> {
        match &security.jwt_private_key_file {
            Some(path) => {
                let source = |source| SignerError::Read { path: path.to_string(), source };
                Self::from_pem(&std::fs::read(path).map_err(source)?, path, security)
            }
            None => {
                tracing::info!(
                    "tokens of /auth/token become invalid when this process ends: security.jwt_private_key_file is not set"
                );
                Self::from_pem(generate_pem()?.as_bytes(), Utf8Path::new("the generated key"), security)
            }
        }
    }

    fn from_pem(pem: &[u8], path: &Utf8Path, security: &Security) -> Result<Self, SignerError> {
        let unusable = |source| SignerError::Unusable { path: path.to_string(), source };
        let (signing, kid, jwk) = verifier::halves(pem).map_err(|e| unusable(Some(e)))?;
        let verifying = DecodingKey::from_jwk(&jwk).map_err(|e| unusable(Some(e)))?;
        // A modulus of 2048 bits is 342 letters of base64.
        let modulus = serde_json::to_value(&jwk).ok().and_then(|jwk| jwk["n"].as_str().map(str::len)).unwrap_or(0);
        if modulus < 342 {
            return Err(unusable(None));
        }
        let mut validation = Validation::new(Algorithm::RS256);
        validation.set_issuer(&[&security.issuer]);
        validation.set_required_spec_claims(&["exp", "iss"]);
        validation.validate_nbf = true;
        validation.leeway = 0;
        let header = Header { kid: Some(kid), ..Header::new(Algorithm::RS256) };
        let (issuer, expiry) = (security.issuer.clone(), security.jwt_expiry);
        let (others, is_shared) = (RwLock::default(), security.jwt_private_key_file.is_some());
        Ok(Self { signing, verifying, header, validation, jwk, issuer, expiry, others, is_shared })
    }

    /// How long tokens are valid.
    pub fn expiry(&self) -> Duration {
        self.expiry
    }

    /// Makes a token.
    pub fn issue(
        &self,
        user_id: &str,
        tenant_id: &str,
        token_limit: u64,
        expiry: Duration,
        key: Option<String>,
    ) -> Result<(String, Claims), jsonwebtoken::errors::Error> {
        let iat = jsonwebtoken::get_current_timestamp();
        let claims = Claims {
            iss: self.issuer.clone(),
            user_id: user_id.to_owned(),
            tenant_id: tenant_id.to_owned(),
            token_limit,
            exp: iat + expiry.as_secs().max(1),
            iat,
            jti: uuid::Uuid::new_v4().to_string(),
            key,
        };
        Ok((jsonwebtoken::encode(&self.header, &claims, &self.signing)?, claims))
    }

    /// The claims of a token that this deployment signed and that is valid now. Only RS256 is accepted, whatever the
    /// header says.
    pub fn verify(&self, token: &str) -> Result<Claims, jsonwebtoken::errors::Error> {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let header = jsonwebtoken::decode_header(token)?;
        // Extensions that must be understood: there are none (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(jsonwebtoken::errors::ErrorKind::InvalidToken.into());
        }
        let of_another = header.kid.and_then(|kid| others.keys.get(&kid)).filter(|key| key.is_valid());
        let verifying = of_another.map_or(&self.verifying, |key| &key.verifying);
        Ok(jsonwebtoken::decode::<Claims>(token, verifying, &self.validation)?.claims)
    }

    /// The entry by which other servers verify the tokens of this one, as its name, key id and JWK, if `stored` lacks it
    /// or its end is near.
    pub fn lease(&self, site: &str, stored: &BTreeMap<String, String>) -> Option<(String, String, String)> {
        let kid = self.header.kid.as_ref().filter(|_| self.is_shared)?;
        let lease = VerifierLease::new(site, kid, self.expiry, jsonwebtoken::get_current_timestamp());
        let there = stored.get(&lease.name).and_then(|jwk| serde_json::from_str::<Value>(jwk).ok());
        let jwk = lease.jwk(&self.jwk).to_string();
        lease.extends(there.as_ref().and_then(verifier::ends)).then_some((lease.name, lease.kid, jwk))
    }

    /// Whether to look up the key that a token names: it is unknown here. Another site may have signed the token.
    pub fn should_learn(&self, token: &str) -> bool {
        let kid = jsonwebtoken::decode_header(token).ok().and_then(|header| header.kid);
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        kid.is_some() && kid != self.header.kid && kid.is_some_and(|kid| !others.keys.contains_key(&kid))
    }

    /// Replaces the known public keys by those of all sites, as JWKs. Invalid ones are skipped.
    pub fn learn<'a>(&self, jwks: impl IntoIterator<Item = &'a String>) {
        let read = |text: &String| {
            let value: Value = serde_json::from_str(text).ok()?;
            let until = verifier::ends(&value);
            let jwk: Jwk = serde_json::from_value(value).ok()?;
            let kid = jwk.common.key_id.clone().filter(|kid| self.header.kid.as_ref() != Some(kid))?;
            let verifying = DecodingKey::from_jwk(&jwk).ok()?;
            Some((kid, OtherKey { jwk, verifying, until }))
        };
        let mut keys: BTreeMap<String, OtherKey> = BTreeMap::new();
        for (kid, key) in jwks.into_iter().filter_map(read).filter(|(_, key)| key.is_valid()) {
            // A site's present key has an entry without an end beside that with one.
            if keys.get(&kid).is_none_or(|known| known.until.is_some()) {
                keys.insert(kid, key);
            }
        }
        *self.others.write().unwrap_or_else(PoisonError::into_inner) = Others { keys };
    }

    /// The public keys, in the form of `/.well-known/jwks.json`.
    pub fn jwks(&self) -> Value {
        let others = self.others.read().unwrap_or_else(PoisonError::into_inner);
        let valid = others.keys.values().filter(|key| key.is_valid());
        let keys: Vec<&Jwk> = [&self.jwk].into_iter().chain(valid.map(|key| &key.jwk)).collect();
        json!({ "keys": keys })
    }
}

/// An RSA key of 2048 bits in PEM.
pub fn generate_pem() -> Result<String, SignerError> {
    let key = KeyPair::generate(KeySize::Rsa2048).map_err(|_| SignerError::Generate)?;
    let der: Pkcs8V1Der<'_> = key.as_der().map_err(|_| SignerError::Generate)?;
    let body = base64::engine::general_purpose::STANDARD.encode(der.as_ref());
    let lines: Vec<&str> = body.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
    Ok(format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", lines.join("\n")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(issuer: &str) -> Security {
        Security {
            jwt_expiry: Duration::from_secs(60),
            jwt_private_key_file: None,
            jwt_token_limit: 1,
            api_keys_enabled: true,
            api_key_header: "X-API-Key".into(),
            rate_limit: None,
            token_rate_limit: None,
            issuer: issuer.into(),
            oidc: None,
        }
    }

    #[test]
    fn token_is_verified_only_by_its_key_and_issuer() {
        let pem = generate_pem().unwrap();
        let signer = |issuer| Signer::from_pem(pem.as_bytes(), Utf8Path::new("k"), &security(issuer)).unwrap();
        let ours = signer("a");
        let (token, claims) = ours.issue("key", "acme", 100, Duration::from_secs(60), None).unwrap();
        assert_eq!(ours.verify(&token).unwrap(), claims);
        assert_eq!(signer("a").verify(&token).unwrap(), claims, "another replica with the same key");
        assert!(signer("b").verify(&token).is_err());
        assert!(Signer::new(&security("a")).unwrap().verify(&token).is_err());
        let kid = ours.jwks()["keys"][0]["kid"].clone();
        assert_eq!(jsonwebtoken::decode_header(&token).unwrap().kid.as_deref(), kid.as_str());
        assert_eq!(ours.jwks()["keys"][0]["alg"], "RS256");
    }

    #[test]
    fn token_of_another_site_is_verified_once_its_public_key_is_known() {
        let (pem, other) = (generate_pem().unwrap(), generate_pem().unwrap());
        let here = Signer::from_pem(pem.as_bytes(), Utf8Path::new("k"), &security("a")).unwrap();
        let there = Signer::from_pem(other.as_bytes(), Utf8Path::new("k"), &security("a")).unwrap();
        let (token, claims) = there.issue("key", "acme", 100, Duration::from_secs(60), None).unwrap();
        assert!(here.verify(&token).is_err() && here.should_learn(&token));
        let (own, _) = here.issue("key", "acme", 100, Duration::from_secs(60), None).unwrap();
        assert!(!here.should_learn(&own) && !here.should_learn("no token"));
        let (kid, jwk) = verifier::public_half(other.as_bytes()).unwrap();
        here.learn(&[jwk.to_string(), "{}".to_owned(), "no JSON".to_owned()]);
        assert_eq!(here.verify(&token).unwrap(), claims);
        assert_eq!(here.jwks()["keys"][1]["kid"], kid);
        // Signed with our key, but naming the other's.
        let forged = jsonwebtoken::encode(&there.header, &claims, &here.signing).unwrap();
        assert!(here.verify(&forged).is_err());
        here.learn(&[]);
        assert!(here.verify(&token).is_err() && here.should_learn(&token));
    }

    #[test]
    fn tokens_of_a_replaced_key_are_verified_until_its_lease_ends() {
        let folder = tempfile::tempdir().unwrap();
        let signer = |name: &str| {
            let path = camino::Utf8PathBuf::from_path_buf(folder.path().join(name)).unwrap();
            std::fs::write(&path, generate_pem().unwrap()).unwrap();
            Signer::new(&Security { jwt_private_key_file: Some(path), ..security("a") }).unwrap()
        };
        let (old, new) = (signer("old"), signer("new"));
        let (token, claims) = old.issue("key", "acme", 100, Duration::from_secs(60), None).unwrap();
        let (name, kid, jwk) = old.lease("here", &BTreeMap::new()).unwrap();
        assert_eq!(name, format!("here/{kid}"));
        let value: Value = serde_json::from_str(&jwk).unwrap();
        assert!(verifier::ends(&value).unwrap() > claims.exp, "longer than any token that it signs now");
        let stored = BTreeMap::from([(name.clone(), jwk.clone())]);
        assert_eq!(old.lease("here", &stored), None, "not twice");
        assert_eq!(new.lease("here", &stored).unwrap().0, format!("here/{}", new.header.kid.clone().unwrap()));
        new.learn(stored.values());
        assert_eq!(new.verify(&token).unwrap(), claims);
        assert_eq!(new.jwks()["keys"].as_array().unwrap().len(), 2);
        // It is not extended any more.
        let ended = |ago: u64| {
            let mut value = value.clone();
            value["exp"] = json!(claims.iat.saturating_sub(ago));
            value.to_string()
        };
        assert!(old.lease("here", &BTreeMap::from([(name, ended(0))])).is_some(), "one in use is extended");
        new.learn([&ended(0)]);
        assert!(new.verify(&token).is_err());
        assert_eq!(new.jwks()["keys"].as_array().unwrap().len(), 1);
        // The entry of a site has no end, and goes before a lease of the same key.
        let of_site = verifier::public_half(&std::fs::read(folder.path().join("old")).unwrap()).unwrap().1.to_string();
        for both in [[&of_site, &jwk], [&jwk, &of_site]] {
            new.learn(both);
            let others = new.others.read().unwrap();
            assert_eq!(others.keys.values().map(|key| key.until).collect::<Vec<_>>(), [None]);
        }
        let alone = Signer::new(&security("a")).unwrap();
        assert_eq!(alone.lease("here", &BTreeMap::new()), None, "a key of one process is of no use to another");
    }

    #[test]
    fn token_with_a_critical_header_is_refused() {
        let signer = Signer::new(&security("a")).unwrap();
        let (_, claims) = signer.issue("key", "acme", 100, Duration::from_secs(60), None).unwrap();
        let with = |crit: Option<Vec<String>>| {
            let header = Header { crit, ..signer.header.clone() };
            signer.verify(&jsonwebtoken::encode(&header, &claims, &signer.signing).unwrap())
        };
        assert_eq!(with(None).unwrap(), claims);
        assert!(with(Some(vec!["http://example.com/unknown".to_owned()])).is_err());
        assert!(with(Some(Vec::new())).is_err());
    }

    #[test]
    fn expired_changed_and_wrong_algorithm_tokens_are_refused() {
        let signer = Signer::new(&security("a")).unwrap();
        let (_, claims) = signer.issue("key", "acme", 100, Duration::from_secs(60), None).unwrap();
        let old = Claims { exp: claims.iat - 10, ..claims.clone() };
        let old = jsonwebtoken::encode(&signer.header, &old, &signer.signing).unwrap();
        assert!(signer.verify(&old).is_err());
        let mut later = serde_json::to_value(&claims).unwrap();
        later["nbf"] = (claims.iat + 30).into();
        let later = jsonwebtoken::encode(&signer.header, &later, &signer.signing).unwrap();
        assert!(signer.verify(&later).is_err(), "not valid yet");
        let none = base64::engine::general_purpose::URL_SAFE_NO_PAD;
        let body = none.encode(serde_json::to_vec(&claims).unwrap());
        assert!(signer.verify(&format!("{}.{body}.", none.encode(r#"{"alg":"none"}"#))).is_err());
        // The old trick: the public key's text as the secret of a symmetric signature.
        let secret = EncodingKey::from_secret(signer.jwks().to_string().as_bytes());
        let forged = jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &secret).unwrap();
        assert!(signer.verify(&forged).is_err());
        for text in ["", ".", "..", "a.b.c", "ü.ü.ü"] {
            assert!(signer.verify(text).is_err());
        }
    }

    #[test]
    fn invalid_jwt_key_file_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = camino::Utf8PathBuf::from_path_buf(folder.path().join("jwt.pem")).unwrap();
        let with = Security { jwt_private_key_file: Some(path.clone()), ..security("a") };
        assert!(matches!(Signer::new(&with), Err(SignerError::Read { .. })));
        std::fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
        assert!(Signer::new(&with).err().unwrap().to_string().contains("jwt.pem"));
        std::fs::write(&path, generate_pem().unwrap()).unwrap();
        assert!(Signer::new(&with).is_ok());
    }
}
