//! `kube-token` as kubectl runs it: variables and files go in, an ExecCredential comes out, and no secret anywhere else. Clouds are stand-ins on loopback.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod aws;
mod azure;
mod gcp;

use serde_json::{Value, json};
use textnlp_tests::stand_in::StandIn;
use textnlp_tests::{Said, Sandbox, said};

/// A folder for the tests' own programs, see `tests/src/servers.rs`.
const TESTS: &str = env!("CARGO_MANIFEST_DIR");
/// In every secret of these stories.
const SECRET: &str = "hunter2";

/// Runs `kube-token` with these variables, and no cloud but those that they name. What it says holds no secret.
#[track_caller]
fn run(sandbox: &Sandbox, args: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = sandbox.command(&[&["kube-token"], args].concat());
    // Nobody listens on port 1.
    let nobody = [
        ("AWS_EC2_METADATA_DISABLED", "true"),
        ("GCE_METADATA_HOST", "127.0.0.1:1"),
        ("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1"),
        ("PATH", sandbox.folder().as_str()),
    ];
    let said = said(command.envs(nobody).envs(variables.iter().copied()).output().unwrap());
    assert!(!format!("{}{}", said.out, said.err).contains(SECRET), "{said:?}");
    said
}

/// The token and its end.
#[track_caller]
fn token(sandbox: &Sandbox, args: &[&str], variables: &[(&str, &str)]) -> (String, String) {
    let said = run(sandbox, args, variables).expect(0);
    assert_eq!(said.err, "", "it says nothing else");
    let credential = said.json();
    assert_eq!(credential["apiVersion"], "client.authentication.k8s.io/v1");
    assert_eq!(credential["kind"], "ExecCredential");
    let text = |name: &str| credential["status"][name].as_str().unwrap_or_default().to_owned();
    (text("token"), text("expirationTimestamp"))
}

/// It fails with this status, says all of this, and prints nothing.
#[track_caller]
fn refused(sandbox: &Sandbox, args: &[&str], variables: &[(&str, &str)], exit: i32, says: &[&str]) {
    let said = run(sandbox, args, variables).expect(exit);
    assert_eq!(said.out, "");
    assert!(said.err.len() < 2000, "{}", said.err);
    for words in ["error: "].iter().chain(says) {
        assert!(said.err.contains(words), "no `{words}` in:\n{}", said.err);
    }
}

/// A file of the sandbox; its path.
fn file(sandbox: &Sandbox, name: &str, text: &str) -> String {
    let path = sandbox.folder().join(name);
    std::fs::write(&path, text).unwrap();
    path.into_string()
}

#[test]
fn exec_info_selects_the_credential_version() {
    let sandbox = Sandbox::new("kube-token");
    let google = StandIn::of(200, r#"{"access_token":"ya29.token","expires_in":3599,"token_type":"Bearer"}"#);
    let ask = |info: &str, args: &[&str]| {
        let variables = [("GCE_METADATA_HOST", google.address.as_str()), ("KUBERNETES_EXEC_INFO", info)];
        run(&sandbox, &[&["gcp"], args].concat(), &variables)
    };
    let info = |version: &str| {
        json!({ "apiVersion": version, "kind": "ExecCredential", "spec": { "interactive": false } }).to_string()
    };
    let old = "client.authentication.k8s.io/v1beta1";
    assert_eq!(ask(&info(old), &[]).expect(0).json()["apiVersion"], old);
    // For programs the same members stand in the document that every command prints; kubectl reads that too.
    let document = ask("", &["-o", "json"]).expect(0).json();
    assert_eq!(
        (&document["ok"], &document["kind"], &document["status"]["token"]),
        (&json!(true), &json!("ExecCredential"), &json!("ya29.token"))
    );

    let asked = google.requests().len();
    for (info, says) in [
        ("{", "KUBERNETES_EXEC_INFO"),
        ("\"words\"", "KUBERNETES_EXEC_INFO"),
        (&info("client.authentication.k8s.io/v1alpha1"), "v1alpha1"),
        (r#"{"apiVersion":"client.authentication.k8s.io/v1","kind":"Pod"}"#, "Pod"),
    ] {
        let said = ask(info, &[]).expect(2);
        assert!(said.out.is_empty() && said.err.contains(says), "{said:?}");
    }
    assert_eq!(google.requests().len(), asked, "nobody was asked for what nobody can read");
}

/// What a program that reads JSON gets when it fails.
fn failure(said: &Said) -> Value {
    said.json()["error"].clone()
}
