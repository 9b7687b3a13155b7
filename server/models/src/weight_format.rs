//! How weights are held in memory.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use textnlp_inference::cpu::Quant;

/// How weights are held in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WeightFormat {
    /// Four bytes a weight.
    F32,
    /// Two bytes a weight.
    F16,
    /// Groups of 32 weights in 34 bytes.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Groups of 32 weights in 18 bytes; the token table and the head as [`WeightFormat::Q8_0`].
    #[serde(rename = "q4_0")]
    Q4_0,
    /// As stored, where the engine has that type.
    #[serde(rename = "none")]
    AsIs,
}

/// A text that names no way to hold weights.
#[derive(Debug, thiserror::Error)]
#[error("`{0}` is none of `f32`, `f16`, `q8_0`, `q4_0`, `none`")]
pub struct UnknownWeightFormat(String);

impl WeightFormat {
    /// As the engine names it; `None` is as stored.
    pub(crate) fn quant(self) -> Option<Quant> {
        match self {
            WeightFormat::F32 => Some(Quant::F32),
            WeightFormat::F16 => Some(Quant::F16),
            WeightFormat::Q8_0 => Some(Quant::Q8_0),
            WeightFormat::Q4_0 => Some(Quant::Q4_0),
            WeightFormat::AsIs => None,
        }
    }
}

impl FromStr for WeightFormat {
    type Err = UnknownWeightFormat;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" => Ok(WeightFormat::F32),
            "f16" => Ok(WeightFormat::F16),
            "q8_0" => Ok(WeightFormat::Q8_0),
            "q4_0" => Ok(WeightFormat::Q4_0),
            "none" => Ok(WeightFormat::AsIs),
            other => Err(UnknownWeightFormat(other.chars().take(50).collect())),
        }
    }
}

impl fmt::Display for WeightFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WeightFormat::F32 => "f32",
            WeightFormat::F16 => "f16",
            WeightFormat::Q8_0 => "q8_0",
            WeightFormat::Q4_0 => "q4_0",
            WeightFormat::AsIs => "none",
        })
    }
}
