//! A stopped run resumes from its journal, with the same result for each form of the journal's unfinished digest.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::made::{Workshop, noise};
use camino::Utf8Path;
use serde_json::{Value, json};
use textnlp_bundle::*;

const LENGTH: usize = 20 << 20;

/// Packs until `until` bytes are done. Returns the bytes that an earlier run had done.
fn packed(inputs: &Inputs, out: &Utf8Path, until: u64) -> (Result<Packed>, u64) {
    let (stop, resumed) = (AtomicBool::new(false), AtomicU64::new(0));
    let progress = |event: Event<'_>| match event {
        Event::Bytes { done } if done >= until => stop.store(true, Ordering::Relaxed),
        Event::Resume { bytes } => resumed.store(bytes, Ordering::Relaxed),
        _ => {}
    };
    let drive = Drive { progress: &progress, stop: &stop, ..Drive::default() };
    let done = pack(inputs, out, &PackOptions { drive, ..PackOptions::default() });
    (done, resumed.into_inner())
}

#[test]
fn journal_without_or_with_older_digest_state_is_resumed() {
    let shop = Workshop::new();
    let root = shop.path("in");
    std::fs::write(root.join("layer"), noise(5, LENGTH)).unwrap();
    let content = Content::File(root.join("layer"));
    let input = Input { path: "images/layer".into(), executable: false, content };
    let inputs = Inputs { version: "1".into(), epoch: 1, files: vec![input], ..Inputs::default() };
    let (whole, out) = (root.join("whole.tar"), root.join("out.tar"));
    packed(&inputs, &whole, u64::MAX).0.unwrap();

    let state = |line: &Value| line["sha256"].as_str().map(str::to_owned);
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 5] = [
        ("as it is", |_| {}),
        ("without a state", |line| drop(line.as_object_mut().unwrap().remove("sha256"))),
        ("of an earlier version", |line| {
            line.as_object_mut().unwrap().remove("sha256");
            line["state"] = json!("AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
        }),
        ("of another place", |line| {
            let state = line["sha256"].as_str().unwrap_or_default();
            let hash = state.split(':').next().unwrap_or_default();
            line["sha256"] = json!(format!("{hash}:64:"));
        }),
        ("of no meaning", |line| line["sha256"] = json!("x")),
    ];
    for (what, change) in changes {
        assert!(matches!(packed(&inputs, &out, 8 << 20).0, Err(Error::Stopped { .. })), "{what}");
        let path = root.join("out.tar.partial.journal");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.last().and_then(state).is_some(), "it was stopped within the file");
        lines[1..].iter_mut().for_each(change);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let (done, resumed) = packed(&inputs, &out, u64::MAX);
        done.unwrap();
        assert!(resumed >= 8 << 20 && resumed < LENGTH as u64, "{what}: {resumed}");
        assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{what}");
        std::fs::remove_file(&out).unwrap();
    }
}
