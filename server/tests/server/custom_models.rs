//! Models of one tenant: for other clients, they are names that no model has.

use serde_json::{Value, json};

use super::support::{Reply, Setup, Site, make_key, start, until};

const MODELS: &str = "default: tiny\n    preload: [tiny]\n    serve: [ { name: tiny, path: tiny }, \
    { name: acme/own, tenant: acme, path: tiny }, { name: acme/vectors, tenant: acme, path: encoder }, \
    { name: globex/own, tenant: globex, path: plain }, { name: encoder, path: encoder } ]";

/// Every request that names a model, with this one.
fn asked(text: &str, vectors: &str) -> Vec<(&'static str, String, Value)> {
    let encoded = text.replace('/', "%2F");
    let messages = json!([{ "role": "user", "content": "a" }]);
    let post = |path: &str, body: Value| ("POST", path.to_owned(), body);
    vec![
        post("/v1/generate", json!({ "model": text, "prompt": "Once", "max_tokens": 2 })),
        post("/v1/stream", json!({ "model": text, "prompt": "Once", "max_tokens": 2 })),
        ("GET", format!("/v1/stream?model={encoded}&prompt=Once&max_tokens=2"), Value::Null),
        post("/v1/completions", json!({ "model": text, "prompt": "Once", "max_tokens": 2 })),
        post("/v1/completions", json!({ "model": text, "prompt": "Once", "max_tokens": 2, "stream": true })),
        post("/v1/chat/completions", json!({ "model": text, "messages": messages, "max_tokens": 2 })),
        post("/v1/tokenize", json!({ "model": text, "text": "Once" })),
        post("/v1/embeddings", json!({ "model": vectors, "input": "Once" })),
        ("GET", format!("/v1/models/{text}"), Value::Null),
        ("GET", format!("/v1/models/{encoded}"), Value::Null),
    ]
}

async fn send(site: &Site, key: &str, (method, path, body): &(&str, String, Value)) -> Reply {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let credential = format!("Bearer {key}");
    site.client.send(method, path, &[("authorization", &credential)], body.as_bytes()).await
}

/// All of an answer, with another word for the name in it.
fn shown(reply: &Reply, name: &str) -> (u16, Vec<(String, String)>, String) {
    let is_of_request = |header: &str| ["date", "x-request-id"].contains(&header);
    let headers = reply.headers.iter().filter(|(header, _)| !is_of_request(header)).cloned().collect();
    (reply.status, headers, reply.text().replace(name, "NAME"))
}

async fn key_of(site: &Site, tenant: &str) -> String {
    make_key(&site.config, json!({ "do": "create", "tenant": tenant })).await
}

async fn listed(site: &Site, key: &str) -> Vec<(String, String, String)> {
    let models = site.send_as(key, "GET", "/v1/models", &Value::Null).await.json();
    let text = |model: &Value, field: &str| model[field].as_str().unwrap().to_owned();
    let models = models["data"].as_array().unwrap().iter();
    models.map(|model| (text(model, "id"), text(model, "owned_by"), text(model, "state"))).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_of_a_tenant_is_unknown_to_others_in_every_endpoint() {
    let site = start(Setup { models: Some(MODELS), ..Setup::default() }).await.ready().await;
    let (acme, globex) = (key_of(&site, "acme").await, key_of(&site, "globex").await);
    let own = asked("acme/own", "acme/vectors");
    // As long as the names, so that no header tells them apart by the length of the body.
    let absent = asked("acme/0wn", "acme/vect0rs");
    for key in [&globex, &site.key] {
        for (request, unknown) in own.iter().zip(&absent) {
            let names =
                if request.1 == "/v1/embeddings" { ["acme/vectors", "acme/vect0rs"] } else { ["acme/own", "acme/0wn"] };
            let (theirs, none) = (send(&site, key, request).await, send(&site, key, unknown).await);
            assert_eq!((theirs.status, theirs.error().0.as_str()), (404, "model_not_found"), "{request:?}");
            assert_eq!(shown(&theirs, names[0]), shown(&none, names[1]), "{request:?}");
            let hint = theirs.error().2.unwrap();
            assert!(!hint.contains("acme") && hint.contains("tiny"), "{hint}");
        }
    }
    // A ticket has the rights of its key.
    let ask = json!({ "model": "acme/own", "prompt": "Once", "max_tokens": 2 });
    let streamed = async |key: &str| {
        let ticket = site.post_as(key, "/v1/stream/tickets", ask.clone()).await.json();
        site.client.send("GET", ticket["url"].as_str().unwrap(), &[], b"").await
    };
    let refused = streamed(&globex).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (404, "model_not_found"), "{}", refused.text());

    let of = |model: &str, owner: &str, state: &str| (model.to_owned(), owner.to_owned(), state.to_owned());
    let (tiny, encoder) = (of("tiny", "textnlp", "ready"), of("encoder", "textnlp", "not loaded"));
    assert_eq!(listed(&site, &site.key).await, [tiny.clone(), encoder.clone()]);
    let of_globex = of("globex/own", "globex", "not loaded");
    assert_eq!(listed(&site, &globex).await, [tiny.clone(), of_globex, encoder.clone()]);
    let of_acme = [of("acme/own", "acme", "not loaded"), of("acme/vectors", "acme", "not loaded")];
    let [text, vectors] = of_acme;
    assert_eq!(listed(&site, &acme).await, [tiny, text, vectors, encoder], "requests of others loaded nothing");

    for request in &own {
        let reply = send(&site, &acme, request).await;
        assert_eq!(reply.status, 200, "{request:?}: {}", reply.text());
    }
    assert_eq!(streamed(&acme).await.status, 200);
    let token = site.client.send("POST", "/auth/token", &[("x-api-key", &acme)], b"").await.json();
    let answered = send(&site, token["token"].as_str().unwrap(), &own[0]).await.json();
    assert_eq!(answered["model"], "acme/own");
    until("the tokens are counted", async || {
        site.metric("textnlp_tokens_generated_total{model=\"acme/own\"").await > 0.0
    })
    .await;
    // Loaded by now, they are still unknown to others.
    for (request, unknown) in own.iter().zip(&absent).filter(|(request, _)| request.1 != "/v1/embeddings") {
        let (theirs, none) = (send(&site, &globex, request).await, send(&site, &globex, unknown).await);
        assert_eq!(shown(&theirs, "acme/own"), shown(&none, "acme/0wn"), "{request:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_of_a_tenant_is_neither_default_nor_suggested_nor_that_of_a_feature() {
    let site = start(Setup { models: Some(MODELS), ..Setup::default() }).await.ready().await;
    let (acme, globex) = (key_of(&site, "acme").await, key_of(&site, "globex").await);
    let usual = site.post_as(&acme, "/v1/generate", json!({ "prompt": "Once", "max_tokens": 2 })).await.json();
    assert_eq!(usual["model"], "tiny");
    // What else there is for embeddings.
    for (key, hint) in [(&acme, "acme/vectors, encoder"), (&globex, ": encoder")] {
        let reply = site.post_as(key, "/v1/embeddings", json!({ "model": "tiny", "input": "a" })).await;
        let told = reply.error().2.unwrap();
        assert!(told.ends_with(hint), "{told}");
    }
    // A typing error is corrected for the owner only.
    for (key, is_told) in [(&acme, true), (&globex, false)] {
        let reply = site.post_as(key, "/v1/generate", json!({ "model": "acme/owm", "prompt": "a" })).await;
        assert_eq!(reply.error().2.unwrap() == "did you mean `acme/own`?", is_told, "{}", reply.text());
    }
    let admin = make_key(&site.config, json!({ "do": "create", "scopes": ["admin"] })).await;
    let set = async |model: &str| {
        let wanted = json!({ "feature": "new_model", "enabled": true, "model": model });
        let reply = site.post_as(&admin, "/admin/features", wanted).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("model")), "{}", reply.text());
        reply.text().replace(model, "NAME")
    };
    assert_eq!(set("acme/own").await, set("acme/0wn").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readiness_does_not_name_the_model_of_a_tenant() {
    let models = "default: tiny\n    preload: [tiny, acme/own]\n    \
                  serve: [ { name: tiny, path: tiny }, { name: acme/own, tenant: acme, path: absent } ]";
    let site = start(Setup { models: Some(models), ..Setup::default() }).await;
    let mut told = String::new();
    until("the model has failed", async || {
        let reply = site.client.send("GET", "/ready", &[], b"").await;
        told.push_str(&reply.text());
        reply.text().contains("failing")
    })
    .await;
    assert!(told.contains("a model of one tenant") && !told.contains("acme"), "{told}");
}
