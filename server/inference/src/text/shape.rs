//! Which shapes of a `tokenizer.json` are accepted.
//!
//! The `tokenizers` crate runs what the file says: chains of normalizers that each lengthen a text, and regular
//! expressions that backtrack. A model of another author could stop a server with a few bytes of prompt, so what is not
//! known to be bounded is refused when the model loads.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use regex_syntax::ast::Ast;
use regex_syntax::ast::parse::Parser;
use regex_syntax::hir::{Hir, HirKind};
use serde_json::Value;

use super::{TextError, pre};

/// Steps of a tokenizer in all. Real ones have up to eight.
const STEPS_MAX: usize = 16;
/// How many times as long as the text the steps may make it in all, in the worst case: `NFKC` writes eleven bytes for one
/// in one case, and multilingual models have a table that writes 33, before steps that may each lengthen that.
const WORST_GROWTH_MAX: usize = 512;
/// Bytes of a text that a step adds: a prefix, a suffix, a replacement.
const ADDED_MAX: usize = 256;
/// Tokens that are added around a text.
const AROUND_MAX: usize = 64;
/// Letters of a word that WordPiece splits; its time is the cube of this. BERT has 100.
const WORD_MAX: u64 = 200;
/// Characters of a regular expression, with its counted repetitions written out. Those of known models have up to 60.
const MAX_STATES: usize = 96;
/// Space but the last of it, before a word: the one look-around in the patterns of GPT-2 and its successors.
const SPACE_BEFORE_A_WORD: &str = r"\s+(?!\S)";

/// Patterns of normalizers of known models, which write one character for several blanks.
const BLANKS: [&str; 3] = [" {2,}", r"\s+", r" +"];

/// Who wrote the regular expressions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patterns {
    /// This program.
    Own,
    /// The author of the model.
    Foreign,
}

/// What a tokenizer may do to a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bounds {
    /// How many times as long as the text the normalizer makes it at most.
    pub(super) growth: usize,
    /// Whether splitting takes a time that grows as the text does: all regular expressions are those of known models. Others
    /// are bounded, but may read to the end of the text at each place.
    pub(super) linear: bool,
}

/// Checks a tokenizer.
pub(super) fn check(json: &Value, patterns: Patterns) -> Result<Bounds, TextError> {
    let mut steps = Steps { patterns, count: 0, byte_levels: 0, linear: true };
    let growth = steps.normalizer(&json["normalizer"])?;
    let words = steps.pre_tokenizer(&json["pre_tokenizer"])?;
    let worst = growth.saturating_mul(words);
    if worst > WORST_GROWTH_MAX {
        let why = format!("it makes a text up to {worst} times as long; {WORST_GROWTH_MAX} is the limit");
        return Err(TextError::Invalid(why));
    }
    if steps.byte_levels > 1 {
        return Err(TextError::Invalid("`ByteLevel` splits a text twice".to_owned()));
    }
    steps.post_processor(&json["post_processor"])?;
    model(&json["model"])?;
    Ok(Bounds { growth, linear: steps.linear })
}

struct Steps {
    patterns: Patterns,
    count: usize,
    byte_levels: usize,
    linear: bool,
}

impl Steps {
    fn normalizer(&mut self, step: &Value) -> Result<usize, TextError> {
        let Some(kind) = self.kind(step, "normalizer")? else { return Ok(1) };
        Ok(match kind {
            "Sequence" => {
                let all = step["normalizers"].as_array().into_iter().flatten();
                all.map(|step| self.normalizer(step))
                    .try_fold(1, |all: usize, one| Ok::<_, TextError>(all.saturating_mul(one?)))?
            }
            "Strip" | "StripAccents" | "Nmt" => 1,
            // A lower-case letter of three bytes for one of two; spaces around a Chinese character of three.
            "Lowercase" | "BertNormalizer" => 2,
            // The factors of https://www.unicode.org/faq/normalization.html.
            "NFC" | "NFD" => 3,
            "NFKC" | "NFKD" => 11,
            "Prepend" => {
                added(&step["prepend"])?;
                1
            }
            "Replace" => {
                let content = added(&step["content"])?;
                match &step["pattern"]["String"] {
                    Value::String(pattern) if !pattern.is_empty() => content.div_ceil(pattern.len()).max(1),
                    Value::String(_) => return Err(TextError::Invalid("`Replace` has an empty pattern".to_owned())),
                    _ => match least_match(self.pattern(&step["pattern"]["Regex"])?) {
                        Some(least) => content.div_ceil(least).max(1),
                        // It may match before each byte.
                        None => content + 1,
                    },
                }
            }
            "Precompiled" => longest_replacement(&step["precompiled_charsmap"])?,
            "ByteLevel" => {
                self.byte_levels += 1;
                2
            }
            other => return Err(TextError::Unsupported(format!("normalizer `{other}` in tokenizer.json"))),
        })
    }

    fn pre_tokenizer(&mut self, step: &Value) -> Result<usize, TextError> {
        let Some(kind) = self.kind(step, "pre_tokenizer")? else { return Ok(1) };
        Ok(match kind {
            "Sequence" => {
                let all = step["pretokenizers"].as_array().into_iter().flatten();
                all.map(|step| self.pre_tokenizer(step))
                    .try_fold(1, |all: usize, one| Ok::<_, TextError>(all.saturating_mul(one?)))?
            }
            "BertPreTokenizer" | "CharDelimiterSplit" | "Whitespace" | "WhitespaceSplit" | "Punctuation" | "Digits"
            | "UnicodeScripts" | "FixedLength" => 1,
            "Split" => {
                if step["pattern"]["String"].is_null() {
                    self.pattern(&step["pattern"]["Regex"])?;
                }
                1
            }
            // A character for a blank, and before each word.
            "Metaspace" => 1 + added(&step["replacement"])?,
            "ByteLevel" => {
                self.byte_levels += 1;
                2
            }
            other => return Err(TextError::Unsupported(format!("pre-tokenizer `{other}` in tokenizer.json"))),
        })
    }

    fn post_processor(&mut self, step: &Value) -> Result<(), TextError> {
        let Some(kind) = self.kind(step, "post_processor")? else { return Ok(()) };
        match kind {
            "Sequence" => {
                step["processors"].as_array().into_iter().flatten().try_for_each(|step| self.post_processor(step))
            }
            "ByteLevel" | "BertProcessing" | "RobertaProcessing" => Ok(()),
            "TemplateProcessing" => template(step),
            other => Err(TextError::Unsupported(format!("post-processor `{other}` in tokenizer.json"))),
        }
    }

    /// The kind of a step; none if there is no step.
    fn kind<'a>(&mut self, step: &'a Value, what: &str) -> Result<Option<&'a str>, TextError> {
        if step.is_null() {
            return Ok(None);
        }
        self.count += 1;
        if self.count > STEPS_MAX {
            return Err(TextError::Invalid(format!("it has more than {STEPS_MAX} steps")));
        }
        let unnamed = || TextError::Invalid(format!("a {what} of tokenizer.json has no type"));
        step["type"].as_str().map(Some).ok_or_else(unnamed)
    }

    fn pattern<'a>(&mut self, pattern: &'a Value) -> Result<&'a str, TextError> {
        let is_known = |pattern: &str| BLANKS.contains(&pattern) || pre::has(pattern);
        self.linear &= pattern.as_str().is_some_and(|pattern| is_known(pattern) && is_bounded(pattern));
        match pattern.as_str() {
            Some(pattern) if self.patterns == Patterns::Own || is_bounded(pattern) => Ok(pattern),
            Some(pattern) => {
                let shown = &pattern[..pattern.floor_char_boundary(80)];
                Err(TextError::Unsupported(format!(
                    "the regular expression `{shown}` in tokenizer.json, which may run for long"
                )))
            }
            None => Err(TextError::Invalid("a step of tokenizer.json has no pattern".to_owned())),
        }
    }
}

/// The length of a text that a step adds.
fn added(text: &Value) -> Result<usize, TextError> {
    let length = text.as_str().map_or(0, str::len);
    if length > ADDED_MAX {
        return Err(TextError::Invalid(format!("it adds {length} bytes at a time; {ADDED_MAX} is the limit")));
    }
    Ok(length)
}

/// A template has the text once, and a few tokens around it.
fn template(step: &Value) -> Result<(), TextError> {
    let items = step["single"].as_array().map_or(&[][..], Vec::as_slice);
    let texts = items.iter().filter(|item| item.get("Sequence").is_some()).count();
    let mut ids = 0;
    for item in items {
        let name = item["SpecialToken"]["id"].as_str().unwrap_or_default();
        ids += step["special_tokens"][name]["ids"].as_array().map_or(0, Vec::len);
    }
    if texts != 1 || items.len() > AROUND_MAX || ids > AROUND_MAX {
        let why = format!("its template needs the text once, and at most {AROUND_MAX} tokens around it");
        return Err(TextError::Invalid(why));
    }
    Ok(())
}

fn model(model: &Value) -> Result<(), TextError> {
    for name in ["continuing_subword_prefix", "end_of_word_suffix", "unk_token"] {
        added(&model[name])?;
    }
    match model["max_input_chars_per_word"].as_u64() {
        Some(letters) if letters > WORD_MAX => {
            Err(TextError::Invalid(format!("words of {letters} letters are split; {WORD_MAX} is the limit")))
        }
        _ => Ok(()),
    }
}

/// The longest replacement of SentencePiece's table: a trie with its length before it, then texts that end with a zero.
fn longest_replacement(table: &Value) -> Result<usize, TextError> {
    let broken = || TextError::Invalid("its `precompiled_charsmap` is damaged".to_owned());
    let bytes = STANDARD.decode(table.as_str().ok_or_else(broken)?).map_err(|_| broken())?;
    let (length, rest) = bytes.split_first_chunk::<4>().ok_or_else(broken)?;
    let texts = rest.get(u32::from_le_bytes(*length) as usize..).ok_or_else(broken)?;
    Ok(texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(0).max(1))
}

/// Whether a pattern matches in a time that its text bounds: without look-around, back references and possessive
/// repetitions it does. [`SPACE_BEFORE_A_WORD`] as an alternative of its own looks at one character only.
fn is_bounded(pattern: &str) -> bool {
    match pattern.split_once(SPACE_BEFORE_A_WORD) {
        None => is_regular(pattern),
        Some((before, after)) => {
            // Both parts are whole expressions, so the alternative is in no group.
            let before = if before.is_empty() { Some(before) } else { before.strip_suffix('|') };
            let after = if after.is_empty() { Some(after) } else { after.strip_prefix('|') };
            before.is_some_and(is_regular) && after.is_some_and(is_regular)
        }
    }
}

/// The bytes of the shortest match of a pattern; none if it may match nothing, or is not known.
fn least_match(pattern: &str) -> Option<usize> {
    regex_syntax::parse(pattern).ok()?.properties().minimum_len().filter(|least| *least > 0)
}

/// `a++` is a possessive repetition for the engine, and a repetition of a repetition for this parser.
fn is_regular(pattern: &str) -> bool {
    Parser::new().parse(pattern).is_ok_and(|ast| !repeats_a_repetition(&ast))
        && regex_syntax::parse(pattern).is_ok_and(|parsed| states(&parsed) <= MAX_STATES)
}

/// How many characters an expression has when its counted repetitions are written out: in the worst case each of them is
/// compared at each place of a text.
fn states(parsed: &Hir) -> usize {
    match parsed.kind() {
        HirKind::Empty | HirKind::Look(_) | HirKind::Class(_) => 1,
        HirKind::Literal(literal) => literal.0.len(),
        HirKind::Capture(group) => states(&group.sub),
        HirKind::Repetition(repeated) => {
            let times = repeated.max.unwrap_or(repeated.min).max(1);
            states(&repeated.sub).saturating_mul(times as usize)
        }
        HirKind::Concat(parts) | HirKind::Alternation(parts) => {
            parts.iter().fold(0, |sum, part| sum.saturating_add(states(part)))
        }
    }
}

fn repeats_a_repetition(ast: &Ast) -> bool {
    match ast {
        Ast::Repetition(outer) => matches!(*outer.ast, Ast::Repetition(_)) || repeats_a_repetition(&outer.ast),
        Ast::Group(group) => repeats_a_repetition(&group.ast),
        Ast::Alternation(all) => all.asts.iter().any(repeats_a_repetition),
        Ast::Concat(all) => all.asts.iter().any(repeats_a_repetition),
        // `(?x)` changes what the parts of a pattern mean.
        Ast::Flags(flags) => flags.flags.flag_state(regex_syntax::ast::Flag::IgnoreWhitespace).is_some(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    /// The patterns of GPT-2, Llama 3, Qwen 2, GPT-4o and DeepSeek 3, and Falcon's of digits.
    const KNOWN: [&str; 6] = [
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##,
        r"[0-9][0-9][0-9]",
    ];

    #[test]
    fn patterns_of_known_models_are_accepted_and_backtracking_ones_are_not() {
        for pattern in KNOWN {
            assert!(is_bounded(pattern), "{pattern}");
        }
        for pattern in [
            r"(?:a(?=[^y]*y|a))*(?<=b)c",
            r"(a+)\1",
            r"(?>a+)b",
            r"a++b",
            r"(?:a?+)+b",
            r"(?:x|\s+(?!\S))+y",
            r"\s+(?!\S)\s+(?!\S)",
            r"x(?!\S)",
            "(?x)a # |\\s+(?!\\S)|\n(?:a|a)+b",
            r"[|\s+(?!\S)|]",
            r"[ab]*a[ab]{300}[^ab]|.",
            r"(?:[ab]{30}){30}",
        ] {
            assert!(!is_bounded(pattern), "{pattern}");
        }
    }

    fn said(change: Value) -> String {
        check(&change, Patterns::Foreign).map_or_else(|error| error.to_string(), |bounds| bounds.growth.to_string())
    }

    #[test]
    fn only_patterns_of_known_models_are_linear() {
        let split = |pattern: &str| json!({"pre_tokenizer": {"type": "Split", "pattern": {"Regex": pattern}}});
        let linear = |json: Value, patterns: Patterns| check(&json, patterns).unwrap().linear;
        for pattern in KNOWN {
            assert!(linear(split(pattern), Patterns::Foreign), "{pattern}");
        }
        // It reads to the end of a text at each `a`.
        assert!(!linear(split("a[^z]*z|a"), Patterns::Foreign));
        // It looks ahead over all digits at each digit.
        assert!(!linear(split(r"(?=(\d{3})+(?!\d))"), Patterns::Own));
        assert!(linear(json!({"pre_tokenizer": {"type": "ByteLevel"}}), Patterns::Foreign));
    }

    #[test]
    fn chains_that_lengthen_a_text_are_refused() {
        let byte_level = json!({"type": "ByteLevel"});
        let twice = json!([byte_level, byte_level]);
        let all = |name: &str, inner: &str, steps: Value| json!({name: {"type": "Sequence", inner: steps}});
        assert!(said(all("normalizer", "normalizers", twice.clone())).contains("twice"));
        assert!(said(all("pre_tokenizer", "pretokenizers", twice)).contains("twice"));
        let kd = json!({"type": "NFKD"});
        assert!(said(all("normalizer", "normalizers", json!([kd, kd, kd]))).contains("1331 times"));
        let empty = json!({"type": "Replace", "pattern": {"Regex": "x*"}, "content": "y".repeat(200)});
        assert!(said(all("normalizer", "normalizers", json!([empty, kd]))).contains("times as long"));
        let many: Vec<_> = (0..20).map(|_| json!({"type": "NFC"})).collect();
        assert!(said(all("normalizer", "normalizers", json!(many))).contains("steps"));
        let long = json!({"normalizer": {"type": "Prepend", "prepend": "y".repeat(1000)}});
        assert!(said(long).contains("1000 bytes"));
        let mut charsmap = 0u32.to_le_bytes().to_vec();
        charsmap.extend_from_slice(&[b'x'; 5000]);
        let table = json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(&charsmap)}});
        assert!(said(table).contains("5000 times"));
        assert!(
            said(json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "////"}})).contains("damaged")
        );
        assert!(said(json!({"normalizer": {"lowercase": true}})).contains("no type"));
        assert!(said(json!({"normalizer": {"type": "Unknown"}})).contains("`Unknown`"));
    }

    #[test]
    fn templates_and_words_are_bounded() {
        let a = json!({"Sequence": {"id": "A", "type_id": 0}});
        let of = |single: Value| json!({"post_processor": {"type": "TemplateProcessing", "single": single}});
        assert!(said(of(json!([a, a]))).contains("once"));
        assert_eq!(said(of(json!([a]))), "1");
        let ids: Vec<u32> = (0..100).collect();
        let mut many = of(json!([{"SpecialToken": {"id": "x", "type_id": 0}}, a]));
        many["post_processor"]["special_tokens"] = json!({"x": {"id": "x", "ids": ids, "tokens": []}});
        assert!(said(many).contains("64 tokens"));
        for (letters, is_refused) in [(100, false), (200, false), (201, true), (1_000_000, true)] {
            let word = json!({"model": {"max_input_chars_per_word": letters}});
            assert_eq!(said(word).contains("letters"), is_refused, "{letters}");
        }
        assert!(said(json!({"model": {"continuing_subword_prefix": "x".repeat(1 << 20)}})).contains("bytes"));
    }

    #[test]
    fn shapes_of_real_models_are_accepted() {
        let llama2 = json!({
            "normalizer": {"type": "Sequence", "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ]},
        });
        assert_eq!(said(llama2), "3");
        let bert = json!({
            "normalizer": {"type": "BertNormalizer", "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {"type": "WordPiece", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100},
        });
        assert_eq!(said(bert), "2");
        let mut charsmap = 4u32.to_le_bytes().to_vec();
        charsmap.extend_from_slice(b"trie");
        charsmap.extend_from_slice("ﷺ\0صلى الله عليه وسلم\0a\0".as_bytes());
        let roberta = json!({
            "normalizer": {"type": "Precompiled", "precompiled_charsmap": STANDARD.encode(&charsmap)},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "WhitespaceSplit"}, {"type": "Metaspace", "replacement": "▁"},
            ]},
        });
        assert_eq!(said(roberta.clone()), "33");
        // BGE-M3 and multilingual E5 write one character for several blanks.
        for (content, growth) in [(" ", "33"), ("▁", "66")] {
            let mut multilingual = roberta.clone();
            let blanks = json!({"type": "Replace", "pattern": {"Regex": " {2,}"}, "content": content});
            multilingual["normalizer"] = json!({"type": "Sequence", "normalizers": [roberta["normalizer"], blanks]});
            assert_eq!(said(multilingual), growth);
        }
        let qwen = json!({
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": KNOWN[2]}, "behavior": "Isolated"}, {"type": "ByteLevel"},
            ]},
        });
        assert_eq!(said(qwen), "3");
    }
}
