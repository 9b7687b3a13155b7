//! A killed run resumes from its journal, with the same result for each form of the journal's unfinished digest. A run that fails
//! or is stopped leaves nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::made::{Workshop, noise};
use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_bundle::*;

const LENGTH: usize = 20 << 20;

/// Packs, and returns the bytes that an earlier run had done.
fn packed(inputs: &Inputs, out: &Utf8Path) -> (Result<Packed>, u64) {
    let resumed = AtomicU64::new(0);
    let progress = |event: Event<'_>| {
        if let Event::Resume { bytes } = event {
            resumed.store(bytes, Ordering::Relaxed);
        }
    };
    let drive = Drive { progress: &progress, ..Drive::default() };
    let done = pack(inputs, out, &PackOptions { drive, ..PackOptions::default() });
    (done, resumed.into_inner())
}

/// Ends when `until` bytes are done, as a killed process does: nothing is removed.
fn killed(inputs: &Inputs, out: &Utf8Path, volume_size: Option<u64>, until: u64) {
    let progress = |event: Event<'_>| {
        if let Event::Bytes { done } = event {
            assert!(done < until, "killed");
        }
    };
    let drive = Drive { progress: &progress, ..Drive::default() };
    let run = || drop(pack(inputs, out, &PackOptions { volume_size, drive }));
    assert!(catch_unwind(AssertUnwindSafe(run)).is_err(), "it ended before it was killed");
}

/// One file of this length.
fn one_layer(root: &Utf8Path) -> Inputs {
    std::fs::write(root.join("layer"), noise(5, LENGTH)).unwrap();
    let content = Content::File(root.join("layer"));
    let input = Input { path: "images/layer".into(), executable: false, content };
    Inputs { version: "1".into(), epoch: 1, files: vec![input], ..Inputs::default() }
}

/// The names in the folder that begin with that of the bundle.
fn named(out: &Utf8Path) -> Vec<String> {
    let entries = out.parent().unwrap().read_dir_utf8().unwrap().map(|entry| entry.unwrap().file_name().to_owned());
    let mut names: Vec<String> = entries.filter(|name| name.starts_with(out.file_name().unwrap())).collect();
    names.sort();
    names
}

#[test]
fn stopped_create_is_resumed_and_a_failed_one_leaves_no_partial_files() {
    let shop = Workshop::new();
    let inputs = one_layer(&shop.path("in"));
    let (out, layer) = (shop.path("out.tar"), shop.path("in/layer"));
    pack(&inputs, &out, &PackOptions::default()).unwrap();
    let before = std::fs::read(&out).unwrap();
    for volume_size in [None, Some(2 << 20)] {
        let stop = AtomicBool::new(false);
        let progress = |event: Event<'_>| match event {
            Event::Bytes { done } if done >= 8 << 20 => stop.store(true, Ordering::Relaxed),
            _ => {}
        };
        let drive = Drive { progress: &progress, stop: &stop, ..Drive::default() };
        let stopped = pack(&inputs, &out, &PackOptions { volume_size, drive }).unwrap_err();
        assert!(matches!(stopped, Error::Stopped { .. }), "{stopped}");
        assert!(named(&out).iter().any(|name| name.ends_with(".partial.journal")), "{:?}", named(&out));
        let resumed = AtomicU64::new(0);
        let progress = |event: Event<'_>| {
            if let Event::Resume { bytes } = event {
                resumed.store(bytes, Ordering::Relaxed);
            }
        };
        let drive = Drive { progress: &progress, ..Drive::default() };
        let done = pack(&inputs, &out, &PackOptions { volume_size, drive }).unwrap();
        assert!(resumed.into_inner() >= 4 << 20, "{volume_size:?}");
        for path in done.paths.iter().filter(|path| **path != out) {
            std::fs::remove_file(path).unwrap();
        }
        std::fs::write(&out, &before).unwrap();

        let progress = |event: Event<'_>| {
            if let Event::File { .. } = event {
                std::fs::write(&layer, b"other").unwrap();
            }
        };
        let drive = Drive { progress: &progress, ..Drive::default() };
        let failed = pack(&inputs, &out, &PackOptions { volume_size, drive }).unwrap_err();
        assert!(matches!(failed, Error::InputChanged { .. }), "{failed}");
        assert_eq!(named(&out), ["out.tar"], "{volume_size:?}");
        std::fs::write(&layer, noise(5, LENGTH)).unwrap();
    }
    assert!(std::fs::read(&out).unwrap() == before, "the earlier bundle stays");
}

#[test]
fn create_replaces_partial_files_of_a_killed_run_with_another_volume_size() {
    let shop = Workshop::new();
    let inputs = one_layer(&shop.path("in"));
    let out = shop.path("out.tar");
    for (before, after) in [(Some(1 << 20), None), (None, Some(8 << 20)), (Some(1 << 20), Some(8 << 20))] {
        killed(&inputs, &out, before, 8 << 20);
        assert!(named(&out).iter().any(|name| name.ends_with(".partial")), "{:?}", named(&out));
        let packed = pack(&inputs, &out, &PackOptions { volume_size: after, ..PackOptions::default() }).unwrap();
        let names: Vec<_> = packed.paths.iter().map(|path| path.file_name().unwrap().to_owned()).collect();
        assert_eq!(named(&out), names);
    }
    // Without a killed run of the name, a file that looks like a partial one is the operator's.
    let theirs = shop.path("out.tar.002.partial");
    std::fs::write(&theirs, b"kept").unwrap();
    pack(&inputs, &out, &PackOptions::default()).unwrap();
    assert_eq!(std::fs::read(&theirs).unwrap(), b"kept");
    std::fs::remove_file(&theirs).unwrap();
    // Another bundle that has the name of a volume is being created.
    let other = Utf8PathBuf::from(format!("{out}.009"));
    killed(&inputs, &other, None, 8 << 20);
    pack(&inputs, &out, &PackOptions::default()).unwrap();
    assert_eq!(named(&other), ["out.tar.009.partial", "out.tar.009.partial.journal"]);
}

#[test]
fn second_create_of_a_name_is_refused_and_removes_nothing() {
    let shop = Workshop::new();
    let inputs = one_layer(&shop.path("in"));
    let out = shop.path("out.tar");
    let refused = AtomicU64::new(0);
    let progress = |event: Event<'_>| {
        if let Event::Bytes { .. } = event {
            let before = named(&out);
            let second = pack(&inputs, &out, &PackOptions { volume_size: Some(2 << 20), ..PackOptions::default() });
            assert!(matches!(second, Err(Error::Busy { .. })), "{second:?}");
            assert_eq!(named(&out), before);
            refused.fetch_add(1, Ordering::Relaxed);
        }
    };
    let drive = Drive { progress: &progress, ..Drive::default() };
    pack(&inputs, &out, &PackOptions { drive, ..PackOptions::default() }).unwrap();
    assert!(refused.into_inner() > 0);
    assert_eq!(named(&out), ["out.tar"]);
}

#[test]
fn journal_without_or_with_older_digest_state_is_resumed() {
    let shop = Workshop::new();
    let root = shop.path("in");
    let inputs = one_layer(&root);
    let (whole, out) = (root.join("whole.tar"), root.join("out.tar"));
    packed(&inputs, &whole).0.unwrap();

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
        killed(&inputs, &out, None, 8 << 20);
        let path = root.join("out.tar.partial.journal");
        let text = std::fs::read_to_string(&path).unwrap();
        let mut lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert!(lines.last().and_then(state).is_some(), "it was killed within the file");
        lines[1..].iter_mut().for_each(change);
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        let (done, resumed) = packed(&inputs, &out);
        done.unwrap();
        assert!(resumed >= 8 << 20 && resumed < LENGTH as u64, "{what}: {resumed}");
        assert!(std::fs::read(&out).unwrap() == std::fs::read(&whole).unwrap(), "{what}");
        std::fs::remove_file(&out).unwrap();
    }
}
