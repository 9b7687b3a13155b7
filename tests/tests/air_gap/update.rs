//! Steps from one content to the next and back, while clients ask.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use textnlp_tests::{Said, said};

use crate::stage::{Goods, NAME, Stage, names};

/// Whether a gateway that becomes another program takes its connections over without refusing one.
const GATEWAY_HANDS_OVER: bool = true;

fn asked_for(stage: &Stage, tokens: u64) -> u16 {
    let body = json!({ "prompt": "Once", "max_tokens": tokens, "stop": ["."] }).to_string();
    let key = stage.key(NAME);
    let answer =
        textnlp_tests::http::ask(stage.sandbox.port, "POST", "/v1/generate", &[("X-API-Key", &key)], body.as_bytes());
    answer.unwrap().status
}

/// The setting of the second and third bundle is in force.
fn bounded(stage: &Stage) -> bool {
    asked_for(stage, 778) == 400
}

/// Clients ask all the while that something happens; what they were told that is no answer.
fn asking<T>(stage: &Stage, happens: impl FnOnce() -> T) -> (T, usize, Vec<String>) {
    let (key, over, asked, wrong) =
        (stage.key(NAME), AtomicBool::new(false), AtomicUsize::new(0), Mutex::new(Vec::new()));
    let result = std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    // Two clients ask 20 times a second in all.
                    std::thread::sleep(Duration::from_millis(100));
                    let said = match stage.ask(&key) {
                        Ok(answer) if answer.status == 200 => None,
                        Ok(answer) => Some(format!("{} {}", answer.status, answer.text())),
                        Err(error) => Some(error.to_string()),
                    };
                    asked.fetch_add(1, Ordering::Relaxed);
                    wrong.lock().unwrap().extend(said);
                }
            });
        }
        // What happens may fail the story: clients go home first.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(happens));
        over.store(true, Ordering::Relaxed);
        result
    });
    let result = result.unwrap_or_else(|why| std::panic::resume_unwind(why));
    (result, asked.into_inner(), wrong.into_inner().unwrap())
}

#[test]
fn update_and_rollback_fail_no_request() {
    let goods = Goods::get();
    let stage = Stage::new("steps");
    let trust = ["--trust", goods.public.as_str()];
    let (one, two) =
        (goods.step(&stage, &goods.first, &goods.second, &[]), goods.step(&stage, &goods.second, &goods.third, &[]));
    stage.install(&goods.first, &[&trust[..], &["--set", "scaling.min=2"]].concat()).expect(0);
    let first = stage.digest();
    assert!(!bounded(&stage));

    // Another model and another setting: both replicas are replaced, one after the other.
    let (updated, asked, wrong) =
        asking(&stage, || stage.update(&[&one], &[&trust[..], &["--output", "json"]].concat()));
    let updated = updated.expect(0).json();
    assert!(asked > 0 && wrong.is_empty(), "{} of {asked}: {:?}", wrong.len(), wrong.first());
    names(&updated.to_string(), &["lineage", "gate"]);
    assert!(updated["before"].as_str() == first.as_deref() && updated["digest"].as_str() == stage.digest().as_deref());
    assert_eq!(updated["digest"], stage.json(0, &["bundle", "inspect", &goods.second])["digest"]);
    stage.is_well();
    assert!(bounded(&stage), "the new setting is in force");

    // Another program: replicas and gateway are replaced.
    let (updated, asked, wrong) = asking(&stage, || stage.update(&[&two], &trust));
    updated.expect(0);
    eprintln!("while the program was replaced: {} of {asked} requests had no answer: {:?}", wrong.len(), wrong.first());
    assert!(!GATEWAY_HANDS_OVER || wrong.is_empty(), "{} of {asked}: {:?}", wrong.len(), wrong.first());
    assert_eq!(stage.digest().as_deref(), stage.json(0, &["bundle", "inspect", &goods.third])["digest"].as_str());
    stage.is_well();

    // The same steps again change nothing.
    let before = stage.sandbox.processes();
    let again = stage.update(&[&two], &[&trust[..], &["--output", "json"]].concat()).expect(0).json();
    assert_eq!((&again["applied"][0]["unchanged"], &again["digest"]), (&json!(true), &again["before"]));
    assert_eq!(stage.sandbox.processes(), before);

    // Back to the program before, then forward, then back: each is one command.
    let root = stage.root().as_str();
    let rollback = || stage.run(&["bundle", "update", "rollback", "--root", root, "--yes"]);
    for bundle in [&goods.second, &goods.third, &goods.second] {
        rollback().expect(0);
        assert_eq!(stage.digest().as_deref(), stage.json(0, &["bundle", "inspect", bundle])["digest"].as_str());
        stage.is_well();
    }
    // Further back with the whole bundle: only with the flag, and no request fails.
    let refused = stage.install(&goods.first, &trust).expect(4);
    names(&refused.err, &["version 3.0.0", "version 1.0.0", "--downgrade"]);
    let (installed, asked, wrong) =
        asking(&stage, || stage.install(&goods.first, &[&trust[..], &["--downgrade"]].concat()));
    installed.expect(0);
    assert!(asked > 0 && wrong.is_empty(), "{} of {asked}: {:?}", wrong.len(), wrong.first());
    assert_eq!(stage.digest(), first);
    assert!(!bounded(&stage));
    stage.is_well();
    stage.down();
}

#[test]
fn refused_update_and_rollback_leave_the_content() {
    let goods = Goods::get();
    let stage = Stage::new("held");
    let trust = ["--trust", goods.public.as_str()];
    let step = goods.step(&stage, &goods.first, &goods.second, &[]);
    stage.install(&goods.first, &trust).expect(0);
    let (first, first_content) = (stage.digest(), stage.current());
    let hold = |more: &[&str]| stage.there(&[&["hold", "--env", NAME][..], more].concat()).expect(0);
    hold(&["--reason", "exams"]);
    names(&stage.update(&[&step], &trust).expect(4).err, &["exams", "hold --release"]);
    let refused = stage.install(&goods.second, &[&trust[..], &["--output", "json"]].concat()).expect(4).json();
    assert_eq!(stage.digest(), first);
    // The command of the hint is complete, wherever it is typed.
    let (_, release) = refused["error"]["hint"].as_str().unwrap().split_once("again: ").unwrap();
    said(stage.other("sh", &["-c", release]).output().unwrap()).expect(0);
    stage.update(&[&step], &trust).expect(0);
    let second = stage.digest();
    let rollback = |more: &[&str]| {
        stage.run(&[&["bundle", "update", "rollback", "--root", stage.root().as_str()][..], more].concat())
    };
    // There is no terminal.
    names(&rollback(&[]).expect(4).err, &["approve it with --yes"]);
    hold(&["--reason", "exams"]);
    for _ in 0..2 {
        names(&rollback(&["--yes"]).expect(4).err, &["exams", "hold --release"]);
        assert_eq!(stage.digest(), second);
    }
    hold(&["--release"]);
    // A rollback that was killed before or after the content was switched: the same command finishes it.
    let record = stage.root().join("rollback.json");
    let unfinished = json!({ "format": 1, "target": first_content }).to_string();
    for (is_unfinished, says, expected) in
        [(true, "is rolled back", &first), (true, "is finished", &first), (false, "is rolled back", &second)]
    {
        if is_unfinished {
            std::fs::write(&record, &unfinished).unwrap();
        }
        names(&rollback(&["--yes"]).expect(0).out, &[says]);
        assert_eq!(stage.digest(), *expected);
        assert!(!record.exists());
        stage.is_well();
    }
    stage.down();
}

#[test]
fn model_update_delivers_and_uses_one_model() {
    let goods = Goods::get();
    let stage = Stage::new("model");
    let trust = ["--trust", goods.public.as_str()];
    let model = goods.step(&stage, &goods.first, &goods.second, &["model/textnlp-tiny"]);
    assert!(std::fs::metadata(&model).unwrap().len() < 1_200_000, "a few weights are not the whole model");
    stage.install(&goods.first, &trust).expect(0);
    let used = || {
        let status = stage.there(&["release", "show", "--env", NAME, "-o", "json"]).expect(0).json();
        status["release"]["models"].clone()
    };
    let before = used();
    let updated = stage.update(&[&model], &[&trust[..], &["--output", "json"]].concat()).expect(0).json();
    assert!(updated["plan"]["update"].as_i64().unwrap() > 0, "the service takes the new model: {updated:#}");
    assert!(!before.is_null() && used() != before, "{before:#}");
    assert!(!bounded(&stage), "nothing else came with it");
    stage.is_well();
    let back = stage.run(&["bundle", "update", "rollback", "--root", stage.root().as_str(), "--yes"]);
    back.expect(0);
    assert_eq!(used(), before);
    stage.is_well();
    stage.down();
}

#[test]
fn independent_updates_give_the_same_content_in_any_order() {
    let goods = Goods::get();
    let mut stage = Stage::new("order");
    let parts = ["program/textnlp-deploy", "model/textnlp-tiny", "environment/island"];
    let steps: Vec<_> = parts.iter().map(|part| goods.step(&stage, &goods.first, &goods.third, &[part])).collect();
    let mut digests = std::collections::BTreeSet::new();
    for (n, order) in [[0, 1, 2], [2, 1, 0], [1, 2, 0], [0, 2, 1]].into_iter().enumerate() {
        stage.at_root(&format!("root-{n}"));
        stage.install(&goods.first, &["--no-up"]).expect(0);
        let ordered: Vec<_> = order.iter().map(|step| steps[*step].as_str()).collect();
        stage.update(&ordered, &["--no-up", "--trust", &goods.public]).expect(0);
        digests.insert(stage.digest());
    }
    assert_eq!(digests.len(), 1, "{digests:?}");
    let unknown = stage.run(&[
        "bundle",
        "update",
        "create",
        "--from",
        &goods.first,
        "--to",
        &goods.third,
        "--out",
        "x.tar",
        "--only",
        "model/huge",
    ]);
    names(&unknown.expect(2).err, &["model/huge", "model/textnlp-tiny", "environment/island"]);
}

#[test]
fn update_for_another_base_is_refused_and_changes_nothing() {
    let goods = Goods::get();
    let mut stage = Stage::new("misfit");
    let trust = ["--trust", goods.public.as_str(), "--output", "json"];
    let step = goods.step(&stage, &goods.second, &goods.third, &[]);
    let refused = |said: Said, exit: i32, code: &str, words: &[&str]| -> Value {
        let document = said.expect(exit).json();
        assert_eq!(document["error"]["code"], code, "{document:#}");
        names(&document["error"].to_string(), words);
        assert!(document["error"]["hint"].is_string(), "{document:#}");
        document
    };
    refused(stage.update(&[&step], &trust), 2, "nothing_installed", &[stage.root().as_str(), "bundle install"]);
    stage.is_untouched("an update onto nothing");
    refused(stage.install(&step, &trust), 2, "other_kind", &["update apply"]);
    stage.is_untouched("an update is not installed");

    stage.install(&goods.first, &["--no-up"]).expect(0);
    let before = stage.digest();
    let wrong = refused(
        stage.update(&[&step], &trust),
        4,
        "wrong_base",
        &["program textnlp-deploy", "bundle update create --from"],
    );
    assert!(!wrong["mismatches"].as_array().unwrap().is_empty(), "{wrong:#}");
    refused(stage.update(&[&goods.second], &trust), 2, "other_kind", &["bundle install"]);
    assert_eq!(stage.digest(), before);

    let one = goods.step(&stage, &goods.first, &goods.second, &[]);
    let bytes = std::fs::read(&one).unwrap();
    let broken = stage.made().join("broken.tar");
    crate::archive::changed(&bytes, &broken, |copy| {
        let at = crate::archive::member(&bytes, "delta/chunks").data;
        copy[at + 10] ^= 1;
    });
    let damaged = refused(stage.update(&[broken.as_str()], &trust), 1, "damaged", &["delta/chunks", "chunk"]);
    assert!(damaged["damages"].is_array());
    assert_eq!(stage.digest(), before);
    // Of two steps the first is done when the second is refused, and that is said.
    let program = goods.step(&stage, &goods.first, &goods.third, &["program/textnlp-deploy"]);
    let half = stage.update(&[&program, &one], &["--no-up", "--downgrade"]).expect(4);
    names(&half.err, &["applied", "does not fit", "program textnlp-deploy"]);
    assert_ne!(stage.digest(), before);
    stage.run(&["bundle", "update", "rollback", "--root", stage.root().as_str(), "--no-up"]).expect(0);
    assert_eq!(stage.digest(), before);

    stage.at_root("back");
    stage.install(&goods.first, &["--no-up"]).expect(0);
    let nothing = stage.run(&["bundle", "update", "rollback", "--root", stage.root().as_str(), "--no-up"]);
    assert!([1, 2].contains(&nothing.exit), "{nothing:?}");
    names(&nothing.err, &["nothing was installed before", "hint: install another bundle, or apply an update"]);
    let delta_of_delta =
        stage.run(&["bundle", "update", "create", "--from", &step, "--to", &goods.third, "--out", "x.tar"]);
    names(&delta_of_delta.expect(2).err, &["is an update itself", "--from"]);
}
