//! What the audit log says of who did what.

use serde_json::{Value, json};
use textnlp_server::{audit, keys};

use super::postgres::cluster;
use super::support::{Setup, start};

async fn recorded(database: Option<&str>) {
    let mut site = start(Setup { database, ..Setup::default() }).await.ready().await;
    let id = site.key.split('_').nth(1).unwrap().to_owned();
    let from = |address: &'static str, request: &'static str| [("x-forwarded-for", address), ("x-request-id", request)];
    let sign_in = json!({ "api_key": site.key }).to_string();
    let wrong = json!({ "api_key": format!("tnlp_0123456789abcdef_{}", "0".repeat(64)) }).to_string();
    for _ in 0..3 {
        let reply = site.client.send("POST", "/auth/token", &from("192.0.2.1", "first"), sign_in.as_bytes()).await;
        assert_eq!(reply.status, 200);
        let reply = site.client.send("POST", "/auth/token", &from("192.0.2.9", "bad"), wrong.as_bytes()).await;
        assert_eq!(reply.status, 401);
    }
    let headers = [("x-api-key", site.key.as_str()), ("x-tenant-id", "globex")];
    assert_eq!(site.client.send("GET", "/v1/models", &headers, b"").await.status, 403);
    let command = json!({ "do": "revoke", "public_id": id, "operator": "alice@desk" }).to_string();
    keys(&site.config, &command).await.unwrap();
    // What requests did is written by then.
    assert!(site.drain().await);

    let ask = async |after: i64, limit: u32| {
        let command = json!({ "after": after, "limit": limit, "operator": "bob@desk" }).to_string();
        audit(&site.config, &command).await.unwrap()
    };
    let all = ask(0, 1000).await;
    assert_eq!(all["next"], Value::Null);
    let rows = all["events"].as_array().unwrap();
    let row = |action: &str, outcome: &str| {
        let found: Vec<&Value> =
            rows.iter().filter(|row| row["action"] == action && row["outcome"] == outcome).collect();
        assert!(!found.is_empty(), "no {action} {outcome}: {all}");
        found[0].clone()
    };
    let created = row("key.create", "succeeded");
    assert_eq!((&created["actor_kind"], &created["object"]), (&json!("operator"), &json!(id)));
    let first = row("key.first_use", "succeeded");
    assert_eq!(
        (&first["actor"], &first["source"], &first["request_id"]),
        (&json!(id), &json!("192.0.2.1"), &json!("first"))
    );
    let signed_in = row("sign_in", "succeeded");
    assert_eq!((&signed_in["actor"], &signed_in["tenant"]), (&json!(id), &json!("default")));
    let sum = |action: &str, outcome: &str| -> i64 {
        let of = rows.iter().filter(|row| row["action"] == action && row["outcome"] == outcome);
        of.map(|row| row["count"].as_i64().unwrap()).sum()
    };
    assert_eq!((sum("sign_in", "succeeded"), sum("sign_in", "refused")), (3, 3));
    let refused = row("sign_in", "refused");
    assert_eq!(
        (&refused["actor_kind"], &refused["source"], &refused["detail"]["reason"]),
        (&json!("unknown"), &json!("192.0.2.9"), &json!("invalid_api_key"))
    );
    let mismatch = row("authenticate", "refused");
    assert_eq!((&mismatch["source"], &mismatch["detail"]["reason"]), (&json!("127.0.0.1"), &json!("tenant_mismatch")));
    let revoked = row("key.revoke", "succeeded");
    assert_eq!((&revoked["actor"], &revoked["object"]), (&json!("alice@desk"), &json!(id)));
    for action in ["database.migrate", "server.start", "server.drain"] {
        row(action, "succeeded");
    }
    assert_eq!(row("audit.export", "succeeded")["actor"], "bob@desk");
    let text = all.to_string();
    assert!(!text.contains(&site.key[22..]), "no secret is in the log");

    // Page by page it is the same; only its first page is recorded.
    let (mut after, mut pages) = (rows[0]["number"].as_i64().unwrap(), vec![rows[0].clone()]);
    loop {
        let page = ask(after, 3).await;
        pages.extend(page["events"].as_array().unwrap().clone());
        match page["next"].as_i64() {
            Some(next) => after = next,
            None => break,
        }
    }
    assert_eq!(&pages, rows);
    for command in ["{", "[]", r#"{"limit":0}"#, r#"{"limit":9999999}"#, r#"{"sinc":1}"#, r#"{"operator":"a\nb"}"#] {
        assert!(audit(&site.config, command).await.is_err(), "{command}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_log_exports_actor_action_and_origin_from_sqlite() {
    recorded(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn audit_log_exports_actor_action_and_origin_from_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    recorded(Some(&cluster.url(&cluster.database()))).await;
}
