//! A model of every family as an operator serves it: inspected, deployed by one `up`, and asked over HTTP. Each is a tiny one of seeded
//! random weights, whose greedy text `transformers` has written down.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Map, Value, json};
use textnlp_tests::{Sandbox, copy, http};

/// Families with the executor that serves them, safetensors in f32, f16 or bf16.
const OWN: &[&str] =
    &["gemma", "gemma2", "gemma3", "gpt2", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3", "starcoder2"];
const CANDLE: &[&str] = &[
    "falcon-alibi",
    "falcon-groups",
    "gemma",
    "gemma2",
    "gemma3",
    "gpt2",
    "gpt_neo",
    "gpt_neox",
    "gpt_neox-bf16",
    "gptj",
    "gptj-f16",
    "llama",
    "mistral",
    "mixtral",
    "mixtral-shards",
    "olmo",
    "olmo2",
    "opt",
    "phi",
    "phi3",
    "qwen2",
    "qwen3",
    "stablelm",
    "starcoder2",
];
const GGUF: &[&str] = &[
    "gemma-f16",
    "gemma2-f16",
    "gemma3-f16",
    "gpt2-f16",
    "gpt2-q4_0",
    "llama-q5_0",
    "llama-q8_0",
    "olmo2-f16",
    "phi3-f16",
    "qwen2-f16",
    "qwen3-f16",
    "starcoder2-f16",
];
const ENCODERS: &[&str] = &["bert", "distilbert", "roberta", "xlm-roberta"];

/// Messages become nothing but their text.
const TEMPLATE: &str = "{% for message in messages %}{{ message['content'] }}{% endfor %}";

/// The letter of a token, a byte each, and how GPT-2's alphabet of bytes spells it: any text of these is tokenized into them.
fn letter(token: u64) -> (char, char) {
    match token {
        0..94 => {
            let letter = char::from(b'!' + u8::try_from(token).unwrap());
            (letter, letter)
        }
        94 => (' ', 'Ġ'),
        95 => ('\n', 'Ċ'),
        96 => ('\t', 'ĉ'),
        _ => panic!("token {token} has no letter"),
    }
}

fn text_of(tokens: &Value) -> String {
    tokens.as_array().unwrap().iter().map(|token| letter(token.as_u64().unwrap()).0).collect()
}

fn golden(executor: &str, name: &str) -> Utf8PathBuf {
    // Both executors have Gemma, and one its files.
    let folder = if executor == "candle" && !name.starts_with("gemma") { "candle" } else { "inference" };
    Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../server").join(folder).join("tests/golden").join(name)
}

/// Gives a model without a tokenizer one of letters, and a chat template. No token ends a text.
fn with_letters(folder: &Utf8Path) {
    let read = |name: &str| -> Value { serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap() };
    let write = |name: &str, value: &Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    let mut config = read("config.json");
    for key in ["eos_token_id", "bos_token_id", "pad_token_id"] {
        config.as_object_mut().unwrap().remove(key);
    }
    write("config.json", &config);
    let vocab: Map<String, Value> =
        (0..config["vocab_size"].as_u64().unwrap()).map(|token| (letter(token).1.to_string(), json!(token))).collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                   "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    });
    write("tokenizer.json", &tokenizer);
    write("tokenizer_config.json", &json!({ "chat_template": TEMPLATE }));
}

/// A model that is served: its name, the executor that it asks for, and what `transformers` says about it.
struct Served {
    name: String,
    executor: &'static str,
    expected: Value,
}

#[test]
fn a_model_of_every_family_is_inspected_deployed_and_asked() {
    let sandbox = Sandbox::new("families");
    let folder = sandbox.folder().join("models");
    let inspect = |source: &str| sandbox.run(&["model", "inspect", source]).expect(0).out;
    let mut served: Vec<Served> = Vec::new();
    let mut entries: Vec<Value> = Vec::new();
    let mut add = |name: String, source: &Utf8Path, executor: &'static str, expected: Value| {
        let mut entry = json!({ "name": name, "source": format!("file:{source}"), "preload": false });
        // Its text is that of exact products, and candle computes f16 in f16.
        if name.ends_with("-f16") && executor == "candle" {
            entry["quantize"] = json!("f32");
        }
        if !executor.is_empty() {
            entry["executor"] = json!(executor);
        }
        entries.push(entry);
        served.push(Served { name, executor, expected });
    };
    // A family of candle alone says whether the program has it.
    let probe = folder.join("probe");
    copy(&golden("candle", "gptj"), &probe);
    with_letters(&probe);
    let has_candle = !inspect(&format!("file:{probe}")).contains("not part of this build");
    if !has_candle {
        eprintln!("LEFT OUT: the families of candle: the program is built without it");
    }
    let of_candle: &[&str] = if has_candle { CANDLE } else { &[] };
    for (executor, names) in [("own", OWN), ("candle", of_candle)] {
        for name in names {
            let place = folder.join(format!("{executor}-{name}"));
            copy(&golden(executor, name), &place);
            let expected = std::fs::read(place.join("expected.json")).unwrap();
            std::fs::remove_file(place.join("expected.json")).unwrap();
            with_letters(&place);
            let said = inspect(&format!("file:{place}"));
            let named = if executor == "own" { "own kernels" } else { "candle" };
            // The path names it, too.
            let of = said.lines().find(|line| line.trim_start().starts_with("executor ")).unwrap_or_default();
            assert!(of.contains(named), "{name}: {said}");
            let name = format!("{executor}-{}", name.replace('_', "-"));
            add(name, &place, executor, serde_json::from_slice(&expected).unwrap());
        }
    }
    for name in GGUF {
        // The merges of these files are for other tests, and of no words that they have.
        let (key, other) = (b"tokenizer.ggml.merges", b"tokenizer.ggml.xerges");
        let mut bytes = std::fs::read(golden("own", &format!("{name}.gguf"))).unwrap();
        if let Some(at) = bytes.windows(key.len()).position(|window| window == key) {
            bytes[at..at + key.len()].copy_from_slice(other);
        }
        let file = folder.join(format!("{name}.gguf"));
        std::fs::write(&file, bytes).unwrap();
        let said = inspect(&format!("file:{file}"));
        assert!(said.contains("(Gguf)") && said.contains("own kernels"), "{name}: {said}");
        add(format!("gguf-{}", name.replace('_', "-")), &file, "", Value::Null);
        if has_candle {
            add(format!("candle-gguf-{}", name.replace('_', "-")), &file, "candle", Value::Null);
        }
    }
    for name in ENCODERS {
        let place = folder.join(name);
        copy(&golden("own", name), &place);
        let said = inspect(&format!("file:{place}"));
        assert!(said.contains("makes      embeddings"), "{name}: {said}");
        add((*name).to_owned(), &place, "", Value::Null);
    }
    entries[0]["role"] = json!("default");
    let environments = sandbox.folder().join("environments");
    std::fs::create_dir(&environments).unwrap();
    // JSON is YAML.
    let file = json!({ "extends": "development", "environment": "families", "models": entries });
    std::fs::write(environments.join("families.yaml"), file.to_string()).unwrap();
    let up = sandbox.run(&["up", "--env", "families", "--yes", "--no-gate", "-o", "json"]).expect(0).json();
    eprintln!("{} models after {} s", served.len(), up["seconds"]);

    let ask = |path: &str, body: Value| {
        let answer = http::post(sandbox.port, path, &body).unwrap();
        assert_eq!(answer.status, 200, "{path} {body}: {}", answer.text());
        answer.json()
    };
    let listed = http::get(sandbox.port, "/v1/models").unwrap().json();
    assert_eq!(listed["data"].as_array().map(Vec::len), Some(served.len()), "{listed}");
    for Served { name, executor, expected } in &served {
        if ENCODERS.contains(&name.as_str()) {
            let made =
                ask("/v1/embeddings", json!({ "model": name, "input": ["the harbour", "the harbour", "a fox"] }));
            let vector = |n: usize| made["data"][n]["embedding"].as_array().unwrap();
            let length: f64 = vector(0).iter().map(|number| number.as_f64().unwrap().powi(2)).sum();
            assert!(vector(0).len() > 8 && length > 0.01, "{name}: {made}");
            assert!(vector(0) == vector(1) && vector(0) != vector(2), "{name}");
        } else if expected.is_null() {
            // Their vocabularies have no letters.
            let (prompt, count) = (json!([1, 2, 3]), 5u64);
            let body =
                json!({ "model": name, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": true });
            let made = ask("/v1/completions", body);
            let used = (made["usage"]["prompt_tokens"].as_u64(), made["usage"]["completion_tokens"].as_u64());
            assert_eq!(used, (Some(3), Some(count)), "{name}: {made}");
        } else {
            let (prompt, text) = (text_of(&expected["tokens"]), text_of(&expected["greedy"]));
            let length = text.len();
            let body = json!({ "model": name, "prompt": prompt, "max_tokens": length, "temperature": 0 });
            let made = ask("/v1/completions", body);
            assert_eq!(made["usage"]["prompt_tokens"].as_u64(), Some(prompt.len() as u64), "{name}: {made}");
            assert_eq!(made["choices"][0]["text"], text, "{name} on {executor}: {made}");
            let message = json!({ "role": "user", "content": prompt });
            let body = json!({ "model": name, "messages": [message], "max_tokens": length, "temperature": 0 });
            let chat = ask("/v1/chat/completions", body);
            assert_eq!(chat["choices"][0]["message"]["content"], text, "{name} on {executor}: {chat}");
        }
        let shown = http::get(sandbox.port, &format!("/v1/models/{name}")).unwrap().json();
        let is_of_candle = shown["details"]["notes"].to_string().contains("candle executor");
        assert!(shown["state"] == "ready" && is_of_candle == (*executor == "candle"), "{name}: {shown}");
    }
    sandbox.run(&["down", "--env", "families", "--yes"]).expect(0);
}
