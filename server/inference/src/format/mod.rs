//! Model files: safetensors with a `config.json`, and GGUF, as one [`Checkpoint`].
//!
//! A checkpoint is opened by reading headers only; weights are mapped, not copied. Tensors go by the names that GGUF gives
//! them (`blk.3.attn_q.weight`), whatever the file calls them. Files may be hostile: nothing in them makes this panic or
//! allocate more than their size justifies, and every error names the file, the place in it and the cause.

pub mod gguf;

mod blocks;
pub(crate) mod config;
mod encoder;
mod foreign;
mod tensors;
mod weight;

pub(crate) use blocks::{Block, FORMATS, Format, Scales};
pub use blocks::{Code, Dtype};
pub(crate) use encoder::Part;
#[cfg(test)]
pub(crate) use encoder::encoder_families;
pub use encoder::{EncoderCheckpoint, EncoderSettings, Pooling, is_encoder};
use tensors::Entry;
pub use tensors::{Tensor, Tensors, config, family};
pub(crate) use weight::Layout;
pub use weight::Weight;

use crate::family::Architecture;
use crate::json;
use memmap2::Mmap;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
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
    /// A damaged file, or one that contradicts itself.
    pub fn broken(file: &Path, place: Place, cause: impl Into<String>) -> FormatError {
        FormatError::Broken { file: file.to_owned(), place, cause: cause.into() }
    }

    /// A valid file that needs something which is not supported.
    pub fn unsupported(file: &Path, place: Place, cause: impl Into<String>) -> FormatError {
        FormatError::Unsupported { file: file.to_owned(), place, cause: cause.into() }
    }
}

/// A model's files, opened.
#[derive(Debug)]
pub struct Checkpoint {
    architecture: Architecture,
    tensors: Tensors,
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

impl Checkpoint {
    /// Opens a folder with `config.json` and `*.safetensors`, a folder with one `*.gguf`, or a GGUF file.
    pub fn open(path: &Path) -> Result<Checkpoint, FormatError> {
        match is_safetensors(path)? {
            true => Self::open_safetensors(path, &path.join("config.json")),
            false => Self::open_gguf(&gguf_of(path)?),
        }
    }

    /// The model's shape.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// How many numbers the model has.
    pub fn parameters(&self) -> u64 {
        self.tensors.parameters(|_| true)
    }

    /// Bytes of all weights as stored.
    pub fn stored_bytes(&self) -> u64 {
        self.tensors.entries.values().map(|entry| entry.bytes.len() as u64).sum()
    }

    /// Whether the model is a GGUF file.
    pub fn is_gguf(&self) -> bool {
        self.header.is_some()
    }

    /// A text of a GGUF file's metadata, such as `general.license`.
    pub fn metadata(&self, key: &str) -> Option<String> {
        self.keys()?.text(key).ok().flatten()
    }

    /// The quantization by its name: what a GGUF file says of itself, else the type of the most numbers.
    pub fn quantization(&self) -> String {
        let named = self.keys().and_then(|keys| keys.number("general.file_type").ok().flatten());
        let named = named.and_then(foreign::file_type).map(str::to_owned);
        named.or_else(|| Some(self.dtypes().first()?.0.to_string())).unwrap_or_else(|| "unknown".to_owned())
    }

    fn keys(&self) -> Option<gguf::Keys<'_>> {
        let (header, file) = (self.header.as_ref()?, self.tensors.files.first()?);
        Some(gguf::Keys { file: &file.path, bytes: &file.map, header })
    }

    /// The tensors by the names that the files give them, with the types and sides of those whose types are supported.
    pub fn stored(&self) -> impl Iterator<Item = Tensor<'_>> {
        self.tensors.names().filter_map(|name| self.tensors.get(name).ok()?)
    }

    /// Refuses a model with tensors that its executor did not use.
    pub fn refuse_unused(&self) -> Result<(), FormatError> {
        self.tensors.refuse_unused(&self.architecture.family, self.architecture.layers, |_| true)
    }

    /// How many numbers are stored in each type, the most common first.
    pub fn dtypes(&self) -> Vec<(Dtype, u64)> {
        let mut counts: HashMap<Dtype, u64> = HashMap::new();
        for entry in self.tensors.entries.values() {
            if let Ok(dtype) = entry.dtype {
                *counts.entry(dtype).or_default() += entry.numbers();
            }
        }
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|(dtype, count)| (std::cmp::Reverse(*count), *dtype));
        counts
    }

    /// The tokenizer that a GGUF file carries; `None` for safetensors, whose tokenizer is a file of its own.
    pub fn vocabulary(&self) -> Result<Option<gguf::Vocabulary>, FormatError> {
        self.keys().map_or(Ok(None), |keys| keys.vocabulary())
    }

    /// What the files call a tensor; `None` when the family has none of that name.
    fn stored_name(&self, name: &str) -> Option<String> {
        if self.is_gguf() {
            return Some(name.to_owned());
        }
        let stored = self.architecture.hugging_face_name(name)?;
        Some(if stored.starts_with("lm_head") { stored } else { format!("{}{stored}", self.prefix) })
    }

    /// A tensor by our name, checked to have `shape` (outputs × inputs); `None` when the model has none of that name.
    pub fn weight(&self, name: &str, shape: &[usize]) -> Result<Option<Weight<'_>>, FormatError> {
        let Some(stored_name) = self.stored_name(name) else { return Ok(None) };
        let (gguf, matrix) = (self.is_gguf(), shape.len() == 2);
        let mut stored = shape.to_vec();
        let layout = if !gguf && matrix && self.architecture.transposed_in_hugging_face(name) {
            stored.reverse();
            Layout::Transposed
        } else if gguf && self.architecture.interleaved_in_gguf(name) {
            Layout::Interleaved { head_dim: self.architecture.head_dim }
        } else {
            Layout::Plain
        };
        let tensor = self.tensors.find(&stored_name, &stored)?;
        Ok(tensor.map(|tensor| Weight::new(tensor, shape, layout)))
    }

    /// What is added to the weights of norms.
    pub(crate) fn norm_offset(&self) -> f32 {
        let lacking = self.header.is_none() && self.architecture.norms_lack_one_in_hugging_face();
        if lacking { 1.0 } else { 0.0 }
    }

    /// As [`Checkpoint::weight`], for a tensor that must be there.
    pub fn need(&self, name: &str, shape: &[usize]) -> Result<Weight<'_>, FormatError> {
        let missing = || self.tensors.missing(self.stored_name(name).as_deref().unwrap_or(name));
        self.weight(name, shape)?.ok_or_else(missing)
    }

    fn open_gguf(path: &Path) -> Result<Checkpoint, FormatError> {
        let mapped = map(path)?;
        let mut header = gguf::Header::parse(path, &mapped.map)?;
        let listed = std::mem::take(&mut header.tensors).into_iter();
        let entries = listed.map(|t| (t.name, Entry::new(0, Ok(t.dtype), t.shape, t.bytes))).collect();
        let tensors = Tensors { files: vec![mapped], entries };
        let keys = gguf::Keys { file: path, bytes: &tensors.files[0].map, header: &header };
        let table = tensors.get("token_embd.weight")?.ok_or_else(|| tensors.missing("token_embd.weight"))?;
        if header.has("split.count") && keys.number("split.count")?.is_some_and(|n| n > 1) {
            let place = Place::Key("split.count".to_owned());
            return Err(FormatError::unsupported(path, place, "a model in several GGUF files is not supported"));
        }
        let vector = |name: &str| {
            tensors.set_used(name);
            let tensor = tensors.get(name).ok()??;
            let count: usize = tensor.shape.iter().product();
            // One for each pair of a head's dimensions; longer lists are refused without being read.
            let mut numbers = vec![0.0; count.min(1 << 10)];
            if numbers.len() == count {
                tensor.dtype.decode(tensor.bytes, &mut numbers);
            }
            Some(numbers)
        };
        let by_length = vector("rope_factors_short.weight").zip(vector("rope_factors_long.weight"));
        let factors = config::RopeFactors { all: vector("rope_freqs.weight"), by_length };
        let tied = !tensors.has("output.weight");
        let architecture = config::from_gguf(&keys, table.shape[0], tied, factors)?;
        Ok(Checkpoint { architecture, tensors, header: Some(header), prefix: "" })
    }

    fn open_safetensors(folder: &Path, config: &Path) -> Result<Checkpoint, FormatError> {
        let said = tensors::config(folder)?;
        let claims = foreign::Claims::read(config, &said)?;
        let (mut architecture, says_tied) = config::from_map(config, &said)?;
        let mut tensors = Tensors::open(folder)?;
        let prefix = if tensors.has("transformer.wte.weight") { "transformer." } else { "" };
        claims.check_biases(config, &architecture, tensors.entries.keys())?;
        if architecture.tied && tensors.has("lm_head.weight") {
            let table = architecture.hugging_face_name("token_embd.weight").map(|name| format!("{prefix}{name}"));
            let stored = |name: &str| {
                let entry = tensors.entries.get(name)?;
                Some((&entry.dtype, &entry.shape, tensors.bytes(entry)))
            };
            // As transformers does it: a head in the file counts, whatever the configuration says. A copy of the token
            // table is no head of its own.
            architecture.tied = table.and_then(|name| stored(&name)) == stored("lm_head.weight");
            if architecture.tied {
                tensors.entries.remove("lm_head.weight");
            }
        }
        // A head that is shared with the token table is usually left out of the file, and some configurations do not say
        // so; a head of its own cannot be guessed.
        if !architecture.tied && !tensors.has("lm_head.weight") {
            if says_tied {
                let place = Place::Tensor("lm_head.weight".to_owned());
                let cause = "it is missing, and `config.json` says that the head is not tied";
                return Err(FormatError::broken(config, place, cause));
            }
            architecture.tied = true;
        }
        Ok(Checkpoint { architecture, tensors, header: None, prefix })
    }
}

/// Whether a model is a folder with `config.json` and `*.safetensors`. Folders of GGUF files often carry the configuration
/// of the model that they were made from.
pub fn is_safetensors(path: &Path) -> Result<bool, FormatError> {
    if !path.join("config.json").is_file() {
        return Ok(false);
    }
    Ok(files_ending(path, "gguf")?.is_empty() || !files_ending(path, "safetensors")?.is_empty())
}

/// The GGUF file at a path: itself, or the only one of a folder.
fn gguf_of(path: &Path) -> Result<PathBuf, FormatError> {
    let about = std::fs::metadata(path).map_err(|source| FormatError::Read { file: path.to_owned(), source })?;
    if !about.is_dir() {
        return Ok(path.to_owned());
    }
    let found = files_ending(path, "gguf")?;
    if let [only] = &found[..] {
        return Ok(only.clone());
    }
    let cause = match found.len() {
        0 => "the folder has neither `config.json` with `*.safetensors` nor a `*.gguf` file".to_owned(),
        n => format!("the folder has {n} `.gguf` files; give the path of one of them"),
    };
    Err(FormatError::NoModel { folder: path.to_owned(), cause })
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
        if let Some(missing) = found.iter().find_map(|path| missing_shard(folder, path)) {
            let cause = format!("the file `{missing}` is missing, and other files say that the weights are in it, too");
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

/// The first file that is not there beside `…-00001-of-00003.safetensors`, whose name counts the files.
fn missing_shard(folder: &Path, path: &Path) -> Option<String> {
    let (numbered, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
    let (base, number) = numbered.rsplit_once('-')?;
    let digits = |text: &str| (text.len() == 5).then(|| text.parse::<u32>().ok())?;
    let (count, _) = digits(count).zip(digits(number))?;
    // It ends with the first missing one, so the name costs nothing.
    (1..=count)
        .map(|number| format!("{base}-{number:05}-of-{count:05}.safetensors"))
        .find(|name| !folder.join(name).is_file())
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
    json::check(&bytes, json::MAX_VALUES)
        .map_err(|error| FormatError::broken(path, Place::Whole, error.to_string()))?;
    Ok(bytes)
}
