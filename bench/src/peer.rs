//! The peer: candle-transformers' `quantized_llama`, unmodified.

use crate::{Args, Round, likeliest, prompt};
use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use std::fs::File;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Stock candle with its model.
pub(crate) struct Engine {
    model: ModelWeights,
    vocab: usize,
}

impl Engine {
    /// Loads the model.
    pub(crate) fn load(args: &Args) -> Result<Engine> {
        let mut file = File::open(&args.model)?;
        let content = gguf_file::Content::read(&mut file)?;
        let table = content.tensor_infos.get("token_embd.weight").ok_or("the file has no token table")?;
        let vocab = table.shape.dims()[0];
        let model = ModelWeights::from_gguf(content, &mut file, &Device::Cpu)?;
        Ok(Engine { model, vocab })
    }

    /// One prompt and what is generated after it, greedily.
    pub(crate) fn round(&mut self, args: &Args) -> Result<Round> {
        let ids = prompt(args.prompt, self.vocab);
        let started = Instant::now();
        let mut next = self.one(0, &ids)?;
        let prefill = started.elapsed().as_secs_f64();
        let started = Instant::now();
        for i in 0..args.generate {
            next = self.one(args.prompt + i, &[next])?;
        }
        let decode = started.elapsed().as_secs_f64();
        Ok(Round { prefill: args.prompt as f64 / prefill, decode: args.generate as f64 / decode })
    }

    fn one(&mut self, start: usize, tokens: &[u32]) -> Result<u32> {
        let input = Tensor::new(tokens, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.forward(&input, start)?.to_dtype(DType::F32)?.flatten_all()?;
        Ok(likeliest(&logits.to_vec1::<f32>()?))
    }
}
