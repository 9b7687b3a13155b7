//! Model files that lie: nothing panics, and nothing is allocated that the file's size does not justify.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::path::Path;
use support::{golden, header_length};
use textnlp_inference::cpu::{Cpu, LoadOptions};
use textnlp_inference::format::{Checkpoint, FormatError};
use textnlp_inference::text::Tokenizer;

/// Counts what this thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

fn count(bytes: isize) {
    // A thread that is going away has nothing to count.
    let _ = HELD.try_with(|held| {
        let now = held.get().0 + bytes;
        held.set((now, held.get().1.max(now)));
    });
}

// SAFETY: everything is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: as above.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Opens and, when that works, reads the tokenizer and loads. Checks what was allocated on the way.
fn try_file(path: &Path, size: usize) -> Result<(), FormatError> {
    HELD.with(|held| held.set((0, 0)));
    let outcome = Checkpoint::open(path).and_then(|checkpoint| {
        checkpoint.vocabulary()?;
        let options = LoadOptions { kv_positions: Some(32), threads: 1, ..LoadOptions::default() };
        // The scratch of a model is a few hundred rows of its widths, which the weights in the file bear out.
        Cpu::load(&checkpoint, &options).map(|_| ())
    });
    let most = HELD.with(|held| held.get().1);
    assert!(most <= 64 * size as isize + (8 << 20), "{most} bytes were held for a file of {size}");
    if let Err(error) = &outcome {
        let text = error.to_string();
        assert!(text.contains(&*path.parent().unwrap().to_string_lossy()), "the error names the file: {text}");
    }
    outcome
}

#[test]
fn long_text_is_split_in_bounded_memory() {
    let letters = ('!'..='~').chain("ĠĊ".chars()).enumerate().map(|(id, letter)| (letter.to_string(), id.into()));
    let vocab: serde_json::Map<String, serde_json::Value> = letters.collect();
    let by_bytes =
        serde_json::json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let json = serde_json::json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": by_bytes, "decoder": by_bytes,
        "model": { "type": "BPE", "vocab": vocab, "merges": [] },
    });
    let tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    assert!(tokenizer.splits_in_parts());
    // What a model with a context of 131072 tokens takes.
    for text in ["ab ".repeat(700_000), "the quick (brown) fox.\n".repeat(90_000), "x".repeat(2_000_000)] {
        HELD.with(|held| held.set((0, 0)));
        let ids = tokenizer.encode(&text, true).map(|ids| ids.len());
        let most = HELD.with(|held| held.get().1);
        println!("{:.20}: {ids:?}, {} kB", text.escape_default().to_string(), most / 1000);
        assert!(most <= 64_000_000, "{most} bytes were held for a text of {}", text.len());
        assert_eq!(ids.is_ok(), text.contains(' '));
    }
}

#[test]
fn truncated_gguf_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.gguf");
    let whole = std::fs::read(golden("llama-q8_0.gguf")).unwrap();
    let all_of_header = 0..header_length(&whole);
    for length in all_of_header.chain((0..60).map(|i| whole.len() - 32 - i * 300)) {
        std::fs::write(&path, &whole[..length]).unwrap();
        let error = try_file(&path, length).unwrap_err();
        assert!(!matches!(error, FormatError::Unsupported { .. }), "{length}: {error}");
    }
    std::fs::write(&path, &whole).unwrap();
    try_file(&path, whole.len()).unwrap();
}

#[test]
fn gguf_with_any_byte_changed_never_panics() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flip.gguf");
    let whole = std::fs::read(golden("llama-q8_0.gguf")).unwrap();
    let mut refused = 0;
    for at in 0..header_length(&whole) {
        let mut bytes = whole.clone();
        bytes[at] ^= [0x01, 0x80, 0xff][at % 3];
        std::fs::write(&path, &bytes).unwrap();
        refused += usize::from(try_file(&path, bytes.len()).is_err());
    }
    assert!(refused > 1000, "only {refused} changes were noticed");
}

#[test]
fn gguf_with_false_lengths_is_refused_without_allocating() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lie.gguf");
    let whole = std::fs::read(golden("llama-q8_0.gguf")).unwrap();
    let liars = [u64::MAX, u64::MAX / 2, 1 << 62, 1 << 40, 1 << 32, 1 << 31, 1 << 20, whole.len() as u64];
    for at in 4..header_length(&whole) - 8 {
        // Wherever eight bytes may be a length, a count, an offset or a dimension.
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&liars[at * 7 % liars.len()].to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let _ = try_file(&path, bytes.len());
    }
    for (at, cause) in [(8, "number of tensors"), (16, "number of keys"), (24, "bytes are expected")] {
        let mut bytes = whole.clone();
        bytes[at..at + 8].copy_from_slice(&(1u64 << 40).to_le_bytes());
        std::fs::write(&path, &bytes).unwrap();
        let error = try_file(&path, bytes.len()).unwrap_err().to_string();
        assert!(error.contains(cause) && error.contains("byte "), "{error}");
    }
}

#[test]
fn gguf_errors_are_reported_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("named.gguf");
    let whole = std::fs::read(golden("llama-q8_0.gguf")).unwrap();
    let find = |text: &str| {
        let places: Vec<_> = whole.windows(text.len()).enumerate().filter(|(_, w)| *w == text.as_bytes()).collect();
        places[0].0
    };
    let type_of = |tensor: &str| find(tensor) + tensor.len() + 4 + 16;
    let check = |at: usize, with: &[u8], says: &str| {
        let mut bytes = whole.clone();
        bytes[at..at + with.len()].copy_from_slice(with);
        std::fs::write(&path, &bytes).unwrap();
        let error = try_file(&path, bytes.len()).map_or_else(|e| e.to_string(), |()| "no error".to_owned());
        assert!(error.contains(says), "{says}: {error}");
    };
    check(0, b"GGML", "byte 0: this is not a GGUF file");
    check(4, &1u32.to_le_bytes(), "version 1 is not supported; 2 and 3 are");
    check(4, &[0, 0, 0, 3], "the file is big-endian");
    check(find("llama.block_count"), b"llama.block_xount", "`llama.block_count`: it is missing");
    check(find("blk.1.attn_q"), b"blk.1.attn_k", "the tensor `blk.1.attn_k.weight` is duplicated");
    check(find("llama.embedding_length"), b"llama.context_length\0\0", "`llama.embedding_length`: it is missing");
    check(type_of("blk.0.ffn_up.weight"), &16u32.to_le_bytes(), "its type is iq2_xxs, which is not supported");
    check(type_of("blk.0.ffn_up.weight"), &12u32.to_le_bytes(), "do not make whole blocks");
    check(type_of("blk.0.ffn_up.weight") + 4, &(1u64 << 40).to_le_bytes(), "tensor `blk.0.ffn_up.weight`: it ends at");
    check(type_of("blk.0.ffn_up.weight") + 4, &3u64.to_le_bytes(), "its offset is 3");
    // A scale that is not a number.
    let padding = (89 * 34usize).next_multiple_of(32) - 89 * 34;
    let data = whole.len() - padding - 10 * 34;
    check(data, &[0x00, 0x7e], "it holds scales that are not finite");
}

/// Writes a golden model's folder with other bytes in one of its files.
fn folder_with(model: &str, file: &str, bytes: &[u8]) -> (tempfile::TempDir, usize) {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden(model).join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join(file), bytes).unwrap();
    let size = std::fs::metadata(folder.path().join("model.safetensors")).unwrap().len();
    (folder, size as usize)
}

fn try_folder(model: &str, file: &str, bytes: &[u8]) -> Result<(), FormatError> {
    let (folder, size) = folder_with(model, file, bytes);
    try_file(&folder.path().join("."), size)
}

#[test]
fn truncated_or_changed_safetensors_never_panic() {
    let whole = std::fs::read(golden("llama-tied").join("model.safetensors")).unwrap();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in (0..header).chain((header..whole.len()).step_by(997)) {
        try_folder("llama-tied", "model.safetensors", &whole[..length]).unwrap_err();
    }
    for at in 0..header {
        let mut bytes = whole.clone();
        bytes[at] ^= [0x01, 0x04, 0x80][at % 3];
        let _ = try_folder("llama-tied", "model.safetensors", &bytes);
    }
    for lie in [u64::MAX, 1 << 40, whole.len() as u64, 99_000_000] {
        let mut bytes = whole.clone();
        bytes[..8].copy_from_slice(&lie.to_le_bytes());
        try_folder("llama-tied", "model.safetensors", &bytes).unwrap_err();
    }
    let values: Vec<String> = (0..1_100_000).map(|number| format!("\"{number}\":\"\"")).collect();
    let header = format!("{{\"__metadata__\":{{{}}}}}", values.join(","));
    let many = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let error = try_folder("llama-tied", "model.safetensors", &many).unwrap_err().to_string();
    assert!(error.contains("more than 1048576 values"), "{error}");
    let mut broken = whole.clone();
    let last = whole.len() - 4;
    broken[last..].copy_from_slice(&f32::NAN.to_le_bytes());
    let error = try_folder("llama-tied", "model.safetensors", &broken).unwrap_err().to_string();
    assert!(error.contains("tensor `") && error.contains("not finite"), "{error}");
}

#[test]
fn impossible_model_configurations_are_refused_by_name() {
    let check = |model: &str, key: &str, value: serde_json::Value, says: &str| {
        let text = std::fs::read(golden(model).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        config[key] = value;
        let error = try_folder(model, "config.json", config.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    };
    use serde_json::json;
    check("llama", "model_type", json!("mamba"), "`model_type`: `mamba` is not supported; gemma3, gpt2, llama,");
    check("llama", "hidden_act", json!("relu"), "`relu` is not supported");
    check("llama", "rope_scaling", json!({"rope_type": "su-scaled"}), "rotary embeddings of type `su-scaled`");
    check("llama", "rope_scaling", json!({"rope_type": "llama3", "factor": 8}), "`low_freq_factor`: it is missing");
    check("llama", "rope_scaling", json!({"type": "linear", "factor": 0.0}), "a base or factor of the rotations is 0");
    check("llama", "rope_scaling", json!({"type": "linear", "factor": -2}), "a base or factor of the rotations is -2");
    check("llama", "rope_scaling", json!({"type": "dynamic", "factor": 1e30}), "context is");
    check("llama", "rope_scaling", json!({"type": "yarn", "factor": "4"}), "`factor`: it is not a number");
    let factors = json!({"type": "longrope", "short_factor": [1.0], "long_factor": [1.0, 2.0]});
    check("llama", "rope_scaling", factors, "there are 1 rotary factors for 4 frequencies");
    check("phi3", "rope_parameters", json!({"partial_rotary_factor": 1.5}), "`partial_rotary_factor`: it is 1.5");
    check("mistral", "sliding_window", json!(0), "a window of attention has no positions");
    check("qwen3-window", "layer_types", json!(["chunked_attention"]), "`chunked_attention` is not supported");
    check("gemma2", "attn_logit_softcapping", json!(-1.0), "a factor or cap of attention or logits is -1");
    check("gemma2", "use_bidirectional_attention", json!(true), "`use_bidirectional_attention`: it is not supported");
    check("gemma3", "model_type", json!("gemma3n"), "`gemma3n` is not supported; gemma3, gpt2");
    check("gemma3", "model_type", json!("gemma3"), "`text_config`: it is missing");
    check("gemma3", "model_type", json!(3), "`model_type`: it is not a text");
    check("llama", "rms_norm_eps", json!(-1e-5), "the epsilon of its norms is -0.00001");
    check("llama", "rms_norm_eps", json!(1e30), "the epsilon of its norms is");
    check("qwen2", "model_type", json!("qwen3"), "q_norm.weight`: it is missing");
    check("llama", "model_type", json!("qwen2"), "q_proj.bias`: it is missing");
    check("llama", "hidden_size", json!(null), "`hidden_size`: it is missing");
    check("llama", "hidden_size", json!(-1), "config.json");
    check("llama", "num_attention_heads", json!(0), "heads is 0");
    check("llama", "num_key_value_heads", json!(3), "4 heads cannot share 3 key heads");
    check("llama", "num_hidden_layers", json!(1_000_000_000), "layers is 1000000000");
    check("llama", "num_hidden_layers", json!(3), "`model.layers.2.self_attn.q_proj.weight`: it is missing");
    check("llama", "vocab_size", json!(90), "its shape is [89, 32], but the configuration requires [90, 32]");
    check("llama", "head_dim", json!(7), "cannot be rotated");
    check("gpt2", "n_head", json!(5), "5 heads do not divide a width of 32");
    check("gpt2", "activation_function", json!("relu"), "`relu` is not supported; `gelu_new` is");
    check("gpt2", "n_positions", json!(4_000_000), "the configuration requires [4000000, 32]");
    try_folder("llama", "config.json", b"{").unwrap_err();
    let error = try_folder("gpt2", "config.json", &[b'['; 100_000]).unwrap_err().to_string();
    assert!(error.contains("config.json"), "{error}");
}

#[test]
fn incomplete_model_directories_report_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let says = |text: &str| {
        let error = Checkpoint::open(folder.path()).unwrap_err().to_string();
        assert!(error.contains(text), "{error}");
    };
    says("the folder has neither `config.json` with `*.safetensors` nor a `*.gguf` file");
    std::fs::copy(golden("gpt2").join("config.json"), folder.path().join("config.json")).unwrap();
    says("there is no `*.safetensors` next to `config.json`");
    std::fs::remove_file(folder.path().join("config.json")).unwrap();
    std::fs::copy(golden("gpt2-f16.gguf"), folder.path().join("a.gguf")).unwrap();
    Checkpoint::open(folder.path()).unwrap();
    std::fs::copy(golden("gpt2-f16.gguf"), folder.path().join("b.gguf")).unwrap();
    says("the folder has 2 `.gguf` files");
    assert!(matches!(Checkpoint::open(&folder.path().join("absent")), Err(FormatError::Read { .. })));
}

/// A golden model's tensors with others added, removed or replaced, in a folder of its own.
fn with_tensors(model: &str, change: impl Fn(&mut BTreeMap<String, (Vec<usize>, Vec<f32>)>)) -> tempfile::TempDir {
    let bytes = std::fs::read(golden(model).join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let numbers = |data: &[u8]| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
    let mut tensors: BTreeMap<_, _> =
        file.iter().map(|(name, t)| (name.to_owned(), (t.shape().to_vec(), numbers(t.data())))).collect();
    change(&mut tensors);
    let data: BTreeMap<&String, Vec<u8>> =
        tensors.iter().map(|(name, (_, n))| (name, n.iter().flat_map(|v| v.to_le_bytes()).collect())).collect();
    let views = tensors.iter().map(|(name, (shape, _))| {
        (
            name.clone(),
            safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape.clone(), &data[name]).unwrap(),
        )
    });
    let (folder, _) = folder_with(model, "model.safetensors", &[]);
    safetensors::serialize_to_file(views, None, &folder.path().join("model.safetensors")).unwrap();
    folder
}

#[test]
fn incomplete_and_foreign_checkpoints_are_refused_by_name() {
    let check = |folder: &tempfile::TempDir, says: &str| {
        let error = Checkpoint::open(folder.path())
            .and_then(|checkpoint| Cpu::load(&checkpoint, &support::options(None)).map(drop))
            .map_or_else(|e| e.to_string(), |()| "no error".to_owned());
        assert!(error.contains(says), "{says}: {error}");
    };
    let name = |folder: &BTreeMap<String, (Vec<usize>, Vec<f32>)>, end: &str| {
        folder.keys().find(|name| name.ends_with(end)).unwrap().clone()
    };
    for bias in ["attn.c_attn.bias", "mlp.c_proj.bias"] {
        let missing = with_tensors("gpt2-odd", |t| drop(t.remove(&name(t, bias))));
        check(&missing, "bias`: it is missing");
    }
    let extra = |tensor: &'static str, length: usize| {
        with_tensors("llama", move |t| drop(t.insert(tensor.to_owned(), (vec![length], vec![0.5; length]))))
    };
    check(&extra("model.layers.0.self_attn.q_norm.weight", 8), "models of the family `llama` have no such tensor");
    check(
        &extra("model.layers.2.input_layernorm.weight", 32),
        "its layer is not in the model: the configuration has 2",
    );
    check(&extra("model.layers.0.self_attn.q_proj.bias", 32), "`attention_bias`: it is not true, but the model has");
    check(&extra("model.layers.1.mlp.down_proj.bias", 32), "`mlp_bias`: it is not true, but the model has");
    check(&extra("model.layers.0.self_attn.rotary_emb.inv_freq", 4), "no error");
    let config = |model: &str, key: &str, value: serde_json::Value, says: &str| {
        let text = std::fs::read(golden(model).join("config.json")).unwrap();
        let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
        config[key] = value;
        let error = try_folder(model, "config.json", config.to_string().as_bytes()).unwrap_err().to_string();
        assert!(error.contains(says), "{key}: {error}");
    };
    use serde_json::json;
    config("llama", "num_hidden_layers", json!(1), "its layer is not in the model: the configuration has 1 layers");
    config("llama", "quantization_config", json!({ "quant_method": "awq" }), "weights quantized by `awq`");
    config("llama", "rms_norm_eps", json!(-1e-5), "the epsilon of its norms is -0.00001");
    config("gpt2", "layer_norm_epsilon", json!(1e30), "the epsilon of its norms is");
}

#[test]
fn head_in_the_file_counts_whatever_the_configuration_says() {
    let tokens: Vec<u32> = (0..20).collect();
    let tied = support::all_logits(&mut support::load(&golden("llama-tied"), &support::options(None)), &tokens);
    let table = "model.embed_tokens.weight";
    let copy = with_tensors("llama-tied", |t| drop(t.insert("lm_head.weight".to_owned(), t[table].clone())));
    let checkpoint = Checkpoint::open(copy.path()).unwrap();
    assert!(checkpoint.architecture().tied);
    assert_eq!(checkpoint.parameters(), Checkpoint::open(&golden("llama-tied")).unwrap().parameters());
    assert!(support::all_logits(&mut support::load(copy.path(), &support::options(None)), &tokens) == tied);
    let other = with_tensors("llama-tied", |t| {
        let (shape, numbers) = t[table].clone();
        t.insert("lm_head.weight".to_owned(), (shape, numbers.iter().map(|v| 2.0 * v).collect()));
    });
    assert!(!Checkpoint::open(other.path()).unwrap().architecture().tied);
    let doubled = support::all_logits(&mut support::load(other.path(), &support::options(None)), &tokens);
    for (one, two) in tied.iter().flatten().zip(doubled.iter().flatten()) {
        assert!((2.0 * one - two).abs() <= 1e-5 * one.abs().max(1.0), "{one} {two}");
    }
}

#[test]
fn gguf_tensors_that_share_bytes_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("shared.gguf");
    let mut bytes = std::fs::read(golden("llama-q8_0.gguf")).unwrap();
    let name = b"blk.1.attn_norm.weight";
    let at = bytes.windows(name.len()).position(|window| window == name).unwrap();
    // Behind the name: one dimension, its size and the type.
    let offset = at + name.len() + 4 + 8 + 4;
    bytes[offset..offset + 8].copy_from_slice(&0u64.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = try_file(&path, bytes.len()).unwrap_err().to_string();
    assert!(error.contains("its bytes overlap those of `"), "{error}");
}
