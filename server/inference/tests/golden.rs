//! Our logits beside those of the `transformers` library, and the same model from every kind of file.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::Path;
use support::*;
use textnlp_inference::cpu::{Cpu, LoadOptions, Quant};
use textnlp_inference::format::Checkpoint;
use textnlp_inference::kernels::Isa;

#[test]
fn logits_match_the_transformers_library() {
    for model in MODELS {
        let expected = expected(model);
        let ours = all_logits(&mut load(&golden(model), &options(None)), &expected.tokens);
        let ours: Vec<_> = expected.positions.iter().map(|p| ours[*p].clone()).collect();
        let (difference, largest) = (largest_difference(&ours, &expected.logits), largest(&expected.logits));
        println!("{model}: largest difference {difference:e} of {largest}");
        assert!(difference <= 1e-4 * largest, "{model}: {difference} of {largest}");
        // The models say something: a constant would agree with nothing.
        assert!(largest > 0.5, "{model}");
    }
}

#[test]
fn eight_bit_quantization_stays_close_to_full_precision() {
    for model in MODELS {
        let tokens = expected(model).tokens;
        let full = all_logits(&mut load(&golden(model), &options(None)), &tokens);
        // Noise weights of width 32 and sharp attention: a trained model of usual width is closer by far.
        for (quant, bound) in [(Quant::F16, 0.004), (Quant::Q8_0, 0.08)] {
            let other = all_logits(&mut load(&golden(model), &options(quant)), &tokens);
            let share = relative_error(&full, &other);
            println!("{model} {quant}: relative error {share:e}");
            assert!(share <= bound, "{model} {quant}: relative error {share}");
            assert!(share > 0.0, "{model} {quant} is not full precision");
        }
    }
}

#[test]
fn every_instruction_set_gives_identical_bits() {
    for model in MODELS {
        let tokens = expected(model).tokens;
        for quant in [Quant::F32, Quant::F16, Quant::Q8_0] {
            let run = |isa| {
                let options = LoadOptions { isa: Some(isa), ..options(quant) };
                let mut cpu = load(&golden(model), &options);
                assert_eq!(cpu.isa(), isa);
                all_logits(&mut cpu, &tokens)
            };
            let plain = run(Isa::Plain);
            for isa in [Isa::Avx2, Isa::Avx512] {
                if isa.is_here() {
                    assert!(plain == run(isa), "{model} {quant}: {isa} differs from the plain twin");
                } else {
                    println!("{model} {quant}: this CPU has no {isa}, not compared");
                }
            }
        }
    }
}

#[test]
fn gguf_models_match_their_safetensors_equivalents() {
    // f16 and q8_0 are the same numbers as our own conversion of the f32 file.
    for (file, model, quant) in [("gpt2-f16", "gpt2", Quant::F16), ("llama-q8_0", "llama", Quant::Q8_0)] {
        let tokens = expected(model).tokens;
        let file = golden(&format!("{file}.gguf"));
        let (mut cpu, notes) = Cpu::load(&Checkpoint::open(&file).unwrap(), &options(None)).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        let twin = all_logits(&mut load(&golden(model), &options(quant)), &tokens);
        assert!(all_logits(&mut cpu, &tokens) == twin, "{}", file.display());
    }
}

#[test]
fn other_block_types_are_requantized_with_a_note() {
    for (file, model, note) in [
        ("gpt2-q4_0", "gpt2", "9 tensors of type q4_0 were requantized to q8_0"),
        ("llama-q5_0", "llama", "16 tensors of type q5_0 were requantized to q8_0"),
    ] {
        let tokens = expected(model).tokens;
        let checkpoint = Checkpoint::open(&golden(&format!("{file}.gguf"))).unwrap();
        let (mut cpu, notes) = Cpu::load(&checkpoint, &options(None)).unwrap();
        assert_eq!(notes, [note]);
        // Against the same file in full precision: only our second quantization differs.
        let exact = all_logits(&mut Cpu::load(&checkpoint, &options(Quant::F32)).unwrap().0, &tokens);
        let held = all_logits(&mut cpu, &tokens);
        let share = relative_error(&exact, &held);
        println!("{file}: relative error {share:e}");
        assert!(share > 0.0 && share <= 0.08, "{file}: relative error {share}");
        // And it is the same model: four or five bits are not far from all.
        let full = all_logits(&mut load(&golden(model), &options(None)), &tokens);
        let share = relative_error(&full, &exact);
        println!("{file}: relative error to the f32 model {share:e}");
        assert!(share <= 0.5, "{file}: relative error {share}");
    }
}

/// Rewrites a golden model's file: `convert` gives each tensor's type and bytes.
fn rewrite(model: &str, to: &Path, convert: impl Fn(&[f32]) -> (Dtype, Vec<u8>)) {
    std::fs::copy(golden(model).join("config.json"), to.join("config.json")).unwrap();
    let bytes = std::fs::read(golden(model).join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let converted: HashMap<String, (Dtype, Vec<usize>, Vec<u8>)> = file
        .iter()
        .map(|(name, view)| {
            let numbers: Vec<f32> =
                view.data().chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
            let (dtype, bytes) = convert(&numbers);
            (name.to_owned(), (dtype, view.shape().to_vec(), bytes))
        })
        .collect();
    let views = converted.iter().map(|(n, (d, s, b))| (n.clone(), TensorView::new(*d, s.clone(), b).unwrap()));
    safetensors::serialize_to_file(views, None, &to.join("model.safetensors")).unwrap();
}

#[test]
fn sixteen_bit_models_load_exactly() {
    for model in MODELS {
        let tokens = expected(model).tokens;
        let folder = tempfile::tempdir().unwrap();
        rewrite(model, folder.path(), |n| {
            (Dtype::F16, n.iter().flat_map(|v| half::f16::from_f32(*v).to_le_bytes()).collect())
        });
        let halves = all_logits(&mut load(folder.path(), &options(None)), &tokens);
        let full = all_logits(&mut load(&golden(model), &options(None)), &tokens);
        assert!(relative_error(&full, &halves) <= 0.004, "{model}");

        let folder = tempfile::tempdir().unwrap();
        rewrite(model, folder.path(), |n| {
            (Dtype::BF16, n.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect())
        });
        let (mut cpu, notes) = Cpu::load(&Checkpoint::open(folder.path()).unwrap(), &options(None)).unwrap();
        assert!(notes.len() == 1 && notes[0].ends_with("of type bf16 are held as f32, which is exact"), "{notes:?}");
        // The same numbers written in full.
        let twin = tempfile::tempdir().unwrap();
        rewrite(model, twin.path(), |n| {
            let round = |v: &f32| half::bf16::from_f32(*v).to_f32().to_le_bytes();
            (Dtype::F32, n.iter().flat_map(round).collect())
        });
        assert!(all_logits(&mut cpu, &tokens) == all_logits(&mut load(twin.path(), &options(None)), &tokens));
    }
}

#[test]
fn sharded_checkpoint_is_one_model() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("llama").join("config.json"), folder.path().join("config.json")).unwrap();
    let bytes = std::fs::read(golden("llama").join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names: Vec<String> = file.names().into_iter().map(str::to_owned).collect();
    names.sort();
    let mut map = serde_json::Map::new();
    for (shard, part) in names.chunks(7).enumerate() {
        let name = format!("model-{shard}.safetensors");
        let views = part.iter().map(|n| (n.clone(), file.tensor(n).unwrap()));
        safetensors::serialize_to_file(views, None, &folder.path().join(&name)).unwrap();
        map.extend(part.iter().map(|n| (n.clone(), name.clone().into())));
    }
    assert!(map.len() > 14, "several shards");
    let index = folder.path().join("model.safetensors.index.json");
    std::fs::write(&index, serde_json::json!({"metadata": {}, "weight_map": map}).to_string()).unwrap();
    let tokens = expected("llama").tokens;
    let whole = all_logits(&mut load(&golden("llama"), &options(None)), &tokens);
    assert!(all_logits(&mut load(folder.path(), &options(None)), &tokens) == whole);

    // An index that names a tensor that its file lacks, and one that leads out of the folder.
    let first = map.iter().next().map(|(n, _)| n.clone()).unwrap();
    for (elsewhere, cause) in [
        ("model-1.safetensors", "the index names this file, but the tensor is not in it"),
        ("../model-0.safetensors", "is not a plain file name"),
        ("absent.safetensors", "read "),
    ] {
        let mut map = map.clone();
        map.insert(first.clone(), elsewhere.into());
        std::fs::write(&index, serde_json::json!({"weight_map": map}).to_string()).unwrap();
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(cause), "{error}");
    }
}

#[test]
fn gguf_file_includes_its_tokenizer() {
    let checkpoint = Checkpoint::open(&golden("gpt2-q4_0.gguf")).unwrap();
    let vocabulary = checkpoint.vocabulary().unwrap().unwrap();
    assert_eq!(vocabulary.model, "gpt2");
    assert_eq!(vocabulary.pre.as_deref(), Some("gpt-2"));
    assert_eq!(vocabulary.tokens.len(), 97);
    assert_eq!(vocabulary.tokens[5], "token5");
    assert_eq!(vocabulary.types[..2], [3, 1]);
    assert_eq!(vocabulary.merges, ["t o", "to k"]);
    assert_eq!((vocabulary.bos, vocabulary.eos, vocabulary.unknown), (Some(0), Some(0), None));
    assert_eq!(vocabulary.add_bos, Some(false));
    assert_eq!(vocabulary.chat_template.as_deref(), Some("{{ messages }}"));
    assert!(Checkpoint::open(&golden("gpt2")).unwrap().vocabulary().unwrap().is_none());
}
