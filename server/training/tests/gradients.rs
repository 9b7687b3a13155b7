//! The hand-written backward pass against two witnesses that share nothing with it: candle's automatic gradients, and finite
//! differences of the hand-written loss.
#![allow(clippy::unwrap_used)]

use candle_core::{D, DType, Device, Result, Tensor, Var};
use std::collections::HashMap;
use textnlp_training::init::fresh;
use textnlp_training::net::{EPSILON, Shard, Workspace};
use textnlp_training::params::{Layout, Shape};
use textnlp_training::rng::Rng;

fn small() -> (Layout, Vec<f32>, Shard) {
    let shape = Shape { vocabulary: 37, context: 200, width: 24, layers: 2, heads: 3 };
    let layout = Layout::new(&shape);
    let mut params = fresh(&layout, 11);
    // Norms and biases away from 1 and 0, so that their part in each gradient counts.
    let mut rng = Rng::new(5, 5);
    params.iter_mut().for_each(|p| *p += (rng.normal() * 0.05) as f32);
    // Two windows, longer than one block of query rows and of logit rows, at different offsets.
    let length = 90;
    let draw = |rng: &mut Rng| (0..2 * length).map(|_| rng.below(37) as u32).collect::<Vec<_>>();
    let (inputs, targets) = (draw(&mut rng), draw(&mut rng));
    let positions = (0..length as u32).chain(100..100 + length as u32).collect();
    (layout, params, Shard { length, inputs, positions, targets })
}

/// GPT-2 as candle differentiates it: the mean cross-entropy.
fn candle_loss(vars: &HashMap<String, Var>, shape: &Shape, shard: &Shard) -> Result<Tensor> {
    let device = Device::Cpu;
    let (t, d, h) = (shard.length, shape.width, shape.heads);
    let b = shard.inputs.len() / t;
    let p = |name: &str| vars[name].as_tensor().clone();
    let norm = |x: &Tensor, name: &str| -> Result<Tensor> {
        let centred = x.broadcast_sub(&x.mean_keepdim(D::Minus1)?)?;
        let deviation = (centred.sqr()?.mean_keepdim(D::Minus1)? + f64::from(EPSILON))?.sqrt()?;
        centred
            .broadcast_div(&deviation)?
            .broadcast_mul(&p(&format!("{name}.weight")))?
            .broadcast_add(&p(&format!("{name}.bias")))
    };
    let linear = |x: &Tensor, name: &str| -> Result<Tensor> {
        let inputs = x.dim(D::Minus1)?;
        let y = x.reshape((b * t, inputs))?.matmul(&p(&format!("{name}.weight")))?;
        y.broadcast_add(&p(&format!("{name}.bias")))?.reshape((b, t, ()))
    };
    let tokens = Tensor::new(shard.inputs.as_slice(), &device)?;
    let positions = Tensor::new(shard.positions.as_slice(), &device)?;
    let mut x = (p("wte.weight").index_select(&tokens, 0)? + p("wpe.weight").index_select(&positions, 0)?)?
        .reshape((b, t, d))?;
    let mask: Vec<f32> = (0..t).flat_map(|i| (0..t).map(move |j| if j > i { -1e9 } else { 0.0 })).collect();
    let mask = Tensor::from_vec(mask, (t, t), &device)?;
    for i in 0..shape.layers {
        let qkv = linear(&norm(&x, &format!("h.{i}.ln_1"))?, &format!("h.{i}.attn.c_attn"))?;
        let part = |n: usize| qkv.narrow(2, n * d, d)?.reshape((b, t, h, d / h))?.transpose(1, 2)?.contiguous();
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let scores = (q.matmul(&k.t()?.contiguous()?)? / ((d / h) as f64).sqrt())?.broadcast_add(&mask)?;
        let weights = candle_nn::ops::softmax(&scores, D::Minus1)?;
        let mixed = weights.matmul(&v)?.transpose(1, 2)?.reshape((b, t, d))?;
        x = (x + linear(&mixed, &format!("h.{i}.attn.c_proj"))?)?;
        let fc = linear(&norm(&x, &format!("h.{i}.ln_2"))?, &format!("h.{i}.mlp.c_fc"))?;
        x = (x + linear(&fc.gelu()?, &format!("h.{i}.mlp.c_proj"))?)?;
    }
    let logits = norm(&x, "ln_f")?.reshape((b * t, d))?.matmul(&p("wte.weight").t()?)?;
    candle_nn::loss::cross_entropy(&logits, &Tensor::new(shard.targets.as_slice(), &device)?)
}

#[test]
fn loss_and_gradients_agree_with_candle() {
    let (layout, params, shard) = small();
    let vars: HashMap<String, Var> = layout
        .tensors
        .iter()
        .map(|t| {
            let tensor = Tensor::from_slice(&params[t.range.clone()], t.sizes.as_slice(), &Device::Cpu).unwrap();
            (t.name.clone(), Var::from_tensor(&tensor.to_dtype(DType::F32).unwrap()).unwrap())
        })
        .collect();
    let theirs = candle_loss(&vars, &layout.shape, &shard).unwrap();
    let gradients = theirs.backward().unwrap();

    let mut grad = vec![0f32; layout.len];
    let count = shard.targets.len();
    let mut workspace = Workspace::default();
    // Twice, as buffers that are used again must not remember.
    workspace.run(&layout, &params, &shard, Some((&mut grad, 1.0)));
    grad.fill(0.0);
    let loss = workspace.run(&layout, &params, &shard, Some((&mut grad, 1.0 / count as f32))) / count as f64;
    let expected = f64::from(theirs.to_scalar::<f32>().unwrap());
    assert!((loss - expected).abs() < 1e-5 * expected, "{loss} {expected}");
    for tensor in &layout.tensors {
        let theirs =
            gradients.get(vars[&tensor.name].as_tensor()).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let largest = theirs.iter().fold(0f32, |a, b| a.max(b.abs()));
        let worst = theirs.iter().zip(&grad[tensor.range.clone()]).fold(0f32, |a, (x, y)| a.max((x - y).abs()));
        assert!(largest > 1e-6, "{} has no gradient to compare", tensor.name);
        assert!(worst <= 2e-4 * largest, "{}: off by {worst} of {largest}", tensor.name);
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    let (layout, params, shard) = small();
    let mut workspace = Workspace::default();
    let mut grad = vec![0f32; layout.len];
    workspace.run(&layout, &params, &shard, Some((&mut grad, 1.0)));
    let mut rng = Rng::new(1, 9);
    for tensor in &layout.tensors {
        // Along a random direction within one tensor the loss changes by the gradient's projection on it.
        let direction: Vec<f32> = tensor.range.clone().map(|_| if rng.below(2) == 0 { 1.0 } else { -1.0 }).collect();
        let slope: f64 =
            direction.iter().zip(&grad[tensor.range.clone()]).map(|(d, g)| f64::from(*d) * f64::from(*g)).sum();
        let mut at = |step: f32| {
            let mut moved = params.clone();
            moved[tensor.range.clone()].iter_mut().zip(&direction).for_each(|(p, d)| *p += step * d);
            workspace.run(&layout, &moved, &shard, None)
        };
        let step = 1e-3;
        let measured = (at(step) - at(-step)) / f64::from(2.0 * step);
        let scale = grad[tensor.range.clone()].iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        assert!((slope - measured).abs() < 0.02 * scale.max(1.0), "{}: {slope} {measured}", tensor.name);
    }
}
