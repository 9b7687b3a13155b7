//! Broken steps, broken numbers, broken clients: only the guilty pay.

use super::script::{BREAKS_LOGITS, FAILS_NAMELESS, NAMES_ITSELF, PANICS};
use super::*;

/// Six honest requests with the guilty among them.
fn with_guilty(bench: &mut Bench, poison: u32) -> (Vec<(Request, Sent)>, Sent) {
    let honest: Vec<Request> = (0..6u32).map(|n| request([n, 9, n], 12)).collect();
    let mut sent = Vec::new();
    let mut guilty = None;
    for (index, request) in honest.into_iter().enumerate() {
        if index == 3 {
            guilty = Some(bench.send(self::request([1, 2, poison, 4], 12), Client::Reads).unwrap());
        }
        let one = bench.send(request.clone(), Client::Reads).unwrap();
        sent.push((request, one));
    }
    (sent, guilty.unwrap())
}

#[test]
fn only_the_faulty_request_of_a_batch_fails() {
    for (poison, why) in [
        (PANICS, "panic: the kernel broke"),
        (NAMES_ITSELF, "are not finite"),
        (BREAKS_LOGITS, "logits are not finite"),
        (FAILS_NAMELESS, "no room for more keys"),
    ] {
        let mut bench = Bench::new(options());
        let watch = bench.load("m", Script::default());
        let (honest, guilty) = with_guilty(&mut bench, poison);
        bench.run();
        let failure = guilty.inbox().failure();
        assert!(matches!(&failure, Some(Failure::Model(said)) if said.contains(why)), "{failure:?}");
        assert_eq!(guilty.inbox().events.len(), 1);
        for (request, sent) in &honest {
            let (tokens, text, finish) = alone(request, &bench.tokenizer, 1024);
            let inbox = sent.inbox();
            assert_eq!((inbox.tokens(), inbox.text(), inbox.finish()), (tokens, text, Some(finish)));
        }
        assert_eq!(watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner).open, 0);
        let stats = bench.door.stats(bench.now());
        assert_eq!((stats.completed, stats.failed), (6, 1));
    }
}

#[test]
fn failure_that_disappears_in_a_smaller_batch_fails_no_request() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    let requests: Vec<Request> = (0..7u32).map(|n| request([n, 1], 10)).collect();
    let sent: Vec<Sent> = requests.iter().map(|r| bench.send(r.clone(), Client::Reads).unwrap()).collect();
    bench.scheduler.turn();
    watch.lock().unwrap().flaky = 5;
    bench.run();
    for (request, sent) in requests.iter().zip(&sent) {
        assert_eq!(sent.inbox().tokens(), alone(request, &bench.tokenizer, 1024).0);
    }
    let stats = bench.door.stats(bench.now());
    assert_eq!((stats.failed_steps, stats.failed), (5, 0));
}

#[test]
fn a_device_that_failed_for_good_is_told_from_a_step_that_failed() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    let broken = bench.send(request([1, FAILS_NAMELESS], 5), Client::Reads).unwrap();
    bench.run();
    assert!(broken.inbox().failure().is_some());
    assert_eq!(bench.door.stats(bench.now()).fault, None);
    let why = "CUDA_ERROR_ILLEGAL_ADDRESS";
    watch.lock().unwrap().fault = Some(why);
    let sent = bench.send(request(bytes("ab"), 5), Client::Reads).unwrap();
    bench.run();
    let failure = sent.inbox().failure();
    assert!(matches!(&failure, Some(Failure::Model(said)) if said.contains(why)), "{failure:?}");
    assert_eq!(bench.door.stats(bench.now()).fault.as_deref(), Some(why));
}

#[test]
fn a_device_that_failed_for_good_has_no_room() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    watch.lock().unwrap().fault = Some("lost");
    watch.lock().unwrap().full = usize::MAX;
    bench.send(request(bytes("ab"), 5), Client::Reads).unwrap();
    bench.run();
    assert_eq!(bench.door.stats(bench.now()).fault.as_deref(), Some("lost"));
}

#[test]
fn disconnected_client_does_not_affect_the_others() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    let breaks = bench.send(request(bytes("ab"), 50), Client::Breaks(2)).unwrap();
    let leaves = bench.send(request(bytes("ac"), 50), Client::Leaves(2)).unwrap();
    let stays = request(bytes("ad"), 50);
    let sent = bench.send(stays.clone(), Client::Reads).unwrap();
    bench.run();
    assert_eq!(sent.inbox().tokens(), alone(&stays, &bench.tokenizer, 1024).0);
    assert_eq!((breaks.inbox().events.len(), leaves.inbox().events.len()), (2, 2));
    assert_eq!((watch.lock().unwrap().open, bench.door.stats(bench.now()).cancelled), (0, 2));
}

#[test]
fn cancelled_request_stops_within_one_step() {
    let mut bench = Bench::new(EngineOptions { max_running: 1, ..options() });
    let watch = bench.load("m", Script::default());
    let running = bench.send(request(vec![1; 900], 5), Client::Reads).unwrap();
    let waiting = bench.send(request(bytes("abc"), 5), Client::Reads).unwrap();
    bench.scheduler.turn();
    assert_eq!(watch.lock().unwrap().open, 1);
    running.cancel();
    waiting.cancel();
    let rows = watch.lock().unwrap().rows;
    bench.run();
    assert_eq!(
        (running.inbox().finish(), waiting.inbox().finish()),
        (Some(Finish::Cancelled), Some(Finish::Cancelled))
    );
    let watch = watch.lock().unwrap();
    assert_eq!((watch.rows, watch.open), (rows, 0), "not one more row");
}

#[test]
fn deadline_ends_waiting_and_running_requests() {
    let mut bench = Bench::new(EngineOptions { max_running: 1, ..options() });
    bench.load("m", Script { row_cost: Duration::from_millis(10), ..Script::default() });
    let deadline = Some(bench.now() + Duration::from_millis(200));
    let endless = Request { ignore_end: true, deadline, ..request(bytes("abc"), 1000) };
    let running = bench.send(endless.clone(), Client::Reads).unwrap();
    let waiting = bench.send(endless.clone(), Client::Reads).unwrap();
    bench.run();
    assert_eq!(running.inbox().failure(), Some(Failure::Deadline));
    assert_eq!(waiting.inbox().failure(), Some(Failure::Deadline));
    let tokens = running.inbox().tokens();
    assert!(!tokens.is_empty() && alone(&endless, &bench.tokenizer, 1024).0.starts_with(&tokens));
    assert!(waiting.inbox().tokens().is_empty());
}

#[test]
fn slow_client_is_paused_and_loses_no_token() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let requests = [request(bytes("ab"), 30), request(bytes("ac"), 30)];
    let slow = bench.send(requests[0].clone(), Client::Slow(3)).unwrap();
    let fast = bench.send(requests[1].clone(), Client::Reads).unwrap();
    let mut turns_until_fast = 0;
    while fast.inbox().terminals() == 0 {
        bench.scheduler.turn();
        turns_until_fast += 1;
    }
    assert!(turns_until_fast <= 33, "the fast one waited for the slow one: {turns_until_fast} turns");
    assert!(slow.inbox().tokens().len() < 30);
    bench.run();
    for (request, sent) in requests.iter().zip([slow, fast]) {
        let (tokens, text, finish) = alone(request, &bench.tokenizer, 1024);
        let inbox = sent.inbox();
        assert_eq!((inbox.tokens(), inbox.text(), inbox.finish()), (tokens, text, Some(finish)));
    }
}

#[test]
fn client_that_reads_nothing_is_dropped() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script::default());
    let deaf = bench.send(request(bytes("ab"), 30), Client::Deaf).unwrap();
    // Nobody takes its last word either.
    let mute = bench.send(request(bytes("ab"), 0), Client::Deaf).unwrap();
    let start = bench.now();
    bench.run();
    assert!(bench.now() - start >= bench_stall() && deaf.inbox().events.is_empty() && mute.inbox().events.is_empty());
    assert_eq!(watch.lock().unwrap().open, 0);
    assert_eq!(Arc::strong_count(&deaf.inbox), 1, "the sink is dropped, so its reader sees the end");
    assert_eq!(Arc::strong_count(&mute.inbox), 1);
}

fn bench_stall() -> Duration {
    EngineOptions::default().stall
}

#[test]
fn paused_client_yields_its_slot_to_a_waiting_request() {
    let mut bench = Bench::new(EngineOptions { max_running: 1, ..options() });
    bench.load("m", Script::default());
    let asleep = request(bytes("ab"), 20);
    let slow = bench.send(asleep.clone(), Client::Slow(100)).unwrap();
    let waits = bench.send(request(bytes("ac"), 20), Client::Reads).unwrap();
    let start = bench.now();
    while waits.inbox().terminals() == 0 {
        if let Next::At(at) = bench.scheduler.turn() {
            *bench.time.lock().unwrap() = at;
        }
    }
    assert!(bench.now() - start < Duration::from_secs(5));
    bench.run();
    assert_eq!(slow.inbox().tokens(), alone(&asleep, &bench.tokenizer, 1024).0, "it goes on where it was");
}

#[test]
fn request_waits_for_cache_room_and_fails_only_if_it_can_never_fit() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script { capacity: 100, ..Script::default() });
    watch.lock().unwrap().full = 3;
    let fits = bench.send(request(vec![1; 50], 50), Client::Reads).unwrap();
    let next = bench.send(request(vec![2; 50], 50), Client::Reads).unwrap();
    let never = bench.send(request(vec![3; 101], 50), Client::Reads).unwrap();
    bench.run();
    assert!(fits.inbox().finish().is_some() && next.inbox().finish().is_some());
    let failure = never.inbox().failure();
    assert!(matches!(&failure, Some(Failure::Model(why)) if why.contains("no room for 151 tokens")), "{failure:?}");
}

#[test]
fn cache_room_timeout_counts_only_while_no_other_request_runs() {
    let mut bench = Bench::new(EngineOptions { max_running: 1, ..options() });
    let watch = bench.load("m", Script::default());
    let first = bench.send(request(bytes("ab"), 20), Client::Reads).unwrap();
    let second = bench.send(request(bytes("ac"), 20), Client::Reads).unwrap();
    // Both find no room, then the first has it for longer than anybody would wait for none.
    watch.lock().unwrap().full = 2;
    bench.scheduler.turn();
    bench.scheduler.turn();
    assert_eq!(watch.lock().unwrap().open, 1);
    bench.advance(Duration::from_secs(60));
    watch.lock().unwrap().full = 4;
    bench.run();
    assert!(first.inbox().finish().is_some());
    assert_eq!(second.inbox().failure(), None);
    assert!(second.inbox().finish().is_some());
}

#[test]
fn draining_finishes_accepted_requests_and_refuses_new_ones() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let accepted = bench.send(request(bytes("ab"), 30), Client::Reads).unwrap();
    bench.door.close();
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    let deadline = bench.now() + Duration::from_secs(60);
    bench.scheduler.command(Command::Drain { deadline, reply });
    bench.run();
    assert_eq!(answer.try_recv(), Ok(true));
    assert!(accepted.inbox().finish().is_some());
    assert_eq!(bench.send(request(bytes("ab"), 30), Client::Reads).err(), Some(Failure::Draining));
    assert!(bench.door.stats(bench.now()).draining);
}

#[test]
fn draining_ends_at_its_deadline_even_for_late_requests() {
    let mut bench = Bench::new(EngineOptions { max_running: 1, ..options() });
    let watch = bench.load("m", Script { row_cost: Duration::from_millis(10), ..Script::default() });
    let endless = Request { ignore_end: true, ..request(bytes("ab"), 1000) };
    let sent: Vec<Sent> = (0..3).map(|_| bench.send(endless.clone(), Client::Reads).unwrap()).collect();
    // Through the door, but not yet here.
    let entry = bench.door.enter("m", "a", bench.now()).unwrap();
    bench.door.close();
    let (reply, answer) = std::sync::mpsc::sync_channel(1);
    let deadline = bench.now() + Duration::from_millis(300);
    bench.scheduler.command(Command::Drain { deadline, reply });
    bench.run();
    assert_eq!(answer.try_recv(), Ok(false));
    for sent in &sent {
        assert_eq!(sent.inbox().failure(), Some(Failure::Draining));
    }
    assert!(bench.scheduler.is_awaited());
    let inbox = Arc::new(Mutex::new(Inbox::default()));
    let sink = Box::new(Wire { client: Client::Reads, inbox: Arc::clone(&inbox) });
    let run = Box::new(Run::answer(endless, sink, entry.tenant, Arc::default(), bench.now()));
    bench.scheduler.command(Command::Add { slot: entry.slot, model: "m".to_owned(), displaces: false, run });
    assert_eq!(inbox.lock().unwrap().failure(), Some(Failure::Draining));
    assert!(!bench.scheduler.is_awaited());
    assert_eq!(watch.lock().unwrap().open, 0);
}
