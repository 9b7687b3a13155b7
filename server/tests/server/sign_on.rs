//! Access tokens of an OpenID Connect provider: a certified implementation issues them.

use std::process::Command;

use serde_json::{Value, json};
use textnlp_server::keys;

use super::servers::{Server, oidc};
use super::support::{Reply, Setup, Site, start};

const TESTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests");
const AUDIENCE: &str = "urn:textnlp";

/// The configuration for a provider.
fn settings(provider: &Server) -> String {
    format!(
        "oidc: {{ issuer: \"{}\", audience: \"{AUDIENCE}\", tenant_claim: tenant, roles_claim: access.roles, \
         roles: [ {{ role: writers, scopes: [generate, models] }}, {{ role: operators, scopes: [\"*\", admin] }} ] }}",
        provider.address
    )
}

/// A token of a client for an audience.
fn token(provider: &Server, client: &str, audience: &str) -> String {
    let secret = format!("{client}:secret%20of%20{client}");
    let fields = ["grant_type=client_credentials".to_owned(), format!("resource={audience}")];
    let mut command = Command::new("curl");
    command.args(["--silent", "--show-error", "--fail", "--user", &secret]);
    for field in &fields {
        command.args(["--data", field]);
    }
    let answer = command.arg(format!("{}/token", provider.address)).output().unwrap();
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    let answer: Value = serde_json::from_slice(&answer.stdout).unwrap();
    answer["access_token"].as_str().unwrap().to_owned()
}

async fn generate(site: &Site, token: &str) -> Reply {
    site.post_as(token, "/v1/generate", json!({ "prompt": "Once", "max_tokens": 4, "ignore_end": true })).await
}

/// Waits until the server has read the provider's keys.
async fn known(site: &Site, token: &str) -> Reply {
    for _ in 0..200 {
        let reply = generate(site, token).await;
        if reply.status != 503 {
            return reply;
        }
        assert_eq!(reply.error().0, "identity_provider_unavailable");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the keys of the provider were never read");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_of_an_identity_provider_are_accepted_for_their_tenant_and_roles() {
    let Some(provider) = oidc(TESTS) else { return };
    let site = start(Setup { security: &settings(&provider), ..Setup::default() }).await.ready().await;
    let writer = token(&provider, "writer", AUDIENCE);

    let reply = known(&site, &writer).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (403, "tenant_not_found"), "{}", reply.text());
    keys(&site.config, &json!({ "do": "create", "name": "first", "tenant": "acme" }).to_string()).await.unwrap();
    let reply = generate(&site, &writer).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    assert_eq!(site.send_as(&writer, "GET", "/v1/models", &Value::Null).await.status, 200);
    // A role gives what it lists, and nothing else.
    for (path, body) in [("/v1/tokenize", json!({ "text": "a" })), ("/v1/embeddings", json!({ "input": "a" }))] {
        let reply = site.post_as(&writer, path, body).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (403, "insufficient_scope"), "{path}: {}", reply.text());
    }
    for client in ["guest", "lost"] {
        let reply = generate(&site, &token(&provider, client, AUDIENCE)).await;
        let code = if client == "guest" { "insufficient_scope" } else { "no_tenant" };
        assert_eq!((reply.status, reply.error().0.as_str()), (403, code), "{client}: {}", reply.text());
    }
    // API keys and tokens of the server itself work as before.
    assert_eq!(generate(&site, &site.key).await.status, 200);
    let own = site.client.send("POST", "/auth/token", &[("x-api-key", &site.key)], b"").await.json();
    assert_eq!(generate(&site, own["token"].as_str().unwrap()).await.status, 200);
    // A stream needs no credential in its address.
    let ticket = site.post_as(&writer, "/v1/stream/tickets", json!({ "prompt": "Once", "max_tokens": 4 })).await.json();
    let stream = site.client.send("GET", ticket["url"].as_str().unwrap(), &[], b"").await;
    assert_eq!(stream.status, 200, "{}", stream.text());
    // What is recorded of a person is a name that says nothing about it, in the tenant of the token.
    keys(&site.config, &json!({ "do": "create", "name": "second", "tenant": "acme" }).to_string()).await.unwrap();
    let metrics = site.metrics.send("GET", "/metrics", &[], b"").await.text();
    assert!(metrics.contains("user=\"oidc-") && !metrics.contains("writer"), "{metrics}");
    assert_eq!(site.metric("textnlp_authentication_failures_total").await, 0.0, "no guess was made");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_tokens_and_those_for_others_are_refused() {
    let Some(provider) = oidc(TESTS) else { return };
    let site = start(Setup { security: &settings(&provider), ..Setup::default() }).await.ready().await;
    keys(&site.config, &json!({ "do": "create", "name": "first", "tenant": "acme" }).to_string()).await.unwrap();
    let writer = token(&provider, "writer", AUDIENCE);
    assert_eq!(known(&site, &writer).await.status, 200);

    let refused = async |token: &str, why: &str| {
        let reply = generate(&site, token).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (401, "invalid_token"), "{why}: {}", reply.text());
        assert!(reply.header("www-authenticate").is_some(), "{why}");
        reply.text()
    };
    let other = refused(&token(&provider, "writer", "urn:other"), "another audience").await;
    assert!(other.contains("another service") && other.contains(AUDIENCE), "{other}");
    let parts: Vec<&str> = writer.split('.').collect();
    let part = |text: &str| base64(text.as_bytes());
    let payload = |change: &dyn Fn(&mut Value)| {
        let mut claims: Value = serde_json::from_slice(&decoded(parts[1])).unwrap();
        change(&mut claims);
        part(&claims.to_string())
    };
    let elevated = payload(&|claims| claims["access"]["roles"] = json!(["operators"]));
    refused(&format!("{}.{elevated}.{}", parts[0], parts[2]), "changed claims").await;
    refused(&format!("{}.{elevated}.", part(r#"{"alg":"none","typ":"JWT"}"#)), "no signature").await;
    refused(&format!("{}.{elevated}.{}", part(r#"{"alg":"HS256","typ":"JWT"}"#), parts[2]), "a shared secret").await;
    refused(&format!("{}.{}.{}", part(r#"{"alg":"RS256","kid":"unknown"}"#), parts[1], parts[2]), "an unknown key")
        .await;
    let crit = r#"{"alg":"RS256","crit":["x"],"x":1}"#;
    refused(&format!("{}.{}.{}", part(crit), parts[1], parts[2]), "an extension").await;
    refused(&format!("{}.{}.{}", part(r#"{"alg":"RS256","typ":"logout+jwt"}"#), parts[1], parts[2]), "a logout token")
        .await;
    // Of an issuer that is not configured it is no token of the provider.
    let elsewhere = payload(&|claims| claims["iss"] = json!("https://elsewhere.example"));
    refused(&format!("{}.{elsewhere}.{}", parts[0], parts[2]), "another issuer").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_of_a_tenant_reaches_its_models_and_those_of_others_do_not_exist() {
    let Some(provider) = oidc(TESTS) else { return };
    let models = "default: tiny\n    preload: [tiny]\n    serve: [ { name: tiny, path: tiny }, \
        { name: acme/own, tenant: acme, path: tiny }, { name: globex/own, tenant: globex, path: tiny } ]";
    let setup = Setup { models: Some(models), security: &settings(&provider), ..Setup::default() };
    let site = start(setup).await.ready().await;
    for tenant in ["acme", "globex"] {
        keys(&site.config, &json!({ "do": "create", "name": tenant, "tenant": tenant }).to_string()).await.unwrap();
    }
    let writer = token(&provider, "writer", AUDIENCE);
    assert_eq!(known(&site, &writer).await.status, 200);
    let by = async |model: &str| {
        site.post_as(&writer, "/v1/generate", json!({ "model": model, "prompt": "Once", "max_tokens": 2 })).await
    };
    let own = by("acme/own").await;
    assert_eq!(own.status, 200, "{}", own.text());
    assert_eq!(own.json()["model"], "acme/own");
    let (theirs, none) = (by("globex/own").await, by("globex/0wn").await);
    assert_eq!((theirs.status, theirs.error().0.as_str()), (404, "model_not_found"), "{}", theirs.text());
    assert_eq!(
        (none.status, theirs.text().replace("globex/own", "NAME")),
        (404, none.text().replace("globex/0wn", "NAME"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_keys_of_the_provider_are_read_when_a_token_has_one() {
    let Some(provider) = oidc(TESTS) else { return };
    let site = start(Setup { security: &settings(&provider), ..Setup::default() }).await.ready().await;
    keys(&site.config, &json!({ "do": "create", "name": "first", "tenant": "acme" }).to_string()).await.unwrap();
    let old = token(&provider, "writer", AUDIENCE);
    assert_eq!(known(&site, &old).await.status, 200);
    let rotated = Command::new("curl")
        .args(["--silent", "--fail", "-X", "POST", &format!("{}/rotate", provider.address)])
        .status();
    assert!(rotated.unwrap().success());
    let new = token(&provider, "writer", AUDIENCE);
    // The keys were read a moment ago, and are read again 20 s later at the earliest.
    let began = std::time::Instant::now();
    while generate(&site, &new).await.status != 200 {
        assert!(began.elapsed().as_secs() < 90, "the new key was never read");
        tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    }
    assert_eq!(generate(&site, &old).await.error().0, "invalid_token", "the old key is not published any more");
}

fn base64(bytes: &[u8]) -> String {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

fn decoded(text: &str) -> Vec<u8> {
    use ::base64::Engine as _;
    ::base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(text).unwrap()
}
