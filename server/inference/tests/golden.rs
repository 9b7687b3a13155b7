//! Our logits beside those of the `transformers` library, and the same model from every kind of file.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use std::collections::HashMap;
use std::path::Path;
use support::*;
use textnlp_inference::cpu::{Cpu, Footprint, LoadOptions, Quant, check_values};
use textnlp_inference::executor::{Executor, LogitRows, RowSpan};
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
fn greedy_tokens_match_the_transformers_library() {
    for model in MODELS {
        let Expected { tokens, greedy: expected, .. } = expected(model);
        let found = greedy(&mut load(&golden(model), &options(None)), &tokens, expected.len());
        assert_eq!(found, expected, "{model}");
    }
}

/// The model `llama` with another configuration.
fn llama_with(config: &serde_json::Value) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(golden("llama").join("model.safetensors"), folder.path().join("model.safetensors")).unwrap();
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    folder
}

/// A file of `tests/golden/rope`.
fn rotation(name: &str) -> Expected {
    serde_json::from_slice(&std::fs::read(golden("rope").join(format!("{name}.json"))).unwrap()).unwrap()
}

#[test]
fn scaled_rotations_match_the_transformers_library() {
    let plain = all_logits(&mut load(&golden("llama"), &options(None)), &rotation("linear").tokens);
    let mut seen = 0;
    for file in std::fs::read_dir(golden("rope")).unwrap() {
        let name = file.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned();
        let rope = rotation(&name);
        let folder = llama_with(&rope.config);
        let mut cpu = load(folder.path(), &LoadOptions { context: rope.context, ..options(None) });
        let ours = all_logits(&mut cpu, &rope.tokens);
        let at: Vec<_> = rope.positions.iter().map(|p| ours[*p].clone()).collect();
        let (difference, largest) = (largest_difference(&at, &rope.logits), largest(&rope.logits));
        println!("{name}: largest difference {difference:e} of {largest}");
        assert!(difference <= 1e-4 * largest, "{name}: {difference} of {largest}");
        assert_eq!(greedy(&mut cpu, &rope.tokens, rope.greedy.len()), rope.greedy, "{name}");
        if rope.context.is_none() {
            assert_eq!(ours == plain, name == "linear-one", "{name}: only a factor of 1 changes nothing");
        }
        seen += 1;
    }
    assert_eq!(seen, 9);
}

/// A value of a GGUF file's metadata.
enum Key<'a> {
    Float(f32),
    Whole(u32),
    Text(&'a str),
}

/// The bytes of `llama-q8_0.gguf` with more keys and, if given, `rope_freqs.weight`.
fn gguf_with(keys: &[(&str, Key<'_>)], factors: Option<&[f32]>) -> Vec<u8> {
    let whole = std::fs::read(golden("llama-q8_0.gguf")).unwrap();
    let text = |t: &str| [&(t.len() as u64).to_le_bytes(), t.as_bytes()].concat();
    let entry = |name: &str, value: &Key<'_>| match value {
        Key::Whole(n) => [text(name), 4u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat(),
        Key::Float(n) => [text(name), 6u32.to_le_bytes().to_vec(), n.to_le_bytes().to_vec()].concat(),
        Key::Text(t) => [text(name), 8u32.to_le_bytes().to_vec(), text(t)].concat(),
    };
    let first = text("token_embd.weight");
    let table = whole.windows(first.len()).position(|w| w == first).unwrap();
    let data = header_length(&whole).next_multiple_of(32);
    let mut added: Vec<u8> = keys.iter().flat_map(|(name, value)| entry(name, value)).collect();
    let tensor = factors.map_or(Vec::new(), |factors| {
        let offset = (whole.len() - data).next_multiple_of(32) as u64;
        let (dimensions, kind) = (1u32.to_le_bytes(), 0u32.to_le_bytes());
        let length = (factors.len() as u64).to_le_bytes();
        [&text("rope_freqs.weight")[..], &dimensions, &length, &kind, &offset.to_le_bytes()].concat()
    });
    // The data moves by a multiple of its alignment.
    let empty = entry("padding", &Key::Text("")).len();
    let pad = (added.len() + empty + tensor.len()).next_multiple_of(32) - (added.len() + empty + tensor.len());
    added.extend(entry("padding", &Key::Text(&"-".repeat(pad))));
    let mut bytes = [&whole[..24], &added, &whole[24..table], &tensor, &whole[table..]].concat();
    let count = |at: usize| u64::from_le_bytes(whole[at..at + 8].try_into().unwrap());
    bytes[8..16].copy_from_slice(&(count(8) + factors.is_some() as u64).to_le_bytes());
    bytes[16..24].copy_from_slice(&(count(16) + keys.len() as u64 + 1).to_le_bytes());
    if let Some(factors) = factors {
        bytes.resize(bytes.len().next_multiple_of(32), 0);
        bytes.extend(factors.iter().flat_map(|f| f.to_le_bytes()));
    }
    bytes
}

#[test]
fn gguf_with_an_alignment_that_is_no_power_of_two_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("aligned.gguf");
    for alignment in [Key::Whole(0), Key::Whole(3), Key::Whole(1 << 17), Key::Text("32")] {
        std::fs::write(&path, gguf_with(&[("general.alignment", alignment)], None)).unwrap();
        let why = Checkpoint::open(&path).unwrap_err().to_string();
        assert!(why.contains("`general.alignment`") && why.contains("is not a power of two"), "{why}");
    }
}

#[test]
fn gguf_names_scaled_rotations_as_llama_cpp_does() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rope.gguf");
    let run = |keys: &[(&str, Key<'_>)], factors: Option<&[f32]>| {
        std::fs::write(&path, gguf_with(keys, factors)).unwrap();
        let checkpoint = Checkpoint::open(&path)?;
        Ok::<_, textnlp_inference::format::FormatError>(all_logits(
            &mut Cpu::load(&checkpoint, &options(None))?.0,
            &rotation("linear").tokens,
        ))
    };
    let twin = |name: &str| {
        let rope = rotation(name);
        all_logits(&mut load(llama_with(&rope.config).path(), &options(Quant::Q8_0)), &rope.tokens)
    };
    let kind = |kind| ("llama.rope.scaling.type", Key::Text(kind));
    let factor = |factor| ("llama.rope.scaling.factor", Key::Float(factor));
    let original = || ("llama.rope.scaling.original_context_length", Key::Whole(24));
    let linear = twin("linear");
    assert!(run(&[factor(3.0)], None).unwrap() == linear, "a factor without a type");
    assert!(run(&[("llama.rope.scale_linear", Key::Float(3.0))], None).unwrap() == linear, "the older key");
    assert!(run(&[kind("linear"), factor(3.0)], None).unwrap() == linear);
    assert!(run(&[kind("yarn"), factor(4.0), original()], None).unwrap() == twin("yarn"));
    let plain = twin("linear-one");
    for keys in [vec![], vec![factor(1.0)], vec![factor(0.0)], vec![kind("none"), factor(3.0)]] {
        assert!(run(&keys, None).unwrap() == plain);
    }
    // Llama 3.1's rule as divisors: of the four waves of 8 dimensions the first is kept.
    let waves = [0, 1, 2, 3].map(|i| std::f64::consts::TAU * 5000f64.powf(f64::from(i) / 4.0));
    let divisors = waves.map(|wave| {
        let kept = ((32.0 / wave - 1.0) / 3.0).clamp(0.0, 1.0);
        (1.0 / ((1.0 - kept) / 8.0 + kept)) as f32
    });
    assert!(divisors[0] == 1.0 && divisors[3] == 8.0, "{divisors:?}");
    let llama3 = twin("llama3");
    let share = relative_error(&llama3, &run(&[], Some(&divisors)).unwrap());
    assert!(share < 0.01 && relative_error(&llama3, &plain) > 0.02, "{share}");
    let refused = |keys: &[(&str, Key<'_>)], factors: Option<&[f32]>| run(keys, factors).unwrap_err().to_string();
    assert!(refused(&[], Some(&[1.0; 3])).contains("there are 3 rotary factors for 4 frequencies"));
    assert!(refused(&[], Some(&[1.0, 1.0, 0.0, 1.0])).contains("a base or factor of the rotations is 0"));
    assert!(refused(&[kind("dynamic"), factor(2.0)], None).contains("`dynamic` is not supported; none, linear, yarn"));
    assert!(refused(&[kind("yarn"), factor(2.0)], Some(&[1.0; 4])).contains("`yarn` with rotary factors"));
}

#[test]
fn fewer_bits_stay_close_to_full_precision() {
    for model in MODELS {
        let tokens = expected(model).tokens;
        let full = all_logits(&mut load(&golden(model), &options(None)), &tokens);
        // Noise weights of width 32 and sharp attention: a trained model of usual width is closer by far.
        for (quant, bound) in [(Quant::F16, 0.004), (Quant::Q8_0, 0.08), (Quant::Q4_0, 0.8)] {
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
        for quant in Quant::ALL {
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
    let others = ["qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "phi3-long", "olmo2", "starcoder2"];
    let others = others.map(|model| (format!("{model}-f16"), model, Quant::F16));
    let first = [("gpt2-f16".to_owned(), "gpt2", Quant::F16), ("llama-q8_0".to_owned(), "llama", Quant::Q8_0)];
    for (file, model, quant) in first.into_iter().chain(others) {
        let tokens = expected(model).tokens;
        let file = golden(&format!("{file}.gguf"));
        let (mut cpu, notes) = Cpu::load(&Checkpoint::open(&file).unwrap(), &options(None)).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        let twin = all_logits(&mut load(&golden(model), &options(quant)), &tokens);
        assert!(all_logits(&mut cpu, &tokens) == twin, "{}", file.display());
    }
}

#[test]
fn block_types_are_held_as_the_file_has_them() {
    for (file, model) in [("gpt2-q4_0", "gpt2"), ("llama-q5_0", "llama")] {
        let tokens = expected(model).tokens;
        let checkpoint = Checkpoint::open(&golden(&format!("{file}.gguf"))).unwrap();
        let (mut cpu, notes) = Cpu::load(&checkpoint, &options(None)).unwrap();
        assert_eq!(notes, Vec::<String>::new());
        let bytes = cpu.memory().weights;
        // Against the same file in full precision: only the quantization of activations differs.
        let exact = all_logits(&mut Cpu::load(&checkpoint, &options(Quant::F32)).unwrap().0, &tokens);
        let held = all_logits(&mut cpu, &tokens);
        let share = relative_error(&exact, &held);
        println!("{file}: relative error {share:e}");
        assert!(share > 0.0 && share <= 0.08, "{file}: relative error {share}");
        // Requantized on request, with a note and with a larger error.
        let (mut cpu, notes) = Cpu::load(&checkpoint, &options(Quant::Q8_0)).unwrap();
        assert!(notes.len() == 2 && notes[0].ends_with("were requantized to q8_0"), "{notes:?}");
        assert!(notes[1].starts_with("weights were quantized to q8_0 with a relative error of 0."), "{notes:?}");
        assert!(bytes < cpu.memory().weights, "{file}: {bytes} bytes");
        println!("{file}: relative error in q8_0 {:e}", relative_error(&exact, &all_logits(&mut cpu, &tokens)));
        // And it is the same model: four or five bits are not far from all.
        let full = all_logits(&mut load(&golden(model), &options(None)), &tokens);
        let share = relative_error(&full, &exact);
        println!("{file}: relative error to the f32 model {share:e}");
        assert!(share <= 0.5, "{file}: relative error {share}");
    }
}

#[test]
fn four_bits_are_made_at_load() {
    let error = |note: &str| {
        let share = note.strip_prefix("weights were quantized to q4_0 with a relative error of ").unwrap();
        share.strip_suffix(" %").unwrap().parse::<f64>().unwrap()
    };
    for model in MODELS {
        let checkpoint = Checkpoint::open(&golden(model)).unwrap();
        let held = |quant| Cpu::load(&checkpoint, &options(quant)).unwrap();
        let (small, notes) = held(Quant::Q4_0);
        assert_eq!(notes.len(), 1, "{model}: {notes:?}");
        // The tables in 8 bits are a large part of such small models.
        assert!((3.0..9.5).contains(&error(&notes[0])), "{model}: {notes:?}");
        let measured = check_values(&checkpoint, Some(Quant::Q4_0)).unwrap().unwrap();
        assert!((100.0 * measured - error(&notes[0])).abs() < 0.006, "{model}: {measured}");
        assert!(small.memory().weights < held(Quant::Q8_0).0.memory().weights, "{model}");
        assert_eq!(check_values(&checkpoint, None).unwrap(), None, "{model}: nothing is quantized");
    }
    // Blocks of no more bits stay; others are made smaller, but the head and the token table stay as they are.
    for (file, notes_of) in [("gpt2-q4_0", 0), ("llama-q5_0", 2), ("llama-q8_0", 2)] {
        let checkpoint = Checkpoint::open(&golden(&format!("{file}.gguf"))).unwrap();
        let (mut own, _) = Cpu::load(&checkpoint, &options(None)).unwrap();
        let (mut small, notes) = Cpu::load(&checkpoint, &options(Quant::Q4_0)).unwrap();
        assert_eq!(notes.len(), notes_of, "{file}: {notes:?}");
        let tokens = &expected(file.split('-').next().unwrap()).tokens;
        if notes_of == 0 {
            assert!(all_logits(&mut own, tokens) == all_logits(&mut small, tokens), "{file}");
            continue;
        }
        assert!(notes[0].starts_with("14 tensors") && notes[0].ends_with("were requantized to q4_0"), "{notes:?}");
        assert!(error(&notes[1]) > 1.0, "{notes:?}");
        assert!(small.memory().weights < own.memory().weights, "{file}");
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
        assert_eq!(notes, Vec::<String>::new());
        // The same numbers written in full.
        let twin = tempfile::tempdir().unwrap();
        rewrite(model, twin.path(), |n| {
            let round = |v: &f32| half::bf16::from_f32(*v).to_f32().to_le_bytes();
            (Dtype::F32, n.iter().flat_map(round).collect())
        });
        let mut wide = load(twin.path(), &options(None));
        let wanted = all_logits(&mut wide, &tokens);
        assert!(all_logits(&mut cpu, &tokens) == wanted, "{model}");
        // In half of the memory: vectors and tables of positions stay in f32.
        let (two, four) = (cpu.memory(), wide.memory());
        assert!(two.kv == four.kv && 10 * two.weights < 7 * four.weights, "{model}: {two:?} {four:?}");
        for isa in Isa::ALL.into_iter().filter(|isa| isa.is_here()) {
            let mut cpu = load(folder.path(), &LoadOptions { isa: Some(isa), ..options(None) });
            assert!(all_logits(&mut cpu, &tokens) == wanted, "{model}: {isa}");
        }
        // And on request as f32.
        assert!(all_logits(&mut load(folder.path(), &options(Quant::F32)), &tokens) == wanted, "{model}");
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
fn part_for_texts_of_a_model_with_images_is_that_model() {
    let whole = std::fs::read(golden("gemma3").join("model.safetensors")).unwrap();
    let data = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    let header: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&whole[8..data]).unwrap();
    let mut text: serde_json::Value =
        serde_json::from_slice(&std::fs::read(golden("gemma3").join("config.json")).unwrap()).unwrap();
    text.as_object_mut().unwrap().remove("model_type");
    let tokens = expected("gemma3").tokens;
    let plain = all_logits(&mut load(&golden("gemma3"), &options(None)), &tokens);
    for (base, images) in [("language_model.model.", "vision_tower."), ("model.language_model.", "model.vision_tower.")]
    {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &serde_json::Value| {
            let config = serde_json::json!({ "model_type": "gemma3", "text_config": text, "vision_config": {} });
            std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        };
        let renamed = header.iter().map(|(name, entry)| (name.replacen("model.", base, 1), entry.clone()));
        let mut header: serde_json::Map<_, _> = renamed.collect();
        let bytes = whole.len() - data;
        let image = serde_json::json!({ "dtype": "F32", "shape": [1], "data_offsets": [bytes, bytes + 4] });
        header.insert(format!("{images}embeddings.weight"), image);
        let header = serde_json::Value::Object(header).to_string();
        let length = (header.len() as u64).to_le_bytes();
        let file = [&length, header.as_bytes(), &whole[data..], &[0; 4]].concat();
        std::fs::write(folder.path().join("model.safetensors"), file).unwrap();
        write(&text);
        assert!(all_logits(&mut load(folder.path(), &options(None)), &tokens) == plain, "{base}");
        assert_eq!(textnlp_inference::format::family(folder.path()).unwrap(), "gemma3_text");
        // Checkpoints leave out what is the default of the class.
        let mut short = text.clone();
        short.as_object_mut().unwrap().remove("vocab_size");
        write(&short);
        let loaded = Checkpoint::open(folder.path()).and_then(|found| Cpu::load(&found, &options(None)).map(drop));
        let why = loaded.unwrap_err().to_string();
        assert!(why.contains("the configuration requires [262208, 24]"), "{why}");
        write(&serde_json::Value::Null);
        let why = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(why.contains("`text_config`: it is missing"), "{why}");
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

#[test]
fn memory_that_is_predicted_is_what_the_executor_holds() {
    let files = MODELS
        .iter()
        .map(|model| (*model).to_owned())
        .chain(["llama-q5_0.gguf", "gpt2-q4_0.gguf", "gpt2-f16.gguf"].map(str::to_owned));
    for (file, quant) in files.flat_map(|f| [None].into_iter().chain(Quant::ALL.map(Some)).map(move |q| (f.clone(), q)))
    {
        let checkpoint = Checkpoint::open(&golden(&file)).unwrap();
        let options = LoadOptions { quantize: quant, threads: 2, ..LoadOptions::default() };
        let predicted = Footprint::of(&checkpoint, &options).unwrap();
        let (mut cpu, _) = Cpu::load(&checkpoint, &options).unwrap();
        let held = cpu.memory();
        assert_eq!(held.weights, predicted.weights, "{file} {quant:?}");
        assert_eq!(held.kv, predicted.kv(predicted.usual_positions()), "{file} {quant:?}");
        // The longest sequence needs all of the workspace but the logits of the others.
        let context = cpu.shape().context;
        let tokens = vec![1; context];
        let seq = cpu.open(context).unwrap();
        cpu.step(&[RowSpan { seq, start: 0, tokens: &tokens, logits: LogitRows::Last }]).unwrap();
        let others = 31 * 4 * cpu.shape().vocab as u64;
        let (workspace, most) = (cpu.memory().workspace, predicted.workspace(2));
        assert!(workspace <= most && workspace + others >= most, "{file} {quant:?}: {workspace} of {most}");
        // And the room that is given is used.
        let bytes = predicted.least(2) + predicted.kv(64);
        let positions = predicted.positions_within(bytes, 2).unwrap();
        assert!(predicted.total(positions, 2) <= bytes && positions >= context + 32, "{file}: {positions}");
        assert_eq!(predicted.positions_within(predicted.least(2) - 1, 2), None);
    }
}
