//! Usage analytics: a server runs it, the administration runs it, and each key sees the insights of its tenant.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_server::analytics;
use textnlp_store::{Usage, now_ms};

use super::postgres::cluster;
use super::support::{Setup, Site, make_key, start, until};

const HOUR_MS: i64 = 3_600_000;

fn row(tenant: &str, at_ms: i64) -> Usage {
    Usage {
        id: uuid::Uuid::now_v7(),
        request_id: "r".into(),
        user: "key".into(),
        tenant: tenant.into(),
        endpoint: "/v1/generate".into(),
        model: Some("tiny".into()),
        prompt_tokens: 2,
        generated_tokens: 3,
        charge: None,
        ms: 7,
        status: 200,
        at_ms,
    }
}

async fn listed(site: &Site, key: &str, query: &str) -> Value {
    let reply = site.send_as(key, "GET", &format!("/v1/analytics/insights{query}"), &Value::Null).await;
    assert_eq!(reply.status, 200, "{query}: {}", reply.text());
    reply.json()
}

fn tenants(listed: &Value) -> BTreeSet<Option<String>> {
    listed["data"].as_array().unwrap().iter().map(|one| one["tenant"].as_str().map(str::to_owned)).collect()
}

async fn analyzed(database: Option<&str>) {
    let site = start(Setup { database, analytics: true, ..Setup::default() }).await.ready().await;
    let admin = make_key(&site.config, json!({ "do": "create", "scopes": ["usage", "admin"] })).await;
    let acme = make_key(&site.config, json!({ "do": "create", "tenant": "acme" })).await;
    // A service that nobody used yet has an insight at once: this hour so far.
    // Metrics are read before: each request of a key is usage.
    until("the server has run", async || site.metric("textnlp_insights{kind=\"summary\"}").await >= 1.0).await;
    let found = listed(&site, &admin, "").await;
    // In the first seconds of an hour, the one before is not complete either.
    let first = found["data"].as_array().unwrap();
    assert!((1..=2).contains(&first.len()), "{found}");
    for first in first {
        let about = (&first["kind"], &first["partial"], &first["tenant"]);
        assert_eq!(about, (&json!("summary"), &json!(true), &Value::Null));
    }
    assert_eq!(
        (&found["object"], &found["enabled"], &found["has_more"]),
        (&json!("list"), &json!(true), &json!(false))
    );
    assert_eq!(listed(&site, &acme, "").await["data"], json!([]), "that of the service is not its own");
    assert!(site.metric("textnlp_analytics_last_run_seconds ").await > 1e9);

    let store = site.server.as_ref().unwrap().store();
    // Requests of this test itself are in the current hour.
    let last = now_ms() - now_ms() % HOUR_MS - 3 * HOUR_MS;
    store.append_usage(&[row("acme", last), row("acme", last + 1), row("globex", last + 2)]).await.unwrap();
    let run = analytics(&site.config, r#"{"do":"run"}"#).await.unwrap();
    assert!(run["run"]["hours"].as_u64().unwrap() >= 3 && run["site"] == "here", "{run}");
    let own = listed(&site, &acme, "").await;
    assert_eq!(tenants(&own), BTreeSet::from([Some("acme".to_owned())]), "{own}");
    let is_total = |one: &&Value| one["start"] == last / 1000 && one["kind"] == "summary" && one["model"].is_null();
    let summary = own["data"].as_array().unwrap().iter().find(is_total).unwrap();
    assert_eq!(
        (&summary["requests"], &summary["completion_tokens"], &summary["p95_ms"], &summary["severity"]),
        (&json!(2), &json!(6), &json!(7), &json!("info"))
    );
    assert_eq!((&summary["start"], &summary["end"]), (&json!(last / 1000), &json!((last + HOUR_MS) / 1000)));
    let all = listed(&site, &admin, "?limit=1000").await;
    let expected = [None, Some("acme"), Some("globex")].map(|tenant| tenant.map(str::to_owned));
    assert!(tenants(&all).is_superset(&BTreeSet::from(expected)), "{all}");
    let first = listed(&site, &admin, "?kind=first_use").await;
    let then = first["data"].as_array().unwrap().iter().filter(|one| one["start"] == last / 1000);
    assert_eq!(then.count(), 4, "two tenants with a model each: {first}");
    let one = listed(&site, &admin, "?kind=first_use&limit=1").await;
    assert_eq!((one["data"].as_array().unwrap().len(), &one["has_more"]), (1, &json!(true)));
    let later = listed(&site, &acme, &format!("?since={}", (last + HOUR_MS) / 1000)).await;
    let later = later["data"].as_array().unwrap();
    assert!(later.iter().all(|one| one["start"] != last / 1000), "the hour ends there: {later:?}");

    let told = analytics(&site.config, r#"{"do":"list","kind":"first_use","limit":3}"#).await.unwrap();
    assert_eq!((told["insights"].as_array().unwrap().len(), &told["has_more"]), (3, &json!(true)));
    let status = analytics(&site.config, r#"{"do":"status"}"#).await.unwrap();
    assert!(status["last_run"].as_i64().unwrap() >= now_ms() / 1000 - 600, "{status}");
    assert!(status["count"].as_u64().unwrap() >= 1 && status["enabled"] == true, "{status}");
    for (query, field) in [
        ("?since=-1", "since"),
        ("?kind=other", "kind"),
        ("?limit=0", "limit"),
        ("?limit=1001", "limit"),
        ("?tenant=globex", "tenant"),
    ] {
        let reply = site.send_as(&acme, "GET", &format!("/v1/analytics/insights{query}"), &Value::Null).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(field)), "{query}: {}", reply.text());
    }
    for wrong in ["", "{}", r#"{"do":"run","limit":1}"#, r#"{"do":"list","kind":"x"}"#, r#"{"do":"list","limit":0}"#] {
        assert!(analytics(&site.config, wrong).await.is_err(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_sees_the_insights_of_its_tenant_on_sqlite() {
    analyzed(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_sees_the_insights_of_its_tenant_on_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    analyzed(Some(&cluster.url(&cluster.database()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_not_analyzed_where_the_configuration_does_not_say_so() {
    let site = start(Setup::default()).await.ready().await;
    let found = listed(&site, &site.key, "").await;
    assert_eq!((&found["enabled"], &found["data"]), (&json!(false), &json!([])));
    let refused = analytics(&site.config, r#"{"do":"run"}"#).await.unwrap_err();
    assert_eq!(refused.to_string(), "usage analytics is off");
    let status = analytics(&site.config, r#"{"do":"status"}"#).await.unwrap();
    assert_eq!((&status["enabled"], &status["last_run"]), (&json!(false), &Value::Null));
}
