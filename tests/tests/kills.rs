//! Killed anywhere, stopped anywhere, twice at once: the next `up` or `down` puts everything right.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use std::io::{BufRead, BufReader, Read};
use std::process::Child;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use textnlp_tests::bucket::Bucket;
use textnlp_tests::{Dice, Said, Sandbox, eventually, http, promptly, said, seeds, signal};

const UP: [&str; 5] = ["up", "--env", "development", "--yes", "--no-gate"];
const DOWN: [&str; 4] = ["down", "--env", "development", "--yes"];
const PROCESSES: usize = 3;

/// The size of the site's journal, seen from outside.
fn journal(sandbox: &Sandbox) -> u64 {
    std::fs::metadata(sandbox.state("development").join("journal/here/log")).map_or(0, |m| m.len())
}

/// Runs a command and kills it as soon as `now` says so; what it said, and whether it was still running.
fn killed(sandbox: &Sandbox, args: &[&str], mut now: impl FnMut() -> bool) -> (Said, bool) {
    let mut child = sandbox.start(args);
    let alive = loop {
        if child.try_wait().expect("look at the program").is_some() {
            break false;
        }
        if now() {
            break true;
        }
        std::thread::park_timeout(Duration::from_micros(300));
    };
    let _ = child.kill();
    (said(child.wait_with_output().expect("wait for the program")), alive)
}

/// Up without anybody's hand on it: everything is there, once, and answers.
#[track_caller]
fn up_is_right(sandbox: &Sandbox, story: &str) {
    let up = sandbox.run(&UP);
    assert_eq!(up.exit, 0, "{story}: {}\n{}", up.out, up.err);
    let status = sandbox.run(&["status", "--env", "development", "-o", "json"]);
    assert_eq!(status.exit, 0, "{story}: {}", status.out);
    let status = status.json();
    assert!(
        status["ready"] == true && status["drift"] == json!([]) && status["open"] == json!([]),
        "{story}: {status:#}"
    );
    let plan = sandbox.run(&["plan", "--env", "development", "--exit-code"]);
    assert_eq!(plan.exit, 0, "{story}: {}", plan.out);
    let running = sandbox.processes();
    assert_eq!(running.len(), PROCESSES, "{story}: {running:?}");
    let answer = http::post(sandbox.port, "/v1/generate", &json!({ "prompt": "Once", "max_tokens": 2 }));
    assert_eq!(answer.expect(story).status, 200, "{story}");
}

/// Down without anybody's hand on it: nothing runs, and no file but the state's own is left.
#[track_caller]
fn down_is_right(sandbox: &Sandbox, story: &str) {
    let down = sandbox.run(&[&DOWN[..], &["--delete-data", "development"]].concat());
    assert_eq!(down.exit, 0, "{story}: {}\n{}", down.out, down.err);
    assert!(sandbox.processes().is_empty(), "{story}: {:?}", sandbox.processes());
    let state = sandbox.state("development");
    let left = sandbox.files(&state.join("sites"));
    assert!(left.is_empty(), "{story}: down left {left:?}");
    let secrets: Vec<_> = sandbox.files(&state.join("secrets")).into_iter().filter(|f| f != ".lock").collect();
    assert!(secrets.is_empty(), "{story}: down left {secrets:?}");
    let known = [
        "audit/",
        "journal/",
        "reports/",
        "evidence/",
        "lease.json",
        "lineage.json",
        "store.json",
        "lock",
        "development.lock",
        "environment/",
        ".origin",
        ".programs.json",
        "secrets/.lock",
    ];
    let other: Vec<_> = sandbox.files(&state).into_iter().filter(|f| !known.iter().any(|k| f.starts_with(k))).collect();
    assert!(other.is_empty(), "{story}: down left {other:?}");
    let status = sandbox.run(&["status", "--env", "development", "-o", "json"]).expect(0).json();
    assert!(status["resources"] == json!([]) && status["open"] == json!([]), "{story}: {status:#}");
}

/// No run could need more: every run gets at least one record further.
const MOST: usize = 300;

fn records(sandbox: &Sandbox) -> usize {
    let log = std::fs::read(sandbox.state("development").join("journal/here/log")).unwrap_or_default();
    log.iter().filter(|b| **b == b'\n').count()
}

/// Every run is killed one to four records after it began: the first is the approval alone, the later ones are begins and ends.
fn killed_at_every_growth(sandbox: &Sandbox, args: &[&str]) -> usize {
    for kills in 0..MOST {
        let enough = records(sandbox) + 1 + kills % 4;
        let (said, alive) = killed(sandbox, args, || records(sandbox) >= enough);
        if !alive && said.exit == 0 {
            return kills;
        }
        assert!(alive, "after {kills} kills it failed by itself: {}\n{}", said.out, said.err);
    }
    panic!("{args:?} does not arrive when it is killed at every growth of the journal");
}

/// Fewer kills of either command than this are too few for a story.
const KILLS: usize = 11;

/// On a busy machine a command gets further before it is killed, so more than one life may be needed for kills enough.
#[test]
fn up_and_down_killed_at_every_journal_write_still_complete() {
    let sandbox = Sandbox::new("growth");
    let (mut up, mut down) = (0, 0);
    for _ in 0..4 {
        up += killed_at_every_growth(&sandbox, &UP);
        up_is_right(&sandbox, "after the last kill of up");
        down += killed_at_every_growth(&sandbox, &DOWN);
        down_is_right(&sandbox, "after the last kill of down");
        if up >= KILLS && down >= KILLS {
            return;
        }
    }
    panic!("four lives with {up} kills of up and {down} of down");
}

/// A random record, or a random moment within so many milliseconds.
fn moment(sandbox: &Sandbox, dice: &mut Dice, most: u64) -> impl FnMut() -> bool {
    let record = usize::try_from(dice.below(40)).expect("a small number") + records(sandbox);
    let at = Instant::now() + Duration::from_millis(dice.below(most));
    let by_record = dice.below(2) == 0;
    move || if by_record { records(sandbox) > record } else { Instant::now() > at }
}

/// One life: an `up` killed at a random record or moment, mended by `up` or swept by `down`, a `down` killed likewise.
fn a_life_with_kills(sandbox: &Sandbox, dice: &mut Dice, story: &str) {
    let now = moment(sandbox, dice, 1500);
    killed(sandbox, &UP, now);
    if dice.below(3) > 0 {
        up_is_right(sandbox, story);
    }
    let now = moment(sandbox, dice, 800);
    killed(sandbox, &DOWN, now);
    if dice.below(2) == 0 {
        up_is_right(sandbox, story);
    }
    down_is_right(sandbox, story);
}

/// Seeds of lives that found a defect once; what fails prints its own.
const SEEDS: &[u64] = &[];

#[test]
fn run_killed_at_a_random_time_is_recovered_by_the_next() {
    let sandbox = Sandbox::new("random");
    for seed in seeds::kept_and_first(SEEDS) {
        let mut dice = Dice(seed);
        for life in 0..8 {
            a_life_with_kills(&sandbox, &mut dice, &format!("TEXTNLP_TESTS_SEED={seed}, life {life}"));
        }
    }
}

/// How long is waited between two looks at a bucket: they would slow down what they look at.
const LOOK: Duration = Duration::from_millis(15);

/// A command whose state lies in a bucket, killed when its journal has grown by 1 to `most` batches, or at a random moment within so many
/// milliseconds. Says whether it was still at work.
fn killed_in_bucket(
    sandbox: &Sandbox,
    bucket: &Bucket,
    args: &[&str],
    dice: &mut Dice,
    most: u64,
    within: u64,
) -> bool {
    let written = || bucket.count("development", "journal/here/batches");
    let enough = written() + usize::try_from(1 + dice.below(most)).expect("a small number");
    // The growth and a little more: within a call, between two writes.
    let (by_growth, late) = (dice.below(4) > 0, Duration::from_millis(dice.below(120)));
    let at = Instant::now() + Duration::from_millis(dice.below(within));
    let now = || {
        std::thread::park_timeout(LOOK);
        let over = if by_growth { written() >= enough } else { Instant::now() > at };
        if over {
            std::thread::park_timeout(late);
        }
        over
    };
    let (said, alive) = killed(sandbox, args, now);
    assert!(alive || said.exit == 0, "it failed by itself: {}\n{}", said.out, said.err);
    alive
}

/// One life in a bucket: `up` and `down` killed twice each, and each of them once more until it ends. How often it was killed at work.
fn a_life_in_a_bucket(seed: u64, life: u64) -> usize {
    let Some(bucket) = Bucket::start() else { return 4 };
    let story = format!("TEXTNLP_TESTS_SEED={seed}, life {life} in a bucket");
    let mut dice = Dice(seed ^ life.wrapping_mul(0x9e37_79b9));
    let mut sandbox = Sandbox::new("bucket");
    sandbox.variables.extend(bucket.variables());
    let mut kills = 0;
    // Whoever comes after a killed one waits first, and may be killed while it waits.
    for (most, within) in [(5, 1_500), (3, 25_000)] {
        kills += usize::from(killed_in_bucket(&sandbox, &bucket, &UP, &mut dice, most, within));
    }
    up_is_right(&sandbox, &story);
    for (most, within) in [(3, 800), (2, 25_000)] {
        kills += usize::from(killed_in_bucket(&sandbox, &bucket, &DOWN, &mut dice, most, within));
    }
    down_is_right(&sandbox, &story);
    let state = sandbox.state("development");
    assert!(
        !state.join("journal").exists() && !state.join("lineage.json").exists(),
        "{story}: a second state lies here"
    );
    eprintln!("{story}: killed {kills} times");
    kills
}

/// Each kill costs the next run up to 15 s of waiting for the lease, and 10 s more before it touches what was left open: so the lives
/// go on beside each other.
#[test]
fn run_killed_with_state_in_a_bucket_is_recovered_after_the_lease() {
    for seed in seeds::kept_and_first(SEEDS) {
        let lives: Vec<_> = (0..3).map(|life| std::thread::spawn(move || a_life_in_a_bucket(seed, life))).collect();
        let kills: usize = lives.into_iter().map(|life| life.join().expect("a life ends well")).sum();
        assert!(kills >= 6, "TEXTNLP_TESTS_SEED={seed}: {kills} kills are too few for a story");
    }
}

#[test]
fn up_killed_with_all_its_processes_is_recovered() {
    let sandbox = Sandbox::new("power");
    let lives = seeds::kept_and_first(SEEDS).flat_map(|seed| {
        let mut dice = Dice(seed);
        (0..2).map(move |life| (seed, life, dice.below(7_000)))
    });
    for (seed, life, growth) in lives {
        let story = format!("TEXTNLP_TESTS_SEED={seed}, life {life}");
        let growth = journal(&sandbox) + 500 + growth;
        killed(&sandbox, &UP, || journal(&sandbox) > growth);
        // As if the power had failed: the supervisor and its children are gone too.
        eventually("nothing runs", || {
            let running = sandbox.processes_now();
            running.iter().for_each(|(pid, _)| sandbox.kill(*pid));
            running.is_empty().then_some(())
        });
        up_is_right(&sandbox, &story);
        down_is_right(&sandbox, &story);
    }
}

/// A command that stands still in the middle of its work, until it is sent a signal and CONT. On a busy machine it may be over before
/// anybody looks: then `undo` runs, and it is tried once more.
fn stopped_at_work(sandbox: &Sandbox, args: &[&str], undo: &dyn Fn()) -> Child {
    for attempt in 0..5 {
        if attempt > 0 {
            undo();
        }
        let before = journal(sandbox);
        let mut child = sandbox.start(args);
        promptly("it is at work", || {
            let has_begun = journal(sandbox) > before + 400;
            let is_over = child.try_wait().expect("look").is_some();
            (has_begun || is_over).then_some(())
        });
        signal(child.id(), Signal::STOP);
        let log = std::fs::read_to_string(sandbox.state("development").join("journal/here/log")).unwrap_or_default();
        let is_complete = log.lines().last().is_some_and(|line| line.contains("\"entry\":\"completed\""));
        if !is_complete && child.try_wait().expect("look").is_none() {
            return child;
        }
        signal(child.id(), Signal::CONT);
        said(child.wait_with_output().expect("wait")).expect(0);
    }
    panic!("{args:?} was over each time before it could be disturbed");
}

#[test]
fn signal_stops_up_and_down_and_rerunning_resumes() {
    let sandbox = Sandbox::new("signal");
    // Under `nohup` these tests and what they start ignore the end of a terminal.
    let status = std::fs::read_to_string("/proc/self/status").expect("read what is ignored");
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).expect("a mask").trim();
    let hears = u64::from_str_radix(ignored, 16).expect("a mask") & 1 == 0;
    let signals = [(Signal::INT, "SIGINT"), (Signal::TERM, "SIGTERM"), (Signal::HUP, "SIGHUP")];
    for (name, word) in signals.into_iter().filter(|(name, _)| hears || *name != Signal::HUP) {
        for (args, story) in [(&UP[..], "up"), (&DOWN[..], "down")] {
            let undo = || if story == "down" { up_is_right(&sandbox, word) } else { down_is_right(&sandbox, word) };
            if story == "down" {
                up_is_right(&sandbox, word);
            }
            let child = stopped_at_work(&sandbox, &[args, &["-o", "json"]].concat(), &undo);
            signal(child.id(), name);
            signal(child.id(), Signal::CONT);
            let stopped = said(child.wait_with_output().expect("wait"));
            let document = stopped.expect(5).json();
            assert_eq!(document["error"]["code"], "stopped", "{word} {story}: {document:#}");
            assert_eq!(document["error"]["hint"], format!("textnlp-deploy {story} --env development"));
            assert!(document["outcome"]["stopped"] == true, "{document:#}");
            // Half a deployment is not ready, by any command.
            let status = sandbox.run(&["status", "--env", "development", "-o", "json"]).expect(1).json();
            assert!(status["ready"] == false && status["unfinished"][0]["purpose"] == story, "{status:#}");
            for look in ["status", "drift", "doctor", "health"] {
                let said = sandbox.run(&[look, "--env", "development"]).expect(1);
                let text = said.out + &said.err;
                assert!(look == "health" || text.contains("did not complete"), "{look}: {text}");
            }
        }
        down_is_right(&sandbox, word);
    }
}

#[test]
fn second_signal_stops_immediately_and_safely() {
    let sandbox = Sandbox::new("twice");
    let child = stopped_at_work(&sandbox, &UP, &|| down_is_right(&sandbox, "twice"));
    signal(child.id(), Signal::INT);
    signal(child.id(), Signal::CONT);
    signal(child.id(), Signal::TERM);
    said(child.wait_with_output().expect("wait")).expect(5);
    up_is_right(&sandbox, "after two signals");
    down_is_right(&sandbox, "after two signals");
}

#[test]
fn signal_during_the_gate_is_handled_once() {
    let sandbox = Sandbox::new("once");
    let long = ["--set", "gates.users=2", "--set", "gates.hold=10m"];
    let mut child = sandbox.start(&[&["up", "--env", "staging", "--yes"][..], &long].concat());
    let mut err = BufReader::new(child.stderr.take().expect("its errors"));
    let mut said = String::new();
    while !said.contains("Measuring the staging gate") {
        assert!(err.read_line(&mut said).expect("read") > 0, "it ended before it measured: {said}");
    }
    signal(child.id(), Signal::INT);
    err.read_to_string(&mut said).expect("read");
    assert_eq!(child.wait().expect("wait").code(), Some(5), "{said}");
    assert_eq!(said.matches("stopping:").count(), 1, "{said}");
}

#[test]
fn signal_ends_a_command_that_runs_no_step_without_a_word_about_steps() {
    let sandbox = Sandbox::new("follows");
    sandbox.up("development");
    let log = sandbox.site("development").join("log/stray.log");
    std::fs::write(&log, "one\n").unwrap();
    let mut child = sandbox.start(&["logs", "stray", "--follow", "--env", "development"]);
    let mut out = BufReader::new(child.stdout.take().expect("its output"));
    let mut line = String::new();
    assert!(out.read_line(&mut line).expect("read") > 0);
    // Once it has printed a new line, it handles signals.
    std::fs::write(&log, "one\ntwo\n").unwrap();
    while !line.contains("two") {
        assert!(out.read_line(&mut line).expect("read") > 0, "{line}");
    }
    signal(child.id(), Signal::INT);
    let stopped = said(child.wait_with_output().expect("wait")).expect(0);
    // On a busy machine it may report that it stops.
    assert!(!stopped.err.contains("steps"), "{}", stopped.err);
    sandbox.run(&DOWN).expect(0);
}

#[test]
fn concurrent_runs_are_refused() {
    let sandbox = Sandbox::new("both");
    // It is at work for as long as this takes.
    let first = stopped_at_work(&sandbox, &UP, &|| down_is_right(&sandbox, "both"));
    let holder = first.id();
    let refused: Vec<_> =
        [&UP[..], &DOWN[..]].iter().map(|args| sandbox.run(&[*args, &["-o", "json"]].concat())).collect();
    let text = sandbox.run(&UP);
    let looked = sandbox.run(&["status", "--env", "development", "-o", "json"]);
    signal(holder, Signal::CONT);
    let first = said(first.wait_with_output().expect("wait"));
    for said in refused {
        let document: Value = said.expect(4).json();
        assert_eq!(document["error"]["code"], "locked", "{document:#}");
        let message = document["error"].to_string();
        assert!(message.contains(&holder.to_string()), "it names who holds it: {message}");
    }
    let text = text.expect(4);
    assert!(text.err.contains("error: ") && text.err.contains("hint: "), "{}", text.err);
    assert!(looked.exit == 0 || looked.exit == 1, "looking needs no lock: {looked:?}");
    assert!(looked.json()["resources"].is_array());
    let first = first.expect(0);
    assert!(first.out.contains("development is up"), "{}", first.out);
    up_is_right(&sandbox, "after two at once");
}
