//! The tensors that the layers of a family need, in safetensors files: a checkpoint is checked without computing with it.
//! `textnlp-candle` loads the same ones.

use super::{Feed, Linear, Norm, Position, Qkv, Spec, Tied};
use crate::format::{FormatError, Tensor, Tensors};

impl Spec {
    /// The prefix of the base model's tensors in a checkpoint that has those that `has` names: checkpoints of a base
    /// model alone leave it out, or a part of it.
    pub fn base_of(&self, has: impl Fn(&str) -> bool) -> &'static str {
        let mut base = self.base;
        while !base.is_empty() && !has(&format!("{base}{}.weight", self.token)) {
            base = base.split_once('.').map_or("", |(_, rest)| rest);
        }
        base
    }

    /// Whether the head is the token table, in a checkpoint that has the tensors that `has` names.
    pub fn is_tied(&self, has: impl Fn(&str) -> bool) -> bool {
        match self.tied {
            Tied::Yes => true,
            Tied::No => false,
            Tied::Unsaid => !has(&format!("{}.weight", self.head.stem)),
        }
    }

    /// Reads every number of a checkpoint and keeps none. Refuses tensors that are missing, that have another shape or
    /// type, that would be left out, or whose numbers are not finite, or not `as_half`, in f16.
    pub fn check(&self, tensors: &Tensors, as_half: bool) -> Result<(), FormatError> {
        let has = |name: &str| tensors.has(name);
        let mut found: Vec<Tensor<'_>> = Vec::new();
        self.need_each(self.base_of(has), self.is_tied(has), &mut |name, shape| {
            found.push(tensors.need(name, shape)?);
            Ok(())
        })?;
        // A second copy of the table, if there is one.
        tensors.set_used(&format!("{}.weight", self.head.stem));
        tensors.refuse_unused(&self.shape.family, self.shape.layers, |_| true)?;
        found.into_iter().try_for_each(|tensor| tensor.check_numbers(as_half))
    }

    /// Calls `need` with the name and the shape of each tensor, in the order in which the executor reads them, until it
    /// fails.
    fn need_each(&self, base: &str, is_tied: bool, need: &mut Need<'_>) -> Result<(), FormatError> {
        let width = self.shape.width;
        need(&format!("{base}{}.weight", self.token), &[self.shape.vocab, width])?;
        if let Position::Learned { stem, offset } = &self.position {
            need(&format!("{base}{stem}.weight"), &[self.shape.context + offset, width])?;
        }
        for number in 0..self.shape.layers {
            self.need_layer(&format!("{base}{}{number}.", self.layer), need)?;
        }
        self.need_norm(&format!("{base}{}", self.last_norm), width, need)?;
        match is_tied {
            true if self.head.bias => need(&format!("{}.bias", self.head.stem), &[self.shape.vocab]),
            true => Ok(()),
            false => self.need_linears("", &[(self.head, self.shape.vocab)], width, need),
        }
    }

    fn need_layer(&self, at: &str, need: &mut Need<'_>) -> Result<(), FormatError> {
        let width = self.shape.width;
        let (inner, kv) = (self.shape.heads * self.head_dim, self.kv_heads * self.head_dim);
        for stem in self.norms.iter().take(self.residual.norms()) {
            self.need_norm(&format!("{at}{stem}"), width, need)?;
        }
        match self.qkv {
            Qkv::Separate([q, k, v]) => self.need_linears(at, &[(q, inner), (k, kv), (v, kv)], width, need)?,
            Qkv::Blocks(all) => self.need_linears(at, &[(all, inner + 2 * kv)], width, need)?,
            Qkv::Groups(all) => {
                need(&format!("{at}{}.weight", all.stem), &[inner + 2 * kv, width])?;
                if all.bias {
                    need(&format!("{at}{}.bias", all.stem), &[inner + 2 * kv])?;
                }
            }
        }
        if let Some(found) = self.qk_norm {
            let sides = if found.per_head { [self.head_dim; 2] } else { [inner, kv] };
            for (stem, side) in found.stems.into_iter().zip(sides) {
                self.need_norm(&format!("{at}{stem}"), side, need)?;
            }
        }
        self.need_linears(at, &[(self.attention_out, width)], inner, need)?;
        let ffn = self.ffn;
        let (up, down): (&[_], _) = match &self.feed {
            Feed::Plain([up, down]) => (&[(*up, ffn)], *down),
            Feed::Gated([gate, up, down]) => (&[(*gate, ffn), (*up, ffn)], *down),
            Feed::Fused([up, down]) => (&[(*up, 2 * ffn)], *down),
            Feed::Experts { router, count, parts, at: stem, .. } => {
                self.need_linears(at, &[(*router, *count)], width, need)?;
                let [gate, up, down] = *parts;
                for number in 0..*count {
                    let at = format!("{at}{stem}{number}.");
                    self.need_linears(&at, &[(gate, ffn), (up, ffn)], width, need)?;
                    self.need_linears(&at, &[(down, width)], ffn, need)?;
                }
                return Ok(());
            }
        };
        self.need_linears(at, up, width, need)?;
        self.need_linears(at, &[(down, width)], ffn, need)
    }

    /// Matrices of the same inputs, with the outputs of each: first the biases, then the weights.
    fn need_linears(
        &self,
        at: &str,
        parts: &[(Linear, usize)],
        inputs: usize,
        need: &mut Need<'_>,
    ) -> Result<(), FormatError> {
        for (part, outputs) in parts.iter().filter(|(part, _)| part.bias) {
            need(&format!("{at}{}.bias", part.stem), &[*outputs])?;
        }
        for (part, outputs) in parts {
            let is_transposed = self.transposed && !at.is_empty();
            let sides = if is_transposed { [inputs, *outputs] } else { [*outputs, inputs] };
            need(&format!("{at}{}.weight", part.stem), &sides)?;
        }
        Ok(())
    }

    fn need_norm(&self, stem: &str, width: usize, need: &mut Need<'_>) -> Result<(), FormatError> {
        let parts: &[&str] = match self.norm {
            Norm::Bare { .. } => &[],
            Norm::Rms { .. } => &["weight"],
            Norm::Layer { .. } => &["weight", "bias"],
        };
        parts.iter().try_for_each(|part| need(&format!("{stem}.{part}"), &[width]))
    }
}

/// Called with the name of a tensor and its sides, the slowest first.
type Need<'a> = dyn FnMut(&str, &[usize]) -> Result<(), FormatError> + 'a;
