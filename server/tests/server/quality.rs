//! BLEU and ROUGE beside sacrebleu and rouge-score: `golden/quality.json`, made by `golden/make_quality.py`.

use serde_json::Value;
use textnlp_server::quality::{BleuOptions, Rouge, Smoothing, bleu, rouge_l, rouge_n};

fn cases() -> Vec<Value> {
    serde_json::from_str::<Value>(include_str!("../golden/quality.json")).unwrap().as_array().unwrap().clone()
}

fn texts(case: &Value) -> (String, Vec<String>) {
    let references = case["references"].as_array().unwrap().iter().map(|r| r.as_str().unwrap().to_owned()).collect();
    (case["candidate"].as_str().unwrap().to_owned(), references)
}

#[track_caller]
fn close(ours: f64, theirs: &Value, what: &str) {
    let theirs = theirs.as_f64().unwrap();
    assert!((ours - theirs).abs() < 1e-9 * theirs.abs().max(1.0), "{what}: {ours} is not {theirs}");
}

#[test]
fn bleu_equals_sacrebleu_with_every_smoothing() {
    let mut compared = 0;
    for case in cases() {
        let (candidate, references) = texts(&case);
        let references: Vec<&str> = references.iter().map(String::as_str).collect();
        for wanted in case["bleu"].as_array().unwrap() {
            let mut smoothing: Smoothing = wanted["smoothing"].as_str().unwrap().parse().unwrap();
            if let Some(value) = wanted["value"].as_f64() {
                smoothing = smoothing.with(value).unwrap();
            }
            let options = BleuOptions {
                smoothing,
                lowercase: wanted["lowercase"].as_bool().unwrap(),
                effective_order: wanted["effective_order"].as_bool().unwrap(),
            };
            let ours = bleu(&candidate, &references, options);
            let what = format!("{candidate:?} against {references:?}, {wanted}");
            close(ours.score, &wanted["score"], &what);
            close(ours.brevity_penalty, &wanted["bp"], &what);
            for (ours, theirs) in ours.precisions.iter().zip(wanted["precisions"].as_array().unwrap()) {
                close(*ours, theirs, &what);
            }
            assert_eq!(ours.candidate_length as u64, wanted["candidate_length"].as_u64().unwrap(), "{what}");
            assert_eq!(ours.reference_length as u64, wanted["reference_length"].as_u64().unwrap(), "{what}");
            compared += 1;
        }
    }
    assert_eq!(compared, 17 * 24);
}

#[test]
fn rouge_equals_rouge_score() {
    let mut compared = 0;
    for case in cases() {
        let (candidate, references) = texts(&case);
        let references: Vec<&str> = references.iter().map(String::as_str).collect();
        let ours: [(&str, Rouge); 3] = [
            ("rouge1", rouge_n(&candidate, &references, 1)),
            ("rouge2", rouge_n(&candidate, &references, 2)),
            ("rougeL", rouge_l(&candidate, &references)),
        ];
        for (name, ours) in ours {
            let theirs = &case["rouge"][name];
            let what = format!("{name} of {candidate:?} against {references:?}");
            close(ours.precision, &theirs[0], &what);
            close(ours.recall, &theirs[1], &what);
            close(ours.fmeasure, &theirs[2], &what);
            compared += 1;
        }
    }
    assert_eq!(compared, 17 * 3);
}
