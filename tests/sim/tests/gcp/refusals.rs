//! What all services refuse: tokens, APIs that are off, permissions, rates, what no document has; and lost answers.

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;
use textnlp_sim::{Disruption, Fault, Outcome, Rule};

use crate::{Client, send};

#[test]
fn a_token_is_needed_and_ends() {
    let mut client = Client::quick();
    let path = "projects/PROJECT/global/networks";
    client.get("compute", path).ok();
    client.cloud.expire_tokens();
    let refused = client.get("compute", path);
    assert_eq!(refused.status, 401);
    client.token = "other".to_owned();
    assert_eq!(client.get("compute", path).reason(), (401, "authError"));
    client.token = client.cloud.token();
    client.get("compute", path).ok();
}

#[test]
fn the_credential_file_gives_tokens() {
    let client = Client::quick();
    let variables = client.cloud.variables();
    let file = variables.iter().find(|(name, _)| name == "GOOGLE_APPLICATION_CREDENTIALS").unwrap();
    let credential: Value = serde_json::from_str(&std::fs::read_to_string(&file.1).unwrap()).unwrap();
    let text = |member: &str| credential[member].as_str().unwrap().to_owned();
    let form = format!(
        "grant_type=refresh_token&client_id={}&client_secret={}&refresh_token={}",
        text("client_id"),
        text("client_secret"),
        text("refresh_token").replace('/', "%2F")
    );
    let headers = [("content-type", "application/x-www-form-urlencoded".to_owned())];
    let granted = send("POST", &text("token_uri"), &headers, &form).ok();
    let token = granted["access_token"].as_str().unwrap();
    assert_eq!(client.cloud.email_of(token).as_deref(), Some("operator@example.com"));
    let info = format!("{}tokeninfo?access_token={token}", client.cloud.url_of("oauth2"));
    assert_eq!(send("GET", &info, &[], "").ok()["email"], "operator@example.com");
    let refused = send("POST", &text("token_uri"), &headers, "grant_type=refresh_token&refresh_token=x");
    assert_eq!((refused.status, refused.body["error"].as_str()), (400, Some("invalid_grant")));
}

#[test]
fn an_api_that_is_off_refuses_all_calls() {
    let client = Client::with(Options::zero_latency());
    let refused = client.get("compute", "projects/PROJECT/global/networks");
    assert_eq!(refused.reason(), (403, "accessNotConfigured"));
    assert_eq!(refused.body["error"]["details"][0]["reason"], "SERVICE_DISABLED");
    assert!(refused.message().contains("Compute Engine API has not been used in project 123456789012"));
}

#[test]
fn a_permission_that_the_caller_lacks_is_named() {
    let client = Client::quick();
    client.cloud.world().denied.insert("compute.networks.list".to_owned());
    let refused = client.get("compute", "projects/PROJECT/global/networks");
    assert_eq!(refused.reason(), (403, "forbidden"));
    assert!(refused.message().contains("'compute.networks.list'"));
    let body = json!({ "permissions": ["compute.networks.list", "compute.networks.get"] });
    let held = client.post("cloudresourcemanager", "v1/projects/PROJECT:testIamPermissions", body).ok();
    assert_eq!(held, json!({ "permissions": ["compute.networks.get"] }));
}

#[test]
fn too_many_requests_are_403_by_compute_and_429_by_others() {
    let client = Client::quick();
    client.cloud.world().conduct.requests_per_minute = Some(1);
    client.get("compute", "projects/PROJECT/global/networks").ok();
    let refused = client.get("compute", "projects/PROJECT/global/networks");
    assert_eq!(refused.reason(), (403, "rateLimitExceeded"));
    client.get("container", "v1/projects/PROJECT/locations/-/clusters").ok();
    let refused = client.get("container", "v1/projects/PROJECT/locations/-/clusters");
    assert_eq!(refused.status, 429);
    assert_eq!(refused.body["error"]["status"], "RESOURCE_EXHAUSTED");
    assert_eq!(refused.body["error"]["details"][0]["reason"], "RATE_LIMIT_EXCEEDED");
    client.cloud.advance(std::time::Duration::from_secs(61));
    client.get("compute", "projects/PROJECT/global/networks").ok();
}

#[test]
fn what_no_document_has_breaks_the_contract() {
    let client = Client::quick();
    let network = json!({ "name": "n", "colour": "blue" });
    assert_eq!(client.post("compute", "projects/PROJECT/global/networks", network).status, 400);
    let network = json!({ "name": "n", "mtu": "1460" });
    assert_eq!(client.post("compute", "projects/PROJECT/global/networks", network).status, 400);
    let network = json!({ "name": "n", "routingConfig": { "routingMode": "NEARBY" } });
    assert_eq!(client.post("compute", "projects/PROJECT/global/networks", network).status, 400);
    assert_eq!(client.post("compute", "projects/PROJECT/global/networks", json!({})).status, 400);
    assert_eq!(client.get("compute", "projects/PROJECT/global/networks?colour=blue").status, 400);
    assert_eq!(client.get("compute", "projects/PROJECT/nowhere").status, 404);
    assert_eq!(client.get("compute", "projects/PROJECT/global/images").status, 501);
    let violations = client.cloud.take_violations();
    assert_eq!(violations.len(), 7, "{violations:#?}");
    for (index, text) in
        ["colour", "mtu", "NEARBY", "required", "colour", "nowhere", "not simulated"].iter().enumerate()
    {
        assert!(violations[index].contains(text), "{}", violations[index]);
    }
}

#[test]
fn faults_are_injected_by_method() {
    let client = Client::quick();
    let path = "projects/PROJECT/global/networks";
    let id = "compute.networks.insert";
    let fault = Fault::new("QUOTA", "no more").status(403);
    for disruption in [Disruption::Unavailable, Disruption::Refused(fault), Disruption::LostReply] {
        client.cloud.faults().add(Rule::nth("compute", id, 1, disruption));
    }
    let insert = |name: &str| client.post("compute", path, json!({ "name": name, "autoCreateSubnetworks": false }));
    assert_eq!(insert("a").status, 503);
    assert_eq!(insert("a").reason(), (403, "QUOTA"));
    assert_eq!(insert("a").status, 0);
    // The lost one took effect.
    assert_eq!(insert("a").reason(), (409, "alreadyExists"));
    let requests = client.cloud.requests();
    assert!(requests.iter().all(|one| one.operation == id && one.account == client.cloud.project()));
    assert!(requests[2].is_lost && requests[2].outcome == Outcome::Succeeded);
}
