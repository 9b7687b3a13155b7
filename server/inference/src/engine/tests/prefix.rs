//! Rows that requests of one tenant have in common.

use super::*;
use crate::engine::request::Done;

/// A bench and what its model, which shares rows in units of 4, has done.
fn sharing(options: EngineOptions, capacity: usize) -> (Bench, Arc<Mutex<Watch>>) {
    let mut bench = Bench::new(EngineOptions { draft_tokens: 0, ..options });
    let watch = bench.load("m", Script { unit: Some(4), capacity, ..Script::default() });
    (bench, watch)
}

fn of_tenant(tenant: &str, prompt: impl Into<Vec<u32>>, max_tokens: usize) -> Request {
    Request { tenant: tenant.to_owned(), ignore_end: true, ..request(prompt, max_tokens) }
}

fn done(sent: &Sent) -> Done {
    let inbox = sent.inbox();
    let Some(Event::Done(done)) = inbox.events.back() else { panic!("{:?}", inbox.events) };
    done.clone()
}

/// Runs a request to its end; the answer is its count of cached tokens and how many rows were computed.
fn run(bench: &mut Bench, watch: &Mutex<Watch>, request: &Request) -> (usize, usize) {
    let before = watch.lock().unwrap().rows;
    let sent = bench.send(request.clone(), Client::Reads).unwrap();
    bench.run();
    assert_eq!(sent.inbox().tokens(), alone(request, &bench.tokenizer, 1024).0, "the same text");
    (done(&sent).cached_tokens, watch.lock().unwrap().rows - before)
}

#[test]
fn request_begins_with_the_rows_of_its_own_tenant_only() {
    let (mut bench, watch) = sharing(options(), 1 << 20);
    let first = of_tenant("a", vec![9; 50], 11);
    assert_eq!(run(&mut bench, &watch, &first), (0, 60));
    let mut prompt = vec![9; 50];
    prompt.extend(alone(&first, &bench.tokenizer, 1024).0);
    prompt.extend([1, 2, 3]);
    // 60 rows are there, which are whole units.
    assert_eq!(run(&mut bench, &watch, &of_tenant("b", prompt.clone(), 5)), (0, 68), "another tenant");
    assert_eq!(run(&mut bench, &watch, &of_tenant("a", prompt.clone(), 5)), (60, 8), "the next turn of a conversation");
    assert_eq!(run(&mut bench, &watch, &of_tenant("a", vec![9; 31], 1)), (28, 3), "the beginning");
    assert_eq!(run(&mut bench, &watch, &of_tenant("a", vec![9; 29], 1)), (28, 1), "the last row is always computed");
    assert_eq!(run(&mut bench, &watch, &of_tenant("a", vec![9; 28], 1)), (24, 4), "the last row is always computed");
    assert_eq!(run(&mut bench, &watch, &of_tenant("a", [1, 9, 9, 9, 9, 9], 1)), (0, 6), "another beginning");
    let stats = bench.door.stats(bench.now());
    assert_eq!((stats.cached_tokens, stats.prompt_tokens), (60 + 28 + 28 + 24, 50 + 64 + 4 + 3 + 1 + 4 + 6));
}

#[test]
fn requests_that_run_together_compute_a_common_prompt_once() {
    for (tenants, expected) in [(["a", "a", "a"], 400 + 2 * 4), (["a", "b", "a"], 400 + 400 + 4)] {
        let (mut bench, watch) = sharing(options(), 1 << 20);
        let prompt: Vec<u32> = (0..400).map(|n| n * n % 250).collect();
        let requests = tenants.map(|tenant| of_tenant(tenant, prompt.clone(), 1));
        let sent = requests.clone().map(|request| bench.send(request, Client::Reads).unwrap());
        bench.run();
        for (request, sent) in requests.iter().zip(&sent) {
            assert_eq!(sent.inbox().tokens(), alone(request, &bench.tokenizer, 1024).0);
        }
        // A chunk may be computed twice, where it is in the step of the one it could come from.
        let rows = watch.lock().unwrap().rows;
        assert!((expected..expected + 100).contains(&rows), "{tenants:?}: {rows} rows");
    }
}

#[test]
fn retained_rows_never_take_room_that_a_request_needs() {
    let (mut bench, watch) = sharing(options(), 200);
    let long = |tenant: &str, first: u32| of_tenant(tenant, (first..first + 90).collect::<Vec<_>>(), 10);
    for first in 0..4 {
        run(&mut bench, &watch, &long("a", first));
        let watch = watch.lock().unwrap();
        assert!(watch.reserved == 0 && (1..=200).contains(&watch.retained), "{watch:?}");
    }
    assert_eq!(run(&mut bench, &watch, &long("a", 3)).0, 88, "the youngest is there");
    assert_eq!(run(&mut bench, &watch, &long("a", 0)).0, 0, "the oldest is not");
    assert_eq!(run(&mut bench, &watch, &of_tenant("b", vec![8; 190], 10)).0, 0);
    let stats = bench.door.stats(bench.now());
    assert_eq!((stats.preempted, stats.failed), (0, 0));
    assert_eq!(run(&mut bench, &watch, &long("a", 3)).0, 0, "another tenant's request took all memory");
}

#[test]
fn count_of_retained_sequences_is_bounded_and_covered_ones_go() {
    let (mut bench, watch) = sharing(options(), 1 << 20);
    for _ in 0..3 {
        run(&mut bench, &watch, &of_tenant("a", vec![9; 21], 1));
        assert_eq!(watch.lock().unwrap().retained, 20, "once, however often it is asked");
    }
    run(&mut bench, &watch, &of_tenant("a", vec![9; 41], 1));
    assert_eq!(watch.lock().unwrap().retained, 40, "the shorter one is a part of it");
    for n in 0..100 {
        run(&mut bench, &watch, &of_tenant("a", [n, 1, 2, 3], 1));
    }
    assert_eq!(watch.lock().unwrap().retained, 64 * 4);
}

#[test]
fn rows_of_cancelled_requests_are_retained_and_those_of_failed_ones_are_not() {
    let (mut bench, watch) = sharing(options(), 1 << 20);
    let sent = bench.send(of_tenant("a", vec![9; 40], 900), Client::Reads).unwrap();
    while sent.inbox().tokens().len() < 5 {
        bench.scheduler.turn();
    }
    sent.cancel();
    bench.run();
    assert_eq!(done(&sent).finish, Finish::Cancelled);
    let retained = watch.lock().unwrap().retained;
    assert!((40..900).contains(&retained));
    assert_eq!(run(&mut bench, &watch, &of_tenant("a", vec![9; 41], 3)).0, 40);
    let retained = watch.lock().unwrap().retained;
    let mut broken = vec![7; 40];
    broken[20] = script::BREAKS_LOGITS;
    let sent = bench.send(of_tenant("a", broken, 5), Client::Reads).unwrap();
    bench.run();
    assert!(matches!(sent.inbox().failure(), Some(Failure::Model(_))));
    assert_eq!(watch.lock().unwrap().retained, retained);
}

#[test]
fn preempted_request_goes_on_from_the_rows_that_are_left() {
    let (mut bench, watch) = sharing(options(), 600);
    let slow = of_tenant("a", vec![9; 40], 200);
    // It reads nothing for about two seconds.
    let sent = bench.send(slow.clone(), Client::Slow(60)).unwrap();
    while watch.lock().unwrap().rows < 41 {
        bench.scheduler.turn();
    }
    let other = bench.send(of_tenant("b", vec![8; 400], 1), Client::Reads).unwrap();
    bench.run();
    assert!(other.inbox().finish().is_some());
    assert_eq!(sent.inbox().tokens(), alone(&slow, &bench.tokenizer, 1024).0);
    let stats = bench.door.stats(bench.now());
    assert_eq!((stats.preempted, stats.cached_tokens), (1, 0), "rows of its own are not counted");
    let rows = watch.lock().unwrap().rows;
    assert!((40 + 199 + 400..40 + 199 + 400 + 4).contains(&rows), "{rows}");
}

#[test]
fn nothing_is_retained_where_it_is_switched_off_or_cannot_be() {
    for (prefix_cache, unit) in [(false, Some(4)), (true, None)] {
        let mut bench = Bench::new(EngineOptions { prefix_cache, draft_tokens: 0, ..options() });
        let watch = bench.load("m", Script { unit, ..Script::default() });
        for _ in 0..2 {
            assert_eq!(run(&mut bench, &watch, &of_tenant("a", vec![9; 50], 2)), (0, 51));
        }
        assert_eq!(watch.lock().unwrap().retained, 0);
    }
}
