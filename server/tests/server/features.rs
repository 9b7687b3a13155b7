//! Feature flags: who has them, who may change them, and that a change reaches every replica and outlives it.

use serde_json::{Value, json};
use textnlp_server::config::{Config, FeatureValue};
use textnlp_server::{Server, audit, features};

use super::postgres::cluster;
use super::support::{Client, Setup, Site, config, make_key, path, start, start_in, until};

async fn admin(site: &Site) -> String {
    make_key(&site.config, json!({ "do": "create", "name": "operator", "scopes": ["admin"] })).await
}

/// What a server tells a key about its flags.
async fn flags_of(client: &Client, key: &str) -> Value {
    let reply = client.send("GET", "/v1/features", &[("x-api-key", key)], b"").await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["enabled"].clone()
}

async fn changed_everywhere(database: Option<&str>) {
    let mut site = start(Setup { database, ..Setup::default() }).await.ready().await;
    let admin = admin(&site).await;
    let acme = make_key(&site.config, json!({ "do": "create", "tenant": "acme" })).await;
    let second = Server::start(site.config.clone()).await.unwrap();
    let other = Client::new(second.address());
    assert_eq!(flags_of(&other, &acme).await, json!([]));

    let wanted = json!({ "feature": "beta", "enabled": true, "tenants": ["acme"] });
    let set = site.post_as(&admin, "/admin/features", wanted).await;
    assert_eq!(set.status, 200, "{}", set.text());
    let set = set.json();
    let by = format!("key {}", admin.split('_').nth(1).unwrap());
    assert_eq!((&set["percent"], &set["source"], &set["changed_by"]), (&json!(100), &json!("operator"), &json!(by)));
    assert_eq!(flags_of(&site.client, &acme).await, json!(["beta"]), "the replica that was asked has it at once");
    assert_eq!(flags_of(&site.client, &site.key).await, json!([]), "another tenant does not even see its name");
    until("the other replica has it", async || flags_of(&other, &acme).await == json!(["beta"])).await;

    // A rollback names nothing but the flag; the command does the same beside the database.
    let off = site.post_as(&admin, "/admin/features", json!({ "feature": "beta", "enabled": false })).await.json();
    assert_eq!((&off["enabled"], &off["tenants"]), (&json!(false), &json!(["acme"])));
    let command = json!({ "do": "set", "feature": "gamma", "enabled": true, "operator": "ada@desk" });
    let set = features(&site.config, &command.to_string()).await.unwrap();
    assert_eq!(set["changed_by"], "operator ada@desk");
    until("both replicas have both changes", async || {
        let (one, two) = (flags_of(&site.client, &acme).await, flags_of(&other, &acme).await);
        (one, two) == (json!(["gamma"]), json!(["gamma"]))
    })
    .await;

    // Both stop, and a new one knows it.
    assert!(site.drain().await && second.drain().await);
    let site = start_in(site.folder, site.config).await.ready().await;
    assert_eq!(flags_of(&site.client, &acme).await, json!(["gamma"]));
    let gone = site.send_as(&admin, "DELETE", "/admin/features/gamma", &Value::Null).await;
    assert_eq!((gone.status, &gone.json()["flag"]), (200, &Value::Null));
    let again = site.send_as(&admin, "DELETE", "/admin/features/gamma", &Value::Null).await;
    assert_eq!((again.status, again.error().0.as_str()), (404, "feature_not_found"));
    assert_eq!(flags_of(&site.client, &acme).await, json!([]));

    let log = audit(&site.config, "{}").await.unwrap();
    let of = |action: &str| -> Vec<&Value> {
        log["events"].as_array().unwrap().iter().filter(|event| event["action"] == action).collect()
    };
    let (set, cleared) = (of("feature.set"), of("feature.clear"));
    assert_eq!((set.len(), cleared.len()), (3, 1), "{log}");
    assert_eq!((&set[0]["actor_kind"], &set[0]["object"]), (&json!("key"), &json!("beta")));
    assert!(set[0]["request_id"].is_string() && set[0]["source"].is_string(), "{log}");
    let change = &set[1]["detail"];
    assert_eq!((&change["from"]["enabled"], &change["to"]["enabled"]), (&json!(true), &json!(false)));
    assert_eq!((&set[2]["actor"], &cleared[0]["detail"]["to"]), (&json!("ada@desk"), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_flag_reaches_all_replicas_and_outlives_them_on_sqlite() {
    changed_everywhere(None).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changed_flag_reaches_all_replicas_and_outlives_them_on_postgresql() {
    let Some(cluster) = cluster::shared() else { return };
    changed_everywhere(Some(&cluster.url(&cluster.database()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_model_answers_its_share_of_requests_that_name_no_model() {
    let site = start(Setup::default()).await.ready().await;
    let admin = admin(&site).await;
    let set = async |more: Value| {
        let mut wanted = json!({ "feature": "new_model", "enabled": true });
        wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = site.post_as(&admin, "/admin/features", wanted).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    let asked = [
        ("/v1/generate", json!({ "prompt": "Once", "max_tokens": 2 })),
        ("/v1/completions", json!({ "prompt": "Once", "max_tokens": 2 })),
        ("/v1/tokenize", json!({ "text": "Once" })),
    ];
    let models = async || {
        let mut models = Vec::new();
        for (path, body) in &asked {
            models.push(site.post(path, body.clone()).await.json()["model"].as_str().unwrap().to_owned());
        }
        models
    };
    assert_eq!(models().await, ["tiny"; 3]);
    set(json!({ "model": "plain" })).await;
    assert_eq!(models().await, ["plain"; 3]);
    let named = site.post("/v1/generate", json!({ "prompt": "Once", "max_tokens": 2, "model": "tiny" })).await;
    assert_eq!(named.json()["model"], "tiny", "a request that names a model gets that one");
    let encoded = site.post("/v1/embeddings", json!({ "model": "encoder", "input": "a" })).await;
    assert_eq!(encoded.status, 200, "{}", encoded.text());
    for other in [json!({ "percent": 0 }), json!({ "percent": 100, "tenants": ["acme"] }), json!({ "enabled": false })]
    {
        set(other.clone()).await;
        assert_eq!(models().await, ["tiny"; 3], "{other}");
    }
    // Sent as it stands in a runbook.
    set(json!({ "tenants": [] })).await;
    assert_eq!(models().await, ["plain"; 3]);
    let off = site.post_as(&admin, "/admin/features", json!({ "feature": "new_model", "enabled": false })).await;
    assert_eq!((off.status, models().await), (200, vec!["tiny".to_owned(); 3]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_changes_are_refused_and_change_nothing() {
    let site = start(Setup::default()).await.ready().await;
    let admin = admin(&site).await;
    let many: Vec<String> = (0..51).map(|number| format!("t{number}")).collect();
    for (wanted, field) in [
        (json!({ "enabled": true }), "feature"),
        (json!({ "feature": "beta" }), "enabled"),
        (json!({ "feature": "beta", "enabled": "yes" }), "enabled"),
        (json!({ "feature": "Beta", "enabled": true }), "feature"),
        (json!({ "feature": "", "enabled": true }), "feature"),
        (json!({ "feature": "a".repeat(65), "enabled": true }), "feature"),
        (json!({ "feature": "sso", "enabled": true }), "feature"),
        (json!({ "feature": "custom_models", "enabled": false }), "feature"),
        (json!({ "feature": "beta", "enabled": true, "percent": 101 }), "percent"),
        (json!({ "feature": "beta", "enabled": true, "percent": -1 }), "percent"),
        (json!({ "feature": "beta", "enabled": true, "tenants": ["A B"] }), "tenants"),
        (json!({ "feature": "beta", "enabled": true, "tenants": many }), "tenants"),
        (json!({ "feature": "beta", "enabled": true, "model": "plain" }), "model"),
        (json!({ "feature": "beta", "enabled": true, "percentage": 5 }), "percentage"),
        (json!({ "feature": "new_model", "enabled": true }), "model"),
        (json!({ "feature": "new_model", "enabled": true, "model": "plan" }), "model"),
        (json!({ "feature": "new_model", "enabled": true, "model": "encoder" }), "model"),
    ] {
        let reply = site.post_as(&admin, "/admin/features", wanted.clone()).await;
        assert_eq!((reply.status, reply.json()["error"]["param"].as_str()), (400, Some(field)), "{wanted}");
    }
    let large = json!({ "feature": "beta", "enabled": true, "model": "x".repeat(5000) });
    assert_eq!(site.post_as(&admin, "/admin/features", large).await.status, 413);
    for command in [
        r#"{"do":"set","feature":"sso","enabled":true}"#,
        r#"{"do":"set","feature":"beta"}"#,
        r#"{"do":"set","feature":"beta","enabled":true,"percent":300}"#,
        r#"{"do":"set","feature":"beta","enabled":true,"percent":101}"#,
        r#"{"do":"set","feature":"beta","enabled":true,"tenant":"acme"}"#,
        r#"{"do":"drop","feature":"beta"}"#,
        r#"{"do":"list","operator":"a\nb"}"#,
        "[]",
    ] {
        assert!(features(&site.config, command).await.is_err(), "{command}");
    }
    let cleared = features(&site.config, r#"{"do":"clear","feature":"beta"}"#).await.unwrap();
    assert_eq!(cleared["cleared"], json!(false));
    let all = site.send_as(&admin, "GET", "/admin/features", &Value::Null).await.json();
    assert_eq!(all, json!({ "object": "list", "data": [], "replaced": [] }));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn flags_of_the_environment_start_with_its_value_and_go_back_to_it() {
    let folder = tempfile::tempdir().unwrap();
    super::support::write_model(&path(&folder, "tiny"), super::support::Shape::default());
    let one = "default: tiny\n    serve: [ { name: tiny, path: tiny } ]";
    let on = FeatureValue { enabled: true, ..FeatureValue::off() };
    let with = |value: &FeatureValue| -> Config {
        let config = config(&folder, &Setup { models: Some(one), ..Setup::default() });
        Config { features: [("beta".to_owned(), value.clone())].into(), ..config }
    };
    let (first, later) =
        (with(&on), with(&FeatureValue { percent: 100, tenants: ["acme".into()].into(), ..on.clone() }));
    let mut site = start_in(folder, first.clone()).await;
    let admin = admin(&site).await;
    assert_eq!(flags_of(&site.client, &site.key).await, json!(["beta"]));
    site.post_as(&admin, "/admin/features", json!({ "feature": "beta", "enabled": false })).await;
    assert_eq!(flags_of(&site.client, &site.key).await, json!([]));
    // A restart with the same environment keeps the change; one with another value of this flag ends it.
    assert!(site.drain().await);
    let key = site.key.clone();
    let mut site = start_in(site.folder, first.clone()).await;
    assert_eq!(flags_of(&site.client, &key).await, json!([]));
    let cleared = site.send_as(&admin, "DELETE", "/admin/features/beta", &Value::Null).await.json();
    assert_eq!((&cleared["flag"]["enabled"], &cleared["flag"]["source"]), (&json!(true), &json!("environment")));
    assert_eq!(flags_of(&site.client, &key).await, json!(["beta"]));
    site.post_as(&admin, "/admin/features", json!({ "feature": "beta", "enabled": false })).await;
    assert!(site.drain().await);
    let acme = make_key(&first, json!({ "do": "create", "tenant": "acme" })).await;
    let site = start_in(site.folder, later).await;
    assert_eq!((flags_of(&site.client, &key).await, flags_of(&site.client, &acme).await), (json!([]), json!(["beta"])));
    let all = site.send_as(&admin, "GET", "/admin/features", &Value::Null).await.json();
    assert_eq!((&all["replaced"], &all["data"][0]["tenants"]), (&json!(["beta"]), &json!(["acme"])));
}

#[test]
fn invalid_flags_of_a_configuration_are_all_reported() {
    let text = "textnlp:\n  environment: test\n  models: { serve: [ { name: tiny, path: /nowhere } ] }\n  \
                database: { url: \"sqlite:///nowhere/a.db\" }\n  features:\n  - { name: sso }\n  - { name: Beta }\n  \
                - { name: a, percent: 101 }\n  - { name: b, tenants: [A] }\n  - { name: c, model: tiny }\n  \
                - { name: new_model, model: small }\n  - { name: d }\n  - { name: d }\n  - { name: e, share: 5 }\n";
    let problems: Vec<String> = Config::parse(text).unwrap_err().into_iter().map(|problem| problem.path).collect();
    let at = |place: usize, field: &str| format!("textnlp.features[{place}].{field}");
    let expected = [
        at(0, "name"),
        at(1, "name"),
        at(2, "percent"),
        at(3, "tenants"),
        at(4, "model"),
        at(5, "model"),
        at(7, "name"),
        at(8, "share"),
    ];
    assert_eq!(problems, expected);
}
