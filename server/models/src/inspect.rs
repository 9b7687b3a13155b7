//! What a model folder holds, from its configuration and the headers of its weights. No tensor is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::gguf;
use crate::local;
use crate::manifest::{MANIFEST, read_manifest};

/// How the weights are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// `*.safetensors` with `config.json`.
    Safetensors,
    /// One `.gguf` file.
    Gguf,
}

/// What a model is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// The model family as the files name it: `gpt2`, `llama`, …
    pub family: String,
    /// How the weights are stored.
    pub format: Format,
    /// Number of parameters.
    pub parameters: u64,
    /// The type that most weights have: `f32`, `f16`, `bf16`, `q8_0`, …
    pub dtype: String,
    /// Bytes of all weights as stored.
    pub weights_bytes: u64,
    /// The longest sequence in tokens.
    pub context: u64,
    /// Number of layers.
    pub layers: u64,
    /// Width of the residual stream.
    pub width: u64,
    /// Query heads.
    pub heads: u64,
    /// Key and value heads.
    pub kv_heads: u64,
    /// Width of one head.
    pub head_dim: u64,
    /// Number of tokens known.
    pub vocab: u64,
    /// The files with their sizes.
    pub files: Vec<(String, u64)>,
    /// Bytes of all files.
    pub bytes: u64,
    /// The digest of the whole, if the folder has a manifest.
    pub digest: Option<Digest>,
    /// The licence, if the files say.
    pub license: Option<String>,
    /// Whether the model knows how a conversation is written.
    pub chat_template: bool,
}

/// Sizes of models that exist lie far below these; what lies above is a lie.
const MAX_SIZE: u64 = 1 << 24;
/// The format's own bound.
const MOST_HEADER: u64 = 100 << 20;

/// Reads configuration, headers and tokenizer of the model in this folder or `.gguf` file; refuses what cannot be served.
pub fn inspect(dir: &Utf8Path) -> Result<Summary> {
    if dir.is_file() && dir.extension() == Some("gguf") {
        let mut summary = gguf::summary(dir)?;
        summary.bytes = fs::metadata(dir).map_err(Error::io("check", dir))?.len();
        summary.files = vec![(dir.file_name().unwrap_or_default().to_owned(), summary.bytes)];
        return Ok(summary);
    }
    let names = local::file_names(dir)?;
    let manifest = read_manifest(dir)?;
    let mut files = Vec::new();
    for name in names.iter().filter(|name| *name != MANIFEST) {
        let path = dir.join(name);
        files.push((name.clone(), fs::metadata(&path).map_err(Error::io("check", &path))?.len()));
    }
    let weights: Vec<&String> = names.iter().filter(|name| name.ends_with(".safetensors")).collect();
    let ggufs: Vec<&String> = names.iter().filter(|name| name.ends_with(".gguf")).collect();
    let mut summary = match (weights.as_slice(), ggufs.as_slice()) {
        ([_, ..], _) if names.iter().any(|name| name == "config.json") => safetensors(dir, &weights)?,
        ([], [one]) => gguf::summary(&dir.join(one))?,
        _ => {
            return Err(Error::Unusable {
                what: dir.to_string(),
                why: "it has neither config.json with *.safetensors nor exactly one .gguf file".to_owned(),
                hint: "give the folder that `model pull` created, or one in Hugging Face format".to_owned(),
            });
        }
    };
    summary.bytes = files.iter().map(|(_, bytes)| bytes).sum();
    summary.files = files;
    if let Some(manifest) = manifest {
        summary.digest = Some(manifest.digest);
        summary.license = summary.license.or(manifest.license);
    }
    Ok(summary)
}

/// `config.json` under the names that families use.
#[derive(Deserialize)]
struct Config {
    #[serde(default)]
    model_type: String,
    #[serde(alias = "n_layer")]
    num_hidden_layers: u64,
    #[serde(alias = "n_embd")]
    hidden_size: u64,
    #[serde(alias = "n_head")]
    num_attention_heads: u64,
    #[serde(default)]
    num_key_value_heads: Option<u64>,
    #[serde(default)]
    head_dim: Option<u64>,
    #[serde(alias = "n_positions")]
    max_position_embeddings: u64,
    vocab_size: u64,
    #[serde(default)]
    tie_word_embeddings: Option<bool>,
}

fn safetensors(dir: &Utf8Path, weights: &[&String]) -> Result<Summary> {
    let path = dir.join("config.json");
    let text = local::read_bounded(&path, 4 << 20)?.unwrap_or_default();
    let config: Config = serde_json::from_slice(&text).map_err(|error| Error::corrupt(&path, error.to_string()))?;
    let head_dim = config.head_dim.or_else(|| config.hidden_size.checked_div(config.num_attention_heads)).unwrap_or(0);
    let sizes = [
        ("num_hidden_layers", config.num_hidden_layers),
        ("hidden_size", config.hidden_size),
        ("num_attention_heads", config.num_attention_heads),
        ("head_dim", head_dim),
        ("max_position_embeddings", config.max_position_embeddings),
        ("vocab_size", config.vocab_size),
    ];
    plausible(&path, &sizes)?;

    let tied = config.tie_word_embeddings.unwrap_or(config.model_type == "gpt2");
    let mut counted = Counted::default();
    for name in weights {
        header(&dir.join(name), tied, &mut counted)?;
    }
    crate::tokenizer::check(dir)?;
    Ok(Summary {
        family: if config.model_type.is_empty() { "unknown".to_owned() } else { plain(&config.model_type) },
        format: Format::Safetensors,
        parameters: counted.parameters,
        dtype: counted.dtype(),
        weights_bytes: counted.bytes,
        context: config.max_position_embeddings,
        layers: config.num_hidden_layers,
        width: config.hidden_size,
        heads: config.num_attention_heads,
        kv_heads: config.num_key_value_heads.unwrap_or(config.num_attention_heads).min(MAX_SIZE),
        head_dim,
        vocab: config.vocab_size,
        files: Vec::new(),
        bytes: 0,
        digest: None,
        license: None,
        chat_template: has_chat_template(dir)?,
    })
}

/// Refuses sizes that cannot be, so that nothing computed from them overflows.
pub(crate) fn plausible(path: &Utf8Path, sizes: &[(&str, u64)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size == 0 || *size > MAX_SIZE) {
        None => Ok(()),
        Some((name, size)) => Err(Error::corrupt(path, format!("{name} is {size}"))),
    }
}

/// A word from a file, fit to be shown.
pub(crate) fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}

/// What the headers add up to.
#[derive(Default)]
pub(crate) struct Counted {
    pub(crate) parameters: u64,
    pub(crate) bytes: u64,
    by_type: BTreeMap<String, u64>,
}

impl Counted {
    pub(crate) fn add(&mut self, dtype: &str, elements: u64, bytes: u64) {
        self.parameters = self.parameters.saturating_add(elements);
        self.bytes = self.bytes.saturating_add(bytes);
        let sum = self.by_type.entry(dtype.to_owned()).or_default();
        *sum = sum.saturating_add(bytes);
    }

    pub(crate) fn dtype(&self) -> String {
        self.by_type
            .iter()
            .max_by_key(|(_, bytes)| **bytes)
            .map_or_else(|| "unknown".to_owned(), |(name, _)| name.clone())
    }
}

#[derive(Deserialize)]
struct Tensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

fn header(path: &Utf8Path, tied: bool, counted: &mut Counted) -> Result<()> {
    let mut file = File::open(path).map_err(Error::io("open", path))?;
    let length = file.metadata().map_err(Error::io("check", path))?.len();
    let mut size = [0u8; 8];
    file.read_exact(&mut size).map_err(|_| Error::corrupt(path, "it is too short for a header"))?;
    let size = u64::from_le_bytes(size);
    if size > MOST_HEADER || size > length.saturating_sub(8) {
        return Err(Error::corrupt(path, format!("its header declares {size} bytes, but the file has {length}")));
    }
    let mut text = Vec::new();
    file.take(size).read_to_end(&mut text).map_err(Error::io("read", path))?;
    let map: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(&text)
        .map_err(|error| Error::corrupt(path, format!("its header cannot be read ({error})")))?;
    for (name, value) in map.into_iter().filter(|(name, _)| name != "__metadata__") {
        let no = |why: String| Error::corrupt(path, format!("tensor {}: {why}", plain(&name)));
        let tensor: Tensor = serde_json::from_value(value).map_err(|error| no(error.to_string()))?;
        let (from, to) = tensor.data_offsets;
        if from > to || to > length - 8 - size {
            return Err(no(format!("it declares the bytes {from} to {to} of {}", length - 8 - size)));
        }
        let elements = tensor.shape.iter().try_fold(1u64, |product, side| product.checked_mul(*side));
        let elements = elements.ok_or_else(|| no("its shape is impossible".to_owned()))?;
        if !is_buffer(&name, &tensor.shape, tied) {
            counted.add(&plain(&tensor.dtype).to_ascii_lowercase(), elements, to - from);
        }
    }
    Ok(())
}

/// Things that checkpoints store beside the parameters: causal masks, rotary tables, a second copy of a tied head.
fn is_buffer(name: &str, shape: &[u64], tied: bool) -> bool {
    (name.ends_with(".attn.bias") && shape.len() == 4)
        || name.ends_with(".attn.masked_bias")
        || name.ends_with(".rotary_emb.inv_freq")
        || (tied && name == "lm_head.weight")
}

fn has_chat_template(dir: &Utf8Path) -> Result<bool> {
    if dir.join("chat_template.jinja").exists() || dir.join("chat_template.json").exists() {
        return Ok(true);
    }
    let path = dir.join("tokenizer_config.json");
    let Some(text) = local::read_bounded(&path, 64 << 20)? else { return Ok(false) };
    let config: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| Error::corrupt(&path, error.to_string()))?;
    Ok(config.get("chat_template").is_some_and(|template| !template.is_null()))
}
