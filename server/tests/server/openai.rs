//! The official `openai` client for Python, and LangChain's, are contract tests: what they send is understood, what they get they can
//! read.

use std::process::{Command, Stdio};

use serde_json::json;

use super::support::{Setup, address, start, until};
use super::webhooks::{Receiver, batch, secret};

/// The interpreter of a virtual environment with this pinned package, made by `python.sh`. `None`: the test is skipped.
async fn python(package: &'static str) -> Option<String> {
    let python = tokio::task::spawn_blocking(move || interpreter(package)).await.ok().flatten();
    if python.is_none() {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI {package} must be there");
        eprintln!("\n*** SKIPPED: {package} could not be set up (python3, venv and its packages are needed) ***\n");
    }
    python
}

fn interpreter(package: &str) -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/python.sh");
    let output =
        Command::new("sh").args([script, package]).stdin(Stdio::null()).stderr(Stdio::inherit()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_openai_client_works_against_this_server() {
    let Some(python) = python("openai==3.51.0").await else { return };
    let (folder, receiver) = (tempfile::tempdir().unwrap(), Receiver::default());
    let batch = batch(&folder, &[(None, receiver.listen().await)]);
    let site = start(Setup { batch: Some(&batch), ..Setup::default() }).await.ready().await;
    let base = format!("http://{}/v1", address(site.server.as_ref().unwrap().address()));
    let mut command = Command::new(&python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_contract.py"))
        .arg(base)
        .env("OPENAI_API_KEY", &site.key);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let told = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{told}");
    assert!(told.contains("all 17 checks passed"), "{told}");
    until("the webhook has an event", async || !receiver.events().is_empty()).await;
    let event = receiver.events().remove(0);
    let headers = json!({
        "webhook-id": event.id, "webhook-timestamp": event.timestamp.to_string(), "webhook-signature": event.signature,
    });
    let mut command = Command::new(&python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/openai_webhook.py"))
        .arg(json!({ "headers": headers, "body": event.body }).to_string())
        .env("OPENAI_WEBHOOK_SECRET", secret());
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn langchain_works_against_this_server() {
    let Some(python) = python("langchain-openai==1.7.4").await else { return };
    let site = start(Setup::default()).await.ready().await;
    let base = format!("http://{}/v1", address(site.server.as_ref().unwrap().address()));
    let mut command = Command::new(&python);
    command
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/langchain_contract.py"))
        .arg(base)
        .env("OPENAI_API_KEY", &site.key);
    let output = tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    assert!(said.contains("all 11 checks passed"), "{said}");
}
