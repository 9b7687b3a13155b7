use tokio_util::sync::CancellationToken;

use super::*;
use crate::retention::{Retention, sweep};
use crate::tests::{Bench, on_both};
use crate::{Charge, Usage};

on_both!(
    hours_are_analyzed_once_and_the_current_hour_again,
    findings_are_made_against_the_earlier_hours_of_the_same_subject,
    summary_counts_refused_texts_and_empty_answers,
    tenant_sees_its_own_insights_only,
    replicas_that_run_at_once_write_each_insight_once,
    missed_hours_are_made_up_for_within_a_day,
    insights_older_than_their_retention_are_deleted_in_batches,
);

/// The start of an hour, in milliseconds since 1970.
const NOON: i64 = 1_800_000_000_000 - 1_800_000_000_000 % DAY_MS + 12 * HOUR_MS;

/// A time at which the hour before [`NOON`] is complete.
const NOW: i64 = NOON + 5 * 60_000;

fn row(tenant: &str, model: &str, ms: u64, status: u16, at_ms: i64) -> Usage {
    Usage {
        id: uuid::Uuid::now_v7(),
        request_id: "r".into(),
        user: "key".into(),
        tenant: tenant.into(),
        endpoint: "/v1/generate".into(),
        model: Some(model.into()),
        prompt_tokens: 2,
        generated_tokens: 3,
        charge: Some(Charge { nanos: 500_000_000, cents: 0, currency: "EUR".into() }),
        ms,
        status,
        at_ms,
    }
}

/// So many requests in an hour.
fn rows(tenant: &str, model: &str, count: usize, ms: u64, hour: i64) -> Vec<Usage> {
    (0..count).map(|n| row(tenant, model, ms, 200, hour + n as i64)).collect()
}

fn all(limit: u32) -> InsightQuery {
    InsightQuery { since_ms: 0, kind: None, limit }
}

/// The insights of an hour: tenant, model, kind.
fn kinds_at(insights: &[Insight], hour: i64) -> BTreeSet<(Option<&str>, Option<&str>, &'static str)> {
    let at = insights.iter().filter(|one| one.start == hour / 1000);
    at.map(|one| (one.tenant.as_deref(), one.model.as_deref(), one.kind.definition().name)).collect()
}

fn one<'a>(
    insights: &'a [Insight],
    hour: i64,
    tenant: Option<&str>,
    model: Option<&str>,
    kind: InsightKind,
) -> &'a Insight {
    let is_it = |one: &&Insight| {
        (one.start, one.tenant.as_deref(), one.model.as_deref(), one.kind) == (hour / 1000, tenant, model, kind)
    };
    insights.iter().find(is_it).unwrap_or_else(|| panic!("no {kind:?} of {tenant:?} {model:?} in {insights:#?}"))
}

async fn hours_are_analyzed_once_and_the_current_hour_again(bench: Bench) {
    let store = bench.store().await;
    let (last, began) = (NOON - HOUR_MS, store.analytics_status(NOW).await.unwrap());
    assert_eq!(began, AnalyticsStatus::default());
    let mut usage: Vec<Usage> = (1..=100).map(|ms| row("acme", "small", ms, 200, last + ms as i64)).collect();
    usage.push(row("acme", "large", 9_000, 503, last));
    usage.push(row("globex", "small", 50, 200, NOON - 1));
    usage.push(row("globex", "small", 50, 200, NOON));
    // Neither is a request of the API.
    usage.push(Usage { endpoint: "/auth/token".into(), ..row("acme", "small", 1, 200, last) });
    store.append_usage(&usage).await.unwrap();
    let done = store.analyze(NOW).await.unwrap();
    assert_eq!(done.hours, 1);
    let found = store.insights(all(1000)).await.unwrap();
    assert_eq!(done.insights, found.len() as u64);
    let summary = |tenant, model| one(&found, last, tenant, model, InsightKind::Summary);
    let service = summary(None, None);
    assert_eq!((service.sum.requests, service.sum.failures, service.value), (102, 1, 102.0));
    assert_eq!((service.sum.prompt_tokens, service.sum.generated_tokens), (204, 306));
    assert_eq!(service.cost, Some(serde_json::json!({ "EUR": 51.0 })));
    assert_eq!((service.busiest_model.as_deref(), service.partial), (Some("small"), false));
    let acme = summary(Some("acme"), None);
    assert_eq!((acme.sum.p50_ms, acme.sum.p95_ms), (Some(50), Some(95)), "of successful requests only");
    assert!(
        acme.message.starts_with("There were 101 requests of tenant `acme`, of which 1 failed"),
        "{}",
        acme.message
    );
    assert_eq!(summary(Some("acme"), Some("large")).sum.p95_ms, None);
    assert_eq!(summary(Some("globex"), Some("small")).sum.requests, 1);
    let first = one(&found, last, Some("globex"), None, InsightKind::FirstUse);
    assert_eq!((first.severity, first.end - first.start), (Severity::Info, 3600));
    let now = one(&found, NOON, None, None, InsightKind::Summary);
    assert_eq!((now.partial, now.sum.requests), (true, 1));
    assert!(!kinds_at(&found, NOON).iter().any(|(.., kind)| *kind != "summary"), "an incomplete hour has no findings");

    // Again: nothing but the current hour changes, also where usage arrives late.
    store.append_usage(&[row("acme", "small", 1, 200, last), row("globex", "small", 50, 200, NOON + 1)]).await.unwrap();
    let again = store.analyze(NOW + 60_000).await.unwrap();
    assert_eq!((again.hours, again.insights), (0, 3), "the service, the tenant and its model");
    let found = store.insights(all(1000)).await.unwrap();
    assert_eq!(one(&found, last, None, None, InsightKind::Summary).sum.requests, 102);
    assert_eq!(one(&found, NOON, None, None, InsightKind::Summary).sum.requests, 2);
    let status = store.analytics_status(NOW + 60_000).await.unwrap();
    assert_eq!((status.last_run_ms, status.insights), (Some(NOW + 60_000), 3));
    assert_eq!(status.of_last_day[&InsightKind::Summary], 6 + 3);

    // An hour that ended a moment ago may have usage that is not written yet.
    let next = NOON + HOUR_MS;
    assert_eq!(store.analyze(next + SETTLES_MS - 1).await.unwrap().hours, 0);
    assert_eq!(settles_in(next + SETTLES_MS - 1), Duration::from_millis(1));
    assert_eq!((settles_in(next + SETTLES_MS), settles_in(next - 1)), (Duration::ZERO, Duration::ZERO));
    assert_eq!(store.analyze(next + SETTLES_MS).await.unwrap().hours, 1);
    let found = store.insights(all(1000)).await.unwrap();
    assert!(!one(&found, NOON, None, None, InsightKind::Summary).partial, "the complete hour replaces it");
    let only = InsightQuery { since_ms: NOON + 1, kind: Some(InsightKind::FirstUse), limit: 1000 };
    assert!(store.insights(only).await.unwrap().is_empty(), "they are of the hour before");
    assert_eq!(store.insights(InsightQuery { since_ms: last, limit: 1, ..only }).await.unwrap().len(), 1);
}

async fn findings_are_made_against_the_earlier_hours_of_the_same_subject(bench: Bench) {
    let store = bench.store().await;
    // A day and an hour, analyzed as they pass.
    let start = NOON - 25 * HOUR_MS;
    for n in 0..25 {
        let hour = start + n * HOUR_MS;
        let mut usage = rows("acme", "small", 30 + (n % 3) as usize, 100, hour);
        usage.extend(rows("globex", "small", 40 + (n % 3) as usize, 100, hour));
        store.append_usage(&usage).await.unwrap();
        store.analyze(hour + HOUR_MS + SETTLES_MS).await.unwrap();
    }
    let quiet = store.insights(InsightQuery { since_ms: start + HOUR_MS, ..all(1000) }).await.unwrap();
    let quiet: Vec<_> = quiet.iter().filter(|one| one.severity == Severity::Warning).collect();
    assert_eq!(quiet, Vec::<&Insight>::new(), "small variations are usual");
    // `acme` has four times the requests, most of them slow, and half of them fail. `globex` has none.
    let mut usage = rows("acme", "small", 60, 900, NOON);
    usage.extend((0..60).map(|n| row("acme", "small", 900, 500, NOON + n)));
    store.append_usage(&usage).await.unwrap();
    store.analyze(NOON + HOUR_MS + SETTLES_MS).await.unwrap();
    let found = store.insights(InsightQuery { since_ms: NOON + 1, ..all(1000) }).await.unwrap();
    let mut acme = kinds_at(&found, NOON);
    acme.retain(|(tenant, ..)| *tenant == Some("acme"));
    let expected = ["failures_rise", "latency_rise", "summary", "traffic_spike"];
    let expected = [None, Some("small")].map(|model| expected.map(|kind| (Some("acme"), model, kind)));
    let expected: BTreeSet<_> = expected.into_iter().flatten().collect();
    assert_eq!(acme, expected);
    let spike = one(&found, NOON, Some("acme"), None, InsightKind::TrafficSpike);
    assert_eq!((spike.value, spike.baseline, spike.severity), (120.0, Some(31.0), Severity::Warning));
    assert_eq!(spike.message, "There were 120 requests of tenant `acme`; usually there are 31.");
    let failures = one(&found, NOON, Some("acme"), Some("small"), InsightKind::FailuresRise);
    assert_eq!((failures.value, failures.baseline), (0.5, Some(0.0)));
    let latency = one(&found, NOON, Some("acme"), None, InsightKind::LatencyRise);
    assert_eq!((latency.value, latency.baseline), (900.0, Some(100.0)));
    let gone = one(&found, NOON, Some("globex"), None, InsightKind::TrafficDrop);
    assert_eq!((gone.value, gone.baseline, gone.sum.requests), (0.0, Some(41.0), 0));
    assert!(!found.iter().any(|one| one.kind == InsightKind::FirstUse), "{found:#?}");
}

async fn summary_counts_refused_texts_and_empty_answers(bench: Bench) {
    let store = bench.store().await;
    let last = NOON - HOUR_MS;
    let at = |status, generated_tokens, endpoint: &str| {
        let prompt_tokens = if status == 200 { 2 } else { 0 };
        let row = row("acme", "small", 1, status, last);
        Usage { prompt_tokens, generated_tokens, endpoint: endpoint.into(), ..row }
    };
    let usage = [
        at(200, 3, "/v1/chat/completions"),
        at(200, 0, "/v1/completions"),
        // It has no answer with tokens.
        at(200, 0, "/v1/embeddings"),
        at(400, 0, "/v1/generate"),
        // Neither is the fault of a text.
        at(404, 0, "/v1/generate"),
        at(503, 0, "/v1/generate"),
    ];
    store.append_usage(&usage).await.unwrap();
    store.analyze(NOW).await.unwrap();
    let found = store.insights(all(1000)).await.unwrap();
    for (tenant, model) in [(None, None), (Some("acme"), None), (Some("acme"), Some("small"))] {
        let summary = one(&found, last, tenant, model, InsightKind::Summary);
        let HourSum { prompts, answers, empty_answers, invalid_requests, .. } = summary.sum;
        assert_eq!((prompts, answers, empty_answers, invalid_requests), (3, 2, 1, 1), "{summary:?}");
        assert_eq!(summary.quality, Some(0.5));
    }
}

async fn tenant_sees_its_own_insights_only(bench: Bench) {
    let store = bench.store().await;
    let hour = NOON - HOUR_MS;
    let usage: Vec<Usage> =
        ["acme", "globex"].into_iter().flat_map(|tenant| rows(tenant, "small", 2, 1, hour)).collect();
    store.append_usage(&usage).await.unwrap();
    store.analyze(NOW).await.unwrap();
    let of = store.tenant("acme").insights(all(1000)).await.unwrap();
    let names: Vec<_> = of.iter().map(|one| one.kind.definition().name).collect();
    assert_eq!(names, ["first_use", "summary", "first_use", "summary"]);
    assert!(of.iter().all(|one| one.tenant.as_deref() == Some("acme")), "{of:#?}");
    for other in ["nobody", ""] {
        assert!(store.tenant(other).insights(all(1000)).await.unwrap().is_empty());
    }
    // The condition of a forgotten WHERE is in the database too.
    if store.dialect == Dialect::Postgres {
        let mut narrow = store.tenant("acme").read().await.unwrap();
        let row = sqlx::query("SELECT count(*) FROM insights").fetch_one(&mut *narrow).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 4);
        let refused = sqlx::query("DELETE FROM insights").execute(&mut *narrow).await.unwrap_err();
        assert!(refused.to_string().contains("permission denied"), "{refused}");
        drop(narrow);
        // Also not for a session that names no tenant.
        let row = sqlx::query("SELECT count(*) FROM insights").fetch_one(&store.reads).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 0);
    }
}

async fn replicas_that_run_at_once_write_each_insight_once(bench: Bench) {
    let stores = [bench.store().await, bench.open().await];
    stores[0].append_usage(&rows("acme", "small", 5, 1, NOON - HOUR_MS)).await.unwrap();
    let runs = futures::future::join_all(stores.iter().map(|store| store.analyze(NOW))).await;
    assert!(runs.iter().any(Result::is_ok), "{runs:?}");
    stores[0].analyze(NOW).await.unwrap();
    let found = stores[1].insights(all(1000)).await.unwrap();
    // Summaries of both hours, and the first use of the tenant and its model.
    assert_eq!((found.len(), kinds_at(&found, NOON - HOUR_MS).len()), (3 + 2 + 1, 3 + 2));
}

async fn missed_hours_are_made_up_for_within_a_day(bench: Bench) {
    let store = bench.store().await;
    let hours = [30, 24, 3].map(|hours| NOON - hours * HOUR_MS);
    for hour in hours {
        store.append_usage(&rows("acme", "small", 1, 1, hour)).await.unwrap();
    }
    assert_eq!(store.analyze(NOW).await.unwrap().hours, CATCH_UP_HOURS as u32);
    let found = store.insights(all(1000)).await.unwrap();
    assert!(kinds_at(&found, hours[0]).is_empty(), "longer ago than a day");
    // It was used before the first hour that is analyzed.
    let summaries = BTreeSet::from([
        (None, None, "summary"),
        (Some("acme"), None, "summary"),
        (Some("acme"), Some("small"), "summary"),
    ]);
    assert_eq!(kinds_at(&found, hours[1]), summaries);
    let idle = one(&found, hours[2] + HOUR_MS, None, None, InsightKind::Summary);
    assert_eq!((idle.message.as_str(), idle.partial), ("There were no requests of the service.", false));
    // A service that nobody has used yet has an insight too.
    let other = bench.another();
    let unused = other.store().await;
    assert_eq!(unused.analyze(NOW).await.unwrap(), Analyzed { hours: 0, insights: 1 });
    assert_eq!(unused.analytics_status(NOW).await.unwrap().insights, 1);
}

async fn insights_older_than_their_retention_are_deleted_in_batches(bench: Bench) {
    let store = bench.store().await;
    store.append_usage(&rows("acme", "small", 1, 1, NOON - HOUR_MS)).await.unwrap();
    store.analyze(NOW).await.unwrap();
    assert_eq!(store.delete_insights(NOON - HOUR_MS, 100).await.unwrap(), 0);
    assert_eq!(store.delete_insights(NOON, 3).await.unwrap(), 3);
    assert_eq!(store.delete_insights(NOON, 3).await.unwrap(), 2);
    let left = store.insights(all(1000)).await.unwrap();
    assert_eq!(left.iter().map(|one| one.start).collect::<Vec<_>>(), [NOON / 1000]);
    let swept = async |days: i64| {
        let keep = Retention { usage_days: 0, audit_days: 0, insight_days: 28, batch_days: 0, key_days: 0 };
        sweep(&store, keep, NOON + days * DAY_MS, drop, &CancellationToken::new()).await.unwrap().insights
    };
    assert_eq!((swept(28).await, swept(29).await), (0, 1));
}

fn requests(requests: i64) -> HourSum {
    HourSum { requests, ..HourSum::default() }
}

fn earlier(count: usize, of: impl Fn(usize) -> HourSum) -> Vec<EarlierHour> {
    let hour = |n: usize| NOON - (count - n) as i64 * HOUR_MS;
    (0..count).map(|n| EarlierHour { hour: hour(n), sum: of(n) }).collect()
}

fn found(sum: HourSum, earlier: &[EarlierHour]) -> Vec<&'static str> {
    let found = findings(&Subject::service(), NOON, &sum, earlier);
    found.iter().map(|finding| finding.kind.definition().name).collect()
}

#[test]
fn few_hours_and_few_requests_say_nothing() {
    let usual = |count| earlier(count, |n| requests(100 + (n % 4) as i64));
    let spike = requests(1000);
    assert_eq!(found(spike, &usual(MIN_HOURS)), ["traffic_spike"]);
    assert_eq!(found(spike, &usual(MIN_HOURS - 1)), [] as [&str; 0]);
    // Ten times as many, but few all the same.
    let few = earlier(48, |_| requests(2));
    assert_eq!(found(requests(20), &few), [] as [&str; 0]);
    assert_eq!(found(HourSum::default(), &few), [] as [&str; 0]);
    // All of 19 requests failed.
    let failed = HourSum { requests: MIN_REQUESTS - 1, failures: MIN_REQUESTS - 1, ..HourSum::default() };
    let steady = earlier(48, |_| requests(MIN_REQUESTS));
    assert_eq!(found(failed, &steady), [] as [&str; 0]);
    let failed = HourSum { requests: MIN_REQUESTS, failures: MIN_REQUESTS, ..HourSum::default() };
    assert_eq!(found(failed, &steady), ["failures_rise"]);
}

#[test]
fn steady_numbers_make_no_finding_of_a_small_change() {
    let steady = earlier(48, |_| HourSum { p95_ms: Some(100), ..requests(100) });
    // Every change is infinitely unusual here; the factor and the least change decide.
    let of = |count, p95| found(HourSum { p95_ms: Some(p95), ..requests(count) }, &steady);
    assert_eq!(of(199, 199), [] as [&str; 0]);
    assert_eq!(of(200, 199), ["traffic_spike"]);
    assert_eq!(of(51, 200), ["latency_rise"]);
    assert_eq!(of(50, 100), ["traffic_drop"]);
}

#[test]
fn data_is_compared_by_its_quality_and_its_lengths() {
    // Ten requests of each hour have no text, such as those for the list of models.
    let texts = HourSum { prompts: 100, answers: 100, prompt_tokens: 5000, generated_tokens: 10_000, ..requests(110) };
    let steady = earlier(48, |_| texts);
    let of = |sum: HourSum| found(sum, &steady);
    assert_eq!(of(texts), [] as [&str; 0]);
    // 50 tokens of a prompt are usual, and 100 of an answer.
    assert_eq!(of(HourSum { prompt_tokens: 7500, ..texts }), ["prompts_shift"]);
    assert_eq!(of(HourSum { prompt_tokens: 7499, ..texts }), [] as [&str; 0]);
    assert_eq!(
        of(HourSum { prompt_tokens: 3333, generated_tokens: 6000, ..texts }),
        ["prompts_shift", "answers_shift"]
    );
    // Few of them say nothing.
    let few =
        HourSum { prompts: 19, answers: 19, prompt_tokens: 1900, generated_tokens: 0, empty_answers: 19, ..texts };
    assert_eq!(of(few), [] as [&str; 0]);
    let poor = HourSum { prompts: 97, answers: 97, invalid_requests: 3, empty_answers: 2, ..texts };
    assert_eq!(poor.quality(), Some(0.95));
    assert_eq!(of(poor), ["quality_drop"]);
    assert_eq!(of(HourSum { empty_answers: 1, ..poor }), [] as [&str; 0]);
    let of_older_servers = earlier(48, |_| HourSum { prompts: 0, answers: 0, ..texts });
    assert_eq!(found(poor, &of_older_servers), [] as [&str; 0]);
    assert_eq!(HourSum::default().quality(), None);
    let found = findings(&Subject::service(), NOON, &poor, &steady);
    assert_eq!(found[0].message, "The data quality of the requests of the service was 95.0 %; usually it is 100.0 %.");
}

#[test]
fn nightly_work_is_compared_with_other_nights() {
    // Two weeks with 500 requests in one hour of the day.
    let nightly = |at: i64| {
        let of = |n: i64| {
            let hour = NOON - (14 * 24 - n) * HOUR_MS;
            let is_it = (NOON - hour) % DAY_MS == at * HOUR_MS;
            EarlierHour { hour, sum: requests(if is_it { 500 } else { 0 }) }
        };
        (0..14 * 24).map(of).collect::<Vec<_>>()
    };
    let work = requests(500);
    assert_eq!(found(work, &nightly(0)), [] as [&str; 0]);
    assert_eq!(found(HourSum::default(), &nightly(0)), ["traffic_drop"]);
    assert_eq!(found(work, &nightly(5)), ["traffic_spike"]);
}

#[test]
fn hours_without_requests_count_from_the_first_hour_of_a_subject() {
    let analyzed: BTreeSet<i64> = (0..6).collect();
    let row = |hour, count| EarlierHour { hour, sum: requests(count) };
    assert_eq!(without_gaps(&[row(2, 7), row(4, 9)], &analyzed), [row(2, 7), row(3, 0), row(4, 9), row(5, 0)]);
    assert!(without_gaps(&[], &analyzed).is_empty());
}

#[test]
fn names_of_kinds_are_those_of_their_documents() {
    for definition in &KINDS {
        assert_eq!(serde_json::json!(definition.kind), definition.name);
        assert_eq!(InsightKind::named(definition.name), Some(definition.kind));
        assert!(!definition.rule.is_empty() && definition.kind.definition().name == definition.name);
    }
    assert_eq!(InsightKind::named("other"), None);
}
