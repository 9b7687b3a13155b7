//! The peer: candle-transformers, unmodified: its `quantized_llama` for GGUF files, its `llama` for folders on a GPU.

use crate::{Args, Round, likeliest, prompt};
use candle_core::quantized::gguf_file;
use candle_core::{DType, Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::llama::{Cache, Config, Llama, LlamaConfig};
use candle_transformers::models::quantized_llama::ModelWeights;
use std::fs::File;
use std::time::Instant;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Stock candle with its model.
pub(crate) struct Engine {
    model: Model,
    vocab: usize,
    device: Device,
}

enum Model {
    Gguf(ModelWeights),
    Folder { llama: Llama, config: Config, cache: Cache },
}

impl Engine {
    /// Loads the model.
    pub(crate) fn load(args: &Args) -> Result<Engine> {
        let device = args.gpu.map_or(Ok(Device::Cpu), Device::new_cuda)?;
        match args.gpu {
            Some(_) if args.model.is_dir() => Engine::load_folder(args, device),
            _ => Engine::load_gguf(args, device),
        }
    }

    fn load_gguf(args: &Args, device: Device) -> Result<Engine> {
        let mut file = File::open(&args.model)?;
        let content = gguf_file::Content::read(&mut file)?;
        let table = content.tensor_infos.get("token_embd.weight").ok_or("the file has no token table")?;
        let vocab = table.shape.dims()[0];
        let model = ModelWeights::from_gguf(content, &mut file, &device)?;
        Ok(Engine { model: Model::Gguf(model), vocab, device })
    }

    fn load_folder(args: &Args, device: Device) -> Result<Engine> {
        let config: LlamaConfig = serde_json::from_slice(&std::fs::read(args.model.join("config.json"))?)?;
        let config = config.into_config(false);
        let weights = std::fs::read(args.model.join("model.safetensors"))?;
        let weights = VarBuilder::from_buffered_safetensors(weights, DType::BF16, &device)?;
        let llama = Llama::load(weights, &config)?;
        let (vocab, cache) = (config.vocab_size, Cache::new(true, DType::BF16, &config, &device)?);
        Ok(Engine { model: Model::Folder { llama, config, cache }, vocab, device })
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
        let input = Tensor::new(tokens, &self.device)?.unsqueeze(0)?;
        let logits = match &mut self.model {
            Model::Gguf(model) => model.forward(&input, start)?,
            Model::Folder { llama, config, cache } => {
                if start == 0 {
                    *cache = Cache::new(true, DType::BF16, config, &self.device)?;
                }
                llama.forward(&input, start, cache)?
            }
        };
        Ok(likeliest(&logits.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?))
    }
}
