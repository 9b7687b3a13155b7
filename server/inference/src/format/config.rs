//! From what a file says to an [`Architecture`], checked once.

use super::gguf::Keys;
use super::{FormatError, Place};
use crate::family::{Activation, Architecture, Norm, Position};
use serde::Deserialize;
use std::path::Path;

/// The keys of a Hugging Face `config.json` that decide something here.
#[derive(Deserialize)]
struct Config {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    tie_word_embeddings: Option<bool>,
    // GPT-2's names.
    n_embd: Option<usize>,
    n_layer: Option<usize>,
    n_head: Option<usize>,
    n_inner: Option<usize>,
    n_positions: Option<usize>,
    layer_norm_epsilon: Option<f32>,
    activation_function: Option<String>,
    scale_attn_weights: Option<bool>,
    scale_attn_by_inverse_layer_idx: Option<bool>,
    // Llama's names.
    hidden_size: Option<usize>,
    num_hidden_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    intermediate_size: Option<usize>,
    max_position_embeddings: Option<usize>,
    rms_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
}

#[derive(Deserialize)]
struct Rope {
    rope_theta: Option<f32>,
    rope_type: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    partial_rotary_factor: Option<f32>,
}

/// The architecture of a `config.json`, and whether the file itself says if the head is tied.
pub(crate) fn from_config(file: &Path, text: &[u8]) -> Result<(Architecture, bool), FormatError> {
    let broken = |key: &str, cause: &str| FormatError::broken(file, Place::Key(key.to_owned()), cause);
    let config: Config =
        serde_json::from_slice(text).map_err(|e| FormatError::broken(file, Place::Whole, e.to_string()))?;
    let need = |value: Option<usize>, key: &str| value.ok_or_else(|| broken(key, "it is missing"));
    let family = config.model_type.as_deref().unwrap_or_default();
    let architecture = match family {
        "gpt2" => {
            let activation = config.activation_function.as_deref().unwrap_or("gelu_new");
            if !matches!(activation, "gelu_new" | "gelu_pytorch_tanh") {
                let cause = format!("`{activation}` is not supported; `gelu_new` is");
                return Err(FormatError::unsupported(file, Place::Key("activation_function".to_owned()), cause));
            }
            if config.scale_attn_weights == Some(false) || config.scale_attn_by_inverse_layer_idx == Some(true) {
                let location = Place::Key("scale_attn_weights, scale_attn_by_inverse_layer_idx".to_owned());
                return Err(FormatError::unsupported(file, location, "only the usual scaling is supported"));
            }
            let width = need(config.n_embd, "n_embd")?;
            let heads = need(config.n_head, "n_head")?;
            Architecture {
                family: family.to_owned(),
                layers: need(config.n_layer, "n_layer")?,
                width,
                heads,
                kv_heads: heads,
                head_dim: width / heads.max(1),
                ffn: config.n_inner.unwrap_or(width.saturating_mul(4)),
                vocab: need(config.vocab_size, "vocab_size")?,
                context: need(config.n_positions, "n_positions")?,
                norm: Norm::Layer { eps: config.layer_norm_epsilon.unwrap_or(1e-5) },
                position: Position::Learned,
                activation: Activation::GeluTanh,
                parallel: false,
                tied: config.tie_word_embeddings.unwrap_or(true),
            }
        }
        "llama" => {
            let activation = config.hidden_act.as_deref().unwrap_or("silu");
            if activation != "silu" {
                let cause = format!("`{activation}` is not supported; `silu` is");
                return Err(FormatError::unsupported(file, Place::Key("hidden_act".to_owned()), cause));
            }
            for rope in [&config.rope_scaling, &config.rope_parameters].into_iter().flatten() {
                let kind = rope.rope_type.as_deref().or(rope.kind.as_deref()).unwrap_or("default");
                if kind != "default" || rope.partial_rotary_factor.is_some_and(|f| f != 1.0) {
                    let cause = format!("rotary embeddings of type `{kind}` are not supported; `default` is");
                    return Err(FormatError::unsupported(file, Place::Key("rope_scaling".to_owned()), cause));
                }
            }
            let theta = config.rope_parameters.as_ref().and_then(|r| r.rope_theta).or(config.rope_theta);
            let width = need(config.hidden_size, "hidden_size")?;
            let heads = need(config.num_attention_heads, "num_attention_heads")?;
            Architecture {
                family: family.to_owned(),
                layers: need(config.num_hidden_layers, "num_hidden_layers")?,
                width,
                heads,
                kv_heads: config.num_key_value_heads.unwrap_or(heads),
                head_dim: config.head_dim.unwrap_or(width / heads.max(1)),
                ffn: need(config.intermediate_size, "intermediate_size")?,
                vocab: need(config.vocab_size, "vocab_size")?,
                context: need(config.max_position_embeddings, "max_position_embeddings")?,
                norm: Norm::Rms { eps: config.rms_norm_eps.unwrap_or(1e-6) },
                position: Position::Rotary { theta: theta.unwrap_or(10_000.0) },
                activation: Activation::SiluGated,
                parallel: false,
                tied: config.tie_word_embeddings.unwrap_or(false),
            }
        }
        other => {
            let cause = format!("`{other}` is not supported; `gpt2` and `llama` are");
            return Err(FormatError::unsupported(file, Place::Key("model_type".to_owned()), cause));
        }
    };
    Ok((checked(file, architecture)?, config.tie_word_embeddings.is_some()))
}

/// The architecture of a GGUF file. `vocab` is the number of rows of its token table, `tied` whether it has no other head.
pub(crate) fn from_gguf(keys: &Keys<'_>, vocab: usize, tied: bool) -> Result<Architecture, FormatError> {
    let file = keys.file;
    let missing = |key: &str| FormatError::broken(file, Place::Key(key.to_owned()), "it is missing");
    let family = keys.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    if !matches!(family.as_str(), "gpt2" | "llama") {
        let cause = format!("`{family}` is not supported; `gpt2` and `llama` are");
        return Err(FormatError::unsupported(file, Place::Key("general.architecture".to_owned()), cause));
    }
    let key = |name: &str| format!("{family}.{name}");
    let number = |name: &str| -> Result<Option<usize>, FormatError> {
        let found = keys.number(&key(name))?;
        Ok(found.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    let need = |name: &str| number(name)?.ok_or_else(|| missing(&key(name)));
    if let Some(kind) = keys.text(&key("rope.scaling.type"))?
        && kind != "none"
    {
        let cause = format!("`{kind}` is not supported");
        return Err(FormatError::unsupported(file, Place::Key(key("rope.scaling.type")), cause));
    }
    if keys.number(&key("expert_count"))?.is_some_and(|n| n > 0) {
        return Err(FormatError::unsupported(file, Place::Key(key("expert_count")), "experts are not supported"));
    }
    let width = need("embedding_length")?;
    let heads = need("attention.head_count")?;
    let head_dim = number("attention.key_length")?.unwrap_or(width / heads.max(1));
    if let Some(rotated) = number("rope.dimension_count")?
        && rotated != head_dim
    {
        let cause = format!("{rotated} of {head_dim} dimensions are rotated; only all are supported");
        return Err(FormatError::unsupported(file, Place::Key(key("rope.dimension_count")), cause));
    }
    let llama = family == "llama";
    let norm = if llama {
        Norm::Rms { eps: keys.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5) }
    } else {
        Norm::Layer { eps: keys.float(&key("attention.layer_norm_epsilon"))?.unwrap_or(1e-5) }
    };
    let architecture = Architecture {
        layers: need("block_count")?,
        width,
        heads,
        kv_heads: number("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: need("feed_forward_length")?,
        vocab,
        context: need("context_length")?,
        norm,
        position: match llama {
            true => Position::Rotary { theta: keys.float(&key("rope.freq_base"))?.unwrap_or(10_000.0) },
            false => Position::Learned,
        },
        activation: if llama { Activation::SiluGated } else { Activation::GeluTanh },
        parallel: false,
        tied,
        family,
    };
    checked(file, architecture)
}

// The largest product of the bounds below, the numbers of a token table or of a feed-forward matrix, has 38 bits.
const _: () = assert!(usize::BITS >= 64, "sizes are products of numbers from files");

/// Refuses shapes that cannot be: everything behind this line may multiply them without fear.
fn checked(file: &Path, a: Architecture) -> Result<Architecture, FormatError> {
    let bounds = [
        ("layers", a.layers, 1 << 10),
        ("width", a.width, 1 << 16),
        ("heads", a.heads, 1 << 10),
        ("key heads", a.kv_heads, 1 << 10),
        ("head width", a.head_dim, 1 << 10),
        ("feed-forward width", a.ffn, 1 << 18),
        ("vocabulary", a.vocab, 1 << 22),
        ("context", a.context, 1 << 22),
    ];
    for (what, value, most) in bounds {
        if value == 0 || value > most {
            let cause = format!("{what} is {value}; 1 to {most} is allowed");
            return Err(FormatError::broken(file, Place::Whole, cause));
        }
    }
    let rotary = matches!(a.position, Position::Rotary { .. });
    let cause = if !a.heads.is_multiple_of(a.kv_heads) {
        format!("{} heads cannot share {} key heads", a.heads, a.kv_heads)
    } else if a.family == "gpt2" && a.heads * a.head_dim != a.width {
        format!("{} heads do not divide a width of {}", a.heads, a.width)
    } else if rotary && !a.head_dim.is_multiple_of(2) {
        format!("a head of {} dimensions cannot be rotated", a.head_dim)
    } else if let Position::Rotary { theta } = a.position
        && !(theta.is_finite() && theta > 0.0)
    {
        format!("the base of the rotations is {theta}")
    } else {
        return Ok(a);
    };
    Err(FormatError::broken(file, Place::Whole, cause))
}
