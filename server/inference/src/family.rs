//! A model family is data: what shape its layers have, and what its files call their tensors.

use crate::executor::Shape;
use crate::rope::Rope;

/// The shape of a decoder-only transformer, whatever its family.
#[derive(Debug, Clone, PartialEq)]
pub struct Architecture {
    /// The `model_type` of its `config.json`: `gpt2`, `llama`, …
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
    /// How a layer attends.
    pub attention: Attention,
    /// The feed-forward's activation.
    pub activation: Activation,
    /// Which tensors a layer has.
    pub layer: Layer,
    /// The head is the token table.
    pub tied: bool,
    /// Factor of the token table's rows.
    pub embedding_scale: f32,
    /// Logits become `cap · tanh(logit / cap)`.
    pub logit_cap: Option<f32>,
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

impl Norm {
    /// What is added before the root is taken.
    pub(crate) fn eps(self) -> f32 {
        match self {
            Norm::Layer { eps } | Norm::Rms { eps } => eps,
        }
    }
}

/// How positions come in.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// A learned table, added to the token's row.
    Learned,
    /// Rotary embeddings of queries and keys.
    Rotary {
        /// The rotations.
        rope: Rope,
        /// Those of layers with a window, where they differ.
        windowed: Option<Rope>,
    },
}

/// How a layer attends.
#[derive(Debug, Clone, PartialEq)]
pub struct Attention {
    /// Factor of queries.
    pub scale: f32,
    /// Scores become `cap · tanh(score / cap)`.
    pub cap: Option<f32>,
    /// For each layer the most recent positions it sees, the row's own included; `None` is all, as is the end of the list.
    pub windows: Vec<Option<usize>>,
}

impl Attention {
    /// All positions, scaled by the root of the head's width.
    pub fn full(head_dim: usize) -> Attention {
        Attention { scale: 1.0 / (head_dim as f32).sqrt(), cap: None, windows: Vec::new() }
    }

    /// How many positions a layer sees, if not all.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.windows.get(layer).copied().flatten()
    }
}

/// The feed-forward's activation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Activation {
    /// GELU by its tanh approximation (GPT-2's `gelu_new`).
    GeluTanh,
    /// GELU by its tanh approximation of a gate times an up-projection (Shazeer 2020).
    GeluTanhGated,
    /// GELU by the error function (BERT's `gelu`).
    GeluErf,
    /// Zero for negative numbers.
    Relu,
    /// SiLU of a gate times an up-projection (Shazeer 2020).
    SiluGated,
}

/// Which tensors a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layer {
    /// Queries, keys and values are one tensor.
    pub fused_qkv: bool,
    /// Gate and up-projection are one tensor, the gate first.
    pub fused_gate: bool,
    /// Queries, keys and values have a bias in every file.
    pub qkv_bias: bool,
    /// Queries and keys are normalised before they are rotated.
    pub query_norm: QueryNorm,
    /// Rows are normalised before attention and before the feed-forward.
    pub before: bool,
    /// What attention and the feed-forward add is normalised.
    pub after: bool,
}

impl Layer {
    /// Llama's: separate tensors, norms before.
    pub const LLAMA: Layer = Layer {
        fused_qkv: false,
        fused_gate: false,
        qkv_bias: false,
        query_norm: QueryNorm::None,
        before: true,
        after: false,
    };
}

/// How queries and keys are normalised (RMSNorm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryNorm {
    /// Not at all.
    None,
    /// Each head, all with the same weight.
    Head,
    /// All heads together.
    Whole,
}

/// Which layers of a family have a window, where the configuration names its length and not the layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Windowed {
    /// None, whatever the configuration says.
    Never,
    /// All.
    Every,
    /// With `use_sliding_window` those from `max_window_layers` on.
    Late,
    /// All but each n-th.
    AllBut(usize),
}

/// What the files of a family have in common.
#[derive(Debug)]
pub(crate) struct Family {
    /// In `config.json`.
    pub(crate) model_type: &'static str,
    /// In GGUF.
    pub(crate) gguf: Option<&'static str>,
    /// What `config.json` leaves out.
    pub(crate) norm: Norm,
    pub(crate) activation: Activation,
    pub(crate) tied: bool,
    pub(crate) layer: Layer,
    pub(crate) windowed: Windowed,
    /// Gemma's: norms multiply by 1 + weight, and rows of the token table by the root of their width.
    pub(crate) gemma: bool,
    /// GGUF keeps the rows of queries and keys so that neighbours are rotated, not halves.
    pub(crate) interleaved: bool,
    /// Where tensors have other names than Llama's.
    names: Names,
}

const RMS: Norm = Norm::Rms { eps: 1e-6 };
const LLAMA: Family = Family {
    model_type: "llama",
    gguf: Some("llama"),
    norm: RMS,
    activation: Activation::SiluGated,
    tied: false,
    layer: Layer::LLAMA,
    windowed: Windowed::Never,
    gemma: false,
    interleaved: true,
    names: &[],
};
const QWEN2: Family = Family {
    model_type: "qwen2",
    gguf: Some("qwen2"),
    layer: Layer { qkv_bias: true, ..Layer::LLAMA },
    windowed: Windowed::Late,
    interleaved: false,
    ..LLAMA
};
const GEMMA: Family = Family {
    model_type: "gemma",
    gguf: Some("gemma"),
    activation: Activation::GeluTanhGated,
    tied: true,
    gemma: true,
    interleaved: false,
    ..LLAMA
};
const GEMMA2: Family = Family {
    model_type: "gemma2",
    gguf: Some("gemma2"),
    layer: Layer { after: true, ..Layer::LLAMA },
    windowed: Windowed::AllBut(2),
    names: AFTER_NAMES,
    ..GEMMA
};

/// The families that the own kernels compute.
pub(crate) static FAMILIES: &[Family] = &[
    Family {
        model_type: "gpt2",
        gguf: Some("gpt2"),
        norm: Norm::Layer { eps: 1e-5 },
        activation: Activation::GeluTanh,
        tied: true,
        layer: Layer { fused_qkv: true, ..Layer::LLAMA },
        interleaved: false,
        names: GPT2_NAMES,
        ..LLAMA
    },
    LLAMA,
    // GGUF calls it `llama`, and has no window there.
    Family { model_type: "mistral", gguf: None, windowed: Windowed::Every, ..LLAMA },
    QWEN2,
    Family {
        model_type: "qwen3",
        gguf: Some("qwen3"),
        layer: Layer { query_norm: QueryNorm::Head, ..Layer::LLAMA },
        ..QWEN2
    },
    GEMMA,
    GEMMA2,
    Family {
        model_type: "gemma3_text",
        gguf: Some("gemma3"),
        layer: Layer { query_norm: QueryNorm::Head, ..GEMMA2.layer },
        windowed: Windowed::AllBut(6),
        ..GEMMA2
    },
    Family {
        model_type: "phi3",
        gguf: Some("phi3"),
        norm: Norm::Rms { eps: 1e-5 },
        layer: Layer { fused_qkv: true, fused_gate: true, ..Layer::LLAMA },
        windowed: Windowed::Every,
        interleaved: false,
        names: &[("attn_qkv", "model.layers.{}.self_attn.qkv_proj"), ("ffn_up", "model.layers.{}.mlp.gate_up_proj")],
        ..LLAMA
    },
    Family {
        model_type: "olmo2",
        gguf: Some("olmo2"),
        norm: Norm::Rms { eps: 1e-5 },
        layer: Layer { query_norm: QueryNorm::Whole, before: false, after: true, ..Layer::LLAMA },
        interleaved: false,
        names: AFTER_NAMES,
        ..LLAMA
    },
    Family {
        model_type: "starcoder2",
        gguf: Some("starcoder2"),
        norm: Norm::Layer { eps: 1e-5 },
        activation: Activation::GeluTanh,
        tied: true,
        windowed: Windowed::Every,
        interleaved: false,
        names: &[("ffn_up", "model.layers.{}.mlp.c_fc"), ("ffn_down", "model.layers.{}.mlp.c_proj")],
        ..LLAMA
    },
];

impl Family {
    /// By the `model_type` of a `config.json`.
    pub(crate) fn of_config(model_type: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.model_type == model_type)
    }

    /// By the `general.architecture` of a GGUF file.
    pub(crate) fn of_gguf(architecture: &str) -> Option<&'static Family> {
        FAMILIES.iter().find(|f| f.gguf == Some(architecture))
    }

    /// GPT-2 has a table of positions; all others rotate.
    pub(crate) fn is_gpt2(&self) -> bool {
        self.model_type == "gpt2"
    }
}

impl Architecture {
    /// A model without a layer, to be filled with sizes where nothing else counts.
    pub fn plain() -> Architecture {
        Architecture {
            family: String::new(),
            layers: 0,
            width: 0,
            heads: 1,
            kv_heads: 1,
            head_dim: 1,
            ffn: 0,
            vocab: 0,
            context: 1,
            norm: Norm::Layer { eps: 1e-5 },
            position: Position::Learned,
            attention: Attention::full(1),
            activation: Activation::GeluTanh,
            layer: Layer::LLAMA,
            tied: true,
            embedding_scale: 1.0,
            logit_cap: None,
        }
    }

    /// What callers of an executor know about it.
    pub fn shape(&self) -> Shape {
        Shape {
            family: self.family.clone(),
            layers: self.layers,
            width: self.width,
            heads: self.heads,
            vocab: self.vocab,
            context: self.context,
        }
    }

    fn row(&self) -> &'static Family {
        Family::of_config(&self.family).unwrap_or(&LLAMA)
    }

    /// Whether the feed-forward has a gate.
    pub(crate) fn gated(&self) -> bool {
        matches!(self.activation, Activation::GeluTanhGated | Activation::SiluGated)
    }

    /// What a tensor is called in a Hugging Face checkpoint. `name` is what GGUF calls it, which is what we call it;
    /// `None` when the family has no such tensor.
    pub(crate) fn hugging_face_name(&self, name: &str) -> Option<String> {
        let row = self.row();
        let (layer, part) = match name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((layer, part)) => (Some(layer), part),
            None => (None, name),
        };
        let (stem, ending) = part.rsplit_once('.')?;
        let usual = if row.is_gpt2() { &[] } else { LLAMA_NAMES };
        let (_, theirs) = row.names.iter().chain(usual).find(|(ours, _)| *ours == stem)?;
        Some(format!("{}.{ending}", theirs.replace("{}", layer.unwrap_or_default())))
    }

    /// Whether a matrix has a bias in every model of the family. Others have one where the file has one.
    pub(crate) fn requires_bias(&self, name: &str) -> bool {
        (self.row().is_gpt2() && name.starts_with("blk."))
            || (self.layer.qkv_bias && [".attn_q", ".attn_k", ".attn_v"].iter().any(|part| name.ends_with(part)))
    }

    /// GPT-2's checkpoints keep matrices of layers as inputs × outputs (`Conv1D`), not outputs × inputs.
    pub(crate) fn transposed_in_hugging_face(&self, name: &str) -> bool {
        self.row().is_gpt2() && name.starts_with("blk.") && !name.contains("norm")
    }

    /// Whether GGUF keeps this tensor's rows so that neighbours are rotated, not halves.
    pub(crate) fn interleaved_in_gguf(&self, name: &str) -> bool {
        self.row().interleaved && (name.contains(".attn_q.") || name.contains(".attn_k."))
    }

    /// Gemma's checkpoints keep the weights of norms without the 1 that is added; GGUF's converter adds it.
    pub(crate) fn norms_lack_one_in_hugging_face(&self) -> bool {
        self.row().gemma
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
    ("attn_q_norm", "model.layers.{}.self_attn.q_norm"),
    ("attn_k_norm", "model.layers.{}.self_attn.k_norm"),
    ("attn_v", "model.layers.{}.self_attn.v_proj"),
    ("attn_output", "model.layers.{}.self_attn.o_proj"),
    ("ffn_norm", "model.layers.{}.post_attention_layernorm"),
    ("ffn_gate", "model.layers.{}.mlp.gate_proj"),
    ("ffn_up", "model.layers.{}.mlp.up_proj"),
    ("ffn_down", "model.layers.{}.mlp.down_proj"),
    ("output_norm", "model.norm"),
    ("output", "lm_head"),
];

/// Which executors serve a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Served {
    /// The own kernels ([`crate::cpu`]); they are preferred.
    pub own: bool,
    /// The crate `textnlp-candle`: the families of [`crate::decoder`], and from GGUF those that the own kernels have.
    pub candle: bool,
}

impl Served {
    /// By `model_type` of a `config.json`, or `general.architecture` of a GGUF file; `None` when nothing serves it.
    pub fn of(family: &str) -> Option<Served> {
        let own = Family::of_config(family).or(Family::of_gguf(family)).is_some();
        let named = Family::of_gguf(family).map_or(family, |row| row.model_type);
        let candle = crate::decoder::families().any(|candle| candle == named);
        (own || candle).then_some(Served { own, candle })
    }
}

/// Families with norms after attention and feed-forward.
const AFTER_NAMES: Names = &[
    ("post_attention_norm", "model.layers.{}.post_attention_layernorm"),
    ("ffn_norm", "model.layers.{}.pre_feedforward_layernorm"),
    ("post_ffw_norm", "model.layers.{}.post_feedforward_layernorm"),
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;

    /// The table of the guide, a row for each family.
    fn rows() -> Vec<String> {
        let row = |family: &Family| {
            let gguf = family.gguf.unwrap_or("llama");
            let sees = match family.windowed {
                Windowed::Never => "all".to_owned(),
                Windowed::Every => "a window, if configured".to_owned(),
                Windowed::Late => "a window from `max_window_layers` on, if `use_sliding_window`".to_owned(),
                Windowed::AllBut(2) => "a window in every 2nd layer".to_owned(),
                Windowed::AllBut(n) => format!("a window in all but every {n}th layer"),
            };
            format!("| `{}` | `{gguf}` | {sees} |", family.model_type)
        };
        FAMILIES.iter().map(row).collect()
    }

    #[test]
    fn guide_lists_the_families() {
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/models.md");
        let guide = std::fs::read_to_string(guide).unwrap();
        let head = "| `model_type` | GGUF architecture | positions that a layer sees |";
        let table: Vec<&str> = guide.lines().skip_while(|l| *l != head).take_while(|l| l.starts_with('|')).collect();
        assert_eq!(table.get(2..).unwrap_or_default(), rows(), "docs/guide/models.md");
    }

    /// Families with seeded models whose logits and text are compared with `transformers`, in the golden folder of a crate:
    /// from safetensors and from GGUF.
    fn golden(of: &str) -> (BTreeSet<String>, BTreeSet<String>) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(of).join("tests/golden");
        let family = |name: &str| -> Option<String> {
            let config = std::fs::read(folder.join(name).join("config.json")).ok()?;
            let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
            Some(config["model_type"].as_str().unwrap().to_owned())
        };
        let mut found = (BTreeSet::new(), BTreeSet::new());
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            found.0.extend(family(&name));
            let twin = name.strip_suffix(".gguf").and_then(|stem| stem.rsplit_once('-'));
            found.1.extend(twin.and_then(|(stem, _)| family(stem)));
        }
        found
    }

    /// The table of the guide: families by executor and format.
    fn matrix() -> String {
        let (own, gguf) = golden("inference");
        let (mut candle, _) = golden("candle");
        // `server/candle/tests/golden.rs` takes these of the own kernels.
        candle.extend(own.iter().filter(|family| family.starts_with("gemma")).cloned());
        let cell = |is_served: bool, tested: &BTreeSet<String>, family: &str| match (is_served, tested.contains(family))
        {
            (false, _) => "refused",
            (true, false) => "untested",
            (true, true) => "tested",
        };
        let encoders = crate::format::encoder_families();
        let decoders = FAMILIES.iter().map(|family| family.model_type).chain(crate::decoder::families());
        let all: BTreeSet<&str> = decoders.chain(encoders.iter().copied()).collect();
        let mut text = "| `model_type` | own kernels, safetensors | own kernels, GGUF | candle, safetensors | candle, GGUF | candle on a GPU |\n\
                        |---|---|---|---|---|---|\n"
            .to_owned();
        for family in all {
            let served = Served::of(family).unwrap_or(Served { own: encoders.contains(&family), candle: false });
            let named = FAMILIES.iter().find(|row| row.model_type == family);
            // On an H100, with the same golden models: `bash server/cuda/check`.
            let gpu = if served.candle { cell(true, &candle, family) } else { "refused" };
            text += &format!(
                "| `{family}` | {} | {} | {} | {} | {gpu} |\n",
                cell(served.own, &own, family),
                cell(named.is_some(), &gguf, family),
                cell(served.candle, &candle, family),
                // `server/candle/tests/golden.rs` takes the same files.
                cell(named.is_some(), &gguf, family),
            );
        }
        text
    }

    #[test]
    fn guide_has_the_matrix_of_families_formats_and_executors() {
        let guide = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/guide/models.md");
        let text = std::fs::read_to_string(guide).unwrap();
        let (begin, end) = ("<!-- matrix -->\n", "<!-- end of matrix -->");
        let (before, rest) = text.split_once(begin).unwrap();
        let (found, after) = rest.split_once(end).unwrap();
        let made = matrix();
        if std::env::var_os("UPDATE_EXPECT").is_some() {
            return std::fs::write(guide, format!("{before}{begin}{made}{end}{after}")).unwrap();
        }
        assert_eq!(found, made, "run this test with UPDATE_EXPECT=1");
    }

    #[test]
    fn names_of_files_are_unique() {
        for family in FAMILIES {
            assert!(std::ptr::eq(Family::of_config(family.model_type).unwrap(), family), "{}", family.model_type);
            if let Some(gguf) = family.gguf {
                assert!(std::ptr::eq(Family::of_gguf(gguf).unwrap(), family), "{gguf}");
            }
        }
    }
}
