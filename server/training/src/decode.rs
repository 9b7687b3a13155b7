//! Text generation with a model in training: a plain batched decoder, for samples and measurements. Serving has a
//! faster one.

use crate::net::{EPSILON, head, linear};
use crate::params::Layout;
use crate::rng::Rng;
use crate::vector;

/// Sampling parameters.
#[derive(Clone, Copy, Debug)]
pub struct Drawing {
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// The most tokens of an answer.
    pub tokens: usize,
    /// The seed; each prompt has its own stream.
    pub seed: u64,
}

struct Sequence {
    ids: Vec<u32>,
    prompt: usize,
    /// Of each layer, keys and values of all positions so far.
    cache: Vec<(Vec<f32>, Vec<f32>)>,
    done: bool,
    rng: Rng,
}

/// Continues each prompt until one of the `stops`, the limit or the end of the context. Returns the new tokens, without the stop.
pub fn continue_all(
    layout: &Layout,
    params: &[f32],
    prompts: &[Vec<u32>],
    stops: &[u32],
    drawing: Drawing,
) -> Vec<Vec<u32>> {
    let mut sequences: Vec<Sequence> = prompts
        .iter()
        .enumerate()
        .map(|(i, ids)| Sequence {
            ids: ids.clone(),
            prompt: ids.len(),
            cache: vec![(Vec::new(), Vec::new()); layout.shape.layers],
            done: ids.is_empty() || ids.len() >= layout.shape.context,
            rng: Rng::new(drawing.seed, i as u64),
        })
        .collect();
    for position in 0..layout.shape.context {
        let mut alive: Vec<&mut Sequence> = sequences.iter_mut().filter(|s| !s.done).collect();
        if alive.is_empty() {
            break;
        }
        let logits = advance(layout, params, &mut alive, position);
        for (s, row) in alive.into_iter().zip(logits.chunks_exact(layout.shape.vocabulary)) {
            if position + 1 < s.ids.len() {
                continue;
            }
            let next = draw(row, drawing.temperature, &mut s.rng);
            if stops.contains(&next) {
                s.done = true;
                continue;
            }
            s.ids.push(next);
            s.done = s.ids.len() - s.prompt >= drawing.tokens || s.ids.len() >= layout.shape.context;
        }
    }
    sequences.into_iter().map(|s| s.ids[s.prompt..].to_vec()).collect()
}

/// Feeds the token at `position` of each sequence; returns the logits of what follows.
fn advance(layout: &Layout, params: &[f32], alive: &mut [&mut Sequence], position: usize) -> Vec<f32> {
    let (d, rows) = (layout.shape.width, alive.len());
    let hd = layout.shape.head_width();
    let mut x = vec![0f32; rows * d];
    for (x, s) in x.chunks_exact_mut(d).zip(alive.iter()) {
        let t = layout.wte.start + s.ids[position] as usize * d;
        let p = layout.wpe.start + position * d;
        for (x, (a, b)) in x.iter_mut().zip(params[t..t + d].iter().zip(&params[p..p + d])) {
            *x = a + b;
        }
    }
    let mut norm = vec![0f32; rows * d];
    let (mut hat, mut rstd) = (norm.clone(), vec![0f32; rows]);
    let (mut qkv, mut fc, mut act) = (vec![0f32; rows * 3 * d], vec![0f32; rows * 4 * d], vec![0f32; rows * 4 * d]);
    let mut mixed = vec![0f32; rows * d];
    for (layer, block) in layout.blocks.iter().enumerate() {
        let at = |r: &std::ops::Range<usize>| &params[r.clone()];
        vector::layer_norm(&mut norm, &mut hat, &mut rstd, &x, at(&block.ln1.0), at(&block.ln1.1), EPSILON);
        linear(&mut qkv, &norm, at(&block.qkv.0), at(&block.qkv.1));
        for ((s, qkv), mixed) in alive.iter_mut().zip(qkv.chunks_exact(3 * d)).zip(mixed.chunks_exact_mut(d)) {
            let (keys, values) = &mut s.cache[layer];
            keys.extend_from_slice(&qkv[d..2 * d]);
            values.extend_from_slice(&qkv[2 * d..]);
            for h in (0..d).step_by(hd) {
                let mut weights: Vec<f32> =
                    keys.chunks_exact(d).map(|k| vector::dot(&qkv[h..h + hd], &k[h..h + hd])).collect();
                vector::softmax(&mut weights, 1.0 / (hd as f32).sqrt());
                let out = &mut mixed[h..h + hd];
                out.fill(0.0);
                for (w, v) in weights.iter().zip(values.chunks_exact(d)) {
                    out.iter_mut().zip(&v[h..h + hd]).for_each(|(o, v)| *o += w * v);
                }
            }
        }
        linear(&mut norm, &mixed, at(&block.proj.0), at(&block.proj.1));
        vector::add(&mut x, &norm);
        vector::layer_norm(&mut norm, &mut hat, &mut rstd, &x, at(&block.ln2.0), at(&block.ln2.1), EPSILON);
        linear(&mut fc, &norm, at(&block.fc.0), at(&block.fc.1));
        vector::gelu(&mut act, &fc);
        linear(&mut norm, &act, at(&block.out.0), at(&block.out.1));
        vector::add(&mut x, &norm);
    }
    let (weight, bias) = (&params[layout.ln_f.0.clone()], &params[layout.ln_f.1.clone()]);
    vector::layer_norm(&mut norm, &mut hat, &mut rstd, &x, weight, bias, EPSILON);
    let mut logits = vec![0f32; rows * layout.shape.vocabulary];
    head(&mut logits, &norm, &params[layout.wte.clone()], d);
    logits
}

fn draw(logits: &[f32], temperature: f32, rng: &mut Rng) -> u32 {
    let top = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1)).map_or(0, |(i, _)| i);
    if temperature <= 0.0 {
        return top as u32;
    }
    let mut weights = logits.to_vec();
    vector::softmax(&mut weights, 1.0 / temperature);
    let mut at = rng.unit();
    for (i, w) in weights.iter().enumerate() {
        at -= f64::from(*w);
        if at < 0.0 {
            return i as u32;
        }
    }
    top as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Shard, Workspace};
    use crate::params::Shape;

    #[test]
    fn decoder_predicts_like_the_training_forward_pass() {
        let layout = Layout::new(&Shape { vocabulary: 50, context: 40, width: 24, layers: 2, heads: 3 });
        let params: Vec<f32> = crate::init::fresh(&layout, 3).iter().map(|p| p * 1.5).collect();
        let ids: Vec<u32> = (0..31).map(|i| (i * 7 + i * i) % 50).collect();
        let mut sequence = Sequence {
            ids: ids.clone(),
            prompt: 0,
            cache: vec![(Vec::new(), Vec::new()); 2],
            done: false,
            rng: Rng::new(0, 0),
        };
        let mut loss = 0.0;
        for position in 0..30 {
            let mut row = advance(&layout, &params, &mut [&mut sequence], position);
            let score = row[ids[position + 1] as usize];
            loss += f64::from(vector::softmax(&mut row, 1.0) - score);
        }
        let shard =
            Shard { length: 30, inputs: ids[..30].to_vec(), positions: (0..30).collect(), targets: ids[1..].to_vec() };
        let expected = Workspace::default().run(&layout, &params, &shard, None);
        assert!((loss - expected).abs() < 1e-3, "{loss} {expected}");
    }

    #[test]
    fn prompts_at_the_context_limit_end_without_error() {
        let layout = Layout::new(&Shape { vocabulary: 50, context: 8, width: 8, layers: 1, heads: 1 });
        let params = crate::init::fresh(&layout, 1);
        let drawing = Drawing { temperature: 1.0, tokens: 100, seed: 1 };
        let prompts = vec![vec![], vec![1; 7], vec![1; 8], vec![1; 20], vec![2]];
        let lengths: Vec<usize> = continue_all(&layout, &params, &prompts, &[], drawing).iter().map(Vec::len).collect();
        assert_eq!(lengths, [0, 1, 0, 0, 7]);
    }
}
