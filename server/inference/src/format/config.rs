//! From what a file says to an [`Architecture`], checked once.

use super::gguf::Keys;
use super::{FormatError, Place};
use crate::family::{Activation, Architecture, Attention, FAMILIES, Family, Norm, Position, Windowed};
use crate::rope::{Rope, Scaling};
use serde_json::{Map, Value};
use std::path::Path;

/// The factors of rotary frequencies that a GGUF file keeps as tensors.
pub(crate) struct RopeFactors {
    /// `rope_freqs.weight`.
    pub(crate) all: Option<Vec<f32>>,
    /// `rope_factors_short.weight` and `rope_factors_long.weight`.
    pub(crate) by_length: Option<(Vec<f32>, Vec<f32>)>,
}

/// A `config.json`, or an object in it. A key that is `null` is absent, except where [`Json::says`] is asked.
#[derive(Clone, Copy)]
struct Json<'a> {
    file: &'a Path,
    map: &'a Map<String, Value>,
}

impl<'a> Json<'a> {
    fn broken(&self, key: &str, cause: impl Into<String>) -> FormatError {
        FormatError::broken(self.file, Place::Key(key.to_owned()), cause)
    }

    fn unsupported(&self, key: &str, cause: impl Into<String>) -> FormatError {
        FormatError::unsupported(self.file, Place::Key(key.to_owned()), cause)
    }

    fn get<T>(&self, key: &str, wanted: &str, of: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>, FormatError> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => of(value).map(Some).ok_or_else(|| self.broken(key, format!("it is not {wanted}"))),
        }
    }

    fn says(&self, key: &str) -> bool {
        self.map.contains_key(key)
    }

    fn number(&self, key: &str) -> Result<Option<usize>, FormatError> {
        self.get(key, "a whole number", |v| usize::try_from(v.as_u64()?).ok())
    }

    fn need(&self, key: &str) -> Result<usize, FormatError> {
        self.number(key)?.ok_or_else(|| self.broken(key, "it is missing"))
    }

    fn float(&self, key: &str) -> Result<Option<f32>, FormatError> {
        self.get(key, "a number", |v| Some(v.as_f64()? as f32))
    }

    fn floats(&self, key: &str) -> Result<Option<Vec<f32>>, FormatError> {
        self.get(key, "a list of numbers", |v| v.as_array()?.iter().map(|n| Some(n.as_f64()? as f32)).collect())
    }

    fn bool(&self, key: &str) -> Result<Option<bool>, FormatError> {
        self.get(key, "true or false", Value::as_bool)
    }

    fn text(&self, key: &str) -> Result<Option<&'a str>, FormatError> {
        self.get(key, "a text", Value::as_str)
    }

    fn object(&self, key: &str) -> Result<Option<Json<'a>>, FormatError> {
        let file = self.file;
        self.get(key, "an object", |v| Some(Json { file, map: v.as_object()? }))
    }
}

/// A kind of model that also takes images, of which only the part for texts is served.
struct Images {
    /// Its `model_type`.
    model_type: &'static str,
    /// That of the part for texts.
    text: &'static str,
    /// What checkpoints leave out of `text_config`: the defaults of the class in transformers.
    usual: &'static [(&'static str, usize)],
}

const WITH_IMAGES: &[Images] = &[Images {
    model_type: "gemma3",
    text: "gemma3_text",
    usual: &[
        ("vocab_size", 262_208),
        ("hidden_size", 2304),
        ("intermediate_size", 9216),
        ("num_hidden_layers", 26),
        ("num_attention_heads", 8),
        ("num_key_value_heads", 4),
        ("head_dim", 256),
        ("max_position_embeddings", 131_072),
        ("query_pre_attn_scalar", 256),
        ("sliding_window", 4096),
    ],
}];

/// The configuration of the part for texts, if a `config.json` is of a model that also takes images.
pub(super) fn text_part(file: &Path, map: &Map<String, Value>) -> Result<Option<Map<String, Value>>, FormatError> {
    let config = Json { file, map };
    // Another kind of value is refused by what reads the family.
    let named = map.get("model_type").and_then(Value::as_str);
    let Some(images) = WITH_IMAGES.iter().find(|images| Some(images.model_type) == named) else { return Ok(None) };
    let text = config.object("text_config")?.ok_or_else(|| config.broken("text_config", "it is missing"))?;
    let mut part = text.map.clone();
    part.insert("model_type".to_owned(), images.text.into());
    // These keys are at the top level and apply to all parts.
    for key in ["quantization_config", "tie_word_embeddings"] {
        if let (true, Some(value)) = (part.get(key).is_none_or(Value::is_null), map.get(key)) {
            part.insert(key.to_owned(), value.clone());
        }
    }
    for (key, usual) in images.usual {
        part.entry(*key).or_insert_with(|| (*usual).into());
    }
    Ok(Some(part))
}

/// The families by name, for an error about another.
fn supported(names: impl Iterator<Item = &'static str>) -> String {
    names.collect::<Vec<_>>().join(", ")
}

/// The architecture of a `config.json`, and whether the file itself says if the head is tied.
pub(crate) fn from_map(file: &Path, map: &Map<String, Value>) -> Result<(Architecture, bool), FormatError> {
    let config = Json { file, map };
    let model_type = config.text("model_type")?.unwrap_or_default();
    let Some(family) = Family::of_config(model_type) else {
        let names = WITH_IMAGES.iter().map(|images| images.model_type).chain(FAMILIES.iter().map(|f| f.model_type));
        let cause = format!("`{model_type}` is not supported; {} are", supported(names));
        return Err(config.unsupported("model_type", cause));
    };
    for key in ["use_bidirectional_attention", "scale_attn_by_inverse_layer_idx"] {
        if config.bool(key)? == Some(true) {
            return Err(config.unsupported(key, "it is not supported"));
        }
    }
    let architecture = if family.is_gpt2() { gpt2(&config, family)? } else { rotary(&config, family)? };
    Ok((checked(file, architecture)?, config.bool("tie_word_embeddings")?.is_some()))
}

fn gpt2(config: &Json<'_>, family: &Family) -> Result<Architecture, FormatError> {
    if config.bool("scale_attn_weights")? == Some(false) {
        return Err(config.unsupported("scale_attn_weights", "only the usual scaling is supported"));
    }
    let width = config.need("n_embd")?;
    let heads = config.need("n_head")?;
    let head_dim = width / heads.max(1);
    Ok(Architecture {
        family: family.model_type.to_owned(),
        layers: config.need("n_layer")?,
        width,
        heads,
        kv_heads: heads,
        head_dim,
        ffn: config.number("n_inner")?.unwrap_or(width.saturating_mul(4)),
        vocab: config.need("vocab_size")?,
        context: config.need("n_positions")?,
        norm: Norm::Layer { eps: config.float("layer_norm_epsilon")?.unwrap_or(family.norm.eps()) },
        position: Position::Learned,
        attention: Attention::full(head_dim),
        activation: activation(config, family, "activation_function")?,
        layer: family.layer,
        tied: config.bool("tie_word_embeddings")?.unwrap_or(family.tied),
        embedding_scale: 1.0,
        logit_cap: None,
    })
}

fn rotary(config: &Json<'_>, family: &Family) -> Result<Architecture, FormatError> {
    let width = config.need("hidden_size")?;
    let heads = config.need("num_attention_heads")?;
    let head_dim = config.number("head_dim")?.unwrap_or(width / heads.max(1));
    let layers = config.need("num_hidden_layers")?;
    let norm = match family.norm {
        Norm::Layer { eps } => Norm::Layer { eps: config.float("norm_epsilon")?.unwrap_or(eps) },
        Norm::Rms { eps } => Norm::Rms { eps: config.float("rms_norm_eps")?.unwrap_or(eps) },
    };
    let context = config.need("max_position_embeddings")?;
    let (rope, windowed, context) = rotations(config, family.model_type, USUAL_ROTATION, head_dim, context)?;
    // Gemma 2's caps are its defaults, which `null` takes away.
    let cap = |key: &str, usual: f32| -> Result<Option<f32>, FormatError> {
        let missing = family.model_type == "gemma2" && !config.says(key);
        Ok(if missing { Some(usual) } else { config.float(key)? })
    };
    let capped = family.gemma && family.windowed != Windowed::Never;
    let (attention_cap, logit_cap) = match capped {
        true => (cap("attn_logit_softcapping", 50.0)?, cap("final_logit_softcapping", 30.0)?),
        false => (None, None),
    };
    let scale = match capped {
        true => 1.0 / config.float("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt(),
        false => Attention::full(head_dim).scale,
    };
    let name = if config.says("hidden_activation") { "hidden_activation" } else { "hidden_act" };
    Ok(Architecture {
        family: family.model_type.to_owned(),
        layers,
        width,
        heads,
        kv_heads: config.number("num_key_value_heads")?.unwrap_or(heads),
        head_dim,
        ffn: config.need("intermediate_size")?,
        vocab: config.need("vocab_size")?,
        context,
        norm,
        position: Position::Rotary { rope, windowed },
        attention: Attention { scale, cap: attention_cap, windows: windows(config, family, layers)? },
        activation: activation(config, family, name)?,
        layer: family.layer,
        tied: config.bool("tie_word_embeddings")?.unwrap_or(family.tied),
        embedding_scale: if family.gemma { (width as f32).sqrt() } else { 1.0 },
        logit_cap,
    })
}

fn activation(config: &Json<'_>, family: &Family, key: &str) -> Result<Activation, FormatError> {
    let gated = family.activation != Activation::GeluTanh;
    match config.text(key)? {
        None => Ok(family.activation),
        Some("silu") if gated => Ok(Activation::SiluGated),
        Some("gelu_new" | "gelu_pytorch_tanh") if gated => Ok(Activation::GeluTanhGated),
        // The first release of Gemma called it so.
        Some("gelu") if family.model_type == "gemma" => Ok(Activation::GeluTanhGated),
        Some("gelu_new" | "gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => {
            let usual = if gated { "`silu` and `gelu_pytorch_tanh` are" } else { "`gelu_new` is" };
            Err(config.unsupported(key, format!("`{other}` is not supported; {usual}")))
        }
    }
}

/// The windows of all layers.
fn windows(config: &Json<'_>, family: &Family, layers: usize) -> Result<Vec<Option<usize>>, FormatError> {
    let used = family.windowed != Windowed::Late || config.bool("use_sliding_window")? == Some(true);
    let Some(length) = config.number("sliding_window")?.filter(|_| used) else { return Ok(Vec::new()) };
    let named = match family.windowed {
        Windowed::Late | Windowed::AllBut(_) => config.get("layer_types", "a list of texts", |v| {
            v.as_array()?.iter().map(Value::as_str).collect::<Option<Vec<_>>>()
        })?,
        Windowed::Never | Windowed::Every => None,
    };
    if let Some(other) = named.iter().flatten().find(|kind| !matches!(**kind, "sliding_attention" | "full_attention")) {
        return Err(config.unsupported("layer_types", format!("`{other}` is not supported")));
    }
    let late = config.number("max_window_layers")?.unwrap_or(28);
    let pattern = config.number("sliding_window_pattern")?;
    let has_window = |layer: usize| match (&named, family.windowed) {
        (Some(named), _) => named.get(layer) == Some(&"sliding_attention"),
        (None, windowed) => windowed.covers(layer, late, pattern),
    };
    Ok((0..layers.min(MOST_LAYERS)).map(|layer| has_window(layer).then_some(length)).collect())
}

impl Windowed {
    fn covers(self, layer: usize, late: usize, pattern: Option<usize>) -> bool {
        match self {
            Windowed::Never => false,
            Windowed::Every => true,
            Windowed::Late => layer >= late,
            Windowed::AllBut(usual) => !(layer + 1).is_multiple_of(pattern.unwrap_or(usual).max(1)),
        }
    }
}

/// Base, and rotated part of each head, where a configuration says nothing.
pub(crate) type UsualRotation = (f32, f32);
/// Llama's.
pub(crate) const USUAL_ROTATION: UsualRotation = (10_000.0, 1.0);

/// The rotations that a `config.json` of any family describes: of all layers, of layers with a window where they differ,
/// and the context they reach.
pub(crate) fn rotations_of(
    file: &Path,
    map: &Map<String, Value>,
    usual: UsualRotation,
    head_dim: usize,
    context: usize,
) -> Result<(Rope, Option<Rope>, usize), FormatError> {
    let config = Json { file, map };
    rotations(&config, config.text("model_type")?.unwrap_or_default(), usual, head_dim, context)
}

/// For each layer of a `config.json` the positions that it sees; `None` is all, as is the end of the list.
pub(crate) fn windows_of(
    file: &Path,
    map: &Map<String, Value>,
    family: &Family,
    layers: usize,
) -> Result<Vec<Option<usize>>, FormatError> {
    windows(&Json { file, map }, family, layers)
}

fn rotations(
    config: &Json<'_>,
    model_type: &str,
    usual: UsualRotation,
    head_dim: usize,
    context: usize,
) -> Result<(Rope, Option<Rope>, usize), FormatError> {
    let (old, new) = (config.object("rope_scaling")?, config.object("rope_parameters")?);
    // GPT-NeoX's first checkpoints have the second name.
    let theta = config.float("rope_theta")?.map_or_else(|| config.float("rotary_emb_base"), |theta| Ok(Some(theta)))?;
    let rotation = |keys, theta| rotation(config, model_type, keys, (theta, usual.1), head_dim, context);
    if model_type != "gemma3_text" {
        let theta = match (&old, &new) {
            (_, Some(new)) if new.says("rope_theta") => new.float("rope_theta")?,
            _ => theta,
        };
        let (rope, context) = rotation(old.or(new), theta.unwrap_or(usual.0))?;
        return Ok((rope, None, context));
    }
    // Gemma 3 has one rotation for each kind of layer: since transformers 5 by the kind's name.
    let of = |kind: &str| new.map_or(Ok(None), |new| new.object(kind));
    let full = of("full_attention")?.or(old);
    let windowed = of("sliding_attention")?;
    let local = config.float("rope_local_base_freq")?.unwrap_or(10_000.0);
    let (windowed, _) = rotation(windowed, local)?;
    let (rope, context) = rotation(full, theta.unwrap_or(1_000_000.0))?;
    Ok((rope, Some(windowed), context))
}

/// One rotation as `rope_scaling` or `rope_parameters` describe it, and the context it reaches.
fn rotation(
    config: &Json<'_>,
    model_type: &str,
    keys: Option<Json<'_>>,
    (theta, part): UsualRotation,
    head_dim: usize,
    context: usize,
) -> Result<(Rope, usize), FormatError> {
    let empty = Map::new();
    let keys = keys.unwrap_or(Json { file: config.file, map: &empty });
    let theta = keys.float("rope_theta")?.unwrap_or(theta);
    let mut said = keys.float("partial_rotary_factor")?;
    for key in ["partial_rotary_factor", "rotary_pct"] {
        said = said.or(config.float(key)?);
    }
    let part = said.unwrap_or(part);
    if !(part > 0.0 && part <= 1.0) {
        return Err(keys.broken("partial_rotary_factor", format!("it is {part}")));
    }
    let dims = (head_dim as f32 * part) as usize;
    let factor = keys.float("factor")?;
    let need = |key: &str| keys.float(key)?.ok_or_else(|| keys.broken(key, "it is missing"));
    let stated = match keys.number("original_max_position_embeddings")? {
        None => config.number("original_max_position_embeddings")?,
        stated => stated,
    };
    let original = stated.unwrap_or(context);
    let magnitude = keys.float("attention_factor")?;
    let reach = |factor: f32| ((original as f64 * f64::from(factor)) as usize).max(context);
    let kind = match keys.text("rope_type")? {
        None => keys.text("type")?,
        kind => kind,
    };
    let (scaling, magnitude, context) = match kind.unwrap_or("default") {
        "default" | "none" => (Scaling::None, 1.0, context),
        "linear" => (Scaling::linear(need("factor")?), 1.0, context),
        "dynamic" => {
            let factor = need("factor")?;
            // The file's context is the length it was trained with, whatever else it says.
            let reach = ((context as f64 * f64::from(factor)) as usize).max(context);
            (Scaling::Dynamic { factor, original: context }, 1.0, reach)
        }
        "llama3" => {
            let (low, high) = (need("low_freq_factor")?, need("high_freq_factor")?);
            (Scaling::Llama3 { factor: need("factor")?, low, high, original }, 1.0, context)
        }
        "longrope" | "su" | "yarn" if kind != Some("yarn") || model_type == "phi3" => {
            let need = |key: &str| keys.floats(key)?.ok_or_else(|| keys.broken(key, "it is missing"));
            let factor = factor.unwrap_or(context as f32 / original.max(1) as f32);
            let usual = Scaling::long_magnitude(factor, original);
            let scaling = Scaling::Long { short: need("short_factor")?, long: need("long_factor")?, original };
            (scaling, magnitude.unwrap_or(usual), context)
        }
        "yarn" => {
            let factor = factor.unwrap_or(context as f32 / original.max(1) as f32);
            let weights =
                keys.float("mscale")?.zip(keys.float("mscale_all_dim")?).filter(|(a, b)| *a != 0.0 && *b != 0.0);
            let usual = match weights {
                Some((one, all)) => Scaling::yarn_magnitude(factor, one) / Scaling::yarn_magnitude(factor, all),
                None => Scaling::yarn_magnitude(factor, 1.0),
            };
            let (fast, slow) = (keys.float("beta_fast")?.unwrap_or(32.0), keys.float("beta_slow")?.unwrap_or(1.0));
            let truncate = keys.bool("truncate")?.unwrap_or(true);
            let context = if stated.is_some() { reach(factor) } else { context };
            (Scaling::Yarn { factor, original, fast, slow, truncate }, magnitude.unwrap_or(usual), context)
        }
        other => {
            let cause = format!(
                "rotary embeddings of type `{other}` are not supported; default, linear, dynamic, llama3, yarn and longrope are"
            );
            return Err(keys.unsupported("rope_scaling", cause));
        }
    };
    Ok((Rope { theta, dims, scaling, magnitude }, context))
}

/// The architecture of a GGUF file. `vocab` is the number of rows of its token table, `tied` whether it has no other head.
pub(crate) fn from_gguf(
    keys: &Keys<'_>,
    vocab: usize,
    tied: bool,
    factors: RopeFactors,
) -> Result<Architecture, FormatError> {
    let file = keys.file;
    let missing = |key: &str| FormatError::broken(file, Place::Key(key.to_owned()), "it is missing");
    let unsupported = |key: &str, cause: &str| FormatError::unsupported(file, Place::Key(key.to_owned()), cause);
    let name = keys.text("general.architecture")?.ok_or_else(|| missing("general.architecture"))?;
    let Some(family) = Family::of_gguf(&name) else {
        let cause = format!("`{name}` is not supported; {} are", supported(FAMILIES.iter().filter_map(|f| f.gguf)));
        return Err(unsupported("general.architecture", &cause));
    };
    let key = |part: &str| format!("{name}.{part}");
    let number = |part: &str| -> Result<Option<usize>, FormatError> {
        let found = keys.number(&key(part))?;
        Ok(found.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    let need = |part: &str| number(part)?.ok_or_else(|| missing(&key(part)));
    if number("expert_count")?.is_some_and(|n| n > 0) {
        return Err(unsupported(&key("expert_count"), "experts are not supported"));
    }
    if keys.bool(&key("attention.causal"))? == Some(false) {
        return Err(unsupported(&key("attention.causal"), "attention to later positions is not supported"));
    }
    let width = need("embedding_length")?;
    let heads = need("attention.head_count")?;
    let head_dim = number("attention.key_length")?.unwrap_or(width / heads.max(1));
    if number("attention.value_length")?.is_some_and(|n| n != head_dim) {
        return Err(unsupported(&key("attention.value_length"), "only the width of keys is supported"));
    }
    let layers = need("block_count")?;
    let context = need("context_length")?;
    let norm = match family.norm {
        Norm::Layer { eps } => Norm::Layer { eps: keys.float(&key("attention.layer_norm_epsilon"))?.unwrap_or(eps) },
        Norm::Rms { .. } => Norm::Rms { eps: keys.float(&key("attention.layer_norm_rms_epsilon"))?.unwrap_or(1e-5) },
    };
    let position = if family.is_gpt2() {
        Position::Learned
    } else {
        let rope = gguf_rotation(keys, &name, head_dim, context, factors)?;
        if rope.dims != head_dim && family.interleaved {
            let cause = format!("{} of {head_dim} dimensions are rotated; only all are supported", rope.dims);
            return Err(unsupported(&key("rope.dimension_count"), &cause));
        }
        let local = keys.float(&key("rope.freq_base_swa"))?.unwrap_or(10_000.0);
        let windowed = (family.model_type == "gemma3_text").then(|| Rope {
            theta: local,
            scaling: Scaling::None,
            magnitude: 1.0,
            ..rope.clone()
        });
        Position::Rotary { rope, windowed }
    };
    let capped = family.gemma && family.windowed != Windowed::Never;
    let cap = |part: &str, usual: f32| -> Result<Option<f32>, FormatError> {
        let usual = (family.model_type == "gemma2").then_some(usual);
        Ok(if capped { keys.float(&key(part))?.or(usual) } else { None })
    };
    // The 27B models of Gemma are the ones whose queries are scaled by the width, as llama.cpp tells them by their layers.
    let scaled_by = if matches!((family.model_type, layers), ("gemma2", 46) | ("gemma3_text", 62)) {
        width / heads.max(1)
    } else {
        head_dim
    };
    let window = number("attention.sliding_window")?.filter(|n| *n > 0);
    let pattern = number("attention.sliding_window_pattern")?;
    let covers = |layer| family.windowed != Windowed::Late && family.windowed.covers(layer, 0, pattern);
    let windows = (0..layers.min(MOST_LAYERS)).map(|layer| window.filter(|_| covers(layer))).collect();
    let architecture = Architecture {
        family: family.model_type.to_owned(),
        layers,
        width,
        heads,
        kv_heads: number("attention.head_count_kv")?.unwrap_or(heads),
        head_dim,
        ffn: need("feed_forward_length")?,
        vocab,
        context,
        norm,
        position,
        attention: Attention {
            scale: Attention::full(scaled_by).scale,
            cap: cap("attn_logit_softcapping", 50.0)?,
            windows,
        },
        activation: family.activation,
        layer: family.layer,
        tied,
        embedding_scale: if family.gemma { (width as f32).sqrt() } else { 1.0 },
        logit_cap: cap("final_logit_softcapping", 30.0)?,
    };
    checked(file, architecture)
}

/// The rotation of a GGUF file, as llama.cpp reads its keys: a factor without a type is linear.
fn gguf_rotation(
    keys: &Keys<'_>,
    name: &str,
    head_dim: usize,
    context: usize,
    factors: RopeFactors,
) -> Result<Rope, FormatError> {
    let key = |part: &str| format!("{name}.rope.{part}");
    let unsupported = |part: &str, cause: String| FormatError::unsupported(keys.file, Place::Key(key(part)), cause);
    let number = |part: &str| -> Result<Option<usize>, FormatError> {
        Ok(keys.number(&key(part))?.map(|n| usize::try_from(n).unwrap_or(usize::MAX)))
    };
    let float = |part: &str| keys.float(&key(part));
    let dims = number("dimension_count")?.unwrap_or(head_dim);
    let theta = float("freq_base")?.unwrap_or(10_000.0);
    let original = number("scaling.original_context_length")?.unwrap_or(context);
    let kind = keys.text(&key("scaling.type"))?.unwrap_or_else(|| "linear".to_owned());
    let factor = match float("scaling.factor")? {
        None => float("scale_linear")?,
        factor => factor,
    };
    // No factor and a factor of 0 are none.
    let factor = factor.filter(|f| kind != "none" && *f != 0.0).unwrap_or(1.0);
    let mut magnitude = float("scaling.attn_factor")?.unwrap_or(1.0);
    let times = |factors: Vec<f32>| factors.into_iter().map(|f| f * factor).collect::<Vec<f32>>();
    let tensors = factors.all.is_some() || factors.by_length.is_some();
    let scaling = match kind.as_str() {
        "yarn" if tensors => {
            return Err(unsupported("scaling.type", "`yarn` with rotary factors is not supported".into()));
        }
        "yarn" => {
            magnitude *= Scaling::yarn_magnitude(factor, 1.0);
            let fast = float("scaling.yarn_beta_fast")?.unwrap_or(32.0);
            let slow = float("scaling.yarn_beta_slow")?.unwrap_or(1.0);
            Scaling::Yarn { factor, original, fast, slow, truncate: true }
        }
        "none" | "linear" | "longrope" => match factors {
            RopeFactors { all: Some(all), .. } => Scaling::Divided(times(all)),
            RopeFactors { by_length: Some((short, long)), .. } => {
                Scaling::Long { short: times(short), long: times(long), original }
            }
            _ => Scaling::linear(factor),
        },
        other => {
            let cause = format!("`{other}` is not supported; none, linear, yarn and longrope are");
            return Err(unsupported("scaling.type", cause));
        }
    };
    Ok(Rope { theta, dims, scaling, magnitude })
}

// The largest product of the bounds below, the numbers of a token table or of a feed-forward matrix, has 38 bits.
const _: () = assert!(usize::BITS >= 64, "sizes are products of numbers from files");

/// The most layers of a model.
const MOST_LAYERS: usize = 1 << 10;

/// Refuses shapes that cannot be: everything behind this line may multiply them without fear.
pub(super) fn checked(file: &Path, a: Architecture) -> Result<Architecture, FormatError> {
    let bounds = [
        ("layers", a.layers, MOST_LAYERS),
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
    let eps = a.norm.eps();
    let factors = [Some(a.attention.scale), a.attention.cap, a.logit_cap];
    let ropes = match &a.position {
        Position::Learned => [None, None],
        Position::Rotary { rope, windowed } => [Some(rope), windowed.as_ref()],
    };
    let cause = if !(0.0..=1.0).contains(&eps) {
        format!("the epsilon of its norms is {eps}; 0 to 1 is allowed")
    } else if !a.heads.is_multiple_of(a.kv_heads) {
        format!("{} heads cannot share {} key heads", a.heads, a.kv_heads)
    } else if a.position == Position::Learned && a.heads * a.head_dim != a.width {
        format!("{} heads do not divide a width of {}", a.heads, a.width)
    } else if let Some(cause) = ropes.into_iter().flatten().find_map(|rope| rope.problem(a.head_dim)) {
        cause
    } else if let Some(wrong) = factors.into_iter().flatten().find(|f| !(f.is_finite() && *f > 0.0)) {
        format!("a factor or cap of attention or logits is {wrong}")
    } else if a.attention.windows.contains(&Some(0)) {
        "a window of attention has no positions".to_owned()
    } else {
        return Ok(a);
    };
    Err(FormatError::broken(file, Place::Whole, cause))
}
