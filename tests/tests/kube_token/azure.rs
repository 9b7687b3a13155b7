//! AKS with Entra: applications, identities of pods and machines, and a person as the last.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;
use textnlp_tests::Sandbox;
use textnlp_tests::servers::token_oracle;
use textnlp_tests::stand_in::{Reply, StandIn, decoded};

use super::{TESTS, file, refused, token};

const AKS: &str = "6dae42f8-4368-4678-94ff-3960e28e3630";
const ANSWER: &str = r#"{"token_type":"Bearer","expires_in":3599,"ext_expires_in":3599,"access_token":"eyJ.entra"}"#;
const WHO: [(&str, &str); 2] = [("AZURE_CLIENT_ID", "app-1"), ("AZURE_TENANT_ID", "contoso.example")];
const SECRET: (&str, &str) = ("AZURE_CLIENT_SECRET", "hunter2~&=");

#[test]
fn azure_applications_sign_in() {
    let sandbox = Sandbox::new("kube-token");
    let entra = StandIn::of(200, ANSWER);
    let at = format!("{}/", entra.url());
    let authority = ("AZURE_AUTHORITY_HOST", at.as_str());
    let last = || entra.requests().pop().unwrap();

    assert_eq!(token(&sandbox, &["azure"], &[&WHO[..], &[authority, SECRET]].concat()).0, "eyJ.entra");
    let asked = last();
    assert_eq!(asked.line, "POST /contoso.example/oauth2/v2.0/token");
    assert_eq!(
        ["grant_type", "client_id", "client_secret", "scope"].map(|name| asked.field(name)),
        ["client_credentials", "app-1", "hunter2~&=", &format!("{AKS}/.default")]
    );

    let args = ["azure", "--tenant", "t-2", "--client-id", "app-2", "--server-id", "server-2"];
    let proof = file(&sandbox, "proof", "hunter2proof\n");
    let pod = [&WHO[..], &[authority, SECRET, ("AZURE_FEDERATED_TOKEN_FILE", &proof)]].concat();
    assert_eq!(token(&sandbox, &args, &pod).0, "eyJ.entra");
    let asked = last();
    assert_eq!(asked.line, "POST /t-2/oauth2/v2.0/token", "what was typed counts before what was set");
    assert_eq!(
        ["client_id", "client_assertion", "client_assertion_type", "scope", "client_secret"]
            .map(|name| asked.field(name)),
        ["app-2", "hunter2proof", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", "server-2/.default", ""]
    );
}

#[test]
fn azure_certificate_signs_assertions_that_its_public_key_verifies() {
    let sandbox = Sandbox::new("kube-token");
    let Some(made) = token_oracle(TESTS, "certificate", &json!({})) else { return };
    let Some(other) = token_oracle(TESTS, "certificate", &json!({})) else { return };
    let part = |name: &str| made[name].as_str().unwrap().to_owned();
    let other = other["certificate"].as_str().unwrap().to_owned();
    let entra = StandIn::of(200, ANSWER);
    let at = entra.url();
    let with = |path: &str| {
        let variables = [("AZURE_AUTHORITY_HOST", at.clone()), ("AZURE_CLIENT_CERTIFICATE_PATH", path.to_owned())];
        [WHO.map(|(name, value)| (name, value.to_owned())), variables].concat()
    };
    let mut ids = std::collections::BTreeSet::new();
    for (name, content) in [
        ("pkcs8.pem", part("pkcs8") + &part("certificate")),
        ("chain.pem", other.clone() + &part("pkcs8") + &part("certificate")),
        ("pkcs1.pem", format!("Bag Attributes\n    friendlyName: deploy\n{}{}", part("certificate"), part("pkcs1"))),
    ] {
        let path = file(&sandbox, name, &content);
        let variables = with(&path);
        let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(token(&sandbox, &["azure"], &variables).0, "eyJ.entra");
        let asked = entra.requests().pop().unwrap();
        assert_eq!(
            ["client_id", "client_assertion_type", "client_secret"].map(|name| asked.field(name)),
            ["app-1", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer", ""]
        );
        let proof = json!({ "token": asked.field("client_assertion"), "certificate": made["certificate"] });
        let claims = token_oracle(TESTS, "verify-certificate", &proof).unwrap();
        assert_eq!((&claims["iss"], &claims["sub"]), (&json!("app-1"), &json!("app-1")));
        assert_eq!(claims["aud"], format!("{at}/contoso.example/oauth2/v2.0/token"));
        assert_eq!(claims["exp"].as_i64().unwrap() - claims["nbf"].as_i64().unwrap(), 600);
        assert!(ids.insert(claims["jti"].to_string()), "an assertion is used once");
    }
    for (content, why) in [
        (part("certificate"), "it has no private key"),
        (part("certificate") + &part("encrypted"), "its private key has a password"),
        (other + &part("pkcs8"), "it has no certificate of its private key"),
    ] {
        let path = file(&sandbox, "refused.pem", &content);
        refused(&sandbox, &["azure"], &[("AZURE_CLIENT_CERTIFICATE_PATH", &path)], 2, &[why, "hint: "]);
    }
}

#[test]
fn azure_machines_services_and_users_sign_in() {
    let sandbox = Sandbox::new("kube-token");
    let machine = StandIn::of(
        200,
        json!({ "access_token": "eyJ.machine", "expires_in": "3599", "expires_on": "4070908800", "resource": AKS })
            .to_string(),
    );
    let at = machine.url();
    let metadata = ("AZURE_POD_IDENTITY_AUTHORITY_HOST", at.as_str());
    let asked = |part: &str| {
        let asked = machine.requests().pop().unwrap();
        assert!(decoded(&asked.line).contains(part), "no {part} in {asked:?}");
        asked
    };
    let found = token(&sandbox, &["azure"], &[metadata]);
    assert_eq!(found, ("eyJ.machine".to_owned(), "2099-01-01T00:00:00Z".to_owned()));
    assert_eq!(
        asked(&format!("GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource={AKS}")).header("metadata"),
        "true"
    );
    token(&sandbox, &["azure", "--client-id", "mine"], &[metadata]);
    asked("&client_id=mine");

    let endpoint = format!("{at}/msi/token");
    let service = [("IDENTITY_ENDPOINT", endpoint.as_str()), ("IDENTITY_HEADER", "hunter2header")];
    assert_eq!(token(&sandbox, &["azure"], &service).0, "eyJ.machine");
    assert_eq!(asked("GET /msi/token?api-version=2019-08-01").header("x-identity-header"), "hunter2header");

    // No machine of Azure's: whoever signed in with `az`.
    let az = |script: &str| {
        let path = file(&sandbox, "az", &format!("#!/bin/sh\n{script}\n"));
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    az(
        r#"[ "$*" = "account get-access-token --output json --resource 6dae42f8-4368-4678-94ff-3960e28e3630 --tenant t" ] || { echo "what is $*" >&2; exit 2; }
echo '{"accessToken":"eyJ.person","expiresOn":"2099-01-01 01:00:00.000000","expires_on":4070908800,"tokenType":"Bearer"}'"#,
    );
    let found = token(&sandbox, &["azure", "--tenant", "t"], &[]);
    assert_eq!(found, ("eyJ.person".to_owned(), "2099-01-01T00:00:00Z".to_owned()));
    // Somebody was named, and it is not this person.
    refused(
        &sandbox,
        &["azure", "--client-id", "mine"],
        &[],
        1,
        &["ask the metadata service http://127.0.0.1:1", "hint: "],
    );
    az("echo 'ERROR: Please run az login' >&2; echo hunter2; exit 1");
    refused(&sandbox, &["azure"], &[], 1, &["metadata service", "Please run az login", "hint: "]);
    az("echo hunter2");
    refused(&sandbox, &["azure"], &[], 1, &["az account get-access-token", "no token that a header can hold"]);
}

#[test]
fn failed_sign_in_reports_the_reason() {
    let sandbox = Sandbox::new("kube-token");
    refused(
        &sandbox,
        &["azure"],
        &[],
        1,
        &["sign in to azure", "`az` is not installed", "hint: sign in with `az login`"],
    );
    refused(&sandbox, &["azure"], &[SECRET], 2, &["neither --client-id nor AZURE_CLIENT_ID"]);
    refused(&sandbox, &["azure"], &[SECRET, WHO[0]], 2, &["neither --tenant nor AZURE_TENANT_ID"]);
    refused(&sandbox, &["azure", "--server-id", ""], &[], 2, &["--server-id", "it is empty"]);
    refused(&sandbox, &["azure", "--tenant", "a/../b"], &[], 2, &["the tenant"]);
    let wrong = file(&sandbox, "wrong.pem", "hunter2");
    let why = ["AZURE_CLIENT_CERTIFICATE_PATH", "it has no certificate in PEM format", "hint: append the certificate"];
    refused(&sandbox, &["azure"], &[("AZURE_CLIENT_CERTIFICATE_PATH", &wrong)], 2, &why);
    std::fs::write(&wrong, [0x30, 0x82, 0xff]).unwrap();
    let why = ["AZURE_CLIENT_CERTIFICATE_PATH", "it is not in PEM format", "hint: convert it: `openssl pkcs12"];
    refused(&sandbox, &["azure"], &[("AZURE_CLIENT_CERTIFICATE_PATH", &wrong)], 2, &why);
    refused(&sandbox, &["azure"], &[("IDENTITY_ENDPOINT", "http://127.0.0.1:1")], 2, &["IDENTITY_HEADER", "Arc"]);
    refused(&sandbox, &["azure"], &[("AZURE_FEDERATED_TOKEN_FILE", "/nobody/has/it")], 1, &["read /nobody/has/it"]);
    let with = |authority: &str, exit: i32, says: &[&str]| {
        refused(&sandbox, &["azure"], &[&WHO[..], &[SECRET, ("AZURE_AUTHORITY_HOST", authority)]].concat(), exit, says);
    };
    with("http://login.example", 2, &["only over https"]);
    let entra = StandIn::start(|request| {
        let said = format!("AADSTS7000215: Invalid client secret: {}\r\nTrace ID: 1", request.field("client_secret"));
        Reply::Answer(
            401,
            json!({ "error": "invalid_client", "error_description": said, "error_codes": [7_000_215] }).to_string(),
        )
    });
    with(&entra.url(), 1, &["(invalid_client)", "status 401: AADSTS7000215: Invalid client secret: *** Trace ID: 1"]);
    with(&StandIn::of(200, "garbage hunter2").url(), 1, &["no token that a header can hold"]);
    with(&StandIn::start(|_| Reply::Silence).url(), 1, &["no answer within 10 s"]);
}
