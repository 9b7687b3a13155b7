//! Whole runs in small: they learn, a killed one goes on to the same bits, and what is exported is what was trained.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use textnlp_training::corpus::{self, Split, document};
use textnlp_training::decode::{Drawing, continue_all};
use textnlp_training::error::Error;
use textnlp_training::export::{CHAT_TEMPLATE, Model, export};
use textnlp_training::net::{Shard, Workspace};
use textnlp_training::params::Shape;
use textnlp_training::tokens::Tokens;
use textnlp_training::train::{Recipe, Run};

fn recipe(steps: u64) -> Recipe {
    let shape = Shape { vocabulary: 700, context: 192, width: 64, layers: 2, heads: 4 };
    Recipe { window: 96, tokens_per_step: 6_144, documents: 4_000, warm_up: 20, ..Recipe::new(shape, steps, 3) }
}

fn tokenizer() -> String {
    Tokens::train(3, 700, 300).unwrap().to_json().unwrap()
}

/// Nats per token of held-out documents.
fn held_out_loss(run: &Run) -> f64 {
    let mut workspace = Workspace::default();
    let (mut nats, mut tokens) = (0.0, 0);
    for i in 0..40 {
        let mut ids = run.tokens.encode(&document(3, Split::HeldOut, i).text).unwrap();
        ids.truncate(run.recipe.shape.context + 1);
        let length = ids.len() - 1;
        let shard = Shard {
            length,
            inputs: ids[..length].to_vec(),
            positions: (0..length as u32).collect(),
            targets: ids[1..].to_vec(),
        };
        nats += workspace.run(&run.layout, &run.params, &shard, None);
        tokens += length;
    }
    nats / f64::from(u32::try_from(tokens).unwrap())
}

/// Nats per token of held-out documents for a reader that knows the frequencies of the training part.
fn frequency_loss(run: &Run) -> f64 {
    let mut counts = vec![1.0; run.recipe.shape.vocabulary];
    let mut all = counts.len() as f64;
    for i in 0..600 {
        for id in run.tokens.encode(&document(3, Split::Train, i).text).unwrap() {
            counts[id as usize] += 1.0;
            all += 1.0;
        }
    }
    let ids: Vec<u32> =
        (0..40).flat_map(|i| run.tokens.encode(&document(3, Split::HeldOut, i).text).unwrap()).collect();
    ids.iter().map(|&id| -(counts[id as usize] / all).ln()).sum::<f64>() / ids.len() as f64
}

#[test]
fn two_hundred_steps_learn_most_of_the_grammar() {
    let folder = tempfile::tempdir().unwrap();
    let mut run = Run::open(folder.path(), &recipe(200), &tokenizer()).unwrap();
    let before = held_out_loss(&run);
    while !run.done() {
        run.step(2).unwrap();
    }
    let after = held_out_loss(&run);
    // A uniform guess is ln 700 = 6.55. Whoever knows only how frequent each token is comes to about 5.2; a model that has
    // begun to learn the grammar must be well below.
    let frequencies = frequency_loss(&run);
    assert!((4.5..6.0).contains(&frequencies), "{frequencies}");
    assert!(before > 6.4, "{before}");
    assert!(after < frequencies - 0.7, "{after} {frequencies}");

    let model_folder = folder.path().join("model");
    export(&run, &model_folder).unwrap();
    let model = Model::open(&model_folder).unwrap();
    let worst = run.params.iter().zip(&model.params).fold(0f32, |a, (x, y)| a.max((x - y).abs() / x.abs().max(1e-3)));
    assert!(worst < 1e-3, "f16 keeps eleven bits, but a parameter changed by {worst}");
    let prompt = vec![model.tokens.encode("Mira walked to").unwrap()];
    let drawing = Drawing { temperature: 0.8, tokens: 30, seed: 4 };
    let first = continue_all(&model.layout, &model.params, &prompt, &[0], drawing);
    assert_eq!(first, continue_all(&model.layout, &model.params, &prompt, &[0], drawing), "same seed, same text");
    assert_ne!(first, continue_all(&model.layout, &model.params, &prompt, &[0], Drawing { seed: 5, ..drawing }));
}

#[test]
fn resumed_run_ends_with_identical_bits_on_any_thread_count() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let text = tokenizer();
    // Six steps, so that the last one reads windows of the whole context.
    let recipe = Recipe { full_length_share: 0.2, ..recipe(6) };
    let mut run = Run::open(whole.path(), &recipe, &text).unwrap();
    while !run.done() {
        run.step(1).unwrap();
    }
    let mut part = Run::open(parts.path(), &recipe, &text).unwrap();
    for _ in 0..4 {
        part.step(2).unwrap();
    }
    part.save().unwrap();
    drop(part);
    let mut part = Run::open(parts.path(), &recipe, &text).unwrap();
    assert_eq!(part.step, 4);
    while !part.done() {
        part.step(2).unwrap();
    }
    assert!(run.params.iter().zip(&part.params).all(|(a, b)| a.to_bits() == b.to_bits()));
}

#[test]
fn killed_training_resumes_to_identical_bits() {
    let folder = tempfile::tempdir().unwrap();
    let tokens = folder.path().join("tokenizer.json");
    fs::write(&tokens, Tokens::train(3, 500, 100).unwrap().to_json().unwrap()).unwrap();
    let train = |run: &Path| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_textnlp-train"));
        command.arg("train").arg(run).arg("--tokenizer").arg(&tokens).args(["--steps", "7", "--width", "16"]);
        command
            .args(["--layers", "1", "--heads", "1", "--context", "256", "--checkpoint-seconds", "0"])
            .stderr(Stdio::null());
        command
    };
    let (whole, killed) = (folder.path().join("whole"), folder.path().join("killed"));
    assert!(train(&whole).status().unwrap().success());
    let checkpoint = killed.join("checkpoint.safetensors");
    let mut child = train(&killed).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while !checkpoint.exists() && Instant::now() < deadline && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(checkpoint.exists());
    assert!(train(&killed).status().unwrap().success());
    assert_eq!(fs::read(whole.join("checkpoint.safetensors")).unwrap(), fs::read(checkpoint).unwrap());
}

#[test]
fn run_directory_of_another_recipe_or_with_a_broken_checkpoint_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let text = tokenizer();
    Run::open(folder.path(), &recipe(5), &text).unwrap().save().unwrap();
    let other = Recipe { seed: 4, ..recipe(5) };
    assert!(matches!(Run::open(folder.path(), &other, &text), Err(Error::AnotherRun { .. })));
    assert!(matches!(Run::open(folder.path(), &recipe(5), "{}"), Err(Error::AnotherRun { .. })));
    let checkpoint = folder.path().join("checkpoint.safetensors");
    let bytes = fs::read(&checkpoint).unwrap();
    for broken in [&bytes[..bytes.len() / 2], b"", b"\xff\xff\xff\xff\xff\xff\xff\xff{}"] {
        fs::write(&checkpoint, broken).unwrap();
        assert!(matches!(Run::open(folder.path(), &recipe(5), &text), Err(Error::Broken { .. })));
    }
    assert!(Run::open(folder.path(), &Recipe { window: 500, ..recipe(5) }, &text).is_err());
}

#[test]
fn chat_template_formats_turns_like_the_corpus() {
    let mut jinja = minijinja::Environment::new();
    jinja.add_template("chat", CHAT_TEMPLATE).unwrap();
    let messages = minijinja::context! {
        messages => [
            minijinja::context! { role => "system", content => "Be kind." },
            minijinja::context! { role => "user", content => "Hello!" },
            minijinja::context! { role => "assistant", content => "Hi." },
            minijinja::context! { role => "user", content => "Bye!" },
        ],
        add_generation_prompt => true,
    };
    let text = jinja.get_template("chat").unwrap().render(messages).unwrap();
    let (s, u, a, e) = (corpus::SYSTEM, corpus::USER, corpus::ASSISTANT, corpus::END);
    assert_eq!(text, format!("{s}Be kind.{e}{u}Hello!{e}{a}Hi.{e}{u}Bye!{e}{a}"));
}
