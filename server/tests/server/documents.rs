//! The description of the interface agrees with the interface, and its page needs nothing from elsewhere.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::{Setup, make_key, routes, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_document_describes_exactly_the_existing_routes() {
    let site = start(Setup::default()).await.ready().await;
    let document = site.client.send("GET", "/openapi.json", &[], b"").await.json();
    assert_eq!(
        (&document["openapi"], &document["info"]["version"]),
        (&json!("3.1.0"), &json!(env!("CARGO_PKG_VERSION")))
    );
    let routes: BTreeSet<(String, String)> =
        routes().into_iter().filter(|(path, _)| !path.starts_with("/docs/")).collect();
    let described: BTreeSet<(String, String)> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, methods)| {
            methods.as_object().unwrap().keys().map(move |method| (path.clone(), method.clone()))
        })
        .collect();
    assert_eq!(described, routes);
    assert!(routes.len() > 12);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openapi_examples_work_and_every_documented_field_is_accepted() {
    let site = start(Setup { batch: Some("{ max_pending: 1000 }"), ..Setup::default() }).await.ready().await;
    let admin = make_key(&site.config, json!({ "do": "create", "scopes": ["admin"] })).await;
    let document = site.client.send("GET", "/openapi.json", &[], b"").await.json();
    for (path, methods) in document["paths"].as_object().unwrap() {
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        if schema.is_null() {
            continue;
        }
        let mut example = schema["example"].clone();
        if path == "/auth/token" {
            example["api_key"] = json!(site.key);
        }
        if path == "/v1/embeddings" {
            example["model"] = json!("encoder");
        }
        let key = if path.starts_with("/admin/") { &admin } else { &site.key };
        let reply = site.post_as(key, path, example.clone()).await;
        assert_eq!(reply.status, 200, "{path}: {}", reply.text());
        for (name, field) in schema["properties"].as_object().unwrap() {
            // A field that is described is honoured, neutral or refused for its value, but never unknown.
            let mut body = example.clone();
            body[name] = field.get("default").cloned().unwrap_or(json!({ "odd": true }));
            let reply = site.post_as(key, path, body).await;
            assert!(!reply.text().contains("is not a known field"), "{path} {name}: {}", reply.text());
            if field.get("default").is_some() {
                assert_eq!(reply.status, 200, "{path} {name}: {}", reply.text());
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn docs_page_loads_nothing_from_other_hosts() {
    let site = start(Setup::default()).await.ready().await;
    let page = site.client.send("GET", "/docs", &[], b"").await;
    assert!(page.header("content-security-policy").unwrap().contains("default-src 'none'"));
    for path in ["/docs", "/docs/page.css", "/docs/page.js"] {
        let reply = site.client.send("GET", path, &[], b"").await;
        assert_eq!(reply.status, 200);
        assert!(!reply.text().contains("http://") && !reply.text().contains("https://"), "{path}");
    }
    assert!(page.text().contains("/docs/page.js") && page.text().contains("/docs/page.css"));
    let _: Value = site.client.send("GET", "/openapi.json", &[], b"").await.json();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn production_docs_need_a_key_and_disabled_docs_are_not_found() {
    let folder = tempfile::tempdir().unwrap();
    let pem = super::support::path(&folder, "jwt.pem");
    std::fs::write(&pem, textnlp_server::auth::jwt::generate_pem().unwrap()).unwrap();
    let security = format!("jwt_private_key_file: \"{pem}\"");
    let site = start(Setup { phase: Some("pilot"), security: &security, ..Setup::default() }).await.ready().await;
    let refused = site.client.send("GET", "/openapi.json", &[], b"").await;
    assert_eq!((refused.status, refused.error().0.as_str()), (401, "missing_api_key"));
    let narrow = make_key(&site.config, json!({ "do": "create", "scopes": ["tokenize"] })).await;
    let document = site.client.send("GET", "/openapi.json", &[("x-api-key", &narrow)], b"").await;
    assert!(document.status == 200 && document.json()["paths"]["/v1/generate"].is_object());
    let page = site.client.send("GET", "/docs", &[], b"").await;
    assert!(page.status == 200 && !page.text().contains("/v1/"), "the page itself tells nothing of the interface");
    let off = start(Setup { api: "docs: false", ..Setup::default() }).await.ready().await;
    for path in ["/openapi.json", "/docs", "/docs/page.js"] {
        assert_eq!(off.get(path).await.status, 404, "{path}");
    }
}
