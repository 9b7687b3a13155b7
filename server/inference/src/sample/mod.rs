//! How the next token is chosen from a row of logits.
//!
//! The order is: biases, repetition, presence and frequency penalties, the tokens that a guide allows, temperature, top-k,
//! top-p, min-p, one draw. Nothing here has a state that another request could change, and all arithmetic is our own, so
//! a choice is a function of the logits, the settings, the tokens so far and the position.

mod float;
mod philox;
mod select;

use std::collections::HashMap;

use crate::engine::Sampling;
use select::Row;

/// Below this a temperature is as good as greedy; it keeps the scale finite.
const COLDEST: f32 = 1e-4;

/// The logits hold something that is not a finite number, or none at all is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("logits are not finite")]
pub struct NotFinite;

/// A set of token ids, as bits.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TokenSet {
    words: Vec<u32>,
}

impl TokenSet {
    /// Takes the bits of `words`, but for the token `without`.
    pub fn refill(&mut self, words: &[u32], without: u32) {
        self.words.clear();
        self.words.extend_from_slice(words);
        if let Some(word) = self.words.get_mut(without as usize / 32) {
            *word &= !(1 << (without % 32));
        }
    }

    /// Adds a token.
    pub fn insert(&mut self, id: u32) {
        let index = id as usize / 32;
        if index >= self.words.len() {
            self.words.resize(index + 1, 0);
        }
        self.words[index] |= 1 << (id % 32);
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.words.iter().all(|&word| word == 0)
    }

    /// The ids, in their order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        (0u32..).zip(&self.words).filter(|(_, word)| **word != 0).flat_map(|(index, &word)| {
            (0..32u32).filter(move |bit| word & (1 << bit) != 0).map(move |bit| index * 32 + bit)
        })
    }
}

/// A chosen token.
#[derive(Debug, Clone, PartialEq)]
pub struct SampledToken {
    /// Its id.
    pub token: u32,
    /// The natural logarithm of its probability before penalties and temperature, when asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens with theirs, likeliest first.
    pub top: Vec<(u32, f32)>,
}

/// Chooses the tokens of one request.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    /// Those with a bias, and where a penalty asks for it those of prompt and answer.
    changed: Vec<Changed>,
    /// Where in `changed` a token is.
    places: HashMap<u32, usize>,
    penalises: bool,
}

/// Room for the penalised copy of a row and for probabilities; one for all requests of a thread.
#[derive(Debug, Default)]
pub struct Scratch {
    logits: Vec<f32>,
    weights: Vec<f32>,
    /// Ids and logits of the tokens that a guide allows.
    ids: Vec<u32>,
    kept: Vec<f32>,
}

impl Sampler {
    /// Settings out of their range change nothing: a penalty that is not finite, a repetition penalty not above 0.
    pub fn new(mut sampling: Sampling, prompt: &[u32]) -> Self {
        if !(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite()) {
            sampling.repetition_penalty = 1.0;
        }
        for penalty in [&mut sampling.presence_penalty, &mut sampling.frequency_penalty] {
            if !penalty.is_finite() {
                *penalty = 0.0;
            }
        }
        sampling.logit_bias.retain(|(_, bias)| bias.is_finite());
        let repeats = sampling.repetition_penalty != 1.0;
        let penalises = repeats || sampling.presence_penalty != 0.0 || sampling.frequency_penalty != 0.0;
        let mut sampler = Sampler { sampling, changed: Vec::new(), places: HashMap::new(), penalises };
        for (token, bias) in std::mem::take(&mut sampler.sampling.logit_bias) {
            let changed = sampler.of(token);
            changed.bias = (changed.bias + bias).clamp(f32::MIN, f32::MAX);
        }
        for &token in prompt.iter().filter(|_| repeats) {
            sampler.of(token).count = Some(0);
        }
        sampler
    }

    /// Takes a token into the answer.
    pub fn accept(&mut self, token: u32) {
        if self.penalises {
            let Changed { count, .. } = self.of(token);
            *count = Some(count.map_or(1, |count| count.saturating_add(1)));
        }
    }

    fn of(&mut self, token: u32) -> &mut Changed {
        let next = self.changed.len();
        let place = *self.places.entry(token).or_insert(next);
        if place == next {
            self.changed.push(Changed { token, bias: 0.0, count: None });
        }
        &mut self.changed[place]
    }

    /// The next token at `position` of the sequence, out of those that are `allowed`. `alternatives` requests
    /// log-probabilities, with that many beside the token's own.
    pub fn choose(
        &self,
        logits: &[f32],
        position: u64,
        alternatives: Option<u8>,
        allowed: Option<&TokenSet>,
        scratch: &mut Scratch,
    ) -> Result<SampledToken, NotFinite> {
        self.choose_after(&[], logits, position, alternatives, allowed, scratch)
    }

    /// [`Sampler::choose`] as if the tokens of `ahead` were in the answer, too.
    pub fn choose_after(
        &self,
        ahead: &[u32],
        logits: &[f32],
        position: u64,
        alternatives: Option<u8>,
        allowed: Option<&TokenSet>,
        scratch: &mut Scratch,
    ) -> Result<SampledToken, NotFinite> {
        let row = Row::new(logits).ok_or(NotFinite)?;
        let Scratch { logits: copy, weights, ids, kept } = scratch;
        let draw = self.draw(position);
        let changes = !draw.penalties.changed.is_empty() || (self.penalises && !ahead.is_empty());
        if changes {
            copy.clear();
            copy.extend_from_slice(logits);
            self.penalise(copy, ahead);
        }
        let wanted = if changes { copy.as_slice() } else { logits };
        let token = match allowed {
            // The others are left out, not made unlikely: no temperature and no top-k can bring them back.
            Some(allowed) => {
                ids.clear();
                ids.extend(allowed.iter().filter(|&id| (id as usize) < wanted.len()));
                kept.clear();
                kept.extend(ids.iter().map(|&id| wanted[id as usize]));
                ids[draw.of_row(&Row::new(kept).ok_or(NotFinite)?, kept, weights) as usize]
            }
            None if changes => draw.of_row(&Row::new(copy).ok_or(NotFinite)?, copy, weights),
            None => draw.of_row(&row, logits, weights),
        };
        let Some(alternatives) = alternatives else {
            return Ok(SampledToken { token, logprob: None, top: Vec::new() });
        };
        let normaliser = Normaliser::of(&row, logits);
        let top = row.top(usize::from(alternatives)).into_iter().map(|(id, l)| (id, normaliser.logprob(l))).collect();
        Ok(SampledToken { token, logprob: Some(normaliser.logprob(logits[token as usize])), top })
    }

    fn penalise(&self, logits: &mut [f32], ahead: &[u32]) {
        let penalties = self.penalties();
        let ahead = if self.penalises { ahead } else { &[] };
        let with_ahead = |changed: Changed| match ahead.iter().filter(|&&other| other == changed.token).count() as u32 {
            0 => changed,
            times => Changed { count: Some(changed.count.unwrap_or(0).saturating_add(times)), ..changed },
        };
        for &changed in &self.changed {
            penalties.apply(with_ahead(changed), logits);
        }
        for (index, &token) in ahead.iter().enumerate() {
            if !self.places.contains_key(&token) && !ahead[..index].contains(&token) {
                penalties.apply(with_ahead(Changed { token, bias: 0.0, count: None }), logits);
            }
        }
    }

    fn penalties(&self) -> Penalties<'_> {
        let Sampling { repetition_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        Penalties {
            repetition: repetition_penalty,
            presence: presence_penalty,
            frequency: frequency_penalty,
            changed: &self.changed,
        }
    }

    /// How the token at `position` is drawn from its logits.
    pub fn draw(&self, position: u64) -> Draw<'_> {
        let Sampling { temperature, top_k, top_p, min_p, seed, .. } = self.sampling;
        let is_greedy = temperature.is_nan() || temperature <= 0.0 || top_p <= 0.0;
        Draw {
            scale: 1.0 / temperature.max(COLDEST),
            top_k: if is_greedy { 1 } else { top_k },
            top_p: if top_p < 1.0 { top_p } else { 1.0 },
            floor: if min_p > 0.0 { min_p.min(1.0) } else { 0.0 },
            at: philox::uniform(seed, position),
            penalties: self.penalties(),
        }
    }
}

/// A token whose logit is changed before the token is drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Changed {
    /// Its id.
    pub token: u32,
    /// What is added to its logit.
    pub bias: f32,
    /// How often the answer has it, if a penalty counts it: 0 for a token of the prompt.
    pub count: Option<u32>,
}

/// What changes the logits of some tokens.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties<'a> {
    /// What logits above 0 of counted tokens are divided by, and others multiplied with.
    pub repetition: f32,
    /// What is taken from the logits of tokens that the answer has.
    pub presence: f32,
    /// The same for each time that the answer has the token.
    pub frequency: f32,
    /// The tokens, each once.
    pub changed: &'a [Changed],
}

impl Penalties<'_> {
    /// Changes nothing.
    pub const NONE: Penalties<'static> = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0, changed: &[] };

    fn apply(&self, changed: Changed, logits: &mut [f32]) {
        let Some(logit) = logits.get_mut(changed.token as usize) else { return };
        if changed.bias != 0.0 {
            *logit = (*logit + changed.bias).clamp(f32::MIN, f32::MAX);
        }
        if let Some(count) = changed.count {
            let mut value = if *logit > 0.0 { *logit / self.repetition } else { *logit * self.repetition };
            if count > 0 {
                value -= self.presence + self.frequency * count as f32;
            }
            *logit = value.clamp(f32::MIN, f32::MAX);
        }
    }
}

/// How a token is drawn from logits: greedily with a `top_k` of 1, else from those that top-k, top-p and min-p keep.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw<'a> {
    /// 1 / temperature.
    pub scale: f32,
    /// The count of the likeliest tokens that are kept; 0 for all.
    pub top_k: usize,
    /// The share of the weights that the likeliest tokens must make up; 1 for all. Above 0.
    pub top_p: f32,
    /// The least weight that is kept, where the likeliest token weighs 1.
    pub floor: f32,
    /// Where in the sum of all weights the token is, from 0 to below 1.
    pub at: f64,
    /// What changes the logits first.
    pub penalties: Penalties<'a>,
}

impl Draw<'_> {
    /// The token that is drawn from logits.
    pub fn token(&self, logits: &[f32]) -> Result<u32, NotFinite> {
        let mut row = Row::new(logits).ok_or(NotFinite)?;
        let mut copy = Vec::new();
        if !self.penalties.changed.is_empty() {
            copy.extend_from_slice(logits);
            self.penalties.changed.iter().for_each(|&changed| self.penalties.apply(changed, &mut copy));
            row = Row::new(&copy).ok_or(NotFinite)?;
        }
        let logits = if copy.is_empty() { logits } else { &copy };
        Ok(self.of_row(&row, logits, &mut Vec::new()))
    }

    /// Without the penalties.
    fn of_row(&self, row: &Row<'_>, logits: &[f32], weights: &mut Vec<f32>) -> u32 {
        let Draw { scale, top_k, top_p, floor, at, .. } = *self;
        if top_k == 1 {
            return row.best();
        }
        let heat = Heat { max: row.max, scale };
        let limited = top_k > 0 && top_k < logits.len();
        if top_p < 1.0 || limited {
            let mut kept = if limited {
                let kept = heat.weigh(row.top(top_k));
                let whole = kept.iter().map(|&(_, weight)| f64::from(weight)).sum::<f64>();
                nucleus(kept, top_p, whole).0
            } else {
                let whole = heat.weigh_all(logits, weights);
                let (few, reached) = nucleus(heat.weigh(row.top(FEW)), top_p, whole);
                if reached { few } else { nucleus(heaviest(weights, top_p, whole), top_p, whole).0 }
            };
            kept.retain(|&(_, weight)| weight >= floor);
            pick(kept.into_iter(), at)
        } else if floor > 0.0 {
            // A weight of at least `floor` needs a logit of at least max + ln(floor) / scale; the margin covers rounding and
            // the weight itself decides.
            let depth = float::ln(f64::from(floor).max(1e-38)) / f64::from(heat.scale);
            let bound = f64::from(row.max) + depth - 1e-3 * (1.0 + depth.abs() + f64::from(row.max.abs()));
            let mut kept = heat.weigh(row.at_least(bound as f32));
            kept.retain(|&(_, weight)| weight >= floor);
            pick(kept.into_iter(), at)
        } else {
            let whole = heat.weigh_all(logits, weights);
            pick_of(weights, at * whole)
        }
    }
}

/// Most nuclei of a trained model are smaller.
const FEW: usize = 64;

/// The natural logarithm of the softmax at `token`: what perplexity sums.
pub fn logprob(logits: &[f32], token: u32) -> Result<f32, NotFinite> {
    let row = Row::new(logits).ok_or(NotFinite)?;
    let logit = *logits.get(token as usize).ok_or(NotFinite)?;
    Ok(Normaliser::of(&row, logits).logprob(logit))
}

/// Turns logits into weights: 1 for the likeliest.
struct Heat {
    max: f32,
    scale: f32,
}

impl Heat {
    #[inline]
    fn weight(&self, logit: f32) -> f32 {
        // The bound keeps an overflowed difference from meeting a scale of 0.
        float::exp((logit - self.max).max(-1e30) * self.scale)
    }

    fn weigh(&self, mut tokens: Vec<(u32, f32)>) -> Vec<(u32, f32)> {
        for (_, value) in &mut tokens {
            *value = self.weight(*value);
        }
        tokens
    }

    /// Weighs every logit into `weights`; the answer is their sum, added up in an order that is fixed.
    fn weigh_all(&self, logits: &[f32], weights: &mut Vec<f32>) -> f64 {
        weights.clear();
        weights.extend(logits.iter().map(|&logit| self.weight(logit)));
        total(weights)
    }
}

const BLOCK: usize = 256;

/// Eight running sums within a block, blocks in double precision.
fn block_sum(block: &[f32]) -> f64 {
    let mut lanes = [0f32; 8];
    let mut eights = block.chunks_exact(8);
    for eight in &mut eights {
        for (lane, &value) in lanes.iter_mut().zip(eight) {
            *lane += value;
        }
    }
    let rest: f64 = eights.remainder().iter().map(|&value| f64::from(value)).sum();
    lanes.iter().map(|&lane| f64::from(lane)).sum::<f64>() + rest
}

fn total(weights: &[f32]) -> f64 {
    weights.chunks(BLOCK).map(block_sum).sum()
}

/// The likeliest that make up `share` of `whole`, the one that crosses it included; `false` and all of them
/// when they do not.
fn nucleus(mut tokens: Vec<(u32, f32)>, share: f32, whole: f64) -> (Vec<(u32, f32)>, bool) {
    if share >= 1.0 {
        return (tokens, true);
    }
    let wanted = f64::from(share) * whole;
    let mut sum = 0.0;
    for (index, &(_, weight)) in tokens.iter().enumerate() {
        sum += f64::from(weight);
        if sum >= wanted {
            tokens.truncate(index + 1);
            return (tokens, true);
        }
    }
    (tokens, false)
}

/// The heaviest that make up at least `share` of `whole`, heaviest first, equal ones by id.
///
/// The mass is counted in quarters of octaves, so only what lies above the crossing one is gathered and sorted.
fn heaviest(weights: &[f32], share: f32, whole: f64) -> Vec<(u32, f32)> {
    // Weights are at most 1, whose bits shifted by 21 are 508.
    let class = |weight: f32| (weight.to_bits() >> 21) as usize & 511;
    let mut masses = [0f64; 512];
    for &weight in weights {
        masses[class(weight)] += f64::from(weight);
    }
    // A hair more, because the sums round differently.
    let wanted = f64::from(share) * whole * (1.0 + 1e-6);
    let mut sum = 0.0;
    let lowest = (0..512).rev().find(|&class| {
        sum += masses[class];
        sum >= wanted
    });
    let lowest = lowest.unwrap_or(0);
    let weighted = (0u32..).zip(weights.iter().copied()).filter(|&(_, weight)| class(weight) >= lowest);
    let mut kept: Vec<(u32, f32)> = weighted.collect();
    kept.sort_unstable_by(select::order);
    kept
}

/// One of the weighted tokens.
fn pick(tokens: impl Iterator<Item = (u32, f32)> + Clone, u: f64) -> u32 {
    let target = u * tokens.clone().map(|(_, weight)| f64::from(weight)).sum::<f64>();
    let mut sum = 0.0;
    let mut last = 0;
    for (token, weight) in tokens {
        sum += f64::from(weight);
        if weight > 0.0 {
            last = token;
            if sum > target {
                break;
            }
        }
    }
    last
}

/// The first token at which the running sum of all weights passes `target`: whole blocks are stepped over.
fn pick_of(weights: &[f32], target: f64) -> u32 {
    let mut sum = 0.0;
    for (index, block) in weights.chunks(BLOCK).enumerate() {
        let mass = block_sum(block);
        if sum + mass <= target {
            sum += mass;
            continue;
        }
        for (offset, &weight) in block.iter().enumerate() {
            sum += f64::from(weight);
            if weight > 0.0 && sum > target {
                return (index * BLOCK + offset) as u32;
            }
        }
    }
    // Rounding left the target a hair above the sum: the last that weighs anything.
    weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0) as u32
}

/// Logarithm of the softmax's denominator.
struct Normaliser {
    max: f32,
    ln_sum: f64,
}

impl Normaliser {
    fn of(row: &Row<'_>, logits: &[f32]) -> Self {
        let mut sum = 0.0;
        let mut block = [0f32; BLOCK];
        for chunk in logits.chunks(BLOCK) {
            for (weight, &logit) in block.iter_mut().zip(chunk) {
                *weight = float::exp(logit - row.max);
            }
            sum += block_sum(&block[..chunk.len()]);
        }
        Normaliser { max: row.max, ln_sum: float::ln(sum) }
    }

    fn logprob(&self, logit: f32) -> f32 {
        (f64::from(logit) - f64::from(self.max) - self.ln_sum) as f32
    }
}

#[cfg(test)]
mod tests;
