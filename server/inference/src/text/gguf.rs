//! A `tokenizer.json` made from the vocabulary that a GGUF file carries.
//!
//! GGUF names the rule that splits words (`tokenizer.ggml.pre`) without writing it down; the three that we know are below.

use serde_json::{Value, json};

use super::{Extras, TextError};
use crate::format::gguf::Vocabulary;

/// GGUF's token types: 3 is a control token, 4 one that a user defined.
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;

/// Control tokens that end a turn in chat models whose metadata names only the end of a text.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"];

/// Llama 3's rule, as its `tokenizer.json` has it.
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// Byte-level BPE only: what SentencePiece does with scores is another algorithm.
pub(crate) fn tokenizer_json(vocabulary: &Vocabulary) -> Result<Value, TextError> {
    if vocabulary.model != "gpt2" {
        return Err(TextError::Unsupported(format!(
            "tokenizer model `{}` in GGUF is not supported; only `gpt2` (byte-level BPE) is. Use the model in safetensors format",
            vocabulary.model
        )));
    }
    let byte_level = |use_regex: bool| json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": use_regex});
    let sequence =
        |first: Value, use_regex: bool| json!({"type": "Sequence", "pretokenizers": [first, byte_level(use_regex)]});
    let pre = vocabulary.pre.as_deref().unwrap_or("none");
    let pre_tokenizer = match pre {
        "gpt-2" => byte_level(true),
        "smollm" => sequence(json!({"type": "Digits", "individual_digits": true}), true),
        "llama-bpe" | "llama3" | "llama-v3" => sequence(
            json!({"type": "Split", "pattern": {"Regex": LLAMA_BPE}, "behavior": "Isolated", "invert": false}),
            false,
        ),
        other => {
            return Err(TextError::Unsupported(format!(
                "pre-tokenizer `{other}` in GGUF is not supported; `gpt-2`, `smollm` and `llama-bpe` are"
            )));
        }
    };
    let added: Vec<Value> = (0u32..)
        .zip(vocabulary.tokens.iter().zip(&vocabulary.types))
        .filter(|(_, (_, kind))| matches!(**kind, CONTROL | USER_DEFINED))
        .map(|(id, (token, kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": *kind == CONTROL})
        })
        .collect();
    let vocab: serde_json::Map<String, Value> =
        (0u32..).zip(&vocabulary.tokens).map(|(id, token)| (token.clone(), id.into())).collect();
    let bos = vocabulary.bos.and_then(|id| Some((id, vocabulary.tokens.get(id as usize)?)));
    let post_processor = match bos {
        Some((id, token)) if vocabulary.add_bos == Some(true) => json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        }),
        _ => byte_level(true),
    };
    Ok(json!({
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": pre_tokenizer,
        "post_processor": post_processor,
        "decoder": byte_level(true),
        "model": {
            "type": "BPE",
            "fuse_unk": false,
            "byte_fallback": false,
            // Llama 3 takes a word that is in the vocabulary whole, even where the merges would not build it.
            "ignore_merges": pre.starts_with("llama"),
            "vocab": vocab,
            "merges": vocabulary.merges,
        },
    }))
}

pub(crate) fn extras(vocabulary: &Vocabulary) -> Extras {
    let mut end: Vec<u32> = vocabulary.eos.into_iter().collect();
    for (id, (token, &kind)) in (0u32..).zip(vocabulary.tokens.iter().zip(&vocabulary.types)) {
        if kind == CONTROL && TURN_ENDS.contains(&token.as_str()) && !end.contains(&id) {
            end.push(id);
        }
    }
    Extras { bos: vocabulary.bos, eos: vocabulary.eos, end, chat_template: vocabulary.chat_template.clone() }
}
