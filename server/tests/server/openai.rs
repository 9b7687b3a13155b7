//! The official `openai` client for Python is a contract test: what it sends is understood, what it gets it can read.

use std::process::{Command, Stdio};

use serde_json::json;

use super::support::{Setup, address, start, until};
use super::webhooks::{Receiver, batch, secret};

/// The interpreter of a virtual environment with the pinned packages, made by `python.sh`.
fn python() -> Option<String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/python.sh");
    let output = Command::new("sh")
        .args([script, "openai==3.51.0"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn official_openai_client_works_against_this_server() {
    let Ok(Some(python)) = tokio::task::spawn_blocking(python).await else {
        assert!(std::env::var("CI").as_deref() != Ok("true"), "in CI the official client must be there");
        eprintln!(
            "\n*** SKIPPED: the official openai client could not be set up (python3, venv and its packages are needed) ***\n"
        );
        return;
    };
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
