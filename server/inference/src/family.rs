//! A model family is data: what shape its layers have.

/// The shape of a decoder-only transformer, whatever its family.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// `gpt2`, `llama`.
    pub family: String,
    /// Number of layers.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; fewer than `heads` with grouped queries.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Width of the feed-forward's inside.
    pub ffn: usize,
    /// Number of tokens known.
    pub vocab: usize,
    /// The longest sequence in tokens.
    pub context: usize,
    /// How rows are normalised.
    pub norm: Norm,
    /// How positions come in.
    pub position: Position,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// Attention and feed-forward read the same normalised row (GPT-J, GPT-NeoX).
    pub parallel: bool,
    /// The head is the token table.
    pub tied: bool,
}

/// How rows are normalised.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Norm {
    /// LayerNorm with weight and bias.
    Layer {
        /// Added to the variance.
        eps: f32,
    },
    /// RMSNorm with weight.
    Rms {
        /// Added to the mean square.
        eps: f32,
    },
}

/// How positions come in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Position {
    /// A learned table, added to the token's row.
    Learned,
    /// Rotary embeddings (Su et al. 2021), halves rotated against each other as Llama's checkpoints have it.
    Rotary {
        /// The base of the frequencies.
        theta: f32,
    },
}

/// The feed-forward's activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// GELU by its tanh approximation (GPT-2's `gelu_new`).
    GeluTanh,
    /// SiLU of a gate times an up-projection (Shazeer 2020).
    SiluGated,
}

impl Architecture {
    /// What a tensor is called in a Hugging Face checkpoint. `name` is what GGUF calls it, which is what we call it;
    /// `None` when the family has no such tensor.
    pub(crate) fn hugging_face_name(&self, name: &str) -> Option<String> {
        let table = if self.family == "gpt2" { GPT2_NAMES } else { LLAMA_NAMES };
        let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (Some(layer), part),
            None => (None, name),
        };
        let (stem, ending) = part.rsplit_once('.')?;
        let (_, theirs) = table.iter().find(|(ours, _)| *ours == stem)?;
        Some(format!("{}.{ending}", theirs.replace("{}", layer.unwrap_or_default())))
    }

    /// GPT-2's checkpoints keep matrices of layers as inputs × outputs (`Conv1D`), not outputs × inputs.
    pub(crate) fn transposed_in_hugging_face(&self, name: &str) -> bool {
        self.family == "gpt2" && name.starts_with("blk.") && !name.contains("norm")
    }

    /// GGUF's Llama files keep the rows of queries and keys so that neighbours are rotated, not halves.
    pub(crate) fn interleaved_in_gguf(&self, name: &str) -> bool {
        self.family == "llama" && (name.contains(".attn_q.") || name.contains(".attn_k."))
    }
}

/// Our stem, theirs.
type Names = &'static [(&'static str, &'static str)];

const GPT2_NAMES: Names = &[
    ("token_embd", "wte"),
    ("position_embd", "wpe"),
    ("attn_norm", "h.{}.ln_1"),
    ("attn_qkv", "h.{}.attn.c_attn"),
    ("attn_output", "h.{}.attn.c_proj"),
    ("ffn_norm", "h.{}.ln_2"),
    ("ffn_up", "h.{}.mlp.c_fc"),
    ("ffn_down", "h.{}.mlp.c_proj"),
    ("output_norm", "ln_f"),
    ("output", "lm_head"),
];

const LLAMA_NAMES: Names = &[
    ("token_embd", "model.embed_tokens"),
    ("attn_norm", "model.layers.{}.input_layernorm"),
    ("attn_q", "model.layers.{}.self_attn.q_proj"),
    ("attn_k", "model.layers.{}.self_attn.k_proj"),
    ("attn_v", "model.layers.{}.self_attn.v_proj"),
    ("attn_output", "model.layers.{}.self_attn.o_proj"),
    ("ffn_norm", "model.layers.{}.post_attention_layernorm"),
    ("ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("ffn_up", "model.layers.{}.mlp.up_proj"),
    ("ffn_down", "model.layers.{}.mlp.down_proj"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];
