//! The inference engine: formats, model families, kernels and the scheduler. It knows tensors, not HTTP.
//!
//! Read in this order: [`engine`] (requests in, events out), [`executor`] (one step of a model over ragged rows),
//! [`sample`] (logits to a token), [`text`] (tokens to text and back), [`family`] (a model family is data), [`format`]
//! (safetensors and GGUF), [`cpu`] (the executor that serves), [`kernels`].

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod engine;

pub mod cpu;
pub mod executor;
pub mod sample;
pub mod text;

pub mod family;
pub mod format;

pub mod kernels;
mod pool;
