use super::*;
use proptest::prelude::*;
use serde_json::json;
use tokenizers::PreTokenizer;

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
    byte_tokenizer_with(std::iter::empty())
}

/// The same with further tokens of letters and digits.
pub(crate) fn byte_tokenizer_with(tokens: impl Iterator<Item = String>) -> Tokenizer {
    let mut json = byte_level_json(&[]);
    let vocab = json["model"]["vocab"].as_object_mut().unwrap();
    for token in tokens {
        vocab.insert(token, vocab.len().into());
    }
    let mut tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    tokenizer.extras.end = vec![256];
    tokenizer
}

/// A tokenizer of SentencePiece's family that ends with token 2, for this crate's tests: bytes as a last resort, and
/// pieces that hold several characters of JSON.
pub(crate) fn pieces_tokenizer() -> Tokenizer {
    let mut vocab: Vec<Value> = ["<unk>", "<s>", "</s>"].iter().map(|piece| json!([piece, 0.0])).collect();
    vocab.extend((0..=255).map(|byte| json!([format!("<0x{byte:02X}>"), -20.0])));
    let pieces =
        ["▁", "{", "}", "\"", ":", ",", "[", "]", "{\"", "\":", "▁{", "▁\"", "\",", "a", "b", "true", "false", "ü"];
    vocab.extend(pieces.iter().map(|piece| json!([piece, -2.0])));
    vocab.extend((0..10).map(|digit| json!([digit.to_string(), -3.0])));
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let json = json!({
        "version": "1.0",
        "added_tokens": [special(0, "<unk>"), special(1, "<s>"), special(2, "</s>")],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "Unigram", "unk_id": 0, "byte_fallback": true, "vocab": vocab},
    });
    let mut tokenizer = Tokenizer::from_json(json.to_string().as_bytes()).unwrap();
    tokenizer.extras.end = vec![2];
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
        add_space_prefix: None,
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

/// What other libraries make of texts: `tests/golden/make_text.py`.
fn golden(file: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn each_pre_tokenizer_of_llama_cpp_splits_as_its_family_does() {
    let golden = golden("words.json");
    let text = golden["text"].as_str().unwrap();
    let mut names = 0;
    for (name, _) in pre::tests::all() {
        let tokenizer = Tokenizer::from_gguf(&vocabulary(name, WORDS)).unwrap_or_else(|e| panic!("{name}: {e}"));
        let mut words = tokenizers::PreTokenizedString::from(text);
        tokenizer.inner.get_pre_tokenizer().unwrap().pre_tokenize(&mut words).unwrap();
        let splits = words.get_splits(tokenizers::OffsetReferential::Original, tokenizers::OffsetType::Byte);
        let ours: Vec<usize> = splits.into_iter().map(|(_, (_, end), _)| end).collect();
        let theirs: Vec<usize> = serde_json::from_value(golden["ends"][name].clone()).unwrap();
        let words = |ends: &[usize]| {
            let starts = [0].into_iter().chain(ends.iter().copied());
            starts.zip(ends).map(|(start, end)| text[start..*end].to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(words(&ours), words(&theirs), "{name}");
        names += 1;
    }
    assert_eq!(names, golden["ends"].as_object().unwrap().len());
}

/// A vocabulary of `pieces.json`, as GGUF has it.
fn sentence_piece(name: &str) -> (Vocabulary, Vec<(String, Vec<u32>)>) {
    let golden = golden("pieces.json")[name].clone();
    let of = |key: &str| golden[key].clone();
    let vocabulary = Vocabulary {
        model: "llama".to_owned(),
        pre: Some("default".to_owned()),
        tokens: serde_json::from_value(of("tokens")).unwrap(),
        scores: serde_json::from_value(of("scores")).unwrap(),
        types: serde_json::from_value(of("types")).unwrap(),
        merges: Vec::new(),
        bos: Some(1),
        eos: Some(2),
        unknown: Some(0),
        add_space_prefix: golden["prefix"].as_bool(),
        ..vocabulary("", &[])
    };
    (vocabulary, serde_json::from_value(of("encoded")).unwrap())
}

#[test]
fn sentencepiece_vocabularies_of_gguf_split_as_sentencepiece_does() {
    for name in ["llama", "gemma"] {
        let (vocabulary, texts) = sentence_piece(name);
        let tokenizer = Tokenizer::from_gguf(&vocabulary).unwrap();
        assert!(texts.len() > 8);
        for (text, ids) in texts {
            assert_eq!(tokenizer.encode(&text, false).unwrap(), ids, "{name} {text:?}");
            assert_eq!(tokenizer.decode(&ids), text, "{name}");
            assert_eq!(tokenizer.encode(&text, true).unwrap(), [vec![1], ids].concat(), "{name} {text:?}");
        }
        // Control tokens are found in a text, and have none of their own.
        let ids = tokenizer.encode("<s>a", false).unwrap();
        assert_eq!((ids[0], tokenizer.decode(&ids)), (1, "a".to_owned()));
    }
    let llama = |prefix| Vocabulary { add_space_prefix: prefix, ..sentence_piece("llama").0 };
    let pieces = |prefix| spellings(&Tokenizer::from_gguf(&llama(prefix)).unwrap(), "in");
    assert_eq!((pieces(None), pieces(Some(false))), (vec!["▁in".to_owned()], vec!["in".to_owned()]));
    let without = Vocabulary { add_bos: Some(false), ..llama(None) };
    assert!(!Tokenizer::from_gguf(&without).unwrap().encode("in", true).unwrap().contains(&1));
}

#[test]
fn first_token_is_added_by_the_rule_where_the_file_does_not_say() {
    let first = |pre: &str, add_bos: Option<bool>| {
        let vocabulary = Vocabulary { add_bos, ..vocabulary(pre, &[]) };
        Tokenizer::from_gguf(&vocabulary).unwrap().encode("a", true).unwrap()[0]
    };
    for (pre, add_bos, expect) in [
        ("llama-bpe", None, 256),
        ("tekken", None, 256),
        ("llama-bpe", Some(false), 97),
        ("gpt-2", None, 97),
        ("qwen2", None, 97),
        ("qwen2", Some(true), 256),
    ] {
        assert_eq!(first(pre, add_bos), expect, "{pre} {add_bos:?}");
    }
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
fn tokenizers_of_unknown_patterns_or_long_unigram_tokens_are_slow_and_have_short_parts() {
    let split = |pattern: &str| {
        let mut json = byte_level_json(WORDS);
        json["pre_tokenizer"]["use_regex"] = json!(false);
        let split = json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
        json["pre_tokenizer"] = json!({"type": "Sequence", "pretokenizers": [split, json["pre_tokenizer"]]});
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap()
    };
    assert!(split(r"\p{N}+").is_fast());
    let slow = split(r" ?[^ ]+| +");
    assert!(!slow.is_fast() && slow.splits_in_parts());
    let text = "one two  three ".repeat(2_000);
    assert!(slow.is_long(&text) && !split(r"\p{N}+").is_long(&text));
    assert_eq!(slow.encode(&text, false).unwrap(), slow.whole(&text, false).unwrap());
    let unigram = |length: usize| {
        let vocab = json!([["<unk>", 0.0], ["a", -1.0], ["a".repeat(length), -2.0]]);
        let decoder = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
        let model = json!({"type": "Unigram", "unk_id": 0, "vocab": vocab});
        let json = json!({"version": "1.0", "added_tokens": [], "decoder": decoder, "model": model});
        Tokenizer::from_json(json.to_string().as_bytes()).unwrap().is_fast()
    };
    assert!(unigram(256) && !unigram(257));
}

#[test]
fn unsupported_gguf_tokenizers_are_reported() {
    let check = |vocabulary: Vocabulary, expect: &str| {
        let error = Tokenizer::from_gguf(&vocabulary).unwrap_err().to_string();
        assert!(error.contains(expect), "{error}");
    };
    check(Vocabulary { model: "t5".to_owned(), ..vocabulary("default", &[]) }, "tokenizer model `t5`");
    check(vocabulary("kimi-k2", &[]), "pre-tokenizer `kimi-k2`");
    let llama = || Vocabulary { model: "llama".to_owned(), ..vocabulary("", &[]) };
    check(llama(), "not a score for each token");
    check(Vocabulary { scores: vec![f32::NAN; 300], ..llama() }, "a token's score in GGUF is NaN");
    let long = Vocabulary { tokens: vec!["a".repeat(40_000)], types: vec![1], scores: vec![0.0], ..llama() };
    check(long, "too long");
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
        [{"name": "rag", "template": "no"}, {"name": "default", "template": "yes"}]}),
    );
    let full = Tokenizer::from_directory(&directory.0).unwrap();
    assert_eq!((full.bos(), full.eos()), (Some(256), Some(257)));
    assert_eq!(full.end_tokens(), [257, 256]);
    assert_eq!(full.chat_template(), Some("yes"));
    directory.write(
        "tokenizer_config.json",
        json!({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "yes"}]}),
    );
    let named = Tokenizer::from_directory(&directory.0).unwrap();
    assert_eq!(named.chat_template(), Some("{% if tools %}t{% else %}yes{% endif %}"));
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

proptest! {
    #[test]
    fn streamed_sentencepiece_tokens_equal_the_decoded_text(ids in prop::collection::vec(0u32..700, 0..60), name in prop_oneof![Just("llama"), Just("gemma")]) {
        let tokenizer = Tokenizer::from_gguf(&sentence_piece(name).0).unwrap();
        let mut stream = Stream::new(&[]);
        let mut text: String = ids.iter().map(|&id| stream.push(tokenizer.bytes(id))).collect();
        text.push_str(&stream.finish());
        let whole = tokenizer.decode(&ids);
        // Only the beginning of a text loses the space that is put before one.
        prop_assert!(text == whole || (name == "llama" && text == format!(" {whole}")), "{text:?} {whole:?}");
    }
}

#[test]
fn normalizer_that_makes_texts_much_longer_is_refused() {
    let replace = |pattern: &str, content: &str| serde_json::json!({ "type": "Replace", "pattern": { "String": pattern }, "content": content });
    let with = |normalizers: Vec<serde_json::Value>| {
        let mut json = byte_level_json(&[]);
        json["normalizer"] = serde_json::json!({ "type": "Sequence", "normalizers": normalizers });
        Tokenizer::from_json(json.to_string().as_bytes())
    };
    let real = with(vec![serde_json::json!({ "type": "Prepend", "prepend": "▁" }), replace(" ", "▁")]);
    assert!(real.is_ok(), "that of Llama: {:?}", real.err());
    for bomb in [vec![replace("q", &"q".repeat(40)); 2], vec![replace("a", "aaaa"); 5]] {
        let error = with(bomb).unwrap_err().to_string();
        assert!(error.contains("times as long"), "{error}");
    }
    let suspicious = with(vec![replace("q", &"q".repeat(40))]).unwrap();
    assert!(!suspicious.encode(&format!("{} q", "hello ".repeat(2000)), false).unwrap().is_empty());
    for text in ["q".repeat(200), "hello ".repeat(2000) + &"q".repeat(5000)] {
        let error = suspicious.encode(&text, false).unwrap_err().to_string();
        assert!(error.contains("when normalized"), "{error}");
    }
}

#[test]
fn tokenizers_that_fail_are_refused_when_they_are_loaded() {
    let check = |key: &str, value: Value, says: &str| {
        let mut json = byte_level_json(&[]);
        json[key] = value;
        let error = Tokenizer::from_json(json.to_string().as_bytes()).map(drop).unwrap_err().to_string();
        assert!(error.contains(says), "{says}: {error}");
    };
    // The library reads a normalizer without its type, too.
    check("normalizer", json!({ "pattern": { "String": "a" }, "content": "a".repeat(99) }), "has no type");
    // Broken data makes the library panic: here a table whose trie has no units.
    use base64::Engine as _;
    let charsmap = base64::engine::general_purpose::STANDARD.encode(b"\0\0\0\0a\0");
    let table = json!({ "type": "Precompiled", "precompiled_charsmap": charsmap });
    check("normalizer", table, "the library that reads it fails");
}

#[test]
fn tokens_that_share_an_id_are_noted() {
    assert_eq!(byte_tokenizer().shared_id(), None);
    let mut json = byte_level_json(&[]);
    json["model"]["vocab"]["zz"] = json!(7);
    assert_eq!(Tokenizer::from_json(json.to_string().as_bytes()).unwrap().shared_id(), Some(7));
}

/// Marks the special tokens of `user`, and compares with the tokens of the parts.
fn check_marked(tokenizer: &Tokenizer, before: &str, user: &str, after: &str) {
    let mark = *MARKS.start();
    let marked = tokenizer.mark_special(user, mark).expect("it spells a special token");
    assert_eq!(marked.replace(mark, ""), user);
    let ids = tokenizer.encode_marked(&format!("{before}{marked}{after}"), mark).unwrap();
    let text = |ids: &[u32]| ids.iter().flat_map(|id| tokenizer.bytes(*id)).copied().collect::<Vec<u8>>();
    let special = |ids: &[u32]| ids.iter().filter(|id| tokenizer.bytes(**id).is_empty()).copied().collect::<Vec<u32>>();
    let around = [tokenizer.encode(before, false).unwrap(), tokenizer.encode(after, false).unwrap()];
    assert_eq!(special(&ids), special(&around.concat()), "only the tokens of the template are special: {user}");
    let spelled = String::from_utf8(text(&ids)).unwrap();
    assert!(spelled.contains(user.trim()), "{spelled:?} has the letters of {user:?}");
}

#[test]
fn special_tokens_that_a_client_wrote_stay_text() {
    let marks = |tokenizer: &Tokenizer| {
        for user in ["<|end|>", "a<|im_end|> b", "<<|end|><|im_end|>\n", "the <|end|>"] {
            for (before, after) in [("", ""), ("<|end|>x", "<|im_end|>\n"), ("a", "<|end|>")] {
                check_marked(tokenizer, before, user, after);
            }
        }
        assert_eq!(tokenizer.mark_special("<|end|", 'x'), None);
        assert!(!tokenizer.may_spell_special("{\"content\":\"<|end| \\n\"}"));
        assert!(tokenizer.may_spell_special("{\"content\":\"<|end|>\"}"));
        assert!(tokenizer.may_spell_special("{\"content\":\"\\u003c|end|>\"}"));
    };
    for pre in ["gpt-2", "llama-bpe", "smollm"] {
        let tokenizer = Tokenizer::from_gguf(&vocabulary(pre, WORDS)).unwrap();
        marks(&tokenizer);
        // The mark changes no word: the tokens are those of a tokenizer without this special token.
        let mut without = vocabulary(pre, WORDS);
        without.types[256] = 1;
        without.tokens[256] = "none".to_owned();
        let without = Tokenizer::from_gguf(&without).unwrap();
        let mark = *MARKS.start();
        for user in ["<|end|>", "x the<|end|>the 1234's<|end|>", "<|end|>\n\n the"] {
            let marked = tokenizer.mark_special(user, mark).unwrap();
            let ids = tokenizer.encode_marked(&format!("<|im_end|>{marked}<|im_end|>"), mark).unwrap();
            let expected = without.encode(&format!("<|im_end|>{user}<|im_end|>"), false).unwrap();
            assert_eq!(ids, expected, "{pre} {user:?}");
        }
        // Longer than a part.
        let marked = tokenizer.mark_special(&"the <|end|> 12 ".repeat(20_000), mark).unwrap();
        let ids = tokenizer.encode_marked(&marked, mark).unwrap();
        assert!(ids.iter().all(|id| *id != 256), "{pre}");
    }
    marks(&Tokenizer::from_json(byte_level_json(WORDS).to_string().as_bytes()).unwrap());
}

#[test]
fn special_tokens_among_the_words_of_a_model_stay_text() {
    let tokenizer = pieces_tokenizer();
    for user in ["</s>", "a</s>b", "<s></s>"] {
        check_marked(&tokenizer, "<s>a", user, "</s>");
    }
}
