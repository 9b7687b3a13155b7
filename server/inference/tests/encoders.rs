//! Our vectors beside those of the `sentence-transformers` library, alone and in batches, and files that are refused.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};
use textnlp_inference::cpu::{EncodeError, Encoder, EncoderOptions, Footprint, Quant};
use textnlp_inference::engine::{EmbedRequest, EncoderHandle, Failure};
use textnlp_inference::format::{EncoderCheckpoint, Pooling, is_encoder};
use textnlp_inference::kernels::Isa;
use textnlp_inference::text::{EncoderText, Tokenizer};

const MODELS: [&str; 4] = ["bert", "roberta", "xlm-roberta", "distilbert"];

#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    prompt: Option<String>,
    tokens: Vec<Vec<u32>>,
    vectors: Vec<Vec<f32>>,
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn expected(name: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(golden(name).join("expected.json")).unwrap()).unwrap()
}

fn options() -> EncoderOptions {
    EncoderOptions { threads: 2, ..EncoderOptions::default() }
}

fn load(folder: &Path, options: &EncoderOptions) -> Encoder {
    let checkpoint = EncoderCheckpoint::open(folder).unwrap_or_else(|e| panic!("{e}"));
    Encoder::load(&checkpoint, options).unwrap_or_else(|e| panic!("{e}")).0
}

fn alone(encoder: &mut Encoder, texts: &[Vec<u32>]) -> Vec<Vec<f32>> {
    texts.iter().map(|text| encoder.embed(&[text]).unwrap().remove(0).unwrap()).collect()
}

fn difference(a: &[Vec<f32>], b: &[Vec<f32>]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |m, (x, y)| m.max((x - y).abs()))
}

/// The cosine of the angle between two vectors.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f32>();
    product(a, b) / (product(a, a) * product(b, b)).sqrt()
}

#[test]
fn vectors_match_the_sentence_transformers_library() {
    for model in MODELS {
        let mut encoder = load(&golden(model), &options());
        for case in expected(model).cases {
            let ours = alone(&mut encoder, &case.tokens);
            let largest = case.vectors.iter().flatten().fold(0f32, |m, v| m.max(v.abs()));
            let difference = difference(&ours, &case.vectors);
            println!("{model} {:?}: largest difference {difference:e} of {largest}", case.prompt);
            assert!(difference <= 1e-4 * largest.max(1.0), "{model}: {difference} of {largest}");
            // The models say something: a constant would agree with nothing.
            assert!(cosine(&case.vectors[0], &case.vectors[3]) < 0.99, "{model}");
        }
    }
}

#[test]
fn texts_become_the_same_tokens_as_in_the_library() {
    for model in MODELS {
        let settings = EncoderCheckpoint::open(&golden(model)).unwrap().settings().clone();
        let tokenizer = Arc::new(Tokenizer::from_directory(&golden(model)).unwrap());
        let text = EncoderText::new(tokenizer, &settings).unwrap();
        let Expected { texts, cases } = expected(model);
        for case in cases {
            let name = case.prompt.as_ref().or(settings.default_prompt.as_ref());
            let prompt = name.map_or("", |name| settings.prompts[name].as_str());
            for (words, tokens) in texts.iter().zip(&case.tokens) {
                assert_eq!(text.encode(prompt, words, true).unwrap(), *tokens, "{model} {prompt:?} {words:?}");
                let whole = text.encode(prompt, words, false).unwrap();
                assert_eq!(whole.len() > settings.max_tokens, whole != *tokens, "{model} {words:?}");
            }
        }
    }
}

#[test]
fn folder_says_how_vectors_are_made() {
    let told = MODELS.map(|model| {
        let checkpoint = EncoderCheckpoint::open(&golden(model)).unwrap();
        let settings = checkpoint.settings();
        (settings.pooling, settings.normalize, settings.max_tokens, checkpoint.architecture().context)
    });
    let expect = [
        (Pooling::Mean, true, 40, 48),
        (Pooling::Cls, false, 96, 98),
        (Pooling::Mean, true, 68, 68),
        (Pooling::Max, false, 64, 64),
    ];
    assert_eq!(told, expect);
    let bert = EncoderCheckpoint::open(&golden("bert")).unwrap();
    assert_eq!(bert.settings().prompts["passage"], "passage: ");
    assert_eq!(bert.settings().default_prompt.as_deref(), Some("query"));
    assert_eq!((is_encoder(&golden("bert")), is_encoder(&golden("gpt2"))), (Some(true), Some(false)));
    assert_eq!((is_encoder(&golden("gpt2-f16.gguf")), is_encoder(&golden("none"))), (Some(false), None));
}

#[test]
fn vector_is_the_same_bits_alone_and_in_any_batch() {
    for model in MODELS {
        for quantize in [None, Some(Quant::F16), Some(Quant::Q8_0), Some(Quant::Q4_0)] {
            let texts = expected(model).cases.remove(0).tokens;
            let wanted = alone(
                &mut load(&golden(model), &EncoderOptions { quantize, threads: 1, isa: None, max_tokens: None }),
                &texts,
            );
            for threads in [1, 2, 3] {
                let mut encoder = load(&golden(model), &EncoderOptions { quantize, threads, ..options() });
                for order in [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [2, 2, 4, 0, 2]] {
                    let batch: Vec<&[u32]> = order.iter().map(|place| &texts[*place][..]).collect();
                    let got = encoder.embed(&batch).unwrap();
                    for (place, vector) in order.iter().zip(got) {
                        assert!(vector.as_ref() == Some(&wanted[*place]), "{model} {quantize:?} {threads} {order:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_identical_bits() {
    for model in MODELS {
        for quantize in [None, Some(Quant::Q8_0), Some(Quant::Q4_0)] {
            let texts = expected(model).cases.remove(0).tokens;
            let run = |isa| {
                alone(&mut load(&golden(model), &EncoderOptions { quantize, isa: Some(isa), ..options() }), &texts)
            };
            let plain = run(Isa::Plain);
            for isa in [Isa::Avx2, Isa::Avx512].into_iter().filter(|isa| isa.is_here()) {
                assert!(plain == run(isa), "{model} {quantize:?}: {isa} differs from the plain twin");
            }
        }
    }
}

/// Copies a golden folder.
fn copied(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(golden(model)).unwrap().map(Result::unwrap) {
        if entry.path().is_file() {
            std::fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
        }
    }
    std::fs::create_dir(folder.path().join("1_Pooling")).unwrap();
    std::fs::copy(golden(model).join("1_Pooling/config.json"), folder.path().join("1_Pooling/config.json")).unwrap();
    folder
}

/// Rewrites the tensors of a copy: `convert` gives each one's name, type and bytes.
fn rewrite(folder: &Path, convert: impl Fn(&str, &[f32]) -> (String, Dtype, Vec<u8>)) {
    let file = folder.join("model.safetensors");
    let bytes = std::fs::read(&file).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let converted: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, view)| {
            let numbers: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let (name, dtype, bytes) = convert(name, &numbers);
            (name, (dtype, view.shape().to_vec(), bytes))
        })
        .collect();
    let views = converted.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &file).unwrap();
}

#[test]
fn sixteen_and_eight_bits_stay_close_to_full_precision() {
    let f16 = |n: &[f32]| n.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect();
    let bf16 = |n: &[f32]| n.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
    for model in MODELS {
        let texts = expected(model).cases.remove(0).tokens;
        let full = alone(&mut load(&golden(model), &options()), &texts);
        let close = |other: &[Vec<f32>], bound: f32, what: &str| {
            for (a, b) in full.iter().zip(other) {
                let cosine = cosine(a, b);
                assert!(cosine > bound && a != b, "{model} {what}: {cosine}");
            }
        };
        let folder = copied(model);
        rewrite(folder.path(), |name, n| (name.to_owned(), Dtype::F16, f16(n)));
        close(&alone(&mut load(folder.path(), &options()), &texts), 0.9999, "f16");
        let folder = copied(model);
        rewrite(folder.path(), |name, n| (name.to_owned(), Dtype::BF16, bf16(n)));
        close(&alone(&mut load(folder.path(), &options()), &texts), 0.99, "bf16");
        let quantized = EncoderOptions { quantize: Some(Quant::Q8_0), ..options() };
        close(&alone(&mut load(&golden(model), &quantized), &texts), 0.99, "q8_0");
        let quantized = EncoderOptions { quantize: Some(Quant::Q4_0), ..options() };
        close(&alone(&mut load(&golden(model), &quantized), &texts), 0.9, "q4_0");
    }
}

#[test]
fn checkpoints_with_a_head_and_with_older_names_are_read() {
    let texts = expected("bert").cases.remove(0).tokens;
    let wanted = alone(&mut load(&golden("bert"), &options()), &texts);
    let folder = copied("bert");
    rewrite(folder.path(), |name, n| {
        let older = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
        (format!("bert.{older}"), Dtype::F32, n.iter().flat_map(|v| v.to_le_bytes()).collect())
    });
    let checkpoint = EncoderCheckpoint::open(folder.path()).unwrap();
    assert_eq!(checkpoint.parameters(), EncoderCheckpoint::open(&golden("bert")).unwrap().parameters());
    assert!(alone(&mut load(folder.path(), &options()), &texts) == wanted);
    // A model store has no folders inside a model.
    std::fs::rename(folder.path().join("1_Pooling/config.json"), folder.path().join("1_Pooling.config.json")).unwrap();
    assert_eq!(EncoderCheckpoint::open(folder.path()).unwrap().settings().pooling, Pooling::Mean);
    // Without modules, rows are averaged.
    std::fs::remove_file(folder.path().join("modules.json")).unwrap();
    let settings = EncoderCheckpoint::open(folder.path()).unwrap().settings().clone();
    assert_eq!((settings.pooling, settings.normalize), (Pooling::Mean, false));
}

#[test]
fn tensors_that_would_be_left_out_are_refused_but_for_heads_and_buffers() {
    let loaded = |folder: &Path| {
        EncoderCheckpoint::open(folder).map(|checkpoint| {
            let footprint = Footprint::of_encoder(&checkpoint, &options()).map(drop).map_err(|error| error.to_string());
            let encoder = Encoder::load(&checkpoint, &options()).map(drop).map_err(|error| error.to_string());
            assert_eq!(footprint, encoder);
            encoder
        })
    };
    for (name, refused) in [
        ("cls.predictions.bias", None),
        ("pooler.dense.weight", None),
        ("embeddings.position_ids", None),
        ("embeddings.projection.weight", Some("models of the family `bert` have no such tensor")),
        ("encoder.layer.0.attention.self.query.lora_A.weight", Some("have no such tensor")),
        ("encoder.layer.0.output.LayerNorm.gamma", Some("its shape is [1]")),
        ("encoder.layer.7.output.dense.bias", Some("its layer is not in the model")),
    ] {
        let folder = copied("bert");
        let file = folder.path().join("model.safetensors");
        let bytes = std::fs::read(&file).unwrap();
        let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
        tensors.retain(|(other, _)| other != name);
        tensors.push((name.to_owned(), TensorView::new(Dtype::F32, vec![1], &[0; 4]).unwrap()));
        safetensors::serialize_to_file(tensors, None, &file).unwrap();
        match (loaded(folder.path()).unwrap(), refused) {
            (Err(error), Some(cause)) => assert!(error.contains(name) && error.contains(cause), "{error}"),
            (outcome, refused) => assert_eq!(outcome.err().as_deref(), refused, "{name}"),
        }
    }
}

#[test]
fn unsupported_and_hostile_folders_are_refused_by_name() {
    let check = |file: &str, change: &dyn Fn(&mut Value), expect: &str| {
        let folder = copied("bert");
        let path = folder.path().join(file);
        let mut value: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(&path, value.to_string()).unwrap();
        let error = EncoderCheckpoint::open(folder.path())
            .and_then(|checkpoint| Encoder::load(&checkpoint, &options()).map(drop))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expect) && error.contains(file.rsplit('/').next().unwrap()), "{error}");
    };
    let config = "config.json";
    check(config, &|v| v["model_type"] = json!("gpt2"), "`gpt2` is not an encoder");
    check(config, &|v| v["hidden_act"] = json!("silu"), "`silu` is not supported");
    check(config, &|v| v["position_embedding_type"] = json!("relative_key"), "`relative_key` is not supported");
    check(config, &|v| v["is_decoder"] = json!(true), "a decoder of this family");
    check(config, &|v| v["num_attention_heads"] = json!(3), "3 heads do not divide a width of 32");
    check(config, &|v| v["vocab_size"] = json!(u64::MAX), "vocabulary is");
    check(config, &|v| v["type_vocab_size"] = json!(1u64 << 40), "1024 is the limit");
    check("1_Pooling/config.json", &|v| v["pooling_mode"] = json!("lasttoken"), "`lasttoken` is not supported");
    check("1_Pooling/config.json", &|v| v["pooling_mode"] = json!(["mean", "max"]), "`mean, max` is not supported");
    check("1_Pooling/config.json", &|v| v["include_prompt"] = json!(false), "are not supported");
    check("modules.json", &|v| v[1]["path"] = json!("../1_Pooling"), "is not a plain folder name");
    check("modules.json", &|v| v[2]["type"] = json!("sentence_transformers.models.Dense"), "module 2 is");
    check("modules.json", &|v| v.as_array_mut().unwrap().truncate(1), "there is no Pooling");
    check("config_sentence_transformers.json", &|v| v["default_prompt_name"] = json!("other"), "no prompt `other`");
    for (key, value) in [("hidden_size", 64), ("intermediate_size", 1 << 18), ("max_position_embeddings", 1 << 20)] {
        let folder = copied("bert");
        let path = folder.path().join(config);
        let mut changed: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        changed[key] = json!(value);
        std::fs::write(&path, changed.to_string()).unwrap();
        let checkpoint = EncoderCheckpoint::open(folder.path()).unwrap();
        let error = Encoder::load(&checkpoint, &options()).map(drop).unwrap_err().to_string();
        assert!(error.contains("but the configuration requires"), "{key}: {error}");
    }
}

#[test]
fn memory_that_is_predicted_is_what_the_encoder_holds() {
    for model in MODELS {
        let checkpoint = EncoderCheckpoint::open(&golden(model)).unwrap();
        for quantize in [None, Some(Quant::F16), Some(Quant::Q8_0), Some(Quant::Q4_0)] {
            for max_tokens in [None, Some(8)] {
                let options = EncoderOptions { quantize, max_tokens, ..options() };
                let predicted = Footprint::of_encoder(&checkpoint, &options).unwrap();
                let held = load(&golden(model), &options).memory();
                let positions = predicted.usual_positions();
                let sums = (predicted.weights, predicted.kv(positions), predicted.workspace(2));
                assert_eq!(sums, (held.weights, held.kv, held.workspace), "{model} {quantize:?} {max_tokens:?}");
                let all = held.weights + held.kv + held.workspace;
                assert_eq!((predicted.total(positions, 2), predicted.least(2)), (all, all));
                assert_eq!(predicted.positions_within(all, 2), Some(positions));
                assert_eq!(predicted.positions_within(all - 1, 2), None);
            }
        }
    }
}

#[test]
fn steps_refuse_what_does_not_fit() {
    let mut encoder = load(&golden("bert"), &EncoderOptions { max_tokens: Some(8), ..options() });
    assert_eq!(encoder.room(), (64, 256));
    assert_eq!(encoder.embed(&[&[1; 8], &[1; 9]]), Err(EncodeError::Invalid(1)));
    assert_eq!(encoder.embed(&[&[]]), Err(EncodeError::Invalid(0)));
    assert_eq!(encoder.embed(&[&[1_000_000]]), Err(EncodeError::Invalid(0)));
    let many = vec![&[1u32, 2, 3][..]; 65];
    assert_eq!(encoder.embed(&many), Err(EncodeError::TooMuch));
    assert_eq!(encoder.embed(&many[..64]).unwrap().len(), 64);
    assert_eq!(encoder.embed(&[]).unwrap().len(), 0);
}

#[test]
fn requests_are_embedded_together_and_end_as_they_should() {
    let Expected { cases, .. } = expected("bert");
    let (texts, wanted) = (&cases[0].tokens, &cases[0].vectors);
    let handle = EncoderHandle::start("bert", load(&golden("bert"), &options()), 64).unwrap();
    let request = |texts: Vec<Vec<u32>>| EmbedRequest { tenant: "a".to_owned(), texts, deadline: None };
    let (sender, replies) = channel();
    let tickets: Vec<_> = (0..8)
        .map(|number| {
            let sender = sender.clone();
            let then = move |result| sender.send((number, result)).unwrap();
            handle.submit(request(texts.iter().cycle().skip(number % 5).take(70).cloned().collect()), then).unwrap()
        })
        .collect();
    for _ in 0..8 {
        let (number, result) = replies.recv_timeout(Duration::from_secs(60)).unwrap();
        let wanted: Vec<_> = wanted.iter().cycle().skip(number % 5).take(70).cloned().collect();
        assert!(difference(&result.unwrap().vectors, &wanted) <= 1e-4);
    }
    drop(tickets);
    let refused = |texts| handle.submit(request(texts), |_| ()).map(drop).unwrap_err();
    assert_eq!(refused(vec![vec![1; 41]]), Failure::TooLong { prompt: 41, context: 40 });
    assert_eq!(refused(vec![vec![1], vec![]]), Failure::BadPrompt("text 1 has no tokens".to_owned()));
    assert_eq!(refused(vec![vec![9999]]), Failure::BadPrompt("the model has no token 9999".to_owned()));
    assert_eq!(refused(vec![]), Failure::BadPrompt("there is no text".to_owned()));
    let (sender, late) = channel();
    let over = EmbedRequest { deadline: Some(Instant::now()), ..request(vec![vec![1]]) };
    let ticket = handle.submit(over, move |result| sender.send(result).unwrap()).unwrap();
    assert_eq!(late.recv_timeout(Duration::from_secs(60)).unwrap(), Err(Failure::Deadline));
    handle.end();
    assert_eq!(refused(vec![vec![1]]), Failure::Draining);
    let is_released = handle.is_released();
    assert!(!is_released(), "a handle is left");
    drop((ticket, handle));
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_released() {
        assert!(Instant::now() < deadline, "its thread has not ended");
        std::thread::yield_now();
    }
}
