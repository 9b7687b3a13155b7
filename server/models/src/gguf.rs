//! The header of a GGUF file (version 2 and 3). Lengths in it are claims of a stranger: each is held against the file.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};

use camino::Utf8Path;

use crate::error::{Error, Result};
use crate::inspect::{Counted, Format, Summary, plain, plausible};

/// Vocabularies are the largest part; 256 MiB is ten times the largest known.
const MOST_HEADER: u64 = 256 << 20;
const MOST_TENSORS: u64 = 1 << 20;
const MOST_KEYS: u64 = 1 << 16;
const MOST_TEXT: u64 = 16 << 20;

/// What the header says about the model.
pub(crate) fn summary(path: &Utf8Path) -> Result<Summary> {
    let file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("check", path))?.len();
    let mut header = Header { input: BufReader::with_capacity(1 << 16, file).take(MOST_HEADER.min(length)), path };

    if &header.array::<4>()? != b"GGUF" {
        return Err(Error::corrupt(path, "it does not begin with `GGUF`"));
    }
    let version = header.u32()?;
    if !(2..=3).contains(&version) {
        return Err(Error::corrupt(path, format!("GGUF version {version} is not supported; 2 and 3 are")));
    }
    let tensors = header.bounded("tensors", MOST_TENSORS)?;
    let keys = header.bounded("keys", MOST_KEYS)?;
    let mut facts = Facts::default();
    for _ in 0..keys {
        let key = header.text()?;
        let kind = header.u32()?;
        match header.value(kind, 0)? {
            Value::Number(number) => drop(facts.numbers.insert(key, number)),
            Value::Text(text) => drop(facts.texts.insert(key, text)),
            Value::Many(count) => drop(facts.counts.insert(key, count)),
            Value::Other => {}
        }
    }

    let mut counted = Counted::default();
    for _ in 0..tensors {
        header.tensor(length, &mut counted)?;
    }
    facts.summary(path, &counted)
}

#[derive(Default)]
struct Facts {
    numbers: BTreeMap<String, u64>,
    texts: BTreeMap<String, String>,
    counts: BTreeMap<String, u64>,
}

impl Facts {
    fn summary(&self, path: &Utf8Path, counted: &Counted) -> Result<Summary> {
        let family = self.texts.get("general.architecture").cloned().unwrap_or_default();
        let number = |name: &str| self.numbers.get(&format!("{family}.{name}")).copied();
        let need = |name: &str| number(name).ok_or_else(|| Error::corrupt(path, format!("it has no {family}.{name}")));
        let (layers, width) = (need("block_count")?, need("embedding_length")?);
        let (heads, context) = (need("attention.head_count")?, need("context_length")?);
        let vocab = number("vocab_size").or_else(|| self.counts.get("tokenizer.ggml.tokens").copied()).unwrap_or(0);
        let head_dim = number("attention.key_length").or_else(|| width.checked_div(heads)).unwrap_or(0);
        let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
        let sizes = [
            ("block_count", layers),
            ("embedding_length", width),
            ("head_count", heads),
            ("head_count_kv", kv_heads),
            ("key_length", head_dim),
            ("context_length", context),
            ("vocab_size", vocab),
        ];
        plausible(path, &sizes)?;
        if !self.counts.contains_key("tokenizer.ggml.tokens") {
            return Err(Error::corrupt(path, "it has no tokenizer.ggml.tokens, which is required"));
        }
        Ok(Summary {
            family: plain(&family),
            format: Format::Gguf,
            parameters: counted.parameters,
            dtype: counted.dtype(),
            weights_bytes: counted.bytes,
            context,
            layers,
            width,
            heads,
            kv_heads,
            head_dim,
            vocab,
            files: Vec::new(),
            bytes: 0,
            digest: None,
            license: self.texts.get("general.license").map(|text| plain(text)),
            chat_template: self.texts.contains_key("tokenizer.chat_template"),
        })
    }
}

enum Value {
    Number(u64),
    Text(String),
    Many(u64),
    Other,
}

struct Header<'a, R> {
    input: R,
    path: &'a Utf8Path,
}

impl<R: Read> Header<'_, R> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.input.read_exact(&mut bytes).map_err(|_| Error::corrupt(self.path, "its header ends too early"))?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn bounded(&mut self, what: &str, most: u64) -> Result<u64> {
        let count = self.u64()?;
        if count > most { Err(Error::corrupt(self.path, format!("it declares {count} {what}"))) } else { Ok(count) }
    }

    fn text(&mut self) -> Result<String> {
        let size = self.bounded("bytes in one text", MOST_TEXT)?;
        let mut bytes = Vec::new();
        self.input.by_ref().take(size).read_to_end(&mut bytes).map_err(Error::io("read", self.path))?;
        if (bytes.len() as u64) < size {
            return Err(Error::corrupt(self.path, "its header ends too early"));
        }
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn skip(&mut self, size: u64) -> Result<()> {
        let skipped = std::io::copy(&mut self.input.by_ref().take(size), &mut std::io::sink());
        match skipped.map_err(Error::io("read", self.path))? {
            found if found == size => Ok(()),
            _ => Err(Error::corrupt(self.path, "its header ends too early")),
        }
    }

    fn value(&mut self, kind: u32, depth: u32) -> Result<Value> {
        Ok(match kind {
            0 => Value::Number(self.array::<1>()?[0].into()),
            1 | 7 => self.skip(1).map(|()| Value::Other)?,
            2 => Value::Number(u16::from_le_bytes(self.array()?).into()),
            3 => self.skip(2).map(|()| Value::Other)?,
            4 => Value::Number(self.u32()?.into()),
            // Some writers use signed numbers for sizes.
            5 => u64::try_from(i32::from_le_bytes(self.array()?)).map_or(Value::Other, Value::Number),
            6 => self.skip(4).map(|()| Value::Other)?,
            8 => Value::Text(self.text()?),
            9 => return self.list(depth),
            10 => Value::Number(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.array()?)).map_or(Value::Other, Value::Number),
            12 => self.skip(8).map(|()| Value::Other)?,
            other => return Err(Error::corrupt(self.path, format!("it has a value of unknown type {other}"))),
        })
    }

    fn list(&mut self, depth: u32) -> Result<Value> {
        if depth > 4 {
            return Err(Error::corrupt(self.path, "its lists are nested too deeply"));
        }
        let kind = self.u32()?;
        let count = self.u64()?;
        let width = match kind {
            0 | 1 | 7 => Some(1),
            2 | 3 => Some(2),
            4..=6 => Some(4),
            10..=12 => Some(8),
            _ => None,
        };
        match width {
            Some(width) => self.skip(count.saturating_mul(width))?,
            // Each element takes at least eight bytes, so the header's end bounds a lying count.
            None => {
                for _ in 0..count {
                    self.value(kind, depth + 1)?;
                }
            }
        }
        Ok(Value::Many(count))
    }

    fn tensor(&mut self, length: u64, counted: &mut Counted) -> Result<()> {
        let name = self.text()?;
        let no = |path, why: String| Error::corrupt(path, format!("tensor {}: {why}", plain(&name)));
        let sides = self.u32()?;
        if sides > 8 {
            return Err(no(self.path, format!("it has {sides} dimensions")));
        }
        let mut elements = 1u64;
        for _ in 0..sides {
            elements =
                elements.checked_mul(self.u64()?).ok_or_else(|| no(self.path, "its shape is impossible".to_owned()))?;
        }
        let kind = self.u32()?;
        let offset = self.u64()?;
        let (dtype, block, size) = block(kind).ok_or_else(|| no(self.path, format!("its type {kind} is unknown")))?;
        let bytes = elements.div_ceil(block).saturating_mul(size);
        if offset.saturating_add(bytes) > length {
            return Err(no(self.path, format!("it declares {bytes} bytes at {offset}, but the file has {length}")));
        }
        counted.add(dtype, elements, bytes);
        Ok(())
    }
}

/// A type's name, the elements of one block, and the bytes of one block.
fn block(kind: u32) -> Option<(&'static str, u64, u64)> {
    Some(match kind {
        0 => ("f32", 1, 4),
        1 => ("f16", 1, 2),
        2 => ("q4_0", 32, 18),
        3 => ("q4_1", 32, 20),
        6 => ("q5_0", 32, 22),
        7 => ("q5_1", 32, 24),
        8 => ("q8_0", 32, 34),
        9 => ("q8_1", 32, 36),
        10 => ("q2_k", 256, 84),
        11 => ("q3_k", 256, 110),
        12 => ("q4_k", 256, 144),
        13 => ("q5_k", 256, 176),
        14 => ("q6_k", 256, 210),
        15 => ("q8_k", 256, 292),
        16 => ("iq2_xxs", 256, 66),
        17 => ("iq2_xs", 256, 74),
        18 => ("iq3_xxs", 256, 98),
        19 => ("iq1_s", 256, 50),
        20 => ("iq4_nl", 32, 18),
        21 => ("iq3_s", 256, 110),
        22 => ("iq2_s", 256, 82),
        23 => ("iq4_xs", 256, 136),
        24 => ("i8", 1, 1),
        25 => ("i16", 1, 2),
        26 => ("i32", 1, 4),
        27 => ("i64", 1, 8),
        28 => ("f64", 1, 8),
        29 => ("iq1_m", 256, 56),
        30 => ("bf16", 1, 2),
        34 => ("tq1_0", 256, 54),
        35 => ("tq2_0", 256, 66),
        39 => ("mxfp4", 32, 17),
        _ => return None,
    })
}
