//! Random schedules of everything at once: what must hold after each step holds.

use super::script::{BREAKS_LOGITS, FAILS_NAMELESS, NAMES_ITSELF, PANICS};
use super::*;
use proptest::prelude::*;

// A schedule is a short list, and most of it are requests.
#[allow(clippy::large_enum_variant)]
#[derive(Debug, Clone)]
enum Act {
    Send {
        request: Request,
        client: Client,
        limit: Option<u64>,
    },
    Score {
        tenant: usize,
        length: usize,
    },
    Cancel(usize),
    Turns(usize),
    Wait(u64),
    /// So many steps with company fail.
    Flaky(usize),
    /// So many times there is no room.
    Full(usize),
    /// The same model once more.
    Reload,
}

fn client() -> impl Strategy<Value = Client> {
    prop_oneof![
        6 => Just(Client::Reads),
        2 => (1usize..40).prop_map(Client::Slow),
        1 => (0usize..6).prop_map(Client::Leaves),
        1 => (0usize..6).prop_map(Client::Breaks),
        1 => Just(Client::Deaf),
    ]
}

fn any_request() -> impl Strategy<Value = Request> {
    let poison = prop_oneof![
        12 => Just(None),
        1 => prop::sample::select(vec![PANICS, NAMES_ITSELF, BREAKS_LOGITS, FAILS_NAMELESS]).prop_map(Some),
    ];
    // Many begin alike.
    let prompt = (1usize..120, prop_oneof![Just(7u32), 0u32..250], poison);
    let settings = (0usize..3, 0usize..60, prop_oneof![Just(0.0f32), 0.1f32..2.0], 0u64..9, any::<bool>());
    (prompt, settings, prop::collection::vec("[a-e ]{1,2}", 0..2)).prop_map(
        |((length, first, poison), settings, stop)| {
            let (tenant, max_tokens, temperature, seed, ignore_end) = settings;
            let mut prompt: Vec<u32> = (0..length as u32).map(|n| (first + n * n) % 250).collect();
            if let Some(poison) = poison {
                prompt[length / 2] = poison;
            }
            let repetition_penalty = if seed % 2 == 0 { 1.0 } else { 1.1 };
            let sampling = Sampling { repetition_penalty, top_p: 0.95, ..sampling(temperature, seed) };
            Request { tenant: format!("t{tenant}"), sampling, stop, ignore_end, ..request(prompt, max_tokens) }
        },
    )
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        8 => (any_request(), client(), prop::option::weighted(0.15, 1u64..400))
            .prop_map(|(request, client, limit)| Act::Send { request, client, limit }),
        1 => (0usize..3, 1usize..150).prop_map(|(tenant, length)| Act::Score { tenant, length }),
        2 => any::<usize>().prop_map(Act::Cancel),
        6 => (1usize..20).prop_map(Act::Turns),
        1 => (1u64..2_000).prop_map(Act::Wait),
        1 => (1usize..4).prop_map(Act::Flaky),
        1 => (1usize..4).prop_map(Act::Full),
        1 => Just(Act::Reload),
    ]
}

struct Followed {
    request: Request,
    client: Client,
    sent: Sent,
    may_be_late: bool,
    may_be_cancelled: bool,
}

/// What must hold after every turn.
fn check_between(bench: &Bench, watches: &[Arc<Mutex<Watch>>], followed: &[Followed], max_running: usize) {
    let open: usize = watches.iter().map(|watch| lock(watch).open).sum();
    let running: usize = bench.scheduler.slots.iter().map(|slot| slot.running.len()).sum();
    assert_eq!(open, running, "open sequences are those of running requests");
    for slot in &bench.scheduler.slots {
        assert!(slot.running.len() <= max_running);
        for run in slot.running.iter().chain(&slot.waiting) {
            assert!(run.computed <= run.tokens.len());
            assert!(run.seq.is_some() || run.computed == 0, "without room nothing counts as computed");
        }
    }
    let queued = bench.scheduler.slots.iter().flat_map(|slot| &slot.waiting).filter(|run| run.queued).count();
    assert_eq!(queued, bench.door.queued(), "places in the queue are those of waiting requests");
    for one in followed {
        assert!(one.sent.inbox().terminals() <= 1);
    }
}

/// What must hold at the end.
fn check_end(one: &Followed, tokenizer: &Tokenizer, window: usize) {
    let inbox = one.sent.inbox();
    if inbox.gone || one.client == Client::Deaf {
        return;
    }
    assert_eq!(inbox.terminals(), 1, "{:?} {:?}", one.client, inbox.events);
    assert!(!matches!(inbox.events.back(), Some(Event::Token(_))), "the terminal event is the last");
    let poisoned = one.request.prompt.iter().any(|&token| token >= PANICS) && one.request.max_tokens > 0;
    match (inbox.finish(), inbox.failure()) {
        (_, Some(Failure::Model(_))) => assert!(poisoned, "only the guilty fail"),
        (_, Some(Failure::Deadline)) => assert!(one.may_be_late),
        (_, Some(Failure::Busy { .. })) => assert!(inbox.tokens().is_empty()),
        (_, Some(other)) => panic!("{other:?}"),
        (Some(Finish::Cancelled), _) => assert!(one.may_be_cancelled),
        (finish, _) => {
            assert!(!poisoned);
            let (tokens, text, by_itself) = alone_within(&one.request, tokenizer, 1024, window);
            assert_eq!((inbox.tokens(), inbox.text(), finish), (tokens, text, Some(by_itself)), "as if alone");
        }
    }
    if !poisoned && inbox.finish().is_none_or(|finish| finish == Finish::Cancelled) {
        assert!(
            alone_within(&one.request, tokenizer, 1024, window).0.starts_with(&inbox.tokens()),
            "cut short, but true"
        );
    }
}

fn lock(watch: &Mutex<Watch>) -> std::sync::MutexGuard<'_, Watch> {
    watch.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn play(acts: Vec<Act>, max_running: usize, capacity: usize, (unit, draws): (Option<usize>, bool), window: usize) {
    let mut bench = Bench::new(EngineOptions { queue: 12, max_running, ..EngineOptions::default() });
    let script = || Script { capacity, unit, draws, window, ..Script::default() };
    let mut watches = vec![bench.load("m", script())];
    let mut followed: Vec<Followed> = Vec::new();
    let mut scores = Vec::new();
    for act in acts {
        match act {
            Act::Send { mut request, client, limit } => {
                request.deadline = limit.map(|ms| bench.now() + Duration::from_millis(ms));
                if let Ok(sent) = bench.send(request.clone(), client) {
                    let may_be_late = limit.is_some();
                    followed.push(Followed { request, client, sent, may_be_late, may_be_cancelled: false });
                }
            }
            Act::Score { tenant, length } => {
                if bench.door.queued() < 12 {
                    let tokens: Vec<u32> = (0..length as u32).map(|n| n * 3 % 250).collect();
                    scores.push((tokens.clone(), bench.score(&format!("t{tenant}"), tokens)));
                }
            }
            Act::Cancel(index) => {
                if let Some(one) = index.checked_rem(followed.len()) {
                    followed[one].may_be_cancelled = true;
                    followed[one].sent.cancel();
                }
            }
            Act::Turns(turns) => {
                for _ in 0..turns {
                    bench.scheduler.turn();
                    check_between(&bench, &watches, &followed, max_running);
                }
            }
            Act::Wait(ms) => bench.advance(Duration::from_millis(ms)),
            Act::Flaky(steps) => lock(&watches[watches.len() - 1]).flaky += steps,
            Act::Full(times) => lock(&watches[watches.len() - 1]).full += times,
            Act::Reload => watches.push(bench.load("m", script())),
        }
    }
    bench.run();
    check_between(&bench, &watches, &followed, max_running);
    for one in &followed {
        check_end(one, &bench.tokenizer, window);
        assert_eq!(Arc::strong_count(&one.sent.inbox), 1, "the sink is dropped");
    }
    for (tokens, result) in &scores {
        let result = result.lock().unwrap().take().expect("a score is answered");
        match result {
            Ok(scored) => assert_eq!(scored.logprobs.len() + 1, tokens.len()),
            Err(failure) => assert!(matches!(failure, Failure::Busy { .. }), "{failure:?}"),
        }
    }
    assert_eq!(bench.door.queued(), 0);
    assert!(bench.scheduler.books.tenants.is_idle() && bench.scheduler.books.all_left());
    let held = |watch: &Arc<Mutex<Watch>>| {
        let watch = lock(watch);
        watch.open + watch.reserved
    };
    assert!(watches.iter().all(|watch| held(watch) == 0), "nothing leaks");
    assert!(watches.iter().rev().skip(1).all(is_gone), "replaced models are gone");
}

proptest! {
    #[test]
    fn random_schedules_keep_every_invariant(
        acts in prop::collection::vec(act(), 1..60),
        max_running in 1usize..6,
        capacity in prop::sample::select(vec![200usize, 400, 100_000]),
        kind in prop::sample::select(vec![(None, false), (None, true), (Some(4), false), (Some(4), true)]),
        window in prop::sample::select(vec![1, 2, usize::MAX]),
    ) {
        play(acts, max_running, capacity, kind, window);
    }
}
