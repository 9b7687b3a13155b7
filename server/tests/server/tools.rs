//! Tools of chats: calls that a request forces, calls that a model writes, and their results.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::support::{
    Reply, Setup, Shape, Site, config, path, start, start_in, write_model, write_script, write_template,
};

/// Shows tools, calls and results; its model writes calls as Hermes does.
const HERMES: &str = "{% if tools %}{% for t in tools %}{{ t.function | tojson }}{% endfor %}{% endif %}{% for m in messages %}\
    {{ '<' + m.role + '>' + m.content }}{% if m.tool_calls %}{% for c in m.tool_calls %}\
    {{ '<tool_call>' + c.function.name + (c.function.arguments | tojson) + '</tool_call>' }}{% endfor %}{% endif %}{% endfor %}>";

const LLAMA: &str = "{% if tools %}{{ '{\"name\": function name, \"parameters\": arguments}' }}{% endif %}>";

/// The tool `clock` as [`HERMES`] shows it.
const CLOCK: &str = "{\"name\": \"clock\", \"parameters\": {\"type\": \"object\", \"properties\": {}, \"additionalProperties\": false}}";

fn clock() -> Value {
    json!({ "type": "function", "function": { "name": "clock" } })
}

fn forecast() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": { "kind": { "$ref": "#/$defs/kind" }, "days": { "type": "array", "items": { "type": "boolean" }, "maxItems": 2 } },
        "required": ["kind", "days"],
        "additionalProperties": false,
        "$defs": { "kind": { "enum": ["sun", "rain"] } },
    });
    let function = json!({ "name": "forecast", "description": "x", "strict": true, "parameters": parameters });
    json!({ "type": "function", "function": function })
}

/// Whether the arguments of a call are those of its function.
fn holds(call: &Value) -> bool {
    let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
    match call["name"].as_str().unwrap() {
        "clock" => arguments == json!({}),
        "forecast" => (arguments["kind"] == "sun" || arguments["kind"] == "rain") && arguments["days"].is_array(),
        _ => false,
    }
}

/// The messages that a stream makes, with the `finish_reason` in each.
fn joined(reply: &Reply) -> Vec<Value> {
    let mut messages: Vec<Value> = Vec::new();
    for (_, data) in reply.events() {
        let Ok(chunk) = serde_json::from_str::<Value>(&data) else { continue };
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        if messages.len() <= index {
            messages.resize(index + 1, json!({ "content": "", "tool_calls": [] }));
        }
        let (message, delta) = (&mut messages[index], &choice["delta"]);
        let content = message["content"].as_str().unwrap().to_owned() + delta["content"].as_str().unwrap_or_default();
        message["content"] = json!(content);
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let calls = message["tool_calls"].as_array_mut().unwrap();
            let number = call["index"].as_u64().unwrap() as usize;
            if call.get("id").is_some() {
                assert_eq!((number, &call["type"]), (calls.len(), &json!("function")), "{call}");
                assert!(call["id"].as_str().unwrap().starts_with("call_"), "{call}");
                calls.push(call["function"].clone());
            } else {
                let more = call["function"]["arguments"].as_str().unwrap();
                let arguments = calls[number]["arguments"].as_str().unwrap().to_owned() + more;
                calls[number]["arguments"] = json!(arguments);
            }
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            message["finish_reason"] = json!(reason);
        }
    }
    messages
}

/// The same of an answer that is whole.
fn whole(body: &Value) -> Vec<Value> {
    let one = |choice: &Value| {
        let message = &choice["message"];
        let calls = message["tool_calls"].as_array().into_iter().flatten();
        json!({
            "content": message["content"].as_str().unwrap_or_default(),
            "tool_calls": calls.map(|call| call["function"].clone()).collect::<Vec<_>>(),
            "finish_reason": choice["finish_reason"],
        })
    };
    body["choices"].as_array().unwrap().iter().map(one).collect()
}

/// The answers to a request, which are the same streamed.
async fn answers(site: &Site, ask: &Value) -> Vec<Value> {
    let reply = site.post("/v1/chat/completions", ask.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let mut streamed = ask.clone();
    streamed["stream"] = json!(true);
    let answers = whole(&reply.json());
    assert_eq!(joined(&site.post("/v1/chat/completions", streamed).await), answers, "{ask}");
    answers
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answer_is_a_call_of_a_function_that_the_request_names() {
    let site = start(Setup::default()).await.ready().await;
    // Random weights would fill the answer with spaces.
    let no_spaces = json!({ "9": -100, "10": -100, "13": -100, "32": -100 });
    let mut ask = json!({
        "messages": [{ "role": "user", "content": "x" }], "max_tokens": 200, "seed": 5, "n": 8, "temperature": 1.0,
        "logit_bias": no_spaces, "ignore_eos": true, "tools": [forecast(), clock()], "tool_choice": "required",
        "parallel_tool_calls": false,
    });
    let body = site.post("/v1/chat/completions", ask.clone()).await.json();
    let choices = body["choices"].as_array().unwrap();
    let ids: BTreeSet<&str> =
        choices.iter().map(|choice| choice["message"]["tool_calls"][0]["id"].as_str().unwrap()).collect();
    assert!(ids.len() == 8 && ids.iter().all(|id| id.starts_with("call_")), "{ids:?}");
    assert!(choices.iter().all(|choice| choice["message"]["content"].is_null()), "{body}");
    let mut names = BTreeSet::new();
    for message in answers(&site, &ask).await {
        assert_eq!(message["finish_reason"], "tool_calls", "{message}");
        let [call] = &message["tool_calls"].as_array().unwrap()[..] else { panic!("{message}") };
        assert!(holds(call), "{message}");
        names.insert(call["name"].to_string());
    }
    assert_eq!(names.len(), 2, "{names:?}");
    for name in ["clock", "forecast"] {
        ask["tool_choice"] = json!({ "type": "function", "function": { "name": name } });
        for message in answers(&site, &ask).await {
            assert!(message["tool_calls"][0]["name"] == name && holds(&message["tool_calls"][0]), "{message}");
        }
    }
    ask["max_tokens"] = json!(3);
    for message in answers(&site, &ask).await {
        assert_eq!((&message["finish_reason"], &message["tool_calls"]), (&json!("length"), &json!([])));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn model_whose_template_has_no_tools_refuses_what_it_cannot_do() {
    let site = start(Setup::default()).await.ready().await;
    let ask = json!({ "messages": [{ "role": "user", "content": "x" }], "max_tokens": 2, "tools": [clock()] });
    let reply = site.post("/v1/chat/completions", ask.clone()).await;
    let (code, param, hint) = reply.error();
    assert_eq!((reply.status, code.as_str(), param.as_deref()), (422, "tools_not_supported", Some("tools")));
    assert!(hint.unwrap().contains("required"), "{}", reply.text());
    let mut none = ask.clone();
    none["tool_choice"] = json!("none");
    let reply = site.post("/v1/chat/completions", none.clone()).await;
    assert!(reply.status == 200 && reply.json()["choices"][0]["message"]["content"].is_string(), "{}", reply.text());
    none["messages"] = json!([
        { "role": "assistant", "content": null, "tool_calls": [{ "id": "c", "type": "function", "function": { "name": "clock", "arguments": "" } }] },
        { "role": "tool", "tool_call_id": "c", "content": "9" },
    ]);
    let reply = site.post("/v1/chat/completions", none).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (422, Some("messages[0]")), "{}", reply.text());
}

/// A server with one model that writes a text after the prompt.
async fn scripted(template: &str, prompt: &str, text: &str) -> Site {
    let folder = tempfile::tempdir().unwrap();
    write_script(&path(&folder, "tiny"), template, prompt.len(), text);
    let models = "preload: [tiny]\n    default: tiny\n    serve: [ { name: tiny, path: tiny } ]";
    let config = config(&folder, &Setup { models: Some(models), ..Setup::default() });
    start_in(folder, config).await.ready().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_a_model_writes_are_found() {
    let text = "Wait.\n<tool_call>{\"name\": \"clock\", \"arguments\": {\"zone\": \"\u{fc}\"}}</tool_call>\n<tool_call>{\"name\": \"clock\"}</tool_call>";
    let site = scripted(HERMES, &format!("{CLOCK}<user>hi>"), text).await;
    let mut ask = json!({
        "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 150, "temperature": 0, "tools": [clock()], "n": 2,
    });
    let call = |arguments: &str| json!({ "name": "clock", "arguments": arguments });
    let first = call("{\"zone\": \"\u{fc}\"}");
    let message = |content: &str, calls: &[&Value], reason: &str| json!({ "content": content, "tool_calls": calls, "finish_reason": reason });
    let both = message("Wait.", &[&first, &call("{}")], "tool_calls");
    assert_eq!(answers(&site, &ask).await, [both.clone(), both]);
    ask["n"] = json!(1);
    ask["parallel_tool_calls"] = json!(false);
    assert_eq!(answers(&site, &ask).await, [message("Wait.", &[&first], "tool_calls")]);
    ask["max_tokens"] = json!(25);
    assert_eq!(answers(&site, &ask).await, [message(&text[..25], &[], "length")]);
    ask["tools"] = json!([{ "type": "function", "function": { "name": "other" } }]);
    assert!(answers(&site, &ask).await[0]["tool_calls"].as_array().unwrap().is_empty());

    let shown = "{\"name\": function name, \"parameters\": arguments}>";
    let site = scripted(LLAMA, shown, "{\"name\": \"clock\", \"parameters\": {\"zone\": 1}}").await;
    let ask = json!({ "messages": [{ "role": "user", "content": "hi" }], "temperature": 0, "tools": [clock()] });
    assert_eq!(answers(&site, &ask).await, [message("", &[&call("{\"zone\": 1}")], "tool_calls")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn template_shows_tools_calls_and_results() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    write_template(&path(&folder, "tiny"), HERMES);
    let models = "preload: [tiny]\n    default: tiny\n    serve: [ { name: tiny, path: tiny } ]";
    let config = config(&folder, &Setup { models: Some(models), ..Setup::default() });
    let site = start_in(folder, config).await.ready().await;
    let called = |arguments: &str| json!([{ "id": "call_1", "type": "function", "function": { "name": "clock", "arguments": arguments } }]);
    let ask = |calls: Value| {
        json!({
            "messages": [
                { "role": "user", "content": "hi", "tool_calls": null },
                // What SDKs of OpenAI send back of an answer.
                {
                    "role": "assistant", "content": null, "refusal": null, "tool_calls": calls,
                    "annotations": [], "audio": null, "function_call": null,
                },
                { "role": "tool", "tool_call_id": "call_1", "content": [{ "type": "text", "text": "9" }], "tool_calls": [] },
            ],
            "functions": null, "prediction": null, "a_field_of_tomorrow": null,
            "max_tokens": 7, "temperature": 0, "ignore_eos": true, "tools": [clock()],
        })
    };
    let reply = site.post("/v1/chat/completions", ask(called("{ \"b\": 1, \"a\": \"x\" }"))).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let prompt = format!("{CLOCK}<user>hi<assistant><tool_call>clock{{\"b\": 1, \"a\": \"x\"}}</tool_call><tool>9>");
    let same = json!({ "prompt": prompt, "max_tokens": 7, "temperature": 0, "ignore_eos": true });
    let same = site.post("/v1/completions", same).await.json();
    let body = reply.json();
    assert_eq!(body["usage"]["prompt_tokens"], same["usage"]["prompt_tokens"]);
    assert_eq!(body["choices"][0]["message"]["content"], same["choices"][0]["text"]);
    let history = json!({
        "messages": [
            { "role": "user", "content": "hi" },
            {
                "role": "assistant", "content": "9", "refusal": "", "tool_calls": [], "annotations": null, "audio": {},
                "function_call": {},
            },
            { "role": "user", "content": "hi" },
        ],
        "max_tokens": 1,
        "stream": true,
        "stream_options": { "include_usage": null, "include_obfuscation": null, "other": null },
    });
    let reply = site.post("/v1/chat/completions", history).await;
    assert_eq!(reply.status, 200, "{}", reply.text());
    let used = json!({ "messages": [{ "role": "assistant", "content": "9", "audio": { "id": "a" } }] });
    let reply = site.post("/v1/chat/completions", used).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("messages[0].audio")), "{}", reply.text());
    // Deeper than the parser of the renderer goes: it refuses them and goes on.
    let deep = ["{\"a\":", &"[".repeat(300), &"]".repeat(300), "}"].concat();
    let reply = site.post("/v1/chat/completions", ask(called(&deep))).await;
    assert_eq!((reply.status, reply.error().1.as_deref()), (400, Some("messages")), "{}", reply.text());
}
