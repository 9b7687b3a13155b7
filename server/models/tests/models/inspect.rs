//! What model folders say about themselves, and that the server serves what `inspect` passes.

use std::fs;
use std::path::Path;

use camino::{Utf8Path, Utf8PathBuf};
use serde_json::{Value, json};
use textnlp_inference::cpu::{Cpu, LoadOptions};
use textnlp_inference::files::ModelFiles;
use textnlp_models::{Error, Format, Memory, Summary, Want, WeightFormat, fit, inspect, inspect_as};

/// A model of the inference crate's tests, with a tokenizer.
struct Folder(tempfile::TempDir);

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../inference/tests/golden").join(name)
}

fn tokenizer() -> Value {
    let by_bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "added_tokens": [], "pre_tokenizer": by_bytes, "decoder": by_bytes,
        "model": { "type": "BPE", "vocab": { "a": 0, "b": 1, "c": 2, "ab": 3 }, "merges": ["a b"] },
    })
}

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    /// `llama-tied` or `gpt2-odd`, both of one layer.
    fn safetensors(model: &str) -> Folder {
        let folder = Folder::new();
        for name in ["config.json", "model.safetensors"] {
            folder.write(name, fs::read(golden(model).join(name)).unwrap());
        }
        folder.write("tokenizer.json", tokenizer().to_string());
        // GPT-2's own, which its library writes for any vocabulary, are beyond that of these models.
        folder.config("bos_token_id", json!(1)).config("eos_token_id", json!(2));
        folder
    }

    fn gguf(file: &str) -> Folder {
        let folder = Folder::new();
        folder.write("model.gguf", gguf(file));
        folder
    }

    fn path(&self) -> Utf8PathBuf {
        Utf8Path::from_path(self.0.path()).unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Folder {
        fs::write(self.path().join(name), content).unwrap();
        self
    }

    fn config(&self, key: &str, value: Value) -> &Folder {
        let mut config: Value = serde_json::from_slice(&fs::read(self.path().join("config.json")).unwrap()).unwrap();
        config[key] = value;
        self.write("config.json", config.to_string())
    }

    fn inspect(&self) -> Result<Summary, Error> {
        inspect(&self.path())
    }

    /// Refused by `inspect` and by the code that the server loads with, in the same words.
    fn refuses(&self, expect: &str) {
        let (inspected, loaded) = verdicts(&self.path());
        assert_eq!(inspected, loaded);
        let error = inspected.expect_err(expect);
        assert!(error.contains(expect), "{error}");
    }
}

/// The bytes of a file of the inference crate's tests. Its merges name tokens that it does not have: another key hides
/// them.
fn gguf(file: &str) -> Vec<u8> {
    let mut bytes = fs::read(golden(file)).unwrap();
    let key = b"tokenizer.ggml.merges";
    let at = bytes.windows(key.len()).position(|window| window == key).unwrap();
    bytes[at..at + key.len()].copy_from_slice(b"tokenizer.ggml.xerges");
    bytes
}

/// What `inspect` and the server's loader say. Both refuse, or none.
fn verdicts(path: &Utf8Path) -> (Result<(), String>, Result<(), String>) {
    let words = |error: &dyn std::error::Error| {
        let mut text = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            text = format!("{text}: {cause}");
            source = cause.source();
        }
        text
    };
    let inspected = inspect(path).map(drop).map_err(|error| words(&error));
    let options = LoadOptions { kv_positions: Some(32), threads: 1, ..LoadOptions::default() };
    let loaded = match ModelFiles::open(path.as_std_path()) {
        Ok(model) => Cpu::load(&model.checkpoint, &options).map(drop).map_err(|error| words(&error)),
        Err(error) => Err(words(&error)),
    };
    assert_eq!(inspected.is_ok(), loaded.is_ok(), "{path}: {inspected:?}, {loaded:?}");
    (inspected, loaded)
}

#[test]
fn models_are_summarised_without_buffers_and_copies() {
    let folder = Folder::safetensors("gpt2-odd");
    folder.write("tokenizer_config.json", r#"{"chat_template":"{{ x }}"}"#);
    let found = folder.inspect().unwrap();
    assert_eq!((found.family.as_str(), found.format, found.dtype.as_str()), ("gpt2", Format::Safetensors, "f32"));
    assert_eq!((found.layers, found.width, found.heads, found.kv_heads, found.head_dim), (1, 36, 3, 3, 12));
    assert_eq!((found.context, found.vocab, found.chat_template), (24, 101, Some(true)));
    assert_eq!(found.weights_bytes, 4 * found.parameters);
    assert!(serde_json::to_value(&found).unwrap().get("embeddings").is_none());
    assert_eq!(found.bytes, found.files.iter().map(|(_, bytes)| bytes).sum::<u64>());
    folder.write("tokenizer_config.json", r#"{"chat_template":null}"#);
    assert_eq!(folder.inspect().unwrap().chat_template, Some(false));

    let found = Folder::gguf("llama-q8_0.gguf").inspect().unwrap();
    assert_eq!((found.family.as_str(), found.format, found.dtype.as_str()), ("llama", Format::Gguf, "q8_0"));
    assert_eq!((found.layers, found.kv_heads, found.context, found.vocab), (2, 2, 96, 89));
    assert!(found.chat_template == Some(true) && found.weights_bytes < 2 * found.parameters);
}

#[test]
fn error_of_quantization_is_measured_for_the_format_that_is_asked_for() {
    let llama = Folder::safetensors("llama");
    let bert = Utf8PathBuf::from_path_buf(golden("bert")).unwrap();
    for path in [&llama.path(), &bert] {
        let error = |held| inspect_as(path, held).unwrap().quantization_error;
        assert_eq!((error(WeightFormat::AsIs), error(WeightFormat::F16)), (None, None), "{path}");
        let (eight, four) = (error(WeightFormat::Q8_0).unwrap(), error(WeightFormat::Q4_0).unwrap());
        assert!((0.002..0.01).contains(&eight) && (0.04..0.1).contains(&four), "{path}: {eight} {four}");
    }
    let found = llama.inspect().unwrap();
    assert!(serde_json::to_value(&found).unwrap().get("quantization_error").is_none());
    let four = Want { quantize: WeightFormat::Q4_0, context: None };
    let there = Memory { total: 1 << 40, available: 1 << 40, bound_by: String::new() };
    let held = |quantize| fit(&found, &Want { quantize, ..four }, &there).weights;
    assert!(held(WeightFormat::Q4_0) < held(WeightFormat::Q8_0) && held(WeightFormat::Q8_0) < held(WeightFormat::F16));
}

#[test]
fn encoders_are_told_from_models_that_generate_text() {
    let golden = Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("../inference/tests/golden");
    for (name, width, heads) in [("bert", 32, 2), ("roberta", 36, 3), ("xlm-roberta", 32, 2), ("distilbert", 32, 4)] {
        let found = inspect(&golden.join(name)).unwrap();
        assert_eq!((found.family.as_str(), found.embeddings, found.width, found.heads), (name, true, width, heads));
        let want = Want { quantize: WeightFormat::AsIs, context: None };
        let there = Memory { total: 1 << 40, available: 1 << 40, bound_by: String::new() };
        // Keys and values of one layer, for the longest text at least.
        assert!(fit(&found, &want, &there).kv >= 8 * width * found.context, "{name}");
        let shown = serde_json::to_value(&found).unwrap();
        assert_eq!(shown["embeddings"], true);
    }
}

#[test]
fn what_the_server_does_not_serve_is_refused_by_inspect_in_the_same_words() {
    let config = |model: &str, key: &str, value: Value, says: &str| {
        let folder = Folder::safetensors(model);
        folder.inspect().unwrap();
        folder.config(key, value).refuses(says);
    };
    config("llama-tied", "model_type", json!("mamba"), "`mamba` is not supported");
    config("llama-tied", "num_hidden_layers", json!(2), "it is missing");
    config("llama-tied", "hidden_act", json!("relu"), "`relu` is not supported");
    config("llama-tied", "vocab_size", json!(62), "its shape is [61, 48]");
    config("llama-tied", "rms_norm_eps", json!(-1.0), "the epsilon of its norms is -1");
    config("llama-tied", "rms_norm_eps", json!(1e30), "the epsilon of its norms is");
    config(
        "llama-tied",
        "quantization_config",
        json!({ "quant_method": "gptq", "bits": 4 }),
        "weights quantized by `gptq` are not supported",
    );
    config("gpt2-odd", "n_head", json!(0), "heads is 0");
    config("gpt2-odd", "eos_token_id", json!(50256), "its end token is 50256, but the model has 101 tokens");
    config("llama-tied", "bos_token_id", json!(61), "its first token is 61, but the model has 61 tokens");

    // A shard that is missing, with and without an index, and an index that names no file.
    let folder = Folder::safetensors("llama-tied");
    let shard = |number: u32| format!("model-{number:05}-of-00002.safetensors");
    fs::rename(folder.path().join("model.safetensors"), folder.path().join(shard(1))).unwrap();
    folder.refuses("`model-00002-of-00002.safetensors` is missing");
    let index = json!({ "weight_map": { "model.norm.weight": shard(1), "model.embed_tokens.weight": shard(2) } });
    folder.write("model.safetensors.index.json", index.to_string()).refuses("model-00002-of-00002.safetensors");
    folder.write("model.safetensors.index.json", r#"{"weight_map": {}}"#).refuses("`weight_map`: it is empty");
    folder.write("model.safetensors.index.json", "{}").refuses("weight_map");
    config("gpt2-odd", "n_positions", json!(4_000_000), "the configuration requires [4000000, 36]");
    config("gpt2-odd", "activation_function", json!("relu"), "`relu` is not supported");

    let tokenizer = |change: fn(&mut Value), says: &str| {
        let folder = Folder::safetensors("llama-tied");
        let mut json = tokenizer();
        change(&mut json);
        folder.write("tokenizer.json", json.to_string()).refuses(says);
    };
    tokenizer(|json| json["decoder"] = json!({ "type": "BPEDecoder", "suffix": "</w>" }), "decoder `BPEDecoder`");
    tokenizer(|json| json["model"] = json!({}), "invalid tokenizer");
    tokenizer(
        |json| {
            let longer = json!({ "type": "Replace", "pattern": { "String": "a" }, "content": "b".repeat(99) });
            json["normalizer"] = json!({ "type": "Sequence", "normalizers": [longer, { "type": "NFKD" }] })
        },
        "2178 times as long",
    );
    let folder = Folder::safetensors("llama-tied");
    fs::remove_file(folder.path().join("tokenizer.json")).unwrap();
    folder.refuses("has no tokenizer.json, which is required");
    folder.write("tokenizer.json", "{").refuses("tokenizer.json is not valid JSON");
    let empty = Folder::new();
    empty.refuses("neither `config.json` with `*.safetensors` nor a `*.gguf` file");
    Folder::gguf("llama-q8_0.gguf").write("config.json", "{}").inspect().unwrap();
    let unread = Folder::new();
    unread.write("model.gguf", fs::read(golden("llama-q8_0.gguf")).unwrap()).refuses("invalid tokenizer");
}

/// The damages of a file: cuts, flips and lies in its header, and values that are no numbers.
fn damages(whole: &[u8], header: usize) -> Vec<Vec<u8>> {
    let cuts = (0..header).step_by(header / 40 + 1).chain((header..whole.len()).step_by(whole.len() / 8 + 1));
    let mut damaged: Vec<Vec<u8>> = cuts.map(|at| whole[..at].to_vec()).collect();
    let mut change = |at: usize, bytes: &[u8]| {
        let mut copy = whole.to_vec();
        let end = (at + bytes.len()).min(copy.len());
        copy[at..end].copy_from_slice(&bytes[..end - at]);
        damaged.push(copy);
    };
    for at in (0..header).step_by(header / 120 + 1) {
        change(at, &[whole[at] ^ [0x01, 0x20, 0x80, 0xff][at % 4]]);
        change(at, &[0, u64::MAX, 1 << 40, 1 << 31][at % 4].to_le_bytes());
    }
    for at in (header.next_multiple_of(4)..whole.len() - 4).step_by(whole.len() / 12 + 4) {
        change(at, &f32::NAN.to_le_bytes());
        change(at, &[0x00, 0x7e]);
        change(at, &[0xff; 4]);
    }
    damaged
}

#[test]
fn damaged_files_are_refused_or_passed_by_inspect_and_the_server_alike() {
    let (mut passed, mut refused, mut differ) = (0, 0, 0);
    let mut count = |path: &Utf8Path| {
        let (inspected, loaded) = verdicts(path);
        passed += usize::from(inspected.is_ok());
        refused += usize::from(inspected.is_err());
        differ += usize::from(inspected != loaded);
    };
    for model in ["llama-tied", "gpt2-odd"] {
        let folder = Folder::safetensors(model);
        for (name, header) in [("model.safetensors", None), ("config.json", Some(())), ("tokenizer.json", Some(()))] {
            let whole = fs::read(folder.path().join(name)).unwrap();
            let header = match header {
                None => 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize,
                Some(()) => whole.len() - 5,
            };
            for damaged in damages(&whole, header) {
                folder.write(name, damaged);
                count(&folder.path());
            }
            folder.write(name, whole);
        }
        assert!(folder.inspect().is_ok());
    }
    for file in ["llama-q8_0.gguf", "gpt2-f16.gguf"] {
        let folder = Folder::gguf(file);
        let whole = gguf(file);
        // Most of these small files is their header.
        for damaged in damages(&whole, whole.len() / 3) {
            folder.write("model.gguf", damaged);
            count(&folder.path());
        }
    }
    assert!(passed > 50 && refused > 500, "{passed} passed, {refused} refused");
    // Of several problems of one file, each may name another.
    assert!(differ * 20 < refused, "{differ} of {refused} are refused in other words");
}
