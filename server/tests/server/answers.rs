//! What the endpoints answer when all is well.

use serde_json::{Value, json};

use textnlp_inference::cpu::{Footprint, LoadOptions};
use textnlp_inference::format::Checkpoint;

use super::support::{Setup, Shape, start, until, write_model};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn generate_returns_text_usage_and_timings() {
    let site = start(Setup::default()).await.ready().await;
    let reply = site
        .post(
            "/v1/generate",
            json!({ "prompt": "Once", "max_tokens": 12, "temperature": 0.8, "seed": 7, "ignore_end": true }),
        )
        .await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let body = reply.json();
    assert_eq!(body["model"], "tiny", "the default model");
    assert_eq!(
        body["usage"],
        json!({ "prompt_tokens": 4, "completion_tokens": 12, "total_tokens": 16, "prompt_tokens_details": { "cached_tokens": 0 } })
    );
    assert_eq!(body["finish_reason"], "length");
    assert_eq!(body["seed"], 7);
    assert!(!body["text"].as_str().unwrap().is_empty());
    assert!(body["timing"]["total_ms"].as_f64().unwrap() > 0.0);
    assert_eq!(reply.header("content-type"), Some("application/json"));
    assert_eq!(reply.header("x-content-type-options"), Some("nosniff"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn seeded_output_is_the_same_alone_concurrent_and_streamed() {
    let site = start(Setup::default()).await.ready().await;
    let ask = |seed: u64| json!({ "prompt": "The fox", "max_tokens": 40, "temperature": 1.0, "seed": seed, "ignore_end": true });
    let alone = site.post("/v1/generate", ask(1)).await.json()["text"].clone();
    let others = futures::future::join_all((1..9).map(|seed| site.post("/v1/generate", ask(seed)))).await;
    assert_eq!(others[0].json()["text"], alone);
    assert!(others[1..].iter().all(|other| other.json()["text"] != alone));
    let streamed = site.post("/v1/stream", ask(1)).await;
    let text: String = streamed
        .events()
        .iter()
        .filter(|(name, _)| name == "token")
        .map(|(_, data)| serde_json::from_str::<Value>(data).unwrap()["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(json!(text), alone);
    let random: Vec<Value> = vec![
        site.post("/v1/generate", json!({ "prompt": "The fox", "max_tokens": 20 })).await.json(),
        site.post("/v1/generate", json!({ "prompt": "The fox", "max_tokens": 20 })).await.json(),
    ];
    assert_ne!(random[0]["seed"], random[1]["seed"]);
    let mut again = json!({ "prompt": "The fox", "max_tokens": 20 });
    again["seed"] = random[0]["seed"].clone();
    assert_eq!(
        site.post("/v1/generate", again).await.json()["text"],
        random[0]["text"],
        "the seed that was told is the seed"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_sends_start_tokens_and_usage() {
    let site = start(Setup::default()).await.ready().await;
    for (path, extra) in [("/v1/stream", json!({})), ("/v1/generate", json!({ "stream": true }))] {
        let mut ask = json!({ "prompt": "Once", "max_tokens": 9, "seed": 3, "ignore_end": true });
        ask.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = site.post(path, ask).await;
        assert_eq!((reply.status, reply.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
        let events = reply.events();
        assert_eq!(events.first().unwrap().0, "start");
        let (name, data) = events.last().unwrap();
        assert_eq!(name, "done");
        let done: Value = serde_json::from_str(data).unwrap();
        assert_eq!((&done["usage"]["completion_tokens"], &done["finish_reason"]), (&json!(9), &json!("length")));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stream_query_parameters_are_validated_like_a_body() {
    let site = start(Setup::default()).await.ready().await;
    let texts = |reply: &super::support::Reply| -> String {
        let tokens = reply.events().into_iter().filter(|(name, _)| name == "token");
        tokens
            .map(|(_, data)| serde_json::from_str::<Value>(&data).unwrap()["text"].as_str().unwrap().to_owned())
            .collect()
    };
    let posted = site
        .post("/v1/stream", json!({ "prompt": "12 foxes & more", "max_tokens": 9, "seed": 3, "ignore_end": true }))
        .await;
    let got = site.get("/v1/stream?prompt=12+foxes+%26+more&max_tokens=9&seed=3&ignore_end=true").await;
    assert_eq!((got.status, got.header("content-type")), (200, Some("text/event-stream; charset=utf-8")));
    assert_eq!(texts(&got), texts(&posted));
    for (query, field) in [
        ("", "prompt"),
        ("prompt=a&max_tokens=many", "max_tokens"),
        ("prompt=a&colour=red", "colour"),
        ("prompt=a&prompt=b", "prompt"),
    ] {
        let refused = site.get(&format!("/v1/stream?{query}")).await;
        assert_eq!(refused.status, 400, "{query}: {}", refused.text());
        assert!(refused.text().contains(field), "{query}: {}", refused.text());
    }
    let nobody = site.client.send("GET", "/v1/stream?prompt=a", &[], b"").await;
    assert_eq!(nobody.status, 401);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn stop_string_ends_the_output_and_is_excluded() {
    let site = start(Setup::default()).await.ready().await;
    let ask = json!({ "prompt": "Tell", "max_tokens": 120, "temperature": 1.0, "seed": 11, "ignore_end": true });
    let whole = site.post("/v1/generate", ask.clone()).await.json()["text"].as_str().unwrap().to_owned();
    let (at, letter) = whole.char_indices().filter(|(_, c)| c.is_ascii_graphic()).nth(3).unwrap();
    let first = whole.find(letter).unwrap().min(at);
    let mut stopped = ask;
    stopped["stop"] = json!([letter.to_string(), "\u{1}never\u{1}"]);
    let reply = site.post("/v1/generate", stopped).await.json();
    assert_eq!(reply["text"], json!(whole[..first]), "up to {letter:?} in {whole:?}");
    assert_eq!(reply["finish_reason"], "stop");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn completions_match_the_openai_format_plain_and_streamed() {
    let site = start(Setup::default()).await.ready().await;
    let ask = json!({ "model": "tiny", "prompt": "abc", "max_tokens": 6, "seed": 5, "logprobs": 2, "ignore_eos": true, "user": "u", "n": 1 });
    let body = site.post("/v1/completions", ask.clone()).await.json();
    assert_eq!(body["object"], "text_completion");
    let choice = &body["choices"][0];
    assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(0), &json!("length")));
    let logprobs = &choice["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), 6, "{list}: {body}");
    }
    assert!(logprobs["token_logprobs"][0].as_f64().unwrap() < 0.0);
    assert_eq!(body["usage"]["total_tokens"], 9);
    let mut streamed = ask;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let reply = site.post("/v1/completions", streamed).await;
    let events = reply.events();
    assert_eq!(events.last().unwrap().1, "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(json!(text), choice["text"]);
    let last = chunks.last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]), (&json!([]), &body["usage"]));
    assert!(chunks[0]["usage"].is_null() && chunks[0].get("usage").is_some());
    assert_eq!(chunks[chunks.len() - 2]["choices"][0]["finish_reason"], "length");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompts_may_be_tokens_a_list_of_one_text_or_empty() {
    let site = start(Setup::default()).await.ready().await;
    let text = |prompt: Value| {
        let site = &site;
        async move {
            let ask = json!({ "prompt": prompt, "max_tokens": 8, "temperature": 0, "ignore_eos": true });
            let reply = site.post("/v1/completions", ask).await;
            assert_eq!(reply.status, 200, "{}", reply.text());
            reply.json()["choices"][0]["text"].clone()
        }
    };
    let as_text = text(json!("abc")).await;
    assert_eq!(text(json!([97, 98, 99])).await, as_text);
    assert_eq!(text(json!([[97, 98, 99]])).await, as_text);
    assert_eq!(text(json!(["abc"])).await, as_text);
    assert_eq!(text(json!("")).await, text(json!([256])).await, "nothing is the model's first token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_prompt_is_rendered_by_the_models_template() {
    let site = start(Setup::default()).await.ready().await;
    let ask = json!({
        "messages": [
            { "role": "developer", "content": "Be kind." },
            { "role": "user", "content": [{ "type": "text", "text": "He" }, { "type": "text", "text": "llo" }] },
        ],
        "max_completion_tokens": 7, "temperature": 0, "ignore_eos": true, "logprobs": true, "top_logprobs": 3,
        "response_format": { "type": "text" }, "tools": [],
    });
    let body = site.post("/v1/chat/completions", ask.clone()).await.json();
    assert_eq!(body["object"], "chat.completion");
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    let logprobs = choice["logprobs"]["content"].as_array().unwrap();
    assert_eq!((logprobs.len(), logprobs[0]["top_logprobs"].as_array().unwrap().len()), (7, 3));
    assert_eq!(logprobs[0]["token"], logprobs[0]["top_logprobs"][0]["token"], "greedy takes the likeliest");
    // The markers of the template are one token each: this is what the prompt must be.
    let prompt = "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n";
    let same = site
        .post("/v1/completions", json!({ "prompt": prompt, "max_tokens": 7, "temperature": 0, "ignore_eos": true }))
        .await
        .json();
    assert_eq!(choice["message"]["content"], same["choices"][0]["text"]);
    let count =
        |usage: &Value| ["prompt_tokens", "completion_tokens", "total_tokens"].map(|member| usage[member].clone());
    assert_eq!(count(&body["usage"]), count(&same["usage"]));
    let mut streamed = ask;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let events = site.post("/v1/chat/completions", streamed).await.events();
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({ "role": "assistant", "content": "" }));
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(json!(text), choice["message"]["content"]);
    assert_eq!(count(&chunks.last().unwrap()["usage"]), count(&body["usage"]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn chat_with_a_model_without_template_is_explained() {
    let site = start(Setup::default()).await.ready().await;
    let reply = site
        .post("/v1/chat/completions", json!({ "model": "plain", "messages": [{ "role": "user", "content": "Hi" }] }))
        .await;
    assert_eq!(reply.status, 400);
    let (_, param, hint) = reply.error();
    assert_eq!(param.as_deref(), Some("model"));
    assert!(hint.unwrap().contains("/v1/completions") && reply.text().contains("no chat template"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn models_are_listed_described_and_loaded_on_demand() {
    let site = start(Setup::default()).await.ready().await;
    let list = site.get("/v1/models").await.json();
    let states: Vec<(&str, &str)> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| (m["id"].as_str().unwrap(), m["state"].as_str().unwrap()))
        .collect();
    assert_eq!(
        states,
        [
            ("tiny", "ready"),
            ("plain", "not loaded"),
            ("slow", "not loaded"),
            ("encoder", "not loaded"),
            ("rigid", "not loaded"),
        ]
    );
    let misses = site.metric("textnlp_model_cache_misses_total").await;
    // Many ask for it at once: it is loaded once, and all are answered.
    let replies = futures::future::join_all(
        (0..6).map(|_| site.post("/v1/generate", json!({ "model": "plain", "prompt": "x", "max_tokens": 2 }))),
    )
    .await;
    assert!(replies.iter().all(|reply| reply.status == 200 && reply.json()["model"] == "plain"));
    assert!(site.metric("textnlp_model_cache_misses_total").await > misses);
    let one = site.get("/v1/models/plain").await.json();
    assert_eq!((&one["state"], &one["quantize"], &one["object"]), (&json!("ready"), &json!("q8_0"), &json!("model")));
    let details = &one["details"];
    assert_eq!(
        (&details["family"], &details["context"], &details["layers"], &details["chat"]),
        (&json!("gpt2"), &json!(256), &json!(2), &json!(false))
    );
    assert!(
        details["parameters"].as_u64().unwrap() > 10_000
            && details["memory_bytes"]["weights"].as_u64().unwrap() > 10_000
    );
    assert_eq!(site.get("/v1/models/tiny").await.json()["details"]["chat"], true);
    let missing = site.get("/v1/models/tinny").await;
    assert_eq!((missing.status, missing.error().0.as_str()), (404, "model_not_found"));
    assert!(missing.error().2.unwrap().contains("did you mean `tiny`"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn least_recently_used_model_is_evicted() {
    // One model with keys and values of one context fits, two do not.
    let folder = tempfile::tempdir().unwrap();
    let model = camino::Utf8Path::from_path(folder.path()).unwrap();
    write_model(model, Shape::default());
    let checkpoint = Checkpoint::open(model.as_std_path()).unwrap();
    let one = Footprint::of(&checkpoint, &LoadOptions::default()).unwrap().least(1);
    let models = format!(
        "max_cache_size: {}kB\n    preload: []\n    default: tiny\n    serve: [ {{ name: tiny, path: tiny }}, {{ name: plain, path: plain }} ]",
        one * 3 / 2 / 1000
    );
    let site = start(Setup { models: Some(&models), ..Setup::default() }).await.ready().await;
    let ask = |model: &str| json!({ "model": model, "prompt": "x", "max_tokens": 2 });
    for model in ["tiny", "plain", "tiny"] {
        let reply = site.post("/v1/generate", ask(model)).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        let loaded: Vec<String> = site.get("/v1/models").await.json()["data"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|m| m["state"] == "ready")
            .map(|m| m["id"].as_str().unwrap().to_owned())
            .collect();
        assert_eq!(loaded, [model]);
    }
    let models = "max_cache_size: 10kB\n    preload: []\n    serve: [ { name: tiny, path: tiny } ]";
    let site = start(Setup { models: Some(models), ..Setup::default() }).await.ready().await;
    let reply = site.post("/v1/generate", ask("tiny")).await;
    assert_eq!(reply.status, 503);
    assert!(reply.text().contains("max_cache_size"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_tokenised_and_tokens_decoded() {
    let site = start(Setup::default()).await.ready().await;
    let there = site.post("/v1/tokenize", json!({ "text": "Hé" })).await.json();
    assert_eq!(
        (&there["tokens"], &there["count"], &there["model"]),
        (&json!([72, 195, 169]), &json!(3), &json!("tiny"))
    );
    assert_eq!(there["pieces"].as_array().unwrap().len(), 3);
    let back = site.post("/v1/tokenize", json!({ "tokens": [72, 195, 169] })).await.json();
    assert_eq!(back["text"], "Hé");
    let long = "word ".repeat(5000);
    assert_eq!(site.post("/v1/tokenize", json!({ "text": long })).await.json()["count"], 25_000);
    for (ask, field) in [
        (json!({}), "text"),
        (json!({ "text": "a", "tokens": [1] }), "tokens"),
        (json!({ "tokens": [99999] }), "tokens"),
        (json!({ "tokens": [-1] }), "tokens"),
        (json!({ "tokens": "abc" }), "tokens"),
    ] {
        let reply = site.post("/v1/tokenize", ask.clone()).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(field)), "{ask}");
    }
    for name in ["text", "prompt"] {
        let reply = site.post("/v1/tokenize", json!({ name: 5 })).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(name)));
        assert!(!reply.text().contains("is missing"), "{}", reply.text());
    }
    // 16 bytes for each token of the context, at least 64 KiB.
    for (model, most) in [("tiny", 65_536), ("slow", 131_072)] {
        let text = |name: &str, bytes: usize| json!({ "model": model, name: "a".repeat(bytes) });
        assert_eq!(site.post("/v1/tokenize", text("text", most)).await.json()["count"], most);
        for name in ["text", "prompt"] {
            let reply = site.post("/v1/tokenize", text(name, most + 1)).await;
            assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(name)));
            assert!(reply.text().contains(&format!("up to {most} bytes")), "{}", reply.text());
        }
    }
    assert_eq!(site.post("/v1/tokenize", json!({ "tokens": vec![97; 65_536] })).await.json()["count"], 65_536);
    let reply = site.post("/v1/tokenize", json!({ "tokens": vec![97; 65_537] })).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("tokens")));
    assert!(reply.text().contains("up to 65536"), "{}", reply.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn texts_are_scored_by_the_requested_metrics() {
    let site = start(Setup::default()).await.ready().await;
    let ask = json!({ "reference": "the cat sat on the mat", "candidate": "the cat sat on a mat" });
    let all = site.post("/v1/validate", ask.clone()).await.json();
    assert!((all["rouge1"]["fmeasure"].as_f64().unwrap() - 5.0 / 6.0).abs() < 1e-12, "{all}");
    assert!(all["bleu"]["score"].as_f64().unwrap() > 30.0 && all["rouge2"].is_object() && all["rougeL"].is_object());
    assert_eq!(all["bleu"]["smoothing"], "exp");
    let mut some = ask.clone();
    some["metrics"] = json!(["bleu"]);
    some["smoothing"] = json!("add-k");
    some["smoothing_value"] = json!(0.5);
    let some = site.post("/v1/validate", some).await.json();
    assert!(some["rouge1"].is_null() && some["bleu"]["score"] != all["bleu"]["score"]);
    for (extra, field) in [
        (json!({ "smoothing": "magic" }), "smoothing"),
        (json!({ "smoothing": "exp", "smoothing_value": 1 }), "smoothing_value"),
        (json!({ "metrics": ["meteor"] }), "metrics"),
        (json!({ "reference": [] }), "reference"),
        (json!({ "reference": vec!["a"; 17] }), "reference"),
        (json!({ "candidate": 5 }), "candidate"),
        (json!({ "candidate": null }), "candidate"),
    ] {
        let mut ask = ask.clone();
        ask.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = site.post("/v1/validate", ask).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(field)), "{extra}");
    }
    let long = "word ".repeat(6000);
    let reply = site.post("/v1/validate", json!({ "reference": long, "candidate": long })).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("ROUGE-L") && reply.text().contains("send `metrics` without `rougeL`"));
    assert_eq!(
        site.post("/v1/validate", json!({ "reference": long, "candidate": long, "metrics": ["bleu"] })).await.status,
        200
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn multiple_prompts_give_independent_choices() {
    let site = start(Setup::default()).await.ready().await;
    let ask =
        |prompt: Value| json!({ "prompt": prompt, "max_tokens": 9, "seed": 3, "logprobs": 1, "ignore_eos": true });
    let (texts, ids) = (["abc", "", "Once upon"], [[97, 98, 99], [100, 101, 102]]);
    let whole = site.post("/v1/completions", ask(json!(texts))).await.json();
    for (place, prompt) in texts.iter().enumerate() {
        let mut alone = site.post("/v1/completions", ask(json!(prompt))).await.json()["choices"][0].clone();
        alone["index"] = json!(place);
        assert_eq!(whole["choices"][place], alone, "{prompt:?}");
    }
    assert_eq!(whole["choices"].as_array().unwrap().len(), 3);
    assert_eq!(
        whole["usage"],
        json!({ "prompt_tokens": 3 + 1 + 9, "completion_tokens": 27, "total_tokens": 40, "prompt_tokens_details": { "cached_tokens": 0 } })
    );
    let of_ids = site.post("/v1/completions", ask(json!(ids))).await.json();
    assert_eq!(of_ids["choices"][0], whole["choices"][0]);
    assert_eq!(of_ids["choices"][1]["index"], 1);
    assert_eq!(site.metric("textnlp_tokens_generated_total{model=\"tiny\"").await, 27.0 + 27.0 + 18.0);

    let mut streamed = ask(json!(texts));
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let events = site.post("/v1/completions", streamed).await.events();
    assert_eq!(events.last().unwrap().1, "[DONE]");
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    for (place, choice) in whole["choices"].as_array().unwrap().iter().enumerate() {
        let mine: Vec<&Value> =
            chunks.iter().map(|chunk| &chunk["choices"][0]).filter(|choice| choice["index"] == json!(place)).collect();
        let text: String = mine.iter().filter_map(|choice| choice["text"].as_str()).collect();
        assert_eq!(json!(text), choice["text"]);
        let offsets: Vec<Value> =
            mine.iter().filter_map(|choice| choice["logprobs"]["text_offset"].as_array()).flatten().cloned().collect();
        assert_eq!(json!(offsets), choice["logprobs"]["text_offset"], "each has its own places");
        let reasons: Vec<&str> = mine.iter().filter_map(|choice| choice["finish_reason"].as_str()).collect();
        assert_eq!(reasons, ["length"], "each ends once");
    }
    let usages: Vec<&Value> = chunks.iter().filter(|chunk| !chunk["usage"].is_null()).collect();
    assert_eq!(usages.len(), 1);
    assert_eq!((&usages[0]["usage"], &usages[0]["choices"]), (&whole["usage"], &json!([])));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn several_answers_to_one_prompt_are_choices_and_count_the_prompt_once() {
    let site = start(Setup::default()).await.ready().await;
    let texts = |body: &Value| -> Vec<String> {
        let choices = body["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_owned()).collect()
    };
    let ask = json!({ "prompt": ["abc", "xy"], "max_tokens": 8, "seed": 5, "ignore_eos": true, "n": 3, "best_of": 3, "top_k": -1 });
    let body = site.post("/v1/completions", ask.clone()).await.json();
    let several = texts(&body);
    let index: Vec<u64> =
        body["choices"].as_array().unwrap().iter().map(|choice| choice["index"].as_u64().unwrap()).collect();
    assert_eq!(index, [0, 1, 2, 3, 4, 5]);
    assert_eq!(
        body["usage"],
        json!({ "prompt_tokens": 5, "completion_tokens": 48, "total_tokens": 53, "prompt_tokens_details": { "cached_tokens": 0 } })
    );
    assert!(several[0] != several[1] && several[1] != several[2], "{several:?}");
    let mut one = ask.clone();
    one["n"] = json!(1);
    one["best_of"] = json!(1);
    let alone = texts(&site.post("/v1/completions", one).await.json());
    assert_eq!(alone, [several[0].clone(), several[3].clone()], "the first answers are those of `n: 1`");

    let mut streamed = ask;
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({ "include_usage": true });
    let events = site.post("/v1/completions", streamed).await.events();
    let chunks: Vec<Value> =
        events[..events.len() - 1].iter().map(|(_, data)| serde_json::from_str(data).unwrap()).collect();
    let mut parts = vec![String::new(); 6];
    for choice in chunks.iter().flat_map(|chunk| chunk["choices"].as_array().unwrap()) {
        parts[choice["index"].as_u64().unwrap() as usize] += choice["text"].as_str().unwrap();
    }
    assert_eq!(parts, several);
    assert_eq!(chunks.last().unwrap()["usage"], body["usage"]);

    let chat = json!({ "messages": [{ "role": "user", "content": "Hi" }], "max_tokens": 6, "seed": 9, "n": 2, "ignore_eos": true });
    let body = site.post("/v1/chat/completions", chat.clone()).await.json();
    let content = |choice: usize| body["choices"][choice]["message"]["content"].as_str().unwrap().to_owned();
    assert!(content(0) != content(1) && body["choices"][1]["index"] == 1, "{body}");
    assert_eq!(body["usage"]["completion_tokens"], 12);
    let mut streamed = chat;
    streamed["stream"] = json!(true);
    let events = site.post("/v1/chat/completions", streamed).await.events();
    let mut parts = vec![String::new(); 2];
    let mut roles = 0;
    for (_, data) in &events[..events.len() - 1] {
        let chunk: Value = serde_json::from_str(data).unwrap();
        let choice = &chunk["choices"][0];
        roles += usize::from(choice["delta"]["role"] == "assistant");
        parts[choice["index"].as_u64().unwrap() as usize] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    assert_eq!((parts, roles), (vec![content(0), content(1)], 2));

    until("what was used is written", async || {
        let total = site.get("/v1/usage").await.json()["total"].clone();
        (&total["prompt_tokens"], &total["completion_tokens"])
            == (&json!(5 + 5 + 5 + 2 * body["usage"]["prompt_tokens"].as_u64().unwrap()), &json!(48 + 16 + 48 + 24))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn biases_decide_and_equal_spellings_of_alternatives_are_kept_apart() {
    let site = start(Setup::default()).await.ready().await;
    let ask = json!({
        "prompt": "abc", "max_tokens": 3, "temperature": 1, "logprobs": 0, "logit_bias": { "104": 100 }, "ignore_eos": true,
    });
    let body = site.post("/v1/completions", ask).await.json();
    assert_eq!(body["choices"][0]["text"], "hhh");
    let logprobs = &body["choices"][0]["logprobs"];
    for (top, logprob) in
        logprobs["top_logprobs"].as_array().unwrap().iter().zip(logprobs["token_logprobs"].as_array().unwrap())
    {
        assert_eq!(*top, json!({ "h": logprob }), "always with the chosen token");
    }
    // Bytes of which a character may begin or go on: as texts they would all be the same.
    let bias: serde_json::Map<String, Value> = (0x80..0xf5).map(|id: u32| (id.to_string(), json!(100))).collect();
    let ask =
        json!({ "prompt": "abc", "max_tokens": 4, "seed": 3, "logprobs": 5, "logit_bias": bias, "ignore_eos": true });
    let body = site.post("/v1/completions", ask).await.json();
    let logprobs = &body["choices"][0]["logprobs"];
    let tops = logprobs["top_logprobs"].as_array().unwrap();
    for (token, top) in logprobs["tokens"].as_array().unwrap().iter().zip(tops) {
        let (token, top) = (token.as_str().unwrap(), top.as_object().unwrap());
        assert!(token.starts_with("bytes:\\x"), "{token}");
        assert!(top.contains_key(token) && (5..=6).contains(&top.len()), "{token}: {top:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_probabilities_of_whole_answers_are_limited_and_those_of_streams_are_not() {
    let site = start(Setup::default()).await.ready().await;
    let chat = |more: Value| {
        let mut body =
            json!({ "messages": [{ "role": "user", "content": "a" }], "ignore_eos": true, "logprobs": true });
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    // 65,536 are allowed: 195 tokens of 16 answers with 20 alternatives.
    let refused = [
        ("/v1/chat/completions", chat(json!({ "n": 16, "top_logprobs": 20, "max_tokens": 196 }))),
        ("/v1/completions", json!({ "prompt": "a", "n": 16, "logprobs": 5, "max_tokens": 683 })),
        ("/v1/generate", json!({ "prompt": "a", "logprobs": 20, "max_tokens": 3_121 })),
    ];
    for (path, body) in refused {
        let reply = site.post(path, body).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("max_tokens")), "{path}: {}", reply.text());
        assert!(reply.text().contains("65536"), "{}", reply.text());
    }
    let body = chat(json!({ "n": 16, "top_logprobs": 20, "max_tokens": 196, "stream": true }));
    assert_eq!(site.post("/v1/chat/completions", body).await.status, 200);
    // A request that names no number gets as many as the limit allows.
    let body = site.post("/v1/chat/completions", chat(json!({ "n": 16, "top_logprobs": 20 }))).await.json();
    for choice in body["choices"].as_array().unwrap() {
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        assert_eq!((tokens.len(), tokens[0]["top_logprobs"].as_array().unwrap().len()), (195, 20));
        assert_eq!(choice["finish_reason"], "length");
    }
}
