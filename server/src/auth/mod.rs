//! Who is calling: a key, a token of `/auth/token`, or, in development only, anybody.

pub mod jwt;
pub mod key;
pub mod tenant;
pub mod ticket;

use axum::http::{HeaderMap, StatusCode, header};

use crate::app::App;
use crate::config::Rate;
use crate::database::{self, ApiKey, StoreError, StreamTicket, now_ms};
use crate::error::ApiError;

/// Somebody who may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Caller {
    /// Public id of the key; `anonymous` where none is needed.
    pub user: String,
    /// Whose work it is.
    pub tenant: String,
    /// What the key may do.
    pub scopes: Vec<String>,
    /// The rate of requests.
    pub rate: Option<Rate>,
    /// The rate of tokens.
    pub token_rate: Option<Rate>,
    /// The token that pays.
    pub token: Option<Token>,
}

/// A token of `/auth/token`, as far as its budget needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its name.
    pub jti: String,
    /// What it may spend.
    pub limit: u64,
    /// When it ends, in milliseconds since 1970.
    pub expires_at_ms: i64,
}

/// What a key may do, besides `*`.
pub const SCOPES: &[&str] = &["generate", "models", "tokenize", "validate"];

impl Caller {
    /// Refuses what the key's scopes do not hold.
    pub fn allow(&self, scope: &str) -> Result<(), ApiError> {
        if self.scopes.iter().any(|s| s == "*" || s == scope) {
            return Ok(());
        }
        Err(ApiError::new(StatusCode::FORBIDDEN, "insufficient_scope", format!("this key may not `{scope}`"))
            .hint(format!("it may: {}", self.scopes.join(", "))))
    }
}

/// Finds out who is calling.
pub(crate) async fn authenticate(app: &App, headers: &HeaderMap) -> Result<Caller, ApiError> {
    let claimed = claimed_tenant(app, headers).await?;
    let caller = match credential(app, headers)? {
        Some(Credential::Key(text)) => with_key(app, &text).await.map(|key| caller(app, &key, None))?,
        Some(Credential::Token(text)) => with_token(app, &text).await?,
        None if app.config.security.api_keys_enabled => {
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "missing_api_key", "this needs an API key").hint(
                format!(
                    "send it as `Authorization: Bearer tnlp_…` or `{}: tnlp_…`; `textnlp-deploy key create` makes one",
                    app.config.security.api_key_header
                ),
            ));
        }
        None => anonymous(claimed.as_deref().unwrap_or(tenant::DEFAULT)),
    };
    of_tenant(claimed, caller)
}

/// Who took a ticket, as far as the key behind it still may; `None` when it is not valid any more. A credential and a tenant that are named
/// besides must be of the same tenant.
pub(crate) async fn with_ticket(
    app: &App,
    headers: &HeaderMap,
    ticket: &StreamTicket,
) -> Result<Option<Caller>, ApiError> {
    let claimed = claimed_tenant(app, headers).await?;
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
        None => return Ok(None),
    };
    of_tenant(claimed, found).map(Some)
}

/// Refuses who belongs to another tenant than header or host name.
fn of_tenant(claimed: Option<String>, caller: Caller) -> Result<Caller, ApiError> {
    match claimed.filter(|claimed| *claimed != caller.tenant) {
        None => Ok(caller),
        Some(claimed) => Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "tenant_mismatch",
            format!("this credential does not belong to tenant `{claimed}`"),
        )
        .hint("leave X-Tenant-ID out, or use a key of that tenant")),
    }
}

/// The name of callers where no key is needed. No key's public id has it: those that are made here are hexadecimal.
const ANONYMOUS: &str = "anonymous";

fn anonymous(tenant: &str) -> Caller {
    Caller {
        user: ANONYMOUS.into(),
        tenant: tenant.to_owned(),
        scopes: vec!["*".into()],
        rate: None,
        token_rate: None,
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
            return Err(ApiError::invalid("the request carries two different credentials").hint("send one of them"));
        }
        (Some(text), _) | (None, Some(text)) => text,
        (None, None) => return Ok(None),
    };
    if text.starts_with(key::PREFIX) {
        Ok(Some(Credential::Key(text.to_owned())))
    } else if own.is_none() && text.split('.').count() == 3 {
        Ok(Some(Credential::Token(text.to_owned())))
    } else if needed {
        Err(ApiError::unauthorized("this is no API key of this server").hint("its keys begin with `tnlp_`"))
    } else {
        // Where no key is needed, clients that insist on sending something may.
        Ok(None)
    }
}

/// A header that may stand once at most.
fn one<'h>(headers: &'h HeaderMap, name: &str) -> Result<Option<&'h str>, ApiError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(ApiError::invalid(format!("the header `{name}` stands more than once")));
    }
    value.to_str().map(Some).map_err(|_| ApiError::invalid(format!("the header `{name}` is no text")))
}

/// A key as it is stored.
async fn stored(app: &App, public_id: &str) -> Result<Option<ApiKey>, StoreError> {
    database::read(|| app.store.key(public_id)).await
}

/// The valid key of a text. Why one is not valid is not said: whoever holds it can ask its maker.
pub(crate) async fn with_key(app: &App, text: &str) -> Result<ApiKey, ApiError> {
    let refused = || {
        ApiError::unauthorized("this API key is not valid")
            .hint("it may be mistyped, revoked or expired: `textnlp-deploy key list` shows it")
    };
    let public = key::public_id(text).ok_or_else(refused)?;
    let stored = stored(app, public).await?;
    // A key that is not there is compared too, so that the time tells nothing about which ids exist.
    let digest = stored.as_ref().map_or("", |key| key.sha256.as_str());
    if !key::matches(text, digest) {
        return Err(refused());
    }
    stored.filter(|key| key.is_valid(now_ms())).ok_or_else(refused)
}

async fn with_token(app: &App, text: &str) -> Result<Caller, ApiError> {
    if app.signer.should_learn(text) {
        app.signer.learn(&database::read(|| app.store.verifiers()).await?);
    }
    let claims = app.signer.verify(text).map_err(|error| {
        let expired = matches!(error.kind(), jsonwebtoken::errors::ErrorKind::ExpiredSignature);
        let why = if expired { "this token has expired" } else { "this token is not valid" };
        ApiError::new(StatusCode::UNAUTHORIZED, if expired { "token_expired" } else { "invalid_token" }, why)
            .hint("POST /auth/token with your API key gives a new one")
    })?;
    // The key behind it may have been revoked since.
    let key =
        stored(app, &claims.user_id).await?.filter(|key| key.is_valid(now_ms()) && key.tenant == claims.tenant_id);
    let Some(key) = key else {
        return Err(ApiError::new(
            StatusCode::UNAUTHORIZED,
            "invalid_token",
            "the API key behind this token is not valid any more",
        ));
    };
    let token = Token { jti: claims.jti, limit: claims.token_limit, expires_at_ms: claims.exp as i64 * 1000 };
    Ok(caller(app, &key, Some(token)))
}

pub(crate) fn caller(app: &App, key: &ApiKey, token: Option<Token>) -> Caller {
    Caller {
        user: key.public_id.clone(),
        tenant: key.tenant.clone(),
        scopes: key.scopes.clone(),
        rate: key.rate_limit.or(app.config.security.rate_limit),
        token_rate: key.token_rate_limit.or(app.config.security.token_rate_limit),
        token,
    }
}

/// What header and host say about the tenant.
async fn claimed_tenant(app: &App, headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let named = one(headers, tenant::HEADER)?.map(str::to_owned);
    if let Some(named) = &named
        && !tenant::is_tenant_id(named)
    {
        return Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_tenant", "X-Tenant-ID is no tenant id")
            .param("X-Tenant-ID")
            .hint("1 to 40 of a-z, 0-9, - and _, beginning with a letter or digit"));
    }
    let host = one(headers, header::HOST.as_str())?.unwrap_or_default();
    let base = app.config.api.base_domain.as_deref();
    let Some(label) = tenant::subdomain(host, base) else { return Ok(named) };
    let label = label.to_ascii_lowercase();
    if !tenant::is_tenant_id(&label) {
        return if base.is_some() {
            Err(ApiError::new(StatusCode::BAD_REQUEST, "invalid_tenant", "the host's subdomain is no tenant id")
                .param("Host"))
        } else {
            Ok(named)
        };
    }
    if base.is_none() && !database::read(|| app.store.has_tenant(&label)).await? {
        return Ok(named);
    }
    // With keys on, whoever asks for another tenant than the key's is refused further down, and not told which ones there are.
    if !app.config.security.api_keys_enabled
        && label != tenant::DEFAULT
        && !database::read(|| app.store.has_tenant(&label)).await?
    {
        return Err(ApiError::new(StatusCode::NOT_FOUND, "tenant_not_found", format!("there is no tenant `{label}`"))
            .param("Host")
            .hint("`textnlp-deploy key create NAME --tenant TENANT` makes one with its first key"));
    }
    match named {
        Some(named) if named != label => {
            Err(ApiError::invalid(format!("X-Tenant-ID says `{named}` and the host says `{label}`"))
                .param("X-Tenant-ID"))
        }
        _ => Ok(Some(label)),
    }
}
