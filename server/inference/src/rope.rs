//! Rotary position embeddings (Su et al. 2021), and their scaling beyond the training length.
//!
//! Every rule depends on the position and the loaded context alone, so a token's rotation is the same in every batch and
//! for every split of its prompt.

use std::borrow::Cow;
use std::f64::consts::TAU;

/// Rotary embeddings: dimension `i` of a head is rotated against dimension `i + dims / 2` by position · frequency.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f32,
    /// Rotated dimensions of each head, the first ones.
    pub dims: usize,
    /// How frequencies are changed for longer texts.
    pub scaling: Scaling,
    /// Factor of rotated queries and keys; 1 but for YaRN and LongRoPE.
    pub magnitude: f32,
}

/// How frequencies are changed for longer texts.
#[derive(Debug, Clone, PartialEq)]
pub enum Scaling {
    /// Not at all.
    None,
    /// Position interpolation (Chen et al. 2023): frequencies are divided.
    Linear {
        /// The divisor.
        factor: f32,
    },
    /// Dynamic NTK-aware scaling (bloc97 and emozilla 2023): the base grows with the position. transformers computes the
    /// same when it decodes token by token.
    Dynamic {
        /// The growth for each further original length.
        factor: f32,
        /// Positions that keep the base.
        original: usize,
    },
    /// Llama 3.1's rule: long waves are divided, short ones kept, those between interpolated.
    Llama3 {
        /// The divisor of long waves.
        factor: f32,
        /// Waves longer than `original / low` are divided.
        low: f32,
        /// Waves shorter than `original / high` are kept.
        high: f32,
        /// The length trained with.
        original: usize,
    },
    /// YaRN (Peng et al. 2023): a ramp between kept and divided frequencies.
    Yarn {
        /// The divisor.
        factor: f32,
        /// The length trained with.
        original: usize,
        /// Dimensions that turn more often within `original` are kept.
        fast: f32,
        /// Dimensions that turn less often within `original` are divided.
        slow: f32,
        /// The ramp begins and ends at whole dimensions.
        truncate: bool,
    },
    /// LongRoPE (Ding et al. 2024): a divisor for each frequency. As in llama.cpp and vLLM, the loaded context decides.
    Long {
        /// Divisors for a context of at most `original`.
        short: Vec<f32>,
        /// Divisors for longer ones.
        long: Vec<f32>,
        /// The length trained with.
        original: usize,
    },
    /// A divisor for each frequency: GGUF's `rope_freqs.weight`, which is how Llama 3.1's rule is stored there.
    Divided(Vec<f32>),
}

impl Scaling {
    /// Linear scaling; a factor of 1 is none.
    pub(crate) fn linear(factor: f32) -> Scaling {
        if factor == 1.0 { Scaling::None } else { Scaling::Linear { factor } }
    }

    /// YaRN's factor of queries and keys (equation 15 of the paper) for a divisor of frequencies.
    pub(crate) fn yarn_magnitude(factor: f32, weight: f32) -> f32 {
        if factor <= 1.0 { 1.0 } else { (0.1 * f64::from(weight) * f64::from(factor).ln() + 1.0) as f32 }
    }

    /// LongRoPE's factor of queries and keys for a context that is `factor` times `original`.
    pub(crate) fn long_magnitude(factor: f32, original: usize) -> f32 {
        if factor <= 1.0 { 1.0 } else { (1.0 + f64::from(factor).ln() / (original as f64).ln()).sqrt() as f32 }
    }
}

impl Rope {
    /// Why this cannot be computed for heads of `head_dim` dimensions.
    pub(crate) fn problem(&self, head_dim: usize) -> Option<String> {
        let pairs = self.dims / 2;
        if self.dims == 0 || !self.dims.is_multiple_of(2) || self.dims > head_dim {
            return Some(format!("{} of a head's {head_dim} dimensions cannot be rotated", self.dims));
        }
        let (numbers, lists, original): (Vec<f32>, [&[f32]; 2], usize) = match &self.scaling {
            Scaling::None => (vec![], [&[], &[]], 2),
            Scaling::Linear { factor } => (vec![*factor], [&[], &[]], 2),
            Scaling::Dynamic { factor, original } => (vec![*factor], [&[], &[]], *original),
            Scaling::Llama3 { factor, low, high, original } => {
                (vec![*factor, *low, *high, high - low], [&[], &[]], *original)
            }
            Scaling::Yarn { factor, original, fast, slow, .. } => (vec![*factor, *fast, *slow], [&[], &[]], *original),
            Scaling::Long { short, long, original } => (vec![], [short, long], *original),
            Scaling::Divided(by) => (vec![], [by, by], 2),
        };
        if let Some(list) = lists.into_iter().find(|l| l.len() != pairs)
            && matches!(self.scaling, Scaling::Long { .. } | Scaling::Divided(_))
        {
            return Some(format!("there are {} rotary factors for {pairs} frequencies", list.len()));
        }
        if self.dims == 2 && matches!(self.scaling, Scaling::Dynamic { .. }) {
            return Some("dynamic scaling needs more than 2 rotated dimensions".to_owned());
        }
        if original < 2 {
            return Some(format!("the original length is {original}"));
        }
        let all = numbers.iter().chain(lists.into_iter().flatten());
        let wrong = all.chain([&self.theta, &self.magnitude]).find(|n| !(n.is_finite() && **n > 0.0))?;
        Some(format!("a base or factor of the rotations is {wrong}"))
    }

    /// The rotations of a model that is loaded with a context, in positions.
    pub fn rotation(&self, context: usize) -> Rotation {
        let plain = frequencies(f64::from(self.theta), self.dims);
        let divided = |by: &[f32]| plain.iter().zip(by).map(|(f, by)| f / f64::from(*by)).collect();
        let scaled: Vec<f64> = match &self.scaling {
            Scaling::None | Scaling::Dynamic { .. } => plain,
            Scaling::Linear { factor } => divided(&vec![*factor; self.dims / 2]),
            Scaling::Llama3 { factor, low, high, original } => {
                let (factor, low, high) = (f64::from(*factor), f64::from(*low), f64::from(*high));
                let one = |f: f64| {
                    // Turns within the length trained with.
                    let turns = *original as f64 * f / TAU;
                    let kept = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - kept) * f / factor + kept * f
                };
                plain.into_iter().map(one).collect()
            }
            Scaling::Yarn { factor, original, fast, slow, truncate } => {
                let (start, end) = self.ramp(*original as f64, f64::from(*fast), f64::from(*slow), *truncate);
                let one = |(i, f): (usize, f64)| {
                    let divided = ((i as f64 - start) / (end - start)).clamp(0.0, 1.0);
                    f / f64::from(*factor) * divided + f * (1.0 - divided)
                };
                plain.into_iter().enumerate().map(one).collect()
            }
            Scaling::Long { short, long, original } => divided(if context > *original { long } else { short }),
            Scaling::Divided(by) => divided(by),
        };
        let dynamic = match self.scaling {
            Scaling::Dynamic { factor, original } => Some(Growth { rope: (self.theta, self.dims), factor, original }),
            _ => None,
        };
        let frequencies = scaled.into_iter().map(|f| f as f32).collect();
        Rotation { frequencies, magnitude: self.magnitude, dynamic }
    }

    /// Between which frequencies, by number, YaRN's ramp lies.
    fn ramp(&self, original: f64, fast: f64, slow: f64, truncate: bool) -> (f64, f64) {
        let of_turns =
            |turns: f64| self.dims as f64 * (original / (turns * TAU)).ln() / (2.0 * f64::from(self.theta).ln());
        let (mut start, mut end) = (of_turns(fast), of_turns(slow));
        if truncate {
            (start, end) = (start.floor(), end.ceil());
        }
        (start, end) = (start.max(0.0), end.min(self.dims as f64 - 1.0));
        (start, if start == end { end + 0.001 } else { end })
    }
}

fn frequencies(theta: f64, dims: usize) -> Vec<f64> {
    (0..dims / 2).map(|i| 1.0 / theta.powf((2 * i) as f64 / dims as f64)).collect()
}

/// The rotations of a loaded model.
#[derive(Debug)]
pub struct Rotation {
    frequencies: Vec<f32>,
    magnitude: f32,
    dynamic: Option<Growth>,
}

/// What the base's growth with the position is computed from.
#[derive(Debug)]
struct Growth {
    rope: (f32, usize),
    factor: f32,
    original: usize,
}

impl Rotation {
    /// Pairs of dimensions that are rotated.
    pub fn pairs(&self) -> usize {
        self.frequencies.len()
    }

    /// Factor of rotated queries and keys.
    pub fn magnitude(&self) -> f32 {
        self.magnitude
    }

    /// The angles of a position, one for each pair: as the reference does it, they are rounded to single precision.
    pub fn angles(&self, position: usize) -> Vec<f32> {
        self.at(position).iter().map(|frequency| position as f32 * frequency).collect()
    }

    fn at(&self, position: usize) -> Cow<'_, [f32]> {
        match &self.dynamic {
            Some(growth) if position >= growth.original => growth.frequencies(position).into(),
            _ => (&self.frequencies).into(),
        }
    }

    /// Writes the cosines and sines of a position, one of each for each pair.
    pub(crate) fn turn(&self, position: usize, cosines: &mut [f32], sines: &mut [f32]) {
        for ((cos, sin), frequency) in cosines.iter_mut().zip(sines).zip(self.at(position).iter()) {
            // Rounded as in `angles`.
            let angle = f64::from(position as f32 * frequency);
            (*cos, *sin) = (angle.cos() as f32 * self.magnitude, angle.sin() as f32 * self.magnitude);
        }
    }
}

impl Growth {
    fn frequencies(&self, position: usize) -> Vec<f32> {
        let ((theta, dims), factor) = (self.rope, f64::from(self.factor));
        let growth = factor * (position + 1) as f64 / self.original as f64 - (factor - 1.0);
        let theta = f64::from(theta) * growth.powf(dims as f64 / (dims as f64 - 2.0));
        frequencies(theta, dims).into_iter().map(|f| f as f32).collect()
    }
}
