//! What clients get wrong, or do on purpose: each is refused in words, and nobody else notices.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{Read, Write};

use serde_json::{Value, json};
use textnlp_tests::{Sandbox, eventually, http};

fn up(name: &str) -> Sandbox {
    let sandbox = Sandbox::new(name);
    sandbox.up("development");
    sandbox
}

#[track_caller]
fn others_are_served(sandbox: &Sandbox) {
    let answer = http::post(sandbox.port, "/v1/generate", &json!({ "prompt": "Once", "max_tokens": 4 })).unwrap();
    assert_eq!(answer.status, 200, "{}", answer.text());
}

/// The sum of all samples of a metric whose labels have these words.
fn metric(sandbox: &Sandbox, name: &str, labels: &[&str]) -> f64 {
    let metrics = http::get(sandbox.metrics_port, "/metrics").expect("metrics").text();
    let samples = metrics.lines().filter(|l| l.starts_with(name) && labels.iter().all(|label| l.contains(label)));
    samples.filter_map(|l| l.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn invalid_bodies_are_refused_with_field_and_hint() {
    let sandbox = up("bodies");
    let long = format!(r#"{{"prompt":"{}"}}"#, "word ".repeat(3000));
    let table: &[(&[u8], u16, &str, &str)] = &[
        (br#"{"prompt":"a","temperature":NaN}"#, 400, "invalid_request", "temperature"),
        (br#"{"prompt":"a","temperature":"NaN"}"#, 400, "invalid_request", "temperature"),
        (br#"{"prompt":"a","temperature":1e999}"#, 400, "invalid_request", "temperature"),
        (br#"{"prompt":"a","temperature":-1}"#, 400, "invalid_request", "temperature"),
        (br#"{"prompt":"a","max_tokens":-5}"#, 400, "invalid_request", "max_tokens"),
        (br#"{"prompt":"a","max_tokens":0}"#, 400, "invalid_request", "max_tokens"),
        (br#"{"prompt":"a","max_tokens":1.5}"#, 400, "invalid_request", "max_tokens"),
        (br#"{"prompt":"a","top_p":7}"#, 400, "invalid_request", "top_p"),
        (br#"{"prompt":"a","max_tokns":5}"#, 400, "invalid_request", "max_tokns"),
        (br#"{"prompt":"a","model":"gpt5"}"#, 404, "model_not_found", "model"),
        (br#"{}"#, 400, "invalid_request", "prompt"),
        (b"{\"prompt\":\"\xff\xfe\"}", 400, "invalid_request", ""),
        (b"", 400, "invalid_request", ""),
        (b"[[[[[[[[[[", 400, "invalid_request", ""),
        (long.as_bytes(), 400, "context_length_exceeded", "prompt"),
    ];
    for (body, status, code, param) in table {
        for path in ["/v1/generate", "/v1/stream"] {
            let answer = http::ask(sandbox.port, "POST", path, &[], body).unwrap();
            let said = String::from_utf8_lossy(&body[..body.len().min(60)]);
            let error = &answer.json()["error"];
            assert_eq!(answer.status, *status, "{path} {said}: {}", answer.text());
            assert_eq!(error["code"], *code, "{path} {said}: {error}");
            assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()), "{path} {said}");
            if !param.is_empty() {
                assert_eq!(error["param"], *param, "{path} {said}: {error}");
            }
        }
    }
    others_are_served(&sandbox);
    assert_eq!(metric(&sandbox, "textnlp_engine_failed_steps_total", &[]), 0.0);
}

#[test]
fn hundred_megabyte_bodies_are_refused_without_buffering() {
    let sandbox = up("huge");
    let server = sandbox.pid("bin/server serve").unwrap();
    let gateway = sandbox.pid(" gateway --config").unwrap();
    let before = [server, gateway].map(resident);
    let piece = vec![b'a'; 1 << 20];
    for chunked in [false, true] {
        let mut stream = http::connect(sandbox.port).unwrap();
        if chunked {
            let head = "POST /v1/generate HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).unwrap();
        } else {
            stream.write_all(http::head("POST", "/v1/generate", &[], 100_000_000).as_bytes()).unwrap();
        }
        for _ in 0..95 {
            let sent = if chunked {
                stream
                    .write_all(b"100000\r\n")
                    .and_then(|()| stream.write_all(&piece))
                    .and_then(|()| stream.write_all(b"\r\n"))
            } else {
                stream.write_all(&piece)
            };
            // It may stop listening as soon as it knows enough.
            if sent.is_err() {
                break;
            }
        }
        match http::read(&mut stream) {
            Ok(answer) => {
                assert_eq!(answer.status, 413, "{}", answer.text());
                assert_eq!(answer.json()["error"]["code"], "request_too_large");
            }
            // A reset that overtakes the answer is TCP's doing.
            Err(error) => println!("chunked {chunked}: cut off: {error}"),
        }
    }
    // A well-behaved client reads the answer before it sends the body.
    let mut stream = http::connect(sandbox.port).unwrap();
    stream
        .write_all(http::head("POST", "/v1/generate", &[("Expect", "100-continue")], 100_000_000).as_bytes())
        .unwrap();
    assert_eq!(http::read(stream).unwrap().status, 413);
    for (pid, before) in [server, gateway].into_iter().zip(before) {
        assert!(resident(pid) < before + 40_000_000, "memory grew from {before} to {}", resident(pid));
    }
    others_are_served(&sandbox);
}

fn resident(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() * 1024
}

#[test]
fn malformed_and_incomplete_requests_block_no_other_client() {
    let sandbox = up("wire");
    let mut held = Vec::new();
    for start in [
        &b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Le"[..],
        b"POST /v1/generate HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{\"pro",
        b"",
    ] {
        for _ in 0..20 {
            let mut stream = http::connect(sandbox.port).unwrap();
            stream.write_all(start).unwrap();
            held.push(stream);
        }
    }
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01"[..],
        b"GET / HTTP/9.9\r\n\r\n",
        b"\r\n\r\n\r\n\0\0\0",
        b"POST /v1/generate HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ] {
        let mut stream = http::connect(sandbox.port).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));
    }
    others_are_served(&sandbox);
    drop(held);
    others_are_served(&sandbox);
}

fn ask_and_hold(sandbox: &Sandbox, path: &str, seed: u64) -> std::net::TcpStream {
    let body = json!({ "prompt": "Once upon a time", "max_tokens": 900, "temperature": 1.5, "seed": seed }).to_string();
    let mut stream = http::connect(sandbox.port).unwrap();
    stream.write_all(http::head("POST", path, &[], body.len()).as_bytes()).unwrap();
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

#[test]
fn client_that_does_not_read_blocks_no_other_client() {
    let sandbox = up("silent");
    let silent: Vec<_> = (0..40).map(|seed| ask_and_hold(&sandbox, "/v1/stream", seed)).collect();
    for _ in 0..5 {
        others_are_served(&sandbox);
    }
    eventually("the engine is done with them", || {
        (metric(&sandbox, "textnlp_running_requests{", &[]) == 0.0).then_some(())
    });
    drop(silent);
    sandbox.run(&["status", "--env", "development"]).expect(0);
}

#[test]
fn disconnecting_client_stops_its_generation() {
    let sandbox = up("leaver");
    for path in ["/v1/stream", "/v1/generate", "/v1/completions"] {
        let route = format!("route=\"{path}\"");
        eventually("the server sees that somebody left", || {
            let leaving: Vec<_> = (0..10).map(|seed| ask_and_hold(&sandbox, path, seed)).collect();
            drop(leaving);
            (metric(&sandbox, "http_requests_total", &[&route, "status=\"499\""]) > 0.0).then_some(())
        });
        eventually("the engine has stopped", || {
            (metric(&sandbox, "textnlp_running_requests{", &[]) == 0.0).then_some(())
        });
    }
    let log = sandbox.run(&["logs", "server-0", "-n", "2000"]).expect(0).out;
    let left = log.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).filter(|l| l["status"] == 499);
    let most = left.filter_map(|l| l["generated_tokens"].as_u64()).max().expect("it is in the access log");
    assert!(most < 900, "it did not go on to the end");
    others_are_served(&sandbox);
}

#[test]
fn oversized_prompts_and_non_utf8_input_are_refused_by_the_cli() {
    let sandbox = up("typed");
    let long = "word ".repeat(3000);
    let said = sandbox.run(&["generate", &long]).expect(1);
    assert!(said.err.contains("the model's context is 1024") && said.err.contains("hint: "), "{}", said.err);
    let document = sandbox.run(&["generate", &long, "-o", "json"]).expect(1).json();
    assert_eq!(document["error"]["code"], "refused_by_server");
    let unknown = sandbox.run(&["generate", "hi", "--model", "gpt5"]).expect(1);
    assert!(unknown.err.contains("`gpt5`") && unknown.err.contains("textnlp-tiny"), "{}", unknown.err);
    let file = sandbox.folder().join("input");
    std::fs::write(&file, [0xff, 0xfe]).unwrap();
    let mut command = sandbox.command(&["generate", "-"]);
    command.stdin(std::fs::File::open(&file).unwrap());
    let binary = textnlp_tests::said(command.output().unwrap()).expect(2);
    assert!(binary.err.contains("not UTF-8"), "{}", binary.err);
}

#[test]
fn a_used_up_limit_of_the_first_key_or_few_tokens_do_not_fail_an_up() {
    let sandbox = Sandbox::new("used-up");
    let sets =
        ["server.security.api_keys_enabled=true", "server.security.rate_limit=3/hour", "server.api.max_tokens=100"];
    let mut args = vec!["up", "--env", "development", "--yes", "--no-gate", "-o", "json"];
    args.extend(sets.iter().flat_map(|set| ["--set", set]));
    let first = sandbox.run(&args).expect(0).json();
    assert!(first["text"].is_string(), "{first:#}");
    let later = (0..4).map(|_| sandbox.run(&args).expect(0)).find(|said| said.json()["text"].is_null());
    let later = later.expect("three requests an hour are used up");
    assert!(later.err.contains("no first text was generated"), "{later:?}");
}
