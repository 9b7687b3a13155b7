//! Which bytes each token stands for.

use serde_json::Value;

use super::TextError;

/// The most tokens a vocabulary may have: a tokenizer file must not make us allocate by a lying id.
const MOST_TOKENS: usize = 1 << 22;

/// One run of bytes per token id.
#[derive(Debug)]
pub(crate) struct Pieces {
    bytes: Vec<u8>,
    /// Where each token's bytes end; they begin where the one before ends.
    ends: Vec<u32>,
    /// The first space of a text is the tokenizer's own.
    pub(crate) strips_first_space: bool,
}

/// How a vocabulary spells bytes.
#[derive(Debug, PartialEq, Eq)]
enum Spelling {
    /// Each byte is a printable character (GPT-2).
    ByteLevel,
    /// `▁` is a space and `<0x0A>` a byte (SentencePiece).
    Pieces { bytes: bool, strips_first_space: bool },
    /// A piece with this prefix continues a word, any other begins one (WordPiece).
    Words { prefix: String },
}

impl Pieces {
    /// From `(id, piece, special)` in any order; `decoder` is that of `tokenizer.json`.
    pub(crate) fn new(
        tokens: impl IntoIterator<Item = (u32, String, bool)>,
        decoder: &Value,
    ) -> Result<Pieces, TextError> {
        let spelling = Spelling::of(decoder)?;
        let mut table: Vec<Vec<u8>> = Vec::new();
        for (id, piece, special) in tokens {
            let index = id as usize;
            if index >= MOST_TOKENS {
                return Err(TextError::Invalid(format!("token `{piece}` has id {id}, the maximum is {MOST_TOKENS}")));
            }
            if index >= table.len() {
                table.resize(index + 1, Vec::new());
            }
            if !special {
                table[index] = spelling.bytes_of(&piece);
            }
        }
        let mut bytes = Vec::with_capacity(table.iter().map(Vec::len).sum());
        let mut ends = Vec::with_capacity(table.len());
        for piece in table {
            bytes.extend_from_slice(&piece);
            let end = u32::try_from(bytes.len());
            ends.push(end.map_err(|_| TextError::Invalid("the vocabulary's texts exceed 4 GiB".to_owned()))?);
        }
        let strips_first_space =
            matches!(spelling, Spelling::Pieces { strips_first_space: true, .. } | Spelling::Words { .. });
        Ok(Pieces { bytes, ends, strips_first_space })
    }

    /// Empty for special tokens and ids that are not there.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        let index = id as usize;
        let Some(&end) = self.ends.get(index) else { return &[] };
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start as usize..end as usize]
    }

    /// One more than the largest id.
    pub(crate) fn len(&self) -> usize {
        self.ends.len()
    }
}

impl Spelling {
    fn of(decoder: &Value) -> Result<Spelling, TextError> {
        let refused = |what: &str| Err(TextError::Unsupported(format!("decoder {what} in tokenizer.json")));
        let kind = |value: &Value| value.get("type").and_then(Value::as_str).unwrap_or("null").to_owned();
        match kind(decoder).as_str() {
            "ByteLevel" => Ok(Spelling::ByteLevel),
            "Metaspace" => Ok(Spelling::Pieces { bytes: false, strips_first_space: prepends(decoder) }),
            "WordPiece" => Ok(Spelling::Words { prefix: decoder["prefix"].as_str().unwrap_or("##").to_owned() }),
            "Sequence" => {
                let steps = decoder.get("decoders").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                let (mut bytes, mut strips_first_space, mut spaces) = (false, false, false);
                for step in steps {
                    match kind(step).as_str() {
                        "ByteLevel" if steps.len() == 1 => return Ok(Spelling::ByteLevel),
                        "ByteFallback" => bytes = true,
                        "Fuse" => {}
                        "Metaspace" => {
                            spaces = true;
                            strips_first_space |= prepends(step);
                        }
                        "Replace" if step["pattern"]["String"] == "▁" && step["content"] == " " => spaces = true,
                        "Strip" if step["content"] == " " && step["stop"] == 0 => {
                            strips_first_space |= step["start"] != 0;
                        }
                        other => return refused(&format!("step `{other}`")),
                    }
                }
                if spaces {
                    Ok(Spelling::Pieces { bytes, strips_first_space })
                } else {
                    refused("`Sequence` without spaces")
                }
            }
            other => refused(&format!("`{other}`")),
        }
    }

    fn bytes_of(&self, piece: &str) -> Vec<u8> {
        match self {
            // A piece with a character outside the byte alphabet stands for itself, as in the tokenizers crate.
            Spelling::ByteLevel => {
                piece.chars().map(byte_of).collect::<Option<Vec<u8>>>().unwrap_or_else(|| piece.as_bytes().to_vec())
            }
            Spelling::Pieces { bytes, .. } => match named_byte(piece) {
                Some(byte) if *bytes => vec![byte],
                _ => piece.replace('▁', " ").into_bytes(),
            },
            Spelling::Words { prefix } => match piece.strip_prefix(prefix.as_str()) {
                Some(rest) => rest.as_bytes().to_vec(),
                None => format!(" {piece}").into_bytes(),
            },
        }
    }
}

fn prepends(metaspace: &Value) -> bool {
    metaspace.get("prepend_scheme").and_then(Value::as_str) != Some("never")
        && metaspace.get("add_prefix_space").and_then(Value::as_bool) != Some(false)
}

/// `<0x0A>` is the byte 10.
fn named_byte(piece: &str) -> Option<u8> {
    let digits = piece.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() == 2 { u8::from_str_radix(digits, 16).ok() } else { None }
}

/// GPT-2's alphabet: printable Latin-1 stands for itself, the other 68 bytes follow from U+0100 in order.
pub(crate) fn byte_of(c: char) -> Option<u8> {
    let code = u32::from(c);
    match code {
        0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => u8::try_from(code).ok(),
        0x100..=0x120 => u8::try_from(code - 0x100).ok(),
        0x121..=0x142 => u8::try_from(code - 0x121 + 0x7F).ok(),
        0x143 => Some(0xAD),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let mut bytes: Vec<u8> = (0..=0x143).filter_map(char::from_u32).filter_map(byte_of).collect();
        assert_eq!(bytes.len(), 256);
        bytes.sort_unstable();
        assert!((0..=255).eq(bytes));
        assert_eq!((byte_of('Ġ'), byte_of('Ċ'), byte_of('€')), (Some(b' '), Some(b'\n'), None));
    }

    #[test]
    fn unsupported_decoder_is_named() {
        let check = |decoder: Value, expect: &str| {
            assert_eq!(Spelling::of(&decoder).unwrap_err().to_string(), expect);
        };
        check(Value::Null, "not supported: decoder `null` in tokenizer.json");
        check(json!({"type": "BPEDecoder"}), "not supported: decoder `BPEDecoder` in tokenizer.json");
        check(
            json!({"type": "Sequence", "decoders": [{"type": "CTC"}]}),
            "not supported: decoder step `CTC` in tokenizer.json",
        );
    }

    #[test]
    fn sentencepiece_spellings_are_decoded() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let tokens = [(0, "<s>", true), (1, "▁the", false), (2, "<0xE2>", false), (4, "<0xZZ>", false)];
        let pieces = Pieces::new(tokens.map(|(id, p, s)| (id, p.to_owned(), s)), &decoder).unwrap();
        assert!(pieces.strips_first_space);
        assert_eq!((pieces.bytes(0), pieces.bytes(1), pieces.bytes(2)), (&b""[..], &b" the"[..], &[0xE2][..]));
        assert_eq!((pieces.bytes(3), pieces.bytes(4), pieces.bytes(5)), (&b""[..], &b"<0xZZ>"[..], &b""[..]));
        assert_eq!(pieces.len(), 5);
    }

    #[test]
    fn word_pieces_are_joined_to_words() {
        let tokens = [(0, "[CLS]", true), (1, "token", false), (2, "##izer", false), (3, "s", false)];
        let decoder = json!({"type": "WordPiece", "prefix": "##", "cleanup": true});
        let pieces = Pieces::new(tokens.map(|(id, p, s)| (id, p.to_owned(), s)), &decoder).unwrap();
        assert!(pieces.strips_first_space);
        assert_eq!((0..4).flat_map(|id| pieces.bytes(id)).copied().collect::<Vec<u8>>(), b" tokenizer s");
    }

    #[test]
    fn out_of_range_token_id_allocates_nothing() {
        let result = Pieces::new([(u32::MAX, "x".to_owned(), false)], &json!({"type": "ByteLevel"}));
        assert!(matches!(result, Err(TextError::Invalid(_))));
    }
}
