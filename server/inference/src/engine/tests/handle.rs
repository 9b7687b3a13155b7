//! The real thread: commands by the channel, waking up, going away.

use std::sync::mpsc;

use super::super::{Engine, Handle};
use super::*;

/// A sink that hands events to a channel.
struct Pipe(mpsc::Sender<Event>);

impl Sink for Pipe {
    fn push(&mut self, event: Event) -> Push {
        if self.0.send(event).is_ok() { Push::Ok } else { Push::Gone }
    }
}

fn engine() -> (Engine, Arc<Mutex<Watch>>) {
    let engine = Engine::start(options()).unwrap();
    let watch = load(&engine, Script::default());
    (engine, watch)
}

fn load(handle: &Handle, script: Script) -> Arc<Mutex<Watch>> {
    let watch = Arc::clone(&script.watch);
    let tokenizer = Arc::new(crate::text::tests::byte_tokenizer());
    handle.load("m", LoadedModel { executor: Box::new(script), tokenizer, context: None }).unwrap();
    watch
}

fn submit(handle: &Handle, request: Request) -> (super::super::Ticket, mpsc::Receiver<Event>) {
    let (sender, events) = mpsc::channel();
    (handle.submit(request, Box::new(Pipe(sender))).unwrap(), events)
}

fn endless() -> Request {
    Request { ignore_end: true, ..request(bytes("ab"), 1_000_000) }
}

/// Longer than any test needs; a test that waits this long has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// The terminal event.
fn last(events: &mpsc::Receiver<Event>) -> Event {
    loop {
        match events.recv_timeout(PATIENCE).expect("a terminal event") {
            Event::Token(_) => {}
            terminal => return terminal,
        }
    }
}

#[test]
fn request_passes_through_the_engine_thread() {
    let (engine, _) = engine();
    let asked = request(bytes("hello"), 12);
    let (_ticket, events) = submit(&engine, asked.clone());
    let tokenizer = engine.model("m").unwrap().tokenizer;
    let mut inbox = Inbox::default();
    loop {
        inbox.events.push_back(events.recv_timeout(PATIENCE).unwrap());
        if inbox.terminals() > 0 {
            break;
        }
    }
    let (tokens, text, finish) = alone(&asked, &tokenizer, 1024);
    assert_eq!((inbox.tokens(), inbox.text(), inbox.finish()), (tokens, text, Some(finish)));
    assert!(events.recv_timeout(PATIENCE).is_err(), "the sink is dropped after the last word");
    // The last word leaves before the numbers are published.
    let start = Instant::now();
    while engine.stats().completed == 0 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    let stats = engine.stats();
    assert!(stats.last_step.is_some() && stats.steps > 0 && stats.last_step_ms >= 0.0);
    assert_eq!((stats.models[0].name.as_str(), stats.models[0].memory.weights), ("m", 1));
}

#[test]
fn invalid_requests_are_refused_on_submission() {
    let (engine, _) = engine();
    let refused = |request: Request| engine.submit(request, Box::new(Pipe(mpsc::channel().0))).err();
    assert_eq!(refused(Request { model: "x".to_owned(), ..request([1], 1) }), Some(Failure::NoModel("x".to_owned())));
    assert_eq!(refused(request(vec![1; 1025], 1)), Some(Failure::TooLong { prompt: 1025, context: 1024 }));
    assert!(matches!(refused(request([], 1)), Some(Failure::BadPrompt(_))));
    assert_eq!(refused(request([1, 304], 1)), Some(Failure::BadPrompt("`m` has no token 304".to_owned())));
    let score = Score { model: "m".to_owned(), tenant: "a".to_owned(), tokens: Vec::new(), deadline: None };
    assert!(matches!(engine.score(score, Box::new(|_| ())).err(), Some(Failure::BadPrompt(_))));
    assert_eq!(engine.stats().queued, 0);
}

#[test]
fn configured_context_below_the_model_limit_applies() {
    let engine = Engine::start(options()).unwrap();
    let tokenizer = Arc::new(crate::text::tests::byte_tokenizer());
    let model = LoadedModel { executor: Box::new(Script::default()), tokenizer, context: Some(16) };
    engine.load("m", model).unwrap();
    assert_eq!(engine.models()[0].context, 16);
    let (_ticket, events) = submit(&engine, endless());
    let Event::Done(done) = last(&events) else { panic!("no error output") };
    assert_eq!((done.finish, done.generated_tokens), (Finish::Length, 14));
}

#[test]
fn cancelling_works_on_a_busy_and_on_an_idle_engine() {
    let (engine, watch) = engine();
    let (ticket, events) = submit(&engine, Request { max_tokens: 1_000, ..endless() });
    events.recv_timeout(PATIENCE).unwrap();
    ticket.cancel();
    // It may have come to its end by itself in the meantime.
    assert!(matches!(last(&events), Event::Done(done) if matches!(done.finish, Finish::Cancelled | Finish::Length)));

    // Nothing runs and nothing will: only the ticket wakes the engine up.
    watch.lock().unwrap().full = usize::MAX;
    let (ticket, events) = submit(&engine, endless());
    drop(ticket.cancel_on_drop());
    assert!(matches!(last(&events), Event::Done(done) if done.finish == Finish::Cancelled));
}

#[test]
fn score_is_returned_through_the_engine_thread() {
    let (engine, _) = engine();
    let (sender, result) = mpsc::channel();
    let tokens: Vec<u32> = (0..90).collect();
    let score = Score { model: "m".to_owned(), tenant: "a".to_owned(), tokens, deadline: None };
    engine.score(score, Box::new(move |scored| sender.send(scored).unwrap())).unwrap();
    let scored = result.recv_timeout(PATIENCE).unwrap().unwrap();
    assert_eq!(scored.logprobs.len(), 89);
    assert!(scored.sum < 0.0);
}

#[test]
fn dropping_the_engine_answers_all_requests_and_joins_the_thread() {
    let (engine, watch) = engine();
    watch.lock().unwrap().full = usize::MAX;
    let waiting: Vec<_> = (0..10).map(|_| submit(&engine, endless())).collect();
    let handle = engine.handle();
    drop(engine);
    for (_, events) in &waiting {
        assert_eq!(last(events), Event::Failed(Failure::Draining));
    }
    assert!(is_gone(&watch), "the thread is joined, the model gone");
    assert_eq!(handle.submit(endless(), Box::new(Pipe(mpsc::channel().0))).err(), Some(Failure::Draining));
    assert!(!handle.drain(Instant::now()));
}

#[test]
fn every_accepted_request_is_answered_when_the_engine_closes() {
    let (engine, _) = engine();
    let handle = engine.handle();
    let crowd: Vec<_> = (0..4u32)
        .map(|n| {
            let handle = handle.clone();
            std::thread::spawn(move || {
                let mut accepted = Vec::new();
                loop {
                    let (sender, events) = mpsc::channel();
                    match handle.submit(request([n, 1], 3), Box::new(Pipe(sender))) {
                        Ok(_) => accepted.push(events),
                        Err(Failure::Busy { .. }) => std::thread::yield_now(),
                        Err(failure) => return (accepted, failure),
                    }
                }
            })
        })
        .collect();
    let start = Instant::now();
    while engine.stats().completed < 200 {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    engine.shutdown();
    for thread in crowd {
        let (accepted, failure) = thread.join().unwrap();
        assert_eq!(failure, Failure::Draining);
        for events in accepted {
            last(&events);
            assert!(events.recv().is_err(), "one terminal event, then nothing");
        }
    }
}

#[test]
fn request_admitted_before_closing_is_answered() {
    let door = Arc::new(AdmissionQueue::new(4, Instant::now()));
    let (commands, inbox) = mpsc::sync_channel(4);
    let mut scheduler = Scheduler::new(options(), Arc::clone(&door), Instant::now);
    let slot = door.next_slot().unwrap();
    let tokenizer = Arc::new(crate::text::tests::byte_tokenizer());
    let model = LoadedModel { executor: Box::new(Script::default()), tokenizer: Arc::clone(&tokenizer), context: None };
    let shape = Arc::new(model.executor.shape().clone());
    let load = Command::Load { slot, name: "m".to_owned(), context: 1024, model: Box::new(model) };
    scheduler.command(load);
    let loaded = std::time::SystemTime::now();
    let (name, memory) = ("m".to_owned(), Memory::default());
    let guides = crate::guide::Guides::new(&tokenizer, shape.vocab);
    door.list(slot, ModelInfo { name, shape, tokenizer, guides, context: 1024, memory, loaded });
    // The stop overtakes a request that already has its place in the queue.
    let entry = door.enter("m", "a", Instant::now()).unwrap();
    let (sender, events) = mpsc::channel();
    let run = Box::new(Run::answer(endless(), Box::new(Pipe(sender)), entry.tenant, Arc::default(), Instant::now()));
    commands.send(Command::Stop).unwrap();
    commands.send(Command::Add { slot, model: "m".to_owned(), displaces: false, run }).unwrap();
    super::super::handle::run(scheduler, &inbox, &|| {});
    assert_eq!(events.try_recv(), Ok(Event::Failed(Failure::Draining)));
}

#[test]
fn draining_waits_for_running_requests() {
    let (engine, _) = engine();
    let (_ticket, events) = submit(&engine, request(bytes("ab"), 40));
    assert!(engine.drain(Instant::now() + PATIENCE));
    assert!(matches!(last(&events), Event::Done(_)));
    assert_eq!(engine.submit(endless(), Box::new(Pipe(mpsc::channel().0))).err(), Some(Failure::Draining));
    assert!(engine.stats().draining);
}

#[test]
fn unloading_and_reloading_a_model_is_visible_at_once() {
    let (engine, watch) = engine();
    assert!(engine.unload("m").is_some());
    assert!(engine.unload("m").is_none());
    assert!(engine.models().is_empty());
    let start = Instant::now();
    while !is_gone(&watch) {
        assert!(start.elapsed() < PATIENCE);
        std::thread::yield_now();
    }
    load(&engine, Script::default());
    let (_ticket, events) = submit(&engine, request(bytes("ab"), 2));
    assert!(matches!(last(&events), Event::Done(_)));
}
