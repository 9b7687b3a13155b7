//! Model files: safetensors with a `config.json`, and GGUF, as one [`Checkpoint`].
//!
//! A checkpoint is opened by reading headers only; weights are mapped, not copied. Tensors go by the names that GGUF gives
//! them (`blk.3.attn_q.weight`), whatever the file calls them. Files may be hostile: nothing in them makes this panic or
//! allocate more than their size justifies, and every error names the file, the place in it and the cause.

pub mod gguf;

mod blocks;
mod config;
mod weight;

pub use blocks::Dtype;
pub(crate) use weight::{Layout, Weight};

use crate::family::Architecture;
use memmap2::Mmap;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The largest `config.json` and the largest index of shards that are read.
const LARGEST_JSON: u64 = 64 << 20;

/// Why a model file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FormatError {
    /// The file cannot be read.
    #[error("read {}", file.display())]
    Read {
        /// Which file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The folder holds no model, or more than one.
    #[error("{}: {cause}", folder.display())]
    NoModel {
        /// Which folder.
        folder: PathBuf,
        /// The missing item.
        cause: String,
    },
    /// The file is damaged, or contradicts itself.
    #[error("{}: {place}: {cause}", file.display())]
    Broken {
        /// Which file.
        file: PathBuf,
        /// The location.
        place: Place,
        /// The problem.
        cause: String,
    },
    /// The file is valid, but this engine does not support it.
    #[error("{}: {place}: {cause}", file.display())]
    Unsupported {
        /// Which file.
        file: PathBuf,
        /// The location.
        place: Place,
        /// The unsupported feature.
        cause: String,
    },
}

/// A location in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// The file as a whole.
    Whole,
    /// A byte offset.
    Offset(usize),
    /// A tensor.
    Tensor(String),
    /// A key of its metadata.
    Key(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Whole => f.write_str("the file"),
            Place::Offset(at) => write!(f, "byte {at}"),
            Place::Tensor(name) => write!(f, "tensor `{}`", name.escape_debug()),
            Place::Key(key) => write!(f, "`{}`", key.escape_debug()),
        }
    }
}

impl FormatError {
    pub(crate) fn broken(file: &Path, place: Place, cause: impl Into<String>) -> FormatError {
        FormatError::Broken { file: file.to_owned(), place, cause: cause.into() }
    }

    pub(crate) fn unsupported(file: &Path, place: Place, cause: impl Into<String>) -> FormatError {
        FormatError::Unsupported { file: file.to_owned(), place, cause: cause.into() }
    }
}

/// A model's files, opened.
#[derive(Debug)]
pub struct Checkpoint {
    architecture: Architecture,
    files: Vec<Mapped>,
    /// By the name that the file gives them.
    tensors: HashMap<String, Entry>,
    /// The GGUF header when it is one.
    header: Option<gguf::Header>,
    /// GPT-2's tensors may carry a `transformer.` in front.
    prefix: &'static str,
}

#[derive(Debug)]
struct Mapped {
    path: PathBuf,
    map: Mmap,
}

#[derive(Debug)]
struct Entry {
    file: usize,
    dtype: Result<Dtype, String>,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

impl Checkpoint {
    /// Opens a folder with `config.json` and `*.safetensors`, a folder with one `*.gguf`, or a GGUF file.
    pub fn open(path: &Path) -> Result<Checkpoint, FormatError> {
        let about = std::fs::metadata(path).map_err(|source| FormatError::Read { file: path.to_owned(), source })?;
        if !about.is_dir() {
            return Self::open_gguf(path);
        }
        let config = path.join("config.json");
        if config.is_file() {
            return Self::open_safetensors(path, &config);
        }
        match &files_ending(path, "gguf")?[..] {
            [only] => Self::open_gguf(only),
            found => {
                let cause = match found.len() {
                    0 => "the folder has neither `config.json` with `*.safetensors` nor a `*.gguf` file".to_owned(),
                    n => format!("the folder has {n} `.gguf` files; give the path of one of them"),
                };
                Err(FormatError::NoModel { folder: path.to_owned(), cause })
            }
        }
    }

    /// The model's shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// How many numbers the model has.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|t| t.shape.iter().map(|d| *d as u64).product::<u64>()).sum()
    }

    /// How many numbers are stored in each type, the most common first.
    pub fn dtypes(&self) -> Vec<(Dtype, u64)> {
        let mut counts: HashMap<Dtype, u64> = HashMap::new();
        for tensor in self.tensors.values() {
            if let Ok(dtype) = tensor.dtype {
                *counts.entry(dtype).or_default() += tensor.shape.iter().map(|d| *d as u64).product::<u64>();
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(dtype, count)| (std::cmp::Reverse(*count), *dtype));
        counts
    }

    /// The tokenizer that a GGUF file carries; `None` for safetensors, whose tokenizer is a file of its own.
    pub fn vocabulary(&self) -> Result<Option<gguf::Vocabulary>, FormatError> {
        let (Some(header), Some(file)) = (&self.header, self.files.first()) else { return Ok(None) };
        gguf::Keys { file: &file.path, bytes: &file.map, header }.vocabulary()
    }

    /// A tensor by our name, checked to have `shape` (outputs × inputs); `None` when the model has none of that name.
    pub(crate) fn weight(&self, name: &str, shape: &[usize]) -> Result<Option<Weight<'_>>, FormatError> {
        let gguf = self.header.is_some();
        let prefix_of_file = match gguf {
            true => name.to_owned(),
            false => match self.architecture.hugging_face_name(name) {
                Some(prefix_of_file) if prefix_of_file.starts_with("lm_head") => prefix_of_file,
                Some(prefix_of_file) => format!("{}{prefix_of_file}", self.prefix),
                None => return Ok(None),
            },
        };
        let Some(entry) = self.tensors.get(&prefix_of_file) else { return Ok(None) };
        let file = &self.files[entry.file];
        let place = || Place::Tensor(prefix_of_file.clone());
        let matrix = shape.len() == 2;
        let layout = if !gguf && matrix && self.architecture.transposed_in_hugging_face(name) {
            Layout::Transposed
        } else if gguf && self.architecture.interleaved_in_gguf(name) {
            Layout::Interleaved { head_dim: self.architecture.head_dim }
        } else {
            Layout::Plain
        };
        let mut wanted = shape.to_vec();
        if layout == Layout::Transposed {
            wanted.reverse();
        }
        if entry.shape != wanted {
            let cause = format!("its shape is {:?}, but the configuration requires {wanted:?}", entry.shape);
            return Err(FormatError::broken(&file.path, place(), cause));
        }
        let dtype = match &entry.dtype {
            Ok(dtype) => *dtype,
            Err(dtype) => {
                let cause = format!("its type is {dtype}, which is not supported");
                return Err(FormatError::unsupported(&file.path, place(), cause));
            }
        };
        let columns = if matrix { shape[1] } else { shape[0] };
        let rows = if matrix { shape[0] } else { 1 };
        let bytes = &file.map[entry.bytes.clone()];
        Ok(Some(Weight { file: &file.path, name: prefix_of_file, dtype, rows, columns, bytes, layout }))
    }

    /// As [`Checkpoint::weight`], for a tensor that must be there.
    pub(crate) fn need(&self, name: &str, shape: &[usize]) -> Result<Weight<'_>, FormatError> {
        self.weight(name, shape)?.ok_or_else(|| {
            let file = self.files.first().map_or(Path::new(""), |f| &f.path);
            let name = match self.header {
                Some(_) => name.to_owned(),
                None => self.architecture.hugging_face_name(name).unwrap_or_else(|| name.to_owned()),
            };
            FormatError::broken(file, Place::Tensor(name), "it is missing")
        })
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint, FormatError> {
        let mapped = map(path)?;
        let mut header = gguf::Header::parse(path, &mapped.map)?;
        let mut tensors = HashMap::new();
        for t in std::mem::take(&mut header.tensors) {
            let entry = Entry { file: 0, dtype: Ok(t.dtype), shape: t.shape, bytes: t.bytes };
            tensors.insert(t.name, entry);
        }
        let keys = gguf::Keys { file: path, bytes: &mapped.map, header: &header };
        let Some(table) = tensors.get("token_embd.weight") else {
            return Err(FormatError::broken(path, Place::Tensor("token_embd.weight".to_owned()), "it is missing"));
        };
        if tensors.contains_key("rope_freqs.weight") {
            let place = Place::Tensor("rope_freqs.weight".to_owned());
            return Err(FormatError::unsupported(path, place, "rotary factors are not supported"));
        }
        if header.has("split.count") && keys.number("split.count")?.is_some_and(|n| n > 1) {
            let place = Place::Key("split.count".to_owned());
            return Err(FormatError::unsupported(path, place, "a model in several GGUF files is not supported"));
        }
        let architecture = config::from_gguf(&keys, table.shape[0], !tensors.contains_key("output.weight"))?;
        Ok(Checkpoint { architecture, files: vec![mapped], tensors, header: Some(header), prefix: "" })
    }

    fn open_safetensors(folder: &Path, config: &Path) -> Result<Checkpoint, FormatError> {
        let (mut architecture, says_tied) = config::from_config(config, &read_small(config)?)?;
        let mut files = Vec::new();
        let mut tensors = HashMap::new();
        for (path, wanted) in shards(folder)? {
            let mapped = map(&path)?;
            let broken = |cause: String| FormatError::broken(&path, Place::Whole, cause);
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
                let entry = Entry { file: files.len(), dtype, shape: info.shape.clone(), bytes: from..to };
                if tensors.insert(name.clone(), entry).is_some() {
                    return Err(FormatError::broken(&path, Place::Tensor(name), "it is in two files"));
                }
            }
            files.push(mapped);
        }
        let prefix = if tensors.contains_key("transformer.wte.weight") { "transformer." } else { "" };
        // A head that is shared with the token table is usually left out of the file, and some configurations do not say
        // so; a head of its own cannot be guessed.
        if !architecture.tied && !tensors.contains_key("lm_head.weight") {
            if says_tied {
                let place = Place::Tensor("lm_head.weight".to_owned());
                let cause = "it is missing, and `config.json` says that the head is not tied";
                return Err(FormatError::broken(config, place, cause));
            }
            architecture.tied = true;
        }
        Ok(Checkpoint { architecture, files, tensors, header: None, prefix })
    }
}

/// A safetensors file, and which of its tensors are wanted when an index says so.
type Shard = (PathBuf, Option<HashSet<String>>);

/// The safetensors files of a folder; with an index, which tensors are wanted from each.
fn shards(folder: &Path) -> Result<Vec<Shard>, FormatError> {
    let index = folder.join("model.safetensors.index.json");
    if !index.is_file() {
        let found = files_ending(folder, "safetensors")?;
        if found.is_empty() {
            let cause = "there is no `*.safetensors` next to `config.json`".to_owned();
            return Err(FormatError::NoModel { folder: folder.to_owned(), cause });
        }
        return Ok(found.into_iter().map(|path| (path, None)).collect());
    }
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: HashMap<String, String>,
    }
    let map: Index = serde_json::from_slice(&read_small(&index)?)
        .map_err(|e| FormatError::broken(&index, Place::Whole, e.to_string()))?;
    let mut shards: std::collections::BTreeMap<String, HashSet<String>> = Default::default();
    for (tensor, file) in map.weight_map {
        // Only files beside the index: the index is untrusted.
        if file.is_empty() || file.contains(['/', '\\', '\0']) || file.starts_with('.') {
            let cause = format!("the index names `{}`, which is not a plain file name", file.escape_debug());
            return Err(FormatError::broken(&index, Place::Tensor(tensor), cause));
        }
        shards.entry(file).or_default().insert(tensor);
    }
    if shards.is_empty() {
        return Err(FormatError::broken(&index, Place::Key("weight_map".to_owned()), "it is empty"));
    }
    Ok(shards.into_iter().map(|(file, tensors)| (folder.join(file), Some(tensors))).collect())
}

fn files_ending(folder: &Path, ending: &str) -> Result<Vec<PathBuf>, FormatError> {
    let error = |source| FormatError::Read { file: folder.to_owned(), source };
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(error)? {
        let path = entry.map_err(error)?.path();
        if path.extension().is_some_and(|e| e == ending) && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn map(path: &Path) -> Result<Mapped, FormatError> {
    let error = |source| FormatError::Read { file: path.to_owned(), source };
    let file = File::open(path).map_err(error)?;
    if !file.metadata().map_err(error)?.is_file() {
        return Err(error(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file")));
    }
    // SAFETY: the map is only read. Truncating a model file while it is being loaded ends the process with SIGBUS;
    // model folders are ours and files in them are replaced by renaming.
    let map = unsafe { Mmap::map(&file) }.map_err(error)?;
    Ok(Mapped { path: path.to_owned(), map })
}

fn read_small(path: &Path) -> Result<Vec<u8>, FormatError> {
    let error = |source| FormatError::Read { file: path.to_owned(), source };
    let mut bytes = Vec::new();
    File::open(path).map_err(error)?.take(LARGEST_JSON + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > LARGEST_JSON {
        return Err(FormatError::broken(path, Place::Whole, format!("it is longer than {LARGEST_JSON} bytes")));
    }
    Ok(bytes)
}
