//! The model folder that the server reads: weights in f16 under the names of Hugging Face's GPT-2, and the texts beside them.

use crate::corpus::{ASSISTANT, END, END_OF_TEXT, SYSTEM, USER};
use crate::error::{Error, Result};
use crate::params::{Layout, Shape};
use crate::tokens::Tokens;
use crate::train::{Run, write_whole};
use half::f16;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::Path;

/// How the model's chat is written: every turn between its marker and the end marker.
pub const CHAT_TEMPLATE: &str = "{% for message in messages %}{% if message.role == 'system' %}<|system|>{% elif message.role == 'assistant' %}<|assistant|>{% else %}<|user|>{% endif %}{{ message.content }}<|end|>{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}";

/// Writes `model.safetensors`, `config.json`, `generation_config.json`, `tokenizer.json`, `tokenizer_config.json` and the recipe.
pub fn export(run: &Run, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(Error::file("create", folder))?;
    let weights = folder.join("model.safetensors");
    write_whole(&weights, &pack(&run.layout, &run.params).map_err(|e| Error::broken(&weights, e))?)?;
    let (end_of_text, end) = (run.tokens.end_of_text()?, run.tokens.marker(END)?);
    let recipe = serde_json::to_value(&run.recipe).map_err(|e| Error::broken(&weights, e))?;
    let texts = [
        ("recipe.json", recipe),
        ("config.json", config(&run.recipe.shape, end_of_text)),
        (
            "generation_config.json",
            json!({
                "bos_token_id": end_of_text, "eos_token_id": [end_of_text, end], "pad_token_id": end_of_text,
                "do_sample": true, "temperature": 0.7, "top_p": 0.95, "max_new_tokens": 256,
            }),
        ),
        (
            "tokenizer_config.json",
            json!({
                "tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": run.recipe.shape.context,
                "bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": END_OF_TEXT,
                "additional_special_tokens": [SYSTEM, USER, ASSISTANT, END],
                "add_prefix_space": false, "clean_up_tokenization_spaces": false, "chat_template": CHAT_TEMPLATE,
            }),
        ),
    ];
    for (name, value) in texts {
        write_whole(&folder.join(name), format!("{}\n", pretty(&value)).as_bytes())?;
    }
    write_whole(&folder.join("tokenizer.json"), run.tokens.to_json()?.as_bytes())
}

fn config(shape: &Shape, end_of_text: u32) -> Value {
    json!({
        "model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
        "vocab_size": shape.vocabulary, "n_positions": shape.context, "n_ctx": shape.context,
        "n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads, "n_inner": null,
        "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "initializer_range": 0.02,
        "scale_attn_weights": true, "tie_word_embeddings": true, "use_cache": true,
        "attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "bos_token_id": end_of_text, "eos_token_id": end_of_text, "torch_dtype": "float16",
    })
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// The weights as a safetensors file in f16. The head is the token embedding and is not written twice.
fn pack(layout: &Layout, params: &[f32]) -> std::result::Result<Vec<u8>, safetensors::SafeTensorError> {
    let bytes: Vec<Vec<u8>> = layout
        .tensors
        .iter()
        .map(|t| params[t.range.clone()].iter().flat_map(|p| f16::from_f32(*p).to_le_bytes()).collect())
        .collect();
    let mut views = Vec::new();
    for (tensor, bytes) in layout.tensors.iter().zip(&bytes) {
        views.push((tensor.name.as_str(), TensorView::new(Dtype::F16, tensor.sizes.clone(), bytes)?));
    }
    safetensors::serialize(views, Some(HashMap::from([("format".to_owned(), "pt".to_owned())])))
}

/// A model folder read back: its layout, parameters and tokenizer.
pub struct Model {
    /// The layout of the parameters.
    pub layout: Layout,
    /// The parameters, rounded to f16.
    pub params: Vec<f32>,
    /// The tokenizer.
    pub tokens: Tokens,
}

impl Model {
    /// Reads a folder that `export` wrote.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(Error::file("read", &path))?;
        let config: Value = serde_json::from_str(&text).map_err(|e| Error::broken(&path, e))?;
        let size = |name: &str| {
            let size = config[name].as_u64().and_then(|n| usize::try_from(n).ok());
            size.ok_or_else(|| Error::broken(&path, format!("`{name}` is not a number")))
        };
        let shape = Shape {
            vocabulary: size("vocab_size")?,
            context: size("n_positions")?,
            width: size("n_embd")?,
            layers: size("n_layer")?,
            heads: size("n_head")?,
        };
        if let Some(problem) = shape.problem() {
            return Err(Error::broken(&path, problem));
        }
        let layout = Layout::new(&shape);
        let path = folder.join("model.safetensors");
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        let broken = |e: safetensors::SafeTensorError| Error::broken(&path, e);
        let tensors = safetensors::SafeTensors::deserialize(&bytes).map_err(broken)?;
        let mut params = vec![0f32; layout.len];
        for tensor in &layout.tensors {
            let view = tensors.tensor(&tensor.name).map_err(broken)?;
            if view.dtype() != Dtype::F16 || view.shape() != tensor.sizes {
                return Err(Error::broken(
                    &path,
                    format!("`{}` is not an f16 tensor of the configured size", tensor.name),
                ));
            }
            for (p, b) in params[tensor.range.clone()].iter_mut().zip(view.data().chunks_exact(2)) {
                *p = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        Ok(Self { layout, params, tokens: Tokens::open(&folder.join("tokenizer.json"))? })
    }
}
