//! The inference engine: formats, model families, kernels and the scheduler. It knows tensors, not HTTP.
//!
//! Read in this order: [`engine`] (requests in, events out), [`executor`] (one step of a model over ragged rows),
//! [`sample`] (logits to a token), [`guide`] (which tokens a JSON Schema allows), [`text`] (tokens to text and back),
//! [`family`] and [`rope`] (a model family is data), [`decoder`] (the same for what candle computes), [`format`](mod@format)
//! (safetensors and GGUF), [`files`] (what a model's files must have), [`cpu`] (the executor that serves), [`kernels`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod engine;

pub mod cpu;
pub mod executor;
pub mod guide;
pub mod sample;
pub mod text;

pub mod decoder;
pub mod family;
pub mod files;
pub mod format;
pub mod rope;

mod json;
pub mod kernels;
mod pool;
