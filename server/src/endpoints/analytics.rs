//! `GET /v1/analytics/insights`: what each hour was like, and what was unusual about it.

use axum::Json;
use serde_json::{Value, json};
use textnlp_store::DAY_MS;
use textnlp_store::analytics::{InsightKind, InsightQuery, KINDS, MAX_INSIGHTS};

use crate::auth::ADMIN;
use crate::error::ApiError;
use crate::http::Call;

/// Default number of insights, without `limit`.
const DEFAULT_LIMIT: i64 = 100;

/// The last second that `since` can name: the end of the year 9999.
const MAX_SECONDS: i64 = 253_402_300_799;

const DAY: i64 = DAY_MS / 1000;

/// The insights of the caller's tenant. With the scope `admin` too, those of the service and of all tenants.
pub(super) async fn insights(call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("usage").await?;
    let query = call.query()?;
    let since = query.integer("since", 0..=MAX_SECONDS).unwrap_or(super::now() as i64 - DAY);
    let limit = query.integer("limit", 1..=i64::from(MAX_INSIGHTS)).unwrap_or(DEFAULT_LIMIT);
    let name = query.text("kind");
    let kind = name.and_then(InsightKind::named);
    if name.is_some() && kind.is_none() {
        let known = KINDS.map(|definition| definition.name).join(", ");
        query.wrong("kind", "is not a kind of insights", Some(format!("one of {known}").as_str()));
    }
    query.finish()?;
    let store = call.app.store.clone();
    let is_of_all = caller.allow(ADMIN).is_ok();
    // One more, to know whether there are more.
    let wanted = InsightQuery { since_ms: since * 1000, kind, limit: limit as u32 + 1 };
    let mut found = textnlp_store::read(|| async {
        match is_of_all {
            true => store.insights(wanted).await,
            false => store.tenant(&caller.tenant).insights(wanted).await,
        }
    })
    .await?;
    let has_more = found.len() > limit as usize;
    found.truncate(limit as usize);
    Ok(Json(json!({
        "object": "list",
        "enabled": call.app.config.analytics.is_some(),
        "since": since,
        "has_more": has_more,
        "data": found,
    })))
}
