use super::*;
use proptest::prelude::*;
use serde_json::json;

/// The character that stands for a byte in byte-level vocabularies.
fn char_of(byte: u8) -> char {
    (0..=0x143).filter_map(char::from_u32).find(|&c| pieces::byte_of(c) == Some(byte)).unwrap()
}

/// One token per byte (ids 0 to 255), merges for a few words, `<|end|>` (256) and `<|im_end|>` (257) as special tokens.
fn byte_level_json(merges: &[(&str, &str)]) -> Value {
    let mut vocab = serde_json::Map::new();
    for byte in 0..=255u8 {
        vocab.insert(char_of(byte).to_string(), byte.into());
    }
    for special in ["<|end|>", "<|im_end|>"] {
        vocab.insert(special.to_owned(), vocab.len().into());
    }
    for (left, right) in merges {
        vocab.insert(format!("{left}{right}"), vocab.len().into());
    }
    let added = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    json!({
        "version": "1.0",
        "added_tokens": [added(256, "<|end|>"), added(257, "<|im_end|>")],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "vocab": vocab, "merges": merges.iter().map(|(a, b)| format!("{a} {b}")).collect::<Vec<_>>()},
    })
}

/// A tokenizer of bytes that ends with token 256, for this crate's tests.
pub(crate) fn byte_tokenizer() -> Tokenizer {
    let mut tokenizer = Tokenizer::from_json(byte_level_json(&[]).to_string().as_bytes()).unwrap();
    tokenizer.extras.end = vec![256];
    tokenizer
}

/// The same vocabulary as a GGUF file would carry it.
fn vocabulary(pre: &str, merges: &[(&str, &str)]) -> Vocabulary {
    let json = byte_level_json(merges);
    let mut tokens = vec![String::new(); json["model"]["vocab"].as_object().unwrap().len()];
    for (token, id) in json["model"]["vocab"].as_object().unwrap() {
        tokens[id.as_u64().unwrap() as usize] = token.clone();
    }
    let types = tokens.iter().map(|token| if token.starts_with("<|") { 3 } else { 1 }).collect();
    Vocabulary {
        model: "gpt2".to_owned(),
        pre: Some(pre.to_owned()),
        scores: Vec::new(),
        types,
        merges: merges.iter().map(|(a, b)| format!("{a} {b}")).collect(),
        bos: Some(256),
        eos: Some(256),
        unknown: None,
        padding: None,
        add_bos: None,
        add_eos: None,
        chat_template: Some("{{ messages }}".to_owned()),
        tokens,
    }
}

const WORDS: &[(&str, &str)] =
    &[("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2"), ("12", "3"), ("123", "4"), ("'", "s"), ("'", "S"), ("Ċ", "Ċ")];

fn spellings(tokenizer: &Tokenizer, text: &str) -> Vec<String> {
    tokenizer.encode(text, false).unwrap().into_iter().map(|id| tokenizer.piece(id).unwrap()).collect()
}

#[test]
fn tokenised_text_round_trips_and_special_tokens_decode_to_nothing() {
    let tokenizer = byte_tokenizer();
    let ids = tokenizer.encode("naïve €<|end|>\n", false).unwrap();
    assert_eq!(ids.iter().filter(|&&id| id == 256).count(), 1);
    assert_eq!(tokenizer.decode(&ids), "naïve €\n");
    assert_eq!(tokenizer.bytes(256), b"");
    assert_eq!(tokenizer.bytes(9_999), b"");
    assert_eq!(
        (tokenizer.vocab(), tokenizer.id("<|im_end|>"), tokenizer.piece(32).as_deref()),
        (258, Some(257), Some("Ġ"))
    );
}

#[test]
fn gguf_and_json_tokenizers_split_alike() {
    let json = Tokenizer::from_json(byte_level_json(WORDS).to_string().as_bytes()).unwrap();
    let gguf = Tokenizer::from_gguf(&vocabulary("gpt-2", WORDS)).unwrap();
    for text in ["the the 1234's", " the\n\nthe", "<|end|>the", "", "\u{0}\u{FFFD}é"] {
        assert_eq!(json.encode(text, true).unwrap(), gguf.encode(text, true).unwrap(), "{text:?}");
    }
    assert_eq!(gguf.decode(&gguf.encode(" the 12", false).unwrap()), " the 12");
}

#[test]
fn each_gguf_pre_tokenizer_has_its_own_splitting_rules() {
    let check = |pre: &str, text: &str, expect: &[&str]| {
        assert_eq!(spellings(&Tokenizer::from_gguf(&vocabulary(pre, WORDS)).unwrap(), text), expect, "{pre} {text:?}");
    };
    check("gpt-2", "1234", &["1234"]);
    check("smollm", "1234", &["1", "2", "3", "4"]);
    check("llama-bpe", "1234", &["123", "4"]);
    check("gpt-2", "x'S", &["x", "'", "S"]);
    check("llama-bpe", "x'S", &["x", "'S"]);
    check("gpt-2", "x's", &["x", "'s"]);
    check("smollm", "x the", &["x", "Ġthe"]);
    check("llama-bpe", "a\n\nb", &["a", "ĊĊ", "b"]);
}

/// Fragments of texts in a random order, at least so many bytes.
fn fragments(bytes: usize, mut state: u32) -> String {
    const ALL: &[&str] = &[
        "the", "the", " the", " ", "  ", "\n", "\n\n", "\r\n", "\t", "1234", "12", "'s", "é", "e\u{301}", "東京",
        "<|end|>", ";", "==", "\u{a0}", "   ", "\u{0}", "😀", ")\n",
    ];
    let mut text = String::new();
    while text.len() < bytes {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        text.push_str(ALL[(state >> 16) as usize % ALL.len()]);
    }
    text
}

#[test]
fn parts_of_a_long_text_have_the_tokens_of_the_whole() {
    for pre in ["gpt-2", "smollm", "llama-bpe"] {
        let vocabulary = Vocabulary { add_bos: Some(true), add_eos: Some(true), ..vocabulary(pre, WORDS) };
        let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
        assert!(tokenizer.splits_in_parts(), "{pre}");
        // What is no word is longer than a part.
        let gaps = format!("{}the{}", " \n".repeat(36_000), "the ".repeat(2000));
        for text in [fragments(150_000, 1), fragments(80_000, 7), gaps, "1;".repeat(40_000)] {
            let (found, whole) = (tokenizer.encode(&text, true).unwrap(), tokenizer.whole(&text, true).unwrap());
            assert!(found == whole, "{pre} {text:.20}");
        }
        let text = fragments(80_000, 3);
        assert!(tokenizer.encode(&text, false).unwrap() == tokenizer.whole(&text, false).unwrap(), "{pre}");
        let word = tokenizer.encode(&"a".repeat(2 << 20), false).unwrap_err().to_string();
        assert!(word.contains("without the end of a word"), "{word}");
    }
}

#[test]
fn tokenizers_that_change_the_beginning_of_a_text_split_none_in_parts() {
    let changed = |field: &str, value: Value| {
        let mut json = byte_level_json(WORDS);
        json[field] = value;
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    };
    assert!(changed("version", json!("1.0")).splits_in_parts());
    let prefix = json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true});
    let strip = json!({"type": "Strip", "strip_left": true, "strip_right": true});
    let prepend = json!({"type": "Prepend", "prepend": "x"});
    for (field, value) in
        [("pre_tokenizer", prefix), ("pre_tokenizer", Value::Null), ("normalizer", strip), ("normalizer", prepend)]
    {
        assert!(!changed(field, value.clone()).splits_in_parts(), "{value}");
    }
}

#[test]
fn unsupported_gguf_tokenizers_are_reported() {
    let check = |vocabulary: Vocabulary, expect: &str| {
        let error = Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(Vocabulary { model: "llama".to_owned(), ..vocabulary("default", &[]) }, "tokenizer model `llama`");
    check(vocabulary("qwen2", &[]), "pre-tokenizer `qwen2`");
    check(Vocabulary { pre: None, ..vocabulary("", &[]) }, "pre-tokenizer `none`");
    check(Vocabulary { merges: vec!["no such".to_owned()], ..vocabulary("gpt-2", &[]) }, "invalid tokenizer");
}

#[test]
fn gguf_metadata_names_bos_and_eos_tokens() {
    let tokenizer = Tokenizer::from_gguf(&vocabulary("gpt-2", &[])).unwrap();
    assert_eq!((tokenizer.bos(), tokenizer.eos()), (Some(256), Some(256)));
    assert_eq!(tokenizer.end_tokens(), [256, 257], "a chat model's turn ends with a control token");
    assert_eq!(tokenizer.chat_template(), Some("{{ messages }}"));
    assert_eq!(tokenizer.encode("a", true).unwrap(), [97]);
    let tokenizer = Tokenizer::from_gguf(&Vocabulary { add_bos: Some(true), ..vocabulary("gpt-2", &[]) }).unwrap();
    assert_eq!(tokenizer.encode("a", true).unwrap(), [256, 97]);
    assert_eq!(tokenizer.encode("a", false).unwrap(), [97]);
}

#[test]
fn model_directory_adds_special_tokens_and_the_chat_template() {
    let directory = Directory::new("extras");
    directory.write("tokenizer.json", byte_level_json(&[]));
    let bare = Tokenizer::from_directory(&directory.0).unwrap();
    assert_eq!((bare.bos(), bare.eos(), bare.end_tokens(), bare.chat_template()), (None, None, &[][..], None));

    directory.write("config.json", json!({"bos_token_id": 256, "eos_token_id": 256}));
    directory.write("generation_config.json", json!({"eos_token_id": [257, 256]}));
    directory.write(
        "tokenizer_config.json",
        json!({"eos_token": {"content": "<|im_end|>"}, "chat_template":
        [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]}),
    );
    let full = Tokenizer::from_directory(&directory.0).unwrap();
    assert_eq!((full.bos(), full.eos()), (Some(256), Some(257)));
    assert_eq!(full.end_tokens(), [257, 256]);
    assert_eq!(full.chat_template(), Some("yes"));
}

#[test]
fn broken_tokenizer_files_are_named() {
    let directory = Directory::new("broken");
    let error = || Tokenizer::from_directory(&directory.0).unwrap_err().to_string();
    assert!(error().contains("tokenizer.json"));
    std::fs::write(directory.0.join("tokenizer.json"), "{").unwrap();
    assert_eq!(error(), "tokenizer.json is not valid JSON");
    directory.write("tokenizer.json", json!({"model": {"type": "Nonsense"}}));
    assert!(error().starts_with("invalid tokenizer: "));
    directory.write("tokenizer.json", byte_level_json(&[]));
    std::fs::write(directory.0.join("tokenizer_config.json"), [0xFF, 0xFE]).unwrap();
    assert_eq!(error(), "tokenizer_config.json is not valid JSON");
}

/// A folder that goes when the test ends.
struct Directory(PathBuf);

impl Directory {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("textnlp-text-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Directory(path)
    }

    fn write(&self, file: &str, json: Value) {
        std::fs::write(self.0.join(file), json.to_string()).unwrap();
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

proptest! {
    #[test]
    fn byte_level_decoding_matches_the_tokenizers_crate(text in "(\\PC|[ \n\t'é€😀1the]){0,40}", ids in prop::collection::vec(0u32..270, 0..40)) {
        let tokenizer = Tokenizer::from_json(byte_level_json(WORDS).to_string().as_bytes()).unwrap();
        let encoded = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(tokenizer.decode(&encoded), text);
        prop_assert_eq!(tokenizer.decode(&ids), tokenizer.inner.decode(&ids, true).unwrap());
    }

    #[test]
    fn streamed_tokens_equal_the_decoded_text(ids in prop::collection::vec(0u32..258, 0..60)) {
        let tokenizer = byte_tokenizer();
        let mut stream = Stream::new(&[]);
        let mut text: String = ids.iter().map(|&id| stream.push(tokenizer.bytes(id))).collect();
        text.push_str(&stream.finish());
        prop_assert_eq!(text, tokenizer.decode(&ids));
    }
}
