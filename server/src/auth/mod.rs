//! Authentication: by API key, by token of `/auth/token`, or, in development only, anonymous.

pub mod jwt;
pub mod key;
pub mod oidc;
pub(crate) mod refusals;
mod scopes;
pub mod tenant;
pub mod ticket;

use std::time::Duration;

use axum::http::{HeaderMap, StatusCode, header};
use textnlp_store::{Action, ApiKey, Origin, StoreError, StreamTicket, Token, now_ms, verifier};
use tokio_util::sync::CancellationToken;

use crate::app::App;
use crate::config::Rate;
use crate::error::ApiError;
use crate::recent;

pub use scopes::{ADMIN, SCOPES};

/// An authenticated caller.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// Public id of the key; `anonymous` where no key is required.
    pub user: String,
    /// Whose work it is.
    pub tenant: String,
    /// The scopes of the key.
    pub scopes: Vec<String>,
    /// The rate of requests.
    pub rate: Option<Rate>,
    /// The rate of tokens.
    pub token_rate: Option<Rate>,
    /// The most tokens that the key may ever spend.
    pub token_limit: Option<u64>,
    /// The token that pays.
    pub token: Option<Token>,
}

impl Caller {
    /// Fails if the key does not have the scope.
    pub fn allow(&self, scope: &str) -> Result<(), ApiError> {
        if self.scopes.iter().any(|s| s == scope || (s == "*" && scope != ADMIN)) {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::FORBIDDEN, "insufficient_scope", format!("this key lacks the scope `{scope}`"))
            .hint(format!("its scopes: {}", self.scopes.join(", "))))
    }
}

/// Codes of refused credentials that may be guesses. An expired token is none: its signature is valid.
pub(crate) const GUESSES: [&str; 3] = ["invalid_api_key", "invalid_token", "invalid_ticket"];

/// How often the known public keys are read again: how long a dropped one is still accepted.
const VERIFIERS_INTERVAL: Duration = Duration::from_secs(60);

/// Lets other servers verify the tokens of this one for as long as they last, and forgets keys whose tokens have ended,
/// until the server stops.
pub(crate) async fn keep_verifiers(app: &App, stop: &CancellationToken) {
    loop {
        tokio::select! {
            // A database that does not answer must not delay the drain.
            () = stop.cancelled() => return,
            looked = look_at_verifiers(app) => if let Err(error) = looked {
                tracing::debug!(error = %textnlp_net::error_chain(&error), "the public keys could not be read or stored");
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(VERIFIERS_INTERVAL) => {}
        }
    }
}

/// Reads the known public keys again, unless that was done a moment ago.
pub(crate) async fn learn_verifiers(app: &App) -> Result<(), ApiError> {
    let read = async {
        app.signer.learn(textnlp_store::read(|| app.store.verifiers()).await?.values());
        Ok(())
    };
    app.verifiers.get(recent::INTERVAL, read).await
}

async fn look_at_verifiers(app: &App) -> Result<(), StoreError> {
    let mut stored = app.store.verifiers().await?;
    if let Some((name, kid, jwk)) = app.signer.lease(&app.config.site, &stored) {
        app.store.put_verifier(&name, &kid, &jwk).await?;
        stored.insert(name, jwk);
    }
    app.signer.learn(stored.values());
    let now = (now_ms() / 1000).unsigned_abs();
    let has_ended = |jwk: &String| {
        let jwk: Option<serde_json::Value> = serde_json::from_str(jwk).ok();
        jwk.as_ref().and_then(verifier::ends).is_some_and(|end| end <= now)
    };
    let ended: Vec<String> = stored.iter().filter(|(_, jwk)| has_ended(jwk)).map(|(name, _)| name.clone()).collect();
    app.store.drop_verifiers(&ended).await
}

/// Whether an error rejects a credential that was sent: an invalid one, or one of another tenant.
fn is_refusal(error: &ApiError) -> bool {
    (error.status == StatusCode::UNAUTHORIZED && error.code != "missing_api_key") || error.code == "tenant_mismatch"
}

/// Whether a request has a credential, or needs none.
pub(crate) fn may_identify(app: &App, headers: &HeaderMap) -> bool {
    let security = &app.config.security;
    !security.api_keys_enabled
        || headers.contains_key(header::AUTHORIZATION)
        || headers.contains_key(security.api_key_header.as_str())
}

/// Records a refused credential. A client that sends too many wrong ones learns no more than that.
pub(crate) fn refuse(app: &App, action: Action, error: ApiError, origin: Origin<'_>) -> ApiError {
    if !is_refusal(&error) {
        return error;
    }
    let source = origin.source;
    app.audit.refused(action, error.code, origin);
    if !GUESSES.contains(&error.code) {
        return error;
    }
    app.metrics.authentication_failed(error.code);
    match app.refusals.count(source, now_ms()) {
        None => error,
        Some(wait) => ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "authentication_limited",
            "this address sent too many invalid credentials",
        )
        .hint("send a valid API key; it is accepted at once")
        .retry_after(wait),
    }
}

/// Identifies the caller.
pub(crate) async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    // The cloud has authorized the caller. Its credentials for that are none of the service.
    if app.config.container.is_some() {
        return Ok(anonymous(tenant::DEFAULT));
    }
    let claim = claimed_tenant(app, headers).await?;
    let caller = match credential(app, headers)? {
        Some(Credential::Key(text)) => with_key(app, &text).await.map(|key| caller(app, &key, None))?,
        Some(Credential::Token(text)) => with_token(app, &text).await?,
        None if app.config.security.api_keys_enabled => {
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "missing_api_key", "this needs an API key").hint(
                format!(
                    "send it as `Authorization: Bearer tnlp_…` or `{}: tnlp_…`; `textnlp-deploy key create` creates one",
                    app.config.security.api_key_header
                ),
            ));
        }
        // A domain whose subdomains are tenants: without a key, the request itself must name its tenant.
        None if claim.tenant.is_none() && app.config.api.base_domain.is_some() => {
            return Err(ApiError::new(StatusCode::BAD_REQUEST, "tenant_required", "Tenant ID required")
                .param("X-Tenant-ID")
                .hint("send X-Tenant-ID, use the tenant's subdomain, or send a key: it belongs to a tenant"));
        }
        None => anonymous(claim.tenant.as_deref().unwrap_or(tenant::DEFAULT)),
    };
    of_tenant(app, claim, caller).await
}

/// The caller that created a ticket, with the current rights of its key; `None` when the ticket is no longer valid. A
/// credential or a tenant in the request must belong to the same tenant.
pub(crate) async fn with_ticket(
    app: &App,
    headers: &HeaderMap,
    ticket: &StreamTicket,
) -> Result<Option<Caller>, ApiError> {
    let claim = claimed_tenant(app, headers).await?;
    if credential(app, headers)?.is_some() && authenticate(app, headers).await?.tenant != ticket.tenant {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "tenant_mismatch",
            "this ticket does not belong to the tenant of this credential",
        )
        .hint("a ticket needs no other credential"));
    }
    if ticket.token.as_ref().is_some_and(|token| token.expires_at_ms <= now_ms()) {
        return Ok(None);
    }
    let key = stored(app, &ticket.user).await?;
    let found = match key.filter(|key| key.is_valid(now_ms()) && key.tenant == ticket.tenant) {
        Some(key) => caller(app, &key, ticket.token.clone()),
        None if ticket.user == ANONYMOUS && !app.config.security.api_keys_enabled => anonymous(&ticket.tenant),
        // Its token had the scope when it was issued, a minute ago at most.
        None if oidc::is_user(&ticket.user) && app.oidc.is_some() => Caller {
            user: ticket.user.clone(),
            scopes: vec!["generate".to_owned()],
            rate: app.config.security.rate_limit,
            token_rate: app.config.security.token_rate_limit,
            ..anonymous(&ticket.tenant)
        },
        None => return Ok(None),
    };
    of_tenant(app, claim, found).await.map(Some)
}

/// The caller that created a batch, with the current rights of its key; `None` when the key is no longer valid. Rates do not apply: requests
/// of a batch would take them from those of clients. Budgets do.
pub(crate) async fn of_batch(app: &App, user: &str, tenant: &str) -> Result<Option<Caller>, StoreError> {
    if user == ANONYMOUS {
        return Ok((!app.config.security.api_keys_enabled).then(|| anonymous(tenant)));
    }
    let key = stored(app, user).await?.filter(|key| key.is_valid(now_ms()) && key.tenant == tenant);
    Ok(key.map(|key| Caller { rate: None, token_rate: None, ..caller(app, &key, None) }))
}

/// Rejects a caller of another tenant than the one that the header or the host name claims.
async fn of_tenant(app: &App, claim: Claim, caller: Caller) -> Result<Caller, ApiError> {
    let claimed = match claim.label {
        Some(label) if label == caller.tenant || textnlp_store::read(|| app.store.has_tenant(&label)).await? => {
            Some(agreed(claim.tenant, label)?)
        }
        _ => claim.tenant,
    };
    match claimed.filter(|claimed| *claimed != caller.tenant) {
        None => Ok(caller),
        Some(claimed) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "tenant_mismatch",
            format!("this credential does not belong to tenant `{claimed}`"),
        )
        .hint("omit X-Tenant-ID, or use a key of that tenant")),
    }
}

/// The user name of callers where no key is required. It cannot equal a key's public id, which is hexadecimal.
pub(crate) const ANONYMOUS: &str = "anonymous";

fn anonymous(tenant: &str) -> Caller {
    Caller {
        user: ANONYMOUS.into(),
        tenant: tenant.to_owned(),
        scopes: vec!["*".into()],
        rate: None,
        token_rate: None,
        token_limit: None,
        token: None,
    }
}

enum Credential {
    Key(String),
    Token(String),
}

fn credential(app: &App, headers: &HeaderMap) -> Result<Option<Credential>, ApiError> {
    let needed = app.config.security.api_keys_enabled;
    let own = one(headers, app.config.security.api_key_header.as_str())?;
    let bearer = match one(headers, header::AUTHORIZATION.as_str())? {
        None => None,
        Some(value) => match value.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => Some(token.trim()),
            _ if needed => {
                return Err(ApiError::unauthorized("the Authorization header is not `Bearer …`")
                    .hint("Authorization: Bearer tnlp_…"));
            }
            _ => None,
        },
    };
    let text = match (own, bearer) {
        (Some(own), Some(bearer)) if own != bearer => {
            return Err(ApiError::invalid("the request has two different credentials").hint("send only one of them"));
        }
        (Some(text), _) | (None, Some(text)) => text,
        (None, None) => return Ok(None),
    };
    if text.starts_with(key::PREFIX) {
        Ok(Some(Credential::Key(text.to_owned())))
    } else if own.is_none() && text.split('.').count() == 3 {
        Ok(Some(Credential::Token(text.to_owned())))
    } else if needed {
        Err(ApiError::unauthorized("this is not an API key of this server").hint("its keys begin with `tnlp_`"))
    } else {
        // Where no key is required, clients may still send one.
        Ok(None)
    }
}

/// A header that may occur at most once.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("the header `{name}` is duplicated")));
    }
    value.to_str().map(Some).map_err(|_| ApiError::invalid(format!("the header `{name}` is not valid text")))
}

/// Reads a stored key.
async fn stored(app: &App, public_id: &str) -> Result<Option<ApiKey>, StoreError> {
    textnlp_store::read(|| app.store.key(public_id)).await
}

/// The valid key of a text. The error does not say why a key is invalid, so that it reveals nothing to an attacker.
pub(crate) async fn with_key(app: &App, text: &str) -> Result<ApiKey, ApiError> {
    let refused = || {
        ApiError::unauthorized("this API key is not valid")
            .hint("it may be mistyped, revoked or expired: `textnlp-deploy key list` shows it")
    };
    if !text.starts_with(key::PREFIX) {
        let error = ApiError::unauthorized("this is not an API key of this server");
        return Err(error.hint("an API key is needed, which begins with `tnlp_`: a token gives no other token"));
    }
    let public = key::public_id(text).ok_or_else(refused)?;
    let stored = stored(app, public).await?;
    // An unknown key is compared too: the response time must not reveal which ids exist.
    let digest = stored.as_ref().map_or("", |key| key.sha256.as_str());
    if !key::matches(text, digest) {
        return Err(refused());
    }
    stored.filter(|key| key.is_valid(now_ms())).ok_or_else(refused)
}

async fn with_token(app: &App, text: &str) -> Result<Caller, ApiError> {
    if let Some(oidc) = app.oidc.as_ref().filter(|oidc| oidc.is_issuer_of(text)) {
        return with_identity(app, oidc.caller(text).await?).await;
    }
    if app.signer.should_learn(text) {
        learn_verifiers(app).await?;
    }
    let claims = app.signer.verify(text).map_err(|error| {
        let expired = matches!(error.kind(), jsonwebtoken::errors::ErrorKind::ExpiredSignature);
        let why = if expired { "this token has expired" } else { "this token is not valid" };
        ApiError::new(StatusCode::UNAUTHORIZED, if expired { "token_expired" } else { "invalid_token" }, why)
            .hint("POST /auth/token with your API key gives a new one")
    })?;
    // The key behind it may have been revoked or rotated since.
    let is_behind = |key: &ApiKey| {
        let same_secret = claims.key.as_ref().is_none_or(|version| *version == key.version());
        key.is_valid(now_ms()) && key.tenant == claims.tenant_id && same_secret
    };
    let key = stored(app, &claims.user_id).await?.filter(is_behind);
    let Some(key) = key else {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_token",
            "the API key of this token is no longer valid",
        ));
    };
    let token = Token { jti: claims.jti, limit: claims.token_limit, expires_at_ms: claims.exp as i64 * 1000 };
    Ok(caller(app, &key, Some(token)))
}

/// A caller that an identity provider knows, with the limits of keys that have none of their own. Its tenant must exist: each has
/// its own budget and records.
async fn with_identity(app: &App, caller: Caller) -> Result<Caller, ApiError> {
    if caller.tenant != tenant::DEFAULT && !textnlp_store::read(|| app.store.has_tenant(&caller.tenant)).await? {
        let message = format!("the tenant `{}` of this token does not exist here", caller.tenant);
        return Err(ApiError::new(StatusCode::FORBIDDEN, "tenant_not_found", message)
            .hint("operators: `textnlp-deploy key create NAME --tenant TENANT` creates it"));
    }
    let security = &app.config.security;
    Ok(Caller { rate: security.rate_limit, token_rate: security.token_rate_limit, ..caller })
}

pub(crate) fn caller(app: &App, key: &ApiKey, token: Option<Token>) -> Caller {
    Caller {
        user: key.public_id.clone(),
        tenant: key.tenant.clone(),
        scopes: key.scopes.clone(),
        rate: key.rate_limit.or(app.config.security.rate_limit),
        token_rate: key.token_rate_limit.or(app.config.security.token_rate_limit),
        token_limit: key.token_limit,
        token,
    }
}

/// The tenant that a request claims.
struct Claim {
    tenant: Option<String>,
    /// A part of the host name that claims a tenant too, if there is one of that name. The database is asked only for a
    /// caller that was authenticated.
    label: Option<String>,
}

impl Claim {
    fn of(tenant: Option<String>) -> Self {
        Self { tenant, label: None }
    }
}

/// The tenant that the header or the host name claims.
async fn claimed_tenant(app: &App, headers: &HeaderMap) -> Result<Claim, ApiError> {
    let named = one(headers, tenant::HEADER)?.map(str::to_owned);
    if let Some(named) = &named
        && !tenant::is_tenant_id(named)
    {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_tenant", "X-Tenant-ID is not a valid tenant id")
            .param("X-Tenant-ID")
            .hint("1 to 40 of a-z, 0-9, - and _, beginning with a letter or digit"));
    }
    let host = one(headers, header::HOST.as_str())?.unwrap_or_default();
    let base = app.config.api.base_domain.as_deref();
    let Some(label) = tenant::subdomain(host, base) else { return Ok(Claim::of(named)) };
    let label = label.to_ascii_lowercase();
    if !tenant::is_tenant_id(&label) {
        return if base.is_some() {
            Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "invalid_tenant",
                "the host's subdomain is not a valid tenant id",
            )
            .param("Host"))
        } else {
            Ok(Claim::of(named))
        };
    }
    if base.is_none() && app.config.security.api_keys_enabled {
        return Ok(Claim { tenant: named, label: Some(label) });
    }
    if base.is_none() && !textnlp_store::read(|| app.store.has_tenant(&label)).await? {
        return Ok(Claim::of(named));
    }
    // With API keys on, a claim to another tenant is rejected later, without revealing which tenants exist.
    if !app.config.security.api_keys_enabled
        && label != tenant::DEFAULT
        && !textnlp_store::read(|| app.store.has_tenant(&label)).await?
    {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "tenant_not_found", format!("there is no tenant `{label}`"))
            .param("Host")
            .hint("`textnlp-deploy key create NAME --tenant TENANT` creates it with its first key"));
    }
    agreed(named, label).map(|tenant| Claim::of(Some(tenant)))
}

/// The tenant that the host claims, which the header must not contradict.
fn agreed(named: Option<String>, label: String) -> Result<String, ApiError> {
    match named.filter(|named| *named != label) {
        None => Ok(label),
        Some(named) => {
            let message = format!("X-Tenant-ID is `{named}`, but the host is of `{label}`");
            Err(ApiError::invalid(message).param("X-Tenant-ID"))
        }
    }
}
