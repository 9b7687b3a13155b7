//! GGUF, versions 2 and 3: a header of typed keys, a table of tensors, then the tensors.
//!
//! The file may be hostile: every count and length is checked against the rest of the file before anything is
//! allocated. Arrays are parsed only on access.

use super::blocks::Dtype;
use super::{FormatError, Place};
use crate::text::with_tools;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

/// The most keys, and the most tensors, of a file.
const MOST_ENTRIES: u64 = 1 << 16;
/// The longest key or tensor name in bytes.
const LONGEST_NAME: u64 = 1 << 16;
/// Tokens or merges; known models have up to 514,000.
const MAX_TEXTS: usize = 1 << 22;
/// The most dimensions of a tensor.
const MOST_DIMENSIONS: u32 = 4;

/// The header of a GGUF file: its metadata, and where its tensors are.
#[derive(Debug)]
pub(crate) struct Header {
    keys: HashMap<String, Value>,
    pub(crate) tensors: Vec<TensorInfo>,
}

/// Where a tensor is.
#[derive(Debug)]
pub(crate) struct TensorInfo {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    /// The slowest dimension first, as everywhere but in GGUF.
    pub(crate) shape: Vec<usize>,
    pub(crate) bytes: Range<usize>,
}

#[derive(Debug)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(Range<usize>),
    Array { kind: u32, count: u64, at: usize },
}

/// The tokenizer that a GGUF file carries.
#[derive(Debug, Clone, PartialEq)]
pub struct Vocabulary {
    /// `gpt2` is byte-level BPE, `llama` is SentencePiece.
    pub model: String,
    /// How text is cut before BPE.
    pub pre: Option<String>,
    /// Tokens by id.
    pub tokens: Vec<String>,
    /// SentencePiece's scores by id; empty when the file has none.
    pub scores: Vec<f32>,
    /// ggml's token types by id (1 normal, 2 unknown, 3 control, 4 user-defined, 6 byte); empty when the file has none.
    pub types: Vec<i32>,
    /// BPE's merges, likeliest first, as `left right`.
    pub merges: Vec<String>,
    /// Begins a text.
    pub bos: Option<u32>,
    /// Ends a text.
    pub eos: Option<u32>,
    /// Stands for what has no token.
    pub unknown: Option<u32>,
    /// Fills up batches.
    pub padding: Option<u32>,
    /// Whether prompts begin with `bos`.
    pub add_bos: Option<bool>,
    /// Whether SentencePiece puts a space before a text; `None` is yes.
    pub add_space_prefix: Option<bool>,
    /// Whether prompts end with `eos`.
    pub add_eos: Option<bool>,
    /// The chat template, in Jinja.
    pub chat_template: Option<String>,
}

impl Header {
    /// Reads the header of a file.
    pub(crate) fn parse(file: &Path, bytes: &[u8]) -> Result<Header, FormatError> {
        let mut r = Reader { file, bytes, at: 0 };
        if r.take(4, "magic")? != b"GGUF" {
            return Err(r.broken(0, "this is not a GGUF file"));
        }
        let version = r.u32("version")?;
        if version.swap_bytes() == 2 || version.swap_bytes() == 3 {
            return Err(r.unsupported(4, "the file is big-endian"));
        }
        if !(2..=3).contains(&version) {
            return Err(r.unsupported(4, format!("version {version} is not supported; 2 and 3 are")));
        }
        let tensor_count = r.count("number of tensors", MOST_ENTRIES)?;
        let key_count = r.count("number of keys", MOST_ENTRIES)?;

        let mut keys = HashMap::new();
        for _ in 0..key_count {
            let at = r.at;
            let key = r.name("key")?;
            let kind = r.u32("type of a value")?;
            let value = r.value(kind)?;
            if keys.insert(key.clone(), value).is_some() {
                return Err(r.broken(at, format!("the key `{key}` is duplicated")));
            }
        }
        let mut header = Header { keys, tensors: Vec::new() };
        let alignment = header.alignment(file)?;

        let mut seen = std::collections::HashSet::new();
        for _ in 0..tensor_count {
            let at = r.at;
            let tensor = r.tensor(alignment)?;
            if !seen.insert(tensor.name.clone()) {
                return Err(r.broken(at, format!("the tensor `{}` is duplicated", tensor.name)));
            }
            header.tensors.push(tensor);
        }
        // Offsets count from the end of the header, rounded up.
        let start = r.at.next_multiple_of(alignment);
        for tensor in &mut header.tensors {
            let range = start.checked_add(tensor.bytes.start).zip(start.checked_add(tensor.bytes.end));
            match range {
                Some((from, to)) if to <= bytes.len() => tensor.bytes = from..to,
                _ => {
                    let end = tensor.bytes.end as u128 + start as u128;
                    let cause = format!("it ends at byte {end}, but the file has {}", bytes.len());
                    return Err(FormatError::broken(file, Place::Tensor(tensor.name.clone()), cause));
                }
            }
        }
        header.refuse_overlaps(file)?;
        Ok(header)
    }

    /// Tensors that share bytes are damage: llama.cpp refuses them, too.
    fn refuse_overlaps(&self, file: &Path) -> Result<(), FormatError> {
        let mut sorted: Vec<&TensorInfo> = self.tensors.iter().collect();
        sorted.sort_by_key(|tensor| tensor.bytes.start);
        let overlap = sorted.windows(2).find(|pair| pair[1].bytes.start < pair[0].bytes.end);
        match overlap {
            None => Ok(()),
            Some(pair) => {
                let cause = format!("its bytes overlap those of `{}`", pair[0].name.escape_debug());
                Err(FormatError::broken(file, Place::Tensor(pair[1].name.clone()), cause))
            }
        }
    }

    fn alignment(&self, file: &Path) -> Result<usize, FormatError> {
        match self.keys.get("general.alignment") {
            None => Ok(32),
            Some(Value::Unsigned(n)) if n.is_power_of_two() && *n <= 1 << 16 => Ok(*n as usize),
            Some(other) => {
                let cause = format!("{other:?} is not a power of two up to 65536");
                Err(FormatError::broken(file, Place::Key("general.alignment".to_owned()), cause))
            }
        }
    }

    /// Whether a key is there.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.keys.contains_key(key)
    }
}

/// A header together with its file: what keys hold.
pub(crate) struct Keys<'a> {
    pub(crate) file: &'a Path,
    pub(crate) bytes: &'a [u8],
    pub(crate) header: &'a Header,
}

impl Keys<'_> {
    fn wrong(&self, key: &str, wanted: &str) -> FormatError {
        FormatError::broken(self.file, Place::Key(key.to_owned()), format!("{wanted} is expected"))
    }

    /// A whole number that is not negative.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, FormatError> {
        match self.header.keys.get(key) {
            None => Ok(None),
            Some(Value::Unsigned(n)) => Ok(Some(*n)),
            Some(Value::Signed(n)) if *n >= 0 => Ok(Some(*n as u64)),
            Some(_) => Err(self.wrong(key, "a whole number")),
        }
    }

    /// A number.
    pub(crate) fn float(&self, key: &str) -> Result<Option<f32>, FormatError> {
        match self.header.keys.get(key) {
            None => Ok(None),
            Some(Value::Float(n)) => Ok(Some(*n as f32)),
            Some(_) => Err(self.wrong(key, "a number")),
        }
    }

    /// A truth value.
    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        match self.header.keys.get(key) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A text.
    pub(crate) fn text(&self, key: &str) -> Result<Option<String>, FormatError> {
        match self.header.keys.get(key) {
            None => Ok(None),
            Some(Value::Text(range)) => match std::str::from_utf8(&self.bytes[range.clone()]) {
                Ok(text) => Ok(Some(text.to_owned())),
                Err(_) => Err(self.wrong(key, "UTF-8")),
            },
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    /// A list of texts; empty when the key is not there.
    fn texts(&self, key: &str) -> Result<Vec<String>, FormatError> {
        let (mut r, count) = match self.array(key, |kind| kind == TEXT, "a list of texts")? {
            None => return Ok(Vec::new()),
            Some(found) => found,
        };
        if count > MAX_TEXTS {
            return Err(r.broken(r.at, format!("`{key}` has more than {MAX_TEXTS} entries")));
        }
        let mut texts = Vec::new();
        for i in 0..count {
            let at = r.at;
            let range = r.text()?;
            let text = std::str::from_utf8(&self.bytes[range])
                .map_err(|_| r.broken(at, format!("entry {i} of `{key}` is not UTF-8")))?;
            texts.push(text.to_owned());
        }
        Ok(texts)
    }

    /// A list of numbers of four bytes; empty when the key is not there.
    fn words<T>(&self, key: &str, kinds: &[u32], of: fn([u8; 4]) -> T) -> Result<Vec<T>, FormatError> {
        let Some((mut r, count)) = self.array(key, |kind| kinds.contains(&kind), "a list of numbers")? else {
            return Ok(Vec::new());
        };
        let bytes = r.take(count.saturating_mul(4), "list of numbers")?;
        Ok(bytes.chunks_exact(4).map(|b| of([b[0], b[1], b[2], b[3]])).collect())
    }

    fn array(
        &self,
        key: &str,
        fits: impl Fn(u32) -> bool,
        wanted: &str,
    ) -> Result<Option<(Reader<'_>, usize)>, FormatError> {
        match self.header.keys.get(key) {
            None => Ok(None),
            Some(Value::Array { kind, count, at }) if fits(*kind) => {
                // The count was checked against the file when the header was read.
                Ok(Some((Reader { file: self.file, bytes: self.bytes, at: *at }, *count as usize)))
            }
            Some(_) => Err(self.wrong(key, wanted)),
        }
    }

    /// The tokenizer, when the file carries one.
    pub(crate) fn vocabulary(&self) -> Result<Option<Vocabulary>, FormatError> {
        let Some(model) = self.text("tokenizer.ggml.model")? else { return Ok(None) };
        let tokens = self.texts("tokenizer.ggml.tokens")?;
        let id = |name: &str| -> Result<Option<u32>, FormatError> {
            let key = format!("tokenizer.ggml.{name}");
            match self.number(&key)? {
                None => Ok(None),
                Some(n) if n < tokens.len() as u64 => Ok(Some(n as u32)),
                // What writers put where there is none.
                Some(n) if n == u64::from(u32::MAX) => Ok(None),
                Some(n) => {
                    let cause = format!("token {n} of {}", tokens.len());
                    Err(FormatError::broken(self.file, Place::Key(key), cause))
                }
            }
        };
        Ok(Some(Vocabulary {
            model,
            pre: self.text("tokenizer.ggml.pre")?,
            scores: self.words("tokenizer.ggml.scores", &[F32], f32::from_le_bytes)?,
            types: self.words("tokenizer.ggml.token_type", &[I32, U32], i32::from_le_bytes)?,
            merges: self.texts("tokenizer.ggml.merges")?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            unknown: id("unknown_token_id")?,
            padding: id("padding_token_id")?,
            add_bos: self.bool("tokenizer.ggml.add_bos_token")?,
            add_eos: self.bool("tokenizer.ggml.add_eos_token")?,
            add_space_prefix: self.bool("tokenizer.ggml.add_space_prefix")?,
            chat_template: match self.text("tokenizer.chat_template")? {
                Some(template) => {
                    Some(with_tools(&template, self.text("tokenizer.chat_template.tool_use")?.as_deref()))
                }
                None => None,
            },
            tokens,
        }))
    }
}

// The types of values.
const U32: u32 = 4;
const I32: u32 = 5;
const F32: u32 = 6;
const TEXT: u32 = 8;
const ARRAY: u32 = 9;

/// Bytes of a value that has a fixed size.
fn fixed_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        U32 | I32 | F32 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Reads a file from front to back and knows where it is.
struct Reader<'a> {
    file: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    fn broken(&self, at: usize, cause: impl Into<String>) -> FormatError {
        FormatError::broken(self.file, Place::Offset(at), cause)
    }

    fn unsupported(&self, at: usize, cause: impl Into<String>) -> FormatError {
        FormatError::unsupported(self.file, Place::Offset(at), cause)
    }

    fn take(&mut self, count: usize, what: &str) -> Result<&'a [u8], FormatError> {
        let left = &self.bytes[self.at..];
        if count > left.len() {
            let cause = format!("{what}: {count} bytes are expected, the file has {} more", left.len());
            return Err(self.broken(self.at, cause));
        }
        self.at += count;
        Ok(&left[..count])
    }

    fn u32(&mut self, what: &str) -> Result<u32, FormatError> {
        let b = self.take(4, what)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    fn u64(&mut self, what: &str) -> Result<u64, FormatError> {
        let b = self.take(8, what)?;
        Ok(u64::from_le_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]))
    }

    fn count(&mut self, what: &str, most: u64) -> Result<u64, FormatError> {
        let at = self.at;
        let count = self.u64(what)?;
        if count > most {
            return Err(self.broken(at, format!("{what}: {count}, at most {most} are allowed")));
        }
        Ok(count)
    }

    fn text(&mut self) -> Result<Range<usize>, FormatError> {
        let at = self.at;
        let length = self.u64("length of a text")?;
        let Ok(length) = usize::try_from(length) else {
            return Err(self.broken(at, format!("a text of {length} bytes")));
        };
        self.take(length, "text")?;
        Ok(self.at - length..self.at)
    }

    fn name(&mut self, what: &str) -> Result<String, FormatError> {
        let at = self.at;
        let range = self.text()?;
        if range.len() as u64 > LONGEST_NAME {
            return Err(self.broken(at, format!("a {what} of {} bytes", range.len())));
        }
        match std::str::from_utf8(&self.bytes[range]) {
            Ok(name) => Ok(name.to_owned()),
            Err(_) => Err(self.broken(at, format!("a {what} that is not UTF-8"))),
        }
    }

    fn value(&mut self, kind: u32) -> Result<Value, FormatError> {
        let at = self.at;
        if let Some(size) = fixed_size(kind) {
            let mut wide = [0u8; 8];
            wide[..size as usize].copy_from_slice(self.take(size as usize, "value")?);
            let bits = u64::from_le_bytes(wide);
            // Signed values are widened with their sign.
            let signed = |from: u64| ((bits << (64 - 8 * from)) as i64) >> (64 - 8 * from);
            return Ok(match kind {
                1 | 3 | I32 | 11 => Value::Signed(signed(size)),
                F32 => Value::Float(f64::from(f32::from_bits(bits as u32))),
                12 => Value::Float(f64::from_bits(bits)),
                7 => Value::Bool(bits != 0),
                _ => Value::Unsigned(bits),
            });
        }
        match kind {
            TEXT => Ok(Value::Text(self.text()?)),
            ARRAY => {
                let kind = self.u32("type of a list")?;
                let count = self.u64("length of a list")?;
                let start = self.at;
                match fixed_size(kind) {
                    Some(size) => {
                        let bytes = count.checked_mul(size).and_then(|n| usize::try_from(n).ok());
                        let Some(bytes) = bytes else {
                            return Err(self.broken(at, format!("a list of {count} values")));
                        };
                        self.take(bytes, "list")?;
                    }
                    // Each text takes at least eight bytes, so a lying count ends with the file.
                    None if kind == TEXT => {
                        for _ in 0..count {
                            self.text()?;
                        }
                    }
                    None if kind == ARRAY => return Err(self.unsupported(at, "a list of lists")),
                    None => return Err(self.broken(at, format!("a list of values of unknown type {kind}"))),
                }
                Ok(Value::Array { kind, count, at: start })
            }
            _ => Err(self.broken(at, format!("a value of unknown type {kind}"))),
        }
    }

    /// An entry of the table of tensors; its range counts from the start of the data.
    fn tensor(&mut self, alignment: usize) -> Result<TensorInfo, FormatError> {
        let name = self.name("tensor name")?;
        let location = || Place::Tensor(name.clone());
        let dimensions = self.u32("number of dimensions")?;
        if dimensions == 0 || dimensions > MOST_DIMENSIONS {
            return Err(FormatError::broken(self.file, location(), format!("it has {dimensions} dimensions")));
        }
        let mut shape = Vec::new();
        for _ in 0..dimensions {
            let size = self.u64("dimension")?;
            match usize::try_from(size) {
                Ok(size) if size > 0 => shape.push(size),
                _ => return Err(FormatError::broken(self.file, location(), format!("a dimension is {size}"))),
            }
        }
        let row = shape[0];
        shape.reverse();
        let kind = self.u32("type of a tensor")?;
        let dtype = Dtype::from_ggml(kind).map_err(|kind| {
            FormatError::unsupported(self.file, location(), format!("its type is {kind}, which is not supported"))
        })?;
        let offset = self.u64("offset of a tensor")?;
        let size = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).and_then(|n| dtype.bytes(n));
        // Blocks never span rows.
        let (Some(size), true) = (size, row.is_multiple_of(dtype.block().0)) else {
            let cause = format!("{shape:?} numbers of type {dtype} do not make whole blocks");
            return Err(FormatError::broken(self.file, location(), cause));
        };
        let range = usize::try_from(offset).ok().and_then(|from| Some(from..from.checked_add(size)?));
        match range {
            Some(bytes) if bytes.start.is_multiple_of(alignment) => Ok(TensorInfo { name, dtype, shape, bytes }),
            _ => Err(FormatError::broken(self.file, location(), format!("its offset is {offset}"))),
        }
    }
}
