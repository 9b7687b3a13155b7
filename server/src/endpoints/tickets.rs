//! Tickets for `GET /v1/stream`: a browser's `EventSource` can send no header, and a key has no business in an address. So whoever has a
//! credential takes a ticket for one stream and hands its address on.

use std::time::Duration;

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::generate::{self, Form};
use crate::auth::{self, ticket};
use crate::database::{self, StoreError, StreamTicket, TooManyTickets, now_ms};
use crate::error::ApiError;
use crate::http::{Call, Fields};

/// How long a ticket is good.
const LIFE: Duration = Duration::from_secs(60);

/// Tickets of one key at once.
const MOST: u32 = 64;

/// The largest request that a ticket keeps; longer ones are POSTed.
const MAX_BODY: usize = 64 << 10;

/// Gives a ticket, for the request in the body or for one that the query will bring.
pub(super) async fn issue(mut call: Call) -> Result<Response, ApiError> {
    let caller = call.enter("generate").await?;
    let mut body = None;
    if call.has_body() {
        let fields = call.fields().await?;
        if !fields.is_empty() {
            // What is wrong with it is said now, to somebody who can read it: `EventSource` shows no refusals.
            generate::read(&fields, &call.app, Form::Stream)?;
            body = Some(fields.to_text());
        }
    }
    if body.as_ref().is_some_and(|body| body.len() > MAX_BODY) {
        return Err(ApiError::new(
            StatusCode::PAYLOAD_TOO_LARGE,
            "request_too_large",
            format!("a ticket keeps requests of up to {MAX_BODY} bytes"),
        )
        .hint("POST /v1/stream takes long ones"));
    }
    let app = &call.app;
    let broken = |_| ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "no ticket could be made");
    let text = ticket::generate().map_err(broken)?;
    let sha256 = ticket::digest(&text).unwrap_or_default();
    let body = body.map(|body| ticket::seal(&text, body.into_bytes())).transpose().map_err(broken)?;
    let now = now_ms();
    let mut expires = now + LIFE.as_millis() as i64;
    if let Some(token) = &caller.token {
        expires = expires.min(token.expires_at_ms);
    }
    let kept = StreamTicket { user: caller.user, tenant: caller.tenant, token: caller.token, body };
    let put = database::change(StoreError::passes, || app.store.put_ticket(&sha256, &kept, expires, MOST, now));
    put.await?.map_err(|TooManyTickets { until_ms }| {
        ApiError::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too_many_tickets",
            format!("this key has {MOST} tickets that are not used"),
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
    let query = call.query()?;
    if query.get("ticket").is_none() {
        let caller = call.enter("generate").await?;
        let wanted = generate::read(&query, &call.app, Form::Stream)?;
        return generate::answer(call, caller, wanted).await;
    }
    let text = query.text("ticket").map(str::to_owned);
    let Some(text) = text else { return Err(query.finish().err().unwrap_or_else(refused)) };
    let sha256 = ticket::digest(&text).ok_or_else(refused)?;
    let app = call.app.clone();
    let kept = database::read(|| app.store.ticket(&sha256, now_ms())).await?.ok_or_else(refused)?;
    let caller = auth::with_ticket(&app, &call.headers, &kept).await?.ok_or_else(refused)?;
    call.record.caller(&caller);
    caller.allow("generate")?;
    let fields = match kept.body {
        None => query,
        Some(sealed) => {
            // The ticket's request is the whole request.
            query.finish().map_err(|error| error.hint("this ticket was given for a request of its own"))?;
            let body = ticket::open(&text, sealed).map_err(|_| refused())?;
            Fields::new(serde_json::from_slice(&body).map_err(|_| refused())?)?
        }
    };
    // A mistake in the query does not cost the ticket.
    let wanted = generate::read(&fields, &app, Form::Stream)?;
    // The request was counted when the ticket was given.
    let spend = database::change(StoreError::passes, || app.store.spend_ticket(&sha256, now_ms()));
    if !spend.await? {
        return Err(refused());
    }
    generate::answer(call, caller, wanted).await
}

/// One answer for all: used, expired, and never given.
fn refused() -> ApiError {
    ApiError::new(StatusCode::UNAUTHORIZED, "invalid_ticket", "this ticket is not valid").hint(
        "a ticket is good for one stream within a minute: POST /v1/stream/tickets with your API key gives another",
    )
}
