//! `GET /v1/usage`: a key sees what it has used.

use serde_json::{Value, json};

use super::postgres::cluster;
use super::support::{Setup, make_key, start, until};

async fn own_usage(database: Option<&str>) {
    let prices =
        "{ currency: EUR, prompt: 1000, answer: \"2000.5\", models: [ { name: plain, prompt: 0, answer: 0 } ] }";
    let site = start(Setup { database, prices: Some(prices), ..Setup::default() }).await.ready().await;
    let other = make_key(&site.config, json!({ "do": "create" })).await;
    let ask = json!({ "prompt": "Once", "max_tokens": 5, "ignore_end": true });
    for model in ["tiny", "plain", "tiny"] {
        let mut ask = ask.clone();
        ask["model"] = json!(model);
        assert_eq!(site.post("/v1/generate", ask).await.status, 200);
    }
    assert_eq!(site.post_as(&other, "/v1/generate", ask.clone()).await.status, 200);
    assert_eq!(site.post("/v1/generate", json!({ "prompt": "Once", "max_tokens": 0 })).await.status, 400);
    let usage = async |query: &str| site.get(&format!("/v1/usage{query}")).await;
    until("all of it is written", async || {
        let total = usage("").await.json()["total"].clone();
        (&total["errors"], &total["completion_tokens"]) == (&json!(1), &json!(15))
    })
    .await;
    let seen = usage("").await.json();
    let tiny = |seen: &Value| -> Value {
        let days = seen["data"].as_array().unwrap();
        // Midnight may lie between two of the requests.
        let models = days.iter().flat_map(|day| day["models"].as_array().unwrap());
        let of_tiny: Vec<u64> = models
            .filter(|part| part["model"] == "tiny")
            .map(|part| part["completion_tokens"].as_u64().unwrap())
            .collect();
        json!(of_tiny.iter().sum::<u64>())
    };
    assert_eq!(tiny(&seen), 10);
    assert_eq!(
        (&seen["object"], &seen["has_more"], &seen["next_start"]),
        (&json!("usage"), &json!(false), &Value::Null)
    );
    assert_eq!(seen["key"].as_str().unwrap(), site.key.split('_').nth(1).unwrap());
    assert_eq!(seen["total"]["completion_tokens"], 15);
    assert_eq!(seen["total"]["prompt_tokens"], 12);
    assert_eq!(seen["total"]["total_tokens"], 27);
    assert_eq!(seen["total"]["errors"], 1);
    // Two requests to `tiny` of 4 and 5 tokens each; `plain` is free.
    assert_eq!(seen["total"]["cost"], json!({ "EUR": 0.028_005 }), "{seen}");
    let days = seen["data"].as_array().unwrap().iter();
    let plain = days.flat_map(|day| day["models"].as_array().unwrap()).find(|part| part["model"] == "plain").unwrap();
    assert_eq!(plain["cost"], json!({ "EUR": 0.0 }), "{seen}");
    // That of the other key too.
    until("all of them are counted", async || (site.metric("textnlp_cost_total{").await - 0.042_007_5).abs() < 1e-9)
        .await;
    // Requests above the rate of their key leave no rows: a client would fill the disk with them.
    let limited = make_key(&site.config, json!({ "do": "create", "rate_limit": "2/hour" })).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(site.post_as(&limited, "/v1/generate", ask.clone()).await.status);
    }
    assert_eq!(statuses, [200, 200, 429, 429]);
    let store = site.server.as_ref().unwrap().store();
    let requests_of = async |key: &str| -> i64 {
        let id = key.split('_').nth(1).unwrap();
        let days = store.tenant("default").usage_by_day(id, 0, i64::MAX).await.unwrap();
        days.iter().map(|day| day.sum.requests).sum()
    };
    // A later request of another key, so that rows of the refused ones would be there.
    let earlier = requests_of(&other).await;
    assert_eq!(site.post_as(&other, "/v1/generate", ask.clone()).await.status, 200);
    until("the later row is written", async || requests_of(&other).await > earlier).await;
    assert_eq!(requests_of(&limited).await, 2);
    let before = usage("?start=0&end=1000").await.json();
    assert_eq!((&before["total"]["requests"], &before["data"]), (&json!(0), &json!([])));
    let now = seen["end"].as_u64().unwrap();
    for (query, field) in [
        ("?start=yesterday", "start"),
        ("?start=-1", "start"),
        ("?start=1.5", "start"),
        (&format!("?start={now}&end={now}"), "start"),
        (&format!("?start=0&end={now}"), "start"),
        ("?end=0", "end"),
        ("?end=99999999999999", "end"),
        ("?limit=0", "limit"),
        ("?limit=401", "limit"),
        ("?limit=1&limit=2", "limit"),
        ("?key=other", "key"),
        ("?tenant=globex", "tenant"),
    ] {
        let reply = usage(query).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(field)), "{query}: {}", reply.text());
    }
    let narrow = make_key(&site.config, json!({ "do": "create", "scopes": ["generate"] })).await;
    let reply = site.client.send("GET", "/v1/usage", &[("x-api-key", &narrow)], b"").await;
    assert_eq!((reply.status, reply.error().0.as_str()), (403, "insufficient_scope"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_sees_its_own_usage_by_day_and_model_on_sqlite() {
    own_usage(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_sees_its_own_usage_by_day_and_model_on_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    own_usage(Some(&cluster.url(&cluster.database()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_days_beyond_the_limit_are_paged() {
    use textnlp_store::{DAY_MS, Usage};
    let site = start(Setup::default()).await.ready().await;
    let id = site.key.split('_').nth(1).unwrap();
    let row = |day: i64| Usage {
        id: uuid::Uuid::now_v7(),
        request_id: format!("r{day}"),
        user: id.into(),
        tenant: "default".into(),
        endpoint: "/v1/generate".into(),
        model: Some("tiny".into()),
        prompt_tokens: 1,
        generated_tokens: day as u64,
        charge: None,
        ms: 1,
        status: 200,
        at_ms: day * DAY_MS + 7,
    };
    let store = site.server.as_ref().unwrap().store();
    store.append_usage(&[row(10), row(12), row(13)]).await.unwrap();
    let end = 20 * DAY_MS / 1000;
    let first = site.get(&format!("/v1/usage?start=1&end={end}&limit=2")).await.json();
    let days = |page: &Value| -> Vec<u64> {
        let days = page["data"].as_array().unwrap();
        days.iter().map(|day| day["completion_tokens"].as_u64().unwrap()).collect()
    };
    assert_eq!((days(&first), &first["has_more"]), (vec![10, 12], &json!(true)));
    assert_eq!(first["total"]["completion_tokens"], 35, "the total is of the whole time");
    let next = first["next_start"].as_u64().unwrap();
    let second = site.get(&format!("/v1/usage?start={next}&end={end}&limit=2")).await.json();
    assert_eq!((days(&second), &second["has_more"]), (vec![13], &json!(false)));
}
