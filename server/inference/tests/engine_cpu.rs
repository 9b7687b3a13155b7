//! The engine with the executor that serves: alone or in a crowd, an answer is the same bits.

#![allow(clippy::unwrap_used)]

mod support;

use std::sync::{Arc, mpsc};
use std::time::Duration;

use serde_json::json;
use support::*;
use textnlp_inference::cpu::{LoadOptions, Quant};
use textnlp_inference::engine::{
    Done, Engine, EngineOptions, Event, Finish, LoadedModel, Push, Request, Sampling, Score, Sink, Token,
};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan};
use textnlp_inference::sample;
use textnlp_inference::text::Tokenizer;

/// A test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(120);

/// One character per token.
fn tokenizer(vocab: usize) -> Arc<Tokenizer> {
    let vocab: serde_json::Map<_, _> =
        (0..vocab as u32).map(|id| (char::from_u32(0x21 + id).unwrap().to_string(), id.into())).collect();
    let json = json!({
        "version": "1.0",
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": []},
    });
    Arc::new(Tokenizer::from_json(json.to_string().as_bytes()).unwrap())
}

fn engine(model: &str, load_options: &LoadOptions, options: EngineOptions) -> Engine {
    let engine = Engine::start(options).unwrap();
    let executor = Box::new(load(&golden(model), load_options));
    let tokenizer = tokenizer(executor.shape().vocab);
    engine.load("m", LoadedModel { executor, tokenizer, context: None }).unwrap();
    engine
}

/// Neither rows in common nor drafts.
fn plain() -> EngineOptions {
    EngineOptions { prefix_cache: false, draft_tokens: 0, ..EngineOptions::default() }
}

struct Pipe(mpsc::Sender<Event>);

impl Sink for Pipe {
    fn push(&mut self, event: Event) -> Push {
        if self.0.send(event).is_ok() { Push::Ok } else { Push::Gone }
    }
}

/// Requests of every kind: greedy and sampled, long and short prompts, some of which begin alike.
fn requests(engine: &Engine) -> Vec<Request> {
    let model = engine.model("m").unwrap();
    let (context, vocab) = (model.context, model.shape.vocab as u32);
    (0..14u32)
        .map(|n| Request {
            model: "m".to_owned(),
            tenant: format!("t{}", n % 3),
            prompt: (0..1 + n * context as u32 / 15).map(|i| (i * i + n % 2 * 7) % vocab).collect(),
            max_tokens: 12 + n as usize,
            sampling: Sampling {
                temperature: if n % 2 == 0 { 0.0 } else { 1.2 },
                top_k: if n % 3 == 0 { 20 } else { 0 },
                top_p: 0.95,
                min_p: 0.0,
                repetition_penalty: 1.1,
                presence_penalty: 0.2,
                frequency_penalty: 0.1,
                logit_bias: Vec::new(),
                seed: u64::from(n),
            },
            stop: Vec::new(),
            guide: None,
            ignore_end: false,
            logprobs: Some(4),
            deadline: None,
        })
        .collect()
}

fn submit(engine: &Engine, request: Request) -> mpsc::Receiver<Event> {
    let (sender, events) = mpsc::channel();
    engine.submit(request, Box::new(Pipe(sender))).unwrap();
    events
}

fn tokens_of(events: &mpsc::Receiver<Event>) -> Vec<Token> {
    answer_of(events).0
}

fn answer_of(events: &mpsc::Receiver<Event>) -> (Vec<Token>, Done) {
    let mut tokens = Vec::new();
    loop {
        match events.recv_timeout(PATIENCE).unwrap() {
            Event::Token(token) => tokens.push(token),
            Event::Done(done) => {
                assert_eq!((done.finish, done.generated_tokens), (Finish::Length, tokens.len()));
                return (tokens, done);
            }
            Event::Failed(failure) => panic!("{failure}"),
        }
    }
}

#[test]
fn greedy_text_matches_the_bare_executor() {
    for model in MODELS {
        let mut cpu = load(&golden(model), &options(None));
        let mut tokens = vec![5, 17, 40];
        let seq = cpu.open(20).unwrap();
        let mut start = 0;
        while tokens.len() < 20 {
            cpu.step(&[RowSpan { seq, start, tokens: &tokens[start..], logits: LogitRows::Last }]).unwrap();
            start = tokens.len();
            let best = (0u32..).zip(cpu.logits()).max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0))).unwrap().0;
            tokens.push(best);
        }
        let engine = engine(model, &options(None), EngineOptions::default());
        let mut request = requests(&engine).swap_remove(0);
        request.sampling.repetition_penalty = 1.0;
        request.sampling.presence_penalty = 0.0;
        request.sampling.frequency_penalty = 0.0;
        let request = Request { prompt: tokens[..3].to_vec(), max_tokens: 17, ..request };
        let events = submit(&engine, request);
        let ids: Vec<u32> = tokens_of(&events).iter().map(|token| token.id).collect();
        assert_eq!(ids, tokens[3..], "{model}");
    }
}

#[test]
fn output_is_bit_identical_alone_and_in_a_batch() {
    for (model, quant) in [("gpt2", Quant::F32), ("llama", Quant::F16), ("llama-tied", Quant::Q8_0)] {
        let one = EngineOptions { max_running: 1, ..plain() };
        let quiet = engine(model, &LoadOptions { threads: 1, ..options(quant) }, one);
        let context = quiet.model("m").unwrap().context;
        // Room for four contexts: most requests wait at first.
        let tight = LoadOptions { kv_positions: Some(4 * context), ..options(quant) };
        let busy = engine(model, &tight, EngineOptions::default());
        let crowd: Vec<_> = requests(&busy).into_iter().map(|request| submit(&busy, request)).collect();
        for (request, crowded) in requests(&busy).into_iter().zip(crowd) {
            let length = request.max_tokens.min(context - request.prompt.len());
            let alone = tokens_of(&submit(&quiet, request));
            assert_eq!(alone.len(), length);
            // Log-probabilities are compared too: they show each bit of the logits.
            assert_eq!(tokens_of(&crowded), alone, "{model} {quant}");
        }
        assert_eq!(busy.stats().failed_steps, 0);
    }
}

#[test]
fn prefix_cache_changes_neither_text_nor_memory() {
    for (model, quant) in [("gpt2", Quant::F32), ("llama", Quant::F16), ("qwen3-window", Quant::Q8_0)] {
        let caching = engine(model, &options(quant), EngineOptions::default());
        let plain = engine(model, &options(quant), plain());
        let info = caching.model("m").unwrap();
        let (mut cached, mut strangers) = (0, 0);
        for request in requests(&caching).into_iter().take(6) {
            // Turns of a conversation.
            let mut prompt: Vec<u32> = (0..40).collect();
            while prompt.len() + 12 <= info.context {
                let tenant = "one".to_owned();
                let request = Request { tenant, prompt: prompt.clone(), max_tokens: 12, ..request.clone() };
                let (tokens, done) = answer_of(&submit(&caching, request.clone()));
                let (alone, without) = answer_of(&submit(&plain, request.clone()));
                // With their log-probabilities, which show each bit of the logits.
                assert_eq!(tokens, alone, "{model} {quant}");
                assert_eq!(without.cached_tokens, 0);
                cached += done.cached_tokens;
                if prompt.len() > 40 {
                    assert!(done.cached_tokens >= 32, "{model} {quant}: {done:?}");
                }
                strangers += 1;
                let stranger = Request { tenant: format!("stranger {strangers}"), ..request };
                let (tokens, done) = answer_of(&submit(&caching, stranger));
                assert_eq!((&tokens, done.cached_tokens), (&alone, 0), "tenants have nothing in common");
                prompt.extend(tokens.iter().map(|token| token.id));
                prompt.extend([3, 1]);
            }
        }
        let stats = caching.stats();
        assert_eq!((plain.stats().cached_tokens, stats.failed_steps), (0, 0));
        assert!(cached > 0 && stats.cached_tokens >= cached as u64);
        assert_eq!(stats.models[0].memory.kv, info.memory.kv, "within what was there from the beginning");
    }
}

#[test]
fn drafts_change_no_bit_of_an_answer() {
    for (model, quant) in [("gpt2", Quant::F32), ("llama", Quant::F16), ("qwen3-window", Quant::Q8_0)] {
        let drafting =
            engine(model, &options(quant), EngineOptions { prefix_cache: false, ..EngineOptions::default() });
        let plain = engine(model, &options(quant), plain());
        let context = plain.model("m").unwrap().context;
        // Whether a guess is worth its row follows from measured times: on a busy machine a few rounds may have none.
        let mut rounds = 0;
        loop {
            for request in requests(&plain) {
                let prompt = [5, 9, 14].repeat(4);
                let request = Request { max_tokens: context - prompt.len(), prompt, ..request };
                for penalty in [1.0, 1.1] {
                    let mut request = request.clone();
                    request.sampling.repetition_penalty = penalty;
                    let drafted = tokens_of(&submit(&drafting, request.clone()));
                    assert_eq!(drafted, tokens_of(&submit(&plain, request)), "{model} {quant}");
                }
            }
            let stats = drafting.stats();
            assert_eq!(stats.failed_steps, 0, "{stats:?}");
            if stats.accepted_tokens > 0 && stats.steps < plain.stats().steps {
                break;
            }
            rounds += 1;
            assert!(rounds < 20, "{model} {quant}: no guess was accepted: {stats:?}");
        }
    }
}

#[test]
fn score_matches_the_bare_executor() {
    let mut cpu = load(&golden("gpt2"), &options(None));
    let tokens = expected("gpt2").tokens;
    let rows = all_logits(&mut cpu, &tokens);
    let want: Vec<f32> =
        rows.iter().zip(&tokens[1..]).map(|(row, &next)| sample::logprob(row, next).unwrap()).collect();
    let engine = engine("gpt2", &options(None), EngineOptions::default());
    let busy = submit(&engine, requests(&engine).swap_remove(5));
    let (sender, result) = mpsc::channel();
    let score = Score { model: "m".to_owned(), tenant: "t".to_owned(), tokens, deadline: None };
    engine.score(score, Box::new(move |scored| sender.send(scored).unwrap())).unwrap();
    let scored = result.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(scored.logprobs, want);
    tokens_of(&busy);
}

/// Random weights and a schema: only the mask makes JSON of it.
#[test]
fn guided_output_is_json_of_its_schema_alone_and_in_a_batch() {
    let schema = json!({"anyOf": [
        {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 60}, "minItems": 2, "maxItems": 4},
        {"type": "object", "properties": {"a": {"enum": ["b", "cd"]}}, "required": ["a"], "additionalProperties": false},
    ]});
    for (model, quant) in [("gpt2", Quant::F32), ("llama-tied", Quant::Q8_0)] {
        let engine = engine(model, &options(quant), EngineOptions::default());
        let guide = engine.model("m").unwrap().guides.compile(&schema).unwrap();
        let make = |n: u32| {
            let mut request = requests(&engine).swap_remove(n as usize % 14);
            request.sampling.seed = u64::from(n);
            Request { prompt: vec![n, 3, 5], max_tokens: 40, guide: Some(guide.clone()), ..request }
        };
        let answer = |events: &mpsc::Receiver<Event>| {
            let mut text = String::new();
            loop {
                match events.recv_timeout(PATIENCE).unwrap() {
                    Event::Token(token) => text += &token.text,
                    Event::Done(done) => return (text + &done.text, done.finish),
                    Event::Failed(failure) => panic!("{failure}"),
                }
            }
        };
        let crowd: Vec<_> = (0..14).map(|n| submit(&engine, make(n))).collect();
        let crowd: Vec<_> = crowd.iter().map(answer).collect();
        for (n, crowded) in (0..14).zip(crowd) {
            let value: serde_json::Value =
                serde_json::from_str(&crowded.0).unwrap_or_else(|e| panic!("{crowded:?}: {e}"));
            let is_list = value.as_array().is_some_and(|list| {
                (2..=4).contains(&list.len())
                    && list.iter().all(|item| item.as_u64().is_some_and(|number| number <= 60))
            });
            assert!(is_list || value == json!({"a": "b"}) || value == json!({"a": "cd"}), "{model}: {value}");
            assert_eq!(answer(&submit(&engine, make(n))), crowded, "{model}");
        }
    }
}
