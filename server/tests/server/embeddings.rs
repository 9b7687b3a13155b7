//! `/v1/embeddings`: what it answers, what it refuses, and what it is charged.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde_json::{Value, json};

use super::support::{Setup, Site, make_key, path, start, until};

/// What sentence-transformers says of the model `encoder`.
fn expected() -> Value {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/inference/tests/golden/bert/expected.json");
    serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap()
}

fn numbers(vector: &Value) -> Vec<f32> {
    vector.as_array().unwrap().iter().map(|number| number.as_f64().unwrap() as f32).collect()
}

fn is_near(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(x, y)| (x - y).abs() <= 1e-4)
}

async fn embed(site: &Site, more: Value) -> Value {
    let mut body = json!({ "model": "encoder" });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let reply = site.post("/v1/embeddings", body).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    reply.json()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_are_those_of_sentence_transformers_in_every_form() {
    let site = start(Setup::default()).await.ready().await;
    let expected = expected();
    let texts = &expected["texts"];
    for case in expected["cases"].as_array().unwrap() {
        let asked = json!({ "input": texts, "truncate": true, "prompt_name": case["prompt"], "user": "somebody" });
        let answer = embed(&site, asked.clone()).await;
        assert_eq!((&answer["object"], &answer["model"]), (&json!("list"), &json!("encoder")));
        let used: usize = case["tokens"].as_array().unwrap().iter().map(|ids| ids.as_array().unwrap().len()).sum();
        assert_eq!(answer["usage"], json!({ "prompt_tokens": used, "total_tokens": used }));
        let mut packed = asked;
        packed["encoding_format"] = json!("base64");
        let packed = embed(&site, packed).await;
        for (index, wanted) in case["vectors"].as_array().unwrap().iter().enumerate() {
            let item = &answer["data"][index];
            assert_eq!((&item["object"], &item["index"]), (&json!("embedding"), &json!(index)));
            let vector = numbers(&item["embedding"]);
            assert!(is_near(&vector, &numbers(wanted)), "{index}: {item}");
            let bytes = BASE64_STANDARD.decode(packed["data"][index]["embedding"].as_str().unwrap()).unwrap();
            let unpacked: Vec<f32> = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
            assert_eq!(unpacked, vector);
        }
        // Token ids are taken as they are, in a list or alone.
        let ids = embed(&site, json!({ "input": case["tokens"] })).await;
        assert_eq!(ids["data"], answer["data"]);
        let one = embed(&site, json!({ "input": case["tokens"][1] })).await;
        assert_eq!(one["data"][0]["embedding"], answer["data"][1]["embedding"]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn vectors_do_not_depend_on_other_requests() {
    let site = start(Setup::default()).await.ready().await;
    let texts: Vec<String> = (0..40).map(|n| format!("the river {}", "and the harbour ".repeat(n % 3))).collect();
    let alone = embed(&site, json!({ "input": texts[2] })).await["data"][0]["embedding"].clone();
    let all = futures::future::join_all((0..6).map(|_| embed(&site, json!({ "input": texts })))).await;
    assert!(all.iter().all(|answer| answer["data"][2]["embedding"] == alone && answer["data"] == all[0]["data"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dimensions_shorten_and_renormalise_only_where_the_model_allows_it() {
    let site = start(Setup::default()).await.ready().await;
    let whole = numbers(&embed(&site, json!({ "input": "the river" })).await["data"][0]["embedding"]);
    let short = numbers(&embed(&site, json!({ "input": "the river", "dimensions": 8 })).await["data"][0]["embedding"]);
    let length = whole[..8].iter().map(|x| x * x).sum::<f32>().sqrt();
    let cut: Vec<f32> = whole[..8].iter().map(|x| x / length).collect();
    assert!(is_near(&short, &cut), "{short:?} {cut:?}");
    let same = embed(&site, json!({ "model": "rigid", "input": "a", "dimensions": 36 })).await;
    assert_eq!(numbers(&same["data"][0]["embedding"]).len(), 36);
    for (model, dimensions, why) in
        [("rigid", 8, "does not support `dimensions`"), ("encoder", 33, "has 32"), ("encoder", 0, "must be from 1")]
    {
        let body = json!({ "model": model, "input": "a", "dimensions": dimensions });
        let reply = site.post("/v1/embeddings", body).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("dimensions")), "{}", reply.text());
        assert!(reply.text().contains(why), "{}", reply.text());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_requests_are_refused_by_the_name_of_the_field() {
    let site = start(Setup::default()).await.ready().await;
    let long = "the river ".repeat(40);
    let cases = [
        (json!({}), "input"),
        (json!({ "input": "" }), "input"),
        (json!({ "input": [] }), "input"),
        (json!({ "input": [""] }), "input[0]"),
        (json!({ "input": ["a", ""] }), "input[1]"),
        (json!({ "input": ["a", [5]] }), "input[1]"),
        (json!({ "input": [[5], []] }), "input[1]"),
        (json!({ "input": [5, -1] }), "input"),
        (json!({ "input": [[5], [100_000]] }), "input[1]"),
        (json!({ "input": [100_000] }), "input"),
        (json!({ "input": [[100_000]] }), "input[0]"),
        (json!({ "input": long }), "input"),
        (json!({ "input": [long] }), "input[0]"),
        (json!({ "input": ["a", "b", long] }), "input[2]"),
        (json!({ "input": vec![5; 41] }), "input"),
        (json!({ "input": [[5], vec![5; 41]] }), "input[1]"),
        (json!({ "input": "x".repeat(70_000) }), "input"),
        (json!({ "input": vec!["a"; 2049] }), "input"),
        (json!({ "input": ["a", "x".repeat(70_000)] }), "input[1]"),
        (json!({ "input": vec!["x".repeat(2_400); 2_048], "truncate": true }), "input"),
        (json!({ "input": "a", "encoding_format": "hex" }), "encoding_format"),
        (json!({ "input": "a", "prompt_name": "title" }), "prompt_name"),
        (json!({ "input": [5], "prompt_name": "query" }), "prompt_name"),
        (json!({ "input": "a", "truncate": 1 }), "truncate"),
        (json!({ "input": "a", "inputs": "a" }), "inputs"),
    ];
    for (more, param) in cases {
        let mut body = json!({ "model": "encoder" });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let reply = site.post("/v1/embeddings", body).await;
        let shown: String = more.to_string().chars().take(80).collect();
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(param)), "{shown}: {}", reply.text());
    }
    let cut = embed(&site, json!({ "input": ["a", long], "truncate": true })).await;
    assert_eq!(cut["data"].as_array().unwrap().len(), 2);
    let many = embed(&site, json!({ "input": vec!["a"; 2048] })).await;
    assert_eq!(many["data"].as_array().unwrap().len(), 2048);
    // Several turns of a thread for texts.
    let texts: Vec<String> = (0..40).map(|n| format!("{n} {}", "river ".repeat(700 + n))).collect();
    let several = embed(&site, json!({ "input": texts, "truncate": true })).await;
    let one = embed(&site, json!({ "input": texts[37], "truncate": true })).await;
    assert_eq!(several["data"].as_array().unwrap().len(), 40);
    assert_eq!(several["data"][37]["embedding"], one["data"][0]["embedding"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_of_the_other_kind_are_refused_without_being_loaded() {
    let site = start(Setup::default()).await.ready().await;
    for (path, body, hint) in [
        ("/v1/embeddings", json!({ "model": "plain", "input": "a" }), "encoder, rigid"),
        // The default model generates text.
        ("/v1/embeddings", json!({ "input": "a" }), "encoder, rigid"),
        ("/v1/generate", json!({ "model": "rigid", "prompt": "a" }), "tiny, plain, slow"),
        ("/v1/completions", json!({ "model": "rigid", "prompt": "a" }), "tiny, plain, slow"),
        (
            "/v1/chat/completions",
            json!({ "model": "rigid", "messages": [{ "role": "user", "content": "a" }] }),
            "tiny, plain, slow",
        ),
    ] {
        let reply = site.post(path, body).await;
        let (code, param, told) = reply.error();
        assert_eq!(
            (reply.status, code.as_str(), param.as_deref()),
            (400, "unsupported_model", Some("model")),
            "{path}"
        );
        assert!(told.unwrap().ends_with(hint), "{path}: {}", reply.text());
    }
    embed(&site, json!({ "input": "a" })).await;
    let models = site.get("/v1/models").await.json()["data"].clone();
    let told: Vec<_> = models.as_array().unwrap().iter().map(|m| (m["kind"].as_str(), m["state"].as_str())).collect();
    let (text, vector) = (Some("generation"), Some("embedding"));
    let (ready, idle) = (Some("ready"), Some("not loaded"));
    assert_eq!(told, [(text, ready), (text, idle), (text, idle), (vector, ready), (vector, idle)]);
    let expect = json!({
        "dimensions": 32, "matryoshka": true, "pooling": "mean", "normalized": true,
        "prompts": ["document", "passage", "query"], "default_prompt": "query",
    });
    assert_eq!(models[3]["details"]["embeddings"], expect);
    assert_eq!(models[3]["details"]["context"], 40);
    let tokens = site.post("/v1/tokenize", json!({ "model": "encoder", "text": "the river" })).await.json();
    assert_eq!(tokens["pieces"], json!(["[CLS]", "the", "river", "[SEP]"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exchanged_files_change_what_an_unloaded_model_does() {
    let site = start(Setup::default()).await.ready().await;
    let kinds = async || {
        let models = site.get("/v1/models").await.json()["data"].clone();
        let kind = |name: &str| models.as_array().unwrap().iter().find(|m| m["id"] == name).unwrap()["kind"].clone();
        [kind("slow"), kind("rigid")]
    };
    assert_eq!(kinds().await, ["generation", "embedding"]);
    let [slow, rigid, aside] = ["slow", "rigid", "aside"].map(|name| path(&site.folder, name));
    for (from, to) in [(&slow, &aside), (&rigid, &slow), (&aside, &rigid)] {
        std::fs::rename(from, to).unwrap();
    }
    assert_eq!(kinds().await, ["embedding", "generation"]);
    let requests = async || {
        for (path, model, status) in [
            ("/v1/generate", "slow", 400),
            ("/v1/embeddings", "rigid", 400),
            ("/v1/generate", "rigid", 200),
            ("/v1/embeddings", "slow", 200),
        ] {
            let body = match path {
                "/v1/generate" => json!({ "model": model, "prompt": "a", "max_tokens": 2 }),
                _ => json!({ "model": model, "input": "a" }),
            };
            let reply = site.post(path, body).await;
            assert_eq!(reply.status, status, "{path} {model}: {}", reply.text());
            assert!(status == 200 || reply.error().0 == "unsupported_model", "{path} {model}: {}", reply.text());
        }
    };
    requests().await;
    // A loaded model does what was loaded.
    for (from, to) in [(&rigid, &aside), (&slow, &rigid), (&aside, &slow)] {
        std::fs::rename(from, to).unwrap();
    }
    requests().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embeddings_without_a_model_are_made_by_the_model_for_them() {
    let models = "default: tiny\n    embeddings: rigid\n    preload: [tiny]\n    \
                  serve: [ { name: tiny, path: tiny }, { name: encoder, path: encoder }, { name: rigid, path: rigid } ]";
    let site = start(Setup { models: Some(models), ..Setup::default() }).await.ready().await;
    let answer = site.post("/v1/embeddings", json!({ "input": "a" })).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("rigid")));
    let answer = site.post("/v1/embeddings", json!({ "model": "encoder", "input": "a" })).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("encoder")));
    let answer = site.post("/v1/generate", json!({ "prompt": "a", "max_tokens": 1 })).await;
    assert_eq!((answer.status, &answer.json()["model"]), (200, &json!("tiny")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn server_of_encoders_alone_becomes_ready() {
    let models = "default: encoder\n    preload: [encoder]\n    serve: [ { name: encoder, path: encoder, quantize: q8_0, context: 16 } ]";
    let mut site = start(Setup { models: Some(models), ..Setup::default() }).await.ready().await;
    let answer = site.post("/v1/embeddings", json!({ "input": ["the river", "a"] })).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    let reply = site.post("/v1/generate", json!({ "prompt": "a" })).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (400, "unsupported_model"));
    assert!(reply.error().2.unwrap().contains("no model for text generation"));
    let long = site.post("/v1/embeddings", json!({ "input": "the river ".repeat(9) })).await;
    assert_eq!(long.error().0, "context_length_exceeded", "the context of the configuration counts");
    // Above the limit of 65,536 bytes, which is within a letter of one of these.
    for start in ["", "a", "aa"] {
        let text = format!("the river {start}{}", " ü".repeat(30_000));
        let refused = site.post("/v1/embeddings", json!({ "input": text })).await;
        assert_eq!(refused.error().0, "context_length_exceeded");
        let cut = site.post("/v1/embeddings", json!({ "input": text, "truncate": true })).await;
        assert_eq!(cut.status, 200, "{}", cut.text());
    }
    let cut = site.post("/v1/embeddings", json!({ "input": "the river ".repeat(9_000), "truncate": true })).await;
    assert_eq!((cut.status, &cut.json()["usage"]["prompt_tokens"]), (200, &json!(16)));
    assert!(site.drain().await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_counted_limited_and_measured() {
    let site = start(Setup::default()).await.ready().await;
    let ids = |count: usize| json!({ "model": "encoder", "input": [vec![5; count], vec![6; count]] });
    let narrow = make_key(&site.config, json!({ "do": "create", "name": "narrow", "token_limit": 50 })).await;
    assert_eq!(site.post_as(&narrow, "/v1/embeddings", ids(20)).await.status, 200);
    let over = site.post_as(&narrow, "/v1/embeddings", ids(10)).await;
    let (code, param, _) = over.error();
    assert_eq!((over.status, code.as_str(), param.as_deref()), (403, "token_limit_exceeded", Some("input")));
    assert_eq!(site.post_as(&narrow, "/v1/embeddings", ids(5)).await.status, 200, "what was refused cost nothing");
    let usage = async || {
        let reply = site.client.send("GET", "/v1/usage", &[("x-api-key", &narrow)], b"").await;
        reply.json()["total"].clone()
    };
    until("the usage is written", async || usage().await["prompt_tokens"] == 50).await;
    assert_eq!(usage().await["completion_tokens"], 0);
    assert_eq!(site.metric("textnlp_embeddings_total{model=\"encoder\"").await, 4.0);
    assert_eq!(site.metric("textnlp_prompt_tokens_total{model=\"encoder\"").await, 50.0);
    assert!(site.metric("textnlp_model_memory_bytes{model=\"encoder\",kind=\"weights\"}").await > 50_000.0);
}
