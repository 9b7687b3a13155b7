//! What one request may add to the memory of the real program.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::json;
use textnlp_server::config::Address;

use super::roles::Files;
use super::support::{Client, Reply, Shape, path, until, write_model};

pub(crate) const MB: u64 = 1_000_000;

/// The server program, its client and a key.
pub(crate) struct Program {
    pub(crate) child: Child,
    client: Client,
    key: String,
    _files: Files,
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Program {
    async fn start() -> Self {
        let files = Files::new();
        write_model(&path(&files.folder, "tiny"), Shape { chat: true, ..Shape::default() });
        Self::start_with(files).await
    }

    pub(crate) async fn start_with(files: Files) -> Self {
        let key = files.keys(json!({ "do": "create" })).1["key"].as_str().unwrap().to_owned();
        let child = files.command(&["serve"]).stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        let client = Client::new(&Address::Unix(path(&files.folder, "s.sock")));
        until("it is ready", async || {
            client.try_connect().await.is_some() && client.send("GET", "/ready", &[], b"").await.status == 200
        })
        .await;
        Self { child, client, key, _files: files }
    }

    /// A value of `/proc/PID/status` in bytes.
    pub(crate) fn memory(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// From here on `VmHWM` is the peak of what comes.
    pub(crate) fn reset_peak(&self) -> u64 {
        std::fs::write(format!("/proc/{}/clear_refs", self.child.id()), "5").unwrap();
        self.memory("VmRSS")
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.client.send("POST", path, &[("x-api-key", &self.key)], body.as_bytes()).await
    }
}

/// `{"FIELD":[ITEM,ITEM,…]}` of nearly 10 MB.
fn list(field: &str, item: &str) -> String {
    format!("{{\"{field}\":[{}]}}", vec![item; 9_900_000 / (item.len() + 1)].join(","))
}

/// Text of as many different short tokens and words as fit.
fn noise(bytes: usize) -> String {
    let mut state = 1u32;
    let letters = b" abcdefgh.,;:!?-+*#%&/()[]<>=0123";
    (0..bytes)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(letters[(state >> 16) as usize % letters.len()])
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_with_a_key_adds_at_most_64_mb_and_freed_memory_is_returned() {
    let program = Program::start().await;
    let long = "ab ".repeat(3_300_000);
    let text = |field: &str, text: &str| json!({ field: text }).to_string();
    let half = noise(127_000);
    let bodies = [
        ("/v1/tokenize", text("text", &long)),
        ("/v1/tokenize", text("text", &noise(65_536))),
        ("/v1/tokenize", text("text", &"ab ".repeat(21_845))),
        ("/v1/tokenize", list("tokens", "7")),
        ("/v1/tokenize", json!({ "tokens": vec![97; 65_536] }).to_string()),
        ("/v1/generate", text("prompt", &long)),
        ("/v1/stream", text("prompt", &noise(65_536))),
        ("/v1/generate", list("metadata", "{\"\":0}")),
        ("/v1/generate", list("metadata", "[0]")),
        ("/v1/completions", list("prompt", "7")),
        ("/v1/completions", json!({ "prompt": vec!["ab ".repeat(200_000); 16] }).to_string()),
        ("/v1/chat/completions", json!({ "messages": [{ "role": "user", "content": long }] }).to_string()),
        ("/v1/chat/completions", list("messages", "{\"role\":\"user\",\"content\":\"a\"}")),
        (
            "/v1/chat/completions",
            json!({ "messages": [{ "role": "user", "content": "a" }], "n": 16, "logprobs": true, "top_logprobs": 20,
                    "ignore_eos": true })
            .to_string(),
        ),
        ("/v1/stream/tickets", text("prompt", &noise(60_000))),
        ("/v1/stream/tickets", list("metadata", "[]")),
        (
            "/v1/validate",
            json!({ "reference": half, "candidate": noise(126_000), "metrics": ["bleu", "rouge1", "rouge2"] })
                .to_string(),
        ),
        ("/v1/validate", list("reference", "\"a\"")),
        ("/auth/token", list("api_key", "[]")),
    ];
    for (path, _) in &bodies {
        program.post(path, "{}").await;
    }
    let rest = program.memory("VmRSS");
    let allocated = program.memory("RssAnon");
    for (path, body) in &bodies {
        let before = program.reset_peak();
        let reply = program.post(path, body).await;
        let more = program.memory("VmHWM").saturating_sub(before);
        println!("{path} {:.40}…: {} and {} kB", body, reply.status, more / 1000);
        assert!(matches!(reply.status, 200 | 400 | 413), "{path}: {}", reply.text());
        assert!(more <= 64 * MB, "{path} {body:.40}: {} MB", more / MB);
    }
    let long = &bodies[0].1;
    // The tokenizer's cache keeps 10,000 words, each of which can hold a page of what was freed around it: that much stays,
    // and more requests do not add to it.
    for round in 1..=3 {
        program.reset_peak();
        let replies = futures::future::join_all((0..12).map(|_| program.post("/v1/tokenize", long))).await;
        assert!(replies.iter().all(|reply| reply.status == 400));
        let more = program.memory("VmHWM").saturating_sub(rest);
        println!("twelve at once: {} kB", more / 1000);
        assert!(more <= 256 * MB, "round {round}: {} MB", more / MB);
    }
    until("freed memory is returned", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        program.memory("RssAnon") <= allocated + 192 * MB
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_request_without_a_key_adds_at_most_1_mb() {
    let program = Program::start().await;
    let ask = async |path: &str, body: &str| program.client.send("POST", path, &[], body.as_bytes()).await;
    let large = list("api_key", "[]");
    let small = |item: &str| format!("{{\"api_key\":[{}]}}", vec![item; 3_900 / (item.len() + 1)].join(","));
    let mut bodies = vec![("/auth/token", large.clone(), 413)];
    for item in ["[]", "{\"\":0}", "\"a\""] {
        bodies.push(("/auth/token", small(item), 400));
    }
    for path in ["/v1/generate", "/v1/tokenize", "/v1/validate", "/v1/chat/completions", "/v1/stream/tickets"] {
        bodies.push((path, large.clone(), 401));
    }
    for round in ["the first time", "again"] {
        for (path, body, status) in &bodies {
            let before = program.reset_peak();
            let reply = ask(path, body).await;
            let more = program.memory("VmHWM").saturating_sub(before);
            println!("{round}: {path} {body:.20}: {} and {} kB", reply.status, more / 1000);
            assert_eq!(reply.status, *status, "{path}: {}", reply.text());
            assert!(more <= MB, "{round}: {path} {body:.20}: {more}");
        }
    }
}
