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
