//! Answers that are JSON of a schema.

use serde_json::{Value, json};

use super::*;
use crate::guide::{Guide, GuideError};

fn guide(bench: &Bench, schema: &Value) -> Guide {
    bench.door.model("m").unwrap().guides.compile(schema).unwrap()
}

fn people() -> Value {
    json!({
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": false,
    })
}

fn is_person(text: &str) -> bool {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{text}: {error}"));
    value["name"].as_str().is_some_and(|name| name.chars().count() <= 6)
        && value["age"].as_u64().is_some_and(|age| age < 100)
        && value.as_object().unwrap().len() == 2
}

#[test]
fn guided_answers_are_json_and_the_same_alone_and_in_a_crowd() {
    let make = |bench: &Bench, n: u32| Request {
        guide: Some(guide(bench, &people())),
        sampling: sampling(if n.is_multiple_of(3) { 0.0 } else { 1.3 }, u64::from(n)),
        tenant: format!("t{}", n % 3),
        ignore_end: n.is_multiple_of(2),
        ..request([n, 1, 2], 400)
    };
    let texts = |together: bool| -> Vec<(String, Option<Finish>)> {
        let mut bench = Bench::new(options());
        // Room for three: most wait, and some are preempted.
        bench.load("m", Script { capacity: 1_300, ..Script::default() });
        let mut sent = Vec::new();
        for n in 0..12 {
            let request = make(&bench, n);
            sent.push(bench.send(request, if n == 4 { Client::Slow(9) } else { Client::Reads }).unwrap());
            if !together {
                bench.run();
            }
        }
        bench.run();
        sent.iter()
            .map(|sent| {
                let inbox = sent.inbox();
                (inbox.text(), inbox.finish())
            })
            .collect()
    };
    let crowd = texts(true);
    assert_eq!(crowd, texts(false));
    for (text, finish) in &crowd {
        assert_eq!(*finish, Some(Finish::Stop), "{text}");
        assert!(is_person(text), "{text}");
    }
    assert!(crowd.iter().any(|(text, _)| text != &crowd[0].0), "seeds and prompts matter");
}

#[test]
fn guided_answers_that_are_cut_do_not_say_that_they_are_complete() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let whole = Request { guide: Some(guide(&bench, &json!({"const": {"a": 1}}))), ..request(bytes("abc"), 300) };
    let cut = [
        Request { max_tokens: 4, ..whole.clone() },
        Request { stop: vec!["a".to_owned()], ..whole.clone() },
        // Complete at this very token, but the text is not.
        Request { stop: vec!["}".to_owned()], ..whole.clone() },
    ];
    let sent = bench.send(whole.clone(), Client::Reads).unwrap();
    let unmet = bench.send(Request { stop: vec!["zz".to_owned(), "}}".to_owned()], ..whole }, Client::Reads).unwrap();
    let cut: Vec<Sent> = cut.into_iter().map(|request| bench.send(request, Client::Reads).unwrap()).collect();
    bench.run();
    for sent in [sent, unmet] {
        let inbox = sent.inbox();
        let value: Value = serde_json::from_str(&inbox.text()).unwrap();
        assert_eq!((value, inbox.finish()), (json!({"a": 1}), Some(Finish::Stop)));
    }
    for sent in cut {
        let inbox = sent.inbox();
        assert_eq!(inbox.finish(), Some(Finish::Length));
        assert!(serde_json::from_str::<Value>(&inbox.text()).is_err());
    }
}

#[test]
fn biases_choose_among_what_a_guide_allows() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let of = |bench: &Bench, logit_bias: Vec<(u32, f32)>| Request {
        guide: Some(guide(bench, &json!({"enum": ["x", "y"]}))),
        sampling: Sampling { logit_bias, temperature: 2.0, ..sampling(0.0, 3) },
        ..request(bytes("abc"), 30)
    };
    for (bias, wanted) in [
        (vec![(u32::from(b'x'), 100.0)], "\"x\""),
        (vec![(u32::from(b'x'), -100.0), (u32::from(b'z'), 100.0), (END, 100.0)], "\"y\""),
    ] {
        let request = of(&bench, bias);
        let sent = bench.send(request, Client::Reads).unwrap();
        bench.run();
        assert_eq!(sent.inbox().text(), wanted);
    }
}

#[test]
fn a_guide_that_cannot_go_on_fails_its_request_alone() {
    let mut bench = Bench::new(options());
    bench.load("m", Script::default());
    let hard = guide(&bench, &json!({"type": "string", "pattern": "(.{0,1000}){0,1000}"}));
    let hard = Request { guide: Some(hard), sampling: sampling(1.0, 1), ..request(bytes("abc"), 1_000) };
    let easy = Request { guide: Some(guide(&bench, &people())), ..request(bytes("abd"), 400) };
    let hard = bench.send(hard, Client::Reads).unwrap();
    let easy = bench.send(easy, Client::Reads).unwrap();
    bench.run();
    let failure = hard.inbox().failure();
    assert!(matches!(failure, Some(Failure::Guide(GuideError::TooComplex(_)))), "{failure:?}");
    assert!(is_person(&easy.inbox().text()));
    assert_eq!(bench.door.stats(bench.now()).running, 0);
}

#[test]
fn tenant_is_charged_for_the_time_of_its_masks() {
    let mut bench = Bench::new(options());
    // Each look at this clock takes 5 ms: so do a choice of a token, in addition to what is not charged, and a mask.
    let time = Arc::clone(&bench.time);
    let clock: Box<dyn Fn() -> Instant> = Box::new(move || {
        let mut time = time.lock().unwrap();
        *time += Duration::from_millis(5);
        *time
    });
    bench.scheduler = Scheduler::new(options(), Arc::clone(&bench.door), clock);
    bench.load("m", Script::default());
    let long = guide(&bench, &json!({"type": "string", "minLength": 300, "maxLength": 400}));
    let plain = Request { tenant: "plain".to_owned(), ignore_end: true, ..request(bytes("abc"), 300) };
    let guided = Request { tenant: "guided".to_owned(), guide: Some(long), ..plain.clone() };
    let plain = bench.send(plain, Client::Reads).unwrap();
    let guided = bench.send(guided, Client::Reads).unwrap();
    for _ in 0..60 {
        bench.scheduler.turn();
    }
    let tokens = [plain.inbox().tokens().len(), guided.inbox().tokens().len()];
    assert!(tokens[0] > 50 && tokens[0] == tokens[1], "one mask in a step delays nobody: {tokens:?}");
    let served = |tenant: &str| bench.scheduler.books.tenants.served(&Arc::from(tenant));
    assert!(served("guided") > 1.25 * served("plain"), "{} and {}", served("guided"), served("plain"));
    let busy = bench.door.stats(bench.now()).models[0].busy_ms;
    assert!(busy > 60.0 * 11.0, "the model's time has the masks: {busy} ms");
}
