//! Policies, service accounts, projects and tokens of service accounts.

use std::time::Duration;

use serde_json::{Value, json};
use textnlp_sim::gcp::Options;

use crate::{Answer, Client};

const ACCOUNTS: &str = "v1/projects/PROJECT/serviceAccounts";
const PROJECT: &str = "v1/projects/PROJECT";

fn address(client: &Client, id: &str) -> String {
    format!("{id}@{}.iam.gserviceaccount.com", client.cloud.project())
}

fn account(client: &Client, id: &str) -> Value {
    client.post("iam", ACCOUNTS, json!({ "accountId": id, "serviceAccount": { "displayName": "d" } })).ok()
}

fn policy(client: &Client) -> Value {
    let options = json!({ "options": { "requestedPolicyVersion": 3 } });
    client.post("cloudresourcemanager", &format!("{PROJECT}:getIamPolicy"), options).ok()
}

fn set(client: &Client, policy: &Value) -> Answer {
    client.post("cloudresourcemanager", &format!("{PROJECT}:setIamPolicy"), json!({ "policy": policy }))
}

fn grant(client: &Client, role: &str, member: &str) -> Answer {
    let mut policy = policy(client);
    policy["bindings"].as_array_mut().unwrap().push(json!({ "role": role, "members": [member] }));
    set(client, &policy)
}

#[test]
fn a_stale_etag_is_aborted() {
    let client = Client::quick();
    let first = policy(&client);
    grant(&client, "roles/viewer", "user:a@example.com").ok();
    let refused = set(&client, &first);
    assert_eq!((refused.reason(), refused.body["error"]["status"].as_str()), ((409, "aborted"), Some("ABORTED")));
    client.cloud.world().conduct.foreign_writers = 1;
    assert_eq!(grant(&client, "roles/viewer", "user:b@example.com").status, 409);
    grant(&client, "roles/viewer", "user:b@example.com").ok();
    // Without an etag it replaces.
    set(&client, &json!({ "bindings": [{ "role": "roles/owner", "members": ["user:operator@example.com"] }] })).ok();
    assert_eq!(policy(&client)["bindings"].as_array().unwrap().len(), 1);
}

#[test]
fn a_condition_makes_version_3() {
    let client = Client::quick();
    let mut wanted = policy(&client);
    let condition = json!({ "title": "t", "expression": "true" });
    wanted["bindings"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "role": "roles/viewer", "members": ["user:a@example.com"], "condition": condition }));
    assert_eq!(set(&client, &wanted).reason(), (400, "badRequest"));
    wanted["version"] = 3.into();
    set(&client, &wanted).ok();
    let refused = client.post("cloudresourcemanager", &format!("{PROJECT}:getIamPolicy"), json!({}));
    assert!(refused.message().contains("cannot be less than the existing policy version (3)"));
    assert_eq!(policy(&client)["version"], 3);
    assert_eq!(client.get("cloudresourcemanager", "v3/projects/PROJECT").ok()["state"], "ACTIVE");
    assert_eq!(
        client.get("cloudresourcemanager", "v1/projects/123456789012").ok()["projectId"],
        client.cloud.project()
    );
    assert_eq!(client.get("cloudresourcemanager", "v1/projects/other").status, 403);
}

#[test]
fn members_have_to_exist() {
    let client = Client::quick();
    let member = format!("serviceAccount:{}", address(&client, "missing"));
    let refused = grant(&client, "roles/viewer", &member);
    assert!(refused.status == 400 && refused.message().contains("does not exist"), "{}", refused.body);
    let agent = "service-123456789012@gcp-sa-artifactregistry.iam.gserviceaccount.com";
    assert_eq!(grant(&client, "roles/viewer", &format!("serviceAccount:{agent}")).status, 400);
    let path = "v1beta1/projects/PROJECT/services/artifactregistry.googleapis.com:generateServiceIdentity";
    let made = client.post("serviceusage", path, Value::Null).ok();
    assert_eq!(made["response"]["email"], agent);
    grant(&client, "roles/viewer", &format!("serviceAccount:{agent}")).ok();
    let pool = format!("serviceAccount:{}.svc.id.goog[ns/name]", client.cloud.project());
    let refused = grant(&client, "roles/iam.workloadIdentityUser", &pool);
    assert!(refused.message().contains("Identity Pool does not exist"));
    let project = client.cloud.project().to_owned();
    client.cloud.world().projects.get_mut(&project).unwrap().has_identity_pool = true;
    grant(&client, "roles/iam.workloadIdentityUser", &pool).ok();
    client.cloud.world().enforce(&project, "iam.allowedPolicyMemberDomains");
    let refused = grant(&client, "roles/viewer", "allUsers");
    assert_eq!(refused.body["error"]["details"][0]["@type"], "type.googleapis.com/google.rpc.PreconditionFailure");
    let body = json!({ "constraint": "constraints/iam.allowedPolicyMemberDomains" });
    let effective = client.post("cloudresourcemanager", &format!("{PROJECT}:getEffectiveOrgPolicy"), body).ok();
    assert_eq!(effective["listPolicy"]["allValues"], "DENY");
}

#[test]
fn a_new_account_is_seen_late() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.account_lag = 300..301;
    account(&client, "account");
    let path = format!("{ACCOUNTS}/{}", address(&client, "account"));
    let statuses: Vec<u16> = (0..12).map(|_| client.get("iam", &path).status).collect();
    assert!(statuses.iter().any(|status| [403, 404].contains(status)), "{statuses:?}");
    client.cloud.advance(Duration::from_secs(300));
    assert_eq!(client.get("iam", &path).ok()["displayName"], "d");
    let patch = json!({ "serviceAccount": { "description": "x" }, "updateMask": "description" });
    assert_eq!(client.call("PATCH", "iam", &path, patch).ok()["description"], "x");
    assert_eq!(client.get("iam", ACCOUNTS).ok()["accounts"].as_array().unwrap().len(), 1);
    assert_eq!(client.post("iam", ACCOUNTS, json!({ "accountId": "account" })).reason(), (409, "alreadyExists"));
    assert_eq!(client.post("iam", ACCOUNTS, json!({ "accountId": "abc" })).status, 400);
}

#[test]
fn an_unknown_account_is_forbidden() {
    let client = Client::quick();
    let refused = client.get("iam", &format!("{ACCOUNTS}/{}", address(&client, "missing")));
    assert_eq!(refused.status, 403);
    assert_eq!(refused.body["error"]["details"][0]["reason"], "IAM_PERMISSION_DENIED");
    assert_eq!(client.get("iam", ACCOUNTS).ok(), json!({}));
}

#[test]
fn a_deleted_account_stays_in_policies_and_can_be_restored() {
    let client = Client::quick();
    let first = account(&client, "account");
    let member = format!("serviceAccount:{}", address(&client, "account"));
    grant(&client, "roles/viewer", &member).ok();
    let path = format!("v1/{}", first["name"].as_str().unwrap());
    client.call("DELETE", "iam", &path, Value::Null).ok();
    let uid = first["uniqueId"].as_str().unwrap();
    let deleted = format!("deleted:{member}?uid={uid}");
    assert_eq!(policy(&client)["bindings"][1]["members"][0], deleted.as_str());
    let restored = client.post("iam", &format!("{ACCOUNTS}/{uid}:undelete"), json!({})).ok();
    assert_eq!(restored["restoredAccount"]["email"], first["email"]);
    assert_eq!(policy(&client)["bindings"][1]["members"][0], member.as_str());
    client.call("DELETE", "iam", &path, Value::Null).ok();
    let second = account(&client, "account");
    assert_ne!(first["uniqueId"], second["uniqueId"]);
    assert_eq!(policy(&client)["bindings"][1]["members"][0], deleted.as_str());
}

#[test]
fn tokens_of_an_account_need_a_grant_in_effect() {
    let client = Client::with(Options::default().enabled());
    client.cloud.world().conduct.account_lag = 0..0;
    client.cloud.world().conduct.grant_lag = 120..121;
    account(&client, "account");
    let email = address(&client, "account");
    let path = format!("v1/projects/-/serviceAccounts/{email}:generateAccessToken");
    let body = json!({ "scope": ["https://www.googleapis.com/auth/cloud-platform"], "lifetime": "600s" });
    assert_eq!(client.post("iamcredentials", &path, body.clone()).status, 403);
    let policy = json!({ "policy": { "bindings": [{ "role": "roles/iam.serviceAccountTokenCreator",
        "members": ["user:operator@example.com"] }] } });
    client.post("iam", &format!("{ACCOUNTS}/{email}:setIamPolicy"), policy).ok();
    let read = client
        .call("POST", "iam", &format!("{ACCOUNTS}/{email}:getIamPolicy?options.requestedPolicyVersion=3"), Value::Null)
        .ok();
    assert_eq!(read["bindings"].as_array().unwrap().len(), 1);
    assert_eq!(client.post("iamcredentials", &path, body.clone()).status, 403);
    client.cloud.advance(Duration::from_secs(120));
    let made = client.post("iamcredentials", &path, body).ok();
    let token = made["accessToken"].as_str().unwrap().to_owned();
    assert_eq!(client.cloud.email_of(&token).as_deref(), Some(email.as_str()));
    // It may do nothing without a role.
    let mut other = client;
    let mine = std::mem::replace(&mut other.token, token.clone());
    assert_eq!(other.get("compute", "projects/PROJECT/global/networks").reason(), (403, "forbidden"));
    other.token = mine;
    grant(&other, "roles/editor", &format!("serviceAccount:{email}")).ok();
    other.cloud.advance(Duration::from_secs(120));
    other.token = token;
    other.get("compute", "projects/PROJECT/global/networks").ok();
}
