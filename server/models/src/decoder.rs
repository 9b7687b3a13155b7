//! Summary of a model folder that only the candle executor serves.

use camino::Utf8Path;
use textnlp_inference::cpu::Quant;
use textnlp_inference::decoder::Spec;
use textnlp_inference::family::Served;
use textnlp_inference::files::{OpenError, check_ends};
use textnlp_inference::format::{Dtype, Tensors, family};
use textnlp_inference::text::Tokenizer;

use crate::error::Result;
use crate::inspect::{Contents, Footprints, Format, Summary, stored};
use crate::weight_format::WeightFormat;

/// The summary of such a folder; `None` for a family that the own kernels have. Weights are read once and not kept.
pub(crate) fn summary(dir: &Utf8Path, held: WeightFormat) -> Result<Option<Summary>> {
    let path = dir.as_std_path();
    let served = Served::of(&family(path).map_err(OpenError::from)?);
    if !served.is_some_and(|served| served.candle && !served.own) {
        return Ok(None);
    }
    let spec = Spec::open(path).map_err(OpenError::from)?;
    let tensors = Tensors::open(path).map_err(OpenError::from)?;
    let tokenizer = Tokenizer::from_directory(path).map_err(OpenError::from)?;
    check_ends(&tokenizer, spec.sizes().vocab).map_err(OpenError::from)?;
    spec.check(&tensors, held.quant() == Some(Quant::F16)).map_err(OpenError::from)?;
    let named = tensors.names().filter_map(|name| tensors.get(name).transpose());
    let found = named.collect::<std::result::Result<Vec<_>, _>>().map_err(OpenError::from)?;
    let (stored, weights_bytes) = stored(found.into_iter());
    let parameters = tensors.parameters(|_| true);
    // bf16 is held as f32 on the processor.
    let held = if stored == Some(Dtype::F16) { Quant::F16 } else { Quant::F32 };
    let sizes = spec.sizes();
    let contents = Contents {
        format: Format::Safetensors,
        parameters,
        dtype: stored.map_or_else(|| "unknown".to_owned(), |dtype| dtype.to_string()),
        weights_bytes,
        chat_template: tokenizer.chat_template().is_some(),
        embeddings: false,
        footprints: Footprints::estimate(&sizes, parameters, held),
    };
    Summary::of(dir, &sizes, contents).map(Some)
}
