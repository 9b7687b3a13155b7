//! Tokens that are guessed from a sequence's own text.

use super::*;
use proptest::prelude::*;

/// A bench, and what its model has done, whose next token depends on the last `window` ones.
fn guessing(draft_tokens: usize, window: usize) -> (Bench, Arc<Mutex<Watch>>) {
    let mut bench = Bench::new(EngineOptions { draft_tokens, ..options() });
    let watch = bench.load("m", Script { unit: Some(4), window, context: 300, ..Script::default() });
    (bench, watch)
}

/// The events of requests, without times, and how many steps they took.
fn events(draft_tokens: usize, window: usize, requests: &[(Request, Client)]) -> (Vec<Vec<Event>>, usize) {
    let (mut bench, watch) = guessing(draft_tokens, window);
    let sent: Vec<Sent> =
        requests.iter().map(|(request, client)| bench.send(request.clone(), *client).unwrap()).collect();
    bench.run();
    let stats = bench.door.stats(bench.now());
    assert!(stats.accepted_tokens <= stats.drafted_tokens && (draft_tokens > 0 || stats.drafted_tokens == 0));
    assert!(
        stats.accepted_tokens <= stats.generated_tokens,
        "what a paused client gets later is counted once: {stats:?}"
    );
    let timeless = |event: &Event| match event {
        Event::Done(done) => {
            Event::Done(super::super::Done { queued_ms: 0.0, first_token_ms: 0.0, total_ms: 0.0, ..done.clone() })
        }
        other => other.clone(),
    };
    let events = sent.iter().map(|sent| sent.inbox().events.iter().map(timeless).collect()).collect();
    let steps = watch.lock().unwrap().steps;
    (events, steps)
}

fn any_request() -> impl Strategy<Value = (Request, Client)> {
    let sampling_of = (prop_oneof![Just(0.0f32), 0.1f32..1.5], 0u64..5, any::<bool>(), any::<bool>());
    let rest = (1usize..70, any::<bool>(), prop::option::of(0u8..3), prop::option::of("[a-z]"), 0usize..3);
    (prop::collection::vec(0u32..250, 1..30), sampling_of, rest).prop_map(|(prompt, sampled, rest)| {
        let (temperature, seed, penalties, narrow) = sampled;
        let (max_tokens, ignore_end, logprobs, stop, client) = rest;
        let sampling = Sampling {
            top_k: if narrow { 2 } else { 0 },
            repetition_penalty: if penalties { 1.2 } else { 1.0 },
            presence_penalty: if penalties { 0.3 } else { 0.0 },
            frequency_penalty: if penalties { 0.1 } else { 0.0 },
            logit_bias: if penalties { vec![(65, 2.5)] } else { Vec::new() },
            ..sampling(temperature, seed)
        };
        let client = [Client::Reads, Client::Slow(3), Client::Reads][client];
        let stop = stop.into_iter().collect();
        (Request { sampling, ignore_end, logprobs, stop, ..request(prompt, max_tokens) }, client)
    })
}

proptest! {
    #[test]
    fn drafts_never_change_an_event(
        requests in prop::collection::vec(any_request(), 1..5),
        window in prop::sample::select(vec![1, 2, usize::MAX]),
        draft_tokens in 1usize..12,
    ) {
        prop_assert_eq!(events(draft_tokens, window, &requests).0, events(0, window, &requests).0);
    }
}

#[test]
fn text_that_repeats_takes_fewer_steps() {
    let request = Request { ignore_end: true, ..request(bytes("abc"), 290) };
    let of = |draft_tokens| events(draft_tokens, 1, &[(request.clone(), Client::Reads)]);
    let ((with, fewer), (without, steps)) = (of(8), of(0));
    assert_eq!(with, without);
    assert_eq!(steps, 290);
    assert!(fewer < 150, "{fewer} steps");
}

#[test]
fn model_that_fails_at_a_draft_goes_on_without() {
    let (mut bench, watch) = guessing(8, 1);
    watch.lock().unwrap().breaks_drafts = true;
    let request = Request { ignore_end: true, ..request(bytes("abc"), 200) };
    let sent = bench.send(request.clone(), Client::Reads).unwrap();
    bench.run();
    assert_eq!(sent.inbox().tokens(), alone_within(&request, &bench.tokenizer, 300, 1).0);
    let stats = bench.door.stats(bench.now());
    assert_eq!((stats.failed_steps, stats.failed, stats.drafted_tokens), (1, 0, 0));
}

#[test]
fn executor_that_cannot_repeat_its_bits_gets_no_drafts() {
    let mut bench = Bench::new(options());
    let watch = bench.load("m", Script { window: 1, ..Script::default() });
    bench.send(Request { ignore_end: true, ..request(bytes("abc"), 100) }, Client::Reads).unwrap();
    bench.run();
    assert_eq!((watch.lock().unwrap().steps, bench.door.stats(bench.now()).drafted_tokens), (100, 0));
}
