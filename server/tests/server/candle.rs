//! The candle executor behind the same scheduler, sampling and endpoints.

use serde_json::{Value, json};

use super::support::model::write_mixtral;
use super::support::{Setup, Shape, Site, config, path, start_in, write_model};

/// `own` and `candle` are one GPT-2, `sparse` is a Mixtral.
const MODELS: &str = "default: sparse\n    preload: [sparse, own, candle]\n    serve: [ { name: sparse, path: sparse }, \
                      { name: own, path: tiny, executor: own }, { name: candle, path: tiny, executor: candle }, \
                      { name: eight, path: tiny, executor: candle, quantize: q8_0 }, \
                      { name: wrong, path: sparse, executor: own } ]";

async fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape::default());
    write_mixtral(&path(&folder, "sparse"));
    let config = config(&folder, &Setup { models: Some(MODELS), ..Setup::default() });
    start_in(folder, config).await.ready().await
}

fn ask(model: &str, prompt: &str) -> Value {
    json!({ "model": model, "prompt": prompt, "max_tokens": 24, "temperature": 0, "ignore_end": true })
}

async fn text(site: &Site, body: Value) -> String {
    let reply = site.post("/v1/generate", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()["text"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sparse_experts_are_served_alone_and_in_batches() {
    let site = site().await;
    let prompts = ["Once", "A much longer prompt of other words", "x", "12 foxes & more"];
    let mut alone = Vec::new();
    for prompt in prompts {
        alone.push(text(&site, ask("sparse", prompt)).await);
    }
    let together = futures::future::join_all(prompts.map(|prompt| text(&site, ask("sparse", prompt)))).await;
    assert_eq!(alone, together);
    assert_ne!(alone[0], alone[1]);
    // A seed decides what is drawn.
    let drawn = |seed: u64| {
        let mut body = ask("sparse", "Once");
        (body["temperature"], body["seed"]) = (json!(1.0), json!(seed));
        text(&site, body)
    };
    assert_eq!(drawn(7).await, drawn(7).await);
    assert_ne!(drawn(7).await, drawn(8).await);
    assert!(site.metric("textnlp_tokens_generated_total").await >= 24.0 * 8.0);
    let shown = site.get("/v1/models/sparse").await.json();
    assert_eq!(shown["details"]["family"], "mixtral");
    assert!(shown["details"]["notes"].to_string().contains("candle executor"), "{shown}");
    assert!(shown["details"]["memory_bytes"]["kv"].as_u64().unwrap() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn candle_says_what_the_own_kernels_say() {
    let site = site().await;
    for prompt in ["Once", "A longer prompt"] {
        assert_eq!(text(&site, ask("own", prompt)).await, text(&site, ask("candle", prompt)).await);
    }
    text(&site, ask("eight", "Once")).await;
    let refused = site.post("/v1/generate", ask("wrong", "Once")).await;
    assert_eq!(refused.status, 503);
    assert!(refused.text().contains("the own kernels do not serve `mixtral` models"), "{}", refused.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_without_its_gpu_does_not_start_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape::default());
    // No machine has so many.
    let models = "device: \"cuda:999\"\n    serve: [ { name: tiny, path: tiny } ]";
    let refused =
        textnlp_server::Server::start(config(&folder, &Setup { models: Some(models), ..Setup::default() })).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.starts_with("models.device is `cuda:999`, but "), "{refused}");
    assert!(refused.ends_with("; `models.device: cpu` computes on the CPU"), "{refused}");
}
