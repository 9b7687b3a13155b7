//! Two tenants on one server: whatever one of them sends to whichever route, it neither reads nor changes what is the other's.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use textnlp_server::auth::jwt::{Signer, generate_pem};
use textnlp_server::keys;

use super::postgres::cluster;
use super::support::{Setup, Site, make_key, path, routes, start, until};

/// What a route is, and what it is asked.
enum Route {
    /// It answers everybody the same and knows no tenants.
    Public,
    /// It takes a key in its body, and answers for the tenant of that key.
    SignIn,
    /// It answers a credential: the path with its query, and the body.
    OfTenant(&'static str, Option<Value>),
    /// The same, for keys only: it runs for longer than tokens are valid.
    OfKey(&'static str, Option<Value>),
    /// It answers for something of a tenant, `{file}` or `{batch}`: that of another tenant does not exist.
    OfId(&'static str),
    /// It changes the service for all tenants: a key with the scope `*` may not.
    OfOperator(&'static str, Option<Value>),
}

/// Every route. One that is missing here fails the test.
fn asked(method: &str, route: &str) -> Route {
    let text = || Some(json!({ "prompt": "Once", "max_tokens": 2 }));
    match (method, route) {
        ("get", "/health" | "/ready" | "/.well-known/jwks.json") => Route::Public,
        ("get", "/openapi.json" | "/docs" | "/docs/page.css" | "/docs/page.js") => Route::Public,
        ("post", "/auth/token") => Route::SignIn,
        ("post", "/v1/generate") => Route::OfTenant("/v1/generate", text()),
        ("post", "/v1/stream") => Route::OfTenant("/v1/stream", text()),
        ("get", "/v1/stream") => Route::OfTenant("/v1/stream?prompt=Once&max_tokens=2", None),
        ("post", "/v1/stream/tickets") => Route::OfTenant("/v1/stream/tickets", text()),
        ("post", "/v1/completions") => Route::OfTenant("/v1/completions", text()),
        ("post", "/v1/chat/completions") => Route::OfTenant(
            "/v1/chat/completions",
            Some(json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 2 })),
        ),
        ("post", "/v1/embeddings") => {
            Route::OfTenant("/v1/embeddings", Some(json!({ "model": "encoder", "input": "Once" })))
        }
        ("get", "/v1/models") => Route::OfTenant("/v1/models", None),
        ("get", "/v1/models/{id}") => Route::OfTenant("/v1/models/tiny", None),
        ("post", "/v1/tokenize") => Route::OfTenant("/v1/tokenize", Some(json!({ "text": "Once" }))),
        ("post", "/v1/validate") => {
            Route::OfTenant("/v1/validate", Some(json!({ "reference": "a", "candidate": "a" })))
        }
        ("get", "/v1/usage") => Route::OfTenant("/v1/usage", None),
        ("get", "/v1/analytics/insights") => Route::OfTenant("/v1/analytics/insights", None),
        ("post", "/v1/batches" | "/v1/batch") => Route::OfKey("/v1/batches", Some(batch())),
        ("get", "/v1/batches") => Route::OfTenant("/v1/batches", None),
        ("get", "/v1/batches/{id}") => Route::OfId("/v1/batches/{batch}"),
        ("post", "/v1/batches/{id}/cancel") => Route::OfId("/v1/batches/{batch}/cancel"),
        // Without a form.
        ("post", "/v1/files") => Route::OfId("/v1/files"),
        ("get", "/v1/files") => Route::OfTenant("/v1/files", None),
        ("get" | "delete", "/v1/files/{id}") => Route::OfId("/v1/files/{file}"),
        ("get", "/v1/files/{id}/content") => Route::OfId("/v1/files/{file}/content"),
        ("get", "/v1/features") => Route::OfTenant("/v1/features", None),
        ("get", "/admin/features") => Route::OfOperator("/admin/features", None),
        ("post", "/admin/features") => {
            Route::OfOperator("/admin/features", Some(json!({ "feature": "beta", "enabled": true })))
        }
        ("delete", "/admin/features/{name}") => Route::OfOperator("/admin/features/beta", None),
        other => panic!("{other:?}: a new route says here whether it belongs to a tenant"),
    }
}

fn batch() -> Value {
    let body = json!({ "prompt": "Once", "max_tokens": 2 });
    json!({ "endpoint": "/v1/completions", "requests": [{ "custom_id": "a", "body": body }] })
}

struct Tenant {
    key: String,
    id: String,
    token: String,
}

async fn tenant(site: &Site, name: &str) -> Tenant {
    let key = make_key(&site.config, json!({ "do": "create", "tenant": name, "name": format!("of {name}") })).await;
    let id = key.split('_').nth(1).unwrap().to_owned();
    let token = site.client.send("POST", "/auth/token", &[("x-api-key", &key)], b"").await.json();
    Tenant { key, id, token: token["token"].as_str().unwrap().to_owned() }
}

async fn isolated(database: Option<&str>) {
    let folder = tempfile::tempdir().unwrap();
    let pem = path(&folder, "jwt.pem");
    std::fs::write(&pem, generate_pem().unwrap()).unwrap();
    let security = format!("jwt_private_key_file: \"{pem}\"");
    let site =
        start(Setup { database, security: &security, batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let (acme, globex) = (tenant(&site, "acme").await, tenant(&site, "globex").await);
    let store = site.server.as_ref().unwrap().store().clone();

    // What globex has: a request in its usage, a key, and a ticket that it has not used.
    let ask = json!({ "prompt": "Once", "max_tokens": 3, "ignore_end": true });
    assert_eq!(site.post_as(&globex.key, "/v1/generate", ask.clone()).await.status, 200);
    let ticket = site.post_as(&globex.key, "/v1/stream/tickets", ask.clone()).await.json();
    let ticket = ticket["url"].as_str().unwrap().to_owned();
    let batch = site.post_as(&globex.key, "/v1/batches", batch()).await.json();
    let of_globex = [("{batch}", &batch["id"]), ("{file}", &batch["input_file_id"])];
    let of_globex = of_globex.map(|(place, id)| (place, id.as_str().unwrap().to_owned()));
    // Five: the token, the answer, the ticket, the batch, and its request.
    until("its usage is written", async || store.tenant("globex").usage_of(&globex.id, 0).await.unwrap().0 == 5).await;
    let used = store.tenant("globex").usage_of(&globex.id, 0).await.unwrap();
    let listed = || async { keys(&site.config, r#"{"do":"list"}"#).await.unwrap() };
    let keys_before = listed().await;

    // Tokens that this server itself signed, of a key and a tenant that do not belong together.
    let signer = Signer::new(&site.config.security).unwrap();
    let minute = std::time::Duration::from_secs(60);
    let forged = [(&acme.id, "globex"), (&globex.id, "acme")]
        .map(|(id, tenant)| format!("Bearer {}", signer.issue(id, tenant, 1000, minute, None).unwrap().0));
    let (key, token) = (format!("Bearer {}", acme.key), format!("Bearer {}", acme.token));
    let mut of_tenant = BTreeSet::new();
    for (route, method) in routes() {
        let upper = method.to_uppercase();
        let send = async |path: &str, headers: &[(&str, &str)], body: &Option<Value>| {
            let body = body.as_ref().map_or_else(String::new, Value::to_string);
            let reply = site.client.send(&upper, path, headers, body.as_bytes()).await;
            for secret in ["globex\"", globex.id.as_str(), &globex.key[22..], &ticket] {
                assert!(!reply.text().contains(secret), "{upper} {path} shows {secret}: {}", reply.text());
            }
            reply
        };
        match asked(&method, &route) {
            Route::Public => {
                let headers = [("authorization", key.as_str()), ("x-tenant-id", "globex")];
                assert_eq!(send(&route, &headers, &None).await.status, 200, "{route}");
            }
            Route::SignIn => {
                let body = Some(json!({ "api_key": acme.key }));
                let issued = send(&route, &[("x-tenant-id", "globex")], &body).await.json();
                assert_eq!((&issued["tenant_id"], &issued["user_id"]), (&json!("acme"), &json!(acme.id)));
            }
            Route::OfOperator(path, body) => {
                for credential in [&key, &token] {
                    let reply = send(path, &[("authorization", credential.as_str())], &body).await;
                    assert_eq!((reply.status, reply.error().0.as_str()), (403, "insufficient_scope"), "{upper} {path}");
                }
            }
            Route::OfKey(path, body) => {
                let reply = send(path, &[("authorization", key.as_str())], &body).await;
                assert_eq!(reply.status, 200, "{upper} {path}: {}", reply.text());
                let reply = send(path, &[("authorization", token.as_str())], &body).await;
                assert_eq!((reply.status, reply.error().0.as_str()), (403, "api_key_required"), "{upper} {path}");
                let headers = [("authorization", key.as_str()), ("x-tenant-id", "globex")];
                let reply = send(path, &headers, &body).await;
                assert_eq!((reply.status, reply.error().0.as_str()), (403, "tenant_mismatch"), "{upper} {path}");
            }
            Route::OfId(path) => {
                let unknown = path.replace("{batch}", "batch_0").replace("{file}", "file-0");
                let theirs = of_globex.iter().fold(path.to_owned(), |path, (place, id)| path.replace(place, id));
                for credential in [&key, &token] {
                    let headers = [("authorization", credential.as_str())];
                    let reply = send(&theirs, &headers, &None).await;
                    assert!(matches!(reply.status, 404 | 415), "{upper} {path}: {}", reply.text());
                    assert_eq!(reply.text(), send(&unknown, &headers, &None).await.text(), "{upper} {path}");
                }
            }
            Route::OfTenant(path, body) => {
                for credential in [&key, &token] {
                    let credential = ("authorization", credential.as_str());
                    let reply = send(path, &[credential], &body).await;
                    assert_eq!(reply.status, 200, "{upper} {path}: {}", reply.text());
                    for claim in [("x-tenant-id", "globex"), ("host", "globex.textnlp.example.com")] {
                        let reply = send(path, &[credential, claim], &body).await;
                        assert_eq!(
                            (reply.status, reply.error().0.as_str()),
                            (403, "tenant_mismatch"),
                            "{upper} {path} {claim:?}"
                        );
                    }
                }
                for forged in &forged {
                    let reply = send(path, &[("authorization", forged)], &body).await;
                    assert_eq!((reply.status, reply.error().0.as_str()), (401, "invalid_token"), "{upper} {path}");
                }
                of_tenant.insert(route);
            }
        }
    }
    assert!(of_tenant.len() >= 10, "{of_tenant:?}");

    let stolen = site.client.send("GET", &ticket, &[("authorization", &key)], b"").await;
    assert_eq!((stolen.status, stolen.error().0.as_str()), (403, "tenant_mismatch"));
    let own = site.client.send("GET", "/v1/usage", &[("authorization", &key)], b"").await.json();
    assert_eq!((&own["key"], &own["tenant"]), (&json!(acme.id), &json!("acme")));
    let seen = own["total"]["requests"].as_u64().unwrap();
    until("its own usage grows by what it asks", async || {
        store.tenant("acme").usage_of(&acme.id, 0).await.unwrap().0 > seen
    })
    .await;

    assert_eq!(store.tenant("globex").usage_of(&globex.id, 0).await.unwrap(), used);
    assert!(store.tenant("globex").file(&of_globex[1].1).await.unwrap().is_some(), "nobody deleted it");
    assert_eq!(store.tenant("acme").usage_of(&globex.id, 0).await.unwrap(), (0, 0));
    assert_eq!(listed().await, keys_before);
    assert_eq!(site.client.send("GET", &ticket, &[], b"").await.status, 200, "the ticket is still its owner's");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_isolated_on_every_route_on_sqlite() {
    isolated(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_are_isolated_on_every_route_on_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    isolated(Some(&cluster.url(&cluster.database()))).await;
}
