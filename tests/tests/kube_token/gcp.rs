//! GKE: application default credentials of every kind that is known.

use serde_json::{Value, json};
use textnlp_tests::Sandbox;
use textnlp_tests::servers::token_oracle;
use textnlp_tests::stand_in::{Reply, StandIn};

use super::{TESTS, file, refused, token};

const ANSWER: &str = r#"{"access_token":"ya29.token","expires_in":3599,"token_type":"Bearer"}"#;
const FILE: &str = "GOOGLE_APPLICATION_CREDENTIALS";

/// Writes a credential file and asks by it.
#[track_caller]
fn by(sandbox: &Sandbox, credential: &Value) -> String {
    let path = file(sandbox, "credential.json", &credential.to_string());
    let (token, ends) = token(sandbox, &["gcp"], &[(FILE, &path)]);
    assert!(!ends.is_empty());
    token
}

#[test]
fn service_account_signature_is_accepted_by_googles_library() {
    let sandbox = Sandbox::new("kube-token");
    let Some(key) = token_oracle(TESTS, "key", &json!({})) else { return };
    let google = StandIn::of(200, ANSWER);
    let tokens = format!("{}/token", google.url());
    let account = json!({
        "type": "service_account", "client_email": "deploy@p.iam.gserviceaccount.com", "private_key_id": "7", "private_key": key["private"],
        "token_uri": tokens,
    });
    assert_eq!(by(&sandbox, &account), "ya29.token");
    let asked = google.requests().pop().unwrap();
    assert_eq!(
        (asked.line.as_str(), asked.field("grant_type").as_str()),
        ("POST /token", "urn:ietf:params:oauth:grant-type:jwt-bearer")
    );
    let asked = json!({ "token": asked.field("assertion"), "public": key["public"], "audience": tokens });
    let seen = token_oracle(TESTS, "verify", &asked).unwrap();
    assert_eq!((&seen["header"]["kid"], &seen["header"]["alg"]), (&json!("7"), &json!("RS256")));
    let claims = &seen["claims"];
    assert_eq!(claims["iss"], "deploy@p.iam.gserviceaccount.com");
    assert_eq!(
        claims["scope"],
        "https://www.googleapis.com/auth/cloud-platform https://www.googleapis.com/auth/userinfo.email"
    );
    assert_eq!(claims["exp"].as_i64().unwrap() - claims["iat"].as_i64().unwrap(), 3600);

    // What it answers is told, what it was shown is not.
    let says = StandIn::start(|request| {
        let said = format!("Invalid grant: {}\u{1b}[2J", request.field("assertion"));
        Reply::Answer(400, json!({ "error": "invalid_grant", "error_description": said }).to_string())
    });
    let mut account = account;
    account["token_uri"] = json!(says.url());
    let path = file(&sandbox, "credential.json", &account.to_string());
    refused(
        &sandbox,
        &["gcp"],
        &[(FILE, &path)],
        1,
        &["sign in to gcp", "invalid_grant", "Invalid grant: ***", "hint: "],
    );
}

#[test]
fn gcp_users_federated_identities_and_machines_sign_in() {
    let sandbox = Sandbox::new("kube-token");
    let google = StandIn::start(|request| match request.line.as_str() {
        line if line.contains(":generateAccessToken") => Reply::Answer(
            200,
            json!({ "accessToken": "ya29.account", "expireTime": "2099-01-01T00:00:00Z" }).to_string(),
        ),
        "GET /identity" => Reply::Answer(200, json!({ "value": "hunter2identity" }).to_string()),
        _ => Reply::Answer(200, ANSWER.to_owned()),
    });
    let at = google.url();
    let last = || google.requests().pop().unwrap();

    let person = json!({ "type": "authorized_user", "client_id": "c", "client_secret": "hunter2&=", "refresh_token": "1//hunter2", "token_uri": at });
    assert_eq!(by(&sandbox, &person), "ya29.token");
    assert_eq!(
        ["grant_type", "client_id", "client_secret", "refresh_token"].map(|name| last().field(name)),
        ["refresh_token", "c", "hunter2&=", "1//hunter2"]
    );
    // Where gcloud puts it.
    let folder = sandbox.folder().join("home/.config/gcloud");
    std::fs::create_dir_all(&folder).unwrap();
    let place = folder.join("application_default_credentials.json");
    std::fs::write(&place, person.to_string()).unwrap();
    assert_eq!(token(&sandbox, &["gcp"], &[]).0, "ya29.token");
    std::fs::remove_file(&place).unwrap();

    let subject = file(&sandbox, "subject", "hunter2subject\n");
    let mut federated = json!({
        "type": "external_account", "audience": "//iam.googleapis.com/p", "subject_token_type": "urn:ietf:params:oauth:token-type:jwt",
        "token_url": format!("{at}/v1/token"), "credential_source": { "file": subject },
    });
    assert_eq!(by(&sandbox, &federated), "ya29.token");
    assert_eq!(
        ["audience", "subject_token"].map(|name| last().field(name)),
        ["//iam.googleapis.com/p", "hunter2subject"]
    );
    let account = format!("{at}/v1/projects/-/serviceAccounts/a:generateAccessToken");
    federated["service_account_impersonation_url"] = json!(account);
    federated["credential_source"] = json!({
        "url": format!("{at}/identity"), "headers": { "metadata": "yes" }, "format": { "type": "json", "subject_token_field_name": "value" },
    });
    assert_eq!(by(&sandbox, &federated), "ya29.account");
    assert_eq!(last().header("authorization"), "Bearer ya29.token");
    let [.., source, exchange, _] = &google.requests()[..] else { panic!("three requests") };
    assert_eq!((source.header("metadata"), exchange.field("subject_token").as_str()), ("yes", "hunter2identity"));

    let becomes = json!({ "type": "impersonated_service_account", "service_account_impersonation_url": account, "source_credentials": person });
    assert_eq!(by(&sandbox, &becomes), "ya29.account");

    let (found, _) = token(&sandbox, &["gcp"], &[("GCE_METADATA_HOST", &google.address)]);
    assert_eq!(found, "ya29.token");
    let asked = last();
    assert!(asked.line.starts_with("GET /computeMetadata/v1/instance/service-accounts/default/token?"), "{asked:?}");
    assert_eq!(asked.header("metadata-flavor"), "Google");
}

#[test]
fn transient_token_error_is_retried_once() {
    let sandbox = Sandbox::new("kube-token");
    let moments = std::sync::atomic::AtomicU32::new(0);
    let google = StandIn::start(move |_| match moments.fetch_add(1, std::sync::atomic::Ordering::SeqCst) {
        0 => Reply::Answer(503, "later".to_owned()),
        _ => Reply::Answer(200, ANSWER.to_owned()),
    });
    assert_eq!(token(&sandbox, &["gcp"], &[("GCE_METADATA_HOST", &google.address)]).0, "ya29.token");
    let google = StandIn::of(503, "later");
    refused(&sandbox, &["gcp"], &[("GCE_METADATA_HOST", &google.address)], 1, &["status 503: later"]);
    assert_eq!(google.requests().len(), 2);
}

#[test]
fn failed_sign_in_reports_the_reason() {
    let sandbox = Sandbox::new("kube-token");
    refused(
        &sandbox,
        &["gcp"],
        &[],
        1,
        &["ask the metadata service 127.0.0.1:1", "hint: sign in with `gcloud auth application-default login`"],
    );
    refused(&sandbox, &["gcp"], &[(FILE, "/nobody/has/it")], 1, &["read /nobody/has/it", "hint: "]);
    refused(&sandbox, &["gcp"], &[("GCE_METADATA_HOST", "a b")], 2, &["GCE_METADATA_HOST"]);
    for (text, exit, says) in [
        ("hunter2 {", 2, "it is not JSON"),
        ("[]", 2, "its type is ``"),
        (
            r#"{"type":"gdch_service_account"}"#,
            2,
            "its type is `gdch_service_account`; supported types: service_account",
        ),
        (r#"{"type":"service_account","client_email":"a"}"#, 2, "it has no `private_key`"),
        (
            r#"{"type":"service_account","client_email":"a","private_key":"hunter2"}"#,
            2,
            "its `private_key` is not an RSA key in PEM format",
        ),
        (
            r#"{"type":"authorized_user","client_id":"c","client_secret":"s","refresh_token":"hunter2","token_uri":"http://tokens.example"}"#,
            2,
            "only over https",
        ),
        (
            r#"{"type":"external_account","audience":"a","subject_token_type":"t","token_url":"http://127.0.0.1:1","credential_source":{"environment_id":"aws1"}}"#,
            2,
            "neither a `file` nor a `url`",
        ),
        (
            r#"{"type":"impersonated_service_account","source_credentials":{"type":"impersonated_service_account"}}"#,
            2,
            "itself of type",
        ),
    ] {
        let path = file(&sandbox, "credential.json", text);
        refused(&sandbox, &["gcp"], &[(FILE, &path)], exit, &[says]);
    }
    let path = file(&sandbox, "credential.json", &"hunter2 ".repeat(100_000));
    refused(&sandbox, &["gcp"], &[(FILE, &path)], 2, &["it is not a credential file"]);

    for (status, body, says) in [
        (200, "garbage hunter2".to_owned(), "no token that a header can hold"),
        (200, String::new(), "no token that a header can hold"),
        (200, r#"{"access_token":"hunter2 hunter2"}"#.to_owned(), "no token that a header can hold"),
        (200, r#"{"access_token":"hunter2","expires_in":0}"#.to_owned(), "is already expired"),
        (200, "x".repeat(1 << 20), "longer than"),
        (302, "elsewhere".to_owned(), "status 302"),
        (404, "no account".to_owned(), "status 404: no account"),
        (
            403,
            json!({ "error": { "code": 403, "status": "PERMISSION_DENIED", "message": "not\u{7} you" } }).to_string(),
            "status 403: not you",
        ),
    ] {
        let google = StandIn::of(status, body);
        refused(&sandbox, &["gcp"], &[("GCE_METADATA_HOST", &google.address)], 1, &[says]);
    }
    let silent = StandIn::start(|_| Reply::Silence);
    refused(&sandbox, &["gcp"], &[("GCE_METADATA_HOST", &silent.address)], 1, &["no answer within 10 s"]);
}
