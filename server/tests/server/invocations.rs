//! Containers of SageMaker, Vertex AI, Azure Machine Learning and Cloud Run, and that no other server answers like one of SageMaker.

use serde_json::{Value, json};
use textnlp_server::Server;
use textnlp_server::config::Container;

use super::support::{Client, Setup, Shape, config, path, start, until, write_model};

const MODELS: &str = "default: tiny\n    preload: [tiny]\n    serve: [ { name: tiny, path: tiny } ]";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_of_sagemaker_answers_pings_and_invocations_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    let setup = Setup { models: Some(MODELS), api: "require_https: true\ndocs: true", ..Setup::default() };
    let config = config(&folder, &setup).contained(Container::Sagemaker);
    let server = Server::start(config).await.unwrap();
    assert!(server.metrics_address().is_none(), "SageMaker reaches one port");
    let client = Client::new(server.address());
    until("the container is ready", async || client.send("GET", "/ping", &[], b"").await.status == 200).await;

    let invoke = async |body: Value| client.send("POST", "/invocations", &[], body.to_string().as_bytes()).await;
    let completed = invoke(json!({ "prompt": "a", "max_tokens": 4, "ignore_eos": true })).await;
    assert_eq!((completed.status, &completed.json()["object"]), (200, &json!("text_completion")), "{completed:?}");
    assert_eq!(completed.json()["usage"]["completion_tokens"], 4);
    let messages = json!([{ "role": "user", "content": "a" }]);
    let chatted = invoke(json!({ "messages": messages, "max_tokens": 4 })).await;
    assert_eq!((chatted.status, &chatted.json()["object"]), (200, &json!("chat.completion")), "{chatted:?}");
    let streamed = invoke(json!({ "prompt": "a", "max_tokens": 4, "stream": true })).await;
    assert_eq!(streamed.events().last().unwrap().1, "[DONE]");

    // One body, one kind of answer.
    let both = invoke(json!({ "prompt": "a", "messages": messages })).await;
    assert_eq!((both.status, both.error().1.as_deref()), (400, Some("prompt")), "{both:?}");
    assert_eq!(invoke(json!({})).await.error().1.as_deref(), Some("prompt"));
    for (method, path) in
        [("GET", "/v1/models"), ("POST", "/v1/completions"), ("POST", "/auth/token"), ("GET", "/health")]
    {
        assert_eq!(client.send(method, path, &[], b"{}").await.status, 404, "{path}");
    }
    assert_eq!(client.send("GET", "/docs", &[], b"").await.status, 404);
    assert!(server.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_of_vertex_ai_answers_pings_and_invocations_and_nothing_else() {
    invoked_alone(Container::Vertex).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_of_azure_machine_learning_answers_pings_and_invocations_and_nothing_else() {
    invoked_alone(Container::AzureMl).await;
}

async fn invoked_alone(container: Container) {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    let setup = Setup { models: Some(MODELS), api: "require_https: true\ndocs: true", ..Setup::default() };
    let server = Server::start(config(&folder, &setup).contained(container)).await.unwrap();
    assert!(server.metrics_address().is_none(), "the cloud reaches one port");
    let client = Client::new(server.address());
    until("the container is ready", async || client.send("GET", "/ping", &[], b"").await.status == 200).await;
    let body = json!({ "prompt": "a", "max_tokens": 4, "ignore_eos": true }).to_string();
    let completed = client.send("POST", "/invocations", &[], body.as_bytes()).await;
    assert_eq!((completed.status, &completed.json()["object"]), (200, &json!("text_completion")), "{completed:?}");
    for (method, path) in [("GET", "/ready"), ("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/docs")] {
        assert_eq!(client.send(method, path, &[], b"{}").await.status, 404, "{path}");
    }
    assert!(server.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn container_of_cloud_run_answers_the_api_to_every_caller_that_the_cloud_lets_through() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    let setup = Setup { models: Some(MODELS), api: "require_https: true\ndocs: true", ..Setup::default() };
    let server = Server::start(config(&folder, &setup).contained(Container::CloudRun)).await.unwrap();
    assert!(server.metrics_address().is_none(), "Cloud Run reaches one port");
    let client = Client::new(server.address());
    until("the container is ready", async || client.send("GET", "/ready", &[], b"").await.status == 200).await;
    // Cloud Run passes on its token, without the signature.
    let token = [("authorization", "Bearer eyJhbGciOiJSUzI1NiJ9.e30.SIGNATURE_REMOVED_BY_GOOGLE")];
    for headers in [&[][..], &token] {
        assert_eq!(client.send("GET", "/v1/models", headers, b"").await.status, 200, "{headers:?}");
        let body = json!({ "prompt": "a", "max_tokens": 4, "ignore_eos": true }).to_string();
        let completed = client.send("POST", "/v1/completions", headers, body.as_bytes()).await;
        assert_eq!((completed.status, &completed.json()["object"]), (200, &json!("text_completion")), "{completed:?}");
    }
    for (method, path) in [("GET", "/ping"), ("POST", "/invocations"), ("GET", "/docs")] {
        assert_eq!(client.send(method, path, &[], b"{}").await.status, 404, "{path}");
    }
    assert!(server.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ordinary_server_has_no_invocations() {
    let site = start(Setup::default()).await;
    assert_eq!(site.get("/ping").await.status, 404);
    assert_eq!(site.post("/invocations", json!({ "prompt": "a" })).await.status, 404);
}
