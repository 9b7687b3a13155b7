//! Writes a GPT-2 of random numbers with a byte-level tokenizer: every text is made of tokens, and any token may come next.

use std::collections::BTreeMap;

use camino::Utf8Path;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Map, Value, json};

pub(crate) struct Shape {
    pub(crate) width: usize,
    pub(crate) layers: usize,
    pub(crate) context: usize,
    pub(crate) seed: u64,
    pub(crate) chat: bool,
    /// Weights that are no numbers.
    pub(crate) broken: bool,
}

impl Default for Shape {
    fn default() -> Self {
        Self { width: 32, layers: 2, context: 256, seed: 1, chat: false, broken: false }
    }
}

pub(crate) const END: u32 = 256;
const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
pub(crate) const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

pub(crate) fn write_model(folder: &Utf8Path, shape: Shape) {
    std::fs::create_dir_all(folder).unwrap();
    let write = |name: &str, value: Value| std::fs::write(folder.join(name), value.to_string()).unwrap();
    let vocab = 256 + SPECIAL.len();
    write(
        "config.json",
        json!({ "model_type": "gpt2", "vocab_size": vocab, "n_embd": shape.width, "n_layer": shape.layers, "n_head": 4,
                "n_positions": shape.context, "eos_token_id": END, "bos_token_id": END }),
    );
    let mut tokenizer_config = json!({ "bos_token": SPECIAL[0], "eos_token": SPECIAL[0] });
    if shape.chat {
        tokenizer_config["chat_template"] = json!(TEMPLATE);
        tokenizer_config["eos_token"] = json!(SPECIAL[2]);
    }
    write("tokenizer_config.json", tokenizer_config);
    write("tokenizer.json", tokenizer());
    weights(folder, &shape, vocab);
}

/// GPT-2's letters for bytes: printable ones stand for themselves, the rest for letters from 256 on.
fn letters() -> Vec<char> {
    let printable = |b: u32| (33..=126).contains(&b) || (161..=172).contains(&b) || (174..=255).contains(&b);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            let code = if printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}

fn tokenizer() -> Value {
    let mut vocab: Map<String, Value> =
        letters().iter().enumerate().map(|(id, c)| (c.to_string(), json!(id))).collect();
    let added: Vec<Value> = SPECIAL
        .iter()
        .enumerate()
        .map(|(n, text)| {
            vocab.insert((*text).to_owned(), json!(256 + n));
            json!({ "id": 256 + n, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true })
        })
        .collect();
    let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": level, "post_processor": null, "decoder": level,
        "model": { "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "", "end_of_word_suffix": "",
                   "fuse_unk": false, "byte_fallback": false, "vocab": vocab, "merges": [] },
    })
}

struct Random(u64);

impl Random {
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    }
}

fn weights(folder: &Utf8Path, shape: &Shape, vocab: usize) {
    let d = shape.width;
    let mut random = Random(shape.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    let mut tensors: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    let mut add = |name: String, size: &[usize], scale: f32, base: f32| {
        let numbers = (0..size.iter().product())
            .map(|_| if shape.broken { f32::NAN } else { base + random.next() * scale })
            .collect();
        tensors.insert(name, (size.to_vec(), numbers));
    };
    add("wte.weight".into(), &[vocab, d], 0.6, 0.0);
    add("wpe.weight".into(), &[shape.context, d], 0.2, 0.0);
    for n in 0..shape.layers {
        for (name, size) in [
            ("attn.c_attn", vec![d, 3 * d]),
            ("attn.c_proj", vec![d, d]),
            ("mlp.c_fc", vec![d, 4 * d]),
            ("mlp.c_proj", vec![4 * d, d]),
        ] {
            add(format!("h.{n}.{name}.weight"), &size, 2.0 / (d as f32).sqrt(), 0.0);
            add(format!("h.{n}.{name}.bias"), &size[1..], 0.1, 0.0);
        }
        for name in ["ln_1", "ln_2"] {
            add(format!("h.{n}.{name}.weight"), &[d], 0.1, 1.0);
            add(format!("h.{n}.{name}.bias"), &[d], 0.1, 0.0);
        }
    }
    add("ln_f.weight".into(), &[d], 0.1, 1.0);
    add("ln_f.bias".into(), &[d], 0.1, 0.0);
    let bytes: BTreeMap<&String, Vec<u8>> = tensors
        .iter()
        .map(|(name, (_, numbers))| (name, numbers.iter().flat_map(|n| n.to_le_bytes()).collect()))
        .collect();
    let views = tensors
        .iter()
        .map(|(name, (size, _))| (name.clone(), TensorView::new(Dtype::F32, size.clone(), &bytes[name]).unwrap()));
    safetensors::serialize_to_file(views, None, folder.join("model.safetensors").as_std_path()).unwrap();
}
