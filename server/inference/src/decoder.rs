//! What the layers of a family are, as data: one row per family, read from `config.json` and checked once.
//!
//! This is what the crate `textnlp-candle` computes; it is here so that a model can be checked and described without it. Names are those of the checkpoints on the Hugging Face hub, without the prefix of the base model.

mod checkpoint;

use crate::executor::Shape;
use crate::family::{self, Architecture, Family, QueryNorm};
use crate::format::config::{USUAL_ROTATION, from_map, rotations_of, windows_of};
use crate::format::{Checkpoint, FormatError, Place};
use crate::rope::{Rope, Scaling};
use serde_json::{Map, Value};
use std::collections::HashSet;
use std::path::{Path, PathBuf};

/// A decoder-only transformer.
#[derive(Debug, Clone)]
pub struct Spec {
    /// What callers of an executor know.
    pub shape: Shape,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward's inside.
    pub ffn: usize,
    /// The prefix of the base model's tensors, such as `model.`; checkpoints of the base model alone leave it out. Names
    /// are those of Hugging Face's checkpoints, or of GGUF.
    pub base: &'static str,
    /// The token table.
    pub token: &'static str,
    /// The prefix of a layer's tensors; its number follows.
    pub layer: &'static str,
    /// The norm in front of the head.
    pub last_norm: &'static str,
    /// The head; not below `base`.
    pub head: Linear,
    /// Whether the head is the token table.
    pub tied: Tied,
    /// How rows are normalised.
    pub norm: Norm,
    /// Norms multiply by 1 + weight (Gemma).
    pub norms_add_one: bool,
    /// The norms of a layer, in the order of [`Residual`], which may need fewer.
    pub norms: &'static [&'static str],
    /// What is added to the residual stream.
    pub residual: Residual,
    /// How queries, keys and values are stored.
    pub qkv: Qkv,
    /// The norm of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Queries, keys and values are clamped to ± this.
    pub clip: Option<f32>,
    /// The factor of the scores.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub score_cap: Option<f32>,
    /// From all heads back to the residual stream.
    pub attention_out: Linear,
    /// How positions come in.
    pub position: Position,
    /// How many positions a layer sees, its own included; layers take turns. Without any, all see all.
    pub windows: Vec<Option<usize>>,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// The feed-forward.
    pub feed: Feed,
    /// Matrices of layers are stored as inputs × outputs (GPT-2).
    pub transposed: bool,
    /// Factor of the token table's rows.
    pub embedding_scale: f32,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
}

/// A linear layer's stem, and whether it has a bias.
#[derive(Debug, Clone, Copy)]
pub struct Linear {
    /// Its name without `.weight`.
    pub stem: &'static str,
    /// Whether it has a bias.
    pub bias: bool,
}

const fn plain(stem: &'static str) -> Linear {
    Linear { stem, bias: false }
}

const fn biased(stem: &'static str) -> Linear {
    Linear { stem, bias: true }
}

/// Whether the head is the token table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tied {
    /// It is.
    Yes,
    /// The head is a tensor of its own.
    No,
    /// The configuration does not say: it is, if the file has no head.
    Unsaid,
}

/// How rows are normalised.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Norm {
    /// LayerNorm with weight and bias.
    Layer { eps: f32 },
    /// LayerNorm without weights (OLMo).
    Bare { eps: f32 },
    /// RMSNorm with weight.
    Rms { eps: f32 },
}

/// Where the norms are and what is added to the residual stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Residual {
    /// `x += attention(norm0(x)); x += feed(norm1(x))`.
    Pre,
    /// `x += norm0(attention(x)); x += norm1(feed(x))` (OLMo 2).
    Post,
    /// `x += norm1(attention(norm0(x))); x += norm3(feed(norm2(x)))` (Gemma 2 and 3).
    Around,
    /// `x += attention(norm0(x)) + feed(norm0(x))` (GPT-J, Phi, Falcon 7B).
    Parallel,
    /// `x += attention(norm0(x)) + feed(norm1(x))` (GPT-NeoX, Falcon 40B).
    ParallelTwo,
}

/// How queries, keys and values are stored.
#[derive(Debug, Clone, Copy)]
pub enum Qkv {
    /// Three matrices.
    Separate([Linear; 3]),
    /// One matrix: all queries, all keys, all values.
    Blocks(Linear),
    /// One matrix: for each key head its queries, its key, its value.
    Groups(Linear),
}

/// RMSNorm of queries and keys: the two stems below the layer.
#[derive(Debug, Clone, Copy)]
pub struct QkNorm {
    /// Of queries, of keys.
    pub stems: [&'static str; 2],
    /// Each head by itself (Qwen 3), or all heads as one row (OLMo 2).
    pub per_head: bool,
}

impl QkNorm {
    /// Llama's names, all heads as one row.
    const WHOLE: QkNorm = QkNorm { stems: ["self_attn.q_norm", "self_attn.k_norm"], per_head: false };
}

/// How positions come in.
#[derive(Debug, Clone)]
#[allow(missing_docs)]
pub enum Position {
    /// A learned table below `base`, whose first `offset` rows are unused.
    Learned { stem: &'static str, offset: usize },
    /// Rotary embeddings; `windowed` are those of layers with a window, where they differ. Pairs are neighbours, or else
    /// halves of what is rotated.
    Rotary { rope: Rope, windowed: Option<Rope>, interleaved: bool },
    /// Linear biases (Press et al. 2022), rounded to bf16 as Falcon's are.
    Alibi,
}

/// The feed-forward's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Activation {
    Gelu,
    GeluTanh,
    Relu,
    Silu,
}

/// The feed-forward.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Feed {
    /// Up, down.
    Plain([Linear; 2]),
    /// Gate, up, down.
    Gated([Linear; 3]),
    /// Gate and up in one matrix, down (Phi-3).
    Fused([Linear; 2]),
    /// Sparse experts (Shazeer 2017; Mixtral's names): the `top` best of `count`, weighted by their renormalised softmax.
    /// Those of number N are below `at` N, each gate, up, down.
    Experts { router: Linear, at: &'static str, parts: [Linear; 3], count: usize, top: usize },
}

impl Residual {
    /// Norms of a layer.
    pub fn norms(self) -> usize {
        match self {
            Residual::Parallel => 1,
            Residual::Pre | Residual::Post | Residual::ParallelTwo => 2,
            Residual::Around => 4,
        }
    }
}

impl Spec {
    /// Reads and checks the `config.json` of a folder.
    pub fn open(folder: &Path) -> Result<Spec, FormatError> {
        let config = Config { file: folder.join("config.json"), map: crate::format::config(folder)? };
        config.spec()?.checked(&config.file)
    }

    /// The layers of a GGUF file, whose tensors have GGUF's names.
    pub fn of_gguf(checkpoint: &Checkpoint) -> Spec {
        let a = checkpoint.architecture();
        let names: HashSet<&str> = checkpoint.stored().map(|tensor| tensor.name).collect();
        // All layers have the same tensors.
        let linear = |stem: &'static str| {
            let name = format!("blk.0.{stem}");
            Linear { stem, bias: a.requires_bias(&name) || names.contains(format!("{name}.bias").as_str()) }
        };
        let (residual, norms): (_, &[_]) = match (a.layer.before, a.layer.after) {
            (true, true) => (Residual::Around, &["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"]),
            (false, _) => (Residual::Post, &["post_attention_norm", "post_ffw_norm"]),
            (true, false) => (Residual::Pre, &["attn_norm", "ffn_norm"]),
        };
        let qk_norm = match a.layer.query_norm {
            QueryNorm::None => None,
            kind => Some(QkNorm { stems: ["attn_q_norm", "attn_k_norm"], per_head: kind == QueryNorm::Head }),
        };
        Spec {
            shape: a.shape(),
            kv_heads: a.kv_heads,
            head_dim: a.head_dim,
            ffn: a.ffn,
            base: "",
            token: "token_embd",
            layer: "blk.",
            last_norm: "output_norm",
            head: plain("output"),
            tied: if a.tied { Tied::Yes } else { Tied::No },
            norm: match a.norm {
                family::Norm::Layer { eps } => Norm::Layer { eps },
                family::Norm::Rms { eps } => Norm::Rms { eps },
            },
            // The converter adds it.
            norms_add_one: false,
            norms,
            residual,
            qkv: match a.layer.fused_qkv {
                true => Qkv::Blocks(linear("attn_qkv")),
                false => Qkv::Separate([linear("attn_q"), linear("attn_k"), linear("attn_v")]),
            },
            qk_norm,
            clip: None,
            scale: a.attention.scale,
            score_cap: a.attention.cap,
            attention_out: linear("attn_output"),
            position: match &a.position {
                family::Position::Learned => Position::Learned { stem: "position_embd", offset: 0 },
                family::Position::Rotary { rope, windowed } => {
                    Position::Rotary { rope: rope.clone(), windowed: windowed.clone(), interleaved: false }
                }
            },
            windows: a.attention.windows.clone(),
            activation: match a.activation {
                family::Activation::GeluTanh | family::Activation::GeluTanhGated => Activation::GeluTanh,
                family::Activation::GeluErf => Activation::Gelu,
                family::Activation::Relu => Activation::Relu,
                family::Activation::SiluGated => Activation::Silu,
            },
            feed: match (a.gated(), a.layer.fused_gate) {
                (true, false) => Feed::Gated([linear("ffn_gate"), linear("ffn_up"), linear("ffn_down")]),
                (true, true) => Feed::Fused([linear("ffn_up"), linear("ffn_down")]),
                (false, _) => Feed::Plain([linear("ffn_up"), linear("ffn_down")]),
            },
            transposed: false,
            embedding_scale: a.embedding_scale,
            logit_cap: a.logit_cap,
        }
    }

    /// The window of a layer.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer % self.windows.len().max(1)).copied().flatten()
    }

    /// The same sizes for [`crate::cpu::Footprint::estimate`].
    pub fn sizes(&self) -> Architecture {
        Architecture {
            family: self.shape.family.clone(),
            layers: self.shape.layers,
            width: self.shape.width,
            heads: self.shape.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            ffn: self.ffn,
            vocab: self.shape.vocab,
            context: self.shape.context,
            ..Architecture::plain()
        }
    }

    /// The rotations: none, those of all layers, or those of layers that see all and those of layers with a window.
    pub fn ropes(&self) -> Vec<&Rope> {
        match &self.position {
            Position::Rotary { rope, windowed, .. } => std::iter::once(rope).chain(windowed).collect(),
            Position::Learned { .. } | Position::Alibi => Vec::new(),
        }
    }

    /// Numbers of one position's keys and values in all layers.
    pub fn kv_numbers(&self) -> usize {
        2 * self.shape.layers * self.kv_heads * self.head_dim
    }

    /// Refuses shapes that cannot be: everything behind this may multiply them without fear.
    fn checked(self, file: &Path) -> Result<Spec, FormatError> {
        let (count, top) = match self.feed {
            Feed::Experts { count, top, .. } => (count, top),
            _ => (1, 1),
        };
        let bounds = [
            ("layers", self.shape.layers, 1 << 10),
            ("width", self.shape.width, 1 << 16),
            ("heads", self.shape.heads, 1 << 10),
            ("key heads", self.kv_heads, 1 << 10),
            ("head width", self.head_dim, 1 << 10),
            ("feed-forward width", self.ffn, 1 << 18),
            ("vocabulary", self.shape.vocab, 1 << 22),
            ("context", self.shape.context, 1 << 22),
            ("experts", count, 1 << 10),
            ("experts of a token", top, count),
        ];
        for (what, value, most) in bounds {
            if value == 0 || value > most {
                let cause = format!("{what} is {value}; 1 to {most} is allowed");
                return Err(FormatError::broken(file, Place::Whole, cause));
            }
        }
        let (Norm::Layer { eps } | Norm::Bare { eps } | Norm::Rms { eps }) = self.norm;
        let ropes = self.ropes();
        let factors = [Some(self.scale), Some(self.embedding_scale), self.score_cap, self.logit_cap];
        let cause = if !(0.0..=1.0).contains(&eps) {
            format!("the epsilon of its norms is {eps}; 0 to 1 is allowed")
        } else if self.clip.is_some_and(|clip| !(clip.is_finite() && clip > 0.0)) {
            "a limit of queries, keys and values must be positive".to_owned()
        } else if !self.shape.heads.is_multiple_of(self.kv_heads) {
            format!("{} heads cannot share {} key heads", self.shape.heads, self.kv_heads)
        } else if let Some(cause) = ropes.iter().find_map(|rope| rope.problem(self.head_dim)) {
            cause
        } else if ropes.windows(2).any(|two| two[0].dims != two[1].dims) {
            "layers with a window rotate another part of their heads".to_owned()
        } else if let Some(wrong) = factors.into_iter().flatten().find(|f| !(f.is_finite() && *f > 0.0)) {
            format!("a factor or cap of attention or logits is {wrong}")
        } else if self.windows.contains(&Some(0)) {
            "a window of 0 positions sees nothing".to_owned()
        } else {
            return Ok(self);
        };
        Err(FormatError::broken(file, Place::Whole, cause))
    }
}

/// What reads a family's row.
type Read = fn(&Config) -> Result<Spec, FormatError>;

/// The families, by `model_type`.
const ROWS: &[(&str, Read)] = &[
    ("falcon", Config::falcon),
    ("gemma", Config::gemma),
    ("gemma2", Config::gemma),
    ("gemma3_text", Config::gemma),
    ("gpt2", Config::gpt2),
    ("gpt_neo", Config::gpt_neo),
    ("gpt_neox", Config::gpt_neox),
    ("gptj", Config::gptj),
    ("llama", Config::llama),
    ("mistral", Config::mistral),
    ("mixtral", Config::mixtral),
    ("olmo", Config::olmo),
    ("olmo2", Config::olmo2),
    ("opt", Config::opt),
    ("phi", Config::phi),
    ("phi3", Config::phi3),
    ("qwen2", Config::qwen2),
    ("qwen3", Config::qwen3),
    ("stablelm", Config::stablelm),
    ("starcoder2", Config::starcoder2),
];

/// The families that have a row here: those that candle computes.
pub fn families() -> impl Iterator<Item = &'static str> {
    ROWS.iter().map(|(family, _)| *family)
}

/// A `config.json`. A key that is `null` is not there.
struct Config {
    file: PathBuf,
    map: Map<String, Value>,
}

impl Config {
    fn find<'a>(&self, keys: &[&'a str]) -> Option<(&'a str, &Value)> {
        keys.iter().find_map(|key| Some((*key, self.map.get(*key).filter(|value| !value.is_null())?)))
    }

    fn read<T>(&self, keys: &[&str], what: &str, read: fn(&Value) -> Option<T>) -> Result<Option<T>, FormatError> {
        let Some((key, value)) = self.find(keys) else { return Ok(None) };
        let wrong = || FormatError::broken(&self.file, Place::Key(key.to_owned()), format!("it is not {what}"));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn size(&self, keys: &[&str]) -> Result<Option<usize>, FormatError> {
        self.read(keys, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    fn need(&self, keys: &[&str]) -> Result<usize, FormatError> {
        self.size(keys)?.ok_or_else(|| self.missing(keys.first().copied().unwrap_or_default()))
    }

    fn missing(&self, key: &str) -> FormatError {
        FormatError::broken(&self.file, Place::Key(key.to_owned()), "it is missing")
    }

    fn family(&self) -> &str {
        self.map.get("model_type").and_then(Value::as_str).unwrap_or_default()
    }

    fn float(&self, keys: &[&str]) -> Result<Option<f32>, FormatError> {
        self.read(keys, "a number", |v| v.as_f64().map(|n| n as f32))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool, FormatError> {
        Ok(self.read(&[key], "true or false", Value::as_bool)?.unwrap_or(default))
    }

    fn unsupported(&self, key: &str, cause: impl Into<String>) -> FormatError {
        FormatError::unsupported(&self.file, Place::Key(key.to_owned()), cause)
    }

    /// Refuses a flag that does not have the only value that is implemented.
    fn only(&self, key: &str, supported: bool) -> Result<(), FormatError> {
        match self.flag(key, supported)? == supported {
            true => Ok(()),
            false => Err(self.unsupported(key, format!("only `{supported}` is supported"))),
        }
    }

    fn activation(&self, default: &str) -> Result<Activation, FormatError> {
        let keys = ["hidden_act", "activation_function", "activation"];
        let (key, found) = match self.find(&keys) {
            Some((key, Value::String(word))) => (key, word.as_str()),
            Some((key, _)) => {
                return Err(FormatError::broken(&self.file, Place::Key(key.to_owned()), "it is not a word"));
            }
            None => ("hidden_act", default),
        };
        match found {
            "gelu" => Ok(Activation::Gelu),
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" => Ok(Activation::GeluTanh),
            "relu" => Ok(Activation::Relu),
            "silu" | "swish" => Ok(Activation::Silu),
            other => Err(self.unsupported(key, format!("`{}` is not supported", other.escape_debug()))),
        }
    }

    /// Rotations of the halves of a part of each head, and the context that they reach.
    fn rotary(&self, head_dim: usize, context: usize) -> Result<(Position, usize), FormatError> {
        let usual = match self.family() {
            "gpt_neox" | "stablelm" => (10_000.0, 0.25),
            "phi" => (10_000.0, 0.5),
            "mixtral" => (1e6, 1.0),
            _ => USUAL_ROTATION,
        };
        let (rope, windowed, context) = rotations_of(&self.file, &self.map, usual, head_dim, context)?;
        Ok((Position::Rotary { rope, windowed, interleaved: false }, context))
    }

    /// The row of this file's family.
    fn spec(&self) -> Result<Spec, FormatError> {
        let named = self.family();
        let row = ROWS.iter().find(|(family, _)| *family == named);
        let unknown =
            || self.unsupported("model_type", format!("`{}` has no row in this executor", named.escape_debug()));
        row.ok_or_else(unknown).and_then(|(_, read)| read(self))
    }

    fn llama(&self) -> Result<Spec, FormatError> {
        let (attention, feed) = (self.flag("attention_bias", false)?, self.flag("mlp_bias", false)?);
        self.llama_with(attention, attention, feed)
    }

    fn mistral(&self) -> Result<Spec, FormatError> {
        self.llama_with(false, false, false)
    }

    fn qwen2(&self) -> Result<Spec, FormatError> {
        self.llama_with(true, false, false)
    }

    fn qwen3(&self) -> Result<Spec, FormatError> {
        let bias = self.flag("attention_bias", false)?;
        Ok(Spec { qk_norm: Some(QkNorm { per_head: true, ..QkNorm::WHOLE }), ..self.llama_with(bias, bias, false)? })
    }

    /// Gemma 1 to 3. What a shape does not show is read as the own kernels read it.
    fn gemma(&self) -> Result<Spec, FormatError> {
        let (own, _) = from_map(&self.file, &self.map)?;
        let bias = self.flag("attention_bias", false)?;
        let (residual, norms): (_, &[_]) = match own.layer.after {
            true => (
                Residual::Around,
                &[
                    "input_layernorm",
                    "post_attention_layernorm",
                    "pre_feedforward_layernorm",
                    "post_feedforward_layernorm",
                ],
            ),
            false => (Residual::Pre, &["input_layernorm", "post_attention_layernorm"]),
        };
        let qk_norm = QkNorm { per_head: true, ..QkNorm::WHOLE };
        let activation = match own.activation {
            family::Activation::SiluGated => Activation::Silu,
            _ => Activation::GeluTanh,
        };
        Ok(Spec {
            tied: self.tied(Some(true))?,
            norms_add_one: true,
            norms,
            residual,
            qk_norm: (own.layer.query_norm == QueryNorm::Head).then_some(qk_norm),
            scale: own.attention.scale,
            score_cap: own.attention.cap,
            activation,
            embedding_scale: own.embedding_scale,
            logit_cap: own.logit_cap,
            ..self.llama_with(bias, bias, false)?
        })
    }

    /// The windows of all layers.
    fn windows(&self, layers: usize) -> Result<Vec<Option<usize>>, FormatError> {
        match Family::of_config(self.family()) {
            Some(family) => windows_of(&self.file, &self.map, family, layers),
            None => Ok(Vec::new()),
        }
    }

    fn tied(&self, default: Option<bool>) -> Result<Tied, FormatError> {
        let said = self.read(&["tie_word_embeddings"], "true or false", Value::as_bool)?;
        Ok(match said.or(default) {
            Some(true) => Tied::Yes,
            Some(false) if said.is_some() => Tied::No,
            _ => Tied::Unsaid,
        })
    }

    /// Llama's layer, from which most others differ in little.
    fn llama_with(&self, qkv_bias: bool, out_bias: bool, feed_bias: bool) -> Result<Spec, FormatError> {
        let width = self.need(&["hidden_size", "n_embd"])?;
        let heads = self.need(&["num_attention_heads", "n_head", "num_heads"])?;
        let head_dim = self.size(&["head_dim"])?.unwrap_or(width / heads.max(1));
        let layers = self.need(&["num_hidden_layers", "n_layer", "num_layers"])?;
        let context = match self.size(&["max_position_embeddings", "n_positions"])? {
            // Falcon's first checkpoints leave it out.
            None if self.family() == "falcon" => 2048,
            None => return Err(self.missing("max_position_embeddings")),
            Some(context) => context,
        };
        let (position, context) = self.rotary(head_dim, context)?;
        let linear = |stem, bias| Linear { stem, bias };
        Ok(Spec {
            shape: Shape {
                family: self.family().to_owned(),
                layers,
                width,
                heads,
                vocab: self.need(&["vocab_size"])?,
                context,
            },
            kv_heads: self.size(&["num_key_value_heads"])?.unwrap_or(heads),
            head_dim,
            ffn: self
                .size(&["intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size"])?
                .unwrap_or(width.saturating_mul(4)),
            base: "model.",
            token: "embed_tokens",
            layer: "layers.",
            last_norm: "norm",
            head: plain("lm_head"),
            tied: self.tied(None)?,
            norm: Norm::Rms { eps: self.float(&["rms_norm_eps"])?.unwrap_or(1e-6) },
            norms_add_one: false,
            norms: &["input_layernorm", "post_attention_layernorm"],
            residual: Residual::Pre,
            qkv: Qkv::Separate([
                linear("self_attn.q_proj", qkv_bias),
                linear("self_attn.k_proj", qkv_bias),
                linear("self_attn.v_proj", qkv_bias),
            ]),
            qk_norm: None,
            clip: None,
            scale: 1.0 / (head_dim.max(1) as f32).sqrt(),
            score_cap: None,
            attention_out: linear("self_attn.o_proj", out_bias),
            position,
            windows: self.windows(layers)?,
            activation: self.activation("silu")?,
            feed: Feed::Gated([
                linear("mlp.gate_proj", feed_bias),
                linear("mlp.up_proj", feed_bias),
                linear("mlp.down_proj", feed_bias),
            ]),
            transposed: false,
            embedding_scale: 1.0,
            logit_cap: None,
        })
    }

    /// What GPT-2 and its followers have in common.
    fn gpt(&self, default_activation: &str) -> Result<Spec, FormatError> {
        Ok(Spec {
            base: "transformer.",
            token: "wte",
            layer: "h.",
            last_norm: "ln_f",
            norm: Norm::Layer { eps: self.float(&["layer_norm_epsilon", "layer_norm_eps"])?.unwrap_or(1e-5) },
            norms: &["ln_1", "ln_2"],
            position: Position::Learned { stem: "wpe", offset: 0 },
            activation: self.activation(default_activation)?,
            feed: Feed::Plain([biased("mlp.c_fc"), biased("mlp.c_proj")]),
            tied: self.tied(Some(true))?,
            ..self.llama_with(false, false, false)?
        })
    }

    fn gpt2(&self) -> Result<Spec, FormatError> {
        self.only("scale_attn_weights", true)?;
        self.only("scale_attn_by_inverse_layer_idx", false)?;
        Ok(Spec {
            qkv: Qkv::Blocks(biased("attn.c_attn")),
            attention_out: biased("attn.c_proj"),
            transposed: true,
            ..self.gpt("gelu_new")?
        })
    }

    fn gptj(&self) -> Result<Spec, FormatError> {
        let spec = self.gpt("gelu_new")?;
        let dims = self.size(&["rotary_dim"])?.unwrap_or(spec.head_dim);
        Ok(Spec {
            head: biased("lm_head"),
            tied: self.tied(None)?,
            residual: Residual::Parallel,
            qkv: Qkv::Separate([plain("attn.q_proj"), plain("attn.k_proj"), plain("attn.v_proj")]),
            attention_out: plain("attn.out_proj"),
            position: Position::Rotary {
                rope: Rope { theta: 10_000.0, dims, scaling: Scaling::None, magnitude: 1.0 },
                windowed: None,
                interleaved: true,
            },
            feed: Feed::Plain([biased("mlp.fc_in"), biased("mlp.fc_out")]),
            ..spec
        })
    }

    fn gpt_neo(&self) -> Result<Spec, FormatError> {
        let window = Some(self.size(&["window_size"])?.unwrap_or(256));
        Ok(Spec {
            qkv: Qkv::Separate([
                plain("attn.attention.q_proj"),
                plain("attn.attention.k_proj"),
                plain("attn.attention.v_proj"),
            ]),
            scale: 1.0,
            attention_out: biased("attn.attention.out_proj"),
            windows: self.turns(window)?,
            ..self.gpt("gelu_new")?
        })
    }

    /// GPT-Neo's list of `[[kinds], times]`, as windows of layers.
    fn turns(&self, window: Option<usize>) -> Result<Vec<Option<usize>>, FormatError> {
        let Some((key, types)) = self.find(&["attention_types"]) else { return Ok(vec![None, window]) };
        let wrong =
            || FormatError::broken(&self.file, Place::Key(key.to_owned()), "it is not a list of kinds and numbers");
        let layers = self.need(&["num_layers", "num_hidden_layers"])?.min(1 << 10);
        let mut windows = Vec::new();
        for item in types.as_array().ok_or_else(wrong)? {
            let kinds = item.get(0).and_then(Value::as_array).ok_or_else(wrong)?;
            let times = item.get(1).and_then(Value::as_u64).ok_or_else(wrong)?;
            // One more than there may be, so that too many are noticed.
            for kind in (0..times.min(1 << 10)).flat_map(|_| kinds).take(layers + 1) {
                windows.push(match kind.as_str() {
                    Some("global") => None,
                    Some("local") => window,
                    _ => return Err(wrong()),
                });
            }
        }
        match windows.len() == layers {
            true => Ok(windows),
            false => Err(wrong()),
        }
    }

    fn gpt_neox(&self) -> Result<Spec, FormatError> {
        let spec = self.llama_with(false, false, false)?;
        let attention = self.flag("attention_bias", true)?;
        Ok(Spec {
            base: "gpt_neox.",
            token: "embed_in",
            last_norm: "final_layer_norm",
            head: plain("embed_out"),
            norm: Norm::Layer { eps: self.float(&["layer_norm_eps"])?.unwrap_or(1e-5) },
            residual: if self.flag("use_parallel_residual", true)? { Residual::ParallelTwo } else { Residual::Pre },
            qkv: Qkv::Groups(Linear { stem: "attention.query_key_value", bias: attention }),
            attention_out: Linear { stem: "attention.dense", bias: attention },
            activation: self.activation("gelu")?,
            feed: Feed::Plain([biased("mlp.dense_h_to_4h"), biased("mlp.dense_4h_to_h")]),
            ..spec
        })
    }

    fn falcon(&self) -> Result<Spec, FormatError> {
        let spec = self.llama_with(false, false, false)?;
        let new = self.flag("new_decoder_architecture", false)?;
        let parallel = new || self.flag("parallel_attn", true)?;
        let norms = self.size(&["num_ln_in_parallel_attn"])?.unwrap_or(2);
        let kv_heads = match (new, self.flag("multi_query", true)?) {
            (true, _) => self.size(&["num_kv_heads", "n_head_kv"])?.unwrap_or(spec.shape.heads),
            (false, true) => 1,
            (false, false) => spec.shape.heads,
        };
        let bias = self.flag("bias", false)?;
        let linear = |stem| Linear { stem, bias };
        let (residual, names): (_, &[_]) = match (parallel, new && norms == 2) {
            (false, _) => (Residual::Pre, &["input_layernorm", "post_attention_layernorm"]),
            (true, false) => (Residual::Parallel, &["input_layernorm"]),
            (true, true) => (Residual::ParallelTwo, &["ln_attn", "ln_mlp"]),
        };
        Ok(Spec {
            kv_heads,
            base: "transformer.",
            token: "word_embeddings",
            layer: "h.",
            last_norm: "ln_f",
            tied: self.tied(Some(true))?,
            norm: Norm::Layer { eps: self.float(&["layer_norm_epsilon"])?.unwrap_or(1e-5) },
            norms: names,
            residual,
            qkv: Qkv::Groups(linear("self_attention.query_key_value")),
            attention_out: linear("self_attention.dense"),
            position: if self.flag("alibi", false)? { Position::Alibi } else { spec.position },
            activation: self.activation("gelu")?,
            feed: Feed::Plain([linear("mlp.dense_h_to_4h"), linear("mlp.dense_4h_to_h")]),
            ..spec
        })
    }

    fn opt(&self) -> Result<Spec, FormatError> {
        self.only("do_layer_norm_before", true)?;
        self.only("_remove_final_layer_norm", false)?;
        self.only("layer_norm_elementwise_affine", true)?;
        let bias = self.flag("enable_bias", true)?;
        let linear = |stem| Linear { stem, bias };
        let spec = self.llama_with(bias, bias, bias)?;
        if self.size(&["word_embed_proj_dim"])?.is_some_and(|width| width != spec.shape.width) {
            return Err(self.unsupported("word_embed_proj_dim", "a token table of another width is not supported"));
        }
        Ok(Spec {
            base: "model.decoder.",
            last_norm: "final_layer_norm",
            tied: self.tied(Some(true))?,
            norm: Norm::Layer { eps: 1e-5 },
            norms: &["self_attn_layer_norm", "final_layer_norm"],
            attention_out: linear("self_attn.out_proj"),
            position: Position::Learned { stem: "embed_positions", offset: 2 },
            activation: self.activation("relu")?,
            feed: Feed::Plain([linear("fc1"), linear("fc2")]),
            ..spec
        })
    }

    fn phi(&self) -> Result<Spec, FormatError> {
        self.only("qk_layernorm", false)?;
        let spec = self.llama_with(true, true, true)?;
        Ok(Spec {
            last_norm: "final_layernorm",
            head: biased("lm_head"),
            norm: Norm::Layer { eps: self.float(&["layer_norm_eps"])?.unwrap_or(1e-5) },
            residual: Residual::Parallel,
            attention_out: biased("self_attn.dense"),
            activation: self.activation("gelu_new")?,
            feed: Feed::Plain([biased("mlp.fc1"), biased("mlp.fc2")]),
            ..spec
        })
    }

    fn phi3(&self) -> Result<Spec, FormatError> {
        Ok(Spec {
            qkv: Qkv::Blocks(plain("self_attn.qkv_proj")),
            feed: Feed::Fused([plain("mlp.gate_up_proj"), plain("mlp.down_proj")]),
            ..self.llama_with(false, false, false)?
        })
    }

    fn starcoder2(&self) -> Result<Spec, FormatError> {
        let bias = self.flag("use_bias", true)?;
        Ok(Spec {
            tied: self.tied(Some(true))?,
            norm: Norm::Layer { eps: self.float(&["norm_epsilon"])?.unwrap_or(1e-5) },
            activation: self.activation("gelu_pytorch_tanh")?,
            feed: Feed::Plain([Linear { stem: "mlp.c_fc", bias }, Linear { stem: "mlp.c_proj", bias }]),
            ..self.llama_with(bias, bias, bias)?
        })
    }

    fn stablelm(&self) -> Result<Spec, FormatError> {
        self.only("qk_layernorm", false)?;
        self.only("use_parallel_residual", false)?;
        let spec = self.llama_with(self.flag("use_qkv_bias", false)?, false, false)?;
        Ok(Spec { norm: Norm::Layer { eps: self.float(&["layer_norm_eps"])?.unwrap_or(1e-5) }, ..spec })
    }

    fn olmo(&self) -> Result<Spec, FormatError> {
        let bias = self.flag("attention_bias", false)?;
        Ok(Spec {
            norm: Norm::Bare { eps: 1e-5 },
            clip: self.float(&["clip_qkv"])?,
            ..self.llama_with(bias, bias, false)?
        })
    }

    fn olmo2(&self) -> Result<Spec, FormatError> {
        let bias = self.flag("attention_bias", false)?;
        Ok(Spec {
            norm: Norm::Rms { eps: self.float(&["rms_norm_eps"])?.unwrap_or(1e-5) },
            norms: &["post_attention_layernorm", "post_feedforward_layernorm"],
            residual: Residual::Post,
            qk_norm: Some(QkNorm::WHOLE),
            ..self.llama_with(bias, bias, false)?
        })
    }

    fn mixtral(&self) -> Result<Spec, FormatError> {
        let spec = self.llama_with(false, false, false)?;
        Ok(Spec {
            norm: Norm::Rms { eps: self.float(&["rms_norm_eps"])?.unwrap_or(1e-5) },
            windows: vec![self.size(&["sliding_window"])?],
            feed: Feed::Experts {
                router: plain("block_sparse_moe.gate"),
                at: "block_sparse_moe.experts.",
                parts: [plain("w1"), plain("w3"), plain("w2")],
                count: self.size(&["num_local_experts"])?.unwrap_or(8),
                top: self.size(&["num_experts_per_tok"])?.unwrap_or(2),
            },
            ..spec
        })
    }
}
