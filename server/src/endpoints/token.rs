//! `/auth/token`: a key for a token, and the keys that verify tokens.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use textnlp_store::{Action, StoreError};

use crate::allowance;
use crate::app::App;
use crate::auth;
use crate::error::ApiError;
use crate::http::Call;

/// Exchanges a key, in the body or in a header, for a token.
pub(super) async fn issue(mut call: Call) -> Result<Response, ApiError> {
    let mut text = key_in_headers(&call.app, &call.headers);
    let (mut token_limit, mut expires_in) = (None, None);
    if text.is_none() || call.has_body() {
        let fields = call.fields().await?;
        let key = fields.text("api_key").map(str::to_owned);
        text = if text.is_none() { fields.needed("api_key", key) } else { key.or(text) };
        token_limit = fields.integer("token_limit", 1..=1 << 50).map(|limit| limit as u64);
        expires_in =
            fields.integer("expires_in", 1..=call.app.signer.expiry().as_secs() as i64).map(|seconds| seconds as u64);
        fields.finish()?;
    }
    let app = &call.app;
    let key = auth::with_key(app, text.as_deref().unwrap_or_default())
        .await
        .map_err(|error| auth::refuse(app, Action::SignIn, error, call.origin()))?;
    let caller = auth::caller(app, &key, None);
    call.record.caller(&caller);
    allowance::take_request(app, &caller).await.map_err(|(error, _)| error)?;
    call.record.note(|known| known.admitted = true);
    let most = key.token_limit.unwrap_or(app.config.security.jwt_token_limit);
    if token_limit.is_some_and(|limit| limit > most) {
        return Err(ApiError::invalid(format!("`token_limit` exceeds the limit of this key, which is {most}"))
            .param("token_limit"));
    }
    let mut expiry = expires_in.map_or(app.signer.expiry(), Duration::from_secs);
    if let Some(end) = key.expires_at {
        // A token does not outlive its key.
        expiry = expiry.min(Duration::from_millis((end - textnlp_store::now_ms()).max(1000) as u64));
    }
    let (limit, version) = (token_limit.unwrap_or(most), Some(key.version()));
    let (token, claims) = app.signer.issue(&key.public_id, &key.tenant, limit, expiry, version).map_err(|error| {
        tracing::error!(%error, "a token could not be signed");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the token could not be signed")
    })?;
    let open = || app.store.open_budget(&claims.jti, claims.token_limit, claims.exp as i64 * 1000);
    textnlp_store::change(StoreError::may_be_repeated, open).await?;
    app.audit.key_used(&key.public_id, &key.tenant, call.origin());
    app.audit.signed_in(&key.public_id, &key.tenant, call.origin());
    Ok(Json(json!({
        "token": token,
        "access_token": token,
        "token_type": "Bearer",
        "expires_in": claims.exp - claims.iat,
        "expires_at": claims.exp,
        "user_id": claims.user_id,
        "tenant_id": claims.tenant_id,
        "token_limit": claims.token_limit,
    }))
    .into_response())
}

fn key_in_headers(app: &App, headers: &HeaderMap) -> Option<String> {
    let own = headers.get(app.config.security.api_key_header.as_str()).and_then(|value| value.to_str().ok());
    let bearer = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
    own.or(bearer).map(|text| text.trim().to_owned())
}

/// The public keys.
pub(super) async fn jwks(State(app): State<Arc<App>>) -> Response {
    // If the store is unavailable, the last known keys are shown.
    let _ = auth::learn_verifiers(&app).await;
    let keys: Value = app.signer.jwks();
    ([(header::CACHE_CONTROL, "public, max-age=300")], Json(keys)).into_response()
}
