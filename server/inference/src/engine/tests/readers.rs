//! Logits that several threads read.

use super::*;
use crate::engine::isolate::SpanOutput;
use crate::engine::readers::{Gathered, Readers, Unread};
use crate::engine::request::Token;
use crate::engine::run::LogitResult;
use crate::sample::SampledToken;
use script::{BREAKS_LOGITS, VOCAB};

/// All that reached the clients of a mixed batch whose logits `readers` read: answers of all kinds, one of which fails, and
/// a score.
fn batch(readers: Readers) -> (Vec<VecDeque<Event>>, Vec<f32>) {
    let mut bench = Bench::new(EngineOptions { max_running: 16, ..options() });
    bench.scheduler.readers = readers;
    bench.load("m", Script { unit: Some(4), window: 2, ..Script::default() });
    let sampled = |seed| Request {
        sampling: Sampling { presence_penalty: 0.5, ..sampling(0.9, seed) },
        logprobs: Some(2),
        ..request(bytes("a sampled answer"), 40)
    };
    let mut requests: Vec<Request> = (0..6).map(sampled).collect();
    requests.push(request([BREAKS_LOGITS, 1], 40));
    // Repeats itself, so that guesses are verified.
    requests.push(Request { ignore_end: true, ..request(bytes("abcabcabc"), 200) });
    let sent: Vec<Sent> = requests.into_iter().map(|r| bench.send(r, Client::Reads).unwrap()).collect();
    let score = bench.score("b", bytes("a text to score"));
    bench.run();
    let scored = score.lock().unwrap().take().unwrap().unwrap();
    (sent.iter().map(|sent| std::mem::take(&mut sent.inbox().events)).collect(), scored.logprobs)
}

/// The tokens of an answer, without what differs between runs of one batch: times.
fn tokens(events: &VecDeque<Event>) -> Vec<&Token> {
    events.iter().filter_map(|event| if let Event::Token(token) = event { Some(token) } else { None }).collect()
}

#[test]
fn answers_do_not_depend_on_the_number_of_threads_that_read_logits() {
    let (alone, score) = batch(Readers::new(1, 0));
    for threads in [2, 5] {
        let (events, scored) = batch(Readers::new(threads, 0));
        assert_eq!(scored, score);
        for (got, want) in events.iter().zip(&alone) {
            assert_eq!(tokens(got), tokens(want));
            assert_eq!(matches!(got.back(), Some(Event::Failed(_))), matches!(want.back(), Some(Event::Failed(_))));
        }
    }
    assert_eq!(alone.iter().filter(|events| matches!(events.back(), Some(Event::Failed(_)))).count(), 1);
    assert!(alone.iter().filter(|events| tokens(events).len() > 20).count() > 3, "most answers are long");
}

#[test]
fn threads_share_the_rows_of_one_step_and_keep_their_order() {
    let request = Request { sampling: sampling(0.9, 1), ..request(bytes("abc"), 4) };
    let sink = Box::new(Wire { client: Client::Reads, inbox: Arc::default() });
    let run = Run::answer(request, sink, Arc::from("a"), Arc::default(), Instant::now());
    let logits: Vec<Vec<f32>> = (0..64).map(|first| logits_of(&[first])).collect();
    let part = |index: usize| Unread {
        index,
        reader: run.reader(0),
        guesses: &[],
        output: SpanOutput::Logits(&logits[index]),
    };
    let parts: Vec<Unread<'_>> = (0..64).map(part).collect();
    let chosen = |gathered: Vec<Gathered>| -> Vec<(usize, u32)> {
        let token = |fruit: LogitResult| match fruit {
            LogitResult::Choices(choices) => choices.first().map(|choice: &SampledToken| choice.token).unwrap(),
            _ => panic!("an answer chooses"),
        };
        gathered.into_iter().map(|part| (part.index, token(part.fruit.unwrap()))).collect()
    };
    let asked = std::cell::Cell::new(0);
    let clock = || {
        asked.set(asked.get() + 1);
        Instant::now()
    };
    let alone = chosen(Readers::new(3, 64 * VOCAB + 1).read(&parts, VOCAB, &clock).0);
    assert_eq!(asked.get(), 128, "too few logits for more than the scheduler's own thread and clock");
    let shared = chosen(Readers::new(3, 64 * VOCAB).read(&parts, VOCAB, &clock).0);
    assert_eq!(asked.get(), 128, "several threads have a clock of their own");
    assert_eq!(shared, alone);
    assert!(alone.iter().map(|(_, token)| token).collect::<std::collections::HashSet<_>>().len() > 20);
}

#[test]
fn tokens_that_an_executor_draws_are_those_that_are_chosen_from_logits() {
    let answers = |draws: bool| {
        let mut bench = Bench::new(EngineOptions { max_running: 2, ..options() });
        let watch = bench.load("m", Script { draws, ..Script::default() });
        let filtered = Sampling { top_k: 5, top_p: 0.9, min_p: 0.01, ..sampling(0.8, 3) };
        let penalised = Sampling { repetition_penalty: 1.2, presence_penalty: 0.5, ..sampling(0.9, 4) };
        let biased = Sampling { logit_bias: vec![(5, 1.0)], frequency_penalty: 0.3, ..sampling(0.9, 5) };
        let plain = [sampling(0.0, 0), sampling(0.9, 1), filtered, penalised, biased].map(|sampling| (sampling, None));
        let more = [(sampling(0.9, 6), Some(1))];
        let mut send = |(sampling, logprobs)| {
            let request = Request { sampling, logprobs, ignore_end: true, ..request(bytes("abc"), 30) };
            bench.send(request, Client::Reads).unwrap()
        };
        let (plain, more) = (plain.map(&mut send), more.map(&mut send));
        bench.run();
        let texts = plain.iter().chain(&more).map(|sent| sent.inbox().tokens()).collect::<Vec<_>>();
        let drawn = watch.lock().unwrap().drawn;
        (texts, drawn)
    };
    let ((chosen, none), (drawn, count)) = (answers(false), answers(true));
    assert_eq!(drawn, chosen);
    assert_eq!(none, 0);
    assert!((50..150).contains(&count), "{count} of the 150 tokens without log-probabilities, but for every third one");
}
