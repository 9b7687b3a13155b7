//! What a model folder holds, and whether it can be served.

use std::collections::BTreeMap;
use std::fs;

use camino::Utf8Path;
use serde::{Deserialize, Serialize};
use textnlp_inference::cpu::{Footprint, LoadOptions, Quant, check_values};
use textnlp_inference::family::Architecture;
use textnlp_inference::files::{ModelFiles, OpenError};
use textnlp_inference::format::{Dtype, Tensor, is_encoder};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::local;
use crate::manifest::{MANIFEST, read_manifest};
use crate::weight_format::WeightFormat;

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
    /// The model family: `gpt2`, `llama`, …
    pub family: String,
    /// How the weights are stored.
    pub format: Format,
    /// Number of parameters.
    pub parameters: u64,
    /// The quantization as the file names it (`q4_k_m`), else the type of most weights: `f32`, `f16`, `bf16`, `q8_0`, …
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
    /// Whether the model knows how a conversation is written; unknown without its files.
    pub chat_template: Option<bool>,
    /// The model makes embeddings and generates no text.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub embeddings: bool,
    /// The relative error of the weights, by root mean squares, in the format that was asked for; `None` if nothing is
    /// quantized, or if the weights were not read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization_error: Option<f64>,
    /// The memory that it takes in each format.
    #[serde(skip)]
    pub(crate) footprints: Footprints,
}

/// The memory of a model by the format in which its weights are held.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Footprints {
    pub(crate) as_is: Footprint,
    pub(crate) f32: Footprint,
    pub(crate) f16: Footprint,
    pub(crate) q8_0: Footprint,
    pub(crate) q4_0: Footprint,
}

impl Footprints {
    /// By the format in which weights are held; `None` is as they are stored.
    pub(crate) fn each<E>(
        footprint: impl Fn(Option<Quant>) -> std::result::Result<Footprint, E>,
    ) -> std::result::Result<Footprints, E> {
        Ok(Footprints {
            as_is: footprint(None)?,
            f32: footprint(Some(Quant::F32))?,
            f16: footprint(Some(Quant::F16))?,
            q8_0: footprint(Some(Quant::Q8_0))?,
            q4_0: footprint(Some(Quant::Q4_0))?,
        })
    }

    /// What sizes and the number of parameters tell.
    pub(crate) fn estimate(sizes: &Architecture, parameters: u64, stored: Quant) -> Footprints {
        let held = |format| Footprint::estimate(sizes.clone(), parameters, format);
        Footprints {
            as_is: held(stored),
            f32: held(Quant::F32),
            f16: held(Quant::F16),
            q8_0: held(Quant::Q8_0),
            q4_0: held(Quant::Q4_0),
        }
    }
}

/// What the files of a model say of it.
pub(crate) struct Contents {
    pub(crate) format: Format,
    pub(crate) parameters: u64,
    pub(crate) dtype: String,
    pub(crate) weights_bytes: u64,
    pub(crate) chat_template: bool,
    pub(crate) embeddings: bool,
    pub(crate) footprints: Footprints,
}

impl Summary {
    /// Of a model at this path. The licence is that of its manifest, if there is one.
    pub(crate) fn of(path: &Utf8Path, shape: &Architecture, contents: Contents) -> Result<Summary> {
        let files = files(path)?;
        let manifest = if path.is_dir() { read_manifest(path)? } else { None };
        let (digest, license) = manifest.map_or((None, None), |manifest| (Some(manifest.digest), manifest.license));
        let Contents { format, parameters, dtype, weights_bytes, chat_template, embeddings, footprints } = contents;
        Ok(Summary {
            family: shape.family.clone(),
            format,
            parameters,
            dtype,
            weights_bytes,
            context: shape.context as u64,
            layers: shape.layers as u64,
            width: shape.width as u64,
            heads: shape.heads as u64,
            kv_heads: shape.kv_heads as u64,
            head_dim: shape.head_dim as u64,
            vocab: shape.vocab as u64,
            bytes: files.iter().map(|(_, bytes)| bytes).sum(),
            files,
            digest,
            license,
            chat_template: Some(chat_template),
            embeddings,
            quantization_error: None,
            footprints,
        })
    }
}

/// Reads configuration, headers, weights and tokenizer of the model in this folder or `.gguf` file, with the code that
/// serves it: what the server refuses is refused here, in the same words. Weights are read once and not kept.
///
/// Of a family that only candle serves, the memory is estimated, and the error of quantized weights is not measured.
pub fn inspect(path: &Utf8Path) -> Result<Summary> {
    inspect_as(path, WeightFormat::AsIs)
}

/// The same for a model whose weights are held in a format: values that are too large for it are refused, and the error of
/// weights that it quantizes is measured.
pub fn inspect_as(path: &Utf8Path, held: WeightFormat) -> Result<Summary> {
    if is_encoder(path.as_std_path()) == Some(true) {
        return crate::encoder::summary(path, held);
    }
    if let Some(summary) = crate::decoder::summary(path, held)? {
        return Ok(summary);
    }
    let model = ModelFiles::open(path.as_std_path())?;
    let summary = summarize(path, &model)?;
    let quantization_error = check_values(&model.checkpoint, held.quant()).map_err(OpenError::from)?;
    Ok(Summary { quantization_error, ..summary })
}

fn summarize(path: &Utf8Path, model: &ModelFiles) -> Result<Summary> {
    let ModelFiles { checkpoint, tokenizer } = model;
    let footprints = Footprints::each(|quantize| {
        let options = LoadOptions { quantize, ..LoadOptions::default() };
        Footprint::of(checkpoint, &options).map_err(OpenError::from)
    })?;
    let contents = Contents {
        format: if checkpoint.is_gguf() { Format::Gguf } else { Format::Safetensors },
        parameters: checkpoint.parameters(),
        dtype: checkpoint.quantization(),
        weights_bytes: checkpoint.stored_bytes(),
        chat_template: tokenizer.chat_template().is_some(),
        embeddings: false,
        footprints,
    };
    let summary = Summary::of(path, checkpoint.architecture(), contents)?;
    let license = checkpoint.metadata("general.license").map(|text| plain(&text)).or(summary.license);
    Ok(Summary { license, ..summary })
}

/// The type of the most numbers, and the bytes of all.
pub(crate) fn stored<'a>(tensors: impl Iterator<Item = Tensor<'a>>) -> (Option<Dtype>, u64) {
    let (mut numbers_of, mut bytes) = (BTreeMap::<Dtype, u64>::new(), 0);
    for tensor in tensors {
        let numbers = tensor.shape.iter().map(|side| *side as u64).product::<u64>();
        *numbers_of.entry(tensor.dtype).or_default() += numbers;
        bytes += tensor.bytes.len() as u64;
    }
    (numbers_of.into_iter().max_by_key(|(_, numbers)| *numbers).map(|(dtype, _)| dtype), bytes)
}

/// The files with their sizes; the manifest is not one of them.
fn files(path: &Utf8Path) -> Result<Vec<(String, u64)>> {
    fn size(path: &Utf8Path) -> Result<u64> {
        Ok(fs::metadata(path).map_err(Error::io("check", path))?.len())
    }
    if !path.is_dir() {
        return Ok(vec![(path.file_name().unwrap_or_default().to_owned(), size(path)?)]);
    }
    let names = local::file_names(path)?.into_iter().filter(|name| name != MANIFEST);
    names.map(|name| Ok((name.clone(), size(&path.join(name))?))).collect()
}

/// A word from a file, fit to be shown.
fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(100).collect()
}
