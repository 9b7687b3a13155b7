//! All weights of a model, found in its files, before memory is taken for them.

use super::matrix::{Plan, TOO_LARGE};
use super::memory::Arena;
use super::{Layer, LayerNorms, NormWeights, Quant, Weights};
use crate::family::{Norm, Position, QueryNorm};
use crate::format::{Checkpoint, Dtype, FormatError, Place, Weight};
use crate::kernels::linear::Storage;
use crate::pool::Pool;
use std::collections::BTreeMap;

/// All weights of a model, found in its files and checked to have their shapes. Nothing is packed yet.
pub(super) struct ModelPlan<'a> {
    pub(super) token: Plan<'a>,
    pub(super) head: Option<Plan<'a>>,
    positions: Option<Vec<f32>>,
    pub(super) layers: Vec<LayerPlan<'a>>,
    norm: NormWeights,
}

/// The weights of a layer, before its matrices are packed.
pub(super) struct LayerPlan<'a> {
    norms: LayerNorms,
    pub(super) qkv: Plan<'a>,
    pub(super) out: Plan<'a>,
    pub(super) up: Plan<'a>,
    pub(super) down: Plan<'a>,
}

/// Finds weights in files.
struct Finder<'a> {
    checkpoint: &'a Checkpoint,
    quantize: Option<Quant>,
}

impl<'a> Finder<'a> {
    /// A matrix of parts, each with its name, outputs and inputs.
    fn matrix(&self, parts: &[(&str, usize, usize)], paired: bool) -> Result<Plan<'a>, FormatError> {
        self.held(parts, paired, self.quantize)
    }

    /// The token table, or the head.
    fn table(&self, name: &str, vocab: usize, width: usize) -> Result<Plan<'a>, FormatError> {
        let part = [(name, vocab, width)];
        let stored = self.checkpoint.need(&format!("{name}.weight"), &[vocab, width])?;
        self.held(&part, false, Quant::of_table(self.quantize, stored.dtype))
    }

    fn held(
        &self,
        parts: &[(&str, usize, usize)],
        paired: bool,
        quantize: Option<Quant>,
    ) -> Result<Plan<'a>, FormatError> {
        let mut weights = Vec::new();
        let mut biases = Vec::new();
        for (name, outputs, inputs) in parts {
            weights.push(self.checkpoint.need(&format!("{name}.weight"), &[*outputs, *inputs])?);
            let bias = match self.checkpoint.architecture().requires_bias(name) {
                true => Some(self.checkpoint.need(&format!("{name}.bias"), &[*outputs])?),
                false => self.checkpoint.weight(&format!("{name}.bias"), &[*outputs])?,
            };
            if let Some(bias) = &bias {
                finite(bias)?;
            }
            biases.push(bias);
        }
        Ok(Plan::new(weights, biases, paired, quantize))
    }

    fn norm(&self, name: &str) -> Result<NormWeights, FormatError> {
        let a = self.checkpoint.architecture();
        let bias = match a.norm {
            Norm::Layer { .. } => finite(&self.checkpoint.need(&format!("{name}.bias"), &[a.width])?)?,
            Norm::Rms { .. } => Vec::new(),
        };
        Ok(NormWeights { weight: self.norm_weights(name, a.width)?, bias })
    }

    /// The weights of a norm, as they are multiplied with.
    fn norm_weights(&self, name: &str, width: usize) -> Result<Vec<f32>, FormatError> {
        let mut weights = finite(&self.checkpoint.need(&format!("{name}.weight"), &[width])?)?;
        let offset = self.checkpoint.norm_offset();
        weights.iter_mut().for_each(|w| *w += offset);
        Ok(weights)
    }

    fn layer(&self, index: usize) -> Result<LayerPlan<'a>, FormatError> {
        let a = self.checkpoint.architecture();
        let name = |part: &str| format!("blk.{index}.{part}");
        let (width, inner, kv) = (a.width, a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let qkv = if a.layer.fused_qkv {
            self.matrix(&[(&name("attn_qkv"), inner + 2 * kv, width)], false)?
        } else {
            let (q, k, v) = (name("attn_q"), name("attn_k"), name("attn_v"));
            self.matrix(&[(&q, inner, width), (&k, kv, width), (&v, kv, width)], false)?
        };
        let (gate, up) = (name("ffn_gate"), name("ffn_up"));
        let up = match (a.gated(), a.layer.fused_gate) {
            (false, _) => self.matrix(&[(&up, a.ffn, width)], false)?,
            (true, false) => self.matrix(&[(&gate, a.ffn, width), (&up, a.ffn, width)], true)?,
            (true, true) => {
                let both = self.checkpoint.need(&format!("{up}.weight"), &[2 * a.ffn, width])?;
                let (file, place) = (both.file, Place::Tensor(both.name.clone()));
                let (gate, up) = both.split(a.ffn).ok_or_else(|| {
                    FormatError::broken(file, place, "it cannot be split into gate and up-projection")
                })?;
                Plan::new(vec![gate, up], vec![None, None], true, self.quantize)
            }
        };
        let optional = |has: bool, part: &str| if has { self.norm(&name(part)).map(Some) } else { Ok(None) };
        let of_heads = |query: usize, key: usize| -> Result<_, FormatError> {
            let of = |part: &str, width: usize| self.norm_weights(&name(part), width);
            Ok(Some((of("attn_q_norm", query)?, of("attn_k_norm", key)?)))
        };
        let query_key = match a.layer.query_norm {
            QueryNorm::None => None,
            QueryNorm::Head => of_heads(a.head_dim, a.head_dim)?,
            QueryNorm::Whole => of_heads(inner, kv)?,
        };
        Ok(LayerPlan {
            norms: LayerNorms {
                attention: optional(a.layer.before, "attn_norm")?,
                after_attention: optional(a.layer.after, "post_attention_norm")?,
                ffn: optional(a.layer.before, "ffn_norm")?,
                after_ffn: optional(a.layer.after, "post_ffw_norm")?,
                query_key,
            },
            qkv,
            out: self.matrix(&[(&name("attn_output"), width, inner)], false)?,
            up,
            down: self.matrix(&[(&name("ffn_down"), width, a.ffn)], false)?,
        })
    }
}

impl<'a> ModelPlan<'a> {
    pub(super) fn new(checkpoint: &'a Checkpoint, quantize: Option<Quant>) -> Result<Self, FormatError> {
        let (a, find) = (checkpoint.architecture(), Finder { checkpoint, quantize });
        let token = find.table("token_embd", a.vocab, a.width)?;
        let head = if a.tied { None } else { Some(find.table("output", a.vocab, a.width)?) };
        let positions = match a.position {
            Position::Learned => Some(finite(&checkpoint.need("position_embd.weight", &[a.context, a.width])?)?),
            Position::Rotary { .. } => None,
        };
        let layers = (0..a.layers).map(|index| find.layer(index)).collect::<Result<_, _>>()?;
        let norm = find.norm("output_norm")?;
        checkpoint.refuse_unused()?;
        Ok(ModelPlan { token, head, positions, layers, norm })
    }

    fn matrices(&self) -> impl Iterator<Item = &Plan<'a>> {
        let of_layers = self.layers.iter().flat_map(|l| [&l.qkv, &l.out, &l.up, &l.down]);
        of_layers.chain([&self.token]).chain(&self.head)
    }

    /// How many tensors of which types are held in which other formats because of their company, or from blocks: for the
    /// operator.
    pub(super) fn conversions(&self, quantize: Option<Quant>) -> BTreeMap<(Dtype, &'static str), usize> {
        let mut count = BTreeMap::new();
        for plan in self.matrices() {
            // Two parts may be of one tensor.
            let mut last = None;
            for (part, storage) in plan.stored().filter(|(part, _)| last.replace(&part.name) != Some(&part.name)) {
                let held = match (part.dtype, storage) {
                    (Dtype::Coded(_), Storage::Q8) => "q8_0",
                    (Dtype::Q8_0, Storage::Coded(_)) => "q4_0",
                    (Dtype::Coded(code), Storage::Coded(held)) if code != held => "q4_0",
                    (Dtype::Bf16, Storage::F32) if quantize.is_none() => "f32",
                    _ => continue,
                };
                *count.entry((part.dtype, held)).or_default() += 1;
            }
        }
        count
    }

    /// Whether keys and values are held in half precision: that saves memory, but makes no sense beside f32 weights. Beside
    /// bf16 they are in f32, too, so that a text is the same however such weights are held.
    pub(super) fn half(&self) -> bool {
        self.matrices().any(|plan| plan.stored().any(|(_, storage)| !matches!(storage, Storage::F32 | Storage::Bf16)))
    }

    /// What [`Weights::held`] will be; more than there is when it cannot be counted.
    pub(super) fn held(&self) -> u64 {
        let norms = self.layers.iter().map(|l| l.norms.len()).sum::<usize>() + self.norm.len();
        let numbers = norms + self.positions.as_ref().map_or(0, Vec::len);
        let matrices = self.matrices().map(|plan| plan.held().unwrap_or(u64::MAX));
        matrices.fold(4 * numbers as u64, u64::saturating_add)
    }

    /// Takes the memory, and reads and converts every weight.
    pub(super) fn pack(self, pool: &mut Pool) -> Result<Weights, FormatError> {
        let bytes = self.matrices().try_fold(0usize, |sum, plan| sum.checked_add(plan.bytes()?));
        let mut arena = bytes
            .ok_or_else(|| std::io::Error::other(TOO_LARGE))
            .and_then(Arena::new)
            .map_err(|source| FormatError::Read { file: "memory for weights".into(), source })?;
        let mut pack = |plan: &Plan<'_>| plan.pack(&mut arena, pool);
        let mut packed = Vec::new();
        // In the order in which a step reads them.
        for l in self.layers {
            packed.push(Layer {
                qkv: pack(&l.qkv)?,
                out: pack(&l.out)?,
                up: pack(&l.up)?,
                down: pack(&l.down)?,
                norms: l.norms,
            });
        }
        Ok(Weights {
            token: pack(&self.token)?,
            head: self.head.as_ref().map(pack).transpose()?,
            positions: self.positions,
            layers: packed,
            norm: self.norm,
        })
    }
}

/// The numbers of a vector or of a table that is not packed.
pub(super) fn finite(weight: &Weight<'_>) -> Result<Vec<f32>, FormatError> {
    let numbers = weight.vector();
    if numbers.iter().all(|v| v.is_finite()) {
        return Ok(numbers);
    }
    let location = Place::Tensor(weight.name.clone());
    Err(FormatError::broken(weight.file, location, "it holds numbers that are not finite"))
}
