//! The tensors of a folder's safetensors files, by the names that the files give them.

use crate::json::{self, MAX_VALUES_OF_HEADER};

use super::config::text_part;
use super::{Dtype, FormatError, Mapped, Place, foreign, gguf, gguf_of, is_safetensors, map, read_small, shards};
use half::{bf16, f16};
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Mapped files and where each tensor is.
#[derive(Debug)]
pub struct Tensors {
    pub(super) files: Vec<Mapped>,
    pub(super) entries: HashMap<String, Entry>,
}

/// Where a tensor is.
#[derive(Debug)]
pub(super) struct Entry {
    file: usize,
    pub(super) dtype: Result<Dtype, String>,
    pub(super) shape: Vec<usize>,
    pub(super) bytes: Range<usize>,
    /// Whether an executor asked for it.
    used: AtomicBool,
}

impl Entry {
    pub(super) fn new(file: usize, dtype: Result<Dtype, String>, shape: Vec<usize>, bytes: Range<usize>) -> Entry {
        Entry { file, dtype, shape, bytes, used: AtomicBool::new(false) }
    }

    pub(super) fn numbers(&self) -> u64 {
        self.shape.iter().map(|d| *d as u64).product()
    }
}

/// The most tensors of all files: mixtures of hundreds of experts have 100,000.
const MAX_TENSORS: usize = 1 << 17;

/// Refuses a header with more values than any model needs, or with two tensors of one name. What is no header at all, its reader refuses.
fn check_header(file: &[u8]) -> Result<(), serde_json::Error> {
    let Some((length, rest)) = file.split_first_chunk::<8>() else { return Ok(()) };
    let header = usize::try_from(u64::from_le_bytes(*length)).ok().and_then(|length| rest.get(..length));
    header.map_or(Ok(()), |header| json::check_keys(header, MAX_VALUES_OF_HEADER))
}

impl Tensors {
    /// Reads the headers of all files. Causal masks, rotary tables and numbered positions are left out, and the parts for images
    /// of models that take them.
    pub fn open(folder: &Path) -> Result<Tensors, FormatError> {
        let file = folder.join("config.json");
        let takes_images = text_part(&file, &whole_config(&file)?)?.is_some();
        let mut files = Vec::new();
        let mut entries = HashMap::new();
        for (path, wanted) in shards(folder)? {
            let mapped = map(&path)?;
            let broken = |cause: String| FormatError::broken(&path, Place::Whole, cause);
            // Each tensor takes more memory than its few bytes in the file.
            check_header(&mapped.map).map_err(|e| broken(e.to_string()))?;
            let (length, metadata) =
                safetensors::SafeTensors::read_metadata(&mapped.map).map_err(|e| broken(e.to_string()))?;
            // The header stands behind its own length.
            let start = length + 8;
            let mut found = metadata.tensors();
            if let Some(wanted) = wanted {
                if let Some(missing) = wanted.iter().find(|name| !found.contains_key(*name)) {
                    let cause = "the index names this file, but the tensor is not in it";
                    return Err(FormatError::broken(&path, Place::Tensor(missing.clone()), cause));
                }
                found.retain(|name, _| wanted.contains(name));
            }
            for (name, info) in found {
                let name = match takes_images {
                    true => foreign::text_name(&name),
                    false => Some(name),
                };
                let Some(name) = name else { continue };
                let (from, to) = info.data_offsets;
                let bytes = start.checked_add(from).zip(start.checked_add(to));
                let Some((from, to)) = bytes.filter(|(from, to)| from <= to && *to <= mapped.map.len()) else {
                    return Err(FormatError::broken(&path, Place::Tensor(name), "it ends beyond the end of the file"));
                };
                let dtype = Dtype::from_safetensors(info.dtype).ok_or_else(|| format!("{:?}", info.dtype));
                let size = info.shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
                if let Ok(dtype) = dtype
                    && size.and_then(|n| dtype.bytes(n)) != Some(to - from)
                {
                    let cause = format!("{:?} of {dtype} does not match its size of {} bytes", info.shape, to - from);
                    return Err(FormatError::broken(&path, Place::Tensor(name), cause));
                }
                if foreign::is_buffer(&name, &info.shape) {
                    continue;
                }
                if entries.len() == MAX_TENSORS {
                    let cause = format!("the model has more than {MAX_TENSORS} tensors");
                    return Err(FormatError::broken(&path, Place::Whole, cause));
                }
                let entry = Entry::new(files.len(), dtype, info.shape.clone(), from..to);
                if entries.insert(name.clone(), entry).is_some() {
                    return Err(FormatError::broken(&path, Place::Tensor(name), "two tensors have this name"));
                }
            }
            files.push(mapped);
        }
        Ok(Tensors { files, entries })
    }

    /// A tensor; `None` when there is none of that name. Refuses types that are not supported. What is only looked at
    /// does not count as used.
    pub fn get(&self, name: &str) -> Result<Option<Tensor<'_>>, FormatError> {
        let Some((name, entry)) = self.entries.get_key_value(name) else { return Ok(None) };
        let path = &self.files[entry.file].path;
        let dtype = *entry.dtype.as_ref().map_err(|dtype| {
            let cause = format!("its type is {dtype}, which is not supported");
            FormatError::unsupported(path, Place::Tensor(name.clone()), cause)
        })?;
        Ok(Some(Tensor { file: path, name, dtype, shape: &entry.shape, bytes: self.bytes(entry) }))
    }

    /// A tensor that is used; `None` when there is none of that name. Refuses one of another shape.
    pub(super) fn find(&self, name: &str, shape: &[usize]) -> Result<Option<Tensor<'_>>, FormatError> {
        let Some(entry) = self.entries.get(name) else { return Ok(None) };
        self.set_used(name);
        if entry.shape != shape {
            let cause = format!("its shape is {:?}, but the configuration requires {shape:?}", entry.shape);
            return Err(FormatError::broken(&self.files[entry.file].path, Place::Tensor(name.to_owned()), cause));
        }
        self.get(name)
    }

    /// A tensor that is used and must be there with this shape, the slowest side first.
    pub fn need(&self, name: &str, shape: &[usize]) -> Result<Tensor<'_>, FormatError> {
        self.find(name, shape)?.ok_or_else(|| self.missing(name))
    }

    pub(super) fn missing(&self, name: &str) -> FormatError {
        let file = self.files.first().map_or(Path::new(""), |file| &file.path);
        FormatError::broken(file, Place::Tensor(name.to_owned()), "it is missing")
    }

    /// Counts a tensor as used, such as a copy of another one, which nothing has to read.
    pub fn set_used(&self, name: &str) {
        if let Some(entry) = self.entries.get(name) {
            entry.used.store(true, Ordering::Relaxed);
        }
    }

    /// Refuses a model of a family and a number of layers if a tensor of a name that passes was not used: it would be
    /// left out of the computation.
    pub fn refuse_unused(
        &self,
        family: &str,
        layers: usize,
        checked: impl Fn(&str) -> bool,
    ) -> Result<(), FormatError> {
        let is_unused = |(name, entry): &(&String, &Entry)| checked(name) && !entry.used.load(Ordering::Relaxed);
        let unused = self.entries.iter().filter(is_unused).min_by_key(|(name, _)| name.as_str());
        let Some((name, entry)) = unused else { return Ok(()) };
        let cause = match foreign::layer(name).is_some_and(|layer| layer >= layers) {
            true => format!("its layer is not in the model: the configuration has {layers} layers"),
            false => format!("models of the family `{family}` have no such tensor"),
        };
        Err(FormatError::unsupported(&self.files[entry.file].path, Place::Tensor(name.clone()), cause))
    }

    /// The names of all tensors, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    pub(super) fn bytes(&self, entry: &Entry) -> &[u8] {
        &self.files[entry.file].map[entry.bytes.clone()]
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// How many numbers the tensors have whose names pass.
    pub fn parameters(&self, counts: impl Fn(&str) -> bool) -> u64 {
        let counted = self.entries.iter().filter(|(name, _)| counts(name));
        counted.map(|(_, entry)| entry.numbers()).sum()
    }
}

/// One tensor in its file.
#[derive(Debug, Clone, Copy)]
pub struct Tensor<'a> {
    /// Which file.
    pub file: &'a Path,
    /// Its name in the file.
    pub name: &'a str,
    /// How its numbers are stored.
    pub dtype: Dtype,
    /// Its sides, the slowest first.
    pub shape: &'a [usize],
    /// Its numbers, little-endian.
    pub bytes: &'a [u8],
}

impl Tensor<'_> {
    /// Refuses numbers that are not finite, or not `as_half`, in f16.
    pub fn check_numbers(&self, as_half: bool) -> Result<(), FormatError> {
        let broken = |cause: &str| FormatError::broken(self.file, Place::Tensor(self.name.to_owned()), cause);
        let halves = || self.bytes.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes) & 0x7fff);
        // The bits without the sign are in the order of the sizes; those of infinity and of what is no number are the largest. From 65,520 on,
        // f16 is infinite, since it rounds to the nearest.
        let (is_finite, is_half) = match self.dtype {
            Dtype::F32 => {
                let words = self.bytes.as_chunks().0.iter().map(|bytes| u32::from_le_bytes(*bytes) & 0x7fff_ffff);
                let largest = words.max().unwrap_or_default();
                (largest < f32::INFINITY.to_bits(), largest < 65_520f32.to_bits())
            }
            Dtype::F16 => (halves().max().unwrap_or_default() < f16::INFINITY.to_bits(), true),
            Dtype::Bf16 => {
                let largest = halves().max().unwrap_or_default();
                (largest < bf16::INFINITY.to_bits(), bf16::from_bits(largest).to_f32() < 65_520.0)
            }
            other @ (Dtype::Q8_0 | Dtype::Coded(_)) => {
                let cause = format!("its type is {other}; f32, f16 and bf16 are supported here");
                return Err(FormatError::unsupported(self.file, Place::Tensor(self.name.to_owned()), cause));
            }
        };
        match (is_finite, is_half) {
            (false, _) => Err(broken("it holds numbers that are not finite")),
            (true, false) if as_half => Err(broken("it holds numbers that are too large for f16")),
            (true, _) => Ok(()),
        }
    }
}

/// The `config.json` of a folder, read with a bound; of a model that also takes images, that of its part for texts.
pub fn config(folder: &Path) -> Result<Map<String, Value>, FormatError> {
    let file = folder.join("config.json");
    let whole = whole_config(&file)?;
    Ok(text_part(&file, &whole)?.unwrap_or(whole))
}

fn whole_config(file: &Path) -> Result<Map<String, Value>, FormatError> {
    serde_json::from_slice(&read_small(file)?).map_err(|e| FormatError::broken(file, Place::Whole, e.to_string()))
}

/// The family that a model's files name: `model_type` of a `config.json` (of its part for texts), `general.architecture` of a GGUF file. Empty when
/// they name none.
pub fn family(path: &Path) -> Result<String, FormatError> {
    if is_safetensors(path)? {
        return Ok(config(path)?.get("model_type").and_then(Value::as_str).unwrap_or_default().to_owned());
    }
    let file = gguf_of(path)?;
    let mapped = map(&file)?;
    let header = gguf::Header::parse(&file, &mapped.map)?;
    let keys = gguf::Keys { file: &file, bytes: &mapped.map, header: &header };
    Ok(keys.text("general.architecture")?.unwrap_or_default())
}
