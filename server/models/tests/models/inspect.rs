//! What model folders say about themselves, and lies in their headers.

use std::fs;

use camino::{Utf8Path, Utf8PathBuf};
use textnlp_models::{Error, Format, Summary, inspect};

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Folder {
        Folder(tempfile::tempdir().unwrap())
    }

    fn path(&self) -> Utf8PathBuf {
        Utf8Path::from_path(self.0.path()).unwrap().to_owned()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> &Folder {
        fs::write(self.path().join(name), content).unwrap();
        self
    }

    fn inspect(&self) -> Result<Summary, Error> {
        inspect(&self.path())
    }

    fn refuses(&self, expect: &str) {
        let error = self.inspect().unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    }
}

const GPT2: &str = r#"{"model_type":"gpt2","n_layer":2,"n_embd":8,"n_head":2,"n_positions":16,"vocab_size":10}"#;

const WORDS: &str = r#"{"model":{"type":"BPE","vocab":{"a":0},"merges":[]}}"#;

fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header.as_bytes());
    file.resize(file.len() + data, 0);
    file
}

#[test]
fn hugging_face_model_summary_excludes_buffers_and_tied_weights() {
    let header = r#"{"__metadata__":{"format":"pt"},
        "wte.weight":{"dtype":"F16","shape":[10,8],"data_offsets":[0,160]},
        "lm_head.weight":{"dtype":"F16","shape":[10,8],"data_offsets":[0,160]},
        "h.0.attn.bias":{"dtype":"F32","shape":[1,1,16,16],"data_offsets":[160,1184]},
        "h.0.ln_1.weight":{"dtype":"F32","shape":[8],"data_offsets":[1184,1216]}}"#;
    let folder = Folder::new();
    folder
        .write("config.json", GPT2)
        .write("model.safetensors", safetensors(header, 1216))
        .write("tokenizer.json", WORDS);
    folder.write("tokenizer_config.json", r#"{"chat_template":"{{ x }}"}"#);
    let found = folder.inspect().unwrap();
    assert_eq!((found.family.as_str(), found.format, found.dtype.as_str()), ("gpt2", Format::Safetensors, "f16"));
    assert_eq!((found.parameters, found.weights_bytes), (88, 192));
    assert_eq!((found.layers, found.width, found.heads, found.kv_heads, found.head_dim), (2, 8, 2, 2, 4));
    assert_eq!((found.context, found.vocab, found.chat_template), (16, 10, true));
    assert_eq!(found.bytes, found.files.iter().map(|(_, bytes)| bytes).sum::<u64>());
    folder.write("tokenizer_config.json", r#"{"chat_template":null}"#);
    assert!(!folder.inspect().unwrap().chat_template);
}

#[test]
fn invalid_safetensors_headers_are_refused() {
    let with = |file: Vec<u8>| {
        let folder = Folder::new();
        folder.write("config.json", GPT2).write("model.safetensors", file);
        folder
    };
    with(vec![1, 2, 3]).refuses("too short for a header");
    with(u64::MAX.to_le_bytes().to_vec()).refuses("its header declares 18446744073709551615 bytes");
    with(safetensors("{", 0)).refuses("its header cannot be read");
    let tensor = |text: &str| with(safetensors(&format!("{{\"w\":{text}}}"), 100));
    tensor(r#"{"dtype":"F32","shape":[25],"data_offsets":[0,101]}"#)
        .refuses("tensor w: it declares the bytes 0 to 101 of 100");
    tensor(r#"{"dtype":"F32","shape":[25],"data_offsets":[50,20]}"#)
        .refuses("tensor w: it declares the bytes 50 to 20");
    tensor(r#"{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,100]}"#).refuses("shape is impossible");
    tensor(r#"{"dtype":"F32"}"#).refuses("missing field");
}

#[test]
fn impossible_model_configuration_values_are_refused() {
    let with = |config: String| {
        let folder = Folder::new();
        folder.write("config.json", config).write("model.safetensors", safetensors("{}", 0));
        folder
    };
    with(GPT2.replace("\"n_head\":2", "\"n_head\":0")).refuses("num_attention_heads is 0");
    with(GPT2.replace("\"n_layer\":2", "\"n_layer\":99999999999")).refuses("num_hidden_layers is 99999999999");
    with(GPT2.replace("\"n_layer\":2,", "")).refuses("missing field");
    with("[]".to_owned()).refuses("config.json is corrupt");
    let empty = Folder::new();
    empty.refuses("neither config.json with *.safetensors nor exactly one .gguf");
}

#[test]
fn model_without_a_usable_tokenizer_is_refused() {
    let with = |tokenizer: Option<&str>| {
        let folder = Folder::new();
        folder.write("config.json", GPT2).write("model.safetensors", safetensors("{}", 0));
        tokenizer.map(|text| folder.write("tokenizer.json", text));
        folder
    };
    with(None).refuses("it has no tokenizer.json");
    with(Some("{")).refuses("tokenizer.json is corrupt: it is not a tokenizer");
    with(Some(r#"{"model":{}}"#)).refuses("tokenizer.json is corrupt: it is not a tokenizer");
    with(Some(r#"{"model":{"vocab":{}}}"#)).refuses("it has no tokens");
    assert!(with(Some(WORDS)).inspect().is_ok());
    assert!(with(Some(r#"{"model":{"type":"Unigram","vocab":[["a",0.5]]}}"#)).inspect().is_ok());
}

/// A GGUF header with these keys and tensors.
struct Gguf(Vec<u8>);

impl Gguf {
    fn new(tensors: u64, keys: u64) -> Gguf {
        let mut file = b"GGUF".to_vec();
        file.extend(3u32.to_le_bytes());
        file.extend(tensors.to_le_bytes());
        file.extend(keys.to_le_bytes());
        Gguf(file)
    }

    fn text(mut self, text: &str) -> Gguf {
        self.0.extend((text.len() as u64).to_le_bytes());
        self.0.extend(text.as_bytes());
        self
    }

    fn number(mut self, number: u32) -> Gguf {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn long(mut self, number: u64) -> Gguf {
        self.0.extend(number.to_le_bytes());
        self
    }

    fn size(self, key: &str, value: u32) -> Gguf {
        self.text(key).number(4).number(value)
    }

    fn tensor(self, name: &str, sides: [u64; 2], kind: u32, offset: u64) -> Gguf {
        self.text(name).number(2).long(sides[0]).long(sides[1]).number(kind).long(offset)
    }

    fn llama() -> Gguf {
        Gguf::new(2, 9)
            .text("general.architecture")
            .number(8)
            .text("llama")
            .size("llama.block_count", 2)
            .size("llama.embedding_length", 64)
            .size("llama.attention.head_count", 4)
            .size("llama.attention.head_count_kv", 2)
            .size("llama.context_length", 128)
            .text("tokenizer.chat_template")
            .number(8)
            .text("{{ x }}")
            // Five tokens: a list of texts.
            .text("tokenizer.ggml.tokens")
            .number(9)
            .number(8)
            .long(5)
            .text("a")
            .text("b")
            .text("c")
            .text("d")
            .text("e")
            .text("general.license")
            .number(8)
            .text("mit")
    }
}

fn gguf(mut file: Gguf, data: usize) -> Folder {
    let folder = Folder::new();
    file.0.resize(file.0.len() + data, 0);
    folder.write("model.gguf", file.0);
    folder
}

#[test]
fn gguf_model_is_summarised() {
    let file = Gguf::llama().tensor("token_embd.weight", [64, 5], 8, 0).tensor("w", [64, 64], 0, 352);
    let found = gguf(file, 352 + 4 * 4096).inspect().unwrap();
    assert_eq!((found.family.as_str(), found.format), ("llama", Format::Gguf));
    assert_eq!((found.layers, found.width, found.heads, found.kv_heads, found.head_dim), (2, 64, 4, 2, 16));
    assert_eq!((found.context, found.vocab, found.chat_template), (128, 5, true));
    assert_eq!((found.parameters, found.weights_bytes), (64 * 5 + 4096, 64 * 5 / 32 * 34 + 4 * 4096));
    assert_eq!((found.dtype.as_str(), found.license.as_deref()), ("f32", Some("mit")));
}

#[test]
fn invalid_gguf_headers_are_refused() {
    let small = |file: Gguf| gguf(file, 64);
    small(Gguf(b"GGML".to_vec())).refuses("does not begin with `GGUF`");
    small(Gguf(b"GGUF\x09\0\0\0".to_vec())).refuses("version 9");
    small(Gguf::new(u64::MAX, 0)).refuses("declares 18446744073709551615 tensors");
    small(Gguf::new(0, u64::MAX)).refuses("declares 18446744073709551615 keys");
    small(Gguf::new(0, 1).long(u64::MAX)).refuses("bytes in one text");
    small(Gguf::new(0, 1).long(1 << 20)).refuses("ends too early");
    small(Gguf::new(0, 1).text("k").number(77)).refuses("unknown type 77");
    small(Gguf::new(0, 1).text("k").number(9).number(4).long(u64::MAX)).refuses("ends too early");
    small(Gguf::new(0, 1).text("k").number(9).number(8).long(u64::MAX)).refuses("ends too early");
    let mut nested = Gguf::new(0, 1).text("k").number(9);
    for _ in 0..100 {
        nested = nested.number(9).long(1);
    }
    small(nested).refuses("nested too deeply");
    small(Gguf::new(0, 0)).refuses("it has no .block_count");
    small(Gguf::llama().tensor("w", [1 << 40, 1 << 40], 0, 0)).refuses("shape is impossible");
    small(Gguf::llama().tensor("w", [64, 5], 0, u64::MAX)).refuses("tensor w: it declares 1280 bytes");
    small(Gguf::llama().tensor("w", [64, 5], 99, 0)).refuses("its type 99 is unknown");
}
