//! Access tokens of an OpenID Connect provider, verified with the keys that it publishes: OpenID Connect Discovery 1.0 and
//! RFC 9068. The server is a resource server. It starts no sign-in, and never sees a password.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use textnlp_net::client::{Client, ClientOptions, ProxySettings, Url, is_loopback, read_body};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Caller, tenant};
use crate::app::App;
use crate::config::OidcSettings;
use crate::error::ApiError;

/// The start of the user name of callers with such a token. It cannot begin a key's public id, which is hexadecimal.
const USER: &str = "oidc-";
/// The signatures that are accepted: none with a secret that both sides share.
const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// How often the keys are read again: how long a withdrawn one is still accepted.
const INTERVAL: Duration = Duration::from_secs(600);
/// The shortest time between two reads, whatever tokens arrive.
const SHORTEST_INTERVAL: Duration = Duration::from_secs(20);
/// How long keys are used while the provider does not answer.
const LONGEST_USE: Duration = Duration::from_secs(24 * 3600);
/// How long a request waits for the keys.
const LONGEST_WAIT: Duration = Duration::from_secs(3);
/// For one answer of the provider.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The longest answer, in bytes.
const MAX_ANSWER: usize = 1 << 20;
/// Keys that are used of an answer.
const MAX_KEYS: usize = 100;
/// How far the clocks of the provider and of this machine may differ, in seconds.
const LEEWAY: u64 = 60;
/// Parts of the path of a claim.
const MAX_DEPTH: usize = 8;
/// Claims of tokens that are no bearer tokens for a service: ID tokens (OpenID Connect Core 1.0, section 3.3.2.11), logout tokens
/// (OpenID Connect Back-Channel Logout 1.0), and tokens bound to a key of their sender (RFC 7800), which is not checked here.
const OTHER_KINDS: [&str; 5] = ["at_hash", "c_hash", "s_hash", "events", "cnf"];
/// What Keycloak writes into the claim `typ` of such tokens.
const OTHER_TYPES: [&str; 4] = ["ID", "Refresh", "Offline", "Logout"];

/// A provider and its keys.
pub(crate) struct Oidc {
    settings: OidcSettings,
    client: Client,
    keys: RwLock<Arc<Keys>>,
    /// When the provider was asked last.
    asked: Mutex<Option<Instant>>,
    /// Whether it is being asked.
    asking: watch::Sender<bool>,
    /// Whether the last answer was of no use.
    has_failed: AtomicBool,
}

/// The published keys.
#[derive(Default)]
struct Keys {
    keys: Vec<Key>,
    /// When they were read; `None` before the first time.
    read: Option<Instant>,
}

struct Key {
    id: Option<String>,
    /// The only signature that the key is for, if the provider says so.
    algorithm: Option<String>,
    decoding: DecodingKey,
}

/// Why a provider cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum OidcError {
    /// The address of a proxy.
    #[error("set up the connection to the OpenID Connect provider: {0}")]
    Setup(String),
    /// It gives no usable answer.
    #[error("read {url}: {why}")]
    Answer {
        /// What was asked.
        url: String,
        /// What came instead.
        why: String,
    },
}

/// The members of the provider's metadata that are needed.
#[derive(Deserialize)]
struct Metadata {
    issuer: String,
    jwks_uri: String,
}

impl Oidc {
    /// A provider whose keys are not known yet. Uses the proxies of this process.
    pub(crate) fn new(settings: OidcSettings) -> Result<Self, OidcError> {
        let options = ClientOptions {
            proxy: ProxySettings::from_env(),
            timeout: Some(TIMEOUT),
            connect_timeout: TIMEOUT,
            ..ClientOptions::default()
        };
        let client = options.client().map_err(|error| OidcError::Setup(error.to_string()))?;
        let (asking, _) = watch::channel(false);
        let (keys, asked, has_failed) = (RwLock::default(), Mutex::default(), AtomicBool::default());
        Ok(Self { settings, client, keys, asked, asking, has_failed })
    }

    /// Whether a token says that this provider issued it. Nothing is verified.
    pub(crate) fn is_issuer_of(&self, token: &str) -> bool {
        #[derive(Deserialize)]
        struct Issuer {
            iss: String,
        }
        let payload = token.split('.').nth(1).and_then(|part| URL_SAFE_NO_PAD.decode(part).ok());
        let issuer: Option<Issuer> = payload.and_then(|bytes| serde_json::from_slice(&bytes).ok());
        issuer.is_some_and(|claims| claims.iss == self.settings.issuer)
    }

    /// The caller of a token. Its tenant is not looked up.
    pub(crate) async fn caller(self: &Arc<Self>, token: &str) -> Result<Caller, ApiError> {
        let claims = match self.verified(token) {
            Err(Refusal::UnknownKey) => {
                // The provider may have a new key.
                self.refresh(SHORTEST_INTERVAL).await;
                match self.verified(token) {
                    // The token may be valid: the client is not at fault.
                    Err(Refusal::UnknownKey) if self.has_failed.load(Relaxed) => Err(Refusal::NoKeys),
                    known => known,
                }
            }
            known => known,
        };
        self.mapped(&claims.map_err(|refusal| refusal.answer(&self.settings.audience))?)
    }

    /// The claims of a token that is valid now.
    fn verified(&self, token: &str) -> Result<Value, Refusal> {
        let header = jsonwebtoken::decode_header(token).map_err(|_| Refusal::Invalid)?;
        // Extensions that must be understood: there are none (RFC 7515, section 4.1.11).
        if header.crit.is_some() || !ALGORITHMS.contains(&header.alg) {
            return Err(Refusal::Invalid);
        }
        let kind = header.typ.as_deref().unwrap_or("JWT").to_ascii_lowercase();
        // RFC 9068 has `at+jwt`; Entra ID and Keycloak write `JWT`.
        if !["jwt", "at+jwt"].contains(&kind.strip_prefix("application/").unwrap_or(&kind)) {
            return Err(Refusal::OtherKind);
        }
        let mut validation = Validation::new(header.alg);
        validation.set_issuer(&[&self.settings.issuer]);
        validation.set_audience(&[&self.settings.audience]);
        validation.set_required_spec_claims(&["exp", "iss", "aud", "sub"]);
        validation.validate_nbf = true;
        validation.leeway = LEEWAY;
        let known = self.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        if known.read.is_none_or(|at| at.elapsed() > LONGEST_USE) {
            return Err(Refusal::NoKeys);
        }
        let name = format!("{:?}", header.alg);
        let fits = |key: &&Key| {
            (header.kid.is_none() || key.id == header.kid) && key.algorithm.as_ref().is_none_or(|only| *only == name)
        };
        let mut refusal = Refusal::UnknownKey;
        for key in known.keys.iter().filter(fits) {
            match jsonwebtoken::decode::<Value>(token, &key.decoding, &validation) {
                Ok(token) => return checked(token.claims),
                Err(error) => match error.kind() {
                    // Of another kind of key, or not this one of several without ids.
                    ErrorKind::InvalidKeyFormat | ErrorKind::InvalidAlgorithm => {}
                    ErrorKind::InvalidSignature if header.kid.is_none() => {}
                    ErrorKind::ExpiredSignature => return Err(Refusal::Expired),
                    ErrorKind::InvalidAudience => return Err(Refusal::OtherAudience),
                    _ => refusal = Refusal::Invalid,
                },
            }
        }
        Err(refusal)
    }

    /// The caller that the claims of a verified token describe.
    fn mapped(&self, claims: &Value) -> Result<Caller, ApiError> {
        let settings = &self.settings;
        let forbidden = |code, message: String| ApiError::new(StatusCode::FORBIDDEN, code, message);
        let tenant = match &settings.tenant_claim {
            None => settings.tenant.clone().unwrap_or_else(|| tenant::DEFAULT.to_owned()),
            Some(path) => {
                let named = match claim(claims, path).filter(|value| !value.is_null()) {
                    None => settings.tenant.clone(),
                    // Never another tenant than the one that is named.
                    Some(value) => value.as_str().filter(|name| tenant::is_tenant_id(name)).map(str::to_owned),
                };
                named.ok_or_else(|| {
                    forbidden("no_tenant", format!("the claim `{path}` of this token names no tenant"))
                        .hint("its value is a tenant id: 1 to 40 of a-z, 0-9, - and _")
                })?
            }
        };
        let mut scopes = settings.scopes.clone();
        if let Some(path) = &settings.roles_claim {
            let held = texts(claim(claims, path));
            let granted = settings.roles.iter().filter(|role| held.contains(&role.role.as_str()));
            scopes.extend(granted.flat_map(|role| role.scopes.iter().cloned()));
            scopes.sort();
            scopes.dedup();
        }
        if scopes.is_empty() {
            let message = "no role of this token has a scope of this service".to_owned();
            return Err(forbidden("insufficient_scope", message).hint("ask the operator which role you need"));
        }
        let subject = claims["sub"].as_str().unwrap_or_default();
        Ok(Caller { scopes, ..self.of_subject(subject, tenant) })
    }

    /// A caller without scopes. Its name says nothing about the person: it stands in logs, metrics and usage records.
    fn of_subject(&self, subject: &str, tenant: String) -> Caller {
        let digest =
            Sha256::new().chain_update(&self.settings.issuer).chain_update("\n").chain_update(subject).finalize();
        Caller {
            user: format!("{USER}{}", hex::encode(&digest[..16])),
            tenant,
            scopes: Vec::new(),
            rate: None,
            token_rate: None,
            token_limit: None,
            token: None,
        }
    }

    /// Reads the keys again, unless that was tried less than `least` ago, and waits for them a while. The read goes on when the
    /// request that caused it ends.
    async fn refresh(self: &Arc<Self>, least: Duration) {
        let mut asking = self.asking.subscribe();
        {
            let mut asked = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
            if asked.is_none_or(|at| at.elapsed() >= least) {
                *asked = Some(Instant::now());
                self.asking.send_replace(true);
                let oidc = self.clone();
                tokio::spawn(async move { oidc.read_keys().await });
            }
        }
        let _ = tokio::time::timeout(LONGEST_WAIT, asking.wait_for(|asking| !asking)).await;
    }

    /// Reads the keys. Failures keep the known ones.
    async fn read_keys(&self) {
        let found = self.fetched().await;
        self.has_failed.store(found.is_err(), Relaxed);
        match found {
            Ok(keys) => {
                let found = Arc::new(Keys { keys, read: Some(Instant::now()) });
                *self.keys.write().unwrap_or_else(PoisonError::into_inner) = found;
            }
            Err(error) => tracing::warn!(
                error = %textnlp_net::error_chain(&error),
                "the keys of the OpenID Connect provider could not be read; tokens with unknown keys are not accepted"
            ),
        }
        self.asking.send_replace(false);
    }

    async fn fetched(&self) -> Result<Vec<Key>, OidcError> {
        let issuer = &self.settings.issuer;
        let at = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let answer = |why: String| OidcError::Answer { url: at.clone(), why };
        let metadata: Metadata =
            serde_json::from_slice(&self.get(&at).await?).map_err(|error| answer(error.to_string()))?;
        if metadata.issuer != *issuer {
            return Err(answer(format!("it is of the issuer {}, and {issuer} is configured", metadata.issuer)));
        }
        let url = Url::parse(&metadata.jwks_uri).map_err(|error| answer(format!("jwks_uri: {error}")))?;
        if url.scheme() != "https" && !is_loopback(&url) {
            return Err(answer("its keys are at an address without https".to_owned()));
        }
        #[derive(Deserialize)]
        struct Published {
            keys: Vec<Value>,
        }
        let found: Published = serde_json::from_slice(&self.get(url.as_str()).await?)
            .map_err(|error| OidcError::Answer { url: url.to_string(), why: error.to_string() })?;
        let keys: Vec<Key> = found.keys.into_iter().filter_map(Key::read).take(MAX_KEYS).collect();
        if keys.is_empty() {
            return Err(OidcError::Answer { url: url.to_string(), why: "it has no key for signatures".to_owned() });
        }
        Ok(keys)
    }

    async fn get(&self, url: &str) -> Result<Vec<u8>, OidcError> {
        let answer = |why: String| OidcError::Answer { url: url.to_owned(), why };
        let request = self.client.get(url).header("accept", "application/json");
        let response = request.send().await.map_err(|error| answer(textnlp_net::error_chain(&error.without_url())))?;
        if !response.status().is_success() {
            return Err(answer(format!("the provider answered with status {}", response.status().as_u16())));
        }
        read_body(response, MAX_ANSWER).await.map_err(|error| answer(error.to_string()))
    }
}

impl Key {
    /// A published key that verifies signatures. Others, such as those for encryption, are not used.
    fn read(value: Value) -> Option<Self> {
        let algorithm = value["alg"].as_str().map(str::to_owned);
        let jwk: Jwk = serde_json::from_value(value).ok()?;
        if jwk.common.public_key_use.as_ref().is_some_and(|used| *used != PublicKeyUse::Signature) {
            return None;
        }
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        Some(Self { id: jwk.common.key_id, algorithm, decoding })
    }
}

/// Why a token is refused.
#[derive(Debug, PartialEq, Eq)]
enum Refusal {
    /// The keys of the provider are not known.
    NoKeys,
    /// No known key has the token's key id.
    UnknownKey,
    /// Its signature is valid, and its time is over.
    Expired,
    /// Its signature is valid, and it is for another service.
    OtherAudience,
    /// It is an ID token, or another that is not for services.
    OtherKind,
    /// Anything else.
    Invalid,
}

impl Refusal {
    fn answer(self, audience: &str) -> ApiError {
        let refused = |code, message: &str| ApiError::new(StatusCode::UNAUTHORIZED, code, message);
        match self {
            Self::NoKeys => ApiError::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "identity_provider_unavailable",
                "the keys of the identity provider are not known yet",
            )
            .hint("the server's log says why they could not be read; API keys work")
            .retry_after(SHORTEST_INTERVAL),
            Self::Expired => refused("token_expired", "this token has expired").hint("sign in again"),
            Self::OtherAudience => refused("invalid_token", "this token is for another service")
                .hint(format!("ask the identity provider for an access token with the audience `{audience}`")),
            Self::OtherKind => refused("invalid_token", "this is no access token")
                .hint("send the access token of the identity provider, not the ID token"),
            Self::UnknownKey | Self::Invalid => refused("invalid_token", "this token is not valid"),
        }
    }
}

/// The claims of a token with a valid signature, if it is an access token with a subject.
fn checked(claims: Value) -> Result<Value, Refusal> {
    let is_other = OTHER_KINDS.iter().any(|name| claims.get(name).is_some())
        || claims["typ"].as_str().is_some_and(|kind| OTHER_TYPES.contains(&kind));
    match claims["sub"].as_str() {
        _ if is_other => Err(Refusal::OtherKind),
        None | Some("") => Err(Refusal::Invalid),
        Some(_) => Ok(claims),
    }
}

/// The claim at a path: a name, which may have dots itself, or names of nested objects with dots between them.
fn claim<'c>(claims: &'c Value, path: &str) -> Option<&'c Value> {
    claims.get(path).or_else(|| path.splitn(MAX_DEPTH, '.').try_fold(claims, |object, name| object.get(name)))
}

/// The texts of a list, or the words of a text with spaces between them, as in the claim `scope`.
fn texts(value: Option<&Value>) -> Vec<&str> {
    match value {
        Some(Value::String(text)) => text.split_whitespace().collect(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Whether a user name is that of a caller with such a token.
pub(crate) fn is_user(user: &str) -> bool {
    user.starts_with(USER)
}

/// Reads the keys at the start and then again and again, until the server stops.
pub(crate) async fn keep(app: &App, stop: &CancellationToken) {
    let Some(oidc) = &app.oidc else { return };
    loop {
        if stop.run_until_cancelled(oidc.refresh(Duration::ZERO)).await.is_none() {
            return;
        }
        // At the start, the provider may start too; after a failure, it may be back soon.
        let known = oidc.keys.read().unwrap_or_else(PoisonError::into_inner).clone();
        let is_fresh = known.read.is_some_and(|at| at.elapsed() < INTERVAL) && !oidc.has_failed.load(Relaxed);
        let pause = if is_fresh { INTERVAL } else { SHORTEST_INTERVAL };
        if stop.run_until_cancelled(tokio::time::sleep(pause)).await.is_none() {
            return;
        }
    }
}
