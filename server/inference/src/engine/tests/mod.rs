//! The scheduler driven step by step with a scripted executor and a clock that moves only when told.

mod draft;
mod fairness;
mod faults;
mod guided;
mod handle;
mod prefix;
mod readers;
mod schedule;
mod script;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use super::admission::{AdmissionQueue, SlotId};
use super::handle::{EngineOptions, LoadedModel, ModelInfo, Score, Scored};
use super::request::{Event, Failure, Finish, Push, Request, Sampling, Sink};
use super::run::Run;
use super::scheduler::{Command, Next, Scheduler};
use crate::executor::Memory;
use crate::guide::Guides;
use crate::sample::{Sampler, Scratch};
use crate::text::{Stream, Tokenizer};
use script::{END, Script, Watch, is_gone, last, logits_of};

/// A greedy request of tenant `a` for `max_tokens` after `prompt`.
fn request(prompt: impl Into<Vec<u32>>, max_tokens: usize) -> Request {
    Request {
        model: "m".to_owned(),
        tenant: "a".to_owned(),
        prompt: prompt.into(),
        max_tokens,
        sampling: sampling(0.0, 0),
        stop: Vec::new(),
        guide: None,
        ignore_end: false,
        logprobs: None,
        deadline: None,
    }
}

/// A prompt by its text.
fn bytes(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

fn sampling(temperature: f32, seed: u64) -> Sampling {
    Sampling {
        temperature,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        repetition_penalty: 1.0,
        presence_penalty: 0.0,
        frequency_penalty: 0.0,
        logit_bias: Vec::new(),
        seed,
    }
}

/// What a request gives when nothing else is there: no scheduler, no batch.
fn alone(request: &Request, tokenizer: &Tokenizer, context: usize) -> (Vec<u32>, String, Finish) {
    alone_within(request, tokenizer, context, usize::MAX)
}

/// The same of a model that knows only the last `window` tokens.
fn alone_within(request: &Request, tokenizer: &Tokenizer, context: usize, window: usize) -> (Vec<u32>, String, Finish) {
    let mut sampler = Sampler::new(request.sampling.clone(), &request.prompt);
    let mut stream = Stream::new(&request.stop);
    let mut tokens = request.prompt.clone();
    let mut text = String::new();
    let mut scratch = Scratch::default();
    loop {
        let generated = tokens.len() - request.prompt.len();
        if generated >= request.max_tokens || (generated > 0 && tokens.len() >= context) {
            text.push_str(&stream.finish());
            return (tokens[request.prompt.len()..].to_vec(), text, Finish::Length);
        }
        let logits = logits_of(last(&tokens, window));
        let choice = sampler.choose(&logits, tokens.len() as u64, None, None, &mut scratch).unwrap();
        if choice.token == END && !request.ignore_end {
            text.push_str(&stream.finish());
            return (tokens[request.prompt.len()..].to_vec(), text, Finish::Stop);
        }
        sampler.accept(choice.token);
        tokens.push(choice.token);
        text.push_str(&stream.push(tokenizer.bytes(choice.token)));
        if stream.stopped() {
            return (tokens[request.prompt.len()..].to_vec(), text, Finish::Stop);
        }
    }
}

/// How a client behaves.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Client {
    Reads,
    /// Takes one event, then refuses so many pushes.
    Slow(usize),
    /// Leaves after so many events.
    Leaves(usize),
    /// Panics after so many events.
    Breaks(usize),
    /// Takes nothing at all.
    Deaf,
}

/// What reached a client.
#[derive(Debug, Default)]
struct Inbox {
    events: VecDeque<Event>,
    refusals: usize,
    gone: bool,
}

impl Inbox {
    fn tokens(&self) -> Vec<u32> {
        self.events.iter().filter_map(|e| if let Event::Token(token) = e { Some(token.id) } else { None }).collect()
    }

    fn text(&self) -> String {
        let text = |event: &Event| match event {
            Event::Token(token) => token.text.clone(),
            Event::Done(done) => done.text.clone(),
            Event::Failed(_) => String::new(),
        };
        self.events.iter().map(text).collect()
    }

    fn terminals(&self) -> usize {
        self.events.iter().filter(|event| !matches!(event, Event::Token(_))).count()
    }

    fn finish(&self) -> Option<Finish> {
        if let Some(Event::Done(done)) = self.events.back() { Some(done.finish) } else { None }
    }

    fn failure(&self) -> Option<Failure> {
        if let Some(Event::Failed(failure)) = self.events.back() { Some(failure.clone()) } else { None }
    }
}

struct Wire {
    client: Client,
    inbox: Arc<Mutex<Inbox>>,
}

impl Sink for Wire {
    fn push(&mut self, event: Event) -> Push {
        let mut inbox = self.inbox.lock().unwrap();
        let taken = inbox.events.len();
        match self.client {
            Client::Slow(pushes) if taken > 0 && inbox.refusals < pushes => {
                inbox.refusals += 1;
                return Push::Full(event);
            }
            Client::Leaves(after) if taken >= after => {
                inbox.gone = true;
                return Push::Gone;
            }
            Client::Breaks(after) if taken >= after => {
                inbox.gone = true;
                drop(inbox);
                panic!("a client's code breaks");
            }
            Client::Deaf => return Push::Full(event),
            _ => {}
        }
        inbox.refusals = 0;
        inbox.events.push_back(event);
        Push::Ok
    }
}

/// A request under way.
struct Sent {
    inbox: Arc<Mutex<Inbox>>,
    cancelled: Arc<AtomicBool>,
}

impl Sent {
    /// Two looks in one statement would wait for each other: that is a mistake in the test.
    fn inbox(&self) -> std::sync::MutexGuard<'_, Inbox> {
        self.inbox.try_lock().expect("nobody else looks")
    }

    fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }
}

/// A scheduler with scripted models.
struct Bench {
    scheduler: Scheduler<Box<dyn Fn() -> Instant>>,
    door: Arc<AdmissionQueue>,
    time: Arc<Mutex<Instant>>,
    tokenizer: Arc<Tokenizer>,
}

impl Bench {
    fn new(options: EngineOptions) -> Bench {
        let start = Instant::now();
        let time = Arc::new(Mutex::new(start));
        let door = Arc::new(AdmissionQueue::new(options.queue, start));
        let clock = Arc::clone(&time);
        let clock: Box<dyn Fn() -> Instant> = Box::new(move || *clock.lock().unwrap());
        let scheduler = Scheduler::new(options, Arc::clone(&door), clock);
        Bench { scheduler, door, time, tokenizer: Arc::new(crate::text::tests::byte_tokenizer()) }
    }

    fn load(&mut self, name: &str, script: Script) -> Arc<Mutex<Watch>> {
        let watch = Arc::clone(&script.watch);
        watch.lock().unwrap().time = Some(Arc::clone(&self.time));
        let shape = Arc::new(crate::executor::Executor::shape(&script).clone());
        let context = shape.context;
        let slot = self.door.next_slot().unwrap();
        let model = LoadedModel { executor: Box::new(script), tokenizer: Arc::clone(&self.tokenizer), context: None };
        self.scheduler.command(Command::Load { slot, name: name.to_owned(), context, model: Box::new(model) });
        let info = ModelInfo {
            name: name.to_owned(),
            guides: Guides::new(&self.tokenizer, shape.vocab),
            shape,
            tokenizer: Arc::clone(&self.tokenizer),
            context,
            memory: Memory::default(),
            loaded: std::time::SystemTime::now(),
        };
        if let Some(before) = self.door.list(slot, info) {
            self.scheduler.command(Command::Unload(before));
        }
        watch
    }

    fn now(&self) -> Instant {
        *self.time.lock().unwrap()
    }

    fn advance(&mut self, by: Duration) {
        *self.time.lock().unwrap() += by;
    }

    fn send(&mut self, request: Request, client: Client) -> Result<Sent, Failure> {
        let now = self.now();
        let entry = self.door.enter(&request.model, &request.tenant, now)?;
        let inbox = Arc::new(Mutex::new(Inbox::default()));
        let cancelled = Arc::new(AtomicBool::new(false));
        let sink = Box::new(Wire { client, inbox: Arc::clone(&inbox) });
        let model = request.model.clone();
        let run = Box::new(Run::answer(request, sink, entry.tenant, Arc::clone(&cancelled), now));
        self.scheduler.command(Command::Add { slot: entry.slot, model, displaces: entry.displaces, run });
        Ok(Sent { inbox, cancelled })
    }

    fn score(&mut self, tenant: &str, tokens: Vec<u32>) -> Arc<Mutex<Option<Result<Scored, Failure>>>> {
        let now = self.now();
        let entry = self.door.enter("m", tenant, now).unwrap();
        let result = Arc::new(Mutex::new(None));
        let there = Arc::clone(&result);
        let then = Box::new(move |scored| *there.lock().unwrap() = Some(scored));
        let score = Score { model: "m".to_owned(), tenant: tenant.to_owned(), tokens, deadline: None };
        let run = Box::new(Run::score(score, then, entry.tenant, Arc::default(), now));
        let model = "m".to_owned();
        self.scheduler.command(Command::Add { slot: entry.slot, model, displaces: entry.displaces, run });
        result
    }

    fn unload(&mut self, name: &str) {
        let slot: SlotId = self.door.unlist(name).unwrap();
        self.scheduler.command(Command::Unload(slot));
    }

    /// Turns until there is nothing to do; time jumps where the scheduler would sleep.
    fn run(&mut self) {
        for _ in 0..200_000 {
            match self.scheduler.turn() {
                Next::Now => {}
                Next::At(at) => {
                    let mut time = self.time.lock().unwrap();
                    *time = at.max(*time);
                }
                Next::Idle => return,
            }
        }
        panic!("the scheduler never comes to rest");
    }
}

fn options() -> EngineOptions {
    EngineOptions { queue: 64, max_running: 8, ..EngineOptions::default() }
}

#[test]
fn request_generates_the_models_output_and_the_engine_goes_idle() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    let request = request(bytes("hello"), 20);
    let sent = bench.send(request.clone(), Client::Reads).unwrap();
    let kv_on_demand = |bench: &Bench| bench.door.stats(bench.now()).models[0].memory.kv_on_demand;
    bench.scheduler.turn();
    assert_eq!(kv_on_demand(&bench), 25, "positions of the prompt and the answer");
    bench.run();
    assert_eq!(kv_on_demand(&bench), 0);
    let (tokens, text, finish) = alone(&request, &bench.tokenizer, 1024);
    let inbox = sent.inbox();
    assert_eq!((inbox.tokens(), inbox.text(), inbox.finish()), (tokens.clone(), text, Some(finish)));
    let Some(Event::Done(done)) = inbox.events.back() else { panic!("{:?}", inbox.events) };
    assert_eq!(done.prompt_tokens, 5);
    assert_eq!(done.generated_tokens, tokens.len() + usize::from(finish == Finish::Stop));
    assert!(done.first_token_ms > 0.0 && done.total_ms >= done.first_token_ms);
    assert_eq!(watch.lock().unwrap().open, 0);
    let stats = bench.door.stats(bench.now());
    assert_eq!((stats.completed, stats.prompt_tokens, stats.running, stats.queued), (1, 5, 0, 0));
    assert_eq!(stats.generated_tokens, done.generated_tokens as u64);
    assert!(stats.tokens_per_second > 0.0);
}

#[test]
fn batch_size_of_the_operator_lowers_that_of_the_executor() {
    let with = |max_batch_size| EngineOptions { max_batch_size, ..options() };
    assert_eq!((with(None).batch_size(None), with(None).batch_size(Some(256))), (8, 256));
    assert_eq!((with(Some(64)).batch_size(None), with(Some(4)).batch_size(Some(256))), (64, 4));
    assert_eq!(with(Some(64)).batch_size(Some(16)), 16);
    let mut bench = Bench::new(with(Some(2)));
    bench.load("m", Script::default());
    let sent: Vec<Sent> = (0..5u32).map(|n| bench.send(request(vec![n, 1], 20), Client::Reads).unwrap()).collect();
    let mut most = 0;
    while sent.iter().any(|sent| sent.inbox().terminals() == 0) {
        bench.scheduler.turn();
        most = most.max(bench.scheduler.slots[0].running.len());
    }
    assert_eq!(most, 2);
}

#[test]
fn seeded_output_does_not_depend_on_earlier_requests() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let sampled = Request { sampling: sampling(0.9, 7), ignore_end: true, ..request(bytes("abc"), 30) };
    let other = Request { sampling: sampling(0.9, 8), ..sampled.clone() };
    let sent: Vec<Sent> = [&sampled, &other, &sampled].map(|r| bench.send(r.clone(), Client::Reads).unwrap()).into();
    bench.run();
    let tokens: Vec<Vec<u32>> = sent.iter().map(|sent| sent.inbox().tokens()).collect();
    assert_eq!(tokens[0], alone(&sampled, &bench.tokenizer, 1024).0);
    assert_eq!(tokens[0], tokens[2]);
    assert_ne!(tokens[0], tokens[1]);
}

#[test]
fn end_token_ends_the_output_unless_ignored() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    // Some prompt whose greedy answer ends by itself.
    let ends =
        (0u32..200).map(|first| request([first, 1], 400)).find(|r| alone(r, &bench.tokenizer, 1024).2 == Finish::Stop);
    let ends = ends.expect("the script ends some answers");
    let sent = bench.send(ends.clone(), Client::Reads).unwrap();
    let ignoring = Request { ignore_end: true, max_tokens: 400, ..ends.clone() };
    let goes_on = bench.send(ignoring.clone(), Client::Reads).unwrap();
    bench.run();
    assert_eq!(sent.inbox().finish(), Some(Finish::Stop));
    assert!(!sent.inbox().tokens().contains(&END), "the end token makes no event");
    assert_eq!(goes_on.inbox().finish(), Some(Finish::Length));
    assert_eq!(goes_on.inbox().tokens().len(), 400);
    assert!(goes_on.inbox().tokens().contains(&END));
}

#[test]
fn stop_strings_and_the_context_limit_end_the_output() {
    let mut bench = Bench::new(options());
    bench.load("m", Script { context: 40, ..Script::default() });
    let free = Request { ignore_end: true, ..request(bytes("abc"), 100) };
    let (tokens, text, _) = alone(&free, &bench.tokenizer, 40);
    assert_eq!(tokens.len(), 37);
    let whole = bench.send(free.clone(), Client::Reads).unwrap();
    let stop: String = text.chars().skip(12).take(2).collect();
    let stopped = bench.send(Request { stop: vec![stop.clone()], ..free.clone() }, Client::Reads).unwrap();
    let full = bench.send(Request { prompt: vec![7; 40], ..free }, Client::Reads).unwrap();
    bench.run();
    let whole = whole.inbox();
    assert_eq!((whole.tokens(), whole.text(), whole.finish()), (tokens, text.clone(), Some(Finish::Length)));
    assert_eq!(stopped.inbox().text(), text[..text.find(&stop).unwrap()]);
    assert_eq!(stopped.inbox().finish(), Some(Finish::Stop));
    assert_eq!(full.inbox().tokens().len(), 1, "a prompt that fills the context still gets one token");
}

#[test]
fn empty_generation_completes_at_once() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    let sent = bench.send(request(bytes("abc"), 0), Client::Reads).unwrap();
    let score = bench.score("a", vec![5]);
    bench.run();
    let inbox = sent.inbox();
    assert_eq!((inbox.finish(), inbox.events.len()), (Some(Finish::Length), 1));
    assert_eq!(*score.lock().unwrap(), Some(Ok(Scored { logprobs: Vec::new(), sum: 0.0 })));
    assert_eq!(watch.lock().unwrap().steps, 0);
}

#[test]
fn log_probabilities_are_returned_with_the_tokens() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let sent = bench.send(Request { logprobs: Some(3), ..request(bytes("abc"), 4) }, Client::Reads).unwrap();
    let plain = bench.send(request(bytes("abc"), 4), Client::Reads).unwrap();
    bench.run();
    let mut tokens = bytes("abc");
    for event in &sent.inbox().events {
        if let Event::Token(token) = event {
            let want = crate::sample::logprob(&logits_of(&tokens), token.id).unwrap();
            assert_eq!(token.logprob, Some(want));
            assert_eq!(token.top.len(), 3);
            assert_eq!(token.top[0], (token.id, want), "greedy takes the likeliest");
            tokens.push(token.id);
        }
    }
    assert!(tokens.len() > 3);
    assert!(
        plain.inbox().events.iter().all(|e| !matches!(e, Event::Token(t) if t.logprob.is_some() || !t.top.is_empty()))
    );
}

#[test]
fn score_sums_the_log_probabilities_of_a_text() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let tokens: Vec<u32> = (0..150).map(|i| i * 7 % 256).collect();
    let result = bench.score("a", tokens.clone());
    bench.run();
    let scored = result.lock().unwrap().take().unwrap().unwrap();
    let want: Vec<f32> =
        (1..tokens.len()).map(|n| crate::sample::logprob(&logits_of(&tokens[..n]), tokens[n]).unwrap()).collect();
    assert_eq!(scored.logprobs, want);
    assert!((scored.sum - want.iter().map(|&l| f64::from(l)).sum::<f64>()).abs() < 1e-9);
}

#[test]
fn prompts_request_logits_of_their_last_row_only() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    bench.send(request(vec![1; 300], 1), Client::Reads).unwrap();
    bench.run();
    let watch = watch.lock().unwrap();
    assert_eq!((watch.rows, watch.logit_rows), (300, 1));
    assert!(watch.steps > 1, "a long prompt comes in chunks");
}

#[test]
fn reloaded_model_lets_running_requests_finish_on_the_old_one() {
    let mut bench = Bench::new(options());
    let old = bench.load("m", Script::default());
    let first = bench.send(request(bytes("abc"), 30), Client::Reads).unwrap();
    for _ in 0..5 {
        bench.scheduler.turn();
    }
    let new = bench.load("m", Script::default());
    let second = bench.send(request(bytes("abd"), 30), Client::Reads).unwrap();
    bench.run();
    assert!(first.inbox().finish().is_some() && second.inbox().finish().is_some());
    assert!(old.lock().unwrap().steps > 0 && new.lock().unwrap().steps > 0);
    assert!(is_gone(&old), "its memory is given back");
    bench.unload("m");
    bench.run();
    assert!(is_gone(&new));
    assert_eq!(bench.send(request(bytes("abc"), 1), Client::Reads).err(), Some(Failure::NoModel("m".to_owned())));
}
