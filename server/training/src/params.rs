//! The shape of a GPT-2 and where each of its tensors lies in one flat vector.

use serde::{Deserialize, Serialize};
use std::ops::Range;

/// The shape of a model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shape {
    /// Tokens of the vocabulary.
    pub vocabulary: usize,
    /// Positions: the longest text.
    pub context: usize,
    /// Numbers per token.
    pub width: usize,
    /// Blocks of attention and perceptron.
    pub layers: usize,
    /// Heads of an attention; they divide the width.
    pub heads: usize,
}

impl Shape {
    /// Numbers per head.
    pub fn head_width(&self) -> usize {
        self.width / self.heads
    }

    /// Says what is wrong with a shape, if anything.
    pub fn problem(&self) -> Option<String> {
        if [self.vocabulary, self.context, self.width, self.layers, self.heads].contains(&0) {
            return Some("every size must be at least 1".into());
        }
        (!self.width.is_multiple_of(self.heads))
            .then(|| format!("{} heads do not divide a width of {}", self.heads, self.width))
    }
}

/// One tensor of the flat vector.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// The name that Hugging Face gives it.
    pub name: String,
    /// Its sizes, outermost first.
    pub sizes: Vec<usize>,
    /// Where it lies.
    pub range: Range<usize>,
}

impl Tensor {
    /// Weight decay pulls matrices to zero, never norms and biases.
    pub fn decays(&self) -> bool {
        self.sizes.len() == 2
    }
}

/// Where the tensors of one block lie.
#[derive(Clone, Debug)]
pub(crate) struct Block {
    pub(crate) ln1: (Range<usize>, Range<usize>),
    pub(crate) qkv: (Range<usize>, Range<usize>),
    pub(crate) proj: (Range<usize>, Range<usize>),
    pub(crate) ln2: (Range<usize>, Range<usize>),
    pub(crate) fc: (Range<usize>, Range<usize>),
    pub(crate) out: (Range<usize>, Range<usize>),
}

/// All tensors of a shape.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The shape.
    pub shape: Shape,
    /// In the order of the flat vector.
    pub tensors: Vec<Tensor>,
    /// The numbers in all.
    pub len: usize,
    pub(crate) wte: Range<usize>,
    pub(crate) wpe: Range<usize>,
    pub(crate) blocks: Vec<Block>,
    pub(crate) ln_f: (Range<usize>, Range<usize>),
}

impl Layout {
    /// The layout of a shape.
    pub fn new(shape: &Shape) -> Self {
        let d = shape.width;
        let mut tensors = Vec::new();
        let mut len = 0;
        let mut allocate = |name: String, sizes: &[usize]| {
            let range = len..len + sizes.iter().product::<usize>();
            len = range.end;
            tensors.push(Tensor { name, sizes: sizes.to_vec(), range: range.clone() });
            range
        };
        let wte = allocate("wte.weight".into(), &[shape.vocabulary, d]);
        let wpe = allocate("wpe.weight".into(), &[shape.context, d]);
        let mut pair = |name: String, sizes: &[usize], outputs: usize| {
            (allocate(format!("{name}.weight"), sizes), allocate(format!("{name}.bias"), &[outputs]))
        };
        let blocks = (0..shape.layers)
            .map(|i| Block {
                ln1: pair(format!("h.{i}.ln_1"), &[d], d),
                qkv: pair(format!("h.{i}.attn.c_attn"), &[d, 3 * d], 3 * d),
                proj: pair(format!("h.{i}.attn.c_proj"), &[d, d], d),
                ln2: pair(format!("h.{i}.ln_2"), &[d], d),
                fc: pair(format!("h.{i}.mlp.c_fc"), &[d, 4 * d], 4 * d),
                out: pair(format!("h.{i}.mlp.c_proj"), &[4 * d, d], d),
            })
            .collect();
        let ln_f = pair("ln_f".into(), &[d], d);
        Self { shape: shape.clone(), tensors, len, wte, wpe, blocks, ln_f }
    }
}
