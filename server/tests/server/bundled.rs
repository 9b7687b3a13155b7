//! The model that ships with the project, served as operators serve it.

use serde_json::json;

use super::support::{Setup, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundled_model_gives_a_sensible_answer() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/models/bundled/textnlp-tiny");
    if !std::path::Path::new(folder).join("config.json").exists() {
        eprintln!("\n*** SKIPPED: {folder} holds no model ***\n");
        return;
    }
    let models = format!(
        "preload: [textnlp-tiny]\n    serve: [ {{ name: textnlp-tiny, path: \"{folder}\", quantize: q8_0, context: 1024 }} ]"
    );
    let site = start(Setup { models: Some(&models), ..Setup::default() }).await.ready().await;
    let ask = json!({ "prompt": "Once upon a time", "max_tokens": 60, "seed": 1 });
    let body = site.post("/v1/generate", ask.clone()).await.json();
    let text = body["text"].as_str().unwrap();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert!(words.len() >= 10, "{text:?}");
    // Text, not noise: nearly all of it is letters, spaces and the usual marks.
    let usual = text.chars().filter(|c| c.is_alphanumeric() || c.is_whitespace() || ".,;:!?'\"-".contains(*c)).count();
    assert!(usual * 20 >= text.chars().count() * 19, "{text:?}");
    assert_eq!(site.post("/v1/generate", ask).await.json()["text"], body["text"], "the same seed, the same text");
    let chat = json!({ "messages": [{ "role": "user", "content": "Hello!" }], "max_tokens": 80, "temperature": 0.5, "seed": 2 });
    let reply = site.post("/v1/chat/completions", chat).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let answer = reply.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert!(!answer.trim().is_empty() && !answer.contains("<|"), "{answer:?}");
}
