//! Training from nothing and fine-tuning.
//!
//! The corpus is written by our own world simulator (`corpus`), cut into tokens by a byte-level BPE (`tokens`), and learned by a GPT-2
//! whose forward and backward passes are written by hand (`net`). `train` is the loop with its checkpoints, `export` writes the
//! model folder that the server reads, `evaluate` measures what the model card reports.
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod card;
pub mod corpus;
pub mod decode;
pub mod error;
pub mod evaluate;
pub mod export;
pub mod init;
pub mod net;
pub mod params;
pub mod rng;
pub mod tokens;
pub mod train;
mod vector;
pub mod windows;
