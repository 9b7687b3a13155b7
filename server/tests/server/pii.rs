//! Personal data in requests: counted, masked or refused on each route, before a model or the database gets it.

use serde_json::{Value, json};

use super::support::{Setup, Site, start, until};

const MAIL: &str = "ada@example.com";

async fn site(pii: &str) -> Site {
    start(Setup { pii: Some(pii), batch: Some("{}"), ..Setup::default() }).await.ready().await
}

/// A request of each route with a text in it, and the field that has the text.
fn requests(text: &str) -> Vec<(&'static str, Value, &'static str)> {
    let tool = json!({ "type": "function", "function": { "name": "f", "description": text } });
    vec![
        ("/v1/generate", json!({ "model": "tiny", "prompt": text, "max_tokens": 1 }), "prompt"),
        ("/v1/stream", json!({ "model": "tiny", "prompt": text, "max_tokens": 1 }), "prompt"),
        ("/v1/stream/tickets", json!({ "model": "tiny", "prompt": text, "max_tokens": 1 }), "prompt"),
        ("/v1/completions", json!({ "model": "tiny", "prompt": ["a", text], "max_tokens": 1 }), "prompt[1]"),
        (
            "/v1/chat/completions",
            json!({ "model": "tiny", "messages": [{ "role": "user", "content": text }], "max_tokens": 1 }),
            "messages[0].content",
        ),
        (
            "/v1/chat/completions",
            json!({
                "model": "tiny", "messages": [{ "role": "user", "content": "a" }], "max_tokens": 1, "tools": [tool],
                "tool_choice": "none",
            }),
            "tools[0].function.description",
        ),
        (
            "/v1/chat/completions",
            json!({ "model": "tiny", "messages": [{ "role": "user", "content": [{ "type": "text", "text": text }] }], "max_tokens": 1 }),
            "messages[0].content[0].text",
        ),
        ("/v1/embeddings", json!({ "model": "encoder", "input": [text] }), "input[0]"),
        ("/v1/tokenize", json!({ "model": "tiny", "text": text }), "text"),
        ("/v1/validate", json!({ "reference": text, "candidate": "a" }), "reference"),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_with_personal_data_are_refused_by_kind_and_field() {
    let site = site("{ action: refuse }").await;
    let all = requests(MAIL);
    for (path, body, field) in &all {
        let reply = site.post(path, body.clone()).await;
        let (code, param, _) = reply.error();
        assert_eq!(
            (reply.status, code.as_str(), param.as_deref()),
            (400, "personal_data_found", Some(*field)),
            "{path}"
        );
        let text = reply.text();
        assert!(text.contains(&format!("email in `{field}`")) && !text.contains(MAIL), "{text}");
    }
    for (path, body, _) in requests("Once") {
        let reply = site.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    let reply = site.get("/v1/stream?model=tiny&max_tokens=1&prompt=ada%40example.com").await;
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "personal_data_found"));
    let unknown = site.client.send("GET", "/v1/stream?prompt=ada%40example.com", &[], b"").await;
    assert_eq!(unknown.status, 401, "nothing is searched for a client without a key");
    let found = site.metric("textnlp_pii_found_total{kind=\"email\",action=\"refuse\"}").await;
    assert_eq!(found, all.len() as f64 + 1.0);
    let tokens = site.post("/v1/completions", json!({ "model": "tiny", "prompt": [79, 110], "max_tokens": 1 })).await;
    let (code, param, _) = tokens.error();
    assert_eq!((tokens.status, code.as_str(), param.as_deref()), (400, "tokens_not_searchable", Some("prompt")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_get_masked_texts() {
    let site = site("{ action: mask, kinds: [email, card] }").await;
    for (path, body, _) in requests(MAIL) {
        let reply = site.post(path, body).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
    }
    let tokens = async |text: &str| {
        site.post("/v1/tokenize", json!({ "model": "tiny", "text": text })).await.json()["tokens"].clone()
    };
    assert_eq!(tokens("to ada@example.com").await, tokens("to [EMAIL]").await);
    // The model gets the parts of a message as one text.
    let prompt_tokens = async |texts: &[&str]| {
        let parts: Vec<Value> = texts.iter().map(|text| json!({ "type": "text", "text": text })).collect();
        let messages = json!([{ "role": "user", "content": parts }]);
        let body = json!({ "model": "tiny", "messages": messages, "max_tokens": 1 });
        site.post("/v1/chat/completions", body).await.json()["usage"]["prompt_tokens"].clone()
    };
    assert_eq!(prompt_tokens(&["to ada@exam", "ple.com now"]).await, prompt_tokens(&["to [EMAIL]", " now"]).await);
    assert_eq!(tokens("from 192.0.2.7").await.as_array().map(Vec::len), Some(14), "not a wanted kind");
    // A body that another thread parses.
    let text = format!("{}{MAIL}", "a ".repeat(50_000));
    let long = site.post("/v1/tokenize", json!({ "model": "slow", "text": text })).await.json();
    assert_eq!(long["count"], 100_000 + "[EMAIL]".len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_are_only_counted() {
    let site = site("{ action: count }").await;
    let tokenized =
        site.post("/v1/tokenize", json!({ "model": "tiny", "text": format!("{MAIL} {MAIL} 192.0.2.7") })).await;
    let text = site.post("/v1/tokenize", json!({ "model": "tiny", "tokens": tokenized.json()["tokens"] })).await;
    assert!(text.text().contains(MAIL), "{}", text.text());
    for (kind, count) in [("email", 2.0), ("ip", 1.0), ("card", 0.0)] {
        let series = format!("textnlp_pii_found_total{{kind=\"{kind}\",action=\"count\"}}");
        assert_eq!(site.metric(&series).await, count, "{kind}");
    }
    let tokens = site.post("/v1/completions", json!({ "model": "tiny", "prompt": [79, 110], "max_tokens": 1 })).await;
    assert_eq!(tokens.status, 200, "{}", tokens.text());
}

fn batch(body: &Value) -> Value {
    json!({ "endpoint": "/v1/completions", "requests": [{ "custom_id": "a", "body": body }] })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_batches_are_searched_before_they_are_stored() {
    let body = json!({ "model": "tiny", "prompt": MAIL, "max_tokens": 1 });
    let refusing = site("{ action: refuse }").await;
    let reply = refusing.post("/v1/batches", batch(&body)).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "invalid_file"));
    let text = reply.text();
    assert!(
        text.contains("line 1: the request has personal data: email in `body.prompt`") && !text.contains(MAIL),
        "{text}"
    );

    let masking = site("{ action: mask }").await;
    let created = masking.post("/v1/batches", batch(&body)).await.json();
    let path = format!("/v1/batches/{}", created["id"].as_str().unwrap());
    until("the batch has ended", async || masking.get(&path).await.json()["status"] == "completed").await;
    let input = created["input_file_id"].as_str().unwrap();
    let stored = masking.get(&format!("/v1/files/{input}/content")).await.text();
    assert!(stored.contains("[EMAIL]") && !stored.contains(MAIL), "{stored}");
    let counted = masking.metric("textnlp_pii_found_total{kind=\"email\",action=\"mask\"}").await;
    assert_eq!(counted, 1.0, "once, and not again when it runs");
}
