//! Encoders in Hugging Face layout: BERT, RoBERTa and DistilBERT, with what sentence-transformers writes beside them.
//!
//! `modules.json` names the modules behind the transformer: how token rows become one vector, and whether it is
//! normalised. Without it, rows are averaged and left as they are, as sentence-transformers does.

use super::{FormatError, Layout, Place, Tensor, Tensors, Weight, config, read_small};
use crate::family::{Activation, Architecture, Attention, Norm, Position};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

/// How the rows of a text become one vector.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// The average of all rows.
    Mean,
    /// The first row.
    Cls,
    /// The largest of each dimension.
    Max,
}

impl Pooling {
    /// Its name in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Pooling::Mean => "mean",
            Pooling::Cls => "cls",
            Pooling::Max => "max",
        }
    }
}

/// What the folder of an encoder says beside its shape.
#[derive(Debug, Clone, PartialEq)]
pub struct EncoderSettings {
    /// How rows become one vector.
    pub pooling: Pooling,
    /// Vectors have the length 1.
    pub normalize: bool,
    /// The most tokens of a text, special tokens included.
    pub max_tokens: usize,
    /// Texts are lowercased before they are split.
    pub lowercase: bool,
    /// Texts that stand before another, by name: `query`, `passage`.
    pub prompts: BTreeMap<String, String>,
    /// The name of the prompt that is used when none is named.
    pub default_prompt: Option<String>,
}

/// An encoder's files, opened.
#[derive(Debug)]
pub struct EncoderCheckpoint {
    architecture: Architecture,
    settings: EncoderSettings,
    family: &'static Family,
    token_types: usize,
    padding: Option<u32>,
    tensors: Tensors,
    /// Checkpoints with a head for another task have a prefix before the encoder's names.
    prefix: &'static str,
}

/// What differs between families, with the names of their tensors; `{}` is the layer.
#[derive(Debug)]
struct Family {
    name: &'static str,
    prefix: &'static str,
    /// Positions begin behind the padding token's id, and padding has that position.
    positions_after_padding: bool,
    token_types: bool,
    names: &'static [(Part, &'static str)],
}

/// A tensor by its purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Tokens,
    Positions,
    TokenTypes,
    Norm,
    Query,
    Key,
    Value,
    Out,
    AttentionNorm,
    Up,
    Down,
    FfnNorm,
}

const BERT_NAMES: &[(Part, &str)] = &[
    (Part::Tokens, "embeddings.word_embeddings"),
    (Part::Positions, "embeddings.position_embeddings"),
    (Part::TokenTypes, "embeddings.token_type_embeddings"),
    (Part::Norm, "embeddings.LayerNorm"),
    (Part::Query, "encoder.layer.{}.attention.self.query"),
    (Part::Key, "encoder.layer.{}.attention.self.key"),
    (Part::Value, "encoder.layer.{}.attention.self.value"),
    (Part::Out, "encoder.layer.{}.attention.output.dense"),
    (Part::AttentionNorm, "encoder.layer.{}.attention.output.LayerNorm"),
    (Part::Up, "encoder.layer.{}.intermediate.dense"),
    (Part::Down, "encoder.layer.{}.output.dense"),
    (Part::FfnNorm, "encoder.layer.{}.output.LayerNorm"),
];

const DISTILBERT_NAMES: &[(Part, &str)] = &[
    (Part::Tokens, "embeddings.word_embeddings"),
    (Part::Positions, "embeddings.position_embeddings"),
    (Part::Norm, "embeddings.LayerNorm"),
    (Part::Query, "transformer.layer.{}.attention.q_lin"),
    (Part::Key, "transformer.layer.{}.attention.k_lin"),
    (Part::Value, "transformer.layer.{}.attention.v_lin"),
    (Part::Out, "transformer.layer.{}.attention.out_lin"),
    (Part::AttentionNorm, "transformer.layer.{}.sa_layer_norm"),
    (Part::Up, "transformer.layer.{}.ffn.lin1"),
    (Part::Down, "transformer.layer.{}.ffn.lin2"),
    (Part::FfnNorm, "transformer.layer.{}.output_layer_norm"),
];

const FAMILIES: [Family; 4] = [
    Family { name: "bert", prefix: "bert.", positions_after_padding: false, token_types: true, names: BERT_NAMES },
    Family { name: "roberta", prefix: "roberta.", positions_after_padding: true, token_types: true, names: BERT_NAMES },
    Family {
        name: "xlm-roberta",
        prefix: "roberta.",
        positions_after_padding: true,
        token_types: true,
        names: BERT_NAMES,
    },
    Family {
        name: "distilbert",
        prefix: "distilbert.",
        positions_after_padding: false,
        token_types: false,
        names: DISTILBERT_NAMES,
    },
];

/// The families that have a row here.
#[cfg(test)]
pub(crate) fn encoder_families() -> [&'static str; FAMILIES.len()] {
    FAMILIES.each_ref().map(|family| family.name)
}

/// The keys of `config.json` that decide something here; DistilBERT has names of its own.
#[derive(Deserialize)]
struct Config {
    model_type: Option<String>,
    vocab_size: Option<usize>,
    hidden_size: Option<usize>,
    dim: Option<usize>,
    num_hidden_layers: Option<usize>,
    n_layers: Option<usize>,
    num_attention_heads: Option<usize>,
    n_heads: Option<usize>,
    intermediate_size: Option<usize>,
    hidden_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    type_vocab_size: Option<usize>,
    layer_norm_eps: Option<f32>,
    hidden_act: Option<String>,
    activation: Option<String>,
    pad_token_id: Option<u32>,
    position_embedding_type: Option<String>,
    is_decoder: Option<bool>,
}

#[derive(Deserialize)]
struct Module {
    #[serde(default)]
    path: String,
    #[serde(rename = "type")]
    kind: String,
}

/// `1_Pooling/config.json`, as versions before 6 and since then write it.
#[derive(Deserialize)]
struct PoolingConfig {
    pooling_mode: Option<OneOrMore>,
    include_prompt: Option<bool>,
    #[serde(flatten)]
    rest: BTreeMap<String, serde_json::Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMore {
    One(String),
    More(Vec<String>),
}

/// How versions before 6 name modes.
const LEGACY_MODES: [(&str, &str); 6] = [
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
    ("pooling_mode_weightedmean_tokens", "weightedmean"),
    ("pooling_mode_lasttoken", "lasttoken"),
];

#[derive(Default, Deserialize)]
struct TransformerConfig {
    max_seq_length: Option<usize>,
    do_lower_case: Option<bool>,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    /// Where there is no limit it is a number that no integer holds.
    model_max_length: Option<f64>,
}

#[derive(Default, Deserialize)]
struct PromptConfig {
    #[serde(default)]
    prompts: BTreeMap<String, String>,
    default_prompt_name: Option<String>,
}

/// The most prompts, and bytes of one.
const MAX_PROMPTS: usize = 256;
const MAX_PROMPT: usize = 16 << 10;

/// Whether a folder's `config.json` names a family of encoders. `None` if there is none that can be read.
pub fn is_encoder(folder: &Path) -> Option<bool> {
    #[derive(Deserialize)]
    struct Kind {
        model_type: Option<String>,
    }
    if !folder.is_dir() {
        return folder.is_file().then_some(false);
    }
    let path = folder.join("config.json");
    if !path.is_file() {
        return super::files_ending(folder, "gguf").is_ok_and(|found| !found.is_empty()).then_some(false);
    }
    let kind: Kind = serde_json::from_slice(&read_small(&path).ok()?).ok()?;
    let named = kind.model_type.unwrap_or_default();
    Some(FAMILIES.iter().any(|family| family.name == named))
}

impl EncoderCheckpoint {
    /// Opens a folder with `config.json` and `*.safetensors`.
    pub fn open(folder: &Path) -> Result<EncoderCheckpoint, FormatError> {
        let file = folder.join("config.json");
        let config: Config = parsed(&file)?;
        let (family, architecture) = architecture(&file, &config)?;
        let padding = family.positions_after_padding.then(|| config.pad_token_id.unwrap_or(1));
        // The rows of the table before the first position are for padding.
        let positions = architecture.context;
        let before = padding.map_or(0, |id| (id as usize).saturating_add(1));
        let context = positions.checked_sub(before).filter(|context| *context > 0).ok_or_else(|| {
            let cause = format!("there is no position behind the padding token {}", before.saturating_sub(1));
            FormatError::broken(&file, Place::Key("max_position_embeddings".to_owned()), cause)
        })?;
        let tensors = Tensors::open(folder)?;
        let plain = format!("{}.weight", name_of(family, Part::Tokens, 0));
        let prefix = if tensors.has(&plain) { "" } else { family.prefix };
        let token_types = if family.token_types { config.type_vocab_size.unwrap_or(2) } else { 0 };
        if token_types > MAX_TOKEN_TYPES {
            let cause = format!("it is {token_types}; {MAX_TOKEN_TYPES} is the limit");
            return Err(FormatError::broken(&file, Place::Key("type_vocab_size".to_owned()), cause));
        }
        let architecture = Architecture { context, ..architecture };
        let settings = settings(folder, &architecture)?;
        Ok(EncoderCheckpoint { architecture, settings, family, token_types, padding, tensors, prefix })
    }

    /// The model's shape; its context is the most tokens that have a position.
    pub fn architecture(&self) -> &Architecture {
        &self.architecture
    }

    /// What the folder says beside the shape.
    pub fn settings(&self) -> &EncoderSettings {
        &self.settings
    }

    /// How many numbers the encoder has; heads for other tasks are not counted.
    pub fn parameters(&self) -> u64 {
        self.tensors.parameters(|name| self.is_part(name))
    }

    /// The tensors of the encoder; those of heads for other tasks are left out.
    pub fn parts(&self) -> impl Iterator<Item = Tensor<'_>> {
        let names = self.tensors.names().filter(|name| self.is_part(name));
        names.filter_map(|name| self.tensors.get(name).ok().flatten())
    }

    /// Refuses an encoder with tensors that its executor did not use, besides those of heads for other tasks.
    pub(crate) fn refuse_unused(&self) -> Result<(), FormatError> {
        let Architecture { family, layers, .. } = &self.architecture;
        self.tensors.refuse_unused(family, *layers, |name| self.is_part(name))
    }

    fn is_part(&self, name: &str) -> bool {
        let name = name.strip_prefix(self.prefix).unwrap_or_default();
        ["embeddings.", "encoder.", "transformer."].iter().any(|part| name.starts_with(part))
    }

    /// The padding token where positions begin behind its id.
    pub(crate) fn padding(&self) -> Option<u32> {
        self.padding
    }

    /// Rows of the table of token types.
    pub(crate) fn token_types(&self) -> usize {
        self.token_types
    }

    /// A part's weight.
    pub(crate) fn weight(&self, part: Part, layer: usize, shape: &[usize]) -> Result<Weight<'_>, FormatError> {
        self.tensor(part, layer, "weight", "gamma", shape)
    }

    /// A part's bias.
    pub(crate) fn bias(&self, part: Part, layer: usize, width: usize) -> Result<Weight<'_>, FormatError> {
        self.tensor(part, layer, "bias", "beta", &[width])
    }

    /// Checkpoints converted from TensorFlow have other endings for the parts of a normalisation.
    fn tensor(
        &self,
        part: Part,
        layer: usize,
        ending: &str,
        older: &str,
        shape: &[usize],
    ) -> Result<Weight<'_>, FormatError> {
        let stem = format!("{}{}", self.prefix, name_of(self.family, part, layer));
        let tensor = match self.tensors.find(&format!("{stem}.{older}"), shape)? {
            Some(tensor) => tensor,
            None => self.tensors.need(&format!("{stem}.{ending}"), shape)?,
        };
        Ok(Weight::new(tensor, shape, Layout::Plain))
    }
}

/// More rows in the table of token types than any model has.
const MAX_TOKEN_TYPES: usize = 1 << 10;

fn name_of(family: &Family, part: Part, layer: usize) -> String {
    let name = family.names.iter().find(|(named, _)| *named == part).map_or("", |(_, name)| name);
    name.replace("{}", &layer.to_string())
}

fn parsed<T: DeserializeOwned>(file: &Path) -> Result<T, FormatError> {
    serde_json::from_slice(&read_small(file)?).map_err(|e| FormatError::broken(file, Place::Whole, e.to_string()))
}

fn parsed_if_there<T: DeserializeOwned + Default>(file: &Path) -> Result<T, FormatError> {
    if file.is_file() { parsed(file) } else { Ok(T::default()) }
}

fn architecture(file: &Path, config: &Config) -> Result<(&'static Family, Architecture), FormatError> {
    let unsupported = |key: &str, cause: String| Err(FormatError::unsupported(file, Place::Key(key.to_owned()), cause));
    let named = config.model_type.as_deref().unwrap_or_default();
    let Some(family) = FAMILIES.iter().find(|family| family.name == named) else {
        let names: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
        return unsupported("model_type", format!("`{named}` is not an encoder: {} are", names.join(", ")));
    };
    if let Some(kind) = config.position_embedding_type.as_deref().filter(|kind| *kind != "absolute") {
        return unsupported("position_embedding_type", format!("`{kind}` is not supported; `absolute` is"));
    }
    if config.is_decoder == Some(true) {
        return unsupported("is_decoder", "a decoder of this family is not supported".to_owned());
    }
    let activation = match config.hidden_act.as_deref().or(config.activation.as_deref()).unwrap_or("gelu") {
        "gelu" => Activation::GeluErf,
        "gelu_new" | "gelu_pytorch_tanh" => Activation::GeluTanh,
        "relu" => Activation::Relu,
        other => return unsupported("hidden_act", format!("`{other}` is not supported; gelu, gelu_new and relu are")),
    };
    let need = |value: Option<usize>, key: &str| {
        value.ok_or_else(|| FormatError::broken(file, Place::Key(key.to_owned()), "it is missing"))
    };
    let width = need(config.hidden_size.or(config.dim), "hidden_size")?;
    let heads = need(config.num_attention_heads.or(config.n_heads), "num_attention_heads")?;
    let architecture = Architecture {
        family: family.name.to_owned(),
        layers: need(config.num_hidden_layers.or(config.n_layers), "num_hidden_layers")?,
        width,
        heads,
        kv_heads: heads,
        head_dim: width / heads.max(1),
        ffn: need(config.intermediate_size.or(config.hidden_dim), "intermediate_size")?,
        vocab: need(config.vocab_size, "vocab_size")?,
        context: need(config.max_position_embeddings, "max_position_embeddings")?,
        norm: Norm::Layer { eps: config.layer_norm_eps.unwrap_or(1e-12) },
        position: Position::Learned,
        attention: Attention::full(width / heads.max(1)),
        activation,
        ..Architecture::plain()
    };
    Ok((family, config::checked(file, architecture)?))
}

fn settings(folder: &Path, architecture: &Architecture) -> Result<EncoderSettings, FormatError> {
    let (mut pooling, mut normalize) = (Pooling::Mean, false);
    let file = folder.join("modules.json");
    let mut modules = Vec::new();
    if file.is_file() {
        modules = parsed::<Vec<Module>>(&file)?;
    }
    for (place, module) in modules.iter().enumerate() {
        let kind = module.kind.rsplit('.').next().unwrap_or_default();
        match (place, kind) {
            (0, "Transformer") if module.path.is_empty() => {}
            (1, "Pooling") => pooling = pooling_of(folder, &file, &module.path)?,
            (2, "Normalize") => normalize = true,
            _ => {
                let shown: String = module.kind.chars().take(100).collect();
                let cause = format!(
                    "module {place} is `{}` in `{}`; a Transformer in this folder, Pooling and Normalize are supported",
                    shown.escape_debug(),
                    module.path.escape_debug()
                );
                return Err(FormatError::unsupported(&file, Place::Whole, cause));
            }
        }
    }
    if modules.len() == 1 {
        return Err(FormatError::unsupported(&file, Place::Whole, "there is no Pooling, so there is no vector"));
    }
    let mut transformer = TransformerConfig::default();
    for name in ["bert", "roberta", "distilbert", "xlm-roberta"] {
        let file = folder.join(format!("sentence_{name}_config.json"));
        if file.is_file() {
            transformer = parsed(&file)?;
            break;
        }
    }
    let tokenizer: TokenizerConfig = parsed_if_there(&folder.join("tokenizer_config.json"))?;
    let length = tokenizer.model_max_length.filter(|length| *length >= 1.0).map(|length| length as usize);
    let max_tokens = transformer.max_seq_length.or(length).unwrap_or(usize::MAX).clamp(1, architecture.context);
    let file = folder.join("config_sentence_transformers.json");
    let PromptConfig { prompts, default_prompt_name: default_prompt } = parsed_if_there(&file)?;
    if prompts.len() > MAX_PROMPTS || prompts.values().any(|prompt| prompt.len() > MAX_PROMPT) {
        let cause = format!("more than {MAX_PROMPTS} prompts, or one of more than {MAX_PROMPT} bytes");
        return Err(FormatError::broken(&file, Place::Key("prompts".to_owned()), cause));
    }
    if let Some(name) = default_prompt.as_ref().filter(|name| !prompts.contains_key(*name)) {
        let cause = format!("there is no prompt `{}`", name.escape_debug());
        return Err(FormatError::broken(&file, Place::Key("default_prompt_name".to_owned()), cause));
    }
    let lowercase = transformer.do_lower_case.unwrap_or(false);
    Ok(EncoderSettings { pooling, normalize, max_tokens, lowercase, prompts, default_prompt })
}

/// The mode of a Pooling module. A model store keeps its file beside the others, as `1_Pooling.config.json`.
fn pooling_of(folder: &Path, modules: &Path, path: &str) -> Result<Pooling, FormatError> {
    // Only a folder inside this one: the file is untrusted.
    if path.is_empty() || path.contains(['/', '\\', '\0']) || path.starts_with('.') {
        let cause = format!("`{}` is not a plain folder name", path.escape_debug());
        return Err(FormatError::broken(modules, Place::Key("path".to_owned()), cause));
    }
    let kept = folder.join(format!("{path}.config.json"));
    let file = if kept.is_file() { kept } else { folder.join(path).join("config.json") };
    let config: PoolingConfig = parsed(&file)?;
    let unsupported =
        |key: &str, cause: String| Err(FormatError::unsupported(&file, Place::Key(key.to_owned()), cause));
    if config.include_prompt == Some(false) {
        return unsupported("include_prompt", "prompts that are left out of the vector are not supported".to_owned());
    }
    let modes: Vec<String> = match config.pooling_mode {
        Some(OneOrMore::One(mode)) => vec![mode],
        Some(OneOrMore::More(modes)) => modes,
        None => {
            let is_on = |key: &str| config.rest.get(key).and_then(serde_json::Value::as_bool) == Some(true);
            LEGACY_MODES.iter().filter(|(key, _)| is_on(key)).map(|(_, mode)| (*mode).to_owned()).collect()
        }
    };
    match modes.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] | ["mean"] => Ok(Pooling::Mean),
        ["cls"] => Ok(Pooling::Cls),
        ["max"] => Ok(Pooling::Max),
        modes => {
            let cause = format!("`{}` is not supported; one of mean, cls and max is", modes.join(", ").escape_debug());
            unsupported("pooling_mode", cause)
        }
    }
}
