//! A `tokenizer.json` made from the vocabulary that a GGUF file carries: byte-level BPE (`gpt2`) and SentencePiece's BPE
//! with scores (`llama`).

use serde_json::{Value, json};
use std::collections::HashMap;

use super::pre::{self, Pre};
use super::{Extras, TextError};
use crate::format::gguf::Vocabulary;

// GGUF's token types.
const UNKNOWN: i32 = 2;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Control tokens that end a turn in chat models whose metadata names only the end of a text.
const TURN_ENDS: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"];

/// The largest sum of squared piece lengths in bytes: what finding the merges of a SentencePiece vocabulary costs. Gemma's
/// 262,144 pieces have 30 million.
const MERGE_WORK: usize = 1 << 30;

pub(crate) fn tokenizer_json(vocabulary: &Vocabulary) -> Result<Value, TextError> {
    let (mut json, add_bos) = match vocabulary.model.as_str() {
        "gpt2" => {
            let pre = pre::of(vocabulary.pre.as_deref()).ok_or_else(|| {
                let name = vocabulary.pre.as_deref().unwrap_or_default();
                TextError::Unsupported(format!(
                    "pre-tokenizer `{name}` in GGUF is not supported. Use the model in safetensors format"
                ))
            })?;
            (byte_level(vocabulary, pre), pre.add_bos)
        }
        "llama" => (sentence_piece(vocabulary)?, true),
        other => {
            return Err(TextError::Unsupported(format!(
                "tokenizer model `{other}` in GGUF is not supported; `gpt2` and `llama` are. Use the model in safetensors format"
            )));
        }
    };
    let added: Vec<Value> = of_types(vocabulary, &[CONTROL, USER_DEFINED, UNKNOWN])
        .filter(|(_, _, kind)| *kind != UNKNOWN || vocabulary.model == "llama")
        .map(|(id, token, kind)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                "normalized": false, "special": kind != USER_DEFINED})
        })
        .collect();
    json["version"] = "1.0".into();
    json["added_tokens"] = added.into();
    let bos = vocabulary.bos.and_then(|id| Some((id, vocabulary.tokens.get(id as usize)?)));
    if let Some((id, token)) = bos
        && vocabulary.add_bos.unwrap_or(add_bos)
    {
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {token: {"id": token, "ids": [id], "tokens": [token]}},
        });
    }
    Ok(json)
}

fn of_types<'a>(vocabulary: &'a Vocabulary, kinds: &'a [i32]) -> impl Iterator<Item = (u32, &'a String, i32)> {
    let all = (0u32..).zip(vocabulary.tokens.iter().zip(&vocabulary.types));
    all.map(|(id, (token, kind))| (id, token, *kind)).filter(|(_, _, kind)| kinds.contains(kind))
}

fn vocab(vocabulary: &Vocabulary) -> serde_json::Map<String, Value> {
    (0u32..).zip(&vocabulary.tokens).map(|(id, token)| (token.clone(), id.into())).collect()
}

fn byte_level(vocabulary: &Vocabulary, pre: &Pre) -> Value {
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    let split = |pattern: &&str| json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    let steps: Vec<Value> = pre.splits.iter().map(split).chain([bytes.clone()]).collect();
    json!({
        "normalizer": pre.composes.then(|| json!({"type": "NFC"})),
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "post_processor": bytes,
        "decoder": bytes,
        "model": {
            "type": "BPE",
            "fuse_unk": false,
            "byte_fallback": false,
            "ignore_merges": pre.ignore_merges,
            "vocab": vocab(vocabulary),
            "merges": vocabulary.merges,
        },
    })
}

/// SentencePiece joins the two neighbours whose piece has the best score (Kudo and Richardson 2018). As merges in the
/// order of those scores, that is what the `tokenizer.json` of such models has.
fn sentence_piece(vocabulary: &Vocabulary) -> Result<Value, TextError> {
    let prefix = vocabulary.add_space_prefix.unwrap_or(true);
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let mut normalizers = vec![spaces];
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.insert(0, json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    let unknown = vocabulary.unknown.unwrap_or(0) as usize;
    Ok(json!({
        "normalizer": {"type": "Sequence", "normalizers": normalizers},
        "decoder": {"type": "Sequence", "decoders": decoders},
        "model": {
            "type": "BPE",
            "unk_token": vocabulary.tokens.get(unknown),
            "fuse_unk": true,
            "byte_fallback": true,
            "ignore_merges": false,
            "vocab": vocab(vocabulary),
            "merges": merges(vocabulary)?,
        },
    }))
}

/// All pairs of pieces that are a piece together, the best score first, of equal ones the longer left half.
fn merges(vocabulary: &Vocabulary) -> Result<Vec<[&str; 2]>, TextError> {
    if vocabulary.scores.len() < vocabulary.tokens.len() {
        return Err(TextError::Invalid("its vocabulary in GGUF has not a score for each token".to_owned()));
    }
    if let Some(score) = vocabulary.scores.iter().find(|score| score.is_nan()) {
        return Err(TextError::Invalid(format!("a token's score in GGUF is {score}")));
    }
    let work = vocabulary.tokens.iter().fold(0usize, |sum, token| sum.saturating_add(token.len().saturating_pow(2)));
    if work > MERGE_WORK {
        return Err(TextError::Invalid("the pieces of its vocabulary in GGUF are too long".to_owned()));
    }
    let kind = |id: usize| vocabulary.types.get(id).copied().unwrap_or_default();
    let pieces: HashMap<&str, usize> = vocabulary
        .tokens
        .iter()
        .enumerate()
        .filter(|(id, _)| !matches!(kind(*id), UNKNOWN | CONTROL | UNUSED | BYTE))
        .map(|(id, token)| (token.as_str(), id))
        .collect();
    let mut found = Vec::new();
    for (piece, id) in &pieces {
        for (at, _) in piece.char_indices().skip(1) {
            let (left, right) = piece.split_at(at);
            if let (Some(l), Some(r)) = (pieces.get(left), pieces.get(right)) {
                let (l, r) = ((left.chars().count(), *l), (right.chars().count(), *r));
                found.push((vocabulary.scores[*id], *id, l, r, [left, right]));
            }
        }
    }
    // As in transformers' converter, which made the `tokenizer.json` of these models.
    found.sort_by(|(score, id, l, r, _), (score2, id2, l2, r2, _)| {
        let by_length = l2.0.cmp(&l.0).then(r2.0.cmp(&r.0));
        score2.total_cmp(score).then(by_length).then((id, l.1, r.1).cmp(&(id2, l2.1, r2.1)))
    });
    Ok(found.into_iter().map(|(.., pair)| pair).collect())
}

pub(crate) fn extras(vocabulary: &Vocabulary) -> Extras {
    let mut end: Vec<u32> = vocabulary.eos.into_iter().collect();
    for (id, token, _) in of_types(vocabulary, &[CONTROL]) {
        if TURN_ENDS.contains(&token.as_str()) && !end.contains(&id) {
            end.push(id);
        }
    }
    Extras { bos: vocabulary.bos, eos: vocabulary.eos, end, chat_template: vocabulary.chat_template.clone() }
}
