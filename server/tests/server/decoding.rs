//! Structured output, the prefix cache and drafts.

use serde_json::{Value, json};

use super::support::{Setup, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompt_with_a_known_beginning_is_counted_as_cached_and_answered_alike() {
    let mut texts = Vec::new();
    for (models, cached, drafts) in
        [("", 32, true), ("\n    prefix_cache: false", 0, true), ("\n    draft_tokens: 0", 32, false)]
    {
        let models = format!("default: tiny\n    serve: [ {{ name: tiny, path: tiny }} ]{models}");
        let site = start(Setup { models: Some(&models), ..Setup::default() }).await.ready().await;
        let ask = json!({ "prompt": "a story ".repeat(5), "max_tokens": 60, "seed": 4, "logit_bias": { "104": 100 }, "ignore_eos": true });
        let mut answers = Vec::new();
        for cached in [0, cached] {
            let body = site.post("/v1/completions", ask.clone()).await.json();
            assert_eq!(body["usage"]["prompt_tokens"], 40);
            assert_eq!(body["usage"]["prompt_tokens_details"], json!({ "cached_tokens": cached }));
            answers.push(body["choices"].clone());
        }
        assert_eq!(answers[0], answers[1]);
        assert_eq!(site.metric("textnlp_prompt_tokens_cached_total").await, f64::from(cached));
        // Whether a draft pays depends on the measured time of a step.
        assert!(drafts || site.metric("textnlp_tokens_drafted_total").await == 0.0, "{models}");
        texts.push(answers[0][0]["text"].clone());
    }
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_are_json_of_the_schema_that_is_asked_for() {
    let site = start(Setup::default()).await.ready().await;
    let schema = json!({
        "type": "object",
        "properties": { "kind": { "enum": ["a", "b"] }, "sizes": { "type": "array", "items": { "type": "boolean" }, "maxItems": 2 } },
        "required": ["kind", "sizes"],
        "additionalProperties": false,
    });
    let format = json!({ "type": "json_schema", "json_schema": { "name": "thing", "strict": true, "schema": schema } });
    let holds = |text: &Value| {
        let value: Value =
            serde_json::from_str(text.as_str().unwrap()).unwrap_or_else(|error| panic!("{text}: {error}"));
        assert!(value["kind"] == "a" || value["kind"] == "b", "{value}");
        assert!(value["sizes"].as_array().unwrap().iter().all(Value::is_boolean), "{value}");
        assert_eq!(value.as_object().unwrap().len(), 2, "{value}");
    };
    // Random weights would fill the answer with them.
    let no_spaces = json!({ "9": -100, "10": -100, "13": -100, "32": -100 });
    let ask = json!({
        "messages": [{ "role": "user", "content": "x" }], "max_tokens": 200, "seed": 5, "n": 3, "temperature": 1.0,
        "response_format": format, "logit_bias": no_spaces, "ignore_eos": true,
    });
    let body = site.post("/v1/chat/completions", ask.clone()).await.json();
    for choice in body["choices"].as_array().unwrap() {
        assert_eq!(choice["finish_reason"], "stop", "{choice}");
        holds(&choice["message"]["content"]);
    }
    let mut streamed = ask;
    streamed["stream"] = json!(true);
    let events = site.post("/v1/chat/completions", streamed).await.events();
    let mut texts = vec![String::new(); 3];
    for (_, data) in &events {
        let Ok(chunk) = serde_json::from_str::<Value>(data) else { continue };
        let choice = &chunk["choices"][0];
        texts[choice["index"].as_u64().unwrap() as usize] += choice["delta"]["content"].as_str().unwrap_or_default();
    }
    for (place, text) in texts.iter().enumerate() {
        assert_eq!(body["choices"][place]["message"]["content"], *text);
    }
    let ask =
        json!({ "prompt": "x", "max_tokens": 200, "seed": 5, "response_format": format, "logit_bias": no_spaces });
    let body = site.post("/v1/completions", ask.clone()).await.json();
    holds(&body["choices"][0]["text"]);
    let body = site.post("/v1/generate", ask).await.json();
    assert_eq!(body["finish_reason"], "stop");
    holds(&body["text"]);
    let cut = json!({ "prompt": "x", "max_tokens": 3, "response_format": { "type": "json_object" } });
    let body = site.post("/v1/generate", cut).await.json();
    assert!(body["text"].as_str().unwrap().starts_with('{'), "{body}");
    // Each takes all the memory of guides that a key may have.
    let mut most = json!({ "prompt": "x", "n": 16, "max_tokens": 2, "response_format": { "type": "json_object" } });
    for streamed in [false, true, false] {
        most["stream"] = json!(streamed);
        let reply = site.post("/v1/completions", most.clone()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    }
}

/// Schemas that pass every bound of their parts and that the compiler multiplies.
fn multiplied() -> [Value; 4] {
    let large = |count: usize| json!({ "const": vec![0; count] });
    let names = |count: usize, value: &Value| -> Value {
        (0..count).map(|n| (format!("a{n}"), value.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    let nested = (0..30).fold(json!({ "type": "string" }), |inner, _| {
        json!({ "type": "object", "required": ["a", "b", "c", "d", "e", "f"], "additionalProperties": inner })
    });
    [
        json!({ "type": "object", "patternProperties": { "^a": large(14_000) }, "properties": names(2_000, &json!(true)) }),
        json!({ "allOf": [
            { "type": "object", "properties": names(1_500, &json!({})) },
            { "type": "object", "additionalProperties": large(5_000) },
        ] }),
        json!({
            "type": "object", "properties": names(1_500, &json!({})), "additionalProperties": false,
            "minProperties": 1,
        }),
        json!({ "oneOf": [nested.clone(), nested] }),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schema_that_the_compiler_multiplies_is_refused_and_the_server_goes_on() {
    let site = start(Setup::default()).await.ready().await;
    let ask = |schema: &Value| {
        json!({
            "prompt": "x", "max_tokens": 2,
            "response_format": { "type": "json_schema", "json_schema": { "name": "a", "schema": schema } },
        })
    };
    let memory = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap()
    };
    let before = memory();
    for schema in multiplied() {
        let text = schema.to_string();
        let reply = site.post("/v1/completions", ask(&schema)).await;
        assert_eq!(
            (reply.status, reply.error().0.as_str()),
            (422, "schema_too_complex"),
            "{}: {}",
            &text[..80],
            reply.text()
        );
        let plain = site.post("/v1/completions", ask(&json!({ "type": "boolean" }))).await;
        assert_eq!(plain.status, 200, "{}", plain.text());
    }
    assert!(memory() < before + (1 << 20), "{} kB", memory() - before);
}
