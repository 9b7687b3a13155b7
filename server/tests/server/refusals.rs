//! Whatever is sent, the answer says what is wrong with it, and the server goes on.

use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use super::support::client::read_reply;
use super::support::{Client, Setup, make_key, start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_invalid_field_is_named() {
    let site = start(Setup { api: "max_tokens: 100", ..Setup::default() }).await.ready().await;
    let generate = |extra: Value| ("/v1/generate", json!({ "prompt": "a" }), extra);
    let complete = |extra: Value| ("/v1/completions", json!({ "prompt": "a" }), extra);
    let chat =
        |extra: Value| ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": "a" }] }), extra);
    let schema = |schema: Value| json!({ "response_format": { "type": "json_schema", "json_schema": schema } });
    let called = |function: Value| json!({ "messages": [{ "role": "assistant", "tool_calls": [{ "id": "c", "type": "function", "function": function }] }] });
    let function = |name: &str, parameters: Value| json!({ "type": "function", "function": { "name": name, "parameters": parameters } });
    let named = |name: &str| json!({ "type": "function", "function": { "name": name } });
    let forced = |choice: &str, parameters: Value, extra: Value| {
        let mut body = json!({ "tools": [function("f", parameters)], "tool_choice": choice });
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    for ((path, base, extra), field) in [
        (generate(json!({ "prompt": null })), "prompt"),
        (generate(json!({ "prompt": 5 })), "prompt"),
        (generate(json!({ "prompt": ["a"] })), "prompt"),
        (generate(json!({ "max_tokens": -1 })), "max_tokens"),
        (generate(json!({ "max_tokens": 0 })), "max_tokens"),
        (generate(json!({ "max_tokens": 1.5 })), "max_tokens"),
        (generate(json!({ "max_tokens": 101 })), "max_tokens"),
        (generate(json!({ "max_tokens": 1e300 })), "max_tokens"),
        (generate(json!({ "max_tokens": "5" })), "max_tokens"),
        (generate(json!({ "temperature": 2.1 })), "temperature"),
        (generate(json!({ "temperature": -0.1 })), "temperature"),
        (generate(json!({ "temperature": "hot" })), "temperature"),
        (generate(json!({ "top_p": 1.01 })), "top_p"),
        (generate(json!({ "top_k": -3 })), "top_k"),
        (generate(json!({ "min_p": 2 })), "min_p"),
        (generate(json!({ "repetition_penalty": 0 })), "repetition_penalty"),
        (generate(json!({ "presence_penalty": 3 })), "presence_penalty"),
        (generate(json!({ "frequency_penalty": -3 })), "frequency_penalty"),
        (generate(json!({ "seed": "x" })), "seed"),
        (generate(json!({ "stop": [""] })), "stop"),
        (generate(json!({ "stop": 5 })), "stop"),
        (generate(json!({ "stop": [5] })), "stop"),
        (generate(json!({ "stop": vec!["a"; 17] })), "stop"),
        (generate(json!({ "stop": "x".repeat(600) })), "stop"),
        (generate(json!({ "stream": "yes" })), "stream"),
        (generate(json!({ "n": 2 })), "n"),
        (generate(json!({ "logprobs": 21 })), "logprobs"),
        (generate(json!({ "temprature": 1 })), "temprature"),
        (generate(json!({ "max_new_tokens": 1 })), "max_new_tokens"),
        (generate(json!({ "model": 7 })), "model"),
        (complete(json!({ "prompt": ["a", 5] })), "prompt"),
        (complete(json!({ "prompt": ["a", [5]] })), "prompt"),
        (complete(json!({ "prompt": [[5], "a"] })), "prompt"),
        (complete(json!({ "prompt": [[5], []] })), "prompt"),
        (complete(json!({ "prompt": vec!["a"; 17] })), "prompt"),
        (complete(json!({ "prompt": [[97], [97, 99999]] })), "prompt[1]"),
        (complete(json!({ "prompt": ["a", "a".repeat(5000)] })), "prompt[1]"),
        (complete(json!({ "prompt": [] })), "prompt"),
        (complete(json!({ "prompt": [1, -2] })), "prompt"),
        (complete(json!({ "prompt": [99999] })), "prompt"),
        (complete(json!({ "best_of": 3 })), "best_of"),
        (complete(json!({ "echo": true })), "echo"),
        (complete(json!({ "suffix": "end" })), "suffix"),
        (complete(json!({ "logit_bias": { "x": 1 } })), "logit_bias"),
        (complete(json!({ "logit_bias": { "5": 101 } })), "logit_bias"),
        (complete(json!({ "logit_bias": { "5": 1, "05": 2 } })), "logit_bias"),
        (complete(json!({ "logit_bias": { "+5": 1 } })), "logit_bias"),
        (complete(json!({ "logit_bias": { "99999": 1 } })), "logit_bias"),
        (complete(json!({ "logit_bias": [] })), "logit_bias"),
        (complete(json!({ "n": 0 })), "n"),
        (complete(json!({ "n": 17 })), "n"),
        (complete(json!({ "prompt": ["a", "b"], "n": 9 })), "n"),
        (complete(json!({ "n": 2, "best_of": 3 })), "best_of"),
        (complete(json!({ "logprobs": 6 })), "logprobs"),
        (complete(json!({ "stream_options": { "include_usage": true } })), "stream_options"),
        (complete(json!({ "stream": true, "stream_options": { "what": 1 } })), "stream_options"),
        (complete(json!({ "stream": true, "stream_options": 5 })), "stream_options"),
        (chat(json!({ "messages": [] })), "messages"),
        (chat(json!({ "messages": "hi" })), "messages"),
        (chat(json!({ "messages": [5] })), "messages[0]"),
        (chat(json!({ "messages": [{ "role": "judge", "content": "a" }] })), "messages[0].role"),
        (chat(json!({ "messages": [{ "role": "user" }] })), "messages[0].content"),
        (
            chat(json!({ "messages": [{ "role": "user", "content": [{ "type": "image_url" }] }] })),
            "messages[0].content",
        ),
        (
            chat(json!({ "messages": [{ "role": "user", "content": "a", "tool_calls": [{}] }] })),
            "messages[0].tool_calls",
        ),
        (chat(json!({ "messages": [{ "role": "tool", "content": "a" }] })), "messages[0].tool_call_id"),
        (chat(called(json!({ "name": "f", "arguments": "[]" }))), "messages[0].tool_calls[0].function.arguments"),
        (
            chat(called(json!({ "name": "f", "arguments": "{\"a\": }" }))),
            "messages[0].tool_calls[0].function.arguments",
        ),
        (chat(called(json!({ "name": "a b", "arguments": "" }))), "messages[0].tool_calls[0].function.name"),
        (chat(json!({ "messages": [{ "role": "assistant", "tool_calls": 5 }] })), "messages[0].tool_calls"),
        (chat(json!({ "messages": [{ "role": "assistant" }] })), "messages[0].content"),
        (chat(json!({ "tools": {} })), "tools"),
        (chat(json!({ "tools": vec![function("f", json!({ "type": "object" })); 129] })), "tools"),
        (
            chat(json!({ "tools": [function("f", json!({ "type": "object", "title": "a".repeat(128 << 10) }))] })),
            "tools",
        ),
        (chat(json!({ "tools": [{ "type": "function" }] })), "tools[0].function"),
        (chat(json!({ "tools": [{ "type": "code", "function": { "name": "f" } }] })), "tools[0].type"),
        (
            chat(json!({ "tools": [{ "type": "function", "function": { "name": "f", "returns": {} } }] })),
            "tools[0].function.returns",
        ),
        (chat(json!({ "tools": [function("a b", json!(null))] })), "tools[0].function.name"),
        (chat(json!({ "tools": [function(&"a".repeat(65), json!(null))] })), "tools[0].function.name"),
        (chat(json!({ "tools": [function("f", json!({}))] })), "tools[0].function.parameters"),
        (chat(json!({ "tools": [function("f", json!(null)), function("f", json!(null))] })), "tools[1].function.name"),
        (chat(json!({ "tool_choice": "required" })), "tool_choice"),
        (chat(forced("some", json!(null), json!({}))), "tool_choice"),
        (chat(forced("f", json!(null), json!({ "tool_choice": named("g") }))), "tool_choice.function.name"),
        (chat(forced("required", json!(null), json!({ "parallel_tool_calls": true }))), "parallel_tool_calls"),
        (
            chat(forced("required", json!(null), json!({ "response_format": { "type": "json_object" } }))),
            "response_format",
        ),
        (chat(forced("required", json!(null), json!({ "logprobs": true }))), "logprobs"),
        (
            chat(forced("required", json!({ "type": "object", "properties": { "b": { "not": {} } } }), json!({}))),
            "tools[0].function.parameters/properties/b/not",
        ),
        (
            chat(forced(
                "required",
                json!({ "type": "object", "required": ["a"], "additionalProperties": false }),
                json!({}),
            )),
            "tools",
        ),
        (chat(json!({ "functions": [{ "name": "f" }] })), "functions"),
        (chat(json!({ "response_format": "json" })), "response_format"),
        (chat(json!({ "response_format": { "type": "xml" } })), "response_format.type"),
        (chat(json!({ "response_format": { "type": "json_object", "schema": {} } })), "response_format.schema"),
        (complete(json!({ "response_format": { "type": "json_schema" } })), "response_format.json_schema"),
        (complete(schema(json!({ "name": "a b", "schema": {} }))), "response_format.json_schema.name"),
        (complete(schema(json!({ "name": "a" }))), "response_format.json_schema.schema"),
        (complete(schema(json!({ "name": "a", "schema": {}, "strictly": 1 }))), "response_format.json_schema.strictly"),
        (
            generate(schema(json!({ "name": "a", "schema": { "properties": { "b": { "not": {} } } } }))),
            "response_format.json_schema.schema/properties/b/not",
        ),
        (
            chat(schema(json!({ "name": "a", "schema": { "description": "a".repeat(1 << 20) } }))),
            "response_format.json_schema.schema",
        ),
        (chat(schema(json!({ "name": "a", "schema": false }))), "response_format.json_schema.schema"),
        (chat(json!({ "top_logprobs": 3 })), "top_logprobs"),
        (chat(json!({ "logprobs": true, "top_logprobs": 21 })), "top_logprobs"),
        (chat(json!({ "max_tokens": 5, "max_completion_tokens": 6 })), "max_tokens"),
        (chat(json!({ "audio": {} })), "audio"),
        (chat(json!({ "reasoning_effort": "high" })), "reasoning_effort"),
        (chat(json!({ "store": true })), "store"),
        (("/v1/stream", json!({ "prompt": "a" }), json!({ "stream": false })), "stream"),
    ] {
        let mut body = base;
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let reply = site.post(path, body).await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some(field)), "{path} {extra}: {}", reply.text());
    }
    let several =
        site.post("/v1/generate", json!({ "prompt": "a", "temperature": 9, "max_tokens": -1, "temprature": 1 })).await;
    let hint = several.error().2.unwrap();
    assert!(
        hint.contains("temprature")
            && several.text().contains("max_tokens")
            && several.text().contains("`temperature`"),
        "{}",
        several.text()
    );
    let tool =
        |parameters: Value| json!({ "type": "function", "function": { "name": "a b", "parameters": parameters } });
    let ask = json!({
        "messages": [{ "role": "tool", "content": 5 }], "tools": [tool(json!([])), { "type": "x" }], "tool_choice": 5,
    });
    let text = site.post("/v1/chat/completions", ask).await.text();
    for place in [
        "messages[0].tool_call_id",
        "messages[0].content",
        "tools[0].function.name",
        "tools[0].function.parameters",
        "tools[1].type",
        "`tool_choice`",
    ] {
        assert!(text.contains(place), "{place}: {text}");
    }
    let typo = site.post("/v1/generate", json!({ "prompt": "a", "temprature": 1 })).await;
    assert!(typo.error().2.unwrap().contains("did you mean `temperature`?"));
    let empty = site.post("/v1/generate", json!({ "prompt": "a", "": 1 })).await;
    assert!(empty.status == 400 && !empty.text().contains("did you mean"), "{}", empty.text());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invalid_json_is_refused_with_its_location() {
    let site = start(Setup::default()).await.ready().await;
    let key = site.key.clone();
    let deep = format!("{{\"prompt\":{}1{}}}", "[".repeat(50_000), "]".repeat(50_000));
    for (body, status, param, says) in [
        (&b""[..], 400, None, "empty"),
        (b"   ", 400, None, "empty"),
        (b"{", 400, None, "line 1"),
        (b"[]", 400, None, "object"),
        (b"5", 400, None, "object"),
        (b"null", 400, None, "object"),
        (b"{\"prompt\":\"a\",\"temperature\":NaN}", 400, Some("temperature"), "NaN"),
        (b"{\"prompt\":\"a\",\"temperature\":-Infinity}", 400, Some("temperature"), "Infinity"),
        (b"{\"prompt\":\"a\",\"max_tokens\":1e999}", 400, Some("max_tokens"), "1.8e308"),
        (b"{\"prompt\":\"a\",\"max_tokens\":-99999999999999999999999}", 400, Some("max_tokens"), "whole number"),
        (b"{\"prompt\":\"\xff\xfe\"}", 400, None, "UTF-8"),
        (b"{\"prompt\":\"\\ud800\"}", 400, Some("prompt"), "surrogate"),
        (b"{\"prompt\":\"\\udc00\"}", 400, Some("prompt"), "surrogate"),
        (b"{\"prompt\":\"a\",\"logit_bias\":{\"5\":1e400}}", 400, Some("logit_bias.5"), "1.8e308"),
        (b"{\"prompt\":\"a\",\"max_tokens\":1,\"prompt\":\"b\"}", 400, Some("prompt"), "is duplicated"),
        (b"{\"prompt\":\"a\",\"metadata\":{\"x\":1,\"x\":1}}", 400, Some("metadata.x"), "once"),
        (deep.as_bytes(), 400, Some("prompt"), "127 levels"),
    ] {
        let shown = String::from_utf8_lossy(&body[..body.len().min(60)]).into_owned();
        let reply = site
            .client
            .send("POST", "/v1/generate", &[("x-api-key", &key), ("content-type", "application/json")], body)
            .await;
        assert_eq!((reply.status, reply.error().1.as_deref()), (status, param), "{shown}: {}", reply.text());
        assert!(reply.text().contains(says), "{shown}: {}", reply.text());
    }
    let reply = site
        .client
        .send("POST", "/v1/generate", &[("x-api-key", &key), ("content-type", "text/plain")], b"{\"prompt\":\"a\"}")
        .await;
    assert_eq!(reply.status, 415);
    let packed = [("x-api-key", key.as_str()), ("content-type", "application/json"), ("content-encoding", "gzip")];
    assert_eq!(site.client.send("POST", "/v1/generate", &packed, b"{}").await.status, 415);
    let charset = [("x-api-key", key.as_str()), ("content-type", "application/json; charset=utf-8")];
    let reply = site.client.send("POST", "/v1/generate", &charset, b"{\"prompt\":\"a\",\"max_tokens\":1}").await;
    assert_eq!(reply.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn oversized_body_is_refused_announced_chunked_and_at_100_megabytes() {
    let site = start(Setup { api: "max_request_size: 1MB", ..Setup::default() }).await.ready().await;
    let fits = json!({ "text": "a".repeat(900_000) });
    assert_eq!(site.post("/v1/tokenize", fits).await.error().0, "context_length_exceeded");
    let large = json!({ "text": "a".repeat(1_000_001) });
    let reply = site.post("/v1/tokenize", large).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (413, "request_too_large"));
    assert!(reply.text().contains("1 MB"));
    let before = site.metric("process_resident_memory_bytes").await;
    for chunked in [false, true] {
        let mut stream = site.client.connect().await;
        let length =
            if chunked { "transfer-encoding: chunked".to_owned() } else { "content-length: 100000000".to_owned() };
        let head = format!(
            "POST /v1/tokenize HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-type: application/json\r\n{length}\r\nconnection: close\r\n\r\n",
            site.key
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let block = vec![b' '; 1_000_000];
        for _ in 0..100 {
            if chunked {
                stream.write_all(format!("{:x}\r\n", block.len()).as_bytes()).await.unwrap();
            }
            stream.write_all(&block).await.unwrap();
            if chunked {
                stream.write_all(b"\r\n").await.unwrap();
            }
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").await.unwrap();
        }
        let reply = read_reply(&mut *stream).await;
        assert_eq!(reply.status, 413, "chunked: {chunked}");
    }
    let after = site.metric("process_resident_memory_bytes").await;
    assert!(after - before < 60e6, "a body that is thrown away is not kept: {before} to {after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_endpoint_bounds_its_body_and_its_json_values() {
    let site = start(Setup { batch: Some("{}"), ..Setup::default() }).await.ready().await;
    let document = site.client.send("GET", "/openapi.json", &[], b"").await.json();
    let limits = [
        ("/auth/token", 4_000, "4 kB"),
        ("/admin/features", 4_000, "4 kB"),
        ("/v1/stream/tickets", 128_000, "128 kB"),
        ("/v1/validate", 256_000, "256 kB"),
    ];
    let admin = make_key(&site.config, json!({ "do": "create", "scopes": ["admin"] })).await;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let described = &methods["post"]["requestBody"]["description"];
        // The limit of a form is that of its file: tests of batches have it.
        if methods["post"]["requestBody"].is_null() || path == "/v1/files" {
            continue;
        }
        let own = limits.iter().find(|(limited, ..)| limited == path);
        let (most, named) = own.map_or((10_000_000, "10 MB"), |(_, most, named)| (*most, *named));
        assert_eq!(described, &json!(format!("At most {named}.")), "{path}");
        // Nothing of the body is sent: what is announced is enough.
        let key = if path.starts_with("/admin/") { &admin } else { &site.key };
        let headers = [("x-api-key", key.as_str()), ("expect", "100-continue")];
        let mut stream = site.client.connect().await;
        stream.write_all(Client::head("POST", path, &headers, most + 1).as_bytes()).await.unwrap();
        let reply = read_reply(&mut *stream).await;
        assert_eq!((reply.status, reply.error().0.as_str()), (413, "request_too_large"), "{path}");
        assert!(reply.text().contains(named), "{path}: {}", reply.text());
        let values = json!({ "metadata": vec![json!({}); (most / 4).min(300_000)] });
        let reply = site.post_as(key, path, values).await;
        let code = if most > 1_000_000 { (413, "request_too_large") } else { (400, "invalid_request") };
        assert_eq!((reply.status, reply.error().0.as_str()), code, "{path}: {}", reply.text());
    }
    let unknown: serde_json::Map<String, Value> = (0..50_000).map(|n| (format!("field{n}"), json!(0))).collect();
    let reply = site.post("/v1/generate", Value::Object(unknown)).await;
    assert!(reply.status == 400 && reply.error().2.unwrap().matches("is not a known field").count() == 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn concurrent_large_bodies_share_memory_and_are_all_answered() {
    let site = start(Setup::default()).await.ready().await;
    let large = json!({ "prompt": "a", "max_tokens": 1, "user": "u".repeat(9_000_000) });
    let replies = futures::future::join_all((0..12).map(|_| site.post("/v1/generate", large.clone()))).await;
    assert!(
        replies.iter().all(|reply| reply.status == 200),
        "{:?}",
        replies.iter().map(|r| r.status).collect::<Vec<_>>()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn incomplete_body_or_header_times_out() {
    let site =
        start(Setup { api: "body_timeout: 200ms\nheader_timeout: 200ms", ..Setup::default() }).await.ready().await;
    let mut stream = site.client.connect().await;
    let head = format!(
        "POST /v1/generate HTTP/1.1\r\nhost: localhost\r\nx-api-key: {}\r\ncontent-length: 50\r\n\r\n{{\"pro",
        site.key
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let reply = read_reply(&mut *stream).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (408, "request_timeout"));
    for begun in ["", "GET /health HTTP/1.1\r\nhost: loc"] {
        let mut stream = site.client.connect().await;
        stream.write_all(begun.as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest);
        tokio::time::timeout(std::time::Duration::from_secs(60), read).await.expect("the server hangs up").unwrap();
        assert!(rest.is_empty() || rest.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&rest));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn prompt_over_the_context_is_refused_and_one_just_below_answered() {
    let site = start(Setup::default()).await.ready().await;
    let ask = |length: usize| json!({ "prompt": "x".repeat(length), "max_tokens": 50, "ignore_end": true });
    for length in [256, 300, 9_000_000] {
        let reply = site.post("/v1/generate", ask(length)).await;
        let (code, param, hint) = reply.error();
        assert_eq!(
            (reply.status, code.as_str(), param.as_deref()),
            (400, "context_length_exceeded", Some("prompt")),
            "{length}"
        );
        let hint = hint.unwrap();
        assert!(hint.contains("256"));
        // A text that is not tokenized has a bound: neither a count, nor advice to count what is refused there, too.
        let (is_bound, is_countable) = (reply.text().contains("has at least "), hint.contains("/v1/tokenize"));
        assert_eq!((is_bound, is_countable), (length == 9_000_000, length < 9_000_000), "{}", reply.text());
    }
    let reply = site.post("/v1/generate", ask(250)).await.json();
    assert_eq!((&reply["finish_reason"], &reply["usage"]["completion_tokens"]), (&json!("length"), &json!(6)));
    let chat = json!({ "messages": [{ "role": "user", "content": "x".repeat(400) }] });
    let reply = site.post("/v1/chat/completions", chat).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("messages")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unknown_paths_methods_and_models_get_the_standard_error_format() {
    let site = start(Setup::default()).await.ready().await;
    for (method, path, status, code) in [
        ("GET", "/", 404, "not_found"),
        ("GET", "/v1/nothing", 404, "not_found"),
        ("POST", "/health", 405, "method_not_allowed"),
        ("GET", "/v1/generate", 405, "method_not_allowed"),
        ("DELETE", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/%2e%2e%2f%2e%2e%2fetc%2fpasswd", 404, "model_not_found"),
        ("GET", "/v1/models/%ff", 400, "invalid_request"),
    ] {
        let reply = site.client.send(method, path, &[("x-api-key", &site.key)], b"").await;
        assert_eq!(reply.status, status, "{method} {path}");
        assert_eq!(reply.error().0, code, "{method} {path}");
        assert!(reply.header("x-request-id").is_some());
    }
    // Another spelling of a path is no way around the credential.
    for (method, path, status) in [
        ("TRACE", "/v1/models", 405),
        ("GET", "//v1/models", 404),
        ("GET", "/V1/models", 404),
        ("GET", "/v1/models/", 404),
        ("GET", "/v1//models", 404),
        ("GET", "/%761/models", 404),
        ("GET", "/v1%2fmodels", 404),
        ("GET", "/health/../v1/models", 404),
        ("GET", "/health/..%2fv1/models", 404),
        ("GET", "/v1/models;x=y", 404),
        ("GET", "/v1/models?x=y", 401),
    ] {
        let reply = site.client.send(method, path, &[], b"").await;
        assert!(reply.status == status || reply.status == 401, "{method} {path}: {}", reply.status);
        assert!(!reply.text().contains("tiny"), "{method} {path}: {}", reply.text());
    }
    let reply = site.post("/v1/generate", json!({ "prompt": "a", "model": "gpt-5" })).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (404, Some("model")));
    let text = site.metrics.send("GET", "/metrics", &[], b"").await.text();
    assert!(text.contains("route=\"other\"") && !text.contains("/v1/nothing"), "made-up paths make no series");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn malformed_http_does_not_affect_other_requests() {
    let site = start(Setup::default()).await.ready().await;
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000));
    let many = format!("GET /health HTTP/1.1\r\nhost: x\r\n{}\r\n", "a: b\r\n".repeat(500));
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"\0\0\0\0\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/generate HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
        b"POST /v1/generate HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/1.1\r\nx-request-id: a\r\n b\r\n\r\n",
        long.as_bytes(),
        many.as_bytes(),
    ] {
        let mut stream = site.client.connect().await;
        let _ = stream.write_all(garbage).await;
        let _ = stream.shutdown().await;
        let mut rest = Vec::new();
        let _ = tokio::time::timeout(
            std::time::Duration::from_secs(60),
            tokio::io::AsyncReadExt::read_to_end(&mut stream, &mut rest),
        )
        .await
        .expect("the connection ends");
    }
    assert_eq!(site.client.send("GET", "/health", &[], b"").await.status, 200);
    let head = Client::head("POST", "/v1/generate", &[("x-api-key", &site.key)], 34);
    let mut stream = site.client.connect().await;
    stream.write_all(head.as_bytes()).await.unwrap();
    drop(stream);
    assert_eq!(site.post("/v1/generate", json!({ "prompt": "a", "max_tokens": 2 })).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn safe_request_id_is_echoed_and_others_replaced() {
    let site = start(Setup::default()).await.ready().await;
    let id = async |id: &str| {
        let reply = site.client.send("GET", "/health", &[("x-request-id", id)], b"").await;
        reply.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(id("trace-1.2:3_4").await, "trace-1.2:3_4");
    for bad in ["", "a b", "a\"b", &"x".repeat(129), "ü"] {
        assert_ne!(id(bad).await, bad);
    }
    assert_ne!(id("a b").await, id("a b").await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cors_is_denied_to_unlisted_origins() {
    let ask = [
        ("origin", "https://app.example.com"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "authorization"),
    ];
    let site = start(Setup::default()).await.ready().await;
    let reply = site.client.send("OPTIONS", "/v1/generate", &ask, b"").await;
    assert!(reply.header("access-control-allow-origin").is_none());
    assert!(site.client.send("GET", "/health", &ask[..1], b"").await.header("access-control-allow-origin").is_none());
    let site =
        start(Setup { api: "cors_origins: [\"https://app.example.com\"]", ..Setup::default() }).await.ready().await;
    let reply = site.client.send("OPTIONS", "/v1/generate", &ask, b"").await;
    assert_eq!((reply.status, reply.header("access-control-allow-origin")), (200, Some("https://app.example.com")));
    // As the official JavaScript SDK asks.
    let names =
        "authorization,content-type,openai-organization,openai-project,x-stainless-lang,x-stainless-retry-count";
    let ask = [ask[0], ask[1], ("access-control-request-headers", names)];
    let reply = site.client.send("OPTIONS", "/v1/chat/completions", &ask, b"").await;
    assert_eq!(reply.header("access-control-allow-headers"), Some(names));
    let refused = site.client.send("POST", "/v1/chat/completions", &ask[..1], b"").await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, Some("https://app.example.com")));
    let other = site.client.send("GET", "/health", &[("origin", "https://evil.example.com")], b"").await;
    assert_ne!(other.header("access-control-allow-origin"), Some("https://evil.example.com"));
}
