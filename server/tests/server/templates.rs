//! Chat templates of other authors: whatever one does, it fails one request, and its process ends.

use std::time::Duration;

use futures::future::{join, join_all};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use textnlp_inference::cpu::{Footprint, LoadOptions};
use textnlp_inference::format::Checkpoint;

use super::memory::{MB, Program};
use super::roles::Files;
use super::support::model::TEMPLATE;
use super::support::{Setup, Shape, config, path, start_in, until, write_model, write_template};

fn chat(model: &str) -> Value {
    json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }], "max_tokens": 2 })
}

/// The body in three nested loops: 10^12 times.
fn repeated(body: &str) -> String {
    ["i", "j", "k"]
        .iter()
        .fold(body.to_owned(), |body, name| format!("{{% for {name} in range(9999) %}}{body}{{% endfor %}}"))
}

/// A text that doubles 40 times.
const BOMB: &str =
    "{% set ns = namespace(x='0123456789') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}hello";

fn attacks() -> Vec<String> {
    let long = "{% set x = 'a' * 16000000 %}{% set y = 'a' * 16000000 %}{% set d = {x: 1} %}";
    let in_loops = [
        "{% set c = x[-1] %}",
        "{% set c = x[-1:] %}",
        "{% set c = d[y] %}",
        "{% if loop.changed(x) %}{% endif %}",
        "{% set c = x.replace('a', 'bb') %}",
        "{% set c = x == y %}",
    ];
    let mut attacks: Vec<String> = in_loops.iter().map(|body| long.to_owned() + &repeated(body)).collect();
    attacks.extend([
        BOMB.to_owned(),
        format!("{{% set x = 'a' * 8000000 %}}{{% set n = debug({}) %}}hello", vec!["x"; 400].join(",")),
        "{{ 'a\na' | indent(100000000000) }}".to_owned(),
        "{{ messages | tojson(indent=100000000000) }}".to_owned(),
        "{% for i in range(2) %}{{ loop.cycle() }}{% endfor %}".to_owned(),
        format!("{{{{ {}1 }}}}", "1~".repeat(500_000)),
        format!("{{{{ {}true }}}}", "not ".repeat(200_000)),
        repeated(""),
    ]);
    attacks
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn special_tokens_in_messages_are_text_unless_the_model_says_otherwise() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["tiny", "open"] {
        write_model(&path(&folder, name), Shape { chat: true, ..Shape::default() });
        write_template(&path(&folder, name), "{% for m in messages %}{{ m.content | trim }}<|im_end|>{% endfor %}");
    }
    let models = "preload: [tiny]\n    default: tiny\n    \
                  serve: [ { name: tiny, path: tiny }, { name: open, path: open, parse_special_tokens: true } ]";
    let config = config(&folder, &Setup { models: Some(models), ..Setup::default() });
    let site = start_in(folder, config).await.ready().await;
    let count = async |model: &str, content: &str| {
        let message = json!({ "role": "user", "content": content });
        let ask = json!({ "model": model, "messages": [message], "max_tokens": 1 });
        let reply = site.post("/v1/chat/completions", ask).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
        reply.json()["usage"]["prompt_tokens"].as_u64().unwrap()
    };
    // A token for each byte, and one for the end of the message.
    for content in ["ab", " <|im_end|>\n", "a<|im_end|><|im_end|>b \u{fdd0}", "ü<|im_end|>"] {
        assert_eq!(count("tiny", content).await, content.trim().len() as u64 + 1, "{content}");
    }
    assert_eq!(count("open", "a<|im_end|><|im_end|>b").await, 5);
    // The text of a completion is the whole prompt, special tokens included.
    let ask = json!({ "prompt": "a<|im_end|>", "max_tokens": 1 });
    assert_eq!(site.post("/v1/completions", ask).await.json()["usage"]["prompt_tokens"], 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_templates_fail_their_request_while_other_models_answer() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    let attacks = attacks();
    let mut list = "{ name: tiny, path: tiny }".to_owned();
    for (number, template) in attacks.iter().enumerate() {
        write_model(&path(&folder, &format!("m{number}")), Shape { chat: true, ..Shape::default() });
        write_template(&path(&folder, &format!("m{number}")), template);
        list += &format!(", {{ name: m{number}, path: m{number} }}");
    }
    let models = format!("preload: [tiny]\n    default: tiny\n    serve: [ {list} ]");
    let mut config = config(&folder, &Setup { models: Some(&models), ..Setup::default() });
    config.renderer.timeout = Duration::from_secs(3);
    let site = start_in(folder, config).await.ready().await;
    for (number, template) in attacks.iter().enumerate() {
        let model = format!("m{number}");
        let attack = site.post("/v1/chat/completions", chat(&model));
        let (failed, answered) = join(attack, site.post("/v1/chat/completions", chat("tiny"))).await;
        assert_eq!(answered.status, 200, "{}", answered.text());
        assert_eq!(failed.status, 422, "{template:.200}: {}", failed.text());
        assert_eq!(failed.error().0, "chat_template_failed");
        assert!(failed.text().contains(&format!("`{model}`")), "{}", failed.text());
        let text = json!({ "model": model, "prompt": "x", "max_tokens": 2 });
        assert_eq!(site.post("/v1/completions", text).await.status, 200, "it still completes texts");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn template_that_fails_in_a_row_pauses_and_one_that_does_not_compile_is_explained() {
    let folder = tempfile::tempdir().unwrap();
    for (name, template) in
        [("tiny", TEMPLATE), ("crash", "{{ messages | tojson(indent=100000000000) }}"), ("wrong", "{% for %}")]
    {
        write_model(&path(&folder, name), Shape { chat: true, ..Shape::default() });
        write_template(&path(&folder, name), template);
    }
    let models = "preload: [tiny]\n    default: tiny\n    serve: [ { name: tiny, path: tiny }, { name: crash, path: crash }, { name: wrong, path: wrong } ]";
    let config = config(&folder, &Setup { models: Some(models), ..Setup::default() });
    let site = start_in(folder, config).await.ready().await;
    for _ in 0..5 {
        let reply = site.post("/v1/chat/completions", chat("crash")).await;
        assert_eq!((reply.status, reply.header("retry-after")), (422, None), "{}", reply.text());
    }
    let reply = site.post("/v1/chat/completions", chat("crash")).await;
    assert_eq!(reply.status, 422);
    assert!(reply.header("retry-after").is_some() && reply.text().contains("its process ended"), "{}", reply.text());
    let reply = site.post("/v1/chat/completions", chat("wrong")).await;
    assert_eq!(reply.status, 400);
    assert!(reply.text().contains("cannot be read: syntax error"), "{}", reply.text());
    assert_eq!(site.post("/v1/chat/completions", chat("tiny")).await.status, 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renderer_that_cannot_be_started_is_unavailable_and_texts_are_completed() {
    let folder = tempfile::tempdir().unwrap();
    write_model(&path(&folder, "tiny"), Shape { chat: true, ..Shape::default() });
    let models = "preload: [tiny]\n    default: tiny\n    serve: [ { name: tiny, path: tiny } ]";
    let mut config = config(&folder, &Setup { models: Some(models), ..Setup::default() });
    config.renderer.program = path(&folder, "none");
    let site = start_in(folder, config).await.ready().await;
    let reply = site.post("/v1/chat/completions", chat("tiny")).await;
    assert_eq!((reply.status, reply.error().0.as_str()), (503, "renderer_unavailable"), "{}", reply.text());
    assert!(reply.header("retry-after").is_some());
    let text = json!({ "prompt": "x", "max_tokens": 2 });
    assert_eq!(site.post("/v1/completions", text).await.status, 200);
}

/// Files of a server with two models, of which one fits into memory.
fn two_models() -> Files {
    let files = Files::new();
    for name in ["a", "b"] {
        write_model(&path(&files.folder, name), Shape { chat: true, ..Shape::default() });
    }
    let checkpoint = Checkpoint::open(path(&files.folder, "a").as_std_path()).unwrap();
    let one = Footprint::of(&checkpoint, &LoadOptions::default()).unwrap().least(1);
    let folder = path(&files.folder, "");
    let models = format!(
        "  models: {{ default: a, preload: [], max_cache_size: {}kB, threads: 1, serve: [ {{ name: a, path: \"{folder}a\" }}, {{ name: b, path: \"{folder}b\" }} ] }}\n",
        one * 3 / 2 / 1000
    );
    let text = std::fs::read_to_string(path(&files.folder, "server.yaml")).unwrap();
    let lines = text.lines().map(|line| match line.trim_start().starts_with("models:") {
        true => models.clone(),
        false => format!("{line}\n"),
    });
    std::fs::write(path(&files.folder, "server.yaml"), lines.collect::<String>()).unwrap();
    files
}

/// The state of a process and its parent; `None` if there is none.
fn process(pid: u32) -> Option<(char, u32)> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.chars().next()?, fields.next()?.parse().ok()?))
}

/// Whether any of its threads is left: the first of them may have ended before the others, and until then nobody can wait for the
/// process.
fn is_running(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    threads > 1 || process(pid).is_some_and(|(state, _)| state != 'Z')
}

/// The processes that a server renders with, and those that ended without being waited for.
fn renderers(server: u32) -> Vec<u32> {
    let pids = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    pids.filter(|pid| process(*pid).is_some_and(|(_, parent)| parent == server)).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renderers_are_limited_replaced_and_end_with_their_model_and_with_the_server() {
    let mut program = Program::start_with(two_models()).await;
    let server = program.child.id();
    let ask = async |model: &str| {
        let reply = program.post("/v1/chat/completions", &chat(model).to_string()).await;
        assert_eq!(reply.status, 200, "{}", reply.text());
    };
    ask("a").await;
    let [first] = renderers(server)[..] else { panic!("{:?}", renderers(server)) };
    let environment = std::fs::read(format!("/proc/{first}/environ")).unwrap();
    let environment = String::from_utf8(environment).unwrap();
    assert!(
        environment.split('\0').all(|line| ["TZ", "LD_LIBRARY_PATH", ""].contains(&line.split('=').next().unwrap()))
    );
    assert_eq!(std::fs::read_link(format!("/proc/{first}/cwd")).unwrap().to_str(), Some("/"));
    let status = std::fs::read_to_string(format!("/proc/{first}/status")).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{first}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    assert_eq!((limit("Max data size"), limit("Max file size")), (256 << 20, 0));

    // Signals for all processes of a container reach it, too.
    for signal in [Signal::TERM, Signal::INT] {
        kill_process(Pid::from_raw(first as i32).unwrap(), signal).unwrap();
    }
    ask("a").await;
    assert_eq!(renderers(server), [first]);
    kill_process(Pid::from_raw(first as i32).unwrap(), Signal::KILL).unwrap();
    until("it has ended", async || !is_running(first)).await;
    ask("a").await;
    // The server waits for those that ended, at its own time.
    until("the one that ended is waited for", async || process(first).is_none()).await;
    let [second] = renderers(server)[..] else { panic!("{:?}", renderers(server)) };
    assert_ne!(second, first);

    ask("b").await;
    until("the renderer of the evicted model is gone", async || process(second).is_none()).await;
    let [third] = renderers(server)[..] else { panic!("{:?}", renderers(server)) };
    program.child.kill().unwrap();
    program.child.wait().unwrap();
    // Who waits for it is up to the machine.
    until("a renderer without a server has ended", async || !is_running(third)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn template_that_takes_all_memory_takes_none_of_the_server() {
    let files = Files::new();
    write_model(&path(&files.folder, "tiny"), Shape { chat: true, ..Shape::default() });
    write_template(&path(&files.folder, "tiny"), BOMB);
    let program = Program::start_with(files).await;
    let body = chat("tiny").to_string();
    assert_eq!(program.post("/v1/chat/completions", &body).await.status, 422);
    let before = program.reset_peak();
    let replies = join_all((0..4).map(|_| program.post("/v1/chat/completions", &body))).await;
    assert!(replies.iter().all(|reply| reply.status == 422));
    let more = program.memory("VmHWM").saturating_sub(before);
    assert!(more <= 64 * MB, "{} MB", more / MB);
}
