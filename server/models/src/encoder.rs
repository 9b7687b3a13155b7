//! Summary of the folder of an encoder.

use camino::Utf8Path;
use std::sync::Arc;
use textnlp_inference::cpu::{EncoderOptions, Footprint, check_encoder_values};
use textnlp_inference::family::Architecture;
use textnlp_inference::files::OpenError;
use textnlp_inference::format::EncoderCheckpoint;
use textnlp_inference::text::{EncoderText, Tokenizer};

use crate::error::Result;
use crate::inspect::{Contents, Footprints, Format, Summary, stored};
use crate::weight_format::WeightFormat;

/// The summary of such a folder. Weights are read once and not kept.
pub(crate) fn summary(dir: &Utf8Path, held: WeightFormat) -> Result<Summary> {
    let checkpoint = EncoderCheckpoint::open(dir.as_std_path()).map_err(OpenError::from)?;
    let tokenizer = Tokenizer::from_directory(dir.as_std_path()).map_err(OpenError::from)?;
    EncoderText::new(Arc::new(tokenizer), checkpoint.settings()).map_err(OpenError::from)?;
    let footprints = Footprints::each(|quantize| {
        let options = EncoderOptions { quantize, ..EncoderOptions::default() };
        Footprint::of_encoder(&checkpoint, &options).map_err(OpenError::from)
    })?;
    let quantization_error = check_encoder_values(&checkpoint, held.quant()).map_err(OpenError::from)?;
    let (dtype, weights_bytes) = stored(checkpoint.parts());
    let shape = Architecture { context: checkpoint.settings().max_tokens, ..checkpoint.architecture().clone() };
    let contents = Contents {
        format: Format::Safetensors,
        parameters: checkpoint.parameters(),
        dtype: dtype.map_or_else(|| "unknown".to_owned(), |dtype| dtype.to_string()),
        weights_bytes,
        chat_template: false,
        embeddings: true,
        footprints,
    };
    Ok(Summary { quantization_error, ..Summary::of(dir, &shape, contents)? })
}
