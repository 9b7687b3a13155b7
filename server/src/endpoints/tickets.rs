//! Tickets for `GET /v1/stream`: a browser's `EventSource` cannot send headers, and a key must not be in a URL. So a
//! client with a credential gets a ticket for one stream and passes its URL on.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;
use textnlp_store::{Action, StoreError, StreamTicket, TooManyTickets, now_ms};

use super::generate::{self, Form, Wanted};
use crate::auth::{self, Caller, ticket};
use crate::error::ApiError;
use crate::http::{Call, Fields};

/// How long a ticket is good.
const LIFE: Duration = Duration::from_secs(60);

/// Tickets of one key at once.
const MAX_TICKETS: u32 = 64;

/// The largest request that a ticket stores, in bytes; longer ones must be POSTed.
const MAX_BODY: usize = 64 << 10;

/// Issues a ticket, for the request in the body or for one in the later query.
pub(super) async fn issue(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let mut body = None;
    if call.has_body() {
        let fields = call.fields().await?;
        if !fields.is_empty() {
            // Validated now, because `EventSource` cannot show errors.
            generate::read(&fields, &call.app, Form::Stream)?;
            body = Some(fields.to_text());
        }
    }
    if body.as_ref().is_some_and(|body| body.len() > MAX_BODY) {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("a ticket supports requests of up to {MAX_BODY} bytes"),
        )
        .hint("use POST /v1/stream for larger requests"));
    }
    let app = &call.app;
    let broken =
        |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "the ticket could not be created");
    let text = ticket::generate().map_err(broken)?;
    let sha256 = ticket::digest(&text).unwrap_or_default();
    let body = body.map(|body| ticket::seal(&text, body.into_bytes())).transpose().map_err(broken)?;
    let now = now_ms();
    let mut expires = now + LIFE.as_millis() as i64;
    if let Some(token) = &caller.token {
        expires = expires.min(token.expires_at_ms);
    }
    let kept = StreamTicket { user: caller.user, tenant: caller.tenant, token: caller.token, body };
    let put = textnlp_store::change(StoreError::passes, || {
        app.store.tenant(&kept.tenant).put_ticket(&sha256, &kept, expires, MAX_TICKETS, now)
    });
    put.await?.map_err(|TooManyTickets { until_ms }| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_tickets",
            format!("this key has {MAX_TICKETS} unused tickets"),
        )
        .hint("use them, or let them expire")
        .retry_after(Duration::from_millis((until_ms - now).max(0) as u64))
    })?;
    Ok(Json(json!({
        "object": "stream_ticket",
        "ticket": text,
        "url": format!("/v1/stream?ticket={text}"),
        "expires_in": (expires - now) / 1000,
        "expires_at": expires / 1000,
    }))
    .into_response())
}

/// `GET /v1/stream`: with a ticket, or with a credential like everything else.
pub(super) async fn stream(call: Call) -> Result<Response, ApiError> {
    let mut query = call.query()?;
    if query.get("ticket").is_none() {
        let caller = call.enter("generate").await?;
        call.search(&mut query)?;
        let wanted = generate::read(&query, &call.app, Form::Stream)?;
        return generate::answer(call, caller, wanted, None).await;
    }
    let redeemed = redeem(&call, query).await;
    let (caller, wanted) =
        redeemed.map_err(|error| auth::refuse(&call.app, Action::Authenticate, error, call.origin()))?;
    generate::answer(call, caller, wanted, None).await
}

/// The caller and the request of a ticket, which is spent.
async fn redeem(call: &Call, mut query: Fields) -> Result<(Caller, Wanted), ApiError> {
    let text = query.text("ticket").map(str::to_owned);
    let Some(text) = text else { return Err(query.finish().err().unwrap_or_else(refused)) };
    let sha256 = ticket::digest(&text).ok_or_else(refused)?;
    let app = &call.app;
    let kept = textnlp_store::read(|| app.store.ticket(&sha256, now_ms())).await?.ok_or_else(refused)?;
    let caller = auth::with_ticket(app, &call.headers, &kept).await?.ok_or_else(refused)?;
    call.record.caller(&caller);
    caller.allow("generate")?;
    let fields = match kept.body {
        None => {
            call.search(&mut query)?;
            query
        }
        Some(encrypted) => {
            // The ticket's request is the whole request.
            query.finish().map_err(|error| error.hint("this ticket already contains its request"))?;
            let body = ticket::open(&text, encrypted).map_err(|_| refused())?;
            Fields::new(serde_json::from_slice(&body).map_err(|_| refused())?)?
        }
    };
    // A mistake in the query does not cost the ticket.
    let wanted = generate::read(&fields, app, Form::Stream)?;
    // The request was counted when the ticket was issued.
    let spend =
        textnlp_store::change(StoreError::passes, || app.store.tenant(&caller.tenant).spend_ticket(&sha256, now_ms()));
    if !spend.await? {
        return Err(refused());
    }
    call.record.note(|known| known.admitted = true);
    Ok((caller, wanted))
}

/// The same error for used, expired, and unknown tickets.
fn refused() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_ticket", "this ticket is not valid").hint(
        "a ticket is valid for one stream within a minute: get another with POST /v1/stream/tickets and your API key",
    )
}
