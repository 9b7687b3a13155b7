//! Refuses files whose settings change the computation in a way that no shape of a tensor shows.

use super::{FormatError, Place};
use crate::family::Architecture;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The keys of a `config.json` that change what the tensors mean.
#[derive(Deserialize)]
pub(super) struct Claims {
    #[serde(default)]
    attention_bias: Option<bool>,
    #[serde(default)]
    mlp_bias: Option<bool>,
    #[serde(default)]
    quantization_config: Option<Value>,
}

impl Claims {
    /// Refuses weights that another program quantized: their tensors are packed.
    pub(super) fn read(file: &Path, config: &Map<String, Value>) -> Result<Claims, FormatError> {
        let claims = Claims::deserialize(config);
        let claims = claims.map_err(|e| FormatError::broken(file, Place::Whole, e.to_string()))?;
        if let Some(config) = &claims.quantization_config {
            let method = config["quant_method"].as_str().unwrap_or("an unknown method");
            let cause = format!("weights quantized by `{}` are not supported", method.escape_debug());
            return Err(FormatError::unsupported(file, Place::Key("quantization_config".to_owned()), cause));
        }
        Ok(claims)
    }

    /// Refuses biases that the configuration of a Llama model denies: transformers leaves them out.
    pub(super) fn check_biases<'a>(
        &self,
        file: &Path,
        a: &Architecture,
        tensors: impl Iterator<Item = &'a String> + Clone,
    ) -> Result<(), FormatError> {
        if a.family != "llama" {
            return Ok(());
        }
        for (key, says, part) in
            [("attention_bias", self.attention_bias, ".self_attn."), ("mlp_bias", self.mlp_bias, ".mlp.")]
        {
            let biases = tensors.clone().filter(|name| name.contains(part) && name.ends_with("_proj.bias"));
            if let (false, Some(bias)) = (says.unwrap_or(false), biases.min()) {
                let cause = format!("it is not true, but the model has the tensor `{}`", bias.escape_debug());
                return Err(FormatError::unsupported(file, Place::Key(key.to_owned()), cause));
            }
        }
        Ok(())
    }
}

/// Things that checkpoints store beside the parameters: causal masks, rotary tables, and the numbers of positions.
pub(super) fn is_buffer(name: &str, shape: &[usize]) -> bool {
    let ends = |endings: &[&str]| endings.iter().any(|ending| name.ends_with(ending));
    (shape.len() == 4 && ends(&[".attn.bias", ".attention.bias"]))
        || ends(&[".masked_bias", ".inv_freq", ".position_ids"])
}

/// The name that a tensor of a model with images has in the model of its part for texts; `None` if it belongs to another part.
pub(super) fn text_name(name: &str) -> Option<String> {
    // Since transformers 4.52 all parts are below `model.`.
    let (base, part) = name.strip_prefix("model.").map_or(("", name), |part| ("model.", part));
    if part.starts_with("vision_tower.") || part.starts_with("multi_modal_projector.") {
        return None;
    }
    Some(part.strip_prefix("language_model.").map_or_else(|| name.to_owned(), |rest| format!("{base}{rest}")))
}

/// The layer that a tensor belongs to, by either kind of name.
pub(super) fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// The name of a GGUF file's type, by ggml's number.
pub(super) fn file_type(number: u64) -> Option<&'static str> {
    const NAMES: [(u64, &str); 19] = [
        (0, "f32"),
        (1, "f16"),
        (2, "q4_0"),
        (3, "q4_1"),
        (7, "q8_0"),
        (8, "q5_0"),
        (9, "q5_1"),
        (10, "q2_k"),
        (11, "q3_k_s"),
        (12, "q3_k_m"),
        (13, "q3_k_l"),
        (14, "q4_k_s"),
        (15, "q4_k_m"),
        (16, "q5_k_s"),
        (17, "q5_k_m"),
        (18, "q6_k"),
        (25, "iq4_nl"),
        (30, "iq4_xs"),
        (32, "bf16"),
    ];
    NAMES.iter().find(|(known, _)| *known == number).map(|(_, name)| *name)
}
