//! Who goes next, how long others wait, who is turned away.

use super::*;

/// Keeps `depth` requests of a tenant in the engine.
struct Backlog {
    tenant: &'static str,
    depth: usize,
    make: fn(u32) -> Request,
    sent: Vec<Sent>,
    served: usize,
    number: u32,
}

impl Backlog {
    fn new(tenant: &'static str, depth: usize, make: fn(u32) -> Request) -> Self {
        Backlog { tenant, depth, make, sent: Vec::new(), served: 0, number: 0 }
    }

    fn top_up(&mut self, bench: &mut Bench) {
        let served = &mut self.served;
        self.sent.retain(|sent| {
            let inbox = sent.inbox();
            if inbox.terminals() > 0 {
                if let Some(Event::Done(done)) = inbox.events.back() {
                    *served += done.prompt_tokens + 2 * done.generated_tokens;
                }
                return false;
            }
            true
        });
        while self.sent.len() < self.depth {
            self.number += 1;
            let request = Request { tenant: self.tenant.to_owned(), ..(self.make)(self.number) };
            self.sent.push(bench.send(request, Client::Reads).unwrap());
        }
    }
}

#[test]
fn tenants_share_evenly_regardless_of_their_request_count() {
    for max_running in [2, 8] {
        let mut bench = Bench::new(EngineOptions { queue: 256, max_running, ..options() });
        bench.load("m", Script::default());
        let make: fn(u32) -> Request =
            |n| Request { ignore_end: true, ..request(vec![n % 200; 40 + n as usize % 50], 40) };
        let (mut flood, mut few) = (Backlog::new("flood", 100, make), Backlog::new("few", 8, make));
        for _ in 0..6_000 {
            flood.top_up(&mut bench);
            few.top_up(&mut bench);
            bench.scheduler.turn();
        }
        let ratio = flood.served as f64 / few.served as f64;
        assert!((0.95..1.05).contains(&ratio), "{} to {} with {max_running} at once", flood.served, few.served);
    }
}

#[test]
fn tenant_with_long_responses_is_preempted() {
    let mut bench = Bench::new(EngineOptions { max_running: 2, ..options() });
    bench.load("m", Script { context: 100_000, capacity: 1 << 30, ..Script::default() });
    let endless = Request { ignore_end: true, tenant: "hog".to_owned(), ..request(bytes("ab"), 9_000) };
    let hogs: Vec<Sent> = (0..2u32)
        .map(|n| bench.send(Request { prompt: vec![n, 1], ..endless.clone() }, Client::Reads).unwrap())
        .collect();
    for _ in 0..50 {
        bench.scheduler.turn();
    }
    let guest = bench.send(Request { tenant: "guest".to_owned(), ..request(bytes("xy"), 10) }, Client::Reads).unwrap();
    let before: usize = hogs.iter().map(|hog| hog.inbox().tokens().len()).sum();
    while guest.inbox().terminals() == 0 {
        bench.scheduler.turn();
    }
    let meanwhile = hogs.iter().map(|hog| hog.inbox().tokens().len()).sum::<usize>() - before;
    assert!(meanwhile < 2_000, "the guest waited for {meanwhile} tokens of others");
    bench.run();
    for (n, hog) in (0u32..).zip(&hogs) {
        let want = alone(&Request { prompt: vec![n, 1], ..endless.clone() }, &bench.tokenizer, 100_000).0;
        assert!(hog.inbox().tokens() == want, "losing its room changes nothing in the answer");
    }
    let stats = bench.door.stats(bench.now());
    assert!(stats.preempted > 0);
    assert_eq!(stats.prompt_tokens, 6, "rows that are computed again are neither counted nor charged");
}

#[test]
fn long_prompts_of_one_tenant_do_not_stall_another_tenants_stream() {
    let mut bench = Bench::new(options());
    let script = Script { context: 20_000, row_cost: Duration::from_micros(500), ..Script::default() };
    bench.load("m", script);
    let endless = Request { ignore_end: true, tenant: "reader".to_owned(), ..request(bytes("ab"), 600) };
    let reader = bench.send(endless, Client::Reads).unwrap();
    let mut neighbour =
        Backlog::new("neighbour", 4, |n| Request { ignore_end: true, ..request(vec![n % 250; 10_000], 5) });
    let (mut longest, mut last, mut count) = (Duration::ZERO, bench.now(), 0);
    while reader.inbox().terminals() == 0 {
        neighbour.top_up(&mut bench);
        bench.scheduler.turn();
        let tokens = reader.inbox().tokens().len();
        if tokens > count {
            // The cost model needs some steps before its predictions count.
            if count > 20 {
                longest = longest.max(bench.now() - last);
            }
            (last, count) = (bench.now(), tokens);
        }
    }
    assert!(longest <= Duration::from_millis(26), "{longest:?} between two tokens, the target is 20 ms");
    assert!(bench.door.stats(bench.now()).prompt_tokens > 10_000, "and the neighbour gets on");
}

#[test]
fn models_share_time_and_not_steps() {
    let mut bench = Bench::new(options());
    let quick = bench.load("quick", Script::default());
    let slow = bench.load("slow", Script { step_cost: Duration::from_millis(9), ..Script::default() });
    let endless = |model: &str| Request {
        model: model.to_owned(),
        tenant: model.to_owned(),
        ignore_end: true,
        ..request(bytes("ab"), 1_000)
    };
    let _quick = bench.send(endless("quick"), Client::Reads).unwrap();
    let _slow = bench.send(endless("slow"), Client::Reads).unwrap();
    for _ in 0..500 {
        bench.scheduler.turn();
    }
    let (quick, slow) = (quick.lock().unwrap().steps as f64, slow.lock().unwrap().steps as f64);
    // 1.25 ms against 9.25 ms.
    assert!((6.5..8.5).contains(&(quick / slow)), "{quick} and {slow} steps");
}

#[test]
fn oldest_request_of_a_tenant_goes_first() {
    let mut bench = Bench::new(EngineOptions { max_running: 1, ..options() });
    bench.load("m", Script::default());
    let sent: Vec<Sent> = (0..5u32).map(|n| bench.send(request([n], 3), Client::Reads).unwrap()).collect();
    let mut ended = Vec::new();
    while ended.len() < 5 {
        bench.scheduler.turn();
        for (index, sent) in sent.iter().enumerate() {
            if sent.inbox().terminals() > 0 && !ended.contains(&index) {
                ended.push(index);
            }
        }
    }
    assert_eq!(ended, [0, 1, 2, 3, 4]);
}

#[test]
fn short_requests_do_not_starve_a_long_one() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script { capacity: 100, ..Script::default() });
    let long = |n: u32| Request { ignore_end: true, ..request(vec![n; 40], 30) };
    let _first = bench.send(long(1), Client::Reads).unwrap();
    bench.scheduler.turn();
    let second = bench.send(long(2), Client::Reads).unwrap();
    let short = bench.send(Request { ignore_end: true, ..request(vec![3; 5], 5) }, Client::Reads).unwrap();
    for _ in 0..5 {
        bench.scheduler.turn();
        assert_eq!(watch.lock().unwrap().open, 1, "the short one fits, and waits for its turn");
    }
    bench.run();
    assert!(second.inbox().finish().is_some() && short.inbox().finish().is_some());
}

/// One request that takes all but the reserved positions does not keep other tenants waiting, however long it runs.
#[test]
fn tenants_without_room_are_served_beside_requests_that_take_all_of_it() {
    for (unit, capacity) in [(None, 1250), (Some(8), 1256), (Some(8), 2256)] {
        beside_a_tenant_that_takes_all_room(unit, capacity);
    }
}

fn beside_a_tenant_that_takes_all_room(unit: Option<usize>, capacity: usize) {
    let mut bench = Bench::new(options());
    let script = Script { context: 1000, capacity, unit, is_limited: true, ..Script::default() };
    let watch = bench.load("m", script);
    let of = |tenant: &str, prompt: usize, tokens: usize| Request {
        tenant: tenant.to_owned(),
        ignore_end: true,
        ..request(vec![1; prompt], tokens)
    };
    let attacks: Vec<_> =
        (0..capacity / 1000).map(|_| bench.send(of("attacker", 600, 400), Client::Reads).unwrap()).collect();
    bench.scheduler.turn();
    let second = bench.send(of("attacker", 5, 5), Client::Reads).unwrap();
    let third = bench.send(of("attacker", 600, 400), Client::Reads).unwrap();
    let long = bench.send(of("long", 900, 100), Client::Reads).unwrap();
    for round in 0..8u32 {
        let victim = bench.send(of("victim", 40, 8), Client::Reads).unwrap();
        let mut turns = 0;
        while victim.inbox().finish().is_none() {
            bench.scheduler.turn();
            turns += 1;
            assert!(turns < 40, "round {round}");
        }
        assert!(attacks.iter().all(|attack| attack.inbox().finish().is_none()), "round {round}: the attack still runs");
        assert!(second.inbox().finish().is_none(), "the reserve is not for tenants that have room");
    }
    assert!(watch.lock().unwrap().reserved <= capacity);
    bench.run();
    for sent in attacks.iter().chain([&second, &third, &long]) {
        assert!(sent.inbox().finish().is_some());
    }
}

#[test]
fn full_queue_refuses_with_an_estimated_retry_time() {
    let mut bench = Bench::new(EngineOptions { queue: 10, max_running: 1, ..options() });
    bench.load("m", Script { row_cost: Duration::from_millis(10), ..Script::default() });
    let make: fn(u32) -> Request = |n| Request { ignore_end: true, ..request([n % 200, 1, 2], 47) };
    let mut backlog = Backlog::new("a", 11, make);
    bench.send(Request { tenant: "a".to_owned(), ..make(0) }, Client::Reads).unwrap();
    bench.scheduler.turn();
    backlog.depth = 10;
    while backlog.number < 40 {
        backlog.top_up(&mut bench);
        bench.scheduler.turn();
    }
    while backlog.sent.len() > 9 && bench.door.queued() < 10 {
        bench.scheduler.turn();
        backlog.top_up(&mut bench);
    }
    // 47 decoded rows of 11 ms and a prompt of 31: a place is free about every 540 ms.
    let mut told = Vec::new();
    while told.len() < 3 {
        match bench.send(Request { tenant: "a".to_owned(), ..make(7) }, Client::Reads) {
            Ok(_) => {}
            Err(Failure::Busy { retry_after_ms }) => told.push(retry_after_ms),
            Err(other) => panic!("{other:?}"),
        }
    }
    assert!((400..700).contains(&told[0]), "{told:?}");
    assert!((1200..2100).contains(&told[2]), "the third in line waits for three places: {told:?}");
    assert_eq!(bench.door.stats(bench.now()).retry_after_ms, told[2]);
}

#[test]
fn full_queue_evicts_for_a_tenant_with_few_requests() {
    let mut bench = Bench::new(EngineOptions { queue: 10, max_running: 1, ..options() });
    bench.load("m", Script::default());
    let of = |tenant: &str, n: u32| Request { tenant: tenant.to_owned(), ..request([n, 1], 5) };
    let flood: Vec<Sent> = (0..10).map(|n| bench.send(of("flood", n), Client::Reads).unwrap()).collect();
    assert!(matches!(bench.send(of("flood", 99), Client::Reads), Err(Failure::Busy { .. })));
    let few: Vec<Sent> = (0..5).map(|n| bench.send(of("few", n), Client::Reads).unwrap()).collect();
    assert!(matches!(bench.send(of("few", 99), Client::Reads), Err(Failure::Busy { .. })), "half of it is fair");
    for (n, sent) in flood.iter().enumerate() {
        let displaced = matches!(sent.inbox().failure(), Some(Failure::Busy { .. }));
        assert_eq!(displaced, n >= 5, "the youngest go: {n}");
    }
    assert_eq!(bench.door.queued(), 10);
    bench.run();
    assert!(few.iter().all(|sent| sent.inbox().finish().is_some()));
    assert!(flood.iter().all(|sent| sent.inbox().terminals() == 1));
    assert_eq!(bench.door.queued(), 0);
}
