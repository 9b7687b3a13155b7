//! The first parameters, fit for narrow models that must copy.
//!
//! GPT-2's normal(0, 0.02) suits a width of 768. Here matrices get 1/√inputs, and what a block adds to the residual stream begins at
//! nothing, so that the stream begins as the embeddings alone. In it one circuit is laid out: a head of the first block that
//! looks one token back, and a head of the second that finds where the present token stood before and says what followed it.
//! Stories need it (a person called Mira keeps the name), and found by gradient alone it takes longer than all the
//! rest. It is only a beginning: training changes it like everything else.

use crate::params::Layout;
use crate::rng::Rng;

/// How far apart the scores of the token before and its neighbours lie at the beginning.
const LOOK_BACK: f32 = 2.0;
/// How strongly the second head insists on an equal token.
const MATCH: f32 = 1.8;
/// The size of what the first head writes, about that of an embedding.
const NOTE: f32 = 0.04;
/// The size of what the second head writes, somewhat more than an embedding.
const ECHO: f32 = 0.1;
/// The deviation of embeddings, and the amplitude of positions.
const TOKEN: f64 = 0.02;
const POSITION: f64 = 0.05;

/// Fresh parameters of a seed.
pub fn fresh(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut params = vec![0f32; layout.len];
    for (i, tensor) in layout.tensors.iter().enumerate() {
        let part = &mut params[tensor.range.clone()];
        if tensor.name.contains("ln_") {
            part.fill(if tensor.name.ends_with("weight") { 1.0 } else { 0.0 });
        } else if tensor.name == "wpe.weight" {
            positions(part, layout.shape.width, layout.shape.head_width());
        } else if tensor.name.ends_with("weight") && !tensor.name.ends_with("c_proj.weight") {
            let deviation = if tensor.name == "wte.weight" { TOKEN } else { 1.0 / (tensor.sizes[0] as f64).sqrt() };
            draw(part, deviation, &mut Rng::new(seed, 0x1417_0000 + i as u64));
        }
    }
    if layout.shape.layers >= 2 && layout.shape.heads >= 4 {
        lay_circuit(layout, &mut params, &mut Rng::new(seed, 0xc09));
    }
    params
}

fn draw(part: &mut [f32], deviation: f64, rng: &mut Rng) {
    part.iter_mut().for_each(|p| *p = (rng.normal() * deviation) as f32);
}

/// The turn per position of a pair of the first coordinates: wavelengths from 2.5 to some 1,800 positions.
fn turn(pair: usize, pairs: usize) -> f64 {
    2.5 * 700f64.powf(-(pair as f64) / (pairs.max(2) - 1) as f64)
}

/// Positions are sines and cosines in the first `head` coordinates: one step is the same turn everywhere.
fn positions(part: &mut [f32], width: usize, head: usize) {
    for (position, row) in part.chunks_exact_mut(width).enumerate() {
        for (pair, p) in row[..head / 2 * 2].chunks_exact_mut(2).enumerate() {
            let angle = position as f64 * turn(pair, head / 2);
            p[0] = (POSITION * angle.sin()) as f32;
            p[1] = (POSITION * angle.cos()) as f32;
        }
    }
}

/// The coordinates of the stream are positions `0..h`, the note of the token before `h..2h`, and the token `2h..`.
fn lay_circuit(layout: &Layout, params: &mut [f32], rng: &mut Rng) {
    let (d, h) = (layout.shape.width, layout.shape.head_width());
    let token = 2 * h..d;
    for row in params[layout.wte.clone()].chunks_exact_mut(d) {
        row[..2 * h].fill(0.0);
    }
    // Two random views of the token's coordinates: one to recognise a token by, one to say it by.
    let deviation = 1.0 / (token.len() as f64).sqrt();
    let (mut know, mut say) = (vec![0f32; h * token.len()], vec![0f32; h * token.len()]);
    draw(&mut know, deviation, rng);
    draw(&mut say, deviation, rng);
    let at = |view: &[f32], j: usize, t: usize| view[j * token.len() + t - 2 * h];

    let first = &layout.blocks[0];
    let qkv = &mut params[first.qkv.0.clone()];
    clear_head(qkv, d, h);
    for pair in 0..h / 2 {
        let (sin, cos) = turn(pair, h / 2).sin_cos();
        let (sin, cos) = (sin as f32 * LOOK_BACK, cos as f32 * LOOK_BACK);
        let (a, b) = (2 * pair, 2 * pair + 1);
        qkv[a * 3 * d + a] = LOOK_BACK;
        qkv[b * 3 * d + b] = LOOK_BACK;
        // The key of a position is the next position, so the query of that next one finds it.
        qkv[a * 3 * d + d + a] = cos;
        qkv[b * 3 * d + d + a] = sin;
        qkv[b * 3 * d + d + b] = cos;
        qkv[a * 3 * d + d + b] = -sin;
    }
    for j in 0..h {
        token.clone().for_each(|t| qkv[t * 3 * d + 2 * d + j] = at(&know, j, t));
    }
    let out = &mut params[first.proj.0.clone()];
    (0..h).for_each(|j| out[j * d + h + j] = NOTE);

    let second = &layout.blocks[1];
    let qkv = &mut params[second.qkv.0.clone()];
    clear_head(qkv, d, h);
    for j in 0..h {
        qkv[(h + j) * 3 * d + d + j] = MATCH;
        for t in token.clone() {
            qkv[t * 3 * d + j] = MATCH * at(&know, j, t);
            qkv[t * 3 * d + 2 * d + j] = at(&say, j, t);
        }
    }
    let out = &mut params[second.proj.0.clone()];
    for j in 0..h {
        token.clone().for_each(|t| out[j * d + t] = ECHO * at(&say, j, t));
    }
}

/// Empties the queries, keys and values of the first head.
fn clear_head(qkv: &mut [f32], d: usize, h: usize) {
    for row in qkv.chunks_exact_mut(3 * d) {
        for part in 0..3 {
            row[part * d..part * d + h].fill(0.0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::{Shard, Workspace};
    use crate::params::Shape;

    #[test]
    fn initial_parameters_already_favour_repeated_tokens() {
        let layout = Layout::new(&Shape { vocabulary: 400, context: 300, width: 128, layers: 2, heads: 4 });
        let mut params = fresh(&layout, 1);
        // Louder, as training makes it at once: the embeddings alone cannot speak up.
        params[layout.ln_f.0.clone()].fill(10.0);
        let mut rng = Rng::new(4, 4);
        let once: Vec<u32> = (0..100).map(|_| rng.below(400) as u32).collect();
        let ids: Vec<u32> = once.iter().chain(&once).copied().collect();
        let loss = |from: usize, to: usize| {
            let read = |to: usize| {
                let shard = Shard {
                    length: to,
                    inputs: ids[..to].to_vec(),
                    positions: (50..50 + to as u32).collect(),
                    targets: ids[1..=to].to_vec(),
                };
                if to == 0 { 0.0 } else { Workspace::default().run(&layout, &params, &shard, None) }
            };
            (read(to) - read(from)) / (to - from) as f64
        };
        let (first_loss, repeated_loss) = (loss(0, 99), loss(102, 199));
        assert!(repeated_loss + 1.5 < first_loss, "{first_loss} {repeated_loss}");
    }
}
