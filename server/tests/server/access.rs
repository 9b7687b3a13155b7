//! Keys, tokens, tenants, rates and budgets.

use serde_json::{Value, json};
use textnlp_server::keys;

use super::support::{Client, Reply, Setup, Site, make_key, start};

fn short() -> Value {
    json!({ "prompt": "Once", "max_tokens": 4, "ignore_end": true })
}

async fn with(site: &Site, headers: &[(&str, &str)]) -> Reply {
    let mut headers = headers.to_vec();
    headers.push(("content-type", "application/json"));
    site.client.send("POST", "/v1/generate", &headers, short().to_string().as_bytes()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_probes_tokens_and_documents_answer_without_a_credential() {
    let site = start(Setup::default()).await.ready().await;
    for (method, path) in [
        ("POST", "/v1/generate"),
        ("POST", "/v1/stream"),
        ("GET", "/v1/stream?prompt=a"),
        ("POST", "/v1/stream/tickets"),
        ("POST", "/v1/completions"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/tokenize"),
        ("POST", "/v1/validate"),
        ("GET", "/v1/models"),
        ("GET", "/v1/models/tiny"),
        ("GET", "/v1/usage"),
        ("GET", "/v1/analytics/insights"),
        ("POST", "/v1/batches"),
        ("POST", "/v1/batch"),
        ("GET", "/v1/batches"),
        ("POST", "/v1/files"),
        ("GET", "/v1/files"),
        ("GET", "/v1/files/file-1/content"),
    ] {
        let reply = site.client.send(method, path, &[], b"{}").await;
        assert_eq!((reply.status, reply.error().0.as_str()), (401, "missing_api_key"), "{path}");
        assert!(reply.header("www-authenticate").unwrap().starts_with("Bearer"));
    }
    for path in ["/health", "/ready", "/.well-known/jwks.json", "/openapi.json", "/docs"] {
        assert_eq!(site.client.send("GET", path, &[], b"").await.status, 200, "{path}");
    }
    assert_eq!(site.client.send("GET", "/metrics", &[], b"").await.status, 404, "metrics are on their own listener");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_key_is_accepted_in_either_header_and_only_exactly() {
    let site = start(Setup::default()).await.ready().await;
    let key = site.key.clone();
    let bearer = format!("Bearer {key}");
    assert_eq!(with(&site, &[("x-api-key", &key)]).await.status, 200);
    assert_eq!(with(&site, &[("authorization", &bearer)]).await.status, 200);
    assert_eq!(with(&site, &[("Authorization", &format!("bearer {key}"))]).await.status, 200);
    assert_eq!(with(&site, &[("authorization", &bearer), ("x-api-key", &key)]).await.status, 200);
    let mut last = key.clone();
    let other = if last.pop() == Some('0') { '1' } else { '0' };
    last.push(other);
    for (headers, status) in [
        (vec![("x-api-key", last.as_str())], 401),
        (vec![("x-api-key", "")], 401),
        (vec![("x-api-key", &key[..30])], 401),
        (vec![("authorization", &bearer[..bearer.len() - 1])], 401),
        (vec![("authorization", "Basic dTpw")], 401),
        (vec![("authorization", "Bearer sk-something")], 401),
        (vec![("authorization", "Bearer a.b.c")], 401),
        (vec![("authorization", &bearer), ("x-api-key", &last)], 400),
        (vec![("x-api-key", &key), ("x-api-key", &key)], 400),
    ] {
        let reply = with(&site, &headers).await;
        assert_eq!(reply.status, status, "{headers:?}: {}", reply.text());
        reply.error();
        assert!(!reply.text().contains(&key[22..]), "an answer never repeats a key");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revoked_rotated_or_expired_key_is_refused_at_once() {
    let site = start(Setup::default()).await.ready().await;
    let public = site.key.split('_').nth(1).unwrap().to_owned();
    let token = site.client.send("POST", "/auth/token", &[("x-api-key", &site.key)], b"").await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(site.post_as(&token, "/v1/generate", short()).await.status, 200);
    let rotated = keys(&site.config, &json!({ "do": "rotate", "public_id": public }).to_string()).await.unwrap();
    assert_eq!(site.post("/v1/generate", short()).await.status, 401);
    let new = rotated["key"].as_str().unwrap();
    assert_eq!(site.post_as(new, "/v1/generate", short()).await.status, 200);
    assert_eq!(
        site.post_as(&token, "/v1/generate", short()).await.status,
        401,
        "a token ends with the secret it is of"
    );
    let token = site.client.send("POST", "/auth/token", &[("x-api-key", new)], b"").await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    assert_eq!(site.post_as(&token, "/v1/generate", short()).await.status, 200);
    keys(&site.config, &json!({ "do": "revoke", "public_id": public }).to_string()).await.unwrap();
    assert_eq!(site.post_as(new, "/v1/generate", short()).await.status, 401);
    assert_eq!(site.post_as(&token, "/v1/generate", short()).await.status, 401, "a token does not outlive its key");
    let expired = make_key(&site.config, json!({ "do": "create", "expires_at": 1000 })).await;
    assert_eq!(site.post_as(&expired, "/v1/generate", short()).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_that_is_to_expire_ends_then_and_never_later() {
    let site = start(Setup::default()).await.ready().await;
    let public = site.key.split('_').nth(1).unwrap().to_owned();
    let expire = async |more: Value| {
        let mut command = json!({ "do": "expire", "public_id": public });
        command.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        keys(&site.config, &command.to_string()).await
    };
    let end = expire(json!({ "expires_in": 3600 })).await.unwrap()["expires_at"].clone();
    assert!(end.is_i64());
    assert_eq!(expire(json!({ "expires_in": 7200 })).await.unwrap()["expires_at"], end);
    assert_eq!(site.post("/v1/generate", short()).await.status, 200);
    assert!(expire(json!({})).await.is_err());
    for (field, value) in [("expires_in", 1_u64 << 50), ("expires_in", 0), ("expires_at", 1 << 50)] {
        assert!(expire(json!({ field: value })).await.is_err(), "{field} {value}");
    }
    for name in ["", " ", "a\nb", "x".repeat(201).as_str()] {
        assert!(keys(&site.config, &json!({ "do": "create", "name": name }).to_string()).await.is_err(), "{name:?}");
    }
    let named = async |name: &str, more: &str| {
        let command = format!("{{ \"do\": \"create\", \"name\": \"{name}\"{more} }}");
        keys(&site.config, &command).await.unwrap()
    };
    let (first, other) = (named("ci", "").await, named("ci", ", \"tenant\": \"acme\"").await);
    assert_eq!((&first["same_name"], &other["same_name"]), (&json!([]), &json!([])), "tenants have their own names");
    assert_eq!(named("ci", "").await["same_name"], json!([first["public_id"]]));
    assert_eq!(expire(json!({ "expires_at": 1000 })).await.unwrap()["expires_at"], 1000);
    assert_eq!(site.post("/v1/generate", short()).await.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scope_allows_its_routes_and_no_others() {
    let site = start(Setup { batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let chat = json!({ "messages": [{ "role": "user", "content": "a" }], "max_tokens": 2 });
    let asked = [
        ("generate", "POST", "/v1/generate", short()),
        ("generate", "POST", "/v1/stream", short()),
        ("generate", "GET", "/v1/stream?prompt=Once&max_tokens=2", Value::Null),
        ("generate", "POST", "/v1/stream/tickets", short()),
        ("generate", "POST", "/v1/completions", json!({ "prompt": "Once", "max_tokens": 2 })),
        ("generate", "POST", "/v1/chat/completions", chat),
        ("models", "GET", "/v1/models", Value::Null),
        ("models", "GET", "/v1/models/tiny", Value::Null),
        ("tokenize", "POST", "/v1/tokenize", json!({ "text": "Once" })),
        ("embeddings", "POST", "/v1/embeddings", json!({ "model": "encoder", "input": "a" })),
        ("validate", "POST", "/v1/validate", json!({ "reference": "a", "candidate": "a" })),
        ("usage", "GET", "/v1/usage", Value::Null),
        ("usage", "GET", "/v1/analytics/insights", Value::Null),
        ("generate", "GET", "/v1/batches", Value::Null),
        ("generate", "GET", "/v1/files", Value::Null),
        ("admin", "GET", "/admin/features", Value::Null),
    ];
    for scope in textnlp_server::auth::SCOPES {
        let key = make_key(&site.config, json!({ "do": "create", "scopes": [scope] })).await;
        let listed = keys(&site.config, r#"{"do":"list"}"#).await.unwrap();
        assert!(listed["keys"].as_array().unwrap().iter().any(|listed| listed["scopes"] == json!([scope])));
        let headers = [("x-api-key", key.as_str())];
        for (needs, method, path, body) in &asked {
            let body = if body.is_null() { String::new() } else { body.to_string() };
            let reply = site.client.send(method, path, &headers, body.as_bytes()).await;
            if needs == scope {
                assert_eq!(reply.status, 200, "{scope}: {method} {path}: {}", reply.text());
            } else {
                assert_eq!((reply.status, reply.error().0.as_str()), (403, "insufficient_scope"), "{scope}: {path}");
                assert!(reply.error().2.unwrap().contains(scope));
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn api_key_is_exchanged_for_a_publicly_verifiable_token() {
    let site = start(Setup { security: "jwt_expiry: 600", ..Setup::default() }).await.ready().await;
    let body = json!({ "api_key": site.key, "token_limit": 500, "expires_in": 60 });
    let reply = site.client.send("POST", "/auth/token", &[], body.to_string().as_bytes()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let issued = reply.json();
    assert_eq!(
        (&issued["token_type"], &issued["expires_in"], &issued["token_limit"]),
        (&json!("Bearer"), &json!(60), &json!(500))
    );
    let token = issued["token"].as_str().unwrap();
    let jwks: jsonwebtoken::jwk::JwkSet =
        serde_json::from_value(site.client.send("GET", "/.well-known/jwks.json", &[], b"").await.json()).unwrap();
    let kid = jsonwebtoken::decode_header(token).unwrap().kid.unwrap();
    let key = jsonwebtoken::DecodingKey::from_jwk(jwks.find(&kid).unwrap()).unwrap();
    let mut validation = jsonwebtoken::Validation::new(jsonwebtoken::Algorithm::RS256);
    validation.set_issuer(&["test"]);
    let claims = jsonwebtoken::decode::<Value>(token, &key, &validation).unwrap().claims;
    assert_eq!(claims["user_id"].as_str().unwrap(), site.key.split('_').nth(1).unwrap());
    assert_eq!((&claims["tenant_id"], &claims["token_limit"]), (&json!("default"), &json!(500)));
    for claim in ["exp", "iat", "jti"] {
        assert!(!claims[claim].is_null(), "{claim}");
    }
    assert_eq!(site.post_as(token, "/v1/generate", short()).await.status, 200);
    for (ask, field) in [
        (json!({}), Some("api_key")),
        (json!({ "api_key": 5 }), Some("api_key")),
        (json!({ "api_key": site.key, "token_limit": 0 }), Some("token_limit")),
        (json!({ "api_key": site.key, "token_limit": 2_000_000 }), Some("token_limit")),
        (json!({ "api_key": site.key, "expires_in": 601 }), Some("expires_in")),
        (json!({ "api_kee": site.key }), Some("api_key")),
    ] {
        let reply = site.client.send("POST", "/auth/token", &[], ask.to_string().as_bytes()).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, field), "{ask}");
    }
    let reply =
        site.client.send("POST", "/auth/token", &[], json!({ "api_key": "tnlp_wrong" }).to_string().as_bytes()).await;
    assert_eq!(reply.status, 401);
    let bearer = format!("Bearer {token}");
    let reply = site.client.send("POST", "/auth/token", &[("authorization", bearer.as_str())], b"").await;
    assert_eq!(reply.status, 401);
    assert!(reply.error().2.unwrap().contains("an API key is needed"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_budget_counts_prompt_and_output_up_to_its_limit() {
    let site = start(Setup::default()).await.ready().await;
    let issue = json!({ "api_key": site.key, "token_limit": 20 });
    let token = site.client.send("POST", "/auth/token", &[], issue.to_string().as_bytes()).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let ask = |n: u64| json!({ "prompt": "Once", "max_tokens": n, "ignore_end": true });
    let refused = site.post_as(&token, "/v1/generate", ask(17)).await;
    assert_eq!((refused.status, refused.error().0.as_str()), (403, "token_limit_exceeded"));
    assert_eq!(site.post_as(&token, "/v1/generate", ask(8)).await.status, 200, "12 of 20");
    assert_eq!(site.post_as(&token, "/v1/stream", ask(5)).await.status, 403);
    assert_eq!(site.post_as(&token, "/v1/stream", ask(4)).await.status, 200, "20 of 20");
    assert_eq!(site.post_as(&token, "/v1/generate", ask(1)).await.status, 403);
    assert_eq!(site.post("/v1/generate", ask(8)).await.status, 200, "the key itself goes on");
    // What fails costs nothing: an answer that was refused is not paid for.
    let issue = json!({ "api_key": site.key, "token_limit": 1000 });
    let token = site.client.send("POST", "/auth/token", &[], issue.to_string().as_bytes()).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let long = json!({ "prompt": "x".repeat(400), "max_tokens": 4 });
    for _ in 0..5 {
        assert_eq!(site.post_as(&token, "/v1/generate", long.clone()).await.status, 400);
    }
    assert_eq!(site.post_as(&token, "/v1/generate", ask(200)).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn key_token_limit_covers_the_key_and_all_its_bearer_tokens() {
    let site = start(Setup::default()).await.ready().await;
    let key = make_key(&site.config, json!({ "do": "create", "token_limit": 50 })).await;
    let ask = |n: u64| json!({ "prompt": "Once", "max_tokens": n, "ignore_end": true });
    let token = async || {
        let reply = site.client.send("POST", "/auth/token", &[("x-api-key", &key)], b"").await.json();
        assert_eq!(reply["token_limit"], 50);
        reply["token"].as_str().unwrap().to_owned()
    };
    let refused = async |credential: &str, n: u64, says: &str| {
        let reply = site.post_as(credential, "/v1/generate", ask(n)).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (403, "token_limit_exceeded"), "{}", reply.text());
        assert!(reply.text().contains(says), "{}", reply.text());
    };
    refused(&key, 47, "this key has 50 left of 50").await;
    assert_eq!(site.post_as(&key, "/v1/generate", ask(16)).await.status, 200, "20 of 50");
    assert_eq!(site.post_as(&token().await, "/v1/generate", ask(16)).await.status, 200, "40 of 50");
    refused(&token().await, 7, "this key has 10 left of 50").await;
    assert_eq!(site.post_as(&token().await, "/v1/stream", ask(6)).await.status, 200, "50 of 50");
    refused(&token().await, 1, "this key has 0 left of 50").await;
    refused(&key, 1, "this key has 0 left of 50").await;
    assert_eq!(site.post("/v1/generate", ask(8)).await.status, 200, "other keys go on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_requests_cannot_overspend_a_token() {
    let site = start(Setup::default()).await.ready().await;
    let issue = json!({ "api_key": site.key, "token_limit": 100 });
    let token = site.client.send("POST", "/auth/token", &[], issue.to_string().as_bytes()).await.json()["token"]
        .as_str()
        .unwrap()
        .to_owned();
    let ask = json!({ "prompt": "Once", "max_tokens": 16, "ignore_end": true });
    let replies = futures::future::join_all((0..20).map(|_| site.post_as(&token, "/v1/generate", ask.clone()))).await;
    let paid = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!(paid, 5, "five times 20 tokens");
    assert!(replies.iter().all(|reply| matches!(reply.status, 200 | 403)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rate_limit_applies_per_key_with_retry_after() {
    let site = start(Setup { security: "rate_limit: 3/hour", ..Setup::default() }).await.ready().await;
    for left in ["2", "1", "0"] {
        let reply = site.get("/v1/models").await;
        assert_eq!(reply.status, 200);
        assert_eq!((reply.header("x-ratelimit-limit"), reply.header("x-ratelimit-remaining")), (Some("3"), Some(left)));
        assert!(reply.header("x-ratelimit-reset").unwrap().parse::<u64>().unwrap() > 0);
    }
    let reply = site.post("/v1/generate", short()).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (429, "rate_limit_exceeded"));
    let after: u64 = reply.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=1200).contains(&after), "{after}");
    assert_eq!(reply.header("x-ratelimit-remaining"), Some("0"));
    let own = make_key(&site.config, json!({ "do": "create", "rate_limit": "1000/hour" })).await;
    for _ in 0..6 {
        assert_eq!(site.post_as(&own, "/v1/generate", short()).await.status, 200, "a key's own rate counts");
    }
    assert_eq!(site.client.send("GET", "/health", &[], b"").await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_credentials_are_limited_per_address_and_valid_ones_are_not() {
    let site = start(Setup::default()).await.ready().await;
    let limited = "192.0.2.7";
    let ask = async |path: &str, key: &str, address: &str| {
        let headers = [("x-api-key", key), ("x-forwarded-for", address)];
        site.client.send("GET", path, &headers, b"").await
    };
    let (mut refused, mut last) = (0, None);
    while last.is_none() && refused < 1000 {
        let reply = ask("/v1/models", "tnlp_wrong", limited).await;
        match reply.status {
            401 => refused += 1,
            _ => last = Some(reply),
        }
    }
    let reply = last.unwrap();
    assert_eq!((reply.status, reply.error().0.as_str()), (429, "authentication_limited"), "{}", reply.text());
    assert!(refused >= 60 && reply.header("retry-after").is_some(), "{refused}");
    assert!(site.metric("textnlp_authentication_failures_total").await > f64::from(refused));
    // Who has a key is not held up, nor are probes, nor other addresses.
    for _ in 0..3 {
        assert_eq!(ask("/v1/models", &site.key, limited).await.status, 200);
        assert_eq!(ask("/health", "tnlp_wrong", limited).await.status, 200);
        assert_eq!(ask("/v1/models", "tnlp_wrong", "192.0.2.8").await.status, 401);
    }
    let headers = [("x-forwarded-for", limited)];
    let sign_in = json!({ "api_key": site.key }).to_string();
    assert_eq!(site.client.send("POST", "/auth/token", &headers, sign_in.as_bytes()).await.status, 200);
    let reply = site.client.send("GET", "/v1/models", &headers, b"").await;
    assert_eq!((reply.status, reply.error().0.as_str()), (401, "missing_api_key"), "no credential is no guess");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_rate_limit_counts_used_and_not_requested_tokens() {
    let site = start(Setup::default()).await.ready().await;
    let key = make_key(&site.config, json!({ "do": "create", "token_rate_limit": "60/day" })).await;
    let ask = |n: u64| json!({ "prompt": "Once", "max_tokens": n, "ignore_end": true });
    let never = site.post_as(&key, "/v1/generate", ask(57)).await;
    assert_eq!((never.status, never.error().0.as_str()), (403, "token_rate_exceeded"));
    assert_eq!(site.post_as(&key, "/v1/generate", ask(40)).await.status, 200, "44 of 60");
    let later = site.post_as(&key, "/v1/generate", ask(40)).await;
    assert_eq!((later.status, later.error().0.as_str()), (429, "rate_limit_exceeded"));
    assert!(later.header("retry-after").is_some());
    // A stop string ends it early: the rest is given back.
    assert_eq!(site.post_as(&key, "/v1/generate", ask(10)).await.status, 200, "58 of 60");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokenize_counts_against_the_token_rate() {
    let site = start(Setup::default()).await.ready().await;
    let key = make_key(&site.config, json!({ "do": "create", "token_rate_limit": "60/day" })).await;
    let tokenize = async |body: Value| site.post_as(&key, "/v1/tokenize", body).await;
    let never = tokenize(json!({ "text": "x".repeat(61) })).await;
    assert_eq!(
        (never.status, never.error().0.as_str(), never.error().1.as_deref()),
        (403, "token_rate_exceeded", Some("text"))
    );
    assert_eq!(tokenize(json!({ "text": "x".repeat(30) })).await.status, 200, "30 of 60");
    assert_eq!(tokenize(json!({ "tokens": vec![97; 30] })).await.status, 200, "60 of 60");
    let later = tokenize(json!({ "text": "x" })).await;
    assert_eq!((later.status, later.error().0.as_str()), (429, "rate_limit_exceeded"));
    assert!(later.header("retry-after").is_some());
    assert_eq!(site.post_as(&key, "/v1/generate", short()).await.status, 429, "it is the same rate");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn credential_header_and_host_must_name_the_same_tenant() {
    let site = start(Setup::default()).await.ready().await;
    let acme = make_key(&site.config, json!({ "do": "create", "tenant": "acme" })).await;
    make_key(&site.config, json!({ "do": "create", "tenant": "globex" })).await;
    for (headers, status) in [
        (vec![], 200),
        (vec![("x-tenant-id", "acme")], 200),
        (vec![("x-tenant-id", "globex")], 403),
        (vec![("x-tenant-id", "default")], 403),
        (vec![("x-tenant-id", "nobody")], 403),
        (vec![("x-tenant-id", "../etc")], 400),
        (vec![("x-tenant-id", "a;drop table")], 400),
        (vec![("x-tenant-id", "")], 400),
        (vec![("x-tenant-id", "Acme")], 400),
        (vec![("x-tenant-id", "acme"), ("x-tenant-id", "globex")], 400),
        (vec![("host", "acme.textnlp.example.com")], 200),
        (vec![("host", "globex.textnlp.example.com")], 403),
        (vec![("host", "globex.textnlp.example.com:8443")], 403),
        (vec![("host", "www.textnlp.example.com")], 200),
        (vec![("host", "api.textnlp.example.com")], 200),
        (vec![("host", "staging.textnlp.example.com")], 200),
        (vec![("host", "10.1.2.3:8080")], 200),
        (vec![("host", "[::1]:8080")], 200),
        (vec![("host", "acme.textnlp.example.com"), ("x-tenant-id", "globex")], 400),
    ] {
        let mut with_key = headers.clone();
        with_key.push(("x-api-key", acme.as_str()));
        let reply = with(&site, &with_key).await;
        assert_eq!(reply.status, status, "{headers:?}: {}", reply.text());
    }
    for path in ["/health", "/ready", "/.well-known/jwks.json"] {
        let reply =
            site.client.send("GET", path, &[("x-tenant-id", "../etc"), ("host", "globex.example.com.org")], b"").await;
        assert_eq!(reply.status, 200, "{path} is free of the rule");
    }
    let token = site.client.send("POST", "/auth/token", &[("x-api-key", &acme)], b"").await.json();
    assert_eq!(token["tenant_id"], "acme");
    let bearer = format!("Bearer {}", token["token"].as_str().unwrap());
    assert_eq!(with(&site, &[("authorization", &bearer), ("x-tenant-id", "globex")]).await.status, 403);
    assert_eq!(with(&site, &[("authorization", &bearer), ("x-tenant-id", "acme")]).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_subdomain_of_the_base_domain_is_a_tenant() {
    let site = start(Setup { api: "base_domain: example.com", ..Setup::default() }).await.ready().await;
    let key = site.key.clone();
    for (host, status) in [
        ("default.example.com", 200),
        ("nobody.example.com", 403),
        ("a_.b.example.com", 400),
        ("www.example.com", 200),
        ("other.org", 200),
    ] {
        assert_eq!(with(&site, &[("host", host), ("x-api-key", &key)]).await.status, status, "{host}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_tenant_subdomain_is_refused_even_without_keys() {
    let setup = Setup {
        phase: Some("development"),
        api: "base_domain: example.com",
        security: "api_keys_enabled: false",
        ..Setup::default()
    };
    let site = start(setup).await.ready().await;
    make_key(&site.config, json!({ "do": "create", "tenant": "acme" })).await;
    for (host, status) in
        [("nobody.example.com", 404), ("acme.example.com", 200), ("default.example.com", 200), ("www.example.com", 400)]
    {
        let reply = with(&site, &[("host", host)]).await;
        assert_eq!(reply.status, status, "{host}");
        if status == 404 {
            assert_eq!(reply.error().0, "tenant_not_found");
        }
        if status == 400 {
            assert_eq!(reply.error().0, "tenant_required");
            assert_eq!(reply.json()["error"]["message"], "Tenant ID required");
        }
    }
    assert_eq!(with(&site, &[("host", "www.example.com"), ("x-tenant-id", "acme")]).await.status, 200);
    let key = site.key.clone();
    assert_eq!(
        with(&site, &[("host", "www.example.com"), ("x-api-key", &key)]).await.status,
        200,
        "a key has a tenant"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn development_can_disable_keys_and_then_accepts_any_credential() {
    let site = start(Setup { phase: Some("development"), security: "api_keys_enabled: false", ..Setup::default() })
        .await
        .ready()
        .await;
    for headers in [
        vec![],
        vec![("authorization", "Bearer none")],
        vec![("authorization", "Basic dTpw")],
        vec![("x-tenant-id", "acme")],
    ] {
        assert_eq!(with(&site, &headers).await.status, 200, "{headers:?}");
    }
    let revoked = format!("tnlp_0123456789abcdef_{}", "0".repeat(64));
    assert_eq!(with(&site, &[("x-api-key", &revoked)]).await.status, 401, "a key of ours that is wrong is wrong");
    assert_eq!(with(&site, &[("x-tenant-id", "A B")]).await.status, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_is_refused_where_https_is_required() {
    let site = start(Setup { api: "require_https: true", ..Setup::default() }).await.ready().await;
    let key = site.key.clone();
    let reply = with(&site, &[("x-api-key", &key)]).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (403, "https_required"));
    let reply = with(&site, &[("x-api-key", &key), ("x-forwarded-proto", "https")]).await;
    assert_eq!(reply.status, 200);
    assert!(reply.header("strict-transport-security").is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_recorded_without_prompt_or_key() {
    let mut site = start(Setup::default()).await.ready().await;
    let public = site.key.split('_').nth(1).unwrap().to_owned();
    let secret = "a-prompt-that-nobody-may-read";
    let ask = json!({ "prompt": secret, "max_tokens": 5, "ignore_end": true });
    assert_eq!(site.post("/v1/generate", ask.clone()).await.status, 200);
    assert_eq!(site.post("/v1/stream", ask).await.status, 200);
    assert_eq!(site.get("/v1/models").await.status, 200);
    let store = site.server.as_ref().unwrap().store().clone();
    super::support::until("all three are written", async || {
        store.tenant("default").usage_of(&public, 0).await.unwrap().0 == 3
    })
    .await;
    assert_eq!(store.tenant("default").usage_of(&public, 0).await.unwrap().1, 2 * (secret.len() as u64 + 5));
    site.drain().await;
    for file in std::fs::read_dir(site.folder.path())
        .unwrap()
        .flatten()
        .filter(|file| file.file_name().to_string_lossy().contains("textnlp.db"))
    {
        let bytes = std::fs::read(file.path()).unwrap();
        assert!(!bytes.windows(secret.len()).any(|part| part == secret.as_bytes()), "{:?} holds a prompt", file.path());
        let key = &site.key[22..];
        assert!(!bytes.windows(key.len()).any(|part| part == key.as_bytes()), "{:?} holds a key", file.path());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_replicas_share_keys_rate_limits_and_tokens() {
    let site = start(Setup { security: "rate_limit: 4/hour", ..Setup::default() }).await.ready().await;
    // The signing key of the first lives with it; the replicas of a site share a file.
    let pem = super::support::path(&site.folder, "jwt.pem");
    std::fs::write(&pem, textnlp_server::auth::jwt::generate_pem().unwrap()).unwrap();
    let mut config = site.config.clone();
    config.security.jwt_private_key_file = Some(pem);
    let (a, b) = (
        textnlp_server::Server::start(config.clone()).await.unwrap(),
        textnlp_server::Server::start(config).await.unwrap(),
    );
    let (one, two) = (Client::new(a.address()), Client::new(b.address()));
    let key = [("x-api-key", site.key.as_str())];
    let token = one.send("POST", "/auth/token", &key, b"").await.json()["token"].as_str().unwrap().to_owned();
    let bearer = format!("Bearer {token}");
    assert_eq!(two.send("GET", "/v1/models", &[("authorization", &bearer)], b"").await.status, 200);
    assert_eq!(one.send("GET", "/v1/models", &key, b"").await.status, 200);
    assert_eq!(two.send("GET", "/v1/models", &key, b"").await.status, 200);
    assert_eq!(one.send("GET", "/v1/models", &key, b"").await.status, 429, "four in all, wherever they went");
    assert!(a.drain().await && b.drain().await);
}
