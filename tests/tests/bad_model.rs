//! Models that are broken in every way that a disk or a download breaks them: named, refused at once, never in the place of a
//! working one, and repaired by a whole one.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

use camino::Utf8Path;
use serde_json::Value;
use textnlp_tests::{Sandbox, copy};

/// `up` with a model that was spoiled; a run that does not end within a minute fails the story.
fn up_with_model(sandbox: &Sandbox, folder: &Utf8Path) -> textnlp_tests::Said {
    let source = format!("models.0.source=file:{folder}");
    let mut child = sandbox.start(&["up", "--env", "development", "--yes", "--no-gate", "--set", &source]);
    textnlp_tests::eventually("up with a broken model ends by itself", || {
        child.try_wait().expect("look at the program")
    });
    textnlp_tests::said(child.wait_with_output().expect("wait for the program"))
}

#[test]
fn broken_model_is_refused_by_name_and_never_replaces_a_working_one() {
    let sandbox = Sandbox::new("model");
    let whole = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/models/bundled/textnlp-tiny");
    type Spoil = (&'static str, fn(&Utf8Path), &'static str);
    const SHARD: &str = "model-00001-of-00002.safetensors";
    let spoils: [Spoil; 10] = [
        (
            "truncated",
            |m| {
                let file = std::fs::OpenOptions::new().write(true).open(m.join("model.safetensors")).unwrap();
                file.set_len(100_000).unwrap();
            },
            "model.safetensors",
        ),
        (
            "a header that lies about its length",
            |m| {
                let mut bytes = std::fs::read(m.join("model.safetensors")).unwrap();
                bytes[..8].copy_from_slice(&(i64::MAX as u64).to_le_bytes());
                std::fs::write(m.join("model.safetensors"), bytes).unwrap();
            },
            "model.safetensors",
        ),
        ("half a configuration", |m| std::fs::write(m.join("config.json"), "{").unwrap(), "config.json"),
        ("no tokenizer", |m| std::fs::remove_file(m.join("tokenizer.json")).unwrap(), "tokenizer.json"),
        (
            "a GGUF that is none",
            |m| {
                std::fs::remove_dir_all(m).unwrap();
                std::fs::create_dir(m).unwrap();
                std::fs::write(m.join("a.gguf"), b"GGUF\x03\0\0\0\xff\xff\xff\xff\xff\xff\xff\x7f").unwrap();
            },
            "a.gguf",
        ),
        ("nothing at all", |m| std::fs::remove_dir_all(m).unwrap(), "model-5"),
        (
            "an end token beyond the vocabulary",
            |m| {
                let config = std::fs::read(m.join("config.json")).unwrap();
                let mut config: serde_json::Value = serde_json::from_slice(&config).unwrap();
                config["eos_token_id"] = serde_json::json!(999_999);
                std::fs::write(m.join("config.json"), config.to_string()).unwrap();
            },
            "its end token is 999999",
        ),
        (
            "a shard that is missing",
            |m| std::fs::rename(m.join("model.safetensors"), m.join(SHARD)).unwrap(),
            "model-00002-of-00002.safetensors",
        ),
        (
            "an index that names no file",
            |m| {
                std::fs::rename(m.join("model.safetensors"), m.join(SHARD)).unwrap();
                std::fs::write(m.join("model.safetensors.index.json"), "{\"weight_map\": {}}").unwrap();
            },
            "`weight_map`: it is empty",
        ),
        (
            "a GGUF with an alignment of 0",
            |m| {
                std::fs::remove_dir_all(m).unwrap();
                std::fs::create_dir(m).unwrap();
                // Version 3, no tensors, one key of 17 letters with a number of 32 bits.
                let counts = [&b"GGUF\x03\0\0\0"[..], &0u64.to_le_bytes(), &1u64.to_le_bytes()].concat();
                let key = [&17u64.to_le_bytes()[..], b"general.alignment", b"\x04\0\0\0\0\0\0\0"].concat();
                std::fs::write(m.join("a.gguf"), [counts, key].concat()).unwrap();
            },
            "is not a power of two",
        ),
    ];
    assert_eq!(up_with_model(&sandbox, &whole).exit, 0, "a whole model is served");
    let generate = ["generate", "Once", "--max-tokens", "8", "--seed", "7", "--env", "development"];
    let text = sandbox.run(&generate).expect(0).out;
    for (n, (name, spoil, says)) in spoils.into_iter().enumerate() {
        let folder = sandbox.folder().join(format!("model-{n}"));
        copy(&whole, &folder);
        spoil(&folder);
        let said = up_with_model(&sandbox, &folder);
        assert_eq!(said.exit, 1, "{name}: {}\n{}", said.out, said.err);
        assert!(said.err.contains("error: ") && said.err.contains("hint: "), "{name}: {}", said.err);
        assert!(said.err.contains(says), "{name} does not say `{says}`: {}", said.err);
        assert_eq!(sandbox.run(&generate).expect(0).out, text, "{name}: the working model still answers");
        if folder.exists() {
            let source = format!("models.0.source=file:{folder}");
            let plan = sandbox.run(&["plan", "--env", "development", "--set", &source]);
            assert!(plan.exit == 1 && plan.err.contains(says), "{name}: {plan:?}");
            let pulled = sandbox.run(&["model", "pull", &format!("file:{folder}")]);
            assert!(pulled.exit == 1 && pulled.err.contains(says), "{name}: {pulled:?}");
        }
    }
    let again = up_with_model(&sandbox, &whole).expect(0);
    assert!(again.err.contains("No changes"), "{}", again.err);
    assert_eq!(sandbox.run(&generate).expect(0).out, text);
}

#[test]
fn model_is_compared_with_the_memory_of_another_machine() {
    let sandbox = Sandbox::new("memory");
    let fit = |memory: &str| sandbox.run(&["model", "fit", "bundled", "--memory", memory]);
    let large = fit("64GiB").expect(0).out;
    assert!(large.contains("bundled fits") && large.contains("available 68.72 GB of 68.72 GB (--memory)"), "{large}");
    assert!(fit("10MB").expect(1).out.contains("does not fit"));
    let wrong = fit("10").expect(2).err;
    assert!(wrong.contains("has no unit"), "{wrong}");
}

#[test]
fn context_beyond_the_models_own_is_cut_and_said() {
    let sandbox = Sandbox::new("context");
    let fit = |more: &[&str]| {
        sandbox.run(&[&["model", "fit", "bundled", "--memory", "64GiB", "--context"], more].concat()).expect(0)
    };
    let cut = fit(&["100000"]).out;
    assert!(cut.contains("a context of 1024 tokens: 100000 are cut to that"), "{cut}");
    assert!(!fit(&["1024"]).out.contains("cut"));
    assert_eq!(fit(&["100000", "-o", "json"]).json()["context"], 1024);
    assert_eq!(fit(&["512", "-o", "json"]).json()["context"], 512);
}

#[test]
fn context_above_the_models_own_is_refused_before_anything_changes() {
    let sandbox = Sandbox::new("long");
    let own = sandbox.folder().join("own");
    copy(&Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/models/bundled/textnlp-tiny"), &own);
    let source = format!("models.0.source=file:{own}");
    for source in ["models.0.source=bundled", &source] {
        let set = ["--env", "development", "--set", source, "--set", "models.0.context=1025", "-o", "json"];
        for verb in [&["env", "check"][..], &["plan"], &["up", "--yes"]] {
            let refused = sandbox.run(&[verb, &set].concat()).expect(2).json();
            let error = &refused["error"];
            let cause = error["causes"].to_string();
            assert_eq!(error["code"], "context_too_long", "{verb:?}: {refused:#}");
            assert!(cause.contains("--set models.0.context") && cause.contains("supports 1024"), "{cause}");
        }
        sandbox.run(&["env", "check", "--env", "development", "--set", source]).expect(0);
    }
}

#[test]
fn quantized_weights_are_compared_by_the_predictions_for_a_text() {
    let sandbox = Sandbox::new("text");
    let page = sandbox.folder().join("page.txt");
    let story = "Mira walked to the harbour. She saw a small boat, and the boat had a red sail. ";
    std::fs::write(&page, story.repeat(20)).unwrap();
    let fit = |more: &[&str]| sandbox.run(&[&["model", "fit", "bundled", "--text", page.as_str()], more].concat());
    let measured = |format: &str| fit(&["--quantize", format, "-o", "json"]).expect(0).json()["quality"].clone();
    let (eight, four) = (measured("q8_0"), measured("q4_0"));
    let number = |of: &serde_json::Value, key: &str| of[key].as_f64().unwrap();
    assert!(number(&eight, "tokens") > 300.0 && eight["tokens"] == four["tokens"], "{eight}");
    assert!(number(&eight, "perplexity_stored") > 1.0 && eight["perplexity_stored"] == four["perplexity_stored"]);
    assert!(number(&eight, "divergence") < number(&four, "divergence"), "{eight}, {four}");
    assert!(number(&eight, "same_best") > number(&four, "same_best") && number(&four, "same_best") > 0.5, "{four}");
    let said = fit(&["--quantize", "q4_0"]).expect(0).out;
    assert!(said.contains("as stored") && said.contains("as q4_0"), "{said}");
    fit(&[]).expect(2);
    std::fs::write(&page, "Mira").unwrap();
    assert!(fit(&["--quantize", "q4_0"]).expect(1).err.contains("at least 64 are needed"));
}

#[test]
fn speed_of_a_model_is_measured_by_each_executor() {
    let sandbox = Sandbox::new("speed");
    let bench = sandbox.run(&["model", "bench", "bundled", "--quantize", "q8_0", "--threads", "1", "-o", "json"]);
    let speeds = bench.expect(0).json()["speeds"].as_array().unwrap().clone();
    assert_eq!(speeds[0]["executor"], "own", "{speeds:?}");
    for speed in &speeds {
        for key in ["prefill", "decode", "decode_streams", "load_seconds"] {
            assert!(speed[key].as_f64().unwrap() > 0.0, "{speed}");
        }
        assert!(speed["weights"].as_u64().unwrap() > 3_000_000, "{speed}");
    }
    let said = sandbox.run(&["model", "bench", "bundled"]).expect(0).out;
    assert!(said.contains("EXECUTOR") && said.contains("loaded in"), "{said}");
    let encoder = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/inference/tests/golden/bert");
    let (file, lists) = (sandbox.folder().join("speeds.csv"), ["--prompt-tokens", "8,16", "--sequences", "1,2,3"]);
    let models = ["model", "bench", "bundled", encoder.as_str(), "--csv", file.as_str(), "-o", "json"];
    let several = sandbox.run(&[models.as_slice(), lists.as_slice()].concat()).expect(0).json();
    let written = std::fs::read_to_string(&file).unwrap();
    let rows: Vec<Vec<&str>> = written.lines().skip(1).map(|line| line.split(',').collect()).collect();
    let results = |speed: &Value| speed["results"].as_array().unwrap().len();
    let counts: Vec<usize> = several["speeds"].as_array().unwrap().iter().map(results).collect();
    assert!(counts.iter().all(|count| *count == 6) && rows.len() == counts.iter().sum::<usize>(), "{written}");
    let measured = |row: &Vec<&str>, column: usize| row[column].parse::<f64>().is_ok_and(|speed| speed > 0.0);
    for row in &rows {
        assert!(["1", "2", "3"].contains(&row[4]) && ["8", "16"].contains(&row[5]) && measured(row, 9), "{written}");
        // An encoder generates nothing.
        let generates = row[0] == "bundled";
        assert_eq!((row[6] == "32", measured(row, 10)), (generates, generates), "{written}");
    }
    let long =
        sandbox.run(&["model", "bench", "bundled", encoder.as_str(), "--prompt-tokens", "128,9000"]).expect(2).err;
    assert!(long.contains("bundled has a context of") && long.contains("bert has a context of"), "{long}");
    sandbox.run(&["model", "bench", "hf:none/none"]).expect(2);
    let many = sandbox.run(&["model", "bench", "bundled", "--threads", "1024"]).expect(2).err;
    assert!(many.contains("1024 compute threads") && many.contains("set --threads to"), "{many}");
}

#[test]
fn model_repaired_in_its_source_directory_is_served() {
    let sandbox = Sandbox::new("mended");
    let whole = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/models/bundled/textnlp-tiny");
    let folder = sandbox.folder().join("model");
    copy(&whole, &folder);
    std::fs::remove_file(folder.join("tokenizer.json")).unwrap();
    let said = up_with_model(&sandbox, &folder).expect(1);
    assert!(said.err.contains("no tokenizer.json"), "{}", said.err);
    copy(&whole, &folder);
    up_with_model(&sandbox, &folder).expect(0);
}

#[test]
fn changed_local_model_is_delivered_only_with_a_new_release() {
    let sandbox = Sandbox::new("changed");
    let whole = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../server/models/bundled/textnlp-tiny");
    let folder = sandbox.folder().join("model");
    copy(&whole, &folder);
    let source = format!("models.0.source=file:{folder}");
    let delivered = || {
        let there = std::fs::read_to_string(sandbox.site("development").join("models/textnlp-tiny/config.json"));
        there.unwrap()
    };
    let planned = || {
        let plan = sandbox.run(&["plan", "--env", "development", "--set", &source, "-o", "json"]).expect(0);
        let document = plan.json();
        let models = document["steps"].as_array().unwrap().iter().filter(|step| step["kind"] == "onprem.model").count();
        (models, plan.err)
    };
    up_with_model(&sandbox, &folder).expect(0);
    assert_eq!(planned().0, 0);
    let first = delivered();

    // One more blank changes nothing but the bytes.
    std::fs::write(folder.join("config.json"), format!("{first} ")).unwrap();
    let (models, said) = planned();
    assert!(models == 0 && said.contains("release set"), "the lock keeps what was released and says so: {said}");
    let said = up_with_model(&sandbox, &folder).expect(0);
    assert!(said.err.contains("The release lock pins model textnlp-tiny"), "{}", said.err);
    assert_eq!(delivered(), first);

    let set = ["release", "set", "--env", "development", "--set", &source];
    let said = sandbox.run(&set).expect(0);
    assert!(said.out.contains("models.textnlp-tiny"), "{}", said.out);
    assert_eq!(planned().0, 1);
    up_with_model(&sandbox, &folder).expect(0);
    assert_eq!(delivered(), format!("{first} "));

    // Without a lock what lies there is what is wanted.
    std::fs::remove_file(sandbox.state("development").join("development.lock")).unwrap();
    std::fs::write(folder.join("config.json"), &first).unwrap();
    up_with_model(&sandbox, &folder).expect(0);
    assert_eq!(delivered(), first);
    assert_eq!(planned().0, 0);
}

#[test]
fn unreachable_model_source_blocks_neither_up_nor_down() {
    let sandbox = Sandbox::new("away");
    // Nobody listens on the first port of this machine.
    let nowhere = ["--set", "models.0.source=https://127.0.0.1:1/m.gguf"];
    let small = ["--set", "storage.model_cache=1MB"];
    for setting in [small, nowhere] {
        let up = [&["up", "--env", "development", "--yes", "--no-gate"][..], &setting].concat();
        let mut child = sandbox.start(&up);
        let ended = textnlp_tests::eventually("up ends by itself", || child.try_wait().expect("look at the program"));
        assert_eq!(ended.code(), Some(1), "{setting:?}");
        let said = sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
        assert!(sandbox.processes().is_empty(), "{:?} {}", sandbox.processes(), said.err);
    }

    // Killed while it waits for the model: what is open is ended by the next `down`.
    let up = [&["up", "--env", "development", "--yes", "--no-gate"][..], &nowhere].concat();
    let mut child = sandbox.start(&up);
    textnlp_tests::eventually("the model is begun", || {
        sandbox
            .files(&sandbox.site("development"))
            .iter()
            .any(|f| f.contains("objects") && f.contains("models"))
            .then_some(())
    });
    child.kill().expect("kill it");
    child.wait().expect("wait for it");
    sandbox.run(&["down", "--env", "development", "--yes"]).expect(0);
    assert!(sandbox.processes().is_empty(), "{:?}", sandbox.processes());
}
