//! `GET /v1/usage`: the usage of the caller's key, by day and model.

use axum::Json;
use axum::http::StatusCode;
use serde_json::{Map, Value, json};
use textnlp_store::{DAY_MS, DailyUsage, UsageSum};

use crate::error::ApiError;
use crate::http::Call;

/// Default range in days, without `start`.
const DEFAULT_DAYS: i64 = 30;

/// The longest time that is summed: one request reads a bounded part of the log.
const MAX_DAYS: i64 = 400;

/// Default number of days per page, without `limit`.
const DEFAULT_LIMIT: i64 = 31;

/// The last second that `start` and `end` can name: the end of the year 9999.
const MAX_SECONDS: i64 = 253_402_300_799;

const DAY: i64 = DAY_MS / 1000;

/// Totals of the whole time, and one entry for each day with requests.
pub(super) async fn usage(call: Call) -> Result<Json<Value>, ApiError> {
    let caller = call.enter("usage").await?;
    let query = call.query()?;
    let (start, end) = (query.integer("start", 0..=MAX_SECONDS), query.integer("end", 1..=MAX_SECONDS));
    let limit = query.integer("limit", 1..=MAX_DAYS).unwrap_or(DEFAULT_LIMIT);
    // Includes the current second.
    let end = end.unwrap_or(super::now() as i64 + 1);
    let start = start.unwrap_or((end - DEFAULT_DAYS * DAY).max(0));
    if start >= end {
        query.wrong(
            "start",
            "is not before `end`",
            Some("both are seconds since 1970; omit `end` for the current time"),
        );
    } else if end - start > MAX_DAYS * DAY {
        query.wrong("start", format!("is more than {MAX_DAYS} days before `end`"), None);
    }
    query.finish()?;
    let store = call.app.store.clone();
    let turn = call.app.sums.turn(&call.record).await?;
    let (tenant, key) = (caller.tenant.clone(), caller.user.clone());
    // SQLite goes on after the client has left, so that the turn does too.
    let sums = call.app.tasks.spawn(async move {
        let _turn = turn;
        textnlp_store::read(|| store.tenant(&tenant).usage_by_day(&key, start * 1000, end * 1000)).await
    });
    let sums = sums.await.map_err(|error| {
        tracing::error!(%error, "the usage could not be summed");
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", "internal server error")
    })?;
    let (total, days) = by_day(sums?);
    let mut shown = days.iter().map(|(day, entry)| (*day, entry));
    let data: Vec<Value> = shown.by_ref().take(limit as usize).map(|(_, entry)| entry.clone()).collect();
    let next = shown.next().map(|(day, _)| (day * DAY).max(start));
    Ok(Json(json!({
        "object": "usage",
        "key": caller.user,
        "tenant": caller.tenant,
        "start": start,
        "end": end,
        "total": total,
        "data": data,
        "has_more": next.is_some(),
        "next_start": next,
    })))
}

/// The sum of all, and each day with its models.
fn by_day(parts: Vec<DailyUsage>) -> (UsageSum, Vec<(i64, Value)>) {
    let (mut total, mut days) = (UsageSum::default(), Vec::<(i64, UsageSum, Vec<Value>)>::new());
    for part in parts {
        total.add(&part.sum);
        if days.last().is_none_or(|(day, ..)| *day != part.day) {
            days.push((part.day, UsageSum::default(), Vec::new()));
        }
        let Some((_, sum, models)) = days.last_mut() else { continue };
        sum.add(&part.sum);
        models.push(entry([("model", json!(part.model))], &part.sum));
    }
    let shown = |(day, sum, models): (i64, UsageSum, Vec<Value>)| {
        let mut shown = entry([("start", json!(day * DAY)), ("end", json!((day + 1) * DAY))], &sum);
        shown["models"] = json!(models);
        (day, shown)
    };
    (total, days.into_iter().map(shown).collect())
}

/// The fields of a sum after others.
fn entry<const N: usize>(first: [(&str, Value); N], sum: &UsageSum) -> Value {
    let mut fields: Map<String, Value> = first.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    if let Value::Object(sums) = json!(sum) {
        fields.extend(sums);
    }
    Value::Object(fields)
}

#[cfg(test)]
mod tests {
    use textnlp_store::Charges;

    use super::*;

    #[test]
    fn cost_is_shown_only_where_prices_were_set() {
        let daily = |model: &str, cost| DailyUsage {
            day: 3,
            model: Some(model.to_owned()),
            sum: UsageSum { requests: 1, cost, ..UsageSum::default() },
        };
        let (eur, usd) = (Charges::of("EUR", 1, 500_000_000), Charges::of("USD", 0, 1));
        let (total, days) = by_day(vec![daily("a", eur.clone()), daily("b", Charges::default()), daily("c", usd)]);
        let both = json!({ "EUR": 1.5, "USD": 1e-9 });
        assert_eq!((&json!(total)["cost"], &days[0].1["cost"]), (&both, &both));
        let models = &days[0].1["models"];
        assert_eq!((&models[0]["cost"], models[1].get("cost")), (&json!(eur), None));
    }

    #[test]
    fn usage_is_summed_by_day_and_model() {
        let sum = |requests| UsageSum { requests, total_tokens: 7 * requests, ..UsageSum::default() };
        let daily = |day, model: Option<&str>, requests| DailyUsage {
            day,
            model: model.map(str::to_owned),
            sum: sum(requests),
        };
        let (total, days) = by_day(vec![daily(3, Some("a"), 1), daily(3, None, 2), daily(5, Some("a"), 4)]);
        assert_eq!(total, sum(7));
        assert_eq!(days.iter().map(|(day, _)| *day).collect::<Vec<_>>(), [3, 5]);
        let first = &days[0].1;
        assert_eq!((&first["start"], &first["end"]), (&json!(3 * DAY), &json!(4 * DAY)));
        assert_eq!((&first["requests"], &first["total_tokens"]), (&json!(3), &json!(21)));
        assert_eq!((&first["models"][1]["model"], &first["models"][1]["requests"]), (&Value::Null, &json!(2)));
    }
}
